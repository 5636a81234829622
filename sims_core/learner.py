"""The contract between the algorithm and whatever learns: Gaussians, small networks, U-Nets.

Models and data are opaque to the core: sufficient statistics or tensors at toy scale, handles to files at image scale.
A learner may hold one model or a batch of thousands; then sizes, budgets and omegas may be arrays, one entry a row.
"""

from __future__ import annotations

from typing import Any, Protocol, TypeVar, runtime_checkable

from sims_core.seeds import Seed

Model = TypeVar("Model")
Data = TypeVar("Data")
ModelOut = TypeVar("ModelOut", covariant=True)
DataIn = TypeVar("DataIn", contravariant=True)


@runtime_checkable
class Learner(Protocol[Model, Data]):
    """What Algorithm 1 and the self-consuming loop need. Every method that draws takes its seed."""

    def fit(self, data: Data, *, seed: Seed, start: Model | None = None) -> Model:
        """Train on ``data`` to the end of the learner's own schedule, from scratch or from ``start``."""
        ...

    def finetune(self, model: Model, data: Data, budget: Any, *, seed: Seed) -> Model:
        """Train a copy of ``model`` on ``data`` for ``budget``; the original is untouched."""
        ...

    def sample(self, model: Model, n: Any, *, seed: Seed) -> Data:
        """Draw ``n`` synthetic items from ``model`` with the learner's own sampler."""
        ...

    def extrapolate(self, base: Model, auxiliary: Model, omega: Any) -> Model:
        """The SIMS model: samples from ``(1 + omega) s_base - omega s_aux``; omega = 0 is the base."""
        ...

    def union(self, a: Data, b: Data) -> Data:
        """Both data sets together."""
        ...


@runtime_checkable
class Mergeable(Protocol[Model]):
    """What Neon needs besides: extrapolation of parameters instead of scores."""

    def merge(self, base: Model, auxiliary: Model, omega: Any) -> Model:
        """The model with parameters ``(1 + omega) theta_base - omega theta_aux``."""
        ...


@runtime_checkable
class Rebuildable(Protocol[ModelOut, DataIn]):
    """What autoguidance and the control with another auxiliary need besides."""

    def rebuild(self, data: DataIn, budget: Any, *, seed: Seed) -> ModelOut:
        """Train the learner's second architecture from scratch on ``data`` for ``budget``."""
        ...


@runtime_checkable
class Perturbable(Protocol[Model]):
    """What the random-direction control needs besides."""

    def perturb(self, base: Model, auxiliary: Model, *, seed: Seed) -> Model:
        """A model as far from ``base`` as ``auxiliary`` is, in a random direction of parameter space."""
        ...
