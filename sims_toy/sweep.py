"""``python -m sims_toy.sweep``: sweep the guidance omega (and any other axis) through the self-consuming loop."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from sims_core.command import main_with_errors, parse_command
from sims_core.errors import InputError, choose
from sims_core.grids import parse_budget, parse_grid

if TYPE_CHECKING:
    import pandas as pd

    from sims_toy.experiment import Experiment

LOOPS = ("augmentation", "fully-synthetic", "fresh", "accumulate", "mixed:R")
SWEEP_METHODS = ("standard", "sims", "neon")


@dataclass(frozen=True)
class Sweep:
    """Sweep the guidance omega through the self-consuming loop on a Gaussian, and say what it prevents.

    The defaults are the paper's Figure 4 in our reading: N(0, [[2,1],[1,2]]), 1000 real points, DDIM-20, auxiliaries
    trained to convergence on the base's training set plus |D_s| of its samples, 100 generations of synthetic
    augmentation. Axes take a grid: a:b (eleven values, both ends included), a:b:step, or a,b,c. Standard training and
    its equal-cost control (twice the sampler steps) are always run beside.
    """

    preset: str = ""
    """Change the defaults: 'figure4' also draws the other two readings of what the auxiliary is trained on."""
    omega: str = "0:5"
    """Guidance strengths; 0 is the base. Negative values are allowed (write --omega=-1:1)."""
    synthetic_size: str = "125,250,500,1000"
    """Synthetic points a generation, |D_s|."""
    real_size: str = "1000"
    """Real points, |D_r|."""
    auxiliary_size: str = "same"
    """Synthetic points the auxiliary sees; 'same' is |D_s|."""
    auxiliary_data: str = "train+synthetic"
    """What the auxiliary is trained on: synthetic, train+synthetic, real+synthetic (several with commas)."""
    budget: str = "1"
    """Auxiliary's training: for the exact learner eta in [0, 1], how far it moves from the base to its data."""
    method: str = "standard,sims"
    """standard, sims, neon (several with commas)."""
    loop: str = "augmentation"
    """augmentation, fully-synthetic, fresh, accumulate, mixed:R (several with commas)."""
    sampler: str = "ddim:20"
    """exact, ddim:N, euler:N, heun:N, rk4:N (several with commas)."""
    learner: str = "exact"
    """exact: models are Gaussians, training is maximum likelihood, sampling runs the real sampler."""
    generations: int = 100
    """Generations of the loop."""
    trials: int = 1000
    """Independent repetitions, paired across cells."""
    real_mean: str = "0,0"
    """Mean of the real Gaussian, any dimension."""
    real_covariance: str = "2,1;1,2"
    """Covariance of the real Gaussian, rows separated by ';'."""
    seed: int = 0
    """Every random draw follows from it."""
    workers: int = 0
    """Processes, one thread each; 0 is one a core. Does not change the result."""
    chunk: int = 2048
    """Loops a piece of work. Does not change the result."""
    out: str = ""
    """Run folder; default runs/sweep-<hash of the settings>. The same command resumes a run that was stopped."""
    dry_run: Annotated[bool, "flag"] = False
    """Print the plan and what it will cost, and stop."""


PRESETS = {
    "figure4": replace(
        Sweep(), preset="figure4", omega="0:5:0.25", auxiliary_data="train+synthetic,synthetic,real+synthetic"
    )
}


