"""Algorithm 1 of SIMS (arXiv 2408.16333), its alternatives under one signature, and Algorithm 2.

A method is a function ``(learner, train, *, real, seed, start) -> Trained``: what one generation does with its
training set. What else it takes (budget, omega, ...) and what a sample then costs stand in `METHODS`; `Method.bind`
fixes its settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sims_core.errors import InputError, choose
from sims_core.learner import Data, Learner, Model
from sims_core.seeds import Seed

ModelIn = TypeVar("ModelIn", contravariant=True)
DataOut = TypeVar("DataOut", covariant=True)


@dataclass(frozen=True)
class Trained(Generic[Model, Data]):
    """What a method made: the model to sample from, and the parts it was made of."""

    model: Model
    base: Model
    auxiliary: Model | None = None
    synthetic: Data | None = None


AuxiliaryData = Callable[[Learner[Model, Data], Data, Data, Data], Data]
"""``(learner, real, train, synthetic) -> Data``: what the auxiliary is fine-tuned on."""


class Negatives(Protocol[ModelIn, DataOut]):
    """``(base, n, *, seed) -> Data``: how the auxiliary's synthetic items are drawn."""

    def __call__(self, base: ModelIn, n: Any, *, seed: Seed) -> DataOut:
        """Draw ``n`` synthetic items from ``base``."""
        ...


#: The sources disagree on what the auxiliary sees. The author's summary and Neon: the synthetic items alone. The
#: caption of the paper's Figure 2: the same real data plus synthetic data from the base. Our reading for loops is
#: 'train+synthetic', the base's own training set of that generation plus its samples.
AUXILIARY_DATA: dict[str, AuxiliaryData[Any, Any]] = {
    "synthetic": lambda learner, real, train, synthetic: synthetic,
    "train+synthetic": lambda learner, real, train, synthetic: learner.union(train, synthetic),
    "real+synthetic": lambda learner, real, train, synthetic: learner.union(real, synthetic),
}


def sims(
    learner: Learner[Model, Data],
    train: Data,
    *,
    n_synthetic: Any,
    budget: Any,
    omega: Any,
    auxiliary_data: AuxiliaryData[Model, Data] = AUXILIARY_DATA["synthetic"],
    negatives: Negatives[Model, Data] | None = None,
    real: Data | None = None,
    seed: Seed,
    start: Model | None = None,
) -> Trained[Model, Data]:
    """Algorithm 1: base from data, synthetic from base, auxiliary by fine-tuning, extrapolate away from it.

    train: the base's training set. real: the real data alone, where a loop's training set holds more (default:
    ``train``). n_synthetic, budget, omega: numbers or one a row, as the learner takes them. negatives: how the
    auxiliary's synthetic items are drawn (default: ``learner.sample``). start: a model to train the base from.
    """
    base, auxiliary, synthetic = _self_train(
        learner, train, n_synthetic, budget, auxiliary_data, negatives, real, seed, start
    )
    return Trained(learner.extrapolate(base, auxiliary, omega), base, auxiliary, synthetic)


def neon(
    learner: Any,
    train: Data,
    *,
    n_synthetic: Any,
    budget: Any,
    omega: Any,
    auxiliary_data: AuxiliaryData[Any, Data] = AUXILIARY_DATA["synthetic"],
    negatives: Negatives[Any, Data] | None = None,
    real: Data | None = None,
    seed: Seed,
    start: Any = None,
) -> Trained[Any, Data]:
    """Neon (arXiv 2510.03597): the same, but parameters are extrapolated, so a sample costs one evaluation a step."""
    base, auxiliary, synthetic = _self_train(
        learner, train, n_synthetic, budget, auxiliary_data, negatives, real, seed, start
    )
    return Trained(learner.merge(base, auxiliary, omega), base, auxiliary, synthetic)


def standard(
    learner: Learner[Model, Data],
    train: Data,
    *,
    real: Data | None = None,
    seed: Seed,
    start: Model | None = None,
) -> Trained[Model, Data]:
    """Standard training: the base itself (SIMS at omega = 0, with the same seeds)."""
    base = learner.fit(train, seed=seed.child("fit"), start=start)
    return Trained(base, base)


def _self_train(
    learner: Learner[Model, Data],
    train: Data,
    n_synthetic: Any,
    budget: Any,
    auxiliary_data: AuxiliaryData[Model, Data],
    negatives: Negatives[Model, Data] | None,
    real: Data | None,
    seed: Seed,
    start: Model | None,
) -> tuple[Model, Model, Data]:
    """Steps 1 to 3 of Algorithm 1: one round of self-training."""
    base = learner.fit(train, seed=seed.child("fit"), start=start)
    synthetic = (negatives or learner.sample)(base, n_synthetic, seed=seed.child("auxiliary-data"))
    data = auxiliary_data(learner, train if real is None else real, train, synthetic)
    auxiliary = learner.finetune(base, data, budget, seed=seed.child("finetune"))
    return base, auxiliary, synthetic


# --------------------------------------------------------------- rivals and controls

#: Autoguidance's guide is trained for this share of the budget (Karras et al. 2024 guide EDM2-S by a model that has
#: seen a sixteenth of its images).
GUIDE_SHARE = 1 / 16


def autoguidance(
    learner: Any,
    train: Data,
    *,
    budget: Any,
    omega: Any,
    real: Data | None = None,
    seed: Seed,
    start: Any = None,
) -> Trained[Any, Data]:
    """Autoguidance (arXiv 2406.02507): guided away from a worse model of the same data, with weight w = 1 + omega.

    The guide (`Rebuildable.rebuild`) is trained from scratch for `GUIDE_SHARE` of ``budget``; it sees no samples.
    """
    base = learner.fit(train, seed=seed.child("fit"), start=start)
    guide = learner.rebuild(train, np.asarray(budget) * GUIDE_SHARE, seed=seed.child("rebuild"))
    return Trained(learner.extrapolate(base, guide, omega), base, guide)


