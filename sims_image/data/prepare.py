"""Data sets made of what there is (`docs/images-data.md`): arrays that grow, the record, the move into place."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError, shown
from sims_core.lab.config import OPTIONS
from sims_core.lab.placing import Workplace, move
from sims_core.lab.runs import (
    RunFolder,
    differences,
    followed,
    kept_json,
    parse_json,
    provenance,
    write_atomic,
    write_json,
)
from sims_image.data.archives import UnreadableError
from sims_image.data.dataset import Dataset, block_length, open_dataset
from sims_image.data.decoding import SOURCE, images
from sims_image.data.latents import NAME as AUTOENCODER
from sims_image.data.latents import Autoencoder, Encoder, measured
from sims_image.data.options import Prepare
from sims_image.data.plan import Output, Plan, check, plan
from sims_image.data.sources.base import bar
from sims_image.data.stores import ArrayStore, Images
from sims_image.data.writing import Growing, describe, write_edm_zip, write_labels

#: progress is recorded after so many bytes or seconds, whichever comes first
COMMIT_BYTES, COMMIT_SECONDS = 64 * 2**20, 10.0
#: pictures between looks at whether progress is due, where they are encoded
_ENCODED = 16


def prepare(settings: Prepare, *, progress: bool = False, encoder: Encoder | None = None) -> Dataset:
    """Make the data set, resume it, or recognise it; returns it opened. encoder: of ``latents``.

    Raises `InputError` for bad input, naming the item; nothing is then left behind. On a full disk, or killed, what is
    done is kept beside ``out`` as ``OUT.preparing`` and the same call resumes there.
    """
    if settings.dry_run:
        raise InputError("dry_run", "True", "`plan` says what would be made; `prepare` makes it")
    check(settings)
    if not Path(settings.out).name:
        raise InputError("out", settings.out, "name the folder (or .zip) to make")
    planned = plan(settings, progress=progress, encoder=encoder)
    if progress:
        print("".join(f"note: {shown(note, 400)}\n" for note in planned.notes), end="", file=sys.stderr)
    out = followed(settings.out)
    work = Workplace(out, "preparing", planned.flat())
    there = [_recognised(output, planned) for output in planned.outputs()]
    if all(there):
        work.clear()
        return open_dataset(out, argument="out")
    needed = len(planned.chosen) * planned.each * (2 if settings.format == "edm-zip" else 1)
    with work.open(needed, restart=settings.restart) as folder:
        try:
            make(planned, folder, there, progress=progress)
        except UnreadableError:  # it may go better next time
            raise
        except InputError:
            folder.remove()
            raise
        except OSError as error:
            raise work.failure(error) from None
        folder.remove()
    return open_dataset(out, argument="out", verify=False)


def _recognised(output: Output, planned: Plan) -> bool:
    """Whether the data set is there already. Raises `InputError` if something else is."""
    out = output.path
    if not out.exists() or (out.is_dir() and planned.settings.format == "folder" and not any(out.iterdir())):
        return False
    try:
        there = open_dataset(out, argument="out").record
    except InputError as error:
        expected = f"something else is there ({error.value}: {error.expected}); name another one"
        raise InputError("out", str(out), expected) from None
    wanted = {"name": output.name, **planned.identity()}
    odd = differences({part: there.get(part) for part in wanted}, wanted)
    if odd:
        raise InputError("out", str(out), f"it holds another data set ({'; '.join(odd)}); name another one")
    return True


def make(planned: Plan, folder: RunFolder, there: Sequence[bool], *, progress: bool) -> None:
    """Write the arrays and records below ``folder``, then move them to where they belong, ``out`` last.

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
    kinds = [(*planned.made, int(mask.sum())) for mask in masks]
    for part in parts:
        part.mkdir(exist_ok=True)
    done = _done(record)
    behind = [int(mask[:done].sum()) for mask in masks]
    there = [
        Growing.reusable(part / "images.npy", *kind, n) for part, kind, n in zip(parts, kinds, behind, strict=True)
    ]
    if not all(there):
        done, behind = 0, [0] * len(parts)
    for part, mask in zip(parts, masks, strict=True):
        write_labels(part, _labels(planned, mask))
    with contextlib.ExitStack() as stack:
        sized = zip(parts, kinds, behind, strict=True)
        arrays = [stack.enter_context(Growing(part / "images.npy", *kind, n)) for part, kind, n in sized]
        shown = stack.enter_context(bar(progress, len(planned.chosen), "writing", " images", done))
        committed, last = done, time.monotonic()
        decoded = images(
            planned.source, planned.transform, planned.shape, planned.chosen[done:], workers=planned.settings.workers
        )
        for block in decoded if planned.encoder is None else _encoded(decoded, planned.encoder):
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
        raise InputError(SOURCE, planned.settings.source, f"it gave {done} images of {len(planned.chosen)}")


