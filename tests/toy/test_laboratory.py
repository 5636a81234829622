"""Every loop, method and data set through the one experiment: what each measures, its controls, and adding one more."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from sims_core import METHODS, POLICIES, InputError, Sampler, Seed
from sims_core.algorithm import Method, Trained
from sims_core.loop import Policy
from sims_toy import datasets, studies, wasserstein
from sims_toy.datasets import parse_real
from sims_toy.exact import ExactLearner
from sims_toy.gaussian import Gaussian
from sims_toy.grid import measure as measuring
from sims_toy.grid import run as experiment
from sims_toy.grid.cells import Cell, Experiment
from sims_toy.networks.learner import NetworkLearner
from sims_toy.networks.settings import NetworkSettings
from sims_toy.sweep import plan
from sims_toy.sweep.options import Sweep

REAL = ((2.0, 1.0), (1.0, 2.0))
TINY = NetworkSettings(steps=20, batch=16, width=8)


def exact(cells, trials=200, generations=1, **more):
    return experiment.run(Experiment(tuple(cells), generations, trials, 0, (0.0, 0.0), REAL, **more))


def cell(method="standard", loop="augmentation", **more):
    given = {"sampler": "ddim:20", "real_size": 1000, "synthetic_size": 500, "reference": "ddim:20"} | more
    if METHODS[method].takes:
        given = {"auxiliary_size": 500, "budget": "1", "auxiliary_data": "train+synthetic"} | given
    return Cell("exact", method, loop, **given)


def test_every_method_at_omega_0_is_standard_training():
    cells = [cell(m, omega=0.0) for m in METHODS if m != "continued"]
    w2 = exact(cells, trials=5, generations=2)["w2"]
    for found in w2[1:]:
        np.testing.assert_array_equal(found, w2[0])


def test_controls_do_not_do_what_sims_does():
    """At the strength where SIMS helps most: a random direction and more training help nothing, paired."""
    cells = [cell(), cell("sims", omega=3.0), cell("random", omega=3.0), cell("continued"), cell("rebuilt", omega=3.0)]
    base, sims, random, continued, rebuilt = exact(cells, generations=10)["w2"][:, :, -1]

    def z(a, b):
        return (a - b).mean() / (np.std(a - b, ddof=1) / math.sqrt(len(a)))

    assert z(base, sims) > 5 and z(random, base) > 3
    np.testing.assert_array_equal(continued, base)  # maximum likelihood has one answer
    np.testing.assert_array_equal(rebuilt, sims)


def test_a_guide_of_the_exact_learner_lies_between_noise_and_the_fit():
    learner = ExactLearner(Sampler.parse("heun:18", sigma_data=1.5), [0, 1])
    data = learner.draw(Gaussian.single([1, 0], REAL), 200, seed=Seed(0))
    fit = learner.fit(data, seed=Seed(0)).base
    half = learner.rebuild(data, 0.5, seed=Seed(0)).base
    torch.testing.assert_close(half.mean, fit.mean / 2)
    torch.testing.assert_close(half.cov, (fit.cov + 2.25 * torch.eye(2, dtype=torch.float64)) / 2)


@pytest.mark.parametrize("kind", ["exact", "network"])
def test_a_random_direction_is_as_long_as_the_true_one(kind):
    sampler = Sampler.parse("ddim:20", sigma_data=math.sqrt(2))
    streams = [3, 4, 3]
    learner = ExactLearner(sampler, streams) if kind == "exact" else NetworkLearner(sampler, streams, TINY)
    data = learner.draw(Gaussian.single([0, 0], REAL), 60, seed=Seed(0))
    base = learner.fit(data, seed=Seed(1))
    auxiliary = learner.finetune(
        base, learner.sample(base, 60, seed=Seed(2)), 1 if kind == "exact" else 320, seed=Seed(3)
    )
    moved = learner.perturb(base, auxiliary, seed=Seed(4))

    def offset(model):
        if kind == "exact":
            return torch.cat([model.base.mean - base.base.mean, (model.base.cov - base.base.cov).flatten(1)], 1)
        return model.base.params - base.base.params

    true, random = offset(auxiliary), offset(moved)
    torch.testing.assert_close(random.norm(dim=1), true.norm(dim=1), rtol=1e-4, atol=0)
    assert torch.equal(random[0], random[2]) and not torch.equal(random[0], random[1])
    cosine = (true * random).sum(1) / true.norm(dim=1) / random.norm(dim=1)
    assert (cosine.abs() < (0.95 if kind == "exact" else 0.3)).all()


def test_sampling_bias_of_both_learners():
    """Samples at lambda_s have the model's mean and lambda_s times its covariance."""
    sampler = Sampler.parse("rk4:6", sigma_data=math.sqrt(2))
    real = Gaussian.single([1, -1], REAL)
    plain = NetworkLearner(sampler, [0], NetworkSettings(steps=100))
    cold = NetworkLearner(sampler, [0], NetworkSettings(steps=100), temperature=0.64)
    model = plain.fit(plain.draw(real, 500, seed=Seed(0)), seed=Seed(0))
    a, b = (x.sample(model, 20_000, seed=Seed(1))[0].double() for x in (plain, cold))
    torch.testing.assert_close(b.mean(0), a.mean(0), atol=0.05, rtol=0)
    torch.testing.assert_close(torch.cov(b.T), 0.64 * torch.cov(a.T), rtol=0.06, atol=0.02)
    torch.testing.assert_close(cold.points(model, 50, seed=Seed(1)), plain.points(model, 50, seed=Seed(1)))
    cooled = exact([cell(loop="fully-synthetic", temperature=t, sampler="exact") for t in (1.0, 0.8)], 50, 5,
                   quantities=("variance",))["variance"].mean(1)  # fmt: skip
    assert cooled[1, -1] == pytest.approx(0.8**4 * cooled[0, -1], rel=0.05)
    for learner in (
        lambda t: ExactLearner(sampler, temperature=t),
        lambda t: NetworkLearner(sampler, [0], temperature=t),
    ):
        with pytest.raises(InputError, match="temperature"):
            learner(1.5)


