"""What measuring costs beside generating and the feature network: gathering features, and each metric once.

``python benchmarks/metrics.py [--n 10000] [--widths 64,1280] [--json FILE]``. Features are random. Gathering is in
images a second of one core, to be set beside a generator's rate; the metrics in seconds, with the jackknife. Memory is
what a sample holds in the end: it depends on the features' number and on the images kept, not on n.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from sims_image.comparison import Side, compare
from sims_image.kernels import sums
from sims_image.moments import Frechet
from sims_image.neighbours import Nearest, manifolds
from sims_image.samples import Sample


def timed(action: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    found = action()
    return time.perf_counter() - start, found


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--widths", default="64,1280")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures = {width: measured(int(width), args.n) for width in args.widths.split(",")}
    names = list(next(iter(figures.values())))
    print(f"{args.n} images, one core")
    print("  ".join([f"{'':24}", *(f"{width + ' features':>14}" for width in figures)]))
    for name in names:
        print("  ".join([f"{name:24}", *(f"{found[name]:14.4g}" for found in figures.values())]))
    if args.json:
        args.json.write_text(json.dumps({"n": args.n, "widths": figures}, indent=2))


if __name__ == "__main__":
    main()
