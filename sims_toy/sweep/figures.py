"""Figures of the sweep, drawn from its tables only, and score fields of single models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from matplotlib.lines import Line2D

from sims_core.algorithm import METHODS
from sims_core.lab.style import METHOD, REGIME, band, footnote, save, sequence, spread, style, subplots

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

    from sims_core.guidance import Denoiser
    from sims_toy.gaussian import Gaussian

#: Methods without a strength.
UNGUIDED = [name for name, method in METHODS.items() if "omega" not in method.takes]
#: The look of what lies beneath, and of the controls of no more evaluations.
_UNDER = {"linear response": "--", "exact learner": "-"}
_CONTROL: dict[str, tuple[Any, str]] = {
    "equal-cost": (":", "standard, equal cost"),
    "retuned": ((0, (4, 1.5, 1, 1.5)), "standard, sampler retuned"),
}
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
    others = [r for r in regimes["auxiliary_data"].unique() if r not in ("none", reading)]
    main = regimes[(regimes["auxiliary_data"] == reading) & ~regimes["method"].isin(UNGUIDED)]
    sizes = sorted(main["synthetic_size"].unique())
    colours = dict(zip(sizes, sequence(len(sizes)), strict=True))
    rows = 2 + bool(others)
    with style():
        figure, axes = subplots(rows, 2, figsize=(7.4, 2.75 * rows + 1.2))
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
        handles = _handles("exact learner" if beneath is not None else "linear response", set(regimes["method"]))
        look: dict[str, Any] = {"ncols": 2, "fontsize": 7, "title_fontsize": 7, "alignment": "left"}
        figure.legend(
            handles=_regimes(), loc="outside upper right", title="Over generations: the cell's regime", **look
        )
        figure.legend(handles=handles, loc="outside upper left", title="Elsewhere: blues by $|D_s|$", **look)
        footnote(figure, caption, 128)
        return save(figure, stem)


def _regimes() -> list[Line2D]:
    """The legend of the panels over generations."""
    names = [name for name in REGIME if name != "undecided"]
    found = [Line2D([], [], color=REGIME[name], lw=2.5, label=LABEL.get(name, name)) for name in names]
    return [*found, Line2D([], [], color="black", lw=1.3, ls="--", label="undecided (the worse's colour)")]


def _handles(under: str, methods: set[str]) -> list[Line2D]:
    """The legend of the panels over omega: the curves, what is drawn beneath, the controls."""
    colour = sequence(1)[0]
    found = [Line2D([], [], color=colour, lw=1.8, label="over $\\omega$"),
             Line2D([], [], color=colour, lw=0.8, ls=_UNDER[under], label=under)]  # fmt: skip
    return found + [
        Line2D([], [], color=colour, lw=1.1, ls=dash, label=text)
        for name, (dash, text) in _CONTROL.items()
        if name in methods
    ]


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
        band(axis, part, "omega", "first", color=colour, alpha=0.3, lw=1.8)
        curves.append((part["omega"], part["first"], f"{size:g}", colour))
        curve = under[under["synthetic_size"] == size]
        axis.plot(curve["omega"], curve["under_first"], color=colour, lw=0.8, ls=under.attrs["style"])
    for name, (dash, _) in _CONTROL.items():
        control = regimes[(regimes["method"] == name) & np.isfinite(regimes["first"])]
        if len(control):
            value, place = (
                control["first"].min(),
                {"xycoords": ("axes fraction", "data"), "textcoords": "offset points"},
            )
            axis.axhline(value, color=METHOD[name], lw=1.1, ls=dash)
            text = f"standard, {control.loc[control['first'].idxmin(), 'sampler']}"
            side: dict[str, Any] = {"xytext": (0, -2), "va": "top"}
            if name == "equal-cost":  # the other one lies below it
                side = {"xytext": (0, 2), "va": "bottom"}
            axis.annotate(text, (0.98, value), ha="right", fontsize=7, color=METHOD[name], **side,
                          **place)  # type: ignore[arg-type]  # fmt: skip
    axis.set_title("First generation, by $|D_s|$")
    axis.set_xlabel(r"guidance $\omega$")
    axis.set_ylabel(r"$E[W_2(G^1, p_r)]$")
    axis.set_ylim(0, None)
    label_ends(axis, curves)


def _converged(
    axis: Axes, part: pd.DataFrame, regimes: pd.DataFrame, under: pd.DataFrame, colours: dict[Any, str], reading: str
) -> None:
    curves = []
    for size, colour in colours.items():
        mine = part[(part["synthetic_size"] == size) & np.isfinite(part["standard"])].sort_values("omega")
        if mine.empty:
            continue
        band(axis, mine, "omega", "standard", color=colour, alpha=0.3, lw=1.8)
        curves.append((mine["omega"], mine["standard"], f"{size:g}", colour))
        curve = under[under["synthetic_size"] == size]
        axis.plot(curve["omega"], curve["under_limit"], color=colour, lw=0.8, ls=under.attrs["style"])
    axis.axhline(1.05, color="#888888", lw=0.7)
    axis.set_xlabel(r"guidance $\omega$")
    axis.set_ylabel(r"$d_T(\omega)\,/\,d_1(0)$")
    axis.set_ylim(0.4, 2.2)
    _across(axis, regimes, colours)
    above = label_ends(axis, curves)
    axis.set_title(f"At convergence, auxiliary on {reading}", pad=14 if above else None)


def _across(axis: Axes, regimes: pd.DataFrame, colours: dict[Any, str]) -> None:
    """The controls as lines across, with their numbers in the order of |D_s| at the left."""
    left, right = axis.get_xlim()
    axis.set_xlim(left, right)
    for name, (dash, _) in _CONTROL.items():
        values = regimes[(regimes["method"] == name) & np.isfinite(regimes["standard"])]
        least = values.groupby("synthetic_size")["standard"].min()
        for size, value in least.items():
            axis.axhline(value, color=colours.get(size, "black"), lw=1.1, ls=dash)
        if name == "equal-cost":
            heights = spread(list(least), 0.085)
            for size, height in zip(least.index, heights, strict=True):
                axis.text(left + 0.015 * (right - left), height, f"{size:g}", va="center", fontsize=6,
                          color=colours.get(size, "black"), bbox={"fc": "white", "ec": "none", "pad": 0.4})  # fmt: skip


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
        curve = curve[np.isfinite(curve["ratio_standard"])].sort_values("generation")
        colour = REGIME.get(str(cell["candidates"]).split(" or ")[-1].split(" ")[0], METHOD["sims"])
        dash = "--" if cell["regime"] == "undecided" else "-"
        band(axis, curve, "generation", "ratio_standard", color=colour, lw=1.5, ls=dash)
        if len(curve):
            first, level = float(curve["ratio_standard"].iloc[0]), float(curve["ratio_standard"].iloc[-5:].mean())
            axis.plot([1], [first], "o", color=colour, ms=4, mec="black", mew=0.5, zorder=5)  # d_1(omega)
            ends.append((float(curve["generation"].iloc[-1]), level, rf"$\omega$={omega:g}{what}", "black"))
    axis.axhline(1.05, color="#888888", lw=0.7)
    axis.set_title(rf"Over generations, $|D_s|$ = {size:g}")
    axis.set_xlabel("generation $t$")
    axis.set_ylabel(r"$d_t(\omega)\,/\,d_1(0)$")
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
    laws: Mapping[str, Gaussian] | None = None,
    sigma: float = 0.5,
    extent: float = 4.0,
    caption: str = "",
) -> list[Path]:
    """The score field of each two-dimensional model as arrows, the first model's in grey and its samples beneath.

    A last panel has the difference of the last model's scores from the first's. models: name -> denoiser D(x, sigma) on
    x (1, n, 2). samples: name -> points (n, 2), of any of the names. laws: name -> Gaussian, drawn as its two-sigma
    ellipse: of 'real' in every panel, of a model in its own. sigma: the noise level shown. extent: half the side of the
    square shown. Returns the paths written.
    """
    ticks = np.linspace(-extent, extent, 15)
    grid = np.stack(np.meshgrid(ticks, ticks), -1).reshape(-1, 2)
    level = torch.tensor(sigma, dtype=torch.float64)
    points = torch.from_numpy(grid)[None]
    fields = {name: ((d(points, level) - points) / sigma**2)[0].numpy() for name, d in models.items()}
    first, last = next(iter(fields)), list(fields)[-1]
    arrows: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "width": 0.005}
    with style():
        count = len(models) + (first != last)
        figure, axes = subplots(1, count, figsize=(2.6 * count, 3.2), squeeze=False)
        for axis, (name, score) in zip(axes[0], fields.items(), strict=False):
            colour = METHOD.get(name, METHOD["standard"] if name == first else METHOD["sims"])
            if name in samples:
                axis.scatter(*samples[name].T, s=4, color=colour, alpha=0.35, lw=0)
            if name != first:
                axis.quiver(*grid.T, *fields[first].T, color="#bbbbbb", scale=7, **arrows)
            axis.quiver(*grid.T, *score.T, color=colour, scale=7, **arrows)
            _outline(axis, laws or {}, name, colour)
            axis.set_title(name, y=1.03)
        if first != last:
            axis, change = axes[0, -1], fields[last] - fields[first]
            axis.quiver(*grid.T, *change.T, color=METHOD.get(last, METHOD["sims"]),
                        scale=2 * float(np.linalg.norm(change, axis=1).max()), **arrows)  # fmt: skip
            _outline(axis, laws or {}, "", "")
            axis.set_title(f"{last} − {first}, enlarged", y=1.03)
        for axis in axes[0]:
            axis.set(xlim=(-extent, extent), ylim=(-extent, extent), aspect="equal")
        if caption:
            footnote(figure, caption, 40 * count)
        return save(figure, stem)


def _outline(axis: Axes, laws: Mapping[str, Gaussian], name: str, colour: str) -> None:
    """Two-sigma ellipses: the real law's dashed, a model's in its colour."""
    if "real" in laws:
        ellipse(axis, laws["real"], METHOD["real"], "--")
    if name in laws:
        ellipse(axis, laws[name], colour, "-")


def ellipse(axis: Axes, gaussian: Gaussian, colour: str, dash: str, radius: float = 2) -> None:
    """The ellipse of a Gaussian in the plane at ``radius`` standard deviations."""
    angle = np.linspace(0, 2 * np.pi, 121)
    circle = np.stack([np.cos(angle), np.sin(angle)])
    root, mean = gaussian.root()[0].numpy(), gaussian.mean[0].numpy()
    axis.plot(*(mean[:, None] + radius * root @ circle), color=colour, ls=dash, lw=1.3)


def loops(sweep: pd.DataFrame, stem: Path, *, caption: str) -> list[Path]:
    """Standard training alone: the distance over generations, one line a loop, sampler and size."""
    keys = ["loop", "sampler", "real_size", "synthetic_size"]
    cells = list(sweep.groupby(keys, sort=False))
    several = [sweep[key].nunique() > 1 or key == "loop" for key in ("loop", "sampler", "synthetic_size")]
    with style():
        figure, axis = subplots(figsize=(6.0, 3.8))
        ends: list[tuple[float, float, str, str]] = []
        for ((loop, sampler, _, size), part), colour in zip(cells, sequence(len(cells)), strict=True):
            curve = part[np.isfinite(part["w2_mean"])]
            if curve.empty:
                continue
            axis.fill_between(curve["generation"], curve["w2_low"], curve["w2_high"], color=colour, alpha=0.3, lw=0)
            axis.plot(curve["generation"], curve["w2_mean"], color=colour)
            end = curve.iloc[-1]
            ends.append(
                (
                    float(end["generation"]),
                    float(end["w2_mean"]),
                    ", ".join(str(v) for v, many in zip((loop, sampler, size), several, strict=True) if many),
                    colour,
                )
            )
        axis.set_ylim(0, None)
        _labels_right(axis, ends, axis.get_ylim()[1] * 0.045)
        axis.set(title="Standard training", xlabel="generation $t$", ylabel=r"$E[W_2(G^t, p_r)]$")
        footnote(figure, caption, 104)
        return save(figure, stem)
