r"""Closed forms for the loops of MAD (Alemohammad et al. 2023, arXiv 2307.01850) on Gaussians, without sampler bias.

Generation t is N(mu_t, S_t), fitted to data of which each synthetic set is drawn from N(mu_{t-1}, lam S_{t-1}), with
sampling bias lam. The loop commutes with affine maps, so that in coordinates where the real distribution is N(0, I)
four numbers, whatever the dimension, hold the first two moments (`Moments`):

    E mu mu^T = a I,    E S = c I,    Var S_ij = q  (i != j),    Cov(S_ii, S_jj) = r,    Var S_ii = 2q + r.

Each loop is an affine recursion of (a, c), and given these of (q, r). Exact: everything for the fully synthetic and the
accumulating loop; a and c for the fresh-data loop, whose q and r leave out the fluctuation of one rank-one term (the
squared distance between the real and the synthetic mean), a share 1 / (n_r + n_s) of them. The distance then follows to
second order around c times the real covariance, whose eigenvalues are l (`w2_squared`):

    E W2^2 = (a + (sqrt(c) - 1)^2) sum_i l_i + c^(-3/2) / 2 sum_ij l_i l_j / (l_i + l_j) (q + [i = j] (q + r)).

Terms of higher order are about q d: the expansion is good while the dimension is small beside the effective size.

Consequences.

* Fresh data: the recursion contracts (its fixed point is `fresh_limit`), so the limit does not know the first data set.
  With lam = 1 and many synthetic points the mean's error tends to 1 / (2 n_r): n_e rises to about 2 n_r, never falls
  below n_r. With lam < 1, c tends to (1 - rho) / (1 - rho lam), rho = n_s / (n_r + n_s): a bias that no data size
  removes, and n_e < n_r beyond some n_s.
* Fully synthetic, unbiased covariance (ddof = 1): E[S_t | S_{t-1}] = lam S_{t-1}, so E S_t falls as lam^t and is
  constant at lam = 1; yet ln det S_t drifts by `log_volume_rate` < 0 per generation and S_t -> 0 almost surely; a_t
  grows by lam c / n_s per generation, a random walk whose steps shrink as S does.
* Accumulation (Gerstgrasser et al. 2024, arXiv 2404.01413), sets of equal size n, lam = 1: mu_t = mu_{t-1} + e / t with
  Var e <= 1 / n, hence a_t <= (1/n) sum_{s <= t} 1 / s^2 < (pi^2 / 6) / n, their sum for linear regression; the same
  increments 1 / (n s^2) enter q, and c_t = prod_s (1 - n / (N_s (N_s - 1))) stays within about (pi^2/6 - 1) / n of 1.
  So E W2^2 stays below pi^2 / 6 times that of generation 1, to first order. With lam < 1 it does not: c_t falls by
  about 1 - (1 - lam) / t a generation, as t^-(1 - lam): accumulation turns the exponential collapse into a power law,
  and does not stop it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import polygamma, psi

from sims_core.errors import InputError

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """First and second moments of a generation, whitened by the real distribution (see the module); numbers or arrays.

    mean: a. scale: c. spread: q. common: r.
    """

    mean: Array
    scale: Array
    spread: Array
    common: Array


def _moments(a: ArrayLike, c: ArrayLike, q: ArrayLike, r: ArrayLike) -> Moments:
    return Moments(*(np.asarray(v, dtype=np.float64) for v in (a, c, q, r)))


def single(n: ArrayLike, ddof: int = 1) -> Moments:
    """The fit of n real points: G(n)."""
    n = np.asarray(n, dtype=np.float64)
    if (n <= 1).any():
        raise InputError("n", np.asarray(n).tolist(), "give at least 2 points")
    return _moments(1 / n, (n - 1) / (n - ddof), (n - 1) / (n - ddof) ** 2, np.zeros_like(n))


def stopped_limit(cov: ArrayLike, stop: float, fresh: float) -> Array:
    """Covariance that samples tend to where perfect scores are sampled down to noise ``stop`` only: S + stop^2 / a I.

    fresh: the share a in (0, 1] of real data in every training set. Training sets have T = a S + (1 - a)(T + stop^2 I)
    at the fixed point, samples stop^2 I more. Source: Khelifa et al. (arXiv 2602.16601, 2606.13796), for Gaussians.
    """
    if not 0 < fresh <= 1:
        raise InputError("fresh", fresh, "the share of real data, in (0, 1]")
    real = np.asarray(cov, dtype=np.float64)
    return np.asarray(real + stop**2 / fresh * np.eye(len(real)))


# -------------------------------------------------------------------- fresh data


def fresh_step(m: Moments, n_r: ArrayLike, n_s: ArrayLike, lam: ArrayLike, ddof: int = 1) -> Moments:
    """One generation on n_r new real points and n_s synthetic ones."""
    (a1, ac, a0), (ca, cc, c0) = _first_order(n_r, n_s, lam, ddof)
    keep, noise, real, freedom = _second_order(n_r, n_s, lam, ddof)
    return _moments(
        a1 * m.mean + ac * m.scale + a0,
        ca * m.mean + cc * m.scale + c0,
        keep * m.spread + real + noise * (m.scale**2 + m.common + m.spread) * freedom,
        keep * m.common + 2 * noise * freedom * m.spread,
    )


def fresh_limit(n_r: ArrayLike, n_s: ArrayLike, lam: ArrayLike, ddof: int = 1) -> Moments:
    """The fresh-data loop's limit: the fixed point of `fresh_step`, which no first generation enters."""
    (a1, ac, a0), (ca, cc, c0) = _first_order(n_r, n_s, lam, ddof)
    determinant = (1 - a1) * (1 - cc) - ac * ca
    a = (a0 * (1 - cc) + ac * c0) / determinant
    c = (c0 * (1 - a1) + ca * a0) / determinant
    keep, noise, real, freedom = _second_order(n_r, n_s, lam, ddof)
    big = noise * freedom
    # q (1 - keep - big) - big r = real + big c^2,   r (1 - keep) = 2 big q
    q = (real + big * c**2) / (1 - keep - big - 2 * big**2 / (1 - keep))
    return _moments(a, c, q, 2 * big * q / (1 - keep))


