"""Latents with their autoencoder: what carries it, and decodes by it, from a pipeline to reports and back."""

from __future__ import annotations

import json
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from sims_core.errors import InputError
from sims_core.sampling import SampleNoise
from sims_core.seeds import Seed
from sims_image.commands import run as command
from sims_image.data.dataset import open_dataset, to_pixels
from sims_image.data.folders import write_folder
from sims_image.data.latents import EDM2
from sims_image.experiments.checks import Real
from sims_image.experiments.options import Sims
from sims_image.metrics.loss import heldout_loss
from sims_image.models import autoencoders, checkpoints
from sims_image.models.presets import PRESETS
from sims_image.sampling.guided import load_model
from sims_image.training.batches import Feed
from tests.core import foreign
from tests.image import tiny
from tests.image.ranks import finish, launch
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
    command(["info", str(tmp_path / "moved"), f"hf:{pipeline}"])
    told = capsys.readouterr().out
    for place in (tmp_path / "moved/autoencoder", pipeline / "vae"):
        assert f"latents, with their autoencoder: {place}" in told


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
    assert found["model"]["source"]["decoder"] == autoencoders.read(pipeline).identity
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


def test_two_processes_measure_the_pictures_of_one(pipeline, made, tmp_path):
    """Made, decoded and gathered by both; real latents are decoded by the first."""
    words = ["-m", "sims_image", "evaluate", "--base", f"hf:{pipeline}", "--seeds", "0-39", "--features", "pixels"]
    known = {"count": 64, "shape": made.shape, "dtype": made.dtype, "source": {"kind": "real"}, "name": "real"}
    known |= {"labels": None, "classes": [], "autoencoder": made.autoencoder}
    write_folder(tmp_path / "data", [made.images(slice(None))], **known)
    words += ["--reference", str(tmp_path / "data"), *QUICK, "--batch", "8", "--no-floor", "--out"]
    for world in (1, 2):
        finish(launch([*words, str(tmp_path / f"{world}.json")], world))
    one, two = (json.loads((tmp_path / f"{world}.json").read_text())["metrics"] for world in (1, 2))
    for name, found in one.items():
        assert two[name]["value"] == pytest.approx(found["value"], rel=1e-6, abs=1e-9)


def test_decoding_in_tiles_is_diffusers_own(pipeline, made, tmp_path):
    """Other pixels, which are another decoder's by its record; too little memory names the way."""
    command(["generate", "--base", f"hf:{pipeline}", *QUICK, "--decode", "own+tiled", "--seeds", "0-3", "--out",
             str(tmp_path / "tiled")])  # fmt: skip
    found = open_dataset(tmp_path / "tiled")
    vae = foreign.autoencoder(2)
    vae.enable_tiling()
    latents = made.images(slice(4))
    assert np.abs(found.images(slice(None)).astype(int) - expected(latents, vae)).max() <= 1
    assert np.abs(found.images(slice(None)).astype(int) - expected(latents)).max() > 1
    whole, tiled = (autoencoders.load(autoencoders.chosen(f"{pipeline}{end}", [])) for end in ("", "+tiled"))
    assert whole.sha256 != tiled.sha256 == found.record["source"]["decoder"]
    assert torch.equal(tiled(torch.tensor(latents)), torch.cat([tiled(one[None]) for one in torch.tensor(latents)]))

    def full(_):
        raise torch.OutOfMemoryError

    for decoder, error in ((whole, InputError), (tiled, torch.OutOfMemoryError)):
        decoder.module.decode = full
        with pytest.raises(error, match=r"does not fit into memory; write own\+tiled" if error is InputError else None):
            decoder(torch.tensor(latents))


LAUNCH = (
    "from tests.image import tiny; from sims_image.models.presets import PRESETS; "
    "from sims_image.__main__ import main; latents = {**tiny.EDM, 'img_channels': 4, 'augment_dim': 0}; "
    "PRESETS['tiny'] = tiny.preset(latents, tiny.recipe(budget='0.08k')); main()"
)


