"""MIND (arXiv 2605.06797): 3 d times the squared sliced Wasserstein-2 distance between two samples of features.

The distance is exact on each of a fixed set of directions. Unlike Fréchet's it sees more than two moments, and unlike
KID it has no kernel to choose; published values take 5,000 images, 1,000 directions and Inception's features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sims_core.seeds import Seed
from sims_image.metrics.moments import Features, checked, same_width

#: images of a sample that are compared, and directions
MOST, DIRECTIONS = 5_000, 1_000
#: directions at a time
_BLOCK = 100
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Mind:
    """value: of the whole generated sample. without: (G,), the same with one group left out."""

    value: float
    without: Floats


def mind(
    generated: Features, reference: Features, groups: NDArray[np.int64] | None = None, *, directions: int = DIRECTIONS
) -> Mind:
    """MIND of features (n, D) against (m, D). groups: (n,) marks of the jackknife's groups, from 0 on.

    Raises `InputError` for features that are not finite, or of two widths.
    """
    generated, reference = checked("generated", generated), checked("reference", reference)
    same_width(generated, reference)
    groups = np.zeros(len(generated), np.int64) if groups is None else groups
    width, count = generated.shape[1], int(groups.max()) + 1
    draws = Seed(0).child("sims_image.mind").numpy().normal(size=(directions, width))
    units = draws / np.linalg.norm(draws, axis=1, keepdims=True)
    middle = reference.mean(0, dtype=np.float64)
    kept = [np.ones(len(generated), bool), *(groups != g for g in range(count))]
    kept = [one if one.any() else kept[0] for one in kept]
    total = np.zeros(len(kept))
    for start in range(0, directions, _BLOCK):
        some = units[start : start + _BLOCK]
        x, y = some @ (generated - middle).T.astype(np.float64), np.sort(some @ (reference - middle).T, axis=1)
        order = np.argsort(x, axis=1)
        x = np.take_along_axis(x, order, 1)
        for place, one in enumerate(kept):
            total[place] += _squared(x[one[order]].reshape(len(some), -1), y)
    values = 3 * width * total / directions
    return Mind(float(values[0]), values[1:])


def _squared(x: Floats, y: Floats) -> float:
    """Sum over rows of the squared Wasserstein-2 distance between the points of (R, n) and of (R, m), sorted."""
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return float(np.square(x - y).sum() / n)
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # of both quantile functions' steps, in 1 / nm
    widths, last = np.diff(ends, prepend=0) / (n * m), ends - 1
    return float((np.square(x[:, last // m] - y[:, last // n]) @ widths).sum())
