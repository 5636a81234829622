"""One grid of cells in, the distances of every trial and generation out (`sims_toy.tables` makes tables of them).

A cell is one setting of every axis. What a cell's trial gives depends on the run's seed, the trial and the cell alone;
so pieces of work (some cells times some trials) can have any size and be done in any order, by any number of workers,
and a run that was killed goes on with the pairs that are missing.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError, choose
from sims_core.grids import parse_budget
from sims_core.loop import parse_policy
from sims_core.seeds import Seed

if TYPE_CHECKING:
    from sims_core.algorithm import Method
    from sims_core.runs import RunFolder
    from sims_toy.settings import NetworkSettings

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
    network: NetworkSettings | None = None

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
    chunk: int = 0,
    progress: bool = False,
    label: str = "cells",
    scheduler: str = "",
) -> Array:
    """W2 to the real distribution of every generation's samples, (cells, trials, generations); inf where diverged.

    folder: keeps finished pieces (under ``label``), and has those of an earlier, killed run. workers: processes, one
    thread each. chunk: rows (cells x trials) a piece, 0 for the learner's own. scheduler: the address of a Dask
    cluster that does the work instead. None of them changes a bit of the result.
    """
    shape = (len(experiment.cells), experiment.trials, experiment.generations)
    result = np.full(shape, np.nan)
    done = np.zeros(shape[:2], dtype=bool)
    if folder is not None:
        for path in folder.shards(".npz", label):
            with np.load(path) as shard:
                where = np.ix_(shard["cells"], shard["trials"])
                result[where], done[where] = shard["w2"], True
    pieces = list(_pieces(experiment, ~done, chunk))
    for piece, values in _work(experiment, pieces, workers, progress, int(done.sum()), scheduler):
        if folder is not None:
            name = f"{label}-{piece[0][0]:06d}-trials-{piece[1][0]:06d}-{len(piece[0])}x{len(piece[1])}.npz"
            folder.shard(name, partial(_save, piece=piece, values=values))
        result[np.ix_(*piece)] = values
    result[np.maximum.accumulate(np.isinf(result), axis=-1)] = np.inf  # what has diverged does not come back
    return result


def _save(path: Path, *, piece: Piece, values: Array) -> None:
    np.savez(path, cells=np.array(piece[0]), trials=np.array(piece[1]), w2=values)


def _pieces(experiment: Experiment, missing: NDArray[np.bool_], chunk: int) -> Iterator[Piece]:
    """Split what is missing into units of work: cells of one structure with the same missing trials.

    Cells of one size share their random draws (and networks of one size their batches), so they are kept together.
    """
    if chunk < 0:
        raise InputError("--chunk", chunk, "give a positive number of rows, or 0 for the learner's own")
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, cell in enumerate(experiment.cells):
        trials = tuple(np.flatnonzero(missing[number]).tolist())
        if trials:
            sizes = (cell.real_size, cell.synthetic_size, cell.auxiliary_size)
            groups.setdefault((cell.structure, trials, sizes), []).append(number)
    merged: dict[tuple[Any, ...], list[int]] = {}
    for (structure, trials, sizes), numbers in groups.items():
        mixed = () if LEARNERS[structure[0]].mixes_sizes else sizes
        merged.setdefault((structure, trials, mixed), []).extend(numbers)
    for (structure, trials, _), numbers in merged.items():
        learner = LEARNERS[structure[0]]
        rows = chunk or learner.chunk
        together = min(len(trials), rows, max(learner.least_trials, rows // len(numbers)))
        per_piece = max(1, rows // together)
        for first in range(0, len(numbers), per_piece):
            for trial in range(0, len(trials), together):
                yield tuple(numbers[first : first + per_piece]), tuple(trials[trial : trial + together])


def _work(
    experiment: Experiment, pieces: Sequence[Piece], workers: int, progress: bool, already: int, scheduler: str
) -> Iterator[tuple[Piece, Array]]:
    """Measure the pieces, in whatever order they finish."""
    from tqdm import tqdm

    total = sum(len(c) * len(t) for c, t in pieces)
    name = experiment.cells[0].learner if experiment.cells else "sweep"
    bar = tqdm(total=total + already, initial=already, unit="loop", desc=name, disable=not progress, smoothing=0.1)
    with bar:
        if scheduler:
            finished = _on_cluster(experiment, pieces, scheduler)
        elif workers <= 1 or len(pieces) <= 1:
            finished = (_measure(experiment, piece) for piece in pieces)
        else:
            import joblib

            parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="2*n_jobs")
            finished = parallel(joblib.delayed(_measure)(experiment, piece) for piece in pieces)
        for piece, values in finished:
            yield piece, values
            bar.update(values.shape[0] * values.shape[1])


def connect(address: str) -> Any:
    """A Dask client with at least one worker. Raises `InputError` naming --scheduler where there is none."""
    try:
        from distributed import Client
    except ImportError:
        expected = "it needs the extra 'cluster': pip install 'sims-diffusion[cluster]'"
        raise InputError("--scheduler", address, expected) from None
    try:
        client = Client(address, timeout="10s")  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TimeoutError) as error:
        expected = f"no Dask scheduler answers there ({type(error).__name__})"
        raise InputError("--scheduler", address, expected) from None
    try:
        client.wait_for_workers(1, timeout=10)
    except TimeoutError:
        client.close()  # type: ignore[no-untyped-call]
        raise InputError("--scheduler", address, "the scheduler has no workers") from None
    return client


def _on_cluster(experiment: Experiment, pieces: Sequence[Piece], address: str) -> Iterator[tuple[Piece, Array]]:
    """The same pieces on a Dask cluster, by joblib's Dask backend; a worker that dies is replaced by another."""
    import joblib

    with connect(address), joblib.parallel_config("dask", wait_for_workers_timeout=30):
        parallel = joblib.Parallel(return_as="generator_unordered", pre_dispatch="all")
        yield from parallel(joblib.delayed(_measure)(experiment, piece) for piece in pieces)


