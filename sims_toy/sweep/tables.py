"""From distances to tidy tables: one row per cell and generation, and one row per cell with its regime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sims_core.algorithm import METHODS
from sims_core.guidance import GuidanceSchedule
from sims_core.seeds import Seed
from sims_toy import phase
from sims_toy.grid.cells import Array, Cell, Experiment
from sims_toy.grid.measure import LEARNERS

#: Axes on which a figure holds one value; each combination gets figures of its own. 'aux' is |D_aux|, 0 for |D_s|.
FACET = ["method", "loop", "sampler", "real_size", "budget", "aux", "temperature", "pollution", "estimator"]
#: What tells the cells of a trial table apart.
_TRIAL = ["learner", "method", "loop", "sampler", "real_size", "synthetic_size", "auxiliary_size", "budget", "omega",
          "auxiliary_data", "temperature", "pollution", "estimator"]  # fmt: skip


def completed(frame: pd.DataFrame) -> pd.DataFrame:
    """A table of cells with its estimator, which tables of maximum likelihood alone do not name."""
    return frame if "estimator" in frame else frame.assign(estimator="mle")


def shortened(frame: pd.DataFrame) -> pd.DataFrame:
    """The inverse of `completed`."""
    return frame.drop(columns="estimator") if (frame["estimator"] == "mle").all() else frame


@dataclass(frozen=True)
class Twins:
    """The exact learner alongside networks. values: of the same trials, on the networks' own points (cells, trials,
    generations); many: of many more trials of its own (cells, many trials, generations)."""

    values: Array
    many: Array


def tables(experiment: Experiment, w2: Array, twins: Twins | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The tidy table (one row per cell and generation) and the regimes (one row per cell).

    Intervals are expanded percentile bootstraps over whole trials, paired across cells (`sims_toy.phase`).
    ``ratio_own`` is d_t(w) / d_1(w); ``ratio_standard`` is d_t(w) / d_1(0), standard training's first generation with
    the same sizes, loop and reference sampler. twins: means of w2 are freed of the chance in data and samples that the
    exact learner shows too (`sims_toy.phase.steadied`); regimes then say the twins' correlation over trials, the slope,
    and d_T without them.
    """
    weights = phase.resampling_weights(experiment.trials, Seed(experiment.seed))
    means, resampled, squares = _means(weights, w2, twins, Seed(experiment.seed))
    standards = {_setting(c): i for i, c in enumerate(experiment.cells) if c.method == "standard"}
    last = phase.last_generations(experiment.generations)
    controls = _controls(experiment, means[:, last].mean(1))
    beside = {*standards.values(), *(j for found in controls.values() for j in found.values())}
    anchors = {i: resampled(i) for i in sorted(beside)}  # (resamples, generations) each
    sweep, regimes = [], []
    for i, cell in enumerate(experiment.cells):
        s = standards[_setting(cell)]
        identity = {k: v for k, v in asdict(cell).items() if k != "reference"} | {"trials": experiment.trials}
        mine, anchor = anchors.get(i), anchors[s]
        if mine is None:
            mine = resampled(i)
        own, own_mean = phase.ratio(mine, mine[:, :1]), phase.ratio(means[i], means[i][0])
        std, std_mean = phase.ratio(mine, anchor[:, :1]), phase.ratio(means[i], means[s][0])
        finite = np.isfinite(w2[i])
        whole = finite.all(0)
        deviation = np.where(finite, w2[i], 0).std(0, ddof=1) if experiment.trials > 1 else np.full(len(whole), np.nan)
        columns = {
            "generation": np.arange(1, experiment.generations + 1),
            "diverged": (~finite).sum(0),
            "w2_sq_mean": squares[i],
            "w2_mean": means[i],
            "w2_se": np.where(
                whole,
                deviation / np.sqrt(experiment.trials) if twins is None else np.where(whole, mine, 0).std(0),
                np.inf,
            ),
        }
        for name, value, samples in (
            ("w2", None, mine),
            ("ratio_own", own_mean, own),
            ("ratio_standard", std_mean, std),
        ):
            if value is not None:
                columns[name] = value
            columns[f"{name}_low"], columns[f"{name}_high"] = phase.interval(samples, experiment.trials)
        sweep.append(pd.DataFrame({**identity, **columns}))
        regimes.append(
            identity
            | {"reference": cell.reference or cell.sampler}
            | _regime(cell, w2[i], mine, anchor, means[i], means[s], last)
            | _against(
                {name: (anchors[j], means[j]) for name, j in controls[_setting(cell)].items()},
                (mine, means[i]),
                (anchor, means[s]),
                last,
                experiment.trials,
            )
            | ({} if twins is None else _beside_twin(w2[i][:, last].mean(1), twins.values[i][:, last].mean(1)))
        )
    order = [
        "learner", "method", "loop", "sampler", "real_size", "synthetic_size", "auxiliary_size", "budget", "omega",
        "generation", "trials", "diverged", "auxiliary_data", "temperature", "pollution", "real", "estimator",
        "w2_sq_mean", "w2_mean", "w2_se", "w2_low", "w2_high", "ratio_own", "ratio_own_low", "ratio_own_high",
        "ratio_standard", "ratio_standard_low", "ratio_standard_high",
    ]  # fmt: skip
    return pd.concat(sweep, ignore_index=True)[order], pd.DataFrame(regimes)


