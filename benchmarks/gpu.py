"""What this card does with our networks: training, sampling, features, toy ensembles; each figure kept at once.

    python benchmarks/gpu.py [--seconds 120] [--peer DIR] [--json FILE] [--device cpu]

Measurements run in order of their worth. Each one is written to FILE (default benchmarks/results/gpu-CARD.json) as it
ends, one that does not fit into what is left of ``--seconds`` is passed over by name, and one that fails does not stop
the next. Training steps are `Trainer`'s own, on random images that threads read ahead, between synchronisations; their
share is operations (counted by tracing) over the card's bf16 matrix rate, measured first. ``--peer`` names a checkout
of NVIDIA's edm or edm2, whose network, loss, augmentation and averages then train by their published loop on the same
images; nothing of it is copied. ``--device cpu`` is a dry run at toy size, whose figures mean nothing.
"""

from __future__ import annotations

import argparse
import copy
import os
import re
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import ensemble
import numpy as np
import sampling
import torch
import training

from sims_core.lab.runs import write_json
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_image.metrics.classifier import Classifier
from sims_image.metrics.vit import VisionTransformer
from sims_image.models.networks import build
from sims_image.models.presets import PRESETS, Preset
from sims_image.processes import Processes, choose_device, full_float32, repeatable_kernels, tuned_kernels
from sims_image.training.augment import Augmentation
from sims_image.training.batches import Feed
from sims_image.training.estimate import Cost, measure
from sims_image.training.trainer import Options, Trainer, profiles
from sims_toy.networks.ensemble import Ensemble, numba_available
from sims_toy.networks.mlp import Mlp
from sims_toy.networks.schedule import Training
from sims_toy.networks.training import train

RESULTS = Path(__file__).parent / "results"
#: images of a training step, where they fit the card
BATCHES = {"cifar10-uncond": 256, "imagenet64-edm2-s": 64}
#: how training is measured: (precision, channels-last, compiled, how cuDNN chooses its kernels)
WAYS = {
    "bf16, channels-last": ("bf16", True, False, nullcontext),
    "bf16": ("bf16", False, False, nullcontext),
    "fp16": ("fp16", False, False, nullcontext),
    "float32": ("float32", False, False, nullcontext),
    "bf16, tuned": ("bf16", False, False, tuned_kernels),
    "float32, tuned": ("float32", False, False, tuned_kernels),
    "bf16, channels-last, repeatable": ("bf16", True, False, repeatable_kernels),
    "bf16, compiled": ("bf16", False, True, nullcontext),
    "bf16, channels-last, compiled": ("bf16", True, True, nullcontext),
}


@dataclass
class Bench:
    """A device, how much time is left on it, and what has been measured."""

    device: torch.device
    path: Path
    until: float
    peers: list[Path]
    found: dict[str, Any] = field(default_factory=dict)
    failed: int = 0

    @property
    def toy(self) -> bool:
        """Whether this is a dry run."""
        return self.device.type == "cpu"

    @property
    def card(self) -> str:
        """The device's name."""
        return "cpu" if self.toy else torch.cuda.get_device_name(self.device)

    def sync(self) -> float:
        """The time, when all that was asked of the device is done."""
        if not self.toy:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def take(self, name: str, needs: float, work: Callable[[], dict[str, Any]]) -> None:
        """Measure one thing, print it, and keep it."""
        left = self.until - time.monotonic()
        began = time.monotonic()
        if left < needs and not self.toy:
            row: dict[str, Any] = {"skipped": f"needs about {needs:g} s, and {max(left, 0):.0f} s were left"}
        else:
            try:
                row = work()
            except Exception as error:  # of whatever kind: the next measurement is worth as much
                traceback.print_exc()
                row, self.failed = {"failed": f"{type(error).__name__}: {error}".splitlines()[0]}, self.failed + 1
        if not self.toy:
            torch.cuda.empty_cache()
        self.found[name] = row | {"took": round(time.monotonic() - began, 1)}
        words = ", ".join(f"{key} {_short(value)}" for key, value in self.found[name].items() if key != "rows")
        print(f"{name}: {words}", flush=True)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        record = {"device": self.card, "torch": torch.__version__, "cuda": torch.version.cuda, "dry run": self.toy}
        write_json(self.path, record | {"utc": time.strftime("%Y-%m-%d %H:%M", time.gmtime()), "found": self.found})


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ----------------------------------------------------------------------- the card


