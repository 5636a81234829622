"""What a piece of work does: run its loops with a learner, and measure every generation.

`LEARNERS` says how a learner is run, `QUANTITIES` what can be measured; adding one of either is a function and a line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sims_core.algorithm import AUXILIARY_DATA, METHODS, Trained
from sims_core.errors import InputError, choose
from sims_core.flow import VelocitySampler
from sims_core.guidance import GuidanceSchedule
from sims_core.lab.grids import parse_budget
from sims_core.loop import Generation, parse_policy, self_consuming_loop
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy import wasserstein
from sims_toy.estimators import Estimator
from sims_toy.exact import ExactLearner
from sims_toy.flows.learner import DensitySampler, FlowLearner
from sims_toy.flows.settings import FlowSettings
from sims_toy.gaussian import Gaussian
from sims_toy.grid.cells import Array, Cell, Experiment, Measurer, Values
from sims_toy.networks.learner import NetworkLearner
from sims_toy.networks.settings import NetworkSettings

if TYPE_CHECKING:
    from sims_toy.datasets import Distribution

#: Points of the empirical distances: generated and real ones, as many of each.
POINTS = 1000


def measure(experiment: Experiment, cells: Sequence[Cell], trials: Sequence[int]) -> Values:
    """The self-consuming loop of every (cell, trial) at once, and its quantities generation by generation."""
    first = cells[0]
    source = experiment.source(first)
    real = standard(source)
    kind = LEARNERS[first.learner]
    sampler = kind.parse(first.sampler, sigma_data=spread(real))
    learner = kind.make(experiment, first, sampler, np.tile(trials, len(cells)))
    seed = Seed(experiment.seed)

    def per_row(values: Sequence[float]) -> Array:
        return np.repeat(np.asarray(values, dtype=np.float64), len(trials))

    policy = parse_policy(first.loop)
    if experiment.network is not None and experiment.network.start == "warm":
        policy = replace(policy, warm=True)
    real_size = per_row([c.real_size for c in cells])
    first_size = per_row([c.initial_size or c.real_size for c in cells])
    data = learner.draw(real, first_size, seed=seed.child("real"))
    pollution = None
    if any(c.pollution for c in cells):  # from a previous-generation model: one of the real data alone
        earlier = kind.parse(first.reference or first.sampler, sigma_data=spread(real))
        other = kind.make(experiment, first, earlier, learner.streams)
        before = other.fit(data, seed=seed.child("previous"))
        pollution = other.sample(before, per_row([c.pollution for c in cells]), seed=seed.child("pollution"))
    loop = self_consuming_loop(
        learner,
        data,
        method=bind_method(
            first,
            learner,
            n_synthetic=per_row([c.auxiliary_size for c in cells]),
            budget=per_row([parse_budget("budget", c.budget).value for c in cells]),
            omega=per_row([c.omega for c in cells]),
            pollution=pollution,
        ),
        policy=policy,
        n_synthetic=per_row([c.synthetic_size for c in cells]),
        generations=experiment.generations,
        seed=seed,
        fresh=lambda stream: learner.draw(real, real_size, seed=stream),
        pollution=pollution,
    )
    found: dict[str, list[Array]] = {name: [] for name in experiment.quantities}
    for generation in loop:
        moment = Moment(learner, generation, source, seed.child("evaluation", generation.index))
        for name in experiment.quantities:
            found[name].append(quantity(name)(moment))
    shape = (len(cells), len(trials))
    stacked = {name: np.stack(values, axis=1) for name, values in found.items()}  # (rows, generations, ...)
    return {name: values.reshape(*shape, *values.shape[1:]) for name, values in stacked.items()}


def standard(real: Gaussian | Distribution) -> Gaussian | Distribution:
    """The real distribution that learners see (`Distribution.standard`)."""
    return real if isinstance(real, Gaussian) else real.standard


def spread(real: Gaussian | Distribution) -> float:
    """The root mean square standard deviation of the data that learners see: sigma_data."""
    if isinstance(real, Gaussian):
        return float(np.sqrt(real.cov[0].diagonal().numpy().mean()))
    return real.standard.spread


# ------------------------------------------------------------------ methods


def parse_reading(argument: str, text: str) -> tuple[str, float]:
    """What the auxiliary is trained on: ``synthetic``, or ``synthetic@0.9`` for negatives drawn with scaled scores."""
    name, at, scale = text.partition("@")
    choose(argument, name, AUXILIARY_DATA)
    if not at:
        return name, 1.0
    try:
        value = float(scale)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(argument, text, f"write {name}@Z with a score scale Z > 0, such as {name}@0.9")
    return name, value


def bind_method(
    cell: Cell, learner: Any, *, pollution: Any = None, **settings: Any
) -> Callable[..., Trained[Any, Any]]:
    """The cell's method of `sims_core.algorithm` with its settings bound.

    settings: n_synthetic, budget and omega. pollution: D_p, which the reading 'pollution' trains the auxiliary on.
    """
    method = METHODS[cell.method]
    if cell.auxiliary_data == "pollution":
        return method.bind(auxiliary_data=lambda *_: pollution, **settings)
    if cell.auxiliary_data != "none":
        reading, scale = parse_reading("auxiliary_data", cell.auxiliary_data)
        settings["auxiliary_data"] = AUXILIARY_DATA[reading]
        settings["negatives"] = None if scale == 1 else learner.negatives(scale)
    return method.bind(**settings)


# --------------------------------------------------------------- quantities


@dataclass
class Moment:
    """A generation about to be measured; what several quantities need is computed once."""

    learner: Any
    generation: Generation[Any, Any]
    real: Gaussian | Distribution
    seed: Seed

    @cached_property
    def points(self) -> Array:
        """`POINTS` samples of every row's model, (R, n, d), from streams of their own; NaN for diverged rows."""
        drawn = self.learner.points(self.generation.model, POINTS, seed=self.seed.child("generated"))
        points = np.asarray(drawn, dtype=np.float64)
        return points if self._gaussian else self.real.restored(points)  # type: ignore[union-attr]

    @property
    def _gaussian(self) -> bool:
        return isinstance(self.real, Gaussian)

    @property
    def unit(self) -> float:
        """What a length of 1 to the learner is in the data's own units."""
        return 1.0 if self._gaussian else self.real.scale  # type: ignore[union-attr]

    def real_points(self, row: int) -> Array:
        """As many real points (n, d) for a row; rows of one trial share them."""
        stream = self.seed.child("real", int(self.learner.streams[row]))
        return wasserstein.draw_real(self.real, POINTS, stream)

    def each(self, distance: Callable[[Array, Array], float]) -> Array:
        """A distance between generated and real points, (R,); inf for diverged rows."""
        whole = [bool(np.isfinite(p).all()) for p in self.points]
        return np.array([distance(p, self.real_points(i)) if whole[i] else np.inf for i, p in enumerate(self.points)])


