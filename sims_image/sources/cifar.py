"""The official ``cifar-10-python.tar.gz`` (Krizhevsky 2009): pickled batches of 10,000 rows of 3,072 bytes."""

from __future__ import annotations

import gzip
import tarfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np

from sims_core.errors import InputError, reason, shown
from sims_image.archives import check_name
from sims_image.pickled import load_plain
from sims_image.sources.base import Request, Source, hash_files, read_array
from sims_image.stores import check_labels

SPLITS = {"train": tuple(f"data_batch_{k}" for k in range(1, 6)), "test": ("test_batch",)}
_META = "batches.meta"
_WANTED = {*SPLITS["train"], *SPLITS["test"], _META}
#: the official archive holds 186 MB, in members of 31 MB
_MEMBER_BYTES, _TOTAL_BYTES, _MEMBERS = 2**26, 2**28, 1000


class _Bounded:
    """A stream of at most `_TOTAL_BYTES`, read in pieces of at most `_MEMBER_BYTES`, whatever asks for more.

    tarfile takes the sizes of long names and extended headers at their word; here they end.
    """

    def __init__(self, request: Request, handle: IO[bytes]) -> None:
        self._request, self._handle = request, handle

    def _check(self, more: int, place: int) -> None:
        if not 0 <= more <= _MEMBER_BYTES or place + more > _TOTAL_BYTES:
            expected = f"it expands beyond the {_TOTAL_BYTES} bytes of CIFAR-10: a decompression bomb"
            raise InputError(self._request.argument, str(self._request.path), expected)

    def read(self, size: int = -1) -> bytes:
        self._check(size, self._handle.tell())
        return self._handle.read(size)

    def seek(self, place: int) -> int:
        self._check(0, place)
        return self._handle.seek(place)

    def tell(self) -> int:
        return self._handle.tell()


def open_cifar10(request: Request) -> Source:
    """CIFAR-10 from its archive, or from the folder that the archive unpacks to. Splits: train, test."""
    split = request.choose_split(tuple(SPLITS))
    path = request.path
    wanted = (*SPLITS[split], _META)
    if path.is_dir():
        files = [path / name for name in wanted]
        missing = next((file for file in files if not file.is_file()), None)
        if missing is not None:
            raise InputError(request.argument, str(missing), "not there; CIFAR-10's folder holds it")
        digest = hash_files(request, files)
        batches = {file.name: file.read_bytes() for file in files}
    else:
        digest = hash_files(request, [path])
        batches = _members(request)
        absent = next((name for name in wanted if name not in batches), None)
        if absent is not None:
            raise InputError(
                request.argument,
                f"{path.name}: {absent}",
                "not in the archive; is it whole? (pictures in an archive: unpack it and give the folder)",
            )
    classes = _classes(request, batches[_META])
    images, labels = [], []
    for name in SPLITS[split]:
        item = f"{path.name}: {name}"
        pixels, numbers = _batch(request, item, batches.pop(name))
        images.append(pixels)
        labels.append(check_labels(request.argument, item, numbers, len(pixels), len(classes)))
    pixels = np.concatenate(images).reshape(-1, 3, 32, 32)
    return Source(
        kind="cifar10",
        name="cifar10" if split == "train" else "cifar10-test",
        split=split,
        count=len(pixels),
        labels=np.concatenate(labels),
        classes=classes,
        sha256=digest,
        sha256_of="the archive" if path.is_file() else "its files",
        read=read_array(pixels),
        shape=(3, 32, 32),
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
                        raise InputError(request.argument, str(path), f"more than {_MEMBERS} members: not CIFAR-10")
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
        expected = f"truncated or damaged ({reason(error)}); it should be cifar-10-python.tar.gz"
        raise InputError(request.argument, str(path), expected) from None
    return found


def _plain_dict(request: Request, item: str, data: bytes) -> dict[str, Any]:
    content = load_plain(request.argument, item, data)
    if not isinstance(content, dict):
        raise InputError(request.argument, item, "must be a pickled dict")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


def _batch(request: Request, item: str, data: bytes) -> tuple[Any, Any]:
    content = _plain_dict(request, item, data)
    pixels, labels = content.get("data"), content.get("labels")
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != 3072:
        raise InputError(request.argument, item, "'data' must be an array (N, 3072) of bytes")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise InputError(request.argument, item, "'labels' must be a list of whole numbers")
    try:
        return pixels, np.array(labels, np.int64)
    except OverflowError:
        raise InputError(request.argument, item, "a label is beyond all bounds") from None


def _classes(request: Request, data: bytes) -> list[str]:
    item = f"{Path(request.path).name}: {_META}"
    names = _plain_dict(request, item, data).get("label_names")
    if not isinstance(names, list) or not names or not all(isinstance(name, (str, bytes)) for name in names):
        raise InputError(request.argument, item, "'label_names' must be a list of names")
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]
