"""Sliced distribution functions: a distribution's values along many directions, linear in it.

The integrated squared difference of two of them is the sliced Cramer distance, the energy distance up to a factor
(Szekely & Rizzo 2013).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sims_core.seeds import Seed

Array = NDArray[np.float64]

#: Places on each direction of the sliced distribution functions, over so many standard deviations to either side.
PLACES, REACH = 128, 4.0
#: Directions, at least; a whole number of orthonormal frames, so that means enter exactly.
DIRECTIONS = 64
#: Projections held at once.
_BLOCK = 2**22


class SlicedCdf:
    """Sliced distribution functions on one grid, as vectors: linear in the distribution.

    Inner products are averages over directions (K, d) of integrals along them, over `PLACES` places on each that reach
    `REACH` standard deviations to either side.
    """

    def __init__(self, mean: Array, cov: Array) -> None:
        """mean (d,), cov (d, d): of what the grid is to hold."""
        self.directions = directions(len(mean))
        deviation = np.sqrt(np.maximum(((self.directions @ cov) * self.directions).sum(1), 0))
        self.low = self.directions @ mean - REACH * deviation
        self.step = np.where(deviation > 0, 2 * REACH * deviation / (PLACES - 1), 1.0)
        self.weight = np.sqrt(self.step / len(self.directions))

    @property
    def places(self) -> Array:
        """(K, PLACES)."""
        return np.asarray(self.low[:, None] + self.step[:, None] * np.arange(PLACES))

    @classmethod
    def around(cls, *samples: Array) -> SlicedCdf:
        """On a grid that holds all of them."""
        means = np.stack([x.mean(0) for x in samples])
        spread = sum(np.atleast_2d(np.cov(x, rowvar=False)) for x in samples) / len(samples)
        spread = spread + np.atleast_2d(np.cov(means, rowvar=False, bias=True))
        return cls(means.mean(0), spread)

    def of_points(self, points: Array, groups: NDArray[np.int64] | None = None) -> Array:
        """(G, K * PLACES): the functions of each group of points (n, d); one group if None."""
        groups = np.zeros(len(points), np.int64) if groups is None else groups
        sizes = np.bincount(groups)
        lines, bins = len(self.directions), PLACES + 1
        counts = np.zeros(len(sizes) * lines * bins, np.int64)
        for start in range(0, len(points), max(1, _BLOCK // lines)):
            rows = slice(start, start + max(1, _BLOCK // lines))
            place = np.ceil((points[rows] @ self.directions.T - self.low) / self.step)
            place = np.clip(place, 0, PLACES).astype(np.int64) + bins * np.arange(lines)
            counts += np.bincount((place + bins * lines * groups[rows, None]).ravel(), minlength=len(counts))
        below = counts.reshape(len(sizes), lines, bins)[..., :PLACES].cumsum(-1) / sizes[:, None, None]
        return np.asarray((below * self.weight[:, None]).reshape(len(sizes), -1))


def directions(d: int) -> Array:
    """(K, d) unit vectors, evenly turned in two dimensions; else in random orthonormal frames, always the same."""
    if d == 1:
        return np.ones((1, 1))
    frames = -(-DIRECTIONS // d)
    if d == 2:
        turns = np.pi * (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS
        return np.stack([np.cos(turns), np.sin(turns)], 1)
    draws = Seed(0).child("directions").numpy()
    return np.concatenate([np.linalg.qr(draws.standard_normal((d, d)))[0].T for _ in range(frames)])
