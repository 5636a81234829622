"""Figures of the sweep, drawn from its tables only, and score fields of single models."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sims_core.style import METHOD, REGIME, band, panels, save, sequence, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from sims_core.guidance import Denoiser

_UNGUIDED = ["standard", "equal-cost", "continued"]
_LABEL = {"prevention": "prevention", "strong": "strong mitigation", "weak": "weak mitigation"}


def figure4(
    sweep: pd.DataFrame,
    regimes: pd.DataFrame,
    theory: pd.DataFrame,
    stem: Path,
    *,
    reading: str,
    caption: str,
    beneath: pd.DataFrame | None = None,
) -> list[Path]:
    """The four panels of the paper's Figure 4 for one auxiliary reading, and a row for the other readings, if any.

    sweep, regimes, theory: the tables of one facet (one value on every axis but omega, |D_s| and the reading), with
    the controls' rows. beneath: the exact learner's regimes, drawn as thin lines in place of the theory's dashes.
    Returns the paths written: stem.png and stem.svg.
    """
    import matplotlib.pyplot as plt

    others = [r for r in regimes["auxiliary_data"].unique() if r not in ("none", reading)]
    main = regimes[(regimes["auxiliary_data"] == reading) & ~regimes["method"].isin(_UNGUIDED)]
    sizes = sorted(main["synthetic_size"].unique())
    colours = dict(zip(sizes, sequence(len(sizes)), strict=True))
    rows = 2 + bool(others)
    with style():
        figure, axes = plt.subplots(rows, 2, figsize=(7.4, 2.75 * rows + 0.6))
        under = _beneath(theory, beneath, reading)
        _first_generation(axes[0, 0], main, regimes, under, colours)
        _converged(axes[0, 1], main, regimes, under, colours)
        axes[0, 1].set_title(f"At convergence, auxiliary on {reading}")
        shown = [s for s in (250, 125) if s in sizes]  # the paper's two, else the largest
        panels = [*shown, *(s for s in sizes[::-1] if s not in shown)][:2]
        for axis, size in zip(axes[1], [*panels, None], strict=False):
            if size is None:
                axis.set_axis_off()
            else:
                _over_generations(axis, sweep[(sweep["auxiliary_data"] == reading)], main, size)
        for axis, other in zip(axes[2] if others else [], [*others[:2], None], strict=False):
            if other is None:
                axis.set_axis_off()
                continue
            part = regimes[(regimes["auxiliary_data"] == other) & ~regimes["method"].isin(_UNGUIDED)]
            _converged(axis, part, regimes, _beneath(theory, beneath, other), colours)
            axis.set_title(f"At convergence, auxiliary on {other}")
        figure.supxlabel(textwrap.fill(caption, 128), fontsize=7, ha="left", x=0.01)
        return save(figure, stem)


def _beneath(theory: pd.DataFrame, exact: pd.DataFrame | None, reading: str) -> pd.DataFrame:
    """Columns synthetic_size, omega, under_first, under_limit (nan where infinite) of what is drawn beneath."""
    if exact is not None:
        under = exact[exact["auxiliary_data"] == reading].sort_values("omega")
        under = under.rename(columns={"first": "under_first", "standard": "under_limit"})
    else:
        mine = theory[theory["auxiliary_data"] == reading]
        first = mine[mine["generation"] == "1"].rename(columns={"w2_rms": "under_first"})
        limit = mine[mine["generation"] == "limit"]
        ratio = (limit["w2_rms"] / limit["w2_rms_standard_first"]).to_numpy(dtype=float)
        under = first.assign(under_limit=ratio)
    under = under[["synthetic_size", "omega", "under_first", "under_limit"]].replace(np.inf, np.nan)
    under.attrs["style"] = "--" if exact is None else "-"
    return under


def _first_generation(
    axis: Axes, main: pd.DataFrame, regimes: pd.DataFrame, under: pd.DataFrame, colours: dict[Any, str]
) -> None:
    for size, colour in colours.items():
        part = main[(main["synthetic_size"] == size) & np.isfinite(main["first"])].sort_values("omega")
        band(axis, part, "omega", "first", color=colour, alpha=0.3)
        _label_end(axis, part["omega"], part["first"], f"{size:g}", colour)
        curve = under[under["synthetic_size"] == size]
        axis.plot(curve["omega"], curve["under_first"], color=colour, lw=0.8, ls=under.attrs["style"])
    control = regimes[(regimes["method"] == "equal-cost") & np.isfinite(regimes["first"])]
    if len(control):
        axis.axhline(control["first"].iloc[0], color=METHOD["equal-cost"], lw=1, ls=":")
        axis.annotate(
            f"standard, {control['sampler'].iloc[0]} (equal cost)",
            (0.98, control["first"].iloc[0]),
            xycoords=("axes fraction", "data"),
            xytext=(0, -2),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=7,
            color=METHOD["equal-cost"],
        )
    axis.set_title("First generation, by $|D_s|$")
    axis.set_xlabel(r"guidance $\omega$")
    axis.set_ylabel(r"$E[W_2(G^1, p_r)]$")
    axis.set_ylim(0, None)


def _converged(
    axis: Axes, part: pd.DataFrame, regimes: pd.DataFrame, under: pd.DataFrame, colours: dict[Any, str]
) -> None:
    top = 2.2
    ends: list[tuple[float, str, str]] = []
    for size, colour in colours.items():
        mine = part[(part["synthetic_size"] == size) & np.isfinite(part["standard"])].sort_values("omega")
        if mine.empty:
            continue
        band(axis, mine, "omega", "standard", color=colour, alpha=0.3)
        inside = mine[mine["standard"] < top]
        if len(inside) == len(mine):
            ends.append((float(mine["standard"].iloc[-1]), f"{size:g}", colour))
        curve = under[under["synthetic_size"] == size]
        axis.plot(curve["omega"], curve["under_limit"], color=colour, lw=0.8, ls=under.attrs["style"])
        control = regimes[(regimes["method"] == "equal-cost") & (regimes["synthetic_size"] == size)]
        for value in control["standard"][np.isfinite(control["standard"])]:
            axis.annotate(
                f"◂{size:g}",
                (0.0, value),
                xycoords=("axes fraction", "data"),
                xytext=(1, 0),
                fontsize=6.5,
                textcoords="offset points",
                va="center",
                color=METHOD["equal-cost"],
            )
    axis.axhline(1.05, color="#888888", lw=0.7)
    axis.set_xlabel(r"guidance $\omega$")
    axis.set_ylabel(r"$d_T(\omega)\,/\,d_1(0)$")
    axis.set_ylim(0.4, top)
    _stack_labels(axis, ends, 0.09)


def _over_generations(axis: Axes, sweep: pd.DataFrame, main: pd.DataFrame, size: float) -> None:
    part = main[main["synthetic_size"] == size].sort_values("omega")
    keep = part.iloc[np.unique(np.linspace(0, len(part) - 1, min(len(part), 8)).round().astype(int))]
    ends: list[tuple[float, str, str]] = []
    for _, cell in keep.iterrows():
        curve = sweep[(sweep["synthetic_size"] == size) & (sweep["omega"] == cell["omega"])]
        curve = curve[np.isfinite(curve["ratio_own"])].sort_values("generation")
        colour = REGIME.get(str(cell["candidates"]).split(" or ")[-1].split(" ")[0], METHOD["sims"])
        axis.plot(
            curve["generation"],
            curve["ratio_own"],
            color=colour,
            lw=1.3,
            ls="--" if cell["regime"] == "undecided" else "-",
        )
        if len(curve):
            ends.append((float(curve["ratio_own"].iloc[-5:].mean()), rf"$\omega$={cell['omega']:g}", "black"))
    axis.axhline(1.05, color="#888888", lw=0.7)
    axis.set_title(rf"Over generations, $|D_s|$ = {size:g}")
    axis.set_xlabel("generation $t$")
    axis.set_ylabel(r"$d_t(\omega)\,/\,d_1(\omega)$")
    low, high = axis.get_ylim()
    _stack_labels(axis, ends, (high - low) * 0.055)


def _label_end(axis: Axes, x: pd.Series, y: pd.Series, text: str, colour: str) -> None:
    if len(x):
        axis.annotate(
            text,
            (x.iloc[-1], y.iloc[-1]),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7,
            color=colour,
            annotation_clip=False,
        )


def _stack_labels(axis: Axes, ends: list[tuple[float, str, str]], gap: float) -> None:
    """Write (height, text, colour) labels at the right edge, pushed apart so that they can be read."""
    height = -np.inf
    for value, text, colour in sorted(ends):
        height = max(value, height + gap)
        axis.annotate(
            text,
            (1.0, height),
            xycoords=("axes fraction", "data"),
            xytext=(3, 0),
            color=colour,
            textcoords="offset points",
            va="center",
            fontsize=6.5,
            annotation_clip=False,
        )


def phase_diagram(
    regimes: pd.DataFrame, boundaries: pd.DataFrame, stem: Path, *, reading: str, caption: str
) -> list[Path]:
    """Regimes over omega and |D_s| as filled areas, the closed-form boundaries drawn over them."""
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch, Rectangle

    part = regimes[(regimes["auxiliary_data"] == reading) & ~regimes["method"].isin(_UNGUIDED)]
    omegas, sizes = (np.array(sorted(part[c].unique()), dtype=float) for c in ("omega", "synthetic_size"))
    x, y = _edges(omegas), np.exp(_edges(np.log(sizes)))
    with style():
        figure, axis = plt.subplots(figsize=(6.4, 4.3))
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
        mine = boundaries[boundaries["auxiliary_data"] == reading]
        top = mine["omega_high"].max()  # where the search for boundaries ended: no boundary itself
        for regime, width in (("prevention", 2.0), ("strong", 1.2), ("weak", 0.8), ("finite", 1.2)):
            for side in ("omega_low", "omega_high"):
                for _, piece in mine[mine["regime"] == regime].groupby("piece"):
                    edge = piece[side].where((piece[side] > 0) & (piece[side] < 0.999 * top))
                    axis.plot(edge, piece["synthetic_size"], color="black", lw=width)
        best = mine[mine["regime"] == "optimum"]
        axis.plot(best["omega_low"], best["synthetic_size"], color="black", ls=":", lw=1.5)
        handles = [Patch(facecolor=REGIME[n], label=_LABEL.get(n, n)) for n in REGIME if n != "undecided"]
        handles.append(Patch(facecolor="white", edgecolor="#888888", hatch="////", label="undecided (both colours)"))
        figure.legend(handles=handles, loc="outside upper left", ncols=3)
        axis.grid(visible=False)
        axis.set_xlabel(r"guidance $\omega$")
        axis.set_ylabel(r"synthetic samples a generation, $|D_s|$")
        figure.supxlabel(textwrap.fill(caption, 112), fontsize=7, ha="left", x=0.01)
        return save(figure, stem)


def _edges(centres: np.ndarray) -> np.ndarray:
    """Cell edges half-way between centres; a single centre gets a cell of width 1 (or a factor e)."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[:-1] + centres[1:]) / 2
    return np.concatenate([[centres[0] * 2 - middle[0]], middle, [centres[-1] * 2 - middle[-1]]])


