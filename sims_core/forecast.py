"""Will SIMS help? The angle between a base's error and the drift that self-training reveals, before any guidance.

With real samples, the base's, and those of the auxiliary that was trained on the base's, the error is e = base - real
and the drift d = auxiliary - base, differences of distributions. SIMS at omega moves the samples by -omega d, to first
order, and leaves e - omega d. Its squared length is least at omega* = <e, d> / |d|^2, where 1 - cos^2 of it is left:
SIMS removes the part of the error that lies along the drift, and no other.

The angle is taken where distributions are linear: between sliced distribution functions, whose squared distance is the
sliced Cramer distance (the energy distance, up to a factor). Between quantiles, mass moved from one mode to another by
a little and by more would be orthogonal. Means and covariances are linear too, once each: they say what it is that
errs and drifts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sims_core.errors import InputError
from sims_core.seeds import Seed
from sims_core.slices import SlicedCdf

Array = NDArray[np.float64]

#: Groups that samples are cut into, at most; of at least two samples each.
GROUPS = 20
#: Sign flips of the tests whether error and drift are seen at all, and their level (one-sided).
FLIPS, LEVEL = 1999, 0.025
#: A share of the squared error that is not worth the auxiliary.
LITTLE = 0.1
#: Products below this share of the largest are rounding.
_ROUNDING = 1e-12
#: Of a feature: covariances' products are of its fourth power.
_MOST = 1e70


@dataclass(frozen=True)
class Interval:
    """A value and its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Angle:
    """Between error and drift in one space. error, drift: their lengths, 0 where the unbiased square is not above it.

    products: <e, e>, <e, d> and <d, d>, unbiased, so that the squares may be negative. cosine: within [-1, 1]; 0 where
    a length is 0. omega: the best to first order; None where no drift is seen. error_seen, drift_seen: whether more
    than noise; if one is not, the cosine's interval is [-1, 1].
    """

    products: tuple[float, float, float]
    error: float
    drift: float
    cosine: Interval
    omega: Interval | None
    error_seen: bool
    drift_seen: bool

    @classmethod
    def of(cls, products: Array, without: Array, *, seen: tuple[bool, bool]) -> Angle:
        """Of <e, e>, <e, d> and <d, d>, (3,), and the same without each of G groups, (G, 3), for the jackknife."""
        ee, ed, dd = (float(value) for value in products)
        error, drift = math.sqrt(max(ee, 0.0)), math.sqrt(max(dd, 0.0))
        length = error * drift
        cosine = Interval(float(np.clip(ed / length, -1, 1)) if length > 0 else 0.0, -1.0, 1.0)
        if not (all(seen) and length > 0 and len(without) > 1):
            return cls((ee, ed, dd), error, drift, cosine, None, *seen)
        squares, inner, drifts = without.T
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            turns = _jackknife(inner / np.sqrt(np.maximum(squares * drifts, 1e-300)))
            half = _student(len(without)) * _jackknife(inner / drifts)
        wobble = (_jackknife(squares) / (2 * ee)) ** 2 + (_jackknife(drifts) / (2 * dd)) ** 2
        low, high = _limits(ed / length, turns, wobble, _student(len(without)))
        best = ed / dd
        omega = Interval(best, best - half, best + half) if math.isfinite(half) else None
        return cls((ee, ed, dd), error, drift, Interval(cosine.value, low, high), omega, *seen)

    @classmethod
    def between(cls, real: Array, base: Array, auxiliary: Array) -> Angle:
        """Of vectors (G, D) that are linear in the distribution, such as means: row g of each is of a group of samples.

        Groups are independent of one another; within one, base and auxiliary need not be. real: (1, D) if it is exact.
        """
        vectors = np.concatenate([np.broadcast_to(real, base.shape), base, auxiliary])
        return _angle(_gram(vectors), len(base))

    @classmethod
    def over(cls, rows: Array) -> Angle:
        """Of ``products`` of R independent settings, (R, 3), such as trained models: the one omega that serves all.

        Those that are not finite are left out.
        """
        rows = rows[np.isfinite(rows).all(1)]
        if not len(rows):
            return cls.of(np.zeros(3), rows, seen=(False, False))
        mean, count = rows.mean(0), len(rows)
        spread = _student(count) * rows.std(0, ddof=1) / math.sqrt(count) if count > 1 else np.zeros(3)
        seen = bool(mean[0] > spread[0]), bool(mean[2] > spread[2])
        return cls.of(mean, (count * mean - rows) / max(count - 1, 1), seen=seen)

    def __str__(self) -> str:
        return f"drift-error cosine {self.cosine}, the drift {self.ratio:.2g} times as long as the error: {self.words}"

    @property
    def ratio(self) -> float:
        """|drift| / |error|; infinite without error."""
        return self.drift / self.error if self.error else math.inf

    @property
    def share(self) -> Interval:
        """Of the squared error, what the best omega >= 0 removes: cos^2, to first order."""
        along = (max(x, 0.0) ** 2 for x in (self.cosine.value, self.cosine.low, self.cosine.high))
        return Interval(*along)

    def left(self, omega: float) -> float:
        """Of the squared error, what this omega leaves to first order; unbiased but for the division by the error's."""
        ee, ed, dd = self.products
        return (ee - 2 * omega * ed + omega**2 * dd) / ee if ee > 0 else math.nan

    @property
    def words(self) -> str:
        """What that promises."""
        cosine, share = self.cosine, self.share
        most, drift = f"{100 * share.high:.0f} %", "what self-training reveals"
        if not self.error_seen:
            return "no error is seen: these samples do not tell the base from the data, so there is nothing to remove"
        if not self.drift_seen:
            return f"SIMS is blind here: {drift} is nothing that these samples show"
        if max(cosine.low**2, cosine.high**2) < LITTLE:
            return f"SIMS is not expected to help: {drift} is not along the error; at most {most} can be removed"
        if cosine.high < 0:
            return f"SIMS is expected to harm: {drift} points against the error, so that omega above 0 adds to it"
        if cosine.low > 0:
            at = f"omega near {self.omega}" if self.omega else "the best omega"
            removed = f"{100 * share.value:.0f} % ({100 * share.low:.0f} to {most}) of the squared error"
            return f"SIMS is expected to help: at {at} it can remove {removed}, to first order"
        return f"undecided: {drift} may point along the error or not (at most {most} can be removed); take more samples"

    def record(self) -> dict[str, Any]:
        """For JSON."""
        ratio = self.ratio if self.error else None
        return {**asdict(self), "ratio": ratio, "share": asdict(self.share), "words": self.words}


