"""A row of the study from end to end: the base, Algorithm 1, its rivals and controls, each measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sims_core.algorithm import METHODS, Given
from sims_core.forecast import outlook
from sims_core.guidance import Denoiser
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_core.slices import SlicedCdf
from sims_toy.bias.cells import Capacity, Cell
from sims_toy.bias.features import NOISE, FeatureLearner
from sims_toy.bias.measure import Truth, truth
from sims_toy.correction import Model, SelfTraining, power_law
from sims_toy.datasets import Mixture, parse_real
from sims_toy.estimators import Estimator
from sims_toy.exact import DIVERGED, ExactLearner
from sims_toy.gaussian import Gaussian
from sims_toy.networks.ensemble import Ensemble
from sims_toy.networks.learner import NetworkLearner, NetworkModel
from sims_toy.networks.mlp import Mlp
from sims_toy.networks.settings import NetworkSettings

Array = NDArray[np.float64]
Record = dict[str, Any]

#: The method's name of the records that predict.
PREDICTED = "predicted"
#: Steps of iterated SIMS, whose first is SIMS.
ROUNDS = 2
#: The real points of a base: with 1,024 per step it meets each some thirty times, too many to be learned by heart.
REAL = 200_000
#: Feature scores: the quantiles that stand for a distribution, the sampler, and the three Gaussians that are learned.
QUANTILES, FINE = 600, "heun:72"
LINE = Mixture(((-1.0,), (0.1,), (0.9,)), 0.12, (0.5, 0.2, 0.3))
#: Modes of the exact rows' power law, and their sampler.
MODES, CONVERGED = 64, "heun:128"


@dataclass(frozen=True, eq=False)
class Iterated(NetworkModel):
    """The model after some steps of theta + omega (b - G(theta)): D_b + omega sum_k (D_b - D_k)."""

    others: tuple[Ensemble, ...] = ()
    strength: float = 1.0

    @cached_property
    def denoise(self) -> Denoiser:
        """The denoiser that the sampler sees."""
        base, *others = (e.denoiser(backend=self.backend) for e in (self.base, *self.others))

        def denoiser(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
            own = base(x, sigma)
            return own + self.strength * sum(own - other(x, sigma) for other in others)

        return denoiser


class Networks(NetworkLearner):
    """The learner of networks, with the step of iterated SIMS."""

    def advance(self, model: Any, base: NetworkModel, auxiliary: NetworkModel, omega: float) -> Iterated:
        """One step of the iteration theta + omega (b - G(theta))."""
        before = model.others if isinstance(model, Iterated) else ()
        return Iterated(base.base, base.sampler, backend=base.backend, others=(*before, auxiliary.base), strength=omega)


Measure = Callable[[Any], list[Record]]
"""``model -> [record per trial]``: distance, energy, off, loss."""


@dataclass(frozen=True)
class Case:
    """What `conduct` needs of a kind of error.

    data: the base's training set. synthetic, budget: of Algorithm 1. further: the learner that trains the base further,
    and its budget, all that the auxiliary costs. whole: the base's own budget. wide: learns the rival twice as wide, if
    there is one; wide_cost: of its sample, over the base's. predict: ``(base, auxiliary) -> [record per trial]``.
    """

    learner: Any
    data: Any
    synthetic: int
    budget: float
    further: tuple[Any, float]
    whole: float
    omegas: Sequence[float]
    measure: Measure
    predict: Callable[[Any, Any], list[Record]]
    seed: Seed
    wide: Any = None
    wide_cost: float = 1.0


def conduct(case: Case) -> Iterator[Record]:
    """The records of a row, one per trial and method; the prediction comes before any guided model is sampled."""
    learner, data, seed = case.learner, case.data, case.seed
    settings: dict[str, Any] = {"n_synthetic": case.synthetic, "budget": case.budget, "seed": seed}
    base = METHODS["standard"](learner, data, seed=seed).base
    made = METHODS["sims"](Given(learner, base=base), data, omega=1.0, **settings)
    auxiliary, sims = made.auxiliary, Given(learner, base=base, auxiliary=made.auxiliary)

    def record(method: str, model: Any, omega: float = 0.0, cost: float = 1.0) -> Iterator[Record]:
        for trial, found in enumerate(case.measure(model)):
            yield {"method": method, "omega": omega, "trial": trial, "cost": cost, **found}

    for trial, foreseen in enumerate(case.predict(base, auxiliary)):
        yield {"method": PREDICTED, "omega": 1.0, "trial": trial, **foreseen}
    yield from record("standard", base)
    yield from record("auxiliary", auxiliary)
    for times in (2, 4):
        sampler = replace(learner.sampler, steps=times * learner.sampler.steps)
        yield from record(f"steps x{times}", replace(base, sampler=sampler), cost=times)
    longer, budget = case.further
    further = METHODS["continued"](Given(longer, base=base), data, budget=budget, seed=seed)
    yield from record("continued", further.model)
    if case.wide is not None:
        yield from record(
            "wide", METHODS["standard"](case.wide, data, seed=seed.child("wide")).model, 0.0, case.wide_cost
        )
    guide = METHODS["autoguidance"](Given(learner, base=base), data, budget=case.whole, omega=1.0, seed=seed).auxiliary
    for omega in case.omegas:
        yield from record("sims", learner.extrapolate(base, auxiliary, omega), omega, 2)
        yield from record("neon", learner.merge(base, auxiliary, omega), omega)
        yield from record("autoguidance", learner.extrapolate(base, guide, omega), omega, 2)
    yield from record("random", METHODS["random"](sims, data, omega=1.0, **settings).model, 1.0, 2)
    given = Given(learner, base=base, synthetic=made.synthetic)
    cold = METHODS["rebuilt"](given, data, omega=1.0, **{**settings, "budget": case.whole})
    yield from record("rebuilt", cold.model, 1.0, 2)
    if hasattr(learner, "advance"):
        yield from _iterated(case, base, auxiliary, record)


def _iterated(case: Case, base: Any, auxiliary: Any, record: Callable[..., Iterator[Record]]) -> Iterator[Record]:
    """Iterated SIMS beyond its first step, omega = 1."""
    learner, model = case.learner, case.learner.advance(base, base, auxiliary, 1.0)
    for k in range(2, ROUNDS + 1):
        seed = case.seed.child("round", k)
        synthetic = learner.sample(model, case.synthetic, seed=seed)
        model = learner.advance(model, base, learner.finetune(base, synthetic, case.budget, seed=seed), 1.0)
        yield from record(f"iterated x{k}", model, 1.0, k + 1)


# ------------------------------------------------------------------ measured by points


@dataclass(frozen=True)
class Points:
    """Measures of models that are sampled: the same start for all of them.

    drawn: whether points are draws. made: those of the last two models, which are predicted from and then measured.
    """

    learner: Any
    truth: Truth
    count: int
    drawn: bool
    seed: Seed
    made: dict[int, tuple[Any, Array]] = field(default_factory=dict)

    def of(self, model: Any) -> Array:
        """Points (R, count, d) of a model."""
        if id(model) not in self.made:
            points = self.learner.points(model, self.count, seed=self.seed.child("points"))
            if len(self.made) > 1:
                self.made.clear()
            self.made[id(model)] = (model, np.asarray(points.double().numpy()))
        return self.made[id(model)][1]

    def measure(self, model: Any) -> list[Record]:
        """The records of a model."""
        clouds = self.of(model)
        losses = self.truth.loss(model.denoise, len(clouds))
        return [{**self.held(cloud), "loss": float(loss)} for cloud, loss in zip(clouds, losses, strict=True)]

    def held(self, cloud: Array) -> Record:
        """Distances and share off the support of points (n, d); inf where they have diverged."""
        if not np.isfinite(cloud).all() or np.abs(cloud).max() > 1e6:
            return {"distance": np.inf, "energy": np.inf, "off": 1.0}
        distance, energy = self.truth.distances(cloud, drawn=self.drawn)
        if distance > DIVERGED * self.truth.spread:
            return {"distance": np.inf, "energy": np.inf, "off": 1.0}
        return {"distance": distance, "energy": energy, "off": self.truth.off_support(cloud)}

    def predict(self, base: Any, auxiliary: Any) -> list[Record]:
        """Drift against error of each trial, between sliced distribution functions (`sims_core.outlook`)."""
        both = zip(self.of(base), self.of(auxiliary), strict=True)
        real = self.truth.draw(self.count, self.seed.child("outlook", "real")) if self.drawn else self.quantiles
        return [(foreseen if self.drawn else _angle)(real, b, a) for b, a in both]

    @property
    def quantiles(self) -> Array:
        """The truth's, (count, 1), at (i + 1/2) / count."""
        known = self.truth.quantiles[0]
        at = (np.arange(self.count) + 0.5) / self.count
        return np.asarray(np.interp(at, (np.arange(len(known)) + 0.5) / len(known), known))[:, None]

    def floors(self, repeats: int) -> Iterator[Record]:
        """What real points of the same number measure."""
        for trial in range(repeats if self.drawn else 0):
            real = self.truth.draw(self.count, self.seed.child("floor", trial))
            yield {"method": "floor", "omega": 0.0, "trial": trial, "cost": 0.0, "loss": 0.0, **self.held(real)}


