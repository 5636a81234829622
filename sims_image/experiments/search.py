"""The search of a `sims` experiment over omega and budget, and the drift of self-training against the base's error."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sims_core.forecast import Outlook, outlook
from sims_image.experiments.bench import Bench
from sims_image.experiments.halving import Cell, Round, halve
from sims_image.experiments.plan import Plan
from sims_image.learner import ImageModel
from sims_image.sampling.seeds import Seeds


@dataclass(frozen=True)
class Search:
    """rounds: cells by (budget, omega), the base under omega = 0 of every budget; one round is a full grid. budget,
    omega: the best with omega > 0.

    helps: whether it is better than omega = 0 in the last round. naive: cells of the auxiliaries alone, by budget.
    outlooks: what the samples of base and auxiliary say beforehand, in features, by budget.
    """

    rounds: tuple[Round[tuple[int, float]], ...]
    naive: dict[int, Cell]
    outlooks: dict[int, Outlook]
    budget: int
    omega: float
    helps: bool

    @property
    def cells(self) -> dict[tuple[int, float], Cell]:
        """Of the last round, on all search seeds."""
        return self.rounds[-1].cells


def search(plan: Plan, bench: Bench, base: ImageModel, auxiliaries: dict[int, ImageModel]) -> Search:
    """Measure omega x budget on the search seeds."""
    zero = bench.measure(base, plan.search, features=True)
    real = (bench.reference.heldout or bench.reference).side.kept
    assert real is not None
    naive, outlooks = {}, {}
    for budget, auxiliary in auxiliaries.items():
        naive[budget] = bench.measure(auxiliary, plan.search, features=True)
        own, others = (np.load(cell["features"]) for cell in (zero, naive[budget]))
        outlooks[budget] = outlook(real, own, others)
        if bench.processes.first:
            print(f"budget {budget:,}: {outlooks[budget].distributions}")

    def measure(keys: Sequence[tuple[int, float]], seeds: Seeds) -> Iterator[Cell]:
        models = [bench.learner.extrapolate(base, auxiliaries[budget], omega) for budget, omega in keys]
        for (budget, omega), cell in zip(keys, bench.several([(m, seeds, {}) for m in models]), strict=True):
            if bench.processes.first:
                print(f"budget {budget:,} omega {omega:g}: {bench.value(cell)['value']:.4g} (n = {len(seeds):,})")
            yield cell

    found, best = halve(plan.candidates, plan.rounds, measure, bench.distance)
    whole = []
    for turn in found:
        bottom = bench.measure(base, turn.seeds)
        held = {(budget, 0.0): bottom for budget in plan.budgets}
        whole.append(Round(turn.seeds, held | turn.cells))
    helps = bench.value(whole[-1].cells[best])["value"] < bench.value(zero)["value"]
    return Search(tuple(whole), naive, outlooks, *best, helps)
