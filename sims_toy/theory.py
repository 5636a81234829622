r"""Closed forms for Gaussians: what SIMS corrects, what it amplifies, and where the phases lie.

Linear response
---------------
Write parameters as displacements from the real Gaussian. To first order

* fitting n points of a distribution adds noise xi / sqrt(n) with E|xi|^2 = v (`data_noise`), in units of W2^2;
* the sampler adds a drift beta (its bias at the real Gaussian) and passes a displacement on with a gain J: a model
  displaced by c gives samples displaced by beta + J c. J = 1 is the plain first order; the real J (0.84 to 0.93 for
  DDIM-20) is read off the sampler itself, mode by mode (`sims_toy.exact.sampler_modes`). With an estimator that has a
  bias of its own, beta is the error e of training and sampling together, J is M, their gain, and b is the displacement
  of the data that the base is trained on: nothing else changes below.

Generation t trains its base b_t on D_r (n points, noise eps_r, the same in every generation) with m points of
generation t-1, lam = m / (n + m):

    b_1 = eps_r,    b_t = (1 - lam) eps_r + lam (g_{t-1} + xi_t / sqrt(m)).

Its auxiliary moves the fraction eta toward the fit of its own data, of which the base's n_aux samples are the share
kappa: 1 for 'synthetic', n_aux / (n_train + n_aux) for 'train+synthetic' with n_train = n at t = 1 and n + m after,
and n_aux / (n + n_aux) for 'real+synthetic'. With Omega = omega eta kappa and x = omega eta (1 - kappa) for
'real+synthetic', x = 0 otherwise, the SIMS model's samples are displaced by

    g_t = A b_t - J x eps_r + (1 - J Omega) beta - J Omega zeta_t / sqrt(n_aux),    A = J (1 + x + Omega (1 - J)).

At J = 1 and x = 0 this is g_t = b_t + (1 - Omega) beta - Omega zeta_t / sqrt(n_aux): SIMS removes the fraction Omega
of the drift beta, leaves b_t (what the base's own samples carry faithfully), and adds noise. Averages over the draws
follow by carrying three numbers through the loop: the coefficients of beta and of eps_r, and the variance of what is
independent (`response`). At convergence, for J = 1 and x = 0,

    E W2^2 = beta^2 (1 - Omega)^2 / (1 - lam)^2 + v [ 1/n + (lam^2 / m + Omega^2 / n_aux) / (1 - lam^2) ].

Consequences: omega = 0 and beta = 0 give the limit of standard training, 1 + m / (n + 2m) times generation 1
(`standard_limit`). Minimising over Omega gives the shrinkage law (`optimal_omega`): at the first generation
Omega* = beta^2 / (beta^2 + V_aux) with V_aux = v / n_aux, and through the loop's recursion

    Omega*_loop = beta^2 / (beta^2 + V_aux (1 - lam) / (1 + lam)),    (1 - lam) / (1 + lam) = n / (n + 2m):

the loop enlarges a repeated drift by 1 / (1 - lam) but independent noise only by 1 / sqrt(1 - lam^2), so more of the
drift is worth removing. For 'train+synthetic' with n_aux = m this is omega* = (1 + 2r)^2 / (r (1 + 2r) + V_1 / beta^2)
with r = m / n and V_1 = v / n; without noise it is 2 + n / m. Whether one omega serves all |D_s| is a matter of
rho = beta^2 / V_1 (`sims_toy.sweep.response_table.optima`): between 2 and 3 omega* changes by less than a fifth from
m = n / 8 to n, outside it does not stay. Here rho = 2.4, since we chose n = 1000 and DDIM-20; the paper states neither.

`docs/mathematics.md` has the departure of both orders from Monte-Carlo. The population limit without approximation
is `sims_toy.exact.ExactLearner(noise=False)`.

Prior work. Kaiser, Adaloglou et al. (arXiv 2411.10257): if the negative model's error is alpha times the positive's,
w = 1 / (alpha - 1) cancels it, the noise-free limit omega eta = 1. Neon (arXiv 2510.03597): optimum and safe window
for weight extrapolation, one generation, as a local quadratic in parameter risk. Golden-ratio weighting (arXiv
2502.18049) and Khelifa et al. (arXiv 2602.16601, 2606.13796): recursions in loops without guidance. We have not found
elsewhere: the optimum with the auxiliary's own noise, and the phase boundaries in (omega, |D_s|, eta) inside a loop.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq, minimize_scalar

from sims_core.algorithm import AUXILIARY_DATA
from sims_core.errors import InputError, choose

Array = NDArray[np.float64]

#: A regime's tolerance: a distance may exceed what it is compared with by 5 % (our reading of Figure 4's colours).
TOLERANCE = 1.05


def data_noise(cov: ArrayLike) -> float:
    """v such that E[W2^2] = v / n + O(n^-2) for the maximum-likelihood fit of n points of N(mu, cov).

    v = tr S + sum_ij l_i l_j (1 + delta_ij) / (2 (l_i + l_j)), with eigenvalues l: the mean's part and the
    covariance's (entries of a Wishart matrix, measured by the Bures metric). 6.75 for [[2,1],[1,2]].
    """
    values = np.linalg.eigvalsh(np.asarray(cov, dtype=np.float64))
    outer, total = np.outer(values, values), np.add.outer(values, values)
    return float(values.sum() + (outer * (1 + np.eye(len(values))) / (2 * total)).sum())


def standard_limit(n: float, m: float) -> float:
    """E[W2^2] at convergence over generation 1, standard training, exact maximum likelihood: 1 + m / (n + 2m)."""
    return 1 + m / (n + 2 * m)


@dataclass(frozen=True)
class Mode:
    """One direction of the parameters in which sampler and estimator act by themselves.

    drift: the bias of sampler and estimator there, in the parameter's own units. noise: its share of v. gain: J (or M),
    how much of a displacement they pass on. variance: the real variance, where the parameter is one (then W2^2 of a
    displacement mu is (sqrt(variance + mu) - sqrt(variance))^2 rather than mu^2).
    """

    drift: float
    noise: float
    gain: float = 1.0
    variance: float | None = None

    def squared(self, coefficient: Array) -> Array:
        """W2^2 of the mean displacement ``coefficient * drift``."""
        finite = np.isfinite(coefficient)
        mu = np.where(finite, coefficient, 0.0) * self.drift
        if self.variance is not None:
            mu = np.sqrt(np.maximum(self.variance + mu, 0)) - math.sqrt(self.variance)
        return np.where(finite, mu**2, np.inf)


@dataclass(frozen=True)
class Setting:
    """One column of the phase diagram: everything but omega.

    n: |D_r|. m: |D_s|. n_aux: synthetic points the auxiliary sees. eta: how far it moves toward its data, [0, 1].
    auxiliary_data: a name of `sims_core.algorithm.AUXILIARY_DATA`. modes: from `plain_modes` (first order, gain 1)
    or `sims_toy.exact.sampler_modes`. Raises `InputError` for sizes that are not positive or eta outside [0, 1].
    """

    n: float
    m: float
    n_aux: float
    eta: float
    auxiliary_data: str
    modes: tuple[Mode, ...]

    def __post_init__(self) -> None:
        for name in ("n", "m", "n_aux"):
            if not getattr(self, name) > 0:
                raise InputError(name, getattr(self, name), "give a positive size")
        if not 0 <= self.eta <= 1:
            raise InputError("eta", self.eta, "give a fraction in [0, 1]")
        choose("auxiliary_data", self.auxiliary_data, AUXILIARY_DATA)

    @property
    def lam(self) -> float:
        """Synthetic share of the loop's training set, m / (n + m)."""
        return self.m / (self.n + self.m)

    @property
    def quadratic(self) -> bool:
        """Whether E[W2^2] is a quadratic in omega: gain 1 everywhere, and an auxiliary that sees no extra real data."""
        plain = all(mode.gain == 1 and mode.variance is None for mode in self.modes)
        return plain and self.auxiliary_data != "real+synthetic"

    def kappa(self, first: bool) -> float:
        """Share of the base's own samples in the auxiliary's data, at the first or a later generation."""
        if self.auxiliary_data == "synthetic":
            return 1.0
        rest = self.n + self.m if self.auxiliary_data == "train+synthetic" and not first else self.n
        return self.n_aux / (rest + self.n_aux)


