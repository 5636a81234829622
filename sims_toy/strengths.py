"""Distances against the strength of guidance or merging: a sweep of one generation, and methods side by side."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sims_core.style import KINDS, METHOD, band, panels, save, style
from sims_toy.figures import UNGUIDED

if TYPE_CHECKING:
    import pandas as pd

#: Dashes, width and mark of the best by method: wide solid lines show beneath narrow dashed ones where both coincide.
_LOOK: dict[str, tuple[Any, float, str]] = {
    "standard": ("-", 3.2, ""),
    "continued": ((0, (4, 4)), 1.6, ""),
    "equal-cost": (":", 1.4, ""),
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
        figure.supxlabel(textwrap.fill(caption, 64 * axes.shape[1]), fontsize=7, ha="left", x=0.01)
        return save(figure, stem)


def comparison(regimes: pd.DataFrame, stem: Path, *, caption: str) -> list[Path]:
    """Methods side by side in one loop: d_T / d_1(0) against each one's own strength, its best marked with its cost.

    regimes: rows of one loop, sampler and |D_r|; one panel for each |D_s|. Lines across: methods without a strength.
    """
    sizes = sorted(regimes["synthetic_size"].unique())
    with style():
        figure, axes = panels(len(sizes), height=1.3)
        for axis, size in zip(axes.flat, sizes, strict=False):
            here = regimes[regimes["synthetic_size"] == size]
            for method in dict.fromkeys(here["method"]):
                part = here[(here["method"] == method) & np.isfinite(here["standard"])].sort_values("omega")
                if part.empty:
                    continue
                colour, best = METHOD.get(method, "#000000"), part.loc[part["standard"].idxmin()]
                dash, width, marker = _LOOK.get(method, ("-", 1.5, "o"))
                look = {"color": colour, "ls": dash, "lw": width}
                cost = f"{best['standard']:.2f}, {best['nfe']} NFE"
                if method in UNGUIDED:
                    axis.axhline(best["standard"], **look, label=f"{method}: {cost}")
                    continue
                label = rf"{method}: {cost} at $\omega$ = {best['omega']:g}"
                band(axis, part, "omega", "standard", **look, label=label, marker=marker, ms=5, mfc="none",
                     markevery=[part["omega"].tolist().index(best["omega"])])  # fmt: skip
            axis.axhline(1.05, color="#888888", lw=0.7)
            axis.set(title=f"$|D_s|$ = {size:g}", xlabel=r"strength $\omega$", ylim=(0.4, 2.2))
            axis.legend(fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, -0.17), ncols=2, handlelength=3.2)
        for axis in axes[:, 0]:
            axis.set_ylabel(r"$d_T(\omega)\,/\,d_1(0)$")
        figure.supxlabel(textwrap.fill(caption, 64 * axes.shape[1]), fontsize=7, ha="left", x=0.01)
        return save(figure, stem)
