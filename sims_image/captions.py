"""One line of settings for the figures of image experiments."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sims_image.experiments import Sims

#: what decides the numbers besides what a figure's title says
_TOLD = ("sampler", "budget", "budgets", "lr", "retrain_budget", "retrain_lr", "fit_budget", "fit_lr", "features")


def settings_line(settings: Sims, *, leave: tuple[str, ...] = (), width: int = 140) -> str:
    """Base, sampler, budgets, learning rates and seed that an experiment was asked for, each where it was given.

    Of a base's path the last four parts: its run, and which of its weights. leave: what the experiment does not use.
    width: characters a line.
    """
    given = [f"base {'/'.join(Path(settings.base).parts[-4:])}"]
    for name in _TOLD:
        value = getattr(settings, name, None)
        if name not in leave and value not in (None, ""):
            text = f"{value:g}" if isinstance(value, float) else value
            given.append(f"{name.replace('_', ' ')} {text}")
    return textwrap.fill(", ".join([*given, f"seed {settings.seed}"]), width)
