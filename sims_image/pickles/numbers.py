"""Numbers in pickles: numpy's arrays and bytes by inert stand-ins, and whole pickles of plain containers.

Of all importable names only those by which numpy and bytes are rebuilt are answered, by functions of this module, so
that not even numpy's own code is called on what a file says.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from sims_core.errors import InputError
from sims_image.pickles.machine import RefusedError, Stateful, Table, product, read_pickle
from sims_image.pickles.python2 import PYTHON2

#: of the largest array
AXES = 8


@dataclass
class _Kind(Stateful):
    """A numpy number type."""

    dtype: np.dtype[Any]

    def set_state(self, state: Any) -> None:
        order = _text(state[1]) if type(state) is tuple and len(state) >= 5 else None
        if order not in ("<", ">", "|", "=") or any(state[2:5]):
            raise RefusedError("it holds a numpy type with parts; only plain numbers are read")
        self.dtype = self.dtype.newbyteorder(order)


def _text(value: Any) -> Any:
    """Python 2's bytes as text."""
    return value.decode("latin1") if type(value) is bytes else value


def _kind(code: Any, *_: Any) -> _Kind:
    text = _text(code)
    if type(text) is not str or re.fullmatch(r"[<>|=]?(f[248]|[iu][1248]|b1)", text) is None:
        told = repr(text[:40]) if type(text) is str else f"a {type(text).__name__}"
        raise RefusedError(f"it holds numpy data of type {told}; only plain numbers are read")
    return _Kind(np.dtype(text))


@dataclass
class Array(Stateful):
    """A numpy array, empty until its state comes."""

    values: np.ndarray[Any, Any] | None = None

    @property
    def nbytes(self) -> int:
        """Of its values."""
        return 0 if self.values is None else self.values.nbytes

    def set_state(self, state: Any) -> None:
        """Take version, shape, type, order and bytes."""
        _, shape, kind, fortran, raw = state
        self.values = _array(raw, kind, shape, "F" if fortran else "C").values


def _array(raw: Any, kind: Any, shape: Any, order: Any = "C") -> Array:
    if type(kind) is not _Kind:
        raise RefusedError("it holds a numpy array without a type")
    if not isinstance(raw, memoryview | bytes):
        raise RefusedError("it holds a numpy array of objects; only plain numbers are read")
    if type(shape) is not tuple or any(type(n) is not int or n < 0 for n in shape) or order not in ("C", "F"):
        raise RefusedError("it holds a numpy array without a shape")
    if len(shape) > AXES or product(shape, len(raw)) * kind.dtype.itemsize != len(raw):
        raise RefusedError(f"it holds a numpy array of shape {shape[:AXES]} in {len(raw)} bytes")
    values = np.frombuffer(raw, kind.dtype).reshape(shape, order=order)
    return Array(values.astype(kind.dtype.newbyteorder("="), copy=False))


def _empty_array(*_: Any) -> Array:
    return Array()


def _scalar(kind: Any, raw: Any) -> bool | int | float:
    values = _array(raw, kind, ()).values
    assert values is not None
    number: bool | int | float = values.item()
    return number


def _no_bytes() -> bytes:
    """Empty bytes as protocol 2 writes them."""
    return b""


def _latin1(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes as protocol 2 writes them."""
    if type(text) is not str or encoding != "latin1":
        raise RefusedError("it holds bytes in an unknown encoding")
    return text.encode("latin1")


PLAIN: Table = {
    "_codecs.encode": _latin1,
    "__builtin__.bytes": _no_bytes,
    "numpy.ndarray": None,
    "numpy.dtype": _kind,
    **{f"numpy.{core}.multiarray._reconstruct": _empty_array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array for core in ("core", "_core")},
}
"""What pickled numbers and bytes name."""


def array(value: Any) -> np.ndarray[Any, Any] | None:
    """The numpy array that a file held, or None."""
    return value.values if isinstance(value, Array) else None


def load_plain(argument: str, item: str, data: bytes | memoryview) -> Any:
    """What a pickle of dicts, lists, tuples, strings, numbers and numeric numpy arrays holds, by Python 2 or 3.

    Byte strings come out as bytes; arrays at the top and as a dictionary's values as arrays. Raises `InputError` naming
    ``item`` and the reason for anything else.
    """
    try:
        value, _ = read_pickle(memoryview(data), PLAIN, machine=PYTHON2)
    except RefusedError as refused:
        raise InputError(argument, item, f"refused: {refused}; nothing in it was run") from None
    if isinstance(value, dict):
        return {key: part.values if isinstance(part, Array) else part for key, part in value.items()}
    return value.values if isinstance(value, Array) else value
