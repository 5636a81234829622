"""Generating images: streamed, or as a data set that `train` reads, by one process or many.

An image is a function of the model, the sampler, the root seed and its index: neither the order, nor the number of
processes, nor where a stopped run resumed matter, bit for bit at one compute batch (the last one is padded to it), and
within 1e-5 relative between compute batches, because float32 networks round differently there.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from sims_core.devices import moved
from sims_core.errors import InputError, shown
from sims_core.guidance import Denoiser
from sims_core.lab.placing import Workplace, size
from sims_core.lab.runs import differences, duration, followed, kept, provenance, write_atomic
from sims_core.sampling import Sampler, generate
from sims_core.seeds import Seed
from sims_image.data.dataset import Dataset, by, open_dataset, to_pixels
from sims_image.data.folders import write_folder
from sims_image.data.sheets import write_sheet
from sims_image.data.stores import Images
from sims_image.models.cost import evaluation_flops, on_gpus
from sims_image.processes import Processes
from sims_image.sampling.guided import Model, precision_note
from sims_image.sampling.seeds import Labels, Seeds

#: images of a shard: the least multiple of the compute batch that reaches this
SHARD = 256


@dataclass(frozen=True)
class Request:
    """What to generate: everything that decides the images.

    root: integer from which all noise and labels follow. labels: None for an unconditional network. batch: the
    compute batch. name: of the data set. classes: names, for its record.
    """

    model: Model
    seeds: Seeds
    sampler: Sampler
    labels: Labels | None
    root: int = 0
    batch: int = 64
    name: str = "generated"
    classes: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What the data set records of its making, JSON-able."""
        own, other = self.model.evaluations(self.sampler)
        churn = self.sampler.churn
        return {
            "kind": "generated",
            **self.model.identity,
            "sampler": str(self.sampler),
            "sigma_min": self.sampler.sigma_min,
            "sigma_max": self.sampler.sigma_max,
            "rho": self.sampler.rho,
            "churn": None if churn is None else [churn.amount, churn.minimum, churn.maximum, churn.noise],
            "seeds": str(self.seeds),
            "seed": self.root,
            "labels": None if self.labels is None else str(self.labels),
            "label_shares": None if self.labels is None else list(self.labels.shares),
            "batch": self.batch,
            "nfe": own + other,
            "nfe_base": own,
        }

    @property
    def shards(self) -> list[list[int]]:
        """The seeds in pieces, the same whoever makes them."""
        every = list(self.seeds)
        return [every[first : first + self.shard] for first in range(0, len(every), self.shard)]

    @property
    def shard(self) -> int:
        """Images of a piece."""
        return self.batch * -(-SHARD // self.batch)


def stream(
    model: Model,
    seeds: Sequence[int] | Seeds,
    *,
    batch: int,
    sampler: Sampler,
    labels: Labels | None = None,
    root: int = 0,
) -> Iterator[tuple[NDArray[np.int64], Images, NDArray[np.int64] | None]]:
    """Yield (indices (B,), images (B, C, H, W), labels (B,) or None) without touching the disk.

    Pixels are uint8, latents float32 (`Model.dtype_made`). batch: the compute batch. labels: None is 'uniform' for a
    conditional network. Raises `InputError` for samples that are not finite.
    """
    if labels is None and model.network.label_dim:
        known = model.base.record.data
        labels = Labels.alike("uniform", model.network.label_dim, known.empty if known is not None else ())
    seed, device, indices = Seed(root), model.device, list(seeds)

    def denoiser(wanted: Sequence[int]) -> Denoiser:
        return model.denoiser(None if labels is None else moved(torch.from_numpy(labels(seed, wanted)), device))

    parts = generate(denoiser, sampler, indices, model.shape, seed=seed, batch=batch, device=device, per_batch=True)
    for wanted, samples in parts:
        if not bool(torch.isfinite(samples).all()):
            words = "the images are not finite; use a smaller `omega`, another `sampler` or `dtype` float32"
            raise InputError("samples", f"seeds {wanted[0]} to {wanted[-1]}", words)
        samples = samples if model.decoder is None else model.decoder(samples)
        pixels = model.dtype_made == np.uint8
        images = to_pixels(samples).cpu().numpy() if pixels else samples.float().cpu().numpy()
        yield np.asarray(wanted, np.int64), images, None if labels is None else labels(seed, wanted)


def write(
    request: Request,
    out: str | Path,
    *,
    processes: Processes,
    rows: int = 8,
    progress: bool = False,
    restart: bool = False,
    argument: str = "out",
    options: Any = None,
) -> Dataset | None:
    """Generate the data set ``out``, resume it, or recognise it. Returns it in the first process, else None.

    Shards lie in ``OUT.generating`` until all are there; killed at any instant, the same call, in any number of
    processes, resumes. rows: of the contact sheet ``sheet.png``, 0 for none. restart: delete what an earlier start left
    unfinished there. options: the dataclass that asked for it, on record. Raises `InputError`: something else is there,
    a full disk, or samples that are not finite.
    """
    out = followed(out)
    work = _work(request, out, argument)

    def known() -> Dataset | None:
        found = _recognised(out, request, argument)
        if found is not None:
            work.clear()
        return found

    there = processes.together(known)
    if processes.sum(torch.tensor(float(there is not None))) > 0:
        return there
    with ExitStack() as stack:
        folder = processes.together(lambda: stack.enter_context(work.open(2 * _bytes(request), restart=restart)))
        try:
            _shards(request, work.path, processes, progress=progress)
        except OSError as error:
            raise work.failure(error) from None
        processes.sum(torch.zeros(()))  # until all are there
        made = processes.together(lambda: _assemble(request, work.path, out, rows, argument, options))
        if folder is not None:
            folder.remove()
    return made


def _recognised(out: Path, request: Request, argument: str) -> Dataset | None:
    """The data set, if it is there already. Raises `InputError` if something else is."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    data = open_dataset(out, argument=argument, verify=False)
    source = data.record.get("source")
    if not isinstance(source, dict) or source.get("kind") != "generated":
        raise InputError(argument, str(out), "a data set is there that was not generated; name another folder")
    settings = request.settings
    odd = "; ".join(differences({key: source.get(key) for key in settings}, settings))
    if odd:
        raise InputError(argument, str(out), f"it was generated with other settings ({odd}); name another folder")
    return data


def check_out(request: Request, out: str | Path, *, argument: str = "out") -> None:
    """Refuse what `write` would refuse of what is there, and change nothing: for dry runs. Raises `InputError`."""
    out = followed(out)
    if _recognised(out, request, argument) is None:
        _work(request, out, argument).check()


def _work(request: Request, out: Path, argument: str) -> Workplace:
    settings = {**request.settings, "shard": min(request.shard, len(request.seeds))}
    return Workplace(out, "generating", settings, argument)


def _bytes(request: Request) -> int:
    return len(request.seeds) * math.prod(request.model.shape_made) * request.model.dtype_made.itemsize


def _place(work: Path, number: int) -> Path:
    return work / "shards" / f"{number:06d}.npz"


def _shards(request: Request, work: Path, processes: Processes, *, progress: bool) -> None:
    """This process's part of what is not there yet."""
    pieces = list(enumerate(request.shards))
    for number, piece in pieces[processes.rank :: processes.world]:
        kept(_place(work, number), partial(_whole, request, piece))
    processes.sum(torch.zeros(()))  # what is damaged is out of the way
    todo = [(k, piece) for k, piece in pieces if not _place(work, k).exists()]
    missing = sum(len(piece) for _, piece in todo)
    processes.sum(torch.zeros(()))  # all have looked before anyone writes
    shown = tqdm(
        total=len(request.seeds),
        initial=len(request.seeds) - missing,
        unit="img",
        disable=not (progress and processes.first),
        smoothing=0.05,
    )
    with shown:
        for number, piece in todo[processes.rank :: processes.world]:
            parts = []
            for indices, images, labels in stream(
                request.model,
                piece,
                batch=request.batch,
                sampler=request.sampler,
                labels=request.labels,
                root=request.root,
            ):
                parts.append((indices, images, labels))
                shown.update(min(len(indices) * processes.world, len(request.seeds) - int(shown.n)))
            arrays: dict[str, NDArray[Any]] = {
                "indices": np.concatenate([p[0] for p in parts]),
                "images": np.concatenate([p[1] for p in parts]),
            }
            if request.labels is not None:
                arrays["labels"] = np.concatenate([p[2] for p in parts if p[2] is not None])
            write_atomic(_place(work, number), lambda path, these=arrays: np.savez(path, **these))  # type: ignore[misc]


def _assemble(request: Request, work: Path, out: Path, rows: int, argument: str, options: Any) -> Dataset:
    """One data set of all shards."""
    pieces = request.shards
    labels = None
    if request.labels is not None:
        labels = np.concatenate([_read(_place(work, k))["labels"] for k in range(len(pieces))])
    dtype = request.model.dtype_made
    classes = list(request.classes) or [str(k) for k in range(request.model.network.label_dim)]

    def sheet(folder: Path) -> None:
        first = np.load(folder / "images.npy", mmap_mode="r")
        columns = min(16, max(1, len(first)))
        shown = request.model.pictures(np.asarray(first[: rows * columns])) if rows else None
        if shown is not None:
            write_sheet(folder / "sheet.png", shown, columns)

    return write_folder(
        out,
        (_read(_place(work, k))["images"] for k in range(len(pieces))),
        count=len(request.seeds),
        shape=request.model.shape_made,
        dtype=dtype,
        labels=labels,
        classes=classes if labels is not None else [],
        name=request.name,
        source={**request.settings, "provenance": provenance(options)},
        argument=argument,
        beside=sheet,
        autoencoder=request.model.base.autoencoder if dtype != np.uint8 else None,
    )


def _whole(request: Request, piece: list[int], path: Path) -> None:
    """Raise an error of some kind unless a shard of an earlier start holds these images."""
    found = _read(path)
    shape, dtype = (len(piece), *request.model.shape_made), request.model.dtype_made
    same = found["indices"].tolist() == piece and found["images"].shape == shape and found["images"].dtype == dtype
    if not same or (request.labels is not None and found["labels"].shape != (len(piece),)):
        raise ValueError("not the images of this run")


def _read(path: Path) -> dict[str, NDArray[Any]]:
    with open(path, "rb") as handle, np.load(handle, allow_pickle=False) as held:
        return {name: held[name] for name in held.files}


def estimate(request: Request, out: str | Path, processes: int) -> list[tuple[str, str]]:
    """The request and its cost in words; times one evaluation of each network on one compute batch."""
    model, n = request.model, len(request.seeds)
    own, other = model.evaluations(request.sampler)
    networks: list[tuple[Any, int]] = [(model.network, own)]
    if model.other is not None:
        networks.append((model.other, other))
    x = torch.randn(request.batch, *model.shape, device=model.device)
    seconds = sum(count * _seconds(network, x) for network, count in networks) / request.batch
    hashes = {"base": model.base.sha256, "auxiliary": "" if model.auxiliary is None else model.auxiliary.sha256}
    return [
        *((name, value) for name, value in hashes.items() if value),
        ("guidance", model.kind if model.kind == "none" else f"{model.kind}, omega {model.omega:g}"),
        *([("schedule", str(model.schedule))] if model.other is not None else []),
        ("engine", str(model.engine)),
        ("sampler", str(request.sampler) + (" with churn" if request.sampler.churn is not None else "")),
        ("images", f"{n:,} of {by(model.shape_made)}: seeds {request.seeds}"),
        ("labels", _labels_in_words(request)),
        (
            "NFE",
            f"{own + other} per image ({own} of the base, {other} of the other network), {n * (own + other):,} in all",
        ),
        ("disk", f"{size(_bytes(request))}, twice that while generating"),
        (
            "time here",
            f"about {duration(n * seconds / processes)} on {processes} x {model.device} (one evaluation timed)",
        ),
        ("on GPUs", on_gpus(n * sum(count * evaluation_flops(network.config) for network, count in networks))),
        ("out", str(out)),
    ]


def _labels_in_words(request: Request) -> str:
    labels = request.labels
    if labels is None or labels.policy != "given" or not request.classes:
        return "none" if labels is None else str(labels)
    return ", ".join(f"{k} ({shown(request.classes[k])})" for k in labels.classes)


@torch.no_grad()
def _seconds(network: Callable[..., torch.Tensor], x: torch.Tensor) -> float:
    """One evaluation, the faster of two after a first."""
    found = math.inf
    for turn in range(3):
        start = time.perf_counter()
        network(x, torch.tensor(1.0)).sum().item()  # .item() waits for the device
        if turn:
            found = min(found, time.perf_counter() - start)
    return found


def checked(request: Request) -> str | None:
    """Refuse a low precision that drowns the guidance, or say in a sentence how much it costs. See `precision_note`."""
    labels, root = request.labels, Seed(request.root)
    if labels is None:
        return precision_note(request.model)
    device = request.model.device
    return precision_note(request.model, lambda indices: torch.from_numpy(labels(root, indices)).to(device))
