"""Files of a run that somebody damaged: named in one line, or set aside, said, and made again."""

import json
import shutil

import numpy as np
import pytest
import torch

from sims_core.errors import InputError
from sims_core.lab.command import main_with_errors
from sims_image.commands import run
from sims_image.data.options import Prepare
from sims_image.data.prepare import prepare
from sims_image.metrics.references import read_statistics
from sims_image.models import checkpoints, torchfiles
from sims_image.models.networks import build

DAMAGE = {"empty": b"", "half": None, "a list": b"[]", "text": b"PK\x03\x04 no zip"}
SMALL = {"model_type": "SongUNet", "img_resolution": 8, "img_channels": 1, "model_channels": 4, "channel_mult": [1]}


def damaged(content, how):
    return content[: len(content) // 2] if DAMAGE[how] is None else DAMAGE[how]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    network = build(**SMALL, num_blocks=1, attn_resolutions=[])
    return checkpoints.save(tmp_path_factory.mktemp("m") / "model", network, checkpoints.Record(preset="digits")).path


# ------------------------------------------------------------------ generate


def generate(model, out, *more):
    words = ["generate", "--base", str(model), "--seeds", "0-599", "--sampler", "euler:1", "--out", str(out)]
    return main_with_errors(run, [*words, "--sheet", "0", *more])


def stopped(model, out, monkeypatch):
    """A run whose shards are there and which was stopped before its data set was put together."""

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("sims_image.sampling.generation.write_folder", stop)
        assert generate(model, out) == 130
    return sorted((out.parent / f"{out.name}.generating" / "shards").iterdir())


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_shards_are_made_again(model, tmp_path, monkeypatch, capsys, how):
    assert generate(model, tmp_path / "whole") == 0
    shards = stopped(model, tmp_path / "out", monkeypatch)
    shards[1].write_bytes(damaged(shards[1].read_bytes(), how))
    with np.load(shards[2]) as held:
        np.savez(shards[2], **{**held, "indices": held["indices"] + 1})
    capsys.readouterr()
    assert generate(model, tmp_path / "out") == 0
    told = capsys.readouterr().err
    assert f"{shards[1]} is damaged" in told and f"{shards[2]} is damaged (not the images of this run)" in told
    for name in ("images.npy",):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize("left", [None, "settings.json"])
def test_what_a_kill_left_beside_a_finished_data_set_goes(model, tmp_path, monkeypatch, left):
    stopped(model, tmp_path / "out", monkeypatch)
    shutil.copytree(tmp_path / "out.generating", tmp_path / "kept")
    assert generate(model, tmp_path / "out") == 0 and not (tmp_path / "out.generating").exists()
    shutil.move(tmp_path / "kept", tmp_path / "out.generating")
    if left:  # killed while it was removed, whose settings go last
        shutil.rmtree(tmp_path / "out.generating" / "shards")
    assert generate(model, tmp_path / "out") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_work_of_another_run_is_not_removed(model, tmp_path, monkeypatch):
    assert generate(model, tmp_path / "out") == 0
    with monkeypatch.context() as patched:
        patched.setattr("sims_core.lab.placing.check_room", lambda *_: None)
        stopped(model, tmp_path / "other", patched)
    other = tmp_path / "other.generating" / "settings.json"
    content = json.loads(other.read_text())
    content["settings"]["seed"] = 5
    other.write_text(json.dumps(content))
    shutil.move(tmp_path / "other.generating", tmp_path / "out.generating")
    assert generate(model, tmp_path / "out") == 0
    assert len(list((tmp_path / "out.generating" / "shards").iterdir())) == 3


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (("--seeds", "18446744073709551615"), "seeds are 0 to 9223372036854775807"),
        (("--seeds", "9223372036854775808"), "seeds are 0 to 9223372036854775807"),
        (("--seeds", "0-99999999999999999999"), "seeds are 0 to 9223372036854775807"),
        (("--seeds", "9" * 5000), "seeds are 0 to 9223372036854775807"),
        (("--seeds", "0-9223372036854775807"), "at most 10,000,000"),
        (("--seeds", "²"), "write whole numbers and ranges"),
        (("--seeds", ",".join(map(str, range(20_000))) + ",7"), "seed 7 is named twice"),
        (("--batch", "1000000000000"), "--batch: got"),
        (("--sampler", "heun:99999999"), "1 to 10000 steps"),
        (("--sampler", "euler:²"), "1 to 10000 steps"),
        (("--sheet", "1000000000"), "--sheet: got"),
    ],
)  # fmt: skip
def test_what_cannot_be_generated_is_one_line(model, tmp_path, capsys, words, match):
    assert generate(model, tmp_path / "out", *words) == 2
    line = capsys.readouterr().err
    assert match in line and line.count("\n") == 1 and len(line) < 1500
    assert not list(tmp_path.iterdir())
    assert generate(model, tmp_path / "out", "--seeds", "9223372036854775807") == 0


