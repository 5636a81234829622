"""Data that are not RGB pixels, from a folder to a report; and FFHQ's folders, which name no classes."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from sims_core.errors import InputError
from sims_image.commands import run as command
from sims_image.data.dataset import open_dataset
from sims_image.data.folders import write_folder
from sims_image.models import checkpoints
from sims_image.models.presets import PRESETS
from sims_image.training.options import Train
from sims_image.training.plan import plan
from tests.image import tiny


@pytest.fixture
def preset():
    PRESETS["tiny"] = tiny.preset(tiny.EDM, tiny.recipe(budget="0.08k"))
    yield
    del PRESETS["tiny"]


@pytest.mark.parametrize("channels", [4, 3])
def test_floats_from_folder_to_report(preset, tmp_path, channels, capsys):
    """Latents of any width, three channels too: trained on, drawn and measured as the floats that they are."""
    values = np.random.default_rng(0).normal(2.0, 3.0, (60, channels, 8, 8)).astype(np.float32)
    known = {"count": 60, "shape": (channels, 8, 8), "dtype": values.dtype, "source": {"kind": "made up"}}
    write_folder(tmp_path / "raw", [values], labels=np.arange(60) % 3, classes=["a", "b", "c"], name="raw", **known)
    command(["prepare", str(tmp_path / "raw"), "--out", str(tmp_path / "data"), "--holdout", "24"])
    data, heldout = (open_dataset(tmp_path / name) for name in ("data", "data-heldout"))
    assert data.shape == (channels, 8, 8) and data.dtype == np.float32 and (len(data), len(heldout)) == (36, 24)
    words = ["--preset", "tiny", "--data", str(data.path), "--device", "cpu", "--workers", "0", "--augment", "0"]
    command(["train", *words, "--network", "augment_dim=0", "--out", str(tmp_path / "run")])
    checkpoint = next((tmp_path / "run/snapshots").glob("*80/ema"))
    assert checkpoints.summary(checkpoint).record.data.dtype == "float32"
    common = ["--base", str(checkpoint), "--seeds", "0-23", "--sampler", "heun:2", "--device", "cpu"]
    command(["generate", *common, "--out", str(tmp_path / "made"), "--data", str(data.path)])
    made = open_dataset(tmp_path / "made")
    assert made.dtype == np.float32 and made.shape == data.shape and not (tmp_path / "made/sheet.png").exists()
    outside = made.images(slice(None))
    assert np.isfinite(outside).all() and not np.array_equal(outside, outside.round())
    measured = ["--reference", str(data.path), "--heldout", str(heldout.path), "--features", "pixels"]
    command(["evaluate", *common, *measured, "--out", str(tmp_path / "model.json")])
    command(
        ["evaluate", "--images", str(made.path), *measured, "--out", str(tmp_path / "images.json"), "--device", "cpu"]
    )
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("model.json", "images.json"))
    assert first["features"]["metric"] == "FD-latents"
    assert first["metrics"]["frechet"]["value"] == pytest.approx(second["metrics"]["frechet"]["value"], rel=1e-6)
    mean = np.square(outside.reshape(24, -1).mean(0) - data.images(slice(None)).reshape(36, -1).mean(0)).sum()
    assert first["metrics"]["frechet"]["value"] > mean  # the distance of means is one part of it
    with pytest.raises(InputError, match=r"uint8|latents"):
        command(["evaluate", *common, "--reference", str(data.path), "--features", "classifier"])


def test_loop_on_latents(preset, tmp_path):
    values = np.random.default_rng(0).normal(size=(30, 4, 8, 8)).astype(np.float32)
    known = {"count": 30, "shape": (4, 8, 8), "dtype": values.dtype, "source": {"kind": "made up"}}
    data = write_folder(
        tmp_path / "data", [values], labels=np.arange(30) % 3, classes=["a", "b", "c"], name="d", **known
    )
    words = ["--data", str(data.path), "--base", "tiny", "--network", "augment_dim=0", "--out", str(tmp_path / "out")]
    words += ["--generations", "2", "--trials", "1", "--method", "standard,sims", "--features", "pixels", "--n", "20"]
    words += ["--budget", "8", "--sampler", "heun:2", "--device", "cpu", "--fit-budget", "24", "--synthetic", "20"]
    command(["loop", *words])
    results = json.loads((tmp_path / "out/report/results.json").read_text())
    assert results["metric"] == "FD-latents" and not (tmp_path / "out/report/samples.png").exists()


def test_ffhq_s_folders_are_no_classes(tmp_path):
    """FFHQ comes as folders of a thousand pictures each; its preset is unconditional."""
    rng = np.random.default_rng(0)
    for folder in ("00000", "01000"):
        (tmp_path / "ffhq" / folder).mkdir(parents=True)
        for i in range(3):
            picture = Image.fromarray(rng.integers(0, 255, (128, 128, 3), np.uint8))
            picture.save(tmp_path / "ffhq" / folder / f"{i:05d}.png")
    words = ["prepare", str(tmp_path / "ffhq"), "--size", "64", "--unlabelled", "--out", str(tmp_path / "ffhq64")]
    command(words)
    data = open_dataset(tmp_path / "ffhq64")
    assert data.shape == PRESETS["ffhq64"].shape and len(data) == 6 and data.labels is None
    made = plan(Train(preset="ffhq64", data=str(data.path), dry_run=True))
    assert made.config["label_dim"] == 0 and made.config["img_resolution"] == 64
