"""What the pollution study says: its cells by curve, its tables with the theory alongside, its words."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sims_core.algorithm import METHODS
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy import phase
from sims_toy.grid.cells import Array, Cell, Experiment
from sims_toy.grid.measure import spread
from sims_toy.pollution import theory as pollution_theory
from sims_toy.pollution.figures import figure5
from sims_toy.pollution.theory import VARIANT, Dose
from sims_toy.theory import Mode, data_noise, plain_modes

#: The paper's names: standard training and SIMS, ideal (unpolluted) and polluted; and SIMS with its auxiliary on D_p.
CURVES = ("ST-I", "ST-P", "SIMS-I", "SIMS-P", "SIMS-P*")
EQUAL_COST = {"ST-I": "ST-I equal cost", "ST-P": "ST-P equal cost"}
#: The samplers of the population limit, besides the study's own: their drifts have opposite signs.
POPULATION_SAMPLERS = ("ddim:20", "heun:18")


@dataclass(frozen=True)
class Row:
    """A cell with its place in the figure: |D_r| = n, ratio = |D_p|/|D_r| and one of `CURVES` (or equal cost)."""

    cell: Cell
    n: int
    ratio: float
    curve: str


def rows(
    learner: str,
    reals: Sequence[int],
    ratios: Sequence[float],
    omegas: Sequence[float],
    sampler: str,
    n_aux: int,
    budget: str,
    reading: str,
    ideal: str,
) -> list[Row]:
    """Every cell of the study. ideal: 'unpolluted', or 'same-size' for as many real points as D_r and D_p hold."""
    doubled = str(Sampler.parse(sampler).doubled())
    out = []
    for n in reals:
        for ratio in ratios:
            n_p = round(ratio * n)
            clean = Cell(learner, "standard", "augmentation", sampler, n, 0, reference=sampler)
            if ideal == "same-size":
                clean = replace(clean, real_size=n + n_p)
            dirty = Cell(learner, "standard", "polluted", sampler, n, 0, reference=sampler, pollution=n_p)
            sides = [("I", clean)] if ideal == "same-size" or not n_p else []
            for side, cell in [*sides, *([("P", dirty)] if n_p else [])]:
                out.append(Row(cell, n, ratio, f"ST-{side}"))
                out.append(Row(replace(cell, method="equal-cost", sampler=doubled), n, ratio, EQUAL_COST[f"ST-{side}"]))
                for curve, data in [(f"SIMS-{side}", reading), *([("SIMS-P*", VARIANT)] if side == "P" else [])]:
                    guided = replace(cell, method="sims", auxiliary_size=n_aux, budget=budget, auxiliary_data=data)
                    out += [Row(replace(guided, omega=w), n, ratio, curve) for w in omegas]
    return out


# ------------------------------------------------------------------- tables


def make(
    parts: Mapping[str, Experiment], rows: Sequence[Row], w2: Mapping[str, Array], settings: dict[str, Any]
) -> dict[str, pd.DataFrame]:
    """All tables: 'curves' (every cell), 'best' (omega retuned), 'fixed' (|D_p| at a fixed omega), 'population', and
    'crossings' (the omega at which theory has SIMS-P self-improved until the paper's |D_p|)."""
    tables: dict[str, list[pd.DataFrame]] = {"curves": [], "best": [], "fixed": [], "crossings": []}
    for name, part in parts.items():
        squared = w2[name][:, :, 0] ** 2
        weights = phase.resampling_weights(part.trials, Seed(part.seed))
        learner = part.cells[0].learner
        study = _Study(part, rows, squared, weights, settings)
        for table, frame in (
            ("curves", study.curves()),
            ("best", study.best()),
            ("fixed", study.fixed()),
            ("crossings", study.crossings()),
        ):
            frame.insert(0, "learner", learner)
            tables[table].append(frame)
    return {name: pd.concat(frames, ignore_index=True) for name, frames in tables.items()} | {
        "population": _population(parts["cells"], settings)
    }


@dataclass(frozen=True, eq=False)
class _Study:
    """One learner's cells: squared distances (cells, trials) and bootstrap weights (resamples, trials)."""

    experiment: Experiment
    rows: Sequence[Row]
    squared: Array
    weights: Array
    settings: dict[str, Any]

    def series(self, n: int, curve: str, **fixed: float) -> list[int]:
        """The cells of a curve at |D_r| = n, where ``fixed`` (ratio, omega) says; the clean ones begin SIMS-P and ST-P.

        SIMS-P* has no clean beginning: its auxiliary has no data without D_p.
        """
        clean = {"ST-P": "ST-I", "SIMS-P": "SIMS-I", "ST-P equal cost": "ST-I equal cost"}.get(curve)

        def match(row: Row) -> bool:
            mine = row.curve == curve or (row.curve == clean and row.ratio == 0)
            where = {"ratio": row.ratio, "omega": row.cell.omega}
            return mine and row.n == n and all(where[k] == v for k, v in fixed.items())

        return [i for i, row in enumerate(self.rows) if match(row)]

    def dose(self, n: int, curve: str) -> Dose:
        """First order of a curve, at gain 1: nearer to the exact learner around Omega = 1 than the sampler's own gain,
        because the extrapolation's curvature makes up for what that gain loses."""
        reading = VARIANT if curve == "SIMS-P*" else self.settings["auxiliary_data"]
        return Dose(n, self.settings["auxiliary_size"], self.eta, reading, self.modes)

    @cached_property
    def modes(self) -> tuple[Mode, ...]:
        """The squared drift, read off the exact learner, and the data's noise."""
        real = self.experiment.source(self.experiment.cells[0])
        sampler = Sampler.parse(self.settings["sampler"], sigma_data=spread(real))
        drift = pollution_theory.population(real, sampler, 0.0, [0.0], "synthetic")[0]  # type: ignore[arg-type]
        return plain_modes(float(drift) ** 2, data_noise(self.experiment.covariance))

    @property
    def eta(self) -> float:
        """How far the auxiliary moves: the exact learner's budget; 1 for networks."""
        budget = self.settings["budget"]
        return float(budget) if self.settings["learner"] == "exact" else 1.0

    def curves(self) -> pd.DataFrame:
        """Every cell: root mean square and mean W2 with intervals, and linear response alongside."""
        rms = np.sqrt(phase.weighted(self.weights, self.squared.T))  # (resamples, cells)
        low, high = phase.interval(rms, self.experiment.trials)
        out = []
        for i, row in enumerate(self.rows):
            finite = bool(np.isfinite(self.squared[i]).all())
            guided = row.curve in ("SIMS-P", "SIMS-P*") or (row.curve == "SIMS-I" and row.ratio == 0)
            theory = row.curve in ("ST-I", "ST-P") or guided
            n = row.cell.real_size  # of 'same-size' ideal cells: n + n_p, and no dose
            ratio = row.ratio if row.cell.pollution else 0.0
            predicted = np.sqrt(self.dose(n, row.curve).w2_sq(ratio, row.cell.omega)) if theory else np.nan
            out.append(
                {
                    "curve": row.curve,
                    "real_size": row.n,
                    "ratio": row.ratio,
                    "pollution": row.cell.pollution,
                    "auxiliary_data": row.cell.auxiliary_data,
                    "omega": row.cell.omega,
                    "sampler": row.cell.sampler,
                    "nfe": Sampler.parse(row.cell.sampler).nfe * METHODS[row.cell.method].networks,
                    "trials": self.experiment.trials,
                    "diverged": int((~np.isfinite(self.squared[i])).sum()),
                    "w2_rms": float(np.sqrt(self.squared[i].mean())) if finite else np.inf,
                    "w2_rms_low": low[i],
                    "w2_rms_high": high[i],
                    "w2_mean": float(np.sqrt(self.squared[i]).mean()) if finite else np.inf,
                    "theory_rms": float(predicted),
                }
            )
        return pd.DataFrame(out)

    def _means(self, cells: Sequence[int]) -> Array:
        """Mean square distances: the data's own in row 0, then the resampled ones, (1 + resamples, len(cells))."""
        part = self.squared[list(cells)].T
        own = np.where(np.isfinite(part).all(0), part.mean(0), np.inf)
        return np.concatenate([own[None], phase.weighted(self.weights, part)])

    def best(self) -> pd.DataFrame:
        """The best omega of each dose, the distance there, and whether pollution still helps (paired intervals)."""
        out = []
        for n in self.settings["real_size"]:
            clean = self.series(n, "SIMS-I", ratio=0.0)
            _, ideal = vertex(self._omegas(clean), self._means(clean))
            for curve in ("SIMS-I", "SIMS-P", "SIMS-P*"):
                dose = self.dose(n, curve)
                for ratio in self.settings["pollution"]:
                    cells = self.series(n, curve, ratio=ratio)
                    if not cells or (curve == "SIMS-P" and not ratio):
                        continue
                    omega, square = vertex(self._omegas(cells), self._means(cells))
                    dosed = curve != "SIMS-I"
                    # 'same-size' ideal cells have more real points and no dose
                    law = (
                        dose if dosed else Dose(n * (1 + ratio), dose.n_aux, dose.eta, dose.auxiliary_data, dose.modes)
                    )
                    at = ratio if dosed else 0.0
                    predicted = float(law.best_omega(at))
                    out.append(
                        {"curve": curve, "real_size": n, "ratio": ratio}
                        | self._triple("omega", omega)
                        | {
                            "edge": bool(omega[0] >= max(self.settings["omega"])),
                            "law_population": float(pollution_theory.population_omega(at, dose.auxiliary_data))
                            / self._share(n, at),
                            "law": predicted,
                        }
                        | self._triple("w2_rms", np.sqrt(square))
                        | {"law_rms": float(np.sqrt(law.w2_sq(at, predicted)))}
                        | self._triple("to_clean", np.sqrt(square / ideal))
                    )
        return pd.DataFrame(out)

    def _share(self, n: int, ratio: float) -> float:
        """eta * kappa: what omega is multiplied by."""
        m = self.settings["auxiliary_size"]
        rest = {"train+synthetic": n * (1 + ratio), "real+synthetic": n}.get(self.settings["auxiliary_data"], 0)
        return float(self.eta * m / (m + rest))

    def fixed(self) -> pd.DataFrame:
        """The best dose of each fixed omega, whether a little pollution helps there, and how much the best one does."""
        out = []
        ratios = np.array(self.settings["pollution"])
        for n in self.settings["real_size"]:
            for curve in ("SIMS-P", "SIMS-P*"):
                dose = self.dose(n, curve)
                for omega in self.settings["omega"]:
                    cells = self.series(n, curve, omega=omega)
                    here = np.array([self.rows[i].ratio for i in cells])
                    means = self._means(cells)
                    if not np.isfinite(means).all():
                        continue
                    lam, square = vertex(here / (1 + here), means)  # a quadratic in lam to first order
                    row = {"curve": curve, "real_size": n, "omega": omega} | self._triple("ratio", lam / (1 - lam))
                    row |= {
                        "edge": bool(lam[0] >= (here / (1 + here)).max()),
                        "law_population": float(pollution_theory.population_ratio(omega * self._share(n, 0.0)))
                        if curve == "SIMS-P"
                        else max(0.0, (omega * self.eta - 1) / 2),
                        "law": float(dose.best_ratio(omega)) if omega else 0.0,
                    }
                    if curve == "SIMS-P":
                        row |= {"little": float(ratios[1])}
                        row |= self._triple("little_to_clean", np.sqrt(means[:, 1] / means[:, 0]))
                        row |= self._triple("best_to_clean", np.sqrt(square / means[:, 0]))
                    out.append(row)
        return pd.DataFrame(out)

    def crossings(self) -> pd.DataFrame:
        """The omega at which SIMS-P is better than the base, or than SIMS on clean data, until the paper's |D_p|."""
        out = []
        for n in self.settings["real_size"]:
            dose = self.dose(n, "SIMS-P")
            for ratio, than in itertools.product(pollution_theory.SELF_IMPROVED, ("base", "clean")):
                quiet = float(pollution_theory.population_crossing(ratio, than)) / self._share(n, ratio)
                row = {"real_size": n, "ratio": ratio, "than": than, "law": dose.crossing(ratio, than)}
                out.append(row | {"law_population": quiet})
        return pd.DataFrame(out)

    def _triple(self, name: str, values: Array) -> dict[str, float]:
        """Value and interval from the data's own (row 0) and the resampled ones."""
        low, high = phase.interval(values[1:, None], self.experiment.trials)
        return {name: float(values[0]), f"{name}_low": float(low[0]), f"{name}_high": float(high[0])}

    def _omegas(self, cells: Sequence[int]) -> Array:
        return np.array([self.rows[i].cell.omega for i in cells])


def vertex(x: Array, y: Array) -> tuple[Array, Array]:
    """The place (B,) and value (B,) of the minimum of each row of y (B, len(x)) over increasing x.

    The parabola through the least value and its two neighbours; at an end of the grid the value there. Values
    are squared distances: none is below 0.
    """
    x = np.asarray(x, dtype=np.float64)
    best = y.argmin(1)
    inner = np.clip(best, 1, len(x) - 2)
    pick = np.arange(len(y))
    a, b, c = x[inner - 1], x[inner], x[inner + 1]
    fa, fb, fc = y[pick, inner - 1], y[pick, inner], y[pick, inner + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        left, right = (fb - fa) / (b - a), (fc - fb) / (c - b)
        curve = (right - left) / (c - a)
        place = (a + b) / 2 - left / (2 * curve)
        value = fa + left * (place - a) + curve * (place - a) * (place - b)
    ok = (best == inner) & np.isfinite(place) & (curve > 0)
    return np.where(ok, place, x[best]), np.where(ok, np.maximum(value, 0), y[pick, best])


def _population(experiment: Experiment, settings: dict[str, Any]) -> pd.DataFrame:
    """The limit of unlimited data by the exact learner: the best omega of each dose, and W2 at some fixed ones."""
    real = experiment.source(experiment.cells[0])
    eta = float(settings["budget"]) if settings["learner"] == "exact" else 1.0
    out = []
    for name in dict.fromkeys([settings["sampler"], *POPULATION_SAMPLERS]):
        sampler = Sampler.parse(name, sigma_data=spread(real))
        for reading in ("synthetic", VARIANT):
            for ratio in settings["pollution"]:
                if reading == VARIANT and not ratio:
                    continue
                best, least = pollution_theory.population_best(real, sampler, ratio, reading, eta)  # type: ignore[arg-type]
                row = {"sampler": name, "auxiliary_data": reading, "ratio": ratio, "omega": best, "w2": least}
                row["law"] = float(pollution_theory.population_omega(ratio, reading)) / eta
                strengths = np.array([0.0, 1.0, 1.2, 1.5, 2.0])
                w2 = pollution_theory.population(real, sampler, ratio, strengths / eta, reading, eta)  # type: ignore[arg-type]
                row |= {f"w2_at_{s:g}": float(v) for s, v in zip(strengths, w2, strict=True)}
                out.append(row)
    return pd.DataFrame(out)


# -------------------------------------------------------------------- words


def words(frames: dict[str, pd.DataFrame], settings: dict[str, Any]) -> str:
    """Tables of the first |D_r| at the fixed omega and at the best one, and the answer to the question."""
    curves, best, fixed, crossings = (
        frames[k][frames[k]["learner"] == settings["learner"]] for k in ("curves", "best", "fixed", "crossings")
    )
    lines, answers = [], []
    for n in settings["real_size"]:
        lines.append(_summary(curves[curves["real_size"] == n], best[best["real_size"] == n], n, settings))
        answers.append(_crossed(crossings[crossings["real_size"] == n], n))
        answers.append(_answer(best[best["real_size"] == n], fixed[fixed["real_size"] == n], n, settings))
    return "\n".join([*lines, "", *answers])


def _summary(curves: pd.DataFrame, best: pd.DataFrame, n: int, settings: dict[str, Any]) -> str:
    w = settings["fixed"]
    lines = [
        f"|D_r| = {n}, root mean square W2; SIMS-P* has its auxiliary on D_p",
        f"{'|D_p|/|D_r|':>11} {'ST-P':>7} {f'SIMS-P, ω={w:g}':>14} {'best ω':>7} {'95 % interval':>15} {'law':>5} "
        f"{'W2':>7} {'over clean':>10} {'95 % interval':>15}  {'SIMS-P*: best ω':>15} {'law':>5} {'W2':>7}",
    ]
    for ratio in settings["pollution"]:
        here = curves[curves["ratio"] == ratio]
        side = "P" if ratio else "I"
        standard = here[here["curve"] == f"ST-{side}"]["w2_rms"].iloc[0]
        at = here[(here["curve"] == f"SIMS-{side}") & (here["omega"] == w)]["w2_rms"].iloc[0]
        b = best[(best["curve"] == f"SIMS-{side}") & (best["ratio"] == ratio)].iloc[0]
        line = (
            f"{ratio:>11g} {standard:>7.4f} {at:>14.4f} {b['omega']:>7.2f} "
            f"{_span(b, 'omega', 2):>15} {b['law']:>5.2f} {b['w2_rms']:>7.4f} {b['to_clean']:>10.3f} "
            f"{_span(b, 'to_clean', 3):>15}"
        )
        star = best[(best["curve"] == "SIMS-P*") & (best["ratio"] == ratio)]
        for _, v in star.iterrows():
            line += f"  {v['omega']:>15.2f} {v['law']:>5.2f} {v['w2_rms']:>7.4f}" + (" (edge)" if v["edge"] else "")
        lines.append(line)
    return "\n".join(lines)


def _span(row: Any, name: str, digits: int) -> str:
    return f"{row[f'{name}_low']:.{digits}f} .. {row[f'{name}_high']:.{digits}f}"


def _crossed(crossings: pd.DataFrame, n: int) -> str:
    """At which omega the theory has the paper's crossings."""
    told = []
    for than, name in (("base", "the base"), ("clean", "SIMS on clean data")):
        mine = crossings[crossings["than"] == than]
        found = [f"{r['ratio']:g} at ω = {r['law']:.2f} ({r['law_population']:.2f})" for _, r in mine.iterrows()]
        told.append(f"better than {name} until {' and '.join(found)}")
    return f"|D_r| = {n}: by the law (without noise) SIMS-P is {'; '.join(told)} of |D_r|, the paper's two crossings."


def _answer(best: pd.DataFrame, fixed: pd.DataFrame, n: int, settings: dict[str, Any]) -> str:
    """Does a little pollution help at a fixed omega, from which omega on, and does it still at the best omega?"""
    dosed = fixed[fixed["curve"] == "SIMS-P"]
    helped = dosed[dosed["little_to_clean_high"] < 1]
    hurt = dosed[dosed["little_to_clean_low"] > 1]
    at = dosed[dosed["omega"] == settings["fixed"]].iloc[0]
    from_law = dosed[dosed["law"] > 1e-3]["omega"].min()
    start = f"from ω = {helped['omega'].min():g} on" if len(helped) else "at no ω of the grid"
    still = f" and hurts up to ω = {hurt['omega'].max():g}" if len(hurt) else ""
    place = f"at or beyond {at['ratio']:.2g}" if at["edge"] else f"at {at['ratio']:.2g} ({_span(at, 'ratio', 2)})"
    tuned = best[(best["curve"] == "SIMS-P")]
    better, worse = (tuned["to_clean_high"] < 1).sum(), (tuned["to_clean_low"] > 1).sum()
    verdict = (
        "so the benefit is an artefact of the fixed ω"
        if len(helped) and not better
        else "so pollution helps beyond what ω does"
        if better
        else "and these trials decide for no benefit at any fixed ω"
    )
    return (
        f"|D_r| = {n}: at a fixed ω the least dose ({at['little']:g}) helps {start}{still} (law: from {from_law:g}). "
        f"At ω = {settings['fixed']:g} the best |D_p|/|D_r| is {place}, law {at['law']:.2g} (without noise "
        f"{at['law_population']:.2g}): {at['best_to_clean']:.3f}x the clean W2 ({_span(at, 'best_to_clean', 3)}). "
        f"With ω retuned for each |D_p|, pollution is better than none in {better} and worse in {worse} of "
        f"{len(tuned)} doses: {verdict}."
    )


def draw(frames: dict[str, pd.DataFrame], settings: dict[str, Any], folder: Path) -> list[Path]:
    """The figures, one a |D_r|: pollution, pollution-2, ..."""
    paths = []
    for number, n in enumerate(settings["real_size"]):
        stem = folder / (f"pollution-{number + 1}" if number else "pollution")
        paths += figure5(frames, settings, n, stem)
    return paths
