"""Figure 5 and iterative retraining from one command each, on tiny networks, and every published recipe's price."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from sims_core.errors import InputError
from sims_image.commands import run as command
from sims_image.data.dataset import open_dataset
from sims_image.experiments.loop import plan as retrain_plan
from sims_image.experiments.options import Pollution, Retrain
from sims_image.experiments.pollution import plan as pollution_plan
from sims_image.experiments.pollution_report import figure
from sims_image.experiments.published import recipes
from sims_image.models import checkpoints
from sims_image.models.presets import PRESETS
from tests.image import tiny

ROOT = Path(__file__).resolve().parents[2]
GIVEN = ["--base", "tiny", "--n", "24", "--features", "pixels", "--sampler", "heun:2", "--auxiliary-weights", "raw"]
GIVEN += ["--device", "cpu", "--trials", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    PRESETS["tiny"] = tiny.preset(tiny.EDM, tiny.recipe(budget="0.04k", lr=1e-2))
    yield tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip", count=24).path
    del PRESETS["tiny"]


@pytest.fixture(scope="module")
def polluted(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("pollution") / "out"
    words = ["pollution", "--data", str(data), "--out", str(out), *GIVEN, "--pollution", "0.5,1", "--omega", "0.5,1"]
    words += ["--auxiliary-size", "16", "--budget", "16"]
    command([*words, "--trials", "1", "--first-trial", "1"])
    alone = pd.read_parquet(out / "report/models.parquet"), {path.name for path in out.glob("fit-*")}
    command(words)
    found = {name: pd.read_parquet(out / f"report/{name}.parquet") for name in ("models", "curves", "best")}
    return out, found | {"alone": alone}


def test_a_trial_made_alone_is_that_of_all(polluted):
    """And is found by the run of all: another process may make it."""
    out, found = polluted
    alone, folders = found["alone"]
    mine = found["models"][found["models"]["trial"] == 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(alone, mine)
    assert len(list(out.glob("fit-*"))) == 2 * len(folders)


def test_four_curves(polluted):
    out, found = polluted
    models = found["models"]
    counts = models.groupby("scenario").size().to_dict()
    assert counts == {"ST-I": 2, "SIMS-I": 4, "ST-P": 6, "SIMS-P": 12}
    assert sorted(models.loc[models["scenario"] == "ST-P", "train"].unique()) == [24, 36, 48]
    assert len(found["best"]) == 1 + 3 and (out / "report/pollution.png").stat().st_size > 10_000
    # without pollution, polluted and ideal are one model
    clean = models[models["dose"] == 0].pivot_table(index=["trial", "omega"], columns="scenario", values="frechet")
    for kind in ("ST", "SIMS"):
        assert np.array_equal(clean[f"{kind}-I"].dropna(), clean[f"{kind}-P"].dropna())


def test_differences_are_paired(polluted):
    _, found = polluted
    models, curves = found["models"], found["curves"]
    mine = models[(models["scenario"] == "SIMS-P") & (models["omega"] == 1)]
    by = mine.pivot_table(index="trial", columns="dose", values="frechet")
    told = curves[(curves["scenario"] == "SIMS-P") & (curves["omega"] == 1) & (curves["dose"] == 1)].iloc[0]
    assert told["minus_clean"] == pytest.approx((by[1.0] - by[0.0]).mean())
    standard = models[(models["scenario"] == "ST-P") & (models["dose"] == 1)].set_index("trial")["frechet"]
    assert told["minus_standard"] == pytest.approx((by[1.0] - standard).mean())


def test_pollution_is_nested_and_of_a_model_of_the_real_data_alone(polluted):
    out, _ = polluted
    first = json.loads((out / "runs/P-0.5/0-01.json").read_text())
    second = json.loads((out / "runs/P-1/0-01.json").read_text())
    small, large = (open_dataset(out / record["train"]) for record in (first, second))
    assert len(small) == 36 and np.array_equal(large.images(slice(0, 36)), small.images(slice(None)))
    real = open_dataset(next(out.parent.parent.glob("data*/tiny.zip")))
    assert np.array_equal(small.images(slice(0, 24)), real.images(slice(None)))
    samples = [open_dataset(path) for path in out.glob("sample-*")]
    source = next(
        s for s in samples if len(s) == 24 and np.array_equal(s.images(slice(0, 12)), small.images(slice(24, 36)))
    )
    maker = source.record["source"]["base"]
    places = [path for path in out.glob("fit-*/snapshots/*/ema") if checkpoints.summary(path).sha256 == maker]
    assert checkpoints.summary(places[0]).record.data.sha256 == real.sha256


@pytest.fixture(scope="module")
def retrained(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("retrain") / "out"
    words = ["retrain", "--data", str(data), "--out", str(out), *GIVEN, "--ratio", "0.5,inf", "--generations", "3"]
    command([*words, "--retrain-budget", "16", "--retrain-lr", "1e-2"])
    return out, {name: pd.read_parquet(out / f"report/{name}.parquet") for name in ("rounds", "summary")}


def test_rounds_start_from_the_previous_one_and_see_lambda_n(retrained):
    out, found = retrained
    rows = found["rounds"]
    sizes = {ratio: part.groupby("round")["train"].first().tolist() for ratio, part in rows.groupby("ratio")}
    assert sizes == {0.0: [24, 24, 24], 0.5: [24, 36, 36], np.inf: [24, 24, 24]}
    told = [json.loads((out / f"runs/standard-ratio0.5/0-0{r}.json").read_text()) for r in (1, 2, 3)]
    made = [checkpoints.summary(out / record["model"]["base"]) for record in told]
    assert [m.record.parent for m in made] == [None, made[0].sha256, made[1].sha256]
    assert [m.record.images for m in made] == [40, 16, 16]
    alone = rows[rows["ratio"] == 0].groupby("round")["frechet"].first()
    gone = rows[np.isinf(rows["ratio"])].groupby("round")["frechet"].first()
    assert alone[1] == gone[1] and alone[2] != gone[2]


@pytest.mark.parametrize(("start", "adam"), [("ema", "new"), ("raw", "kept")])
def test_rounds_start_from_either_weights_on_the_same_seeds(data, tmp_path, start, adam):
    """The model is the other weights; λ = 0 and λ = 1 take as many steps; Adam counts all of them where it is kept."""
    out, other = tmp_path / "out", {"ema": "raw", "raw": "ema"}[start]
    given = [*GIVEN, "--trials", "1", "--ratio", "1", "--generations", "3", "--retrain-budget", "16"]
    words = ["retrain", "--data", str(data), "--out", str(out), *given, "--auxiliary-weights", other]
    command([*words, "--start", start, "--adam", adam, "--sample-seeds", "same", "--retrain-lr", "1e-2"])
    told = [json.loads((out / f"runs/standard-ratio1.0/0-0{r}.json").read_text())["model"]["base"] for r in (1, 2, 3)]
    assert [path.rpartition("/")[2] for path in told] == ["ema", other, other]
    parents = [checkpoints.summary(out / path).record.parent for path in told[1:]]
    assert parents == [checkpoints.summary((out / path).parent / start).sha256 for path in told[:2]]
    alone = json.loads((out / "runs/standard-ratio0.0/0-03.json").read_text())["model"]["base"]
    steps = [checkpoints.summary(out / path).record.training["step"] for path in (told[2], alone)]
    assert steps[0] == steps[1]
    states = [torch.load((out / path).parents[2] / "state.pt", weights_only=True) for path in told]
    counts = [int(state["optimizer"]["state"][0]["step"]) for state in states]
    assert counts == ([5, 2, 2] if adam == "new" else [5, 7, 9])
    drawn = [json.loads(path.read_text())["source"] for path in out.glob("sample-*/dataset.json")]
    drawn = [one for one in drawn if one["seeds"] == "0-23"]  # of λ = 1
    assert len(drawn) == 2 and drawn[0]["base"] != drawn[1]["base"] and drawn[0]["seed"] == drawn[1]["seed"]


def test_retrain_summary(retrained):
    out, found = retrained
    rows, summary = found["rounds"], found["summary"]
    at = {ratio: part[part["round"] == 3].set_index("trial")["frechet"] for ratio, part in rows.groupby("ratio")}
    told = summary[(summary["ratio"] == 0.5) & (summary["round"] == 3)].iloc[0]
    assert told["to_real"] == pytest.approx((at[0.5] / at[0.0]).mean())
    words = json.loads((out / "report/results.json").read_text())["conclusion"]
    assert len(words) == 3 and "no real images" in words[-1]
    assert (out / "report/retrain.png").stat().st_size > 10_000


def test_the_averages_share_of_every_retraining_is_read(retrained):
    """The benchmark that draws figures/retrain_averages.png, on this run and on the committed table."""
    spec = importlib.util.spec_from_file_location("averages", ROOT / "benchmarks/retrain_averages.py")
    averages = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(averages)
    out, _ = retrained
    found = averages.shares(out)
    assert found[["ratio", "round"]].values.tolist() == [[r, k] for r in (0.0, 0.5, np.inf) for k in (2, 3)]
    told = [json.loads((out / f"runs/standard-ratio0.5/{trial}-02.json").read_text()) for trial in (0, 1)]
    logs = [(out / one["model"]["base"]).parents[2] / "log.jsonl" for one in told]
    wanted = [json.loads(log.read_text().splitlines()[-1])["ema_share"] for log in logs]
    assert found.loc[2, "share"] == pytest.approx(np.mean(wanted)) and found["share"].between(0, 1).all()
    drawn = averages.figure(pd.read_csv(ROOT / "figures/retrain_averages.csv"))
    assert [len(axes.lines) for axes in drawn.axes] == [4, 4]


def test_bad_input(data):
    pollute, retrain = Pollution(data=str(data), base="tiny"), Retrain(data=str(data), base="tiny")
    few = str(tiny.write_data(data.with_name("few.zip"), count=12).path)
    for plan, good, cases in (
        (
            pollution_plan,
            pollute,
            {
                "^pollution": {"pollution": "0"},
                "^omega.*at least one value above 0": {"omega": "0"},
                "^omega.*between 0 and": {"omega": "-1,1"},
                "^ideal.*holds 12 images and each draw takes 24": {"ideal": few},
            },
        ),
        (
            retrain_plan,
            retrain,
            {
                "^generations": {"generations": 1},
                "^ratio": {"ratio": "-1"},
                "^objective": {"objective": "x"},
                "^start: got 'average'; choose from ema, raw": {"start": "average"},
                "^adam: got 'old'; choose from new, kept": {"adam": "old"},
                "^sample_seeds": {"sample_seeds": "other"},
            },
        ),
    ):
        for argument, bad in cases.items():
            with pytest.raises(InputError, match=argument):
                plan(replace(good, **bad))


@pytest.mark.parametrize(("name", "place"), [("cifar10", 30_000), ("ffhq64", 14_000)])
def test_the_papers_threshold_is_marked_on_the_axis(name, place):
    """.60 and .20 of |D_r|, in runs of the published settings only."""
    settings = recipes("pollution")[name]
    rows = [("ST-P", 0.0), ("SIMS-P", 1.0), ("ST-I", 0.0), ("SIMS-I", 1.0)]
    curves = pd.DataFrame(rows, columns=["scenario", "omega"])
    curves = curves.assign(pollution=0, dose=0.0, frechet=2.0, frechet_low=1.0, frechet_high=3.0)
    for preset, marked in ((name, [place]), ("", [])):
        lab = SimpleNamespace(
            settings=replace(settings, preset=preset),
            sizes=SimpleNamespace(real=settings.images, n=50_000),
            bench=SimpleNamespace(reference=SimpleNamespace(extractor=SimpleNamespace(metric="FID"))),
            data=SimpleNamespace(open=lambda: SimpleNamespace(name=name)),
        )
        (axes,) = figure({"curves": curves, "best": curves}, lab).axes
        found = [line.get_xdata()[0] for line in axes.lines if list(line.get_ydata()) == [0, 1]]
        assert found == pytest.approx(marked)
