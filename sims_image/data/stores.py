"""Where a data set's images lie: an array in a file, or the members of a zip; and what images and labels must be."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError, reason, shown
from sims_image.data.archives import ZipIndex, npy_header, npy_read
from sims_image.data.pictures import raw_pixels

Images = NDArray[Any]
Labels = NDArray[np.int64]

DTYPES = ("uint8", "float16", "float32")
#: more classes than any data set has; a label beyond is a mistake
MAX_CLASSES = 2**20
_MAPPED = 2**20


class Store(Protocol):
    """Where the images lie. Safe between threads and forked workers, and picklable."""

    shape: tuple[int, int, int]
    dtype: np.dtype[Any]

    def __len__(self) -> int: ...

    def read(self, indices: NDArray[np.int64]) -> Images:
        """(B, C, H, W), a copy; the indices are in range."""


class ArrayStore:
    """``images.npy``, memory-mapped."""

    def __init__(self, path: Path, argument: str) -> None:
        self.path, self.argument = path, argument
        item = str(path)
        try:
            with open(path, "rb") as handle:
                shape, self.dtype = npy_header(argument, item, handle, os.fstat(handle.fileno()).st_size)
                self._offset = handle.tell()
        except OSError as error:
            raise InputError(argument, item, f"cannot be read ({reason(error)})") from None
        if len(shape) != 4:
            raise InputError(argument, item, f"images are an array (N, C, H, W), not {shape}")
        self._count, self.shape = shape[0], (shape[1], shape[2], shape[3])
        check_kind(argument, item, self.shape, self.dtype, self._count)
        self._map()

    def _map(self) -> None:
        self._images = np.memmap(self.path, self.dtype, "r", self._offset, (self._count, *self.shape))

    def __len__(self) -> int:
        return self._count

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_images"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()

    def read(self, indices: NDArray[np.int64]) -> Images:
        """As `Store.read`."""
        count = len(indices)
        first = int(indices[0]) if count else 0
        if count and int(indices[-1]) - first == count - 1 and bool(np.all(np.diff(indices) == 1)):
            return self._run(first, count)
        return np.asarray(self._images[indices])

    def _run(self, first: int, count: int) -> Images:
        """Consecutive images. Many of them are read from the file, so that passing over all leaves nothing mapped."""
        each = math.prod(self.shape) * self.dtype.itemsize
        if count * each < _MAPPED:
            return np.array(self._images[first : first + count])
        found = np.fromfile(self.path, self.dtype, count * math.prod(self.shape), offset=self._offset + first * each)
        if found.size != count * math.prod(self.shape):
            raise InputError(self.argument, str(self.path), "the file was cut short while it was open")
        return found.reshape(count, *self.shape)


class ZipStore:
    """Members of an EDM zip, decoded when they are asked for."""

    def __init__(self, index: ZipIndex, arrays: bool) -> None:
        self._index, self._arrays = index, arrays
        first = self._decode(0)
        if first.ndim != 3:
            raise InputError(index.argument, index.item(0), f"an image is an array (C, H, W), not {first.shape}")
        self.shape, self.dtype = (first.shape[0], first.shape[1], first.shape[2]), first.dtype
        check_kind(index.argument, index.item(0), self.shape, self.dtype, 1)

    def __len__(self) -> int:
        return len(self._index)

    def _decode(self, position: int) -> Images:
        data = self._index.read(position)
        if self._arrays:
            return npy_read(self._index.argument, self._index.item(position), io.BytesIO(data), len(data))
        return raw_pixels(self._index.argument, self._index.item(position), data)

    def read(self, indices: NDArray[np.int64]) -> Images:
        """As `Store.read`. Raises `InputError` naming an image that is damaged or unlike the first."""
        found = np.empty((len(indices), *self.shape), self.dtype)
        for row, position in enumerate(indices):
            image = self._decode(int(position))
            if image.shape != self.shape or image.dtype != self.dtype:
                raise InputError(
                    self._index.argument,
                    self._index.item(int(position)),
                    f"{image.dtype} {image.shape} among {self.dtype} {self.shape}; every image must be alike",
                )
            found[row] = image
        return found


def check_kind(argument: str, item: str, shape: tuple[int, ...], dtype: np.dtype[Any], count: int) -> None:
    """Raise `InputError` unless these are images that a data set may hold: square, of a known dtype, at least one."""
    if str(dtype) not in DTYPES:
        raise InputError(argument, item, f"images are {', '.join(DTYPES)}, not {dtype}")
    if count < 1 or min(shape) < 1:
        raise InputError(argument, item, "there are no images in it")
    if shape[1] != shape[2]:
        raise InputError(argument, item, f"{shape[2]}x{shape[1]} is not square; `prepare` with `size` and `crop`")


def check_labels(argument: str, item: str, labels: NDArray[Any], images: int, classes: int) -> Labels:
    """(N,) int64. Raises `InputError` naming the first label outside [0, classes), or if their number is not N."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(argument, item, f"labels are one whole number per image, not {labels.dtype} {labels.shape}")
    if len(labels) != images:
        raise InputError(argument, item, f"{len(labels)} labels for {images} images; every image needs one")
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(wrong):
        where = f"image {wrong[0]} is labelled {labels[wrong[0]]}"
        raise InputError(argument, item, f"{where}; with {classes} classes labels are 0 to {classes - 1}")
    return labels.astype(np.int64)


def edm_labels(argument: str, item: str, listed: object, names: Sequence[str]) -> Labels | None:
    """The labels of ``names`` out of EDM's ``[[name, class], ...]``; None if there are none.

    Raises `InputError` naming the first entry that is malformed, there twice, of no image, or missing.
    """
    if listed is None:
        return None
    if not isinstance(listed, list):
        raise InputError(argument, item, "'labels' must be null or a list of [name, class]")
    found: dict[str, int] = {}
    for entry in listed:
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str) and type(entry[1]) is int):
            raise InputError(argument, item, f"{shown(json.dumps(entry))} is not [name, class number]")
        name = entry[0].replace("\\", "/")
        if name in found:
            raise InputError(argument, item, f"'{shown(name)}' is labelled twice")
        if not 0 <= entry[1] < MAX_CLASSES:
            raise InputError(
                argument, item, f"'{shown(name)}' is labelled {entry[1]}; classes are 0 to {MAX_CLASSES - 1}"
            )
        found[name] = entry[1]
    missing = next((name for name in names if name not in found), None)
    if missing is not None:
        raise InputError(argument, item, f"{len(found)} labels for {len(names)} images: '{shown(missing)}' has none")
    if len(found) > len(names):
        extra = next(iter(set(found) - set(names)))
        raise InputError(argument, item, f"{len(found)} labels for {len(names)} images: no image '{shown(extra)}'")
    return np.array([found[name] for name in names], np.int64)
