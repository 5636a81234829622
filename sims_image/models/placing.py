"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sims_core.lab.runs import write_failure


@contextmanager
def beside(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder`` that takes its place at the end; nothing stays if the writing fails."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _discard(folder, "new")  # of a process that was killed here
        temporary.mkdir()
        yield temporary
        if folder.exists():
            os.replace(folder, aside)
        os.replace(temporary, folder)
        _sync(folder.parent)
    except OSError as error:
        raise write_failure("folder", folder, error, "nothing was put there") from None
    finally:
        if aside.exists() and not folder.exists():
            os.replace(aside, folder)
        shutil.rmtree(temporary, ignore_errors=True)
        if folder.exists():
            _discard(folder, "old")


def _discard(folder: Path, kind: str) -> None:
    for stale in folder.parent.glob(f".{_literal(folder.name)}.*.{kind}"):
        shutil.rmtree(stale, ignore_errors=True)


def _literal(name: str) -> str:
    """A file name as a glob pattern that matches itself only."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


def _sync(folder: Path) -> None:
    """Make a rename last through a power cut, where folders can be synchronised (not on Windows)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
