"""The phase diagram of a sweep: regimes over omega and |D_s|, with the boundaries of linear response."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from sims_core.lab.style import REGIME, footnote, save, style, subplots
from sims_toy.sweep.figures import LABEL, UNGUIDED
from sims_toy.theory import TOLERANCE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Boundaries by their regime: the look of the line and its name.
_EDGE: dict[str, tuple[Any, float, str]] = {
    "prevention": ("-", 2.0, "theory: prevention"),
    "strong": ((0, (6, 2)), 1.6, "theory: strong mitigation"),
    "weak": ((0, (5, 1.5, 1, 1.5)), 1.2, "theory: weak mitigation"),
    "finite": ((0, (1, 1)), 0.9, "theory: the loop diverges"),
    "optimum": (":", 1.8, r"theory: best $\omega$"),
}
#: How much of a row's height its bar fills, and the levels of d_T / d_1(0) that are drawn.
_FILL = 0.8
#: More sizes than this have one line of numbers each.
_DENSE = 5
#: The colour of sizes at which standard training drifts by less than the tolerance, so that no regime says anything.
_IDLE = "#efe9dc"
_LEVELS = (0.85, 0.9, 0.95, 1.0, 1.05, 1.25, 1.5)


def phase_diagram(
    regimes: pd.DataFrame, boundaries: pd.DataFrame, stem: Path, *, reading: str, caption: str, bias: str = ""
) -> list[Path]:
    """Regimes over omega and |D_s| as filled bars, the closed-form boundaries and the measured best drawn over them.

    regimes: with the rows of the controls, whose d_T / d_1(0) stand at the right. bias: the form of the estimator whose
    number, column ``bias`` of both tables, stands in place of |D_s|, of which there is one.
    """
    over = "bias" if bias else "synthetic_size"
    part = regimes[(regimes["auxiliary_data"] == reading) & ~regimes["method"].isin(UNGUIDED)]
    omegas, sizes = (np.array(sorted(part[c].unique()), dtype=float) for c in ("omega", over))
    log = bool(sizes[0] > 0)
    x, y = _edges(omegas), np.exp(_edges(np.log(sizes))) if log else _edges(sizes)
    with style():
        figure, axis = subplots(figsize=(7.4, 4.9))
        standard = part[part["omega"] == 0].set_index(over)["standard"]
        idle = {size: bool(standard.get(size, np.inf) <= TOLERANCE) for size in sizes}
        for cell in part.to_dict("records"):
            i, j = np.searchsorted(omegas, cell["omega"]), np.searchsorted(sizes, cell[over])
            low, high = (_toward(sizes[j], y[k], log=log) for k in (j, j + 1))  # a bar per size, with gaps
            box = {"xy": (x[i], low), "width": x[i + 1] - x[i], "height": high - low, "lw": 0}
            names = str(cell["candidates"]).split(" or ")
            first, last = (REGIME.get(n.split(" ")[0], REGIME["undecided"]) for n in (names[0], names[-1]))
            if idle[cell[over]]:  # standard training itself does not drift beyond the tolerance
                axis.add_patch(Rectangle(**box, facecolor=_IDLE))
                continue
            axis.add_patch(Rectangle(**box, facecolor=last))
            if cell["regime"] == "undecided":
                axis.add_patch(Rectangle(**box, facecolor="none", edgecolor=first, hatch="////"))
        axis.set_xlim(x[0], x[-1])
        axis.set_ylim(y[0], y[-1])
        axis.set_yscale("log" if log else "linear")
        axis.set_yticks(sizes, [f"{s:g}" for s in sizes])
        axis.minorticks_off()
        edges = _boundaries(axis, boundaries[boundaries["auxiliary_data"] == reading], over)
        edges.append(_measured(axis, part, omegas, sizes, over))
        handles: list[Any] = [Patch(facecolor=REGIME[n], label=LABEL.get(n, n)) for n in REGIME if n != "undecided"]
        handles.append(Patch(facecolor="white", edgecolor="#888888", hatch="////", label="undecided (both colours)"))
        if any(idle.values()):
            handles.append(Patch(facecolor=_IDLE, label="nothing to prevent"))
        handles += edges
        figure.legend(handles=handles, loc="outside upper left", ncols=3, handlelength=3)
        axis.grid(visible=False)
        axis.set_xlabel(r"guidance $\omega$")
        axis.set_ylabel(f"bias of the estimator, {bias}" if bias else r"synthetic samples per generation, $|D_s|$")
        _beside(axis, part, regimes, sizes, over)
        footnote(figure, caption, 128)
        return save(figure, stem)


def _toward(centre: float, edge: float, *, log: bool) -> float:
    """The end of a bar around ``centre`` that fills `_FILL` of the way to the cell's edge."""
    return float(centre ** (1 - _FILL) * edge**_FILL if log else centre + _FILL * (edge - centre))


