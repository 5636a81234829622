"""Results that appear whole or not at all: written beside their place, resumed where they were stopped, moved into it.

`placed` is for what is written at one go, `Workplace` for what takes long: a run folder ``OUT.SUFFIX`` that the same
settings return to and that goes when the result is in its place. Single files: `sims_core.lab.runs.write_atomic`.
"""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sims_core.errors import InputError
from sims_core.lab.runs import RunFolder, write_failure

_UNFINISHED = "`restart` deletes it, which is unfinished, or name another `out`"


@contextlib.contextmanager
def placed(folder: Path, *, argument: str = "folder") -> Iterator[Path]:
    """A new folder beside ``folder`` that takes its place at the end; nothing stays if the writing fails.

    Raises `InputError` naming ``argument`` where it cannot be written.
    """
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _discard(folder, "new")  # of a process that was killed here
        temporary.mkdir()
        yield temporary
        if folder.exists():
            os.replace(folder, aside)
        move(temporary, folder)
    except OSError as error:
        raise write_failure(argument, folder, error, "nothing was put there") from None
    finally:
        if aside.exists() and not folder.exists():
            os.replace(aside, folder)
        shutil.rmtree(temporary, ignore_errors=True)
        if folder.exists():
            _discard(folder, "old")


@dataclass(frozen=True)
class Workplace:
    """Where the result ``out`` is made: the run folder ``OUT.SUFFIX``.

    settings: JSON-able, everything that decides the result. argument: what errors name.
    """

    out: Path
    suffix: str
    settings: dict[str, Any]
    argument: str = "out"

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.out.with_name(f"{self.out.name}.{self.suffix}")

    def check(self) -> None:
        """Refuse what `open` would refuse, and change nothing: for dry runs. Raises `InputError`."""
        RunFolder.check(self.path, self.settings, argument=self.argument, otherwise=_UNFINISHED)

    def open(self, room: int, *, restart: bool = False) -> RunFolder:
        """Begin, or resume. room: bytes that the disk must have left at the start. restart: delete what is unfinished.

        Raises `InputError`: other settings are at work there, another process is, or there is not enough room.
        """
        if restart and (self.path / "settings.json").is_file():
            with RunFolder.claim(self.path, argument=self.argument) as folder:
                folder.remove()
        if not self.path.exists():
            check_room(self.argument, self.out, room)
        return RunFolder.open(self.path, self.settings, argument=self.argument, otherwise=_UNFINISHED)

    def clear(self) -> None:
        """Remove what a run left that was killed after its result was in place; another run's folder stays."""
        if self.path.is_dir():
            with contextlib.suppress(InputError), RunFolder.open(self.path, self.settings) as folder:
                folder.remove()

    def failure(self, error: OSError) -> InputError:
        """A failed write as the user should read it."""
        return write_failure(self.argument, self.out, error, f"what is done is kept in {self.path.name}")


def move(made: Path, place: Path) -> None:
    """Put what is whole in its place, in one step that lasts through a power cut."""
    os.replace(made, place)
    _sync(place.parent)


def check_room(argument: str, out: Path, needed: int) -> None:
    """Raise `InputError` if the disk that ``out`` will lie on has not ``needed`` bytes left."""
    there = next(folder for folder in out.absolute().parents if folder.exists())
    free = shutil.disk_usage(there).free
    if needed > free:
        raise InputError(argument, str(out), f"it needs {size(needed)} and the disk has {size(free)} left")


def size(count: float) -> str:
    """Bytes in words."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _discard(folder: Path, kind: str) -> None:
    for stale in folder.parent.glob(f".{glob.escape(folder.name)}.*{kind}"):
        shutil.rmtree(stale, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Make a rename last, where folders can be synchronised (not on Windows)."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    with contextlib.suppress(OSError):
        os.fsync(handle)
    os.close(handle)
