"""Means and covariances of features, gathered in one pass, and the Fréchet distance between two of them."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError
from sims_image.metrics.references import Statistics

Features = NDArray[Any]
#: rows are centred in pieces of so many bytes
_PIECE = 32 * 2**20


def checked(argument: str, features: Any, *, least: int = 2, most: float = 1e150) -> Features:
    """Features as an array (N, D) of finite numbers up to ``most``, N >= ``least``.

    Raises `InputError` naming ``argument``.
    """
    found = np.asarray(features)
    if found.ndim != 2 or found.dtype.kind not in "fiu":
        raise InputError(argument, f"{found.dtype} {found.shape}", "features are an array of numbers (images, D)")
    if len(found) < least:
        raise InputError(argument, found.shape, f"at least {least} images are needed")
    if not np.isfinite(found).all():
        raise InputError(argument, "not finite", f"{int((~np.isfinite(found)).any(1).sum())} images have such features")
    if len(found) and float(np.abs(found).max(initial=0)) > most:
        raise InputError(
            argument, f"{np.abs(found).max():.3g}", f"features of at most {most:g}: their products overflow"
        )
    return found


def same_width(generated: Features, reference: Features) -> None:
    """Raise `InputError` unless both have as many features."""
    if generated.shape[-1] != reference.shape[-1]:
        words = f"the reference has {reference.shape[-1]} features: both must come from one extractor"
        raise InputError("generated", f"{generated.shape[-1]} features", words)


class Moments:
    """Count, mean and scatter matrix (sum of centred outer products) of rows seen so far, in float64.

    Batches are centred on their own mean and merged (Chan, Golub & LeVeque 1979), which keeps the digits that the
    difference E[xx'] - E[x]E[x]' loses.
    """

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = np.zeros(width)
        self.scatter = np.zeros((width, width))

    def add(self, features: Features) -> None:
        """Take rows (B, D) in."""
        width = len(self.mean)
        if features.ndim != 2 or features.shape[1] != width:
            raise InputError("features", features.shape, f"rows of {width} numbers")
        step = max(1, _PIECE // (8 * max(width, 1)))
        for start in range(0, len(features), step):
            piece = features[start : start + step].astype(np.float64)
            mean = piece.mean(0)
            centred = piece - mean
            self._merge(len(piece), mean, centred.T @ centred)

    def merge(self, other: Moments) -> None:
        """Take in what another process, or another part, has seen."""
        if len(other.mean) != len(self.mean):
            raise InputError("moments", len(other.mean), f"of {len(self.mean)} features, as these")
        self._merge(other.count, other.mean, other.scatter)

    def _merge(self, count: int, mean: NDArray[np.float64], scatter: NDArray[np.float64]) -> None:
        if not count:
            return
        total = self.count + count
        apart = mean - self.mean
        self.scatter += scatter
        self.scatter += np.outer(apart, apart * (self.count * count / total))
        self.mean = self.mean + apart * (count / total)
        self.count = total

    @classmethod
    def sum(cls, parts: list[Moments]) -> Moments:
        """All parts together; they stay as they are."""
        whole = cls(len(parts[0].mean))
        for part in parts:
            whole.merge(part)
        return whole

    @property
    def statistics(self) -> Statistics:
        """Mean and unbiased covariance. Raises `InputError` for fewer than two rows."""
        if self.count < 2:
            raise InputError("images", self.count, "a covariance needs at least 2")
        return Statistics(self.mean.copy(), self.scatter / (self.count - 1), self.count)


class Frechet:
    """Fréchet distances of many Gaussians to one reference, whose square root is taken once.

    d² = |m1 - m2|² + tr C1 + tr C2 - 2 tr (C2^½ C1 C2^½)^½ (Dowson & Landau 1982; FID: Heusel et al. 2017). The root's
    argument is symmetric, so its eigenvalues are real and taken by a symmetric solver in float64; there is no imaginary
    part to discard. A covariance of n images has at most n - 1 eigenvalues that are not zero: where n is known, the
    rest, which is rounding whose roots would add up, is left out.
    """

    def __init__(self, reference: Statistics) -> None:
        values, vectors = np.linalg.eigh(_symmetric(reference.sigma))
        sound = values > max(values.max(), 0.0) * len(values) * np.finfo(np.float64).eps
        if reference.images is not None:
            sound[: max(0, len(values) - (reference.images - 1))] = False
        self.reference = reference
        self.root = np.sqrt(values[sound])[:, None] * vectors[:, sound].T  # (rank, D), C2 = root' root

    def __call__(self, generated: Statistics) -> float:
        """The squared distance, which is what the field calls the Fréchet (Inception) distance. At least 0."""
        same_width(generated.mu, self.reference.mu)
        top = np.zeros(0)
        if len(self.root):
            top = np.maximum(np.linalg.eigvalsh(_symmetric(self.root @ generated.sigma @ self.root.T)), 0.0)
        if generated.images is not None:
            top = top[max(0, len(top) - (generated.images - 1)) :]
        shift = generated.mu - self.reference.mu
        traces = float(np.trace(generated.sigma) + np.trace(self.reference.sigma))
        return max(0.0, float(shift @ shift) + traces - 2 * float(np.sqrt(top).sum()))


def _symmetric(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return (matrix + matrix.T) / 2


def statistics_of(argument: str, features: Features | Statistics) -> Statistics:
    """Mean and covariance of features (N, D), or as they are given. Raises `InputError` naming ``argument``."""
    if isinstance(features, Statistics):
        return features
    found = checked(argument, features)
    moments = Moments(found.shape[1])
    moments.add(found)
    return moments.statistics


def frechet(*, generated: Features | Statistics, reference: Features | Statistics) -> float:
    """The Fréchet distance (squared, as the field reports it) between Gaussians fitted to two sets of features.

    generated, reference: features (N, D) or `Statistics`. It is symmetric, and biased upward by about a constant over
    N (Chong & Forsyth 2020): compare at one N only. Raises `InputError` for bad shapes, or fewer than two images.
    """
    theirs, ours = statistics_of("reference", reference), statistics_of("generated", generated)
    top = max(float(np.abs(s.sigma).max()) for s in (theirs, ours))
    if top == 0 or 1e-60 < top < 1e60:
        return Frechet(theirs)(ours)
    scale = 2.0 ** (math.frexp(top)[1] // 2)  # exact, and so that the products of covariances are finite
    theirs, ours = (replace(s, mu=s.mu / scale, sigma=s.sigma / scale / scale) for s in (theirs, ours))
    return Frechet(theirs)(ours) * scale * scale
