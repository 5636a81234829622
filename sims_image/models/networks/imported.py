"""Networks of diffusers under their schedulers, as `networks.build` makes them.

The library's own class is built from its configuration, which cannot hold code; what it predicts (noise, data,
velocity) and how it is told the noise follow from the scheduler's (`sims_core.denoiser.form_of`).
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sims_core.denoiser import form_of, sigmas
from sims_core.errors import InputError, choose, extra, reason, shown
from sims_image.models.networks.preconditioning import Preconditioned

#: what a checkpoint calls them
CLASS = "Diffusers"
MODELS = ("UNet2DModel", "DiTTransformer2DModel")
#: whose timesteps 'ddim' takes, by what a scheduler's name begins with; others have betas
_STEPPED = {"FlowMatch": "FlowMatchEulerDiscreteScheduler", "EDM": "EDMEulerScheduler", "": "DDIMScheduler"}
SCHEDULERS = (
    *("DDIMScheduler", "DDPMScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler", "PNDMScheduler"),
    *("DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"),
    *("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler"),
    *("KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "UniPCMultistepScheduler"),
    *("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
    *("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"),
)
#: the largest whole numbers that are built: several times what any published network has
_LARGEST, _DEEPEST, _LONGEST = 100_000, 256, 100_000
#: in place of the infinite noise level at which flows begin
_HIGHEST = 1e6


def library() -> Any:
    """The package diffusers. Raises `InputError` with the line that installs it."""
    try:
        import diffusers
    except ImportError:
        raise InputError("diffusers", "not installed", f"its networks need it: {extra('diffusers')}") from None
    return diffusers


def described(model: Mapping[str, Any], scheduler: Mapping[str, Any], sigma_data: float = 0.5) -> dict[str, Any]:
    """The arguments of `networks.build`, from the contents of ``config.json`` and ``scheduler_config.json``.

    What the class does not know is left out. Raises `InputError` for a class that is not supported, and for a network
    that makes no square images of the channels that it sees.
    """
    name = str(model.get("_class_name"))
    if name == "Transformer2DModel" and model.get("norm_type") == "ada_norm_zero":
        name = "DiTTransformer2DModel"  # as published before it had a class of its own
    if name not in MODELS:
        words = f"read are {', '.join(MODELS)}; any other is guided in its own pipeline, by sims_core.guide"
        raise InputError("model", shown(name), words)
    kept = {"_class_name": name, **known(name, model)}
    schedule = str(scheduler.get("_class_name"))
    if schedule not in SCHEDULERS:
        words = "give one with betas (DDPMScheduler, DDIMScheduler, ...), FlowMatch... or EDM..."
        raise InputError("scheduler", shown(schedule), words)
    side, channels = kept.get("sample_size", 32 if name != "UNet2DModel" else None), kept.get("in_channels", 3)
    sides = side if isinstance(side, list) else [side, side]
    if len(sides) != 2 or sides[0] != sides[1] or type(sides[0]) is not int or sides[0] < 1:
        raise InputError("sample_size", side, "its config.json must give the side of its square images")
    classes = kept.get("num_class_embeds") if name == "UNet2DModel" else kept.get("num_embeds_ada_norm", 1000)
    if kept.get("class_embed_type") is not None:
        raise InputError("class_embed_type", kept["class_embed_type"], "classes that are numbered (num_class_embeds)")
    return {
        "class_name": CLASS,
        "img_resolution": sides[0],
        "img_channels": channels if name == "UNet2DModel" else kept.get("in_channels", 4),
        "label_dim": classes or 0,
        "sigma_data": float(sigma_data),
        "model": kept,
        "scheduler": {"_class_name": schedule, **known(schedule, scheduler)},
    }


def left_out(model: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """The settings of a configuration that its class does not know."""
    return sorted(k for k, v in model.items() if not k.startswith("_") and k not in kept and v is not None)


def known(name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that a class of diffusers takes, within bounds. Raises `InputError` beyond them."""
    taken = inspect.signature(getattr(library(), name).__init__).parameters
    kept = {k: v for k, v in config.items() if k in taken and k != "self" and v not in (math.inf, -math.inf)}
    for key, value in kept.items():
        most = _DEEPEST if key in ("layers_per_block", "num_layers") else _LARGEST
        for one in _plain(value):
            if isinstance(one, int | float) and not abs(one) <= most:
                raise InputError(key, one, f"a number of at most {most}")
            if not isinstance(one, str | int | float | None):
                raise InputError(key, type(one).__name__, "a plain setting")
    return kept


def _plain(value: Any) -> Iterator[Any]:
    if not isinstance(value, list):
        yield value
        return
    if len(value) > _LONGEST:
        raise InputError("settings", len(value), f"a list of at most {_LONGEST}")
    for one in value:
        yield from _plain(one)


def make(config: Mapping[str, Any]) -> Any:
    """A model or scheduler of a checked configuration. Raises `InputError` where its class refuses it."""
    cls = getattr(library(), config["_class_name"])
    try:
        return cls(**{name: value for name, value in config.items() if name != "_class_name"})
    except (TypeError, ValueError, RuntimeError, ImportError, ArithmeticError, LookupError) as error:
        raise InputError("config", config["_class_name"], f"diffusers makes none of it ({reason(error)})") from None


