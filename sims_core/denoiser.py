"""Views of other libraries' networks as the project's denoisers D(x, sigma), so that samplers and guidance take them.

A network sees ``x_t = scale(sigma) (y + sigma n)`` and is told a time; its prediction and D are affine in one another.
A view knows both, casts to the network's dtype and the shape of time that it expects, and gives back what it was given:

- `from_diffusers`: a model and its scheduler (epsilon, sample, v_prediction, flow; betas by the scheduler's config)
- `from_kdiffusion`: a model that is a denoiser already
- `from_velocity`: flow matching (Meta's flow_matching, torchcfm)
- `from_edm`: a plain network under EDM's preconditioning

and `to_network` the way back. Each view takes more keyword arguments, which go to the network at every call (class
labels, text states).
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from sims_core.devices import moved, own_dtype
from sims_core.diffusion import EDM
from sims_core.errors import InputError, choose
from sims_core.sampling import Sampler

# ------------------------------------------------------------- what networks take and give

#: What libraries call the argument that tells a network the noise.
TIMES = ("timestep", "timesteps", "t", "time", "sigma", "sigmas", "noise_labels", "noise_level", "c_noise")


def signature(network: Any) -> inspect.Signature:
    """What the network is called with, through the wrappers of peft and of `sims_core.guide`."""
    inner = getattr(network, "get_base_model", lambda: network)()
    known = getattr(inner, "__signature__", None)
    if isinstance(known, inspect.Signature):
        return known
    return inspect.signature(inner.forward if isinstance(inner, nn.Module) else inner)


def time_name(names: Any) -> str | None:
    """The argument of ``names`` that tells the noise, of `TIMES`; None if there is none."""
    return next((name for name in names if name in TIMES), None)


def prediction(output: Any) -> Tensor:
    """The tensor that a network predicts: its output, or the first item of a tuple or of an output dataclass."""
    first = output
    if dataclasses.is_dataclass(output):
        first = getattr(output, dataclasses.fields(output)[0].name)
    elif isinstance(output, tuple | list) and output:
        first = output[0]
    if not isinstance(first, Tensor) or not first.is_floating_point():
        expected = "the network must return a floating tensor, a tuple or dataclass that begins with one"
        raise InputError("output", type(output).__name__, expected)
    return first


def with_prediction(output: Any, tensor: Tensor) -> Any:
    """The output with another prediction, of the same type; what else it holds stays."""
    if isinstance(output, Tensor):
        return tensor
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return replace(output, **{dataclasses.fields(output)[0].name: tensor})
    rest = [tensor, *output[1:]]
    return type(output)(*rest) if hasattr(output, "_fields") else type(output)(rest)


def has_variance(predicted: Tensor, x: Tensor) -> bool:
    """Whether the network predicts a variance as well: twice its input's channels (learned_range; DiT)."""
    return x.ndim > 2 and predicted.ndim == x.ndim and predicted.shape[1] == 2 * x.shape[1]


# ------------------------------------------------------------------------- forms


@dataclass(frozen=True)
class Form:
    """How a network is told the noise and what it predicts. Functions of float64 tensors.

    time: sigma -> what it is told. level: the inverse. scale: sigma -> x_t / (y + sigma n). clean: ``(x, sigma,
    output) -> D``, x unscaled. span: the noise levels it knows. unit: of time, where some models are told time / unit.
    scalar: it takes one time per call, zero-dim; else one per sample, (B,). table: its levels of training, float64 and
    increasing, where those are steps 0, 1, ...
    """

    time: Callable[[Tensor], Tensor]
    level: Callable[[Tensor], Tensor]
    scale: Callable[[Tensor], Tensor]
    clean: Callable[[Tensor, Tensor, Tensor], Tensor]
    span: tuple[float, float] = (0.0, math.inf)
    unit: float = 1.0
    scalar: bool = False
    table: Tensor | None = None


def _same(sigma: Tensor) -> Tensor:
    return sigma


#: A denoiser already: D(x, sigma).
_DENOISER = Form(_same, _same, torch.ones_like, lambda x, sigma, output: output)


def _edm(sigma_data: float, sign: int = 1) -> Form:
    edm = EDM(sigma_data)
    return Form(
        edm.c_noise,
        lambda time: (4 * time).exp(),
        edm.c_in,
        lambda x, sigma, output: edm.c_skip(sigma) * x + sign * edm.c_out(sigma) * output,
    )


