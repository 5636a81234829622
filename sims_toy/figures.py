"""Figures of the sweep, drawn from its tables only, and score fields of single models."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sims_core.style import METHOD, REGIME, band, save, sequence, spread, style

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from sims_core.guidance import Denoiser

#: Methods without a strength.
UNGUIDED = ["standard", "equal-cost", "continued"]
#: The look of what lies beneath, and the equal-cost control's mark.
_UNDER = {"linear response": "--", "exact learner": "-"}
_CONTROL = "D"
#: What a regime is called where its short name would not do.
LABEL = {"strong": "strong mitigation", "weak": "weak mitigation"}


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
    main = regimes[(regimes["auxiliary_data"] == reading) & ~regimes["method"].isin(UNGUIDED)]
    sizes = sorted(main["synthetic_size"].unique())
    colours = dict(zip(sizes, sequence(len(sizes)), strict=True))
    rows = 2 + bool(others)
    with style():
        figure, axes = plt.subplots(rows, 2, figsize=(7.4, 2.75 * rows + 1.2))
        under = _beneath(theory, beneath, reading)
        _first_generation(axes[0, 0], main, regimes, under, colours)
        _converged(axes[0, 1], main, regimes, under, colours, reading)
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
            part = regimes[(regimes["auxiliary_data"] == other) & ~regimes["method"].isin(UNGUIDED)]
            _converged(axis, part, regimes, _beneath(theory, beneath, other), colours, other)
        control = len(regimes[regimes["method"] == "equal-cost"]) > 0
        handles = _handles("exact learner" if beneath is not None else "linear response", control=control)
        figure.legend(handles=handles, loc="outside upper left", ncols=4, fontsize=7)
        figure.supxlabel(textwrap.fill(caption, 128), fontsize=7, ha="left", x=0.01)
        return save(figure, stem)


def _handles(under: str, *, control: bool) -> list[Line2D]:
    """The legend: regimes (the panels over generations), undecided cells, what is drawn beneath, the control."""
    from matplotlib.lines import Line2D

    names = [name for name in REGIME if name != "undecided"]
    found = [Line2D([], [], color=REGIME[name], lw=2.5, label=LABEL.get(name, name)) for name in names]
    found.append(Line2D([], [], color="black", lw=1.3, ls="--", label="undecided (the worse's colour)"))
    found.append(Line2D([], [], color=sequence(1)[0], lw=0.8, ls=_UNDER[under], label=under))
    if control:
        look: dict[str, Any] = {"color": METHOD["equal-cost"], "lw": 1, "ls": ":", "marker": _CONTROL, "ms": 3.5}
        found.append(Line2D([], [], **look, label="standard, equal cost"))
    return found


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
    under.attrs["style"] = _UNDER["linear response" if exact is None else "exact learner"]
    return under


def _first_generation(
    axis: Axes, main: pd.DataFrame, regimes: pd.DataFrame, under: pd.DataFrame, colours: dict[Any, str]
) -> None:
    curves = []
    for size, colour in colours.items():
        part = main[(main["synthetic_size"] == size) & np.isfinite(main["first"])].sort_values("omega")
        band(axis, part, "omega", "first", color=colour, alpha=0.3)
        curves.append((part["omega"], part["first"], f"{size:g}", colour))
        curve = under[under["synthetic_size"] == size]
        axis.plot(curve["omega"], curve["under_first"], color=colour, lw=0.8, ls=under.attrs["style"])
    control = regimes[(regimes["method"] == "equal-cost") & np.isfinite(regimes["first"])]
    if len(control):
        value, place = control["first"].iloc[0], {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"}
        axis.axhline(value, color=METHOD["equal-cost"], lw=1, ls=":")
        axis.annotate(f"standard, {control['sampler'].iloc[0]}", (0.98, value), xytext=(0, -2), ha="right", va="top",
                      fontsize=7, color=METHOD["equal-cost"], **place)  # type: ignore[arg-type]  # fmt: skip
    axis.set_title("First generation, by $|D_s|$")
    axis.set_xlabel(r"guidance $\omega$")
    axis.set_ylabel(r"$E[W_2(G^1, p_r)]$")
    axis.set_ylim(0, None)
    label_ends(axis, curves)


def _converged(
    axis: Axes,
    part: pd.DataFrame,
    regimes: pd.DataFrame,
    under: pd.DataFrame,
    colours: dict[Any, str],
    reading: str,
) -> None:
    curves, controls = [], []
    for size, colour in colours.items():
        mine = part[(part["synthetic_size"] == size) & np.isfinite(part["standard"])].sort_values("omega")
        if mine.empty:
            continue
        band(axis, mine, "omega", "standard", color=colour, alpha=0.3)
        curves.append((mine["omega"], mine["standard"], f"{size:g}", colour))
        curve = under[under["synthetic_size"] == size]
        axis.plot(curve["omega"], curve["under_limit"], color=colour, lw=0.8, ls=under.attrs["style"])
        control = regimes[(regimes["method"] == "equal-cost") & (regimes["synthetic_size"] == size)]
        controls += [(float(v), f"{size:g}") for v in control["standard"][np.isfinite(control["standard"])]]
    axis.axhline(1.05, color="#888888", lw=0.7)
    axis.set_xlabel(r"guidance $\omega$")
    axis.set_ylabel(r"$d_T(\omega)\,/\,d_1(0)$")
    axis.set_ylim(0.4, 2.2)
    # the control has no omega: marks before the axis's first, each with its |D_s|
    left, right = axis.get_xlim()
    left = left - 0.08 * (right - left)
    axis.set_xlim(left, None)
    heights = spread([value for value, _ in controls], 0.1)
    for (value, text), height in zip(controls, heights, strict=True):
        red = METHOD["equal-cost"]
        axis.plot([left], [value], ls="", marker=_CONTROL, ms=3.5, color=red, clip_on=False, zorder=5)
        axis.annotate(text, (left, height), xytext=(4, 0), textcoords="offset points", va="center", fontsize=6.5,
                      color=red)  # fmt: skip
    above = label_ends(axis, curves)
    axis.set_title(f"At convergence, auxiliary on {reading}", pad=14 if above else None)


def _few(part: pd.DataFrame) -> dict[float, str]:
    """Three or four omegas of a size's cells, by what they are: 0, one weak, the best at convergence, the largest.

    "Weak" is half the best. Fewer where they coincide.
    """
    omegas = part["omega"].to_numpy(dtype=float)
    finite = np.where(np.isfinite(part["standard"]), part["standard"], np.inf)
    best = omegas[int(np.argmin(finite))]
    wanted = {0.0: "", best / 2: "", best: " best", omegas.max(): ""}
    found = {float(omegas[np.abs(omegas - value).argmin()]): text for value, text in wanted.items()}
    found[float(best)] = " best"
    return dict(sorted(found.items()))


def _over_generations(axis: Axes, sweep: pd.DataFrame, main: pd.DataFrame, size: float) -> None:
    part = main[main["synthetic_size"] == size].sort_values("omega")
    few = _few(part)
    ends: list[tuple[float, float, str, str]] = []
    for omega, what in few.items():
        cell = part[part["omega"] == omega].iloc[0]
        curve = sweep[(sweep["synthetic_size"] == size) & (sweep["omega"] == omega)]
        curve = curve[np.isfinite(curve["ratio_own"])].sort_values("generation")
        colour = REGIME.get(str(cell["candidates"]).split(" or ")[-1].split(" ")[0], METHOD["sims"])
        dash = "--" if cell["regime"] == "undecided" else "-"
        band(axis, curve, "generation", "ratio_own", color=colour, lw=1.3, ls=dash)
        if len(curve):
            level = float(curve["ratio_own"].iloc[-5:].mean())
            ends.append((float(curve["generation"].iloc[-1]), level, rf"$\omega$={omega:g}{what}", "black"))
    axis.axhline(1.05, color="#888888", lw=0.7)
    axis.set_title(rf"Over generations, $|D_s|$ = {size:g}")
    axis.set_xlabel("generation $t$")
    axis.set_ylabel(r"$d_t(\omega)\,/\,d_1(\omega)$")
    low, high = axis.get_ylim()
    axis.set_ylim(low, high)
    _labels_right(axis, ends, (high - low) * 0.06)


def label_ends(axis: Axes, curves: Sequence[tuple[Any, Any, str, str]]) -> bool:
    """Write each curve's text where it ends: beyond the right edge, above the top, or at its last point.

    curves: (x, y, text, colour), drawn already; the axis keeps its limits. Returns whether any left through the top.
    """
    (left, right), (low, top) = axis.get_xlim(), axis.get_ylim()
    axis.set_xlim(left, right)
    beyond, above = [], []
    for x, y, text, colour in curves:
        x, y = (np.asarray(v, dtype=float) for v in (x, y))
        if not len(x):
            continue
        outside = np.flatnonzero((y[1:] > top) & (y[:-1] <= top))
        if len(outside):
            i = int(outside[-1])
            above.append((float(np.interp(top, y[i : i + 2], x[i : i + 2])), top, text, colour))
        elif x[-1] < right - 0.1 * (right - left):
            axis.annotate(text, (x[-1], y[-1]), xytext=(3, 0), textcoords="offset points", va="center", fontsize=6.5,
                          color=colour)  # fmt: skip
        else:
            beyond.append((float(x[-1]), float(y[-1]), text, colour))
    _labels_right(axis, beyond, (top - low) * 0.055)
    places = spread([x for x, *_ in above], (right - left) * 0.085)
    for place, (x, _, text, colour) in zip(places, above, strict=True):
        axis.annotate(text, (x, top), xytext=(place, top + 0.03 * (top - low)), ha="center", va="bottom", fontsize=6.5,
                      color=colour, annotation_clip=False, arrowprops=_leader(colour))  # fmt: skip
    return bool(above)


def _leader(colour: str) -> dict[str, Any]:
    """A hair line from a curve's end to its label."""
    return {"arrowstyle": "-", "color": colour, "lw": 0.5, "shrinkA": 0, "shrinkB": 0}


