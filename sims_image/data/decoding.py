"""Pictures of a source decoded side by side, made alike, and looked at for what is wrong with them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sims_core.errors import InputError
from sims_image.data.archives import UnreadableError
from sims_image.data.pictures import DamagedError, Transform, decode, from_array, turned
from sims_image.data.sources.base import Block, Encoded, Source, bar
from sims_image.data.stores import Images

#: the argument that errors are about
SOURCE = "source"
#: bad pictures after which no more are looked for; pictures that are looked at for their EXIF orientation
_LISTED, _LOOKED_AT = 20, 16


def images(
    source: Source,
    transform: Transform | None,
    shape: tuple[int, int, int],
    indices: NDArray[np.int64],
    *,
    workers: int = 0,
) -> Iterator[Images]:
    """The images at increasing ``indices`` of a source, each of ``shape`` after ``transform``, (B, C, H, W).

    workers: threads that decode pictures; 0 is one per core, at most 8. Raises `InputError` naming the pictures that
    cannot be taken, the first with its reason: all of them, or `_LISTED`.
    """
    start, workers, bad = 0, _threads(workers), list[InputError]()
    with ThreadPoolExecutor(workers) as pool:
        for block in source.read(indices):
            mine = indices[start : start + len(block)]
            start += len(block)
            if transform is None:
                yield np.asarray(block)
                continue
            pieces = np.array_split(np.arange(len(block)), min(len(block), 4 * workers))
            done = list(pool.map(partial(_piece, source, transform, block, mine, shape), pieces))
            bad += [error for _, errors in done for error in errors]
            if len(bad) >= _LISTED:
                break
            if not bad:
                yield np.concatenate([found for found, _ in done])
    if bad:
        raise _together(bad, all_seen=len(bad) < _LISTED)


def _together(bad: list[InputError], *, all_seen: bool) -> InputError:
    """One error for all of them."""
    first, others = bad[0], [str(one.value) for one in bad[1:6]]
    if not others:
        return first
    many = f"{len(bad)} in all" if all_seen else f"{len(bad)} and perhaps more"
    more = "" if len(bad) <= 6 else ", ..."
    return InputError(first.argument, first.value, f"{first.expected}; bad too: {', '.join(others)}{more} ({many})")


def _piece(
    source: Source,
    transform: Transform,
    block: Block,
    indices: NDArray[np.int64],
    shape: tuple[int, int, int],
    rows: NDArray[np.int64],
) -> tuple[NDArray[np.uint8], list[InputError]]:
    """A few pictures of a block, one after the other, in one thread; and what is wrong with those that are bad."""
    made = [_one(source, transform, block, indices, shape, int(row)) for row in rows]
    bad = [one for one in made if isinstance(one, InputError)]
    sound = [one for one in made if not isinstance(one, InputError)]
    return np.stack(sound) if sound else np.empty((0, *shape), np.uint8), bad


def _one(
    source: Source,
    transform: Transform,
    block: Block,
    indices: NDArray[np.int64],
    shape: tuple[int, int, int],
    row: int,
) -> NDArray[np.uint8] | InputError:
    try:
        return fitted(*transformed(source, transform, block, row, indices), shape)
    except UnreadableError:
        raise
    except InputError as error:
        return error


def sound(
    source: Source, indices: NDArray[np.int64], workers: int, *, progress: bool
) -> tuple[Source, NDArray[np.int64]]:
    """Those of increasing ``indices`` whose pictures can be decoded, and the source with a note on the others.

    Raises `InputError` where none can.
    """
    bad: dict[int, str] = {}
    start = 0

    def damaged(encoded: Encoded) -> bool:
        try:
            decode(SOURCE, encoded.item, encoded.load())
        except DamagedError:
            return True
        return False

    with ThreadPoolExecutor(_threads(workers)) as pool, bar(progress, len(indices), "looking", " images") as shown:
        for block in source.read(indices):
            if isinstance(block, list):
                looked = zip(indices[start : start + len(block)], block, pool.map(damaged, block), strict=True)
                bad |= {int(index): encoded.item for index, encoded, wrong in looked if wrong}
            start += len(block)
            shown.update(len(block))
    if not bad:
        return source, indices
    if len(bad) == len(indices):
        raise InputError(SOURCE, source.name, "none of its pictures can be decoded")
    some = ", ".join(list(bad.values())[:10]) + (", ..." if len(bad) > 10 else "")
    note = f"{len(bad)} damaged {'picture' if len(bad) == 1 else 'pictures'} left out: {some}"
    return replace(source, notes=(*source.notes, note)), np.setdiff1d(indices, list(bad))


def oriented(source: Source, indices: NDArray[np.int64]) -> Source:
    """The source, with a note if the first pictures have an EXIF orientation."""
    found, seen = 0, 0
    for block in source.read(indices[:_LOOKED_AT]):
        for encoded in block if isinstance(block, list) else ():
            with contextlib.suppress(InputError):
                found += turned(decode(SOURCE, encoded.item, encoded.load()))
            seen += 1
    note = f"{found} of the first {seen} pictures are to be turned by their EXIF data; --upright does so"
    return replace(source, notes=(*source.notes, note)) if found else source


def formatted(source: Source, indices: NDArray[np.int64]) -> Source:
    """The source with the formats of its pictures, by their names, or by the first ones where names do not tell.

    A note says where JPEG and other formats are mixed.
    """
    if source.pictures or source.shape is not None:
        return source if source.pictures else replace(source, pictures="arrays")
    known = Image.registered_extensions()
    items = (source.item(int(index)) for index in indices)
    ends = {item.rpartition(".")[2].lower() if "." in item else "" for item in items}
    found = {known.get(f".{end}") for end in ends}
    if None in found:
        block = next(source.read(indices[:_LOOKED_AT]))
        found = {_format(encoded) for encoded in block if isinstance(encoded, Encoded)}
    told = "+".join(sorted(name for name in found if name))
    note = mixture(told)
    return replace(source, pictures=told, notes=(*source.notes, *([note] if note else [])))


def _format(encoded: Encoded) -> str | None:
    with contextlib.suppress(InputError):
        return decode(SOURCE, encoded.item, encoded.load()).format
    return None


def mixture(*real: str, generated: str = "") -> str | None:
    """What to know where some of the pictures that are compared were JPEG files and others not; None elsewhere.

    real, generated: their formats, as `Source.pictures`. Generated images in a lossless format are as they were made,
    whatever the real ones are.
    """
    found = {name for text in real for name in text.split("+")} - {"", "unknown"}
    if found and "JPEG" in generated.split("+"):
        found.add("JPEG")
    if "JPEG" not in found or len(found) == 1:
        return None
    words = "compression alone moves a distance (a public comparison got FID 271); take files of one kind"
    return f"pictures of {' and '.join(sorted(found))} are mixed: {words}"


def transformed(
    source: Source, transform: Transform, block: Block, row: int, indices: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], str]:
    """One picture of a block as an array, and what messages call it."""
    if isinstance(block, list):
        encoded: Encoded = block[row]
        picture, item = decode(SOURCE, encoded.item, encoded.load()), encoded.item
    else:
        picture, item = from_array(block[row]), source.item(int(indices[row]))
    return transform(SOURCE, item, picture), item


def fitted(image: NDArray[np.uint8], item: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Grey among colour becomes colour. Raises `InputError` for colour among grey, and for another size."""
    if image.shape[1:] != shape[1:]:
        sizes = f"{image.shape[2]}x{image.shape[1]} among {shape[2]}x{shape[1]}"
        raise InputError(SOURCE, item, f"{sizes} pictures; remove it, or `prepare` with `size` N makes them alike")
    if len(image) > shape[0]:
        raise InputError(
            SOURCE, item, "in colour, and the first is grey; `prepare` with `gray` or `rgb` makes them alike"
        )
    return np.repeat(image, 3, axis=0) if len(image) < shape[0] else image


def first(source: Source, transform: Transform, chosen: NDArray[np.int64]) -> tuple[int, int, int]:
    """(C, H, W) of the first chosen picture, which all others have to share."""
    image, _ = transformed(source, transform, next(source.read(chosen[:1])), 0, chosen)
    return image.shape[0], image.shape[1], image.shape[2]


def _threads(workers: int) -> int:
    return workers or min(8, _cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
