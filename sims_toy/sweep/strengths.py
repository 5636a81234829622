"""Distances against the strength of guidance or merging: a sweep of one generation, and methods side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sims_core.lab.style import KINDS, METHOD, band, footnote, panels, save, style, subplots
from sims_toy.sweep.figures import UNGUIDED, label_ends

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    from matplotlib.axes import Axes

#: Dashes, width and mark of the best by method: wide solid lines show beneath narrow dashed ones where both coincide.
_LOOK: dict[str, tuple[Any, float, str]] = {
    "sims": ("-", 3.0, "o"),
    "rebuilt": ((0, (3, 3)), 1.4, "s"),
    "neon": ((0, (7, 1.5)), 1.5, "^"),
    "autoguidance": ((0, (6, 1.5, 1, 1.5)), 1.5, "v"),
    "random": ((0, (1, 1)), 1.8, "D"),
}


def strengths(regimes: pd.DataFrame, standard: pd.DataFrame, stem: Path, *, caption: str) -> list[Path]:
    """E[W2] of the first generation against the strength, a line a reading of the auxiliary's data, a panel a setting.

    regimes: rows of methods with a strength, of one learner. standard: rows of standard training, drawn as a line
    across with its interval. A panel for each method, |D_s| and budget. Returns the paths written.
    """
    kinds = regimes[["method", "synthetic_size", "budget"]].drop_duplicates().to_dict("records")
    with style():
        figure, axes = panels(len(kinds), height=0.9)
        for axis, panel in zip(axes.flat, kinds, strict=False):
            here = regimes[(regimes[list(panel)] == list(panel.values())).all(axis=1)]
            for colour, reading in zip(KINDS, dict.fromkeys(here["auxiliary_data"]), strict=False):
                part = here[(here["auxiliary_data"] == reading) & np.isfinite(here["first"])].sort_values("omega")
                best = part.loc[part["first"].idxmin()]
                label = rf"{reading}: {best['first']:.3f} at $\omega$ = {best['omega']:g}"
                band(axis, part, "omega", "first", color=colour, label=label)
                axis.plot(best["omega"], best["first"], "o", color=colour, ms=4)
            for row in standard[standard["synthetic_size"] == panel["synthetic_size"]].head(1).to_dict("records"):
                axis.axhline(row["first"], color=METHOD["standard"], ls=":", lw=1.2, label=f"base: {row['first']:.3f}")
                axis.axhspan(row["first_low"], row["first_high"], color=METHOD["standard"], alpha=0.08, lw=0)
            title = f"{panel['method']}, $|D_s|$ = {panel['synthetic_size']:g}, budget {panel['budget']}"
            axis.set(title=title, xlabel=r"strength $\omega$", ylim=(0, None))
            axis.legend(fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2, columnspacing=1)
        for axis in axes[:, 0]:
            axis.set_ylabel(r"$E[W_2(G^1, p_r)]$")
        footnote(figure, caption, 64 * axes.shape[1])
        return save(figure, stem)


def comparison(regimes: pd.DataFrame, stem: Path, *, caption: str) -> list[Path]:
    """Methods side by side in one loop: d_T / d_1(0) against each one's own strength, and each at its best.

    regimes: rows of one loop, sampler and |D_r|; one column for each |D_s|. Above: the methods that have a strength.
    Below: every method at its best, with its interval, strength and network evaluations per sample.
    """
    sizes = sorted(regimes["synthetic_size"].unique())
    methods = list(dict.fromkeys(regimes["method"]))
    with style():
        size = (3.9 * len(sizes) + 0.9, 4.3 + 0.21 * len(methods))
        figure, axes = subplots(
            2, len(sizes), figsize=size, squeeze=False, sharey="row", height_ratios=[3, 0.19 * len(methods) + 0.5]
        )
        for (above, below), size in zip(axes.T, sizes, strict=True):
            here = regimes[(regimes["synthetic_size"] == size) & np.isfinite(regimes["standard"])]
            ends = []
            for method in (m for m in methods if m not in UNGUIDED):
                part = here[here["method"] == method].sort_values("omega")
                if part.empty:
                    continue
                dash, width, marker = _LOOK.get(method, ("-", 1.5, "o"))
                at = part["omega"].tolist().index(part.loc[part["standard"].idxmin(), "omega"])
                colour = METHOD[method]
                band(above, part, "omega", "standard", color=colour, ls=dash, lw=width, marker=marker, ms=5, mfc="none",
                     markevery=[at])  # fmt: skip
                ends.append((part["omega"], part["standard"], method, colour))
            above.axhline(1.05, color="#888888", lw=0.7)
            above.set(xlabel=r"strength $\omega$", ylim=(0.4, 2.2))
            beyond = label_ends(above, ends)
            above.set_title(f"$|D_s|$ = {size:g}", pad=15 if beyond else None)
            _at_their_best(below, here, methods)
        axes[0, 0].set_ylabel(r"$d_T(\omega)\,/\,d_1(0)$")
        footnote(figure, caption, 66 * len(sizes))
        return save(figure, stem)


def _at_their_best(axis: Axes, here: pd.DataFrame, methods: Sequence[str]) -> None:
    """One row per method, in their order from above: d_T / d_1(0) at its best strength, with its interval and cost."""
    for place, method in enumerate(methods):
        part = here[here["method"] == method]
        if part.empty:
            continue
        best = part.loc[part["standard"].idxmin()]
        reach = [[best["standard"] - best["standard_low"]], [best["standard_high"] - best["standard"]]]
        colour = METHOD[method]
        axis.errorbar([best["standard"]], [-place], xerr=np.maximum(reach, 0), fmt="o", ms=4, color=colour, capsize=2)
        strength = "" if method in UNGUIDED else rf", $\omega$ = {best['omega']:g}"
        text = f"{best['standard']:.2f}, {best['nfe']} NFE{strength}"
        axis.annotate(text, (best["standard_high"], -place), xytext=(6, 0), textcoords="offset points", va="center",
                      fontsize=6.5, color=colour)  # fmt: skip
    axis.axvline(1.05, color="#888888", lw=0.7)
    axis.set_yticks([-place for place in range(len(methods))], methods, fontsize=7)
    left, right = axis.get_xlim()
    axis.set_xlim(left, right + 0.45 * (right - left))
    axis.set_ylim(0.6 - len(methods), 0.6)
    axis.set_xlabel(r"$d_T\,/\,d_1(0)$ at the best strength")
