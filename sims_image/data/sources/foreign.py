"""What lies where pictures were expected: data sets in other formats, in words."""

from __future__ import annotations

import re
from collections.abc import Iterable

from sims_core.errors import shown

_HERE = "name it, or the folder that it lies in"
#: how paths end, and what such files are
_KNOWN = (
    (r"dataset_info\.json|.*\.arrow", "Arrow files of save_to_disk (`datasets`); its to_parquet writes what is read"),
    (r".*\.parquet", f"parquet: {_HERE}"),
    (r".*images[-_.]idx3[-_.]ubyte(\.gz)?", f"IDX files as MNIST's: {_HERE}"),
    (r"(data_batch_1|batches\.meta|meta)", f"CIFAR's batches: {_HERE}"),
    (r"(data_batch_1|test_batch|train|test)\.bin", "CIFAR's binary version, which is not read; take the python one"),
    (r"(train_data_batch_\d+|val_data)(\.npz)?", f"downsampled ImageNet: {_HERE}"),
    (r"images\.npy", f"a data set of this project: {_HERE}"),
    (r".*\.np[yz]", "numpy's arrays: name the file"),
    (r".*\.(tar|tar\.gz|tgz|zip|7z|rar)", "an archive: name it if it is a zip of pictures or CIFAR's, else unpack it"),
    (r".*\.tfrecords?.*", "TFRecord files, which are not read; write the pictures into class folders, or parquet"),
    (r".*\.(mdb|lmdb)", "an LMDB database, which is not read; write the pictures into class folders, or parquet"),
    (r".*\.(h5|hdf5|mat|beton|bin|rec|pt|pth|pkl)", "a format that is not read; take class folders, parquet or .npz"),
    (r".*\.(csv|jsonl?)", "tables, which are not read as pictures; write PNGs into class folders, or parquet"),
)


def recognised(names: Iterable[str]) -> tuple[str, str]:
    """The first known file among ``names`` (paths with forward slashes) and what it is, in words; '' and '' if none."""
    inside = sorted(names)
    for pattern, words in _KNOWN:
        for name in inside:
            if re.fullmatch(pattern, name.rsplit("/", 1)[-1], re.IGNORECASE):
                return name, words
    return "", ""


def hint(names: Iterable[str]) -> str:
    """`recognised` as the end of a message."""
    name, words = recognised(names)
    return f"; {shown(name)} is there: {words}" if name else ""
