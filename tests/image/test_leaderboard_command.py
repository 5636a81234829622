"""The head-to-head from one command, on tiny networks: what is measured on what, paired, foretold and priced."""

from __future__ import annotations

import json
import shutil

import numpy as np
import ot
import pandas as pd
import pytest
import torch
from scipy import stats

from sims_core.draws import Draws
from sims_core.errors import InputError
from sims_core.seeds import Seed
from sims_image.commands import run as command
from sims_image.data.dataset import to_unit
from sims_image.experiments import halving
from sims_image.experiments.leaderboard import ARMS, _features, describe, plan
from sims_image.experiments.leaderboard_report import agreement, comparisons, leaderboard, markdown
from sims_image.experiments.options import Leaderboard
from sims_image.metrics.loss import heldout_loss
from sims_image.metrics.mind import mind
from sims_image.models.presets import PRESETS
from sims_image.sampling.guided import load_model
from tests.image import tiny

SETTINGS = {
    **{"base": "tiny", "auxiliary_size": "24", "budget": "16", "n": "30", "search": "40", "omega": "0.5,1"},
    **{"features": "pixels", "also": "pixels:20", "sampler": "heun:2", "auxiliary_weights": "raw", "trials": 2},
    **{"device": "cpu", "wide_network": "model_channels=16", "guide_network": "model_channels=16"},
    **{"variants": "budget=24; weights=ema; cold"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", tiny.preset(tiny.EDM, tiny.recipe(budget="0.04k", lr=1e-2)))
        patch.setattr(halving, "RHOS", (5.0,))  # few samplers to retune over, for speed
        patch.setattr(halving, "TOPS", (1.0,))
        tiny.write_data(place / "tiny.zip", count=48)
        tiny.write_data(place / "held.zip", count=40, seed=1)
        yield place


def settings(folder, **changes) -> Leaderboard:
    given = {"data": str(folder / "tiny.zip"), "heldout": str(folder / "held.zip"), "out": str(folder / "out")}
    return Leaderboard(**{**SETTINGS, **given, **changes})


@pytest.fixture(scope="module")
def made(folder):
    asked = settings(folder)
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SETTINGS.items()]
    command(["leaderboard", "--data", asked.data, "--heldout", asked.heldout, "--out", asked.out, *words])
    report = folder / "out" / "report"
    return report, {path.stem: pd.read_parquet(path) for path in report.glob("*.parquet")}


def test_every_arm_is_measured_from_every_base(made):
    report, tables = made
    board, models = tables["leaderboard"], tables["models"]
    arms = board["arm"].tolist()
    assert arms[0] == "base" and len(arms) == len(set(arms)) == len(ARMS) + 6 and set(board["trials"]) == {2}
    assert {"2x steps", "4x steps", "SIMS held:2", "SIMS, second step", "Neon", "real images"} <= set(arms)
    row = board.set_index("arm")
    assert row.loc["2x steps", "nfe"] == 7 and row.loc["SIMS", "nfe"] == 6 and row.loc["Neon", "nfe"] == 3
    assert row.loc["SIMS, second step", "seen"] == 2 * row.loc["SIMS", "seen"] == 32
    assert row.loc["SIMS", "parameters"] == 2 * row.loc["Neon", "parameters"]
    weights = 4e-6 * row.loc["base", "parameters"]  # and the images that the other network put out
    more = row.loc["SIMS", "megabytes"] - row.loc["base", "megabytes"]
    assert 0.99 * weights < more < 1.1 * weights + 0.1
    assert row.loc["SIMS", "megaflops"] == pytest.approx(2 * row.loc["base", "megaflops"])
    assert row.loc["autoguidance", "parameters"] > 3 * row.loc["base", "parameters"]  # the guide's is another network
    assert np.isnan(row.loc["SIMS held:2", "loss"]) and row.loc["SIMS", "loss"] > 0
    dear = row.loc["SIMS held:2", "chosen"] / row.loc["SIMS", "chosen"]
    assert dear == pytest.approx(row.loc["SIMS held:2", "nfe"] / row.loc["SIMS", "nfe"]) and dear < 1
    real = models[models["arm"] == "real images"].iloc[0]
    assert real["n"] == 30 and real["pixels_frechet"] != real["frechet"]  # of 20 images, as every arm's
    assert row.loc["wider, equal training cost", "seen"] < 40 and {"pixels_frechet", "mind", "loss"} <= set(board)
    assert (report / "seconds.csv").exists() and (report / "predictions.png").stat().st_size > 10_000
    assert models.loc[models["arm"] == "base", "loss"].nunique() == 2  # independently trained


def test_choices_are_confirmed_on_other_seeds(made):
    report, _ = made
    cells = [json.loads(path.read_text()) for path in (report.parent / "cells").glob("*.json")]
    spans = {cell["report"]["seeds"] for cell in cells}
    confirmed = {"0-29", "30-59"}
    assert confirmed < spans and all(int(span.partition("-")[0]) >= 10**12 for span in spans - confirmed)


def test_differences_are_paired_and_the_control_is_not_chosen_on_what_it_is_compared_by():
    costs = dict.fromkeys(("nfe", "megaflops", "parameters", "megabytes", "seen", "drawn", "chosen"), 0)
    rows = pd.DataFrame(
        [
            {"arm": arm, "method": "x", "trial": t, "frechet": value, "equal": arm in ("a", "b"), "omega": None} | costs
            for arm, values in {"base": (5, 6, 8), "SIMS": (2, 4, 3), "a": (1, 9, 9), "b": (4, 4, 4)}.items()
            for t, value in enumerate(values)
        ]
    )  # fmt: skip
    row = leaderboard(rows).set_index("arm").loc["SIMS"]
    assert row["minus_base"] == pytest.approx(np.mean([-3, -2, -5]))
    half = stats.t.ppf(0.975, 2) * np.std([-3, -2, -5], ddof=1) / 3**0.5
    assert row["minus_base_high"] - row["minus_base"] == pytest.approx(half)
    assert row["minus_control"] == pytest.approx(np.mean([2 - 4, 4 - 4, 3 - 4]))  # b, by the others, though a wins once
    assert "| SIMS |" in markdown(leaderboard(rows), "FD-x")
    assert comparisons(leaderboard(rows)) == 6  # to the base and to the control, which is b throughout
    assert comparisons(leaderboard(rows[rows["trial"] == 0])) == 0


def test_predictions_are_made_before_and_compared(made):
    _, tables = made
    told = tables["predictions"]
    assert list(told["variant"].unique()) == ["main", "budget=24", "weights=ema", "cold"] and len(told) == 8
    main = told[(told["variant"] == "main") & (told["trial"] == 1)].iloc[0]
    models = tables["models"].set_index(["arm", "trial"])["frechet"]
    assert models.index.is_unique
    assert main["base"] == models["base", 1] and main["at_fixed"] == models["SIMS, omega = 1", 1]
    assert main["gain_fixed"] == pytest.approx(1 - main["at_fixed"] / main["base"])
    over = agreement(told).set_index(["over", "predicted"])
    kept = told[["left_at_fixed", "gain_fixed"]].dropna()
    direct = stats.spearmanr(1 - kept["left_at_fixed"], kept["gain_fixed"]).statistic
    assert over.loc[("auxiliaries and trials", "foretold_at_fixed"), "spearman"] == pytest.approx(direct, nan_ok=True)


def test_an_equal_run_finds_all_that_is_there(folder, made, capsys):
    report, _ = made

    def content():
        timed = ("seconds.csv", "results.json")  # how long it took, and when it was
        return {path.name: path.read_bytes() for path in report.iterdir() if path.name not in timed}

    before = content()
    cells = sorted((folder / "out" / "cells").iterdir())
    command(["leaderboard", *(f"--{k.replace('_', '-')}={v}" for k, v in vars(settings(folder)).items() if v)])
    assert content() == before
    assert sorted((folder / "out" / "cells").iterdir()) == cells and "FD-pixels of the base" in capsys.readouterr().out


def test_bases_of_several_runs_make_one_comparison(folder, made, capsys):
    """The second base alone, with a report of the first one beside it: the tables of both in one run."""
    report, whole = made
    first, second = folder / "first/report", folder / "second"
    first.mkdir(parents=True)
    for name in ("models", "predictions"):
        whole[name][whole[name]["trial"] == 0].to_csv(first / f"{name}.csv", index=False)
    shutil.copy(report / "results.json", first)
    shutil.copytree(report.parent, second)  # so that its base is found
    asked = {**SETTINGS, "trials": 1, "first_trial": 1, "out": second, "data": folder / "tiny.zip",
             "heldout": folder / "held.zip", "beside": first}  # fmt: skip
    command(["leaderboard", *(f"--{name.replace('_', '-')}={value}" for name, value in asked.items())])
    for name in ("leaderboard", "models", "predictions", "agreement"):
        found = pd.read_parquet(second / "report" / f"{name}.parquet")
        pd.testing.assert_frame_equal(found, whole[name], check_dtype=False, rtol=1e-12)
    # what is no other run of this comparison is refused, before anything is trained
    place = str(first)
    for changes, words in {
        (("first_trial", 0),): "it has trial 0 too",
        (("budget", "17"),): "its budget is '16' and not '17'",
        (("beside", str(folder / "nowhere")),): "give the report folder",
    }.items():
        with pytest.raises(InputError, match=words):
            plan(settings(folder, **{"trials": 1, "first_trial": 1, "beside": place, **dict(changes)}))
    asked = plan(settings(folder, trials=1, first_trial=1, beside=place))
    rows, told = (whole[name][whole[name]["trial"] == 1] for name in ("models", "predictions"))
    with pytest.raises(InputError, match="one of the runs alone has 'Neon'"):
        asked.joined(rows[rows["arm"] != "Neon"], told)
    # an auxiliary that one of them has not made is compared over the trials that have all
    _, fewer = asked.joined(rows, told[told["variant"] != "cold"])
    assert len(fewer) == 7
    pd.testing.assert_frame_equal(agreement(fewer), agreement(fewer[fewer["trial"] == 0]))
    with pytest.raises(InputError, match="other features"):
        asked.joined(rows.assign(frechet=2 * rows["frechet"]), told)


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("pixels", ("pixels", "")),
        ("lite0:1k", ("lite0", "1k")),
        ("lite0:96", ("lite0:96", "")),
        ("lite0:96:2k", ("lite0:96", "2k")),
    ],
)
def test_a_further_feature_space_may_have_a_size_and_a_count(text, read):
    assert _features(text) == read


