"""What a sweep says: its tables completed with theory, its figures, its summary and conclusion in words."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sims_toy import figures, theory
from sims_toy.experiment import tables

if TYPE_CHECKING:
    import pandas as pd

    from sims_toy.experiment import Experiment

TABLES = ("sweep", "regimes", "theory", "boundaries")
#: More combinations of the other axes than this are left to the tables.
MOST_FACETS = 8
#: Axes on which a figure holds one value; each combination gets figures of its own.
FACET = ["method", "loop", "sampler", "real_size", "budget", "aux"]


def make(experiment: Experiment, settings: dict[str, Any], w2: np.ndarray) -> dict[str, pd.DataFrame]:
    """All tables of a sweep from its distances (cells, trials, generations)."""
    sweep, regimes = tables(experiment, w2)
    curves, edges = theory_tables(experiment, settings)
    return {"sweep": sweep, "regimes": regimes, "theory": curves, "boundaries": edges}


def load(folder: Path) -> dict[str, pd.DataFrame]:
    """The tables of a finished sweep."""
    import pandas as pd

    return {name: pd.read_parquet(folder / f"{name}.parquet") for name in TABLES}


def theory_tables(experiment: Experiment, settings: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Closed-form curves and phase boundaries for the sweep's SIMS cells in the augmentation loop.

    theory: W2 (root of E[W2^2]) at generation 1 and at convergence on a fine grid of omega. boundaries: the intervals
    of omega of each regime over a fine grid of |D_s|, and the optimum (omega_low = omega_high). Empty for the rest.
    """
    import pandas as pd

    from sims_core.sampling import Sampler
    from sims_toy.exact import sampler_modes
    from sims_toy.gaussian import Gaussian

    real = Gaussian.single(experiment.mean, experiment.covariance)
    sigma_data = float(real.cov.diagonal(dim1=1, dim2=2).mean().sqrt())
    same = settings["auxiliary_size"] == "same"
    omegas = np.linspace(min(settings["omega"]), max(settings["omega"]), 101)
    groups: dict[tuple[Any, ...], set[int]] = {}
    for c in experiment.cells:
        if c.method == "sims" and c.loop == "augmentation":
            key = (
                c.method,
                c.loop,
                c.sampler,
                c.real_size,
                c.budget,
                0 if same else c.auxiliary_size,
                c.auxiliary_data,
            )
            groups.setdefault(key, set()).add(c.synthetic_size)
    curves, edges = [], []
    for (method, loop, sampler, n, budget, aux, reading), sizes in groups.items():
        eta = float(budget) if settings["learner"] == "exact" else 1.0
        modes = sampler_modes(Sampler.parse(sampler, sigma_data=sigma_data), real)
        facet = {"method": method, "loop": loop, "sampler": sampler, "real_size": n, "budget": budget, "aux": aux}

        def setting(m: float, n: int = n, aux: int = aux, eta: float = eta, reading: str = reading,
                    modes: tuple[theory.Mode, ...] = modes) -> theory.Setting:  # fmt: skip
            return theory.Setting(n, m, aux or m, eta, reading, modes)

        for m in sorted(sizes):
            first = np.sqrt(theory.response(setting(m), 0.0, 1).w2_sq)
            for name, generation in (("1", 1.0), ("limit", np.inf)):
                rms = np.sqrt(theory.response(setting(m), omegas, generation).w2_sq)
                curves.append(
                    pd.DataFrame(
                        facet
                        | {"auxiliary_data": reading, "synthetic_size": m, "generation": name, "omega": omegas}
                        | {"w2_rms": rms, "w2_rms_standard_first": first}
                    )
                )
        middle = np.sqrt(min(sizes) * max(sizes))
        spread = max(max(sizes) / min(sizes), 2.0)
        for m in np.geomspace(middle / spread, middle * spread, 81):
            found = theory.boundaries(setting(m), max(20.0, float(omegas[-1])))
            best = theory.optimal_omega(setting(m))
            found["optimum"] = [(best, best)] if np.isfinite(best) else []
            for regime, pieces in found.items():
                for i, (low, high) in enumerate(pieces):
                    edges.append(
                        facet
                        | {"auxiliary_data": reading, "synthetic_size": m, "regime": regime, "piece": i}
                        | {"omega_low": low, "omega_high": high}
                    )
    columns = [*FACET, "auxiliary_data", "synthetic_size"]
    curve_columns = [*columns, "generation", "omega", "w2_rms", "w2_rms_standard_first"]
    edge_columns = [*columns, "regime", "piece", "omega_low", "omega_high"]
    return (
        pd.concat(curves, ignore_index=True)[curve_columns] if curves else pd.DataFrame(columns=curve_columns),
        pd.DataFrame(edges, columns=edge_columns),
    )


