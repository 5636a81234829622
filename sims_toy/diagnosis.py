"""Will SIMS help here? The error budget of a setting, and the cosine between drift and error.

SIMS removes the part of the error that lies along the drift which one round of self-training reveals, and no other.
The drift is all of it: a fit of the base's samples, sampled in turn, minus those samples; what the sampler shifts and
what the fit itself shifts each time (smoothing, a network's capacity). To first order SIMS moves the samples against
it, so that at the best strength the squared error falls by the factor 1 - cos^2, before the auxiliary's own noise. A
cosine near 1 says that the error is the drift; near 0, that the base's own samples carry the error faithfully and SIMS
is blind to it. It is computed before any guidance is tried.

Both are differences of distributions, and the angle is taken where those are linear: between sliced distribution
functions (the sliced Cramer distance, which the energy distance is). Between quantiles or moments, moving mass from one
mode to another by a little and by more would be orthogonal or nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr

from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy.datasets import Distribution
from sims_toy.exact import ExactLearner
from sims_toy.gaussian import Gaussian, Statistics, fit, w2_squared
from sims_toy.networks.learner import UNBIASED, NetworkLearner
from sims_toy.networks.settings import NetworkSettings
from sims_toy.wasserstein import draw_real

if TYPE_CHECKING:
    from sims_toy.networks.learner import NetworkLearner, NetworkModel

Array = NDArray[np.float64]
#: Directions of the sliced distribution functions, and places on each (over four standard deviations of the real data
#: to either side).
DIRECTIONS, PLACES = 32, 128
#: Points that networks' distribution functions are read off, and synthetic points of their refit.
POINTS, REFIT = 8000, 10_000


@dataclass(frozen=True)
class Angle:
    """Between drift and error: mean cosine over the rows, its standard error, and the drift's length over the error's.

    Its text says what that promises.
    """

    cosine: float
    error: float
    length: float

    def __str__(self) -> str:
        return (
            f"drift-error cosine {self.cosine:.2f} ± {self.error:.2f}, the drift {self.length:.2g} times as long as "
            f"the error: {self.outlook}"
        )

    @property
    def outlook(self) -> str:
        """What the cosine promises."""
        if not self.cosine > 2 * self.error:
            return "what a round of self-training reveals does not point along the error; SIMS is not expected to help"
        return f"SIMS can remove up to about {100 * self.cosine**2:.0f} % of the squared error (sliced Cramér distance)"


@dataclass(frozen=True)
class Diagnosis:
    """Root-mean-square W2 of a setting's first generation and of its parts, and the angle between drift and error.

    total: base trained on the data, sampled with the sampler. data: the same with an unbiased sampler (the
    maximum-likelihood floor). sampler: the sampler's bias with the exact score. optimisation: what training adds to
    the maximum-likelihood fit of the same data (0 for the exact learner).
    """

    total: float
    data: float
    sampler: float
    angle: Angle
    optimisation: float = 0.0

    def __str__(self) -> str:
        return (
            f"error budget of generation 1 (root mean square W2): {self.total:.4f} from data noise {self.data:.4f}, "
            f"sampler bias {self.sampler:.4f} and optimisation {self.optimisation:.4f}; {self.angle}"
        )


class SlicedCdf:
    """Sliced distribution functions on one grid, as vectors: linear in the distribution."""

    def __init__(self, real: Gaussian | Distribution) -> None:
        """real: sets the grid; one Gaussian, or a data set, whose function is that of many points."""
        points = np.empty((0, 0))
        if isinstance(real, Gaussian):
            mean, cov = real.mean[0].numpy(), real.cov[0].numpy()
        else:
            count = min(4 * POINTS, real.limit or 4 * POINTS)
            points = draw_real(real, count, Seed(0).child("distribution function"))
            mean, cov = points.mean(0), np.atleast_2d(np.cov(points, rowvar=False))
        turns = np.pi * (np.arange(DIRECTIONS) + 0.5) / DIRECTIONS
        if len(mean) == 2:
            self.directions = np.stack([np.cos(turns), np.sin(turns)], 1)
        else:
            drawn = Seed(0).child("directions").numpy().standard_normal((DIRECTIONS, len(mean)))
            self.directions = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
        deviation = np.sqrt(np.einsum("ki,ij,kj->k", self.directions, cov, self.directions))
        self.places = (self.directions @ mean)[:, None] + deviation[:, None] * np.linspace(-4, 4, PLACES)
        self.real = self.of_gaussian(real)[0] if isinstance(real, Gaussian) else self.of_points(points)

    def of_gaussian(self, law: Gaussian) -> Array:
        """(R, DIRECTIONS * PLACES) of Gaussians (R rows)."""
        mean = law.mean.numpy() @ self.directions.T
        deviation = np.sqrt(np.einsum("ki,rij,kj->rk", self.directions, law.cov.numpy(), self.directions))
        return np.asarray(ndtr((self.places - mean[..., None]) / deviation[..., None])).reshape(law.rows, -1)

    def of_points(self, points: Array) -> Array:
        """(DIRECTIONS * PLACES,) of points (n, d); nan where one is not finite."""
        if not np.isfinite(points).all():
            return np.full(self.places.size, np.nan)
        projected = np.sort(points @ self.directions.T, axis=0)
        below = [np.searchsorted(projected[:, k], self.places[k], side="right") for k in range(DIRECTIONS)]
        return np.concatenate(below) / len(points)

    def angle(self, samples: Array, again: Array) -> Angle:
        """Between the error ``samples`` - real and the drift ``again`` - samples, both (R, DIRECTIONS * PLACES).

        samples: of the base. again: of a fit of the base's samples, by the same sampler. Rows of nan are left out; a
        row without drift has cosine 0.
        """
        whole = np.isfinite(samples).all(1) & np.isfinite(again).all(1)
        samples, again = samples[whole], again[whole]
        error, drift = samples - self.real, again - samples
        lengths = np.linalg.norm(error, axis=1), np.linalg.norm(drift, axis=1)
        floor = 1e-9 * np.sqrt(self.places.size)  # rounding is no drift
        moved = (lengths[0] > floor) & (lengths[1] > floor)
        cosine = np.where(moved, (error * drift).sum(1) / np.maximum(lengths[0] * lengths[1], floor**2), 0.0)
        if not len(cosine):
            return Angle(math.nan, math.nan, math.nan)
        share = lengths[1] / np.maximum(lengths[0], floor)
        return Angle(float(cosine.mean()), float(cosine.std() / math.sqrt(len(cosine))), float(share.mean()))


def diagnose(
    sampler: Sampler,
    real: Gaussian,
    real_size: int,
    *,
    trials: int = 400,
    seed: Seed,
    learner: type[ExactLearner] = ExactLearner,
) -> Diagnosis:
    """The exact learner's error budget and drift-error cosine at the first generation.

    learner: a subclass may fit otherwise than by maximum likelihood; its fit is what repeats a bias.
    """
    own = learner(sampler, np.arange(trials))
    base = own.fit(own.draw(real, real_size, seed=seed.child("real")), seed=seed)
    endless = Statistics(
        torch.ones(trials, dtype=torch.float64), base.output.mean, base.output.cov
    )  # the base's samples, without their noise
    cdf = SlicedCdf(real)
    angle = cdf.angle(cdf.of_gaussian(base.output), cdf.of_gaussian(own.fit(endless, seed=seed).output))
    unbiased = ExactLearner(Sampler.parse("exact"), np.arange(trials))
    perfect = ExactLearner(sampler, noise=False)
    truth = perfect.fit(perfect.draw(real, real_size, seed=seed), seed=seed)
    floor = unbiased.distance(unbiased.fit(own.draw(real, real_size, seed=seed.child("real")), seed=seed), real)
    return Diagnosis(
        total=math.sqrt((own.distance(base, real) ** 2).mean()),
        data=math.sqrt((floor**2).mean()),
        sampler=float(perfect.distance(truth, real)[0]),
        angle=angle,
    )


def network_angle(
    learner: NetworkLearner, base: NetworkModel, real: Gaussian | Distribution, real_size: int, *, seed: Seed
) -> Angle:
    """Of trained networks: the base fine-tuned on `REFIT` of its samples, for as long as it was trained itself.

    Networks trained on the whole data set at every step see ``real_size`` samples, so that a step costs what it did.
    """
    settings = learner.settings
    count = REFIT if settings.batch else real_size
    synthetic = learner.sample(base, count, seed=seed.child("refit"))
    budget = settings.steps * min(settings.batch or count, count)
    auxiliary = learner.finetune(base, synthetic, budget, seed=seed.child("finetune"))
    cdf = SlicedCdf(real)
    samples, again = (
        np.stack(
            [cdf.of_points(row) for row in learner.points(model, POINTS, seed=seed.child("points")).double().numpy()]
        )
        for model in (base, auxiliary)
    )  # from the same noise, so that the drift has little of it
    return cdf.angle(samples, again)


def diagnose_network(
    sampler: Sampler, real: Gaussian, real_size: int, settings: NetworkSettings, *, trials: int = 32, seed: Seed
) -> Diagnosis:
    """The same for trained networks: what training adds is measured with a sampler that has no bias."""
    learner = NetworkLearner(sampler, np.arange(trials), settings)
    data = learner.draw(real, real_size, seed=seed.child("real"))
    base = learner.fit(data, seed=seed.child("fit"))
    fair = replace(base, sampler=replace(UNBIASED, sigma_data=sampler.sigma_data), time=None).output
    likeliest = fit(Statistics.of_points(data.double()))
    return Diagnosis(
        total=math.sqrt((learner.distance(base, real) ** 2).mean()),
        data=math.sqrt(float(w2_squared(likeliest, real).mean())),
        sampler=diagnose(sampler, real, real_size, trials=1, seed=seed).sampler,
        angle=network_angle(learner, base, real, real_size, seed=seed),
        optimisation=math.sqrt(float(w2_squared(fair, likeliest).mean())),
    )