@dataclass(frozen=True)
class Outlook:
    """The angle between distributions, and between their means and covariances alone. samples: (real, base, auxiliary).

    Its text is a table and one sentence.
    """

    PARTS: ClassVar = ("distributions", "means", "covariances")

    distributions: Angle
    means: Angle
    covariances: Angle
    samples: tuple[int, int, int]

    @property
    def sentence(self) -> str:
        """Of the distributions."""
        words = self.distributions.words
        return f"{words[0].upper()}{words[1:]}."

    def rows(self) -> list[dict[str, str]]:
        """The table, in words."""
        made = []
        for part in self.PARTS:
            angle: Angle = getattr(self, part)
            made.append(
                {
                    "of": part,
                    "|error|": f"{angle.error:.3g}" if angle.error_seen else "not seen",
                    "|drift|": f"{angle.drift:.3g}" if angle.drift_seen else "not seen",
                    "cosine (95 %)": str(angle.cosine) if angle.error_seen and angle.drift_seen else "-",
                    "best omega (95 %)": str(angle.omega or "-"),
                    "can be removed": f"{100 * angle.share.value:.0f} %" if angle.omega else "-",
                }
            )
        return made

    def __str__(self) -> str:
        rows = self.rows()
        widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
        lines = [{key: key for key in widths}, *rows]
        table = ["  ".join(line[key].ljust(width) for key, width in widths.items()).rstrip() for line in lines]
        return "\n".join([*table, self.sentence])

    def record(self) -> dict[str, Any]:
        """For JSON."""
        parts = {part: getattr(self, part).record() for part in self.PARTS}
        return {"sentence": self.sentence, **parts, "samples": list(self.samples)}


