"""What a training run can be asked for: the options of ``sims_image train``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import tyro

RAW = ("auto", "always", "end")
ADAM = ("new", "kept")


@dataclass(frozen=True)
class RecipeOptions:
    """What differs from the preset's recipe."""

    GROUP: ClassVar[str] = "recipe"

    batch: int | None = None
    """Images per step, over all processes."""
    lr: float | None = None
    """Adam's nominal learning rate."""
    lr_rampup: str = ""
    """Images over which the learning rate rises from 0; 0 for none. The published 10M never end within a short
    fine-tuning budget: the run says how far they get."""
    lr_decay: str | None = None
    """constant, inverse-sqrt (EDM2) or cosine (to 0 at the end of the budget)."""
    lr_decay_steps: int | None = None
    """Steps after which inverse-sqrt begins."""
    beta1: float | None = None
    """Adam's first momentum."""
    beta2: float | None = None
    """Adam's second."""
    eps: float | None = None
    """Adam's epsilon."""
    ema: str | None = None
    """halflife (EDM) or power (EDM2)."""
    ema_halflife: str = ""
    """Images in which the past's weight halves."""
    ema_rampup: float | None = None
    """Bound on the half-life as a fraction of the images seen; 0 for none. Always none when fine-tuning."""
    ema_widths: tuple[float, ...] | None = None
    """Relative widths (sigma_rel) of the power-function averages; any other width can be made of them afterwards."""
    augment: float | None = None
    """Probability of each of EDM's augmentations; 0 for none."""
    objective: str | None = None
    """edm, edm2 (with a learned log-variance; EDM2's networks), or flow-matching (the velocity of the linear path; with
    --network prediction=denoiser the network predicts the image). A checkpoint keeps its own."""
    time: str | None = None
    """Flow matching's times: uniform, or logit-normal (logit t ~ N(-p_mean, p_std^2), p_mean 0 and p_std 1)."""
    coupling: int | None = None
    """Flow matching: pair so many images at a time with their noise by optimal transport (OT-CFM), of labelled ones
    within each class; 0 for none."""
    clip: float | None = None
    """Largest norm of the gradient; 0 for any."""
    p_mean: float | None = None
    """Mean of ln sigma in training."""
    p_std: float | None = None
    """Its standard deviation."""
    precision: str | None = None
    """Of the network's body: float32, bf16 or fp16 (with loss scaling), or auto: float32 or bf16, as a measurement at
    the start says, which the run records (another run may choose otherwise). Weights and optimiser are float32."""
    loss_scale: float | None = None
    """Where fp16's loss scale starts; it halves where gradients overflow."""
    lora: str = ""
    """Fine-tune an adapter in place of all weights: its rank, or rank and layers (16:to_q,to_v). Of imported
    networks."""
    network: str = ""
    """Arguments of the network that differ from the preset's: dropout=0.1,model_channels=64."""


@dataclass(frozen=True)
class Kept:
    """What a run keeps on its way."""

    GROUP: ClassVar[str] = "snapshot"

    snapshots: str = ""
    """Images seen at which to keep checkpoints and a sheet of samples, such as 1Mi,3Mi,6Mi; the end is always one."""
    snapshot_every: str = ""
    """And one each so many images. Default, where neither is given: ten, or 32 with power-function EMA."""
    log_every: str = ""
    """Images between lines of log.jsonl; default a 200th of the budget, at most 50k."""
    state_every: str = ""
    """Images between states to resume from; default a 50th of the budget."""
    raw: str = "auto"
    """Keep raw weights along with their averages: always, at the end, or auto (always when fine-tuning)."""
    sheet: int | None = None
    """Rows of a snapshot's sheet of samples; 0 for none. Default: 8, at the end and wherever it takes less than a tenth
    of the time since the last one."""
    sampler: str = ""
    """Sampler of the sheets, such as heun:18; default the preset's."""


@dataclass(frozen=True)
class Running:
    """Where it runs, and whether it does."""

    GROUP: ClassVar[str] = "machine"

    microbatch: int = 0
    """Images per process that pass through the network at once, gradients being accumulated; 0: its whole part."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = 1
    """Threads that read data ahead; 0 reads when asked. Does not change the result."""
    compile: bool = False
    """torch.compile the network."""
    channels_last: bool | Literal["auto"] | None = None
    """Keep images and convolutions channels-last; changes rounding only. auto: where that is faster, as precision.
    Default: yes, but on a GPU only in networks without group normalisation."""
    deterministic: bool = False
    """On a GPU: kernels that repeat themselves bit for bit, so that a resumed run is the same run; slower."""
    track: str = ""
    """Where else the log goes, besides log.jsonl: tensorboard (extra 'track'), or one of your own
    (docs/extending.md)."""
    dry_run: bool = False
    """Print settings, parameters, memory and time, and stop."""


@dataclass(frozen=True)
class Train(Running, Kept, RecipeOptions):
    """Train a diffusion model by the recipe of EDM or EDM2, or fine-tune one from a checkpoint.

    What is not given is the preset's (and the preset of a checkpoint is the one that it was trained by). Numbers of
    images may be written 5000, 50k, 10M or 3Mi (Mi as the preset counts it: 10^6 in EDM, 2^20 in EDM2; --budget needs
    its unit). The same command resumes a stopped one. Several processes: torchrun --nproc_per_node N -m
    sims_image train ...
    """

    preset: str = ""
    """Network and recipe: cifar10-cond, cifar10-uncond, cifar10-ot-cfm, ffhq64, imagenet64-adm,
    imagenet64-edm2-{xs,s,m,l,xl}, or CPU-sized: digits, fashion16, cifar10-tiny."""
    data: str = ""
    """Data set: a folder that `prepare` made, or an EDM zip. Preset digits makes its own, data/digits."""
    from_: Annotated[str, tyro.conf.arg(name="from")] = ""
    """Checkpoint to fine-tune: its architecture and weights, with a new optimiser, and EMA without ramp-up."""
    adam: str = "new"
    """Of --from, the last checkpoint of a run of `train`: kept starts from that run's Adam state (its moments)."""
    fresh: bool = False
    """Of --from, take the architecture alone, its weights drawn by --seed: an imported network trained from scratch."""
    budget: str = ""
    """Images to see, with a unit (50k, 3Mi); default the preset's. Must be given with --from."""
    out: str = ""
    """Run folder; default runs/train-NAME-<hash of the settings>."""
    seed: int = 0
    """Every random draw follows from it."""
