"""One line of settings for the figures of image experiments."""

from __future__ import annotations

import textwrap
from pathlib import Path

from sims_image.experiments.options import Experiment

#: options worth showing under a figure
_TOLD = ("sampler", "budget", "lr", "retrain_budget", "retrain_lr", "fit_budget", "fit_lr", "features")


def plain_name(path: str) -> str:
    """A checkpoint's path for people: RUN/snapshots/0000080000/ema is 'RUN after 80,000 images (ema)'.

    Other paths: their last part.
    """
    parts = Path(path).parts
    if len(parts) > 3 and parts[-3] == "snapshots" and parts[-2].isdigit():
        return f"{parts[-4]} after {int(parts[-2]):,} images ({parts[-1]})"
    return parts[-1] if parts else ""


def settings_line(settings: Experiment, *, width: int = 140) -> str:
    """Base, sampler, budgets, learning rates and seed that an experiment was asked for, each where it was given.

    width: characters per line.
    """
    given = [f"base {plain_name(settings.base)}"]
    for name in _TOLD:
        value = getattr(settings, name, None)
        if value not in (None, ""):
            text = f"{value:g}" if isinstance(value, float) else value
            given.append(f"{name.replace('_', ' ')} {text}")
    return textwrap.fill(", ".join([*given, f"seed {settings.seed}"]), width)
