"""What a data set, checkpoint, run folder, snapshot or statistics file is, in a few lines."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sims_core.errors import InputError, shown
from sims_core.lab.runs import parse_json
from sims_image.data.archives import checked_members, impostor, open_zip, sha256_file
from sims_image.data.dataset import open_dataset
from sims_image.data.plan import empty_note
from sims_image.metrics.references import METRICS, read_statistics
from sims_image.models import autoencoders, hf
from sims_image.models.checkpoints import PRECONDITIONING, Data, Summary, summary
from sims_image.models.networks.imported import CLASS as IMPORTED
from sims_image.models.nvidia.convert import Snapshot, read_snapshot
from sims_image.models.nvidia.snapshots import read_file

ARGUMENT = "PATH"
KNOWN = "a data set, a checkpoint, a run folder, a network of diffusers, a snapshot of NVIDIA's or reference statistics"


def describe(path: str | Path) -> list[str]:
    """What is at ``path``, in a few lines. Raises `InputError` if it is not recognised, or damaged (it says where)."""
    path = Path(str(path).removeprefix(hf.PREFIX))
    if not os.path.exists(path):
        raise InputError(ARGUMENT, str(path), "there is nothing; check the spelling")
    return [shown(line, 4000) for line in (_folder(path) if path.is_dir() else _file(path))]


def _folder(path: Path) -> list[str]:
    for name, read in _FOLDERS.items():
        if (path / name).is_file():
            return read(path)
    below = _below(path)
    if below:
        return [f"folder {path}: not one of {KNOWN}, but there are some below it", *below]
    raise InputError(ARGUMENT, str(path), f"a folder that is not {KNOWN}")


def _file(path: Path) -> list[str]:
    with open(path, "rb") as handle:
        begin = handle.read(256)
    magic = begin[:4]
    if path.name in ("model.json", "model.safetensors") or path.suffix == ".safetensors":
        return _checkpoint(path)
    if path.parent.name and path.name in ("dataset.json", "images.npy", "labels.npy", "settings.json"):
        return _folder(path.parent)
    if magic == b"PK\3\4":
        with open_zip(ARGUMENT, path) as archive:
            if any(name.endswith("/data.pkl") for name in archive.namelist()):
                raise InputError(ARGUMENT, str(path), "a file of torch.save, which is not read")
            members = checked_members(ARGUMENT, archive, path)
        return _statistics(path) if "mu.npy" in members else _dataset(path)
    if magic[:1] == b"\x80":
        return _pickle(path)
    what = impostor(begin)
    raise InputError(ARGUMENT, str(path), f"not {KNOWN}" + (f": it is {what}" if what else ""))


# -------------------------------------------------------------- each of them


def _dataset(path: Path) -> list[str]:
    data = open_dataset(path, argument=ARGUMENT)
    channels, height, width = data.shape
    told = [f"data set {path}: {data.name}", f"images: {len(data):,} of {channels}x{height}x{width}, {data.dtype}"]
    if data.labels is None:
        told.append("labels: none")
    else:
        counts = np.bincount(data.labels, minlength=len(data.classes))
        fewest, most = counts.min(), counts.max()
        told.append(f"labels: {len(data.classes)} classes ({_names(data.classes)}), {fewest:,} to {most:,} images each")
        told += empty_note(data.classes, data.empty)
    source = data.record.get("source")
    if source:
        told.append(f"source: {shown(source if isinstance(source, str) else json.dumps(source))}")
    if data.autoencoder is not None:
        told.append(str(data.autoencoder))
    recorded = data.record.get("sha256")
    return [*told, f"sha256: {recorded or 'not recorded'}"]


def _checkpoint(path: Path) -> list[str]:
    found: Summary = summary(path, argument=ARGUMENT)
    record = found.record
    told = [
        f"checkpoint {found.path}",
        f"network: {_network(found.config, found.preconditioning)}, {found.parameters:,} parameters",
        f"preset: {record.preset or 'none'}",
        f"data: {_data(record.data)}",
        f"images seen: {record.budget}",
        f"weights: {record.ema}",
        f"sha256: {found.sha256}",
        f"parent: {record.parent or 'none'}",
    ]
    if found.autoencoder is not None:
        told.append(str(found.autoencoder))
    if found.adapter is not None:
        told.append(f"an adapter of rank {found.adapter.rank} on: {found.adapter.base}")
    source = record.provenance.get("source")
    return [*told, f"source: {shown(str(source))}, sha256 {record.provenance.get('source_sha256')}"] if source else told


def _diffusers(path: Path) -> list[str]:
    found = hf.read(path, argument=ARGUMENT)
    latents, left_out = autoencoders.of_pipeline(path, argument=ARGUMENT)
    return [
        f"network of diffusers {found.path}",
        f"network: {_network(found.config, PRECONDITIONING[found.config['class_name']])}",
        *([str(latents)] if latents is not None else [f"not read: {left_out}"] if left_out else []),
        f"sha256: {found.sha256}",
        f"take it as it is: {hf.PREFIX}{path}; make a checkpoint of it: sims_image import-diffusers {path}",
    ]


def _run(path: Path) -> list[str]:
    settings = _json(path / "settings.json")
    given, known = settings.get("settings"), settings.get("provenance")
    if not isinstance(given, dict):
        raise InputError(ARGUMENT, str(path / "settings.json"), "not a run's settings")
    started = known.get("started", "at an unknown time") if isinstance(known, dict) else "at an unknown time"
    finished = _json(path / "finished.json").get("finished") if (path / "finished.json").is_file() else None
    words = f"finished {finished}" if finished else "not finished; the same command resumes it"
    told = [f"run folder {path}", f"started {started}, {words}"]
    told.append("settings: " + ", ".join(f"{k}={_brief(v)}" for k, v in given.items()))
    return told + _below(path)


def _pickle(path: Path) -> list[str]:
    content = read_file(path, argument=ARGUMENT)
    if isinstance(content, dict) and "ema" not in content and any(name in content for name in METRICS):
        return _statistics(path)
    found: Snapshot = read_snapshot(path, argument=ARGUMENT)
    count = sum(value.numel() for value in found.weights.values())
    told = [
        f"snapshot of NVIDIA's {path} (read without running what is in it)",
        f"network: {found.class_name}, {_network(found.config, PRECONDITIONING[found.class_name])}, {count:,} numbers",
        *(f"{name}: {_brief(value)}" for name, value in found.settings.items() if value is not None),
        *([f"left out, as no settings: {', '.join(map(shown, found.left_out))}"] if found.left_out else []),
        f"sha256: {sha256_file(path)}",
    ]
    return [*told, f"make a checkpoint of it: sims_image import-nvidia {path}"]


def _statistics(path: Path) -> list[str]:
    found = read_statistics(path, argument=ARGUMENT)
    told = [f"reference statistics {path}"]
    for name, held in found.items():
        images = f"{held.images:,} images" if held.images is not None else "an unknown number of images"
        told.append(f"{name}: {len(held.mu)} features of {METRICS[name]} over {images}")
    return [*told, f"sha256: {sha256_file(path)}"]


_FOLDERS: dict[str, Callable[[Path], list[str]]] = {
    "model.json": _checkpoint,
    "model.safetensors": _checkpoint,
    "dataset.json": _dataset,
    "settings.json": _run,
    hf.INDEX: _diffusers,
    hf.MODEL: _diffusers,
    **{f"{part}/{hf.MODEL}": _diffusers for part in hf.PARTS},
}

# --------------------------------------------------------------------- words


def _network(config: dict[str, Any], preconditioning: str) -> str:
    classes = config.get("label_dim") or 0
    size, channels = config.get("img_resolution"), config.get("img_channels")
    conditions = f"{classes} classes" if classes else "unconditional"
    name, under = config.get("model_type", "EDM2 U-Net"), preconditioning
    if config.get("class_name") == IMPORTED:
        name, under = config["model"]["_class_name"], config["scheduler"]["_class_name"]
    return f"{name} under {under}, {channels}x{size}x{size}, {conditions}"


def _data(data: Data | None) -> str:
    if data is None:
        return "unknown"
    classes = f", classes {_names(data.classes)}" if data.classes else ""
    return f"{data.name}, sha256 {data.sha256 or 'unknown'}{classes}"


def _names(names: Sequence[str]) -> str:
    return ", ".join([shown(name) for name in names[:10]] + (["..."] if len(names) > 10 else []))


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _json(path: Path) -> dict[str, Any]:
    return parse_json(ARGUMENT, str(path), path.read_bytes())


def _below(path: Path) -> list[str]:
    """The checkpoints and data sets below a folder, at most ten."""
    found = sorted(
        (name.parent.relative_to(path), what)
        for pattern, what in (("model.json", "checkpoint"), ("dataset.json", "data set"))
        for depth in ("*", "*/*", "*/*/*")
        for name in path.glob(f"{depth}/{pattern}")
        if not any(part.startswith(".") for part in name.relative_to(path).parts)
    )
    more = [f"  and {len(found) - 10} more"] if len(found) > 10 else []
    return [f"  {what} {place}" for place, what in found[:10]] + more
