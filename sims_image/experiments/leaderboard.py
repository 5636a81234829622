"""SIMS against its rivals and controls, each from the same bases, with predictions made beforehand.

For every trial: a base from scratch, its samples, an auxiliary; the outlook from samples of the two on search seeds;
omega, the retuned sampler and the rivals' strengths chosen on those seeds; then all of them measured on fresh ones.
What is compared is paired by trial, so that intervals are over trainings (`docs/leaderboard.md`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sims_core.algorithm import AUXILIARY_DATA, GUIDE_SHARE, METHODS, Given
from sims_core.errors import InputError, choose, reason
from sims_core.forecast import Angle, outlook
from sims_core.guidance import FULL, GuidanceSchedule
from sims_core.lab.runs import parse_json
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_image.data.stores import Images
from sims_image.experiments import leaderboard_report
from sims_image.experiments.bench import Bench
from sims_image.experiments.checks import omegas_of
from sims_image.experiments.costs import ledger
from sims_image.experiments.halving import chosen, in_words, planned, retunings, rounds
from sims_image.experiments.laboratory import Checked, Lab, check
from sims_image.experiments.loop import bound
from sims_image.experiments.options import Leaderboard
from sims_image.experiments.sims_report import grids
from sims_image.learner import WEIGHTS, ImageModel
from sims_image.metrics.compare import METRICS
from sims_image.metrics.features import check_features
from sims_image.metrics.loss import heldout_loss
from sims_image.models import checkpoints
from sims_image.models.autoencoders import encoded
from sims_image.models.cost import evaluation_bytes, evaluation_flops
from sims_image.models.denoiser import parse_sampler
from sims_image.models.presets import PRESETS
from sims_image.processes import Processes
from sims_image.sampling.guided import Model
from sims_image.sampling.seeds import Seeds
from sims_image.training.estimate import measure as measure_step
from sims_image.training.plan import plan as plan_training
from sims_image.training.schedules import images_of

#: the search seeds of every trial lie above those of all measuring
_SEARCH = 10**12
#: images by which seconds are measured
_TIMED = 128
#: arms whose images are shown, from the same seeds
SHOWN = ("base", "2x steps", "auxiliary alone", "SIMS")


@dataclass(frozen=True)
class Variant:
    """An auxiliary: what of the main one is changed. size, budget: images; cold: from scratch, not from the base."""

    name: str
    size: int
    budget: int
    reading: str
    weights: str
    cold: bool = False


@dataclass(frozen=True)
class Planned:
    """A checked comparison. also: further features and of how many images. wide: settings of the wider base's network,
    and the images that it sees; None without. beside: tables 'models' and 'predictions' of other runs, by folder.
    """

    checked: Checked
    omegas: tuple[float, ...]
    search: int
    cheaper: tuple[GuidanceSchedule, ...]
    also: Mapping[str, int]
    variants: tuple[Variant, ...]
    wide: tuple[dict[str, Any], int] | None
    arms: frozenset[str]
    beside: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]]

    def joined(self, rows: pd.DataFrame, predictions: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The tables of this run with those of the runs beside it, in the order of trials.

        Raises `InputError` for one that measured other arms, or real images at another distance: with other features.
        Other auxiliaries (`variants`) need not be the same.
        """
        for folder, tables in self.beside.items():
            mine, theirs = (set(table.loc[table["method"] != "variant", "arm"]) for table in (rows, tables[0]))
            if strange := sorted(mine ^ theirs):
                expected = f"one of the runs alone has '{strange[0]}'; give both the same settings"
                raise InputError("beside", folder, expected)
            here, there = (table.loc[table["method"] == "real", "frechet"].mean() for table in (rows, tables[0]))
            if not np.isclose(here, there, rtol=1e-3, equal_nan=True):
                expected = f"real images are at {there:.4g} there and {here:.4g} here: measured with other features"
                raise InputError("beside", folder, expected)
        every = [(rows, predictions), *self.beside.values()]
        one, two = (pd.concat(parts).sort_values("trial", kind="stable") for parts in zip(*every, strict=True))
        return one.reset_index(drop=True), two.reset_index(drop=True)


