"""What can be measured: the options of ``sims_image evaluate``, ``outlook`` and ``classify``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from sims_image.sampling.options import Averaged, Drawing, Machine


@dataclass(frozen=True)
class Compared:
    """In what features images are compared."""

    GROUP: ClassVar[str] = "measuring"

    features: str = "lite0"
    """lite0 (or lite0:96 for images of 96 pixels a side), classifier, pixels, inception (FID), dinov2."""
    weights: str = ""
    """File of the feature network's weights, for inception and dinov2."""
    weights_sha256: str = ""
    """Its SHA-256, to take weights that are not the published ones."""
    cache: str = ""
    """Folder for features of real images, and a trained classifier; default NAME.features beside the real images."""
    keep: int = 10_000
    """Images of each set whose features are compared one with another; means and covariances take all."""
    decode: str = ""
    """Autoencoder that makes pixels of latents, the model's and real ones: a folder of diffusers', or none, to compare
    latents; own+tiled and FOLDER+tiled decode in tiles, for less memory. Default: the model's own, or the data's."""


@dataclass(frozen=True)
class Evaluate(Compared, Machine, Drawing):
    """Fréchet distance, KID, MIND, precision, recall, density and coverage of generated images, with errors and floor.

    Either --base, a model whose images are measured as they are made and not stored (the options of `generate` say
    how), or --images. Several processes share the making: torchrun --nproc_per_node N -m sims_image evaluate ...
    """

    preset: str = ""
    """A published checkpoint's settings, such as ddo-imagenet64 (`sims_image recipes`); --base names the checkpoint."""
    images: str = ""
    """Images to measure: whatever `prepare` reads (a data set, an EDM zip, a folder or zip of pictures, ADM's .npz)."""
    reference: str = ""
    """Real images: a data set (the training set, by convention), or statistics: NVIDIA's .npz or .pkl, or those
    of --save-reference."""
    heldout: str = ""
    """Data set of real images that the model was not trained on; `prepare --holdout` makes one."""
    n: int = 0
    """Images to take of --images; 0 takes all. Of --base, --seeds says how many."""
    out: str = ""
    """Report to write, JSON."""
    save_reference: str = ""
    """Write the reference's statistics here, .npz, to name as --reference later."""
    floor: bool = True
    """Measure the floor, and look for memorised images."""
    seeds: str = "0-4999"
    """Which images of --base: 0-49999, 0-99,500."""
    repeats: int = 1
    """Evaluations of --base, on seeds after those of the first; their mean, standard deviation and least are told."""
    data: str = ""
    """Data set whose class shares --labels data uses; default the reference."""
    dry_run: bool = False
    """Print what would be measured, and its cost, and stop."""


@dataclass(frozen=True)
class Foresee(Compared, Machine, Averaged):
    """Will SIMS help? The angle between the base's error and the drift that self-training reveals, before any guidance.

    Of base and auxiliary each a checkpoint, whose images are measured as they are made and not stored, or images that
    are there; those of two checkpoints share their seeds, which is the most informative. Several processes share the
    making (the bare -- keeps --n from torchrun): torchrun --nproc_per_node N -m -- sims_image outlook ...
    """

    data: str = ""
    """Real images: a data set. Images that the base was not trained on tell an error from memorising."""
    base: str = ""
    """The model to improve: a checkpoint, or its images (whatever `prepare` reads)."""
    auxiliary: str = ""
    """The model that was trained on the base's images: a checkpoint, or its images."""
    n: int = 2000
    """Images of each checkpoint; of images that are there, all."""
    seed: int = 0
    """Root of all randomness."""
    sampler: str = ""
    """heun:18, euler:40, ddim:50, rk4:4, the one to be improved; default the preset's."""
    labels: str = ""
    """Classes: data (drawn as --data has them), uniform (drawn), balanced, or numbers or names (3 or cat,dog).
    Default: data."""
    batch: int = 64
    """Compute batch."""
    out: str = ""
    """Report to write, JSON."""
    dry_run: bool = False
    """Print what would be measured, and its cost, and stop."""


@dataclass(frozen=True)
class Classify:
    """Train a classifier on a labelled data set, show how it errs on held-out images, and judge other images.

    The classifier is stored beside the data (NAME.features), and `control` finds it there.
    """

    data: str = ""
    """Labelled data set to train on."""
    heldout: str = ""
    """Labelled images that it was not trained on, by which its errors are corrected for; default: no correction."""
    classifier: str = ""
    """Take this one instead of training: a folder that classify stored, or module:function of your own."""
    images: str = ""
    """Data set whose class shares are wanted, such as one that `generate` made."""
    out: str = ""
    """Folder to store the classifier in; default beside the data."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
