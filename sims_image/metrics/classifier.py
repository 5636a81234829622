"""A small classifier of a data set's own images, whose last hidden layer is a space to measure distances in.

It is trained once, with a tenth of the images held out, and stored beside the data set with its accuracy there; the
stored weights are what counts, and their SHA-256 is the name of the features. Distances in different classifiers'
features do not compare.
"""

from __future__ import annotations

import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from sims_core.draws import Draws
from sims_core.errors import InputError, shown
from sims_core.lab.runs import parse_json, write_json
from sims_core.seeds import Seed
from sims_image.data.archives import sha256_file
from sims_image.data.dataset import Dataset, cache_folder, to_unit
from sims_image.models.fitting import read_weights
from sims_image.training.batches import Order

WEIGHTS, RECORD, FORMAT = "model.safetensors", "model.json", "sims-classifier 1"


@dataclass(frozen=True)
class Training:
    """How it is trained. images: seen in all, at most ``epochs`` times the data; width: features."""

    images: int = 200_000
    epochs: int = 15
    batch: int = 128
    lr: float = 2e-3
    weight_decay: float = 1e-2
    shift: int = 1
    heldout: float = 0.1
    width: int = 64
    seed: int = 0


class Classifier(nn.Module):
    """Three stages of two convolutions, halving the image while it is above 4 pixels; mean over places; linear.

    shape: (C, H, W). sha256, record: of what is stored, '' and {} before.
    """

    sha256: str = ""

    def __init__(self, shape: tuple[int, int, int], classes: int, width: int = 64) -> None:
        super().__init__()
        self.shape, self.classes, self.width = shape, classes, width
        self.record: dict[str, Any] = {}
        layers: list[nn.Module] = []
        channels, side = shape[0], min(shape[1:])
        for stage, wide in enumerate((width // 2, width, width)):
            for part in range(2):
                stride = 2 if stage and not part and side > 4 else 1
                side = -(-side // stride)
                layers += [nn.Conv2d(channels, wide, 3, stride, 1, bias=False), nn.BatchNorm2d(wide), nn.SiLU()]
                channels = wide
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, classes)

    def forward(self, pixels: Tensor) -> Tensor:
        """Features (B, width) of uint8 images (B, C, H, W)."""
        found: Tensor = self.body(to_unit(pixels)).mean((2, 3))
        return found

    def logits(self, pixels: Tensor) -> Tensor:
        """(B, classes)."""
        found: Tensor = self.head(self(pixels))
        return found


def classifier(
    data: Dataset, *, cache: Path | None = None, device: torch.device | str = "cpu", training: Training | None = None
) -> Classifier:
    """The classifier of ``data``: the stored one, or one trained now and stored in ``cache`` (default: beside it).

    Raises `InputError` for data without labels, too few of them, latents, or a folder that cannot be written.
    """
    training = training or Training()
    folder = (cache or cache_folder(data)) / f"classifier-{data.sha256[:12]}-{training.seed}"
    if not (folder / RECORD).exists():
        check_labelled(data, "features", f"classifier ({data.name})")
        _store(folder, *train(data, training, device=device), data=data, training=training)
    return load(folder, data).to(device)


def check_labelled(data: Dataset, argument: str, value: str) -> None:
    """Raise `InputError` naming ``argument`` for data that no classifier can be trained on."""
    if data.labels is None or len(data.classes) < 2:
        other = "use features pixels or lite0" if argument == "features" else "name one that is trained"
        raise InputError(argument, value, f"a classifier needs labels of two classes or more; {other}")
    if data.dtype != np.uint8:
        raise InputError(argument, value, f"it takes uint8 images, not {data.dtype}")


def train(data: Dataset, training: Training, *, device: torch.device | str = "cpu") -> tuple[Classifier, float, int]:
    """A classifier, its accuracy on the images held out, and their number. Adam with a cosine decay, random shifts."""
    assert data.labels is not None
    seed = Seed(training.seed).child("classifier")
    places = seed.child("split").numpy().permutation(len(data))
    held = max(1, round(len(data) * training.heldout))
    kept, tests = np.sort(places[held:]), np.sort(places[:held])
    if len(kept) < 2:
        raise InputError("features", f"classifier ({data.name})", f"{len(data)} images are too few to train on")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed.child("start").integer())
        network = Classifier(data.shape, len(data.classes), training.width)
    network.to(device).train()
    batch = min(training.batch, len(kept))
    steps = max(1, min(training.images, training.epochs * len(kept)) // batch)
    optimiser = torch.optim.AdamW(
        network.parameters(), training.lr, betas=(0.9, 0.99), weight_decay=training.weight_decay
    )
    order, shifts = Order(seed.child("order"), len(kept)), Draws(seed.child("shift"))
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = training.lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        items = np.arange(step * batch, (step + 1) * batch)
        where = kept[order(items)]
        images = _shifted(torch.from_numpy(data.images(where)), torch.from_numpy(items), shifts, training.shift)
        loss = F.cross_entropy(network.logits(images.to(device)), torch.from_numpy(data.labels[where]).to(device))
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    network.eval().requires_grad_(False)
    return network, accuracy(network, data, tests, device=device), len(tests)


def _shifted(images: Tensor, items: Tensor, draws: Draws, most: int) -> Tensor:
    """Each image moved by up to ``most`` pixels either way, its edge repeated."""
    if not most or min(images.shape[2:]) <= 2 * most:
        return images
    height, width = images.shape[2:]
    padded = F.pad(images.float(), [most] * 4, mode="replicate").to(images.dtype)
    moves = (draws.uniform(items, 2) * (2 * most + 1)).long()
    rows = moves[:, :1] + torch.arange(height)
    columns = moves[:, 1:] + torch.arange(width)
    return padded[
        torch.arange(len(images))[:, None, None, None],
        torch.arange(images.shape[1])[:, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


@torch.no_grad()
def accuracy(
    network: Classifier, data: Dataset, indices: NDArray[np.int64], *, device: torch.device | str = "cpu"
) -> float:
    """The share of images at ``indices`` whose class the network names."""
    assert data.labels is not None
    right = 0
    for start in range(0, len(indices), 512):
        where = indices[start : start + 512]
        said = network.logits(torch.from_numpy(data.images(where)).to(device)).argmax(1).cpu().numpy()
        right += int((said == data.labels[where]).sum())
    return right / len(indices)


# --------------------------------------------------------------------- storage


def _store(
    folder: Path, network: Classifier, accuracy: float, tests: int, *, data: Dataset, training: Training
) -> None:
    """Write it whole under its name; where another process was first, its one stays."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        temporary.mkdir(parents=True, exist_ok=True)
        save_file({k: v.cpu().contiguous() for k, v in network.state_dict().items()}, temporary / WEIGHTS)
        record = {
            "format": FORMAT,
            "data": {"name": data.name, "sha256": data.sha256, "images": len(data), "classes": data.classes},
            "shape": list(network.shape),
            "width": network.width,
            "accuracy": accuracy,
            "heldout_images": tests,
            "training": asdict(training),
            "weights_sha256": sha256_file(temporary / WEIGHTS),
        }
        write_json(temporary / RECORD, record)
        if not (folder / RECORD).exists():
            shutil.rmtree(folder, ignore_errors=True)
            os.rename(temporary, folder)
    except OSError as error:
        if not (folder / RECORD).exists():
            words = f"the classifier cannot be stored there ({error.strerror}); name another folder with `cache`"
            raise InputError("cache", str(folder.parent), words) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load(folder: Path, data: Dataset | None = None, *, argument: str = "cache") -> Classifier:
    """A stored classifier, in eval mode. Raises `InputError` if it is damaged, or of another data set than ``data``."""
    item = str(folder / RECORD)
    again = "remove the folder to train another"
    try:
        record = parse_json(argument, item, (folder / RECORD).read_bytes())
        if record.get("format") != FORMAT or (data is not None and record["data"]["sha256"] != data.sha256):
            whose = "a classifier" if data is None else f"the classifier of {data.name}"
            raise InputError(argument, item, f"not {whose}; {again}")
        if sha256_file(folder / WEIGHTS) != record["weights_sha256"]:
            raise InputError(argument, str(folder), f"its weights are not those it records; {again}")
        channels, height, width = record["shape"]
        if any(type(n) is not int or n < 1 for n in (channels, height, width, record["width"] // 2)):
            raise ValueError("its sizes are not whole numbers above 0")
        with torch.device("meta"):  # sizes alone, until the weights are known to fit
            network = Classifier((channels, height, width), len(record["data"]["classes"]), record["width"])
        network.load_state_dict(read_weights(folder / WEIGHTS, argument=argument), assign=True)
    except (OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(argument, item, f"damaged ({shown(str(error))}); {again}") from None
    network.sha256, network.record = record["weights_sha256"], record
    return network.eval().requires_grad_(False)
