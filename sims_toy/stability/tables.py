"""What the stability study says: its tables, and its words. Its figures are in `sims_toy.stability.figures`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sims_core.seeds import Seed
from sims_toy import phase, wasserstein
from sims_toy.datasets import parse_real
from sims_toy.grid.measure import POINTS
from sims_toy.networks.settings import NetworkSettings
from sims_toy.stability import figures, theory
from sims_toy.stability.networks import curvature, w1_excess
from sims_toy.theory import TOLERANCE

if TYPE_CHECKING:
    from sims_toy.grid.cells import Array, Cell, Experiment, Values

Frames = dict[str, "pd.DataFrame"]
#: Rounds that the pictures show at most.
SHOWN = 7
#: Ratios at which the closed-form cases are shown.
GRID = (0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.7, 1.0, 2.0, 5.0)


def ratio_of(cell: Cell) -> float:
    """The cell's lambda; inf for the fully synthetic loop."""
    last = cell.loop.rsplit(":", 1)[-1]
    return math.inf if last == "fully-synthetic" else float(last)


def make(parts: dict[str, Experiment], values: dict[str, Values], settings: dict[str, Any]) -> Frames:
    """All tables of the study from its parts' values."""
    loops, found = parts["loops"], values["loops"]
    rounds = _distances(loops, found[settings["distance"]], settings)
    return {
        "stability": rounds,
        "rates": _rates(loops, found, values["kicked"], settings),
        "constants": _constants(loops, found, settings),
        "closed_form": pd.DataFrame(_closed_form()),
        "collapse": _collapse(parts, values),
        "samples": _samples(loops, found),
    }


def _distances(loops: Experiment, distance: Array, settings: dict[str, Any]) -> pd.DataFrame:
    """One row a cell and generation: distance, its ratio to the first round and to lambda = 0, its floor."""
    weights = phase.resampling_weights(loops.trials, Seed(loops.seed))
    last = phase.last_generations(loops.generations)
    floors = {}
    for name in settings["real"]:
        real, seed = parse_real(name), Seed(loops.seed).child("floor")
        measure = getattr(wasserstein, "exact" if settings["distance"] == "emd" else "sliced")
        draws = wasserstein.floors(real, POINTS, measure, seed)
        floors[name] = (float(np.mean(draws)), *np.quantile(draws, [0.025, 0.975]).tolist())
    zero = {c.real: i for i, c in enumerate(loops.cells) if ratio_of(c) == 0}
    rows = []
    for i, cell in enumerate(loops.cells):
        late = [distance[j][:, last].mean(1) for j in (i, zero[cell.real])]
        resampled = [phase.weighted(weights, v) for v in (*late, distance[i][:, 0])]
        facts: dict[str, float] = {}
        for name, below in (("to_zero", 1), ("to_first", 2)):
            ends = phase.interval(phase.ratio(resampled[0], resampled[below]), loops.trials)
            bottom = late[1] if below == 1 else distance[i][:, 0]
            value = float(phase.ratio(np.array(late[0].mean()), np.array(bottom.mean())))
            facts |= {name: value, f"{name}_low": float(ends[0]), f"{name}_high": float(ends[1])}
        facts |= _growth(distance[i], distance[zero[cell.real]], last, weights)
        for t in range(loops.generations):
            mean, low, high = phase.mean_row("", distance[i][:, t], weights).values()
            floor, floor_low, floor_high = floors[cell.real]
            rows.append(
                {
                    "real": cell.real, "ratio": ratio_of(cell), "synthetic_size": cell.synthetic_size,
                    "generation": t + 1, "trials": loops.trials, "distance": mean, "low": low, "high": high,
                    "se": float(distance[i][:, t].std(ddof=1) / math.sqrt(loops.trials)),
                    "floor": floor, "floor_low": floor_low, "floor_high": floor_high, **facts,
                }
            )  # fmt: skip
    return pd.DataFrame(rows)


