"""What images are generated from: a network alone, or guided by a second one, or the two merged.

- SIMS (arXiv 2408.16333): an auxiliary of the same architecture, fine-tuned on the base's own samples;
  D = (1 + omega) D_base - omega D_aux.
- Autoguidance (arXiv 2406.02507): any network for the same images as guide; its weight w is 1 + omega.
- Neon (arXiv 2510.03597): the same line on the weights, one network to evaluate.

Base and auxiliary differ by about 0.1 % in their weights, and their difference is the signal: weights are float32, and
outputs are combined in float32 or better, whatever the body of the networks computes in.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sims_core.draws import Draws
from sims_core.errors import InputError, choose
from sims_core.guidance import FULL, Denoiser, GuidanceSchedule, merge_weights
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_image.data.latents import Autoencoder
from sims_image.data.stores import Images
from sims_image.models import adapters, autoencoders, checkpoints
from sims_image.models.autoencoders import Decoder
from sims_image.models.denoiser import conditional, level, limited, one_hot
from sims_image.models.networks import Preconditioned
from sims_image.models.presets import PRESETS
from sims_image.processes import full_float32
from sims_image.sampling.engine import PLAIN, Engine, Runner

BODIES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
KINDS = ("none", "sims", "autoguidance", "neon")


@dataclass(frozen=True)
class Model:
    """A base and what it is guided by. Make it with `load_model` or `guide_with`.

    network: what is evaluated at every step; other: the network guided away from, None for 'none' and 'neon'.
    base, auxiliary: what the checkpoints say of themselves. schedule: where in the sampler the other network is
    evaluated. engine: how networks are. decoder: makes pixels of the latents that they make.
    """

    base: checkpoints.Summary
    network: Preconditioned
    kind: str = "none"
    auxiliary: checkpoints.Summary | None = None
    other: Preconditioned | None = None
    omega: float = 0.0
    schedule: GuidanceSchedule = FULL
    dtype: str = "float32"
    engine: Engine = PLAIN
    decoder: Decoder | None = None

    @cached_property
    def runner(self) -> Runner:
        """The networks, as the engine evaluates them. Raises `InputError` where it cannot."""
        return Runner(self.engine, self.network, self.other)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the networks see."""
        return self.network.img_channels, self.network.img_resolution, self.network.img_resolution

    @property
    def shape_made(self) -> tuple[int, int, int]:
        """(C, H, W) of an image."""
        return self.shape if self.decoder is None else self.decoder.shape(self.shape)

    @property
    def latents(self) -> bool:
        """Whether the networks make latents, as its training data; unknown, grey and RGB are pixels."""
        known = None if self.base.record.data is None else self.base.record.data.dtype
        return known != "uint8" if known else self.base.autoencoder is not None or self.shape[0] not in (1, 3)

    @property
    def dtype_made(self) -> np.dtype[Any]:
        """Of its images: uint8 pixels or float32 latents."""
        return np.dtype(np.float32 if self.latents and self.decoder is None else np.uint8)

    @cached_property
    def viewer(self) -> Decoder | None:
        """What makes pictures of the latents that are left as they are. Raises `InputError`, as `autoencoders.load`."""
        known = self.base.autoencoder if self.decoder is None else None
        return None if known is None or not known.files else autoencoders.load(known, device=self.device)

    def pictures(self, images: Images) -> Images | None:
        """Images of its, as grey or RGB pixels to be looked at; None of others, and of latents that nothing decodes."""
        images = images if self.viewer is None else self.viewer.pixels(images)
        return images if images.dtype == np.uint8 and images.shape[1] in (1, 3) else None

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(self.network.parameters()).device

    @property
    def identity(self) -> dict[str, Any]:
        """All that decides what the model draws, JSON-able: hashes and numbers, no paths.

        Without 'schedule' the other network is evaluated wherever the base is, without 'engine' in turn with it.
        """
        interval = self.schedule.interval
        return {
            "base": self.base.sha256,
            "guidance": self.kind,
            "auxiliary": None if self.auxiliary is None else self.auxiliary.sha256,
            "omega": self.omega,
            "interval": None if interval is None else list(interval),
            "dtype": self.dtype,
            **({"schedule": str(self.schedule)} if self.schedule.every or self.schedule.rule != "linear" else {}),
            **({"engine": str(self.engine)} if self.engine != PLAIN else {}),
            **({"decoder": self.decoder.sha256} if self.decoder is not None else {}),
        }

    def denoiser(self, classes: Tensor | None) -> Denoiser:
        """D(x, sigma) for images of ``classes`` ((B,) int64 on the device; None for an unconditional network)."""
        labels, run = one_hot(self.network, classes), self.runner

        def own(x: Tensor, sigma: Tensor) -> Tensor:
            return run.own(x, level(sigma, x), labels)

        def both(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
            return run.both(x, level(sigma, x), labels)  # an unconditional guide takes no notice of labels

        found = own if self.other is None else self.schedule.denoiser(own, own, self.omega, both=both)
        return limited(self.network, found)

    def evaluations(self, sampler: Sampler) -> tuple[int, int]:
        """Network evaluations per image, of (the network, the other one): counted by running the sampler."""
        own, other = sampler.evaluations(self.schedule)
        return own, other if self.other is not None and self.omega != 0 else 0

    def decoded(self, known: Autoencoder, *, argument: str = "decode") -> Model:
        """The model with the pixels of its latents. Raises `InputError` where they are of another autoencoder."""
        decoder = autoencoders.load(known, device=self.device, argument=argument)
        if decoder.channels != self.shape[0]:
            words = f"it decodes latents of {decoder.channels} channels, the base's have {self.shape[0]}"
            raise InputError(argument, str(known.folder), words)
        return replace(self, decoder=decoder)

    def at(self, omega: float) -> Model:
        """The same two networks at another omega. Not for 'neon', whose weights are merged."""
        if self.kind == "neon":
            raise InputError("omega", omega, "merged weights have one omega; merge anew")
        return replace(self, omega=omega)


def load_model(
    base: str,
    *,
    auxiliary: str = "",
    guide: str = "",
    omega: float | None = None,
    weight: float | None = None,
    merge: bool = False,
    schedule: GuidanceSchedule = FULL,
    dtype: str = "float32",
    device: str | torch.device = "cpu",
    engine: Engine = PLAIN,
    decode: str = "",
) -> Model:
    """Load a base, and what it is guided by, from checkpoints.

    auxiliary: SIMS, or Neon with ``merge``; guide: autoguidance. omega, or for a guide its weight w = 1 + omega.
    schedule: where the second network is evaluated. engine: how networks are. decode: '' leaves latents as they are,
    'own' makes pixels of them by the autoencoder that the base carries, a folder by its own. Raises
    `InputError`: networks of different images, classes or (auxiliary) architecture; contradicting options.
    """
    choose("dtype", dtype, BODIES)
    if auxiliary and guide:
        raise InputError("guide", guide, "give an `auxiliary` or a `guide`, not both")
    if weight is not None:
        if not guide or omega is not None:
            raise InputError("weight", weight, "it is the weight of a `guide`, and stands for `omega` (w = 1 + omega)")
        omega = weight - 1
    negative = auxiliary or guide
    text = None if schedule == FULL else str(schedule)
    given: dict[str, Any] = {"omega": omega, "guidance": text, "merge": merge or None}
    for name, value in given.items():
        if value is not None and not negative:
            raise InputError(name, value, "it needs a second network: `auxiliary` or `guide`")
    if merge and (guide or schedule != FULL):
        odd = "a `guide`" if guide else f"`guidance` {schedule}"
        raise InputError("merge", True, f"merging weights takes an `auxiliary` and leaves no network for {odd}")
    if negative and omega is None:
        raise InputError("omega", "", "say how far to extrapolate, such as 1.5 (0 is the base)")
    if omega is not None and not math.isfinite(omega):
        raise InputError("omega", omega, "give a finite number (0 is the base)")
    if engine.pair != "sequential" and (merge or not negative):
        raise InputError("pair", engine.pair, "it needs a second network to evaluate: `auxiliary` or `guide`")
    first = checkpoints.load(base, argument="base")
    alone = Model(first.summary, _ready(first, dtype, device), dtype=dtype, engine=engine)
    if known := autoencoders.chosen(decode, [first.autoencoder]) if decode else None:
        alone = alone.decoded(known)
    if not negative or omega is None:
        engine.check(alone.network)
        return alone
    kind = "neon" if merge else "sims" if auxiliary else "autoguidance"
    return guide_with(alone, negative, omega, kind=kind, schedule=schedule)


def guide_with(
    base: Model, path: str | Path, omega: float, *, kind: str = "sims", schedule: GuidanceSchedule = FULL
) -> Model:
    """``base`` guided away from the checkpoint at ``path`` ('sims', 'autoguidance'), or merged with it ('neon').

    An adapter on the base's own weights is toggled, where the engine evaluates in turn: one network in memory. Raises
    `InputError` where the two networks cannot go together.
    """
    argument = "guide" if kind == "autoguidance" else "auxiliary"
    found = checkpoints.summary(path, argument=argument)
    adapter = found.adapter
    if adapter is not None and adapter.base_sha256 == base.base.sha256 and (kind, base.engine) == ("sims", PLAIN):
        _fits(base.base, found, argument, same=True)
        pair: Any = adapters.pair(base.network, checkpoints.weights_of(found, argument), adapter, str(path))
        both = {"network": pair[0], "other": pair[1]}
        return replace(base, **both, kind=kind, auxiliary=found, omega=omega, schedule=schedule)
    negative = checkpoints.load(path, argument=argument)
    _fits(base.base, negative, argument, same=kind != "autoguidance")
    if kind == "neon":
        network = copy.deepcopy(base.network)
        other = {name: value.to(base.device) for name, value in negative.network.state_dict().items()}
        network.load_state_dict(merge_weights(base.network.state_dict(), other, omega))
        base.engine.check(network)
        return replace(base, network=network, kind=kind, auxiliary=negative.summary, omega=omega)
    other_network = _ready(negative, base.dtype, base.device)
    base.engine.check(base.network)
    return replace(base, other=other_network, kind=kind, auxiliary=negative.summary, omega=omega, schedule=schedule)


def _fits(base: checkpoints.Summary, negative: checkpoints.Summary, argument: str, *, same: bool) -> None:
    def images(found: checkpoints.Summary) -> str:
        side = found.config["img_resolution"]
        return f"{found.config['img_channels']}x{side}x{side}"

    if images(base) != images(negative):
        words = f"its images are {images(negative)}, the base's {images(base)}"
        raise InputError(argument, str(negative.path), words)
    classes = [int(found.config.get("label_dim") or 0) for found in (base, negative)]
    if classes[0] != classes[1] and (same or classes[1]):
        words = f"it has {classes[1]} classes, the base {classes[0]}; unlabelled synthetic data makes such a network"
        raise InputError(argument, str(negative.path), words)
    if same and base.config != negative.config:
        odd = next(k for k in {**base.config, **negative.config} if base.config.get(k) != negative.config.get(k))
        words = f"another architecture than the base's ({odd}); a network of another kind is a `guide`"
        raise InputError(argument, str(negative.path), words)


def _ready(found: checkpoints.Checkpoint, dtype: str, device: str | torch.device) -> Preconditioned:
    network = found.network
    assert isinstance(network, Preconditioned)
    network = network.to(device)
    if torch.device(device).type == "cuda":
        full_float32()  # also where no command has begun with it
    network.compute_dtype = BODIES[dtype]
    return network


def default_sampler(found: checkpoints.Summary) -> tuple[str, tuple[float, float, float, float] | None]:
    """The sampler and churn of the preset that a checkpoint was trained by, else Heun with 18 steps (EDM)."""
    preset = PRESETS.get(found.record.preset or "")
    return (preset.sampler, preset.churn) if preset is not None else ("heun:18", None)


@torch.no_grad()
def error_over_signal(
    model: Model,
    *,
    levels: Sequence[float] = (0.1, 0.5, 2.0),
    count: int = 8,
    classes: Callable[[Sequence[int]], Tensor] | None = None,
) -> float:
    """How much of the correction D_base - D_aux a low-precision body loses: |error| / |signal|, the worst level.

    Noise images x = sigma n at each level; the signal is the correction in float32. 0 for a float32 or single model.
    """
    if model.other is None or model.dtype == "float32":
        return 0.0
    items = torch.arange(count)
    given = classes(range(count)) if classes is not None else None
    noise = Draws(Seed(0).child("precision")).normal(items, model.shape).to(model.device)
    worst = 0.0
    for sigma in levels:
        differences = []
        for body in (torch.float32, BODIES[model.dtype]):
            outputs = []
            for network in (model.network, model.other):
                kept, network.compute_dtype = network.compute_dtype, body
                outputs.append(conditional(network, given)(noise * sigma, torch.tensor(sigma)).double())
                network.compute_dtype = kept
            differences.append(outputs[0] - outputs[1])
        signal = float(differences[0].norm())
        worst = max(worst, float((differences[1] - differences[0]).norm()) / signal if signal else 0.0)
    return worst


def precision_note(model: Model, classes: Callable[[Sequence[int]], Tensor] | None = None) -> str | None:
    """A sentence for a guided model in low precision, or None.

    Raises `InputError` where rounding is larger than the correction itself.
    """
    ratio = error_over_signal(model, classes=classes)
    if not ratio:
        return None
    if ratio >= 1:
        words = f"its rounding is {ratio:.2g} times the guidance itself (error over signal); use float32"
        raise InputError("dtype", model.dtype, words)
    return f"in {model.dtype} the guidance's error over signal is {ratio:.2g}"
