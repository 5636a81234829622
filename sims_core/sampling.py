"""Samplers: a noise grid times a solver, as pure functions on tensors of any shape.

All solvers integrate the probability-flow ODE dx/dsigma = (x - D(x, sigma)) / sigma from the first noise level of a
grid to its last, 0 (EDM, arXiv 2206.00364, Eq. 1 with sigma(t) = t). DDIM is Euler on this ODE. The state is float64,
as in EDM; the denoiser computes in whatever precision it likes.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from sims_core.devices import moved
from sims_core.diffusion import from_angle, to_angle
from sims_core.errors import InputError, choose
from sims_core.guidance import FULL, Denoiser, GuidanceSchedule, Stepped
from sims_core.seeds import Seed

# ---------------------------------------------------------------- noise grids


def edm_sigmas(steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Tensor:
    """EDM's grid (Eq. 5): ``steps`` noise levels from sigma_max to sigma_min, then 0. Shape (steps + 1,), float64."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, torch.zeros(1, dtype=torch.float64)])


def cosine_sigmas(steps: int, s: float = 0.008) -> Tensor:
    """The cosine schedule's levels at t = steps-1, ..., 1, 0 of ``steps``. Shape (steps,), float64.

    alpha_bar(t) = cos^2((t/steps + s) / (1 + s) pi/2), normalised to 1 at t = 0 (Nichol & Dhariwal 2021), and
    sigma^2 = (1 - alpha_bar) / alpha_bar. The level at t = 0 is sigma = 0, so a grid of ``steps`` points takes
    steps - 1 evaluations: the published loop's last one, at sigma = 0, returns its input
    (Neon's toy, arXiv 2510.03597).
    """
    t = torch.arange(steps - 1, -1, -1, dtype=torch.float64) / steps
    alpha_bar = torch.cos((t + s) / (1 + s) * math.pi / 2) ** 2
    alpha_bar = alpha_bar / alpha_bar[-1]
    sigmas = ((1 - alpha_bar) / alpha_bar).clamp(min=0).sqrt()
    sigmas[-1] = 0
    return sigmas


def angle_sigmas(steps: int, sigma_data: float = 0.5, sigma_max: float = 80.0) -> Tensor:
    """Levels evenly spaced in arctan(sigma / sigma_data), from sigma_max to 0. Shape (steps + 1,), float64."""
    top = math.atan2(sigma_max, sigma_data)
    sigmas = sigma_data * torch.tan(torch.linspace(top, 0, steps + 1, dtype=torch.float64))
    sigmas[0], sigmas[-1] = sigma_max, 0
    return sigmas


# -------------------------------------------------------------------- solvers

Noise: TypeAlias = Callable[[Sequence[int]], Tensor]
"""Fresh standard normal draws of a shape, for stochastic solvers."""

Levels: TypeAlias = Callable[[Tensor], Tensor]
"""Noise levels to the nearest ones that a network knows, of the same shape and type."""


@dataclass(frozen=True)
class Churn:
    """EDM's stochasticity (Algorithm 2): noise is added before a step whose level lies in [minimum, maximum]."""

    amount: float = 40.0
    minimum: float = 0.05
    maximum: float = 50.0
    noise: float = 1.003


def _slope(denoiser: Denoiser, x: Tensor, sigma: Tensor) -> Tensor:
    return (x - denoiser(x, sigma).to(x.dtype)) / sigma


def _euler(denoiser: Denoiser, x: Tensor, sigma: Tensor, target: Tensor, sigma_data: float) -> Tensor:
    return x + (target - sigma) * _slope(denoiser, x, sigma)


def _heun(denoiser: Denoiser, x: Tensor, sigma: Tensor, target: Tensor, sigma_data: float) -> Tensor:
    """Heun's second-order step; Euler into sigma = 0 (EDM, Algorithm 1)."""
    slope = _slope(denoiser, x, sigma)
    end = x + (target - sigma) * slope
    if target == 0:
        return end
    return x + (target - sigma) * (slope + _slope(denoiser, end, target)) / 2


