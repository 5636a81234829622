"""SIMS on a network that you have: a module that stands wherever the base stood.

The line ``(1 + omega) base - omega auxiliary`` holds for scores, denoisers, noise predictions and velocities alike, so
that a pipeline, a scheduler or an ODE solver need not know of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from sims_core.denoiser import TIMES, form_of, has_variance, prediction, signature, time_name, with_prediction
from sims_core.errors import InputError, extra
from sims_core.guidance import Correction, GuidanceSchedule, Omega, check, extrapolate, strength_at

#: Methods of the base that would keep the base alone.
_SAVING = ("save_pretrained", "push_to_hub")


def guide(
    base: nn.Module,
    auxiliary: nn.Module | str,
    omega: Omega,
    *,
    guidance: str | GuidanceSchedule = "full",
    scheduler: Any = None,
) -> Guided:
    """The SIMS model of two networks, as a module that is called, moved and asked for attributes as ``base`` is.

    auxiliary: a network with the base's signature and output shape, or the name of a peft adapter on the base: then
    one network does for both. omega: a number, one per sample (B,), or a function of sigma; `Guided.omega` sets it.
    guidance: ``full``, ``held:K``, ``predictor``, ``interval:LOW:HIGH`` in sigma (`GuidanceSchedule`); a step is what
    changes the timestep or sigma. scheduler: the loop's own, a flow's path or a view's form; it says what sigma a
    timestep is (interval, omega of sigma) and which evaluation is the predictor's.
    Raises `InputError` for what cannot be done. Source: SIMS (arXiv 2408.16333), Algorithm 1, last line.

    >>> import torch
    >>> import sims_core
    >>> base, auxiliary = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    >>> model, x = sims_core.guide(base, auxiliary, omega=1.5), torch.ones(3, 2)
    >>> torch.allclose(model(x), 2.5 * base(x) - 1.5 * auxiliary(x), atol=1e-6)
    True
    >>> model.omega = 0
    >>> torch.equal(model(x), base(x))
    True
    """
    return Guided(base, auxiliary, omega, guidance, scheduler)


class Guided(nn.Module):
    """What `guide` returns. Attributes that it lacks are the base's.

    The first tensor of the output is guided, in the base's dtype, combined in float32 or better; other items, and a
    variance that the network predicts as well (twice its input's channels), are the base's. With omega = 0 the base
    alone is evaluated. A loop that goes back in time begins a new trajectory, and so does another shape; `reset` says
    so to a schedule where neither shows it.
    """

    def __init__(self, base: object, auxiliary: object, omega: Omega, guidance: Any, scheduler: Any) -> None:
        super().__init__()
        if not isinstance(base, nn.Module):
            expected = "give a torch.nn.Module (functions of x and sigma: sims_core.guided)"
            raise InputError("base", type(base).__name__, expected)
        self.base: nn.Module = base
        self.auxiliary: nn.Module | str = _checked(auxiliary, base)
        self.guidance: GuidanceSchedule = GuidanceSchedule.parse(guidance) if isinstance(guidance, str) else guidance
        self.__signature__ = signature(base)
        self._scheduler, self._form = scheduler, None if scheduler is None else form_of(scheduler)
        self.omega = omega
        self._check_schedule()
        self.reset()

    @property
    def omega(self) -> Omega:
        """How far to extrapolate; 0 is the base."""
        return self._omega

    @omega.setter
    def omega(self, omega: Omega) -> None:
        given: object = omega
        if isinstance(given, Real):  # numpy's numbers too
            omega = float(given)
        elif not isinstance(given, Tensor) and not callable(given):
            raise InputError("omega", given, "give a finite number (0 is the base)")
        check(omega, None)
        self._omega = omega

    def reset(self) -> None:
        """Forget the trajectory: the next call begins one."""
        self._steps = _Steps(self.guidance)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            base = self.__dict__.get("_modules", {}).get("base")
            if base is None or name.startswith("__"):
                raise
        if name in _SAVING:
            raise AttributeError(
                f"{name} would keep the base alone: save model.base and the auxiliary, each by its own"
            )
        return getattr(base, name)

    # ------------------------------------------------------------------ evaluation

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As the base's."""
        kept: list[Any] = []
        x, run = _sample(args, kwargs), self._runner()

        def evaluate(auxiliary: bool) -> Tensor:
            output = run(auxiliary, *args, **kwargs)
            kept.append(output)
            predicted = prediction(output)
            return predicted[:, : x.shape[1]] if x is not None and has_variance(predicted, x) else predicted

        guided = self._guide(x, args, kwargs, lambda: evaluate(False), lambda: _alike(evaluate(False), evaluate(True)))
        whole = prediction(kept[0])
        if guided is whole:
            return kept[0]
        if guided.shape != whole.shape:
            guided = torch.cat([guided, whole[:, guided.shape[1] :]], 1)
        return with_prediction(kept[0], guided)

    def _guide(
        self,
        x: Tensor | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        base: Callable[[], Tensor],
        both: Callable[[], tuple[Tensor, Tensor]],
    ) -> Tensor:
        schedule, sigma = self.guidance, torch.tensor(torch.nan)
        name, time = self._time(args, kwargs) if schedule.every or self._needs_sigma else ("", 0.0)
        kept, step = self._steps.at(time, None if x is None else x.shape)
        if self._needs_sigma:
            sigma = self._sigma(name, time)
        strength = strength_at(self.omega, schedule.interval, sigma)
        correcting = schedule.every > 0 and not schedule.hold and not self._predicting(step)
        if strength is None or correcting:
            return base()
        return kept.guide(strength, step, base, both) if schedule.every else extrapolate(*both(), strength)

    def _runner(self) -> Callable[..., Any]:
        """``(auxiliary, *args, **kwargs)`` -> the output of the one network or the other."""
        base, other = self.base, self.auxiliary
        if isinstance(other, nn.Module):
            return lambda auxiliary, /, *args, **kwargs: (other if auxiliary else base)(*args, **kwargs)
        layers = adapter_layers(base, other)  # looked for at every call: adapters come and go

        def run(auxiliary: bool, /, *args: Any, **kwargs: Any) -> Any:
            with switched(layers, other, on=auxiliary):
                return base(*args, **kwargs)

        return run

    # -------------------------------------------------------------------- schedules

    @property
    def _needs_sigma(self) -> bool:
        return self.guidance.interval is not None or callable(self.omega)

    def _check_schedule(self) -> None:
        if self.guidance.rule != "linear":
            expected = "this rule is one of denoisers: give it to sims_core.guided, with sims_core.denoiser's views"
            raise InputError("guidance", str(self.guidance), expected)
        name = time_name(self.__signature__.parameters)
        if self._needs_sigma and self._form is None and name is not None and not name.startswith("sigma"):
            self._unmapped(name)
        if self.guidance.every and not self.guidance.hold and not hasattr(self._scheduler, "order"):
            expected = "times alone do not tell a predictor: give the loop's scheduler, or held:K"
            raise InputError("guidance", str(self.guidance), expected)

    def _unmapped(self, name: str) -> NoReturn:
        expected = f"intervals are in sigma, and the network is told '{name}': give the scheduler that maps it"
        raise InputError("scheduler", None, expected)

    def _predicting(self, step: int) -> bool:
        """Whether the loop's scheduler is at the first evaluation of a step."""
        if self._scheduler.order == 1:
            return True
        first = getattr(self._scheduler, "state_in_first_order", None)
        if first is None or (step and self._scheduler.step_index is None):
            expected = "predictor needs the scheduler that the loop steps (pipe.scheduler); this one does not tell"
            raise InputError("scheduler", type(self._scheduler).__name__, expected)
        return bool(first)

    def _time(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, float]:
        """The name and value of the argument that tells the noise."""
        given = {**dict(zip(self.__signature__.parameters, args, strict=False)), **kwargs}
        name = time_name(given)
        if name is None:
            expected = f"no argument tells a schedule the noise: call it one of {', '.join(TIMES)}, or give full"
            raise InputError("guidance", str(self.guidance), expected)
        times = torch.as_tensor(given[name]).detach().reshape(-1)
        if bool((times != times[0]).any()):
            raise InputError(name, times.tolist(), "a schedule needs one time a call: all samples' must be equal")
        return name, float(times[0])

    def _sigma(self, name: str, time: float) -> Tensor:
        value = torch.tensor(time, dtype=torch.float64)
        if self._form is None:
            return value if name.startswith("sigma") else self._unmapped(name)
        told_in_units = self._steps.start > 1 or self._form.unit == 1
        return self._form.level(value if told_in_units else value * self._form.unit)


def _sample(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The noisy input: the first floating tensor of two axes or more."""
    values = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor) and v.is_floating_point() and v.ndim > 1]
    return values[0] if values else None


def _checked(auxiliary: object, base: nn.Module) -> nn.Module | str:
    """The auxiliary of a base. Raises `InputError` for what is neither another module nor an adapter that is there."""
    if isinstance(auxiliary, str):
        adapter_layers(base, auxiliary)
    elif not isinstance(auxiliary, nn.Module):
        expected = "give a torch.nn.Module or the name of an adapter on the base"
        raise InputError("auxiliary", type(auxiliary).__name__, expected)
    elif auxiliary is base:
        raise InputError("auxiliary", type(auxiliary).__name__, "it is the base itself; give the fine-tuned copy")
    return auxiliary


def _alike(base: Tensor, auxiliary: Tensor) -> tuple[Tensor, Tensor]:
    if base.shape != auxiliary.shape:
        raise InputError("auxiliary", tuple(auxiliary.shape), f"its output must have the base's shape {(*base.shape,)}")
    return base, auxiliary


class _Steps:
    """Where a loop is, by the times it calls at: each new time is a step.

    A loop may call several times at one (conditions one after the other; Heun's corrector and the next predictor): the
    n-th calls keep a correction of their own.
    """

    def __init__(self, schedule: GuidanceSchedule) -> None:
        self._schedule = schedule
        self._begin(0.0, None)

    def _begin(self, time: float, shape: torch.Size | None) -> None:
        self.start, self._time, self._shape = time, float("nan"), shape
        self._step, self._direction, self._call = -1, 0.0, 0
        self._kept: list[Correction] = []

    def at(self, time: float, shape: torch.Size | None) -> tuple[Correction, int]:
        """What is kept for this call, and the step it is in."""
        change = time - self._time
        if self._step < 0 or shape != self._shape or change * self._direction < 0:
            self._begin(time, shape)
        elif change:
            self._direction = self._direction or change
        if time == self._time:
            self._call += 1
        else:
            self._time, self._call, self._step = time, 0, self._step + 1
        if self._call == len(self._kept):
            self._kept.append(Correction(self._schedule))
        return self._kept[self._call], self._step


# ---------------------------------------------------------------------- adapters


def adapter_layers(network: nn.Module, name: str) -> list[Any]:
    """The layers that hold the peft adapter ``name``. Raises `InputError` where there are none, or merged ones."""
    try:
        from peft.tuners.tuners_utils import BaseTunerLayer
        from peft.utils.other import AuxiliaryTrainingWrapper
    except ImportError:
        raise InputError("auxiliary", name, f"adapters need peft: {extra('diffusers')}") from None
    layers = [m for m in network.modules() if isinstance(m, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    found = [layer for layer in layers if name in layer._get_available_adapters()]
    if not found:
        there = sorted({one for layer in layers for one in layer._get_available_adapters()})
        expected = f"the base's adapters are {', '.join(there)}" if there else "the base has no peft adapters"
        raise InputError("auxiliary", name, expected)
    if any(layer.merged_adapters for layer in found):
        raise InputError("auxiliary", name, "adapters are merged into the base; unmerge (unfuse) them first")
    return found


@contextmanager
def switched(layers: list[Any], name: str, *, on: bool) -> Iterator[None]:
    """Layers with or without the adapter ``name``, alongside the others that are active; afterwards as before.

    peft's own switches also set requires_grad, which is the user's: so the layers' state is set itself.
    """
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    try:
        for layer, (_, disabled) in zip(layers, before, strict=True):
            others = [] if disabled else [other for other in layer.active_adapters if other != name]
            layer._active_adapter = [*others, name] if on else others
            layer._disable_adapters = not layer._active_adapter
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled
