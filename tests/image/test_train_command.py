"""The verb train: what it writes, what it refuses, fine-tuning, schedules, dry runs."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from sims_core.errors import InputError
from sims_core.lab.runs import RunFolder
from sims_image.commands import run as command
from sims_image.data.dataset import open_dataset
from sims_image.data.folders import write_folder
from sims_image.models import checkpoints
from sims_image.models.ema import HalfLife, Power, reconstruct
from sims_image.models.networks import build
from sims_image.models.presets import PRESETS, Recipe
from sims_image.training import estimate, session, trainer, ways
from sims_image.training.options import Train
from sims_image.training.plan import plan
from sims_image.training.schedules import (
    average_note,
    drift_share,
    learning_rate,
    profiles,
    ramp_warning,
    shares,
    timetable,
)
from sims_image.training.session import train
from sims_image.training.trainer import DivergedError
from tests.image import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip").path)


@pytest.fixture(autouse=True)
def presets(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(PRESETS, "tiny", tiny.preset())
    edm2 = tiny.recipe(objective="edm2", ema="power", mi=2**20, ema_widths=(0.1, 0.2))
    monkeypatch.setitem(PRESETS, "tiny2", tiny.preset(tiny.EDM2, edm2))


def log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def start(given, **settings) -> Train:
    return Train(**{"preset": "tiny", "data": given, "out": "run", "sheet": 2, "device": "cpu", **settings})


# ------------------------------------------------------------ what is left to measure


def ways_of(monkeypatch, seconds, error=0.01):
    """Let ways take ``seconds`` by (precision, channels_last), 1 otherwise, and bf16 err so."""
    monkeypatch.setattr(ways, "has_bf16", lambda device: True)
    monkeypatch.setattr(ways._Trial, "seconds", lambda self, way: seconds.get((way.precision, way.channels_last), 1.0))
    monkeypatch.setattr(ways._Trial, "error", lambda self, way: error)


@pytest.mark.parametrize(
    ("seconds", "error", "found"),
    [
        ({}, 0.0, ("float32", False)),
        ({("bf16", True): 0.98}, 0.0, ("float32", False)),  # by less than timings differ
        ({("bf16", True): 0.5, ("float32", True): 0.6}, 0.2, ("bf16", True)),
        ({("bf16", True): 0.5, ("float32", True): 0.6}, 0.3, ("float32", True)),
        ({("bf16", True): 0.5, ("bf16", False): 0.6}, 0.3, ("float32", False)),
        ({("float32", False): 0.1}, 0.0, ("float32", False)),
    ],
)
def test_the_fastest_way_that_computes_the_same_is_taken(data, seconds, error, found, monkeypatch):
    ways_of(monkeypatch, seconds, error)
    before = (net := tiny.network()).state_dict()
    among = ways.ways(torch.device("cpu"), "auto", "auto")
    assert len(among) == 4 and among[0] == ways.Way("float32", False)
    way, measured = ways.chosen(net, tiny.recipe(), tiny.feed(open_dataset(data)), among)
    assert way == ways.Way(*found) and len(measured["seconds"]) == 4
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_ways_are_those_that_were_asked_for_and_that_the_device_has(monkeypatch):
    cpu = torch.device("cpu")
    monkeypatch.setattr(ways, "has_bf16", lambda device: False)
    assert [str(w) for w in ways.ways(cpu, "auto", "auto")] == ["float32, contiguous", "float32, channels-last"]
    assert ways.ways(cpu, "fp16", "auto") == [ways.Way("fp16", False), ways.Way("fp16", True)]
    assert ways.ways(cpu, "auto", False) == [ways.Way("float32", False)]


def test_networks_with_group_normalisation_are_known():
    assert ways.has_group_norm(tiny.network()) and not ways.has_group_norm(build(**tiny.EDM2))
    assert ways.has_group_norm(torch.nn.Sequential(torch.nn.GroupNorm(2, 4)))


@pytest.mark.parametrize(
    ("device", "normalised", "last"), [("cpu", True, True), ("cuda", True, False), ("cuda", False, True)]
)
def test_the_default_layout_is_the_faster_one_on_the_device(device, normalised, last):
    """What the benchmarks measured: benchmarks/results/training-digits.json and gpu-h200.json."""
    found = ways.ways(torch.device(device), "bf16", None, normalised=normalised)
    assert found == [ways.Way("bf16", last)]
    asked = ways.ways(torch.device(device), "bf16", not last, normalised=normalised)
    assert asked == [ways.Way("bf16", not last)]


@pytest.mark.parametrize("steps", [10, 9])
def test_cudnn_times_its_kernels_in_long_runs_alone(data, steps, monkeypatch):
    """It takes longer than a short run gains."""
    assert session.TUNED_FROM > 1000
    monkeypatch.setattr(session, "TUNED_FROM", 10)
    found = []
    monkeypatch.setattr(session._Session, "run", lambda self: found.append(torch.backends.cudnn.benchmark))
    train(start(data, budget=f"{steps * tiny.recipe().batch / 1000}k"))
    assert found == [steps == 10]


@pytest.mark.parametrize("config", [tiny.EDM, tiny.EDM2], ids=["edm", "edm2"])
def test_the_error_of_a_body_is_told_in_noise_between_batches(data, config):
    """bf16's rounding is far below it and float32's further; of a body whose weights are wrong it is all of it."""
    recipe = tiny.recipe(objective="edm" if config is tiny.EDM else "edm2")
    trial = ways._Trial(build(**config), recipe, tiny.feed(open_dataset(data), config), False)
    errors = {body: trial.error(ways.Way(body, True)) for body in ("float32", "bf16")}
    assert 0 <= errors["float32"] < 1e-5 < errors["bf16"] < ways.PARITY
    gradient = trial.gradient
    trial.gradient = lambda way, number: gradient(way, number) * (1.0 if way.precision == "float32" else 2.0)
    assert trial.error(ways.Way("bf16", True)) > ways.PARITY


def test_what_was_measured_is_on_record_and_a_resumed_run_keeps_to_it(data, tmp_path, monkeypatch):
    auto = start(data, precision="auto", channels_last="auto", log_every="8", state_every="8")
    ways_of(monkeypatch, {("bf16", False): 0.5})
    whole = train(replace(auto, out="whole"))
    record = json.loads((whole.folder / "measured.json").read_text())
    assert (record["precision"], record["channels_last"], record["bf16_error"]) == ("bf16", False, 0.01)
    assert {(line["precision"], line["channels_last"]) for line in log(tmp_path / "whole")} == {("bf16", False)}
    assert json.loads((whole.folder / "settings.json").read_text())["settings"]["recipe"]["precision"] == "auto"
    assert checkpoints.summary(whole.checkpoint).record.training["recipe"]["precision"] == "bf16"
    with monkeypatch.context() as patch:
        patch.setattr(session._Session, "_save_snapshot", lambda self: (_ for _ in ()).throw(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            train(auto)
    ways_of(monkeypatch, {("float32", True): 0.1})  # what another measurement would choose
    auto_run = train(auto).folder
    asked = train(replace(auto, out="asked", precision="bf16", channels_last=False))
    found = [
        load_file(f / "snapshots/0000000080/ema/model.safetensors") for f in (whole.folder, auto_run, asked.folder)
    ]
    assert all(torch.equal(found[0][name], other[name]) for other in found[1:] for name in found[0])
    (tmp_path / "run/measured.json").write_text("{}")
    (tmp_path / "run/finished.json").unlink()
    with pytest.raises(InputError, match="it does not say how the run computes"):
        train(auto)


def test_ways_are_measured_in_earnest(data, tmp_path):
    train(start(data, precision="auto", channels_last="auto"))
    record = json.loads((tmp_path / "run/measured.json").read_text())
    seconds, plain = record["seconds"], "float32, contiguous"
    taken = str(ways.Way(record["precision"], record["channels_last"]))
    assert len(seconds) == 2 + 2 * ways.has_bf16(torch.device("cpu")) and min(seconds.values()) > 0
    assert taken == plain or seconds[taken] < ways.FASTER * seconds[plain]


# -------------------------------------------------------------------- what it leaves


def test_a_tracker_gets_the_log_s_lines_once_whatever_is_resumed(data, tmp_path, monkeypatch):
    from sims_image.training.trackers import TRACKERS

    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    seen, whole = [], start(data, sheet=0, log_every="16", state_every="32")
    monkeypatch.setitem(TRACKERS, "own", lambda out, images: seen.append((out, images)) or seen.append)
    train(replace(whole, track="own"))
    assert seen == [(Path("run"), 0), *log(tmp_path / "run")]

    def stop(self, *line):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(session._Session, "_save_snapshot", stop)
        with pytest.raises(KeyboardInterrupt):
            train(replace(whole, track="tensorboard", out="other"))
    train(replace(whole, track="tensorboard", out="other"))
    found = events.EventAccumulator(str(tmp_path / "other/tensorboard")).Reload()
    lines = log(tmp_path / "other")
    assert [(e.step, e.value) for e in found.Scalars("loss")] == [
        (line["images"], pytest.approx(line["loss"], rel=1e-6)) for line in lines
    ]
    with pytest.raises(InputError, match="track: got 'tensorbord'; did you mean 'tensorboard'"):
        train(replace(whole, track="tensorbord"))


def test_a_run_leaves_checkpoints_a_log_and_sheets(data, tmp_path, capsys):
    words = ["--preset", "tiny", "--data", data, "--out", "run"]
    words += ["--sheet", "2", "--snapshots", "24,0.05k", "--log-every", "16"]
    command(["train", *[w.replace("24,", "0.024k,") for w in words], "--device", "cpu"])
    said = capsys.readouterr().out
    folder = tmp_path / "run"
    assert sorted(p.name for p in folder.glob("snapshots/*")) == ["0000000024", "0000000056", "0000000080"]
    assert "0000000080/ema" in said and "0000000080/raw" in said
    lines = log(folder)
    assert [line["images"] for line in lines] == [16, 24, 32, 48, 56, 64, 80]
    assert all(0 < line["sigma"][0] < line["sigma"][1] and math.isfinite(line["loss"]) for line in lines)
    assert {"lr", "gradient", "images_per_second", "seconds", "step"} <= set(lines[0])
    assert [line["snapshot"][-2:] for line in lines if "snapshot" in line] == ["24", "56", "80"]
    last = checkpoints.load(folder / "snapshots/0000000080/ema")
    record = last.record
    assert (record.preset, record.images, record.mi, record.ema) == ("tiny", 80, 10**6, checkpoints.Ema("halflife", 40))
    assert record.data.name == "tiny" and record.data.classes == ("0", "1", "2") and record.parent is None
    assert record.training["recipe"]["lr"] == 1e-3 and record.training["step"] == 10
    assert last.network(torch.zeros(1, 3, 8, 8), torch.ones(1)).shape == (1, 3, 8, 8)
    assert not (folder / "snapshots/0000000024/raw").exists()
    with Image.open(folder / "snapshots/0000000080/sheet.png") as sheet:
        assert sheet.size[0] > 100 and len(sheet.convert("L").getcolors()) > 20
    state = torch.load(folder / "state.pt", weights_only=True)
    assert state["images"] == 80 and {"network", "optimizer", "averages", "seed"} <= set(state)
    done = json.loads((folder / "finished.json").read_text())
    assert done["images"] == 80 and done["loss"] == lines[-1]["loss"] and done["seconds"] > 0
    stamp = (folder / "state.pt").stat().st_mtime_ns
    again = train(start(data, snapshots="0.024k,0.05k", log_every="16"))
    assert again.already and (folder / "state.pt").stat().st_mtime_ns == stamp
    assert again.checkpoint.relative_to(tmp_path / "run" if again.checkpoint.is_absolute() else "run")
    with pytest.raises(InputError, match="other settings"):
        train(start(data, snapshots="0.024k,0.05k", log_every="16", lr=2e-3))


def test_the_raw_weights_are_the_optimisers_and_the_average_is_not(data):
    result = train(start(data, raw="always"))
    raw, average = (load_file(p / "model.safetensors") for p in (result.raw, result.checkpoint))
    state = torch.load("run/state.pt", weights_only=True)
    assert all(torch.equal(raw[k], state["network"][k]) for k in raw)
    assert any(not torch.equal(raw[k], average[k]) for k in raw)
    assert all((p / "raw").exists() for p in result.snapshots) and len(result.snapshots) == 10


def test_power_averages_can_be_reconstructed_from_a_run(data):
    """A width that was not kept, against the same run that kept it."""
    many = {"snapshot_every": "8", "sheet": 0, "budget": "0.24k"}
    kept = train(start(data, preset="tiny2", **many))
    wanted = train(start(data, preset="tiny2", out="other", ema_widths=(0.15,), **many))
    assert [p.name for p in sorted(kept.snapshots[-1].glob("ema*"))] == ["ema-0.100", "ema-0.200"]
    found = [s for folder in kept.snapshots for s in sorted(folder.glob("ema*"))]
    records = [checkpoints.summary(p).record for p in found]
    times, widths = [r.images for r in records], [r.ema.width for r in records]
    made = reconstruct((load_file(p / "model.safetensors") for p in found), times, widths, 240, 0.15)
    right = load_file(wanted.checkpoint / "model.safetensors")
    nearest = load_file(kept.checkpoint / "model.safetensors")
    error, gap = (math.sqrt(sum(float((a[k] - right[k]).square().sum()) for k in right)) for a in (made, nearest))
    assert error < 0.1 * gap
    assert records[0].mi == 2**20 and records[0].ema.kind == "power"


def test_digits_bring_their_data(tmp_path):
    settings = Train(preset="digits", budget="0.1k", out="run", sheet=0, network="model_channels=4,num_blocks=1")
    result = train(settings)
    record = checkpoints.summary(result.checkpoint).record
    assert record.data.shape == (1, 8, 8) and len(record.data.classes) == 10 and (tmp_path / "data/digits").is_dir()
    assert not plan(replace(settings, dry_run=True)).data


# --------------------------------------------------------------------- fine-tuning


def test_fine_tuning_starts_from_the_checkpoint_and_says_so(data, capsys):
    parent = tiny.checkpoint("base", preset="tiny", images=1000)
    result = train(
        Train(from_="base", data=data, budget="0.04k", out="run", lr_rampup="0.1k", ema_halflife="100k", sheet=0)
    )
    assert "it reaches 0.4 of 0.001" in capsys.readouterr().out
    raw, average = checkpoints.load(result.raw), checkpoints.load(result.checkpoint)
    assert raw.record.parent == average.record.parent == parent.sha256
    assert raw.record.images == 40 and raw.record.preset == "tiny"
    assert average.record.training["recipe"]["ema_rampup"] is None
    base, moved, kept = (load_file(p / "model.safetensors") for p in (parent.path, result.raw, result.checkpoint))
    key = "model.dec.8x8_block0.conv1.weight"
    way = float((kept[key] - base[key]).norm() / (moved[key] - base[key]).norm())
    assert 0 < way < 1e-3  # an average of 100k images has hardly seen 40
    last = log(result.folder)[-1]
    assert (
        last["ema_share"] == pytest.approx(average.record.training["ema_share_of_raw"]) and 0 < last["ema_share"] < 1e-3
    )
    assert len(list(result.folder.glob("snapshots/*/raw"))) == len(result.snapshots)


def test_a_fine_tuning_without_steps_to_speak_of_is_its_parent(data):
    parent = tiny.checkpoint("base", preset="tiny")
    result = train(Train(from_="base", data=data, budget="0.008k", lr=1e-30, out="run", sheet=0))
    base, found = (load_file(p / "model.safetensors") for p in (parent.path, result.checkpoint))
    assert all(torch.allclose(base[k], found[k], rtol=1e-6, atol=1e-12) for k in base)


def test_fine_tuning_can_keep_adams_state(data):
    """One step on the same gradient: m = beta1 m_parent + (1 - beta1) g, v alike, and the count runs on."""
    parent = train(start(data, out="base", raw="end", sheet=0))
    first, states = torch.load("base/state.pt", weights_only=True)["optimizer"], {}
    for adam in ("new", "kept"):
        train(Train(from_=str(parent.raw), adam=adam, data=data, budget="0.008k", out=adam, sheet=0))
        states[adam] = torch.load(f"{adam}/state.pt", weights_only=True)["optimizer"]
    (group,) = states["kept"]["param_groups"]
    for key, old in first["state"].items():
        new, kept = (states[adam]["state"][key] for adam in ("new", "kept"))
        assert (new["step"], kept["step"]) == (1, old["step"] + 1)
        for name, beta in zip(("exp_avg", "exp_avg_sq"), group["betas"], strict=True):
            torch.testing.assert_close(kept[name], beta * old[name] + new[name], rtol=1e-4, atol=1e-7)
    early, words = parent.snapshots[0] / "ema", "^adam: .*not the last checkpoint of a finished run"
    tiny.checkpoint("foreign", preset="tiny")
    for name in (str(early), "foreign"):
        with pytest.raises(InputError, match=words):
            plan(Train(from_=name, adam="kept", data=data, budget="1k"))
    for bad, told in (({"adam": "kept"}, "name it with `from_`"), ({"adam": "old"}, "choose from new, kept")):
        with pytest.raises(InputError, match=f"^adam: .*{told}"):
            plan(start(data, **bad))
    torch.save({"optimizer": {"state": {}}}, "base/state.pt")
    with pytest.raises(InputError, match=r"^adam: .*of another network"):
        train(Train(from_=str(parent.raw), adam="kept", data=data, budget="0.008k", out="damaged", sheet=0))


def test_share_of_way():
    start, raw = {"w": torch.zeros(2)}, {"w": torch.tensor([2.0, 0.0])}
    assert session.share_of_way(start, {"w": torch.tensor([0.5, 9.0])}, raw) == 0.25
    assert session.share_of_way(start, raw, start) == 0.0


# ------------------------------------------------------------------------ divergence


def test_divergence_keeps_what_was_good(data, monkeypatch):
    """The rate explodes after good snapshots: the run names the last, keeps it, and stops at the same step again."""
    monkeypatch.setattr(trainer, "learning_rate", lambda recipe, seen: 1e-3 if seen < 56 else 1e39)
    settings = start(data, budget="0.16k", snapshot_every="16", state_every="16", sheet=0)
    with pytest.raises(DivergedError, match="the weights were not finite in step 8") as caught:
        train(settings)
    assert caught.value.last_good == "run/snapshots/0000000048"
    assert checkpoints.load("run/snapshots/0000000048/ema").record.images == 48
    state = torch.load("run/state.pt", weights_only=True)
    assert state["images"] == 48 and all(value.isfinite().all() for value in state["network"].values())
    with pytest.raises(DivergedError) as again:
        train(settings)
    assert str(again.value) == str(caught.value) and not Path("run/finished.json").exists()


def test_the_command_prints_divergence_as_one_line(data):
    words = ["--preset", "tiny", "--data", data, "--lr", "1e25", "--sheet", "0", "--device", "cpu"]
    with pytest.raises(
        SystemExit, match=r"error: training diverged: the \w+ was not finite in step 2 .*last good: runs/train-tiny"
    ):
        command(["train", *words])


def test_a_full_disk_is_one_line_and_loses_nothing(data, monkeypatch):
    real = torch.save

    def full(state, path, *rest):
        if state["images"] >= 40:
            raise OSError(28, "No space left on device")
        real(state, path, *rest)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(InputError, match=r"^out.*No space left.*last good: run/snapshots/0000000040"):
        train(start(data))
    assert torch.load("run/state.pt", weights_only=True)["images"] == 32
    assert not [p for p in Path("run").rglob(".*.part*")]
    monkeypatch.setattr(torch, "save", real)
    whole, other = train(start(data)), train(start(data, out="other"))
    assert load_same(whole.checkpoint, other.checkpoint)


def load_same(a, b) -> bool:
    first, second = (load_file(p / "model.safetensors") for p in (a, b))
    return all(torch.equal(first[k], second[k]) for k in first)


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"preset": "tinny"}, r"^preset.*did you mean 'tiny'"),
        ({"preset": ""}, "^preset.*choose from cifar10-cond"),
        ({"data": ""}, "^data.*name a data set"),
        ({"data": "nowhere"}, "^data.*no such data set"),
        ({"from_": "nowhere"}, "^from_.*there is nothing"),
        ({"budget": "12"}, "^budget.*unit"),
        ({"budget": "0k"}, "^budget"),
        ({"budget": "5x"}, "^budget: got '5x'; a training length in images, with a unit: 50k, 200Mi$"),
        ({"log_every": "1.5"}, "^log_every: got '1.5'; give a number of images: 5000, 50k, 3Mi$"),
        ({"log_every": "0"}, "^log_every.*above 0"),
        ({"snapshots": "1Mi"}, "^snapshots.*training ends at 0.08k"),
        ({"snapshots": "soon"}, "^snapshots"),
        ({"lr": -1.0}, "^lr: .*positive"),
        ({"lr": math.inf}, "^lr: "),
        ({"lr_decay": "exponential"}, "^lr_decay.*choose from"),
        ({"precision": "fp8"}, "^precision"),
        ({"objective": "flow"}, "objective.*choose from edm, edm2"),
        ({"augment": 0.5, "preset": "tiny2"}, "^augment.*takes no augmentation labels"),
        ({"network": "dropout"}, "^network.*write name=value"),
        ({"network": "colour=3"}, "colour"),
        ({"network": "label_dim=4"}, "^data.*3 classes, the network has 4"),
        ({"microbatch": -1}, "^microbatch"),
        ({"device": "abacus"}, "^device"),
        ({"device": "cuda:99"}, "^device.*CUDA devices"),
        ({"raw": "never"}, "^raw"),
        ({"sampler": "heun"}, "^sampler"),
        ({"ema_widths": (0.1, 0.1001), "preset": "tiny2"}, "three decimals"),
        ({"ema_widths": (0.4,), "preset": "tiny2"}, "EMA width"),
        ({"seed": -1}, "^seed"),
    ],
)
def test_bad_input_is_refused_before_anything_is_trained(data, settings, words):
    with pytest.raises(InputError, match=words):
        train(start(data, **settings))
    assert not Path("run/snapshots").exists() and not Path("run/state.pt").exists()


def test_edm2_is_warned_about_on_small_pictures(tmp_path):
    """On CIFAR-10's size, whichever preset asks for it; not on latents of that size, nor on ImageNet-64."""
    small, large = (tiny.write_data(tmp_path / f"{side}.zip", size=side) for side in (32, 64))
    told = [plan(Train(preset="imagenet64-edm2-xs", data=str(one.path))).notes for one in (small, large)]
    assert ["above FID 10; EDM's (cifar10-cond" in "".join(notes) for notes in told] == [True, False]
    assert "FID 10" not in "".join(plan(Train(preset="cifar10-cond", data=str(small.path))).notes)
    known = {"shape": (4, 32, 32), "dtype": np.dtype("<f4"), "labels": None, "classes": [], "name": "f", "source": {}}
    write_folder(tmp_path / "latents", [np.ones((3, 4, 32, 32), "f4")], count=3, **known)
    latents = plan(Train(preset="imagenet512-edm2-xs", data=str(tmp_path / "latents"), network="label_dim=0"))
    assert "FID 10" not in "".join(latents.notes)