@dataclass(frozen=True)
class Arm:
    """A model to measure. seen: images that it was trained on after the base's; drawn: images drawn for that; chosen:
    network evaluations spent on choosing its settings. equal: whether it is a control at no more evaluations than SIMS
    and without another network, which SIMS is compared with.
    """

    name: str
    model: ImageModel
    method: str
    sampler: Sampler | None = None
    schedule: GuidanceSchedule | None = None
    omega: float | None = None
    seen: int = 0
    drawn: int = 0
    chosen: int = 0
    equal: bool = False


#: models besides base, SIMS and the auxiliary alone, in the order of the table
ARMS = (
    "2x", "4x", "retuned", "continued", "wider", "iterated", "cheaper", "neon", "autoguidance", "rebuilt",
    "random",
)  # fmt: skip


def plan(settings: Leaderboard) -> Planned:
    """What is asked for, checked. Raises `InputError`."""
    checked = check(settings)
    mi = checked.recipe.mi
    search = images_of("search", settings.search, mi)
    if search < 40:
        raise InputError("search", settings.search, "give at least 40 images")
    if not 0 < settings.fixed < 1e6:
        raise InputError("fixed", settings.fixed, "give an omega above 0")
    names = [part.strip() for part in settings.arms.split(",")] if settings.arms else list(ARMS)
    arms = frozenset(choose("arms", name, ARMS) for name in names)
    parts = filter(None, map(str.strip, settings.cheaper.split(",")))
    cheaper = tuple(dict.fromkeys(GuidanceSchedule.parse(part, argument="cheaper") for part in parts))
    also = {}
    for part in filter(None, (part.strip() for part in settings.also.split(","))):
        name, count = _features(part)
        data = None if checked.real is None else checked.real.seen.data
        if data is not None:
            try:
                check_features(name, dataset=data)
            except InputError as error:
                raise InputError("also", error.value, error.expected) from None
        if name in also:
            raise InputError("also", settings.also, f"it names {name} twice: give one number of images")
        also[name] = images_of("also", count, mi) if count else 0
    main = Variant("main", checked.sizes.auxiliary, checked.sizes.budget, settings.auxiliary_data,
                   settings.auxiliary_weights)  # fmt: skip
    variants = (
        main,
        *(_variant(part, main, mi) for part in filter(None, map(str.strip, settings.variants.split(";")))),
    )
    return Planned(checked, tuple(omegas_of(settings.omega)), search, cheaper, also, variants,
                   _wide(settings, checked, "wider" in arms), arms, _beside(settings))  # fmt: skip


#: settings in which runs of one comparison may differ
_FREE = {"out", "dry_run", "device", "workers", "scheduler", "compile", "trials", "first_trial", "beside", "data",
         "heldout", "variants"}  # fmt: skip


def _beside(settings: Leaderboard) -> dict[str, tuple[pd.DataFrame, pd.DataFrame]]:
    """'models' and 'predictions' of the runs that ``--beside`` names, by folder. Raises `InputError`."""
    found: dict[str, tuple[pd.DataFrame, pd.DataFrame]] = {}
    mine = set(settings.numbers)
    for name in filter(None, (part.strip() for part in settings.beside.split(","))):
        try:
            models, told = (pd.read_csv(Path(name, f"{table}.csv"), engine="python")
                            for table in ("models", "predictions"))  # fmt: skip
            theirs = {int(trial) for trial in models["trial"]}
            if not {"arm", "method", "frechet"} <= set(models) or not {"variant", "trial"} <= set(told):
                raise ValueError("columns are missing")
        except (OSError, ValueError, KeyError) as error:
            expected = f"give the report folder of a leaderboard, with models.csv and predictions.csv ({reason(error)})"
            raise InputError("beside", name, expected) from None
        if both := mine & theirs:
            expected = f"it has trial {min(both)} too: say with `first_trial` where this run begins"
            raise InputError("beside", name, expected)
        record = Path(name, "results.json")
        there = parse_json("beside", str(record), record.read_bytes()) if record.exists() else {}
        for key, value in dict(there.get("settings") or {}).items():
            if key not in _FREE and value != getattr(settings, key, value):
                raise InputError("beside", name, f"its {key} is {value!r} and not {getattr(settings, key)!r}")
        mine |= theirs
        found[name] = (models, told)
    return found


