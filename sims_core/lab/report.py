"""A report as one HTML page: words, pictures and tables, without scripts, everything inside the file."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sims_core.lab.runs import write_atomic

if TYPE_CHECKING:
    import pandas as pd

#: rows of a table that a page shows; the files hold all of them
ROWS = 40


@dataclass(frozen=True)
class Section:
    """A part of a report.

    words: paragraphs; those of several lines keep them. pictures: caption -> PNG, a file or its bytes. head, rows: of a
    table.
    """

    title: str
    words: Sequence[str] = ()
    pictures: Mapping[str, bytes | Path] = field(default_factory=dict)
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()


def table(name: str, frame: pd.DataFrame) -> Section:
    """A table's first `ROWS` rows, numbers to four digits."""
    rows = [
        [f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in frame.head(ROWS).itertuples(index=False)
    ]
    words = [f"The first {ROWS} of {len(frame):,} rows."] if len(frame) > ROWS else []
    return Section(name, words, head=list(map(str, frame.columns)), rows=rows)


def settings(content: Mapping[str, Any]) -> Section:
    """The settings of a run."""
    return Section("Settings", rows=list(content.items()))


def sections(
    words: Sequence[str],
    figures: Iterable[Path],
    tables: Mapping[str, pd.DataFrame],
    content: Mapping[str, Any],
    *more: Section | None,
) -> list[Section | None]:
    """The parts of a study's page: its words, figures (those that are PNG), what else it shows, tables and settings."""
    pictures = {figure.stem: figure for figure in figures if figure.suffix == ".png"}
    shown = [table(name, frame) for name, frame in tables.items()]
    return [Section("What was found", words), Section("Figures", pictures=pictures), *more, *shown, settings(content)]


def write_report(path: Path, title: str, sections: Iterable[Section | None]) -> Path:
    """Write the page to ``path``, whole or not at all; sections that are None are left out. Returns the path."""
    import jinja2

    def inside(picture: bytes | Path) -> str:
        content = picture.read_bytes() if isinstance(picture, Path) else picture
        return "data:image/png;base64," + base64.b64encode(content).decode()

    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    parts = [
        {**vars(part), "pictures": [(caption, inside(picture)) for caption, picture in part.pictures.items()]}
        for part in sections
        if part is not None
    ]
    text = jinja2.Environment(autoescape=True).from_string(template).render(title=title, sections=parts)
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path
