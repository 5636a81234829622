"""The studies of this scale by name, one function that runs any of them, and their commands."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from sims_core.errors import InputError
from sims_core.lab.script import Command
from sims_core.lab.study import carry_out, command

if TYPE_CHECKING:
    from sims_core.lab.options import RunOptions
    from sims_core.lab.study import Result


class _Study(NamedTuple):
    """options: the dataclass in its room. name: of its command. what: it asks, in a line."""

    options: str
    name: str
    what: str


#: By room, which has ``plan(options) -> Study`` and PRESETS. As commands of the script ``sims``, 'toy-' sets two apart
#: from those on images.
STUDIES = {
    "sweep": _Study("Sweep", "sweep", "omega, or any other axis, through the self-consuming loop: Figure 4"),
    "stability": _Study("Stability", "stability", "retraining on real data and own samples: does it stay stable?"),
    "mad": _Study("Mad", "mad", "the loops of MAD: fresh data, collapse, accumulation"),
    "pollution": _Study("Pollution", "toy-pollution", "why does a little polluted data help SIMS?"),
    "control": _Study("Control", "toy-control", "Algorithm 2 on mixtures: class shares moved, and the price"),
    "sampling_cost": _Study("SamplingCost", "sampling-cost", "what does guidance cost, and what does it buy?"),
}


def options_of(room: str) -> type[RunOptions]:
    """A study's dataclass of options."""
    found: type[RunOptions] = getattr(import_module(f"sims_toy.{room}"), STUDIES[room].options)
    return found


def run(options: RunOptions, *, progress: bool = False) -> Result:
    """Run (or resume, or recognise) the study of ``options`` (a `Sweep`, `Mad`, ...): the command in one call.

    Returns its tables, figures and words, and where they are. Raises `InputError` for options that cannot be run and
    for options that are no study's.
    """
    for room in STUDIES:
        if type(options) is options_of(room):
            return carry_out(import_module(f"sims_toy.{room}").plan(options), options, progress=progress)
    known = ", ".join(study.options for study in STUDIES.values())
    raise InputError("options", type(options).__name__, f"give the options of a study: {known}")


def commands() -> dict[str, Command]:
    """For the script ``sims``."""
    return {
        study.name: Command(study.what, partial(options_of, room), partial(_command, room, f"sims {study.name}"))
        for room, study in STUDIES.items()
    }


def _command(room: str, prog: str, words: Sequence[str]) -> None:
    """A study's command, on one thread a process: its workers share the machine."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    module = import_module(f"sims_toy.{room}")
    command(options_of(room), module.plan, prog=prog, presets=module.PRESETS)(words)