def foreseen(real: Array, base: Array, auxiliary: Array) -> Record:
    """Cosine, |drift| / |error| and both lengths, of draws."""
    angle = outlook(real, base, auxiliary).distributions
    return {"cosine": angle.cosine.value, "length": angle.ratio, "error": angle.error, "drift": angle.drift}


def _angle(real: Array, base: Array, auxiliary: Array) -> Record:
    """The same of quantiles, which have no chance in them."""
    space = SlicedCdf.around(real, base, auxiliary)
    p, b, a = (space.of_points(x)[0] for x in (real, base, auxiliary))
    error, drift = (float(np.linalg.norm(x)) for x in (b - p, a - b))
    return {
        "cosine": float((b - p) @ (a - b)) / (error * drift),
        "length": drift / error,
        "error": error,
        "drift": drift,
    }


# ------------------------------------------------------------------ the kinds of rows


def networks(
    cell: Cell, *, network: NetworkSettings, sampler: str, trials: int, points: int, omegas: Sequence[float], seed: Seed
) -> Iterator[Record]:
    """The records of trained networks.

    network: how they are trained, but for the cell's width and steps. sampler: as `Sampler.parse` takes it; its
    sigma_data is the data's.
    """
    real = truth(cell.data)
    settings = replace(network, width=cell.width, steps=cell.steps)
    chosen = Sampler.parse(sampler, sigma_data=real.spread)
    learner = Networks(chosen, range(trials), settings)
    data = learner.draw(parse_real(cell.data), REAL, seed=seed.child("real"))
    whole = float(cell.steps * settings.batch)
    drawing = cell.synthetic * chosen.nfe / 3  # a training step costs three evaluations of each sample
    size, wider = (Mlp(real.dim, (w,) * settings.layers).size for w in (cell.width, 2 * cell.width))
    steps = max(1, round((1.5 * whole + drawing) * size / wider / settings.batch))
    wide = Networks(chosen, range(trials), replace(settings, width=2 * cell.width, steps=steps))
    at = Points(learner, real, points, True, seed)
    case = Case(
        learner, data, cell.synthetic, whole / 2, (learner, whole / 2 + drawing), whole, omegas, at.measure,
        at.predict, seed, wide, wider / size,
    )  # fmt: skip
    yield from at.floors(trials)
    yield from conduct(case)


