"""A data policy, a guidance rule and a method from outside: a function and a line each, at both scales."""

import pytest

from sims_core import METHODS, POLICIES, InputError, Method, Policy, Trained
from sims_core.guidance import RULES, Rule
from sims_toy import NetworkSettings, SamplingCost, Sweep, run
from sims_toy.sampling_cost import plan

TINY = NetworkSettings(steps=4, batch=8, width=8, layers=1, backend="torch")


def dosed(learner, turn, value):
    """The policy: ``value`` helpings of foreign data in every generation."""
    data = turn.real
    for _ in range(value):
        data = learner.union(data, turn.pollution)
    return data


def limited(base, correction, omega):
    """The rule: no entry of a correction beyond a hundredth."""
    return base + omega * correction.clamp(-0.01, 0.01)


def twice(learner, train, *, budget, omega, real=None, seed, start=None):
    """The method: away from a base that was trained further, twice over."""
    base = learner.fit(train, seed=seed.child("fit"), start=start)
    once = learner.finetune(base, train, budget, seed=seed.child("once"))
    other = learner.finetune(once, train, budget, seed=seed.child("again"))
    return Trained(learner.extrapolate(base, other, omega), base, other)


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(POLICIES, "dosed", Policy("dosed", dosed, needs=("pollution",), parameter=int))
    monkeypatch.setitem(RULES, "limited", Rule(limited))
    monkeypatch.setitem(METHODS, "twice", Method(twice, takes=("budget", "omega")))


def test_policy_and_method_on_points(tmp_path):
    options = Sweep(
        omega="0,2", synthetic_size="40", real_size="60", pollution="20,40", trials=2, generations=2, workers=1,
        sampler="ddim:5", network=TINY, method="twice", loop="dosed:2", overlay_trials=2, out=str(tmp_path / "run"),
    )  # fmt: skip
    made = run(options).tables["regimes"]
    mine = made[(made["learner"] == "network") & (made["method"] == "twice")]
    assert mine.groupby(["pollution", "omega"])["last"].first().nunique() == len(mine) == 4
    assert set(made["loop"]) == {"dosed:2"}


def test_rule_on_points(tmp_path):
    options = SamplingCost(
        learner="network", sampler="heun:5", guidance="full,limited,limited+held:2", omega="0,1,2", more_steps="2",
        trials=4, real_size=30, auxiliary_size=30, workers=1, network=TINY, out=str(tmp_path / "run"),
    )  # fmt: skip
    curves = run(options).tables["curves"].set_index(["way", "omega"])["w2"]
    assert curves["full", 0.0] == curves["limited", 0.0] == curves["limited+held:2", 0.0]
    assert len({curves[way, 2.0] for way in ("full", "limited", "limited+held:2")}) == 3
    with pytest.raises(InputError, match=r"--guidance: got 'limited'; exact Gaussians need a rule that is affine"):
        plan(SamplingCost(guidance="full,limited"))
