"""The learner over normalizing flows: exact likelihoods, and SIMS on densities instead of scores.

A guided model is p proportional to p_base^(1 + omega) / p_aux^omega (`sims_core.density`), drawn as its sampler says.
In the base's noise z that is N(z) (p_base / p_aux)^omega, where particles move easily whatever the data look like.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sims_core.density import Drawn, annealed_langevin, importance
from sims_core.errors import InputError, choose
from sims_core.guidance import FULL, GuidanceSchedule
from sims_core.seeds import Seed
from sims_toy.flows.flow import Flows, shape_of, train
from sims_toy.flows.settings import FlowSettings
from sims_toy.gaussian import Gaussian
from sims_toy.networks.learner import quadrature
from sims_toy.networks.rows import RowLearner
from sims_toy.networks.schedule import Training


@dataclass(frozen=True)
class DensitySampler:
    """How guided densities are drawn: ``importance:M``, M particles per point, or ``langevin:K``, K stages.

    A flow without guidance is drawn exactly, by either.
    """

    name: str
    count: int

    steps = 0  # none: a draw is one pass of the flow
    #: Langevin steps a stage
    MOVES = 5

    @classmethod
    def parse(cls, text: str, *, argument: str = "sampler", sigma_data: float = 0.5) -> DensitySampler:
        """Read one. Raises `InputError` naming ``argument`` for anything else."""
        name, _, number = text.partition(":")
        choose(argument, name, ("importance", "langevin"))
        if not re.fullmatch("0*[1-9][0-9]{0,3}", number):
            what = (
                "particles per point, such as importance:16" if name == "importance" else "stages, such as langevin:20"
            )
            raise InputError(argument, text, f"write {name}:N with 1 to 9999 {what}")
        return cls(name, int(number))

    def __str__(self) -> str:
        return f"{self.name}:{self.count}"

    @property
    def nfe(self) -> int:
        """Passes of one flow a sample takes."""
        return 1

    def evaluations(self, schedule: GuidanceSchedule = FULL) -> tuple[int, int]:
        """How often a guided sample evaluates (base, auxiliary); a Langevin step also takes their slopes."""
        each = self.count if self.name == "importance" else self.count * (1 + 2 * self.MOVES)
        return each, each

    def draw(self, model: FlowModel, n: int, noise: Sequence[np.random.Generator], temperature: float) -> Drawn:
        """n points per row of a guided model, from the rows' own generators."""
        base, auxiliary, omega = model.base, model.auxiliary, model.omega
        assert auxiliary is not None and omega is not None
        many = n * self.count if self.name == "importance" else n
        z = torch.from_numpy(np.stack([g.standard_normal((many, base.dim)) for g in noise])) * math.sqrt(temperature)

        def log_base(z: Tensor) -> Tensor:
            return -z.square().sum(2) / (2 * temperature)

        def log_auxiliary(z: Tensor) -> Tensor:
            x = base.pushed(z)
            return log_base(z) + auxiliary.log_prob(x) - base.log_prob(x)

        if self.name == "importance":
            with torch.no_grad():
                drawn = importance(z, log_base(z) - log_auxiliary(z), omega, n, noise)
        else:
            made = {"stages": self.count, "steps": self.MOVES}
            drawn = annealed_langevin(log_base, log_auxiliary, z, omega, noise, **made)
        with torch.no_grad():
            return replace(drawn, points=base.pushed(drawn.points))