def _moments(moment: Moment) -> Array:
    """W2 between the Gaussian of the samples' moments and the real Gaussian: closed form, no floor."""
    return np.asarray(moment.learner.distance(moment.generation.model, moment.real))


def _variance(moment: Moment) -> Array:
    """Total variance (trace of the covariance) of the model's samples, by its moments."""
    cov = moment.generation.model.output.cov
    return np.asarray(cov.diagonal(dim1=1, dim2=2).sum(1).numpy()) * moment.unit**2


def _log_volume(moment: Moment) -> Array:
    """ln det / d of the samples' covariance, by its moments: the mean log-variance; -inf once it is singular."""
    cov = moment.generation.model.output.cov
    logs = np.asarray([np.linalg.slogdet(c)[1] / len(c) for c in cov.numpy()], dtype=np.float64)
    return logs + 2 * math.log(moment.unit)


def _wander(moment: Moment) -> Array:
    """Squared distance of the samples' mean from the real one."""
    shift = moment.generation.model.output.mean - torch.as_tensor(_real_mean(standard(moment.real)))
    return np.asarray((shift**2).sum(1).numpy()) * moment.unit**2


def _ellipse(moment: Moment) -> Array:
    """Mean, mean, variance, covariance, variance of the samples' first two coordinates: (R, 5)."""
    output = moment.generation.model.output
    return np.column_stack([output.mean[:, :2].numpy(), output.cov.numpy()[:, [0, 0, 1], [0, 1, 1]]])


