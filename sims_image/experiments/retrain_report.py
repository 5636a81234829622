"""The report of `sims_image retrain`: distance, precision and recall against rounds, one curve per λ."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from sims_core.lab.style import OUTSIDE, band, sequence, style
from sims_image.experiments.captions import settings_line
from sims_image.experiments.laboratory import Lab, said, summarise


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """'rounds' (every trial) and 'summary': means and intervals over trials, one row per λ and round.

    to_first, to_real: the distance's ratio to the first round's, and to that of λ = 0 at the same round, paired by
    trial.
    """
    rows = rows.rename(columns={"generation": "round"}).drop(columns=["arm", "method", "omega"])
    summary = rows.copy()
    first = rows[rows["round"] == 1].set_index(["ratio", "trial"])["frechet"]
    real = rows[rows["ratio"] == 0].set_index(["round", "trial"])["frechet"]
    own = pd.MultiIndex.from_frame(rows[["ratio", "trial"]])
    same = pd.MultiIndex.from_frame(rows[["round", "trial"]])
    summary["to_first"] = rows["frechet"].to_numpy() / first.reindex(own).to_numpy()
    summary["to_real"] = rows["frechet"].to_numpy() / real.reindex(same).to_numpy()
    values = ["frechet", "to_first", "to_real", "precision", "recall", "density", "coverage"]
    found = summarise(summary, ["ratio", "round"], [name for name in values if name in summary])
    return {"rounds": rows, "summary": found}


def figure(found: dict[str, pd.DataFrame], lab: Lab) -> Figure:
    """One panel a quantity; bands are 95% intervals over trials."""
    summary, metric = found["summary"], lab.bench.reference.extractor.metric
    ratios = list(dict.fromkeys(summary["ratio"]))
    finite = [ratio for ratio in ratios if ratio < float("inf")]
    colours = dict(zip(finite, sequence(len(finite)), strict=True)) | {float("inf"): OUTSIDE}
    panels = (("frechet", metric), ("precision", "precision"), ("recall", "recall"))
    with style():
        made = Figure(figsize=(9.6, 3.4), layout="constrained")
        grid = made.subplots(1, 3)
        for axes, (column, title) in zip(grid, panels, strict=True):
            for ratio in ratios:
                part = summary[summary["ratio"] == ratio]
                label = "no real images" if ratio == float("inf") else f"λ = {ratio:g}"
                band(axes, part, "round", column, color=colours[ratio], marker="o", ms=3, label=label)
            floor = found["rounds"]["floor"]
            if column == "frechet" and floor.notna().all():
                axes.axhline(floor.mean(), color="black", lw=0.8, ls=":", label="real images")
            axes.set_title(title)
            axes.set_ylim(bottom=0)
            axes.set_xlabel("round")
            axes.xaxis.get_major_locator().set_params(integer=True)
        grid[1].legend(*grid[0].get_legend_handles_labels(), fontsize=7, loc="center")
        made.suptitle(
            f"{lab.data.open().name}, |D_r| = {lab.sizes.real:,}; n = {lab.sizes.n:,}, {lab.settings.trials} trials, "
            f"bands are 95 % intervals over trials\n{settings_line(lab.settings)}",
            fontsize=9,
        )
    return made


def words(found: dict[str, pd.DataFrame], lab: Lab) -> list[str]:
    """What came out, in sentences that the numbers decide."""
    summary, metric = found["summary"], lab.bench.reference.extractor.metric
    last = int(summary["round"].max())
    told = []
    for _, row in summary[summary["round"] == last].iterrows():
        name = "no real images" if row["ratio"] == float("inf") else f"λ = {row['ratio']:g}"
        text = (
            f"{name}: after {last} rounds {metric} {said(row, 'frechet')}, {said(row, 'to_first')} of the first round's"
        )
        if row["ratio"] != 0:
            low, high = row["to_real_low"], row["to_real_high"]
            side = "worse than" if low > 1 else "better than" if high < 1 else "indistinguishable from"
            text += f", {side} λ = 0 (ratio {said(row, 'to_real')})"
        told.append(f"{text}; precision {row['precision']:.3f}, recall {row['recall']:.3f}.")
    return told
