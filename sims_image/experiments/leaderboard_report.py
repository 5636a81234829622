"""Tables, figures and sentences of `sims_image leaderboard`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from sims_core.forecast import rank_correlation
from sims_core.lab.style import METHOD, footnote, style
from sims_core.seeds import Seed
from sims_image.data.stores import Images
from sims_image.experiments.captions import settings_line
from sims_image.experiments.laboratory import Lab, mean_interval, said
from sims_image.experiments.sims_report import samples_figure
from sims_image.metrics.compare import METRICS

#: columns of an arm that do not depend on the trial's images
COSTS = ("nfe", "megaflops", "parameters", "megabytes", "seen", "drawn", "chosen")


def tables(rows: pd.DataFrame, predictions: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """'models' (a row per arm and trial), 'leaderboard' (means, and paired differences, with intervals over trials),
    'predictions' (a row an auxiliary and trial) and 'agreement' (rank correlations of predicted and found gains).
    """
    return {
        "leaderboard": leaderboard(rows[rows["method"] != "variant"]),
        "predictions": predictions,
        "agreement": agreement(predictions),
        "models": rows,
    }


def leaderboard(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per arm. minus_base, minus_control: differences of the distance, paired by trial.

    The control of a trial is that of equal cost whose mean over the other trials is best: not chosen on what it is
    compared by. With one trial it is chosen on that.
    """
    wide = rows.pivot(index="trial", columns="arm", values="frechet")
    equal = sorted(set(rows.loc[rows["equal"].fillna(False).astype(bool), "arm"]))
    best = {t: (wide[equal].drop(index=t) if len(wide) > 1 else wide[equal]).mean().idxmin() for t in wide.index}
    control = pd.Series({t: wide.loc[t, name] for t, name in best.items()}) if equal else None
    spaces = [name for name in rows if name.rpartition("_")[2] in METRICS[:3] and name not in METRICS]
    values = [name for name in (*METRICS, *spaces, "loss") if name in rows and rows[name].notna().any()]
    found = []
    for arm, part in rows.groupby("arm", sort=False):
        part = part.set_index("trial")
        row: dict[str, Any] = {"arm": arm, "method": part["method"].iloc[0], "trials": len(part)}
        compared = {name: part[name] for name in values}
        compared["minus_base"] = part["frechet"] - wide["base"]
        if control is not None:
            compared["minus_control"] = part["frechet"] - control
        for name, column in compared.items():
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), mean_interval(column.tolist()), strict=True))
        row["omega"] = ", ".join(f"{omega:g}" for omega in part["omega"].dropna().unique())
        found.append(row | {name: part[name].mean() for name in COSTS})
    return pd.DataFrame(found)


def agreement(predictions: pd.DataFrame) -> pd.DataFrame:
    """Rank correlation of foretold with found gains: over auxiliaries (means over trials) and over all rows.

    Of the trials that have every auxiliary.
    """
    found, variants = [], predictions["variant"].nunique()
    whole = predictions.groupby("trial")["variant"].nunique() == variants
    predictions = predictions[predictions["trial"].isin(whole.index[whole])]
    index = {"index": "variant", "columns": "trial"}
    mean = predictions.groupby("variant", sort=False, as_index=False).mean(numeric_only=True).assign(trial=0)
    for over, table in (("auxiliaries", mean), ("auxiliaries and trials", predictions)):
        for predicted, (share, gain, _) in _foretold(table).items():
            pair = table[["variant", "trial"]].assign(x=share, y=table[gain]).dropna()
            x, y = (pair.pivot(**index, values=side).to_numpy() for side in ("x", "y"))
            rank, low, high = rank_correlation(x, y, Seed(0).child("ranks"))
            found.append({"over": over, "predicted": predicted, "found": gain, "rows": len(pair), "spearman": rank,
                          "spearman_low": low, "spearman_high": high})  # fmt: skip
    return pd.DataFrame(found)


def _foretold(table: pd.DataFrame) -> dict[str, tuple[pd.Series, str, str]]:
    """What is foretold: (its share of the squared error, the column of what was found, where in words), by name."""
    return {
        "removable": (table["removable"], "gain_found", "at the best"),
        "foretold_at_fixed": (1 - table["left_at_fixed"], "gain_fixed", "at the fixed omega"),
    }


