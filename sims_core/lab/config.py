"""A run's options as JSON: recorded beside what they made, and read again by ``--config``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sims_core.errors import InputError

#: where a run or its report goes and whether it is made: of one run, not of its repetition
_ONCE = ("out", "dry_run", "restart")

#: the record of options beside what has another format, or must not depend on them
OPTIONS = "options.json"

#: where options are recorded: a study's or a training run's, an experiment's, a data set's or a classifier's, images'
RECORDS = ("settings.json", "report/results.json", OPTIONS, "dataset.json")

#: what ``--config`` takes
GIVE = "give the folder of a run or data set, or its settings.json"


def recorded(options: Any) -> dict[str, Any]:
    """``{"of": class, "options": {"--omega": "0:5", ...}}``: all options but those left to the command.

    Defaults too, which may be others in a later version; without a preset, none that is empty.
    """
    return {"of": type(options).__name__, "options": dict(_flags(options))}


def _flags(options: Any, prefix: str = "--") -> Iterator[tuple[str, Any]]:
    whole: bool = prefix != "--" or bool(getattr(options, "preset", ""))
    for field in dataclasses.fields(options):
        name, value = prefix + field.name.rstrip("_").replace("_", "-"), getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            yield from _flags(value, f"{name}.")
        elif field.name not in _ONCE and (whole or value not in (None, "", ())):
            yield name, list(value) if isinstance(value, tuple) else value


def place(source: str) -> Path:
    """The file that ``source`` names: itself, or what records the options of the run in that folder."""
    path = Path(source)
    return next((path / name for name in RECORDS if (path / name).is_file()), path)


def provenance(record: dict[str, Any]) -> Any:
    """What a record says of its making: generated images say it of their source."""
    source = record.get("source")
    return record.get("provenance") or (source.get("provenance") if isinstance(source, dict) else None)


def words(record: Any, source: str, of: str) -> list[str]:
    """The command line that a record's provenance says. source: where it is from. of: the class of the options.

    Raises `InputError` naming ``--config`` for what holds no options, or another command's.
    """
    options = record.get("options") if isinstance(record, dict) else None
    if not isinstance(options, dict):
        raise InputError("--config", source, f"it records no options; {GIVE}")
    if record.get("of") != of:
        raise InputError(
            "--config", source, f"it holds the options of {record.get('of')}, and this command takes {of}'s"
        )
    return [word for name, value in options.items() for word in _said(name, value)]


def _said(name: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        head, dot, last = name[2:].rpartition(".")
        return [name if value else f"--{head}{dot}no-{last}"]
    return [name, *map(str, value)] if isinstance(value, list) else [f"{name}={value}"]
