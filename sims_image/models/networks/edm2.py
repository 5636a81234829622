"""EDM2's magnitude-preserving U-Net (Karras et al. 2024, arXiv 2312.02696, Section 2 and Figure 21).

Activations keep unit magnitude by design: weights are normalised in every use, and in training kept normalised in
place; there are no biases and no normalisation layers. Argument and state-dict names are the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sims_core.diffusion import EDM
from sims_image.models.networks.layers import (
    attend,
    by_role,
    downsample,
    filter_taps,
    is_box,
    split_roles,
    tokens,
    untokens,
    upsample,
)
from sims_image.models.networks.preconditioning import Flow, Preconditioned


def normalize(x: Tensor, dim: int | Sequence[int]) -> Tensor:
    """x over its root mean square along ``dim``, plus 1e-4; the norm is taken in float32 or better."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(x, dim=dim, keepdim=True, dtype=dtype)
    return x / (1e-4 + norm * math.sqrt(norm.numel() / x.numel())).to(x.dtype)


def normalized_weight(weight: Tensor) -> Tensor:
    """The rows of a weight, each over its root mean square (EDM2, Eq. 47, before the fan-in)."""
    return normalize(weight, tuple(range(1, weight.ndim)))


def mp_silu(x: Tensor) -> Tensor:
    """SiLU over its root mean square under N(0, 1), .596 (EDM2, Eq. 81)."""
    return F.silu(x) / 0.596


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The sum (1 - t) a + t b at unit magnitude (EDM2, Eq. 88)."""
    return a.lerp(b, t) / math.sqrt((1 - t) ** 2 + t**2)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Channels of a and b side by side, contributing as 1 - t to t, at unit magnitude (EDM2, Eq. 103)."""
    scale = math.sqrt((a.shape[1] + b.shape[1]) / ((1 - t) ** 2 + t**2))
    return torch.cat([a * (scale * (1 - t) / math.sqrt(a.shape[1])), b * (scale * t / math.sqrt(b.shape[1]))], dim=1)


class MPFourier(nn.Module):
    """Random Fourier features of unit magnitude, sqrt(2) cos(f x + p), fixed (EDM2, Eq. 75)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(N,) -> (N, channels), float32."""
        angles = torch.outer(x.to(torch.float32), self.freqs.to(torch.float32)) + self.phases.to(torch.float32)
        return angles.cos() * math.sqrt(2)


