"""Measures a model, or images that are there, against real ones (`docs/images-metrics.md`)."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sims_core.errors import InputError, choose
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_image.data.archives import open_zip
from sims_image.data.dataset import Dataset, by, cache_folder, open_dataset
from sims_image.data.decoding import images, mixture
from sims_image.data.options import Prepare
from sims_image.data.plan import plan
from sims_image.data.sources import base, kind_of
from sims_image.data.sources.base import bar
from sims_image.metrics import report
from sims_image.metrics.compare import Side, compare
from sims_image.metrics.features import Extractor, check_features, extractor
from sims_image.metrics.options import Evaluate
from sims_image.metrics.report import Report, collect
from sims_image.metrics.samples import Sample, gathered
from sims_image.metrics.targets import Reference, check_real
from sims_image.models import autoencoders
from sims_image.models.autoencoders import decoded
from sims_image.models.cost import evaluation_flops, gpu_hours, on_gpus
from sims_image.models.denoiser import planned_sampler
from sims_image.models.presets import PRESETS
from sims_image.processes import Processes, choose_device
from sims_image.sampling import generation
from sims_image.sampling.generate import notes, request, schedule_of
from sims_image.sampling.generation import Request, estimate
from sims_image.sampling.seeds import Seeds


def evaluate(settings: Evaluate, processes: Processes, *, progress: bool = False) -> Report | None:
    """The command in one call; the report in the first process, None in the others. Raises `InputError`."""
    ready = processes.together(lambda: prepared(settings, processes.device)) or prepared(settings, processes.device)
    features, place = network(settings, ready.reference, processes)
    told: dict[str, Any] = {}
    asked = ready.request
    if asked is not None:
        for note in processes.together(lambda: notes(asked)) or ():
            print(f"note: {note}")
        samples = []
        for turn in range(settings.repeats):
            again = replace(asked, seeds=asked.seeds.after(turn))
            sample, made = generated(settings, again, features, processes, progress=progress)
            samples.append(gathered(sample, processes))
            told = told or made
        found = [sample for sample in samples if sample is not None]
        if not found:
            return None
        return _report(settings, found[0], features, ready, place, told, found[1:], progress=progress)
    if not processes.first:
        return None
    return _report(settings, ready.source, features, ready, place, told, progress=progress)


def network(settings: Evaluate, reference: Dataset | None, processes: Processes) -> tuple[Extractor, Path | None]:
    """The feature network, and the folder where features of real images are kept."""
    place = Path(settings.cache) if settings.cache else None
    if place is None and reference is not None and os.access(reference.path.resolve().parent, os.W_OK):
        place = cache_folder(reference)
    make = partial(
        extractor,
        settings.features,
        weights=settings.weights or None,
        weights_sha256=settings.weights_sha256,
        dataset=reference,
        cache=place,
        device=processes.device,
    )
    first = processes.together(make)  # it may train a classifier, which the others then find
    return first if first is not None else make(), place


def _check(settings: Evaluate) -> None:
    if bool(settings.base) == bool(settings.images):
        raise InputError("base", settings.base, "name a model with `base`, or images with `images`, not both")
    if not settings.reference:
        raise InputError("reference", "", "name the real images to compare with")
    if settings.n < 0 or (settings.base and settings.n):
        raise InputError("n", settings.n, "how many of `images` to take; of `base`, `seeds` says it")
    if settings.repeats < 1 or (settings.images and settings.repeats > 1):
        words = "how often to measure `base`, on other seeds each time; of images that are there, once"
        raise InputError("repeats", settings.repeats, words)
    if settings.keep < 100:
        raise InputError("keep", settings.keep, "at least 100 images")
    if settings.save_reference and Path(settings.save_reference).suffix != ".npz":
        raise InputError("save_reference", settings.save_reference, "name a file .npz")


@dataclass(frozen=True)
class Prepared:
    """What is to be measured, opened and known to make sense, before anything is computed.

    reference: None where statistics stand for it. request: a model's images; source: those that are there. count: how
    many.
    """

    reference: Dataset | None
    heldout: Dataset | None
    request: Request | None
    source: Any
    count: int


def prepared(settings: Evaluate, device: torch.device) -> Prepared:
    """Everything that can be refused at once, in a dry run as in a real one. Raises `InputError`."""
    _check(settings)
    reference, heldout = _opened(settings.reference, "reference"), _opened(settings.heldout, "heldout")
    check_real(reference, heldout, arguments=("reference", "heldout"))
    asked = (
        request(replace(settings, decode=""), device, None if settings.data else reference) if settings.base else None
    )
    source, there, shape, dtype = _source(settings, reference) if asked is None else (None, 0, (0, 0, 0), None)
    asked, source, reference, heldout = _decoded(settings, asked, source, reference, heldout, device)
    check_features(
        settings.features, weights=settings.weights or None, weights_sha256=settings.weights_sha256, dataset=reference
    )
    if asked is not None:
        few, where = ("seeds", settings.seeds), ("base", settings.base)
        count, shape, dtype = len(asked.seeds), asked.model.shape_made, asked.model.dtype_made
        if dtype != np.uint8 and settings.features != "pixels":
            words = "the model makes latents: name its autoencoder by `decode`, or take `features` pixels"
            raise InputError("base", settings.base, words)
    else:
        where = ("images", settings.images)
        shape, dtype = (source.shape, source.dtype) if isinstance(source, Dataset) else (shape, dtype)
        if settings.n > there:
            raise InputError("n", settings.n, f"{settings.images} holds {there} images")
        count, few = settings.n or there, ("n", str(settings.n)) if settings.n else where
    if count < Side.LEAST:
        raise InputError(*few, f"that is {count} images; at least {Side.LEAST} are needed")
    if reference is not None and shape != reference.shape:
        words = f"its images are {by(shape)}, the reference's {by(reference.shape)}; compare like with like"
        raise InputError(*where, words)
    if reference is not None and (dtype == np.uint8) != (reference.dtype == np.uint8):
        words = f"its images are {dtype}, the reference's {reference.dtype}; compare like with like"
        raise InputError(*where, words)
    if reference is not None and heldout is not None and heldout.shape != reference.shape:
        words = f"its images are {by(heldout.shape)}, the reference's {by(reference.shape)}"
        raise InputError("heldout", settings.heldout, words)
    return Prepared(reference, heldout, asked, source, count)


def _opened(path: str, argument: str) -> Dataset | None:
    """The data set at ``path``; None for '' and for statistics."""
    if not path:
        return None
    if argument == "reference" and Path(path).suffix in (".npz", ".pkl") and not Path(path).is_dir():
        if not Path(path).exists():
            raise InputError(argument, path, "no such file of statistics")
        if Path(path).suffix == ".npz":
            with open_zip(argument, Path(path)) as archive:
                if "arr_0.npy" in archive.namelist() and "mu.npy" not in archive.namelist():
                    raise InputError(argument, path, "it holds images, no statistics; name what `prepare` makes of it")
        return None
    return open_dataset(path, argument=argument, verify=False)


def _decoded(
    settings: Evaluate,
    asked: Request | None,
    source: Any,
    reference: Dataset | None,
    heldout: Dataset | None,
    device: torch.device,
) -> tuple[Request | None, Any, Dataset | None, Dataset | None]:
    """All of them with pixels in place of latents, by one autoencoder; as they are where none is known."""
    sets = {"images": source if isinstance(source, Dataset) else None, "reference": reference, "heldout": heldout}
    known = [] if asked is None else [asked.model.base.autoencoder]
    known += [data.autoencoder for data in sets.values() if data is not None]
    found = autoencoders.chosen(settings.decode, known)
    if found is None:
        return asked, source, reference, heldout
    if asked is not None and (asked.model.latents or settings.decode):
        asked = replace(asked, model=asked.model.decoded(found))
    if any(data is not None and data.dtype != np.uint8 for data in sets.values()):
        ready = None if asked is None else asked.model.decoder
        decoder = ready or autoencoders.load(found, device=device)
        sets |= {k: decoded(data, decoder, argument=k) for k, data in sets.items() if data is not None}
    return asked, sets["images"] or source, sets["reference"], sets["heldout"]


@dataclass(frozen=True)
class Priced:
    """A model whose checkpoint is not there, by its preset's network. networks: (arguments, evaluations per image)."""

    images: int
    sampler: Sampler
    networks: list[tuple[dict[str, Any], int]]

    @property
    def flops(self) -> float:
        """Operations of making all images."""
        return self.images * sum(count * evaluation_flops(config) for config, count in self.networks)

    @property
    def hours(self) -> float:
        """Of one A100 (`sims_image.models.cost`)."""
        return gpu_hours(self.flops)


