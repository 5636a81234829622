"""Guidance of exact densities: samples of p proportional to p_base^(1 + omega) / p_aux^omega.

SIMS extrapolates scores noise level by noise level; a model whose likelihood is exact has one density, of which the
same line is taken, s = (1 + omega) s_base - omega s_aux. For Gaussians that is the precision
(1 + omega) / v_b - omega / v_a, where the probability flow of SIMS gives the variance v_b^(1 + omega) / v_a^omega: they
differ at second order in v_a - v_b. There are two ways to draw, both with their diagnostics, both refused where these
say that the draws are not of p (`Drawn.degenerate`):

- `importance`: draws of the base are resampled in proportion to (p_base / p_aux)^omega
- `annealed_langevin`: omega grows in stages; each reweights the particles and moves them by Langevin steps that are
  accepted or rejected (MALA: Roberts & Tweedie 1996; the weights: Neal 2001, arXiv physics/9803008; resampling between
  stages: Del Moral et al. 2006)

Particles are (R, N, d): R rows that have nothing to do with one another, each with its own generator.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from sims_core.errors import InputError, whole

LogDensity: TypeAlias = Callable[[Tensor], Tensor]
"""Points (R, N, d), float64, to log p (R, N), up to a constant and differentiable."""

#: Least share of the particles that the weights may leave, at every stage, and least accepted share of Langevin steps.
LEAST_EFFECTIVE, LEAST_ACCEPTED = 0.05, 0.1
#: Above it the mean of importance weights converges too slowly to be of use (Vehtari et al. 2024, arXiv 1507.02646).
MOST_TAIL = 0.7


@dataclass(frozen=True)
class Drawn:
    """Points (R, n, d) and what they are worth, one number per row (R,).

    effective: effective sample size (sum w)^2 / sum w^2 over the number of particles, the least of all stages. tail:
    `tail_index` of the importance weights. acceptance: of Langevin steps in the last stage; 1 where there are none.
    finite: whether the target has finite mass along rays; not asked of importance, whose tail index says so.
    """

    points: Tensor
    effective: Tensor
    tail: Tensor
    acceptance: Tensor
    finite: Tensor

    @property
    def degenerate(self) -> Tensor:
        """Rows (R,) whose points are not draws of the target."""
        sound = (self.effective >= LEAST_EFFECTIVE) & (self.acceptance >= LEAST_ACCEPTED) & (self.tail <= MOST_TAIL)
        return ~(sound & self.finite & self.points.isfinite().all(dim=(1, 2)))

    def checked(self, omega: Tensor) -> Drawn:
        """Itself. Raises `InputError` naming the first omega whose row is degenerate, and by what."""
        for row in self.degenerate.nonzero()[:1, 0].tolist():
            why = f"effective sample size {100 * float(self.effective[row]):.2g} % of the particles"
            if not self.finite[row]:
                why = "p_base^(1 + omega) / p_aux^omega has no finite mass"
            elif self.tail[row] > MOST_TAIL:
                why += f", tail index {float(self.tail[row]):.2f} (at most {MOST_TAIL})"
            elif self.acceptance[row] < LEAST_ACCEPTED:
                why += f", {100 * float(self.acceptance[row]):.2g} % of the Langevin steps accepted"
            advice = "give a smaller omega, more particles, or more stages of langevin"
            raise InputError("omega", f"{float(omega[row]):g}", f"the weights degenerate ({why}); {advice}")
        return self


def effective(log_weights: Tensor) -> Tensor:
    """Effective sample size over the number of particles, (R,), of log weights (R, N); 0 where none is finite."""
    share = torch.softmax(log_weights, 1)
    return (1 / (share.square().sum(1) * log_weights.shape[1])).nan_to_num(0.0)


def tail_index(log_weights: Tensor) -> Tensor:
    """Hill's estimate of k, with P(w > u) ~ u^(-1/k), (R,), from the largest min(N / 5, 3 sqrt N) weights.

    The weights have a mean for k < 1 and a variance for k < 1/2. For Gaussians k = omega (v_b / v_a - 1).
    """
    n = log_weights.shape[1]
    top = log_weights.topk(max(1, math.ceil(min(n / 5, 3 * math.sqrt(n)))) + 1, dim=1).values
    return (top[:, :-1] - top[:, -1:]).mean(1)


def _resampled(points: Tensor, log_weights: Tensor, n: int, generators: Sequence[np.random.Generator]) -> Tensor:
    """n points (R, n, d) in proportion to the weights (R, N): systematic resampling."""
    shifts = torch.tensor([g.random() for g in generators], dtype=torch.float64)[:, None]
    places = ((shifts + torch.arange(n, dtype=torch.float64)) / n).to(points.device)
    ends = torch.softmax(log_weights, 1).nan_to_num(1 / log_weights.shape[1]).cumsum(1)
    chosen = torch.searchsorted(ends, places * ends[:, -1:]).clamp(max=log_weights.shape[1] - 1)
    return points.gather(1, chosen[..., None].expand(-1, -1, points.shape[2]))


def importance(
    points: Tensor, log_ratio: Tensor, omega: Tensor, n: int, generators: Sequence[np.random.Generator]
) -> Drawn:
    """n of the base's draws ``points`` (R, N, d), resampled in proportion to exp(omega log_ratio).

    log_ratio: log p_base - log p_aux there, (R, N). omega: (R,). generators: one per row. Several times as many
    particles as points keep the same point from being drawn often.
    """
    weights = omega[:, None] * log_ratio.to(torch.float64)
    one = torch.ones_like(omega)
    drawn = _resampled(points, weights, n, generators)
    return Drawn(drawn, effective(weights), tail_index(weights), one, one.bool())


def annealed_langevin(
    log_base: LogDensity,
    log_auxiliary: LogDensity,
    points: Tensor,
    omega: Tensor,
    generators: Sequence[np.random.Generator],
    *,
    stages: int = 20,
    steps: int = 5,
) -> Drawn:
    """The base's draws ``points`` (R, N, d) moved to the target in ``stages`` of ``steps`` Langevin steps each.

    omega: (R,). generators: one per row. The step's length follows its acceptance, toward MALA's optimal .574. The
    tail index is not asked: only weights from one stage to the next are taken. Raises `InputError` for no stages.
    """
    whole("stages", stages, 1)
    x = points.to(torch.float64)
    shape, ones = x.shape, torch.ones_like(omega)
    centre = x.mean(1, keepdim=True)
    spread = (x - centre).square().mean((1, 2)).sqrt()
    log_weights, least, length, accepted = x.new_zeros(shape[:2]), ones.clone(), spread.clone(), ones.clone()
    for stage in range(1, stages + 1):
        ratio = log_base(x) - log_auxiliary(x)
        log_weights = log_weights + (omega / stages)[:, None] * ratio.detach()
        share = effective(log_weights)
        least = torch.minimum(least, share)
        poor = (share < 0.5) if stage < stages else torch.ones_like(share, dtype=torch.bool)
        x = torch.where(poor[:, None, None], _resampled(x, log_weights, shape[1], generators), x)
        log_weights = torch.where(poor[:, None], 0.0, log_weights)
        strength = (omega * stage / stages)[:, None]

        def target(at: Tensor, strength: Tensor = strength) -> Tensor:
            return (1 + strength) * log_base(at) - strength * log_auxiliary(at)

        rates = []
        for _ in range(steps):
            x, rate = _langevin(target, x, length, generators)
            length = length * torch.exp(rate - 0.574)
            rates.append(rate)
        accepted = torch.stack(rates).mean(0) if rates else accepted
    return Drawn(x, least, torch.zeros_like(omega), accepted, _finite(target, centre, spread))


def _langevin(
    target: LogDensity, x: Tensor, length: Tensor, generators: Sequence[np.random.Generator]
) -> tuple[Tensor, Tensor]:
    """One Metropolis-adjusted Langevin step of every particle (R, N, d), and the share (R,) that was accepted."""
    draws = np.stack([g.standard_normal(x.shape[1:]) for g in generators])
    noise = torch.from_numpy(draws).to(x)
    coins = torch.from_numpy(np.stack([g.random(x.shape[1]) for g in generators])).to(x)
    step = length[:, None, None]
    here, slope = _with_slope(target, x)
    proposed = x + step**2 / 2 * slope + step * noise
    there, back = _with_slope(target, proposed)
    returning = (x - proposed - step**2 / 2 * back) / step
    log_ratio = there - here + (noise.square() - returning.square()).sum(2) / 2
    yes = coins.log() < log_ratio  # a comparison with NaN is false: the particle stays
    return torch.where(yes[..., None], proposed, x), yes.double().mean(1)


def _with_slope(target: LogDensity, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        value = target(at)
        (slope,) = torch.autograd.grad(value.sum(), at)
    return value.detach(), slope


def _finite(target: LogDensity, centre: Tensor, spread: Tensor, rays: int = 64) -> Tensor:
    """Whether a target falls faster than r^-d along rays from 10 to 20 spreads away from the centre, (R,)."""
    dim = centre.shape[2]
    directions = torch.from_numpy(np.random.default_rng(0).standard_normal((rays, dim))).to(centre)
    directions = directions / directions.norm(dim=1, keepdim=True) * spread[:, None, None] * math.sqrt(dim)
    with torch.no_grad():
        near, far = (target(centre + radius * directions) for radius in (10.0, 20.0))
    return (far < near - dim * math.log(2)).all(1)
