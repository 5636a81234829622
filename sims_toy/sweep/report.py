"""What a sweep says: its tables completed with theory, its figures, its summary and conclusion in words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sims_core.algorithm import METHODS
from sims_core.errors import shown
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy import theory, wasserstein
from sims_toy.datasets import Distribution, header_of
from sims_toy.diagnosis import diagnose, diagnose_network, network_angle
from sims_toy.gaussian import Gaussian
from sims_toy.grid.measure import POINTS, spread
from sims_toy.networks.learner import NetworkLearner
from sims_toy.networks.settings import unusual
from sims_toy.sweep import figures
from sims_toy.sweep.phase_figures import phase_diagram
from sims_toy.sweep.strengths import comparison, strengths
from sims_toy.sweep.tables import FACET, Twins, beneath, tables, theory_tables, trial_table

if TYPE_CHECKING:
    from sims_toy.grid.cells import Experiment

#: Methods with a strength.
GUIDED = [name for name, method in METHODS.items() if "omega" in method.takes]
#: Controls of no more evaluations: standard training with another sampler.
RESAMPLED = [name for name, method in METHODS.items() if method.resampled]
#: More combinations of the other axes than this are left to the tables.
MOST_FACETS = 8
_PHASES = (
    "Black lines: linear response, root mean square. White: levels of d_T / d_1(0), which decides 'strong'; "
    "'prevention' also compares d_T(omega) with d_1(omega), which too strong a guidance itself raises. Lines end where "
    "the law has no such regime."
)
BANDS = "Bands: 95 % bootstrap intervals."


def make(
    parts: dict[str, Experiment], w2: dict[str, np.ndarray], exact: Experiment | None, settings: dict[str, Any]
) -> dict[str, pd.DataFrame]:
    """All tables of a sweep from the distances (cells, trials, generations) of its parts, in their order.

    exact: the part whose cells are exact, if any.
    """
    pairs, trials = [], []
    for name, part in parts.items():
        alone = trial_table(part, w2[name])
        trials.append(alone if name != "beside" else alone[alone["auxiliary_data"] != "none"])
        if name == "twin":
            continue
        twins = _twins(part, parts, w2) if "twin" in parts and name != "overlay" else None
        pair = tables(part, w2[name], twins)
        if name == "beside":  # its standard cells stand in the table already
            pair = tuple(frame[frame["auxiliary_data"] != "none"] for frame in pair)
        pairs.append(pair)
    sweep, regimes = (pd.concat(frames, ignore_index=True) for frames in zip(*pairs, strict=True))
    curves, edges = theory_tables(exact, settings)
    each = pd.concat(trials, ignore_index=True)
    return {"sweep": sweep, "regimes": regimes, "theory": curves, "boundaries": edges, "trials": each}


def _twins(part: Experiment, parts: dict[str, Experiment], w2: dict[str, np.ndarray]) -> Twins:
    """What the exact learner gives for the cells of ``part``: on the same points, and in many trials of its own."""
    rows = [
        [parts[name].cells.index(beneath(cell, learner)) for cell in part.cells]
        for name, learner in (("twin", "twin"), ("overlay", "exact"))
    ]
    return Twins(w2["twin"][rows[0]][:, : part.trials], w2["overlay"][rows[1]])


def draw(frames: dict[str, pd.DataFrame], settings: dict[str, Any], folder: Path) -> list[Path]:
    """The figures of the first `MOST_FACETS` facets: figure4 and phase_diagram, numbered from the second on."""
    regimes = frames["regimes"].assign(aux=_aux(frames["regimes"], settings))
    sweep = frames["sweep"].assign(aux=_aux(frames["sweep"], settings))
    own, exact = regimes["learner"] == settings["learner"], regimes["learner"] == "exact"
    # beneath the networks lies the exact learner, whose budget is written as an eta
    shared = FACET if settings["learner"] == "exact" else [c for c in FACET if c != "budget"]
    guided = regimes["method"].isin(GUIDED)
    paths: list[Path] = []
    if not guided.any():
        facet = {"method": "standard", "loop": "/".join(settings["loop"]), "sampler": settings["sampler"][0],
                 "real_size": settings["real_size"][0], "budget": "none", "aux": 0}  # fmt: skip
        text = caption(facet, settings, shown=BANDS)
        return figures.loops(frames["sweep"], folder / "loops", caption=text)
    if settings["generations"] == 1:
        first = regimes[own & guided].iloc[0]
        text = caption({**first.to_dict(), "budget": ", ".join(settings["budget"])}, settings, shown=BANDS)
        return strengths(regimes[own & guided], regimes[own & (regimes["method"] == "standard")], folder / "strengths",
                         caption=text)  # fmt: skip
    for number, (_, facet) in enumerate(regimes[own & guided][FACET].drop_duplicates().head(MOST_FACETS).iterrows()):
        suffix = f"-{number + 1}" if number else ""
        control = (
            own
            & ~guided
            & (regimes["loop"] == facet["loop"])
            & (regimes["real_size"] == facet["real_size"])
            & (regimes["reference"] == facet["sampler"])
            & _matches(regimes, facet, ["temperature", "pollution"])
        )
        reading = settings["auxiliary_data"][0] if "auxiliary_data" in METHODS[facet["method"]].takes else "none"
        mine = own & _matches(regimes, facet, FACET)
        curves, edges = (frames[n][_matches(frames[n], facet, shared)] for n in ("theory", "boundaries"))
        paths += figures.figure4(
            sweep[(sweep["learner"] == settings["learner"]) & _matches(sweep, facet, FACET)],
            regimes[mine | control],
            curves,
            folder / f"figure4{suffix}",
            reading=reading,
            caption=caption(facet.to_dict(), settings, shown=_marks(settings, facet["method"])),
            beneath=regimes[exact & guided & _matches(regimes, facet, shared)] if (~own).any() else None,
        )
        text = caption(facet.to_dict(), settings, shown=_PHASES)
        paths += phase_diagram(
            regimes[mine | control], edges, folder / f"phase_diagram{suffix}", reading=reading, caption=text
        )
    if len(settings["method"]) > 2:  # beyond standard training and one remedy
        paths += _compare(regimes[own], settings, folder)
    return paths


def _compare(regimes: pd.DataFrame, settings: dict[str, Any], folder: Path) -> list[Path]:
    """The methods side by side in the same loop: the first value of every other axis, all |D_s|."""
    axes = ["loop", "reference", "real_size", "temperature", "pollution"]
    part = regimes[_matches(regimes, regimes.iloc[0], axes)]
    keep = part["auxiliary_data"].isin(["none", settings["auxiliary_data"][0]])
    first = part["budget"].isin(["0", settings["budget"][0]]) & part["aux"].isin([0, part["aux"].max()])
    facet = {"method": " against ".join(settings["method"]), "loop": part["loop"].iloc[0], "budget":
             settings["budget"][0], "sampler": part["reference"].iloc[0], "real_size": part["real_size"].iloc[0],
             "aux": int(part["aux"].max())}  # fmt: skip
    shown = f"{BANDS} Marks: each method's best strength, and below what it reaches there with its interval."
    return comparison(part[keep & first], folder / "comparison", caption=caption(facet, settings, shown=shown))


def _matches(frame: pd.DataFrame, facet: pd.Series, columns: list[str]) -> pd.Series:
    return (frame[columns] == facet[columns]).all(axis=1)


def _aux(frame: pd.DataFrame, settings: dict[str, Any]) -> pd.Series:
    return frame["auxiliary_size"] * (0 if settings["auxiliary_size"] == "same" else 1)


def _marks(settings: dict[str, Any], method: str) -> str:
    """What the lines of figure4 are, for its caption."""
    below = "Thin dashes: linear response, root mean square."
    if settings["learner"] == "network":
        below = "Thin lines: the exact learner (eta = 1)."
        if settings["overlay_trials"]:
            below += " Its runs on the networks' own data and noise serve as control variates of their means."
    control = ""
    if method == "sims":
        control = "Dotted across: standard training with twice the sampler's steps (equal cost)"
        control += f" or with {', '.join(settings['retuned'])} (retuned). " if settings.get("retuned") else ". "
    over = (
        "Over generations: omega = 0, about half the best, the best at convergence and the largest, in their regimes' "
        "colours; dots: d_1(omega)."
    )
    return f"{BANDS} {below} {control}{over}"


def caption(facet: dict[str, Any], settings: dict[str, Any], *, shown: str = "") -> str:
    """The settings of a facet, and which of them are our reading. shown: what a figure's lines and marks are."""
    aux = "|D_aux| = |D_s|" if not facet["aux"] else f"|D_aux| = {facet['aux']}"
    real = settings["real"]
    if real == "gaussian":
        cov = "; ".join(", ".join(f"{v:g}" for v in row) for row in settings["real_covariance"])
        real = f"N(mean [{', '.join(f'{v:g}' for v in settings['real_mean'])}], covariance [{cov}])"
    extras = "".join(
        f"{name} {facet[key]:g}, "
        for key, name, usual in (("temperature", "sampling bias", 1), ("pollution", "|D_p| =", 0))
        if facet.get(key, usual) != usual
    )
    distance = ""
    if settings["distance"] != "w2":
        name = {"emd": "exact", "sliced": "sliced"}[settings["distance"]]
        distance = f"Distance: {name} W2 between 1,000 generated and 1,000 real points. "
    budget, networks = f"eta = {facet['budget']}", ""
    if settings["learner"] == "network":
        budget = f"auxiliary budget {facet['budget']} samples"
        networks = f" Networks: {_networks(settings['network'])}."
    beside = f" ({settings['beside_trials']} of the readings beside)" if settings.get("beside_trials") else ""
    last = reading = ""
    if settings["generations"] > 1:
        last = "; d_T is the mean of the last ten"
        reading = (
            "Regimes, |D_r|, the real Gaussian, the sampler, what the auxiliary is trained on and how long are our "
            "reading; the paper does not state them."
        )
    text = (
        f"{settings['learner']} learner, {facet['method']}, {facet['loop']} loop: real data {real}, "
        f"|D_r| = {facet['real_size']}, {extras}sampler {facet['sampler']}, {budget}, {aux}, "
        f"{settings['trials']} paired trials{beside}, {_count(settings['generations'], 'generation')}, "
        f"seed {settings['seed']}{last}. {distance}{shown} {reading}{networks}"
    )
    return " ".join(text.split())


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _networks(n: dict[str, Any]) -> str:
    """How the networks are built and trained: the main settings, and every other one that is not the usual one."""
    told = ("layers", "width", "activation", "parametrisation", "target", "steps", "batch", "start", "rate",
            "auxiliary_rate")  # fmt: skip
    return (
        f"{n['layers']} x {n['width']} {n['activation']}, {n['parametrisation']}, {n['target']} target, {n['steps']} "
        f"Adam steps of {n['batch'] or 'all'} rows from {n['start']}, rate {n['rate']:g}, "
        f"auxiliary {n['auxiliary_rate']:g}{unusual(n, told)}"
    )


