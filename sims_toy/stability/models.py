"""The stability theorem's alpha, L and eps, estimated for trained models.

A flow's -log p_theta(x) is exact. A network's surrogate of it is the denoising loss of x, averaged over the training's
noise levels and over a cubature of the noise (Bertrand et al., arXiv 2310.00429, train the same way); its scale cancels
in eps L / alpha. What is estimated is an upper bound of alpha (a Rayleigh quotient, on points that did not choose its
direction) and a lower bound of L (finitely many pairs and directions): where even these fail the condition, the theorem
certifies nothing; where they hold it, that is no proof.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.func import grad, jvp, vmap

from sims_core.seeds import Seed
from sims_toy.datasets import Distribution
from sims_toy.flows import flow
from sims_toy.flows.flow import Shape
from sims_toy.flows.settings import FlowSettings
from sims_toy.networks.mlp import Mlp
from sims_toy.networks.settings import NetworkSettings
from sims_toy.networks.targets import PARAMETRISATIONS, level_table, posterior_mean, training_levels

Array = NDArray[np.float64]

#: Noise levels of a loss, and real points that stand for the population in a mean loss.
LEVELS = 8
POPULATION = 4000


class Loss:
    """A loss of each of M points as a smooth function of a model's parameters, float64."""

    def __call__(self, params: Tensor) -> Tensor:
        """The loss of every point (M,) at flat parameters (P,)."""
        raise NotImplementedError

    def hessian(self, params: Tensor, chunk: int = 25) -> Tensor:
        """The Hessian (P, P) of the mean loss, by Hessian-vector products."""
        slope = grad(lambda theta: self(theta).mean())

        def product(v: Tensor) -> Tensor:
            return jvp(slope, (params,), (v,))[1]  # type: ignore[no-any-return]

        with _quiet():
            rows: Tensor = vmap(product, chunk_size=chunk)(torch.eye(len(params), dtype=params.dtype))
        return (rows + rows.T) / 2

    def along(self, params: Tensor, direction: Tensor) -> Tensor:
        """v^T h(x_i) v for every point (M,): the second derivative of its loss along a unit direction v (P,)."""
        v = direction / direction.norm()

        def first(theta: Tensor) -> Tensor:
            return jvp(self, (theta,), (v,))[1]  # type: ignore[no-any-return]

        with _quiet():
            return jvp(first, (params,), (v,))[1]  # type: ignore[no-any-return]


class PointLoss(Loss):
    """The denoising loss of each of M points, of score networks and velocities.

    points: (M, d). settings: of the networks. sigma_data: of the network at hand. The noise is averaged by the
    cubature of degree 3, +-sqrt(d) e_i; the levels are `LEVELS` quantiles of the training's distribution.
    population: further real points; the target is then its posterior mean over all of them (Xu et al. 2023), which
    leaves the population's mean loss as it is up to a constant and takes the noise of the target away.
    """

    def __init__(
        self, points: Array, settings: NetworkSettings, sigma_data: float, *, population: Array | None = None
    ) -> None:
        x = torch.from_numpy(np.asarray(points, dtype=np.float64))
        self.count, dim = x.shape
        self.mlp = Mlp(dim, (settings.width,) * settings.layers, settings.activation, settings.linear_first)
        parametrisation, noise = PARAMETRISATIONS[settings.parametrisation]
        std = torch.tensor([sigma_data], dtype=torch.float64)
        levels = training_levels(noise, std, LEVELS)
        if levels.shape[1] > LEVELS:  # steps, not quantiles
            levels = levels[:, 62::125]
        sigma, c_in, time, p, q = level_table(parametrisation, levels, std)[0].T  # (levels,) each
        axes = math.sqrt(dim) * torch.eye(dim, dtype=torch.float64)
        eps = torch.cat([axes, -axes])  # (noise, d)
        shape = (self.count, len(sigma), len(eps), dim)
        clean, level, draw = x[:, None, None], sigma[None, :, None, None], eps[None, None]
        inner = c_in[None, :, None, None] * (clean + level * draw)
        times = time[None, :, None, None].expand(*shape[:3], 1)
        self._rows = torch.cat([inner.expand(shape), times], 3).reshape(-1, dim + 1)
        if population is not None:
            noisy = (clean + level * draw).expand(shape).reshape(-1, dim)
            spread = level.expand(*shape[:3], 1).reshape(-1, 1)
            clean = posterior_mean(noisy, spread[:, 0], torch.cat([x, torch.from_numpy(population)])).view(shape)
            draw = (noisy.view(shape) - clean) / level
        self._target = (p[None, :, None, None] * clean + q[None, :, None, None] * draw).expand(shape).reshape(-1, dim)

    def __call__(self, params: Tensor) -> Tensor:
        """The loss of every point (M,) at flat parameters (P,)."""
        h = self._rows
        weights = [w[0] for w in self.mlp.views(params[None])]
        for i, w in enumerate(weights):
            h = h @ w[:, :-1].T + w[:, -1]
            if self.mlp.active(i):
                h = torch.nn.functional.silu(h) if self.mlp.activation == "silu" else h.relu()
        each: Tensor = ((h - self._target) ** 2).mean(1)
        return each.view(self.count, -1).mean(1)


class FlowLoss(Loss):
    """-log p of each of M standardised points (M, d), exactly: the theorem's own loss."""

    def __init__(self, points: Array, shape: Shape) -> None:
        self._points, self._shape = torch.from_numpy(np.asarray(points, dtype=np.float64)), shape
        flow.template(shape)

    def __call__(self, params: Tensor) -> Tensor:
        """-log p of every point (M,) at flat parameters (P,)."""
        return -flow.log_likelihood(self._shape, params, self._points)


