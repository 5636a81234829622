"""Cells and experiments: one setting of every axis, and the grid of them that a run measures.

What a cell's trial gives depends on the run's seed, the trial and the cell alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError
from sims_core.sampling import Sampler
from sims_toy.datasets import Distribution, parse_real
from sims_toy.flows.settings import FlowSettings
from sims_toy.gaussian import Gaussian
from sims_toy.networks.settings import NetworkSettings

Array = NDArray[np.float64]
Values = dict[str, Array]
"""Quantity -> (cells, trials, generations, ...)."""


@dataclass(frozen=True)
class Cell:
    """One setting of every axis.

    reference: the sampler of the standard cell that it is compared with. temperature: the sampling bias lambda_s of
    the loop's synthetic data. pollution: |D_p|. real: 'gaussian' (the experiment's), or a name of `sims_toy.datasets`.
    initial_size: the first real data set's size where it is not ``real_size`` (0), which sets the fresh ones'.
    guidance: a `sims_core.guidance.GuidanceSchedule`, where the sampler evaluates the auxiliary. estimator: of the
    exact learner (`sims_toy.estimators.Estimator`).
    """

    learner: str
    method: str
    loop: str
    sampler: str
    real_size: int
    synthetic_size: int
    auxiliary_size: int = 0
    budget: str = "0"
    omega: float = 0.0
    auxiliary_data: str = "none"
    reference: str = ""
    temperature: float = 1.0
    pollution: int = 0
    real: str = "gaussian"
    initial_size: int = 0
    guidance: str = "full"
    estimator: str = "mle"

    @property
    def structure(self) -> tuple[object, ...]:
        """What cells that run side by side must share; sizes, budgets and omegas may differ."""
        way = (self.learner, self.method, self.loop, self.sampler, self.guidance, self.estimator)
        return (*way, self.auxiliary_data, self.temperature, self.real)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of its data sets, which networks side by side must share too."""
        return (self.real_size, self.synthetic_size, self.auxiliary_size, self.pollution, self.initial_size)


#: of an experiment, and of a data set of networks
_MOST_VALUES, _MOST_POINTS = 200_000_000, 1_000_000


@dataclass(frozen=True)
class Experiment:
    """A grid of cells with what they share. Everything here decides the result; nothing else does.

    network: of the trained learners.
    quantities: what is measured in every generation (`sims_toy.grid.measure.QUANTITIES`). ddof: of the exact learner's
    covariance, 0 for maximum likelihood and 1 for the unbiased one. measurer: how its cells are run, where not as
    `sims_toy.grid.measure.LEARNERS` says.
    """

    cells: tuple[Cell, ...]
    generations: int
    trials: int
    seed: int
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]
    network: NetworkSettings | FlowSettings | None = None
    quantities: tuple[str, ...] = ("w2",)
    ddof: int = 0
    measurer: Measurer | None = None

    def __post_init__(self) -> None:
        """Raise `InputError` for more than a run can hold."""
        values = len(self.cells) * self.trials * self.generations
        if values > _MOST_VALUES:
            size = f"{len(self.cells)} cells x {self.trials} trials x {self.generations} generations"
            raise InputError("grid", size, f"a run holds at most {_MOST_VALUES:,} distances; ask for less")
        for cell in self.cells:
            if self.network is not None and max(cell.sizes) > _MOST_POINTS:
                raise InputError("points", max(cell.sizes), f"networks are trained on at most {_MOST_POINTS:,}")

    def source(self, cell: Cell) -> Gaussian | Distribution:
        """The real distribution of a cell."""
        return Gaussian.single(self.mean, self.covariance) if cell.real == "gaussian" else parse_real(cell.real)


@dataclass(frozen=True)
class Measurer:
    """How a learner is made and run: rows per piece of work, whether sizes may differ in it, least trials to share.

    measure: ``(experiment, cells, trials) -> Values``; like make, a function that another process can import. parse:
    reads its samplers, as `Sampler.parse` does.
    """

    make: Callable[[Experiment, Cell, Any, Any], Any]
    chunk: int
    mixes_sizes: bool
    least_trials: int
    measure: Callable[[Experiment, Sequence[Cell], Sequence[int]], Values]
    parse: Callable[..., Any] = Sampler.parse
