"""The pollution study: its theory against the exact learner, its tables, and what it says."""

import dataclasses
import itertools

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import brentq

from sims_core import InputError
from sims_core.algorithm import AUXILIARY_DATA, sims
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy import pollution, studies
from sims_toy.exact import ExactLearner
from sims_toy.gaussian import Gaussian
from sims_toy.pollution import PRESETS, Pollution, plan
from sims_toy.pollution import tables as pollution_report
from sims_toy.pollution import theory as laws
from sims_toy.pollution.tables import vertex
from sims_toy.theory import data_noise, plain_modes

COVARIANCE = [[2, 1], [1, 2]]
REAL = Gaussian.single([0, 0], COVARIANCE)
V = data_noise(COVARIANCE)
SMALL = Pollution(pollution="0,0.1,0.5,1", omega="0:3:0.25", real_size="5000", trials=60, workers=1)


def sampler(text):
    return Sampler.parse(text, sigma_data=2**0.5)


@pytest.mark.parametrize("name", ["heun:18", "ddim:20"])
def test_population_laws(name):
    """The best omega without noise is 1 + lam, and 1 + 2 |D_p|/|D_r| for the auxiliary on D_p, to the curvature."""
    for ratio in (0.1, 0.3, 1.0):
        best, least = laws.population_best(REAL, sampler(name), ratio, "synthetic")
        assert best == pytest.approx(1 + ratio / (1 + ratio), abs=0.04)
        assert least < 0.004
        best, least = laws.population_best(REAL, sampler(name), ratio, "pollution")
        assert best == pytest.approx(1 + 2 * ratio, rel=0.05)
    # a fixed strength of 1.2: measured, lowest at |D_p|/|D_r| = .2
    found = [float(laws.population(REAL, sampler(name), r, [1.2], "synthetic")[0]) for r in (0, 0.1, 0.2, 0.3)]
    expected = {"heun:18": (0.0142, 0.0069, 0.0008, 0.0043), "ddim:20": (0.0218, 0.0106, 0.0024, 0.0076)}[name]
    np.testing.assert_allclose(found, expected, atol=6e-5)
    assert laws.population_ratio(1.2) == pytest.approx(0.25)


def test_both_readings_of_self_improved_by_the_exact_learner():
    """Without noise: better than the base until lam = Omega, better than clean SIMS until lam = 2 (Omega - 1)."""
    heun = sampler("heun:18")

    def w2(ratio, big):
        return float(laws.population(REAL, heun, ratio, [big], "synthetic")[0])

    base = w2(0.0, 0.0)
    for than, big in (("base", 0.375), ("clean", 1.1875)):
        level = base if than == "base" else w2(0.0, big)
        found = brentq(lambda r, big=big, level=level: w2(r, big) - level, 0.2, 1.5)
        assert found == pytest.approx(float(laws.population_pays_until(big, than)), rel=0.25), than


