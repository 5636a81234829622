"""A data set reads the same from a folder and from an EDM zip, by any access, and is refused if it is spoilt."""

import hashlib
import io
import json
import multiprocessing
import pickle
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image

from sims_core.errors import InputError
from sims_image.data.dataset import open_dataset, to_pixels, to_unit
from sims_image.data.options import Prepare
from sims_image.data.prepare import prepare
from tests.image.synthetic import edm_zip, folder, pixels

IMAGES, LABELS = pixels(30), np.arange(30) % 3


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The same images as a folder and as a zip, both by `prepare`."""
    root = tmp_path_factory.mktemp("data")
    folder(root / "pictures", IMAGES, LABELS)
    order = np.argsort(LABELS, kind="stable")
    for fmt, out in (("folder", root / "set"), ("edm-zip", root / "set.zip")):
        prepare(Prepare(source=str(root / "pictures"), out=str(out), format=fmt))
    return root, IMAGES[order], LABELS[order]


@pytest.mark.parametrize("name", ["set", "set.zip"])
def test_reading(made, name):
    root, images, labels = made
    data = open_dataset(root / name)
    assert (len(data), data.shape, data.dtype, data.classes) == (30, (3, 8, 8), np.uint8, ["cat", "dog", "emu"])
    assert data.labels.dtype == np.int64 and np.array_equal(data.labels, labels)
    assert np.array_equal(data.images(range(30)), images)
    for indices in ([7, 3, 3, 29], np.array([0], np.uint8), slice(0), slice(4, 20, 3), [5, 6, 7]):
        found = data.images(indices)
        assert np.array_equal(found, images[indices]) and found.flags.c_contiguous and found.flags.writeable
    assert data.images([]).shape == (0, 3, 8, 8)
    found = data.images([2])
    found[:] = 0
    assert np.array_equal(data.images([2]), images[[2]])  # a copy
    for wrong in ([30], [-1], [0.5], [[1]]):
        with pytest.raises(InputError, match="indices"):
            data.images(wrong)
    assert "30 images" in repr(data) and data.record["counts"] == {"images": 30, "classes": [10, 10, 10]}


def test_hash_is_its_definition_and_the_same_for_both(made):
    root, images, labels = made
    by_hand = hashlib.sha256(b"sims-dataset 1 uint8 30 3 8 8 1\n" + images.tobytes() + labels.astype("<i8").tobytes())
    for name in ("set", "set.zip"):
        data = open_dataset(root / name)
        assert data.sha256 == data.record["sha256"] == by_hand.hexdigest()
    unlabelled = edm_zip(root / "plain.zip", images)
    by_hand = hashlib.sha256(b"sims-dataset 1 uint8 30 3 8 8 0\n" + images.tobytes())
    assert open_dataset(unlabelled).sha256 == by_hand.hexdigest()


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_nvidia_zips(tmp_path, method):
    """Zips as NVIDIA's tool writes them: no record of ours, labels in any order, or none."""
    names = [f"00000/img{k:08d}.png" for k in range(30)]
    listed = [[n, int(k)] for n, k in zip(names, LABELS, strict=True)][::-1]
    data = open_dataset(edm_zip(tmp_path / "a.zip", IMAGES, content={"labels": listed}, method=method))
    assert np.array_equal(data.images(range(30)), IMAGES) and np.array_equal(data.labels, LABELS)
    assert data.classes == ["0", "1", "2"] and data.name == "a"
    for content in ({"labels": None}, {}):
        assert open_dataset(edm_zip(tmp_path / "b.zip", IMAGES, content=content)).labels is None
    grey = open_dataset(edm_zip(tmp_path / "c.zip", IMAGES[:, :1]))
    assert grey.shape == (1, 8, 8) and np.array_equal(grey.images([4]), IMAGES[[4], :1])


def test_our_zip_is_nvidias_format(made):
    """Read by the rules of NVIDIA's reader, written here from the format's description."""
    root, images, labels = made
    with zipfile.ZipFile(root / "set.zip") as archive:
        assert all(info.compress_type == zipfile.ZIP_STORED for info in archive.infolist())
        names = sorted(name for name in archive.namelist() if name.endswith(".png"))
        assert names[0] == "00000/img00000000.png" and len(archive.namelist()) == len(names) + 1
        found = dict(json.loads(archive.read("dataset.json"))["labels"])
        assert [found[name] for name in names] == labels.tolist()
        for name, image in zip(names, images, strict=True):
            assert np.array_equal(np.array(Image.open(io.BytesIO(archive.read(name)))).transpose(2, 0, 1), image)


