"""Folders and zips of pictures as people have them: splits beside other files, lone folders, numbers, odd names."""

import json
import os

import numpy as np
import pytest

from sims_core.errors import InputError
from sims_core.lab.command import main_with_errors
from sims_image.commands import run
from sims_image.data.dataset import open_dataset
from sims_image.data.options import Prepare
from sims_image.data.plan import plan
from sims_image.data.prepare import prepare
from sims_image.sampling.seeds import Labels
from tests.image.synthetic import png, tree

#: colour of a picture -> what it is, so that a test sees which pictures were taken
SHADES = {"cat": 10, "dog": 200}


def flat(value, side=8):
    return png(np.full((3, side, side), value, np.uint8))


def made(tmp_path, source, **options):
    return prepare(Prepare(source=str(source), out=str(tmp_path / f"out{len(list(tmp_path.iterdir()))}"), **options))


def shades(data):
    """(class name, mean pixel) of every image."""
    names = [data.classes[k] for k in data.labels] if data.labels is not None else [None] * len(data)
    return sorted(zip(names, data.images(slice(None)).mean((1, 2, 3)).astype(int).tolist(), strict=True))


def notes(source, **options):
    return "\n".join(plan(Prepare(source=str(source), **options)).notes)


BOTH = pytest.mark.parametrize("kind", ["folder", "zip"])


@BOTH
@pytest.mark.parametrize(
    ("train", "test", "val"),
    [("train", "test", "validation"), ("Training", "Testing", "Val"), ("TRAIN", "TEST", "valid"),
     ("training_set", "test_set", "dev"), ("train2017", "test2017", "val2017")],
)  # fmt: skip
def test_splits_are_splits_whatever_lies_beside_them(tmp_path, kind, train, test, val):
    files = {
        f"{split}/{name}/0.png": flat(SHADES[name] + k) for k, split in enumerate((train, test, val)) for name in SHADES
    }
    files |= {"README.md": b"read", "LICENSE": b"free", "labels.csv": b"a,b", "docs/a.txt": b"x", ".git/HEAD": b"x"}
    source = tree(tmp_path, files, kind)
    data = made(tmp_path, source)
    assert data.classes == ["cat", "dog"] and shades(data) == [("cat", 10), ("dog", 200)]
    assert data.record["source"]["split"] == "train" and "splits train, test, val: train is taken" in notes(source)
    for split, k in (("test", 1), ("val", 2)):
        assert shades(made(tmp_path, source, split=split)) == [("cat", 10 + k), ("dog", 200 + k)]
    assert shades(made(tmp_path, source, split=val)) == [("cat", 12), ("dog", 202)]  # by the folder's own name
    with pytest.raises(InputError, match=r"^split: got 'extra'.*train, test, val"):
        made(tmp_path, source, split="extra")


@BOTH
def test_classes_that_are_called_like_splits_wait_for_a_word(tmp_path, kind):
    files = {f"{name}/0.png": flat(k) for k, name in enumerate(("bus", "car", "train"))}
    source = tree(tmp_path, files, kind)
    with pytest.raises(InputError, match="'train' is called like a split, 'bus' beside it is not; `split` none"):
        made(tmp_path, source)
    assert shades(made(tmp_path, source, split="none")) == [("bus", 0), ("car", 1), ("train", 2)]
    assert shades(made(tmp_path, source, split="train")) == [(None, 2)]


@BOTH
@pytest.mark.parametrize("names", [("seg_train", "seg_test", "seg_pred"), ("trainA", "trainB", "testA", "testB")])
def test_folders_that_speak_of_splits_wait_for_a_word(tmp_path, kind, names):
    source = tree(tmp_path, {f"{name}/{k}.png": flat(k) for k, name in enumerate(names)}, kind)
    with pytest.raises(InputError, match="are called like splits; `split` NAME takes the folder NAME"):
        made(tmp_path, source)
    assert shades(made(tmp_path, source, split=names[1])) == [(None, 1)]
    assert made(tmp_path, source, split="none").classes == sorted(names)


@BOTH
def test_a_word_of_a_class_is_no_split(tmp_path, kind):
    source = tree(tmp_path, {f"{name}/0.png": flat(1) for name in ("steam train", "tube cap", "car")}, kind)
    assert made(tmp_path, source).classes == ["car", "steam train", "tube cap"]


