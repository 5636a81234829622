"""NVIDIA's files become checkpoints of the same networks; statistics and everything else say what they are."""

import argparse
import hashlib
import json
import pickle
from collections import OrderedDict

import numpy as np
import pytest
import torch

from sims_core.errors import InputError
from sims_core.lab.command import main_with_errors
from sims_core.lab.runs import RunFolder
from sims_image.commands import run
from sims_image.info import describe
from sims_image.metrics.references import read_statistics
from sims_image.models.checkpoints import Data, Ema, Record, load, save
from sims_image.models.networks import build
from sims_image.models.nvidia.convert import import_nvidia, read_snapshot
from sims_image.models.presets import PRESETS
from tests.image import networks
from tests.image.networks import denoise
from tests.image.nvidia_files import Persistent, dump, module_state, stored_network

SONG = {"model_type": "SongUNet", "model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1}
SONG |= {"img_resolution": 8, "img_channels": 3, "label_dim": 4, "attn_resolutions": [4], "augment_dim": 9}
NCSN = SONG | {"embedding_type": "fourier", "encoder_type": "residual", "channel_mult_noise": 2}
NCSN |= {"resample_filter": [1, 3, 3, 1], "label_dim": 0, "augment_dim": 0}
ADM = {"img_resolution": 8, "img_channels": 3, "label_dim": 4, "model_channels": 32, "channel_mult": [1, 2]}
ADM |= {"num_blocks": 1, "attn_resolutions": [4]}
EDM2 = ADM | {"use_fp16": True, "dropout": 0.1, "img_channels": 4}
CASES = {
    "DDPM++": ("EDMPrecond", SONG),
    "NCSN++": ("EDMPrecond", NCSN | {"sigma_max": float("inf"), "dropout": np.float64(0.1)}),
    "ADM": ("EDMPrecond", ADM),  # the class's own choice of network is recorded only if it was made
    "VP": ("VPPrecond", SONG | {"M": 500}),
    "VE": ("VEPrecond", {k: v for k, v in NCSN.items() if k != "model_type"}),
    "iDDPM": ("iDDPMPrecond", ADM | {"C_2": 0.01}),
    "EDM2": ("Precond", EDM2),
}
KINDS = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve", "iDDPMPrecond": "iddpm", "Precond": "edm2"}


def network(class_name, arguments):
    return networks.network(class_name=class_name, **arguments)


def edm_extras():
    data = {"class_name": "training.dataset.ImageFolderDataset", "path": "/data/some-32x32.zip", "use_labels": True}
    loss = Persistent("EDMLoss", {"P_mean": -1.2, "P_std": 1.2, "_init_args": (), "_init_kwargs": {}})
    pipe = Persistent("AugmentPipe", {"p": 0.12, "xflip": 1e8, "scale_std": float("inf")})
    return {"loss_fn": loss, "augment_pipe": pipe, "dataset_kwargs": data}


def edm2_extras():
    scale = (np.float32([0.5]) / np.float32([4.17, 4.62, 3.71, 3.28])).astype(np.float32)
    bias = -np.float32([5.81, 3.25, 0.12, -2.15]) * scale
    encoder = Persistent("StabilityVAEEncoder", {"scale": scale, "bias": bias, "vae_name": "a", "_vae": None})
    return {"encoder": encoder, "dataset_kwargs": {"path": "img512.zip"}, "loss_fn": Persistent("EDM2Loss", {})}


def write(path, case, protocol=4, half=False, **options):
    class_name, arguments = CASES[case]
    net = network(class_name, arguments)
    stored = stored_network(class_name, arguments, net, half=half, **options)
    extras = edm2_extras() if case == "EDM2" else edm_extras()
    return dump(path, {"ema": stored, **extras}, protocol=protocol, easy=case == "EDM2"), net


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("case", CASES)
def test_the_network_arrives_as_it_was(tmp_path, case, protocol):
    path, net = write(tmp_path / "file.pkl", case, protocol)
    expected = denoise(net)
    assert expected.std() > 0.1
    found = import_nvidia(path, tmp_path / "model")
    again = load(tmp_path / "model")
    for imported in (found.network, again.network):
        assert torch.equal(denoise(imported), expected) and not imported.training
        assert imported.config == net.config
    assert found.record == again.record and found.sha256 == again.sha256
    assert found.preconditioning == KINDS[CASES[case][0]]


@pytest.mark.parametrize("name", networks.CASES)
def test_published_outputs_come_out_after_the_import(tmp_path, name):
    case = networks.CASES[name]
    net = build(**case.config)
    net.load_state_dict(case.state, strict=True)
    arguments = {k: v for k, v in case.config.items() if k != "class_name"}
    path = dump(tmp_path / "a.pkl", {"ema": stored_network(net.config["class_name"], arguments, net)})
    imported = import_nvidia(path, tmp_path / "model").network
    with torch.no_grad():
        got = imported(**case.inputs, force_fp32=True)
    for one, published in zip(got, case.denoised, strict=True):
        assert networks.relative(one, published) < 1e-5


def test_half_precision_becomes_float32(tmp_path):
    path, net = write(tmp_path / "file.pkl", "EDM2", half=True)
    found = import_nvidia(path, tmp_path / "model").network
    assert {v.dtype for v in found.state_dict().values()} == {torch.float32}
    assert torch.equal(denoise(found), denoise(net.half().float()))


def test_what_the_file_records_is_kept(tmp_path):
    path, _ = write(tmp_path / "network-snapshot-002500.pkl", "DDPM++")
    record = import_nvidia(path, tmp_path / "model").record
    assert record.data == Data("some-32x32", None, (), (3, 8, 8))
    assert (record.images, record.mi, record.ema) == (2_500_000, 10**6, Ema("halflife"))
    told = record.provenance
    assert told["source"] == path.name and told["class"] == "EDMPrecond"
    assert told["source_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert told["settings"]["loss_fn"] == {"class": "EDMLoss", "P_mean": -1.2, "P_std": 1.2}
    assert told["settings"]["augment_pipe"] == {"class": "AugmentPipe", "p": 0.12, "xflip": 1e8, "scale_std": "inf"}
    path, _ = write(tmp_path / "edm2-img64-s-1073741-0.075.pkl", "EDM2")
    found = import_nvidia(path, tmp_path / "model2")
    record, latents = found.record, found.autoencoder
    assert latents.files == () and latents.lowest == 0  # the scale alone: its autoencoder is to be named by --decode
    assert latents.mean == pytest.approx((5.81, 3.25, 0.12, -2.15))
    assert latents.std == pytest.approx((4.17, 4.62, 3.71, 3.28))
    assert (record.images, record.mi, record.ema) == (1024 * 2**20, 2**20, Ema("power", 0.075))
    assert record.budget.startswith("1024 Mi")
    assert record.provenance["settings"]["encoder"]["scale"] == pytest.approx(
        [0.5 / s for s in (4.17, 4.62, 3.71, 3.28)]
    )
    path, _ = write(tmp_path / "mine.pkl", "EDM2")
    record = import_nvidia(path, tmp_path / "model3").record
    assert (record.images, record.mi, record.ema) == (None, 2**20, Ema("unknown"))


def test_every_multiple_of_edm2s_count_is_recovered(tmp_path):
    """EDM2 names files by thousands of images, rounded down; its counts are multiples of 1024."""
    from sims_image.models.nvidia.convert import Snapshot, _training

    snapshot = Snapshot(tmp_path, "Precond", {}, {}, {})
    for images in [*range(1024 * 98_000, 1024 * 98_200, 1024), 2147483648, 939524096]:
        assert _training(f"edm2-img512-xxl-{images // 1000:07d}-0.015", snapshot)[0] == images


def test_presets_are_recognised_by_their_architecture():
    from sims_image.models.nvidia.convert import _preset

    for name, preset in ((name, preset) for name, preset in PRESETS.items() if preset.network):
        with torch.device("meta"):
            config = build(**preset.config()).config
        assert _preset(config | {"use_fp16": True}) == name
    assert _preset(config | {"num_blocks": 9}) is None


def test_arguments_without_names(tmp_path):
    class_name, arguments = CASES["DDPM++"]
    named = {k: v for k, v in arguments.items() if k not in ("img_resolution", "img_channels", "label_dim")}
    net = network(class_name, arguments)
    stored = stored_network(class_name, named, net, positional=(8, 3, 4))
    found = import_nvidia(dump(tmp_path / "a.pkl", {"ema": stored}), tmp_path / "a")
    assert torch.equal(denoise(found.network), denoise(net)) and found.record.data is None


def test_the_forms_of_older_torch_and_numpy(tmp_path):
    """Ordered dictionaries throughout, and numpy's parts under their names before its version 2."""
    class_name, arguments = CASES["DDPM++"]
    net = network(class_name, arguments)
    stored = stored_network(class_name, arguments | {"dropout": np.float64(0.1)}, net, kind=OrderedDict)
    data = dump(tmp_path / "a.pkl", {"ema": stored, "x": np.arange(3.0)}, protocol=2).read_bytes()
    for here, there in ((b"numpy._core", b"numpy.core"), (b"numpy.core", b"numpy._core")):
        (tmp_path / "b.pkl").write_bytes(data.replace(b"cnumpy._core", b"c" + here).replace(b"c" + here, b"c" + there))
        assert b"c" + there + b".multiarray" in (tmp_path / "b.pkl").read_bytes()
        found = import_nvidia(tmp_path / "b.pkl", tmp_path / there.decode())
        assert torch.equal(denoise(found.network), denoise(net)) and found.config["dropout"] == 0.1


# ----------------------------------------------------------------- refusals


def refused(path, match, out):
    with pytest.raises(InputError, match=match) as error:
        import_nvidia(path, out)
    assert "\n" not in str(error.value) and not out.exists()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ({"ema": 3}, "no network under 'ema'"),
        ({"G": Persistent("Generator", module_state())}, "no network under 'ema'"),
        ([1], "no network under 'ema'"),
        ({"ema": Persistent("InceptionV3", module_state())}, "its network is a 'InceptionV3'; known are EDMPrecond"),
        ({"ema": Persistent("EDMPrecond", {})}, "EDMPrecond has no _parameters"),
        ({"ema": Persistent("EDMPrecond", module_state())}, "does not record the arguments"),
        ({"ema": Persistent("Precond", module_state(_init_kwargs={}))}, "img_resolution"),
        ({"ema": Persistent("Precond", module_state(_init_kwargs={"colour": 3}))}, "cannot be built.*colour"),
        (
            {"ema": Persistent("Precond", module_state(_init_kwargs=EDM2 | {"dropout": torch.zeros(3)}))},
            "holds a Tensor",
        ),
        ({"ema": Persistent("Precond", module_state(_init_kwargs={}, _init_args=(8, 3, 4, True)))}, "have no names"),
        ({"ema": Persistent("Precond", module_state(_init_kwargs=EDM2))}, "another architecture: the file lacks"),
    ],
)
def test_what_is_no_network(tmp_path, content, match):
    refused(dump(tmp_path / "file.pkl", content), match, tmp_path / "model")