def test_two_processes_go_from_pictures_to_a_report(pipeline, pictures, tmp_path):
    """encode, train, generate, decode, evaluate by two processes: images are one process's bits, metrics its values."""
    where = ["--device", "cpu"]
    words = ["prepare", str(pictures.path), "--latents", str(pipeline), *where, "--out", str(tmp_path / "data")]
    command(words)
    train = ["train", "--preset", "tiny", "--data", str(tmp_path / "data"), *where, "--out", str(tmp_path / "run")]
    finish(launch(["-c", LAUNCH, *train], 2))
    base = str(sorted((tmp_path / "run/snapshots").iterdir())[-1] / "ema")
    drawn = ["--base", base, "--seeds", "0-23", "--sampler", "heun:2", "--batch", "8", *where]
    measured = ["--reference", str(pictures.path), "--features", "pixels", "--no-floor"]
    for world in (1, 2):
        finish(
            launch(
                ["-c", LAUNCH, "generate", *drawn, "--decode", "own", "--out", str(tmp_path / f"made{world}")], world
            )
        )
        finish(launch(["-c", LAUNCH, "evaluate", *drawn, *measured, "--out", str(tmp_path / f"{world}.json")], world))
    one, two = (open_dataset(tmp_path / f"made{world}") for world in (1, 2))
    assert one.dtype == np.uint8 and one.shape == (3, 16, 16) and one.sha256 == two.sha256
    first, second = (json.loads((tmp_path / f"{world}.json").read_text())["metrics"] for world in (1, 2))
    for name, found in first.items():
        assert second[name]["value"] == pytest.approx(found["value"], rel=1e-6, abs=1e-9), name


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
        command(
            ["generate", "--base", f"hf:{written(tmp_path / 'ddpm')}", "--decode", "own", "--out", str(tmp_path / "x")]
        )


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
    "leaderboard": ["--arms", "neon,continued", "--auxiliary-size", "20", "--search", "40", "--n", "30"],
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
    words += ["--budget", "16"] if verb in ("pollution", "control", "leaderboard") else []
    words += ["--omega", "1"] if verb == "leaderboard" else []
    command([verb, *words, "--dry-run"])
    command([verb, *words])
    results = json.loads((out / "report/results.json").read_text())
    assert results["metric"] == "FD-pixels" and list((out / "report").glob("*.png"))
    cells = [json.loads(path.read_text()) for path in (out / "cells").glob("*.json")]
    assert {cell["settings"]["decoder"] for cell in cells} == {autoencoders.read(pipeline).identity}
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


# ------------------------------------------------------------------------- pictures to latents


@pytest.fixture
def preset():
    changed = tiny.preset({**tiny.EDM, "img_channels": 4, "augment_dim": 0}, tiny.recipe(budget="0.08k"))
    PRESETS["tiny"] = changed
    yield
    del PRESETS["tiny"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("pictures") / "pictures.zip", count=60, size=16)


def encoded(pictures, space):
    """Moments by diffusers, all at once."""
    vae, given = foreign.autoencoder(2), torch.tensor(pictures.images(slice(None)))
    with torch.no_grad():
        found = vae.encode(given / 255 if space == "edm2" else given / 127.5 - 1).latent_dist
    return torch.cat([found.mean, found.std], 1).numpy()


