"""Settings of a training: learning rates, noise, averages."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from sims_core.diffusion import LogNormal
from sims_core.errors import InputError, choose
from sims_toy.networks.targets import CosineSteps, Layout, NoiseLevels, UniformAngle, UniformTime


@dataclass(frozen=True)
class Schedule:
    """Learning rates: a linear ramp over ``warmup`` steps to ``peak``, then ``decay`` over the steps that are left.

    decay: 'constant', 'linear' or 'cosine', the latter two down to ``final`` times the peak at the last step.
    """

    peak: float = 1e-2
    warmup: int = 10
    decay: str = "cosine"
    final: float = 0.0

    def __post_init__(self) -> None:
        choose("decay", self.decay, ("constant", "linear", "cosine"))
        if not (self.peak > 0 and self.warmup >= 0 and 0 <= self.final <= 1):
            raise InputError("schedule", self, "peak must be positive, warmup >= 0 and final in [0, 1]")

    def rates(self, steps: int) -> Tensor:
        """The learning rate at each of ``steps`` steps, float64."""
        t = torch.arange(steps, dtype=torch.float64)
        ramp = ((t + 1) / max(self.warmup, 1)).clamp(max=1)
        done = ((t - self.warmup) / max(steps - 1 - self.warmup, 1)).clamp(0, 1)
        shape = {"constant": torch.ones_like(t), "linear": 1 - done, "cosine": (1 + torch.cos(torch.pi * done)) / 2}
        return self.peak * ramp * (self.final + (1 - self.final) * shape[self.decay])


@dataclass(frozen=True)
class Training:
    """Settings of `train`, the same for all networks.

    steps, batch: Adam steps and rows per step; a network with at most ``batch`` points sees all of them every step.
    target: 'posterior', 'plain' or 'ot' (plain, with a step's noise and data paired by exact optimal transport; arXiv
    2302.00482); reference: points of the random subset for 'posterior' (None: the whole data set;
    what each costs is in `sims_toy.networks.targets`). noise: training noise levels, represented by ``levels``
    quantiles. stratified: spread a step's levels evenly over the distribution (a lower-variance draw of the same
    distribution). quasi: rows of all steps from one randomly shifted Sobol sequence, the data sorted along their
    principal axis: fewer of them reach the same distance (`benchmarks/figure4.py`). beta1, beta2, eps: Adam (Kingma &
    Ba 2015). ema_halflife: in samples seen (EDM's convention), None for no average; ema_rampup: the half-life is at
    most this fraction of the samples seen so far (EDM: 0.05), None for no ramp.

    The defaults suit small data sets: on 192 sets of 1,000 points from an anisotropic Gaussian in the plane, widths
    (32, 32), the trained networks' mean W2 is 1.03 (standard error .01) times the maximum-likelihood fit's, and 1.08
    after 100 steps; with the plain target and the same 200 steps it is about 1.45.
    """

    steps: int = 200
    batch: int = 64
    schedule: Schedule = Schedule()
    target: str = "posterior"
    reference: int | None = None
    noise: NoiseLevels = field(default_factory=UniformAngle)
    levels: int = 1024
    stratified: bool = True
    quasi: bool = False
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    ema_halflife: float | None = None
    ema_rampup: float | None = None

    def __post_init__(self) -> None:
        choose("target", self.target, ("posterior", "plain", "ot"))
        for name in ("steps", "batch", "levels"):
            if getattr(self, name) < 1:
                raise InputError(name, getattr(self, name), "give a positive number")
        if self.reference is not None and (self.target != "posterior" or self.reference < 2):
            raise InputError("reference", self.reference, "a subset of at least 2 points, for target='posterior' only")
        if not isinstance(self.noise, UniformAngle | UniformTime | LogNormal | CosineSteps):
            raise InputError("noise", self.noise, "give a UniformAngle, UniformTime, LogNormal or CosineSteps")
        if not (0 <= self.beta1 < 1 and 0 <= self.beta2 < 1 and self.eps > 0):
            raise InputError("beta1, beta2, eps", (self.beta1, self.beta2, self.eps), "betas in [0, 1), eps positive")
        if self.ema_halflife is not None and not self.ema_halflife > 0:
            raise InputError("ema_halflife", self.ema_halflife, "a positive number of samples, or None")

    def layout(self, dim: int, count: int) -> Layout:
        """Where a network with ``count`` points finds its draws."""
        subset = self.reference if self.reference is not None and self.reference < count else 0
        levels = self.noise.steps if isinstance(self.noise, CosineSteps) else self.levels
        return Layout(
            min(self.batch, count), dim, count, levels, subset, self.stratified and not self.quasi, self.quasi
        )

    def scalars(self, rows: int) -> Tensor:
        """What each step needs besides draws [steps, 3], float64.

        Columns: Adam's rate / (1 - beta1^t), its 1 / (1 - beta2^t), and the weight 1 - beta of the new EMA value.
        """
        t = torch.arange(1, self.steps + 1, dtype=torch.float64)
        halflife = torch.full_like(t, self.ema_halflife or 1.0)
        if self.ema_rampup is not None:
            halflife = torch.minimum(halflife, (t - 1) * rows * self.ema_rampup).clamp(min=1e-8)
        first, second = self.schedule.rates(self.steps) / (1 - self.beta1**t), 1 / (1 - self.beta2**t)
        return torch.stack([first, second, 1 - 0.5 ** (rows / halflife)], 1)