def draw(frames: dict[str, pd.DataFrame], settings: dict[str, Any], folder: Path) -> list[Path]:
    """The figures of the first `MOST_FACETS` facets: figure4 and phase_diagram, numbered from the second on."""
    regimes = frames["regimes"].assign(aux=_aux(frames["regimes"], settings))
    sweep = frames["sweep"].assign(aux=_aux(frames["sweep"], settings))
    paths: list[Path] = []
    facets = regimes[~regimes["method"].isin(["standard", "equal-cost"])][FACET].drop_duplicates().head(MOST_FACETS)
    for number, (_, facet) in enumerate(facets.iterrows()):
        suffix = f"-{number + 1}" if number else ""
        mine = (regimes[FACET] == facet).all(axis=1)
        control = (
            regimes["method"].isin(["standard", "equal-cost"])
            & (regimes["loop"] == facet["loop"])
            & (regimes["real_size"] == facet["real_size"])
            & ((regimes["sampler"] == facet["sampler"]) | (regimes["method"] == "equal-cost"))
        )
        curves = frames["theory"][(frames["theory"][FACET] == facet).all(axis=1)]
        edges = frames["boundaries"][(frames["boundaries"][FACET] == facet).all(axis=1)]
        text = caption(facet.to_dict(), settings)
        reading = settings["auxiliary_data"][0]
        here = sweep[(sweep[FACET] == facet).all(axis=1)]
        both = regimes[mine | control]
        paths += figures.figure4(here, both, curves, folder / f"figure4{suffix}", reading=reading, caption=text)
        paths += figures.phase_diagram(
            regimes[mine], edges, folder / f"phase_diagram{suffix}", reading=reading, caption=phase_caption(text)
        )
    return paths


def _aux(frame: pd.DataFrame, settings: dict[str, Any]) -> pd.Series:
    return frame["auxiliary_size"] * (0 if settings["auxiliary_size"] == "same" else 1)


def caption(facet: dict[str, Any], settings: dict[str, Any]) -> str:
    """The settings of a facet, and which of them are our reading."""
    aux = "|D_aux| = |D_s|" if not facet["aux"] else f"|D_aux| = {facet['aux']}"
    cov = "; ".join(", ".join(f"{v:g}" for v in row) for row in settings["real_covariance"])
    budget = f"eta = {facet['budget']}" if settings["learner"] == "exact" else f"budget {facet['budget']}"
    return (
        f"{settings['learner']} learner, {facet['method']}, {facet['loop']} loop: real data N(mean "
        f"[{', '.join(f'{v:g}' for v in settings['real_mean'])}], covariance [{cov}]), |D_r| = {facet['real_size']}, "
        f"sampler {facet['sampler']}, {budget}, {aux}, {settings['trials']} paired trials, "
        f"{settings['generations']} generations, seed {settings['seed']}; d_T is the mean of the last ten. "
        "Bands: 95 % bootstrap intervals. Thin dashes: linear response, root mean square. Orange: standard "
        "training with twice the sampler steps (equal cost). Regimes, |D_r|, the real Gaussian, the sampler and "
        "what the auxiliary is trained on are our reading; the paper does not state them."
    )


def phase_caption(text: str) -> str:
    """The phase diagram's caption from the figure's."""
    lines = (
        "Lines: boundaries by linear response of prevention (thick), strong mitigation (medium) and weak mitigation "
        "(thin); dotted: optimal omega. "
    )
    return lines + text.split(" Bands:")[0] + " Regimes are our reading."


