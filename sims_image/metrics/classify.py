"""A classifier of images, how it errs, and the class shares of images that it judges."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sims_core.errors import InputError, shown
from sims_core.lab.config import OPTIONS
from sims_core.lab.runs import provenance, write_failure, write_json
from sims_core.seeds import Seed
from sims_image.data.dataset import Dataset, open_dataset
from sims_image.metrics.classifier import classifier, load
from sims_image.metrics.options import Classify
from sims_image.metrics.shares import Corrected, corrected_shares
from sims_image.processes import choose_device

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Judge:
    """Says of uint8 images (B, C, H, W) which class each is of, (B,). name, sha256: whose verdicts they are.

    classes: their names. accuracy: on images held out from its training, None if nobody says.
    """

    verdicts: Callable[[NDArray[np.uint8]], Counts]
    classes: tuple[str, ...]
    name: str
    sha256: str
    accuracy: float | None = None

    def __call__(self, images: NDArray[np.uint8]) -> Counts:
        """Predicted classes. Raises `InputError` if they are not valid."""
        found = np.asarray(self.verdicts(images))
        if found.ndim == 2:  # scores
            found = found.argmax(1)
        if found.shape != (len(images),) or not np.isin(found, np.arange(len(self.classes))).all():
            raise InputError("classifier", self.name, f"{len(images)} numbers of classes 0 to {len(self.classes) - 1}")
        return found.astype(np.int64)


def judge(where: str, data: Dataset, *, device: torch.device | str = "cpu", cache: Path | None = None) -> Judge:
    """The classifier called ``where``.

    '': that of ``data``'s own labels, trained and stored when first asked for. A folder: one stored before.
    ``module:function``: whatever that function of yours returns, a callable from uint8 images to classes or scores with
    an attribute ``classes``. Raises `InputError`.
    """
    module, colon, function = where.partition(":")
    if colon and not Path(where).exists():
        try:
            made: Any = getattr(import_module(module), function)()
        except (ImportError, AttributeError) as error:
            raise InputError("classifier", where, f"module:function of a classifier ({error})") from None
        classes = tuple(map(str, getattr(made, "classes", ())))
        if len(classes) < 2 or not callable(made):
            raise InputError("classifier", where, "it must return a callable with the names of its 'classes'")
        return Judge(made, classes, where, str(getattr(made, "sha256", where)))
    if where:
        network = load(Path(where), argument="classifier").to(device)
        if network.shape != data.shape:
            raise InputError("classifier", where, f"it judges images {network.shape}, the data's are {data.shape}")
    else:
        network = classifier(data, cache=cache, device=device)

    @torch.no_grad()
    def verdicts(images: NDArray[np.uint8]) -> Counts:
        given = torch.from_numpy(np.ascontiguousarray(images)).to(device)
        return np.asarray(network.logits(given).argmax(1).cpu().numpy(), np.int64)

    known = network.record
    names = tuple(known["data"]["classes"])
    return Judge(verdicts, names, where or "classifier", network.sha256, float(known["accuracy"]))


def judged(judge: Judge, data: Dataset, *, batch: int = 512) -> Counts:
    """The class of every image of a data set, (N,)."""
    steps = range(0, len(data), batch)
    return np.concatenate([judge(data.images(slice(k, k + batch))) for k in steps])


def confusion(judge: Judge, data: Dataset) -> Counts:
    """(K, K) counts of a labelled data set's images: true class by row, judged class by column. Raises `InputError`."""
    if data.labels is None or len(data.classes) != len(judge.classes):
        words = f"labelled images of the classifier's {len(judge.classes)} classes, not seen in its training"
        raise InputError("heldout", str(data.path), words)
    found = np.zeros((len(judge.classes), len(judge.classes)), np.int64)
    np.add.at(found, (data.labels, judged(judge, data)), 1)
    return found


def describe(judge: Judge, errors: Counts | None, seen: Counts | None, found: Corrected | None) -> str:
    """What a classifier is, how it errs, and what it saw."""
    names = [shown(name) for name in judge.classes]
    wide = max(8, *map(len, names))
    told = [f"classifier {judge.name}, sha256 {judge.sha256[:12]}, {len(judge.classes)} classes"]
    if judge.accuracy is not None:
        told.append(f"accuracy on images held out from its training: {judge.accuracy:.4f}")
    if errors is not None:
        rates = errors / errors.sum(1, keepdims=True)
        told.append(f"held-out images: {errors.sum():,}, accuracy {np.trace(errors) / errors.sum():.4f}")
        told.append(f"{'true':>{wide}} {'images':>7} {'right':>7}  mistaken for")
        for k, name in enumerate(names):
            order = [j for j in np.argsort(-errors[k]) if j != k and errors[k, j]][:3]
            wrong = ", ".join(f"{names[j]} {rates[k, j]:.3f}" for j in order)
            told.append(f"{name:>{wide}} {errors[k].sum():>7,} {rates[k, k]:>7.3f}  {wrong}")
    if seen is not None:
        told.append(f"{'class':>{wide}} {'judged':>7} {'share':>7}" + ("  corrected, 95 % interval" if found else ""))
        for k, name in enumerate(names):
            line = f"{name:>{wide}} {seen[k]:>7,} {seen[k] / seen.sum():>7.4f}"
            told.append(
                line + (f"  {found.shares[k]:.4f} ({found.low[k]:.4f} .. {found.high[k]:.4f})" if found else "")
            )
    return "\n".join(told)


def classify(settings: Classify) -> str:
    """The verb in one call: what it has to say. Raises `InputError`."""
    first = settings.data or settings.heldout or settings.images
    if not first or not (settings.data or settings.classifier):
        raise InputError("data", "", "name a labelled data set to train on, or a `classifier` and `images`")
    device = choose_device(settings.device)
    data = open_dataset(first, argument="data" if settings.data else "images")
    made = judge(settings.classifier, data, device=device, cache=Path(settings.out) if settings.out else None)
    if settings.out and settings.data:
        record = Path(settings.out) / OPTIONS
        try:
            write_json(record, {"provenance": provenance(settings)})
        except OSError as error:
            raise write_failure("out", record, error, "the classifier is stored") from None
    errors = seen = found = None
    if settings.heldout:
        heldout = open_dataset(settings.heldout, argument="heldout")
        if settings.data and heldout.sha256 == data.sha256:
            raise InputError("heldout", settings.heldout, "the images that it is trained on; nothing is held out")
        errors = confusion(made, heldout)
    if settings.images:
        verdicts = judged(made, open_dataset(settings.images, argument="images"))
        seen = np.bincount(verdicts, minlength=len(made.classes))
        if errors is not None:
            found = corrected_shares(seen, errors, seed=Seed(0).child("classify"))
    return describe(made, errors, seen, found)
