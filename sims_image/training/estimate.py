"""What a training run will cost, before it is run: parameters, memory and time.

Parameters, activations and floating-point operations are counted exactly, by tracing one image through the network on
torch's meta device, which computes shapes and allocates nothing. Time is operations over a rate that this machine is
seen to reach; hours on a GPU are operations over an assumed one.
"""

from __future__ import annotations

import functools
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sims_core.lab.placing import size
from sims_core.lab.runs import duration
from sims_core.lab.study import brief
from sims_image.models import adapters
from sims_image.models.cost import TRACED, on_gpus
from sims_image.models.networks import Preconditioned, build
from sims_image.models.presets import Recipe
from sims_image.processes import choose_device, full_float32
from sims_image.training.objectives import make_objective
from sims_image.training.options import Train
from sims_image.training.plan import Plan
from sims_image.training.schedules import profiles, shares
from sims_image.training.trainer import BODIES

#: above this many operations per image, a trial of the network itself takes too long
_TRIAL = 4e11


@dataclass(frozen=True)
class Cost:
    """parameters; trained: how many of them are. flops: floating-point operations of an image, forward and backward (a
    multiply-add is two).

    activations: bytes kept for the backward pass by each image, shared: by a pass of any size (weights as they are
    used), in the recipe's precision.
    """

    parameters: int
    trained: int
    flops: float
    activations: int
    shared: int

    @property
    def state(self) -> int:
        """Bytes of the weights, and of gradients and Adam's two of those that are trained."""
        return 4 * (self.parameters + 3 * self.trained)

    def memory(self, images: int, averages: int) -> int:
        """Bytes at the peak of a pass of ``images``: weights, gradients, Adam's two, averages, what backward needs."""
        return self.state + 4 * averages * self.trained + self.shared + self.activations * images


def _network(config: dict[str, Any], recipe: Recipe, lora: str) -> Preconditioned:
    """A network to be trained, all of it or an adapter on it."""
    network: Any = build(**config).train()
    network.compute_dtype = BODIES[recipe.precision]
    if lora:
        adapters.attach(network, adapters.targets_of(lora, network), adapters.Adapter(adapters.parse(lora)[0], "", ""))
    found: Preconditioned = network
    return found


def measure(config: dict[str, Any], recipe: Recipe, lora: str = "") -> Cost:
    """Count a training step, of all weights or of an adapter ``lora`` on frozen ones.

    Raises `InputError`, as `sims_image.models.networks.build` does.
    """
    return _measured(json.dumps(config, sort_keys=True), recipe, lora)


