"""Gaussians in batches: score, denoiser, fit, sufficient statistics, Bures-Wasserstein distance.

R rows are independent: a `Gaussian` holds R means and covariances, `Statistics` the moments of R data sets. Everything
is float64. A row that has diverged (non-finite, or no covariance at all) is NaN throughout and stays NaN; it never
disturbs its neighbours, and it is never averaged away.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sims_core.errors import InputError
from sims_core.seeds import Seed


@dataclass(frozen=True, eq=False)
class Rows:
    """R models in d dimensions: mean (R, d)."""

    mean: Tensor

    @property
    def rows(self) -> int:
        """How many models there are."""
        return self.mean.shape[0]

    @property
    def dim(self) -> int:
        """The dimension d."""
        return self.mean.shape[1]


@dataclass(frozen=True)
class Gaussian(Rows):
    """R Gaussians: mean (R, d), cov (R, d, d), symmetric positive semi-definite or NaN (diverged).

    >>> Gaussian.single([0, 0], [[2, 1], [1, 2]]).eigen[0]
    tensor([[1., 3.]], dtype=torch.float64)
    """

    cov: Tensor

    @classmethod
    def single(cls, mean: object, cov: object) -> Gaussian:
        """One Gaussian (R = 1) from anything numpy reads. Raises `InputError` unless the covariance is one."""
        m = np.asarray(mean, dtype=np.float64)
        c = np.asarray(cov, dtype=np.float64)
        if m.ndim != 1 or not np.isfinite(m).all():
            raise InputError("mean", m.tolist(), "give d finite numbers")
        d = m.shape[0]
        if c.shape != (d, d) or not np.isfinite(c).all():
            raise InputError("covariance", c.tolist(), f"give a finite {d} x {d} matrix, as the mean has {d} entries")
        if not np.allclose(c, c.T, rtol=1e-12, atol=0):
            raise InputError("covariance", c.tolist(), "it must be symmetric")
        if np.linalg.eigvalsh(c)[0] <= 0:
            raise InputError("covariance", c.tolist(), "it must be positive definite (all eigenvalues > 0)")
        return cls(torch.from_numpy(m)[None], torch.from_numpy(c)[None])

    def expand(self, rows: int) -> Gaussian:
        """A single Gaussian repeated ``rows`` times (a view)."""
        return Gaussian(self.mean.expand(rows, -1), self.cov.expand(rows, -1, -1))

    @cached_property
    def eigen(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues (R, d), clipped at 0, and eigenvectors (R, d, d) in columns; NaN for diverged rows."""
        bad = ~torch.isfinite(self.cov).all(dim=(1, 2)) if self.cov.ndim == 3 else None
        if bad is None or not bool(bad.any()):
            values, vectors = eigh(self.cov)
            return values.clamp(min=0), vectors
        safe = torch.where(bad[:, None, None], torch.eye(self.dim, dtype=self.cov.dtype), self.cov)
        values, vectors = eigh(safe)
        nan = torch.tensor(float("nan"), dtype=values.dtype)
        return torch.where(bad[:, None], nan, values.clamp(min=0)), vectors

    @cached_property
    def _projectors(self) -> list[Tensor]:
        """v_k v_k^T for every eigenvector, each (R, d, d)."""
        vectors = self.eigen[1]
        return [rows_innermost(vectors[:, :, k, None] * vectors[:, None, :, k]) for k in range(self.dim)]

    @cached_property
    def _compact(self) -> tuple[Tensor, Tensor]:
        """Mean (R, 1, d) and eigenvalues (R, d) in the memory order that `denoise` wants."""
        return rows_innermost(self.mean.unsqueeze(1)), rows_innermost(self.eigen[0])

    def spectral(self, values: Tensor) -> Tensor:
        """The matrices (R, d, d) with the covariances' eigenvectors and ``values`` (R, d), in the order of `eigen`."""
        made = values[:, 0, None, None] * self._projectors[0]
        for k in range(1, self.dim):
            made = torch.addcmul(made, values[:, k, None, None], self._projectors[k])
        return made

    def strengthened(self, alpha: float) -> Gaussian:
        """GMO's negatives of a Gaussian generator (arXiv 2609.35512): S -> (1 - alpha) S + alpha tr(S) u u^T.

        u: the eigenvector of the largest eigenvalue. Raises `InputError` for alpha outside [0, 1].
        """
        if not 0 <= alpha <= 1:
            raise InputError("alpha", alpha, "give a share in [0, 1]")
        values = self.eigen[0]
        raised = (1 - alpha) * values
        raised[:, -1] += alpha * values.sum(1)
        return Gaussian(self.mean, self.spectral(raised))

    def gain(self, sigma: Tensor) -> Tensor:
        """S (S + sigma^2 I)^-1, (R, d, d), sigma zero-dim."""
        values = self._compact[1]
        return self.spectral(values / (values + sigma**2))

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[y | x] = m + S (S + sigma^2 I)^-1 (x - m) for x (R, points, d), sigma zero-dim."""
        mean = self._compact[0]
        return mean + product(x - mean, self.gain(sigma))

    def score(self, x: Tensor, sigma: Tensor) -> Tensor:
        """Score of the noisy density N(m, S + sigma^2 I) at x (R, points, d): -(S + sigma^2 I)^-1 (x - m)."""
        values, vectors = self.eigen
        return -(((x - self.mean.unsqueeze(1)) @ vectors) / (values + sigma**2).unsqueeze(1)) @ vectors.mT

    def root(self) -> Tensor:
        """The symmetric square roots of the covariances (R, d, d)."""
        values, vectors = self.eigen
        return product(vectors * values.sqrt().unsqueeze(1), vectors.mT)


def product(a: Tensor, b: Tensor) -> Tensor:
    """Matrix products row by row, (R, p, d) with (R, d, q), one of them possibly single; a row's bits are its own.

    A batched product may sum in an order that depends on how many rows there are. Tiny matrices are multiplied by a few
    sums over the whole batch instead, which is also faster; larger ones one by one, from copies, because a library's
    sums depend on how its arguments are aligned in memory.
    """
    if a.shape[2] <= 4:
        out = a[:, :, 0, None] * b[:, None, 0]
        for k in range(1, a.shape[2]):
            out = torch.addcmul(out, a[:, :, k, None], b[:, None, k])
        return out
    rows = max(a.shape[0], b.shape[0])
    return torch.stack([a[i % a.shape[0]].clone() @ b[i % b.shape[0]].clone() for i in range(rows)])


def row_sum(x: Tensor) -> Tensor:
    """Sums (...,) over the last axis of x (..., d), in one order whatever the others are."""
    total = x[..., 0]
    for k in range(1, x.shape[-1]):
        total = total + x[..., k]
    return total


def rows_innermost(x: Tensor) -> Tensor:
    """The same tensor (R, ...) with its rows adjacent in memory: elementwise work then runs along R, not along d."""
    return x.movedim(0, -1).contiguous().movedim(-1, 0)


def eigh(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues ascending (R, d) and eigenvectors (R, d, d) in columns of symmetric matrices.

    Closed form for d = 2: an order of magnitude faster than LAPACK on a large batch, and made of correctly rounded
    operations only, so that a row's result does not depend on the batch it is in.
    """
    if matrices.shape[-1] != 2:
        found = [torch.linalg.eigh(matrix.clone()) for matrix in matrices]  # one by one, as in `product`
        return torch.stack([f[0] for f in found]), torch.stack([f[1] for f in found])
    a, b, c = matrices[..., 0, 0], matrices[..., 0, 1], matrices[..., 1, 1]
    half, middle = (a - c) / 2, (a + c) / 2
    radius = (half * half + b * b).sqrt()
    large = middle + radius
    # the smaller root by the determinant, where the difference would cancel
    small = torch.where(middle > 0, (a * c - b * b) / torch.where(large == 0, 1.0, large), middle - radius)
    # an eigenvector of the larger root is (half + r, b) or (b, r - half): take the one that does not cancel
    first = torch.where(half >= 0, half + radius, b)
    second = torch.where(half >= 0, b, radius - half)
    norm = (first * first + second * second).sqrt()
    isotropic = norm == 0
    norm = torch.where(isotropic, 1.0, norm)
    cos, sin = torch.where(isotropic, 1.0, first / norm), second / norm
    vectors = torch.stack([torch.stack([-sin, cos], -1), torch.stack([cos, sin], -1)], -1)
    return torch.stack([small, large], -1), vectors


