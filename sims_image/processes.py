"""The processes of one training run: one, or as many as ``torchrun`` starts, on one machine or on several.

Without torchrun's environment there is one process. With it, every process has a part of each batch; gradients are
averaged by nccl on GPUs and by gloo on CPUs. The first process alone writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from importlib import import_module
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sims_core.devices import present
from sims_core.errors import InputError

T = TypeVar("T")

#: a process waits this long for the first one to write a snapshot and draw its samples
PATIENCE = timedelta(hours=2)


@dataclass(frozen=True)
class Processes:
    """This process among its kind: its number, how many there are, and its device."""

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def together(self, action: Callable[[], T]) -> T | None:
        """Let the first process act while the others wait; returns its result there, None elsewhere.

        If it fails with `InputError` or OSError, it raises that and the others leave with exit code 2, so that the
        error is printed once.
        """
        failure: list[InputError | OSError | None] = [None]
        result = None
        if self.first:
            try:
                result = action()
            except (InputError, OSError) as error:
                failure[0] = error
        failed = self.world > 1 and bool(self.sum(torch.tensor(float(failure[0] is not None))))
        if failure[0] is not None:
            raise failure[0]
        if failed:
            raise SystemExit(2)
        return result

    def sum(self, value: Tensor) -> Tensor:
        """The sum of a float tensor over all processes."""
        if self.world > 1:
            value = value.to(self.device, torch.float64 if value.dtype == torch.float64 else torch.float32, copy=True)
            dist.all_reduce(value)
        return value

    def least(self, value: Tensor) -> Tensor:
        """The elementwise minimum of a float tensor over all processes."""
        if self.world > 1:
            value = value.to(self.device, copy=True)
            dist.all_reduce(value, dist.ReduceOp.MIN)
        return value


def choose_device(device: str) -> torch.device:
    """The device called ``device``; 'auto' is a GPU if there is one. Raises `InputError` for one that is not there."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if ":" in device and int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        raise InputError("device", device, "the processes of one machine need a GPU each: write cuda, or auto")
    return present("device", device, otherwise=int(os.environ.get("LOCAL_RANK", "0")))


@contextmanager
def start(device: str = "auto") -> Iterator[Processes]:
    """Join the other processes of a ``torchrun``, or be alone. ``device``: as `choose_device`.

    Raises `InputError` for a device that is not there.
    """
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        full_float32()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or dist.is_initialized():
        yield Processes(dist.get_rank(), dist.get_world_size(), chosen) if world > 1 else Processes(0, 1, chosen)
        return
    # before there is a group: as a default argument its functions keep the group that they find, and threads of gloo's
    # that are alive when Python ends abort the process now and then
    import_module("torch.distributed.nn.functional")
    if chosen.type == "cuda":
        dist.init_process_group("nccl", timeout=PATIENCE, device_id=chosen)
    else:
        dist.init_process_group("gloo", timeout=PATIENCE)
    whole = False
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), chosen)
        whole = True
    finally:
        if whole or chosen.type == "cpu":  # after an error nccl may wait for processes that are gone, and hide it
            dist.destroy_process_group()


def full_float32() -> None:
    """Let float32 mean float32 on GPUs, in this process from now on.

    There torch convolves float32 in TF32, with 10 bits of mantissa, unless it is told not to (and some installations
    multiply matrices so): more is lost than the 0.1 % by which guided networks differ.
    """
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def tuned_kernels() -> Iterator[None]:
    """Let cuDNN time its algorithms and take the fastest: for training alone.

    Which one it takes changes from process to process, and generated images are to be the same in all of them.
    """
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextmanager
def repeatable_kernels() -> Iterator[None]:
    """Let a GPU do the same sums in the same order every time, and refuse operations that it cannot do so."""
    backend = torch.backends.cudnn
    before = backend.benchmark, backend.deterministic
    kept = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # torch asks for it
    backend.benchmark, backend.deterministic = False, True
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        backend.benchmark, backend.deterministic = before
        torch.use_deterministic_algorithms(kept[0], warn_only=kept[1])
