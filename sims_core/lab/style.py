"""One look for every figure: the same colour for the same thing everywhere, safe for colour-blind readers."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sims_core.lab.runs import write_atomic

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Regimes of the phase diagram: the paper's green, orange and purple, told apart by lightness as well.
REGIME = {
    "prevention": "#7b4fa3",
    "strong": "#f0a030",
    "weak": "#9fd08c",
    "MAD": "#c9c9c9",
    "divergent": "#4d4d4d",
    "undecided": "#ffffff",
}


class _Colours(dict[str, str]):
    """Colours by name; a method from outside is drawn in black."""

    def __missing__(self, name: str) -> str:
        return "#000000"


#: Methods (Okabe-Ito; a red and a brown in place of its oranges, which are a regime's).
METHOD = _Colours(
    {
        "standard": "#4d4d4d",
        "equal-cost": "#b2182b",
        "retuned": "#e07b91",
        "sims": "#0072b2",
        "neon": "#009e73",
        "autoguidance": "#cc79a7",
        "continued": "#8c6d31",
        "random": "#999999",
        "rebuilt": "#56b4e9",
        "auxiliary": "#882255",
        "real": "#000000",
    }
)
#: An ordered family of curves, light to dark.
SEQUENCE = ("#a6cbe3", "#5a9bc9", "#2467a4", "#0b2f5f")
#: What stands outside an ordered family, such as a loop without real data.
OUTSIDE = "#d55e00"
#: Kinds without an order.
KINDS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")

_RC = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "lines.linewidth": 1.5,
    "svg.hashsalt": "sims",
    "figure.constrained_layout.use": True,
}


@contextmanager
def style() -> Iterator[None]:
    """The project's matplotlib settings; the reader's own, and the backend, stand again afterwards."""
    import matplotlib

    with matplotlib.rc_context(_RC):  # type: ignore[arg-type]
        yield


def subplots(rows: int = 1, columns: int = 1, *, figsize: tuple[float, float], **options: Any) -> tuple[Figure, Any]:
    """As `matplotlib.pyplot.subplots`, of a figure of its own: pyplot and the reader's backend never hear of it.

    A notebook shows the figure as a picture. To be called within `style`.
    """
    from sims_core.lab.picture import Picture

    figure = Picture(figsize=figsize)
    return figure, figure.subplots(rows, columns, **options)


def panels(count: int, *, height: float = 0.6) -> tuple[Figure, Any]:
    """A figure of ``count`` panels, two a row, of one vertical axis; (figure, axes (rows, columns)), the rest empty.

    height: what is left below for the caption, in inches. To be called within `style`.
    """
    columns = min(2, count)
    rows = -(-count // columns)
    size = (4.1 * columns + 0.4, 3.1 * rows + height)
    figure, axes = subplots(rows, columns, figsize=size, squeeze=False, sharey=True)
    for axis in axes.flat[count:]:
        axis.set_axis_off()
    return figure, axes


def footnote(figure: Figure, text: str, width: int, *, size: float = 7) -> None:
    """Put what a figure was made with below its panels, from its left edge, in lines of ``width`` letters."""
    figure.supxlabel(textwrap.fill(text, width), fontsize=size, ha="left", x=0.01)


def band(axis: Axes, table: pd.DataFrame, x: str, y: str, *, color: str, alpha: float = 0.2, **line: Any) -> None:
    """The curve of column ``y`` over column ``x`` and its interval, columns ``{y}_low`` and ``{y}_high``, as a band.

    alpha: the band's opacity; line: what `Axes.plot` takes. An interval that is known nowhere is left out.
    """
    low, high = table[f"{y}_low"], table[f"{y}_high"]
    if bool(low.notna().any()):
        axis.fill_between(table[x], low, high, color=color, alpha=alpha, lw=0)
    axis.plot(table[x], table[y], color=color, **line)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The places, in their order, moved as little as possible until neighbours are at least ``gap`` apart.

    Least squares under that constraint: labels that would cover one another are pushed both ways.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    blocks: list[list[float]] = []  # means and sizes of pooled neighbours, the gaps taken out
    for rank, i in enumerate(order):
        blocks.append([places[i] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (mean, n), (other, m) = blocks.pop(), blocks.pop()
            blocks.append([(mean * n + other * m) / (n + m), n + m])
    pooled = [mean for mean, n in blocks for _ in range(int(n))]
    found = [0.0] * len(places)
    for rank, i in enumerate(order):
        found[i] = pooled[rank] + rank * gap
    return found


def sequence(count: int) -> list[str]:
    """``count`` colours from light to dark."""
    from matplotlib.colors import LinearSegmentedColormap, to_hex

    ramp = LinearSegmentedColormap.from_list("sims", SEQUENCE)
    return [to_hex(ramp(i / max(1, count - 1))) for i in range(count)] if count > 1 else [SEQUENCE[2]]


#: names of the files that `save` writes; all where it is None
_ASKED: ContextVar[Collection[str] | None] = ContextVar("asked", default=None)


@contextmanager
def only(names: Collection[str]) -> Iterator[None]:
    """Let `save` write no files but these: rendering is most of the time that a figure takes."""
    token = _ASKED.set(names)
    try:
        yield
    finally:
        _ASKED.reset(token)


def save(figure: Figure, stem: Path) -> list[Path]:
    """Write ``stem.png`` and ``stem.svg`` atomically, without dates: equal figures are equal files. See `only`."""
    import matplotlib

    asked = _ASKED.get()
    paths = [stem.with_suffix(end) for end in (".png", ".svg") if asked is None or f"{stem.name}{end}" in asked]
    for path in paths:
        metadata = {"Date": None} if path.suffix == ".svg" else None
        with matplotlib.rc_context({"svg.hashsalt": _RC["svg.hashsalt"]}):  # else its ids are drawn anew
            write_atomic(path, lambda temporary, m=metadata: figure.savefig(temporary, metadata=m))  # type: ignore[misc]
    return paths
