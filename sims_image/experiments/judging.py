"""Measures models class by class: what a classifier says their images are, and how good each class is."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims_core.lab.runs import digest, kept, write_atomic, write_json
from sims_core.seeds import Seed
from sims_image.experiments.bench import there
from sims_image.experiments.laboratory import Lab
from sims_image.learner import ImageModel
from sims_image.metrics.classify import Judge, confusion, judged
from sims_image.metrics.compare import Side, compare
from sims_image.metrics.moments import Frechet
from sims_image.metrics.references import Statistics
from sims_image.metrics.samples import Sample, gathered
from sims_image.metrics.shares import Corrected, corrected_shares
from sims_image.sampling.seeds import Seeds

#: without held-out labels a classifier is assumed to be perfect: so many held-out images, all judged rightly
_TRUSTED = 10**9


def _statistics(path: Path) -> Statistics:
    """The moments of a cell's features."""
    with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as held:
        return Statistics(held["mu"], held["sigma"])


@dataclass(frozen=True)
class Judged:
    """One model. shares: corrected for the classifier's errors. cell: what was measured, JSON-able: 'predicted' counts,
    'overall' metrics, and for each class its metrics against real images of that class (None: too few images).
    statistics: of all images' features.
    """

    cell: dict[str, Any]
    shares: Corrected
    statistics: Statistics
    nfe: int


class Judging:
    """A classifier, how it errs on held-out images, and the real images of every class.

    Real images are those held out where there are any, else the data; their classes are their labels, or the
    classifier's word where they have none. errors: (K, K) counts on held-out labelled images, None without.
    """

    def __init__(self, lab: Lab, judge: Judge) -> None:
        self.lab, self.judge = lab, judge
        bench, settings = lab.bench, lab.settings
        held = bench.reference.heldout
        self.errors = None
        if held is not None and held.features is not None and held.features.data.labels is not None:
            self.errors = confusion(judge, held.features.data)
        reference = held if held is not None else bench.reference
        assert reference.features is not None  # a data set, by the options
        self.real = reference
        self._seed = Seed(settings.seed).child("corrected")

    @cached_property
    def classes(self) -> list[Side | None]:
        """Real images by class, to compare with; None where there are too few."""
        features = self.real.features
        assert features is not None
        labels = features.data.labels if features.data.labels is not None else judged(self.judge, features.data)
        sides = []
        for k in range(len(self.judge.classes)):
            mine = features.sample(labels == k)
            sides.append(Side.of(mine) if mine.count >= Side.LEAST else None)
        return sides

    def corrected(self, predicted: NDArray[np.int64]) -> Corrected:
        """Shares behind the classifier's counts, its errors taken out where held-out labels show them."""
        errors = np.eye(len(predicted)) * _TRUSTED if self.errors is None else self.errors
        return corrected_shares(predicted, errors, seed=self._seed)

    def target_distance(self, found: Judged, target: NDArray[np.float64]) -> float | None:
        """Fréchet distance to real images in the target's class shares: the mixture of the classes' moments."""
        if any(side is None for k, side in enumerate(self.classes) if target[k] > 0):
            return None
        parts = [(q, side.statistics) for q, side in zip(target, self.classes, strict=True) if side is not None and q]
        mu = np.sum([q * s.mu for q, s in parts], axis=0)
        second = np.sum([q * (s.sigma + np.outer(s.mu - mu, s.mu - mu)) for q, s in parts], axis=0)
        return Frechet(Statistics(mu, second))(found.statistics)

    def measure(self, model: ImageModel, trial: int, *, doubled: bool = False) -> Judged:
        """Measure a model on the trial's images; each cell once, kept in ``cells``."""
        lab, bench = self.lab, self.lab.bench
        seeds = Seeds.span(trial * lab.sizes.n, lab.sizes.n)
        batches, known = bench.stream(model, seeds, doubled=doubled)
        known |= {"features": bench.reference.extractor.sha256, "judge": self.judge.sha256, "real": self.real.sha256}
        path = bench.folder / f"classes-{digest(known, 16)}.json"
        statistics = partial(kept, read=_statistics)
        if not (there(path, lab.processes) and there(path.with_suffix(".npz"), lab.processes, statistics)):
            count, width = len(self.judge.classes), bench.reference.extractor.width
            samples = [Sample(width) for _ in range(count)]
            for items, images, _ in bench._told(batches, known, len(seeds)):
                verdicts, features = self.judge(images), bench.reference.extractor(images)
                for k in np.unique(verdicts):
                    samples[k].add(items[verdicts == k], features[verdicts == k])
            wholes = [gathered(sample, lab.processes) for sample in samples]

            def save() -> None:
                content, every = self._content([w for w in wholes if w is not None])
                arrays = {"mu": every.mu, "sigma": every.sigma}
                write_atomic(path.with_suffix(".npz"), lambda p: np.savez(p, **arrays))  # type: ignore[arg-type]
                write_json(path, {"settings": known, **content})

            lab.processes.together(save)
        cell: dict[str, Any] = json.loads(path.read_text())
        moments = replace(_statistics(path.with_suffix(".npz")), images=cell["n"])
        found = Judged(cell, self.corrected(np.asarray(cell["predicted"])), moments, int(known["nfe"]))
        if lab.processes.first:
            shown = ", ".join(f"{share:.3f}" for share in found.shares.shares)
            print(f"trial {trial}, {known['guidance']} omega {known['omega']:g}: shares {shown}")
        return found

    def _content(self, wholes: list[Sample]) -> tuple[dict[str, Any], Statistics]:
        every = Sample(wholes[0].width)
        for sample in wholes:
            every.merge(sample)
        by_class = [
            None
            if side is None or sample.count < Side.LEAST
            else {name: asdict(value) for name, value in compare(sample, side).items()}
            for sample, side in zip(wholes, self.classes, strict=True)
        ]
        found = {
            "n": every.count,
            "predicted": [sample.count for sample in wholes],
            "overall": {name: asdict(value) for name, value in compare(every, self.real.side).items()},
            "classes": by_class,
        }
        return found, every.moments.statistics