def test_pollution_in_the_population_limit():
    """One dose of samples of the real data's own model adds the share lambda_p of the drift to the base."""
    learner = ExactLearner(Sampler.parse("heun:40", sigma_data=math.sqrt(2)), [0], noise=False)
    real = Gaussian.single([0, 0], REAL)
    data = learner.draw(real, 1000, seed=Seed(0))
    before = learner.fit(data, seed=Seed(0))
    mixed = learner.fit(learner.union(data, learner.sample(before, 250, seed=Seed(1))), seed=Seed(0))
    drift = before.output.cov - real.cov
    torch.testing.assert_close(mixed.base.cov - real.cov, 0.2 * drift, rtol=1e-9, atol=1e-12)
    # through the experiment: more pollution, more of the drift; the 'pollution' reading trains on D_p itself
    cells = [cell(loop="polluted", pollution=p) for p in (1, 4000)]
    clean, polluted = exact(cells)["w2"].mean(1)[:, 0]
    assert clean == pytest.approx(exact([cell()])["w2"].mean(), rel=0.02) and polluted > 1.2 * clean
    guided = [
        cell("sims", loop="polluted", pollution=500, omega=w, auxiliary_data=a)
        for a in ("synthetic", "pollution")
        for w in (0.0, 1.0)
    ]
    w2 = exact(guided)["w2"].mean(1)[:, 0]
    assert w2[0] == w2[2] and w2[1] < w2[0] and w2[3] < w2[0] and w2[1] != w2[3]


def network(cells, quantities, trials=2, generations=1, settings=TINY):
    exp = Experiment(tuple(cells), generations, trials, 0, (0.0, 0.0), REAL, settings, quantities)
    return experiment.run(exp), exp


