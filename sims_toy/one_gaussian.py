"""SIMS on one Gaussian, to be looked at: base, auxiliary and guided model, their samples and densities at any omega."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from sims_core.algorithm import sims
from sims_core.errors import InputError
from sims_core.guidance import Denoiser
from sims_core.lab.style import METHOD, style, subplots
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy.exact import ExactLearner, ExactModel
from sims_toy.gaussian import Gaussian
from sims_toy.sweep.figures import ellipse

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class OneGaussian:
    """Algorithm 1 carried out once with the exact learner; make it with `one_gaussian`.

    noise: starting points (n, 2) of the sampler, the same at every omega, so that a point can be followed.
    """

    real: Gaussian
    learner: ExactLearner
    base: ExactModel
    auxiliary: ExactModel
    noise: NDArray[np.float64]

    def model(self, omega: float) -> ExactModel:
        """The SIMS model at ``omega``; 0 is the base."""
        return self.learner.extrapolate(self.base, self.auxiliary, omega)

    def denoisers(self, omega: float) -> Mapping[str, Denoiser]:
        """Base, auxiliary and SIMS denoisers by name, for `sweep.figures.score_fields`."""
        return {"base": self.base.denoise, "auxiliary": self.auxiliary.denoise, "sims": self.model(omega).denoise}

    def laws(self, omega: float) -> dict[str, Gaussian]:
        """The real distribution and those of base and SIMS samples by name, for `sweep.figures.score_fields`."""
        return {"real": self.real, "base": self.base.output, "sims": self.model(omega).output}

    def samples(self, omega: float) -> NDArray[np.float64]:
        """The samples (n, 2) that the sampler makes of the starting points."""
        model = self.model(omega)
        return np.asarray(model.sampler(model.denoise, torch.from_numpy(self.noise)[None])[0].numpy())

    def over_omega(self, omegas: Sequence[float]) -> pd.DataFrame:
        """One row per omega: ``w2`` of the samples' distribution to the real one, and its two standard deviations."""
        rows = []
        for omega in omegas:
            model = self.model(omega)
            deviations = model.output.eigen[0][0].sqrt().tolist()
            row = {"omega": omega, "w2": float(self.learner.distance(model, self.real)[0])}
            rows.append(row | {"narrow": deviations[0], "wide": deviations[1]})
        return pd.DataFrame(rows)

    def draw(self, omega: float) -> Figure:
        """Samples, their one- and two-sigma ellipses over the real ones, and W2 over omega with the place marked."""
        model = self.model(omega)
        curve = self.over_omega(np.linspace(0, max(2.0, omega), 41).tolist())
        with style():
            figure, (left, right) = subplots(1, 2, figsize=(7.2, 3.5))
            left.scatter(*self.samples(omega).T, s=4, color=METHOD["sims"], alpha=0.35, lw=0)
            for radius in (1, 2):
                ellipse(left, self.real, METHOD["real"], "--", radius)
                ellipse(left, model.output, METHOD["sims"], "-", radius)
            left.set(xlim=(-4.5, 4.5), ylim=(-4.5, 4.5), aspect="equal", title=rf"Samples at $\omega$ = {omega:g}")
            left.annotate("real (dashed)", (0.03, 0.95), xycoords="axes fraction", va="top", fontsize=8)
            left.annotate("SIMS", (0.03, 0.88), xycoords="axes fraction", va="top", fontsize=8, color=METHOD["sims"])
            right.plot(curve["omega"], curve["w2"], color=METHOD["sims"])
            right.plot([omega], self.over_omega([omega])["w2"], "o", color=METHOD["sims"])
            right.set(title="Distance to the real data", xlabel=r"guidance $\omega$", ylabel=r"$W_2$", ylim=(0, None))
        return figure


def one_gaussian(
    *,
    sampler: str = "ddim:20",
    mean: Sequence[float] = (0.0, 0.0),
    covariance: Sequence[Sequence[float]] = ((2.0, 1.0), (1.0, 2.0)),
    real_size: int = 1000,
    n_synthetic: int = 10_000,
    points: int = 500,
    seed: int = 0,
) -> OneGaussian:
    """Fit a base to ``real_size`` points of a Gaussian in the plane, sample it, fit an auxiliary to the samples.

    Everything is exact but the sampler's finite steps: that is the error which one round of self-training reveals.
    Raises `InputError` for a Gaussian that is none, or not in the plane.
    """
    real = Gaussian.single(mean, covariance)
    if real.dim != 2:
        raise InputError("mean", list(mean), "give a Gaussian in the plane")
    spread = math.sqrt(float(real.cov[0].diagonal().mean()))
    learner = ExactLearner(replace(Sampler.parse(sampler), sigma_data=spread), np.arange(1))
    root = Seed(seed)
    data = learner.draw(real, real_size, seed=root.child("real"))
    found = sims(learner, data, n_synthetic=n_synthetic, budget=1.0, omega=0.0, seed=root)
    assert found.auxiliary is not None
    noise = root.child("points").numpy().standard_normal((points, 2))
    return OneGaussian(real, learner, found.base, found.auxiliary, noise)
