"""K normalizing flows of one architecture as one object, their parameters a plain tensor [K, P]: zuko's, stacked.

The networks and transformations are zuko's (extra 'flows'); stacking is `torch.func`. A flow is z = f((x - center) /
scale) with z ~ N(0, I), so that log p(x) = log N(z) + log |det f'| - sum log scale exactly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from sims_core.errors import InputError, extra
from sims_core.seeds import Seed
from sims_toy.flows.settings import FlowSettings
from sims_toy.networks.schedule import Training

Shape: TypeAlias = tuple[str, int, int, int, int, int]
"""An architecture: kind, dimension, transforms, bins, width, layers."""

#: Flows that are evaluated together at most. One alone is stacked with itself: products of single matrices round
#: differently from those of stacks, which a flow's result must not depend on.
STACK = 24


class _Module(nn.Module):
    """A zuko flow as one function: to the noise with log |det|, or back."""

    def __init__(self, flow: Any) -> None:
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, back: bool) -> Tensor | tuple[Tensor, Tensor]:
        transform = self.flow().transform
        return transform.inv(x) if back else transform.call_and_ladj(x)  # type: ignore[no-any-return]


def _zuko() -> Any:
    try:
        import zuko
    except ImportError:
        raise InputError("learner", "flow", f"zuko is not installed: {extra('flows')}") from None
    return zuko.flows


def shape_of(settings: FlowSettings, dim: int) -> Shape:
    """The architecture of the settings in ``dim`` dimensions."""
    return (settings.kind, dim, settings.transforms, settings.bins, settings.width, settings.layers)


def _build(shape: Shape) -> _Module:
    kind, dim, transforms, bins, width, layers = shape
    common: dict[str, Any] = {"transforms": transforms, "hidden_features": (width,) * layers}
    if kind == "spline":
        return _Module(_zuko().NSF(dim, bins=bins, **common))
    return _Module(_zuko().RealNVP(dim, **common))


@cache
def template(shape: Shape) -> tuple[_Module, tuple[tuple[str, torch.Size], ...]]:
    """A flow to call with other parameters, and their names and shapes. Torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        made = _build(shape)
    made.requires_grad_(False)
    return made, tuple((name, p.shape) for name, p in made.named_parameters())


def _call(shape: Shape, params: Tensor, x: Tensor, back: bool) -> Any:
    """One flow with flat parameters (P,)."""
    module, parts = template(shape)
    sizes = [size.numel() for _, size in parts]
    named = {name: v.view(size) for (name, size), v in zip(parts, torch.split(params, sizes), strict=True)}
    return functional_call(module, named, (x, back))


def log_likelihood(shape: Shape, params: Tensor, x: Tensor) -> Tensor:
    """log p of standardised points x (N, d) by one flow of parameters (P,): (N,). Differentiable in both."""
    z, volume = _call(shape, params, x, False)
    logs: Tensor = volume - z.square().sum(-1) / 2 - z.shape[-1] * math.log(2 * math.pi) / 2
    return logs


