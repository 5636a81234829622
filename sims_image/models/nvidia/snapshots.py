"""What NVIDIA's EDM and EDM2 pickles hold, read without running any of it (`sims_image.pickles.machine`).

A network there is ``torch_utils.persistence._reconstruct_persistent_obj`` called on a dictionary with the source text
of its module, its class's name and its attributes; the constructor's arguments are among these. Unpickling the usual
way executes that text, and its tensors' storages go through ``torch.load(weights_only=False)``, which executes what is
nested in them. Here the text is ignored and the storages are read by the same machine as the file around them, with
nothing but a storage's own fields allowed: narrower than ``weights_only=True``, and alike in every version of torch
(before 2.6 ``weights_only=True`` could itself be made to execute code, CVE-2025-32434).
"""

from __future__ import annotations

import itertools
import math
import mmap
import re
from collections import UserDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sims_core.errors import InputError
from sims_image.data.archives import impostor
from sims_image.pickles.machine import REPEATS, Name, RefusedError, Stateful, Table, product, read_pickle
from sims_image.pickles.numbers import AXES, PLAIN, Array

# ------------------------------------------------------------------ stand-ins


@dataclass
class Stored(Stateful):
    """An object of NVIDIA's: its class's name and its attributes. It cannot be called."""

    class_name: str
    state: dict[str, Any] = field(default_factory=dict)

    def set_state(self, state: Any) -> None:
        """Take the attributes, once."""
        if type(state) is not dict or self.state:
            raise RefusedError(f"the state of its {self.class_name} is not a dictionary")
        self.state = state

    @property
    def arguments(self) -> dict[str, Any]:
        """What it was constructed with, by name. Raises `RefusedError` if that was not recorded."""
        named = self.state.get("_init_kwargs")
        if type(named) is not dict:
            raise RefusedError(f"its {self.class_name} does not record the arguments it was made with")
        positional = self.state.get("_init_args", ())
        order = ("img_resolution", "img_channels", "label_dim")  # how all of the networks' signatures begin
        if type(positional) is not tuple or len(positional) > len(order):
            raise RefusedError(f"its {self.class_name} was made with arguments that have no names")
        return dict(zip(order, positional, strict=False)) | named


def _persistent(meta: Any) -> Stored:
    if type(meta) is not dict or meta.get("type") != "class" or type(meta.get("class_name")) is not str:
        raise RefusedError("it holds a persistent object without a class")
    state = meta.get("state")
    if state is not None and type(state) is not dict:
        raise RefusedError(f"the state of its {meta['class_name']} is not a dictionary")
    return Stored(meta["class_name"], state or {})


def _dictionary(*items: Any) -> dict[Any, Any]:
    """An empty dictionary; such files fill it afterwards."""
    if items:
        raise RefusedError("it makes a dictionary in an unusual way")
    return {}


def _set(items: Any = ()) -> set[str]:
    if type(items) is not list or any(type(i) is not str for i in items):
        raise RefusedError("it holds a set of something else than names")
    return set(items)


# -------------------------------------------------------------- torch's data

_MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save's older format, which tensors inside a pickle have
_VERSION = 1001
_OPCODES = 200  # of each part of a storage; torch writes about 40
_STORAGES = {
    "torch.DoubleStorage": torch.float64, "torch.FloatStorage": torch.float32, "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16, "torch.LongStorage": torch.int64, "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16, "torch.CharStorage": torch.int8, "torch.ByteStorage": torch.uint8,
}  # fmt: skip


