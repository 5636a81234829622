"""An experiment in, the distances of every trial and generation out (`sims_toy.sweep.tables` makes tables of them).

Pieces of work (some cells times some trials) can have any size and be done in any order, by any number of workers, and
a run that was killed resumes with the pairs that are missing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from sims_core.errors import InputError
from sims_core.lab.pool import each
from sims_core.lab.runs import RunFolder
from sims_toy.grid.cells import Experiment, Values
from sims_toy.grid.measure import measurer

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
) -> Values:
    """Every quantity of every generation, each (cells, trials, generations, ...); inf where diverged.

    folder: keeps finished pieces (under ``label``), and has those of an earlier, killed run. workers: processes, one
    thread each. chunk: rows (cells x trials) a piece, 0 for the learner's own. scheduler: the address of a Dask
    cluster that does the work instead. None of them changes a bit of the result.
    """
    shape = (len(experiment.cells), experiment.trials, experiment.generations)
    result: Values = {}
    done = np.zeros(shape[:2], dtype=bool)

    def add(piece: Piece, values: Values) -> None:
        where = np.ix_(*piece)
        for name in experiment.quantities:
            full = result.setdefault(name, np.full(shape + values[name].shape[3:], np.nan))
            full[where] = values[name]
        done[where] = True

    if folder is not None:
        for found in folder.pieces(".npz", partial(_load, experiment), label + "-"):
            add(*found)
    pieces = list(_pieces(experiment, ~done, chunk))
    for piece, values in _work(experiment, pieces, workers, progress, int(done.sum()), scheduler):
        if folder is not None:
            name = f"{label}-{piece[0][0]:06d}-trials-{piece[1][0]:06d}-{len(piece[0])}x{len(piece[1])}.npz"
            folder.shard(name, partial(_save, piece=piece, values=values))
        add(piece, values)
    for full in result.values():
        full[np.maximum.accumulate(np.isinf(full), axis=2)] = np.inf  # what has diverged does not come back
    return result


def _save(path: Path, *, piece: Piece, values: Values) -> None:
    np.savez(path, cells=np.array(piece[0]), trials=np.array(piece[1]), **values)  # type: ignore[arg-type]


def _load(experiment: Experiment, path: Path) -> tuple[Piece, Values]:
    """A piece of work that is there. Raises an error of some kind if its file is damaged."""
    with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as shard:
        cells, trials = (tuple(int(n) for n in shard[name]) for name in ("cells", "trials"))
        values = {name: np.asarray(shard[name], dtype=np.float64) for name in experiment.quantities}
    within = set(cells) <= set(range(len(experiment.cells))) and set(trials) <= set(range(experiment.trials))
    shape = (len(cells), len(trials), experiment.generations)
    if not within or any(array.shape[:3] != shape for array in values.values()):
        raise ValueError("not a piece of this run")
    return (cells, trials), values


def _pieces(experiment: Experiment, missing: NDArray[np.bool_], chunk: int) -> Iterator[Piece]:
    """Split what is missing into units of work: cells of one structure with the same missing trials.

    Cells of one size share their random draws (and networks of one size their batches), so they are kept together.
    """
    if chunk < 0:
        raise InputError("chunk", chunk, "give a positive number of rows, or 0 for the learner's own")
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, cell in enumerate(experiment.cells):
        trials = tuple(np.flatnonzero(missing[number]).tolist())
        if trials:
            groups.setdefault((cell.structure, trials, cell.sizes), []).append(number)
    merged: dict[tuple[Any, ...], list[int]] = {}
    for (structure, trials, sizes), numbers in groups.items():
        mixed = () if measurer(experiment, structure[0]).mixes_sizes else sizes
        merged.setdefault((structure, trials, mixed), []).extend(numbers)
    for (structure, trials, _), numbers in merged.items():
        learner = measurer(experiment, structure[0])
        dim = len(experiment.mean) if learner.mixes_sizes else 2
        rows = chunk or max(min(learner.chunk, 25), 4 * learner.chunk // max(dim, 2) ** 2)  # as much memory
        together = min(len(trials), rows, max(learner.least_trials, rows // len(numbers)))
        per_piece = max(1, rows // together)
        for first in range(0, len(numbers), per_piece):
            for trial in range(0, len(trials), together):
                yield tuple(numbers[first : first + per_piece]), tuple(trials[trial : trial + together])


def _work(
    experiment: Experiment, pieces: Sequence[Piece], workers: int, progress: bool, already: int, scheduler: str
) -> Iterator[tuple[Piece, Values]]:
    """Measure the pieces, in whatever order they finish."""
    total = sum(len(c) * len(t) for c, t in pieces)
    name = experiment.cells[0].learner if experiment.cells else "sweep"
    bar = tqdm(total=total + already, initial=already, unit="loop", desc=name, disable=not progress, smoothing=0.1)
    with bar:
        for piece, values in each(partial(_measure, experiment), pieces, workers, scheduler):
            yield piece, values
            bar.update(len(piece[0]) * len(piece[1]))


def _measure(experiment: Experiment, piece: Piece) -> tuple[Piece, Values]:
    """Run one piece with its learner."""
    cells = [experiment.cells[i] for i in piece[0]]
    return piece, measurer(experiment, cells[0].learner).measure(experiment, cells, piece[1])