def _measure(experiment: Experiment, piece: Piece) -> tuple[Piece, Array]:
    """Run one piece with its learner, on one thread."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        cells = [experiment.cells[i] for i in piece[0]]
        return piece, LEARNERS[cells[0].learner].measure(experiment, cells, piece[1])
    finally:
        torch.set_num_threads(threads)


# ------------------------------------------------------------------ learners


def measure_exact(experiment: Experiment, cells: Sequence[Cell], trials: Sequence[int]) -> Array:
    """The exact learner on cells of one structure: W2 (cells, trials, generations)."""
    from sims_core.sampling import Sampler
    from sims_toy.exact import ExactLearner

    sampler = Sampler.parse(cells[0].sampler, sigma_data=spread(experiment))
    learner = ExactLearner(sampler, np.tile(trials, len(cells)))
    return _measure_loop(learner, experiment, cells, trials)


def measure_network(experiment: Experiment, cells: Sequence[Cell], trials: Sequence[int]) -> Array:
    """Trained networks on cells of one structure and one size: W2 (cells, trials, generations)."""
    from sims_core.sampling import Sampler
    from sims_toy.network import NetworkLearner

    sampler = Sampler.parse(cells[0].sampler, sigma_data=spread(experiment))
    learner = NetworkLearner(sampler, np.tile(trials, len(cells)), experiment.network)
    return _measure_loop(learner, experiment, cells, trials)


def spread(experiment: Experiment) -> float:
    """The real data's root mean square standard deviation: sigma_data."""
    return float(np.sqrt(np.diag(np.asarray(experiment.covariance)).mean()))


def _measure_loop(learner: Any, experiment: Experiment, cells: Sequence[Cell], trials: Sequence[int]) -> Array:
    """The self-consuming loop of every (cell, trial) at once, and its W2 generation by generation."""
    from dataclasses import replace as changed

    from sims_core.loop import self_consuming_loop
    from sims_toy.gaussian import Gaussian

    real = Gaussian.single(experiment.mean, experiment.covariance)
    seed = Seed(experiment.seed)
    first = cells[0]

    def per_row(values: Sequence[float]) -> Array:
        return np.repeat(np.asarray(values, dtype=np.float64), len(trials))

    policy = parse_policy(first.loop)
    if experiment.network is not None and first.learner == "network" and experiment.network.start == "warm":
        policy = changed(policy, warm=True)
    real_size = per_row([c.real_size for c in cells])
    loop = self_consuming_loop(
        learner,
        learner.draw(real, real_size, seed=seed.child("real")),
        method=bind_method(
            first,
            learner,
            n_synthetic=per_row([c.auxiliary_size for c in cells]),
            budget=per_row([parse_budget("budget", c.budget).value for c in cells]),
            omega=per_row([c.omega for c in cells]),
        ),
        policy=policy,
        n_synthetic=per_row([c.synthetic_size for c in cells]),
        generations=experiment.generations,
        seed=seed,
        fresh=lambda stream: learner.draw(real, real_size, seed=stream),
    )
    w2 = [learner.distance(generation.model, real) for generation in loop]
    return np.stack(w2, axis=-1).reshape(len(cells), len(trials), experiment.generations)


def parse_reading(argument: str, text: str) -> tuple[str, float]:
    """What the auxiliary is trained on: ``synthetic``, or ``synthetic@0.9`` for negatives drawn with scaled scores."""
    from sims_core.algorithm import AUXILIARY_DATA

    name, at, scale = text.partition("@")
    choose(argument, name, AUXILIARY_DATA)
    if not at:
        return name, 1.0
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(argument, text, f"write {name}@Z with a score scale Z > 0, such as {name}@0.9")
    return name, value


def bind_method(cell: Cell, learner: Any, *, n_synthetic: Any, budget: Any, omega: Any) -> Method:
    """The cell's method of `sims_core.algorithm` with its settings bound."""
    from sims_core.algorithm import AUXILIARY_DATA, METHODS

    if cell.auxiliary_data == "none":
        return METHODS["standard"]
    reading, scale = parse_reading("auxiliary_data", cell.auxiliary_data)
    return partial(
        METHODS[cell.method],
        n_synthetic=n_synthetic,
        budget=budget,
        omega=omega,
        auxiliary_data=AUXILIARY_DATA[reading],
        negatives=None if scale == 1 else learner.negatives(scale),
    )


@dataclass(frozen=True)
class Measurer:
    """How a learner is run: rows a piece of work, whether sizes may differ in it, and the least trials to share."""

    measure: Callable[[Experiment, Sequence[Cell], Sequence[int]], Array]
    chunk: int
    mixes_sizes: bool
    least_trials: int


LEARNERS: dict[str, Measurer] = {
    "exact": Measurer(measure_exact, 2048, True, 25),
    "network": Measurer(measure_network, 24, False, 1),
}
