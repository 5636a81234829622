"""Guided pairs of random weights on a device, and their samples."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor

from sims_core.sampling import Sampler, generate
from sims_core.seeds import Seed
from sims_image.models.checkpoints import Record, Summary
from sims_image.sampling.engine import PLAIN, Engine
from sims_image.sampling.guided import BODIES, Model
from tests.image import networks

SONG = {
    **{"model_type": "SongUNet", "img_resolution": 16, "img_channels": 3, "label_dim": 3, "model_channels": 32},
    **{"channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [8], "augment_dim": 9, "dropout": 0.1},
}
NCSN = SONG | {"embedding_type": "fourier", "encoder_type": "residual", "resample_filter": [1, 3, 3, 1]}
NCSN |= {"channel_mult_noise": 2}
ADM = {key: SONG[key] for key in ("img_resolution", "img_channels", "label_dim", "channel_mult", "num_blocks")}
ADM |= {"model_type": "DhariwalUNet", "model_channels": 32, "attn_resolutions": [8]}
EDM2 = {key: value for key, value in ADM.items() if key != "model_type"} | {"channels_per_head": 16}
FAMILIES = {"DDPM++": SONG, "NCSN++": NCSN, "ADM": ADM, "EDM2": EDM2}


def pair(config: dict, device: torch.device, *, dtype: str = "float32", engine: Engine = PLAIN) -> Model:
    """A base, and an auxiliary that differs from it by 0.1 % in its weights; the same weights on every device."""
    base = networks.network(seed=0, **config).requires_grad_(False)
    other, generator = copy.deepcopy(base), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(1 + 1e-3 * torch.randn(weight.shape, generator=generator))
    for network in (base, other):
        network.to(device).compute_dtype = BODIES[dtype]
    summary = Summary(Path("random"), config, "edm", 0, "", Record())
    return Model(summary, base, "sims", summary, other, 1.5, dtype=dtype, engine=engine)


def samples(model: Model, sampler: Sampler, count: int = 4) -> Tensor:
    """``count`` guided samples, on the CPU; draws depend on the seed alone."""
    classes = (torch.arange(count) % model.network.label_dim).to(model.device)
    parts = generate(
        lambda wanted: model.denoiser(classes),
        sampler,
        range(count),
        model.shape,
        seed=Seed(0),
        batch=count,
        device=model.device,
        per_batch=True,
    )
    return torch.cat([drawn.cpu() for _, drawn in parts])
