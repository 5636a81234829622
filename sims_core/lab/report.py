"""The page of a run: one HTML file with everything inside, from one template for both scales.

Its head says what came out, when, of which version and by which command, so that `sims_core.lab.index` can list it.
"""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sims_core.lab.runs import write_atomic

if TYPE_CHECKING:
    import pandas as pd

Pictures = Mapping[str, bytes | Path]
"""Caption -> PNG, a file or its bytes."""

#: rows of a table that a page shows; the files hold all of them
ROWS = 40
#: what a page links to of the files beside it, by how their names end
FILES = {"tables": (".csv",), "figures": (".svg",), "settings": ("settings.json", "results.json")}
#: what the words of every page mean
WORDS = {
    "|D_r|, |D_s|": "real points or images, and synthetic ones drawn in each generation",
    "base, auxiliary": "the model trained on real data (in a loop, on earlier samples too), and the same model "
    "fine-tuned on samples of the base",
    "ω, η": "strength of the guidance (1 + ω) · base − ω · auxiliary: 0 is the base; and how far the auxiliary has "
    "moved toward its data: 1 is all the way",
    "self-consuming loop": "each generation is trained on samples of the one before, and perhaps on real data",
    "distance, floor": "from samples to real data, lower is better: W2 of points, Fréchet distance (FD) of images' "
    "features; the floor is what as many real samples have",
    "equal cost, retuned": "controls without SIMS: the base with as many network evaluations per sample, or with its "
    "best sampler of no more",
    "interval": "95 %; of paired trials, which share data, noise and seeds, the difference has its own",
}


@dataclass(frozen=True)
class Section:
    """A part of a page.

    words: paragraphs; those of several lines keep them. frames: label -> pictures of one place, of which a slider shows
    one at a time; ``compared``: all side by side at first, or the one that is chosen. head, rows: of a table.
    folded: opened by the reader. html: markup of its own, at the section's top.
    """

    title: str
    words: Sequence[str] = ()
    pictures: Pictures = field(default_factory=dict)
    frames: Mapping[str, Pictures] = field(default_factory=dict)
    compared: bool = False
    head: Sequence[str] = ()
    rows: Sequence[Sequence[Any]] = ()
    folded: bool = False
    html: str = ""


def table(name: str, frame: pd.DataFrame) -> Section:
    """A table's first `ROWS` rows, numbers to four digits."""
    rows = [
        [f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in frame.head(ROWS).itertuples(index=False)
    ]
    words = [f"The first {ROWS} of {len(frame):,} rows."] if len(frame) > ROWS else []
    return Section(f"Table {name}", words, head=list(map(str, frame.columns)), rows=rows, folded=True)


def settings(content: Mapping[str, Any]) -> Section:
    """The settings of a run."""
    return Section("Settings", rows=list(content.items()), folded=True)


def sections(
    words: Sequence[str],
    figures: Iterable[Path],
    tables: Mapping[str, pd.DataFrame],
    content: Mapping[str, Any],
    *more: Section | None,
) -> list[Section | None]:
    """The parts of a study's page: figures (those that are PNG), what else it shows, words, tables, settings."""
    pictures = {figure.stem: figure for figure in figures if figure.suffix == ".png"}
    shown = [table(name, frame) for name, frame in tables.items()]
    details = Section("Details", words) if any(words) else None
    drawn = Section("Figures", pictures=pictures) if pictures else None
    return [drawn, *more, details, *shown, settings(content)]


def write_report(
    path: Path,
    title: str,
    sections: Iterable[Section | None],
    *,
    conclusion: Sequence[str],
    record: Mapping[str, Any] | None = None,
    terms: Mapping[str, str] | None = None,
) -> Path:
    """Write the page to ``path``, whole or not at all; sections that are None are left out. Returns the path.

    conclusion: paragraphs. record: the run's `sims_core.lab.runs.provenance`. terms: what the page's words mean besides
    `WORDS`; None on a page that needs none. The page links to the tables, figures and records that lie beside it.
    """
    import jinja2

    beside = sorted(file.name for file in path.parent.iterdir() if not file.name.startswith("."))
    links = {kind: [name for name in beside if name.endswith(ending)] for kind, ending in FILES.items()}
    template = resources.files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    text = (
        jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
        .from_string(template)
        .render(
            title=title,
            conclusion=conclusion,
            record=record and {**record, "date": _date(record), "line": _command(record)},
            terms={} if terms is None else WORDS | dict(terms),
            links={} if record is None else links,
            sections=[part for part in sections if part is not None],
            inside=_inside,
        )
    )
    write_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    return path


def _inside(picture: bytes | Path) -> tuple[str, int]:
    """A picture as a data URI, and its width in pixels."""
    content = picture.read_bytes() if isinstance(picture, Path) else picture
    return "data:image/png;base64," + base64.b64encode(content).decode(), int.from_bytes(content[16:20], "big")


def _date(record: Mapping[str, Any]) -> str:
    return f"{datetime.fromisoformat(record['started']):%Y-%m-%d %H:%M} UTC"


def _command(record: Mapping[str, Any]) -> str:
    """The command that was given, without where it wrote: equal runs have equal pages; of a call its options."""
    program, *words = record["command"]
    if not shlex.join(record["command"]).startswith(("python -m sims_", "sims ", "sims_image ")):
        program, words = str(record.get("of", program)), _flags(record.get("options", {}))
    kept, skip = [], False
    for word in words:
        if not skip and not word.startswith("--out="):
            kept.append(word)
        skip = word == "--out"
        if skip:
            kept.pop()
    return shlex.join([program, *kept])


def _flags(options: Mapping[str, Any]) -> list[str]:
    """Options as words, without those of a part ("--network.width"), which the settings tell."""
    return [str(word) for name, value in options.items() if "." not in name for word in (name, value)]
