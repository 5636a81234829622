"""Layers of the EDM networks: linear maps, convolutions that resample, group normalisation, attention, embeddings.

Weights are float32 and are cast to the type of what they are applied to. State-dict names are the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sims_core.errors import InputError


@dataclass(frozen=True)
class Init:
    """How a layer starts: a distribution, and factors of the weights and of the biases drawn from it.

    kind: 'xavier', uniform of variance 2 / (fan_in + fan_out) (Glorot & Bengio 2010); 'kaiming', uniform of variance
    1 / fan_in; 'normal', normal of variance 1 / fan_in (He et al. 2015, linear gain).
    """

    kind: str
    weight: float = 1.0
    bias: float = 0.0

    def draw(self, shape: Sequence[int], fan_in: int, fan_out: int, factor: float) -> nn.Parameter:
        """A parameter of the given shape, from torch's global generator."""
        if self.kind == "normal":
            return nn.Parameter(torch.randn(*shape) * (factor / math.sqrt(fan_in)))
        bound = math.sqrt(6 / (fan_in + fan_out)) if self.kind == "xavier" else math.sqrt(3 / fan_in)
        return nn.Parameter((torch.rand(*shape) * 2 - 1) * (factor * bound))


class Linear(nn.Module):
    """x -> x W^T + b for x (..., fan_in)."""

    def __init__(self, fan_in: int, fan_out: int, init: Init, *, bias: bool = True) -> None:
        super().__init__()
        self.weight = init.draw((fan_out, fan_in), fan_in, fan_out, init.weight)
        self.bias = init.draw((fan_out,), fan_in, fan_out, init.bias) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., fan_in) -> (..., fan_out)."""
        return F.linear(x, self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))


# -------------------------------------------------------------------- resampling


def filter_taps(resample_filter: Sequence[float]) -> Tensor:
    """The separable 2-D filter of a 1-D one, normalised to sum 1: (1, 1, k, k), float32.

    Raises `InputError` unless the filter has an even number of taps and a sum that is not 0.
    """
    taps = [float(tap) for tap in resample_filter]
    if len(taps) % 2 or not taps or not sum(taps):
        raise InputError("resample_filter", list(resample_filter), "an even number of taps: [1, 1] or [1, 3, 3, 1]")
    row = torch.tensor(taps, dtype=torch.float32)
    return torch.outer(row, row)[None, None] / row.sum() ** 2


def is_box(resample_filter: Sequence[float]) -> bool:
    """Whether the filter averages 2x2 pixels, which pooling and repeating do without a convolution."""
    return len(resample_filter) == 2 and resample_filter[0] == resample_filter[1]


def downsample(x: Tensor, taps: Tensor, *, box: bool = False, padded: bool = False) -> Tensor:
    """Filter each channel and keep every other pixel: (N, C, H, W) -> (N, C, H / 2, W / 2).

    padded: the border has been added before.
    """
    if box and not padded:
        return F.avg_pool2d(x, 2)
    pad = 0 if padded else (taps.shape[-1] - 1) // 2
    return F.conv2d(x, _per_channel(taps, x), groups=x.shape[1], stride=2, padding=pad)


def upsample(x: Tensor, taps: Tensor, *, box: bool = False, cut: int | None = None) -> Tensor:
    """Put zeros between the pixels and filter each channel: (N, C, H, W) -> (N, C, 2 H, 2 W).

    cut: pixels taken off each border, by default what makes the size exactly twice.
    """
    if box and cut is None:
        return F.interpolate(x, scale_factor=2.0, mode="nearest")
    cut = (taps.shape[-1] - 1) // 2 if cut is None else cut
    return F.conv_transpose2d(x, _per_channel(4 * taps, x), groups=x.shape[1], stride=2, padding=cut)


def _per_channel(taps: Tensor, x: Tensor) -> Tensor:
    return taps.to(x.dtype).expand(x.shape[1], -1, -1, -1)


class Resample(nn.Module):
    """Doubling (``up``), halving (``down``) or keeping the resolution, with the filter in the state dict."""

    resample_filter: Tensor | None

    def __init__(self, *, up: bool = False, down: bool = False, resample_filter: Sequence[float] = (1, 1)) -> None:
        super().__init__()
        self.up, self.box = up, is_box(resample_filter)
        self.register_buffer("resample_filter", filter_taps(resample_filter) if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H', W')."""
        if self.resample_filter is None:
            return x
        return (upsample if self.up else downsample)(x, self.resample_filter, box=self.box)


