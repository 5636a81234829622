"""Averages of a network's weights: EDM's half-life, and EDM2's power-function profiles with any width afterwards.

Half-life (Karras et al. 2022, arXiv 2206.00364): the weight of the past halves every ``halflife`` images; while
training is young the half-life is at most ``rampup`` times the images seen, so that the first steps are forgotten.

Power function (Karras et al. 2024, arXiv 2312.02696, Sec. 3): after t images the weights at time s count in proportion
to s^gamma, so the profile keeps its shape relative to the length of training. Its width is its standard deviation
divided by t, the paper's sigma_rel. Averages of other widths, at any time up to the last, are combinations of stored
ones: the coefficients are the least-squares fit of the wanted profile (Algorithm 3).

Time is counted in images seen. Averages are float32, like the weights.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sims_core.errors import InputError

Array: TypeAlias = npt.NDArray[np.float64]
Floats: TypeAlias = Array | float
Weights: TypeAlias = dict[str, Tensor]

# --------------------------------------------------------------------- profiles


def gamma_from_width(width: float) -> float:
    """The power function's exponent gamma whose profile has the relative width ``width`` (arXiv 2312.02696, Alg. 2).

    The largest root of width^2 (gamma + 2)^2 (gamma + 3) = gamma + 1. Raises `InputError` unless
    0 < width < 12^-1/2, the width of the uniform average (gamma = 0).
    """
    if not 0 < width < 12**-0.5:
        raise InputError("EMA width", width, "a relative width (sigma_rel) lies between 0 and 0.288, such as 0.05")
    t = width**-2
    return float(np.roots([1, 7, 16 - t, 12 - t]).real.max())


def width_from_gamma(gamma: float) -> float:
    """The relative width (sigma_rel) of the profile s^gamma (arXiv 2312.02696, Eq. 123)."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


@dataclass(frozen=True)
class HalfLife:
    """EDM's average. halflife: in images. rampup: fraction of the images seen that bounds it; None for no bound."""

    halflife: float
    rampup: float | None = 0.05

    def __post_init__(self) -> None:
        if not 0 < self.halflife < math.inf:
            raise InputError("ema_halflife", self.halflife, "give a positive number of images")
        if self.rampup is not None and not self.rampup > 0:
            raise InputError("ema_rampup", self.rampup, "give a positive fraction of the images seen, or none")

    @property
    def name(self) -> str:
        """What its checkpoints are called."""
        return "ema"

    @property
    def record(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"kind": "halflife", "halflife": self.halflife, "rampup": self.rampup}

    def keep(self, seen: int, batch: int) -> float:
        """How much of the average stays in the step that brings the images seen from ``seen`` to ``seen + batch``."""
        halflife = self.halflife if self.rampup is None else min(self.halflife, self.rampup * seen)
        return float(0.5 ** (batch / halflife)) if halflife > 0 else 0.0


@dataclass(frozen=True)
class Power:
    """EDM2's average. width: sigma_rel, the standard deviation of the profile as a fraction of training so far."""

    width: float

    def __post_init__(self) -> None:
        gamma_from_width(self.width)

    @property
    def name(self) -> str:
        """What its checkpoints are called."""
        return f"ema-{self.width:.3f}"

    @property
    def record(self) -> dict[str, Any]:
        """JSON-able description."""
        return {"kind": "power", "width": self.width}

    def keep(self, seen: int, batch: int) -> float:
        """As `HalfLife.keep`: (1 - batch / (seen + batch))^(gamma + 1) (arXiv 2312.02696, Eq. 127)."""
        return float((seen / (seen + batch)) ** (gamma_from_width(self.width) + 1))


Profile: TypeAlias = HalfLife | Power

# --------------------------------------------------------------------- tracking


