"""What learners over R rows of trained models share: score networks, velocities, normalizing flows.

A row's result depends on its stream and its data alone, so rows that agree in both (all omegas of one trial, in the
first generation) are trained once and shared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from sims_core.errors import InputError
from sims_core.guidance import FULL, GuidanceSchedule, extrapolate
from sims_core.seeds import Seed
from sims_toy.datasets import Distribution
from sims_toy.exact import bounded_distance
from sims_toy.gaussian import Gaussian
from sims_toy.networks.schedule import Training
from sims_toy.wasserstein import draw_real


class RowModel(Protocol):
    """A dataclass: ``base``, parametrised models of R rows, or its combination with ``auxiliary`` at ``omega`` (R,).

    base, auxiliary: `sims_toy.networks.ensemble.Ensemble` or `sims_toy.flows.flow.Flows`. output: the Gaussian of the
    samples' moments.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def base(self) -> Any: ...  # noqa: D102
    @property
    def auxiliary(self) -> Any: ...  # noqa: D102
    @property
    def omega(self) -> Tensor | None: ...  # noqa: D102
    @property
    def output(self) -> Gaussian: ...  # noqa: D102

    def take(self, rows: Sequence[int]) -> Any:
        """The models of these rows."""
        ...


M = TypeVar("M", bound=RowModel)


