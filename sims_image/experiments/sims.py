"""``sims_image sims``: Algorithm 1 of SIMS (arXiv 2408.16333) on images, from one command to a report.

    OUT/fit-*, sample-*, union-*, finetune-*   the stages: runs and data sets, named by what decides them
    OUT/cells/                                 one measured model a file: what it was, and its distances
    OUT/report/                                report.html, figures, sample grids, table.csv, results.json

Stages and cells are found again by name: another grid of omegas, or a larger one, measures only what is new. The seeds
of the synthetic set, of the search and of the confirmation are disjoint; what the search chose is scored on fresh ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sims_core.errors import InputError, choose
from sims_core.lab.command import parse_command
from sims_image.experiments.bench import Bench

if TYPE_CHECKING:
    from sims_core.guidance import GuidanceSchedule
    from sims_image.learner import ImageLearner, ImageModel
    from sims_image.processes import Processes
    from sims_image.sampling.engine import Engine
    from sims_image.sampling.seeds import Seeds


#: the grid of --omega auto
AUTO = "0:3:0.25"


@dataclass(frozen=True)
class Sims:
    """Self-improve a diffusion model with its own samples: base, synthetic data, auxiliary, omega, confirmation.

    The same command goes on where a stopped one was, and another one in the same --out reuses what they share.
    Several processes: torchrun --nproc_per_node N -m sims_image sims ...
    """

    preset: str = ""
    """Published settings of this experiment, such as cifar10, ffhq64 or imagenet64; whatever is given besides wins."""
    data: str = ""
    """The base's training set: a folder that `prepare` made, or an EDM zip."""
    base: str = ""
    """A checkpoint, or a preset to train."""
    heldout: str = ""
    """Real images that the base was not trained on; where given, omega is chosen by the distance to them."""
    out: str = "runs/sims"
    """Where the stages, the measured cells and the report go."""
    synthetic: str = "6k"
    """Images of the synthetic set D_s."""
    auxiliary_data: str = "synthetic"
    """What the auxiliary is fine-tuned on: synthetic (D_s alone), train+synthetic or real+synthetic (the same here:
    the base's training set is the real data). The paper's sources disagree; see docs/images-sims.md."""
    budgets: str = "1,3,6Mi"
    """Images that the auxiliary sees; the unit at the end holds for all."""
    omega: str = "0:2:0.25"
    """Grid of extrapolation strengths; 0, the base, is always among them. auto (0:3:0.25) or auto:GRID: by successive
    halving over them and the budgets, on few of the search seeds first, for a part of the grid's cost."""
    search: str = "2k"
    """Images of a cell of the search over omega and budget."""
    n: str = "10k"
    """Images of a confirmation."""
    repeats: int = 3
    """Confirmations, on disjoint seeds."""
    features: str = "lite0"
    """Features of the Fréchet distance: inception (then it is the FID), lite0, classifier, dinov2 or pixels."""
    weights: str = ""
    """File with the feature network's weights (inception, dinov2)."""
    sampler: str = ""
    """heun:18, euler:40, ddim:50; default the preset's."""
    interval: str = ""
    """LOW,HIGH: guide at these noise levels only."""
    refresh_every: int | None = None
    """Evaluate the auxiliary once every so many steps, and hold its correction in between; default: in full."""
    predictor_only: bool = False
    """Evaluate it at the first evaluation of each step only (Heun's predictor)."""
    pair: str = "sequential"
    """How the two networks are evaluated: sequential, overlapped or stacked (see `generate --help`)."""
    compile: bool = False
    """Compile the networks of what is measured (torch.compile)."""
    cuda_graph: bool = False
    """Replay their evaluations as CUDA graphs."""
    labels: str = ""
    """Classes: data (drawn as --data has them; the default), uniform or balanced."""
    batch: int = 64
    """Compute batch of sampling."""
    seed: int = 0
    """Root of all randomness."""
    auxiliary_weights: str = "ema"
    """ema (as published) or raw: a short fine-tune's slow average hardly moves; the report says how far it came."""
    base_ema: str = ""
    """Grid of relative EMA widths of the base, made after training (presets with power-function EMA, as EDM2's); the
    best pair with --auxiliary-ema on the search seeds, at the omega found, is confirmed. Default: as trained."""
    auxiliary_ema: str = ""
    """The same of the auxiliary."""
    train_batch: int | None = None
    """Images a step of fine-tuning; default the preset's."""
    lr: float | None = None
    """Learning rate of fine-tuning; default the preset's."""
    lr_rampup: str = ""
    """Its ramp, in images; the published 10M never end within a short budget."""
    lr_decay: str | None = None
    """Its decay: constant, inverse-sqrt or cosine; default the preset's."""
    controls: bool = True
    """Measure the control arms too: twice the steps, the sampler retuned, continued training, a random direction,
    Neon."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    dry_run: bool = False
    """Print the plan and its cost in network evaluations, and stop."""


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
        """(budget, omega) that the search measures beside the base."""
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
        from sims_image.experiments.halving import rounds

        return rounds(len(self.candidates), self.search, halving=self.halving)

    @property
    def engine(self) -> Engine:
        """How networks are evaluated. Raises `InputError` for an unknown way."""
        from sims_image.sampling.engine import Engine

        return Engine(self.settings.pair, self.settings.compile, self.settings.cuda_graph)


def plan(settings: Sims) -> Plan:
    """What ``settings`` ask for. Raises `InputError` naming the option."""
    from sims_core.algorithm import AUXILIARY_DATA
    from sims_image.experiments.checks import omegas_of
    from sims_image.experiments.widths import grids_of
    from sims_image.learner import WEIGHTS, budgets_of
    from sims_image.sampling.generate import parse_schedule
    from sims_image.sampling.seeds import Seeds
    from sims_image.training.schedules import images_of

    if not settings.data:
        raise InputError("--data", "", "name the data set that the base is trained on (see `sims_image prepare`)")
    choose("--auxiliary-data", settings.auxiliary_data, AUXILIARY_DATA)
    choose("--auxiliary-weights", settings.auxiliary_weights, WEIGHTS)
    choose("--labels", settings.labels or "data", ("data", "uniform", "balanced"))
    for name, least in (("repeats", 2), ("batch", 1), ("seed", 0)):
        if getattr(settings, name) < least:
            raise InputError(f"--{name}", getattr(settings, name), f"give a whole number of at least {least}")
    preset, checkpoint, mi = base_of(settings)
    mode, _, grid = settings.omega.partition(":")
    grids_of(settings, preset)
    omegas = sorted({0.0, *omegas_of(settings.omega, (grid or AUTO) if mode == "auto" else "")})
    sizes = [images_of(f"--{name}", getattr(settings, name), mi) for name in ("synthetic", "search", "n")]
    for name, size in zip(("synthetic", "search", "n"), sizes, strict=True):
        if size < 20:
            raise InputError(f"--{name}", size, "give at least 20 images")
    ranges = [Seeds.span(0, sizes[0]), Seeds.span(sizes[0], sizes[1])]
    first = sizes[0] + sizes[1]
    ranges += [Seeds.span(first + k * sizes[2], sizes[2]) for k in range(settings.repeats)]
    for place, one in enumerate(ranges):
        assert all(one.overlap(other) is None for other in ranges[:place])
    planned = Plan(
        settings,
        tuple(omegas),
        budgets_of("--budgets", settings.budgets, mi),
        parse_schedule(settings.interval, settings.refresh_every, settings.predictor_only),
        preset,
        checkpoint,
        ranges[0],
        ranges[1],
        tuple(ranges[2:]),
    )
    assert planned.engine  # or it raises
    return planned


def base_of(settings: Sims) -> tuple[str, str, int]:
    """(preset, checkpoint or '' if the preset is to be trained, what one Mi counts). Raises `InputError`."""
    from sims_image.models import checkpoints
    from sims_image.models.presets import PRESETS

    if not settings.base:
        raise InputError("--base", "", f"name a checkpoint, or a preset to train: {', '.join(PRESETS)}")
    if settings.base in PRESETS and not Path(settings.base).exists():
        return settings.base, "", PRESETS[settings.base].recipe.mi
    if not Path(settings.base).exists() and "/" not in settings.base:
        choose("--base", settings.base, PRESETS)
    found = checkpoints.summary(settings.base, argument="--base")
    if not found.record.preset:
        raise InputError("--base", settings.base, "the checkpoint does not say by which preset it was trained")
    return found.record.preset, settings.base, found.record.mi


def check_data(planned: Plan) -> dict[str, Any]:
    """The base's network arguments. Raises `InputError` for all that can be refused before anything is made."""
    from sims_image.experiments.checks import check_inputs
    from sims_image.models import checkpoints
    from sims_image.training import train

    settings = planned.settings
    if planned.checkpoint:
        config = checkpoints.summary(planned.checkpoint).config
    else:
        config = train.plan(train.Train(preset=planned.preset, data=settings.data)).config
    check_inputs(settings, planned.preset, planned.checkpoint, config, planned.budgets)
    return config