def _rk4(denoiser: Denoiser, x: Tensor, sigma: Tensor, target: Tensor, sigma_data: float) -> Tensor:
    """Classical Runge-Kutta in angle coordinates, where du/dtheta = -T and T = (D / sigma_data - cos u) / sin.

    At theta = 0 the slope of a smooth density's flow is 0: D - x = sigma^2 score vanishes faster than sin(theta).
    """
    u, start = to_angle(x, sigma, sigma_data)
    _, end = to_angle(x, target, sigma_data)
    h = end - start

    def slope(u: Tensor, theta: Tensor) -> Tensor:
        if theta <= 0:
            return torch.zeros_like(u)
        x, level = from_angle(u, theta, sigma_data)
        return (theta.cos() * u - denoiser(x, level).to(u.dtype) / sigma_data) / theta.sin()

    k1 = slope(u, start)
    k2 = slope(u + h / 2 * k1, start + h / 2)
    k3 = slope(u + h / 2 * k2, start + h / 2)
    k4 = slope(u + h * k3, end)
    return from_angle(u + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4), end, sigma_data)[0]


_Step: TypeAlias = Callable[[Denoiser, Tensor, Tensor, Tensor, float], Tensor]
SOLVERS: dict[str, _Step] = {"euler": _euler, "heun": _heun, "rk4": _rk4}


def trajectory(
    denoiser: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    solver: str = "heun",
    sigma_data: float = 0.5,
    churn: Churn | None = None,
    noise: Noise | None = None,
    dtype: torch.dtype = torch.float64,
    rounded: Levels | None = None,
) -> Iterator[Tensor]:
    """Yield the state at every level of ``sigmas``, the start included.

    x: (B, ...) noise at level sigmas[0], already scaled. sigmas: 1-D, strictly decreasing, last 0.
    solver: 'euler' (= DDIM), 'heun' or 'rk4' (in angle coordinates of ``sigma_data``).
    churn with ``noise``: EDM's Algorithm 2, for any of the solvers; rounded: what the raised levels become where a
    network knows a table of levels only. dtype: of the state. A `Stepped` denoiser is told
    the steps 0, 1, ... as they come.
    Raises `InputError` for an unknown solver, a bad grid, or churn without a source of noise.
    """
    step = SOLVERS[choose("solver", solver, SOLVERS)]
    if sigmas.ndim != 1 or len(sigmas) < 2 or bool((sigmas.diff() >= 0).any()) or sigmas[-1] != 0:
        raise InputError("sigmas", [round(float(s), 4) for s in sigmas], "give decreasing levels that end with 0")
    if churn is not None and noise is None:
        raise InputError("noise", None, "churn adds noise at every step: give a function shape -> standard normal")
    x, sigmas = x.to(dtype), sigmas.to("cpu", torch.float64)  # levels stay on the host: no device sync in the loop
    at_step = denoiser.begin() if isinstance(denoiser, Stepped) else None
    starts = sigmas[:-1] if churn is None else _raised(sigmas, churn, rounded)
    yield x
    for number, (sigma, target) in enumerate(itertools.pairwise(sigmas)):
        raised = starts[number]
        if churn is not None and noise is not None and raised > sigma:
            fresh = moved(noise(x.shape), x.device, x.dtype)
            x, sigma = x + (raised**2 - sigma**2).sqrt() * churn.noise * fresh, raised
        x = step(denoiser if at_step is None else at_step(number), x, sigma, target, sigma_data)
        yield x


def _raised(sigmas: Tensor, churn: Churn, rounded: Levels | None) -> Tensor:
    """The level that each step begins at under churn, (steps,)."""
    starts = sigmas[:-1]
    gamma = min(churn.amount / len(starts), math.sqrt(2) - 1)
    higher = starts * (1 + gamma) if rounded is None else rounded(starts * (1 + gamma))
    return torch.where((starts >= churn.minimum) & (starts <= churn.maximum), higher, starts)


@torch.no_grad()
def sample(denoiser: Denoiser, x: Tensor, sigmas: Tensor, **options: object) -> Tensor:
    """The last state of `trajectory` (same arguments), without gradients. Shape and device of ``x``.

    Data of one point are found from anywhere:

    >>> sample(lambda x, sigma: torch.full_like(x, 3.0), 80 * torch.ones(1, 2), edm_sigmas(18))
    tensor([[3., 3.]], dtype=torch.float64)
    """
    return deque(trajectory(denoiser, x, sigmas, **options), maxlen=1)[0]  # type: ignore[arg-type]


# ------------------------------------------------------- a sampler with a name


