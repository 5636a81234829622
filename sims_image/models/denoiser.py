"""A network as the core's samplers take it: a denoiser D(x, sigma) of some classes, and its sampler's noise levels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sims_core.devices import filled, moved
from sims_core.guidance import Denoiser, Stepped
from sims_core.sampling import Churn, Sampler, generate
from sims_core.seeds import Seed
from sims_image.models.networks import Preconditioned, build
from sims_image.models.networks.imported import CLASS, Imported


def one_hot(network: Preconditioned, classes: Tensor | None) -> Tensor | None:
    """What a network is told of ``classes``, (B,) int64: rows (B, label_dim); None: nothing, or it is unconditional."""
    if not network.label_dim or classes is None:
        return None
    return (classes[:, None] == torch.arange(network.label_dim, device=classes.device)).float()


def level(sigma: Tensor, like: Tensor) -> Tensor:
    """A noise level as a network takes it, (1,) float32 on the device of ``like``.

    The sampler's levels are on the host: filling a tensor with one makes no host wait for the device, copying does.
    """
    return filled(sigma, like.device, torch.float32).reshape(-1)


def conditional(network: Preconditioned, classes: Tensor | None) -> Denoiser:
    """D(x, sigma) of a network for images of ``classes``, (B,) int64 on its device; None and unconditional: without."""
    labels = one_hot(network, classes)
    return lambda x, sigma: network(x, level(sigma, x), labels)


@dataclass(frozen=True)
class _Limited:
    denoiser: Denoiser
    limit: Callable[[Tensor], Tensor]

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.limit(self.denoiser(x, sigma))


class _SteppedLimited(_Limited):
    def begin(self) -> Callable[[int], Denoiser]:
        """Start a trajectory, as `sims_core.guidance.Stepped`."""
        stepped: Any = self.denoiser
        at = stepped.begin()
        return lambda step: _Limited(at(step), self.limit)


def limited(network: Preconditioned, denoiser: Denoiser) -> Denoiser:
    """A denoiser of the network, guided or not, clipped as its scheduler's settings ask for (`Imported.limit`)."""
    if not isinstance(network, Imported) or network.limits is None:
        return denoiser
    return (_SteppedLimited if isinstance(denoiser, Stepped) else _Limited)(denoiser, network.limit)


def planned_sampler(name: str, config: dict[str, Any]) -> Sampler:
    """The sampler called ``name`` as it counts for a network of ``config``, which need not be there. As `parse`."""
    sampler = Sampler.parse(name, argument="sampler")
    if config.get("class_name") != CLASS:
        return sampler
    with torch.device("meta"):
        network = build(**config)
    return replace(sampler, schedule=network.schedule if isinstance(network, Imported) else None)


def make_sampler(name: str, network: Preconditioned, churn: tuple[float, float, float, float] | None) -> Sampler:
    """The sampler called ``name`` within the noise levels that a network knows. Raises `InputError`, as `parse`.

    churn: EDM's (S_churn, S_min, S_max, S_noise), or None for a deterministic one.
    """
    sampler = Sampler.parse(name, argument="sampler", sigma_data=network.sigma_data)
    return replace(
        sampler,
        sigma_min=max(sampler.sigma_min, network.sigma_min),
        sigma_max=min(sampler.sigma_max, network.sigma_max),
        churn=Churn(*churn) if churn is not None else None,
        rounded=network.round_sigma if network.discrete else None,
        schedule=network.schedule if isinstance(network, Imported) else None,
    )


def draw_samples(
    network: Preconditioned, sampler: Sampler, classes: NDArray[np.int64], seed: Seed, *, batch: int = 64
) -> Tensor:
    """One sample for each of ``classes`` (ignored by an unconditional network): (N, C, H, W), float64, on the CPU.

    The network is called in the mode and on the device that it is in; sample i depends on (seed, i) alone.
    """
    device = next(network.parameters()).device
    shape = (network.img_channels, network.img_resolution, network.img_resolution)

    def denoiser(indices: Any) -> Any:
        return limited(network, conditional(network, moved(torch.from_numpy(classes[list(indices)]), device)))

    parts = generate(
        denoiser, sampler, range(len(classes)), shape, seed=seed, batch=batch, device=device, per_batch=True
    )
    return torch.cat([samples.cpu() for _, samples in parts])