def test_algebra_is_the_closed_form():
    """Carrying coefficients gives the docstring's formulas."""
    beta_sq, n, n_aux = 0.0162, 1000.0, 4000.0
    dose = laws.Dose(n, n_aux, 0.7, "synthetic", plain_modes(beta_sq, V))
    r, w = np.array([0.0, 0.1, 0.5, 1.0])[:, None], np.array([0.0, 1.0, 2.5])
    lam, big = r / (1 + r), 0.7 * w
    expected = V / n + (1 + lam - big) ** 2 * beta_sq + lam * (1 - lam) * V / n + big**2 * V / n_aux
    np.testing.assert_allclose(dose.w2_sq(r, w), expected)
    ratios = np.array([0.1, 0.5, 1.0])
    share = ratios / (1 + ratios)
    np.testing.assert_allclose(dose.best_omega(ratios), (1 + share) * beta_sq / (beta_sq + V / n_aux) / 0.7, rtol=1e-5)
    variant = dataclasses.replace(dose, eta=1.0, auxiliary_data="pollution")
    u = beta_sq / (beta_sq + V / (ratios * n))
    np.testing.assert_allclose(variant.best_omega(ratios), (u + share) / (1 - share), rtol=1e-5)
    full = dataclasses.replace(dose, eta=1.0)
    for strength in (1.1, 1.3, 1.45):
        best = laws.best_share(strength, beta_sq, V, n)
        assert full.best_ratio(strength) == pytest.approx(best / (1 - best), abs=1e-4)
    assert list(full.best_ratio([0.5, 3.0])) == [0, np.inf]  # no optimum between
    for big in (0.4, 0.8, 1.3):  # until which dose it pays: roots of the docstring's quadratics
        end = full.pays_until(big, "base")
        line = 2 * (1 - big) * beta_sq + V / n
        rest = (1 - big) ** 2 * beta_sq - beta_sq + big**2 * V / n_aux
        roots = np.roots([beta_sq - V / n, line, rest]).real
        assert (end / (1 + end) if np.isfinite(end) else 1.0) == pytest.approx(min(roots.max(), 1.0), abs=1e-4)
        last = (2 * (big - 1) * beta_sq - V / n) / (beta_sq - V / n)
        end = full.pays_until(big, "clean")
        assert end / (1 + end) == pytest.approx(max(last, 0), abs=1e-4)
    assert full.pays_until(3.0, "base") == 0 and full.pays_until(1.3, "clean") == pytest.approx(
        laws.best_share(1.3, beta_sq, V, n) * 2 / (1 - 2 * laws.best_share(1.3, beta_sq, V, n))
    )
    quiet = laws.Dose(1e9, 1e9, 1.0, "synthetic", plain_modes(beta_sq, V))
    for than, big in (("base", 0.375), ("clean", 1.1875)):  # both cross at |D_p| = 0.6 |D_r|
        assert quiet.pays_until(big, than) == pytest.approx(0.6, rel=1e-3)
        assert laws.population_pays_until(big, than) == pytest.approx(0.6)
    for ratio, than in itertools.product(laws.SELF_IMPROVED, ("base", "clean")):  # the inverse of `pays_until`
        big = full.crossing(ratio, than)
        assert full.pays_until(big, than) == pytest.approx(ratio, rel=1e-3)
        assert quiet.crossing(ratio, than) == pytest.approx(float(laws.population_crossing(ratio, than)), rel=1e-3)
    assert np.isnan(laws.Dose(3.0, 1.0, 1.0, "synthetic", plain_modes(beta_sq, V)).crossing(0.6, "base"))
    assert laws.population_pays_until([1.2, 0.5], "base").tolist() == [np.inf, 1.0]
    with pytest.raises(InputError, match="than"):
        full.pays_until(1.0, "it")
    assert laws.best_share(laws.threshold(beta_sq, V, n) - 0.01, beta_sq, V, n) == 0
    assert laws.best_share(laws.threshold(beta_sq, V, n) + 0.01, beta_sq, V, n) > 0


@pytest.mark.parametrize("reading", [*AUXILIARY_DATA, "pollution"])
def test_first_order_by_monte_carlo(reading):
    """Where first order holds (a fine sampler, many points) prediction and exact learner agree."""
    fine, n, n_p, n_aux, eta, trials = sampler("heun:40"), 20_000, 8_000, 10_000, 0.8, 1500
    learner, seed = ExactLearner(fine, np.arange(trials)), Seed(3)
    data = learner.draw(REAL, n, seed=seed.child("real"))
    foreign = learner.sample(learner.fit(data, seed=seed), n_p, seed=seed.child("p"))
    source = (lambda *_: foreign) if reading == "pollution" else AUXILIARY_DATA[reading]
    made = sims(
        learner, learner.union(data, foreign), n_synthetic=n_aux, budget=eta, omega=1.5, auxiliary_data=source,
        real=data, seed=seed.child("g"),
    )  # fmt: skip
    square = learner.distance(made.model, REAL) ** 2
    beta_sq = float(laws.population(REAL, fine, 0.0, [0.0], "synthetic")[0]) ** 2
    predicted = laws.Dose(n, n_aux, eta, reading, plain_modes(beta_sq, V)).w2_sq(n_p / n, 1.5)
    error = square.std() / trials**0.5
    assert abs(square.mean() - predicted) < 4 * error + 0.04 * predicted


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return studies.run(dataclasses.replace(SMALL, out=str(tmp_path_factory.mktemp("pollution") / "run")))


