"""The autoencoder of a latent pipeline (diffusers' AutoencoderKL), from its folder: latents to pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sims_core.errors import InputError, shown
from sims_image.models import hf
from sims_image.models.networks import imported


@dataclass(frozen=True)
class Decoder:
    """module: the library's own, float32. sha256: of its weights and settings."""

    module: Any
    sha256: str

    @property
    def channels(self) -> int:
        """Of a latent."""
        return int(self.module.config.latent_channels)

    def shape(self, latent: tuple[int, int, int]) -> tuple[int, int, int]:
        """(C, H, W) of the pixels of a latent (C, H, W)."""
        factor = 2 ** (len(self.module.config.block_out_channels) - 1)
        return int(self.module.config.out_channels), latent[1] * factor, latent[2] * factor

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> Tensor:
        """Pixels (B, C, H, W) in [-1, 1], of latents as the network makes them."""
        config = self.module.config
        pixels: Tensor = self.module.decode(
            latents.to(next(self.module.parameters())) / config.scaling_factor + (config.shift_factor or 0.0)
        ).sample
        return pixels


def load(folder: str | Path, *, device: str | torch.device = "cpu", argument: str = "decode") -> Decoder:
    """The decoder in a folder of diffusers: an AutoencoderKL's own, or a pipeline's with ``vae/``.

    Raises `InputError` where none is there, or its weights do not fit.
    """
    place = next((p for p in (Path(folder) / "vae", Path(folder)) if (p / hf.MODEL).is_file()), None)
    if place is None:
        raise InputError(argument, str(folder), f"a folder with {hf.MODEL} of an AutoencoderKL, or one with vae/")
    found, name = hf.settings(place / hf.MODEL, argument), "AutoencoderKL"
    if found.get("_class_name") != name:
        words = f"it holds a {shown(str(found.get('_class_name')))}; decoders that are read: {name}"
        raise InputError(argument, str(folder), words)
    try:
        config = {"_class_name": name, **imported.known(name, found)}
        module = imported.make(config)
    except InputError as error:
        raise InputError(argument, str(folder), f"its {error.argument} is {error.value!r}: {error.expected}") from None
    files = hf.files(place, argument)
    weights = hf.stored(files, module, argument)
    try:
        module.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    except RuntimeError as error:
        raise InputError(
            argument, str(folder), f"another architecture ({shown(' '.join(str(error).split()))})"
        ) from None
    return Decoder(module.to(device).eval().requires_grad_(False), hf.hashed(files, config))
