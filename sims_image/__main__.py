"""The command ``sims_image VERB [options]``: one verb a function, imported when it is called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import cast

from sims_core.errors import choose
from sims_core.lab.command import main_with_errors

#: verb -> (module:function, what it does); the function takes the words after the verb
VERBS: dict[str, tuple[str, str]] = {
    "prepare": (
        "sims_image.data.prepare:run",
        "make a data set: CIFAR-10, ImageNet-64, folders, IDX, zips, parquet, digits",
    ),
    "train": ("sims_image.training.train:run", "train a preset, or fine-tune a checkpoint"),
    "generate": (
        "sims_image.sampling.generate:run",
        "draw images from a checkpoint: alone, SIMS, Neon or autoguidance",
    ),
    "evaluate": (
        "sims_image.metrics.evaluate:run",
        "measure a model or images: FID, KID, precision, recall, and their floor",
    ),
    "sims": (
        "sims_image.experiments.sims:run",
        "Algorithm 1 end to end: base, synthetic data, auxiliary, omega, report",
    ),
    "loop": (
        "sims_image.experiments.loop:run",
        "self-consuming generations: any data policy and method, measured one by one",
    ),
    "pollution": (
        "sims_image.experiments.pollution:run",
        "standard training and SIMS on polluted data, over the pollution's size",
    ),
    "retrain": (
        "sims_image.experiments.retrain:run",
        "iterative retraining on real and generated images, over their ratio",
    ),
    "control": ("sims_image.experiments.control:run", "Algorithm 2: move class shares toward a target"),
    "classify": ("sims_image.metrics.classify:run", "train a classifier, see how it errs, judge the classes of images"),
    "import-nvidia": (
        "sims_image.models.nvidia.convert:run",
        "read NVIDIA's EDM and EDM2 snapshots, without running them",
    ),
    "info": ("sims_image.info:run", "say what a data set, checkpoint, run folder or statistics file is"),
}


def overview() -> str:
    """What ``--help`` prints."""
    width = max(map(len, VERBS), default=0)
    lines = [f"  {verb.ljust(width)}  {what}" for verb, (_, what) in VERBS.items()]
    return "\n".join(
        [
            "usage: sims_image VERB [options]",
            "",
            "Self-improving diffusion models on images. 'sims_image VERB --help' lists a verb's options.",
            "",
            *lines,
        ]
    )


def run(argv: Sequence[str]) -> None:
    """Run one verb. Raises `InputError` for a verb that does not exist; bad options are the verb's own to refuse."""
    verb, *words = argv or [""]
    if verb in ("-h", "--help", "help"):
        print(overview())
        return
    if verb in ("--version", "-V"):
        from sims_core import __version__

        print(__version__)
        return
    where, _ = VERBS[choose("verb", verb, VERBS)]
    module, function = where.split(":")
    cast("Callable[[Sequence[str]], None]", getattr(import_module(module), function))(words)


def main() -> None:
    """Entry point. Without a verb, what there is."""
    if len(sys.argv) < 2:
        print(overview(), file=sys.stderr)
        sys.exit(2)
    sys.exit(main_with_errors(run))


if __name__ == "__main__":
    main()