#: Prediction types under a variance-preserving schedule, x_t = (y + sigma n) / sqrt(1 + sigma^2).
_VARIANCE_PRESERVING: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda x, sigma, output: x - sigma * output,
    "sample": lambda x, sigma, output: output,
    "v_prediction": lambda x, sigma, output: x / (1 + sigma**2) - sigma / (1 + sigma**2).sqrt() * output,
}


def _betas(alphas_cumprod: Tensor, predicted: str) -> Form:
    """A table of noise levels sigma_t = sqrt((1 - alpha_bar_t) / alpha_bar_t), read between its lines in log sigma."""
    kept = alphas_cumprod.detach().to("cpu", torch.float64)
    kept = kept[kept > 0]  # a schedule with zero terminal SNR ends at infinity
    logs = ((1 - kept) / kept).log().numpy() / 2
    lines = np.arange(len(logs))

    def time(sigma: Tensor) -> Tensor:
        found = torch.as_tensor(np.interp(sigma.cpu().log().numpy(), logs, lines))
        whole = found.round()
        return whole.long() if bool(((found - whole).abs() < 1e-3).all()) else found

    def level(time: Tensor) -> Tensor:
        return torch.as_tensor(np.exp(np.interp(time.cpu().numpy(), lines, logs)))

    clean = _VARIANCE_PRESERVING[choose("prediction_type", predicted, _VARIANCE_PRESERVING)]
    span = (math.exp(logs[0]), math.exp(logs[-1]))
    return Form(time, level, lambda sigma: (1 + sigma**2).rsqrt(), clean, span, table=torch.from_numpy(np.exp(logs)))


def _rectified(steps: float) -> Form:
    """Flow schedulers of diffusers: x_s = (1 - s) y + s n, v = n - y, told s times ``steps``; sigma = s / (1 - s)."""
    return Form(
        lambda sigma: steps * sigma / (1 + sigma),
        lambda time: (time / steps) / (1 - time / steps),
        lambda sigma: 1 / (1 + sigma),
        lambda x, sigma, output: (x - sigma * output) / (1 + sigma),
        unit=steps,
    )


Coefficients: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor]
"""alpha, sigma and their derivatives at t, of x_t = alpha y + sigma n with t = 1 the data."""

#: Paths by name: t -> `Coefficients`, and signal over noise -> t. 'cosine' is torchcfm's variance-preserving one.
PATHS: dict[str, tuple[Callable[[Tensor], Coefficients], Callable[[Tensor], Tensor]]] = {
    "cond-ot": (lambda t: (t, 1 - t, torch.ones_like(t), -torch.ones_like(t)), lambda snr: snr / (1 + snr)),
    "cosine": (
        lambda t: (
            (t * math.pi / 2).sin(),
            (t * math.pi / 2).cos(),
            (t * math.pi / 2).cos() * math.pi / 2,
            -(t * math.pi / 2).sin() * math.pi / 2,
        ),
        lambda snr: snr.atan() * 2 / math.pi,
    ),
}


def _path(path: Any) -> Form:
    """A path of `PATHS`, or one of flow_matching's (an affine path or its scheduler)."""
    if isinstance(path, str):
        at, inverse = PATHS[choose("path", path, PATHS)]
    else:
        own = getattr(path, "scheduler", path)
        if not hasattr(own, "snr_inverse"):
            raise InputError("path", type(path).__name__, f"give {', '.join(PATHS)}, or a path of flow_matching")
        inverse = own.snr_inverse

        def at(t: Tensor) -> Coefficients:
            made = own(t)
            return made.alpha_t, made.sigma_t, made.d_alpha_t, made.d_sigma_t

    def time(sigma: Tensor) -> Tensor:
        return inverse(1 / sigma)

    def clean(x: Tensor, sigma: Tensor, output: Tensor) -> Tensor:
        alpha, noise, d_alpha, d_noise = at(time(sigma))
        return (noise * output - d_noise * alpha * x) / (d_alpha * noise - d_noise * alpha)

    return Form(time, lambda t: at(t)[1] / at(t)[0], lambda sigma: at(time(sigma))[0], clean, scalar=True)


