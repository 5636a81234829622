"""Batches of images in a reproducible order, read ahead of the training step.

Image number i of a run, the i-th that any process sees, is a pure function of (seed, i): which one of the data set it
is, how it is augmented, its noise level and its noise. So a run needs no state of its data to resume; a batch is the
same however many processes share it.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sims_core.devices import moved
from sims_core.draws import Draws
from sims_core.flow import coupling as transported
from sims_core.seeds import Seed
from sims_image.data.dataset import Dataset, to_unit
from sims_image.data.latents import Autoencoder
from sims_image.models.autoencoders import drawn, scale_of
from sims_image.training.augment import Augmentation, Parameters


class Order:
    """Which image of a data set of ``count`` the i-th one of a run is: a new permutation every epoch."""

    def __init__(self, seed: Seed, count: int) -> None:
        self.count = count
        self._epoch = functools.lru_cache(maxsize=2)(lambda epoch: seed.child(epoch).numpy().permutation(count))

    def __call__(self, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """The data set's indices of the images numbered ``items``; same shape."""
        epochs, places = np.divmod(items, self.count)
        result = np.empty_like(items)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            result[here] = self._epoch(int(epoch))[places[here]]
        return result


@dataclass(frozen=True)
class Batch:
    """One pass of one process, on the CPU. items: (B,) numbers of the images. images: (B, C, H, W), as stored.

    labels: (B,) classes or None. augmented: what to do to them, or None.
    """

    items: Tensor
    images: Tensor
    labels: Tensor | None
    augmented: Parameters | None


@dataclass(frozen=True)
class Ready:
    """A batch as the objective takes it, on the device: clean, level and noise as `objectives.Objective`.

    conditions: the network's labels by argument name.
    """

    clean: Tensor
    level: Tensor
    noise: Tensor
    conditions: dict[str, Tensor]


class Feed:
    """A run's data: cuts steps into passes, reads ahead with threads, and puts a pass on the device.

    label_dim: classes of the network, 0 for unconditional. augment: None for none. augment_dim: labels that the
    network takes. part, passes: images per pass and passes per step of this process, ``rank`` of ``world``. latents:
    how the network sees those that are drawn from the data's moments. coupling: images whose noise is paired with them
    by optimal transport at a time, 0 for none.
    """

    def __init__(
        self,
        data: Dataset,
        seed: Seed,
        *,
        label_dim: int,
        augment: Augmentation | None,
        augment_dim: int,
        part: int,
        passes: int,
        rank: int = 0,
        world: int = 1,
        device: torch.device | str = "cpu",
        latents: Autoencoder | None = None,
        coupling: int = 0,
    ) -> None:
        self.data, self.augment, self.coupling = data, augment, coupling
        self.label_dim, self.augment_dim = label_dim, augment_dim
        self.part, self.passes, self.rank, self.world = part, passes, rank, world
        self.device = torch.device(device)
        self._order = Order(seed.child("order"), len(data))
        self._augmented = Draws(seed.child("augment"))
        self._level, self._noise = Draws(seed.child("level")), Draws(seed.child("noise"))
        self._latent, self._affine = Draws(seed.child("latent")), scale_of(data, latents, self.device)

    def items(self, step: int, number: int) -> NDArray[np.int64]:
        """The numbers of the images in one pass of step ``step`` (both from 0)."""
        first = (step * self.world + self.rank) * self.passes + number
        return np.arange(first * self.part, (first + 1) * self.part, dtype=np.int64)

    def read(self, step: int, number: int) -> Batch:
        """One pass from the data set. Raises `InputError` naming an image that is damaged."""
        items = self.items(step, number)
        which = self._order(items)
        images = torch.from_numpy(self.data.images(which))
        labels = None
        if self.label_dim and self.data.labels is not None:
            labels = torch.from_numpy(self.data.labels[which])
        numbers = torch.from_numpy(items)
        augmented = None if self.augment is None else self.augment.draw(self._augmented, numbers)
        if self.device.type == "cuda":
            images, numbers = images.pin_memory(), numbers.pin_memory()
            labels = None if labels is None else labels.pin_memory()
        return Batch(numbers, images, labels, augmented)

    def __call__(self, start: int, stop: int, *, workers: int = 1, ahead: int = 4) -> Iterator[Batch]:
        """The passes of steps ``start`` to ``stop`` in order, ``ahead`` of them read beforehand by ``workers`` threads.

        0 workers: read when asked for. The order and the content do not depend on it.
        """
        passes = ((step, number) for step in range(start, stop) for number in range(self.passes))
        if not workers:
            yield from (self.read(*where) for where in passes)
            return
        pool = ThreadPoolExecutor(workers, thread_name_prefix="data")
        waiting: deque[Future[Batch]] = deque()
        try:
            for where in passes:
                waiting.append(pool.submit(self.read, *where))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def ready(self, batch: Batch, *, channels_last: bool = False) -> Ready:
        """Put a pass on the device: pixels to [-1, 1], augmented, with draws and labels. Coupling syncs the host.

        Latents (float data) are taken as they are stored, or drawn anew from their moments.
        """
        move = {"device": self.device, "non_blocking": True}
        images, items = batch.images.to(**move), batch.items.to(**move)  # type: ignore[call-overload]
        clean = to_unit(images) if images.dtype == torch.uint8 else images.float()
        if self._affine is not None:
            clean = drawn(clean, self._affine, self._latent.normal(items, self.data.seen))
        conditions: dict[str, Tensor] = {}
        if batch.augmented is not None and self.augment is not None:
            clean = self.augment.apply(clean, batch.augmented)
            conditions["augment_labels"] = moved(batch.augmented.labels, self.device)
        elif self.augment_dim:
            conditions["augment_labels"] = clean.new_zeros(len(clean), self.augment_dim)
        if self.label_dim and batch.labels is not None:
            classes = batch.labels.to(**move)  # type: ignore[call-overload]
            conditions["class_labels"] = (classes[:, None] == torch.arange(self.label_dim, device=self.device)).float()
        layout = torch.channels_last if channels_last else torch.contiguous_format
        noise = self._noise.normal(items, clean.shape[1:])
        if self.coupling:
            told = batch.labels if self.label_dim else None
            noise = noise[coupled(noise, clean, self.coupling, told)]
        noise = noise.contiguous(memory_format=layout)
        return Ready(clean.contiguous(memory_format=layout), self._level.normal(items, ()), noise, conditions)


def coupled(noise: Tensor, clean: Tensor, group: int, classes: Tensor | None = None) -> Tensor:
    """Which noise each image gets, (B,): by optimal transport in groups of ``group``, within each of ``classes``.

    Across classes the noise would tell the class, and samples of one start from all noise (arXiv 2503.10636).
    """
    found = torch.arange(len(clean))
    for rows in torch.split(found, group):
        kinds = [rows] if classes is None else [rows[classes[rows] == k] for k in torch.unique(classes[rows])]
        for part in kinds:
            found[part.clone()] = part[transported(clean[part], noise[part]).cpu()]
    return found.to(noise.device)
