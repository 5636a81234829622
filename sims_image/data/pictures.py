"""One encoded picture to one array: decoding, colour, crop and resampling. PNG the other way."""

from __future__ import annotations

import functools
import io
import re
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from sims_core.errors import InputError, reason
from sims_image.data.archives import check_expansion, impostor

CROPS = ("center", "adm", "none")
FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}
#: Pillow's own limit on pixels, held to before anything is decoded
MAX_PIXELS = 89_478_485
_GREY = ("1", "L", "LA", "La")
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
#: formats whose reader starts another program or has none of its own
_REFUSED_FORMATS = {"EPS", "WMF", "BUFR", "GRIB", "HDF5"}
_DAMAGED = (
    OSError, SyntaxError, ValueError, TypeError, IndexError, KeyError, EOFError, OverflowError, MemoryError,
    NotImplementedError, struct.error, zlib.error,
)  # fmt: skip


class DamagedError(InputError):
    """One picture cannot be decoded; the others may be sound."""


@functools.cache
def formats() -> tuple[str, ...]:
    """Pillow's formats, but for those that run another program (EPS) or are only stubs."""
    Image.init()
    return tuple(name for name in Image.ID if name not in _REFUSED_FORMATS)


def suffixes() -> frozenset[str]:
    """File name endings of those formats, lower case with the dot."""
    known = set(formats())
    return frozenset(end for end, name in Image.registered_extensions().items() if name in known)


def decode(argument: str, item: str, data: bytes) -> Image.Image:
    """The (first) picture in ``data``, decoded whole. Raises `InputError` naming ``item`` if damaged or a bomb."""
    try:
        picture = Image.open(io.BytesIO(data), formats=formats())
        width, height = picture.size
        bands = len(picture.getbands())
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large(argument, item) from None
    except UnidentifiedImageError:
        what = impostor(data[:256])
        expected = f"no picture: it is {what}" if what else "damaged, or not a picture that Pillow reads"
        raise DamagedError(argument, item, expected) from None
    except _DAMAGED as error:
        raise DamagedError(argument, item, f"damaged picture ({reason(error)})") from None
    bits = depth(picture, data)
    if bits > 8:
        raise InputError(argument, item, f"pictures must have 8 bits a channel; this one has {bits}")
    if width * height > MAX_PIXELS:
        raise _too_large(argument, item)
    check_expansion(argument, item, width * height * bands, len(data))
    try:
        picture.load()
    except _DAMAGED as error:
        raise DamagedError(argument, item, f"damaged picture ({reason(error)})") from None
    return picture


def depth(picture: Image.Image, data: bytes) -> int:
    """Bits a channel that a file holds, as its header says; Pillow cuts most of them to 8 without a word."""
    kind, at = picture.format, -1
    if kind == "PNG":
        return data[24] if len(data) > 24 else 8
    if kind == "TIFF":
        return int(max(picture.tag_v2.get(258, (8,))))  # type: ignore[attr-defined]  # BitsPerSample
    if kind == "PPM":
        found = re.match(rb"P[2356](?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+\d+(?:\s|#[^\n]*\n)+(\d{1,9})", data)
        return int(found[1]).bit_length() if found else 8
    if kind == "SGI":
        return 8 * data[3]
    if kind == "JPEG2000":
        at = data.find(b"ihdr") + 14 if data[:4] != b"\xff\x4f\xff\x51" else 42
        return (data[at] & 0x7F) + 1 if 14 <= at < len(data) else 8
    if kind == "AVIF":
        at = data.find(b"pixi") + 9
        return data[at] if 9 <= at < len(data) else 8
    return 8


def turned(picture: Image.Image) -> bool:
    """Whether its EXIF data say that it is to be shown turned or mirrored."""
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1) not in (0, 1)
    except _DAMAGED:
        return False


def _too_large(argument: str, item: str) -> InputError:
    return InputError(argument, item, f"more than {MAX_PIXELS} pixels: a decompression bomb, or make it smaller first")


@dataclass(frozen=True)
class Transform:
    """What is done to every picture.

    size: side in pixels of the result, 0 keeps the picture's own. crop: how a picture that is not square becomes so
    (`center`: the middle square, then ``filter``; `adm`: Dhariwal & Nichol 2021, halving by boxes, bicubic to the
    shorter side, then the middle; `none`: it must be square). channels: 1 (grey) or 3, 0 as the picture is.
    upright: turn by the EXIF orientation first.
    """

    size: int = 0
    crop: str = "center"
    filter: str = "lanczos"
    channels: int = 0
    upright: bool = False

    def __call__(self, argument: str, item: str, picture: Image.Image) -> NDArray[np.uint8]:
        """Raises `InputError` naming ``item`` for a picture of other than 8 bits, not square, or in colour among grey.

        Returns (C, H, W) with H = W.
        """
        if self.upright:
            picture = ImageOps.exif_transpose(picture)
        picture = self._coloured(argument, item, picture)
        width, height = picture.size
        if width != height and (not self.size or self.crop == "none"):
            fix = "`crop` center or `crop` adm" if self.size else "`size` N (and `crop` center or adm)"
            raise InputError(argument, item, f"{width}x{height} is not square; `prepare` with {fix} makes it so")
        if self.size and self.crop == "adm":
            picture = adm_crop(picture, self.size)
        elif self.size:
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            picture = picture.crop((left, top, left + side, top + side))
            if side != self.size:
                picture = picture.resize((self.size, self.size), FILTERS[self.filter])
        pixels = np.asarray(picture, np.uint8)
        return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))

    def _coloured(self, argument: str, item: str, picture: Image.Image) -> Image.Image:
        if picture.mode in _DEEP:
            raise InputError(argument, item, f"pictures must have 8 bits a channel, not Pillow's mode {picture.mode}")
        grey = picture.mode in _GREY
        wanted = "L" if self.channels == 1 or (grey and not self.channels) else "RGB"
        picture = _flat(picture)
        return picture if picture.mode == wanted else picture.convert(wanted)


def _flat(picture: Image.Image) -> Image.Image:
    """Transparency laid on white; other pictures as they are."""
    if "A" not in picture.getbands() and "a" not in picture.getbands() and "transparency" not in picture.info:
        return picture
    layer = picture.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")


def adm_crop(picture: Image.Image, size: int) -> Image.Image:
    """The square of side ``size`` that Dhariwal & Nichol (2021, arXiv 2105.05233) cut out of ImageNet."""
    while min(picture.size) >= 2 * size:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = size / min(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    return picture.crop((left, top, left + size, top + size))


def from_array(pixels: NDArray[np.uint8]) -> Image.Image:
    """(C, H, W) with one or three channels as a picture."""
    return Image.fromarray(pixels[0] if len(pixels) == 1 else np.ascontiguousarray(pixels.transpose(1, 2, 0)))


def to_png(pixels: NDArray[np.uint8]) -> bytes:
    """(C, H, W) as an uncompressed PNG, as NVIDIA's data sets hold it: quick to read, the same bytes everywhere."""
    out = io.BytesIO()
    from_array(pixels).save(out, format="PNG", compress_level=0)
    return out.getvalue()


def raw_pixels(argument: str, item: str, data: bytes) -> NDArray[Any]:
    """A picture of a finished data set as it is stored: (C, H, W) uint8, grey or RGB, nothing converted."""
    picture = decode(argument, item, data)
    if picture.mode not in ("L", "RGB"):
        raise InputError(argument, item, f"a data set's pictures must be grey or RGB, not Pillow's mode {picture.mode}")
    pixels = np.asarray(picture)
    return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)
