"""The learner contract over files: models are checkpoints, data are data sets, both named by what they came from.

`sims_core.algorithm` and `sims_core.loop` run on images through it unchanged. Every result lies in a folder under
``root`` whose name is a hash of all that decides it, so that what has been made is found again, and what was stopped
goes on; nothing is ever made twice.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sims_core.errors import InputError, choose
from sims_core.seeds import Seed
from sims_image import checkpoints
from sims_image.datasets import Dataset, block_length, open_dataset
from sims_image.folders import write_folder
from sims_image.generate import choose_sampler
from sims_image.generation import Request, write
from sims_image.guided import Model, guide_with, load_model
from sims_image.processes import Processes, start
from sims_image.schedules import images_of
from sims_image.seedlists import Labels, Seeds
from sims_image.session import Result, run_session
from sims_image.train import Train

WEIGHTS = ("ema", "raw")


@dataclass(frozen=True)
class ImageModel:
    """A model as files: a checkpoint, or one guided by another. kind: as `sims_image.guided.KINDS`.

    classes: the class shares that its samples are drawn with, () for uniform.
    """

    base: Path
    auxiliary: Path | None = None
    omega: float = 0.0
    kind: str = "none"
    classes: tuple[float, ...] = ()

    @property
    def identity(self) -> dict[str, Any]:
        """What it is, JSON-able, by content."""
        other = None if self.auxiliary is None else checkpoints.summary(self.auxiliary).sha256
        return {
            "base": checkpoints.summary(self.base).sha256,
            "auxiliary": other,
            "omega": self.omega,
            "kind": self.kind,
            "classes": list(self.classes),
        }

    def load(self, *, dtype: str = "float32", device: Any = "cpu") -> Model:
        """The networks. Raises `InputError`, as `sims_image.guided.load_model`."""
        if self.kind in ("none", "neon"):
            return _load(self.base, self.auxiliary, self.kind, self.omega, dtype, str(device))
        return _load(self.base, self.auxiliary, self.kind, 0.0, dtype, str(device)).at(self.omega)


@functools.lru_cache(maxsize=1)
def _load(base: Path, auxiliary: Path | None, kind: str, omega: float, dtype: str, device: str) -> Model:
    """The last networks stay loaded: a search takes the same two at one omega after the other."""
    alone = load_model(str(base), dtype=dtype, device=device)
    if auxiliary is None:
        return alone
    return guide_with(alone, checkpoints.load(auxiliary), omega, kind=kind)


@dataclass(frozen=True)
class ImageData:
    """A data set as files."""

    path: Path

    def open(self) -> Dataset:
        """Open it."""
        return open_dataset(self.path, verify=False)

    @property
    def sha256(self) -> str:
        """Hash of its content."""
        return self.open().sha256

    def __len__(self) -> int:
        return len(self.open())


@dataclass(frozen=True)
class ImageLearner:
    """`sims_core.learner.Learner` and `Mergeable` for images, below the folder ``root``.

    training: options of `sims_image.train.Train` for `fit` (preset at least), finetuning: more of them, or others, for
    `finetune`. sampler: '' for the preset's. batch: the compute batch of sampling. weights: which snapshot a model is,
    'ema' (the recipe's first average) or 'raw'; a short fine-tune's slow average hardly moves. budgets: other budgets
    at which `finetune` keeps snapshots, so that asking for them later costs nothing; all belong to one run to the
    largest. base: a checkpoint that stands for `fit` from scratch. mi: what one Mi counts.
    """

    root: Path
    training: Train
    finetuning: dict[str, Any] = field(default_factory=dict)
    sampler: str = ""
    batch: int = 64
    weights: str = "ema"
    fit_weights: str = "ema"
    budgets: tuple[int, ...] = ()
    base: Path | None = None
    mi: int = 1_000_000
    processes: Processes | None = None
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("weights", "fit_weights"):
            choose(name, getattr(self, name), WEIGHTS)

    # ------------------------------------------------------------------- training

    def fit(self, data: ImageData, *, seed: Seed, start: ImageModel | None = None) -> ImageModel:
        """Train by the preset to the end of its budget, from scratch or from the base of ``start``."""
        shares = _shares(data.open())
        if self.base is not None and start is None:
            return ImageModel(self.base, classes=shares)
        options = replace(self.training, data=str(data.path), seed=seed.integer())
        if start is not None:
            options = replace(options, from_=str(start.base), budget=options.budget or self._preset_budget())
        result = self._train("fit", options, start)
        return ImageModel(_choose(result, result.snapshots[-1], self.fit_weights), classes=shares)

    def finetune(self, model: ImageModel, data: ImageData, budget: Any, *, seed: Seed) -> ImageModel:
        """Train a copy of the model's base on ``data`` for ``budget`` images (a number, or text such as '3Mi')."""
        images = images_of("--budget", str(budget), self.mi)
        points = sorted({images, *(b for b in self.budgets if images in self.budgets)})
        options = replace(
            self.training,
            **{
                "data": str(data.path),
                "from_": str(model.base),
                "seed": seed.integer(),
                "budget": f"{points[-1] / 1000:.9g}k",
                "snapshots": ",".join(map(str, points)),
                "snapshot_every": "",
                "raw": "always",
                **self.finetuning,
            },
        )
        result = self._train("finetune", options, model)
        place = next(p for p in result.snapshots if int(p.name) >= images)
        return ImageModel(_choose(result, place, self.weights), classes=model.classes)

    def _preset_budget(self) -> str:
        from sims_image.presets import PRESETS

        return PRESETS[choose("--preset", self.training.preset, PRESETS)].recipe.budget

    def _train(self, kind: str, options: Train, parent: ImageModel | None) -> Result:
        known = {k: v for k, v in asdict(options).items() if k not in ("data", "from_", "out", "device", "workers")}
        known |= {"data": ImageData(Path(options.data)).sha256}
        known |= {"from": None if parent is None else checkpoints.summary(parent.base).sha256}
        options = replace(options, out=str(self._folder(kind, known)))
        with _among(self.processes, options.device) as processes:
            return run_session(options, processes, progress=self.progress)

    # ------------------------------------------------------------------- sampling

    def sample(self, model: ImageModel, n: Any, *, seed: Seed) -> ImageData:
        """``n`` labelled images, drawn in the class shares of the data that the model was fitted to."""
        return self.draw(model, Seeds.span(0, int(n)), root=seed.integer())

    def draw(self, model: ImageModel, seeds: Seeds, *, root: int, labels: Labels | None = None) -> ImageData:
        """The images ``seeds`` of the root seed ``root``. labels: in place of the model's class shares."""
        with _among(self.processes, self.training.device) as processes:
            request = self.request(model, seeds, root=root, labels=labels, device=processes.device)
            out = self._folder("sample", request.settings)
            write(request, out, processes=processes, progress=self.progress)
        return ImageData(out)

    def request(
        self, model: ImageModel, seeds: Seeds, *, root: int, labels: Labels | None = None, device: Any = "cpu"
    ) -> Request:
        """What generating those images takes."""
        loaded = model.load(device=device)
        count = loaded.network.label_dim
        if labels is None and count:
            labels = Labels("data", count, shares=model.classes) if model.classes else Labels("uniform", count)
        known = loaded.base.record.data
        classes = known.classes if known is not None and len(known.classes) == count else ()
        return Request(
            loaded, seeds, choose_sampler(loaded, self.sampler), labels, root, self.batch, "synthetic", classes
        )

    # ------------------------------------------------------------- combining

    def extrapolate(self, base: ImageModel, auxiliary: ImageModel, omega: Any) -> ImageModel:
        """SIMS: samples from ``(1 + omega) s_base - omega s_aux``."""
        return replace(base, auxiliary=auxiliary.base, omega=float(omega), kind="sims")

    def merge(self, base: ImageModel, auxiliary: ImageModel, omega: Any) -> ImageModel:
        """Neon: one network with weights ``(1 + omega) theta_base - omega theta_aux``, as a checkpoint of its own."""
        pair = replace(base, auxiliary=auxiliary.base, omega=float(omega), kind="neon")
        out = self._folder("merge", pair.identity)
        if not (out / checkpoints.RECORD).exists():
            merged = pair.load()
            record = replace(
                merged.base.record, parent=merged.base.sha256, training={"merged": pair.identity}, provenance={}
            )
            checkpoints.save(out, merged.network, record)
        return ImageModel(out, classes=base.classes)

    def union(self, a: ImageData, b: ImageData) -> ImageData:
        """Both data sets, ``a`` first. Raises `InputError` where shapes, types or classes differ, or one has labels."""
        first, second = a.open(), b.open()
        for name, one, other in (
            ("shape", first.shape, second.shape),
            ("type", str(first.dtype), str(second.dtype)),
            ("classes", len(first.classes), len(second.classes)),
        ):
            if one != other:
                raise InputError("data", str(b.path), f"its {name} is {other}, that of {a.path} is {one}")
        labels = None
        if first.labels is not None and second.labels is not None:
            labels = np.concatenate([first.labels, second.labels])
        source = {"kind": "union", "parts": [first.sha256, second.sha256]}
        out = self._folder("union", source)
        if not out.exists():
            out.parent.mkdir(parents=True, exist_ok=True)
            write_folder(
                out,
                (block for part in (first, second) for block in _blocks(part)),
                count=len(first) + len(second),
                shape=first.shape,
                dtype=first.dtype,
                labels=labels,
                classes=first.classes,
                name=f"{first.name}+{second.name}",
                source=source,
            )
        return ImageData(out)

    def _folder(self, kind: str, known: Any) -> Path:
        digest = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:12]
        return self.root / f"{kind}-{digest}"


