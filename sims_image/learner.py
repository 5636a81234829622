"""The learner contract over files: models are checkpoints, data are data sets, both named by what they came from.

`sims_core.algorithm` and `sims_core.loop` run on images through it unchanged. Every result lies in a folder under
``root`` whose name is a hash of all that decides it, so that what has been made is found again, and what was stopped
resumes; nothing is ever made twice.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sims_core.errors import InputError, choose
from sims_core.seeds import Seed
from sims_image.data.dataset import Dataset
from sims_image.data.derived import Derived, ImageData
from sims_image.models import checkpoints
from sims_image.models.presets import PRESETS
from sims_image.processes import Processes, start
from sims_image.sampling.generate import choose_sampler
from sims_image.sampling.generation import Request, write
from sims_image.sampling.guided import Model, guide_with, load_model
from sims_image.sampling.seeds import Labels, Seeds
from sims_image.training.options import Train
from sims_image.training.schedules import images_of
from sims_image.training.session import Result, run_session

__all__ = ["WEIGHTS", "ImageData", "ImageLearner", "ImageModel", "budgets_of", "shares_of"]

WEIGHTS = ("ema", "raw")
#: options of training that a folder's name does not know: they decide nothing, or are known by content
UNNAMED = ("data", "from_", "out", "device", "workers", "track")
#: and those that it does not know where they are as by default
LATER = ("lora", "fresh", "time", "coupling", "clip", "adam")


def named(options: Train) -> dict[str, Any]:
    """The options that decide a training folder's name. What an earlier version trained must be found by it again."""
    known = {
        k: v for k, v in asdict(options).items() if k not in UNNAMED and (k not in LATER or v != getattr(Train, k))
    }
    return known | ({"channels_last": True} if options.channels_last is None else {})  # the default that was


