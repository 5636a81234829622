"""Latents with their autoencoder: what carries it, and decodes by it, from a pipeline to reports and back."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from sims_core.errors import InputError
from sims_core.sampling import SampleNoise
from sims_core.seeds import Seed
from sims_image.commands import run as command
from sims_image.data.dataset import open_dataset, to_pixels
from sims_image.data.folders import write_folder
from sims_image.experiments.checks import Real
from sims_image.experiments.options import Sims
from sims_image.models import autoencoders, checkpoints
from tests.core import foreign
from tests.image import tiny
from tests.image.test_diffusers import written

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers
QUICK = ["--sampler", "ddim:2", "--device", "cpu"]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """An unconditional latent pipeline: latents 4x8x8 of pictures 3x16x16."""
    place = written(tmp_path_factory.mktemp("latents") / "ldm", foreign.unet(4))
    foreign.autoencoder(2).save_pretrained(place / "vae")
    return place


@pytest.fixture(scope="module")
def made(pipeline, tmp_path_factory):
    """64 latents of it, as a data set."""
    out = tmp_path_factory.mktemp("made") / "latents"
    command(["generate", "--base", f"hf:{pipeline}", *QUICK, "--seeds", "0-63", "--out", str(out)])
    return open_dataset(out)


def expected(latents, vae=None):
    """The pictures of latents, by diffusers."""
    vae = vae or foreign.autoencoder(2)
    with torch.no_grad():
        return to_pixels(vae.decode(torch.tensor(latents) / vae.config.scaling_factor).sample).numpy()


def test_a_data_set_of_latents_stays_one_and_can_be_looked_at(pipeline, made, tmp_path):
    assert made.dtype == np.float32 and made.shape == (4, 8, 8) and (made.path / "sheet.png").exists()
    own, theirs = made.autoencoder, autoencoders.read(pipeline)
    assert own.sha256 == theirs.sha256 and own.folder == made.path / "autoencoder"
    assert not own.files[0].samefile(theirs.files[0])  # a folder of the user's is his to write over
    for word, folder in (("own", pipeline), (str(pipeline / "vae"), pipeline / "unet")):
        words = ["--decode", word, "--seeds", "0-3", "--out", str(tmp_path / folder.name)]
        command(["generate", "--base", f"hf:{folder}", *QUICK, *words])
        pixels = open_dataset(tmp_path / folder.name)
        assert pixels.autoencoder is None
        difference = pixels.images(slice(None)).astype(int) - expected(made.images(slice(4)))
        assert np.abs(difference).max() <= 1 and pixels.images(slice(None)).std() > 0


def test_an_image_s_bits_do_not_depend_on_its_batch(pipeline, made):
    decoder = autoencoders.load(autoencoders.read(pipeline))
    latents = made.images(slice(None))
    whole = decoder(torch.tensor(latents))
    for size in (1, 7, 64):
        assert torch.equal(torch.cat([decoder(part) for part in torch.tensor(latents).split(size)]), whole)
    view = autoencoders.decoded(made, decoder)
    assert view.shape == (3, 16, 16) and len(view) == 64 and view.sha256 != made.sha256
    np.testing.assert_array_equal(view.images([5, 2]), to_pixels(whole[[5, 2]]).numpy())


def test_a_checkpoint_hands_its_autoencoder_on(pipeline, made, tmp_path, capsys):
    """Imported, fine-tuned, merged: each is whole where it lies, also after its parent has moved."""
    command(["import-diffusers", str(pipeline), "--out", str(tmp_path / "base")])
    words = ["--data", str(made.path), "--budget", "0.016k", "--batch", "8", "--snapshots", "8", "--device", "cpu"]
    command(["train", "--from", str(tmp_path / "base"), *words, "--out", str(tmp_path / "run")])
    snapshots = sorted((tmp_path / "run/snapshots").iterdir())
    assert (snapshots[-1] / "sheet.png").exists()
    shutil.rmtree(tmp_path / "base")
    sha256 = autoencoders.read(pipeline).sha256
    for place in (snapshots[0] / "ema", snapshots[1] / "raw"):
        found = checkpoints.load(place).autoencoder
        assert found.sha256 == sha256 and autoencoders.load(found).channels == 4
        assert found.files[1].stat().st_nlink == 4  # one copy on the disk
    shutil.move(snapshots[1] / "raw", tmp_path / "moved")
    command(["info", str(tmp_path / "moved")])
    assert f"latents, with their autoencoder: {tmp_path / 'moved/autoencoder'}" in capsys.readouterr().out


def test_latents_are_compared_as_pictures(pipeline, made, tmp_path):
    """The model's against pictures and against latents: the same distances as of pictures that lie there."""
    pictures = tiny.write_data(tmp_path / "pictures.zip", classes=0, count=40, size=16)
    common = ["--features", "pixels", "--device", "cpu", "--no-floor", "--out"]
    model = ["--base", f"hf:{pipeline}", "--seeds", "0-63", "--sampler", "ddim:2"]
    command(["generate", *model, "--decode", "own", "--out", str(tmp_path / "pixels"), "--device", "cpu"])
    ways = {"model": model, "latents": ["--images", str(made.path)], "pixels": ["--images", str(tmp_path / "pixels")]}
    found = {}
    for name, words in ways.items():
        command(["evaluate", *words, "--reference", str(pictures.path), *common, str(tmp_path / f"{name}.json")])
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert {one["features"]["metric"] for one in found.values()} == {"FD-pixels"}
    assert found["model"]["metrics"] == found["latents"]["metrics"] == found["pixels"]["metrics"]
    assert found["model"]["source"]["decoder"] == autoencoders.read(pipeline).sha256
    real = tmp_path / "real"
    shutil.copytree(made.path, real)
    record = json.loads((real / "dataset.json").read_text())
    (real / "dataset.json").write_text(json.dumps(record | {"source": {"kind": "real"}}))
    for decode, metric in ((str(pipeline), "FD-pixels"), ("none", "FD-latents")):
        words = ["--reference", str(real), "--decode", decode, *common, str(tmp_path / "same")]
        command(["evaluate", "--base", f"hf:{pipeline}", "--seeds", "0-63", "--sampler", "ddim:2", *words])
        same = json.loads((tmp_path / "same").read_text())
        assert same["features"]["metric"] == metric
        assert abs(same["metrics"]["frechet"]["value"]) < 1e-6  # they are the model's own
    outlook = ["--data", str(pictures.path), "--base", f"hf:{pipeline}", "--auxiliary", str(made.path), "--n", "64"]
    outlook += ["--sampler", "ddim:2", "--features", "pixels", "--device", "cpu", "--out", str(tmp_path / "told")]
    command(["outlook", *outlook])
    told = json.loads((tmp_path / "told").read_text())
    assert told["base"]["decoder"] == found["model"]["source"]["decoder"] and told["features"]["name"] == "pixels"


