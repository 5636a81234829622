"""The figure of the pollution study, drawn from its tables only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sims_core.lab.style import METHOD, band, footnote, save, style, subplots
from sims_toy.grid.parse import law_text
from sims_toy.networks.settings import unusual
from sims_toy.pollution.theory import SELF_IMPROVED

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_LOOK: dict[str, dict[str, Any]] = {
    "ST-I": {"color": METHOD["standard"], "linestyle": ":"},
    "ST-P": {"color": METHOD["standard"], "marker": "o"},
    "SIMS-I": {"color": METHOD["sims"], "linestyle": ":"},
    "SIMS-P": {"color": METHOD["sims"], "marker": "o"},
    "SIMS-P*": {"color": METHOD["neon"], "marker": "s"},
    "ST-P equal cost": {"color": METHOD["equal-cost"], "marker": "^"},
}
_LABEL = {
    "SIMS-P*": "SIMS-P* (auxiliary on $D_p$)",
    "ST-P equal cost": "ST-P, twice the steps (equal cost)",
    "ST-I": "ST-I (no pollution)",
    "SIMS-I": "SIMS-I (no pollution)",
}


def figure5(frames: dict[str, pd.DataFrame], settings: dict[str, Any], n: int, stem: Path) -> list[Path]:
    """Six panels for one |D_r|: what a little pollution does at each omega; the curves at the fixed and at the best
    omega; the best omega against its law; the best dose of each omega against its law; the limit without noise."""
    own = {k: f[f["learner"] == settings["learner"]] for k, f in frames.items() if "learner" in f}
    tables = {k: f[f["real_size"] == n] for k, f in own.items()}
    exact = None
    if (frames["curves"]["learner"] != settings["learner"]).any():
        exact = {k: f[(f["learner"] == "exact") & (f["real_size"] == n)] for k, f in frames.items() if "learner" in f}
    with style():
        figure, axes = subplots(3, 2, figsize=(7.8, 9.3))
        _little(axes[0, 0], tables["fixed"], exact, settings)
        _at_fixed(axes[0, 1], tables["curves"], exact, settings)
        _at_best(axes[1, 0], tables, exact, settings)
        _best_omega(axes[1, 1], tables["best"], exact)
        _best_ratio(axes[2, 0], tables["fixed"], settings)
        _population(axes[2, 1], frames["population"], settings)
        handles, labels = axes[0, 1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3, fontsize=7.5)
        footnote(figure, caption(settings, n, edge=_edge(tables["best"])), 134)
        return save(figure, stem)


def _curve(curves: pd.DataFrame, name: str, omega: float) -> pd.DataFrame:
    """A curve over the ratio; polluted ones begin with the clean cell."""
    clean = {"ST-P": "ST-I", "SIMS-P": "SIMS-I", "ST-P equal cost": "ST-I equal cost"}.get(name)
    mine = (curves["curve"] == name) | ((curves["curve"] == clean) & (curves["ratio"] == 0))
    guided = curves["curve"].str.startswith("SIMS")
    return curves[mine & (~guided | (curves["omega"] == omega))].sort_values("ratio")


def _lines(axis: Axes, x: Any, part: pd.DataFrame, name: str, column: str, label: str) -> None:
    look: dict[str, Any] = {"markersize": 3, **_LOOK[name]}
    low, high = part[f"{column}_low"], part[f"{column}_high"]
    if len(part) == 1:  # the ideal, where it does not depend on |D_p|
        axis.axhspan(low.iloc[0], high.iloc[0], color=look["color"], alpha=0.12, lw=0)
        axis.axhline(part[column].iloc[0], color=look["color"], linestyle=":", label=label)
        return
    axis.fill_between(x, low, high, color=look["color"], alpha=0.15, lw=0)
    axis.plot(x, part[column], label=label, **look)


def _at_fixed(
    axis: Axes, curves: pd.DataFrame, exact: dict[str, pd.DataFrame] | None, settings: dict[str, Any]
) -> None:
    omega = settings["fixed"]
    for name in ("ST-I", "ST-P", "ST-P equal cost", "SIMS-I", "SIMS-P", "SIMS-P*"):
        part = _curve(curves, name, omega)
        _lines(axis, part["ratio"], part, name, "w2_rms", _LABEL.get(name, name))
        if exact is not None and len(part) > 1:
            under = _curve(exact["curves"], name, omega)
            axis.plot(under["ratio"], under["w2_rms"], color=_LOOK[name]["color"], lw=0.7)
        elif len(part) > 1 and name != "ST-P equal cost":
            axis.plot(part["ratio"], part["theory_rms"], color=_LOOK[name]["color"], lw=0.8, ls="--")
    for ratio in SELF_IMPROVED:
        if ratio <= curves["ratio"].max():
            axis.axvline(ratio, color="black", lw=1, ls=":", zorder=1)
    axis.set(xlabel="$|D_p|/|D_r|$", ylabel="root mean square $W_2$", title=f"One fixed ω = {omega:g}")
    standard = curves[curves["curve"].isin(["ST-I", "ST-P"])]["w2_rms_high"].max()
    axis.set_ylim(0, 1.7 * standard)  # the variant, over-guided where D_p is small, lies far above
    _inset(axis, curves, omega)


def _inset(axis: Axes, curves: pd.DataFrame, omega: float) -> None:
    """SIMS-P over SIMS-I at the fixed omega, whose few per cent the panel's scale hides; intervals: the first panel."""
    part = _curve(curves, "SIMS-P", omega)
    clean = part[part["ratio"] == 0]["w2_rms"].iloc[0]
    small = axis.inset_axes((0.42, 0.72, 0.55, 0.26))
    small.plot(part["ratio"], part["w2_rms"] / clean, color=METHOD["sims"], lw=1.2, marker="o", ms=2)
    small.axhline(1, color="black", lw=0.6)
    small.set_title("SIMS-P over clean SIMS", fontsize=6, pad=2)
    small.tick_params(labelsize=6)
    small.patch.set_alpha(0.9)


