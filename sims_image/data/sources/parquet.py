"""Parquet files as Hugging Face's `datasets` writes them: a column of encoded pictures, and one of labels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from sims_core.errors import InputError, reason, shown
from sims_image.data.archives import check_expansion, impostor_at, passed_over
from sims_image.data.sources.base import Block, Encoded, Request, Source, hash_files, numbered, ordered
from sims_image.data.sources.layout import split_of
from sims_image.data.stores import MAX_CLASSES, Labels

_IMAGE_COLUMNS = ("image", "img", "png", "jpg", "jpeg")
_LABEL_COLUMNS = (
    *("label", "labels", "class", "cls", "fine_label", "class_id", "class_label", "class_name", "coarse_label"),
    *("target", "category"),
)
#: rows at a time: few, because a dictionary page may hold one large picture for all of them
_BLOCK = 16


def open_parquet(request: Request) -> Source:
    """A file, or a folder of shards at any depth, as a clone from the Hub has them.

    What stands before the first '-' of a shard's name is its split (``train-00000-of-00002.parquet``), else its name or
    folder if called like one (``default/train/0000.parquet``). The image column holds bytes, or a struct with ``bytes``
    (and ``path``, which is not followed). Labels are whole numbers (names from Hugging Face's own metadata if they are
    there), truth values or strings, which are numbered in their order; a column of -1 or nulls alone, as hidden test
    labels are, counts as unlabelled.
    """
    path, split, notes = request.path, "", list[str]()
    if path.is_dir():
        shards, split, notes = _shards(request)
    else:
        request.no_split()
        shards = [path]
    digest = hash_files(request, shards)
    files = [_open(request, shard) for shard in shards]
    schema = files[0].schema_arrow
    for shard, file in zip(shards, files, strict=True):
        if not file.schema_arrow.equals(schema):
            raise InputError(request.argument, str(shard), "its columns differ from the first file's")
    image = _image_column(request, schema)
    labels: Labels | None = None
    classes: list[str] = []
    if request.labelled:
        label, note = _label_column(request, schema)
        notes += [note] if note else []
        if label:
            labels, classes, more = _labels(request, files, label, schema)
            notes += more
    counts = [file.metadata.num_rows for file in files]
    if not sum(counts):
        raise InputError(request.argument, str(path), "there are no images in it")
    name = path.resolve().name if path.is_dir() else path.name.split(".")[0]
    return Source(
        kind="parquet",
        name=f"{name}-{split}" if split not in ("", "train") else name,
        split=split,
        count=sum(counts),
        labels=labels,
        classes=classes,
        sha256=digest,
        sha256_of="the file" if len(shards) == 1 else "the list of its files' sha256",
        read=lambda indices: _read(request, shards, image, indices),
        item="row {}".format,
        notes=tuple(notes),
    )


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files below a folder, hidden ones and those below hidden folders left out."""
    found = folder.glob("**/*.parquet")
    return sorted(file for file in found if not any(map(passed_over, file.relative_to(folder).parts)))


def _shards(request: Request) -> tuple[list[Path], str, list[str]]:
    """The shards of the split asked for, its name, and notes. Raises `InputError` for several data sets in one."""
    path, found = request.path, dict[tuple[str, str], list[Path]]()
    for shard in parquet_files(path):
        *above, name = shard.relative_to(path).parts
        stem = name.removesuffix(".parquet")
        split = stem.split("-", 1)[0] if "-" in stem else stem if split_of(stem) else ""
        if not split and above and split_of(above[-1].removeprefix("partial-")):
            split = above.pop().removeprefix("partial-")
        found.setdefault(("/".join(above), split), []).append(shard)
    sets, splits = sorted({above for above, _ in found}), sorted({split for _, split in found})
    if len(sets) > 1:
        expected = f"parquet files of several data sets ({', '.join(map(shown, sets[:5]))}); name the folder of one"
        raise InputError(request.argument, str(path), expected)
    if splits == [""]:
        return found[sets[0], request.no_split()], "", []
    if "" in splits:
        expected = f"'{found[sets[0], ''][0].name}' belongs to no split, others to '{splits[1]}'; name one file"
        raise InputError(request.argument, str(path), expected)
    order = sorted(splits, key=lambda name: (split_of(name) != "train", name))
    like = [name for name in order if request.split and split_of(name) == split_of(request.split) != ""]
    split = like[0] if len(like) == 1 and request.split not in order else request.choose_split(order)
    note = f"splits {', '.join(map(shown, order))}: {shown(split)} is taken (--split)"
    return found[sets[0], split], split, [note] if len(order) > 1 and not request.split else []


