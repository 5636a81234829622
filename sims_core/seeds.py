"""Every random draw comes from one recorded integer and a path of names.

A `Seed` is a node of a tree: ``Seed(0).child("trial", 3, "fit")`` is the same stream wherever, whenever and
alongside whatever else it is drawn, which is what makes results independent of chunking, workers, order and resume.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def _key(name: int | str) -> int:
    return zlib.crc32(name.encode()) if isinstance(name, str) else int(name)


@dataclass(frozen=True)
class Seed:
    """A reproducible stream: ``entropy`` (the recorded integer, >= 0) and a path of keys below it.

    >>> drawn = Seed(0).child("trial", 3).numpy().integers(100, size=4)
    >>> bool((drawn == Seed(0).child("trial").child(3).numpy().integers(100, size=4)).all())
    True
    """

    entropy: int
    path: tuple[int, ...] = ()

    def child(self, *names: int | str) -> Seed:
        """The stream below this one; names are non-negative integers or strings."""
        return Seed(self.entropy, self.path + tuple(_key(n) for n in names))

    def sequence(self) -> np.random.SeedSequence:
        """The numpy seed sequence of this node."""
        return np.random.SeedSequence(self.entropy, spawn_key=self.path)

    def numpy(self) -> np.random.Generator:
        """A numpy generator at the start of this stream."""
        return np.random.Generator(np.random.PCG64(self.sequence()))

    def integer(self) -> int:
        """A 63-bit integer of this stream, for libraries that take one."""
        return int(self.sequence().generate_state(1, np.uint64)[0] >> np.uint64(1))

    def torch(self, device: str | torch.device = "cpu") -> torch.Generator:
        """A torch generator at the start of this stream, on ``device``."""
        import torch as _torch

        return _torch.Generator(device).manual_seed(self.integer())