def comparison(regimes: pd.DataFrame, stem: Path, *, caption: str) -> list[Path]:
    """Methods side by side in one loop: d_T / d_1(0) against each one's own strength, its best marked with its cost.

    regimes: rows of one loop, sampler and |D_r|; one panel for each |D_s|. Lines across: methods without a strength.
    """
    sizes = sorted(regimes["synthetic_size"].unique())
    with style():
        figure, axes = panels(len(sizes))
        for axis, size in zip(axes.flat, sizes, strict=False):
            here = regimes[regimes["synthetic_size"] == size]
            for method in dict.fromkeys(here["method"]):
                part = here[(here["method"] == method) & np.isfinite(here["standard"])].sort_values("omega")
                if part.empty:
                    continue
                colour, best = METHOD.get(method, "#000000"), part.loc[part["standard"].idxmin()]
                cost = f"{best['standard']:.2f}, {best['nfe']} NFE"
                if method in _UNGUIDED:
                    axis.axhline(best["standard"], color=colour, ls=":", lw=1.2, label=f"{method}: {cost}")
                    continue
                label = rf"{method}: {cost} at $\omega$ = {best['omega']:g}"
                band(axis, part, "omega", "standard", color=colour, label=label)
                axis.plot(best["omega"], best["standard"], "o", color=colour, ms=4)
            axis.axhline(1.05, color="#888888", lw=0.7)
            axis.set(title=f"$|D_s|$ = {size:g}", xlabel=r"strength $\omega$", ylim=(0.4, 2.2))
            axis.legend(fontsize=6.5, loc="upper center")
        for axis in axes[:, 0]:
            axis.set_ylabel(r"$d_T(\omega)\,/\,d_1(0)$")
        figure.supxlabel(textwrap.fill(caption, 64 * axes.shape[1]), fontsize=7, ha="left", x=0.01)
        return save(figure, stem)