def _open(request: Request, path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
        stored = path.stat().st_size
        for group in range(file.metadata.num_row_groups):
            claimed = file.metadata.row_group(group).total_byte_size
            check_expansion(request.argument, f"{path.name}: row group {group}", claimed, stored)
    except (OSError, pa.ArrowException) as error:
        what = impostor_at(path)
        expected = f"not a parquet file: it is {what}" if what else f"not a whole parquet file ({_first(error)})"
        raise InputError(request.argument, str(path), expected) from None
    return file


def _first(error: BaseException) -> str:
    return reason(error).split("\\n")[0]


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Hugging Face's description of the columns, {} if there is none."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return {k: v for k, v in found.items() if isinstance(v, dict)} if isinstance(found, dict) else {}


def _image_column(request: Request, schema: pa.Schema) -> str:
    def fits(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(f.name == "bytes" and _binary(f.type) for f in kind)
        return _binary(kind)

    if request.image_column:
        return _named(schema, "image_column", request.image_column, fits, "bytes, or a struct with bytes")
    marked = [name for name, feature in _features(schema).items() if feature.get("_type") == "Image"]
    for name in (*marked, *_IMAGE_COLUMNS):
        if name in schema.names and fits(schema.field(name).type):
            return name
    fitting = [field.name for field in schema if fits(field.type)]
    if len(fitting) == 1:
        return str(fitting[0])
    raise InputError(
        request.argument, str(request.path), f"which column holds pictures? `image_column` NAME of {schema.names}"
    )


def _binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _label_column(request: Request, schema: pa.Schema) -> tuple[str, str]:
    """The column of labels ('' if there is none), and a note. Raises `InputError` for one that cannot be classes."""
    if request.label_column:
        what = "whole numbers, truth values or strings"
        return _named(schema, "label_column", request.label_column, _labelling, what), ""
    marked = [name for name, feature in _features(schema).items() if feature.get("_type") == "ClassLabel"]
    called = [name for name in dict.fromkeys((*_LABEL_COLUMNS, *marked)) if name in schema.names]
    fitting = [name for name in called if _labelling(schema.field(name).type)]
    if called and not fitting:
        words = f"holds {schema.field(called[0]).type}: classes are whole numbers, truth values or strings;"
        expected = f"{words} `label_column` names another column, `unlabelled` goes without"
        raise InputError(request.argument, f"column {shown(called[0])}", expected)
    if not called:
        return "", f"no column of labels among {', '.join(map(shown, schema.names))}; --label-column names one"
    others = ", ".join(map(shown, fitting[1:]))
    return fitting[0], f"labels are column {fitting[0]}; --label-column takes another ({others})" if others else ""


def _labelling(kind: pa.DataType) -> bool:
    """Whether values of this type can be classes; of numbers and lists, their values decide."""
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    known = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_null)
    return any(fits(kind) for fits in (*known, pa.types.is_string, pa.types.is_large_string))


def _named(schema: pa.Schema, argument: str, name: str, fits: Any, what: str) -> str:
    if name not in schema.names:
        raise InputError(argument, name, f"no such column; there are {', '.join(map(shown, schema.names))}")
    if not fits(schema.field(name).type):
        raise InputError(argument, name, f"must hold {what}, not {schema.field(name).type}")
    return name


def _labels(
    request: Request, files: list[pq.ParquetFile], column: str, schema: pa.Schema
) -> tuple[Labels | None, list[str], list[str]]:
    """Labels, the classes' names, and notes."""
    item = f"column {shown(column)}"
    try:
        read = [chunk for file in files for chunk in file.read(columns=[column])[column].chunks]
        values = pa.chunked_array(read, type=schema.field(column).type)
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
    except (OSError, pa.ArrowException) as error:
        raise InputError(request.argument, item, f"damaged ({_first(error)})") from None
    if values.null_count == len(values):
        return None, [], [f"no labels: {item} is empty"] if len(values) else []
    if values.null_count:
        row = next(k for k, valid in enumerate(values.is_valid().to_numpy()) if not valid)
        raise InputError(request.argument, f"row {row}", f"has no label in {item}; `unlabelled` goes without")
    names = _features(schema).get(column, {}).get("names")
    names = [str(name) for name in names] if isinstance(names, list) else None
    labels = np.array(values.to_pylist(), dtype=object)
    if labels.ndim > 1 or isinstance(labels[0], list):
        row = next((k for k, label in enumerate(labels) if len(label) != 1), -1)
        if row >= 0:
            words = f"has {len(labels[row])} labels in {item}; one per image is read, `unlabelled` goes without"
            raise InputError(request.argument, f"row {row}", words)
        labels = np.array([label[0] for label in labels], dtype=object)
    if isinstance(labels[0], str):
        found = ordered(set(labels))
        if len(found) > MAX_CLASSES:
            raise InputError(request.argument, item, f"{len(found)} different labels; is it a column of classes?")
        place = {name: k for k, name in enumerate(found)}
        return np.array([place[label] for label in labels], np.int64), found, []
    if isinstance(labels[0], bool):
        return labels.astype(np.int64), ["false", "true"], []
    return _numbers(request, item, labels, names)


def _numbers(
    request: Request, item: str, labels: NDArray[np.object_], names: list[str] | None
) -> tuple[Labels | None, list[str], list[str]]:
    """Whole numbers, as whatever type they came, as `_labels` returns them."""
    if (labels == -1).all():
        return None, [], [f"no labels: {item} holds -1 alone, as hidden labels do"]
    largest = max((label for label in labels if label == label), default=0)
    count = len(names) if names else int(min(largest, MAX_CLASSES - 1)) + 1
    wrong = next((k for k, label in enumerate(labels) if not (0 <= label < count and label == int(label))), -1)
    if wrong >= 0:
        words = (
            f"is labelled {labels[wrong]} in {item}; labels are whole numbers, with {count} classes 0 to {count - 1}"
        )
        raise InputError(request.argument, f"row {wrong}", words)
    return labels.astype(np.int64), names or numbered(count), []


def _read(request: Request, shards: list[Path], column: str, indices: NDArray[np.int64]) -> Iterator[Block]:
    """Pictures at increasing ``indices``; row groups without any are not read."""
    start = 0
    for shard in shards:
        file = _open(request, shard)
        for group in range(file.metadata.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            wanted = indices[np.searchsorted(indices, start) : np.searchsorted(indices, stop)]
            if len(wanted):
                yield from _group(request, shard, file, group, column, wanted, start)
            start = stop


def _group(
    request: Request, shard: Path, file: pq.ParquetFile, group: int, column: str, wanted: NDArray[np.int64], start: int
) -> Iterator[Block]:
    try:
        for batch in file.iter_batches(_BLOCK, row_groups=[group], columns=[column]):
            stop = start + len(batch)
            rows = wanted[np.searchsorted(wanted, start) : np.searchsorted(wanted, stop)]
            if len(rows):
                found = batch.column(0).take(pa.array(rows - start)).to_pylist()
                yield [_encoded(request, int(row), value) for row, value in zip(rows, found, strict=True)]
            start = stop
    except (OSError, pa.ArrowException) as error:
        raise InputError(request.argument, f"{shard.name}: row group {group}", f"damaged ({_first(error)})") from None


def _encoded(request: Request, row: int, value: Any) -> Encoded:
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        expected = "has no picture of its own (paths to files are not followed)"
        raise InputError(request.argument, f"row {row}", expected)
    return Encoded(f"row {row}", lambda: data)
