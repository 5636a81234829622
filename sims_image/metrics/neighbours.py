"""Precision, recall, density and coverage by nearest neighbours, and whether a model repeats its training images.

Distances are Euclidean, in float64, a block of rows at a time. A ball contains its surface (to a relative 1e-9 of the
squared radius, so that rounding does not decide), and an image's own distance 0 to itself does not count.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError
from sims_image.metrics.moments import Features, checked, same_width

Floats = NDArray[np.float64]
#: distances held at once
_BLOCK = 2 * 2**20
_SURFACE = 1 + 1e-9


@dataclass(frozen=True)
class Manifolds:
    """The four numbers of a generated sample against a reference, and without each of the generated groups.

    values: precision, recall, density, coverage. without: (G, 4), the same with one group left out.
    """

    values: Floats
    without: Floats


def manifolds(
    generated: Features, reference: Features, groups: NDArray[np.int64] | None = None, *, k: int = 3, k_density: int = 5
) -> Manifolds:
    """Precision and recall at ``k`` neighbours, density and coverage at ``k_density``; groups as `kernels.sums`."""
    generated, reference = checked("generated", generated), checked("reference", reference)
    same_width(generated, reference)
    groups = np.zeros(len(generated), np.int64) if groups is None else groups
    count = int(groups.max()) + 1
    sizes = np.bincount(groups, minlength=count)
    _check_k(k, len(generated) - (int(sizes.max()) if count > 1 else 0), "generated")
    _check_k(max(k, k_density), len(reference), "reference")
    centre = reference.mean(0, dtype=np.float64)
    x, y = generated.astype(np.float64) - centre, reference.astype(np.float64) - centre
    order = np.argsort(groups, kind="stable")  # so that a group is a run of columns
    x, groups = x[order], groups[order]
    edges = np.concatenate([[0], np.cumsum(sizes)])
    whole, partial = _radii(x, k, edges)
    near = _nearest(y, max(k, k_density))
    radius, radius_density = near[:, k - 1], near[:, k_density - 1]
    inside, within = np.zeros(len(x), bool), np.zeros(len(x))
    recalled, covered = np.zeros(1 + count), np.zeros(1 + count)
    for rows, squared in _pairs(y, x):
        inside |= (squared <= radius[rows, None] * _SURFACE).any(0)
        within += (squared <= radius_density[rows, None] * _SURFACE).sum(0)
        nearest = np.stack([squared[:, a:b].min(1, initial=np.inf) for a, b in itertools.pairwise(edges)], 1)
        held = nearest <= radius_density[rows, None] * _SURFACE  # (rows, G)
        recalled[0] += (squared <= whole * _SURFACE).any(1).sum()
        covered[0] += held.any(1).sum()
        for g in range(count if count > 1 else 0):
            hits = squared <= partial[:, g] * _SURFACE
            hits[:, edges[g] : edges[g + 1]] = False
            recalled[1 + g] += hits.any(1).sum()
            covered[1 + g] += np.delete(held, g, 1).any(1).sum()
    density = within / k_density
    values = np.array([inside.mean(), recalled[0] / len(y), density.mean(), covered[0] / len(y)])
    without = np.empty((count if count > 1 else 0, 4))
    for g in range(len(without)):
        rest = groups != g
        without[g] = inside[rest].mean(), recalled[1 + g] / len(y), density[rest].mean(), covered[1 + g] / len(y)
    return Manifolds(values, without)


def _check_k(k: int, images: int, whose: str) -> None:
    if not 1 <= k < images:
        raise InputError("k", k, f"a number of neighbours of at least 1 and below the {images} {whose} images")


def _radii(x: Floats, k: int, edges: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Squared distance to the k-th neighbour, (N,), and the same without each group, (N, G).

    The k nearest of each group are enough for both: no distance is computed twice.
    """
    count = len(edges) - 1
    whole, partial = np.empty(len(x)), np.empty((len(x), count))
    for rows, squared in _pairs(x, x, itself=True):
        near = np.full((len(squared), count, k), np.inf)
        for g, (a, b) in enumerate(itertools.pairwise(edges)):
            some = min(k, b - a)
            if some:
                near[:, g, :some] = np.partition(squared[:, a:b], some - 1, axis=1)[:, :some]
        whole[rows] = np.partition(near.reshape(len(near), -1), k - 1, axis=1)[:, k - 1]
        for g in range(count if count > 1 else 0):
            rest = np.delete(near, g, 1).reshape(len(near), -1)
            partial[rows, g] = np.partition(rest, k - 1, axis=1)[:, k - 1]
    return whole, partial


def _nearest(y: Floats, k: int) -> Floats:
    """Squared distances to the k nearest others, increasing, (N, k)."""
    found = np.empty((len(y), k))
    for rows, squared in _pairs(y, y, itself=True):
        found[rows] = np.sort(np.partition(squared, k - 1, axis=1)[:, :k], axis=1)
    return found


