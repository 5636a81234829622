"""The figures of the repository as a list, figures/figures.json: what makes each, from what, and how long it takes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sims_core.errors import InputError, choose


@dataclass(frozen=True)
class Figure:
    """One entry of the list.

    name: also its heading in figures/README.md. title: what it shows. command: what makes it, run in the repository.
    pictures, tables: file in figures/ -> its name in the folder that the command writes (``--out``). seed: the
    command's. seconds: what it took on two cores. notebook: the one that draws it again, if any. document: where it is
    read with. steps: commands that come before. folder: whether ``command`` takes the folder as ``--out``. settings:
    those of the tables that are there, where the command would make them otherwise today.
    """

    name: str
    title: str
    command: str
    pictures: dict[str, str]
    tables: dict[str, str]
    seed: int
    seconds: float
    document: str
    notebook: str | None = None
    steps: list[str] = field(default_factory=list)
    folder: bool = True
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def files(self) -> dict[str, str]:
        """Pictures and tables."""
        return {**self.pictures, **self.tables}


def read(folder: Path | str) -> dict[str, Figure]:
    """The entries of ``folder``/figures.json by name. Raises `InputError` where there is no such list."""
    path = Path(folder) / "figures.json"
    try:
        entries = [Figure(**entry) for entry in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        raise InputError("figures", str(path), "not a list of figures; run inside a clone of the repository") from None
    return {entry.name: entry for entry in entries}


def entry(folder: Path | str, name: str) -> Figure:
    """The entry of that name; raises `InputError` with the nearest one for another."""
    known = read(folder)
    return known[choose("figure", name, known)]