def test_data_and_network_must_agree(data, tmp_path):
    tiny.checkpoint("base", preset="tiny")
    unlabelled = str(tiny.write_data(tmp_path / "unlabelled.zip", classes=0).path)
    large = str(tiny.write_data(tmp_path / "large.zip", size=16).path)
    two = str(tiny.write_data(tmp_path / "two.zip", classes=2).path)
    for settings, words in [
        (start(unlabelled), "no labels, and the network is class-conditional"),
        (Train(from_="base", data=unlabelled, budget="1k"), "no labels, and the network is class-conditional"),
        (Train(from_="base", data=large, budget="1k"), "images are 3x16x16, the network takes 3x8x8"),
        (Train(from_="base", data=two, budget="1k"), "2 classes, the network has 3"),
        (Train(from_="base", data=data), "^budget"),
        (Train(from_="base", data=data, budget="1k", network="num_blocks=2"), "weights do not fit"),
    ]:
        with pytest.raises(InputError, match=words):
            train(replace(settings, out="run", device="cpu"))
    assert plan(start(large)).notes == ("the images are 3x16x16; preset tiny was made for 3x8x8",)
    huge = str(tiny.write_data(tmp_path / "huge.zip", size=32).path)
    with pytest.raises(InputError, match=r"^data: .*3x32x32, and the preset is for 3x8x8: choose cifar10-cond, .*"
                                         r"train with `network` img_resolution=32"):  # fmt: skip
        plan(start(huge))
    assert plan(start(huge, network="img_resolution=32")).config["img_resolution"] == 32
    free = plan(start(unlabelled, network="label_dim=0"))
    assert free.config["label_dim"] == 0