def _limits(config: Mapping[str, Any]) -> tuple[float | None, float] | None:
    """(the quantile of dynamic thresholding, its largest bound), or (None, the range) of clipping; None for neither."""
    if config.get("thresholding"):
        return float(config["dynamic_thresholding_ratio"]), float(config["sample_max_value"])
    return (None, float(config["clip_sample_range"])) if config.get("clip_sample") else None


class Imported(Preconditioned):
    """A network of diffusers as a denoiser; ``model`` is the library's own module.

    Under a schedule of betas it knows the noise levels of its training's timesteps (`round_sigma`), and is told the
    number of the nearest. Rows of class labels that are zero are a DiT's null class, and a UNet2DModel's first one.
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int,
        sigma_data: float,
        model: Mapping[str, Any],
        scheduler: Mapping[str, Any],
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, use_fp16=False)
        self.adapter: Any = None  # of `sims_image.models.adapters`, if there is one on it
        self.sigma_data, self._scheduler = sigma_data, dict(scheduler)
        self._null = label_dim if model["_class_name"] != "UNet2DModel" else 0
        with torch.device("cpu"):  # its tables are numbers, also where shapes alone are wanted
            made = make(scheduler)
            self.form = form_of(made)
        self.limits = _limits(made.config)
        self.sigma_min, self.sigma_max = self.form.span
        table = None if self.form.table is None else torch.tensor(self.form.table.tolist())
        self.discrete = table is not None
        self.register_buffer("levels", table, persistent=False)
        self.model: nn.Module = make(model)
        outputs = self.model.config.get("out_channels") or img_channels
        if outputs not in (img_channels, 2 * img_channels):
            words = f"a network that predicts the {img_channels} channels it sees, with or without a variance"
            raise InputError("out_channels", outputs, words)

    def index(self, sigma: Tensor) -> Tensor:
        """The timestep whose noise level is nearest, int64 of the shape of ``sigma``."""
        assert isinstance(self.levels, Tensor)
        return (sigma.to(self.levels).unsqueeze(-1) - self.levels).abs().argmin(-1)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels of its timesteps; all, unless its schedule is one of betas."""
        sigma = torch.as_tensor(sigma)
        if not self.discrete:
            return sigma
        assert isinstance(self.levels, Tensor)
        return self.levels[self.index(sigma)].to(sigma)

    def schedule(self, steps: int) -> Tensor:
        """The noise levels of ``steps`` timesteps as its scheduler's settings space them, then 0; as `Sampler` asks."""
        name = next(made for start, made in _STEPPED.items() if self._scheduler["_class_name"].startswith(start))
        scheduler = make({"_class_name": name, **known(name, self._scheduler)})
        try:
            scheduler.set_timesteps(steps)
        except ValueError as error:
            raise InputError("sampler", f"ddim:{steps}", reason(error)) from None
        return sigmas(scheduler).clamp(max=_HIGHEST)

    def limit(self, clean: Tensor) -> Tensor:
        """An estimate D (B, ...) as its scheduler limits it in sampling: to a range, or to each image's own quantile.

        Dynamic thresholding (Saharia et al. 2022, arXiv 2205.11487) as diffusers does it. Guided estimates are limited
        when they are combined, as in diffusers' loops.
        """
        assert self.limits is not None
        share, top = self.limits
        if share is None:
            return clean.clamp(-top, top)
        bound = clean.flatten(1).abs().float().quantile(share, dim=1).clamp(1, max(top, 1)).to(clean)
        bound = bound.reshape(-1, *[1] * (clean.ndim - 1))
        return clean.clamp(-bound, bound) / bound

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Those of the scheduler's form: D is affine in x and in what the network predicts."""
        nothing, one = torch.zeros_like(sigma), torch.ones_like(sigma)
        time = self.index(sigma) if self.discrete else self.form.time(sigma)
        return self.form.clean(one, sigma, nothing), self.form.clean(nothing, sigma, one), self.form.scale(sigma), time

    def raw(self, x: Tensor, c_noise: Tensor, labels: Tensor | None, augment_labels: Tensor | None) -> Tensor:
        """What the model predicts, without a variance."""
        lower = x.dtype != torch.float32 and x.device.type != "meta"
        given = {}
        if labels is not None:
            given["class_labels"] = torch.where(labels.any(1), labels.argmax(1), self._null)
        with torch.autocast(x.device.type, x.dtype) if lower else nullcontext():
            predicted: Tensor = self.model(x.float(), c_noise.expand(len(x)), **given, return_dict=False)[0]
        return predicted[:, : self.img_channels]


def resolve(config: Mapping[str, Any]) -> dict[str, Any]:
    """The complete arguments of a network's description, without its class. Raises `InputError`."""
    known = ("img_resolution", "img_channels", "label_dim", "sigma_data", "model", "scheduler")
    for argument in config:
        choose("argument", argument, known)
    for name in ("model", "scheduler"):
        if not isinstance(config.get(name), Mapping):
            raise InputError(name, type(config.get(name)).__name__, "the settings of a class of diffusers")
    made = described(config["model"], config["scheduler"], config.get("sigma_data", 0.5))
    for name in config:
        if config[name] != made[name]:
            raise InputError(name, config[name], f"the network's own settings say {made[name]}")
    return made
