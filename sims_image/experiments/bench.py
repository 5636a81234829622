"""Measures the models of an experiment: each cell once, and kept."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from sims_core.errors import InputError
from sims_core.guidance import FULL, GuidanceSchedule
from sims_core.lab.pool import connect, each
from sims_core.lab.runs import digest, kept_json, write_atomic, write_failure, write_json
from sims_core.sampling import Sampler
from sims_image.data.stores import Images
from sims_image.experiments.checks import Real, engine_of
from sims_image.experiments.options import Experiment, Searching
from sims_image.learner import ImageLearner, ImageModel
from sims_image.metrics.features import extractor
from sims_image.metrics.report import collect, evaluate
from sims_image.metrics.samples import Sample, gathered
from sims_image.metrics.targets import Reference
from sims_image.processes import Processes, choose_device
from sims_image.sampling.generate import choose_sampler
from sims_image.sampling.generation import stream
from sims_image.sampling.guided import Model
from sims_image.sampling.seeds import Labels, Seeds


def there(path: Path, processes: Processes, read: Callable[[Path], Any] = kept_json) -> bool:
    """Whether a part of a cell is kept at ``path``, whole: ``read`` makes something of it."""
    return bool(processes.sum(torch.tensor(float(processes.first and read(path) is not None))))


def _whole(path: Path) -> Any:
    """The features at ``path``; None where they are not there, whole."""
    try:
        return np.load(path)
    except (OSError, ValueError, EOFError):
        return None


@lru_cache(maxsize=1)
def _elsewhere(packed: bytes) -> Bench:
    """The bench of another process, here."""
    settings, learner, schedule, also, place = pickle.loads(packed)
    os.chdir(place)
    alone = Processes(0, 1, choose_device(settings.device))
    learner = replace(learner, processes=alone)
    bench = Bench(replace(settings, workers=1, scheduler=""), learner, Real.open(settings), alone, schedule, also=also)
    bench.shown = False
    return bench


def _measured(packed: bytes, ask: Ask) -> int:
    """Measure a model by the bench of another process; evaluations of networks that it took."""
    bench = _elsewhere(packed)
    before = bench.evaluations
    bench.measure(ask[0], ask[1], **ask[2])
    return bench.evaluations - before


def _save(path: Path, *, features: Any) -> None:
    with open(path, "wb") as file:
        np.save(file, features)


Ask = tuple[ImageModel, Seeds, dict[str, Any]]
"""What `Bench.measure` takes: a model, seeds, and how."""


class Bench:
    """Measures models: each cell once, kept as ``cells/HASH.json`` by all that decides it.

    schedule: where the second network of a guided model is evaluated. also: further feature spaces, and of how many of
    a model's images each takes the features (0: all); its report is beside the first one's.
    """

    def __init__(
        self,
        settings: Experiment,
        learner: ImageLearner,
        real: Real,
        processes: Processes,
        schedule: GuidanceSchedule = FULL,
        *,
        also: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self.settings, self.learner, self.processes, self.schedule = settings, learner, processes, schedule
        self.shown = processes.first
        searching = settings if isinstance(settings, Searching) else Searching()
        self.workers, self.scheduler = searching.workers, searching.scheduler
        if processes.world > 1 and (self.workers > 1 or self.scheduler):
            name = "scheduler" if self.scheduler else "workers"
            expected = "torchrun's processes already share every model's images: leave it out"
            raise InputError(name, self.scheduler or self.workers, expected)
        if self.scheduler:
            connect(self.scheduler).close()  # one that does not answer, before anything is written
        self.data, self.engine, self.decoder = real.seen.data, engine_of(settings), real.decoder
        if self.decoder is not None:
            self.decoder.module.to(processes.device)

        def made(features: str) -> Reference:
            network = extractor(features, weights=settings.weights or None, dataset=self.data, device=processes.device)
            return Reference.of(self.data, network, heldout=real.seen.heldout)

        def make(features: str) -> Reference:
            return processes.together(lambda: made(features)) or made(features)

        self.reference = make(settings.features)
        self.also = {name: (make(name), most) for name, most in also.items()}
        self.folder = Path(settings.out) / "cells"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.evaluations = 0  # of networks, by this call

    @property
    def target(self) -> str:
        """Which column of a report is chosen and concluded by."""
        return "metrics" if self.reference.heldout is None else "against_heldout"

    def sampler(self, model: Model, *, doubled: bool = False) -> Sampler:
        """The experiment's sampler."""
        found = choose_sampler(model, self.settings.sampler)
        return found.doubled() if doubled else found

    def evaluations_of_sims(self, base: ImageModel) -> int:
        """Network evaluations of an image of SIMS."""
        return sum(self.sampler(base.load()).evaluations(self.schedule))

    def equal(self, base: ImageModel) -> Sampler:
        """The sampler with as many evaluations of one network as SIMS has of two: in full guidance, twice the steps."""
        found = self.sampler(base.load())
        more = self.evaluations_of_sims(base) / found.nfe
        return (
            found.doubled()
            if self.schedule == FULL or not found.steps
            else replace(found, steps=round(found.steps * more))
        )

    def stream(
        self,
        image_model: ImageModel,
        seeds: Seeds,
        *,
        doubled: bool = False,
        sampler: Sampler | None = None,
        schedule: GuidanceSchedule | None = None,
        alone: bool = False,
    ) -> tuple[Any, dict[str, Any]]:
        """(batches of this process's part of ``seeds``, all that decides the images). Arguments as `measure`.

        alone: this process's part is all of them.
        """
        settings = self.settings
        request = self.learner.request(image_model, seeds, root=settings.seed, device=self.processes.device)
        model = replace(request.model, decoder=self.decoder)
        if model.other is None:
            model = replace(model, engine=replace(self.engine, pair="sequential"))
        else:
            model = replace(model, schedule=schedule or self.schedule, engine=self.engine)
        sampler = sampler or self.sampler(model, doubled=doubled)
        labels = Labels.parse(settings.labels, model.network.label_dim, data=self.data, names=self.data.classes)
        request = replace(request, model=model, sampler=sampler, labels=labels)
        step = slice(None) if alone else slice(self.processes.rank, None, self.processes.world)
        mine = [s for shard in request.shards[step] for s in shard]
        batches = stream(model, mine, batch=request.batch, sampler=request.sampler, labels=labels, root=settings.seed)
        return batches, request.settings

    @property
    def pictures(self) -> bool:
        """Whether the images can be shown: no latents."""
        return self.data.dtype == np.uint8 and self.data.shape[0] in (1, 3)

    def drawn(self, model: ImageModel, seeds: Seeds, **how: Any) -> Images:
        """The images (len(seeds), C, H, W), all of them in this process. how: as `stream`."""
        made = self.stream(model, seeds, **how, alone=True)[0]
        return np.concatenate([part[1] for part in made])

    def measure(
        self,
        image_model: ImageModel,
        seeds: Seeds,
        *,
        doubled: bool = False,
        sampler: Sampler | None = None,
        schedule: GuidanceSchedule | None = None,
        features: bool = False,
        also: bool = False,
        floor: bool = True,
    ) -> dict[str, Any]:
        """The cell of a model on ``seeds``: its report as JSON, the features' mean, and what decided it.

        doubled: with twice the steps. sampler, schedule: in place of the experiment's. features: keep those of the
        images that KID compares beside it, in a file that the cell names as ``features``. also: measure in the further
        feature spaces too; the cell's ``also`` has a report for each. floor: whether the report has the real images'
        own values and a check for memorised images, which take a while.
        """
        sampling: dict[str, Any] = {"doubled": doubled, "sampler": sampler, "schedule": schedule}
        batches, known, path = self._known(image_model, seeds, also=also, floor=floor, **sampling)
        others = self.also if also else {}
        beside = path.with_suffix(".npy")
        if not there(path, self.processes) or (features and not there(beside, self.processes, _whole)):
            more = {name: Sample(of.extractor.width) for name, (of, _) in others.items()}

            def shared() -> Iterator[Any]:
                for items, images, labels in self._told(batches, known, len(seeds)):
                    for name, (of, most) in others.items():
                        first = items < next(iter(seeds)) + most if most else items >= 0
                        if first.any():
                            more[name].add(items[first], of.extractor(images[first]))
                    yield items, images, labels

            sample = collect(shared(), self.reference.extractor)
            whole = gathered(sample, self.processes)
            wholes = {name: gathered(part, self.processes) for name, part in more.items()}
            self.evaluations += known["nfe"] * len(seeds)

            def save() -> None:
                assert whole is not None
                kept = whole.kept().features if features else None
                how = {"seeds": str(seeds), "labels": str(known["labels"]), "nfe": known["nfe"]}
                report = evaluate(whole, self.reference, **how, floor=floor)
                statistics = whole.moments.statistics
                content = {"settings": known, "report": report.as_dict(), "mean": statistics.mu.tolist()}
                if others:
                    content["also"] = {
                        name: evaluate(part, others[name][0], **how, floor=False).as_dict()
                        for name, part in wholes.items()
                        if part is not None
                    }
                try:
                    if kept is not None:
                        write_atomic(beside, partial(_save, features=kept))
                    write_json(path, content)
                except OSError as error:
                    told = "what is measured so far is kept in cells"
                    raise write_failure("out", self.folder.parent, error, told) from None

            self.processes.together(save)
        found: dict[str, Any] = json.loads(path.read_text())
        return found | ({"features": str(beside)} if features else {})

    def several(self, asks: Sequence[Ask]) -> Iterator[dict[str, Any]]:
        """The cells of ``asks``, in their order: measured here one after another, or before by several workers."""
        if self.workers > 1 or self.scheduler:
            also = {name: most for name, (_, most) in self.also.items()}
            mine = self.settings, self.learner, self.schedule, also, os.getcwd()
            paths = [self._known(model, seeds, **how)[2] for model, seeds, how in asks]
            missing = [ask for path, ask in zip(paths, asks, strict=True) if kept_json(path) is None]
            jobs = each(partial(_measured, pickle.dumps(mine)), missing, self.workers, self.scheduler)
            self.evaluations += sum(tqdm(jobs, total=len(missing), unit="model", desc="measuring", leave=False))
        yield from (self.measure(model, seeds, **how) for model, seeds, how in asks)

    def trying(
        self, ask: Callable[[Any], tuple[ImageModel, dict[str, Any]]]
    ) -> Callable[..., Iterator[dict[str, Any]]]:
        """What `halve` measures candidates by. ask: (model, how) of a candidate."""
        return lambda keys, seeds: self.several([(model, seeds, how) for model, how in map(ask, keys)])

    def value(self, cell: dict[str, Any]) -> dict[str, float]:
        """The metric used for selection: value, se, low, high, n."""
        found: dict[str, float] = cell["report"][self.target]["frechet"]
        return found

    def distance(self, cell: dict[str, Any]) -> float:
        """The metric used for selection, its value alone."""
        return self.value(cell)["value"]

    def _known(
        self,
        model: ImageModel,
        seeds: Seeds,
        *,
        features: bool = False,
        also: bool = False,
        floor: bool = True,
        **sampling: Any,
    ) -> tuple[Iterator[Any], dict[str, Any], Path]:
        """(batches, all that decides a cell, its file). Arguments as `measure`; ``features`` decides nothing."""
        batches, known = self.stream(model, seeds, **sampling)
        held = None if self.reference.heldout is None else self.reference.heldout.sha256
        known |= {"features": self.reference.extractor.sha256, "reference": self.reference.sha256, "heldout": held}
        if also and self.also:
            known |= {"also": {name: [of.extractor.sha256, most] for name, (of, most) in self.also.items()}}
        if not floor:
            known |= {"floor": False}
        return batches, known, self.folder / f"{digest(known, 16)}.json"

    def _told(self, batches: Iterator[Any], known: dict[str, Any], count: int) -> Iterator[Any]:
        words = f"{known['guidance']} omega {known['omega']:g}"
        with tqdm(total=count, desc=words, unit="img", disable=not self.shown, leave=False) as shown:
            for batch in batches:
                yield batch
                shown.update(min(len(batch[0]) * self.processes.world, count - int(shown.n)))
