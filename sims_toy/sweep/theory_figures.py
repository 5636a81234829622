"""Figures of the theory: against Monte-Carlo, against networks; drawn from tables only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sims_core.lab.style import METHOD, OUTSIDE, footnote, save, sequence, style, subplots

if TYPE_CHECKING:
    import pandas as pd


def error_parts(table: pd.DataFrame, stem: Path, *, caption: str) -> list[Path]:
    """E[W2^2] against omega by what it is made of (the table of `sims_toy.sweep.response_table.error_parts`).

    Left: at generation 1; right: at convergence. Filled: data noise, the drift left over, the auxiliary's noise. Points
    with 95 % intervals: Monte-Carlo of the exact learner. Returns the paths written: stem.png and stem.svg.
    """
    names = {"data": ("data noise", "#c9c9c9"), "drift": ("drift left", OUTSIDE),
             "auxiliary": ("auxiliary's noise", METHOD["rebuilt"])}  # fmt: skip
    with style():
        figure, axes = subplots(1, 2, figsize=(7.4, 3.5), sharey=True)
        for axis, generation in zip(axes, ("1", "limit"), strict=True):
            part = table[table["generation"] == generation].sort_values("omega")
            bottom = np.zeros(len(part))
            for name, (label, colour) in names.items():
                top = bottom + part[name].to_numpy()
                axis.fill_between(part["omega"], bottom, top, color=colour, alpha=0.65, lw=0)
                widest = int(np.argmax(top - bottom))
                place = min(max(widest, 2), len(part) - 3)
                axis.annotate(label, (part["omega"].iloc[place], (bottom[place] + top[place]) / 2), fontsize=8,
                              ha="left" if place < len(part) / 2 else "right", va="center")  # fmt: skip
                bottom = top
            found = part[np.isfinite(part["monte_carlo"])]
            spread = 1.96 * found["monte_carlo_se"]
            axis.errorbar(found["omega"], found["monte_carlo"], yerr=spread, fmt="o", ms=3.5, color="black")
            best = part.loc[part["total"].idxmin(), "omega"]
            axis.axvline(best, color=METHOD["sims"], lw=1)
            axis.annotate(rf"$\omega^*$ = {best:.1f}", (best, 0.98), xycoords=("data", "axes fraction"), xytext=(3, 0),
                          textcoords="offset points", va="top", fontsize=8, color=METHOD["sims"])  # fmt: skip
            axis.set_xlabel(r"guidance $\omega$")
        axes[0].set(title="First generation", ylabel=r"$E[W_2^2(G^t, p_r)]$", ylim=(0, None))
        axes[1].set(title="The loop at convergence")
        footnote(figure, caption, 128)
        return save(figure, stem)


def eta_collapse(table: pd.DataFrame, stem: Path, *, trials: int) -> list[Path]:
    """Trained networks at several auxiliary budgets against omega and against omega x eta, alongside the exact learner.

    table: what benchmarks/eta_collapse.py writes. Returns the paths written: stem.png and stem.svg.
    """
    budgets: list[tuple[Any, pd.DataFrame]] = list(table.groupby("budget"))
    with style():
        figure, axes = subplots(1, 2, figsize=(7.2, 3.4), sharey=True)
        for (budget, part), colour in zip(budgets, sequence(len(budgets)), strict=True):
            label = f"{budget / 1000:g}k samples: η = {part['eta'].iloc[0]:.2f}"
            for axis, x in zip(axes, ("omega", "omega_eta"), strict=True):
                axis.errorbar(part[x], part["network"], yerr=1.96 * part["network_se"], color=colour, marker="o", ms=3,
                              lw=1.2, label=label)  # fmt: skip
                axis.plot(part[x], part["exact"], color=colour, lw=0.8, ls="--")
                axis.plot(part[x], part["moments"], color=colour, lw=0.8, ls=":")
        axes[0].set(title="First generation", xlabel=r"guidance $\omega$", ylabel=r"$E[W_2(G^1, p_r)]$", ylim=(0, None))
        axes[1].set(title="Where $\\omega\\eta$ alone fails: short budgets", xlabel=r"$\omega\,\eta$")
        axes[1].legend(loc="upper left")
        caption = (
            f"Trained networks at three auxiliary budgets (points, 95 % intervals, {trials} trials), the exact learner "
            "at the measured η, at most 1 (dashes, 4,000 trials), and exact SIMS on the networks' own moments (dots); "
            "N(0, [[2,1],[1,2]]), 1,000 real points, DDIM-20, auxiliary on 10,000 synthetic points; seed 0. These and "
            "the networks' usual settings are our reading; the paper does not state them."
        )
        footnote(figure, caption, 125)
        return save(figure, stem)
