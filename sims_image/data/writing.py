"""Writing data sets: an array that grows on disk and resumes where it was stopped, and NVIDIA's zip."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import stat
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sims_core.lab.runs import write_atomic
from sims_image.data.dataset import FORMAT, Dataset, block_length, content_sha256
from sims_image.data.latents import MOMENTS
from sims_image.data.pictures import to_png
from sims_image.data.stores import ArrayStore, Images, Labels


class Growing:
    """``images.npy`` of a known size, written from front to back.

    Written as a file and not through a memory map: on a full disk a write raises an error, while touching a mapped page
    kills the process. A file that is not whole cannot be opened as an array.
    """

    def __init__(self, path: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], count: int, done: int) -> None:
        """Open at image ``done``; what lies behind it is cut off. ``reusable`` says whether so many are there."""
        header = _header(shape, dtype, count)
        self._handle = open(path, "r+b" if path.exists() else "w+b")  # noqa: SIM115
        self._handle.truncate(len(header) + done * math.prod(shape) * dtype.itemsize)
        self._handle.write(header)
        self._handle.seek(0, os.SEEK_END)

    @staticmethod
    def reusable(path: Path, shape: tuple[int, int, int], dtype: np.dtype[Any], count: int, done: int) -> bool:
        """Whether ``path`` holds at least ``done`` images of such an array."""
        header = _header(shape, dtype, count)
        try:
            with open(path, "rb") as handle:
                same = handle.read(len(header)) == header
                return (
                    same and os.fstat(handle.fileno()).st_size >= len(header) + done * math.prod(shape) * dtype.itemsize
                )
        except OSError:
            return False

    def append(self, images: Images) -> None:
        """(B, C, H, W) of the array's dtype."""
        self._handle.write(np.ascontiguousarray(images).data)

    def flush(self) -> None:
        """Bring everything to the disk."""
        self._handle.flush()
        os.fsync(self._handle.fileno())

    def __enter__(self) -> Growing:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):  # `flush` is what reports a full disk
            self._handle.close()


def _header(shape: tuple[int, int, int], dtype: np.dtype[Any], count: int) -> bytes:
    out = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(out, description)
    return out.getvalue()


def write_labels(part: Path, labels: Labels | None) -> None:
    """``labels.npy`` of a folder, if there are any."""
    if labels is not None:
        write_atomic(part / "labels.npy", lambda path: np.save(path, labels.astype("<i8")))


def describe(
    part: Path,
    labels: Labels | None,
    name: str,
    more: dict[str, Any],
    *,
    argument: str = "out",
    tick: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """What ``dataset.json`` says of the images in ``part`` and their labels, ending in ``more``: classes, source."""
    data = Dataset(part, ArrayStore(part / "images.npy", argument), labels, {"name": name, **more})
    counts = [] if labels is None else np.bincount(labels, minlength=len(more["classes"])).tolist()
    return {
        "format": FORMAT,
        "name": name,
        "shape": list(data.shape),
        "dtype": str(data.dtype),
        "counts": {"images": len(data), "classes": counts},
        "sha256": content_sha256(data, tick=tick),
        **more,
    }


def write_edm_zip(data: Dataset, path: Path, *, tick: Callable[[int], object] | None = None) -> None:
    """NVIDIA's format: an uncompressed zip of ``00000/img00000000.png`` and ``dataset.json``.

    Grey and RGB pixels become uncompressed PNGs, everything else NPY arrays (EDM2's ``img-mean-std-`` names for 8
    channels). ``dataset.json`` has ``labels`` as NVIDIA's readers expect it and beside it ``sims``, our own record,
    which they pass over. The same data set gives the same bytes.
    """
    pictures = data.dtype == np.uint8 and data.shape[0] in (1, 3)
    prefix, suffix = ("img", ".png") if pictures else (MOMENTS if data.shape[0] == 8 else "img", ".npy")
    names = (f"{k // 1000:05d}/{prefix}{k:08d}{suffix}" for k in range(len(data)))
    listed: list[list[Any]] = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        step = block_length(data.shape, data.dtype)
        for start in range(0, len(data), step):
            block = data.images(slice(start, start + step))
            for k, image in enumerate(block, start):
                name = next(names)
                archive.writestr(_member(name), to_png(image) if pictures else _npy(image))
                if data.labels is not None:
                    listed.append([name, int(data.labels[k])])
            if tick:
                tick(len(block))
        content = {"labels": listed if data.labels is not None else None, "sims": data.record}
        archive.writestr(_member("dataset.json"), json.dumps(content))


def _member(name: str) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    info.create_system, info.external_attr = 3, (stat.S_IFREG | 0o644) << 16
    return info


def _npy(image: Images) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(image), version=(1, 0), allow_pickle=False)
    return out.getvalue()
