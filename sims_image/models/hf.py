"""Networks of diffusers as their folders hold them: ``config.json``, safetensors, a scheduler's settings.

A folder is a model's own, or a pipeline's (``model_index.json``, with parts in folders or flat). Nothing in it is run,
and nothing is fetched.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sims_core.errors import InputError, shown
from sims_core.lab.runs import digest
from sims_image.data.archives import sha256_file
from sims_image.models.fitting import read_weights
from sims_image.models.networks import build, imported

#: what stands before such a folder where a checkpoint is asked for
PREFIX = "hf:"
MODEL, INDEX, SCHEDULER = "config.json", "model_index.json", "scheduler_config.json"
PARTS = ("unet", "transformer")
_WEIGHTS = "diffusion_pytorch_model"


@dataclass(frozen=True)
class Folder:
    """path: of the network. config: `networks.build` makes it. weights: its files. left_out: settings not known."""

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]
    left_out: tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the weights and the settings."""
        return hashed(self.weights, self.config)

    def tensors(self, argument: str) -> dict[str, Tensor]:
        """The weights as a state dict of the network, float32. Raises `InputError` if a file is not whole."""
        with torch.device("meta"):
            found = stored(self.weights, build(**self.config).model, argument)
        return {f"model.{name}": v.float() if v.is_floating_point() else v for name, v in found.items()}


def stored(files: Sequence[Path], module: Any, argument: str) -> dict[str, Tensor]:
    """The tensors in ``files``, by the names of ``module``. Raises `InputError` if a file is not whole."""
    found: dict[str, Tensor] = {}
    for path in files:
        found |= read_weights(path, argument=argument)
    getattr(module, "_fix_state_dict_keys_on_load", dict)(found)  # names that attention had in older files
    return found


def hashed(files: Sequence[Path], config: Mapping[str, Any]) -> str:
    """SHA-256 of weights and settings."""
    hashes = [_sha256(path, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([hashes, digest(config, 64)]).encode()).hexdigest()


@lru_cache(maxsize=64)
def _sha256(path: Path, size: int, changed: int) -> str:
    return sha256_file(path)


def read(folder: str | Path, *, scheduler: str = "", argument: str = "folder") -> Folder:
    """The network in a folder of diffusers. scheduler: in place of the folder's own: a folder or file, or a class.

    Raises `InputError`: no such folder, a network or scheduler that is not supported, weights that are a pickle.
    """
    top = Path(folder)
    if not str(folder):
        raise InputError(argument, "", "name the folder to read")
    if not top.is_dir():
        words = "there is no such folder, and nothing is fetched by name; download it and name where it lies"
        raise InputError(argument, str(folder), words)
    place = _network(top, argument)
    model, schedule = settings(place / MODEL, argument), _scheduler(top, place, scheduler, argument)
    try:
        config = imported.described(model, schedule)
    except InputError as error:
        if error.argument == "diffusers":
            raise
        argument = "scheduler" if error.argument == "scheduler" and scheduler else argument
        words = f"its {error.argument} is {error.value!r}: {error.expected}"
        raise InputError(argument, scheduler if argument == "scheduler" else str(folder), words) from None
    return Folder(place, config, files(place, argument), tuple(imported.left_out(model, config["model"])))


def there(folder: Path) -> bool:
    """Whether a folder looks like one of diffusers."""
    return any((folder / name).is_file() for name in (MODEL, INDEX, *(f"{part}/{MODEL}" for part in PARTS)))


def _network(top: Path, argument: str) -> Path:
    """The folder of the network itself."""
    for place in (top, *(top / part for part in PARTS)):
        if (place / MODEL).is_file():
            return place
    expected = f"a folder with {MODEL}, or a pipeline's with one in {' or '.join(PARTS)}"
    if (top / INDEX).is_file():
        named = sorted(k for k in settings(top / INDEX, argument) if not k.startswith("_"))
        expected = f"a pipeline of {', '.join(map(shown, named))}, without a network that is read ({expected})"
    raise InputError(argument, str(top), expected)


def _scheduler(top: Path, place: Path, given: str, argument: str) -> dict[str, Any]:
    """A scheduler's settings: those of ``given``, or the folder's own."""
    if given in imported.SCHEDULERS:
        return {"_class_name": given}
    if given:
        file = Path(given) / SCHEDULER if Path(given).is_dir() else Path(given)
        if not file.is_file():
            known = f"a folder with {SCHEDULER}, that file, or a class: {', '.join(imported.SCHEDULERS)}"
            raise InputError("scheduler", given, known)
        return settings(file, "scheduler")
    for file in (top / "scheduler" / SCHEDULER, place / SCHEDULER, place.parent / "scheduler" / SCHEDULER):
        if file.is_file():
            return settings(file, argument)
    words = f"it has no {SCHEDULER}, which says what the network predicts; name one by `scheduler` of import-diffusers"
    raise InputError(argument, str(top), words)


def settings(path: Path, argument: str) -> dict[str, Any]:
    """A JSON object; numbers that are not finite, which diffusers writes for defaults, are infinite."""
    try:
        content = json.loads(path.read_bytes(), parse_constant=lambda _: math.inf)
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(argument, str(path), f"not JSON ({shown(str(error))})") from None
    if not isinstance(content, dict):
        raise InputError(argument, str(path), "not a JSON object")
    return content


def files(place: Path, argument: str) -> tuple[Path, ...]:
    """The files with the weights: one, or several with an index."""
    index = place / f"{_WEIGHTS}.safetensors.index.json"
    if index.is_file():
        named: Any = settings(index, argument).get("weight_map")
        names = sorted({Path(str(name)).name for name in named.values()}) if isinstance(named, Mapping) else []
        missing = [name for name in names if not (place / name).is_file()]
        if missing or not names:
            raise InputError(argument, str(place), f"it has no {missing[0] if missing else 'weights'}; half copied")
        return tuple(place / name for name in names)
    whole = place / f"{_WEIGHTS}.safetensors"
    found = [whole] if whole.is_file() else sorted(place.glob(f"{_WEIGHTS}.*.safetensors"))
    if len(found) == 1:
        return (found[0],)
    words = f"it has no {whole.name}"
    if (place / f"{_WEIGHTS}.bin").is_file():
        words = f"its weights are a pickle ({_WEIGHTS}.bin); save it again with diffusers, which writes safetensors"
    raise InputError(argument, str(place), words)