def _storage(payload: Any) -> Tensor:
    """The numbers of one storage, as a tensor of one axis, from the bytes that torch.save made of it.

    Five pickles (magic number, version, machine, the storage's description as a persistent identifier, the list of
    keys), then the count as int64, then the numbers.
    """
    if not isinstance(payload, memoryview | bytes):
        raise RefusedError("it holds a tensor without bytes")
    payload = memoryview(payload)
    found: list[tuple[torch.dtype, str, int]] = []

    def describe(identifier: Any) -> None:
        what, kind, key, _, count, view = identifier
        plain = type(what) is str and type(key) is str and type(count) is int
        if not plain or what != "storage" or not isinstance(kind, Name) or view is not None:
            raise RefusedError("a tensor's storage has no usual description")
        found.append((_STORAGES[str(kind)], key, count))

    inside: Table = dict.fromkeys(_STORAGES)
    parts, at = [], 0
    try:
        for part in range(5):
            value, at = read_pickle(
                payload, inside, start=at, persistent=describe if part == 3 else None, limit=_OPCODES
            )
            parts.append(value)
            if part == 0 and (type(value) is not int or value != _MAGIC):
                raise RefusedError("a tensor's storage does not begin as torch writes it")
    except RefusedError as refused:
        raise RefusedError(f"inside a tensor's storage, {refused}") from None
    _, version, machine, _, keys = parts
    if (
        type(version) is not int
        or version != _VERSION
        or type(machine) is not dict
        or machine.get("little_endian") is not True
    ):
        raise RefusedError("a tensor's storage was written by an unknown version of torch or on a big-endian machine")
    if len(found) != 1 or type(keys) is not list or list(map(type, keys)) != [str] or keys[0] != found[0][1]:
        raise RefusedError("a tensor's storage holds something else than one storage")
    dtype, _, count = found[0]
    size = count * dtype.itemsize
    if count < 0 or len(payload) - at != 8 + size or int.from_bytes(payload[at : at + 8], "little") != count:
        raise RefusedError(f"a tensor's storage announces {count} numbers and holds {len(payload) - at - 8} bytes")
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(bytearray(payload[at + 8 :]), dtype=dtype)


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Tensor:
    """A tensor in its storage, within its bounds. The rest (gradients wanted, hooks) must be empty of hooks."""
    if type(size) is not tuple or type(stride) is not tuple or len(size) != len(stride) or len(size) > AXES:
        raise RefusedError("it holds a tensor without a shape")
    whole = (offset, *size, *stride)
    if not isinstance(storage, Tensor) or storage.ndim != 1 or any(type(n) is not int or n < 0 for n in whole):
        raise RefusedError("it holds a tensor without a shape")
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    count = product(size, len(storage))
    if count > len(storage) or (count and last >= len(storage)):
        raise RefusedError(f"it holds a tensor of shape {size} in a storage of {len(storage)} numbers")
    if any(type(hooks) is dict and hooks for hooks in rest):
        raise RefusedError("it holds a tensor with hooks")
    return storage.as_strided(size, stride, offset).contiguous()


def _parameter(data: Any, *rest: Any) -> Tensor:
    if not isinstance(data, Tensor) or any(type(hooks) is dict and hooks for hooks in rest):
        raise RefusedError("it holds a parameter that is no tensor")
    return data


class _Forks(UserDict[str, Any]):
    """A table whose names may lie deeper, as in forks that keep NVIDIA's modules in a package of their own."""

    _MODULES = re.compile(r"(?:[A-Za-z_]\w*\.)+((?:torch_utils\.persistence|dnnlib\.util)\.\w+)")

    def __contains__(self, name: object) -> bool:
        return self._known(str(name)) in self.data

    def __getitem__(self, name: str) -> Any:
        return self.data[self._known(name)]

    def _known(self, name: str) -> str:
        deeper = self._MODULES.fullmatch(name)
        return deeper[1] if deeper else name


def _size(lengths: Any = ()) -> tuple[int, ...]:
    if type(lengths) not in (list, tuple) or any(type(n) is not int for n in lengths):
        raise RefusedError("it holds a shape of something else than whole numbers")
    return tuple(lengths)


_KNOWN: Table = {
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "torch.nn.modules.container.ModuleDict": lambda: Stored("ModuleDict"),
    "dnnlib.util.EasyDict": _dictionary,
    "collections.OrderedDict": _dictionary,
    "builtins.set": _set,
    "__builtin__.set": _set,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.storage._load_from_bytes": _storage,
    "torch.Size": _size,
    "torch.device": lambda *words: " ".join(map(str, words))[:80],
    "argparse.Namespace": lambda: Stored("Namespace"),
    "types.SimpleNamespace": lambda: Stored("SimpleNamespace"),
    **PLAIN,
}
TABLE: Table = _Forks(_KNOWN)
"""All that a file of NVIDIA's may name: what they hold, and what people's own loops add to the network."""


