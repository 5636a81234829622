"""Killed and gone on, alone and in two processes: the same weights, log and order of data, bit for bit.

The subject runs in processes of its own; torchrun's environment is set by hand in the quick tests and by torchrun
itself in a slow one.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.image import ranks, tiny
from tests.image.ranks import environment, finish, kill

ROOT = Path(__file__).resolve().parents[2]
#: the tiny preset, for commands in other processes
LAUNCH = (
    "import sys; from tests.image import tiny; from sims_image.models.presets import PRESETS; "
    "from sims_image.__main__ import main; PRESETS['tiny'] = tiny.preset(tiny.EDM, tiny.recipe(augment=0.3)); main()"
)
SETTINGS = ["--network", "dropout=0.2", "--budget", "0.4k", "--log-every", "16", "--state-every", "64"]
SETTINGS += ["--snapshot-every", "200", "--sheet", "1", "--raw", "always", "--device", "cpu"]
STEPS = 50


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip").path)


def launch(data: str, out: Path, world: int = 1, settings=SETTINGS) -> list[ranks.Started]:
    """Start the processes of one run, as torchrun would."""
    words = ["-c", LAUNCH, "train", "--preset", "tiny", "--data", data, "--out", str(out), *settings]
    return ranks.launch(words, world)


def kill_after(processes, out: Path, lines: int) -> None:
    """SIGKILL all of them once the log has so many lines."""
    until = time.monotonic() + 300
    while time.monotonic() < until and all(p.poll() is None for p in processes):
        if (out / "log.jsonl").exists() and (out / "log.jsonl").read_text().count("\n") >= lines:
            break
        time.sleep(0.005)
    kill(processes)


def log(out: Path) -> list[dict[str, object]]:
    timing = ("seconds", "images_per_second")
    return [
        {k: v for k, v in json.loads(line).items() if k not in timing}
        for line in (out / "log.jsonl").read_text().splitlines()
    ]


def assert_same_run(one: Path, other: Path) -> None:
    assert log(one) == log(other)
    names = sorted(str(p.relative_to(one)) for p in one.glob("snapshots/*/*/model.safetensors"))
    assert len(names) == 4  # two snapshots, of an average and of the raw weights
    assert names == sorted(str(p.relative_to(other)) for p in other.glob("snapshots/*/*/model.safetensors"))
    for name in names:
        first, second = load_file(one / name), load_file(other / name)
        assert all(torch.equal(first[k], second[k]) for k in first), name
    sheets = [max(p.glob("snapshots/*/sheet.png")).read_bytes() for p in (one, other)]
    assert sheets[0] == sheets[1]
    states = [torch.load(p / "state.pt", weights_only=True) for p in (one, other)]
    for key, value in states[0]["optimizer"]["state"].items():
        assert all(torch.equal(value[k], states[1]["optimizer"]["state"][key][k]) for k in value)


def resumed(data: str, whole: Path, broken: Path, world: int) -> None:
    """Kill a run twice, once before its first state and once after, let it go on, and compare."""
    kill_after(launch(data, broken, world), broken, 1)
    assert not (broken / "finished.json").exists()
    kill_after(launch(data, broken, world), broken, 9)
    assert not (broken / "finished.json").exists()
    seen = torch.load(broken / "state.pt", weights_only=True)["images"]
    assert 0 < seen < 400
    with open(broken / "log.jsonl", "a") as half:
        half.write('{"images": 99')  # a line that was being written
    finish(launch(data, broken, world))
    assert_same_run(whole, broken)


def test_killed_and_gone_on_is_the_same_run(data, tmp_path):
    finish(launch(data, tmp_path / "whole"))
    assert len(log(tmp_path / "whole")) >= STEPS // 2
    resumed(data, tmp_path / "whole", tmp_path / "broken", 1)


def test_two_processes_train_as_one_and_go_on_as_one(data, tmp_path):
    settings = [w if w != "dropout=0.2" else "dropout=0.0" for w in SETTINGS]
    said = finish(launch(data, tmp_path / "two", 2, settings))
    assert "checkpoint: " in said[0] and said[1] == ""
    finish(launch(data, tmp_path / "one", 1, settings))
    one, two = ([line["loss"] for line in log(tmp_path / name)] for name in ("one", "two"))
    assert two[:5] == pytest.approx(one[:5], rel=1e-4) and two == pytest.approx(one, rel=1e-2)
    assert [line["sigma"] for line in log(tmp_path / "one")] == [line["sigma"] for line in log(tmp_path / "two")]


@pytest.mark.slow
def test_two_processes_killed_and_gone_on_are_the_same_run(data, tmp_path):
    finish(launch(data, tmp_path / "whole", 2))
    resumed(data, tmp_path / "whole", tmp_path / "broken", 2)


@pytest.mark.slow
def test_two_processes_compute_alike_whatever_the_first_one_measures(data, tmp_path):
    said = finish(launch(data, tmp_path / "two", 2, [*SETTINGS, "--precision", "auto", "--channels-last", "auto"]))
    way = json.loads((tmp_path / "two/measured.json").read_text())
    assert "as measured at the start" in said[0] and said[1] == ""
    assert {line["precision"] for line in log(tmp_path / "two")} == {way["precision"]}


def test_two_processes_stop_together(data, tmp_path):
    """An error is printed by the first process alone, and the second does not wait for ever."""
    processes = launch(data, tmp_path / "run", 2, ["--lr", "-1", "--device", "cpu"])
    said = [p.communicate(timeout=120) for p in processes]
    assert [p.returncode for p in processes] == [2, 2]
    assert said[0][1].strip() == "error: --lr: got '-1.0'; it must be positive" and said[1][1] == ""


@pytest.mark.slow
def test_torchrun(data, tmp_path):
    words = ["train", "--preset", "tiny", "--data", data, *SETTINGS]
    script = tmp_path / "launch.py"
    script.write_text(LAUNCH)
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script), *words]
    for out in ("whole", "broken"):
        process = subprocess.Popen([*run, "--out", str(tmp_path / out)], env=environment(), start_new_session=True)
        if out == "broken":
            until = time.monotonic() + 300
            while process.poll() is None and time.monotonic() < until:
                if (tmp_path / "broken/state.pt").exists():
                    break
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            children = subprocess.run(["pgrep", "-f", str(script)], capture_output=True, text=True).stdout.split()
            for child in children:
                os.kill(int(child), signal.SIGKILL)
            process = subprocess.Popen([*run, "--out", str(tmp_path / out)], env=environment(), start_new_session=True)
        assert process.wait(timeout=300) == 0
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
