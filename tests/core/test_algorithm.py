"""Algorithm 1, its alternatives and the loop, on a learner that is easy to follow: models and data are numbers."""

import itertools
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pytest

from sims_core import (
    AUXILIARY_DATA,
    METHODS,
    POLICIES,
    InputError,
    Learner,
    Policy,
    Seed,
    distribution_control,
    neon,
    parse_policy,
    self_consuming_loop,
    sims,
)
from sims_core.algorithm import Given, autoguidance, continued, random_direction, rebuilt, standard
from sims_core.control import complement
from sims_core.learner import Mergeable, Perturbable, Rebuildable
from sims_core.loop import forms


@dataclass
class Numbers:
    """Data are tuples, a model is their mean, its sampler adds 1: the drift is 1, exactly."""

    calls: list = field(default_factory=list)

    def fit(self, data, *, seed, start=None):
        self.calls.append(("fit", data, start))
        return float(np.mean(data))

    def finetune(self, model, data, budget, *, seed):
        self.calls.append(("finetune", data))
        return model + budget * (float(np.mean(data)) - model)

    def sample(self, model, n, *, seed):
        self.calls.append(("sample", seed.path))
        return (model + 1.0,) * n

    def extrapolate(self, base, auxiliary, omega):
        return (1 + omega) * base - omega * auxiliary

    merge = extrapolate

    def rebuild(self, data, budget, *, seed):
        self.calls.append(("rebuild", data, budget))
        return -3.0 + budget * (float(np.mean(data)) + 3.0)  # from scratch: -3

    def perturb(self, base, auxiliary, *, seed):
        return base - (auxiliary - base)

    def union(self, a, b):
        return a + b


REAL = (0.0, 2.0)
SEED = Seed(0)


def test_it_is_a_learner():
    for protocol in (Learner, Mergeable, Rebuildable, Perturbable):
        assert isinstance(Numbers(), protocol)


def test_algorithm_1_step_by_step():
    learner = Numbers()
    out = sims(learner, REAL, n_synthetic=3, budget=0.5, omega=2.0, seed=SEED)
    assert out.base == 1.0  # the mean of the real data
    assert out.synthetic == (2.0, 2.0, 2.0)  # the base's samples, drift included
    assert out.auxiliary == 1.5  # half the way to them
    assert out.model == pytest.approx(3 * 1.0 - 2 * 1.5)
    assert [c[0] for c in learner.calls] == ["fit", "sample", "finetune"]


@pytest.mark.parametrize(
    ("reading", "seen"), [("synthetic", (2.0,)), ("train+synthetic", (0.0, 2.0, 2.0)), ("real+synthetic", (5.0, 2.0))]
)
def test_auxiliary_readings(reading, seen):
    learner = Numbers()
    sims(
        learner, REAL, real=(5.0,), n_synthetic=1, budget=1, omega=1, auxiliary_data=AUXILIARY_DATA[reading], seed=SEED
    )
    assert learner.calls[-1] == ("finetune", seen)


def test_methods_share_a_signature_and_their_seeds():
    settings = {"n_synthetic": 2, "budget": 1.0, "omega": 0.0}
    for name, method in METHODS.items():
        made = method.bind(**settings)(Numbers(), REAL, real=REAL, seed=SEED, start=None)
        assert made.base == made.model == 1.0, name
        assert method(Numbers(), REAL, seed=SEED, **{k: v for k, v in settings.items() if k in method.takes}) == made
        assert (made.auxiliary is None) == ("omega" not in method.takes)
    guided = sims(Numbers(), REAL, n_synthetic=2, budget=1.0, omega=1.5, seed=SEED)
    merged = neon(Numbers(), REAL, n_synthetic=2, budget=1.0, omega=1.5, seed=SEED)
    assert guided.model == merged.model  # a linear model: scores and weights extrapolate alike


