"""Scores of one dimension, linear in random features, at their population optimum: capacity as an estimator's bias.

F(x, sigma) = sum_k c_k phi_k(c_in x, ln(sigma) / 4) under EDM's preconditioning, with K sines of random frequency and
phase (Rahimi & Recht 2007) and one linear feature, the coefficients shared by all noise levels. The expected denoising
loss is quadratic, c^T H c - 2 g^T c, and is minimised exactly: no draws, no optimiser. Data are the quantiles of a
distribution at (i + 1/2) / n, (R, n, 1), each row with features of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri
from torch import Tensor

from sims_core.diffusion import LogNormal
from sims_core.guidance import extrapolate
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy.networks.targets import EdmParametrisation, level_table

#: Noise levels of the loss: their distribution, and as many evenly in ln(sigma) from `LOW` to `HIGH` for its average.
NOISE = LogNormal(-1.2, 1.6)
LEVELS, LOW, HIGH = 28, 0.004, 40.0
#: Nodes of the average over the noise (Gauss-Hermite).
NODES = 12


@dataclass(frozen=True)
class Features:
    """Random features of one row: frequency, weight of the noise level and phase, each (K,)."""

    frequency: Tensor
    level: Tensor
    phase: Tensor

    @classmethod
    def draw(cls, count: int, seed: Seed) -> Features:
        """``count`` features: standard deviations 3 of the frequency and 2 of the level's weight, uniform phases."""
        g = seed.numpy()
        draws = (g.normal(0, 3, count), g.normal(0, 2, count), g.uniform(-math.pi, math.pi, count))
        return cls(*(torch.from_numpy(d) for d in draws))

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        """Features (..., K + 1) of scaled inputs x (...) at time ln(sigma) / 4 (...)."""
        angle = x.unsqueeze(-1) * self.frequency + time.unsqueeze(-1) * self.level + self.phase
        return torch.cat([angle.sin() * math.sqrt(2 / len(self.phase)), x.unsqueeze(-1)], -1)