def _features(part: str) -> tuple[str, str]:
    """(name, count or '') of NAME, NAME:N, lite0:SIDE or lite0:SIDE:N: a side is a number below 1025 without unit."""
    kind, *rest = part.split(":")
    if kind == "lite0" and rest and rest[0].isdigit() and int(rest[0]) <= 1024:
        kind = f"{kind}:{rest.pop(0)}"
    return kind, ":".join(rest)


def _variant(text: str, main: Variant, mi: int) -> Variant:
    key, _, value = (part.strip() for part in text.partition("="))
    if key in ("size", "budget"):
        changed: dict[str, Any] = {key: images_of("variants", value, mi)}
        return replace(main, name=text, **changed)
    if key == "data":
        return replace(main, name=text, reading=choose("variants", value, AUXILIARY_DATA))
    if key == "weights":
        return replace(main, name=text, weights=choose("variants", value, WEIGHTS))
    if text == "cold":
        return replace(main, name=text, cold=True)
    raise InputError("variants", text, "write size=N, budget=N, data=READING, weights=ema or raw, or cold")


def _wide(settings: Leaderboard, checked: Checked, asked: bool) -> tuple[dict[str, Any], int] | None:
    """Another network, and images that cost as many operations as training the base, drawing D_s and fine-tuning."""
    if not settings.wide_network:
        if settings.arms and asked:
            raise InputError("wide_network", "", "the arm 'wider' needs its arguments, such as model_channels=16")
        return None
    if not asked:
        raise InputError("wide_network", settings.wide_network, "`arms` leaves 'wider' out: leave this out too")
    if checked.checkpoint:
        raise InputError("wide_network", settings.wide_network, "a wider base needs a preset as `base`: leave this out")
    network = ",".join(filter(None, (settings.network, settings.wide_network)))
    data = "" if checked.real is None else settings.data
    train = replace(checked.training, network=network, data=data, dry_run=True)
    config = plan_training(train, None if checked.real is None else checked.real.data).config
    own, other = (measure_step(one, checked.recipe).flops for one in (checked.config, config))
    sizes, name = checked.sizes, settings.sampler or PRESETS[checked.preset].sampler
    drawn = sizes.auxiliary * parse_sampler(name).nfe * evaluation_flops(checked.config)
    return {"network": network}, max(1, round(((sizes.fit + sizes.budget) * own + drawn) / other))


