"""Which errors can a model correct from its own samples? Exactly, mode by mode, in the population limit.

The data are Gaussian with independent modes of given variances, a model is a gain W(sigma) of each mode
(`sims_toy.estimators`), and the sampler makes of it a variance of each mode. With S the sampler (model to
distribution), F training (distribution to model) and G = F after S: the base is b = F(p), and the ideal generator
theta, for which S(theta) = p, has G(theta) = b. So the error e = b - theta and the drift d = G(b) - b obey
d = M e + O(e^2) with M = DG, and SIMS leaves (I - omega eta M) e. See docs/mathematics.md.

Errors and drifts of samples are measured in standard deviations, where distance is W2.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import newton
from torch import Tensor

from sims_core.diffusion import EDM
from sims_core.errors import InputError
from sims_core.sampling import Sampler
from sims_toy.estimators import Estimator
from sims_toy.exact import numerical
from sims_toy.linear import training_levels

Array = NDArray[np.float64]
Gain = Callable[[Tensor], Tensor]
"""``sigma -> W``: what a denoiser multiplies each mode by, (..., K); sigma zero-dim."""


def power_law(modes: int, exponent: float = 1.5, spread: float = 0.25) -> Array:
    """Variances (modes,) that fall as i^-exponent, with ``spread`` the root mean square standard deviation."""
    values = np.arange(1, modes + 1, dtype=np.float64) ** -exponent
    return np.asarray(values * spread**2 / values.mean())


@dataclass(frozen=True)
class Model:
    """gain: of each mode. variances: where the model is a Gaussian's, those, (..., K)."""

    gain: Gain
    variances: Tensor | None = None