def plan(sweep: Sweep) -> tuple[Experiment, dict[str, Any]]:
    """The experiment a `Sweep` asks for, and the settings that its run folder records.

    Raises `InputError` for anything that cannot be run, before anything is written.
    """
    from sims_core.algorithm import AUXILIARY_DATA
    from sims_core.loop import parse_policy
    from sims_core.sampling import Sampler
    from sims_toy.experiment import LEARNERS, Cell, Experiment
    from sims_toy.gaussian import Gaussian

    learner = choose("--learner", sweep.learner, LEARNERS)
    methods = _names("--method", sweep.method, SWEEP_METHODS)
    readings = _names("--auxiliary-data", sweep.auxiliary_data, AUXILIARY_DATA)
    samplers = [Sampler.parse(s, argument="--sampler") for s in _list("--sampler", sweep.sampler)]
    policies = [parse_policy(p, argument="--loop") for p in _list("--loop", sweep.loop)]
    for policy in policies:
        if policy.name == "polluted":
            raise InputError("--loop", policy.name, f"the sweep has no foreign data; choose from {', '.join(LOOPS)}")
    omegas = parse_grid("--omega", sweep.omega)
    real_sizes = _sizes("--real-size", sweep.real_size)
    synthetic_sizes = _sizes("--synthetic-size", sweep.synthetic_size)
    auxiliary_sizes = None if sweep.auxiliary_size == "same" else _sizes("--auxiliary-size", sweep.auxiliary_size)
    budgets = _budgets(sweep.budget, learner)
    for name, value, least in (("--generations", sweep.generations, 1), ("--trials", sweep.trials, 2)):
        if value < least:
            raise InputError(name, value, f"give a whole number of at least {least}")
    for name, value in (("--seed", sweep.seed), ("--workers", sweep.workers)):
        if value < 0:
            raise InputError(name, value, "give a whole number of at least 0")
    if sweep.chunk < 1:
        raise InputError("--chunk", sweep.chunk, "give a whole number of at least 1")
    mean = _numbers("--real-mean", sweep.real_mean)
    covariance = [_numbers("--real-covariance", row) for row in sweep.real_covariance.split(";")]
    try:
        Gaussian.single(mean, covariance)
    except InputError as error:
        name, text = (
            ("--real-mean", sweep.real_mean)
            if error.argument == "mean"
            else ("--real-covariance", sweep.real_covariance)
        )
        raise InputError(name, text, error.expected) from None
    except ValueError:
        raise InputError(
            "--real-covariance", sweep.real_covariance, "every row needs the same number of entries"
        ) from None

    if any(m in ("sims", "neon") for m in methods) and 0.0 not in omegas:
        omegas = sorted([0.0, *omegas])  # omega = 0 is what every other omega is compared with
    cells: list[Cell] = []
    for policy, sampler, n, m in product(policies, samplers, real_sizes, synthetic_sizes):
        if policy.ratio is not None:
            m = round(policy.ratio * n)  # the loop fixes |D_s|
        base = Cell(learner, "standard", policy.name, str(sampler), n, m, reference=str(sampler))
        cells.append(base)
        if sampler.steps:
            cells.append(replace(base, method="equal-cost", sampler=str(sampler.doubled())))
        for method, reading, aux, budget in product(methods, readings, auxiliary_sizes or [m], budgets):
            if method != "standard":
                made = replace(base, method=method, auxiliary_size=aux, budget=budget, auxiliary_data=reading)
                cells += [replace(made, omega=w) for w in omegas]
    cells = list(dict.fromkeys(cells))
    experiment = Experiment(
        tuple(cells), sweep.generations, sweep.trials, sweep.seed, tuple(mean), tuple(map(tuple, covariance))
    )
    settings = {
        "command": "sims_toy.sweep",
        "learner": learner,
        "method": methods,
        "loop": [p.name for p in policies],
        "sampler": [str(s) for s in samplers],
        "auxiliary_data": readings,
        "omega": omegas,
        "real_size": real_sizes,
        "synthetic_size": synthetic_sizes,
        "auxiliary_size": auxiliary_sizes or "same",
        "budget": budgets,
        "generations": sweep.generations,
        "trials": sweep.trials,
        "real_mean": mean,
        "real_covariance": covariance,
        "seed": sweep.seed,
    }
    return experiment, settings


def _list(argument: str, text: str) -> list[str]:
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not parts:
        raise InputError(argument, text, "give at least one")
    return list(dict.fromkeys(parts))


def _names(argument: str, text: str, known: Any) -> list[str]:
    return [choose(argument, p, known) for p in _list(argument, text)]


def _sizes(argument: str, text: str) -> list[int]:
    return [int(v) for v in parse_grid(argument, text, low=1, high=1e12, integer=True)]


def _numbers(argument: str, text: str) -> list[float]:
    return [v for part in text.split(",") for v in parse_grid(argument, part)]


def _budgets(text: str, learner: str) -> list[str]:
    """Budgets as text, since '0.3' and '50k' are of different kinds; the learner takes one kind only."""
    if ":" in text:
        return [f"{v:g}" for v in parse_grid("--budget", text, low=0, high=1)]
    budgets = [parse_budget("--budget", part) for part in _list("--budget", text)]
    for budget in budgets:
        if learner == "exact" and budget.unit != "eta":
            raise InputError(
                "--budget",
                budget.text,
                "the exact learner takes eta in [0, 1], how far the auxiliary moves to its data",
            )
    return [b.text for b in budgets]


# ---------------------------------------------------------------- the command


