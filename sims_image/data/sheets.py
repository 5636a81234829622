"""Contact sheets: images as one PNG, drawn from fixed seeds so that sheets of a run compare."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sims_core.lab.runs import write_atomic
from sims_core.seeds import Seed

_GAP = 1
_ABOUT = 720  # pixels of a sheet's width, for small images


def contact_sheet(images: NDArray[np.uint8], columns: int) -> Image.Image:
    """Images (N, C, H, W), grey or RGB, in rows of ``columns``; small ones are enlarged by a whole factor."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + _GAP) + _GAP, (i % columns) * (width + _GAP) + _GAP
        sheet[y : y + height, x : x + width] = image.transpose(1, 2, 0)
    picture = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    factor = max(1, _ABOUT // sheet.shape[1])
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def sheet_png(images: NDArray[np.uint8], columns: int) -> bytes:
    """`contact_sheet` as a PNG."""
    made = BytesIO()
    contact_sheet(images, columns).save(made, format="png")
    return made.getvalue()


def write_sheet(path: Path, images: NDArray[np.uint8], columns: int) -> None:
    """Write `contact_sheet` as a PNG, whole or not at all."""
    content = sheet_png(images, columns)
    write_atomic(path, lambda temporary: temporary.write_bytes(content))


def sheet_labels(rows: int, label_dim: int, seed: Seed) -> tuple[int, NDArray[np.int64]]:
    """(columns, the class of each sample) of a sheet: a column per class for up to 12 classes, else drawn at random."""
    columns = label_dim if 1 < label_dim <= 12 else rows
    if label_dim <= 12:
        return columns, np.arange(rows * columns) % columns
    return columns, seed.child("classes").numpy().integers(label_dim, size=rows * columns)
