"""What the experiments beyond Algorithm 1 share: their options, the bench that measures, tables, what a run will cost.

    OUT/fit-*, sample-*, finetune-*, ...   models and data sets, named by what decides them: found again, never remade
    OUT/cells/                             one measured model per file
    OUT/runs/ARM/TRIAL-NN.json             which of them make up one generation (dose, round) of an arm
    OUT/report/                            tables (CSV, parquet), figures, sample grids, results.json

The same command resumes a stopped one; another one in the same --out makes only what is new.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sims_core.algorithm import AUXILIARY_DATA
from sims_core.errors import InputError, choose
from sims_core.lab import report
from sims_core.lab.runs import first_provenance, write_json
from sims_core.lab.study import title_of, write_tables
from sims_core.lab.style import save, style
from sims_core.seeds import Seed
from sims_image.data.dataset import Dataset
from sims_image.data.sheets import write_sheet
from sims_image.experiments.arms import half_interval
from sims_image.experiments.bench import Bench
from sims_image.experiments.checks import Real, at_hand, base_of, check_inputs, engine_of
from sims_image.experiments.options import (
    AuxiliaryData,
    Consuming,
    Extrapolating,
    Laboratory,
    Leaderboard,
    Loop,
    Retrain,
    Retraining,
)
from sims_image.experiments.plan import make_learner
from sims_image.learner import WEIGHTS, ImageData, ImageLearner, ImageModel
from sims_image.metrics.compare import METRICS
from sims_image.models import checkpoints
from sims_image.models.autoencoders import decoded
from sims_image.models.presets import FLOW, PRESETS, Recipe
from sims_image.processes import Processes
from sims_image.sampling.seeds import Seeds
from sims_image.training.objectives import OBJECTIVES
from sims_image.training.options import Train
from sims_image.training.plan import check_objective
from sims_image.training.plan import plan as plan_training
from sims_image.training.schedules import images_of


@dataclass(frozen=True)
class Sizes:
    """Numbers of images: measured, |D_s|, a training from scratch, |D_r|, an auxiliary's samples and budget (0 where
    there are none).
    """

    n: int
    synthetic: int
    fit: int
    real: int
    auxiliary: int = 0
    budget: int = 0


@dataclass(frozen=True)
class Checked:
    """Options that make sense. training: of a model from scratch; recipe, config: its recipe, the base's network.

    real, more: opened images, and further ones of some experiments; None in a dry run without.
    """

    settings: Laboratory
    preset: str
    checkpoint: str
    sizes: Sizes
    training: Train
    recipe: Recipe
    config: dict[str, Any]
    real: Real | None
    more: Dataset | None = None


def retraining_of(settings: Retraining, mi: int) -> dict[str, Any]:
    """Options of `Train` for a training that starts from the previous model. Raises `InputError`."""
    found: dict[str, Any] = {"batch": settings.retrain_batch}
    if settings.retrain_budget:
        images = images_of("retrain_budget", settings.retrain_budget, mi)
        if images < 1:
            raise InputError("retrain_budget", settings.retrain_budget, "give at least 1 image")
        found |= {"budget": f"{images / 1000:.9g}k", "snapshots": str(images)}
    if settings.retrain_lr is not None:
        found |= {"lr": settings.retrain_lr, "lr_rampup": "0", "lr_decay": "constant"}
    if isinstance(settings, Retrain):
        found["adam"] = settings.adam
    return found


def check(settings: Laboratory, real: Real | None = None) -> Checked:
    """Options and, where they are at hand, data, checked; nothing is built. real: opened before, for the same options.

    Raises `InputError`.
    """
    if not settings.data and not (settings.dry_run and settings.images):
        raise InputError("data", "", "name the data set of real images (see `sims_image prepare`)")
    if isinstance(settings, AuxiliaryData):
        choose("auxiliary_data", settings.auxiliary_data, AUXILIARY_DATA)
    choose("auxiliary_weights", settings.auxiliary_weights, WEIGHTS)
    choose("labels", settings.labels or "data", ("data", "uniform", "balanced"))
    if settings.objective:
        choose("objective", settings.objective, OBJECTIVES)
    for name, least in (("trials", 1), ("batch", 1), ("seed", 0)):
        if getattr(settings, name) < least:
            raise InputError(name, getattr(settings, name), f"give a whole number of at least {least}")
    engine_of(settings)
    preset, checkpoint, mi = base_of(settings)
    recipe = PRESETS[choose("base", preset, PRESETS)].recipe
    if real is None and at_hand(settings):
        real = Real.open(settings)
    count = settings.images if real is None else len(real.data)
    if not count:
        raise InputError("images", 0, f"{settings.data} is not there; say how many real images it will have")
    given = {"n": settings.n, "synthetic": (isinstance(settings, Consuming) and settings.synthetic) or str(count)}
    given |= {"fit": settings.fit_budget or str(recipe.images)}
    if isinstance(settings, Extrapolating):
        given |= {"auxiliary": settings.auxiliary_size or given["synthetic"], "budget": settings.budget}
    names = {"auxiliary": "auxiliary_size", "fit": "fit_budget"}
    counts = {k: images_of(names.get(k, k), v, mi) for k, v in given.items()}
    for name, found in counts.items():
        least = 20 if name == "n" else 1
        if found < least:
            raise InputError(names.get(name, name), given[name], f"give at least {least} images")
    held = checkpoints.summary(checkpoint, argument="base") if checkpoint else None
    objective = settings.objective or (FLOW if held is not None and held.preconditioning == "flow" else None)
    if held is not None:
        check_objective(objective or recipe.objective, held, "base")
    training = Train(
        preset=preset,
        device=settings.device,
        network="" if checkpoint else settings.network,
        objective=objective,
        budget=f"{counts['fit'] / 1000:.9g}k" if settings.fit_budget else "",
        lr=settings.fit_lr,
        sheet=0,
        snapshots=str(counts["fit"]) if recipe.ema == "halflife" else "",
    )
    dry = replace(training, data="" if real is None else settings.data, dry_run=True)
    # what was imported, and a flow, is trained from its checkpoint alone
    if not PRESETS[preset].network or (held is not None and held.preconditioning == "flow"):
        dry = replace(dry, from_=checkpoint, budget=training.budget or recipe.budget)
    planned = plan_training(dry, None if real is None else real.data)
    config = planned.config if held is None else held.config
    if real is not None:
        check_inputs(settings, real, preset, checkpoint, config)
    sizes = Sizes(real=count, **counts)
    return Checked(settings, preset, checkpoint, sizes, training, planned.recipe, config, real)


class Lab:
    """An experiment at work: the learner, the bench, the real data, and the rows measured so far."""

    def __init__(self, checked: Checked, processes: Processes) -> None:
        settings, sizes = checked.settings, checked.sizes
        self.checked, self.settings, self.sizes, self.processes = checked, settings, sizes, processes
        guide = settings.guide_network if isinstance(settings, Loop | Leaderboard) else ""
        self.learner: ImageLearner = make_learner(
            settings,
            checked.preset,
            checked.checkpoint,
            processes,
            training=checked.training,
            retraining=retraining_of(settings, checked.recipe.mi) if isinstance(settings, Retraining) else {},
            rebuilding={"network": guide or settings.network},
            start=settings.start if isinstance(settings, Retrain) else "",
        )
        assert checked.real is not None  # or `check` has refused
        self._real, self.rows, self.sheets = checked.real, list[dict[str, Any]](), dict[str, dict[str, Path | bytes]]()
        self.data: ImageData = self.fitting(ImageData.of(checked.real.data))
        self.folder = Path(settings.out)

    @property
    def labelled(self) -> Dataset:
        """The real images as they are measured, with the labels that they came with."""
        return self._real.seen.data

    def seen(self, data: ImageData) -> Dataset:
        """A model's samples as they are measured."""
        return decoded(data.open(), self._real.decoder)

    @cached_property
    def bench(self) -> Bench:
        """What measures; made when first asked for, since it computes the real images' features."""
        return Bench(self.settings, self.learner, self._real, self.processes)

    def fitting(self, data: ImageData) -> ImageData:
        """The data without labels that an unconditional network would not give its samples."""
        opened = data.open()
        if opened.labels is None or self.checked.config.get("label_dim"):
            return data
        return self.learner.subset(data, np.arange(len(opened)), labelled=False)

    def trial(self, number: int) -> Seed:
        """The seed of a trial."""
        return Seed(self.settings.seed).child("trial", number)

    def quality(
        self,
        model: ImageModel,
        trial: int,
        *,
        doubled: bool = False,
        how: Mapping[str, Any] = MappingProxyType({}),
        **identity: Any,
    ) -> dict[str, Any]:
        """Measure a model on the trial's images: a row of ``identity``, the metrics, n and NFE. how: of the bench."""
        cell = self.bench.measure(model, Seeds.span(trial * self.sizes.n, self.sizes.n), doubled=doubled, **how)
        found = cell["report"][self.bench.target]
        row = {**identity, "trial": trial, "n": self.sizes.n, "nfe": int(cell["settings"]["nfe"])}
        for name in METRICS:
            if name in found:
                row |= {name: found[name]["value"], f"{name}_se": found[name]["se"]}
        for space, other in cell.get("also", {}).items():
            there = other[self.bench.target]
            row |= {f"{space}_{name}": there[name]["value"] for name in METRICS[:3] if name in there}
        floor = cell["report"]["floor" if self.bench.target == "metrics" else "heldout_floor"]
        same = floor is not None and floor["n"] == self.sizes.n
        row["floor"] = floor["metrics"]["frechet"]["value"] if floor is not None and same else None
        self.rows.append(row)
        if self.processes.first:
            words = ", ".join(f"{k} {v}" for k, v in identity.items())
            print(f"trial {trial}, {words}: {self.bench.reference.extractor.metric} {row['frechet']:.4g}")
        return row

    def note(self, arm: str, trial: int, number: int, models: dict[str, ImageModel | None], **facts: Any) -> None:
        """Write down which folders one generation of an arm consists of."""

        def save() -> None:
            place = self.folder / "runs" / arm.replace(" ", "-").replace("=", "")
            place.mkdir(parents=True, exist_ok=True)
            told = {k: None if m is None else _brief_model(m, self.folder) for k, m in models.items()}
            write_json(place / f"{trial}-{number:02d}.json", {**plain(facts), **told})

        self.processes.together(save)

    def grid(self, model: ImageModel, name: str, frame: str, caption: str, *, count: int = 32, **how: Any) -> None:
        """A sheet of a model's first images, ``OUT/report/grid-NAME.png``. Nothing for latents. how: of the bench.

        frame: the sheets that the page shows with it (`sims_core.lab.report.Section.frames`).
        """
        if not self.processes.first or not self.bench.pictures:
            return
        path = self.report / f"grid-{name}.png"
        self.sheets.setdefault(frame, {})[caption] = path
        if not path.exists():
            write_sheet(path, self.bench.drawn(model, Seeds.span(0, count), **how), 8)

    @property
    def report(self) -> Path:
        """The report's folder."""
        folder = self.folder / "report"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def write(self, tables: dict[str, pd.DataFrame], figures: dict[str, Figure], words: Sequence[str]) -> Path:
        """Write tables, figures, ``results.json`` and ``report.html``; returns the report's folder."""
        write_tables(self.report, tables)
        with style():
            drawn = [path for name, figure in figures.items() for path in save(figure, self.report / name)]
        used = self.bench.reference.heldout or self.bench.reference
        results: dict[str, Any] = {
            "conclusion": list(words),
            "metric": self.bench.reference.extractor.metric,
            "reference": {"name": used.name, "images": used.count, "sha256": used.sha256},
            "data": {"name": self.data.open().name, "images": self.sizes.real, "sha256": self.data.sha256},
            "settings": asdict(self.settings),
            "provenance": first_provenance(self.report / "results.json", self.settings),
        }
        write_json(self.report / "results.json", results)
        told = {"reference": f"{used.name}, {used.count:,} images", **asdict(self.settings)}
        told.pop("out")  # equal runs write equal pages, wherever they are
        title = "Samples from the same seeds"
        samples = report.Section(title, frames=self.sheets, compared="base" in self.sheets) if self.sheets else None
        report.write_report(
            self.report / "report.html",
            title_of(self.settings.verb, type(self.settings)),
            report.sections((), drawn, tables, told, samples),
            conclusion=words,
            record=results["provenance"],
            terms={},
        )
        return self.report