def run_sweep(sweep: Sweep, *, progress: bool = False) -> Result:
    """Run (or resume, or recognise) a sweep; returns its tables and where they are. The command in one call."""
    from sims_core.runs import RunFolder, write_atomic
    from sims_toy import experiment as experiments
    from sims_toy import report

    experiment, settings = plan(sweep)
    out = Path(sweep.out or default_folder(settings))
    with RunFolder.open(out, settings) as folder:
        known = folder.finished and all((out / f"{name}.parquet").exists() for name in report.TABLES)
        if known:
            frames = report.load(out)
        else:
            started = time.monotonic()
            workers = sweep.workers or _cores()
            w2 = experiments.run(experiment, folder=folder, workers=workers, chunk=sweep.chunk, progress=progress)
            frames = report.make(experiment, settings, w2)
            for name, frame in frames.items():
                write_atomic(out / f"{name}.parquet", lambda p, f=frame: f.to_parquet(p, index=False))  # type: ignore[misc]
                write_atomic(out / f"{name}.csv", lambda p, f=frame: f.to_csv(p, index=False))  # type: ignore[misc]
        figures = report.draw(frames, settings, out)
        if not known:
            folder.finish(seconds=round(time.monotonic() - started, 1))
    return Result(out, frames, figures, known)


@dataclass(frozen=True)
class Result:
    """What a sweep left: its folder, its tables by name ('sweep', 'regimes', 'theory', 'boundaries'), its figures."""

    folder: Path
    tables: dict[str, pd.DataFrame]
    figures: list[Path]
    resumed_finished: bool


def default_folder(settings: dict[str, Any]) -> str:
    """``runs/sweep-<hash>``: the same settings always meet the same folder."""
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]
    return f"runs/sweep-{digest}"


def _cores() -> int:
    import joblib

    return int(joblib.cpu_count())


def describe(experiment: Experiment, settings: dict[str, Any], *, estimate: bool) -> str:
    """The plan in words; with ``estimate``, its cost from a short trial run."""
    loops = len(experiment.cells) * experiment.trials
    lines = [f"{key:>16}  {_brief(value)}" for key, value in settings.items()]
    lines.append(
        f"{'plan':>16}  {len(experiment.cells)} cells x {experiment.trials} trials = {loops} loops of "
        f"{experiment.generations} generations"
    )
    if estimate:
        lines.append(f"{'estimate':>16}  about {_duration(_estimate(experiment))} of one core, on this machine")
    return "\n".join(lines)


def _estimate(experiment: Experiment) -> float:
    """CPU-seconds: each structure of cells timed on a small piece."""
    from sims_toy import experiment as experiments

    counts: dict[tuple[str, ...], list[Any]] = {}
    for cell in experiment.cells:
        counts.setdefault(cell.structure, []).append(cell)
    total = 0.0
    for cells in counts.values():
        few = (cells * 8)[:8]
        probe = replace(experiment, cells=tuple(few), trials=min(25, experiment.trials), generations=3)
        for attempt in range(2):  # the first warms up
            probe = replace(probe, generations=2 + attempt)
            started = time.process_time()
            experiments.run(probe)
            spent = time.process_time() - started
        rows = len(few) * probe.trials * probe.generations
        total += spent / rows * len(cells) * experiment.trials * experiment.generations
    return total


def _brief(value: Any) -> str:
    if isinstance(value, list) and len(value) > 8 and not isinstance(value[0], list):
        return f"{value[0]} ... {value[-1]} ({len(value)} values)"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def run_command(argv: Sequence[str]) -> None:
    """The command itself."""
    sweep = parse_command(Sweep, argv, prog="python -m sims_toy.sweep", description=str(Sweep.__doc__), presets=PRESETS)
    if sweep.dry_run:
        experiment, settings = plan(sweep)
        print(describe(experiment, settings, estimate=True))
        print(f"{'out':>16}  {sweep.out or default_folder(settings)}")
        return
    result = run_sweep(sweep, progress=True)
    from sims_toy import report

    if result.resumed_finished:
        print(f"{result.folder} holds this run, finished: nothing to compute")
    print(report.summary(result.tables, asdict(sweep)))
    print(f"figure: {result.figures[0]}")
    print(f"tables: {result.folder / 'sweep.csv'}, {result.folder / 'regimes.csv'}")
    print(report.diagnosis(plan(sweep)[0]))
    print(report.conclusion(result.tables))


def main() -> None:
    """Entry point."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main_with_errors(run_command))


if __name__ == "__main__":
    main()
