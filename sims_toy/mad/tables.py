"""What `sims_toy.mad` makes of its distances: tables alongside closed forms, and a text summary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sims_core.seeds import Seed
from sims_toy import phase
from sims_toy.mad import figures as mad_figures
from sims_toy.mad import theory as mad_theory

if TYPE_CHECKING:
    from sims_toy.grid.cells import Array, Cell, Experiment, Values


def make(
    parts: Mapping[str, Experiment], values: dict[str, Values], settings: dict[str, Any]
) -> dict[str, pd.DataFrame]:
    """Tables 'paths', 'limits', 'effective', 'boundary', 'calibration' and 'collapse' (`docs/formats.md`)."""
    calibration = Calibration(parts["calibration"], values["calibration"]["w2"][:, :, 0])
    paths = [*_paths("fresh", parts, values, settings), *_paths("loops", parts, values, settings)]

    return {
        "paths": pd.DataFrame(paths),
        "limits": _limits(parts["fresh"], values["fresh"]["w2"], settings),
        "effective": _effective(parts["grid"], values["grid"]["w2"], calibration, settings),
        "boundary": _boundary(settings),
        "calibration": calibration.table(settings),
        "collapse": _collapse(parts["loops"], values["loops"], settings),
    }


def _identity(settings: dict[str, Any]) -> Array:
    return np.eye(int(settings["dimension"]))


def _second_half(generations: int) -> slice:
    return slice(generations // 2, generations)


# ----------------------------------------------------------- generation by generation


def _paths(
    name: str, parts: Mapping[str, Experiment], values: dict[str, Values], settings: dict[str, Any]
) -> list[dict[str, Any]]:
    """One row per cell and generation: W2, the mean's error and the variance (both a dimension), with closed forms."""
    part, measured, d = parts[name], values[name], settings["dimension"]
    weights = phase.resampling_weights(part.trials, Seed(part.seed))
    rows = []
    for i, cell in enumerate(part.cells):
        theory = mad_theory.path(
            cell.loop,
            part.generations,
            n_r=cell.real_size,
            n_s=cell.synthetic_size,
            lam=cell.temperature,
            ddof=part.ddof,
            n_initial=cell.initial_size,
        )
        for t, moments in enumerate(theory):
            variance = measured["variance"][i, :, t] / d
            row: dict[str, Any] = {
                "experiment": name,
                "loop": cell.loop,
                "temperature": cell.temperature,
                "real_size": cell.real_size,
                "synthetic_size": cell.synthetic_size,
                "initial_size": cell.initial_size or cell.real_size,
                "generation": t + 1,
                "trials": part.trials,
                **phase.mean_row("w2", measured["w2"][i, :, t], weights),
                **phase.mean_row("w2_sq", measured["w2"][i, :, t] ** 2, weights),
                "w2_theory": float(np.sqrt(mad_theory.w2_squared(moments, _identity(settings)))),
                **phase.mean_row("variance", variance, weights),
                "variance_median": float(np.median(variance)),
                "variance_theory": float(moments.scale),
                **phase.mean_row("mean_sq", measured["mean_sq"][i, :, t] / d, weights),
                "mean_sq_theory": float(moments.mean),
            }
            if "log_volume" in measured:
                row |= phase.mean_row("log_volume", measured["log_volume"][i, :, t], weights)
                row["log_volume_theory"] = _log_volume(cell, t, d, part.ddof)
            rows.append(row)
    return rows


def _log_volume(cell: Cell, t: int, dim: int, ddof: int) -> float:
    """E ln det S / d of generation t + 1 of the fully synthetic loop; nan for the others."""
    if cell.loop != "fully-synthetic":
        return math.nan
    first = mad_theory.log_volume_rate(cell.real_size, dim, 1.0, ddof)
    return first + t * mad_theory.log_volume_rate(cell.synthetic_size, dim, cell.temperature, ddof)


# ------------------------------------------------------------------- the limit