def _pairs(a: Floats, b: Floats, *, itself: bool = False) -> Iterator[tuple[slice, Floats]]:
    """Squared distances of rows of ``a`` to all of ``b``; those of an image to itself are infinite with ``itself``.

    What rounding leaves of a difference of equal rows is set to 0.
    """
    squares_a, squares_b = (a * a).sum(1), (b * b).sum(1)
    step = max(1, _BLOCK // max(1, len(b)))
    for start in range(0, len(a), step):
        rows = slice(start, min(start + step, len(a)))
        scale = squares_a[rows, None] + squares_b
        squared = scale - 2 * (a[rows] @ b.T)
        squared[squared < 1e-12 * scale] = 0
        if itself:
            squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = np.inf
        yield rows, squared


def precision_recall(*, generated: Features, reference: Features, k: int = 3) -> tuple[float, float]:
    """Improved precision and recall (Kynkäänniemi et al. 2019) of features (N, D).

    Precision: the share of generated images inside a ball around a reference image that reaches its k-th neighbour.
    Recall: the share of reference images inside such balls around generated ones. Both depend on the numbers of images;
    the field takes equal ones. Raises `InputError` for shapes that do not fit, or k too large.
    """
    found = manifolds(generated, reference, k=k, k_density=k).values
    return float(found[0]), float(found[1])


def density_coverage(*, generated: Features, reference: Features, k: int = 5) -> tuple[float, float]:
    """Density and coverage (Naeem et al. 2020) of features (N, D).

    Density: the mean number of reference balls that a generated image lies in, over k; 1 in expectation for equal
    distributions. Coverage: the share of reference balls with a generated image inside. Raises `InputError` as above.
    """
    found = manifolds(generated, reference, k=k, k_density=k).values
    return float(found[2]), float(found[3])


# --------------------------------------------------------------- memorisation


class Nearest:
    """The distance of each query to the nearest of images that come by in pieces."""

    def __init__(self, queries: Features) -> None:
        self._queries = queries.astype(np.float64)
        self._squared = np.full(len(queries), np.inf)

    def add(self, features: Features) -> None:
        """Take images (B, D) in."""
        same_width(self._queries, features)
        for rows, squared in _pairs(self._queries, features.astype(np.float64)):
            self._squared[rows] = np.minimum(self._squared[rows], squared.min(1, initial=np.inf))

    @property
    def distances(self) -> Floats:
        """(N,) Euclidean."""
        found: Floats = np.sqrt(self._squared)
        return found


@dataclass(frozen=True)
class Memorisation:
    """Whether generated images lie closer to the training images than fresh real ones do.

    nearer: probability that a generated image is nearer to its nearest training image than a held-out real image is to
    its own (ties count half): 0.5 for a model as good as reality, above for one that copies (Meehan, Chaudhuri &
    Dasgupta 2020). se: its standard error (DeLong et al. 1988). closest: share of generated images nearer than the
    nearest 5% of held-out ones are; 0.05 is expected. copies: share at a millionth of held-out images' median distance
    or less. generated, heldout: median distances. n, n_heldout: images asked.
    """

    nearer: float
    se: float
    closest: float
    copies: float
    generated: float
    heldout: float
    n: int
    n_heldout: int

    @property
    def suspected(self) -> bool:
        """Whether ``nearer`` is above 0.5, or ``closest`` above 0.05, by more than three standard errors."""
        spread = float(np.sqrt(0.05 * 0.95 * (1 / self.n + 1 / self.n_heldout)))
        return self.nearer - 3 * self.se > 0.5 or self.closest > 0.05 + 3 * spread

    @property
    def words(self) -> str:
        """One sentence."""
        told = (
            f"a generated image is nearer to the training set than a held-out one with probability {self.nearer:.3f} "
            f"± {self.se:.3f} (0.5 is expected); {self.closest:.1%} are nearer than the nearest 5% of held-out images"
        )
        if self.suspected:
            return f"repeats training images: {told}"
        if self.nearer + 3 * self.se < 0.1:  # noise would pass as well
            return f"too far from the training images to say whether they are repeated: {told}"
        return f"no sign of repeated training images: {told}"


def compare_distances(*, generated: Floats, heldout: Floats) -> Memorisation:
    """`Memorisation` from distances to the nearest training image, (N,) and (M,)."""
    for name, distances in (("generated", generated), ("heldout", heldout)):
        if distances.ndim != 1 or len(distances) < 2 or not np.isfinite(distances).all():
            raise InputError(name, distances.shape, "at least two distances to the nearest training image")
    ordered = np.sort(heldout)
    below, upto = np.searchsorted(ordered, generated, "left"), np.searchsorted(ordered, generated, "right")
    mine = 1 - (below + upto) / (2 * len(heldout))  # for each generated one: share of held-out ones farther out
    ordered = np.sort(generated)
    below, upto = np.searchsorted(ordered, heldout, "left"), np.searchsorted(ordered, heldout, "right")
    others = (below + upto) / (2 * len(generated))
    variance = mine.var(ddof=1) / len(mine) + others.var(ddof=1) / len(others)
    tiny = 1e-6 * float(np.median(heldout))
    return Memorisation(
        nearer=float(mine.mean()),
        se=float(np.sqrt(variance)),
        closest=float((generated < np.quantile(heldout, 0.05)).mean()),
        copies=float((generated <= tiny).mean()),
        generated=float(np.median(generated)),
        heldout=float(np.median(heldout)),
        n=len(generated),
        n_heldout=len(heldout),
    )


def memorisation(*, generated: Features, heldout: Features, training: Features) -> Memorisation:
    """Whether generated images repeat training images, judged by held-out real ones; features (N, D) all three.

    Raises `InputError` for shapes that do not fit.
    """
    generated, heldout = checked("generated", generated), checked("heldout", heldout)
    training = checked("training", training, least=1)
    same_width(generated, training)
    same_width(heldout, training)
    found = []
    for queries in (generated, heldout):
        nearest = Nearest(queries)
        nearest.add(training)
        found.append(nearest.distances)
    return compare_distances(generated=found[0], heldout=found[1])
