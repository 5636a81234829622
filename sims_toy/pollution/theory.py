r"""Why a little pollution helps SIMS, and when: linear response of one generation trained on D_r and D_p.

All displacements from the real Gaussian are carried as coefficients of four things (notation: `sims_toy.theory`): the
sampler's drift beta, the noise eps of D_r, xi of D_p and zeta of the auxiliary's samples, of variance v/n,
v/n_p and v/n_aux. With lam = n_p / (n + n_p) and the sampler's gain J,

    D_p       = beta + J eps + xi                      samples of a previous generation, trained on D_r
    base      = (1 - lam) eps + lam D_p
    auxiliary = base + eta (its data - base),          data: beta + J base + zeta for Algorithm 1, or D_p itself
    output    = beta + J (base - omega (auxiliary - base)).

At J = 1 and with Omega = omega eta, Algorithm 1's auxiliary gives

    output = eps + (1 + lam - Omega) beta + lam xi - Omega zeta,
    E W2^2 = v/n + (1 + lam - Omega)^2 beta^2 + lam (1 - lam) v/n + Omega^2 v/n_aux      (lam^2/n_p = lam (1-lam)/n).

Pollution hands the base lam of the drift and the noise lam (1 - lam) v/n. Consequences:

* at a fixed Omega a little pollution helps if and only if Omega > 1 + v / (2 n beta^2) (`threshold`): the guidance
  over-corrects a clean base by Omega - 1 of the drift, pollution supplies it, and its noise must cost less than that;
* the best pollution at a fixed Omega is lam = (2 (Omega - 1) beta^2 - v/n) / (2 (beta^2 - v/n)), which tends to
  lam = Omega - 1, that is n_p/n = (Omega - 1) / (2 - Omega), for n -> inf (`best_share`);
* at the best Omega = (1 + lam) beta^2 / (beta^2 + v/n_aux) for each lam, E W2^2 = v/n (1 + lam (1 - lam)) +
  (1 + lam)^2 beta^2 (v/n_aux) / (beta^2 + v/n_aux), which rises with lam up to 1/2: once omega is tuned, pollution only
  hurts. The benefit is an artefact of a fixed omega.

"Self-improved below a dose" has two readings (`pays_until`). Against SIMS on clean data at the same Omega it pays until

    lam = (2 (Omega - 1) beta^2 - v/n) / (beta^2 - v/n),       2 (Omega - 1) without noise,

twice the best dose. Against the *base*, standard training on clean data, it pays until the larger root of

    lam^2 (beta^2 - v/n) + lam (2 (1 - Omega) beta^2 + v/n) + (1 - Omega)^2 beta^2 - beta^2 + Omega^2 v/n_aux = 0,

which without noise is lam = Omega: a polluted base has (1 + lam) of the drift, of which Omega is taken off.

With the auxiliary trained on D_p itself, and u = Omega (1 - lam) - lam,

    output = eps + (1 - u) beta - u xi,        E W2^2 = v/n + (1 - u)^2 beta^2 + u^2 v/n_p:

the base's pollution and the auxiliary are the same points, so that guidance takes it out again, noise included. The
best u is beta^2 / (beta^2 + v/n_p), that is Omega = (u + lam) / (1 - lam), 1 + 2 n_p/n without noise; the least E W2^2
is v/n + beta^2 (v/n_p) / (beta^2 + v/n_p): SIMS on clean data with |D_p| samples for its auxiliary, no better, no
worse. Here more pollution does help, because it is the auxiliary's data.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from sims_core.algorithm import AUXILIARY_DATA, sims
from sims_core.errors import InputError, choose
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy.exact import ExactLearner
from sims_toy.gaussian import Gaussian
from sims_toy.theory import Mode

Array = NDArray[np.float64]

#: The variant whose auxiliary is trained on D_p itself.
VARIANT = "pollution"


#: |D_p|/|D_r| below which the SIMS paper has a self-improved FID on CIFAR-10 and FFHQ-64 (a secondary source).
SELF_IMPROVED = (0.6, 0.2)

#: Where the search for the best dose begins, in place of 0.
_LEAST = 1e-9


@dataclass(frozen=True)
class Dose:
    """One generation on D_r with D_p: n = |D_r|, n_aux points for the auxiliary, which moves eta of the way to its
    data, and what those are (a name of `sims_core.algorithm.AUXILIARY_DATA`, or `VARIANT`)."""

    n: float
    n_aux: float
    eta: float
    auxiliary_data: str
    modes: tuple[Mode, ...]

    def __post_init__(self) -> None:
        choose("auxiliary_data", self.auxiliary_data, [*AUXILIARY_DATA, VARIANT])
        for name in ("n", "n_aux"):
            if not getattr(self, name) > 0:
                raise InputError(name, getattr(self, name), "give a positive size")

    def w2_sq(self, ratio: ArrayLike, omega: ArrayLike) -> Array:
        """E[W2^2] at |D_p|/|D_r| = ``ratio`` and ``omega``, broadcast; `VARIANT` needs a ratio above 0."""
        r, w = np.broadcast_arrays(np.asarray(ratio, dtype=np.float64), np.asarray(omega, dtype=np.float64))
        total = np.zeros(r.shape)
        with np.errstate(divide="ignore", invalid="ignore"):
            for mode in self.modes:
                beta, eps, xi, zeta = self._output(r / (1 + r), w, mode.gain)
                foreign = np.where(r > 0, xi**2 / (r * self.n), 0.0)
                noise = eps**2 / self.n + foreign + zeta**2 / self.n_aux
                total = total + mode.squared(beta) + mode.noise * noise
        return np.asarray(total)

    def _output(self, lam: Array, w: Array, gain: float) -> Array:
        """Coefficients of (beta, eps, xi, zeta) in the samples' displacement, (4, ...)."""
        beta, eps, xi, zeta = (np.eye(4)[i].reshape(4, *[1] * lam.ndim) for i in range(4))
        foreign = beta + gain * eps + xi
        base = (1 - lam) * eps + lam * foreign
        own = beta + gain * base + zeta
        n_p = lam / (1 - lam) * self.n
        rest = {"synthetic": base, "train+synthetic": base, "real+synthetic": eps, VARIANT: base}[self.auxiliary_data]
        train = {
            "synthetic": 0 * n_p,
            "train+synthetic": self.n + n_p,
            "real+synthetic": self.n + 0 * n_p,
            VARIANT: 0 * n_p,
        }
        kappa = self.n_aux / (self.n_aux + train[self.auxiliary_data])
        goal = foreign if self.auxiliary_data == VARIANT else kappa * own + (1 - kappa) * rest
        return np.asarray(beta + gain * (base - w * self.eta * (goal - base)))

    def best_omega(self, ratio: ArrayLike) -> Array:
        """The omega of least E[W2^2] for each ratio (a quadratic in omega where all modes are plain)."""
        return minimise(lambda w, r: self.w2_sq(r, w), ratio, 0.0, 12.0)

    def best_ratio(self, omega: ArrayLike, most: float = 4.0) -> Array:
        """The |D_p|/|D_r| of least E[W2^2] for each omega: 0 where none helps, inf where it lies beyond ``most``."""
        found = minimise(lambda r, w: self.w2_sq(r, w), omega, _LEAST, most)
        return np.where(found <= 2 * _LEAST, 0.0, np.where(found >= (1 - 1e-9) * most, np.inf, found))

    def pays_until(self, omega: float, than: str, most: float = 50.0) -> float:
        """The largest |D_p|/|D_r| at which SIMS at ``omega`` has a lower E[W2^2] than ``than``, without pollution.

        than: 'base' (standard training) or 'clean' (SIMS at the same omega). 0 where no dose does, inf beyond ``most``.
        """
        level = float(self.w2_sq(0.0, omega if choose("than", than, ("base", "clean")) == "clean" else 0.0))
        share = np.linspace(_LEAST, most / (1 + most), 4001)

        def excess(lam: ArrayLike) -> Array:
            r = np.asarray(lam) / (1 - np.asarray(lam))
            return np.asarray(self.w2_sq(r, omega) - level)

        below = np.flatnonzero(excess(share) < 0)
        if not len(below):
            return 0.0
        if below[-1] == len(share) - 1:
            return float("inf")
        end = brentq(lambda lam: float(excess(lam)), share[below[-1]], share[below[-1] + 1])
        return float(end / (1 - end))

    def crossing(self, ratio: float, than: str, most: float = 12.0) -> float:
        """The least omega at which SIMS at |D_p|/|D_r| = ``ratio`` becomes better than ``than``, without pollution.

        than: as `pays_until`, whose inverse it is. NaN where there is none below ``most``.
        """
        omega = np.linspace(0, most, 1201)
        clean = choose("than", than, ("base", "clean")) == "clean"

        def excess(w: ArrayLike) -> Array:
            return np.asarray(self.w2_sq(ratio, w) - self.w2_sq(0.0, w if clean else 0.0))

        below = np.flatnonzero(excess(omega) < 0)
        if not len(below) or not below[0]:
            return float("nan")
        return float(brentq(lambda w: float(excess(w)), omega[below[0] - 1], omega[below[0]]))


