"""The stability command, the published behaviours on the exact learner, and the constants of networks."""

import dataclasses
import io
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from sims_core import InputError
from sims_core.loop import parse_policy
from sims_core.seeds import Seed
from sims_toy import studies, wasserstein
from sims_toy.datasets import parse_real
from sims_toy.flows import flow
from sims_toy.flows.flow import Flows
from sims_toy.flows.settings import FlowSettings
from sims_toy.grid.cells import Cell, Experiment
from sims_toy.grid.run import run
from sims_toy.networks.settings import NetworkSettings
from sims_toy.stability import PRESETS, Stability, figures, plan, theory
from sims_toy.stability import tables as report
from sims_toy.stability.models import FlowLoss, PointLoss, curvature, w1_excess

ROOT = Path(__file__).resolve().parents[2]
TINY = NetworkSettings(start="warm", width=6, layers=2, steps=20, warm_rate=2e-3, backend="torch")
SMALL = Stability(
    data="moons", ratio="0.5", real_size=60, generations=3, trials=2, sampler="rk4:2", network=TINY, probe_points=6,
    collapse_size=20, collapse_generations=30, collapse_trials=400, workers=1,
)  # fmt: skip


def exact(loop, size, *, generations=40, trials=200, n=200, quantity="w2", sampler="exact", ddof=0):
    cell = Cell("exact", "standard", loop, sampler, n, size)
    made = Experiment((cell,), generations, trials, 0, (0.0,), ((1.0,),), None, (quantity,), ddof=ddof)
    return run(made)[quantity][0]


# ------------------------------------------------------------------ published behaviours


@pytest.mark.parametrize("ddof", [1, 0])
def test_a_fully_synthetic_gaussian_collapses_at_its_rate(ddof):
    """E sqrt(Sigma_t) = c_4(n)^t for the variance divided by n - 1, times sqrt((n - 1) / n)^t for that by n."""
    n, trials = 20, 1000
    root = np.sqrt(exact("fully-synthetic", n, n=n, quantity="variance", ddof=ddof, trials=trials))
    t = np.arange(1, 41)
    error = root.std(0, ddof=1) / math.sqrt(trials)
    assert (np.abs(root.mean(0) - theory.collapse_rate(n, ddof) ** t) < 4 * error).all()
    other = theory.collapse_rate(n, 1 - ddof) ** t  # and the other estimator's rate is excluded
    assert abs(root.mean(0)[-1] - other[-1]) > 8 * error[-1]


def test_variance_goes_to_zero_almost_surely():
    late = exact("fully-synthetic", 5, n=5, generations=300, trials=60, quantity="variance")[:, -1]
    assert late.max() < 1e-6


def test_small_ratios_stay_and_fully_synthetic_drifts():
    """With real data kept the squared distance stays within 1 + m / (n + 2m) of the first round's, whatever the ratio.

    So what lies far above every threshold is the loop without real data: there errors add up round after round.
    """
    n = 200
    for ratio in (0.1, 2.0):
        square = exact(f"mixed:{ratio}", round(ratio * n)) ** 2
        late = square[:, 20:].mean(1)
        expected = 1 + ratio / (1 + 2 * ratio)
        first = square[:, 0].mean()
        error = (
            late.std(ddof=1) / math.sqrt(len(late)) / first
            + expected * square[:, 0].std(ddof=1) / math.sqrt(200) / first
        )
        assert abs(late.mean() / first - expected) < 4 * error + 0.02  # 0.02: expected to first order in 1 / n
    square = (exact("fully-synthetic", n) ** 2).mean(0)
    assert square[19] > 10 * square[0] and square[39] > 1.5 * square[19]  # a random walk: t times the first round's