def plain_modes(beta_sq: float, v: float) -> tuple[Mode, ...]:
    """Plain first order: one mode with the sampler's squared bias (W2^2), `data_noise` v, and gain 1."""
    return (Mode(drift=math.sqrt(beta_sq), noise=v),)


@dataclass(frozen=True)
class Response:
    """Linear response at one generation, in W2^2; arrays follow omega's shape.

    bias_sq: squared distance of the mean. variance: the spread around it, the real data's own draw included.
    """

    bias_sq: Array
    variance: Array

    @property
    def w2_sq(self) -> Array:
        """E[W2^2]."""
        return np.asarray(self.bias_sq + self.variance)


def response(setting: Setting, omega: ArrayLike, generation: float = math.inf) -> Response:
    """Linear response of the augmentation loop at a generation (1, 2, ...) or at convergence (inf, the default).

    Where the loop has no limit (lam |A| >= 1) the limit's entries are inf.
    """
    if not math.isinf(generation) and (generation < 1 or generation != int(generation)):
        raise InputError("generation", generation, "give 1, 2, ... or inf")
    w = np.asarray(omega, dtype=np.float64)
    bias_sq, variance = np.zeros_like(w), np.zeros_like(w)
    for mode in setting.modes:
        drift, real, noise = _coefficients(setting, mode.gain, w, generation)
        bias_sq = bias_sq + mode.squared(drift)
        variance = variance + mode.noise * (real**2 / setting.n + noise)
    return Response(bias_sq, variance)


