"""What people write on the command line: grids (``0:5:0.5``) and training budgets (``6Mi``)."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from sims_core.errors import InputError, shown

GRID_SYNTAX = "write a:b (eleven values, both ends included), a:b:step, or a,b,c"


def parse_grid(
    argument: str, text: str, *, low: float = -math.inf, high: float = math.inf, integer: bool = False
) -> list[float]:
    """The values of a grid: ``a:b`` is eleven evenly spaced values, ``a:b:step`` includes both ends, ``a,b,c`` a list.

    Where step does not divide the range, the last interval is the shorter one. Duplicates are dropped, order is kept.
    Raises `InputError` naming ``argument`` for an empty, reversed or malformed grid, a step that is not positive, a
    value that is not finite or lies outside [low, high], or a fraction where ``integer`` asks for whole numbers.
    """
    text = text.strip()
    if not text:
        raise InputError(argument, text, f"the grid is empty; {GRID_SYNTAX}")
    values = _span(argument, text) if ":" in text else [_number(argument, text, part) for part in text.split(",")]
    for value in values:
        if not low <= value <= high:
            below = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}"
            raise InputError(argument, text, f"{value:g} is out of range; values must be {below}")
        if integer and value != round(value):
            raise InputError(argument, text, f"{value:g} is not a whole number; give a step, such as 100:1000:100")
    return list(dict.fromkeys(values))


def _number(argument: str, text: str, part: str) -> float:
    told = shown(part.strip(), 40)
    try:
        value = float(part)
    except ValueError:
        raise InputError(argument, text, f"'{told}' is not a number; {GRID_SYNTAX}") from None
    if not math.isfinite(value):
        raise InputError(argument, text, f"'{told}' is not finite; {GRID_SYNTAX}")
    return value


def _span(argument: str, text: str) -> list[float]:
    parts = text.split(":")
    if len(parts) > 3:
        raise InputError(argument, text, GRID_SYNTAX)
    start, stop = _number(argument, text, parts[0]), _number(argument, text, parts[1])
    if stop < start:
        raise InputError(argument, text, f"the grid is reversed; write {stop:g}:{start:g}")
    if len(parts) == 2:
        step = (stop - start) / 10
        return [round(start + i * step, 12) for i in range(11)] if step else [start]
    step = _number(argument, text, parts[2])
    if step <= 0:
        raise InputError(argument, text, f"the step must be positive, not {step:g}")
    count = (stop - start) / step
    if not count <= MOST_VALUES:
        raise InputError(argument, text, f"that is {count:.3g} values; use a larger step")
    count = math.floor(count + 1e-9)
    values = [round(start + i * step, 12) for i in range(count + 1)]
    return values if math.isclose(values[-1], stop, abs_tol=1e-9 * step) else [*values, stop]


#: of one grid
MOST_VALUES = 100_000
#: samples of a training; the largest published ones have seen 10^10
_MOST_SAMPLES = 10**15
_UNITS = {"": 1, "k": 1000, "M": 1_000_000, "Ki": 1024}


@dataclass(frozen=True)
class Budget:
    """A training budget: samples seen (steps x global batch), or for the exact learner a fraction of the way.

    value: the number of samples, or eta in [0, 1]. unit: 'samples' or 'eta'. text: as the user wrote it, because
    'Mi' is 10^6 samples in EDM and 2^20 in EDM2, and a record has to say which.
    """

    value: float
    unit: str
    text: str

    def __str__(self) -> str:
        return self.text


def parse_budget(argument: str, text: str, *, mi: int = 1_000_000, expected: str = "") -> Budget:
    """Read ``0.3`` (eta), ``50k``, ``5M``, or ``6Mi``; ``mi`` is what one Mi counts (10^6 in EDM, 2^20 in EDM2).

    expected: what a refusal says would be right, for a caller that takes one of the two kinds only. Raises `InputError`
    for anything else, and for a bare number outside [0, 1].
    """
    text = text.strip()
    match = re.fullmatch(r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*(k|Ki|M|Mi|)", text)
    if match is None:
        words = expected or "write eta in [0, 1] without a unit, or samples seen with one: 50k, 6Mi"
        raise InputError(argument, text, words)
    number, unit = float(match[1]), match[2]
    if not unit:
        if number > 1:
            words = expected or "a bare number is eta in [0, 1]; samples seen need a unit: 50k, 6Mi"
            raise InputError(argument, text, words)
        return Budget(number, "eta", text)
    samples = number * (mi if unit == "Mi" else _UNITS[unit])
    if not samples <= _MOST_SAMPLES:
        raise InputError(argument, text, f"give at most {_MOST_SAMPLES:.0e} samples")
    return Budget(samples, "samples", text)