@dataclass(frozen=True)
class Sampler:
    """A named noise grid and solver, as written on a command line: ``ddim:20``, ``heun:18``, ``rk4:4``, ``exact``.

    sigma_data: the data's standard deviation, which the angle grid and the angle coordinates use. rounded: takes the
    grid's levels, and churn's, to those that the network knows (iDDPM; EDM, Appendix C.3.4); None: it knows all.
    schedule: ``steps ->`` the levels of the network's own schedule, decreasing to 0, which 'ddim' takes for its grid in
    place of the cosine schedule's: N steps, as diffusers' DDIMScheduler.

    >>> heun = Sampler.parse("heun:18")
    >>> heun.nfe, heun.doubled().nfe
    (35, 71)
    >>> noise = torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    >>> f"{heun(lambda x, sigma: x / (1 + sigma**2), noise).std():.2f}"  # of N(0, 1) data: 18 steps spread them
    '1.05'
    """

    name: str
    steps: int
    sigma_data: float = 0.5
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0
    churn: Churn | None = None
    rounded: Levels | None = field(default=None, compare=False, repr=False)
    schedule: Callable[[int], Tensor] | None = field(default=None, compare=False, repr=False)

    #: the most published are 4,000
    MOST_STEPS: ClassVar[int] = 10_000
    #: name -> (grid, solver, evaluations per step, evaluations saved at the end)
    KNOWN: ClassVar[dict[str, tuple[str, str, int, int]]] = {
        "ddim": ("cosine", "euler", 1, 0),  # the cosine schedule's N points have N - 1 steps
        "euler": ("edm", "euler", 1, 0),
        "heun": ("edm", "heun", 2, 1),  # the last step is Euler
        "rk4": ("angle", "rk4", 4, 1),  # the slope at sigma = 0 is known
    }

    @classmethod
    def parse(cls, text: str, *, argument: str = "sampler", sigma_data: float = 0.5) -> Sampler:
        """Read ``name:steps`` (or ``exact``). Raises `InputError` naming ``argument`` for anything else."""
        name, _, steps = text.partition(":")
        for known in cls.KNOWN:
            if name not in cls.KNOWN and name.removeprefix(known).isdecimal():
                raise InputError(argument, text, f"write {known}:{name.removeprefix(known)}")
        choose(argument, name, [*cls.KNOWN, "exact"])
        if name == "exact":
            if steps:
                raise InputError(argument, text, "'exact' takes no number of steps")
            return cls("exact", 0, sigma_data)
        least = 2 if name == "ddim" else 1
        if not re.fullmatch("[0-9]{1,5}", steps) or not least <= int(steps) <= cls.MOST_STEPS:
            expected = f"write {name}:N with {least} to {cls.MOST_STEPS} steps, such as {name}:20"
            raise InputError(argument, text, expected)
        return cls(name, int(steps), sigma_data)

    def __str__(self) -> str:
        return f"{self.name}:{self.steps}" if self.steps else self.name

    @property
    def nfe(self) -> int:
        """Network evaluations per sample (of one network). 0 for 'exact'."""
        if not self.steps:
            return 0
        _, _, per_step, saved = self.KNOWN[self.name]
        return per_step * (len(self.sigmas()) - 1) - saved

    def evaluations(self, schedule: GuidanceSchedule = FULL) -> tuple[int, int]:
        """How often a sample evaluates (base, auxiliary) on a guidance schedule (default: full), counted by a dry run.

        (0, 0) for 'exact'. A churned sampler is counted as it is run, with its raised noise levels.
        """
        if not self.steps:
            return 0, 0
        point = torch.zeros(1, 1, dtype=torch.float64)
        return schedule.counted(lambda denoiser: self(denoiser, point, torch.zeros))

    def doubled(self) -> Sampler:
        """The same sampler with twice the steps: the equal-cost control of two-network guidance."""
        return replace(self, steps=2 * self.steps)

    def sigmas(self) -> Tensor:
        """The noise levels, decreasing, last 0. Levels that a table makes equal are one."""
        grid = self._grid()
        if self.rounded is None:
            return grid
        known = self.rounded(grid[:-1])
        return torch.cat([known[:1], known[1:][known.diff() < 0], grid[-1:]])

    def _grid(self) -> Tensor:
        grid = self.KNOWN[self.name][0]
        if grid == "cosine":
            return cosine_sigmas(self.steps) if self.schedule is None else self.schedule(self.steps)
        if grid == "angle":
            return angle_sigmas(self.steps, self.sigma_data, self.sigma_max)
        return edm_sigmas(self.steps, self.sigma_min, self.sigma_max, self.rho)

    def start(self, unit_noise: Tensor) -> Tensor:
        """Scale N(0, I) draws to the first noise level.

        The cosine grid starts from N(0, I) in variance-preserving coordinates (variance sigma^2 + 1), the angle grid
        from N(0, sigma_data^2 I) in its own (variance sigma^2 + sigma_data^2), EDM's from variance sigma^2.
        """
        top = float(self.sigmas()[0])
        extra = {"cosine": 1.0, "angle": self.sigma_data**2, "edm": 0.0}[self.KNOWN[self.name][0]]
        return unit_noise * math.sqrt(top**2 + extra)

    @torch.no_grad()
    def __call__(self, denoiser: Denoiser, unit_noise: Tensor, noise: Noise | None = None) -> Tensor:
        """Samples from N(0, I) draws ``unit_noise`` (B, ...); ``noise`` is needed with churn only."""
        return deque(self.states(denoiser, unit_noise, noise), maxlen=1)[0]

    def states(self, denoiser: Denoiser, unit_noise: Tensor, noise: Noise | None = None) -> Iterator[Tensor]:
        """The states on the way (`trajectory`), the samples last, with gradients where they are wanted."""
        if not self.steps:
            raise InputError("sampler", "exact", "an exact sampler exists for Gaussians only; write name:steps")
        return trajectory(
            denoiser,
            self.start(unit_noise.to(torch.float64)),
            self.sigmas(),
            solver=self.KNOWN[self.name][1],
            sigma_data=self.sigma_data,
            churn=self.churn,
            noise=noise,
            rounded=self.rounded,
        )


