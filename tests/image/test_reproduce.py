"""Every command of docs/reproduce.md is one that the program takes: with stand-ins for the files that users bring."""

from __future__ import annotations

import hashlib
import re
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from sims_image.commands import VERBS
from sims_image.commands import run as command
from sims_image.data.dataset import open_dataset
from sims_image.metrics import features
from sims_image.models import checkpoints
from sims_image.models.presets import PRESETS
from tests.image import networks
from tests.image.nvidia_files import dump, stored_network
from tests.image.synthetic import cifar_members, cifar_tar, folder, pixels

PAGE = Path(__file__).resolve().parents[2] / "docs/reproduce.md"
#: stand-ins of the published snapshots: tiny networks with the shape and classes of the real ones
SNAPSHOTS = {
    "edm-cifar10-32x32-uncond-vp.pkl": ("cifar10-uncond", 0),
    "edm-ffhq-64x64-uncond-vp.pkl": ("ffhq64", 0),
    "edm2-img64-s-1073741-0.075.pkl": ("imagenet64-edm2-s", 1000),
}
STATISTICS = ("cifar10-32x32.npz", "ffhq-64x64.npz", "img64.pkl")


def commands(text: str) -> list[list[str]]:
    """The shell lines of the page, as words after `sims_image`; every one must be ours."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["torchrun"]:
                assert words[1] == "--nproc_per_node" and words[3:5] == ["-m", "sims_image"], line
                words = words[4:]
            if words:
                assert words[0] == "sims_image", line
                found.append(words[1:])
    return found


def stand_ins(place: Path) -> None:
    """What a user brings, tiny."""
    cifar_tar(place / "cifar-10-python.tar.gz", cifar_members()[0])
    folder(place / "ffhq", pixels(6, side=64))
    folder(place / "ILSVRC/train", pixels(6, side=64), [0, 0, 1, 1, 2, 2])
    for name in STATISTICS:
        content = {"mu": np.zeros(2048), "sigma": np.eye(2048)}
        if name.endswith(".npz"):
            np.savez(place / name, **content)
        else:
            (place / name).write_bytes(b"")
    (place / "weights-inception-2015-12-05-6726825d.pth").write_bytes(b"")


def snapshot(path: Path, preset: str, classes: int) -> None:
    arguments = PRESETS[preset].config(label_dim=classes) | {"model_channels": 32, "channel_mult": [1], "num_blocks": 1}
    arguments["attn_resolutions"] = []
    name = "Precond" if PRESETS[preset].recipe.objective == "edm2" else "EDMPrecond"
    net = networks.network(class_name=name, **arguments)
    dump(path, {"ema": stored_network(name, arguments, net)})


def test_every_command_of_the_page_is_taken(tmp_path, monkeypatch, capsys):
    """`prepare`, `import-nvidia` and `info` run; what takes hours runs with --dry-run and prints its cost."""
    stand_ins(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(
        sys.modules, "torch_fidelity", ModuleType("torch_fidelity")
    )  # a dry run asks whether it is there
    monkeypatch.setattr(features, "INCEPTION_SHA256", hashlib.sha256(b"").hexdigest())  # of the stand-in
    seen = []
    for words in commands(PAGE.read_text()):
        verb = words[0]
        seen.append(verb)
        if verb == "import-nvidia":
            preset, classes = SNAPSHOTS[words[1]]
            snapshot(Path(words[1]), preset, classes)
            command(words)
            out = Path(words[words.index("--out") + 1])
            loaded = checkpoints.load(out)
            assert loaded.record.preset is None, "a tiny network has no preset's architecture"
            checkpoints.save(out, loaded.network, replace(loaded.record, preset=preset), replace=True)
        elif verb in ("prepare", "info"):
            command(words)
        else:
            capsys.readouterr()
            if "--batch" in words:  # a dry run times one evaluation of a batch
                words[words.index("--batch") + 1] = "4"
            command([*words, "--dry-run", *(["--device", "cpu"] if verb != "prepare" else [])])
            assert re.search(r"about [\d.e+-]+ (s|min|hours) of one A100", capsys.readouterr().out), words
    assert {"prepare", "import-nvidia", "info", "evaluate", "sims", "train"} <= set(seen) <= set(VERBS)
    assert seen.count("sims") == 3 and not Path("runs").exists()
    assert open_dataset("data/ffhq64").shape == (3, 64, 64)


@pytest.mark.parametrize(("preset", "nfe"), [("cifar10-uncond", 35), ("ffhq64", 79), ("imagenet64-edm2-s", 63)])
def test_the_pages_evaluations_are_the_presets(preset, nfe):
    from sims_core.sampling import Sampler

    assert Sampler.parse(PRESETS[preset].sampler, argument="sampler").nfe == nfe
    assert f"{nfe} → {2 * nfe}" in PAGE.read_text()
