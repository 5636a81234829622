"""A checkpoint comes back as it went in, or says what is wrong with it; it is never half there."""

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sims_core.errors import InputError
from sims_core.lab import placing
from sims_image.models import checkpoints
from sims_image.models.checkpoints import Data, Ema, Record, load, locate, save, summary
from tests.image import networks
from tests.image.networks import denoise

SONG = {"img_resolution": 8, "img_channels": 1, "label_dim": 3, "model_type": "SongUNet", "model_channels": 16}
SONG |= {"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "augment_dim": 9, "dropout": 0.1}
EDM2 = {"img_resolution": 8, "img_channels": 4, "label_dim": 0, "model_channels": 32, "channel_mult": [1, 2]}
EDM2 |= {"num_blocks": 1, "attn_resolutions": [4]}
IDDPM = {"class_name": "iDDPMPrecond"}
RECORD = Record(
    preset="digits",
    data=Data("digits", "ab" * 32, ("zero", "one", "two"), (1, 8, 8)),
    images=134217728,
    mi=2**20,
    ema=Ema("power", 0.05),
    parent="cd" * 32,
    training={"lr": 1e-3, "betas": [0.9, 0.99], "augment": None},
    provenance={"source": "a test", "nested": {"a": [1, 2.5, "x", None, True]}},
)


def network(config, seed=0):
    return networks.network(seed, **config)


def edit(folder, change):
    path = folder / "model.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def reseal(folder):
    """Record the weights' hash anew, as whoever tampers with a checkpoint would."""
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    edit(folder, lambda content: content.update(weights_sha256=digest))


@pytest.fixture(scope="module")
def song():
    return network(SONG)


@pytest.fixture
def folder(tmp_path, song):
    save(tmp_path / "model", song, RECORD)
    return tmp_path / "model"


@pytest.mark.parametrize("config", [SONG, EDM2, EDM2 | {"resample_filter": [1, 3, 3, 1]}, SONG | IDDPM])
def test_what_is_saved_comes_back(tmp_path, config):
    net = network(config)
    expected = denoise(net)
    assert expected.std() > 0.1
    saved, drawn = save(tmp_path / "a" / "model", net, RECORD), torch.get_rng_state()
    for path in (tmp_path / "a" / "model", saved.path / "model.safetensors", str(saved.path / "model.json")):
        found = load(path)
        assert torch.equal(denoise(found.network), expected)
        assert found.record == RECORD and found.config == net.config and found.path == saved.path
        assert not found.network.training and not any(p.requires_grad for p in found.network.parameters())
        assert found.sha256 == hashlib.sha256((saved.path / "model.safetensors").read_bytes()).hexdigest()
        assert found.parameters == sum(p.numel() for p in net.parameters())
    assert sorted(os.listdir(saved.path)) == ["model.json", "model.safetensors"]
    assert os.listdir(tmp_path / "a") == ["model"]
    assert torch.equal(torch.get_rng_state(), drawn), "loading draws nothing"
    kinds = {"Precond": "edm2", "iDDPMPrecond": "iddpm", "EDMPrecond": "edm"}
    assert found.preconditioning == kinds[net.config["class_name"]]


def test_the_same_weights_have_the_same_hash(tmp_path, song):
    turned = copy.deepcopy(song).to(memory_format=torch.channels_last).double()
    other = network(SONG, seed=1)
    hashes = [save(tmp_path / str(k), n, RECORD).sha256 for k, n in enumerate((song, turned, other))]
    assert hashes[0] == hashes[1] != hashes[2]
    assert {v.dtype for v in load_file(tmp_path / "1" / "model.safetensors").values()} == {torch.float32}


def test_budget_and_average_keep_their_units(tmp_path, song):
    assert RECORD.budget == "128 Mi (134217728 images; Mi = 2^20)"
    assert Record(images=200_000_000).budget == "200 Mi (200000000 images; Mi = 10^6)"
    assert Record().budget == "unknown"
    save(tmp_path / "m", song, Record(images=5, ema=Ema("halflife", 500_000)))
    found = summary(tmp_path / "m").record
    assert (found.images, found.mi, found.ema) == (5, 10**6, Ema("halflife", 500_000))
    assert {"version", "platform", "started"} <= set(found.provenance)
    for bad in ({"mi": 1000}, {"images": -1}):
        with pytest.raises(InputError, match=r"mi|images"):
            Record(**bad)
    for bad in (("halflive", 1.0), ("power", -0.1), ("power", float("nan"))):
        with pytest.raises(InputError, match=r"ema\."):
            Ema(*bad)


# ------------------------------------------------------------------- writing


def test_what_is_there_is_kept(tmp_path, song, folder):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for path, words in ((tmp_path / "notes", "something else"), (tmp_path / "file", "something else")):
        with pytest.raises(InputError, match=words):
            save(path, song, RECORD, replace=True)
    with pytest.raises(InputError, match="a checkpoint is there"):
        save(folder, network(SONG, seed=2), RECORD)
    assert torch.equal(denoise(load(folder).network), denoise(song))
    save(folder, network(SONG, seed=2), RECORD, replace=True)
    assert torch.equal(denoise(load(folder).network), denoise(network(SONG, seed=2)))
    (tmp_path / "empty").mkdir()
    save(tmp_path / "empty", song, RECORD)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "model", "notes"]


