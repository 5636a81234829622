"""A training run before anything is built: recipe, network, data and timetable, checked (`docs/images-training.md`)."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sims_core.errors import InputError, choose
from sims_core.lab.runs import digest
from sims_core.seeds import Seed
from sims_image.data.dataset import Dataset, by, open_dataset
from sims_image.data.latents import Autoencoder
from sims_image.data.options import Prepare
from sims_image.data.prepare import prepare
from sims_image.data.sheets import sheet_labels
from sims_image.models import adapters, checkpoints
from sims_image.models.autoencoders import inherited
from sims_image.models.denoiser import planned_sampler
from sims_image.models.networks import build
from sims_image.models.presets import AUTO, FLOW, PRESETS, Preset, Recipe
from sims_image.training.options import ADAM, RAW, Train
from sims_image.training.schedules import Timetable, average_note, images_of, ramp_warning, timetable
from sims_image.training.trackers import TRACKERS

#: a run's file of what its next step needs
STATE = "state.pt"


@dataclass(frozen=True)
class Plan:
    """A training run that is known to make sense, before anything is built.

    preset: its name, '' for a checkpoint without one. config: arguments of `sims_image.models.networks.build`. data:
    None in a dry run without. parent: the checkpoint to start from. autoencoder: of latents, as the parent sees them,
    else as the data say. lora: an adapter on it, '' for all weights. adam: the state whose Adam is kept, None for a new
    one. sheets: the steps at which one is drawn. settings: what the run folder records. notes: what the user should
    know.
    """

    preset: str
    recipe: Recipe
    config: dict[str, Any]
    data: Dataset | None
    parent: checkpoints.Summary | None
    autoencoder: Autoencoder | None
    table: Timetable
    seed: int
    sampler: str
    churn: tuple[float, float, float, float] | None
    lora: str
    adam: Path | None
    raw: bool
    sheet: int
    sheets: frozenset[int]
    settings: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def folder(self) -> Path:
        """Where the run goes if no folder is named: the same settings meet the same folder."""
        return Path("runs") / f"train-{self.preset or 'checkpoint'}-{digest(self.settings)}"


def plan(train: Train, data: Dataset | None = None) -> Plan:
    """What ``train`` asks for, checked. data: opened, in place of what ``train`` names.

    Raises `InputError` naming the argument that is wrong, or missing.
    """
    choose("raw", train.raw, RAW)
    if train.track:
        choose("track", train.track, TRACKERS)
    for name in ("seed", "sheet", "workers", "microbatch"):
        if (getattr(train, name) or 0) < 0:
            raise InputError(name, getattr(train, name), "give a whole number of at least 0")
    model = checkpoints.summary(train.from_, argument="from_") if train.from_ else None
    if train.fresh and model is None:
        raise InputError("fresh", True, "name the checkpoint whose architecture it is with `from_`")
    parent = None if train.fresh else model
    name, preset = _preset(train, model)
    check_lora(train.lora, None if parent is None else parent.config)
    adam = state_of(train, parent) if choose("adam", train.adam, ADAM) == "kept" else None
    if model is not None and not train.budget:
        raise InputError("budget", "", "say how many images to fine-tune for, such as 1Mi")
    recipe = recipe_of(train, preset.recipe, fine_tuning=parent is not None, model=model)
    if model is not None:
        check_objective(recipe.objective, model, "from_")
    data = _opened(train, name) if data is None else data
    config = _config(train, preset, recipe, model, data)
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
        "recipe": recipe.record | ({"precision": AUTO} if train.precision == AUTO else {}),
        "network": config,
        "seed": train.seed,
        "snapshots": [step * recipe.batch for step in table.snapshots],
        "log_every": table.log * recipe.batch,
        "state_every": table.state * recipe.batch,
        "raw": train.raw,
        "sheet": rows,
        "sampler": sampler,
        **({"lora": train.lora} if train.lora else {}),
        **({"adam": train.adam} if train.adam != "new" else {}),
    }
    held = None if parent is None else average_note(recipe)
    return Plan(
        preset=name,
        recipe=recipe,
        config=config,
        data=data,
        parent=parent,
        autoencoder=inherited(one.autoencoder for one in (model, data) if one is not None),
        table=table,
        seed=train.seed,
        sampler=sampler,
        churn=preset.churn if not train.sampler else None,
        lora=train.lora,
        adam=adam,
        raw=train.raw == "always" or (train.raw == "auto" and parent is not None),
        sheet=rows,
        sheets=sheets,
        settings=json.loads(json.dumps(settings)),  # as a folder's record reads back
        notes=tuple(
            note
            for note in (ramp_warning(recipe), held, _shape_note(preset, name, data), _edm2_note(recipe, data))
            if note
        ),
    )


def state_of(train: Train, parent: checkpoints.Summary | None) -> Path:
    """The state of the run whose last checkpoint ``parent`` is. Raises `InputError` where there is none."""
    if parent is None or train.lora:
        words = "only a whole network that is trained on from a checkpoint has one: name it with `from_`"
        raise InputError("adam", train.adam, words + (", without `lora`" if train.lora else ""))
    snapshot = parent.path.resolve().parent
    last = max((p.name for p in snapshot.parent.glob("*") if p.name.isdigit()), key=int, default="")
    state = snapshot.parent.parent / STATE
    if snapshot.name != last or not (state.parent / "finished.json").exists() or not state.exists():
        words = f"{parent.path} is not the last checkpoint of a finished run of `train`; name one, or say new"
        raise InputError("adam", train.adam, words)
    return state


def _sheets(table: Timetable, config: dict[str, Any], sampler: str, rows: int) -> frozenset[int]:
    """The steps at which a sheet costs less than a tenth of the training since the last one; the end always."""
    samples = len(sheet_labels(rows, int(config.get("label_dim") or 0), Seed(0))[1])
    steps = (
        10 * samples * planned_sampler(sampler, config).nfe / 3 / table.batch
    )  # forward and backward are three evaluations
    found, last = {table.steps}, 0
    for step in table.snapshots:
        if step - last >= steps:
            found.add(step)
            last = step
    return frozenset(found)


def _preset(train: Train, parent: checkpoints.Summary | None) -> tuple[str, Preset]:
    name = train.preset or ((parent.record.preset or "") if parent is not None else "")
    if not name:
        known = "the checkpoint does not say by which preset it was trained; " if parent is not None else ""
        raise InputError("preset", "", f"{known}choose from {', '.join(PRESETS)}")
    return name, PRESETS[choose("preset", name, PRESETS)]


def check_lora(lora: str, config: dict[str, Any] | None) -> None:
    """Raises `InputError` where a network of ``config`` (None: trained from scratch) cannot have such an adapter."""
    if not lora:
        return
    adapters.parse(lora)
    if config is None:
        raise InputError("lora", lora, "an adapter needs a checkpoint: name one with `from_`")
    with torch.device("meta"):
        adapters.targets_of(lora, build(**config))


def finetuned(preset: str, base: str, **options: Any) -> Recipe:
    """The recipe of fine-tuning ``base`` ('' for one that the preset makes), with options of `Train`."""
    model = checkpoints.summary(base, argument="base") if base else None
    return recipe_of(Train(preset=preset, **options), PRESETS[preset].recipe, fine_tuning=True, model=model)


def check_objective(objective: str, model: checkpoints.Summary, argument: str) -> None:
    """Refuse to continue a checkpoint of another objective. Raises `InputError` naming ``argument``."""
    flow = model.preconditioning == "flow"
    if flow != (objective == FLOW):
        own = FLOW if flow else _trained(model).get("objective", "edm")
        words = f"it was trained with `objective` {own}, which {objective} cannot continue; name one trained with that"
        raise InputError(argument, str(model.path), words)


def _trained(model: checkpoints.Summary | None) -> dict[str, Any]:
    """The recipe that a checkpoint says it was trained by."""
    found = None if model is None else model.record.training.get("recipe")
    return found if isinstance(found, dict) else {}


def recipe_of(train: Train, recipe: Recipe, *, fine_tuning: bool, model: checkpoints.Summary | None = None) -> Recipe:
    """The preset's recipe with what was given in its place, and a flow's ``model`` with its objective and coupling.

    Whole batches that are coupled stay whole. Raises `InputError`.
    """
    given: dict[str, Any] = {
        f.name: getattr(train, f.name)
        for f in fields(Recipe)
        if hasattr(train, f.name) and getattr(train, f.name) not in (None, "")
    }
    if given.get("precision") == AUTO:
        given["precision"] = "float32"  # until it is measured
    for name in ("lr_rampup", "ema_halflife"):
        if name in given:
            given[name] = images_of(name, given[name], recipe.mi)
    if given.get("ema_rampup") == 0 or fine_tuning:
        given["ema_rampup"] = None
    own = (nothing := {"time": "uniform", "coupling": 0}) | recipe.record
    if model is not None and model.preconditioning == "flow" and train.objective in (None, FLOW):
        own |= (nothing | _trained(model) if _trained(model) else {}) | {"objective": FLOW}
        given = {name: own[name] for name in ("objective", "p_mean", "p_std", "time", "coupling")} | given
    flow = given.get("objective", recipe.objective) == FLOW
    if flow != (recipe.objective == FLOW):  # what else belongs to it
        given = ({"p_mean": 0.0, "p_std": 1.0} if flow else nothing) | given
    if flow and train.coupling is None and own["coupling"] == own["batch"]:
        given["coupling"] = given.get("batch", recipe.batch)
    shaped = next((name for name in ("p_mean", "p_std") if getattr(train, name) is not None), None)
    if flow and shaped and given.get("time", recipe.time) == "uniform":
        raise InputError(shaped, given[shaped], "it shapes logit-normal `time`; ask for that, or leave it out")
    return replace(recipe, **given)


def _config(
    train: Train, preset: Preset, recipe: Recipe, parent: checkpoints.Summary | None, data: Dataset | None
) -> dict[str, Any]:
    """The network's arguments, fitted to the data. Raises `InputError` where network and data do not agree."""
    changed = _overrides(train.network)
    if parent is not None:
        config = {**parent.config, **changed}
        if parent.preconditioning not in ("edm", "edm2", "flow", "diffusers"):
            known = "EDM, EDM2, flows and diffusers"
            words = f"its preconditioning is {parent.preconditioning}; training knows those of {known}"
            raise InputError("from_", train.from_, words)
    else:
        shape, classes = (None, None) if data is None else (data.seen, len(data.classes) if preset.classes else 0)
        config = replace(preset, recipe=recipe).config(shape, classes)
        if recipe.augment and "model_type" in config:
            config["augment_dim"] = 9
        config |= changed
        if data is not None and "img_resolution" not in changed:
            _check_size(train, preset, data)
    if recipe.augment and config.get("augment_dim") != 9:
        words = "this network takes no augmentation labels; use `augment` 0"
        raise InputError("augment", recipe.augment, words)
    if data is None:
        return config
    want = (config["img_channels"], config["img_resolution"], config["img_resolution"])
    if data.seen != want:
        raise InputError("data", train.data, f"its images are {by(data.seen)}, the network takes {by(want)}")
    if parent is not None:
        _check_latents(train, parent, data)
    classes = config.get("label_dim", 0)
    wanted = classes or (preset.classes and parent is None and "label_dim" not in changed)
    if wanted and data.labels is None:
        words = (
            "it has no labels, and the network is class-conditional; give labelled data, or an unconditional network"
        )
        raise InputError("data", train.data, words)
    if classes and len(data.classes) != classes:
        raise InputError("data", train.data, f"it has {len(data.classes)} classes, the network has {classes}")
    return config