def ceilings(bench: Bench) -> dict[str, Any]:
    """Square matrix products in TFLOP/s, random data, and a copy within the device in TB/s (read and written)."""
    n, found = 256 if bench.toy else 8192, {}
    for name, dtype in (("bf16", torch.bfloat16), ("float32", torch.float32)):
        a, b = (torch.randn(n, n, device=bench.device).to(dtype) for _ in range(2))
        found[f"{name} TFLOP/s"] = 2 * n**3 / _median(bench, partial(torch.mm, a, b)) / 1e12
    source = torch.randn(n, n, 4, device=bench.device)
    found["copy TB/s"] = 2 * source.nbytes / _median(bench, partial(torch.empty_like(source).copy_, source)) / 1e12
    return found


def _median(bench: Bench, work: Callable[[], object], turns: int = 10) -> float:
    """Median seconds of ``work``, after a few that warm up."""
    marks = []
    for turn in range(turns + 3):
        start = bench.sync()
        work()
        marks.append(bench.sync() - start if turn >= 3 else None)
    return statistics.median(mark for mark in marks if mark is not None)


# ----------------------------------------------------------------------- training


def preset_of(bench: Bench, name: str) -> Preset:
    """The preset, or for a dry run its family at toy size."""
    preset = PRESETS[name]
    small = {"model_channels": 16, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8]}
    return replace(preset, network={**preset.network, **small}, shape=(3, 16, 16)) if bench.toy else preset


def batch_of(bench: Bench, name: str, cost: Cost, averages: int) -> int:
    """The most images per step, halved until they fit 80 % of the card's memory."""
    images = 4 if bench.toy else BATCHES[name]
    room = 0.8 * (float("inf") if bench.toy else torch.cuda.get_device_properties(bench.device).total_memory)
    while images > 1 and cost.memory(images, averages) > room:
        images //= 2
    return images


def feed_of(bench: Bench, name: str, folder: str, images: int) -> Feed:
    """Random images as training reads them."""
    preset = preset_of(bench, name)
    return Feed(
        training.random_images(Path(folder) / "data", preset.shape, preset.classes),
        Seed(0),
        label_dim=preset.classes,
        augment=Augmentation(preset.recipe.augment) if preset.recipe.augment else None,
        augment_dim=int(preset.network.get("augment_dim", 0)),
        part=images,
        passes=1,
        device=bench.device,
    )


def speed(bench: Bench, images: int, flops: float, steps: Callable[[int], object]) -> dict[str, Any]:
    """Seconds of the first step, and images per second of ``steps(n)``, which takes n steps: three warm up, the timed
    ones last about 2 s."""
    start = bench.sync()
    steps(1)
    first = bench.sync() - start
    steps(1 if bench.toy else 2)
    start = bench.sync()
    steps(1)
    one = bench.sync() - start
    count = 1 if bench.toy else max(3, min(50, round(2 / one)))
    start = bench.sync()
    steps(count)
    rate = count * images / (bench.sync() - start)
    top = bench.found.get("ceilings", {}).get("bf16 TFLOP/s", float("nan"))
    found = {
        "first step s": first,
        "images/s": rate,
        "TFLOP/s": rate * flops / 1e12,
        "share of bf16": rate * flops / 1e12 / top,
    }
    if not bench.toy:
        found["peak GB"] = torch.cuda.max_memory_allocated(bench.device) / 1e9
        torch.cuda.reset_peak_memory_stats(bench.device)
    return found | {"batch": images}


def step(bench: Bench, name: str, way: str) -> dict[str, Any]:
    """Our training step of a preset."""
    precision, last, compiled, kernels = WAYS[way]
    preset = preset_of(bench, name)
    recipe = replace(preset.recipe, precision=precision, lr_rampup=0, lr=1e-6)
    cost = measure(preset.config(), recipe)
    images = batch_of(bench, name, cost, len(profiles(recipe)))
    with tempfile.TemporaryDirectory() as folder, kernels():
        torch.manual_seed(0)
        subject = Trainer(
            build(**preset.config()),
            replace(recipe, batch=images),
            feed_of(bench, name, folder, images),
            Seed(0),
            processes=Processes(0, 1, bench.device),
            options=Options(compiled, last, workers=4),
        )
        found = speed(bench, images, cost.flops, lambda n: subject.run(subject.step + n, after=lambda: None))
        return found | {"loss": subject.report(lambda: "").loss}


# --------------------------------------------------------------- NVIDIA's own step


@contextmanager
def checkout(folder: Path) -> Iterator[None]:
    """Import from a checkout of NVIDIA's code, and forget its modules afterwards: ours have names of theirs."""
    names = ("training", "torch_utils", "dnnlib")

    def take_out() -> dict[str, Any]:
        return {key: sys.modules.pop(key) for key in [*sys.modules] if key.split(".")[0] in names}

    kept = take_out()
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        take_out()
        sys.modules.update(kept)