class Conv2d(Resample):
    """A convolution with bias at its output's resolution, after `Resample`.

    fused: filter and convolution are one operator whose borders are added once (NCSN++'s residual inputs): the
    convolution comes before ``down``'s filter, and after that of ``up``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        init: Init,
        *,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        fused: bool = False,
    ) -> None:
        super().__init__(up=up, down=down, resample_filter=resample_filter)
        self.fused = fused
        fans = in_channels * kernel**2, out_channels * kernel**2
        self.weight = init.draw((out_channels, in_channels, kernel, kernel), *fans, init.weight)
        self.bias = init.draw((out_channels,), *fans, init.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H', W')."""
        weight, bias, pad = self.weight.to(x.dtype), self.bias.to(x.dtype), self.weight.shape[-1] // 2
        if not self.fused or self.resample_filter is None:
            return F.conv2d(super().forward(x), weight, bias, padding=pad)
        border = (self.resample_filter.shape[-1] - 1) // 2
        if self.up:
            x = upsample(x, self.resample_filter, cut=max(border - pad, 0))
            return F.conv2d(x, weight, bias, padding=max(pad - border, 0))
        y = F.conv2d(x, weight, padding=pad + border)
        return downsample(y, self.resample_filter, padded=True) + bias[:, None, None]


# -------------------------------------------------------- normalisation, attention


class GroupNorm(nn.Module):
    """Group normalisation (Wu & He 2018) with 32 groups, or fewer so that a group has at least 4 channels."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        self.groups, self.eps = min(32, channels // 4), eps
        if not self.groups or channels % self.groups:
            raise InputError(
                "model_channels", f"a layer of {channels}", "channels must be a multiple of 4, and of 32 from 128 on"
            )
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N, channels, H, W) -> the same shape."""
        return F.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def tokens(x: Tensor) -> Tensor:
    """Pixels as a sequence, (N, C, H, W) -> (N, H W, C): a view where x is channels-last."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def untokens(t: Tensor, like: Tensor) -> Tensor:
    """The inverse of `tokens`: (N, H W, C) -> (N, C, H, W), with the height and width of ``like``."""
    return t.reshape(len(t), *like.shape[2:], t.shape[2]).permute(0, 3, 1, 2)


def by_role(weight: Tensor, heads: int) -> Tensor:
    """Sort the rows of a query-key-value map by role first: published rows run over (head, channel, role).

    (3 C, ...) -> (3 C, ...) with rows over (role, head, channel), so that queries, keys and values are contiguous.
    """
    rows = weight.reshape(heads, -1, 3, *weight.shape[1:])
    return rows.movedim(2, 0).reshape(weight.shape)


def split_roles(t: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each (N, heads, L, d), of a sequence (N, L, 3 C) sorted by role."""
    q, k, v = t.reshape(len(t), t.shape[1], 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention over L, softmax(q k^T / sqrt(d)) v, heads joined: three (N, heads, L, d) -> (N, L, C)."""
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


# ---------------------------------------------------------------------- embeddings


class PositionalEmbedding(nn.Module):
    """Cosines and sines of the noise label at geometric frequencies from 1 down to 1/10000 (Vaswani et al. 2017).

    endpoint: the last frequency is 1/10000 exactly (DDPM++) rather than one step above it (ADM).
    """

    def __init__(self, channels: int, *, endpoint: bool) -> None:
        super().__init__()
        self.frequencies, self.endpoint = channels // 2, endpoint

    def forward(self, c: Tensor) -> Tensor:
        """(N,) -> (N, channels): all cosines, then all sines."""
        steps = torch.arange(self.frequencies, dtype=torch.float32, device=c.device)
        steps = steps / (self.frequencies - self.endpoint)
        angles = torch.outer(c, (1 / 10000) ** steps)
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Cosines and sines of the noise label at random frequencies 16 N(0, 1), fixed (NCSN++; Tancik et al. 2020)."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 16 * torch.randn(channels // 2))

    def forward(self, c: Tensor) -> Tensor:
        """(N,) -> (N, channels): all cosines, then all sines."""
        angles = torch.outer(c, 2 * math.pi * self.freqs)
        return torch.cat([angles.cos(), angles.sin()], dim=1)
