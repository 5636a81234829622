"""The autoencoder of a latent pipeline (diffusers' AutoencoderKL), from its folder: latents to pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sims_core.errors import InputError, shown
from sims_core.lab.runs import digest
from sims_image.data.dataset import Dataset, to_pixels
from sims_image.data.latents import Autoencoder
from sims_image.data.stores import Images, Store
from sims_image.models import hf
from sims_image.models.networks import imported

CLASS = "AutoencoderKL"
#: in place of a folder: the autoencoder that the model or the data carry, or none
OWN, NONE = "own", "none"
_PARTS = ("vae", "vqvae")


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
        """Pixels (B, C, H, W) in [-1, 1], of latents as the network makes them.

        One after the other: an image's bits do not depend on its batch, and one at a time is in memory.
        """
        config = self.module.config
        inner = latents.to(next(self.module.parameters())) / config.scaling_factor + (config.shift_factor or 0.0)
        return torch.cat([self.module.decode(one).sample for one in inner.split(1)])

    def pixels(self, latents: NDArray[Any]) -> NDArray[np.uint8]:
        """The same of arrays, as uint8."""
        return to_pixels(self(torch.tensor(latents))).cpu().numpy()


def _inside(*folders: Path) -> Path | None:
    return next((f / part for f in folders for part in _PARTS if (f / part / hf.MODEL).is_file()), None)


def read(folder: str | Path, *, argument: str = "decode") -> Autoencoder:
    """The autoencoder in a folder of diffusers: an AutoencoderKL's own, or a pipeline's.

    Raises `InputError` where none is there.
    """
    found = Path(folder)
    place = _inside(found) or found
    if not (place / hf.MODEL).is_file():
        raise InputError(argument, str(folder), f"a folder with {hf.MODEL} of an {CLASS}, or one with vae/")
    config, files = _config(place, str(folder), argument), hf.files(place, argument)
    index = [one for one in place.glob("*.index.json") if len(files) > 1]
    return Autoencoder((place / hf.MODEL, *files, *index), hf.hashed(files, config))


def of_pipeline(folder: Path, *, argument: str) -> tuple[Autoencoder | None, str]:
    """That of a pipeline's folder, or of the network's own inside it; None if it has none, or one of a class that is
    not read, which is told."""
    place = _inside(folder, *([folder.parent] if folder.name in hf.PARTS else []))
    if place is None:
        return None, ""
    name = str(hf.settings(place / hf.MODEL, argument).get("_class_name"))
    return (read(place, argument=argument), "") if name == CLASS else (None, f"{place.name} ({name})")


def chosen(text: str, known: Iterable[Autoencoder | None], *, argument: str = "decode") -> Autoencoder | None:
    """What an option asks for: '' and 'own' the first that is known, a folder its own, 'none' none.

    Raises `InputError`: 'own' where nothing is known, or nothing in the folder.
    """
    if text == NONE:
        return None
    if text not in ("", OWN):
        return read(text, argument=argument)
    found = next((one for one in known if one is not None), None)
    if text and found is None:
        raise InputError(argument, text, "no autoencoder comes with it; name the folder of one")
    return found


def _config(place: Path, item: str, argument: str) -> dict[str, Any]:
    found = hf.settings(place / hf.MODEL, argument)
    if found.get("_class_name") != CLASS:
        words = f"it holds a {shown(str(found.get('_class_name')))}; decoders that are read: {CLASS}"
        raise InputError(argument, item, words)
    try:
        return {"_class_name": CLASS, **imported.known(CLASS, found)}
    except InputError as error:
        raise InputError(argument, item, f"its {error.argument} is {error.value!r}: {error.expected}") from None


def load(known: Autoencoder, *, device: str | torch.device = "cpu", argument: str = "decode") -> Decoder:
    """The decoder itself. Raises `InputError` where its weights do not fit, or are not those that its record names."""
    item, files = str(known.folder), hf.files(known.folder, argument)
    config = _config(known.folder, item, argument)
    if hf.hashed(files, config) != known.sha256:
        raise InputError(argument, item, "another autoencoder than the record names; put that one back")
    try:
        module = imported.make(config)
        weights = hf.stored(files, module, argument)
        module.load_state_dict({name: value.float() for name, value in weights.items()}, strict=True)
    except InputError as error:
        raise InputError(argument, item, f"its {error.argument} is {error.value!r}: {error.expected}") from None
    except RuntimeError as error:
        raise InputError(argument, item, f"another architecture ({shown(' '.join(str(error).split()))})") from None
    return Decoder(module.to(device).eval().requires_grad_(False), known.sha256)


class _Decoding(Store):
    """A data set's latents as pixels, decoded when they are asked for."""

    def __init__(self, data: Dataset, decoder: Decoder) -> None:
        self._data, self._decoder = data, decoder
        self.shape, self.dtype = decoder.shape(data.shape), np.dtype(np.uint8)

    def __len__(self) -> int:
        return len(self._data)

    def read(self, indices: NDArray[np.int64]) -> Images:
        """As `Store.read`."""
        return self._decoder.pixels(self._data.images(indices))


def decoded(data: Dataset, decoder: Decoder | None, *, argument: str = "data") -> Dataset:
    """A data set of latents as one of pictures; itself where it holds pixels, or nothing decodes it.

    Raises `InputError` where its latents are not the decoder's.
    """
    if decoder is None or data.dtype == np.uint8:
        return data
    if data.shape[0] != decoder.channels:
        words = f"its latents have {data.shape[0]} channels, those of the autoencoder {decoder.channels}"
        raise InputError(argument, str(data.path), words)
    sha256 = digest({"latents": data.sha256, "decoder": decoder.sha256}, 64)
    return Dataset(data.path, _Decoding(data, decoder), data.labels, {**data.record, "sha256": sha256})
