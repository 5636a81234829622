"""``python -m sims_toy.sweep``: sweep the guidance omega (and any other axis) through the self-consuming loop."""

from __future__ import annotations

from collections.abc import Sequence

from sims_toy.settings import PRESETS, NetworkSettings, Sweep
from sims_toy.study import Result, Study, carry_out, command, main

__all__ = ["PRESETS", "NetworkSettings", "Result", "Sweep", "plan", "run_sweep"]


def plan(sweep: Sweep) -> Study:
    """What a `Sweep` would run (`sims_toy.planning`), without running it. Raises `InputError` for bad input."""
    from sims_toy.planning import make_plan

    return make_plan(sweep)


def run_sweep(sweep: Sweep, *, progress: bool = False) -> Result:
    """Run (or resume, or recognise) a sweep; returns its tables and where they are. The command in one call."""
    return carry_out(plan(sweep), sweep, progress=progress)


def run_command(argv: Sequence[str]) -> None:
    """The command itself."""
    command(Sweep, plan, module="sims_toy.sweep", presets=PRESETS)(argv)


if __name__ == "__main__":
    main(run_command)