class Board(Lab):
    """The comparison at work."""

    def __init__(self, planned: Planned, processes: Processes) -> None:
        super().__init__(planned.checked, processes)
        self.planned = planned
        assert isinstance(self.settings, Leaderboard)
        self.asked = self.settings
        self.predictions, self.seconds = list[dict[str, Any]](), list[dict[str, Any]]()
        self.samples = dict[str, Images]()
        self._known_losses = dict[ImageModel, NDArray[np.float64]]()

    @cached_property
    def bench(self) -> Bench:
        """With the further features."""
        return Bench(self.settings, self.learner, self._real, self.processes, also=self.planned.also)

    def search_seeds(self, trial: int) -> Seeds:
        """Of a trial; no image of any confirmation."""
        return Seeds.span(_SEARCH + trial * self.planned.search, self.planned.search)

    def best(
        self, candidates: Sequence[Any], ask: Callable[[Any], tuple[ImageModel, dict[str, Any]]], trial: int, nfe: int
    ) -> tuple[Any, int]:
        """(the best of them on the search seeds, network evaluations that took), by successive halving.

        ask: the model of a candidate, and how it is measured.
        """
        turns = rounds(len(candidates), self.search_seeds(trial))
        return chosen(candidates, turns, self.bench.trying(ask), self.bench.distance, nfe)

    def strength(
        self,
        make: Callable[[float], ImageModel],
        trial: int,
        *,
        schedule: GuidanceSchedule | None = None,
        networks: int = 2,
    ) -> tuple[float, int]:
        """The best omega of the grid, and what finding it took. A schedule that guides less is tried at twice omega."""
        omegas = list(self.planned.omegas)
        if schedule is not None and schedule.interval is not None:
            omegas = [2 * omega for omega in omegas]
        sampler = self.bench.sampler(make(omegas[0]).load())
        nfe = sampler.nfe if networks == 1 else sum(sampler.evaluations(schedule or FULL))
        return self.best(omegas, lambda w: (make(w), {"schedule": schedule, "floor": False}), trial, nfe)

    # ------------------------------------------------------------------ making

    def auxiliary(self, base: ImageModel, variant: Variant, seed: Seed) -> ImageModel:
        """A variant's. Its samples are the first ones of those that the main auxiliary's seed draws."""
        learner = replace(self.learner, weights=variant.weights)
        name = "rebuilt" if variant.cold else "sims"
        budget = self.sizes.fit if variant.cold else variant.budget
        reading = AUXILIARY_DATA[variant.reading]
        method = METHODS[name].bind(n_synthetic=variant.size, budget=budget, omega=1.0, auxiliary_data=reading)
        made = method(Given(learner, base=base), self.data, seed=seed).auxiliary
        assert isinstance(made, ImageModel)
        return made

    def foretell(self, variant: Variant, base: ImageModel, auxiliary: ImageModel, trial: int) -> dict[str, Any]:
        """What samples of base and auxiliary on the search seeds say of SIMS, before any guidance."""
        seeds = self.search_seeds(trial)
        cells = [self.bench.measure(model, seeds, features=True, floor=False) for model in (base, auxiliary)]
        real = (self.bench.reference.heldout or self.bench.reference).side.kept
        assert real is not None
        seen = outlook(real, *(np.load(cell["features"]) for cell in cells))
        told: dict[str, Any] = {"variant": variant.name, "trial": trial}
        for part in ("distributions", "means", "covariances"):
            angle: Angle = getattr(seen, part)
            ends = {"": angle.cosine.value, "_low": angle.cosine.low, "_high": angle.cosine.high}
            told |= {f"{part}_cosine{end}": value for end, value in ends.items()}
        angle = seen.distributions
        told |= {"error_seen": angle.error_seen, "drift_seen": angle.drift_seen, "drift_to_error": angle.ratio}
        told |= {"omega": np.nan, "omega_low": np.nan, "omega_high": np.nan}
        if angle.omega is not None:
            told |= {"omega": angle.omega.value, "omega_low": angle.omega.low, "omega_high": angle.omega.high}
        value = self.bench.value(cells[0])
        share = max(0.0, 1 - angle.left(self.asked.fixed)) if angle.error_seen else 0.0
        expected = share * value["value"]
        half = 1.96 * value["se"] * (len(seeds) / self.sizes.n) ** 0.5
        told |= {"removable": angle.share.value, "left_at_fixed": angle.left(self.asked.fixed)}
        told |= {"base_search": value["value"], "base_search_se": value["se"], "expected_gain": expected}
        told["expected_over_half_interval"] = expected / half if half else np.nan
        if self.processes.first:
            print(f"trial {trial}, {variant.name}: {seen.sentence} Expected: {expected:.3g} of {value['value']:.3g}.")
        return told

    def confirm(self, arm: Arm, trial: int) -> dict[str, Any]:
        """Measure an arm on the trial's fresh seeds; its row, with what it costs."""
        how = {"sampler": arm.sampler, "schedule": arm.schedule, "also": True, "floor": arm.name in ("base", "SIMS")}
        model = arm.model.load(device=self.processes.device)
        loaded = model if arm.schedule is None else replace(model, schedule=arm.schedule)
        sampler = arm.sampler or self.bench.sampler(model)
        first, second = loaded.evaluations(sampler)
        paths = [arm.model.base, *([arm.model.auxiliary] if loaded.other is not None else [])]
        configs = [checkpoints.summary(path).config for path in paths if path is not None]
        flops = [*map(evaluation_flops, configs), 0.0]
        held = [n for n in (model.network, model.other) if n is not None]
        # a schedule is no denoiser of its own: it has no loss
        losses = self._losses(arm.model, model) if arm.schedule is None else np.full(2, np.nan)
        told: dict[str, Any] = {"method": arm.method, "omega": arm.omega, "sampler": in_words(sampler),
                "seen": arm.seen, "drawn": arm.drawn, "chosen": arm.chosen, "equal": arm.equal,
                "megaflops": (first * flops[0] + second * flops[1]) / 1e6, "loss": float(losses.mean()),
                "loss_se": float(losses.std(ddof=1) / len(losses) ** 0.5),
                "megabytes": evaluation_bytes(configs, self.settings.batch) / 1e6,
                "parameters": sum(p.numel() for n in held for p in n.parameters())}  # fmt: skip
        row = self.quality(arm.model, trial, how=how, arm=arm.name)
        row |= told
        if trial == self.settings.numbers[0]:
            self.seconds.append({"arm": arm.name, "seconds_a_thousand": self._timed(arm)})
            self._show(arm)
        return row

    def _losses(self, model: ImageModel, loaded: Model) -> NDArray[np.float64]:
        """The held-out losses of a model, once whatever it is sampled by."""
        if model not in self._known_losses:
            real = encoded(self._real.heldout or self._real.data, self._real.decoder)
            root = Seed(self.settings.seed).child("loss")
            self._known_losses[model] = heldout_loss(loaded, real, seed=root)
        return self._known_losses[model]

    def real_row(self, trial: int) -> None:
        """Real images measured as if they were generated, as many as of a model or as there are: what is best."""
        held = self.bench.target == "against_heldout"
        row: dict[str, Any] = {"arm": "real images", "method": "real", "equal": False, "trial": trial}
        for name, (of, most) in {"": (self.bench.reference, 0), **self.bench.also}.items():
            count = min(most or self.sizes.n, self.sizes.n)
            floor = of.heldout_floor(count) if held else of.floor(count)
            if floor is not None:
                kept = METRICS if not name else METRICS[:3]
                row |= {f"{name}_{key}".lstrip("_"): floor.metrics[key].value for key in kept if key in floor.metrics}
                row.setdefault("n", floor.n)
        self.rows.append(row)

    def _show(self, arm: Arm) -> None:
        """Keep the first images of a few arms, for the strips of the report."""
        if self.bench.pictures and self.processes.first and arm.name in SHOWN:
            seeds = Seeds.span(0, min(24, self.sizes.n))
            self.samples[arm.name] = self.bench.drawn(arm.model, seeds, sampler=arm.sampler, schedule=arm.schedule)

    def _timed(self, arm: Arm) -> float:
        """Seconds that 1,000 images take here."""
        began = time.perf_counter()
        self.bench.drawn(arm.model, Seeds.span(_SEARCH, _TIMED), sampler=arm.sampler, schedule=arm.schedule)
        return 1000 / _TIMED * (time.perf_counter() - began)


