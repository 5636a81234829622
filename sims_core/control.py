"""Algorithm 2 of SIMS (arXiv 2408.16333): move class shares by an auxiliary trained on the complement of a target.

The complement's readings, the laws of what extrapolation does to class shares, and the algorithm itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sims_core.algorithm import Trained
from sims_core.errors import InputError, choose
from sims_core.learner import Data, Learner, Model
from sims_core.seeds import Seed

Array = NDArray[np.float64]


def _linear(p: Array, q: Array, strength: float) -> Array:
    """p - a (q - p), shares below 0 cut off."""
    return np.maximum(p - strength * (q - p), 0)


def _geometric(p: Array, q: Array, strength: float) -> Array:
    """p (p / q)^a; classes that the base does not have stay away."""
    if bool(((q == 0) & (p > 0)).any()):
        raise InputError("target", q.tolist(), "a share of 0 has no geometric complement; use the linear one")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(p > 0, p * (p / q) ** strength, 0.0)


#: Two readings of Algorithm 2's "complement", which the paper does not spell out. Each is exact at omega * eta * a = 1
#: for one law of what extrapolation does to class shares: 'linear' for p + omega (p - p_aux), near which a
#: deterministic sampler stays when it moves shares toward equality; 'geometric' for the weights
#: p^(1 + omega) / p_aux^omega of the extrapolated densities, near which it stays when it moves them apart or the
#: classes lie unevenly. 'linear' has no negative shares to give: beyond `largest_strength` it cuts classes out of the
#: auxiliary's data, 'geometric' never.
COMPLEMENTS: dict[str, Callable[..., Array]] = {"linear": _linear, "geometric": _geometric}


def complement(base: ArrayLike, target: ArrayLike, strength: float = 1.0, *, reading: str = "linear") -> Array:
    """Class shares of the auxiliary's data that move the output from ``base`` toward ``target``.

    reading: of `COMPLEMENTS`; both are our readings of Algorithm 2. With base shares p, target q and strength a,
    'linear' is p_aux proportional to max(p - a (q - p), 0) and 'geometric' to p (p / q)^a. base: (K,) or (R, K), one
    row per model; target: (K,); non-negative, summing to 1. Returns ``base``'s shape. Raises `InputError` for others.
    """
    p, q = (np.asarray(v, dtype=np.float64) for v in (base, target))
    make = COMPLEMENTS[choose("complement", reading, COMPLEMENTS)]
    for name, shares, most in (("base", p, 2), ("target", q, 1)):
        if not 1 <= shares.ndim <= most or (shares < 0).any() or not np.allclose(shares.sum(-1), 1):
            raise InputError(name, np.asarray(shares).tolist(), "give one non-negative share per class, summing to 1")
    if p.shape[-1] != q.size:
        raise InputError("target", q.tolist(), f"the base has {p.shape[-1]} classes")
    if not strength > 0:
        raise InputError("strength", strength, "give a positive number")
    made = make(p, q, strength)
    return np.asarray(made / made.sum(-1, keepdims=True), dtype=np.float64)


def largest_strength(base: ArrayLike, target: ArrayLike) -> float:
    """The largest strength whose linear complement cuts no class off: min p / (q - p) over classes with q > p."""
    p, q = (np.asarray(v, dtype=np.float64) for v in (base, target))
    wanted = q > p
    return float((p[wanted] / (q - p)[wanted]).min()) if wanted.any() else float("inf")


def distribution_control(
    learner: Learner[Model, Data],
    train: Data,
    *,
    draw: Callable[[Model, Array, Seed], Data],
    base_shares: ArrayLike | Callable[[Model, Seed], ArrayLike],
    target_shares: ArrayLike,
    strength: float = 1.0,
    reading: str = "linear",
    budget: Any,
    omega: Any,
    seed: Seed,
    start: Model | None = None,
) -> Trained[Model, Data]:
    """Algorithm 2: SIMS whose auxiliary is trained on samples with the complement of the target distribution.

    draw: ``(base, shares, seed) -> Data``, synthetic items of the base in the given class shares (by conditional
    sampling, or by drawing and selecting with a classifier). base_shares: (K,), one row per model where it holds
    several, or a function ``(base, seed)`` that measures them. reading: of `complement`.

    A learner whose models are the class shares, which extrapolation moves by the linear law:

    >>> class Shares:
    ...     def fit(self, data, *, seed, start=None):
    ...         return data
    ...
    ...     def finetune(self, model, data, budget, *, seed):
    ...         return data
    ...
    ...     def extrapolate(self, base, auxiliary, omega):
    ...         return transport_law(base, auxiliary, omega)
    >>> given = dict(draw=lambda base, shares, seed: shares, base_shares=lambda base, seed: base)
    >>> options = dict(target_shares=[0.5, 0.5], budget=1, omega=1.0, seed=Seed(0))
    >>> distribution_control(Shares(), [0.7, 0.3], **given, **options).model
    array([0.5, 0.5])
    """
    base = learner.fit(train, seed=seed.child("fit"), start=start)
    own = base_shares(base, seed.child("shares")) if callable(base_shares) else base_shares
    shares = complement(own, target_shares, strength, reading=reading)
    synthetic = draw(base, shares, seed.child("auxiliary-data"))
    auxiliary = learner.finetune(base, synthetic, budget, seed=seed.child("finetune"))
    return Trained(learner.extrapolate(base, auxiliary, omega), base, auxiliary, synthetic)


# --------------------------------------------------------------- what extrapolation does to class shares


def transport_law(base: ArrayLike, auxiliary: ArrayLike, omega: ArrayLike) -> Array:
    """Class shares p + omega (p - a): (..., K) for omega (...); entries may leave [0, 1], where it cannot hold.

    An approximation of a deterministic sampler, near where shares move toward equality (`sims_toy.control.theory`).
    """
    p, a = (np.asarray(v, dtype=np.float64) for v in (base, auxiliary))
    return np.asarray(p + np.asarray(omega, dtype=np.float64)[..., None] * (p - a))


def density_law(base: ArrayLike, auxiliary: ArrayLike, omega: ArrayLike) -> Array:
    """Class shares p^(1+omega) / a^omega, normalised: (..., K) for omega (...); a class that ``auxiliary`` lacks takes
    everything.

    Exact for sampling that equilibrates at every noise level; of a deterministic sampler an approximation, near where
    shares move apart or the classes lie unevenly.
    """
    p, a = (np.asarray(v, dtype=np.float64) for v in (base, auxiliary))
    w = np.asarray(omega, dtype=np.float64)[..., None]
    with np.errstate(divide="ignore", invalid="ignore"):
        logits = np.where(w == 0, np.log(p), (1 + w) * np.log(p) - w * np.log(np.maximum(a, 1e-300)))
    logits = logits - logits.max(-1, keepdims=True)
    return np.asarray(np.exp(logits) / np.exp(logits).sum(-1, keepdims=True))


def total_variation(shares: ArrayLike, target: ArrayLike) -> Array:
    """Half the sum of absolute differences over the last axis."""
    return np.asarray(np.abs(np.asarray(shares) - np.asarray(target)).sum(-1) / 2)
