"""Speed of the exact sweep: the full grid, cost per cell against |D_r| and trials, and start-up.

``python benchmarks/sweep.py [--json FILE] [--quick]``. Times are of this machine; the ratios travel.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import median

from machine import save

os.environ.setdefault("OMP_NUM_THREADS", "1")


def full_grid(quick: bool):
    """51 omegas x 4 sizes x 100 trials x 100 generations, DDIM-20, train+synthetic, and the controls."""
    from sims_toy.sweep import Sweep, plan

    sweep = Sweep(learner="exact", omega="0:5:0.1", trials=100, generations=100)
    return plan(replace(sweep, omega="0:5:1", generations=2) if quick else sweep).experiment


def timed(experiment, **options) -> tuple[float, float]:
    """Wall and CPU seconds (this process's and its children's) of one run."""
    from sims_toy.grid import run as experiments

    before = os.times()
    start = time.perf_counter()
    experiments.run(experiment, **options)
    after = os.times()
    return time.perf_counter() - start, sum(after[:4]) - sum(before[:4])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--quick", action="store_true", help="a smaller grid, to see that it runs")
    args = parser.parse_args()
    import joblib

    from sims_toy.sweep import Sweep, plan

    cores, rounds = joblib.cpu_count(), 1 if args.quick else 5
    figures: dict[str, float] = {"cores": cores}
    grid = full_grid(args.quick)
    loops = len(grid.cells) * grid.trials
    wall, _ = timed(grid, workers=cores)
    figures |= {"grid_cells": len(grid.cells), "grid_wall_s": wall, "loops_per_s": loops / wall}
    size = f"{len(grid.cells)} cells x {grid.trials} trials x {grid.generations} generations"
    print(f"full grid, {size}, {cores} workers")
    print(f"  wall {wall:.1f} s, {loops / wall:.0f} loops/s")

    base = Sweep(learner="exact", omega="0:5:1", synthetic="250", trials=100, generations=2 if args.quick else 20)
    print(f"CPU seconds of one small grid, relative to the first row (medians of {rounds})")
    for name, changes in (
        ("|D_r| = 1,000, 100 trials", {}),
        ("|D_r| = 1,000,000", {"real_size": "1000000"}),
        ("200 trials", {"trials": 200}),
        ("400 trials", {"trials": 400}),
    ):
        small = plan(replace(base, **changes)).experiment
        seconds = median(timed(small)[1] for _ in range(rounds))
        first = figures.setdefault("small_grid_cpu_s", seconds)
        figures[name] = seconds / first
        print(f"  {name:<28} {seconds:6.3f} s  x{seconds / first:.2f}")

    network = Sweep(omega="0:2:1", synthetic="250", trials=2 if args.quick else 8, generations=2 if args.quick else 10)
    piece = plan(network).experiment
    timed(piece)  # compiles
    alone = median(timed(piece)[1] for _ in range(rounds))
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]
    try:
        beside = median(timed(piece)[1] for _ in range(rounds))
    finally:
        for process in busy:
            process.kill()
            process.wait()
    figures |= {"network_grid_cpu_s": alone, "beside_busy_cores": beside / alone}
    print(f"network grid, CPU seconds: {alone:.2f} alone, x{beside / alone:.2f} with every core busy elsewhere")

    starts = []
    for _ in range(rounds):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sims_toy.sweep", "--help"], check=True, stdout=subprocess.DEVNULL)
        starts.append(time.perf_counter() - start)
    figures["help_s"] = median(starts)
    print(f"start-up of --help: {figures['help_s']:.2f} s")
    save(args.json, figures)


if __name__ == "__main__":
    main()
