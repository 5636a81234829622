"""What the experiments refuse at once, in a dry run as in a real one: before anything is trained, drawn or measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sims_core.errors import InputError, choose
from sims_core.lab.grids import parse_grid
from sims_image.data.dataset import Dataset, by, open_dataset
from sims_image.experiments.options import Experiment, FineTuning, Sims
from sims_image.metrics.features import check_features
from sims_image.metrics.targets import check_real
from sims_image.models import autoencoders, checkpoints
from sims_image.models.autoencoders import Decoder, decoded
from sims_image.models.denoiser import parse_sampler
from sims_image.models.presets import PRESETS, Recipe
from sims_image.processes import choose_device
from sims_image.sampling.engine import PLAIN, Engine
from sims_image.sampling.options import Paired
from sims_image.sampling.seeds import Labels
from sims_image.training.plan import check_lora, finetuned


def omegas_of(text: str, grid: str = "") -> list[float]:
    """The extrapolation strengths above 0 of ``text``; 0, the base, is always measured besides.

    grid: what of ``text`` is the grid; default all. Raises `InputError` for one below 0, or for none above.
    """
    found = [omega for omega in parse_grid("omega", grid or text, low=0, high=1e6) if omega > 0]
    if not found:
        raise InputError("omega", text, "give at least one value above 0, such as 0.5,1,2; 0 is always measured")
    return found


def at_hand(settings: Experiment) -> bool:
    """Whether there are data to check: a dry run also prices what is to run elsewhere."""
    return bool(settings.data) and (not settings.dry_run or Path(settings.data).exists())


def finetuning_of(settings: Experiment) -> dict[str, Any]:
    """The options of `Train` that auxiliaries are fine-tuned with, in place of the preset's."""
    if not isinstance(settings, FineTuning):
        return {}
    given = {"batch": settings.train_batch, "lr": settings.lr, "lr_decay": settings.lr_decay}
    found: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return found | {name: getattr(settings, name) for name in ("lr_rampup", "lora") if getattr(settings, name)}


def engine_of(settings: Experiment) -> Engine:
    """How an experiment's networks are evaluated. Raises `InputError` for an unknown way."""
    pair = settings.pair if isinstance(settings, Paired) else Engine.pair
    return Engine(pair, settings.compile, settings.cuda_graph)


def base_of(settings: Experiment) -> tuple[str, str, int]:
    """(preset, checkpoint or '' if the preset is to be trained, what one Mi counts). Raises `InputError`."""
    if not settings.base:
        raise InputError("base", "", f"name a checkpoint, or a preset to train: {', '.join(PRESETS)}")
    if settings.base in PRESETS and not Path(settings.base).exists():
        return settings.base, "", PRESETS[settings.base].recipe.mi
    if not Path(settings.base).exists() and not {"/", ":"} & set(settings.base):
        choose("base", settings.base, PRESETS)
    found = checkpoints.summary(settings.base, argument="base")
    if not found.record.preset:
        raise InputError("base", settings.base, "the checkpoint does not say by which preset it was trained")
    return found.record.preset, settings.base, found.record.mi


@dataclass(frozen=True)
class Real:
    """The real images of an experiment, opened: what its base is trained on, and held-out ones (None without).

    decoder: makes pixels of latents, None of pixels and where nothing decodes them.
    """

    data: Dataset
    heldout: Dataset | None
    decoder: Decoder | None = None

    @classmethod
    def open(cls, settings: Experiment) -> Real:
        """Those that ``settings`` name. Raises `InputError`, also where the two do not go together."""
        data, decoder = open_dataset(settings.data), None
        if data.dtype != np.uint8:
            _, checkpoint, _ = base_of(settings)
            base = checkpoints.summary(checkpoint).autoencoder if checkpoint else None
            known = autoencoders.chosen("", (base, data.autoencoder))
            decoder = None if known is None else autoencoders.load(known, argument="data")
            if decoder is None and data.moments:
                words = "its latents come without their autoencoder: `prepare` it with `latents`, which names one"
                raise InputError("data", settings.data, words)
        held = further(settings.heldout, "heldout", data, decoder=decoder) if settings.heldout else None
        check_real(data, held, arguments=("data", "heldout"))
        return cls(data, held, decoder)

    @cached_property
    def seen(self) -> Real:
        """As they are measured: pictures in place of latents, where they can be had."""
        held = None if self.heldout is None else decoded(self.heldout, self.decoder, argument="heldout")
        return Real(decoded(self.data, self.decoder), held)


