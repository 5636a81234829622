"""The options of the verbs that take files: ``sims_image info`` and ``import-nvidia``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class ImportNvidia:
    """Read a published EDM or EDM2 snapshot, without running what is in it, and write a checkpoint."""

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.pkl")] = ""
    """NVIDIA's .pkl."""
    out: str = ""
    """The checkpoint's folder; default: named after the file, in the current folder."""
    replace: bool = False
    """Write over a checkpoint that is there."""


@dataclass(frozen=True)
class Info:
    """Say what a data set, checkpoint, run folder, snapshot of NVIDIA's or statistics file is, of one or several."""

    path: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH [PATH ...]")] = ()
    """The folders or files."""