class MPConv(nn.Module):
    """A convolution (kernel k > 0) or linear map (kernel 0) whose weights have unit magnitude (EDM2, Eq. 47).

    In training mode each call first normalises the stored weights in place (forced weight normalisation, EDM2, Eq. 66).
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 0) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, *[kernel] * (2 if kernel else 0)))

    def scaled_weight(self, gain: Tensor | float = 1.0) -> Tensor:
        """The weight in use: normalised rows, times gain / sqrt(fan_in); float32."""
        if self.training:
            with torch.no_grad():
                self.weight.copy_(normalized_weight(self.weight))
        weight = self.weight.to(torch.float32)
        return normalized_weight(weight) * (gain / math.sqrt(weight[0].numel()))

    def forward(self, x: Tensor, gain: Tensor | float = 1.0) -> Tensor:
        """(N, in_channels, H, W) or (N, in_channels) -> the same with out_channels."""
        weight = self.scaled_weight(gain).to(x.dtype)
        return F.linear(x, weight) if weight.ndim == 2 else F.conv2d(x, weight, padding=weight.shape[-1] // 2)


class Block(nn.Module):
    """An encoder ('enc') or decoder ('dec') block, optionally with resampling ('up', 'down') and self-attention.

    res_balance, attn_balance: share of the residual branch and of the attention in their sums. clip_act: bound on the
    output's magnitude, None for none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        flavor: str,
        resample_mode: str = "keep",
        attention: bool = False,
        resample_filter: Sequence[float] = (1, 1),
        channels_per_head: int = 64,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
        clip_act: float | None = 256.0,
    ) -> None:
        super().__init__()
        self.out_channels, self.flavor, self.resample_mode = out_channels, flavor, resample_mode
        self.heads = out_channels // channels_per_head if attention else 0
        self.dropout, self.res_balance, self.attn_balance = dropout, res_balance, attn_balance
        self.clip_act, self.box = clip_act, is_box(resample_filter)
        self.register_buffer("taps", filter_taps(resample_filter), persistent=False)
        self.emb_gain = nn.Parameter(torch.zeros([]))
        self.conv_res0 = MPConv(out_channels if flavor == "enc" else in_channels, out_channels, 3)
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, 3)
        self.conv_skip = MPConv(in_channels, out_channels, 1) if in_channels != out_channels else None
        self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1) if self.heads else None
        self.attn_proj = MPConv(out_channels, out_channels, 1) if self.heads else None

    taps: Tensor

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(N, in_channels, H, W), (N, emb_channels) -> (N, out_channels, H', W')."""
        if self.resample_mode != "keep":
            resample = upsample if self.resample_mode == "up" else downsample
            x = resample(x, self.taps, box=self.box)
        if self.flavor == "enc":
            x = normalize(x if self.conv_skip is None else self.conv_skip(x), 1)
        y = self.conv_res0(mp_silu(x))
        told = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = mp_silu(y * told[:, :, None, None].to(y.dtype))
        if self.training and self.dropout:
            y = F.dropout(y, self.dropout)
        y = self.conv_res1(y)
        if self.flavor == "dec" and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.res_balance)
        if self.heads:
            x = mp_sum(x, self._attention(x), self.attn_balance)
        return x if self.clip_act is None else x.clamp(-self.clip_act, self.clip_act)

    def _attention(self, x: Tensor) -> Tensor:
        """Cosine attention: queries, keys and values of unit magnitude (EDM2, Section 2.3)."""
        assert self.attn_qkv is not None and self.attn_proj is not None
        weight = by_role(self.attn_qkv.scaled_weight().flatten(1), self.heads).to(x.dtype)
        q, k, v = split_roles(F.linear(tokens(x), weight), self.heads)
        t = attend(normalize(q, -1), normalize(k, -1), normalize(v, -1))
        return untokens(F.linear(t, self.attn_proj.scaled_weight().flatten(1).to(x.dtype)), x)


class UNet(nn.Module):
    """EDM2's U-Net: an image (N, C, H, W), a noise label (N,) and class labels (N, label_dim) to an image.

    channel_mult_noise, channel_mult_emb: widths of the noise features and of the embedding over model_channels, None
    for the first and the largest of channel_mult. label_balance: share of the class in the embedding; concat_balance:
    share of the skip connections. Others: `Block`.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_noise: int | None = None,
        channel_mult_emb: int | None = None,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        **block: Any,
    ) -> None:
        super().__init__()
        widths = [model_channels * mult for mult in channel_mult]
        noise = model_channels * channel_mult_noise if channel_mult_noise is not None else widths[0]
        emb = model_channels * channel_mult_emb if channel_mult_emb is not None else max(widths)
        self.label_dim, self.label_balance, self.concat_balance = label_dim, label_balance, concat_balance
        self.out_gain = nn.Parameter(torch.zeros([]))
        self.emb_fourier = MPFourier(noise)
        self.emb_noise = MPConv(noise, emb)
        self.emb_label = MPConv(label_dim, emb) if label_dim else None

        self.enc = nn.ModuleDict()
        self.enc[f"{img_resolution}x{img_resolution}_conv"] = MPConv(img_channels + 1, widths[0], 3)
        width, skips = widths[0], [widths[0]]
        for level, cout in enumerate(widths):
            side = img_resolution >> level
            attention = side in attn_resolutions
            if level:
                self.enc[f"{side}x{side}_down"] = Block(width, width, emb, flavor="enc", resample_mode="down", **block)
                skips.append(width)
            for index in range(num_blocks):
                self.enc[f"{side}x{side}_block{index}"] = Block(
                    width, cout, emb, flavor="enc", attention=attention, **block
                )
                skips.append(width := cout)

        self.dec = nn.ModuleDict()
        for level, cout in reversed(list(enumerate(widths))):
            side = img_resolution >> level
            attention = side in attn_resolutions
            if level == len(widths) - 1:
                self.dec[f"{side}x{side}_in0"] = Block(width, width, emb, flavor="dec", attention=True, **block)
                self.dec[f"{side}x{side}_in1"] = Block(width, width, emb, flavor="dec", **block)
            else:
                self.dec[f"{side}x{side}_up"] = Block(width, width, emb, flavor="dec", resample_mode="up", **block)
            for index in range(num_blocks + 1):
                cin, width = width + skips.pop(), cout
                self.dec[f"{side}x{side}_block{index}"] = Block(
                    cin, width, emb, flavor="dec", attention=attention, **block
                )
        self.out_conv = MPConv(width, img_channels, 3)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None) -> Tensor:
        """The embedding (N, emb_channels) of noise and class labels, float32."""
        emb = self.emb_noise(self.emb_fourier(noise_labels))
        if self.emb_label is not None and class_labels is not None:
            labels = self.emb_label(class_labels * math.sqrt(self.label_dim))
            emb = mp_sum(emb, labels, self.label_balance)
        return mp_silu(emb)

    def forward(self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None) -> Tensor:
        """(N, img_channels, H, W) -> the same shape; labels as the class says."""
        emb = self.embed(noise_labels, class_labels)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)  # a channel of ones stands for the biases
        skips = []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("conv") else layer(x, emb)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(mp_cat(x, skips.pop(), self.concat_balance) if "block" in name else x, emb)
        out: Tensor = self.out_conv(x, gain=self.out_gain)
        return out


class Precond(Preconditioned):
    """EDM's preconditioning around EDM2's U-Net, with the learned log-variance of its loss (EDM2, Eqs. 14 to 21)."""

    has_logvar: ClassVar[bool] = True

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = True,
        sigma_data: float = 0.5,
        logvar_channels: int = 128,
        **unet: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16)
        self.sigma_data = float(sigma_data)
        self.edm = EDM(self.sigma_data)
        self.unet = UNet(img_resolution, img_channels, label_dim, **unet)
        self.logvar_fourier = MPFourier(logvar_channels)
        self.logvar_linear = MPConv(logvar_channels, 1)

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """(c_skip, c_out, c_in, c_noise)."""
        return self.edm.c_skip(sigma), self.edm.c_out(sigma), self.edm.c_in(sigma), self.edm.c_noise(sigma)

    def raw(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The U-Net itself, F(x, c_noise)."""
        out: Tensor = self.unet(x, c_noise, labels)
        return out

    def logvar(self, c_noise: Tensor) -> Tensor:
        """The learned log-variance u(sigma), (N, 1, 1, 1)."""
        out: Tensor = self.logvar_linear(self.logvar_fourier(c_noise))
        return out.reshape(-1, 1, 1, 1)


class FlowPrecond2(Flow, Precond):
    """The flow of EDM2's U-Net, whose log-variance stays untrained."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        use_fp16: bool = True,
        sigma_data: float = 0.5,
        prediction: str = "velocity",
        logvar_channels: int = 128,
        **unet: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16, sigma_data, logvar_channels, **unet)
        self.prediction = prediction
