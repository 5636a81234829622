"""Where images come from: one function a kind, chosen by looking at the path."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from sims_core.errors import InputError, choose

if TYPE_CHECKING:
    from sims_image.sources.base import Request, Source

#: kind -> (module:function, what it reads)
KINDS: dict[str, tuple[str, str]] = {
    "cifar10": ("cifar:open_cifar10", "cifar-10-python.tar.gz, or the folder it unpacks to"),
    "imagenet": ("imagenet:open_imagenet", "downsampled ImageNet: a folder of train_data_batch_*.npz and val_data.npz"),
    "folder": ("folder:open_folder", "pictures in class folders, or flat"),
    "zip": ("folder:open_image_zip", "pictures in a zip (EDM's, or class folders)"),
    "idx": ("idx:open_idx", "MNIST and Fashion-MNIST: *-images-idx3-ubyte[.gz], or their folder"),
    "parquet": ("parquet:open_parquet", "a Hugging Face parquet file, or a folder of shards"),
    "dataset": ("builtin:open_prepared", "a data set folder or EDM zip, latents included"),
    "digits": ("builtin:open_digits", "the word 'digits': scikit-learn's"),
}


def open_source(request: Request, kind: str = "") -> Source:
    """The source at ``request.path``; ``kind`` overrules what its looks say. Raises `InputError`."""
    chosen = choose("--kind", kind, KINDS) if kind else _kind(request)
    if chosen != "digits" and not request.path.exists():
        raise InputError(request.argument, str(request.path), "no such file or folder")
    module, function = KINDS[chosen][0].split(":")
    found: Source = getattr(import_module(f"sims_image.sources.{module}"), function)(request)
    return found


def _kind(request: Request) -> str:
    path = request.path
    if str(path) == "digits" and not path.exists():
        return "digits"
    if path.is_dir():
        return _folder_kind(path)
    if not path.is_file():
        raise InputError(request.argument, str(path), "no such file or folder (or 'digits', scikit-learn's)")
    from sims_image.sources.idx import is_idx
    from sims_image.sources.imagenet import is_imagenet

    if is_imagenet(path):
        return "imagenet"
    if is_idx(path):
        return "idx"
    with open(path, "rb") as handle:
        magic = handle.read(4)
    if magic == b"PAR1" or path.suffix == ".parquet":
        return "parquet"
    if magic == b"PK\3\4" or path.suffix == ".zip":
        from sims_image.sources.builtin import is_prepared_zip

        return "dataset" if is_prepared_zip(request) else "zip"
    if path.suffix in (".tar", ".tgz") or path.name.endswith(".tar.gz"):
        return "cifar10"
    known = "; ".join(f"{name}: {what}" for name, (_, what) in KINDS.items())
    raise InputError(request.argument, str(path), f"not recognised; --kind says what it is ({known})")


def _folder_kind(path: Path) -> str:
    from sims_image.sources.idx import is_idx
    from sims_image.sources.imagenet import is_imagenet

    if (path / "images.npy").is_file():
        return "dataset"
    if is_imagenet(path):
        return "imagenet"
    if (path / "batches.meta").is_file():
        return "cifar10"
    if is_idx(path):
        return "idx"
    return "parquet" if any(path.glob("*.parquet")) else "folder"
