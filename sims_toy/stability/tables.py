"""What the stability study says: its tables, and its words. Its figures are in `sims_toy.stability.figures`."""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sims_core.lab.report import Section
from sims_core.seeds import Seed
from sims_toy import phase, wasserstein
from sims_toy.datasets import Distribution, parse_real
from sims_toy.flows.settings import FlowSettings
from sims_toy.grid.measure import POINTS
from sims_toy.networks.settings import NetworkSettings
from sims_toy.stability import figures, theory
from sims_toy.stability.models import curvature, flow_probe, held_out, network_probe, w1_excess
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


def part_of(kind: str, learner: str) -> str:
    """The name of a learner's part: the networks' bear none."""
    return kind if learner == "network" else f"{learner}-{kind}"  # no name begins another: shards are found by it


def learners_of(settings: dict[str, Any]) -> list[str]:
    """The learners of a run."""
    return list(settings.get("learner", ["network"]))


def told(frames: Frames) -> Frames:
    """Tables with their learner, which those of networks alone that were made before there were others do not name."""
    return {k: f if "learner" in f or k in _OWN else f.assign(learner="network") for k, f in frames.items()}


#: Tables that are no learner's.
_OWN = ("closed_form", "collapse")


def make(parts: dict[str, Experiment], values: dict[str, Values], settings: dict[str, Any]) -> Frames:
    """All tables of the study from its parts' values."""
    each: dict[str, list[pd.DataFrame]] = {}
    for learner in learners_of(settings):
        loops, found = parts[part_of("loops", learner)], values[part_of("loops", learner)]
        frames = {
            "stability": _distances(loops, found, settings),
            "rates": _rates(loops, found, values[part_of("kicked", learner)], settings),
            "constants": _constants(learner, loops, found, settings),
            "samples": _samples(loops, found),
        }
        for name, frame in frames.items():
            frame.insert(0, "learner", learner)
            each.setdefault(name, []).append(frame)
    made = {name: pd.concat(frames, ignore_index=True) for name, frames in each.items()}
    return {
        **{name: made[name] for name in ("stability", "rates", "constants")},
        "closed_form": pd.DataFrame(_closed_form()),
        "collapse": _collapse(parts, values),
        "samples": made["samples"],
    }


