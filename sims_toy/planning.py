"""From what was asked for to the cells that are run; what cannot be run is refused here, before anything is written."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

from sims_core.errors import InputError, choose
from sims_core.grids import parse_budget, parse_grid
from sims_core.loop import parse_policy
from sims_core.sampling import Sampler
from sims_toy.ensemble import numba_available
from sims_toy.experiment import LEARNERS, Cell, Experiment, parse_reading
from sims_toy.gaussian import Gaussian
from sims_toy.settings import BY_LEARNER, LOOPS, SWEEP_METHODS, Sweep

#: Trials of the exact learner's curve beneath the networks'.
OVERLAY_TRIALS = 400


@dataclass(frozen=True)
class Plan:
    """What is run, part by part, and the settings on record.

    parts: 'cells' is the experiment; 'beside' holds readings with fewer trials; 'overlay' is the exact learner's
    experiment drawn beneath the networks'. A part's name is that of its shards.
    """

    parts: dict[str, Experiment]
    settings: dict[str, Any]

    @property
    def experiment(self) -> Experiment:
        """The experiment itself."""
        return self.parts["cells"]

    @property
    def exact(self) -> Experiment | None:
        """The part whose cells are exact."""
        return self.experiment if self.settings["learner"] == "exact" else self.parts.get("overlay")


def make_plan(sweep: Sweep) -> Plan:
    """What a `Sweep` asks for. Raises `InputError` for anything that cannot be run."""
    learner = choose("--learner", sweep.learner, LEARNERS)
    if learner == "network" and sweep.network.backend == "auto":
        chosen = "numba" if numba_available() else "torch"
        sweep = replace(sweep, network=replace(sweep.network, backend=chosen))
    converged = not sweep.budget  # auxiliaries trained as long as their bases: eta = 1 of the exact learner
    sweep = _with_defaults(sweep, learner)
    methods = _names("--method", sweep.method, SWEEP_METHODS)
    readings = _list("--auxiliary-data", sweep.auxiliary_data)
    for reading in readings:
        parse_reading("--auxiliary-data", reading)
    samplers = [Sampler.parse(s, argument="--sampler") for s in _list("--sampler", sweep.sampler)]
    policies = [parse_policy(p, argument="--loop") for p in _list("--loop", sweep.loop)]
    for policy in policies:
        if policy.name == "polluted":
            raise InputError("--loop", policy.name, f"the sweep has no foreign data; choose from {', '.join(LOOPS)}")
    omegas = parse_grid("--omega", sweep.omega)
    real_sizes = _sizes("--real-size", sweep.real_size)
    synthetic_sizes = _sizes("--synthetic-size", sweep.synthetic_size)
    auxiliary_sizes = None if sweep.auxiliary_size == "same" else _sizes("--auxiliary-size", sweep.auxiliary_size)
    budgets = _budgets(sweep.budget, learner)
    if learner == "network":
        _refuse_for_networks(sweep, samplers)
    for name, value, least in (
        ("--generations", sweep.generations, 1),
        ("--trials", sweep.trials, 2),
        ("--beside-trials", sweep.beside_trials or 2, 2),
    ):
        if value < least:
            raise InputError(name, value, f"give a whole number of at least {least}")
    for name, value in (("--seed", sweep.seed), ("--workers", sweep.workers), ("--chunk", sweep.chunk)):
        if value < 0:
            raise InputError(name, value, "give a whole number of at least 0")
    mean = _numbers("--real-mean", sweep.real_mean)
    covariance = [_numbers("--real-covariance", row) for row in sweep.real_covariance.split(";")]
    try:
        Gaussian.single(mean, covariance)
    except InputError as error:
        name, text = (
            ("--real-mean", sweep.real_mean)
            if error.argument == "mean"
            else ("--real-covariance", sweep.real_covariance)
        )
        raise InputError(name, text, error.expected) from None
    except ValueError:
        raise InputError(
            "--real-covariance", sweep.real_covariance, "every row needs the same number of entries"
        ) from None

    if any(m in ("sims", "neon") for m in methods) and 0.0 not in omegas:
        omegas = sorted([0.0, *omegas])  # omega = 0 is what every other omega is compared with
    cells: list[Cell] = []
    for policy, sampler, n, m in product(policies, samplers, real_sizes, synthetic_sizes):
        if policy.ratio is not None:
            m = round(policy.ratio * n)  # the loop fixes |D_s|
            if m == 0 and auxiliary_sizes is None and set(methods) - {"standard"}:
                expected = f"it leaves |D_s| = 0 beside {n}: say --auxiliary-size, or --method standard"
                raise InputError("--loop", policy.name, expected)
        base = Cell(learner, "standard", policy.name, str(sampler), n, m, reference=str(sampler))
        cells.append(base)
        if sampler.steps and "sims" in methods:  # two networks a step: standard training may take twice the steps
            cells.append(replace(base, method="equal-cost", sampler=str(sampler.doubled())))
        for method, reading, aux, budget in product(methods, readings, auxiliary_sizes or [m], budgets):
            if method != "standard":
                made = replace(base, method=method, auxiliary_size=aux, budget=budget, auxiliary_data=reading)
                cells += [replace(made, omega=w) for w in omegas]
    cells = list(dict.fromkeys(cells))
    fewer = bool(sweep.beside_trials) and sweep.beside_trials != sweep.trials
    beside = [c for c in cells if fewer and c.auxiliary_data not in ("none", readings[0])]
    experiment = Experiment(
        tuple(c for c in cells if c not in beside),
        sweep.generations,
        sweep.trials,
        sweep.seed,
        tuple(mean),
        tuple(map(tuple, covariance)),
        sweep.network if learner == "network" else None,
    )
    parts = {"cells": experiment}
    if beside:  # with the standard cells that their ratios need
        needed = tuple(c for c in cells if c.method == "standard" or c in beside)
        parts["beside"] = replace(experiment, cells=needed, trials=sweep.beside_trials)
    if learner == "network" and converged:
        exact = [replace(c, learner="exact", budget="0" if c.auxiliary_data == "none" else "1") for c in cells]
        parts["overlay"] = replace(experiment, cells=tuple(dict.fromkeys(exact)), trials=OVERLAY_TRIALS, network=None)
    settings = {
        "command": "sims_toy.sweep",
        "learner": learner,
        "method": methods,
        "loop": [p.name for p in policies],
        "sampler": [str(s) for s in samplers],
        "auxiliary_data": readings,
        "omega": omegas,
        "real_size": real_sizes,
        "synthetic_size": synthetic_sizes,
        "auxiliary_size": auxiliary_sizes or "same",
        "budget": budgets,
        "generations": sweep.generations,
        "trials": sweep.trials,
        "real_mean": mean,
        "real_covariance": covariance,
        "seed": sweep.seed,
    }
    if learner == "network":
        settings["network"] = asdict(sweep.network)
        settings["overlay_trials"] = OVERLAY_TRIALS if "overlay" in parts else 0
    if beside:
        settings["beside_trials"] = sweep.beside_trials
    return Plan(parts, settings)


def _with_defaults(sweep: Sweep, learner: str) -> Sweep:
    """Fill in what was left to the learner."""
    defaults = BY_LEARNER[learner]
    filled = {name: value for name, value in defaults.items() if not getattr(sweep, name)}
    sweep = replace(sweep, **filled)  # type: ignore[arg-type]
    if sweep.budget:
        return sweep
    if not sweep.network.batch:
        raise InputError("--budget", "", "with --network.batch 0 say how many samples an auxiliary sees, such as 50k")
    return replace(sweep, budget=f"{sweep.network.steps * sweep.network.batch / 1000:g}k")  # as many as the base


def _refuse_for_networks(sweep: Sweep, samplers: list[Sampler]) -> None:
    if any(s.name == "exact" for s in samplers):
        raise InputError("--sampler", "exact", "networks need a numerical sampler, such as ddim:20 or rk4:8")
    if sweep.network.time == "sampler" and any(s.name != "ddim" for s in samplers):
        raise InputError("--network.time", "sampler", "that time input is of the cosine grid: use --sampler ddim:N")


def _list(argument: str, text: str) -> list[str]:
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not parts:
        raise InputError(argument, text, "give at least one")
    return list(dict.fromkeys(parts))


def _names(argument: str, text: str, known: Any) -> list[str]:
    return [choose(argument, p, known) for p in _list(argument, text)]


def _sizes(argument: str, text: str) -> list[int]:
    return [int(v) for v in parse_grid(argument, text, low=1, high=1e12, integer=True)]


def _numbers(argument: str, text: str) -> list[float]:
    return [v for part in text.split(",") for v in parse_grid(argument, part)]


def _budgets(text: str, learner: str) -> list[str]:
    """Budgets as text, since '0.3' and '50k' are of different kinds; the learner takes one kind only."""
    if ":" in text and learner == "exact":
        return [f"{v:g}" for v in parse_grid("--budget", text, low=0, high=1)]
    budgets = [parse_budget("--budget", part) for part in _list("--budget", text)]
    for budget in budgets:
        if learner == "exact" and budget.unit != "eta":
            raise InputError(
                "--budget",
                budget.text,
                "the exact learner takes eta in [0, 1], how far the auxiliary moves to its data",
            )
        if learner == "network" and (budget.unit != "samples" or not budget.value):
            raise InputError(
                "--budget", budget.text, "networks take samples seen, with a unit (25.6k); eta is for --learner exact"
            )
    return [b.text for b in budgets]