def theirs(bench: Bench, folder: Path, precision: str) -> dict[str, Any]:
    """The step of `training/training_loop.py` in a checkout: its network, loss, augmentation and averages."""
    second = (folder / "training/networks_edm2.py").exists()
    name = "imagenet64-edm2-s" if second else "cifar10-uncond"
    preset = preset_of(bench, name)
    cost = measure(preset.config(), preset.recipe)
    images = batch_of(bench, name, cost, 2)
    half = {"use_fp16": precision == "fp16"}
    with tempfile.TemporaryDirectory() as place, checkout(folder), tuned_kernels():
        feed = feed_of(bench, name, place, images)
        if second:
            network = import_module("training.networks_edm2").Precond(**preset.config() | half)
            loss = import_module("training.training_loop").EDM2Loss(preset.recipe.p_mean, preset.recipe.p_std)
        else:
            network = import_module("training.networks").EDMPrecond(**preset.config() | half)
            pipe = {"xflip": 1e8, "yflip": 1, "scale": 1, "rotate_frac": 1, "aniso": 1, "translate_frac": 1}
            augment = import_module("training.augment").AugmentPipe(p=preset.recipe.augment, **pipe)
            loss = partial(import_module("training.loss").EDMLoss(), augment_pipe=augment)
        network.train().requires_grad_(True).to(bench.device)
        average = import_module("training.phema").PowerFunctionEMA(network) if second else copy.deepcopy(network)
        adam = torch.optim.Adam(network.parameters(), lr=1e-6, betas=(0.9, preset.recipe.beta2), eps=1e-8)
        seen = 0

        def steps(count: int) -> None:
            nonlocal seen
            for _ in range(count):
                batch = feed.read(seen // images, 0)
                adam.zero_grad(set_to_none=True)
                pixels = batch.images.pin_memory() if not bench.toy else batch.images
                pixels = pixels.to(bench.device).to(torch.float32) / 127.5 - 1
                labels = torch.zeros(images, network.label_dim)
                if batch.labels is not None:
                    labels = torch.eye(network.label_dim)[batch.labels]
                loss(net=network, images=pixels, labels=labels.to(bench.device)).sum().mul(1 / images).backward()
                for weight in network.parameters():
                    if weight.grad is not None:
                        torch.nan_to_num(weight.grad, nan=0, posinf=1e5, neginf=-1e5, out=weight.grad)
                adam.step()
                seen += images
                if second:
                    average.update(cur_nimg=seen, batch_size=images)
                    continue
                for mean, weight in zip(average.parameters(), network.parameters(), strict=True):
                    mean.detach().copy_(weight.detach().lerp(mean.detach(), 0.999))

        return speed(bench, images, cost.flops, steps)


# ----------------------------------------------------------- sampling, features, toy


def guided(bench: Bench, preset: str, sampler: str, batch: int, rounds: int) -> dict[str, Any]:
    """SIMS over its base in time, for each pairing and schedule (`benchmarks/sampling.py`)."""
    rows = sampling.measure(preset, Sampler.parse(sampler), batch, rounds, bench.device.type, 1)
    worst = max(row["error"] for row in rows)
    ratios = {row["way"]: row["ratio"] for row in rows}
    return {"sampler": sampler, "batch": batch, **ratios, "worst error": worst, "rows": rows}


def features(bench: Bench, width: int, depth: int) -> dict[str, Any]:
    """Images per second of the networks that distances are measured in, random weights: a classifier of 32x32 images,
    and DINOv2's network at its 224x224."""
    many, few = (2, 2) if bench.toy else (2048, 64)
    classifier = Classifier((3, 32, 32), 10).eval().to(bench.device)
    pixels = torch.randint(0, 256, (many, 3, 32, 32), dtype=torch.uint8, device=bench.device)
    transformer = VisionTransformer(width, depth, hidden=4 * width).eval().to(bench.device)
    views = torch.randn(few, 3, 224, 224, device=bench.device)
    with torch.no_grad():
        found = {"classifier images/s": many / _median(bench, partial(classifier, pixels), 5)}
        return found | {f"{transformer.kind} images/s": few / _median(bench, partial(transformer, views), 5)}


def toy(bench: Bench, networks: int) -> dict[str, Any]:
    """Net-steps per second of toy ensembles (widths 32, 32, batch 256), and of one core of this machine."""
    found = {}
    ways: list[tuple[str, str, int, str, bool]] = [("a core, torch", "cpu", 64, "torch", False)]
    if not bench.toy:
        ways += [("a core, numba", "cpu", 64, "numba", False)] if numba_available() else []
        ways += [("card", str(bench.device), networks, "torch", graph) for graph in (False, True)]
    for name, device, count, backend, graph in ways:
        count = min(count, networks)
        seeds = [Seed(0).child(i) for i in range(count)]
        settings = Training(steps=20 if bench.toy else 200, batch=256, target="plain")
        made = Ensemble.initial(Mlp(), seeds, sigma_data=ensemble.SIGMA_DATA, device=device)
        data = ensemble.gaussian(count).to(device)
        run = partial(train, made, data, seeds, settings, backend=backend, cuda_graph=graph)
        seconds = _median(bench, run, 3) if device != "cpu" else min(_wall(run) for _ in range(2))
        found[f"{name}{', graph' if graph else ''} net-steps/s"] = count * settings.steps / seconds
    return found | {"networks": networks}


def _wall(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


# ----------------------------------------------------------------------------- main


def plan(bench: Bench) -> Iterator[tuple[str, float, Callable[[], dict[str, Any]]]]:
    """(name, seconds on an H100, measured or a little more than what was, the measurement), the most valuable first."""
    small, large, last = "cifar10-uncond", "imagenet64-edm2-s", "bf16, channels-last"

    def training_step(name: str, way: str, needs: float) -> tuple[str, float, Callable[[], dict[str, Any]]]:
        return f"{name}: {way}", needs, lambda: step(bench, name, way)

    yield "ceilings", 2, lambda: ceilings(bench)
    yield training_step(small, last, 15)  # the first one loads the libraries
    yield training_step(small, "bf16", 5)
    yield training_step(large, last, 10)
    yield training_step(large, "bf16", 10)
    yield training_step(small, "fp16", 5)
    for folder in bench.peers:
        second = (folder / "training/networks_edm2.py").exists()
        if second:
            yield training_step(large, "fp16", 10)
        yield f"NVIDIA {folder.name}: fp16", 25, lambda f=folder: theirs(bench, f, "fp16")
    cheap = ("digits", "heun:2", 2, 1) if bench.toy else ("cifar10-tiny", "heun:18", 256, 2)
    yield f"sampling, {cheap[0]}", 21, lambda: guided(bench, *cheap)
    yield "toy ensembles", 25, lambda: toy(bench, 8 if bench.toy else 4096)
    yield "features", 6, lambda: features(bench, *((64, 1) if bench.toy else (1024, 24)))
    yield training_step(small, "float32", 10)
    for folder in bench.peers:
        if not (folder / "training/networks_edm2.py").exists():
            yield f"NVIDIA {folder.name}: float32", 30, lambda f=folder: theirs(bench, f, "float32")
    if not bench.toy:  # a compiler takes minutes on a CPU, and shows nothing of a card
        yield training_step(small, "bf16, compiled", 60)
        yield training_step(small, "bf16, channels-last, compiled", 60)
    yield training_step(small, f"{last}, repeatable", 5)
    yield training_step(small, "bf16, tuned", 30)
    yield training_step(small, "float32, tuned", 35)
    yield training_step(large, "float32", 20)
    if not bench.toy:
        yield f"sampling, {small}", 25, lambda: guided(bench, small, "heun:6", 32, 1)
        yield training_step(large, "bf16, compiled", 80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seconds", type=float, default=600, help="pass over what does not fit into so many")
    parser.add_argument("--peer", type=Path, action="append", default=[], help="a checkout of NVIDIA's edm or edm2")
    parser.add_argument("--only", default="", help="measure what has this in its name, such as compiled")
    parser.add_argument("--json", type=Path, help="where the figures go; a folder takes gpu-CARD.json")
    options = parser.parse_args()
    device = choose_device(options.device)
    if device.type == "cuda":
        torch.cuda.set_device(device)
        full_float32()
    bench = Bench(device, Path(), time.monotonic() + options.seconds, options.peer)
    name = re.sub(r"[^a-z0-9]+", "-", bench.card.lower().removeprefix("nvidia ")).strip("-")
    path = options.json or RESULTS
    bench.path = path if path.suffix == ".json" else path / f"gpu-{name}.json"
    print(f"{bench.card}, torch {torch.__version__}, numpy {np.__version__}", flush=True)
    for what in plan(bench):
        if options.only in what[0]:
            bench.take(*what)
    if not bench.found:
        parser.error(f"--only: got {options.only!r}; nothing that is measured has it in its name")
    done = sum("skipped" not in row and "failed" not in row for row in bench.found.values())
    print(f"{done} of {len(bench.found)} measured, {bench.failed} failed: {bench.path}")
    sys.exit(1 if bench.failed else 0)


if __name__ == "__main__":
    main()
