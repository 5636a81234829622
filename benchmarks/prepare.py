"""How fast `sims_image prepare` and `Dataset.images` are, and how much memory they take.

``python benchmarks/prepare.py [--images 20000] [--json FILE]``. Every source is synthetic and every preparation runs in
a process of its own; memory is that process's peak resident set (VmHWM). Rates are of this machine; that memory does
not grow with the number of images (compare the two ImageNet rows) travels.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from machine import save
from PIL import Image

from sims_image.data.dataset import Dataset, open_dataset

ONE = """
import re, sys, time
from sims_image.data.options import Prepare
from sims_image.data.prepare import prepare
import sims_image.data.sources.imagenet, sims_image.data.sources.folder
start, cpu = time.perf_counter(), time.process_time()
options = dict(word.split("=") for word in sys.argv[3:])
options = {k: int(v) if v.isdecimal() else v for k, v in options.items()}
prepare(Prepare(source=sys.argv[1], out=sys.argv[2], **options))
found = re.search("VmHWM:[^0-9]*([0-9]+) kB", open("/proc/self/status").read())
print(time.perf_counter() - start, time.process_time() - cpu, int(found[1]) / 1024 if found else float("nan"))
"""


def prepared(source: Path, out: Path, *options: str) -> tuple[float, float, float]:
    """Seconds, seconds of CPU and peak MB of one preparation."""
    root = Path(__file__).resolve().parents[1]
    done = subprocess.run(
        [sys.executable, "-c", ONE, str(source), str(out), *options],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    seconds, cpu, peak = done.stdout.split()
    return float(seconds), float(cpu), float(peak)


def batches(folder: Path, count: int) -> Path:
    """Downsampled ImageNet's format: stored, 64x64, in two batches."""
    folder.mkdir()
    piece = np.random.default_rng(0).integers(0, 256, (count // 20, 3 * 64 * 64), dtype=np.uint8).tobytes()
    for k in (1, 2):
        with zipfile.ZipFile(folder / f"train_data_batch_{k}.npz", "w") as archive:
            with archive.open("data.npy", "w", force_zip64=True) as handle:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count // 20 * 10, 3 * 64 * 64)}
                np.lib.format.write_array_header_1_0(handle, header)
                for _ in range(10):
                    handle.write(piece)
            with archive.open("labels.npy", "w") as handle:
                np.lib.format.write_array(handle, np.arange(count // 20 * 10) % 1000 + 1)
    return folder


def pictures(folder: Path, count: int, side: int, suffix: str) -> Path:
    """Class folders of smooth pictures."""
    rng = np.random.default_rng(0)
    for k in range(count):
        into = folder / f"class{k % 10}"
        into.mkdir(parents=True, exist_ok=True)
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        small.resize((side, side), Image.Resampling.BICUBIC).save(into / f"{k:06d}{suffix}")
    return folder


def reading(data: Dataset, count: int) -> float:
    """Images per CPU-second in random batches of 256."""
    rng = np.random.default_rng(0)
    orders = [rng.integers(0, len(data), 256) for _ in range(max(1, count // 256))]
    data.images(orders[0])
    start = time.process_time()
    for order in orders:
        data.images(order)
    return 256 * len(orders) / (time.process_time() - start)


def plain_decoding(folder: Path) -> float:
    """Pictures per CPU-second of Pillow alone: the most that one thread could do."""
    data = [path.read_bytes() for path in sorted(folder.rglob("*"))[:2000] if path.is_file()]
    start = time.process_time()
    for one in data:
        np.asarray(Image.open(io.BytesIO(one)))
    return len(data) / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    count, figures = args.images, {}
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        jpeg = pictures(root / "jpeg", count // 4, 32, ".jpg")
        photos = pictures(root / "photos", max(20, count // 100), 400, ".jpg")
        few, many = batches(root / "few", count // 5), batches(root / "many", count)
        print(f"{'prepare':34} {'images':>8} {'images/s':>9} {'per CPU-s':>9} {'peak MB':>8}")
        rows: list[tuple[str, Path, int, tuple[str, ...]]] = [
            ("ImageNet-64 batches", few, count // 100 * 20, ()),
            ("ImageNet-64 batches, five times", many, count // 20 * 20, ()),
            ("the same to an EDM zip", few, count // 100 * 20, ("format=edm-zip",)),
            ("folder of 32x32 JPEGs", jpeg, count // 4, ()),
            ("folder of 400x400 JPEGs, adm to 64", photos, max(20, count // 100), ("size=64", "crop=adm")),
        ]
        for k, (what, source, images, options) in enumerate(rows):
            out = root / (f"out{k}.zip" if options == ("format=edm-zip",) else f"out{k}")
            seconds, cpu, peak = prepared(source, out, *options)
            print(f"{what:34} {images:8} {images / seconds:9.0f} {images / cpu:9.0f} {peak:8.0f}")
            figures[what] = {"images": images, "per_s": images / seconds, "per_cpu_s": images / cpu, "peak_mb": peak}
        print(f"\n{'random batches of 256':34} {'per CPU-s':>28}")
        readers: dict[str, Callable[[], float]] = {
            "folder, 64x64": lambda: reading(open_dataset(root / "out1", verify=False), count),
            "EDM zip, 64x64": lambda: reading(open_dataset(root / "out2.zip", verify=False), count // 5),
            "Pillow alone, 32x32 JPEG": lambda: plain_decoding(jpeg),
        }
        for what, read in readers.items():
            figures[what] = {"per_cpu_s": read()}
            print(f"{what:34} {figures[what]['per_cpu_s']:28.0f}")
    save(args.json, figures)


if __name__ == "__main__":
    main()