def form_of(scheduler: Any) -> Form:
    """What a scheduler of diffusers says of its networks.

    A path of flow_matching, one of `PATHS` by name and a view's form (``from_edm(network).form``) are taken too. Raises
    `InputError` for a scheduler that has neither betas nor the noise levels of flows or of EDM.
    """
    if isinstance(scheduler, Form):
        return scheduler
    if isinstance(scheduler, str) or hasattr(getattr(scheduler, "scheduler", scheduler), "snr_inverse"):
        return _path(scheduler)
    config, kind = getattr(scheduler, "config", {}), type(scheduler).__name__
    predicted = config.get("prediction_type", "epsilon")
    if kind.startswith("FlowMatch") or predicted == "flow_prediction" or config.get("use_flow_sigmas"):
        return _rectified(float(config["num_train_timesteps"]))
    if kind.startswith("EDM"):
        choose("prediction_type", predicted, ("epsilon", "v_prediction"))
        return _edm(config["sigma_data"], 1 if predicted == "epsilon" else -1)
    table = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(table, Tensor) or config.get("timestep_type", "discrete") != "discrete":
        known = "give one with betas (DDPM, DDIM, Euler, DPM-Solver, ...), FlowMatch..., EDM... or a flow's path"
        raise InputError("scheduler", kind, known)
    return _betas(table, predicted)


def sigmas(scheduler: Any) -> Tensor:
    """The noise levels of a scheduler's timesteps, decreasing, then 0. Shape (steps + 1,), float64.

    Call ``scheduler.set_timesteps(n)`` first. With 'euler', `sims_core.sampling.sample` then takes the steps of DDIM.
    """
    levels = form_of(scheduler).level(scheduler.timesteps.to("cpu", torch.float64))
    return torch.cat([levels, levels.new_zeros(1)])


# ------------------------------------------------------------------------- views


@dataclass(frozen=True)
class View:
    """A network as a denoiser: ``view(x, sigma)``, x (B, ...) = y + sigma n, sigma zero-dim or broadcastable to x.

    Computed in the network's dtype, combined and returned in x's. Raises `InputError` for a sigma outside ``span``.
    """

    network: Callable[..., Any]
    form: Form
    inputs: Mapping[str, Any]

    @property
    def span(self) -> tuple[float, float]:
        """The lowest and the highest noise level that the network knows."""
        return self.form.span

    def fitted(self, sampler: Sampler) -> Sampler:
        """The sampler within the levels that the network knows: sigma_min and sigma_max moved where they must be."""
        low, high = self.span
        return replace(sampler, sigma_min=max(sampler.sigma_min, low), sigma_max=min(sampler.sigma_max, high))

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        """E[y | x], shape and dtype of x."""
        self._known(sigma)
        dtype = own_dtype(self.network)
        level = moved(sigma, x.device, x.dtype) if sigma.ndim else sigma
        seen = (self.form.scale(level) * x).to(dtype)
        predicted = prediction(self._call(seen, self._time(sigma, x, dtype)))
        if has_variance(predicted, x):
            predicted = predicted[:, : x.shape[1]]
        if predicted.shape != x.shape:
            raise InputError("network", tuple(predicted.shape), f"it must predict the shape of its input {(*x.shape,)}")
        return self.form.clean(x, level, predicted.to(x.dtype))

    def _known(self, sigma: Tensor) -> None:
        (low, high), slack = self.span, 1e-4
        lowest, highest = float(sigma.min()), float(sigma.max())
        if lowest < low * (1 - slack) or highest > high * (1 + slack):
            expected = f"the network knows noise levels from {low:.4g} to {high:.4g}; sample with view.fitted(sampler)"
            raise InputError("sigma", lowest if lowest < low else highest, expected)

    def _time(self, sigma: Tensor, x: Tensor, dtype: torch.dtype) -> Tensor:
        time = self.form.time(sigma.to(torch.float64).reshape(-1))
        if time.is_floating_point():
            time = time.to(torch.promote_types(dtype, torch.float32))
        alone = self.form.scalar and len(time) == 1
        return moved(time.reshape(()) if alone else time.expand(len(x)).contiguous(), x.device)

    def _call(self, x: Tensor, time: Tensor) -> Any:
        names = list(signature(self.network).parameters)
        name = time_name(names)
        if name is None:
            return self.network(x, time, **self.inputs)
        if name == names[0]:
            return self.network(time, x, **self.inputs)
        return self.network(x, **{name: time}, **self.inputs)