def test_what_is_exported_is_a_pipeline_that_draws_the_same_pictures(pipeline, tmp_path, capsys, monkeypatch):
    diffusers = foreign.diffusers
    dit = written(tmp_path / "dit", foreign.dit(), part="transformer")
    foreign.autoencoder(2).save_pretrained(dit / "vae")

    def noise(shape, **_):
        return SampleNoise(Seed(0), range(shape[0]))(tuple(shape)).float()

    for pipe in (diffusers.LDMPipeline, diffusers.DiTPipeline):
        monkeypatch.setattr(f"{pipe.__module__}.randn_tensor", noise)
    for place, kind, own, theirs in (
        (pipeline, "LDMPipeline", [], {"batch_size": 3}),
        (dit, "DiTPipeline", ["--labels", "7"], {"class_labels": [7] * 3, "guidance_scale": 1.0}),
    ):
        command(["import-diffusers", str(place), "--out", str(tmp_path / kind)])
        capsys.readouterr()
        command(["export-diffusers", str(tmp_path / kind), "--out", str(tmp_path / f"{kind}-back")])
        line = capsys.readouterr().out.splitlines()[1].strip()
        known = {"diffusers": diffusers}
        exec(line, known)
        pipe = known["pipe"]
        assert type(pipe).__name__ == kind
        pipe.set_progress_bar_config(disable=True)
        drawn = pipe(**theirs, num_inference_steps=2, output_type="np").images
        words = ["--decode", "own", "--seeds", "0-2", "--batch", "3", *own, "--out", str(tmp_path / f"{kind}-pixels")]
        command(["generate", "--base", f"hf:{tmp_path / f'{kind}-back'}", *QUICK, *words])
        ours = open_dataset(tmp_path / f"{kind}-pixels").images(slice(None)).transpose(0, 2, 3, 1)
        assert np.abs(ours.astype(int) - drawn * 255).max() <= 1.01 and ours.std() > 0


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda f: (f / "config.json").write_text("{}"), "it holds a None; decoders that are read: AutoencoderKL"),
        (lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(), "it has no diffusion_pytorch_model.safetens"),
        (lambda f: foreign.autoencoder(2, seed=1).save_pretrained(f), "another autoencoder than the record names"),
    ],
)
def test_an_autoencoder_that_is_not_whole_is_one_line(pipeline, tmp_path, break_it, told):
    command(["import-diffusers", str(pipeline), "--out", str(tmp_path / "base")])
    held = tmp_path / "base/autoencoder"
    break_it(held)
    with pytest.raises(InputError, match=told):
        command(["generate", "--base", str(tmp_path / "base"), *QUICK, "--out", str(tmp_path / "x")])
    assert not (tmp_path / "x").exists()
    command(["generate", "--base", str(tmp_path / "base"), *QUICK, "--out", str(tmp_path / "x"), "--sheet", "0"])


