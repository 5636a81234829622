"""EMA widths chosen after training, and EDM2's whole path: train, sims over widths, generate, evaluate."""

from __future__ import annotations

import json

import pytest

from sims_core.errors import InputError
from sims_image.commands import run as command
from sims_image.models import checkpoints
from sims_image.models.posthoc import at_width, stored
from sims_image.models.presets import PRESETS
from sims_image.training.options import Train
from sims_image.training.session import train
from tests.image import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    settings = tiny.recipe(
        budget="0.16k", mi=2**20, ema="power", ema_widths=(0.05, 0.10), objective="edm2", lr=1e-2, beta2=0.99,
        lr_decay="inverse-sqrt", lr_decay_steps=10, p_mean=-0.8, p_std=1.6,
    )  # fmt: skip
    PRESETS["tiny2"] = tiny.preset(tiny.EDM2, settings)
    yield tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip", count=48).path
    del PRESETS["tiny2"]


@pytest.fixture(scope="module")
def run(data, tmp_path_factory):
    return train(
        Train(preset="tiny2", data=str(data), out=str(tmp_path_factory.mktemp("run") / "run"), sheet=0, workers=0)
    )


def distance(a, b):
    first, second = (checkpoints.load(path).network.state_dict() for path in (a, b))
    return sum(float((first[k].double() - second[k].double()).square().sum()) for k in first) ** 0.5


def test_a_width_made_afterwards_is_the_one_that_was_not_kept(run, data, tmp_path):
    """The same training with another width tracked all along is what the stored averages must give."""
    other = train(
        Train(preset="tiny2", data=str(data), out=str(tmp_path / "run"), sheet=0, workers=0, ema_widths=(0.08,))
    )
    truth = other.snapshots[-1] / "ema-0.080"
    made = at_width(run.checkpoint, 0.08)
    near = distance(made, truth)
    kept = [distance(run.snapshots[-1] / name, truth) for name in ("ema-0.050", "ema-0.100")]
    assert near < 0.15 * min(kept), (near, kept)
    record = checkpoints.summary(made).record
    assert record.ema == checkpoints.Ema("power", 0.08) and record.images == 160
    assert record.training["posthoc"]["misfit"] < 0.1
    before = (made / checkpoints.WEIGHTS).stat().st_mtime_ns
    assert at_width(run.checkpoint, 0.08) == made and (made / checkpoints.WEIGHTS).stat().st_mtime_ns == before


def test_averages_after_the_checkpoint_play_no_part(run):
    early = run.snapshots[len(run.snapshots) // 2] / "ema-0.050"
    images = checkpoints.summary(early).record.images
    wanted = {int(path.name) for path in run.snapshots if int(path.name) <= images}
    assert {one.record.images for one in stored(early)} == wanted and len(wanted) < len(run.snapshots)
    assert checkpoints.summary(at_width(early, 0.1)).record.images == images


def test_sims_searches_widths_and_confirms_the_best(run, data, tmp_path):
    words = ["sims", "--data", str(data), "--base", str(run.checkpoint), "--out", str(tmp_path / "out")]
    words += ["--synthetic", "20", "--budget", "128", "--omega", "1", "--search", "24", "--n", "24", "--repeats", "2"]
    words += ["--features", "pixels", "--sampler", "heun:2", "--no-controls", "--device", "cpu", "--lr-rampup", "0"]
    command([*words, "--base-ema", "0.06,0.1", "--auxiliary-ema", "0.05,0.12"])
    told = json.loads((tmp_path / "out/report/ema_widths.json").read_text())
    assert len(told["tried"]) == 4
    base, auxiliary, cell = min(told["tried"], key=lambda row: row[2]["value"])
    assert told["chosen"] == [base, auxiliary] and cell["value"] > 0
    results = json.loads((tmp_path / "out/report/results.json").read_text())
    chosen = checkpoints.summary(at_width(run.checkpoint, base))
    assert results["checkpoints"]["base"] == chosen.sha256
    tuned = next((tmp_path / "out").glob("finetune-*/snapshots/*128/"))
    assert results["checkpoints"]["auxiliary 128"] == checkpoints.summary(tuned / f"posthoc-{auxiliary:.4f}").sha256


def test_generate_and_evaluate_at_a_width(run, data, tmp_path, capsys):
    common = ["--base", str(run.checkpoint), "--base-ema", "0.07", "--seeds", "0-23", "--sampler", "heun:2"]
    common += ["--device", "cpu", "--labels", "uniform"]
    command(["generate", *common, "--out", str(tmp_path / "made"), "--sheet", "0"])
    record = json.loads((tmp_path / "made/dataset.json").read_text())
    assert record["source"]["base"] == checkpoints.summary(at_width(run.checkpoint, 0.07)).sha256
    command(["evaluate", *common, "--reference", str(data), "--features", "pixels", "--out", str(tmp_path / "r.json")])
    assert json.loads((tmp_path / "r.json").read_text())["source"]["base"] == record["source"]["base"]
    told = ["--data", str(data), "--base", str(run.checkpoint), "--auxiliary", str(run.checkpoint), "--n", "24"]
    told += ["--base-ema", "0.07", "--auxiliary-ema", "0.1", "--sampler", "heun:2", "--features", "pixels"]
    command(["outlook", *told, "--device", "cpu", "--out", str(tmp_path / "told.json")])
    found = json.loads((tmp_path / "told.json").read_text())
    assert found["base"]["base"] == record["source"]["base"]
    assert found["auxiliary"]["base"] == checkpoints.summary(at_width(run.checkpoint, 0.1)).sha256
    with pytest.raises(InputError, match=r"--auxiliary-ema: got .0.1.; it is made of a checkpoint's averages"):
        command(["outlook", *told[:4], "--auxiliary", str(tmp_path / "made"), "--auxiliary-ema", "0.1"])


def test_refusals(run, data, tmp_path):
    PRESETS["tiny"] = tiny.preset(tiny.EDM, tiny.recipe(budget="0.04k"))
    try:
        plain = tiny.checkpoint(tmp_path / "plain", preset="tiny", images=40)
        with pytest.raises(InputError, match="power-function"):
            at_width(plain.path, 0.05)
        with pytest.raises(InputError, match="--base-ema"):
            command(["sims", "--data", str(data), "--base", "tiny", "--base-ema", "0.05", "--dry-run"])
    finally:
        del PRESETS["tiny"]
    with pytest.raises(InputError, match=r"^base_ema"):
        at_width(run.checkpoint, 0.5)
    with pytest.raises(InputError, match="keep more snapshots"):
        at_width(run.snapshots[0] / "ema-0.050", 0.27)
    with pytest.raises(InputError, match="--auxiliary-ema"):
        command(["generate", "--base", str(run.checkpoint), "--out", str(tmp_path / "x"), "--auxiliary-ema", "0.1"])
