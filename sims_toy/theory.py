r"""Closed forms for Gaussians: what SIMS corrects, what it amplifies, and where the phases lie.

Linear response
---------------
Write parameters as displacements from the real Gaussian in coordinates whose squared length is W2^2
(`sims_toy.gaussian.tangent`). To first order

* fitting n points of a distribution adds noise xi / sqrt(n) with E|xi|^2 = v (`data_noise`);
* the sampler adds a fixed drift beta (its bias at the real Gaussian), beta^2 = |beta|^2 = W2^2.

Generation t trains its base b_t on D_r (n points, noise eps_r, the same in every generation) with m points of
generation t-1, lam = m / (n + m):

    b_1 = eps_r,    b_t = (1 - lam) eps_r + lam (g_{t-1} + xi_t / sqrt(m)).

Its auxiliary moves the fraction eta toward the fit of its own data, of which the base's n_aux samples are the share
kappa: 1 for 'synthetic', n_aux / (n_train + n_aux) for 'train+synthetic' with n_train = n at t = 1 and n + m after,
and n_aux / (n + n_aux) for 'real+synthetic'. With Omega = omega eta kappa the SIMS model's samples are displaced by

    g_t = b_t + (1 - Omega) beta - Omega zeta_t / sqrt(n_aux)                              (synthetic, train+synthetic)
    g_t = A b_t - (A - 1) eps_r + (1 - Omega) beta - Omega zeta_t / sqrt(n_aux),           (real+synthetic)
          A = 1 + omega eta (1 - kappa).

So SIMS removes the fraction Omega of the drift beta, leaves b_t (what the base's own samples carry faithfully), and
adds noise. Averages over the draws follow by carrying three numbers through the loop: the coefficients of beta and of
eps_r, and the variance of what is independent (`response`). At convergence, for A = 1,

    E W2^2 = beta^2 (1 - Omega)^2 / (1 - lam)^2 + v [ 1/n + (lam^2 / m + Omega^2 / n_aux) / (1 - lam^2) ].

Consequences: omega = 0 and beta = 0 give the limit of standard training, 1 + m / (n + 2m) times generation 1
(`standard_limit`). Minimising over Omega gives the shrinkage law (`optimal_omega`): at the first generation
Omega* = beta^2 / (beta^2 + V_aux) with V_aux = v / n_aux, and through the loop's recursion

    Omega*_loop = beta^2 / (beta^2 + V_aux (1 - lam) / (1 + lam)),    (1 - lam) / (1 + lam) = n / (n + 2m):

the loop enlarges a repeated drift by 1 / (1 - lam) but independent noise only by 1 / sqrt(1 - lam^2), so more of the
drift is worth removing. For 'train+synthetic' with n_aux = m this is omega* = (1 + 2r)^2 / (r (1 + 2r) + V_1 / beta^2)
with r = m / n and V_1 = v / n. As V_1 / beta^2 = 0.42 for N(0, [[2,1],[1,2]]), n = 1000 and DDIM-20, omega* lies
between 2.6 and 2.9 for every m from 125 to 1000: one omega, close to 3, serves all |D_s|, as the paper's Figure 4
reports.

First order holds while Omega and beta are small against the spread of the data; `docs/mathematics.md` has the
departure measured against Monte-Carlo. The population limit without this approximation is
`sims_toy.exact.ExactLearner(noise=False)`.

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
from scipy.optimize import brentq

from sims_core.algorithm import AUXILIARY_DATA
from sims_core.errors import InputError, choose

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
class Setting:
    """One column of the phase diagram: everything but omega.

    n: |D_r|. m: |D_s|. n_aux: synthetic points the auxiliary sees. eta: how far it moves toward its data, [0, 1].
    auxiliary_data: a name of `sims_core.algorithm.AUXILIARY_DATA`. beta_sq: the sampler's squared bias (W2^2).
    v: `data_noise` of the real covariance. Raises `InputError` for sizes that are not positive or eta outside [0, 1].
    """

    n: float
    m: float
    n_aux: float
    eta: float
    auxiliary_data: str
    beta_sq: float
    v: float

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

    def kappa(self, first: bool) -> float:
        """Share of the base's own samples in the auxiliary's data, at the first or a later generation."""
        if self.auxiliary_data == "synthetic":
            return 1.0
        rest = self.n + self.m if self.auxiliary_data == "train+synthetic" and not first else self.n
        return self.n_aux / (rest + self.n_aux)


@dataclass(frozen=True)
class Response:
    """First-order response at one generation; arrays follow omega's shape.

    drift: coefficient of beta. real: coefficient of eps_r. noise: variance of the independent rest, in units of v.
    """

    setting: Setting
    drift: NDArray[np.float64]
    real: NDArray[np.float64]
    noise: NDArray[np.float64]

    @property
    def bias_sq(self) -> NDArray[np.float64]:
        """Squared mean displacement, in W2^2."""
        return np.asarray(self.setting.beta_sq * self.drift**2)

    @property
    def variance(self) -> NDArray[np.float64]:
        """Variance around it, in W2^2, the real data's own draw included."""
        return np.asarray(self.setting.v * (self.real**2 / self.setting.n + self.noise))

    @property
    def w2_sq(self) -> NDArray[np.float64]:
        """E[W2^2] to first order."""
        return np.asarray(self.bias_sq + self.variance)