class Averages:
    """Several averages of one network's parameters, updated after every optimiser step without a host sync.

    profiles: with distinct names. An average starts as the network is now.
    """

    def __init__(self, network: torch.nn.Module, profiles: Sequence[Profile]) -> None:
        self.profiles, self._network = tuple(profiles), network
        if len({p.name for p in self.profiles}) < len(self.profiles):
            raise InputError("EMA widths", [p.name for p in self.profiles], "give widths that differ in three decimals")
        self._tracked: list[Tensor] = [p for p in network.parameters() if p.requires_grad]
        self._names = [n for n, p in network.named_parameters() if p.requires_grad]
        self._averages = [[p.detach().clone() for p in self._tracked] for _ in self.profiles]

    @torch.no_grad()
    def update(self, seen: int, batch: int) -> None:
        """Take in the weights after a step that brought the images seen from ``seen`` to ``seen + batch``."""
        for profile, average in zip(self.profiles, self._averages, strict=True):
            torch._foreach_lerp_(average, self._tracked, 1 - profile.keep(seen, batch))

    def weights(self, profile: Profile) -> Weights:
        """One average as a state dict of the network; what is not averaged (buffers) is the network's own."""
        average = self._averages[self.profiles.index(profile)]
        return {**self._network.state_dict(), **dict(zip(self._names, average, strict=True))}

    def state_dict(self) -> dict[str, Weights]:
        """All averages by profile name, of the averaged parameters alone."""
        return {
            profile.name: dict(zip(self._names, average, strict=True))
            for profile, average in zip(self.profiles, self._averages, strict=True)
        }

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Weights]) -> None:
        """Continue from `state_dict`. Raises `InputError` unless it holds these averages of this network."""
        if set(state) != {p.name for p in self.profiles}:
            raise InputError("averages", sorted(state), f"this run keeps {[p.name for p in self.profiles]}")
        for profile, average in zip(self.profiles, self._averages, strict=True):
            stored = state[profile.name]
            if list(stored) != self._names:
                raise InputError("averages", profile.name, "its parameters are not this network's")
            for mine, theirs in zip(average, stored.values(), strict=True):
                mine.copy_(theirs)


# --------------------------------------------------------- any width, afterwards


def overlap(time_a: Floats, width_a: Floats, time_b: Floats, width_b: Floats) -> Array:
    """Inner product of power profiles, elementwise: the integral of p_a p_b (arXiv 2312.02696, Eq. 151).

    p(s) = (gamma + 1) s^gamma / t^(gamma + 1) on [0, t], with t the times and gamma of the widths.
    """
    a, b = (np.vectorize(gamma_from_width, otypes=[float])(w) for w in (width_a, width_b))
    shorter = np.minimum(time_a, time_b)
    shapes = (a + 1) * np.log(shorter / time_a) + (b + 1) * np.log(shorter / time_b)
    return np.asarray((a + 1) * (b + 1) / (a + b + 1) / shorter * np.exp(shapes))


def coefficients(times: Sequence[float], widths: Sequence[float], time: float, width: float) -> Array:
    """How much of each stored average makes up the one of ``width`` at ``time``: (n,), they sum to 1.

    times, widths: of the stored averages, in images seen and sigma_rel. The least-squares fit of the wanted profile
    by the stored ones (arXiv 2312.02696, Algorithm 3). Raises `InputError` for a time after the last stored one.
    """
    if not len(times):
        raise InputError("snapshots", 0, "post-hoc EMA needs at least one stored power-function average")
    if not 0 < time <= max(times):
        raise InputError("budget", time, f"the stored averages end at {max(times):g} images seen; none can say more")
    t, w = np.asarray(times, dtype=np.float64), np.asarray(widths, dtype=np.float64)
    found = np.linalg.lstsq(overlap(t[:, None], w[:, None], t, w), overlap(t, w, time, width), rcond=None)[0]
    return np.asarray(found / found.sum())


def misfit(times: Sequence[float], widths: Sequence[float], time: float, width: float) -> float:
    """How far the reconstructed profile is from the wanted one: the relative L2 error of `coefficients`' fit.

    0 is exact. Stored averages that are too few, or too far from the width wanted, show here.
    """
    x = coefficients(times, widths, time, width)
    t, w = np.asarray(times, dtype=np.float64), np.asarray(widths, dtype=np.float64)
    own = overlap(time, width, time, width)
    square = np.dot(x, np.dot(overlap(t[:, None], w[:, None], t, w), x) - 2 * overlap(t, w, time, width)) + own
    return math.sqrt(max(float(square), 0.0) / float(own))


def reconstruct(
    snapshots: Iterable[Mapping[str, Tensor]],
    times: Sequence[float],
    widths: Sequence[float],
    time: float,
    width: float,
) -> Weights:
    """The average of relative width ``width`` at ``time``, from the stored ``snapshots``, as a state dict.

    snapshots: state dicts, one for each of ``times`` and ``widths``; read one at a time, so that a generator keeps one
    in memory. Sums are float64; tensors that are not floating point are the last snapshot's.
    """
    factors = coefficients(times, widths, time, width)
    total: Weights = {}
    like: Weights = {}
    for factor, weights in zip(factors, snapshots, strict=True):
        for name, value in weights.items():
            like[name] = value
            if value.is_floating_point():
                part = value.double() * float(factor)
                total[name] = total[name].add_(part) if name in total else part
    return {name: total[name].to(value.dtype) if name in total else value.clone() for name, value in like.items()}
