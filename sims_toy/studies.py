"""The studies of this scale by name, one function that runs any of them, and their commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from sims_core.errors import InputError
from sims_core.lab import study as machine
from sims_core.lab.script import Command

if TYPE_CHECKING:
    from sims_core.lab.options import RunOptions
    from sims_core.lab.study import Result


class _Study(NamedTuple):
    """options: the dataclass in its room. name: of its command. what: it asks, in a line. examples: end its help."""

    options: str
    name: str
    what: str
    examples: tuple[str, ...]


#: By room, which has ``plan(options) -> Study`` and PRESETS. As commands of the script ``sims``, 'toy-' sets two apart
#: from those on images.
STUDIES = {
    "sweep": _Study(
        "Sweep",
        "sweep",
        "omega, or any other axis, through the self-consuming loop: Figure 4",
        (
            "--learner exact --synthetic 250,1000 --trials 100  # the exact learner: seconds",
            "--data moons --omega 0,0.5,1 --trials 4 --out runs/moons  # networks, on points in the plane",
        ),
    ),
    "stability": _Study(
        "Stability",
        "stability",
        "retraining on real data and own samples: does it stay stable?",
        (
            "--data moons --ratio 0,0.1,1 --trials 4  # one data set, three ratios",
            "--preset paper --dry-run  # what the full grid would run, and cost",
        ),
    ),
    "mad": _Study(
        "Mad",
        "mad",
        "the loops of MAD: fresh data, collapse, accumulation",
        (
            "--dimension 3 --trials 50 --grid-trials 10  # a small version",
            "--learner network --dry-run  # what trained networks would run, and cost",
        ),
    ),
    "pollution": _Study(
        "Pollution",
        "toy-pollution",
        "why does a little polluted data help SIMS?",
        (
            "--pollution 0,0.1,0.3,1 --omega 0:3:0.5 --real-size 1000 --trials 100  # a small version",
            "--preset networks --out runs/networks  # trained networks",
        ),
    ),
    "control": _Study(
        "Control",
        "toy-control",
        "Algorithm 2 on mixtures: class shares moved, and the price",
        (
            "--data mixture:0.7,0.3 --target 0.5,0.5 --trials 4  # two classes, made even",
            "--complement linear --strength 0.5,1,2 --omega 0:3:0.5  # three strengths of the linear complement",
        ),
    ),
    "sampling_cost": _Study(
        "SamplingCost",
        "sampling-cost",
        "what does guidance cost, and what does it buy?",
        (
            "--sampler heun:18 --guidance full,predictor,held:2 --trials 500  # three schedules",
            "--learner network --sampler ddim:20 --omega 0:2:0.5  # trained networks",
        ),
    ),
    "bias": _Study(
        "Bias",
        "bias",
        "which errors can a model correct from its own samples?",
        (
            "--networks none --features 32,64  # exact estimators and feature scores: a minute",
            "--exact none --features none --networks spiral/32 --trials 3  # one data set, three bases",
        ),
    ),
}


def options_of(room: str) -> type[RunOptions]:
    """A study's dataclass of options."""
    found: type[RunOptions] = getattr(import_module(f"sims_toy.{room}"), STUDIES[room].options)
    return found


def run(options: RunOptions, *, progress: bool = False) -> Result:
    """Run (or resume, or recognise) the study of ``options`` (a `Sweep`, `Mad`, ...): the command in one call.

    Returns its tables, figures and words, and where they are. Raises `InputError` for options that cannot be run and
    for options that are no study's.

    >>> from sims_toy import SamplingCost, run
    >>> options = SamplingCost(sampler="heun:18", guidance="full", omega="0,0.5,1", trials=50, out="runs/cost")
    >>> made = run(options)
    >>> print(made.words.splitlines()[-1])
    heun:18, first generation: the lowest E[W2] is base heun:36's, 0.0753 at 2.03x the base's cost.
    >>> sorted(made.tables), (made.folder / "report.html").exists()
    (['costs', 'curves'], True)
    """
    for room in STUDIES:
        if type(options) is options_of(room):
            return machine.carry_out(import_module(f"sims_toy.{room}").plan(options), options, progress=progress)
    known = ", ".join(study.options for study in STUDIES.values())
    raise InputError("options", type(options).__name__, f"give the options of a study: {known}")


def command(room: str, prog: str = "") -> Callable[[Sequence[str]], None]:
    """``argv -> None``: a study's command. prog: what its help calls it, default ``python -m sims_toy.<room>``."""
    module, study = import_module(f"sims_toy.{room}"), STUDIES[room]
    return machine.command(
        options_of(room),
        module.plan,
        prog=prog or f"python -m sims_toy.{room}",
        presets=module.PRESETS,
        examples=study.examples,
    )


def main(room: str) -> None:
    """Entry point of a study's module that is run."""
    machine.main(command(room))


def commands() -> dict[str, Command]:
    """For the script ``sims``."""
    return {
        study.name: Command(study.what, partial(options_of, room), partial(_run, room, f"sims {study.name}"))
        for room, study in STUDIES.items()
    }


def _run(room: str, prog: str, words: Sequence[str]) -> None:
    """A study's command, on one thread per process: its workers share the machine."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    command(room, prog)(words)