@pytest.mark.parametrize("dangling", [False, True])
def test_links_are_followed(model, tmp_path, dangling):
    for name, words in (("g", None), ("p", ["prepare", "digits", "--limit", "50"])):
        if not dangling:
            (tmp_path / f"far-{name}").mkdir()
        (tmp_path / name).symlink_to(tmp_path / f"far-{name}")
        for _ in range(2):
            out = tmp_path / name
            assert (generate(model, out) if words is None else main_with_errors(run, [*words, "--out", str(out)])) == 0
        assert (tmp_path / name).is_symlink() and (tmp_path / f"far-{name}" / "images.npy").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far-g", "far-p", "g", "p"]


# --------------------------------------------------------------------- train


@pytest.fixture(scope="module")
def training(tmp_path_factory):
    folder = tmp_path_factory.mktemp("t")
    prepare(Prepare(source="digits", out=str(folder / "data"), limit=100))
    words = ["train", "--preset", "digits", "--data", str(folder / "data"), "--out", str(folder / "run")]
    words += ["--network", "model_channels=4,num_blocks=1,channel_mult=[1],attn_resolutions=[]", "--sheet", "0"]
    words += ["--budget", "0.4k", "--batch", "50", "--augment", "0", "--log-every", "50", "--state-every", "200"]
    assert main_with_errors(run, words) == 0
    (folder / "run" / "finished.json").unlink()
    return folder, words


@pytest.fixture
def begun(training, tmp_path):
    """A run folder that is not finished, and the words that go on with it."""
    folder, words = training
    shutil.copytree(folder / "run", tmp_path / "run")
    return tmp_path / "run", [*words[:6], str(tmp_path / "run"), *words[7:]]


STATES = {
    "a list": ["no", "dict"],
    "empty": {},
    "settings of another kind": {"settings": 5},
    "settings that are no JSON": {"settings": "{"},
    "seconds in words": {"seconds": "x"},
    "no network": {"network": None},
    "another network": {"network": {"a": torch.zeros(3)}},
    "steps in words": {"step": "x"},
    "an optimiser of another kind": {"optimizer": [1]},
}


@pytest.mark.parametrize("name", [*DAMAGE, *STATES])
def test_damaged_states_are_named(begun, capsys, name):
    folder, words = begun
    path = folder / "state.pt"
    if name in DAMAGE and name != "a list":
        path.write_bytes(damaged(path.read_bytes(), name))
    else:
        whole = torch.load(path, weights_only=True)
        change = STATES[name]
        torch.save(change if isinstance(change, list) or not change else {**whole, **change}, path)
    assert main_with_errors(run, words) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "training state: got" in line and str(path) in line and "remove it to start this run anew" in line
    path.unlink()
    assert main_with_errors(run, words) == 0


@pytest.mark.parametrize("line", [b"[1]", b"\xff\xfe", b'{"a": 1}', b"5", b'{"images": "x", "loss": 1}', b"[" * 50_000])
def test_damaged_lines_of_the_log_go(begun, capsys, line):
    folder, words = begun
    path = folder / "log.jsonl"
    lines = path.read_bytes().splitlines()
    assert len(lines) == 8
    path.write_bytes(b"\n".join([*lines[:3], line, *lines[3:]]) + b"\n" + line[:1])
    assert main_with_errors(run, words) == 0
    assert "line 4 is damaged and left out" in capsys.readouterr().out
    assert path.read_bytes().splitlines() == lines


def test_files_of_torch_need_a_reader_that_runs_nothing(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    torchfiles.save({"a": torch.ones(3)}, path)
    assert torch.equal(torchfiles.load("--weights", path)["a"], torch.ones(3))
    for version in ("2.5.1+cpu", "1.13.0", "2.0", "odd"):
        monkeypatch.setattr(torch, "__version__", version)
        with pytest.raises(InputError, match=rf"--weights.*torch {version.replace('+', '.')} can be made to run.*2.6"):
            torchfiles.load("--weights", path)
    for version in ("2.6.0", "2.13.0+cpu", "3.0"):
        monkeypatch.setattr(torch, "__version__", version)
        assert list(torchfiles.load("--weights", path)) == ["a"]


# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize("seed", range(20))
def test_altered_statistics_end_in_one_line_or_are_read(tmp_path, seed):
    path, rng = tmp_path / "s.npz", np.random.default_rng(seed)
    np.savez(path, mu=np.zeros(2), sigma=np.eye(2))
    whole = path.read_bytes()
    for _ in range(50):
        content = bytearray(whole)
        for place in rng.integers(0, len(content), size=rng.integers(1, 4)):
            content[place] = rng.integers(256)
        path.write_bytes(bytes(content))
        try:
            said = str(read_statistics(path)["fid"].mu.shape)
        except InputError as error:
            said = str(error)
        assert said == "(2,)" or (path.name in said and said.isprintable())
