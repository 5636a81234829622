"""The work of `prepare`: pictures decoded side by side, arrays that grow, the record, the move into place."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError
from sims_core.lab.runs import RunFolder, kept_json, parse_json, write_atomic, write_json
from sims_image.data.archives import UnreadableError
from sims_image.data.dataset import FORMAT, Dataset, content_sha256
from sims_image.data.pictures import DamagedError, Transform, decode, from_array, turned
from sims_image.data.sources.base import Block, Encoded, Source, bar
from sims_image.data.stores import ArrayStore, Images
from sims_image.data.writing import Growing, write_edm_zip

if TYPE_CHECKING:
    from sims_image.data.prepare import Output, Plan

#: progress is recorded after so many bytes or seconds, whichever comes first
COMMIT_BYTES, COMMIT_SECONDS = 64 * 2**20, 10.0
_ARGUMENT = "--source"
#: bad pictures after which no more are looked for; pictures that are looked at for their EXIF orientation
_LISTED, _LOOKED_AT = 20, 16


def make(planned: Plan, folder: RunFolder, there: Sequence[bool], *, progress: bool) -> None:
    """Write the arrays and records below ``folder``, then move them to where they belong, --out last.

    there: which outputs are in their place already, of an earlier start that was killed while moving them.

    Raises `InputError` for what is wrong with the source, OSError if writing fails.
    """
    outputs = planned.outputs()
    parts = [folder.path / f"part{k}" for k in range(len(outputs))]
    whole = all(done or part.exists() for part, done in zip(parts, there, strict=True))
    if not (folder.finished and whole):
        _fill(planned, parts, outputs, folder.path / "progress.json", progress=progress)
        _record(planned, parts, outputs, progress=progress)
        folder.finish()
    for part, output, done in zip(parts, outputs, there, strict=True):
        if not done:
            _move(part, output.path, zipped=planned.settings.format == "edm-zip", progress=progress)


def _fill(planned: Plan, parts: list[Path], outputs: list[Output], record: Path, *, progress: bool) -> None:
    """``images.npy`` and ``labels.npy`` of every part. The source is read once, from where the record says."""
    masks = [output.mask for output in outputs]
    kinds = [(planned.shape, planned.dtype, int(mask.sum())) for mask in masks]
    for part in parts:
        part.mkdir(exist_ok=True)
    done = _done(record)
    behind = [int(mask[:done].sum()) for mask in masks]
    there = [
        Growing.reusable(part / "images.npy", *kind, n) for part, kind, n in zip(parts, kinds, behind, strict=True)
    ]
    if not all(there):
        done, behind = 0, [0] * len(parts)
    if planned.source.labels is not None:
        labels = planned.source.labels[planned.chosen]
        for part, mask in zip(parts, masks, strict=True):
            write_atomic(part / "labels.npy", lambda path, mine=labels[mask]: np.save(path, mine.astype("<i8")))  # type: ignore[misc]
    with contextlib.ExitStack() as stack:
        arrays = []
        for part, kind, n in zip(parts, kinds, behind, strict=True):
            arrays.append(Growing(part / "images.npy", *kind, n))
            stack.callback(arrays[-1].close)
        shown = stack.enter_context(bar(progress, len(planned.chosen), "writing", " images", done))
        committed, last = done, time.monotonic()
        for block in images(planned, planned.chosen[done:]):
            for array, mask in zip(arrays, masks, strict=True):
                mine = mask[done : done + len(block)]
                array.append(block if mine.all() else block[mine])
            done += len(block)
            shown.update(len(block))
            due = (done - committed) * planned.each >= COMMIT_BYTES or time.monotonic() - last >= COMMIT_SECONDS
            if due or done == len(planned.chosen):
                for array in arrays:
                    array.flush()
                write_json(record, {"done": done})
                committed, last = done, time.monotonic()
    if done != len(planned.chosen):
        raise InputError(_ARGUMENT, planned.settings.source, f"it gave {done} images of {len(planned.chosen)}")


def _done(record: Path) -> int:
    done = (kept_json(record) or {}).get("done")
    return done if type(done) is int and done >= 0 else 0


def images(planned: Plan, indices: NDArray[np.int64]) -> Iterator[Images]:
    """The images at increasing ``indices`` as they are stored, (B, C, H, W).

    Raises `InputError` naming the pictures that cannot be taken, the first with its reason: all of them, or `_LISTED`.
    """
    source, transform, start = planned.source, planned.transform, 0
    workers, bad = _threads(planned.settings.workers), list[InputError]()
    with ThreadPoolExecutor(workers) as pool:
        for block in source.read(indices):
            mine = indices[start : start + len(block)]
            start += len(block)
            if transform is None:
                yield np.asarray(block)
                continue
            pieces = np.array_split(np.arange(len(block)), min(len(block), 4 * workers))
            done = list(pool.map(partial(_piece, source, transform, block, mine, planned.shape), pieces))
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
            decode(_ARGUMENT, encoded.item, encoded.load())
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
        raise InputError(_ARGUMENT, source.name, "none of its pictures can be decoded")
    some = ", ".join(list(bad.values())[:10]) + (", ..." if len(bad) > 10 else "")
    note = f"{len(bad)} damaged {'picture' if len(bad) == 1 else 'pictures'} left out: {some}"
    return replace(source, notes=(*source.notes, note)), np.setdiff1d(indices, list(bad))


def oriented(source: Source, indices: NDArray[np.int64]) -> Source:
    """The source, with a note if the first pictures have an EXIF orientation."""
    found, seen = 0, 0
    for block in source.read(indices[:_LOOKED_AT]):
        for encoded in block if isinstance(block, list) else ():
            with contextlib.suppress(InputError):
                found += turned(decode(_ARGUMENT, encoded.item, encoded.load()))
            seen += 1
    note = f"{found} of the first {seen} pictures are to be turned by their EXIF data; --upright does so"
    return replace(source, notes=(*source.notes, note)) if found else source


def transformed(
    source: Source, transform: Transform, block: Block, row: int, indices: NDArray[np.int64]
) -> tuple[NDArray[np.uint8], str]:
    """One picture of a block as an array, and what messages call it."""
    if isinstance(block, list):
        encoded: Encoded = block[row]
        picture, item = decode(_ARGUMENT, encoded.item, encoded.load()), encoded.item
    else:
        picture, item = from_array(block[row]), source.item(int(indices[row]))
    return transform(_ARGUMENT, item, picture), item


def fitted(image: NDArray[np.uint8], item: str, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Grey among colour becomes colour. Raises `InputError` for colour among grey, and for another size."""
    if image.shape[1:] != shape[1:]:
        sizes = f"{image.shape[2]}x{image.shape[1]} among {shape[2]}x{shape[1]}"
        raise InputError(_ARGUMENT, item, f"{sizes} pictures; remove it, or `prepare` with --size N makes them alike")
    if len(image) > shape[0]:
        raise InputError(
            _ARGUMENT, item, "in colour, and the first is grey; `prepare` with --gray or --rgb makes them alike"
        )
    return np.repeat(image, 3, axis=0) if len(image) < shape[0] else image