@dataclass(frozen=True, eq=False)
class SelfTraining:
    """A base, and an auxiliary trained on endless samples of it. Everything here is closed form or quadrature.

    variances: of the data's modes, (K,). sampler: 'exact' is without bias. budget: eta in [0, 1], as in
    `sims_toy.exact.ExactLearner.finetune`. sigma_data of EDM's preconditioning is the sampler's.

    >>> found = SelfTraining(power_law(64), Estimator.parse("smooth:0.1"), Sampler.parse("exact"))
    >>> round(found.cosine, 3), round(found.length, 2)
    (0.995, 0.72)
    """

    variances: Array
    estimator: Estimator
    sampler: Sampler
    budget: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.budget <= 1:
            raise InputError("budget", self.budget, "give eta in [0, 1]")
        self.estimator.check(self.sampler)
        if np.ndim(self.variances) != 1 or not (np.asarray(self.variances) > 0).all():
            raise InputError("variances", np.asarray(self.variances).tolist(), "give positive variances (K,)")

    # ------------------------------------------------------------ F, S and what comes of them

    @property
    def truth(self) -> Tensor:
        """The data's variances (K,)."""
        return torch.as_tensor(np.asarray(self.variances, dtype=np.float64))

    @property
    def _edm(self) -> EDM:
        return EDM(self.sampler.sigma_data)

    def train(self, variances: Tensor) -> Model:
        """F: the model trained from scratch on data with ``variances`` (..., K)."""
        if self.estimator.gaussian:
            return _gaussian(self.estimator.variances(variances))
        return Model(lambda sigma: self.estimator.gains(variances, sigma, self._edm))

    def sample(self, model: Model, sampler: Sampler | None = None) -> Tensor:
        """S: the variances (..., K) of the model's samples."""
        chosen = sampler or self.sampler
        if not chosen.steps and model.variances is not None:
            return model.variances
        shape = model.gain(torch.ones((), dtype=torch.float64)).shape
        ends = numerical(chosen)(lambda x, sigma: model.gain(sigma) * x, torch.ones(shape, dtype=torch.float64))
        return ends**2

    @cached_property
    def base(self) -> Model:
        """b = F(p)."""
        return self.train(self.truth)

    @cached_property
    def auxiliary(self) -> Model:
        """b moved by the budget toward G(b), trained on the base's samples."""
        return self.tuned(self.base, self.sample(self.base))

    def tuned(self, model: Model, variances: Tensor) -> Model:
        """``model`` fine-tuned on data with ``variances``, by the budget."""
        eta = self.budget
        if self.estimator.warm:

            def gain(sigma: Tensor) -> Tensor:
                share = self.estimator.share(variances, sigma, self._edm, eta)
                return model.gain(sigma) + share * (variances / (variances + sigma**2) - model.gain(sigma))

            return Model(gain)
        goal = self.train(variances)
        if eta == 1:
            return goal
        if model.variances is not None and goal.variances is not None:
            return _gaussian(model.variances + eta * (goal.variances - model.variances))
        return Model(lambda sigma: model.gain(sigma) + eta * (goal.gain(sigma) - model.gain(sigma)))

    def guided(self, omega: ArrayLike) -> Model:
        """SIMS at ``omega`` (R,): W = (1 + omega) W_b - omega W_a, (R, K)."""
        w = torch.as_tensor(np.asarray(omega, dtype=np.float64)).reshape(-1, 1)
        base, other = self.base, self.auxiliary
        exact = None
        if base.variances is not None and other.variances is not None:  # the exact flow extrapolates geometrically
            ratio = torch.where(other.variances > 0, base.variances / other.variances, 1.0)
            exact = base.variances * ratio**w
        return Model(lambda sigma: base.gain(sigma) + w * (base.gain(sigma) - other.gain(sigma)), exact)

    # ------------------------------------------------------------ error, drift and the law

    @cached_property
    def error(self) -> Array:
        """e (K,): standard deviations of the base's samples less those of the data."""
        return (self.sample(self.base).sqrt() - self.truth.sqrt()).numpy()

    @cached_property
    def drift(self) -> Array:
        """d (K,): standard deviations of the auxiliary's samples less those of the base's."""
        return (self.sample(self.auxiliary).sqrt() - self.sample(self.base).sqrt()).numpy()

    @property
    def cosine(self) -> float:
        """Of the angle between drift and error; 0 where one of them vanishes."""
        lengths = float(np.linalg.norm(self.error) * np.linalg.norm(self.drift))
        return float(self.error @ self.drift) / lengths if self.length > 1e-12 else 0.0

    @property
    def length(self) -> float:
        """|d| / |e|; 0 without an error."""
        error = float(np.linalg.norm(self.error))
        return float(np.linalg.norm(self.drift)) / error if error > 0 else 0.0

    @property
    def predicted(self) -> tuple[float, float]:
        """First order: the best omega, <e, d> / |d|^2, and W2 there over the base's, sqrt(1 - cosine^2)."""
        if self.length <= 1e-12:
            return 0.0, 1.0
        return self.cosine / self.length, math.sqrt(max(1 - self.cosine**2, 0.0))

    def w2(self, model: Model, sampler: Sampler | None = None) -> Array:
        """W2 (...,) of the model's samples to the data, by ``sampler`` or the own one."""
        made = self.sample(model, sampler)
        return np.asarray(((made.sqrt() - self.truth.sqrt()) ** 2).sum(-1).sqrt().numpy())

    def best(self, omegas: Sequence[float], sampler: Sampler | None = None) -> tuple[float, float]:
        """The omega among ``omegas`` of least W2, and that W2 over the base's.

        sampler: draws the guided samples and the base's in place of the own one, which the auxiliary was trained by.
        """
        found = self.w2(self.guided(omegas), sampler)
        found = np.where(np.isfinite(found), found, np.inf)
        i = int(np.argmin(found))
        base = float(self.w2(self.base, sampler))
        return float(np.asarray(omegas)[i]), float(found[i]) / base if base > 0 else math.nan

    def loss(self, model: Model) -> Array:
        """Denoising loss on the data over the optimum's, a mode, (...,): EDM's weight and noise levels, by quadrature.

        Of one mode at sigma it is weight (W - W*)^2 (c + sigma^2).
        """
        total = torch.zeros(())
        for sigma, weight in zip(*training_levels(), strict=True):
            optimum = self.truth / (self.truth + sigma**2)
            excess = (model.gain(sigma) - optimum) ** 2 * (self.truth + sigma**2)
            total = total + float(weight) * self._edm.weight(sigma) * excess.mean(-1)
        return np.asarray(total.numpy())

    # ------------------------------------------------------------ the ideal generator, M, and iterating

    def ideal(self) -> Model:
        """theta, the Gaussian model whose samples by the sampler are the data: S(theta) = p, mode by mode by a root.

        Raises `InputError` where the sampler reaches no such variance.
        """
        if not self.sampler.steps:
            return _gaussian(self.truth)

        def excess(logs: Array) -> Array:
            made = self.sample(_gaussian(torch.from_numpy(np.exp(logs))))
            return np.asarray((made / self.truth).log().numpy())

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # what has not converged is refused below
            found = newton(excess, np.log(self.variances), tol=1e-14, maxiter=30, disp=False)
        found = np.asarray(found[0] if isinstance(found, tuple) else found)
        if not (np.abs(excess(found)) < 1e-11).all():
            expected = "it makes the data's variances of no model; take more steps"
            raise InputError("sampler", str(self.sampler), expected)
        return _gaussian(torch.from_numpy(np.exp(found)))

    def response(self, step: float = 1e-5) -> Array:
        """M (K, K) at the data by central differences: how S after F passes on a change of the data's variances.

        In variances over the data's own, so that entries are pure numbers; its spectrum is that of DG but for zeros.
        Raises `InputError` for a warm early stop, whose training depends on where it starts.
        """
        self._cold("response")
        change = step * torch.diag(self.truth)
        up, down = (self.sample(self.train(self.truth + sign * change)) for sign in (1, -1))
        return np.asarray(((up - down) / (2 * step) / self.truth).T.numpy())

    def iterate(self, omega: float, steps: int) -> Array:
        """W2 (steps + 1,) of theta_0 = b, theta <- theta + omega (b - G(theta)): iterated SIMS; theta_1 is SIMS.

        inf from where a mode has diverged. Raises `InputError` for a warm early stop, which is no G.
        """
        self._cold("iterate")
        drawn: list[Tensor] = []  # of each theta before, the variances of its samples
        again = self.base  # G of each theta before, once there are some

        def gain(sigma: Tensor) -> Tensor:
            base = self.base.gain(sigma)
            if not drawn:
                return base
            return base + omega * (base - again.gain(sigma)).sum(0)

        found = []
        for _ in range(steps + 1):
            made = self.sample(Model(gain) if drawn else self.base)
            w2 = float(((made.sqrt() - self.truth.sqrt()) ** 2).sum().sqrt())
            if not math.isfinite(w2) or w2 > 1e6 * float(self.truth.sum().sqrt()):
                break
            found.append(w2)
            drawn.append(made)
            again = self.train(torch.stack(drawn))
        return np.array(found + [math.inf] * (steps + 1 - len(found)))

    def _cold(self, what: str) -> None:
        if self.estimator.warm:
            raise InputError("estimator", str(self.estimator), f"{what} needs an auxiliary that is trained as its base")


def _gaussian(variances: Tensor) -> Model:
    return Model(lambda sigma: variances / (variances + sigma**2), variances)
