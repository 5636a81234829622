"""``python -m sims_toy.pollution``: the paper's Figure 5 in two dimensions, and why a little pollution helps SIMS."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from sims_core.errors import InputError, choose
from sims_core.lab.bounds import at_least, check_bounds, settled
from sims_core.lab.command import usual
from sims_core.lab.options import RunOptions
from sims_toy.grid.study import GridStudy
from sims_toy.networks.settings import NetworkSettings


@dataclass(frozen=True)
class Pollution(RunOptions):
    """Train on real data polluted with a previous generation's samples: standard training and SIMS, ideal and polluted.

    The curves of the paper's Figure 5 against |D_p|/|D_r|: ST-I, ST-P (standard training), SIMS-I, SIMS-P, and with
    them SIMS whose auxiliary is trained on D_p itself; at one fixed omega, and at the best omega of each |D_p|. D_p is
    drawn from a model of the real data alone. Standard training with
    twice the sampler steps (equal cost) is run alongside.
    """

    preset: Annotated[str, usual("none")] = ""
    """Change the defaults: 'paper' is the full grid."""
    learner: Literal["exact", "network"] = "exact"
    """exact: models are Gaussians, training is maximum likelihood. network: trained score networks."""
    pollution: str = "0,0.05,0.1,0.2,0.3,0.5,0.75,1"
    """|D_p| / |D_r|; 0 is always run."""
    omega: str = "0:3.6:0.1"
    """Guidance strengths; 0 is the base."""
    fixed: float = 1.3
    """The one omega of the figure's first panel (the tables have them all); our reading, the paper's is not known."""
    ideal: Literal["unpolluted", "same-size"] = "unpolluted"
    """What ST-I and SIMS-I are trained on: unpolluted (D_r alone), or same-size (as many real points as D_r, D_p)."""
    real_size: Annotated[str, usual("1000,10000 for the exact learner, 1000 for networks")] = ""
    """Real points, |D_r|."""
    auxiliary_size: Annotated[int | None, at_least(2), usual("10000, for networks 4000", "INT")] = None
    """The base's samples that the auxiliary sees."""
    auxiliary_data: str = "synthetic"
    """What Algorithm 1's auxiliary is trained on: synthetic, train+synthetic or real+synthetic."""
    budget: Annotated[str, usual("1 for the exact learner, as long as the base's for networks")] = ""
    """Auxiliary's training, as of the sweep: eta, or samples seen."""
    sampler: str = "ddim:20"
    """ddim:N, euler:N, heun:N, rk4:N."""
    network: NetworkSettings = field(default_factory=NetworkSettings)
    """Architecture and training of the networks."""
    trials: Annotated[int | None, at_least(2), usual("400 for the exact learner, 16 for networks", "INT")] = None
    """Independent repetitions, paired across cells."""
    real_mean: str = "0,0"
    """Mean of the real Gaussian."""
    real_covariance: str = "2,1;1,2"
    """Covariance of the real Gaussian, rows separated by ';'."""


PRESETS = {
    "paper": replace(
        Pollution(),
        preset="paper",
        pollution="0,0.025,0.05,0.1,0.15,0.2,0.3,0.4,0.5,0.75,1,1.5,2",
        omega="0:5.6:0.1",
        real_size="1000,10000,100000",
        trials=2000,
    ),
    "networks": replace(
        Pollution(), preset="networks", learner="network", pollution="0,0.1,0.2,0.5,1", omega="0:3.5:0.25", trials=24
    ),
}

#: Trials of the exact learner's curves beneath the networks'.
OVERLAY_TRIALS = 400
_DEFAULTS = {
    "exact": {"real_size": "1000,10000", "auxiliary_size": 10_000, "trials": 400, "budget": "1"},
    "network": {"real_size": "1000", "auxiliary_size": 4000, "trials": 16, "budget": ""},
}


