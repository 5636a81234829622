"""``sims_image train``: train a preset's network on data, or fine-tune a checkpoint (`docs/images-training.md`)."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from sims_core.errors import InputError, choose
from sims_core.lab.command import parse_command
from sims_core.lab.runs import RunFolder
from sims_image.models.presets import PRESETS, Preset, Recipe, by
from sims_image.training.schedules import Timetable, images_of, ramp_warning, timetable

if TYPE_CHECKING:
    from sims_image.data.dataset import Dataset
    from sims_image.models.checkpoints import Summary
    from sims_image.training.session import Result

RAW = ("auto", "always", "end")


@dataclass(frozen=True)
class Train:
    """Train a diffusion model by the recipe of EDM or EDM2, or fine-tune one from a checkpoint.

    What is not given is the preset's (and the preset of a checkpoint is the one that it was trained by). Numbers of
    images may be written 5000, 50k, 10M or 3Mi (Mi as the preset counts it: 10^6 in EDM, 2^20 in EDM2; --budget needs
    its unit). The same command goes on where a stopped one was. Several processes: torchrun --nproc_per_node N -m
    sims_image train ...
    """

    preset: str = ""
    """Network and recipe: cifar10-cond, cifar10-uncond, ffhq64, imagenet64-adm, imagenet64-edm2-{xs,s,m,l,xl}, or
    CPU-sized: digits, fashion16, cifar10-tiny."""
    data: str = ""
    """Data set: a folder that `prepare` made, or an EDM zip. Preset digits makes its own, data/digits."""
    from_: Annotated[str, tyro.conf.arg(name="from")] = ""
    """Checkpoint to fine-tune: its architecture and weights, with a new optimiser, and EMA without ramp-up."""
    budget: str = ""
    """Images to see, with a unit (50k, 3Mi); default the preset's. Must be given with --from."""
    out: str = ""
    """Run folder; default runs/train-NAME-<hash of the settings>."""
    seed: int = 0
    """Every random draw follows from it."""
    batch: int | None = None
    """Images a step, over all processes."""
    lr: float | None = None
    """Adam's nominal learning rate."""
    lr_rampup: str = ""
    """Images over which the learning rate rises from 0; 0 for none. The published 10M never end within a short
    fine-tuning budget: the run says how far they get."""
    lr_decay: str | None = None
    """constant, inverse-sqrt (EDM2) or cosine (to 0 at the end of the budget)."""
    lr_decay_steps: int | None = None
    """Steps after which inverse-sqrt begins."""
    beta1: float | None = None
    """Adam's first momentum."""
    beta2: float | None = None
    """Adam's second."""
    eps: float | None = None
    """Adam's epsilon."""
    ema: str | None = None
    """halflife (EDM) or power (EDM2)."""
    ema_halflife: str = ""
    """Images in which the past's weight halves."""
    ema_rampup: float | None = None
    """Bound on the half-life as a fraction of the images seen; 0 for none. Always none when fine-tuning."""
    ema_widths: tuple[float, ...] | None = None
    """Relative widths (sigma_rel) of the power-function averages; any other width can be made of them afterwards."""
    augment: float | None = None
    """Probability of each of EDM's augmentations; 0 for none."""
    objective: str | None = None
    """edm, or edm2 (with a learned log-variance; EDM2's networks)."""
    p_mean: float | None = None
    """Mean of ln sigma in training."""
    p_std: float | None = None
    """Its standard deviation."""
    precision: str | None = None
    """Of the network's body: float32, bf16 or fp16 (with loss scaling). Weights and optimiser are float32."""
    loss_scale: float | None = None
    """Where fp16's loss scale starts; it halves where gradients overflow."""
    network: str = ""
    """Arguments of the network that differ from the preset's: dropout=0.1,model_channels=64."""
    snapshots: str = ""
    """Images seen at which to keep checkpoints and a sheet of samples, such as 1Mi,3Mi,6Mi; the end is always one."""
    snapshot_every: str = ""
    """And one each so many images. Default, where neither is given: ten, or 32 with power-function EMA."""
    log_every: str = ""
    """Images between lines of log.jsonl; default a 200th of the budget, at most 50k."""
    state_every: str = ""
    """Images between states to go on from; default a 50th of the budget."""
    raw: str = "auto"
    """Keep raw weights beside their averages: always, at the end, or auto (always when fine-tuning)."""
    sheet: int | None = None
    """Rows of a snapshot's sheet of samples; 0 for none. Default: 8, at the end and wherever it takes less than a tenth
    of the time since the last one."""
    sampler: str = ""
    """Sampler of the sheets, such as heun:18; default the preset's."""
    microbatch: int = 0
    """Images a process passes through the network at once, gradients being accumulated; 0: its whole part."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    workers: int = 1
    """Threads that read data ahead; 0 reads when asked. Does not change the result."""
    compile: bool = False
    """torch.compile the network."""
    channels_last: bool = True
    """Keep images and convolutions channels-last, which is faster; changes rounding only."""
    deterministic: bool = False
    """On a GPU: kernels that repeat themselves bit for bit, so that a run that goes on is the same run; slower."""
    dry_run: bool = False
    """Print settings, parameters, memory and time, and stop."""


@dataclass(frozen=True)
class Plan:
    """A training run that is known to make sense, before anything is built.

    preset: its name, '' for a checkpoint without one. config: arguments of `sims_image.models.networks.build`. data:
    None in a dry run without. parent: the checkpoint to start from. sheets: the steps at which one is drawn. settings:
    what the run folder records. notes: what the user should know.
    """

    preset: str
    recipe: Recipe
    config: dict[str, Any]
    data: Dataset | None
    parent: Summary | None
    table: Timetable
    seed: int
    sampler: str
    churn: tuple[float, float, float, float] | None
    raw: bool
    sheet: int
    sheets: frozenset[int]
    settings: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the run goes if no folder is named: the same settings meet the same folder."""
        return Path("runs") / f"train-{self.preset or 'checkpoint'}-{_digest(self.settings)}"


