"""The autoencoder of a latent pipeline (diffusers' AutoencoderKL), from its folder: latents to pixels."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sims_core.errors import InputError, choose, shown
from sims_core.lab.runs import digest
from sims_image.data.dataset import Dataset, by, to_pixels, to_unit
from sims_image.data.latents import LOWEST, SPREAD, Autoencoder
from sims_image.data.latents import NAME as AUTOENCODER
from sims_image.data.options import Prepare
from sims_image.data.stores import Images, Store
from sims_image.models import hf
from sims_image.models.networks import imported
from sims_image.processes import choose_device

CLASS = "AutoencoderKL"
#: in place of a folder: the autoencoder that the model or the data carry, or none; after either: decode in tiles
OWN, NONE, TILED = "own", "none", "+tiled"
_PARTS = ("vae", "vqvae")
Shape: TypeAlias = tuple[int, int, int]


@dataclass(frozen=True)
class Decoder:
    """module: the library's own, float32. known: what it is, and how latents relate to its own."""

    module: Any
    known: Autoencoder

    @property
    def sha256(self) -> str:
        """Of all that decides its pixels."""
        return self.known.identity

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
        """Pixels (B, C, H, W) in [-1, 1], of latents as the network makes them, or of their moments' means.

        One after the other: an image's bits do not depend on its batch, and one at a time is in memory.
        """
        inner = latents.to(next(self.module.parameters()))
        if inner.shape[1] == 2 * self.channels:
            inner = inner[:, : self.channels]
        else:
            factor, bias = (torch.from_numpy(part).to(inner) for part in self.known.affine())
            inner = (inner - bias) / factor
        try:
            found = torch.cat([self.module.decode(one).sample for one in torch.split(inner, 1)])
        except torch.OutOfMemoryError:
            if self.known.tiled:
                raise
            words = f"one image's decoding does not fit into memory; write own{TILED}, or FOLDER{TILED}"
            raise InputError("decode", str(self.known.folder), words) from None
        return found if self.known.lowest else 2 * found - 1

    @torch.no_grad()
    def encode(self, images: Images) -> Images:
        """Moments (B, 2 C', H', W'), float32, of uint8 pictures (B, C, H, W), one after the other."""
        given = torch.tensor(images).to(next(self.module.parameters()).device)
        given = to_unit(given) if self.known.lowest else given.float() / 255
        found = [self.module.encode(one).latent_dist for one in torch.split(given, 1)]
        moments: Images = torch.cat([torch.cat([one.mean, one.std], 1) for one in found]).cpu().numpy()
        return moments

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
    with torch.device("meta"):
        full = imported.make(config).config
    try:
        own = (full.shift_factor or 0.0,) * full.latent_channels, (SPREAD / full.scaling_factor,) * full.latent_channels
        return Autoencoder((place / hf.MODEL, *files, *index), hf.hashed(files, config), *own)
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise InputError(argument, str(folder), f"its scaling_factor or shift_factor is no such ({error})") from None


def of_pipeline(folder: Path, *, argument: str) -> tuple[Autoencoder | None, str]:
    """That of a pipeline's folder, or of the network's own inside it; None if it has none, or one of a class that is
    not read, which is told."""
    place = _inside(folder, *([folder.parent] if folder.name in hf.PARTS else []))
    if place is None:
        return None, ""
    name = str(hf.settings(place / hf.MODEL, argument).get("_class_name"))
    return (read(place, argument=argument), "") if name == CLASS else (None, f"{place.name} ({name})")


def chosen(text: str, known: Iterable[Autoencoder | None], *, argument: str = "decode") -> Autoencoder | None:
    """What an option asks for: '' and 'own' the first that is at hand, a folder its own, 'none' none; +tiled in tiles.

    A folder's takes latents as the first that is known does.

    Raises `InputError`: 'own' where nothing is known, or nothing in the folder.
    """
    if text == NONE:
        return None
    if text.endswith(TILED):
        whole = chosen(text.removesuffix(TILED) or OWN, known, argument=argument)
        return None if whole is None else replace(whole, tiled=True)
    found = inherited(known)
    if text not in ("", OWN):
        named = read(text, argument=argument)
        return named if found is None else named.like(found)
    found = found if found is not None and found.files else None
    if text and found is None:
        raise InputError(argument, text, "no autoencoder comes with it; name the folder of one")
    return found


