"""The U-Nets of EDM: SongUNet (DDPM++ and NCSN++, Song et al. 2021) and DhariwalUNet (ADM, Dhariwal & Nichol 2021).

As set out in EDM (Karras et al. 2022, arXiv 2206.00364, Appendix F.2 and Table 7). Both map an image (N, C, H, W), a
noise label (N,), class labels (N, label_dim) and augmentation labels (N, augment_dim) to an image. Argument and
state-dict names are the published ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sims_image.models.networks.layers import (
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Init,
    Linear,
    PositionalEmbedding,
    Resample,
    attend,
    by_role,
    split_roles,
    tokens,
    untokens,
)


class UNetBlock(nn.Module):
    """A residual block that knows the noise level, optionally with resampling and followed by self-attention.

    heads: 0 for no attention. adaptive_scale: the embedding scales and shifts the second normalisation (ADM) rather
    than being added before it (DDPM++, NCSN++). skip_scale: factor after each residual sum. resample_proj: a resampled
    skip gets a 1x1 convolution even where the channels do not change.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        init: Init,
        init_zero: Init,
        init_attn: Init,
        up: bool = False,
        down: bool = False,
        heads: int = 0,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: Sequence[float] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
    ) -> None:
        super().__init__()
        self.out_channels, self.heads, self.dropout = out_channels, heads, dropout
        self.skip_scale, self.adaptive_scale = skip_scale, adaptive_scale
        self.norm0 = GroupNorm(in_channels, eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, init, up=up, down=down, resample_filter=resample_filter)
        self.affine = Linear(emb_channels, out_channels * (2 if adaptive_scale else 1), init)
        self.norm1 = GroupNorm(out_channels, eps)
        self.conv1 = Conv2d(out_channels, out_channels, 3, init_zero)
        self.skip: Resample | None = None
        if out_channels != in_channels or (resample_proj and (up or down)):
            self.skip = Conv2d(in_channels, out_channels, 1, init, up=up, down=down, resample_filter=resample_filter)
        elif up or down:
            self.skip = Resample(up=up, down=down, resample_filter=resample_filter)
        if heads:
            self.norm2 = GroupNorm(out_channels, eps)
            self.qkv = Conv2d(out_channels, 3 * out_channels, 1, init_attn)
            self.proj = Conv2d(out_channels, out_channels, 1, init_zero)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(N, in_channels, H, W), (N, emb_channels) -> (N, out_channels, H', W')."""
        h = self.conv0(F.silu(self.norm0(x)))
        told = self.affine(emb)[:, :, None, None].to(h.dtype)
        if self.adaptive_scale:
            scale, shift = told.chunk(2, dim=1)
            h = F.silu(torch.addcmul(shift, self.norm1(h), scale + 1))
        else:
            h = F.silu(self.norm1(h.add_(told)))
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        h = self._scaled(h.add_(x if self.skip is None else self.skip(x)))  # in place: no gradient needs h itself
        return self._scaled(h + self._attention(h)) if self.heads else h

    def _scaled(self, h: Tensor) -> Tensor:
        return h if self.skip_scale == 1 else h.mul_(self.skip_scale)

    def _attention(self, x: Tensor) -> Tensor:
        t = tokens(self.norm2(x))
        weight, bias = by_role(self.qkv.weight.flatten(1), self.heads), by_role(self.qkv.bias, self.heads)
        t = attend(*split_roles(F.linear(t, weight.to(t.dtype), bias.to(t.dtype)), self.heads))
        t = F.linear(t, self.proj.weight.flatten(1).to(t.dtype), self.proj.bias.to(t.dtype))
        return untokens(t, x)


def drop_labels(labels: Tensor, rate: float, *, training: bool) -> Tensor:
    """Class labels (N, label_dim) with each row zeroed with probability ``rate`` in training."""
    if not (training and rate):
        return labels
    return labels * (torch.rand([len(labels), 1], device=labels.device) >= rate).to(labels.dtype)


class SongUNet(nn.Module):
    """DDPM++ (the defaults) and NCSN++ (embedding 'fourier', encoder 'residual', channel_mult_noise 2, [1, 3, 3, 1]).

    model_channels, channel_mult: width at each resolution, which halves from one to the next. channel_mult_emb,
    channel_mult_noise: widths of the embedding and of what the noise label becomes first. encoder_type: 'skip' adds
    projections of the downsampled input, 'residual' a path of its own through strided convolutions; decoder_type
    'skip' sums images from all resolutions. label_dropout: how often class labels are hidden in training.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.1,
        label_dropout: float = 0.0,
        embedding_type: str = "positional",
        channel_mult_noise: int = 1,
        encoder_type: str = "standard",
        decoder_type: str = "standard",
        resample_filter: Sequence[float] = (1, 1),
    ) -> None:
        super().__init__()
        self.label_dim, self.label_dropout = label_dim, label_dropout
        emb, noise = model_channels * channel_mult_emb, model_channels * channel_mult_noise
        init, init_zero = Init("xavier"), Init("xavier", 1e-5)
        taps = tuple(resample_filter)

        def block(cin: int, cout: int, *, attention: bool = False, up: bool = False, down: bool = False) -> UNetBlock:
            return UNetBlock(
                cin, cout, emb, up=up, down=down, heads=int(attention), dropout=dropout, skip_scale=math.sqrt(0.5),
                eps=1e-6, resample_filter=taps, resample_proj=True, adaptive_scale=False, init=init,
                init_zero=init_zero, init_attn=Init("xavier", math.sqrt(0.2)),
            )  # fmt: skip

        fourier = embedding_type == "fourier"
        self.map_noise = FourierEmbedding(noise) if fourier else PositionalEmbedding(noise, endpoint=True)
        self.map_label = Linear(label_dim, noise, init) if label_dim else None
        self.map_augment = Linear(augment_dim, noise, init, bias=False) if augment_dim else None
        self.map_layer0 = Linear(noise, emb, init)
        self.map_layer1 = Linear(emb, emb, init)

        self.enc = nn.ModuleDict()
        first = f"{img_resolution}x{img_resolution}"
        self.enc[f"{first}_conv"] = Conv2d(in_channels, model_channels, 3, init)
        width, aux, skips = model_channels, in_channels, [model_channels]
        for level, mult in enumerate(channel_mult):
            side = img_resolution >> level
            here = f"{side}x{side}"
            if level:
                self.enc[f"{here}_down"] = block(width, width, down=True)
                if encoder_type == "skip":
                    self.enc[f"{here}_aux_down"] = Resample(down=True, resample_filter=taps)
                    self.enc[f"{here}_aux_skip"] = Conv2d(aux, width, 1, init)
                if encoder_type == "residual":
                    self.enc[f"{here}_aux_residual"] = Conv2d(
                        aux, width, 3, init, down=True, resample_filter=taps, fused=True
                    )
                    aux = width
                skips.append(width)
            for index in range(num_blocks):
                self.enc[f"{here}_block{index}"] = block(
                    width, model_channels * mult, attention=side in attn_resolutions
                )
                width = model_channels * mult
                skips.append(width)

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            side = img_resolution >> level
            here = f"{side}x{side}"
            lowest = level == len(channel_mult) - 1
            if lowest:
                self.dec[f"{here}_in0"] = block(width, width, attention=True)
                self.dec[f"{here}_in1"] = block(width, width)
            else:
                self.dec[f"{here}_up"] = block(width, width, up=True)
            for index in range(num_blocks + 1):
                attention = index == num_blocks and side in attn_resolutions
                self.dec[f"{here}_block{index}"] = block(
                    width + skips.pop(), model_channels * mult, attention=attention
                )
                width = model_channels * mult
            if decoder_type == "skip" and not lowest:
                self.dec[f"{here}_aux_up"] = Resample(up=True, resample_filter=taps)
            if decoder_type == "skip" or level == 0:
                self.dec[f"{here}_aux_norm"] = GroupNorm(width, 1e-6)
                self.dec[f"{here}_aux_conv"] = Conv2d(width, out_channels, 3, init_zero)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The embedding (N, emb_channels) of noise, class and augmentation labels."""
        cos, sin = self.map_noise(noise_labels).chunk(2, dim=1)
        emb = torch.cat([sin, cos], dim=1)
        if self.map_label is not None and class_labels is not None:
            labels = drop_labels(class_labels, self.label_dropout, training=self.training)
            emb = emb + self.map_label(labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W); labels as the module says."""
        emb = self.embed(noise_labels, class_labels, augment_labels)
        skips: list[Tensor] = []
        aux = x
        for name, layer in self.enc.items():
            role = name.split("_", 1)[1]
            if role == "aux_down":
                aux = layer(aux)
            elif role == "aux_skip":
                x = skips[-1] = x + layer(aux)
            elif role == "aux_residual":
                x = skips[-1] = aux = (x + layer(aux)) * math.sqrt(0.5)
            else:
                x = layer(x) if role == "conv" else layer(x, emb)
                skips.append(x)

        image: Tensor | None = None
        normed = x
        for name, layer in self.dec.items():
            role = name.split("_", 1)[1]
            if role == "aux_up":
                image = layer(image)
            elif role == "aux_norm":
                normed = layer(x)
            elif role == "aux_conv":
                shown = layer(F.silu(normed))
                image = shown if image is None else image + shown
            else:
                x = layer(torch.cat([x, skips.pop()], dim=1) if role.startswith("block") else x, emb)
        assert image is not None
        return image


