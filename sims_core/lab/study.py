"""One machine for every study and experiment: settings in a run folder, tables, figures, words; resumed by itself.

A study is a subclass of `Study`: `compute` makes its tables, `draw` its figures from them, `words` what is printed.
`carry_out` runs it, `command` makes a command of it.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

from sims_core.lab.bounds import check_bounds
from sims_core.lab.command import about_options, main_with_errors, parse_command
from sims_core.lab.options import RunOptions
from sims_core.lab.runs import digest

if TYPE_CHECKING:
    import pandas as pd

    from sims_core.lab.report import Section
    from sims_core.lab.runs import RunFolder

Frames = dict[str, "pd.DataFrame"]
Settings = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What a command runs and what it makes of it.

    command: its name. settings: JSON-able, all that decides the result. draw: from tables to figures in a folder.
    words: what the command prints of its tables, then an empty line and the conclusion. note: what is recorded once,
    when the run is finished. view: what its page shows in place of figures and tables; also: what alongside them;
    terms: what its own words mean. bulky: tables that are kept as parquet alone.
    """

    command: str
    settings: Settings
    draw: Callable[[Frames, Settings, Path], list[Path]]
    words: Callable[[Frames, Settings], str]
    note: Callable[[], str] | None = None
    view: Callable[[Frames, Settings], Section] | None = None
    also: Callable[[Frames, Settings], Section] | None = None
    terms: Mapping[str, str] = field(default_factory=dict)
    bulky: tuple[str, ...] = ()

    def compute(self, folder: RunFolder, options: RunOptions, *, progress: bool) -> Frames:
        """The study's tables; what is finished is kept in ``folder`` and found again."""
        raise NotImplementedError

    def cost(self, *, estimate: bool) -> list[tuple[str, str]]:
        """Lines of a dry run, each a name and its words: what is run and, with ``estimate``, what it will take."""
        raise NotImplementedError

    @property
    def folder(self) -> str:
        """``runs/<command>-<hash>``: the same settings always meet the same folder."""
        return f"runs/{self.command}-{digest(self.settings)}"


@dataclass(frozen=True)
class Result:
    """What a study left: its folder, its tables by name, its figures, and its text summary.

    resumed_finished: whether the folder was whole already. note: what was recorded at the end (a sweep's diagnosis).
    page: the report.
    """

    folder: Path
    tables: Frames
    figures: list[Path]
    resumed_finished: bool
    words: str
    note: str
    page: Path


def carry_out(study: Study, options: RunOptions, *, progress: bool = False) -> Result:
    """Run (or resume, or recognise) a study in its folder. Raises `InputError` for options and folders that are bad."""
    from sims_core.lab.pool import connect
    from sims_core.lab.runs import RunFolder, write_failure

    check_bounds(options)
    if options.scheduler:
        connect(options.scheduler).close()  # a cluster that does not answer, before anything is written
    out = Path(options.out or study.folder)
    with RunFolder.open(out, study.settings, options=options) as folder:
        try:
            return _carried_out(study, options, folder, progress=progress)
        except OSError as error:
            raise write_failure("out", out, error, "what is finished is kept") from None


def _carried_out(study: Study, options: RunOptions, folder: RunFolder, *, progress: bool) -> Result:
    out = folder.path
    frames = read_tables(out, (folder.facts or {}).get("tables"))
    known = frames is not None
    started = time.monotonic()
    if frames is None:
        frames = study.compute(folder, options, progress=progress)
        write_tables(out, frames, bulky=study.bulky)
    figures = study.draw(frames, study.settings, out)
    words = study.words(frames, study.settings)
    shown = {name: frames[name] for name in sorted(frames) if name not in study.bulky}
    parts, more = ([make(frames, study.settings)] if make else [] for make in (study.view, study.also))
    page = write_page(
        out, title_of(study.command, type(options)), words, study.settings, figures, shown, parts, study.terms, more
    )
    if not known:
        note = study.note() if study.note else ""
        folder.finish(seconds=round(time.monotonic() - started, 1), tables=sorted(frames), note=note)
    note = str((folder.facts or {}).get("note", ""))
    return Result(out, frames, figures, known, words, note, page)


