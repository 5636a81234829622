"""Algorithm 1 of SIMS (arXiv 2408.16333), and its rivals and controls under one signature.

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
    combine: Callable[[Model, Model, Any], Model] | None = None,
    real: Data | None = None,
    seed: Seed,
    start: Model | None = None,
) -> Trained[Model, Data]:
    """Algorithm 1: base from data, synthetic from base, auxiliary by fine-tuning, extrapolate away from it.

    train: the base's training set. real: the real data alone, where a loop's training set holds more (default:
    ``train``). n_synthetic, budget, omega: numbers or one per row, as the learner takes them. negatives: how the
    auxiliary's synthetic items are drawn (default: ``learner.sample``). combine: makes one model of base, auxiliary
    and omega (default: ``learner.extrapolate``). start: a model to train the base from.

    On exact Gaussians (200 trials), the distance W2 to the real one, of the base and of SIMS:

    >>> import sims_core as sc, sims_toy
    >>> real = sims_toy.Gaussian.single([0, 0], [[2, 1], [1, 2]])
    >>> learner = sims_toy.ExactLearner(sc.Sampler.parse("ddim:20"), range(200))
    >>> data = learner.draw(real, 1000, seed=sc.Seed(0))
    >>> made = sc.sims(learner, data, n_synthetic=10_000, budget=1.0, omega=1.0, seed=sc.Seed(1))
    >>> [f"{learner.distance(model, real).mean():.2f}" for model in (made.base, made.model)]
    ['0.14', '0.08']
    """
    base = learner.fit(train, seed=seed.child("fit"), start=start)
    synthetic = (negatives or learner.sample)(base, n_synthetic, seed=seed.child("auxiliary-data"))
    data = auxiliary_data(learner, train if real is None else real, train, synthetic)
    auxiliary = learner.finetune(base, data, budget, seed=seed.child("finetune"))
    return Trained((combine or learner.extrapolate)(base, auxiliary, omega), base, auxiliary, synthetic)


def neon(learner: Any, train: Data, **settings: Any) -> Trained[Any, Data]:
    """Neon (arXiv 2510.03597): `sims`, but parameters are extrapolated, so a sample costs one evaluation per step.

    >>> import sims_core as sc, sims_toy
    >>> real = sims_toy.Gaussian.single([0, 0], [[2, 1], [1, 2]])
    >>> learner = sims_toy.ExactLearner(sc.Sampler.parse("ddim:20"), range(200))
    >>> data = learner.draw(real, 1000, seed=sc.Seed(0))
    >>> made = sc.neon(learner, data, n_synthetic=10_000, budget=1.0, omega=1.0, seed=sc.Seed(1))
    >>> f"{learner.distance(made.model, real).mean():.2f}", sc.METHODS["neon"].networks
    ('0.08', 1)
    """
    return sims(learner, train, combine=learner.merge, **settings)


def standard(
    learner: Learner[Model, Data], train: Data, *, real: Data | None = None, seed: Seed, start: Model | None = None
) -> Trained[Model, Data]:
    """Standard training: the base itself (SIMS at omega = 0, with the same seeds)."""
    base = learner.fit(train, seed=seed.child("fit"), start=start)
    return Trained(base, base)


# --------------------------------------------------------------- rivals and controls

#: Autoguidance's guide is trained for this share of the budget (Karras et al. 2024 guide EDM2-S by a model that has
#: seen a sixteenth of its images).
GUIDE_SHARE = 1 / 16


def autoguidance(
    learner: Any, train: Data, *, budget: Any, omega: Any, real: Data | None = None, seed: Seed, start: Any = None
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


class Given:
    """A learner that hands out what is made already where a method would make it: what methods share is made once.

    base: what `fit` returns. synthetic: what `sample` returns. auxiliary: what `finetune` returns; with it nothing is
    drawn or joined. What is None is the learner's. Example: SIMS, then its control from the same base and auxiliary::

        made = sims(learner, data, n_synthetic=n, budget=b, omega=1.0, seed=seed)
        given = Given(learner, base=made.base, auxiliary=made.auxiliary)
        control = METHODS["random"](given, data, n_synthetic=n, budget=b, omega=1.0, seed=seed)
    """

    def __init__(self, learner: Any, *, base: Any, auxiliary: Any = None, synthetic: Any = None) -> None:
        self._learner, self._base, self._auxiliary, self._synthetic = learner, base, auxiliary, synthetic

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    def fit(self, train: Any, *, seed: Seed, start: Any = None) -> Any:
        """The base."""
        return self._base

    def sample(self, model: Any, n: Any, *, seed: Seed) -> Any:
        """The synthetic items, or None where the auxiliary is there."""
        if self._auxiliary is not None or self._synthetic is not None:
            return self._synthetic
        return self._learner.sample(model, n, seed=seed)

    def union(self, first: Any, second: Any) -> Any:
        """The learner's; None where the auxiliary is there."""
        return None if self._auxiliary is not None else self._learner.union(first, second)

    def finetune(self, model: Any, data: Any, budget: Any, *, seed: Seed) -> Any:
        """The auxiliary."""
        return self._learner.finetune(model, data, budget, seed=seed) if self._auxiliary is None else self._auxiliary


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
