"""What would make Figure 4 cheaper: fewer operations per network, or fewer trials of cells that are decided?

    python benchmarks/figure4.py [--json FILE] [--networks 192]

``fits``: root mean square W2 between trained networks and the maximum-likelihood fit of their own points, without the
sampler's bias, against the CPU time of a training. ``looks``: the trials of the committed Figure 4 once more, cells
stopping at the first look whose intervals decide their regime; a look's intervals are at 1 - alpha with the alphas
adding to 0.05, so that all looks together err as rarely as one.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
import torch
from ensemble import MEAN, SIGMA_DATA, gaussian, table
from machine import save
from numpy.typing import NDArray

from sims_core.seeds import Seed
from sims_toy import phase
from sims_toy.gaussian import Statistics, fit, w2_squared
from sims_toy.networks.learner import UNBIASED, NetworkLearner, NetworkModel
from sims_toy.networks.settings import NetworkSettings
from sims_toy.networks.training import train

#: points of a base's training set in Figure 4: 1,000 real ones, and as many samples
POINTS = 2000
#: steps, rows, points of the posterior's random subset (None: all) and draws
WAYS = (
    (400, 64, None, "random"), (300, 64, None, "random"), (200, 64, None, "random"), (400, 32, None, "random"),
    (400, 64, 512, "random"), (400, 64, 256, "random"), (400, 128, 256, "random"), (400, 64, None, "quasi"),
    (250, 64, None, "quasi"), (200, 64, None, "quasi"), (400, 32, None, "quasi"),
)  # fmt: skip
LOOKS: tuple[tuple[tuple[int, float], ...], ...] = (
    ((48, 0.05),), ((16, 0.01), (32, 0.01), (48, 0.03)), ((8, 0.01), (16, 0.01), (24, 0.01), (48, 0.02)),
)  # fmt: skip
FIGURE = Path(__file__).resolve().parent.parent / "figures" / "figure4_trials.parquet"
_CELL = ["method", "synthetic_size", "omega", "sampler"]


def fits(networks: int) -> list[dict[str, Any]]:
    """One row per way of training: CPU time and distance from the fit."""
    data = gaussian(networks, POINTS) - MEAN.float()  # centred, as Figure 4's
    fitted, found = fit(Statistics.of_points(data.double())), []
    sampler, seeds = replace(UNBIASED, sigma_data=SIGMA_DATA), [Seed(1).child(i) for i in range(networks)]
    start = NetworkLearner(sampler, range(networks)).untrained(data, seed=Seed(0)).base
    for steps, rows, reference, draws in (WAYS[0], *WAYS):  # once to warm up
        settings = NetworkSettings(steps=steps, batch=rows, draws=draws).training(POINTS)
        before = time.process_time()
        trained = train(start, data, seeds, replace(settings, reference=reference))
        spent = 1000 * (time.process_time() - before) / networks
        assert trained.ema is not None
        squares = w2_squared(NetworkModel(trained.ema, sampler).output, fitted).numpy()
        distance = float(np.sqrt(squares.mean()))
        error = float(squares.std()) / len(squares) ** 0.5 / 2 / distance
        found.append({"steps": steps, "rows": rows, "reference": reference or f"all {POINTS}", "draws": draws,
                      "ms": spent, "distance": distance, "se": error})  # fmt: skip
    return found[1:]


class Replay:
    """Figure 4's main reading again: d_1 and d_T of networks, twins and exact learners, trial by trial."""

    def __init__(self, trials: pd.DataFrame, resamples: int = 2000) -> None:
        kept = trials[trials["auxiliary_data"].isin(["none", "train+synthetic"])]
        self.values = {name: _by_cell(kept[kept["learner"] == name]) for name in ("network", "twin", "exact")}
        self.resamples, self.many = resamples, len(next(iter(self.values["exact"].values())))

    def regimes(self, trials: int, level: float) -> dict[tuple[Any, ...], str]:
        """The regime of every cell by its first ``trials`` trials, from intervals at ``level``."""
        own = phase.resampling_weights(trials, Seed(1), self.resamples)
        far = phase.resampling_weights(self.many, Seed(2), self.resamples)
        ways = ((np.full((1, trials), 1 / trials), np.full((1, self.many), 1 / self.many)), (own, far))
        network, twin, exact = (self.values[name] for name in ("network", "twin", "exact"))
        means = {
            key: [phase.steadied(mine, network[key][:trials], twin[key][:trials], phase.weighted(others, exact[key]))
                  for mine, others in ways]
            for key in network
        }  # fmt: skip

        def triple(above: list[Any], column: int, below: list[Any], other: int) -> tuple[float, float, float]:
            value, resampled = (phase.ratio(a[:, column], b[:, other]) for a, b in zip(above, below, strict=True))
            return phase.bounded(value[0], resampled, trials, level)

        found = {}
        for key, mine in means.items():
            standard = means[("standard", key[1], 0.0, "ddim:20")]
            own_ratio, to_standard = triple(mine, 1, mine, 0), triple(mine, 1, standard, 0)
            gain = triple(mine, 1, standard, 1)
            found[key] = phase.classify(own_ratio, to_standard, gain, diverged=False).regime
        return found


def _by_cell(trials: pd.DataFrame) -> dict[tuple[Any, ...], NDArray[np.float64]]:
    """(trials, 2) of every cell: d_1 and d_T."""
    return {
        tuple(key): part.sort_values("trial")[["first", "last"]].to_numpy(np.float64)
        for key, part in trials.groupby(_CELL)
    }


def looks(replay: Replay) -> list[dict[str, Any]]:
    """What each plan of looks would have run, decided and contradicted. A loop of SIMS counts as two of training."""
    found, whole = [], None
    weight = {key: 2.0 if key[0] == "sims" else 1.0 for key in replay.values["network"]}
    always = {key for key in weight if key[0] != "sims"}  # which all cells are compared with
    for plan in LOOKS:
        open_cells, regimes, cost, before = set(weight), dict[Any, str](), 0.0, 0
        for trials, alpha in plan:
            run = open_cells | always
            cost += (trials - before) * sum(weight[key] for key in run)
            seen = replay.regimes(trials, 1 - alpha)
            regimes |= {key: seen[key] for key in open_cells}
            open_cells, before = {key for key in open_cells if seen[key] == "undecided"}, trials
        whole = whole or regimes
        decided = [(value, regimes[key]) for key, value in whole.items() if "undecided" not in (value, regimes[key])]
        against = sum(value != here for value, here in decided)
        words, share = ", ".join(str(trials) for trials, _ in plan), cost / before / sum(weight.values())
        found.append({"looks": words, "loops": share, "cells": len(weight),
                      "undecided": len(open_cells), "contradicted": against})  # fmt: skip
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--networks", type=int, default=192)
    options = parser.parse_args()
    torch.set_num_threads(1)
    result = {"networks": options.networks, "fits": fits(options.networks)}
    table(f"Distance from the fit of {POINTS} points, {options.networks} networks", result["fits"])
    result["looks"] = looks(Replay(pd.read_parquet(FIGURE)))
    table("Figure 4 with looks", result["looks"])
    save(options.json, result)


if __name__ == "__main__":
    main()
