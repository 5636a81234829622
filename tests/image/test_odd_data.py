"""Odd data sets, generated: labels x layouts x containers, and spoiled files. The right result, or one line."""

import io
import itertools
import json
import os
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sims_core.lab.command import main_with_errors
from sims_image.commands import run
from sims_image.data.dataset import open_dataset
from tests.image.synthetic import idx, png, tree

#: names of classes, of which the k-th has the shades 20k + 1 and 20k + 2
LABELS = {
    "words": ["ant", "bee", "cat"],
    "numbers": [str(k) for k in (0, 1, 2, 10, 11)],
    "numbers from 1": [str(k) for k in range(1, 12)],
    "padded numbers": ["000", "001", "002"],
    "not ascii": ["kätzchen", "日本", "ñandú"],
    "spaces and signs": ["a b", "c,d", "e=f", "(g)"],
    "like policies": ["data", "uniform"],
    "capitals": ["Ant", "ant2", "BEE"],
    "one": ["only"],
    "like splits": ["train", "test"],
    "one like a split": ["bus", "train"],
}
#: where a picture of class c lies, and what lies beside
LAYOUTS = {
    "plain": (lambda c: f"{c}/", {}),
    "one top": (lambda c: f"top/{c}/", {}),
    "two tops, macOS": (lambda c: f"a/b/{c}/", {"__MACOSX/a/b/._x.png": b"x", "a/.DS_Store": b"x"}),
    "splits": (lambda c: f"train/{c}/", {"test/zzz/1.png": png(np.full((1, 8, 8), 255, np.uint8))}),
    "splits, README": (
        lambda c: f"Training/{c}/",
        {
            "Testing/zzz/1.png": png(np.full((1, 8, 8), 255, np.uint8)),
            "README.md": b"x",
            "LICENSE": b"x",
            "x.csv": b"x",
        },
    ),
    "top, splits, train again": (
        lambda c: f"set/train/train/{c}/",
        {"set/val/val/zzz/1.png": png(np.full((1, 8, 8), 255, np.uint8)), "set/info.json": b"{}"},
    ),
    "Synology": (lambda c: f"{c}/", {"@eaDir/x.png": b"x", "#recycle/y.png": b"x"}),
    "deep below classes": (lambda c: f"{c}/day 1/", {}),
    "upper case endings": (lambda c: f"{c}/", {"Thumbs.db": b"x"}),
}


def shade(value):
    return png(np.full((1, 8, 8), value, np.uint8))


def pictures(names, layout):
    """path -> bytes, and the truth: (class, shade) of what is to be read."""
    place, beside = LAYOUTS[layout]
    end = ".PNG" if layout == "upper case endings" else ".png"
    files, truth = dict(beside), []
    for k, name in enumerate(names):
        for copy in (1, 2):
            files[f"{place(name)}{copy}{end}"] = shade(20 * k + copy)
            truth.append((name, 20 * k + copy))
    return files, sorted(truth)


def prepared(tmp_path, source, capsys, *words):
    """The data set, or the one line by which the command refuses, leaving nothing."""
    out = tmp_path / "out"
    code = main_with_errors(run, ["prepare", str(source), "--out", str(out), *words])
    said = capsys.readouterr()
    if code == 0:
        assert "classes, sha256" in said.out.splitlines()[-1] or "no labels, sha256" in said.out.splitlines()[-1]
        return open_dataset(out)
    line = said.err.replace("\r", "\n").strip().splitlines()[-1].strip()
    assert code == 2 and line.startswith("error: ") and len(line) < 700 and line.isprintable(), said.err
    assert "Traceback" not in said.err and not out.exists() and not (tmp_path / "out.preparing").exists()
    return line


def read(data):
    names = [None] * len(data) if data.labels is None else [data.classes[k] for k in data.labels]
    return sorted(zip(names, data.images(slice(None))[:, 0, 0, 0].tolist(), strict=True), key=str)


FOLDERS = list(itertools.product(LABELS, LAYOUTS, ("folder", "zip")))


