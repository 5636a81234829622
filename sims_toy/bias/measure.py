"""What a model's samples are held against: measures fine enough for trained networks, each with its floor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.special import ndtr
from torch import Tensor

from sims_core.guidance import Denoiser
from sims_core.seeds import Seed
from sims_toy.datasets import Distribution, Mixture, parse_real
from sims_toy.networks.targets import NoiseLevels, UniformAngle, training_levels

Array = NDArray[np.float64]

#: Points by which a model is measured, draws behind the truth's quantiles, directions of slices (one on the line), and
#: places on each where distribution functions are compared.
POINTS, TRUTH, DIRECTIONS, GRID = 100_000, 1_000_000, 32, 512
#: Points behind the support, and the share of real points that count as off it: what lies farther from its nearest
#: neighbour among them than all but this share of further real points do.
SUPPORT, OFF = 100_000, 0.001
#: Noisy points of the denoising loss; where the score has no closed form, real points behind its optimum, and the least
#: noise, in spreads, at which they are dense enough.
NOISY, REFERENCE, FINEST = 8192, 20_000, 0.05


def directions(dim: int) -> Array:
    """Unit vectors (DIRECTIONS, d): evenly spaced in the plane, one on the line, drawn once and for all above."""
    if dim == 1:
        return np.ones((1, 1))
    if dim == 2:
        angle = math.pi * np.arange(DIRECTIONS) / DIRECTIONS
        return np.stack([np.cos(angle), np.sin(angle)], 1)
    drawn = Seed(0).child("directions", dim).numpy().standard_normal((DIRECTIONS, dim))
    return np.asarray(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


@dataclass(frozen=True)
class Truth:
    """A distribution as models are held against it.

    mixture: its score, where it is known. noise: of the denoising loss, the training's.
    """

    draw: Callable[[int, Seed], Array]
    spread: float
    dim: int
    mixture: Mixture | None = None
    noise: NoiseLevels = field(default_factory=UniformAngle)

    @classmethod
    def of(cls, real: Distribution) -> Truth:
        """That of a data set."""
        return cls(real.draw, real.spread, real.dim, real.mixture)

    @cached_property
    def quantiles(self) -> Array:
        """Of every slice, at (i + 1/2) / POINTS: (DIRECTIONS, POINTS). On the line a mixture's own."""
        if self.dim == 1 and self.mixture is not None:
            line = np.linspace(-8, 8, 200_001) * self.spread
            means, weights = np.asarray(self.mixture.means)[:, 0], np.asarray(self.mixture.weights)
            cdf = sum(w * ndtr((line - m) / self.mixture.std) for m, w in zip(means, weights, strict=True))
            return np.interp((np.arange(POINTS) + 0.5) / POINTS, cdf, line)[None]
        points = self.draw(TRUTH, Seed(0).child("truth"))
        lines = directions(self.dim)
        each = TRUTH // POINTS
        return np.stack([np.sort(points @ line)[each // 2 :: each] for line in lines])

    @cached_property
    def support(self) -> tuple[cKDTree, float]:
        """Real points as a tree, and the distance to it beyond which a point is off the support."""
        tree = cKDTree(self.draw(SUPPORT, Seed(0).child("support")))
        others = self.draw(SUPPORT, Seed(0).child("further"))
        return tree, float(np.quantile(tree.query(others)[0], 1 - OFF))

    @cached_property
    def _grid(self) -> tuple[Array, Array]:
        """Places on every slice where distribution functions are compared, and the truth's, (DIRECTIONS, GRID)."""
        low, high = self.quantiles[:, 0], self.quantiles[:, -1]
        reach = 0.25 * (high - low)
        places = np.linspace(low - reach, high + reach, GRID, axis=1)
        return places, np.stack([_cdf(q, at) for q, at in zip(self.quantiles, places, strict=True)])

    def distances(self, points: Array, *, drawn: bool = True) -> tuple[float, float]:
        """Sliced W2 and the squared energy distance, averaged over slices, of points (n, d) to the truth.

        The latter is twice the integral of (F - P)^2, unbiased by what the draw of F adds; drawn: whether it is one
        (quantiles are not). Source: Szekely & Rizzo 2013.
        """
        n = len(points)
        at, grid = (np.arange(n) + 0.5) / n, (np.arange(POINTS) + 0.5) / POINTS
        places, truth = self._grid
        w2 = energy = 0.0
        for k, line in enumerate(directions(self.dim)):
            own = np.sort(points @ line)
            known = self.quantiles[k] if n == POINTS else np.interp(at, grid, self.quantiles[k])
            w2 += float(((own - known) ** 2).mean())
            cdf = _cdf(own, places[k])
            square = (cdf - truth[k]) ** 2 - drawn * cdf * (1 - cdf) / max(n - 1, 1)
            energy += 2 * float(square.mean()) * float(places[k, -1] - places[k, 0])
        return math.sqrt(w2 / len(places)), energy / len(places)

    def off_support(self, points: Array) -> float:
        """Share of points off the support; of real points it is `OFF`."""
        tree, limit = self.support
        return float((tree.query(points, distance_upper_bound=limit)[0] > limit).mean())

    @cached_property
    def noisy(self) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy points (NOISY, d), their levels (NOISY, 1), and the denoiser's optimum there."""
        clean = torch.from_numpy(self.draw(NOISY, Seed(0).child("clean")))
        sigma = training_levels(self.noise, torch.tensor([self.spread]), NOISY)[0, :, None]  # points are in no order
        sigma = sigma if self.mixture else sigma.clamp(min=FINEST * self.spread)
        noise = torch.randn(clean.shape, generator=Seed(0).child("noise").torch(), dtype=torch.float64)
        x = clean + sigma * noise
        return x, sigma, self.optimum(x, sigma)

    def optimum(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[y | x] for x (n, d) at sigma (n, 1): closed form for a mixture, else over `REFERENCE` real points."""
        if self.mixture is None:
            centres, std = torch.from_numpy(self.draw(REFERENCE, Seed(0).child("reference"))), 0.0
            weights = torch.full((len(centres),), 1 / len(centres), dtype=torch.float64)
        else:
            centres, std = torch.tensor(self.mixture.means, dtype=torch.float64), self.mixture.std
            weights = torch.tensor(self.mixture.weights, dtype=torch.float64)
        wide = sigma**2 + std**2
        parts = zip(torch.split(x, 512), torch.split(wide, 512), strict=True)
        mean = torch.cat(
            [torch.softmax(weights.log() - torch.cdist(a, centres) ** 2 / (2 * v), 1) @ centres for a, v in parts]
        )
        return mean + std**2 / wide * (x - mean)

    def loss(self, denoiser: Denoiser, rows: int) -> Array:
        """EDM-weighted denoising loss over the optimum's, (rows,), of a denoiser of x (rows, n, d): E w |D - D*|^2."""
        x, sigma, optimum = self.noisy
        found = denoiser(x.expand(rows, -1, -1), sigma.expand(rows, -1, -1))
        weight = (sigma**2 + self.spread**2) / (sigma * self.spread) ** 2
        return np.asarray((weight * (found - optimum) ** 2).sum(2).mean(1).numpy())


def _cdf(ordered: Array, places: Array) -> Array:
    """The share of ordered values at or below each place."""
    return np.searchsorted(ordered, places, side="right") / len(ordered)


@lru_cache(maxsize=4)
def truth(data: str) -> Truth:
    """That of a data set by name; what it is held against is made once in a process."""
    return Truth.of(parse_real(data))
