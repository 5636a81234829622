"""An index of finished runs: ``sims index RUNS`` writes RUNS/index.html from the heads of the pages below it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote

from sims_core.errors import InputError
from sims_core.lab.command import about_options, parse_command
from sims_core.lab.script import Command

#: letters of a page that hold its head; of a conclusion that a row shows
_HEAD, _SHOWN = 20_000, 280


@dataclass(frozen=True)
class Index:
    """List the runs below a folder on one page, RUNS/index.html: what each was, when, what came out, and its page."""

    runs: str = "runs"
    """The folder that holds the runs, at any depth."""


class _Head(HTMLParser):
    """What a page of a run says of itself: its ``<meta>`` by name, and its title."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: dict[str, str] = {"title": ""}
        self._tag = ""
        with page.open(encoding="utf-8", errors="replace") as handle:
            self.feed(handle.read(_HEAD))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        told = dict(attrs)
        self._tag = tag
        if tag == "meta" and told.get("name"):
            self.found[str(told["name"])] = told.get("content") or ""

    def handle_data(self, data: str) -> None:
        if self._tag == "title":
            self.found["title"] += data.strip()

    @property
    def ours(self) -> bool:
        """Whether the page is a run's, or an index of them."""
        return self.found.get("generator", "").startswith("sims")


def write_index(folder: str | Path) -> Path:
    """Write ``folder``/index.html, one row per run, the newest first; returns the path.

    Raises `InputError` where no run below the folder has a page, or a page of another kind is in the index's place.
    """
    from markupsafe import Markup

    from sims_core.lab.report import Section, write_report

    folder = Path(folder)
    path = folder / "index.html"
    if path.exists() and not _Head(path).ours:
        raise InputError("runs", str(path), "a page that is no index of runs stands there; move it away")
    heads = {page: _Head(page) for page in sorted(folder.rglob("report.html"))}
    pages = {page: head.found for page, head in heads.items() if head.ours and "date" in head.found}
    if not pages:
        raise InputError("runs", str(folder), "no finished run is below this folder; name the folder that holds runs")
    rows = []
    for page in sorted(pages, key=lambda one: pages[one]["date"], reverse=True):
        place, found = page.relative_to(folder), pages[page]
        link = Markup('<a href="{}">{}</a>').format(quote(place.as_posix()), place.parent.as_posix())
        when = found["date"][:16].replace("T", " ")
        rows.append([link, found["title"], when, textwrap.shorten(found["description"], _SHOWN, placeholder=" …")])
    head = ["run", "what", "when (UTC)", "conclusion"]
    return write_report(path, "Runs", [Section("", head=head, rows=rows)], conclusion=[f"{len(rows)} finished."])


def run(argv: Sequence[str]) -> None:
    """The command itself: ``RUNS`` or ``--runs RUNS``."""
    words = ["--runs", *argv] if argv and not argv[0].startswith("-") else list(argv)
    options = parse_command(Index, words, prog="sims index", description=str(Index.__doc__), config=False)
    with about_options(options):
        print(write_index(options.runs))


def commands() -> dict[str, Command]:
    """For the script ``sims``."""
    return {"index": Command("one page that lists finished runs: what, when, conclusion, link", lambda: Index, run)}
