"""A GPU that is not there: tensors that say 'cuda:0', held to a GPU's rules, computed on the CPU.

`gpu()` yields a `Machine`. Within it tensors on 'cuda:0' are wrappers around CPU tensors, so that values can be
compared with a run on the CPU, and

- an operation that mixes devices raises `MixedDevicesError` (zero-dim CPU tensors in pointwise operations are let
  through, as torch does);
- what makes the host wait is noted in ``machine.syncs``: reading a value, data-dependent shapes, copies to the host,
  and copies from it that are blocking or from memory that is not pinned;
- what two streams do to one piece of memory without waiting for one another, memory given away while another stream
  uses it, and a stream or graph of whichever device is current, is noted in ``machine.races``;
- CUDA graphs are captured and replayed operation by operation: capturing computes nothing, a sync or a copy from the
  host within it raises `ForbiddenError`, and a replay reads the memory that was captured, as long as that lives.

Not shown by it: the kernels' own arithmetic and limits, cuDNN, torch.compile, nccl, memory, speed.
"""

from __future__ import annotations

import functools
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

CUDA, ATEN, ROOT = torch.device("cuda", 0), torch.ops.aten, Path(__file__).resolve().parents[1]


class MixedDevicesError(RuntimeError):
    """Tensors on two devices in one operation."""


class ForbiddenError(RuntimeError):
    """What a stream that is being captured may not do."""


# ------------------------------------------------------------------- streams, memory


class Stream:
    """A queue of kernels. known: how far it has waited for each stream, itself included."""

    def __init__(self, device: Any = None, priority: int = 0) -> None:
        self.known: Counter[Stream] = Counter()
        _machine().chosen(device)
        _machine().streams.append(self)

    def wait_stream(self, other: Stream) -> None:
        for stream, time in other.known.items():
            self.known[stream] = max(self.known[stream], time)


@dataclass(eq=False)
class Memory:
    """One allocation: by which stream, and when streams last used it."""

    owner: Stream
    machine: weakref.ref[Machine]
    written: dict[Stream, int] = field(default_factory=dict)
    read: dict[Stream, int] = field(default_factory=dict)
    recorded: set[Stream] = field(default_factory=set)
    pooled: bool = False  # of a graph, which keeps it

    def use(self, stream: Stream, machine: Machine, *, write: bool) -> None:
        for others in (self.written, self.read) if write else (self.written,):
            for other, time in others.items():
                if stream.known[other] < time:
                    machine.races.append(f"{'written' if write else 'read'} without waiting, {_where()}")
        stream.known[stream] += 1
        (self.written if write else self.read)[stream] = stream.known[stream]

    def __del__(self) -> None:
        machine = self.machine()
        if machine is None or not machine.on or self.pooled:
            return
        for users in (self.written, self.read):
            for other, time in users.items():
                if other not in self.recorded and self.owner.known[other] < time:
                    machine.races.append("given away in use by another stream")


def _where() -> str:
    """The innermost place in the project's own packages."""
    frame = sys._getframe(1)
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if ROOT in file.parents and file.relative_to(ROOT).parts[0].startswith("sims_"):
            return f"{file.relative_to(ROOT).as_posix()}: {frame.f_code.co_name}"
        frame = frame.f_back  # type: ignore[assignment]
    return "outside the project"


# --------------------------------------------------------------------------- tensors


class OnGpu(Tensor):
    """A tensor on 'cuda:0'. held: its values, on the CPU; memory: where they lie. (For torch's C++ it is on 'meta'.)"""

    held: Tensor
    memory: Memory
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor, memory: Memory) -> OnGpu:
        made = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device="meta",
        )
        made.held, made.memory = held, memory
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"OnGpu({self.held})"

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return CUDA

    @property
    def is_meta(self) -> bool:  # type: ignore[override]
        return False

    @property
    def is_cuda(self) -> bool:  # type: ignore[override]
        return True

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """Without a device that is this one: then nothing is copied."""
        if any(_is_device(a) and torch.device(a).type == "meta" for a in (*args, *kwargs.values())):
            return torch.empty_strided(self.size(), self.stride(), dtype=self.dtype, device="meta")
        here = [not (_is_device(a) and torch.device(a) == CUDA) for a in args]
        args = tuple(a if kept else None for a, kept in zip(args, here, strict=True))
        if args and isinstance(args[0], Tensor):
            args, kwargs = (), {"dtype": args[0].dtype, "device": args[0].device, **kwargs}
        if "device" in kwargs and kwargs["device"] is not None and torch.device(kwargs["device"]) == CUDA:
            del kwargs["device"]
        if not any(a is not None for a in args) and not any(v is not None for v in kwargs.values()):
            return self
        if args and args[0] is None and len(args) > 1:
            return Tensor.to(self, dtype=args[1], non_blocking=bool(args[2:] and args[2]), **kwargs)
        return Tensor.to(self, *(a for a in args if a is not None), **kwargs)

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first")

    def tolist(self) -> Any:
        _machine().sync("tolist")
        return self.held.tolist()

    def new_tensor(self, data: Any, **kwargs: Any) -> Tensor:
        return torch.tensor(data, **{"dtype": self.dtype, "device": CUDA, **kwargs})

    def record_stream(self, stream: Any) -> None:
        self.memory.recorded.add(stream)

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        with torch.no_grad():
            made = self.clone().requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made._is_param = True  # type: ignore[attr-defined]
        return memo.setdefault(id(self), made)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _machine().run(func, args, kwargs or {})


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device | str)


