"""``python -m sims_toy.control``: Algorithm 2, a mixture's class proportions shifted to a target by SIMS."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

from sims_core.errors import InputError, whole
from sims_core.lab.bounds import at_least, check_bounds
from sims_core.lab.command import formerly, usual
from sims_core.lab.options import RunOptions
from sims_toy.grid.study import GridStudy
from sims_toy.networks.settings import NetworkSettings


@dataclass(frozen=True)
class Control(RunOptions):
    """Shift a mixture's class proportions to a target: Algorithm 2, with networks.

    The auxiliary is trained on the base's own samples, selected by the mixture's Bayes classifier in the shares of the
    target's complement; guidance away from it moves the proportions toward the target. Alongside: the base (omega = 0)
    and the base with twice the sampler steps, plain SIMS (an auxiliary with the base's own proportions), and a random
    direction; and exact mixture scores through the same sampler, with two laws of what extrapolation does to shares.
    """

    preset: Annotated[str, usual("none")] = ""
    """Change the defaults: 'paper' is the full grid; 'two' has two classes, as the paper's own case."""
    data: Annotated[str, formerly("real")] = "mixture:0.5,0.3,0.2"
    """Data with classes: mixture:P,Q,... or gaussians:K."""
    target: str = "uniform"
    """Target shares of the classes, such as 0.4,0.3,0.3, or uniform."""
    complement: str = "linear,geometric"
    """How the complement is read: linear, geometric (several with commas)."""
    strength: str = "1"
    """Strengths a of the complement; the linear one is exact at omega * eta * a = 1."""
    omega: str = "0:2:0.25"
    """Guidance strengths; 0 is the base."""
    real_size: Annotated[int, at_least(10)] = 2000
    """Real points, |D_r|."""
    auxiliary_size: Annotated[int, at_least(10)] = 2000
    """Selected samples of the base that the auxiliary sees."""
    budget: Annotated[str, usual("the base's")] = ""
    """Auxiliary's training: samples seen (steps x batch) with a unit, such as 25.6k."""
    sampler: str = "heun:18"
    """ddim:N, euler:N, heun:N, rk4:N."""
    network: NetworkSettings = field(default_factory=lambda: NetworkSettings(width=64, layers=3, steps=1500))
    """Architecture and training of the networks; larger than a Gaussian's."""
    trials: Annotated[int, at_least(2)] = 8
    """Independent repetitions, paired across cells."""
    points: int = 4000
    """Generated points that a model's proportions and classes are measured by."""


PRESETS = {
    "paper": replace(
        Control(), preset="paper", strength="0.5,1,2", omega="0:3:0.125", trials=32, points=10_000,
    ),
    "two": replace(Control(), preset="two", data="mixture:0.7,0.3", target="0.5,0.5", trials=16),
}  # fmt: skip


def plan(options: Control) -> GridStudy:
    """What a `Control` would run, without running it. Raises `InputError` for bad input."""
    from itertools import product

    from sims_core.control import COMPLEMENTS, complement
    from sims_core.lab.grids import parse_grid
    from sims_core.sampling import Sampler
    from sims_toy.control import figures
    from sims_toy.control import tables as report
    from sims_toy.control.measure import QUANTITIES, SLICED, measurer
    from sims_toy.datasets import parse_real
    from sims_toy.grid.cells import Cell, Experiment
    from sims_toy.grid.parse import at_most_cells, budgets_of, names, settle

    check_bounds(options)
    network = settle(options.network)
    real = parse_real(options.data) if options.data != "gaussian" else None
    if real is None or real.mixture is None or real.classes < 2:
        raise InputError("data", options.data, "control needs classes: mixture:P,Q,... or gaussians:K")
    weights = real.mixture.weights
    target = _target(options.target, len(weights))
    readings = names("complement", options.complement, COMPLEMENTS)
    strengths = parse_grid("strength", options.strength, low=0)
    try:
        for reading, a in product(readings, strengths):
            complement(weights, target, a, reading=reading)
    except InputError as error:
        raise InputError(error.argument, error.value, error.expected) from None
    omegas = sorted({0.0, *parse_grid("omega", options.omega, low=0, high=20)})
    if len(omegas) < 3:
        raise InputError("omega", options.omega, "give at least two values besides 0 to search for the best")
    whole("points", options.points, SLICED[0])
    at_most_cells(omegas, strengths, readings)
    sampler = Sampler.parse(options.sampler, argument="sampler")
    if sampler.name == "exact":
        raise InputError("sampler", "exact", "networks need a numerical sampler, such as heun:18")
    if not options.budget and not network.batch:
        raise InputError("budget", "", "with `network.batch` 0 say how many samples an auxiliary sees, such as 50k")
    budgets = budgets_of(options.budget or f"{network.steps * network.batch / 1000:g}k", "network")
    if len(budgets) > 1:
        raise InputError("budget", options.budget, "give one budget")

    base = Cell("control", "standard", "augmentation", str(sampler), options.real_size, 0, real=options.data)
    guided = replace(base, auxiliary_size=options.auxiliary_size, budget=budgets[0])
    kinds = [("control", f"{r}@{a:g}") for r in readings for a in strengths]
    kinds += [("sims", "synthetic"), ("random", kinds[0][1])]
    cells = [base, replace(base, method="equal-cost", sampler=str(sampler.doubled()))]
    cells += [replace(guided, method=m, auxiliary_data=d, omega=w) for m, d in kinds for w in omegas]
    experiment = Experiment(
        tuple(cells), 1, options.trials, options.seed, (), (), network, QUANTITIES,
        measurer=measurer(target, options.points),
    )  # fmt: skip
    settings = {
        "command": "sims_toy.control",
        "real": options.data,
        "base": list(weights),
        "target": list(target),
        "complement": readings,
        "strength": strengths,
        "omega": omegas,
        "real_size": options.real_size,
        "auxiliary_size": options.auxiliary_size,
        "budget": budgets[0],
        "sampler": str(sampler),
        "trials": options.trials,
        "points": options.points,
        "seed": options.seed,
        "network": network.record(),
    }
    return GridStudy(
        "control",
        settings,
        parts={"cells": experiment},
        make=lambda values: report.make(experiment, values["cells"], settings),
        draw=figures.draw,
        words=report.words,
    )


def _target(text: str, classes: int) -> tuple[float, ...]:
    if text == "uniform":
        return (1 / classes,) * classes
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != classes or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise InputError("target", text, f"give {classes} shares that sum to 1, or uniform")
    return tuple(s / sum(shares) for s in shares)
