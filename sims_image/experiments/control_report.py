"""The report of `sims_image control`: shares, distance to the target, quality by class and overall, over omega."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sims_core.control import total_variation, transport_law
from sims_core.lab.style import METHOD, band, sequence, style
from sims_core.seeds import Seed
from sims_image.experiments.captions import settings_line
from sims_image.experiments.judging import Judged, Judging
from sims_image.experiments.laboratory import Lab, said, summarise
from sims_image.experiments.options import Control

_LABELS = {
    "base": "base",
    "equal-cost": "base, twice the steps",
    "auxiliary": "auxiliary alone",
    "control": "control (complement)",
    "sims": "plain SIMS",
    "random": "random direction",
}


class Outcome:
    """Rows of what was measured: one per arm, omega and trial, and one per class of each."""

    def __init__(self, lab: Lab, judging: Judging) -> None:
        self.lab, self.judging = lab, judging
        self.models: list[dict[str, Any]] = []
        self.classes: list[dict[str, Any]] = []

    def adder(self, trial: int, known: dict[str, Any]) -> Callable[[str, float, Judged], None]:
        """A function that takes in a trial's models. known: its base shares, target and wanted auxiliary's shares."""
        moved: dict[str, float] = {}

        def add(arm: str, omega: float, found: Judged) -> None:
            target, base, wanted = known["target"], known["base"], known["wanted"]
            shares = found.shares.shares
            if arm == "auxiliary":  # how far its own samples went toward the shares that it was trained on
                way = wanted - base
                moved["eta"] = float((shares - base) @ way / (way @ way)) if float(way @ way) else float("nan")
            one: dict[str, Any] = {"arm": arm, "omega": omega, "trial": trial, "n": found.cell["n"], "nfe": found.nfe}
            # a deviation from the target has the expected size of drawing n images, even at the target
            one |= {"tv": float(total_variation(np.clip(shares, 0, 1), target))}
            one |= {"tv_base": float(total_variation(base, target)), "eta": moved.get("eta")}
            one |= {"frechet_target": self.judging.target_distance(found, target)}
            one |= {name: value["value"] for name, value in found.cell["overall"].items()}
            self.models.append(one)
            law = transport_law(base, wanted, omega) if arm == "control" else np.full(len(target), np.nan)
            for k, name in enumerate(self.judging.judge.classes):
                quality = found.cell["classes"][k]
                row = {"arm": arm, "omega": omega, "trial": trial, "class": name, "target": float(target[k])}
                row |= {"base": float(base[k]), "auxiliary": float(wanted[k]), "law": float(law[k])}
                row |= {"judged": found.cell["predicted"][k] / found.cell["n"], "share": float(shares[k])}
                row |= {"share_low": float(found.shares.low[k]), "share_high": float(found.shares.high[k])}
                row |= {"kid": None if quality is None else quality["kid"]["value"]}
                row |= {"frechet": None if quality is None else quality["frechet"]["value"]}
                self.classes.append(row)

        return add

    def tables(self) -> dict[str, pd.DataFrame]:
        """'models', 'classes' (every trial), 'summary' and 'shares' (means and intervals over trials)."""
        models, classes = pd.DataFrame(self.models).astype({"frechet_target": float}), pd.DataFrame(self.classes)
        start = models[models["arm"] == "base"].set_index("trial")
        for name in ("tv", "frechet", "frechet_target"):
            models[f"{name}_minus_base"] = models[name] - start[name].reindex(models["trial"]).to_numpy()
        wanted = ["tv", "tv_minus_base", "frechet", "frechet_minus_base", "frechet_target", "frechet_target_minus_base"]
        values = [*wanted, "precision", "recall", "density", "coverage"]
        summary = summarise(models, ["arm", "omega", "nfe"], values)
        summary["tv_floor"] = self.floor(models["n"].iloc[0], classes)
        means = ["share", "judged", "base", "auxiliary", "law", "kid", "frechet"]
        shares = summarise(
            classes.drop(columns=["share_low", "share_high"]).astype(dict.fromkeys(means, float)),
            ["arm", "omega", "class", "target"],
            means,
        )
        return {"models": models, "classes": classes, "summary": summary, "shares": shares}

    def floor(self, n: int, classes: pd.DataFrame) -> float:
        """The mean total variation of as many images drawn in the target's own shares."""
        one = classes[(classes["arm"] == "base") & (classes["trial"] == classes["trial"].min())]
        target = one["target"].to_numpy()
        drawn = Seed(0).child("floor").numpy().multinomial(n, target / target.sum(), size=2000)
        errors = self.judging.errors
        if errors is None:
            return float(total_variation(drawn / n, target).mean())
        rates = errors / errors.sum(1, keepdims=True)
        judged = Seed(0).child("judged").numpy().multinomial(n, target @ rates, size=2000) / n
        return float(total_variation(np.clip(judged @ np.linalg.inv(rates), 0, 1), target).mean())