# --------------------------------------------------------------------------- machine

#: shapes that depend on values, which the host reads
READING = {
    *(ATEN.nonzero, ATEN.masked_select, ATEN._unique2, ATEN.unique_dim, ATEN.unique_consecutive, ATEN.equal),
    *(ATEN._local_scalar_dense, ATEN.repeat_interleave, ATEN.is_nonzero, ATEN.bincount),
}
RESHAPING = {ATEN.resize_, ATEN.set_, ATEN.squeeze_, ATEN.unsqueeze_, ATEN.t_, ATEN.transpose_, ATEN.as_strided_}


class Machine(TorchDispatchMode):
    """See the module. syncs: (what, where) of everything that the host waited for; races: in words."""

    def __init__(self) -> None:
        super().__init__()
        self.syncs: list[tuple[str, str]] = []
        self.races: list[str] = []
        self.streams: list[Stream] = []
        self.capturing: Graph | None = None
        self.on = True
        self.selected = False  # whether the current device is the one that tensors are on
        _machines.append(self)
        self.current = Stream(CUDA)

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # which is loaded for seconds, and then skipped at each operation

    # what torch.cuda offers

    def current_stream(self, device: Any = None) -> Stream:
        self.chosen(device)
        return self.current

    def chosen(self, device: Any) -> None:
        """Note a stream or a graph of whichever device is current."""
        if device is None and not self.selected:
            self.races.append(f"on whichever device is current, {_where()}")

    def set_device(self, device: Any) -> None:
        self.selected = torch.device(device) == CUDA

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        before = self.selected
        self.set_device(device)
        try:
            yield
        finally:
            self.selected = before

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    @contextmanager
    def graph(self, graph: Graph, **options: Any) -> Iterator[None]:
        self.synchronize()  # as torch.cuda.graph does
        self.chosen(None)
        with self.stream(Stream(CUDA)):
            self.capturing = graph
            try:
                yield
            finally:
                self.capturing = None
        graph.captured()

    def synchronize(self, device: Any = None) -> None:
        self.sync("synchronize")
        for stream in self.streams:
            for other in self.streams:
                stream.wait_stream(other)

    def sync(self, what: str) -> None:
        """Note that the host waits."""
        if self.capturing is not None:
            raise ForbiddenError(f"{what} while a graph is captured, {_where()}")
        self.syncs.append((what, _where()))

    # every operation

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """One operation, by the rules."""
        given = _tensors((args, kwargs))
        there = [t for t in given if isinstance(t, OnGpu)]
        device, packet = kwargs.get("device"), func.overloadpacket
        # torch fills in what it takes for a tensor's own device
        kinds = ("cuda", "meta") if there or packet in (ATEN.scalar_tensor, ATEN._to_copy) else ("cuda",)
        to_gpu = device is not None and torch.device(device).type in kinds
        if not there and not to_gpu:
            return func(*args, **kwargs)
        if packet in RESHAPING:
            raise NotImplementedError(f"{func} changes a tensor's shape in place")
        if packet in (ATEN._to_copy, ATEN.copy_):
            source, target = (args[1], args[0]) if packet is ATEN.copy_ else (args[0], None)
            onto = isinstance(target, OnGpu) if target is not None else to_gpu or device is None
            self._moved(source, onto, bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False)))
        elif given:
            self._rules(func, packet, args, kwargs, given)
        kwargs = {**kwargs, **({"device": torch.device("cpu")} if to_gpu else {})}
        stays = device is None or to_gpu or packet is ATEN.copy_
        return self._compute(func, args, kwargs, there, wrapped=stays and packet is not ATEN._local_scalar_dense)

    def _moved(self, source: Tensor, onto: bool, non_blocking: bool) -> None:
        if isinstance(source, OnGpu) and not onto:
            if non_blocking:
                self.races.append(f"a copy to the host that nobody waits for, {_where()}")
            self.sync("copy to the host")
        elif onto and not isinstance(source, OnGpu):
            if source.ndim == 0 and not non_blocking and self.capturing is None:
                self.sync("copy of a scalar from the host")
            elif not non_blocking:
                self.sync("blocking copy from the host")
            elif not getattr(source, "pinned", False):
                self.sync("copy from memory that is not pinned")

    def _rules(self, func: Any, packet: Any, args: Any, kwargs: dict[str, Any], given: list[Tensor]) -> None:
        strangers = [t for t in given if not isinstance(t, OnGpu)]
        if packet in (ATEN.index, ATEN.index_put, ATEN.index_put_):
            indices = [t for t in args[1] if t is not None]
            masks = any(t.dtype in (torch.bool, torch.uint8) for t in indices)
            if masks and (packet is ATEN.index or args[2].numel() > 1):
                self.sync("a mask as index")
            if any(not isinstance(t, OnGpu) for t in indices):
                self.sync("an index from the host")  # torch moves it
            strangers = [t for t in strangers if not any(t is i for i in indices)]
        scalars_pass = torch.Tag.pointwise in func.tags or packet in (ATEN.index_put, ATEN.index_put_, ATEN.fill_)
        odd = []
        if strangers:
            into = _written(func, args, kwargs)
            odd = [t for t in strangers if t.ndim or not scalars_pass or any(t is i for i in into)]
        if odd:
            raise MixedDevicesError(
                f"{func}: {[(str(t.device), tuple(t.shape)) for t in odd]} beside cuda:0, {_where()}"
            )
        if packet in READING and not (packet is ATEN.repeat_interleave and kwargs.get("output_size") is not None):
            self.sync(str(packet.__name__))

    def _compute(self, func: Any, args: Any, kwargs: dict[str, Any], there: list[OnGpu], *, wrapped: bool) -> Any:
        written = _written(func, args, kwargs)
        uses = [(t.memory, False) for t in there] + [(t.memory, True) for t in written if isinstance(t, OnGpu)]
        if self.capturing is not None:
            self.capturing.uses |= dict.fromkeys(uses)  # nothing runs yet
        else:
            for memory, write in uses:
                memory.use(self.current, self, write=write)
        values = _mapped(_held, (args, kwargs))
        if self.capturing is not None:
            self.capturing.before(written)
        found = func(*values[0], **values[1])
        if self.capturing is not None:
            self.capturing.add(func, values, found, there)
        if not wrapped:
            return found
        by_identity = {id(t.held): t for t in there}
        homes = {_storage(t.held): t.memory for t in there}

        def made(value: Tensor) -> Tensor:
            if id(value) in by_identity:
                return by_identity[id(value)]
            memory = homes.get(_storage(value))
            if memory is None:
                memory = Memory(self.current, weakref.ref(self), pooled=self.capturing is not None)
                if self.capturing is None:
                    memory.use(self.current, self, write=True)
                else:
                    self.capturing.uses[memory, True] = None
            return OnGpu(value, memory)

        return _mapped(made, found)


