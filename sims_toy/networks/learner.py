"""The learner over ensembles of trained score networks: the same contract as the exact learner, nothing exact."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.special import ndtri
from scipy.stats import qmc
from torch import Tensor

from sims_core.devices import moved, present
from sims_core.errors import InputError
from sims_core.flow import VelocitySampler, by_sigma, by_time
from sims_core.guidance import FULL, Denoiser, GuidanceSchedule, scaled
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy.gaussian import Gaussian, Statistics
from sims_toy.gaussian import fit as moments_fit
from sims_toy.networks.ensemble import Ensemble
from sims_toy.networks.mlp import Mlp
from sims_toy.networks.rows import RowLearner
from sims_toy.networks.schedule import Training
from sims_toy.networks.settings import NetworkSettings
from sims_toy.networks.targets import PARAMETRISATIONS, CosineTime
from sims_toy.networks.training import train

#: The sampler for measurements that must have no sampler bias (relative error in the spread below 0.02 %).
UNBIASED = Sampler("rk4", 8)


@dataclass(frozen=True, eq=False)
class NetworkModel:
    """R models: ``base`` networks, or the SIMS combination with ``auxiliary`` networks at ``omega`` (R,).

    sampler: of denoisers, or of velocities in their own time, where the networks are some.
    """

    base: Ensemble
    sampler: Sampler | VelocitySampler
    auxiliary: Ensemble | None = None
    omega: Tensor | None = None
    guidance: GuidanceSchedule = FULL
    score_scale: float = 1.0
    time: CosineTime | None = None
    backend: str = "auto"

    @cached_property
    def denoise(self) -> Denoiser:
        """What the sampler sees: the denoiser, x (R, n, d), sigma zero-dim; or the velocity, t in place of sigma."""
        flows = isinstance(self.sampler, VelocitySampler)

        def view(networks: Ensemble) -> Denoiser:
            if flows:
                return by_sigma(networks.velocity(backend=self.backend))
            return networks.denoiser(time=self.time, backend=self.backend)

        field = view(self.base)
        if self.auxiliary is not None and self.omega is not None:
            field = self.guidance.denoiser(field, view(self.auxiliary), self.omega)
        return by_time(field) if flows else scaled(field, self.score_scale)

    def __call__(self, start: Tensor) -> Tensor:
        """Samples (R, n, d), float64, from N(0, I) draws on the networks' device.

        An adaptive sampler goes row by row, so that a row's steps are its own; a diverged one is NaN.
        """
        if self.sampler.steps:
            return self.sampler(self.denoise, start)
        rows = torch.full_like(start, torch.nan, dtype=torch.float64)
        bad = self.base.diverged
        if self.auxiliary is not None and self.omega is not None:
            bad = bad | (self.auxiliary.diverged & (self.omega != 0).to(bad.device))
        for i in (~bad).nonzero()[:, 0].tolist():
            one = self.take([i])
            rows[i : i + 1] = one.sampler(one.denoise, start[i : i + 1])
        return rows

    def take(self, rows: Sequence[int]) -> NetworkModel:
        """The models of these rows."""
        auxiliary = None if self.auxiliary is None else self.auxiliary.take(rows)
        omega = None if self.omega is None else self.omega[list(rows)]
        return replace(self, base=self.base.take(rows), auxiliary=auxiliary, omega=omega)

    @cached_property
    def output(self) -> Gaussian:
        """Mean and covariance of this model's samples, by quadrature over the sampler's start (R rows)."""
        base = self.base
        return push_moments(self.denoise, lambda _, start: self(start), len(base), base.mlp.dim, base.params.device)


def push_moments(
    denoiser: Denoiser,
    sampler: Callable[[Denoiser, Tensor], Tensor],
    rows: int,
    dim: int,
    device: torch.device | str = "cpu",
) -> Gaussian:
    """Mean and covariance of what a deterministic sampler makes of N(0, I), by quadrature; NaN for diverged rows.

    device: of the denoiser's networks.
    """
    nodes, weights = quadrature(dim)
    x = sampler(denoiser, moved(nodes, device).expand(rows, -1, -1)).cpu()
    # row by row and from copies: `gaussian.product` says why
    mean = torch.stack([weights @ row.clone() for row in x])
    centred = x - mean.unsqueeze(1)
    cov = torch.stack([(row * weights[:, None]).T @ row.clone() for row in centred])
    bad = ~(torch.isfinite(cov).all(dim=(1, 2)) & torch.isfinite(mean).all(1))
    nan = torch.tensor(float("nan"), dtype=torch.float64)
    return Gaussian(torch.where(bad[:, None], nan, mean), torch.where(bad[:, None, None], nan, cov))


def quadrature(dim: int) -> tuple[Tensor, Tensor]:
    """Nodes (P, d) and weights (P,) for averages over N(0, I).

    d = 2: 12 radii (Gauss-Laguerre in r^2 / 2) times 24 angles, exact for polynomials of degree 23. A network's flow
    is close to affine and smooth, so this beats 10^5 random points. Otherwise 2048 antithetic Sobol points.
    """
    if dim == 2:
        t, w = np.polynomial.laguerre.laggauss(12)
        angle = 2 * np.pi * (np.arange(24) + 0.5 * (np.arange(12)[:, None] % 2)) / 24
        r = np.sqrt(2 * t)[:, None]
        nodes = np.stack([r * np.cos(angle), r * np.sin(angle)], -1).reshape(-1, 2)
        weights = np.repeat(w / 24, 24)
        return torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum())

    half = ndtri(qmc.Sobol(dim, scramble=True, seed=0).random_base2(10))
    nodes = np.concatenate([half, -half])
    return torch.from_numpy(nodes), torch.full((len(nodes),), 1 / len(nodes), dtype=torch.float64)


class NetworkLearner(RowLearner[NetworkModel]):
    """`RowLearner` of score networks, or of velocities; they are on the settings' device.

    guidance: where the sampler of a guided model evaluates the auxiliary.
    """

    def __init__(
        self,
        sampler: Sampler | VelocitySampler,
        streams: Sequence[int] | np.ndarray,
        settings: NetworkSettings | None = None,
        *,
        temperature: float = 1.0,
        guidance: GuidanceSchedule | None = None,
    ) -> None:
        self.guidance = guidance or FULL
        if sampler.name == "exact":
            raise InputError("sampler", "exact", "networks need a numerical sampler, such as ddim:20 or rk4:8")
        super().__init__(sampler, streams, settings or NetworkSettings(), temperature)
        self.settings.check_target()
        if isinstance(sampler, VelocitySampler) and self.settings.parametrisation != "velocity":
            expected = "this sampler runs in a velocity's time: say velocity"
            raise InputError("network.parametrisation", self.settings.parametrisation, expected)
        self.device = present("device", self.settings.device)
        published = self.settings.parametrisation == "epsilon" and self.settings.time == "sampler"
        self._time = CosineTime(sampler.steps) if published else None

    def untrained(self, data: Tensor, *, seed: Seed) -> NetworkModel:
        """Networks at their initialisation, scaled to their data: the control that training must beat by far."""
        self._check(data)
        s = self.settings
        mlp = Mlp(data.shape[2], (s.width,) * s.layers, s.activation, s.linear_first)
        # row by row, as in `push_moments`: a row's scale must not depend on its neighbours
        std = torch.stack([row.double().var(0, correction=0).mean().sqrt() for row in data]).clamp(min=1e-3)
        std = torch.where(std.isfinite(), std, 1.0)  # a diverged row is not trained
        parametrisation = PARAMETRISATIONS[s.parametrisation][0]
        seeds = [seed.child(int(k)) for k in self.streams]
        made = Ensemble.initial(mlp, seeds, sigma_data=std, parametrisation=parametrisation, device=self.device)
        return self._model(made)

    def _draw(self, model: NetworkModel, n: ArrayLike, temperature: float, seed: Seed) -> Tensor:
        count = self._one_size(n)
        first, inverse = self._distinct(model)
        few = model.take(first)
        noise = np.stack(
            [seed.child(int(self.streams[i])).numpy().standard_normal((count, model.base.mlp.dim)) for i in first]
        )
        start = moved(torch.from_numpy(noise * math.sqrt(temperature)), model.base.params.device)
        return few(start).float().cpu()[inverse]

    def negatives(self, scale: float) -> Callable[..., Tensor]:
        """A `sample` whose score is scaled by ``scale``: > 1 seeks modes, < 1 seeks diversity (Neon's toy).

        Raises `InputError` for a sampler of velocities: a scaled score has none at t = 0.
        """
        if isinstance(self.sampler, VelocitySampler):
            raise InputError(
                "scale", scale, "flow matching starts at t = 0, where a scaled score has no velocity; give 1"
            )

        def draw(model: NetworkModel, n: ArrayLike, *, seed: Seed) -> Tensor:
            return self.sample(replace(model, score_scale=scale), n, seed=seed)

        return draw

    def parameters(self, model: NetworkModel) -> np.ndarray:
        """The base networks' parameters and, last, their sigma_data: (R, P + 1)."""
        base = model.base
        return torch.cat([base.params.double(), base.sigma_data[:, None]], 1).cpu().numpy()

    def _learn(self, base: Ensemble, data: Tensor, seeds: Sequence[Seed], settings: Training) -> Tensor:
        trained = train(base, data, seeds, settings, backend=self.settings.backend)
        return (trained.ema or trained.ensemble).params

    def _model(self, ensemble: Ensemble) -> NetworkModel:
        return NetworkModel(ensemble, self.sampler, time=self._time, backend=self.settings.backend)


def measured_eta(base: NetworkModel, auxiliary: NetworkModel, synthetic: Tensor) -> np.ndarray:
    """How far each auxiliary moved toward the synthetic set, (R,): the rule fixed before looking at W2.

    eta = <C_a - C_b, C_S - C_b> / |C_S - C_b|^2 with the covariances of base and auxiliary, both sampled without
    bias, and of the synthetic points (R, n, d).
    """
    sigma_data = float(base.base.sigma_data.mean())
    fair = replace(UNBIASED, sigma_data=sigma_data)
    c_b = replace(base, sampler=fair, time=None).output.cov
    c_a = replace(auxiliary, sampler=fair, time=None).output.cov
    toward = moments_fit(Statistics.of_points(synthetic.double())).cov - c_b
    return np.asarray((((c_a - c_b) * toward).sum((1, 2)) / (toward**2).sum((1, 2))).numpy())
