"""Contact sheets: a model's samples as one PNG, drawn from fixed seeds so that sheets of a run compare."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sims_core.devices import filled, moved
from sims_core.guidance import Denoiser
from sims_core.lab.runs import write_atomic
from sims_core.sampling import Churn, Sampler, generate
from sims_core.seeds import Seed
from sims_image.data.dataset import to_pixels
from sims_image.models.networks import Preconditioned

_GAP = 1
_ABOUT = 720  # pixels of a sheet's width, for small images


def contact_sheet(images: NDArray[np.uint8], columns: int) -> Image.Image:
    """Images (N, C, H, W), grey or RGB, in rows of ``columns``; small ones are enlarged by a whole factor."""
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    sheet = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, channels), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        y, x = (i // columns) * (height + _GAP) + _GAP, (i % columns) * (width + _GAP) + _GAP
        sheet[y : y + height, x : x + width] = image.transpose(1, 2, 0)
    picture = Image.fromarray(sheet[:, :, 0] if channels == 1 else sheet)
    factor = max(1, _ABOUT // sheet.shape[1])
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def write_sheet(path: Path, images: NDArray[np.uint8], columns: int) -> None:
    """Write `contact_sheet` as a PNG, whole or not at all."""
    write_atomic(path, lambda temporary: contact_sheet(images, columns).save(temporary))


def make_sampler(name: str, network: Preconditioned, churn: tuple[float, float, float, float] | None) -> Sampler:
    """The sampler called ``name`` within the noise levels that a network knows. Raises `InputError`, as `parse`.

    churn: EDM's (S_churn, S_min, S_max, S_noise), or None for a deterministic one.
    """
    sampler = Sampler.parse(name, argument="--sampler", sigma_data=network.sigma_data)
    return replace(
        sampler,
        sigma_min=max(sampler.sigma_min, network.sigma_min),
        sigma_max=min(sampler.sigma_max, network.sigma_max),
        churn=Churn(*churn) if churn is not None else None,
        rounded=network.round_sigma if network.discrete else None,
    )


def sheet_labels(rows: int, label_dim: int, seed: Seed) -> tuple[int, NDArray[np.int64]]:
    """(columns, the class of each sample) of a sheet: a column a class for up to 12 classes, else drawn at random."""
    columns = label_dim if 1 < label_dim <= 12 else rows
    if label_dim <= 12:
        return columns, np.arange(rows * columns) % columns
    return columns, seed.child("classes").numpy().integers(label_dim, size=rows * columns)


def one_hot(network: Preconditioned, classes: Tensor | None) -> Tensor | None:
    """What a network is told of ``classes``, (B,) int64: rows (B, label_dim); None: nothing, or it is unconditional."""
    if not network.label_dim or classes is None:
        return None
    return (classes[:, None] == torch.arange(network.label_dim, device=classes.device)).float()


def level(sigma: Tensor, like: Tensor) -> Tensor:
    """A noise level as a network takes it, (1,) float32 on the device of ``like``.

    The sampler's levels are on the host: filling a tensor with one makes no host wait for the device, copying does.
    """
    return filled(sigma, like.device, torch.float32).reshape(-1)


def conditional(network: Preconditioned, classes: Tensor | None) -> Denoiser:
    """D(x, sigma) of a network for images of ``classes``, (B,) int64 on its device; None and unconditional: without."""
    labels = one_hot(network, classes)
    return lambda x, sigma: network(x, level(sigma, x), labels)


def draw_samples(
    network: Preconditioned, sampler: Sampler, classes: NDArray[np.int64], seed: Seed, *, batch: int = 64
) -> Tensor:
    """One sample for each of ``classes`` (ignored by an unconditional network): (N, C, H, W), float64, on the CPU.

    The network is called in the mode and on the device that it is in; sample i depends on (seed, i) alone.
    """
    device = next(network.parameters()).device
    shape = (network.img_channels, network.img_resolution, network.img_resolution)

    def denoiser(indices: Any) -> Any:
        return conditional(network, moved(torch.from_numpy(classes[list(indices)]), device))

    parts = generate(
        denoiser, sampler, range(len(classes)), shape, seed=seed, batch=batch, device=device, per_batch=True
    )
    return torch.cat([samples.cpu() for _, samples in parts])


def sheet_of(network: Preconditioned, sampler: Sampler, rows: int, seed: Seed, path: Path, *, batch: int = 64) -> bool:
    """Draw a sheet of ``rows`` rows and write it. False, and nothing is written, where images are not grey or RGB."""
    if network.img_channels not in (1, 3):
        return False
    columns, classes = sheet_labels(rows, network.label_dim, seed)
    samples = draw_samples(network, sampler, classes, seed, batch=batch)
    write_sheet(path, to_pixels(samples).numpy(), columns)
    return True
