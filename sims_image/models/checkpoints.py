"""Checkpoints: a folder with ``model.safetensors`` (the weights, float32) and ``model.json`` (what they are).

Neither can hold code. A checkpoint is written beside its place and moved into it whole; reading checks the weights'
SHA-256, which is also the checkpoint's identity: what is trained from it records it as its parent. Optimiser state does
not live here but beside it, in the run that trains.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from sims_core.errors import InputError, shown, whole
from sims_core.lab.placing import placed
from sims_core.lab.runs import followed, parse_json, provenance, write_json
from sims_image.data.archives import sha256_file
from sims_image.data.latents import NAME as AUTOENCODER
from sims_image.data.latents import Autoencoder
from sims_image.models import adapters, autoencoders, hf
from sims_image.models.adapters import Adapter
from sims_image.models.fitting import build_with, read_weights
from sims_image.models.networks import parameter_count
from sims_image.models.networks.imported import CLASS as IMPORTED

#: of model.json; raised when older readers would misread
FORMAT = 1
KIND = "sims_image checkpoint"
WEIGHTS, RECORD = "model.safetensors", "model.json"
EMA_KINDS = ("none", "halflife", "power", "unknown")
MI = (10**6, 2**20)


@dataclass(frozen=True)
class Data:
    """What a network was trained on: a data set's name, SHA-256 (None: unknown), class names, (C, H, W), and its type.

    dtype: 'uint8' for pixels, 'float16' or 'float32' for latents, None: unknown. empty: classes without images.
    """

    name: str
    sha256: str | None = None
    classes: tuple[str, ...] = ()
    shape: tuple[int, int, int] | None = None
    dtype: str | None = None
    empty: tuple[int, ...] = ()


@dataclass(frozen=True)
class Ema:
    """Which average over training the weights are.

    kind: 'none' (raw weights), 'halflife' (EDM; width: half-life in images seen), 'power' (EDM2; width: relative
    standard deviation of the profile, such as 0.05) or 'unknown'. width: None where unknown.
    """

    kind: str = "none"
    width: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in EMA_KINDS:
            raise InputError("ema.kind", self.kind, f"choose from {', '.join(EMA_KINDS)}")
        if self.width is not None and not (0 < self.width < math.inf):
            raise InputError(
                "ema.width", self.width, "a positive number: images (halflife) or a relative width (power)"
            )

    def __str__(self) -> str:
        width = ", width unknown" if self.width is None else f" {self.width:g}"
        unit = " images" if self.width is not None else ""
        words = {"none": "raw", "unknown": "average unknown", "power": f"average, power function{width}"}
        words["halflife"] = f"average, half-life{width}{unit}"
        return words[self.kind]


@dataclass(frozen=True)
class Record:
    """What the network does not know of itself.

    preset: the preset's name, if any. data: what it was trained on. images: how many images it has seen, and mi: how
    many one Mi counts (10^6 in EDM, 2^20 in EDM2). ema: which average the weights are. parent: SHA-256 of the
    checkpoint that it was trained from. training: settings of the recipe, JSON-able. provenance: where it comes from,
    JSON-able; `save` adds version, platform and time where it is empty.
    """

    preset: str | None = None
    data: Data | None = None
    images: int | None = None
    mi: int = 10**6
    ema: Ema = field(default_factory=Ema)
    parent: str | None = None
    training: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.mi not in MI:
            raise InputError("mi", self.mi, "one Mi counts 1000000 (EDM) or 1048576 (EDM2)")
        if self.images is not None and self.images < 0:
            raise InputError("images", self.images, "a number of images, 0 or more")

    @property
    def budget(self) -> str:
        """The images seen, in Mi and what one Mi counts."""
        if self.images is None:
            return "unknown"
        return f"{self.images / self.mi:.6g} Mi ({self.images} images; Mi = {'10^6' if self.mi == 10**6 else '2^20'})"


@dataclass(frozen=True)
class Summary:
    """A checkpoint without its weights. sha256: of the weights' file (of diffusers' folder: and of its settings).

    config: `networks.build` makes it. adapter: if the weights are one's, on those of its base. autoencoder: of latents.
    """

    path: Path
    config: dict[str, Any]
    preconditioning: str
    parameters: int
    sha256: str
    record: Record
    adapter: Adapter | None = None
    autoencoder: Autoencoder | None = None


@dataclass(frozen=True)
class Checkpoint(Summary):
    """A checkpoint with its network: float32, on the CPU, in eval mode, without gradients; an adapter is merged."""

    network: torch.nn.Module = field(kw_only=True)

    @property
    def summary(self) -> Summary:
        """Without the network."""
        return Summary(**{f.name: getattr(self, f.name) for f in fields(Summary)})


#: what the classes of networks are preconditioned as
PRECONDITIONING = {
    "EDMPrecond": "edm",
    "VPPrecond": "vp",
    "VEPrecond": "ve",
    "iDDPMPrecond": "iddpm",
    "Precond": "edm2",
    "FlowPrecond": "flow",
    "FlowPrecond2": "flow",
    IMPORTED: "diffusers",
}
#: recipe and sampler of imported networks: a name of `sims_image.models.presets.PRESETS`
IMPORTED_PRESET = "diffusers"


# ------------------------------------------------------------------- writing


def save(
    folder: str | Path,
    net: torch.nn.Module,
    record: Record,
    *,
    replace: bool = False,
    autoencoder: Autoencoder | None = None,
) -> Summary:
    """Write ``net`` (a network of `networks.build`) as the checkpoint ``folder``, whole or not at all.

    replace: take the place of a checkpoint that is there. autoencoder: of the latents that it makes, if it does. Raises
    `InputError`: something else is there, it cannot be written, or a weight is not finite.
    """
    folder = followed(folder)
    there = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if there and not (folder / RECORD).exists():
        raise InputError("folder", str(folder), "something else is there; name a folder that does not exist")
    if there and not replace:
        raise InputError("folder", str(folder), "a checkpoint is there; name another folder")
    adapter: Adapter | None = getattr(net, "adapter", None)
    state = net.state_dict() if adapter is None else adapters.weights(net.state_dict())
    weights = {name: _portable(value) for name, value in state.items()}
    for name, value in weights.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError("network weights", name, "its weights are not all finite; a diverged network is not saved")
    if not record.provenance:
        record = Record(**{**_shallow(record), "provenance": provenance()})
    config: dict[str, Any] = dict(net.config)  # type: ignore[arg-type]
    learned = {name for name, _ in net.named_parameters()} & set(weights)
    parameters = sum(weights[name].numel() for name in learned)
    with placed(folder) as temporary:
        try:
            save_file(weights, temporary / WEIGHTS, metadata=_metadata(config, adapter))
        except SafetensorError as error:
            code = re.search(r"os error (\d+)", str(error))
            raise OSError(int(code[1]) if code else 0, shown(str(error))) from None
        with open(temporary / WEIGHTS, "rb") as handle:
            os.fsync(handle.fileno())
        sha256 = sha256_file(temporary / WEIGHTS)
        kind = PRECONDITIONING[config["class_name"]]
        content = {
            "format": FORMAT,
            "kind": KIND,
            "preconditioning": kind,
            "parameters": parameters,
            "weights_sha256": sha256,
            "network": config,
            **({} if adapter is None else {"adapter": asdict(adapter)}),
            **({} if autoencoder is None else {AUTOENCODER: autoencoder.record}),
            "record": asdict(record),
        }
        if autoencoder is not None:
            autoencoder.put(temporary)
        write_json(temporary / RECORD, content)
    return Summary(folder, config, kind, parameters, sha256, record, adapter, Autoencoder.inside(folder, content))


def _metadata(config: dict[str, Any], adapter: Adapter | None) -> dict[str, str]:
    """What the weights' file says of itself. Of an imported network its settings too, so that they count in its hash:
    one set of weights under two schedulers is two networks. (One entry: several come in any order.)
    """
    base = None if adapter is None else adapter.base_sha256
    own = {"network": json.dumps([config, base], sort_keys=True)}
    return own if config["class_name"] == IMPORTED else {"format": "pt"}


def _portable(value: Tensor) -> Tensor:
    value = value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
    return value.contiguous()


def _shallow(record: Record | Summary) -> dict[str, Any]:
    return {f.name: getattr(record, f.name) for f in fields(record)}


# ------------------------------------------------------------------- reading


def locate(path: str | Path, *, argument: str = "checkpoint") -> Path:
    """The checkpoint's folder: ``path`` itself, or the folder of the file inside it that ``path`` names.

    ``hf:FOLDER``, a network of diffusers, stays what it is. Raises `InputError` for anything else; the message says
    what is there instead.
    """
    path = Path(path)
    if _foreign(path):
        return path
    folder = path.parent if path.name in (WEIGHTS, RECORD) else path
    if path.suffix in (".pkl", ".pickle") and path.is_file():
        raise InputError(argument, str(path), f"a pickle; run: sims_image import-nvidia {path}")
    if not folder.exists() or not path.exists():
        raise InputError(argument, str(path), "there is nothing; name a checkpoint's folder")
    if not folder.is_dir():
        raise InputError(argument, str(path), f"not a checkpoint; name a folder with {WEIGHTS} and {RECORD}")
    missing = [name for name in (WEIGHTS, RECORD) if not (folder / name).is_file()]
    if len(missing) == 2 and hf.there(folder):
        raise InputError(argument, str(path), f"a folder of diffusers; write {hf.PREFIX}{path}")
    if len(missing) == 2:
        inside = [p.parent for p in folder.glob(f"**/{RECORD}") if not _hidden(p.relative_to(folder))]
        hint = f"checkpoints lie below it, such as {_best(inside)}" if inside else f"name a folder with {WEIGHTS}"
        raise InputError(argument, str(path), f"not a checkpoint; {hint}")
    if missing:
        raise InputError(argument, str(path), f"the checkpoint has no {missing[0]}; it has been damaged or half copied")
    return folder


def _foreign(path: str | Path) -> str:
    """The folder of diffusers that ``hf:FOLDER`` names, '' where that is not meant."""
    return str(path).removeprefix(hf.PREFIX) if str(path).startswith(hf.PREFIX) else ""


def anywhere(path: str | Path) -> str:
    """A checkpoint's name that holds in any working folder."""
    foreign = _foreign(path)
    return f"{hf.PREFIX if foreign else ''}{Path(foreign or path).absolute()}"


