"""Commands from dataclasses: presets, one-line errors, exit codes. Every command of every scale starts here."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from sims_core.errors import InputError, choose

Settings = TypeVar("Settings")


def parse_command(
    cls: type[Settings],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    presets: Mapping[str, Settings] | None = None,
) -> Settings:
    """Read ``argv`` into the dataclass ``cls``; ``--preset NAME`` changes the defaults, explicit options win.

    Raises `InputError` for what cannot be read; ``--help`` prints and exits.
    """
    import tyro

    default = cls()
    if presets is not None:
        name = _option(argv, "preset")
        if name:
            default = presets[choose("--preset", name, presets)]
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints):
            parsed, unknown = tyro.cli(
                cls, prog=prog, description=description, args=list(argv), default=default, return_unknown_args=True
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        raise InputError("arguments", " ".join(argv), _one_line(complaints.getvalue())) from None
    if unknown:
        choose("option", unknown[0].split("=")[0], _options(default))
    return parsed


def main_with_errors(run: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command: 0 when it ends, 2 with one line for bad input, 130 after Ctrl-C."""
    try:
        run(sys.argv[1:] if argv is None else argv)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _options(settings: object, prefix: str = "--") -> list[str]:
    """The command-line options of a settings dataclass, nested ones with their dotted names."""
    found: list[str] = []
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        name, value = prefix + field.name.rstrip("_").replace("_", "-"), getattr(settings, field.name)
        found += _options(value, name + ".") if dataclasses.is_dataclass(value) else [name]
    return found


def _option(argv: Sequence[str], name: str) -> str:
    """The value of ``--name VALUE`` or ``--name=VALUE``, last one wins; '' if absent."""
    found = ""
    for here, word in enumerate(argv):
        if word == f"--{name}" and here + 1 < len(argv):
            found = argv[here + 1]
        elif word.startswith(f"--{name}="):
            found = word.split("=", 1)[1]
    return found


def _one_line(box: str) -> str:
    """The first sentences of the parser's framed message, without the frame."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [re.sub(r"^[\s│╭╰─╮╯|]+|[\s│╭╰─╮╯|]+$", "", line) for line in plain.splitlines()]
    lines = [line for line in lines if line and "arsing error" not in line and "required option" not in line.lower()]
    text = " ".join(lines)
    for tail in (" For full helptext", " Argument helptext", " Got errors", " ──"):
        text = text.split(tail)[0]
    return text.strip() or "see --help"
