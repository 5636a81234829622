"""The options of the verbs that take files, ``sims_image info``, ``import-nvidia`` and so on, and of ``recipes``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import tyro


@dataclass(frozen=True)
class ImportNvidia:
    """Read a published EDM or EDM2 snapshot, without running what is in it, and write a checkpoint.

    Neon's (Neon_EDM_*.pkl) and DDO's (edm-*-ddo.pkl, edm2-*-ddo.pkl) are such files too.
    """

    file: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FILE.pkl")] = ""
    """NVIDIA's .pkl."""
    out: str = ""
    """The checkpoint's folder; default: named after the file, in the current folder."""
    replace: bool = False
    """Write over a checkpoint that is there."""


@dataclass(frozen=True)
class ImportDiffusers:
    """Read a network of diffusers, UNet2DModel or DiTTransformer2DModel, and write a checkpoint that every verb takes.

    The folder is a model's own (config.json and safetensors) or a pipeline's (model_index.json); nothing in it is run,
    and nothing is fetched by name. --base hf:FOLDER takes it without a copy. Snapshots of EDM, EDM2, Neon and DDO are
    pickles: import-nvidia reads them.
    """

    folder: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")] = ""
    """What `save_pretrained` wrote."""
    out: str = ""
    """The checkpoint's folder; default: named after it, in the current folder."""
    scheduler: str = ""
    """Its scheduler, where the folder has none: a folder or file of scheduler_config.json, or a class, such as
    DDPMScheduler, for that one's defaults. It says what the network predicts."""
    replace: bool = False
    """Write over a checkpoint that is there."""


@dataclass(frozen=True)
class ExportDiffusers:
    """Write an imported network, as it is or fine-tuned, as a folder that diffusers loads, and say how it is loaded.

    With --auxiliary and --omega a guided pair: the base and the auxiliary, as an adapter of peft's or as a
    second network; `sims_core.guide` makes one of them. With --merge too, one network (Neon).
    """

    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")] = ""
    """The base."""
    out: str = ""
    """The folder to write."""
    auxiliary: str = ""
    """Checkpoint to be guided away from."""
    omega: float | None = None
    """How far."""
    merge: bool = False
    """Neon: extrapolate the weights, and write one network."""


@dataclass(frozen=True)
class Recipes:
    """List published settings, each with what it costs, its published FID, its source, and how far that is trusted.

    A verb takes a line's settings by --preset NAME; other options override them, and --dry-run prices them.
    """

    verb: str = ""
    """Those of this verb alone."""


@dataclass(frozen=True)
class Info:
    """Say what a data set, checkpoint, run folder, snapshot of NVIDIA's or statistics file is, of one or several."""

    path: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH [PATH ...]")] = ()
    """The folders or files."""
