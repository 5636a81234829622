"""Training on a device: the CPU's losses, runs that are killed and go on, one rank over nccl, too little memory."""

import copy
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from scipy.stats import sem

from sims_image.processes import Processes
from tests.gpu.models import SMALL, SMALL2, trainer
from tests.image.ranks import environment, finish, launch
from tests.image.test_resume import LAUNCH, assert_same_run, log

pytestmark = pytest.mark.gpu
STEPS = 60
PLAIN = SMALL | {"label_dropout": 0.0}  # the draws of dropout are each device's own


def losses(subject, steps: int) -> list[float]:
    found: list[float] = []
    subject.run(steps, after=lambda: found.append(subject.report(lambda: "").loss))
    return found


@pytest.mark.parametrize(
    ("config", "precision", "tolerance"),
    [(PLAIN, "float32", 1e-3), (PLAIN, "bf16", 0.02), (SMALL2, "float32", 1e-3), (SMALL2, "fp16", 0.02)],
)
def test_losses_are_the_cpu_s(device, data, config, precision, tolerance):
    cpu = torch.device("cpu")
    here, there = (losses(trainer(data, where, config, precision=precision), 5) for where in (cpu, device))
    assert there == pytest.approx(here, rel=tolerance)


def test_a_state_of_the_cpu_goes_on_there(device, data):
    """The optimiser's and the averages' tensors come to the device, as `state.pt` is read to the host."""
    here, there = (trainer(data, where, PLAIN) for where in (torch.device("cpu"), device))
    losses(here, 1)
    there.load_state_dict(copy.deepcopy(here.state_dict()))
    assert losses(there, 3) == pytest.approx(losses(here, 3), rel=1e-3)
    average = next(iter(there.averages.state_dict().values()))
    for tensors in (average, *there.optimizer.state.values()):
        assert all(tensor.device == device for tensor in tensors.values())


@pytest.mark.gpu(cpu=False)  # as tests/image/test_resume.py there
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_killed_after_a_state_it_goes_on_bit_for_bit_and_its_loss_falls(device, data, tmp_path, precision):
    words = ["-c", LAUNCH, "train", "--preset", "tiny", "--data", str(data.path), "--device", device.type]
    words += ["--budget", "0.48k", "--log-every", "8", "--state-every", "160", "--snapshot-every", "240"]
    words += ["--raw", "always", "--sheet", "1", "--precision", precision, "--deterministic", "--lr", "3e-3", "--out"]
    whole = launch([*words, str(tmp_path / "whole")], fresh=True)
    broken = subprocess.Popen([sys.executable, *words, str(tmp_path / "broken")], env=environment())
    until = time.monotonic() + 300
    while time.monotonic() < until and broken.poll() is None and not (tmp_path / "broken/state.pt").exists():
        time.sleep(0.002)
    broken.send_signal(signal.SIGKILL)
    broken.wait()
    finish(whole)
    assert not (tmp_path / "broken/finished.json").exists(), "it was not killed in time"
    finish(launch([*words, str(tmp_path / "broken")], fresh=True))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    found = np.array([line["loss"] for line in log(tmp_path / "whole")])
    early, late = found[:20], found[-20:]
    assert len(found) == STEPS and early.mean() - late.mean() > 3 * np.hypot(sem(early), sem(late))


@pytest.mark.gpu(cpu=False)  # gloo's groups are of processes of their own, in tests/image
def test_one_rank_over_nccl_trains_as_one_alone(device, data, tmp_path):
    """Of two by its own account, so that it goes the way of several: gradients and reports are summed over a group."""
    alone = losses(trainer(data, device), 4)
    dist.init_process_group("nccl", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1, device_id=device)
    try:
        subject = trainer(data, device, processes=Processes(0, 2, device))
        assert isinstance(subject._model, torch.nn.parallel.DistributedDataParallel)
        assert losses(subject, 4) == pytest.approx(alone, rel=1e-3)
    finally:
        dist.destroy_process_group()


@pytest.mark.gpu(cpu=False)
def test_too_little_memory_ends_in_one_line(data, tmp_path):
    """On a two-hundredth of the card, less than the first layer's output takes."""
    words = ["train", "--preset", "tiny", "--data", str(data.path), "--out", str(tmp_path / "run"), "--batch", "16384"]
    words += ["--budget", "32k", "--workers", "0", "--device", "cuda", "--network", "model_channels=256"]
    little = "import torch; torch.cuda.set_per_process_memory_fraction(0.005); "
    command = [sys.executable, "-c", little + LAUNCH, *words]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if "img" not in line and line.strip()]
    assert done.returncode == 2 and len(said) == 1, done.stderr[-2000:]
    assert said[0].startswith("error: memory: there is not enough (") and "Traceback" not in done.stderr
    assert not (Path(tmp_path) / "run/snapshots").exists()
    assert json.loads((tmp_path / "run/settings.json").read_text())["settings"]["recipe"]["batch"] == 16_384
