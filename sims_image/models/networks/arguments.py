"""What may be said to `networks.build`: the published arguments, their defaults, and values that work."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from sims_core.errors import InputError, choose, whole
from sims_image.models.networks import imported
from sims_image.models.networks.edm2 import Block, FlowPrecond2, Precond, UNet
from sims_image.models.networks.preconditioning import (
    MODELS,
    EDMPrecond,
    FlowPrecond,
    IDDPMPrecond,
    Preconditioned,
    VEPrecond,
    VPPrecond,
)

#: published class name -> (the class, whether it wraps one of `MODELS`)
CLASSES: dict[str, type[Preconditioned]] = {
    "EDMPrecond": EDMPrecond, "VPPrecond": VPPrecond, "VEPrecond": VEPrecond, "iDDPMPrecond": IDDPMPrecond,
    "Precond": Precond, "FlowPrecond": FlowPrecond, "FlowPrecond2": FlowPrecond2, imported.CLASS: imported.Imported,
}  # fmt: skip
CHOICES = {
    "embedding_type": ("positional", "fourier"),
    "encoder_type": ("standard", "skip", "residual"),
    "decoder_type": ("standard", "skip"),
    "prediction": ("velocity", "denoiser"),
}
#: whole numbers and the largest that are built: several times what any published network has
POSITIVE = {
    "img_resolution": 4096, "img_channels": 1024, "model_channels": 16_384, "channel_mult_emb": 64,
    "channel_mult_noise": 64, "num_blocks": 32, "channels_per_head": 4096, "logvar_channels": 4096, "M": 100_000,
}  # fmt: skip
COUNTS = {"label_dim": 100_000, "augment_dim": 1024}
LISTS = {"channel_mult": 64, "attn_resolutions": 4096}
_LONGEST = 16  # of a list
_HUGE = 1e100
FRACTIONS = ("dropout", "label_dropout", "label_balance", "concat_balance", "res_balance", "attn_balance")
ABOVE_ZERO = ("sigma_data", "sigma_max", "beta_d", "epsilon_t", "C_1", "clip_act")


def resolve(config: Mapping[str, Any]) -> tuple[type[Preconditioned], dict[str, Any]]:
    """The class and the complete arguments, ``class_name`` among them, of a network's description; see `build`.

    Arguments whose default is infinite stay out, so that they can be written as JSON.
    """
    given = {name: _plain(value) for name, value in config.items()}
    name = given.pop("class_name", "EDMPrecond" if "model_type" in given else "Precond")
    cls = CLASSES[choose("class_name", str(name).rpartition(".")[2], CLASSES)]
    if cls is imported.Imported:
        return cls, imported.resolve(given)
    known = _defaults(cls.__init__)
    if issubclass(cls, Precond):
        known |= _defaults(UNet.__init__) | _defaults(Block.__init__)
    else:
        model = choose("model_type", str(given.get("model_type", known["model_type"])), MODELS)
        known |= _defaults(MODELS[model].__init__) | {"model_type": model}
    known = {"img_resolution": None, "img_channels": None, "label_dim": 0} | known
    for argument in given:
        choose("argument", argument, known)
    arguments = {name: given.get(name, default) for name, default in known.items()}
    for argument, value in arguments.items():
        nothing = issubclass(cls, Precond) and argument in ("channel_mult_noise", "channel_mult_emb", "clip_act")
        if value is None and not nothing:
            raise InputError(argument, "nothing", "the network needs it")
        arguments[argument] = None if value is None else _checked(argument, value)
    _fits(arguments)
    finite = {n: v for n, v in arguments.items() if not (isinstance(v, float) and math.isinf(v))}
    return cls, {"class_name": str(name).rpartition(".")[2], **finite}


#: what a preconditioning gives its network, and what one block differs from another in
_INTERNAL = ("self", "in_channels", "out_channels", "emb_channels", "flavor", "resample_mode", "attention")


def _defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Arguments of a constructor that have a default, as plain values."""
    parameters = inspect.signature(function).parameters.values()
    named = [p for p in parameters if p.kind is not p.VAR_KEYWORD and p.name not in _INTERNAL]
    return {p.name: _plain(p.default) for p in named if p.default is not p.empty}


def _plain(value: Any) -> Any:
    """Lists for tuples and arrays, numbers for numpy's, so that a description is JSON."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _checked(name: str, value: Any) -> Any:
    if name in CHOICES:
        return choose(name, str(value), CHOICES[name])
    if name == "use_fp16":
        if not isinstance(value, (bool, int)):
            raise InputError(name, value, "True or False")
        return bool(value)
    if name in POSITIVE or name in COUNTS:
        least, most = (1, POSITIVE[name]) if name in POSITIVE else (0, COUNTS[name])
        if not _whole(value) or value < least:
            raise InputError(name, value, f"a whole number, at least {least}")
        return whole(name, value, least, most)
    if name in LISTS:
        if not isinstance(value, list) or not all(_whole(v) and v > 0 for v in value):
            raise InputError(name, value, "a list of positive whole numbers")
        if len(value) > _LONGEST or any(v > LISTS[name] for v in value):
            raise InputError(name, value, f"at most {_LONGEST} whole numbers up to {LISTS[name]}")
        if not value and name == "channel_mult":
            raise InputError(name, value, "at least one resolution")
        return [int(v) for v in value]
    if name == "resample_filter":
        if not isinstance(value, list) or len(value) > _LONGEST or not all(_number(v) for v in value):
            raise InputError(name, value, "a short list of numbers, such as [1, 1] or [1, 3, 3, 1]")
        return value
    if name == "model_type":
        return value
    if not _number(value):
        raise InputError(name, value, "a number")
    if name in FRACTIONS and not 0 <= value <= 1:
        raise InputError(name, value, "a number between 0 and 1")
    if name in ABOVE_ZERO and not value > 0:
        raise InputError(name, value, "a positive number")
    return value


def _fits(arguments: Mapping[str, Any]) -> None:
    """Resolutions must halve evenly, and heads must divide their layer."""
    levels, side = len(arguments["channel_mult"]), arguments["img_resolution"]
    if side % 2 ** (levels - 1):
        raise InputError("img_resolution", side, f"a multiple of {2 ** (levels - 1)}, to halve {levels - 1} times")
    width = arguments["model_channels"]
    if width % 2:
        raise InputError("model_channels", width, "an even number, for pairs of sines and cosines")
    if arguments.get("model_type") == "SongUNet":
        return
    per_head, attended = arguments.get("channels_per_head", 64), arguments["attn_resolutions"]
    for level, mult in enumerate(arguments["channel_mult"]):
        channels = width * mult
        heads = channels // per_head if level == levels - 1 or side >> level in attended else 0
        if heads and channels % heads:
            name = "channels_per_head" if "channels_per_head" in arguments else "model_channels"
            raise InputError(name, arguments[name], f"{channels} channels do not divide into {heads} heads")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and (value == math.inf or abs(value) < _HUGE)
