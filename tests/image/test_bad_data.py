"""Hostile and damaged input: refused in one line that names the item, quickly, with nothing left behind."""

import errno
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sims_core.errors import InputError
from sims_image.data import prepare as preparing
from sims_image.data import writing
from sims_image.data.dataset import open_dataset
from sims_image.data.options import Prepare
from sims_image.data.prepare import prepare
from tests.image.ranks import launch
from tests.image.synthetic import cifar_members, cifar_tar, edm_zip, folder, idx, imagenet, pixels, png, python2_batch

IMAGES = pixels(12)
MARK = Path("/tmp/sims-image-was-run")


class Payload:
    """Runs a command when it is unpickled the usual way."""

    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


def refused(tmp_path, source, match, **options):
    """`prepare` refuses the source in one line, and leaves nothing."""
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=match) as caught:
        prepare(Prepare(source=str(source), out=str(tmp_path / "out"), **options))
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    assert sorted(tmp_path.rglob("*")) == before and not MARK.exists()


# ------------------------------------------------------------ tar


def member(name, data=b"x", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


MEMBERS = {
    "traversal": (member("cifar-10-batches-py/../../evil"), "evil.*stay inside"),
    "absolute": (member("/etc/evil"), "etc/evil.*stay inside"),
    "drive": (member("C:\\evil"), "evil.*stay inside"),
    "symlink": (member("cifar-10-batches-py/link", b"", tarfile.SYMTYPE, "/etc/passwd"), "link.*plain files"),
    "hardlink": (member("cifar-10-batches-py/hard", b"", tarfile.LNKTYPE, "data_batch_1"), "hard.*plain files"),
    "device": (member("cifar-10-batches-py/dev", b"", tarfile.CHRTYPE), "dev.*plain files"),
    "twice": (member("cifar-10-batches-py/data_batch_1"), "data_batch_1.*twice"),
    "twice elsewhere": (member("other/data_batch_1"), "data_batch_1.*twice"),
    "newline": (member("cifar\n10/../x"), r"cifar\\n10.*stay inside"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_tar_members(tmp_path, case):
    more, match = MEMBERS[case]
    refused(tmp_path, cifar_tar(tmp_path / "c.tar.gz", cifar_members()[0], [more]), match)


def test_tar_bombs_are_not_expanded(tmp_path):
    """Members, names and extended headers that claim 4 GB; a long tail."""
    info = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    info.size = 4 * 2**30
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf() + bytes(2**20)))
    refused(tmp_path, tmp_path / "a.tar.gz", "data_batch_1.*decompression bomb")
    for kind in (tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE):
        info.type = kind
        (tmp_path / "a.tar.gz").write_bytes(gzip.compress(info.tobuf() + bytes(2**20)))
        refused(tmp_path, tmp_path / "a.tar.gz", "decompression bomb")
    tail = cifar_tar(tmp_path / "a.tar.gz", cifar_members()[0]).read_bytes() + gzip.compress(bytes(10**6)) * 300
    (tmp_path / "a.tar.gz").write_bytes(tail)
    refused(tmp_path, tmp_path / "a.tar.gz", "decompression bomb")
    many = b"".join(tarfile.TarInfo(f"f{k}").tobuf() for k in range(1100))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress(many))
    refused(tmp_path, tmp_path / "a.tar.gz", "more than 1000 members")


