"""Pictures in a folder or a zip: class folders, flat, or labelled by NVIDIA's ``dataset.json``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError, reason, shown
from sims_image.data.archives import UnreadableError, ZipIndex, checked_members, open_zip, passed_over
from sims_image.data.sources.base import Block, Encoded, Request, Source, hash_files
from sims_image.data.sources.layout import Layout, lay_out, system_note

_BLOCK = 64


class _Folder:
    """A folder as a `Tree`; links are followed. sizes: of the files walked over. passed: the system's own."""

    def __init__(self, request: Request) -> None:
        self._request, self.path, self.where = request, request.path, str(request.path)
        self.sizes: dict[str, int] = {}
        self.passed: set[str] = set()

    def inside(self, below: str) -> tuple[list[str], list[str]]:
        found = self._entries(self.path / below)
        return [e.name for e in found if e.is_dir()], [e.name for e in found if not e.is_dir()]

    def walk(self, below: str) -> Iterator[str]:
        folder = self.path / below
        return self._walk(folder, below, (self.path.resolve(), folder.resolve()) if below else (folder.resolve(),))

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        self.passed |= {entry.name for entry in found if passed_over(entry.name) == "system"}
        return [entry for entry in found if not passed_over(entry.name)]

    def _walk(self, folder: Path, below: str, above: tuple[Path, ...]) -> Iterator[str]:
        """``above`` are the folders that lead here."""
        for entry in self._entries(folder):
            name = below + entry.name
            if entry.is_dir():
                true = Path(entry.path).resolve()
                if true in above:
                    words = "the link leads back to a folder that it is in"
                    raise InputError(self._request.argument, entry.path, words)
                yield from self._walk(Path(entry.path), name + "/", (*above, true))
            elif entry.is_file():
                self.sizes[name] = entry.stat().st_size
                yield name
            else:
                raise InputError(self._request.argument, entry.path, "neither a file nor a folder (a broken link?)")


class _Zip:
    """A zip's files as a `Tree`."""

    def __init__(self, path: Path, names: list[str]) -> None:
        self.where = str(path)
        first = {name: next((part for part in name.split("/") if passed_over(part)), "") for name in names}
        self._names = sorted(name for name in names if not first[name])
        self.passed = {part for part in first.values() if passed_over(part) == "system"}

    def inside(self, below: str) -> tuple[list[str], list[str]]:
        rest = [name[len(below) :] for name in self._names if name.startswith(below)]
        folders = dict.fromkeys(name.split("/", 1)[0] for name in rest if "/" in name)
        return list(folders), [name for name in rest if "/" not in name]

    def walk(self, below: str) -> Iterator[str]:
        return (name for name in self._names if name.startswith(below))


def open_folder(request: Request) -> Source:
    """Every picture below a folder, in the order of their paths, labelled and split as `lay_out` says.

    Files that are not pictures are left out, with a note. The source's sha256 is of names and sizes, since the pictures
    are read once only.
    """
    tree = _Folder(request)
    try:
        found = lay_out(request, tree, lambda name: (tree.path / name).read_bytes())
        root = tree.path / found.root
        content = (root / "dataset.json").read_bytes() if f"{found.root}dataset.json" in tree.sizes else None
    except OSError as error:
        raise InputError(request.argument, str(error.filename), f"cannot be read ({reason(error)})") from None
    listed = "".join(f"{tree.sizes[found.root + name]}  {name}\n" for name in found.names)
    digest = hashlib.sha256(listed.encode("utf-8", "surrogateescape"))
    if content is not None:
        digest.update(content)
    return _source(
        request,
        found,
        kind="folder",
        name=request.path.resolve().name,
        sha256=digest.hexdigest(),
        sha256_of="the list of its pictures' sizes and names",
        loaders=lambda i: partial(_read_file, request, root / found.names[i]),
        notes=(*found.notes, *system_note(tree.passed)),
    )


def open_image_zip(request: Request) -> Source:
    """Every picture of a zip, labelled and split as a folder's are."""
    path = request.path
    with open_zip(request.argument, path) as archive:
        members = checked_members(request.argument, archive, path)
    tree = _Zip(path, list(members))
    found = lay_out(request, tree, lambda name: ZipIndex(path, [members[name]], argument=request.argument).read(0))
    index = ZipIndex(path, [members[found.root + name] for name in found.names], argument=request.argument)
    return _source(
        request,
        found,
        kind="zip",
        name=path.stem,
        sha256=hash_files(request, [path]),
        sha256_of="the zip",
        loaders=lambda i: partial(index.read, i),
        notes=(*found.notes, *system_note(tree.passed)),
    )


def _source(
    request: Request, found: Layout, *, name: str, loaders: Callable[[int], Callable[[], bytes]], **known: Any
) -> Source:
    def item(i: int) -> str:
        return shown(found.root + found.names[i])

    def read(indices: NDArray[np.int64]) -> Iterator[Block]:
        for start in range(0, len(indices), _BLOCK):
            yield [Encoded(item(int(i)), loaders(int(i))) for i in indices[start : start + _BLOCK]]

    return Source(
        count=len(found.names),
        name=f"{name}-{found.split}" if found.split else name,
        split=found.split,
        labels=found.labels,
        classes=found.classes,
        read=read,
        item=item,
        **known,
    )


def _read_file(request: Request, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableError(request.argument, str(path), f"cannot be read ({reason(error)})") from None