@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.parametrize("broken", ["write_json", "sha256_file", "_sync"])
def test_a_failed_write_leaves_what_was_there(tmp_path, song, folder, monkeypatch, broken, replace):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(placing if broken == "_sync" else checkpoints, broken, full)
    place = folder if replace else tmp_path / "new"
    with pytest.raises(InputError, match="No space left on device"):
        save(place, network(SONG, seed=3), RECORD, replace=replace)
    monkeypatch.undo()
    assert set(os.listdir(tmp_path)) <= {"model", "new"}
    if broken != "_sync":  # which comes after the move
        assert os.listdir(tmp_path) == ["model"]
        assert torch.equal(denoise(load(folder).network), denoise(song))


def test_a_disk_that_is_full_while_the_weights_are_written(tmp_path, song, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(InputError, match="No space left on device"):
        save(tmp_path / "model", song, RECORD)
    assert os.listdir(tmp_path) == []


KILLED = """
import os, sys
from sims_image.models import checkpoints
from tests.image.test_checkpoints import RECORD, SONG, network

def counted(real):
    def call(*a, **k):
        if count[0] == stop:
            os._exit(9)
        count[0] += 1
        return real(*a, **k)
    return call

replace, real = sys.argv[2] == "replace", (os.replace, os.fsync)
net = network(SONG, seed=5)
for stop in range(9):
    count, place = [0], f"{sys.argv[1]}/{stop}/model"
    if replace:
        checkpoints.save(place, network(SONG, seed=4), RECORD)
    if not os.fork():
        os.replace, os.fsync = map(counted, real)
        checkpoints.save(place, net, RECORD, replace=replace)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""


@pytest.mark.parametrize("way", ["new", "replace"])
def test_killed_at_any_instant(tmp_path, song, way):
    """Killed before each system call that makes something last, a save leaves nothing or all; the next cleans up."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path), way], capture_output=True, text=True)
    ends = [int(line) for line in done.stdout.split()]
    assert len(ends) == 9 and set(ends) == {0, 9} and ends.count(9) >= 4, done.stderr
    wanted = [denoise(network(SONG, seed=k)) for k in (4, 5)]
    gone = 0
    for stop, end in enumerate(ends):
        place = tmp_path / str(stop) / "model"
        if place.exists():
            there = denoise(load(place).network)
            assert torch.equal(there, wanted[1]) or (way == "replace" and end == 9 and torch.equal(there, wanted[0]))
        else:
            gone += 1
            assert end == 9
            refused(place, "there is nothing")
            if way == "replace":  # the one instant without: the old one lies beside
                (old,) = place.parent.glob(".model.*.old")
                assert torch.equal(denoise(load(old).network), wanted[0])
        save(place, song, RECORD, replace=True)
        assert os.listdir(place.parent) == ["model"]
    assert gone == (1 if way == "replace" else 4)


def test_diverged_networks_are_not_saved(tmp_path):
    net = network(SONG)
    with torch.no_grad():
        net.model.map_layer0.bias[3] = float("nan")
    with pytest.raises(InputError, match=r"model\.map_layer0\.bias.*not all finite"):
        save(tmp_path / "model", net, RECORD)
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------- reading


def refused(path, match):
    with pytest.raises(InputError, match=match) as error:
        load(path)
    assert "\n" not in str(error.value)


def test_what_is_not_a_checkpoint(tmp_path, folder):
    (tmp_path / "net.pkl").write_bytes(b"\x80\x04N.")
    refused(tmp_path / "net.pkl", f"run: sims_image import-nvidia {tmp_path / 'net.pkl'}")
    refused(tmp_path / "nothing", "there is nothing")
    refused(tmp_path, f"checkpoints lie below it, such as {folder}")
    for name in ("0000000500/ema", "0000001000/raw", "0000001000/ema", "0000001000/posthoc-0.1000"):
        shutil.copytree(folder, tmp_path / "run/snapshots" / name)
    refused(tmp_path / "run", f"such as {tmp_path / 'run/snapshots/0000001000/ema'}$")
    (tmp_path / "file.txt").write_text("a")
    refused(tmp_path / "file.txt", "not a checkpoint; name a folder")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "not a checkpoint")
    with pytest.raises(InputError, match="--base"):
        locate(tmp_path / "empty", argument="--base")