def test_a_file_whose_source_text_acts_is_read_without_it(tmp_path):
    canary = tmp_path / "canary"
    source = f"open({str(canary)!r}, 'w').close()"
    path, net = write(tmp_path / "file.pkl", "DDPM++", source=source)
    exec(source)
    assert canary.exists(), "the control: run, the text acts"
    canary.unlink()
    found = import_nvidia(path, tmp_path / "model")
    assert torch.equal(denoise(found.network), denoise(net)) and not canary.exists()
    assert source not in (tmp_path / "model" / "model.json").read_text()


def test_weights_that_do_not_fit(tmp_path):
    class_name, arguments = CASES["DDPM++"]
    net = network(class_name, arguments)
    other = network(class_name, arguments | {"model_channels": 32})
    stored = stored_network(class_name, arguments, other)
    refused(dump(tmp_path / "a.pkl", {"ema": stored}), "another architecture: model.map", tmp_path / "model")
    with torch.no_grad():
        net.model.map_layer0.bias[0] = float("inf")
    stored = stored_network(class_name, arguments, net)
    refused(dump(tmp_path / "b.pkl", {"ema": stored}), "not all finite", tmp_path / "model")


def test_a_checkpoint_that_is_there_is_kept(tmp_path):
    path, _ = write(tmp_path / "file.pkl", "DDPM++")
    first = import_nvidia(path, tmp_path / "model")
    with pytest.raises(InputError, match="a checkpoint is there"):
        import_nvidia(path, tmp_path / "model")
    assert import_nvidia(path, tmp_path / "model", replace=True).sha256 == first.sha256