def features(capacity: Capacity, *, trials: int, omegas: Sequence[float], seed: Seed) -> Iterator[Record]:
    """The records of scores linear in random features, at their population optimum."""
    real = Truth(_on_the_line, _spread(LINE), 1, LINE, NOISE)
    sampler = Sampler.parse(FINE, sigma_data=real.spread)

    def learner(count: int, warm: bool) -> FeatureLearner:
        return FeatureLearner(
            sampler, range(trials), count, sigma_data=real.spread, ridge=capacity.ridge, time=capacity.time, warm=warm
        )

    own = learner(capacity.count, capacity.warm)
    at = Points(own, real, QUANTILES, False, seed)
    data = torch.from_numpy(at.quantiles)[None].expand(trials, -1, -1)
    further = (learner(capacity.count, True), 1.5)
    wide = learner(2 * capacity.count, False)
    yield from conduct(Case(own, data, QUANTILES, 1.0, further, 1.0, omegas, at.measure, at.predict, seed, wide, 2.0))


def _spread(mixture: Mixture) -> float:
    means, weights = np.asarray(mixture.means)[:, 0], np.asarray(mixture.weights)
    return float(np.sqrt(weights @ means**2 - (weights @ means) ** 2 + mixture.std**2))


def _on_the_line(n: int, seed: Seed) -> Array:
    return LINE.sample(n, seed.numpy())[0]


def exact(text: str, *, omegas: Sequence[float], seed: Seed) -> Iterator[Record]:
    """The records of an exact learner's estimator and sampler, ``ESTIMATOR[@SAMPLER]``, in the population limit."""
    name, _, sampler = text.partition("@")
    variances = power_law(MODES)
    chosen = Sampler.parse(sampler or CONVERGED, sigma_data=float(np.sqrt(variances.mean())))
    estimator = Estimator.parse(name)
    found = SelfTraining(variances, estimator, chosen)
    learner = ExactLearner(chosen, noise=False, estimator=estimator)
    longer = ExactLearner(chosen, noise=False, estimator=replace(estimator, warm=estimator.name == "early"))
    real = Gaussian.single(np.zeros(MODES), np.diag(variances))

    def measure(model: Any) -> list[Record]:
        distance = float(learner.distance(model, real)[0])
        return [{"distance": distance, "energy": distance**2, "off": np.nan, "loss": float(found.loss(_gains(model)))}]

    def predict(base: Any, auxiliary: Any) -> list[Record]:
        error = float(np.linalg.norm(found.error))
        return [{"cosine": found.cosine, "length": found.length, "error": error, "drift": error * found.length}]

    data = learner.draw(real, REAL, seed=seed)
    yield from conduct(Case(learner, data, REAL, 1.0, (longer, 1.0), 1.0, omegas, measure, predict, seed))
    if not estimator.warm:
        for k, distance in enumerate(found.iterate(1.0, ROUNDS)):
            if k > 1:
                yield {
                    "method": f"iterated x{k}", "omega": 1.0, "trial": 0, "cost": k + 1, "distance": distance,
                    "energy": distance**2, "off": np.nan, "loss": np.nan,
                }  # fmt: skip


def _gains(model: Any) -> Model:
    """An exact model by its gain of each mode; the data's modes are the axes, so that nothing mixes them."""

    def gain(sigma: torch.Tensor) -> torch.Tensor:
        axes = torch.eye(MODES, dtype=torch.float64)[None]
        matrix: torch.Tensor = (model.denoise(axes, sigma) - model.denoise(0 * axes, sigma))[0]
        return matrix.diagonal()

    return Model(gain)
