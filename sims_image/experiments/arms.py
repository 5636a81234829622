"""What a `sims` experiment measures after its search: the arms of the confirmation, and samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sims_core.algorithm import METHODS, Given
from sims_core.guidance import FULL
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_image.experiments.bench import Bench
from sims_image.experiments.halving import Cell, chosen, in_words, retunings, rounds
from sims_image.experiments.plan import Plan
from sims_image.experiments.search import Search
from sims_image.learner import ImageData, ImageModel
from sims_image.sampling.seeds import Seeds


@dataclass(frozen=True)
class Arm:
    """One model on the fresh seeds. values: the distance on each; nfe: evaluations per image; note: what it is.

    choosing: evaluations spent choosing it on the search seeds (tuned controls only).
    """

    name: str
    note: str
    nfe: int
    values: tuple[float, ...]
    cells: tuple[Cell, ...]
    choosing: int = 0

    @property
    def mean(self) -> float:
        """Over the repeats."""
        return float(np.mean(self.values))

    @property
    def half(self) -> float:
        """Half the 95% interval of the mean (Student's) over the repeats."""
        return half_interval(self.values)

    def against(self, base: Arm) -> tuple[float, float]:
        """Mean and half interval of the difference to ``base`` on the same seeds."""
        differences = [a - b for a, b in zip(self.values, base.values, strict=True)]
        return float(np.mean(differences)), half_interval(differences)


def half_interval(values: Any) -> float:
    """Half the 95% interval of a mean, Student's."""
    count = len(values)
    return float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / math.sqrt(count))


def confirm(
    plan: Plan, bench: Bench, base: ImageModel, auxiliary: ImageModel, found: Search, data: ImageData, seed: Seed
) -> list[Arm]:
    """Measure the best model, the base, the naive fine-tune and the controls on the fresh seeds. The base is first."""

    def rival(name: str, given: Given, omega: float) -> ImageModel:
        """What a method of the core makes of what is there."""
        asked = {"n_synthetic": len(plan.synthetic), "budget": found.budget, "omega": omega}
        model: ImageModel = METHODS[name].bind(**asked)(given, data, seed=seed).model
        return model

    alone = Given(bench.learner, base=base)
    both = Given(bench.learner, base=base, auxiliary=auxiliary)
    schedule = "" if bench.schedule == FULL else f", auxiliary {bench.schedule}"
    best = f"omega = {found.omega:g}, budget {found.budget:,}{schedule}"
    plans: list[tuple[str, str, ImageModel, Sampler | None]] = [
        ("base", "omega = 0", base, None),
        ("SIMS", best, rival("sims", both, found.omega), None),
        ("naive fine-tune", f"the auxiliary alone, budget {found.budget:,}", auxiliary, None),
    ]
    spent: dict[str, int] = {}
    if plan.settings.controls:
        strength, spent["Neon"] = _neon(plan, bench, base, lambda omega: rival("neon", both, omega))
        retuned, tried, spent["base, sampler retuned"] = _retuned(plan, bench, base)
        told = f"weights extrapolated, w = {strength:g} (chosen on the search seeds)"
        plans += [
            (*_more_steps(bench, base), base, bench.equal(base)),
            ("base, sampler retuned", f"{in_words(retuned)}: the best of {tried} on the search seeds", base, retuned),
            (
                "base trained further",
                f"on its own data for {found.budget:,} images",
                rival("continued", alone, 0.0),
                None,
            ),
            ("random direction", f"of the auxiliary's norm, {best}", rival("random", both, found.omega), None),
            ("Neon", told, rival("neon", both, strength), None),
        ]
    arms = []
    measured = bench.several([(model, seeds, {"sampler": how}) for *_, model, how in plans for seeds in plan.confirm])
    for name, note, *_ in plans:
        cells = tuple(islice(measured, len(plan.confirm)))
        values = tuple(bench.value(cell)["value"] for cell in cells)
        arms.append(Arm(name, note, int(cells[0]["settings"]["nfe"]), values, cells, spent.get(name, 0)))
        if bench.processes.first:
            print(f"{name}: {arms[-1].mean:.4g} +- {arms[-1].half:.2g}")
    return arms


def _neon(plan: Plan, bench: Bench, base: ImageModel, merged: Callable[[float], ImageModel]) -> tuple[float, int]:
    """(the best w of the grid on the search seeds, evaluations that took), by the search's own rounds."""
    omegas = plan.omegas[1:]
    turns = rounds(len(omegas), plan.search, halving=plan.halving)
    nfe = bench.sampler(base.load()).nfe
    return chosen(omegas, turns, bench.trying(lambda w: (merged(w), {})), bench.distance, nfe)


def _retuned(plan: Plan, bench: Bench, base: ImageModel) -> tuple[Sampler, int, int]:
    """(the base's best sampler at SIMS's evaluations, of how many, evaluations that took), by successive halving."""
    most = bench.evaluations_of_sims(base)
    options = retunings(bench.sampler(base.load()), most)
    turns = rounds(len(options), plan.search)
    best, cost = chosen(options, turns, bench.trying(lambda one: (base, {"sampler": one})), bench.distance, most)
    return best, len(options), cost


def _more_steps(bench: Bench, base: ImageModel) -> tuple[str, str]:
    """Name and note of the base with as many evaluations as SIMS."""
    equal = bench.equal(base)
    if bench.schedule == FULL or not equal.steps:
        return "base, twice the steps", "as many evaluations as SIMS"
    return f"base, {equal.steps} steps", "as many evaluations as SIMS, or nearly"


def samples(
    plan: Plan, bench: Bench, base: ImageModel, auxiliary: ImageModel, found: Search, *, count: int = 24
) -> dict[str, NDArray[np.uint8]]:
    """Images (count, C, H, W) of some arms, by name, from the same seeds. Empty for latents."""
    seeds = Seeds.span(next(iter(plan.confirm[0])), min(count, len(plan.confirm[0])))
    models: dict[str, tuple[ImageModel, Sampler | None]] = {"base": (base, None)}
    if plan.settings.controls:
        models[_more_steps(bench, base)[0]] = base, bench.equal(base)
    models["naive fine-tune"] = auxiliary, None
    models["SIMS"] = bench.learner.extrapolate(base, auxiliary, found.omega), None
    if not bench.processes.first or not bench.pictures:
        return {}
    return {name: bench.drawn(model, seeds, sampler=sampler) for name, (model, sampler) in models.items()}
