"""``python -m sims_toy.mad``: the loops of MAD: fresh data's limit and effective size, collapse, accumulation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from sims_core.errors import InputError, choose, whole
from sims_core.lab.bounds import at_least, check_bounds, settled
from sims_core.lab.command import formerly, usual
from sims_core.lab.options import RunOptions
from sims_toy.grid.study import GridStudy
from sims_toy.networks.settings import NetworkSettings

if TYPE_CHECKING:
    from sims_toy.grid.cells import Cell, Experiment

__all__ = ["PRESETS", "Mad", "plan"]


@dataclass(frozen=True)
class Mad(RunOptions):
    """The self-consuming loops of MAD (arXiv 2307.01850) on N(0, I): four experiments and their closed forms.

    1. fresh data: the limit does not depend on the first data set's size. 2. its effective sample size n_e (real points
    that alone would do as well) over |D_s|, |D_r| and the sampling bias, and where n_e >= |D_r|. 3. fully synthetic:
    the variance collapses. 4. accumulating instead of replacing (Gerstgrasser et al., arXiv 2404.01413). The published
    dimension is 100 (--preset paper); the default, 10, takes minutes.
    """

    preset: Annotated[str, usual("none")] = ""
    """Change the defaults: 'paper' is dimension 100 and a finer grid."""
    dimension: Annotated[int | None, at_least(1), usual("10 for the exact learner, 2 for networks", "INT")] = None
    """Dimension of the real Gaussian N(0, I)."""
    sampler: Annotated[str, usual("exact for the exact learner, rk4:8 for networks")] = ""
    """exact (no sampler bias; the exact learner's alone), ddim:N, euler:N, heun:N, rk4:N."""
    real_size: Annotated[int, at_least(2)] = 100
    """Fresh real points per generation, n_r, of experiment 1."""
    synthetic: Annotated[int, at_least(1), formerly("synthetic_size")] = 900
    """Synthetic points per generation, n_s, of experiment 1."""
    initial_size: str = "100,1000"
    """Sizes of the first data set, n_ini, of experiment 1."""
    temperature: str = "1,0.8"
    """Sampling biases lambda_s of experiments 1, 3 and 4."""
    grid_real_size: str = "100,250,1000"
    """n_r of experiment 2."""
    grid_ratio: str = "0.1,0.2,0.5,1,2,5,10"
    """n_s / n_r of experiment 2."""
    grid_temperature: str = "0.7,0.775,0.85,0.925,1"
    """lambda_s of experiment 2."""
    loop_size: Annotated[int | None, usual("10 per dimension, at least 100", "INT")] = None
    """Points of every data set of experiments 3 and 4."""
    loop_generations: Annotated[int, at_least(2)] = 100
    """Generations of experiments 3 and 4."""
    generations: Annotated[int, at_least(4)] = 60
    """Generations of experiments 1 and 2; the limit is the mean over the second half."""
    trials: Annotated[int | None, at_least(4), usual("200 for the exact learner, 6 for networks", "INT")] = None
    """Repetitions of experiments 1, 3 and 4."""
    grid_trials: Annotated[int | None, at_least(4), usual("40 for the exact learner, 4 for networks", "INT")] = None
    """Repetitions of each cell of experiment 2."""
    calibration_trials: Annotated[
        int | None, at_least(4), usual("400 for the exact learner, 8 for networks", "INT")
    ] = None
    """Repetitions of each size of the calibration E dist(G(n))."""
    learner: Literal["exact", "network"] = "exact"
    """exact (unbiased covariance, divided by n - 1), or network."""
    network: NetworkSettings = field(default_factory=NetworkSettings)
    """Architecture and training of the networks."""


PRESETS = {
    "paper": replace(
        Mad(),
        preset="paper",
        dimension=100,
        grid_ratio="0.1,0.2,0.5,1,2,5,10",
        grid_temperature="0.7,0.75,0.8,0.85,0.9,0.95,1",
        trials=60,
        grid_trials=12,
        calibration_trials=100,
    )
}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "exact": {"dimension": 10, "sampler": "exact", "trials": 200, "grid_trials": 40, "calibration_trials": 400},
    "network": {"dimension": 2, "sampler": "rk4:8", "trials": 6, "grid_trials": 4, "calibration_trials": 8},
}
#: The calibration's sizes grow by this factor: the distance falls by a tenth from one to the next.
_SPACING = 1.25


