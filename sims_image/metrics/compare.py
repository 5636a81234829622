"""Every metric of one sample of images against one set of real ones, each with its interval."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sims_core.errors import InputError
from sims_image.metrics.kid import own_sum, sums
from sims_image.metrics.mind import MOST, mind
from sims_image.metrics.moments import Frechet, Moments, same_width
from sims_image.metrics.neighbours import manifolds
from sims_image.metrics.references import Statistics
from sims_image.metrics.samples import Sample, jackknife

#: those that compare images with their neighbours
NEIGHBOURS = ("precision", "recall", "density", "coverage")
#: in the order of tables
METRICS = ("frechet", "kid", "mind", *NEIGHBOURS)
#: neighbours of precision and recall (Kynkäänniemi et al. 2019), of density and coverage (Naeem et al. 2020)
K, K_DENSITY = 3, 5


@dataclass(frozen=True)
class Estimate:
    """A value, its standard error, and its 95% interval.

    The error is that of drawing other generated images from the same model, the reference being what it is, by leaving
    out a tenth of the generated images at a time; the interval is Student's. n: generated images behind it.
    """

    value: float
    se: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.value:.4g} ± {self.se:.2g}"


@dataclass(frozen=True)
class Side:
    """Real images to compare with. kept: features (K, D) of some of them, in random order; None: not there."""

    #: fewer generated images than this are not measured
    LEAST: ClassVar[int] = 20

    statistics: Statistics
    kept: NDArray[np.float32] | None = None

    @classmethod
    def of(cls, sample: Sample) -> Side:
        """Of a sample of real images."""
        return cls(sample.moments.statistics, sample.kept().features)

    @cached_property
    def frechet(self) -> Frechet:
        """With the covariance's root, which is taken once."""
        return Frechet(self.statistics)

    @cached_property
    def own(self) -> float:
        """The kernel sum of KID among the kept images."""
        assert self.kept is not None
        return own_sum(self.kept)


def compare(sample: Sample, side: Side) -> dict[str, Estimate]:
    """The metrics of `METRICS`, or the first alone where the real images' features are not there.

    MIND to coverage take as many real images as generated ones, as the field does, so that both samples are cut to the
    smaller (MIND: at most 5,000). Raises `InputError` for fewer than `Side.LEAST` images, or of another width.
    """
    if sample.count < Side.LEAST:
        raise InputError("n", sample.count, f"at least {Side.LEAST} images are needed")
    counts = np.array([part.count for part in sample.parts])
    same_width(sample.parts[0].mean, side.statistics.mu)
    without = [
        side.frechet(Moments.sum([p for p in sample.parts if p is not part]).statistics) if part.count else np.nan
        for part in sample.parts
    ]
    whole = side.frechet(sample.moments.statistics)
    found = {"frechet": _estimate(whole, np.array(without), counts, sample.count)}
    if side.kept is None:
        return found
    kept = sample.kept()
    groups = len(sample.parts)
    if len(side.kept) < 2:
        raise InputError("reference", len(side.kept), "at least 2 images are needed")
    pairs = sums(kept.features, side.kept, kept.groups, known=side.own)
    left = np.array([pairs.estimate(g) for g in range(len(pairs.counts))])
    found["kid"] = _estimate(pairs.estimate(), left, pairs.counts, len(kept.items))
    few = slice(min(len(kept.items), len(side.kept), MOST))
    sliced = mind(kept.features[few], side.kept[few], kept.groups[few])
    counts = np.bincount(kept.groups[few], minlength=groups)[: len(sliced.without)]
    found["mind"] = _estimate(sliced.value, sliced.without, counts, int(counts.sum()))
    m = min(len(kept.items), len(side.kept))
    mine, marks = kept.features[:m], kept.groups[:m]
    near = manifolds(mine, side.kept[:m], marks, k=K, k_density=K_DENSITY)
    counts = np.bincount(marks, minlength=groups)[: len(near.without)]
    for place, name in enumerate(NEIGHBOURS):
        found[name] = _estimate(float(near.values[place]), near.without[:, place], counts, m)
    return found


def _estimate(value: float, without: NDArray[np.float64], counts: NDArray[np.int64], n: int) -> Estimate:
    there = counts > 0
    se = float(jackknife(np.array(value), np.where(there, without, 0.0), counts))
    half = float(stats.t.ppf(0.975, max(1, int(there.sum()) - 1))) * se
    return Estimate(value, se, value - half, value + half, n)
