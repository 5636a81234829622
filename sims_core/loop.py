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


#: What a policy may need besides real data and samples, with what `self_consuming_loop` takes for it.
NEEDS = {"fresh": "a function that draws new real data", "pollution": "foreign synthetic data D_p"}


def _bound(policy: Policy, value: Any) -> Policy:
    """The policy whose ``train`` takes ``value`` as a third argument."""
    return replace(policy, train=partial(policy.train, value=value))


@dataclass(frozen=True)
class Policy:
    """A data policy: which data generation t trains on, and whether its model starts from the previous one.

    train: ``(learner, turn) -> data``. needs: of `NEEDS`; the loop refuses to begin without them. ratio: |D_s| / |D_r|,
    where the policy fixes it. parameter: what reads VALUE of ``name:VALUE``, such as float; it raises ValueError for
    what it does not take. syntax: how to write it, with an example. settle: ``(policy, value) -> Policy`` at that
    value; by default ``train`` is called as ``(learner, turn, value=value)``.
    """

    name: str
    train: Callable[..., Any]
    warm: bool = False
    ratio: float | None = None
    needs: tuple[str, ...] = ()
    parameter: Callable[[str], Any] | None = None
    syntax: str = ""
    settle: Callable[[Policy, Any], Policy] = _bound

    def __post_init__(self) -> None:
        for need in self.needs:
            choose("needs", need, NEEDS)

    @property
    def form(self) -> str:
        """How it is written on a command line."""
        return self.syntax.split()[0] if self.syntax else f"{self.name}:VALUE" if self.parameter else self.name


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
    assert turn.fresh is not None  # it is needed
    return learner.union(turn.fresh(), turn.previous_synthetic)


def _accumulate(learner: Learner[Any, Any], turn: Turn[Any]) -> Any:
    """Everything kept: the previous training set with the previous generation's samples."""
    return turn.real if turn.generation == 1 else learner.union(turn.previous_train, turn.previous_synthetic)


def _polluted(learner: Learner[Any, Any], turn: Turn[Any]) -> Any:
    """One dose of foreign synthetic data, in the first generation; afterwards as synthetic augmentation."""
    if turn.generation > 1:
        return learner.union(turn.real, turn.previous_synthetic)
    return learner.union(turn.real, turn.pollution)


def _positive(text: str, least: float = 0.0) -> float:
    value = float(text)
    if not least <= value < float("inf"):
        raise ValueError(text)
    return value


def _scaled(learner: Any, turn: Turn[Any], factor: float, then: Callable[..., Any]) -> Any:
    """The first generation on D_r scaled about the origin, as one that starts off the fixed point; then ``then``."""
    return learner.scale(turn.real, factor) if turn.generation == 1 else then(learner, turn)


def _factor_and_policy(text: str) -> tuple[float, Policy]:
    number, _, rest = text.partition(":")
    if rest.startswith("scaled:"):  # a second factor would not be used
        raise ValueError(text)
    return _positive(number, 1e-300), parse_policy(rest)


def _after(policy: Policy, value: tuple[float, Policy]) -> Policy:
    """The policy that is scaled, but for its first generation."""
    factor, then = value
    return replace(then, train=partial(policy.train, factor=factor, then=then.train))


#: Policies by name. One from outside is a function and a line: ``POLICIES["mine"] = Policy("mine", mine)``.
POLICIES: dict[str, Policy] = {
    "augmentation": Policy("augmentation", _augmentation),
    "fully-synthetic": Policy("fully-synthetic", _fully_synthetic),
    "fresh": Policy("fresh", _fresh, needs=("fresh",)),
    "accumulate": Policy("accumulate", _accumulate),
    "polluted": Policy("polluted", _polluted, needs=("pollution",)),
    "mixed": Policy(
        "mixed",
        _augmentation,
        warm=True,
        parameter=_positive,
        syntax="mixed:R with a synthetic-to-real ratio R >= 0, such as mixed:0.5",
        settle=lambda policy, ratio: replace(policy, ratio=ratio),
    ),
    "scaled": Policy(
        "scaled",
        _scaled,
        parameter=_factor_and_policy,
        syntax="scaled:C:NAME with a factor C > 0, such as scaled:0.8:mixed:0.5",
        settle=_after,
    ),
}


def forms() -> list[str]:
    """The policies of `POLICIES` as they are written on a command line."""
    return [name if policy.parameter is None else policy.form for name, policy in POLICIES.items()]


def parse_policy(text: str, *, argument: str = "loop") -> Policy:
    """A policy of `POLICIES` by its name, or ``name:VALUE`` where it takes a parameter.

    ``mixed:R``: D_r with R |D_r| samples, each model fine-tuned from the previous one. ``scaled:C:NAME`` is the policy
    NAME after a first generation on C D_r: how the loop returns from there measures its contraction. Raises
    `InputError` naming ``argument`` for anything else.

    >>> policy = parse_policy("mixed:0.5")
    >>> policy.ratio, policy.warm
    (0.5, True)
    """
    name, _, value = text.partition(":")
    policy = POLICIES.get(name)
    if policy is None or policy.parameter is None:
        return POLICIES[choose(argument, text, forms())]
    try:
        return replace(policy.settle(policy, policy.parameter(value)), name=text, parameter=None)
    except InputError as error:
        raise InputError(argument, error.value, error.expected) from None
    except ValueError:
        raise InputError(argument, text, f"write {policy.syntax or policy.form}") from None


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
    fresh: draws new real data from a seed. pollution: D_p. Both are for policies that need them.
    after: a finished generation to resume from: the result is the same as in one go, since every draw of generation t
    comes from ``seed.child("generation", t)``. A generation's samples are drawn only when the next one is asked for.
    Raises `InputError` where the policy lacks what it needs.

    Ten generations on D_r and as many samples, exact Gaussians: the distance W2 to the real one, first and last.

    >>> import sims_core as sc, sims_toy
    >>> real = sims_toy.Gaussian.single([0, 0], [[2, 1], [1, 2]])
    >>> learner = sims_toy.ExactLearner(sc.Sampler.parse("ddim:20"), range(200))
    >>> data = learner.draw(real, 1000, seed=sc.Seed(0))
    >>> for name in ("standard", "sims"):
    ...     loop = sc.self_consuming_loop(
    ...         learner,
    ...         data,
    ...         method=sc.METHODS[name].bind(n_synthetic=1000, budget=0.3, omega=3.0),
    ...         policy=sc.parse_policy("augmentation"),
    ...         n_synthetic=1000,
    ...         generations=10,
    ...         seed=sc.Seed(1),
    ...     )
    ...     away = [learner.distance(generation.model, real).mean() for generation in loop]
    ...     print(f"{name}: {away[0]:.2f}, {away[-1]:.2f}")
    standard: 0.14, 0.24
    sims: 0.10, 0.11
    """
    if policy.parameter is not None:
        raise InputError("policy", policy.name, f"it takes a parameter: parse_policy('{policy.form}')")
    for need, given in (("fresh", fresh), ("pollution", pollution)):
        if need in policy.needs and given is None:
            raise InputError(need, None, f"the loop '{policy.name}' needs {NEEDS[need]}")
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
