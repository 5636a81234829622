"""The SIMS extrapolation, of denoisers and of weights.

SIMS (arXiv 2408.16333) samples from ``s(x, t) = (1 + omega) s_base(x, t) - omega s_aux(x, t)``. At a given (x, t) the
score, the denoiser, the noise prediction and the velocity are affine in one another with coefficients that do not
depend on the model, so the same line holds for each of them; here it is written for denoisers D(x, sigma) = E[y | x].

omega = 0 is the base exactly. Autoguidance (Karras et al. 2024, arXiv 2406.02507) writes
``D = D_g + w (D_m - D_g)``: the same object with w = 1 + omega. Neon (arXiv 2510.03597) applies the line to weights.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from sims_core.errors import InputError

Denoiser: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``denoiser(x, sigma) -> E[y | x]``: x (B, ...), sigma a zero-dim tensor or one that broadcasts against x."""

Omega: TypeAlias = float | Tensor | Callable[[Tensor], float | Tensor]
"""A number, a tensor of one value a sample, or a function of sigma that returns either."""


def extrapolate(base: Tensor, auxiliary: Tensor, omega: float | Tensor) -> Tensor:
    """``(1 + omega) base - omega auxiliary``, combined in float32 or better.

    base, auxiliary: tensors of one shape (B, ...). omega: a number, or a tensor (B,) or broadcastable to the others.
    Written as ``base + omega (base - auxiliary)``: base and auxiliary differ by about 0.1 %, and the difference is
    the signal, so it is taken first and never in half precision (source: SIMS, Algorithm 1, last line).
    """
    dtype = torch.promote_types(torch.promote_types(base.dtype, auxiliary.dtype), torch.float32)
    base, auxiliary = base.to(dtype), auxiliary.to(dtype)
    if isinstance(omega, Tensor):
        omega = _per_sample(omega, base).to(device=base.device, dtype=dtype)
        # 0 x nan is not 0: a row at omega = 0 stays the base even where its auxiliary has diverged
        return torch.where(omega == 0, base, base + omega * (base - auxiliary))
    return base if omega == 0 else base + omega * (base - auxiliary)


def guided(base: Denoiser, auxiliary: Denoiser, omega: Omega, interval: tuple[float, float] | None = None) -> Denoiser:
    """The SIMS denoiser of two denoisers.

    omega: a number, a per-sample tensor, or a function of sigma returning either.
    interval: (low, high) in units of sigma, both ends included; outside it only the base is evaluated
    (guidance intervals: Kynkaanniemi et al. 2024, arXiv 2404.07724). It needs one sigma a call.
    A number omega = 0 also evaluates the base alone, so that it is the base bit for bit.
    Raises `InputError` for a non-finite omega or an interval whose ends are reversed or negative.
    """
    if isinstance(omega, int | float) and not math.isfinite(omega):
        raise InputError("omega", omega, "give a finite number (0 is the base)")
    if interval is not None and not 0 <= interval[0] <= interval[1]:
        raise InputError("interval", interval, "give (low, high) in sigma with 0 <= low <= high")

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        first = base(x, sigma)
        if interval is not None:
            if sigma.numel() != 1:
                raise InputError("sigma", tuple(sigma.shape), "an interval needs one sigma a call (a zero-dim tensor)")
            if not interval[0] <= float(sigma) <= interval[1]:
                return first
        strength = omega(sigma) if callable(omega) else omega
        if not isinstance(strength, Tensor) and strength == 0:
            return first
        return extrapolate(first, auxiliary(x, sigma), strength)

    return denoiser


def omega_from_autoguidance(w: float) -> float:
    """SIMS's omega for an autoguidance weight w (``D_g + w (D_m - D_g)``): omega = w - 1."""
    return w - 1.0


def scaled(denoiser: Denoiser, zeta: float) -> Denoiser:
    """The denoiser whose score is multiplied by zeta: ``D' = x + zeta (D - x)``; zeta > 1 seeks modes.

    Neon (arXiv 2510.03597, appendix) draws its toy's negatives this way.
    """
    if zeta == 1:
        return denoiser
    return lambda x, sigma: x + zeta * (denoiser(x, sigma) - x)


def merge_weights(base: Mapping[str, Tensor], auxiliary: Mapping[str, Tensor], omega: float) -> dict[str, Tensor]:
    """Neon: ``(1 + omega) theta_base - omega theta_aux`` for every floating tensor of two state dicts.

    Tensors that are not floating point (counters, masks) are the base's. Each result keeps the base's dtype, combined
    in float32 or better. Raises `InputError` where names or shapes differ. Source: Neon (arXiv 2510.03597), Eq. 1.
    """
    if set(base) != set(auxiliary):
        odd = sorted(set(base) ^ set(auxiliary))[0]
        raise InputError("auxiliary", odd, "both models need the same parameter names; this one is in only one of them")
    merged = {}
    for name, weight in base.items():
        other = auxiliary[name]
        if weight.shape != other.shape:
            raise InputError("auxiliary", f"{name} {tuple(other.shape)}", f"the base's shape is {tuple(weight.shape)}")
        floating = weight.is_floating_point()
        merged[name] = extrapolate(weight, other, omega).to(weight.dtype) if floating else weight.clone()
    return merged


def _per_sample(omega: Tensor, like: Tensor) -> Tensor:
    """View a (B,) omega so that it broadcasts over the trailing axes of ``like``; leave other shapes alone."""
    if omega.ndim == 1 and like.ndim > 1:
        if omega.shape[0] not in (1, like.shape[0]):
            raise InputError("omega", tuple(omega.shape), f"one value a sample needs shape ({like.shape[0]},)")
        return omega.reshape(-1, *([1] * (like.ndim - 1)))
    return omega
