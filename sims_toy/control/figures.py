"""The figures of the control study, drawn from its tables only."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sims_core.control import density_law, transport_law
from sims_core.lab.style import METHOD, band, footnote, save, style, subplots
from sims_toy.control.tables import label, law_errors
from sims_toy.control.theory import CASES, separatrix_share
from sims_toy.networks.settings import unusual

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Classes: none of the complements' colours.
_CLASS = ("#882255", "#ddaa33", "#117733", "#aa4499", "#4d4d4d", "#8c6d31", "#332288", "#999933")
_TOLD = ("layers", "width", "activation", "steps", "batch", "rate", "auxiliary_rate")
_CONTROL = {"linear": METHOD["sims"], "geometric": METHOD["neon"]}


def networks(frames: dict[str, pd.DataFrame], settings: dict[str, Any], stem: Path) -> list[Path]:
    """Networks: shares against omega for each complement; the distance to the target, in shares and as a mixture."""
    with style():
        figure, axes = subplots(2, 2, figsize=(7.8, 6.2))
        for axis, reading in zip(axes[0], [*settings["complement"], None], strict=False):
            _networks(axis, frames["shares"], reading, settings)
        _over_omega(axes[1, 0], frames["quality"], "tv", "total variation to the target", "tv_floor")
        axes[1, 0].set_title("Distance to the target proportions")
        axes[1, 0].set_ylim(0, 1.4 * axes[1, 0].get_ylim()[1])
        axes[1, 0].legend(fontsize=6.5, ncols=2, loc="upper left")
        _over_omega(axes[1, 1], frames["quality"], "sliced_target", "sliced $W_2$", "floor_target")
        _over_omega(axes[1, 1], frames["quality"], "sliced_original", "sliced $W_2$", "", dashed=True)
        axes[1, 1].set_title("Distance to its mixture (dashed: original)")
        footnote(figure, _caption(settings), 134)
        return save(figure, stem)


def laws(frames: dict[str, pd.DataFrame], settings: dict[str, Any], stem: Path) -> list[Path]:
    """The classes' own errors and how far each complement reaches; exact scores' shares against both laws, toward
    balance, away from it and with classes that lie unevenly."""
    with style():
        figure, axes = subplots(3, 2, figsize=(7.8, 9.0))
        for axis, reading in zip(axes[0], [*settings["complement"], None], strict=False):
            _exact(axis, frames["scores"], reading, settings)
        _away(axes[1, 0])
        _law_errors(axes[1, 1], frames["cases"])
        _classes(axes[2, 0], frames["shares"], settings)
        _reach(axes[2, 1], frames["reach"])
        caption = (
            "Exact scores: closed-form mixture scores, the real shares as the base's, Heun-40. Second row: other "
            "classes and shares (the table 'cases'), solid lines the separatrix's share, dashes and dots the laws as "
            f"above. Side effect: of the networks. {_caption(settings)}"
        )
        footnote(figure, caption, 134)
        return save(figure, stem)


def _networks(axis: Axes, shares: pd.DataFrame, reading: str | None, settings: dict[str, Any]) -> None:
    if reading is None:
        axis.set_axis_off()
        return
    strength = settings["strength"][0]
    part = shares[
        (shares["method"] == "control") & (shares["complement"] == reading) & (shares["strength"] == strength)
    ]
    for k, rows in part.groupby("class"):
        colour = _CLASS[(int(k) - 1) % len(_CLASS)]
        band(axis, rows, "omega", "share", color=colour, marker="o", markersize=3, label=f"class {k}")
        axis.plot(rows["omega"], rows["law_linear"], color=colour, ls="--", lw=0.9)
        axis.plot(rows["omega"], rows["law_geometric"], color=colour, ls=":", lw=0.9)
        axis.plot(rows["omega"].max() * 1.04, rows["target"].iloc[0], "<", color=colour, markersize=5)
        axis.plot(-0.04 * rows["omega"].max(), rows["base"].iloc[0], ">", color=colour, markersize=5)
    axis.set(xlabel="ω", ylabel="class share", title=f"Networks, {reading} complement, a = {strength:g}")
    axis.set_ylim(-0.03, 1.03)
    axis.plot([], [], color="black", ls="--", lw=0.9, label="p + ω(p − p$_{aux}$)")
    axis.plot([], [], color="black", ls=":", lw=0.9, label="p$^{1+ω}$/p$_{aux}^{ω}$")
    axis.legend(fontsize=6.5, ncol=2)


def _exact(axis: Axes, scores: pd.DataFrame, reading: str | None, settings: dict[str, Any]) -> None:
    if reading is None:
        axis.set_axis_off()
        return
    part = scores[scores["complement"] == reading]
    for k, rows in part.groupby("class"):
        colour = _CLASS[(int(k) - 1) % len(_CLASS)]
        axis.plot([], [], color=colour, lw=3, label=f"class {k}")
        ode, other = rows[rows["sampler"] == "ode"], rows[rows["sampler"] == "langevin"]
        axis.plot(ode["omega"], ode["share"], color=colour)
        axis.plot(other["omega"], other["share"], "D", color=colour, markersize=4, markerfacecolor="none")
        axis.plot(ode["omega"], ode["law_linear"], color=colour, ls="--", lw=0.9)
        axis.plot(ode["omega"], ode["law_geometric"], color=colour, ls=":", lw=0.9)
    axis.plot([], [], color="black", label="ODE")
    axis.plot([], [], "D", color="black", markersize=4, markerfacecolor="none", label="annealed Langevin")
    axis.set(xlabel="ω", ylabel="class share", title=f"Exact scores, {reading} complement, a = 1")
    axis.set_ylim(-0.03, 1.03)
    axis.legend(fontsize=6.5, ncol=2)


def _over_omega(
    axis: Axes, quality: pd.DataFrame, column: str, ylabel: str, floor: str, *, dashed: bool = False
) -> None:
    guided = quality[~quality["method"].isin(["standard", "equal-cost"])]
    for number, (_, rows) in enumerate(guided.groupby(["method", "complement", "strength"], sort=False, dropna=False)):
        first = rows.iloc[0]
        colour = {"sims": METHOD["standard"], "random": METHOD["random"]}.get(first["method"])
        shade = 1.0 - 0.12 * number if first["method"] == "control" else 1.0
        colour = colour or _CONTROL[first["complement"]]
        look: dict[str, Any] = {"ls": "--", "lw": 0.9} if dashed else {"ls": "-", "lw": 1.5}
        axis.plot(rows["omega"], rows[column], color=colour, label=label(first), alpha=shade, **look)
        if not dashed:
            axis.fill_between(
                rows["omega"], rows[f"{column}_low"], rows[f"{column}_high"], color=colour, alpha=0.15, lw=0
            )
    equal = quality[quality["method"] == "equal-cost"]
    if len(equal) and not dashed:
        one = equal.iloc[0]
        axis.axhspan(one[f"{column}_low"], one[f"{column}_high"], color=METHOD["equal-cost"], alpha=0.12, lw=0)
        axis.axhline(one[column], color=METHOD["equal-cost"], ls=(0, (4, 2)), lw=1.2, label="base, equal cost")
    if floor:
        axis.axhline(quality[floor].mean(), color="black", ls=":", lw=0.9, label="floor")
    axis.set(xlabel="ω", ylabel=ylabel)
    axis.set_ylim(0, None)


def _classes(axis: Axes, shares: pd.DataFrame, settings: dict[str, Any]) -> None:
    for method, reading, look in (
        *(("control", r, "-" if i == 0 else "--") for i, r in enumerate(settings["complement"])),
        ("sims", "none", "-."),
    ):
        part = shares[(shares["method"] == method) & (shares["complement"] == reading)]
        if method == "control":
            part = part[part["strength"] == settings["strength"][0]]
        for k, rows in part.groupby("class"):
            colour = _CLASS[(int(k) - 1) % len(_CLASS)]
            name = f"class {k}" if method == "sims" else None
            band(axis, rows, "omega", "class_w2", color=colour, alpha=0.1, ls=look, lw=1.2, label=name)
        name = "plain SIMS" if method == "sims" else f"complement {reading}"
        axis.plot([], [], color="black", ls=look, label=name)
    own = shares[shares["method"] == "standard"]
    axis.axhline(own["class_w2_floor"].mean(), color="black", ls=":", lw=0.9, label="floor")
    axis.set(xlabel="ω", ylabel="$W_2$ of the class's moments", title="Side effect within each class")
    axis.set_ylim(0, 1.25 * axis.get_ylim()[1])
    axis.legend(fontsize=6.5, ncol=2, loc="upper left")


def _reach(axis: Axes, reach: pd.DataFrame) -> None:
    tops = reach.groupby("shift")[["tv", "tv_at_inverse_strength"]].max().max(axis=1)
    for number, (reading, rows) in enumerate(reach.groupby("complement", sort=False)):
        rows = rows[rows["strength"] == rows["strength"].iloc[0]]
        colour = _CONTROL[str(reading)]
        axis.plot(rows["shift"], rows["tv"], color=colour, marker="o", markersize=3.5, label=f"{reading}, best ω")
        axis.plot(
            rows["shift"], rows["tv_at_inverse_strength"], color=colour, ls="--", lw=0.9, label=f"{reading}, ω = 1/a"
        )
        for _, row in rows.iterrows():  # above all that is drawn there, a line of numbers a reading
            axis.annotate(f"{row['omega']:g}", (row["shift"], tops[row["shift"]]), fontsize=6, color=colour,
                          xytext=(0, 5 + 8 * number), textcoords="offset points", ha="center")  # fmt: skip
    first = reach.drop_duplicates("shift")
    axis.plot(first["shift"], first["tv_base"], color="black", ls=":", label="base")
    axis.set(xlabel="share of the way to the target asked for", ylabel="total variation left")
    axis.set_title("Exact scores: reach (numbers: best ω)")
    axis.set_ylim(0, None)
    axis.legend(fontsize=6.5)


def _away(axis: Axes) -> None:
    """Two classes of equal spread: the ODE's share by the separatrix, with both laws, toward and away from balance."""
    omegas = np.linspace(0, 2, 41)
    pair = CASES[0].mixture
    for (p, a), colour in (((0.8, 0.95), _CLASS[0]), ((0.6, 0.4), _CLASS[2])):
        base, auxiliary = (p, 1 - p), (a, 1 - a)
        axis.plot(omegas, [separatrix_share(pair, base, auxiliary, w) for w in omegas], color=colour,
                  label=f"p = {p}, p$_{{aux}}$ = {a}")  # fmt: skip
        axis.plot(omegas, transport_law(base, auxiliary, omegas)[:, 0], color=colour, ls="--", lw=0.9)
        axis.plot(omegas, density_law(base, auxiliary, omegas)[:, 0], color=colour, ls=":", lw=0.9)
    axis.axhline(0.5, color="#888888", lw=0.7)
    axis.set(
        xlabel="ω", ylabel="share of the first class", title="Two classes: toward 1/2, and away", ylim=(-0.03, 1.03)
    )
    axis.legend(fontsize=6.5, loc="lower left")


