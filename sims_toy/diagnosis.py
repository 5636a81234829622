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
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtr

from sims_core.forecast import GROUPS, Angle
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_core.slices import SlicedCdf
from sims_toy.datasets import Distribution
from sims_toy.estimators import Estimator
from sims_toy.exact import ExactLearner, bounded_distance
from sims_toy.gaussian import Gaussian, Statistics, fit, w2_squared
from sims_toy.networks.learner import UNBIASED, NetworkLearner
from sims_toy.networks.rows import RowLearner
from sims_toy.networks.settings import NetworkSettings
from sims_toy.wasserstein import draw_real

if TYPE_CHECKING:
    from sims_toy.networks.learner import NetworkLearner

Array = NDArray[np.float64]
#: Points that networks' distribution functions are read off, and synthetic points of their refit.
POINTS, REFIT = 8000, 10_000


@dataclass(frozen=True)
class Diagnosis:
    """Root-mean-square W2 of a setting's first generation and of its parts, and the angle between drift and error.

    total: base trained on the data, sampled with the sampler. data: the same with an unbiased sampler (the
    maximum-likelihood floor). sampler: the sampler's bias with the exact score. optimisation: what training adds to
    the maximum-likelihood fit of the same data (0 for the exact learner, but for an estimator's bias).
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


class RealCdf(SlicedCdf):
    """On the grid of a real distribution. real: (1, K * PLACES), its functions; of a data set, a row for each group."""

    def __init__(self, real: Gaussian | Distribution) -> None:
        if isinstance(real, Gaussian):
            super().__init__(real.mean[0].numpy(), real.cov[0].numpy())
            self.real = self.of_gaussian(real)
            return
        count = min(4 * POINTS, real.limit or 4 * POINTS)
        points = draw_real(real, count, Seed(0).child("distribution function"))
        super().__init__(points.mean(0), np.atleast_2d(np.cov(points, rowvar=False)))
        self.real = self.of_points(points, np.arange(count) % GROUPS)

    def of_gaussian(self, law: Gaussian) -> Array:
        """(R, K * PLACES) of Gaussians (R rows)."""
        mean = law.mean.numpy() @ self.directions.T
        deviation = np.sqrt(np.einsum("ki,rij,kj->rk", self.directions, law.cov.numpy(), self.directions))
        below = ndtr((self.places - mean[..., None]) / deviation[..., None])
        return np.asarray((below * self.weight[:, None]).reshape(law.rows, -1))

    def of_laws(self, base: Gaussian, auxiliary: Gaussian) -> Angle:
        """Of exact Gaussians of R trials each; rounding is neither error nor drift."""
        first = self.of_gaussian(base)
        error, drift = first - self.real, self.of_gaussian(auxiliary) - first
        for vectors in (error, drift):
            vectors[np.linalg.norm(vectors, axis=1) < 1e-9 * np.linalg.norm(self.real)] = 0
        return Angle.over(np.stack([(error**2).sum(1), (error * drift).sum(1), (drift**2).sum(1)], 1))

    def of_samples(self, base: Array, auxiliary: Array) -> Angle:
        """Of points (R, n, d) of R trained models each, row by row from the same noise; without those that diverged."""
        groups = np.arange(base.shape[1]) % GROUPS
        whole = np.isfinite(base).all((1, 2)) & np.isfinite(auxiliary).all((1, 2))
        pairs = zip(base[whole], auxiliary[whole], strict=True)
        angles = [Angle.between(self.real, *(self.of_points(x, groups) for x in pair)) for pair in pairs]
        return angles[0] if len(angles) == 1 else Angle.over(np.reshape([a.products for a in angles], (-1, 3)))


def diagnose(
    sampler: Sampler,
    real: Gaussian,
    real_size: int,
    *,
    trials: int = 400,
    seed: Seed,
    estimator: Estimator | None = None,
) -> Diagnosis:
    """The exact learner's error budget and drift-error cosine at the first generation.

    >>> real = Gaussian.single([0, 0], [[2, 1], [1, 2]])
    >>> found = diagnose(Sampler.parse("ddim:20"), real, 1000, seed=Seed(0))
    >>> f"{found.total:.2f}: data {found.data:.2f}, sampler {found.sampler:.2f}; cosine {found.angle.cosine}"
    '0.15: data 0.08, sampler 0.13; cosine 0.78 (0.76 to 0.79)'
    """
    own = ExactLearner(sampler, np.arange(trials), estimator=estimator)
    data = own.draw(real, real_size, seed=seed.child("real"))
    base = own.fit(data, seed=seed)
    endless = Statistics(
        torch.ones(trials, dtype=torch.float64), base.output.mean, base.output.cov
    )  # the base's samples, without their noise
    angle = RealCdf(real).of_laws(base.output, own.fit(endless, seed=seed).output)
    perfect = ExactLearner(sampler, noise=False)
    truth = perfect.fit(perfect.draw(real, real_size, seed=seed), seed=seed)
    known = "exact" if estimator is None or estimator.name != "capacity" else "heun:256"
    fair = Sampler.parse(known, sigma_data=sampler.sigma_data)
    trained = ExactLearner(fair, own.streams, estimator=estimator).fit(data, seed=seed).output
    likeliest = fit(data)
    return Diagnosis(
        total=math.sqrt((own.distance(base, real) ** 2).mean()),
        data=math.sqrt(float((bounded_distance(likeliest, real) ** 2).mean())),
        sampler=float(perfect.distance(truth, real)[0]),
        angle=angle,
        optimisation=0.0 if estimator is None else math.sqrt(float(w2_squared(trained, likeliest).mean())),
    )


def network_angle(
    learner: RowLearner[Any], base: Any, real: Gaussian | Distribution, real_size: int, *, seed: Seed
) -> Angle:
    """Of trained models: the base fine-tuned on `REFIT` of its samples, for as long as it was trained itself.

    Models trained on the whole data set at every step see ``real_size`` samples, so that a step costs what it did.
    """
    settings = learner.settings
    count = REFIT if settings.batch else real_size
    synthetic = learner.sample(base, count, seed=seed.child("refit"))
    budget = settings.steps * min(settings.batch or count, count)
    auxiliary = learner.finetune(base, synthetic, budget, seed=seed.child("finetune"))
    drawn = (learner.points(model, POINTS, seed=seed.child("points")).double().numpy() for model in (base, auxiliary))
    return RealCdf(real).of_samples(*drawn)  # from the same noise, so that the drift has little of it


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
