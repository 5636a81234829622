"""Downsampled ImageNet (Chrabaszcz, Loshchilov & Hutter 2017, arXiv 1707.08819): ``train_data_batch_*[.npz]``.

A batch is an ``.npz`` file or, without ending, a pickled dictionary (read without running it). It holds ``data``
(N, 3*S*S) uint8, red rows first, and ``labels`` 1 to 1000. The labels count classes in the order of the ILSVRC kit's
``map_clsloc.txt``, which is *not* the order of sorted WordNet numbers that networks trained on class folders (NVIDIA's
EDM and EDM2 among them) use: with that file, labels are renumbered to the sorted order.
"""

from __future__ import annotations

import math
import mmap
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError, reason
from sims_image.data.archives import checked_members, npy_header, npy_read, open_zip
from sims_image.data.sources.base import Block, Request, Source, hash_files, numbered
from sims_image.data.sources.rows import open_member, read_rows
from sims_image.data.stores import Labels, check_labels
from sims_image.pickles.numbers import load_plain

BATCHES, CLASSES = 10, 1000
CLASS_MAP = "map_clsloc.txt"
_LABEL_BYTES = 2**28
_NAME = re.compile(r"(train_data_batch_(?P<number>\d+)|val_data)(\.npz)?")


@dataclass(frozen=True)
class _Batch:
    path: Path
    count: int
    side: int
    labels: NDArray[np.int64]
    pickled: bool


def is_imagenet(path: Path) -> bool:
    """Whether the path is such a batch, or a folder that holds one."""
    if path.is_dir():
        return any(_NAME.fullmatch(file.name) and file.is_file() for file in path.iterdir())
    return bool(_NAME.fullmatch(path.name))


def open_imagenet(request: Request) -> Source:
    """Splits of a folder: train (all its batches), val. A single batch file is read as it is.

    Labels become 0 to 999. `Request.class_map` (default: ``map_clsloc.txt`` beside the batches, if there) gives their
    WordNet numbers and renumbers them; without it the classes are called "1" to "1000". Memory stays bounded: batches
    are streamed.
    """
    path, split = request.path, ""
    notes: list[str] = []
    if path.is_dir():
        split = request.choose_split(("train", "val"))
        paths = [_named(path, "val_data")] if split == "val" else _train_batches(path)
        if split == "train" and len(paths) < BATCHES:
            notes.append(f"only {len(paths)} of ImageNet's {BATCHES} training batches are there")
    else:
        request.no_split()
        paths = [path]
    missing = next((p for p in paths if not p.is_file()), None)
    if missing is not None:
        raise InputError(request.argument, str(missing), "not there; every batch up to the last one is needed")
    batches = [_open_batch(request, p) for p in paths]
    side = batches[0].side
    other = next((b for b in batches if b.side != side), None)
    if other is not None:
        raise InputError(request.argument, str(other.path), f"{other.side}x{other.side} images among {side}x{side}")
    labels: Labels | None = None
    classes: list[str] = []
    if request.labelled:
        labels, classes, note = _renumbered(request, np.concatenate([b.labels for b in batches]))
        notes += note
    starts = np.cumsum([0] + [b.count for b in batches])
    return Source(
        kind="imagenet",
        name=f"imagenet{side}" + (f"-{split}" if split == "val" else ""),
        split=split,
        count=int(starts[-1]),
        labels=labels,
        classes=classes,
        sha256=hash_files(request, paths),
        sha256_of="the batch" if len(paths) == 1 else "the list of its batches' sha256",
        read=lambda indices: _read(request, batches, starts, indices),
        shape=(3, side, side),
        notes=tuple(notes),
    )


def _train_batches(folder: Path) -> list[Path]:
    numbers = [int(m["number"]) for file in folder.iterdir() if (m := _NAME.fullmatch(file.name)) and m["number"]]
    return [_named(folder, f"train_data_batch_{k}") for k in range(1, min(max(numbers, default=1), BATCHES) + 1)]


def _named(folder: Path, name: str) -> Path:
    """The batch as a pickle, where only that is there, else as ``.npz``."""
    zipped, pickled = folder / f"{name}.npz", folder / name
    return pickled if pickled.is_file() and not zipped.exists() else zipped


