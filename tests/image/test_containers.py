"""Data sets in the containers that people have them in: numpy's files, parquet, pickles, IDX, and what is not read."""

import gzip
import pickle
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sims_core.errors import InputError
from sims_image.data.dataset import open_dataset
from sims_image.data.options import Prepare
from sims_image.data.plan import plan
from sims_image.data.prepare import prepare
from sims_image.info import describe
from sims_image.metrics.references import read_statistics
from tests.image.synthetic import edm_zip, idx, pixels, png, python2_batch

IMAGES = pixels(12)
LABELS = np.arange(12) % 3


def made(tmp_path, source, **options):
    return prepare(Prepare(source=str(source), out=str(tmp_path / f"out{len(list(tmp_path.iterdir()))}"), **options))


def notes(source, **options):
    return "\n".join(plan(Prepare(source=str(source), **options)).notes)


def same(data, images, labels):
    assert np.array_equal(data.images(slice(None)), images)
    assert data.labels is None if labels is None else data.labels.tolist() == list(labels)
    return True


# ------------------------------------------------------------ numpy's files


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("channels", [1, 3])
def test_adm_npz(tmp_path, save, channels):
    """`arr_0` (N, H, W[, C]) and labels `arr_1`, as guided diffusion's sampler writes them."""
    images = pixels(20, channels)
    last = images.transpose(0, 2, 3, 1)
    for k, stack in enumerate([last, images, *([images[:, 0]] if channels == 1 else [])]):
        for labels in (None, np.arange(20) % 4, (np.arange(20) % 4).astype(np.float32)[:, None]):
            save(tmp_path / f"{k}.npz", *([stack] if labels is None else [stack, labels]))
            data = made(tmp_path, tmp_path / f"{k}.npz")
            assert same(data, images, None if labels is None else np.arange(20) % 4) and len(data.shape) == 3
            assert data.classes == ([] if labels is None else ["0", "1", "2", "3"])
    np.save(tmp_path / "s.npy", last)
    assert same(made(tmp_path, tmp_path / "s.npy"), images, None) and "no labels" in notes(tmp_path / "s.npy")
    assert same(made(tmp_path, tmp_path / "s.npy", limit=7), images[:7], None)


def test_keras_and_medmnist_npz(tmp_path):
    grey = pixels(9, 1)
    np.savez(tmp_path / "m.npz", x_train=grey[:6, 0], y_train=np.arange(6) % 2, x_test=grey[6:, 0], y_test=np.arange(3))
    assert same(made(tmp_path, tmp_path / "m.npz"), grey[:6], np.arange(6) % 2)
    assert same(made(tmp_path, tmp_path / "m.npz", split="test"), grey[6:], np.arange(3))
    parts = {f"{s}_images": IMAGES[k::3].transpose(0, 2, 3, 1) for k, s in enumerate(("train", "val", "test"))}
    parts |= {f"{s}_labels": LABELS[:4, None] for s in ("train", "val", "test")}
    np.savez(tmp_path / "med.npz", **parts)
    assert same(made(tmp_path, tmp_path / "med.npz", split="val"), IMAGES[1::3], LABELS[:4])


REFUSED_ARRAYS = {
    "float": (dict(arr_0=np.zeros((4, 8, 8, 3), np.float32)), "float32"),
    "four channels": (dict(arr_0=np.zeros((4, 8, 8, 4), np.uint8)), "1 or 3 channels"),
    "flat": (dict(arr_0=np.zeros((4, 192), np.uint8)), r"pictures are bytes .* not uint8 \(4, 192\)"),
    "not square": (dict(arr_0=np.zeros((4, 8, 9, 3), np.uint8)), "9x8 is not square"),
    "objects": (dict(arr_0=np.array([{}] * 4, object)), "it holds no arrays of numbers|plain little-endian"),
    "one-hot": (dict(arr_0=np.zeros((4, 8, 8), np.uint8), arr_1=np.eye(4)), "one-hot"),
    "halves": (dict(arr_0=np.zeros((4, 8, 8), np.uint8), arr_1=np.full(4, 0.5)), "one whole number per image"),
    "words": (dict(arr_0=np.zeros((2, 8, 8), np.uint8), arr_1=["a", "b"]), "arr_1'; labels are one whole number"),
    "words of Keras": (dict(x_train=np.zeros((2, 8, 8), np.uint8), y_train=["a", "b"]), "y_train'; labels are one"),
    "negative": (dict(arr_0=np.zeros((4, 8, 8), np.uint8), arr_1=[0, 1, -1, 2]), "image 2 is labelled -1"),
    "too few": (dict(arr_0=np.zeros((4, 8, 8), np.uint8), arr_1=[0, 1]), "2 labels for 4 images"),
    "other names": (dict(a=np.zeros((4, 8, 8), np.uint8)), r"a \(4, 8, 8\) uint8; images are arr_0"),
    "statistics": (dict(mu=np.zeros(3), sigma=np.eye(3)), "statistics, not images"),
}