def _first_order(
    n_r: ArrayLike, n_s: ArrayLike, lam: ArrayLike, ddof: int
) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
    """Coefficients of (a, c, 1) in the next a and in the next c."""
    nr, ns, z = (np.asarray(v, dtype=np.float64) for v in (n_r, n_s, lam))
    n = nr + ns
    k = nr * ns / n
    mean = ((ns / n) ** 2, ns / n**2 * z, nr / n**2)
    scale = (k / (n - ddof), z * (ns - 1 + k / ns) / (n - ddof), (nr - 1 + k / nr) / (n - ddof))
    return mean, scale


def _second_order(n_r: ArrayLike, n_s: ArrayLike, lam: ArrayLike, ddof: int) -> tuple[Array, Array, Array, Array]:
    """What is kept of q and r, the synthetic noise's factor, the real noise, the synthetic degrees of freedom."""
    nr, ns, z = (np.asarray(v, dtype=np.float64) for v in (n_r, n_s, lam))
    n = nr + ns
    gain = z * (ns - 1 + nr / n) / (n - ddof)
    return gain**2, (z / (n - ddof)) ** 2, (nr - 1) / (n - ddof) ** 2, ns - 1


# ------------------------------------------------------ replacing, accumulating


def replace_step(m: Moments, n_s: float, lam: float, ddof: int = 1) -> Moments:
    """One generation of the fully synthetic loop. Exact."""
    share = lam / (n_s - ddof)
    keep, noise = (share * (n_s - 1)) ** 2, share**2 * (n_s - 1)
    return _moments(
        m.mean + lam * m.scale / n_s,
        share * (n_s - 1) * m.scale,
        keep * m.spread + noise * (m.scale**2 + m.common + m.spread),
        keep * m.common + 2 * noise * m.spread,
    )