def test_truncated_tars(tmp_path):
    whole = cifar_tar(tmp_path / "w.tar.gz", cifar_members()[0]).read_bytes()
    for k in range(0, len(whole), len(whole) // 12):
        (tmp_path / "c.tar.gz").write_bytes(whole[:k])
        refused(tmp_path, tmp_path / "c.tar.gz", "truncated|not in the archive")
    (tmp_path / "c.tar.gz").write_bytes(whole[:-8] + bytes(4) + whole[-4:])
    refused(tmp_path, tmp_path / "c.tar.gz", "(?i)crc")


def array_pickle(dtype, shape, raw):
    state = (1, shape, dtype, False, raw)

    class Array:
        def __reduce__(self):
            return np.zeros(0).__reduce__()[0], (np.ndarray, (0,), b"b"), state

    return pickle.dumps({b"data": Array(), b"labels": [1]}, protocol=2)


IMAGE = IMAGES[:1].reshape(1, -1)
BATCHES = {
    "os.system": (pickle.dumps(Payload(), protocol=2), r"data_batch_2.*refused.*system.*nothing in it was run"),
    "in a dict": (pickle.dumps({b"data": Payload()}, protocol=4), "refused.*system"),
    "in an object array": (pickle.dumps({b"data": np.array([Payload()])}, protocol=2), "plain numbers|refused.*system"),
    "object array": (pickle.dumps({b"data": np.array([{}])}, protocol=2), "plain numbers"),
    "builtins.eval": (b"\x80\x02cbuiltins\neval\nX\x03\x00\x00\x001+1\x85R.", "refused.*builtins.eval"),
    "getattr of numpy": (b"\x80\x04\x8c\x05numpy\x8c\x0enpyio.np_loads\x93.", "refused.*np_loads"),
    "extension": (b"\x80\x02\x82\x01.", "refused.*EXT1"),
    "persistent id": (b"\x80\x02K\x01Q.", "refused.*BINPERSID"),
    "new object": (b"\x80\x02cnumpy\nndarray\n)\x81.", "refused.*calls numpy.ndarray"),
    "huge memo": (b"\x80\x02Nr\xff\xff\xff\x7f.", "pickled dict"),
    "huge length": (b"\x80\x02}(U\x04data\x8e" + struct.pack("<Q", 2**60) + b"x", "cut short"),
    "huge bytearray": (b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"x.", "cut short"),
    "sets attributes of numpy": (b"\x80\x02cnumpy\nndarray\n}U\x05shapeK\x01sb.", "data_batch_2"),
    "laughs": (b"\x80\x02}K\x00K\x00\x86" + b"q\x01h\x01\x86" * 60 + b"K\x01s.", "a tuple as a key"),
    "laughs in a list": (b"\x80\x02}]K\x00a" + b"q\x01]h\x01ah\x01a" * 60 + b".", "data_batch_2"),
    "bytes that do not fill": (array_pickle(np.dtype("u1"), (10**9, 3072), b"abc"), "in 3 bytes"),
    "negative shape": (array_pickle(np.dtype("u1"), (-1, -3), b"abc"), "without a shape"),
    "wrong type": (array_pickle(np.dtype("f4"), (1, 3072), bytes(4 * 3072)), r"\(N, 3072\) of bytes"),
    "wrong width": (array_pickle(np.dtype("u1"), (1, 3071), bytes(3071)), r"\(N, 3072\) of bytes"),
    "truncated": (python2_batch(IMAGES[:3], [1, 2, 3])[:-400], "cut short"),
    "not a pickle": (b"hello", "refused"),
    "a list": (pickle.dumps([1]), "dict"),
    "label too high": (python2_batch(pixels(3, side=32), [1, 10, 3]), "data_batch_2.*image 1 is labelled 10"),
    "label negative": (python2_batch(pixels(3, side=32), [1, -1, 3]), "image 1 is labelled -1"),
    "labels too many": (python2_batch(pixels(3, side=32), [1, 2, 3, 4]), "4 labels for 3 images"),
}


@pytest.mark.parametrize("case", BATCHES)
def test_cifar_pickles(tmp_path, case):
    data, match = BATCHES[case]
    source = cifar_tar(tmp_path / "c.tar.gz", {**cifar_members()[0], "data_batch_2": data})
    refused(tmp_path, source, match)


def test_the_payload_would_have_run():
    """The control: read the usual way, the file does what the tests above say it does not."""
    try:
        pickle.loads(pickle.dumps(Payload(), protocol=2))
        assert MARK.exists()
    finally:
        MARK.unlink(missing_ok=True)


# ------------------------------------------------------------ zip


def both_refuse(tmp_path, path, match):
    """`open_dataset` and `prepare` alike."""
    with pytest.raises(InputError, match=match) as caught:
        open_dataset(path)
    assert "\n" not in str(caught.value)
    refused(tmp_path, path, match)


def link(name):
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, 0o120777 << 16
    return info


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("extra", "match"),
    [
        (("../evil.png", png(IMAGES[0])), r"a\.zip: \.\./evil\.png.*stay inside"),
        (("/evil.png", png(IMAGES[0])), "evil.*stay inside"),
        (("x\\..\\..\\evil.png", png(IMAGES[0])), "evil.*stay inside"),
        ((link("00000/link.png"), b"/etc/passwd"), r"link\.png.*plain files"),
        (("00000/img00000003.png", png(IMAGES[0])), r"img00000003\.png.*twice"),
        (("dataset.json", b"{}"), r"dataset\.json.*twice"),
    ],
)
def test_zip_members(tmp_path, extra, match):
    both_refuse(tmp_path, edm_zip(tmp_path / "a.zip", IMAGES, extra=[extra]), match)