def _labels_right(axis: Axes, ends: Sequence[tuple[float, float, str, str]], gap: float) -> None:
    """Write (x, y, text, colour) labels beyond the right edge, pushed apart, with a hair line to where each belongs."""
    left, right = axis.get_xlim()
    for height, (x, y, text, colour) in zip(spread([y for _, y, *_ in ends], gap), ends, strict=True):
        axis.annotate(text, (x, y), xytext=(right + 0.03 * (right - left), height), va="center", fontsize=6.5,
                      color=colour, annotation_clip=False, arrowprops=_leader(colour))  # fmt: skip


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
        ends: list[tuple[float, float, str, str]] = []
        for ((loop, sampler, _, size), part), colour in zip(cells, sequence(len(cells)), strict=True):
            curve = part[np.isfinite(part["w2_mean"])]
            if curve.empty:
                continue
            axis.fill_between(curve["generation"], curve["w2_low"], curve["w2_high"], color=colour, alpha=0.3, lw=0)
            axis.plot(curve["generation"], curve["w2_mean"], color=colour)
            end = curve.iloc[-1]
            ends.append((float(end["generation"]), float(end["w2_mean"]), f"{loop}, {sampler}, {size:g}", colour))
        low, high = axis.get_ylim()
        _labels_right(axis, ends, (high - low) * 0.045)
        axis.set(title="Standard training", xlabel="generation $t$", ylabel=r"$E[W_2(G^t, p_r)]$")
        figure.supxlabel(textwrap.fill(caption, 104), fontsize=7, ha="left", x=0.01)
        return save(figure, stem)