def _law_errors(axis: Axes, cases: pd.DataFrame) -> None:
    off = law_errors(cases)
    for shift, (law, text) in enumerate((("linear", "p + ω(p − p$_{aux}$)"), ("geometric", "p$^{1+ω}$/p$_{aux}^{ω}$"))):
        places = [-i - 0.36 * shift for i in range(len(off))]
        axis.barh(places, off[law], height=0.34, color=_CONTROL[law], label=text)
    axis.set_yticks([-i - 0.18 for i in range(len(off))], [kind.replace(", ", ",\n") for kind in off.index], fontsize=7)
    axis.set(xlabel="mean error of a class share", title="Exact scores, ODE: which law is nearer")
    axis.legend(fontsize=6.5)


def _caption(settings: dict[str, Any]) -> str:
    k = settings["network"]
    target = ", ".join(f"{v:.3g}" for v in settings["target"])
    return (
        f"Algorithm 2 on {settings['real']} (components of std 0.2 on a circle of radius 2), |D_r| = "
        f"{settings['real_size']}, target ({target}), {settings['auxiliary_size']} selected samples for the auxiliary, "
        f"budget {settings['budget']} samples seen, sampler {settings['sampler']}, {settings['trials']} paired trials, "
        f"{settings['points']} points per model, seed {settings['seed']}. Triangles: base (left), target (right). "
        "Bands: 95 % paired bootstrap intervals. Laws from the measured shares of base and auxiliary. "
        f"Networks: {k['layers']} x {k['width']} {k['activation']}, {k['steps']} Adam steps of {k['batch']} rows, rate "
        f"{k['rate']:g}, auxiliary {k['auxiliary_rate']:g}{unusual(k, _TOLD)}. "
        "The reading of 'complement', its strength, data, sizes and sampler "
        "are ours; the paper does not state them."
    )


def draw(frames: dict[str, pd.DataFrame], settings: dict[str, Any], folder: Path) -> list[Path]:
    """`control` and `control_laws`, in the run's folder."""
    return networks(frames, settings, folder / "control") + laws(frames, settings, folder / "control_laws")
