"""The phase diagram of a sweep: regimes over omega and |D_s|, with the boundaries of linear response."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sims_core.style import REGIME, save, style
from sims_toy.figures import LABEL, UNGUIDED

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

#: Boundaries by their regime: the look of the line and its name.
_EDGE: dict[str, tuple[Any, float, str]] = {
    "prevention": ("-", 2.0, "theory: prevention"),
    "strong": ((0, (6, 2)), 1.6, "theory: strong mitigation"),
    "weak": ((0, (5, 1.5, 1, 1.5)), 1.2, "theory: weak mitigation"),
    "finite": ((0, (1, 1)), 0.9, "theory: the loop diverges"),
    "optimum": (":", 1.8, r"theory: best $\omega$"),
}


def phase_diagram(
    regimes: pd.DataFrame, boundaries: pd.DataFrame, stem: Path, *, reading: str, caption: str
) -> list[Path]:
    """Regimes over omega and |D_s| as filled areas, the closed-form boundaries drawn over them."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch, Rectangle

    part = regimes[(regimes["auxiliary_data"] == reading) & ~regimes["method"].isin(UNGUIDED)]
    omegas, sizes = (np.array(sorted(part[c].unique()), dtype=float) for c in ("omega", "synthetic_size"))
    x, y = _edges(omegas), np.exp(_edges(np.log(sizes)))
    with style():
        figure, axis = plt.subplots(figsize=(6.4, 4.9))
        for _, cell in part.iterrows():
            i, j = np.searchsorted(omegas, cell["omega"]), np.searchsorted(sizes, cell["synthetic_size"])
            box = {"xy": (x[i], y[j]), "width": x[i + 1] - x[i], "height": y[j + 1] - y[j], "lw": 0}
            names = str(cell["candidates"]).split(" or ")
            first, last = (REGIME.get(n.split(" ")[0], REGIME["undecided"]) for n in (names[0], names[-1]))
            axis.add_patch(Rectangle(**box, facecolor=last))
            if cell["regime"] == "undecided":
                axis.add_patch(Rectangle(**box, facecolor="none", edgecolor=first, hatch="////"))
        axis.set_xlim(x[0], x[-1])
        axis.set_ylim(y[0], y[-1])
        axis.set_yscale("log")
        axis.set_yticks(sizes, [f"{s:g}" for s in sizes])
        axis.minorticks_off()
        edges = _boundaries(axis, boundaries[boundaries["auxiliary_data"] == reading])
        handles: list[Any] = [Patch(facecolor=REGIME[n], label=LABEL.get(n, n)) for n in REGIME if n != "undecided"]
        handles.append(Patch(facecolor="white", edgecolor="#888888", hatch="////", label="undecided (both colours)"))
        handles += edges
        figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=3)
        axis.grid(visible=False)
        axis.set_xlabel(r"guidance $\omega$")
        axis.set_ylabel(r"synthetic samples a generation, $|D_s|$")
        _ratios(axis, sizes, part["real_size"].unique())
        figure.supxlabel(textwrap.fill(caption, 112), fontsize=7, ha="left", x=0.01)
        return save(figure, stem)


def _boundaries(axis: Axes, mine: pd.DataFrame) -> list[Line2D]:
    """Draw the boundaries, each kind in its own dashes; returns a legend's handles of those that can be seen."""
    from matplotlib.lines import Line2D

    top = mine["omega_high"].max()  # where the search for boundaries ended: no boundary itself
    (left, right), (low, high) = axis.get_xlim(), axis.get_ylim()
    handles = []
    for regime, (dash, width, name) in _EDGE.items():
        part, seen = mine[mine["regime"] == regime], False
        for side in ("omega_low", "omega_high") if regime != "optimum" else ("omega_low",):
            for _, piece in part.groupby("piece"):
                edge = piece[side]
                if regime != "optimum":
                    edge = edge.where((edge > 0) & (edge < 0.999 * top))
                axis.plot(edge, piece["synthetic_size"], color="black", lw=width, ls=dash)
                seen |= bool((edge.between(left, right) & piece["synthetic_size"].between(low, high)).any())
        if seen:
            handles.append(Line2D([], [], color="black", lw=width, ls=dash, label=name))
    return handles


def _ratios(axis: Axes, sizes: np.ndarray, real: np.ndarray) -> None:
    """A second axis on the right: |D_s| as a share of |D_r|, where that is one number."""
    if len(real) != 1:
        return
    right = axis.twinx()
    right.set_yscale("log")
    right.set_ylim(axis.get_ylim())
    right.set_yticks(sizes, [f"{size / real[0]:.3g}" for size in sizes])
    right.minorticks_off()
    right.grid(visible=False)
    right.set_ylabel(r"$\lambda = |D_s|\,/\,|D_r|$")


def _edges(centres: np.ndarray) -> np.ndarray:
    """Cell edges half-way between centres; a single centre gets a cell of width 1 (or a factor e)."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[:-1] + centres[1:]) / 2
    return np.concatenate([[centres[0] * 2 - middle[0]], middle, [centres[-1] * 2 - middle[-1]]])
