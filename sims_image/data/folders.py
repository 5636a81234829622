"""Data-set folders made from blocks of images: written beside their place and moved into it whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sims_core.errors import InputError
from sims_core.lab.placing import check_room, placed
from sims_core.lab.runs import followed, write_json
from sims_image.data.dataset import Dataset, open_dataset
from sims_image.data.latents import NAME as AUTOENCODER
from sims_image.data.latents import Autoencoder
from sims_image.data.stores import Images, Labels
from sims_image.data.writing import Growing, describe, write_labels


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
    with placed(out, argument=argument) as part:
        written = 0
        with Growing(part / "images.npy", shape, dtype, count, 0) as array:
            for block in blocks:
                array.append(block)
                written += len(block)
            array.flush()
        if written != count:
            raise InputError(argument, str(part), f"{count} images were announced and {written} came")
        write_labels(part, labels)
        more: dict[str, Any] = {"classes": list(classes), "source": source}
        if autoencoder is not None:
            more[AUTOENCODER] = autoencoder.record
            autoencoder.put(part)
        write_json(part / "dataset.json", describe(part, labels, name, more, argument=argument))
        if beside is not None:
            beside(part)
    return open_dataset(out, argument=argument, verify=False)
