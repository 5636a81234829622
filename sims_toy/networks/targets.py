"""What a small network is trained on: noise levels, reproducible draws, parametrisations and targets.

A training row is x = y + sigma n, with y from the data set, sigma from a training distribution and n ~ N(0, I).
Two targets have the same minimiser, the posterior mean E[y | x] over the data set:

- 'plain' (denoising score matching, Vincent 2011; EDM Eq. 2): y itself. Costs nothing, is unbiased, and is noisy:
  small networks then spend their steps averaging that noise away.
- 'posterior' (Stable Target Field, Xu et al. 2023, arXiv 2302.00670, Eq. 7): sum_i y_i softmax_i(-|x - y_i|^2 /
  2 sigma^2), exact over the whole data set, so that no target noise is left. Costs B N exponentials per step, which is
  several times the network itself. Over a random ``reference`` subset that contains the row's own y it costs
  B * reference and stays unbiased: it is the plain target averaged over which member of the subset made x (tower
  property), so that the variance falls and the minimiser stays.

Both learn the data set, not its source: the exact minimiser is a mixture of Gaussians around the N points, which
memorises as sigma -> 0. What keeps a small network from it is its size and the few steps it is given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol, TypeAlias

import torch
from torch import Tensor

from sims_core.diffusion import EDM, LogNormal
from sims_core.draws import normals, random_words, shift
from sims_core.errors import InputError
from sims_core.flow import time_of
from sims_core.sampling import cosine_sigmas

# ------------------------------------------------------- training noise levels


@dataclass(frozen=True)
class UniformAngle:
    """theta uniform on (0, pi/2), sigma = sigma_data tan(theta): even in TrigFlow's angle (arXiv 2410.11081)."""


@dataclass(frozen=True)
class UniformTime:
    """t uniform on (0, 1), sigma = (1 - t) / t: flow matching's (arXiv 2210.02747)."""


@dataclass(frozen=True)
class CosineSteps:
    """t uniform over the ``steps`` steps of the cosine schedule (Nichol & Dhariwal 2021); t = 0 has sigma = 0."""

    steps: int = 1000
    s: float = 0.008


NoiseLevels: TypeAlias = UniformAngle | UniformTime | CosineSteps | LogNormal


def training_levels(noise: NoiseLevels, sigma_data: Tensor, count: int = 1024) -> Tensor:
    """The training distribution as equally probable levels [K, T], increasing, float64, for ``sigma_data`` [K].

    Continuous distributions are represented by ``count`` quantiles at (j + 1/2) / count; `CosineSteps` is exact.
    """
    u = (torch.arange(count, dtype=torch.float64, device=sigma_data.device) + 0.5) / count
    sigma_data = sigma_data.to(torch.float64)[:, None]
    if isinstance(noise, UniformAngle):
        return sigma_data * torch.tan(u * (math.pi / 2))
    if isinstance(noise, UniformTime):
        levels = u / (1 - u)
    elif isinstance(noise, LogNormal):
        levels = noise.from_normal(torch.special.ndtri(u))
    else:
        levels = cosine_sigmas(noise.steps, noise.s).flip(0).to(sigma_data.device)
    return levels.expand(len(sigma_data), -1)


# -------------------------------------------------------------- parametrisations


class TimeInput(Protocol):
    """What the network is told about the noise level: a function of sigma (any shape, float64), elementwise."""

    def __call__(self, sigma: Tensor) -> Tensor:
        """The network's second input at these noise levels."""
        ...


@dataclass(frozen=True)
class CosineTime:
    """t / (steps - 1), where t is sigma's (real) position on the cosine schedule of ``steps`` steps.

    Inverts alpha_bar(t) = cos^2((t/steps + s) / (1 + s) pi/2) / alpha_bar(0) = 1 / (1 + sigma^2). Neon's published toy
    trains with steps = 1000 and samples with steps = 20, so that the two disagree: give the denoiser the other one.
    """

    steps: int = 1000
    s: float = 0.008

    def __call__(self, sigma: Tensor) -> Tensor:
        """Time in [0, 1] at the noise levels ``sigma``."""
        root = math.cos(self.s / (1 + self.s) * math.pi / 2) / (1 + sigma**2).sqrt()
        t = self.steps * ((1 + self.s) * torch.acos(root) / (math.pi / 2) - self.s)
        return t.clamp(min=0) / (self.steps - 1)