def labelled(change):
    listed = [[f"00000/img{k:08d}.png", k % 3] for k in range(12)]
    return {"labels": change(listed)}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda x: x[:-1], r"11 labels for 12 images.*img00000011"),
        (lambda x: [*x, ["more.png", 1]], r"13 labels for 12 images.*more\.png"),
        (lambda x: [*x[:-1], x[0]], r"img00000000\.png' is labelled twice"),
        (lambda x: [*x[:-1], [x[-1][0], -1]], r"img00000011\.png' is labelled -1"),
        (lambda x: [*x[:-1], [x[-1][0], 10**9]], "labelled 1000000000"),
        (lambda x: [*x[:-1], [x[-1][0], 1.5]], "not .name, class number"),
        (lambda x: [*x[:-1], [x[-1][0], True]], "not .name, class number"),
        (lambda x: {}, "'labels' must be null or a list"),
    ],
)
def test_edm_labels(tmp_path, change, match):
    both_refuse(tmp_path, edm_zip(tmp_path / "a.zip", IMAGES, content=labelled(change)), match)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_claiming(width, height, body=b"\0"):
    """A PNG whose header claims more than there is."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


WHOLE = png(IMAGES[0])
PICTURES = {
    "cut": (WHOLE[: len(WHOLE) // 2], "damaged"),
    "header only": (WHOLE[:40], "damaged"),
    "no picture": (b"hello", "damaged, or not a picture"),
    "empty": (b"", "no picture: it is empty"),
    "flipped": (WHOLE[:60] + bytes([WHOLE[60] ^ 255]) + WHOLE[61:], "damaged"),
    "zero size": (png_claiming(0, 0), "damaged"),
    "too many pixels": (png_claiming(50_000, 50_000), "pixels: a decompression bomb"),
    "just below that": (png_claiming(9_000, 9_000), "would expand from .* decompression bomb"),
    "body missing": (png_claiming(8, 8), "damaged"),
    "text bomb": (WHOLE[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27))) + WHOLE[33:], "damaged"),
}


@pytest.mark.parametrize("case", PICTURES)
@pytest.mark.parametrize("kind", ["folder", "zip", "parquet"])
def test_one_bad_picture_in_the_middle(tmp_path, case, kind):
    """Named, wherever it is; a zip's checksum is right, so that the picture itself is what is looked at."""
    data, match = PICTURES[case]
    if kind == "folder":
        source, name = folder(tmp_path / "in", IMAGES), r"00005\.png"
        (source / "00005.png").write_bytes(data)
    elif kind == "zip":
        source, name = tmp_path / "a.zip", r"img00000005\.png"
        with zipfile.ZipFile(source, "w") as archive:
            for k, image in enumerate(IMAGES):
                archive.writestr(f"00000/img{k:08d}.png", data if k == 5 else png(image))
        with pytest.raises(InputError, match=f"{name}.*{match}"):
            open_dataset(source)
    else:
        source, name = tmp_path / "a.parquet", "row 5"
        pq.write_table(pa.table({"image": [data if k == 5 else png(i) for k, i in enumerate(IMAGES)]}), source)
    refused(tmp_path, source, f"{name}.*{match}")