@dataclass(frozen=True)
class Statistics:
    """R data sets by their sufficient statistics: n (R,), mean (R, d), cov (R, d, d) = scatter about the mean / n."""

    n: Tensor
    mean: Tensor
    cov: Tensor

    @classmethod
    def of_points(cls, points: Tensor) -> Statistics:
        """Statistics of points (R, n, d)."""
        mean = points.mean(1)
        centred = points - mean.unsqueeze(1)
        n = torch.full((points.shape[0],), points.shape[1], dtype=torch.float64)
        return cls(n, mean, centred.mT @ centred / points.shape[1])


def union(a: Statistics, b: Statistics) -> Statistics:
    """The statistics of both data sets together (Chan's update); a set of size 0 changes nothing."""
    n = a.n + b.n
    share = (b.n / n)[:, None]
    shift = b.mean - a.mean
    mean = torch.where(b.n[:, None] == 0, a.mean, a.mean + share * shift)
    share = share[:, :, None]
    cov = (1 - share) * a.cov + share * b.cov + share * (1 - share) * shift[:, :, None] * shift[:, None, :]
    return Statistics(n, mean, torch.where(b.n[:, None, None] == 0, a.cov, cov))


def fit(data: Statistics, ddof: int = 0) -> Gaussian:
    """Maximum likelihood (ddof = 0, scatter / n) or the unbiased estimator (ddof = 1, scatter / (n - 1))."""
    if ddof == 0:
        return Gaussian(data.mean, data.cov)
    return Gaussian(data.mean, data.cov * (data.n / (data.n - ddof))[:, None, None])


