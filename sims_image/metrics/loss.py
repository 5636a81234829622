"""The denoising loss of a model, guided or not, on real images that it was not trained on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from sims_core.diffusion import EDM, LogNormal, denoising_loss
from sims_core.draws import Draws
from sims_core.seeds import Seed
from sims_image.data.dataset import Dataset, to_unit
from sims_image.models.autoencoders import drawn, inherited, scale_of
from sims_image.sampling.guided import Model


@torch.no_grad()
def heldout_loss(
    model: Model,
    data: Dataset,
    *,
    levels: LogNormal | None = None,
    most: int = 10_000,
    batch: int = 256,
    seed: Seed | None = None,
) -> NDArray[np.float64]:
    """EDM's weighted denoising loss (Eq. 2) of each of at most ``most`` images, (N,): the mean over its elements.

    Each image gets one noise level and one noise, which depend on ``seed`` and its number alone: models are compared
    image by image. Guidance that makes samples better should raise it, since its denoiser is no longer the data's.
    """
    levels, chosen = levels or LogNormal(-1.2, 1.2), np.arange(len(data))
    root = seed or Seed(0).child("sims_image.loss")
    if len(data) > most:
        chosen = np.sort(root.child("images").numpy().permutation(len(data))[:most])
    level, noise = Draws(root.child("level")), Draws(root.child("noise"))
    weight, latent = EDM(model.network.sigma_data).weight, Draws(root.child("latent"))
    affine = scale_of(data, inherited((model.base.autoencoder, data.autoencoder)), model.device)
    found = []
    for start in range(0, len(chosen), batch):
        items = chosen[start : start + batch]
        clean, numbers = torch.from_numpy(data.images(items)), torch.from_numpy(items)
        clean = (to_unit(clean) if data.dtype == np.uint8 else clean.float()).to(model.device)
        if affine is not None:
            clean = drawn(clean, affine, latent.normal(numbers, data.seen).to(model.device))
        sigma = levels.from_normal(level.normal(numbers, (1,))[:, 0]).to(model.device)
        classes = None
        if model.network.label_dim and data.labels is not None:
            classes = torch.from_numpy(np.asarray(data.labels)[items].astype(np.int64)).to(model.device)
        denoiser, s = model.denoiser(classes), sigma[:, None, None, None]
        # a schedule reads one noise level a call
        value = denoising_loss(denoiser, clean, s, noise.normal(numbers, data.seen).to(model.device), weight(s))
        found.append(value.double().mean((1, 2, 3)).cpu().numpy())
    return np.concatenate(found)