def title_of(command: str, options: type) -> str:
    """A page's title: the command, and what its options' class says that it does."""
    return f"{command}: {str(options.__doc__).strip().splitlines()[0]}"


def write_page(
    folder: Path,
    title: str,
    words: str,
    settings: Settings,
    figures: Iterable[Path] = (),
    tables: Mapping[str, pd.DataFrame] = MappingProxyType({}),
    view: Sequence[Section] = (),
    terms: Mapping[str, str] = MappingProxyType({}),
    more: Sequence[Section] = (),
) -> Path:
    """The page of a run: what it views, else its figures, ``more``, words (as of `Study`), tables and settings."""
    from sims_core.lab import report
    from sims_core.lab.runs import parse_json

    record = parse_json("run", str(folder), (folder / "settings.json").read_bytes())["provenance"]
    details, _, conclusion = words.rpartition("\n\n")
    parts = report.sections([details], () if view else figures, {} if view else tables, settings, *more)
    return report.write_report(
        folder / "report.html", title, [*view, *parts], conclusion=conclusion.splitlines(), record=record, terms=terms
    )


def write_tables(folder: Path, frames: Mapping[str, pd.DataFrame], *, bulky: Iterable[str] = ()) -> None:
    """Write tables as parquet and CSV, each whole or not at all; those of ``bulky`` as parquet alone, packed."""
    from sims_core.lab.runs import write_atomic

    for name, frame in frames.items():
        packed = name in bulky
        save = partial(frame.to_parquet, index=False, compression="zstd" if packed else "snappy")
        write_atomic(folder / f"{name}.parquet", save)
        if not packed:
            write_atomic(folder / f"{name}.csv", partial(frame.to_csv, index=False))


def read_tables(folder: Path, names: object) -> Frames | None:
    """The tables ``names`` of a folder; None where one of them is missing or damaged, so that it is made again."""
    import pandas as pd

    from sims_core.lab.runs import kept

    listed = names if isinstance(names, list) else ()
    found = {str(name): kept(folder / f"{name}.parquet", pd.read_parquet) for name in listed}
    return None if not found or any(frame is None for frame in found.values()) else found


def describe(study: Study, *, estimate: bool) -> str:
    """The plan in words; with ``estimate``, its cost from a short trial run."""
    lines = [(key, brief(value)) for key, value in study.settings.items()]
    return "\n".join(f"{key:>16}  {words}" for key, words in [*lines, *study.cost(estimate=estimate)])


def brief(value: Any) -> str:
    """A setting in words."""
    if isinstance(value, list) and len(value) > 8 and not isinstance(value[0], list):
        return f"{value[0]} ... {value[-1]} ({len(value)} values)"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


Options = TypeVar("Options", bound=RunOptions)


def command(
    cls: type[Options],
    plan: Callable[[Options], Study],
    *,
    prog: str,
    presets: Mapping[str, Options] | None = None,
    examples: Sequence[str] = (),
) -> Callable[[Sequence[str]], None]:
    """``argv -> None``: the command of a study, to be handed to `main`. presets, examples: as of `parse_command`."""

    def run(argv: Sequence[str]) -> None:
        about = str(cls.__doc__)
        options = parse_command(cls, argv, prog=prog, description=about, presets=presets, examples=examples)
        with about_options(options):
            study = plan(options)
            if options.dry_run:
                print(describe(study, estimate=True))
                print(f"{'out':>16}  {options.out or study.folder}")
                return
            result = carry_out(study, options, progress=True)
        if result.resumed_finished:
            print(f"{result.folder} holds this run, finished: nothing to compute")
        if result.figures:
            print(f"figures: {', '.join(str(p) for p in result.figures if p.suffix == '.png')}")
        print(f"page: {result.page}")
        kinds = {name: "parquet" if name in study.bulky else "csv" for name in result.tables}
        print("tables:", ", ".join(str(result.folder / f"{name}.{kind}") for name, kind in kinds.items()))
        if result.note:
            print(result.note)
        print(result.words)

    return run


def main(run: Callable[[Sequence[str]], None]) -> None:
    """Entry point of a module that is run."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main_with_errors(run))