def _mapped(change: Callable[[Any], Any], value: Any, kind: type = Tensor) -> Any:
    """What an operation takes or gives, with every tensor in it changed."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(change, part, kind) for key, part in value.items()}
    if type(value) in (tuple, list):
        return type(value)([_mapped(change, part, kind) for part in value])
    return value


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _mapped(found.append, value)
    return found


def _held(value: Any) -> Any:
    return value.held if isinstance(value, OnGpu) else value


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The tensors that an operation writes to."""
    return _tensors([args[place] if place < len(args) else kwargs.get(name) for place, name in _targets(func)])


@functools.cache
def _targets(func: Any) -> list[tuple[int, str]]:
    """The arguments that an operation writes to: position and name."""
    arguments = enumerate(func._schema.arguments)
    return [(k, a.name) for k, a in arguments if a.alias_info is not None and a.alias_info.is_write]


# ---------------------------------------------------------------------------- graphs


class Graph:
    """A CUDA graph: what was done while it was captured, to be done again on the same memory."""

    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.own: dict[int, Tensor] = {}  # memory of the graph itself, which it keeps
        self.undo: dict[int, tuple[Tensor, Tensor]] = {}
        self.uses: dict[tuple[Memory, bool], None] = {}

    def before(self, written: list[Tensor]) -> None:
        for t in written:
            held = _held(t)
            if _storage(held) not in self.own and _storage(held) not in self.undo:
                self.undo[_storage(held)] = (flat := _flat(held)), flat.clone()

    def add(self, func: Any, values: Any, found: Any, there: list[OnGpu]) -> None:
        inputs = {_storage(t.held) for t in there}
        new = [t for t in _tensors(found) if _storage(t) not in inputs]
        self.own |= {_storage(t): t for t in new}
        lent = {id(t): _Lent(t, keep=_storage(t) in self.own) for t in _tensors(values)}
        frame = _mapped(lambda t: lent[id(t)], values)

        def again() -> None:
            args, kwargs = _mapped(lambda one: one(), frame, _Lent)
            for old, fresh in zip(_tensors(found), _tensors(func(*args, **kwargs)), strict=True):
                if any(old is t for t in new):
                    old.copy_(fresh)

        self.work.append(again)

    def captured(self) -> None:
        """Capturing computes nothing: take back what was written, and leave nothing readable in the graph's memory."""
        for place, content in self.undo.values():
            place.copy_(content)
        for t in self.own.values():
            if t.is_floating_point():
                t.fill_(torch.nan)
        self.undo.clear()

    def replay(self) -> None:
        machine = _machine()
        for memory, write in self.uses:
            memory.use(machine.current, machine, write=write)
        with _disable_current_modes():
            for again in self.work:
                again()