def latents(path, images, name="img-mean-std-{:08d}.npy", more=()):
    with zipfile.ZipFile(path, "w") as archive:
        for k, image in enumerate(images):
            out = io.BytesIO()
            np.save(out, image)
            archive.writestr(f"00000/{name.format(k)}", out.getvalue())
        archive.writestr("dataset.json", json.dumps({"labels": None}))
        for name, data in more:
            archive.writestr(name, data)
    return path


@pytest.mark.parametrize(("channels", "dtype"), [(8, np.float32), (4, np.float16), (2, np.uint8)])
def test_latents_of_any_width(tmp_path, channels, dtype):
    images = (np.random.default_rng(0).normal(size=(6, channels, 4, 4)) * 20).astype(dtype)
    data = open_dataset(latents(tmp_path / "l.zip", images))
    assert data.shape == (channels, 4, 4) and data.dtype == dtype
    assert np.array_equal(data.images([3, 1]), images[[3, 1]])
    kept = prepare(Prepare(source=str(data.path), out=str(tmp_path / "l")))
    again = prepare(Prepare(source=str(kept.path), out=str(tmp_path / "m.zip"), format="edm-zip"))
    assert data.sha256 == kept.sha256 == again.sha256
    assert np.array_equal(again.images(range(6)), images) and kept.dtype == dtype
    with pytest.raises(InputError, match=r"^size.*taken as it is"):
        prepare(Prepare(source=str(data.path), out=str(tmp_path / "n"), size=2))


@pytest.mark.parametrize("name", ["set", "set.zip"])
def test_threads_and_processes_read_the_same(made, name):
    root, images, _ = made
    data = open_dataset(root / name)
    orders = [np.random.default_rng(k).integers(0, 30, 50) for k in range(40)]
    with ThreadPoolExecutor(8) as pool:
        for order, found in zip(orders, pool.map(data.images, orders), strict=True):
            assert np.array_equal(found, images[order])
    copy = pickle.loads(pickle.dumps(data))
    assert np.array_equal(copy.images([9, 8]), images[[9, 8]]) and len(pickle.dumps(data)) < 10_000
    with multiprocessing.get_context("spawn").Pool(1) as workers:
        assert np.array_equal(workers.apply(data.images, ([3, 1],)), images[[3, 1]])


def test_a_zip_that_changed_is_noticed_by_workers(made, tmp_path):
    data = open_dataset(shutil.copy(made[0] / "set.zip", tmp_path / "a.zip"))
    sent = pickle.dumps(data)
    edm_zip(tmp_path / "a.zip", IMAGES[:5])
    with pytest.raises(InputError, match="changed"):
        pickle.loads(sent)


def test_pixels_and_network_values():
    every = np.arange(256, dtype=np.uint8)
    assert np.allclose(to_unit(every), np.arange(256) / 127.5 - 1, atol=1e-7) and to_unit(every).dtype == np.float32
    tensor = torch.arange(256, dtype=torch.uint8)
    assert np.array_equal(to_unit(tensor).numpy(), to_unit(every)) and to_unit(tensor).dtype == torch.float32
    assert np.array_equal(to_pixels(to_unit(every)), every) and torch.equal(to_pixels(to_unit(tensor)), tensor)
    beyond = np.array([-9, -1.004, 0, 0.999, 1, 9], np.float32)
    assert to_pixels(beyond).tolist() == [0, 0, 128, 255, 255, 255] == to_pixels(torch.tensor(beyond)).tolist()


# ------------------------------------------------------------ folders that are not what they claim


def spoilt_folder(made, tmp_path, spoil):
    path = tmp_path / "set"
    shutil.copytree(made[0] / "set", path)
    spoil(path)
    return path


def record(path, **changes):
    file = path / "dataset.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def resave(path, name, change):
    np.save(path / name, change(np.load(path / name)))


def flip_byte(path):
    with open(path / "images.npy", "r+b") as handle:
        handle.seek(-5, 2)
        byte = handle.read(1)[0]
        handle.seek(-5, 2)
        handle.write(bytes([byte ^ 1]))