def _best(found: Sequence[Path]) -> Path:
    """The checkpoint that most want of these: of the last snapshot, its (first) average before its raw weights."""
    last = max(path.parent for path in found)
    return min((path for path in found if path.parent == last), key=lambda p: (not p.name.startswith("ema"), p.name))


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def summary(path: str | Path, *, argument: str = "checkpoint") -> Summary:
    """What a checkpoint says of itself, without reading its weights. Raises `InputError`, as `load` does."""
    folder = locate(path, argument=argument)
    if _foreign(path):
        return _of_diffusers(path, hf.read(_foreign(path), argument=argument), argument)
    item = str(folder / RECORD)
    try:
        content = parse_json(argument, item, (folder / RECORD).read_bytes())
    except OSError as error:
        raise InputError(argument, item, f"cannot be read ({error.strerror})") from None
    if content.get("kind") != KIND or type(content.get("format")) is not int:
        raise InputError(argument, item, "not a checkpoint of sims_image")
    if content["format"] > FORMAT:
        raise InputError(
            argument, item, f"written by a newer sims_image (format {content['format']}, known is {FORMAT}); upgrade"
        )
    try:
        config, record = content["network"], _record(content["record"])
        if type(config) is not dict:
            raise TypeError("network must be an object")
        sha256, parameters = str(content["weights_sha256"]), int(content["parameters"])
        adapter = _adapter(content["adapter"]) if "adapter" in content else None
        held = Autoencoder.inside(folder, content)
        return Summary(folder, config, str(content["preconditioning"]), parameters, sha256, record, adapter, held)
    except (KeyError, TypeError, ValueError) as error:
        reason = f"'{error.args[0]}' is missing" if isinstance(error, KeyError) else shown(str(error))
        raise InputError(argument, item, f"the checkpoint's record is damaged ({reason})") from None