def _growth(mine: Array, reference: Array, last: slice, weights: Array) -> dict[str, float]:
    """d(lambda) / d(0) in the last rounds over the second half of those before (trials, rounds); 1 if settled."""
    before = slice(last.start // 2, last.start)
    parts = [v for d in (mine, reference) for v in (d[:, last].mean(1), d[:, before].mean(1))]

    def change(late: Array, early: Array, zero_late: Array, zero_early: Array) -> Array:
        return phase.ratio(phase.ratio(late, zero_late), phase.ratio(early, zero_early))

    low, high = phase.interval(change(*(phase.weighted(weights, v) for v in parts)), mine.shape[0])
    value = change(*(np.array(v.mean()) for v in parts))
    return {"growth": float(value), "growth_low": float(low), "growth_high": float(high)}


def _rates(loops: Experiment, found: Values, kicked: Values, settings: dict[str, Any]) -> pd.DataFrame:
    """One row a cell: how much of a displacement of the scale is left after one round, and after the next.

    The kicked loop's first model is a model of kick x data; its samples and those of the loop beside it share their
    noise, so that <x' - x, x> / <x, x> is the displacement of the scale, of which kick - 1 was put in.
    """
    weights = phase.resampling_weights(loops.trials, Seed(loops.seed))
    points = next(name for name in loops.quantities if name.startswith("points"))
    rows = []
    for i, cell in enumerate(loops.cells):
        moved = kicked[points][i]  # (trials, rounds, n, 2)
        plain = found[points][i][:, : moved.shape[1]]
        left = ((moved - plain) * plain).sum((-1, -2)) / (plain**2).sum((-1, -2))
        left = np.where(np.isfinite(left), left, np.inf)
        resampled = phase.weighted(weights, left)
        row: dict[str, Any] = {"real": cell.real, "ratio": ratio_of(cell), "kick": settings["kick"]}
        row["well_specified"] = theory.linear_rate(ratio_of(cell))
        row["displacement"] = float(left[:, 0].mean())
        for name, a, b in (("rate", 1, 0), ("next_rate", 2, 1)):
            if left.shape[1] > a:
                low, high = phase.interval(phase.ratio(resampled[:, a], resampled[:, b]), loops.trials)
                value = float(phase.ratio(np.array(left[:, a].mean()), np.array(left[:, b].mean())))
                row |= {name: value, f"{name}_low": float(low), f"{name}_high": float(high)}
        rows.append(row)
    return pd.DataFrame(rows)


def _constants(loops: Experiment, found: Values, settings: dict[str, Any]) -> pd.DataFrame:
    """alpha, L, eps and the condition for each data set, network and ratio.

    The model at hand is the last round's of lambda = 0, the nearest there is to theta*. The direction of a ratio is
    where its loop's last network lies from there. ``reading`` 'smallest': alpha is along the smallest eigenvalue's
    direction, L the largest of all directions tried; 'displacement': both along the ratio's own direction.
    """
    network = NetworkSettings(**settings["network"])
    points = next(name for name in loops.quantities if name.startswith("points"))
    rows: list[dict[str, Any]] = []
    for name in settings["real"]:
        real, here = parse_real(name), [i for i, c in enumerate(loops.cells) if c.real == name]
        zero = next(i for i in here if ratio_of(loops.cells[i]) == 0)
        others = [i for i in here if i != zero]
        sound = [
            k for k in range(loops.trials) if np.isfinite(found["weights"][here, k, -1]).all()
        ]  # a network that diverged has no curvature
        distances = [w1_excess(found[points][zero, k, -1], real, seed=Seed(loops.seed).child("eps", k)) for k in sound]
        excess = np.array([value - floor for value, floor in distances])
        epsilon = max(0.0, float(excess.mean())) if len(excess) else math.nan
        spread = float(excess.std(ddof=1) / math.sqrt(len(excess))) if len(excess) > 1 else 0.0
        for k in sound[: settings["probes"]]:
            theta = found["weights"][zero, k, -1]
            moved = found["weights"][others, k, -1, :-1] - theta[:-1]
            measured = curvature(
                theta[:-1], float(theta[-1]), moved, real.standard, network,
                points=min(settings["probe_points"], real.limit or settings["probe_points"]),
                seed=Seed(loops.seed).child("probe", k),
            )  # fmt: skip
            for j, i in enumerate(others):
                readings = {
                    "smallest": (measured.held_out, float(measured.lipschitz.max())),
                    "displacement": (float(measured.alpha[j]), float(measured.lipschitz[j])),
                }
                for reading, (alpha, lipschitz) in readings.items():
                    known, ratio = theory.Constants(alpha, lipschitz, epsilon), ratio_of(loops.cells[i])
                    rows.append(
                        {
                            "real": name, "trial": k, "ratio": ratio, "reading": reading, "alpha": alpha,
                            "lipschitz": lipschitz, "epsilon": epsilon,
                            "epsilon_se": spread,
                            "w1": float(np.mean([d[0] for d in distances])),
                            "w1_floor": float(np.mean([d[1] for d in distances])),
                            "condition": known.condition(ratio), "threshold": known.threshold,
                            "holds": known.certified(ratio), "bound": known.rate(ratio),
                            "smallest": measured.smallest, "largest": measured.largest, "flat": measured.flat,
                            "gradient": measured.gradient, "held_out_se": measured.held_out_se,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def _closed_form() -> list[dict[str, Any]]:
    """The theorem against the integrated gradient flow, for every case of `stability_theory.CASES`."""
    rows = []
    for name, build in theory.CASES.items():
        case = build()
        known = case.constants
        a, b = case.matrices
        for lam in GRID:
            flow = theory.jacobian(case, lam)
            rows.append(
                {
                    "case": name, "ratio": lam, "alpha": known.alpha, "lipschitz": known.lipschitz,
                    "epsilon": known.epsilon, "threshold": known.threshold, "condition": known.condition(lam),
                    "certified": known.certified(lam), "bound": known.rate(lam),
                    "measured": theory.spectral_radius(flow), "norm": float(np.linalg.norm(flow, 2)),
                    "linear": theory.linear_rate(lam, float(np.linalg.eigvals(np.linalg.solve(a, b)).real.max())),
                }
            )  # fmt: skip
    return rows


def _collapse(parts: dict[str, Experiment], values: dict[str, Values]) -> pd.DataFrame:
    """E sqrt(Sigma_t) by Monte-Carlo beside c_4(n)^t, for both estimators of the variance."""
    frames = []
    for ddof in (1, 0):
        part = parts[f"collapse{ddof}"]
        root = np.sqrt(values[f"collapse{ddof}"]["variance"][0])  # (trials, generations)
        t = np.arange(1, part.generations + 1)
        n = part.cells[0].real_size
        frame = {
            "divisor": "n - 1" if ddof else "n",
            "n": n,
            "generation": t,
            "trials": part.trials,
            "mean": root.mean(0),
            "se": root.std(0, ddof=1) / math.sqrt(part.trials),
            "median": np.median(root, 0),
            "closed_form": theory.collapse_rate(n, ddof) ** t,
        }
        frames.append(pd.DataFrame(frame))
    return pd.concat(frames, ignore_index=True)


def shown_rounds(generations: int) -> list[int]:
    """The rounds that the pictures show, first and last among them."""
    return sorted({int(v) for v in np.linspace(1, generations, min(SHOWN, generations)).round()})


def _samples(loops: Experiment, found: Values) -> pd.DataFrame:
    """The kept samples of trial 0 in the rounds that are shown."""
    points = next(name for name in loops.quantities if name.startswith("points"))
    frames = []
    for i, cell in enumerate(loops.cells):
        for t in shown_rounds(loops.generations):
            x = found[points][i][0, t - 1].astype(np.float32)
            frame = {"real": cell.real, "ratio": ratio_of(cell), "generation": t, "x": x[:, 0], "y": x[:, 1]}
            frames.append(pd.DataFrame(frame))
    return pd.concat(frames, ignore_index=True)


def draw(frames: Frames, settings: dict[str, Any], folder: Path) -> list[Path]:
    """`stability`, and `stability_samples_<data>` for each data set."""
    paths = figures.overview(frames, folder / "stability", settings=settings)
    for number, name in enumerate(settings["real"]):
        kind = "".join(c if c.isalnum() else "-" for c in name.partition(":")[0].rsplit("/", 1)[-1])
        taken = [other.partition(":")[0] for other in settings["real"][:number]]
        stem = f"stability_samples_{kind}" + (f"_{number + 1}" if name.partition(":")[0] in taken else "")
        paths += figures.small_multiples(frames["samples"], name, folder / stem, settings=settings)
    return paths


# ------------------------------------------------------------------ words


def _label(ratio: float) -> str:
    return "fully synthetic" if math.isinf(ratio) else f"lambda = {ratio:g}"


def verdict(low: float, high: float, growth_low: float, trials: int) -> str:
    """What d_T over d_T(lambda = 0), and its growth over the last rounds, allow.

    'stays' within 5 %; 'drifts' beyond it and still growing; 'farther' beyond it, growth not shown; 'undecided',
    also where the trials are few.
    """
    if trials < phase.FEW:
        return "undecided"
    if low > TOLERANCE:
        return "drifts" if growth_low > 1 else "farther"
    return "stays" if high <= TOLERANCE else "undecided"


def _verdict_of(row: pd.Series, trials: int) -> str:
    return verdict(row["to_zero_low"], row["to_zero_high"], row["growth_low"], trials)


def words(frames: Frames, settings: dict[str, Any]) -> str:
    """The findings, the theorem's say, and the conclusion last."""
    lines = []
    rounds, rates, constants = frames["stability"], frames["rates"], frames["constants"]
    conclusions = []
    for name in settings["real"]:
        mine = rounds[(rounds["real"] == name) & (rounds["generation"] == settings["generations"])]
        lines.append(
            f"{name}: d_T / d_T(lambda = 0), the {settings['distance']} W2 of the last rounds [95 %] (x what it was "
            "before them); rate, what one round leaves of a displacement [95 %], and lambda / (1 + lambda)"
        )
        verdicts: dict[str, list[str]] = {"stays": [], "farther": [], "drifts": [], "undecided": []}
        for _, row in mine.sort_values("ratio").iterrows():
            rate = rates[(rates["real"] == name) & (rates["ratio"] == row["ratio"])].iloc[0]
            says = _verdict_of(row, settings["trials"]) if row["ratio"] else "the reference"
            if row["ratio"]:
                verdicts[says].append("fully synthetic" if math.isinf(row["ratio"]) else f"{row['ratio']:g}")
            lines.append(
                f"  {_label(row['ratio']):>16}: {row['to_zero']:.2f} "
                f"[{row['to_zero_low']:.2f}, {row['to_zero_high']:.2f}] {says} "
                f"(x {row['growth']:.2f} [{row['growth_low']:.2f}, {row['growth_high']:.2f}]); "
                f"rate {rate['rate']:.3f} [{rate['rate_low']:.3f}, {rate['rate_high']:.3f}], "
                f"{rate['well_specified']:.3f}"
            )
        said = "; ".join(f"{key}: {', '.join(found)}" for key, found in verdicts.items() if found)
        conclusions.append(f"{name}: {said}")
        lines += _theorem(constants[constants["real"] == name])
    closed = frames["closed_form"]
    certified = closed[closed["certified"]]
    held = int((certified["norm"] <= certified["bound"] + 1e-9).sum())
    beyond = closed[~closed["certified"]]
    lines.append(
        f"closed-form cases: the bound holds in {held} of {len(certified)} certified settings; of {len(beyond)} that "
        f"the theorem does not certify {int((beyond['measured'] < 1).sum())} contract: the condition is "
        "sufficient, not necessary, and local"
    )
    for divisor, part in frames["collapse"].groupby("divisor", sort=False):
        end = part.iloc[-1]
        z = ((part["mean"] - part["closed_form"]) / part["se"]).abs().max()
        lines.append(
            f"Gaussian collapse, n = {end['n']}, variance divided by {divisor}: E sqrt(Sigma_t) at "
            f"t = {end['generation']} is {end['mean']:.4f} +- {end['se']:.4f}, closed form "
            f"{end['closed_form']:.4f}; at most {z:.1f} standard errors apart at any t"
        )
    lines.append(f"conclusion, by distance after {settings['generations']} rounds: " + " | ".join(conclusions))
    return "\n".join(lines)


def _theorem(constants: pd.DataFrame) -> list[str]:
    """What the condition says for one data set's networks, reading by reading."""
    if constants.empty:
        return ["  the theorem: every network diverged, nothing was estimated"]
    one = constants.iloc[0]
    lines = [
        f"  Hessian of the denoising loss: eigenvalues from {constants['smallest'].min():.2g} to "
        f"{constants['largest'].max():.3g}, {100 * constants['flat'].mean():.0f} % of them below 1e-4 of the largest; "
        f"gradient {constants['gradient'].mean():.2g}; eps = W1 {one['w1']:.3f} - floor {one['w1_floor']:.3f} = "
        f"{one['epsilon']:.3f} +- {one['epsilon_se']:.3f}"
    ]
    for reading, part in constants.groupby("reading", sort=False):
        if reading == "smallest":
            alpha, lipschitz = part["alpha"].min(), part["lipschitz"].max()
            if alpha <= 0:
                says = "alpha is not positive: the theorem's assumption fails and it certifies no lambda"
            else:
                says = f"no lambda above {part['threshold'].min():.2g} is certified"
            error = part["held_out_se"].max()
            lines.append(
                f"  along the smallest eigenvalue, on fresh points: alpha <= {alpha:.2g} +- {error:.1g}, "
                f"L >= {lipschitz:.2g}: {says}"
            )
            continue
        for ratio, here in part.groupby("ratio"):
            worst = here["condition"].max()
            says = "holds" if worst < 0.5 else "fails"
            if math.isinf(float(str(ratio))):
                says = "never holds without real data"
            bound = f", rho = {here['bound'].max():.3f}" if worst < 0.5 else ""
            lines.append(
                f"  along the displacement of {_label(float(str(ratio)))}: alpha = {here['alpha'].mean():.2g}, "
                f"L >= {here['lipschitz'].mean():.2g}: lambda (1 + L eps / alpha) = {worst:.3g}, {says}{bound}"
            )
    open_still = [f"{r:g}" for r, here in constants.groupby("ratio") if here["holds"].all()]
    left = "rules out every ratio"
    if open_still:
        left = f"rules out all but lambda = {', '.join(open_still)}, and proves none"
    lines.append(
        "  both readings are bounds in the theorem's favour (alpha from above, L and eps from below), so that a "
        f"failure means no certificate and success is none: here that {left}"
    )
    return lines
