"""What a `sims` experiment measures after its search: the arms of the confirmation, and sample grids."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sims_core.guidance import FULL
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_image.experiments.bench import Bench
from sims_image.experiments.halving import Cell, halve, planned, retunings, rounds
from sims_image.experiments.search import Search
from sims_image.learner import ImageData, ImageModel
from sims_image.sampling.seeds import Seeds


@dataclass(frozen=True)
class Arm:
    """One model on the fresh seeds. values: the distance on each; nfe: evaluations an image; note: what it is.

    choosing: evaluations that choosing it on the search seeds took, of a control that was chosen.
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
    bench: Bench,
    base: ImageModel,
    auxiliaries: dict[int, ImageModel],
    found: Search,
    data: ImageData,
    seed: Seed,
) -> list[Arm]:
    """Measure the best model, the base, the naive fine-tune and the controls on the fresh seeds. The base is first."""
    learner, auxiliary = bench.learner, auxiliaries[found.budget]
    schedule = "" if bench.plan.schedule == FULL else f", auxiliary {bench.plan.schedule}"
    best = f"omega = {found.omega:g}, budget {found.budget:,}{schedule}"
    plans: list[tuple[str, str, ImageModel, Sampler | None]] = [
        ("base", "omega = 0", base, None),
        ("SIMS", best, learner.extrapolate(base, auxiliary, found.omega), None),
        ("naive fine-tune", f"the auxiliary alone, budget {found.budget:,}", auxiliary, None),
    ]
    spent: dict[str, int] = {}
    if bench.plan.settings.controls:
        further = learner.finetune(base, data, found.budget, seed=seed.child("control"))
        strength, merged, spent["Neon"] = _neon(bench, base, auxiliary)
        retuned, tried, spent["base, sampler retuned"] = _retuned(bench, base)
        plans += [
            (*_more_steps(bench, base), base, bench.equal(base)),
            ("base, sampler retuned", f"{_told(retuned)}: the best of {tried} on the search seeds", base, retuned),
            ("base trained further", f"on its own data for {found.budget:,} images", further, None),
            (
                "random direction",
                f"of the auxiliary's norm, {best}",
                _random(bench, base, auxiliary, found, seed),
                None,
            ),
            ("Neon", f"weights extrapolated, w = {strength:g} (chosen on the search seeds)", merged, None),
        ]
    arms = []
    for name, note, model, sampler in plans:
        cells = tuple(bench.measure(model, seeds, sampler=sampler) for seeds in bench.plan.confirm)
        values = tuple(bench.value(cell)["value"] for cell in cells)
        arms.append(Arm(name, note, int(cells[0]["settings"]["nfe"]), values, cells, spent.get(name, 0)))
        if bench.processes.first:
            print(f"{name}: {arms[-1].mean:.4g} +- {arms[-1].half:.2g}")
    return arms


def _neon(bench: Bench, base: ImageModel, auxiliary: ImageModel) -> tuple[float, ImageModel, int]:
    """(w, the best merged model of the grid on the search seeds, evaluations that took), by the search's own rounds."""

    def measure(omega: float, seeds: Seeds) -> Cell:
        return bench.measure(bench.learner.merge(base, auxiliary, omega), seeds)

    omegas, plan = bench.plan.omegas[1:], bench.plan
    turns = rounds(len(omegas), plan.search, halving=plan.halving)
    _, best = halve(omegas, turns, measure, lambda cell: bench.value(cell)["value"])
    cost, _ = planned(len(omegas), turns, bench.sampler(base.load()).nfe)
    return best, bench.learner.merge(base, auxiliary, best), cost


def _retuned(bench: Bench, base: ImageModel) -> tuple[Sampler, int, int]:
    """(the base's best sampler at SIMS's evaluations, of how many, evaluations that took), by successive halving."""
    options = retunings(bench.sampler(base.load()), bench.evaluations_of_sims(base))
    turns = rounds(len(options), bench.plan.search)

    def measure(sampler: Sampler, seeds: Seeds) -> Cell:
        return bench.measure(base, seeds, sampler=sampler)

    _, best = halve(options, turns, measure, lambda cell: bench.value(cell)["value"])
    cost, _ = planned(len(options), turns, bench.evaluations_of_sims(base))
    return best, len(options), cost


def _told(sampler: Sampler) -> str:
    return f"{sampler}, rho {sampler.rho:g}, sigma_max {sampler.sigma_max:g}"


def _more_steps(bench: Bench, base: ImageModel) -> tuple[str, str]:
    """Name and note of the base with as many evaluations as SIMS."""
    if bench.plan.schedule == FULL:
        return "base, twice the steps", "as many evaluations as SIMS"
    return f"base, {bench.equal(base).steps} steps", "as many evaluations as SIMS, or nearly"


def _random(bench: Bench, base: ImageModel, auxiliary: ImageModel, found: Search, seed: Seed) -> ImageModel:
    """SIMS whose auxiliary is the base moved at random, each tensor as far as the real auxiliary's."""
    moved = bench.learner.perturb(base, auxiliary, seed=seed.child("random"))
    return bench.learner.extrapolate(base, moved, found.omega)


def grids(
    bench: Bench, base: ImageModel, auxiliary: ImageModel, found: Search, *, count: int = 32
) -> dict[str, NDArray[np.uint8]]:
    """Images (count, C, H, W) of base, naive fine-tune and SIMS from the same seeds. Empty for latents."""
    seeds = Seeds.span(next(iter(bench.plan.confirm[0])), min(count, len(bench.plan.confirm[0])))
    models = {
        "base": base,
        "naive fine-tune": auxiliary,
        f"SIMS, omega = {found.omega:g}": bench.learner.extrapolate(base, auxiliary, found.omega),
    }
    if not bench.processes.first or bench.data.dtype != np.uint8 or bench.data.shape[0] not in (1, 3):
        return {}
    alone = replace(bench.processes, world=1)
    kept, bench.processes = bench.processes, alone
    try:
        drawn = {name: list(bench.stream(model, seeds)[0]) for name, model in models.items()}
    finally:
        bench.processes = kept
    return {name: np.concatenate([part[1] for part in parts]) for name, parts in drawn.items()}