def first(source: Source, transform: Transform, chosen: NDArray[np.int64]) -> tuple[int, int, int]:
    """(C, H, W) of the first chosen picture, which all others have to share."""
    image, _ = transformed(source, transform, next(source.read(chosen[:1])), 0, chosen)
    return image.shape[0], image.shape[1], image.shape[2]


def _record(planned: Plan, parts: list[Path], outputs: list[Output], *, progress: bool) -> None:
    """``dataset.json`` of every part."""
    found: list[dict[str, Any]] = []
    for part, output in zip(parts, outputs, strict=True):
        labels = None if planned.source.labels is None else planned.source.labels[planned.chosen][output.mask]
        counts = [] if labels is None else np.bincount(labels, minlength=len(planned.classes)).tolist()
        data = _opened(part, labels, {"name": output.name, "classes": planned.classes})
        with bar(progress, len(data), "checking", " images") as shown:
            digest = content_sha256(data, tick=shown.update)
        found.append(
            {
                "format": FORMAT,
                "name": output.name,
                "shape": list(planned.shape),
                "dtype": str(planned.dtype),
                "counts": {"images": len(data), "classes": counts},
                "sha256": digest,
                **planned.identity(),
                "libraries": {library: metadata.version(library) for library in ("numpy", "pillow")},
            }
        )
    if len(found) == 2:  # each knows the other, so that nobody evaluates on what was trained on
        for record, other, role in ((found[0], found[1], "held out"), (found[1], found[0], "kept")):
            record["holdout"] = {"this": role, "other": other["name"], "other_sha256": other["sha256"]}
    for part, record in zip(parts, found, strict=True):
        write_json(part / "dataset.json", record)


def _opened(part: Path, labels: NDArray[np.int64] | None, record: dict[str, Any]) -> Dataset:
    return Dataset(part, ArrayStore(part / "images.npy", "--out"), labels, record)


def _move(part: Path, out: Path, *, zipped: bool, progress: bool) -> None:
    """The whole part under its name, in one step."""
    if zipped:
        record = parse_json("--out", str(part), (part / "dataset.json").read_bytes())
        labels = np.load(part / "labels.npy", allow_pickle=False) if (part / "labels.npy").exists() else None
        data = _opened(part, labels, record)
        with bar(progress, len(data), "packing", " images") as shown:
            packed = part.with_suffix(".zip")
            write_atomic(packed, lambda path: write_edm_zip(data, path, tick=shown.update))
        os.replace(packed, out)
    else:
        os.rename(part, out)
    if hasattr(os, "O_DIRECTORY"):
        parent = os.open(out.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(parent)
        finally:
            os.close(parent)


def _threads(workers: int) -> int:
    return workers or min(8, _cores())


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
