"""What `sims_toy.sampling_cost` makes of its distances: each way of sampling at its own best omega, tables, figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sims_core.guidance import GuidanceSchedule
from sims_core.lab.style import METHOD, footnote, save, style, subplots
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy import phase

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sims_toy.grid.parse import law_text
from sims_toy.grid.cells import Array, Cell, Experiment, Values

#: What the words call the ways that have no schedule.
BASE, MERGE = "base alone", "weight merge"


def distinct(sampler: Sampler, schedules: Sequence[GuidanceSchedule]) -> list[GuidanceSchedule]:
    """The schedules that differ with this sampler: at one evaluation per step 'predictor' and 'held:1' are 'full'."""
    if sampler.KNOWN[sampler.name][2] > 1:
        return list(dict.fromkeys(schedules))
    same = [replace(s, every=0, hold=True) if s.every == 1 else s for s in schedules]
    return list(dict.fromkeys(same))


def way(cell: Cell) -> str:
    """The name of a cell's way of sampling: 'base alone', 'base heun:36', 'weight merge', or the schedule."""
    if cell.method == "standard":
        return BASE
    if cell.method == "equal-cost":
        return f"base {cell.sampler}"
    return MERGE if cell.method == "neon" else cell.guidance


def in_words(way: str) -> str:
    """A way of sampling for a legend: 'held:2+interval:0.8:3' is 'held over 2 steps, σ from 0.8 to 3'."""
    said = {"full": "full guidance", "predictor": "predictor only", "held:1": "held over 1 step"}
    parts = [part.split(":") for part in way.split("+")]
    forms = {"held": "held over {} steps", "interval": "σ from {} to {}"}
    return ", ".join(said.get(":".join(p)) or forms.get(p[0], ":".join(p)).format(*p[1:]) for p in parts)


def best(values: Array, omegas: Sequence[float], weights: Array) -> dict[str, float]:
    """The best omega of a way of sampling, and its quality there, each with its interval.

    values: (omegas, trials), finite where usable. weights: bootstrap (resamples, trials). The best omega is the vertex
    of the parabola through the lowest mean and its neighbours; its interval is the bootstrap's. The quality is
    cross-fitted: half the trials choose the grid's omega and the other half are measured at it, both ways, so that
    choosing does not flatter; ``held_out`` are those values, (trials,).
    """
    w = np.asarray(omegas, dtype=np.float64)
    vertex, _ = _vertex(w, phase.finite_mean(values))
    resampled = np.array([_vertex(w, row)[0] for row in phase.weighted(weights, values.T)])
    held = phase.held_out(values)
    omega, low, high = phase.bounded(vertex, resampled, values.shape[1])
    at = int(np.argmin(phase.finite_mean(values)))
    return {
        "omega": omega,
        "omega_low": low,
        "omega_high": high,
        "omega_grid": float(w[at]),
        "edge": float(len(w) > 1 and at == len(w) - 1),
        **_summary(held, weights),
    }


def _summary(values: Array, weights: Array) -> dict[str, float]:
    found = phase.mean_row("w2", values, weights)
    se = float(values.std(ddof=1) / np.sqrt(len(values))) if np.isfinite(values).all() else np.inf
    return {"w2": found.pop("w2"), "w2_se": se, **found}


def _vertex(omegas: Array, means: Array) -> tuple[float, float]:
    """The lowest point of the parabola through the lowest of ``means`` and its two neighbours: (omega, value)."""
    i = int(np.argmin(means))
    if not 0 < i < len(omegas) - 1 or not np.isfinite(means[i - 1 : i + 2]).all():
        return float(omegas[i]), float(means[i])
    a, b, c = np.polyfit(omegas[i - 1 : i + 2] - omegas[i], means[i - 1 : i + 2], 2)
    if a <= 0:
        return float(omegas[i]), float(means[i])
    return float(omegas[i] - b / (2 * a)), float(c - b * b / (4 * a))


