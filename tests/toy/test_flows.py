"""Normalizing flows as a learner: the contract, exact likelihoods, and densities that are guided."""

import math
import sys

import numpy as np
import pytest
import torch

from sims_core import METHODS, InputError, Seed
from sims_toy.datasets import parse_real
from sims_toy.flows import flow
from sims_toy.flows.flow import Flows
from sims_toy.flows.learner import DensitySampler, FlowLearner, FlowModel
from sims_toy.flows.settings import FlowSettings
from sims_toy.gaussian import Gaussian, Statistics, fit, w2_squared
from sims_toy.networks.settings import NetworkSettings
from sims_toy.studies import run
from sims_toy.sweep import Sweep, plan
from tests.contract import check, check_diverged, check_method, loop_of_rows, of_rows

zuko = pytest.importorskip("zuko")
REAL = Gaussian.single([1.0, -0.5], [[2, 1], [1, 2]])
S = Seed(0)
QUICK = FlowSettings(steps=40, batch=32, width=8, transforms=2, bins=4)
COUPLING = FlowSettings(kind="coupling", steps=40, batch=32, width=8, transforms=2, rate=2e-3)
IMPORTANCE, LANGEVIN = DensitySampler.parse("importance:16"), DensitySampler.parse("langevin:3")


def learner_for(rows, settings=QUICK, sampler=IMPORTANCE, **options):
    return FlowLearner(sampler, rows if isinstance(rows, list) else list(range(rows)), settings, **options)


@pytest.mark.parametrize(
    ("settings", "sampler"),
    [(QUICK, IMPORTANCE), (QUICK, LANGEVIN), (COUPLING, IMPORTANCE)],
    ids=["spline", "spline by langevin", "coupling"],
)
def test_contract(settings, sampler):
    learner = learner_for(1, settings, sampler)
    check(of_rows(learner, learner.draw(REAL, 60, seed=S.child("data")), FlowModel))


def fitted(settings, rows=2, n=400, data=REAL, sampler=IMPORTANCE):
    learner = learner_for(rows, settings, sampler)
    return learner, learner.fit(learner.draw(data, n, seed=S.child("real")), seed=S)