def test_study(small):
    assert {"pollution.png", "pollution.svg"} <= {p.name for p in small.figures}
    curves, best, fixed = (small.tables[k] for k in ("curves", "best", "fixed"))
    assert set(curves["curve"]) == {
        "ST-I", "ST-P", "SIMS-I", "SIMS-P", "SIMS-P*", "ST-I equal cost", "ST-P equal cost"
    }  # fmt: skip
    dosed = best[best["curve"] == "SIMS-P"]
    assert (np.abs(dosed["omega"] - dosed["law"]) < 0.1).all()
    assert (dosed["to_clean_high"] > 1).all() and (
        dosed["to_clean_low"].iloc[1:] > 1
    ).all()  # at its own best omega no pollution helps
    over = fixed[(fixed["curve"] == "SIMS-P") & (fixed["omega"] == 1.5)].iloc[0]
    assert over["little_to_clean_high"] < 1  # at a fixed omega > 1 a little does
    under = fixed[(fixed["curve"] == "SIMS-P") & (fixed["omega"] == 1.0)].iloc[0]
    assert under["little_to_clean_low"] > 1
    standard = curves[curves["curve"] == "ST-P"].sort_values("ratio")
    assert (np.diff(standard["w2_rms"]) > 0).all()
    np.testing.assert_allclose(standard["w2_rms"], standard["theory_rms"], rtol=0.06)
    zero = curves[(curves["curve"] == "SIMS-P") & (curves["omega"] == 0)].sort_values("ratio")
    np.testing.assert_array_equal(zero["w2_rms"], standard["w2_rms"])  # omega = 0 is standard training, bit for bit
    assert "artefact of the fixed" in small.words
    again = studies.run(dataclasses.replace(SMALL, out=str(small.folder), workers=2, chunk=70))
    assert again.resumed_finished
    for name, frame in small.tables.items():
        pd.testing.assert_frame_equal(frame, again.tables[name])


def test_same_size_ideal_and_equal_cost(tmp_path):
    options = dataclasses.replace(SMALL, ideal="same-size", trials=4, omega="0,1,2", out=str(tmp_path / "run"))
    curves = studies.run(options).tables["curves"]
    ideal = curves[curves["curve"] == "ST-I"]
    assert sorted(ideal["ratio"]) == [0, 0.1, 0.5, 1]
    assert set(curves[curves["curve"] == "ST-P equal cost"]["sampler"]) == {"ddim:40"}


def test_vertex():
    x = np.array([0.0, 0.5, 1.0, 2.0])
    y = np.stack([(x - 0.8) ** 2 + 3, x + 1, 5 - x])
    place, value = vertex(x, y)
    np.testing.assert_allclose(place, [0.8, 0, 2])
    np.testing.assert_allclose(value, [3, 1, 3])


def test_networks_run(tmp_path, monkeypatch):
    """Networks through the same study, small: finite tables, the exact learner's curves beneath."""
    monkeypatch.setattr(pollution, "OVERLAY_TRIALS", 10)
    monkeypatch.setattr(pollution_report, "POPULATION_SAMPLERS", ())
    network = dataclasses.replace(Pollution().network, steps=40)
    options = Pollution(
        learner="network", network=network, pollution="0,0.1,0.5", omega="0,1,2", real_size="200", trials=2,
        auxiliary_size=200, sampler="ddim:6", out=str(tmp_path / "run"), workers=1,
    )  # fmt: skip
    result = studies.run(options)
    assert set(result.tables["curves"]["learner"]) == {"network", "exact"}
    assert np.isfinite(result.tables["curves"]["w2_rms"]).all()


def test_presets_plan():
    for preset in PRESETS.values():
        assert plan(preset).experiment.cells