def standard_moments(sizes: ArrayLike, dim: int, seeds: Sequence[Seed]) -> tuple[np.ndarray, np.ndarray]:
    """Mean (K, d) and scatter / n (K, d, d) of n_k draws of N(0, I), without drawing them, one seed per row.

    The mean is N(0, I/n); the scatter about it is Wishart with n - 1 degrees of freedom and independent of it. The
    Wishart matrix is A A^T with A the lower-trapezoidal factor of Bartlett's decomposition (d x min(d, n-1)), which
    also covers n - 1 < d, where the scatter is singular. Cost: O(d^2) draws for any n. Rows with n = 0 are 0.
    """
    n = np.asarray(sizes, dtype=np.float64)
    freedom = np.maximum(n[:, None] - 1 - np.arange(dim), 0.0)  # of the chi-square on the diagonal
    normals = np.empty((len(n), dim + dim * dim))
    gammas = np.empty((len(n), dim))
    for row, seed in enumerate(seeds):
        rng = seed.numpy()
        normals[row] = rng.standard_normal(normals.shape[1])
        gammas[row] = rng.standard_gamma(freedom[row] / 2)
    factor = np.tril(normals[:, dim:].reshape(-1, dim, dim), -1)
    factor *= freedom[:, None, :] > 0  # column j exists only while n - 1 > j
    factor[:, np.arange(dim), np.arange(dim)] = np.sqrt(2 * gammas)
    count = np.maximum(n, 1)
    mean = normals[:, :dim] / np.sqrt(count)[:, None] * (n > 0)[:, None]
    return mean, np.einsum("kij,klj->kil", factor, factor) / count[:, None, None]


def point_moments(sizes: ArrayLike, dim: int, seeds: Sequence[Seed]) -> tuple[np.ndarray, np.ndarray]:
    """What `standard_moments` gives, of points that are drawn: those of ``seed.numpy().standard_normal((n, dim))``."""
    counts = np.asarray(sizes, dtype=np.int64)
    mean, scatter = np.zeros((len(counts), dim)), np.zeros((len(counts), dim, dim))
    for row, (n, seed) in enumerate(zip(counts, seeds, strict=True)):
        if n:
            points = seed.numpy().standard_normal((int(n), dim))
            mean[row] = points.mean(0)
            scatter[row] = (points - mean[row]).T @ (points - mean[row]) / n
    return mean, scatter


def w2_squared(a: Gaussian, b: Gaussian) -> Tensor:
    """Squared 2-Wasserstein (Bures) distance, row by row (R,); inf for diverged rows. ``b`` may be single.

    |m_a - m_b|^2 + tr(S_a + S_b - 2 (S_b^1/2 S_a S_b^1/2)^1/2).
    Rows whose products would overflow or vanish are scaled first.
    """
    top = torch.maximum(a.cov.abs().amax((1, 2)), b.cov.abs().amax((1, 2)))
    far = torch.isfinite(top) & (top > 0) & ((top < 1e-60) | (top > 1e60))
    if bool(far.any()):  # by powers of two, which are exact
        scale = torch.where(far, torch.exp2(torch.frexp(top)[1].double() // 2), 1.0)
        a, b = (Gaussian(g.mean / scale[:, None], g.cov / scale[:, None, None] / scale[:, None, None]) for g in (a, b))
        return w2_squared(a, b) * scale * scale
    root = b.root()
    inner = product(product(root, a.cov), root)
    bad = ~torch.isfinite(inner).all(dim=(1, 2))
    safe = torch.where(bad[:, None, None], torch.eye(a.dim, dtype=inner.dtype), inner)
    values = eigh((safe + safe.mT) / 2)[0]
    trace = row_sum((a.cov + b.cov).diagonal(dim1=1, dim2=2)) - 2 * row_sum(values.clamp(min=0).sqrt())
    total = row_sum((a.mean - b.mean) ** 2) + trace.clamp(min=0)
    return torch.where(bad | ~torch.isfinite(total), torch.tensor(float("inf"), dtype=total.dtype), total)


def tangent(a: Gaussian, reference: Gaussian) -> Tensor:
    """Coordinates (R, d + d^2) of ``a`` around ``reference`` in which squared length is W2^2 to first order.

    The mean's displacement, and the covariance's in the reference's eigenbasis, entry (i, j) divided by
    sqrt(2 (l_i + l_j)). Angles between such vectors are what the drift-error cosine means.
    """
    values, vectors = reference.eigen
    change = vectors.mT @ (a.cov - reference.cov) @ vectors
    scaled = change / (2 * (values.unsqueeze(1) + values.unsqueeze(2))).sqrt()
    mean = ((a.mean - reference.mean).unsqueeze(1) @ vectors).squeeze(1)
    return torch.cat([mean, scaled.flatten(1)], dim=1)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between tangent vectors (R, k), row by row; 0 where one of them vanishes."""
    return torch.nn.functional.cosine_similarity(a, b, dim=1, eps=1e-300)
