"""Sources that need no reading of foreign formats: scikit-learn's digits, and data sets that are prepared already."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from sims_image.data.archives import ZipIndex, checked_members, open_zip, passed_over
from sims_image.data.dataset import block_length, is_npz, open_dataset
from sims_image.data.sources.base import Block, Request, Source, numbered, read_array


def open_digits(request: Request) -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8, 17 grey levels spread over 0 to 255 (rounded)."""
    request.no_split()
    found = load_digits()
    grey = np.asarray(found.images, np.float64)  # (1797, 8, 8), whole numbers 0 to 16
    images = np.round(grey * (255 / 16)).astype(np.uint8)[:, None]
    labels = np.asarray(found.target, np.int64) if request.labelled else None
    return Source(
        kind="digits",
        name="digits",
        split="",
        count=len(images),
        labels=labels,
        classes=numbered(10) if request.labelled else [],
        sha256=hashlib.sha256(grey.astype("<f8").tobytes() + np.asarray(found.target, "<i8").tobytes()).hexdigest(),
        sha256_of="scikit-learn's arrays of images (float64) and targets (int64)",
        read=read_array(images),
        shape=(1, 8, 8),
    )


def open_prepared(request: Request) -> Source:
    """A data set folder or EDM zip, its content checked against its record."""
    request.no_split()
    data = open_dataset(request.path, argument=request.argument, verify=False)
    if "sha256" in data.record:
        data.verify()

    def read(indices: NDArray[np.int64]) -> Iterator[Block]:
        step = block_length(data.shape, data.dtype)
        for start in range(0, len(indices), step):
            yield data.images(indices[start : start + step])

    return Source(
        kind="dataset", name=data.name, split="", count=len(data), labels=data.labels if request.labelled else None,
        classes=data.classes if request.labelled else [], sha256=data.sha256, sha256_of="its content", read=read,
        shape=data.shape, dtype=data.dtype, autoencoder=data.autoencoder, pictures=data.pictures or "unknown",
    )  # fmt: skip


def kind_of_zip(request: Request) -> str:
    """Whether a zip is read as arrays (numpy's), a data set (it holds latents, or a record of ours), or pictures."""
    with open_zip(request.argument, request.path) as archive:
        names = checked_members(request.argument, archive, request.path)
    if is_npz(request.path, names):
        return "arrays"
    listing = names.get("dataset.json")
    if any(name.endswith(".npy") for name in names if not any(map(passed_over, name.split("/")))):
        return "dataset"
    if listing is None:
        return "zip"
    ours = b'"sims"' in ZipIndex(request.path, [listing], argument=request.argument).read(0)
    return "dataset" if ours else "zip"
