"""``sims_image prepare SOURCE --out FOLDER``: make a data set of what there is (`docs/images-data.md`)."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sims_core.errors import InputError, choose, shown
from sims_core.lab.command import parse_command
from sims_core.lab.runs import RunFolder, followed, write_failure
from sims_image.models.presets import by

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from sims_image.data.dataset import Dataset
    from sims_image.data.pictures import Transform
    from sims_image.data.sources.base import Source

FORMATS = ("folder", "edm-zip")
CROPS = ("center", "adm", "none")
FILTERS = ("lanczos", "box", "bilinear", "bicubic")
#: settings that decide the content; the rest says where and how
_DECISIVE = ("size", "crop", "filter", "gray", "rgb", "upright", "unlabelled", "limit", "balanced", "holdout", "seed")
#: progress is recorded after so many bytes
_COMMIT = 64 * 2**20


@dataclass(frozen=True)
class Prepare:
    """Make a data set: a folder of images.npy, labels.npy and dataset.json, or NVIDIA's EDM zip.

    Killed at any instant, the same command goes on; the result appears under its name when it is whole and not before.
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
    """Threads that decode pictures; 0 is one a core, at most 8. Does not change the result."""
    restart: bool = False
    """Delete what a start with other settings left unfinished beside --out (OUT.preparing), and begin anew."""
    dry_run: bool = False
    """Say what would be made, and make nothing."""


@dataclass(frozen=True)
class Output:
    """A data set to make: where, its name in records, and which of the chosen images it takes."""

    path: Path
    name: str
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """What `prepare` would do: every choice made, nothing written.

    chosen: increasing indices into the source; held: which of them are held out. shape, dtype: of an image made.
    """

    settings: Prepare
    source: Source
    transform: Transform | None
    chosen: NDArray[np.int64]
    held: NDArray[np.bool_]
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    classes: list[str]
    name: str

    @property
    def each(self) -> int:
        """Bytes of an image made."""
        return math.prod(self.shape) * self.dtype.itemsize

    def identity(self) -> dict[str, Any]:
        """What decides the content, as dataset.json records it."""
        decided = {name: getattr(self.settings, name) for name in _DECISIVE}
        decided["holdout"] = float(self.settings.holdout)
        if self.settings.skip_damaged:
            decided["skip_damaged"] = True
        return {"classes": self.classes, "source": self.source.identity(), "settings": decided}

    def flat(self) -> dict[str, Any]:
        """The identity, the name and the format, a line each."""
        known = self.identity()
        source = {f"source {key}": value for key, value in known["source"].items()}
        made = {"classes": self.classes, "name": self.name, "format": self.settings.format}
        return {**source, **known["settings"], **made}

    @property
    def counts(self) -> NDArray[np.int64] | None:
        """Images of each class that are taken; None without labels."""
        import numpy as np

        labels = self.source.labels
        return None if labels is None else np.bincount(labels[self.chosen], minlength=len(self.classes))

    @property
    def notes(self) -> list[str]:
        """What the user should know, a line each."""
        counts = self.counts
        empty = [] if counts is None else [k for k, count in enumerate(counts) if not count]
        return [*self.source.notes, *empty_note(self.classes, empty)]

    def outputs(self) -> list[Output]:
        """Every data set to make; the one at --out comes last."""
        out = followed(self.settings.out)
        main = Output(out, self.name, ~self.held)
        if not self.held.any():
            return [main]
        stem, suffix = (out.stem, out.suffix) if self.settings.format == "edm-zip" else (out.name, "")
        return [Output(out.with_name(f"{stem}-heldout{suffix}"), f"{self.name}-heldout", self.held), main]

    def lines(self) -> list[str]:
        """For people."""
        from sims_image.data.writing import size

        held, shape = int(self.held.sum()), by(self.shape)
        kind = f"{self.source.kind}, {self.source.split}" if self.source.split else self.source.kind
        found = [
            f"source   {self.settings.source} ({kind}): {self.source.count} images, sha256"
            f" {self.source.sha256[:12]} of {self.source.sha256_of}",
            f"images   {len(self.chosen)}{f', {held} of them held out' if held else ''}, {shape} {self.dtype},"
            f" {size(len(self.chosen) * self.each)}",
            f"classes  {_classes_line(self)}",
        ]
        return found + [f"note     {note}" for note in self.notes]


