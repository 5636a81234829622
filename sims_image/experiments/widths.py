"""The search of a `sims` experiment over EMA widths of base and auxiliary, at the omega found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sims_image.experiments.bench import Bench
from sims_image.learner import ImageModel
from sims_image.models import checkpoints
from sims_image.models.posthoc import at_width
from sims_image.sampling.seeds import Seeds


@dataclass(frozen=True)
class Widths:
    """The best pair of a search, and all that was tried: (base width, auxiliary width, the distance's estimate)."""

    base: ImageModel
    auxiliary: ImageModel
    widths: tuple[float | None, float | None]
    cells: tuple[tuple[float | None, float | None, dict[str, float]], ...]

    @property
    def lines(self) -> list[str]:
        """For people."""
        told = [f"base EMA {b}, auxiliary EMA {a}: {cell['value']:.4g}" for b, a, cell in self.cells]
        return [*told, f"chosen: base EMA {self.widths[0]}, auxiliary EMA {self.widths[1]}"]


def search(
    bench: Bench,
    seeds: Seeds,
    base: ImageModel,
    auxiliary: ImageModel,
    omega: float,
    base_widths: Sequence[float],
    auxiliary_widths: Sequence[float],
) -> Widths:
    """The pair of widths with the least distance on ``seeds`` at ``omega``.

    An empty grid leaves that model as it is (width: its own, None where it has none).
    """

    def models(model: ImageModel, widths: Sequence[float], whose: str) -> list[tuple[float | None, ImageModel]]:
        if not widths:
            return [(checkpoints.summary(model.base).record.ema.width, model)]

        def made(width: float, write: bool) -> Path:
            return at_width(model.base, width, argument=f"{whose}_ema", base=whose, write=write)

        found: list[tuple[float | None, ImageModel]] = []
        for width in widths:
            bench.processes.together(lambda w=width: made(w, True))  # type: ignore[misc]
            found.append((width, replace(model, base=made(width, False))))
        return found

    pairs = [
        (*one, *other)
        for one in models(base, base_widths, "base")
        for other in models(auxiliary, auxiliary_widths, "auxiliary")
    ]
    cells = bench.several(
        [(bench.learner.extrapolate(first, second, omega), seeds, {}) for _, first, _, second in pairs]
    )
    tried = [
        (bench.value(cell)["value"], wide, narrow, bench.value(cell), first, second)
        for (wide, first, narrow, second), cell in zip(pairs, cells, strict=True)
    ]
    _, wide, narrow, _, first, second = min(tried, key=lambda row: row[0])
    found = Widths(first, second, (wide, narrow), tuple((b, a, cell) for _, b, a, cell, _, _ in tried))
    if bench.processes.first:
        print("\n".join(found.lines))
    return found
