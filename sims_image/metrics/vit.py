"""DINOv2's vision transformer (Dosovitskiy et al. 2021; Oquab et al. 2023), to read features with published weights.

Parameter names are those of Meta's files; the architecture follows from the shapes. Kept from the original code, since
features depend on it: position embeddings trained on 37x37 patches are resized bicubically, without anti-aliasing, by
the factor (n + 0.1) / 37. ViT-S, B and L; not g, whose blocks differ, and not the variants with registers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sims_core.errors import InputError, shown

_HEAD = 64  # features a head, in all of them
_KINDS = {(384, 12): "vits14", (768, 12): "vitb14", (1024, 24): "vitl14"}


class Attention(nn.Module):
    """Multi-head self-attention over tokens (B, T, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // _HEAD
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, _HEAD).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, tokens, width)
        found: Tensor = self.proj(mixed)
        return found


class Mlp(nn.Module):
    """Two layers with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        found: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return found


class Scale(nn.Module):
    """LayerScale: a learned factor a feature (Touvron et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        return x * self.gamma


class Block(nn.Module):
    """Attention and MLP, each on normalised tokens, scaled, and added."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn, self.mlp = Attention(width), Mlp(width, hidden)
        self.ls1, self.ls2 = Scale(width), Scale(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) to the same."""
        x = x + self.ls1(self.attn(self.norm1(x)))
        found: Tensor = x + self.ls2(self.mlp(self.norm2(x)))
        return found


class Patches(nn.Module):
    """Non-overlapping patches as tokens."""

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, side, side)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, T, D)."""
        found: Tensor = self.proj(x).flatten(2).transpose(1, 2)
        return found


class VisionTransformer(nn.Module):
    """Normalised images (B, 3, H, W), sides multiples of the patch, to the normalised class token (B, D)."""

    def __init__(self, width: int, depth: int, *, hidden: int, patch: int = 14, positions: int = 37**2) -> None:
        super().__init__()
        self.width, self.depth, self.patch = width, depth, patch
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + positions, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of training; it is in the files
        self.patch_embed = Patches(width, patch)
        self.blocks = nn.ModuleList(Block(width, hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    @property
    def kind(self) -> str:
        """vits14, vitb14 or vitl14; for others WIDTHxDEPTH."""
        return _KINDS.get((self.width, self.depth), f"{self.width}x{self.depth}")

    @classmethod
    def of(cls, state: dict[str, Tensor], item: str, *, argument: str = "weights") -> VisionTransformer:
        """The network that a state dict belongs to, with its weights, strictly. Raises `InputError` naming ``item``."""
        try:
            _, tokens, width = state["pos_embed"].shape
            hidden, patch = len(state["blocks.0.mlp.fc1.weight"]), state["patch_embed.proj.weight"].shape[-1]
        except (KeyError, ValueError):
            words = "not DINOv2's weights (ViT-S, B or L as Meta publishes them; not g)"
            raise InputError(argument, item, words) from None
        if "register_tokens" in state:
            raise InputError(argument, item, "a variant with registers; take the one without, as FD-DINOv2 does")
        depth = 1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        if width % _HEAD or math.isqrt(tokens - 1) ** 2 != tokens - 1 or depth > 1000:
            raise InputError(argument, item, f"{width} features and {tokens} positions are no such network")
        with torch.device("meta"):
            network = cls(width, depth, hidden=hidden, patch=patch, positions=tokens - 1)
        try:
            network.load_state_dict({name: value.float() for name, value in state.items()}, strict=True, assign=True)
        except RuntimeError as error:
            raise InputError(argument, item, f"of another network ({shown(str(error))})") from None
        return network

    def positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings of rows x columns patches, (1, 1 + T, D)."""
        side = math.isqrt(self.pos_embed.shape[1] - 1)
        if (rows, columns) == (side, side):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
        factors = ((rows + 0.1) / side, (columns + 0.1) / side)
        grid = F.interpolate(grid, scale_factor=factors, mode="bicubic", antialias=False)
        return torch.cat([self.pos_embed[:, :1], grid.permute(0, 2, 3, 1).flatten(1, 2)], 1)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        tokens = self.patch_embed(x)
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), tokens], 1)
        tokens = tokens + self.positions(x.shape[2] // self.patch, x.shape[3] // self.patch)
        for block in self.blocks:
            tokens = block(tokens)
        found: Tensor = self.norm(tokens)[:, 0]
        return found
