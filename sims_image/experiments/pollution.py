"""the SIMS paper's Figure 5 on images: ST-I, ST-P, SIMS-I and SIMS-P against |D_p|.

D_p are samples of a previous-generation model, one trained on the real data alone. The polluted base is trained on
D_r with D_p (`sims_core.loop`'s policy ``polluted``); Algorithm 1 continues from there, its auxiliary made of the
base's own samples. `docs/images-experiments.md` says what is our reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sims_core.errors import InputError
from sims_core.lab.grids import parse_grid
from sims_core.loop import POLICIES, Turn
from sims_image.data.derived import ImageData
from sims_image.experiments import pollution_report
from sims_image.experiments.checks import further, omegas_of
from sims_image.experiments.costs import Ledger, ledger
from sims_image.experiments.laboratory import Checked, Lab, check
from sims_image.experiments.loop import bound, drawn
from sims_image.experiments.options import Pollution
from sims_image.processes import Processes
from sims_image.training.schedules import images_of


def plan(settings: Pollution) -> tuple[Checked, list[float], list[float]]:
    """What is asked for, checked: options, doses, omegas. Raises `InputError`."""
    doses = sorted({0.0, *parse_grid("pollution", settings.pollution, low=0)})
    if len(doses) < 2:
        raise InputError("pollution", settings.pollution, "give sizes above 0, such as 0,0.25,0.5,1")
    omegas = sorted(omegas_of(settings.omega))
    checked = check(settings)
    if checked.checkpoint and not settings.warm:
        words = "with a checkpoint as base, the polluted models start from it: give `warm` and `retrain_budget`"
        raise InputError("base", settings.base, words)
    if settings.ideal and checked.real is not None:
        checked = replace(checked, more=further(settings.ideal, "ideal", checked.real.data, checked.sizes.real))
    return checked, doses, omegas


def conduct(settings: Pollution, processes: Processes) -> tuple[Path, Sequence[str]] | None:
    """The whole experiment. Returns the report's folder and its words in the first process. Raises `InputError`."""
    checked, doses, omegas = processes.together(lambda: plan(settings)) or plan(settings)
    lab = Lab(checked, processes)
    ideal = None if checked.more is None else lab.fitting(ImageData.of(checked.more))
    for trial in settings.numbers:
        run_trial(lab, doses, omegas, ideal, trial)
    if not processes.first:
        return None
    rows = pd.DataFrame(lab.rows)
    tables = pollution_report.tables(rows)
    words = pollution_report.words(tables, lab)
    return lab.write(tables, {"pollution": pollution_report.figure(tables, lab)}, words), words


def run_trial(lab: Lab, doses: Sequence[float], omegas: Sequence[float], ideal: ImageData | None, trial: int) -> None:
    """All doses of one trial; the doses are nested, and every model of a dose has the same seeds."""
    settings, learner, seed = lab.settings, lab.learner, lab.trial(trial)
    assert isinstance(settings, Pollution)
    previous = learner.fit(lab.data, seed=seed.child("previous"))
    largest = round(doses[-1] * lab.sizes.real)
    foreign = learner.sample(previous, largest, seed=seed.child("pollution"))
    for dose in doses:
        count = round(dose * lab.sizes.real)
        dirty = learner.subset(foreign, np.arange(count)) if count else None
        scenarios: list[tuple[str, ImageData | None]] = [("P", dirty)]
        if ideal is None and dose == 0:
            scenarios = [("I", None), ("P", None)]
        elif ideal is not None:
            clean = drawn(lab, ideal, seed.child("ideal"), argument="ideal")
            scenarios.append(("I", learner.subset(clean, np.arange(count)) if count else None))
        for scenario, extra in scenarios:
            run_dose(lab, scenario, dose, extra, omegas, previous if settings.warm else None, trial)


def run_dose(
    lab: Lab, scenario: str, dose: float, extra: ImageData | None, omegas: Sequence[float], start: Any, trial: int
) -> None:
    """Standard training and SIMS on D_r with ``extra``, measured."""
    settings, learner = lab.settings, lab.learner
    turn = Turn(1, lab.data, None, None, pollution=extra)
    train = lab.data if extra is None else POLICIES["polluted"].train(learner, turn)
    known: dict[str, Any] = {"dose": dose, "pollution": 0 if extra is None else len(extra), "train": len(train)}
    method = bound("sims", settings, lab.checked, 0.0)
    made = method(learner, train, real=lab.data, seed=lab.trial(trial).child("generation", 1), start=start)
    lab.quality(made.base, trial, scenario=f"ST-{scenario}", omega=0.0, **known)
    parts, frame = {"base": made.base, "auxiliary": made.auxiliary}, f"|D_p| = {dose:g} |D_r|"
    lab.note(f"{scenario}-{dose:g}", trial, 1, parts, train=train.path.name)
    for omega in omegas:
        model = learner.extrapolate(made.base, made.auxiliary, omega)
        lab.quality(model, trial, scenario=f"SIMS-{scenario}", omega=omega, **known)
        if trial == lab.settings.numbers[0] and scenario == "P":
            lab.grid(model, f"SIMS-P-{dose:g}-omega{omega:g}", frame, f"SIMS-P, ω = {omega:g}")
    if trial == lab.settings.numbers[0]:
        lab.grid(made.base, f"ST-{scenario}-{dose:g}", frame, f"ST-{scenario}")


def describe(settings: Pollution) -> str:
    """The plan and its cost in words."""
    return priced(settings).words


def priced(settings: Pollution) -> Ledger:
    """The plan and its cost."""
    checked, doses, omegas = plan(settings)
    sizes, trials = checked.sizes, settings.trials
    models = (len(doses) * (2 if settings.ideal else 1)) * trials
    told = ledger(checked)
    told.say("|D_p|", ", ".join(f"{round(dose * sizes.real):,}" for dose in doses))
    if not checked.checkpoint:
        told.train("previous models", sizes.fit, trials)
    budget = images_of("retrain_budget", settings.retrain_budget or str(sizes.fit), checked.recipe.mi)
    told.draw("pollution", round(doses[-1] * sizes.real), trials)
    told.train("bases", budget if settings.warm else sizes.fit, models)
    told.draw("auxiliaries' samples", sizes.auxiliary, models)
    told.train("auxiliaries", sizes.budget, models, tuned=True)
    told.draw("measuring ST", sizes.n, models)
    told.draw("measuring SIMS", sizes.n, models * len(omegas), 2)
    told.say("out", settings.out)
    return told