def check_inputs(
    settings: Experiment, real: Real, preset: str, checkpoint: str, config: dict[str, Any], budgets: Sequence[int] = ()
) -> None:
    """Refuse what the run would: data, labels, sampler, features, fine-tuning, device.

    preset, checkpoint: of the base (`sims_image.experiments.plan.base_of`). config: its network's. budgets: of
    auxiliaries, increasing. Raises `InputError`.
    """
    data = real.data
    shape = (config["img_channels"], config["img_resolution"], config["img_resolution"])
    if checkpoint and data.seen != shape:
        raise InputError("data", settings.data, f"its images are {by(data.seen)}, the base's {by(shape)}")
    Labels.parse(settings.labels, int(config.get("label_dim") or 0), data=data, names=data.classes)
    sampler = settings.sampler or PRESETS[preset].sampler
    parse_sampler(sampler).evaluations()  # torchdiffeq may be missing
    check_features(settings.features, weights=settings.weights or None, dataset=real.seen.data)
    try:
        recipe = finetuned(preset, checkpoint, **finetuning_of(settings))
    except InputError as error:
        argument = "train_batch" if error.argument == "batch" else error.argument
        raise InputError(argument, error.value, error.expected) from None
    if isinstance(settings, FineTuning) and settings.lora:
        check_lora(settings.lora, config)
        if engine_of(settings) != PLAIN:
            words = "the adapter is toggled on one network, which is evaluated in turn and not compiled"
            raise InputError("lora", settings.lora, words)
    check_budgets(budgets, recipe)
    choose_device(settings.device)


def check_budgets(budgets: Sequence[int], recipe: Recipe) -> None:
    """Refuse budgets that make one and the same auxiliary, or one that has not moved. Raises `InputError`."""
    steps = [-(-budget // recipe.batch) for budget in budgets]
    for one, other, count in zip(budgets, budgets[1:], steps[1:], strict=False):
        if count == -(-one // recipe.batch):
            words = f"both are {count} {'step' if count == 1 else 'steps'} of `train_batch` {recipe.batch}"
            raise InputError("budget", f"{one:,} and {other:,}", f"{words}, one and the same auxiliary; leave one out")
    if steps and steps[0] == 1 and recipe.lr_rampup:
        words = f"that is one step of `train_batch` {recipe.batch}, whose learning rate is still 0"
        raise InputError("budget", f"{budgets[0]:,}", f"{words} (it ramps up): the auxiliary would be the base")


def further(path: str, argument: str, data: Dataset, least: int = 0, *, decoder: Decoder | None = None) -> Dataset:
    """Another data set of images like those of ``data``. Raises `InputError` naming ``argument``.

    least: images that each draw from it takes. decoder: of latents, whose pictures do as well.
    """
    found = open_dataset(path, argument=argument)
    if decoder is not None and found.dtype == np.uint8:
        data = decoded(data, decoder)
    if found.seen != data.seen:
        raise InputError(argument, path, f"its images are {by(found.seen)}, those of `data` {by(data.seen)}")
    if len(found) < least:
        raise InputError(argument, path, f"it holds {len(found)} images and each draw takes {least}")
    return found


def parse_widths(argument: str, text: str) -> tuple[float, ...]:
    """Read a list of relative widths, '' for none. Raises `InputError`."""
    if not text:
        return ()
    found = parse_grid(argument, text, low=0.01, high=0.28)
    return tuple(found)


def grids_of(settings: Sims, preset: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The grids of both options. Raises `InputError`, also where the preset keeps no power-function averages."""
    found = []
    for argument, text in (("base_ema", settings.base_ema), ("auxiliary_ema", settings.auxiliary_ema)):
        found.append(parse_widths(argument, text))
        if text and PRESETS[preset].recipe.ema != "power":
            raise InputError(argument, text, f"preset {preset} keeps no power-function averages; leave it out")
    return found[0], found[1]