def summary(frames: dict[str, pd.DataFrame], _settings: dict[str, Any] | None = None) -> str:
    """The printed table: one line a size, with standard training, the best omega and the equal-cost control."""
    regimes = frames["regimes"]
    keys = ["method", "auxiliary_data", "loop", "sampler", "real_size", "budget", "synthetic_size"]
    head = (
        f"{'|D_s|':>7} {'auxiliary data':>16} {'standard':>9} {'equal cost':>10} {'best ω':>7} {'d_1(ω)':>8} "
        f"{'d_T/d_1(ω)':>11} {'d_T/d_1(0)':>11} {'95 % interval':>15}  regime"
    )
    lines = [head]
    guided = regimes[~regimes["method"].isin(["standard", "equal-cost"])]
    for key, part in guided.groupby(keys, sort=False):
        standard, control = _companions(regimes, dict(zip(keys, key, strict=True)))
        best = part.loc[part["standard"].idxmin()]
        regime = best["regime"] if best["regime"] != "undecided" else f"undecided ({best['candidates']})"
        lines.append(
            f"{best['synthetic_size']:>7} {best['auxiliary_data']:>16} {standard:>9.2f} "
            f"{'' if control is None else format(control, '.2f'):>10} {best['omega']:>7g} {best['first']:>8.4f} "
            f"{best['own']:>11.2f} {best['standard']:>11.2f} "
            f"{f'{best.standard_low:.2f} .. {best.standard_high:.2f}':>15}  {regime}"
        )
    return "\n".join(lines)


def _companions(regimes: pd.DataFrame, key: dict[str, Any]) -> tuple[float, float | None]:
    """d_T / d_1(0) of standard training and of its equal-cost control at a cell's sizes."""
    same = (
        (regimes["loop"] == key["loop"])
        & (regimes["real_size"] == key["real_size"])
        & (regimes["synthetic_size"] == key["synthetic_size"])
    )
    standard = regimes[same & (regimes["method"] == "standard") & (regimes["sampler"] == key["sampler"])]
    control = regimes[same & (regimes["method"] == "equal-cost")]
    return float(standard["standard"].iloc[0]), float(control["standard"].iloc[0]) if len(control) else None


def conclusion(frames: dict[str, pd.DataFrame]) -> str:
    """One sentence: what standard training does at the largest |D_s|, and what the best omega does."""
    regimes = frames["regimes"]
    guided = regimes[regimes["method"].isin(["sims", "neon"])]
    if guided.empty:
        rows = regimes[regimes["method"] == "standard"]
        worst = rows.loc[rows["own"].idxmax()]
        return f"|D_s| = {worst['synthetic_size']}: standard training ends at {worst['own']:.2f}x of generation 1."
    first = guided.iloc[0]
    part = guided[
        (
            guided[["method", "auxiliary_data", "loop", "sampler", "real_size", "budget"]]
            == first[["method", "auxiliary_data", "loop", "sampler", "real_size", "budget"]]
        ).all(axis=1)
    ]
    part = part[part["synthetic_size"] == part["synthetic_size"].max()]
    best = part.loc[part["standard"].idxmin()]
    standard, _ = _companions(regimes, best.to_dict())
    verb = "drifts to" if standard > theory.TOLERANCE else "stays at"
    label = {"strong": "strong mitigation", "weak": "weak mitigation"}.get(best["regime"], best["regime"])
    if best["regime"] == "undecided":
        label = f"undecided between {best['candidates'].replace(' or ', ' and ')}; more trials decide"
    effect = f"ω = {best['omega']:g} holds it at {best['standard']:.2f}x" if best["omega"] else "no ω > 0 does better"
    start = f"|D_s| = {best['synthetic_size']}: standard training {verb} {standard:.2f}x of generation 1"
    return f"{start}; {effect}: {label}."


def diagnosis(experiment: Experiment) -> str:
    """Whether SIMS can help, said before any guidance is looked at: the error budget and the drift-error cosine."""
    from sims_core.sampling import Sampler
    from sims_core.seeds import Seed
    from sims_toy.diagnosis import diagnose
    from sims_toy.gaussian import Gaussian

    real = Gaussian.single(experiment.mean, experiment.covariance)
    sigma_data = float(real.cov.diagonal(dim1=1, dim2=2).mean().sqrt())
    cell = experiment.cells[0]
    return str(
        diagnose(Sampler.parse(cell.sampler, sigma_data=sigma_data), real, cell.real_size, seed=Seed(experiment.seed))
    )
