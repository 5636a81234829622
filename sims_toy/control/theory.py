r"""What score extrapolation does to class shares: two laws, the samplers between them, and the truth of two classes.

A base with class shares p and an auxiliary with shares a, of the same well separated classes (means mu_k), are
extrapolated: D = (1 + omega) D_base - omega D_aux.

*The transport law.* While the noise exceeds the distance between the classes, the posterior weights are nearly the
prior ones, D = sum_k p_k mu_k, so the extrapolated denoiser is that of the weights

    p + omega (p - a).                                                                                        (linear)

For two classes with equal spreads it is exact where it gives 1/2: at the midpoint both posteriors are the prior weights
at every noise level, so the extrapolated drift along the line between the classes vanishes there, and the midpoint
parts the two halves of the noise.

*The density law.* At every noise level the extrapolated score is that of the density p_base^(1+omega) / p_aux^omega.
Where the classes no longer overlap, its weights are

    p^(1+omega) / a^omega, normalised,                                                                     (geometric)

because the classes' own densities cancel. But those densities are not one another's diffusions, so the ODE does not
carry one into the next; a sampler that equilibrates at every level (annealed Langevin dynamics) does end there.

To first order in a - p both are the same: the log-odds move by omega (log p - log a), the shares by omega (p - a).
Beyond it a deterministic sampler (the probability-flow ODE) follows neither: it lies near the transport law where
shares are moved toward equality, and near the density law where they are moved apart or the classes lie unevenly
(`CASES`). For two classes of equal spread its share is the mass of the start's noise on one side of a separatrix, one
ordinary differential equation (`separatrix_share`).

Bradley and Nakkiran (arXiv 2408.09000) show that neither DDIM nor DDPM samples the extrapolated density under
classifier-free guidance, and that a predictor and corrector of it does; arXiv 2502.07849 and 2509.22007 say how guided
flows move mass between modes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import solve_ivp
from scipy.special import ndtri
from scipy.stats import norm, qmc
from torch import Tensor

from sims_core.control import total_variation
from sims_core.errors import InputError
from sims_core.guidance import Denoiser, guided
from sims_core.sampling import Sampler, edm_sigmas
from sims_core.seeds import Seed
from sims_toy.datasets import Mixture

Array = NDArray[np.float64]

#: A point further than this many standard deviations from every class is outside (a real one with p = 3e-4 in 2-D).
FAR = 4.0


def mixture_denoiser(mixture: Mixture, weights: ArrayLike) -> Denoiser:
    """E[y | x] of the mixture's components in other ``weights`` (K,), in closed form: x (..., d), sigma zero-dim."""
    means = torch.tensor(mixture.means, dtype=torch.float64)
    log_weights = torch.log(torch.as_tensor(np.asarray(weights, dtype=np.float64)))

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        variance = mixture.std**2 + sigma**2
        squared = ((x.unsqueeze(-2) - means) ** 2).sum(-1)
        centre = torch.softmax(log_weights - squared / (2 * variance), -1) @ means
        return centre + mixture.std**2 / variance * (x - centre)

    return denoise


@dataclass(frozen=True)
class Sampled:
    """What a sampler made: class shares (K,), each class's mean displacement (K,) in standard deviations (NaN where it
    is empty), and the share of points outside all classes (`FAR`)."""

    shares: Array
    displacement: Array
    outside: float


def describe(mixture: Mixture, points: Array) -> Sampled:
    """Shares, displacements and outliers of points (n, d), by the Bayes classifier of equal weights (the nearest)."""
    means = np.asarray(mixture.means)
    distance = np.sqrt(((points[:, None] - means) ** 2).sum(-1))
    label = distance.argmin(1)
    counts = np.bincount(label, minlength=len(means))
    moved = [np.linalg.norm(points[label == k].mean(0) - m) if counts[k] else np.nan for k, m in enumerate(means)]
    outside = float((distance.min(1) > FAR * mixture.std).mean())
    return Sampled(counts / len(points), np.array(moved) / mixture.std, outside)