def test_a_dry_run_prices_it(folder):
    words = describe(settings(folder, dry_run=True))
    assert "2 x 40 images seen" in words and "cold: auxiliary" in words and "weights=ema: auxiliary" not in words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"variants": "size"}, "variants: got ''"),
        ({"variants": "warm"}, "write size=N"),
        ({"variants": "data=real"}, "choose from synthetic"),
        ({"arms": "neo"}, "did you mean"),
        ({"fixed": 0.0}, "above 0"),
        ({"search": "20"}, "at least 40"),
        ({"cheaper": "held:0"}, "cheaper: got"),
        ({"also": "lite1"}, "also: got 'lite1'"),
        ({"wide_network": "model_channels"}, "write name=value"),
        ({"arms": "2x"}, "`arms` leaves 'wider' out"),
        ({"arms": "wider", "wide_network": ""}, "the arm 'wider' needs its arguments"),
        ({"also": "pixels,pixels:20"}, "it names pixels twice"),
    ],
)
def test_what_makes_no_sense_is_refused(folder, changes, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        plan(settings(folder, **changes))


# --------------------------------------------------------------------- metrics


@pytest.mark.parametrize("sizes", [(60, 60), (50, 60)])
def test_mind_is_the_sliced_distance(sizes):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(n, 4)).astype(np.float32) for n in sizes)
    x += 0.3
    groups = np.arange(len(x)) % 10
    found = mind(x, y, groups)
    directions = 4000
    brute = (
        3 * 4 * ot.sliced_wasserstein_distance(x.astype(float), y.astype(float), n_projections=directions, seed=1) ** 2
    )
    assert found.value == pytest.approx(brute, rel=0.1)  # 1,000 directions against 4,000 others
    assert found.without[3] == pytest.approx(mind(x[groups != 3], y).value) and mind(y, y).value == 0


