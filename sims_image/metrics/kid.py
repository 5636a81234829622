"""KID: the squared maximum mean discrepancy of features under a polynomial kernel (Bińkowski et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError
from sims_core.seeds import Seed
from sims_image.metrics.moments import Features, checked, same_width

#: kernel values held at once
_BLOCK = 4 * 2**20
#: of a feature: the kernel is of the sixth degree
_MOST = 1e45


@dataclass(frozen=True)
class Sums:
    """Sums of kernel values between groups of images. own: (G, G) within the generated ones, without i = j.

    counts: (G,) generated images per group. cross: (G,) against the reference, which has ``others`` images with
    ``rest`` the sum over its own pairs i != j.
    """

    own: NDArray[np.float64]
    cross: NDArray[np.float64]
    counts: NDArray[np.int64]
    rest: float
    others: int

    def estimate(self, without: int | None = None) -> float:
        """The unbiased MMD², of all generated images or of all but one group."""
        kept = np.ones(len(self.counts), bool)
        if without is not None:
            kept[without] = False
        m, n = int(self.counts[kept].sum()), self.others
        own = self.own[np.ix_(kept, kept)].sum() / (m * (m - 1))
        return float(own + self.rest / (n * (n - 1)) - 2 * self.cross[kept].sum() / (m * n))


def sums(
    generated: Features, reference: Features, groups: NDArray[np.int64] | None = None, *, known: float | None = None
) -> Sums:
    """The sums that every estimate is made of, in one pass over pairs and float64.

    groups: (N,) which group a generated image is in; one group if None. known: the reference's own sum, if known.
    """
    x, y = generated.astype(np.float64), reference.astype(np.float64)
    groups = np.zeros(len(x), np.int64) if groups is None else groups
    marks = np.eye(int(groups.max()) + 1)[groups]  # (N, G)
    own, cross = np.zeros((marks.shape[1],) * 2), np.zeros(marks.shape[1])
    for rows in _blocks(len(x), max(len(x), len(y))):
        values = _kernel(x[rows], x)
        values[np.arange(len(values)), np.arange(rows.start, rows.start + len(values))] = 0
        own += marks[rows].T @ (values @ marks)
        cross += marks[rows].T @ _kernel(x[rows], y).sum(1)
    return Sums(own, cross, marks.sum(0).astype(np.int64), own_sum(y) if known is None else known, len(y))


def own_sum(features: Features) -> float:
    """The sum of kernel values over pairs i != j."""
    x, total = features.astype(np.float64), 0.0
    for rows in _blocks(len(x), len(x)):
        values = _kernel(x[rows], x)
        total += float(values.sum() - np.trace(values[:, rows]))
    return total


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """k(x, y) = (x'y / D + 1)³."""
    values: NDArray[np.float64] = x @ y.T
    values /= x.shape[1]
    values += 1
    return values * values * values


def _blocks(count: int, columns: int) -> list[slice]:
    step = max(1, _BLOCK // max(columns, 1))
    return [slice(start, min(start + step, count)) for start in range(0, count, step)]


def kid(*, generated: Features, reference: Features) -> float:
    """KID of two sets of features (N, D): unbiased, so that it may be negative where there is no difference.

    Kernel (x'y / D + 1)³ (Bińkowski et al. 2018, Eq. 4), over all pairs. Raises `InputError` for bad shapes.
    """
    generated, reference = (checked(n, f, most=_MOST) for n, f in (("generated", generated), ("reference", reference)))
    same_width(generated, reference)
    return sums(generated, reference).estimate()


def kid_subsets(
    *, generated: Features, reference: Features, size: int = 1000, subsets: int = 100, seed: Seed | None = None
) -> tuple[float, float]:
    """Mean and standard deviation of KID over random subsets of ``size`` images of each, as much of the field reports.

    The subsets overlap, so the deviation is that of a KID of ``size`` images, and no standard error of the mean.
    """
    generated, reference = (checked(n, f, most=_MOST) for n, f in (("generated", generated), ("reference", reference)))
    same_width(generated, reference)
    if not 2 <= size <= min(len(generated), len(reference)):
        words = f"between 2 and {min(len(generated), len(reference))}, the smaller number of images"
        raise InputError("size", size, words)
    draws = (seed or Seed(0)).child("kid").numpy()
    found = []
    for _ in range(subsets):
        mine, other = draws.permutation(len(generated))[:size], draws.permutation(len(reference))[:size]
        found.append(sums(generated[mine], reference[other]).estimate())
    return float(np.mean(found)), float(np.std(found))
