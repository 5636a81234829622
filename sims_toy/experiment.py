"""One grid of cells in, one tidy table out.

A cell is one setting of every axis. What a cell's trial gives depends on the run's seed, the trial and the cell alone;
so pieces of work (some cells times some trials) can have any size and be done in any order, by any number of workers,
and a run that was killed goes on with the pairs that are missing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError
from sims_core.loop import parse_policy
from sims_core.seeds import Seed
from sims_toy import phase

if TYPE_CHECKING:
    import pandas as pd

    from sims_core.algorithm import Method
    from sims_core.runs import RunFolder

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Cell:
    """One setting of every axis. ``reference`` is the sampler of the standard cell that it is compared with."""

    learner: str
    method: str
    loop: str
    sampler: str
    real_size: int
    synthetic_size: int
    auxiliary_size: int = 0
    budget: str = "0"
    omega: float = 0.0
    auxiliary_data: str = "none"
    reference: str = ""

    @property
    def structure(self) -> tuple[str, ...]:
        """What cells that run side by side must share; sizes, budgets and omegas may differ."""
        return (self.learner, self.method, self.loop, self.sampler, self.auxiliary_data)


@dataclass(frozen=True)
class Experiment:
    """A grid of cells with what they share. Everything here decides the result; nothing else does."""

    cells: tuple[Cell, ...]
    generations: int
    trials: int
    seed: int
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]

    def settings(self) -> dict[str, Any]:
        """JSON-able record of the experiment."""
        return asdict(self)


Piece = tuple[tuple[int, ...], tuple[int, ...]]
"""Cell numbers (of one structure) and trial numbers: a unit of work."""


def run(
    experiment: Experiment,
    *,
    folder: RunFolder | None = None,
    workers: int = 1,
    chunk: int = 2048,
    progress: bool = False,
) -> Array:
    """W2 to the real distribution of every generation's samples, (cells, trials, generations); inf where diverged.

    folder: keeps finished pieces, and has those of an earlier, killed run. workers: processes, one thread each.
    chunk: rows (cells x trials) a piece. Neither changes a bit of the result.
    """
    shape = (len(experiment.cells), experiment.trials, experiment.generations)
    result = np.full(shape, np.nan)
    done = np.zeros(shape[:2], dtype=bool)
    if folder is not None:
        for path in folder.shards(".npz"):
            with np.load(path) as shard:
                where = np.ix_(shard["cells"], shard["trials"])
                result[where], done[where] = shard["w2"], True
    pieces = list(_pieces(experiment, ~done, chunk))
    for piece, values in _work(experiment, pieces, workers, progress, int(done.sum())):
        if folder is not None:
            name = f"cells-{piece[0][0]:06d}-trials-{piece[1][0]:06d}-{len(piece[0])}x{len(piece[1])}.npz"
            folder.shard(name, partial(_save, piece=piece, values=values))
        result[np.ix_(*piece)] = values
    return result


def _save(path: Path, *, piece: Piece, values: Array) -> None:
    np.savez(path, cells=np.array(piece[0]), trials=np.array(piece[1]), w2=values)


def _pieces(experiment: Experiment, missing: NDArray[np.bool_], chunk: int) -> Iterator[Piece]:
    """Split what is missing into units of work: cells of one structure with the same missing trials."""
    if chunk < 1:
        raise InputError("--chunk", chunk, "give a positive number of rows")
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, cell in enumerate(experiment.cells):
        trials = tuple(np.flatnonzero(missing[number]).tolist())
        if trials:
            # cells of one size share their random draws, so they are kept together
            sizes = (cell.real_size, cell.synthetic_size, cell.auxiliary_size)
            groups.setdefault((cell.structure, trials, sizes), []).append(number)
    merged: dict[tuple[Any, ...], list[int]] = {}
    for (structure, trials, _), numbers in groups.items():
        merged.setdefault((structure, trials), []).extend(numbers)
    for (_, trials), numbers in merged.items():
        together = min(len(trials), chunk, max(25, chunk // len(numbers)))
        per_piece = max(1, chunk // together)
        for first in range(0, len(numbers), per_piece):
            for trial in range(0, len(trials), together):
                yield tuple(numbers[first : first + per_piece]), tuple(trials[trial : trial + together])


def _work(
    experiment: Experiment, pieces: Sequence[Piece], workers: int, progress: bool, already: int
) -> Iterator[tuple[Piece, Array]]:
    """Measure the pieces, in whatever order they finish."""
    from tqdm import tqdm

    total = sum(len(c) * len(t) for c, t in pieces)
    bar = tqdm(total=total + already, initial=already, unit="loop", desc="sweep", disable=not progress, smoothing=0.1)
    with bar:
        if workers <= 1 or len(pieces) <= 1:
            finished: Iterator[tuple[Piece, Array]] = (_measure(experiment, piece) for piece in pieces)
        else:
            import joblib

            parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="2*n_jobs")
            finished = parallel(joblib.delayed(_measure)(experiment, piece) for piece in pieces)
        for piece, values in finished:
            yield piece, values
            bar.update(values.shape[0] * values.shape[1])


def _measure(experiment: Experiment, piece: Piece) -> tuple[Piece, Array]:
    """Run one piece with its learner, on one thread."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cells = [experiment.cells[i] for i in piece[0]]
        return piece, LEARNERS[cells[0].learner](experiment, cells, piece[1])
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------ learners


