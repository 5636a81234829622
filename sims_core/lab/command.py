"""Commands from dataclasses: presets, one-line errors, exit codes. Every command of every scale starts here."""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import difflib
import inspect
import io
import os
import re
import signal
import sys
import threading
import typing
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from functools import cache, partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO, TypeVar

from sims_core import STOPPED, __version__
from sims_core.errors import InputError, choose, disk_failure, reason, shown
from sims_core.lab.bounds import check_bounds

if TYPE_CHECKING:
    from tyro.constructors import StructConstructorSpec, StructTypeInfo

Settings = TypeVar("Settings")


def parse_command(
    cls: type[Settings],
    argv: Sequence[str],
    *,
    prog: str,
    description: str,
    presets: Mapping[str, Settings] | None = None,
    examples: Sequence[str] = (),
    others: Callable[[], Iterable[str]] = tuple,
    config: bool = True,
) -> Settings:
    """Read ``argv`` into the dataclass ``cls``; ``--preset NAME`` changes the defaults, explicit options win.

    ``--config RUN`` stands for the options that a run recorded (`sims_core.lab.config`); those given with it win.
    config: whether the command takes it, because what it makes records them.

    examples: words that can follow ``prog``, with a remark after '#'; the help ends with them. others: options of other
    commands, which do nothing in this one. Raises `InputError` for what cannot be read; ``--help`` prints and exits.
    """
    import tyro

    if list(argv) in (["--version"], ["-V"]):
        print(__version__)
        raise SystemExit(0)
    argv, default = _valued(cls, _renamed(cls, _configured(cls, argv) if config else argv)), cls()
    if presets is not None:
        name = _option(argv, "preset")
        if name:
            default = presets[choose("--preset", name, presets)]
    registry = tyro.constructors.ConstructorRegistry()
    registry.struct_rule(_read_options)
    complaints = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaints), contextlib.redirect_stdout(_Printable.coloured(sys.stdout)):
            parsed, unknown = tyro.cli(
                cls,
                prog=prog,
                description=inspect.cleandoc(description),
                args=list(argv),
                default=default,
                return_unknown_args=True,
                registry=registry,
            )
    except SystemExit as stop:
        if not stop.code:
            if config:
                print("--config RUN  the options of an earlier run, from its folder or file; options given with it win")
            if examples:
                print("\n".join(["examples:", *(f"  {prog} {words}" for words in examples)]))
            raise
        raise _misread(argv, _one_line(complaints.getvalue())) from None
    if unknown:
        name = unknown[0].split("=")[0]
        if name in others():
            raise InputError("option", name, "it does nothing in this command; leave it out")
        raise _unknown(name, options_of(default))
    with about_options(default):
        check_bounds(parsed)
    return parsed


def _read_options(info: StructTypeInfo) -> StructConstructorSpec | None:
    """How the parser reads a dataclass that is given with its defaults: help flows, whatever its lines in the source.

    Options that a base class with a ``GROUP`` brings come last, in a group of that name, and keep their own names.
    """
    from tyro.constructors import StructConstructorSpec, StructFieldSpec

    cls, default = info.type, info.default
    if not dataclasses.is_dataclass(cls):
        return None
    hints, groups = typing.get_type_hints(cls, include_extras=True), _groups(cls)
    own = [field.name for field in dataclasses.fields(cls) if field.name not in groups]
    fields = [
        StructFieldSpec(name, _shown(cls, hints[name], getattr(default, name)), getattr(default, name),
                        partial(_help, getattr(cls, "OF", cls), name))
        for name in own
    ]  # fmt: skip
    parts = {base: [name for name, one in groups.items() if one is base] for base in dict.fromkeys(groups.values())}
    for base, names in parts.items():
        inner = {"GROUP": base.GROUP, "OF": cls}
        made = dataclasses.make_dataclass(base.GROUP, [(name, hints[name]) for name in names], namespace=inner)
        value = made(**{name: getattr(default, name) for name in names})
        fields.append(StructFieldSpec(base.GROUP, made, value, " ".join(str(base.__doc__).split())))

    def construct(**given: Any) -> Any:
        whole = [vars(given.pop(base.GROUP)) for base in parts]
        return cls(**{name: value for part in (*whole, given) for name, value in part.items()})

    return StructConstructorSpec(construct, tuple(fields))


