"""Every verb of `sims_image` on a device, at a size of seconds."""

import json
import re

import pandas as pd
import pytest

from sims_image.commands import VERBS
from sims_image.commands import run as command
from sims_image.data.dataset import open_dataset
from sims_image.experiments import halving
from sims_image.models.presets import PRESETS
from tests.image import test_digits_experiments as experiments
from tests.image import tiny
from tests.image.test_nvidia import write

pytestmark = pytest.mark.gpu
MEASURED = {"--features": "pixels", "--sampler": "heun:2"}


@pytest.fixture(scope="module", autouse=True)
def small():
    """A tiny preset, and few samplers to retune over."""
    kept, halving.RHOS, halving.TOPS = (halving.RHOS, halving.TOPS), (5.0,), (1.0,)
    PRESETS["tiny"] = tiny.preset(tiny.EDM, tiny.recipe(budget="0.08k", lr=1e-2))
    yield
    halving.RHOS, halving.TOPS = kept
    del PRESETS["tiny"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("verbs")


@pytest.fixture(scope="module")
def digits(folder):
    out = folder / "digits"
    command(["prepare", "digits", "--limit", "360", "--balanced", "--holdout", "240", "--out", str(out)])
    return {"--data": str(out), "--heldout": f"{out}-heldout"}


@pytest.fixture(scope="module")
def base(folder, digits, device):
    """A trained base, fine-tuned on its own samples too: (base, auxiliary)."""
    data = ["--data", digits["--data"], "--device", device.type]
    command(["train", "--preset", "tiny", *data, "--network", "augment_dim=0", "--out", str(folder / "base")])
    where = str(folder / "base/snapshots/0000000080/ema")
    command(
        ["generate", "--base", where, *data, "--seeds", "0-19", "--sampler", "heun:2", "--out", str(folder / "own")]
    )
    tuned = ["--from", where, "--data", str(folder / "own"), "--budget", "0.016k", "--device", device.type]
    command(["train", *tuned, "--out", str(folder / "auxiliary")])
    return where, str(folder / "auxiliary/snapshots/0000000016/raw")


def given(options: dict[str, str]) -> list[str]:
    return [word for option in options.items() for word in option]


@pytest.mark.parametrize("way", ["", "--merge", "--dtype bf16", "--guidance held:2 --pair overlapped"])
def test_generate(base, device, tmp_path, way):
    words = ["--base", base[0], "--auxiliary", base[1], "--omega", "1", *way.split()]
    words += ["--seeds", "0-9", "--sampler", "heun:3"]
    command(["generate", *words, "--batch", "5", "--device", device.type, "--out", str(tmp_path / "out")])
    assert len(open_dataset(tmp_path / "out")) == 10 and (tmp_path / "out/sheet.png").exists()


def test_evaluate(base, digits, device, tmp_path):
    words = ["--base", base[0], "--reference", digits["--data"], "--seeds", "0-39", *given(MEASURED)]
    command(["evaluate", *words, "--device", device.type, "--out", str(tmp_path / "found.json")])
    assert json.loads((tmp_path / "found.json").read_text())["n"] == 40


def test_outlook(base, digits, device, tmp_path):
    words = ["--data", digits["--data"], "--base", base[0], "--auxiliary", base[1], "--n", "40", *given(MEASURED)]
    command(["outlook", *words, "--device", device.type, "--out", str(tmp_path / "found.json")])
    assert json.loads((tmp_path / "found.json").read_text())["outlook"]["sentence"]


def test_classify(device, tmp_path, capsys):
    """Brightness tells the tiny classes apart."""
    data, heldout = (
        tiny.write_data(tmp_path / f"{count}.zip", count=count, seed=seed) for seed, count in ((0, 240), (1, 90))
    )
    command(["classify", "--data", str(data.path), "--heldout", str(heldout.path), "--device", device.type])
    accuracy = re.search(r"accuracy (0\.\d+)", capsys.readouterr().out)
    assert accuracy and float(accuracy[1]) > 0.6


def test_sims(base, digits, device, tmp_path):
    words = ["sims", *given(digits), "--base", base[0], *given(MEASURED), "--out", str(tmp_path / "out")]
    words += ["--synthetic", "20", "--budget", "16", "--search", "20", "--n", "20", "--repeats", "2", "--omega", "1"]
    command([*words, "--auxiliary-weights", "raw", "--device", device.type])
    arms = {arm["arm"] for arm in json.loads((tmp_path / "out/report/results.json").read_text())["arms"]}
    assert arms >= {"base", "SIMS", "base, twice the steps", "base trained further", "random direction", "Neon"}


#: on a CPU the others say nothing that their own tests do not
@pytest.mark.parametrize("verb", [pytest.param(v, marks=pytest.mark.gpu(cpu=v == "loop")) for v in experiments.CASES])
def test_experiments(digits, device, tmp_path, verb, monkeypatch):
    words, table, rows = experiments.CASES[verb]
    if verb == "control":
        monkeypatch.setattr("sims_image.experiments.control.ROUNDS", 12)
        words = [*words, "--classifier", "tests.image.test_digits_experiments:Lots"]
    common = [word if word != "cpu" else device.type for word in experiments.COMMON]
    command([verb, *given(digits), "--out", str(tmp_path / "out"), *common, *words])
    assert len(pd.read_parquet(tmp_path / f"out/report/{table}.parquet")) == rows


def test_what_has_no_device(base, folder, tmp_path, capsys):
    path, _ = write(tmp_path / "edm-small.pkl", "DDPM++")
    command(["import-nvidia", str(path), "--out", str(tmp_path / "imported")])
    command(["info", str(tmp_path / "imported"), str(folder / "base"), str(folder / "digits")])
    assert "SongUNet under edm" in capsys.readouterr().out
    alone = {"prepare", "info", "recipes", "import-nvidia", "import-diffusers", "export-diffusers"}
    here = {"train", "generate", "evaluate", "outlook", "classify", "sims", "leaderboard"}
    assert alone | here | set(experiments.CASES) == set(VERBS)


def test_leaderboard(digits, device, tmp_path):
    words = [*given(digits | MEASURED), "--base", "tiny", "--network", "augment_dim=0", "--arms", "neon,continued"]
    words += [
        "--auxiliary-size", "20", "--budget", "16", "--search", "40", "--n", "30", "--omega", "1", "--trials", "1",
    ]  # fmt: skip
    command(["leaderboard", *words, "--device", device.type, "--out", str(tmp_path / "out")])
    assert (tmp_path / "out/report/results.json").exists()


def test_latents(folder, device):
    """Encoded, trained on as moments, drawn, decoded, compared as pictures and exported; fine-tuned from a pipeline."""
    foreign = pytest.importorskip("tests.core.foreign")
    (place, data), where = (folder / "pipeline", folder / "latents"), ["--device", device.type]
    foreign.diffusers.LDMPipeline(
        foreign.autoencoder(2), foreign.unet(4), foreign.diffusers.DDIMScheduler(clip_sample=False)
    ).save_pretrained(place)
    pictures = tiny.write_data(folder / "pictures.zip", count=48, size=16, classes=0)
    encoded = ["--latents", str(place), "--latent-space", "diffusers", *where, "--out", str(data)]
    command(["prepare", str(pictures.path), *encoded])
    run = ["--from", f"hf:{place}", "--data", str(data), "--budget", "0.016k", "--batch", "8", *where]
    command(["train", *run, "--out", str(folder / "tuned")])
    assert (folder / "tuned/snapshots/0000000016/sheet.png").exists()
    pair = ["--base", f"hf:{place}", "--auxiliary", str(folder / "tuned/snapshots/0000000016/raw"), "--omega", "1"]
    drawn = [*pair, "--seeds", "0-23", "--sampler", "ddim:2", *where]
    command(["generate", *drawn, "--decode", "own", "--out", str(folder / "pixels")])
    assert open_dataset(folder / "pixels").images(slice(None)).std() > 0
    command(["evaluate", *drawn, "--reference", str(data), "--features", "pixels", "--out", str(folder / "told.json")])
    assert json.loads((folder / "told.json").read_text())["features"]["metric"] == "FD-pixels"
