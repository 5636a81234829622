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
from sims_image.archives import check_expansion
from sims_image.sources.base import Block, Encoded, Request, Source, hash_files, numbered
from sims_image.stores import MAX_CLASSES, Labels

_IMAGE_COLUMNS, _LABEL_COLUMNS = (
    ("image", "img", "png", "jpg", "jpeg"),
    ("label", "labels", "class", "cls", "fine_label"),
)
#: rows at a time: few, because a dictionary page may hold one large picture for all of them
_BLOCK = 16


def open_parquet(request: Request) -> Source:
    """A file, or a folder of shards (``train-00000-of-00002.parquet``; what stands before the first '-' is the split).

    The image column holds bytes, or a struct with ``bytes`` (and ``path``, which is not followed). Labels are whole
    numbers (names from Hugging Face's own metadata if they are there) or strings, which are numbered in sorted order;
    a column of -1 or nulls alone, as hidden test labels are, counts as unlabelled.
    """
    path, split = request.path, ""
    if path.is_dir():
        shards = sorted(path.glob("*.parquet"))
        splits = sorted({shard.name.split("-", 1)[0] for shard in shards if "-" in shard.name})
        if splits and all("-" in shard.name for shard in shards):
            split = request.choose_split(sorted(splits, key=lambda name: (name != "train", name)))
            shards = [shard for shard in shards if shard.name.startswith(split + "-")]
        else:
            request.no_split()
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
    label = _label_column(request, schema) if request.labelled else ""
    labels, classes = _labels(request, shards, files, label, schema) if label else (None, [])
    counts = [file.metadata.num_rows for file in files]
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
    )


def _open(request: Request, path: Path) -> pq.ParquetFile:
    try:
        file = pq.ParquetFile(path)
        stored = path.stat().st_size
        for group in range(file.metadata.num_row_groups):
            claimed = file.metadata.row_group(group).total_byte_size
            check_expansion(request.argument, f"{path.name}: row group {group}", claimed, stored)
    except (OSError, pa.ArrowException) as error:
        raise InputError(request.argument, str(path), f"not a whole parquet file ({_first(error)})") from None
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
        return _named(schema, "--image-column", request.image_column, fits, "bytes, or a struct with bytes")
    marked = [name for name, feature in _features(schema).items() if feature.get("_type") == "Image"]
    for name in (*marked, *_IMAGE_COLUMNS):
        if name in schema.names and fits(schema.field(name).type):
            return name
    fitting = [field.name for field in schema if fits(field.type)]
    if len(fitting) == 1:
        return str(fitting[0])
    raise InputError(
        request.argument, str(request.path), f"which column holds pictures? --image-column NAME of {schema.names}"
    )


def _binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _label_column(request: Request, schema: pa.Schema) -> str:
    def fits(kind: pa.DataType) -> bool:
        if pa.types.is_dictionary(kind):
            kind = kind.value_type
        return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))

    if request.label_column:
        return _named(schema, "--label-column", request.label_column, fits, "whole numbers or strings")
    marked = [name for name, feature in _features(schema).items() if feature.get("_type") == "ClassLabel"]
    for name in (*_LABEL_COLUMNS, *marked):
        if name in schema.names and fits(schema.field(name).type):
            return name
    return ""


def _named(schema: pa.Schema, argument: str, name: str, fits: Any, what: str) -> str:
    if name not in schema.names:
        raise InputError(argument, name, f"no such column; there are {', '.join(map(shown, schema.names))}")
    if not fits(schema.field(name).type):
        raise InputError(argument, name, f"must hold {what}, not {schema.field(name).type}")
    return name


def _labels(
    request: Request, shards: list[Path], files: list[pq.ParquetFile], column: str, schema: pa.Schema
) -> tuple[Labels | None, list[str]]:
    item = f"column {shown(column)}"
    try:
        values = pa.chunked_array([chunk for file in files for chunk in file.read(columns=[column])[column].chunks])
    except (OSError, pa.ArrowException) as error:
        raise InputError(request.argument, item, f"damaged ({_first(error)})") from None
    if not len(values):
        raise InputError(request.argument, str(request.path), "there are no images in it")
    if values.null_count == len(values):
        return None, []
    if values.null_count:
        row = next(k for k, valid in enumerate(values.is_valid().to_numpy()) if not valid)
        raise InputError(request.argument, f"row {row}", f"has no label in {item}; --unlabelled goes without")
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    names = _features(schema).get(column, {}).get("names")
    names = [str(name) for name in names] if isinstance(names, list) else None
    if not pa.types.is_integer(values.type):
        texts = np.array(values.to_pylist(), dtype=object).astype(str)
        found, labels = np.unique(texts, return_inverse=True)
        if len(found) > MAX_CLASSES:
            raise InputError(request.argument, item, f"{len(found)} different labels; is it a column of classes?")
        return labels.astype(np.int64), [str(name) for name in found]
    labels = values.cast(pa.int64()).to_numpy()
    if (labels == -1).all():
        return None, []
    count = len(names) if names else int(min(labels.max(), MAX_CLASSES - 1)) + 1
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if len(wrong):
        where = f"is labelled {labels[wrong[0]]} in {item}"
        raise InputError(
            request.argument, f"row {wrong[0]}", f"{where}; with {count} classes labels are 0 to {count - 1}"
        )
    return labels, names or numbered(count)


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