def figure(tables: dict[str, pd.DataFrame], outcome: Outcome) -> Figure:
    """Shares of every class at each omega; total variation and Fréchet distances against omega."""
    lab, summary, shares = outcome.lab, tables["summary"], tables["shares"]
    metric = lab.bench.reference.extractor.metric
    mine = shares[shares["arm"] == "control"]
    omegas = sorted(mine["omega"].unique())
    with style():
        made = Figure(figsize=(9.6, 6.2), layout="constrained")
        (first, second), (third, fourth) = made.subplots(2, 2)
        names = list(dict.fromkeys(shares["class"]))
        places = np.arange(len(names))
        rows = [
            ("base", 0.0, "#4d4d4d"),
            *(("control", w, c) for w, c in zip(omegas, sequence(len(omegas)), strict=True)),
        ]
        for place, (arm, omega, colour) in enumerate(rows):
            one = shares[(shares["arm"] == arm) & (shares["omega"] == omega)].set_index("class").loc[names]
            x = places + (place - (len(rows) - 1) / 2) * 0.8 / len(rows)
            span = [one["share"] - one["share_low"], one["share_high"] - one["share"]]
            first.errorbar(x, one["share"], yerr=span, fmt="o", ms=3, lw=0.8, color=colour,
                           label="base" if arm == "base" else f"ω = {omega:g}")  # fmt: skip
        one = shares[shares["arm"] == "base"].set_index("class").loc[names]
        first.step(np.append(places, places[-1] + 1) - 0.5, np.append(one["target"], one["target"].iloc[-1]),
                   where="post", color="black", lw=0.9, ls="--", label="target")  # fmt: skip
        first.set_xticks(places, names)
        first.set_title("class shares, the classifier's errors taken out")
        first.legend(fontsize=7, ncols=2, loc="upper left")
        panels = (
            (second, "tv", "total variation to the target"),
            (third, "frechet", f"{metric} to all real images"),
            (fourth, "frechet_target", f"{metric} to real images in the target's shares"),
        )
        for axes, column, title in panels:
            for arm, colour in (("control", METHOD["sims"]), ("sims", METHOD["rebuilt"]), ("random", METHOD["random"])):
                part = summary[summary["arm"].isin([arm, "base"])].sort_values("omega")
                band(axes, part, "omega", column, color=colour, marker="o", ms=3, label=_LABELS[arm])
            equal = summary[summary["arm"] == "equal-cost"].iloc[0]
            low, high = equal[f"{column}_low"], equal[f"{column}_high"]
            if low == low:
                axes.axhspan(low, high, color=METHOD["equal-cost"], alpha=0.1, lw=0)
            axes.axhline(equal[column], color=METHOD["equal-cost"], lw=0.9, ls="-.", label=_LABELS["equal-cost"])
            if column == "tv":
                axes.axhline(equal["tv_floor"], color="black", lw=0.8, ls=":", label="drawn from the target")
            axes.set_ylim(bottom=0)
            axes.set_title(title)
            axes.set_xlabel("guidance strength ω")
        second.legend(fontsize=7)
        settings = lab.settings
        assert isinstance(settings, Control)
        made.suptitle(
            f"{lab.data.open().name}, |D_r| = {lab.sizes.real:,}; complement {settings.complement}, a = "
            f"{settings.strength:g}; n = {lab.sizes.n:,}, {settings.trials} trials, 95 % intervals over trials\n"
            f"{settings_line(settings)}",
            fontsize=9,
        )
    return made


def words(tables: dict[str, pd.DataFrame], outcome: Outcome) -> list[str]:
    """What came out, in sentences that the numbers decide."""
    summary, models = tables["summary"], tables["models"]
    metric = outcome.lab.bench.reference.extractor.metric
    base = summary[summary["arm"] == "base"].iloc[0]
    told = [
        f"Total variation to the target: base {said(base, 'tv')}, images drawn from the target {base['tv_floor']:.3f}."
    ]
    eta = models.loc[models["arm"] == "auxiliary", "eta"].mean()
    told.append(f"The auxiliary's own samples went {eta:.2f} of the way to the shares that it was trained on (eta).")
    for arm in ("control", "sims", "random"):
        part = summary[summary["arm"] == arm]
        best = part.loc[part["tv"].idxmin()]
        low, high = best["tv_minus_base_low"], best["tv_minus_base_high"]
        side = (
            "nearer than the base"
            if high < 0
            else "farther than the base"
            if low > 0
            else "indistinguishable from the base"
        )
        told.append(
            f"{_LABELS[arm]}: nearest at omega = {best['omega']:g} (of {len(part)} tried), total variation "
            f"{said(best, 'tv')}, {side} (difference {said(best, 'tv_minus_base')}); "
            f"{metric} {said(best, 'frechet')} (base {base['frechet']:.4g}), to real images in the target's shares "
            f"{said(best, 'frechet_target')} (base {base['frechet_target']:.4g})."
        )
    control = tables["shares"]
    control = control[control["arm"] == "control"]
    off = float((control["share"] - control["law"]).abs().mean())
    told.append(f"Mean error of a class share by the law p + omega (p - p_aux): {off:.3f}.")
    return told