def _distances(loops: Experiment, found: Values, settings: dict[str, Any]) -> pd.DataFrame:
    """One row per cell and generation: distance, its ratio to the first round and to lambda = 0, its floor.

    ``parameters``: ||theta_t - theta*|| over ||theta*||, with theta* the same trial's last model of lambda = 0.
    """
    distance, parameters = found[settings["distance"]], found["weights"]
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
        best = parameters[zero[cell.real]][:, -1:]
        away = np.linalg.norm(parameters[i] - best, axis=2) / np.linalg.norm(best, axis=2)
        facts |= _growth(distance[i], distance[zero[cell.real]], last, weights)
        for t in range(loops.generations):
            mean, low, high = phase.mean_row("", distance[i][:, t], weights).values()
            floor, floor_low, floor_high = floors[cell.real]
            far = phase.mean_row("parameters", np.where(np.isfinite(away[:, t]), away[:, t], np.inf), weights)
            rows.append(
                {
                    "real": cell.real, "ratio": ratio_of(cell), "synthetic_size": cell.synthetic_size,
                    "generation": t + 1, "trials": loops.trials, "distance": mean, "low": low, "high": high,
                    "se": float(distance[i][:, t].std(ddof=1) / math.sqrt(loops.trials)),
                    "floor": floor, "floor_low": floor_low, "floor_high": floor_high, **facts, **far,
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
    """One row per cell: how much of a displacement of the scale is left after one round, and after the next.

    The kicked loop's first model is a model of kick x data; its samples and those of the loop alongside it share their
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


def _constants(learner: str, loops: Experiment, found: Values, settings: dict[str, Any]) -> pd.DataFrame:
    """alpha, L, eps and the condition for each data set, model and ratio.

    The model at hand is the last round's of lambda = 0, the nearest there is to theta*. The direction of a ratio is
    where its loop's last model lies from there. ``reading`` 'smallest': alpha is along the smallest eigenvalue's
    direction, L the largest of all directions tried; 'displacement': both along the ratio's own direction; 'exact': of
    Gaussians, in closed form. eps is W1; ``w2`` stands alongside, and a flow's held-out likelihood (`held_out`).
    """
    points = next(name for name in loops.quantities if name.startswith("points"))
    rows: list[dict[str, Any]] = []
    for name in settings["real"]:
        real, here = parse_real(name), [i for i, c in enumerate(loops.cells) if c.real == name]
        zero = next(i for i in here if ratio_of(loops.cells[i]) == 0)
        others = [i for i in here if i != zero]
        sound = [
            k for k in range(loops.trials) if np.isfinite(found["weights"][here, k, -1]).all()
        ]  # a model that diverged has no curvature
        last, other = found[points][zero, sound, -1], Seed(loops.seed).child("w2")
        pairs = zip(last, sound, strict=True)
        distances = [w1_excess(x, real, seed=Seed(loops.seed).child("eps", k)) for x, k in pairs]
        excess = np.array([value - floor for value, floor in distances])
        epsilon = max(0.0, float(excess.mean())) if len(excess) else math.nan
        shared = {
            "epsilon": epsilon,
            "epsilon_se": float(excess.std(ddof=1) / math.sqrt(len(excess))) if len(excess) > 1 else 0.0,
            "w1": float(np.mean([d[0] for d in distances])),
            "w1_floor": float(np.mean([d[1] for d in distances])),
            "w2": float(np.mean([wasserstein.exact(x, real.draw(len(x), other.child(i))) for i, x in enumerate(last)])),
        }
        for k in sound[: settings["probes"]]:
            theta, moved = found["weights"][zero, k, -1], found["weights"][others, k, -1]
            likelihood = {}
            if learner == "flow":
                seed = Seed(loops.seed).child("held-out")
                likelihood = held_out(theta, settings_of(learner, settings), real.standard, seed=seed)
            readings, spectrum = _readings(learner, theta, moved, real, settings, Seed(loops.seed).child("probe", k))
            for j, i in enumerate(others):
                for reading, found_there in readings.items():
                    alpha, lipschitz = found_there[j]
                    known, ratio = theory.Constants(alpha, lipschitz, epsilon), ratio_of(loops.cells[i])
                    rows.append(
                        {
                            "real": name, "trial": k, "ratio": ratio, "reading": reading, "alpha": alpha,
                            "lipschitz": lipschitz, **shared,
                            "condition": known.condition(ratio), "threshold": known.threshold,
                            "holds": known.certified(ratio), "bound": known.rate(ratio), **spectrum, **likelihood,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows)


def settings_of(learner: str, settings: dict[str, Any]) -> Any:
    """A learner's settings as a run recorded them."""
    if learner == "flow":
        return FlowSettings(**settings["models"][learner])
    return NetworkSettings(**(settings["network"] if learner == "network" else settings["models"][learner]))


def _readings(
    learner: str, theta: Array, moved: Array, real: Distribution, settings: dict[str, Any], seed: Seed
) -> tuple[dict[str, list[tuple[float, float]]], dict[str, float]]:
    """(alpha, L) of a model by reading, one a loop whose last parameters are ``moved`` (K, P); and its spectrum.

    Of Gaussians by mean and precision (Lambda, S its inverse) everything is known: the Hessian's blocks are Lambda and
    S x S / 2, whatever the data, and L = 1 (`sims_toy.stability.theory.GaussianCase`).
    """
    if learner == "exact":
        dim = round((math.sqrt(1 + 4 * len(theta)) - 1) / 2)
        variances = np.linalg.eigvalsh(theta[dim:].reshape(dim, dim))
        alpha, top = min(1 / variances[-1], variances[0] ** 2 / 2), max(1 / variances[0], variances[-1] ** 2 / 2)
        spectrum = {"smallest": alpha, "largest": top, "flat": 0.0, "gradient": 0.0, "held_out_se": 0.0}
        return {"exact": [(alpha, 1.0)] * len(moved)}, spectrum
    own = settings_of(learner, settings)
    probe = flow_probe(theta, own, real.dim) if learner == "flow" else network_probe(theta, own)
    size = len(probe.params)
    measured = curvature(
        probe.params, moved[:, :size] - probe.params, real.standard, probe.loss,
        points=min(settings["probe_points"], real.limit or settings["probe_points"]), seed=seed,
    )  # fmt: skip
    spectrum = {name: getattr(measured, name) for name in ("smallest", "largest", "flat", "gradient", "held_out_se")}
    smallest = (measured.held_out, float(measured.lipschitz.max()))
    along = [(float(a), float(b)) for a, b in zip(measured.alpha, measured.lipschitz, strict=True)]
    return {"smallest": [smallest] * len(moved), "displacement": along[: len(moved)]}, spectrum


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
    """E sqrt(Sigma_t) by Monte-Carlo alongside c_4(n)^t, for both estimators of the variance."""
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
    """`stability`, `stability_theorem`, `stability_samples_<data>` of the first learner, others by name;
    `stability_learners` of all."""
    frames, learners, paths = told(frames), learners_of(settings), []
    if learners != ["network"]:
        paths += figures.learners(frames["stability"], folder / "stability_learners", settings=settings)
    for learner in learners:
        mine = {k: f if k in _OWN else f[f["learner"] == learner] for k, f in frames.items()}
        tail = "" if learner == learners[0] else f"_{learner}"
        paths += figures.distances(mine["stability"], folder / f"stability{tail}", learner, settings=settings)
        paths += figures.theorem(mine, folder / f"stability_theorem{tail}", learner, settings=settings)
        for number, name in enumerate(settings["real"]):
            kind = "".join(c if c.isalnum() else "-" for c in name.partition(":")[0].rsplit("/", 1)[-1])
            taken = [other.partition(":")[0] for other in settings["real"][:number]]
            stem = f"stability_samples_{kind}" + (f"_{number + 1}" if name.partition(":")[0] in taken else "")
            picture = folder / f"{stem}{tail}"
            paths += figures.small_multiples(mine["samples"], name, picture, learner, settings=settings)
    return paths


def clouds(frames: Frames, settings: dict[str, Any]) -> Section:
    """Trial 0's samples round by round, for the page."""
    samples, shown, labels = told(frames)["samples"], defaultdict[str, dict[str, bytes]](dict), ""
    for learner in learners_of(settings):
        for real in settings["real"]:
            ratios, pictures = figures.clouds(samples[samples["learner"] == learner], real)
            labels = ", ".join(_label(ratio).replace("lambda", "λ") for ratio in ratios)
            for t, picture in pictures.items():
                shown[f"round {t}"][f"{learner}, {real}"] = picture
    return Section("What the models draw", [f"Samples of the first trial; from left to right {labels}."], frames=shown)


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
    frames, lines, conclusions = told(frames), [], []
    learners = learners_of(settings)
    for learner in learners:
        mine = {k: f if k in _OWN else f[f["learner"] == learner] for k, f in frames.items()}
        for name in settings["real"]:
            title = name if learners == ["network"] else f"{learner}, {name}"
            found, says = _of_one(mine, name, title, settings)
            lines += found
            conclusions.append(says)
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
    lines.append(f"\nBy distance after {settings['generations']} rounds: " + " | ".join(conclusions))
    return "\n".join(lines)


def _of_one(frames: Frames, name: str, title: str, settings: dict[str, Any]) -> tuple[list[str], str]:
    """What one learner did on one data set, and its conclusion."""
    rounds, rates, constants = frames["stability"], frames["rates"], frames["constants"]
    mine = rounds[(rounds["real"] == name) & (rounds["generation"] == settings["generations"])]
    lines = [
        f"{title}: d_T / d_T(lambda = 0), the {settings['distance']} W2 of the last rounds [95 %] (x what it was "
        "before them); rate, what one round leaves of a displacement [95 %], and lambda / (1 + lambda)"
    ]
    verdicts: dict[str, list[str]] = {"stays": [], "farther": [], "drifts": [], "undecided": []}
    for _, row in mine.sort_values("ratio").iterrows():
        rate = rates[(rates["real"] == name) & (rates["ratio"] == row["ratio"])].iloc[0]
        says = _verdict_of(row, settings["trials"]) if row["ratio"] else "the reference"
        if row["ratio"]:
            verdicts[says].append("fully synthetic" if math.isinf(row["ratio"]) else f"{row['ratio']:g}")
        away = f"; parameters {row['parameters']:.3g} of theta* away" if "parameters" in row else ""
        lines.append(
            f"  {_label(row['ratio']):>16}: {row['to_zero']:.2f} "
            f"[{row['to_zero_low']:.2f}, {row['to_zero_high']:.2f}] {says} "
            f"(x {row['growth']:.2f} [{row['growth_low']:.2f}, {row['growth_high']:.2f}]); "
            f"rate {rate['rate']:.3f} [{rate['rate_low']:.3f}, {rate['rate_high']:.3f}], "
            f"{rate['well_specified']:.3f}{away}"
        )
    said = "; ".join(f"{key}: {', '.join(found)}" for key, found in verdicts.items() if found)
    here = constants[constants["real"] == name] if "real" in constants else constants
    return lines + _theorem(here), f"{title}: {said}"


def _theorem(constants: pd.DataFrame) -> list[str]:
    """What the condition says for one data set's networks, reading by reading."""
    if constants.empty:
        return ["  the theorem: every model diverged, nothing was estimated"]
    one = constants.iloc[0]
    flow = one.get("learner") == "flow"
    loss = "-log p" if flow or one["reading"] == "exact" else "the denoising loss"
    lines = [
        f"  Hessian of {loss}: eigenvalues from {constants['smallest'].min():.2g} to "
        f"{constants['largest'].max():.3g}, {100 * constants['flat'].mean():.0f} % of them below 1e-4 of the largest; "
        f"gradient {constants['gradient'].mean():.2g}; eps = W1 {one['w1']:.3f} - floor {one['w1_floor']:.3f} = "
        f"{one['epsilon']:.3f} +- {one['epsilon_se']:.3f}"
    ]
    if flow:
        entropy = "" if math.isnan(one["kl"]) else f", {one['kl']:.3f} above the data's own entropy"
        lines.append(
            f"  held-out -log p {one['nll']:.3f} +- {one['nll_se']:.3f} nats{entropy}; W2 of as many points "
            f"{one['w2']:.3f}"
        )
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
            way = "in closed form, at" if reading == "exact" else "along the displacement of"
            if math.isinf(float(str(ratio))):
                says = "never holds without real data"
            bound = f", rho = {here['bound'].max():.3f}" if worst < 0.5 else ""
            lines.append(
                f"  {way} {_label(float(str(ratio)))}: alpha = {here['alpha'].mean():.2g}, "
                f"L {'=' if reading == 'exact' else '>='} {here['lipschitz'].mean():.2g}: "
                f"lambda (1 + L eps / alpha) = {worst:.3g}, {says}{bound}"
            )
    open_still = [f"{r:g}" for r, here in constants.groupby("ratio") if here["holds"].all()]
    if (constants["reading"] == "exact").all():
        lines.append("  alpha and L are exact here, eps is W1 less its floor")
        return lines
    left = "rules out every ratio"
    if open_still:
        left = f"rules out all but lambda = {', '.join(open_still)}, and proves none"
    lines.append(
        "  both readings are bounds in the theorem's favour (alpha from above, L and eps from below), so that a "
        f"failure means no certificate and success is none: here that {left}"
    )
    return lines
