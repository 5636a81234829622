"""Searches in rounds: a full grid, or successive halving; and what a base's sampler is retuned over.

Successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943) measures every candidate on few of the search seeds,
keeps the better third for three times as many, and so on to all of them. Candidates of one round share their seeds and
their n, since distances at different n do not compare. What is chosen is confirmed on seeds that no round has seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from sims_core.sampling import Sampler
from sims_image.sampling.seeds import Seeds

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
    measure: Callable[[Sequence[K], Seeds], Iterable[Cell]],
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
        found.append(Round(seeds, dict(zip(alive, measure(alive, seeds), strict=True))))
    last = found[-1].cells
    return found, min(alive, key=lambda key: value(last[key]))


def chosen(
    candidates: Sequence[K],
    turns: Sequence[Seeds],
    measure: Callable[[Sequence[K], Seeds], Iterable[Cell]],
    value: Callable[[Cell], float],
    nfe: int,
) -> tuple[K, int]:
    """(the best of the candidates, network evaluations that took); ``nfe`` for an image of one. As `halve`."""
    return halve(candidates, turns, measure, value)[1], planned(len(candidates), turns, nfe)[0]


def planned(candidates: int, turns: Sequence[Seeds], nfe: int, base: int = 0) -> tuple[int, int]:
    """Network evaluations of (these rounds, a full grid on the last round's seeds): ``nfe`` for an image of a candidate
    and, where it is measured alongside them, ``base`` for one of the base.
    """
    spent = sum(len(seeds) * (survivors(candidates, k) * nfe + base) for k, seeds in enumerate(turns))
    return spent, len(turns[-1]) * (candidates * nfe + base)


# ----------------------------------------------------------- the base's sampler


def retunings(sampler: Sampler, nfe: int) -> list[Sampler]:
    """The sampler, and Heun and Euler on EDM's grid, with as many steps as ``nfe`` evaluations allow: `RHOS` x `TOPS`.

    The lowest noise level and churn stay.
    """
    found = [at_most(sampler, nfe)]
    if not sampler.steps:  # an adaptive solver, whose highest level may be no start for a grid
        sampler = Sampler("heun", 2, sampler.sigma_data, sampler.sigma_min)
    for name in ("heun", "euler"):
        steps = at_most(replace(sampler, name=name), nfe)
        found += [replace(steps, rho=rho, sigma_max=top * sampler.sigma_max) for rho in RHOS for top in TOPS]
    return list(dict.fromkeys(found))


def in_words(sampler: Sampler) -> str:
    """A retuned sampler with its grid."""
    return f"{sampler}, rho {sampler.rho:g}, sigma_max {sampler.sigma_max:g}"


def at_most(sampler: Sampler, nfe: int) -> Sampler:
    """The sampler with as many steps as ``nfe`` evaluations allow, at least the least; an adaptive one doubled."""
    if not sampler.steps:
        return sampler.doubled()
    steps = nfe + 1
    while steps > 2 and replace(sampler, steps=steps).nfe > nfe:
        steps -= 1
    return replace(sampler, steps=max(2, steps))