def _groups(cls: type) -> dict[str, Any]:
    """The options that base classes with a ``GROUP`` bring, each with the first class of its group."""
    first, found = dict[str, Any](), dict[str, Any]()
    for base in cls.__mro__[:0:-1]:
        if "GROUP" in vars(base):
            group = first.setdefault(vars(base)["GROUP"], base)
            found |= {name: group for name in vars(base).get("__annotations__", {}) if name != "GROUP"}
    return found


def _shown(cls: type, hint: Any, default: Any) -> Any:
    """An option's type for the parser: in a group without its prefix, and without a default that says nothing."""
    from tyro import conf

    notes: list[Any] = [conf.arg(prefix_name=False)] if "GROUP" in vars(cls) else []
    if default in ("", None) and not any(
        getattr(m, "help_behavior_hint", None) for m in getattr(hint, "__metadata__", ())
    ):
        kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)] if default is None else []
        metavar = _metavar(kinds[0]) if len(kinds) == 1 else None
        notes.append(conf.arg(help_behavior_hint="", metavar=metavar))
    return Annotated[(hint, *notes)] if notes else hint


def _metavar(kind: Any) -> str:
    """What the help calls a value: INT, or FLOAT [FLOAT ...]."""
    inner = "".join(map(_metavar, typing.get_args(kind)[:1]))  # of a tuple
    return f"{inner} [{inner} ...]" if inner else str(kind.__name__).upper()


def _help(cls: type, name: str) -> str:
    """The docstring of a field, in one line."""
    return next((told[name] for parent in cls.__mro__[:-1] if name in (told := _told(parent))), "")


@cache
def _told(cls: type) -> dict[str, str]:
    """The docstrings of a class's own fields. Its source is parsed, which takes most of the time of a help."""
    import docstring_parser

    told = docstring_parser.parse_from_object(cls).params
    return {one.arg_name: " ".join((one.description or "").split()) for one in reversed(told)}


@contextlib.contextmanager
def about_options(
    settings: object, names: Mapping[str, str] | None = None, others: Callable[[], Iterable[str]] = tuple
) -> Iterator[None]:
    """Errors about arguments become errors about the options of that name; what is no option stays as it is.

    names: of arguments that are no options. others: options of other commands, for what is expected, where arguments
    stand in backticks.
    """
    try:
        yield
    except InputError as error:
        known = options_of(settings)
        called = (names or {}).get(error.argument) or _option_of(error.argument, known) or error.argument
        every = {*known, *others()}
        expected = re.sub(r"`([\w.]+)`", lambda name: _option_of(name[1], every) or name[0], error.expected)
        raise InputError(called, error.value, expected) from error


def _option_of(argument: str, known: Container[str]) -> str:
    """The option that an argument is at the command line; '' if it is none of ``known``."""
    option = "--" + argument.rstrip("_").replace("_", "-")
    return option if option in known else ""


def listed(table: str, text: str) -> Any:
    """The help of an option that takes names from a table: ``text`` with its {} filled in when help is asked for.

    table: 'module:function' that returns the names, so that those from outside are told too. For a field's type:
    ``Annotated[str, listed("sims_core.loop:forms", "One of {}.")]``.
    """
    import tyro

    module, function = table.split(":")
    return tyro.conf.arg(help=text.format(", ".join(getattr(import_module(module), function)())))


def usual(words: str, kind: str = "STR") -> Any:
    """What the help of an option says of its default where the value alone does not: '' or None, settled later.

    kind: of its value, as the help names it. For a field's type: ``Annotated[str, usual("runs/<command>")]``.
    """
    import tyro

    return tyro.conf.arg(help_behavior_hint=f"(default: {words})", metavar=kind)


@dataclasses.dataclass(frozen=True)
class formerly:  # noqa: N801  (read as an annotation: Annotated[str, formerly("real")])
    """The name that an option had in the release before, which is still read, with a note."""

    name: str