@BOTH
def test_splits_below_class_folders(tmp_path, kind):
    files = {
        f"{name}/{split}/0.png": flat(SHADES[name] + k) for k, split in enumerate(("train", "test")) for name in SHADES
    }
    source = tree(tmp_path, files, kind)
    assert shades(made(tmp_path, source)) == [("cat", 10), ("dog", 200)] and "below the class folders" in notes(source)
    assert shades(made(tmp_path, source, split="test")) == [("cat", 11), ("dog", 201)]
    assert len(made(tmp_path, source, split="none")) == 4


@BOTH
def test_two_folders_for_one_split(tmp_path, kind):
    source = tree(tmp_path, {"val/a/0.png": flat(1), "validation/a/0.png": flat(2)}, kind)
    with pytest.raises(InputError, match="'val' and 'validation' are both called so"):
        made(tmp_path, source)
    assert shades(made(tmp_path, source, split="validation")) == [(None, 2)]


@BOTH
@pytest.mark.parametrize("above", ["pets/", "a/b/c/", "Kaggle pets (v2)/archive/"])
def test_lone_folders_are_stepped_into(tmp_path, kind, above):
    files = {f"{above}{name}/0.png": flat(shade) for name, shade in SHADES.items()}
    files |= {f"__MACOSX/{above}cat/._0.png": b"junk", f"{above}README": b"x", ".DS_Store": b"x", "Thumbs.db": b"x"}
    source = tree(tmp_path, files, kind)
    data = made(tmp_path, source)
    assert data.classes == ["cat", "dog"] and shades(data) == [("cat", 10), ("dog", 200)]
    assert "passed over, as the system's own: Thumbs.db, __MACOSX" in notes(source)
    listed = {"labels": [["cat/0.png", 1], ["dog/0.png", 0]]}
    source = tree(tmp_path, files | {f"{above}dataset.json": json.dumps(listed).encode()}, kind)
    assert shades(made(tmp_path, source)) == [("0", 200), ("1", 10)]


@BOTH
def test_systems_own_folders_are_no_classes(tmp_path, kind):
    files = {f"{name}/0.png": flat(shade) for name, shade in SHADES.items()}
    files |= {"@eaDir/SYNO_1.jpg": b"x", "cat/@eaDir/0.png": b"x", "$RECYCLE.BIN/0.png": b"x", "cat/._0.png": b"x"}
    source = tree(tmp_path, files, kind)
    assert made(tmp_path, source).classes == ["cat", "dog"]
    assert "the system's own: $RECYCLE.BIN, ._0.png, @eaDir" in notes(source)


@BOTH
def test_class_folders_that_are_numbers_stand_in_their_order(tmp_path, kind):
    source = tree(tmp_path, {f"{k}/0.png": flat(20 * k + 10) for k in range(12)}, kind)
    data = made(tmp_path, source)
    assert data.classes == [str(k) for k in range(12)] and "torchvision" in notes(source)
    assert data.images(slice(None)).mean((1, 2, 3)).tolist() == [20 * k + 10 for k in data.labels]


NAMES = ["kätzchen", "日本語", "naïve dog", "a" * 200, "tab\there", "semi;colon", "wet\\dog", "emoji🐈", "cat, tabby"]


@BOTH
def test_names_are_stored_as_they_are(tmp_path, kind):
    names = [name for name in NAMES if kind == "folder" or "\\" not in name]
    source = tree(tmp_path, {f"{name}/0.png": flat(k) for k, name in enumerate(names)}, kind)
    data = open_dataset(made(tmp_path, source).path)
    assert sorted(data.classes) == sorted(names)
    assert {name: shade for name, shade in shades(data)} == {name: k for k, name in enumerate(names)}
    for name in names:
        labels = Labels.parse(name, len(names), names=data.classes)
        assert labels.classes == (data.classes.index(name),)