def _adapter(content: Any) -> Adapter:
    """An adapter from JSON. Raises KeyError, TypeError or ValueError for anything else than `save` wrote."""
    rank = whole("adapter.rank", int(content["rank"]), 1, adapters.LARGEST)
    return Adapter(rank, str(content["base"]), str(content["base_sha256"]))


def _of_diffusers(path: str | Path, found: hf.Folder, argument: str) -> Summary:
    parameters = parameter_count(**found.config)
    record = Record(preset=IMPORTED_PRESET, ema=Ema("unknown"), provenance={"source": str(found.path)})
    known, _ = autoencoders.of_pipeline(Path(_foreign(path)), argument=argument)
    return Summary(Path(path), found.config, PRECONDITIONING[IMPORTED], parameters, found.sha256, record, None, known)


def _record(content: Any) -> Record:
    """A record from JSON. Raises KeyError, TypeError or ValueError for anything else than `save` wrote."""
    known = {f.name for f in fields(Record)}
    if type(content) is not dict or set(content) != known:
        raise TypeError(f"record must hold {', '.join(sorted(known))}")
    data, ema = content["data"], content["ema"]
    kinds = {"images": int | None, "preset": str | None, "parent": str | None, "training": dict, "provenance": dict}
    for name, kind in kinds.items():
        if not isinstance(content[name], kind) or isinstance(content[name], bool):
            raise TypeError(f"record.{name} is a {type(content[name]).__name__}")
    if data is not None:
        shape = tuple(int(n) for n in data["shape"]) if data["shape"] is not None else None
        if shape is not None and len(shape) != 3:
            raise TypeError("data.shape must be (C, H, W)")
        classes = tuple(str(name) for name in data["classes"])
        empty = tuple(int(k) for k in data.get("empty", ()))
        data = Data(str(data["name"]), data["sha256"], classes, shape, data.get("dtype"), empty)
    return Record(**{**content, "data": data, "ema": Ema(**ema)})