@pytest.mark.parametrize("case", REFUSED_ARRAYS)
def test_arrays_that_are_no_pictures_are_refused_by_name(tmp_path, case):
    arrays, match = REFUSED_ARRAYS[case]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(InputError, match=match) as caught:
        made(tmp_path, tmp_path / "a.npz")
    assert "\n" not in str(caught.value)


def test_the_systems_own_files_in_an_edm_zip(tmp_path):
    more = [("__MACOSX/00000/._img00000000.png", b"x"), (".DS_Store", b"x"), ("00000/Thumbs.db", b"x")]
    assert same(open_dataset(edm_zip(tmp_path / "a.zip", IMAGES, LABELS, extra=more)), IMAGES, LABELS)
    assert same(made(tmp_path, tmp_path / "a.zip"), IMAGES, LABELS)


def test_an_npz_is_no_zip_of_latents(tmp_path):
    """N grey pictures are not one picture of N channels, wherever a data set is opened."""
    np.savez(tmp_path / "g.npz", np.zeros((20, 8, 8), np.uint8))
    for read in (open_dataset, describe):
        with pytest.raises(
            InputError, match=r"an .npz of arrays \(arr_0 \(20, 8, 8\) uint8\), not a data set; `prepare`"
        ):
            read(tmp_path / "g.npz")
    np.savez(tmp_path / "i.npz", images=np.zeros((20, 8, 8), np.uint8))
    (tmp_path / "i.npz").rename(tmp_path / "i.zip")
    assert made(tmp_path, tmp_path / "i.zip").shape == (1, 8, 8)
    np.savez(tmp_path / "ms.npz", m=np.zeros(4), s=np.eye(4))
    with pytest.raises(InputError, match=r"m \(4,\) float64, s \(4, 4\) float64.*statistics are called mu and sigma"):
        describe(tmp_path / "ms.npz")
    with pytest.raises(InputError, match=r"it has no mu beside m \(4,\) float64"):
        read_statistics(tmp_path / "ms.npz")


def test_statistics_in_any_order_and_byte_order(tmp_path):
    mu, factor = np.arange(5.0), np.random.default_rng(0).standard_normal((5, 5))
    sigma = factor @ factor.T
    for change in (np.asfortranarray, lambda a: a.astype(">f8"), lambda a: a.astype(">f8", order="F")):
        np.savez(tmp_path / "s.npz", mu=change(mu), sigma=change(sigma))
        found = read_statistics(tmp_path / "s.npz")["fid"]
        assert np.array_equal(found.mu, mu) and np.array_equal(found.sigma, sigma)
        assert found.sigma.dtype == np.float64 and found.sigma.dtype.isnative
    np.savez(tmp_path / "s.npz", mu=mu, sigma=np.diag([1, 1, 1, 1, -1e-9]))  # rounding, not a mistake
    assert read_statistics(tmp_path / "s.npz")["fid"].sigma[4, 4] == -1e-9


IMPOSTORS = {
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "Git LFS pointer"),
    "html": (b"\n<!DOCTYPE html><html><body>404</body></html>", "HTML page"),
    "gzip": (gzip.compress(b"hello"), "gzip-compressed"),
    "empty": (b"", "empty"),
}


