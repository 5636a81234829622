"""Will SIMS help here? The error budget of a setting, and the cosine between drift and error.

SIMS removes the part of the error that lies along the drift which one round of self-training reveals, and no other:
at the best strength the squared error falls by the factor 1 - cos^2, before the auxiliary's own noise. A cosine near
1 says that the error is the drift; near 0, that the base's own samples carry the error faithfully and SIMS is blind
to it. It is computed before any guidance is tried.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy.exact import ExactLearner
from sims_toy.gaussian import Gaussian, Statistics, cosine, fit, tangent, w2_squared
from sims_toy.settings import NetworkSettings


@dataclass(frozen=True)
class Diagnosis:
    """Root-mean-square W2 of a setting's first generation and of its parts, and the drift-error cosine.

    total: base trained on the data, sampled with the sampler. data: the same with an unbiased sampler (the
    maximum-likelihood floor). sampler: the sampler's bias with the exact score. optimisation: what training adds to
    the maximum-likelihood fit of the same data (0 for the exact learner). cosine: mean over trials of the cosine of
    the angle between drift and error, with its standard error.
    """

    total: float
    data: float
    sampler: float
    cosine: float
    cosine_se: float
    optimisation: float = 0.0

    def __str__(self) -> str:
        return (
            f"error budget of generation 1 (root mean square W2): {self.total:.4f} from data noise {self.data:.4f}, "
            f"sampler bias {self.sampler:.4f} and optimisation {self.optimisation:.4f}; drift-error "
            f"cosine {self.cosine:.2f} ± {self.cosine_se:.2f}: {self.outlook}"
        )

    @property
    def outlook(self) -> str:
        """What the cosine promises."""
        if self.cosine <= 2 * self.cosine_se:
            return "the drift does not point along the error, and no omega > 0 is expected to help"
        return f"SIMS can remove up to about {100 * self.cosine**2:.0f} % of the squared error"


def drift_error_cosine(base: Gaussian, samples: Gaussian, real: Gaussian) -> NDArray[np.float64]:
    """Cosine (R,) between the drift (a fit of the base's samples minus the base) and the error of those samples.

    base: the model's own distribution, unbiased. samples: the distribution that its sampler makes of it. All in the
    real Gaussian's W2 coordinates (`sims_toy.gaussian.tangent`).
    """
    error = tangent(samples, real)
    return np.asarray(cosine(error - tangent(base, real), error).numpy())


def diagnose(sampler: Sampler, real: Gaussian, real_size: int, *, trials: int = 400, seed: Seed) -> Diagnosis:
    """The exact learner's error budget and drift-error cosine at the first generation."""
    learner = ExactLearner(sampler, np.arange(trials))
    base = learner.fit(learner.draw(real, real_size, seed=seed.child("real")), seed=seed)
    unbiased = ExactLearner(Sampler.parse("exact"), np.arange(trials))
    perfect = ExactLearner(sampler, noise=False)
    truth = perfect.fit(perfect.draw(real, real_size, seed=seed), seed=seed)
    cosines = drift_error_cosine(base.base, base.output, real)
    floor = unbiased.distance(unbiased.fit(learner.draw(real, real_size, seed=seed.child("real")), seed=seed), real)
    return Diagnosis(
        total=math.sqrt((learner.distance(base, real) ** 2).mean()),
        data=math.sqrt((floor**2).mean()),
        sampler=float(perfect.distance(truth, real)[0]),
        cosine=float(cosines.mean()),
        cosine_se=float(cosines.std() / math.sqrt(trials)),
    )


def diagnose_network(
    sampler: Sampler, real: Gaussian, real_size: int, settings: NetworkSettings, *, trials: int = 32, seed: Seed
) -> Diagnosis:
    """The same for trained networks: what training adds is measured with a sampler that has no bias."""
    from sims_toy.network import UNBIASED, NetworkLearner

    learner = NetworkLearner(sampler, np.arange(trials), settings)
    data = learner.draw(real, real_size, seed=seed.child("real"))
    base = learner.fit(data, seed=seed.child("fit"))
    fair = replace(base, sampler=replace(UNBIASED, sigma_data=sampler.sigma_data), time=None).output
    likeliest = fit(Statistics.of_points(data.double()))
    cosines = drift_error_cosine(fair, base.output, real)
    return Diagnosis(
        total=math.sqrt((learner.distance(base, real) ** 2).mean()),
        data=math.sqrt(float(w2_squared(likeliest, real).mean())),
        sampler=diagnose(sampler, real, real_size, trials=1, seed=seed).sampler,
        cosine=float(cosines.mean()),
        cosine_se=float(cosines.std() / math.sqrt(trials)),
        optimisation=math.sqrt(float(w2_squared(fair, likeliest).mean())),
    )