@dataclass(frozen=True, eq=False)
class FeatureModel:
    """R models: features and coefficients (K + 1,) a row. Guided models are coefficients too, since D is linear."""

    features: tuple[Features, ...]
    coefficients: tuple[Tensor, ...]
    sigma_data: float
    sampler: Sampler

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D of x (R, n, 1) at sigma zero-dim or broadcastable."""
        std, sigma = self.sigma_data, torch.as_tensor(sigma, dtype=torch.float64).expand(x.shape)
        norm = (sigma**2 + std**2).sqrt()
        inner = torch.stack(
            [
                (f((x[r, :, 0] / norm[r, :, 0]), sigma[r, :, 0].log() / 4) @ c)[:, None]
                for r, (f, c) in enumerate(zip(self.features, self.coefficients, strict=True))
            ]
        )
        return (std / norm) ** 2 * x + sigma * std / norm * inner


class FeatureLearner:
    """Learner (`sims_core.learner.Learner`) of `FeatureModel`, one row a stream, which draws its features.

    count: K. ridge: added to the loss as ridge |c|^2. time: of gradient flow from 0 on the loss, 0 for its optimum.
    warm: whether `finetune` starts from the model's coefficients (a time then; the optimum has no start).
    """

    def __init__(
        self,
        sampler: Sampler,
        streams: Sequence[int],
        count: int,
        *,
        sigma_data: float,
        ridge: float = 1e-9,
        time: float = 0.0,
        warm: bool = False,
    ) -> None:
        self.sampler, self.streams, self.count, self.sigma_data = sampler, list(streams), count, sigma_data
        self.ridge, self.time, self.warm = ridge, time, warm

    def fit(self, data: Tensor, *, seed: Seed, start: FeatureModel | None = None) -> FeatureModel:
        """The learner's estimate from quantiles (R, n, 1)."""
        drawn = tuple(Features.draw(self.count, seed.child("features", k)) for k in self.streams)
        nothing = tuple(torch.zeros(self.count + 1, dtype=torch.float64) for _ in drawn)
        model = start or FeatureModel(drawn, nothing, self.sigma_data, self.sampler)
        return self._trained(model, data, self.time)

    def finetune(self, model: FeatureModel, data: Tensor, budget: Any, *, seed: Seed) -> FeatureModel:
        """The estimate again, for ``budget`` times the base's time of gradient flow."""
        start = model if self.warm else replace(model, coefficients=tuple(0 * c for c in model.coefficients))
        return self._trained(start, data, self.time * float(budget))

    def rebuild(self, data: Tensor, budget: Any, *, seed: Seed) -> FeatureModel:
        """A worse model of the data, for autoguidance: other features, a quarter as many, at their optimum."""
        few = FeatureLearner(self.sampler, self.streams, max(2, self.count // 4), sigma_data=self.sigma_data)
        return few.fit(data, seed=seed)

    def sample(self, model: Any, n: Any, *, seed: Seed) -> Tensor:
        """The quantiles (R, n, 1) of what its sampler makes of N(0, 1), whose quantiles it moves: nothing is drawn."""
        start = torch.from_numpy(ndtri((np.arange(int(n)) + 0.5) / int(n))).view(1, -1, 1)
        made: Tensor = model.sampler(model.denoise, start.expand(len(self.streams), -1, -1))
        return made.sort(1).values

    points = sample

    def extrapolate(self, base: FeatureModel, auxiliary: FeatureModel, omega: Any) -> FeatureModel:
        """The SIMS model; of other features (autoguidance), a model of both."""
        both = zip(base.features, base.coefficients, auxiliary.features, auxiliary.coefficients, strict=True)
        made = [
            (f, extrapolate(c, d, float(omega)))
            if f is g
            else (_Joined(f, g, len(c)), torch.cat([(1 + omega) * c, -omega * d]))
            for f, c, g, d in both
        ]
        features, coefficients = zip(*made, strict=True)
        return replace(base, features=features, coefficients=coefficients)

    merge = extrapolate

    def perturb(self, base: FeatureModel, auxiliary: FeatureModel, *, seed: Seed) -> FeatureModel:
        """The base's coefficients moved as far as the auxiliary's are, in a random direction."""
        moved = []
        for k, c, a in zip(self.streams, base.coefficients, auxiliary.coefficients, strict=True):
            direction = torch.from_numpy(seed.child(k).numpy().standard_normal(len(c)))
            moved.append(c + direction * (a - c).norm() / direction.norm())
        return replace(base, coefficients=tuple(moved))

    def union(self, a: Tensor, b: Tensor) -> Tensor:
        """Both data sets together."""
        return torch.cat([a, b], 1)

    def advance(self, model: FeatureModel, base: FeatureModel, auxiliary: FeatureModel, omega: float) -> FeatureModel:
        """One step of the iteration theta + omega (b - G(theta))."""
        parts = zip(model.coefficients, base.coefficients, auxiliary.coefficients, strict=True)
        return replace(model, coefficients=tuple(m + omega * (b - a) for m, b, a in parts))

    def _trained(self, model: FeatureModel, data: Tensor, time: float) -> FeatureModel:
        made = []
        for features, start, points in zip(model.features, model.coefficients, data[:, :, 0], strict=True):
            quadratic, linear = normal_equations(features, points, self.sigma_data)
            values, vectors = torch.linalg.eigh(quadratic + self.ridge * torch.eye(len(linear), dtype=torch.float64))
            best = vectors @ (vectors.mT @ linear / values.clamp(min=1e-12))
            left = torch.exp(-values * time) if time else torch.zeros_like(values)
            made.append(best + vectors @ (left * (vectors.mT @ (start - best))))
        return replace(model, coefficients=tuple(made))


@dataclass(frozen=True)
class _Joined:
    """The features of two models side by side."""

    first: Features
    second: Features
    count: int

    def __call__(self, x: Tensor, time: Tensor) -> Tensor:
        return torch.cat([self.first(x, time), self.second(x, time)], -1)


def normal_equations(features: Any, points: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """H (K + 1, K + 1) and g (K + 1,) of the expected loss on points (n,), averaged over levels and noise."""
    z, weight = np.polynomial.hermite_e.hermegauss(NODES)
    noise = torch.from_numpy(z)
    log = torch.linspace(math.log(LOW), math.log(HIGH), LEVELS, dtype=torch.float64)
    density = torch.softmax(-(((log - NOISE.mean) / NOISE.std) ** 2) / 2, 0)
    table = level_table(EdmParametrisation(), log.exp()[None], torch.tensor([sigma_data], dtype=torch.float64))[0]
    size = features.count if isinstance(features, _Joined) else len(features.phase) + 1
    quadratic, linear = torch.zeros(size, size, dtype=torch.float64), torch.zeros(size, dtype=torch.float64)
    for (sigma, c_in, time, p, q), share in zip(table, density, strict=True):
        x = c_in * (points[:, None] + sigma * noise)
        phi = features(x, time.expand(x.shape)).flatten(0, 1)
        target = (p * points[:, None] + q * noise).flatten()
        each = torch.from_numpy(weight / weight.sum() / len(points)) * share
        weighted = phi * each.expand(x.shape).reshape(-1, 1)
        quadratic += weighted.mT @ phi
        linear += weighted.mT @ target
    return quadratic, linear
