"""The SIMS extrapolation, of denoisers and of weights.

SIMS (arXiv 2408.16333) samples from ``s(x, t) = (1 + omega) s_base(x, t) - omega s_aux(x, t)``. At a given (x, t) the
score, the denoiser, the noise prediction and the velocity are affine in one another with coefficients that do not
depend on the model, so the same line holds for each of them; here it is written for denoisers D(x, sigma) = E[y | x].

Evaluating the auxiliary at every evaluation of the base doubles the cost; `GuidanceSchedule` says where else it may be
evaluated, and `Stepped` denoisers are how a sampler lets it know where in its step it is.

omega = 0 is the base exactly. Autoguidance (Karras et al. 2024, arXiv 2406.02507) writes
``D = D_g + w (D_m - D_g)``: the same object with w = 1 + omega. Neon (arXiv 2510.03597) applies the line to weights.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import torch
from torch import Tensor

from sims_core.devices import moved
from sims_core.errors import InputError, choose

Denoiser: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""``denoiser(x, sigma) -> E[y | x]``: x (B, ...), sigma a zero-dim tensor or one that broadcasts against x."""

Both: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""``both(x, sigma) -> (D_base, D_aux)``: the two denoisers evaluated together, where that is faster than in turn."""

Omega: TypeAlias = float | Tensor | Callable[[Tensor], float | Tensor]
"""A number, a tensor of one value per sample, or a function of sigma that returns either."""


@dataclass(frozen=True)
class Rule:
    """How a base is moved by its correction D_base - D_aux.

    run: ``(base, correction, omega) -> D``, tensors of one shape (B, ...) in one precision, float32 or better; omega a
    number or a tensor that broadcasts. It is not asked where omega is 0. affine: whether D is affine in the two, so
    that exact Gaussians stay Gaussians.
    """

    run: Callable[[Tensor, Tensor, float | Tensor], Tensor]
    affine: bool = False


#: Rules by name, as a schedule's text gives them; 'linear' is SIMS. One from outside is a function and a line:
#: ``RULES["projected"] = Rule(projected)``, and then ``--guidance projected`` or ``projected+held:2`` at every scale.
RULES: dict[str, Rule] = {"linear": Rule(lambda base, correction, omega: base + omega * correction, affine=True)}


def extrapolate(base: Tensor, auxiliary: Tensor, omega: float | Tensor) -> Tensor:
    """``(1 + omega) base - omega auxiliary``, combined in float32 or better, in the base's dtype.

    base, auxiliary: tensors of one shape (B, ...). omega: a number, or a tensor (B,) or broadcastable to the others.
    Written as ``base + omega (base - auxiliary)``: base and auxiliary differ by about 0.1 %, and the difference is
    the signal, so it is taken first and never in half precision (source: SIMS, Algorithm 1, last line).
    """
    return _corrected(base, _correction(base, auxiliary), omega)


def _correction(base: Tensor, auxiliary: Tensor) -> Tensor:
    """``base - auxiliary`` in float32 or better."""
    dtype = torch.promote_types(torch.promote_types(base.dtype, auxiliary.dtype), torch.float32)
    return base.to(dtype) - auxiliary.to(dtype)


def _corrected(base: Tensor, correction: Tensor, omega: float | Tensor, rule: str = "linear") -> Tensor:
    """``base`` moved by the rule in the correction's precision or better, given back in the base's dtype."""
    dtype = torch.promote_types(base.dtype, correction.dtype)
    wide, correction, run = base.to(dtype), correction.to(dtype), RULES[rule].run
    if isinstance(omega, Tensor):
        omega = moved(_per_sample(omega, base), base.device, dtype)
        # 0 x nan is not 0: a row at omega = 0 stays the base even where its auxiliary has diverged
        return torch.where(omega == 0, wide, run(wide, correction, omega)).to(base.dtype)
    return base if omega == 0 else run(wide, correction, omega).to(base.dtype)


def guided(
    base: Denoiser,
    auxiliary: Denoiser,
    omega: Omega,
    interval: tuple[float, float] | None = None,
    *,
    rule: str = "linear",
    both: Both | None = None,
) -> Denoiser:
    """The SIMS denoiser of two denoisers.

    omega: a number, a per-sample tensor, or a function of sigma returning either.
    interval: (low, high) in units of sigma, both ends included; outside it only the base is evaluated
    (guidance intervals: Kynkaanniemi et al. 2024, arXiv 2404.07724). It needs one sigma per call, or equal ones.
    rule: of `RULES`. A number omega = 0 also evaluates the base alone, so that it is the base bit for bit.
    both: evaluates the two together, in place of ``base`` and ``auxiliary`` in turn.
    Raises `InputError` for a non-finite omega, an interval whose ends are reversed or negative, or no rule.

    >>> base, auxiliary = lambda x, sigma: 0.5 * x, lambda x, sigma: 0.4 * x
    >>> denoiser = guided(base, auxiliary, 1.0, interval=(0.1, 10.0))
    >>> [denoiser(torch.ones(1), torch.tensor(sigma)).item() for sigma in (1.0, 80.0)]
    [0.6..., 0.5]
    """
    check(omega, interval)
    choose("rule", rule, RULES)
    joint = _in_turn(base, auxiliary) if both is None else both

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        strength = strength_at(omega, interval, sigma)
        if strength is None:
            return base(x, sigma)
        first, second = joint(x, sigma)
        return _corrected(first, _correction(first, second), strength, rule)

    return denoiser


def _in_turn(base: Denoiser, auxiliary: Denoiser) -> Both:
    return lambda x, sigma: (base(x, sigma), auxiliary(x, sigma))


def strength_at(omega: Omega, interval: tuple[float, float] | None, sigma: Tensor) -> float | Tensor | None:
    """omega at this noise level; None where the base is evaluated alone: outside the interval, or for a number 0."""
    if not _inside(interval, sigma):
        return None
    strength = omega(sigma) if callable(omega) else omega
    return None if not isinstance(strength, Tensor) and strength == 0 else strength


def check(omega: Omega, interval: tuple[float, float] | None) -> None:
    """Raise `InputError` for a non-finite omega or an interval whose ends are reversed or negative."""
    if isinstance(omega, int | float) and not math.isfinite(omega):
        raise InputError("omega", omega, "give a finite number (0 is the base)")
    if interval is not None and not 0 <= interval[0] <= interval[1]:
        raise InputError("interval", interval, "give (low, high) in sigma with 0 <= low <= high")


def _inside(interval: tuple[float, float] | None, sigma: Tensor) -> bool:
    if interval is None:
        return True
    level = sigma.reshape(-1)[0]
    if bool((sigma != level).any()):
        raise InputError("sigma", sigma.reshape(-1).tolist(), "an interval needs one sigma per call: all must be equal")
    return interval[0] <= float(level) <= interval[1]


# ------------------------------------------------- where the auxiliary is evaluated


@runtime_checkable
class Stepped(Protocol):
    """A denoiser that wants to know which step of the sampler it is in.

    `sims_core.sampling.trajectory` calls `begin` once per trajectory and its result once per step, with 0, 1, ...; what
    that returns is the step's denoiser. Nothing is kept from one trajectory to the next.
    """

    def begin(self) -> Callable[[int], Denoiser]:
        """Start a trajectory: ``step -> denoiser``."""
        ...


@dataclass(frozen=True)
class GuidanceSchedule:
    """Where a sampler evaluates the auxiliary, and by which rule. As text: full, interval:LOW:HIGH, held:K, predictor.

    every: 0 evaluates it wherever the base is evaluated; k > 0 only at the first evaluation of every k-th step.
    hold: whether the correction D_base - D_aux is kept for the evaluations in between (held:K), or they are the base
    alone (predictor: for Heun, the auxiliary is seen by the predictor and not by the corrector). interval: (low, high)
    in sigma, both ends included; outside it the base alone, and steps are counted from the first one inside. rule: a
    name of `RULES`, which stands in the text as it is ('linear' need not). Parts are joined by '+', such as
    held:2+interval:0.8:3.

    >>> from sims_core import Sampler
    >>> schedule = GuidanceSchedule.parse("held:2")
    >>> Sampler.parse("heun:18").evaluations(schedule)  # of base and auxiliary: 1.26 times the base's cost
    (35, 9)
    """

    every: int = 0
    hold: bool = True
    interval: tuple[float, float] | None = None
    rule: str = "linear"

    def __post_init__(self) -> None:
        check(0.0, self.interval)
        choose("rule", self.rule, RULES)
        if self.every < 0:
            raise InputError("every", self.every, "give a number of steps, or 0 for every evaluation")

    @classmethod
    def parse(cls, text: str, *, argument: str = "guidance") -> GuidanceSchedule:
        """Read a schedule. Raises `InputError` naming ``argument`` for anything else."""
        made: dict[str, Any] = {}
        for part in text.split("+"):
            name, *numbers = part.strip().split(":")
            found: dict[str, Any]
            choose(argument, name, (*_PARTS, *RULES))
            if name in RULES and not numbers:
                found = {"rule": name}
            elif name == "held" and len(numbers) == 1 and re.fullmatch("0*[1-9][0-9]{0,5}", numbers[0]):
                found = {"every": int(numbers[0])}
            elif name == "interval" and (ends := _ends(numbers)) is not None:
                found = {"interval": ends}
            elif name in ("full", "predictor") and not numbers:
                found = {"every": 1, "hold": False} if name == "predictor" else {}
            else:
                expected = "write full, predictor, held:K with K >= 1 steps, or interval:LOW:HIGH with 0 <= LOW <= HIGH"
                raise InputError(argument, text, expected)
            if set(found) & set(made):
                raise InputError(argument, text, "join an interval, one of held:K and predictor, and one rule")
            made |= found
        return cls(**made)

    def __str__(self) -> str:
        rhythm = (f"held:{self.every}" if self.hold else "predictor") if self.every else ""
        span = f"interval:{self.interval[0]:g}:{self.interval[1]:g}" if self.interval else ""
        rule = self.rule if self.rule != "linear" else ""
        return "+".join(filter(None, (rule, rhythm, span))) or "full"

    def denoiser(self, base: Denoiser, auxiliary: Denoiser, omega: Omega, *, both: Both | None = None) -> Denoiser:
        """The SIMS denoiser of two denoisers on this schedule; arguments and errors as `guided`.

        Tensors of any shape. held:K and predictor need to be told the steps, as `sims_core.sampling` does; called by
        a loop that does not, they raise `InputError`.
        """
        if not self.every:
            return guided(base, auxiliary, omega, self.interval, rule=self.rule, both=both)
        check(omega, self.interval)
        return _Scheduled(base, both or _in_turn(base, auxiliary), omega, self)

    def counted(
        self, run: Callable[[Denoiser], object], answer: Denoiser = lambda x, sigma: torch.zeros_like(x)
    ) -> tuple[int, int]:
        """How often ``run``, given a guided denoiser of ``answer`` twice, evaluates (base, auxiliary)."""
        counts = [0, 0]

        def network(which: int) -> Denoiser:
            def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
                counts[which] += 1
                return answer(x, sigma)

            return denoiser

        run(self.denoiser(network(0), network(1), 1.0))
        return counts[0], counts[1]


#: The words of a schedule's text besides rules.
_PARTS = ("full", "interval", "held", "predictor")
#: The auxiliary wherever the base is.
FULL = GuidanceSchedule()


def _ends(numbers: list[str]) -> tuple[float, float] | None:
    try:
        low, high = map(float, numbers)
    except ValueError:
        return None
    return (low, high) if 0 <= low <= high else None


@dataclass(frozen=True)
class _Scheduled:
    """A guided denoiser whose auxiliary is evaluated at the first evaluation of some steps (`Stepped`)."""

    base: Denoiser
    both: Both
    omega: Omega
    schedule: GuidanceSchedule

    def __call__(self, x: Tensor, sigma: Tensor) -> Tensor:
        expected = "only a sampler that tells its steps can hold guidance; sample with sims_core.Sampler, or give full"
        raise InputError("guidance", str(self.schedule), expected)

    def begin(self) -> Callable[[int], Denoiser]:
        """Start a trajectory."""
        kept = Correction(self.schedule)

        def at(step: int) -> Denoiser:
            opening = True  # the step's first evaluation is still to come

            def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
                nonlocal opening
                predictor, opening = opening, False
                strength = strength_at(self.omega, self.schedule.interval, sigma)
                first = step if predictor else None
                return kept.guide(strength, first, lambda: self.base(x, sigma), lambda: self.both(x, sigma))

            return denoiser

        return at


@dataclass
class Correction:
    """D_base - D_aux along one trajectory: what a schedule keeps of it, and how old that is."""

    schedule: GuidanceSchedule
    held: Tensor | None = None
    evaluated: int = 0  # the step in which it was

    def guide(
        self,
        omega: float | Tensor | None,
        step: int | None,
        base: Callable[[], Tensor],
        both: Callable[[], tuple[Tensor, Tensor]],
    ) -> Tensor:
        """The guided output of one evaluation. omega: None for the base alone; step: None where it is not its first."""
        due = self.held is None or (step is not None and step - self.evaluated >= self.schedule.every)
        if omega is not None and step is not None and due:
            first, second = both()
            self.held, self.evaluated = _correction(first, second), step
            return _corrected(first, self.held, omega, self.schedule.rule)
        first = base()
        if omega is None or self.held is None or not self.schedule.hold:
            return first
        return _corrected(first, self.held, omega, self.schedule.rule)


def omega_from_autoguidance(w: float) -> float:
    """SIMS's omega for an autoguidance weight w (``D_g + w (D_m - D_g)``): omega = w - 1."""
    return w - 1.0


