"""What every learner must do, as one set of checks. A test module parametrises it with its learner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from sims_core import METHODS, POLICIES, Learner, Seed, self_consuming_loop
from sims_core.learner import Perturbable, Rebuildable


@dataclass
class Case:
    """A learner, data for it, a budget, a sample size, and how to compare two models (or data sets) exactly.

    What Neon, autoguidance and the controls need besides is checked of learners that have it.
    """

    learner: Any
    data: Any
    budget: Any
    size: Any
    same: Callable[[Any, Any], bool]
    count: Callable[[Any], float]
    exact: bool = False  # training has one answer, wherever it starts


def of_rows(learner: Any, data: Any, model: type) -> Case:
    """Of a learner over rows of trained models, whose bases have ``params``."""

    def same(a, b):
        a, b = (x.base.params if isinstance(x, model) else x for x in (a, b))
        return a.shape == b.shape and torch.equal(a, b)

    return Case(learner, data, 640, 50, same, lambda d: d.shape[1])


def check(case: Case) -> None:
    learner, seed = case.learner, Seed(11)
    assert isinstance(learner, Learner)
    base = learner.fit(case.data, seed=seed.child("fit"))
    assert case.same(base, learner.fit(case.data, seed=seed.child("fit"))), "fit is not reproducible"

    drawn = learner.sample(base, case.size, seed=seed.child("a"))
    assert case.same(drawn, learner.sample(base, case.size, seed=seed.child("a"))), "sample is not reproducible"
    assert not case.same(drawn, learner.sample(base, case.size, seed=seed.child("b"))), "sample ignores its seed"
    assert case.count(drawn) == case.size

    before = learner.sample(base, case.size, seed=seed.child("a"))
    auxiliary = learner.finetune(base, drawn, case.budget, seed=seed.child("tune"))
    assert case.same(before, learner.sample(base, case.size, seed=seed.child("a"))), "finetune changed its model"
    assert not case.same(base, auxiliary)

    own = getattr(base, "sampler", None)
    if getattr(own, "steps", 0):
        finer = replace(base, sampler=own.doubled())
        other = learner.sample(finer, case.size, seed=seed.child("a"))
        assert not case.same(drawn, other), "a model is drawn by another sampler than its own"

    zero = learner.extrapolate(base, auxiliary, 0.0)
    assert case.same(learner.sample(zero, case.size, seed=seed.child("a")), drawn), "omega = 0 is not the base"
    one = learner.extrapolate(base, auxiliary, 1.0)
    assert not case.same(learner.sample(one, case.size, seed=seed.child("a")), drawn), "omega = 1 is the base"

    if isinstance(learner, Rebuildable):
        other = learner.rebuild(drawn, case.budget, seed=seed.child("rebuild"))
        assert case.same(other, learner.rebuild(drawn, case.budget, seed=seed.child("rebuild")))
        assert not case.same(other, auxiliary) or case.exact, "rebuild is no training from scratch"
        assert not case.same(
            learner.sample(learner.extrapolate(base, other, 1.0), case.size, seed=seed.child("a")), drawn
        )
    if isinstance(learner, Perturbable):
        moved = learner.perturb(base, auxiliary, seed=seed.child("direction"))
        assert case.same(moved, learner.perturb(base, auxiliary, seed=seed.child("direction")))
        assert not case.same(moved, base) and not case.same(moved, auxiliary)

    both = learner.union(case.data, drawn)
    assert case.count(both) == case.count(case.data) + case.count(drawn)


def loop_of_rows(learner: Any, real: Any, omegas: list[float], *, generations: int, **settings: Any) -> np.ndarray:
    """W2 of SIMS's rows in an augmentation loop, (generations, rows)."""
    method = METHODS["sims"].bind(n_synthetic=40, budget=640, omega=np.array(omegas), **settings)
    data = learner.draw(real, 80, seed=Seed(0).child("real"))
    sizes: dict[str, Any] = {"n_synthetic": 40, "generations": generations, "seed": Seed(0)}
    turns = self_consuming_loop(learner, data, method=method, policy=POLICIES["augmentation"], **sizes)
    return np.stack([learner.distance(turn.model, real) for turn in turns])


def check_method(learner: Any, real: Any, name: str, *, budget: int, omega: float) -> None:
    """A method on two rows: finite, and at omega = 0 the base."""
    data = learner.draw(real, 60, seed=Seed(0))
    made = METHODS[name].bind(n_synthetic=60, budget=budget, omega=np.array([0.0, omega]))(learner, data, seed=Seed(0))
    own, base = (learner.distance(model, real) for model in (made.model, made.base))
    assert np.isfinite(own).all()
    if "omega" in METHODS[name].takes:
        assert own[0] == base[0] and own[1] != base[1]


def check_diverged(learner: Any, real: Any) -> None:
    """Of three rows the second sees a NaN: it is recorded, stays diverged, and disturbs nobody."""
    data = learner.draw(real, 50, seed=Seed(0))
    broken = data.clone()
    broken[1, 0, 0] = float("nan")
    whole, partly = (learner.fit(points, seed=Seed(0)) for points in (data, broken))
    assert torch.equal(whole.base.params[[0, 2]], partly.base.params[[0, 2]])
    w2 = learner.distance(partly, real)
    assert np.isinf(w2[1]) and np.isfinite(w2[[0, 2]]).all()
    drawn = learner.sample(partly, 5, seed=Seed(0))
    assert torch.isnan(drawn[1]).all() and torch.isfinite(drawn[[0, 2]]).all()
    assert np.isinf(learner.distance(learner.finetune(partly, drawn, 64, seed=Seed(0)), real)[1])
