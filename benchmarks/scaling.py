"""What a second worker and a cluster bring: one sweep of networks by 1 and 2 workers, and by 2 Dask workers.

``python benchmarks/scaling.py [--cells 24] [--rounds 3] [--json FILE]``. Pieces of work take about a second each. Every
way is started and warmed up before, and its tables are compared with the first one's, bit for bit. A cluster that loses
a worker (killed), has a slow one (stopped for a while) or a new scheduler is the tests' subject, as is what images do.
Beside another program the ratios are worth nothing: look at the load that is printed.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from machine import save

from sims_toy.grid.run import run
from sims_toy.networks.settings import NetworkSettings
from sims_toy.sweep import Sweep, plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=24, help="pieces of work")
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--steps", type=int, default=400, help="of a network's training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from distributed import LocalCluster

    network = NetworkSettings(steps=args.steps, backend="torch")
    grid = ",".join(f"{w:g}" for w in np.linspace(0.1, 5, args.cells))
    sweep = Sweep(omega=grid, synthetic="250", trials=4, generations=args.generations, network=network)
    whole = plan(sweep).experiment
    cells = [cell for cell in whole.cells if cell.method == "sims"]
    experiment = replace(whole, cells=tuple(cells))
    with LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:  # type: ignore[no-untyped-call]
        address = cluster.scheduler_address
        ways: dict[str, Callable[[], np.ndarray]] = {
            "1 worker": lambda: run(experiment, chunk=4)["w2"],
            "2 workers": lambda: run(experiment, chunk=4, workers=2)["w2"],
            "2 Dask workers": lambda: run(experiment, chunk=4, scheduler=address)["w2"],
        }
        reference = ways["1 worker"]()
        best = dict.fromkeys(ways, np.inf)
        for turn in range(args.rounds + 1):  # the first one warms up
            for name, way in ways.items():
                start = time.perf_counter()
                np.testing.assert_array_equal(way(), reference)
                if turn:
                    best[name] = min(best[name], time.perf_counter() - start)
    piece = best["1 worker"] / len(cells)
    figures = {"pieces": len(cells), "piece_s": piece, "seconds": best}
    figures |= {"scaling": best["1 worker"] / best["2 workers"]}
    figures |= {"dask_overhead": best["2 Dask workers"] / best["2 workers"] - 1}
    print(f"{len(cells)} pieces of {piece:.2f} s, best of {args.rounds}")
    for name, seconds in best.items():
        print(f"  {name:<16} {seconds:7.2f} s   x{best['1 worker'] / seconds:.2f}")
    print(f"Dask beside as many workers of this machine: {figures['dask_overhead']:+.1%}")
    save(args.json, figures)


if __name__ == "__main__":
    main()
