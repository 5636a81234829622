"""Every source becomes the data set that its own format says, and the work can be stopped anywhere."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from sims_core.errors import InputError
from sims_core.lab.command import main_with_errors
from sims_core.lab.config import OPTIONS
from sims_image.commands import run
from sims_image.data.dataset import open_dataset
from sims_image.data.options import Prepare
from sims_image.data.plan import plan
from sims_image.data.prepare import prepare
from tests.image.ranks import PEAK, launch
from tests.image.synthetic import CIFAR_NAMES, cifar_members, cifar_tar, edm_zip, folder, idx, imagenet, pixels, png


def made(tmp_path, source, out="out", **options):
    return prepare(Prepare(source=str(source), out=str(tmp_path / out), **options))


def everything(data):
    return data.images(range(len(data)))


# ------------------------------------------------------------ sources


@pytest.mark.parametrize("split", ["train", "test"])
def test_cifar10(tmp_path, split):
    members, truth = cifar_members()
    data = made(tmp_path, cifar_tar(tmp_path / "cifar-10-python.tar.gz", members), split=split)
    images, labels = truth[split]
    assert np.array_equal(everything(data), images.reshape(-1, 3, 32, 32)) and np.array_equal(data.labels, labels)
    assert data.classes == CIFAR_NAMES and data.record["source"]["split"] == split
    unpacked = tmp_path / "cifar-10-batches-py"
    unpacked.mkdir()
    for name, content in members.items():
        (unpacked / name).write_bytes(content)
    assert made(tmp_path, unpacked, "again", split=split).sha256 == data.sha256


@pytest.mark.parametrize("compressed", [False, True])
def test_imagenet_batches(tmp_path, compressed):
    source, images, labels = imagenet(tmp_path / "in", compressed=compressed)
    data = made(tmp_path, source)
    assert np.array_equal(everything(data), images) and np.array_equal(data.labels, labels - 1)
    assert len(data.classes) == 1000 and data.classes[0] == "1" and data.name == "imagenet8"
    shutil.move(source / "train_data_batch_2.npz", source / "val_data.npz")
    val = made(tmp_path, source, "val", split="val")
    assert np.array_equal(everything(val), images[5:])
    assert np.array_equal(everything(made(tmp_path, source / "val_data.npz", "file")), images[5:])


def test_imagenet_classes_can_follow_wordnet_numbers(tmp_path):
    """The batches count classes in the ILSVRC kit's order; networks trained on class folders in the sorted one."""
    source, _, labels = imagenet(tmp_path / "in")
    order = np.random.default_rng(1).permutation(1000)
    lines = [f"n{order[k]:08d} {k + 1} name_{k}" for k in range(1000)]
    (source / "map_clsloc.txt").write_text("\n".join(lines))
    data = made(tmp_path, source)
    assert data.classes == [f"n{k:08d}" for k in range(1000)]
    assert [data.classes[k] for k in data.labels] == [lines[label - 1].split()[0] for label in labels]
    (tmp_path / "map.txt").write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match=r"^class_map.*each once; it has 999"):
        made(tmp_path, source, "b", class_map=str(tmp_path / "map.txt"))


def test_imagenet_reads_only_what_is_asked(tmp_path):
    source, images, labels = imagenet(tmp_path / "in", counts=(40, 30, 20), compressed=True)
    data = made(tmp_path, source, limit=50)
    assert np.array_equal(everything(data), images[:50]) and np.array_equal(data.labels, labels[:50] - 1)
    data = made(tmp_path, source, "h", holdout=30.0)
    other = open_dataset(tmp_path / "h-heldout")
    together = np.concatenate([everything(data), everything(other)])
    assert sorted(map(bytes, together)) == sorted(map(bytes, images))


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_idx(tmp_path, packed):
    images, labels = pixels(9, 1, side=28), (np.arange(9) % 4).astype(np.uint8)
    for split, rows in (("train", slice(0, 6)), ("t10k", slice(6, 9))):
        idx(tmp_path / f"{split}-images-idx3-ubyte{packed}", images[rows, 0])
        idx(tmp_path / f"{split}-labels-idx1-ubyte{packed}", labels[rows])
    data = made(tmp_path, tmp_path, "a")
    assert np.array_equal(everything(data), images[:6]) and data.labels.tolist() == labels[:6].tolist()
    test = made(tmp_path, tmp_path, "b", split="test")
    assert np.array_equal(everything(test), images[6:]) and test.name.endswith("-test")
    file = made(tmp_path, tmp_path / f"t10k-images-idx3-ubyte{packed}", "c")
    assert file.sha256 == test.sha256
    named = made(tmp_path, tmp_path, "d", classes="a, b,c,d", limit=2)
    assert named.classes == ["a", "b", "c", "d"]
    with pytest.raises(InputError, match=r"^classes.*4 different names"):
        made(tmp_path, tmp_path, "e", classes="a,b")