@dataclass(frozen=True)
class EdmParametrisation:
    """EDM preconditioning: D = c_skip x + c_out F(c_in x, ln(sigma) / 4) (`sims_core.diffusion.EDM`)."""

    def coefficients(self, sigma: Tensor, sigma_data: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(c_in, time, skip, out) with D = skip x + out F(c_in x, time); float64, of the broadcast shape."""
        unit = EDM(1.0)  # EDM is equivariant under scaling the data, so sigma_data may be a tensor
        s = sigma / sigma_data
        time = unit.c_noise(sigma) + 0 * s  # to the broadcast shape
        return unit.c_in(s) / sigma_data, time, unit.c_skip(s), unit.c_out(s) * sigma_data

    def target(self, sigma: Tensor, sigma_data: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) with F's regression target p y + q n, n = (x - y) / sigma: (sin, -cos) / ... in angle coordinates."""
        root = (sigma**2 + sigma_data**2).sqrt()
        return sigma / (sigma_data * root), -sigma_data / root


@dataclass(frozen=True)
class EpsilonParametrisation:
    """Noise prediction with variance-preserving input: D = x - sigma F(x / sqrt(1 + sigma^2), time(sigma))."""

    time: TimeInput = CosineTime()

    def coefficients(self, sigma: Tensor, sigma_data: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(c_in, time, skip, out) with D = skip x + out F(c_in x, time); ``sigma_data`` plays no part."""
        sigma = sigma + 0 * sigma_data
        return 1 / (1 + sigma**2).sqrt(), self.time(sigma), torch.ones_like(sigma), -sigma

    def target(self, sigma: Tensor, sigma_data: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) with F's regression target p y + q n: the noise itself."""
        sigma = sigma + 0 * sigma_data
        return torch.zeros_like(sigma), torch.ones_like(sigma)


@dataclass(frozen=True)
class VelocityParametrisation:
    """F(x_t, t) is the velocity on the path x_t = t x = t y + (1 - t) n, t = 1 / (1 + sigma): D = x_t + (1 - t) F."""

    def coefficients(self, sigma: Tensor, sigma_data: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(c_in, time, skip, out) with D = skip x + out F(c_in x, time); ``sigma_data`` plays no part."""
        t = time_of(sigma + 0 * sigma_data)
        return t, t, t, 1 - t

    def target(self, sigma: Tensor, sigma_data: Tensor) -> tuple[Tensor, Tensor]:
        """(p, q) with F's regression target p y + q n: y - n."""
        one = torch.ones_like(sigma + 0 * sigma_data)
        return one, -one


Parametrisation: TypeAlias = EdmParametrisation | EpsilonParametrisation | VelocityParametrisation

#: By the name of the settings, each with the noise levels that it is trained on.
PARAMETRISATIONS: dict[str, tuple[Parametrisation, NoiseLevels]] = {
    "edm": (EdmParametrisation(), UniformAngle()),
    "epsilon": (EpsilonParametrisation(), CosineSteps()),
    "velocity": (VelocityParametrisation(), UniformTime()),
}


def level_table(parametrisation: Parametrisation, levels: Tensor, sigma_data: Tensor) -> Tensor:
    """What training needs at each level: [K, T, 5] = sigma, c_in, time, p, q. ``levels`` [K, T], ``sigma_data`` [K].

    Raises `InputError` where an input of the network is not finite (a log-time input at sigma = 0, say).
    """
    sigma_data = sigma_data.to(levels)[:, None]
    c_in, time, _, _ = parametrisation.coefficients(levels, sigma_data)
    p, q = parametrisation.target(levels, sigma_data)
    table = torch.stack([levels, c_in, time, p, q], dim=-1)
    if not bool(table.isfinite().all()):
        raise InputError("noise", "a level with non-finite inputs", "EDM's ln(sigma) needs sigma > 0 at every level")
    return table


# ------------------------------------------------------------ reproducible draws

PAD = 32
#: counters of a stream's words beyond those of every training step: the shifts of its Sobol points
_TURN = 2**62


@lru_cache
def directions(dims: int, device: torch.device | str = "cpu") -> Tensor:
    """Direction numbers of the first ``dims`` Sobol sequences (Joe & Kuo 2008, as torch has them), int64 [dims, 30].

    Point i has the coordinates XOR_j V_j over the bits j of i, in 32 bits. Kept: CUDA graphs copy nothing from hosts.
    """
    numbers: Tensor = torch.quasirandom.SobolEngine(dims).sobolstate  # type: ignore[no-untyped-call]
    return (numbers << 2).to(device)


SOBOL = 2**30
"""Points of a Sobol sequence here."""


def sobol(index: Tensor, dims: int) -> Tensor:
    """Coordinates [..., dims] of the Sobol points ``index`` below `SOBOL`, as whole numbers of 32 bits."""
    numbers = directions(dims, index.device)
    found = numbers.new_zeros(*index.shape, dims)
    for bit in range(numbers.shape[1]):
        found.bitwise_xor_(((index >> bit) & 1)[..., None] * numbers[:, bit])
    return found


def turns(keys: Tensor, dims: int) -> Tensor:
    """What is XORed to the points' coordinates of networks with ``keys`` [K]: 32 bits each, [K, dims]."""
    return shift(random_words(keys[:, None], _TURN + torch.arange(dims, device=keys.device)), 32)


def along(data: Tensor) -> Tensor:
    """Data [N, d] in the order of their principal coordinate, so that near numbers are near points."""
    centred = (data - data.mean(0)).double()
    axis = torch.linalg.eigh(centred.T @ centred)[1][:, -1]
    axis = axis * axis[axis.abs().argmax()].sign()  # the same way round on every device
    return data[(centred @ axis).argsort(stable=True)]


@dataclass(frozen=True)
class Layout:
    """Where each draw of a training step lies in a network's stream.

    rows: B, the rows of a step. dim: of the data. count: n, the data points. levels: T. reference: points in the random
    subset, 0 for none. stratified: one level in each of B equally probable strata, turned by one random shift a step.
    quasi: the steps' rows are successive points of a Sobol sequence in data point, level and noise, shifted at random.
    Rows are drawn up to a multiple of 32 (``padded``): whole vector registers give a network the same bits anywhere.
    """

    rows: int
    dim: int
    count: int
    levels: int
    reference: int
    stratified: bool
    quasi: bool = False

    @property
    def padded(self) -> int:
        """Rows that are drawn: B rounded up."""
        return -(-self.rows // PAD) * PAD

    @property
    def pairs(self) -> int:
        """Words of normal draws per row."""
        return (self.dim + 1) // 2

    @property
    def words(self) -> int:
        """Words per step."""
        return self.padded * (1 + self.pairs) + self.reference + 1

    def draw(self, keys: Tensor, steps: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draws of the steps ``steps`` [S] for networks with ``keys`` [K].

        Returns the rows' data points [K, S, B'], levels [K, S, B'], noise [K, S, dim, B'] and the subset's data points
        [K, S, reference], with B' = ``padded``.
        """
        b = self.padded
        slots = torch.arange(b * (1 + self.pairs) if self.quasi else 0, self.words, device=keys.device)
        words = random_words(keys[:, None, None], steps[:, None] * self.words + slots)
        if self.quasi:
            words = torch.cat([self._spread(keys, steps), words], 2)
        high, low = shift(words[..., :b], 32), words[..., :b] & 0xFFFFFFFF
        subset = shift(shift(words[..., b * (1 + self.pairs) : -1], 32) * self.count, 32)
        row = torch.arange(b, device=keys.device)
        if self.reference:
            points = subset[..., row % self.reference]
        elif self.rows >= self.count:
            points = (row % self.count).expand(high.shape)
        else:
            points = shift(high * self.count, 32)
        if self.stratified:
            stratum = 2**32 // self.rows
            low = (row * stratum + shift(low * stratum, 32) + shift(words[..., -1:], 32)) & 0xFFFFFFFF
        levels = shift(low * self.levels, 32)
        shape = (*high.shape[:2], self.pairs, b)
        first, second = normals(words[..., b : b * (1 + self.pairs)].reshape(shape), dtype)
        noise = torch.stack([first, second], dim=3).flatten(2, 3)[:, :, : self.dim]
        return points, levels, noise, subset

    def _spread(self, keys: Tensor, steps: Tensor) -> Tensor:
        """The words [K, S, B' (1 + pairs)] of all rows, two coordinates of a shifted Sobol point in each.

        Points are numbered by the rows that count: were those of the padding passed over, a share of the data would be.
        """
        b, dims = self.padded, 2 * (1 + self.pairs)
        number = steps[:, None] * self.rows + torch.arange(b, device=keys.device)
        points = sobol(number, dims) ^ turns(keys, dims)[:, None, None]
        high, low = points.transpose(2, 3).unflatten(2, (-1, 2)).unbind(3)  # type: ignore[no-untyped-call]
        words: Tensor = ((high << 32) | low).flatten(2)
        return words


# ----------------------------------------------------------------------- targets


def posterior_mean(x: Tensor, sigma: Tensor, data: Tensor) -> Tensor:
    """E[y | x] over a data set: sum_i y_i softmax_i(-|x - y_i|^2 / 2 sigma^2). Shape of ``x``.

    x: (..., B, d) noisy points. sigma: (..., B). data: (..., N, d). Distances are taken from differences: the expanded
    square loses all its digits at small sigma. Source: Xu et al. 2023 (arXiv 2302.00670), Eq. 7.
    """
    distance: Tensor | float = 0.0
    for c in range(x.shape[-1]):
        distance = distance + (x[..., :, None, c] - data[..., None, :, c]) ** 2
    assert isinstance(distance, Tensor)
    distance = distance - distance.amin(-1, keepdim=True)  # first, so that the nearest point's weight is exactly 1
    weights = torch.softmax(distance * (-0.5 / sigma.clamp(min=1e-12) ** 2)[..., None], dim=-1)
    return weights @ data
