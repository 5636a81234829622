"""self-consuming generations on images, by any policy and method of the core.

The loop is `sims_core.loop.self_consuming_loop`, the methods are those of `sims_core.algorithm`; what is here says what
to run, measures every generation, and reports. `docs/images-loops.md` describes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sims_core.algorithm import AUXILIARY_DATA, METHODS
from sims_core.errors import InputError, choose
from sims_core.lab.grids import parse_grid
from sims_core.loop import Policy, parse_policy, self_consuming_loop
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_image.data.derived import ImageData
from sims_image.experiments import loop_report
from sims_image.experiments.checks import further
from sims_image.experiments.costs import ledger
from sims_image.experiments.laboratory import Checked, Lab, check, summarise
from sims_image.experiments.options import Laboratory, Loop
from sims_image.learner import ImageLearner
from sims_image.models.presets import PRESETS
from sims_image.processes import Processes
from sims_image.training.schedules import images_of


@dataclass(frozen=True)
class Arm:
    """One loop: a method, and its omega if it takes one."""

    method: str
    omega: float | None

    @property
    def name(self) -> str:
        """For tables and folders."""
        return self.method if self.omega is None else f"{self.method} omega={self.omega:g}"


def plan(settings: Loop) -> tuple[Checked, Policy, list[Arm]]:
    """What is asked for, checked. Raises `InputError`."""
    policy, real = read_policy(settings.loop), None
    if settings.generations < 1:
        raise InputError("generations", settings.generations, "give a whole number of at least 1")
    if policy.needs and not settings.more:
        raise InputError("more", "", f"the loop '{settings.loop}' needs further images: name a data set")
    if policy.ratio is not None:
        if settings.synthetic:
            raise InputError("synthetic", settings.synthetic, f"the loop '{settings.loop}' fixes it; leave it out")
        first = check(settings)
        real = first.real
        settings = replace(settings, synthetic=str(max(1, round(policy.ratio * first.sizes.real))))
    checked = check(settings, real)
    if settings.more and checked.real is not None:
        least = checked.sizes.real if "fresh" in policy.needs else 0
        checked = replace(checked, more=further(settings.more, "more", checked.real.data, least))
    omegas = parse_grid("omega", settings.omega, low=0, high=1e6)
    arms: list[Arm] = []
    for method in (part.strip() for part in settings.method.split(",")):
        known = [name for name, found in METHODS.items() if found.resampled != "retuned"]
        if "omega" not in METHODS[choose("method", method, known)].takes:
            arms.append(Arm(method, None))
        else:
            arms += [Arm(method, omega) for omega in omegas]
    return checked, policy, arms


def bound(arm: Arm, settings: Laboratory, checked: Checked) -> Any:
    """The arm's method with its settings. An auxiliary from scratch has a whole training's budget."""
    sizes = checked.sizes
    return METHODS[arm.method].bind(
        n_synthetic=sizes.auxiliary,
        budget=sizes.fit if arm.method in ("autoguidance", "rebuilt") else sizes.budget,
        omega=arm.omega,
        auxiliary_data=AUXILIARY_DATA[settings.auxiliary_data],
    )


def doubled(learner: ImageLearner) -> ImageLearner:
    """The learner with twice the sampler's steps."""
    name = learner.sampler or PRESETS[learner.training.preset].sampler
    return replace(learner, sampler=str(Sampler.parse(name, argument="sampler").doubled()))


def conduct(settings: Loop, processes: Processes) -> tuple[Path, Sequence[str]] | None:
    """The whole experiment. Returns the report's folder and its words in the first process. Raises `InputError`."""
    found = processes.together(lambda: plan(settings)) or plan(settings)
    checked, policy, arms = found
    lab = Lab(checked, processes)
    more = None if checked.more is None else lab.fitting(ImageData.of(checked.more))
    for trial in range(settings.trials):
        for arm in arms:
            run_arm(lab, arm, policy, trial, generations=settings.generations, more=more)
    if not processes.first:
        return None
    rows = pd.DataFrame(lab.rows)
    tables = {"generations": rows, "summary": summary(rows)}
    words = loop_report.words(tables, lab)
    return lab.write(tables, {"loop": loop_report.figure(tables, lab)}, words), words