def summary(frames: dict[str, pd.DataFrame]) -> str:
    """The printed table: one line a setting at its best omega, with standard training and its controls.

    The last column but one: the cell less the best control, d_T / d_1(0), with its paired interval. Columns for axes on
    which the sweep has more than one value; standard training's own lines where nothing is guided.
    """
    regimes = _main(frames)
    guided = regimes[regimes["method"].isin(GUIDED)]
    rows = guided if len(guided) else regimes[regimes["method"] == "standard"]
    same_size = (rows["auxiliary_size"] == rows["synthetic_size"]).all()
    hidden = {"synthetic_size", "auxiliary_size"} if same_size else {"synthetic_size"}
    axes = [a for a in _AXES if rows[a].nunique() > 1 and a not in hidden]
    head = "".join(f"{a:>16} " for a in axes)
    lines = [
        f"{'|D_s|':>7} {head}{'standard':>9} {'equal cost':>10} {'retuned':>8} {'best ω':>7} {'d_1(ω)':>8} "
        f"{'d_T/d_1(ω)':>11} {'d_T/d_1(0)':>11} {'95 % interval':>15} {'less the best control':>24}  regime"
    ]
    for _, part in rows.groupby(_AXES, sort=False):
        best = part.loc[part["standard"].idxmin()]
        standard, controls = _companions(regimes, best.to_dict())
        equal, retuned = (f"{controls[n]:.2f}" if n in controls else "" for n in ("equal-cost", "retuned"))
        regime = best["regime"] if best["regime"] != "undecided" else f"undecided ({best['candidates']})"
        settings = "".join(f"{best[a]!s:>16} " for a in axes)
        lines.append(
            f"{best['synthetic_size']:>7} {settings}{standard:>9.2f} {equal:>10} {retuned:>8} {best['omega']:>7g} "
            f"{best['first']:>8.4f} {best['own']:>11.2f} {best['standard']:>11.2f} "
            f"{f'{best.standard_low:.2f} .. {best.standard_high:.2f}':>15} {_less(best, controls):>24}  {regime}"
        )
    return "\n".join(lines)


