"""Pickles of plain containers and numeric numpy arrays, read without running anything that is in them.

CIFAR-10's batches are pickles. Only the opcodes that such files need are accepted, and of all globals only the names by
which numpy rebuilds an array; these are answered by inert stand-ins, so that not even numpy's own code is called on
what the file says. Everything else is refused by name.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
from typing import Any

import numpy as np

from sims_core.errors import InputError
from sims_image.archives import reason, shown

_KNOWN = """PROTO FRAME STOP MARK POP POP_MARK DUP PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET
    NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
    STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8
    BINBYTES SHORT_BINBYTES BINBYTES8 EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_DICT DICT SETITEM SETITEMS GLOBAL STACK_GLOBAL REDUCE BUILD"""
_OPCODES = frozenset(_KNOWN.split())
_MEMO = 2**22
_DAMAGED = (
    pickle.UnpicklingError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    RecursionError,
    TypeError,
    ValueError,
)


class _Dtype:
    """Stands in for numpy.dtype: a kind and a size."""

    def __init__(self, code: object, *_: object) -> None:
        text = code.decode("latin1") if isinstance(code, bytes) else code
        self.dtype = np.dtype(text) if isinstance(text, str) and len(text) <= 4 else np.dtype(object)
        if self.dtype.kind not in "biuf":
            raise InputError("pickle", repr(code)[:40], "arrays must hold plain numbers")

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode("latin1") if isinstance(state[1], bytes) else state[1]
        if len(state) > 2 and any(part is not None for part in state[2:5]):
            raise InputError("pickle", "dtype", "arrays must hold plain numbers, not records")
        if order == ">":
            self.dtype = self.dtype.newbyteorder(">")


class _Array:
    """Stands in for numpy.ndarray until its bytes are there."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, raw = state
        if not isinstance(dtype, _Dtype) or not all(type(extent) is int and extent >= 0 for extent in shape):
            raise InputError("pickle", "ndarray", "arrays must hold plain numbers")
        raw = raw.encode("latin1") if isinstance(raw, str) else raw
        if not isinstance(raw, bytes) or math.prod(shape) * dtype.dtype.itemsize != len(raw):
            raise InputError("pickle", "ndarray", "its bytes do not fill its shape")
        self.values = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran else "C")


def load_plain(argument: str, item: str, data: bytes) -> Any:
    """What a pickle of dicts, lists, tuples, strings, numbers and numeric numpy arrays holds.

    Byte strings of Python 2 come out as bytes. Raises `InputError` naming ``item`` for anything else, and the first
    opcode or global that is refused.
    """
    try:
        _check_opcodes(argument, item, data)
        reader = _Plain(io.BytesIO(data), encoding="bytes")
        reader.refuse = lambda name: InputError(
            argument, item, f"it asks for '{shown(name)}': refused, nothing was run"
        )
        return _unwrapped(reader.load())
    except InputError as error:
        if error.argument == "pickle":
            raise InputError(argument, item, f"{error.value}: {error.expected}") from None
        raise
    except _DAMAGED as error:
        raise InputError(argument, item, f"a damaged pickle ({reason(error)})") from None


def _check_opcodes(argument: str, item: str, data: bytes) -> None:
    """Every opcode is known, every length is there, memory for the memo is bounded."""
    for opcode, value, _ in pickletools.genops(data):
        if opcode.name not in _OPCODES:
            raise InputError(argument, item, f"the pickle uses {opcode.name}: refused, nothing was run")
        if opcode.name.endswith("PUT") and int(value or 0) > _MEMO:
            raise InputError(argument, item, "the pickle's memo is absurd: refused, nothing was run")


class _Plain(pickle.Unpickler):
    """Finds the stand-ins and nothing else."""

    refuse: Any

    def find_class(self, module: str, name: str) -> Any:
        # made anew for every load: a pickle can set attributes of what it is given
        if (module, name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy._core.multiarray", "_reconstruct")):
            return lambda kind, *_: type("Array", (_Array,), {})()
        if (module, name) == ("numpy", "ndarray"):
            return type("Kind", (), {})
        if (module, name) == ("numpy", "dtype"):
            return type("Dtype", (_Dtype,), {})
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes for Python 2
            return lambda text, code="latin1": text.encode("latin1")
        raise self.refuse(f"{module}.{name}")


def _unwrapped(value: Any, depth: int = 0) -> Any:
    if depth > 20:
        raise ValueError("nested too deeply")
    if isinstance(value, _Array):
        return value.values
    if isinstance(value, dict):
        return {_unwrapped(k, depth + 1): _unwrapped(v, depth + 1) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        if not any(isinstance(part, (dict, list, tuple, _Array, _Dtype)) for part in value):
            return value
        return type(value)(_unwrapped(part, depth + 1) for part in value)
    if value is None or isinstance(value, (str, bytes, int, float)):
        return value
    raise ValueError(f"it holds a {type(value).__name__}")