def conduct(settings: Leaderboard, processes: Processes) -> tuple[Path, Sequence[str]] | None:
    """The whole experiment. Returns the report's folder and its words in the first process. Raises `InputError`."""
    planned = processes.together(lambda: plan(settings)) or plan(settings)
    board = Board(planned, processes)
    for trial in settings.numbers:
        run_trial(board, trial)
    if not processes.first:
        return None
    tables = leaderboard_report.tables(*planned.joined(pd.DataFrame(board.rows), pd.DataFrame(board.predictions)))
    words = leaderboard_report.words(tables, board)
    figures = leaderboard_report.figures(tables, board, board.samples)
    metric = board.bench.reference.extractor.metric
    board.sheets |= grids(leaderboard_report.arms(tables["leaderboard"]), board.samples, metric)
    folder = board.report
    (folder / "leaderboard.md").write_text(leaderboard_report.markdown(tables["leaderboard"], metric, board.bench.also))
    pd.DataFrame(board.seconds).to_csv(folder / "seconds.csv", index=False)  # not of the tables: no two runs are alike
    board.write(tables, figures, words)
    return folder, words


def run_trial(board: Board, trial: int) -> None:
    """One base and all that is made of it: predictions of every auxiliary first, then everything on fresh seeds."""
    seed, asked = board.trial(trial), board.asked
    base = METHODS["standard"].bind()(board.learner, board.data, seed=seed).base
    made = {variant: board.auxiliary(base, variant, seed) for variant in board.planned.variants}
    told = {variant: board.foretell(variant, base, auxiliary, trial) for variant, auxiliary in made.items()}
    main = board.planned.variants[0]
    rows = {arm.name: board.confirm(arm, trial) for arm in arms(board, base, made[main], trial)}
    board.real_row(trial)
    parts: dict[str, ImageModel | None] = {"base": base}
    for variant, auxiliary in made.items():
        row, parts[variant.name] = told[variant], auxiliary

        def guided(omega: float, auxiliary: ImageModel = auxiliary) -> ImageModel:
            return board.learner.extrapolate(base, auxiliary, omega)

        if variant is main:
            best, at_best, at_fixed = rows["SIMS"]["omega"], rows["SIMS"], rows[f"SIMS, omega = {asked.fixed:g}"]
        else:
            best = board.strength(guided, trial)[0]
            what: dict[str, Any] = {"how": {"floor": False}, "method": "variant"}
            found = {
                w: board.quality(guided(w), trial, arm=f"SIMS, {variant.name}, omega = {w:g}", omega=w, **what)
                for w in dict.fromkeys((best, asked.fixed))
            }
            at_best, at_fixed = found[best], found[asked.fixed]
        zero = rows["base"]["frechet"]
        row |= {"found_omega": best, "base": zero, "at_found": at_best["frechet"], "at_fixed": at_fixed["frechet"]}
        row |= {"gain_found": 1 - at_best["frechet"] / zero, "gain_fixed": 1 - at_fixed["frechet"] / zero}
        board.predictions.append(row)
    board.note("leaderboard", trial, 1, parts)