def test_rivals_and_controls_step_by_step():
    learner = Numbers()
    out = autoguidance(learner, REAL, budget=1.6, omega=2.0, seed=SEED)
    guide = -3 + 0.1 * 4  # a sixteenth of the budget, on the training set itself
    assert out.auxiliary == pytest.approx(guide) and out.model == pytest.approx(3 * 1.0 - 2 * guide)
    assert [c[0] for c in learner.calls] == ["fit", "rebuild"] and learner.calls[1][1] == REAL
    learner = Numbers()
    assert continued(learner, REAL, budget=0.5, seed=SEED).model == 1.0 and learner.calls[-1] == ("finetune", REAL)
    common = {"n_synthetic": 3, "budget": 0.5, "omega": 2.0, "seed": SEED}
    assert random_direction(Numbers(), REAL, **common).model == pytest.approx(3 * 1.0 - 2 * 0.5)
    learner = Numbers()
    out = rebuilt(learner, REAL, **common)
    assert out.auxiliary == -3 + 0.5 * 5 and [c[0] for c in learner.calls] == ["fit", "sample", "rebuild"]
    assert {name: method.networks for name, method in METHODS.items()} == {
        "standard": 1, "sims": 2, "neon": 1, "autoguidance": 2, "continued": 1, "random": 2, "rebuilt": 2,
        "equal-cost": 1, "retuned": 1,
    }  # fmt: skip


@pytest.mark.parametrize("name", ["sims", "neon", "random", "continued", "autoguidance", "rebuilt", "standard"])
def test_methods_take_what_is_made_already(name):
    """The same model as from nothing, and no base, sample or auxiliary made a second time."""
    settings = {"n_synthetic": 4, "budget": 0.5, "omega": 2.0, "auxiliary_data": AUXILIARY_DATA["train+synthetic"]}
    data, seed, method = (0.0, 4.0), Seed(3), METHODS[name]
    made = METHODS["sims"].bind(**settings)(Numbers(), data, seed=seed)
    auxiliary = made.auxiliary if name in ("sims", "neon", "random") else None
    learner = Numbers()
    given = Given(learner, base=made.base, auxiliary=auxiliary, synthetic=made.synthetic)
    found = method.bind(**settings)(given, data, seed=seed)
    assert found.model == method.bind(**settings)(Numbers(), data, seed=seed).model
    trained = {"continued": ["finetune"], "autoguidance": ["rebuild"], "rebuilt": ["rebuild"]}
    assert [call[0] for call in learner.calls] == trained.get(name, [])


def test_complement_moves_away_from_the_target():
    p, q = [0.7, 0.3], [0.5, 0.5]
    np.testing.assert_allclose(complement(p, q, 1.0), [0.9, 0.1])
    np.testing.assert_allclose(complement(p, p, 1.0), p)
    np.testing.assert_allclose(complement(p, q, 5.0), [1.0, 0.0])  # clipped at 0
    for bad in ([0.5, 0.6], [-0.1, 1.1], [[1.0]]):
        with pytest.raises(InputError, match="base"):
            complement(bad, q)
    with pytest.raises(InputError, match="2 classes"):
        complement(p, [0.2, 0.3, 0.5])
    with pytest.raises(InputError, match="strength"):
        complement(p, q, 0.0)


def test_algorithm_2_draws_the_complement():
    def draw(model, shares, seed):
        return (float(shares @ [0.0, 10.0]),)

    out = distribution_control(
        Numbers(), REAL, draw=draw, base_shares=[0.7, 0.3], target_shares=[0.5, 0.5], budget=1.0, omega=1.0, seed=SEED
    )
    assert out.synthetic == pytest.approx((1.0,)) and out.model == pytest.approx(2 * 1.0 - 1.0)


def run(policy, generations=4, method=standard, n=2, **more):
    learner = Numbers()
    loop = self_consuming_loop(
        learner, REAL, method=method, policy=policy, n_synthetic=n, generations=generations, seed=SEED, **more
    )
    return list(loop), learner


def test_augmentation_keeps_the_real_data():
    turns, _ = run(POLICIES["augmentation"])
    assert [t.index for t in turns] == [1, 2, 3, 4]
    for before, turn in itertools.pairwise(turns):
        assert turn.train == REAL + (before.model + 1.0,) * 2
    # g = (mean(real) + g + 1) / 2: drift 1 settles at 1 + 1
    assert turns[-1].model == pytest.approx(2.0 - 0.5**3)


def test_fully_synthetic_drifts_for_ever():
    turns, _ = run(POLICIES["fully-synthetic"])
    assert [t.model for t in turns] == [1.0, 2.0, 3.0, 4.0]


def test_accumulate_keeps_everything():
    turns, _ = run(POLICIES["accumulate"])
    assert [len(t.train) for t in turns] == [2, 4, 6, 8]
    assert turns[-1].train[:6] == turns[-2].train


