"""What `prepare` would do, before anything is written: every choice made, everything that can be refused refused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError, choose, shown
from sims_core.lab.placing import size
from sims_core.lab.runs import followed
from sims_core.seeds import Seed
from sims_image.data.dataset import by
from sims_image.data.decoding import first, formatted, oriented, sound
from sims_image.data.latents import Autoencoder, Encoder
from sims_image.data.options import Prepare
from sims_image.data.pictures import Transform
from sims_image.data.selection import held_out, limited
from sims_image.data.sources import open_source
from sims_image.data.sources.base import Request, Source

FORMATS = ("folder", "edm-zip")
CROPS = ("center", "adm", "none")
FILTERS = ("lanczos", "box", "bilinear", "bicubic")
#: settings that decide the content; the rest says where and how
_DECISIVE = ("size", "crop", "filter", "gray", "rgb", "upright", "unlabelled", "limit", "balanced", "holdout", "seed")


@dataclass(frozen=True)
class Output:
    """A data set to make: where, its name in records, and which of the chosen images it takes."""

    path: Path
    name: str
    mask: NDArray[np.bool_]


@dataclass(frozen=True)
class Plan:
    """What `prepare` would do: every choice made, nothing written.

    chosen: increasing indices into the source; held: which of them are held out. shape, dtype: of an image. encoder: if
    it is to be encoded; autoencoder: of latents that the source holds.
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
    encoder: Encoder | None = None
    autoencoder: Autoencoder | None = None

    @property
    def made(self) -> tuple[tuple[int, int, int], np.dtype[Any]]:
        """Shape and type of what is written of an image."""
        return (self.shape, self.dtype) if self.encoder is None else (self.encoder.shape(self.shape), np.dtype("<f4"))

    @property
    def each(self) -> int:
        """Bytes of an image made."""
        shape, dtype = self.made
        return math.prod(shape) * dtype.itemsize

    def identity(self) -> dict[str, Any]:
        """What decides the content, as dataset.json records it."""
        decided = {name: getattr(self.settings, name) for name in _DECISIVE}
        decided["holdout"] = float(self.settings.holdout)
        if self.settings.skip_damaged:
            decided["skip_damaged"] = True
        if self.encoder is not None:
            decided["latents"] = {"sha256": self.encoder.known.sha256, "space": self.encoder.space}
        elif self.autoencoder is not None:
            decided["latents"] = self.autoencoder.record
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
        labels = self.source.labels
        return None if labels is None else np.bincount(labels[self.chosen], minlength=len(self.classes))

    @property
    def notes(self) -> list[str]:
        """What the user should know, a line each."""
        counts = self.counts
        empty = [] if counts is None else [k for k, count in enumerate(counts) if not count]
        return [*self.source.notes, *empty_note(self.classes, empty)]

    def outputs(self) -> list[Output]:
        """Every data set to make; the one at ``out`` comes last."""
        out = followed(self.settings.out)
        main = Output(out, self.name, ~self.held)
        if not self.held.any():
            return [main]
        stem, suffix = (out.stem, out.suffix) if self.settings.format == "edm-zip" else (out.name, "")
        return [Output(out.with_name(f"{stem}-heldout{suffix}"), f"{self.name}-heldout", self.held), main]

    def lines(self) -> list[str]:
        """For people."""
        held, (shape, dtype) = int(self.held.sum()), self.made
        kind = f"{self.source.kind}, {self.source.split}" if self.source.split else self.source.kind
        found = [
            f"source   {self.settings.source} ({kind}): {self.source.count} images, sha256"
            f" {self.source.sha256[:12]} of {self.source.sha256_of}",
            f"images   {len(self.chosen)}{f', {held} of them held out' if held else ''}, {by(shape)} {dtype},"
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


def plan(settings: Prepare, *, progress: bool = False, encoder: Encoder | None = None) -> Plan:
    """Read what must be known of the source, and decide everything. encoder: of ``latents``.

    Raises `InputError` for bad input.
    """
    check(settings)
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
    source = formatted(source, chosen)
    name, carried = settings.name or source.name, source.autoencoder
    if encoder is not None and source.dtype != np.uint8:
        carried, encoder = _attached(settings, carried, encoder), None
    made = Plan(settings, source, transform, chosen, held, shape, source.dtype, classes, name, encoder, carried)
    _ = made.made  # or it is refused
    return made


def _attached(settings: Prepare, known: Autoencoder | None, encoder: Encoder) -> Autoencoder:
    """The autoencoder of a source of latents, in place of the one that it has, or lacks. Raises `InputError`."""
    if known is None or len(known.mean) != len(encoder.known.mean):
        words = "the source holds floats of which nothing says that they are its latents; leave it out"
        raise InputError("latents", settings.latents, words)
    return encoder.known.like(known)


def check(settings: Prepare) -> None:
    """Raise `InputError` for settings that are wrong whatever the source holds."""
    if not settings.source:
        raise InputError("source", settings.source, "name what to read, or 'digits'")
    choose("format", settings.format, FORMATS)
    choose("crop", settings.crop, CROPS)
    choose("filter", settings.filter, FILTERS)
    for name in ("size", "limit", "seed", "workers"):
        if getattr(settings, name) < 0:
            raise InputError(name, getattr(settings, name), "give a whole number of at least 0")
    if settings.size > 4096:
        raise InputError("size", settings.size, "pixels a side, at most 4096")
    if settings.gray and settings.rgb:
        raise InputError("rgb", "True", "`gray` is given as well; choose one")
    if not 0 <= settings.holdout < math.inf:
        raise InputError("holdout", settings.holdout, "give a fraction below 1, or a number of images")
    if settings.out and (settings.format == "edm-zip") != settings.out.endswith(".zip"):
        expected = "with `format` edm-zip it is a file .zip; without, a folder"
        raise InputError("out", settings.out, expected)


def _named(settings: Prepare, source: Source) -> list[str]:
    if not settings.classes:
        return source.classes
    names = [name.strip() for name in settings.classes.split(",")]
    if len(names) != len(source.classes) or len(set(names)) != len(names) or not all(names):
        expected = f"{len(source.classes)} different names with commas, one per class of the source"
        raise InputError("classes", settings.classes, expected)
    return names


def _shape(
    source: Source, wanted: Transform, chosen: NDArray[np.int64]
) -> tuple[Transform | None, tuple[int, int, int]]:
    """What must be done to every image (None: nothing), and the shape that comes of it."""
    if source.shape is None:
        return wanted, first(source, wanted, chosen)
    channels, height, width = source.shape
    side, colours = wanted.size or height, wanted.channels or channels
    if (side, side, colours) == (height, width, channels):
        return None, source.shape
    if str(source.dtype) != "uint8" or channels not in (1, 3):
        asked = "size" if side != height else "rgb" if wanted.channels == 3 else "gray"
        kind = f"{source.dtype} with {channels} channels"
        raise InputError(asked, wanted.size or "True", f"the source holds {kind}, not pictures: it is taken as it is")
    return wanted, (colours, side, side)