class RowLearner(Generic[M]):
    """Learner (`sims_core.learner.Learner`) over R rows. Data are points (R, n, d), float32, on the CPU.

    streams: one integer per row; rows with equal streams and equal data share their draws and their training.
    temperature: the sampling bias lambda_s of `sample` (MAD, arXiv 2307.01850): samples start from noise times
    sqrt(lambda_s), which gives N(mu, lambda_s S) where the model is a Gaussian.
    """

    guidance: GuidanceSchedule = FULL

    def __init__(self, sampler: Any, streams: Sequence[int] | np.ndarray, settings: Any, temperature: float) -> None:
        if not 0 < temperature <= 1:
            raise InputError("temperature", temperature, "give lambda_s in (0, 1]")
        self.sampler, self.settings, self.temperature = sampler, settings, temperature
        self.streams = np.asarray(streams, dtype=np.int64)

    # ------------------------------------------------------------- what a kind of model says

    def untrained(self, data: Tensor, *, seed: Seed) -> M:
        """Models at their initialisation, scaled to their data: the control that training must beat by far."""
        raise NotImplementedError

    def parameters(self, model: M) -> np.ndarray:
        """All that makes a base, as numbers (R, P)."""
        raise NotImplementedError

    def _model(self, base: Any) -> M:
        raise NotImplementedError

    def _learn(self, base: Any, data: Tensor, seeds: Sequence[Seed], settings: Training) -> Tensor:
        """The parameters (R, P) of copies of ``base`` that are trained on ``data``, every row with its own seed."""
        raise NotImplementedError

    def _draw(self, model: M, n: ArrayLike, temperature: float, seed: Seed) -> Tensor:
        raise NotImplementedError

    # ------------------------------------------------------------------------- what they share

    @property
    def rows(self) -> int:
        """The number of rows R."""
        return len(self.streams)

    def fit(self, data: Tensor, *, seed: Seed, start: M | None = None) -> M:
        """Train every row's model on its points for the settings' steps, from scratch or from ``start``."""
        initial = self.untrained(data, seed=seed) if start is None else start
        return self._train(initial, data, self.settings.training(data.shape[1], warm=start is not None), seed)

    def finetune(self, model: M, data: Tensor, budget: ArrayLike, *, seed: Seed) -> M:
        """Train copies of the bases on ``data`` for ``budget`` samples seen (a number, or one per row)."""
        budgets = np.broadcast_to(np.asarray(budget, dtype=np.float64), (self.rows,))
        if not (budgets >= 0).all():
            raise InputError("budget", np.asarray(budget).tolist(), "samples seen cannot be negative")
        params = model.base.params.clone()
        for value in np.unique(budgets):
            rows = np.flatnonzero(budgets == value)
            if value > 0:
                part = self._like(self.streams[rows], self.settings)
                few = part._model(model.base.take(rows.tolist()))
                trained = part._train(few, data[rows], self.settings.training(data.shape[1], float(value)), seed)
                params[torch.from_numpy(rows).to(params.device)] = trained.base.params
        return self._model(model.base.with_params(params))

    def sample(self, model: M, n: ArrayLike, *, seed: Seed) -> Tensor:
        """Draw n points (R, n, d) a row, the same n for all rows; NaN for diverged rows."""
        return self._draw(model, n, self.temperature, seed)

    def points(self, model: M, n: ArrayLike, *, seed: Seed) -> Tensor:
        """`sample` at temperature 1: what a model is measured by."""
        return self._draw(model, n, 1.0, seed)

    def draw(self, real: Gaussian | Distribution, n: ArrayLike, *, seed: Seed) -> Tensor:
        """n real points per row (R, n, d); rows of one stream get the same points."""
        count = self._one_size(n)
        first, inverse = first_of_each([int(k) for k in self.streams])
        points = [draw_real(real, count, seed.child(int(self.streams[i]))) for i in first]
        return torch.from_numpy(np.stack(points)).float()[inverse]

    def rebuild(self, data: Tensor, budget: ArrayLike, *, seed: Seed) -> M:
        """Models of the second architecture (the settings' ``other_width``), trained from scratch on ``data``.

        budget: samples seen, a number or one per row; at the base's learning rate.
        """
        s = self.settings
        other = replace(s, width=s.other_width or s.width, auxiliary_rate=s.rate)
        part = self._like(self.streams, other)
        made: M = part.finetune(part.untrained(data, seed=seed), data, budget, seed=seed)
        return made

    def perturb(self, base: M, auxiliary: M, *, seed: Seed) -> M:
        """The base moved as far as the auxiliary is from it, layer by layer, in a random direction."""
        streams, inverse = np.unique(self.streams, return_inverse=True)
        size = base.base.params.shape[1]
        draws = np.stack([seed.child(int(k)).numpy().standard_normal(size) for k in streams])[inverse]
        noise = torch.from_numpy(draws).to(base.base.params)
        moved = base.base.params.clone()
        parts = (base.base.views(t) for t in (moved, auxiliary.base.params - base.base.params, noise))
        for weights, drift, direction in zip(*parts, strict=True):
            axes = tuple(range(1, drift.ndim))
            weights += direction * (drift.square().sum(axes, True) / direction.square().sum(axes, True)).sqrt()
        return replace(base, base=base.base.with_params(moved))

    def extrapolate(self, base: M, auxiliary: M, omega: ArrayLike) -> M:
        """The SIMS model of base and auxiliary at omega (a number, or one per row)."""
        w = self._per_row(omega)
        return replace(base, auxiliary=auxiliary.base, omega=w, guidance=self.guidance)

    def merge(self, base: M, auxiliary: M, omega: ArrayLike) -> M:
        """Neon: parameters (1 + omega) theta_base - omega theta_aux; what one model costs."""
        w = self._per_row(omega)
        merged = extrapolate(base.base.params.double(), auxiliary.base.params.double(), w)
        return replace(base, base=base.base.with_params(merged.to(base.base.params.dtype)))

    def union(self, a: Tensor, b: Tensor) -> Tensor:
        """Both data sets together."""
        return torch.cat([a, b], dim=1)

    def scale(self, data: Tensor, factor: float) -> Tensor:
        """The data scaled about the origin."""
        return data * factor

    def distance(self, model: M, real: Gaussian) -> np.ndarray:
        """W2 between the Gaussian of the samples' moments and the real Gaussian, (R,); inf for diverged rows."""
        first, inverse = self._distinct(model)
        return np.asarray(bounded_distance(model.take(first).output, real)[inverse])

    # ------------------------------------------------------------------ parts

    def _check(self, data: Tensor) -> None:
        if data.ndim != 3 or data.shape[0] != self.rows:
            raise InputError("data", tuple(data.shape), f"this learner has {self.rows} rows: give ({self.rows}, n, d)")

    def _distinct(self, model: M) -> tuple[list[int], list[int]]:
        """The model's distinct rows, and for every row its place among them (`first_of_each`)."""
        auxiliary = None if model.auxiliary is None else model.auxiliary.params
        return first_of_each(self._keys(model.base.params, auxiliary, model.omega))

    def _train(self, model: M, data: Tensor, settings: Training, seed: Seed) -> M:
        """Train the distinct rows (by stream, data and start); diverged rows stay NaN without being trained."""
        self._check(data)
        params = model.base.params.clone()
        sound = (data.isfinite().all(dim=(1, 2)) & params.isfinite().all(1).cpu()).numpy()
        params[torch.from_numpy(~sound).to(params.device)] = torch.nan
        alive = np.flatnonzero(sound)
        if len(alive):
            keys = self._keys(params, data)
            first, inverse = first_of_each([keys[i] for i in alive])
            rows = alive[first].tolist()
            seeds = [seed.child(int(self.streams[i])) for i in rows]
            trained = self._learn(model.base.take(rows), data[rows], seeds, settings)
            at = torch.from_numpy(alive).to(params.device)
            params[at] = trained[torch.tensor(inverse, device=params.device)]
        return replace(model, base=model.base.with_params(params), auxiliary=None, omega=None)

    def _keys(self, *tensors: Tensor | None) -> list[bytes]:
        """What a row's result depends on: its stream and the bytes of its tensors."""
        arrays = [t.contiguous().cpu().numpy() for t in tensors if t is not None]
        return [
            hashlib.blake2b(
                self.streams[i].tobytes() + b"".join(a[i].tobytes() for a in arrays), digest_size=16
            ).digest()
            for i in range(self.rows)
        ]

    def _one_size(self, n: ArrayLike) -> int:
        sizes = np.unique(np.asarray(n))
        if len(sizes) != 1 or sizes[0] < 0 or sizes[0] != int(sizes[0]):
            raise InputError("n", sizes.tolist(), "rows of networks share one size, a whole number")
        return int(sizes[0])

    def _like(self, streams: np.ndarray, settings: Any) -> Any:
        return type(self)(self.sampler, streams, settings)  # type: ignore[call-arg]

    def _per_row(self, omega: ArrayLike) -> Tensor:
        return torch.from_numpy(np.array(np.broadcast_to(np.asarray(omega, dtype=np.float64), (self.rows,))))


def first_of_each(keys: Sequence[object]) -> tuple[list[int], list[int]]:
    """Index of the first of each distinct key, and for every key the position of its first in that list."""
    place: dict[object, int] = {}
    first: list[int] = []
    for i, key in enumerate(keys):
        if key not in place:
            place[key] = len(first)
            first.append(i)
    return first, [place[key] for key in keys]
