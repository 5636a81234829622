"""Bounds of whole numbers in options: the least by the field's annotation, the most by the last word of its name."""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import Any

from sims_core.errors import whole

T = typing.TypeVar("T")


@dataclass(frozen=True)
class at_least:  # noqa: N801  (read as an annotation: Annotated[int, at_least(2)])
    """The least value of a whole number that is an option: ``trials: Annotated[int, at_least(2)] = 8``."""

    least: int


#: the largest values, by the last word of a name; for the others the one under ''
_MOST = {
    "seed": 2**128 - 1, "workers": 1024, "batch": 16_384, "microbatch": 16_384, "width": 4096, "layers": 64,
    "dimension": 1000, "sheet": 1000, "every": 1_000_000, "limit": 10**9, "images": 10**9, "": 10_000_000,
}  # fmt: skip


def check_bounds(options: Any, prefix: str = "") -> None:
    """Raise `InputError` for a whole number that no run can have, before memory is taken for it.

    options: a dataclass; those inside are checked under their dotted names. A field's own default is never too little:
    a 0 may stand for what the learner settles.
    """
    least = _least(type(options))
    for field in dataclasses.fields(options):
        name, value = field.name.rstrip("_"), getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            check_bounds(value, f"{prefix}{name}.")
        elif isinstance(value, int) and not isinstance(value, bool):
            if value != field.default:
                whole(prefix + name, value, least.get(field.name, value))
            if value > 0:
                whole(prefix + name, value, most=_MOST.get(name.rpartition("_")[2], _MOST[""]))


def _least(cls: type) -> dict[str, int]:
    """The least values that a dataclass's annotations name."""
    hints = typing.get_type_hints(cls, include_extras=True)
    return {
        name: mark.least
        for name, hint in hints.items()
        for mark in getattr(hint, "__metadata__", ())
        if isinstance(mark, at_least)
    }


def settled(value: T | None) -> T:
    """The value of an option without a default, once one was given or settled."""
    assert value is not None
    return value
