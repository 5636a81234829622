"""What a data set can be made of and how: the options of ``sims_image prepare``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Prepare:
    """Make a data set: a folder of images.npy, labels.npy and dataset.json, or NVIDIA's EDM zip.

    If it is killed, the same command resumes it; the result appears under its name when it is whole and not before.
    Without --size the source's images must be square and alike.
    """

    source: str = ""
    """What to read (the first word may stand without --source): cifar-10-python.tar.gz or cifar-100-python.tar.gz; a
    folder of downsampled ImageNet's batches; a folder or zip of pictures; MNIST's IDX files or their folder; an .npz of
    arr_0 (ADM's) or a .npy of pictures; a parquet file, a folder of them or a clone from the Hub; a data set or EDM
    zip; or the word digits."""
    out: str = ""
    """The folder to make, or with --format edm-zip the .zip file."""
    kind: str = ""
    """What the source is, if its looks mislead: cifar10, cifar100, imagenet, folder, zip, idx, arrays, parquet,
    dataset or digits."""
    format: str = "folder"
    """folder, or edm-zip (uncompressed zip of PNGs with dataset.json, as NVIDIA's tools read it)."""
    split: str = ""
    """Of sources that have splits: train (the default), test or val; none, where folders called so are classes."""
    size: int = 0
    """Resample to this many pixels a side; 0 leaves the images as they are."""
    crop: str = "center"
    """How pictures become square under --size: center (middle square, then --filter), adm (Dhariwal & Nichol's crop of
    ImageNet, with its own filters), none (refuse pictures that are not square)."""
    filter: str = "lanczos"
    """Resampling filter: lanczos, box, bilinear or bicubic."""
    gray: bool = False
    """Make everything one grey channel."""
    rgb: bool = False
    """Make everything three channels, grey pictures too."""
    upright: bool = False
    """Turn photographs by their EXIF orientation (the field's tools do not)."""
    latents: str = ""
    """Encode the pictures by the autoencoder in this folder of diffusers, an AutoencoderKL's or a pipeline's, which the
    data set then carries: mean and standard deviation of each latent, from which training draws, as EDM2 stores them.
    They make a zip of EDM2's with --format edm-zip."""
    latent_space: str = "edm2"
    """Of --latents: edm2 (of pixels from 0 to 1; networks see them normalised by channel, to this data set's mean and
    standard deviation), or diffusers (of pixels from -1 to 1, times the autoencoder's factor), as imported networks."""
    device: str = "auto"
    """Where --latents are computed: auto, cpu, cuda or cuda:N."""
    unlabelled: bool = False
    """Leave labels out."""
    skip_damaged: bool = False
    """Leave out the pictures that cannot be decoded, and name them (every picture is decoded twice)."""
    classes: str = ""
    """Names of the classes, with commas, for sources that only number them."""
    limit: int = 0
    """Take only so many images: the first ones, or a balanced subset; 0 takes all."""
    balanced: bool = False
    """Take as many images of each class, drawn by --seed."""
    holdout: float = 0.0
    """Hold out a fraction (below 1) or a number of the images, each class its share, drawn by --seed, as a second data
    set OUT-heldout."""
    seed: int = 0
    """Of --balanced and --holdout."""
    name: str = ""
    """The data set's name in records; default: the source's."""
    image_column: str = ""
    """Of a parquet file; default: found by type and name."""
    label_column: str = ""
    """Of a parquet file; default: found by type and name. Of CIFAR-100: fine_label (the default) or coarse_label."""
    class_map: str = ""
    """Downsampled ImageNet's map_clsloc.txt, which renumbers its classes to the order of sorted WordNet numbers;
    default: the one beside the batches."""
    workers: int = 0
    """Threads that decode pictures; 0 is one per core, at most 8. Does not change the result."""
    restart: bool = False
    """Delete what a start with other settings left unfinished beside --out (OUT.preparing), and begin anew."""
    dry_run: bool = False
    """Say what would be made, and make nothing."""
