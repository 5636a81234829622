"""Confidence intervals by a paired bootstrap, and the regimes of the MAD-prevention phase diagram.

Trials share their seeds across cells, so the bootstrap resamples whole trials, the same for every cell: ratios between
cells keep the pairing. A cell with a diverged trial (infinite distance) is divergent, since its means are infinite; how
often that happens is a share of trials with an interval of its own (`share`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sims_core.errors import InputError
from sims_core.seeds import Seed
from sims_toy.theory import TOLERANCE

Array = NDArray[np.float64]

#: Ten generations make d_T, the distance at convergence (our reading; fewer in runs of under twenty).
LAST = 10
LEVEL = 0.95
#: Below this many trials a bootstrap says nothing, and no regime is decided.
FEW = 8
REGIMES = ("prevention", "strong", "weak", "MAD", "divergent", "undecided")


def resampling_weights(trials: int, seed: Seed, resamples: int = 1000) -> Array:
    """Bootstrap weights (resamples, trials): each row says how often each trial was drawn, over ``trials``."""
    if trials < 1:
        raise InputError("trials", trials, "give at least 1")
    counts = seed.child("bootstrap").numpy().multinomial(trials, np.full(trials, 1 / trials), size=resamples)
    return np.asarray(counts / trials, dtype=np.float64)


def weighted(weights: Array, values: Array) -> Array:
    """Resampled means (resamples, ...) of values (trials, ...); where a trial is infinite, so is every mean."""
    finite = np.isfinite(values)
    means = np.tensordot(weights, np.where(finite, values, 0.0), axes=1)
    return np.where(finite.all(0), means, np.inf)


def steadied(weights: Array, values: Array, twin: Array, expected: Array) -> Array:
    """Resampled means (resamples, ...) of values (trials, ...), freed of the chance that a twin explains.

    twin: a quantity of the same trials, correlated with ``values``; expected: its expectation, (resamples, ...), known
    from elsewhere. ``mean(values) - slope * (mean(twin) - expected)`` with the least-squares slope of each resample: a
    control variate, whose variance is 1 - correlation^2 of the plain mean's (Lavenberg & Welch 1981; biased as
    1 / trials). Where anything is infinite, the plain mean.
    """
    mean = weighted(weights, values)
    good = np.isfinite(values).all(0) & np.isfinite(twin).all(0) & np.isfinite(expected).all(0)
    v, t, mu = (np.where(good, x, 0.0) for x in (values, twin, expected))
    centre = t.mean(0)
    v0, t0 = v - v.mean(0), t - centre
    mean_v, mean_t = (np.tensordot(weights, x, axes=1) for x in (v0, t0))
    both = np.tensordot(weights, v0 * t0, axes=1) - mean_v * mean_t
    square = np.tensordot(weights, t0**2, axes=1) - mean_t**2
    slope = np.divide(both, square, out=np.zeros_like(both), where=square > 1e-12 * np.maximum(centre**2, 1e-300))
    return np.where(good, v.mean(0) + mean_v - slope * (mean_t - (mu - centre)), mean)


def levels(trials: int, level: float = LEVEL) -> tuple[float, float]:
    """The quantiles of a bootstrap over ``trials`` that bound its interval at ``level``: expanded percentiles.

    A bootstrap's spread lacks the factor sqrt((n - 1) / n) and its percentiles Student's tails (Hesterberg 2015, The
    American Statistician 69). n - 2 degrees of freedom, since ratios and control variates fit two numbers: plain
    percentiles of 8 trials cover .88 to .90, these .96 to .98 (tests/toy/test_phase.py); beyond 50 they are the same.
    """
    freedom = max(trials - 2, 1)
    reach = stats.t.ppf((1 + level) / 2, freedom) * np.sqrt(max(trials, 2) / freedom)
    tail = float(stats.norm.sf(reach))
    return tail, 1 - tail


def interval(resampled: Array, trials: int, level: float = LEVEL) -> tuple[Array, Array]:
    """Expanded percentile interval (`levels`) over the first axis of a bootstrap over ``trials``.

    (inf, inf) where the resampled values are not finite.
    """
    bad = ~np.isfinite(resampled).all(0)
    low, high = np.quantile(np.where(bad, 0.0, resampled), levels(trials, level), axis=0)
    return np.where(bad, np.inf, low), np.where(bad, np.inf, high)


def bounded(value: float | Array, resampled: Array, trials: int, level: float = LEVEL) -> tuple[float, float, float]:
    """(value, low, high) of a number and its bootstrap (resamples,) over ``trials``."""
    low, high = interval(resampled, trials, level)
    return float(value), float(low), float(high)


def mean_row(name: str, values: Array, weights: Array) -> dict[str, float]:
    """Mean of values (trials,) with its interval: ``name``, ``name_low`` and ``name_high``; inf where one diverged."""
    low, high = interval(weighted(weights, values), len(values))
    mean = float(values.mean()) if np.isfinite(values).all() else np.inf
    return {name: mean, f"{name}_low": float(low), f"{name}_high": float(high)}


def share(count: int, trials: int) -> tuple[float, float, float]:
    """A share of trials and its Clopper-Pearson interval at `LEVEL`."""
    tail = (1 - LEVEL) / 2
    low = stats.beta.ppf(tail, count, trials - count + 1) if count else 0.0
    high = stats.beta.ppf(1 - tail, count + 1, trials - count) if count < trials else 1.0
    return count / trials, float(low), float(high)


def finite_mean(values: Array) -> Array:
    """Means over the last axis; inf where a value is not finite."""
    sound = np.isfinite(values)
    return np.where(sound.all(-1), np.where(sound, values, 0).mean(-1), np.inf)


def chosen_by_the_rest(values: Array) -> NDArray[np.int64]:
    """For each trial (trials,) the row of ``values`` (rows, trials) of least mean in the other half of the trials.

    What a trial is worth at that row is cross-fitted: those that choose are not those that are measured.
    """
    even = np.arange(values.shape[1]) % 2 == 0
    found = np.empty(values.shape[1], dtype=np.int64)
    for mine in (even, ~even):
        found[mine] = int(np.argmin(finite_mean(values[:, ~mine])))
    return found


def held_out(values: Array) -> Array:
    """Each trial's value (trials,) at the row of ``values`` (rows, trials) that the other half of the trials chose."""
    return np.asarray(values[chosen_by_the_rest(values), np.arange(values.shape[1])])


