"""Figures of the study of bias: bars by kind of error, predictions and what was found, SIMS against its controls."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sims_core.lab.style import KINDS, METHOD, band, footnote, save, style, subplots
from sims_core.seeds import Seed
from sims_toy.bias.separation import SAMPLERS
from sims_toy.bias.tables import CONTROLS, foreseen

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Columns of the bars, with their colours and words.
BARS = (
    ("base", METHOD["standard"], "base"),
    ("steps_2", METHOD["equal-cost"], "twice the steps (the cost of SIMS)"),
    ("continued", METHOD["continued"], "trained further (the auxiliary's cost)"),
    ("sims", METHOD["sims"], "SIMS, ω = 1"),
)
TITLES = {
    "exact": "Exact estimators, 64 modes",
    "features": "Random features, one dimension, at their optimum",
    "networks": "Trained networks, a fine sampler",
}
#: The most rows of a kind in the bars; the tables have all.
MOST = 10
#: What is drawn of a difference: at most this share of the base's distance.
REACH = 0.6
#: Rows are named where prediction and finding are this far apart, or where so much was predicted to be left.
FAR, BLIND = 0.12, 0.9


def draw(frames: Mapping[str, pd.DataFrame], settings: Mapping[str, Any], folder: Path) -> list[Path]:
    """Every figure that the tables have something for."""
    rows = frames["rows"].astype({"row": str})  # of features alone a csv makes numbers
    with style():
        made = _bars(rows, settings, folder / "bias")
        made += _predictions(rows, settings, folder / "bias_predictions")
        made += _separation(frames["separation"], folder / "bias_separation")
        if (rows["kind"] == "networks").any():
            made += _controls(frames, settings, folder / "bias_controls")
    return made


def label(kind: str, name: str) -> str:
    """A row in words, a few short lines."""
    if kind == "features":
        count, *rest = name.split(":")
        said = {"ridge": "ridge", "early": "stopped early"}
        warm = ", warm" if rest[2:] else ""
        return f"{count} features" + (f"\n{said[rest[0]]}\n{rest[1]}{warm}" if rest else "")
    if kind == "networks":
        data, width, steps, synthetic = name.rsplit("/", 3)
        text = f"{_data(data)}\nwidth {width}"
        text += f"\n{int(steps):,} steps" if int(steps) < 6000 else ""
        return text + (f"\n$n_s$ = {int(synthetic):,}" if synthetic != "200000" else "")
    estimator, _, sampler = name.partition("@")
    what, *number = estimator.split(":")
    words = {
        "mle": "likelihood",
        "rank": "rank",
        "smooth": "smoothing",
        "shrink": "shrinking",
        "decay": "weight decay",
        "early": "stopped at",
    }[what]
    auxiliary = "" if what != "early" else f"auxiliary {'warm' if 'warm' in number else 'cold'}"
    first = f"{words} {number[0]}" if what in ("rank", "early") else words
    second = "" if what in ("rank", "early") or not number else number[0]
    return "\n".join(line for line in (first, second, auxiliary, sampler) if line)


def _data(name: str) -> str:
    return {"gaussians:8:0.16": "8 Gaussians", "cube:3": "cube, 3-D"}.get(name, name)


def _bars(rows: pd.DataFrame, settings: Mapping[str, Any], stem: Path) -> list[Path]:
    """One panel per kind of error; distances over the base's, the floor as a line on every group."""
    kinds = [kind for kind in TITLES if (rows["kind"] == kind).any()]
    shown = {kind: _shown(rows[rows["kind"] == kind]) for kind in kinds}
    figure, axes = subplots(len(kinds), 1, figsize=(9.6, 2.35 * len(kinds) + 0.6), squeeze=False)
    for axis, kind in zip(axes[:, 0], kinds, strict=True):
        _group(axis, shown[kind])
        axis.set_title(TITLES[kind])
        axis.set_ylabel("$W_2$ over the base's" if kind != "networks" else "sliced $W_2$ over the base's")
    handles, words = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside upper center", ncols=5)
    bases = int(rows["bases"].max())
    text = (
        f"Networks: two hidden layers of SiLU, {settings['sampler']}, mean of {bases} bases, interval of SIMS - base, "
        f"{settings['points']:,} points; exact rows and features: population limit. A row reads: what is left of the "
        "base's distance to the data. Numbers: cosine of drift and error, predicted before SIMS is sampled."
    )
    footnote(figure, text, 150)
    return save(figure, stem)