def scaled(denoiser: Denoiser, zeta: float) -> Denoiser:
    """The denoiser whose score is multiplied by zeta: ``D' = x + zeta (D - x)``; zeta > 1 seeks modes.

    Neon (arXiv 2510.03597, appendix) draws its toy's negatives this way. A `Stepped` denoiser is refused.
    """
    if zeta == 1:
        return denoiser
    if isinstance(denoiser, Stepped):
        raise InputError("denoiser", type(denoiser).__name__, "scale the base and the auxiliary, not their combination")
    return lambda x, sigma: x + zeta * (denoiser(x, sigma) - x)


def noisier(denoiser: Denoiser, factor: float) -> Denoiser:
    """The denoiser told that there is ``factor`` times the noise: ``D'(x, sigma) = D(x, factor sigma)``.

    Self-guidance (arXiv 2412.05827) takes it for the auxiliary: ``guided(D, noisier(D, 1.2), omega)`` needs no second
    network. Of a Gaussian it multiplies every variance by factor^(2 omega). Raises `InputError` for a factor that is
    not above 1, and for a `Stepped` denoiser.
    """
    if not 1 < factor < math.inf:
        raise InputError("factor", factor, "give a number above 1, such as 1.2")
    if isinstance(denoiser, Stepped):
        raise InputError("denoiser", type(denoiser).__name__, "give the base, not a guided pair")
    return lambda x, sigma: denoiser(x, factor * sigma)