def outlook(real: Any, base_samples: Any, auxiliary_samples: Any) -> Outlook:
    """Whether SIMS will help, before it is tried: the angle between the base's error and the drift of self-training.

    real, base_samples, auxiliary_samples: (n, d) features or points, arrays or tensors, of possibly different n; any
    d. Row i of the base and of the auxiliary may be drawn from the same noise, which makes the drift sharper. The
    auxiliary's samples are its own, not those of guidance.

    Squares and products are unbiased: they pair no sample with itself, nor base with auxiliary of one row. The error's
    and the drift's presence is tested by sign flips of groups of samples (exact for groups of equal size), intervals
    are by the jackknife over groups, wide in many dimensions; they say what other samples of the same models would
    give, not what another training would. To first order in error and drift, and before the auxiliary's own noise is
    counted, which omega amplifies. Raises `InputError`: an argument that is not finite, not (n, d), of another d, or of
    too few samples.

    >>> import numpy as np, sims_core
    >>> rng = np.random.default_rng(0)
    >>> real, noise = rng.normal(size=(4000, 2)), rng.normal(size=(4000, 2))
    >>> found = sims_core.outlook(real, noise + [0.2, 0.0], noise + [0.3, 0.0])  # it errs by .2 and drifts on by .1
    >>> found.means.omega.low < 2 < found.means.omega.high
    True
    >>> print(sims_core.outlook(real, noise, noise).sentence)
    No error is seen: these samples do not tell the base from the data, so there is nothing to remove.
    """
    names = ("real", "base_samples", "auxiliary_samples")
    samples = [_points(name, x) for name, x in zip(names, (real, base_samples, auxiliary_samples), strict=True)]
    for name, x in zip(names[1:], samples[1:], strict=True):
        if x.shape[1] != samples[0].shape[1]:
            raise InputError(name, x.shape, f"as many dimensions as `real` has, {samples[0].shape[1]}")
    count = min(GROUPS, *(len(x) // 2 for x in samples))
    groups = _grouped([len(x) for x in samples], count)
    grams = (_functions(samples, groups), _gram(_means(samples, groups)), _covariances(samples, groups))
    whole, means, covariances = (_angle(gram, count) for gram in grams)
    sizes = (len(samples[0]), len(samples[1]), len(samples[2]))
    return Outlook(whole, means, covariances, sizes)


#: Fewer samples than this are refused.
LEAST = 20


def rank_correlation(foretold: Any, found: Any, seed: Seed, *, draws: int = 2000) -> tuple[float, float, float]:
    """How well gains were ranked beforehand: Spearman's correlation, and its 95 % interval by bootstrap.

    foretold, found: (A,), or (A, T) for A auxiliaries on each of T bases, NaN for those not there. Entries in a row, or
    in a column, depend on each other, so whole rows and whole columns are drawn (Owen 2007; the interval errs to the
    wide side). NaN for fewer than four entries, or where one side does not vary.
    """
    x, y = (side if side.ndim == 2 else side[:, None] for side in (np.asarray(s, float) for s in (foretold, found)))

    def correlation(rows: NDArray[np.int64], columns: NDArray[np.int64]) -> float:
        a, b = (side[np.ix_(rows, columns)].ravel() for side in (x, y))
        a, b = (side[np.isfinite(a + b)] for side in (a, b))
        return float(stats.spearmanr(a, b).statistic) if len(a) > 1 and np.ptp(a) and np.ptp(b) else math.nan

    value, generator = correlation(np.arange(len(x)), np.arange(x.shape[1])), seed.numpy()
    if np.isfinite(x + y).sum() < 4 or math.isnan(value):
        return math.nan, math.nan, math.nan
    rows = generator.integers(len(x), size=(draws, len(x)))
    columns = generator.integers(x.shape[1], size=(draws, x.shape[1]))
    low, high = np.nanquantile([correlation(*some) for some in zip(rows, columns, strict=True)], [0.025, 0.975])
    return value, float(low), float(high)


def _points(name: str, value: Any) -> Array:
    """(n, d) in float64."""
    value = value.detach().cpu().double().numpy() if hasattr(value, "detach") else value
    try:
        points = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(name, type(value).__name__, "give points or features, (n, d)") from None
    if points.ndim != 2 or not points.shape[1]:
        raise InputError(name, points.shape, "give points or features, (n, d)")
    if len(points) < LEAST:
        raise InputError(name, len(points), f"give at least {LEAST} samples")
    if not (np.abs(points) < _MOST).all():
        raise InputError(name, "values that are not finite, or too large", "give finite samples")
    return points


def _grouped(sizes: Sequence[int], count: int) -> list[NDArray[np.int64]]:
    """A group for each sample, at random. Rows of base and auxiliary up to the shorter share theirs."""
    shared = min(sizes[1:])
    draws = Seed(0).child("groups").numpy()

    def dealt(n: int) -> NDArray[np.int64]:
        return draws.permutation(np.arange(n) % count)

    first = dealt(shared)
    return [dealt(sizes[0]), *(np.concatenate([first, dealt(n - shared)]) for n in sizes[1:])]


# ------------------------------------------------------------------------ spaces


def _gram(vectors: Array) -> Array:
    return np.asarray(vectors @ vectors.T)


def _functions(samples: Sequence[Array], groups: Sequence[NDArray[np.int64]]) -> Array:
    cdf = SlicedCdf.around(*samples)
    return _gram(np.concatenate([cdf.of_points(x, mark) for x, mark in zip(samples, groups, strict=True)]))


def _parts(samples: Sequence[Array], groups: Sequence[NDArray[np.int64]]) -> list[Array]:
    """The groups of all samples, in turn."""
    return [x[mark == g] for x, mark in zip(samples, groups, strict=True) for g in range(int(mark.max()) + 1)]


def _means(samples: Sequence[Array], groups: Sequence[NDArray[np.int64]]) -> Array:
    middle = samples[0].mean(0)
    return np.stack([x.mean(0) for x in _parts([x - middle for x in samples], groups)])


def _covariances(samples: Sequence[Array], groups: Sequence[NDArray[np.int64]]) -> Array:
    """Frobenius products of the groups' unbiased covariances; of groups of fewer points than dimensions, by points."""
    parts = [(x - x.mean(0)) / math.sqrt(len(x) - 1) for x in _parts(samples, groups)]
    if len(parts[0]) >= parts[0].shape[1]:
        return _gram(np.stack([(x.T @ x).ravel() for x in parts]))
    gram = np.empty((len(parts),) * 2)
    for i, x in enumerate(parts):
        for j, y in enumerate(parts[: i + 1]):
            gram[i, j] = gram[j, i] = np.square(x @ y.T).sum()
    return gram


# -------------------------------------------------------------------- estimates


def _angle(gram: Array, count: int) -> Angle:
    """Of the products (3 G, 3 G) between the groups' vectors: real, base, auxiliary. Groups are independent."""
    real, base, auxiliary = (np.eye(3)[k] for k in range(3))
    error, drift = base - real, auxiliary - base
    pairs = gram.reshape(3, count, 3, count)

    def between(left: Array, right: Array) -> Array:
        table = np.einsum("a,b,agbh->gh", left, right, pairs)
        np.fill_diagonal(table, 0.0)
        return np.where(np.abs(table) > _ROUNDING * np.abs(pairs).max(), table, 0.0)

    tables = [between(error, error), between(error, drift), between(drift, drift)]
    products = np.array([table.sum() for table in tables]) / (count * (count - 1))
    rows = [table.sum() - table.sum(0) - table.sum(1) for table in tables]
    without = np.stack(rows, 1) / ((count - 1) * (count - 2))
    return Angle.of(products, without, seen=(_is_seen(tables[0]), _is_seen(tables[2])))


def _is_seen(table: Array) -> bool:
    """Whether groups' differences have more in common than their signs flipped at random leave."""
    signs = Seed(0).child("flips").numpy().choice([-1.0, 1.0], (FLIPS, len(table)))
    flipped = ((signs @ table) * signs).sum(1)
    reached = flipped >= table.sum() - 1e-9 * np.abs(table).sum()
    return bool(1 + reached.sum() <= LEVEL * (FLIPS + 1))


def _student(count: int) -> float:
    return float(stats.t.ppf(0.975, count - 1))


def _jackknife(without: Array) -> float:
    """Standard error, of the values without each group."""
    count = len(without)
    return math.sqrt((count - 1) / count * float(np.square(without - without.mean()).sum()))


def _limits(cosine: float, se: float, wobble: float, t: float) -> tuple[float, float]:
    """The angles that would not be surprising, as cosines in [-1, 1].

    The standard error of a cosine shrinks where the two are parallel, so a candidate of a wider angle is given what
    its own would have more. wobble: the angle's variance, taken to be that of the relative lengths.
    """
    candidates = np.linspace(-1, 1, 4001)
    variance = se * se + wobble * np.maximum(0, min(cosine * cosine, 1.0) - candidates**2)
    near = candidates[(candidates - cosine) ** 2 <= t * t * variance]
    inside = float(np.clip(cosine, -1, 1))
    return min([inside, *near[:1].tolist()]), max([inside, *near[-1:].tolist()])
