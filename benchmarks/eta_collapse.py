"""Do trained networks follow the theory? d_1(omega) at three auxiliary budgets, against omega x the measured eta.

``python benchmarks/eta_collapse.py [--trials 128] [--out figures]`` writes eta_collapse.csv, .png and .svg. eta is
measured by its rule (`sims_toy.networks.learner.measured_eta`) before any W2 is looked at; the exact learner is run at
that eta. The column ``moments`` is exact SIMS on the Gaussians of the networks' own (unbiased) moments, trial by trial:
where it follows the networks and the exact learner does not, the auxiliary did not move straight toward its data; where
it does not follow them either, the networks' scores are not those of Gaussians.
"""

from __future__ import annotations

import argparse
import math
import os
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from machine import save

from sims_core import Sampler, Seed, sims
from sims_core.lab.runs import write_atomic
from sims_toy import ExactLearner, Gaussian, NetworkLearner, NetworkSettings, measured_eta
from sims_toy.exact import ExactModel
from sims_toy.networks.learner import UNBIASED, NetworkModel
from sims_toy.sweep.theory_figures import eta_collapse

REAL = Gaussian.single([0, 0], [[2, 1], [1, 2]])
SAMPLER = Sampler.parse("ddim:20", sigma_data=math.sqrt(2))
BUDGETS = (192, 448, 25_600)
PRODUCTS = np.array([0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0])  # omega x eta


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=128)
    parser.add_argument("--exact-trials", type=int, default=4000)
    parser.add_argument("--out", type=Path, default=Path("figures"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    trials, seed, settings = args.trials, Seed(0), NetworkSettings()
    rows = []
    for budget in BUDGETS:
        one = NetworkLearner(SAMPLER, range(trials), settings)
        data = one.draw(REAL, 1000, seed=seed.child("real"))
        first = sims(one, data, n_synthetic=10_000, budget=budget, omega=0.0, seed=seed)
        eta = measured_eta(first.base, first.auxiliary, first.synthetic)
        omegas = PRODUCTS / eta.mean()
        many = NetworkLearner(SAMPLER, np.tile(np.arange(trials), len(omegas)), settings)
        every = many.draw(REAL, 1000, seed=seed.child("real"))
        out = sims(many, every, n_synthetic=10_000, budget=budget, omega=np.repeat(omegas, trials), seed=seed)
        w2 = many.distance(out.model, REAL).reshape(len(omegas), trials)
        count = args.exact_trials
        exact = ExactLearner(SAMPLER, np.tile(np.arange(count), len(omegas)))
        real = exact.draw(REAL, 1000, seed=seed.child("real"))
        model = sims(exact, real, n_synthetic=10_000, budget=float(np.clip(eta.mean(), 0, 1)),
                     omega=np.repeat(omegas, count), seed=seed).model  # fmt: skip
        theirs = exact.distance(model, REAL).reshape(len(omegas), count)
        base, auxiliary = (gaussians(many, m) for m in (out.base, out.auxiliary))
        own = ExactLearner(SAMPLER, np.tile(np.arange(trials), len(omegas)))
        guided = own.extrapolate(base, auxiliary, np.repeat(omegas, trials))
        moments = own.distance(guided, REAL).reshape(w2.shape)
        for i, product in enumerate(PRODUCTS):
            se = math.hypot(w2[i].std(ddof=1) / math.sqrt(trials), theirs[i].std(ddof=1) / math.sqrt(count))
            rows.append(
                {"budget": budget, "eta": eta.mean(), "eta_se": eta.std(ddof=1) / math.sqrt(trials),
                 "omega": omegas[i], "omega_eta": product, "network": w2[i].mean(),
                 "network_se": w2[i].std(ddof=1) / math.sqrt(trials), "exact": theirs[i].mean(),
                 "moments": moments[i].mean(),
                 "z": (w2[i].mean() - theirs[i].mean()) / se}
            )  # fmt: skip
        print(pd.DataFrame(rows[-len(PRODUCTS) :]).round(4).to_string(index=False), flush=True)
    table = pd.DataFrame(rows)
    args.out.mkdir(parents=True, exist_ok=True)
    write_atomic(args.out / "eta_collapse.csv", lambda path: table.to_csv(path, index=False))
    eta_collapse(table, args.out / "eta_collapse", trials=trials)
    save(args.json, table.to_dict("records"))


def gaussians(learner: NetworkLearner, model: NetworkModel) -> ExactModel:
    """The networks' own distributions, sampled without bias, as Gaussians."""
    rows = list(range(learner.rows))
    fair = replace(UNBIASED, sigma_data=SAMPLER.sigma_data)
    return ExactModel(replace(model.take(rows), sampler=fair).output, SAMPLER)


if __name__ == "__main__":
    main()
