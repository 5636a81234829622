"""Algorithm 2 of SIMS on image classes (`docs/images-experiments.md`).

The base is unconditional. Its own samples, judged by a classifier and selected in the shares of the target's complement
(`sims_core.control.complement`), are what the auxiliary is fine-tuned on; guidance away from it moves the output's
class shares toward the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims_core.algorithm import METHODS, Given
from sims_core.control import COMPLEMENTS, complement, distribution_control
from sims_core.errors import InputError, choose, shown
from sims_core.seeds import Seed
from sims_image.data.dataset import Dataset
from sims_image.experiments import control_report
from sims_image.experiments.checks import omegas_of
from sims_image.experiments.costs import Ledger, ledger
from sims_image.experiments.judging import Judging
from sims_image.experiments.laboratory import Checked, Lab, check
from sims_image.experiments.options import Control
from sims_image.learner import ImageData, ImageModel
from sims_image.metrics.classifier import check_labelled
from sims_image.metrics.classify import Judge, judge, judged
from sims_image.models.presets import PRESETS
from sims_image.processes import Processes
from sims_image.sampling.seeds import Seeds

Array = NDArray[np.float64]
#: candidates are drawn for selection until there are enough, at most so many times what the shares ask for
ROUNDS = 4


def parse_target(text: str, classes: Sequence[str], base: Array) -> Array:
    """Read a target distribution over ``classes``; ``base`` shares out what NAME=SHARE leaves. Raises `InputError`."""
    count = len(classes)
    words = f"uniform, {count} shares with commas, or NAME=SHARE,... of {', '.join(map(shown, classes[:12]))}"
    if text == "uniform":
        return np.full(count, 1 / count)
    parts = [part.strip() for part in text.split(",")]
    try:
        if any("=" in part for part in parts):
            named = {name.strip(): float(value) for name, _, value in (part.partition("=") for part in parts)}
            places = [list(classes).index(name) for name in named]
            found = np.full(count, np.nan)
            found[places] = list(named.values())
            rest = np.isnan(found)
            if rest.any():
                found[rest] = (1 - sum(named.values())) * base[rest] / base[rest].sum()
        else:
            found = np.array([float(part) for part in parts])
    except ValueError:
        raise InputError("target", text, words) from None
    if len(found) != count or not np.isfinite(found).all() or (found < 0).any() or not found.sum() > 0:
        raise InputError("target", text, words)
    return np.asarray(found / found.sum())


def plan(settings: Control) -> tuple[Checked, list[float]]:
    """What is asked for, checked. Raises `InputError`."""
    choose("complement", settings.complement, COMPLEMENTS)
    if not settings.strength > 0:
        raise InputError("strength", settings.strength, "give a positive number")
    omegas = omegas_of(settings.omega)
    checked = check(settings)
    if checked.config.get("label_dim"):
        raise _conditional(settings, checked)
    if checked.real is not None:
        check_target(settings, checked.real.seen.data)
    return checked, omegas


def _conditional(settings: Control, checked: Checked) -> InputError:
    """Why a conditional base is refused, and what to do: of a conditional network, classes are asked for instead."""
    count = checked.config["label_dim"]
    if checked.checkpoint:
        words = (
            f"it is conditional ({count} classes), and control moves what an unconditional network draws; train one "
            "(`sims_image train --network label_dim=0`), or name a preset with `network` label_dim=0"
        )
        return InputError("base", settings.base, words)
    if "label_dim" in settings.network:
        words = "control needs an unconditional network: label_dim=0"
        return InputError("network", settings.network, words)
    free = [name for name, preset in PRESETS.items() if not preset.classes]
    words = f"its network is conditional; add `network` label_dim=0, or name an unconditional one: {', '.join(free)}"
    return InputError("base", settings.base, words)


def check_target(settings: Control, data: Dataset) -> None:
    """Refuse a classifier that cannot be had and a target that does not fit its classes. Raises `InputError`."""
    if settings.classifier:
        classes: Sequence[str] = judge(settings.classifier, data).classes
    else:
        check_labelled(data, "classifier", "")
        classes = data.classes
    parse_target(settings.target, classes, np.full(len(classes), 1 / len(classes)))


def conduct(settings: Control, processes: Processes) -> tuple[Path, Sequence[str]] | None:
    """The whole experiment. Returns the report's folder and its words in the first process. Raises `InputError`."""
    checked, omegas = processes.together(lambda: plan(settings)) or plan(settings)
    lab = Lab(checked, processes)

    def make() -> Judge:
        return judge(settings.classifier, lab.labelled, device=processes.device)

    judging = Judging(lab, processes.together(make) or make())
    outcome = control_report.Outcome(lab, judging)
    for trial in settings.numbers:
        run_trial(lab, judging, outcome, omegas, trial)
    if not processes.first:
        return None
    tables = outcome.tables()
    words = control_report.words(tables, outcome)
    return lab.write(tables, {"control": control_report.figure(tables, outcome)}, words), words