def test_entries_that_are_no_settings_are_left_out(tmp_path, capsys):
    """What people's own loops add beside the network; the network is the same, and nothing is lost without a word."""
    class_name, arguments = CASES["DDPM++"]
    net = network(class_name, arguments)
    stored = stored_network(class_name, arguments, net)
    plain = import_nvidia(dump(tmp_path / "plain.pkl", {"ema": stored}), tmp_path / "plain")
    more = {
        "ema": stored, "fid": torch.tensor(3.2), "optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        "args": argparse.Namespace(lr=1e-3, name="mine"), "shape": torch.Size([3, 8, 8]), "note": "kept",
    }  # fmt: skip
    path = dump(tmp_path / "more.pkl", more)
    found = import_nvidia(path, tmp_path / "model")
    assert found.sha256 == plain.sha256 and torch.equal(denoise(found.network), denoise(net))
    recorded = found.record.provenance
    assert recorded["left_out"] == ["fid", "optimizer_state"] and "left_out" not in plain.record.provenance
    assert recorded["settings"]["note"] == "kept" and recorded["settings"]["shape"] == [3, 8, 8]
    assert recorded["settings"]["args"] == {"class": "Namespace", "lr": 1e-3, "name": "mine"}
    assert main_with_errors(run, ["import-nvidia", str(path), "--out", str(tmp_path / "again")]) == 0
    assert "note: left out, as no settings: fid, optimizer_state" in capsys.readouterr().out
    assert main_with_errors(run, ["import-nvidia", str(path), "--out", str(tmp_path / "again")]) == 2
    assert "error: --out: " in (said := capsys.readouterr().err) and "--replace writes over it" in said
    assert "left out, as no settings: fid, optimizer_state" in describe(path)