def trial_table(experiment: Experiment, w2: Array) -> pd.DataFrame:
    """One row per cell and trial: ``first`` = d_1 and ``last`` = d_T of that trial, to four significant digits.

    What every interval and regime follows from: means over trials of these two.
    """
    cells = pd.DataFrame([asdict(cell) for cell in experiment.cells])[_TRIAL]
    rows = cells.loc[cells.index.repeat(experiment.trials)].reset_index(drop=True)
    last = phase.last_generations(experiment.generations)
    return rows.assign(
        trial=np.tile(np.arange(experiment.trials, dtype=np.int32), len(cells)),
        first=_four_digits(w2[:, :, 0]),
        last=_four_digits(w2[:, :, last].mean(2)),
    )


def _four_digits(values: Array) -> NDArray[np.float32]:
    """Rounded so that a column takes two bytes a number in a file; zero and infinity stay."""
    flat = values.reshape(-1)
    sound = np.isfinite(flat) & (flat > 0)
    scale = 10.0 ** (3 - np.floor(np.log10(np.where(sound, flat, 1.0))))
    return np.where(sound, np.round(np.where(sound, flat, 0.0) * scale) / scale, flat).astype(np.float32)


def _setting(cell: Cell) -> tuple[Any, ...]:
    """What a cell shares with the controls that it is compared with."""
    axes = (cell.real_size, cell.synthetic_size, cell.temperature, cell.pollution, cell.estimator)
    return (cell.learner, cell.loop, cell.reference or cell.sampler, *axes)


def _controls(experiment: Experiment, late: Array) -> dict[tuple[Any, ...], dict[str, int]]:
    """The number of each control's cell by setting; of several samplers the one of least ``late`` = d_T (cells,)."""
    found: dict[tuple[Any, ...], dict[str, int]] = {_setting(cell): {} for cell in experiment.cells}
    for i, cell in enumerate(experiment.cells):
        if METHODS[cell.method].resampled:
            mine = found[_setting(cell)]
            mine[cell.method] = min(i, mine.get(cell.method, i), key=lambda j: float(late[j]))
    return found


