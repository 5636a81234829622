"""What a `sims` experiment is: its options checked, its seeds laid out, and the learner that makes its stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sims_core.algorithm import AUXILIARY_DATA
from sims_core.errors import InputError, choose
from sims_core.guidance import GuidanceSchedule
from sims_image.experiments.checks import Real, base_of, check_inputs, engine_of, finetuning_of, grids_of, omegas_of
from sims_image.experiments.elsewhere import source
from sims_image.experiments.halving import rounds
from sims_image.experiments.options import Experiment, Sims
from sims_image.learner import WEIGHTS, ImageLearner, budgets_of
from sims_image.models import checkpoints
from sims_image.models.presets import PRESETS
from sims_image.processes import Processes
from sims_image.sampling.generate import schedule_of
from sims_image.sampling.seeds import Seeds
from sims_image.training.options import Train
from sims_image.training.plan import plan as plan_training
from sims_image.training.schedules import images_of

#: the grid of omega 'auto'
AUTO = "0:3:0.25"


@dataclass(frozen=True)
class Plan:
    """A checked experiment. omegas: increasing, from 0. synthetic, search, confirm: disjoint seeds of one root."""

    settings: Sims
    omegas: tuple[float, ...]
    budgets: tuple[int, ...]
    schedule: GuidanceSchedule
    preset: str
    checkpoint: str
    synthetic: Seeds
    search: Seeds
    confirm: tuple[Seeds, ...]

    @property
    def candidates(self) -> list[tuple[int, float]]:
        """(budget, omega) that the search measures besides the base."""
        return [(budget, omega) for budget in self.budgets for omega in self.omegas if omega > 0]

    @property
    def cells(self) -> int:
        """Models that the search measures."""
        return 1 + len(self.candidates)

    @property
    def halving(self) -> bool:
        """Whether omega is searched by successive halving."""
        return self.settings.omega.partition(":")[0] == "auto"

    @property
    def rounds(self) -> tuple[Seeds, ...]:
        """The search seeds of each round of the search; one is a full grid."""
        return rounds(len(self.candidates), self.search, halving=self.halving)


def plan(settings: Sims) -> Plan:
    """What ``settings`` ask for. Raises `InputError`."""
    if not settings.data:
        raise InputError("data", "", "name the data set that the base is trained on (see `sims_image prepare`)")
    choose("auxiliary_data", settings.auxiliary_data, AUXILIARY_DATA)
    choose("auxiliary_weights", settings.auxiliary_weights, WEIGHTS)
    choose("labels", settings.labels or "data", ("data", "uniform", "balanced"))
    for name, least in (("repeats", 2), ("batch", 1), ("seed", 0)):
        if getattr(settings, name) < least:
            raise InputError(name, getattr(settings, name), f"give a whole number of at least {least}")
    engine_of(settings)
    preset, checkpoint, mi = base_of(settings)
    mode, _, grid = settings.omega.partition(":")
    grids_of(settings, preset)
    omegas = sorted({0.0, *omegas_of(settings.omega, (grid or AUTO) if mode == "auto" else "")})
    sizes = [images_of(name, getattr(settings, name), mi) for name in ("synthetic", "search", "n")]
    for name, size in zip(("synthetic", "search", "n"), sizes, strict=True):
        if size < 20:
            raise InputError(name, size, "give at least 20 images")
    ranges = [Seeds.span(0, sizes[0]), Seeds.span(sizes[0], sizes[1])]
    first = sizes[0] + sizes[1]
    ranges += [Seeds.span(first + k * sizes[2], sizes[2]) for k in range(settings.repeats)]
    for place, one in enumerate(ranges):
        assert all(one.overlap(other) is None for other in ranges[:place])
    return Plan(
        settings,
        tuple(omegas),
        budgets_of("budget", settings.budget, mi),
        schedule_of(settings),
        preset,
        checkpoint,
        ranges[0],
        ranges[1],
        tuple(ranges[2:]),
    )


def check_data(planned: Plan, real: Real) -> dict[str, Any]:
    """The base's network arguments. Raises `InputError` for all that can be refused before anything is made."""
    settings = planned.settings
    if planned.checkpoint:
        config = checkpoints.summary(planned.checkpoint).config
    else:
        config = plan_training(Train(preset=planned.preset, data=settings.data), real.data).config
    check_inputs(settings, real, planned.preset, planned.checkpoint, config, planned.budgets)
    if settings.synthetic_from:
        source(settings.synthetic_from, len(planned.synthetic), config, real)
    return config


def make_learner(settings: Experiment, preset: str, checkpoint: str, processes: Processes, **more: Any) -> ImageLearner:
    """The learner of an experiment's stages. preset, checkpoint: of `base_of`. more: of its fields."""
    learner = ImageLearner(
        Path(settings.out),
        Train(preset=preset, device=settings.device),
        finetuning_of(settings),
        sampler=settings.sampler,
        batch=settings.batch,
        weights=settings.auxiliary_weights,
        base=Path(checkpoint) if checkpoint else None,
        mi=PRESETS[preset].recipe.mi,
        processes=processes,
        progress=True,
    )
    return replace(learner, **more)
