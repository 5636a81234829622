"""Counter-based random draws: a pure function of (seed, which item), on any device, in any order, without state.

What `Seed` is to streams, this is to tensors of many items at once: item i's draws depend on (seed, i) alone, so that
a batch is the same however it is cut over processes, devices and restarts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sims_core.seeds import Seed

_GOLDEN, _MIX1, _MIX2 = (v - 2**64 for v in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def random_words(keys: Tensor | int, counters: Tensor) -> Tensor:
    """64 random bits a counter: word number ``counters`` of the SplitMix64 stream of each key (int64, broadcast).

    The same words come out on every device and in the toy's compiled kernel (Steele, Lea & Flood 2014; each stream is
    a stretch of one cycle of length 2^64).
    """
    z = keys + (counters + 1) * _GOLDEN
    z = z.bitwise_xor_(shift(z, 30)).mul_(_MIX1)  # in place: fresh memory costs more than the arithmetic
    z = z.bitwise_xor_(shift(z, 27)).mul_(_MIX2)
    return z.bitwise_xor_(shift(z, 31))


def shift(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of signed 64-bit integers."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def normals(words: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Two standard normal draws per word (Box & Muller 1958): radius from the upper half, angle from the lower."""
    radius = (shift(words, 32).to(dtype).add_(0.5).mul_(2.0**-32)).log_().mul_(-2).sqrt_()
    angle = ((words << 32) >> 32).to(dtype).mul_(2 * math.pi * 2.0**-32)
    return radius * angle.cos(), radius * angle.sin()


class Draws:
    """Draws keyed by item: item i's numbers depend on (seed, i) alone.

    Items are numbered by non-negative integers, such as the images seen since training began.
    """

    def __init__(self, seed: Seed) -> None:
        self._root = seed.integer()

    def words(self, items: Tensor, count: int) -> Tensor:
        """``count`` words of 64 bits for each of ``items`` (int64, [B]), on their device. Shape [B, count]."""
        keys = random_words(self._root, items)
        return random_words(keys[:, None], torch.arange(count, device=items.device))

    def uniform(self, items: Tensor, count: int) -> Tensor:
        """``count`` draws from [0, 1) for each item, float64, multiples of 2^-53. Shape [B, count]."""
        return shift(self.words(items, count), 11).to(torch.float64) * 2.0**-53

    def normal(self, items: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal draws of the given shape for each item. Shape [B, *shape]."""
        count = math.prod(shape)
        first, second = normals(self.words(items, (count + 1) // 2), dtype)
        return torch.cat([first, second], 1)[:, :count].reshape(len(items), *shape)