def test_a_fork_that_keeps_their_modules_in_a_package(tmp_path):
    path, net = write(tmp_path / "file.pkl", "DDPM++")
    data = path.read_bytes()
    ours, theirs = b"torch_utils.persistence", b"my_edm.torch_utils.persistence"
    assert data.count(bytes([len(ours)]) + ours) == 1
    moved = data.replace(bytes([len(ours)]) + ours, bytes([len(theirs)]) + theirs)
    frame = int.from_bytes(moved[3:11], "little")
    moved = moved[:3] + (frame + len(theirs) - len(ours)).to_bytes(8, "little") + moved[11:]
    (tmp_path / "fork.pkl").write_bytes(moved)
    assert torch.equal(denoise(import_nvidia(tmp_path / "fork.pkl", tmp_path / "model").network), denoise(net))
    for other in (b"os.torch_utils.persistenc", b"my.torch_utils.persistence.x"):
        (tmp_path / "bad.pkl").write_bytes(data.replace(bytes([len(ours)]) + ours, bytes([len(other)]) + other))
        with pytest.raises(InputError, match="which is not data"):
            import_nvidia(tmp_path / "bad.pkl", tmp_path / "bad")


def test_a_network_under_another_name_is_told(tmp_path):
    class_name, arguments = CASES["DDPM++"]
    stored = stored_network(class_name, arguments, network(class_name, arguments))
    path = dump(tmp_path / "net.pkl", {"net": stored, "epoch": 3})
    for read in (import_nvidia, describe):
        with pytest.raises(InputError, match=r"no network under 'ema' \(it holds net, epoch\)"):
            read(path)


