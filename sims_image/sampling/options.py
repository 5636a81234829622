"""What images can be asked for: the options of ``sims_image generate``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Guidance:
    """Where a second network is evaluated."""

    GROUP: ClassVar[str] = "second network"

    guidance: str = ""
    """Where the second network is evaluated: full (the default), held:K (once every K steps, its correction kept in
    between; omega is to be found again), predictor (at the first evaluation of each step only), interval:LOW:HIGH (at
    these noise levels only), and a rule from outside; joined by '+'."""
    interval: str = ""
    """LOW,HIGH: an older way to write --guidance interval:LOW:HIGH."""
    refresh_every: int | None = None
    """K: an older way to write --guidance held:K."""
    predictor_only: bool = False
    """An older way to write --guidance predictor."""


@dataclass(frozen=True)
class Paired:
    """How two networks are evaluated."""

    GROUP: ClassVar[str] = "second network"

    pair: str = "sequential"
    """How two networks are evaluated: sequential (in turn) or overlapped (CUDA streams, or threads of a CPU)."""


@dataclass(frozen=True)
class Compiled:
    """How images are drawn, and networks evaluated."""

    GROUP: ClassVar[str] = "sampling"

    compile: bool = False
    """Compile the networks (torch.compile): minutes at first, faster then; not bit for bit the same."""
    cuda_graph: bool = False
    """Record an evaluation's CUDA kernels once and replay them."""


@dataclass(frozen=True)
class Machine:
    """Where a verb runs, and whether it does."""

    GROUP: ClassVar[str] = "machine"

    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dry_run: bool = False
    """Print what would be made, and its cost, and stop."""


@dataclass(frozen=True)
class Averaged:
    """Which averages over training two networks are."""

    base_ema: float | None = None
    """Relative EMA width of the base, made after training of the averages that its run keeps (power-function EMA)."""
    auxiliary_ema: float | None = None
    """The same of the auxiliary, or guide."""


@dataclass(frozen=True)
class Images(Averaged):
    """Which images of which model."""

    base: str = ""
    """Checkpoint to sample from."""
    out: str = ""
    """Data set to make."""
    seeds: str = "0-63"
    """Which images: 0-49999, 0-99,500."""
    seed: int = 0
    """Root of all randomness."""
    labels: str = ""
    """Classes: data (drawn as --data has them), uniform (drawn), balanced, or numbers or names (3 or cat,dog).
    Default: data with --data, else uniform."""
    data: str = ""
    """Data set whose class shares --labels data uses."""
    sampler: str = ""
    """heun:18, euler:40, ddim:50, rk4:4, dopri5:1e-5 (adaptive, in the time of flows); default the preset's."""
    sigma_min: float | None = None
    """Lowest noise level above 0."""
    sigma_max: float | None = None
    """Highest noise level."""
    rho: float | None = None
    """EDM's grid exponent, 7."""
    churn: str = ""
    """Stochasticity S_churn,S_min,S_max,S_noise, such as 40,0.05,50,1.003, or none; default the preset's, if the
    sampler is the preset's."""
    auxiliary: str = ""
    """SIMS: checkpoint fine-tuned on the base's own samples, to extrapolate away from."""
    omega: float | None = None
    """How far: (1 + omega) base - omega auxiliary; 0 is the base."""
    merge: bool = False
    """Neon: extrapolate the weights instead, one network to evaluate."""
    guide: str = ""
    """Autoguidance: checkpoint of a worse model, of any architecture."""
    weight: float | None = None
    """Autoguidance's own weight w = 1 + omega, in place of --omega."""
    decode: str = ""
    """Make pixels of a latent base's images: by its own autoencoder (own), or that in a folder of diffusers', of an
    AutoencoderKL or a pipeline; own+tiled and FOLDER+tiled do so in tiles, for less memory. Default: latents, which
    `train` takes, and a sheet of pictures."""
    batch: int = 64
    """Compute batch (the number of images if that is less), on record: images are bit for bit the same at one, alike
    to 1e-5 between them."""
    dtype: str = "float32"
    """Of the networks' bodies: float32, bf16, fp16. Weights, and what guidance combines, stay float32."""


@dataclass(frozen=True)
class Drawing(Compiled, Paired, Guidance, Images):
    """Images of a model, and how they are drawn."""


@dataclass(frozen=True)
class Written:
    """The data set that holds them."""

    name: str = ""
    """The data set's name in records; default the folder's."""
    sheet: int = 8
    """Rows of sheet.png; 0 for none."""
    restart: bool = False
    """Delete what a start with other settings left unfinished beside --out (OUT.generating), and begin anew."""


@dataclass(frozen=True)
class Generate(Machine, Written, Drawing):
    """Generate images: a data set that `train` reads, with its labels, its making on record, and a contact sheet.

    An image depends on the model, the sampler, --seed and its own number in --seeds; not on the number of processes,
    their order, or interruptions. The same command resumes a stopped one. Several processes:
    torchrun --nproc_per_node N -m sims_image generate ...
    """


def older_guidance(settings: Any) -> str:
    """The text of a schedule that was asked for by the options which --guidance stands for; '' if none was.

    settings: of any verb. Those options go with the next release.
    """
    parts = [
        "predictor" if getattr(settings, "predictor_only", False) else "",
        "" if getattr(settings, "refresh_every", None) is None else f"held:{settings.refresh_every}",
        f"interval:{settings.interval.replace(',', ':')}" if getattr(settings, "interval", "") else "",
    ]
    return "+".join(filter(None, parts))
