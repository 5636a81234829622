"""Flow matching: samplers in a velocity's own time, and the coupling of noise and data by optimal transport.

The linear path (arXiv 2210.02747, 2209.03003) is x_t = t y + (1 - t) n, noise at t = 0 and data at t = 1; a velocity is
v(x, t) = E[y - n | x_t = x], and dx/dt = v carries noise to data. With sigma = (1 - t) / t, x_t / t = y + sigma n is
what a denoiser sees, and D = x_t + (1 - t) v: `sims_core.denoiser.from_velocity` is that line as a view, `to_network`
the way back. v is affine in D with coefficients that no model changes, so SIMS's line holds for velocities as it
stands: `sims_core.guided` and its schedules take them (`by_sigma`).
"""

from __future__ import annotations

import itertools
import re
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from sims_core.errors import InputError, choose, extra
from sims_core.guidance import FULL, Denoiser, GuidanceSchedule, Stepped
from sims_core.sampling import Noise

Velocity: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``velocity(x, t) -> dx/dt``: x (B, ...), t zero-dim, from 0 (noise) to 1 (data)."""

# ------------------------------------------------------------------- variables


def time_of(sigma: Tensor) -> Tensor:
    """t at a noise level: 1 / (1 + sigma); 0 for infinite noise."""
    return 1 / (1 + sigma)


def sigma_of(t: Tensor) -> Tensor:
    """The noise level at t: (1 - t) / t, infinite at 0."""
    return (1 - t) / t


def by_sigma(velocity: Velocity) -> Denoiser:
    """A velocity that is told sigma, so that a guidance schedule with its intervals in sigma takes it."""
    return lambda x, sigma: velocity(x, time_of(sigma))


def by_time(guided: Denoiser) -> Velocity:
    """What a schedule made of two `by_sigma`, as a velocity again; it is told the sampler's steps where it wants to."""
    return _Stepped(guided) if hasattr(guided, "begin") else lambda x, t: guided(x, sigma_of(t))


@dataclass(frozen=True)
class _Stepped:
    inner: Any

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner(x, sigma_of(t))  # type: ignore[no-any-return] # which refuses: it is not told the steps

    def begin(self) -> Callable[[int], Velocity]:
        at = self.inner.begin()
        return lambda step: lambda x, t: at(step)(x, sigma_of(t))


# --------------------------------------------------------------------- solvers


