"""Networks from a description and weights of a file, which must fit each other exactly."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sims_core.errors import InputError, shown
from sims_image.models.networks import build


def read_weights(path: Path, *, argument: str = "checkpoint") -> dict[str, Tensor]:
    """The tensors of a safetensors file. Raises `InputError` if it is not whole."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(argument, str(path), f"not a whole safetensors file ({shown(str(error))})") from None


def build_with(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], item: str, *, argument: str = "checkpoint"
) -> torch.nn.Module:
    """The network of ``config`` with ``weights``, strictly, in eval mode. Raises `InputError` naming what differs."""
    try:
        with torch.device("meta"):  # shapes only: nothing is drawn, or allocated before it is known to fit
            network = build(**config)
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError, AttributeError, MemoryError) as error:
        raise InputError(argument, item, f"its architecture cannot be built ({shown(str(error))})") from None
    _compare(network.state_dict(), weights, item, argument)
    if network.state_dict().keys() != {name for name, _ in _tensors(network)}:  # it has constants besides its state
        with torch.random.fork_rng(devices=[]):
            network = build(**config)
    network.load_state_dict(dict(weights), strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _tensors(network: torch.nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from network.named_parameters()
    yield from network.named_buffers()


def _compare(wanted: Mapping[str, Tensor], weights: Mapping[str, Tensor], item: str, argument: str) -> None:
    missing, foreign = wanted.keys() - weights.keys(), weights.keys() - wanted.keys()
    for names, words in ((missing, "lacks"), (foreign, "holds, and its network has no place for,")):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise InputError(argument, item, f"another architecture: the file {words} {shown(min(names))}{more}")
    for name, value in wanted.items():
        given = weights[name]
        if given.shape != value.shape or given.dtype != value.dtype:
            raise InputError(
                argument,
                item,
                f"another architecture: {name} is {given.dtype} {tuple(given.shape)}, "
                f"the network wants {value.dtype} {tuple(value.shape)}",
            )
