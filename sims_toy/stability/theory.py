r"""The stability of iterative retraining (Bertrand et al., arXiv 2310.00429), where it can be computed.

The theorem
-----------
Retraining on real data and lam times as many samples of the model, without sampling error, is the map

    G(theta) = argmax_{theta'} (near theta)  E_data log p_theta' + lam E_{p_theta} log p_theta'.

theta*, a local maximum of E_data log p, is its fixed point for every lam. With alpha > 0 the strong concavity of
E_data log p at theta* (A = -E_data Hess log p >= alpha), L the Lipschitz constant of x -> Hess log p_theta*(x) in
operator norm, and eps = W1(p_theta*, p_data): where lam (1 + L eps / alpha) < 1/2, the iterates contract near theta* by

    rho(lam) = lam (alpha + eps L) / (alpha - lam (alpha + eps L)).

What lies behind it (our derivation, tested by integrating the flow). With B = -E_{p_theta*} Hess log p, the Fisher
information, the implicit function theorem gives

    G'(theta*) = (A + lam B)^{-1} lam B,

and ||B - A|| <= L eps (Kantorovich), from which rho follows. The condition is sufficient, not necessary: A is positive
definite and B, a covariance of scores, is never negative, so G' has the eigenvalues lam mu / (1 + lam mu) < 1 with mu
those of A^{-1} B. In the population limit the loop is locally stable for *every* finite lam, and where the model is
well specified (A = B) its rate is lam / (1 + lam). What breaks it in practice is none of this: finite samples, an
optimiser that stops early, a biased sampler, no real data at all (lam = inf: the rate is 1), and starts that are not
near theta*. The theorem is local and says nothing about them (the paper's second theorem adds their errors).

Collapse
--------
Fully synthetic retraining of a one-dimensional Gaussian by the unbiased variance (divided by n - 1) has
E sqrt(Sigma_t) = c_4(n)^t sqrt(Sigma_0); maximum likelihood (divided by n) multiplies by sqrt((n - 1) / n) besides.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad, solve_ivp
from scipy.linalg import expm
from scipy.special import gammaln, logit, ndtri

from sims_core.errors import InputError, choose

Array = NDArray[np.float64]


def c4(n: int) -> float:
    """E[s] / sigma for the standard deviation s of n normal draws, divided by n - 1.

    c_4(n) = sqrt(2 / (n - 1)) Gamma(n / 2) / Gamma((n - 1) / 2). Raises `InputError` for n < 2.
    """
    if n < 2:
        raise InputError("n", n, "a standard deviation needs at least 2 points")
    return math.sqrt(2 / (n - 1)) * math.exp(gammaln(n / 2) - gammaln((n - 1) / 2))


def collapse_rate(n: int, ddof: int = 1) -> float:
    """E sqrt(Sigma_t) over E sqrt(Sigma_{t-1}) in the fully synthetic loop of a one-dimensional Gaussian.

    ddof: 1 for the variance divided by n - 1, 0 for maximum likelihood.
    """
    if ddof not in (0, 1):
        raise InputError("ddof", ddof, "give 0 (divided by n) or 1 (divided by n - 1)")
    return c4(n) * (1.0 if ddof else math.sqrt((n - 1) / n))


@dataclass(frozen=True)
class Constants:
    """What the theorem asks for: strong concavity alpha, Lipschitz constant L, distance epsilon (one set of units)."""

    alpha: float
    lipschitz: float
    epsilon: float

    @property
    def excess(self) -> float:
        """1 + L eps / alpha; inf where alpha is not positive, since the theorem then assumes what is not so."""
        if not self.alpha > 0:
            return math.inf
        return 1 + self.lipschitz * self.epsilon / self.alpha

    @property
    def threshold(self) -> float:
        """The theorem certifies every synthetic-to-real ratio lam below this one: 1 / (2 (1 + L eps / alpha))."""
        return 0.5 / self.excess

    def condition(self, lam: float) -> float:
        """lam (1 + L eps / alpha), which the theorem wants below 1/2."""
        return lam * self.excess if lam else (0.0 if self.alpha > 0 else math.inf)

    def certified(self, lam: float) -> bool:
        """Whether the theorem says that retraining at ``lam`` is locally stable."""
        return self.condition(lam) < 0.5

    def rate(self, lam: float) -> float:
        """The theorem's bound rho(lam) on the contraction rate; nan where its condition fails."""
        held = self.condition(lam)
        return held / (1 - held) if held < 0.5 else math.nan


def linear_rate(lam: float, mu: float = 1.0) -> float:
    """lam mu / (1 + lam mu): the rate of the linearised retraining map along an eigenvalue mu of A^{-1} B.

    mu = 1 is a well-specified model. lam = inf (no real data) gives 1.
    """
    return 1.0 if math.isinf(lam) else lam * mu / (1 + lam * mu)