def test_a_dry_run_says_first_what_is_odd_and_refuses_a_folder_of_another_run(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "rate", lambda *_, **__: 1e11)
    large = str(tiny.write_data(tmp_path / "large.zip", size=16).path)
    words = ["train", "--preset", "tiny", "--data", large, "--device", "cpu", "--dry-run", "--out", str(tmp_path / "o")]
    command(words)
    said = capsys.readouterr().out
    assert said.startswith("note: the images are 3x16x16; preset tiny was made for 3x8x8\n")
    assert "about 1 s of one A100" in said and not (tmp_path / "o").exists()
    RunFolder.open(tmp_path / "o", plan(Train(preset="tiny", data=large)).settings).close()
    (tmp_path / "o" / "log.jsonl").write_text("{}\n")
    command(words)
    with pytest.raises(InputError, match=r"--out: .*\(recipe.p_mean: -1.2 there, -1.0 here\)"):
        command([*words, "--p-mean", "-1"])


def test_a_checkpoint_without_a_preset_needs_one(data):
    tiny.checkpoint("base")
    with pytest.raises(InputError, match="does not say by which preset"):
        plan(Train(from_="base", data=data, budget="1k"))
    assert plan(Train(from_="base", data=data, budget="1k", preset="tiny")).recipe.images == 1000


