"""What a second worker and a cluster bring: one sweep of networks by 1 and 2 workers, and by 2 Dask workers.

``python benchmarks/scaling.py [--cells 24] [--rounds 3] [--json FILE]``. Pieces of work take about a second each. Every
way is started and warmed up before, and its tables are compared with the first one's, bit for bit. A cluster that loses
a worker (killed), has a slow one (stopped for a while) or a new scheduler is the tests' subject, as is what images do.
Alongside another program the ratios are worth nothing: look at the load that is printed.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from machine import save

from sims_toy.grid.run import run
from sims_toy.networks.settings import NetworkSettings
from sims_toy.sweep import Sweep, plan

#: a worker looks after itself many times a second, which small work pays for (docs/networks.md says how to set this)
DASK = {
    "distributed.admin.system-monitor.interval": "5s",
    "distributed.admin.tick.interval": "2s",
    "distributed.nanny.pre-spawn-environ.MALLOC_TRIM_THRESHOLD_": 2**27,
    "distributed.scheduler.work-stealing": False,
    "distributed.worker.memory.monitor-interval": "2s",
    "distributed.worker.memory.spill": False,
    "distributed.worker.profile.enabled": False,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=24, help="pieces of work")
    parser.add_argument("--generations", type=int, default=8)
    parser.add_argument("--steps", type=int, default=200, help="of a network's training")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    import dask
    from distributed import LocalCluster

    network = NetworkSettings(steps=args.steps, backend="torch", target="plain")
    grid = ",".join(f"{w:g}" for w in np.linspace(0.1, 5, args.cells - 1))  # omega 0 is among them
    sweep = Sweep(omega=grid, synthetic="250", trials=4, generations=args.generations, network=network)
    whole = plan(sweep).experiment
    cells = [cell for cell in whole.cells if cell.method == "sims"]
    experiment = replace(whole, cells=tuple(cells))
    best, own = {}, {}  # seconds; share of a core that this process takes, where client and scheduler are

    def take(name: str, **how: object) -> None:
        nonlocal reference
        for turn in range(args.rounds + 1):  # the first one warms up
            start, busy = time.perf_counter(), time.process_time()
            found = run(experiment, chunk=4, **how)["w2"]
            own[name] = (time.process_time() - busy) / (time.perf_counter() - start)
            reference = found if reference is None else reference
            np.testing.assert_array_equal(found, reference)
            if turn:
                best[name] = min(best.get(name, np.inf), time.perf_counter() - start)

    reference = None
    take("1 worker")
    take("2 workers", workers=2)
    for name, settings in {"2 Dask workers": {}, "2 Dask workers, set": DASK}.items():
        # only now: the processes of a cluster are not idle while they wait
        with (
            dask.config.set(settings),
            LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        ):  # type: ignore[no-untyped-call]
            take(name, scheduler=cluster.scheduler_address)
    piece = best["1 worker"] / len(cells)
    figures = {"pieces": len(cells), "piece_s": piece, "seconds": best}
    figures |= {"scaling": best["1 worker"] / best["2 workers"]}
    figures |= {"dask_overhead": best["2 Dask workers"] / best["2 workers"] - 1}
    figures |= {"dask_overhead_set": best["2 Dask workers, set"] / best["2 workers"] - 1}
    figures |= {"scheduler_cores": own["2 Dask workers, set"]}
    print(f"{len(cells)} pieces of {piece:.2f} s, best of {args.rounds}")
    for name, seconds in best.items():
        print(f"  {name:<16} {seconds:7.2f} s   x{best['1 worker'] / seconds:.2f}")
    words = f"{figures['dask_overhead']:+.1%}, set up for small work {figures['dask_overhead_set']:+.1%}"
    print(f"Dask against as many workers of this machine: {words}")
    save(args.json, figures)


if __name__ == "__main__":
    main()