@pytest.mark.parametrize(
    ("labels", "layout", "container"), FOLDERS[::3] + [c for c in FOLDERS[1::3] if "split" in c[0]]
)
def test_folders_and_zips(tmp_path, capsys, labels, layout, container):
    names = LABELS[labels]
    files, truth = pictures(names, layout)
    found = prepared(tmp_path, tree(tmp_path, files, container, zipfile.ZIP_DEFLATED), capsys)
    within = layout in ("splits", "splits, README", "top, splits, train again")  # then names below mean nothing else
    if labels == "one like a split" and not within:
        assert "--split none makes each of them a class" in found
        found = prepared(tmp_path, tmp_path / ("in.zip" if container == "zip" else "in"), capsys, "--split", "none")
    if labels == "like splits" and not within:
        assert read(found) == [(None, 1), (None, 2)]  # the first split's pictures
        return
    if labels == "one":
        truth = [(None, value) for _, value in truth]
    assert read(found) == sorted(truth, key=str)
    if found.labels is not None:
        numeric = all(name.isdecimal() for name in names)
        assert found.classes == sorted(names, key=int if numeric else str)


# ------------------------------------------------------------ other containers

NUMBERS = {
    "none": None,
    "from 0": [0, 1, 2, 0, 1, 2],
    "from 1": [1, 2, 3, 1, 2, 3],
    "gaps": [0, 7, 9, 9, 7, 0],
    "one": [0] * 6,
}
STACK = np.arange(6, dtype=np.uint8)[:, None, None, None] * 20 + np.zeros((6, 3, 8, 8), np.uint8)


def npz(path, labels):
    np.savez(path / "a.npz", STACK.transpose(0, 2, 3, 1), *([] if labels is None else [np.array(labels)]))
    return path / "a.npz"


def grey_npz(path, labels):
    named = {} if labels is None else {"y_train": np.array(labels)[:, None]}
    np.savez_compressed(path / "a.npz", x_train=STACK[:, 0], **named)
    return path / "a.npz"


def npy(path, labels):
    assert labels is None
    np.save(path / "a.npy", STACK)
    return path / "a.npy"


def parquet(path, labels, kind=None, name="label"):
    columns = {} if labels is None else {name: pa.array(labels, kind) if kind != "text" else [f"c{k}" for k in labels]}
    pq.write_table(pa.table({"image": [{"bytes": png(image), "path": "x"} for image in STACK], **columns}), path)
    return path


def clone(path, labels):
    (path / "repo" / "data").mkdir(parents=True)
    parquet(path / "repo" / "data" / "train-00000-of-00001.parquet", labels)
    parquet(path / "repo" / "data" / "test-00000-of-00001.parquet", [5] * 6)
    (path / "repo" / "README.md").write_text("x")
    return path / "repo"


def idx_folder(path, labels):
    into = path / "MNIST" / "raw"
    into.mkdir(parents=True)
    idx(into / "train-images-idx3-ubyte.gz", STACK[:, 0])
    idx(into / "train-labels-idx1-ubyte", np.array(labels, np.uint8))
    return path / "MNIST"


def listed(path, labels, kind):
    names = [f"0000{k % 2}/img{k}.png" for k in range(6)]
    files = {f"top/{name}": png(image) for name, image in zip(names, STACK, strict=True)}
    content = None if labels is None else [[name, k] for name, k in zip(names, labels, strict=True)]
    files["top/dataset.json"] = json.dumps({"labels": content}).encode()
    return tree(path, files, kind, zipfile.ZIP_DEFLATED)


CONTAINERS = {
    "npz": npz,
    "grey npz": grey_npz,
    "npy": npy,
    "parquet": lambda path, labels: parquet(path / "a.parquet", labels),
    "parquet, float": lambda path, labels: parquet(path / "a.parquet", labels, pa.float64()),
    "parquet, uint64": lambda path, labels: parquet(path / "a.parquet", labels, pa.uint64(), "class_id"),
    "parquet, text": lambda path, labels: parquet(path / "a.parquet", labels, "text"),
    "parquet, lists": lambda path, labels: parquet(path / "a.parquet", labels and [[k] for k in labels]),
    "clone": clone,
    "idx": idx_folder,
    "listed folder": lambda path, labels: listed(path, labels, "folder"),
    "listed zip": lambda path, labels: listed(path, labels, "zip"),
}
PAIRS = [
    pair for pair in itertools.product(CONTAINERS, NUMBERS)
    if not (pair[0] == "npy" and pair[1] != "none") and pair != ("idx", "none")
]  # fmt: skip


