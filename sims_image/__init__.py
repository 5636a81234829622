"""SIMS at image scale: data sets, networks, training, checkpoints, and one verb a function.

Names are imported on first use, so that ``import sims_image`` and ``--help`` stay cheap (no torch).
"""

from __future__ import annotations

import sims_core as sims_core  # isort: skip  # first: from then on Ctrl-C ends a command in one line

from importlib import import_module
from typing import Any

from sims_core import __version__ as __version__

_HOMES: dict[str, tuple[str, ...]] = {
    "training.augment": ("Augmentation",),
    "models.checkpoints": ("Checkpoint", "Record"),
    "data.dataset": ("Dataset", "open_dataset", "to_pixels", "to_unit"),
    "models.ema": ("reconstruct",),
    "sampling.generation": ("stream",),
    "sampling.guided": ("Model", "load_model"),
    "info": ("describe",),
    "learner": ("ImageLearner",),
    "models.networks": ("Preconditioned", "build", "parameter_count"),
    "models.nvidia.convert": ("import_nvidia",),
    "data.options": ("Prepare",),
    "models.presets": ("PRESETS", "Preset", "Recipe"),
    "metrics.references": ("Statistics", "read_statistics"),
    "training.options": ("Train",),
    "training.trainer": ("DivergedError", "Trainer"),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'sims_image' has no attribute {name!r}")
    return getattr(import_module(f"sims_image.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
