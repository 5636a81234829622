"""The report of `sims_image loop`: distance, recall and coverage against generations, and what they say."""

from __future__ import annotations

from typing import Any

import pandas as pd
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from sims_core.lab.style import METHOD, band, style
from sims_image.experiments.captions import settings_line
from sims_image.experiments.laboratory import Lab, said, summarise

#: panels of the figure: column, title
PANELS = (
    ("frechet", "distance to real images"),
    ("ratio", "distance / its first generation"),
    ("precision", "precision"),
    ("recall", "recall"),
    ("density", "density"),
    ("coverage", "coverage"),
)


def colours(arms: pd.DataFrame) -> dict[str, str]:
    """A colour an arm: its method's, lighter ones for the smaller omegas of a grid."""
    found = {}
    for method, part in arms.groupby("method", sort=False):
        red, green, blue = to_rgb(METHOD[str(method)])
        for place, arm in enumerate(reversed(list(dict.fromkeys(part["arm"])))):
            pale = 0.6 * place / max(1, part["arm"].nunique() - 1) if part["arm"].nunique() > 1 else 0.0
            found[str(arm)] = to_hex((red + (1 - red) * pale, green + (1 - green) * pale, blue + (1 - blue) * pale))
    return found


def tables(rows: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """'generations' (every trial) and 'summary': means and intervals over trials, one row per arm and generation.

    ratio: to the arm's own first generation; minus_standard: difference to standard training at that generation;
    to_first: ratio to the first generation of standard training. All are paired by trial.
    """
    generations, rows = rows, rows.copy()
    own = rows[rows["generation"] == 1].set_index(["arm", "trial"])["frechet"]
    plain = rows[rows["method"] == "standard"].set_index(["generation", "trial"])["frechet"]

    def at(values: pd.Series, *keys: Any) -> Any:
        return values.reindex(pd.MultiIndex.from_arrays(keys)).to_numpy()

    rows["ratio"] = rows["frechet"] / at(own, rows["arm"], rows["trial"])
    rows["minus_standard"] = rows["frechet"] - at(plain, rows["generation"], rows["trial"])
    rows["to_first"] = rows["frechet"] / at(plain, [1] * len(rows), rows["trial"])
    values = ["frechet", "precision", "recall", "density", "coverage", "ratio", "minus_standard", "to_first"]
    kept = [name for name in values if name in rows]
    found = summarise(rows, ["arm", "method", "omega", "generation"], kept)
    return {"generations": generations, "summary": found}


def figure(found: dict[str, pd.DataFrame], lab: Lab) -> Figure:
    """One panel a quantity; bands are 95% intervals over trials."""
    summary, rows, settings = found["summary"], found["generations"], lab.settings
    panels = [panel for panel in PANELS if panel[0] in summary]
    shades, metric = colours(summary), lab.bench.reference.extractor.metric
    with style():
        made = Figure(figsize=(9.6, 5.6), layout="constrained")
        grid = made.subplots(2, 3, sharex=True).ravel()
        for axes, (column, title) in zip(grid, panels, strict=False):
            for arm, part in summary.groupby("arm", sort=False):
                band(axes, part, "generation", column, color=shades[str(arm)], marker="o", ms=3, label=arm)
            if column == "frechet" and rows["floor"].notna().all():
                axes.axhline(rows["floor"].mean(), color="black", lw=0.8, ls=":", label="real images")
            axes.set_title(metric if column == "frechet" else title)
            if column not in ("ratio",):
                axes.set_ylim(bottom=0)
            axes.xaxis.get_major_locator().set_params(integer=True)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[3:]:
            axes.set_xlabel("generation")
        grid[0].legend(fontsize=7)
        loop, sizes = getattr(settings, "loop", ""), lab.sizes
        made.suptitle(
            f"{lab.data.open().name}: loop {loop}, |D_r| = {sizes.real:,}, |D_s| = {sizes.synthetic:,}; "
            f"n = {sizes.n:,}, {settings.trials} trials, bands are 95 % intervals over trials\n"
            f"{settings_line(settings)}",
            fontsize=9,
        )
    return made


def words(found: dict[str, pd.DataFrame], lab: Lab) -> list[str]:
    """What came out, in sentences that the numbers decide."""
    summary = found["summary"]
    metric = lab.bench.reference.extractor.metric
    last = int(summary["generation"].max())
    told = []
    for arm, part in summary.groupby("arm", sort=False):
        end = part[part["generation"] == last].iloc[0]
        start = part[part["generation"] == 1].iloc[0]
        low, high = end["ratio_low"], end["ratio_high"]
        if high < 1:
            verdict = "improves"
        elif low > 1:
            verdict = "degrades"
        elif low == low:
            verdict = "is undecided"
        else:
            verdict = "has one trial only"
        told.append(
            f"{arm}: {verdict} over {last} generations: {metric} {start['frechet']:.4g} to {end['frechet']:.4g}, ratio "
            f"{said(end, 'ratio')}; recall {start['recall']:.3f} to {end['recall']:.3f}, coverage "
            f"{start['coverage']:.3f} to {end['coverage']:.3f}."
        )
    ends = summary[summary["generation"] == last]
    for _, row in ends[(ends["method"] != "standard") & ends["minus_standard"].notna()].iterrows():
        low, high = row["minus_standard_low"], row["minus_standard_high"]
        side = "better than" if high < 0 else "worse than" if low > 0 else "indistinguishable from"
        told.append(
            f"At generation {last}, {row['arm']} is {side} standard training: {metric} differs by "
            f"{said(row, 'minus_standard')}; it is {said(row, 'to_first')} of standard training's first generation."
        )
    return told