def test_folders(tmp_path):
    images, labels = pixels(12), np.arange(12) % 3
    by_class = images[np.argsort(labels, kind="stable")]
    source = folder(tmp_path / "in", images, labels)
    (source / "notes.txt").write_text("not a picture")
    (source / ".hidden.png").write_text("nor this")
    data = made(tmp_path, source)
    assert np.array_equal(everything(data), by_class) and data.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert data.classes == ["cat", "dog", "emu"]
    assert "1 file that is not a picture left out, notes.txt first" in plan(Prepare(source=str(source))).source.notes
    flat = made(tmp_path, folder(tmp_path / "flat", images), "b")
    assert np.array_equal(everything(flat), images) and flat.labels is None and flat.classes == []
    assert made(tmp_path, source, "c", unlabelled=True).labels is None
    for suffix in (".bmp", ".TIFF", ".webp", ".gif"):
        other = folder(tmp_path / suffix, images[:4, :1], suffix=suffix)
        found = everything(made(tmp_path, other, "out" + suffix))
        assert suffix == ".webp" or np.array_equal(found[:, :1], images[:4, :1])  # webp loses a little


def test_folder_with_splits_links_and_nvidias_labels(tmp_path):
    images = pixels(6)
    folder(tmp_path / "in/train", images[:4], [0, 1, 0, 1])
    folder(tmp_path / "in/test", images[4:], [1, 0])
    assert len(made(tmp_path, tmp_path / "in")) == 4 and len(made(tmp_path, tmp_path / "in", "t", split="test")) == 2
    (tmp_path / "linked").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "linked" / name).symlink_to(tmp_path / "in/train" / name)
    assert made(tmp_path, tmp_path / "linked", "l").sha256 == open_dataset(tmp_path / "out").sha256
    (tmp_path / "in/train/dog/back").symlink_to(tmp_path / "in/train")
    with pytest.raises(InputError, match="leads back"):
        made(tmp_path, tmp_path / "in", "n")
    edm = folder(tmp_path / "edm/00000", images)
    listed = [[f"00000/{k:05d}.png", k % 2] for k in range(6)]
    (edm.parent / "dataset.json").write_text(json.dumps({"labels": listed}))
    data = made(tmp_path, edm.parent, "e")
    assert data.labels.tolist() == [0, 1, 0, 1, 0, 1] and np.array_equal(everything(data), images)


def test_zips(tmp_path):
    images, labels = pixels(8), np.arange(8) % 2
    data = made(tmp_path, edm_zip(tmp_path / "a.zip", images, labels))
    assert np.array_equal(everything(data), images) and np.array_equal(data.labels, labels)
    assert data.record["source"]["kind"] == "zip"
    shutil.make_archive(str(tmp_path / "b"), "zip", folder(tmp_path / "in", images, labels))
    with zipfile.ZipFile(tmp_path / "b.zip", "a") as archive:
        archive.writestr("__MACOSX/cat/._00000.png", b"notes")
    assert made(tmp_path, tmp_path / "b.zip", "b").classes == ["cat", "dog"]
    assert made(tmp_path, tmp_path / "a.zip", "half", size=4).shape == (3, 4, 4)


def parquet(path, rows, names=None, label="int64"):
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("label", pa.type_for_alias(label))])
    if names:
        features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
        schema = schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=4)
    return path


def rows(images, labels):
    return [{"image": {"bytes": png(i), "path": "x.png"}, "label": n} for i, n in zip(images, labels, strict=True)]


