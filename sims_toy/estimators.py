"""Estimators with a bias of their own: what training makes of a Gaussian's data when it is not maximum likelihood.

A model is linear in x at every noise level, D(x, sigma) = m + W(sigma) (x - m), with m the data's mean. In the
eigenbasis of the data's covariance, with eigenvalue c of one mode, W* = c / (c + sigma^2) is the optimum, and

* mle: W*; smooth:H, shrink:RHO, rank:K: W* of another variance, c + H^2, (1 - RHO) c + RHO tr C / d, and c for the K
  largest or 0: the model is a Gaussian;
* decay:L, early:T: with EDM's preconditioning (arXiv 2206.00364, Eq. 7) D = c_skip x + c_out F(c_in x), a linear F
  trained at every noise level with weight decay L, or by gradient flow for a time T, reaches the share
  v / (v + L) or 1 - exp(-v T) of its way from 0 to the optimum, where v = c_in^2 (c + sigma^2) is the variance of its
  input: W = c_skip + share (W* - c_skip). Such a model is no Gaussian's denoiser, but linear all the same.

early:T:warm trains an auxiliary from the base, early:T:cold from 0 as the base itself was;

* capacity:K: F depends on ln sigma by a polynomial of K coefficients a mode, trained to the end at all of EDM's noise
  levels together: the least denoising loss in a family that does not hold the optimum. In F the loss weighs a mode at
  sigma by v, so that the normal equations (c A_1 + A_0) a = c b_1 + b_0 are linear in c. It is not
  trained beyond EDM's levels, and a sampler 'exact', which begins far above them, is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.linalg import eigh
from torch import Tensor

from sims_core.diffusion import EDM, LogNormal
from sims_core.errors import InputError, choose
from sims_core.sampling import Sampler
from sims_toy.gaussian import Gaussian, Rows, product, row_sum


@dataclass(frozen=True)
class Kind:
    """A row of `KINDS`. form: how it is written; low, high: bounds of its number (high included).

    One of: variances, ``(values (R, d), number) -> (R, d)`` of the Gaussian it fits; share, ``(v, number) -> share``
    of the way to the optimum; network, ``(values, sigma, number, edm) -> F`` (R, d).
    """

    form: str
    low: float = 0.0
    high: float = math.inf
    whole: bool = False
    variances: Callable[[Tensor, float], Tensor] | None = None
    share: Callable[[Tensor, float | Tensor], Tensor] | None = None
    network: Callable[[Tensor, Tensor, float, EDM], Tensor] | None = None


def _leading(values: Tensor, count: float) -> Tensor:
    ranks = values.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return torch.where(ranks < count, values, torch.zeros_like(values))


def _shrunk(values: Tensor, rho: float) -> Tensor:
    return values + rho * (row_sum(values).unsqueeze(-1) / values.shape[-1] - values)


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


def _polynomial(values: Tensor, sigma: Tensor, count: float, edm: EDM) -> Tensor:
    u, theta, b1, b0 = _normal_equations(int(count), edm)
    features = _powers(sigma.double().reshape(1), int(count))[0] @ u
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


#: Estimators by name; one from outside is one more line.
KINDS: dict[str, Kind] = {
    "mle": Kind("mle", variances=lambda values, _: values),
    "smooth": Kind("smooth:H", variances=lambda values, h: values + h * h),
    "shrink": Kind("shrink:RHO", high=1, variances=_shrunk),
    "rank": Kind("rank:K", low=1, whole=True, variances=_leading),
    "decay": Kind("decay:L", share=lambda v, strength: v / (v + strength)),
    "capacity": Kind("capacity:K", low=1, high=12, whole=True, network=_polynomial),
    "early": Kind("early:T[:warm|cold]", share=lambda v, time: -torch.expm1(-v * time)),
}


def forms() -> list[str]:
    """The estimators of `KINDS` as they are written on a command line."""
    return [kind.form for kind in KINDS.values()]


@dataclass(frozen=True)
class Estimator:
    """An estimator by its text: mle, smooth:H, shrink:RHO, rank:K, decay:L or early:T[:warm|cold].

    number: H, RHO, K, L or T. warm: whether an auxiliary is trained from the base.
    """

    name: str = "mle"
    number: float = 0.0
    warm: bool = False

    @classmethod
    def parse(cls, text: str, *, argument: str = "estimator") -> Estimator:
        """Read an estimator. Raises `InputError` naming ``argument`` for anything else."""
        name, *rest = text.strip().split(":")
        warm = name == "early" and rest[1:] == ["warm"]
        if name == "early" and rest[1:] in (["warm"], ["cold"]):
            rest = rest[:1]
        expected = f"write one of {', '.join(forms())}"
        if name not in KINDS:
            raise InputError(argument, text, expected)
        kind = KINDS[name]
        if (name == "mle") != (not rest) or len(rest) > 1:
            raise InputError(argument, text, expected)
        try:
            number = float(rest[0]) if rest else 0.0
        except ValueError:
            number = math.nan
        if not kind.low <= number <= kind.high or math.isinf(number) or (kind.whole and number != int(number)):
            span = f"from {kind.low:g}" + (f" to {kind.high:g}" if math.isfinite(kind.high) else " up")
            raise InputError(argument, text, f"write {kind.form} with a {'whole ' * kind.whole}number {span}")
        return cls(name, number, warm)

    def __str__(self) -> str:
        return self.name if self.name == "mle" else f"{self.name}:{self.number:g}{':warm' * self.warm}"

    @property
    def kind(self) -> Kind:
        """Its row of `KINDS`."""
        return KINDS[choose("estimator", self.name, KINDS)]

    def check(self, sampler: Sampler) -> None:
        """Raise `InputError` for a sampler that its models were not trained for."""
        if self.kind.network is not None and not sampler.steps:
            expected = f"'exact' begins beyond the noise levels that {self} is trained at; use such as heun:256"
            raise InputError("sampler", str(sampler), expected)

    @property
    def gaussian(self) -> bool:
        """Whether its models are Gaussians."""
        return self.kind.variances is not None

    def variances(self, values: Tensor) -> Tensor:
        """The variances (..., d) of the Gaussian that it fits to data with variances ``values`` (..., d), d modes."""
        assert self.kind.variances is not None
        return self.kind.variances(values, self.number)

    def share(self, values: Tensor, sigma: Tensor, edm: EDM, trained: float | Tensor = 1.0) -> Tensor:
        """The share (..., d) of the way to the optimum that F goes at ``sigma``, on data with variances ``values``.

        trained: the share of an early stop's time T that it is given, a number or a tensor that broadcasts.
        """
        assert self.kind.share is not None
        return self.kind.share(edm.c_in(sigma) ** 2 * (values + sigma**2), self.number * trained)

    def gains(self, values: Tensor, sigma: Tensor, edm: EDM, trained: float | Tensor = 1.0) -> Tensor:
        """W(sigma) of each mode, (..., d), trained from 0 on data of variances ``values`` (..., d); sigma zero-dim."""
        if self.gaussian:
            fitted = self.variances(values)
            return fitted / (fitted + sigma**2)
        skip = edm.c_skip(sigma)
        if self.kind.network is not None:
            return skip + edm.c_out(sigma) * edm.c_in(sigma) * self.kind.network(values, sigma, self.number, edm)
        return skip + self.share(values, sigma, edm, trained) * (values / (values + sigma**2) - skip)

    def fit(
        self,
        likeliest: Gaussian,
        edm: EDM,
        *,
        start: Gaussian | LinearDenoiser | None = None,
        trained: float | Tensor = 1,
    ) -> Gaussian | LinearDenoiser:
        """The model of data whose maximum-likelihood fit is ``likeliest`` (R rows).

        start: what an early stop trains from, None for 0. trained: the share of its time, a number or (R,).
        """
        values = likeliest.eigen[0]
        if self.name == "mle":
            return likeliest
        if self.gaussian:
            return Gaussian(likeliest.mean, likeliest.spectral(self.variances(values)))
        time = trained[:, None] if isinstance(trained, Tensor) else trained

        def gain(sigma: Tensor) -> Tensor:
            if start is None:
                return likeliest.spectral(self.gains(values, sigma, edm, time))
            share = self.share(values, sigma, edm, time)
            best = share * values / (values + sigma**2)
            return likeliest.spectral(best) + product(likeliest.spectral(1 - share), start.gain(sigma))

        return LinearDenoiser(likeliest.mean, gain)


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
