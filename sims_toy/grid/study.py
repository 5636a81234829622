"""How every command of this scale runs: parts of cells in a run folder, tables, figures, words; resumed by itself."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sims_core.lab.command import main_with_errors, parse_command
from sims_toy.grid.options import RunOptions

if TYPE_CHECKING:
    import pandas as pd

    from sims_core.lab.runs import RunFolder
    from sims_toy.grid.cells import Experiment, Values

Frames = dict[str, "pd.DataFrame"]
Settings = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What a command runs and what it makes of it.

    parts: experiments by name, which is that of their shards. settings: JSON-able, all that decides the result.
    make: from the parts' values to tables. draw: from tables to figures in a folder. words: what the command prints
    of its tables, the conclusion last. note: what is recorded once, when the run is finished. local: parts whose
    pieces stay on this machine whatever the scheduler. page: writes the run's interactive page, if it has one. bulky:
    tables that are kept as parquet alone.
    """

    command: str
    parts: Mapping[str, Experiment]
    settings: Settings
    make: Callable[[dict[str, Values]], Frames]
    draw: Callable[[Frames, Settings, Path], list[Path]]
    words: Callable[[Frames, Settings], str]
    note: Callable[[], str] | None = None
    local: tuple[str, ...] = ()
    page: Callable[[Frames, Settings, Path], Path] | None = None
    bulky: tuple[str, ...] = ()

    @property
    def experiment(self) -> Experiment:
        """The first part: the experiment itself."""
        return next(iter(self.parts.values()))


@dataclass(frozen=True)
class Result:
    """What a study left: its folder, its tables by name, its figures, and what there is to say.

    resumed_finished: whether the folder was whole already. note: what was recorded at the end (a sweep's diagnosis).
    page: its interactive page, if it has one.
    """

    folder: Path
    tables: Frames
    figures: list[Path]
    resumed_finished: bool
    words: str
    note: str
    page: Path | None = None


def carry_out(study: Study, options: RunOptions, *, progress: bool = False) -> Result:
    """Run (or resume, or recognise) a study in its folder."""
    from sims_core.lab.runs import RunFolder, write_failure
    from sims_toy.grid import run as experiments

    options.check()
    out = Path(options.out or default_folder(study))
    if options.scheduler:
        experiments.connect(options.scheduler).close()  # before anything is written
    with RunFolder.open(out, study.settings) as folder:
        try:
            return _carried_out(study, options, folder, progress=progress)
        except OSError as error:
            raise write_failure("--out", out, error, "what is finished is kept") from None


def _carried_out(study: Study, options: RunOptions, folder: RunFolder, *, progress: bool) -> Result:
    from sims_core.lab.runs import write_atomic
    from sims_toy.grid import run as experiments

    out = folder.path
    frames = _load(folder)
    known = frames is not None
    started = time.monotonic()
    if frames is None:
        common: dict[str, Any] = {"folder": folder, "workers": options.workers or _cores(), "progress": progress}
        values = {}
        for name, part in study.parts.items():
            here: dict[str, Any] = (
                {} if name in study.local else {"chunk": options.chunk, "scheduler": options.scheduler}
            )
            values[name] = experiments.run(part, label=name, **common, **here)
        frames = study.make(values)
        for name, frame in frames.items():
            write_atomic(out / f"{name}.parquet", partial(_write_parquet, frame, packed=name in study.bulky))
            if name not in study.bulky:
                write_atomic(out / f"{name}.csv", lambda p, f=frame: f.to_csv(p, index=False))  # type: ignore[misc]
    figures = study.draw(frames, study.settings, out)
    page = study.page(frames, study.settings, out / "report.html") if study.page else None
    if not known:
        note = study.note() if study.note else ""
        folder.finish(seconds=round(time.monotonic() - started, 1), tables=sorted(frames), note=note)
    note = str((folder.facts or {}).get("note", ""))
    return Result(out, frames, figures, known, study.words(frames, study.settings), note, page)