def arms(board: Board, base: ImageModel, auxiliary: ImageModel, trial: int) -> Iterator[Arm]:
    """Every model of a trial, the base first."""
    learner, sizes, asked, bench = board.learner, board.sizes, board.asked, board.bench
    seed, data, wanted = board.trial(trial), board.data, board.planned.arms
    given = Given(learner, base=base, auxiliary=auxiliary)
    sampler = bench.sampler(base.load())
    cost: dict[str, Any] = {"seen": sizes.budget, "drawn": sizes.auxiliary}

    def made(method: str, omega: float | None, using: Any = given) -> ImageModel:
        model = bound(method, asked, board.checked, omega)(using, data, seed=seed).model
        assert isinstance(model, ImageModel)
        return model

    yield Arm("base", base, "standard")
    if "2x" in wanted:
        yield Arm("2x steps", base, "equal-cost", sampler.doubled(), equal=True)
    if "4x" in wanted:
        yield Arm("4x steps", base, "equal-cost", sampler.doubled().doubled())
    if "retuned" in wanted:
        most = bench.evaluations_of_sims(base)
        options = retunings(sampler, most)
        best, spent = board.best(options, lambda one: (base, {"sampler": one, "floor": False}), trial, most)
        yield Arm("retuned", base, "retuned", best, chosen=spent, equal=True)
    if "continued" in wanted:
        further = made("continued", None, Given(learner, base=base))
        yield Arm("continued", further, "continued", seen=sizes.budget, equal=True)
        yield Arm("continued, 2x steps", further, "continued", sampler.doubled(), seen=sizes.budget, equal=True)
    if board.planned.wide is not None:
        network, budget = board.planned.wide
        other = replace(learner, rebuilding=network).rebuild(data, budget, seed=seed.child("wider"))
        yield Arm("wider, equal training cost", other, "wider", seen=budget)
    yield Arm("auxiliary alone", auxiliary, "auxiliary", **cost)
    yield Arm(f"SIMS, omega = {asked.fixed:g}", made("sims", asked.fixed), "sims", omega=asked.fixed, **cost)
    omega, spent = board.strength(lambda w: made("sims", w), trial)
    yield Arm("SIMS", made("sims", omega), "sims", omega=omega, chosen=spent, **cost)
    if "cheaper" in wanted:
        for schedule in board.planned.cheaper:
            found, spent = board.strength(lambda w: made("sims", w), trial, schedule=schedule)
            model = made("sims", found)
            yield Arm(f"SIMS {schedule}", model, "sims", schedule=schedule, omega=found, chosen=spent, **cost)
    if "iterated" in wanted:
        yield _iterated(board, base, auxiliary, made("sims", asked.fixed), seed)
    if "neon" in wanted:
        found, spent = board.strength(lambda w: made("neon", w), trial, networks=1)
        yield Arm("Neon", made("neon", found), "neon", omega=found, chosen=spent, **cost)
    for name, title in (("autoguidance", "autoguidance"), ("rebuilt", "SIMS, cold auxiliary")):
        if name in wanted:
            spare = Given(learner, base=base)
            other = bound(name, asked, board.checked, 1.0)(spare, data, seed=seed).auxiliary
            found, spent = board.strength(lambda w, g=other: learner.extrapolate(base, g, w), trial)  # type: ignore[misc]
            seen: dict[str, Any] = (
                {"seen": round(sizes.fit * GUIDE_SHARE)} if name == "autoguidance" else cost | {"seen": sizes.fit}
            )
            model = learner.extrapolate(base, other, found)
            yield Arm(title, model, name, omega=found, chosen=spent, **seen)
    if "random" in wanted:
        yield Arm("random direction", made("random", asked.fixed), "random", omega=asked.fixed, **cost)


