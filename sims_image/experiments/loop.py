"""Self-consuming generations on images, by any policy and method of the core; `retrain` is one with a ratio.

The loop is `sims_core.loop.self_consuming_loop`, the methods are those of `sims_core.algorithm`; what is here says what
to run, measures every generation, and reports (`docs/images-experiments.md`). Iterative retraining on real and
generated images (Bertrand et al. 2023, arXiv 2310.00429) is standard training under ``mixed:λ``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sims_core.algorithm import AUXILIARY_DATA, METHODS
from sims_core.errors import InputError, choose
from sims_core.lab.grids import parse_grid
from sims_core.loop import POLICIES, Policy, parse_policy, self_consuming_loop
from sims_core.seeds import Seed
from sims_image.data.derived import ImageData
from sims_image.experiments import loop_report, retrain_report
from sims_image.experiments.checks import further
from sims_image.experiments.costs import Ledger, ledger
from sims_image.experiments.laboratory import Checked, Lab, Sizes, check
from sims_image.experiments.options import AuxiliaryData, Laboratory, Loop, Retrain
from sims_image.learner import WEIGHTS, ImageLearner
from sims_image.models.denoiser import parse_sampler
from sims_image.models.presets import PRESETS
from sims_image.processes import Processes
from sims_image.training.options import ADAM
from sims_image.training.schedules import images_of


@dataclass(frozen=True)
class Arm:
    """One loop: a data policy and a method, with its omega if it takes one. known: what else its rows say of it."""

    method: str
    omega: float | None
    policy: Policy
    known: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """For tables."""
        return self.method if self.omega is None else f"{self.method} omega={self.omega:g}"

    @property
    def place(self) -> str:
        """For folders."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.known.items())])

    def synthetic(self, sizes: Sizes) -> int:
        """|D_s|."""
        ratio = self.policy.ratio
        return sizes.synthetic if ratio is None else max(1, round(ratio * sizes.real))


def plan(settings: Loop | Retrain) -> tuple[Checked, list[Arm]]:
    """What is asked for, checked. Raises `InputError`."""
    if isinstance(settings, Retrain):
        if settings.generations < 2:
            raise InputError("generations", settings.generations, "give a whole number of at least 2")
        choose("start", settings.start or settings.auxiliary_weights, WEIGHTS)
        choose("adam", settings.adam, ADAM)
        choose("sample_seeds", settings.sample_seeds, ("fresh", "same"))
        policies = ratios(settings.ratio)
        return check(settings), [Arm("standard", None, one, {"ratio": ratio}) for ratio, one in policies.items()]
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
            arms.append(Arm(method, None, policy))
        else:
            arms += [Arm(method, omega, policy) for omega in omegas]
    return checked, arms


def ratios(text: str) -> dict[float, Policy]:
    """The policies of retraining by their λ, 0 first: what all are compared with. Raises `InputError`."""
    words = [part.strip() for part in text.split(",")]
    finite = ",".join(word for word in words if word != "inf")
    found = {ratio: f"mixed:{ratio:.12g}" for ratio in (0.0, *(parse_grid("ratio", finite, low=0) if finite else ()))}
    policies = {ratio: read_policy(policy, argument="ratio") for ratio, policy in found.items()}
    if "inf" in words:
        policies[float("inf")] = replace(POLICIES["fully-synthetic"], warm=True)
    return policies


def bound(method: str, settings: Laboratory, checked: Checked, omega: float | None) -> Any:
    """A method with its settings. An auxiliary from scratch has a whole training's budget."""
    sizes = checked.sizes
    reading = settings.auxiliary_data if isinstance(settings, AuxiliaryData) else AuxiliaryData.auxiliary_data
    return METHODS[method].bind(
        n_synthetic=sizes.auxiliary,
        budget=sizes.fit if method in ("autoguidance", "rebuilt") else sizes.budget,
        omega=omega,
        auxiliary_data=AUXILIARY_DATA[reading],
    )


def doubled(learner: ImageLearner) -> ImageLearner:
    """The learner with twice the sampler's steps."""
    name = learner.sampler or PRESETS[learner.training.preset].sampler
    return replace(learner, sampler=str(parse_sampler(name).doubled()))


