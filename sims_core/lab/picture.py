"""A matplotlib figure that no backend knows."""

from __future__ import annotations

import io
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import NDArray


class Picture(Figure):
    """A figure that a notebook shows as a PNG, whatever its backend is; one without a screen will do."""

    def _repr_png_(self) -> bytes:
        written = io.BytesIO()
        self.savefig(written, format="png", dpi=self.dpi)
        return written.getvalue()


def png(pixels: NDArray[Any]) -> bytes:
    """Colours (height, width, 3), uint8, as a PNG."""
    from PIL import Image

    written = io.BytesIO()
    Image.fromarray(pixels).save(written, "png", optimize=True)
    return written.getvalue()
