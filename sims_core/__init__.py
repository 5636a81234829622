"""SIMS, written once: guidance, diffusion, sampling, Algorithm 1 and the self-consuming loop.

The names below are imported on first use, so that ``import sims_core`` and ``--help`` stay cheap (no torch). Everything
else is imported from its own module.

A base that is too narrow (variance 0.8 where the data have 1), an auxiliary trained on its samples, and SIMS:

>>> import torch
>>> import sims_core as sc
>>> base = lambda x, sigma: x * 0.8 / (0.8 + sigma**2)
>>> auxiliary = lambda x, sigma: x * 0.64 / (0.64 + sigma**2)
>>> sampler, noise = sc.Sampler.parse("rk4:8"), torch.randn(100_000, generator=sc.Seed(0).torch())
>>> [f"{sampler(model, noise).var():.2f}" for model in (base, sc.guided(base, auxiliary, omega=1.0))]
['0.80', '1.00']
"""

from __future__ import annotations

import os
import signal
import sys

STOPPED = "stopped; rerun the same command to resume"


def _stop(*_: object) -> None:
    """Ctrl-C while a command is being loaded or left, when there is nothing to put in order."""
    os.write(2, f"{STOPPED}\n".encode())
    os._exit(130)


def _is_command(words: list[str]) -> bool:
    """Whether the interpreter runs a command of this project: ``python -m sims_...``, or a script of its."""
    module = words[words.index("-m") + 1 :][:1] if "-m" in words else []
    script = os.path.basename(words[1]).removesuffix(".exe") if len(words) > 1 else ""
    return any(word.startswith("sims_") for word in module) or script in ("sims", "sims_image")


if _is_command(sys.orig_argv) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _stop)  # before anything else is loaded

from typing import TYPE_CHECKING  # noqa: E402

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sims_core import denoiser as denoiser
    from sims_core.algorithm import AUXILIARY_DATA as AUXILIARY_DATA
    from sims_core.algorithm import METHODS as METHODS
    from sims_core.algorithm import Method as Method
    from sims_core.algorithm import Trained as Trained
    from sims_core.algorithm import neon as neon
    from sims_core.algorithm import sims as sims
    from sims_core.control import distribution_control as distribution_control
    from sims_core.diffusion import EDM as EDM
    from sims_core.diffusion import LogNormal as LogNormal
    from sims_core.diffusion import denoising_loss as denoising_loss
    from sims_core.errors import InputError as InputError
    from sims_core.forecast import Outlook as Outlook
    from sims_core.forecast import outlook as outlook
    from sims_core.guidance import GuidanceSchedule as GuidanceSchedule
    from sims_core.guidance import guided as guided
    from sims_core.learner import Learner as Learner
    from sims_core.loop import POLICIES as POLICIES
    from sims_core.loop import Policy as Policy
    from sims_core.loop import parse_policy as parse_policy
    from sims_core.loop import self_consuming_loop as self_consuming_loop
    from sims_core.modules import guide as guide
    from sims_core.sampling import Sampler as Sampler
    from sims_core.sampling import generate as generate
    from sims_core.sampling import sample as sample
    from sims_core.seeds import Seed as Seed
    from sims_core.torch_learner import TorchLearner as TorchLearner
else:
    from sims_core.front import lazy

    __getattr__, __dir__, __all__ = lazy(__name__)
