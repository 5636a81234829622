"""Adapters (LoRA, by peft) on imported networks: trained alongside a base's weights, kept alone, toggled on it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sims_core.errors import InputError, reason, whole
from sims_core.modules import adapter_layers, switched
from sims_core.torch_learner import ADAPTER, adaptable, peft_library, sharing
from sims_image.models.networks.imported import Imported

#: of all ranks
LARGEST = 4096
#: in the names of an adapter's weights
_MARK = ".lora_"


@dataclass(frozen=True)
class Adapter:
    """rank; base: path of the checkpoint whose weights it goes with, and the hash of those."""

    rank: int
    base: str
    base_sha256: str


def parse(text: str) -> tuple[int, tuple[str, ...]]:
    """Read RANK or RANK:NAME,NAME: (rank, the names of layers; none for all). Raises `InputError`."""
    number, colon, names = text.partition(":")
    found = tuple(name.strip() for name in names.split(",") if name.strip())
    if not number.strip().isdecimal() or len(number) > 6 or bool(colon) != bool(found):
        raise InputError("lora", text, "give a rank, such as 16, or rank and layers: 16:to_q,to_k,to_v")
    return whole("lora", int(number), 1, LARGEST), found


def targets_of(text: str, network: nn.Module) -> list[str]:
    """The layers of the library's module that an adapter ``text`` goes on. Raises `InputError` where there are none."""
    _, wanted = parse(text)
    if not isinstance(network, Imported):
        expected = "adapters go on imported networks, whose layers are torch's own (see import-diffusers); leave it out"
        raise InputError("lora", text, expected)
    layers = adaptable(network.model)
    for name in wanted:
        if not any(layer == name or layer.endswith(f".{name}") for layer in layers):
            parts = [layer.split(".") for layer in layers]
            known = sorted({".".join(part[-2 if part[-1].isdigit() else -1 :]) for part in parts})
            raise InputError("lora", text, f"no layer is called '{name}'; there are {', '.join(known)}")
    return [layer for layer in layers if not wanted or any(layer == n or layer.endswith(f".{n}") for n in wanted)]


def _config(rank: int, targets: Iterable[str]) -> Any:
    return peft_library(rank).LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets))


def attach(network: Imported, targets: Iterable[str], adapter: Adapter) -> Imported:
    """The network itself, with a new adapter on ``targets`` that does nothing yet, its own weights frozen.

    Drawn from torch's generator.
    """
    try:
        inject = peft_library(adapter.rank).inject_adapter_in_model
        inject(_config(adapter.rank, targets), network.model, adapter_name=ADAPTER)
    except ValueError as error:
        raise InputError("lora", adapter.rank, reason(error)) from None
    network.adapter = adapter
    freeze(network)
    return network


def freeze(network: nn.Module) -> None:
    """Let the adapter's weights alone have gradients."""
    for name, weight in network.named_parameters():
        weight.requires_grad_(_MARK in name)


def weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's part of a network's state."""
    return {name: value for name, value in state.items() if _MARK in name}


def idle(stored: Mapping[str, Tensor]) -> bool:
    """Whether an adapter of these weights does nothing."""
    return not any(bool(value.any()) for name, value in stored.items() if f"{_MARK}B." in name)


def _targets(stored: Mapping[str, Tensor]) -> list[str]:
    """The layers of the library's module that an adapter's weights are for."""
    return [name.removeprefix("model.").partition(_MARK)[0] for name in stored if f"{_MARK}A." in name]


def restored(network: Imported, stored: Mapping[str, Tensor], adapter: Adapter, item: str, argument: str) -> Imported:
    """The network itself with the adapter whose weights are ``stored``. Raises `InputError` where they do not fit."""
    targets = _targets(stored)
    layers = set(adaptable(network.model))
    odd = next((name for name in targets if name not in layers), None)
    if odd is not None or not targets:
        raise InputError(argument, item, f"another architecture: its base has no layer {odd}" if odd else "no adapter")
    with torch.random.fork_rng([]):
        attach(network, targets, adapter)
    state = network.state_dict()
    wanted = weights(state)
    if {k: v.shape for k, v in wanted.items()} != {k: v.shape for k, v in stored.items()}:
        raise InputError(argument, item, "another architecture: its weights do not fit the base")
    network.load_state_dict({**state, **stored})
    return network.eval().requires_grad_(False)


def merged(network: Imported) -> Imported:
    """The network itself with its adapter added to its weights, as if all of them had been trained."""
    for layer in adapter_layers(network.model, ADAPTER):
        layer.merge()
    for name, layer in [(n, m) for n, m in network.model.named_modules() if hasattr(m, "get_base_layer")]:
        parent, _, last = name.rpartition(".")
        setattr(network.model.get_submodule(parent), last, layer.get_base_layer())
    network.adapter = None
    return network


def for_peft(stored: Mapping[str, Tensor], adapter: Adapter, folder: Path) -> None:
    """Write an adapter as peft reads it, onto the library's own network."""
    _config(adapter.rank, _targets(stored)).save_pretrained(folder)
    plain = {f"base_model.{name}".replace(f".{ADAPTER}.", "."): value for name, value in stored.items()}
    save_file(plain, folder / "adapter_model.safetensors", metadata={"format": "pt"})


class Toggled:
    """A network with its adapter on, and the same one with it off: weights in memory once. Called as the network."""

    def __init__(self, network: Imported) -> None:
        self.__dict__["_network"] = network
        self.__dict__["_layers"] = adapter_layers(network.model, ADAPTER)
        for layer in self._layers:
            layer.enable_adapters(False)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """D with the adapter; afterwards it is off."""
        with switched(self._layers, ADAPTER, on=True):
            found: Tensor = self._network(*args, **kwargs)
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._network, name, value)


def pair(network: nn.Module, stored: Mapping[str, Tensor], adapter: Adapter, item: str) -> tuple[Imported, Toggled]:
    """(the base, the auxiliary) on the weights of ``network``, which itself stays as it is."""
    shared: Any = sharing(network)
    both = restored(shared, stored, adapter, item, "auxiliary")
    return both, Toggled(both)
