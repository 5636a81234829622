"""A network as the core's samplers take it: a denoiser D(x, sigma) of some classes, and its sampler's noise levels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sims_core.devices import filled, moved
from sims_core.errors import InputError
from sims_core.flow import VelocitySampler, dopri5, sigma_of, time_of
from sims_core.guidance import FULL, Denoiser, GuidanceSchedule, Stepped
from sims_core.sampling import Churn, Noise, Sampler, generate
from sims_core.seeds import Seed
from sims_image.models.networks import Flow, Preconditioned, build
from sims_image.models.networks.imported import Imported


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


# -------------------------------------------------------------------- samplers


@dataclass(frozen=True)
class Adaptive(Sampler):
    """``dopri5:TOLERANCE``: the flow dx/dt = (D - x) / (1 - t) in t = 1 / (1 + sigma), as `sims_core.flow.dopri5`.

    From sigma_max to sigma_min, then a step of Euler to 0. An image depends, within the tolerance, on the others of its
    compute batch, which share their steps. Raises `InputError` where the tolerance is not reached.
    """

    tolerance: float = 1e-5

    def __str__(self) -> str:
        return f"{self.name}:{self.tolerance:g}"

    @property
    def nfe(self) -> int:
        """Evaluations that the flow to two clusters takes; those of a network's depend on its images."""
        return self.evaluations()[0]

    def evaluations(self, schedule: GuidanceSchedule = FULL) -> tuple[int, int]:
        """As `Sampler.evaluations`, of the flow to two clusters."""
        return _evaluations(self, schedule)

    def doubled(self) -> Adaptive:
        """With about twice the evaluations: half the steps of a fifth-order pair have a 32nd of its error."""
        return replace(self, tolerance=max(self.tolerance / 32, 1e-13))

    def __call__(self, denoiser: Denoiser, unit_noise: Tensor, noise: Noise | None = None) -> Tensor:
        """As `Sampler`. Raises `InputError` for a schedule of steps too."""
        if isinstance(denoiser, Stepped):
            raise InputError(
                "guidance", "held", "an adaptive solver has no steps to hold it over; give heun:N, or full"
            )
        first, last = (float(time_of(torch.tensor(s, dtype=torch.float64))) for s in (self.sigma_max, self.sigma_min))

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            t = t.cpu()  # where denoisers are told the noise level
            return (denoiser(x / t, sigma_of(t)).to(x.dtype) - x) / (1 - t)

        try:
            x = dopri5(velocity, unit_noise * (1 - first), tolerance=self.tolerance, span=(first, last)) / last
        except InputError as error:
            if error.argument != "tolerance":
                raise
            words = f"its tolerance is {error.expected.removeprefix('it is ').replace('rk4:N', 'heun:N')}"
            raise InputError("sampler", str(self), words) from None
        with torch.no_grad():
            return denoiser(x, torch.tensor(self.sigma_min, dtype=torch.float64)).to(x.dtype)


@functools.lru_cache(maxsize=64)
def _evaluations(sampler: Adaptive, schedule: GuidanceSchedule) -> tuple[int, int]:
    """Of the flow to two clusters at +-sigma_data, a tenth of that wide, from the quantiles of its noise."""
    scale = sampler.sigma_data

    def answer(x: Tensor, sigma: Tensor) -> Tensor:
        spread = (scale / 10) ** 2 + sigma**2
        center = scale * torch.tanh(scale * x / spread)
        return center + (scale / 10) ** 2 / spread * (x - center)

    noise = torch.special.ndtri(torch.linspace(0.02, 0.98, 25, dtype=torch.float64))[:, None]
    return schedule.counted(lambda denoiser: sampler(denoiser, noise), answer)


def parse_sampler(name: str, *, sigma_data: float = 0.5) -> Sampler:
    """As `Sampler.parse` of an argument ``sampler``, and ``dopri5:TOLERANCE``. Raises `InputError`."""
    if name.partition(":")[0] == "dopri5":
        tolerance = VelocitySampler.parse(name).tolerance
        return Adaptive("dopri5", 0, sigma_data, tolerance=tolerance)
    found = Sampler.parse(name, argument="sampler", sigma_data=sigma_data)
    if found.name == "exact":
        raise InputError("sampler", name, "an exact sampler exists for Gaussians only; write name:steps")
    return found


def planned_sampler(name: str, config: dict[str, Any]) -> Sampler:
    """The sampler called ``name`` as it counts for a network of ``config``, which need not be there. As `parse`."""
    sampler = parse_sampler(name)
    if sampler.name != "ddim":
        return sampler
    with torch.device("meta"):
        network = build(**config)
    return replace(sampler, schedule=network.schedule if isinstance(network, Imported | Flow) else None)


def make_sampler(name: str, network: Preconditioned, churn: tuple[float, float, float, float] | None) -> Sampler:
    """The sampler called ``name`` within the noise levels that a network knows. Raises `InputError`, as `parse`.

    churn: EDM's (S_churn, S_min, S_max, S_noise), or None for a deterministic one.
    """
    sampler = parse_sampler(name, sigma_data=network.sigma_data)
    flow = isinstance(network, Flow)
    highest = Flow.HIGHEST if flow and isinstance(sampler, Adaptive) else sampler.sigma_max  # as near t = 0 as it knows
    return replace(
        sampler,
        sigma_min=max(sampler.sigma_min, network.sigma_min),
        sigma_max=min(highest, network.sigma_max),
        churn=Churn(*churn) if churn is not None else None,
        rounded=network.round_sigma if network.discrete else None,
        schedule=network.schedule if isinstance(network, Imported | Flow) else None,
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
