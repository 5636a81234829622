"""SIMS at toy scale: exact Gaussian theory, trained score networks, and the sweeps over them.

Names are imported on first use, so that ``import sims_toy`` stays cheap.
"""

from __future__ import annotations

import sims_core as sims_core  # isort: skip  # first: from then on Ctrl-C ends a command in one line

from importlib import import_module
from typing import Any

from sims_core import __version__ as __version__

_HOMES = {
    "control": ("Control", "run_control"),
    "control.theory": ("mixture_denoiser",),
    "diagnosis": ("Angle", "Diagnosis", "diagnose", "diagnose_network", "network_angle"),
    "networks.ensemble": ("Ensemble",),
    "exact": ("ExactLearner", "sampler_modes"),
    "sweep.figures": ("score_fields",),
    "gaussian": ("Gaussian",),
    "mad": ("Mad", "run_mad"),
    "networks.mlp": ("Mlp",),
    "networks.learner": ("NetworkLearner", "measured_eta"),
    "sweep.page": ("write_page",),
    "pollution": ("Pollution", "run_pollution"),
    "pollution.theory": ("Dose",),
    "sampling_cost": ("SamplingCost", "run_sampling_cost"),
    "networks.settings": ("NetworkSettings",),
    "stability": ("Stability", "run_stability"),
    "stability.networks": ("PointLoss", "curvature", "w1_excess"),
    "stability.theory": ("Constants", "GaussianCase", "LogisticCase", "c4", "collapse_rate", "retrain"),
    "sweep": ("Sweep", "plan", "run_sweep"),
    "networks.schedule": ("Schedule", "Training"),
    "networks.training": ("train",),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'sims_toy' has no attribute {name!r}")
    return getattr(import_module(f"sims_toy.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
