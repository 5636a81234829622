"""``sims_image sims``: Algorithm 1 of SIMS (arXiv 2408.16333) on images, from one command to a report.

    OUT/fit-*, sample-*, union-*, finetune-*   the stages: runs and data sets, named by what decides them
    OUT/cells/                                 one measured model per file: what it was, and its distances
    OUT/report/                                report.html, figures, table.csv, results.json

Stages and cells are found again by name: another grid of omegas, or a larger one, measures only what is new. The seeds
of the synthetic set, of the search and of the confirmation are disjoint; what the search chose is scored on fresh ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sims_core.algorithm import AUXILIARY_DATA, METHODS, Given
from sims_core.lab.runs import write_failure, write_json
from sims_core.seeds import Seed
from sims_image.experiments import arms, elsewhere, halving, sims_report, widths
from sims_image.experiments.bench import Bench
from sims_image.experiments.checks import Real, at_hand, grids_of
from sims_image.experiments.halving import survivors
from sims_image.experiments.options import Sims
from sims_image.experiments.plan import Plan, check_data, make_learner, plan
from sims_image.experiments.search import search
from sims_image.learner import ImageData, ImageLearner, ImageModel
from sims_image.models import checkpoints
from sims_image.models.cost import evaluation_flops, gpu_hours, on_gpus
from sims_image.models.denoiser import planned_sampler
from sims_image.models.presets import PRESETS
from sims_image.processes import Processes
from sims_image.training.estimate import here, measure
from sims_image.training.plan import finetuned


def conduct(settings: Sims, processes: Processes) -> tuple[Path, Sequence[str]] | None:
    """The whole experiment. Returns the report's page in the first process, and no words. Raises `InputError`."""
    planned = processes.together(lambda: plan(settings)) or plan(settings)
    real = processes.together(lambda: Real.open(settings)) or Real.open(settings)
    config = processes.together(lambda: check_data(planned, real)) or check_data(planned, real)
    learner = stages(planned, processes)
    # first, since it needs what may be missing: data, weights of features
    bench = Bench(settings, learner, real, processes, planned.schedule)
    data, seed = ImageData.of(real.data), Seed(settings.seed)
    asked = {"n_synthetic": len(planned.synthetic), "auxiliary_data": AUXILIARY_DATA[settings.auxiliary_data]}

    def negatives(base: ImageModel, n: Any, *, seed: Seed) -> ImageData:
        if not settings.synthetic_from:
            return learner.draw(base, planned.synthetic, root=settings.seed)
        other = elsewhere.source(settings.synthetic_from, len(planned.synthetic), config, real)
        return elsewhere.drawn(other, learner, data, base, planned.synthetic, settings.seed)

    largest = METHODS["sims"].bind(**asked, budget=planned.budgets[-1], omega=0.0, negatives=negatives)
    made = largest(learner, data, seed=seed)
    assert made.synthetic is not None
    given = Given(learner, base=made.base, synthetic=made.synthetic)
    auxiliaries: dict[int, ImageModel] = {}
    for budget in planned.budgets:
        tuned = METHODS["sims"].bind(**asked, budget=budget, omega=0.0)(given, data, seed=seed)
        assert tuned.auxiliary is not None
        auxiliaries[budget] = tuned.auxiliary
    found = search(planned, bench, made.base, auxiliaries)
    base, pair = made.base, None
    if settings.base_ema or settings.auxiliary_ema:
        grid = grids_of(settings, planned.preset)
        pair = widths.search(bench, planned.search, base, auxiliaries[found.budget], found.omega, *grid)
        base, auxiliaries[found.budget] = pair.base, pair.auxiliary
    confirmed = arms.confirm(planned, bench, base, auxiliaries[found.budget], found, data, seed)
    samples = arms.samples(planned, bench, base, auxiliaries[found.budget], found)
    if not processes.first:
        return None
    try:
        page = sims_report.write(planned, bench, base, auxiliaries, made.synthetic, found, confirmed, samples)
        if pair is not None:
            write_json(page.with_name("ema_widths.json"), {"chosen": pair.widths, "tried": pair.cells})
    except OSError as error:
        raise write_failure("out", Path(settings.out), error, "all that was measured is kept") from None
    return page, ()