def plan(options: Mad) -> GridStudy:
    """What the options ask for. Raises `InputError` for what cannot be run."""
    from sims_core.lab.grids import parse_grid
    from sims_core.sampling import Sampler
    from sims_toy.grid.cells import Cell, Experiment
    from sims_toy.grid.parse import at_most_cells, sizes
    from sims_toy.mad import tables as mad_report

    check_bounds(options)
    learner = choose("learner", options.learner, _DEFAULTS)
    options = replace(options, **{k: v for k, v in _DEFAULTS[learner].items() if not getattr(options, k)})
    d, trials = settled(options.dimension), settled(options.trials)
    check_bounds(options)
    loop_size = options.loop_size or max(100, 10 * d)
    whole("loop_size", loop_size, d + 2)
    sampler = Sampler.parse(options.sampler, argument="sampler")
    if learner == "network" and not sampler.steps:
        raise InputError("sampler", "exact", "networks need a numerical sampler, such as rk4:8")
    initial = sizes("initial_size", options.initial_size)
    if min(initial) < 2:
        raise InputError("initial_size", options.initial_size, "give at least 2 points")
    grid_real = sizes("grid_real_size", options.grid_real_size)
    ratios = parse_grid("grid_ratio", options.grid_ratio, low=1e-6)
    heats = parse_grid("temperature", options.temperature, low=1e-6, high=1)
    grid_heats = parse_grid("grid_temperature", options.grid_temperature, low=1e-6, high=1)
    if min(grid_real) < 2:
        raise InputError("grid_real_size", options.grid_real_size, "give at least 2 points")
    at_most_cells(grid_real, grid_heats, ratios)
    at_most_cells(heats, initial)
    network = _network(options, learner)

    base = Cell(learner, "standard", "fresh", str(sampler), 1, 1, reference=str(sampler))
    limit = [
        replace(base, real_size=options.real_size, synthetic_size=options.synthetic, initial_size=i, temperature=z)
        for z in heats
        for i in initial
    ]
    grid = [
        replace(base, real_size=n, synthetic_size=max(1, round(ratio * n)), temperature=z)
        for n in grid_real
        for z in grid_heats
        for ratio in ratios
    ]
    both = {"real_size": loop_size, "synthetic_size": loop_size}
    loops = [
        replace(base, loop=loop, temperature=z, **both)  # type: ignore[arg-type]
        for loop in ("fully-synthetic", "accumulate")
        for z in heats
    ]
    calibration = [replace(base, real_size=n) for n in _calibration_sizes([*grid_real, options.real_size])]

    def experiment(cells: list[Cell], generations: int, trials: int, *quantities: str) -> Experiment:
        identity = tuple(tuple(float(i == j) for j in range(d)) for i in range(d))
        unbiased = int(learner == "exact")
        cells = list(dict.fromkeys(cells))
        return Experiment(
            tuple(cells), generations, trials, options.seed, (0.0,) * d, identity, network, quantities, unbiased
        )

    parts = {
        "fresh": experiment(limit, options.generations, trials, "w2", "variance", "mean_sq"),
        "grid": experiment(grid, options.generations, settled(options.grid_trials), "w2"),
        "loops": experiment(loops, options.loop_generations, trials, "w2", "variance", "mean_sq", "log_volume"),
        "calibration": experiment(calibration, 1, settled(options.calibration_trials), "w2"),
    }
    settings: dict[str, Any] = {
        "command": "sims_toy.mad",
        "learner": learner,
        "dimension": d,
        "sampler": str(sampler),
        "real_size": options.real_size,
        "synthetic_size": options.synthetic,
        "initial_size": initial,
        "temperature": heats,
        "grid_real_size": grid_real,
        "grid_ratio": ratios,
        "grid_temperature": grid_heats,
        "loop_size": loop_size,
        "loop_generations": options.loop_generations,
        "generations": options.generations,
        "trials": trials,
        "grid_trials": options.grid_trials,
        "calibration_trials": options.calibration_trials,
        "ddof": int(learner == "exact"),
        "seed": options.seed,
    }
    if network is not None:
        settings["network"] = network.record()
    return GridStudy(
        "mad",
        settings,
        parts=parts,
        make=lambda values: mad_report.make(parts, values, settings),
        draw=mad_report.draw,
        words=mad_report.words,
    )


def _calibration_sizes(real_sizes: list[int]) -> list[int]:
    """Sizes from 2 to four times the largest n_r: with fresh data n_e stays below about 2 n_r."""
    found = [2]
    while found[-1] < 4 * max(real_sizes):
        found.append(max(found[-1] + 1, round(found[-1] * _SPACING)))
    return found


def _network(options: Mad, learner: str) -> NetworkSettings | None:
    if learner != "network":
        return None
    from sims_toy.grid.parse import settle

    return settle(options.network)
