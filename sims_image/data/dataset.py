"""Data sets of images: our folders and NVIDIA's EDM zips through one class.

A folder holds ``images.npy`` (N, C, H, W; uint8 pixels, or float16/float32 latents with any number of channels),
``labels.npy`` ((N,) int64, absent if unlabelled) and ``dataset.json``. An EDM zip holds one PNG (or one NPY array, for
latents) per image and ``dataset.json`` with ``{"labels": [[name, class], ...]}`` or null (Karras et al. 2022, 2024);
its images are those members in the order of their names. `docs/images-data.md` has the formats.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray

from sims_core.errors import InputError, reason, shown
from sims_core.lab.runs import parse_json
from sims_image.data.archives import ZipIndex, checked_members, npy_read, npz_arrays, npz_words, open_zip, passed_over
from sims_image.data.latents import EDM2, LOWEST, MOMENTS, Autoencoder
from sims_image.data.latents import NAME as AUTOENCODER
from sims_image.data.stores import ArrayStore, Images, Labels, Store, ZipStore, check_labels, edm_labels

FORMAT = "sims-dataset 1"
#: bytes of content up to which opening a data set verifies all of it, when not told: a fraction of a second
VERIFIED_FOLDER, VERIFIED_ZIP = 256 * 2**20, 16 * 2**20
#: what whole stacks of images are called in numpy's files, which may be called ``.zip`` too
_STACKS = ("arr_0", "images", "samples", "data", "x_train", "train_images", "mu")
_BLOCK_BYTES = 16 * 2**20
#: dataset.json of 1.28 million images is 50 MB
_JSON_BYTES = 2**30


class Dataset:
    """Images with or without labels. Make it with `open_dataset`.

    path, name; shape: (C, H, W) of an image; dtype: uint8 for pixels, float16 or float32 for latents; labels: (N,)
    int64 or None; classes: their names, [] if unlabelled; record: what ``dataset.json`` says (a copy is yours to keep,
    not to change). Reading is safe between threads and forked workers, and the object is picklable.
    """

    def __init__(
        self, path: Path, store: Store, labels: Labels | None, record: dict[str, Any], *, argument: str = "data"
    ) -> None:
        self.path, self.record, self.labels = path, record, labels
        self.name, self.classes = str(record["name"]), [str(name) for name in record["classes"]]
        self._store, self._argument = store, argument
        self._sha256: str | None = record.get("sha256")

    def __len__(self) -> int:
        return len(self._store)

    def __repr__(self) -> str:
        kind = f"{len(self.classes)} classes" if self.labels is not None else "unlabelled"
        return f"Dataset({str(self.path)!r}: {len(self)} images {self.shape} {self.dtype}, {kind})"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self._store.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """As stored."""
        return self._store.dtype

    @property
    def autoencoder(self) -> Autoencoder | None:
        """What its latents are, where that is known, and what makes pixels of them. Raises `InputError`."""
        try:
            return Autoencoder.inside(self.path, self.record)
        except (ValueError, TypeError, LookupError) as error:
            raise InputError(self._argument, str(self.path), f"its record is damaged ({reason(error)})") from None

    @property
    def pictures(self) -> str:
        """Formats of the pictures that it was made of, such as JPEG or JPEG+PNG, or 'arrays'; '' unknown."""
        return str(self.record.get("pictures") or "")

    @property
    def moments(self) -> bool:
        """Whether it holds means and standard deviations of latents."""
        known = self.autoencoder
        return known is not None and self.shape[0] == 2 * len(known.mean)

    @property
    def seen(self) -> tuple[int, int, int]:
        """(C, H, W) of what a network sees of an image: of moments, the latents that are drawn from them."""
        channels, height, width = self.shape
        return (channels // 2 if self.moments else channels), height, width

    @property
    def empty(self) -> list[int]:
        """Numbers of the classes that have no images."""
        return [] if self.labels is None else sorted(set(range(len(self.classes))) - set(self.labels.tolist()))

    def images(self, indices: Sequence[int] | NDArray[Any] | slice) -> Images:
        """The images at ``indices``, (B, C, H, W) in the stored dtype: a copy, in the order asked for, repeats allowed.

        Raises `InputError` for indices outside [0, N), and naming the item for an image that is damaged.
        """
        if isinstance(indices, slice):
            wanted = np.arange(*indices.indices(len(self)), dtype=np.int64)
        else:
            given = np.asarray(indices)
            if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
                raise InputError("indices", f"{given.dtype} {given.shape}", "give a list of whole numbers")
            wanted = given.astype(np.int64)
        if wanted.size and not (wanted.min() >= 0 and wanted.max() < len(self)):
            outside = wanted[(wanted < 0) | (wanted >= len(self))][0]
            raise InputError("indices", int(outside), f"this data set's images are 0 to {len(self) - 1}")
        return self._store.read(wanted)

    @property
    def sha256(self) -> str:
        """The recorded `content_sha256`; a zip that records none is read through once to find it."""
        if self._sha256 is None:
            self._sha256 = content_sha256(self)
        return self._sha256

    def verify(self, *, tick: Callable[[int], object] | None = None) -> None:
        """Read every image. Raises `InputError` if one is damaged or the content is not what ``dataset.json`` records.

        ``tick`` is told the images of each block.
        """
        found, said = content_sha256(self, tick=tick), self.record.get("sha256", self._sha256)
        if said not in (found, None):
            raise InputError(
                self._argument, str(self.path), f"dataset.json records sha256 {said} but the content has {found}"
            )
        self._sha256 = found


def content_sha256(data: Dataset, *, tick: Callable[[int], object] | None = None) -> str:
    """The hash that a folder and a zip of the same images and labels share.

    SHA-256 over the ASCII line ``sims-dataset 1 DTYPE N C H W LABELS`` and a newline (LABELS is 1 or 0), the images in
    order (C order, little-endian), then the labels as little-endian int64. Names play no part.
    """
    labelled = data.labels is not None
    digest = hashlib.sha256(f"{FORMAT} {data.dtype} {len(data)} {_spaced(data.shape)} {labelled:d}\n".encode())
    step = block_length(data.shape, data.dtype)
    for start in range(0, len(data), step):
        block = data.images(slice(start, start + step))
        digest.update(np.ascontiguousarray(block).data)
        if tick:
            tick(len(block))
    if data.labels is not None:
        digest.update(np.ascontiguousarray(data.labels, "<i8").data)
    return digest.hexdigest()


def block_length(shape: tuple[int, ...], dtype: np.dtype[Any]) -> int:
    """How many images make a block of about 16 MB."""
    return max(1, _BLOCK_BYTES // max(1, math.prod(shape) * dtype.itemsize))


def _spaced(shape: Sequence[int]) -> str:
    return " ".join(map(str, shape))


def by(shape: Sequence[int]) -> str:
    """A shape in words: ``3x32x32``."""
    return "x".join(map(str, shape))


def cache_folder(data: Dataset) -> Path:
    """Where what is computed from a data set is kept: ``NAME.features`` beside it."""
    path = data.path.resolve()
    return path.with_name(path.name + ".features")


def open_dataset(path: str | Path, *, argument: str = "data", verify: bool | None = None) -> Dataset:
    """The data set at ``path``: a folder that `prepare` wrote, or an EDM zip.

    verify: read everything and compare with the recorded sha256. None does so where it takes a fraction of a second
    (folders to 256 MB, zips to 16 MB); sizes, counts, shapes and labels are always checked, and a zip's images against
    their CRC-32 whenever they are read. Raises `InputError` naming ``argument`` and the item.

    >>> open_dataset("data/digits")
    Dataset('data/digits': 1297 images (1, 8, 8) uint8, 10 classes)
    """
    path = Path(path)
    try:
        if path.is_dir():
            data, small = _open_folder(path, argument), VERIFIED_FOLDER
        elif path.is_file():
            data, small = _open_zip(path, argument), VERIFIED_ZIP
        else:
            unfinished = path.with_name(path.name + ".preparing")
            hint = f"; {unfinished} is half made: repeat its `prepare` command" if unfinished.exists() else ""
            raise InputError(argument, str(path), f"no such data set{hint}")
    except OSError as error:
        raise InputError(argument, str(path), f"cannot be read ({reason(error)})") from None
    if verify or (verify is None and len(data) * math.prod(data.shape) * data.dtype.itemsize <= small):
        data.verify()
    return data


def _open_folder(path: Path, argument: str) -> Dataset:
    record_path, images_path, labels_path = (path / n for n in ("dataset.json", "images.npy", "labels.npy"))
    if not record_path.is_file():
        hint = "`prepare` makes one of a folder of pictures"
        raise InputError(argument, str(path), f"not a data set: it has no dataset.json; {hint}")
    item = str(record_path)
    record = parse_json(argument, item, record_path.read_bytes())
    if record.get("format") != FORMAT:
        raise InputError(argument, item, f"not a data set's record: its format is not '{FORMAT}'; see `prepare`")
    if not images_path.is_file():
        raise InputError(argument, str(path), "not a whole data set: it has no images.npy")
    store = ArrayStore(images_path, argument)
    _check_record(argument, item, record, store)
    labels = None
    if labels_path.exists():
        with open(labels_path, "rb") as handle:
            raw = npy_read(argument, str(labels_path), handle, labels_path.stat().st_size)
        labels = check_labels(argument, str(labels_path), raw, len(store), len(record["classes"]))
    if (labels is None) != (not record["classes"]):
        raise InputError(
            argument, str(labels_path), f"dataset.json names {len(record['classes'])} classes; both or none"
        )
    return Dataset(path, store, labels, record, argument=argument)


def _check_record(argument: str, item: str, record: dict[str, Any], store: Store) -> None:
    """Raise `InputError` unless a record is well formed and is of these images."""
    classes, counts = record.get("classes"), record.get("counts")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise InputError(argument, item, "'classes' must be a list of names")
    if not isinstance(record.get("name"), str) or not isinstance(record.get("sha256"), str):
        raise InputError(argument, item, "'name' and 'sha256' must be there")
    said = (record.get("shape"), record.get("dtype"), counts.get("images") if isinstance(counts, dict) else None)
    there = (list(store.shape), str(store.dtype), len(store))
    if said != there:
        raise InputError(argument, item, f"it records {said} (shape, dtype, images) and the images are {there}")


def is_npz(path: Path, members: Container[str]) -> bool:
    """Whether a zip is numpy's: named arrays, and not images one by one."""
    return path.suffix.lower() == ".npz" or any(f"{name}.npy" in members for name in _STACKS)