def continued(
    learner: Learner[Model, Data],
    train: Data,
    *,
    budget: Any,
    real: Data | None = None,
    seed: Seed,
    start: Model | None = None,
) -> Trained[Model, Data]:
    """Control: the base is trained further on its own data for the auxiliary's budget, and nothing is extrapolated."""
    base = learner.fit(train, seed=seed.child("fit"), start=start)
    return Trained(learner.finetune(base, train, budget, seed=seed.child("finetune")), base)


def random_direction(learner: Any, train: Data, *, omega: Any, seed: Seed, **settings: Any) -> Trained[Any, Data]:
    """Control: SIMS whose auxiliary lies in a random direction from the base, as far away as the true one."""
    made = sims(learner, train, omega=omega, seed=seed, **settings)
    other = learner.perturb(made.base, made.auxiliary, seed=seed.child("direction"))
    return replace(made, model=learner.extrapolate(made.base, other, omega), auxiliary=other)


def rebuilt(learner: Any, train: Data, **settings: Any) -> Trained[Any, Data]:
    """SIMS with an auxiliary trained from scratch (`Rebuildable.rebuild`): another network, another start.

    The paper fine-tunes the base; what another network does is left open there.
    """
    return sims(_Rebuilding(learner), train, **settings)


class _Rebuilding:
    """A learner that trains its auxiliary from scratch instead of from the base."""

    def __init__(self, learner: Any) -> None:
        self._learner = learner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    def finetune(self, model: Any, data: Any, budget: Any, *, seed: Seed) -> Any:
        """`Rebuildable.rebuild`, whatever the base is."""
        return self._learner.rebuild(data, budget, seed=seed)


@dataclass(frozen=True)
class Method:
    """A row of `METHODS`.

    run: the function. takes: its settings besides the learner's, of n_synthetic, budget, omega, auxiliary_data and
    negatives. networks: how many are evaluated at every step of the sampler, so that a sample costs networks x NFE.
    resampled: how the learner's sampler is changed by whoever runs the method, '' if it is not: 'doubled' takes twice
    its steps, 'retuned' another sampler of no more evaluations than guidance by two networks takes.
    """

    run: Callable[..., Trained[Any, Any]]
    takes: tuple[str, ...] = ("n_synthetic", "budget", "omega", "auxiliary_data", "negatives")
    networks: int = 2
    resampled: str = ""

    def __call__(self, learner: Any, train: Any, **settings: Any) -> Trained[Any, Any]:
        """One generation."""
        return self.run(learner, train, **settings)

    def bind(self, **settings: Any) -> Callable[..., Trained[Any, Any]]:
        """The method with those of ``settings`` that it takes."""
        return partial(self.run, **{name: value for name, value in settings.items() if name in self.takes})


METHODS: dict[str, Method] = {
    "standard": Method(standard, takes=(), networks=1),
    "sims": Method(sims),
    "neon": Method(neon, networks=1),
    "autoguidance": Method(autoguidance, takes=("budget", "omega")),
    "continued": Method(continued, takes=("budget",), networks=1),
    "random": Method(random_direction),
    "rebuilt": Method(rebuilt),
    "equal-cost": Method(standard, takes=(), networks=1, resampled="doubled"),
    "retuned": Method(standard, takes=(), networks=1, resampled="retuned"),
}


def _linear(p: NDArray[np.float64], q: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """p - a (q - p), shares below 0 cut off."""
    return np.maximum(p - strength * (q - p), 0)


def _geometric(p: NDArray[np.float64], q: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
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
COMPLEMENTS: dict[str, Callable[..., NDArray[np.float64]]] = {"linear": _linear, "geometric": _geometric}


def complement(
    base: ArrayLike, target: ArrayLike, strength: float = 1.0, *, reading: str = "linear"
) -> NDArray[np.float64]:
    """Class shares of the auxiliary's data that move the output from ``base`` toward ``target``.

    reading: of `COMPLEMENTS`; both are our readings of Algorithm 2. With base shares p, target q and strength a,
    'linear' is p_aux proportional to max(p - a (q - p), 0) and 'geometric' to p (p / q)^a. base: (K,) or (R, K), one
    row a model; target: (K,); non-negative, summing to 1. Returns the shape of ``base``. Raises `InputError` otherwise.
    """
    p, q = (np.asarray(v, dtype=np.float64) for v in (base, target))
    make = COMPLEMENTS[choose("complement", reading, COMPLEMENTS)]
    for name, shares, most in (("base", p, 2), ("target", q, 1)):
        if not 1 <= shares.ndim <= most or (shares < 0).any() or not np.allclose(shares.sum(-1), 1):
            raise InputError(name, np.asarray(shares).tolist(), "give one non-negative share a class, summing to 1")
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
    draw: Callable[[Model, NDArray[np.float64], Seed], Data],
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
    sampling, or by drawing and selecting with a classifier). base_shares: (K,), one row a model where the learner holds
    several, or a function ``(base, seed)`` that measures them. reading: of `complement`.
    """
    base = learner.fit(train, seed=seed.child("fit"), start=start)
    own = base_shares(base, seed.child("shares")) if callable(base_shares) else base_shares
    shares = complement(own, target_shares, strength, reading=reading)
    synthetic = draw(base, shares, seed.child("auxiliary-data"))
    auxiliary = learner.finetune(base, synthetic, budget, seed=seed.child("finetune"))
    return Trained(learner.extrapolate(base, auxiliary, omega), base, auxiliary, synthetic)
