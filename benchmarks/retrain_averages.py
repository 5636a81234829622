"""Retraining curves by raw weights and by their averages, of EDM and flow matching: what the average hides.

``python benchmarks/retrain_averages.py --runs runs/figures [--out figures]`` reads the reports of four runs of
`sims_image retrain`, RUNS/retrain-{small,flow}-{raw,ema}, and writes retrain_averages.csv, .png and .svg. share: how
much of the raw weights' way the average holds, measured in every retraining (mean over trials).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sims_core.lab.style import OUTSIDE, band, save, sequence, style
from sims_image.models import checkpoints

OBJECTIVES = {"small": "EDM", "flow": "flow matching"}
WEIGHTS = {"raw": "raw weights", "ema": "average"}


def shares(run: Path) -> pd.DataFrame:
    """The mean share by ratio and round, of every retraining that the run's records name."""
    rows = []
    for path in run.glob("runs/standard-ratio*/*.json"):
        average = (run / json.loads(path.read_text())["model"]["base"]).parent / "ema"
        known = checkpoints.summary(average).record.training if average.exists() else {}
        share = known.get("ema_share_of_raw")
        if share is not None:  # not of the first round, which may be elsewhere
            ratio, number = path.parent.name.removeprefix("standard-ratio"), int(path.stem.split("-")[-1])
            rows.append({"ratio": float(ratio), "round": number, "share": share})
    return pd.DataFrame(rows).groupby(["ratio", "round"], as_index=False)["share"].mean()


def table(runs: Path) -> pd.DataFrame:
    """One row per objective, weights, ratio (0 and inf) and round."""
    parts = []
    for objective, name in OBJECTIVES.items():
        for weights in WEIGHTS:
            run = runs / f"retrain-{objective}-{weights}"
            found = pd.read_parquet(run / "report/summary.parquet").merge(shares(run), how="left")
            parts.append(found.assign(objective=name, weights=weights))
    rows = pd.concat(parts)
    columns = [name for name in rows if name not in ("objective", "weights")]
    return rows.loc[rows["ratio"].isin([0, np.inf]), ["objective", "weights", *columns]]


def figure(rows: pd.DataFrame) -> Figure:
    """A panel an objective; bands are 95 % intervals over trials."""
    colours = dict(zip(WEIGHTS, [sequence(3)[1], OUTSIDE], strict=True))
    with style():
        made = Figure(figsize=(7.6, 3.4), layout="constrained")
        panels = made.subplots(1, 2, sharey=True)
        for axes, name in zip(panels, OBJECTIVES.values(), strict=True):
            for (weights, ratio), part in rows[rows["objective"] == name].groupby(["weights", "ratio"], sort=False):
                label = f"{WEIGHTS[weights]}, {'no real images' if ratio else 'λ = 0'}"
                marks = {"marker": "o", "ms": 3, "ls": "-" if ratio else ":"}
                band(axes, part, "round", "frechet", color=colours[weights], label=label, **marks)
            axes.set_title(name)
            axes.set_xlabel("round")
            axes.set_xticks(sorted(rows["round"].unique()))
            axes.set_ylim(bottom=0)
        panels[0].set_ylabel("FD-classifier")
        panels[0].legend(fontsize=7)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/figures"))
    parser.add_argument("--out", type=Path, default=Path("figures"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    rows = table(args.runs)
    rows.to_csv(args.out / "retrain_averages.csv", index=False)
    save(figure(rows), args.out / "retrain_averages")
    print(rows[["objective", "weights", "ratio", "round", "frechet", "to_first", "share"]].to_string(index=False))


if __name__ == "__main__":
    main()
