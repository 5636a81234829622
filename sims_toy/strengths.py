"""The figure of a sweep of one generation: the distance against the strength of guidance or merging."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sims_core.style import METHOD, band, panels, save, style

if TYPE_CHECKING:
    import pandas as pd

#: what the auxiliary is trained on, in the order of the sweep
_COLOURS = (METHOD["sims"], METHOD["equal-cost"], METHOD["neon"], METHOD["autoguidance"])


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
            for colour, reading in zip(_COLOURS, dict.fromkeys(here["auxiliary_data"]), strict=False):
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
            axis.legend(fontsize=6.5, loc="upper center")
        for axis in axes[:, 0]:
            axis.set_ylabel(r"$E[W_2(G^1, p_r)]$")
        figure.supxlabel(textwrap.fill(caption, 64 * axes.shape[1]), fontsize=7, ha="left", x=0.01)
        return save(figure, stem)