def _open_batch(request: Request, path: Path) -> _Batch:
    """Look at a batch's headers and read its labels."""
    item = f"{path.name}: labels"
    pickled = _is_pickle(request, path)
    shape, dtype, labels = (_pickled_head if pickled else _zipped_head)(request, path)
    side = math.isqrt(shape[1] // 3) if len(shape) == 2 else 0
    if dtype != np.uint8 or not side or shape[1] != 3 * side * side or not shape[0]:
        raise InputError(request.argument, f"{path.name}: data", f"must be (N, 3*S*S) of bytes, not {shape} of {dtype}")
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise InputError(request.argument, item, f"must be one whole number per image, not {labels.dtype}")
    wrong = np.flatnonzero((labels < 1) | (labels > CLASSES))
    if len(wrong):
        where = f"image {wrong[0]} is labelled {labels[wrong[0]]}"
        raise InputError(request.argument, item, f"{where}; these files' labels are 1 to {CLASSES}")
    checked = check_labels(request.argument, item, labels.astype(np.int64) - 1, shape[0], CLASSES)
    return _Batch(path, shape[0], side, checked, pickled)


def _is_pickle(request: Request, path: Path) -> bool:
    try:
        with open(path, "rb") as handle:
            return handle.read(1) == b"\x80"
    except OSError as error:
        raise InputError(request.argument, str(path), f"cannot be read ({reason(error)})") from None


def _zipped_head(request: Request, path: Path) -> tuple[tuple[int, ...], np.dtype[Any], NDArray[Any]]:
    """Shape and dtype of the images, and the labels."""
    with open_zip(request.argument, path) as archive:
        members = checked_members(request.argument, archive, path)
        for name in ("data.npy", "labels.npy"):
            if name not in members:
                raise InputError(request.argument, str(path), f"not a batch of downsampled ImageNet: no '{name[:-4]}'")
        item = f"{path.name}: data"
        with open_member(request, archive, members["data.npy"], item) as handle:
            shape, dtype = npy_header(request.argument, item, handle, members["data.npy"].file_size)
        item, info = f"{path.name}: labels", members["labels.npy"]
        if info.file_size > _LABEL_BYTES:
            raise InputError(request.argument, item, f"{info.file_size} bytes is more than labels need")
        with open_member(request, archive, info, item) as handle:
            return shape, dtype, npy_read(request.argument, item, handle, info.file_size)


def _pickled(request: Request, path: Path) -> dict[str, Any]:
    """A pickled batch: 'data' an array, 'labels' an array or a list."""
    try:
        with open(path, "rb") as handle:
            content = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
        found = load_plain(request.argument, str(path), content)
    except (OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(request.argument, str(path), f"cannot be read ({reason(error)})") from None
    if not isinstance(found, dict):
        raise InputError(request.argument, str(path), "must be a pickled dict")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in found.items()}


def _pickled_head(request: Request, path: Path) -> tuple[tuple[int, ...], np.dtype[Any], NDArray[Any]]:
    """As `_zipped_head`."""
    found = _pickled(request, path)
    data, labels = found.get("data"), found.get("labels")
    if not isinstance(data, np.ndarray):
        raise InputError(request.argument, str(path), "not a batch of downsampled ImageNet: no array 'data'")
    if isinstance(labels, list) and all(type(label) is int and abs(label) < 2**62 for label in labels):
        labels = np.array(labels, np.int64)
    if not isinstance(labels, np.ndarray):
        raise InputError(request.argument, f"{path.name}: labels", "must be one whole number per image")
    return data.shape, data.dtype, labels


def _read(
    request: Request, batches: list[_Batch], starts: NDArray[np.int64], indices: NDArray[np.int64]
) -> Iterator[Block]:
    """The images at increasing ``indices``, a few megabytes at a time; unwanted rows are skipped."""
    for batch, start, stop in zip(batches, starts[:-1], starts[1:], strict=True):
        rows = indices[np.searchsorted(indices, start) : np.searchsorted(indices, stop)] - start
        if not len(rows):
            continue
        if batch.pickled:
            step, data = max(1, 2**23 // (3 * batch.side**2)), _pickled(request, batch.path)["data"]
            for first in range(0, len(rows), step):
                yield data[rows[first : first + step]].reshape(-1, 3, batch.side, batch.side)
            continue
        item = f"{batch.path.name}: data"
        with (
            open_zip(request.argument, batch.path) as archive,
            open_member(request, archive, archive.getinfo("data.npy"), item) as handle,
        ):
            npy_header(request.argument, item, handle)
            for found in read_rows(request, handle, item, rows, count=batch.count, width=3 * batch.side**2):
                yield found.reshape(-1, 3, batch.side, batch.side)


def _renumbered(request: Request, labels: Labels) -> tuple[Labels, list[str], list[str]]:
    """Labels, class names and notes, by the class map if there is one."""
    beside = (request.path if request.path.is_dir() else request.path.parent) / CLASS_MAP
    path = Path(request.class_map) if request.class_map else beside
    if not request.class_map and not path.is_file():
        note = (
            f"no {CLASS_MAP}: classes are numbered as in the batches, which is not the order of sorted WordNet numbers "
            "that class folders and NVIDIA's networks have; --class-map FILE renumbers"
        )
        return labels, numbered(CLASSES + 1)[1:], [note]
    argument = "class_map" if request.class_map else request.argument
    try:
        lines = [line.split() for line in path.read_text("utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeError) as error:
        raise InputError(argument, str(path), f"cannot be read ({reason(error)})") from None
    names: dict[int, str] = {}
    for line in lines:
        if len(line) < 2 or not re.fullmatch("[0-9]{1,4}", line[1]) or int(line[1]) in names:
            raise InputError(argument, str(path), f"lines are 'n02119789 1 kit_fox', not '{' '.join(line)[:60]}'")
        names[int(line[1])] = line[0]
    if sorted(names) != list(range(1, CLASSES + 1)) or len(set(names.values())) != CLASSES:
        raise InputError(argument, str(path), f"must name classes 1 to {CLASSES}, each once; it has {len(names)}")
    classes = sorted(names.values())
    place = {wordnet: k for k, wordnet in enumerate(classes)}
    return np.array([place[names[k + 1]] for k in range(CLASSES)], np.int64)[labels], classes, []