def test_parquet(tmp_path):
    images, labels = pixels(11), [k % 3 for k in range(11)]
    data = made(tmp_path, parquet(tmp_path / "a.parquet", rows(images, labels), ["x", "y", "z", "unused"]))
    assert np.array_equal(everything(data), images) and data.labels.tolist() == labels
    assert data.classes == ["x", "y", "z", "unused"]
    (tmp_path / "shards").mkdir()
    parquet(tmp_path / "shards/train-00000-of-00002.parquet", rows(images[:6], labels[:6]))
    parquet(tmp_path / "shards/train-00001-of-00002.parquet", rows(images[6:], labels[6:]))
    parquet(tmp_path / "shards/test-00000-of-00001.parquet", rows(images[:2], [-1, -1]))
    shards = made(tmp_path, tmp_path / "shards", "b")
    assert shards.sha256 == data.sha256 and shards.classes == ["0", "1", "2"]
    assert made(tmp_path, tmp_path / "shards", "c", split="test").labels is None
    texts = made(tmp_path, parquet(tmp_path / "t.parquet", rows(images, ["b", "a"] * 5 + ["b"]), label="string"), "d")
    assert texts.classes == ["a", "b"] and texts.labels.tolist() == [1, 0] * 5 + [1]
    pq.write_table(pa.table({"jpg": [png(i) for i in images], "n": labels, "cls": labels}), tmp_path / "p.parquet")
    plain = made(tmp_path, tmp_path / "p.parquet", "e", label_column="n", limit=5)
    assert np.array_equal(everything(plain), images[:5]) and plain.labels.tolist() == labels[:5]
    with pytest.raises(InputError, match=r"^image_column.*there are jpg, n, cls"):
        made(tmp_path, tmp_path / "p.parquet", "f", image_column="image")


def test_digits(tmp_path):
    data, known = made(tmp_path, "digits"), load_digits()
    assert np.array_equal(everything(data)[:, 0], np.round(known.images * 15.9375)) and data.classes[9] == "9"
    assert np.array_equal(data.labels, known.target)


# ------------------------------------------------------------ pictures


def center_square(image, size):
    """The middle square by slicing, then Pillow's resampling."""
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    square = Image.fromarray(image[top : top + side, left : left + side])
    return np.array(square.resize((size, size), Image.Resampling.LANCZOS))