def test_truncated_and_damaged_zips(tmp_path):
    whole = edm_zip(tmp_path / "w.zip", IMAGES, np.arange(12) % 3).read_bytes()
    path = tmp_path / "a.zip"
    for k in range(4, len(whole), len(whole) // 12):
        path.write_bytes(whole[:k])
        both_refuse(tmp_path, path, "not a whole zip")
    place = whole.index(png(IMAGES[5])) + 50
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    both_refuse(tmp_path, path, r"img00000005\.png.*checksum")
    with pytest.raises(InputError, match=r"img00000005\.png.*checksum"):
        open_dataset(path, verify=False).images([5])
    path.write_bytes(whole.replace(b"PK\3\4", b"PK\3\5"))
    both_refuse(tmp_path, path, "damaged")


def test_zip_bombs(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("00000/img00000000.png", bytes(100 * 2**20))
    both_refuse(tmp_path, path, r"img00000000\.png.*decompression bomb")
    # a member that says 1000 bytes and holds a hundred million
    data = path.read_bytes().replace(struct.pack("<I", 100 * 2**20), struct.pack("<I", 1000))
    path.write_bytes(data)
    both_refuse(tmp_path, path, r"img00000000\.png.*size or checksum")
    # two members that share their bytes
    edm_zip(path, IMAGES)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        for k, info in enumerate(infos):
            info.header_offset = infos[0].header_offset
            info.compress_size = info.file_size = 10**5
            del k
    data = bytearray(path.read_bytes())
    for info in infos:
        at = data.rindex(
            b"PK\1\2" + data[data.rindex(info.filename.encode()) - 42 : data.rindex(info.filename.encode())]
        )
        data[at + 20 : at + 28] = struct.pack("<II", 10**5, 10**5)
    path.write_bytes(bytes(data))
    both_refuse(tmp_path, path, "overlap")


def test_zips_of_other_things(tmp_path):
    path = tmp_path / "a.zip"
    edm_zip(path, [])
    both_refuse(tmp_path, path, "no images|no pictures")
    edm_zip(path, IMAGES, extra=[("readme.txt", b"")])
    with pytest.raises(InputError, match=r"readme\.txt.*PNG images"):
        open_dataset(path)
    edm_zip(path, IMAGES, extra=[("x/img.npy", b"")])
    both_refuse(tmp_path, path, r"img00000000\.png.*NPY arrays")
    edm_zip(path, IMAGES, content=["list"])
    both_refuse(tmp_path, path, "JSON object")
    for method in (zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2):
        edm_zip(path, IMAGES, method=method)
        both_refuse(tmp_path, path, "stored or deflated")
    data = bytearray(edm_zip(path, IMAGES).read_bytes())
    for at in (data.index(b"PK\1\2") + 8, data.index(b"PK\3\4") + 6):
        data[at] |= 1
    path.write_bytes(bytes(data))
    both_refuse(tmp_path, path, r"img00000000\.png.*encrypted")


def npy(array, **options):
    out = io.BytesIO()
    np.save(out, array, **options)
    return out.getvalue()


def npy_claiming(shape):
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return out.getvalue() + bytes(64)


@pytest.mark.parametrize(
    ("bad", "match"),
    [
        (npy(np.array([[[Payload()]]], object)), "plain little-endian numbers"),
        (npy_claiming((4, 10**6, 10**6)), "truncated or damaged"),
        (npy_claiming((4, -1, -1)), "impossible|truncated"),
        (npy(np.zeros((4, 2, 2), np.float32))[:-3], "truncated or damaged"),
        (npy(np.zeros((3, 2, 2), np.float32)), r"\(3, 2, 2\) among float32 \(4, 2, 2\)"),
        (b"\x93NUMPY\1\0\x20\0{'descr': __import__('os')}      ", "not an array"),
        (b"", "not an array"),
    ],
)
def test_bad_latents(tmp_path, bad, match):
    path = tmp_path / "l.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for k in range(5):
            archive.writestr(f"00000/img{k:08d}.npy", bad if k == 3 else npy(np.zeros((4, 2, 2), np.float32)))
    both_refuse(tmp_path, path, rf"img00000003\.npy.*{match}")


def test_a_zip_whose_record_lies(tmp_path):
    made = prepare(Prepare(source="digits", out=str(tmp_path / "d.zip"), format="edm-zip", limit=20))
    with zipfile.ZipFile(made.path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    for field, value, match in (
        ("sha256", "0" * 64, "records sha256 000.* but the content has"),
        ("shape", [1, 8, 9], "it records"),
        ("classes", ["0"], "named"),
        ("classes", None, "list of names"),
    ):
        said = json.loads(content["dataset.json"])
        said["sims"][field] = value
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
            for name, data in content.items():
                archive.writestr(name, json.dumps(said) if name == "dataset.json" else data)
        both_refuse(tmp_path, tmp_path / "a.zip", match)


# ------------------------------------------------------------ shapes, folders


def test_sizes_and_shapes(tmp_path):
    wide = pixels(3)[:, :, :, :6]
    source = folder(tmp_path / "wide", wide)
    refused(tmp_path, source, r"00000\.png.*6x8 is not square; `prepare` with `size` N")
    refused(tmp_path, source, r"00000\.png.*6x8 is not square; `prepare` with `crop` center", size=4, crop="none")
    mixed = folder(tmp_path / "mixed", IMAGES)
    (mixed / "00007.png").write_bytes(png(pixels(1, side=9)[0]))
    refused(tmp_path, mixed, r"00007\.png.*9x9 among 8x8 pictures; remove it, or `prepare` with `size` N")
    grey = folder(tmp_path / "grey", IMAGES[:, :1])
    (grey / "00007.png").write_bytes(png(IMAGES[0]))
    refused(tmp_path, grey, r"00007\.png.*colour.*`gray` or `rgb`")
    for name, images in (("w.zip", wide), ("m.zip", [*IMAGES[:3], pixels(1, side=9)[0]])):
        match = "not square" if name == "w.zip" else r"img00000003\.png.*(9, 9)"
        with pytest.raises(InputError, match=match):
            open_dataset(edm_zip(tmp_path / name, images))
    alpha = edm_zip(tmp_path / "alpha.zip", pixels(2, 4))
    with pytest.raises(InputError, match="grey or RGB"):
        open_dataset(alpha)


def test_bad_folders(tmp_path):
    source = folder(tmp_path / "in", IMAGES, np.arange(12) % 3)
    (source / "lost.png").write_bytes(WHOLE)
    refused(tmp_path, source, r"lost\.png.*beside class folders")
    (source / "lost.png").unlink()
    (source / "dangling.png").symlink_to("nowhere")
    refused(tmp_path, source, r"dangling\.png.*broken link")
    (source / "dangling.png").unlink()
    (source / "dataset.json").write_text("[")
    refused(tmp_path, source, r"dataset\.json.*not JSON")
    (tmp_path / "empty").mkdir()
    refused(tmp_path, tmp_path / "empty", "no pictures")
    (tmp_path / "eps").mkdir()
    (tmp_path / "eps/a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    refused(tmp_path, tmp_path / "eps", "no pictures")
    (tmp_path / "eps/a.eps").rename(tmp_path / "eps/a.png")
    refused(tmp_path, tmp_path / "eps", r"a\.png.*not a picture")  # never handed to Ghostscript


# ------------------------------------------------------------ npz, IDX, parquet


def batch(path, **arrays):
    path.mkdir(exist_ok=True)
    flat = pixels(6).reshape(6, -1)
    np.savez(path / "train_data_batch_1.npz", **{"data": flat, "labels": np.arange(1, 7), **arrays})
    return path


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"labels": np.array([1, 2, 0, 3, 4, 5])}, "image 2 is labelled 0; these files' labels are 1 to 1000"),
        ({"labels": np.array([1, 2, 3, 1001, 4, 5])}, "image 3 is labelled 1001"),
        ({"labels": np.arange(1, 6)}, "5 labels for 6 images"),
        ({"labels": np.array([{}] * 6, object)}, "plain little-endian numbers"),
        ({"labels": np.ones(6)}, "whole number"),
        ({"data": pixels(6).reshape(6, -1)[:, :-1]}, r"\(N, 3\*S\*S\)"),
        ({"data": pixels(6).reshape(6, -1).astype(np.float32)}, "of bytes"),
        ({"data": np.array([{}] * 6, object)}, "plain little-endian numbers"),
        ({"data": np.zeros((0, 192), np.uint8)}, r"\(N, 3\*S\*S\)"),
    ],
)
def test_bad_batches(tmp_path, arrays, match):
    refused(tmp_path, batch(tmp_path / "in", **arrays), rf"train_data_batch_1\.npz.*{match}")