def make(parts: Mapping[str, Experiment], values: dict[str, Values]) -> dict[str, pd.DataFrame]:
    """Tables 'costs' (one row a way of sampling) and 'curves' (one row a way and omega), of every part."""
    costs, curves = [], []
    for name, part in parts.items():
        w2 = values[name]["w2"][:, :, phase.last_generations(part.generations)].mean(2)
        weights = phase.resampling_weights(part.trials, Seed(part.seed))
        groups: dict[tuple[str, str], list[int]] = {}
        for i, cell in enumerate(part.cells):
            groups.setdefault((cell.reference, way(cell)), []).append(i)
        anchors = {}
        for sampler in dict.fromkeys(reference for reference, _ in groups):
            full = groups.get((sampler, "full"))
            anchors[sampler] = phase.held_out(w2[full]) if full else None
        for (reference, label), rows in groups.items():
            cell = part.cells[rows[0]]
            base, auxiliary = Sampler.parse(cell.sampler).evaluations(GuidanceSchedule.parse(cell.guidance))
            auxiliary = auxiliary if cell.method == "sims" else 0
            omegas = [part.cells[i].omega for i in rows]
            found = best(w2[rows], omegas, weights)
            against, low, high = np.nan, np.nan, np.nan
            anchor = anchors[reference]
            if anchor is not None:  # paired: trials share their draws
                mine = phase.weighted(weights, phase.held_out(w2[rows])[:, None])[:, 0]
                ratios = phase.ratio(mine, phase.weighted(weights, anchor[:, None])[:, 0])
                against, low, high = phase.bounded(found["w2"] / anchor.mean(), ratios, part.trials)
            identity: dict[str, Any] = {"measured": name, "sampler": reference, "way": label, "method": cell.method}
            costs.append(
                identity
                | {
                    "base_evaluations": base,
                    "auxiliary_evaluations": auxiliary,
                    "cost": (base + auxiliary) / Sampler.parse(reference).nfe,
                    "trials": part.trials,
                    **found,
                    "edge": bool(found["edge"]),
                    "against_full": against,
                    "against_full_low": low,
                    "against_full_high": high,
                }
            )
            curves += [
                identity
                | {"omega": part.cells[i].omega, "diverged": int((~np.isfinite(w2[i])).sum())}
                | _summary(w2[i], weights)
                for i in rows
            ]
    return {"costs": pd.DataFrame(costs), "curves": pd.DataFrame(curves)}


# -------------------------------------------------------------------- figure

_COLOURS = ("#0072b2", "#56b4e9", "#d98cb3", "#a3367a", "#4a1040", "#d55e00", "#8c6d31", "#999999")
_MARKERS = "os^vDPX*"


def draw(frames: dict[str, pd.DataFrame], settings: dict[str, Any], folder: Path) -> list[Path]:
    """Figure 'sampling_cost': quality against cost, its ratio to full guidance, and quality against omega.

    Three rows; a column a part and sampler.
    """
    costs, curves = frames["costs"], frames["curves"]
    measured, samplers = list(costs["measured"].unique()), settings["sampler"]
    guided = [w for w in costs["way"].unique() if w in {str(GuidanceSchedule.parse(g)) for g in settings["guidance"]}]
    looks: dict[str, dict[str, Any]] = {
        way: {"color": _COLOURS[i % len(_COLOURS)], "marker": _MARKERS[i % len(_MARKERS)]}
        for i, way in enumerate(guided)
    }
    looks |= {MERGE: {"color": METHOD["neon"], "marker": "d"}, BASE: {"color": METHOD["standard"], "marker": "."}}
    columns = [(part, sampler) for part in measured for sampler in samplers]
    with style():
        size = (2.85 * len(columns) + 0.3, 8.3)
        figure, axes = subplots(3, len(columns), figsize=size, squeeze=False)
        for j, (part, sampler) in enumerate(columns):
            if j % len(samplers):  # one scale a part
                for axis, first in zip(axes[:, j], axes[:, j - j % len(samplers)], strict=True):
                    axis.sharey(first)
            mine = costs[(costs["measured"] == part) & (costs["sampler"] == sampler)]
            _against_cost(axes[0, j], mine, looks, "w2", mine)
            _against_cost(axes[1, j], mine, looks, "against_full", costs[costs["measured"] == part])
            there = curves[(curves["measured"] == part) & (curves["sampler"] == sampler)]
            _against_omega(axes[2, j], there, mine, looks)
            name, _, steps = sampler.partition(":")
            when = "first generation" if part == "first" else "end of the loop"
            axes[0, j].set_title(f"{name.upper() if name == 'ddim' else name.capitalize()}-{steps}, {when}")
            for axis in axes[:, j] if j else []:
                axis.set_ylabel("")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=5)
        footnote(figure, caption(settings), 50 * len(columns))
        return save(figure, folder / "sampling_cost")


