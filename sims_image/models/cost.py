"""What networks cost: operations and memory of an evaluation, and operations and seconds in words.

Both are counted by tracing images through the network on torch's meta device, which computes shapes and allocates
nothing: operations exactly, memory without what a kernel takes for itself. Hours on a GPU are operations over an
assumed rate.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sims_core.lab.runs import duration
from sims_image.models.networks import build

#: operations per second that an A100 sustains in training such networks: 40% of its 312 TFLOP/s in bf16 or fp16 (an
#: assumption, not measured here), 8 times less in float32 without tensor cores
A100 = {"bf16": 125e12, "fp16": 125e12, "float32": 15e12}
#: images traced: a prime that divides no width, so that what grows with the batch is told from what does not
TRACED = 13


def evaluation_flops(config: dict[str, Any]) -> float:
    """Floating-point operations of one evaluation of the network on one image (a multiply-add is two)."""
    return _evaluation_flops(json.dumps(config, sort_keys=True))


@functools.lru_cache(maxsize=16)
def _evaluation_flops(known: str) -> float:
    counter = FlopCounterMode(display=False)
    _trace(known, TRACED, counter)
    return float(counter.get_total_flops()) / TRACED


@functools.lru_cache(maxsize=64)
def _evaluation_bytes(known: str, images: int) -> tuple[int, int, int]:
    counter = LiveBytes()
    network, x = _trace(known, images, counter)
    return int(sum(t.nbytes for t in (*network.parameters(), *network.buffers()))), counter.peak, int(x.nbytes)


def evaluation_bytes(configs: Sequence[dict[str, Any]], images: int) -> int:
    """Bytes at the peak of evaluating networks in turn on a batch of images, float32: all weights, the images, what one
    network makes on its way and, of two, what the first has put out. A sampler's own few batches are not counted.
    """
    found = [_evaluation_bytes(json.dumps(one, sort_keys=True), images) for one in configs]
    return sum(weights + batch for weights, _, batch in found) + max(made for _, made, _ in found)


def _trace(known: str, images: int, counter: AbstractContextManager[Any]) -> tuple[nn.Module, Tensor]:
    """The network and the images that were traced through it."""
    with torch.device("meta"), torch.no_grad():
        network = build(**json.loads(known)).eval()
        side, labels = network.img_resolution, network.label_dim
        x = torch.zeros(images, network.img_channels, side, side)
        given = x, torch.ones(images), torch.zeros(images, labels) if labels else None
        with counter:
            network(*given)
    return network, x


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that torch's operations make while it is on. peak: the most alive at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        self._alive: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        known = {one.untyped_storage()._cdata for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and (storage := one.untyped_storage())._cdata not in known:
                kept: Any = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
                self._alive.setdefault(storage._cdata, (kept, storage.nbytes()))
        self._alive = {key: kept for key, kept in self._alive.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._alive.values()))
        return made


def gpu_hours(flops: float, precision: str = "float32") -> float:
    """Hours that ``flops`` take on one A100."""
    return flops / A100[precision] / 3600


def on_gpus(flops: float, precision: str = "float32") -> str:
    """What ``flops`` take on GPUs, in words, with the assumption that is behind it."""
    hours = gpu_hours(flops, precision)
    time = f"{hours:.2g} hours" if hours >= 1 else duration(3600 * hours)
    return f"about {time} of one A100 (assumed: {A100[precision] / 1e12:g} TFLOP/s, {precision})"
