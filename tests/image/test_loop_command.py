"""Self-consuming loops from one command, on tiny networks: arms, generations, reuse, resuming, the report."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sims_core.errors import InputError
from sims_core.lab.runs import duration
from sims_image.commands import run as command
from sims_image.experiments.costs import ledger
from sims_image.experiments.laboratory import check, mean_interval, summarise
from sims_image.experiments.loop import plan
from sims_image.experiments.options import Loop
from sims_image.models.presets import PRESETS
from sims_image.training import estimate
from tests.image import tiny

GIVEN = ["--base", "tiny", "--n", "24", "--features", "pixels", "--sampler", "heun:2", "--auxiliary-weights", "raw"]
GIVEN += ["--device", "cpu", "--trials", "2", "--budget", "16"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A loop of two generations, then of three with another omega: what each left behind."""
    folder = tmp_path_factory.mktemp("loop")
    PRESETS["tiny"] = tiny.preset(tiny.EDM, tiny.recipe(budget="0.04k", lr=1e-2))
    try:
        data = tiny.write_data(folder / "tiny.zip", count=24).path
        words = ["loop", "--data", str(data), "--out", str(folder / "out"), "--synthetic", "16", *GIVEN]
        states = []
        for more in (["--generations", "2", "--omega", "1"], ["--generations", "3", "--omega", "0,1"]):
            command([*words, *more])
            files = {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted((folder / "out").rglob("*.*"))}
            rows = pd.read_parquet(folder / "out/report/generations.parquet")
            states.append((rows, pd.read_parquet(folder / "out/report/summary.parquet"), files))
        yield folder, states
    finally:
        del PRESETS["tiny"]


def test_arms_generations_and_costs(run):
    _, (_, (rows, summary, _)) = run
    assert len(rows) == 4 * 3 * 2 and set(rows["arm"]) == {"standard", "sims omega=0", "sims omega=1", "equal-cost"}
    assert set(rows.loc[rows["arm"] == "sims omega=1", "nfe"]) == {6}
    assert set(rows.loc[rows["arm"] == "equal-cost", "nfe"]) == {7}
    assert rows.loc[rows["generation"] == 1, "train"].eq(24).all()
    assert rows.loc[rows["generation"] > 1, "train"].eq(40).all()
    assert len(summary) == 4 * 3 and (summary["trials"] == 2).all()


def test_sims_at_omega_0_is_standard_training(run):
    """Same seeds, same base: the loops agree generation by generation, though one evaluates two networks."""
    _, (_, (rows, _, _)) = run
    plain, zero = (rows[rows["arm"] == arm].reset_index() for arm in ("standard", "sims omega=0"))
    assert np.allclose(plain["frechet"], zero["frechet"], rtol=1e-6)
    one = rows[rows["arm"] == "sims omega=1"].reset_index()
    assert not np.allclose(plain["frechet"], one["frechet"], rtol=1e-3)


def test_a_longer_loop_goes_on_from_the_shorter_one(run):
    folder, ((first, _, before), (second, _, after)) = run
    kept = [name for name in before if "/report/" not in name and "/runs/" not in name and ".features" not in name]
    assert kept and all(after[name] == before[name] for name in kept)
    both = first.merge(second, on=["arm", "generation", "trial"])
    assert len(both) == len(first) and np.array_equal(both["frechet_x"], both["frechet_y"])
    made = json.loads((folder / "out/runs/sims-omega1/0-02.json").read_text())
    assert (folder / "out" / made["train"]).is_dir() and (folder / "out" / made["auxiliary"]["base"]).is_dir()
    assert made["model"]["omega"] == 1 and made["quality"]["generation"] == 2


def test_summary_is_what_the_rows_say(run):
    _, (_, (rows, summary, _)) = run
    arm, generation = "sims omega=1", 3
    mine = rows[(rows["arm"] == arm)].pivot_table(index="trial", columns="generation", values="frechet")
    ratio = (mine[3] / mine[1]).to_numpy()
    told = summary[(summary["arm"] == arm) & (summary["generation"] == generation)].iloc[0]
    assert told["ratio"] == pytest.approx(ratio.mean())
    half = 12.706204736432095 * ratio.std(ddof=1) / np.sqrt(2)  # Student's t, one degree of freedom
    assert told["ratio_high"] - told["ratio"] == pytest.approx(half)


