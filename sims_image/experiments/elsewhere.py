"""D_s from another model than the base: a checkpoint to draw from, or a data set of its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sims_core.errors import InputError
from sims_image.data.dataset import Dataset, by, open_dataset
from sims_image.data.derived import ImageData
from sims_image.experiments.checks import Real
from sims_image.learner import ImageLearner, ImageModel, shares_of
from sims_image.models import checkpoints, hf
from sims_image.models.denoiser import planned_sampler
from sims_image.sampling.guided import default_sampler
from sims_image.sampling.seeds import Seeds


def opened(named: str) -> checkpoints.Summary | Dataset:
    """What ``named`` is. Raises `InputError`."""
    path, inside = Path(named), (checkpoints.WEIGHTS, checkpoints.RECORD)
    if named.startswith(hf.PREFIX) or path.name in inside or (path / checkpoints.RECORD).exists():
        return checkpoints.summary(named, argument="synthetic_from")
    return open_dataset(named, argument="synthetic_from")


def source(named: str, count: int, config: dict[str, Any], real: Real | None) -> checkpoints.Summary | Dataset:
    """`opened`, for a base of ``config`` and ``count`` samples; real is None where it is not at hand.

    Raises `InputError` for images of another shape or type, other classes, and too few of them.
    """
    found, own = opened(named), int(config.get("label_dim") or 0)
    shape: tuple[int, ...] = (config["img_channels"], config["img_resolution"], config["img_resolution"])
    if isinstance(found, Dataset):
        made, classes = found.seen, len(found.classes) if found.labels is not None else 0
        dtype: str | None = str(found.dtype)
    else:
        side, known = found.config["img_resolution"], found.record.data
        made, classes = (found.config["img_channels"], side, side), int(found.config.get("label_dim") or 0)
        dtype = None if known is None else known.dtype
    words = ""
    if made != shape:
        words = f"its images are {by(made)}, the base's {by(shape)}"
    elif own and classes != own:
        words = f"it has {classes} classes, the base {own}"
    elif real is not None and dtype is not None and (dtype == "uint8") != (real.data.dtype == np.uint8):
        words = f"its images are {dtype}, those of `data` {real.data.dtype}"
    elif isinstance(found, Dataset) and len(found) < count:
        words = f"it holds {len(found):,} images, and `synthetic` asks for {count:,}"
    if words:
        raise InputError("synthetic_from", named, words)
    return found


def evaluations(found: checkpoints.Summary | Dataset, sampler: str) -> int:
    """Network evaluations of one of its images that are still to be made."""
    if isinstance(found, Dataset):
        return 0
    return planned_sampler(sampler or default_sampler(found)[0], found.config).nfe


def drawn(
    found: checkpoints.Summary | Dataset,
    learner: ImageLearner,
    data: ImageData,
    base: ImageModel,
    seeds: Seeds,
    root: int,
) -> ImageData:
    """The images: ``seeds`` of the checkpoint in the class shares of ``data``, or the data set's first ones.

    Without labels where the base takes none.
    """
    labelled = bool(checkpoints.summary(base.base).config.get("label_dim"))
    if isinstance(found, Dataset):
        return learner.subset(ImageData.of(found), np.arange(len(seeds)), labelled=labelled)
    made = learner.draw(ImageModel(found.path, classes=shares_of(data.open())), seeds, root=root)
    if labelled or made.open().labels is None:
        return made
    return learner.subset(made, np.arange(len(seeds)), labelled=False)
