"""The verbs as functions: ``train(preset="digits", data="data/digits")`` is ``sims_image train --preset digits ...``.

Keyword arguments are the fields of the verb's options, with their types and defaults; `Verb.plan` says what a call
would do and cost, as ``--dry-run`` does. They run in one process; several take the command, under torchrun.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from importlib import import_module
from inspect import cleandoc
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from sims_core.errors import InputError, choose
from sims_core.lab.command import former_names
from sims_image.data import options as data_options
from sims_image.experiments import options as experiment_options
from sims_image.metrics.options import Evaluate, Foresee
from sims_image.sampling.options import Generate, older_guidance
from sims_image.training.options import Train

if TYPE_CHECKING:
    import pandas as pd

    from sims_image.data.dataset import Dataset
    from sims_image.data.latents import Encoder
    from sims_image.metrics.foresee import Foreseen
    from sims_image.metrics.report import Report
    from sims_image.models.checkpoints import Checkpoint

P = ParamSpec("P")
Settings = TypeVar("Settings")
Made = TypeVar("Made")


class Verb(Generic[P, Settings, Made]):
    """A verb: called with its options, it makes what it makes.

    options: their dataclass. make: of them. told: what they ask for, and its cost, in words. published: the verb whose
    published settings ``preset`` takes; '' if none are. example: of its use, as a doctest.
    """

    def __init__(
        self,
        options: Callable[P, Settings],
        make: Callable[[Settings], Made],
        told: Callable[[Settings], str],
        published: str = "",
        example: str = "",
    ) -> None:
        self._options, self._make, self.told, self._published = options, make, told, published
        self.__doc__ = f"{cleandoc(options.__doc__ or '')}\n\n{cleandoc(example)}".rstrip()

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Made:
        """Do it. Raises `InputError` about an argument."""
        settings = self._settings(*args, **kwargs)
        if getattr(settings, "dry_run", False):
            raise InputError("dry_run", True, "call the verb's plan(...), which returns what it would do")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            words = "several processes run the command: torchrun --nproc_per_node N -m sims_image VERB ..."
            raise InputError("WORLD_SIZE", os.environ["WORLD_SIZE"], words)
        older = older_guidance(settings)
        if older:
            words = "interval, refresh_every and predictor_only go with the next release"
            warnings.warn(f"write guidance={older!r}; {words}", FutureWarning, stacklevel=2)
        return self._make(settings)

    def plan(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """What the call would do and cost, in words; nothing is made. Raises `InputError` about an argument."""
        return self.told(replace(self._settings(*args, **kwargs), dry_run=True))  # type: ignore[type-var]

    def _settings(self, *args: P.args, **kwargs: P.kwargs) -> Settings:
        for old, new in former_names(self._options).items():
            if old in kwargs:
                warnings.warn(f"{old} is {new} now; {old} goes with the next release", FutureWarning, stacklevel=3)
                kwargs[new] = kwargs.pop(old)
        given = self._options(*args, **kwargs)
        preset = getattr(given, "preset", "") if self._published else ""
        if not preset:
            return given
        from sims_image.experiments.published import recipes

        known = recipes(self._published)
        named = [field.name for field in fields(given)][: len(args)]  # type: ignore[arg-type]
        chosen = {**dict(zip(named, args, strict=True)), **kwargs}
        found: Settings = replace(known[choose("preset", preset, known)], **chosen)
        return found


def encoder_of(settings: data_options.Prepare) -> Encoder | None:
    """What the pictures are to be encoded by; None without. Raises `InputError`."""
    if not settings.latents:
        return None
    from sims_image.models.autoencoders import encoder

    return encoder(settings)


def _prepare(settings: data_options.Prepare) -> Dataset:
    from sims_image.data.prepare import prepare

    return prepare(settings, encoder=encoder_of(settings))


def _told_prepare(settings: data_options.Prepare) -> str:
    from sims_image.data.plan import plan

    return "\n".join(plan(settings, encoder=encoder_of(settings)).lines())


def _train(settings: Train) -> Checkpoint:
    from sims_image.models.checkpoints import load
    from sims_image.training.session import train

    return load(train(settings).checkpoint)


def _told_train(settings: Train) -> str:
    from sims_core.lab.runs import RunFolder
    from sims_image.training.estimate import describe
    from sims_image.training.plan import plan

    planned = plan(settings)
    if planned.data is not None:
        RunFolder.check(settings.out or planned.folder, planned.settings)
    return describe(planned, settings)


def _generate(settings: Generate) -> Dataset:
    from sims_image.processes import start
    from sims_image.sampling.generate import generate

    with start(settings.device) as processes:
        made = generate(settings, processes)
    assert made is not None  # one process
    return made


def _told_generate(settings: Generate) -> str:
    from sims_image.processes import choose_device
    from sims_image.sampling import generation
    from sims_image.sampling.generate import data_set, notes

    planned = data_set(settings, choose_device(settings.device))
    said = notes(planned)
    if settings.out and not settings.restart:
        generation.check_out(planned, settings.out)
    lines = generation.estimate(planned, settings.out, int(os.environ.get("WORLD_SIZE", "1")))
    return "\n".join([f"{key:>10}  {value}" for key, value in lines] + [f"note: {note}" for note in said])


def _measuring(module: str) -> tuple[Callable[[Any], Any], Callable[[Any], str]]:
    """What ``sims_image.metrics.MODULE`` finds, in the function of its name, and what it says that it would measure."""

    def make(settings: Evaluate | Foresee) -> Any:
        from sims_image.processes import start

        run = getattr(import_module(f"sims_image.metrics.{module}"), module)
        with start(settings.device) as processes:
            return run(settings, processes)

    def told(settings: Evaluate | Foresee) -> str:
        words: str = import_module(f"sims_image.metrics.{module}").describe(settings)
        return words

    return make, told


_evaluated: tuple[Callable[[Any], Report], Callable[[Any], str]] = _measuring("evaluate")
_foreseen: tuple[Callable[[Any], Foreseen], Callable[[Any], str]] = _measuring("foresee")


@dataclass(frozen=True)
class Outcome:
    """What an experiment left: the folder of its report, with results.json, tables and figures."""

    folder: Path

    @property
    def results(self) -> dict[str, Any]:
        """What results.json holds: settings, metric, data, provenance, and what `words` has."""
        found: dict[str, Any] = json.loads((self.folder / "results.json").read_text(encoding="utf-8"))
        return found

    @property
    def words(self) -> list[str]:
        """The conclusion."""
        return [str(line) for line in self.results["conclusion"]]

    def table(self, name: str) -> pd.DataFrame:
        """A table of the report. Raises `InputError` for a name that it does not have."""
        import pandas as pd

        names = sorted(path.stem for path in self.folder.glob("*.csv"))
        return pd.read_csv(self.folder / f"{choose('name', name, names)}.csv")


def _experiment(module: str) -> tuple[Callable[[Any], Outcome], Callable[[Any], str]]:
    """What ``sims_image.experiments.MODULE`` makes, and what it says that it would."""

    def settled(settings: experiment_options.Experiment) -> experiment_options.Experiment:
        return replace(settings, out=settings.out or f"runs/{settings.verb}")

    def make(settings: experiment_options.Experiment) -> Outcome:
        from sims_image.processes import start

        run, settings = import_module(f"sims_image.experiments.{module}"), settled(settings)
        with start(settings.device) as processes:
            run.conduct(settings, processes)
        return Outcome(Path(settings.out) / "report")

    def told(settings: experiment_options.Experiment) -> str:
        words: str = import_module(f"sims_image.experiments.{module}").describe(settled(settings))
        return words

    return make, told


prepare = Verb(
    data_options.Prepare,
    _prepare,
    _told_prepare,
    example="""
    >>> data = prepare("digits", holdout=500, out="data/digits")
    >>> len(data), data.shape
    (1297, (1, 8, 8))
    """,
)
train = Verb(
    Train,
    _train,
    _told_train,
    example="""
    >>> told = train.plan(preset="digits", data="data/digits", budget="100k")
    >>> print(*[line.strip() for line in told.splitlines() if "parameters" in line])
    parameters  1,032,705
    """,
)
generate = Verb(
    Generate,
    _generate,
    _told_generate,
    example="""
    >>> made = generate(base="runs/base/snapshots/0000000256/ema", seeds="0-9", sampler="heun:4", out="data/ten")
    >>> len(made), made.record["source"]["nfe"]
    (10, 7)
    """,
)
evaluate = Verb(
    Evaluate,
    *_evaluated,
    "evaluate",
    example="""
    >>> real = evaluate(images="data/digits-heldout", reference="data/digits", features="pixels")
    >>> f"{real.metrics['frechet'].value:.1f}, floor {real.floor.metrics['frechet'].value:.1f}"
    '0.3, floor 0.3'
    """,
)
outlook = Verb(
    Foresee,
    *_foreseen,
    example="""
    >>> samples = dict(base="data/digits", auxiliary="data/drawn")  # a base that draws real images
    >>> print(outlook(data="data/digits-heldout", features="pixels", **samples).lines()[-1])
    No error is seen: these samples do not tell the base from the data, so there is nothing to remove.
    """,
)
sims = Verb(
    experiment_options.Sims,
    *_experiment("sims"),
    "sims",
    example="""
    >>> print(sims.plan(data="data/digits", base="digits", synthetic="5k", budget="2k").splitlines()[1])
     synthetic  5,000 images, seeds 0-4999: 175,000 evaluations
    """,
)
loop = Verb(
    experiment_options.Loop,
    *_experiment("loop"),
    "loop",
    example="""
    >>> print(loop.plan(data="data/digits", base="digits", generations=3).splitlines()[3].strip())
    loop  augmentation, 3 generations, 3 trials
    """,
)
pollution = Verb(experiment_options.Pollution, *_experiment("pollution"), "pollution")
retrain = Verb(experiment_options.Retrain, *_experiment("loop"), "retrain")
control = Verb(experiment_options.Control, *_experiment("control"), "control")
leaderboard = Verb(experiment_options.Leaderboard, *_experiment("leaderboard"))