def _at_best(
    axis: Axes, tables: dict[str, pd.DataFrame], exact: dict[str, pd.DataFrame] | None, settings: dict[str, Any]
) -> None:
    best = tables["best"]
    for name in ("SIMS-I", "SIMS-P", "SIMS-P*"):
        part = best[(best["curve"] == name) | ((name == "SIMS-P") & (best["curve"] == "SIMS-I") & (best["ratio"] == 0))]
        part = part.sort_values("ratio")
        _lines(axis, part["ratio"], part, name, "w2_rms", _LABEL.get(name, name))
        if len(part) > 1:
            axis.plot(part["ratio"], part["law_rms"], color=_LOOK[name]["color"], lw=0.8, ls="--")
            edge = part[part["edge"]]
            axis.plot(edge["ratio"], edge["w2_rms"], "x", color="black", markersize=5)
        if exact is not None:
            under = exact["best"][exact["best"]["curve"] == name]
            axis.plot(under["ratio"], under["w2_rms"], color=_LOOK[name]["color"], lw=0.7)
    axis.set(xlabel="$|D_p|/|D_r|$", ylabel="root mean square $W_2$", title="ω retuned for each $|D_p|$")


def _best_omega(axis: Axes, best: pd.DataFrame, exact: dict[str, pd.DataFrame] | None) -> None:
    for name, law in (("SIMS-P", "1 + $λ_p$"), ("SIMS-P*", "1 + 2$|D_p|/|D_r|$")):
        part = best[(best["curve"] == name) | ((name == "SIMS-P") & (best["curve"] == "SIMS-I") & (best["ratio"] == 0))]
        part = part.sort_values("ratio")
        colour = _LOOK[name]["color"]
        bars = np.abs(part[["omega_low", "omega_high"]].to_numpy().T - part["omega"].to_numpy())
        axis.errorbar(
            part["ratio"], part["omega"], yerr=bars, fmt=_LOOK[name]["marker"], color=colour, markersize=3.5, lw=0.9,
        )  # fmt: skip
        axis.plot(part["ratio"], part["law_population"], color=colour, ls=":", label=f"without noise, {law}")
        axis.plot(part["ratio"], part["law"], color=colour, ls="--", lw=0.9, label=f"{name}, first order with noise")
        edge = part[part["edge"]]
        axis.plot(edge["ratio"], edge["omega"], "x", color="black", markersize=5)
        if exact is not None:
            under = exact["best"][exact["best"]["curve"] == name]
            axis.plot(under["ratio"], under["omega"], color=colour, lw=0.7)
    axis.set(xlabel="$|D_p|/|D_r|$", ylabel="best ω", title="The best ω of each $|D_p|$")
    axis.set_ylim(0, 1.5 * axis.get_ylim()[1])
    axis.legend(fontsize=6.5, loc="upper left")


