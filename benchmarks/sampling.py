"""What SIMS costs over its base: images per second of both in one run, and the ratio, for each way to guide.

``python benchmarks/sampling.py [--presets digits,cifar10-tiny] [--sampler heun:18] [--rounds 2] [--threads 1]``. Random
weights. All ways draw the same batch in turn, round after round, and the least time counts. On a CPU with one thread
times are of the process, which other processes disturb little; with ``--threads 2`` (an idle machine, please) two
networks are also overlapped in two threads, with ``--device cuda`` on two streams, and times are elapsed ones. omega is
not retuned: cost does not depend on it.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from machine import save
from torch import Tensor

from sims_core.guidance import GuidanceSchedule
from sims_core.sampling import Sampler
from sims_image.models.checkpoints import Record, Summary
from sims_image.models.networks import build
from sims_image.models.presets import PRESETS
from sims_image.processes import full_float32
from sims_image.sampling.engine import Engine
from sims_image.sampling.guided import Model

#: images drawn at once, for about a second of the base
BATCHES = {"digits": 32, "fashion16": 8, "cifar10-tiny": 2}
#: (name, schedule, engine); None is the base alone. The interval and the holding are the toy's (docs/laboratory-...)
WAYS: list[tuple[str, str | None, Engine]] = [
    ("base", None, Engine()),
    ("full", "full", Engine()),
    ("predictor only", "predictor", Engine()),
    ("held over 1 step", "held:1", Engine()),
    ("held over 2 steps", "held:2", Engine()),
    ("held over 3 steps", "held:3", Engine()),
    ("interval 0.8 to 3", "interval:0.8:3", Engine()),
    ("held over 1 step, interval 0.8 to 3", "held:1+interval:0.8:3", Engine()),
]


def pair(preset: str, device: str) -> Model:
    """A base of random weights and an auxiliary."""
    config = PRESETS[preset].config()
    networks = []
    for scale in (0.0, 1e-3):
        torch.manual_seed(0)
        network = build(**config).eval()
        with torch.no_grad():
            for weight in network.parameters():  # the zero-initialised layers would end every path
                weight.add_(0.02 * torch.randn_like(weight))
            for weight in network.parameters():
                weight.add_(scale * torch.randn_like(weight))
        networks.append(network.to(device))
    summary = Summary(Path(preset), config, "edm", 0, "", Record())
    return Model(summary, networks[0], "sims", summary, networks[1], 1.0)


def drawing(
    model: Model, schedule: str | None, engine: Engine, sampler: Sampler, noise: Tensor
) -> Callable[[], Tensor]:
    """The call that draws one batch, prepared."""
    if schedule is None:
        model = replace(model, other=None, omega=0.0, engine=engine)
    else:
        model = replace(model, schedule=GuidanceSchedule.parse(schedule), engine=engine)
    count = model.network.label_dim
    classes = torch.arange(len(noise), device=noise.device) % count if count else None
    denoiser = model.denoiser(classes)

    def draw() -> Tensor:
        return sampler(denoiser, noise)

    replace(sampler, steps=2)(denoiser, noise)  # prepares what is prepared once
    return draw


def timed(draw: Callable[[], Tensor], device: str) -> tuple[float, float, Tensor]:
    """(CPU seconds, elapsed seconds, images)."""
    if device != "cpu":
        torch.cuda.synchronize()
    cpu, wall = time.process_time(), time.perf_counter()
    images = draw()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.process_time() - cpu, time.perf_counter() - wall, images


def ways(device: str, threads: int) -> list[tuple[str, str | None, Engine]]:
    """`WAYS`, and those that take more than one thread or a GPU."""
    found = list(WAYS)
    if device != "cpu" or threads > 1:
        found.append(("full, overlapped", "full", Engine("overlapped")))
    if device != "cpu":
        found += [(f"{text or 'base'}, CUDA graph", text, Engine(cuda_graph=True)) for text in (None, "full")]
    return found


def measure(preset: str, sampler: Sampler, batch: int, rounds: int, device: str, threads: int) -> list[dict[str, Any]]:
    model = pair(preset, device)
    generator = torch.Generator().manual_seed(1)
    noise = torch.randn(batch, *model.shape, generator=generator, dtype=torch.float64).to(device)
    asked = ways(device, threads)
    draws = {name: drawing(model, text, engine, sampler, noise) for name, text, engine in asked}
    best, images = dict.fromkeys(draws, math.inf), dict[str, Tensor]()
    elapsed = device != "cpu" or threads > 1
    for _ in range(rounds):
        for name, draw in draws.items():
            cpu, wall, images[name] = timed(draw, device)
            best[name] = min(best[name], wall if elapsed else cpu)
    rows = []
    for name, text, _ in asked:
        error = float((images[name] - images["full"]).norm() / images["full"].norm())
        own, other = sampler.evaluations(GuidanceSchedule.parse(text or "full"))
        other = 0 if text is None else other
        row = {"way": name, "nfe_base": own, "nfe_auxiliary": other, "evaluations": (own + other) / own}
        row |= {"error": error if text == "full" else 0.0}  # of what ought to be full guidance
        rows.append(row | {"images_per_s": batch / best[name], "ratio": best[name] / best["base"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", default="digits,cifar10-tiny")
    parser.add_argument("--sampler", default="heun:18")
    parser.add_argument("--batch", type=int, default=0, help="images drawn at once; default by preset")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    full_float32()
    clock = "elapsed" if options.device != "cpu" or options.threads > 1 else "cpu"
    sampler, found = Sampler.parse(options.sampler), {}
    for preset in options.presets.split(","):
        batch = options.batch or BATCHES.get(preset, 4)
        found[preset] = measure(preset, sampler, batch, options.rounds, options.device, options.threads)
        print(f"{preset}, batch {batch}, {sampler}, {options.device}, {options.threads} thread(s), {clock} time")
        print(f"{'way':38}{'evaluations':>12}{'of the base':>12}{'images/s':>10}{'ratio':>7}")
        for row in found[preset]:
            if not row["error"] < 1e-4:  # or the ratios would compare different things
                raise RuntimeError(f"{row['way']} differs from full guidance by {row['error']:.1e}")
            counts = f"{row['nfe_base']}+{row['nfe_auxiliary']}"
            numbers = f"{row['evaluations']:12.2f}{row['images_per_s']:10.2f}{row['ratio']:7.2f}"
            print(f"{row['way']:38}{counts:>12}{numbers}")
        print()
    save(options.json, {"device": options.device, "clock": clock, "sampler": str(sampler), "presets": found})


if __name__ == "__main__":
    main()