def _shown(part: pd.DataFrame) -> pd.DataFrame:
    """The first rows that nothing was held out for, as many as fit."""
    return part[~part["held_out"]].head(MOST) if (~part["held_out"]).any() else part.head(MOST)


def _group(axis: Axes, part: pd.DataFrame) -> None:
    width = 0.19
    places = np.arange(len(part))
    unit = part["base"].to_numpy()
    for k, (column, color, words) in enumerate(BARS):
        at = places + (k - 1.5) * width
        axis.bar(at, part[column] / unit, width * 0.94, color=color, label=words)
        if column == "sims":
            low, high = (np.abs(part[f"gain_{end}"] - part["gain"]) / unit for end in ("low", "high"))
            axis.errorbar(
                at, part["sims"] / unit, np.nan_to_num([low, high]), fmt="none", color="black", lw=0.8, capsize=2
            )
    for x, floor, cosine in zip(places, part["floor"] / unit, part["cosine"], strict=True):
        axis.plot(
            [x - 2 * width, x + 2 * width], [floor, floor], color="black", lw=1.2, label="floor" if x == 0 else None
        )
        axis.annotate(f"cos {cosine:.2f}", (x, 1.33), ha="center", fontsize=7, color="#555555")
    axis.set_xticks(places, [label(k, r) for k, r in zip(part["kind"], part["row"], strict=True)], fontsize=7)
    axis.set_ylim(0, 1.4)
    axis.grid(axis="x", visible=False)


def _predictions(rows: pd.DataFrame, settings: Mapping[str, Any], stem: Path) -> list[Path]:
    """Predicted and found share of |e|^2 that is left, all rows."""
    figure, axis = subplots(figsize=(5.6, 5.2))
    axis.plot([0, 1.2], [0, 1.2], color="#bbbbbb", lw=1)
    for color, kind in zip(KINDS, TITLES, strict=False):
        part = rows[rows["kind"] == kind]
        for held, marker in ((False, "o"), (True, "s")):
            some = part[part["held_out"] == held]
            if not len(some):
                continue
            x, y = np.clip(some["predicted_left"].fillna(1), 0, 1.2), np.clip(some["left"], 0, 1.2)
            low, high = (
                np.abs(np.clip(some[f"left_{end}"].fillna(some["left"]), 0, 1.2) - y) for end in ("low", "high")
            )
            face = "white" if held else color
            words = {"exact": "exact estimators", "features": "random features", "networks": "trained networks"}[kind]
            axis.errorbar(
                x,
                y,
                [low, high],
                fmt=marker,
                color=color,
                mfc=face,
                lw=0.8,
                ms=6,
                label=words + (", held out" if held else ""),
            )
            for a, b, name in zip(x, y, some["row"], strict=True):
                if abs(a - b) > FAR or a > BLIND:
                    told = label(kind, name).replace("\n", ", ")
                    look = {"textcoords": "offset points", "fontsize": 6, "color": "#555555"}
                    axis.annotate(told, (a, b), (-5, -9 if kind == "networks" else 3), ha="right", **look)
    rho, low, high = foreseen(rows, Seed(settings["seed"]))
    axis.set_xlabel("predicted: share of the squared error left at ω = 1")
    axis.set_ylabel("found")
    title = "Before SIMS is sampled: drift and error say what it will leave"
    axis.set_title(title + (f"\nrank correlation {rho:.2f} ({low:.2f} to {high:.2f})" if np.isfinite(rho) else ""))
    axis.set_xlim(-0.03, 1.23)
    axis.set_ylim(-0.03, 1.23)
    axis.legend(loc="upper left")
    return save(figure, stem)