def test_a_sampler_with_a_bias_drifts_the_further_the_larger_the_ratio():
    """A repeated bias adds up over about 1 + lambda rounds: small ratios stay near it, huge ones go far."""
    end = {}
    for ratio in (0.1, 2.0, 50.0):
        square = (exact(f"mixed:{ratio}", round(ratio * 2000), n=2000, sampler="heun:18", trials=50) ** 2).mean(0)
        end[ratio] = math.sqrt(square[-1] / square[0])
    assert end[0.1] < 1.2 < end[2.0] < end[50.0] and end[50.0] > 5


@pytest.mark.parametrize("ratio", [0.1, 0.49, 2.0])
def test_the_kick_returns_at_the_well_specified_rate(ratio):
    """lambda / (1 + lambda), on both sides of the theorem's 1/2: what the command's rates are read against."""
    n = 4000
    plain = exact(f"mixed:{ratio}", round(ratio * n), n=n, generations=4, trials=50, quantity="variance")
    kicked = exact(f"scaled:0.9:mixed:{ratio}", round(ratio * n), n=n, generations=4, trials=50, quantity="variance")
    left = (kicked - plain) / (kicked - plain)[:, :1]
    error = left.std(0, ddof=1) / math.sqrt(50)
    want = theory.linear_rate(ratio) ** np.arange(4)
    assert (np.abs(left.mean(0) - want)[1:] < 4 * error[1:] + 1e-3).all()


def test_the_scaled_policy():
    policy = parse_policy("scaled:0.8:mixed:0.5")
    assert policy.warm and policy.ratio == 0.5 and policy.name == "scaled:0.8:mixed:0.5"
    for bad in ("scaled:0:mixed:0.5", "scaled:x:mixed:0.5", "scaled:0.8:nothing", "scaled:0.8"):
        with pytest.raises(InputError, match="loop"):
            parse_policy(bad, argument="--loop")


def test_warm_training_has_its_own_steps_and_rate():
    settings = NetworkSettings(steps=100, rate=1e-2, warm_steps=7, warm_rate=1e-3)
    assert (settings.training(50).steps, settings.training(50).schedule.peak) == (100, 1e-2)
    warm = settings.training(50, warm=True)
    assert (warm.steps, warm.schedule.peak) == (7, 1e-3)
    plain = NetworkSettings(steps=100, rate=1e-2)
    assert plain.training(50, warm=True) == plain.training(50)
    with pytest.raises(InputError, match="warm_rate"):
        NetworkSettings(warm_rate=-1.0)


# ------------------------------------------------------------------ networks' constants


@pytest.fixture(scope="module")
def loss():
    points = np.random.default_rng(0).standard_normal((5, 2))
    settings = NetworkSettings(width=5, layers=2)
    made = PointLoss(points, settings, 0.9)
    return made, made.mlp.initial([Seed(1)], "torch", torch.float64)[0], points, settings