def _limits(part: Experiment, w2: Array, settings: dict[str, Any]) -> pd.DataFrame:
    """One row per cell: the limit, and its difference from the first n_ini's, paired."""
    weights = phase.resampling_weights(part.trials, Seed(part.seed))
    late = w2[:, :, _second_half(part.generations)].mean(2)
    rows = []
    anchors: dict[float, Array] = {}
    for i, cell in enumerate(part.cells):
        anchor = anchors.setdefault(cell.temperature, late[i])
        limit = mad_theory.fresh_limit(cell.real_size, cell.synthetic_size, cell.temperature, part.ddof)
        rows.append(
            {
                "temperature": cell.temperature,
                "real_size": cell.real_size,
                "synthetic_size": cell.synthetic_size,
                "initial_size": cell.initial_size,
                "trials": part.trials,
                **phase.mean_row("first", w2[i, :, 0], weights),
                **phase.mean_row("limit", late[i], weights),
                "limit_theory": float(np.sqrt(mad_theory.w2_squared(limit, _identity(settings)))),
                **phase.mean_row("difference", late[i] - anchor, weights),
            }
        )
    return pd.DataFrame(rows)


# -------------------------------------------------------------- effective size


class Calibration:
    """E dist(G(n)) over n by Monte-Carlo, and its inverse.

    dist sqrt(n) varies slowly with n, so that linear interpolation of its logarithm in ln n is accurate.
    """

    def __init__(self, part: Experiment, w2: Array) -> None:
        self.sizes = np.array([c.real_size for c in part.cells], dtype=np.float64)
        self.weights = phase.resampling_weights(part.trials, Seed(part.seed).child("calibration"))
        self.w2, self.ddof = w2, part.ddof
        self.mean = w2.mean(1)
        self.resampled = phase.weighted(self.weights, w2.T)  # (resamples, sizes)
        fine = np.linspace(np.log(self.sizes[0]), np.log(self.sizes[-1]), 4001)
        self._fine = fine

    def invert(self, distance: Array, curves: Array) -> Array:
        """n with E dist(G(n)) = distance, (K,) for (K,) distances and curves (K, sizes).

        0 where even the smallest size does better, inf where even the largest does worse.
        """
        x = np.log(self.sizes)
        found = np.empty(len(distance))
        for k, (target, curve) in enumerate(zip(distance, curves, strict=True)):
            log_curve = np.interp(self._fine, x, np.log(curve) + x / 2) - self._fine / 2
            log_curve = np.minimum.accumulate(log_curve)  # noise must not fold it
            at = np.log(target) if target > 0 else -np.inf
            if at > log_curve[0]:
                found[k] = 0.0
            elif at < log_curve[-1]:
                found[k] = np.inf
            else:
                found[k] = math.exp(float(np.interp(-at, -log_curve, self._fine)))
        return found

    def table(self, settings: dict[str, Any]) -> pd.DataFrame:
        """One row per size, with the second-order closed form."""
        theory = np.sqrt(mad_theory.w2_squared(mad_theory.single(self.sizes, self.ddof), _identity(settings)))
        low, high = phase.interval(self.resampled, self.w2.shape[1])
        sizes = self.sizes.astype(int)
        return pd.DataFrame({"n": sizes, "w2": self.mean, "w2_low": low, "w2_high": high, "w2_theory": theory})


def _effective(part: Experiment, w2: Array, calibration: Calibration, settings: dict[str, Any]) -> pd.DataFrame:
    """One row per cell of the grid: its limit and n_e, and whether n_e >= n_r.

    ``effective_theory`` inverts the same calibration at the closed form's limit.
    """
    weights = phase.resampling_weights(part.trials, Seed(part.seed))
    late = w2[:, :, _second_half(part.generations)].mean(2)
    rows = []
    for i, cell in enumerate(part.cells):
        resampled = phase.weighted(weights, late[i][:, None])[:, 0]
        effective = calibration.invert(resampled, calibration.resampled)
        middle = calibration.invert(np.array([late[i].mean()]), calibration.mean[None])[0]
        low, high = np.quantile(effective, phase.levels(part.trials), method="nearest")
        limit = mad_theory.fresh_limit(cell.real_size, cell.synthetic_size, cell.temperature, part.ddof)
        predicted = np.sqrt(mad_theory.w2_squared(limit, _identity(settings)))
        n_r = cell.real_size
        verdict = "admissible" if low >= n_r else "inadmissible" if high < n_r else "undecided"
        rows.append(
            {
                "real_size": n_r,
                "synthetic_size": cell.synthetic_size,
                "ratio": cell.synthetic_size / n_r,
                "temperature": cell.temperature,
                "trials": part.trials,
                **phase.mean_row("limit", late[i], weights),
                "limit_theory": float(predicted),
                "effective": float(middle),
                "effective_low": float(low),
                "effective_high": float(high),
                "effective_theory": float(calibration.invert(predicted[None], calibration.mean[None])[0]),
                "admissible": verdict,
            }
        )
    return pd.DataFrame(rows)