def test_a_heldout_loss_is_edms(folder):
    base, other = (tiny.checkpoint(folder / name, config) for name, config in (("one", tiny.EDM), ("two", tiny.EDM)))
    data = tiny.write_data(folder / "loss.zip", count=12)
    model = load_model(str(base.path))
    alone = heldout_loss(model, data)
    same = heldout_loss(load_model(str(base.path), auxiliary=str(other.path), omega=1.0), data, batch=5)
    assert alone.shape == (12,) and np.allclose(alone, same, rtol=1e-4)  # the auxiliary is the base: nothing moves
    assert np.array_equal(heldout_loss(model, data, most=5), heldout_loss(model, data, most=5))
    # the third image by hand: EDM's weight, at the level and noise that its number draws
    draws = Seed(0).child("sims_image.loss")
    clean = to_unit(torch.from_numpy(data.images(slice(2, 3))))
    sigma = torch.exp(1.2 * Draws(draws.child("level")).normal(torch.tensor([2]), (1,))[:, 0] - 1.2)
    noise = Draws(draws.child("noise")).normal(torch.tensor([2]), (3, 8, 8))
    label = torch.nn.functional.one_hot(torch.tensor([int(data.labels[2])]), 3).float()
    with torch.no_grad():
        off = model.network(clean + sigma * noise, sigma, label) - clean
    assert alone[2] == pytest.approx(float((sigma**2 + 0.25) / (sigma * 0.5) ** 2 * off.square().mean()), rel=1e-4)
