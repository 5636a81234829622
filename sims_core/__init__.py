"""SIMS, written once: guidance, diffusion, sampling, Algorithm 1 and the self-consuming loop.

Names are imported on first use, so that ``import sims_core`` and ``--help`` stay cheap (no torch).
"""

from __future__ import annotations

import os
import signal
import sys

STOPPED = "stopped; the same command goes on from here"


def _stop(*_: object) -> None:
    """Ctrl-C while a command is being loaded or left, when there is nothing to put in order."""
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(130)


def _is_command(words: list[str]) -> bool:
    """Whether the interpreter runs a command of this project: ``python -m sims_...``, or the script ``sims_image``."""
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    return any(word.startswith("sims_") for word in module) or (
        len(words) > 1 and os.path.basename(words[1]) in ("sims_image", "sims_image.exe")
    )


if _is_command(sys.orig_argv) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)  # before anything else is loaded

from importlib import import_module  # noqa: E402
from typing import Any  # noqa: E402

__version__ = "0.1.0"

_HOMES = {
    "guidance": (
        "GuidanceSchedule",
        "Stepped",
        "extrapolate",
        "guided",
        "merge_weights",
        "omega_from_autoguidance",
        "scaled",
    ),
    "diffusion": ("EDM", "LogNormal", "denoising_loss", "from_angle", "to_angle"),
    "sampling": ("Churn", "Sampler", "angle_sigmas", "cosine_sigmas", "edm_sigmas", "generate", "sample", "trajectory"),
    "learner": ("Learner", "Mergeable", "Perturbable", "Rebuildable"),
    "algorithm": (
        "AUXILIARY_DATA",
        "METHODS",
        "Method",
        "Trained",
        "autoguidance",
        "continued",
        "neon",
        "random_direction",
        "rebuilt",
        "sims",
        "standard",
    ),
    "loop": ("POLICIES", "Generation", "Policy", "Turn", "parse_policy", "self_consuming_loop"),
    "control": ("complement", "density_law", "distribution_control", "total_variation", "transport_law"),
    "lab.runs": ("RunFolder",),
    "seeds": ("Seed",),
    "draws": ("Draws", "random_words"),
    "lab.grids": ("Budget", "parse_budget", "parse_grid"),
    "errors": ("InputError", "choose"),
}
_WHERE = {name: home for home, names in _HOMES.items() for name in names}
__all__ = ["__version__", *sorted(_WHERE)]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'sims_core' has no attribute {name!r}")
    return getattr(import_module(f"sims_core.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return __all__
