"""The self-consuming loop: models trained, generation after generation, on data that holds their own samples.

Sources: MAD (Alemohammad et al. 2023, arXiv 2307.01850) for the loops, SIMS (arXiv 2408.16333) for the augmentation
loop of its Figure 4, Bertrand et al. (arXiv 2310.00429) for the fixed synthetic-to-real ratio with warm starts, and
Gerstgrasser et al. (arXiv 2404.01413) for accumulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Generic

from sims_core.algorithm import Trained
from sims_core.errors import InputError, choose
from sims_core.learner import Data, Learner, Model
from sims_core.seeds import Seed


@dataclass(frozen=True)
class Turn(Generic[Data]):
    """What a data policy may look at when it makes generation t's training set."""

    generation: int  # t = 1, 2, ...
    real: Data  # the fixed real data D_r
    previous_train: Data | None  # generation t-1's training set; None at t = 1
    previous_synthetic: Data | None  # D_s of generation t-1; None at t = 1
    fresh: Callable[[], Data] | None = None  # new real data, where the caller can draw it
    pollution: Data | None = None  # foreign synthetic data D_p


@dataclass(frozen=True)
class Policy:
    """A data policy: which data generation t trains on, and whether its model starts from the previous one."""

    name: str
    train: Callable[[Learner[Any, Any], Turn[Any]], Any]
    warm: bool = False
    ratio: float | None = None  # |D_s| / |D_r|, where the policy fixes it


@dataclass(frozen=True)
class Generation(Generic[Model, Data]):
    """One turn of the loop."""

    index: int
    train: Data
    trained: Trained[Model, Data]

    @property
    def model(self) -> Model:
        """The model that this generation samples from."""
        return self.trained.model


def _augmentation(learner: Learner[Any, Any], turn: Turn[Any]) -> Any:
    """Synthetic augmentation: D_r with the previous generation's samples (SIMS, Figure 4)."""
    return turn.real if turn.generation == 1 else learner.union(turn.real, turn.previous_synthetic)


def _fully_synthetic(learner: Learner[Any, Any], turn: Turn[Any]) -> Any:
    """Only the previous generation's samples."""
    return turn.real if turn.generation == 1 else turn.previous_synthetic


def _fresh(learner: Learner[Any, Any], turn: Turn[Any]) -> Any:
    """New real data every generation, with the previous generation's samples."""
    if turn.generation == 1:
        return turn.real
    if turn.fresh is None:
        raise InputError("fresh", None, "the fresh-data loop needs a function that draws new real data")
    return learner.union(turn.fresh(), turn.previous_synthetic)


def _accumulate(learner: Learner[Any, Any], turn: Turn[Any]) -> Any:
    """Everything kept: the previous training set with the previous generation's samples."""
    return turn.real if turn.generation == 1 else learner.union(turn.previous_train, turn.previous_synthetic)


def _polluted(learner: Learner[Any, Any], turn: Turn[Any]) -> Any:
    """One dose of foreign synthetic data, in the first generation; afterwards as synthetic augmentation."""
    if turn.generation > 1:
        return learner.union(turn.real, turn.previous_synthetic)
    if turn.pollution is None:
        raise InputError("pollution", None, "the polluted loop needs the foreign synthetic data D_p")
    return learner.union(turn.real, turn.pollution)


def _scaled(learner: Any, turn: Turn[Any], factor: float, then: Callable[..., Any]) -> Any:
    """The first generation on D_r scaled about the origin, as one that starts off the fixed point; then ``then``."""
    return learner.scale(turn.real, factor) if turn.generation == 1 else then(learner, turn)


POLICIES: dict[str, Policy] = {
    "augmentation": Policy("augmentation", _augmentation),
    "fully-synthetic": Policy("fully-synthetic", _fully_synthetic),
    "fresh": Policy("fresh", _fresh),
    "accumulate": Policy("accumulate", _accumulate),
    "polluted": Policy("polluted", _polluted),
}


def parse_policy(text: str, *, argument: str = "loop") -> Policy:
    """A policy by its name, or ``mixed:R``: D_r with R |D_r| samples, each model fine-tuned from the previous one.

    ``scaled:C:NAME`` is the policy NAME after a first generation on C D_r: how the loop returns from there measures its
    contraction. Raises `InputError` naming ``argument`` for anything else.
    """
    name, colon, value = text.partition(":")
    if name == "scaled" and colon:
        number, _, rest = value.partition(":")
        try:
            factor = float(number)
        except ValueError:
            factor = -1.0
        if not 0 < factor < float("inf") or rest.startswith("scaled:"):  # a second factor would not be used
            raise InputError(argument, text, "write scaled:C:NAME with a factor C > 0, such as scaled:0.8:mixed:0.5")
        then = parse_policy(rest, argument=argument)
        return replace(then, name=text, train=partial(_scaled, factor=factor, then=then.train))
    if name == "mixed" and colon:
        try:
            ratio = float(value)
        except ValueError:
            ratio = -1.0
        if not 0 <= ratio < float("inf"):
            raise InputError(argument, text, "write mixed:R with a synthetic-to-real ratio R >= 0, such as mixed:0.5")
        return Policy(text, _augmentation, warm=True, ratio=ratio)
    return POLICIES[choose(argument, text, [*POLICIES, "mixed:R", "scaled:C:NAME"])]


def self_consuming_loop(
    learner: Learner[Model, Data],
    real: Data,
    *,
    method: Callable[..., Trained[Model, Data]],
    policy: Policy,
    n_synthetic: Any,
    generations: int,
    seed: Seed,
    fresh: Callable[[Seed], Data] | None = None,
    pollution: Data | None = None,
    after: Generation[Model, Data] | None = None,
) -> Iterator[Generation[Model, Data]]:
    """Yield generations 1, 2, ..., ``generations``; the caller owns logging, stopping and checkpoints.

    method: a function of `sims_core.algorithm`, its settings bound. n_synthetic: |D_s|, as the learner takes it.
    fresh: draws new real data from a seed (the 'fresh' policy). pollution: D_p (the 'polluted' policy).
    after: a finished generation to go on from: the result is the same as in one go, since every draw of generation t
    comes from ``seed.child("generation", t)``. A generation's samples are drawn only when the next one is asked for.
    Raises `InputError` where the policy lacks what it needs.
    """
    previous = after
    for index in range(1 if previous is None else previous.index + 1, generations + 1):
        here = seed.child("generation", index)
        previous_synthetic: Data | None = None
        if previous is not None:
            before = seed.child("generation", previous.index)
            previous_synthetic = learner.sample(previous.model, n_synthetic, seed=before.child("synthetic"))
        turn: Turn[Data] = Turn(
            generation=index,
            real=real,
            previous_train=previous.train if previous is not None else None,
            previous_synthetic=previous_synthetic,
            fresh=(lambda s=here: fresh(s.child("fresh"))) if fresh is not None else None,  # type: ignore[misc]
            pollution=pollution,
        )
        train = policy.train(learner, turn)
        start = previous.trained.base if previous is not None and policy.warm else None
        trained = method(learner, train, real=real, seed=here, start=start)
        previous = Generation(index, train, trained)
        yield previous