def ratio(numerator: Array, denominator: Array) -> Array:
    """A ratio of means in which infinity over anything is infinity: a diverged cell never looks harmless."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(np.isfinite(numerator), numerator / denominator, np.inf)


def last_generations(generations: int) -> slice:
    """The generations whose mean is d_T: the last ten, or the last half of a run of under twenty, never the first."""
    return slice(max(generations - LAST, (generations + 1) // 2) if generations > 1 else 0, generations)


@dataclass(frozen=True)
class Verdict:
    """What a cell's intervals allow: a regime, or 'undecided' with its two candidates."""

    regime: str
    candidates: tuple[str, ...]


def classify(own: Sequence[float], standard: Sequence[float], gain: Sequence[float], *, diverged: bool) -> Verdict:
    """The regime of a cell from three ratios, each (value, low, high).

    own = d_T(w) / d_1(w), standard = d_T(w) / d_1(0), gain = d_T(w) / d_T(0). Prevention: own <= 1.05 and standard
    <= 1.05. Strong mitigation: standard <= 1.05. Weak mitigation: gain < 1. Otherwise MAD. A label is given only when
    the interval's far end satisfies its condition (or fails it, for the labels below); otherwise 'undecided', with
    the label of the point values and the nearest other one that the intervals allow. Our reading of Figure 4.
    """
    if diverged:
        return Verdict("divergent", ("divergent",))
    names = ("own", "standard", "gain")
    rows = dict(zip(names, (own, standard, gain), strict=True))
    limits = {"own": TOLERANCE, "standard": TOLERANCE, "gain": 1.0}
    at_value = {k: (rows[k][0] <= limits[k] if k != "gain" else rows[k][0] < 1) for k in names}
    surely = {k: (rows[k][2] <= limits[k] if k != "gain" else rows[k][2] < 1) for k in names}
    possibly = {k: (rows[k][1] <= limits[k] if k != "gain" else rows[k][1] < 1) for k in names}
    best, worst, point = (_label(**answers) for answers in (possibly, surely, at_value))
    if best == worst:
        return Verdict(point, (point,))
    other = worst if point == best else best
    first, second = sorted((point, other), key=REGIMES.index)
    return Verdict("undecided", (first, second))


def _label(own: bool, standard: bool, gain: bool) -> str:
    if standard:
        return "prevention" if own else "strong"
    return "weak" if gain else "MAD"
