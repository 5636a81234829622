"""The presets: one table, a network and its training recipe per line, with the published figure.

Settings of EDM (Karras et al. 2022, arXiv 2206.00364, Table 7 and its published commands) and of EDM2 (Karras et al.
2024, arXiv 2312.02696, Table 6; ImageNet-64, and latents of ImageNet-512). A figure is the FID at the preset's
sampler, of NVIDIA's own training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from sims_core.errors import InputError, choose
from sims_core.lab.grids import parse_budget

#: left to a measurement at a run's start (`sims_image.training.ways`)
AUTO = "auto"
PRECISIONS = ("float32", "bf16", "fp16")
LR_DECAYS = ("constant", "inverse-sqrt", "cosine")
EMA_KINDS = ("halflife", "power")
TIMES = ("uniform", "logit-normal")
#: the objective whose networks are flows
FLOW = "flow-matching"

Shape = tuple[int, int, int]  # (C, H, W)
_LENGTH = "a training length in images, with a unit: 50k, 200Mi"


@dataclass(frozen=True)
class Recipe:
    """How a network is trained. Lengths are in images seen (steps x global batch).

    batch: images per step, over all processes. budget, mi: how long, as written ('200Mi'), and what one Mi counts
    (10^6 in EDM, 2^20 in EDM2). lr: Adam's nominal rate, reached after lr_rampup images; lr_decay: 'constant',
    'inverse-sqrt' (lr / sqrt(steps / lr_decay_steps) after lr_decay_steps steps; EDM2) or 'cosine' (to 0 at
    the end of the budget). ema: 'halflife' (ema_halflife images, at most ema_rampup times the images seen; None: no
    ramp; EDM) or 'power' (EDM2's profiles of the relative widths ema_widths). augment: probability of each of EDM's
    augmentations, 0 for none. objective: a name in `sims_image.training.objectives.OBJECTIVES`. p_mean, p_std: training
    noise, ln sigma ~ N(p_mean, p_std^2). Of objective 'flow-matching' alone: time is drawn 'uniform' or 'logit-normal'
    (logit t ~ N(-p_mean, p_std^2), as ln sigma = -logit t), and coupling images at a time are paired with their noise
    by optimal transport, 0 for none. clip: the gradient's largest norm, 0 for any. precision of the network's body
    ('float32', 'bf16', 'fp16'; weights, gradients and averages stay float32) and the loss_scale used with it.
    """

    batch: int = 512
    budget: str = "200Mi"
    mi: int = 1_000_000
    lr: float = 1e-3
    lr_rampup: int = 10_000_000
    lr_decay: str = "constant"
    lr_decay_steps: int = 0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    ema: str = "halflife"
    ema_halflife: int = 500_000
    ema_rampup: float | None = 0.05
    ema_widths: tuple[float, ...] = (0.05, 0.10)
    augment: float = 0.0
    objective: str = "edm"
    p_mean: float = -1.2
    p_std: float = 1.2
    precision: str = "float32"
    loss_scale: float = 1.0
    time: str = "uniform"
    coupling: int = 0
    clip: float = 0.0

    def __post_init__(self) -> None:
        chosen = (("lr_decay", LR_DECAYS), ("ema", EMA_KINDS), ("precision", PRECISIONS), ("time", TIMES))
        for name, known in chosen:
            choose(name, getattr(self, name), known)
        if self.mi not in (10**6, 2**20):
            raise InputError("mi", self.mi, "one Mi counts 1000000 (EDM) or 1048576 (EDM2)")
        for name in ("batch", "lr", "p_std", "loss_scale", "eps"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(name, getattr(self, name), "it must be positive")
        for name, low, high in (
            ("augment", 0, 1),
            ("beta1", 0, 1),
            ("beta2", 0, 1),
            ("lr_rampup", 0, 2**62),
            ("clip", 0, 1e9),
        ):
            if not low <= getattr(self, name) <= high:
                raise InputError(name, getattr(self, name), f"it must lie in [{low}, {high}]")
        if self.lr_decay == "inverse-sqrt" and self.lr_decay_steps < 1:
            raise InputError("lr_decay_steps", self.lr_decay_steps, "'inverse-sqrt' needs the step where it begins")
        if self.images <= 0:
            raise InputError("budget", self.budget, _LENGTH)
        for name in ("time", "coupling"):
            if self.objective != FLOW and name in self.record:
                raise InputError(name, getattr(self, name), f"`objective` {FLOW} alone has it")
        if self.coupling and (self.coupling < 0 or self.batch % self.coupling):
            raise InputError("coupling", self.coupling, f"a number that divides the batch, {self.batch}")
        if self.coupling and self.augment:
            words = "the noise would tell how an image was augmented; use `augment` 0"
            raise InputError("coupling", self.coupling, words)

    @property
    def record(self) -> dict[str, Any]:
        """All of it as run folders are named by it, JSON-able; what they were once named without, where it is set."""
        later = {"time", "coupling", "clip"}
        return {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.name not in later or getattr(self, f.name) != f.default
        }

    @property
    def images(self) -> int:
        """The budget in images."""
        budget = parse_budget("budget", self.budget, mi=self.mi, expected=_LENGTH)
        if budget.unit != "samples":
            raise InputError("budget", self.budget, _LENGTH)
        return round(budget.value)


@dataclass(frozen=True)
class Preset:
    """A network, the data it expects, its recipe and its sampler.

    network: arguments of `sims_image.models.networks.build` apart from those the data give (`config`), none where a
    recipe comes without a network. shape: (C, H, W); classes: how many, 0 for unconditional. sampler: as
    `sims_image.models.denoiser.parse_sampler` reads it; churn: EDM's (S_churn, S_min, S_max, S_noise), or None for the
    deterministic sampler.
    """

    network: Mapping[str, Any]
    shape: Shape
    classes: int
    recipe: Recipe
    sampler: str
    churn: tuple[float, float, float, float] | None = None

    def config(self, shape: Shape | None = None, label_dim: int | None = None) -> dict[str, Any]:
        """The arguments of `sims_image.models.networks.build` for images (C, H, W) with ``label_dim`` classes.

        Left out, both are the preset's own. Raises `InputError` for images that are not square.
        """
        if not self.network:
            words = "a recipe of imported networks, and no network: name a checkpoint"
            raise InputError("preset", "diffusers", words)
        channels, height, width = shape or self.shape
        if height != width:
            raise InputError(
                "shape", f"{height}x{width}", "the networks take square images; prepare the data with `size`"
            )
        classes = self.classes if label_dim is None else label_dim
        found = {"img_resolution": height, "img_channels": channels, "label_dim": classes, **self.network}
        if self.recipe.objective == FLOW:
            found["class_name"] = "FlowPrecond" if "model_type" in found else "FlowPrecond2"
        return found


def _song(
    shape: Shape,
    classes: int,
    channel_mult: list[int],
    *,
    heun: int,
    dropout: float,
    channels: int = 128,
    blocks: int = 4,
    attention: int = 16,
    **recipe: Any,
) -> Preset:
    """DDPM++ under EDM's preconditioning."""
    network: dict[str, Any] = {"model_type": "SongUNet", "embedding_type": "positional", "encoder_type": "standard"}
    network |= {"decoder_type": "standard", "channel_mult_noise": 1, "resample_filter": [1, 1]}
    network |= {"model_channels": channels, "channel_mult": channel_mult, "num_blocks": blocks}
    network |= {"attn_resolutions": [attention], "dropout": dropout, "augment_dim": 9 if recipe.get("augment") else 0}
    return Preset(network, shape, classes, Recipe(**recipe), f"heun:{heun}")


def _adm(*, batch: int, budget: str, lr: float, dropout: float, ema: int, heun: int) -> Preset:
    """ADM under EDM's preconditioning on ImageNet-64, in fp16, with EDM's stochastic sampler."""
    network = {"model_type": "DhariwalUNet", "model_channels": 192, "channel_mult": [1, 2, 3, 4], "num_blocks": 3}
    network |= {"attn_resolutions": [32, 16, 8], "dropout": dropout, "use_fp16": True}
    settings = Recipe(batch, budget, lr=lr, ema_halflife=ema, precision="fp16", loss_scale=100.0)
    return Preset(network, (3, 64, 64), 1000, settings, f"heun:{heun}", (40, 0.05, 50, 1.003))


def _ot_cfm() -> Preset:
    """OT-CFM on CIFAR-10 (arXiv 2302.00482), as Bertrand et al. train it: 400,000 steps, no flips, EMA of .9999 per
    step.

    ADM is the nearest of the networks here to theirs.
    """
    network = {"model_type": "DhariwalUNet", "model_channels": 128, "channel_mult": [1, 2, 2, 2], "num_blocks": 2}
    network |= {"attn_resolutions": [16], "dropout": 0.1}
    recipe = Recipe(
        batch=128,
        budget="51.2Mi",
        lr=2e-4,
        lr_rampup=5_000 * 128,
        ema_halflife=round(128 * math.log(0.5) / math.log(0.9999)),
        ema_rampup=None,
        objective=FLOW,
        p_mean=0.0,
        p_std=1.0,
        coupling=128,
        clip=1.0,
    )
    return Preset(network, (3, 32, 32), 0, recipe, "dopri5:1e-5")


def _edm2(channels: int, *, lr: float, budget: str, dropout: float = 0.0, latents: bool = False) -> Preset:
    """EDM2 on ImageNet-64, or on latents of ImageNet-512."""
    network = {"model_channels": channels, "channel_mult": [1, 2, 3, 4], "num_blocks": 3}
    network |= {"attn_resolutions": [16, 8], "dropout": dropout, "use_fp16": True}
    recipe = Recipe(
        batch=2048, budget=budget, mi=2**20, lr=lr, lr_decay="inverse-sqrt",
        lr_decay_steps=70_000 if latents else 35_000, beta2=0.99, ema="power", objective="edm2",
        p_mean=-0.4 if latents else -0.8, p_std=1.0 if latents else 1.6, precision="fp16",
    )  # fmt: skip
    return Preset(network, (4 if latents else 3, 64, 64), 1000, recipe, "heun:32")


def _small(shape: Shape, channels: int, channel_mult: list[int], *, attention: int, **recipe: Any) -> Preset:
    """DDPM++ at a size that one CPU trains in minutes: shorter ramps and averages, the rate falling to 0."""
    short = {"lr_decay": "cosine", "ema_halflife": 10_000, "dropout": 0.0, "blocks": 2, "heun": 18}
    return _song(shape, 10, channel_mult, channels=channels, attention=attention, **{**short, **recipe})


PRESETS: dict[str, Preset] = {
    "cifar10-cond": _song((3, 32, 32), 10, [2, 2, 2], dropout=0.13, augment=0.12, heun=18),  # FID 1.79
    "cifar10-uncond": _song((3, 32, 32), 0, [2, 2, 2], dropout=0.13, augment=0.12, heun=18),  # FID 1.97
    "cifar10-ot-cfm": _ot_cfm(),  # FID 3.5
    "ffhq64": _song((3, 64, 64), 0, [1, 2, 2, 2], batch=256, lr=2e-4, dropout=0.05, augment=0.15, heun=40),  # FID 2.39
    "imagenet64-adm": _adm(batch=4096, budget="2500Mi", lr=1e-4, dropout=0.1, ema=50_000_000, heun=256),  # FID 1.36
    "imagenet64-edm2-xs": _edm2(128, lr=0.0120, budget="1024Mi"),
    "imagenet64-edm2-s": _edm2(192, lr=0.0100, budget="1024Mi"),  # FID 1.58
    "imagenet64-edm2-m": _edm2(256, lr=0.0090, budget="2048Mi", dropout=0.1),  # FID 1.43
    "imagenet64-edm2-l": _edm2(320, lr=0.0080, budget="1024Mi", dropout=0.1),  # FID 1.33
    "imagenet64-edm2-xl": _edm2(384, lr=0.0070, budget="640Mi", dropout=0.1),  # FID 1.33
    "imagenet512-edm2-xxs": _edm2(64, lr=0.0170, budget="2048Mi", latents=True),
    "imagenet512-edm2-xs": _edm2(128, lr=0.0120, budget="2048Mi", latents=True),
    "imagenet512-edm2-s": _edm2(192, lr=0.0100, budget="2048Mi", latents=True),  # FID 2.56
    "imagenet512-edm2-m": _edm2(256, lr=0.0090, budget="2048Mi", dropout=0.1, latents=True),
    "imagenet512-edm2-l": _edm2(320, lr=0.0080, budget="1792Mi", dropout=0.1, latents=True),
    "imagenet512-edm2-xl": _edm2(384, lr=0.0070, budget="1280Mi", dropout=0.1, latents=True),
    "imagenet512-edm2-xxl": _edm2(448, lr=0.0065, budget="896Mi", dropout=0.1, latents=True),
    "digits": _small((1, 8, 8), 32, [1, 2], attention=4, batch=128, budget="100k", lr=2e-3, lr_rampup=10_000),
    "fashion16": _small((1, 16, 16), 32, [1, 2, 2], attention=8, batch=128, budget="250k", lr=2e-3, lr_rampup=20_000),
    "cifar10-tiny": _small(
        (3, 32, 32), 32, [1, 2, 2], attention=16, batch=128, budget="500k", lr=1e-3, lr_rampup=20_000
    ),
    # fine-tunes what was imported: EDM's loss and average, the rate of diffusers' own training examples
    "diffusers": Preset({}, (3, 32, 32), 0, Recipe(batch=128, lr=1e-4, lr_rampup=0, ema_rampup=None), "ddim:50"),
}