@pytest.mark.parametrize("name", ["model.json", "model.safetensors"])
def test_a_file_is_missing(folder, name):
    (folder / name).unlink()
    refused(folder, f"the checkpoint has no {name}")


def test_damaged_weights(folder):
    whole = (folder / "model.safetensors").read_bytes()
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for data in (b"", whole[:7], whole[:100], whole[:-1], whole + b"0", bytes(flipped)):
        (folder / "model.safetensors").write_bytes(data)
        refused(folder, "truncated or changed")
    for data in (b"", whole[:7], whole[:100], whole[:-1], whole + b"0", b"\xff" * 8 + whole[8:]):
        (folder / "model.safetensors").write_bytes(data)
        reseal(folder)
        refused(folder, "not a whole safetensors file")


def test_weights_of_another_architecture(folder):
    weights = load_file(folder / "model.safetensors")
    name = "model.map_layer0.weight"
    for change, match in (
        (lambda w: w.pop(name), f"the file lacks {name}"),
        (lambda w: w.update(extra=torch.zeros(1)), "holds, and its network has no place for, extra"),
        (lambda w: w.update({name: torch.zeros(3, 3)}), rf"{name} is torch.float32 \(3, 3\)"),
        (lambda w: w.update({name: w[name].half()}), f"{name} is torch.float16"),
    ):
        changed = dict(weights)
        change(changed)
        save_file(changed, folder / "model.safetensors")
        reseal(folder)
        refused(folder, match)


def test_damaged_records(folder):
    whole = (folder / "model.json").read_text()
    for text in ("", "{", whole[: len(whole) // 2], "[]", '{"a": 1, "a": 2}'):
        (folder / "model.json").write_text(text)
        refused(folder, r"model\.json")
    for change, match in (
        (lambda c: c.update(format=2), r"newer sims_image \(format 2, known is 1\); upgrade"),
        (lambda c: c.update(kind="a letter"), "not a checkpoint of sims_image"),
        (lambda c: c.pop("format"), "not a checkpoint of sims_image"),
        (lambda c: c.pop("network"), "'network' is missing"),
        (lambda c: c.pop("weights_sha256"), "'weights_sha256' is missing"),
        (lambda c: c["record"].pop("parent"), "record must hold"),
        (lambda c: c["record"].update(images="many"), "record.images is a str"),
        (lambda c: c["record"].update(mi=3), "one Mi counts"),
        (lambda c: c["record"]["data"].update(shape=[1, 2]), "shape"),
        (lambda c: c["record"]["data"].pop("name"), "'name' is missing"),
        (lambda c: c["record"].update(ema={"kind": "best", "width": 1}), "choose from none"),
        (lambda c: c["record"].update(ema=None), "damaged"),
        (lambda c: c["network"].update(model_type="VisionTransformer"), "cannot be built.*VisionTransformer"),
        (lambda c: c["network"].update(colour="red"), "cannot be built.*colour"),
        (lambda c: c["network"].update(model_channels="wide"), "cannot be built"),
        (lambda c: c["network"].update(model_channels=32), "another architecture"),
        (lambda c: c["network"].update(model_channels=2**30), "another architecture|cannot be built"),
        (lambda c: c["network"].update(num_blocks=2), "another architecture: the file lacks"),
    ):
        (folder / "model.json").write_text(whole)
        edit(folder, change)
        refused(folder, match)
    (folder / "model.json").write_text(whole)
    load(folder)