# ------------------------------------------------------------------ data laws


@dataclass(frozen=True)
class Law:
    """A law on the line, symmetric about 0: its quantile function, standard deviation, and E of a function."""

    name: str
    quantile: Callable[[float], float]
    std: float
    mean_of: Callable[[Callable[[Array], Array]], float]


def _by_nodes(quantile: Callable[[Array], Array], count: int = 200) -> Callable[[Callable[[Array], Array]], float]:
    """E of smooth functions by Gauss-Legendre quadrature over the quantiles."""
    q, w = np.polynomial.legendre.leggauss(count)
    nodes = quantile((q + 1) / 2)
    return lambda f: float(w @ f(nodes) / 2)


LAWS: dict[str, Callable[[float], Law]] = {
    # each of a given standard deviation
    "normal": lambda s: Law("normal", lambda q: s * float(ndtri(q)), s, _by_nodes(lambda q: s * ndtri(q))),
    "two-point": lambda s: Law(
        "two-point", lambda q: math.copysign(s, q - 0.5), s, lambda f: float(f(np.array([-s, s])).mean())
    ),
    "uniform": lambda s: Law(
        "uniform", lambda q: math.sqrt(12) * s * (q - 0.5), s, _by_nodes(lambda q: math.sqrt(12) * s * (q - 0.5))
    ),
    "logistic": lambda s: Law(
        "logistic",
        lambda q: math.sqrt(3) / math.pi * s * float(logit(q)),
        s,
        _by_nodes(lambda q: math.sqrt(3) / math.pi * s * logit(q)),
    ),
}


def law(name: str, std: float = 1.0) -> Law:
    """A law of `LAWS` with this standard deviation. Raises `InputError` for an unknown name."""
    if not std > 0:
        raise InputError("std", std, "give a positive standard deviation")
    return LAWS[choose("law", name, LAWS)](std)


def w1(a: Law, b: Law) -> float:
    """W1 between two symmetric laws on the line: twice the integral over q in (0, 1/2) of |quantile difference|."""

    def gap(q: float) -> float:
        return abs(a.quantile(q) - b.quantile(q))

    pieces = np.concatenate([[0.0], np.geomspace(1e-9, 0.4, 40), [0.5]])  # kinks and tails apart
    return 2 * sum(float(quad(gap, low, high, limit=200)[0]) for low, high in itertools.pairwise(pieces))


# --------------------------------------------------------- cases in closed form


class Case(Protocol):
    """A family and a data law for which everything in the theorem is known."""

    @property
    def name(self) -> str:
        """The family's."""
        ...

    @property
    def law(self) -> Law:
        """The data's."""
        ...

    @property
    def best(self) -> Array:
        """theta*."""
        ...

    @property
    def constants(self) -> Constants:
        """alpha, L and eps at theta*."""
        ...

    @property
    def matrices(self) -> tuple[Array, Array]:
        """A = -E_data Hess log p and B, the Fisher information, at theta*."""
        ...

    def gradient(self, new: Array, old: Array, lam: float) -> Array:
        """Gradient in ``new`` of E_data log p_new + lam E_{p_old} log p_new."""
        ...


@dataclass(frozen=True)
class GaussianCase:
    """N(mu, 1/tau) by location and precision, theta = (mu, tau), fitted to a symmetric law.

    log p = log(tau) / 2 - tau (x - mu)^2 / 2, so -Hess = [[tau, mu - x], [mu - x, 1 / (2 tau^2)]]: L = 1 exactly, at
    theta* = (0, 1 / std^2) A = B = diag(tau, 1 / (2 tau^2)), alpha = min(tau, 1 / (2 tau^2)). A = B whatever the data
    are, because the family's own mean and variance are those of the data: the rate is lam / (1 + lam) even where the
    model is misspecified and eps is large.
    """

    law: Law
    name: str = "Gaussian"

    @property
    def best(self) -> Array:
        """(0, 1 / std^2)."""
        return np.array([0.0, self.law.std**-2])

    @property
    def constants(self) -> Constants:
        """See the class."""
        tau = self.law.std**-2
        return Constants(min(tau, 1 / (2 * tau**2)), 1.0, w1(law("normal", self.law.std), self.law))

    @property
    def matrices(self) -> tuple[Array, Array]:
        """See the class."""
        tau = self.law.std**-2
        fisher = np.diag([tau, 1 / (2 * tau**2)])
        return fisher, fisher

    def gradient(self, new: Array, old: Array, lam: float) -> Array:
        """Closed form, by the first two moments of the data and of the old model."""
        (mu, tau), (mean, precision) = new, old
        pull = -mu + lam * (mean - mu)
        square = self.law.std**2 + mu**2 + lam * (1 / precision + (mean - mu) ** 2)
        return np.array([tau * pull, (1 + lam) / (2 * tau) - square / 2])


