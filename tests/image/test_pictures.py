"""Single pictures: what their files hold beyond 8 bits, damage, and orientation."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from sims_core.errors import InputError
from sims_image.data.options import Prepare
from sims_image.data.pictures import decode, depth, raw_pixels
from sims_image.data.plan import plan
from sims_image.data.prepare import prepare
from tests.image.synthetic import folder, pixels, png


def deep_png(kind, bits=16, side=8):
    """A PNG of any colour type and depth, written by hand: Pillow writes 8 bits only."""
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    rows = b"".join(b"\0" + bytes(range(side * channels * bits // 8)) for _ in range(side))

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", side, side, bits, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_tiff(side=8):
    """An RGB TIFF of 16 bits a channel, uncompressed, little-endian."""
    data = bytes(side * side * 3 * 2)
    entries = [
        (256, 3, 1, side), (257, 3, 1, side), (258, 3, 3, 200), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 300),
        (277, 3, 1, 3), (278, 3, 1, side), (279, 4, 1, len(data)),
    ]  # fmt: skip
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries))
    head += b"".join(struct.pack("<HHII", *entry) for entry in entries) + bytes(4)
    return head.ljust(200, b"\0") + struct.pack("<HHH", 16, 16, 16).ljust(100, b"\0") + data


def saved(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


DEEP = {
    "png grey": deep_png(0),
    "png rgb": deep_png(2),
    "png grey and alpha": deep_png(4),
    "png rgba": deep_png(6),
    "tiff rgb": deep_tiff(),
    "ppm": b"P6\n# a comment\n8 8\n65535\n" + bytes(8 * 8 * 6),
    "pgm": b"P5 8 8 1023\n" + bytes(8 * 8 * 2),
    "tiff grey": saved(Image.fromarray(np.zeros((8, 8), np.uint16)), "TIFF"),
    "tiff float": saved(Image.fromarray(np.zeros((8, 8), np.float32)), "TIFF"),
}


@pytest.mark.parametrize("case", DEEP)
def test_more_than_8_bits_are_refused(tmp_path, case):
    """By the depth in the file's header: Pillow reads most of them as 8 bits without a word."""
    for read in (decode, raw_pixels):
        with pytest.raises(InputError, match="8 bits a channel"):
            read("--source", "x", DEEP[case])
    suffix = case.split()[0]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / f"x.{suffix}").write_bytes(DEEP[case])
    with pytest.raises(InputError, match=rf"x\.{suffix}.*8 bits a channel"):
        prepare(Prepare(source=str(tmp_path / "in"), out=str(tmp_path / "out")))


def test_8_bits_and_less_are_read():
    colour, grey = Image.new("RGB", (8, 8), (1, 2, 3)), Image.new("L", (8, 8), 5)
    for image in (colour, grey, grey.convert("1"), grey.convert("P"), colour.convert("RGBA"), grey.convert("LA")):
        data = saved(image, "PNG")
        assert depth(decode("", "x", data), data) <= 8
    for kind in ("TIFF", "PPM", "BMP", "GIF", "WEBP", "JPEG", "SGI", "JPEG2000", "AVIF"):
        if kind in Image.SAVE or (Image.init() and kind in Image.SAVE):
            data = saved(colour, kind)
            assert depth(decode("", "x", data), data) == 8, kind
    assert decode("", "x", deep_png(0, bits=8)).size == (8, 8)


# ------------------------------------------------------------ damage


def spoiled(tmp_path, numbers, count=40):
    source = folder(tmp_path / "in", pixels(count), np.arange(count) % 2)
    names = sorted(path for path in source.rglob("*.png"))
    for k in numbers:
        names[k].write_bytes(b"hello" if k % 2 else png(pixels(1)[0])[:60])
    return source, [str(path.relative_to(source)) for path in names]


def test_all_bad_pictures_are_named_at_once(tmp_path):
    source, names = spoiled(tmp_path, (3, 7, 30))
    with pytest.raises(InputError) as caught:
        prepare(Prepare(source=str(source), out=str(tmp_path / "out")))
    said = str(caught.value)
    assert f"got '{names[3]}'" in said and f"bad too: {names[7]}, {names[30]} (3 in all)" in said
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.preparing").exists()


def test_many_bad_pictures_end_the_search(tmp_path):
    source, _ = spoiled(tmp_path, range(1, 200), count=200)
    with pytest.raises(InputError, match=r"bad too: .*\.\.\. \(\d+ and perhaps more\)") as caught:
        prepare(Prepare(source=str(source), out=str(tmp_path / "out"), workers=1))
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("holdout", [0.0, 10.0])
def test_damaged_pictures_can_be_left_out(tmp_path, holdout):
    source, names = spoiled(tmp_path, (3, 7, 30))
    options = Prepare(source=str(source), out=str(tmp_path / "out"), skip_damaged=True, holdout=holdout)
    assert f"3 damaged pictures left out: {names[3]}, {names[7]}, {names[30]}" in plan(options).notes
    data = prepare(options)
    assert len(data) == 37 - holdout and data.record["settings"]["skip_damaged"] is True
    if not holdout:
        kept = [k for k in range(40) if k not in (3, 7, 30)]
        order = np.argsort(np.arange(40) % 2, kind="stable")
        assert np.array_equal(data.images(slice(None)), pixels(40)[order][kept])
        assert data.labels.tolist() == np.sort(np.arange(40) % 2)[kept].tolist()
    assert prepare(options).sha256 == data.sha256  # recognised
    for path in source.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match="none of its pictures can be decoded"):
        plan(options)


def test_orientation_is_noted_where_it_is_not_followed(tmp_path):
    source = folder(tmp_path / "in", pixels(6))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for k in (1, 4):
        with Image.open(source / f"{k:05d}.png") as image:
            image.save(source / f"{k:05d}.png", exif=exif)
    note = "2 of the first 6 pictures are to be turned by their EXIF data; --upright does so"
    assert note in plan(Prepare(source=str(source))).notes
    assert note not in plan(Prepare(source=str(source), upright=True)).notes
