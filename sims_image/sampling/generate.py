"""What `Generate` asks for, loaded and checked: sampler, guidance schedule, EMA widths (`docs/images-sims.md`)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sims_core.errors import InputError
from sims_core.guidance import GuidanceSchedule
from sims_core.sampling import Sampler
from sims_image.data.dataset import Dataset, open_dataset
from sims_image.models.denoiser import make_sampler
from sims_image.models.posthoc import at_width
from sims_image.processes import Processes
from sims_image.sampling import generation
from sims_image.sampling.engine import Engine
from sims_image.sampling.generation import Request
from sims_image.sampling.guided import Model, default_sampler, load_model
from sims_image.sampling.options import Drawing, Generate, older_guidance
from sims_image.sampling.seeds import Labels, Seeds


def parse_churn(text: str) -> tuple[float, float, float, float]:
    """Read S_churn,S_min,S_max,S_noise. Raises `InputError`."""
    values = _numbers("churn", text, 4, "S_churn,S_min,S_max,S_noise, such as 40,0.05,50,1.003")
    return values[0], values[1], values[2], values[3]


def _numbers(argument: str, text: str, count: int, syntax: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(0 <= v < float("inf") for v in values):
        raise InputError(argument, text, f"write {syntax}")
    return values


def schedule_of(settings: Any) -> GuidanceSchedule:
    """Where a verb's second network is evaluated, by its options `guidance` or the older ones. Raises `InputError`."""
    older = older_guidance(settings)
    if settings.guidance and older:
        raise InputError("guidance", settings.guidance, f"the older options ask for {older}; write all of it here")
    return GuidanceSchedule.parse(settings.guidance or older or "full")


def choose_sampler(
    model: Model,
    name: str = "",
    *,
    churn: str = "",
    sigma_min: float | None = None,
    sigma_max: float | None = None,
    rho: float | None = None,
) -> Sampler:
    """The sampler asked for, within the noise levels that the network knows; '' is the preset's.

    Raises `InputError` for one that does not exist.
    """
    preset, stochastic = default_sampler(model.base)
    if name or churn == "none":
        stochastic = None
    if churn not in ("", "none"):
        stochastic = parse_churn(churn)
    found = make_sampler(name or preset, model.network, stochastic)
    given = {"sigma_min": sigma_min, "sigma_max": sigma_max, "rho": rho}
    found = replace(found, **{key: value for key, value in given.items() if value is not None})  # type: ignore[arg-type]
    if not 0 < found.sigma_min < found.sigma_max < float("inf"):
        raise InputError("sigma_min", found.sigma_min, f"it must lie between 0 and sigma_max {found.sigma_max:g}")
    if not 0 < found.rho < float("inf"):
        raise InputError("rho", found.rho, "it must be positive")
    return found


def request(settings: Drawing, device: torch.device, data: Dataset | None = None) -> Request:
    """The images that ``settings`` ask for, loaded and checked. data: opened, in place of what ``settings`` name.

    Raises `InputError`.
    """
    if not settings.base:
        raise InputError("base", "", "name a checkpoint to sample from")
    if settings.batch < 1:
        raise InputError("batch", settings.batch, "give a positive compute batch")
    if settings.seed < 0:
        raise InputError("seed", settings.seed, "give a whole number of at least 0")
    seeds = Seeds.parse(settings.seeds)
    schedule = schedule_of(settings)
    engine = Engine(settings.pair, settings.compile, settings.cuda_graph)
    if data is None and settings.data:
        data = open_dataset(settings.data, verify=False)
    settings = _at_widths(settings)
    model = load_model(
        settings.base,
        auxiliary=settings.auxiliary,
        guide=settings.guide,
        omega=settings.omega,
        weight=settings.weight,
        merge=settings.merge,
        schedule=schedule,
        dtype=settings.dtype,
        device=device,
        engine=engine,
        decode=settings.decode,
    )
    known = model.base.record.data
    classes = known.classes if known is not None else tuple(data.classes) if data is not None else ()
    empty = known.empty if known is not None else ()
    labels = Labels.parse(settings.labels, model.network.label_dim, data=data, names=classes, empty=empty)
    sampler = choose_sampler(
        model,
        settings.sampler,
        churn=settings.churn,
        sigma_min=settings.sigma_min,
        sigma_max=settings.sigma_max,
        rho=settings.rho,
    )
    return Request(
        model,
        seeds,
        sampler,
        labels,
        settings.seed,
        min(settings.batch, len(seeds)),
        classes=classes if len(classes) == model.network.label_dim else (),
    )


def data_set(settings: Generate, device: torch.device) -> Request:
    """The data set that ``settings`` ask for: `request`, named. Raises `InputError`."""
    if settings.base and not settings.out and not settings.dry_run:
        raise InputError("out", "", "name the data set to make")
    if settings.sheet < 0:
        raise InputError("sheet", settings.sheet, "give a whole number of at least 0")
    found = request(settings, device)
    if settings.sheet:
        _ = found.model.viewer  # what it cannot load is refused before anything is drawn
    return replace(found, name=settings.name or Path(settings.out).name or found.name)


def generate(settings: Generate, processes: Processes, *, progress: bool = False) -> Dataset | None:
    """The command in one call; the data set in the first process, None in the others. Raises `InputError`."""
    loaded = processes.together(lambda: (data_set(settings, processes.device),))
    planned = loaded[0] if loaded is not None else data_set(settings, processes.device)
    for note in processes.together(lambda: notes(planned)) or ():
        print(f"note: {note}")
    return generation.write(
        planned,
        settings.out,
        processes=processes,
        rows=settings.sheet,
        progress=progress,
        restart=settings.restart,
        options=settings,
    )


#: models are extrapolated by 0 to about 5
_USUAL = 50


def notes(planned: Request) -> list[str]:
    """What the user should know of a request. Raises `InputError` for a precision that drowns the guidance."""
    found = [generation.checked(planned)]
    if planned.model.omega < 0:
        other = "guide" if planned.model.kind == "autoguidance" else "auxiliary"
        words = f"omega {planned.model.omega:g} is below 0: it moves toward the {other}, and -1 is the {other} alone"
        found.append(words)
    if abs(planned.model.omega) > _USUAL:
        words = f"omega {planned.model.omega:g} is far beyond what is of use (0 to about 5): expect broken pictures"
        found.append(words)
    return [note for note in found if note]


def _at_widths(settings: Drawing) -> Drawing:
    """The settings with checkpoints of the EMA widths asked for in place of those named."""
    if settings.base_ema is not None:
        settings = replace(settings, base=str(at_width(settings.base, settings.base_ema)))
    if settings.auxiliary_ema is None:
        return settings
    name = "auxiliary" if settings.auxiliary else "guide"
    where = getattr(settings, name)
    if not where:
        raise InputError("auxiliary_ema", settings.auxiliary_ema, "it needs a second network: `auxiliary` or `guide`")
    found = at_width(where, settings.auxiliary_ema, argument="auxiliary_ema", base=name)
    return replace(settings, **{name: str(found)})  # type: ignore[arg-type]
