"""How fast is a training step, where does its time go, and how does it compare with a plain one?

``python benchmarks/training.py [--preset cifar10-uncond] [--images 2] [--rounds 3] [--device cpu]`` times `Trainer`
steps on random images: reading the data, putting a batch on the device (with draws and augmentation), forward,
backward, optimiser, averages. The plain step is the same network with the same weights as one would first write it,
float32 and eager: attention as two matrix products and a softmax, resampling as convolutions, images in torch's default
layout, optimiser and averages a parameter at a time, the loss read every step. Both are checked to compute the same
loss, dropout aside.

On a CPU, times are CPU-seconds of the process with ``--threads`` threads (default 1), the least of ``--rounds``
interleaved rounds; on a GPU, seconds between synchronisations.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest import mock

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from machine import save
from torch import Tensor

from sims_core import Seed
from sims_image.data.dataset import Dataset, open_dataset
from sims_image.models.networks import Preconditioned, build, edm, edm2
from sims_image.models.presets import AUTO, PRECISIONS, PRESETS, Recipe
from sims_image.processes import Processes, full_float32
from sims_image.training.augment import Augmentation
from sims_image.training.batches import Feed, Ready
from sims_image.training.estimate import measure
from sims_image.training.trainer import Options, Trainer
from sims_image.training.ways import Way, chosen, ways

PARTS = ("data", "device", "forward", "backward", "optimiser", "averages")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10-uncond", choices=PRESETS)
    parser.add_argument("--images", type=int, default=2, help="images per step")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="float32", choices=PRECISIONS)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--contiguous", action="store_true", help="our step without channels-last")
    parser.add_argument("--auto", action="store_true", help="our step as --precision auto --channels-last auto choose")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    full_float32()
    device = torch.device(args.device)
    preset = PRESETS[args.preset]
    recipe = replace(preset.recipe, batch=args.images, precision=args.precision, lr_rampup=0, lr=1e-6)
    with tempfile.TemporaryDirectory() as folder:
        data = random_images(Path(folder) / "data", preset.shape, preset.classes)
        feed = Feed(
            data,
            Seed(0),
            label_dim=preset.classes,
            augment=Augmentation(recipe.augment) if recipe.augment else None,
            augment_dim=int(preset.network.get("augment_dim", 0)),
            part=args.images,
            passes=1,
            device=device,
        )
        network = build(**preset.config())
        with torch.no_grad():
            for p in network.parameters():
                p.add_(0.02 * torch.randn_like(p))
        plain = Plain(copy.deepcopy(network).to(device), recipe, feed)
        way = Way(args.precision, not args.contiguous)
        if args.auto:
            plain_recipe = replace(recipe, precision="float32")
            way, _ = chosen(network, plain_recipe, feed, ways(device, AUTO, AUTO), compile=args.compile)
            recipe = replace(recipe, precision=way.precision)
        options = Options(args.compile, way.channels_last)
        ours = Trainer(network, recipe, feed, Seed(0), processes=Processes(0, 1, device), options=options)
        agree(ours, plain)
        rows = [measure_round(ours, plain, feed, device, turn) for turn in range(args.rounds + 1)][1:]
        reading = time_reading(feed, args.images)
    best = {key: min(row[key] for row in rows) for key in rows[0]}
    cost = measure(preset.config(), recipe)
    result = {
        "preset": args.preset,
        "device": args.device,
        "threads": args.threads,
        "auto": args.auto,
        "precision": way.precision,
        "compile": args.compile,
        "channels_last": options.channels_last,
        "images": args.images,
        "seconds": {key: round(value, 5) for key, value in best.items()},
        "images_per_second": round(args.images / best["ours"], 4),
        "plain_images_per_second": round(args.images / best["plain"], 4),
        "ratio": round(best["plain"] / best["ours"], 3),
        "gflops": round(cost.flops * args.images / best["ours"] / 1e9, 2),
        "reading_images_per_second": round(reading, 1),
    }
    show(result)
    save(args.json, result)


def show(result: dict[str, object]) -> None:
    seconds = result["seconds"]
    assert isinstance(seconds, dict)
    total = sum(seconds[part] for part in PARTS)
    print(f"{result['preset']}, {result['images']} images per step, {result['precision']}, {result['device']}")
    for part in PARTS:
        print(f"{part:>12}  {1000 * seconds[part]:10.2f} ms  {100 * seconds[part] / total:5.1f} %")
    speed = f"{result['images_per_second']} images/s, {result['gflops']} GFLOP/s"
    print(f"{'step':>12}  {1000 * seconds['ours']:10.2f} ms  {speed}")
    print(f"{'plain step':>12}  {1000 * seconds['plain']:10.2f} ms  {result['plain_images_per_second']} images/s")
    print(f"{'ratio':>12}  {result['ratio']}")
    print(f"{'reading':>12}  {result['reading_images_per_second']} images/s by one thread, alongside the step")


def measure_round(ours: Trainer, plain: Plain, feed: Feed, device: torch.device, turn: int) -> dict[str, float]:
    """Seconds of one step of each kind, and of the parts of ours."""
    now = clock(device)
    found = {}
    start = now()
    ours.take(feed(turn, turn + 1, workers=0))
    found["ours"] = now() - start
    start = now()
    plain.step(turn)
    found["plain"] = now() - start
    return found | parts(ours, feed, now, turn)


def agree(ours: Trainer, plain: Plain) -> None:
    """Exit unless both steps compute the same loss, without dropout (whose draws follow the memory's order)."""
    dropout = [(m, m.dropout) for net in (ours.network, plain.network) for m in net.modules() if hasattr(m, "dropout")]
    for module, _ in dropout:
        module.dropout = 0.0
    ready = ours.feed.ready(ours.feed.read(0, 0), channels_last=ours.options.channels_last)
    with torch.no_grad():
        loss = ours.objective(ours.network, ready.clean, ready.level, ready.noise, ready.conditions).value.mean()
        other = plain.loss(ready).mean()
    for module, rate in dropout:
        module.dropout = rate
    if not math.isclose(loss, other, rel_tol=1e-4 if ours.recipe.precision == "float32" else 0.1):
        raise SystemExit(f"the two steps disagree: {float(loss)} and {float(other)}")


def parts(ours: Trainer, feed: Feed, now: Callable[[], float], turn: int) -> dict[str, float]:
    """The seconds of each of `PARTS`, in a step of ours taken apart."""
    marks = [now()]
    batch = feed.read(turn, 0)
    marks.append(now())
    ready = feed.ready(batch, channels_last=ours.options.channels_last)
    marks.append(now())
    ours.optimizer.zero_grad(set_to_none=True)
    loss = ours.objective(ours._model, ready.clean, ready.level, ready.noise, ready.conditions)
    marks.append(now())
    ours.scaler.scale(loss.value.sum() / len(ready.clean)).backward()
    marks.append(now())
    ours.scaler.unscale_(ours.optimizer)
    ours._watch.gradient([p.grad for p in ours._parameters if p.grad is not None], turn, ours.scaler)
    ours.scaler.step(ours.optimizer)
    ours.scaler.update()
    marks.append(now())
    assert ours.averages is not None
    ours.averages.update(turn, len(ready.clean))
    marks.append(now())
    return {part: end - begin for part, begin, end in zip(PARTS, marks, marks[1:], strict=False)}


def clock(device: torch.device) -> Callable[[], float]:
    if device.type == "cpu":
        return time.process_time

    def now() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return now


def time_reading(feed: Feed, images: int) -> float:
    """Images per second that one thread reads."""
    count = max(1, 2000 // images)
    start = time.process_time()
    for step in range(count):
        feed.read(step, 0)
    return count * images / max(time.process_time() - start, 1e-9)


def random_images(folder: Path, shape: tuple[int, int, int], classes: int) -> Dataset:
    """A data-set folder of 1000 random images."""
    from sims_image.data.dataset import FORMAT

    folder.mkdir()
    rng = np.random.default_rng(0)
    np.save(folder / "images.npy", rng.integers(0, 256, (1000, *shape), dtype=np.uint8))
    if classes:
        np.save(folder / "labels.npy", np.arange(1000) % classes)
    record = {"format": FORMAT, "name": "random", "shape": list(shape), "dtype": "uint8", "sha256": ""}
    record |= {"classes": [str(k) for k in range(classes)], "counts": {"images": 1000}}
    (folder / "dataset.json").write_text(json.dumps(record))
    return open_dataset(folder, verify=False)


# ------------------------------------------------------------------ the plain step


class Plain:
    """A training step as one would first write it, of the same network."""

    def __init__(self, network: Preconditioned, recipe: Recipe, feed: Feed) -> None:
        self.network = network.train().requires_grad_(True)
        self.network.compute_dtype = torch.float32
        for module in self.network.modules():
            if hasattr(module, "box"):
                module.box = False  # resampling by convolution
        self.recipe, self.feed = recipe, feed
        self.average = copy.deepcopy(network).requires_grad_(False)
        betas = recipe.beta1, recipe.beta2
        self.optimizer = torch.optim.Adam(
            network.parameters(), lr=recipe.lr, betas=betas, eps=recipe.eps, foreach=False, fused=False
        )

    def loss(self, batch: Ready) -> Tensor:
        """EDM's or EDM2's loss of every element."""
        sigma = torch.exp(self.recipe.p_mean + self.recipe.p_std * batch.level)[:, None, None, None]
        noisy = batch.clean + sigma * batch.noise
        weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
        with plain_attention():
            if self.recipe.objective == "edm2":
                denoised, u = self.network(noisy, sigma, return_logvar=True, **batch.conditions)
                return weight / u.exp() * (denoised - batch.clean) ** 2 + u
            return weight * (self.network(noisy, sigma, **batch.conditions) - batch.clean) ** 2

    def step(self, turn: int) -> float:
        """One step; its loss."""
        batch = self.feed.ready(self.feed.read(turn, 0))
        self.optimizer.zero_grad()
        loss = self.loss(batch)
        (loss.sum() / len(loss)).backward()
        self.optimizer.step()
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.network.parameters(), strict=True):
                mean.copy_(value.lerp(mean, 0.999))
        return float(loss.mean().item())


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v with the matrix of weights in memory; as `networks.layers.attend`."""
    weights = torch.einsum("nhqd,nhkd->nhqk", q, k / math.sqrt(q.shape[-1])).softmax(-1)
    return torch.einsum("nhqk,nhkd->nhqd", weights, v).transpose(1, 2).flatten(2)


@contextmanager
def plain_attention() -> Iterator[None]:
    with mock.patch.object(edm, "attend", attention), mock.patch.object(edm2, "attend", attention):
        yield


if __name__ == "__main__":
    main()
