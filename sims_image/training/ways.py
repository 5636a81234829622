"""How a network trains fastest here: precision and memory layout, measured where a run leaves them to 'auto'.

A few passes forward and backward are timed for every way, on a copy of the network and the run's own first images. The
first way, float32 in torch's own layout, is the plain eager step; another is taken only where it is faster. bf16 is
tried where the device has it in hardware, and taken where its gradient is the float32 one's to well within the noise
that the choice of a batch makes.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sims_core.errors import InputError
from sims_core.lab.runs import parse_json
from sims_image.models import adapters
from sims_image.models.compiled import compiled
from sims_image.models.networks import Preconditioned
from sims_image.models.networks.layers import GroupNorm
from sims_image.models.presets import AUTO, Recipe
from sims_image.training.batches import Feed, Ready
from sims_image.training.estimate import measure
from sims_image.training.objectives import make_objective
from sims_image.training.trainer import BODIES

#: another way must take less than this share of the plain one's time: what timings differ by
FASTER = 0.97
#: most that bf16 may add to the gradient, of the noise between batches; added in squares, 3 % of it
PARITY = 0.25
#: operations of a timed pass
_OPERATIONS = 1e10
_ROUNDS = 4


@dataclass(frozen=True)
class Way:
    """precision: a name in `sims_image.training.trainer.BODIES`. channels_last: of images and convolutions."""

    precision: str
    channels_last: bool

    def __str__(self) -> str:
        return f"{self.precision}, {'channels-last' if self.channels_last else 'contiguous'}"


def ways(
    device: torch.device, precision: str, channels_last: bool | str | None, *, normalised: bool = True
) -> list[Way]:
    """Those that an option left to 'auto' may take, the plainest first.

    channels_last: None for what suits the device. normalised: whether the network has group normalisation, which CUDA
    computes in torch's own layout alone: turning images around each time makes EDM's step 1.4 times as long.
    """
    if channels_last is None:
        channels_last = device.type != "cuda" or not normalised
    bodies = ["float32", *["bf16"] * has_bf16(device)] if precision == AUTO else [precision]
    layouts = [False, True] if channels_last == AUTO else [bool(channels_last)]
    return [Way(*one) for one in product(bodies, layouts)]


def has_group_norm(network: nn.Module) -> bool:
    """Whether group normalisation is among its layers: EDM's and diffusers' networks have it, EDM2's do not."""
    return any(isinstance(part, (GroupNorm, nn.GroupNorm)) for part in network.modules())


def has_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 numbers in hardware."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if hasattr(torch.cpu, "get_capabilities"):
        return any("bf16" in name and there is True for name, there in torch.cpu.get_capabilities().items())
    return bool(getattr(torch.cpu, "_is_avx512_bf16_supported", bool)())


def chosen(
    network: Preconditioned, recipe: Recipe, feed: Feed, among: Sequence[Way], *, compile: bool = False
) -> tuple[Way, dict[str, Any]]:
    """The fastest of ``among`` that computes the same, and what was measured, JSON-able. The network is left alone.

    compile: time the network through torch.compile. Torch's global random state is left as it was.
    """
    with torch.random.fork_rng([feed.device] if feed.device.type == "cuda" else []):
        return _chosen(_Trial(network, recipe, feed, compile), among)


def _chosen(trial: _Trial, among: Sequence[Way]) -> tuple[Way, dict[str, Any]]:
    plain, seconds = among[0], dict.fromkeys(among, float("inf"))
    for turn in range(1 + _ROUNDS):  # the first one warms up; all take turns, since a machine's speed drifts
        for way in among:
            spent = trial.seconds(way)
            seconds[way] = min(seconds[way], spent) if turn else seconds[way]
    found: dict[str, Any] = {"images": trial.count}
    found["seconds"] = {str(way): round(spent, 6) for way, spent in seconds.items()}
    for way in sorted(among, key=seconds.__getitem__):
        if seconds[way] >= FASTER * seconds[plain]:
            break
        if way.precision != plain.precision:
            found["bf16_error"] = round(trial.error(way), 4)
        if found.get("bf16_error", 0) <= PARITY or way.precision == plain.precision:
            return way, found
    return plain, found