def test_hessian_and_directions_against_differences(loss):
    made, theta, _, _ = loss
    hessian = made.hessian(theta)
    v = torch.from_numpy(np.random.default_rng(1).standard_normal(len(theta)))
    v = v / v.norm()
    h = 1e-4
    second = (made(theta + h * v) - 2 * made(theta) + made(theta - h * v)) / h**2
    torch.testing.assert_close(made.along(theta, 3 * v), second, atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(v @ hessian @ v, second.mean(), atol=2e-6, rtol=1e-5)


def test_the_loss_is_the_mean_over_the_training_noise(loss):
    """The cubature against Monte-Carlo over the noise and the levels, by the ensemble's own denoiser."""
    from sims_toy.networks.ensemble import Ensemble

    made, theta, points, _ = loss
    std = torch.tensor([0.9], dtype=torch.float64)
    denoise = Ensemble(made.mlp, theta[None], std).denoiser(backend="torch")
    draw = np.random.default_rng(2)
    clean = torch.from_numpy(points)
    total = torch.zeros(len(points), dtype=torch.float64)
    levels = 0.9 * np.tan(np.pi / 2 * (np.arange(8) + 0.5) / 8)
    for s in levels:
        noise = torch.from_numpy(draw.standard_normal((len(points), 20_000, 2)))
        x = (clean[:, None] + s * noise).reshape(1, -1, 2)
        d = denoise(x, torch.tensor(s)).view(len(points), -1, 2)
        weight = (s**2 + 0.81) / (s * 0.9) ** 2  # of EDM: the raw network's target has unit variance
        total += weight * ((d - clean[:, None]) ** 2).mean((1, 2)) / 8
    np.testing.assert_allclose(made(theta).numpy(), total.numpy(), rtol=0.05)


def test_curvature(loss):
    _, theta, _, settings = loss
    real = parse_real("moons")
    direction = np.random.default_rng(3).standard_normal((2, len(theta)))

    def of(points, population):
        return PointLoss(points, settings, 0.9, population=population)

    found = curvature(theta.numpy(), direction, real, of, points=6, seed=Seed(0))
    assert found.smallest - 1e-9 <= found.alpha.min() and found.alpha.max() <= found.largest + 1e-9
    np.testing.assert_allclose(found.alpha[2:], [found.smallest, found.largest], atol=1e-9)
    assert abs(found.held_out - found.smallest) < 1 and found.held_out_se > 0
    assert (found.lipschitz > 0).all() and 0 <= found.flat <= 1
    x = real.draw(6, Seed(0).child("curvature"))  # L by brute force: Hessians of single points, along the direction
    v = torch.from_numpy(direction[0] / np.linalg.norm(direction[0]))
    each = [float(v @ PointLoss(x[i : i + 1], settings, 0.9).hessian(theta) @ v) for i in range(6)]
    slopes = [abs(each[i] - each[j]) / np.linalg.norm(x[i] - x[j]) for i in range(6) for j in range(i)]
    assert found.lipschitz[0] == pytest.approx(max(slopes))


def test_w1_excess_sees_a_shift_and_not_the_floor():
    real = parse_real("moons")
    own = real.draw(400, Seed(5))
    value, floor = w1_excess(own, real, seed=Seed(0))
    assert floor > 0 and abs(value - floor) < 0.03
    value, floor = w1_excess(own + np.array([0.5, 0.0]), real, seed=Seed(0))
    assert value - floor < 0.5 < value + 0.01 and value - floor > 0.3  # less its floor it is understated


def test_sliced_by_order_statistics_is_pots():
    import ot

    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(50, 2)), draw.normal(size=(50, 2)) * 1.3
    stream = Seed(0).child("directions").integer() % 2**32
    pots = ot.sliced_wasserstein_distance(a, b, n_projections=256, p=2, seed=stream)
    assert wasserstein.sliced(a, b) == pytest.approx(float(pots), rel=1e-9)


# ------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return studies.run(dataclasses.replace(SMALL, out=str(tmp_path_factory.mktemp("stability") / "run")))


def test_tables_and_figures(small):
    files = {p.name for p in small.folder.iterdir()}
    assert {"stability.png", "stability_theorem.svg", "stability_samples_moons.png", "constants.parquet"} <= files
    rounds, rates = small.tables["stability"], small.tables["rates"]
    assert sorted(rounds["ratio"].unique()) == [0, 0.5, math.inf] and len(rounds) == 3 * 3
    assert ((rounds["low"] <= rounds["distance"]) & (rounds["distance"] <= rounds["high"])).all()
    first = rounds[rounds["generation"] == 1]["distance"]
    assert first.nunique() == 1  # the first round sees real data alone, whatever the ratio
    assert (rounds[rounds["ratio"] == 0]["to_zero"] == 1).all()
    assert list(rates["well_specified"]) == pytest.approx([0, 1 / 3, 1])
    assert (rates["displacement"] < 0).all()
    constants = small.tables["constants"]
    smallest = constants[constants["reading"] == "smallest"]
    assert (smallest["alpha"] != smallest["smallest"]).all() and (smallest["held_out_se"] > 0).all()
    uncertain = constants[~constants["holds"]]
    assert uncertain["bound"].isna().all() and not constants[np.isinf(constants["ratio"])]["holds"].any()
    assert "certified" not in constants  # neither reading is a certificate
    closed = small.tables["closed_form"]
    sure = closed[closed["certified"]]
    assert len(sure) and (sure["norm"] <= sure["bound"] + 1e-9).all() and (closed["measured"] < 1).all()
    np.testing.assert_allclose(closed["measured"], closed["linear"], atol=1e-6)
    assert small.words.splitlines()[-1].startswith("By distance after 3 rounds: moons: ")