@dataclass(frozen=True)
class Flows:
    """K flows. params: [K, P]. center, scale: [K, d], of the data that each was first trained on, float64."""

    shape: Shape
    params: Tensor
    center: Tensor
    scale: Tensor

    def __post_init__(self) -> None:
        template(self.shape)  # it draws, which `vmap` would refuse

    @classmethod
    def initial(cls, shape: Shape, seeds: Sequence[Seed], center: Tensor, scale: Tensor) -> Flows:
        """Untrained flows, one per seed."""
        rows = []
        for seed in seeds:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed.child("init").integer())
                rows.append(torch.cat([p.detach().reshape(-1) for p in _build(shape).parameters()]))
        return cls(shape, torch.stack(rows), center, scale)

    def __len__(self) -> int:
        return self.params.shape[0]

    @property
    def dim(self) -> int:
        """The data's dimension."""
        return self.shape[1]

    @property
    def diverged(self) -> Tensor:
        """Which flows have non-finite parameters [K]."""
        return ~self.params.isfinite().all(1)

    def take(self, rows: Sequence[int]) -> Flows:
        """The flows of these rows (repeats allowed)."""
        at = list(rows)
        return replace(self, params=self.params[at], center=self.center[at], scale=self.scale[at])

    def with_params(self, params: Tensor) -> Flows:
        """The same architecture with other parameters [K, P]."""
        return replace(self, params=params)

    def views(self, flat: Tensor) -> list[Tensor]:
        """The parts of parameters [K, P], each [K, ...], as views."""
        _, parts = template(self.shape)
        cut = torch.split(flat, [size.numel() for _, size in parts], dim=1)
        return [v.view(-1, *size) for (_, size), v in zip(parts, cut, strict=True)]

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x), [K, n], of points x [K, n, d], float64, differentiable; computed in the parameters' dtype."""
        z, volume = self._stacked(self._standard(x), back=False)
        z, volume = z.double(), volume.double()
        logs: Tensor = volume - z.square().sum(2) / 2 - self.dim * math.log(2 * math.pi) / 2
        return logs - self.scale.log().sum(1, keepdim=True)

    def pushed(self, z: Tensor) -> Tensor:
        """The points x [K, n, d], float64, that noise z [K, n, d] becomes."""
        x: Tensor = self._stacked(z.to(self.params.dtype), back=True).double()
        return x * self.scale[:, None] + self.center[:, None]

    def _standard(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[0] != len(self) or x.shape[2] != self.dim:
            raise InputError("x", tuple(x.shape), f"these flows need shape ({len(self)}, n, {self.dim})")
        return ((x.double() - self.center[:, None]) / self.scale[:, None]).to(self.params.dtype)

    def _stacked(self, x: Tensor, *, back: bool) -> Any:
        """All flows on x [K, n, d], `STACK` at a time."""
        run = vmap(lambda params, rows: _call(self.shape, params, rows, back))
        found = [run(p, rows) for p, rows in zip(_blocks(self.params), _blocks(x), strict=True)]
        if back:
            return self._whole(torch.cat(found))
        return tuple(self._whole(torch.cat(parts)) for parts in zip(*found, strict=True))

    def _whole(self, x: Tensor) -> Tensor:
        """Without what was doubled, and NaN for diverged flows: a spline of NaN is the identity."""
        mine = x[: len(self)]
        return torch.where(self.diverged.view(-1, *[1] * (x.ndim - 1)), torch.nan, mine)


def _blocks(x: Tensor) -> list[Tensor]:
    """Rows in blocks of at most `STACK` and at least two."""
    *most, last = torch.split(x, STACK)
    return [*most, torch.cat([last, last]) if len(last) == 1 else last]


def train(flows: Flows, data: Tensor, seeds: Sequence[Seed], settings: Training) -> Tensor:
    """Parameters [K, P] of copies of the flows, each trained by maximum likelihood on its own data [K, N, d].

    Adam as in `sims_toy.networks.training`, and its average where the settings have one. A flow whose loss or gradient
    is not finite becomes NaN, and touches no other. Raises `InputError` for data of another dimension than the flows'.
    """
    x = flows._standard(data)
    made = [
        _trained(flows.shape, params, rows, [seeds[min(first + i, len(seeds) - 1)] for i in range(len(rows))], settings)
        for first, params, rows in zip(range(0, len(x), STACK), _blocks(flows.params), _blocks(x), strict=True)
    ]
    return torch.cat(made)[: len(flows)]


def _trained(shape: Shape, params: Tensor, x: Tensor, seeds: Sequence[Seed], settings: Training) -> Tensor:
    def loss(p: Tensor, rows: Tensor) -> Tensor:
        return -log_likelihood(shape, p, rows).mean()

    slope: Callable[..., tuple[Tensor, Tensor]] = vmap(grad_and_value(loss))
    count, size = x.shape[1], min(settings.batch, x.shape[1])
    generators = [seed.child("train").torch() for seed in seeds]
    params, average = params.clone(), params.clone()
    first, second = torch.zeros_like(params), torch.zeros_like(params)
    for rate, correction, fresh in settings.scalars(size).to(params):
        rows = x
        if size < count:
            picked = torch.stack([torch.randint(count, (size,), generator=g) for g in generators])
            rows = x.gather(1, picked[..., None].expand(-1, -1, x.shape[2]))
        gradient, value = slope(params, rows)
        sound = value.isfinite() & gradient.sum(1).isfinite()
        first.lerp_(gradient, 1 - settings.beta1)
        second.mul_(settings.beta2).add_(gradient.square().mul_(1 - settings.beta2))
        step = first / (second * correction).sqrt_().add_(settings.eps)
        params.sub_(step.mul_(torch.where(sound, rate, torch.nan)[:, None]))
        average.lerp_(params, float(fresh))
    return average if settings.ema_halflife is not None else params
