"""What happens when in a training run: learning rates, and the steps at which to log, save and draw samples.

All are functions of the images seen, so that a resumed run does what it would have done.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sims_core.errors import InputError
from sims_core.lab.grids import parse_budget
from sims_image.models.ema import HalfLife, Power, Profile
from sims_image.models.presets import Recipe


def learning_rate(recipe: Recipe, seen: int) -> float:
    """The rate of the step that begins after ``seen`` images.

    A linear ramp over ``lr_rampup`` images (EDM, EDM2) times the decay: none; EDM2's 1 / sqrt(seen / (lr_decay_steps
    batch)) once that falls below 1 (arXiv 2312.02696, Eq. 67); or half a cosine to 0 over the budget.
    """
    rate = recipe.lr
    if recipe.lr_rampup:
        rate *= min(seen / recipe.lr_rampup, 1)
    if recipe.lr_decay == "inverse-sqrt":
        rate /= math.sqrt(max(seen / (recipe.lr_decay_steps * recipe.batch), 1))
    elif recipe.lr_decay == "cosine":
        rate *= (1 + math.cos(math.pi * min(seen / recipe.images, 1))) / 2
    return rate


def ramp_warning(recipe: Recipe) -> str | None:
    """A sentence for a budget that ends within the learning rate's ramp, or None."""
    if recipe.images >= recipe.lr_rampup:
        return None
    share = recipe.images / recipe.lr_rampup
    return (
        f"the learning rate ramps up over {recipe.lr_rampup:,} images and the budget is {recipe.images:,}: "
        f"it reaches {share:.3g} of {recipe.lr:g}; set --lr-rampup to change that"
    )


def profiles(recipe: Recipe) -> list[Profile]:
    """The recipe's averages."""
    if recipe.ema == "power":
        return [Power(width) for width in recipe.ema_widths]
    return [HalfLife(recipe.ema_halflife, recipe.ema_rampup)]


def drift_share(recipe: Recipe, profile: Profile) -> float:
    """How much of the raw weights' movement an average holds when the budget ends, if they move steadily one way.

    Adam's steps are as long as the learning rate, whatever the gradient: the recipe's rates and EDM's order of updates
    (rate, step, average) decide. With a = ln 2 B / half-life this is 1 - 2/a + 2/a^2 (1 - e^-a) for a budget B within a
    linear ramp and 1 - (1 - e^-a)/a at a constant rate: 0.023, .34, .63, .79 after 0.05, 1, 3, 6 Mi of EDM's CIFAR-10
    recipe. A model that is sampled by its average after a short fine-tune is still its start.
    """
    seen = range(0, recipe.images, recipe.batch)
    rates = np.array([learning_rate(recipe, at) for at in seen])
    keeps = np.array([profile.keep(at, recipe.batch) for at in seen])
    held = 1 - np.cumprod(keeps[::-1])[::-1]
    return float(rates @ held / rates.sum()) if rates.any() else 0.0


def average_note(recipe: Recipe) -> str:
    """What a fine-tune's average will hold of it, in a sentence."""
    shares = [(profile.name, drift_share(recipe, profile)) for profile in profiles(recipe)]
    told = ", ".join(f"{share:.2g}" if len(shares) == 1 else f"{share:.2g} ({name})" for name, share in shares)
    raw = "; the raw weights are saved too" if shares[0][1] < 0.9 else ""
    return f"the average holds {told} of the raw weights' way after {recipe.images:,} images, if that is steady{raw}"


@dataclass(frozen=True)
class Timetable:
    """The steps of a run. All in steps done: logs, snapshots and states are multiples or members of these.

    steps: of the whole run. log: every so many. snapshots: at these, the last step among them. state: every so many, a
    multiple of log.
    """

    batch: int
    steps: int
    log: int
    snapshots: tuple[int, ...]
    state: int

    def logs(self, step: int) -> bool:
        """Whether the loss is read after ``step`` steps."""
        return step % self.log == 0 or self.saves(step)

    def saves(self, step: int) -> bool:
        """Whether the state of the run is written after ``step`` steps: at every snapshot too, and at the end."""
        return step % self.state == 0 or step in self.snapshots or step == self.steps


_MOST_SNAPSHOTS = 100_000


def timetable(recipe: Recipe, *, snapshots: str = "", every: str = "", log: str = "", state: str = "") -> Timetable:
    """Lay out a run. All arguments are budgets as people write them ('50k', '3Mi'), in the recipe's Mi.

    snapshots: a list with commas, each at the first step that reaches it. every: and one each so many images; where
    neither is given, ten (half-life EMA) or 32 (power-function EMA, which later widths are made from). There is
    always one at the end. log: default a two-hundredth of the budget, at most 50,000 images. state: default a
    fiftieth, rounded up to lines of the log. Raises `InputError` for what is no budget or lies after the end.
    """
    steps = _steps(recipe.images, recipe.batch)

    def length(argument: str, text: str, default: float) -> int:
        return max(1, round((_positive(argument, text, recipe.mi) if text else default) / recipe.batch))

    points = {steps}
    for text in snapshots.split(",") if snapshots else ():
        images = _positive("snapshots", text, recipe.mi)
        if images > recipe.images:
            raise InputError("snapshots", text.strip(), f"training ends at {recipe.budget}; give smaller budgets")
        points.add(_steps(images, recipe.batch))
    if every or not snapshots:
        gap = length("snapshot_every", every, recipe.images / (32 if recipe.ema == "power" else 10))
        if steps // gap > _MOST_SNAPSHOTS:
            words = f"that is {steps // gap} snapshots, of {_MOST_SNAPSHOTS} at most"
            raise InputError("snapshot_every", every, words)
        points |= set(range(gap, steps + 1, gap))
    lines = length("log_every", log, min(recipe.images / 200, 50_000))
    states = length("state_every", state, recipe.images / 50)
    return Timetable(
        batch=recipe.batch, steps=steps, log=lines, snapshots=tuple(sorted(points)), state=-(-states // lines) * lines
    )


def _steps(images: float, batch: int) -> int:
    return max(1, math.ceil(images / batch))


def images_of(argument: str, text: str, mi: int) -> int:
    """A number of images: with a unit (50k, 3Mi), or plain. Raises `InputError`."""
    text = text.strip()
    if text.isdecimal() and len(text) < 16:
        return int(text)
    words = "give a number of images: 5000, 50k, 3Mi"
    budget = parse_budget(argument, text, mi=mi, expected=words)
    if budget.unit != "samples":
        raise InputError(argument, text, words)
    return round(budget.value)


def _positive(argument: str, text: str, mi: int) -> int:
    count = images_of(argument, text, mi)
    if not count:
        raise InputError(argument, text, "give a number of images above 0: 5000, 50k, 3Mi")
    return count


def shares(argument: str, batch: int, world: int, micro: int) -> tuple[int, int]:
    """How a batch is cut: (images per process and pass, passes per process). micro: at most so many; 0 for all.

    The largest number of images that divides a process's part. Raises `InputError` for a batch that the processes
    cannot share evenly.
    """
    if batch % world:
        raise InputError(argument, batch, f"{world} processes share a batch evenly: give a multiple of {world}")
    if micro < 0:
        raise InputError("microbatch", micro, "give a number of images, or 0 for a process's whole part")
    part = batch // world
    size = next(n for n in range(min(micro or part, part), 0, -1) if part % n == 0)
    return size, part // size


def spread(values: Sequence[float]) -> str:
    """A range in words: '0.0021 to 12.3'."""
    return f"{min(values):.3g} to {max(values):.3g}"