def test_the_page_shows_the_samples_round_by_round(small):
    page = small.page.read_text(encoding="utf-8")
    assert all(f"<h3>round {t}</h3>" in page for t in (1, 2, 3)) and "λ = 0, λ = 0.5, fully synthetic" in page
    corners = pd.DataFrame({"real": "r", "ratio": 0.0, "generation": 1, "x": [0.0, 1.0, 1.0], "y": [0.0, 0.0, 1.0]})
    moved = corners.assign(generation=2, x=9.0)  # out of what the first round shows
    ratios, pictures = figures.clouds(pd.concat([corners, moved]), "r")
    inked = {t: (np.asarray(Image.open(io.BytesIO(png))) < 255).any(axis=2) for t, png in pictures.items()}
    half = inked[1].shape[0] // 2
    assert ratios == [0] and inked[1].sum() == 3 and not inked[2].any()
    assert not inked[1][:half, :half].any() and inked[1][:half, half:].any()  # y grows upward


FLOW = FlowSettings(start="warm", width=6, transforms=2, bins=4, steps=20, batch=32)


@pytest.fixture(scope="module")
def learners(tmp_path_factory):
    pytest.importorskip("zuko")
    asked = dataclasses.replace(
        SMALL, learner="flow-matching,flow,exact", data="gaussians:8", flow=FLOW, velocity_sampler="rk4:4"
    )
    return studies.run(dataclasses.replace(asked, out=str(tmp_path_factory.mktemp("learners") / "run")))


def test_every_learner_stands_on_one_page(learners):
    """Distances with intervals, parameter distances, the lambda = 0 control at equal steps, and constants."""
    assert (learners.folder / "stability_learners.png").exists()
    rounds, rates, constants = (learners.tables[name] for name in ("stability", "rates", "constants"))
    assert list(rounds["learner"].unique()) == ["flow-matching", "flow", "exact"]
    assert np.isfinite(rounds[["distance", "low", "high", "parameters"]]).all(axis=None)
    assert (rounds["parameters_low"] <= rounds["parameters"]).all()
    zero, first, last = rounds["ratio"] == 0, rounds["generation"] == 1, rounds["generation"] == 3
    assert (rounds[zero & last]["parameters"] == 0).all() and (rounds[~zero & last]["parameters"] > 0).all()
    exact, trained = rounds["learner"] == "exact", rounds["learner"] != "exact"
    assert (rounds[exact & zero]["parameters"] == 0).all()  # nothing to train further
    assert (rounds[trained & zero & first]["parameters"] > 0).all()
    for _, part in rounds[first].groupby("learner"):
        assert part["distance"].nunique() == 1  # the first round sees real data alone
    synthetic = rates[np.isinf(rates["ratio"])].set_index("learner")["rate"]
    # a flow and a Gaussian are equivariant to the data's scale: without real data the displacement stays
    assert synthetic["flow"] == pytest.approx(1, abs=1e-4) and synthetic["exact"] == pytest.approx(1, abs=1e-9)
    closed = constants[constants["learner"] == "exact"]
    assert set(closed["reading"]) == {"exact"} and (closed["lipschitz"] == 1).all() and (closed["alpha"] > 0).all()
    flow = constants[constants["learner"] == "flow"]
    assert set(flow["reading"]) == {"smallest", "displacement"} and (flow["kl"] > 0).all() and (flow["w2"] > 0).all()
    for word in ("held-out -log p", "in closed form, at", "flow, gaussians:8: ", "of theta* away"):
        assert word in learners.words