def priced(settings: Evaluate) -> Priced:
    """What it costs to measure a model of the preset that ``base`` names; ``guide`` or ``auxiliary`` may name one too.

    Raises `InputError`.
    """
    _check(settings)
    base, other = PRESETS[choose("base", settings.base, PRESETS)], settings.guide or settings.auxiliary
    sampler = planned_sampler(settings.sampler or base.sampler, base.config())
    own, second = sampler.evaluations(schedule_of(settings))
    networks = [(base.config(), own)]
    if other and not settings.merge:
        named = PRESETS[choose("guide" if settings.guide else "auxiliary", other, PRESETS)]
        networks.append((named.config(), second))
    return Priced(settings.repeats * len(Seeds.parse(settings.seeds)), sampler, networks)


def _described(settings: Evaluate) -> list[tuple[str, str]]:
    cost = priced(settings)
    nfe = sum(count for _, count in cost.networks)
    return [
        ("base", f"preset {settings.base}, whose checkpoint is not there: data and features are not checked"),
        ("reference", settings.reference),
        ("sampler", f"{cost.sampler}: {nfe} evaluations per image"),
        ("images", f"{cost.images:,}: seeds {settings.seeds}, {settings.repeats} times"),
        ("NFE", f"{nfe * cost.images:,} evaluations in all"),
        ("on GPUs", on_gpus(cost.flops)),
    ]


