"""Linear response alongside a sweep: curves and phase boundaries over |D_s| and over an estimator's bias."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from sims_core.algorithm import AUXILIARY_DATA
from sims_core.sampling import Sampler
from sims_toy import theory
from sims_toy.estimators import KINDS, Estimator
from sims_toy.exact import sampler_modes
from sims_toy.gaussian import Gaussian
from sims_toy.grid.cells import Experiment
from sims_toy.grid.measure import spread
from sims_toy.sweep.tables import FACET

_COLUMNS = [*FACET, "auxiliary_data", "synthetic_size"]
_CURVE = [*_COLUMNS, "generation", "omega", "w2_rms", "w2_rms_standard_first"]
_EDGE = [*_COLUMNS, "regime", "piece", "omega_low", "omega_high"]
#: Linear response has a mode for each pair of dimensions: beyond so many it is left out.
_MOST_DIMENSIONS = 8
#: How many strengths of an estimator's bias the boundaries over (omega, bias) are drawn through.
_BIASES = 25


def theory_tables(experiment: Experiment | None, settings: dict[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Closed-form curves and phase boundaries for the sweep's SIMS cells in the augmentation loop.

    theory: W2 (root of E[W2^2]) at generation 1 and at convergence on a fine grid of omega. boundaries: the intervals
    of omega of each regime over a fine grid of |D_s|, and the optimum (omega_low = omega_high). Empty for the rest, for
    warm early stops and beyond `_MOST_DIMENSIONS`.
    """
    omegas = np.linspace(min(settings["omega"]), max(settings["omega"]), 101)
    curves, edges = [], []
    for facet, setting, sizes in _laws(experiment, settings):
        for m in sorted(sizes):
            first = np.sqrt(theory.response(setting(m), 0.0, 1).w2_sq)
            for name, generation in (("1", 1.0), ("limit", np.inf)):
                rms = np.sqrt(theory.response(setting(m), omegas, generation).w2_sq)
                curves.append(
                    pd.DataFrame(
                        facet
                        | {"synthetic_size": m, "generation": name, "omega": omegas}
                        | {"w2_rms": rms, "w2_rms_standard_first": first}
                    )
                )
        middle = np.sqrt(min(sizes) * max(sizes))
        reach = max(max(sizes) / min(sizes), 2.0)
        for m in np.geomspace(middle / reach, middle * reach, 81):
            edges += [facet | edge for edge in _edges(setting(m), omegas[-1])]
    return (
        pd.concat(curves, ignore_index=True)[_CURVE] if curves else pd.DataFrame(columns=_CURVE),
        pd.DataFrame(edges, columns=_EDGE),
    )


def bias_boundaries(experiment: Experiment, settings: dict[str, Any]) -> pd.DataFrame:
    """The boundaries of `theory_tables` over a fine grid of an estimator's bias, for each of the sweep's |D_s|.

    kind: the estimator's. bias: its number. Empty where there are not two estimators of one kind.
    """
    rows = []
    for kind, members in biases(settings).items():
        if kind not in KINDS:  # warm early stops
            continue
        whole, ends = KINDS[kind].whole, (min(members.values()), max(members.values()))
        numbers = np.arange(ends[0], ends[1] + 1) if whole else np.linspace(*ends, _BIASES)
        fine = {float(number): f"{kind}:{number:g}" for number in numbers}
        cells = [c for c in experiment.cells if c.estimator == next(iter(members))]
        for number, text in fine.items():
            part = replace(experiment, cells=tuple(replace(c, estimator=text) for c in cells))
            for facet, setting, sizes in _laws(part, settings):
                edges = [edge for m in sorted(sizes) for edge in _edges(setting(m), max(settings["omega"]))]
                rows += [facet | edge | {"kind": kind, "bias": number} for edge in edges]
    return pd.DataFrame(rows, columns=[*_EDGE, "kind", "bias"])


def biases(settings: dict[str, Any]) -> dict[str, dict[str, float]]:
    """The kinds of estimator of which a sweep has several, each with its estimators' texts and numbers.

    Maximum likelihood is the end at 0 of smoothing, shrinking and weight decay.
    """
    named = {text: Estimator.parse(text) for text in settings.get("estimator", ["mle"])}
    found = {}
    for kind in dict.fromkeys((e.name, e.warm) for e in named.values()):
        members = {text: e.number for text, e in named.items() if (e.name, e.warm) == kind}
        if "mle" in named and kind[0] in ("smooth", "shrink", "decay"):
            members["mle"] = 0.0
        if len(members) > 1:
            found[kind[0] + ":warm" * kind[1]] = members
    return found


_Law = tuple[dict[str, Any], Callable[[float], theory.Setting], set[int]]


def _laws(experiment: Experiment | None, settings: dict[str, Any]) -> Iterator[_Law]:
    """Each facet and reading of SIMS cells that linear response applies to: its settings by |D_s|, and its |D_s|."""
    if experiment is None or len(experiment.mean) > _MOST_DIMENSIONS:
        return
    real = Gaussian.single(experiment.mean, experiment.covariance)
    sigma_data = spread(real)
    same = settings["auxiliary_size"] == "same"
    groups: dict[tuple[Any, ...], set[int]] = {}
    for c in experiment.cells:
        if (
            c.method == "sims"
            and c.loop == "augmentation"
            and c.auxiliary_data in AUXILIARY_DATA
            and c.temperature == 1
            and not Estimator.parse(c.estimator).warm
        ):
            aux = 0 if same else c.auxiliary_size
            key = (c.method, c.loop, c.sampler, c.real_size, c.budget, aux, c.auxiliary_data, c.estimator)
            groups.setdefault(key, set()).add(c.synthetic_size)
    for (method, loop, sampler, n, budget, aux, reading, estimator), sizes in groups.items():
        modes = sampler_modes(Sampler.parse(sampler, sigma_data=sigma_data), real, Estimator.parse(estimator))
        facet = {
            "method": method,
            "loop": loop,
            "sampler": sampler,
            "real_size": n,
            "budget": budget,
            "aux": aux,
            "temperature": 1.0,
            "pollution": 0,
            "estimator": estimator,
            "auxiliary_data": reading,
        }

        def setting(m: float, n: int = n, aux: int = aux, eta: float = float(budget), reading: str = reading,
                    modes: tuple[theory.Mode, ...] = modes) -> theory.Setting:  # fmt: skip
            return theory.Setting(n, m, aux or m, eta, reading, modes)

        yield facet, setting, sizes


def _edges(setting: theory.Setting, omega: float) -> Iterator[dict[str, Any]]:
    """The intervals of omega of each regime in one setting, and the optimum; omega: the largest that is looked at."""
    found = theory.boundaries(setting, max(20.0, float(omega)))
    best = theory.optimal_omega(setting)
    found["optimum"] = [(best, best)] if np.isfinite(best) else []
    for regime, pieces in found.items():
        for i, (low, high) in enumerate(pieces):
            yield {"synthetic_size": setting.m, "regime": regime, "piece": i, "omega_low": low, "omega_high": high}
