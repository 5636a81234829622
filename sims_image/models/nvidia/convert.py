"""NVIDIA's published EDM and EDM2 snapshots as checkpoints.

Nothing in the file is run (`sims_image.models.nvidia.snapshots`): the network is built by `sims_image.models.networks`
from the class's name and the constructor's arguments, and takes the file's weights strictly.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sims_core.errors import InputError, shown
from sims_core.lab.runs import provenance
from sims_image.data.archives import sha256_file
from sims_image.data.latents import EDM2, LOWEST, SPREAD, Autoencoder
from sims_image.models.checkpoints import PRECONDITIONING, RECORD, Checkpoint, Data, Ema, Record, save
from sims_image.models.fitting import build_with
from sims_image.models.networks import build
from sims_image.models.nvidia.snapshots import Stored, plain, read_file, tensors
from sims_image.models.presets import PRESETS
from sims_image.pickles.machine import RefusedError


@dataclass(frozen=True)
class Snapshot:
    """A network as a file of NVIDIA's holds it.

    class_name: of its preconditioning. config: arguments of `sims_image.models.networks.build`. weights: by their
    published names, floats as float32. settings: what else the file records (data set, loss, augmentation, encoder),
    JSON-able.
    """

    path: Path
    class_name: str
    config: dict[str, Any]
    weights: dict[str, Tensor]
    settings: dict[str, Any]
    left_out: tuple[str, ...] = ()


def read_snapshot(path: str | Path, *, argument: str = "FILE") -> Snapshot:
    """The network in a snapshot (its entry ``ema``). Raises `InputError` with the reason if it is refused."""
    content = read_file(path, argument=argument)
    network = content.get("ema") if isinstance(content, dict) else None
    if not isinstance(network, Stored):
        names = ", ".join(shown(str(name), 40) for name in list(content)[:5]) if isinstance(content, dict) else ""
        beside = f" (it holds {names})" if names else ""
        words = f"not a snapshot of EDM or EDM2: it has no network under 'ema'{beside}"
        raise InputError(argument, str(path), words)
    if network.class_name not in PRECONDITIONING:
        known = ", ".join(PRECONDITIONING)
        raise InputError(argument, str(path), f"its network is a {network.class_name[:60]!r}; known are {known}")
    try:
        weights = {
            k: v.float() if v.is_floating_point() else v for k, v in tensors(network, Path(path).stat().st_size).items()
        }
        if len(content) > 20:
            raise RefusedError(f"it has {len(content)} entries, and a snapshot four")
        settings, left_out = _entries(content)
        config = plain(network.arguments, f"what its {network.class_name} was made with", finite=False)
    except RefusedError as refused:
        raise InputError(argument, str(path), f"refused: {refused}; nothing in it was run") from None
    config["class_name"] = network.class_name
    return Snapshot(Path(path), network.class_name, config, weights, settings, left_out)


def _entries(content: dict[Any, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What stands besides the network, and the names of what is no setting."""
    settings, left_out = {}, []
    for name, value in content.items():
        found = _setting_or_none(value, str(name))
        if found is not None and name != "ema":
            settings[str(name)] = found[0]
        elif name != "ema":
            left_out.append(str(name))
    return settings, tuple(left_out)


def _setting_or_none(value: Any, name: str) -> tuple[Any] | None:
    try:
        return (_settings(value, name),)
    except RefusedError:
        return None


def _settings(value: Any, what: str) -> Any:
    """An entry of the file besides its network: an object becomes its class's name and what it was set to."""
    if isinstance(value, Stored):
        state = {k: v for k, v in value.state.items() if not str(k).startswith("_")}
        return {"class": value.class_name, **plain(state, what)}
    return plain(value, what)


