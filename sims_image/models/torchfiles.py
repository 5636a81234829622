"""Files of ``torch.save``: written so that a full disk says so, and read without running what they hold."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from sims_core.errors import InputError


def save(content: Any, path: Path) -> None:
    """Write ``content``. Raises OSError where torch's own writer hides it behind a RuntimeError."""
    try:
        with open(path, "wb") as file:
            torch.save(content, file)
    except RuntimeError as error:
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def load(argument: str, path: Path, *, mmap: bool = False, otherwise: str = "") -> dict[str, Any]:
    """The dictionary in a file of ``torch.save``; only tensors and plain values are taken, nothing is run.

    otherwise: what helps if the file is damaged. Raises `InputError` for anything else, and where torch is older than
    2.6, whose reader could be made to run what a file says (CVE-2025-32434).
    """
    version = re.match(r"(\d+)\.(\d+)", torch.__version__)
    if version is None or (int(version[1]), int(version[2])) < (2, 6):
        words = f"torch {torch.__version__} can be made to run what such a file says: upgrade to torch 2.6"
        raise InputError(argument, str(path), f"{words}, or give a .safetensors file where one is taken")
    try:
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        if not isinstance(found, dict):
            raise TypeError(f"a {type(found).__name__}, not a state dict")
    except Exception as error:  # unpickling raises whatever it meets
        words = f"not a file of plain tensors ({error if isinstance(error, TypeError) else type(error).__name__})"
        raise InputError(argument, str(path), words + otherwise) from None
    return found