@contextmanager
def _quiet() -> Iterator[None]:
    """Forward derivatives make torch load a compiler of its own that it has deprecated, and say so."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


@dataclass(frozen=True)
class Curvature:
    """What is measured at one network.

    smallest, largest, flat: extreme eigenvalues of the mean Hessian, and the share of eigenvalues below 1e-4 of the
    largest (negative ones included). held_out: the Rayleigh quotient of the smallest eigenvalue's direction over four
    times as many fresh points, with its standard error: a finite average's smallest eigenvalue is biased downward, this
    is not, and alpha is at most as large. gradient: norm of the mean gradient, 0 at an optimum. alpha, lipschitz: along
    each direction (K,), the Rayleigh quotient and the largest change of v^T h(x) v per unit of x over pairs of points.
    """

    smallest: float
    largest: float
    flat: float
    held_out: float
    held_out_se: float
    gradient: float
    alpha: Array
    lipschitz: Array


def curvature(
    params: Array,
    directions: Array,
    real: Distribution,
    loss: Callable[[Array, Array | None], Loss],
    *,
    points: int,
    seed: Seed,
) -> Curvature:
    """Hessian, Rayleigh quotients and Lipschitz estimates at a model's parameters (P,).

    directions: (K, P), not all zero; the Hessian's own extreme eigenvectors are tried for L as well, and appended to
    alpha and lipschitz (last two entries). loss: of points, and of points that stand among others of the population,
    or None. points: of a fresh real draw.
    """
    x = real.draw(points, seed.child("curvature"))
    single, mean = loss(x, None), loss(x, real.reference[:POPULATION])
    theta = torch.from_numpy(np.asarray(params, dtype=np.float64))
    hessian = mean.hessian(theta)
    values, vectors = torch.linalg.eigh(hessian)
    slope: Tensor = grad(lambda t: mean(t).mean())(theta)
    tried = torch.cat([torch.from_numpy(np.asarray(directions, dtype=np.float64)), vectors[:, [0, -1]].T])
    distance = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
    np.fill_diagonal(distance, np.inf)
    alpha, lipschitz = [], []
    for v in tried:
        each = single.along(theta, v).numpy()
        alpha.append(float(v @ hessian @ v / (v @ v)))
        lipschitz.append(float((np.abs(each[:, None] - each[None]) / distance).max()))
    limit = real.limit or 4 * points
    fresh = real.draw(min(4 * points, limit), seed.child("held-out"))
    again = loss(fresh, real.reference[:POPULATION]).along(theta, vectors[:, 0])
    top = float(values[-1])
    return Curvature(
        float(values[0]),
        top,
        float((values < 1e-4 * top).double().mean()),
        float(again.mean()),
        float(again.std() / math.sqrt(len(again))),
        float(slope.norm()),
        np.array(alpha),
        np.array(lipschitz),
    )


@dataclass(frozen=True)
class Probe:
    """A model at hand: its parameters (P,) and its loss, of points and of a population as `curvature` takes it."""

    params: Array
    loss: Callable[[Array, Array | None], Loss]


def network_probe(weights: Array, settings: NetworkSettings) -> Probe:
    """Of a row of `NetworkLearner.parameters`."""
    sigma_data = float(weights[-1])
    return Probe(weights[:-1], lambda x, population: PointLoss(x, settings, sigma_data, population=population))


def flow_probe(weights: Array, settings: FlowSettings, dim: int) -> Probe:
    """Of a row of `FlowLearner.parameters`."""
    center, scale = weights[-2 * dim : -dim], weights[-dim:]
    shape = flow.shape_of(settings, dim)
    return Probe(weights[: -2 * dim], lambda x, population: FlowLoss((x - center) / scale, shape))


def held_out(weights: Array, settings: FlowSettings, real: Distribution, *, seed: Seed) -> dict[str, float]:
    """``nll`` of a flow on 4,000 fresh real points, nats, its standard error, and ``kl``: less the data's own entropy.

    On the same points, where the real density is known (mixtures); else kl is nan.
    """
    dim = real.dim
    center, scale = weights[-2 * dim : -dim], weights[-dim:]
    x = real.draw(min(4000, real.limit or 4000), seed.child("likelihood"))
    logs = -FlowLoss((x - center) / scale, flow.shape_of(settings, dim))(torch.from_numpy(weights[: -2 * dim]))
    own = logs.numpy() - np.log(scale).sum()
    mixture = real.mixture
    gap = math.nan if mixture is None else float((mixture.log_density(x) - own).mean())
    return {"nll": float(-own.mean()), "nll_se": float(own.std(ddof=1) / math.sqrt(len(own))), "kl": gap}


def w1_excess(generated: Array, real: Distribution, *, seed: Seed, repeats: int = 5) -> tuple[float, float]:
    """(W1 between generated points (n, d) and as many real ones, its real-against-real floor), each a mean.

    The theorem's eps lies between the first less the second and the first: a finite sample's W1 is not 0 for the data
    themselves, but where the distance is well above the floor it has less of it.
    """
    import ot

    n = len(generated)
    weights = np.full(n, 1 / n)

    def distance(a: Array, b: Array) -> float:
        return float(ot.emd2(weights, weights, ot.dist(a, b, metric="euclidean"), numItermax=2_000_000))

    draws = [real.draw(n, seed.child("w1", i)) for i in range(2 * repeats)]
    value = np.mean([distance(generated, d) for d in draws[::2]])
    floor = np.mean([distance(a, b) for a, b in zip(draws[::2], draws[1::2], strict=True)])
    return float(value), float(floor)