@pytest.mark.parametrize("case", IMPOSTORS)
def test_what_lies_there_instead_of_the_file_is_named(tmp_path, case):
    """In data sets, statistics, snapshots and pictures."""
    data, match = IMPOSTORS[case]
    for name in ("a.zip", "a.npz", "a.parquet", "a.data"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=match if case != "empty" else "empty|not recognised"):
            made(tmp_path, tmp_path / name)
    for read in (read_statistics, describe):
        (tmp_path / "a.pkl").write_bytes(data)
        with pytest.raises(InputError, match=match):
            read(tmp_path / "a.pkl")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "0.png").write_bytes(data)
    with pytest.raises(InputError, match=f"0.png.*no picture: it is .*{match}"):
        made(tmp_path, tmp_path / "in")


# ------------------------------------------------------------ parquet


def table(path, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": [png(image) for image in IMAGES], **columns}), path)
    return path


NUMBERS = (LABELS.tolist(), ["0", "1", "2"])
COLUMNS = {
    "bool": (pa.array((LABELS > 0).tolist()), ((LABELS > 0).astype(int).tolist(), ["false", "true"])),
    "float32": (pa.array(LABELS, pa.float32()), NUMBERS),
    "float16": (pa.array(LABELS.astype(np.float16)), NUMBERS),
    "uint64": (pa.array(LABELS, pa.uint64()), NUMBERS),
    "int8": (pa.array(LABELS, pa.int8()), NUMBERS),
    "lists of one": (pa.array([[int(k)] for k in LABELS]), NUMBERS),
    "dictionary": (pa.array([f"c{k}" for k in LABELS]).dictionary_encode(), (LABELS.tolist(), ["c0", "c1", "c2"])),
    "dictionary of numbers": (pa.array(LABELS).dictionary_encode(), NUMBERS),
    "large strings": (pa.array(["é" * k for k in LABELS], pa.large_string()), (LABELS.tolist(), ["", "é", "éé"])),
    "numbers as text": (pa.array([str(k) for k in range(12)]), (list(range(12)), [str(k) for k in range(12)])),
    "nulls alone": (pa.nulls(12), (None, [])),
    "-1 alone": (pa.array([-1] * 12), (None, [])),
}


@pytest.mark.parametrize("case", COLUMNS)
def test_labels_of_every_type(tmp_path, case):
    column, (labels, classes) = COLUMNS[case]
    data = made(tmp_path, table(tmp_path / "a.parquet", label=column))
    assert same(data, IMAGES, labels) and data.classes == classes
    assert labels is not None or "no labels: column label" in notes(tmp_path / "a.parquet")


REFUSED_COLUMNS = {
    "halves": (pa.array([0.5] * 12), "row 0.*is labelled 0.5 in column label"),
    "nan": (pa.array([float("nan")] * 12), "row 0.*is labelled nan"),
    "infinity": (pa.array([0.0] * 11 + [float("inf")]), "row 11.*is labelled inf"),
    "lists": (pa.array([[0, 1]] * 12), "row 0.*has 2 labels in column label"),
    "empty lists": (pa.array([[]] * 12, pa.list_(pa.int64())), "row 0.*has 0 labels"),
    "dates": (pa.array([0] * 12, pa.date32()), "column label.*holds date32"),
    "bytes": (pa.array([b"a"] * 12), "column label.*holds binary"),
    "struct": (pa.array([{"a": 1}] * 12), "column label.*holds struct"),
    "huge": (pa.array([2**64 - 1] + [0] * 11, pa.uint64()), "row 0.*is labelled 18446744073709551615"),
    "a hole": (pa.array([0] * 11 + [None]), "row 11.*has no label"),
}


@pytest.mark.parametrize("case", REFUSED_COLUMNS)
def test_labels_that_cannot_be_classes_are_named(tmp_path, case):
    column, match = REFUSED_COLUMNS[case]
    with pytest.raises(InputError, match=match) as caught:
        made(tmp_path, table(tmp_path / "a.parquet", label=column), image_column="image")
    assert "\n" not in str(caught.value)
    assert made(tmp_path, tmp_path / "a.parquet", image_column="image", unlabelled=True).labels is None


def test_columns_called_otherwise(tmp_path):
    for name in ("class_id", "fine_label", "target", "cls"):
        assert same(made(tmp_path, table(tmp_path / "a.parquet", **{name: LABELS})), IMAGES, LABELS)
    path = table(tmp_path / "a.parquet", fine_label=LABELS, coarse_label=LABELS // 2)
    assert "--label-column takes another (coarse_label)" in notes(path)
    assert same(made(tmp_path, path, label_column="coarse_label"), IMAGES, LABELS // 2)
    assert "no column of labels among image, species" in notes(table(tmp_path / "b.parquet", species=LABELS))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ("mnist/train-00000-of-00001.parquet", "mnist/test-00000-of-00001.parquet"),
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("default/partial-train/0000.parquet", "default/partial-test/0000.parquet"),
        ("train/0000.parquet", "test/0000.parquet"),
        ("train.parquet", "test.parquet"),
        ("data/train.parquet", "data/validation.parquet"),
    ],
)
def test_clones_from_the_hub(tmp_path, train, test):
    clone = tmp_path / "clone"
    table(clone / train, label=LABELS)
    table(clone / test, label=LABELS[::-1])
    (clone / "README.md").write_text("---")
    (clone / ".git").mkdir()
    (clone / ".git" / "x.parquet").write_bytes(b"junk")
    (clone / "logo.png").write_bytes(png(IMAGES[0]))
    assert same(made(tmp_path, clone), IMAGES, LABELS) and "is taken (--split)" in notes(clone)
    split = "val" if "validation" in test else "test"
    assert same(made(tmp_path, clone, split=split), IMAGES, LABELS[::-1])


def test_several_data_sets_in_a_clone(tmp_path):
    for name in ("balanced", "letters"):
        table(tmp_path / "clone" / name / "train-00000-of-00001.parquet", label=LABELS)
    with pytest.raises(InputError, match=r"several data sets \(balanced, letters\); name the folder of one"):
        made(tmp_path, tmp_path / "clone")
    assert len(made(tmp_path, tmp_path / "clone" / "letters")) == 12


# ------------------------------------------------------------ pickles and IDX


def cifar100(per=4):
    """Members of the archive, with (images, fine, coarse) by split; as Python 2 wrote it."""
    found, members = {}, {}
    for k, (split, count) in enumerate((("train", 5 * per), ("test", per))):
        images, fine = pixels(count, side=32, seed=k), np.random.default_rng(k).integers(0, 100, count)
        batch = python2_batch(images, fine).replace(b"U\x06labels", b"U\x0bfine_labels")
        more = b"U\x0dcoarse_labels](" + b"".join(b"K" + bytes([int(f) // 5]) for f in fine) + b"eu."
        members[split], found[split] = batch[:-2] + more, (images, fine, fine // 5)
    words = {
        b"fine_label_names": [b"fine%d" % k for k in range(100)],
        b"coarse_label_names": [b"c%d" % k for k in range(20)],
    }
    members["meta"] = pickle.dumps(words, protocol=2)
    return members, found


def test_cifar100(tmp_path):
    members, found = cifar100()
    folder, archive = tmp_path / "cifar-100-python", tmp_path / "cifar-100-python.tar.gz"
    folder.mkdir()
    with tarfile.open(archive, "w:gz") as packed:
        for name, data in members.items():
            (folder / name).write_bytes(data)
            packed.add(folder / name, f"cifar-100-python/{name}")
    for source in (archive, folder):
        for split in ("train", "test"):
            images, fine, coarse = found[split]
            data = made(tmp_path, source, split=split)
            assert same(data, images, fine) and data.classes == [f"fine{k}" for k in range(100)]
            data = made(tmp_path, source, split=split, label_column="coarse_label")
            assert same(data, images, coarse) and data.classes == [f"c{k}" for k in range(20)]
        assert "--label-column coarse_label" in notes(source)
        with pytest.raises(InputError, match=r"^label_column.*fine_label, coarse_label"):
            made(tmp_path, source, label_column="label")
    lone = tmp_path / "torchvision"
    lone.mkdir()
    folder.rename(lone / "cifar-100-python")
    assert len(made(tmp_path, lone)) == 20


def test_pickled_batches_of_imagenet(tmp_path):
    images, labels = pixels(30), np.random.default_rng(0).integers(1, 1001, 30)
    flat = images.reshape(30, -1)
    into = tmp_path / "in"
    into.mkdir()
    for name, rows in (
        ("train_data_batch_1", slice(0, 10)),
        ("train_data_batch_2", slice(10, 20)),
        ("val_data", slice(20, 30)),
    ):
        held = {"data": flat[rows], "labels": labels[rows].tolist(), "mean": flat.mean(0)}
        (into / name).write_bytes(pickle.dumps(held, protocol={"val_data": 2}.get(name, 4)))
    assert same(made(tmp_path, into), images[:20], labels[:20] - 1)
    assert same(made(tmp_path, into, split="val"), images[20:], labels[20:] - 1)
    assert same(made(tmp_path, into / "val_data"), images[20:], labels[20:] - 1)
    assert same(made(tmp_path, into, limit=13), images[:13], labels[:13] - 1)
    for held, match in (
        ({"data": flat, "labels": [0] * 30}, "image 0 is labelled 0"),
        ({"data": flat[:, 1:], "labels": [1] * 30}, r"must be \(N, 3\*S\*S\)"),
        ({"data": [1], "labels": [1]}, "no array 'data'"),
        ({"data": flat, "labels": ["a"] * 30}, "one whole number per image"),
        ([1], "pickled dict"),
    ):
        (into / "val_data").write_bytes(pickle.dumps(held, protocol=2))
        with pytest.raises(InputError, match=match):
            made(tmp_path, into, split="val")


def test_idx_as_kaggle_and_emnist_have_it(tmp_path):
    images, labels = pixels(8, 1, side=28), np.arange(1, 9).astype(np.uint8)
    kaggle = tmp_path / "kaggle"
    for part, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels)):
        (kaggle / f"train-{part}-ubyte").mkdir(parents=True)
        idx(kaggle / f"train-{part}-ubyte" / f"train-{part}-ubyte", array)
    data = made(tmp_path, kaggle)
    assert same(data, images, labels) and data.name == "kaggle"
    assert same(made(tmp_path, kaggle / "train-images-idx3-ubyte"), images, labels)
    emnist = tmp_path / "MNIST" / "raw"
    emnist.mkdir(parents=True)
    for part, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels)):
        idx(emnist / f"emnist-letters-train-{part}-ubyte.gz", array)
    assert same(made(tmp_path, tmp_path / "MNIST"), images, labels)
    assert "1 of 9 classes have no images: 0" in notes(emnist) and "transposed" in notes(emnist)
    for part, array in (("images-idx3", images[:, 0]), ("labels-idx1", labels)):
        idx(emnist / f"emnist-digits-train-{part}-ubyte.gz", array)
    with pytest.raises(InputError, match=r"2 data sets \(emnist-digits-train, emnist-letters-train\); name the file"):
        made(tmp_path, emnist)


@pytest.mark.parametrize(
    ("files", "match"),
    [
        ({"data-00000-of-00001.arrow": b"x", "dataset_info.json": b"{}"}, "save_to_disk.*to_parquet"),
        ({"shard.tar": b"x"}, "an archive"),
        ({"train.tfrecord-00000": b"x"}, "TFRecord"),
        ({"train.csv": b"label,pixel0"}, "train.csv is there: tables"),
        ({"train_32x32.mat": b"x"}, "train_32x32.mat is there: a format that is not read"),
        ({"a/x.npy": b"x", "b/y.npy": b"x"}, "a/x.npy is there: numpy's arrays: name the file"),
        ({"notes.txt": b"x"}, "there are no pictures in it$"),
        ({}, "there are no pictures in it$"),
    ],
)  # fmt: skip
def test_what_is_not_read_is_told_what_it_is(tmp_path, files, match):
    (tmp_path / "in").mkdir()
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        for name, data in files.items():
            (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
            (tmp_path / "in" / name).write_bytes(data)
            archive.writestr(name, data)
    with pytest.raises(InputError, match=match):
        made(tmp_path, tmp_path / "in")
    if not any(name.endswith(".npy") for name in files):
        with pytest.raises(InputError, match=match):
            made(tmp_path, tmp_path / "in.zip")