def test_damaged_batches(tmp_path):
    source, *_ = imagenet(tmp_path / "in", counts=(5, 4, 3))
    path = source / "train_data_batch_2.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, source, r"train_data_batch_2\.npz.*not a whole zip")
    path.unlink()
    refused(tmp_path, source, r"train_data_batch_2\.npz.*not there")
    refused(tmp_path, source, r"val_data\.npz.*not there", split="val")
    place = whole.index(pixels(12).reshape(12, -1)[7].tobytes()) + 3
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    refused(tmp_path, source, "train_data_batch_2.npz: data.*damaged")
    np.savez(path, pixels=np.zeros(3))
    refused(tmp_path, source, "no 'data'")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("data.npy", bytes(100 * 2**20))
        archive.writestr("labels.npy", b"")
    refused(tmp_path, source, "data.npy.*decompression bomb")


def test_bad_idx(tmp_path):
    images, labels = pixels(6, 1)[:, 0], np.arange(6, dtype=np.uint8)
    path, names = tmp_path / "in/train-images-idx3-ubyte.gz", tmp_path / "in/train-labels-idx1-ubyte.gz"
    path.parent.mkdir()

    def wrong(data, match):
        path.write_bytes(gzip.compress(data))
        refused(tmp_path, path.parent, f"train-images.*{match}")

    idx(names, labels)
    idx(path, images)
    body = gzip.decompress(path.read_bytes())
    wrong(body[:-1], "truncated")
    wrong(body + b"x", "truncated or damaged")
    wrong(body[:10], "first bytes")
    wrong(b"\0\0\x0d\3" + body[4:], "first bytes")
    wrong(bytes((0, 0, 8, 3)) + struct.pack(">3I", 2**32 - 1, 2**32 - 1, 2**32 - 1), "decompression bomb")
    wrong(bytes((0, 0, 8, 3)) + struct.pack(">3I", 0, 8, 8), "truncated")
    whole = gzip.compress(body)
    path.write_bytes(whole[: len(whole) // 2])
    refused(tmp_path, path.parent, "truncated")
    path.write_bytes(whole[:-8] + bytes(8))
    refused(tmp_path, path.parent, "(?i)truncated or damaged.*crc")
    idx(path, images[:, :5])
    refused(tmp_path, path.parent, "8x5 images are not square")
    idx(path, images)
    idx(names, labels[:5])
    refused(tmp_path, path.parent, "5 labels for 6 images")
    names.unlink()
    refused(tmp_path, path.parent, "no such file of labels")
    assert prepare(Prepare(source=str(path), out=str(tmp_path / "ok"), unlabelled=True)).labels is None
    plain = idx(tmp_path / "x-images-idx3-ubyte", images)
    plain.write_bytes(plain.read_bytes()[:-1])
    refused(tmp_path, plain, "truncated", unlabelled=True)


def test_bad_parquet(tmp_path):
    path, good = tmp_path / "a.parquet", [png(i) for i in IMAGES]

    def written(match, **columns):
        pq.write_table(pa.table({"image": good, **columns}), path)
        refused(tmp_path, path, match)

    written("row 3.*no label", label=[0, 1, 2, None] + [0] * 8)
    written("row 3.*is labelled -1", label=[0, 1, 2, -1] + [0] * 8)
    written("row 2.*no picture of its own", image=[*good[:2], None, *good[3:]])
    written("which column holds pictures.*`image_column`", image=[1] * 12)
    features = {"image": {"_type": "Image"}, "label": {"names": ["a", "b"], "_type": "ClassLabel"}}
    table = pa.table({"image": good, "label": [0, 1, 2] * 4})
    named = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(named, path)
    refused(tmp_path, path, "row 2.*is labelled 2.*with 2 classes")
    whole = path.read_bytes()
    for k in range(4, len(whole), len(whole) // 6):
        path.write_bytes(whole[:k])
        refused(tmp_path, path, "not a whole parquet file")
    pq.write_table(pa.table({"image": [bytes(2**20)] * 70}), path, compression="zstd", use_dictionary=False)
    refused(tmp_path, path, "row group 0.*decompression bomb")


def test_unknown_files(tmp_path):
    for name, match in (
        ("a.xyz", "not recognised; `kind`"),
        ("a.npz", "not a whole zip file"),
        ("a.rar", "an archive"),
        ("train_batch.bin", "a format that is not read"),
        ("a.tfrecord", "TFRecord"),
        ("data.mdb", "LMDB"),
        ("mnist_train.csv", "tables"),
    ):
        (tmp_path / name).write_bytes(b"hello world")
        refused(tmp_path, tmp_path / name, match)
    refused(tmp_path, tmp_path / "typo", "no such file or folder")
    refused(tmp_path, tmp_path / "typo", "no such file or folder", kind="zip")


# ------------------------------------------------------------ writing


def full_disk(monkeypatch, home, name, after):
    """The ``after``-th call of a writing function finds the disk full."""
    real, calls = getattr(home, name), []

    def failing(*args, **options):
        calls.append(1)
        if len(calls) == after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **options)

    monkeypatch.setattr(home, name, failing)


@pytest.mark.parametrize(
    ("where", "after", "fmt"),
    [
        ("append", 3, "folder"),
        ("flush", 1, "folder"),
        ("write_json", 2, "folder"),
        ("write_atomic", 1, "folder"),
        ("write_edm_zip", 1, "edm-zip"),
    ],
)
def test_a_full_disk_keeps_what_is_done_and_the_command_goes_on(tmp_path, monkeypatch, where, after, fmt):
    source = folder(tmp_path / "in", pixels(300), np.arange(300) % 3)
    out = tmp_path / ("out.zip" if fmt == "edm-zip" else "out")
    settings = Prepare(source=str(source), out=str(out), format=fmt)
    with monkeypatch.context() as patch:
        patch.setattr(preparing, "COMMIT_BYTES", 10_000)
        homes = {"append": writing.Growing, "flush": writing.Growing, "write_atomic": writing}
        home = homes.get(where, preparing)
        full_disk(patch, home, where, after)
        with pytest.raises(InputError, match=r"^out.*the disk is full.*make room and repeat"):
            prepare(settings)
    assert not out.exists() and (tmp_path / (out.name + ".preparing")).exists()
    assert len(prepare(settings)) == 300 and sorted(p.name for p in tmp_path.iterdir()) == ["in", out.name]
    other = prepare(Prepare(source=str(source), out=str(tmp_path / "again")))
    assert open_dataset(out).sha256 == other.sha256


def test_a_real_limit_of_the_system_is_reported(tmp_path):
    """The kernel refuses the write (a file size limit of 100 kB): the same path as a full disk, nothing simulated."""
    code = (
        "import resource, sys; from sims_image.__main__ import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); main()"
    )
    source = folder(tmp_path / "in", pixels(300, side=12))
    words = ["prepare", str(source), "--out", str(tmp_path / "d")]
    [process] = launch(["-c", code, *words])
    _, error = process.communicate(timeout=300)
    assert process.returncode == 2 and "the disk is full (File too large)" in error
    assert not (tmp_path / "d").exists() and len(prepare(Prepare(source=str(source), out=str(tmp_path / "d")))) == 300


def test_too_little_room_is_said_before_anything_is_written(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage)
    refused(tmp_path, "digits", r"it needs 115 kB and the disk has 1 kB left")


def test_half_made_sets_are_not_mixed(tmp_path, monkeypatch):
    source = folder(tmp_path / "in", pixels(300))
    with monkeypatch.context() as patch:
        full_disk(patch, writing.Growing, "append", 3)
        with pytest.raises(InputError, match="full"):
            prepare(Prepare(source=str(source), out=str(tmp_path / "out")))
    with pytest.raises(InputError, match=r"out\.preparing.*size: 0 there, 4 here"):
        prepare(Prepare(source=str(source), out=str(tmp_path / "out"), size=4))
    image = Image.open(source / "00299.png")
    image.resize((4, 4)).resize((8, 8)).save(source / "00299.png")
    with pytest.raises(InputError, match="source sha256"):
        prepare(Prepare(source=str(source), out=str(tmp_path / "out")))