def former_names(cls: Any) -> dict[str, str]:
    """The names that fields of a settings dataclass had, with those that they have."""
    hints = typing.get_type_hints(cls, include_extras=True).items()
    return {m.name: name for name, hint in hints for m in getattr(hint, "__metadata__", ()) if isinstance(m, formerly)}


def _configured(cls: type, argv: Sequence[str]) -> list[str]:
    """The words with those that ``--config`` stands for in front."""
    source, words = _option(argv, "config"), list(argv)
    for here in reversed([i for i, word in enumerate(words) if word.partition("=")[0] == "--config"]):
        del words[here : here + (1 if "=" in words[here] else 2)]
    if len(words) == len(argv):
        return words
    from sims_core.lab import config
    from sims_core.lab.runs import parse_json

    path = config.place(source)
    if not path.is_file():
        raise InputError("--config", source, config.GIVE)
    record = parse_json("--config", str(path), path.read_bytes())
    return config.words(config.provenance(record), source, cls.__name__) + words


def _renamed(cls: type, argv: Sequence[str]) -> list[str]:
    """The words with the names that options have now."""
    older, words = former_names(cls), list(argv)
    for here, word in enumerate(words):
        name, equals, value = word.partition("=")
        now = older.get(name.removeprefix("--").replace("-", "_")) if name.startswith("--") else None
        if now:
            words[here] = f"--{now.replace('_', '-')}{equals}{value}"
            print(f"note: {name} is --{now.replace('_', '-')} now; {name} goes with the next release", file=sys.stderr)
    return words


def _valued(cls: type, argv: Sequence[str]) -> list[str]:
    """The words with a value after flags that can also be more than on and off (``bool | Literal["auto"] | None``)."""
    kinds = {name: typing.get_args(hint) for name, hint in typing.get_type_hints(cls).items()}
    other = {name for name, kind in kinds.items() if bool in kind and {*kind} - {bool, type(None)}}
    more = {"--" + name.replace("_", "-") for name in other}
    words: list[str] = []
    for word, after in zip(argv, [*argv[1:], "--"], strict=False):
        name = "--" + word[5:] if word.startswith("--no-") else word
        bare = name in more and (name != word or after.startswith("--"))
        words += [name, str(name == word)] if bare else [word]
    return words


class _Stopped(KeyboardInterrupt):
    """Ctrl-C. Of a class of its own, because Python ends by the signal itself once a plain one has passed an exec."""


#: what a code page without them shows in place of our letters
_PLAIN = {"ω": "omega", "η": "eta", "β": "beta", "λ": "lambda", "σ": "sigma", "±": "+-", "−": "-", "×": "x", "²": "^2"}


def _plain(error: UnicodeError) -> tuple[str, int]:
    """The nearest letter of ASCII."""
    assert isinstance(error, UnicodeEncodeError)
    letter = error.object[error.start]
    near = _PLAIN.get(letter) or unicodedata.normalize("NFKD", letter)[0]
    return near if near.isascii() else "?", error.start + 1


codecs.register_error("plain", _plain)


class _Printable(io.TextIOBase):
    """Standard output on which names from files cannot move the cursor: what does not print is escaped.

    Where its code page lacks a letter (Windows, a minimal container) another stands in, and the run ends well.
    """

    def __init__(self, beneath: TextIO, *, escaped: bool = True) -> None:
        self._beneath, self._escaped = beneath, escaped

    def write(self, text: str) -> int:
        """Write lines."""
        lines = "\n".join(shown(line, len(line) * 10) for line in text.split("\n")) if self._escaped else text
        page = self._beneath.encoding or "utf-8"
        self._beneath.write(lines.encode(page, "plain").decode(page))
        return len(text)

    def flush(self) -> None:
        """Flush what lies beneath."""
        self._beneath.flush()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """Of what lies beneath."""
        return self._beneath.encoding

    def isatty(self) -> bool:
        """Whether it ends on a terminal."""
        return self._beneath.isatty()

    def fileno(self) -> int:
        """Of what lies beneath."""
        return self._beneath.fileno()

    @classmethod
    def coloured(cls, stream: TextIO) -> TextIO:
        """The stream without escaping: for help, which comes with colours."""
        return cls(stream._beneath if isinstance(stream, cls) else stream, escaped=False)  # type: ignore[return-value]