@pytest.mark.parametrize(("space", "form"), [("edm2", "folder"), ("edm2", "edm-zip"), ("diffusers", "folder")])
def test_pictures_become_moments(pipeline, pictures, tmp_path, space, form):
    out = tmp_path / ("data.zip" if form == "edm-zip" else "data")
    words = [
        "--latents", str(pipeline), "--latent-space", space, "--format", form, "--device", "cpu", "--out", str(out),
    ]  # fmt: skip
    command(["prepare", str(pictures.path), *words, "--dry-run"])
    command(["prepare", str(pictures.path), *words, "--holdout", "12"])
    data, held = open_dataset(out, verify=True), open_dataset(str(out).replace("data", "data-heldout", 1))
    assert data.shape == (8, 8, 8) and data.seen == (4, 8, 8) and data.moments and (len(data), len(held)) == (48, 12)
    found = np.concatenate([data.images(slice(None)), held.images(slice(None))])
    wanted = encoded(pictures, space)
    order = [np.abs(wanted - one).max((1, 2, 3)).argmin() for one in found]
    assert sorted(order) == list(range(60)) and np.abs(found - wanted[order]).max() < 1e-5
    known = data.autoencoder
    assert known == held.autoencoder or replace(known, files=()) == replace(held.autoencoder, files=())
    mean, std = np.split(data.images(slice(None)).astype(float), 2, 1)
    if space == "edm2":
        np.testing.assert_allclose(known.mean, mean.mean((0, 2, 3)), rtol=1e-6)
        drawn = mean + std * np.random.default_rng(0).normal(size=std.shape)
        np.testing.assert_allclose(known.std, drawn.std((0, 2, 3)), rtol=0.1)
    else:
        assert known == known.like(autoencoders.read(pipeline))
    view = autoencoders.decoded(data, autoencoders.load(known))
    with torch.no_grad():
        again = foreign.autoencoder(2).decode(torch.tensor(mean[:8]).float()).sample
    again = to_pixels(2 * again - 1 if space == "edm2" else again).numpy()
    assert np.abs(view.images(slice(8)).astype(int) - again).max() <= 1
    command(["prepare", str(pictures.path), *words, "--holdout", "12"])  # recognised