_AXES = [
    "method", "auxiliary_data", "loop", "sampler", "real_size", "auxiliary_size", "budget", "temperature", "pollution",
    "synthetic_size",
]  # fmt: skip


def _main(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The regimes of the learner that was asked for, without the one drawn beneath it."""
    regimes = frames["regimes"]
    return regimes[regimes["learner"] == regimes["learner"].iloc[0]]


def _less(best: pd.Series, controls: dict[str, float]) -> str:
    """A cell less the best of its controls, d_T / d_1(0), with its paired interval."""
    stem = f"minus_{min(controls, key=lambda name: controls[name]).replace('-', '_')}" if controls else ""
    if not np.isfinite(best.get(stem, np.nan)):
        return ""
    return f"{best[stem]:+.2f} ({best[f'{stem}_low']:+.2f} .. {best[f'{stem}_high']:+.2f})"


def _companions(regimes: pd.DataFrame, key: dict[str, Any]) -> tuple[float, dict[str, float]]:
    """d_T / d_1(0) of standard training at a cell's sizes, and of each of its controls (the best of their samplers)."""
    same = (
        (regimes["loop"] == key["loop"])
        & (regimes["real_size"] == key["real_size"])
        & (regimes["synthetic_size"] == key["synthetic_size"])
        & (regimes["reference"] == key["sampler"])
        & (regimes["temperature"] == key["temperature"])
        & (regimes["pollution"] == key["pollution"])
    )
    standard = regimes[same & (regimes["method"] == "standard")]
    controls = regimes[same & regimes["method"].isin(RESAMPLED)].groupby("method")["standard"].min()
    return float(standard["standard"].iloc[0]), controls.to_dict()


def conclusion(frames: dict[str, pd.DataFrame]) -> str:
    """One sentence: what standard training does at the largest |D_s|, and what the best omega does."""
    regimes = _main(frames)
    guided = regimes[regimes["method"].isin(GUIDED)]
    if guided.empty:
        rows = regimes[regimes["method"] == "standard"]
        worst = rows.loc[rows["own"].idxmax()]
        return f"|D_s| = {worst['synthetic_size']}: standard training ends at {worst['own']:.2f}x of generation 1."
    axes = [a for a in _AXES if a not in ("synthetic_size", "auxiliary_size")]
    part = guided[(guided[axes] == guided.iloc[0][axes]).all(axis=1)]
    part = part[part["synthetic_size"] == part["synthetic_size"].max()]
    best = part.loc[part["standard"].idxmin()]
    standard, controls = _companions(regimes, best.to_dict())
    if best["regime"] == "undecided" and "one generation" in best["candidates"]:
        ratio, low, high = best["standard"], best["standard_low"], best["standard_high"]
        return (
            f"One generation: ω = {best['omega']:g} has {ratio:.2f}x ({low:.2f} .. {high:.2f}) standard training's W2."
        )
    verb = "drifts to" if standard > theory.TOLERANCE else "stays at"
    ahead = [f"{name} holds it at {value:.2f}x" for name, value in controls.items() if value < best["standard"]]
    rival = f"; no more evaluations without SIMS: {', '.join(ahead)}" if ahead else ""
    label = {"strong": "strong mitigation", "weak": "weak mitigation"}.get(best["regime"], best["regime"])
    if best["regime"] == "undecided":
        label = f"undecided between {best['candidates'].replace(' or ', ' and ')}; more trials decide"
    effect = f"ω = {best['omega']:g} holds it at {best['standard']:.2f}x" if best["omega"] else "no ω > 0 does better"
    course = f"{verb} {standard:.2f}x of generation 1" if math.isfinite(standard) else "diverges"
    start = f"|D_s| = {best['synthetic_size']}: standard training {course}"
    return f"{start}; {effect}: {label}{rival}."


def words(frames: dict[str, pd.DataFrame], settings: dict[str, Any]) -> str:
    """The summary and the conclusion."""
    return f"{summary(frames)}\n{conclusion(frames)}"


def floor(experiment: Experiment) -> str:
    """What two real samples of the empirical distance's size are apart, which no model can be expected to beat."""
    real, name = experiment.source(experiment.cells[0]), experiment.quantities[0]
    seed, points = Seed(experiment.seed).child("floor"), POINTS
    distance = {"emd": wasserstein.exact, "sliced": wasserstein.sliced}[name]
    if isinstance(real, Distribution) and real.limit is not None:  # two draws from a file would share points
        draws = wasserstein.floors(real, POINTS, distance, seed)
        value, (low, high) = float(np.mean(draws)), np.quantile(draws, [0.025, 0.975])
        points = min(POINTS, real.limit // 2)
    else:
        found = wasserstein.measure(
            wasserstein.draw_real(real, POINTS, seed.child("one")),
            lambda n, stream: wasserstein.draw_real(real, n, stream),
            seed=seed,
            distance=distance,
        )
        value, low, high = found.floor, found.floor_low, found.floor_high
    interval = f"{value:.4g} ({low:.4g} .. {high:.4g})"
    first = header_of(experiment.cells[0].real)
    header = f"\nthe first line of {experiment.cells[0].real}, {shown(first)!r}, is taken as a header" if first else ""
    return f"floor of the {name} distance, {points} real points against {points} others: {interval}{header}"


def diagnosis(experiment: Experiment) -> str:
    """Whether SIMS can help, said before any guidance is looked at: the error budget and the drift-error cosine.

    Of points rather than moments: the distance's floor and the cosine.
    """
    cell = experiment.cells[0]
    real = experiment.source(cell)
    sampler, seed = Sampler.parse(cell.sampler, sigma_data=spread(real)), Seed(experiment.seed)
    if experiment.quantities != ("w2",):
        learner = NetworkLearner(sampler, np.arange(min(16, experiment.trials)), experiment.network)
        data = learner.draw(real, cell.real_size, seed=seed.child("real"))
        base = learner.fit(data, seed=seed.child("fit"))
        return f"{floor(experiment)}; {network_angle(learner, base, real, cell.real_size, seed=seed)}"
    assert isinstance(real, Gaussian)
    far = off_center(real)
    if experiment.network is not None:
        trials = min(32, experiment.trials)  # no more networks than the run itself trains for a cell
        found = diagnose_network(sampler, real, cell.real_size, experiment.network, trials=trials, seed=seed)
        return str(found) + far
    return str(diagnose(sampler, real, cell.real_size, seed=seed)) + far


def off_center(real: Gaussian) -> str:
    """A line where samplers, which start around 0 at a noise level of 80, are far from the data's place and size."""
    mean, scale = float(real.mean[0].norm()), spread(real)
    if mean <= 10 * scale and 0.02 <= scale <= 20:
        return ""
    place = f"the real Gaussian lies {mean:.3g} from 0 and has a spread of {scale:.3g}"
    return f"\n{place}: samplers start around 0 at noise level 80, and much of what is measured is their drift"
