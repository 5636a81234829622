"""Which errors a model can correct: measures, feature scores and the study end to end, each by other means."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats

from sims_core import Sampler, Seed
from sims_toy import studies
from sims_toy.bias import PRESETS, Bias, plan, tables
from sims_toy.bias.cells import HELD_OUT, HELPS, Capacity, Cell
from sims_toy.bias.features import FeatureLearner, Features, normal_equations
from sims_toy.bias.measure import OFF, POINTS, Truth
from sims_toy.bias.separation import separation
from sims_toy.datasets import Mixture, parse_real

FIGURES = Path(__file__).resolve().parents[2] / "figures"
SMALL = Bias(
    exact="smooth:0.1,rank:16", features="16", networks="gaussians:8:0.16/8/300/2000", omega="0.5,1", trials=3,
    points=4000, workers=1,
)  # fmt: skip


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return studies.run(dataclasses.replace(SMALL, out=str(tmp_path_factory.mktemp("bias") / "run")))


# ------------------------------------------------------------------ the study


def test_the_study_end_to_end(small):
    rows = small.tables["rows"].set_index("row")
    assert list(rows["kind"]) == ["networks", "features", "exact", "exact"] and not rows["held_out"].any()
    smooth, rank = rows.loc["smooth:0.1"], rows.loc["rank:16"]
    assert smooth["base"] == pytest.approx(smooth["steps_2"], rel=0.01) and smooth["sims"] < 0.5 * smooth["base"]
    assert rank["sims"] == pytest.approx(rank["base"], rel=1e-3) and rank["length"] < 5e-3  # blind
    network = rows.loc["gaussians:8:0.16/8/300/2000"]
    assert network["base_low"] < network["base"] < network["base_high"] and network["floor"] < 0.1 < network["base"]
    assert (
        0 < abs(network["steps_2"] - network["base"]) < 0.03 * network["base"]
    )  # nearly converged, and not the base's
    features = rows.loc["16"]
    assert 0 < abs(features["steps_2"] - features["base"]) < 0.03 * features["base"]
    controls = small.tables["controls"]
    assert set(controls[controls["kind"] == "networks"]["control"]) == set(tables.CONTROLS.values())
    assert {p.name for p in small.figures} >= {f"bias{n}.png" for n in ("", "_predictions", "_controls", "_separation")}
    assert "rank correlation" in small.words and "the denoising loss rises in" in small.words
    again = studies.run(dataclasses.replace(SMALL, out=str(small.folder)))
    assert again.resumed_finished


def test_a_row_depends_on_nothing_beside_it(small, tmp_path):
    alone = studies.run(dataclasses.replace(SMALL, exact="none", networks="none", out=str(tmp_path / "run")))
    both = [t.tables["values"].query("kind == 'features'").reset_index(drop=True) for t in (small, alone)]
    pd.testing.assert_frame_equal(*both, check_like=True)


def test_presets_hold_every_cell_that_is_held_out():
    cells = [Cell.parse(text) for text in plan(PRESETS["paper"]).settings["networks"]]
    assert set(HELD_OUT) <= set(cells) and len(set(cells)) == len(cells)
    assert not set(HELD_OUT) & {Cell.parse(text) for text in plan(Bias()).settings["networks"]}
    for text in ("64", "128:ridge:0.001", "128:early:1000", "128:early:1000:warm"):
        assert str(Capacity.parse(text)) == text


def test_the_strength_is_chosen_by_the_other_bases():
    frame = pd.DataFrame(
        [
            {"method": "sims", "omega": w, "trial": t, "distance": d}
            for w, values in ((0.5, (3.0, 3.0, 0.0)), (1.0, (1.0, 2.0, 9.0)))
            for t, d in enumerate(values)
        ]
    )
    distance, omega = tables._chosen(frame, "sims")
    assert omega.tolist() == [0.5, 0.5, 1.0] and distance.tolist() == [3.0, 3.0, 9.0]


def test_verdicts_and_held_out_rule():
    assert tables.verdict(-1, -2, -0.1) == "ahead" and tables.verdict(1, 0.1, 2) == "behind"
    assert tables.verdict(-1, -2, 0.1) == "level" and tables.verdict(-np.inf, np.nan, np.nan) == "ahead"
    columns = {"cosine": 0.5, "length": 0.5, "left_low": 0.4, "left_high": 0.6, "base": 1, "sims": 0.5, "gain": -0.5}
    rows = pd.DataFrame(
        [
            {"row": "a", "held_out": True, "predicted_left": 0.5, "left": 0.6, "gain_low": -1, "gain_high": -0.1},
            {"row": "b", "held_out": True, "predicted_left": HELPS, "left": 0.6, "gain_low": -1, "gain_high": -0.1},
            {"row": "c", "held_out": True, "predicted_left": 0.95, "left": 1.0, "gain_low": -1, "gain_high": 0.1},
        ]
    ).assign(**columns)
    found = tables._held_out(rows)
    assert found["sign_hit"].tolist() == [True, False, True] and found["size_hit"].tolist() == [True, False, True]


# ------------------------------------------------------------------ measures


def test_distances_against_closed_forms_and_pairs():
    real = Mixture(((0.0, 0.0),), 1.0)
    truth = Truth(lambda n, seed: real.sample(n, seed.numpy())[0], 1.0, 2, real)
    points = real.sample(4000, Seed(5).numpy())[0]
    moved, energy = truth.distances(points + np.array([0.6, 0.0]))
    assert moved == pytest.approx(0.6 / math.sqrt(2), abs=0.04)  # a shift's sliced W2 is its length over sqrt(d)
    other = real.sample(1500, Seed(6).numpy())[0]
    brute = []
    for angle in np.pi * np.arange(8) / 8:
        x, y = (p @ [math.cos(angle), math.sin(angle)] for p in (points[:1500] + np.array([0.6, 0.0]), other))
        within = [np.abs(a[:, None] - a).sum() / (1500 * 1499) for a in (x, y)]
        brute.append(2 * np.abs(x[:, None] - y).mean() - sum(within))
    assert energy == pytest.approx(np.mean(brute), abs=0.02)
    draws = [truth.distances(real.sample(500, Seed(7).child(k).numpy())[0])[1] for k in range(200)]
    assert abs(np.mean(draws)) < 4 * np.std(draws) / math.sqrt(200)  # unbiased: 0 for the truth itself
    assert truth.distances(points, drawn=False)[1] > truth.distances(points)[1]
    fresh = real.sample(POINTS, Seed(8).numpy())[0]
    assert truth.off_support(fresh) == pytest.approx(OFF, abs=4 * math.sqrt(2 * OFF / POINTS))
    assert truth.off_support(fresh + 20) == 1


@pytest.mark.parametrize("name", ["gaussians:8:0.16", "spiral", "tree"])
def test_the_loss_is_zero_for_the_true_score_alone(name):
    truth = Truth.of(parse_real(name))
    assert truth.loss(truth_denoiser(truth), 1) == pytest.approx(0, abs=1e-20)
    assert truth.loss(lambda x, sigma: truth_denoiser(truth)(x, 1.2 * sigma), 1) > 1e-4


def truth_denoiser(truth):
    return lambda x, sigma: truth.optimum(x[0], sigma[0])[None]


def test_the_optimum_against_the_score_of_the_density():
    """D = x + sigma^2 grad log p_sigma, the gradient by automatic differentiation; and a sample of points for it."""
    mixture = Mixture(((0.0, 0.0), (1.0, 2.0)), 0.3, (0.7, 0.3))
    truth = Truth(lambda n, seed: mixture.sample(n, seed.numpy())[0], 1.0, 2, mixture)
    x = torch.tensor([[0.2, 0.4], [1.0, 1.0]], dtype=torch.float64, requires_grad=True)
    sigma = torch.full((2, 1), 0.5, dtype=torch.float64)
    means, weights = torch.tensor(mixture.means), torch.tensor(mixture.weights, dtype=torch.float64)
    variance = 0.3**2 + 0.25
    density = torch.logsumexp(weights.log() - ((x[:, None] - means) ** 2).sum(-1) / (2 * variance), 1)
    score = torch.autograd.grad(density.sum(), x)[0]
    torch.testing.assert_close(truth.optimum(x.detach(), sigma), x.detach() + 0.25 * score)
    estimated = dataclasses.replace(truth, mixture=None).optimum(x.detach(), sigma)
    torch.testing.assert_close(estimated, truth.optimum(x.detach(), sigma), atol=0.05, rtol=0)


# ------------------------------------------------------------------ feature scores


def test_features_are_trained_to_their_optimum():
    """The closed form against the loss by brute force: its gradient vanishes there, and more features fit better."""
    points = torch.from_numpy(stats.norm.ppf((np.arange(50) + 0.5) / 50))
    features = Features.draw(6, Seed(1))
    quadratic, linear = normal_equations(features, points, 1.0)
    learner = FeatureLearner(Sampler("heun", 16), [0], 6, sigma_data=1.0)
    model = learner.fit(points.view(1, -1, 1), seed=Seed(2))
    h, g = normal_equations(model.features[0], points, 1.0)
    assert (h @ model.coefficients[0] - g).abs().max() < 1e-6
    assert torch.linalg.eigvalsh(quadratic)[0] > -1e-12 and len(linear) == 7
    made = learner.sample(model, 200, seed=Seed(0))
    assert made.shape == (1, 200, 1) and bool((made.diff(dim=1) >= 0).all())
    flow = FeatureLearner(Sampler("heun", 16), [0], 6, sigma_data=1.0, time=1e9, ridge=1e-9)
    torch.testing.assert_close(
        flow.fit(points.view(1, -1, 1), seed=Seed(2)).coefficients[0], model.coefficients[0], atol=1e-3, rtol=1e-3
    )
    for omega in (0.0, 0.7):
        other = learner.perturb(model, flow.fit(0.5 * points.view(1, -1, 1), seed=Seed(2)), seed=Seed(3))
        guided = learner.extrapolate(model, other, omega)
        x, sigma = torch.randn(1, 5, 1, dtype=torch.float64), torch.tensor(0.8)
        straight = (1 + omega) * model.denoise(x, sigma) - omega * other.denoise(x, sigma)
        torch.testing.assert_close(guided.denoise(x, sigma), straight)
        joined = learner.extrapolate(model, learner.rebuild(points.view(1, -1, 1), 1, seed=Seed(9)), omega)
        assert joined.denoise(x, sigma).isfinite().all()


def test_the_sign_of_the_best_strength_is_that_of_the_cosine():
    table = separation(Seed(1), trials=40)
    for _, part in table[table["method"] == "sims"].groupby(["sampler", "zeta"]):
        best = part.loc[part["ratio"].idxmin()]
        assert np.sign(best["omega"]) == np.sign(best["cosine"]) and best["ratio_high"] < 1


# ------------------------------------------------------------------ what is committed

#: Networks of width 16 and 8 on eight Gaussians, Heun-32: (base, SIMS at omega = 1), found by another trainer at half
#: the scale.
KNOWN = {16: ((0.0231, 0.0185), (0.0379, 0.0237), (0.0286, 0.0202)), 8: ((0.0690, 0.0671),)}


@pytest.mark.parametrize("width", KNOWN)
def test_the_committed_rows_reproduce_what_is_known(width):
    """Their mean gain, at our scale, lies within our interval; twice the steps hardly change it."""
    row = pd.read_csv(FIGURES / "bias_rows.csv").set_index("row").loc[f"gaussians:8:0.16/{width}/6000/200000"]
    bases, guided = 2 * np.array(KNOWN[width]).T
    assert row["gain_low"] < (guided - bases).mean() < row["gain_high"] < 0
    assert row["steps_2"] == pytest.approx(row["base"], rel=0.005)
    fallen = 1 - (row["sims"] ** 2 - row["floor"] ** 2) / (row["base"] ** 2 - row["floor"] ** 2)
    assert (0.3 < fallen < 0.75) if width == 16 else (0 < fallen < 0.15)


def test_the_committed_tables_hold_every_row_and_the_loss_rises():
    rows = pd.read_csv(FIGURES / "bias_rows.csv")
    settings = plan(PRESETS["paper"]).settings
    assert list(rows["row"]) == settings["networks"] + settings["features"] + settings["exact"]
    trained = rows[rows["kind"] == "networks"]
    assert (trained["bases"] == settings["trials"]).all() and (trained["loss_rises"] == trained["bases"]).mean() > 0.8
    values = pd.read_parquet(FIGURES / "bias_values.parquet")
    again = tables.make(values, settings)
    for name in ("rows", "controls", "predictions", "held_out"):
        held = pd.read_csv(FIGURES / f"bias_{name}.csv")
        pd.testing.assert_frame_equal(again[name].reset_index(drop=True), held, check_dtype=False)