def inherited(known: Iterable[Autoencoder | None]) -> Autoencoder | None:
    """The first that is known, with the files of the first that has any."""
    every = [one for one in known if one is not None]
    there = next((one for one in every if one.files), None)
    return there.like(every[0]) if there is not None else every[0] if every else None


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
    if known.tiled:
        module.enable_tiling()
    return Decoder(module.to(device).eval().requires_grad_(False), known)


def scale_of(data: Dataset, known: Autoencoder | None, device: torch.device | str) -> tuple[Tensor, Tensor] | None:
    """(a, b) by which a network of ``known`` sees latents z of the data's moments, a z + b; None of other data."""
    if known is None or not data.moments:
        return None
    factor, bias = (torch.from_numpy(part).to(device) for part in known.affine())
    return factor, bias


def drawn(moments: Tensor, scale: tuple[Tensor, Tensor], noise: Tensor) -> Tensor:
    """Latents as a network sees them (B, C, H, W), of moments (B, 2 C, H, W) and standard normal ``noise``."""
    mean, std = moments.chunk(2, dim=1)
    return (mean + std * noise) * scale[0] + scale[1]


class _View(Store):
    """A data set's images as something is made of them when they are asked for."""

    def __init__(self, data: Dataset, made: Callable[[Images], Images], shape: Shape, dtype: str) -> None:
        self._data, self._made, self.shape, self.dtype = data, made, shape, np.dtype(dtype)

    def __len__(self) -> int:
        return len(self._data)

    def read(self, indices: NDArray[np.int64]) -> Images:
        """As `Store.read`."""
        return self._made(self._data.images(indices))


def decoded(data: Dataset, decoder: Decoder | None, *, argument: str = "data") -> Dataset:
    """A data set of latents as one of pictures; itself where it holds pixels, or nothing decodes it.

    Raises `InputError` where its latents are not the decoder's.
    """
    if decoder is None or data.dtype == np.uint8:
        return data
    if data.autoencoder is not None:
        decoder = replace(decoder, known=decoder.known.like(data.autoencoder))
    if data.seen[0] != decoder.channels:
        words = f"its latents have {data.seen[0]} channels, those of the autoencoder {decoder.channels}"
        raise InputError(argument, str(data.path), words)
    store = _View(data, decoder.pixels, decoder.shape(data.shape), "uint8")
    return _viewed(data, store, {"latents": data.sha256, "decoder": decoder.sha256})


def encoded(data: Dataset, decoder: Decoder | None) -> Dataset:
    """A data set of pictures as one of moments; itself where it holds latents, or nothing encodes it."""
    if decoder is None or data.dtype != np.uint8:
        return data
    store = _View(data, decoder.encode, Encoder(decoder, "").shape(data.shape), "float32")
    known = {"pictures": data.sha256, "encoder": decoder.sha256}
    return _viewed(data, store, known, **{AUTOENCODER: decoder.known.record})


def _viewed(data: Dataset, store: Store, known: dict[str, str], **more: Any) -> Dataset:
    return Dataset(data.path, store, data.labels, {**data.record, "sha256": digest(known, 64), **more})


@dataclass(frozen=True)
class Encoder:
    """`sims_image.data.latents.Encoder`, of an autoencoder. space: of `sims_image.data.latents.LOWEST`."""

    decoder: Decoder
    space: str

    @property
    def known(self) -> Autoencoder:
        """What it is."""
        return self.decoder.known

    def __call__(self, images: Images) -> Images:
        """Moments of pictures."""
        return self.decoder.encode(images)

    def shape(self, picture: tuple[int, int, int]) -> tuple[int, int, int]:
        """Of the moments of a picture (C, H, W). Raises `InputError` for one that the autoencoder does not take."""
        channels, factor = self.decoder.module.config.in_channels, self.decoder.shape((0, 1, 1))[1]
        if picture[0] != channels or picture[1] % factor:
            words = f"it takes pictures of {channels} channels and a side that {factor} divides, not {by(picture)}"
            raise InputError("latents", str(self.known.folder), words)
        return 2 * self.decoder.channels, picture[1] // factor, picture[2] // factor


def encoder(settings: Prepare) -> Encoder:
    """What `prepare` is asked to encode by. Raises `InputError`."""
    space = choose("latent_space", settings.latent_space, LOWEST)
    known = replace(read(settings.latents, argument="latents"), lowest=LOWEST[space])
    return Encoder(load(known, device=choose_device(settings.device), argument="latents"), space)