def make_learner(planned: Plan, processes: Processes) -> ImageLearner:
    """The learner of the experiment's stages."""
    from sims_image.experiments.checks import finetuning_of
    from sims_image.learner import ImageLearner
    from sims_image.models.presets import PRESETS
    from sims_image.training.train import Train

    settings = planned.settings
    finetuning = finetuning_of(settings)
    if settings.auxiliary_ema and planned.budgets:  # averages to make others of
        finetuning["snapshot_every"] = str(max(1, planned.budgets[-1] // 16))
    return ImageLearner(
        Path(settings.out),
        Train(preset=planned.preset, device=settings.device),
        finetuning,
        sampler=settings.sampler,
        batch=settings.batch,
        weights=settings.auxiliary_weights,
        budgets=planned.budgets,
        base=Path(planned.checkpoint) if planned.checkpoint else None,
        mi=PRESETS[planned.preset].recipe.mi,
        processes=processes,
        progress=True,
    )


def conduct(settings: Sims, processes: Processes) -> Path | None:
    """The whole experiment. Returns the report's page in the first process. Raises `InputError`."""
    from sims_core.algorithm import AUXILIARY_DATA, sims
    from sims_core.lab.runs import write_failure, write_json
    from sims_core.seeds import Seed
    from sims_image.experiments import arms
    from sims_image.experiments import sims_report as report
    from sims_image.experiments import widths as posthoc
    from sims_image.experiments.halving import search
    from sims_image.learner import ImageData

    planned = processes.together(lambda: plan(settings)) or plan(settings)
    processes.together(lambda: check_data(planned))
    learner = make_learner(planned, processes)
    bench = Bench(planned, learner, processes)  # first, since it needs what may be missing: data, weights of features
    data, seed = ImageData(Path(settings.data)), Seed(settings.seed)
    chosen_data = AUXILIARY_DATA[settings.auxiliary_data]

    def negatives(base: ImageModel, n: Any, *, seed: Seed) -> ImageData:
        return learner.draw(base, planned.synthetic, root=settings.seed)

    made = sims(
        learner,
        data,
        n_synthetic=len(planned.synthetic),
        budget=planned.budgets[-1],
        omega=0.0,
        auxiliary_data=chosen_data,
        negatives=negatives,
        seed=seed,
    )
    assert made.synthetic is not None
    tuned = chosen_data(learner, data, data, made.synthetic)
    auxiliaries = {
        budget: learner.finetune(made.base, tuned, budget, seed=seed.child("finetune")) for budget in planned.budgets
    }
    found = search(bench, made.base, auxiliaries)
    base, widths = made.base, None
    if settings.base_ema or settings.auxiliary_ema:
        grid = posthoc.grids_of(settings, planned.preset)
        widths = posthoc.search(bench, base, auxiliaries[found.budget], found.omega, *grid)
        base, auxiliaries[found.budget] = widths.base, widths.auxiliary
    confirmed = arms.confirm(bench, base, auxiliaries, found, data, seed)
    grids = arms.grids(bench, base, auxiliaries[found.budget], found)
    if not processes.first:
        return None
    try:
        page = report.write(bench, base, auxiliaries, made.synthetic, found, confirmed, grids)
        if widths is not None:
            write_json(page.with_name("ema_widths.json"), {"chosen": widths.widths, "tried": widths.cells})
    except OSError as error:
        raise write_failure("--out", Path(settings.out), error, "all that was measured is kept") from None
    return page


def describe(settings: Sims) -> str:
    """The plan and its cost in words. Raises `InputError`, as the run would at once, where the data are at hand."""
    from sims_core.sampling import Sampler
    from sims_image.experiments import halving as search
    from sims_image.experiments.checks import at_hand
    from sims_image.models import checkpoints
    from sims_image.models.presets import PRESETS
    from sims_image.training.estimate import evaluation_flops, here, measure, on_gpus

    planned = plan(settings)
    preset = PRESETS[planned.preset]
    there = at_hand(settings)
    if there:
        config = check_data(planned)
    else:
        config = checkpoints.summary(planned.checkpoint).config if planned.checkpoint else preset.config()
    sampler = settings.sampler or PRESETS[planned.preset].sampler
    parsed = Sampler.parse(sampler, argument="--sampler")
    nfe, both = parsed.nfe, sum(parsed.evaluations(planned.schedule))
    drawn = nfe * len(planned.synthetic)
    searched, whole = search.planned(len(planned.candidates), planned.rounds, both, nfe)
    controls = 0
    if settings.controls:
        options = search.retunings(parsed, both)
        turns = search.rounds(len(options), planned.search)
        controls = search.planned(len(options), turns, both)[0]
        merges = search.rounds(len(planned.omegas) - 1, planned.search, halving=planned.halving)
        controls += search.planned(len(planned.omegas) - 1, merges, nfe)[0]
    images = len(planned.confirm[0]) * len(planned.confirm)
    confirmed = images * (nfe + both + nfe + (3 * both + 2 * nfe if settings.controls else 0))
    evaluated = (drawn + searched + controls + confirmed) * evaluation_flops(config)
    saved = f", {1 - searched / whole:.0%} less than the full grid" if planned.halving else ""
    seen = planned.budgets[-1] * (2 if settings.controls else 1) + (0 if planned.checkpoint else preset.recipe.images)
    step = measure(config, preset.recipe).flops
    trained = seen * step
    lines: Sequence[tuple[str, str]] = [
        ("base", planned.checkpoint or f"preset {planned.preset}, trained for {PRESETS[planned.preset].recipe.budget}"),
        ("synthetic", f"{len(planned.synthetic):,} images, seeds {planned.synthetic}: {drawn:,} evaluations"),
        ("auxiliary", f"on {settings.auxiliary_data}, kept at {', '.join(f'{b:,}' for b in planned.budgets)} images"),
        ("sampler", f"{sampler}: {nfe} evaluations an image, {both} with SIMS (auxiliary: {planned.schedule})"),
        *(("search", f"{count} models on {n:,} images") for count, n in turns_of(planned)),
        ("", f"{searched:,} evaluations{saved}"),
        *([("controls", f"{controls:,} evaluations to choose Neon's w and a retuned sampler")] if controls else []),
        ("confirm", f"{len(planned.confirm)} x {len(planned.confirm[0]):,} images an arm: about {confirmed:,}"),
        ("features", settings.features),
        ("time here", here(evaluated + trained, config, preset.recipe, step, settings.device)),
        ("sampling", on_gpus(evaluated)),
        ("training", on_gpus(trained, preset.recipe.precision)),
        ("out", settings.out),
        *([] if there else [("note", f"{settings.data} is not there: data and features are not checked")]),
    ]
    return "\n".join(f"{key:>10}  {value}" for key, value in lines)


def turns_of(planned: Plan) -> list[tuple[int, int]]:
    """(models, images of each) of the rounds of the search, the base among them."""
    from sims_image.experiments.halving import survivors

    return [(1 + survivors(len(planned.candidates), k), len(seeds)) for k, seeds in enumerate(planned.rounds)]


def run(argv: Sequence[str]) -> None:
    """The verb ``sims``."""
    from sims_image.experiments.published import recipes

    known = recipes("sims")
    settings = parse_command(Sims, argv, prog="sims_image sims", description=str(Sims.__doc__), presets=known)
    if settings.dry_run:
        print(describe(settings))
        return
    from sims_image.processes import start

    with start(settings.device) as processes:
        page = conduct(settings, processes)
    if page is not None:
        print(f"report: {page}")