def plan(train: Train) -> Plan:
    """What ``train`` asks for, checked. Raises `InputError` naming the argument that is wrong, or missing."""
    from sims_image.data.dataset import open_dataset
    from sims_image.models import checkpoints

    choose("--raw", train.raw, RAW)
    for name in ("seed", "sheet", "workers", "microbatch"):
        if (getattr(train, name) or 0) < 0:
            raise InputError(f"--{name}", getattr(train, name), "give a whole number of at least 0")
    parent = checkpoints.summary(train.from_, argument="--from") if train.from_ else None
    name, preset = _preset(train, parent)
    if parent is not None and not train.budget:
        raise InputError("--budget", "", "say how many images to fine-tune for, such as 1Mi")
    recipe = recipe_of(train, preset.recipe, fine_tuning=parent is not None)
    data = None
    if train.data:
        data = open_dataset(train.data)
    elif name == "digits" and not train.dry_run:
        data = _digits()
    elif not train.dry_run:
        raise InputError("--data", "", "name a data set (see `sims_image prepare`) to train on")
    config = _config(train, preset, recipe, parent, data)
    table = timetable(
        recipe, snapshots=train.snapshots, every=train.snapshot_every, log=train.log_every, state=train.state_every
    )
    rows, sampler = 8 if train.sheet is None else train.sheet, train.sampler or preset.sampler
    sheets = frozenset(table.snapshots if rows else ())
    if train.sheet is None:
        sheets = _sheets(table, config, sampler, rows)
    settings = {
        "preset": name,
        "data": None if data is None else {"name": data.name, "sha256": data.sha256, "images": len(data)},
        "from": None if parent is None else parent.sha256,
        "recipe": asdict(recipe),
        "network": config,
        "seed": train.seed,
        "snapshots": [step * recipe.batch for step in table.snapshots],
        "log_every": table.log * recipe.batch,
        "state_every": table.state * recipe.batch,
        "raw": train.raw,
        "sheet": rows,
        "sampler": sampler,
    }
    return Plan(
        preset=name,
        recipe=recipe,
        config=config,
        data=data,
        parent=parent,
        table=table,
        seed=train.seed,
        sampler=sampler,
        churn=preset.churn if not train.sampler else None,
        raw=train.raw == "always" or (train.raw == "auto" and parent is not None),
        sheet=rows,
        sheets=sheets,
        settings=json.loads(json.dumps(settings)),  # as a folder's record reads back
        notes=tuple(note for note in (ramp_warning(recipe), _shape_note(preset, name, data)) if note),
    )


def _sheets(table: Timetable, config: dict[str, Any], sampler: str, rows: int) -> frozenset[int]:
    """The steps at which a sheet costs less than a tenth of the training since the last one; the end always."""
    from sims_core.sampling import Sampler
    from sims_core.seeds import Seed
    from sims_image.training.sheets import sheet_labels

    samples = len(sheet_labels(rows, int(config.get("label_dim") or 0), Seed(0))[1])
    steps = (
        10 * samples * Sampler.parse(sampler, argument="--sampler").nfe / 3 / table.batch
    )  # forward and backward are three evaluations
    found, last = {table.steps}, 0
    for step in table.snapshots:
        if step - last >= steps:
            found.add(step)
            last = step
    return frozenset(found)


def _preset(train: Train, parent: Summary | None) -> tuple[str, Preset]:
    name = train.preset or ((parent.record.preset or "") if parent is not None else "")
    if not name:
        known = "the checkpoint does not say by which preset it was trained; " if parent is not None else ""
        raise InputError("--preset", "", f"{known}choose from {', '.join(PRESETS)}")
    return name, PRESETS[choose("--preset", name, PRESETS)]