@dataclass(frozen=True)
class ImageModel:
    """A model as files: a checkpoint, or one guided by another. kind: as `sims_image.sampling.guided.KINDS`.

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
        """The networks. Raises `InputError`, as `sims_image.sampling.guided.load_model`."""
        if self.kind in ("none", "neon"):
            return _load(self.base, self.auxiliary, self.kind, self.omega, dtype, str(device))
        return _load(self.base, self.auxiliary, self.kind, 0.0, dtype, str(device)).at(self.omega)


@functools.lru_cache(maxsize=1)
def _load(base: Path, auxiliary: Path | None, kind: str, omega: float, dtype: str, device: str) -> Model:
    """The last networks stay loaded: a search takes the same two at one omega after the other."""
    alone = load_model(str(base), dtype=dtype, device=device)
    if auxiliary is None:
        return alone
    return guide_with(alone, auxiliary, omega, kind=kind)


@dataclass(frozen=True)
class ImageLearner(Derived):
    """`sims_core.learner.Learner`, and all that its methods and loops may ask besides, for images below ``root``.

    training: options of `sims_image.training.options.Train` for `fit` (preset at least), finetuning: more of them, or
    others, for `finetune`, retraining: for `fit` from another model, rebuilding: for `rebuild`. sampler: '' for the
    preset's. batch: the compute batch of sampling. weights: which snapshot a model is that was trained from another,
    'ema' (the recipe's first average) or 'raw'; a short fine-tune's slow average hardly moves. fit_weights: the same of
    one trained from scratch. start: which of both `fit` starts from, of a model that was trained here; '' for the model
    itself. sampled: root seed of all samples, None for each draw's own. budgets: other budgets at which `finetune`
    keeps snapshots, so that asking for them later costs nothing; all belong to one run to the largest. base: a
    checkpoint that stands for `fit` from scratch. mi: what one Mi counts.
    """

    training: Train
    finetuning: dict[str, Any] = field(default_factory=dict)
    retraining: dict[str, Any] = field(default_factory=dict)
    rebuilding: dict[str, Any] = field(default_factory=dict)
    sampler: str = ""
    batch: int = 64
    weights: str = "ema"
    fit_weights: str = "ema"
    start: str = ""
    sampled: int | None = None
    budgets: tuple[int, ...] = ()
    base: Path | None = None
    mi: int = 1_000_000
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("weights", "fit_weights"):
            choose(name, getattr(self, name), WEIGHTS)

    # ------------------------------------------------------------------- training

    def fit(self, data: ImageData, *, seed: Seed, start: ImageModel | None = None) -> ImageModel:
        """Train by the preset to the end of its budget, from scratch or from the base of ``start``."""
        shares = shares_of(data.open())
        if self.base is not None and start is None:
            return ImageModel(self.base, classes=shares)
        options = replace(self.training, data=str(data.path), seed=seed.integer())
        if start is not None:
            if self.start and start.base.is_relative_to(self.root):
                start = replace(start, base=_choose(start.base.parent, self.start))
            # what was trained elsewhere has no Adam to keep
            adam: dict[str, Any] = {} if start.base.is_relative_to(self.root) else {"adam": "new"}
            options = replace(options, **{"snapshots": "", **self.retraining, **adam, "from_": str(start.base)})
            options = replace(options, budget=options.budget or self._preset_budget())
        result = self._train("fit", options, data, start)
        weights = self.fit_weights if start is None else self.weights
        return ImageModel(_choose(result.snapshots[-1], weights), classes=shares)

    def finetune(self, model: ImageModel, data: ImageData, budget: Any, *, seed: Seed) -> ImageModel:
        """Train a copy of the model's base on ``data`` for ``budget`` images (a number, or text such as '3Mi').

        Raises `InputError` for a budget after which the copy is still the base, bit for bit: no auxiliary to measure.
        """
        images = images_of("budget", str(budget), self.mi)
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
        result = self._train("finetune", options, data, model)
        place = next(p for p in result.snapshots if int(p.name) >= images)
        made = ImageModel(_choose(place, self.weights), classes=model.classes)
        if checkpoints.unmoved(made.base, model.base):
            words = "after so many images the copy is still the base, bit for bit (its learning rate ramps up from 0)"
            raise InputError("budget", f"{images:,}", f"{words}; give more, or set `lr_rampup` 0")
        return made

    def rebuild(self, data: ImageData, budget: Any, *, seed: Seed) -> ImageModel:
        """Train from scratch on ``data`` for ``budget`` images, with ``rebuilding`` in the recipe's place."""
        images = images_of("budget", f"{float(budget):.0f}" if _is_number(budget) else str(budget), self.mi)
        changed = {"snapshots": "", "snapshot_every": "", **self.rebuilding}
        if self.base is not None and not PRESETS[self.training.preset].network:  # the architecture is the base's own
            changed |= {"from_": str(self.base), "fresh": True}
        options = replace(self.training, data=str(data.path), seed=seed.integer(), **changed)
        result = self._train("rebuild", replace(options, budget=f"{images / 1000:.9g}k"), data, None)
        place = _choose(result.snapshots[-1], self.fit_weights)
        return ImageModel(place, classes=shares_of(data.open()))

    def _preset_budget(self) -> str:
        return PRESETS[choose("preset", self.training.preset, PRESETS)].recipe.budget

    def _train(self, kind: str, options: Train, data: ImageData, parent: ImageModel | None) -> Result:
        known = named(options) | {"data": data.sha256}
        known |= {"from": None if parent is None else checkpoints.summary(parent.base).sha256}
        options = replace(options, out=str(self._folder(kind, known)))
        with _among(self.processes, options.device) as processes:
            return run_session(options, processes, data=data.open(), progress=self.progress)

    # ------------------------------------------------------------------- sampling

    def sample(self, model: ImageModel, n: Any, *, seed: Seed) -> ImageData:
        """``n`` labelled images, drawn in the class shares of the data that the model was fitted to."""
        root = seed.integer() if self.sampled is None else self.sampled
        return self.draw(model, Seeds.span(0, int(n)), root=root)

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
        count, known = loaded.network.label_dim, loaded.base.record.data
        if labels is None and count:
            alike = Labels.alike("uniform", count, known.empty if known is not None else ())
            labels = Labels("data", count, shares=model.classes) if model.classes else alike
        classes = known.classes if known is not None and len(known.classes) == count else ()
        return Request(
            loaded, seeds, choose_sampler(loaded, self.sampler), labels, root, self.batch, "synthetic", classes
        )

    # ------------------------------------------------------------- combining

    def extrapolate(self, base: ImageModel, auxiliary: ImageModel, omega: Any) -> ImageModel:
        """SIMS: samples from ``(1 + omega) s_base - omega s_aux``; autoguidance if the two networks differ."""
        same = checkpoints.summary(base.base).config == checkpoints.summary(auxiliary.base).config
        kind = "sims" if same else "autoguidance"
        return replace(base, auxiliary=auxiliary.base, omega=float(omega), kind=kind)

    def merge(self, base: ImageModel, auxiliary: ImageModel, omega: Any) -> ImageModel:
        """Neon: one network with weights ``(1 + omega) theta_base - omega theta_aux``, as a checkpoint of its own."""
        pair = replace(base, auxiliary=auxiliary.base, omega=float(omega), kind="neon")
        out = self._folder("merge", pair.identity)

        def make() -> None:
            merged = pair.load()
            record = replace(
                merged.base.record, parent=merged.base.sha256, training={"merged": pair.identity}, provenance={}
            )
            checkpoints.save(out, merged.network, record, autoencoder=merged.base.autoencoder)

        self._once(out / checkpoints.RECORD, make)
        return ImageModel(out, classes=base.classes)

    def perturb(self, base: ImageModel, auxiliary: ImageModel, *, seed: Seed) -> ImageModel:
        """A network as far from ``base`` as ``auxiliary`` is, tensor by tensor, in a random direction."""
        pair = [checkpoints.summary(model.base).sha256 for model in (base, auxiliary)]
        out = self._folder("random", {"pair": pair, "seed": [seed.entropy, *seed.path]})

        def make() -> None:
            first, second = (checkpoints.load(model.base) for model in (base, auxiliary))
            generator, weights = seed.torch(), first.network.state_dict()
            moved = {}
            for name, other in second.network.state_dict().items():
                if not other.is_floating_point():
                    moved[name] = weights[name]
                    continue
                direction = torch.randn(other.shape, generator=generator)
                length = (other - weights[name]).norm() / direction.norm().clamp(min=1e-12)
                moved[name] = weights[name] + length * direction
            first.network.load_state_dict(moved)
            record = replace(first.record, parent=pair[0], training={"random direction": pair}, provenance={})
            checkpoints.save(out, first.network, record, autoencoder=first.autoencoder)

        self._once(out / checkpoints.RECORD, make)
        return replace(base, base=out)


def _choose(snapshot: Path, weights: str) -> Path:
    """The checkpoint of one snapshot: its (first) average or its raw weights. Raises `InputError`."""
    found = sorted(snapshot.glob("ema*")) if weights == "ema" else [snapshot / "raw"]
    if not found or not found[0].exists():
        raise InputError("snapshot", weights, f"{snapshot} does not hold them; train with `raw` always")
    return found[0]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.ndarray | np.generic)


def shares_of(data: Dataset) -> tuple[float, ...]:
    """The shares of its classes, () without labels."""
    if data.labels is None:
        return ()
    return tuple((np.bincount(data.labels, minlength=len(data.classes)) / len(data)).tolist())


def _among(processes: Processes | None, device: str) -> Any:
    """The processes at hand, else new ones."""
    return start(device) if processes is None else nullcontext(processes)


def budgets_of(argument: str, text: str, mi: int) -> tuple[int, ...]:
    """Read a list of budgets; a unit at its end holds for all that have none: '1,3,6Mi'. Raises `InputError`."""
    parts: Sequence[str] = [part.strip() for part in text.split(",")]
    unit = parts[-1].lstrip("0123456789.") if parts else ""
    found = [images_of(argument, part if part.lstrip("0123456789.") else part + unit, mi) for part in parts]
    if not found or min(found) < 1:
        raise InputError(argument, text, "give numbers of images above 0, such as 1,3,6Mi")
    return tuple(sorted(set(found)))