def test_own_needs_one(tmp_path):
    with pytest.raises(InputError, match="--decode: got 'own'; no autoencoder comes with it"):
        command(["generate", "--base", f"hf:{written(tmp_path / 'ddpm')}", "--decode", "own", "--out", "x"])


# ------------------------------------------------------------------------- experiments


@pytest.fixture(scope="module")
def real(made, tmp_path_factory):
    """Latents with two classes that carry their autoencoder, and pictures held out."""
    place = tmp_path_factory.mktemp("real")
    known = {"count": 64, "shape": made.shape, "dtype": made.dtype, "source": {"kind": "real"}, "name": "real"}
    known |= {"labels": np.arange(64) % 2, "classes": ["a", "b"], "autoencoder": made.autoencoder}
    write_folder(place / "data", [made.images(slice(None)) * 1.1], **known)
    tiny.write_data(place / "heldout.zip", count=40, size=16, classes=2)
    return place


SIZES = {
    "sims": ["--synthetic", "32", "--search", "20", "--n", "20", "--repeats", "2", "--budget", "32", "--no-controls"],
    "loop": ["--synthetic", "32", "--generations", "2", "--method", "sims,neon,random", "--n", "20", "--budget", "32"],
    "retrain": ["--generations", "2", "--ratio", "1", "--n", "20", "--retrain-budget", "16"],
    "pollution": ["--warm", "--retrain-budget", "16", "--pollution", "0.5", "--auxiliary-size", "20", "--n", "20"],
    "control": ["--target", "0.6,0.4", "--omega", "0.5", "--auxiliary-size", "20", "--n", "40"],
}


@pytest.mark.parametrize("verb", SIZES)
def test_experiments_measure_pictures(pipeline, real, tmp_path, verb):
    """Trained and drawn as latents, measured as pictures against pictures, and shown; nothing is said of decoding."""
    out = tmp_path / "out"
    words = ["--data", str(real / "data"), "--heldout", str(real / "heldout.zip"), "--base", f"hf:{pipeline}", *QUICK]
    words += [*SIZES[verb], *([] if verb == "sims" else ["--trials", "1"]), "--features", "pixels", "--out", str(out)]
    words += ["--train-batch", "8"] if verb in ("sims", "loop") else []
    words += ["--classifier", "tests.image.test_control_command:Parity"] if verb == "control" else []
    words += ["--budget", "16"] if verb in ("pollution", "control") else []
    command([verb, *words, "--dry-run"])
    command([verb, *words])
    results = json.loads((out / "report/results.json").read_text())
    assert results["metric"] == "FD-pixels" and list((out / "report").glob("*.png"))
    cells = [json.loads(path.read_text()) for path in (out / "cells").glob("*.json")]
    assert {cell["settings"]["decoder"] for cell in cells} == {autoencoders.read(pipeline).sha256}
    assert list(out.glob("*-*/**/autoencoder/config.json")), "what is made carries it on"
    drawn = [open_dataset(path) for path in out.glob("sample-*")]
    assert all(one.dtype == np.float32 and (one.path / "sheet.png").exists() for one in drawn)


def test_real_latents_are_decoded_too(real, pipeline):
    """By the base's autoencoder, or, of a preset's network, the data's: the view holds the library's own pictures."""
    for base in (f"hf:{pipeline}", "digits"):
        found = Real.open(Sims(data=str(real / "data"), heldout=str(real / "heldout.zip"), base=base))
        latents = found.data.images(slice(8))
        assert np.abs(found.seen.data.images(slice(8)).astype(int) - expected(latents)).max() <= 1
        assert found.seen.data.labels is not None and found.seen.heldout is found.heldout