def score_fields(
    models: Mapping[str, Denoiser],
    samples: Mapping[str, np.ndarray],
    stem: Path,
    *,
    sigma: float = 0.5,
    extent: float = 4.0,
    caption: str = "",
) -> list[Path]:
    """The score field of each two-dimensional model as arrows, the first model's in grey and its samples beneath.

    models: name -> denoiser D(x, sigma) on x (1, n, 2). samples: name -> points (n, 2), of any of the names.
    sigma: the noise level shown. extent: half the side of the square shown. Returns the paths written.
    """
    import matplotlib.pyplot as plt
    import torch

    ticks = np.linspace(-extent, extent, 15)
    grid = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    level = torch.tensor(sigma, dtype=torch.float64)
    first: np.ndarray | None = None
    with style():
        figure, axes = plt.subplots(1, len(models), figsize=(3.1 * len(models), 3.4), squeeze=False)
        for axis, (name, denoiser) in zip(axes[0], models.items(), strict=True):
            points = torch.from_numpy(grid)[None]
            score = ((denoiser(points, level) - points) / sigma**2)[0].numpy()
            colour = METHOD.get(name, METHOD["standard"] if first is None else METHOD["sims"])
            if name in samples:
                axis.scatter(*samples[name].T, s=4, color=colour, alpha=0.35, lw=0)
            arrows: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 7, "width": 0.005}
            if first is not None:
                axis.quiver(*grid.T, *first.T, color="#bbbbbb", **arrows)
            axis.quiver(*grid.T, *score.T, color=colour, **arrows)
            first = score if first is None else first
            axis.set(title=name, xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
        if caption:
            figure.supxlabel(textwrap.fill(caption, 46 * len(models)), fontsize=7, ha="left", x=0.01)
        return save(figure, stem)


def loops(sweep: pd.DataFrame, stem: Path, *, caption: str) -> list[Path]:
    """Standard training alone: the distance over generations, one line a loop, sampler and size."""
    import matplotlib.pyplot as plt

    keys = ["loop", "sampler", "real_size", "synthetic_size"]
    cells = list(sweep.groupby(keys, sort=False))
    with style():
        figure, axis = plt.subplots(figsize=(6.0, 3.8))
        ends: list[tuple[float, str, str]] = []
        for ((loop, sampler, _, size), part), colour in zip(cells, sequence(len(cells)), strict=True):
            curve = part[np.isfinite(part["w2_mean"])]
            if curve.empty:
                continue
            axis.fill_between(curve["generation"], curve["w2_low"], curve["w2_high"], color=colour, alpha=0.3, lw=0)
            axis.plot(curve["generation"], curve["w2_mean"], color=colour)
            ends.append((float(curve["w2_mean"].iloc[-1]), f"{loop}, {sampler}, {size:g}", colour))
        low, high = axis.get_ylim()
        _stack_labels(axis, ends, (high - low) * 0.045)
        axis.set(title="Standard training", xlabel="generation $t$", ylabel=r"$E[W_2(G^t, p_r)]$")
        figure.supxlabel(textwrap.fill(caption, 104), fontsize=7, ha="left", x=0.01)
        return save(figure, stem)