def measure_exact(experiment: Experiment, cells: Sequence[Cell], trials: Sequence[int]) -> Array:
    """The exact learner on cells of one structure: W2 (cells, trials, generations)."""
    from sims_core.loop import self_consuming_loop
    from sims_core.sampling import Sampler
    from sims_toy.exact import ExactLearner
    from sims_toy.gaussian import Gaussian

    real = Gaussian.single(experiment.mean, experiment.covariance)
    sigma_data = float(real.cov.diagonal(dim1=1, dim2=2).mean().sqrt())
    first = cells[0]
    learner = ExactLearner(Sampler.parse(first.sampler, sigma_data=sigma_data), np.tile(trials, len(cells)))
    seed = Seed(experiment.seed)

    def per_row(values: Sequence[float]) -> Array:
        return np.repeat(np.asarray(values, dtype=np.float64), len(trials))

    real_size = per_row([c.real_size for c in cells])
    loop = self_consuming_loop(
        learner,
        learner.draw(real, real_size, seed=seed.child("real")),
        method=bind_method(
            first,
            n_synthetic=per_row([c.auxiliary_size for c in cells]),
            budget=per_row([float(c.budget) for c in cells]),
            omega=per_row([c.omega for c in cells]),
        ),
        policy=parse_policy(first.loop),
        n_synthetic=per_row([c.synthetic_size for c in cells]),
        generations=experiment.generations,
        seed=seed,
        fresh=lambda stream: learner.draw(real, real_size, seed=stream),
    )
    w2 = [learner.distance(generation.model, real) for generation in loop]
    return np.stack(w2, axis=-1).reshape(len(cells), len(trials), experiment.generations)


def bind_method(cell: Cell, *, n_synthetic: Any, budget: Any, omega: Any) -> Method:
    """The cell's method of `sims_core.algorithm` with its settings bound."""
    from sims_core.algorithm import AUXILIARY_DATA, METHODS

    if cell.auxiliary_data == "none":
        return METHODS["standard"]
    return partial(
        METHODS[cell.method],
        n_synthetic=n_synthetic,
        budget=budget,
        omega=omega,
        auxiliary_data=AUXILIARY_DATA[cell.auxiliary_data],
    )


LEARNERS: dict[str, Callable[[Experiment, Sequence[Cell], Sequence[int]], Array]] = {"exact": measure_exact}


# -------------------------------------------------------------------- tables


