"""What a `sims` experiment measures: the search over omega and budget, the arms of the confirmation, sample grids."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sims_core.seeds import Seed
from sims_image.learner import ImageData, ImageModel
from sims_image.seedlists import Seeds

if TYPE_CHECKING:
    from sims_image.experiments import Bench

Cell = dict[str, Any]


@dataclass(frozen=True)
class Search:
    """cells: by (budget, omega), omega = 0 under every budget. budget, omega: the best with omega > 0.

    helps: whether it is better than omega = 0 there. naive: cells of the auxiliaries alone, by budget. cosine: of the
    drift of self-training (auxiliary's mean features minus base's) with the base's error (its minus the real ones'),
    by budget: above 0, first order says that SIMS can help.
    """

    cells: dict[tuple[int, float], Cell]
    naive: dict[int, Cell]
    cosine: dict[int, float]
    budget: int
    omega: float
    helps: bool


@dataclass(frozen=True)
class Arm:
    """One model on the fresh seeds. values: the distance on each; nfe: evaluations an image; note: what it is."""

    name: str
    note: str
    nfe: int
    values: tuple[float, ...]
    cells: tuple[Cell, ...]

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


def cosine(drift: NDArray[np.float64], error: NDArray[np.float64]) -> float:
    """Between two vectors; 0 if one is 0."""
    norms = float(np.linalg.norm(drift) * np.linalg.norm(error))
    return float(drift @ error) / norms if norms else 0.0


def search(bench: Bench, base: ImageModel, auxiliaries: dict[int, ImageModel]) -> Search:
    """Measure omega x budget on the search seeds."""
    plan, seeds = bench.plan, bench.plan.search
    zero = bench.measure(base, seeds)
    real = (bench.reference.heldout or bench.reference).side.statistics.mu
    naive, cosines, cells = {}, {}, {}
    for budget, auxiliary in auxiliaries.items():
        naive[budget] = bench.measure(auxiliary, seeds)
        drift = np.asarray(naive[budget]["mean"]) - np.asarray(zero["mean"])
        cosines[budget] = cosine(drift, np.asarray(zero["mean"]) - real)
        if bench.processes.first:
            print(f"budget {budget:,}: drift-error cosine {cosines[budget]:+.3f}")
        cells[budget, 0.0] = zero
        for omega in plan.omegas[1:]:
            cells[budget, omega] = bench.measure(bench.learner.extrapolate(base, auxiliary, omega), seeds)
            if bench.processes.first:
                print(f"budget {budget:,} omega {omega:g}: {bench.value(cells[budget, omega])['value']:.4g}")
    best = min((key for key in cells if key[1] > 0), key=lambda key: bench.value(cells[key])["value"])
    helps = bench.value(cells[best])["value"] < bench.value(zero)["value"]
    return Search(cells, naive, cosines, *best, helps)


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
    best = f"omega = {found.omega:g}, budget {found.budget:,}"
    plans: list[tuple[str, str, ImageModel, bool]] = [
        ("base", "omega = 0", base, False),
        ("SIMS", best, learner.extrapolate(base, auxiliary, found.omega), False),
        ("naive fine-tune", f"the auxiliary alone, budget {found.budget:,}", auxiliary, False),
    ]
    if bench.plan.settings.controls:
        further = learner.finetune(base, data, found.budget, seed=seed.child("control"))
        strength, merged = _neon(bench, base, auxiliary)
        plans += [
            ("base, twice the steps", "as many evaluations as SIMS", base, True),
            ("base trained further", f"on its own data for {found.budget:,} images", further, False),
            (
                "random direction",
                f"of the auxiliary's norm, {best}",
                _random(bench, base, auxiliary, found, seed),
                False,
            ),
            ("Neon", f"weights extrapolated, w = {strength:g} (chosen on the search seeds)", merged, False),
        ]
    arms = []
    for name, note, model, doubled in plans:
        cells = tuple(bench.measure(model, seeds, doubled=doubled) for seeds in bench.plan.confirm)
        values = tuple(bench.value(cell)["value"] for cell in cells)
        arms.append(Arm(name, note, int(cells[0]["settings"]["nfe"]), values, cells))
        if bench.processes.first:
            print(f"{name}: {arms[-1].mean:.4g} +- {arms[-1].half:.2g}")
    return arms


def _neon(bench: Bench, base: ImageModel, auxiliary: ImageModel) -> tuple[float, ImageModel]:
    """The best merged model of the grid, on the search seeds."""
    found = []
    for omega in bench.plan.omegas[1:]:
        merged = bench.learner.merge(base, auxiliary, omega)
        found.append((bench.value(bench.measure(merged, bench.plan.search))["value"], omega, merged))
    _, omega, merged = min(found, key=lambda row: row[0])
    return omega, merged


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
    if not bench.processes.first or bench.data.shape[0] not in (1, 3):
        return {}
    alone = replace(bench.processes, world=1)
    kept, bench.processes = bench.processes, alone
    try:
        drawn = {name: list(bench.stream(model, seeds)[0]) for name, model in models.items()}
    finally:
        bench.processes = kept
    return {name: np.concatenate([part[1] for part in parts]) for name, parts in drawn.items()}