@functools.lru_cache(maxsize=16)
def _measured(known: str, recipe: Recipe, lora: str) -> Cost:
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    with torch.device("meta"):
        network = _network(json.loads(known), recipe, lora)
        with FlopCounterMode(display=False) as counter:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                loss = _loss(network, recipe, TRACED)
            loss.backward()  # type: ignore[no-untyped-call]
    own = {t.untyped_storage()._cdata for t in (*network.parameters(), *network.buffers())}
    sizes = [t.untyped_storage().nbytes() for key, t in kept.items() if key not in own]
    images = sum(n for n in sizes if n % TRACED == 0)
    parameters = sum(p.numel() for p in network.parameters())
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return Cost(parameters, trained, counter.get_total_flops() / TRACED, images // TRACED, sum(sizes) - images)


def here(flops: float, config: dict[str, Any], recipe: Recipe, step: float, device: str, lora: str = "") -> str:
    """What ``flops`` take on this machine, in words, by the `rate` of half a second."""
    place = choose_device(device)
    reached = rate(config, recipe, step, place, seconds=0.5, lora=lora)
    return f"about {duration(flops / reached)} on 1 x {place}, {reached / 1e9:.3g} GFLOP/s"


def _loss(network: Preconditioned, recipe: Recipe, images: int, device: str | torch.device = "meta") -> Tensor:
    """The loss of random images: what a training step computes."""
    side = network.img_resolution
    clean = torch.randn(images, network.img_channels, side, side, device=device)
    conditions = {}
    if network.label_dim:
        conditions["class_labels"] = torch.zeros(images, network.label_dim, device=device)
    if network.config.get("augment_dim"):
        conditions["augment_labels"] = torch.zeros(images, network.config["augment_dim"], device=device)
    level = torch.randn(images, device=device)
    return make_objective(recipe, network)(network, clean, level, torch.randn_like(clean), conditions).value.sum()


def rate(
    config: dict[str, Any], recipe: Recipe, step: float, device: torch.device, *, seconds: float = 2.0, lora: str = ""
) -> float:
    """Operations per second that this machine reaches: in a step of the network itself, or of one of its layers.

    step: operations of an image, forward and backward. The network is tried where they are at most 4e11, with as many
    images as make about 1e11. CPUs are timed in float32: in half precision they are slower, where they can at all.
    """
    full_float32()  # as training computes
    body = BODIES[recipe.precision] if device.type == "cuda" else torch.float32
    if step <= _TRIAL:
        network = _network(config, recipe, lora).to(device)
        network.compute_dtype = body
        images = max(1, min(recipe.batch, round(1e11 / step)))
        spent = _fastest(lambda: _loss(network, recipe, images, device).backward(), device, seconds)  # type: ignore[no-untyped-call]
        return images * step / spent
    width = int(config.get("model_channels", 256)) * max(config.get("channel_mult", [2])) // 2
    layer = torch.nn.Conv2d(width, width, 3, padding=1).to(device, body)
    x = torch.randn(2, width, 16, 16, device=device, dtype=body, requires_grad=True)
    spent = _fastest(lambda: layer(x).sum().backward(), device, seconds)
    return float(6 * len(x) * width**2 * 9 * 16**2) / spent


def _fastest(action: Callable[[], object], device: torch.device, seconds: float) -> float:
    """The least of several timings, the first left out."""
    found, began = math.inf, time.perf_counter()
    for turn in range(20):
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found = min(found, time.perf_counter() - start) if turn else found
        if turn and time.perf_counter() - began > seconds:
            break
    return found


def describe(plan: Plan, train: Train) -> str:
    """The plan in words, with parameters, memory and time. Raises `InputError`, as the run would."""
    recipe, table = plan.recipe, plan.table
    world = int(os.environ.get("WORLD_SIZE", "1"))
    device = choose_device(train.device)
    part, passes = shares("batch", recipe.batch, world, train.microbatch)
    cost = measure(plan.config, recipe, plan.lora)
    reached = rate(plan.config, recipe, cost.flops, device, lora=plan.lora)
    averages, body = len(profiles(recipe)), plan.settings["recipe"]["precision"]
    total = cost.flops * table.steps * table.batch
    data = "none named" if plan.data is None else f"{plan.data.name}: {len(plan.data)} images, {plan.data.path}"
    parent = "" if plan.parent is None else f"{plan.parent.path} ({plan.parent.record.budget})"
    mi = "10^6" if recipe.mi == 10**6 else "2^20"
    snapshots = [f"{step * table.batch / recipe.mi:.4g}" for step in table.snapshots]
    shown = snapshots if len(snapshots) <= 10 else [*snapshots[:3], "...", snapshots[-1]]
    parts = [f"{size(cost.state)} weights, gradients and Adam"]
    parts += [f"{size(4 * averages * cost.trained)} averages", f"{size(cost.memory(part, 0) - cost.state)} activations"]
    lines = [
        ("preset", plan.preset),
        *([("from", parent)] if parent else []),
        ("data", data),
        *((key, brief(value)) for key, value in (asdict(recipe) | {"precision": body}).items()),
        *((f"network.{key}", brief(value)) for key, value in plan.config.items()),
        ("seed", str(plan.seed)),
        ("steps", f"{table.steps:,} of {recipe.batch} images: {world} process(es) x {passes} passes of {part}"),
        ("snapshots", f"at {', '.join(shown)} Mi (Mi = {mi})"),
        ("sheets", f"{plan.sheet} rows, {plan.sampler}, at {len(plan.sheets)} snapshots" if plan.sheets else "none"),
        ("parameters", f"{cost.parameters:,}" + f", {cost.trained:,} of them trained" * bool(plan.lora)),
        ("memory", f"about {size(cost.memory(part, averages))} per process: {', '.join(parts)}"),
        ("compute", f"{cost.flops / 1e9:.4g} GFLOP per image, {total:.3g} FLOP in all"),
        ("time here", f"about {duration(total / reached / world)} on {world} x {device}, {reached / 1e9:.3g} GFLOP/s"),
        ("time on GPUs", on_gpus(total, recipe.precision)),
        ("out", train.out or str(plan.folder)),
    ]  # fmt: skip
    width = max(len(key) for key, _ in lines)
    return "\n".join([f"note: {note}" for note in plan.notes] + [f"{key:>{width}}  {value}" for key, value in lines])