# --------------------------------------------------------------------- files


def read_file(path: str | Path, *, argument: str = "path") -> Any:
    """The value that a pickle file of NVIDIA's holds, objects as `Stored`. Raises `InputError` with the reason."""
    try:
        with open(path, "rb") as handle:
            content = memoryview(mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is empty"
        raise InputError(argument, str(path), f"cannot be read ({reason}); name a .pkl file of NVIDIA's") from None
    try:
        if content[0] != 0x80:
            what = impostor(bytes(content[:256]))
            raise RefusedError(f"it is {what}" if what else "it does not begin as a pickle (byte 0x80)")
        value, end = read_pickle(content, TABLE)
        if end != len(content):
            raise RefusedError(f"{len(content) - end} bytes follow its end")
        return value
    except RefusedError as refused:
        raise InputError(argument, str(path), f"refused: {refused}; nothing in it was run") from None


_MOST = 20_000  # tensors; the largest published network has about 600
_MEMBERS = 200_000  # tensors, modules and empty places; it has about 5,000


def tensors(network: Stored, stored: int) -> dict[str, Tensor]:
    """Parameters and persistent buffers of a stored network under their dotted names.

    stored: bytes of the file. Raises `RefusedError`, also for more numbers than so many bytes can honestly hold.
    """
    found = dict(itertools.islice(_walk(network, "", set(), 0, [_MEMBERS]), _MOST + 1))
    if len(found) > _MOST:
        raise RefusedError(f"its network has more than {_MOST} tensors")
    if sum(tensor.numel() for tensor in found.values()) > REPEATS * stored:
        raise RefusedError("its network has the same tensor in many places")
    return found


def _walk(module: Stored, prefix: str, seen: set[int], depth: int, left: list[int]) -> Iterator[tuple[str, Tensor]]:
    if id(module) in seen or depth > 20:
        raise RefusedError(f"its module {prefix[:80]!r} lies inside itself or twice in the network")
    seen.add(id(module))
    passing = module.state.get("_non_persistent_buffers_set", set())
    if type(passing) is not set:
        raise RefusedError(f"its {module.class_name} has no names of passing buffers")
    for group in ("_parameters", "_buffers"):
        for name, value in _members(module, group, left):
            if value is None or (group == "_buffers" and name in passing):
                continue
            if not isinstance(value, Tensor):
                raise RefusedError(f"its {prefix}{name} is a {type(value).__name__}, not a tensor")
            yield prefix + name, value
    for name, value in _members(module, "_modules", left):
        if value is None:
            continue
        if not isinstance(value, Stored):
            raise RefusedError(f"its module {prefix}{name} is a {type(value).__name__}")
        yield from _walk(value, f"{prefix}{name}.", seen, depth + 1, left)


def _members(module: Stored, group: str, left: list[int]) -> Iterator[tuple[str, Any]]:
    members = module.state.get(group)
    left[0] -= len(members) if type(members) is dict else 0
    if left[0] < 0:
        raise RefusedError(f"its network has more than {_MEMBERS} parts")
    if type(members) is not dict or any(type(name) is not str for name in members):
        raise RefusedError(f"its {module.class_name} has no {group}")
    yield from members.items()


def plain(value: Any, what: str = "it", *, finite: bool = True) -> Any:
    """``value`` as JSON can hold it: arrays as lists, and with ``finite`` infinities as text.

    Raises `RefusedError` for the rest, and for more than settings have.
    """
    left = [2000]  # values, or 100 characters; a file may nest the same list in itself again and again

    def convert(value: Any, depth: int) -> Any:
        left[0] -= 1 + (len(value) // 100 if isinstance(value, str) else 0)
        if depth > 6 or left[0] < 0:
            raise RefusedError(f"{what} is more than a few settings")
        if finite and isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, Array) and value.values is not None and value.values.size <= left[0]:
            return convert(value.values.tolist(), depth)
        if isinstance(value, list | tuple):
            return [convert(v, depth + 1) for v in value]
        if isinstance(value, dict):
            return {convert(str(k), depth + 1): convert(v, depth + 1) for k, v in value.items()}
        raise RefusedError(f"{what} holds a {type(value).__name__}, which is not a setting")

    return convert(value, 0)
