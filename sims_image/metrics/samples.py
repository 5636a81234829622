"""Features of a sample of images, gathered in one pass, bounded memory and any order, and merged over processes.

Of every image count the moments; of at most ``keep`` images, chosen by a hash of the image's number, the features stay
for the metrics that compare images. Which ones stay depends on the numbers alone, so the parts of a sample that several
processes saw merge into what one would have kept. Groups, by another hash, serve the jackknife.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from sims_core.draws import Draws
from sims_core.errors import InputError
from sims_core.seeds import Seed
from sims_image.metrics.moments import Features, Moments
from sims_image.processes import Processes

KEEP, GROUPS = 10_000, 10
#: the hash of image numbers; fixed, so that samples of different runs keep images of the same numbers
_HASH = Draws(Seed(0).child("sims_image.samples"))


def _hashed(items: NDArray[np.int64], groups: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(rank, group) of images by their numbers."""
    words = _HASH.words(torch.from_numpy(items), 2).numpy()
    return words[:, 0], words[:, 1] % groups  # numpy's remainder is not negative


class Sample:
    """What is known of a sample of images.

    width: features per image. keep: images whose features stay. groups: parts that the jackknife leaves out.
    """

    def __init__(self, width: int, *, keep: int = KEEP, groups: int = GROUPS) -> None:
        if width < 1 or keep < 2 or groups < 2:
            raise InputError("sample", (width, keep, groups), "width at least 1, keep and groups at least 2")
        self.width, self.keep = width, keep
        self.parts = [Moments(width) for _ in range(groups)]
        self._items = [np.empty(0, np.int64)]
        self._ranks = [np.empty(0, np.int64)]
        self._features = [np.empty((0, width), np.float32)]
        self._waiting = 0

    def add(self, items: NDArray[np.int64], features: Features) -> None:
        """Take in the features (B, D) of the images numbered ``items`` (B,). Raises `InputError` if they do not fit."""
        items = np.asarray(items, np.int64)
        if features.ndim != 2 or features.shape != (len(items), self.width):
            raise InputError("features", features.shape, f"({len(items)}, {self.width}), a row per image")
        finite = np.isfinite(features).all(1)
        if not finite.all():
            raise InputError("sample", "not finite", f"image {items[~finite][0]}: a diverged sample is no image")
        ranks, marks = _hashed(items, len(self.parts))
        for group in np.unique(marks):
            self.parts[int(group)].add(features[marks == group])
        self._hold(items, ranks, features.astype(np.float32))

    def _hold(self, items: NDArray[np.int64], ranks: NDArray[np.int64], features: Features) -> None:
        self._items.append(items)
        self._ranks.append(ranks)
        self._features.append(features)
        self._waiting += len(items)
        if self._waiting > self.keep:
            self._settle()

    def _settle(self) -> None:
        """Throw away what does not stay: the images of the highest hash."""
        items, ranks = np.concatenate(self._items), np.concatenate(self._ranks)
        order = np.lexsort((items, ranks))[: self.keep]
        features = np.concatenate(self._features)[order]
        self._items, self._ranks, self._features, self._waiting = [items[order]], [ranks[order]], [features], 0

    def merge(self, other: Sample) -> None:
        """Take in another part of the same sample. Raises `InputError` if they were not made alike."""
        mine = (self.width, self.keep, len(self.parts))
        if (other.width, other.keep, len(other.parts)) != mine:
            words = f"{mine} (features, kept images, groups), as this sample"
            raise InputError("sample", (other.width, other.keep, len(other.parts)), words)
        for part, theirs in zip(self.parts, other.parts, strict=True):
            part.merge(theirs)
        other._settle()
        self._hold(other._items[0], other._ranks[0], other._features[0])

    @property
    def count(self) -> int:
        """Images seen."""
        return sum(part.count for part in self.parts)

    @property
    def moments(self) -> Moments:
        """Of all images."""
        return Moments.sum(self.parts)

    def kept(self, most: int | None = None) -> Kept:
        """The images whose features stayed, at most ``most`` of them. Raises `InputError` if one is there twice."""
        self._settle()
        items, features = self._items[0][:most], self._features[0][:most]
        unique, counts = np.unique(items, return_counts=True)
        if len(unique) != len(items):
            raise InputError("source", int(unique[counts > 1][0]), "an image of this number came twice")
        return Kept(items, features, _hashed(items, len(self.parts))[1])


@dataclass(frozen=True)
class Kept:
    """Features (K, D), float32, of the images numbered ``items``, and the jackknife's group of each."""

    items: NDArray[np.int64]
    features: NDArray[np.float32]
    groups: NDArray[np.int64]


def gathered(sample: Sample, processes: Processes | None) -> Sample | None:
    """The whole of a sample of which every process has seen a part: on the first process; None on the others."""
    if processes is None or processes.world == 1:
        return sample
    parts: list[Any] | None = [None] * processes.world if processes.first else None
    dist.gather_object(sample, parts)
    if parts is None:
        return None
    whole = Sample(sample.width, keep=sample.keep, groups=len(sample.parts))
    for part in parts:
        whole.merge(part)
    return whole


def jackknife(whole: NDArray[Any], without: NDArray[Any], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Standard errors from leaving out one group at a time, for groups of unequal size (Busing et al. 1999, Eq. 6).

    whole: (...) estimates. without: (G, ...) the same without each group. counts: (G,) images per group; empty ones are
    passed over.
    """
    there = counts > 0
    without, counts = without[there], counts[there]
    count, ratio = len(counts), counts.sum() / counts  # h_j = n / m_j
    ratio = ratio.reshape(-1, *[1] * (without.ndim - 1))
    centre = count * whole - ((1 - 1 / ratio) * without).sum(0)
    pseudo = ratio * whole - (ratio - 1) * without
    variance: NDArray[np.float64] = ((pseudo - centre) ** 2 / (ratio - 1)).mean(0)
    return np.sqrt(variance)
