"""What a sweep's models draw: the Gaussians of one trial, generation by generation, for its page.

A sweep's tables hold distances alone. A trial of the exact learner follows from its seed in moments, so it is run
again here and nothing is kept of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

import numpy as np
import pandas as pd

from sims_toy.grid.cells import Array, Cell, Experiment
from sims_toy.grid.run import run
from sims_toy.sweep.tables import beneath

#: generations that are shown: a loop that converges has done so by then
GENERATIONS = 30
#: what is shown of one sweep at most, cells times generations: seconds
_MOST = 200_000


def ellipses(regimes: pd.DataFrame, settings: dict[str, Any]) -> tuple[list[Array], str]:
    """(a cell's trial 0 for each row of ``regimes``: mean, mean, variance, covariance, variance of the first two
    coordinates, (generations, 5); what it is in words). Without rows, and why, where there is none to show.

    Networks are stood for by the exact learner on their own points.
    """
    learner, generations = settings["learner"], min(settings["generations"], GENERATIONS)
    if settings["real"] != "gaussian" or not (learner == "exact" or settings.get("overlay_trials")):
        return [], "What the models draw is not shown: the tables of this run hold their distances alone."
    if len(settings["real_mean"]) < 2:
        return [], "What the models draw is not shown: of one dimension there is no ellipse."
    if len(regimes) * generations > _MOST:
        return [], f"What the models draw is not shown for {len(regimes):,} cells."
    cells = list(_cells(regimes, learner))
    experiment = Experiment(
        tuple(dict.fromkeys(cells)),
        generations,
        1,
        settings["seed"],
        tuple(settings["real_mean"]),
        tuple(map(tuple, settings["real_covariance"])),
        quantities=("ellipse",),
    )
    found = dict(zip(experiment.cells, run(experiment)["ellipse"][:, 0], strict=True))
    which = "the first trial" if learner == "exact" else "the exact learner on the points of the networks' first trial"
    plane = f", its first two of {len(settings['real_mean'])} coordinates" * (len(settings["real_mean"]) > 2)
    early = f" The first {generations} generations." if generations < settings["generations"] else ""
    words = f"Two standard deviations around the mean of {which}{plane}; faint: earlier generations.{early}"
    return [found[cell] for cell in cells], words


def _cells(regimes: pd.DataFrame, learner: str) -> Iterator[Cell]:
    """The cells that rows of the table stand for, with their exact learner."""
    known = {field.name: field.default for field in fields(Cell)}
    for row in regimes.to_dict("records"):
        made = {name: row.get(name, default) for name, default in known.items()}
        cell = Cell(**{name: value for name, value in made.items() if value is not MISSING})
        yield cell if learner == "exact" else beneath(cell, "twin")


def real_ellipse(settings: dict[str, Any]) -> list[float]:
    """As a row of `ellipses`, of the real Gaussian."""
    mean, cov = np.asarray(settings["real_mean"]), np.asarray(settings["real_covariance"])
    return [*mean[:2].tolist(), *cov[[0, 0, 1], [0, 1, 1]].tolist()]