def _boundaries(axis: Axes, mine: pd.DataFrame, over: str) -> list[Line2D]:
    """Draw the boundaries, each kind in its own dashes; returns a legend's handles of those that can be seen."""
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
                axis.plot(edge, piece[over], color="black", lw=width, ls=dash)
                seen |= bool((edge.between(left, right) & piece[over].between(low, high)).any())
        if seen:
            handles.append(Line2D([], [], color="black", lw=width, ls=dash, label=name))
    return handles


def _measured(axis: Axes, part: pd.DataFrame, omegas: np.ndarray, sizes: np.ndarray, over: str) -> Line2D:
    """Marks at the measured best omega of each size, and level lines of d_T / d_1(0) between the sizes."""
    grid = part.pivot_table("standard", over, "omega", aggfunc="min").reindex(sizes, columns=omegas)
    found = np.ma.masked_invalid(grid.to_numpy(dtype=float))
    if min(found.shape) > 1:
        lines = axis.contour(omegas, sizes, found, levels=_LEVELS, colors="white", linewidths=0.8)
        axis.clabel(lines, fontsize=6.5, fmt="%g")
    best = [omegas[int(np.argmin(row))] for row in found.filled(np.inf)]
    look: dict[str, Any] = {"marker": "o", "ms": 6, "color": "white", "mec": "black", "ls": ""}
    axis.plot(best, sizes, **look, zorder=6)
    return Line2D([], [], **look, label=r"measured best $\omega$")


def _beside(axis: Axes, part: pd.DataFrame, regimes: pd.DataFrame, sizes: np.ndarray, over: str) -> None:
    """On the right of each size: |D_s| as a share of |D_r|, and d_T / d_1(0) at the best omega and of the controls."""
    real = part["real_size"].unique()
    shown = {"SIMS": part, **{n: regimes[regimes["method"] == n] for n in ("equal-cost", "retuned")}}
    least = {name: rows.groupby(over)["standard"].min() for name, rows in shown.items() if len(rows)}
    right = axis.twinx()
    right.set_yscale(axis.get_yscale())
    right.set_ylim(axis.get_ylim())
    alone = len(real) == 1 and over == "synthetic_size"
    share = [rf"$\lambda$ = {size / real[0]:.3g}" if alone else "" for size in sizes]
    dense = len(sizes) > _DENSE  # then one line per size, whose order stands at the axis
    names = [("" if dense else f"{name} ", rows) for name, rows in least.items()]
    numbers = [(", " if dense else "\n").join(f"{name}{rows[size]:.2f}" for name, rows in names) for size in sizes]
    told = ": " if dense else "\n"
    right.set_yticks(
        sizes, [f"{a}{told}{b}".removeprefix(told) for a, b in zip(share, numbers, strict=True)], fontsize=7
    )
    right.minorticks_off()
    right.grid(visible=False)
    order = f": {', '.join(least)}" if dense else ""
    left = r"$\lambda = |D_s|\,/\,|D_r|$, and " if over == "synthetic_size" else ""
    right.set_ylabel(rf"{left}$d_T\,/\,d_1(0)$ at its least{order}", fontsize=8)


def _edges(centres: np.ndarray) -> np.ndarray:
    """Cell edges half-way between centres; a single centre gets a cell of width 1 (or a factor e)."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[:-1] + centres[1:]) / 2
    return np.concatenate([[centres[0] * 2 - middle[0]], middle, [centres[-1] * 2 - middle[-1]]])