@pytest.mark.parametrize(("container", "numbers"), PAIRS)
def test_other_containers(tmp_path, capsys, container, numbers):
    labels = NUMBERS[numbers]
    found = prepared(tmp_path, CONTAINERS[container](tmp_path, labels), capsys)
    shades = found.images(slice(None)).max((1, 2, 3)).tolist()
    told = [None] * 6 if found.labels is None else [found.classes[k] for k in found.labels]
    name = "c{}" if container == "parquet, text" else "{}"
    wanted = [None] * 6 if labels is None else [name.format(k) for k in labels]
    truth = list(zip([20 * k for k in range(6)], wanted, strict=True))
    assert sorted(zip(shades, told, strict=True), key=str) == sorted(truth, key=str)
    missing = set() if labels is None or container == "parquet, text" else set(range(max(labels) + 1)) - set(labels)
    assert found.empty == sorted(missing)


# ------------------------------------------------------------ spoiled


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("how", ["cut", "empty", "flipped", "text", "zeros"])
def test_spoiled_files_end_in_one_line_or_the_right_result(tmp_path, capsys, container, how):
    """Whichever file of it is spoiled: nothing is read wrong, nothing is a traceback."""
    source = CONTAINERS[container](tmp_path, None if container == "npy" else [0, 1, 2, 0, 1, 2])
    rng = np.random.default_rng([*container.encode(), *how.encode()])
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    for path in files:
        whole = path.read_bytes()
        flipped = bytearray(whole)
        for place in rng.integers(0, len(whole), 3):
            flipped[place] ^= int(rng.integers(1, 256))
        spoiled = {
            "cut": whole[: len(whole) * 2 // 3],
            "empty": b"",
            "flipped": bytes(flipped),
            "text": b"hello, this is a text\n" * 3,
            "zeros": bytes(len(whole)),
        }
        path.write_bytes(spoiled[how])
        found = prepared(tmp_path, source, capsys)
        if not isinstance(found, str):  # a flip that no format checks: a pixel, or a byte that plays no part
            assert how == "flipped" or "README" in path.name or "test" in path.name
            assert found.shape[1:] == (8, 8) and len(found) == 6
            for file in (tmp_path / "out").iterdir():
                os.unlink(file)
            (tmp_path / "out").rmdir()
        path.write_bytes(whole)


def test_odd_points(tmp_path, capsys):
    """The toy's files: the right points, or one line."""
    from sims_core.errors import InputError
    from sims_toy.datasets import parse_real

    points = np.random.default_rng(0).normal(size=(20, 2)).round(3)
    text = io.StringIO()
    np.savetxt(text, points, delimiter=",", fmt="%.3f")
    lines = text.getvalue()
    marks, headers, ends = ("", "\ufeff"), ("", "x,y\n", "0,1\n", '"a","b"\n', "x,1\n", "\n\n"), ("\n", "\r\n")
    for mark, header, end in itertools.product(marks, headers, ends):
        (tmp_path / "a.csv").write_bytes((mark + header + lines).replace("\n", end).encode())
        if header == "x,1\n":
            with pytest.raises(InputError) as caught:
                parse_real(str(tmp_path / "a.csv"))
            assert "\n" not in str(caught.value)
        else:
            real = parse_real(str(tmp_path / "a.csv"))
            assert sorted(map(tuple, real.reference)) == sorted(map(tuple, points))
    for unit, origin in itertools.product((1e-90, 1e-3, 1, 255, 1e90), (0, 1, -50, 1e4)):
        np.save(tmp_path / "a.npy", points * unit + origin * unit)
        inner = parse_real(str(tmp_path / "a.npy")).standard
        assert abs(inner.spread - 1) < 1e-6 and np.abs(inner.reference.mean(0)).max() < 1e-6
