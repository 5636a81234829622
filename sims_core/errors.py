"""The one error a user meets for bad input: the argument, its value, and what would be right."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input, as one line. Commands print it and exit with code 2."""

    def __init__(self, argument: str, value: object, expected: str) -> None:
        self.argument, self.value, self.expected = argument, value, expected
        shown = value if isinstance(value, str) else repr(value)
        super().__init__(f"{argument}: got '{shown}'; {expected}")


def choose(argument: str, value: str, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``known``; else raise `InputError` with the nearest name."""
    names = list(known)
    if value in names:
        return value
    near = difflib.get_close_matches(value, names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise InputError(argument, value, f"{hint}choose from {', '.join(names)}")
