"""How the networks of a model are evaluated: in turn or both at once, as they are, compiled, or as CUDA graphs.

Nothing here changes what is computed, only how it is rounded: 'overlapped' networks and CUDA graphs run the kernels of
'sequential' ones; compiled networks differ from them by float32's rounding. All of it is on record.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from sims_core.errors import InputError, choose
from sims_image.models.adapters import Toggled
from sims_image.models.compiled import compiled

PAIRS = ("sequential", "overlapped")

Network: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], Tensor]
"""``network(x (B, C, H, W), sigma (1,), one-hot labels (B, classes) or None) -> D``, all on the networks' device."""


@dataclass(frozen=True)
class Engine:
    """How to evaluate.

    pair: two networks 'sequential' (in turn) or 'overlapped' (on two CUDA streams, or on a CPU in two threads, each
    with half of torch's threads). compiled: through torch.compile. cuda_graph: record the kernels of an evaluation once
    and replay them.
    Raises `InputError` for an unknown way.
    """

    pair: str = "sequential"
    compiled: bool = False
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        choose("pair", self.pair, PAIRS)

    def __str__(self) -> str:
        parts = [self.pair, "compiled" if self.compiled else "", "cuda-graph" if self.cuda_graph else ""]
        return "+".join(filter(None, parts))

    def check(self, network: nn.Module) -> None:
        """Raises `InputError` where a network cannot be evaluated so."""
        device = next(network.parameters()).device
        if self.cuda_graph and device.type != "cuda":
            raise InputError("cuda_graph", True, f"it needs a CUDA device; the networks are on {device}")


#: In turn, as they are.
PLAIN = Engine()


class Runner:
    """One network, or a pair, evaluated as an `Engine` says. Prepared at the first call, then kept."""

    def __init__(self, engine: Engine, network: nn.Module, other: nn.Module | Toggled | None = None) -> None:
        engine.check(network)
        if isinstance(other, Toggled) and engine != PLAIN:
            words = "an adapter is toggled on one network, which is evaluated in turn and not compiled"
            raise InputError("engine", str(engine), words)
        self.engine, self.network, self.other = engine, network, other

    @cached_property
    def own(self) -> Network:
        """The network alone."""
        return self._prepared(cast(Network, self.network))

    @cached_property
    def both(self) -> Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]:
        """The pair: D of the network, D of the other one."""
        assert self.other is not None
        own, other = self.own, self._prepared(cast(Network, self.other))
        if self.engine.pair == "overlapped":
            device = next(self.network.parameters()).device
            return _on_streams(own, other, device) if device.type == "cuda" else _in_threads(own, other)
        return lambda x, sigma, labels: (own(x, sigma, labels), other(x, sigma, labels))

    def _prepared(self, network: Network) -> Network:
        if self.engine.compiled:
            network = compiled(network)  # type: ignore[type-var]
        return _Graph(network) if self.engine.cuda_graph else network


def _in_threads(own: Network, other: Network) -> Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]:
    """Both at once on a CPU, each in a thread of its own with half of torch's threads."""
    each = max(1, torch.get_num_threads() // 2)
    pool = ThreadPoolExecutor(2, "network", lambda: torch.set_num_threads(each))

    def call(network: Network, x: Tensor, sigma: Tensor, labels: Tensor | None, grad: bool) -> Tensor:
        with torch.set_grad_enabled(grad):  # a thread's own setting
            return network(x, sigma, labels)

    def run(x: Tensor, sigma: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        grad = torch.is_grad_enabled()
        found: list[Future[Tensor]] = [pool.submit(call, each, x, sigma, labels, grad) for each in (own, other)]
        return found[0].result(), found[1].result()

    return run


def _on_streams(
    own: Network, other: Network, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]:
    """Both at once on a GPU: the second network on a stream alongside the current one. Nothing waits on the host."""
    side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def run(x: Tensor, sigma: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
        current = torch.cuda.current_stream(x.device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            second = other(x, sigma, labels)
        for used in (x, sigma, labels):
            if used is not None:
                used.record_stream(side)  # its memory is not given away while the side stream reads it
        first = own(x, sigma, labels)
        current.wait_stream(side)
        second.record_stream(current)
        return first, second

    return run


class _Graph:
    """A network's kernels as a CUDA graph: captured for the shapes of a first call, replayed afterwards."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, Tensor, Tensor | None] | None = None
        self.output: Tensor | None = None

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        if self.inputs is None or self.inputs[0].shape != x.shape or (self.inputs[2] is None) != (labels is None):
            with torch.cuda.device(x.device):  # streams and graphs belong to the current device
                self._capture(x, sigma, labels)
        assert self.inputs is not None and self.graph is not None and self.output is not None
        for held, given in zip(self.inputs, (x, sigma, labels), strict=True):
            if held is not None and given is not None:
                held.copy_(given)
        self.graph.replay()
        return self.output.clone()  # the next replay overwrites it

    def _capture(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> None:
        self.inputs = (x.clone(), sigma.clone(), None if labels is None else labels.clone())
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side), torch.no_grad():
            for _ in range(3):  # libraries choose their kernels before the capture
                self.network(*self.inputs)
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        # on a stream of its own: graphs captured on one stream share its cuBLAS workspace, and two that replay at once
        # then wait for each other without end. What other threads do to the device meanwhile (nccl's, say) is their own
        # affair.
        with torch.cuda.graph(self.graph, stream=side, capture_error_mode="thread_local"), torch.no_grad():
            self.output = self.network(*self.inputs)
