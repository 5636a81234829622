"""The one error a user meets for bad input: the argument, its value, and what would be right."""

from __future__ import annotations

import difflib
import errno
import re
import shlex
from collections.abc import Iterable
from importlib import metadata

#: characters of a value that a message repeats
_REPEATED = 300


class InputError(ValueError):
    """Bad input, as one line. Commands print it and exit with code 2."""

    def __init__(self, argument: str, value: object, expected: str) -> None:
        self.argument, self.value, self.expected = argument, value, expected
        super().__init__(f"{shown(argument)}: got '{shown(_text(value), _REPEATED)}'; {shown(expected, 4000)}")

    def __reduce__(self) -> tuple[type[InputError], tuple[str, object, str]]:
        """How a worker hands it over."""
        value = self.value if isinstance(self.value, str | int | float | bool | None) else _text(self.value)
        return type(self), (self.argument, value, self.expected)


def _text(value: object) -> str:
    if isinstance(value, str):
        return value
    try:
        return repr(value)
    except ValueError:  # Python writes no numbers of more than 4,300 digits
        return f"a {type(value).__name__} of thousands of digits"


def shown(text: str, most: int = 120) -> str:
    """A name or message from elsewhere as it can stand in a line on a terminal: what does not print is escaped.

    most: characters; a longer text is cut.
    """
    plain = text[: most + 1]
    if not plain.isprintable():
        plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)
    return plain if len(plain) <= most else plain[: most - 3] + "..."


def extra(name: str) -> str:
    """The pip line that installs what the optional dependencies ``name`` of this project hold."""
    try:
        wanted = metadata.requires("sims-diffusion") or []
    except metadata.PackageNotFoundError:
        wanted = []
    mark = re.compile(rf"extra\s*==\s*['\"]{name}['\"]")
    packages = [one.split(";")[0].strip() for one in wanted if mark.search(one)]
    return "pip install " + (shlex.join(packages) or f"-e '.[{name}]'")


def reason(error: BaseException) -> str:
    """An exception as a few words on one line."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return shown(str(text))


#: what a file system says when there is no room: disk, quota, file size limit
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def disk_failure(error: OSError, kept: str = "", failed: str = "it cannot be read or written") -> str:
    """What ``failed``, what is ``kept`` all the same, and what is to be done."""
    full = error.errno in _NO_ROOM
    what = f"{'the disk is full' if full else failed} ({reason(error)})"
    then = "make room" if full else "fix that"
    return f"{what}; {kept + ': ' if kept else ''}{then} and repeat the command"


def whole(argument: str, value: int, least: int = 0, most: int | None = None) -> int:
    """Return ``value`` if it lies within [least, most]; else raise `InputError`."""
    if value < least:
        raise InputError(argument, value, f"give a whole number of at least {least}")
    if most is not None and value > most:
        raise InputError(argument, value, f"give a whole number of at most {most}")
    return value


def choose(argument: str, value: str, known: Iterable[str]) -> str:
    """Return ``value`` if it is one of ``known``; else raise `InputError` with the nearest name."""
    names = list(known)
    if value in names:
        return value
    near = difflib.get_close_matches(value, names, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise InputError(argument, value, f"{hint}choose from {', '.join(names)}")
