"""Figures of `sims_toy.mad`, drawn from its tables only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.lines import Line2D

from sims_core.lab.style import METHOD, SEQUENCE, band, footnote, save, sequence, style, subplots

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_LOOP = {"fully-synthetic": "#d55e00", "accumulate": "#0072b2"}
_NAME = {"fully-synthetic": "replace", "accumulate": "accumulate"}


def loops(frames: dict[str, pd.DataFrame], settings: dict[str, Any], stem: Path) -> list[Path]:
    """Figure 'mad': the fresh-data limit, the variance, the mean, and the distance, against generations."""
    paths = frames["paths"]
    with style():
        figure, axes = subplots(2, 2, figsize=(7.6, 7.3))
        _fresh(axes[0, 0], paths[paths["experiment"] == "fresh"], settings)
        part = paths[paths["experiment"] == "loops"]
        _curves(axes[0, 1], part, "variance", geometric=True)
        axes[0, 1].set_yscale("log")
        axes[0, 1].set_title("variance: mean (thick), geometric mean (thin)")
        axes[0, 1].set_ylabel("variance per dimension")
        _curves(axes[1, 0], part, "mean_sq", over_first=True)
        axes[1, 0].set_yscale("log")
        axes[1, 0].axhline(np.pi**2 / 6, color="black", lw=0.8, ls=(0, (1, 2)))
        axes[1, 0].annotate(r"$\pi^2/6$", (0.99, np.pi**2 / 6), xycoords=("axes fraction", "data"), ha="right",
                            va="bottom", fontsize=8)  # fmt: skip
        axes[1, 0].set_title("the mean: random walk, or bounded")
        axes[1, 0].set_ylabel(r"$E|\mu_t|^2 / E|\mu_1|^2$")
        _curves(axes[1, 1], part, "w2")
        axes[1, 1].set_yscale("log")
        axes[1, 1].set_title("distance: accumulate against replace")
        axes[1, 1].set_ylabel(r"$E[W_2]$")
        for axis in [*axes[:, 1].tolist(), axes[1, 0]]:
            axis.set_xlabel("generation")
        _legend(figure, axes)
        footnote(figure, _caption(settings), 132)
        return save(figure, stem)


def _fresh(axis: Axes, paths: pd.DataFrame, settings: dict[str, Any]) -> None:
    heats = list(paths["temperature"].unique())
    initial = list(paths["initial_size"].unique())
    for heat, colour in zip(heats, sequence(max(2, len(heats)))[::-1], strict=False):
        for n, line in zip(initial, ("-", "--", "-.", ":") * len(initial), strict=False):
            part = paths[(paths["temperature"] == heat) & (paths["initial_size"] == n)]
            band(
                axis,
                part,
                "generation",
                "w2",
                color=colour,
                ls=line,
                label=rf"$\lambda_s$ = {heat:g}, $n_{{ini}}$ = {n:g}",
            )
            axis.plot(part["generation"], part["w2_theory"], color="black", lw=0.6, ls=(0, (1, 2)))
    axis.set_ylim(0, None)
    axis.set_title(f"fresh data, $n_r$ = {settings['real_size']}, $n_s$ = {settings['synthetic_size']}")
    axis.set_xlabel("generation")
    axis.set_ylabel(r"$E[W_2]$")


def _legend(figure: Any, axes: Any) -> None:
    """One legend above all panels: the first panel's lines, then the loops', which the other three share."""
    fresh, names = axes[0, 0].get_legend_handles_labels()
    loops, others = axes[1, 1].get_legend_handles_labels()
    dots = Line2D([], [], color="black", lw=0.6, ls=(0, (1, 2)))
    figure.legend([*fresh, *loops, dots], [*(f"fresh, {name}" for name in names), *others, "closed form"],
                  loc="outside upper left", ncols=3, fontsize=7.5, handlelength=3)  # fmt: skip


def _curves(axis: Axes, paths: pd.DataFrame, name: str, *, geometric: bool = False, over_first: bool = False) -> None:
    heats = sorted(paths["temperature"].unique(), reverse=True)
    for (loop, heat), part in paths.groupby(["loop", "temperature"], sort=False):
        line = ("-", "--", "-.", ":")[heats.index(heat) % 4]
        scale = part[name].iloc[0] if over_first else 1.0
        theory = part[f"{name}_theory"] / (part[f"{name}_theory"].iloc[0] if over_first else 1.0)
        label = rf"{_NAME.get(loop, loop)}, $\lambda_s$ = {heat:g}"
        axis.plot(part["generation"], part[name] / scale, color=_LOOP[loop], ls=line, label=label)
        low, high = part[f"{name}_low"] / scale, part[f"{name}_high"] / scale
        axis.fill_between(part["generation"], low, high, color=_LOOP[loop], alpha=0.2, lw=0)
        axis.plot(part["generation"], theory, color="black", lw=0.6, ls=(0, (1, 2)))
        if geometric:
            axis.plot(part["generation"], np.exp(part["log_volume"]), color=_LOOP[loop], lw=0.8, ls=line)
            axis.plot(part["generation"], np.exp(part["log_volume_theory"]), color="black", lw=0.6, ls=(0, (1, 2)))


def effective(frames: dict[str, pd.DataFrame], settings: dict[str, Any], folder: Path) -> list[Path]:
    """Figure 'effective_size': n_e against n_s, and the admissible region n_e >= n_r, a column an n_r."""
    table, boundary = frames["effective"], frames["boundary"]
    sizes = settings["grid_real_size"]
    heats = sorted(table["temperature"].unique())
    colours = dict(zip(heats, sequence(max(2, len(heats))), strict=False))
    with style():
        figure, axes = subplots(2, len(sizes), figsize=(2.7 * len(sizes) + 0.6, 5.9), squeeze=False)
        for j, n_r in enumerate(sizes):
            part = table[table["real_size"] == n_r]
            for heat, colour in colours.items():
                row = part[part["temperature"] == heat].sort_values("ratio")
                y, low, high = (_inside(row[k]) / n_r for k in ("effective", "effective_low", "effective_high"))
                bars = np.maximum(np.nan_to_num(np.asarray([y - low, high - y], dtype=float)), 0)
                axes[0, j].errorbar(
                    row["ratio"], y, bars, color=colour, marker=".", lw=1, label=rf"$\lambda_s$ = {heat:g}"
                )
                axes[0, j].plot(
                    row["ratio"], _inside(row["effective_theory"]) / n_r, color="black", lw=0.6, ls=(0, (1, 2))
                )
            axes[0, j].axhline(1, color=METHOD["standard"], lw=0.8)
            axes[0, j].sharey(axes[0, 0])
            axes[0, j].set(xscale="log", yscale="log", title=f"$n_r$ = {n_r}", xlabel="$n_s / n_r$")
            drawn = _region(axes[1, j], part, boundary[boundary["real_size"] == n_r], LogNorm(0.25, 4))
            axes[1, j].set(xlabel="$n_s / n_r$")
        axes[0, 0].set_ylabel("effective sample size, $n_e / n_r$")
        axes[1, 0].set_ylabel(r"sampling bias $\lambda_s$")
        ticks = [1 / 16, 1 / 8, 1 / 4, 1 / 2, 1, 2]
        axes[0, 0].set_yticks(ticks, ["1/16", "1/8", "1/4", "1/2", "1", "2"])
        axes[0, 0].minorticks_off()
        least = float((_inside(table["effective"]) / table["real_size"]).min())
        axes[0, 0].set_ylim(0.9 * least if least > 0 else 1 / 16, 2.4)  # none of them may be known
        axes[0, 0].legend(fontsize=6.5)
        bar = figure.colorbar(drawn, ax=axes[1].tolist(), label="$n_e / n_r$", extend="both", shrink=0.9)
        bar.set_ticks([0.25, 0.5, 1, 2, 4], labels=["1/4", "1/2", "1", "2", "4"])
        bar.ax.minorticks_off()
        footnote(figure, _effective_caption(settings), 46 * len(sizes))
        return save(figure, folder / "effective_size")


def _inside(sizes: pd.Series) -> pd.Series:
    """Effective sizes that the calibration covers; nan for 0 and inf, which lie outside."""
    return sizes.astype(float).replace([0.0, np.inf], np.nan)


def _region(axis: Axes, table: pd.DataFrame, boundary: pd.DataFrame, norm: Any) -> Any:
    """Points coloured by n_e / n_r: round where n_e >= n_r, square where not, a diamond where undecided."""
    drawn = None
    for verdict, marker in (("admissible", "o"), ("inadmissible", "s"), ("undecided", "D")):
        part = table[table["admissible"] == verdict]
        shade = np.clip(part["effective"] / part["real_size"], 0.25, 4)
        found = axis.scatter(part["ratio"], part["temperature"], c=shade, cmap="PuOr", norm=norm, marker=marker, s=55,
                             edgecolor="black", linewidth=0.5)  # fmt: skip
        drawn = drawn or found
    axis.plot(boundary["ratio"], boundary["temperature"], color=SEQUENCE[3], lw=1.5)
    axis.set_xscale("log")
    axis.set_ylim(table["temperature"].min() - 0.03, 1.03)
    return drawn


def _caption(settings: dict[str, Any]) -> str:
    return (
        f"{settings['learner']} learner, sampler {settings['sampler']}, N(0, I) in {settings['dimension']} dimensions"
        f"{' (published: 100)' if settings['dimension'] != 100 else ''}, covariance divided by n - {settings['ddof']}; "
        f"{settings['trials']} trials, seed {settings['seed']}. Bands: 95 % bootstrap; dotted: closed forms (distances "
        f"to second order). Replace and accumulate: every data set has {settings['loop_size']} points (our reading), "
        "thin lines are geometric means, exp(E ln det S / d): the mean stays at 1 for $\\lambda_s$ = 1 and "
        "replacement, while almost every run collapses. Dashed: the smaller $\\lambda_s$, and the larger $n_{ini}$. "
        "Paired runs that differ in $n_{ini}$ meet, so that their lines cover one another."
    )


def _effective_caption(settings: dict[str, Any]) -> str:
    return (
        f"Fresh-data loop, {settings['learner']} learner, sampler {settings['sampler']}, N(0, I) in "
        f"{settings['dimension']} dimensions, {settings['grid_trials']} trials per cell, {settings['generations']} "
        f"generations (limit: mean of the second half), seed {settings['seed']}. n_e solves E dist(G(n_e)) = limit, by "
        f"a calibration with {settings['calibration_trials']} trials per size; bars: 95 % bootstrap of both. Dotted: "
        "the closed-form limit through the same calibration. Below: round where n_e >= n_r, square where n_e < n_r, "
        "diamond undecided; the line is the closed form's boundary (admissible above it)."
    )