def run_trial(lab: Lab, judging: Judging, outcome: Any, omegas: Sequence[float], trial: int) -> None:
    """Algorithm 2 once, with its controls, every model measured."""
    settings, learner, seed = lab.settings, lab.learner, lab.trial(trial)
    assert isinstance(settings, Control)
    known: dict[str, Any] = {}

    def base_shares(base: ImageModel, own: Seed) -> Array:
        """What the base draws, the classifier's errors taken out; cut to what shares can be."""
        found = np.clip(judging.measure(base, trial).shares.shares, 1e-6, None)
        known["base"] = found / found.sum()
        known["target"] = parse_target(settings.target, judging.judge.classes, known["base"])
        known["wanted"] = complement(known["base"], known["target"], settings.strength, reading=settings.complement)
        return np.asarray(known["base"])

    def draw(base: ImageModel, shares: Array, own: Seed) -> ImageData:
        return selected(lab, judging, base, shares, known["base"], own)

    first = learner.fit(lab.data, seed=seed.child("fit"))
    base_shares(first, seed)  # the target may need them
    made = distribution_control(
        learner,
        lab.data,
        draw=draw,
        base_shares=base_shares,
        target_shares=known["target"],
        strength=settings.strength,
        reading=settings.complement,
        budget=lab.sizes.budget,
        omega=0.0,
        seed=seed,
    )
    assert made.auxiliary is not None
    asked = {"n_synthetic": lab.sizes.auxiliary, "budget": lab.sizes.budget, "omega": 0.0}
    own = learner.sample(made.base, lab.sizes.auxiliary, seed=seed.child("plain"))
    parts: dict[str, dict[str, Any]] = {"sims": {"synthetic": own}, "random": {"auxiliary": made.auxiliary}}
    rivals: dict[str, Any] = {
        name: METHODS[name].bind(**asked)(Given(learner, base=made.base, **given), lab.data, seed=seed).auxiliary
        for name, given in parts.items()
    }
    add = outcome.adder(trial, known)
    if trial == lab.settings.numbers[0]:
        lab.grid(made.base, "base", "base", "what all start from")
    add("base", 0.0, judging.measure(made.base, trial))
    add("equal-cost", 0.0, judging.measure(made.base, trial, doubled=True))
    add("auxiliary", 0.0, judging.measure(made.auxiliary, trial))
    for name, auxiliary in {"control": made.auxiliary, **rivals}.items():
        for omega in omegas:
            model = learner.extrapolate(made.base, auxiliary, omega)
            add(name, omega, judging.measure(model, trial))
            lab.note(f"{name} {omega:g}", trial, 0, {"model": model})
            if trial == lab.settings.numbers[0] and name == "control":
                lab.grid(model, f"control-{omega:g}", f"ω = {omega:g}", "Algorithm 2")


def selected(lab: Lab, judging: Judging, base: ImageModel, shares: Array, own: Array, seed: Seed) -> ImageData:
    """|auxiliary| samples of ``base`` in the class ``shares``, by what the classifier says: the first of each class.

    own: the base's shares, from which the number of candidates follows. Raises `InputError` where a class stays short.
    """
    count = lab.sizes.auxiliary
    quota = np.floor(shares * count).astype(int)
    short = np.argsort(-(shares * count - quota), kind="stable")[: count - quota.sum()]
    quota[short] += 1
    candidates = int(np.ceil(1.2 * (quota / np.maximum(own, 1e-3)).max())) + 20
    for _ in range(ROUNDS):
        pool = lab.learner.draw(base, Seeds.span(0, candidates), root=seed.integer())
        verdicts = judged(judging.judge, lab.seen(pool))
        if (np.bincount(verdicts, minlength=len(quota)) >= quota).all():
            chosen = np.concatenate([np.flatnonzero(verdicts == k)[:wanted] for k, wanted in enumerate(quota)])
            return lab.learner.subset(pool, np.sort(chosen))
        candidates *= 2
    have = np.bincount(verdicts, minlength=len(quota))
    rare = judging.judge.classes[int(np.argmin(have - quota))]
    words = f"the base draws too few of class {rare}; ask for fewer, or a `complement` and `strength` that want less"
    raise InputError("auxiliary_size", count, words)


def describe(settings: Control) -> str:
    """The plan and its cost in words."""
    return priced(settings).words


def priced(settings: Control) -> Ledger:
    """The plan and its cost."""
    checked, omegas = plan(settings)
    sizes, trials = checked.sizes, settings.trials
    told = ledger(checked)
    told.say("target", f"{settings.target}, complement {settings.complement}, strength {settings.strength:g}")
    if not checked.checkpoint:
        told.train("training", sizes.fit, trials)
    told.draw("candidates for selection (a few times the auxiliary's)", 3 * sizes.auxiliary, trials)
    told.draw("plain SIMS's samples", sizes.auxiliary, trials)
    told.train("auxiliaries", sizes.budget, 2 * trials, tuned=True)
    told.draw("measuring base and auxiliary", sizes.n, 2 * trials)
    told.draw("measuring guided models", sizes.n, (3 * len(omegas) + 1) * trials, 2)
    told.say("out", settings.out)
    return told
