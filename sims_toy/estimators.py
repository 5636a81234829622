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

No heavy imports: the help of commands lists `KINDS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sims_core.errors import InputError, choose

if TYPE_CHECKING:
    from torch import Tensor

    from sims_core.diffusion import EDM
    from sims_core.sampling import Sampler
    from sims_toy.gaussian import Gaussian
    from sims_toy.linear import LinearDenoiser


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
    return values.where(ranks < count, values.new_zeros(()))


def _shrunk(values: Tensor, rho: float) -> Tensor:
    from sims_toy.gaussian import row_sum

    return values + rho * (row_sum(values).unsqueeze(-1) / values.shape[-1] - values)


def _polynomial(values: Tensor, sigma: Tensor, count: float, edm: EDM) -> Tensor:
    from sims_toy.linear import least_loss

    return least_loss(values, sigma, int(count), edm)


#: Estimators by name; one from outside is one more line.
KINDS: dict[str, Kind] = {
    "mle": Kind("mle", variances=lambda values, _: values),
    "smooth": Kind("smooth:H", variances=lambda values, h: values + h * h),
    "shrink": Kind("shrink:RHO", high=1, variances=_shrunk),
    "rank": Kind("rank:K", low=1, whole=True, variances=_leading),
    "decay": Kind("decay:L", share=lambda v, strength: v / (v + strength)),
    "capacity": Kind("capacity:K", low=1, high=12, whole=True, network=_polynomial),
    "early": Kind("early:T[:warm|cold]", share=lambda v, time: -(-v * time).expm1()),
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
        from sims_toy.gaussian import Gaussian, product
        from sims_toy.linear import LinearDenoiser

        values = likeliest.eigen[0]
        if self.name == "mle":
            return likeliest
        if self.gaussian:
            return Gaussian(likeliest.mean, likeliest.spectral(self.variances(values)))
        time = trained if isinstance(trained, (int, float)) else trained[:, None]

        def gain(sigma: Tensor) -> Tensor:
            if start is None:
                return likeliest.spectral(self.gains(values, sigma, edm, time))
            share = self.share(values, sigma, edm, time)
            best = share * values / (values + sigma**2)
            return likeliest.spectral(best) + product(likeliest.spectral(1 - share), start.gain(sigma))

        return LinearDenoiser(likeliest.mean, gain)