SPOILT = {
    "one bit": (flip_byte, "records sha256 .* but the content has"),
    "sha256": (lambda p: record(p, sha256="0" * 64), "records sha256 000"),
    "labels": (lambda p: resave(p, "labels.npy", lambda x: x[::-1].copy()), "records sha256"),
    "label too high": (lambda p: resave(p, "labels.npy", lambda x: np.where(np.arange(30) == 4, 3, x)), "image 4 is l"),
    "label negative": (lambda p: resave(p, "labels.npy", lambda x: x - 1), "image 0 is labelled -1; .* 0 to 2"),
    "labels too few": (lambda p: resave(p, "labels.npy", lambda x: x[:29]), "29 labels for 30 images"),
    "labels not whole": (lambda p: resave(p, "labels.npy", lambda x: x.astype(np.float32)), "whole number"),
    "labels gone": (lambda p: (p / "labels.npy").unlink(), "both or none"),
    "labels a pickle": (lambda p: np.save(p / "labels.npy", np.array([{}] * 30, object)), "plain little-endian num"),
    "truncated": (lambda p: (p / "images.npy").write_bytes((p / "images.npy").read_bytes()[:-1]), "truncated"),
    "empty": (lambda p: (p / "images.npy").write_bytes(b""), "NPY"),
    "images gone": (lambda p: (p / "images.npy").unlink(), "no images.npy"),
    "record gone": (lambda p: (p / "dataset.json").unlink(), "no dataset.json"),
    "record cut": (lambda p: (p / "dataset.json").write_text('{"format": '), "not JSON"),
    "record a list": (lambda p: (p / "dataset.json").write_text("[]"), "JSON object"),
    "other format": (lambda p: record(p, format="sims-dataset 9"), "its format is not"),
    "other count": (lambda p: record(p, counts={"images": 31}), "it records"),
    "other shape": (lambda p: record(p, shape=[3, 8, 9]), "it records"),
    "classes no names": (lambda p: record(p, classes=[1, 2, 3]), "list of names"),
    "not square": (lambda p: resave(p, "images.npy", lambda x: x[..., :4]), "not square"),
    "not images": (lambda p: resave(p, "images.npy", lambda x: x[0]), "N, C, H, W"),
    "big-endian": (lambda p: resave(p, "images.npy", lambda x: x.astype(">f4")), "little-endian"),
    "doubles": (lambda p: resave(p, "images.npy", lambda x: x.astype(float)), "uint8, float16, float32"),
    "Fortran order": (lambda p: resave(p, "images.npy", np.asfortranarray), "C order"),
    "pickled images": (lambda p: np.save(p / "images.npy", np.array([[[[{}]]]], object)), "plain little-endian"),
}


@pytest.mark.parametrize("spoil", SPOILT)
def test_a_spoilt_folder_is_refused(made, tmp_path, spoil):
    path = spoilt_folder(made, tmp_path, SPOILT[spoil][0])
    with pytest.raises(InputError, match=SPOILT[spoil][1]) as caught:
        open_dataset(path)
    assert caught.value.argument == "data" and "\n" not in str(caught.value) and str(path) in str(caught.value)


def test_verification_is_free_or_asked_for(made, tmp_path, monkeypatch):
    path = spoilt_folder(made, tmp_path, flip_byte)
    data = open_dataset(path, verify=False)
    with pytest.raises(InputError, match="sha256"):
        data.verify()
    monkeypatch.setattr("sims_image.data.dataset.VERIFIED_FOLDER", 100)
    assert len(open_dataset(path)) == 30
    with pytest.raises(InputError, match="sha256"):
        open_dataset(path, verify=True)
    open_dataset(made[0] / "set", verify=True).verify()


def test_paths_that_are_no_data_set(tmp_path):
    with pytest.raises(InputError, match=r"^data.*no such data set"):
        open_dataset(tmp_path / "typo")
    (tmp_path / "typo.preparing").mkdir()
    with pytest.raises(InputError, match="half made"):
        open_dataset(tmp_path / "typo")
    with pytest.raises(InputError, match="not a data set"):
        open_dataset(tmp_path)
    (tmp_path / "a.zip").write_bytes(b"PK\3\4 nothing")
    with pytest.raises(InputError, match=r"--base.*zip"):
        open_dataset(tmp_path / "a.zip", argument="--base")
