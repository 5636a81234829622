"""The search of a `sims` experiment over omega and budget: a full grid, or successive halving.

Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943) measures every candidate on few of the search seeds,
keeps the better third for three times as many, and so on to all of them. Candidates of one round share their seeds and
their n, since distances at different n do not compare. What is chosen is confirmed on seeds that no round has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from sims_core.sampling import Sampler
from sims_image.learner import ImageModel
from sims_image.metrics.kid import drift_error_cosine
from sims_image.sampling.seeds import Seeds

if TYPE_CHECKING:
    from sims_image.experiments.bench import Bench

Cell = dict[str, Any]
K = TypeVar("K", bound=Hashable)

#: one candidate in so many stays from round to round (Hyperband's choice, Li et al. 2018)
KEEP = 3
#: images of the first round, at least
LEAST = 50
#: what the sampler is retuned over: EDM's grid exponent, and shares of the highest noise level
RHOS, TOPS = (3.0, 5.0, 7.0, 10.0), (1.0, 0.5, 0.25)


@dataclass(frozen=True)
class Round(Generic[K]):
    """One round: the seeds that its candidates share, and a cell for each."""

    seeds: Seeds
    cells: dict[K, Cell]


@dataclass(frozen=True)
class Search:
    """rounds: cells by (budget, omega), the base under omega = 0 of every budget; one round is a full grid. budget,
    omega: the best with omega > 0.

    helps: whether it is better than omega = 0 in the last round. naive: cells of the auxiliaries alone, by budget.
    cosine: of the drift of self-training (from the base's samples to the auxiliary's) with the base's error (from the
    real images to its samples), in KID's kernel space, by budget: above 0, first order says that SIMS can help.
    """

    rounds: tuple[Round[tuple[int, float]], ...]
    naive: dict[int, Cell]
    cosine: dict[int, float]
    budget: int
    omega: float
    helps: bool

    @property
    def cells(self) -> dict[tuple[int, float], Cell]:
        """Of the last round, on all search seeds."""
        return self.rounds[-1].cells


def rounds(candidates: int, seeds: Seeds, *, halving: bool = True) -> tuple[Seeds, ...]:
    """The seeds of each round, increasing: all of ``seeds`` in the last one, a third of the next one's before it.

    There are as many as ``candidates`` and `LEAST` allow, one without ``halving``.
    """
    sizes = [len(seeds)]
    while halving and candidates > KEEP ** len(sizes) and sizes[0] // KEEP >= LEAST:
        sizes.insert(0, sizes[0] // KEEP)
    first = next(iter(seeds))
    return (*(Seeds.span(first, size) for size in sizes[:-1]), seeds)


def survivors(candidates: int, place: int) -> int:
    """How many candidates round ``place`` (0, 1, ...) measures."""
    for _ in range(place):
        candidates = math.ceil(candidates / KEEP)
    return candidates


def halve(
    candidates: Sequence[K],
    turns: Sequence[Seeds],
    measure: Callable[[K, Seeds], Cell],
    value: Callable[[Cell], float],
) -> tuple[list[Round[K]], K]:
    """Measure ``candidates`` round by round; (the rounds, the best of the last one). Smaller values are better."""
    found: list[Round[K]] = []
    alive = list(candidates)
    for place, seeds in enumerate(turns):
        if place:
            last = found[-1].cells
            alive = sorted(alive, key=lambda key: value(last[key]))[: math.ceil(len(alive) / KEEP)]
            alive = [key for key in candidates if key in alive]
        found.append(Round(seeds, {key: measure(key, seeds) for key in alive}))
    last = found[-1].cells
    return found, min(alive, key=lambda key: value(last[key]))


def search(bench: Bench, base: ImageModel, auxiliaries: dict[int, ImageModel]) -> Search:
    """Measure omega x budget on the search seeds."""
    plan = bench.plan
    zero = bench.measure(base, plan.search, features=True)
    real = (bench.reference.heldout or bench.reference).side.kept
    assert real is not None
    naive, cosines = {}, {}
    for budget, auxiliary in auxiliaries.items():
        naive[budget] = bench.measure(auxiliary, plan.search, features=True)
        own, others = (np.load(cell["features"]) for cell in (zero, naive[budget]))
        cosines[budget] = drift_error_cosine(base=own, auxiliary=others, real=real)
        if bench.processes.first:
            print(f"budget {budget:,}: drift-error cosine {cosines[budget]:+.3f}")

    def measure(key: tuple[int, float], seeds: Seeds) -> Cell:
        cell = bench.measure(bench.learner.extrapolate(base, auxiliaries[key[0]], key[1]), seeds)
        if bench.processes.first:
            print(f"budget {key[0]:,} omega {key[1]:g}: {bench.value(cell)['value']:.4g} (n = {len(seeds):,})")
        return cell

    found, best = halve(plan.candidates, plan.rounds, measure, lambda cell: bench.value(cell)["value"])
    whole = []
    for turn in found:
        bottom = bench.measure(base, turn.seeds)
        held = {(budget, 0.0): bottom for budget in plan.budgets}
        whole.append(Round(turn.seeds, held | turn.cells))
    helps = bench.value(whole[-1].cells[best])["value"] < bench.value(zero)["value"]
    return Search(tuple(whole), naive, cosines, *best, helps)


def planned(candidates: int, turns: Sequence[Seeds], nfe: int, base: int = 0) -> tuple[int, int]:
    """Network evaluations of (these rounds, a full grid on the last round's seeds): ``nfe`` for an image of a candidate
    and, where it is measured beside them, ``base`` for one of the base.
    """
    spent = sum(len(seeds) * (survivors(candidates, k) * nfe + base) for k, seeds in enumerate(turns))
    return spent, len(turns[-1]) * (candidates * nfe + base)


# ----------------------------------------------------------- the base's sampler


def retunings(sampler: Sampler, nfe: int) -> list[Sampler]:
    """The sampler, and Heun and Euler on EDM's grid, with as many steps as ``nfe`` evaluations allow: `RHOS` x `TOPS`.

    The lowest noise level and churn stay.
    """
    found = [at_most(sampler, nfe)]
    for name in ("heun", "euler"):
        steps = at_most(replace(sampler, name=name), nfe)
        found += [replace(steps, rho=rho, sigma_max=top * sampler.sigma_max) for rho in RHOS for top in TOPS]
    return list(dict.fromkeys(found))


def at_most(sampler: Sampler, nfe: int) -> Sampler:
    """The sampler with as many steps as ``nfe`` evaluations allow, at least the least it has."""
    steps = nfe + 1
    while steps > 2 and replace(sampler, steps=steps).nfe > nfe:
        steps -= 1
    return replace(sampler, steps=max(2, steps))