def load(path: str | Path, *, argument: str = "checkpoint") -> Checkpoint:
    """Read a checkpoint: its folder, or a file in it.

    The network must fit the file exactly: every weight there, nothing more, shapes and types alike. Raises
    `InputError` naming what is missing, damaged, of another architecture, or newer than this version.

    >>> found = load("runs/base/snapshots/0000000256/ema")
    >>> found.parameters, found.record.images, found.record.data.name
    (48073, 256, 'digits')
    """
    found = summary(path, argument=argument)
    if _foreign(path):
        tensors = hf.read(_foreign(path), argument=argument).tensors(argument)
        return _loaded(found, build_with(found.config, tensors, str(path), argument=argument))
    tensors = weights_of(found, argument)
    item = str(found.path / WEIGHTS)
    if found.adapter is not None:
        base = _base_of(found, found.adapter, argument)
        return _loaded(found, adapters.merged(adapters.restored(base, tensors, found.adapter, item, argument)))
    return _loaded(found, build_with(found.config, tensors, item, argument=argument))


def unmoved(path: Path, parent: Path) -> bool:
    """Whether what was trained from ``parent`` still is that, bit for bit: an adapter that does nothing, too."""
    found = summary(path)
    if found.adapter is None:
        return found.sha256 == summary(parent).sha256
    return adapters.idle(weights_of(found))


def weights_of(found: Summary, argument: str = "checkpoint") -> dict[str, Tensor]:
    """The tensors of a checkpoint's own file. Raises `InputError` unless it is the one that was written."""
    weights = found.path / WEIGHTS
    try:
        sha256 = sha256_file(weights)
    except OSError as error:
        raise InputError(argument, str(weights), f"cannot be read ({error.strerror})") from None
    if sha256 != found.sha256:
        raise InputError(
            argument, str(weights), f"truncated or changed: its SHA-256 is {sha256[:12]}..., not {found.sha256[:12]}..."
        )
    return read_weights(weights, argument=argument)


def _loaded(found: Summary, network: torch.nn.Module) -> Checkpoint:
    return Checkpoint(**_shallow(found), network=network)


def _base_of(found: Summary, adapter: Adapter, argument: str) -> Any:
    """The network that an adapter goes on. Raises `InputError` where it is not to be had."""
    try:
        base = load(adapter.base, argument=argument)
    except InputError as error:
        words = f"an adapter, whose base {adapter.base} cannot be read: {error.expected}"
        raise InputError(argument, str(found.path), words) from None
    if base.sha256 != adapter.base_sha256 or base.config != found.config:
        raise InputError(argument, str(found.path), f"an adapter, whose base {adapter.base} is another by now")
    return base.network