def minimise(function: Callable[[Array, Array], Array], at: ArrayLike, low: float, high: float) -> Array:
    """argmin over x in [low, high] of ``function(x, a)`` for each a, by a grid of 400 values refined three times."""
    a = np.atleast_1d(np.asarray(at, dtype=np.float64))[:, None]
    left, right = np.full(a.shape, low), np.full(a.shape, high)
    for _ in range(4):
        x = left + (right - left) * np.linspace(0, 1, 400)
        best = function(x, np.broadcast_to(a, x.shape)).argmin(1)[:, None]
        step = (right - left) / 399
        centre = np.take_along_axis(x, best, 1)
        left, right = np.maximum(centre - step, low), np.minimum(centre + step, high)
    return np.asarray(centre[:, 0]).reshape(np.shape(at))


def population_omega(ratio: ArrayLike, auxiliary_data: str) -> Array:
    """The best omega*eta without noise: 1 + lam, or 1 + 2 |D_p|/|D_r| where the auxiliary is trained on D_p."""
    r = np.asarray(ratio, dtype=np.float64)
    return np.asarray(1 + 2 * r if auxiliary_data == VARIANT else 1 + r / (1 + r))


def population_pays_until(strength: ArrayLike, than: str) -> Array:
    """`Dose.pays_until` without noise: lam = Omega (base) or 2 (Omega - 1) (clean), as |D_p|/|D_r|; inf from 1 on."""
    big = np.asarray(strength, dtype=np.float64)
    lam = np.maximum(big if choose("than", than, ("base", "clean")) == "base" else 2 * (big - 1), 0)
    with np.errstate(divide="ignore"):
        return np.where(lam < 1, lam / (1 - np.minimum(lam, 1)), np.inf)


