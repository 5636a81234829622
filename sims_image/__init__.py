"""SIMS at image scale: data sets, networks, training, checkpoints, and one verb a function.

The names below are imported on first use, so that ``import sims_image`` and ``--help`` stay cheap (no torch).
Everything else is imported from its own module.

A base, an auxiliary fine-tuned on its samples, and images by SIMS, measured (a toy: two training steps each):

>>> import sims_image as si
>>> data = si.prepare("digits", holdout=500, out="data/digits")
>>> small, short = "model_channels=8,num_blocks=1", dict(budget="0.256k", lr_rampup="0", ema_halflife="10", sheet=0)
>>> base = si.train(preset="digits", data="data/digits", network=small, out="runs/base", **short)
>>> drawn = si.generate(base=f"{base.path}", seeds="0-99", sampler="heun:4", out="data/drawn")
>>> auxiliary = si.train(from_=f"{base.path}", data="data/drawn", raw="end", out="runs/auxiliary", **short)
note: the average holds 1 of the raw weights' way after 256 images, if that is steady
>>> pair = dict(base=f"{base.path}", auxiliary=f"{auxiliary.path}", omega=1.0)
>>> better = si.generate(**pair, seeds="100-199", sampler="heun:4", out="data/better")
>>> report = si.evaluate(images="data/better", reference="data/digits", features="pixels")
>>> report.n, report.metrics["frechet"].value > report.floor.metrics["frechet"].value
(100, True)
"""

from __future__ import annotations

import sims_core as sims_core  # isort: skip  # first: from then on Ctrl-C ends a command in one line

from typing import TYPE_CHECKING

from sims_core import __version__ as __version__

if TYPE_CHECKING:
    from sims_image.data.dataset import Dataset as Dataset
    from sims_image.data.dataset import open_dataset as open_dataset
    from sims_image.info import describe as describe
    from sims_image.learner import ImageLearner as ImageLearner
    from sims_image.metrics.report import Report as Report
    from sims_image.models.checkpoints import Checkpoint as Checkpoint
    from sims_image.models.checkpoints import load as load
    from sims_image.models.diffusers import export_diffusers as export_diffusers
    from sims_image.models.diffusers import import_diffusers as import_diffusers
    from sims_image.models.nvidia.convert import import_nvidia as import_nvidia
    from sims_image.models.presets import PRESETS as PRESETS
    from sims_image.models.presets import Preset as Preset
    from sims_image.sampling.guided import Model as Model
    from sims_image.sampling.guided import load_model as load_model
    from sims_image.verbs import Outcome as Outcome
    from sims_image.verbs import control as control
    from sims_image.verbs import evaluate as evaluate
    from sims_image.verbs import generate as generate
    from sims_image.verbs import leaderboard as leaderboard
    from sims_image.verbs import loop as loop
    from sims_image.verbs import outlook as outlook
    from sims_image.verbs import pollution as pollution
    from sims_image.verbs import prepare as prepare
    from sims_image.verbs import retrain as retrain
    from sims_image.verbs import sims as sims
    from sims_image.verbs import train as train
else:
    from sims_core.front import lazy

    __getattr__, __dir__, __all__ = lazy(__name__)