def _boundary(settings: dict[str, Any]) -> pd.DataFrame:
    """The least lambda_s at which n_e >= n_r, on a fine grid of n_s / n_r: second order."""
    ratios = np.geomspace(min(settings["grid_ratio"]), max(settings["grid_ratio"]), 61)
    frames = []
    for n_r in settings["grid_real_size"]:
        edge = mad_theory.best_temperature_edge(n_r, ratios * n_r, _identity(settings), settings["ddof"])
        frames.append(pd.DataFrame({"real_size": n_r, "ratio": ratios, "temperature": edge}))
    return pd.concat(frames, ignore_index=True)


# ------------------------------------------------------------------- collapse


def _collapse(part: Experiment, values: Values, settings: dict[str, Any]) -> pd.DataFrame:
    """One row a loop and lambda_s: what happens to the variance, the mean and the distance.

    ``step``: mean of tr S_t / tr S_{t-1}, whose expectation is lambda_s for the fully synthetic loop (ddof = 1), as
    given S_{t-1} it is so in every generation. ``growth``: E W2^2 at the end over generation 1.
    """
    weights = phase.resampling_weights(part.trials, Seed(part.seed))
    rows = []
    d = settings["dimension"]
    for i, cell in enumerate(part.cells):
        variance, mean_sq, log_volume = (values[k][i] for k in ("variance", "mean_sq", "log_volume"))
        theory = mad_theory.path(
            cell.loop, part.generations, n_r=cell.real_size, n_s=cell.synthetic_size, lam=cell.temperature,
            ddof=part.ddof,
        )  # fmt: skip
        w2_sq = phase.weighted(weights, values["w2"][i] ** 2)
        mean = phase.weighted(weights, mean_sq)
        growth = phase.ratio(w2_sq[:, -1], w2_sq[:, 0])
        wander = phase.ratio(mean[:, -1], mean[:, 0])
        replaced = cell.loop == "fully-synthetic"
        row = {
            "loop": cell.loop,
            "temperature": cell.temperature,
            "real_size": cell.real_size,
            "synthetic_size": cell.synthetic_size,
            "generations": part.generations,
            "trials": part.trials,
            **phase.mean_row("step", (variance[:, 1:] / variance[:, :-1]).mean(1), weights),
            "step_theory": cell.temperature * (cell.synthetic_size - 1) / (cell.synthetic_size - part.ddof)
            if replaced
            else math.nan,
            **phase.mean_row("rate", (log_volume[:, -1] - log_volume[:, 0]) / (part.generations - 1), weights),
            "rate_theory": mad_theory.log_volume_rate(cell.synthetic_size, d, cell.temperature, part.ddof)
            if replaced
            else math.nan,
            "variance_median": float(np.median(variance[:, -1]) / d),
            "variance_worst": float(variance[:, -1].max() / d),
        }
        for name, resampled, point in (
            ("mean_growth", wander, mean_sq[:, -1].mean() / mean_sq[:, 0].mean()),
            ("growth", growth, (values["w2"][i, :, -1] ** 2).mean() / (values["w2"][i, :, 0] ** 2).mean()),
        ):
            row[name], row[f"{name}_low"], row[f"{name}_high"] = phase.bounded(point, resampled, part.trials)
        row["mean_growth_theory"] = float(theory[-1].mean / theory[0].mean)
        first, last = (mad_theory.w2_squared(m, _identity(settings)) for m in (theory[0], theory[-1]))
        row["growth_theory"] = float(last / first)
        row["bound"] = math.nan
        if not replaced and cell.temperature == 1:
            row["bound"] = mad_theory.accumulation_bound(cell.real_size, cell.synthetic_size)
        rows.append(row)
    return pd.DataFrame(rows)


# ----------------------------------------------------------------------- words


def draw(frames: dict[str, pd.DataFrame], settings: dict[str, Any], folder: Path) -> list[Path]:
    """The figures, by `sims_toy.mad.figures`."""
    return [*mad_figures.loops(frames, settings, folder / "mad"), *mad_figures.effective(frames, settings, folder)]


