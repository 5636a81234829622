"""IDX files (LeCun's MNIST format, also Fashion-MNIST's), plain or gzipped: big-endian sizes, then bytes."""

from __future__ import annotations

import gzip
import math
import re
import struct
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError, reason, shown
from sims_image.data.archives import check_expansion
from sims_image.data.sources.base import Request, Source, hash_files, numbered, read_array
from sims_image.data.stores import check_labels

#: how the names of a split's files end before ``-images``
SPLITS = {"train": ("train",), "test": ("t10k", "test")}
_NAME = re.compile(r"(?P<split>.+?)[-_.]images[-_.]idx3[-_.]ubyte(?P<gz>\.gz)?", re.IGNORECASE)


def is_idx(path: Path) -> bool:
    """Whether the path is an IDX file of images, or a folder that holds one."""
    if path.is_dir():
        return any(_NAME.fullmatch(file.name) for file in _files(path))
    return bool(_NAME.fullmatch(path.name))


def open_idx(request: Request) -> Source:
    """Images and labels of ``NAME-images-idx3-ubyte[.gz]`` and ``NAME-labels-idx1-ubyte[.gz]`` beside it.

    A folder has the splits train (``train-...``) and test (``t10k-...``); a file is its own.
    """
    path, images_path = request.path, request.path
    split, notes = "", list[str]()
    if path.is_dir():
        split = request.choose_split(tuple(SPLITS))
        images_path = _images_of(request, split)
    else:
        request.no_split()
        match = _NAME.fullmatch(path.name)
        split = _split_of(match["split"]) if match else ""
    if "emnist" in images_path.name.lower():
        notes.append("EMNIST's files hold the pictures transposed, unlike MNIST's; they are taken as they are")
    files, labels, classes = [images_path], None, []
    images = _read(request, images_path, dimensions=3)
    if images.shape[1] != images.shape[2]:
        raise InputError(
            request.argument, str(images_path), f"{images.shape[2]}x{images.shape[1]} images are not square"
        )
    if request.labelled:
        files.append(_labels_beside(request, images_path))
        numbers = _read(request, files[1], dimensions=1)
        highest = int(numbers.max(initial=0)) + 1
        labels = check_labels(request.argument, str(files[1]), numbers, len(images), highest)
        classes = numbered(highest)
    name = _home(images_path).resolve().name
    return Source(
        kind="idx",
        name=f"{name}-test" if split == "test" else name,
        split=split,
        count=len(images),
        labels=labels,
        classes=classes,
        sha256=hash_files(request, files),
        sha256_of="the files of images and labels" if labels is not None else "the file of images",
        read=read_array(images[:, None]),
        shape=(1, images.shape[1], images.shape[2]),
        notes=tuple(notes),
    )


def _images_of(request: Request, split: str) -> Path:
    """The file of a split's images in a folder."""
    there = [
        file for file in _files(request.path) if (m := _NAME.fullmatch(file.name)) and _split_of(m["split"]) == split
    ]
    kinds = {_NAME.sub(r"\g<split>", file.name) for file in there}
    if len(kinds) > 1:
        words = f"{len(kinds)} data sets ({', '.join(map(shown, sorted(kinds)))}); name the file of images of one"
        raise InputError(request.argument, str(request.path), words)
    if not there:
        words = f"no {SPLITS[split][0]}-images-idx3-ubyte[.gz] in {request.path}; or name the file of images"
        raise InputError("split", split, words)
    return there[0]


def _files(folder: Path) -> list[Path]:
    """The files of a folder, and those that lie in a folder of their own name (as Kaggle unpacks them) after these."""
    inside = sorted(folder.iterdir())
    return [path for path in inside if path.is_file()] + [
        path / path.name for path in inside if (path / path.name).is_file()
    ]


def _home(file: Path) -> Path:
    """The folder that the data set's files lie in."""
    return file.parent.parent if file.parent.name == file.name else file.parent


def _split_of(name: str) -> str:
    """The split of ``train``, ``t10k`` or ``emnist-letters-test``."""
    last = re.split(r"[-_.]", name.lower())[-1]
    return next((split for split, words in SPLITS.items() if last in words), "")


def _labels_beside(request: Request, images: Path) -> Path:
    stem = re.sub(r"images([-_.])idx3", r"labels\1idx1", images.name, flags=re.IGNORECASE)
    plain = re.sub(r"\.gz$", "", stem, flags=re.IGNORECASE)
    beside = {file.name: file for file in reversed(_files(_home(images)))}
    for name in (stem, plain, plain + ".gz"):
        if name in beside:
            return beside[name]
    raise InputError(request.argument, str(images.parent / stem), "no such file of labels; `unlabelled` goes without")


def _read(request: Request, path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    item = str(path)
    try:
        with open(path, "rb") as raw:
            stored = path.stat().st_size
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            stream: IO[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
            head = stream.read(4 + 4 * dimensions)
            if len(head) < 4 + 4 * dimensions or head[:4] != bytes((0, 0, 8, dimensions)):
                raise InputError(
                    request.argument, item, f"not an IDX file of bytes in {dimensions} dimension(s): wrong first bytes"
                )
            shape = struct.unpack(f">{dimensions}I", head[4:])
            size = math.prod(shape)
            check_expansion(request.argument, item, size, stored)
            if not size or (not packed and size != stored - len(head)):
                raise InputError(
                    request.argument, item, f"truncated or damaged: its header says {shape}, it has {stored} bytes"
                )
            data = stream.read(size)
            if len(data) != size or stream.read(1):
                raise InputError(request.argument, item, f"truncated or damaged: its header says {shape}")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(request.argument, item, f"truncated or damaged ({reason(error)})") from None
    return np.frombuffer(data, np.uint8).reshape(shape)
