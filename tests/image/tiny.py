"""A data set and networks small enough to train in a test, with weights that are not zero anywhere."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sims_core.seeds import Seed
from sims_image.data.dataset import Dataset, open_dataset
from sims_image.models import checkpoints
from sims_image.models.networks import build
from sims_image.models.presets import Preset, Recipe
from sims_image.processes import Processes
from sims_image.training.batches import Feed
from sims_image.training.trainer import Options, Trainer

EDM = {
    **{"model_type": "SongUNet", "img_resolution": 8, "img_channels": 3, "label_dim": 3, "augment_dim": 9},
    **{"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.0},
}
EDM2 = {
    **{"img_resolution": 8, "img_channels": 3, "label_dim": 3, "model_channels": 8, "channel_mult": [1, 2]},
    **{"num_blocks": 1, "attn_resolutions": [4], "dropout": 0.0, "channels_per_head": 8, "use_fp16": False},
}
ALONE = Processes(0, 1, torch.device("cpu"))


def recipe(**changes) -> Recipe:
    return replace(Recipe(batch=8, budget="0.08k", lr=1e-3, lr_rampup=0, ema_halflife=40), **changes)


def write_data(path: Path, count: int = 24, size: int = 8, classes: int = 3, seed: int = 0) -> Dataset:
    """Random RGB pictures with classes that differ in brightness, as an EDM zip."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % max(classes, 1)
    images = rng.integers(0, 120, (count, size, size, 3)) + 40 * labels[:, None, None, None]
    listing = [[f"00000/img{i:08d}.png", int(label)] for i, label in enumerate(labels)]
    with zipfile.ZipFile(path, "w") as archive:
        for (name, _), image in zip(listing, images.astype(np.uint8), strict=True):
            content = io.BytesIO()
            Image.fromarray(image).save(content, "png")
            archive.writestr(name, content.getvalue())
        archive.writestr("dataset.json", json.dumps({"labels": listing if classes else None}))
    return open_dataset(path)


def network(config=EDM, seed: int = 0):
    """A network whose parameters are all random: a fresh one's output is zero."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        net = build(**config)
        with torch.no_grad():
            for name, value in net.named_parameters():
                spread = 1.0 if value.ndim == 0 else 0.5 if "norm" in name else value.shape[-1] ** -0.5
                value.add_(torch.randn_like(value) * spread)
    return net


def pair(folder: Path, record: checkpoints.Record | None = None) -> tuple[str, str]:
    """Paths of a base and of an auxiliary beside it: every weight moved by about a tenth.

    The random weights are made smaller, for a denoiser about as smooth as a trained one.
    """
    net, generator = network(seed=9), torch.Generator().manual_seed(4)
    with torch.no_grad():
        for value in net.parameters():
            value.mul_(0.4)
        checkpoints.save(folder / "base", net, record or checkpoints.Record())
        for value in net.parameters():
            value.add_(0.1 * value * torch.randn(value.shape, generator=generator))
    checkpoints.save(folder / "auxiliary", net, record or checkpoints.Record())
    return str(folder / "base"), str(folder / "auxiliary")


def feed(data: Dataset, config=EDM, *, batch: int = 8, passes: int = 1, rank: int = 0, world: int = 1, augment=None):
    return Feed(
        data,
        Seed(5),
        label_dim=config["label_dim"],
        augment=augment,
        augment_dim=config.get("augment_dim", 0),
        part=batch // passes // world,
        passes=passes,
        rank=rank,
        world=world,
    )


def trainer(data: Dataset, config=EDM, settings: Recipe | None = None, *, passes: int = 1, augment=None, **options):
    settings = settings or recipe()
    source = feed(data, config, batch=settings.batch, passes=passes, augment=augment)
    return Trainer(network(config), settings, source, Seed(5), processes=ALONE, options=Options(**options))


def steps(subject: Trainer, count: int) -> list[float]:
    """Take ``count`` steps; the loss of each."""
    losses = []
    subject.run(subject.step + count, after=lambda: losses.append(subject.report(lambda: "nothing").loss))
    return losses


def preset(config=EDM, settings: Recipe | None = None) -> Preset:
    """A preset of the tiny network, for the command."""
    given = ("img_resolution", "img_channels", "label_dim")
    return Preset(
        {k: v for k, v in config.items() if k not in given},
        (config["img_channels"], config["img_resolution"], config["img_resolution"]),
        config["label_dim"],
        settings or recipe(),
        "heun:3",
    )


def checkpoint(folder: Path, config=EDM, **record) -> checkpoints.Summary:
    return checkpoints.save(folder, network(config, seed=9), checkpoints.Record(**record))
