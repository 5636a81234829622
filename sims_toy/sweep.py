"""``python -m sims_toy.sweep``: sweep the guidance omega (and any other axis) through the self-consuming loop."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sims_core.command import main_with_errors, parse_command
from sims_toy.settings import PRESETS, NetworkSettings, Sweep

if TYPE_CHECKING:
    import pandas as pd

    from sims_toy.experiment import Experiment
    from sims_toy.planning import Plan

__all__ = ["PRESETS", "NetworkSettings", "Result", "Sweep", "plan", "run_sweep"]


def plan(sweep: Sweep) -> Plan:
    """What a `Sweep` would run (`sims_toy.planning`), without running it. Raises `InputError` for bad input."""
    from sims_toy.planning import make_plan

    return make_plan(sweep)


def run_sweep(sweep: Sweep, *, progress: bool = False) -> Result:
    """Run (or resume, or recognise) a sweep; returns its tables and where they are. The command in one call."""
    from sims_core.runs import RunFolder, write_atomic
    from sims_toy import experiment as experiments
    from sims_toy import report

    planned = plan(sweep)
    out = Path(sweep.out or default_folder(planned.settings))
    if sweep.scheduler:
        experiments.connect(sweep.scheduler).close()  # before anything is written
    with RunFolder.open(out, planned.settings) as folder:
        known = folder.finished and all((out / f"{name}.parquet").exists() for name in report.TABLES)
        if known:
            frames = report.load(out)
        else:
            started = time.monotonic()
            options: dict[str, Any] = {"folder": folder, "workers": sweep.workers or _cores(), "progress": progress}
            w2 = {}
            for name, part in planned.parts.items():
                where: dict[str, Any] = {} if name == "overlay" else {"chunk": sweep.chunk, "scheduler": sweep.scheduler}
                w2[name] = experiments.run(part, label=name, **where, **options)
            frames = report.make(planned, w2)
            for name, frame in frames.items():
                write_atomic(out / f"{name}.parquet", lambda p, f=frame: f.to_parquet(p, index=False))  # type: ignore[misc]
                write_atomic(out / f"{name}.csv", lambda p, f=frame: f.to_csv(p, index=False))  # type: ignore[misc]
        figures = report.draw(frames, planned.settings, out)
        if not known:
            outlook = report.diagnosis(planned.experiment)
            folder.finish(seconds=round(time.monotonic() - started, 1), diagnosis=outlook)
        outlook = str(json.loads((out / "finished.json").read_text()).get("diagnosis", ""))
    return Result(out, frames, figures, known, outlook)


@dataclass(frozen=True)
class Result:
    """What a sweep left: its folder, its tables by name ('sweep', 'regimes', 'theory', 'boundaries'), its figures.

    resumed_finished: whether the folder was whole already. diagnosis: the error budget and the drift-error cosine.
    """

    folder: Path
    tables: dict[str, pd.DataFrame]
    figures: list[Path]
    resumed_finished: bool
    diagnosis: str


def default_folder(settings: dict[str, Any]) -> str:
    """``runs/sweep-<hash>``: the same settings always meet the same folder."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"runs/sweep-{digest}"


def _cores() -> int:
    import joblib

    return int(joblib.cpu_count())


def describe(planned: Plan, *, estimate: bool) -> str:
    """The plan in words; with ``estimate``, its cost from a short trial run."""
    lines = [f"{key:>16}  {_brief(value)}" for key, value in planned.settings.items()]
    names = {"cells": "plan", "beside": "other readings", "overlay": "beneath (exact)"}
    for name, part in planned.parts.items():
        loops = len(part.cells) * part.trials
        what = names[name]
        size = f"{len(part.cells)} cells x {part.trials} trials = {loops} loops of {part.generations} generations"
        lines.append(f"{what:>16}  {size}")
    if estimate:
        seconds = sum(_estimate(part) for part in planned.parts.values())
        lines.append(f"{'estimate':>16}  about {_duration(seconds)} of one core, on this machine")
    return "\n".join(lines)


def _estimate(experiment: Experiment) -> float:
    """CPU-seconds: each structure of cells timed on a small piece, twice, because the first also warms up."""
    from sims_toy import experiment as experiments

    counts: dict[tuple[object, ...], list[Any]] = {}
    for cell in experiment.cells:
        sizes = () if experiments.LEARNERS[cell.learner].mixes_sizes else (cell.real_size, cell.synthetic_size)
        counts.setdefault((cell.structure, sizes), []).append(cell)
    total = 0.0
    for cells in counts.values():
        few = tuple(cells[-8:])  # the largest omegas: no work shared with omega = 0
        probe = replace(experiment, cells=few, trials=min(2 if few[0].learner == "network" else 25, experiment.trials))
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


def run_command(argv: Sequence[str]) -> None:
    """The command itself."""
    sweep = parse_command(Sweep, argv, prog="python -m sims_toy.sweep", description=str(Sweep.__doc__), presets=PRESETS)
    if sweep.dry_run:
        planned = plan(sweep)
        print(describe(planned, estimate=True))
        print(f"{'out':>16}  {sweep.out or default_folder(planned.settings)}")
        return
    result = run_sweep(sweep, progress=True)
    from sims_toy import report

    if result.resumed_finished:
        print(f"{result.folder} holds this run, finished: nothing to compute")
    print(report.summary(result.tables))
    if result.figures:
        print(f"figure: {result.figures[0]}")
    print(f"tables: {result.folder / 'sweep.csv'}, {result.folder / 'regimes.csv'}")
    print(result.diagnosis)
    print(report.conclusion(result.tables))


def main() -> None:
    """Entry point."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main_with_errors(run_command))


if __name__ == "__main__":
    main()