def from_diffusers(model: Callable[..., Any], scheduler: Any, **inputs: Any) -> View:
    """A model of diffusers under its scheduler: epsilon, sample, v_prediction (betas, EDM) or flow.

    model: ``model(sample, timestep, **inputs)``, a UNet, a transformer or `sims_core.guide` of one; a learned variance
    is left aside. Raises `InputError` for a scheduler without betas or noise levels.
    """
    return View(model, form_of(scheduler), inputs)


def from_kdiffusion(model: Callable[..., Any], **inputs: Any) -> View:
    """A model of k-diffusion: ``model(x, sigma, **inputs)`` with sigma (B,) is D already."""
    return View(model, _DENOISER, inputs)


def from_velocity(model: Callable[..., Any], path: Any = "cond-ot", **inputs: Any) -> View:
    """A flow's velocity, noise at t = 0 and data at t = 1, called as ``model(x, t)`` or, where t is first, ``(t, x)``.

    path: 'cond-ot' (x_t = t y + (1 - t) n), 'cosine' (torchcfm's variance-preserving), or a path or scheduler of
    flow_matching. t is zero-dim, as both libraries' solvers give it. Raises `InputError` for another path.
    """
    return View(model, _path(path), inputs)


def from_edm(network: Callable[..., Any], sigma_data: float = 0.5, **inputs: Any) -> View:
    """A plain network F(c_in x, c_noise (B,)) under EDM's preconditioning (arXiv 2206.00364, Eq. 7).

    >>> import torch
    >>> from sims_core import Sampler, denoiser
    >>> view = denoiser.from_edm(lambda x, noise: torch.zeros_like(x), sigma_data=1.0)
    >>> Sampler.parse("heun:18")(view, torch.randn(4, 2)).shape
    torch.Size([4, 2])
    """
    return View(network, _edm(sigma_data), inputs)


class Network(nn.Module):
    """What `to_network` returns: ``(x_t (B, ...), time)`` -> what that scheduler's networks predict, in x_t's dtype."""

    def __init__(self, denoiser: Callable[..., Tensor], form: Form) -> None:
        super().__init__()
        self.denoiser, self.form = denoiser, form

    def forward(self, x: Tensor, t: Tensor | float, **inputs: Any) -> Tensor:
        """t: a number, zero-dim or (B,). inputs: the denoiser's."""
        time = torch.as_tensor(t).detach().to("cpu", torch.float64)
        low, high = self.form.span
        # pure noise has no finite sigma, and data have no noise to predict
        sigma = self.form.level(time).clamp(max(low, 1e-5), min(high, 1e5))
        if sigma.ndim:
            sigma = sigma.reshape(-1, *([1] * (x.ndim - 1)))
        level = moved(sigma, x.device) if sigma.ndim else sigma
        unscaled = x.double() / self.form.scale(level)
        clean = functools.partial(self.form.clean, unscaled, level)
        nothing = clean(torch.zeros_like(x, dtype=torch.float64))
        slope = clean(torch.ones_like(x, dtype=torch.float64)) - nothing
        found = self.denoiser(unscaled, level, **inputs).double()
        return ((found - nothing) / slope).to(x.dtype)


def to_network(denoiser: Callable[..., Tensor], scheduler: Any = None) -> Network:
    """A denoiser as a network that other libraries' loops call: the inverse of a view.

    scheduler: as `form_of`; a scheduler of diffusers, a flow's path, a view's form; None for k-diffusion, whose
    networks are denoisers. Keywords of a call go to the denoiser.

    >>> import torch
    >>> from sims_core import denoiser
    >>> gaussian = lambda x, sigma: x / (1 + sigma**2)  # of N(0, 1) data
    >>> velocity = denoiser.to_network(gaussian, "cond-ot")
    >>> velocity(torch.ones(1, 2), 0.5)  # half of it is noise: none to remove
    tensor([[0., 0.]])
    """
    return Network(denoiser, _DENOISER if scheduler is None else form_of(scheduler))
