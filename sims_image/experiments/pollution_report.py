"""The report of `sims_image pollution`: four curves against |D_p|, at fixed omegas and at the best omega of each."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sims_core.lab.style import METHOD, band, style
from sims_image.experiments.captions import settings_line
from sims_image.experiments.laboratory import Lab, said, summarise

#: |D_p| / |D_r| below which the SIMS paper has a self-improved FID, by published settings (a secondary source)
SELF_IMPROVED = {"cifar10": 0.60, "ffhq64": 0.20}


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """'models' (every trial), 'curves' (means and intervals; minus_clean: difference to the same scenario's, at the
    same omega, without pollution, paired by trial) and 'best' (SIMS at the best omega of each |D_p|, chosen by the mean
    over trials on the images that it is then measured by).
    """
    rows = rows.copy()
    clean = rows[rows["dose"] == 0].set_index(["scenario", "omega", "trial"])["frechet"]
    plain = rows[rows["scenario"].str.startswith("ST")]
    plain = plain.assign(kind=plain["scenario"].str[-1]).set_index(["kind", "dose", "trial"])["frechet"]
    key = pd.MultiIndex.from_frame(rows[["scenario", "omega", "trial"]])
    rows["minus_clean"] = rows["frechet"].to_numpy() - clean.reindex(key).to_numpy()
    key = pd.MultiIndex.from_arrays([rows["scenario"].str[-1], rows["dose"], rows["trial"]])
    rows["minus_standard"] = rows["frechet"].to_numpy() - plain.reindex(key).to_numpy()
    wanted = ["frechet", "minus_clean", "minus_standard", "precision", "recall", "coverage"]
    curves = summarise(rows, ["scenario", "omega", "dose", "pollution"], [n for n in wanted if n in rows])
    guided = curves[curves["scenario"].str.startswith("SIMS")]
    best = guided.loc[guided.groupby(["scenario", "dose"])["frechet"].idxmin()].reset_index(drop=True)
    return {"models": rows, "curves": curves, "best": best}


def figure(found: dict[str, pd.DataFrame], lab: Lab) -> Figure:
    """Distance against |D_p|: a panel for each fixed omega, and one for the best omega of each |D_p|."""
    curves, best = found["curves"], found["best"]
    metric = lab.bench.reference.extractor.metric
    omegas = [w for w in sorted(curves["omega"].unique()) if w > 0]
    with style():
        made = Figure(figsize=(max(6.4, 3.3 * (len(omegas) + (len(omegas) > 1))), 3.4), layout="constrained")
        panels = [(f"ω = {w:g}", curves[curves["omega"].isin([0.0, w])]) for w in omegas]
        if len(omegas) > 1:
            panels.append(("ω chosen for each |D_p|", _joined(curves, best)))
        grid = np.atleast_1d(made.subplots(1, len(panels), sharey=True))
        for axes, (title, mine) in zip(grid, panels, strict=True):
            for scenario, colour, dash in (("ST-P", METHOD["standard"], ":"), ("SIMS-P", METHOD["sims"], (0, (6, 3)))):
                part = mine[mine["scenario"] == scenario]
                band(axes, part, "pollution", "frechet", color=colour, marker="o", ms=3, label=scenario)
                clean = mine[mine["scenario"] == scenario.replace("P", "I")]
                if len(clean) == 1:
                    axes.axhline(clean["frechet"].iloc[0], color=colour, lw=1.5, ls=dash, label=scenario[:-1] + "I")
                else:
                    axes.plot(
                        clean["pollution"], clean["frechet"], ls=dash, lw=1.5, color=colour, label=scenario[:-1] + "I"
                    )
            if share := SELF_IMPROVED.get(lab.settings.preset):
                axes.axvline(
                    share * lab.sizes.real, color="black", lw=0.8, ls=":", label=f"{share:.2f} |D_r|: the paper's"
                )
            axes.set_title(title)
            axes.set_xlabel("polluting images, |D_p|")
            axes.set_ylim(bottom=0)
        grid[0].set_ylabel(metric)
        grid[0].legend(fontsize=7)
        made.suptitle(
            f"{lab.data.open().name}, |D_r| = {lab.sizes.real:,}; n = {lab.sizes.n:,}, {lab.settings.trials} trials, "
            f"95 % intervals over trials\n{settings_line(lab.settings, width=14 * int(made.get_size_inches()[0]))}",
            fontsize=9,
        )
    return made


def _joined(curves: pd.DataFrame, best: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([curves[curves["omega"] == 0], best])


def words(found: dict[str, pd.DataFrame], lab: Lab) -> list[str]:
    """What came out, in sentences that the numbers decide."""
    curves, best = found["curves"], found["best"]
    metric = lab.bench.reference.extractor.metric
    told = []
    for (scenario, omega), part in curves.groupby(["scenario", "omega"], sort=False):
        if not str(scenario).endswith("P"):
            continue
        dirty = part[part["dose"] > 0]
        clean = part[part["dose"] == 0].iloc[0]
        least = dirty.loc[dirty["minus_clean"].idxmin()]
        name = f"{scenario}" + (f" at omega = {omega:g}" if omega else "")
        told.append(
            f"{name}: {metric} {said(clean, 'frechet')} without pollution; of the doses tried, |D_p| = "
            f"{int(least['pollution']):,} differs most favourably, by {said(least, 'minus_clean')}: {_side(least)}; "
            f"the largest, {int(dirty['pollution'].max()):,}, by {said(dirty.iloc[-1], 'minus_clean')}."
        )
    one = curves.loc[curves["omega"] > 0, "omega"].nunique() == 1
    for _, row in best[best["scenario"] == "SIMS-P"].iterrows():
        told.append(
            f"|D_p| = {int(row['pollution']):,}: {'' if one else 'best '}omega {row['omega']:g}, "
            f"{metric} {said(row, 'frechet')}, against "
            f"standard training {said(row, 'minus_standard')}."
        )
    return told


def _side(row: Any) -> str:
    if row["minus_clean_high"] < 0:
        return "pollution helps"
    return "pollution hurts" if row["minus_clean_low"] > 0 else "undecided"