def windowed(denoiser: Denoiser, size: int, stride: int) -> Denoiser:
    """The denoiser of square windows of an image, each alone, averaged where they overlap: ``D'(x, sigma)``.

    Sliding window guidance (arXiv 2411.10257) takes it for the auxiliary, so that what ``D`` knows from afar counts
    more: ``guided(D, windowed(D, 48, 16), omega)``. x (B, C, H, W); the network takes windows (B, C, size, size). The
    last row and column of windows end at the image's edge. Raises `InputError` for a size or stride that leaves parts
    out or holds the whole image, and for a `Stepped` denoiser.
    """
    if isinstance(denoiser, Stepped):
        raise InputError("denoiser", type(denoiser).__name__, "give the base, not a guided pair")
    if not 0 < stride <= size:
        raise InputError("stride", stride, f"give 1 to the size of a window, {size}")

    def answer(x: Tensor, sigma: Tensor) -> Tensor:
        if x.ndim != 4 or size > min(x.shape[-2:]) or size >= max(x.shape[-2:]):
            raise InputError("size", size, f"windows must be smaller than the images; these are {tuple(x.shape)}")
        total, count = torch.zeros_like(x), x.new_zeros(x.shape[-2:])
        rows, columns = (sorted({*range(0, side - size, stride), side - size}) for side in x.shape[-2:])
        for top, left in itertools.product(rows, columns):
            at = (..., slice(top, top + size), slice(left, left + size))
            total[at] += denoiser(x[at], sigma)
            count[at] += 1
        return total / count

    return answer


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
        merged[name] = extrapolate(weight, other, omega) if floating else weight.clone()
    return merged


def _per_sample(omega: Tensor, like: Tensor) -> Tensor:
    """View a (B,) omega so that it broadcasts over the trailing axes of ``like``; leave other shapes alone."""
    if omega.ndim == 1 and like.ndim > 1:
        if omega.shape[0] not in (1, like.shape[0]):
            raise InputError("omega", tuple(omega.shape), f"one value per sample needs shape ({like.shape[0]},)")
        return omega.reshape(-1, *([1] * (like.ndim - 1)))
    return omega
