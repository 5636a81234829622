"""The script ``sims``: the commands of both scales, each found by its name when it is called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module

from sims_core import __version__
from sims_core.errors import choose
from sims_core.lab.command import main_with_errors

#: What a group is about -> the module whose ``commands()`` are its commands by name. Modules, not imports: a scale is
#: loaded when it is asked for.
GROUPS = {
    "Points and Gaussians (a laptop; also python -m sims_toy.NAME)": "sims_toy.studies",
    "Images (also sims_image VERB)": "sims_image.commands",
    "Runs": "sims_core.lab.index",
}


@dataclass(frozen=True)
class Command:
    """what: it does, in a line. options: gives its dataclass. run: takes the words after its name."""

    what: str
    options: Callable[[], Callable[..., object]]
    run: Callable[[Sequence[str]], None]


def groups() -> dict[str, dict[str, Command]]:
    """Every command by its name, in groups."""
    return {about: import_module(module).commands() for about, module in GROUPS.items()}


def overview() -> str:
    """What ``--help`` prints."""
    found = groups()
    width = max(len(name) for commands in found.values() for name in commands)
    lines = [
        "usage: sims COMMAND [options]",
        "",
        "Self-improving diffusion models with synthetic data. 'sims COMMAND --help' lists a command's options;",
        "'sims --print-completion bash' (or zsh) prints what the shell completes them by.",
    ]
    for about, commands in found.items():
        lines += ["", f"{about}:", *(f"  {name.ljust(width)}  {one.what}" for name, one in commands.items())]
    return "\n".join(lines)


def completion(shell: str) -> str:
    """The script by which ``shell``, bash or zsh, completes commands and their options. Raises `InputError`."""
    import contextlib
    import io

    import tyro

    choose("--print-completion", shell, ("bash", "zsh"))
    classes = {name: one.options() for commands in groups().values() for name, one in commands.items()}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(classes, prog="sims", args=["--tyro-print-completion", shell])
    return printed.getvalue()


def run(argv: Sequence[str]) -> None:
    """Run one command. Raises `InputError` for a name that is none's."""
    name, *words = argv or [""]
    if name in ("-h", "--help", "help"):
        print(overview())
    elif name in ("--version", "-V"):
        print(__version__)
    elif name == "--print-completion":
        print(completion(words[0] if words else ""), end="")
    else:
        commands = {known: one for group in groups().values() for known, one in group.items()}
        commands[choose("command", name, commands)].run(words)


def main() -> None:
    """Entry point. Without a command, what there is."""
    if len(sys.argv) < 2:
        print(overview(), file=sys.stderr)
        sys.exit(2)
    sys.exit(main_with_errors(run))
