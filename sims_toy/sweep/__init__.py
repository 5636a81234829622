"""``python -m sims_toy.sweep``: sweep the guidance omega (and any other axis) through the self-consuming loop."""

from __future__ import annotations

from sims_toy.grid.study import GridStudy
from sims_toy.networks.settings import NetworkSettings
from sims_toy.sweep.options import PRESETS, Sweep

__all__ = ["PRESETS", "NetworkSettings", "Sweep", "plan"]


def plan(sweep: Sweep) -> GridStudy:
    """What a `Sweep` would run (`sims_toy.sweep.planning`), without running it. Raises `InputError` for bad input."""
    from sims_toy.sweep.planning import make_plan

    return make_plan(sweep)
