"""The diffusion that every scale shares: noise distribution, EDM preconditioning, denoising loss, angle coordinates.

Notation of EDM (Karras et al. 2022, arXiv 2206.00364): clean data y, noisy data x = y + sigma n with n ~ N(0, I),
and a denoiser D(x, sigma) that estimates E[y | x]. The score of the noisy density is (D(x, sigma) - x) / sigma^2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sims_core.devices import own_dtype
from sims_core.errors import InputError
from sims_core.guidance import Denoiser


@dataclass(frozen=True)
class LogNormal:
    """Training noise levels: ln sigma ~ N(mean, std^2) (EDM, Table 1; EDM2 uses other numbers).

    >>> sigma = LogNormal().sample((10_000,), torch.Generator().manual_seed(0))
    >>> f"{sigma.median():.1f}"  # exp(-1.2)
    '0.3'
    """

    mean: float = -1.2
    std: float = 1.2

    def sample(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Noise levels of the given shape, float32, on the generator's device."""
        device = generator.device if generator is not None else torch.device("cpu")
        return torch.exp(self.mean + self.std * torch.randn(shape, generator=generator, device=device))

    def from_normal(self, normal: Tensor) -> Tensor:
        """Noise levels for given standard normal draws (so that callers may key them by sample)."""
        return torch.exp(self.mean + self.std * normal)


@dataclass(frozen=True)
class EDM:
    """EDM preconditioning: D(x, s) = c_skip(s) x + c_out(s) F(c_in(s) x, c_noise(s)) (EDM, Eq. 7 and Table 1).

    sigma_data: standard deviation of the clean data, in data units. Raises `InputError` unless positive.

    >>> edm = EDM(sigma_data=1.0)
    >>> denoiser = edm.denoiser(lambda x, noise: torch.zeros_like(x))  # c_skip x is right for N(0, 1) data
    >>> denoiser(torch.ones(1, 2), torch.tensor(1.0))
    tensor([[0.5000, 0.5000]])
    """

    sigma_data: float = 0.5

    def __post_init__(self) -> None:
        if not self.sigma_data > 0:
            raise InputError("sigma_data", self.sigma_data, "give the data's standard deviation, a positive number")

    def c_skip(self, sigma: Tensor) -> Tensor:
        """Weight of the noisy input."""
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """Scale of the network's output."""
        return sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()

    def c_in(self, sigma: Tensor) -> Tensor:
        """Scale of the network's input: makes its variance 1."""
        return 1 / (sigma**2 + self.sigma_data**2).sqrt()

    def c_noise(self, sigma: Tensor) -> Tensor:
        """What the network is told about the noise level: ln(sigma) / 4."""
        return sigma.log() / 4

    def weight(self, sigma: Tensor) -> Tensor:
        """Loss weight lambda(sigma) = 1 / c_out^2, which makes the network's target have unit variance."""
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2

    def denoiser(self, network: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
        """The denoiser of a raw network F(c_in x, c_noise); sigma must broadcast against x.

        A module is given its own dtype, whatever the sampler's state is in.
        """

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            seen, noise = self.c_in(sigma) * x, self.c_noise(sigma)
            if isinstance(network, torch.nn.Module):
                seen, noise = (value.to(own_dtype(network)) for value in (seen, noise))
            inner = network(seen, noise).to(x.dtype)
            return self.c_skip(sigma) * x + self.c_out(sigma) * inner

        return denoise


def denoising_loss(denoiser: Denoiser, clean: Tensor, sigma: Tensor, noise: Tensor, weight: Tensor) -> Tensor:
    """Weighted denoising error ``weight * (D(y + sigma n, sigma) - y)^2``, one value per element (EDM, Eq. 2).

    clean, noise: (B, ...); sigma, weight: broadcastable against them. The caller averages.

    The best denoiser of N(0, 1) data errs by the posterior's variance, sigma^2 / (1 + sigma^2):

    >>> clean, noise = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    >>> best, one = lambda x, sigma: x / (1 + sigma**2), torch.tensor(1.0)
    >>> f"{denoising_loss(best, clean, one, noise, one).mean():.2f}"
    '0.50'
    """
    return weight * (denoiser(clean + sigma * noise, sigma) - clean) ** 2


def to_angle(x: Tensor, sigma: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """Angle coordinates: u = x / sqrt(sigma^2 + sigma_data^2) and tan(theta) = sigma / sigma_data.

    As TrigFlow (arXiv 2410.11081, Sec. 3). Then u = cos(theta) y / sigma_data + sin(theta) n, and the
    prior at theta = pi / 2 is N(0, I) exactly.
    """
    return x / (sigma**2 + sigma_data**2).sqrt(), torch.atan2(sigma, torch.as_tensor(sigma_data, dtype=sigma.dtype))


def from_angle(u: Tensor, theta: Tensor, sigma_data: float) -> tuple[Tensor, Tensor]:
    """The inverse of `to_angle`: (x, sigma)."""
    return u * sigma_data / theta.cos(), sigma_data * theta.tan()
