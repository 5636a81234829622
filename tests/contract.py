"""What every learner must do, as one set of checks. A test module parametrises it with its learner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from sims_core import Learner, Seed
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
