"""The checks for a GPU, dry-run on the CPU: every stage to its end, and stages that are stopped."""

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the script needs GNU's tools")
ROOT = Path(__file__).resolve().parents[1]
#: scripts/cifar10_cpu.sh at a size of seconds
TOY = {
    **{"NETWORK": "model_channels=8,channel_mult=[1],num_blocks=1", "BATCH": "16", "PROBE": "0.16k", "FIRST": "40"},
    **{"COMPUTE": "20"},
    **{"SYNTHETIC": "20", "BUDGETS": "0.032k", "OMEGA": "1", "SAMPLER": "heun:2"},
}


def check(*words, out, **environment):
    """The script's exit code and summary."""
    done = subprocess.run(
        [str(ROOT / "scripts/gpu_check.sh"), "--device", "cpu", "--out", str(out), "--work", f"{out}-work", *words],
        env={**os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1", **TOY, **environment},
        capture_output=True,
        text=True,
        timeout=580,
    )
    said = (out / "summary.txt").read_text() if out.exists() else ""
    return done.returncode, said, done.stdout[-3000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Classes that differ in brightness, as an archive."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for split, count in (("train", 30), ("test", 20)):
        for label in range(3):
            (folder / split / str(label)).mkdir(parents=True)
            for number in range(count):
                image = (rng.integers(0, 120, (16, 16, 3)) + 40 * label).astype(np.uint8)
                Image.fromarray(image).save(folder / split / str(label) / f"{number}.png")
    with tarfile.open(folder / "pictures.tar", "w") as archive:
        for split in ("train", "test"):
            archive.add(folder / split, split)
    return folder / "pictures.tar"


def test_every_stage_runs_to_its_end(pictures, tmp_path):
    code, said, printed = check("--minutes", "20", "--data", str(pictures), out=tmp_path / "out", CIFAR10_SECONDS="5")
    assert code == 0, printed
    lines = said.splitlines()
    assert [line.split(":")[0] for line in lines if " passed in " in line] == ["tests", "benchmarks", "cifar10"]
    assert lines[0].startswith("dry run, torch") and "everything passed" in lines[-1]
    files = sorted((tmp_path / "out").iterdir())
    tables = ["benchmarks.txt", "cifar10-auxiliary.tar", "cifar10-base.tar", "cifar10-tables.tar.gz", "cifar10.txt"]
    assert [file.name for file in files] == [*tables, "gpu-cpu.json", "summary.txt", "tests.txt"]
    assert all(file.stat().st_size < 2**24 for file in files)
    found = json.loads((tmp_path / "out/gpu-cpu.json").read_text())["found"]
    assert len(found) > 8 and not any("failed" in row or "skipped" in row for row in found.values())
    with tarfile.open(tmp_path / "out/cifar10-tables.tar.gz") as archive:
        inside = archive.getnames()
        results = json.loads(archive.extractfile("./sims/report/results.json").read())  # type: ignore[union-attr]
    arms = {arm["arm"] for arm in results["arms"]}
    assert arms >= {"SIMS", "base, twice the steps", "base trained further", "random direction", "Neon"}
    assert "./base/log.jsonl" in inside and not any(name.endswith((".npy", ".safetensors", ".pt")) for name in inside)
    with tarfile.open(tmp_path / "out/cifar10-base.tar") as archive:
        assert {"./model.json", "./model.safetensors"} <= set(archive.getnames())


def test_a_stage_that_is_stopped_leaves_what_it_had_and_the_others_go_on(tmp_path):
    """The tests take minutes; both stages get half of the time."""
    out = tmp_path / "out"
    code, said, printed = check("--minutes", "0.9", "--stages", "tests,benchmarks,cifar10", out=out)
    assert code == 1, printed
    assert "tests: stopped at its limit of" in said and "cifar10: not begun, it needs --data" in said
    assert "PASSED" in (out / "tests.txt").read_text()
    assert "benchmarks: " in said and "ceilings" in json.loads((out / "gpu-cpu.json").read_text())["found"]
    assert "not everything passed" in said.splitlines()[-1]


def test_the_pipeline_alone_keeps_what_it_has_in_a_relative_folder(tmp_path):
    (tmp_path / "run/base").mkdir(parents=True)
    (tmp_path / "run/base/log.jsonl").write_text("{}")
    script, env = ROOT / "scripts/cifar10_h100.sh", {**os.environ, "PYTHON": "false"}  # it stops at its first command
    done = subprocess.run([str(script), "absent", "run"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 1 and not done.stderr
    with tarfile.open(tmp_path / "run/results/cifar10-tables.tar.gz") as archive:
        assert archive.getnames() == ["./base/log.jsonl"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_machine_without_a_card_passes_nothing(tmp_path):
    code, said, printed = check("--device", "cuda", out=tmp_path / "out")
    assert code == 2 and not said and printed.startswith("error: --device: got 'cuda'; this machine has no CUDA device")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--stages", "tests,all"], "error: --stages: got 'all'"),
        (["--minutes", "0"], "error: --minutes: got '0'"),
        (["--gpus", "8"], "error: --gpus: got '8'"),
    ],
)
def test_bad_options_are_refused_in_a_line(words, error, tmp_path):
    code, said, printed = check(*words, out=tmp_path / "out")
    assert code == 2 and not said and printed.startswith(error) and printed.count("\n") == 1
