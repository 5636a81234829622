"""A data policy, a guidance rule and a method from outside: a function and a line each, at both scales."""

import pytest

import sims_image as si
from sims_core import METHODS, POLICIES, InputError, Method, Policy, Trained
from sims_core.guidance import RULES, Rule
from sims_image.models.presets import PRESETS
from sims_toy import NetworkSettings, SamplingCost, Sweep, run
from sims_toy.sampling_cost import plan
from tests.image import tiny

TINY = NetworkSettings(steps=4, batch=8, width=8, layers=1, backend="torch")


def dosed(learner, turn, value):
    """The policy: ``value`` helpings of foreign data in every generation."""
    data = turn.real
    for _ in range(value):
        data = learner.union(data, turn.pollution)
    return data


def limited(base, correction, omega):
    """The rule: no entry of a correction beyond a ten-thousandth."""
    return base + omega * correction.clamp(-1e-4, 1e-4)


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
        omega="0,2", synthetic="40", real_size="60", pollution="20,40", trials=2, generations=2, workers=1,
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
    with pytest.raises(InputError, match=r"guidance: got 'limited'; exact Gaussians need a rule that is affine"):
        plan(SamplingCost(guidance="full,limited"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Digits, and a base trained on them for three steps and an auxiliary for two."""
    folder = tmp_path_factory.mktemp("digits")
    data = str(si.prepare("digits", out=str(folder / "digits"), limit=60, balanced=True, holdout=20).path)
    with pytest.MonkeyPatch.context() as patch:
        config = {**tiny.EDM, "img_channels": 1, "label_dim": 10}
        patch.setitem(PRESETS, "tiny", tiny.preset(config, tiny.recipe(budget="0.024k")))
        base = si.train(preset="tiny", data=data, out=str(folder / "base"), sheet=0, device="cpu").path
        other = {"from_": str(base), "data": data, "budget": "0.016k", "out": str(folder / "auxiliary"), "sheet": 0}
        yield folder, data, str(base), str(si.train(**other, device="cpu").path)


def test_policy_and_method_on_pictures(pictures):
    folder, data, base, _ = pictures
    settings = {"data": data, "base": base, "trials": 1, "n": "24", "synthetic": "24", "features": "pixels"}
    settings |= {"fit_budget": "0.016k", "budget": "0.016k", "sampler": "heun:2", "device": "cpu", "omega": "0,2"}
    settings |= {"loop": "dosed:2", "more": f"{data}-heldout", "method": "standard,twice", "generations": 2}
    made = si.loop(**settings, out=str(folder / "loop"))
    rows = made.table("generations")
    assert set(rows["train"]) == {40 + 2 * 20}  # real images, and two helpings of those held out
    mine = rows[rows["method"] == "twice"].set_index(["generation", "omega"])["frechet"]
    plain = rows[rows["method"] == "standard"].set_index("generation")["frechet"]
    assert len(mine) == 4 and mine[1, 0.0] == plain[1] != mine[1, 2.0]
    with pytest.raises(InputError, match=r"more: .*'dosed:2' needs further images"):
        si.loop(**{**settings, "more": ""}, out=str(folder / "other"))


def test_rule_on_pictures(pictures):
    folder, _, base, auxiliary = pictures
    settings = {"base": base, "auxiliary": auxiliary, "omega": 2.0, "seeds": "0-7", "sampler": "heun:3"}
    settings |= {"device": "cpu", "sheet": 0}
    made = {}
    for text in ("full", "limited", "limited+held:2"):
        found = si.generate(**settings, guidance=text, out=str(folder / text.replace(":", "")))
        made[text] = found.sha256
        assert found.record["source"].get("schedule", "full") == text
    assert len(set(made.values())) == 3
    with pytest.raises(InputError, match=r"guidance: got 'limitid'; did you mean 'limited'"):
        si.generate(**settings, guidance="limitid", out=str(folder / "wrong"))
