"""Small archives in the formats that `prepare` reads, written without its help."""

import gzip
import io
import json
import struct
import tarfile
import zipfile

import numpy as np
from PIL import Image

CIFAR_NAMES = ["plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def pixels(count, channels=3, side=8, seed=0):
    """Random images (N, C, H, W), uint8."""
    return np.random.default_rng(seed).integers(0, 256, (count, channels, side, side), dtype=np.uint8)


def png(image, **options):
    """(C, H, W) as PNG bytes."""
    out = io.BytesIO()
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[len(image)]
    Image.fromarray(image[0] if mode == "L" else image.transpose(1, 2, 0)).save(out, "PNG", **options)
    return out.getvalue()


def folder(path, images, labels=None, classes=("cat", "dog", "emu"), suffix=".png"):
    """Class folders (or flat) of pictures, lossless."""
    for k, image in enumerate(images):
        into = path if labels is None else path / classes[labels[k]]
        into.mkdir(parents=True, exist_ok=True)
        Image.open(io.BytesIO(png(image))).save(into / f"{k:05d}{suffix}")
    return path


def edm_zip(path, images, labels=None, *, extra=(), content=None, method=zipfile.ZIP_STORED):
    """NVIDIA's format."""
    names = [f"{k // 1000:05d}/img{k:08d}.png" for k in range(len(images))]
    listed = None if labels is None else [[n, int(k)] for n, k in zip(names, labels, strict=True)]
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, image in zip(names, images, strict=True):
            archive.writestr(name, png(image))
        archive.writestr("dataset.json", json.dumps({"labels": listed} if content is None else content))
        for name, data in extra:
            archive.writestr(name, data)
    return path


def python2_batch(images, labels):
    """A CIFAR batch as Python 2's cPickle wrote it: byte strings, numpy's old module names, protocol 2."""

    def text(data):
        short = len(data) < 256
        return (b"U" + bytes([len(data)]) if short else b"T" + struct.pack("<i", len(data))) + data

    def number(value):
        return b"J" + struct.pack("<i", value)

    raw = images.reshape(len(images), -1).tobytes()
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01"
        + number(len(images)) + number(len(raw) // len(images)) + b"\x86"
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
        + text(raw) + b"tb"
    )  # fmt: skip
    names = b"](" + b"".join(text(f"image_{k}.png".encode()) for k in range(len(images))) + b"e"
    return (
        b"\x80\x02}(" + text(b"batch_label") + text(b"training batch 1 of 5")
        + text(b"labels") + b"](" + b"".join(map(number, map(int, labels))) + b"e"
        + text(b"data") + array + text(b"filenames") + names + b"u."
    )  # fmt: skip


def cifar_members(per_batch=4, seed=0):
    """name -> bytes of a small CIFAR archive, with its train and test images and labels."""
    rng = np.random.default_rng(seed)
    members, images, labels = {}, {}, {}
    for k in range(6):
        name = "test_batch" if k == 5 else f"data_batch_{k + 1}"
        images[name], labels[name] = pixels(per_batch, side=32, seed=seed + k), rng.integers(0, 10, per_batch)
        members[name] = python2_batch(images[name], labels[name])
    # as the official archive has it: Python 2, protocol 0
    names = b"".join(b"S'" + name.encode() + b"'\nap%d\n" % k for k, name in enumerate(CIFAR_NAMES, 4))
    members["batches.meta"] = b"(dp1\nS'num_vis'\np2\nI3072\nsS'label_names'\np3\n(lp4\n" + names + b"s."
    members["readme.html"] = b"<html>"
    train = [f"data_batch_{k}" for k in range(1, 6)]
    found = {
        "train": (np.concatenate([images[n] for n in train]), np.concatenate([labels[n] for n in train])),
        "test": (images["test_batch"], labels["test_batch"]),
    }
    return members, found


def cifar_tar(path, members, more=()):
    """The members below cifar-10-batches-py/, then TarInfo objects (with their bytes) as they come."""
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info, data in more:
            archive.addfile(info, io.BytesIO(data))
    return path


def imagenet(path, counts=(5, 4), side=8, compressed=False, seed=0):
    """A folder of train batches; returns it with all images (N, 3, S, S) and labels 1 to 1000."""
    path.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images, labels = pixels(sum(counts), side=side, seed=seed), rng.integers(1, 1001, sum(counts))
    start = 0
    for k, count in enumerate(counts, 1):
        rows = slice(start, start + count)
        save = np.savez_compressed if compressed else np.savez
        flat = images[rows].reshape(count, -1)
        save(path / f"train_data_batch_{k}.npz", data=flat, labels=labels[rows], mean=flat.mean(0))
        start += count
    return path, images, labels


def idx(path, array):
    """An IDX file of bytes, gzipped if its name says so."""
    data = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def tree(tmp_path, files, kind, compression=zipfile.ZIP_STORED):
    """A folder or a zip of ``path -> bytes``."""
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "in.zip", "w", compression) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
        return tmp_path / "in.zip"
    for name, data in files.items():
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_bytes(data)
    return tmp_path / "in"