def adm_square(image, size):
    """Dhariwal & Nichol's crop from its description: halving is the mean of pairs, rows then columns, rounded up."""
    while min(image.shape[:2]) >= 2 * size:
        assert not image.shape[0] % 2 and not image.shape[1] % 2  # the sizes in this test halve evenly
        wide = (image[:, ::2].astype(int) + image[:, 1::2] + 1) // 2
        image = ((wide[::2] + wide[1::2] + 1) // 2).astype(np.uint8)
    scale = size / min(image.shape[:2])
    wide = Image.fromarray(image).resize(
        (round(image.shape[1] * scale), round(image.shape[0] * scale)), Image.Resampling.BICUBIC
    )
    left, top = (wide.width - size) // 2, (wide.height - size) // 2
    return np.array(wide)[top : top + size, left : left + size]


@pytest.mark.parametrize(("width", "height"), [(96, 64), (48, 80), (23, 31), (16, 16)])
@pytest.mark.parametrize("crop", ["center", "adm"])
def test_crops(tmp_path, crop, width, height):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    Image.fromarray(image).save(tmp_path / "in/a.png")
    found = everything(made(tmp_path, tmp_path / "in", size=16, crop=crop))[0].transpose(1, 2, 0)
    wanted = {"center": center_square, "adm": adm_square}[crop](image, 16)
    assert np.array_equal(found, wanted)


def test_filters_and_colours(tmp_path):
    images = pixels(3, side=28)
    source = folder(tmp_path / "in", images)
    for name in ("lanczos", "box", "bilinear", "bicubic"):
        found = everything(made(tmp_path, source, name, size=16, filter=name))
        how = getattr(Image.Resampling, name.upper())
        wanted = [Image.fromarray(i.transpose(1, 2, 0)).resize((16, 16), how) for i in images]
        assert np.array_equal(found.transpose(0, 2, 3, 1), np.stack([np.asarray(w) for w in wanted]))
    grey = everything(made(tmp_path, source, "gray", gray=True))
    luma = images.astype(float) * np.array([0.299, 0.587, 0.114])[:, None, None]
    assert grey.shape == (3, 1, 28, 28) and np.abs(grey[:, 0] - luma.sum(1)).max() <= 1
    rgb = everything(made(tmp_path, folder(tmp_path / "l", images[:, :1]), "rgb", rgb=True))
    assert np.array_equal(rgb, np.repeat(images[:, :1], 3, 1))


def test_modes_of_pictures(tmp_path):
    """Palettes, transparency (laid on white), grey among colour, orientation; 16 bits are refused."""
    (tmp_path / "in").mkdir()
    image = pixels(1)[0].transpose(1, 2, 0)
    alpha = np.zeros((8, 8), np.uint8)
    alpha[:4] = 255
    Image.fromarray(image).save(tmp_path / "in/a.png")
    Image.fromarray(np.dstack([image, alpha])).save(tmp_path / "in/b.png")
    Image.fromarray(image[..., 0]).save(tmp_path / "in/c.png")
    Image.fromarray(image[..., 0]).convert("P").save(tmp_path / "in/d.png")
    Image.fromarray(image).convert("CMYK").save(tmp_path / "in/e.tif")
    clear = bytes(np.where(np.arange(256) % 2, 255, 0).astype(np.uint8))
    Image.fromarray(image[..., 0]).convert("P").save(tmp_path / "in/f.png", transparency=clear)
    found = everything(made(tmp_path, tmp_path / "in")).transpose(0, 2, 3, 1)
    white = np.where(alpha[..., None] > 0, image, 255)
    assert np.array_equal(found[0], image) and np.array_equal(found[1], white)
    assert np.array_equal(found[2], np.repeat(image[..., :1], 3, -1)) and np.array_equal(found[3], found[2])
    assert np.array_equal(found[5], np.where(image[..., :1] % 2, image[..., :1], 255).repeat(3, -1))
    turned = Image.fromarray(image).getexif()
    turned[0x0112] = 6
    (tmp_path / "photo").mkdir()
    Image.fromarray(image).save(tmp_path / "photo/a.png", exif=turned)
    assert np.array_equal(everything(made(tmp_path, tmp_path / "photo", "p"))[0].transpose(1, 2, 0), image)
    upright = everything(made(tmp_path, tmp_path / "photo", "u", upright=True))[0].transpose(1, 2, 0)
    assert np.array_equal(upright, np.rot90(image, -1))
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(tmp_path / "in/z.png")
    with pytest.raises(InputError, match=r"z\.png.*8 bits"):
        made(tmp_path, tmp_path / "in", "n")


# ------------------------------------------------------------ which images


def test_limits_and_balance(tmp_path):
    images, labels = pixels(20), np.array([0] * 12 + [1] * 5 + [2] * 3)
    source = edm_zip(tmp_path / "a.zip", images, labels)
    assert np.array_equal(everything(made(tmp_path, source, limit=7)), images[:7])
    some = made(tmp_path, source, "b", limit=8, balanced=True)
    assert sorted(np.bincount(some.labels)) == [2, 3, 3]
    places = [[np.array_equal(i, j) for j in images].index(True) for i in everything(some)]
    assert places == sorted(set(places)) and [labels[p] for p in places] == some.labels.tolist()
    other = made(tmp_path, source, "c", limit=8, balanced=True, seed=1)
    assert other.sha256 != some.sha256
    assert np.bincount(made(tmp_path, source, "d", balanced=True).labels).tolist() == [3, 3, 3]
    for wrong in ({"limit": 21}, {"limit": 12, "balanced": True}, {"balanced": True, "unlabelled": True}):
        with pytest.raises(InputError, match=r"^limit|^balanced"):
            made(tmp_path, source, "n", **wrong)
    assert not list(tmp_path.glob("n*"))


@pytest.mark.parametrize(("fmt", "suffix"), [("folder", ""), ("edm-zip", ".zip")])
def test_holdout(tmp_path, fmt, suffix):
    images, labels = pixels(20), np.array([0] * 12 + [1] * 5 + [2] * 3)
    source = edm_zip(tmp_path / "a.zip", images, labels)
    kept = made(tmp_path, source, "out" + suffix, holdout=0.25, format=fmt)
    held = open_dataset(tmp_path / f"out-heldout{suffix}")
    assert np.bincount(held.labels).tolist() == [3, 1, 1] and len(kept) == 15
    together = np.concatenate([everything(kept), everything(held)])
    assert sorted(map(bytes, together)) == sorted(map(bytes, images))
    assert kept.record["holdout"]["other_sha256"] == held.sha256 and held.record["holdout"]["this"] == "held out"
    number = made(tmp_path, source, "n" + suffix, holdout=5.0, format=fmt)
    assert number.sha256 == kept.sha256
    for wrong in (20.0, 1.5, 0.01, -1.0, float("nan")):
        with pytest.raises(InputError, match=r"^holdout"):
            made(tmp_path, source, "w" + suffix, holdout=wrong, format=fmt)


# ------------------------------------------------------------ stopping, repeating, recognising

KILL = """
import os, signal, sys
from sims_image.commands import run
from sims_image.data import prepare, writing
prepare.COMMIT_BYTES = 20_000
where, count = sys.argv[1], int(sys.argv[2])
home = {"append": writing.Growing, "flush": writing.Growing, "write_json": prepare, "replace": os}[where]
real, calls = getattr(home, where), []
def counting(*args, **options):
    calls.append(1)
    if len(calls) == count:
        if where == "append":  # in the middle of a block
            real(args[0], args[1][: len(args[1]) // 2])
            args[0]._handle.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **options)
setattr(home, where, counting)
run(["prepare", *sys.argv[3:]])
"""


def files(path):
    """Every file below a path, or the file itself; not the record of its options, with their time."""
    every = (p for p in [path, *path.rglob("*")] if p.is_file() and p.name != OPTIONS)
    return {str(p.relative_to(path.parent)): p.read_bytes() for p in every}


@pytest.mark.parametrize(
    ("where", "count", "options"),
    [
        ("append", 1, []),
        ("append", 3, []),
        ("flush", 2, []),
        ("append", 4, ["--holdout", "0.3"]),
        ("replace", 8, ["--holdout", "0.3"]),
        ("write_json", 3, ["--size", "6"]),
        ("replace", 7, ["--format", "edm-zip"]),
    ],
)
def test_killed_anywhere_the_same_command_goes_on(tmp_path, where, count, options):
    source = folder(tmp_path / "in", pixels(300, side=12), np.arange(300) % 3)
    name = "out.zip" if "--format" in options else "out"
    command = [str(source), *options, "--out", str(tmp_path / "a" / name)]
    [process] = launch(["-c", KILL, where, str(count), *command])
    process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "a" / name).exists() and (tmp_path / "a" / (name + ".preparing")).exists()
    with pytest.raises(InputError, match="half made"):
        open_dataset(tmp_path / "a" / name)
    run(["prepare", *command])
    run(["prepare", *command[:-1], str(tmp_path / "b" / name)])
    assert files(tmp_path / "a") and [*files(tmp_path / "a").values()] == [*files(tmp_path / "b").values()]
    assert not list(tmp_path.rglob("*preparing*")) and not list(tmp_path.rglob("*.part*"))