def test_a_foreign_state_is_refused(data):
    train(start(data))
    Path("run/finished.json").unlink()
    Path("run/state.pt").write_bytes(b"not a state")
    with pytest.raises(InputError, match=r"training state.*not a file of plain tensors"):
        train(start(data))
    torch.save({"format": 1, "settings": "{}"}, "run/state.pt")
    with pytest.raises(InputError, match="another run"):
        train(start(data))


# --------------------------------------------------------------------------- settings


def test_sheets_take_less_than_a_tenth_of_the_time(data):
    """80 images of 35 evaluations are as much work as 933 images trained on: by default one each 9,333 images."""

    def seen(**options):
        planned = plan(Train(preset="digits", dry_run=True, **options))
        return [step * planned.table.batch for step in sorted(planned.sheets)], len(planned.table.snapshots)

    assert seen(budget="5k")[0] == [5120]
    every, count = seen(budget="200k")
    assert len(every) == count
    first, count = seen(budget="50k")
    assert 4 <= len(first) < count and min(np.diff([0, *first[:-1]])) >= 9333
    asked, count = seen(budget="5k", sheet=8)
    assert len(asked) == count and seen(budget="5k", sheet=0)[0] == []


def test_every_recipe_setting_has_an_option():
    assert {f.name for f in fields(Recipe)} - {f.name for f in fields(Train)} <= {"mi"}


