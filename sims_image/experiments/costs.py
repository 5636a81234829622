"""What an experiment will cost: images trained on and drawn, network evaluations, time here and on one GPU.

Operations are counted by tracing the network (`sims_image.models.cost`); GPU-hours assume its rate of an A100,
which nobody measured here.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial

from sims_core.lab.runs import duration
from sims_image.experiments.checks import at_hand
from sims_image.experiments.laboratory import Checked
from sims_image.experiments.options import FineTuning
from sims_image.models.cost import A100, evaluation_flops
from sims_image.models.denoiser import planned_sampler
from sims_image.models.presets import PRESETS, Recipe
from sims_image.training.estimate import here, measure


@dataclass
class Ledger:
    """Accumulates costs. flops, tuning, evaluation: operations of an image in a training step, in one of fine-tuning an
    auxiliary, and in one evaluation of the network; nfe: evaluations for an image. rate, drawing: operations per second
    of a GPU in training and in sampling. here: what some operations take on this machine, in words.
    """

    flops: float
    tuning: float
    evaluation: float
    nfe: int
    rate: float
    drawing: float
    here: Callable[[float], str]
    lines: list[tuple[str, str]] = field(default_factory=list)
    trained: int = 0
    operations: float = 0.0
    evaluations: int = 0

    def say(self, what: str, words: str) -> None:
        """Add a note without cost."""
        self.lines.append((what, words))

    def train(self, what: str, images: int, times: int = 1, *, tuned: bool = False) -> None:
        """``times`` trainings on ``images`` each. tuned: of auxiliaries, which may be adapters."""
        if not times:
            return
        spent = images * times * (self.tuning if tuned else self.flops)
        self.trained, self.operations = self.trained + images * times, self.operations + spent
        self.lines.append((what, f"{times:,} x {images:,} images seen: {self._hours(spent, 0)}"))

    def draw(self, what: str, images: int, times: int = 1, networks: float = 1) -> None:
        """``times`` samples of ``images``, each with ``networks`` networks evaluated per step."""
        if not times:
            return
        spent = round(images * times * networks * self.nfe)
        self.evaluations += spent
        self.lines.append((what, f"{times:,} x {images:,} images, {spent:,} evaluations: {self._hours(0, spent)}"))

    @property
    def hours(self) -> float:
        """GPU-hours so far."""
        return self._seconds(self.operations, self.evaluations) / 3600

    def _seconds(self, operations: float, evaluations: int) -> float:
        return operations / self.rate + evaluations * self.evaluation / self.drawing

    def _hours(self, operations: float, evaluations: int) -> str:
        seconds = self._seconds(operations, evaluations)
        return f"{seconds / 3600:.2g} A100-hours" if seconds >= 3600 else f"{duration(seconds)} of one A100"

    @property
    def total(self) -> str:
        """`hours` in words."""
        return f"{self._hours(self.operations, self.evaluations)} in all (an assumed rate, not a measured one)"

    @property
    def words(self) -> str:
        """Everything, and the sum."""
        total = [
            ("in all", f"{self.trained:,} images trained on, {self.evaluations:,} evaluations"),
            ("time here", self.here(self.operations + self.evaluations * self.evaluation)),
            ("GPU", self.total),
        ]
        lines = [*self.lines, *total]
        width = max(len(key) for key, _ in lines)
        return "\n".join(f"{key:>{width}}  {value}" for key, value in lines)


def ledger(checked: Checked) -> Ledger:
    """An empty one for an experiment's network and sampler. Raises `InputError`."""
    recipe, sizes = checked.recipe, checked.sizes
    sampler = checked.settings.sampler or PRESETS[checked.preset].sampler
    nfe = planned_sampler(sampler, checked.config).nfe
    lora = checked.settings.lora if isinstance(checked.settings, FineTuning) else ""
    flops = _flops(json.dumps(checked.config, sort_keys=True), recipe, lora)
    timed = partial(here, config=checked.config, recipe=recipe, step=flops[0], device=checked.settings.device)
    found = Ledger(*flops, nfe, A100[recipe.precision], A100["float32"], timed)
    found.say("base", checked.checkpoint or f"preset {checked.preset}, trained for {sizes.fit:,} images")
    there = "" if at_hand(checked.settings) else ", not there: data and features are not checked"
    found.say("real data", f"{sizes.real:,} images ({checked.settings.data or 'not named'}{there})")
    found.say("sampler", f"{sampler}: {nfe} evaluations per image, {2 * nfe} with two networks")
    return found


@lru_cache(maxsize=16)
def _flops(config: str, recipe: Recipe, lora: str) -> tuple[float, float, float]:
    known = json.loads(config)
    whole, tuned = (measure(known, recipe, part).flops for part in ("", lora))
    return whole, tuned, evaluation_flops(known)