def _choose(result: Result, snapshot: Path, weights: str) -> Path:
    """The checkpoint of one snapshot: its (first) average or its raw weights. Raises `InputError`."""
    found = sorted(snapshot.glob("ema*")) if weights == "ema" else [snapshot / "raw"]
    if not found or not found[0].exists():
        raise InputError("weights", weights, f"{snapshot} does not hold them; train with --raw always")
    return found[0]


def _shares(data: Dataset) -> tuple[float, ...]:
    if data.labels is None:
        return ()
    return tuple((np.bincount(data.labels, minlength=len(data.classes)) / len(data)).tolist())


def _blocks(data: Dataset) -> Any:
    step = block_length(data.shape, data.dtype)
    for first in range(0, len(data), step):
        yield data.images(slice(first, first + step))


def _among(processes: Processes | None, device: str) -> Any:
    """The processes at hand, else new ones."""
    from contextlib import nullcontext

    return start(device) if processes is None else nullcontext(processes)


def budgets_of(argument: str, text: str, mi: int) -> tuple[int, ...]:
    """Read a list of budgets; a unit at its end holds for all that have none: '1,3,6Mi'. Raises `InputError`."""
    parts: Sequence[str] = [part.strip() for part in text.split(",")]
    unit = parts[-1].lstrip("0123456789.") if parts else ""
    found = [images_of(argument, part if part.lstrip("0123456789.") else part + unit, mi) for part in parts]
    if not found or min(found) < 1:
        raise InputError(argument, text, "give numbers of images above 0, such as 1,3,6Mi")
    return tuple(sorted(set(found)))
