"""Where training runs, and what it asks of the kernels; what takes a GPU is in `tests.gpu`."""

import contextlib

import pytest
import torch

from sims_core.errors import InputError
from sims_image.processes import Processes, choose_device, repeatable_kernels, start, tuned_kernels
from tests.image import tiny
from tests.image.ranks import finish, launch

CUDA = torch.device("cuda", 0)


@pytest.fixture
def one_gpu(monkeypatch):
    """This machine says that it has one."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)


def test_cudnn_chooses_by_the_clock_in_training_alone():
    assert not torch.backends.cudnn.benchmark
    with tuned_kernels():
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark


def test_repeatable_kernels_are_asked_for_in_training_alone(tmp_path):
    with repeatable_kernels():
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        tiny.trainer(tiny.write_data(tmp_path / "data.zip")).run(1, after=lambda: None)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


@pytest.mark.parametrize("fails", [False, True])
def test_a_failing_process_does_not_wait_for_the_others(one_gpu, monkeypatch, fails):
    """To take nccl's group apart is to wait for all of it. Float32 is float32 meanwhile."""
    called = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for flags in (torch.backends.cudnn, torch.backends.cuda.matmul):
        flags.allow_tf32 = True
    for name, value in {"is_initialized": False, "get_rank": 0, "get_world_size": 2}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **given: called.append(backend))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: called.append("destroyed"))
    with contextlib.suppress(ZeroDivisionError), start("cuda") as processes:
        assert processes == Processes(0, 2, CUDA)
        assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cuda.matmul.allow_tf32
        if fails:
            raise ZeroDivisionError
    assert called == (["nccl"] if fails else ["nccl", "destroyed"])


LEAVES = """
import os
import torch
from sims_image.processes import start

with start("cpu") as processes:
    import torch.distributed.nn.functional, torch._dynamo
    processes.sum(torch.ones(1))
names = [open(f"/proc/self/task/{task}/comm").read() for task in os.listdir("/proc/self/task")]
print(sum("gloo" in name for name in names))
"""


def test_nothing_of_gloo_s_outlives_its_group():
    """Its threads, if alive when Python ends, may abort the process: "terminate called without an active ..."."""
    assert finish(launch(["-c", LEAVES], 2, fresh=True)) == ["0\n", "0\n"]


def test_processes_of_one_machine_do_not_share_a_gpu(one_gpu, monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert choose_device("cuda") == CUDA
    with pytest.raises(InputError, match="a GPU each"):
        choose_device("cuda:0")