def _check_latents(train: Train, parent: checkpoints.Summary, data: Dataset) -> None:
    """Refuse pictures, and latents of other pixels or on another scale, than those that the parent makes."""
    own, theirs = parent.autoencoder, data.autoencoder
    if own is None:
        return
    if data.dtype == np.uint8:
        raise InputError(
            "data", train.data, "it holds pictures, and the checkpoint makes latents: `prepare` with `latents`"
        )
    if theirs is None:
        return
    if own.lowest != theirs.lowest:
        words = (
            f"it was encoded from pixels from {theirs.lowest:g} to 1, those of the checkpoint are from {own.lowest:g}"
        )
        raise InputError("data", train.data, f"{words}: `prepare` with the other `latent_space`")
    if not data.moments and (own.mean, own.std) != (theirs.mean, theirs.std):
        raise InputError(
            "data", train.data, "its latents are on another scale than the checkpoint's; give their moments"
        )


def _check_size(train: Train, preset: Preset, data: Dataset) -> None:
    """Refuse images more than twice as large or as small as the preset's: its depth and attention fit others."""
    side, made = data.shape[-1], preset.shape[-1]
    if made <= 2 * side and side <= 2 * made:
        return
    near = [name for name, one in PRESETS.items() if side <= 2 * one.shape[-1] and one.shape[-1] <= 2 * side]
    words = f"its images are {by(data.shape)}, and the preset is for {by(preset.shape)}: " + (
        f"choose {', '.join(near[:4])}, or " if near else ""
    )
    raise InputError("data", train.data, f"{words}train with `network` img_resolution={side} to take it all the same")


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
            raise InputError("network", part, "write name=value, such as dropout=0.1,channel_mult=[1,2]")
        try:
            found[name.strip()] = json.loads(value)
        except ValueError:
            found[name.strip()] = value.strip()
    return found


def _shape_note(preset: Preset, name: str, data: Dataset | None) -> str | None:
    if data is None or data.seen == preset.shape or not preset.network:
        return None
    return f"the images are {by(data.seen)}; preset {name} was made for {by(preset.shape)}"


def _edm2_note(recipe: Recipe, data: Dataset | None) -> str | None:
    if recipe.objective != "edm2" or data is None or data.dtype != np.uint8 or data.shape[-1] != 32:
        return None
    words = (
        "public runs of it on such pictures ended above FID 10; EDM's (cifar10-cond, cifar10-uncond) is made for them"
    )
    return f"EDM2's recipe on pictures of {by(data.shape)}: {words}"


def _opened(train: Train, preset: str) -> Dataset | None:
    """The data set that ``train`` names; of the preset digits, scikit-learn's, made on first use. None in a dry run."""
    if train.data:
        return open_dataset(train.data)
    if train.dry_run:
        return None
    if preset != "digits":
        raise InputError("data", "", "name a data set (see `sims_image prepare`) to train on")
    return prepare(Prepare(source="digits", out="data/digits"))