@dataclass(frozen=True, eq=False)
class FlowModel:
    """R flows ``base``, or the densities guided away from ``auxiliary`` at ``omega`` (R,)."""

    base: Flows
    sampler: DensitySampler
    auxiliary: Flows | None = None
    omega: Tensor | None = None
    guidance: GuidanceSchedule = field(default=FULL, repr=False)  # a density has no steps

    def take(self, rows: Sequence[int]) -> FlowModel:
        """The models of these rows."""
        auxiliary = None if self.auxiliary is None else self.auxiliary.take(rows)
        omega = None if self.omega is None else self.omega[list(rows)]
        return replace(self, base=self.base.take(rows), auxiliary=auxiliary, omega=omega)

    @property
    def guided(self) -> Tensor:
        """Which rows (R,) are not the base itself."""
        return torch.zeros(len(self.base), dtype=torch.bool) if self.omega is None else self.omega != 0

    @property
    def output(self) -> Gaussian:
        """Mean and covariance of the samples (R rows): by quadrature of the base's noise, of draws where it is guided.

        Rows whose weights degenerate are NaN.
        """
        return self._measured[0]

    @property
    def worth(self) -> np.ndarray:
        """Effective sample size over the particles, and accepted share, of the draws behind `output`: (2, R)."""
        return self._measured[1]

    @cached_property
    def _measured(self) -> tuple[Gaussian, np.ndarray]:
        nodes, weights = quadrature(self.base.dim + 1)  # Sobol points: a spline's bends are no polynomials
        with torch.no_grad():
            x = self.base.pushed(nodes[:, :-1].expand(len(self.base), -1, -1))
        rows, worth = self.guided.nonzero()[:, 0].tolist(), np.ones((2, len(self.base)))
        if rows:
            count = len(nodes)
            drawn = self.sampler.draw(self.take(rows), count, [np.random.default_rng(0) for _ in rows], 1.0)
            bad = drawn.degenerate[:, None, None]
            x[rows] = torch.where(bad, torch.nan, drawn.points)
            worth[:, rows] = torch.stack([drawn.effective, drawn.acceptance]).numpy()
        mean = (x * weights[:, None]).sum(1)
        centred = x - mean[:, None]
        return Gaussian(mean, (centred * weights[:, None]).mT @ centred), worth


class FlowLearner(RowLearner[FlowModel]):
    """`RowLearner` of normalizing flows, on the CPU.

    strict: whether `sample` and `points` raise `InputError` where a guided row's weights degenerate; else such a row
    has diverged (NaN). `drawn` gives the diagnostics.
    """

    def __init__(
        self,
        sampler: DensitySampler,
        streams: Sequence[int] | np.ndarray,
        settings: FlowSettings | None = None,
        *,
        temperature: float = 1.0,
        strict: bool = True,
    ) -> None:
        super().__init__(sampler, streams, settings or FlowSettings(), temperature)
        self.strict = strict

    def untrained(self, data: Tensor, *, seed: Seed) -> FlowModel:
        """Flows at their initialisation, centred and scaled to their data."""
        self._check(data)
        if data.shape[2] < 2:
            raise InputError("data", tuple(data.shape), "a flow needs at least two dimensions")
        shape = shape_of(self.settings, data.shape[2])
        moments = [(row.double().mean(0), row.double().std(0, correction=0).clamp(min=1e-3)) for row in data]
        center, scale = (torch.stack(part) for part in zip(*moments, strict=True))
        sound = scale.isfinite().all(1, keepdim=True)  # a diverged row is not trained
        seeds = [seed.child(int(k)) for k in self.streams]
        center, scale = torch.where(sound, center, 0.0), torch.where(sound, scale, 1.0)
        return self._model(Flows.initial(shape, seeds, center, scale))

    def parameters(self, model: FlowModel) -> np.ndarray:
        """The flows' parameters and, last, their centres and scales: (R, P + 2 d)."""
        base = model.base
        return torch.cat([base.params.double(), base.center, base.scale], 1).numpy()

    def drawn(self, model: FlowModel, n: int, *, seed: Seed, temperature: float = 1.0) -> Drawn:
        """n points per row of guided models with their effective sample sizes and acceptance (`sims_core.density`)."""
        if model.auxiliary is None:
            raise InputError("model", "a base", "it is drawn exactly, by `sample`; give one that is guided")
        noise = [seed.child("density", int(k)).numpy() for k in self.streams]
        return model.sampler.draw(model, n, noise, temperature)

    def _draw(self, model: FlowModel, n: ArrayLike, temperature: float, seed: Seed) -> Tensor:
        count = self._one_size(n)
        first, inverse = self._distinct(model)
        few = model.take(first)
        streams = self.streams[first]
        noise = np.stack([seed.child(int(k)).numpy().standard_normal((count, few.base.dim)) for k in streams])
        with torch.no_grad():
            points = few.base.pushed(torch.from_numpy(noise * math.sqrt(temperature)))
        rows = few.guided.nonzero()[:, 0].tolist()
        if rows and count:
            part = self._like(streams[rows], self.settings)
            drawn = part.drawn(few.take(rows), count, seed=seed, temperature=temperature)
            if self.strict:
                assert few.omega is not None
                drawn.checked(few.omega[rows])
            points[rows] = torch.where(drawn.degenerate[:, None, None], torch.nan, drawn.points)
        return points.float()[inverse]

    def _model(self, base: Flows) -> FlowModel:
        return FlowModel(base, self.sampler)

    def _learn(self, base: Flows, data: Tensor, seeds: Sequence[Seed], settings: Training) -> Tensor:
        return train(base, data, seeds, settings)