def _open_zip(path: Path, argument: str) -> Dataset:
    with open_zip(argument, path) as archive:
        members = checked_members(argument, archive, path)
        if is_npz(path, members):
            words = npz_words(npz_arrays(argument, archive, members, path))
            expected = "not a data set; `prepare` reads images called arr_0, statistics are called mu and sigma"
            raise InputError(argument, str(path), f"an .npz of arrays ({words}), {expected}")
        members = {name: info for name, info in members.items() if not any(map(passed_over, name.split("/")))}
        listing = members.pop("dataset.json", None)
        arrays = any(name.endswith(".npy") for name in members)
        for name in members:
            if not name.lower().endswith(".npy" if arrays else ".png"):
                kind = "NPY arrays, as its first is" if arrays else "PNG images (`prepare` reads other pictures)"
                raise InputError(argument, f"{path.name}: {shown(name)}", f"an EDM zip holds {kind}, and dataset.json")
        names = sorted(members)
        if not names:
            raise InputError(argument, str(path), "there are no images in it")
        item, content = f"{path.name}: dataset.json", {}
        if listing is not None:
            if listing.file_size > _JSON_BYTES:
                raise InputError(argument, item, f"{listing.file_size} bytes is more than a list of labels needs")
            content = parse_json(argument, item, ZipIndex(path, [listing], argument=argument).read(0))
        index = ZipIndex(path, [members[name] for name in names], argument=argument)
    store = ZipStore(index, arrays)
    labels = edm_labels(argument, item, content.get("labels"), names)
    known = 0 if labels is None else int(labels.max()) + 1
    record = content.get("sims")
    if record is None:
        classes = [str(k) for k in range(known)]
        counts = {"images": len(names), "classes": [] if labels is None else np.bincount(labels).tolist()}
        record = {"format": "EDM zip", "name": path.stem, "shape": list(store.shape), "dtype": str(store.dtype)}
        if names[0].rpartition("/")[2].startswith(MOMENTS) and store.shape[0] == 2 * len(EDM2[0]):
            record[AUTOENCODER] = Autoencoder((), "", *EDM2, LOWEST["edm2"]).record
        record |= {"classes": classes, "counts": counts}
    elif not isinstance(record, dict):
        raise InputError(argument, item, "'sims' must be a data set's record")
    else:
        _check_record(argument, item, record, store)
        if (labels is None) != (not record["classes"]) or known > len(record["classes"]):
            raise InputError(argument, item, f"{known} classes are used and {len(record['classes'])} named")
    return Dataset(path, store, labels, record, argument=argument)


@overload
def to_unit(pixels: NDArray[Any]) -> NDArray[np.float32]: ...
@overload
def to_unit(pixels: torch.Tensor) -> torch.Tensor: ...
def to_unit(pixels: Any) -> Any:
    """uint8 pixels as the networks take them: x/127.5 - 1 in [-1, 1], float32 (Karras et al. 2022); array or tensor."""
    if isinstance(pixels, np.ndarray):
        return pixels.astype(np.float32) / np.float32(127.5) - np.float32(1)
    return pixels.float() / 127.5 - 1


@overload
def to_pixels(images: NDArray[Any]) -> NDArray[np.uint8]: ...
@overload
def to_pixels(images: torch.Tensor) -> torch.Tensor: ...
def to_pixels(images: Any) -> Any:
    """A network's images as uint8: x*127.5 + 128, clipped and cut off (Karras et al. 2022); array or tensor.

    The inverse of `to_unit` on every pixel value.
    """
    if isinstance(images, np.ndarray):
        return (images * 127.5 + 128).clip(0, 255).astype(np.uint8)
    return (images * 127.5 + 128).clip(0, 255).byte()