def tables(experiment: Experiment, w2: Array) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tidy table (one row a cell and generation) and the regimes (one row a cell).

    Intervals are percentile bootstraps over whole trials, paired across cells (`sims_toy.phase`). ``ratio_own`` is
    d_t(w) / d_1(w); ``ratio_standard`` is d_t(w) / d_1(0), standard training's first generation with the same sizes,
    loop and reference sampler.
    """
    import pandas as pd

    weights = phase.resampling_weights(experiment.trials, Seed(experiment.seed))
    resampled = [phase.weighted(weights, w2[i]) for i in range(len(experiment.cells))]  # each (resamples, generations)
    means = np.where(np.isfinite(w2).all(1), w2.mean(1), np.inf)
    standards = {
        (c.learner, c.loop, c.sampler, c.real_size, c.synthetic_size): i
        for i, c in enumerate(experiment.cells)
        if c.method == "standard"
    }
    last = phase.last_generations(experiment.generations)
    sweep, regimes = [], []
    for i, cell in enumerate(experiment.cells):
        s = standards[(cell.learner, cell.loop, cell.reference or cell.sampler, cell.real_size, cell.synthetic_size)]
        identity = {k: v for k, v in asdict(cell).items() if k != "reference"} | {"trials": experiment.trials}
        own, own_mean = phase.ratio(resampled[i], resampled[i][:, :1]), phase.ratio(means[i], means[i][0])
        std, std_mean = phase.ratio(resampled[i], resampled[s][:, :1]), phase.ratio(means[i], means[s][0])
        finite = np.isfinite(w2[i])
        whole = finite.all(0)
        w2_sq = np.where(whole, (np.where(finite, w2[i], 0) ** 2).mean(0), np.inf)
        deviation = np.where(finite, w2[i], 0).std(0, ddof=1) if experiment.trials > 1 else np.full(len(whole), np.nan)
        columns = {
            "generation": np.arange(1, experiment.generations + 1),
            "diverged": (~finite).sum(0),
            "w2_sq_mean": w2_sq,
            "w2_mean": means[i],
            "w2_se": np.where(whole, deviation / np.sqrt(experiment.trials), np.inf),
        }
        for name, value, samples in (
            ("w2", None, resampled[i]),
            ("ratio_own", own_mean, own),
            ("ratio_standard", std_mean, std),
        ):
            if value is not None:
                columns[name] = value
            columns[f"{name}_low"], columns[f"{name}_high"] = phase.interval(samples)
        sweep.append(pd.DataFrame({**identity, **columns}))
        regimes.append(identity | _regime(cell, w2[i], resampled[i], resampled[s], means[i], means[s], last))
    order = [
        "learner",
        "method",
        "loop",
        "sampler",
        "real_size",
        "synthetic_size",
        "auxiliary_size",
        "budget",
        "omega",
        "generation",
        "trials",
        "diverged",
        "auxiliary_data",
        "w2_sq_mean",
        "w2_mean",
        "w2_se",
        "w2_low",
        "w2_high",
        "ratio_own",
        "ratio_own_low",
        "ratio_own_high",
        "ratio_standard",
        "ratio_standard_low",
        "ratio_standard_high",
    ]
    return pd.concat(sweep, ignore_index=True)[order], pd.DataFrame(regimes)


def _regime(
    cell: Cell, w2: Array, mine: Array, standard: Array, mean: Array, standard_mean: Array, last: slice
) -> dict[str, Any]:
    """One row of regimes.csv."""
    from sims_core.sampling import Sampler

    evaluations = Sampler.parse(cell.sampler).nfe * (2 if cell.method == "sims" else 1)
    diverged = int((~np.isfinite(w2)).any(1).sum())
    row: dict[str, Any] = {"nfe": evaluations, "diverged": diverged}
    d_t, d_t_standard = mine[:, last].mean(1), standard[:, last].mean(1)
    top, top_standard = mean[last].mean(), standard_mean[last].mean()
    triples = {}
    for name, value, samples in (
        ("first", mean[0], mine[:, 0]),
        ("last", top, d_t),
        ("own", phase.ratio(top, mean[0]), phase.ratio(d_t, mine[:, 0])),
        ("standard", phase.ratio(top, standard_mean[0]), phase.ratio(d_t, standard[:, 0])),
        ("gain", phase.ratio(top, top_standard), phase.ratio(d_t, d_t_standard)),
    ):
        low, high = phase.interval(samples[:, None])
        triples[name] = (float(value), float(low[0]), float(high[0]))
        row[name], row[f"{name}_low"], row[f"{name}_high"] = triples[name]
    verdict = phase.classify(triples["own"], triples["standard"], triples["gain"], diverged=diverged > 0)
    if len(w2) < phase.FEW and verdict.regime != "divergent":
        verdict = phase.Verdict("undecided", verdict.candidates)
    return row | {"regime": verdict.regime, "candidates": " or ".join(verdict.candidates)}
