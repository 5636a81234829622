"""Data-set folders made from blocks of images: written beside their place and moved into it whole."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sims_core.errors import InputError
from sims_core.lab.runs import followed, write_atomic, write_failure, write_json
from sims_image.data.dataset import FORMAT, Dataset, content_sha256, open_dataset
from sims_image.data.latents import NAME as AUTOENCODER
from sims_image.data.latents import Autoencoder
from sims_image.data.stores import ArrayStore, Images, Labels
from sims_image.data.writing import Growing, check_room


def write_folder(
    out: Path,
    blocks: Iterable[Images],
    *,
    count: int,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    labels: Labels | None,
    classes: Sequence[str],
    name: str,
    source: dict[str, Any],
    argument: str = "out",
    beside: Callable[[Path], object] | None = None,
    autoencoder: Autoencoder | None = None,
) -> Dataset:
    """Make the data set ``out`` of ``count`` images (C, H, W) that ``blocks`` hold in order, and open it.

    labels: (count,) or None; classes: their names. source: where the images come from, JSON-able, for
    ``dataset.json``. beside: adds files to the folder before it takes its place. autoencoder: of latents. Raises
    `InputError` naming ``argument``: something is there, the disk is full, or ``blocks`` hold another number of images.
    """
    out = followed(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(argument, str(out), "something is there; name another folder")
    check_room(argument, out, int(count * np.prod(shape) * dtype.itemsize))
    part = out.with_name(f".{out.name}.new")
    try:
        shutil.rmtree(part, ignore_errors=True)  # of a process that was killed here
        part.mkdir(parents=True)
        _write_images(part, blocks, count, shape, dtype, argument)
        if labels is not None:
            write_atomic(part / "labels.npy", lambda path: np.save(path, labels.astype("<i8")))
        counts = [] if labels is None else np.bincount(labels, minlength=len(classes)).tolist()
        record: dict[str, Any] = {"name": name, "classes": list(classes)}
        made = Dataset(part, ArrayStore(part / "images.npy", argument), labels, record)
        record = {
            "format": FORMAT,
            "name": name,
            "shape": list(shape),
            "dtype": str(dtype),
            "counts": {"images": count, "classes": counts},
            "sha256": content_sha256(made),
            "classes": list(classes),
            "source": source,
            **({} if autoencoder is None else {AUTOENCODER: autoencoder.record}),
        }
        write_json(part / "dataset.json", record)
        if autoencoder is not None:
            autoencoder.put(part)
        if beside is not None:
            beside(part)
        if out.exists():
            out.rmdir()
        os.replace(part, out)
    except OSError as error:
        raise write_failure(argument, out, error, "nothing was put there") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return open_dataset(out, argument=argument, verify=False)


def _write_images(
    part: Path,
    blocks: Iterable[Images],
    count: int,
    shape: tuple[int, int, int],
    dtype: np.dtype[Any],
    argument: str,
) -> None:
    written = 0
    array = Growing(part / "images.npy", shape, dtype, count, 0)
    try:
        for block in blocks:
            array.append(block)
            written += len(block)
        array.flush()
    finally:
        array.close()
    if written != count:
        raise InputError(argument, str(part), f"{count} images were announced and {written} came")
