"""Run folders: settings and provenance as JSON, one shard per finished piece of work, resume by looking.

A folder can be killed at any instant: every file is written beside its place and moved into it, so what exists is
whole. The same command picks up what is there; other settings are refused with the difference; a finished folder is
recognised. One process at a time works in a folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

from sims_core import __version__
from sims_core.errors import InputError, disk_failure, reason, shown
from sims_core.lab.config import recorded

T = TypeVar("T")

#: digits of the longest whole number in a record; a seed of 128 bits has 39
_DIGITS = 100
_LIBRARIES = ("numpy", "scipy", "torch", "numba", "pandas", "pot", "joblib")


def write_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` make a temporary file in the same folder, then move it to ``path`` in one step.

    The temporary name keeps the suffix, because writers choose formats by it.
    """
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.part{path.suffix}")
    try:
        write(temporary)
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically, keys in the given order. Non-finite numbers are refused (they are not JSON)."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text))


def duration(seconds: float) -> str:
    """Seconds in words."""
    for limit, length, unit in ((90, 1, "s"), (5400, 60, "min"), (172_800, 3600, "hours")):
        if seconds < limit:
            return f"{max(seconds / length, 0.1):.2g} {unit}" if length > 1 else f"{max(1, round(seconds))} s"
    return f"{seconds / 86_400:.3g} days"


def digest(settings: Mapping[str, Any], length: int = 8) -> str:
    """The first ``length`` hexadecimal digits of the SHA-256 of JSON-able settings, in any order of their names."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:length]


def parse_json(argument: str, item: str, data: bytes) -> dict[str, Any]:
    """A JSON object. Raises `InputError` naming ``item`` for anything else; also for a key twice, and huge numbers."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key is there twice")
        return found

    def number(text: str) -> float:
        value = float(text)
        if not math.isfinite(value):
            raise ValueError(f"{shown(text, 20)} is not a finite number")
        return value

    def integer(text: str) -> int:
        if len(text) > _DIGITS:
            raise ValueError(f"a number of {len(text)} digits")
        return int(text)

    hooks: dict[str, Any] = {"parse_float": number, "parse_constant": number, "parse_int": integer}
    try:
        content = json.loads(data, object_pairs_hook=unique, **hooks)
    except (ValueError, RecursionError) as error:
        raise InputError(argument, item, f"not JSON ({reason(error)})") from None
    if not isinstance(content, dict):
        raise InputError(argument, item, "must hold a JSON object")
    return content


def kept(path: Path, read: Callable[[Path], T]) -> T | None:
    """What ``read`` makes of a file that a run wrote; None if it is not there, or damaged.

    A damaged file is set aside as NAME.damaged, in words on the error stream, so that it is made again.
    """
    if not path.exists():
        return None
    try:
        return read(path)
    except Exception as error:  # readers of zips, arrays and tables raise whatever they meet
        unreadable = isinstance(error, OSError) and error.errno not in (None, errno.EINVAL)
        if unreadable or isinstance(error, MemoryError):
            raise
        why = error.expected if isinstance(error, InputError) else reason(error)
    os.replace(path, path.with_name(path.name + ".damaged"))
    print(f"note: {shown(str(path), 300)} is damaged ({shown(why)}): set aside and made again", file=sys.stderr)
    return None


def kept_json(path: Path) -> dict[str, Any] | None:
    """A JSON object that a run wrote, as `kept`."""
    return kept(path, lambda there: parse_json(there.name, str(there), there.read_bytes()))


def followed(out: str | Path) -> Path:
    """Where ``out`` is: what it points to if it is a link, so that what moves into its place leaves the link alone."""
    return Path(os.path.realpath(out)) if os.path.islink(out) else Path(out)


def write_failure(argument: str, out: Path, error: OSError, kept: str) -> InputError:
    """A failed write as the user should read it."""
    return InputError(argument, str(out), disk_failure(error, kept, "cannot write there"))