def test_names_are_escaped_where_they_are_printed(tmp_path, capsys):
    source = tree(tmp_path, {"kätzchen/0.png": flat(1), "bad\x1b[31m/0.png": flat(2)}, "folder")
    assert main_with_errors(run, ["prepare", str(source), "--dry-run"]) == 0
    assert main_with_errors(run, ["prepare", str(source), "--out", str(tmp_path / "x")]) == 0
    assert main_with_errors(run, ["info", str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    assert "kätzchen" in out and "\x1b" not in out and r"bad\x1b[31m" in out


def test_names_that_are_not_utf8(tmp_path):
    """Linux takes any bytes as a name; they come back out of dataset.json as they were."""
    for name in (b"caf\xe9", b"dog"):
        folder = bytes(tmp_path) + b"/in/" + name
        os.makedirs(folder)
        with open(folder + b"/0.png", "wb") as handle:
            handle.write(flat(3))
    data = made(tmp_path, tmp_path / "in")
    assert [name.encode("utf-8", "surrogateescape") for name in data.classes] == [b"caf\xe9", b"dog"]
    assert open_dataset(data.path).classes == data.classes


def test_what_is_not_read_is_told(tmp_path):
    files = {f"{name}_{k:03d}.png": flat(k) for k, name in enumerate(["cat", "dog"] * 4)}
    source = tree(tmp_path, files, "folder")
    assert "names begin with 2 words (cat, dog)" in notes(source) and made(tmp_path, source).labels is None
    source = tree(tmp_path, files | {"metadata.csv": b"file_name,label\n"}, "folder")
    assert "labels in metadata.csv are not read: sort the pictures into class folders" in notes(source)
    source = tree(tmp_path, {"dataset.json": b'{"title": "pets"}', **{f"a{n}/0.png": flat(n) for n in "12"}}, "zip")
    assert made(tmp_path, source).classes == ["a1", "a2"] and "dataset.json first" in notes(source)


def test_prepare_says_how_many_classes(tmp_path, capsys):
    for k, (files, words) in enumerate((({"a/0.png": flat(1), "b/0.png": flat(2)}, "2 classes"),
                                        ({"0.png": flat(1), "1.png": flat(2)}, "no labels"))):  # fmt: skip
        (tmp_path / str(k)).mkdir()
        source = tree(tmp_path / str(k), files, "zip")
        assert main_with_errors(run, ["prepare", str(source), "--out", str(tmp_path / f"x{k}")]) == 0
        assert f"2 images 3x8x8 uint8, {words}, sha256" in capsys.readouterr().out.splitlines()[-1]


def test_classes_without_images_are_named_and_not_drawn(tmp_path, capsys):
    listed = {"labels": [[f"{k}.png", label] for k, label in enumerate((0, 7, 9, 9))]}
    files = {f"{k}.png": flat(k) for k in range(4)} | {"dataset.json": json.dumps(listed).encode()}
    source = tree(tmp_path, files, "zip")
    words = "7 of 10 classes have no images: 1, 2, 3, 4, 5, 6, 8"
    assert words in notes(source)
    data = made(tmp_path, source)
    assert main_with_errors(run, ["info", str(data.path)]) == 0 and words in capsys.readouterr().out
    from sims_core.seeds import Seed

    for policy in ("uniform", "balanced"):
        for labels in (Labels.parse(policy, 10, data=data), Labels.parse(policy, 10, empty=data.empty)):
            drawn = np.bincount(labels(Seed(0), range(3000)), minlength=10)
            assert set(np.flatnonzero(drawn)) == {0, 7, 9} and np.abs(drawn[[0, 7, 9]] - 1000).max() < 5 * 26  # 5 sd


# ------------------------------------------------------------ --labels


@pytest.mark.parametrize(
    ("names", "text", "classes"),
    [
        ([str(k) for k in range(12)], "2,10", (2, 10)),
        (sorted(str(k) for k in range(12)), "2,10", (4, 2)),  # as torchvision stores them: "2" is the class called so
        ([str(k) for k in range(1, 1001)], "1,1000", (0, 999)),
        (["cat", "dog"], "dog,0", (1, 0)),
        (["1", "0"], "0", (1,)),
        (["tench, Tinca tinca", "cat"], "cat,tench, Tinca tinca,cat", (1, 0, 1)),
        ((), "3", (3,)),
    ],
)
def test_a_word_that_is_a_class_name_is_that_class(names, text, classes):
    assert Labels.parse(text, len(names) or 10, names=names).classes == classes


@pytest.mark.parametrize(
    ("names", "text", "match"),
    [
        ([str(k) for k in range(1, 1001)], "0", "no class is called so; classes are called 1, 2, 3, ... 1000"),
        (["2", "other", "0"], "1", "no class is called so"),
        (["cat", "dog"], "2", "by name or number"),
        (["cat", "dog"], "²", "by name or number"),
        (["cat", "dog"], "cat,", "by name or number"),
    ],
)
def test_numbers_that_disagree_with_names_are_refused(names, text, match):
    with pytest.raises(InputError, match=match):
        Labels.parse(text, len(names), names=names)