def _against(
    controls: dict[str, tuple[Array, Array]], mine: tuple[Array, Array], standard: tuple[Array, Array], last: slice,
    trials: int,
) -> dict[str, float]:  # fmt: skip
    """(d_T - the control's d_T) / d_1(0) with its paired interval, for each control; below 0 the cell is ahead.

    Each of them resampled means (resamples, generations) and means (generations,). nan without the control, or where
    it or the cell has diverged.
    """
    row: dict[str, float] = {}
    for name in (method for method, found in METHODS.items() if found.resampled):
        value, low, high = np.nan, np.nan, np.nan
        if name in controls:
            ends = [
                (own[..., last].mean(-1) - other[..., last].mean(-1)) / first[..., 0]
                for own, other, first in zip(mine, controls[name], standard, strict=True)
                if np.isfinite(own[..., last]).all() and np.isfinite(other[..., last]).all()
            ]
            if len(ends) == 2:
                value, low, high = phase.bounded(ends[1], ends[0], trials)
        stem = f"minus_{name.replace('-', '_')}"
        row |= {stem: value, f"{stem}_low": low, f"{stem}_high": high}
    return row


def _means(weights: Array, w2: Array, twins: Twins | None, seed: Seed) -> tuple[Array, Callable[[int], Array], Array]:
    """Means (cells, generations) of w2, a cell's resampled means (resamples, generations), and means of w2 squared."""
    even = np.full((1, w2.shape[1]), 1 / w2.shape[1])
    if twins is None:

        def plain(values: Array) -> Array:
            return np.stack([phase.weighted(even, v)[0] for v in values])

        return plain(w2), lambda i: phase.weighted(weights, w2[i]), plain(w2**2)
    many = phase.resampling_weights(twins.many.shape[1], seed.child("twin"), len(weights))
    all_of = np.full((1, many.shape[1]), 1 / many.shape[1])

    def mean(power: int) -> Array:
        pairs = zip(w2**power, twins.values**power, twins.many**power, strict=True)
        return np.stack([phase.steadied(even, v, t, phase.weighted(all_of, m))[0] for v, t, m in pairs])

    def resampled(i: int) -> Array:
        return phase.steadied(weights, w2[i], twins.values[i], phase.weighted(many, twins.many[i]))

    return mean(1), resampled, mean(2)


def _beside_twin(mine: Array, twin: Array) -> dict[str, float]:
    """Of d_T, trial by trial."""
    finite = np.isfinite(mine).all() and np.isfinite(twin).all() and len(mine) > 2
    together = float(np.corrcoef(mine, twin)[0, 1]) if finite else np.nan
    slope = together * float(mine.std() / twin.std()) if finite else np.nan
    return {"last_plain": float(mine.mean()), "twin_correlation": together, "twin_slope": slope}


def _regime(
    cell: Cell, w2: Array, mine: Array, standard: Array, mean: Array, standard_mean: Array, last: slice
) -> dict[str, Any]:
    """One row of regimes.csv."""
    sampler = LEARNERS[cell.learner].parse(cell.sampler)
    guided = METHODS[cell.method].networks > 1
    evaluations = sum(sampler.evaluations(GuidanceSchedule.parse(cell.guidance))) if guided else sampler.nfe
    diverged = int((~np.isfinite(w2)).any(1).sum())
    row: dict[str, Any] = {"nfe": evaluations, "diverged": diverged}
    row["diverged_share"], row["diverged_share_low"], row["diverged_share_high"] = phase.share(diverged, len(w2))
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
        triples[name] = phase.bounded(value, samples, len(w2))
        row[name], row[f"{name}_low"], row[f"{name}_high"] = triples[name]
    verdict = phase.classify(triples["own"], triples["standard"], triples["gain"], diverged=diverged > 0)
    if verdict.regime == "divergent":
        pass
    elif w2.shape[1] == 1:
        verdict = phase.Verdict("undecided", ("one generation has no regime",))
    elif len(w2) < phase.FEW:
        verdict = phase.Verdict("undecided", (*verdict.candidates, "too few trials"))
    return row | {"regime": verdict.regime, "candidates": " or ".join(verdict.candidates)}


def beneath(cell: Cell, learner: str) -> Cell:
    """The exact cell that stands beneath a network's: its auxiliary moves the whole way, eta = 1."""
    takes = METHODS[cell.method].takes
    return replace(cell, learner=learner, budget="1" if "budget" in takes else "0")
