"""Stacks of pictures in numpy's files: ADM's ``.npz`` (``arr_0``, labels ``arr_1``), Keras's and MedMNIST's, ``.npy``.

An array of pictures is (N, H, W), (N, H, W, C) or (N, C, H, W) of bytes, with one or three channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError, reason
from sims_image.data.archives import checked_members, npy_header, npy_read, npz_arrays, npz_words, open_zip
from sims_image.data.sources.base import Block, Request, Source, hash_files, numbered
from sims_image.data.sources.rows import open_member, read_rows
from sims_image.data.stores import MAX_CLASSES, Labels, check_labels

#: names of (images, labels), in lower case, without splits; ADM's first (Dhariwal & Nichol 2021)
_PLAIN = (("arr_0", "arr_1"), ("images", "labels"), ("samples", "labels"))
_SPLIT = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))
_SPLITS = ("train", "test", "val")
_LABEL_BYTES = 2**28


@dataclass(frozen=True)
class _Stack:
    """An array of pictures: how many, (C, H, W) of one, and whether the file has the channels last."""

    count: int
    shape: tuple[int, int, int]
    last: bool

    @classmethod
    def of(cls, request: Request, item: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> _Stack:
        """Raises `InputError` naming ``item`` for an array that is no pictures."""
        if dtype != np.uint8 or len(shape) not in (3, 4) or min(shape) < 1:
            words = (
                f"pictures are bytes (0 to 255) of shape (N, H, W), (N, H, W, 3) or (N, 3, H, W), not {dtype} {shape}"
            )
            raise InputError(request.argument, item, words)
        if len(shape) == 3:
            shape = (*shape, 1)
        if shape[3] in (1, 3):
            return cls(shape[0], (shape[3], shape[1], shape[2]), last=True)
        if shape[1] in (1, 3):
            return cls(shape[0], (shape[1], shape[2], shape[3]), last=False)
        raise InputError(request.argument, item, f"pictures have 1 or 3 channels, not the {shape[3]} of {shape}")

    def read(self, request: Request, handle: IO[bytes], item: str, indices: NDArray[np.int64]) -> Iterator[Block]:
        """The images at increasing ``indices`` of a stream that stands at its first value."""
        channels, height, width = self.shape
        for rows in read_rows(request, handle, item, indices, count=self.count, width=math.prod(self.shape)):
            if self.last:
                yield np.ascontiguousarray(rows.reshape(-1, height, width, channels).transpose(0, 3, 1, 2))
            else:
                yield rows.reshape(-1, *self.shape)


def open_arrays(request: Request) -> Source:
    """The pictures of an ``.npz`` or ``.npy`` file, streamed. Raises `InputError` saying what it holds instead."""
    return _npy(request) if request.path.suffix.lower() == ".npy" else _npz(request)


def _npy(request: Request) -> Source:
    request.no_split()
    item = request.path.name
    try:
        with open(request.path, "rb") as handle:
            shape, dtype = npy_header(request.argument, item, handle, request.path.stat().st_size)
    except OSError as error:
        raise InputError(request.argument, str(request.path), f"cannot be read ({reason(error)})") from None
    stack = _Stack.of(request, item, shape, dtype)

    def read(indices: NDArray[np.int64]) -> Iterator[Block]:
        with open(request.path, "rb") as handle:
            npy_header(request.argument, item, handle)
            yield from stack.read(request, handle, item, indices)

    notes = ("a .npy file has no labels; an .npz has them as arr_1, beside the pictures arr_0",)
    return _source(request, stack, None, read, "", notes if request.labelled else ())


def _npz(request: Request) -> Source:
    path = request.path
    with open_zip(request.argument, path) as archive:
        members = checked_members(request.argument, archive, path)
        arrays = npz_arrays(request.argument, archive, members, path)
        split, images, names = _chosen(request, arrays)
        hidden = next((name for name in members if names == "" and name.lower() == _beside(images)), "")
        if hidden and request.labelled:
            words = "labels are one whole number per image, and these are none; `unlabelled` goes without"
            raise InputError(request.argument, f"{path.name}: {hidden.removesuffix('.npy')}", words)
        item = f"{path.name}: {images}"
        with open_member(request, archive, members[f"{images}.npy"], item) as handle:
            shape, dtype = npy_header(request.argument, item, handle, members[f"{images}.npy"].file_size)
        stack, labels = _Stack.of(request, item, shape, dtype), None
        if request.labelled and names:
            info, item_of_labels = members[f"{names}.npy"], f"{path.name}: {names}"
            if info.file_size > _LABEL_BYTES:
                raise InputError(request.argument, item_of_labels, f"{info.file_size} bytes is more than labels need")
            with open_member(request, archive, info, item_of_labels) as handle:
                found = npy_read(request.argument, item_of_labels, handle, info.file_size)
            labels = _labels(request, item_of_labels, found, stack.count)

    def read(indices: NDArray[np.int64]) -> Iterator[Block]:
        with (
            open_zip(request.argument, path) as archive,
            open_member(request, archive, archive.getinfo(f"{images}.npy"), item) as handle,
        ):
            npy_header(request.argument, item, handle)
            yield from stack.read(request, handle, item, indices)

    note = f"no labels beside {images}; {npz_words(arrays)}"
    return _source(request, stack, labels, read, split, (note,) if request.labelled and not names else ())


def _source(request: Request, stack: _Stack, labels: Labels | None, read: Any, split: str, notes: Any) -> Source:
    return Source(
        kind="arrays",
        name=f"{request.path.stem}-{split}" if split not in ("", "train") else request.path.stem,
        split=split,
        count=stack.count,
        labels=labels,
        classes=[] if labels is None else numbered(int(labels.max()) + 1),
        sha256=hash_files(request, [request.path]),
        sha256_of="the file",
        read=read,
        shape=stack.shape,
        notes=notes,
    )


def _chosen(request: Request, arrays: dict[str, Any]) -> tuple[str, str, str]:
    """(split, name of the images, name of the labels or '')."""
    known = {name.lower(): name for name in arrays}
    for images, labels in _PLAIN:
        if images in known:
            return request.no_split(), known[images], known.get(labels, "")
    for images, labels in _SPLIT:
        there = [split for split in _SPLITS if images.format(split) in known]
        if there:
            split = request.choose_split(there)
            return split, known[images.format(split)], known.get(labels.format(split), "")
    if {"mu", "sigma"} <= set(known):
        words = "these are statistics, not images: `evaluate --reference` reads them"
    elif {"data", "labels"} <= set(known):
        words = f"it holds {npz_words(arrays)}; a batch of downsampled ImageNet is read with `kind` imagenet"
    else:
        words = f"it holds {npz_words(arrays)}; images are arr_0, of shape (N, H, W) or (N, H, W, 3), labels arr_1"
    raise InputError(request.argument, str(request.path), words)


def _beside(images: str) -> str:
    """The member that would hold the labels of ``images``, in lower case."""
    pairs = [(a.format(split), b.format(split)) for a, b in (*_PLAIN, *_SPLIT) for split in _SPLITS]
    return f"{dict(pairs[::-1])[images.lower()]}.npy"


def _labels(request: Request, item: str, found: NDArray[Any], count: int) -> Labels:
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.dtype.kind == "f" and np.isfinite(found).all() and (found == np.round(found)).all():
        found = found.astype(np.int64)
    if found.ndim == 2:
        words = f"labels are one whole number per image, not {found.shape} (one-hot?); `unlabelled` goes without"
        raise InputError(request.argument, item, words)
    highest = int(found.max()) + 1 if found.size and found.dtype.kind in "iu" else 1
    return check_labels(request.argument, item, found, count, min(highest, MAX_CLASSES))