def test_report(run):
    folder, _ = run
    report = folder / "out/report"
    assert {p.name for p in report.glob("grid-*.png")} >= {"grid-standard-01.png", "grid-sims-omega1-03.png"}
    found = json.loads((report / "results.json").read_text())
    assert found["metric"] == "FD-pixels" and len(found["conclusion"]) == 4 + 3
    assert (report / "loop.png").stat().st_size > 10_000 and (report / "loop.svg").exists()


def test_dry_run_adds_up(run, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "rate", lambda *_, **__: 1e6)
    folder, _ = run
    data = ["--data", str(folder / "tiny.zip")]
    before = sorted(folder.rglob("*"))
    command(["loop", *data, *GIVEN, "--out", str(folder / "other"), "--dry-run", "--method", "standard"])
    said = capsys.readouterr().out
    assert sorted(folder.rglob("*")) == before
    settings = Loop(data=str(folder / "tiny.zip"), base="tiny", trials=2, sampler="heun:2", n="24", synthetic="24")
    checked = check(replace(settings, dry_run=True))
    spent = 3 * (24 * 10 + 24 * 12)  # NFE x (|D_s| of five generations + n of six) of two trials
    assert f"{40 * 12:,} images trained on, {spent:,} evaluations" in said
    told = ledger(checked)
    seconds = (40 * 12 * told.flops + spent * told.evaluation) / 15e12
    assert f"time here  about {duration(seconds * 15e6)} on 1 x cpu, 0.001 GFLOP/s" in said
    assert seconds < 1.5 and "1 s of one A100 in all" in said
    assert replace(told, operations=10**12 * told.flops, evaluations=0).total.startswith(
        f"{told.flops / 54e3:.2g} A100-hours in all"
    )


def test_the_price_counts_what_arms_share_once(run, capsys):
    """The first generation's model, and its auxiliary whatever the omega: as many as the run left behind."""
    folder, _ = run
    made = [p.name.split("-")[0] for p in (folder / "out").glob("*-*") if (p / "snapshots").is_dir()]
    assert made.count("finetune") == 2 + 2 * 4  # the first generation's, and two later ones of each omega
    assert made.count("fit") == 2 + 3 * 4  # sims at omega = 0 trains what standard training does
    command(["loop", "--data", str(folder / "tiny.zip"), *GIVEN, "--generations", "3", "--omega", "0,1", "--dry-run"])
    trained = (made.count("fit") + 4) * 40 + made.count("finetune") * 16
    assert f"{trained:,} images trained on" in capsys.readouterr().out


def test_bad_input(run, monkeypatch):
    folder, _ = run
    good = Loop(data=str(folder / "tiny.zip"), base="tiny")
    few = str(tiny.write_data(folder / "few.zip", count=12).path)
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)  # as if it were not installed
    for argument, bad in {
        "^loop": {"loop": "circle"},
        "^more": {"loop": "fresh"},
        "^generations": {"generations": 0},
        "^method": {"method": "standard,magic"},
        "^synthetic": {"loop": "mixed:0.5", "synthetic": "8"},
        "^trials": {"trials": 0},
        "^n": {"n": "3"},
        "^data": {"data": ""},
        "^base": {"base": "tyni"},
        "^objective": {"objective": "flow"},
        "^images": {"data": "nowhere", "dry_run": True},
        "^data: got ''": {"data": "", "images": 100},
        "^omega": {"omega": "-1,1"},
        "^more: got 'nowhere'": {"loop": "polluted", "more": "nowhere"},
        "^more.*holds 12 images and each draw takes 24": {"loop": "fresh", "more": few},
        "^heldout.*nothing is held out": {"heldout": good.data, "dry_run": True},
        "^features.*torch-fidelity": {"features": "inception", "dry_run": True},
    }.items():
        with pytest.raises(InputError, match=argument):
            plan(replace(good, **bad))
    checked, arms = plan(replace(good, loop="mixed:0.5"))
    assert arms[0].policy.warm and checked.sizes.synthetic == 12


def test_intervals():
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2 and high - 2 == pytest.approx(4.302652729911275 / np.sqrt(3)) and low == pytest.approx(4 - high)
    assert np.isnan(mean_interval([1.0])[1])
    rows = pd.DataFrame({"arm": ["a", "a", "b"], "omega": [np.nan, np.nan, 1.0], "x": [1.0, 3.0, 5.0]})
    found = summarise(rows, ["arm", "omega"], ["x"])
    assert found["x"].tolist() == [2.0, 5.0] and found["trials"].tolist() == [2, 1]