def plain(content: Any) -> Any:
    """JSON-able: numbers that are not finite become words."""
    if isinstance(content, dict):
        return {key: plain(value) for key, value in content.items()}
    return str(content) if isinstance(content, float) and not math.isfinite(content) else content


def _brief_model(model: ImageModel, root: Path) -> dict[str, Any]:
    def short(path: Path) -> str:
        return str(path.relative_to(root) if path.is_relative_to(root) else path)

    other = None if model.auxiliary is None else short(model.auxiliary)
    return {"base": short(model.base), "auxiliary": other, "omega": model.omega, "guidance": model.kind}


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high): Student's 95% interval over trials; a single trial has none (nan)."""
    mean = float(np.mean(values))
    half = half_interval(values) if len(values) > 1 else float("nan")
    return mean, mean - half, mean + half


def summarise(rows: pd.DataFrame, by: Sequence[str], values: Sequence[str]) -> pd.DataFrame:
    """One row for each combination of ``by``, in order of appearance: mean and interval over the trials."""
    found = []
    for key, part in rows.groupby(list(by), sort=False, dropna=False):
        row = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True)) | {"trials": len(part)}
        for name in values:
            mean, low, high = mean_interval(part[name].tolist())
            row |= {name: mean, f"{name}_low": low, f"{name}_high": high}
        found.append(row)
    return pd.DataFrame(found)


def said(row: Any, name: str) -> str:
    """A mean and its interval in words; the mean alone where there is none."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:.3g}" if low != low else f"{row[name]:.3g} ({low:.3g} .. {high:.3g})"
