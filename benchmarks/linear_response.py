"""How far linear response is from Monte-Carlo in Figure 4's setting: E[W2^2] found over predicted, by omega and |D_s|.

``python benchmarks/linear_response.py [--trials 2000] [--json FILE]``. Prints the tables of ``docs/mathematics.md``.
"""

from __future__ import annotations

import argparse
import math
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from machine import save

from sims_core.sampling import Sampler
from sims_toy import theory
from sims_toy.exact import ExactLearner, sampler_modes
from sims_toy.gaussian import Gaussian
from sims_toy.grid import run as experiments
from sims_toy.sweep import Sweep, plan
from sims_toy.sweep.options import SAMPLERS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    sweep = Sweep(learner="exact", omega="0:5:0.5", trials=args.trials, generations=60)
    experiment = plan(sweep).experiment
    w2_sq = experiments.run(experiment, workers=args.workers)["w2"] ** 2
    real = Gaussian.single(experiment.mean, experiment.covariance)
    sampler = Sampler.parse(sweep.sampler or SAMPLERS["exact"], sigma_data=math.sqrt(2))
    modes = sampler_modes(sampler, real)
    perfect = ExactLearner(sampler, noise=False)
    from sims_core.seeds import Seed

    truth = perfect.fit(perfect.draw(real, 1, seed=Seed(0)), seed=Seed(0))
    plain = theory.plain_modes(float(perfect.distance(truth, real)[0]) ** 2, theory.data_noise(experiment.covariance))
    rows = []
    for size in (125, 250, 500, 1000):
        cells = [i for i, c in enumerate(experiment.cells) if c.method == "sims" and c.synthetic_size == size]
        omegas = np.array([experiment.cells[i].omega for i in cells])
        late = w2_sq[cells, :, -20:].mean(2)
        for name, generation, found in (("1", 1, w2_sq[cells, :, 0]), ("limit", math.inf, late)):
            fit = np.polynomial.Polynomial.fit(omegas, found.mean(1), 5, w=1 / found.std(1))
            fine = np.linspace(0, 5, 5001)
            row = {"size": size, "generation": name, "omega_best": float(fine[fit(fine).argmin()])}
            for order, kind in (("plain", plain), ("gain", modes)):
                setting = theory.Setting(1000, size, size, 1.0, "train+synthetic", kind)
                predicted = theory.response(setting, omegas, generation).w2_sq
                row |= {f"{order}_best": theory.optimal_omega(setting, generation)}
                row |= {f"{order}_{w:g}": float(r) for w, r in zip(omegas, found.mean(1) / predicted, strict=True)}
            rows.append(row)
    print("E[W2^2], Monte-Carlo over linear response; best omega found and predicted")
    shown = (0, 1, 2, 3, 4, 5)
    print(f"{'|D_s|':>6} {'t':>6} {'order':>6} " + " ".join(f"w={w:<4}" for w in shown) + "  best: found, predicted")
    for row in rows:
        for order in ("plain", "gain"):
            values = " ".join(f"{row[f'{order}_{w}']:<6.2f}" for w in shown)
            best = f"{row['omega_best']:.2f}, {row[f'{order}_best']:.2f}"
            print(f"{row['size']:>6} {row['generation']:>6} {order:>6} {values}  {best}")
    save(args.json, rows)


if __name__ == "__main__":
    main()