def _controls(frames: Mapping[str, pd.DataFrame], settings: Mapping[str, Any], stem: Path) -> list[Path]:
    """SIMS less each control over the base's distance: cells of trained networks by controls."""
    table = frames["controls"]
    part = table[(table["kind"] == "networks") & (table["omega"] == "1")]
    base = frames["rows"].set_index("row")["base"]
    names, rivals = list(dict.fromkeys(part["row"])), [c for c in CONTROLS.values() if c in set(part["control"])]
    figure, axis = subplots(figsize=(1.0 + 0.95 * len(rivals), 1.4 + 0.42 * len(names)))
    shares = np.full((len(names), len(rivals)), np.nan)
    for _, r in part.iterrows():
        i, j = names.index(r["row"]), rivals.index(r["control"])
        shares[i, j] = r["difference"] / base[r["row"]]
        sure, dark = r["verdict"] != "level", not abs(shares[i, j]) < 0.75 * REACH
        text = "far" if not np.isfinite(shares[i, j]) else f"{100 * shares[i, j]:+.0f} %"
        axis.text(
            j,
            i,
            text,
            ha="center",
            va="center",
            fontsize=7.5,
            weight="bold" if sure else "normal",
            color="white" if dark else ("black" if sure else "#777777"),
        )
    seen = np.clip(np.nan_to_num(shares, neginf=-REACH), -REACH, REACH)
    axis.imshow(-seen, cmap="RdBu", vmin=-REACH, vmax=REACH, aspect="auto")
    axis.set_xticks(range(len(rivals)), [c.replace(" ", "\n", 1) for c in rivals], fontsize=7.5)
    held = set(frames["rows"].loc[frames["rows"]["held_out"], "row"])
    axis.set_yticks(
        range(len(names)),
        [label("networks", n).replace("\n", ", ") + (" *" if n in held else "") for n in names],
        fontsize=7.5,
    )
    axis.grid(visible=False)
    axis.set_title("Distance of SIMS (ω = 1) less the control's, over the base's: blue where SIMS is nearer the data")
    text = "Bold where the interval over bases, paired, excludes 0. Controls at ω = 1 where they have one; * held out."
    footnote(figure, text, 120)
    return save(figure, stem)


def _separation(table: pd.DataFrame, stem: Path) -> list[Path]:
    """Samplers by what draws the negatives, over omega of both signs."""
    figure, axes = subplots(1, len(SAMPLERS), figsize=(9.4, 3.9), sharey=True)
    for axis, (sampler, words) in zip(axes, SAMPLERS.items(), strict=True):
        for color, (zeta, part) in zip(
            ("#d55e00", "#0072b2", "#009e73"), table[table["sampler"] == sampler].groupby("zeta"), strict=True
        ):
            who = "same sampler" if zeta == 1 else f"ζ = {zeta:g}, {'seeks modes' if zeta > 1 else 'seeks diversity'}"
            for method, line in (("sims", "-"), ("neon", ":")):
                own = part[part["method"] == method].sort_values("omega")
                told = f"{who}: cosine {own['cosine'].iloc[0]:+.2f}" if method == "sims" else None
                band(axis, own, "omega", "ratio", color=color, ls=line, label=told)
        axis.axhline(1, color="#888888", lw=0.8)
        axis.axvline(0, color="#888888", lw=0.8)
        axis.set_title(words)
        axis.set_xlabel("ω")
        axis.set_ylim(0.4, 2.2)
        axis.legend(
            title="negatives drawn by",
            title_fontsize=8,
            loc="upper right",
            frameon=True,
            framealpha=0.9,
            edgecolor="none",
        )
    axes[0].set_ylabel("$E[W_2]$ over the base's")
    text = (
        "N(0, [[2, 1], [1, 2]]), 1,000 real points, auxiliary on 10,000 of the base's, 200 trials, 95 % intervals; "
        "solid SIMS, dotted Neon. Evaluated with the sampler as it is. The sign of the best ω follows the cosine of "
        "drift and error, not whether the negatives seek modes."
    )
    footnote(figure, text, 150)
    return save(figure, stem)
