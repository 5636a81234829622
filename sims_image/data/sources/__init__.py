"""Where images come from: one function per kind, chosen by looking at the path."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from itertools import islice
from pathlib import Path

from sims_core.errors import InputError, choose
from sims_image.data.archives import impostor, passed_over
from sims_image.data.sources.base import Request, Source
from sims_image.data.sources.builtin import kind_of_zip
from sims_image.data.sources.cifar import is_cifar
from sims_image.data.sources.foreign import recognised
from sims_image.data.sources.idx import is_idx
from sims_image.data.sources.imagenet import is_imagenet
from sims_image.data.sources.layout import is_picture

#: kind -> (module:function, what it reads)
KINDS: dict[str, tuple[str, str]] = {
    "cifar10": ("cifar:open_cifar", "cifar-10-python.tar.gz, or the folder it unpacks to"),
    "cifar100": ("cifar:open_cifar", "cifar-100-python.tar.gz, or the folder it unpacks to"),
    "imagenet": ("imagenet:open_imagenet", "downsampled ImageNet: a folder of train_data_batch_*[.npz] and val_data"),
    "folder": ("folder:open_folder", "pictures in class folders, or flat"),
    "zip": ("folder:open_image_zip", "pictures in a zip (EDM's, or class folders)"),
    "idx": ("idx:open_idx", "MNIST and Fashion-MNIST: *-images-idx3-ubyte[.gz], or their folder"),
    "arrays": ("arrays:open_arrays", "an .npz of pictures arr_0 and labels arr_1 (ADM's), or a .npy of pictures"),
    "parquet": ("parquet:open_parquet", "a Hugging Face parquet file, or a folder of shards"),
    "dataset": ("builtin:open_prepared", "a data set folder or EDM zip, latents included"),
    "digits": ("builtin:open_digits", "the word 'digits': scikit-learn's"),
}


def open_source(request: Request, kind: str = "") -> Source:
    """The source at ``request.path``; ``kind`` overrules what its looks say. Raises `InputError`."""
    chosen = choose("kind", kind, KINDS) if kind else ""
    if not chosen:
        chosen, path = kind_of(request)
        request = replace(request, path=path)
    elif chosen != "digits" and not request.path.exists():
        raise InputError(request.argument, str(request.path), "no such file or folder")
    module, function = KINDS[chosen][0].split(":")
    found: Source = getattr(import_module(f"sims_image.data.sources.{module}"), function)(request)
    return found


def kind_of(request: Request) -> tuple[str, Path]:
    """What the looks of ``request.path`` say, and where it lies: there, or in a lone folder below."""
    path = request.path
    if str(path) == "digits" and not path.exists():
        return "digits", path
    try:
        return _folder_kind(path) if path.is_dir() else (_file_kind(request), path)
    except OSError as error:
        raise InputError(request.argument, str(path), f"cannot be read ({error.strerror})") from None


def _file_kind(request: Request) -> str:
    path = request.path
    if not path.is_file():
        raise InputError(request.argument, str(path), "no such file or folder (or 'digits', scikit-learn's)")
    if is_imagenet(path):
        return "imagenet"
    if is_idx(path):
        return "idx"
    with open(path, "rb") as handle:
        begin = handle.read(256)
    if begin[:4] == b"PAR1" or path.suffix == ".parquet":
        return "parquet"
    if begin[:6] == b"\x93NUMPY" or path.suffix.lower() in (".npy", ".npz"):
        return "arrays"
    if begin[:4] == b"PK\3\4" or path.suffix == ".zip":
        return kind_of_zip(request)
    if path.suffix in (".tar", ".tgz") or path.name.endswith(".tar.gz"):
        return "cifar100" if "100" in path.name else "cifar10"
    what = impostor(begin) or recognised([path.name])[1]
    if what:
        raise InputError(request.argument, str(path), f"not read: it is {what}")
    raise InputError(request.argument, str(path), f"not recognised; `kind` says what it is ({', '.join(KINDS)})")


def _folder_kind(path: Path) -> tuple[str, Path]:
    here = _known_folder(path)
    if here:
        return here, path
    inside = [entry for entry in sorted(path.iterdir()) if not passed_over(entry.name)]
    folders = [entry for entry in inside if entry.is_dir()]
    if len(folders) == 1 and not any(is_picture(entry.name) for entry in inside):
        kind, below = _folder_kind(folders[0])
        return (kind, path) if kind in ("folder", "parquet") else (kind, below)
    return "folder", path


def _known_folder(path: Path) -> str:
    """The kind of data set whose files lie in the folder, '' if it may hold pictures."""
    if (path / "images.npy").is_file():
        return "dataset"
    if is_imagenet(path):
        return "imagenet"
    if is_cifar(path):
        return "cifar100" if (path / "meta").is_file() else "cifar10"
    if is_idx(path):
        return "idx"
    if any(path.glob("*.parquet")):
        return "parquet"
    below = (pattern for pattern in ("*/*.parquet", "*/*/0000.parquet") if any(path.glob(pattern)))
    return "parquet" if next(below, "") and _few_pictures(path) else ""


def _few_pictures(path: Path) -> bool:
    """Whether a folder holds next to none, as a clone from the Hub may, with a logo."""
    return sum(1 for _ in islice((file for file in path.rglob("*") if is_picture(file.name)), 10)) < 10