def accumulate_step(m: Moments, before: float, n_s: float, lam: float, ddof: int = 1) -> Moments:
    """One generation of the accumulating loop, whose training set of ``before`` points gains n_s. Exact."""
    n = before + n_s
    k = before / n  # before n_s / n, over n_s
    gain = (before - ddof + lam * (n_s - 1 + k)) / (n - ddof)
    noise = (lam / (n - ddof)) ** 2 * (n_s - 1 + k**2)
    return _moments(
        m.mean + (n_s / n) ** 2 * lam * m.scale / n_s,
        gain * m.scale,
        gain**2 * m.spread + noise * (m.scale**2 + m.common + m.spread),
        gain**2 * m.common + 2 * noise * m.spread,
    )


def path(
    loop: str, generations: int, *, n_r: float, n_s: float, lam: float, ddof: int = 1, n_initial: float = 0
) -> list[Moments]:
    """Moments of generations 1, 2, ... of the loop 'fresh', 'fully-synthetic' or 'accumulate'."""
    if loop not in ("fresh", "fully-synthetic", "accumulate"):
        raise InputError("loop", loop, "closed forms exist for fresh, fully-synthetic and accumulate")
    first = n_initial or n_r
    found = [single(first, ddof)]
    for t in range(1, generations):
        if loop == "fresh":
            found.append(fresh_step(found[-1], n_r, n_s, lam, ddof))
        elif loop == "accumulate":
            found.append(accumulate_step(found[-1], first + (t - 1) * n_s, n_s, lam, ddof))
        else:
            found.append(replace_step(found[-1], n_s, lam, ddof))
    return found


def w2_squared(m: Moments, covariance: ArrayLike) -> Array:
    """E[W2^2] to the real Gaussian of the given covariance, to second order around c times it."""
    values = np.linalg.eigvalsh(np.asarray(covariance, dtype=np.float64))
    pairs = np.outer(values, values) / np.add.outer(values, values)
    total, every, diagonal = values.sum(), pairs.sum(), np.trace(pairs)
    spread = every * m.spread + diagonal * (m.spread + m.common)
    return np.asarray((m.mean + (np.sqrt(m.scale) - 1) ** 2) * total + spread / (2 * m.scale**1.5))


def log_volume_rate(n: float, dim: int, lam: float = 1.0, ddof: int = 1) -> float:
    """E[ln det S_t - ln det S_{t-1}] / d in the fully synthetic loop: the drift of the mean log-variance. Exact.

    By Bartlett's decomposition the determinant of a Wishart matrix is a product of chi-squares; for n > d.
    """
    if n <= dim:
        raise InputError("n", n, f"fewer than {dim + 1} points in {dim} dimensions have a singular covariance")
    freedom = n - 1 - np.arange(dim)
    return float(math.log(lam) + math.log(2 / (n - ddof)) + psi(freedom / 2).mean())


def accumulation_bound(n_r: float, n_s: float) -> float:
    """What a_t n_r stays below when everything is kept, at lam = 1: 1 + (n_r / n_s) psi_1(1 + n_r / n_s).

    pi^2 / 6 for n_r = n_s: Gerstgrasser et al.'s sum over 1 / i^2.
    """
    ratio = n_r / n_s
    return float(1 + ratio * polygamma(1, 1 + ratio))


def best_temperature_edge(n_r: float, n_s: ArrayLike, covariance: ArrayLike, ddof: int = 1) -> Array:
    """The least lam at which the fresh loop's E[W2^2] is at most that of n_r real points alone: n_e >= n_r.

    Second order; one number for each of ``n_s``. By bisection in (0, 1]; nan where even lam = 1 does worse, 0 where
    few synthetic points do no harm at any lam.
    """
    target = w2_squared(single(n_r, ddof), covariance)
    sizes = np.asarray(n_s, dtype=np.float64)
    low, high = np.full(sizes.shape, 1e-3), np.ones(sizes.shape)
    never = w2_squared(fresh_limit(n_r, sizes, 1.0, ddof), covariance) > target
    for _ in range(60):
        middle = (low + high) / 2
        good = w2_squared(fresh_limit(n_r, sizes, middle, ddof), covariance) <= target
        low, high = np.where(good, low, middle), np.where(good, middle, high)
    return np.where(never, np.nan, np.where(low == 1e-3, 0.0, high))
