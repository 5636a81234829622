"""Whether SIMS will help, from the images of base and auxiliary (`docs/images-metrics.md`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sims_core.errors import InputError, whole
from sims_core.forecast import LEAST, Outlook, outlook
from sims_core.lab.runs import provenance, write_json
from sims_image.data.sources.base import bar
from sims_image.metrics import evaluate as evaluating
from sims_image.metrics.evaluate import Prepared
from sims_image.metrics.features import Extractor
from sims_image.metrics.options import Compared, Evaluate, Foresee
from sims_image.metrics.report import collect
from sims_image.metrics.samples import Kept, Sample, gathered
from sims_image.metrics.targets import Reference
from sims_image.models.checkpoints import RECORD, locate
from sims_image.models.hf import PREFIX
from sims_image.processes import Processes, choose_device
from sims_image.sampling.generate import notes
from sims_image.sampling.generation import estimate

MODELS = ("base", "auxiliary")


@dataclass(frozen=True)
class Foreseen:
    """An outlook and what it rests on. features, data: name and sha256. base, auxiliary: how their images were made."""

    outlook: Outlook
    features: dict[str, Any]
    data: dict[str, Any]
    base: dict[str, Any]
    auxiliary: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {**vars(self), "outlook": self.outlook.record()}

    def lines(self) -> list[str]:
        """For people."""
        real, *made = self.outlook.samples
        models = [
            f"{name:9}  {n:,} images{'' if told['nfe'] is None else ', NFE ' + str(told['nfe'])}"
            for name, n, told in zip(MODELS, made, (self.base, self.auxiliary), strict=True)
        ]
        return [
            f"features   {self.features['name']}, sha256 {self.features['sha256'][:12]}",
            f"data       {self.data['name']}: {real:,} images, sha256 {self.data['sha256'][:12]}",
            *models,
            *str(self.outlook).splitlines(),
        ]


def foresee(settings: Foresee, processes: Processes, *, progress: bool = False) -> Foreseen | None:
    """The command in one call; what it found in the first process, None in the others. Raises `InputError`."""
    device = processes.device
    ready = processes.together(lambda: _prepared(settings, device)) or _prepared(settings, device)
    features, place = evaluating.network(ready[0][0], ready[0][1].reference, processes)
    samples, told = [], []
    for name, (asked, there) in zip(MODELS, ready, strict=True):
        with _about(name):
            sample, made = _sampled(asked, there, features, processes, progress=progress)
        samples.append(sample if sample is None or there.request is None else gathered(sample, processes))
        told.append(made)
    if not processes.first:
        return None
    data = ready[0][1].reference
    assert data is not None
    with bar(progress, len(data), "real images", " images") as shown:
        real = Reference.of(data, features, cache=place, keep=settings.keep, tick=shown.update).side.kept
    assert real is not None
    base, auxiliary = aligned(*(sample.kept() for sample in samples if sample is not None))
    with _about("data"):
        seen = outlook(real, base, auxiliary)
    found = Foreseen(
        seen,
        {"name": features.name, "sha256": features.sha256},
        {"name": data.name, "sha256": data.sha256, "images": len(data)},
        *told,
    )
    if settings.out:
        try:
            write_json(Path(settings.out), {**found.as_dict(), "provenance": provenance(settings)})
        except OSError as error:
            raise InputError("out", settings.out, f"cannot be written ({error.strerror})") from None
    return found


def describe(settings: Foresee) -> str:
    """What would be measured, and what it costs, in words. Raises `InputError`."""
    ready = _prepared(settings, choose_device(settings.device))
    data = ready[0][1].reference
    assert data is not None
    lines = [("features", settings.features), ("data", f"{data.name}: {len(data)} images, {data.path}")]
    for name, (asked, there) in zip(MODELS, ready, strict=True):
        if there.request is None:
            lines.append((name, f"{asked.images}: {there.count} images"))
            continue
        lines.append((name, getattr(settings, name)))
        costs = dict(estimate(there.request, "", int(os.environ.get("WORLD_SIZE", "1"))))
        lines += [(key, costs[key]) for key in ("sampler", "images", "labels", "NFE", "time here", "on GPUs")]
    lines.append(("out", settings.out or "none: printed only"))
    return "\n".join(f"{key:>10}  {value}" for key, value in lines)


def aligned(base: Kept, auxiliary: Kept) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features of both, those of the same numbers first and row by row: they may be of the same noise."""
    _, *rows = np.intersect1d(base.items, auxiliary.items, return_indices=True)
    return tuple(  # type: ignore[return-value]
        np.concatenate([one.features[there], np.delete(one.features, there, axis=0)])
        for one, there in zip((base, auxiliary), rows, strict=True)
    )


def _prepared(settings: Foresee, device: torch.device) -> list[tuple[Evaluate, Prepared]]:
    """Base and auxiliary as `evaluate` takes them, opened and checked."""
    if not settings.data:
        raise InputError("data", "", "name the real images")
    whole("n", settings.n, LEAST)
    if settings.out and Path(settings.out).is_dir():
        raise InputError("out", settings.out, "a folder is there; name a file to write")
    found = []
    for name in MODELS:
        with _about(name):
            asked = _asked(settings, name)
            found.append((asked, evaluating.prepared(asked, device)))
    return found


def _asked(settings: Foresee, name: str) -> Evaluate:
    """A checkpoint's images, or those that lie there."""
    path, width = getattr(settings, name), getattr(settings, f"{name}_ema")
    if not path or not (path.startswith(PREFIX) or Path(path).exists()):
        raise InputError(name, path, f"{'there is nothing; ' if path else ''}name a checkpoint, or images")
    try:
        made: dict[str, Any] = {"base": str(locate(path, argument="base")), "seeds": f"0-{settings.n - 1}"}
        made["base_ema"] = width
    except InputError:
        there = Path(path)
        if there.suffix in (".pkl", ".pickle") or any(there.glob(f"**/{RECORD}")):
            raise  # it is a model's, and wrong
        made = {"images": path}
        if width is not None:
            raise InputError(
                "base_ema", width, f"it is made of a checkpoint's averages, and {path} holds images"
            ) from None
    same = (*(one.name for one in fields(Compared)), "device")
    drawn = ("sampler", "labels", "seed", "batch") if "base" in made else ()
    return Evaluate(reference=settings.data, **made, **{key: getattr(settings, key) for key in (*same, *drawn)})


@contextmanager
def _about(name: str) -> Iterator[None]:
    """Errors of `evaluate` and of the core name this verb's arguments."""
    named = {
        "base": name,
        "base_ema": f"{name}_ema",
        "images": name,
        "source": name,
        "reference": "data",
        "real": "data",
        "seeds": "n",
    }
    named |= {"base_samples": "base", "auxiliary_samples": "auxiliary"}
    try:
        yield
    except InputError as error:
        raise InputError(named.get(error.argument, error.argument), error.value, error.expected) from None


def _sampled(
    asked: Evaluate, there: Prepared, features: Extractor, processes: Processes, *, progress: bool
) -> tuple[Sample | None, dict[str, Any]]:
    """This process's part of the images' features, and how they were made."""
    planned = there.request
    if planned is not None:
        for note in processes.together(lambda: notes(planned)) or ():
            print(f"note: {note}")
        sample, told = evaluating.generated(asked, planned, features, processes, progress=progress)
        return sample, {"nfe": told["nfe"], **told["source"]}
    if not processes.first:
        return None, {}
    with bar(progress, there.count, "images", " images") as shown:
        return collect(there.source, features, keep=asked.keep, tick=shown.update), {
            "nfe": None,
            "images": asked.images,
        }