def test_options_override_the_preset(data):
    given = {
        **{"batch": 16, "lr": 5e-4, "lr_rampup": "0.016k", "lr_decay": "inverse-sqrt", "lr_decay_steps": 3},
        **{"beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "ema": "power", "ema_widths": (0.07,), "augment": 0.2},
        **{"p_mean": -0.4, "p_std": 1.0, "precision": "bf16", "loss_scale": 2.0, "budget": "0.16k"},
    }
    recipe = asdict(plan(start(data, **given)).recipe)
    assert recipe["lr_rampup"] == 16
    assert all(recipe[k] == v for k, v in given.items() if k != "lr_rampup")
    assert plan(start(data, ema_rampup=0.0)).recipe.ema_rampup is None
    config = plan(start(data, network="dropout=0.3,channel_mult=[1,1],embedding_type=fourier")).config
    assert (config["dropout"], config["channel_mult"], config["embedding_type"]) == (0.3, [1, 1], "fourier")


def test_mi_is_what_the_preset_counts(data):
    assert plan(start(data, budget="1Mi")).recipe.images == 10**6
    two = plan(start(data, preset="tiny2", budget="1Mi", snapshots="0.5Mi", lr_rampup="10M"))
    assert two.recipe.images == 2**20 and two.recipe.lr_rampup == 10**7
    assert [s * 8 for s in two.table.snapshots] == [2**19, 2**20] and two.settings["recipe"]["mi"] == 2**20


def test_augmentation_gives_the_network_its_labels(data):
    assert plan(start(data, augment=0.1)).config["augment_dim"] == 9
    result = train(start(data, augment=0.5, budget="0.016k", sheet=0))
    assert checkpoints.summary(result.checkpoint).config["augment_dim"] == 9


# -------------------------------------------------------------------------- schedules


def test_learning_rates():
    edm = Recipe(batch=512, lr=1e-3, lr_rampup=10_000_000)
    assert [learning_rate(edm, n) for n in (0, 5_000_000, 10**7, 10**8)] == pytest.approx([0, 5e-4, 1e-3, 1e-3])
    edm2 = replace(edm, batch=2048, lr=0.01, lr_decay="inverse-sqrt", lr_decay_steps=35_000)
    reference = 35_000 * 2048
    assert learning_rate(edm2, 10**6) == pytest.approx(0.001)
    assert learning_rate(edm2, reference) == pytest.approx(0.01)
    assert learning_rate(edm2, 4 * reference) == pytest.approx(0.005)
    assert learning_rate(edm2, 9 * reference) == pytest.approx(0.01 / 3)
    cosine = Recipe(batch=8, budget="1k", lr=2.0, lr_rampup=0, lr_decay="cosine")
    found = [learning_rate(cosine, n) for n in (0, 250, 500, 1000, 2000)]
    assert found == pytest.approx([2, 1 + math.sqrt(0.5), 1, 0, 0])


def test_a_ramp_that_never_ends_is_named():
    short = Recipe(budget="6Mi")
    assert "6,000,000: it reaches 0.6 of 0.001" in ramp_warning(short)
    assert ramp_warning(Recipe()) is None and ramp_warning(replace(short, lr_rampup=0)) is None


def test_timetable():
    recipe = Recipe(batch=100, budget="10k")
    table = timetable(recipe, snapshots="1k,2.55k", log="0.3k", state="2k")
    assert (table.steps, table.snapshots) == (100, (10, 26, 100))
    assert [s for s in range(1, 31) if table.logs(s)] == [3, 6, 9, 10, 12, 15, 18, 21, 24, 26, 27, 30]
    assert [s for s in range(1, 101) if table.saves(s)] == [10, 21, 26, 42, 63, 84, 100]
    assert timetable(recipe, every="3k").snapshots == (30, 60, 90, 100)
    assert timetable(recipe, snapshots="1k", every="5k").snapshots == (10, 50, 100)
    assert len(timetable(recipe).snapshots) == 10
    assert len(timetable(replace(recipe, ema="power", budget="64k")).snapshots) == 32
    assert timetable(Recipe(batch=512, budget="200Mi")).log == round(50_000 / 512)
    assert timetable(Recipe(batch=512, budget="0.1k")).snapshots == (1,)


def test_shares():
    assert shares("--batch", 512, 8, 0) == (64, 1) and shares("--batch", 512, 8, 20) == (16, 4)
    assert shares("--batch", 96, 1, 500) == (96, 1)
    with pytest.raises(InputError, match="3 processes share a batch evenly"):
        shares("--batch", 512, 3, 0)


# --------------------------------------------------------------------------- dry runs


@pytest.mark.parametrize("name", [n for n, preset in PRESETS.items() if n != "tiny" and preset.network])
def test_dry_run_of_every_preset(name, monkeypatch, capsys):
    monkeypatch.setattr(estimate, "rate", lambda *_, **__: 1e11)  # timed in its own test
    command(["train", "--preset", name, "--dry-run", "--device", "cpu"])
    said = capsys.readouterr().out
    parameters = {"cifar10-cond": 55_735_299, "ffhq64": 61_805_571, "imagenet64-edm2-xl": 1_119_276_837}
    for word in ("parameters", "memory", "time here", "time on GPUs", "lr_rampup", "network.model_channels", "out"):
        assert word in said
    assert f"{parameters.get(name, 0):,}" in said
    mi = "2^20" if "edm2" in name else "10^6"
    assert f"Mi = {mi}" in said


def test_costs_are_counted():
    """Of one convolution's worth: EDM2-S has 280 M parameters and 102 GFLOP a forward pass (EDM2, Table 2: Mac)."""
    cost = estimate.measure(PRESETS["imagenet64-edm2-s"].config(), PRESETS["imagenet64-edm2-s"].recipe)
    assert cost.parameters == 280_209_381 and cost.flops / 3 / 2 == pytest.approx(102e9, rel=0.03)
    adm = PRESETS["imagenet64-adm"]
    assert estimate.measure(adm.config(), adm.recipe).flops / 6 == pytest.approx(110e9, rel=0.03)
    small = estimate.measure(tiny.EDM, tiny.recipe())
    assert small.memory(20, 1) - small.memory(10, 1) == 10 * small.activations > 0
    assert small.memory(0, 2) - small.memory(0, 1) == 4 * small.parameters
    assert 1e6 < estimate.rate(tiny.EDM, tiny.recipe(), small.flops, torch.device("cpu")) < 1e14


def test_activations_are_what_training_keeps():
    """Against the tensors that a real backward pass of two batch sizes holds."""
    config, recipe = tiny.EDM, tiny.recipe()
    net = tiny.network(config).train()
    held = []
    for images in (4, 8):
        kept = {}

        def keep(t, kept=kept):
            kept[t.untyped_storage().data_ptr()] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            loss = estimate._loss(net, recipe, images, "cpu")
        own = {p.untyped_storage().data_ptr() for p in net.parameters()}
        held.append(sum(t.untyped_storage().nbytes() for k, t in kept.items() if k not in own))
        del loss
    assert estimate.measure(config, recipe).activations == pytest.approx((held[1] - held[0]) / 4, rel=0.1)


EDM = Recipe(batch=256, lr=1e-3, lr_rampup=10_000_000, ema_halflife=500_000, ema_rampup=None)


def closed_form(images, halflife, *, ramp):
    a = math.log(2) * images / halflife
    return 1 - 2 / a + 2 / a**2 * (1 - math.exp(-a)) if ramp else 1 - (1 - math.exp(-a)) / a


@pytest.mark.parametrize(("millions", "share"), [(0.05, 0.023), (1, 0.34), (3, 0.63), (6, 0.79)])
def test_the_averages_share_of_a_steady_drift(millions, share):
    """EDM's order of updates, one by one: rate by the images before the step, step, average; and the closed forms."""
    for ramp in (True, False):
        recipe = replace(EDM, budget=f"{millions}Mi", lr_rampup=EDM.lr_rampup if ramp else 0)
        raw = average = 0.0
        for seen in range(0, recipe.images, recipe.batch):
            rate = recipe.lr * (min(seen / 10e6, 1) if ramp else 1)
            raw += rate  # Adam's step, always the same way
            average += (raw - average) * (1 - 0.5 ** (recipe.batch / recipe.ema_halflife))
        found = drift_share(recipe, profiles(recipe)[0])
        assert found == pytest.approx(average / raw, rel=1e-9)
        assert found == pytest.approx(closed_form(recipe.images, 500_000, ramp=ramp), abs=2e-3)
        if ramp:
            assert round(found, 3 if millions < 1 else 2) == share
    assert f"the average holds {share:.2g} of" in average_note(replace(EDM, budget=f"{millions}Mi"))


def test_the_averages_share_in_other_recipes():
    """OT-CFM's 390 and 7,812 steps at .9999; a power profile and a cosine against their own updates."""
    halflife = 128 * math.log(0.5) / math.log(0.9999)
    for steps, share in ((390, 0.019), (7812, 0.31)):
        recipe = Recipe(batch=128, budget=f"{steps * 0.128:.3f}k", lr=2e-4, lr_rampup=0, ema_halflife=round(halflife))
        found = drift_share(replace(recipe, ema_rampup=None), HalfLife(halflife, None))
        assert found == pytest.approx(share, abs=5e-3 if steps > 1000 else 5e-4)
    cosine = replace(EDM, batch=64, budget="20k", lr_rampup=1000, lr_decay="cosine")
    for profile in (Power(0.1), HalfLife(3000, 0.05)):
        raw = average = 0.0
        for seen in range(0, cosine.images, cosine.batch):
            raw += learning_rate(cosine, seen)
            average += (raw - average) * (1 - profile.keep(seen, cosine.batch))
        assert drift_share(cosine, profile) == pytest.approx(average / raw, rel=1e-9)


def test_profiles_of_the_recipes():
    assert profiles(PRESETS["cifar10-cond"].recipe) == [HalfLife(500_000, 0.05)]
    assert profiles(PRESETS["imagenet64-edm2-s"].recipe) == [Power(0.05), Power(0.1)]
    assert np.isclose(profiles(PRESETS["imagenet64-adm"].recipe)[0].halflife, 50e6)
