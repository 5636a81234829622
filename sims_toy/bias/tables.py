"""What the study of bias makes of its values: a table a question, and the conclusion in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sims_core.forecast import rank_correlation
from sims_core.seeds import Seed
from sims_toy import phase
from sims_toy.bias.cells import HELD_OUT, HELPS, TOLERANCE

Array = NDArray[np.float64]

#: Controls by the name of their records -> what words and figures call them. Those of `STRENGTHS` choose their omega.
CONTROLS = {
    "standard": "base",
    "steps x2": "twice the steps",
    "steps x4": "four times the steps",
    "continued": "trained further",
    "wide": "twice as wide",
    "random": "random direction",
    "neon": "Neon",
    "autoguidance": "autoguidance",
    "rebuilt": "cold auxiliary",
    "iterated x2": "second step of SIMS",
}
STRENGTHS = ("sims", "neon", "autoguidance")
RESAMPLES = 4000


def make(values: pd.DataFrame, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The tables: values (all records), rows, controls, predictions and, where such cells were run, held_out."""
    rows, controls, predictions = [], [], []
    held = {str(cell) for cell in HELD_OUT}
    for (kind, name), group in values.groupby(["kind", "row"], sort=False):
        own = {"kind": kind, "row": name, "held_out": name in held}
        chosen = {method: _chosen(group, method) for method in STRENGTHS}
        rows.append(own | _row(group, chosen["sims"], settings))
        controls += [own | found for found in _controls(group, chosen, settings)]
        predictions += [own | found for found in _predictions(group)]
    frames = {
        "values": values,
        "rows": pd.DataFrame(rows),
        "controls": pd.DataFrame(controls),
        "predictions": pd.DataFrame(predictions),
    }
    if frames["rows"]["held_out"].any():
        frames["held_out"] = _held_out(frames["rows"])
    return frames


def of(group: pd.DataFrame, method: str, column: str = "distance", omega: float | None = None) -> Array:
    """A method's values by trial; those at 1 where it has several strengths and ``omega`` does not say."""
    part = group[group["method"] == method]
    if method in STRENGTHS:
        part = part[part["omega"] == (1.0 if omega is None else omega)]
    return np.asarray(part.sort_values("trial")[column], dtype=np.float64)


def _chosen(group: pd.DataFrame, method: str) -> tuple[Array, Array]:
    """Each trial's distance at the strength that the others choose, and that strength, (trials,) each."""
    omegas = np.sort(group.loc[group["method"] == method, "omega"].unique())
    values = np.stack([of(group, method, omega=w) for w in omegas])
    picks = [
        int(np.argmin(phase.finite_mean(np.delete(values, t, 1) if values.shape[1] > 1 else values)))
        for t in range(values.shape[1])
    ]
    return values[picks, np.arange(values.shape[1])], omegas[picks]