class _Trial:
    """A copy of a network in training, and two passes of images on which ways are compared."""

    def __init__(self, network: Preconditioned, recipe: Recipe, feed: Feed, compile: bool) -> None:
        self.device = feed.device
        self.network = copy.deepcopy(network).to(self.device).requires_grad_(True)
        if getattr(network, "adapter", None) is not None:
            adapters.freeze(self.network)
        draws = torch.Generator(self.device).manual_seed(0)
        with torch.no_grad():
            for value in self.network.parameters():
                if not value.any():  # a new network's last layers, through which no gradient passes
                    value.normal_(0, 0.02 if value.ndim else 1.0, generator=draws)
        self.objective = make_objective(recipe, self.network)
        self.model: nn.Module = compiled(self.network) if compile else self.network
        self.count = max(1, min(feed.part, round(_OPERATIONS / measure(network.config, recipe).flops)))
        self.images = [_first(feed.ready(feed.read(step, 0)), self.count) for step in range(2)]

    def turn(self, way: Way) -> None:
        """Let network and images be as in one of the ways."""
        layout = torch.channels_last if way.channels_last else torch.contiguous_format
        self.network.to(memory_format=layout)  # type: ignore[call-overload]
        self.network.compute_dtype = BODIES[way.precision]
        for i, r in enumerate(self.images):
            clean, noise = (images.contiguous(memory_format=layout) for images in (r.clean, r.noise))
            self.images[i] = replace(r, clean=clean, noise=noise)

    def backward(self, model: nn.Module, ready: Ready) -> None:
        """One pass, forward and backward."""
        value = self.objective(model, ready.clean, ready.level, ready.noise, ready.conditions).value
        (value.sum() / len(value)).backward()  # type: ignore[no-untyped-call]

    def seconds(self, way: Way) -> float:
        """Of one pass: the process's where one thread computes, which other processes disturb little, else elapsed."""
        self.turn(way)
        self.network.train()
        alone = self.device.type == "cpu" and torch.get_num_threads() == 1
        clock = time.process_time if alone else time.perf_counter
        wait = torch.cuda.synchronize if self.device.type == "cuda" else int
        wait()
        start = clock()
        self.backward(self.model, self.images[0])
        wait()
        return clock() - start

    def gradient(self, way: Way, number: int) -> Tensor:
        """Of all weights, flat, without dropout."""
        self.turn(way)
        self.network.eval().zero_grad(set_to_none=True)
        self.backward(self.network, self.images[number])
        return torch.cat([p.grad.flatten() for p in self.network.parameters() if p.grad is not None])

    def error(self, way: Way) -> float:
        """How far this way's gradient is from float32's, over the noise that the choice of images makes in it."""
        exact = replace(way, precision="float32")
        one, other = (self.gradient(exact, number) for number in range(2))
        return float((self.gradient(way, 0) - one).norm() / ((one - other).norm() / 2**0.5))


def _first(ready: Ready, count: int) -> Ready:
    """The first images of a pass."""
    parts = {f.name: getattr(ready, f.name)[:count] for f in fields(ready) if f.name != "conditions"}
    return Ready(**parts, conditions={name: value[:count] for name, value in ready.conditions.items()})


def read(path: Path) -> Way:
    """The way on record. Raises `InputError` for a damaged one: a run that continues otherwise is not the same run."""
    record = parse_json("out", str(path), path.read_bytes())
    way = Way(str(record.get("precision")), record.get("channels_last") is True)
    if way.precision not in BODIES or set(asdict(way)) - set(record):
        raise InputError("out", str(path), "it does not say how the run computes; name another folder")
    return way