def response(setting: Setting, omega: ArrayLike, generation: float = math.inf) -> Response:
    """Linear response of the augmentation loop at a generation (1, 2, ...) or at convergence (inf, the default).

    Where the loop has no limit (lam A >= 1, 'real+synthetic' only) the limit's entries are inf.
    """
    w = np.asarray(omega, dtype=np.float64)
    lam = setting.lam

    def step(first: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        kappa = setting.kappa(first)
        gain = 1 + w * setting.eta * (1 - kappa) if setting.auxiliary_data == "real+synthetic" else np.ones_like(w)
        return gain, w * setting.eta * kappa

    if math.isinf(generation):
        gain, big = step(first=False)
        stable = lam * np.abs(gain) < 1
        with np.errstate(divide="ignore", invalid="ignore"):
            drift = np.where(stable, (1 - big) / (1 - lam * gain), np.inf)
            noise = (gain**2 * lam**2 / setting.m + big**2 / setting.n_aux) / (1 - gain**2 * lam**2)
        return Response(setting, drift, np.ones_like(w), np.where(stable, noise, np.inf))
    if generation < 1 or generation != int(generation):
        raise InputError("generation", generation, "give 1, 2, ... or inf")
    base = (np.zeros_like(w), np.ones_like(w), np.zeros_like(w))
    for t in range(1, int(generation) + 1):
        gain, big = step(first=t == 1)
        drift = gain * base[0] + 1 - big
        real = gain * base[1] - (gain - 1)
        noise = gain**2 * base[2] + big**2 / setting.n_aux
        base = (lam * drift, 1 - lam + lam * real, lam**2 * (noise + 1 / setting.m))
    return Response(setting, drift, real, noise)


def optimal_omega(setting: Setting, generation: float = math.inf) -> float:
    """The omega that minimises E[W2^2] at the first generation (1) or at convergence (inf): the shrinkage law.

    Closed form for 'synthetic' and 'train+synthetic' (see the module's text); nan for 'real+synthetic', whose optimum
    this function does not give, and for eta = 0, where omega does nothing.
    """
    if setting.auxiliary_data == "real+synthetic" or setting.eta == 0:
        return math.nan
    if generation not in (1, math.inf):
        raise InputError("generation", generation, "give 1 or inf")
    first = generation == 1
    v_aux = setting.v / setting.n_aux * (1 if first else (1 - setting.lam) / (1 + setting.lam))
    total = setting.beta_sq + v_aux
    if total == 0:
        return 0.0
    return setting.beta_sq / total / (setting.eta * setting.kappa(first))


def error_at_optimum(setting: Setting, generation: float = math.inf) -> float:
    """E[W2^2] left at `optimal_omega`; at generation 1 it is V_1 + beta^2 V_aux / (beta^2 + V_aux)."""
    return float(response(setting, optimal_omega(setting, generation), generation).w2_sq)


def boundaries(setting: Setting, omega_max: float = 20.0) -> dict[str, list[tuple[float, float]]]:
    """The intervals of omega in [0, omega_max] where each regime's condition holds, to first order, at convergence.

    With d^2 = E[W2^2] and c = `TOLERANCE`: 'prevention' d_inf(w) <= c d_1(w) and d_inf(w) <= c d_1(0); 'strong'
    d_inf(w) <= c d_1(0); 'weak' d_inf(w) <= d_inf(0); 'finite' d_inf(w) < inf. The conditions are quadratic
    inequalities in omega, solved in closed form, for 'synthetic' and 'train+synthetic'; rational ones, solved
    numerically between their poles, for 'real+synthetic'.
    """
    c2 = TOLERANCE**2
    first0 = float(response(setting, 0.0, 1).w2_sq)
    last0 = float(response(setting, 0.0).w2_sq)

    def limit(w: float) -> float:
        return float(response(setting, w).w2_sq)

    own = _where_negative(lambda w: limit(w) - c2 * float(response(setting, w, 1).w2_sq), setting, omega_max)
    strong = _where_negative(lambda w: limit(w) - c2 * first0, setting, omega_max)
    weak = _where_negative(lambda w: limit(w) - last0, setting, omega_max)
    edge = omega_max
    if setting.auxiliary_data == "real+synthetic" and setting.eta > 0:
        edge = min(omega_max, (1 / setting.lam - 1) / (setting.eta * (1 - setting.kappa(False))))
    return {"prevention": _intersect(own, strong), "strong": strong, "weak": weak, "finite": [(0.0, edge)]}


def _where_negative(f: Callable[[float], float], setting: Setting, top: float) -> list[tuple[float, float]]:
    if setting.auxiliary_data != "real+synthetic":
        at = (f(-1.0), f(0.0), f(1.0))  # f is a quadratic: three values give it exactly
        coefficients = ((at[0] + at[2]) / 2 - at[1], (at[2] - at[0]) / 2, at[1])
        roots = [float(r.real) for r in np.roots(coefficients) if abs(r.imag) < 1e-12] if any(coefficients[:2]) else []
    else:
        grid = np.linspace(0, top, 2001)
        values = np.array([f(w) for w in grid])
        roots = [
            brentq(f, a, b)
            for a, b, fa, fb in zip(grid[:-1], grid[1:], values[:-1], values[1:], strict=True)
            if math.isfinite(fa) and math.isfinite(fb) and (fa < 0) != (fb < 0)
        ]
        poles = np.flatnonzero(np.isfinite(values[:-1]) != np.isfinite(values[1:]))
        roots += [float(grid[i + 1]) for i in poles]
    cuts = [0.0, *sorted(float(r) for r in roots if 0 < r < top), top]
    pieces = [(a, b) for a, b in itertools.pairwise(cuts) if f((a + b) / 2) <= 0]
    joined: list[tuple[float, float]] = []
    for a, b in pieces:
        if joined and math.isclose(joined[-1][1], a):
            joined[-1] = (joined[-1][0], b)
        else:
            joined.append((a, b))
    return joined


def _intersect(a: list[tuple[float, float]], b: list[tuple[float, float]]) -> list[tuple[float, float]]:
    overlaps = [(max(p[0], q[0]), min(p[1], q[1])) for p in a for q in b]
    return [(low, high) for low, high in overlaps if low < high]
