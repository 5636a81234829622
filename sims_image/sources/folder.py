"""Pictures in a folder or a zip: class folders, flat, or labelled by NVIDIA's ``dataset.json``."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError, reason, shown
from sims_core.runs import parse_json
from sims_image.archives import UnreadableError, ZipIndex, checked_members, open_zip
from sims_image.pictures import suffixes
from sims_image.sources.base import Block, Encoded, Request, Source, hash_files, numbered
from sims_image.stores import Labels, edm_labels

SPLITS = ("train", "test", "val", "validation")
_BLOCK = 64


def open_folder(request: Request) -> Source:
    """Every picture below a folder, in the order of their paths.

    Labels come from ``dataset.json`` (NVIDIA's, by path) if there is one, else from the top-level folders in the order
    of their names, if there are at least two. A folder that holds nothing but folders named train, test, val or
    validation has these as splits. Files that are not pictures are left out, with a note; links are followed. The
    source's sha256 is of names and sizes, since the pictures are read once only.
    """
    root, split = request.path, ""
    try:
        inside = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
        if inside and set(inside) <= set(SPLITS) and all((root / name).is_dir() for name in inside):
            split = request.choose_split([name for name in SPLITS if name in inside])
            root = root / split
        else:
            request.no_split()
        found = dict(_walk(request, root, "", (root.resolve(),)))
    except OSError as error:
        raise InputError(request.argument, str(error.filename), f"cannot be read ({reason(error)})") from None
    listing = root / "dataset.json"
    content = listing.read_bytes() if found.pop("dataset.json", None) is not None else None
    names, notes = _pictures(request, str(root), found)
    digest = hashlib.sha256("".join(f"{found[name]}  {name}\n" for name in names).encode("utf-8", "surrogateescape"))
    if content is not None:
        digest.update(content)
    name = request.path.resolve().name
    return _source(
        request,
        names,
        content,
        kind="folder",
        name=f"{name}-{split}" if split else name,
        split=split,
        sha256=digest.hexdigest(),
        sha256_of="the list of its pictures' sizes and names",
        loaders=lambda i: partial(_read_file, request, root / names[i]),
        notes=notes,
    )


def open_image_zip(request: Request) -> Source:
    """Every picture of a zip, labelled as a folder's are."""
    request.no_split()
    path = request.path
    with open_zip(request.argument, path) as archive:
        members = checked_members(request.argument, archive, path)
        listing = members.pop("dataset.json", None)
        content = ZipIndex(path, [listing], argument=request.argument).read(0) if listing is not None else None
        names, notes = _pictures(request, str(path), {n: m.file_size for n, m in members.items() if not _hidden(n)})
        index = ZipIndex(path, [members[name] for name in names], argument=request.argument)
    return _source(
        request,
        names,
        content,
        kind="zip",
        name=path.stem,
        split="",
        sha256=hash_files(request, [path]),
        sha256_of="the zip",
        loaders=lambda i: partial(index.read, i),
        notes=notes,
    )


def _source(
    request: Request,
    names: Sequence[str],
    content: bytes | None,
    *,
    loaders: Callable[[int], Callable[[], bytes]],
    **known: Any,
) -> Source:
    labels, classes = _labels(request, names, content)

    def read(indices: NDArray[np.int64]) -> Iterator[Block]:
        for start in range(0, len(indices), _BLOCK):
            yield [Encoded(shown(names[i]), loaders(int(i))) for i in indices[start : start + _BLOCK]]

    return Source(count=len(names), labels=labels, classes=classes, read=read, item=lambda i: shown(names[i]), **known)


def _walk(request: Request, folder: Path, below: str, above: tuple[Path, ...]) -> Iterator[tuple[str, int]]:
    """Path (POSIX, relative) and size of every file that is not hidden; ``above`` are the folders that lead here."""
    with os.scandir(folder) as entries:
        inside = sorted(entries, key=lambda entry: entry.name)
    for entry in inside:
        if entry.name.startswith("."):
            continue
        name = below + entry.name
        if entry.is_dir():
            true = Path(entry.path).resolve()
            if true in above:
                raise InputError(request.argument, entry.path, "the link leads back to a folder that it is in")
            yield from _walk(request, Path(entry.path), name + "/", (*above, true))
        elif entry.is_file():
            yield name, entry.stat().st_size
        else:
            raise InputError(request.argument, entry.path, "neither a file nor a folder (a broken link?)")


def _hidden(name: str) -> bool:
    """Whether a zip's member is one that a file system would hide, or macOS's notes on another."""
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _pictures(request: Request, where: str, files: dict[str, int]) -> tuple[list[str], tuple[str, ...]]:
    """The names of pictures, sorted, and a note on what was left out."""
    known = suffixes()
    names = sorted(name for name in files if PurePosixPath(name).suffix.lower() in known)
    if not names:
        raise InputError(request.argument, where, "there are no pictures in it")
    others = [name for name in files if PurePosixPath(name).suffix.lower() not in known]
    if not others:
        return names, ()
    what = "file that is not a picture" if len(others) == 1 else "files that are not pictures"
    return names, (f"{len(others)} {what} left out, {shown(min(others))} first",)


def _labels(request: Request, names: Sequence[str], content: bytes | None) -> tuple[Labels | None, list[str]]:
    if not request.labelled:
        return None, []
    if content is not None:
        listed = parse_json(request.argument, "dataset.json", content).get("labels")
        labels = edm_labels(request.argument, "dataset.json", listed, names)
        return labels, [] if labels is None else numbered(int(labels.max()) + 1)
    tops = Counter(name.split("/", 1)[0] if "/" in name else "" for name in names)
    if len(tops) < 2:
        return None, []
    if "" in tops:
        lost = next(name for name in names if "/" not in name)
        raise InputError(
            request.argument, shown(lost), "lies beside class folders; move it into one, or give --unlabelled"
        )
    classes = sorted(tops)
    place = {name: k for k, name in enumerate(classes)}
    return np.array([place[name.split("/", 1)[0]] for name in names], np.int64), [shown(name) for name in classes]


def _read_file(request: Request, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnreadableError(request.argument, str(path), f"cannot be read ({reason(error)})") from None
