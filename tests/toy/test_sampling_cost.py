"""What guidance costs: the known figures at their claimed costs, the statistics of the best omega, the command."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest

from sims_core import GuidanceSchedule, Sampler
from sims_toy import phase, studies
from sims_toy.grid.cells import Cell, Experiment
from sims_toy.grid.run import run
from sims_toy.sampling_cost import PRESETS, SamplingCost, plan
from sims_toy.sampling_cost import tables as cost_report

TRIALS, THEIRS = 400, 200
SMALL = SamplingCost(
    omega="0.4:2.6:0.1", guidance="full,predictor,held:1,held:2,interval:0.8:3", trials=TRIALS, workers=1
)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return studies.run(dataclasses.replace(SMALL, out=str(tmp_path_factory.mktemp("cost") / "run")))


# (sampler, way) -> (base, auxiliary evaluations; d_1 of the reference figures, and over their full guidance's).
# Their 1.35 for DDIM counts the cosine grid's 20 points, 27 / 20; a sample takes 19 evaluations, 26 / 19 = 1.37.
REFERENCE = {
    ("heun:18", "full"): (35, 35, 0.0790),
    ("heun:18", "predictor"): (35, 18, 0.0791),
    ("heun:18", "held:1"): (35, 18, 0.0791),
    ("heun:18", "held:2"): (35, 9, 0.0794),
    ("heun:18", "interval:0.8:3"): (35, 4, 0.0783),
    ("ddim:20", "full"): (19, 19, 0.0824),
    ("ddim:20", "interval:0.8:3"): (19, 7, 0.0821),
}


def test_reference_figures(small):
    """Distances within three standard errors of both sides; ratios to full guidance, which are paired, too."""
    costs = small.tables["costs"].set_index(["sampler", "way"])
    for (sampler, way), (base, auxiliary, d_1) in REFERENCE.items():
        row = costs.loc[(sampler, way)]
        assert (row["base_evaluations"], row["auxiliary_evaluations"]) == (base, auxiliary)
        assert row["cost"] == pytest.approx((base + auxiliary) / base)
        error = math.hypot(row["w2_se"], row["w2_se"] * math.sqrt(TRIALS / THEIRS))
        assert abs(row["w2"] - d_1) < 3 * error, (sampler, way, row["w2"])
        ours = (row["against_full_high"] - row["against_full_low"]) / (2 * 1.96)
        rounding = 2 * 0.00005 / d_1
        allowed = 3 * math.hypot(ours, ours * math.sqrt(TRIALS / THEIRS)) + rounding
        known = d_1 / REFERENCE[(sampler, "full")][2]
        if sampler == "heun:18":
            assert abs(row["against_full"] - known) < allowed, (sampler, way, row["against_full"])
        assert row["against_full"] < known + allowed
    assert [round(costs.loc[("heun:18", w), "cost"], 2) for w in ("full", "predictor", "held:2", "interval:0.8:3")] == [
        2.0, 1.51, 1.26, 1.11,
    ]  # fmt: skip
    # an interval wants about twice the omega
    ratio = costs.loc[("heun:18", "interval:0.8:3"), "omega"] / costs.loc[("heun:18", "full"), "omega"]
    assert 1.7 < ratio < 2.4


def test_controls_stand_beside(small):
    costs = small.tables["costs"].set_index(["sampler", "way"])
    for sampler in ("heun:18", "ddim:20"):
        alone, merged = costs.loc[(sampler, "base alone")], costs.loc[(sampler, "weight merge")]
        assert alone["cost"] == merged["cost"] == 1 and merged["auxiliary_evaluations"] == 0
        assert alone["w2"] > merged["w2"]
        more = f"base {Sampler.parse(sampler).doubled()}"
        assert costs.loc[(sampler, more), "cost"] == pytest.approx(
            Sampler.parse(sampler).doubled().nfe / Sampler.parse(sampler).nfe
        )
    assert costs.loc[("ddim:20", "base ddim:40"), "w2"] > costs.loc[("ddim:20", "full"), "w2_high"]
    assert "predictor" not in costs.loc["ddim:20"].index  # with one evaluation a step it is full guidance
    zero = small.tables["curves"]
    zero = zero[(zero["omega"] == 0) & (zero["sampler"] == "heun:18") & (zero["method"] == "sims")]
    assert zero["w2"].nunique() == 1 and len(zero) == 5  # omega = 0 is the base, whatever the schedule


def test_outputs_and_resume(small):
    assert {"sampling_cost.png", "sampling_cost.svg", "costs.csv", "curves.parquet"} <= {
        p.name for p in small.folder.iterdir()
    }
    again = studies.run(dataclasses.replace(SMALL, out=str(small.folder)))
    assert again.resumed_finished and again.words == small.words
    pd.testing.assert_frame_equal(small.tables["costs"], pd.read_parquet(small.folder / "costs.parquet"))
    assert "full guidance has" in small.words


def test_best_omega_and_its_interval_cover_a_known_optimum():
    rng = np.random.default_rng(0)
    omegas, hits, values = np.linspace(0, 3, 16), 0, []
    for k in range(100):
        trial = rng.normal(1.33, 1, (200, 1)) * 0.1 * omegas  # a random slope a trial: paired noise, as in the study
        w2 = (1 + 0.5 * (omegas - 1.7) ** 2 + 0.02 * trial - 0.02 * 0.133 * omegas + rng.normal(0, 0.05, (200, 1))).T
        weights = phase.resampling_weights(200, cost_report.Seed(k), 300)
        found = cost_report.best(w2, list(omegas), weights)
        hits += found["omega_low"] <= 1.7 <= found["omega_high"]
        values.append(found["w2"])
    assert hits >= 88  # 95 % of 100, three binomial standard errors
    grid = 1 + 0.5 * (omegas[np.argmin(abs(omegas - 1.7))] - 1.7) ** 2
    assert abs(np.mean(values) - grid) < 4 * np.std(values) / 10  # choosing does not flatter


def test_choosing_on_the_same_trials_would_flatter_and_ours_does_not():
    values = np.random.default_rng(1).normal(1, 1, (30, 40, 50))  # 30 strengths that do not differ
    held = np.mean([phase.held_out(values[:, :, k]).mean() for k in range(50)])
    naive = np.mean(values.mean(1).min(0))
    assert naive < 0.8 and abs(held - 1) < 4 / math.sqrt(40 * 50)


def test_schedules_that_do_the_same_are_run_once():
    parse = GuidanceSchedule.parse
    texts = ["full", "predictor", "held:1", "held:2", "held:1+interval:0.8:3", "interval:0.8:3"]
    one = cost_report.distinct(Sampler.parse("ddim:20"), [parse(t) for t in texts])
    assert [str(s) for s in one] == ["full", "held:2", "interval:0.8:3"]
    assert len(cost_report.distinct(Sampler.parse("heun:18"), [parse(t) for t in texts])) == len(texts)


def test_the_loop_by_the_command(tmp_path):
    options = SamplingCost(
        sampler="ddim:20", guidance="full,interval:0.8:3", omega="0,1,2", more_steps="2", trials=12,
        loop_generations=4, loop_trials=12, auxiliary_size=1000, workers=1, out=str(tmp_path / "run"),
    )  # fmt: skip
    result = studies.run(options)
    assert set(result.tables["costs"]["measured"]) == {"first", "loop"}
    base = result.tables["costs"][result.tables["costs"]["way"] == "base alone"].set_index("measured")["w2"]
    assert base["loop"] > base["first"]


def test_schedules_do_not_change_a_bit_with_chunks():
    cells = tuple(
        Cell("exact", "sims", "augmentation", "heun:8", 50, 50, 50, "1", w, "synthetic", "heun:8", guidance="held:2")
        for w in (0.0, 0.5, 1.0)
    )
    made = Experiment(cells, 3, 9, 0, (0.0, 0.0), ((2.0, 1.0), (1.0, 2.0)))
    np.testing.assert_array_equal(run(made)["w2"], run(made, chunk=4)["w2"])
    other = run(dataclasses.replace(made, cells=tuple(dataclasses.replace(c, guidance="full") for c in cells)))["w2"]
    np.testing.assert_array_equal(run(made)["w2"][0], other[0])
    assert not np.isclose(run(made)["w2"][1:], other[1:]).any()


def test_networks_take_schedules(tmp_path):
    from sims_toy.networks.settings import NetworkSettings

    options = SamplingCost(
        learner="network", sampler="heun:5", guidance="full,held:2", omega="0,1,2", more_steps="2", trials=4,
        real_size=30, auxiliary_size=30, workers=1, out=str(tmp_path / "run"),
        network=NetworkSettings(steps=4, batch=8, width=8, layers=1, backend="torch"),
    )  # fmt: skip
    curves = studies.run(options).tables["curves"].set_index(["way", "omega"])["w2"]
    assert curves["full", 0.0] == curves["held:2", 0.0] == curves["base alone", 0.0]
    assert curves["full", 1.0] != curves["held:2", 1.0]


def test_paper_preset_has_the_loop():
    assert list(plan(PRESETS["paper"]).parts) == ["first", "loop"]


@pytest.mark.parametrize(
    ("way", "said"),
    [
        ("full", "full guidance"),
        ("held:1", "held over 1 step"),
        ("held:2+interval:0.8:3", "held over 2 steps, σ from 0.8 to 3"),
        ("projected+predictor", "projected, predictor only"),
        (cost_report.MERGE, cost_report.MERGE),
    ],
)
def test_legends_are_words(way, said):
    assert cost_report.in_words(way) == said