@pytest.mark.parametrize("real", ["gaussians:8", "moons"])
def test_networks_on_other_data(real):
    base = Cell("network", "standard", "augmentation", "heun:18", 1000, 50, reference="heun:18", real=real)
    trained = NetworkSettings()
    values, exp = network([base], ("sliced", "emd", "points:40"), settings=trained)
    few, _ = network([base], ("sliced",), settings=NetworkSettings(steps=5))
    source = exp.source(base)
    floor = wasserstein.measure(source.draw(1000, Seed(5)), source.draw, seed=Seed(6), distance=wasserstein.sliced)
    assert (values["sliced"] < 0.5 * few["sliced"]).all() and (values["sliced"] > floor.floor_low).all()
    assert (values["emd"] > values["sliced"]).all()
    assert values["points:40"].shape == (1, 2, 1, 40, 2) and np.isfinite(values["points:40"]).all()
    again, _ = network([base], ("points:40", "sliced"), trials=1, settings=trained)
    np.testing.assert_array_equal(again["points:40"][:, 0], values["points:40"][:, 0])
    np.testing.assert_array_equal(again["sliced"][:, 0], values["sliced"][:, 0])


def test_a_users_points_have_their_own_origin_and_unit(tmp_path):
    """Shifted and scaled points give the same networks, and distances in the points' own units.

    To 1 %: centring rounds the points in their last digits, and float32 training doubles such differences many times.
    """
    points = parse_real("gaussians:8").draw(1200, Seed(0))
    units = {"a": (1.0, (0.0, 0.0)), "b": (300.0, (50.0, 8.0)), "c": (1e-6, (1.0, 0.0)), "d": (1e50, (-1e51, 3e50))}
    quantities = ("sliced", "emd", "points:20", "variance", "mean_sq", "log_volume")
    found = {}
    for name, (unit, origin) in units.items():
        np.save(tmp_path / f"{name}.npy", points * unit + origin)
        real = str(tmp_path / f"{name}.npy")
        base = Cell("network", "sims", "augmentation", "heun:8", 100, 50, 50, "1k", 0.5, "synthetic", real=real)
        found[name], exp = network([base], quantities, generations=2)
        floors = wasserstein.floors(exp.source(base), 1000, wasserstein.sliced, Seed(1))
        found[name]["floor"] = np.array(floors)
    one = found.pop("a")
    assert np.isfinite(one["sliced"]).all() and one["sliced"].max() < 3  # as a named data set's, not 4 or 400
    for name, other in found.items():
        unit, origin = units[name]
        for quantity in ("sliced", "emd", "floor"):
            np.testing.assert_allclose(other[quantity], unit * one[quantity], rtol=1e-2)
        np.testing.assert_allclose(other["variance"], unit**2 * one["variance"], rtol=2e-2)
        np.testing.assert_allclose(other["mean_sq"], unit**2 * one["mean_sq"], rtol=5e-2)
        np.testing.assert_allclose(other["log_volume"], one["log_volume"] + 2 * np.log(unit), atol=2e-2)
        np.testing.assert_allclose(other["points:20"], unit * one["points:20"] + origin, atol=3e-2 * unit)


@pytest.mark.parametrize(
    ("mean", "covariance", "said"),
    [("0,0", "2,1;1,2", False), ("50,8", "2,1;1,2", True), ("0,0", "90000,0;0,90000", True), ("9,0", "2,1;1,2", False)],
)
def test_a_gaussian_far_from_where_samplers_start_is_told(mean, covariance, said):
    found = plan(Sweep(learner="exact", real_mean=mean, real_covariance=covariance, omega="0,1", synthetic="100"))
    assert ("samplers start around 0" in found.note()) == said


