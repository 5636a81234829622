"""The learner whose models are Gaussians: training is maximum likelihood, and nothing else is approximated.

Another `sims_toy.estimators.Estimator` trains with a bias of its own; its models are Gaussians, or linear in x.
Its sampler is `sims_core.sampling` itself. For Gaussians every guided denoiser is affine in x, so a fixed-step ODE
solver is an affine map; running it on d + 1 points (the origin and the basis vectors) reads that map off, and with it
the exact distribution of the samples. Data are sufficient statistics, drawn from their exact (normal and Wishart)
distributions, so the cost depends on no data size. R cells run at once, with sizes, budgets and omegas as arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sims_core.diffusion import EDM
from sims_core.errors import InputError
from sims_core.guidance import FULL, RULES, Denoiser, GuidanceSchedule, scaled
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy import gaussian
from sims_toy.datasets import Distribution
from sims_toy.estimators import Estimator
from sims_toy.gaussian import Gaussian, Statistics
from sims_toy.linear import LinearDenoiser, between
from sims_toy.theory import Mode

#: The flow of a guided 'exact' sampler has no closed form where the covariances do not commute: it is integrated
#: this finely instead. Relative error of the variances at omega = 2: below 1e-7 for eigenvalues a factor 100 apart,
#: 1e-5 for 1,000, 1e-2 for 10,000; narrower Gaussians than that need a finer integration.
_FINE = Sampler("rk4", 128, sigma_max=1e5)
#: A row whose distance exceeds this many times the real data's spread sqrt(tr S) has diverged (our reading of "grows
#: without bound": a sampler's noise grid is finite, so that a runaway loop saturates, for DDIM-20 at about 60 times).
DIVERGED = 10.0


#: What a rule of guidance must be for Gaussians to stay Gaussians.
AFFINE = "exact Gaussians need a rule that is affine in the denoisers; networks take any"


@dataclass(frozen=True, eq=False)
class ExactModel:
    """R models: ``base``, or the SIMS combination with ``auxiliary`` at ``omega`` (R,) on a guidance schedule."""

    base: Gaussian | LinearDenoiser
    sampler: Sampler
    auxiliary: Gaussian | LinearDenoiser | None = None
    omega: Tensor | None = None
    guidance: GuidanceSchedule = FULL

    def denoise(self, x: Tensor, sigma: Tensor) -> Tensor:
        """The denoiser that the sampler sees: x (R, points, d), sigma zero-dim."""
        return self._denoiser(x, sigma)

    @property
    def _denoiser(self) -> Denoiser:
        if self.auxiliary is None or self.omega is None:
            return self.base.denoise
        return self.guidance.denoiser(self.base.denoise, self.auxiliary.denoise, self.omega)

    @cached_property
    def output(self) -> Gaussian:
        """The exact distribution of this model's samples, after the sampler."""
        if self.sampler.name == "exact":
            if isinstance(self.base, Gaussian) and (self.auxiliary is None or self.omega is None):
                return self.base
            fine = push(self._denoiser, numerical(self.sampler), self.base)
            if isinstance(self.base, LinearDenoiser) or self.omega is None:
                return fine
            same = self.omega == 0
            return Gaussian(
                torch.where(same[:, None], self.base.mean, fine.mean),
                torch.where(same[:, None, None], self.base.cov, fine.cov),
            )
        return push(self._denoiser, self.sampler, self.base)


def bounded_distance(output: Gaussian, real: Gaussian) -> np.ndarray:
    """W2 between each row of ``output`` and the real Gaussian, (R,); inf beyond `DIVERGED` times its spread."""
    w2 = gaussian.w2_squared(output, real).sqrt()
    limit = DIVERGED * real.cov.diagonal(dim1=1, dim2=2).sum().sqrt()
    return torch.where(w2 > limit, torch.tensor(float("inf"), dtype=w2.dtype), w2).numpy()


def numerical(sampler: Sampler) -> Sampler:
    """The sampler itself, or the fine integration that stands for 'exact'."""
    return sampler if sampler.steps else replace(_FINE, sigma_data=sampler.sigma_data)


def push(denoiser: Denoiser, sampler: Sampler, like: Gaussian | LinearDenoiser) -> Gaussian:
    """The Gaussian that ``sampler`` makes of N(0, I) with an affine denoiser, row by row.

    The sampler is run on the origin and the d basis vectors; the affine map x -> b + A x that it applies is read off.
    """
    d = like.dim
    points = torch.cat([torch.zeros(1, d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)])
    ends = sampler(denoiser, gaussian.rows_innermost(points.expand(like.rows, -1, -1)))
    offset = ends[:, 0]
    matrix = ends[:, 1:] - offset[:, None]  # row i is the image of basis vector i
    return Gaussian(offset, gaussian.product(matrix.mT, matrix))