def describe(settings: Evaluate) -> str:
    """What would be measured, and what it costs, in words. Raises `InputError`."""
    if settings.base in PRESETS and not Path(settings.base).exists():
        return "\n".join(f"{key:>10}  {value}" for key, value in _described(settings))
    ready = prepared(settings, choose_device(settings.device))
    lines = [("features", settings.features)]
    for argument, data in (("reference", ready.reference), ("heldout", ready.heldout)):
        shown = getattr(settings, argument) if data is None else f"{data.name}: {len(data)} images, {data.path}"
        lines.append((argument, shown or "none"))
    if ready.request is not None:
        costs = estimate(ready.request, settings.out, int(os.environ.get("WORLD_SIZE", "1")))
        lines += [("repeats", f"{settings.repeats} times what follows")] if settings.repeats > 1 else []
        lines += [(key, value) for key, value in costs if key not in ("disk", "out")]
    else:
        lines.append(("images", f"{settings.images}: {ready.count} images"))
    lines.append(("out", settings.out or "none: printed only"))
    return "\n".join(f"{key:>10}  {value}" for key, value in lines)


def generated(
    settings: Evaluate, planned: Request, features: Extractor, processes: Processes, *, progress: bool
) -> tuple[Sample, dict[str, Any]]:
    """This process's part of a model's images, measured as they are made; and how they are made."""
    seeds = list(planned.seeds)
    pieces = [seeds[k : k + planned.batch] for k in range(0, len(seeds), planned.batch)][
        processes.rank :: processes.world
    ]
    mine = [seed for piece in pieces for seed in piece]
    stream = generation.stream(
        planned.model, mine, batch=planned.batch, sampler=planned.sampler, labels=planned.labels, root=planned.root
    )
    with bar(progress and processes.first, len(mine), "generating", " images") as shown:
        sample = collect(stream, features, keep=settings.keep, tick=shown.update)
    made = planned.settings
    return sample, {"seeds": made["seeds"], "labels": made["labels"] or "none", "nfe": made["nfe"], "source": made}


