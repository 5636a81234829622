"""Pickle streams read as data: a pickle machine that imports nothing and calls nothing that a stream asks for.

A pickle is a program: its opcodes name importable objects and call them. Here a name is looked up in a table of the
caller's own functions (a `Table`) and is refused, by name, where the table lacks it; every opcode that needs more than
that (extension codes, out-of-band buffers, instances of arbitrary classes, and outside `persistent` also persistent
identifiers) is refused too. What comes out is None, bool, int, float, str, memoryview (for bytes), tuple, list, dict,
set, and what the table's functions return.

Only the opcodes of protocols 2 to 5 are known, and on request (`sims_image.pickles.python2`) those of Python 2;
Python's own ``pickletools`` documents them.
"""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

#: opcodes in the longest stream that is read; the largest published network has under 10^5
LIMIT = 2_000_000
#: how often the stream's bytes may pass through the table's functions; a tensor's pass three or four times
REPEATS = 8
#: bytes that an item of a list, tuple, dictionary or set may take, for that count
_ITEM = 64
#: bytes of the longest whole number; torch's magic one has 10
NUMBER = 32

Table: TypeAlias = Mapping[str, "Callable[..., Any] | None"]
"""The names a stream may use, ``module.name``, with what to call in their place (None: the name is only passed on)."""


class RefusedError(Exception):
    """Why a stream is not read, as a clause without a full stop."""