def stages(planned: Plan, processes: Processes) -> ImageLearner:
    """The learner of the experiment's stages."""
    learner = make_learner(planned.settings, planned.preset, planned.checkpoint, processes, budgets=planned.budgets)
    if not planned.settings.auxiliary_ema:
        return learner
    often = {"snapshot_every": str(max(1, planned.budgets[-1] // 16))}  # averages to make others of
    return replace(learner, finetuning=learner.finetuning | often)


@dataclass(frozen=True)
class Priced:
    """Network evaluations of the parts of an experiment: nfe an image of the base, both of the pair, whole the search
    without halving. evaluated, trained: operations; step: those of an image trained on.
    """

    planned: Plan
    nfe: int
    both: int
    drawn: int
    searched: int
    whole: int
    controls: int
    confirmed: int
    evaluated: float
    trained: float
    step: float
    config: dict[str, Any]

    @property
    def hours(self) -> float:
        """Of one A100 (`sims_image.models.cost`)."""
        precision = PRESETS[self.planned.preset].recipe.precision
        return gpu_hours(self.evaluated) + gpu_hours(self.trained, precision)


def priced(settings: Sims) -> Priced:
    """The plan and its cost. Raises `InputError`, as the run would at once, where the data are at hand."""
    planned = plan(settings)
    preset = PRESETS[planned.preset]
    if at_hand(settings):
        config = check_data(planned, Real.open(settings))
    else:
        config = checkpoints.summary(planned.checkpoint).config if planned.checkpoint else preset.config()
    parsed = planned_sampler(settings.sampler or preset.sampler, config)
    nfe, both = parsed.nfe, sum(parsed.evaluations(planned.schedule))
    drawn = nfe * len(planned.synthetic)
    if settings.synthetic_from:
        other = elsewhere.source(settings.synthetic_from, len(planned.synthetic), config, None)
        drawn = elsewhere.evaluations(other, settings.sampler) * len(planned.synthetic)
    searched, whole = halving.planned(len(planned.candidates), planned.rounds, both, nfe)
    controls = 0
    if settings.controls:
        options = halving.retunings(parsed, both)
        turns = halving.rounds(len(options), planned.search)
        controls = halving.planned(len(options), turns, both)[0]
        merges = halving.rounds(len(planned.omegas) - 1, planned.search, halving=planned.halving)
        controls += halving.planned(len(planned.omegas) - 1, merges, nfe)[0]
    images = len(planned.confirm[0]) * len(planned.confirm)
    confirmed = images * (nfe + both + nfe + (3 * both + 2 * nfe if settings.controls else 0))
    evaluated = (drawn + searched + controls + confirmed) * evaluation_flops(config)
    seen = planned.budgets[-1] * (2 if settings.controls else 1) + (0 if planned.checkpoint else preset.recipe.images)
    step = measure(config, finetuned(planned.preset, planned.checkpoint), settings.lora).flops
    return Priced(planned, nfe, both, drawn, searched, whole, controls, confirmed, evaluated, seen * step, step, config)


def describe(settings: Sims) -> str:
    """The plan and its cost in words. Raises `InputError`, as `priced`."""
    cost = priced(settings)
    planned, preset, there = cost.planned, PRESETS[cost.planned.preset], at_hand(settings)
    saved = f", {1 - cost.searched / cost.whole:.0%} less than the full grid" if planned.halving else ""
    known = cost.config, finetuned(planned.preset, planned.checkpoint), cost.step, settings.device, settings.lora
    source = f"seeds {planned.synthetic}" + f" of {settings.synthetic_from}" * bool(settings.synthetic_from)
    lines: Sequence[tuple[str, str]] = [
        ("base", planned.checkpoint or f"preset {planned.preset}, trained for {preset.recipe.budget}"),
        ("synthetic", f"{len(planned.synthetic):,} images, {source}: {cost.drawn:,} evaluations"),
        ("auxiliary", f"on {settings.auxiliary_data}, kept at {', '.join(f'{b:,}' for b in planned.budgets)} images"),
        (
            "sampler",
            f"{settings.sampler or preset.sampler}: {cost.nfe} evaluations per image, {cost.both} with SIMS "
            f"(auxiliary: {planned.schedule})",
        ),
        *(("search", f"{count} models on {n:,} images") for count, n in turns_of(planned)),
        ("", f"{cost.searched:,} evaluations{saved}"),
        *(
            [("controls", f"{cost.controls:,} evaluations to choose Neon's w and a retuned sampler")]
            if cost.controls
            else []
        ),
        ("confirm", f"{len(planned.confirm)} x {len(planned.confirm[0]):,} images per arm: about {cost.confirmed:,}"),
        ("features", settings.features),
        ("time here", here(cost.evaluated + cost.trained, *known)),
        ("sampling", on_gpus(cost.evaluated)),
        ("training", on_gpus(cost.trained, preset.recipe.precision)),
        ("out", settings.out),
        *([] if there else [("note", f"{settings.data} is not there: data and features are not checked")]),
    ]
    return "\n".join(f"{key:>10}  {value}" for key, value in lines)


def turns_of(planned: Plan) -> list[tuple[int, int]]:
    """(models, images of each) of the rounds of the search, the base among them."""
    return [(1 + survivors(len(planned.candidates), k), len(seeds)) for k, seeds in enumerate(planned.rounds)]
