"""The learner over ensembles of trained score networks: the same contract as the exact learner, nothing exact.

R rows are independent networks. A row's result depends on its stream and its data alone, so rows that agree in both
(all omegas of one trial, in the first generation) are trained once and shared.
"""

from __future__ import annotations

import hashlib
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
from sims_core.guidance import FULL, Denoiser, GuidanceSchedule, extrapolate, scaled
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy.datasets import Distribution
from sims_toy.exact import bounded_distance
from sims_toy.gaussian import Gaussian, Statistics
from sims_toy.gaussian import fit as moments_fit
from sims_toy.networks.ensemble import Ensemble
from sims_toy.networks.mlp import Mlp
from sims_toy.networks.schedule import Training
from sims_toy.networks.settings import NetworkSettings
from sims_toy.networks.targets import PARAMETRISATIONS, CosineTime
from sims_toy.networks.training import train
from sims_toy.wasserstein import draw_real

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
        for i in (~self.base.diverged).nonzero()[:, 0].tolist():
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


class NetworkLearner:
    """Learner (`sims_core.learner.Learner`) over R rows of networks. Data are points (R, n, d), float32, on the CPU;
    networks are on the settings' device.

    streams: one integer a row; rows with equal streams and equal data share their draws and their training.
    temperature: the sampling bias lambda_s of `sample` (MAD, arXiv 2307.01850): the sampler starts from its noise
    times sqrt(lambda_s), which gives N(mu, lambda_s S) where the model is a Gaussian. guidance: where the sampler of a
    guided model evaluates the auxiliary.
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
        if not 0 < temperature <= 1:
            raise InputError("temperature", temperature, "give lambda_s in (0, 1]")
        self.temperature = temperature
        self.sampler, self.settings = sampler, settings or NetworkSettings()
        if isinstance(sampler, VelocitySampler) and self.settings.parametrisation != "velocity":
            expected = "this sampler runs in a velocity's time: say velocity"
            raise InputError("network.parametrisation", self.settings.parametrisation, expected)
        self.device = present("device", self.settings.device)
        self.streams = np.asarray(streams, dtype=np.int64)
        published = self.settings.parametrisation == "epsilon" and self.settings.time == "sampler"
        self._time = CosineTime(sampler.steps) if published else None

    @property
    def rows(self) -> int:
        """The number of rows R."""
        return len(self.streams)

    def untrained(self, data: Tensor, *, seed: Seed) -> NetworkModel:
        """Networks at their initialisation, scaled to their data: the control that training must beat by far."""
        if data.ndim != 3 or data.shape[0] != self.rows:
            raise InputError("data", tuple(data.shape), f"this learner has {self.rows} rows: give ({self.rows}, n, d)")
        s = self.settings
        mlp = Mlp(data.shape[2], (s.width,) * s.layers, s.activation, s.linear_first)
        # row by row, as in `push_moments`: a row's scale must not depend on its neighbours
        std = torch.stack([row.double().var(0, correction=0).mean().sqrt() for row in data]).clamp(min=1e-3)
        std = torch.where(std.isfinite(), std, 1.0)  # a diverged row is not trained
        parametrisation = PARAMETRISATIONS[s.parametrisation][0]
        seeds = [seed.child(int(k)) for k in self.streams]
        made = Ensemble.initial(mlp, seeds, sigma_data=std, parametrisation=parametrisation, device=self.device)
        return self._model(made)

    def fit(self, data: Tensor, *, seed: Seed, start: NetworkModel | None = None) -> NetworkModel:
        """Train every row's network on its points for the settings' steps, from scratch or from ``start``."""
        initial = self.untrained(data, seed=seed) if start is None else start
        return self._train(initial, data, self.settings.training(data.shape[1], warm=start is not None), seed)

    def finetune(self, model: NetworkModel, data: Tensor, budget: ArrayLike, *, seed: Seed) -> NetworkModel:
        """Train copies of the base networks on ``data`` for ``budget`` samples seen (a number, or one a row)."""
        budgets = np.broadcast_to(np.asarray(budget, dtype=np.float64), (self.rows,))
        if not (budgets >= 0).all():
            raise InputError("budget", np.asarray(budget).tolist(), "samples seen cannot be negative")
        params = model.base.params.clone()
        for value in np.unique(budgets):
            rows = np.flatnonzero(budgets == value)
            if value > 0:
                part = NetworkLearner(self.sampler, self.streams[rows], self.settings)
                few = part._model(model.base.take(rows.tolist()))
                trained = part._train(few, data[rows], self.settings.training(data.shape[1], float(value)), seed)
                params[torch.from_numpy(rows).to(params.device)] = trained.base.params
        return self._model(model.base.with_params(params))

    def sample(self, model: NetworkModel, n: ArrayLike, *, seed: Seed) -> Tensor:
        """Draw n points (R, n, d) a row, the same n for all rows; NaN for diverged rows."""
        return self._draw(model, n, self.temperature, seed)

    def points(self, model: NetworkModel, n: ArrayLike, *, seed: Seed) -> Tensor:
        """`sample` at temperature 1: what a model is measured by."""
        return self._draw(model, n, 1.0, seed)

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

    def draw(self, real: Gaussian | Distribution, n: ArrayLike, *, seed: Seed) -> Tensor:
        """n real points a row (R, n, d); rows of one stream get the same points."""
        count = self._one_size(n)
        first, inverse = _first_of_each([int(k) for k in self.streams])
        points = [draw_real(real, count, seed.child(int(self.streams[i]))) for i in first]
        return torch.from_numpy(np.stack(points)).float()[inverse]

    def rebuild(self, data: Tensor, budget: ArrayLike, *, seed: Seed) -> NetworkModel:
        """Networks of the second architecture (`NetworkSettings.other_width`), trained from scratch on ``data``.

        budget: samples seen, a number or one a row; at the base's learning rate.
        """
        s = self.settings
        other = replace(s, width=s.other_width or s.width, auxiliary_rate=s.rate)
        part = NetworkLearner(self.sampler, self.streams, other)
        return part.finetune(part.untrained(data, seed=seed), data, budget, seed=seed)

    def perturb(self, base: NetworkModel, auxiliary: NetworkModel, *, seed: Seed) -> NetworkModel:
        """The base moved as far as the auxiliary is from it, layer by layer, in a random direction."""
        streams, inverse = np.unique(self.streams, return_inverse=True)
        size = base.base.params.shape[1]
        draws = np.stack([seed.child(int(k)).numpy().standard_normal(size) for k in streams])[inverse]
        noise = torch.from_numpy(draws).to(base.base.params)
        moved = base.base.params.clone()
        mlp = base.base.mlp
        parts = (mlp.views(t) for t in (moved, auxiliary.base.params - base.base.params, noise))
        for weights, drift, direction in zip(*parts, strict=True):
            axes = tuple(range(1, drift.ndim))
            weights += direction * (drift.square().sum(axes, True) / direction.square().sum(axes, True)).sqrt()
        return replace(base, base=base.base.with_params(moved))

    def extrapolate(self, base: NetworkModel, auxiliary: NetworkModel, omega: ArrayLike) -> NetworkModel:
        """The SIMS model: two networks a step, combined at omega (a number, or one a row)."""
        w = torch.from_numpy(np.array(np.broadcast_to(np.asarray(omega, dtype=np.float64), (self.rows,))))
        return replace(base, auxiliary=auxiliary.base, omega=w, guidance=self.guidance)

    def merge(self, base: NetworkModel, auxiliary: NetworkModel, omega: ArrayLike) -> NetworkModel:
        """Neon: parameters (1 + omega) theta_base - omega theta_aux; one network a step."""
        w = torch.from_numpy(np.array(np.broadcast_to(np.asarray(omega, dtype=np.float64), (self.rows,))))
        merged = extrapolate(base.base.params.double(), auxiliary.base.params.double(), w)
        return replace(base, base=base.base.with_params(merged.to(base.base.params.dtype)))

    def union(self, a: Tensor, b: Tensor) -> Tensor:
        """Both data sets together."""
        return torch.cat([a, b], dim=1)

    def scale(self, data: Tensor, factor: float) -> Tensor:
        """The data scaled about the origin."""
        return data * factor

    def parameters(self, model: NetworkModel) -> np.ndarray:
        """The base networks' parameters and, last, their sigma_data: (R, P + 1)."""
        base = model.base
        return torch.cat([base.params.double(), base.sigma_data[:, None]], 1).cpu().numpy()

    def distance(self, model: NetworkModel, real: Gaussian) -> np.ndarray:
        """W2 between the Gaussian of the samples' moments and the real Gaussian, (R,); inf for diverged rows."""
        first, inverse = self._distinct(model)
        return np.asarray(bounded_distance(model.take(first).output, real)[inverse])

    # ------------------------------------------------------------------ parts

    def _model(self, ensemble: Ensemble) -> NetworkModel:
        return NetworkModel(ensemble, self.sampler, time=self._time, backend=self.settings.backend)

    def _distinct(self, model: NetworkModel) -> tuple[list[int], list[int]]:
        """The model's distinct rows, and for every row its place among them (`_first_of_each`)."""
        auxiliary = None if model.auxiliary is None else model.auxiliary.params
        return _first_of_each(self._keys(model.base.params, auxiliary, model.omega))

    def _train(self, model: NetworkModel, data: Tensor, settings: Training, seed: Seed) -> NetworkModel:
        """Train the distinct rows (by stream, data and start); diverged rows stay NaN without being trained."""
        if data.shape[0] != self.rows:
            raise InputError("data", tuple(data.shape), f"this learner has {self.rows} rows")
        params = model.base.params.clone()
        sound = (data.isfinite().all(dim=(1, 2)) & params.isfinite().all(1).cpu()).numpy()
        params[torch.from_numpy(~sound).to(params.device)] = torch.nan
        alive = np.flatnonzero(sound)
        if len(alive):
            keys = self._keys(params, data)
            first, inverse = _first_of_each([keys[i] for i in alive])
            rows = alive[first].tolist()
            seeds = [seed.child(int(self.streams[i])) for i in rows]
            trained = train(model.base.take(rows), data[rows], seeds, settings, backend=self.settings.backend)
            at = torch.from_numpy(alive).to(params.device)
            params[at] = (trained.ema or trained.ensemble).params[torch.tensor(inverse, device=params.device)]
        return replace(model, base=model.base.with_params(params), auxiliary=None, omega=None)

    def _keys(self, *tensors: Tensor | None) -> list[bytes]:
        """What a row's result depends on: its stream and the bytes of its tensors."""
        arrays = [t.contiguous().cpu().numpy() for t in tensors if t is not None]
        return [
            hashlib.blake2b(
                self.streams[i].tobytes() + b"".join(a[i].tobytes() for a in arrays), digest_size=16
            ).digest()
            for i in range(self.rows)
        ]

    def _one_size(self, n: ArrayLike) -> int:
        sizes = np.unique(np.asarray(n))
        if len(sizes) != 1 or sizes[0] < 0 or sizes[0] != int(sizes[0]):
            raise InputError("n", sizes.tolist(), "rows of networks share one size, a whole number")
        return int(sizes[0])


def _first_of_each(keys: Sequence[object]) -> tuple[list[int], list[int]]:
    """Index of the first of each distinct key, and for every key the position of its first in that list."""
    place: dict[object, int] = {}
    first: list[int] = []
    for i, key in enumerate(keys):
        if key not in place:
            place[key] = len(first)
            first.append(i)
    return first, [place[key] for key in keys]


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