def _classes_line(plan: Plan) -> str:

    counts = plan.counts
    if counts is None:
        return "none (unlabelled)"
    names = ", ".join(map(shown, plan.classes[:10])) + (", ..." if len(plan.classes) > 10 else "")
    return f"{len(plan.classes)} ({names}), {counts.min()} to {counts.max()} images each"


def empty_note(classes: Sequence[str], empty: Sequence[int]) -> list[str]:
    """A note on the numbers ``empty`` of classes without images."""

    if not empty:
        return []
    names = ", ".join(shown(classes[k]) for k in empty[:10]) + (", ..." if len(empty) > 10 else "")
    return [f"{len(empty)} of {len(classes)} classes have no images: {names}"]


def plan(settings: Prepare, *, progress: bool = False) -> Plan:
    """Read what must be known of the source, and decide everything. Raises `InputError` for bad input."""
    from sims_core.seeds import Seed
    from sims_image.data.making import oriented, sound
    from sims_image.data.pictures import Transform
    from sims_image.data.selection import held_out, limited
    from sims_image.data.sources import open_source
    from sims_image.data.sources.base import Request

    _check(settings)
    request = Request(
        path=Path(settings.source),
        split=settings.split,
        image_column=settings.image_column,
        label_column=settings.label_column,
        class_map=settings.class_map,
        labelled=not settings.unlabelled,
        progress=progress,
    )
    source = open_source(request, settings.kind)
    classes = _named(settings, source)
    seed = Seed(settings.seed).child("prepare")
    chosen = limited(
        source.count, source.labels, classes, settings.limit, balanced=settings.balanced, seed=seed.child("limit")
    )
    if settings.skip_damaged:
        source, chosen = sound(source, chosen, settings.workers, progress=progress)
    held = held_out(chosen, source.labels, settings.holdout, seed.child("holdout"))
    channels = 1 if settings.gray else 3 if settings.rgb else 0
    wanted = Transform(settings.size, settings.crop, settings.filter, channels, settings.upright)
    transform, shape = _shape(source, wanted, chosen)
    if source.shape is None and not settings.upright:
        source = oriented(source, chosen)
    return Plan(settings, source, transform, chosen, held, shape, source.dtype, classes, settings.name or source.name)


def _check(settings: Prepare) -> None:
    """Raise `InputError` for settings that are wrong whatever the source holds."""
    if not settings.source:
        raise InputError("--source", settings.source, "name what to read, or 'digits'")
    choose("--format", settings.format, FORMATS)
    choose("--crop", settings.crop, CROPS)
    choose("--filter", settings.filter, FILTERS)
    for name in ("size", "limit", "seed", "workers"):
        if getattr(settings, name) < 0:
            raise InputError(f"--{name}", getattr(settings, name), "give a whole number of at least 0")
    if settings.size > 4096:
        raise InputError("--size", settings.size, "pixels a side, at most 4096")
    if settings.gray and settings.rgb:
        raise InputError("--rgb", "True", "--gray is given as well; choose one")
    if not 0 <= settings.holdout < math.inf:
        raise InputError("--holdout", settings.holdout, "give a fraction below 1, or a number of images")
    if settings.out and (settings.format == "edm-zip") != settings.out.endswith(".zip"):
        expected = "with --format edm-zip it is a file .zip; without, a folder"
        raise InputError("--out", settings.out, expected)


def _named(settings: Prepare, source: Source) -> list[str]:
    if not settings.classes:
        return source.classes
    names = [name.strip() for name in settings.classes.split(",")]
    if len(names) != len(source.classes) or len(set(names)) != len(names) or not all(names):
        expected = f"{len(source.classes)} different names with commas, one a class of the source"
        raise InputError("--classes", settings.classes, expected)
    return names


