"""What a step of training minimises, as a choice: one entry of `OBJECTIVES` an objective.

An objective turns a clean batch and its draws into a loss for every element. It owns the distribution of noise levels,
the weighting and what it asks of the network; the loop owns data, draws, averaging and the optimiser.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor

from sims_core.diffusion import EDM, LogNormal, denoising_loss
from sims_core.errors import InputError, choose
from sims_core.flow import sigma_of
from sims_image.models.networks import Flow, Preconditioned
from sims_image.models.presets import FLOW, Recipe

Conditions: TypeAlias = Mapping[str, Tensor]
"""What the network is told besides the noisy image: ``class_labels`` (B, K) and ``augment_labels`` (B, 9)."""


class Loss(NamedTuple):
    """value: the loss of every element, (B, C, H, W). level: every sample's noise level, (B,)."""

    value: Tensor
    level: Tensor


class Objective(Protocol):
    """A training objective: a function of the network and a batch, without randomness of its own."""

    def __call__(
        self, network: Callable[..., Any], clean: Tensor, level: Tensor, noise: Tensor, conditions: Conditions
    ) -> Loss:
        """The loss of clean images (B, C, H, W); level (B,) and noise (B, C, H, W) are standard normal draws."""
        ...


@dataclass(frozen=True)
class Denoising:
    """EDM's loss (arXiv 2206.00364, Eq. 2 and Table 1): weight(sigma) |D(y + sigma n; sigma) - y|^2.

    levels: ln sigma is normal. edm: preconditioning with the network's sigma_data, which gives the weight. rounded: to
    the levels that the network knows, of one that knows a table of them (of an imported network, whose timesteps are
    then trained in EDM's proportions).
    """

    levels: LogNormal
    edm: EDM
    rounded: Callable[[Tensor], Tensor] | None = None

    def __call__(
        self, network: Callable[..., Any], clean: Tensor, level: Tensor, noise: Tensor, conditions: Conditions
    ) -> Loss:
        """As `Objective`."""
        sigma = self.levels.from_normal(level)
        sigma = sigma if self.rounded is None else self.rounded(sigma)
        s = sigma[:, None, None, None]
        value = denoising_loss(lambda x, s: network(x, s, **conditions), clean, s, noise, self.edm.weight(s))
        return Loss(value, sigma)


@dataclass(frozen=True)
class Uncertainty(Denoising):
    """EDM2's loss (arXiv 2312.02696, Eqs. 14-16 and 21): exp(-u) weight |D - y|^2 + u, with u(sigma) learned.

    u is the network's estimate of the log of its own weighted error; at its best every level counts alike. Only
    training uses it. The network must return it when called with ``return_logvar=True``.
    """

    def __call__(
        self, network: Callable[..., Any], clean: Tensor, level: Tensor, noise: Tensor, conditions: Conditions
    ) -> Loss:
        """As `Objective`."""
        learned: list[Tensor] = []

        def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
            denoised, logvar = network(x, sigma, return_logvar=True, **conditions)
            learned.append(logvar.reshape(-1, 1, 1, 1))
            return torch.as_tensor(denoised)

        error = super().__call__(denoiser, clean, level, noise, {})
        return Loss(error.value * (-learned[0]).exp() + learned[0], error.level)


@dataclass(frozen=True)
class FlowMatching:
    """|v - (y - n)|^2 on the linear path (arXiv 2210.02747, Eq. 23), with v = (D - x_t) / (1 - t) of a flow's denoiser.

    That is |D - y|^2 / (1 - t)^2. levels: normal draws to noise levels. least: of 1 - t in the weight, which a network
    that predicts D needs (arXiv 2511.13720).
    """

    levels: Callable[[Tensor], Tensor]
    least: float = 0.0

    def __call__(
        self, network: Callable[..., Any], clean: Tensor, level: Tensor, noise: Tensor, conditions: Conditions
    ) -> Loss:
        """As `Objective`."""
        sigma = self.levels(level).clamp(Flow.LOWEST, Flow.HIGHEST)
        s = sigma[:, None, None, None]
        weight = (s / (1 + s)).clamp(min=self.least) ** -2
        return Loss(denoising_loss(lambda x, s: network(x, s, **conditions), clean, s, noise, weight), sigma)


def _uniform(normal: Tensor) -> Tensor:
    """Noise levels of uniform times."""
    return sigma_of(torch.special.ndtr(normal))


def _denoising(recipe: Recipe, sigma_data: float) -> Objective:
    return Denoising(LogNormal(recipe.p_mean, recipe.p_std), EDM(sigma_data))


def _uncertainty(recipe: Recipe, sigma_data: float) -> Objective:
    return Uncertainty(LogNormal(recipe.p_mean, recipe.p_std), EDM(sigma_data))


#: name -> objective from (recipe, sigma_data of the network)
OBJECTIVES: dict[str, Callable[[Recipe, float], Objective]] = {
    "edm": _denoising,
    "edm2": _uncertainty,
    FLOW: lambda recipe, _: FlowMatching(
        _uniform if recipe.time == "uniform" else LogNormal(recipe.p_mean, recipe.p_std).from_normal
    ),
}


def make_objective(recipe: Recipe, network: Preconditioned) -> Objective:
    """The recipe's objective for a network. Raises `InputError` for one that is unknown or asks too much of it."""
    choose("objective", recipe.objective, OBJECTIVES)
    if recipe.objective == "edm2" and not network.has_logvar:
        raise InputError("objective", "edm2", "it learns a log-variance, which EDM2's networks have; choose edm")
    if isinstance(network, Flow) != (recipe.objective == FLOW):
        raise InputError("objective", recipe.objective, f"{FLOW} trains the velocities of flows, and nothing else does")
    found = OBJECTIVES[recipe.objective](recipe, network.sigma_data)
    if isinstance(network, Flow) and network.prediction == "denoiser":
        found = replace(found, least=0.05)  # type: ignore[type-var]
    known = network.discrete and isinstance(found, Denoising)
    return replace(found, rounded=network.round_sigma) if known else found  # type: ignore[type-var]