def test_fresh_draws_new_real_data():
    turns, _ = run(POLICIES["fresh"], fresh=lambda seed: (float(seed.path[1]),))
    assert turns[0].train == REAL
    assert [t.train[0] for t in turns[1:]] == [2.0, 3.0, 4.0]
    with pytest.raises(InputError, match="fresh"):
        run(POLICIES["fresh"])


def test_pollution_is_one_dose():
    turns, _ = run(POLICIES["polluted"], pollution=(9.0,))
    assert turns[0].train == (*REAL, 9.0) and 9.0 not in turns[1].train
    with pytest.raises(InputError, match="pollution"):
        run(POLICIES["polluted"])


def test_mixed_starts_from_the_previous_model():
    policy = parse_policy("mixed:0.5")
    assert policy.ratio == 0.5
    turns, learner = run(policy)
    starts = [c[2] for c in learner.calls if c[0] == "fit"]
    assert starts == [None, *[t.trained.base for t in turns[:-1]]]
    _, cold = run(POLICIES["augmentation"])
    assert all(c[2] is None for c in cold.calls if c[0] == "fit")


@pytest.mark.parametrize("text", ["mixed:x", "mixed:-1", "mixed:inf", "augmentaton", "mixed"])
def test_unknown_policies_are_named(text):
    with pytest.raises(InputError, match="--loop"):
        parse_policy(text, argument="--loop")


def test_samples_are_drawn_only_for_a_next_turn_and_by_generation():
    learner = Numbers()
    loop = self_consuming_loop(
        learner, REAL, method=standard, policy=POLICIES["augmentation"], n_synthetic=1, generations=3, seed=SEED
    )
    next(loop)
    assert not [c for c in learner.calls if c[0] == "sample"]
    list(loop)
    paths = [c[1] for c in learner.calls if c[0] == "sample"]
    assert paths == [SEED.child("generation", t, "synthetic").path for t in (1, 2)]


def test_resuming_gives_the_same_loop():
    method = partial(sims, n_synthetic=2, budget=0.5, omega=1.0)
    whole, _ = run(POLICIES["accumulate"], 5, method)
    rest, _ = run(POLICIES["accumulate"], 5, method, after=whole[2])
    assert [(t.index, t.model, t.train) for t in rest] == [(t.index, t.model, t.train) for t in whole[3:]]


def test_sims_cancels_the_drift_in_the_loop():
    """Drift 1, eta = 1, omega = 1: error (1 - omega eta) = 0 in every generation."""

    class Biased(Numbers):
        def sample(self, model, n, *, seed):
            return (model,) * n if isinstance(model, float) else model

        def fit(self, data, *, seed, start=None):
            return float(np.mean(data)) + 1.0  # an estimator's bias, repeated by the fine-tune

        def finetune(self, model, data, budget, *, seed):
            return model + budget * (float(np.mean(data)) + 1.0 - model)

    method = partial(sims, n_synthetic=2, budget=1.0, omega=1.0)
    for policy in ("augmentation", "fully-synthetic"):
        loop = self_consuming_loop(
            Biased(), REAL, method=method, policy=POLICIES[policy], n_synthetic=2, generations=6, seed=SEED
        )
        assert all(t.model == pytest.approx(1.0) for t in loop)


def test_a_policy_says_what_it_needs_and_takes(monkeypatch):
    """From outside: a function and a line; the loop refuses to begin without what is needed."""

    def older(learner, turn, value):
        return turn.fresh() * value if turn.generation > 1 else turn.real

    monkeypatch.setitem(POLICIES, "older", Policy("older", older, needs=("fresh",), parameter=int))
    policy = parse_policy("older:3")
    turns, _ = run(policy, fresh=lambda seed: (7.0,))
    assert policy.name == "older:3" and turns[1].train == (7.0,) * 3 and "older:VALUE" in forms()
    for bad in ("older", "older:x", "augmentation:3"):
        with pytest.raises(InputError, match="--loop"):
            parse_policy(bad, argument="--loop")
    with pytest.raises(InputError, match=r"fresh: .*'older:3' needs a function"):
        run(policy)
    with pytest.raises(InputError, match="policy: got 'mixed'"):
        run(POLICIES["mixed"])
    with pytest.raises(InputError, match="needs: got 'pollen'"):
        Policy("p", older, needs=("pollen",))