def _write_parquet(frame: pd.DataFrame, path: Path, *, packed: bool) -> None:
    frame.to_parquet(path, index=False, compression="zstd" if packed else "snappy")


def _load(folder: RunFolder) -> Frames | None:
    """The tables of a finished run; None where one of them is missing or damaged, so that it is made again."""
    import pandas as pd

    from sims_core.lab.runs import kept

    names = (folder.facts or {}).get("tables")
    found = {
        str(name): kept(folder.path / f"{name}.parquet", pd.read_parquet)
        for name in (names if isinstance(names, list) else ())
    }
    return None if not found or any(frame is None for frame in found.values()) else found


def default_folder(study: Study) -> str:
    """``runs/<command>-<hash>``: the same settings always meet the same folder."""
    digest = hashlib.sha256(json.dumps(study.settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"runs/{study.command}-{digest}"


def _cores() -> int:
    import joblib

    return int(joblib.cpu_count())


# ------------------------------------------------------------------ dry run


def describe(study: Study, *, estimate: bool) -> str:
    """The plan in words; with ``estimate``, its cost from a short trial run."""
    lines = [f"{key:>16}  {_brief(value)}" for key, value in study.settings.items()]
    for name, part in study.parts.items():
        loops = len(part.cells) * part.trials
        size = f"{len(part.cells)} cells x {part.trials} trials = {loops} loops of {part.generations} generations"
        lines.append(f"{f'part {name}':>16}  {size}")
    if estimate:
        seconds = sum(_estimate(part) for part in study.parts.values())
        lines.append(f"{'estimate':>16}  about {_duration(seconds)} of one core, on this machine")
    return "\n".join(lines)


def _estimate(experiment: Experiment) -> float:
    """CPU-seconds: each structure of cells timed on a small piece, twice, because the first also warms up."""
    from sims_toy.grid import run as experiments
    from sims_toy.grid.measure import measurer

    counts: dict[tuple[object, ...], list[Any]] = {}
    for cell in experiment.cells:
        sizes = () if measurer(experiment, cell.learner).mixes_sizes else cell.sizes
        counts.setdefault((cell.structure, sizes), []).append(cell)
    total = 0.0
    for cells in counts.values():
        few = tuple(cells[-8:])  # the largest omegas: no work shared with omega = 0
        enough = 25 if measurer(experiment, few[0].learner).mixes_sizes else 2
        probe = replace(experiment, cells=few, trials=min(enough, experiment.trials))
        spent = []
        short = min(3, experiment.generations)
        for generations in (1, short):
            started = time.process_time()
            experiments.run(replace(probe, generations=generations))
            spent.append(time.process_time() - started)
        rows = len(few) * probe.trials
        total += max(spent[1] / short, 1e-9) / rows * len(cells) * experiment.trials * experiment.generations
    return total


def _brief(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8 and not isinstance(value[0], list):
        return f"{value[0]} ... {value[-1]} ({len(value)} values)"
    if isinstance(value, dict):
        return ", ".join(f"{k} {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


# ------------------------------------------------------------------ command

Options = TypeVar("Options", bound=RunOptions)


def command(
    cls: type[Options],
    plan: Callable[[Options], Study],
    *,
    module: str,
    presets: Mapping[str, Options] | None = None,
) -> Callable[[Sequence[str]], None]:
    """``argv -> None``: the command of a study, to be handed to `main`."""

    def run(argv: Sequence[str]) -> None:
        prog = f"python -m {module}"
        options = parse_command(cls, argv, prog=prog, description=str(cls.__doc__), presets=presets)
        study = plan(options)
        if options.dry_run:
            print(describe(study, estimate=True))
            print(f"{'out':>16}  {options.out or default_folder(study)}")
            return
        result = carry_out(study, options, progress=True)
        if result.resumed_finished:
            print(f"{result.folder} holds this run, finished: nothing to compute")
        if result.figures:
            print(f"figures: {', '.join(str(p) for p in result.figures if p.suffix == '.png')}")
        if result.page:
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