def _against_cost(
    axis: Axes, costs: pd.DataFrame, looks: dict[str, dict[str, Any]], value: str, whole: pd.DataFrame
) -> None:
    """value: 'w2', or 'against_full', drawn close to 1. whole: the rows that share the axis's scale."""
    if value == "against_full":
        close = whole[np.isfinite(whole[value]) & (whole[value] < 1.1)]  # more steps of the base among them
        if close.empty:
            axis.set_axis_off()
            return
        low, high = min(close[f"{value}_low"].min(), 0.985), max(close[f"{value}_high"].max(), 1.015)
        axis.set_ylim(low - 0.15 * (high - low), high + 0.15 * (high - low))
        axis.axhline(1, color=METHOD["standard"], lw=0.8, ls=":")
    more = costs[costs["method"].isin(["standard", "equal-cost"])].sort_values("cost")
    axis.errorbar(
        more["cost"], more[value], _bars(more, value), color=METHOD["equal-cost"], marker=".", lw=1,
        label="base, more steps",
    )  # fmt: skip
    for _, row in costs[~costs["method"].isin(["standard", "equal-cost"])].iterrows():
        one = row.to_frame().T
        axis.errorbar(
            one["cost"], one[value], _bars(one, value), **looks[row["way"]], ls="", ms=5, mfc="none", capsize=2,
            label=in_words(row["way"]),
        )  # fmt: skip
    axis.set_xlabel("network evaluations (base alone: 1)")
    axis.set_ylabel(r"$E[W_2]$ at the best $\omega$" if value == "w2" else "relative to full guidance")


def _bars(rows: pd.DataFrame, value: str) -> Array:
    below, above = rows[value] - rows[f"{value}_low"], rows[f"{value}_high"] - rows[value]
    return np.asarray(np.maximum(np.asarray([below, above], dtype=float), 0))


def _against_omega(axis: Axes, curves: pd.DataFrame, costs: pd.DataFrame, looks: dict[str, dict[str, Any]]) -> None:
    for label in [w for w in costs["way"] if w in looks and w != BASE]:
        curve = curves[(curves["way"] == label) & np.isfinite(curves["w2"])].sort_values("omega")
        axis.plot(curve["omega"], curve["w2"], color=looks[label]["color"], lw=1.2)
        row = costs[costs["way"] == label].iloc[0]
        axis.errorbar(
            row["omega"], row["w2"], xerr=[[max(row["omega"] - row["omega_low"], 0)],
            [max(row["omega_high"] - row["omega"], 0)]], **looks[label], ms=4.5, mfc="none",
        )  # fmt: skip
    base = costs[costs["way"] == BASE]
    axis.axhline(base["w2"].iloc[0], color=METHOD["standard"], lw=1, ls=":")
    axis.set_ylim(0, 1.5 * float(base["w2"].iloc[0]))
    axis.set_xlabel(r"guidance $\omega$")
    axis.set_ylabel(r"$E[W_2]$")


