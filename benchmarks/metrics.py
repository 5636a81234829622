"""What measuring costs compared with generating and the feature network: gathering features, and each metric once.

``python benchmarks/metrics.py [--n 10000] [--widths 64,1280] [--streamed digits:64,cifar10-tiny:1280] [--json FILE]``.
Features are random. Gathering is in images per CPU-second, to be compared with a generator's rate; the metrics in
seconds, with the jackknife. Memory is what a sample holds in the end: it depends on the features' number and on the
images kept, not on n. Streamed, the images of a preset's network (random weights, its sampler) are measured as they are
made: 'evaluating' is what is neither the generator's nor the feature network's, for each image and, once, at the end,
in shares of the generator's time for --n images. The classifier's features are timed with it, and the generator's
rate is told as a share of the machine's SGEMM. CPU time of one thread.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from machine import save, sgemm_rate

from sims_image.metrics.compare import Side, compare
from sims_image.metrics.kid import sums
from sims_image.metrics.moments import Frechet
from sims_image.metrics.neighbours import Nearest, manifolds
from sims_image.metrics.samples import Sample


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    start = time.process_time()
    found = action()
    return time.process_time() - start, found


def gather(width: int, n: int, batch: int = 256) -> Sample:
    rng = np.random.default_rng(0)
    block = rng.normal(size=(batch, width)).astype(np.float32)
    sample = Sample(width)
    for start in range(0, n, batch):
        sample.add(np.arange(start, min(start + batch, n)), block[: min(batch, n - start)] + np.float32(start % 7))
    return sample


def held(sample: Sample) -> int:
    """Bytes of moments and kept features."""
    kept = sample.kept()
    return sum(part.scatter.nbytes for part in sample.parts) + kept.features.nbytes


def measured(width: int, n: int) -> dict[str, float]:
    gather(width, 512)
    seconds, sample = timed(lambda: gather(width, n))
    side = Side.of(sample)
    kept = sample.kept()
    found = {"gathered_per_s": n / seconds, "held_mb": held(sample) / 2**20}
    found["held_mb_twice_n"] = held(gather(width, 2 * n)) / 2**20
    found["root_s"], root = timed(lambda: Frechet(side.statistics))
    found["frechet_s"], _ = timed(lambda: root(side.statistics))
    found["kid_s"], _ = timed(lambda: sums(kept.features, kept.features, kept.groups, known=0.0))
    found["neighbours_s"], _ = timed(lambda: manifolds(kept.features, kept.features, kept.groups))
    nearest = Nearest(kept.features[:2000])
    found["memorisation_s_per_10k"] = timed(lambda: nearest.add(kept.features))[0] * 10_000 / len(kept.items)
    found["all_s"], _ = timed(lambda: compare(sample, Side.of(sample)))
    return found


class Timed:
    """A feature network that takes no time: random features, and the time that making them took."""

    def __init__(self, width: int) -> None:
        self.width, self.spent = width, 0.0
        self.weight = np.random.default_rng(0).normal(size=(64, width)).astype(np.float32)

    def __call__(self, images: Any) -> Any:
        start = time.process_time()
        flat = images.reshape(len(images), -1).astype(np.float32)
        found = flat[:, :64] @ self.weight
        self.spent += time.process_time() - start
        return found


def classifying(shape: tuple[int, int, int], images: int = 256) -> float:
    """Milliseconds per image that the classifier's features take."""
    import torch

    from sims_image.metrics.classifier import Classifier

    network = Classifier(shape, 10).eval().requires_grad_(False)
    pixels = torch.randint(0, 256, (images, *shape), dtype=torch.uint8)
    network(pixels)
    start = time.process_time()
    network(pixels)
    return 1e3 * (time.process_time() - start) / images


def streamed(preset: str, width: int, images: int, n: int) -> dict[str, float]:
    """Images measured as they are made: seconds per image of each part, and evaluating's share."""
    from sims_core.sampling import Sampler
    from sims_image.metrics.report import collect
    from sims_image.models.checkpoints import Record, Summary
    from sims_image.models.networks import build
    from sims_image.models.presets import PRESETS
    from sims_image.sampling.generation import stream
    from sims_image.sampling.guided import Model
    from sims_image.training.estimate import measure

    config = PRESETS[preset].config()
    model = Model(Summary(Path(preset), config, "edm", 0, "", Record()), build(**config).eval())
    sampler, made = Sampler.parse(PRESETS[preset].sampler), 0.0

    def generated() -> Any:
        nonlocal made
        parts = stream(model, range(images), batch=min(64, images), sampler=sampler)
        while True:
            start = time.process_time()
            part = next(parts, None)
            made += time.process_time() - start
            if part is None:
                return
            yield part

    features = Timed(width)
    start = time.process_time()
    collect(generated(), features)  # type: ignore[arg-type]
    gathering = (time.process_time() - start - made - features.spent) / images
    sample = gather(width, n)
    side = Side.of(sample)
    side.frechet, side.own  # noqa: B018  # of the real images: once, and kept
    start = time.process_time()
    compare(sample, side)
    ending = time.process_time() - start
    generating = made / images
    forward = measure(config, PRESETS[preset].recipe).flops / 3  # of forward and backward
    rate = forward * sampler.nfe / generating
    found = {"generating_ms": 1e3 * generating, "gathering_ms": 1e3 * gathering, "metrics_s": ending, "n": n}
    found |= {"gathering_share": gathering / generating, "evaluating_share": (gathering + ending / n) / generating}
    found |= {"features_ms": classifying(PRESETS[preset].shape), "generating_share_of_sgemm": rate / sgemm_rate(2)}
    return found | {"n_of_a_tenth": ending / max(0.1 * generating - gathering, 1e-12)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--widths", default="64,1280")
    parser.add_argument("--streamed", default="digits:64,cifar10-tiny:1280", help="presets, each with a width")
    parser.add_argument("--images", type=int, default=32, help="images of a streamed preset that are made")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures = {width: measured(int(width), args.n) for width in args.widths.split(",")}
    names = list(next(iter(figures.values())))
    print(f"{args.n} images, CPU time of one thread")
    print("  ".join([f"{'':24}", *(f"{width + ' features':>14}" for width in figures)]))
    for name in names:
        print("  ".join([f"{name:24}", *(f"{found[name]:14.4g}" for found in figures.values())]))
    told = {}
    for text in args.streamed.split(","):
        preset, _, width = text.partition(":")
        told[text] = streamed(preset, int(width or 64), args.images, args.n)
    print(f"\nmeasured as they are made, {args.n} images, CPU time of one thread")
    heads = f"{'generating':>14}{'gathering':>14}{'metrics, once':>15}{'evaluating':>12}{'10 % from':>12}"
    print(f"{'network : features':24}{heads}")
    for text, row in told.items():
        each = f"{row['generating_ms']:9.4g} ms/i{row['gathering_ms']:9.4g} ms/i{row['metrics_s']:13.3g} s"
        print(f"{text:24}{each}{row['evaluating_share']:12.2%}{row['n_of_a_tenth']:10.0f} i")
    save(args.json, {"n": args.n, "widths": figures, "streamed": told})


if __name__ == "__main__":
    main()
