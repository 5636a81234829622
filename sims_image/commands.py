"""The verbs of ``sims_image``: words in, lines out. The only module that knows what an argument is called there.

A verb imports what it runs when it runs, so that ``--help`` stays cheap. The library's errors name arguments
(``data``, ``lr_rampup``); here they become options (``--data``, ``--lr-rampup``).
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from sims_core import __version__
from sims_core.errors import InputError, choose, shown
from sims_core.lab.command import about_options, options_of, parse_command
from sims_core.lab.script import Command
from sims_image.sampling.options import older_guidance

if TYPE_CHECKING:
    from sims_image.data.options import Prepare
    from sims_image.experiments.options import Experiment
    from sims_image.metrics.options import Classify, Evaluate, Foresee
    from sims_image.models.checkpoints import Checkpoint
    from sims_image.options import ExportDiffusers, ImportDiffusers, ImportNvidia, Info, Recipes
    from sims_image.sampling.options import Generate
    from sims_image.training.options import Train


def prepare(settings: Prepare) -> None:
    """Make a data set."""
    from sims_image.data.dataset import by
    from sims_image.data.plan import plan
    from sims_image.data.prepare import prepare
    from sims_image.verbs import encoder_of

    warnings.filterwarnings("ignore", module="PIL")  # what matters of a picture becomes an error or a note
    encoding = encoder_of(settings)
    if settings.dry_run:
        print("\n".join(plan(settings, progress=True, encoder=encoding).lines()))
        return
    made = prepare(settings, progress=True, encoder=encoding)
    classes = f"{len(made.classes)} classes" if made.labels is not None else "no labels"
    print(f"{made.path}: {len(made)} images {by(made.shape)} {made.dtype}, {classes}, sha256 {made.sha256}")


def train(settings: Train) -> None:
    """Train, or fine-tune."""
    from sims_image import verbs
    from sims_image.training.session import train
    from sims_image.training.trainer import DivergedError

    if settings.dry_run:
        print(verbs.train.told(settings))
        return
    try:
        result = train(settings, progress=True)
    except DivergedError as error:  # in every process; said once
        raise SystemExit(f"error: {error}" if os.environ.get("RANK", "0") == "0" else 1) from None
    if result.first:
        print(result.words)


def generate(settings: Generate) -> None:
    """Draw images from a checkpoint."""
    from sims_image import verbs
    from sims_image.processes import start
    from sims_image.sampling.generate import generate

    if settings.dry_run:
        print(verbs.generate.told(settings))
        return
    with start(settings.device) as processes:
        made = generate(settings, processes, progress=True)
    if made is not None:
        nfe = made.record["source"]["nfe"]
        print(f"{made.path}: {len(made)} images, {nfe} evaluations each, sha256 {made.sha256}")


def measure(module: str, settings: Evaluate | Foresee) -> None:
    """Measure images: what the function of its name in ``sims_image.metrics.MODULE`` finds."""
    from sims_image.processes import start

    run = import_module(f"sims_image.metrics.{module}")
    if settings.dry_run:
        print(run.describe(settings))
        return
    with start(settings.device) as processes:
        found = getattr(run, module)(settings, processes, progress=True)
        if found is not None:
            print("\n".join(found.lines()))


def classify(settings: Classify) -> None:
    """Train a classifier, see how it errs, judge images."""
    from sims_image.metrics.classify import classify

    print(classify(settings))


def experiment(module: str, settings: Experiment) -> None:
    """An experiment: what `conduct` and `describe` of ``sims_image.experiments.MODULE`` do."""
    from sims_image.processes import start

    run = import_module(f"sims_image.experiments.{module}")
    settings = replace(settings, out=settings.out or f"runs/{settings.verb}")
    if settings.dry_run:
        print(run.describe(settings))
        return
    with start(settings.device) as processes:
        found = run.conduct(settings, processes)
    if found is not None:
        folder, words = found
        print("\n".join([*words, f"report: {folder}"]))


def import_nvidia(settings: ImportNvidia) -> None:
    """Make a checkpoint of a published snapshot."""
    from sims_image.models.nvidia.convert import import_nvidia

    if not settings.file:
        raise InputError("path", "", "name the .pkl file to read")
    _tell(import_nvidia(settings.file, settings.out or None, replace=settings.replace))


def import_diffusers(settings: ImportDiffusers) -> None:
    """Make a checkpoint of a network of diffusers."""
    from sims_image.models.diffusers import import_diffusers

    _tell(import_diffusers(**vars(settings)))


def export_diffusers(settings: ExportDiffusers) -> None:
    """Write a network for diffusers."""
    from sims_image.models.diffusers import export_diffusers

    lines = export_diffusers(**vars(settings))
    print("\n".join([f"{settings.out}: diffusers loads it by", *(f"    {line}" for line in lines)]))


def _tell(checkpoint: Checkpoint) -> None:
    from sims_image.info import describe

    print("\n".join(describe(checkpoint.path)))
    if left_out := checkpoint.record.provenance.get("left_out"):
        print(f"note: left out, as no settings: {', '.join(map(shown, left_out))}")


def recipes(settings: Recipes) -> None:
    """List published settings."""
    from sims_image.experiments.published import listed

    print("\n".join(listed(settings.verb)))


def info(settings: Info) -> None:
    """Say what files are."""
    from sims_image.info import KNOWN, describe

    if not settings.path:
        raise InputError("path", "", f"name {KNOWN}")
    for number, path in enumerate(settings.path):
        print(*([""] if number else []), *describe(path), sep="\n")


@dataclass(frozen=True)
class Verb:
    """what: it does, in a line. run: takes its options. options: their class, as ``module:Class`` below `sims_image`.

    about: what its help says at the top; default the class's docstring. first: the option whose value may come first
    without its name. published: whether ``--preset`` takes published settings. names: of arguments that are no options.
    config: whether what it makes records its options, for ``--config``. examples: words after the verb, with a remark
    after '#'; its help ends with them.
    """

    what: str
    run: Callable[[Any], None]
    options: str
    about: str = ""
    first: str = ""
    published: bool = False
    names: Mapping[str, str] = field(default_factory=dict)
    config: bool = True
    examples: tuple[str, ...] = ()

    def cls(self) -> type[Any]:
        """The class of its options."""
        module, name = self.options.split(":")
        found: type[Any] = getattr(import_module(f"sims_image.{module}"), name)
        return found


#: in examples: the data sets and the preset that most experiments name
_DIGITS = "--data data/digits --heldout data/digits-heldout --base digits"

VERBS: dict[str, Verb] = {
    "prepare": Verb(
        "make a data set: CIFAR-10, ImageNet-64, folders, IDX, zips, parquet, digits",
        prepare,
        "data.options:Prepare",
        about="Make a data set of images that everything else reads. The first word is the source.",
        first="source",
        examples=(
            "digits --holdout 500 --out data/digits  # scikit-learn's, 500 of them held out",
            "photos --size 64 --out data/photos  # a folder of pictures",
        ),
    ),
    "train": Verb(
        "train a preset, or fine-tune a checkpoint",
        train,
        "training.options:Train",
        examples=(
            "--preset digits --data data/digits --budget 100k --out runs/base  # minutes on a CPU",
            "--from models/base --data made --budget 1Mi --out runs/auxiliary  # fine-tune on its own samples",
        ),
    ),
    "generate": Verb(
        "draw images from a checkpoint: alone, SIMS, Neon or autoguidance",
        generate,
        "sampling.options:Generate",
        examples=(
            "--base models/base --seeds 0-63 --out made  # the base alone",
            "--base models/base --auxiliary models/auxiliary --omega 1 --out improved  # SIMS",
        ),
    ),
    "evaluate": Verb(
        "measure a model or images: FID, KID, precision, recall, and their floor",
        partial(measure, "evaluate"),
        "metrics.options:Evaluate",
        published=True,
        examples=(
            "--images made --reference data/digits --features classifier  # images that are there",
            "--base models/base --seeds 0-9999 --reference data/digits --heldout data/digits-heldout  # a model",
        ),
    ),
    "outlook": Verb(
        "will SIMS help? drift against error, the best omega and its share, before any guidance",
        partial(measure, "foresee"),
        "metrics.options:Foresee",
        examples=(
            "--data data/digits-heldout --base models/base --auxiliary models/auxiliary --features classifier  # both",
            "--data data/digits --base made --auxiliary made-by-auxiliary --features pixels  # images that are there",
        ),
    ),
    "sims": Verb(
        "Algorithm 1 end to end: base, synthetic data, auxiliary, omega, report",
        partial(experiment, "sims"),
        "experiments.options:Sims",
        published=True,
        examples=(
            f"{_DIGITS} --synthetic 5k --budget 2k,4k  # a small one",
            "--preset imagenet64 --base models/imagenet64-s --dry-run  # the published settings: what they cost",
        ),
    ),
    "loop": Verb(
        "self-consuming generations: any data policy and method, measured one by one",
        partial(experiment, "loop"),
        "experiments.options:Loop",
        published=True,
        examples=(
            f"{_DIGITS} --loop augmentation --generations 3  # a small one",
            "--preset cifar10 --dry-run  # the published settings: what they cost",
        ),
    ),
    "pollution": Verb(
        "standard training and SIMS on polluted data, over the pollution's size",
        partial(experiment, "pollution"),
        "experiments.options:Pollution",
        published=True,
        examples=(
            f"{_DIGITS} --pollution 0,0.5,1  # a small one",
            "--preset cifar10 --dry-run  # the published settings: what they cost",
        ),
    ),
    "retrain": Verb(
        "iterative retraining on real and generated images, over their ratio",
        partial(experiment, "loop"),
        "experiments.options:Retrain",
        published=True,
        examples=(
            f"{_DIGITS} --ratio 0,1,inf --generations 3  # a small one",
            "--preset cifar10 --dry-run  # the published settings: what they cost",
        ),
    ),
    "control": Verb(
        "Algorithm 2: move class shares toward a target",
        partial(experiment, "control"),
        "experiments.options:Control",
        published=True,
        examples=(
            f"{_DIGITS} --network label_dim=0 --target 0=0.3  # more zeros",
            "--preset ffhq64 --dry-run  # the published settings: what they cost",
        ),
    ),
    "leaderboard": Verb(
        "SIMS against rivals and controls, over several bases, with predictions made beforehand",
        partial(experiment, "leaderboard"),
        "experiments.options:Leaderboard",
        examples=(
            f"{_DIGITS} --auxiliary-size 1k --budget 10k --trials 3  # a small one",
            f"{_DIGITS} --trials 5 --variants 'size=500; budget=2k; cold' --dry-run  # what it costs",
        ),
    ),
    "recipes": Verb(
        "list published settings: what they cost, and where they are from",
        recipes,
        "options:Recipes",
        first="verb",
        config=False,
        examples=("--verb sims  # Algorithm 1's", "evaluate  # published checkpoints"),
    ),
    "classify": Verb(
        "train a classifier, see how it errs, judge the classes of images",
        classify,
        "metrics.options:Classify",
        examples=(
            "--data data/digits --heldout data/digits-heldout --out classifier  # train one, and see how it errs",
            "--classifier classifier --images made  # judge images",
        ),
    ),
    "import-nvidia": Verb(
        "read NVIDIA's EDM and EDM2 snapshots, without running them",
        import_nvidia,
        "options:ImportNvidia",
        names={"path": "FILE"},
        config=False,
        examples=(
            "edm-cifar10-32x32-uncond-vp.pkl --out models/cifar10-uncond  # EDM",
            "edm2-img64-s-1073741-0.075.pkl --out models/imagenet64-s  # EDM2",
        ),
    ),
    "import-diffusers": Verb(
        "read a network of diffusers: UNet2DModel, DiTTransformer2DModel",
        import_diffusers,
        "options:ImportDiffusers",
        names={"folder": "FOLDER"},
        config=False,
        examples=("ddpm --out models/ddpm  # a pipeline's folder", "unet --scheduler DDPMScheduler  # a model alone"),
    ),
    "export-diffusers": Verb(
        "write an imported network, or a guided pair, for diffusers",
        export_diffusers,
        "options:ExportDiffusers",
        names={"checkpoint": "CHECKPOINT"},
        config=False,
        examples=(
            "models/tuned --out tuned  # base",
            "hf:ddpm --auxiliary models/aux --omega 1 --out improved  # SIMS",
        ),
    ),
    "info": Verb(
        "say what a data set, checkpoint, run folder or statistics file is",
        info,
        "options:Info",
        names={"path": "PATH"},
        config=False,
        examples=("data/digits  # a data set", "models/base runs/base  # a checkpoint and a run folder"),
    ),
}


def overview() -> str:
    """What ``--help`` prints."""
    width = max(map(len, VERBS), default=0)
    lines = [f"  {name.ljust(width)}  {verb.what}" for name, verb in VERBS.items()]
    about = "Self-improving diffusion models on images. 'sims_image VERB --help' lists a verb's options."
    return "\n".join(["usage: sims_image VERB [options]", "", about, "", *lines])


def commands() -> dict[str, Command]:
    """For the script ``sims``, whose name the verb 'sims' leaves to it."""
    named = {"sims": "self-improve"}
    return {
        named.get(name, name): Command(verb.what, verb.cls, partial(_called, name, f"sims {named.get(name, name)}"))
        for name, verb in VERBS.items()
    }


def run(argv: Sequence[str]) -> None:
    """Run one verb. Raises `InputError`, about an option where an option is to blame."""
    name, *words = argv or [""]
    if name in ("-h", "--help", "help"):
        print(overview())
        return
    if name in ("--version", "-V"):
        print(__version__)
        return
    _called(choose("verb", name, VERBS), f"sims_image {name}", words)


def _called(name: str, prog: str, words: Sequence[str]) -> None:
    """Run the verb ``name`` as the command ``prog``."""
    verb = VERBS[name]
    cls, presets = verb.cls(), None
    if verb.published:
        from sims_image.experiments import published

        presets = published.recipes(name)
    if verb.first and words and not words[0].startswith("-"):
        words = [f"--{verb.first}", *words]
    about = verb.about or str(cls.__doc__)
    settings = parse_command(
        cls,
        words,
        prog=prog,
        description=about,
        presets=presets,
        examples=verb.examples,
        others=_every,
        config=verb.config,
    )
    older = older_guidance(settings)
    if older:
        words = "--interval, --refresh-every and --predictor-only go with the next release"
        print(f"note: write --guidance {older}; {words}", file=sys.stderr)
    with about_options(settings, verb.names, _every):
        verb.run(settings)


def _every() -> set[str]:
    """The options of all verbs."""
    return {option for verb in VERBS.values() for option in options_of(verb.cls()())}
