"""What the control study says: its tables with both laws alongside, the exact-score experiment, its words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from sims_core.control import complement, density_law, largest_strength, total_variation, transport_law
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy import phase
from sims_toy.control.theory import CASES, best_omega, langevin, separatrix_share, transport
from sims_toy.datasets import Mixture, parse_real
from sims_toy.grid.cells import Array, Experiment
from sims_toy.theory import data_noise

#: The sampler of the exact-score experiment and its strengths of guidance under Langevin dynamics.
EXACT = "heun:40"
LANGEVIN = (0.0, 0.5, 1.0, 1.5, 2.0)
#: How much of the way to the target the exact-score experiment asks for, and at which omegas it looks.
SHIFTS = (0.25, 0.5, 0.75, 1.0)
REACH = tuple(0.25 * i for i in range(17))


def make(experiment: Experiment, values: Mapping[str, Array], settings: dict[str, Any]) -> dict[str, pd.DataFrame]:
    """All tables: 'shares' (a class at an omega), 'quality' (an omega), 'best', 'scores', 'reach' and
    'cases' (exact scores)."""
    one = {name: array[:, :, 0] for name, array in values.items()}  # (cells, trials, ...)
    weights = phase.resampling_weights(experiment.trials, Seed(experiment.seed))
    return {
        "shares": _shares(experiment, one, weights, settings),
        "quality": _quality(experiment, one, weights, settings),
        "best": _best(experiment, one, weights, settings),
        "scores": _scores(settings),
        "reach": _reach(settings),
        "cases": _cases(),
    }


def _identity(cell: Any) -> dict[str, Any]:
    reading, _, strength = cell.auxiliary_data.partition("@")
    named = cell.method in ("control", "random")
    return {
        "method": cell.method,
        "complement": reading if named else "none",
        "strength": float(strength) if strength and named else np.nan,
        "omega": cell.omega,
        "sampler": cell.sampler,
    }


def _mean(values: Array, weights: Array, name: str) -> dict[str, float]:
    """Mean over the trials and its interval; trials without a value (an empty class) are left out of both."""
    there = np.isfinite(values)
    if not there.any():
        return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
    filled = np.where(there, values, 0.0)
    share = weights @ there.astype(float)
    with np.errstate(invalid="ignore", divide="ignore"):
        resampled = (weights @ filled) / share
    low, high = np.nanquantile(resampled, phase.levels(int(there.sum())))
    return {name: float(filled.sum() / there.sum()), f"{name}_low": float(low), f"{name}_high": float(high)}


def _shares(experiment: Experiment, one: Mapping[str, Array], weights: Array, settings: dict[str, Any]) -> pd.DataFrame:
    mixture = _mixture(settings)
    own = one["shares"][0]  # the base's proportions, trial by trial
    v = data_noise(mixture.std**2 * np.eye(len(mixture.means[0])))
    out = []
    for i, cell in enumerate(experiment.cells):
        auxiliary = one["auxiliary_shares"][i]
        laws = {
            "linear": transport_law(own, auxiliary, np.full(len(own), cell.omega)),
            "geometric": density_law(
                own, np.maximum(auxiliary, 0.5 / settings["points"]), np.full(len(own), cell.omega)
            ),
        }
        for k in range(len(settings["target"])):
            points = one["shares"][i, :, k].mean() * settings["points"]
            out.append(
                _identity(cell)
                | {"class": k + 1, "target": settings["target"][k], "real": settings["base"][k]}
                | {"base": float(own[:, k].mean()), "trials": experiment.trials}
                | _mean(one["shares"][i, :, k], weights, "share")
                | _mean(auxiliary[:, k], weights, "auxiliary")
                | {f"law_{name}": float(law[:, k].mean()) for name, law in laws.items()}
                | _mean(one["class_w2"][i, :, k], weights, "class_w2")
                | {"class_w2_floor": float(np.sqrt(v / points)) if points >= 1 else np.nan}
                | _mean(one["class_mean"][i, :, k], weights, "class_mean")
                | _mean(one["class_covariance"][i, :, k], weights, "class_covariance")
            )
    return pd.DataFrame(out)


def _quality(
    experiment: Experiment, one: Mapping[str, Array], weights: Array, settings: dict[str, Any]
) -> pd.DataFrame:
    floor = _tv_floor(settings)
    out = []
    for i, cell in enumerate(experiment.cells):
        networks = 1 if cell.method in ("standard", "equal-cost") else 2
        row = _identity(cell) | {"trials": experiment.trials, "nfe": Sampler.parse(cell.sampler).nfe * networks}
        row |= {"diverged": int((~np.isfinite(one["shares"][i]).all(1)).sum())}
        row |= _mean(total_variation(one["shares"][i], settings["target"]), weights, "tv") | {"tv_floor": floor}
        for name in ("target", "original"):
            row |= _mean(one[f"sliced_{name}"][i], weights, f"sliced_{name}")
            row |= _mean(one[f"floor_{name}"][i], weights, f"floor_{name}")
        out.append(row | _mean(one["outside"][i], weights, "outside"))
    return pd.DataFrame(out)


def _best(experiment: Experiment, one: Mapping[str, Array], weights: Array, settings: dict[str, Any]) -> pd.DataFrame:
    """For each guided method: the omega nearest to the target, the distance there, and what it costs the classes.

    What is reached is cross-fitted (`phase.held_out`): half the trials choose omega, the other half are measured.
    """
    groups: dict[tuple[str, str], list[int]] = {}
    for i, cell in enumerate(experiment.cells):
        if cell.method not in ("standard", "equal-cost"):
            groups.setdefault((cell.method, cell.auxiliary_data), []).append(i)
    out = []
    for cells in groups.values():
        omegas = np.array([experiment.cells[i].omega for i in cells])
        tv = total_variation(one["shares"][cells], settings["target"])  # (omegas, trials)
        tv = np.where(np.isfinite(tv), tv, np.inf)
        place = (phase.chosen_by_the_rest(tv), np.arange(tv.shape[1]))
        chosen = phase.weighted(weights, tv.T).argmin(1)
        i = int(phase.finite_mean(tv).argmin())
        low, high = np.quantile(omegas[chosen], phase.levels(experiment.trials))
        row = {k: v for k, v in _identity(experiment.cells[cells[i]]).items() if k != "omega"}
        row |= {"omega": omegas[i], "omega_low": low, "omega_high": high}
        row |= _mean(tv[place], weights, "tv") | {"tv_base": float(tv[0].mean()), "tv_floor": _tv_floor(settings)}
        for name, values in (("sliced_target", one["sliced_target"][cells]),
                             ("class_w2", np.nanmean(one["class_w2"][cells], axis=2))):  # fmt: skip
            row |= _mean(values[place], weights, name) | {f"{name}_base": float(values[0].mean())}
        row |= {"floor_target": float(one["floor_target"][cells[i]].mean())}
        out.append(row | _mean(one["outside"][cells][place], weights, "outside"))
    return pd.DataFrame(out)


def _tv_floor(settings: dict[str, Any]) -> float:
    """What the shares of as many points of the target itself are away from it, on average."""
    drawn = Seed(0).child("floor").numpy().multinomial(settings["points"], settings["target"], size=2000)
    return float(total_variation(drawn / settings["points"], settings["target"]).mean())


def _mixture(settings: dict[str, Any]) -> Mixture:
    mixture = parse_real(settings["real"]).mixture
    assert mixture is not None  # refused by the plan
    return mixture


# ------------------------------------------------------------- exact scores


def _scores(settings: dict[str, Any]) -> pd.DataFrame:
    """Exact mixture scores: what the ODE and what Langevin dynamics make of the shares, alongside both laws."""
    mixture, target = _mixture(settings), settings["target"]
    p = np.array(settings["base"])
    ode = Sampler.parse(EXACT, sigma_data=parse_real(settings["real"]).spread)
    out = []
    for reading in settings["complement"]:
        a = complement(p, target, reading=reading)
        made = [("ode", w, transport(mixture, p, a, w, ode)) for w in settings["omega"]]
        seed = Seed(settings["seed"]).child("langevin")
        if bool((a > 0).all()):  # a class without a score has no equilibrium
            made += [("langevin", w, langevin(mixture, p, a, w, seed=seed)) for w in LANGEVIN]
        for sampler, omega, sampled in made:
            out += [
                {
                    "complement": reading,
                    "sampler": sampler,
                    "omega": omega,
                    "class": k + 1,
                    "auxiliary": a[k],
                    "share": sampled.shares[k],
                    "law_linear": float(transport_law(p, a, omega)[k]),
                    "law_geometric": float(density_law(p, a, omega)[k]),
                    "displacement": sampled.displacement[k],
                    "outside": sampled.outside,
                }
                for k in range(len(p))
            ]
    return pd.DataFrame(out)


def _reach(settings: dict[str, Any]) -> pd.DataFrame:
    """Exact scores, ODE: how near each complement comes to targets further and further away, and at which omega."""
    mixture = _mixture(settings)
    p, q = np.array(settings["base"]), np.array(settings["target"])
    ode = Sampler.parse(EXACT, sigma_data=parse_real(settings["real"]).spread)
    out = []
    for shift in SHIFTS:
        target = p + shift * (q - p)
        for reading in settings["complement"]:
            for strength in settings["strength"]:
                a = complement(p, target, strength, reading=reading)
                omega, tv, sampled = best_omega(mixture, p, a, target, ode, REACH)
                at_one = transport(mixture, p, a, 1 / strength, ode, 2**12)
                out.append(
                    {
                        "complement": reading,
                        "strength": strength,
                        "shift": shift,
                        "tv_base": float(total_variation(p, target)),
                        "least_auxiliary": float(a.min()),
                        "largest_strength": largest_strength(p, target),
                        "omega": omega,
                        "tv": tv,
                        "tv_at_inverse_strength": float(total_variation(at_one.shares, target)),
                        "displacement": float(np.nanmax(sampled.displacement)),
                        "outside": sampled.outside,
                    }
                )
    return pd.DataFrame(out)


def _cases() -> pd.DataFrame:
    """Exact scores, ODE, on `control_theory.CASES`: one row per case and class, with both laws and the separatrix."""
    out = []
    for number, case in enumerate(CASES):
        p, a = case.base, case.auxiliary
        ode = transport(case.mixture, p, a, case.omega, Sampler.parse(EXACT, sigma_data=1.0), 2**12).shares
        parted: list[float] = []
        if len(p) == 2:
            parted = [share := separatrix_share(case.mixture, p, a, case.omega), 1 - share]
        linear, geometric = _possible(transport_law(p, a, case.omega)), density_law(p, a, case.omega)
        out += [
            {
                "case": number + 1,
                "kind": case.name,
                "omega": case.omega,
                "class": k + 1,
                "base": p[k],
                "auxiliary": a[k],
            }
            | {"share": ode[k], "law_linear": linear[k], "law_geometric": geometric[k]}
            | {"separatrix": parted[k] if parted else np.nan}
            for k in range(len(p))
        ]
    return pd.DataFrame(out)


def _possible(shares: Array) -> Array:
    """Shares that a law puts below 0, cut off there."""
    cut = np.maximum(shares, 0)
    return np.asarray(cut / cut.sum())


# -------------------------------------------------------------------- words


def label(row: Any) -> str:
    """A method in words."""
    if row["method"] == "control":
        return f"complement {row['complement']}, a = {row['strength']:g}"
    return {"sims": "plain SIMS", "random": "random direction", "standard": "base", "equal-cost": "base, equal cost"}[
        row["method"]
    ]


def words(frames: dict[str, pd.DataFrame], settings: dict[str, Any]) -> str:
    """One line per method at its best omega, and what the laws say of it."""
    best, quality = frames["best"], frames["quality"]
    base = quality[quality["method"] == "standard"].iloc[0]
    lines = [
        f"target {_list(settings['target'])}, real {_list(settings['base'])}; total variation: base {base['tv']:.3f} "
        f"({base['tv_low']:.3f} .. {base['tv_high']:.3f}), floor {base['tv_floor']:.3f}",
        f"{'method':>28} {'best ω':>7} {'95 %':>12} {'TV':>6} {'95 % interval':>15} {'sliced W2':>9} {'base':>6} "
        f"{'floor':>6} {'class W2':>9} {'base':>6} {'outside':>8}",
    ]
    for _, row in best.iterrows():
        lines.append(
            f"{label(row):>28} {row['omega']:>7g} {f'{row.omega_low:g} .. {row.omega_high:g}':>12} {row['tv']:>6.3f} "
            f"{f'{row.tv_low:.3f} .. {row.tv_high:.3f}':>15} {row['sliced_target']:>9.4f} "
            f"{row['sliced_target_base']:>6.4f} {row['floor_target']:>6.4f} {row['class_w2']:>9.4f} "
            f"{row['class_w2_base']:>6.4f} {row['outside']:>8.4f}"
        )
    lines += ["", _laws(frames, settings)]
    return "\n".join(lines)


def _laws(frames: dict[str, pd.DataFrame], settings: dict[str, Any]) -> str:
    mine = frames["shares"]
    mine = mine[(mine["method"] == "control") & (mine["omega"] > 0)]
    off = {law: float((mine["share"] - mine[f"law_{law}"]).abs().mean()) for law in ("linear", "geometric")}
    scores = frames["scores"]
    scores = scores[scores["omega"] > 0]
    by = {
        (sampler, law): float((part["share"] - part[f"law_{law}"]).abs().mean())
        for sampler, part in scores.groupby("sampler")
        for law in ("linear", "geometric")
    }
    text = [
        f"Mean error of a class share by the linear law p + ω(p − p_aux) and by the geometric one p^(1+ω)/p_aux^ω: "
        f"networks {off['linear']:.3f} and {off['geometric']:.3f}",
        *(
            f"exact scores, {'ODE' if s == 'ode' else 'Langevin'} {by[s, 'linear']:.3f} and {by[s, 'geometric']:.3f}"
            for s in ("ode", "langevin")
            if (s, "linear") in by
        ),
    ]
    text += [
        f"{kind} {part['linear']:.3f} and {part['geometric']:.3f}"
        for kind, part in law_errors(frames["cases"]).iterrows()
    ]
    best = frames["best"]
    best = best[best["method"] == "control"]
    top = best.loc[best["tv"].idxmin()]
    edge = largest_strength(settings["base"], settings["target"])
    cut = [a for a in settings["strength"] if a > edge and "linear" in settings["complement"]]
    warning = f" The linear complement cuts classes off beyond a = {edge:.2g} (asked for: {_list(cut)})." if cut else ""
    return (
        f"Nearest to the target: {label(top)} at ω = {top['omega']:g}, total variation {top['tv']:.3f} from "
        f"{top['tv_base']:.3f} (floor {top['tv_floor']:.3f}).{warning} {'; '.join(text)}."
    )


def law_errors(cases: pd.DataFrame) -> pd.DataFrame:
    """Mean error of a class share by each law (columns linear, geometric), one row a kind of `control_theory.CASES`."""
    off = {law: (cases["share"] - cases[f"law_{law}"]).abs() for law in ("linear", "geometric")}
    return cases.assign(**off).groupby("kind", sort=False)[list(off)].mean()


def _list(values: Sequence[float]) -> str:
    return "(" + ", ".join(f"{v:.3g}" for v in values) + ")"
