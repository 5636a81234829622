"""A study over grids of cells: what its parts are, how they are run, and what that will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sims_core.lab.options import RunOptions
from sims_core.lab.runs import RunFolder, duration
from sims_core.lab.study import Frames, Study

if TYPE_CHECKING:
    from sims_toy.grid.cells import Cell, Experiment, Values


@dataclass(frozen=True)
class GridStudy(Study):
    """A study whose tables are made of the values of experiments.

    parts: experiments by name, which is that of their shards. make: from the parts' values to tables. local: parts
    whose pieces stay on this machine whatever the scheduler. alike: cells that cost the same have the same; one of each
    is then timed for an estimate, in place of some of every structure.
    """

    parts: Mapping[str, Experiment] = field(kw_only=True)
    make: Callable[[dict[str, Values]], Frames] = field(kw_only=True)
    local: tuple[str, ...] = ()
    alike: Callable[[Cell], object] | None = None

    @property
    def experiment(self) -> Experiment:
        """The first part: the experiment itself."""
        return next(iter(self.parts.values()))

    def compute(self, folder: RunFolder, options: RunOptions, *, progress: bool) -> Frames:
        """Run the parts, each with the pieces that the folder has."""
        import joblib

        from sims_toy.grid.run import run

        values = {}
        for name, part in self.parts.items():
            here: dict[str, Any] = (
                {} if name in self.local else {"chunk": options.chunk, "scheduler": options.scheduler}
            )
            workers = options.workers or int(joblib.cpu_count())
            values[name] = run(part, label=name, folder=folder, workers=workers, progress=progress, **here)
        return self.make(values)

    def cost(self, *, estimate: bool) -> list[tuple[str, str]]:
        """The parts' sizes and, with ``estimate``, the time of one core."""
        lines = []
        for name, part in self.parts.items():
            loops = len(part.cells) * part.trials
            size = f"{len(part.cells)} cells x {part.trials} trials = {loops} loops of {part.generations} generations"
            lines.append((f"part {name}", size))
        if estimate:
            known: dict[object, tuple[float, float]] = {}
            seconds = sum(_estimate(part, self.alike, known) for part in self.parts.values())
            lines.append(("estimate", f"about {duration(seconds)} of one core, on this machine"))
        return lines


def _estimate(
    experiment: Experiment, alike: Callable[[Cell], object] | None, known: dict[object, tuple[float, float]]
) -> float:
    """CPU-seconds: each kind of cells timed on a small piece, for one generation and for a few.

    known: what a row takes in its first generation and in later ones, by kind, filled in where cells are ``alike``.
    """
    from sims_toy.grid.measure import measurer

    counts: dict[object, list[Cell]] = {}
    for cell in experiment.cells:
        sizes = () if measurer(experiment, cell.learner).mixes_sizes else cell.sizes
        counts.setdefault(alike(cell) if alike else (cell.structure, sizes), []).append(cell)
    total = 0.0
    for kind, cells in counts.items():
        few = tuple(cells[-1:] if alike else cells[-8:])  # the largest omegas: no work shared with omega = 0
        enough = 25 if measurer(experiment, few[0].learner).mixes_sizes else 4 if alike else 2
        rows = min(enough, experiment.trials)
        first, later = known[kind] if kind in known else _timed(replace(experiment, cells=few, trials=rows))
        if alike:
            known[kind] = first, later
        total += (first + later * (experiment.generations - 1)) * len(cells) * experiment.trials
    return total


def _timed(probe: Experiment) -> tuple[float, float]:
    """CPU-seconds of a row's first generation and of a later one; a short training goes before, to warm up."""
    from sims_toy.grid.run import run

    short = min(3, probe.generations)
    brief = None if probe.network is None else replace(probe.network, steps=10)
    spent = []
    for part in (
        replace(probe, generations=1, network=brief),
        replace(probe, generations=1),
        replace(probe, generations=short),
    ):
        started = time.process_time()
        run(part)
        spent.append((time.process_time() - started) / (len(probe.cells) * probe.trials))
    return spent[1], max((spent[2] - spent[1]) / max(short - 1, 1), 1e-9)
