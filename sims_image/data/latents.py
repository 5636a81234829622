"""Latents: how they differ from pictures, and the autoencoder between the two, as checkpoints and data sets carry it.

The autoencoder lies in the folder ``autoencoder`` inside theirs (beside a zip: ``NAME.autoencoder``), as diffusers
writes one, and its hash in their record. A folder of the user's own, who may write over it, is copied; from there on
the files are hard links to that copy, where the disk allows: what is trained or drawn takes no more room, and each
checkpoint and data set, moved or left alone, is whole.

A data set holds latents as networks see them, or *moments*: mean and standard deviation of each latent, twice the
channels, from which a new latent is drawn at each step (EDM2, Karras et al. 2024).
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sims_core.lab.runs import digest
from sims_image.data.stores import Images

NAME = "autoencoder"
#: standard deviation of latents as networks see them
SPREAD = 0.5
#: EDM2's means and standard deviations of sd-vae-ft-mse's latents on ImageNet
EDM2 = ((5.81, 3.25, 0.12, -2.15), (4.17, 4.62, 3.71, 3.28))
#: the first word of a member's name in EDM2's zips of moments
MOMENTS = "img-mean-std-"
#: lowest value of the pixels that the autoencoder sees, whose highest is 1: EDM2's, diffusers'
LOWEST = {"edm2": 0.0, "diffusers": -1.0}


@dataclass(frozen=True)
class Autoencoder:
    """files: its settings, ``config.json``, first, and its weights; () where they are elsewhere. sha256: of both.

    mean, std: of its latents, by channel: a network sees (z - mean) / std · `SPREAD`. lowest: of its pixels. tiled:
    whether it decodes in tiles, for less memory and slightly other pixels.
    """

    files: tuple[Path, ...]
    sha256: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    lowest: float = LOWEST["diffusers"]
    tiled: bool = False

    def __post_init__(self) -> None:
        sound = 0 < len(self.mean) == len(self.std) and min(self.std) > 0 and self.lowest in LOWEST.values()
        if not sound or not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ValueError(f"{NAME}: mean and std of its channels, above 0, and pixels from -1 or 0")

    @property
    def folder(self) -> Path:
        """Where it is."""
        return self.files[0].parent

    @property
    def record(self) -> dict[str, Any]:
        """What a checkpoint's or data set's record says of it."""
        scale = {"mean": list(self.mean), "std": list(self.std), "pixels": [self.lowest, 1.0]}
        return {"sha256": self.sha256, **scale}

    @property
    def identity(self) -> str:
        """Hash of all that decides the pixels of a latent."""
        return digest(self.record | ({"tiled": True} if self.tiled else {}), 64)

    def affine(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """(a, b), each (C, 1, 1), of what a network sees of a latent z: a z + b."""
        factor = np.float32(SPREAD) / np.array(self.std, np.float32)
        return factor[:, None, None], (-np.array(self.mean, np.float32) * factor)[:, None, None]

    def like(self, other: Autoencoder) -> Autoencoder:
        """The same, with latents as networks of ``other`` see them."""
        return replace(self, mean=other.mean, std=other.std, lowest=other.lowest)

    def __str__(self) -> str:
        return f"latents, with their autoencoder: {self.folder}" if self.files else "latents, without their autoencoder"

    def moments(self, latents: Images) -> Images:
        """Moments of latents as networks see them: of no spread."""
        factor, bias = self.affine()
        inner = ((latents - bias) / factor).astype(latents.dtype)
        return np.concatenate([inner, np.zeros_like(inner)], 1)

    @classmethod
    def inside(cls, path: Path, record: Mapping[str, Any]) -> Autoencoder | None:
        """That of the checkpoint or data set at ``path``, by its record; None if it has none. Raises ValueError."""
        known = record.get(NAME)
        if known is None:
            return None
        place = _place(path)
        weights = sorted(one for one in place.glob("*") if one.name != "config.json")
        files = (place / "config.json", *weights) if known["sha256"] else ()
        mean, std = (tuple(float(value) for value in known[name]) for name in ("mean", "std"))
        return cls(files, str(known["sha256"]), mean, std, float(known["pixels"][0]))

    def put(self, path: Path) -> None:
        """Put it into the checkpoint or data set at ``path``. Raises OSError."""
        place = _place(path)
        ours = bool(self.files) and NAME in (self.folder.name, self.folder.suffix[1:])
        for one in self.files:
            place.mkdir(exist_ok=True)
            (place / one.name).unlink(missing_ok=True)
            if not (ours and _linked(one, place / one.name)):
                shutil.copyfile(one, place / one.name)


class Encoder(Protocol):
    """Makes moments of pictures."""

    @property
    def known(self) -> Autoencoder:
        """What it is."""

    @property
    def space(self) -> str:
        """Of `LOWEST`."""

    def __call__(self, images: Images) -> Images:
        """Moments (B, 2 C', H', W'), float32, of uint8 pictures (B, C, H, W)."""

    def shape(self, picture: tuple[int, int, int]) -> tuple[int, int, int]:
        """Of the moments of a picture (C, H, W). Raises `InputError` for one that it does not take."""


def measured(blocks: Iterator[Images]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) by channel of the latents that moments (B, 2 C, H, W) stand for."""
    count, total, square = 0, np.zeros(1), np.zeros(1)
    for block in blocks:
        mean, std = np.split(block.astype(np.float64), 2, axis=1)
        count += mean[:, 0].size
        total = total + mean.sum((0, 2, 3))
        square = square + (mean**2 + std**2).sum((0, 2, 3))
    mean = total / count
    return tuple(mean.tolist()), tuple(np.sqrt(square / count - mean**2).tolist())


def _place(path: Path) -> Path:
    return path.with_suffix(f".{NAME}") if path.suffix == ".zip" else path / NAME


def _linked(file: Path, place: Path) -> bool:
    """Whether ``place`` has become a hard link to ``file``: not on another disk, nor on one without links."""
    try:
        os.link(file.resolve(), place)
    except OSError:
        return False
    return True