@contextlib.contextmanager
def _interruptible(struck: list[int]) -> Iterator[None]:
    """Make of Ctrl-C an exception that ends with exit code 130, wherever it strikes; ``struck`` notes that it did."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before in (signal.SIG_IGN, None):
        yield
        return

    def stop(number: int, _: object) -> NoReturn:
        struck.append(number)
        raise _Stopped

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def main_with_errors(run: Callable[[Sequence[str]], None], argv: Sequence[str] | None = None) -> int:
    """Run a command: 0 when it ends, 2 with one line for bad input or a failing disk, 130 after Ctrl-C."""
    struck: list[int] = []
    try:
        with _interruptible(struck), contextlib.redirect_stdout(_Printable(sys.stdout)):
            run(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (Exception, KeyboardInterrupt) as error:
        if struck or isinstance(error, KeyboardInterrupt):  # compiled code makes other exceptions of it
            print(STOPPED, file=sys.stderr)
            return 130
        line = _in_words(error)
        if not line:
            raise
        print(f"error: {line}", file=sys.stderr)
        return 2
    return 0


def _in_words(error: BaseException) -> str:
    """An error that is not the program's, as one line; '' for the others."""
    if isinstance(error, OSError):
        return f"{shown(str(error.filename or 'files'), 300)}: {disk_failure(error)}"
    full = r"allocate memory|CUDA error: out of memory|STATUS_ALLOC_FAILED"
    if isinstance(error, MemoryError) or re.search(full, str(error)) or "OutOfMemory" in type(error).__name__:
        return f"memory: there is not enough ({reason(error)}); ask for less at a time"
    return str(error) if isinstance(error, InputError) else ""


def _unknown(name: str, known: Sequence[str]) -> InputError:
    """An option that is not there: the one that was meant is near, or holds its initials."""
    initials = "--" + "".join(part[0] for part in name.strip("-").split("-") if part)
    near = [*difflib.get_close_matches(name, known, n=1), *(option for option in known if option == initials)]
    return InputError("option", name, (f"did you mean '{near[-1]}'? " if near else "") + "--help lists what there is")


def options_of(settings: object, prefix: str = "--") -> list[str]:
    """The command-line options of a settings dataclass, nested ones with their dotted names."""
    found: list[str] = []
    for field in dataclasses.fields(settings):  # type: ignore[arg-type]
        name, value = prefix + field.name.rstrip("_").replace("_", "-"), getattr(settings, field.name)
        found += options_of(value, name + ".") if dataclasses.is_dataclass(value) else [name]
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


def _misread(argv: Sequence[str], words: str) -> InputError:
    """The parser's complaint, about the option that it names."""
    nested = re.search(r"Error parsing \w+: ([\w.]+): got '(.*?)'; (.*)", words)  # refused by their own dataclass
    if nested:
        return InputError("--" + nested[1].replace("_", "-"), nested[2], nested[3])
    found = re.search(r"--[a-z][a-z.-]*[a-z]", words)
    name = found[0] if found else "arguments"
    listed = words.partition("Expected one of")[2]
    if listed:
        try:
            choose(name, _option(argv, name[2:]), re.findall(r"'([^']*)'", listed))
        except InputError as error:
            return error
    kinds = {
        "int()": "a whole number",
        "integer string": "a whole number",
        "|INT": "a whole number",
        "|FLOAT": "a number",
        "Missing": "a value",
    }
    expected = next((f"give {kind}" for sign, kind in kinds.items() if sign in words), words.split(f"{name}: ")[-1])
    return InputError(name, _option(argv, name[2:]) if found else " ".join(argv)[:80], expected)


def _one_line(box: str) -> str:
    """The first sentences of the parser's framed message, without the frame."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [re.sub(r"^[\s│╭╰─╮╯|]+|[\s│╭╰─╮╯|]+$", "", line) for line in plain.splitlines()]
    lines = [line for line in lines if line and "arsing error" not in line and "required option" not in line.lower()]
    text = " ".join(lines)
    for tail in (" For full helptext", " Argument helptext", " Got errors", " ──"):
        text = text.split(tail)[0]
    return text.strip() or "see --help"