def _coefficients(setting: Setting, gain: float, w: Array, generation: float) -> tuple[Array, Array, Array]:
    """Coefficients of beta and eps_r, and the independent variance in units of v, for one mode of gain J."""
    lam = setting.lam

    def step(first: bool) -> tuple[Array, Array, Array, Array]:
        kappa = setting.kappa(first)
        big = w * setting.eta * kappa
        x = w * setting.eta * (1 - kappa) if setting.auxiliary_data == "real+synthetic" else np.zeros_like(w)
        return gain * (1 + x + big * (1 - gain)), gain * x, 1 - gain * big, gain * big

    if math.isinf(generation):
        a, back, kept, added = step(first=False)
        stable = lam * np.abs(a) < 1
        with np.errstate(divide="ignore", invalid="ignore"):
            drift = np.where(stable, kept / (1 - lam * a), np.inf)
            real = np.where(stable, (a * (1 - lam) - back) / (1 - lam * a), np.inf)
            noise = np.where(
                stable, (a**2 * lam**2 / setting.m + added**2 / setting.n_aux) / (1 - a**2 * lam**2), np.inf
            )
        return drift, real, noise
    base = (np.zeros_like(w), np.ones_like(w), np.zeros_like(w))
    for t in range(1, int(generation) + 1):
        a, back, kept, added = step(first=t == 1)
        drift, real = a * base[0] + kept, a * base[1] - back
        noise = a**2 * base[2] + added**2 / setting.n_aux
        base = (lam * drift, 1 - lam + lam * real, lam**2 * (noise + 1 / setting.m))
    return drift, real, noise


def optimal_omega(setting: Setting, generation: float = math.inf) -> float:
    """The omega that minimises E[W2^2] at the first generation (1) or at convergence (inf): the shrinkage law.

    Closed form (see the module's text) where `Setting.quadratic` holds; found numerically in [0, 50] with a sampler's
    gain; nan for 'real+synthetic', whose loop punishes every omega, and for eta = 0, where omega does nothing.
    """
    if setting.auxiliary_data == "real+synthetic" or setting.eta == 0:
        return math.nan
    if generation not in (1, math.inf):
        raise InputError("generation", generation, "give 1 or inf")
    first = generation == 1
    if not setting.quadratic:
        grid = np.linspace(0, 50, 2001)
        i = int(np.argmin(response(setting, grid, generation).w2_sq))
        low, high = grid[max(i - 1, 0)], grid[min(i + 1, len(grid) - 1)]
        found = minimize_scalar(
            lambda w: float(response(setting, w, generation).w2_sq), bounds=(low, high), method="bounded"
        )
        return float(found.x)
    beta_sq = sum(mode.drift**2 for mode in setting.modes)
    v = sum(mode.noise for mode in setting.modes)
    v_aux = v / setting.n_aux * (1 if first else (1 - setting.lam) / (1 + setting.lam))
    if beta_sq + v_aux == 0:
        return 0.0
    return beta_sq / (beta_sq + v_aux) / (setting.eta * setting.kappa(first))


def error_at_optimum(setting: Setting, generation: float = math.inf) -> float:
    """E[W2^2] left at `optimal_omega`; plainly at generation 1 it is V_1 + beta^2 V_aux / (beta^2 + V_aux)."""
    return float(response(setting, optimal_omega(setting, generation), generation).w2_sq)


def shrinkage(error: ArrayLike, drift: ArrayLike, noise: float = 0.0) -> float:
    """omega* = <e, d> / (|d|^2 + V_aux): the omega that minimises E|e - omega (d + noise)|^2 at the first generation.

    error: e, of the base. drift: d = eta M e, what one round of self-training adds to it. noise: V_aux, the expected
    squared length of what the auxiliary's finite data add to d. 0 without drift and noise.
    """
    e, d = (np.asarray(x, dtype=np.float64) for x in (error, drift))
    below = float(d @ d) + noise
    return float(e @ d) / below if below > 0 else 0.0


def least_cosine(low: float, high: float) -> float:
    """Kantorovich's bound: cos(e, M e) >= 2 sqrt(mL) / (m + L) for M symmetric with spectrum in [m, L], 0 < m <= L."""
    _spectrum(low, high)
    return 2 * math.sqrt(low * high) / (low + high)


def most_left(low: float, high: float) -> float:
    """(L - m) / (L + m): the most of |e| that SIMS leaves at omega eta = 2 / (m + L), spectrum as `least_cosine`."""
    _spectrum(low, high)
    return (high - low) / (high + low)