def _euler(velocity: Velocity, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
    return x + h * velocity(x, t)


def _midpoint(velocity: Velocity, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
    return x + h * velocity(x + h / 2 * velocity(x, t), t + h / 2)


def _rk4(velocity: Velocity, x: Tensor, t: Tensor, h: Tensor) -> Tensor:
    k1 = velocity(x, t)
    k2 = velocity(x + h / 2 * k1, t + h / 2)
    k3 = velocity(x + h / 2 * k2, t + h / 2)
    k4 = velocity(x + h * k3, t + h)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


#: name -> (a step, its evaluations)
SOLVERS: dict[str, tuple[Callable[[Velocity, Tensor, Tensor, Tensor], Tensor], int]] = {
    "euler": (_euler, 1),
    "midpoint": (_midpoint, 2),
    "rk4": (_rk4, 4),
}


def trajectory(velocity: Velocity, x: Tensor, times: Tensor, *, solver: str = "rk4") -> Iterator[Tensor]:
    """Yield the state at every one of ``times``, the start included, in float64.

    x: (B, ...) at times[0]. times: 1-D, strictly increasing within [0, 1]. solver: of `SOLVERS`. A `Stepped` velocity
    is told the steps 0, 1, ... as they come. Raises `InputError` for an unknown solver or bad times.
    """
    step, _ = SOLVERS[choose("solver", solver, SOLVERS)]
    times = times.to("cpu", torch.float64)
    if times.ndim != 1 or len(times) < 2 or bool((times.diff() <= 0).any()) or times[0] < 0 or times[-1] > 1:
        raise InputError("times", [round(float(t), 4) for t in times], "give increasing times within [0, 1]")
    x, at = x.to(torch.float64), velocity.begin() if isinstance(velocity, Stepped) else None
    yield x
    for number, (t, end) in enumerate(itertools.pairwise(times)):
        x = step(velocity if at is None else at(number), x, t, end - t)
        yield x


class _TooManyError(Exception):
    """The bound on evaluations is passed."""


@torch.no_grad()
def dopri5(
    velocity: Velocity, x: Tensor, *, tolerance: float = 1e-5, most: int = 2000, span: tuple[float, float] = (0.0, 1.0)
) -> Tensor:
    """From noise x (B, ...) at t = 0 to t = 1 by Dormand and Prince's pair, relative and absolute ``tolerance``.

    most: evaluations. span: other times to begin and end at. The step is one for the whole batch: its error is the root
    mean square over x. By torchdiffeq (extra 'flows'). Raises `InputError` where that is missing, for a velocity that
    wants to be told the sampler's steps, and where the tolerance is not reached within ``most`` evaluations.
    """
    if isinstance(velocity, Stepped):
        raise InputError("guidance", "held", "an adaptive solver has no steps to hold it over; give full, or rk4:N")
    try:
        from torchdiffeq import odeint
    except ImportError:
        raise InputError("sampler", "dopri5", f"torchdiffeq is not installed: {extra('flows')}") from None
    taken = 0

    def counted(t: Tensor, state: Tensor) -> Tensor:
        nonlocal taken
        taken += 1
        if taken > most:
            raise _TooManyError
        return velocity(state, t).to(state.dtype)

    start = x.to(torch.float64)
    ends = torch.tensor(span, dtype=torch.float64, device=x.device)
    last = {"step_t": ends[1:]}  # no step goes beyond, where there is no velocity
    try:
        found: Tensor = odeint(counted, start, ends, rtol=tolerance, atol=tolerance, method="dopri5", options=last)[-1]
    except (_TooManyError, AssertionError):  # torchdiffeq asserts that its step has not shrunk to nothing
        reached = f"it is not reached within {min(taken, most)} evaluations; give a larger one, or rk4:N"
        raise InputError("tolerance", f"{tolerance:g}", reached) from None
    return found


@dataclass(frozen=True)
class VelocitySampler:
    """A solver in the velocity's own time, as written on a command line: ``euler:20``, ``rk4:8``, ``dopri5:1e-5``.

    steps: of equal length in t; 0 for dopri5, whose steps follow from its ``tolerance``.
    """

    name: str
    steps: int = 0
    tolerance: float = 0.0

    MOST_STEPS: ClassVar[int] = 10_000

    @classmethod
    def parse(cls, text: str, *, argument: str = "sampler") -> VelocitySampler:
        """Read ``name:steps`` or ``dopri5:tolerance``. Raises `InputError` naming ``argument`` for anything else."""
        name, _, number = text.partition(":")
        choose(argument, name, [*SOLVERS, "dopri5"])
        if name == "dopri5":
            try:
                tolerance = float(number)
            except ValueError:
                tolerance = 0.0
            if not 1e-13 <= tolerance < 1:
                raise InputError(argument, text, "write dopri5:TOLERANCE with 1e-13 to 1, such as dopri5:1e-5")
            return cls(name, tolerance=tolerance)
        if not re.fullmatch("[0-9]{1,5}", number) or not 1 <= int(number) <= cls.MOST_STEPS:
            raise InputError(argument, text, f"write {name}:N with 1 to {cls.MOST_STEPS} steps, such as {name}:20")
        return cls(name, int(number))

    def __str__(self) -> str:
        return f"{self.name}:{self.steps}" if self.steps else f"{self.name}:{self.tolerance:g}"

    @property
    def nfe(self) -> int:
        """Network evaluations per sample (of one network); 0 for dopri5, where the velocity decides."""
        return SOLVERS[self.name][1] * self.steps if self.steps else 0

    def evaluations(self, schedule: GuidanceSchedule = FULL) -> tuple[int, int]:
        """How often a sample evaluates (base, auxiliary) on a guidance schedule, counted by a dry run.

        (0, 0) for dopri5.
        """
        if not self.steps:
            return 0, 0
        return schedule.counted(lambda guided: self(by_time(guided), torch.zeros(1, 1)))

    def doubled(self) -> VelocitySampler:
        """The same with twice the steps: the equal-cost control of two-network guidance."""
        return replace(self, steps=2 * self.steps)

    def __call__(self, velocity: Velocity, unit_noise: Tensor, noise: Noise | None = None) -> Tensor:
        """Samples (B, ...), float64, from N(0, I) draws; ``noise`` is not used: the flow is deterministic."""
        if not self.steps:
            return dopri5(velocity, unit_noise, tolerance=self.tolerance)
        times = torch.linspace(0, 1, self.steps + 1, dtype=torch.float64)
        with torch.no_grad():
            return deque(trajectory(velocity, unit_noise, times, solver=self.name), maxlen=1)[0]


# -------------------------------------------------------------------- coupling


def coupling(noise: Tensor, data: Tensor) -> Tensor:
    """Which data point each noise row goes to, (B,): the assignment of least total squared distance, exactly (POT).

    noise, data: (B, ...). Trained on such pairs a flow's paths are straighter, with the same marginals (OT-CFM:
    arXiv 2302.00482, 2304.14772). Raises `InputError` for shapes that differ.

    >>> import torch
    >>> coupling(torch.tensor([[0.0], [5.0]]), torch.tensor([[4.0], [1.0]]))
    tensor([1, 0])
    """
    import ot

    if noise.shape != data.shape:
        raise InputError("noise", tuple(noise.shape), f"as many draws as data, and as large: {tuple(data.shape)}")
    a, b = (x.detach().flatten(1).to("cpu", torch.float64).numpy() for x in (noise, data))
    plan = ot.emd([], [], ot.dist(a, b), numItermax=10_000_000)  # equal weights: a corner is a permutation
    return torch.from_numpy(plan.argmax(1)).to(noise.device)