def _shape(
    source: Source, wanted: Transform, chosen: NDArray[np.int64]
) -> tuple[Transform | None, tuple[int, int, int]]:
    """What must be done to every image (None: nothing), and the shape that comes of it."""
    if source.shape is None:
        from sims_image.data.making import first

        return wanted, first(source, wanted, chosen)
    channels, height, width = source.shape
    side, colours = wanted.size or height, wanted.channels or channels
    if (side, side, colours) == (height, width, channels):
        return None, source.shape
    if str(source.dtype) != "uint8" or channels not in (1, 3):
        asked = "--size" if side != height else "--rgb" if wanted.channels == 3 else "--gray"
        kind = f"{source.dtype} with {channels} channels"
        raise InputError(asked, wanted.size or "True", f"the source holds {kind}, not pictures: it is taken as it is")
    return wanted, (colours, side, side)


def prepare(settings: Prepare, *, progress: bool = False) -> Dataset:
    """Make the data set, go on with it, or recognise it; returns it opened.

    Raises `InputError` for bad input, naming the item; nothing is then left behind. On a full disk, or killed, what is
    done is kept beside ``out`` as ``OUT.preparing`` and the same call goes on from there.
    """
    if settings.dry_run:
        raise InputError("--dry-run", "True", "`plan` says what would be made; `prepare` makes it")
    _check(settings)
    if not Path(settings.out).name:
        raise InputError("--out", settings.out, "name the folder (or .zip) to make")
    from sims_image.data.archives import UnreadableError
    from sims_image.data.dataset import open_dataset
    from sims_image.data.making import make
    from sims_image.data.writing import check_room

    planned = plan(settings, progress=progress)
    if progress:
        print("".join(f"note: {shown(note, 400)}\n" for note in planned.notes), end="", file=sys.stderr)
    out = followed(settings.out)
    work = out.with_name(out.name + ".preparing")
    there = [_recognised(output, planned) for output in planned.outputs()]
    if all(there):
        RunFolder.remove_left(work, planned.flat())
        return open_dataset(out, argument="--out")
    needed = len(planned.chosen) * planned.each
    if not work.exists():
        check_room("--out", out, needed * (2 if settings.format == "edm-zip" else 1))
    if settings.restart:
        RunFolder.discard(work)
    unfinished = "--restart deletes it, which is unfinished, or name another --out"
    with RunFolder.open(work, planned.flat(), otherwise=unfinished) as folder:
        try:
            make(planned, folder, there, progress=progress)
        except UnreadableError:  # it may go better next time
            raise
        except InputError:
            folder.remove()
            raise
        except OSError as error:
            raise write_failure("--out", out, error, f"what is recorded as done is kept in {work.name}") from None
        folder.remove()
    return open_dataset(out, argument="--out", verify=False)


def _recognised(output: Output, planned: Plan) -> bool:
    """Whether the data set is there already. Raises `InputError` if something else is."""
    from sims_image.data.dataset import open_dataset

    out = output.path
    if not out.exists() or (out.is_dir() and planned.settings.format == "folder" and not any(out.iterdir())):
        return False
    try:
        there = open_dataset(out, argument="--out").record
    except InputError as error:
        expected = f"something else is there ({error.value}: {error.expected}); name another one"
        raise InputError("--out", str(out), expected) from None
    for part, found in {"name": output.name, **planned.identity()}.items():
        if there.get(part) != found:
            raise InputError(
                "--out",
                str(out),
                f"it holds another data set ({_difference(part, there.get(part), found)}); name another one",
            )
    return True


def _difference(part: str, there: Any, here: Any) -> str:
    if isinstance(there, dict) and isinstance(here, dict):
        key = next(key for key in {**there, **here} if there.get(key) != here.get(key))
        return _difference(f"{part}: {key}", there.get(key), here.get(key))
    return f"{part} {str(there)[:60]} there, {str(here)[:60]} here"


def run(argv: Sequence[str]) -> None:
    """The verb: ``argv`` is what follows it."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words = ["--source", *words]
    description = "Make a data set of images that everything else reads. The first word is the source."
    wanted = parse_command(Prepare, words, prog="sims_image prepare", description=description)
    warnings.filterwarnings("ignore", module="PIL")  # what matters of a picture becomes an error or a note
    if wanted.dry_run:
        print("\n".join(plan(wanted, progress=True).lines()))
        return
    made = prepare(wanted, progress=True)
    classes = f"{len(made.classes)} classes" if made.labels is not None else "no labels"
    print(f"{made.path}: {len(made)} images {by(made.shape)} {made.dtype}, {classes}, sha256 {made.sha256}")