@pytest.mark.parametrize("settings", [QUICK, COUPLING], ids=["spline", "coupling"])
def test_likelihoods_are_zukos_own_and_integrate_to_one(settings):
    learner, model = fitted(settings)
    base = Flows(model.base.shape, model.base.params.double(), model.base.center, model.base.scale)
    x = learner.draw(REAL, 50, seed=S.child("new")).double()
    for k in range(2):
        made = flow._build(base.shape).double()
        torch.nn.utils.vector_to_parameters(base.params[k], made.parameters())
        theirs = made.flow().log_prob((x[k] - base.center[k]) / base.scale[k]) - base.scale[k].log().sum()
        torch.testing.assert_close(base.log_prob(x)[k], theirs.detach(), rtol=0, atol=1e-10)
    line = torch.linspace(-12, 12, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)[None].expand(2, -1, -1)
    mass = base.log_prob(grid).exp().sum(1) * (24 / 400) ** 2
    torch.testing.assert_close(mass, torch.ones(2, dtype=torch.float64), rtol=0, atol=2e-3)
    z = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 200, 2)))
    there = flow._call(base.shape, base.params[0], ((base.pushed(z)[0] - base.center[0]) / base.scale[0]), False)[0]
    torch.testing.assert_close(there, z[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["spline", "coupling"])
def test_flows_learn_and_their_controls_do_not(kind):
    """Held-out likelihood within .05 nats of the true density's; on eight Gaussians far above a Gaussian's."""
    settings = FlowSettings(kind=kind, transforms=3 if kind == "spline" else 6, steps=400)
    learner, model = fitted(settings, rows=4, n=2000)
    fresh = learner.draw(REAL, 4000, seed=S.child("held out")).double()
    precision = torch.linalg.inv(REAL.cov[0])
    centred = fresh - REAL.mean
    true = -0.5 * ((centred @ precision) * centred).sum(2) - math.log(2 * math.pi) - 0.5 * torch.logdet(REAL.cov[0])
    gap = (true - model.base.log_prob(fresh)).mean(1)  # the Kullback-Leibler divergence from the truth
    assert bool(((gap > -0.02) & (gap < 0.05)).all())
    raw = learner.untrained(learner.draw(REAL, 2000, seed=S.child("real")), seed=S)
    assert bool(((true - raw.base.log_prob(fresh)).mean(1) > 0.1).all())
    assert float(w2_squared(model.output, fit(Statistics.of_points(fresh))).sqrt().max()) < 0.15


@pytest.mark.parametrize("settings", [QUICK, COUPLING], ids=["spline", "coupling"])
def test_a_row_is_its_own_and_a_diverged_one_disturbs_nobody(settings):
    """Alone and among others, through training, sampling and guidance in a loop: the same bits."""

    def run(streams, omegas):
        return loop_of_rows(learner_for(streams, settings), REAL, omegas, generations=2)

    together = run([0, 1, 2, 2, 3], [0.0, 0.5, 0.5, 0.0, 0.2])
    np.testing.assert_array_equal(run([2], [0.5])[:, 0], together[:, 2])
    np.testing.assert_array_equal(run([3, 2], [0.2, 0.0]), together[:, [4, 3]])
    check_diverged(learner_for(3), REAL)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs_on_flows(name):
    check_method(learner_for(2), REAL, name, budget=320, omega=0.3)


def test_warm_starts_temperature_and_neon():
    learner, model = fitted(QUICK)
    again = learner.fit(learner.draw(REAL, 400, seed=S.child("real")), seed=S.child(2), start=model)
    assert torch.equal(again.base.center, model.base.center)
    still = learner.finetune(model, learner.draw(REAL, 400, seed=S), 0, seed=S)
    assert torch.equal(still.base.params, model.base.params)
    merged = learner.merge(model, again, np.array([0.5, -1.0]))
    torch.testing.assert_close(merged.base.params[0], 1.5 * model.base.params[0] - 0.5 * again.base.params[0])
    torch.testing.assert_close(merged.base.params[1], again.base.params[1])
    cold = learner_for(2, QUICK, temperature=0.25).sample(model, 4000, seed=S)
    warm = learner.sample(model, 4000, seed=S)
    ratio = cold.var(1) / warm.var(1)
    assert bool((ratio < 0.6).all())
    with pytest.raises(InputError, match="temperature"):
        learner_for(1, temperature=2.0)


# --------------------------------------------------------------------- densities


def affine(mean, std):
    """A flow that is N(mean, std^2) exactly: an untrained architecture with all parameters 0, centred and scaled."""
    shape = ("spline", 2, 2, 4, 8, 2)
    params = torch.zeros(1, flow.Flows.initial(shape, [S], torch.zeros(1, 2), torch.ones(1, 2)).params.shape[1])
    return Flows(shape, params, torch.tensor([mean], dtype=torch.float64), torch.tensor([std], dtype=torch.float64))


@pytest.mark.parametrize("sampler", ["importance:20", "langevin:5"])
@pytest.mark.parametrize("omega", [0.5, 2.0])
def test_guided_flows_that_are_gaussians_have_the_closed_form(sampler, omega):
    """1 / v = (1 + omega) / v_b - omega / v_a; within four standard errors of the effective sample."""
    base, auxiliary = affine([0.5, -1.0], [1.0, 0.8]), affine([0.6, -1.1], [1.15, 0.9])
    learner = learner_for(1, QUICK, DensitySampler.parse(sampler))
    model = learner.extrapolate(FlowModel(base, learner.sampler), FlowModel(auxiliary, learner.sampler), omega)
    drawn = learner.drawn(model, 2000, seed=S)
    v_b, v_a = base.scale[0] ** 2, auxiliary.scale[0] ** 2
    v = 1 / ((1 + omega) / v_b - omega / v_a)
    mean = v * ((1 + omega) * base.center[0] / v_b - omega * auxiliary.center[0] / v_a)
    n = 2000 * min(1.0, float(drawn.effective) * (20 if sampler.startswith("i") else 1))
    points = drawn.points[0]
    assert bool(((points.mean(0) - mean).abs() < 4 * (v / n).sqrt()).all())
    assert bool(((points.var(0) - v).abs() < 4 * v * math.sqrt(2 / n)).all())
    out = model.output
    torch.testing.assert_close(out.mean[0], mean, rtol=0, atol=0.1)
    torch.testing.assert_close(out.cov[0].diagonal(), v, rtol=0.15, atol=0)


def test_degenerate_densities_are_refused_or_named_as_diverged():
    base, auxiliary = affine([0.0, 0.0], [1.0, 1.0]), affine([0.0, 0.0], [0.5, 0.5])
    for sampler, says in ((IMPORTANCE, "tail index"), (LANGEVIN, "no finite mass")):
        learner = learner_for(1, QUICK, sampler)
        model = learner.extrapolate(FlowModel(base, sampler), FlowModel(auxiliary, sampler), 3.0)
        with pytest.raises(InputError, match=f"omega: got '3'; the weights degenerate .*{says}"):
            learner.sample(model, 200, seed=S)
        loose = learner_for(1, QUICK, sampler, strict=False)
        assert torch.isnan(loose.sample(model, 200, seed=S)).all()
        assert np.isinf(loose.distance(model, REAL)).all()
        with pytest.raises(InputError, match="guided"):
            learner.drawn(FlowModel(base, sampler), 5, seed=S)


def test_bad_input(monkeypatch):
    learner, model = fitted(QUICK, rows=1, n=50)
    with pytest.raises(InputError, match=r"x: got '\(1, 50, 3\)'; these flows need shape"):
        learner.finetune(model, torch.zeros(1, 50, 3), 64, seed=S)
    with pytest.raises(InputError, match="two dimensions"):
        learner.fit(torch.zeros(1, 50, 1), seed=S)
    for text in ("importance", "importance:0", "langevin:x", "ddim:20"):
        with pytest.raises(InputError, match="sampler"):
            DensitySampler.parse(text)
    for bad in ({"kind": "maf"}, {"bins": 1}, {"rate": 0.0}, {"ema": 1.0}):
        with pytest.raises(InputError, match=rf"flow\.{next(iter(bad))}"):
            FlowSettings(**bad)
    flow.template.cache_clear()
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(InputError, match="zuko is not installed: pip install"):
        learner.fit(torch.zeros(1, 50, 2), seed=S)


def test_torchs_own_generator_is_left_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    flow.template.cache_clear()
    fitted(QUICK, rows=1, n=40, data=parse_real("moons"))
    assert torch.equal(before, torch.random.get_rng_state())


# ------------------------------------------------------------------------ sweeps


@pytest.mark.parametrize(
    ("learner", "settings"),
    [
        ("flow-matching", {"network": NetworkSettings(width=8, steps=30, batch=32, target="ot")}),
        ("flow", {"flow": QUICK}),
    ],
)
def test_a_sweep_runs_and_keeps_what_its_draws_were_worth(learner, settings, tmp_path):
    small = {"omega": "0,0.5", "method": "sims,neon", "synthetic": "40", "real_size": "60", "budget": "1k"}
    asked = Sweep(
        learner=learner, trials=2, generations=2, workers=1, out=str(tmp_path / "run"), **small, **settings
    )  # fmt: skip
    made = run(asked)
    regimes = made.tables["regimes"].set_index(["method", "omega"])
    assert set(regimes["learner"]) == {learner} and np.isfinite(regimes["first"]).all()
    assert (tmp_path / "run" / "figure4.png").exists()
    if learner == "flow":
        density = made.tables["density"]
        assert set(density["method"]) == {"sims"} and density["effective"].between(0.05, 1).all()
        assert "effective sample size" in made.words
        assert regimes["nfe"].to_dict()[("standard", 0.0)] == 1 and regimes["nfe"].to_dict()[("sims", 0.5)] == 32
    else:
        assert "density" not in made.tables and regimes.loc[("sims", 0.5), "nfe"] == 2 * 32
        assert {"equal-cost"} <= set(regimes.index.get_level_values(0))


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="zuko is not installed: pip install"):
        plan(Sweep(learner="flow"))