def test_encoding_goes_on_where_it_was_stopped(pipeline, pictures, tmp_path, monkeypatch):
    """As often as it is stopped, no picture that is recorded is encoded again, and the bytes are the same."""
    words = ["prepare", str(pictures.path), "--latents", str(pipeline), "--device", "cpu", "--out"]
    command([*words, str(tmp_path / "whole")])
    seen, encode = [], autoencoders.Decoder.encode

    def stopped(self, images):
        seen.append(len(images))
        if len(seen) in (2, 5):
            raise KeyboardInterrupt
        return encode(self, images)

    monkeypatch.setattr(autoencoders.Decoder, "encode", stopped)
    monkeypatch.setattr("sims_image.data.prepare.COMMIT_SECONDS", 0.0)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            command([*words, str(tmp_path / "parts")])
    command([*words, str(tmp_path / "parts")])
    assert seen == [16, 16, 16, 16, 12, 12]
    for name in ("images.npy", "labels.npy", "dataset.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_training_draws_latents_from_their_moments(pipeline, pictures, tmp_path):
    """Anew for every image of a run, on the scale of the network; a zip of NVIDIA's on EDM2's published one."""
    command(
        ["prepare", str(pictures.path), "--latents", str(pipeline), "--device", "cpu", "--out", str(tmp_path / "d")]
    )
    data = open_dataset(tmp_path / "d")
    with zipfile.ZipFile(tmp_path / "img512.zip", "w") as archive:
        for k, image in enumerate(data.images(slice(None))):
            with archive.open(f"00000/img-mean-std-{k:08d}.npy", "w") as member:
                np.save(member, image)
    theirs = open_dataset(tmp_path / "img512.zip")
    assert theirs.moments and theirs.autoencoder.files == () and theirs.autoencoder.mean == (5.81, 3.25, 0.12, -2.15)
    for one in (data, theirs):
        known = one.autoencoder
        feed = Feed(one, Seed(5), label_dim=0, augment=None, augment_dim=0, part=8, passes=1, latents=known)
        batch = feed.read(0, 0)
        clean = feed.ready(batch).clean
        mean, std = batch.images.chunk(2, 1)
        middle, spread = (torch.tensor(part)[:, None, None] for part in (known.mean, known.std))
        noise = ((clean * 2 * spread + middle) - mean) / std
        assert noise.shape == (8, 4, 8, 8) and abs(noise.mean()) < 0.1 and abs(noise.std() - 1) < 0.05
        assert not torch.equal(noise, (feed.ready(replace(batch, items=batch.items + 60)).clean * 2 * spread) / std)


def test_moments_without_an_autoencoder_are_given_one(pipeline, pictures, tmp_path, capsys):
    """A zip as NVIDIA's tools write it: its published scale, and the autoencoder that is named."""
    words = ["--latents", str(pipeline), "--device", "cpu", "--format", "edm-zip", "--out", str(tmp_path / "own.zip")]
    command(["prepare", str(pictures.path), *words])
    with zipfile.ZipFile(tmp_path / "own.zip") as ours, zipfile.ZipFile(tmp_path / "img512.zip", "w") as theirs:
        for name in ours.namelist():
            content = ours.read(name)
            if name == "dataset.json":
                content = json.dumps({"labels": json.loads(content)["labels"]})
            theirs.writestr(name, content)
    zipped = str(tmp_path / "img512.zip")
    command(["info", zipped])
    assert "latents, without their autoencoder" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--data: got '.*img512.zip'; its latents come without their autoencoder"):
        command(["sims", "--data", zipped, "--base", "digits", "--features", "pixels", "--dry-run"])
    command(["prepare", zipped, "--latents", str(pipeline), "--holdout", "20", "--out", str(tmp_path / "data")])
    command(["prepare", str(tmp_path / "data"), "--limit", "10", "--out", str(tmp_path / "few")])
    for name, count in (("data", 40), ("data-heldout", 20), ("few", 10)):
        data = open_dataset(tmp_path / name)
        assert len(data) == count and data.autoencoder.mean == EDM2[0] and data.autoencoder.lowest == 0
        assert autoencoders.load(data.autoencoder).sha256 == data.autoencoder.identity


def test_the_held_out_loss_draws_from_moments(pipeline, pictures, tmp_path):
    """Of pictures that are encoded for it, and of their moments that lie there: the same loss, image by image."""
    words = ["--latents", str(pipeline), "--latent-space", "diffusers", "--device", "cpu", "--unlabelled"]
    command(["prepare", str(pictures.path), *words, "--out", str(tmp_path / "data")])
    model, data = load_model(f"hf:{pipeline}"), open_dataset(tmp_path / "data")
    view = autoencoders.encoded(pictures, autoencoders.load(autoencoders.read(pipeline)))
    assert view.moments and view.shape == data.shape and np.array_equal(view.images([3, 1]), data.images([3, 1]))
    losses = [heldout_loss(model, one) for one in (data, view)]
    assert losses[0].shape == (60,) and np.isfinite(losses[0]).all() and np.array_equal(*losses)


def test_from_pictures_to_a_report_and_a_loop(pipeline, pictures, preset, tmp_path):
    """encode, train, generate, decode, evaluate, fine-tune, loop: a network of one's own on latents of one's own."""
    words = ["--latents", str(pipeline), "--device", "cpu", "--holdout", "24", "--out", str(tmp_path / "data")]
    command(["prepare", str(pictures.path), *words])
    quick = ["--data", str(tmp_path / "data"), "--device", "cpu"]
    command(["train", "--preset", "tiny", *quick, "--out", str(tmp_path / "run")])
    last = sorted((tmp_path / "run/snapshots").iterdir())[-1]
    own = checkpoints.summary(last / "ema")
    assert own.config["img_channels"] == 4 and (last / "sheet.png").exists()
    assert own.autoencoder.record == open_dataset(tmp_path / "data").autoencoder.record
    base = ["--base", str(last / "ema"), "--seeds", "0-23", "--sampler", "heun:2", "--device", "cpu"]
    command(["generate", *base, "--out", str(tmp_path / "made")])
    command(["generate", *base, "--decode", "own", "--out", str(tmp_path / "pixels")])
    latents = open_dataset(tmp_path / "made")
    inner = latents.images(slice(None)) * 2 * np.reshape(own.autoencoder.std, (4, 1, 1))
    inner += np.reshape(own.autoencoder.mean, (4, 1, 1))
    with torch.no_grad():
        wanted = to_pixels(2 * foreign.autoencoder(2).decode(torch.tensor(inner).float()).sample - 1).numpy()
    assert np.abs(open_dataset(tmp_path / "pixels").images(slice(None)).astype(int) - wanted).max() <= 1
    for real in (tmp_path / "data", pictures.path):
        where = ["--reference", str(real), "--features", "classifier", "--out", str(tmp_path / "report.json")]
        command(["evaluate", *base, *where, "--heldout", str(tmp_path / "data-heldout")])
        assert json.loads((tmp_path / "report.json").read_text())["features"]["metric"] == "FD-classifier"
    words = [*quick, "--base", "tiny", "--features", "pixels", "--n", "20", "--sampler", "heun:2", "--trials", "1"]
    words += ["--fit-budget", "24", "--budget", "8", "--generations", "2", "--method", "standard,sims"]
    command(["loop", *words, "--auxiliary-data", "train+synthetic", "--out", str(tmp_path / "loop")])
    assert json.loads((tmp_path / "loop/report/results.json").read_text())["metric"] == "FD-pixels"
    union = open_dataset(next((tmp_path / "loop").glob("union-*")))
    assert union.moments and union.images([len(union) - 1])[0, 4:].max() == 0  # samples have no spread
    sample = open_dataset(next((tmp_path / "loop").glob("sample-*")))
    factor, bias = sample.autoencoder.affine()
    tail = union.images(slice(len(union) - len(sample), None))[:, :4] * factor + bias
    assert any(
        np.allclose(tail, open_dataset(p).images(slice(None)), atol=1e-4) for p in (tmp_path / "loop").glob("sam*")
    )


def test_latents_of_another_kind_are_refused(pipeline, pictures, tmp_path):
    for space in ("edm2", "diffusers"):
        words = ["--latents", str(pipeline), "--latent-space", space, "--device", "cpu", "--out", str(tmp_path / space)]
        command(["prepare", str(pictures.path), *words, "--unlabelled"])
    train = ["train", "--from", f"hf:{pipeline}", "--budget", "0.008k", "--batch", "8", "--device", "cpu", "--data"]
    command([*train, str(tmp_path / "diffusers"), "--out", str(tmp_path / "run")])
    command(["generate", "--base", f"hf:{pipeline}", *QUICK, "--seeds", "0-9", "--out", str(tmp_path / "made")])
    known = {"shape": (8, 8, 8), "dtype": np.dtype("<f4"), "labels": None, "classes": [], "name": "f", "source": {}}
    write_folder(tmp_path / "floats", [np.ones((3, 8, 8, 8), "f4")], count=3, **known)
    record = json.loads((tmp_path / "made/dataset.json").read_text())
    record["autoencoder"]["std"] = [1.0] * 4
    out = str(tmp_path / "x")
    (tmp_path / "made/dataset.json").write_text(json.dumps(record))
    for words, told in (
        ([*train, str(tmp_path / "edm2")], "encoded from pixels from 0 to 1, those of the checkpoint are from -1"),
        ([*train, str(tmp_path / "made")], "on another scale than the checkpoint's"),
        (
            ["prepare", str(tmp_path / "floats"), "--latents", str(pipeline), "--out", out],
            "nothing says that they are its latents",
        ),
        (["prepare", str(pictures.path), "--gray", "--latents", str(pipeline), "--out", out], "pictures of 3 channels"),
        (
            ["prepare", str(pictures.path), "--size", "15", "--latents", str(pipeline), "--out", out],
            "a side that 2 div",
        ),
        (["prepare", str(pictures.path), "--latents", "nowhere", "--out", out], "--latents: got 'nowhere'; a folder"),
        (
            ["prepare", str(pictures.path), "--latents", str(pipeline), "--latent-space", "sd", "--out", out],
            "edm2, dif",
        ),
    ):
        with pytest.raises(InputError, match=told):
            command(words)
    record["autoencoder"]["std"] = [0.0] * 4
    (tmp_path / "made/dataset.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match="its record is damaged"):
        command([*train, str(tmp_path / "made")])