@dataclass(frozen=True)
class Name:
    """An importable object that a stream named; only its name is kept."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


class Stateful:
    """What a stream may give a state to (opcode BUILD). Nothing else of it can be touched."""

    def set_state(self, state: Any) -> None:
        """Take the state. Raises `RefusedError` if it is not what such an object has."""
        raise NotImplementedError


def read_pickle(
    data: memoryview,
    table: Table,
    *,
    start: int = 0,
    persistent: Callable[[Any], Any] | None = None,
    machine: type[_Machine] | None = None,
    limit: int | None = None,
) -> tuple[Any, int]:
    """Read one stream of ``data`` from byte ``start``; returns its value and the byte after it.

    persistent: what to make of a persistent identifier (default: refuse). machine: one that knows other opcodes too
    (`sims_image.pickles.python2`). limit: opcodes at most. Raises `RefusedError`.
    """
    at_work = (machine or _Machine)(data, table, persistent, start, limit or LIMIT)
    try:
        return at_work.run(), at_work.at
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, struct.error) as error:
        raise RefusedError(f"it is malformed ({type(error).__name__} at byte {at_work.at})") from None


def product(extents: Iterable[int], most: int) -> int:
    """The product of numbers >= 0, or ``most + 1`` as soon as it is larger: huge ones are not multiplied out."""
    found = 1
    for extent in sorted(extents):
        found *= extent
        if not 0 < found <= most:
            return min(found, most + 1)
    return found


def weight(value: Any) -> int:
    """Bytes that a value may take when it is copied, not counting what lies in its items."""
    if isinstance(value, list | tuple | dict | set):
        return _ITEM * len(value)
    return len(value) if isinstance(value, str | bytes) else int(getattr(value, "nbytes", 0))


_MARK = object()
_NAMES = {ord(op.code): op.name for op in pickletools.opcodes}
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_NUMBERS = {"BININT": "<i", "BININT1": "<B", "BININT2": "<H", "BINFLOAT": ">d"}
_SIZED = {
    "SHORT_BINUNICODE": "<B", "BINUNICODE": "<I", "BINUNICODE8": "<Q", "SHORT_BINBYTES": "<B", "BINBYTES": "<I",
    "BINBYTES8": "<Q", "BYTEARRAY8": "<Q", "LONG1": "<B", "LONG4": "<I",
}  # fmt: skip
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
_PUT = {"BINPUT": "<B", "LONG_BINPUT": "<I"}
_GET = {"BINGET": "<B", "LONG_BINGET": "<I"}


@dataclass
class _Machine:
    """The pickle machine, of protocols 2 to 5."""

    data: memoryview
    table: Table
    persistent: Callable[[Any], Any] | None
    at: int
    limit: int
    keys: ClassVar[tuple[type, ...]] = (str, int, float, bool, type(None))
    oldest: ClassVar[int] = 2  # protocol
    handed: int = 0  # bytes given to the table's functions, by `weight`
    stack: list[Any] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def run(self) -> Any:
        """The opcodes one after the other, until STOP."""
        for _ in range(self.limit):
            code = self.take(1)[0]
            name = _NAMES.get(code)
            if name is None:
                raise RefusedError(f"byte {self.at - 1} is no pickle opcode")
            if name == "STOP":
                value = self.pop()
                if self.stack:
                    raise RefusedError("objects are left over at its end")
                return value
            self.step(name)
        raise RefusedError(f"it has more than {self.limit} opcodes, which no network needs")

    def step(self, name: str) -> None:
        """Carry out one opcode."""
        if name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _NUMBERS:
            self.stack.append(self.number(_NUMBERS[name]))
        elif name in _SIZED:
            self.stack.append(self.sized(name, self.take(self.number(_SIZED[name]))))
        elif name in _TUPLES:
            count = _TUPLES[name]
            self.stack.append(tuple([self.pop() for _ in range(count)][::-1]))
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in _PUT:
            self.memo[self.number(_PUT[name])] = self.top()
        elif name in _GET:
            self.stack.append(self.memo[self.number(_GET[name])])
        else:
            known = getattr(self, f"op_{name.lower()}", None)
            if known is None:
                raise RefusedError(f"it uses the opcode {name} at byte {self.at - 1}, which data do not need")
            known()

    # ------------------------------------------------------------ reading

    def take(self, count: int) -> memoryview:
        """The next ``count`` bytes, without copying."""
        if count > len(self.data) - self.at:
            raise RefusedError(
                f"it is cut short: {count} bytes announced at byte {self.at}, {len(self.data) - self.at} left"
            )
        self.at += count
        return self.data[self.at - count : self.at]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def line(self) -> str:
        """Text up to the next newline (a module or attribute name)."""
        end = bytes(self.data[self.at : self.at + 400]).find(b"\n")
        if end < 0:
            raise RefusedError(f"it is cut short: a name without an end at byte {self.at}")
        text = str(self.take(end), "utf-8")
        self.take(1)
        return text

    def sized(self, name: str, content: memoryview) -> Any:
        if "UNICODE" in name:
            return str(content, "utf-8")
        return int.from_bytes(self.short(content), "little", signed=True) if "LONG" in name else content

    def short(self, digits: memoryview) -> memoryview:
        """A number's bytes, if they are not too many."""
        if len(digits) > NUMBER:
            raise RefusedError(f"it holds a number of {len(digits)} bytes at byte {self.at}, which no network needs")
        return digits

    # -------------------------------------------------------------- stack

    def top(self) -> Any:
        if not self.stack or self.stack[-1] is _MARK:
            raise RefusedError(f"its stack is empty at byte {self.at - 1}")
        return self.stack[-1]

    def pop(self) -> Any:
        value = self.top()
        self.stack.pop()
        return value

    def pop_mark(self) -> list[Any]:
        """What lies above the last mark, which is taken away too."""
        for depth in range(len(self.stack) - 1, -1, -1):
            if self.stack[depth] is _MARK:
                above = self.stack[depth + 1 :]
                del self.stack[depth:]
                return above
        raise RefusedError(f"a mark is missing at byte {self.at - 1}")

    def into(self, kind: type) -> Any:
        """The container on top, which must be of this very type."""
        there = self.top()
        if type(there) is not kind:
            raise RefusedError(
                f"it puts items into a {type(there).__name__} at byte {self.at - 1}, not a {kind.__name__}"
            )
        return there

    def key(self, value: Any) -> Any:
        """A dictionary key or set element: plain, so that hashing it is harmless."""
        if type(value) not in self.keys:
            raise RefusedError(f"it uses a {type(value).__name__} as a key at byte {self.at - 1}")
        return value

    # ------------------------------------------- opcodes: structure of the stream

    def op_proto(self) -> None:
        version = self.number("<B")
        if not self.oldest <= version <= 5:
            raise RefusedError(f"it says pickle protocol {version}; known are {self.oldest} to 5")

    def op_frame(self) -> None:
        size = self.number("<Q")
        if size > len(self.data) - self.at:
            raise RefusedError(
                f"it is cut short: a frame of {size} bytes at byte {self.at}, {len(self.data) - self.at} left"
            )

    def op_mark(self) -> None:
        self.stack.append(_MARK)

    def op_pop(self) -> None:
        if self.stack and self.stack[-1] is _MARK:
            self.stack.pop()
        else:
            self.pop()

    def op_pop_mark(self) -> None:
        self.pop_mark()

    def op_dup(self) -> None:
        self.stack.append(self.top())

    def op_memoize(self) -> None:
        self.memo[len(self.memo)] = self.top()

    # ------------------------------------------------------ opcodes: containers

    def op_tuple(self) -> None:
        self.stack.append(tuple(self.pop_mark()))

    def op_append(self) -> None:
        value = self.pop()
        self.into(list).append(value)

    def op_appends(self) -> None:
        values = self.pop_mark()
        self.into(list).extend(values)

    def op_setitem(self) -> None:
        value, key = self.pop(), self.pop()
        self.into(dict)[self.key(key)] = value

    def op_setitems(self) -> None:
        values = self.pop_mark()
        self.fill(self.into(dict), values)

    def fill(self, there: dict[Any, Any], values: list[Any]) -> None:
        """Keys and values by turns into a dictionary."""
        if len(values) % 2:
            raise RefusedError(f"a key lacks its value at byte {self.at - 1}")
        for key, value in zip(values[::2], values[1::2], strict=True):
            there[self.key(key)] = value

    def op_additems(self) -> None:
        values = self.pop_mark()
        self.into(set).update(self.key(v) for v in values)

    # --------------------------------------------------- opcodes: names and calls

    def op_global(self) -> None:
        self.name(self.line(), self.line())

    def op_stack_global(self) -> None:
        attribute, module = self.pop(), self.pop()
        if type(module) is not str or type(attribute) is not str:
            raise RefusedError(f"it names something by a value that is not text at byte {self.at - 1}")
        self.name(module, attribute)

    def name(self, module: str, attribute: str) -> None:
        """Push a name, if the table has it. Dotted attributes would reach into a module; none is in any table."""
        if "." in attribute or f"{module}.{attribute}" not in self.table:
            shown = f"{module}.{attribute}"[:120]
            raise RefusedError(f"it asks for {shown!r} at byte {self.at - 1}, which is not data")
        self.stack.append(Name(module, attribute))

    def op_reduce(self) -> None:
        arguments, what = self.pop(), self.pop()
        self.stack.append(self.call(what, arguments))

    op_newobj = op_reduce

    def call(self, what: Any, arguments: Any) -> Any:
        stand_in = self.table[str(what)] if isinstance(what, Name) else None
        if stand_in is None or type(arguments) is not tuple:
            shown = str(what) if isinstance(what, Name) else f"a {type(what).__name__}"
            raise RefusedError(f"it calls {shown} at byte {self.at - 1}, which is not to be called")
        self.hand(arguments)
        return stand_in(*arguments)

    def hand(self, values: Any) -> None:
        """Account for what a function of the table is given. Everything that can grow passes here."""
        parts = values if isinstance(values, list | tuple) else (values,)
        self.handed += weight(parts) + sum(map(weight, parts))
        if self.handed > REPEATS * len(self.data) + 2**20:
            raise RefusedError("it expands the same bytes over and over")

    def op_build(self) -> None:
        state = self.pop()
        there = self.top()
        if not isinstance(there, Stateful):
            shown = str(there) if isinstance(there, Name) else f"a {type(there).__name__}"
            raise RefusedError(f"it sets the state of {shown} at byte {self.at - 1}")
        self.hand(state)
        there.set_state(state)

    def op_binpersid(self) -> None:
        if self.persistent is None:
            raise RefusedError(f"it refers to something outside itself (BINPERSID) at byte {self.at - 1}")
        self.stack.append(self.persistent(self.pop()))