def population_crossing(ratio: ArrayLike, than: str) -> Array:
    """`Dose.crossing` without noise, as Omega: lam (base) or 1 + lam / 2 (clean)."""
    lam = np.asarray(ratio, dtype=np.float64) / (1 + np.asarray(ratio, dtype=np.float64))
    return np.asarray(lam if choose("than", than, ("base", "clean")) == "base" else 1 + lam / 2)


def population_ratio(strength: ArrayLike) -> Array:
    """The best |D_p|/|D_r| at a fixed Omega without noise: (Omega - 1) / (2 - Omega); 0 to 1, inf beyond 2."""
    w = np.asarray(strength, dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.where(w <= 1, 0.0, np.where(w < 2, (w - 1) / np.maximum(2 - w, 1e-300), np.inf))


def threshold(beta_sq: float, v: float, n: float) -> float:
    """The Omega = omega*eta above which a little pollution helps at a fixed omega: 1 + v / (2 n beta^2) (J = 1)."""
    return 1 + v / (2 * n * beta_sq)


def best_share(strength: float, beta_sq: float, v: float, n: float) -> float:
    """The share lam in [0, 1/2] of least E[W2^2] at a fixed Omega, J = 1; 0 below `threshold`."""
    gain, curvature = 2 * (strength - 1) * beta_sq - v / n, 2 * (beta_sq - v / n)
    if gain <= 0:
        return 0.0
    return 0.5 if curvature <= 0 else float(min(0.5, gain / curvature))


# ---------------------------------------------------------- without linear response


def population(
    real: Gaussian,
    sampler: Sampler,
    ratio: float,
    omega: Sequence[float] | Array,
    auxiliary_data: str,
    eta: float = 1.0,
) -> Array:
    """W2 without noise for each omega, nothing approximated: the exact learner on population moments, (len(omega),).

    ratio: |D_p|/|D_r|; 0 is the clean base. An auxiliary on mixed data ('train+synthetic') sees |D_r| samples.
    """
    w = np.asarray(omega, dtype=np.float64)
    learner, seed = ExactLearner(sampler, np.zeros(len(w), dtype=np.int64), noise=False), Seed(0)
    data = learner.draw(real, 1.0, seed=seed)
    train, foreign = data, None
    if ratio:
        foreign = learner.sample(learner.fit(data, seed=seed), ratio, seed=seed)
        train = learner.union(data, foreign)
    elif auxiliary_data == VARIANT:
        raise InputError("ratio", ratio, "an auxiliary trained on D_p needs some")
    reading: Any = (lambda *_: foreign) if auxiliary_data == VARIANT else AUXILIARY_DATA[auxiliary_data]
    made = sims(learner, train, n_synthetic=1.0, budget=eta, omega=w, auxiliary_data=reading, real=data, seed=seed)
    return learner.distance(made.model, real)


def population_best(
    real: Gaussian, sampler: Sampler, ratio: float, auxiliary_data: str, eta: float = 1.0
) -> tuple[float, float]:
    """The omega of least W2 without noise, to 1e-6, and that W2."""
    low, high = 0.0, 2 * float(population_omega(ratio, auxiliary_data)) / max(eta, 1e-3)
    for _ in range(5):
        grid = np.linspace(low, high, 81)
        w2 = population(real, sampler, ratio, grid, auxiliary_data, eta)
        best = int(w2.argmin())
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, 80)]
    return float(grid[best]), float(w2[best])