_QUANTILES, _WEIGHTS = np.polynomial.legendre.leggauss(200)
_QUANTILES, _WEIGHTS = (_QUANTILES + 1) / 2, _WEIGHTS / 2


@dataclass(frozen=True)
class LogisticCase:
    """The logistic location family (scale 1) on a symmetric law: a case in which A and B differ.

    d log p / d theta = tanh(z / 2) with z = x - theta and -d^2 log p = sech^2(z / 2) / 2, whose derivative in x is at
    most 1 / (3 sqrt 3) = L. B = 1/3; A = alpha is the law's mean of sech^2(x / 2) / 2 at theta* = 0.
    """

    law: Law
    name: str = "logistic"

    @property
    def best(self) -> Array:
        """0, by symmetry; the likelihood is log-concave, so there is no other maximum."""
        return np.zeros(1)

    @property
    def constants(self) -> Constants:
        """See the class."""
        own = law("logistic", math.pi / math.sqrt(3))
        return Constants(float(self.matrices[0][0, 0]), 1 / (3 * math.sqrt(3)), w1(own, self.law))

    @property
    def matrices(self) -> tuple[Array, Array]:
        """See the class."""
        curvature = self.law.mean_of(lambda x: 0.5 / np.cosh(x / 2) ** 2)
        return np.array([[curvature]]), np.array([[1 / 3]])

    def gradient(self, new: Array, old: Array, lam: float) -> Array:
        """By quadrature over the quantiles of the data and of the old model."""
        shift = math.exp(float(old[0] - new[0]))
        odds = _QUANTILES * shift
        synthetic = float(_WEIGHTS @ ((odds - (1 - _QUANTILES)) / (odds + 1 - _QUANTILES)))
        return np.array([self.law.mean_of(lambda x: np.tanh((x - new[0]) / 2)) + lam * synthetic])


# ----------------------------------------------------------- retraining by flow


def retrain(case: Case, theta: Array, lam: float, time: float = math.inf) -> Array:
    """G(theta): gradient flow of E_data log p + lam E_{p_theta} log p from ``theta``, integrated for ``time``.

    time: inf is 40 / alpha, when e^{-40} of the way is left. Raises `InputError` for a negative lam or time, and where
    the flow cannot be integrated.
    """
    for name, value in (("lam", lam), ("time", time)):
        if not value >= 0:
            raise InputError(name, value, "give a number of at least 0")
    end = time if math.isfinite(time) else 40 / case.constants.alpha
    old = np.asarray(theta, dtype=np.float64)
    done = solve_ivp(
        lambda _, new: case.gradient(new, old, lam), (0.0, end), old, method="LSODA", rtol=1e-11, atol=1e-13
    )
    if not done.success:
        raise InputError("theta", old.tolist(), f"the gradient flow fails from there ({done.message})")
    return np.asarray(done.y[:, -1])


def jacobian(case: Case, lam: float, time: float = math.inf, step: float = 1e-4) -> Array:
    """G' at theta*, by central differences of the integrated flow."""
    best = case.best
    shifts = step * np.eye(len(best))
    columns = [(retrain(case, best + s, lam, time) - retrain(case, best - s, lam, time)) / (2 * step) for s in shifts]
    return np.stack(columns, axis=1)


def predicted_jacobian(case: Case, lam: float, time: float = math.inf) -> Array:
    """(A + lam B)^{-1} lam B; for a flow stopped at ``time`` the optimiser's memory K = exp(-(A + lam B) time) besides.

    K + (1 - K) (A + lam B)^{-1} lam B: an optimiser that stops early forgets less, whatever lam is.
    """
    a, b = case.matrices
    full = np.linalg.solve(a + lam * b, lam * b)
    if math.isinf(time):
        return np.asarray(full)
    memory = expm(-(a + lam * b) * time)
    return np.asarray(memory + (np.eye(len(a)) - memory) @ full)


def spectral_radius(matrix: Array) -> float:
    """The largest absolute eigenvalue: the asymptotic rate of the linearised map."""
    return float(np.abs(np.linalg.eigvals(matrix)).max())


#: The cases that the command shows: well specified, misspecified with A = B, misspecified with B = 3.7 A.
CASES: dict[str, Callable[[], Case]] = {
    "Gaussian on normal data": lambda: GaussianCase(law("normal")),
    "Gaussian on two points": lambda: GaussianCase(law("two-point")),
    "Gaussian on uniform data": lambda: GaussianCase(law("uniform")),
    "logistic on two points": lambda: LogisticCase(law("two-point", 3.0)),
}
