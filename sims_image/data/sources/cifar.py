"""The official ``cifar-10-python.tar.gz`` and ``cifar-100-python.tar.gz`` (Krizhevsky 2009), and their folders.

Pickled batches: rows of 3,072 bytes, and lists of labels.
"""

from __future__ import annotations

import gzip
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from sims_core.errors import InputError, choose, reason, shown
from sims_image.data.archives import check_name
from sims_image.data.sources.base import Request, Source, hash_files, read_array
from sims_image.data.stores import check_labels
from sims_image.pickles.numbers import load_plain

#: the official archives hold 186 MB, CIFAR-100's in members of 155 MB
_MEMBER_BYTES, _TOTAL_BYTES, _MEMBERS = 2**28, 2**28, 1000


@dataclass(frozen=True)
class _Cifar:
    """One of the two: the files of its splits, of its class names, and by column the keys of labels and names."""

    kind: str
    name: str
    splits: dict[str, tuple[str, ...]]
    meta: str
    columns: dict[str, tuple[str, str]]


_CIFAR10 = _Cifar(
    "cifar10",
    "CIFAR-10",
    {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)},
    "batches.meta",
    {"label": ("labels", "label_names")},
)
_CIFAR100 = _Cifar(
    "cifar100",
    "CIFAR-100",
    {"train": ("train",), "test": ("test",)},
    "meta",
    {"fine_label": ("fine_labels", "fine_label_names"), "coarse_label": ("coarse_labels", "coarse_label_names")},
)
_WANTED = {name for one in (_CIFAR10, _CIFAR100) for files in one.splits.values() for name in (*files, one.meta)}


def is_cifar(path: Path) -> bool:
    """Whether the folder is what one of the archives unpacks to."""
    if (path / _CIFAR10.meta).is_file():
        return True
    return (path / _CIFAR100.meta).is_file() and any((path / name).is_file() for name in _CIFAR100.splits)


class _Bounded:
    """A stream of at most `_TOTAL_BYTES`, read in pieces of at most `_MEMBER_BYTES`, whatever asks for more.

    tarfile takes the sizes of long names and extended headers at their word; here they end.
    """

    def __init__(self, request: Request, handle: IO[bytes]) -> None:
        self._request, self._handle = request, handle

    def _check(self, more: int, place: int) -> None:
        if not 0 <= more <= _MEMBER_BYTES or place + more > _TOTAL_BYTES:
            expected = f"it expands beyond the {_TOTAL_BYTES} bytes of CIFAR: a decompression bomb"
            raise InputError(self._request.argument, str(self._request.path), expected)

    def read(self, size: int = -1) -> bytes:
        self._check(size, self._handle.tell())
        return self._handle.read(size)

    def seek(self, place: int) -> int:
        self._check(0, place)
        return self._handle.seek(place)

    def tell(self) -> int:
        return self._handle.tell()


def open_cifar(request: Request) -> Source:
    """CIFAR-10 or CIFAR-100 from its archive, or from the folder that the archive unpacks to. Splits: train, test.

    CIFAR-100 has 100 classes (fine_label, the default) in 20 groups: `Request.label_column` coarse_label takes these.
    """
    path = request.path
    there = [name for name in sorted(_WANTED) if (path / name).is_file()] if path.is_dir() else _members(request)
    one = _CIFAR100 if _CIFAR100.meta in there else _CIFAR10
    split = request.choose_split(tuple(one.splits))
    wanted = (*one.splits[split], one.meta)
    absent = next((name for name in wanted if name not in there), None)
    if isinstance(there, list):
        if absent is not None:
            raise InputError(request.argument, str(path / absent), f"not there; {one.name}'s folder holds it")
        digest = hash_files(request, [path / name for name in wanted])
        batches = {name: (path / name).read_bytes() for name in wanted}
    else:
        digest, batches = hash_files(request, [path]), there
        if absent is not None:
            expected = "not in the archive; is it whole? (pictures in an archive: unpack it and give the folder)"
            raise InputError(request.argument, f"{path.name}: {absent}", expected)
    asked = request.label_column.removesuffix("s") or next(iter(one.columns))
    key, called = one.columns[choose("label_column", asked, one.columns)]
    classes = _classes(request, one.meta, called, batches[one.meta])
    images, labels = [], []
    for name in one.splits[split]:
        item = f"{path.name}: {name}"
        pixels, numbers = _batch(request, item, key, batches.pop(name))
        images.append(pixels)
        labels.append(check_labels(request.argument, item, numbers, len(pixels), len(classes)))
    pixels = np.concatenate(images).reshape(-1, 3, 32, 32)
    others = ", ".join(name for name in one.columns if name != asked)
    note = f"classes are {asked}; --label-column {others} takes the others"
    return Source(
        kind=one.kind,
        name=one.kind if split == "train" else f"{one.kind}-test",
        split=split,
        count=len(pixels),
        labels=np.concatenate(labels) if request.labelled else None,
        classes=classes if request.labelled else [],
        sha256=digest,
        sha256_of="the archive" if path.is_file() else "its files",
        read=read_array(pixels),
        shape=(3, 32, 32),
        notes=(note,) if others and request.labelled and not request.label_column else (),
    )


