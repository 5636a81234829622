"""Host-to-device copies that do not block."""

from __future__ import annotations

import torch
from torch import Tensor

from sims_core.errors import InputError


def moved(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None = None) -> Tensor:
    """``tensor`` on ``device``, as ``dtype`` if one is given; itself where nothing changes.

    To a GPU it goes by way of pinned memory: from any other, even a copy that is called non-blocking may wait for the
    kernels before it. (Torch keeps pinned memory until the copies from it are done.)
    """
    target = torch.device(device)
    if tensor.device.type == "cpu" and target.type == "cuda":
        tensor = (tensor if dtype is None else tensor.to(dtype)).pin_memory()
    return tensor.to(device=target, dtype=dtype, non_blocking=True)


def filled(number: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    """``number`` on ``device``. A single one of the host's is filled in there, without a copy; others are `moved`."""
    if number.device == device or number.device.type != "cpu" or number.numel() != 1:
        return moved(number, device, dtype)
    return torch.full(number.shape, float(number), dtype=dtype, device=device)


def present(argument: str, device: str | torch.device, *, otherwise: int = 0) -> torch.device:
    """The CPU, or the CUDA device of that number (``otherwise`` where none is written).

    Raises `InputError` naming ``argument`` for any other, or for one that this machine does not have.
    """
    known = "write cpu, cuda or cuda:N"
    try:
        found = torch.device(device)
    except RuntimeError:
        raise InputError(argument, str(device), known) from None
    if found.type not in ("cpu", "cuda"):
        raise InputError(argument, str(device), known)
    if found.type == "cpu":
        return found
    index = found.index if found.index is not None else otherwise
    if index >= torch.cuda.device_count():
        raise InputError(argument, str(device), f"this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)


def own_dtype(network: object) -> torch.dtype:
    """The floating dtype that a network computes in: its own word, its parameters', or float32."""
    told = getattr(network, "dtype", None)
    if isinstance(told, torch.dtype):
        return told
    if not isinstance(network, torch.nn.Module):
        return torch.float32
    return next((p.dtype for p in network.parameters() if p.is_floating_point()), torch.float32)