def conduct(settings: Loop | Retrain, processes: Processes) -> tuple[Path, Sequence[str]] | None:
    """The whole experiment. Returns the report's folder and its words in the first process. Raises `InputError`."""
    checked, arms = processes.together(lambda: plan(settings)) or plan(settings)
    lab = Lab(checked, processes)
    more = None if checked.more is None else lab.fitting(ImageData.of(checked.more))
    for trial in settings.numbers:
        for arm in arms:
            run_arm(lab, arm, trial, more)
    if not processes.first:
        return None
    report = retrain_report if isinstance(settings, Retrain) else loop_report
    tables = report.tables(pd.DataFrame(lab.rows))
    words = report.words(tables, lab)
    return lab.write(tables, {settings.verb: report.figure(tables, lab)}, words), words


def run_arm(lab: Lab, arm: Arm, trial: int, more: ImageData | None = None) -> None:
    """One loop, every generation measured. more: further images, for the loops that need them."""
    settings = lab.settings
    assert isinstance(settings, Loop | Retrain)
    twice = METHODS[arm.method].resampled == "doubled"
    learner = doubled(lab.learner) if twice else lab.learner
    if isinstance(settings, Retrain) and settings.sample_seeds == "same":
        learner = replace(learner, sampled=lab.trial(trial).child("samples").integer())
    turns = self_consuming_loop(
        learner,
        lab.data,
        method=bound(arm.method, settings, lab.checked, arm.omega),
        policy=arm.policy,
        n_synthetic=arm.synthetic(lab.sizes),
        generations=settings.generations,
        seed=lab.trial(trial),
        fresh=None if more is None else lambda seed: drawn(lab, more, seed),
        pollution=more,
    )
    for turn in turns:
        told: dict[str, Any] = {"arm": arm.name, "method": arm.method, "omega": arm.omega, **arm.known}
        row = lab.quality(turn.model, trial, doubled=twice, **told, generation=turn.index, train=len(turn.train))
        parts = {"model": turn.model, "base": turn.trained.base, "auxiliary": turn.trained.auxiliary}
        lab.note(arm.place, trial, turn.index, parts, train=turn.train.path.name, quality=row)
        if trial == lab.settings.numbers[0]:
            frame = f"{'round' if isinstance(settings, Retrain) else 'generation'} {turn.index}"
            name = f"{arm.place.replace(' ', '-').replace('=', '')}-{turn.index:02d}"
            lab.grid(turn.model, name, frame, arm.place, doubled=twice)


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


def describe(settings: Loop | Retrain) -> str:
    """The plan and its cost in words."""
    return priced(settings).words


def priced(settings: Loop | Retrain) -> Ledger:
    """The plan and its cost."""
    checked, arms = plan(settings)
    sizes, trials, turns = checked.sizes, settings.trials, settings.generations
    told = ledger(checked)
    if isinstance(settings, Retrain):
        told.say("rounds", f"{turns}, {trials} trials, objective {checked.recipe.objective}")
        if not checked.checkpoint:
            told.train("first round", sizes.fit, trials)
    else:
        told.say("loop", f"{arms[0].policy.name}, {turns} generations, {trials} trials")
        told.say("|D_s|", f"{sizes.synthetic:,}")
        if not checked.checkpoint:
            told.train("first generation", sizes.fit, trials)
    again = images_of("retrain_budget", settings.retrain_budget or str(sizes.fit), checked.recipe.mi)
    first: set[str] = set()  # a method's first generation is one whatever its omega
    for arm in arms:
        method, later = METHODS[arm.method], (turns - 1) * trials
        auxiliaries = later if arm.method in first else turns * trials
        first.add(arm.method)
        networks = 2 if method.resampled == "doubled" else method.networks  # twice the steps cost as much
        name = f"λ = {arm.known['ratio']:g}" if arm.known else arm.name
        kind, length = ("retraining", again) if arm.policy.warm else ("training", sizes.fit)
        told.train(f"{name}: {kind}", length, later)
        if "budget" in method.takes:
            if "n_synthetic" in method.takes:
                told.draw("its auxiliary's samples", sizes.auxiliary, auxiliaries)
            own = sizes.fit if arm.method == "rebuilt" else sizes.fit // 16 if arm.method == "autoguidance" else 0
            told.train("its auxiliary", own or sizes.budget, auxiliaries, tuned=not own)
        told.draw("its samples", arm.synthetic(sizes), later, networks)
        told.draw("measuring", sizes.n, turns * trials, networks)
    told.say("out", settings.out)
    return told
