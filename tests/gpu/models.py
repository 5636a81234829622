"""Guided pairs of random weights on a device and their samples; trainers; what the host waits for."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from sims_core.sampling import Sampler, generate
from sims_core.seeds import Seed
from sims_image.models.checkpoints import Record, Summary
from sims_image.processes import Processes
from sims_image.sampling.engine import PLAIN, Engine
from sims_image.sampling.guided import BODIES, Model
from sims_image.training.augment import Augmentation
from sims_image.training.trainer import Options, Trainer
from tests.image import networks, tiny

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
#: as tiny as learns
SMALL = {**tiny.EDM, "channel_mult": [1], "attn_resolutions": [], "label_dropout": 0.1}
SMALL2 = {**tiny.EDM2, "channel_mult": [1], "attn_resolutions": []}
#: what a trace shows where the host waits for the device
WAITS = re.compile(r"cuda(Stream|Device|Event)Synchronize|Memcpy DtoH|Memcpy HtoD \(Pageable")


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


def trainer(data, device: torch.device, config: dict = SMALL, *, processes=None, **changes) -> Trainer:
    edm2 = config is SMALL2
    recipe = tiny.recipe(batch=4, ema="power" if edm2 else "halflife", objective="edm2" if edm2 else "edm", **changes)
    feed = tiny.feed(data, config, batch=4, passes=2, augment=None if edm2 else Augmentation(0.5))
    feed.device = device
    processes = processes or Processes(0, 1, device)
    return Trainer(tiny.network(config), recipe, feed, Seed(5), processes=processes, options=Options())


def waits(work: Callable[[], object]) -> Counter[str]:
    """How often the host waited for the device during ``work``, by the profiler."""
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        work()
    seen = {event.key: event.count for event in found.key_averages()}
    assert any(key.startswith("cuda") for key in seen), "the profiler sees no call of CUDA's"
    return Counter({key: count for key, count in seen.items() if WAITS.search(key)})