def _members(request: Request) -> dict[str, bytes]:
    """The archive's wanted members. Every member is checked, wanted or not, before its content is passed over."""
    path, found, seen = request.path, {}, set()
    try:
        with open(path, "rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            plain: IO[bytes] = gzip.GzipFile(fileobj=raw) if packed else raw  # type: ignore[assignment]
            stream: Any = _Bounded(request, plain)
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    name = check_name(request.argument, path.name, member.name)
                    item = f"{path.name}: {shown(name)}"
                    if member.isdir():
                        continue
                    if not member.isreg():
                        raise InputError(request.argument, item, "members must be plain files, not links or devices")
                    if name in seen:
                        raise InputError(request.argument, item, "the name is there twice")
                    if member.size > _MEMBER_BYTES:
                        expected = f"{member.size} bytes is more than a batch holds: a decompression bomb?"
                        raise InputError(request.argument, item, expected)
                    seen.add(name)
                    if len(seen) > _MEMBERS:
                        raise InputError(
                            request.argument, str(path), f"more than {_MEMBERS} members: not CIFAR's archive"
                        )
                    base = name.rsplit("/", 1)[-1]
                    if base not in _WANTED:
                        continue
                    if base in found:
                        raise InputError(request.argument, item, f"'{base}' is there twice")
                    content = archive.extractfile(member)
                    found[base] = content.read() if content else b""
                    if len(found[base]) != member.size:
                        raise InputError(request.argument, item, "truncated")
            while stream.read(2**16):  # to the end, where gzip keeps its checksum
                pass
    except (OSError, EOFError, tarfile.TarError, zlib.error, ValueError, OverflowError) as error:
        if isinstance(error, InputError):
            raise
        expected = f"truncated or damaged ({reason(error)}); it should be cifar-10(0)-python.tar.gz"
        raise InputError(request.argument, str(path), expected) from None
    return found


def _plain_dict(request: Request, item: str, data: bytes) -> dict[str, Any]:
    content = load_plain(request.argument, item, data)
    if not isinstance(content, dict):
        raise InputError(request.argument, item, "must be a pickled dict")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def _batch(request: Request, item: str, key: str, data: bytes) -> tuple[Any, Any]:
    content = _plain_dict(request, item, data)
    pixels, labels = content.get("data"), content.get(key)
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise InputError(request.argument, item, "'data' must be an array (N, 3072) of bytes")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise InputError(request.argument, item, f"'{key}' must be a list of whole numbers")
    try:
        return pixels, np.array(labels, np.int64)
    except OverflowError:
        raise InputError(request.argument, item, "a label is beyond all bounds") from None


def _classes(request: Request, meta: str, key: str, data: bytes) -> list[str]:
    item = f"{Path(request.path).name}: {meta}"
    names = _plain_dict(request, item, data).get(key)
    if not isinstance(names, list) or not names or not all(isinstance(name, (str, bytes)) for name in names):
        raise InputError(request.argument, item, f"'{key}' must be a list of names")
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