def words(frames: dict[str, pd.DataFrame], settings: dict[str, Any]) -> str:
    """The tables in short, and the conclusions."""
    n_r, n_s = settings["real_size"], settings["synthetic_size"]
    lines = [f"1. fresh data, n_r = {n_r}, n_s = {n_s}, dimension {settings['dimension']}: E[W2] in the limit"]
    lines.append(
        f"{'λ_s':>6} {'n_ini':>7} {'generation 1':>13} {'limit (95 %)':>28} {'closed form':>12} {'difference':>28}"
    )
    for _, r in frames["limits"].iterrows():
        lines.append(
            f"{r.temperature:>6g} {r.initial_size:>7g} {r['first']:>13.4f} "
            f"{_range(r, 'limit'):>28} {r.limit_theory:>12.4f} {_range(r, 'difference', '.1e'):>28}"
        )
    lines.append("2. effective sample size n_e (95 %), closed form behind")
    for _, r in _shown(frames["effective"]).iterrows():
        span = f"{r.effective:.0f} ({r.effective_low:.0f} .. {r.effective_high:.0f})"
        lines.append(
            f"   n_r = {r.real_size:<5g} λ_s = {r.temperature:<5g} n_s = {r.synthetic_size:<6g} n_e = {span:<24} "
            f"{r.effective_theory:>6.0f}   {r.admissible}"
        )
    lines.append(f"3. and 4. {settings['loop_generations']} generations of {settings['loop_size']} points")
    for _, r in frames["collapse"].iterrows():
        expected = "" if math.isnan(r.step_theory) else f" (λ_s: {r.step_theory:g})"
        lines.append(
            f"   {r.loop:>16} λ_s = {r.temperature:<4g} step of the variance {_range(r, 'step')}{expected}; "
            f"median variance {r.variance_median:.2g}; mean's error x {r.mean_growth:.2f} "
            f"(closed form {r.mean_growth_theory:.2f}); E[W2²] x {_range(r, 'growth', '.2f')}"
        )
    return "\n".join([*lines, "", *conclusions(frames, settings)])


def _shown(effective: pd.DataFrame) -> pd.DataFrame:
    """The published biases (or all) at the least, the middle and the largest n_s."""
    ratios = sorted(effective["ratio"].unique())
    some = {ratios[0], ratios[len(ratios) // 2], ratios[-1]}
    heats = {0.7, 0.85, 1.0} & set(effective["temperature"]) or set(effective["temperature"])
    return effective[effective["ratio"].isin(some) & effective["temperature"].isin(heats)]


def _range(row: Any, name: str, form: str = ".4f") -> str:
    return f"{row[name]:{form}} ({row[f'{name}_low']:{form}} .. {row[f'{name}_high']:{form}})"


def conclusions(frames: dict[str, pd.DataFrame], settings: dict[str, Any]) -> list[str]:
    """One sentence an experiment."""
    limits, effective, collapse = frames["limits"], frames["effective"], frames["collapse"]
    others = limits[limits["initial_size"] != settings["initial_size"][0]]
    found = []
    if len(others):
        share = (others[["difference_low", "difference_high"]].abs().max(axis=1) / others["limit"]).max()
        found.append(f"Fresh data: the limit does not depend on the first data set's size (within {share:.1%}).")
    counts = effective["admissible"].value_counts()
    one = effective[effective["temperature"] == 1]
    text = f"Effective size: n_e >= n_r in {counts.get('admissible', 0)} of {len(effective)} cells, n_e < n_r in "
    text += f"{counts.get('inadmissible', 0)}, {counts.get('undecided', 0)} undecided"
    if len(one):
        low, high = (one["effective"] / one["real_size"]).min(), (one["effective"] / one["real_size"]).max()
        text += f"; without sampling bias n_e / n_r is {low:.2f} to {high:.2f}"
    found.append(text + ".")
    for _, r in collapse.iterrows():
        if r["loop"] == "fully-synthetic":
            found.append(
                f"Fully synthetic, λ_s = {r['temperature']:g}: the log-variance falls by {-r['rate']:.4f} per "
                f"generation (exact: {-r['rate_theory']:.4f}), towards 0; "
                f"E[W2²] x {r['growth']:.1f} after {r['generations']}."
            )
        elif math.isnan(r["bound"]):
            found.append(
                f"Accumulating, λ_s = {r['temperature']:g}: the variance falls as a power of t, to "
                f"{r['variance_median']:.2f}; E[W2²] x {r['growth']:.2f}: slower than replacing, yet towards "
                "collapse."
            )
        else:
            found.append(
                f"Accumulating, λ_s = 1: the mean's error stays at x {r['mean_growth']:.2f} (bound {r['bound']:.3f}), "
                f"E[W2²] at x {r['growth']:.2f}."
            )
    return found