def test_a_sweep_on_a_file_says_its_units_floor_and_header(tmp_path):
    points = parse_real("moons").draw(1100, Seed(0)) * 20 + 1000
    np.savetxt(tmp_path / "p.csv", points, delimiter=",", header="x,y", comments="")
    sweep = Sweep(
        omega="0,1", synthetic="40", real_size="60", trials=2, generations=1, workers=1, network=TINY,
        data=str(tmp_path / "p.csv"), sampler="ddim:5", out=str(tmp_path / "run"), retuned="none",
    )  # fmt: skip
    result = studies.run(sweep)
    words = "floor of the sliced distance, 550 real points against 550 others: "
    assert result.note.startswith(words) and 0.2 < float(result.note[len(words) :].split()[0]) < 5
    assert "the first line of" in result.note and "'x,y', is taken as a header" in result.note
    np.savetxt(tmp_path / "p.csv", points[:500], delimiter=",")
    with pytest.raises(InputError, match=r"data: .*the file holds 500 points; give at least 1000: 1000 are compared"):
        studies.run(replace(sweep, out=str(tmp_path / "other")))


def test_a_sweep_on_moons_resumes_and_says_its_distance(tmp_path):
    sweep = Sweep(
        omega="0,1", synthetic="40", real_size="60", trials=2, generations=2, workers=1, data="moons",
        sampler="ddim:5", network=TINY, out=str(tmp_path / "run"), method="standard,sims,autoguidance,continued",
    )  # fmt: skip
    first = studies.run(sweep)
    assert first.note.startswith("floor of the sliced distance") and not first.resumed_finished
    assert {"comparison.png", "figure4.png"} <= {p.name for p in first.figures}
    regimes = first.tables["regimes"]
    assert set(regimes["method"]) == {"standard", "equal-cost", "retuned", "sims", "autoguidance", "continued"}
    assert dict(zip(regimes["method"], regimes["nfe"], strict=True)) == {
        "standard": 4, "equal-cost": 9, "retuned": 7, "sims": 8, "autoguidance": 8, "continued": 4,
    }  # fmt: skip
    again = studies.run(sweep)
    assert again.resumed_finished and again.words == first.words


def test_a_loop_a_method_and_a_data_set_from_outside(monkeypatch, tmp_path):
    """One function and one line in a table each, then a sweep by name."""

    def halves(learner, turn):
        return turn.real if turn.generation % 2 else learner.union(turn.real, turn.previous_synthetic)

    def lazy(learner, train, *, omega, real=None, seed, start=None):
        base = learner.fit(train, seed=seed.child("fit"), start=start)
        return Trained(learner.extrapolate(base, base, omega), base, base)

    def cross(text):
        def sample(n, generator):
            points = generator.standard_normal((n, 2)) * [2.0, 0.1]
            label = generator.integers(2, size=n)
            return np.where(label[:, None] == 0, points, points[:, ::-1]), label

        return datasets.Distribution("cross", sample, 2)

    monkeypatch.setitem(POLICIES, "halves", Policy("halves", halves))
    monkeypatch.setitem(METHODS, "lazy", Method(lazy, takes=("omega",)))
    monkeypatch.setitem(datasets.DATASETS, "cross", cross)
    monkeypatch.setitem(measuring.QUANTITIES, "width", lambda moment: moment.points[..., 0].std(1))
    sweep = Sweep(
        omega="0,2", synthetic="40", real_size="60", trials=2, generations=3, workers=1, data="cross",
        sampler="ddim:5", network=TINY, out=str(tmp_path / "run"), method="lazy", loop="halves",
    )  # fmt: skip
    regimes = studies.run(sweep).tables["regimes"].set_index(["method", "omega"])
    assert regimes.loc[("lazy", 2.0), "last"] == pytest.approx(regimes.loc[("lazy", 0.0), "last"])
    cells = [Cell("network", "standard", "halves", "ddim:5", 60, 40, reference="ddim:5", real="cross")]
    width, _ = network(cells, ("width",))
    assert width["width"].shape == (1, 2, 1)