def recipe_of(train: Train, recipe: Recipe, *, fine_tuning: bool) -> Recipe:
    """The preset's recipe with what was given in its place. Raises `InputError` naming the option."""
    given: dict[str, Any] = {
        f.name: getattr(train, f.name)
        for f in fields(Recipe)
        if hasattr(train, f.name) and getattr(train, f.name) not in (None, "")
    }
    for name in ("lr_rampup", "ema_halflife"):
        if name in given:
            given[name] = images_of(f"--{name.replace('_', '-')}", given[name], recipe.mi)
    if given.get("ema_rampup") == 0 or fine_tuning:
        given["ema_rampup"] = None
    try:
        return replace(recipe, **given)
    except InputError as error:
        raise InputError(f"--{error.argument.replace('_', '-')}", error.value, error.expected) from None


def _config(
    train: Train, preset: Preset, recipe: Recipe, parent: Summary | None, data: Dataset | None
) -> dict[str, Any]:
    """The network's arguments, fitted to the data. Raises `InputError` where network and data do not agree."""
    changed = _overrides(train.network)
    if parent is not None:
        config = {**parent.config, **changed}
        if parent.preconditioning not in ("edm", "edm2"):
            words = f"its preconditioning is {parent.preconditioning}; training knows those of EDM and EDM2"
            raise InputError("--from", train.from_, words)
    else:
        shape, classes = (None, None) if data is None else (data.shape, len(data.classes) if preset.classes else 0)
        config = preset.config(shape, classes)
        if recipe.augment and "model_type" in config:
            config["augment_dim"] = 9
        config |= changed
        if data is not None and "img_resolution" not in changed:
            _check_size(train, preset, data)
    if recipe.augment and config.get("augment_dim") != 9:
        words = "this network takes no augmentation labels; use --augment 0"
        raise InputError("--augment", recipe.augment, words)
    if data is None:
        return config
    want = (config["img_channels"], config["img_resolution"], config["img_resolution"])
    if data.shape != want:
        raise InputError("--data", train.data, f"its images are {by(data.shape)}, the network takes {by(want)}")
    classes = config.get("label_dim", 0)
    wanted = classes or (preset.classes and parent is None and "label_dim" not in changed)
    if wanted and data.labels is None:
        words = (
            "it has no labels, and the network is class-conditional; give labelled data, or an unconditional network"
        )
        raise InputError("--data", train.data, words)
    if classes and len(data.classes) != classes:
        raise InputError("--data", train.data, f"it has {len(data.classes)} classes, the network has {classes}")
    return config


def _check_size(train: Train, preset: Preset, data: Dataset) -> None:
    """Refuse images more than twice as large or as small as the preset's: its depth and attention fit others."""
    side, made = data.shape[-1], preset.shape[-1]
    if made <= 2 * side and side <= 2 * made:
        return
    near = [name for name, one in PRESETS.items() if side <= 2 * one.shape[-1] and one.shape[-1] <= 2 * side]
    words = f"its images are {by(data.shape)}, and the preset is for {by(preset.shape)}: " + (
        f"choose {', '.join(near[:4])}, or " if near else ""
    )
    raise InputError("--data", train.data, f"{words}train with --network img_resolution={side} to take it all the same")


def _overrides(text: str) -> dict[str, Any]:
    """``name=value,name=value`` with JSON values; commas inside brackets belong to the value."""
    found: dict[str, Any] = {}
    depth, part, parts = 0, "", []
    for letter in text + ",":
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += letter
    for part in filter(None, (p.strip() for p in parts)):
        name, equals, value = part.partition("=")
        if not equals or not name.strip().isidentifier():
            raise InputError("--network", part, "write name=value, such as dropout=0.1,channel_mult=[1,2]")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value.strip()
    return found


def _shape_note(preset: Preset, name: str, data: Dataset | None) -> str | None:
    if data is None or data.shape == preset.shape:
        return None
    return f"the images are {by(data.shape)}; preset {name} was made for {by(preset.shape)}"


def _digits() -> Dataset:
    """scikit-learn's digits, made on first use."""
    from sims_image.data.prepare import Prepare, prepare

    return prepare(Prepare(source="digits", out="data/digits"))


def _digest(settings: dict[str, Any]) -> str:
    import hashlib

    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:8]


def train(settings: Train, *, progress: bool = False) -> Result:
    """Train, or go on, or recognise a run that is finished: the command in one call.

    Raises `InputError` for bad input, and `sims_image.training.trainer.DivergedError`.
    """
    from sims_image.processes import start
    from sims_image.training.session import run_session

    with start(settings.device) as processes:
        return run_session(settings, processes, progress=progress)


def run(argv: Sequence[str]) -> None:
    """The command itself."""
    words = list(argv)
    settings = parse_command(Train, words, prog="sims_image train", description=str(Train.__doc__))
    if settings.dry_run:
        from sims_image.training.estimate import describe

        planned = plan(settings)
        if planned.data is not None:
            RunFolder.check(settings.out or planned.folder, planned.settings)
        print(describe(planned, settings))
        return
    from sims_image.training.trainer import DivergedError

    try:
        result = train(settings, progress=True)
    except DivergedError as error:  # in every process; said once
        raise SystemExit(f"error: {error}" if os.environ.get("RANK", "0") == "0" else 1) from None
    if result.first:
        print(result.words)
