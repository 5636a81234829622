"""From what was asked for to the cells that are run; what cannot be run is refused here, before anything is written."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from sims_core.algorithm import METHODS
from sims_core.errors import InputError, choose, whole
from sims_core.lab.bounds import check_bounds, settled
from sims_core.lab.grids import parse_grid
from sims_core.loop import parse_policy
from sims_core.sampling import Sampler
from sims_toy.datasets import parse_real
from sims_toy.estimators import Estimator
from sims_toy.grid.cells import Cell, Experiment
from sims_toy.grid.measure import LEARNERS, POINTS, parse_reading
from sims_toy.grid.parse import MOST_OMEGA, at_most_cells, budgets_of, items, names, read_gaussian, sizes, trained
from sims_toy.grid.study import GridStudy
from sims_toy.networks.settings import NetworkSettings
from sims_toy.sweep import report
from sims_toy.sweep.options import BY_LEARNER, SAMPLERS, Sweep
from sims_toy.sweep.page import TERMS, view
from sims_toy.sweep.tables import beneath


def make_plan(sweep: Sweep) -> GridStudy:
    """What a `Sweep` asks for. Raises `InputError` for anything that cannot be run."""
    check_bounds(sweep)
    learner = choose("learner", sweep.learner, BY_LEARNER)
    own = trained(learner, sweep.network, sweep.flow)
    if isinstance(own, NetworkSettings):
        sweep = replace(sweep, network=own)
    converged = not sweep.budget  # auxiliaries trained as long as their bases: eta = 1 of the exact learner
    sweep = _with_defaults(sweep, learner, own)
    methods = names("method", sweep.method, METHODS)
    readings = items("auxiliary_data", sweep.auxiliary_data)
    for reading in readings:
        _, scale = parse_reading("auxiliary_data", reading)
        if scale != 1 and learner not in ("exact", "network"):
            raise InputError("auxiliary_data", reading, f"`learner` {learner} scales no scores: leave out the @")
    samplers = [LEARNERS[learner].parse(s, argument="sampler") for s in items("sampler", sweep.sampler)]
    policies = [parse_policy(p, argument="loop") for p in items("loop", sweep.loop)]
    omegas = parse_grid("omega", sweep.omega, low=-MOST_OMEGA, high=MOST_OMEGA)
    temperatures = parse_grid("temperature", sweep.temperature, low=0, high=1)
    if 0.0 in temperatures:
        raise InputError("temperature", sweep.temperature, "give lambda_s in (0, 1]")
    real_sizes = sizes("real_size", sweep.real_size)
    synthetic_sizes = sizes("synthetic", sweep.synthetic)
    auxiliary_sizes = None if sweep.auxiliary_size == "same" else sizes("auxiliary_size", sweep.auxiliary_size)
    budgets = budgets_of(sweep.budget, learner)
    distance, digest = _distance(sweep, learner, max(real_sizes))
    if learner == "network":
        _refuse_for_networks(sweep, samplers)
    mean, covariance = read_gaussian(sweep.real_mean, sweep.real_covariance)
    estimators = [str(Estimator.parse(text)) for text in items("estimator", sweep.estimator)]
    if learner != "exact" and estimators != ["mle"]:
        raise InputError("estimator", sweep.estimator, "it is of the exact learner: say `learner` exact")
    for estimator, sampler in product(estimators, samplers):
        Estimator.parse(estimator).check(sampler)

    if any("omega" in METHODS[m].takes for m in methods) and 0.0 not in omegas:
        omegas = sorted([0.0, *omegas])  # omega = 0 is what every other omega is compared with
    at_most_cells(
        *(methods, policies, samplers, readings, omegas, temperatures, budgets, estimators),
        *(real_sizes, synthetic_sizes, auxiliary_sizes or [0]),
    )
    cells: list[Cell] = []
    retuned: list[Cell] = []  # after all others: pieces of a run that was made without them keep their numbers
    axes = (policies, samplers, real_sizes, synthetic_sizes, temperatures, estimators)
    for policy, sampler, n, m, heat, estimator in product(*axes):
        if policy.ratio is not None:
            m = round(policy.ratio * n)  # the loop fixes |D_s|
            if m == 0 and auxiliary_sizes is None and any("n_synthetic" in METHODS[x].takes for x in methods):
                expected = f"it leaves |D_s| = 0 for |D_r| = {n}: say `auxiliary_size`, or `method` standard"
                raise InputError("loop", policy.name, expected)
        for foreign in sizes("pollution", sweep.pollution) if "pollution" in policy.needs else [0]:
            base = Cell(
                learner, "standard", policy.name, str(sampler), n, m,
                reference=str(sampler), temperature=heat, pollution=foreign, real=sweep.data,
                estimator=estimator,
            )  # fmt: skip
            cells.append(base)
            if sampler.steps and any(METHODS[x].networks > 1 or METHODS[x].resampled for x in methods):
                # two networks per step: standard training may take twice the steps, or better ones
                cells.append(replace(base, method="equal-cost", sampler=str(sampler.doubled())))
                retuned += [replace(base, method="retuned", sampler=s) for s in _retuned(sweep, sampler)]
            for method in methods:
                takes = METHODS[method].takes
                if takes:
                    cells += [
                        replace(base, method=method, auxiliary_size=a, budget=b, auxiliary_data=r, omega=w)
                        for a in ((auxiliary_sizes or [m]) if "n_synthetic" in takes else [0])
                        for b in (budgets if "budget" in takes else ["0"])
                        for r in (readings if "auxiliary_data" in takes else ["none"])
                        for w in (omegas if "omega" in takes else [0.0])
                    ]
    cells = list(dict.fromkeys([*cells, *retuned]))
    fewer = bool(sweep.beside_trials) and sweep.beside_trials != sweep.trials
    beside = [c for c in cells if fewer and c.auxiliary_data not in ("none", readings[0])]
    experiment = Experiment(
        tuple(c for c in cells if c not in beside),
        settled(sweep.generations),
        settled(sweep.trials),
        sweep.seed,
        tuple(mean),
        tuple(map(tuple, covariance)),
        own,
        (distance, "effective", "acceptance") if learner == "flow" else (distance,),
    )
    parts = {"cells": experiment}
    whole("beside_trials", sweep.beside_trials or 2, 2)
    if beside:  # with the standard cells that their ratios need, and then the controls that they are compared with
        needed = [c for c in cells if c.method == "standard" or c in beside]
        needed += [c for c in cells if METHODS[c.method].resampled]
        parts["beside"] = replace(experiment, cells=tuple(needed), trials=sweep.beside_trials)
    if learner == "network" and converged and distance == "w2":
        exact, twins = (tuple(dict.fromkeys(beneath(c, name) for c in cells)) for name in ("exact", "twin"))
        parts["overlay"] = replace(experiment, cells=exact, trials=sweep.overlay_trials, network=None)
        parts["twin"] = replace(experiment, cells=twins, network=None)
    settings: dict[str, Any] = {
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
        "temperature": temperatures,
        "generations": sweep.generations,
        "trials": sweep.trials,
        "real": sweep.data,
        "real_mean": mean,
        "real_covariance": covariance,
        "distance": distance,
        "seed": sweep.seed,
    }
    if estimators != ["mle"]:
        settings["estimator"] = estimators
    if retuned:
        settings["retuned"] = list(dict.fromkeys(c.sampler for c in retuned))
    if digest:
        settings["real_sha256"] = digest
    if any("pollution" in p.needs for p in policies):
        settings["pollution"] = sizes("pollution", sweep.pollution)
    if own is not None:
        settings["flow" if learner == "flow" else "network"] = own.record()
        settings["overlay_trials"] = sweep.overlay_trials if "overlay" in parts else 0
    if beside:
        settings["beside_trials"] = sweep.beside_trials
    exact_part = experiment if learner == "exact" else parts.get("overlay")
    return GridStudy(
        "sweep",
        settings,
        parts=parts,
        make=lambda values: (
            report.make(parts, {name: v[distance] for name, v in values.items()}, exact_part, settings)
            | report.densities(parts, values)
        ),
        draw=report.draw,
        words=report.words,
        note=lambda: report.diagnosis(experiment),
        local=("overlay", "twin"),
        view=view,
        terms=TERMS,
        bulky=("trials",),
    )


def _retuned(sweep: Sweep, sampler: Any) -> list[str]:
    """The samplers of the control 'retuned' besides ``sampler``.

    Raises `InputError` for one that takes more evaluations than SIMS does.
    """
    most = 2 * sampler.nfe
    if sweep.retuned == "none" or (not sweep.retuned and sweep.network.time == "sampler"):
        return []
    if not sweep.retuned and sweep.learner == "flow-matching":
        return [f"rk4:{most // 4}"] if sampler.name != "rk4" and most >= 4 else []
    if not sweep.retuned:
        own = Sampler("rk4", min(4, (most + 1) // 4))
        return [str(own)] if own.steps and sampler.name != "rk4" else []
    found = [LEARNERS[sweep.learner].parse(text, argument="retuned") for text in items("retuned", sweep.retuned)]
    for other in found:
        if not other.steps or other.nfe > most:
            expected = f"SIMS takes {most} evaluations with {sampler}; give a numerical sampler of no more"
            raise InputError("retuned", str(other), expected)
    if sweep.learner == "network":
        _refuse_for_networks(sweep, found)
    return [str(other) for other in found if str(other) != str(sampler)]


def _distance(sweep: Sweep, learner: str, real_size: int) -> tuple[str, str]:
    """The quantity that is measured, and the digest of a user's file."""
    gaussian = sweep.data == "gaussian"
    known = {"moments": "w2", "emd": "emd", "sliced": "sliced"}
    name = choose("distance", sweep.distance or ("moments" if gaussian else "sliced"), known)
    if learner == "exact" and (not gaussian or name != "moments"):
        argument, value = ("distance", name) if gaussian else ("data", sweep.data)
        raise InputError(argument, value, "the exact learner knows Gaussians and their moments; use `learner` network")
    if gaussian:
        return known[name], ""
    if name == "moments":
        raise InputError("distance", name, f"moments are no distance to '{sweep.data}'; use emd or sliced")
    real = parse_real(sweep.data)
    if real.limit is not None and real.limit < POINTS:
        expected = f"the file holds {real.limit} points; give at least {max(POINTS, real_size)}: {POINTS} are compared"
        raise InputError("data", sweep.data, expected)
    if real.limit is not None and real.limit < real_size:
        raise InputError("real_size", real_size, f"the file of `data` holds {real.limit} points")
    return known[name], real.digest


def _with_defaults(sweep: Sweep, learner: str, own: Any) -> Sweep:
    """Fill in what was left to the learner, whose settings are ``own``."""
    defaults = BY_LEARNER[learner] | {"sampler": SAMPLERS[learner]}
    filled = {name: value for name, value in defaults.items() if not getattr(sweep, name)}
    sweep = replace(sweep, **filled)  # type: ignore[arg-type]
    if sweep.budget:
        return sweep
    if not own.batch:
        raise InputError("budget", "", "with a batch of 0 say how many samples an auxiliary sees, such as 50k")
    return replace(sweep, budget=f"{own.steps * own.batch / 1000:g}k")  # as many as the base


def _refuse_for_networks(sweep: Sweep, samplers: list[Sampler]) -> None:
    if any(s.name == "exact" for s in samplers):
        raise InputError("sampler", "exact", "networks need a numerical sampler, such as ddim:20 or rk4:8")
    if sweep.network.time == "sampler" and any(s.name != "ddim" for s in samplers):
        raise InputError("network.time", "sampler", "that time input is of the cosine grid: use `sampler` ddim:N")