# ---------------------------------------------------------------- statistics


def moments(seed=0, d=6):
    features = np.random.default_rng(seed).normal(size=(50, d))
    return {"mu": features.mean(0), "sigma": np.cov(features.T)}


def test_statistics_arrive_as_they_were(tmp_path):
    inception, dino = moments(), moments(1, 4)
    np.savez(tmp_path / "a.npz", **inception)
    np.savez_compressed(tmp_path / "c.npz", **inception)
    content = {"num_images": 50, "fid": inception, "fd_dinov2": dino}
    for protocol in (2, 4, 5):
        (tmp_path / "b.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
        found = read_statistics(tmp_path / "b.pkl")
        assert list(found) == ["fid", "fd_dinov2"] and found["fid"].images == 50
        for name in found:
            assert np.array_equal(found[name].mu, content[name]["mu"])
            assert np.array_equal(found[name].sigma, content[name]["sigma"])
    for name in ("a.npz", "c.npz"):
        found = read_statistics(tmp_path / name)
        assert list(found) == ["fid"] and found["fid"].images is None
        assert np.array_equal(found["fid"].sigma, inception["sigma"])


def test_statistics_that_are_not(tmp_path):
    good = moments()
    wrong = {
        "no sigma": ({"mu": good["mu"]}, "it has no sigma"),
        "objects": (good | {"mu": np.array([{}, 1])}, "plain little-endian numbers"),
        "shapes": (good | {"mu": good["mu"][:-1]}, r"shapes \(d,\) and \(d, d\), not \(5,\) and \(6, 6\)"),
        "infinite": (good | {"sigma": good["sigma"] * np.inf}, "finite"),
        "lopsided": (good | {"sigma": np.triu(good["sigma"]) + np.eye(6)}, "symmetric"),
        "negative": (good | {"sigma": -good["sigma"]}, "not negative"),
    }
    for name, (content, match) in wrong.items():
        np.savez(tmp_path / f"{name}.npz", **content)
        with pytest.raises(InputError, match=match):
            read_statistics(tmp_path / f"{name}.npz")
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"other": 1}))
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"fid": 1}))
    (tmp_path / "c.txt").write_text("mu")
    for name, match in (("a.pkl", "must hold fid"), ("b.pkl", "not nothing and nothing"), ("c.txt", "not statistics")):
        with pytest.raises(InputError, match=match):
            read_statistics(tmp_path / name)
    with pytest.raises(InputError, match=r"--ref: .*cannot be read"):
        read_statistics(tmp_path / "none.npz", argument="--ref")


# ----------------------------------------------------------------- the verbs


def test_the_verbs(tmp_path, capsys, monkeypatch):
    path, _ = write(tmp_path / "edm-small.pkl", "DDPM++")
    monkeypatch.chdir(tmp_path)
    assert main_with_errors(run, ["info", str(path)]) == 0
    told = capsys.readouterr().out
    assert "EDMPrecond, SongUNet under edm, 3x8x8, 4 classes" in told and "sims_image import-nvidia" in told
    assert main_with_errors(run, ["import-nvidia", str(path)]) == 0
    assert "checkpoint edm-small" in capsys.readouterr().out and load("edm-small").parameters
    assert main_with_errors(run, ["import-nvidia", str(path), "--out", "other"]) == 0
    capsys.readouterr()
    assert main_with_errors(run, ["info", str(path), "other"]) == 0
    assert capsys.readouterr().out.split("\n\n") == [
        "\n".join(describe(str(path))),
        "\n".join(describe("other")) + "\n",
    ]
    for words in (["import-nvidia"], ["info"], ["info", "nowhere"], ["import-nvidia", "edm-small"], ["info", "--all"]):
        assert main_with_errors(run, words) == 2, words
        assert capsys.readouterr().err.count("\n") == 1