def _spectrum(low: float, high: float) -> None:
    if not 0 < low <= high:
        raise InputError("low", (low, high), "give the ends of a positive spectrum, 0 < low <= high")


def iterated(spectrum: ArrayLike, omega: float, steps: float = math.inf) -> Array:
    """What iterated SIMS leaves of each eigenvector of M after ``steps``: (1 - omega mu)^steps, `spectrum`'s shape.

    The iteration is theta <- theta + omega (b - G(theta)) from theta = b, whose first step is SIMS. At the limit (inf)
    0 where |1 - omega mu| < 1, 1 where mu = 0 (what self-training cannot see stays) and inf where it diverges.
    Complex eigenvalues give complex factors at finite ``steps``.
    """
    factor = 1 - omega * np.asarray(spectrum)
    if not math.isinf(steps):
        return np.asarray(factor**steps)
    size = np.abs(factor)
    return np.where(np.isclose(factor, 1, rtol=0, atol=1e-9), 1.0, np.where(size < 1, 0.0, np.inf))


def boundaries(setting: Setting, omega_max: float = 20.0) -> dict[str, list[tuple[float, float]]]:
    """The intervals of omega in [0, omega_max] where each regime's condition holds at convergence.

    With d^2 = E[W2^2] and c = `TOLERANCE`: 'prevention' d_inf(w) <= c d_1(w) and d_inf(w) <= c d_1(0); 'strong'
    d_inf(w) <= c d_1(0); 'weak' d_inf(w) <= d_inf(0); 'finite' d_inf(w) < inf. The conditions are quadratic
    inequalities in omega, solved in closed form, where `Setting.quadratic` holds; rational ones, bracketed on a grid
    and solved numerically, elsewhere.
    """
    c2 = TOLERANCE**2
    first0, last0 = float(response(setting, 0.0, 1).w2_sq), float(response(setting, 0.0).w2_sq)

    def excess(w: ArrayLike, bound: Array | float) -> Array:
        limit = response(setting, w).w2_sq
        with np.errstate(invalid="ignore"):  # inf is above every bound, inf included
            return np.where(np.isfinite(limit), limit - bound, np.inf)

    own = _where_negative(lambda w: excess(w, c2 * response(setting, w, 1).w2_sq), setting, omega_max)
    strong = _where_negative(lambda w: excess(w, c2 * first0), setting, omega_max)
    weak = _where_negative(lambda w: excess(w, last0), setting, omega_max)
    finite = _where_negative(lambda w: np.sign(excess(w, 0.0) - 1e300), setting, omega_max)
    return {"prevention": _intersect(own, strong), "strong": strong, "weak": weak, "finite": finite}


def _where_negative(f: Callable[[ArrayLike], Array], setting: Setting, top: float) -> list[tuple[float, float]]:
    """Maximal intervals of [0, top] on which f <= 0."""
    if setting.quadratic:
        below, at, above = (float(f(w)) for w in (-1.0, 0.0, 1.0))  # three values give a quadratic exactly
        coefficients = ((below + above) / 2 - at, (above - below) / 2, at)
        roots = [float(r.real) for r in np.roots(coefficients) if abs(r.imag) < 1e-12] if any(coefficients[:2]) else []
    else:
        grid = np.linspace(0, top, 801)
        values = f(grid)
        roots = []
        for i in np.flatnonzero((values[:-1] <= 0) != (values[1:] <= 0)):
            low, high = float(grid[i]), float(grid[i + 1])
            smooth = np.isfinite(values[i : i + 2]).all() and not np.array_equal(np.abs(values[i : i + 2]), [1, 1])
            roots.append(float(brentq(lambda w: float(f(w)), low, high)) if smooth else _bisect(f, low, high))
    cuts = [0.0, *sorted(r for r in roots if 0 < r < top), top]
    pieces = [(a, b) for a, b in itertools.pairwise(cuts) if float(f((a + b) / 2)) <= 0]
    joined: list[tuple[float, float]] = []
    for a, b in pieces:
        if joined and math.isclose(joined[-1][1], a):
            joined[-1] = (joined[-1][0], b)
        else:
            joined.append((a, b))
    return joined


def _bisect(f: Callable[[ArrayLike], Array], low: float, high: float) -> float:
    """Where f's sign changes by a jump (a pole of the limit)."""
    sign = float(f(low)) <= 0
    for _ in range(50):
        middle = (low + high) / 2
        if (float(f(middle)) <= 0) == sign:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _intersect(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> list[tuple[float, float]]:
    overlaps = [(max(p[0], q[0]), min(p[1], q[1])) for p in a for q in b]
    return [(low, high) for low, high in overlaps if low < high]
