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

from sims_core.errors import InputError, reason
from sims_image.archives import check_expansion
from sims_image.sources.base import Request, Source, hash_files, numbered, read_array
from sims_image.stores import check_labels

#: how the files of a split begin
SPLITS = {"train": "train", "test": "t10k"}
_NAME = re.compile(r"(?P<split>.+?)[-_.]images[-_.]idx3[-_.]ubyte(?P<gz>\.gz)?", re.IGNORECASE)


def is_idx(path: Path) -> bool:
    """Whether the path is an IDX file of images, or a folder that holds one."""
    if path.is_dir():
        return any(_NAME.fullmatch(file.name) for file in path.iterdir())
    return bool(_NAME.fullmatch(path.name))


def open_idx(request: Request) -> Source:
    """Images and labels of ``NAME-images-idx3-ubyte[.gz]`` and ``NAME-labels-idx1-ubyte[.gz]`` beside it.

    A folder has the splits train (``train-...``) and test (``t10k-...``); a file is its own.
    """
    path, images_path = request.path, request.path
    split = ""
    if path.is_dir():
        found = {m["split"]: file for file in sorted(path.iterdir()) if (m := _NAME.fullmatch(file.name))}
        split = request.choose_split(tuple(SPLITS))
        if SPLITS[split] not in found:
            raise InputError("--split", split, f"no {SPLITS[split]}-images-idx3-ubyte[.gz] in {path}")
        images_path = found[SPLITS[split]]
    else:
        request.no_split()
        match = _NAME.fullmatch(path.name)
        split = {begin: name for name, begin in SPLITS.items()}.get(match["split"] if match else "", "")
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
    name = images_path.resolve().parent.name
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
    )


def _labels_beside(request: Request, images: Path) -> Path:
    stem = re.sub(r"images([-_.])idx3", r"labels\1idx1", images.name, flags=re.IGNORECASE)
    plain = re.sub(r"\.gz$", "", stem, flags=re.IGNORECASE)
    for name in (stem, plain, plain + ".gz"):
        if (images.parent / name).is_file():
            return images.parent / name
    raise InputError(request.argument, str(images.parent / stem), "no such file of labels; --unlabelled goes without")


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