def _sound(candidate: Gaussian) -> Tensor:
    """Rows (R,) that are Gaussians: finite, with a positive definite covariance."""
    finite = torch.isfinite(candidate.cov).all(dim=(1, 2)) & torch.isfinite(candidate.mean).all(1)
    safe = torch.where(finite[:, None, None], candidate.cov, torch.eye(candidate.dim, dtype=candidate.cov.dtype))
    return finite & (gaussian.eigh(safe)[0][:, 0] > 0)


def sampler_modes(
    sampler: Sampler, real: Gaussian, estimator: Estimator | None = None, step: float = 1e-6
) -> tuple[Mode, ...]:
    """Drift and gain of training and sampling together at the real Gaussian (one row), for `sims_toy.theory`.

    In the real covariance's eigenbasis the modes do not mix: one for each entry of the mean and for each pair (i, j)
    of the covariance. Drifts are read off the sampler's affine map, gains by central differences of size ``step``.
    With maximum likelihood both are the sampler's own. Shrinking mixes modes by the trace alone, which is held.
    """
    learner = ExactLearner(sampler, noise=False, estimator=estimator)
    held = learner.estimator.name == "shrink" and real.dim > 1
    values, vectors = (x[0] for x in real.eigen)
    d = real.dim

    def output(mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
        out = learner.fit(Statistics(torch.ones(1, dtype=torch.float64), mean, cov), seed=Seed(0)).output
        return out.mean[0] @ vectors, vectors.T @ out.cov[0] @ vectors

    mean0, cov0 = output(real.mean, real.cov)
    modes = []
    for i in range(d):
        shift = step * vectors[:, i]
        gain = (output(real.mean + shift, real.cov)[0] - output(real.mean - shift, real.cov)[0])[i] / (2 * step)
        modes.append(Mode(float(mean0[i] - real.mean[0] @ vectors[:, i]), float(values[i]), float(gain)))
        for j in range(i, d):
            outer = torch.outer(vectors[:, i], vectors[:, j])
            change = step * (outer + outer.T) / 2
            if held and i == j:
                change = change - step * (torch.eye(d, dtype=outer.dtype) - outer) / (d - 1)
            moved = (output(real.mean, real.cov + change)[1] - output(real.mean, real.cov - change)[1])[i, j]
            gain = moved / (2 * step * (1.0 if i == j else 0.5))
            if i == j:
                drift = float(cov0[i, i] - values[i])
                modes.append(Mode(drift, float(values[i] / 2), float(gain), variance=float(values[i])))
            else:
                noise = float(values[i] * values[j] / (values[i] + values[j]))
                modes.append(Mode(0.0, noise, float(gain)))
    return tuple(modes)


def _turned(
    base: Gaussian | LinearDenoiser, other: Gaussian | LinearDenoiser, mean: Tensor, matrix: Tensor
) -> LinearDenoiser:
    """The base moved along ``mean`` (R, d) and ``matrix`` (R, d, d) as far as ``other`` is, at every noise level."""

    def along(direction: Tensor, change: Tensor) -> Tensor:
        lengths = [gaussian.row_sum((x**2).flatten(1)).sqrt() for x in (change, direction)]
        return direction * (lengths[0] / lengths[1]).reshape(-1, *[1] * (direction.ndim - 1))

    return LinearDenoiser(
        base.mean + along(mean, other.mean - base.mean),
        lambda sigma: base.gain(sigma) + along(matrix, other.gain(sigma) - base.gain(sigma)),
    )


class ExactLearner:
    """Learner (`sims_core.learner.Learner`) over R rows of Gaussians.

    sampler: from `Sampler.parse`; 'exact' has no bias. streams: one integer per row; rows with equal numbers share
    their draws (pairs trials across omega). ddof: 0 for maximum likelihood, 1 for the unbiased covariance.
    noise: False gives the population limit (data sizes then only set the proportions of a union).
    temperature: samples from N(mu, temperature * S), the MAD paper's sampling bias lambda_s (arXiv 2307.01850).
    stop: the noise level at which the exact sampler stops: samples from N(mu, S + stop^2 I) (Khelifa et al., arXiv
    2602.16601).
    guidance: where the sampler of a guided model evaluates the auxiliary ('exact' has no steps, and an interval only).
    points: keep the moments of the very points that a network learner of the same streams draws: the network's twin.
    estimator: what training is, maximum likelihood by default. The mean is fitted in full by all of them; decay and
    early use EDM's preconditioning with the sampler's sigma_data.

    Twenty steps of DDIM shrink N(0, 1), as the affine map that they are, without a sample:

    >>> learner = ExactLearner(Sampler.parse("ddim:20"), noise=False)
    >>> data = learner.draw(Gaussian.single([0], [[1]]), 1000, seed=Seed(0))
    >>> f"{learner.fit(data, seed=Seed(0)).output.cov.item():.2f}"
    '0.89'
    """

    def __init__(
        self,
        sampler: Sampler,
        streams: Sequence[int] | np.ndarray | None = None,
        *,
        ddof: int = 0,
        noise: bool = True,
        temperature: float = 1.0,
        stop: float = 0.0,
        guidance: GuidanceSchedule | None = None,
        points: bool = False,
        estimator: Estimator | None = None,
    ) -> None:
        if not 0 < temperature <= 1:
            raise InputError("temperature", temperature, "give lambda_s in (0, 1]")
        if stop < 0 or (stop and sampler.name != "exact"):
            raise InputError("stop", stop, "a noise level at which the exact sampler stops; others end at 0")
        self.guidance = guidance or FULL
        if not RULES[self.guidance.rule].affine:
            raise InputError("guidance", str(self.guidance), AFFINE)
        if sampler.name == "exact" and self.guidance.every:
            raise InputError("guidance", str(self.guidance), "the exact sampler has no steps to hold a correction over")
        self.sampler, self.ddof, self.noise, self.temperature = sampler, ddof, noise, temperature
        self.stop = stop
        self._by_points = points
        self.estimator = estimator or Estimator()
        self.estimator.check(sampler)
        self.streams = np.asarray([0] if streams is None else streams, dtype=np.int64)

    @property
    def rows(self) -> int:
        """The number of rows R."""
        return len(self.streams)

    def fit(self, data: Statistics, *, seed: Seed, start: ExactModel | None = None) -> ExactModel:
        """The estimator's model of the data. It has one answer; only a warm early stop asks where training starts."""
        if start is None or not self.estimator.warm:
            return self._fitted(data)
        before = start.base.at(self._levels) if isinstance(start.base, LinearDenoiser) else start.base
        return self._fitted(data, before)

    def _fitted(
        self, data: Statistics, start: Gaussian | LinearDenoiser | None = None, trained: float | Tensor = 1.0
    ) -> ExactModel:
        likeliest = gaussian.fit(data, self.ddof)
        edm = EDM(self.sampler.sigma_data)
        return ExactModel(self.estimator.fit(likeliest, edm, start=start, trained=trained), self.sampler)

    def finetune(self, model: ExactModel, data: Statistics, budget: ArrayLike, *, seed: Seed) -> ExactModel:
        """Move the model the fraction eta = ``budget`` of the way to the data's fit.

        Gaussians move in (mean, covariance), other models in (mean, denoiser). A warm early stop is trained from the
        model instead, for the share eta of its time. budget: eta in [0, 1], a number or (R,). This is how eta of a
        trained network is measured, inverted.
        """
        eta = self._eta(budget)
        if self.estimator.warm:
            return self._fitted(data, model.base, eta)
        base, goal = model.base, self._fitted(data).base
        if not isinstance(base, Gaussian) or not isinstance(goal, Gaussian):
            return ExactModel(between(base, goal, eta), self.sampler)
        mean = base.mean + eta[:, None] * (goal.mean - base.mean)
        cov = base.cov + eta[:, None, None] * (goal.cov - base.cov)
        return ExactModel(Gaussian(mean, cov), self.sampler)

    def _eta(self, budget: ArrayLike) -> Tensor:
        eta = self._per_row("budget", budget)
        if bool(((eta < 0) | (eta > 1)).any()):
            raise InputError("budget", np.asarray(budget).tolist(), "the exact learner takes eta in [0, 1]")
        return eta

    @cached_property
    def _levels(self) -> list[float]:
        """The noise levels that the sampler evaluates a model at."""
        found: list[float] = []

        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            found.append(float(sigma))
            return torch.zeros_like(x)

        numerical(self.sampler)(denoiser, torch.zeros(1, 1, dtype=torch.float64))
        return found

    def sample(self, model: ExactModel, n: ArrayLike, *, seed: Seed) -> Statistics:
        """Statistics of n points (a number or (R,)) that the sampler draws from the model."""
        output = model.output
        if self.temperature != 1 or self.stop:
            left = self.stop**2 * torch.eye(output.dim, dtype=torch.float64)
            output = Gaussian(output.mean, output.cov * self.temperature + left)
        return self.draw(output, n, seed=seed)

    def points(self, model: ExactModel, n: int, *, seed: Seed) -> Tensor:
        """n points (R, n, d) of every row's model, whatever the temperature; rows of one stream share their noise."""
        output = model.output.expand(self.rows) if model.output.rows == 1 else model.output
        noise = np.stack([seed.child(int(k)).numpy().standard_normal((n, output.dim)) for k in self.streams])
        return output.mean[:, None] + gaussian.product(torch.from_numpy(noise), output.root())

    def parameters(self, model: ExactModel) -> np.ndarray:
        """The base's mean and covariance, flat: (R, d + d^2)."""
        base = model.base
        assert isinstance(base, Gaussian)
        return torch.cat([base.mean, base.cov.flatten(1)], 1).numpy()

    def negatives(self, scale: float) -> Callable[..., Statistics]:
        """A `sample` whose score is scaled by ``scale``: D' = x + scale (D - x) (Neon, arXiv 2510.03597, appendix)."""

        def draw(model: ExactModel, n: ArrayLike, *, seed: Seed) -> Statistics:
            return self.draw(push(scaled(model.denoise, scale), model.sampler, model.base), n, seed=seed)

        return draw

    def gmo(self, alpha: float) -> Callable[..., Statistics]:
        """A `sample` of GMO's strengthened generator (`Gaussian.strengthened`), for the method's ``negatives``."""
        return lambda model, n, *, seed: self.draw(model.output.strengthened(alpha), n, seed=seed)

    def draw(self, source: Gaussian | Distribution, n: ArrayLike, *, seed: Seed) -> Statistics:
        """Statistics of n points of ``source`` (R rows or single), drawn exactly at a cost that n does not change.

        Of a distribution that is no Gaussian: of the points that trained models of the same streams draw.
        """
        sizes = self._per_row("n", n)
        if bool((sizes < 0).any()):
            raise InputError("n", np.asarray(n).tolist(), "sizes cannot be negative")
        if isinstance(source, Distribution):
            whole = sizes.numpy().astype(np.int64)
            points = [source.draw(int(m), seed.child(int(k))) for m, k in zip(whole, self.streams, strict=True)]
            parts = [Statistics.of_points(torch.from_numpy(x)[None].float().double()) for x in points]
            return Statistics(sizes, torch.cat([p.mean for p in parts]), torch.cat([p.cov for p in parts]))
        source = source.expand(self.rows) if source.rows == 1 and self.rows != 1 else source
        if not self.noise:
            return Statistics(sizes, source.mean, source.cov)
        mean, scatter = self._standard_moments(sizes.numpy().astype(np.int64), source.dim, seed)
        root = source.root()
        return Statistics(
            sizes,
            source.mean + gaussian.product(root, mean.unsqueeze(2)).squeeze(2),
            gaussian.product(gaussian.product(root, scatter), root),
        )

    def extrapolate(self, base: ExactModel, auxiliary: ExactModel, omega: ArrayLike) -> ExactModel:
        """The SIMS model; its output is the sampler's affine map of the guided score (R rows)."""
        strength = self._per_row("omega", omega)
        return replace(base, auxiliary=auxiliary.base, omega=strength, guidance=self.guidance)

    def merge(self, base: ExactModel, auxiliary: ExactModel, omega: ArrayLike) -> ExactModel:
        """Neon on the parameters (mean, covariance); a result that is no covariance has diverged (NaN).

        The parameters of models that are no Gaussians are (mean, denoiser): there Neon is SIMS.
        """
        w, b, a = self._per_row("omega", omega), base.base, auxiliary.base
        if not isinstance(b, Gaussian) or not isinstance(a, Gaussian):
            return ExactModel(between(b, a, -w), self.sampler)
        mean = b.mean + w[:, None] * (b.mean - a.mean)
        return ExactModel(self._first_sound(Gaussian(mean, b.cov + w[:, None, None] * (b.cov - a.cov))), self.sampler)

    def _first_sound(self, *candidates: Gaussian) -> Gaussian:
        """Row by row the first of the candidates that is a Gaussian, NaN where none is.

        Those of a rank truncation are truncated again: combinations of singular covariances are seldom one.
        """
        nan = torch.full_like(candidates[0].cov, float("nan"))
        made = Gaussian(nan[:, 0], nan)
        for found in reversed(candidates):
            if self.estimator.name == "rank":
                found = Gaussian(found.mean, found.spectral(self.estimator.variances(found.eigen[0])))
                good = torch.isfinite(found.mean).all(1) & (found.eigen[0][:, -1] > 0)
            else:
                good = _sound(found)
            mean = torch.where(good[:, None], found.mean, made.mean)
            made = Gaussian(mean, torch.where(good[:, None, None], found.cov, made.cov))
        return made

    def rebuild(self, data: Statistics, budget: ArrayLike, *, seed: Seed) -> ExactModel:
        """A model that moved the fraction eta = ``budget`` from N(0, sigma_data^2 I), an untrained network's
        distribution under EDM's preconditioning, to the data's fit; an early stop is trained for that share of its
        time."""
        if self.estimator.name == "early":
            return self._fitted(data, trained=self._eta(budget))
        dim = data.mean.shape[1]
        start = Gaussian.single(np.zeros(dim), self.sampler.sigma_data**2 * np.eye(dim)).expand(self.rows)
        return self.finetune(ExactModel(start, self.sampler), data, budget, seed=seed)

    def perturb(self, base: ExactModel, auxiliary: ExactModel, *, seed: Seed) -> ExactModel:
        """The base moved as far as the auxiliary is from it in (mean, covariance), in a random direction.

        Where that is no covariance the opposite direction is taken, and where neither is the row has diverged (NaN).
        Models that are no Gaussians are moved in (mean, denoiser), as far at every noise level.
        """
        b, a = base.base, auxiliary.base
        numbers = np.unique(self.streams)
        draws = {int(k): seed.child(int(k)).numpy().standard_normal((b.dim + 1, b.dim)) for k in numbers}
        noise = torch.from_numpy(np.stack([draws[int(k)] for k in self.streams]))
        mean, cov = noise[:, 0], (noise[:, 1:] + noise[:, 1:].mT) / 2
        if not isinstance(b, Gaussian) or not isinstance(a, Gaussian):
            return ExactModel(_turned(b, a, mean, cov), self.sampler)
        length = ((mean**2).sum(1) + (cov**2).sum((1, 2))).sqrt()
        goal = (((a.mean - b.mean) ** 2).sum(1) + ((a.cov - b.cov) ** 2).sum((1, 2))).sqrt()
        step = goal / length
        made = [
            Gaussian(b.mean + sign * step[:, None] * mean, b.cov + sign * step[:, None, None] * cov) for sign in (1, -1)
        ]
        return ExactModel(self._first_sound(*made), self.sampler)

    def union(self, a: Statistics, b: Statistics) -> Statistics:
        """Both data sets together."""
        return gaussian.union(a, b)

    def scale(self, data: Statistics, factor: float) -> Statistics:
        """The data scaled about the origin."""
        return replace(data, mean=factor * data.mean, cov=factor**2 * data.cov)

    def distance(self, model: ExactModel, real: Gaussian) -> np.ndarray:
        """W2 between the model's samples and the real Gaussian, (R,); inf for diverged rows."""
        return bounded_distance(model.output, real)

    def _per_row(self, argument: str, value: ArrayLike) -> Tensor:
        array = (
            np.broadcast_to(np.asarray(value, dtype=np.float64), (self.rows,))
            if np.ndim(value) == 0
            else np.asarray(value, dtype=np.float64)
        )
        if array.shape != (self.rows,):
            raise InputError(argument, array.shape, f"give one number, or one per row: ({self.rows},)")
        return torch.from_numpy(np.array(array))

    def _standard_moments(self, sizes: np.ndarray, dim: int, seed: Seed) -> tuple[Tensor, Tensor]:
        """Moments of N(0, I) samples for every row, drawn once for rows that share a stream and a size."""
        order, ranks = np.unique(sizes, return_inverse=True)
        keys, inverse = np.unique(self.streams * len(order) + ranks.reshape(-1), return_inverse=True)
        pairs = np.stack([keys // len(order), order[keys % len(order)]], 1)
        moments = gaussian.point_moments if self._by_points else gaussian.standard_moments
        mean, scatter = moments(pairs[:, 1], dim, [seed.child(int(s)) for s in pairs[:, 0]])
        inverse = inverse.reshape(-1)
        return torch.from_numpy(mean[inverse]), torch.from_numpy(scatter[inverse])