def figures(found: dict[str, pd.DataFrame], lab: Lab, samples: dict[str, Images]) -> dict[str, Figure]:
    """'leaderboard', 'predictions' and, where there are pictures, 'samples': those of the first base, by arm."""
    made = {"leaderboard": _board(found, lab), "predictions": _predictions(found, lab)}
    if not samples:
        return made
    rows, metric = arms(found["leaderboard"]), lab.bench.reference.extractor.metric
    return made | {"samples": samples_figure(rows, samples, metric, lab.data.open().name)}


def arms(board: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of the leaderboard as `sims_report` shows an arm."""
    return [
        {"arm": row["arm"], "mean": row["frechet"], "half_interval": (row["frechet_high"] - row["frechet_low"]) / 2,
         "nfe": f"{row['nfe']:.0f}"}
        for _, row in board.iterrows()
    ]  # fmt: skip


def _board(found: dict[str, pd.DataFrame], lab: Lab) -> Figure:
    table, rows = found["leaderboard"], found["models"]
    metric, real = lab.bench.reference.extractor.metric, table[table["method"] == "real"]["frechet"]
    table = table[table["method"] != "real"]
    with style():
        made = Figure(figsize=(9.6, 1.3 + 0.3 * len(table)), layout="constrained")
        left, right = made.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for place, (_, row) in enumerate(table.iterrows()):
            colour = METHOD[str(row["method"])]
            mine = rows[rows["arm"] == row["arm"]]
            left.plot(mine["frechet"], [-place] * len(mine), "o", ms=2.5, color=colour, alpha=0.5)
            _span(left, row, "frechet", place, colour)
            left.annotate(f"{row['nfe']:.0f}", (1, -place), xycoords=("axes fraction", "data"), xytext=(-3, 0),
                          textcoords="offset points", ha="right", va="center", fontsize=7, color="#555555")  # fmt: skip
            if "minus_control" in table:
                _span(right, row, "minus_control", place, colour)
        left.axvline(float(table["frechet"].iloc[0]), color=METHOD["standard"], lw=0.8, ls="--")
        if len(real):
            left.axvline(real.iloc[0], color="black", lw=0.8, ls=":")
        right.axvline(0, color="black", lw=0.8)
        left.set_yticks([-place for place in range(len(table))], table["arm"].tolist(), fontsize=8)
        left.set_xlim(left=0)
        left.set_xlabel(f"{metric}, n = {lab.sizes.n:,}; dotted: real images; at the right, evaluations per image")
        right.set_xlabel("minus the best control of equal cost")
        made.suptitle(_title(found, lab), fontsize=9)
        footnote(made, settings_line(lab.settings), 150)
    return made


def _span(axes: Any, row: Any, name: str, place: int, colour: str) -> None:
    low, high, value = row[f"{name}_low"], row[f"{name}_high"], row[name]
    bars = [[value - low], [high - value]] if low == low else None
    axes.errorbar([value], [-place], xerr=bars, fmt="D", ms=4, color=colour, capsize=3)


def _predictions(found: dict[str, pd.DataFrame], lab: Lab) -> Figure:
    table = found["predictions"]
    with style():
        made = Figure(figsize=(8.4, 3.8), layout="constrained")
        for axes, (share, gain, words) in zip(made.subplots(1, 2)[::-1], _foretold(table).values(), strict=True):
            for place, (variant, part) in enumerate(table.groupby("variant", sort=False)):
                axes.plot(share[part.index], part[gain], "osD^vP*X"[place % 8], ms=5, alpha=0.7, label=variant)
            axes.axline((0, 0), slope=1, color="#999999", lw=0.8, ls="--")
            axes.axhline(0, color="black", lw=0.6)
            axes.set_xlabel("share of the squared error, foretold")
            axes.set_ylabel(f"share of {lab.bench.reference.extractor.metric} gone")
            axes.set_title(words, fontsize=8)
        axes.legend(fontsize=7)
        made.suptitle(_title(found, lab), fontsize=9)
    return made


def _title(found: dict[str, pd.DataFrame], lab: Lab) -> str:
    trials, sizes = int(found["leaderboard"]["trials"].max()), lab.sizes
    bases = f"{trials} independently trained base{'s' * (trials != 1)}"
    if lab.checked.checkpoint:
        bases = f"one base, {trials} trial{'s' * (trials != 1)}"
    over = ", 95 % intervals over them" if trials > 1 else ""
    return f"{lab.data.open().name}, |D_r| = {sizes.real:,}, |D_s| = {sizes.auxiliary:,}: {bases}{over}"


def words(found: dict[str, pd.DataFrame], lab: Lab) -> list[str]:
    """What came out, in sentences that the numbers decide."""
    table, metric = found["leaderboard"].set_index("arm"), lab.bench.reference.extractor.metric
    base = table.loc["base"]
    told = [f"{metric} of the base {said(base, 'frechet')} at {base['nfe']:.0f} evaluations per image."]
    more = [arm for arm in ("2x steps", "4x steps") if arm in table.index]
    told += [f"With {arm[0]} times the steps it differs by {said(table.loc[arm], 'minus_base')}." for arm in more]
    for arm, row in table.iterrows():
        if row["method"] in ("sims", "neon", "autoguidance", "random", "auxiliary"):
            words = f"{arm}: {said(row, 'frechet')}, {_side(row, 'minus_base')} the base ({said(row, 'minus_base')})"
            if "minus_control" in row and row["minus_control"] == row["minus_control"]:
                words += (
                    f", {_side(row, 'minus_control')} the best control of equal cost ({said(row, 'minus_control')})"
                )
            told.append(words + ".")
    if count := comparisons(found["leaderboard"]):
        told.append(f"Each of the {count} comparisons is at 95 % by itself, not corrected for their number.")
    for _, row in found["agreement"].iterrows():
        if row["spearman"] == row["spearman"]:
            told.append(
                f"Rank correlation of foretold ({row['predicted']}) and found gain over {row['rows']} {row['over']}: "
                f"{said(row, 'spearman')}."
            )
    return told


def comparisons(board: pd.DataFrame) -> int:
    """How many differences between models have an interval."""
    mine = board[board["method"] != "real"]
    sides = [name for name in ("minus_base", "minus_control") if name in mine]
    return int(sum((mine[f"{name}_low"] < mine[f"{name}_high"]).sum() for name in sides))


def _side(row: Any, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    if low != low:
        return "by one base alone, against"
    return "better than" if high < 0 else "worse than" if low > 0 else "indistinguishable from"


#: columns of the two tables in words: name, heading, figures
_DISTANCES: Sequence[tuple[str, str, str]] = (
    ("frechet", "{metric}", "{:.3g}"),
    ("minus_base", "minus base", "{:+.3g}"),
    ("minus_control", "minus best equal-cost control", "{:+.3g}"),
)
_COSTS: Sequence[tuple[str, str, str]] = (
    ("nfe", "evaluations", "{:.0f}"),
    ("megaflops", "MFLOP per image", "{:,.0f}"),
    ("parameters", "parameters", "{:,.0f}"),
    ("megabytes", "MB", "{:,.0f}"),
    ("seen", "images seen", "{:,.0f}"),
    ("drawn", "drawn", "{:,.0f}"),
)
_OTHERS: Sequence[tuple[str, str, str]] = (
    ("kid", "KID·10³", "{:.3g}"),
    ("mind", "MIND", "{:.3g}"),
    ("precision", "precision", "{:.3f}"),
    ("recall", "recall", "{:.3f}"),
    ("density", "density", "{:.3f}"),
    ("coverage", "coverage", "{:.3f}"),
    ("loss", "held-out loss", "{:.4f}"),
)


def markdown(table: pd.DataFrame, metric: str, spaces: Iterable[str] = ()) -> str:
    """The leaderboard as two tables of Markdown, distances with costs and what else was measured: ± half the interval.

    spaces: further features that are told. Images seen in training leave out the base's own; drawn are those for it.
    """
    further = [(f"{name}_frechet", f"FD-{name}", "{:.3g}") for name in spaces]
    return "\n".join(_rows(table, metric, part) for part in ([*_DISTANCES, *further, *_COSTS], _OTHERS))


def _rows(table: pd.DataFrame, metric: str, shown: Sequence[tuple[str, str, str]]) -> str:
    shown = [one for one in shown if one[0] in table]
    lines = [" | ".join(["| model", *(head.format(metric=metric) for _, head, _ in shown)]) + " |"]
    lines.append("|" + "---|" * (1 + len(shown)))
    for _, row in table.iterrows():
        omega = (
            "" if row["omega"] != row["omega"] or "omega" in str(row["arm"]) else str(row["omega"]).removesuffix(".0")
        )
        cells = [f"| {row['arm']} (ω = {omega})" if omega else f"| {row['arm']}"]
        for name, _, form in shown:
            value, scale = row[name], 1000 if name == "kid" else 1
            if value != value or (name == "minus_base" and row["arm"] == "base"):
                cells.append("")
                continue
            half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2 if f"{name}_low" in row else float("nan")
            cells.append(form.format(scale * value) + (f" ± {scale * half:.2g}" if half > 1e-9 * abs(value) else ""))
        lines.append(" | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
