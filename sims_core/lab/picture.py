"""A matplotlib figure that no backend knows."""

from __future__ import annotations

import io

from matplotlib.figure import Figure


class Picture(Figure):
    """A figure that a notebook shows as a PNG, whatever its backend is; one without a screen will do."""

    def _repr_png_(self) -> bytes:
        written = io.BytesIO()
        self.savefig(written, format="png", dpi=self.dpi)
        return written.getvalue()
