"""What a sweep says: its tables completed with theory, its figures, its summary and conclusion in words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sims_core.algorithm import METHODS
from sims_core.errors import shown
from sims_core.seeds import Seed
from sims_toy import theory, wasserstein
from sims_toy.datasets import Distribution, header_of
from sims_toy.diagnosis import diagnose, diagnose_network, network_angle
from sims_toy.estimators import KINDS, Estimator
from sims_toy.gaussian import Gaussian
from sims_toy.grid.measure import LEARNERS, POINTS, spread
from sims_toy.networks.settings import NetworkSettings
from sims_toy.sweep import figures
from sims_toy.sweep.captions import BANDS, PHASES, caption, marks
from sims_toy.sweep.laws import bias_boundaries, biases, theory_tables
from sims_toy.sweep.phase_figures import phase_diagram
from sims_toy.sweep.strengths import comparison, strengths
from sims_toy.sweep.tables import FACET, Twins, beneath, completed, shortened, tables, trial_table

if TYPE_CHECKING:
    from sims_toy.grid.cells import Experiment, Values

#: Methods with a strength.
GUIDED = [name for name, method in METHODS.items() if "omega" in method.takes]
#: Controls of no more evaluations: standard training with another sampler.
RESAMPLED = [name for name, method in METHODS.items() if method.resampled]
#: More combinations of the other axes than this are left to the tables.
MOST_FACETS = 8


def make(
    parts: dict[str, Experiment], w2: dict[str, np.ndarray], exact: Experiment | None, settings: dict[str, Any]
) -> dict[str, pd.DataFrame]:
    """All tables of a sweep from the distances (cells, trials, generations) of its parts, in their order.

    exact: the part whose cells are exact, if any.
    """
    pairs, trials = [], []
    frames: dict[str, pd.DataFrame] = {}
    if exact is not None and biases(settings):
        frames["bias_boundaries"] = bias_boundaries(exact, settings)
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
    frames |= {"sweep": sweep, "regimes": regimes, "theory": curves, "boundaries": edges, "trials": each}
    return {name: shortened(frame) for name, frame in frames.items()}


def _twins(part: Experiment, parts: dict[str, Experiment], w2: dict[str, np.ndarray]) -> Twins:
    """What the exact learner gives for the cells of ``part``: on the same points, and in many trials of its own."""
    rows = [
        [parts[name].cells.index(beneath(cell, learner)) for cell in part.cells]
        for name, learner in (("twin", "twin"), ("overlay", "exact"))
    ]
    return Twins(w2["twin"][rows[0]][:, : part.trials], w2["overlay"][rows[1]])


def densities(parts: dict[str, Experiment], values: dict[str, Values]) -> dict[str, pd.DataFrame]:
    """Of flows: what the draws of every guided cell were worth (`sims_core.density`), over trials and generations.

    refused: the share of models whose weights degenerate; such a model has diverged.
    """
    rows = []
    for name, part in parts.items():
        if "effective" not in part.quantities:
            continue
        found = values[name]
        for i, cell in enumerate(part.cells):
            if cell.omega and METHODS[cell.method].networks > 1:
                worth = {q: found[q][i][np.isfinite(found[q][i])] for q in ("effective", "acceptance")}
                rows.append(
                    {"method": cell.method, "omega": cell.omega, "synthetic_size": cell.synthetic_size,
                     "auxiliary_data": cell.auxiliary_data, "sampler": cell.sampler,
                     "effective": worth["effective"].mean(), "effective_least": worth["effective"].min(),
                     "acceptance": worth["acceptance"].mean(),
                     "refused": float((~np.isfinite(found[part.quantities[0]][i])).mean())}
                )  # fmt: skip
    return {"density": pd.DataFrame(rows)} if rows else {}


def draw(frames: dict[str, pd.DataFrame], settings: dict[str, Any], folder: Path) -> list[Path]:
    """The figures of the first `MOST_FACETS` facets: figure4 and phase_diagram, numbered from the second on."""
    frames = {name: completed(frame) for name, frame in frames.items()}
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
            & _matches(regimes, facet, ["temperature", "pollution", "estimator"])
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
            caption=caption(facet.to_dict(), settings, shown=marks(settings, facet["method"])),
            beneath=regimes[exact & guided & _matches(regimes, facet, shared)] if (~own).any() else None,
        )
        text = caption(facet.to_dict(), settings, shown=PHASES)
        paths += phase_diagram(
            regimes[mine | control], edges, folder / f"phase_diagram{suffix}", reading=reading, caption=text
        )
    if len(settings["method"]) > 2:  # beyond standard training and one remedy
        paths += _compare(regimes[own], settings, folder)
    return paths + _over_biases(regimes[own], frames, settings, folder)


def _over_biases(
    regimes: pd.DataFrame, frames: dict[str, pd.DataFrame], settings: dict[str, Any], folder: Path
) -> list[Path]:
    """Phase diagrams over omega and the estimator's bias, one per kind and |D_s|, the first value of other axes."""
    paths: list[Path] = []
    for kind, members in biases(settings).items():
        form = KINDS[kind.partition(":")[0]].form
        part = regimes[regimes["estimator"].isin(members)].assign(bias=lambda t, m=members: t["estimator"].map(m))
        first = part[part["method"].isin(GUIDED)].iloc[0]
        axes = [a for a in FACET if a != "estimator"]
        shared = ["loop", "real_size", "temperature", "pollution"]
        for size in sorted(part["synthetic_size"].unique())[:MOST_FACETS]:
            here = part[part["synthetic_size"] == size]
            control = ~here["method"].isin(GUIDED) & (here["reference"] == first["sampler"])
            here = here[_matches(here, first, axes) | (control & _matches(here, first, shared))]
            edges = frames["bias_boundaries"]
            edges = edges[(edges["kind"] == kind) & (edges["synthetic_size"] == size)]
            edges = edges[_matches(edges, first, [*axes, "auxiliary_data"])]
            stem = folder / f"phase_diagram-{kind.replace(':', '-')}-{size}"
            text = caption({**first.to_dict(), "estimator": form}, settings, shown=f"|D_s| = {size}. {PHASES}")
            paths += phase_diagram(here, edges, stem, reading=first["auxiliary_data"], caption=text, bias=form)
    return paths