def caption(settings: dict[str, Any]) -> str:
    """All settings, and which are our reading."""
    mean, cov = settings["real_mean"], settings["real_covariance"]
    if len(mean) > 4:
        mean, cov = law_text(settings)
    budget = f"eta = {settings['budget']}" if settings["learner"] == "exact" else f"budget {settings['budget']} samples"
    loop = ""
    if "loop_generations" in settings:
        loop = (
            f" Loop: synthetic augmentation, |D_s| = {settings['synthetic_size']}, {settings['loop_generations']} "
            f"generations, {settings['loop_trials']} trials, mean of the last ten."
        )
    return (
        f"{settings['learner']} learner, N({mean}, {cov}), |D_r| = {settings['real_size']}, auxiliary on "
        f"{settings['auxiliary_size']} of the base's samples, {budget}, {settings['trials']} paired trials, seed "
        f"{settings['seed']}. Bars: 95 % bootstrap. Quality is cross-fitted: half the trials choose omega, the other "
        "half are measured. Lower panels: dots with bars are the best omega and its interval; dotted: the base alone."
        f"{loop} Intervals in sigma were picked on this toy and must be found again elsewhere; all settings are our "
        "reading, the paper evaluates both networks at every step."
    )


# --------------------------------------------------------------------- words


def words(frames: dict[str, pd.DataFrame], settings: dict[str, Any]) -> str:
    """The table of costs, and the conclusion."""
    costs = frames["costs"]
    lines = [
        f"{'':>6} {'sampler':>8} {'way':>24} {'evaluations':>12} {'cost':>6} {'best ω (95 %)':>20} "
        f"{'E[W2] (95 %)':>26} {'against full':>20}"
    ]
    for _, row in costs.iterrows():
        omega = f"{row.omega:.2f} ({row.omega_low:.2f} .. {row.omega_high:.2f})" + ("*" if row.edge else "")
        omega = "" if row.method in ("standard", "equal-cost") else omega
        against = f"{row.against_full:.3f} ({row.against_full_low:.3f} .. {row.against_full_high:.3f})"
        lines.append(
            f"{row.measured:>6} {row.sampler:>8} {row.way:>24} "
            f"{f'{row.base_evaluations}+{row.auxiliary_evaluations}':>12} "
            f"{row.cost:>5.2f}x {omega:>20} {f'{row.w2:.4f} ({row.w2_low:.4f} .. {row.w2_high:.4f})':>26} "
            f"{against if np.isfinite(row.against_full) else '':>20}"
        )
    if costs["edge"].any():
        lines.append("* at the end of the grid of omega: its best may lie beyond")
    lines += ["", *(_conclusion(part) for _, part in costs.groupby(["measured", "sampler"], sort=False))]
    return "\n".join(lines)


def _conclusion(costs: pd.DataFrame) -> str:
    """The cheapest guidance that is not measurably worse than the full one, and what the same evaluations buy."""
    when = "first generation" if costs["measured"].iloc[0] == "first" else "end of the loop"
    head = f"{costs['sampler'].iloc[0]}, {when}: "
    sims = costs[(costs["method"] == "sims") & (costs["way"] != "full")]
    full = costs[costs["way"] == "full"]
    if full.empty or sims.empty:
        row = costs.loc[costs["w2"].idxmin()]
        return f"{head}the lowest E[W2] is {row['way']}'s, {row['w2']:.4f} at {row['cost']:.2f}x the base's cost."
    as_good = sims[sims["against_full_low"] <= 1.01].sort_values(["cost", "w2"])
    text = f"{head}full guidance has {full['w2'].iloc[0]:.4f} at {full['cost'].iloc[0]:.2f}x; "
    if len(as_good):
        row = as_good.iloc[0]
        text += (
            f"{row['way']} has {row['w2']:.4f} at {row['cost']:.2f}x and omega = {row['omega']:.2g}, the cheapest that "
            "is not measurably more than 1 % worse"
        )
    else:
        text += "every cheaper schedule is measurably worse"
    rivals = costs[costs["method"].isin(["equal-cost", "neon"])]
    better = [
        f"{r['way']} {r['w2']:.4f} at {r['cost']:.2f}x{' (ahead of full guidance)' * (r['against_full_high'] < 1)}"
        for _, r in rivals.iterrows()
    ]
    return f"{text}. Without a second network: {', '.join(better)}."
