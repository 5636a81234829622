"""Models that are linear in x at every noise level, as estimators train them (`sims_toy.estimators`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from sims_core.diffusion import EDM, LogNormal
from sims_core.errors import InputError
from sims_toy.gaussian import Gaussian, Rows, product, row_sum


@dataclass(frozen=True, eq=False)
class LinearDenoiser(Rows):
    """R models D(x, sigma) = m + (x - m) W(sigma), x in rows: a linear map at every noise level, no Gaussian's.

    mean: (R, d). gain: ``sigma -> W`` (R, d, d), sigma zero-dim.
    """

    gain: Callable[[Tensor], Tensor]

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """D(x, sigma) for x (R, points, d), sigma zero-dim."""
        mean = self.mean.unsqueeze(1)
        return mean + product(x - mean, self.gain(sigma))

    def at(self, levels: list[float]) -> LinearDenoiser:
        """The same model at these noise levels only, without what it was made from; other levels raise `InputError`."""
        kept = {level: self.gain(torch.tensor(level, dtype=torch.float64)) for level in levels}

        def gain(sigma: Tensor) -> Tensor:
            if float(sigma) not in kept:
                raise InputError(
                    "sigma", float(sigma), "a model that others start from is kept at its sampler's levels"
                )
            return kept[float(sigma)]

        return LinearDenoiser(self.mean, gain)


def between(a: Gaussian | LinearDenoiser, b: Gaussian | LinearDenoiser, share: Tensor) -> LinearDenoiser:
    """The model at ``share`` (R,) of the way from a to b, in means and denoisers; beyond them outside [0, 1]."""
    return LinearDenoiser(
        a.mean + share[:, None] * (b.mean - a.mean),
        lambda sigma: a.gain(sigma) + share[:, None, None] * (b.gain(sigma) - a.gain(sigma)),
    )


@lru_cache
def _normal_equations(count: int, edm: EDM) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What diagonalises c A_1 + A_0: U (K, K), theta, U^T b_1 and U^T b_0 (K,), with U^T A_0 U = I."""
    nodes, weights = training_levels()
    powers = _powers(nodes, count)
    skip, seen = edm.c_skip(nodes), edm.c_in(nodes)
    a1 = torch.einsum("s,si,sj->ij", weights * seen**2, powers, powers)
    a0 = torch.einsum("s,si,sj->ij", weights * (seen * nodes) ** 2, powers, powers)
    theta, turned = eigh(a1.numpy(), a0.numpy())
    u = torch.from_numpy(turned)
    out = weights * seen / edm.c_out(nodes)
    return u, torch.from_numpy(theta), u.T @ powers.T @ (out * (1 - skip)), -u.T @ powers.T @ (out * skip * nodes**2)


def least_loss(values: Tensor, sigma: Tensor, count: int, edm: EDM) -> Tensor:
    """F (R, d) at ``sigma`` of the estimator capacity:``count``, trained on data with variances ``values`` (R, d)."""
    u, theta, b1, b0 = _normal_equations(count, edm)
    features = _powers(sigma.double().reshape(1), count)[0] @ u
    each = values.unsqueeze(-1)
    return row_sum((features * b1 * each + features * b0) / (1 + theta * each))


def _powers(sigma: Tensor, count: int) -> Tensor:
    """Powers 0, 1, ... (..., count) of (ln sigma - mean) / std of EDM's training levels."""
    level = (sigma.log() - LogNormal.mean) / LogNormal.std
    return torch.stack([level**k for k in range(count)], -1)


def training_levels(points: int = 64) -> tuple[Tensor, Tensor]:
    """Noise levels and weights (points,) that integrate over EDM's training distribution (Gauss-Hermite)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    return LogNormal().from_normal(torch.from_numpy(nodes)), torch.from_numpy(weights / weights.sum())