def _compare(regimes: pd.DataFrame, settings: dict[str, Any], folder: Path) -> list[Path]:
    """The methods side by side in the same loop: the first value of every other axis, all |D_s|."""
    axes = ["loop", "reference", "real_size", "temperature", "pollution", "estimator"]
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
        settings = "".join(f"{best[a]!s:>16} " for a in axes)
        lines.append(
            f"{best['synthetic_size']:>7} {settings}{standard:>9.2f} {equal:>10} {retuned:>8} {best['omega']:>7g} "
            f"{best['first']:>8.4f} {best['own']:>11.2f} {best['standard']:>11.2f} "
            f"{f'{best.standard_low:.2f} .. {best.standard_high:.2f}':>15} {_less(best, controls):>24}  {_regime(best)}"
        )
    return "\n".join(lines)


_AXES = [
    "method", "auxiliary_data", "loop", "sampler", "real_size", "auxiliary_size", "budget", "temperature", "pollution",
    "estimator", "synthetic_size",
]  # fmt: skip


def _main(frames: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The regimes of the learner that was asked for, without the one drawn beneath it."""
    regimes = completed(frames["regimes"])
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
        & (regimes["estimator"] == key["estimator"])
    )
    standard = regimes[same & (regimes["method"] == "standard")]
    controls = regimes[same & regimes["method"].isin(RESAMPLED)].groupby("method")["standard"].min()
    return float(standard["standard"].iloc[0]), controls.to_dict()


def ahead(row: dict[str, Any]) -> list[str]:
    """The controls of no more evaluations that are nearer to the data than a cell, beyond the paired interval."""
    return [name for name in RESAMPLED if row.get(f"minus_{name.replace('-', '_')}_low", math.nan) > 0]


def _regime(cell: pd.Series[Any]) -> str:
    """A cell's regime in words, or those between which it is undecided."""
    names = [figures.LABEL.get(name, name) for name in cell["candidates"].split(" or ")]
    told = " or ".join(names).replace(" or too few trials", "; too few trials")
    return f"undecided ({told})" if cell["regime"] == "undecided" else told


def _elsewhere(regimes: pd.DataFrame, guided: pd.DataFrame) -> str:
    """The other |D_s| at which a control without SIMS is ahead of every omega, in a sentence each."""
    told = []
    for m, part in guided[guided["synthetic_size"] < guided["synthetic_size"].max()].groupby("synthetic_size"):
        best = part.loc[part["standard"].idxmin()].to_dict()
        _, controls = _companions(regimes, best)
        reached = " and ".join(f"{name} {controls[name]:.2f}x" for name in ahead(best))
        if reached:
            told.append(f" |D_s| = {m}: {reached}, without SIMS, ahead of every ω (best {best['standard']:.2f}x).")
    return "".join(told)


def conclusion(frames: dict[str, pd.DataFrame]) -> str:
    """What standard training and the best omega do at the largest |D_s|; and others where a control wins."""
    regimes = _main(frames)
    guided = regimes[regimes["method"].isin(GUIDED)]
    if guided.empty:
        rows = regimes[regimes["method"] == "standard"]
        worst = rows.loc[rows["own"].idxmax()]
        return f"|D_s| = {worst['synthetic_size']}: standard training ends at {worst['own']:.2f}x of generation 1."
    axes = [a for a in _AXES if a not in ("synthetic_size", "auxiliary_size")]
    part = guided[(guided[axes] == guided.iloc[0][axes]).all(axis=1)]
    others = _elsewhere(regimes, part)
    part = part[part["synthetic_size"] == part["synthetic_size"].max()]
    best = part.loc[part["standard"].idxmin()]
    standard, controls = _companions(regimes, best.to_dict())
    if best["regime"] == "undecided" and "one generation" in best["candidates"]:
        ratio, low, high = best["standard"], best["standard_low"], best["standard_high"]
        return (
            f"One generation: ω = {best['omega']:g} has {ratio:.2f}x ({low:.2f} .. {high:.2f}) standard training's W2."
        )
    verb = "drifts to" if standard > theory.TOLERANCE else "stays at"
    better = [f"{name} holds it at {value:.2f}x" for name, value in controls.items() if value < best["standard"]]
    rival = f"; without SIMS, at no more evaluations, {', '.join(better)}" if better else ""
    label = _regime(best) + "; more trials decide" * (best["regime"] == "undecided")
    effect = f"ω = {best['omega']:g} holds it at {best['standard']:.2f}x" if best["omega"] else "no ω > 0 does better"
    course = f"{verb} {standard:.2f}x of generation 1" if math.isfinite(standard) else "diverges"
    start = f"|D_s| = {best['synthetic_size']}: standard training {course}"
    return f"{start}; {effect}: {label}{rival}.{others}"


def words(frames: dict[str, pd.DataFrame], settings: dict[str, Any]) -> str:
    """The summary and the conclusion."""
    return f"{summary(frames)}\n{_worth(frames.get('density'))}\n{conclusion(frames)}"


def _worth(density: pd.DataFrame | None) -> str:
    """What the draws of guided densities were worth, a line; nothing for other learners."""
    if density is None:
        return ""
    low, mean = density["effective_least"].min(), density["effective"].mean()
    accepted, refused = density["acceptance"].mean(), density["refused"].max()
    return (
        f"guided densities: effective sample size {100 * mean:.3g} % of the particles (least {100 * low:.2g} %), "
        f"{100 * accepted:.3g} % of moves accepted; at most {100 * refused:.3g} % of a cell's models refused\n"
    )


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
    kind, seed = LEARNERS[cell.learner], Seed(experiment.seed)
    sampler = kind.parse(cell.sampler, sigma_data=spread(real))
    if experiment.quantities != ("w2",) or cell.learner == "flow-matching":
        learner = kind.make(experiment, cell, sampler, np.arange(min(16, experiment.trials)))
        data = learner.draw(real, cell.real_size, seed=seed.child("real"))
        base = learner.fit(data, seed=seed.child("fit"))
        angle = str(network_angle(learner, base, real, cell.real_size, seed=seed))
        return angle if experiment.quantities[0] == "w2" else f"{floor(experiment)}; {angle}"
    assert isinstance(real, Gaussian)
    far = off_center(real)
    if isinstance(experiment.network, NetworkSettings):
        trials = min(32, experiment.trials)  # no more networks than the run itself trains for a cell
        found = diagnose_network(sampler, real, cell.real_size, experiment.network, trials=trials, seed=seed)
        return str(found) + far
    trials = max(25, min(400, 6400 // real.dim**2))  # as much memory
    estimator = Estimator.parse(cell.estimator)
    return str(diagnose(sampler, real, cell.real_size, trials=trials, seed=seed, estimator=estimator)) + far


def off_center(real: Gaussian) -> str:
    """A line where samplers, which start around 0 at a noise level of 80, are far from the data's place and size."""
    mean, scale = float(real.mean[0].norm()), spread(real)
    if mean <= 10 * scale and 0.02 <= scale <= 20:
        return ""
    place = f"the real Gaussian lies {mean:.3g} from 0 and has a spread of {scale:.3g}"
    return f"\n{place}: samplers start around 0 at noise level 80, and much of what is measured is their drift"
