"""The studies of this scale by name, and one function that runs any of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from sims_core.lab.options import RunOptions
    from sims_core.lab.study import Result, Study

#: room -> (its dataclass of options, what it asks); a room has ``plan(options) -> Study`` and ``run_command(argv)``
STUDIES = {
    "sweep": ("Sweep", "omega and any other axis through the self-consuming loop: what does SIMS prevent?"),
    "stability": ("Stability", "retraining on real data and own samples: does it stay stable?"),
    "mad": ("Mad", "the loops of MAD: fresh data, collapse, accumulation"),
    "pollution": ("Pollution", "why does a little polluted data help SIMS?"),
    "control": ("Control", "class shares moved by the complement of a target, and the price"),
    "sampling_cost": ("SamplingCost", "what does guidance cost, and what does it buy?"),
}


def run(options: RunOptions, *, progress: bool = False) -> Result:
    """Run (or resume, or recognise) the study of ``options`` (a `Sweep`, `Mad`, ...): the command in one call.

    Returns its tables, figures and words, and where they are. Raises `InputError` for options that cannot be run and
    for options that are no study's.
    """
    from sims_core.errors import InputError
    from sims_core.lab.study import carry_out

    for room, (name, _) in STUDIES.items():
        module = import_module(f"sims_toy.{room}")
        if type(options) is getattr(module, name):
            return carry_out(cast("Study", module.plan(options)), options, progress=progress)
    known = ", ".join(name for name, _ in STUDIES.values())
    raise InputError("options", type(options).__name__, f"give the options of a study: {known}")