# ------------------------------------------------- samples that have own seeds


class SampleNoise:
    """Standard normal draws in which row i depends on (seed, indices[i]) alone, whatever the batch and the device.

    Calls continue the rows' streams, so that churn is as reproducible as the start. Drawn on the CPU, float64.
    """

    def __init__(self, seed: Seed, indices: Sequence[int]) -> None:
        self._generators = [seed.child("sample", int(i)).torch() for i in indices]

    def __call__(self, shape: Sequence[int]) -> Tensor:
        """Draws of the given shape; its first axis is the rows this noise was made for."""
        if shape[0] != len(self._generators):
            raise InputError("shape", tuple(shape), f"this noise has {len(self._generators)} rows")
        rows = [torch.randn(tuple(shape[1:]), generator=g, dtype=torch.float64) for g in self._generators]
        return torch.stack(rows)


def generate(
    denoiser: Callable[[Sequence[int]], Denoiser] | Denoiser,
    sampler: Sampler,
    indices: Sequence[int],
    shape: Sequence[int],
    *,
    seed: Seed,
    batch: int,
    device: str | torch.device = "cpu",
    per_batch: bool = False,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield (indices, samples) batch by batch; a sample depends on (seed, index) alone.

    shape: of one sample. batch: the compute batch; the last one is padded to it, because float32 networks differ
    between batch sizes by about 2e-6: at one recorded ``batch`` results are bitwise equal across ranks and resumes.
    per_batch: ``denoiser`` is a function of the (padded) indices that returns the denoiser, for class labels.

    >>> def drawn(indices, batch):
    ...     gaussian = lambda x, sigma: x / (1 + sigma**2)
    ...     batches = generate(gaussian, Sampler.parse("heun:18"), indices, (2,), seed=Seed(0), batch=batch)
    ...     return torch.cat([samples for _, samples in batches])
    >>> bool((drawn(range(5), batch=2)[4] == drawn([4], batch=3)[0]).all())
    True
    """
    if batch < 1:
        raise InputError("batch", batch, "give a positive compute batch")
    for first in range(0, len(indices), batch):
        wanted = list(indices[first : first + batch])
        padded = wanted + [wanted[-1]] * (batch - len(wanted))
        noise = SampleNoise(seed, padded)
        start = moved(noise((batch, *shape)), device)
        model: Denoiser = denoiser(padded) if per_batch else denoiser  # type: ignore[assignment,call-arg,arg-type]
        yield wanted, sampler(model, start, noise)[: len(wanted)]