def _iterated(board: Board, base: ImageModel, auxiliary: ImageModel, first: ImageModel, seed: Seed) -> Arm:
    """A second step of SIMS: away from the mean of both auxiliaries' weights, the second of samples of the first step.

    theta_2 = theta_1 + omega (b - G(theta_1)) with theta_1 = b + omega (b - G(b)) is b + 2 omega (b - mean of G's);
    the mean is taken of weights, so that a sample costs what SIMS costs.
    """
    learner, sizes, omega = board.learner, board.sizes, board.asked.fixed
    again = seed.child("iterated")
    samples = learner.sample(first, sizes.auxiliary, seed=again.child("auxiliary-data"))
    seen = AUXILIARY_DATA[board.asked.auxiliary_data](learner, board.data, board.data, samples)
    second = learner.finetune(base, seen, sizes.budget, seed=again.child("finetune"))
    model = learner.extrapolate(base, learner.merge(auxiliary, second, -0.5), 2 * omega)
    return Arm("SIMS, second step", model, "sims", omega=2 * omega, seen=2 * sizes.budget, drawn=2 * sizes.auxiliary)


def describe(settings: Leaderboard) -> str:
    """The plan and its cost in words."""
    asked = plan(settings)
    sizes, trials, told = asked.checked.sizes, settings.trials, ledger(asked.checked)
    wanted, others = asked.arms, len(asked.variants) - 1
    of = " of one base" * bool(asked.checked.checkpoint)
    told.say("trials", f"{trials}{of}, search {asked.search:,} images, confirmation {sizes.n:,}")
    if not asked.checked.checkpoint:
        told.train("bases", sizes.fit, trials)
    if asked.wide is not None:
        told.train("wider bases (operations of so many of the base's)", sizes.fit + sizes.budget, trials)
    sizes_drawn = set[int]()
    trained = set[Variant]()
    for variant in asked.variants:
        if variant.size not in sizes_drawn:
            told.draw(f"{variant.name}: samples", variant.size, trials)
        run = replace(variant, name="", weights="")  # both weights are of one run
        if run not in trained:
            seen = sizes.fit if variant.cold else variant.budget
            told.train(f"{variant.name}: auxiliary", seen, trials, tuned=not variant.cold)
        sizes_drawn.add(variant.size)
        trained.add(run)
    told.train("continued", sizes.budget, trials * ("continued" in wanted), tuned=True)
    told.train("iterated", sizes.budget, trials * ("iterated" in wanted), tuned=True)
    told.train("guide", round(sizes.fit * GUIDE_SHARE), trials * ("autoguidance" in wanted))
    told.train("cold auxiliary", sizes.fit, trials * ("rebuilt" in wanted))
    turns = rounds(len(asked.omegas), Seeds.span(0, asked.search))
    one = planned(len(asked.omegas), turns, 1)[0]
    sampler = parse_sampler(settings.sampler or PRESETS[asked.checked.preset].sampler)
    less = sum(sum(sampler.evaluations(schedule)) for schedule in asked.cheaper) / sampler.nfe
    paired = 1 + others + sum(name in wanted for name in ("autoguidance", "rebuilt"))
    told.draw("search of omega", one, trials, 2 * paired + less * ("cheaper" in wanted) + ("neon" in wanted))
    if "retuned" in wanted:
        count = len(retunings(sampler, 2 * sampler.nfe))
        told.draw("search of a sampler", planned(count, rounds(count, Seeds.span(0, asked.search)), 1)[0], trials, 2)
    units = {"2x": 2, "4x": 4, "retuned": 2, "continued": 3, "iterated": 2, "neon": 1, "autoguidance": 2,
             "rebuilt": 2, "random": 2, "cheaper": less}  # fmt: skip
    weight = 6 + 4 * others + sum(count for name, count in units.items() if name in wanted)
    told.draw("confirmations", sizes.n, trials, weight)
    told.say("out", settings.out)
    return told.words