def import_nvidia(path: str | Path, out: str | Path | None = None, *, replace: bool = False) -> Checkpoint:
    """Read NVIDIA's snapshot at ``path`` and write it as the checkpoint ``out`` (default: named after it, here).

    Raises `InputError`: refused (it says why), a network that is not known, or ``out`` cannot be written.
    """
    path = Path(path)
    snapshot = read_snapshot(path)
    network = build_with(snapshot.config, snapshot.weights, str(path), argument="FILE")
    images, mi, ema = _training(path.stem, snapshot)
    record = Record(
        preset=_preset(network.config),
        data=_data(snapshot),
        images=images,
        mi=mi,
        ema=ema,
        provenance={
            "source": path.name,
            "source_sha256": sha256_file(path),
            "class": snapshot.class_name,
            "settings": snapshot.settings,
            **({"left_out": list(snapshot.left_out)} if snapshot.left_out else {}),
            "imported": provenance(),
        },
    )
    folder = Path(path.stem if out is None else out)
    if (folder / RECORD).exists() and not replace:
        words = "a checkpoint is there; `replace` writes over it, or name another folder with `out`"
        raise InputError("out", str(folder), words)
    found = save(folder, network, record, replace=replace, autoencoder=_latents(snapshot.settings.get("encoder")))
    return Checkpoint(**vars(found), network=network)


def _latents(encoder: Any) -> Autoencoder | None:
    """What the latents of EDM2's snapshots are, as published where the file does not say; they hold no autoencoder."""
    if not isinstance(encoder, dict) or encoder.get("class") != "StabilityVAEEncoder":
        return None
    try:
        scales, biases = ([float(value) for value in encoder[name]] for name in ("scale", "bias"))
        mean, std = (-b / a for a, b in zip(scales, biases, strict=True)), (SPREAD / a for a in scales)
        return Autoencoder((), "", tuple(mean), tuple(std), LOWEST["edm2"])
    except (LookupError, TypeError, ValueError, ZeroDivisionError):
        return Autoencoder((), "", *EDM2, LOWEST["edm2"])


def _training(stem: str, snapshot: Snapshot) -> tuple[int | None, int, Ema]:
    """Images seen, what one Mi counts, and the average, as far as the file's name tells them.

    EDM writes ``network-snapshot-KIMG.pkl``, thousands of images. EDM2 writes ``NAME-KIMG-WIDTH.pkl`` with the width of
    its power-function average, and its counts are multiples of 1024 images, of which KIMG drops the last digits.
    """
    match = re.search(r"-(\d{6,})(?:-(0\.\d{3}))?$", stem)
    if snapshot.class_name != "Precond":
        images = int(match[1]) * 1000 if match and not match[2] else None
        return images, 10**6, Ema("halflife")
    if match is None:
        return None, 2**20, Ema("unknown")
    images = -(-int(match[1]) * 1000 // 1024) * 1024
    return images, 2**20, Ema("power", float(match[2])) if match[2] else Ema("unknown")


def _data(snapshot: Snapshot) -> Data | None:
    """The training data, as far as the file records it: the name of its archive, and the shape of its images."""
    recorded = snapshot.settings.get("dataset_kwargs")
    path = recorded.get("path") if isinstance(recorded, dict) else None
    if not isinstance(path, str) or not path:
        return None
    size = int(snapshot.config["img_resolution"])
    return Data(Path(path.replace("\\", "/")).stem, shape=(int(snapshot.config["img_channels"]), size, size))


def _preset(config: Any) -> str | None:
    """The preset whose architecture this is, if there is one."""

    def architecture(settings: Any) -> dict[str, Any]:
        return {k: v for k, v in settings.items() if k != "use_fp16"}

    for name, preset in ((name, preset) for name, preset in PRESETS.items() if preset.network):
        wanted = preset.config()
        if all(config.get(k) == wanted[k] for k in ("img_resolution", "img_channels", "label_dim", "model_channels")):
            with torch.device("meta"):
                if architecture(build(**wanted).config) == architecture(config):
                    return name
    return None