def _real_mean(real: Gaussian | Distribution) -> Array:
    return np.asarray(real.mean[0].numpy() if isinstance(real, Gaussian) else real.reference.mean(0))


def _weights(moment: Moment) -> Array:
    """The base's parameters (of `standard` data), as the learner counts them: (R, P)."""
    return np.asarray(moment.learner.parameters(moment.generation.trained.base))


#: name -> function of a `Moment` that gives (R, ...); '{name}:{number}' hands the number on.
QUANTITIES: dict[str, Callable[..., Array]] = {
    "w2": _moments,
    "variance": _variance,
    "log_volume": _log_volume,
    "mean_sq": _wander,
    "ellipse": _ellipse,
    "emd": lambda moment: moment.each(wasserstein.exact),
    "sliced": lambda moment: moment.each(wasserstein.sliced),
    "points": lambda moment, count: moment.points[:, :count],
    "weights": _weights,
    "effective": lambda moment: moment.generation.model.worth[0],
    "acceptance": lambda moment: moment.generation.model.worth[1],
}


def quantity(name: str) -> Callable[[Moment], Array]:
    """The function that measures ``name``."""
    kind, colon, number = name.partition(":")
    found = QUANTITIES[choose("quantity", kind, QUANTITIES)]
    return (lambda moment: found(moment, int(number))) if colon else found


# ------------------------------------------------------------------ learners


def _exact(experiment: Experiment, cell: Cell, sampler: Sampler, streams: Array, *, points: bool = False) -> Any:
    schedule = GuidanceSchedule.parse(cell.guidance)
    return ExactLearner(
        sampler,
        streams,
        temperature=cell.temperature,
        ddof=experiment.ddof,
        guidance=schedule,
        estimator=Estimator.parse(cell.estimator),
        points=points,
    )


def _network(experiment: Experiment, cell: Cell, sampler: Sampler, streams: Array) -> Any:
    schedule = GuidanceSchedule.parse(cell.guidance)
    assert not isinstance(experiment.network, FlowSettings)
    return NetworkLearner(sampler, streams, experiment.network, temperature=cell.temperature, guidance=schedule)


def _flow(experiment: Experiment, cell: Cell, sampler: DensitySampler, streams: Array) -> Any:
    """A guided row whose weights degenerate has diverged: the others continue."""
    assert not isinstance(experiment.network, NetworkSettings)
    return FlowLearner(sampler, streams, experiment.network, temperature=cell.temperature, strict=False)


def parse_velocity(text: str, *, argument: str = "sampler", sigma_data: float = 0.5) -> VelocitySampler:
    """`VelocitySampler.parse`; the data's spread plays no part."""
    return VelocitySampler.parse(text, argument=argument)


LEARNERS: dict[str, Measurer] = {
    "exact": Measurer(_exact, 2048, True, 25, measure),
    "twin": Measurer(partial(_exact, points=True), 2048, True, 1, measure),  # on the networks' own points
    "network": Measurer(_network, 24, False, 1, measure),
    "flow-matching": Measurer(_network, 24, False, 1, measure, parse_velocity),  # networks of velocities
    "flow": Measurer(_flow, 24, False, 1, measure, DensitySampler.parse),
}


def measurer(experiment: Experiment, learner: str) -> Measurer:
    """How the cells of ``learner`` in ``experiment`` are run."""
    return experiment.measurer or LEARNERS[learner]
