"""What networks cost: operations of an evaluation, and operations, bytes and seconds in words.

Operations are counted exactly, by tracing images through the network on torch's meta device, which computes shapes and
allocates nothing; hours on a GPU are operations over an assumed rate.
"""

from __future__ import annotations

import functools
import json
from typing import Any

import torch
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
    config = json.loads(known)
    with torch.device("meta"), torch.no_grad():
        network = build(**config).eval()
        side, labels = network.img_resolution, network.label_dim
        x = torch.zeros(TRACED, network.img_channels, side, side)
        with FlopCounterMode(display=False) as counter:
            network(x, torch.ones(TRACED), torch.zeros(TRACED, labels) if labels else None)
    return float(counter.get_total_flops()) / TRACED


def gpu_hours(flops: float, precision: str = "float32") -> float:
    """Hours that ``flops`` take on one A100."""
    return flops / A100[precision] / 3600


def on_gpus(flops: float, precision: str = "float32") -> str:
    """What ``flops`` take on GPUs, in words, with the assumption that is behind it."""
    hours = gpu_hours(flops, precision)
    time = f"{hours:.2g} hours" if hours >= 1 else duration(3600 * hours)
    return f"about {time} of one A100 (assumed: {A100[precision] / 1e12:g} TFLOP/s, {precision})"