def test_a_flows_loss_is_its_likelihood_and_its_hessian():
    pytest.importorskip("zuko")
    shape = flow.shape_of(FLOW, 2)
    zero, one = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    flows = Flows.initial(shape, [Seed(0)], zero, one)
    flows = flows.with_params(flows.params.double())
    x, params = np.random.default_rng(1).standard_normal((5, 2)), flows.params[0]
    made = FlowLoss(x, shape)
    torch.testing.assert_close(-made(params), flows.log_prob(torch.from_numpy(x)[None])[0])
    v = torch.from_numpy(np.random.default_rng(2).standard_normal(len(params)))
    v, h = v / v.norm(), 1e-4
    second = (made(params + h * v) - 2 * made(params) + made(params - h * v)) / h**2
    torch.testing.assert_close(made.along(params, v), second, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(v @ made.hessian(params) @ v, second.mean(), atol=1e-5, rtol=1e-4)


def test_gaussians_on_a_mixture_have_known_constants():
    """alpha of (mean, precision) against the Hessian of -log p by autograd, whatever the data."""
    cov = np.array([[2.0, 0.7], [0.7, 1.0]])
    theta = np.concatenate([[0.3, -0.2], cov.ravel()])
    (readings, spectrum), real = report._readings("exact", theta, theta[None], None, {}, Seed(0)), parse_real("moons")
    x = torch.from_numpy(real.draw(4000, Seed(0)))
    x = (x - x.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T  # moments of the model's
    x = x @ torch.linalg.cholesky(torch.from_numpy(cov)).T + torch.tensor([0.3, -0.2])
    axes = [[[1.0, 0], [0, 0]], [[0, 0.5**0.5], [0.5**0.5, 0]], [[0, 0], [0, 1.0]]]  # orthonormal symmetric matrices
    basis = torch.tensor(axes, dtype=torch.float64)

    def loss(p):
        precision = torch.tensordot(p[2:], basis, 1)
        centred = x - p[:2]
        return 0.5 * ((centred @ precision) * centred).sum(1).mean() - 0.5 * torch.logdet(precision)

    inverse = torch.linalg.inv(torch.from_numpy(cov))
    at = torch.cat([torch.tensor([0.3, -0.2]), (basis * inverse).sum((1, 2))])
    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, at))
    assert readings["exact"][0][0] == pytest.approx(float(values[0]), rel=0.02)
    assert spectrum["largest"] == pytest.approx(float(values[-1]), rel=0.02)


def test_nothing_depends_on_chunks_and_a_finished_run_is_recognised(small, tmp_path):
    other = studies.run(dataclasses.replace(SMALL, out=str(tmp_path / "run"), chunk=1))
    for name, table in small.tables.items():
        pd.testing.assert_frame_equal(table, other.tables[name])
    again = studies.run(dataclasses.replace(SMALL, out=str(small.folder)))
    assert again.resumed_finished and again.words == small.words


def test_verdicts():
    assert report.verdict(1.06, 1.2, 1.01, 8) == "drifts" and report.verdict(1.06, 1.2, 0.99, 8) == "farther"
    assert report.verdict(0.9, 1.04, 1.1, 8) == "stays"
    assert report.verdict(1.0, 1.2, 1.1, 8) == report.verdict(1.06, 1.2, 1.1, 7) == "undecided"


def test_plans():
    full = plan(PRESETS["paper"])
    assert len(full.parts["loops"].cells) == 2 * 8 and full.settings["trials"] == 32
    assert full.settings["learner"] == ["network", "flow-matching", "flow", "exact"]
    names = list(full.parts)  # shards are found by the beginning of their names
    assert not [(a, b) for a in names for b in names if a != b and b.startswith(f"{a}-")]
    both = plan(dataclasses.replace(SMALL, data="mixture:0.7,0.3,moons", real_size=100))
    assert both.settings["real"] == ["mixture:0.7,0.3", "moons"]