def test_resuming_does_not_read_again_what_is_there(tmp_path, monkeypatch):
    from sims_image.data import prepare as preparing
    from sims_image.data.sources import folder as pictures

    source = folder(tmp_path / "in", pixels(300, side=12))
    monkeypatch.setattr(preparing, "COMMIT_BYTES", 10_000)
    read, real = [], pictures._read_file

    def stopping(request, path):
        read.append(path.name)
        if path.name == "00250.png":
            raise KeyboardInterrupt
        return real(request, path)

    monkeypatch.setattr(pictures, "_read_file", stopping)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, source)
    read.clear()
    monkeypatch.setattr(pictures, "_read_file", lambda request, path: (read.append(path.name), real(request, path))[1])
    assert len(made(tmp_path, source)) == 300
    assert min(read[17:]) == "00192.png"  # the last whole block; the first picture, and then 16, are looked at to plan


def test_a_finished_data_set_is_recognised(tmp_path):
    source = folder(tmp_path / "in", pixels(8), np.arange(8) % 2)
    first = made(tmp_path, source, holdout=2.0)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.glob("out*/*")}
    assert made(tmp_path, source, holdout=2.0).sha256 == first.sha256 and len(before) == 8
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.glob("out*/*")}
    with pytest.raises(InputError, match=r"another data set \(settings\.size: 0 there, 4 here\)"):
        made(tmp_path, source, holdout=2.0, size=4)
    shutil.rmtree(tmp_path / "out-heldout")
    (tmp_path / "in/dog/more.png").write_bytes(png(pixels(1)[0]))
    with pytest.raises(InputError, match=r"source\.images: 8 there, 9 here"):
        made(tmp_path, source, holdout=2.0)
    (tmp_path / "else").mkdir()
    (tmp_path / "else/mine.txt").write_text("keep me")
    with pytest.raises(InputError, match="something else is there"):
        made(tmp_path, source, "else")
    assert (tmp_path / "else/mine.txt").read_text() == "keep me"
    (tmp_path / "empty").mkdir()
    assert len(made(tmp_path, source, "empty")) == 9


