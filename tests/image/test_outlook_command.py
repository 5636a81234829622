"""`sims_image outlook`: of checkpoints, of images that are there, and of what is wrong."""

import json

import numpy as np
import pytest
import torch

import sims_image as si
from sims_core.forecast import outlook
from sims_core.lab.command import main_with_errors
from sims_image.commands import run
from sims_image.metrics.foresee import aligned
from sims_image.metrics.samples import Kept
from sims_image.models import checkpoints
from tests.image import tiny
from tests.image.test_evaluate import generated

DRAWN = {"sampler": "euler:3", "features": "pixels", "device": "cpu", "batch": 40}


def brighter(images, by, generator):
    return np.clip(images.astype(int) + by + generator.integers(-5, 6, images.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Real images; sets of images that are 10 and 20 brighter; two checkpoints, one moved a little from the other."""
    folder = tmp_path_factory.mktemp("outlook")
    real = tiny.write_data(folder / "real.zip", count=300, seed=1).images(slice(None))
    for name, by in (("base", 10), ("auxiliary", 20), ("again", 10)):
        generated(folder / name, brighter(real, by, np.random.default_rng(by)))
    network = tiny.network(seed=9)
    checkpoints.save(folder / "first", network, checkpoints.Record())
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.01)
    checkpoints.save(folder / "second", network, checkpoints.Record())
    return folder


def words(home, base, auxiliary, **more):
    named = {"data": home / "real.zip", "base": home / base, "auxiliary": home / auxiliary, **DRAWN, **more}
    return [f"--{name.replace('_', '-')}={value}" for name, value in named.items()]


def test_images_that_are_there(home, capsys):
    """Twice as bright an error, half of which the auxiliary adds again: omega is 1."""
    run(["outlook", *words(home, "base", "auxiliary", out=home / "found.json")])
    said = capsys.readouterr().out
    assert "SIMS is expected to help" in said and "base       300 images\n" in said
    found = json.loads((home / "found.json").read_text())
    omega = found["outlook"]["means"]["omega"]
    assert omega["low"] - 0.05 < 1 < omega["high"] + 0.05 and found["outlook"]["sentence"] in said
    assert found["data"]["sha256"] == si.open_dataset(home / "real.zip").sha256
    run(["outlook", *words(home, "base", "again")])
    assert "SIMS is blind here" in capsys.readouterr().out


def test_checkpoints_are_drawn_from_the_same_seeds(home, tmp_path, capsys):
    run(["outlook", *words(home, "first", "second", n=60, out=tmp_path / "found.json")])
    said = capsys.readouterr().out
    assert "60 images, NFE 3" in said
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["base"]["sampler"] == found["auxiliary"]["sampler"] and found["base"]["seeds"] == "0-59"
    assert found["outlook"]["distributions"]["drift_seen"]  # of paired noise: a hundredth of the weights is seen
    flat = {}
    for name in ("first", "second"):
        made = si.generate(
            base=str(home / name), data=str(home / "real.zip"), labels="data", out=str(tmp_path / name), seeds="0-59",
            sampler="euler:3", device="cpu", batch=40,
        )  # fmt: skip
        flat[name] = made.images(slice(None)).reshape(60, -1) / 127.5 - 1
    real = si.open_dataset(home / "real.zip").images(slice(None)).reshape(300, -1) / 127.5 - 1
    wanted = outlook(real, flat["first"], flat["second"]).means
    assert found["outlook"]["means"]["error"] == pytest.approx(wanted.error, rel=0.02)
    assert found["outlook"]["means"]["drift"] == pytest.approx(wanted.drift, rel=0.05)


def test_the_verb_as_a_function_and_its_plan(home):
    settings = {
        "data": str(home / "real.zip"),
        "base": str(home / "first"),
        "auxiliary": str(home / "auxiliary"),
        "n": 40,
    }
    told = si.outlook.plan(**settings, **DRAWN)
    assert "120 in all" in told and "auxiliary: 300 images" in told.replace(f"{home}/", "")
    found = si.outlook(**settings, **DRAWN)
    assert found.outlook.samples == (300, 40, 300) and found.outlook.sentence == found.lines()[-1]


def test_rows_of_the_same_numbers_meet():
    features = np.arange(12, dtype=np.float32)[:, None]
    base = Kept(np.array([3, 0, 2, 9]), features[[3, 0, 2, 9]], np.zeros(4, int))
    auxiliary = Kept(np.array([2, 11, 3]), features[[2, 11, 3]], np.zeros(3, int))
    first, second = aligned(base, auxiliary)
    assert first.ravel().tolist() == [2, 3, 0, 9] and second.ravel().tolist() == [2, 3, 11]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"data": ""}, "--data: got ''; name the real images"),
        ({"base": ""}, "--base: got ''; name a checkpoint, or images"),
        ({"auxiliary": "nowhere"}, "--auxiliary: got 'nowhere'; there is nothing; name a checkpoint, or images"),
        ({"n": 5}, "--n: got '5'; give a whole number of at least 20"),
        ({"data": "base"}, "--data: got 'base'; it holds generated images"),
        ({"features": "colours"}, "--features: got 'colours'"),
        ({"sampler": "heun"}, "--sampler: got 'heun'"),
        ({"out": "."}, "--out: got '.'; a folder is there"),
        ({"keep": 10}, "--keep: got '10'"),
        ({"auxiliary": "wide"}, "--auxiliary: got 'wide'; its images are 3x16x16, the reference's 3x8x8"),
        ({"auxiliary": "few"}, "--auxiliary: got 'few'; that is 5 images"),
        ({"auxiliary": "."}, "--auxiliary: got '.'; not a checkpoint; checkpoints lie below it, such as first"),
    ],
)
def test_bad_input(home, changes, error, capsys, monkeypatch):
    monkeypatch.chdir(home)
    if not (home / "wide").exists():
        tiny.write_data(home / "wide", size=16, count=30)
        tiny.write_data(home / "few", count=5)
    given = {"data": "real.zip", "base": "first", "auxiliary": "second", **DRAWN, **changes}
    assert main_with_errors(run, ["outlook", *(f"--{name}={value}" for name, value in given.items())]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {error}") and said.count("\n") == 1, said
