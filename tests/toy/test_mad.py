"""MAD's loops: closed forms against loops of points written out by hand, and the command as a user meets it."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sims_core import InputError
from sims_core.algorithm import METHODS
from sims_core.loop import POLICIES, self_consuming_loop
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy import studies
from sims_toy.exact import ExactLearner
from sims_toy.gaussian import Gaussian
from sims_toy.grid.cells import Cell, Experiment
from sims_toy.grid.run import run
from sims_toy.mad import PRESETS, Mad, plan
from sims_toy.mad import theory as mad_theory
from sims_toy.mad.tables import Calibration
from sims_toy.theory import data_noise

ROOT = Path(__file__).resolve().parents[2]
TRIALS = 3000
SMALL = Mad(
    dimension=2, real_size=20, synthetic=60, initial_size="20,200", grid_real_size="20,60", grid_ratio="0.2,1,5",
    grid_temperature="0.7,1", loop_size=30, loop_generations=20, generations=24, trials=300, grid_trials=100,
    calibration_trials=400, workers=1,
)  # fmt: skip


def by_hand(loop, generations, n_r, n_s, lam, n_initial, ddof, dim=2, trials=TRIALS):
    """Means (T, t, d) and covariances (T, t, d, d) of the loop on actual points, N(0, I)."""
    rng = np.random.default_rng(7)
    data = rng.standard_normal((trials, n_initial, dim))
    means, covs = [], []
    for t in range(generations):
        if t:
            root = np.linalg.cholesky(lam * covs[-1])
            drawn = means[-1][:, None] + rng.standard_normal((trials, n_s, dim)) @ root.transpose(0, 2, 1)
            if loop == "fresh":
                data = np.concatenate([rng.standard_normal((trials, n_r, dim)), drawn], 1)
            else:
                data = drawn if loop == "fully-synthetic" else np.concatenate([data, drawn], 1)
        means.append(data.mean(1))
        centred = data - means[-1][:, None]
        covs.append(centred.transpose(0, 2, 1) @ centred / (data.shape[1] - ddof))
    return np.stack(means, 1), np.stack(covs, 1)


@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize(
    ("loop", "lam"), [("fresh", 0.8), ("fresh", 1.0), ("fully-synthetic", 0.9), ("accumulate", 1.0)]
)
def test_closed_forms_against_points(loop, lam, ddof):
    n_r, n_s, first, generations = 20, 30, 25, 6
    mean, cov = by_hand(loop, generations, n_r, n_s, lam, first, ddof)
    path = mad_theory.path(loop, generations, n_r=n_r, n_s=n_s, lam=lam, ddof=ddof, n_initial=first)
    a, c = (mean**2).mean(2), np.trace(cov, axis1=2, axis2=3) / 2
    q = cov[:, :, 0, 1] ** 2
    for t, expected in enumerate(path):
        for values, value, slack in (
            (a[:, t], expected.mean, 0.0),
            (c[:, t], expected.scale, 0.0),
            # the fresh loop leaves out one rank-one term, a share of 1 / (n_r + n_s) (twice, to be safe)
            (q[:, t], expected.spread, 2 / (n_r + n_s) if loop == "fresh" else 0.0),
        ):
            error = values.std() / math.sqrt(TRIALS)
            assert abs(values.mean() - value) < 4 * error + slack * value, (t, values.mean(), value)
        product = (cov[:, t, 0, 0] - expected.scale) * (cov[:, t, 1, 1] - expected.scale)
        assert abs(product.mean() - expected.common) < 4 * product.std() / math.sqrt(TRIALS) + 2 * expected.spread / 50


def test_the_limit_is_the_recursions_and_forgets_its_start():
    for lam in (1.0, 0.8):
        limit = mad_theory.fresh_limit(100, 900, lam)
        for first in (100, 1000):
            last = mad_theory.path("fresh", 400, n_r=100, n_s=900, lam=lam, n_initial=first)[-1]
            for name in ("mean", "scale", "spread", "common"):
                np.testing.assert_allclose(getattr(last, name), getattr(limit, name), rtol=1e-9)
    many = mad_theory.fresh_limit(100, 1e7, 1.0)
    np.testing.assert_allclose(many.mean, 1 / 200, rtol=0.01)  # n_e tends to 2 n_r
    rho = 0.9
    np.testing.assert_allclose(mad_theory.fresh_limit(1e6, 9e6, 0.8).scale, (1 - rho) / (1 - rho * 0.8), rtol=1e-4)


def test_single_fit_is_the_known_noise():
    cov = [[2.0, 1.0], [1.0, 2.0]]
    np.testing.assert_allclose(mad_theory.w2_squared(mad_theory.single(1e6, 0), cov) * 1e6, data_noise(cov), rtol=1e-5)


def test_accumulation_obeys_the_bound_and_replacement_does_not():
    np.testing.assert_allclose(mad_theory.accumulation_bound(100, 100), math.pi**2 / 6)
    kept = mad_theory.path("accumulate", 2000, n_r=100, n_s=100, lam=1.0)
    means = np.array([100 * m.mean for m in kept])
    assert (np.diff(means) > 0).all() and 1.62 < means[-1] < math.pi**2 / 6
    squares = np.array([float(mad_theory.w2_squared(m, np.eye(10))) for m in kept])
    assert squares.max() / squares[0] < math.pi**2 / 6
    assert 1 - kept[-1].scale < (math.pi**2 / 6 - 1) / 99
    replaced = mad_theory.path("fully-synthetic", 50, n_r=100, n_s=100, lam=1.0)
    np.testing.assert_allclose([100 * m.mean for m in replaced], np.arange(1, 51))  # one n^-1 a generation
    biased = mad_theory.path("accumulate", 4000, n_r=100, n_s=100, lam=0.8)
    slope = math.log(biased[3999].scale / biased[399].scale) / math.log(10)
    assert abs(slope + 0.2) < 0.005  # t^-(1 - lam)


def test_the_temperature_edge_is_where_the_distances_meet():
    edges = mad_theory.best_temperature_edge(100, [10.0, 100.0, 1000.0], np.eye(10))
    assert edges[0] == 0 and (np.diff(edges) > 0).all()  # ten synthetic points beside a hundred do no harm
    for n_s, edge in zip((100.0, 1000.0), edges[1:], strict=True):
        limit = mad_theory.w2_squared(mad_theory.fresh_limit(100, n_s, edge), np.eye(10))
        np.testing.assert_allclose(limit, mad_theory.w2_squared(mad_theory.single(100), np.eye(10)), rtol=1e-9)


# ------------------------------------------------------------------ the command


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return studies.run(dataclasses.replace(SMALL, out=str(tmp_path_factory.mktemp("mad") / "run")))


def test_initial_size_is_the_first_data_sets_only(small):
    paths = small.tables["paths"]
    fresh = paths[(paths["experiment"] == "fresh") & (paths["temperature"] == 1)]
    first = fresh[fresh["generation"] == 1].set_index("initial_size")["mean_sq"]
    assert abs(first[20] * 20 - 1) < 0.25 and abs(first[200] * 200 - 1) < 0.25
    late = fresh[fresh["generation"] == 24].set_index("initial_size")["mean_sq"]
    np.testing.assert_allclose(late[20], late[200], rtol=0.05)  # paired, and forgotten


def test_the_limit_does_not_depend_on_the_first_data_set(small):
    limits = small.tables["limits"]
    others = limits[limits["initial_size"] == 200]
    assert (others["difference"].abs() < 0.02 * others["limit"]).all()
    assert (limits["first"] > 2 * others["first"].max())[limits["initial_size"] == 20].all()
    np.testing.assert_allclose(limits["limit"], limits["limit_theory"], rtol=0.06)  # E W2 below its rms, d = 2


def test_fully_synthetic_collapse(small):
    rows = small.tables["collapse"].set_index(["loop", "temperature"])
    for lam in (1.0, 0.8):
        row = rows.loc[("fully-synthetic", lam)]
        half = (row["step_high"] - row["step_low"]) / 2
        assert abs(row["step"] - lam) < 2 * half  # E[S_t | S_{t-1}] = lam S_{t-1}
        half = (row["rate_high"] - row["rate_low"]) / 2
        assert abs(row["rate"] - row["rate_theory"]) < 2 * half and row["rate_theory"] < math.log(lam)
        assert abs(row["mean_growth"] / row["mean_growth_theory"] - 1) < 0.35
    assert rows.loc[("fully-synthetic", 0.8), "variance_median"] < 0.02


def test_accumulation_is_bounded_where_replacement_is_not(small):
    rows = small.tables["collapse"].set_index(["loop", "temperature"])
    kept, replaced = rows.loc[("accumulate", 1.0)], rows.loc[("fully-synthetic", 1.0)]
    assert kept["growth_high"] < 2 < 5 < replaced["growth_low"]
    assert kept["mean_growth_low"] < kept["mean_growth_theory"] < kept["bound"] == pytest.approx(math.pi**2 / 6)
    assert kept["mean_growth_theory"] < kept["mean_growth_high"]


def test_effective_size_and_its_region(small):
    table = small.tables["effective"]
    assert len(table) == 12 and set(table["admissible"]) <= {"admissible", "inadmissible", "undecided"}
    clean = table[table["temperature"] == 1]
    assert (clean["effective_high"] > clean["real_size"]).all()
    assert ((clean["effective"] / clean["real_size"]).between(0.95, 2.3)).all()
    worst = table[(table["temperature"] == 0.7) & (table["ratio"] == 5)]
    assert (worst["admissible"] == "inadmissible").all()
    # E W2 against the closed form's root mean square: the same factor on both sides, but for a bias
    np.testing.assert_allclose(clean["effective"], clean["effective_theory"], rtol=0.25)
    for _, row in table.iterrows():
        named = {"admissible": row.effective_low >= row.real_size, "inadmissible": row.effective_high < row.real_size}
        assert named.get(row.admissible, not any(named.values()))


def test_outputs_and_resume(small):
    files = {p.name for p in small.folder.iterdir()}
    assert {"mad.png", "effective_size.svg", "paths.csv", "limits.parquet", "effective.csv", "collapse.csv"} <= files
    again = studies.run(dataclasses.replace(SMALL, out=str(small.folder)))
    assert again.resumed_finished and again.words == small.words
    for name, frame in small.tables.items():
        pd.testing.assert_frame_equal(frame, pd.read_parquet(small.folder / f"{name}.parquet"))
    with pytest.raises(InputError, match="other settings"):
        studies.run(dataclasses.replace(SMALL, out=str(small.folder), seed=1))
    assert "Fresh data: the limit does not depend" in small.words and "Accumulating" in small.words


def test_calibration_inverts_and_says_where_it_ends():
    cells = tuple(Cell("exact", "standard", "fresh", "exact", n, 1) for n in (2, 10, 100, 1000))
    part = Experiment(cells, 1, 50, 0, (0.0,), ((1.0,),))
    w2 = 3 / np.sqrt([[2.0], [10], [100], [1000]]) * np.ones((4, 50))
    calibration = Calibration(part, w2)
    n = calibration.invert(np.array([3 / math.sqrt(40), 3 / math.sqrt(700), 5.0, 0.01]), np.tile(w2[:, 0], (4, 1)))
    np.testing.assert_allclose(n[:2], [40, 700], rtol=1e-3)
    assert n[2] == 0 and n[3] == math.inf


def test_a_mixed_piece_keeps_its_initial_sizes():
    cells = tuple(
        Cell("exact", "standard", "fresh", "exact", 30, 30, reference="exact", initial_size=i) for i in (0, 30, 300)
    )
    made = Experiment(cells, 3, 40, 0, (0.0, 0.0), ((1.0, 0.0), (0.0, 1.0)), quantities=("w2", "mean_sq"), ddof=1)
    together = run(made)
    alone = run(dataclasses.replace(made, cells=cells[2:]), chunk=7)
    np.testing.assert_array_equal(together["w2"][2], alone["w2"][0])
    np.testing.assert_array_equal(together["w2"][0], together["w2"][1])
    assert together["mean_sq"][2, :, 0].mean() < together["mean_sq"][1, :, 0].mean() / 4


def test_presets_and_help():
    assert plan(PRESETS["paper"]).settings["dimension"] == 100
    for module in ("mad", "sampling_cost"):
        done = subprocess.run(
            [sys.executable, "-m", f"sims_toy.{module}", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
        )
        assert "--preset" in done.stdout


def test_networks_run_through_the_same_study(tmp_path):
    from sims_toy.networks.settings import NetworkSettings

    tiny = dataclasses.replace(
        SMALL, learner="network", initial_size="20", temperature="1", grid_real_size="12", grid_ratio="1",
        grid_temperature="1", loop_size=12, loop_generations=2, generations=4, trials=4, grid_trials=4,
        real_size=12, synthetic=12, calibration_trials=4, out=str(tmp_path / "run"),
        network=NetworkSettings(steps=4, batch=8, width=8, layers=1, backend="torch"),
    )  # fmt: skip
    result = studies.run(tiny)
    assert np.isfinite(result.tables["paths"]["w2"]).all() and plan(tiny).settings["sampler"] == "rk4:8"


# ------------------------------------------------------------------ stopped samplers


@pytest.mark.parametrize("fresh", [0.25, 0.6])
def test_stopped_samplers_tend_to_their_limit(fresh):
    """Khelifa's limit by the loop itself: without noise to rounding, and drawn, within three standard errors."""
    real, trials, size = Gaussian.single([1, -1], [[2, 1], [1, 2]]), 200, 4000
    wanted = mad_theory.stopped_limit(real.cov[0], 0.5, fresh)
    for noise, rows in ((False, 1), (True, trials)):
        learner = ExactLearner(Sampler.parse("exact"), np.arange(rows), ddof=int(noise), noise=noise, stop=0.5)
        loop = self_consuming_loop(
            learner,
            learner.draw(real, fresh * size, seed=Seed(1)),
            method=METHODS["standard"].bind(),
            policy=POLICIES["fresh"],
            n_synthetic=(1 - fresh) * size,
            generations=60,
            seed=Seed(2),
            fresh=lambda seed, learner=learner: learner.draw(real, fresh * size, seed=seed),
        )
        last = list(loop)[-1].model
        found = learner.sample(last, size, seed=Seed(3)).cov.numpy()
        if noise:
            error = found.std(0, ddof=1) / np.sqrt(trials)
            assert (abs(found.mean(0) - wanted) < 3 * error + 3 / size * wanted.max()).all()
        else:
            np.testing.assert_allclose(found[0], wanted, rtol=1e-6)
    assert np.allclose(mad_theory.stopped_limit(real.cov[0], 0.5, 1.0), real.cov[0].numpy() + 0.25 * np.eye(2))
    for argument, bad in (
        ("stop", lambda: ExactLearner(Sampler.parse("heun:18"), stop=0.5)),
        ("fresh", lambda: mad_theory.stopped_limit(real.cov[0], 0.5, 0.0)),
    ):
        with pytest.raises(InputError, match=f"^{argument}"):
            bad()