def transport(
    mixture: Mixture, base: ArrayLike, auxiliary: ArrayLike, omega: float, sampler: Sampler, points: int = 2**12
) -> Sampled:
    """Exact mixture scores through the shared sampler, from ``points`` antithetic Sobol points."""
    half = ndtri(qmc.Sobol(len(mixture.means[0]), scramble=True, seed=0).random(points // 2))
    noise = torch.from_numpy(np.concatenate([half, -half]))
    denoiser = guided(mixture_denoiser(mixture, base), mixture_denoiser(mixture, auxiliary), omega)
    return describe(mixture, sampler(denoiser, noise).numpy())


def separatrix_share(mixture: Mixture, base: ArrayLike, auxiliary: ArrayLike, omega: float) -> float:
    """The probability-flow ODE's share of the first of two classes, to the precision of an integration.

    Along the line between the classes, u = +-m at std s, the extrapolated flow in the variance v = s^2 + sigma^2 is
    du / d ln v = (u - m r(u)) / 2 with r = (1 + omega) tanh(m u / v + l_base) - omega tanh(m u / v + l_aux), l half the
    log-odds. Backward in time all paths between the classes meet the separatrix; what the noise holds beyond it goes
    to the first class. Raises `InputError` for another number of classes.
    """
    if len(mixture.means) != 2:
        raise InputError("mixture", len(mixture.means), "the separatrix is one of two classes")
    m = float(np.linalg.norm(np.subtract(*np.asarray(mixture.means)))) / 2
    odds = [float(np.log(w[0] / w[1]) / 2) for w in (np.asarray(base, float), np.asarray(auxiliary, float))]

    def flow(log_v: float, u: Array) -> Array:
        at = m * u / np.exp(log_v)
        return np.asarray((u - m * ((1 + omega) * np.tanh(at + odds[0]) - omega * np.tanh(at + odds[1]))) / 2)

    span = np.log([mixture.std**2, 1e10 * (m**2 + mixture.std**2)])
    found = solve_ivp(flow, span, [0.0], method="LSODA", rtol=1e-9, atol=1e-12)
    return float(norm.sf(found.y[0, -1] / np.exp(span[1] / 2)))


@dataclass(frozen=True)
class Case:
    """Classes, shares of base and auxiliary, and a strength: what the laws are tried on besides the study's mixture."""

    name: str
    mixture: Mixture
    base: tuple[float, ...]
    auxiliary: tuple[float, ...]
    omega: float = 1.0


def _line(*places: float) -> tuple[tuple[float, float], ...]:
    return tuple((place, 0.0) for place in places)


_PAIR = Mixture(_line(-2.0, 2.0), 0.2)
_ROW = Mixture(_line(-2.0, 0.0, 2.0), 0.2, (1 / 3,) * 3)
_TREE = Mixture(((0.0, 0.5), (0.0, -0.5), (10.0, 0.0)), 0.05, (1 / 3,) * 3)
#: Toward equality, away from it, and classes that lie unevenly: three on a line, two near and one far.
CASES = (
    *(Case("two classes, toward equality", _PAIR, (p, 1 - p), (a, 1 - a), w)
      for p, a, w in ((0.8, 0.95, 1.0), (0.8, 0.95, 2.0), (0.6, 0.8, 0.5), (0.8, 0.9, 2.0))),
    *(Case("two classes, away from it", _PAIR, (p, 1 - p), (a, 1 - a), w)
      for p, a, w in ((0.6, 0.4, 1.0), (0.6, 0.4, 2.0), (0.8, 0.7, 1.0), (0.6, 0.5, 2.0))),
    Case("three on a line", _ROW, (0.4, 0.2, 0.4), (0.3, 0.4, 0.3)),
    Case("three on a line", _ROW, (0.5, 0.3, 0.2), (0.4, 0.4, 0.2)),
    Case("two near, one far", _TREE, (0.4, 0.2, 0.4), (0.2, 0.2, 0.6)),
    Case("two near, one far", _TREE, (0.5, 0.2, 0.3), (0.4, 0.3, 0.3)),
)  # fmt: skip


def langevin(
    mixture: Mixture,
    base: ArrayLike,
    auxiliary: ArrayLike,
    omega: float,
    *,
    seed: Seed,
    points: int = 1000,
    levels: int = 60,
    steps: int = 30,
) -> Sampled:
    """Exact mixture scores through annealed Langevin dynamics: at every noise level, ``steps`` corrector steps.

    Step size .2 sigma^2, EDM's levels from 80 to a tenth of the classes' spread (arXiv 1907.05600, Algorithm 1).
    """
    generator = seed.torch()
    denoiser = guided(mixture_denoiser(mixture, base), mixture_denoiser(mixture, auxiliary), omega)
    x = 80 * torch.randn(points, len(mixture.means[0]), generator=generator, dtype=torch.float64)
    for sigma in edm_sigmas(levels, sigma_min=mixture.std / 10)[:-1]:
        size = 0.2 * sigma**2
        for _ in range(steps):
            noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
            x = x + size / 2 * (denoiser(x, sigma) - x) / sigma**2 + size.sqrt() * noise
    return describe(mixture, denoiser(x, sigma).numpy())


def best_omega(
    mixture: Mixture,
    base: ArrayLike,
    auxiliary: ArrayLike,
    target: ArrayLike,
    sampler: Sampler,
    omegas: Sequence[float],
) -> tuple[float, float, Sampled]:
    """The omega whose exact-score shares are nearest to the target, that distance, and what was sampled.

    omegas: an even grid, looked through first; then a fifth of its step around the best.
    """
    step = (omegas[1] - omegas[0]) / 5

    def nearest(grid: Sequence[float]) -> tuple[float, float, Sampled]:
        made = [(w, transport(mixture, base, auxiliary, w, sampler, 2**11)) for w in grid]
        far = [float(total_variation(m.shares, target)) for _, m in made]
        best = int(np.argmin(far))
        return made[best][0], far[best], made[best][1]

    centre = nearest(omegas)[0]
    return nearest([max(0.0, round(centre + i * step, 6)) for i in range(-4, 5)])