class _Lent:
    """A tensor that a graph reads: held if the graph owns its memory, else by address, and no longer than it lives."""

    def __init__(self, value: Tensor, *, keep: bool) -> None:
        self.kept = value if keep or value.ndim == 0 else None  # zero-dim CPU tensors are copied into the kernel's call
        self.weak = value.untyped_storage()._weak_ref() if self.kept is None else None
        self.layout = value.dtype, value.storage_offset(), value.size(), value.stride()

    def __call__(self) -> Tensor:
        if self.kept is not None:
            return self.kept
        storage = torch.UntypedStorage._new_with_weak_ptr(self.weak)
        if storage is None:
            raise ForbiddenError("a graph reads memory that was given away since")
        dtype, *layout = self.layout
        return torch.empty(0, dtype=dtype).set_(storage, *layout)


def _flat(held: Tensor) -> Tensor:
    storage = held.untyped_storage()
    return torch.empty(0, dtype=held.dtype).set_(storage, 0, (storage.nbytes() // held.element_size(),), (1,))


# --------------------------------------------------------------------------- the rest

_machines: list[Machine] = []


def _machine() -> Machine:
    return _machines[-1]


def _pinned(tensor: Tensor, device: Any = None) -> Tensor:
    made = tensor.clone()
    made.pinned = True  # type: ignore[attr-defined]
    return made


def _made_on_the_host(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def made(data: Any, *, dtype: Any = None, device: Any = None, **kwargs: Any) -> Tensor:
        if isinstance(data, OnGpu):
            return data.to(device=device, dtype=dtype)
        found = make(data, dtype=dtype, **kwargs)
        return found if device is None else found.to(device)

    return made


def _renamed(grouped: Callable[..., dict[Any, Any]]) -> Any:
    """Groups of tensors by the device that they say, and not the one that torch's C++ sees."""
    return staticmethod(lambda *a, **k: {(CUDA, kind): group for (_, kind), group in grouped(*a, **k).items()})


@contextmanager
def gpu() -> Iterator[Machine]:
    """Within it this machine has one GPU. See the module."""
    machine = Machine()
    there: dict[str, Any] = {
        **{"is_available": lambda: True, "device_count": lambda: 1, "current_device": lambda: 0},
        **{"_lazy_init": lambda: None, "set_device": machine.set_device, "manual_seed_all": lambda seed: None},
        **{"get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8)},
        **{"set_rng_state": lambda state, device=None: None, "synchronize": machine.synchronize},
        **{"Stream": Stream, "stream": machine.stream, "current_stream": machine.current_stream},
        **{"CUDAGraph": Graph, "graph": machine.graph, "device": machine.device},
    }
    with ExitStack() as stack:
        for name, value in there.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", _pinned))
        grouped = torch.optim.Optimizer._group_tensors_by_device_and_dtype
        stack.enter_context(mock.patch.object(torch.optim.Optimizer, grouped.__name__, _renamed(grouped)))
        for name in ("tensor", "as_tensor"):  # torch's own would fill the device's memory itself
            stack.enter_context(mock.patch.object(torch, name, _made_on_the_host(getattr(torch, name))))
        overwrite = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrite)
        stack.callback(_machines.pop)
        with machine:
            yield machine
        machine.on = False


def fetched(tensor: Tensor) -> Tensor:
    """The values of a tensor, for a test to look at: not noted."""
    return _held(tensor.detach())