class DhariwalUNet(nn.Module):
    """ADM: the embedding scales and shifts, attention in heads of about 64 channels at every listed resolution.

    Arguments as `SongUNet`. A layer of fewer than 64 channels has no attention, wherever it stands.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.1,
        label_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.label_dropout = label_dropout
        emb = model_channels * channel_mult_emb
        init, init_zero = Init("kaiming", math.sqrt(1 / 3), math.sqrt(1 / 3)), Init("kaiming", 0.0)

        def block(cin: int, cout: int, *, attention: bool = False, up: bool = False, down: bool = False) -> UNetBlock:
            heads = cout // 64 if attention else 0
            return UNetBlock(
                cin, cout, emb, up=up, down=down, heads=heads, dropout=dropout, init=init, init_zero=init_zero,
                init_attn=init,
            )  # fmt: skip

        self.map_noise = PositionalEmbedding(model_channels, endpoint=False)
        self.map_augment = Linear(augment_dim, model_channels, init_zero, bias=False) if augment_dim else None
        self.map_layer0 = Linear(model_channels, emb, init)
        self.map_layer1 = Linear(emb, emb, init)
        unit = Init("normal", math.sqrt(label_dim))
        self.map_label = Linear(label_dim, emb, unit, bias=False) if label_dim else None

        self.enc = nn.ModuleDict()
        width, skips = model_channels * channel_mult[0], [model_channels * channel_mult[0]]
        self.enc[f"{img_resolution}x{img_resolution}_conv"] = Conv2d(in_channels, width, 3, init)
        for level, mult in enumerate(channel_mult):
            side = img_resolution >> level
            if level:
                self.enc[f"{side}x{side}_down"] = block(width, width, down=True)
                skips.append(width)
            for index in range(num_blocks):
                cout = model_channels * mult
                self.enc[f"{side}x{side}_block{index}"] = block(width, cout, attention=side in attn_resolutions)
                skips.append(width := cout)

        self.dec = nn.ModuleDict()
        for level, mult in reversed(list(enumerate(channel_mult))):
            side = img_resolution >> level
            if level == len(channel_mult) - 1:
                self.dec[f"{side}x{side}_in0"] = block(width, width, attention=True)
                self.dec[f"{side}x{side}_in1"] = block(width, width)
            else:
                self.dec[f"{side}x{side}_up"] = block(width, width, up=True)
            for index in range(num_blocks + 1):
                cin, width = width + skips.pop(), model_channels * mult
                self.dec[f"{side}x{side}_block{index}"] = block(cin, width, attention=side in attn_resolutions)
        self.out_norm = GroupNorm(width, 1e-5)
        self.out_conv = Conv2d(width, out_channels, 3, init_zero)

    def embed(self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """The embedding (N, emb_channels) of noise, class and augmentation labels."""
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if self.map_label is not None and class_labels is not None:
            emb = emb + self.map_label(drop_labels(class_labels, self.label_dropout, training=self.training))
        return F.silu(emb)

    def forward(
        self, x: Tensor, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None = None
    ) -> Tensor:
        """(N, in_channels, H, W) -> (N, out_channels, H, W); labels as the module says."""
        emb = self.embed(noise_labels, class_labels, augment_labels)
        skips = []
        for name, layer in self.enc.items():
            x = layer(x) if name.endswith("conv") else layer(x, emb)
            skips.append(x)
        for name, layer in self.dec.items():
            x = layer(torch.cat([x, skips.pop()], dim=1) if "block" in name else x, emb)
        out: Tensor = self.out_conv(F.silu(self.out_norm(x)))
        return out
