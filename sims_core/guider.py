"""SIMS as a guider of diffusers' modular pipelines: ``pipe.update_components(guider=SIMSGuidance(...))``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn

from sims_core.errors import InputError, extra
from sims_core.guidance import check, extrapolate
from sims_core.modules import adapter_layers, switched

if TYPE_CHECKING:
    from collections.abc import Iterator

try:
    from diffusers.guiders import BaseGuidance, ClassifierFreeGuidance
except ImportError:
    raise InputError("diffusers", "not installed", f"its guiders need it: {extra('diffusers')}") from None


class SIMSGuidance(BaseGuidance):  # type: ignore[misc]
    """``(1 + omega) base - omega auxiliary`` of every prediction that another guider asks for (arXiv 2408.16333).

    auxiliary: a network with the pipeline's signature, or the name of a peft adapter on the pipeline's own, toggled.
    omega: a number; 0 is the base, evaluated alone. guider: what combines the conditions, such as
    ``ClassifierFreeGuidance(7.5)``; default: none, the prompt alone. start, stop: the part of the steps that is guided.
    Raises `InputError` for an omega that is not finite, and at the first step for an adapter that is not there.
    """

    _input_predictions: Any = None  # those are the other guider's

    def __init__(
        self,
        auxiliary: nn.Module | str,
        omega: float = 1.0,
        guider: Any = None,
        start: float = 0.0,
        stop: float = 1.0,
        enabled: bool = True,
    ) -> None:
        self._input_predictions = ["pred"]
        super().__init__(start, stop, enabled)
        check(omega, None)
        settings = {"omega": omega, "start": start, "stop": stop, "enabled": enabled}
        self.register_to_config(**settings, auxiliary=auxiliary if isinstance(auxiliary, str) else None)
        self.auxiliary, self.omega = auxiliary, omega
        self.guider = ClassifierFreeGuidance(1.0) if guider is None else guider
        self._opened = ExitStack()

    def new(self, **kwargs: Any) -> SIMSGuidance:
        """A copy, with other settings where some are given."""
        kept = {"auxiliary": self.auxiliary, "omega": self.omega, "guider": self.guider}
        kept |= {"start": self._start, "stop": self._stop, "enabled": self._enabled}
        made: SIMSGuidance = type(self)(**{**kept, **kwargs})
        return made

    def disable(self) -> None:
        """Evaluate the base's prompt alone."""
        super().disable()
        self.guider.disable()

    def enable(self) -> None:
        """Guide again."""
        super().enable()
        self.guider.enable()

    # ---------------------------------------------------------- what a pipeline calls, in this order

    def set_state(self, step: int, num_inference_steps: int, timestep: Any) -> None:
        """A step begins."""
        super().set_state(step, num_inference_steps, timestep)
        self.guider.set_state(step, num_inference_steps, timestep)

    def prepare_inputs(self, *args: Any, **kwargs: Any) -> list[Any]:
        """The other guider's evaluations, each of them once more for the auxiliary."""
        return self._twice(self.guider.prepare_inputs(*args, **kwargs))

    def prepare_inputs_from_block_state(self, *args: Any, **kwargs: Any) -> list[Any]:
        """As `prepare_inputs`."""
        return self._twice(self.guider.prepare_inputs_from_block_state(*args, **kwargs))

    def prepare_models(self, denoiser: nn.Module) -> None:
        """Before each evaluation: the network that is to be called becomes the base or the auxiliary."""
        super().prepare_models(denoiser)
        second = self._guides and self._count_prepared % 2 == 0
        if second:  # of the same condition
            self.guider._count_prepared -= 1
        if isinstance(self.auxiliary, str):
            layers = adapter_layers(denoiser, self.auxiliary)
            self._opened.enter_context(switched(layers, self.auxiliary, on=second))
        elif second:
            self._opened.enter_context(_standing_in(denoiser, self.auxiliary))
        self.guider.prepare_models(self._called(denoiser, second))

    def cleanup_models(self, denoiser: nn.Module) -> None:
        """After it: the network is as it was."""
        self.guider.cleanup_models(self._called(denoiser, self._guides and self._count_prepared % 2 == 0))
        self._opened.close()

    def __call__(self, data: list[Any]) -> Any:
        """The other guider's output of the extrapolated predictions."""
        if self._guides:
            for base, auxiliary in zip(data[::2], data[1::2], strict=True):
                base.noise_pred = extrapolate(base.noise_pred, auxiliary.noise_pred, self.omega)
            data = data[::2]
        return self.guider(data)

    @property
    def is_conditional(self) -> bool:
        """Whether the evaluation that was prepared last is one with the condition."""
        return bool(self.guider.is_conditional)

    @property
    def num_conditions(self) -> int:
        """Of the other guider."""
        return int(self.guider.num_conditions)

    @property
    def _guides(self) -> bool:
        if not self._enabled or self.omega == 0:
            return False
        steps = self._num_inference_steps
        return steps is None or int(self._start * steps) <= self._step < int(self._stop * steps)

    def _twice(self, batches: list[Any]) -> list[Any]:
        return [copy.copy(batch) for batch in batches for _ in range(2)] if self._guides else batches

    def _called(self, denoiser: nn.Module, second: bool) -> nn.Module:
        return self.auxiliary if second and isinstance(self.auxiliary, nn.Module) else denoiser


@contextmanager
def _standing_in(network: nn.Module, other: nn.Module) -> Iterator[None]:
    """``other`` is called wherever ``network`` is."""
    before: Callable[..., Any] | None = vars(network).get("forward")
    network.forward = other.__call__
    try:
        yield
    finally:
        del network.forward
        if before is not None:
            network.forward = before