def _source(settings: Evaluate, reference: Dataset | None) -> tuple[Any, int, tuple[int, int, int], Any]:
    """(a data set, or pieces (numbers, images) of pictures; how many there are, their shape and type)."""
    path, kind = Path(settings.images), "dataset"
    if path.exists():
        with _of_images():
            kind, path = kind_of(base.Request(path, labelled=False))
        if kind not in ("dataset", "zip"):
            return _pictures(settings, kind, reference)
    try:
        data = open_dataset(path, argument="images", verify=False)
    except InputError:
        if kind == "dataset":
            raise
        return _pictures(settings, kind, reference)  # a zip of pictures that is not EDM's
    return data, len(data), data.shape, data.dtype


@contextmanager
def _of_images() -> Iterator[None]:
    """Errors of `prepare` name the option of this verb."""
    try:
        yield
    except InputError as error:
        argument = "images" if error.argument == "source" else error.argument
        raise InputError(argument, error.value, error.expected) from None


def _pictures(settings: Evaluate, kind: str, reference: Dataset | None) -> tuple[Any, int, tuple[int, int, int], Any]:
    """The pictures of a folder or file as they are, drawn at random if fewer than all are asked for; as `_source`."""
    n, gray = settings.n, reference is not None and reference.shape[0] == 1
    with _of_images():
        planned = plan(Prepare(source=settings.images, kind=kind if kind == "zip" else "", gray=gray, unlabelled=True))
    mixed = mixture("" if reference is None else reference.pictures, generated=planned.source.pictures)
    told = [*planned.notes, *([mixed] if mixed and mixed not in planned.notes else [])]
    print("".join(f"note: {note}\n" for note in told), end="", file=sys.stderr)

    def pieces() -> Iterator[tuple[Any, Any]]:
        chosen, seen = planned.chosen, 0
        if n and n < len(chosen):
            chosen = np.sort(Seed(0).child("sims_image.metrics").numpy().permutation(chosen)[:n])
        with _of_images():
            for block in images(planned.source, planned.transform, planned.shape, chosen):
                yield chosen[seen : seen + len(block)], block
                seen += len(block)

    return pieces(), len(planned.chosen), planned.shape, planned.dtype


def _report(
    settings: Evaluate,
    source: Any,
    features: Extractor,
    ready: Prepared,
    place: Path | None,
    told: dict[str, Any],
    others: Sequence[Sample] = (),
    *,
    progress: bool,
) -> Report:
    reference, heldout = ready.reference, ready.heldout
    total = sum(len(data) for data in (reference, heldout) if data is not None)
    with bar(progress and total > 0, total, "real images", " images") as shown:
        options: dict[str, Any] = {"cache": place, "keep": settings.keep, "tick": shown.update}
        if reference is None:
            target = Reference.open(settings.reference, features, heldout=heldout, **options)
        else:
            target = Reference.of(reference, features, heldout=heldout, **options)
    if settings.save_reference:
        target.save(settings.save_reference)
    made = told.pop("source", None)
    found = report.evaluate(source, target, features=features, n=settings.n or None, floor=settings.floor, **told)
    if made is not None:
        found = replace(found, source=made)
    if others:
        every = [found.metrics, *(compare(sample, target.side) for sample in others)]
        found = replace(found, repeats={name: [one[name].value for one in every] for name in found.metrics})
    if settings.out:
        found.save(settings.out, settings)
    return found