def test_results_do_not_depend_on_threads_or_formats(tmp_path):
    source = folder(tmp_path / "in", pixels(90, side=12), np.arange(90) % 3)
    options = {"size": 8, "filter": "bicubic", "holdout": 0.2}
    one = made(tmp_path, source, "1", workers=1, **options)
    many = made(tmp_path, source, "2", workers=5, **options)
    zipped = made(tmp_path, source, "3.zip", format="edm-zip", **options)
    again = made(tmp_path, source, "4.zip", format="edm-zip", **options)
    assert one.sha256 == many.sha256 == zipped.sha256 and np.array_equal(everything(one), everything(zipped))
    assert [*files(one.path).values()] == [*files(many.path).values()]
    assert zipped.path.read_bytes() == again.path.read_bytes()
    assert zipped.classes == one.classes and zipped.record == one.record
    back = made(tmp_path, zipped.path, "5")
    assert back.sha256 == one.sha256 and back.classes == one.classes
    assert (back.path / "images.npy").read_bytes() == (one.path / "images.npy").read_bytes()
    assert (back.path / "labels.npy").read_bytes() == (one.path / "labels.npy").read_bytes()


# ------------------------------------------------------------ the command


def test_command(tmp_path, capsys):
    out = tmp_path / "d"
    assert main_with_errors(run, ["prepare", "digits", "--out", str(out), "--limit", "20"]) == 0
    assert f"{out}: 20 images 1x8x8 uint8, 10 classes, sha256 " in capsys.readouterr().out
    assert main_with_errors(run, ["prepare", "--source", str(out), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert "20, 1x8x8 uint8" in shown and "10 (0, 1, 2" in shown
    assert np.load(out / "images.npy").shape == (20, 1, 8, 8) and np.load(out / "labels.npy").dtype == np.int64


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ([], "--source"),
        (["digits"], "--out"),
        (["digts", "--out", "x"], "--source: got 'digts'; no such file or folder"),
        (["digits", "--out", "x", "--fromat", "folder"], "did you mean '--format'"),
        (["digits", "--out", "x", "--format", "zip"], "--format"),
        (["digits", "--out", "x.zip"], "--out: got 'x.zip'; with --format edm-zip"),
        (["digits", "--out", "x", "--format", "edm-zip"], "--out"),
        (["digits", "--out", "x", "--split", "train"], "--split: got 'train'; this source has no splits"),
        (["digits", "--out", "x", "--crop", "middle"], "--crop"),
        (["digits", "--out", "x", "--size", "-1"], "--size"),
        (["digits", "--out", "x", "--gray", "--rgb"], "--rgb"),
        (["digits", "--out", "x", "--kind", "digit"], "did you mean 'digits'"),
        (["digits", "--out", "x", "--limit", "2000"], "1797 images"),
        (["digits", "--out", "/proc/nowhere/x"], "--out"),
        (["digits", "--out", "."], "--out"),
    ],
)
def test_command_refuses_in_one_line(words, error, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main_with_errors(run, ["prepare", *words]) == 2
    shown = capsys.readouterr()
    assert error in shown.err and shown.err.count("\n") == 1 and not list(tmp_path.iterdir())


MEMORY = f"""
import sys
from sims_image.data.options import Prepare
from sims_image.data.prepare import prepare
prepare(Prepare(source=sys.argv[1], out=sys.argv[2]))
print({PEAK})
"""


def write_batch(path, count, method):
    """A batch of 64x64 images, written without holding it."""
    few = (pixels(100, side=64) // 64).tobytes()
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, 3 * 64 * 64)}
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        with archive.open("data.npy", "w") as handle:
            np.lib.format.write_array_header_1_0(handle, header)
            for _ in range(count // 100):
                handle.write(few)
        with archive.open("labels.npy", "w") as handle:
            np.lib.format.write_array(handle, np.arange(count) % 1000 + 1)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_memory_does_not_grow_with_the_data(tmp_path, method):
    """Four times the images, 55 MB more, in the same memory (a fifth of the difference allowed)."""
    peaks = {}
    for count in (1_500, 6_000):
        source = tmp_path / f"in{count}"
        source.mkdir()
        write_batch(source / "train_data_batch_1.npz", count, method)
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(source), str(tmp_path / f"out{count}")],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        peaks[count] = int(done.stdout) * 1024
    assert peaks[6_000] - peaks[1_500] < 0.2 * 4_500 * 12_288