def provenance(options: Any = None) -> dict[str, Any]:
    """Version, git revision (if any), library versions, platform, command line and time (UTC); ``options`` in full."""
    versions = {}
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "version": __version__,
        "git": _git_revision(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "libraries": versions,
        "command": [*_program(), *sys.argv[1:]],
        **({} if options is None else recorded(options)),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def first_provenance(path: Path, options: Any) -> dict[str, Any]:
    """`provenance`; of a record that holds the same but for the time, that one: a report made again keeps its date."""
    now, there = provenance(options), (kept_json(path) or {}).get("provenance", {})
    return there if {**there, "started": ""} == {**now, "started": ""} else now


def _program() -> list[str]:
    """The words that started this process, without its interpreter's options."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is None or not sys.argv[0].endswith(".py"):
        return [Path(sys.argv[0]).name]
    return ["python", "-m", spec.name.removesuffix(".__main__")]


def _git_revision() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


_OTHERWISE = "name another folder"


class RunFolder:
    """A folder that holds one run. Make it with `open`, which checks it, and use it as a context manager."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self.path, self.settings = path, settings
        self._lock: int | None = None

    @classmethod
    def open(
        cls,
        path: str | Path,
        settings: dict[str, Any],
        *,
        options: Any = None,
        argument: str = "out",
        otherwise: str = _OTHERWISE,
    ) -> RunFolder:
        """Create the folder, or return to it if its settings are these.

        settings: JSON-able, everything that decides the result (not: workers, chunk sizes, the folder's own name).
        options: the dataclass that asked for them, recorded for ``--config``.
        A run that never finished a piece of work gives way to one with other settings.
        Raises `InputError` naming ``argument``: the path cannot be written, holds something else, holds a run with
        other settings (the message says which, and ``otherwise`` what to do), or another process is at work in it.
        """
        path = Path(path)
        settings = json.loads(json.dumps(settings, allow_nan=False))
        record = path / "settings.json"
        folder = cls(path, settings)
        try:
            cls.check(path, settings, argument=argument, otherwise=otherwise)
            (path / "shards").mkdir(parents=True, exist_ok=True)
            folder._take_lock(argument)
            for stale in path.rglob(".*.part*"):
                stale.unlink(missing_ok=True)
            if not record.exists() or not _begun(path):
                write_json(record, {"settings": settings, "provenance": provenance(options)})
        except OSError as error:
            folder.close()
            raise write_failure(argument, path, error, "nothing was begun") from None
        return folder

    @classmethod
    def claim(cls, path: Path, *, argument: str = "out") -> RunFolder:
        """A folder whatever its settings. Raises `InputError` while another process is at work in it."""
        folder = cls(path, {})
        folder._take_lock(argument)
        return folder

    @staticmethod
    def check(
        path: str | Path, settings: dict[str, Any], *, argument: str = "out", otherwise: str = _OTHERWISE
    ) -> None:
        """Refuse what `open` would refuse of what is there, and change nothing: for dry runs. Raises `InputError`."""
        record = Path(path) / "settings.json"
        if record.exists():
            _refuse_other_settings(record, json.loads(json.dumps(settings, allow_nan=False)), argument, otherwise)
        elif record.parent.is_dir() and any(not _own(p.name) for p in record.parent.iterdir()):
            raise InputError(argument, str(path), "the folder is not empty and holds no run; name another one")

    def _take_lock(self, argument: str) -> None:
        try:
            import fcntl
        except ImportError:  # Windows: two commands in one folder are then the user's to avoid
            return
        self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise InputError(argument, str(self.path), "another process is at work in this folder") from None

    def close(self) -> None:
        """Release the folder's lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def facts(self) -> dict[str, Any] | None:
        """What `finish` was told here; None if it has not been called."""
        return kept_json(self.path / "finished.json")

    @property
    def finished(self) -> bool:
        """Whether `finish` has been called here."""
        return self.facts is not None

    def remove(self) -> None:
        """Delete the folder and let go of it. Its settings go last: killed meanwhile, it is still this run's folder."""
        order = {"finished.json": -1, "settings.json": 1, ".lock": 2}
        for path in sorted(self.path.iterdir(), key=lambda p: order.get(p.name, 0)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another process may have come in
            self.path.rmdir()
        self.close()

    def finish(self, **facts: Any) -> None:
        """Mark the run as whole; ``facts`` (JSON-able) go into finished.json."""
        write_json(
            self.path / "finished.json", {"finished": datetime.now(timezone.utc).isoformat(timespec="seconds"), **facts}
        )

    def shard(self, name: str, write: Callable[[Path], object]) -> None:
        """Add one finished piece of work, ``shards/name`` (with its suffix), atomically."""
        write_atomic(self.path / "shards" / name, write)

    def pieces(self, suffix: str, read: Callable[[Path], T], label: str = "") -> Iterator[T]:
        """What ``read`` makes of the pieces of work that are there, by name; those that are damaged go, as in `kept`.

        label: how their names begin.
        """
        for path in sorted((self.path / "shards").glob(f"{label}*{suffix}")):
            found = None if path.name.startswith(".") else kept(path, read)
            if found is not None:
                yield found


def _own(name: str) -> bool:
    """Whether a run that was killed at its very start may have left this behind."""
    return name in (".lock", "shards") or ".part" in name


def _begun(path: Path) -> bool:
    """Whether a run's folder holds more than its settings: work that would be lost."""
    return any(p.is_file() and p.name != "settings.json" and not _own(p.name) for p in path.rglob("*"))


def _refuse_other_settings(record: Path, settings: dict[str, Any], argument: str, otherwise: str) -> None:
    try:
        there = parse_json(argument, str(record), record.read_bytes())["settings"]
    except (InputError, KeyError) as error:
        why = error.expected if isinstance(error, InputError) else "there are none in it"
        raise InputError(argument, str(record), f"not a run's settings ({why}); {otherwise}") from None
    if there == settings or not _begun(record.parent):
        return
    odd = "; ".join(differences(there, settings))
    raise InputError(argument, str(record.parent), f"it holds a run with other settings ({odd}); {otherwise}")


def differences(there: Any, here: Any, name: str = "") -> list[str]:
    """What differs between two JSON-able settings, ``recipe.p_mean: -1.2 there, -1 here``, one text a leaf.

    Objects are looked into; lists, and an object against something else, are leaves.
    """
    if there == here:
        return []
    if not (isinstance(there, dict) and isinstance(here, dict)):
        return [f"{name or 'settings'}: {' there, '.join(_shown(there, here))} here"]
    found = []
    for key in {**there, **here}:
        found += differences(there.get(key, _ABSENT), here.get(key, _ABSENT), f"{name}.{key}" if name else str(key))
    return found


#: stands for a setting that one of two records lacks
_ABSENT = object()


def _shown(there: Any, here: Any, most: int = 60) -> list[str]:
    """Two values, cut to at most ``most`` characters where they differ."""
    texts = ["nothing" if value is _ABSENT else json.dumps(value) for value in (there, here)]
    if max(map(len, texts)) <= most:
        return texts
    alike = next((k for k, (one, other) in enumerate(zip(*texts, strict=False)) if one != other), min(map(len, texts)))
    start = alike - 20 if alike > 30 else 0  # a little of what they share, to find the place by
    cut = [text[start : start + most] for text in texts]
    return [
        ("..." if start else "") + part + ("..." if start + most < len(text) else "")
        for part, text in zip(cut, texts, strict=True)
    ]