def test_info_tells_what_things_are(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.txt").write_text("mine")
    net = network(*CASES["DDPM++"])
    record = Record(
        "digits", Data("digits", "ab" * 32, ("zero", "one")), 2 * 10**6, 10**6, Ema("halflife", 5e5), "cd" * 32
    )
    with RunFolder.open(tmp_path / "run", {"preset": "digits", "lr": 0.1}) as folder:
        save(folder.path / "snapshots" / "2Mi", net, record)
        told = "\n".join(describe(tmp_path / "run"))
        assert "not finished" in told and 'preset="digits", lr=0.1' in told and "checkpoint snapshots/2Mi" in told
        folder.finish()
    assert "finished 2" in describe(tmp_path / "run")[1]
    for place in ("", "model.json", "model.safetensors"):
        told = "\n".join(describe(tmp_path / "run" / "snapshots" / "2Mi" / place))
        for words in ("SongUNet under edm", "preset: digits", "classes zero, one", "2 Mi (2000000 images; Mi = 10^6)"):
            assert words in told
        assert "average, half-life 500000 images" in told and f"parent: {'cd' * 32}" in told
    np.savez(tmp_path / "a.npz", **moments())
    (tmp_path / "b.pkl").write_bytes(pickle.dumps({"num_images": 50, "fd_dinov2": moments()}))
    assert "fid: 6 features of Inception over an unknown number of images" in describe(tmp_path / "a.npz")
    assert "fd_dinov2: 6 features of DINOv2 over 50 images" in describe(tmp_path / "b.pkl")
    torch.save(net.state_dict(), tmp_path / "state.pt")
    for name, match in (("notes", "a folder that is not"), ("notes/thesis.txt", "not a data set"), ("x", "nothing")):
        with pytest.raises(InputError, match=match):
            describe(tmp_path / name)
    with pytest.raises(InputError, match=r"torch\.save"):
        describe(tmp_path / "state.pt")
    assert any("run/snapshots/2Mi" in line for line in describe(tmp_path))


def test_info_reads_data_sets(tmp_path):
    import io
    import zipfile

    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    names = [f"00000/img{k:08d}.png" for k in range(6)]
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        for name, image in zip(names, pixels, strict=True):
            handle = io.BytesIO()
            Image.fromarray(image).save(handle, "png")
            archive.writestr(name, handle.getvalue())
        labels = [[name, k % 2] for k, name in enumerate(names)]
        archive.writestr("dataset.json", json.dumps({"labels": labels}))
    told = "\n".join(describe(tmp_path / "set.zip"))
    assert "images: 6 of 3x8x8, uint8" in told and "2 classes (0, 1), 3 to 3 images each" in told


def test_info_reads_data_set_folders(tmp_path):
    from sims_image.data.options import Prepare
    from sims_image.data.prepare import prepare

    data = prepare(Prepare(source="digits", out=str(tmp_path / "digits"), limit=50))
    for place in ("", "dataset.json", "images.npy"):
        told = "\n".join(describe(tmp_path / "digits" / place))
        assert "images: 50 of 1x8x8, uint8" in told and "labels: 10 classes" in told and data.sha256 in told
    with open(tmp_path / "digits" / "images.npy", "r+b") as handle:
        handle.seek(-3, 2)
        handle.write(b"\xff\xff\xff")
    with pytest.raises(InputError, match="sha256"):
        describe(tmp_path / "digits")


def test_a_snapshot_alone(tmp_path):
    path, net = write(tmp_path / "file.pkl", "NCSN++")
    found = read_snapshot(path)
    assert found.config["class_name"] == found.class_name == "EDMPrecond"
    assert found.weights.keys() == net.state_dict().keys()
    with pytest.raises(InputError, match="--base"):
        read_snapshot(tmp_path / "none.pkl", argument="--base")