def plan(options: Pollution) -> GridStudy:
    """What a `Pollution` would run, without running it. Raises `InputError` for bad input."""
    from sims_core.algorithm import AUXILIARY_DATA
    from sims_core.lab.grids import parse_grid
    from sims_core.sampling import Sampler
    from sims_toy.grid.cells import Experiment
    from sims_toy.grid.parse import at_most_cells, budgets_of, read_gaussian, settle, sizes
    from sims_toy.pollution import tables as report

    check_bounds(options)
    learner = choose("learner", options.learner, _DEFAULTS)
    filled = {k: v for k, v in _DEFAULTS[learner].items() if not getattr(options, k)}
    options = replace(options, network=settle(options.network), **filled)  # type: ignore[arg-type]
    converged = not options.budget
    if converged:
        options = replace(options, budget=_as_long_as_the_base(options.network))
    choose("auxiliary_data", options.auxiliary_data, AUXILIARY_DATA)
    choose("ideal", options.ideal, ("unpolluted", "same-size"))
    ratios = sorted({0.0, *parse_grid("pollution", options.pollution, low=0, high=10)})
    omegas = sorted({0.0, options.fixed, *parse_grid("omega", options.omega, low=0, high=20)})
    if len(ratios) < 3 or len(omegas) < 3:
        argument, text = ("pollution", options.pollution) if len(ratios) < 3 else ("omega", options.omega)
        raise InputError(argument, text, "give at least two values other than 0 to search for the best")
    at_most_cells(ratios, omegas, sizes("real_size", options.real_size))
    sampler = str(Sampler.parse(options.sampler, argument="sampler"))
    if sampler == "exact":
        raise InputError("sampler", sampler, "it has no drift, so SIMS has nothing to correct; write name:steps")
    reals = sizes("real_size", options.real_size)
    for n in reals:
        if min(r * n for r in ratios if r) < 3:
            raise InputError("pollution", options.pollution, f"with |D_r| = {n} the least dose is under 3 points")
    budgets = budgets_of(options.budget, learner)
    if len(budgets) > 1:
        raise InputError("budget", options.budget, "give one budget")
    mean, covariance = read_gaussian(options.real_mean, options.real_covariance)
    rows = report.rows(
        learner,
        reals,
        ratios,
        omegas,
        sampler,
        settled(options.auxiliary_size),
        budgets[0],
        options.auxiliary_data,
        options.ideal,
    )
    experiment = Experiment(
        tuple(r.cell for r in rows), 1, settled(options.trials), options.seed, tuple(mean),
        tuple(map(tuple, covariance)),
        options.network if learner == "network" else None,
    )  # fmt: skip
    parts = {"cells": experiment}
    if learner == "network" and converged:  # the exact learner's auxiliary at eta = 1
        exact = tuple(replace(r.cell, learner="exact", budget="0" if r.cell.budget == "0" else "1") for r in rows)
        parts["overlay"] = replace(experiment, cells=exact, trials=OVERLAY_TRIALS, network=None)
    settings = {
        "command": "sims_toy.pollution",
        "learner": learner,
        "pollution": ratios,
        "omega": omegas,
        "fixed": options.fixed,
        "ideal": options.ideal,
        "real_size": reals,
        "auxiliary_size": options.auxiliary_size,
        "auxiliary_data": options.auxiliary_data,
        "budget": budgets[0],
        "sampler": sampler,
        "trials": options.trials,
        "real_mean": mean,
        "real_covariance": covariance,
        "seed": options.seed,
    }
    if learner == "network":
        settings["network"] = options.network.record()
        settings["overlay_trials"] = OVERLAY_TRIALS if "overlay" in parts else 0
    return GridStudy(
        "pollution",
        settings,
        parts=parts,
        make=lambda values: report.make(parts, rows, {k: v["w2"] for k, v in values.items()}, settings),
        draw=report.draw,
        words=report.words,
        local=("overlay",),
    )


def _as_long_as_the_base(network: NetworkSettings) -> str:
    if not network.batch:
        raise InputError("budget", "", "with `network.batch` 0 say how many samples an auxiliary sees, such as 50k")
    return f"{network.steps * network.batch / 1000:g}k"