def _mean(name: str, values: Array, settings: Mapping[str, Any]) -> dict[str, float]:
    """A mean over bases and its interval; none for a single value, which has no chance in it."""
    if len(values) < 2:
        return {name: float(values.mean()) if len(values) else np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
    weights = phase.resampling_weights(len(values), Seed(settings["seed"]), RESAMPLES)
    return phase.mean_row(name, values, weights)


def _row(group: pd.DataFrame, chosen: tuple[Array, Array], settings: Mapping[str, Any]) -> dict[str, Any]:
    base, sims = of(group, "standard"), of(group, "sims")
    floor = of(group, "floor")
    foreseen = {c: of(group, "predicted", c) for c in ("cosine", "length")}
    rise = of(group, "sims", "loss") - of(group, "standard", "loss")
    found: dict[str, Any] = {"bases": len(base), "omega_chosen": float(np.median(chosen[1]))}
    for name, values in {
        "base": base,
        "sims": sims,
        "sims_chosen": chosen[0],
        "gain": sims - base,
        "auxiliary": of(group, "auxiliary"),
        **{_column(m): of(group, m) for m in CONTROLS if m != "standard" and len(of(group, m))},
        "floor": floor if len(floor) else np.zeros(1),
        "base_off": of(group, "standard", "off"),
        "sims_off": of(group, "sims", "off"),
        "base_loss": of(group, "standard", "loss"),
        "sims_loss": of(group, "sims", "loss"),
        "loss_rise": rise,
        **foreseen,
    }.items():
        found |= _mean(name, values, settings)
    found["loss_rises"] = int((rise > 0).sum())
    found["gains"] = int((sims < base).sum())
    left = _left(group)
    return found | _mean("left", left[0], settings) | _mean("predicted_left", left[1], settings)


def _column(method: str) -> str:
    return method.replace(" x", "_")


def _left(group: pd.DataFrame) -> tuple[Array, Array]:
    """The share of |e|^2 that SIMS at omega = 1 leaves, found and predicted, by trial; |e|^2 as `outlook` takes it."""
    cosine, length = (of(group, "predicted", c) for c in ("cosine", "length"))
    found = of(group, "sims", "energy") / of(group, "standard", "energy")
    return found, 1 - 2 * length * cosine + length**2


def _controls(
    group: pd.DataFrame, chosen: Mapping[str, tuple[Array, Array]], settings: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """SIMS less each control, paired over bases: at omega = 1, and at the strengths that the other bases choose."""
    rows = []
    for method, words in CONTROLS.items():
        rival = of(group, method)
        if not len(rival):
            continue
        for strength in ("1", "chosen"):
            own = of(group, "sims") if strength == "1" else chosen["sims"][0]
            other = chosen[method][0] if strength == "chosen" and method in STRENGTHS else rival
            found = _mean("difference", _less(own, other), settings) | _mean("rival", other, settings)
            cost = float(group.loc[group["method"] == method, "cost"].iloc[0])
            rows.append(
                {"control": words, "omega": strength, "cost": cost, **_mean("sims", own, settings), **found}
                | {"verdict": verdict(found["difference"], found["difference_low"], found["difference_high"])}
            )
    return rows


def _less(own: Array, other: Array) -> Array:
    """A difference in which a rival that diverged loses."""
    return np.where(np.isfinite(other), own - np.where(np.isfinite(other), other, 0), -np.inf)


def verdict(difference: float, low: float, high: float) -> str:
    """'ahead' where SIMS is surely nearer the truth, 'behind', or 'level'; without interval to 1 part in 1e3."""
    if np.isneginf(difference):
        return "ahead"
    if np.isnan(low):
        return "level" if abs(difference) < 1e-6 else ("ahead" if difference < 0 else "behind")
    return "ahead" if high < 0 else ("behind" if low > 0 else "level")


def _predictions(group: pd.DataFrame) -> list[dict[str, float]]:
    found, predicted = _left(group)
    cosine, length = (of(group, "predicted", c) for c in ("cosine", "length"))
    return [
        {"trial": t, "cosine": c, "length": r, "predicted_left": p, "found_left": f}
        for t, (c, r, p, f) in enumerate(zip(cosine, length, predicted, found, strict=True))
    ]


def _held_out(rows: pd.DataFrame) -> pd.DataFrame:
    """Hits and misses by the rule of `cells`."""
    part = rows[rows["held_out"]]
    helps, helped = part["predicted_left"] < HELPS, part["gain_high"] < 0
    columns = ["row", "cosine", "length", "predicted_left", "left", "left_low", "left_high"]
    return part[[*columns, "base", "sims", "gain", "gain_low", "gain_high"]].assign(
        predicted_to_help=helps,
        found_to_help=helped,
        sign_hit=helps == helped,
        size_hit=(part["left"] - part["predicted_left"]).abs() <= TOLERANCE,
    )


def foreseen(rows: pd.DataFrame, seed: Seed) -> tuple[float, float, float]:
    """Spearman's correlation of predicted and found shares over rows, and its interval."""
    x, y = (np.nan_to_num(rows[c].to_numpy(np.float64), nan=1.0) for c in ("predicted_left", "left"))
    return rank_correlation(x, y, seed.child("rows"))


def words(frames: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> str:
    """What is printed: a line per row, where SIMS wins and where not, the two predictions."""
    rows, controls = frames["rows"], frames["controls"]
    lines = [
        "distance to the truth (W2, sliced for networks): base, twice the steps, trained further, SIMS at 1, floor"
    ]
    for _, r in rows.iterrows():
        interval = f" ({r['gain_low']:+.4f} .. {r['gain_high']:+.4f})" if np.isfinite(r["gain_low"]) else ""
        lines.append(
            f"  {r['kind']} {r['row']}: {r['base']:.4f}, {r['steps_2']:.4f}, {r['continued']:.4f}, {r['sims']:.4f}, "
            f"{r['floor']:.4f}; SIMS - base {r['gain']:+.4f}{interval}; cosine {r['cosine']:.2f}, |d|/|e| "
            f"{r['length']:.2f}, left {r['left']:.2f} of |e|^2 (predicted {r['predicted_left']:.2f})"
        )
    found = []
    trained = controls[(controls["kind"] == "networks") & (controls["omega"] == "1")]
    for control, part in trained.groupby("control", sort=False):
        counts = part["verdict"].value_counts()
        told = ", ".join(f"{v} {counts[v]}" for v in ("ahead", "level", "behind") if v in counts)
        found.append(f"SIMS at 1 against {control}, cells of trained networks: {told}")
    networks = rows[rows["kind"] == "networks"]
    if len(networks):
        rises, bases = int(networks["loss_rises"].sum()), int(networks["bases"].sum())
        found.append(f"the denoising loss rises in {rises} of {bases} trained bases")
    rho, low, high = foreseen(rows, Seed(settings["seed"]))
    if np.isfinite(rho):
        found.append(
            f"rank correlation of predicted and found over {len(rows)} rows: {rho:.2f} ({low:.2f} .. {high:.2f})"
        )
    if "held_out" in frames:
        held = frames["held_out"]
        found.append(
            f"held-out cells: sign {int(held['sign_hit'].sum())} of {len(held)}, size {int(held['size_hit'].sum())}"
        )
    return "\n".join([*lines, *([""] if found else []), *found])