def _encoded(blocks: Iterator[Images], encoder: Encoder) -> Iterator[Images]:
    """Moments of pictures, few enough at a time that little is lost where it is stopped."""
    for block in blocks:
        yield from (encoder(block[k : k + _ENCODED]) for k in range(0, len(block), _ENCODED))


def _carried(planned: Plan, part: Path) -> Autoencoder | None:
    """The autoencoder of latents, on the scale of those in ``part``."""
    if planned.encoder is None:
        return planned.autoencoder
    known = planned.encoder.known
    if planned.encoder.space != "edm2":
        return known
    store = ArrayStore(part / "images.npy", "out")
    step = block_length(store.shape, store.dtype)
    mean, std = measured(store.read(np.arange(k, min(k + step, len(store)))) for k in range(0, len(store), step))
    if min(std) == 0:
        raise InputError(SOURCE, planned.settings.source, "a channel of its latents is the same everywhere")
    return replace(known, mean=mean, std=std)


def _done(record: Path) -> int:
    done = (kept_json(record) or {}).get("done")
    return done if type(done) is int and done >= 0 else 0


def _record(planned: Plan, parts: list[Path], outputs: list[Output], *, progress: bool) -> None:
    """``dataset.json`` of every part."""
    found: list[dict[str, Any]] = []
    carried, known = _carried(planned, parts[-1]), planned.identity()
    more = known if carried is None else {**known, AUTOENCODER: carried.record}
    more["pictures"] = planned.source.pictures
    more["libraries"] = {library: metadata.version(library) for library in ("numpy", "pillow")}
    for part, output in zip(parts, outputs, strict=True):
        with bar(progress, int(output.mask.sum()), "checking", " images") as shown:
            found.append(describe(part, _labels(planned, output.mask), output.name, more, tick=shown.update))
        if carried is not None:
            carried.put(part)
    if len(found) == 2:  # each knows the other, so that nobody evaluates on what was trained on
        for record, other, role in ((found[0], found[1], "held out"), (found[1], found[0], "kept")):
            record["holdout"] = {"this": role, "other": other["name"], "other_sha256": other["sha256"]}
    options = {"provenance": provenance(planned.settings)}
    for part, record in zip(parts, found, strict=True):
        write_json(part / "dataset.json", record)
        write_json(part / OPTIONS, options)


def _labels(planned: Plan, mask: NDArray[np.bool_]) -> NDArray[np.int64] | None:
    """Of the chosen images under ``mask``."""
    return None if planned.source.labels is None else planned.source.labels[planned.chosen][mask]


def _move(part: Path, out: Path, *, zipped: bool, progress: bool) -> None:
    """The whole part under its name, in one step."""
    if zipped:
        record = parse_json("out", str(part), (part / "dataset.json").read_bytes())
        labels = np.load(part / "labels.npy", allow_pickle=False) if (part / "labels.npy").exists() else None
        data = Dataset(part, ArrayStore(part / "images.npy", "out"), labels, record)
        part = part.with_suffix(".zip")
        with bar(progress, len(data), "packing", " images") as shown:
            write_atomic(part, lambda path: write_edm_zip(data, path, tick=shown.update))
        if data.autoencoder is not None:
            data.autoencoder.put(out)
    move(part, out)