def _best_ratio(axis: Axes, fixed: pd.DataFrame, settings: dict[str, Any]) -> None:
    part = fixed[fixed["curve"] == "SIMS-P"].sort_values("omega")
    part = part[(part["omega"] >= 0.8) & (part["omega"] <= 2.4)]
    inside = part[~part["edge"]]
    top = max(settings["pollution"])
    bars = np.abs(inside[["ratio_low", "ratio_high"]].to_numpy().T - inside["ratio"].to_numpy())
    axis.errorbar(inside["omega"], inside["ratio"], yerr=bars, fmt="o", color=METHOD["sims"], markersize=3.5, lw=0.9,
                  label="found")  # fmt: skip
    beyond = part[part["edge"]]
    axis.plot(beyond["omega"], beyond["ratio"], "^", color=METHOD["sims"], markersize=4, label="at the grid's end")
    axis.plot(
        part["omega"],
        np.minimum(part["law_population"], 9),
        ls=":",
        color="black",
        label="without noise, (Ω − 1)/(2 − Ω)",
    )
    axis.plot(part["omega"], np.minimum(part["law"], 9), ls="--", lw=0.9, color="black", label="first order with noise")
    axis.set(xlabel="fixed ω", ylabel="best $|D_p|/|D_r|$", title="The best pollution of each fixed ω")
    axis.set_ylim(-0.05, 1.15 * top)
    axis.set_xlim(0.75, 2.45)
    axis.legend(fontsize=6.5)


def _little(axis: Axes, fixed: pd.DataFrame, exact: dict[str, pd.DataFrame] | None, settings: dict[str, Any]) -> None:
    part = fixed[fixed["curve"] == "SIMS-P"].sort_values("omega")
    least = part["little"].iloc[0]
    for column, colour, label in (
        ("little_to_clean", METHOD["sims"], f"$|D_p|/|D_r|$ = {least:g}"),
        ("best_to_clean", METHOD["neon"], "the best $|D_p|$"),
    ):
        band(axis, part, "omega", column, color=colour, label=label)
        if exact is not None:
            under = exact["fixed"][exact["fixed"]["curve"] == "SIMS-P"].sort_values("omega")
            axis.plot(under["omega"], under[column], color=colour, lw=0.7)
    axis.axhline(1, color="black", lw=0.7)
    axis.set(xlabel="fixed ω", ylabel="$W_2$ over the clean one's", title="What pollution does at a fixed ω")
    axis.legend(fontsize=7)


def _population(axis: Axes, population: pd.DataFrame, settings: dict[str, Any]) -> None:
    part = population[(population["sampler"] == settings["sampler"]) & (population["auxiliary_data"] == "synthetic")]
    for strength, shade in (("1", "#a6cbe3"), ("1.2", "#5a9bc9"), ("1.5", "#2467a4"), ("2", "#0b2f5f")):
        axis.plot(part["ratio"], part[f"w2_at_{strength}"], color=shade, marker=".", label=f"ωη = {strength}")
    axis.plot(part["ratio"], part["w2"], color="black", ls="--", label="best ω")
    axis.set(xlabel="$|D_p|/|D_r|$", ylabel="$W_2$", title="Without noise (unlimited data)")
    axis.set_ylim(0, None)
    axis.legend(fontsize=7)


def _edge(best: pd.DataFrame) -> bool:
    """Whether a cross is drawn: a best omega of the curves shown lies at the grid's end."""
    return bool(best[best["curve"].isin(["SIMS-P", "SIMS-P*"]) | (best["ratio"] == 0)]["edge"].any())


def caption(settings: dict[str, Any], n: int, *, edge: bool) -> str:
    """All settings, and which are our reading. edge: whether a best omega lies at the grid's end."""
    mean, cov = law_text(settings)
    budget = f"eta = {settings['budget']}" if settings["learner"] == "exact" else f"{settings['budget']} samples seen"
    networks = ""
    if settings["learner"] == "network":
        k, told = settings["network"], ("layers", "width", "activation", "steps", "batch", "rate", "auxiliary_rate")
        networks = (
            f" Networks: {k['layers']} x {k['width']} {k['activation']}, {k['steps']} Adam steps of {k['batch']} rows, "
            f"rate {k['rate']:g}, auxiliary {k['auxiliary_rate']:g}{unusual(k, told)}; "
            "thin lines: the exact learner (eta = 1)."
        )
    thin = "Dashed: first order, with noise. " if settings["learner"] == "exact" else ""
    marks = "Dotted verticals: 0.2 and 0.6 of |D_r|, where the paper's gain ends on FFHQ-64 and CIFAR-10. "
    crosses = "Crosses: best ω at the grid's end. " if edge else ""
    return (
        f"{settings['learner']} learner, one generation, real data N([{mean}], [{cov}]), |D_r| = {n}, D_p from a model "
        f"of D_r alone, auxiliary on {settings['auxiliary_data']} data, {settings['auxiliary_size']} samples, "
        f"budget {budget}, sampler {settings['sampler']}, {settings['trials']} paired trials, seed {settings['seed']}; "
        f"ideal: {settings['ideal']}. Bands and bars: 95 % bootstrap intervals. {thin}{marks}{crosses}"
        "Real data, sizes, sampler, ω, what the auxiliary is trained on, and what 'ideal' means are our "
        f"reading; the paper does not state them.{networks}"
    )