def run_arm(
    lab: Lab, arm: Arm, policy: Policy, trial: int, *, generations: int, more: ImageData | None = None, **known: Any
) -> None:
    """One loop, every generation measured. more: further images, for the loops that need them. known: for the rows."""
    twice = METHODS[arm.method].resampled == "doubled"
    count = lab.sizes.synthetic if policy.ratio is None else max(1, round(policy.ratio * lab.sizes.real))
    turns = self_consuming_loop(
        doubled(lab.learner) if twice else lab.learner,
        lab.data,
        method=bound(arm, lab.settings, lab.checked),
        policy=policy,
        n_synthetic=count,
        generations=generations,
        seed=lab.trial(trial),
        fresh=None if more is None else lambda seed: drawn(lab, more, seed),
        pollution=more,
    )
    place = " ".join([arm.name, *(f"{key}={value}" for key, value in known.items())])
    for turn in turns:
        told: dict[str, Any] = {"arm": arm.name, "method": arm.method, "omega": arm.omega, **known}
        row = lab.quality(turn.model, trial, doubled=twice, **told, generation=turn.index, train=len(turn.train))
        parts = {"model": turn.model, "base": turn.trained.base, "auxiliary": turn.trained.auxiliary}
        lab.note(place, trial, turn.index, parts, train=turn.train.path.name, quality=row)
        if trial == 0:
            lab.grid(turn.model, f"{place.replace(' ', '-').replace('=', '')}-{turn.index:02d}", doubled=twice)


def read_policy(text: str, *, argument: str = "loop") -> Policy:
    """A policy of the core; of a ratio of 0, whose training set is the real data alone. Raises `InputError`."""
    policy = parse_policy(text, argument=argument)
    return replace(policy, train=lambda learner, turn: turn.real) if policy.ratio == 0 else policy


def drawn(lab: Lab, pool: ImageData, seed: Seed, *, argument: str = "more") -> ImageData:
    """As many images as D_r holds, drawn from a larger set without repeats. Raises `InputError` for too few."""
    count = len(pool)
    if count < lab.sizes.real:
        raise InputError(argument, str(pool.path), f"it holds {count} images and each draw takes {lab.sizes.real}")
    return lab.learner.subset(pool, seed.numpy().permutation(count)[: lab.sizes.real])


def summary(rows: pd.DataFrame) -> pd.DataFrame:
    """Means and intervals over trials, row by row an arm's generation.

    ratio: to the arm's own first generation; minus_standard: difference to standard training at that generation;
    to_first: ratio to the first generation of standard training. All are paired by trial.
    """
    rows = rows.copy()
    own = rows[rows["generation"] == 1].set_index(["arm", "trial"])["frechet"]
    plain = rows[rows["method"] == "standard"].set_index(["generation", "trial"])["frechet"]

    def found(values: pd.Series, *keys: Any) -> Any:
        return values.reindex(pd.MultiIndex.from_arrays(keys)).to_numpy()

    rows["ratio"] = rows["frechet"] / found(own, rows["arm"], rows["trial"])
    rows["minus_standard"] = rows["frechet"] - found(plain, rows["generation"], rows["trial"])
    rows["to_first"] = rows["frechet"] / found(plain, [1] * len(rows), rows["trial"])
    values = ["frechet", "precision", "recall", "density", "coverage", "ratio", "minus_standard", "to_first"]
    kept = [name for name in values if name in rows]
    return summarise(rows, ["arm", "method", "omega", "generation"], kept)


def describe(settings: Loop) -> str:
    """The plan and its cost in words."""
    checked, policy, arms = plan(settings)
    sizes, turns = checked.sizes, settings.generations * settings.trials
    told = ledger(checked)
    told.say("loop", f"{policy.name}, {settings.generations} generations, {settings.trials} trials")
    told.say("|D_s|", f"{sizes.synthetic:,}")
    for arm in arms:
        method = METHODS[arm.method]
        networks = 2 if method.resampled == "doubled" else method.networks  # twice the steps cost as much
        firsts = 0 if checked.checkpoint else settings.trials
        if policy.warm:
            told.train(f"{arm.name}: first training", sizes.fit, firsts)
            again = images_of("retrain_budget", settings.retrain_budget or str(sizes.fit), checked.recipe.mi)
            told.train("retraining", again, turns - settings.trials)
        else:
            told.train(f"{arm.name}: training", sizes.fit, turns - settings.trials + firsts)
        if "budget" in method.takes:
            if "n_synthetic" in method.takes:
                told.draw("its auxiliary's samples", sizes.auxiliary, turns)
            own = sizes.fit if arm.method == "rebuilt" else sizes.fit // 16 if arm.method == "autoguidance" else 0
            told.train("its auxiliary", own or sizes.budget, turns)
        told.draw("its samples", sizes.synthetic, turns - settings.trials, networks)
        told.draw("measuring", sizes.n, turns, networks)
    told.say("out", settings.out)
    return told.words
