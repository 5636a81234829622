"""What can be measured: the options of ``sims_image evaluate`` and ``classify``."""

from __future__ import annotations

from dataclasses import dataclass

from sims_image.sampling.options import Drawing, Machine


@dataclass(frozen=True)
class Evaluate(Machine, Drawing):
    """Fréchet distance, KID, precision, recall, density and coverage of generated images, with errors and their floor.

    Either --base, a model whose images are measured as they are made and not stored (the options of `generate` say
    how), or --images. Several processes share the making: torchrun --nproc_per_node N -m sims_image evaluate ...
    """

    images: str = ""
    """Images to measure: whatever `prepare` reads (a data set, an EDM zip, a folder or zip of pictures, ADM's .npz)."""
    reference: str = ""
    """Real images: a data set (the training set, by the field's habit), or statistics: NVIDIA's .npz or .pkl, or those
    of --save-reference."""
    heldout: str = ""
    """Data set of real images that the model was not trained on; `prepare --holdout` makes one."""
    features: str = "lite0"
    """lite0 (or lite0:96 for images of 96 pixels a side), classifier, pixels, inception (FID), dinov2."""
    weights: str = ""
    """File of the feature network's weights, for inception and dinov2."""
    weights_sha256: str = ""
    """Its SHA-256, to take weights that are not the published ones."""
    n: int = 0
    """Images to take of --images; 0 takes all. Of --base, --seeds says how many."""
    out: str = ""
    """Report to write, JSON."""
    save_reference: str = ""
    """Write the reference's statistics here, .npz, to name as --reference later."""
    cache: str = ""
    """Folder for features of real images, and a trained classifier; default NAME.features beside the reference."""
    keep: int = 10_000
    """Images whose features KID, precision, recall, density and coverage compare."""
    floor: bool = True
    """Measure the floor, and look for memorised images."""
    seeds: str = "0-4999"
    """Which images of --base: 0-49999, 0-99,500."""
    data: str = ""
    """Data set whose class shares --labels data uses; default the reference."""
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
