"""Small files that ask for endless work or memory: each is refused in one line, in seconds, within 1.5 GB."""

import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from tests.image.ranks import PEAK

ROOT = Path(__file__).resolve().parents[2]
PROTO, STOP = b"\x80\x04", b"."
#: the same tuple twice in a tuple, sixty times over: equal to another such one only after 2^60 comparisons
ENDLESS = b")" + b"2\x86" * 60


def glob(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def raw(value):
    return b"B" + struct.pack("<I", len(value)) + value


def integer(value):
    return b"J" + struct.pack("<i", value)


def long(count):
    return b"\x8b" + struct.pack("<I", count) + b"\x01" * count


MAGIC = b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"


def stored(key, keys, count=4):
    """A file with one tensor's storage, as torch's older format writes it; key and keys as opcodes."""
    parts = [
        b"\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19",
        integer(1001),
        b"}" + text("little_endian") + b"\x88s",
    ]
    identifier = b"(" + text("storage") + glob("torch", "FloatStorage") + key + text("cpu") + integer(count) + b"NtQ"
    payload = b"".join(b"\x80\x02" + part + STOP for part in [*parts, identifier, keys])
    return (
        PROTO + glob("torch.storage", "_load_from_bytes") + raw(payload + struct.pack("<q", count) + bytes(4 * count))
    )


def again(what, times):
    """One value, made once and put on the stack many times, each time with ``what`` done to it."""
    return b"r\x00\x00\x00\x00" + what * times


def persistent(name, state):
    meta = b"(" + text("type") + text("class") + text("class_name") + text(name) + text("state") + state + b"d"
    return (
        glob("torch_utils.persistence", "_reconstruct_persistent_obj") + meta.replace(b"(", b"}(", 1)[:-1] + b"u\x85R"
    )


def snapshot(state, beside=b""):
    return PROTO + b"}(" + text("ema") + persistent("EDMPrecond", state) + beside + b"u" + STOP


GET = b"j\x00\x00\x00\x00"
ARRAY = glob("numpy.core.multiarray", "_reconstruct") + b")R"
MINUS = b"J" + b"\xff" * 4
KIND = (
    glob("numpy", "dtype") + text("f8") + b"\x85R(" + integer(3) + text("<") + b"NNN" + MINUS * 2 + integer(0) + b"tb"
)


EMPTY_MODULE = b"}(" + b"".join(text(name) + b"}" for name in ("_parameters", "_buffers", "_modules")) + b"u"


def none_of(count):
    return b"}(" + b"".join(text(f"{k}") + b"N" for k in range(count)) + b"u"


FILES = {
    "keys that compare without end": stored(ENDLESS, b"]" + ENDLESS + b"a") + b"\x85R" + STOP,
    "a key compared with a text": stored(text("0"), b"]" + ENDLESS + b"a") + b"\x85R" + STOP,
    "a numpy type in words without end": PROTO + glob("numpy", "dtype") + ENDLESS + b"\x85R" + STOP,
    "factors of a thousand digits": PROTO + ARRAY + b"(" + integer(1) + b"(" + long(255) * 60_000 + b"t" + KIND
    + b"\x89" + raw(b"x") + b"tb" + STOP,
    "sixty thousand factors": PROTO + ARRAY + b"(" + integer(1) + b"(" + b"\x8a\x20" + b"\x7f" * 32
    + (b"\x8a\x20" + b"\x7f" * 32) * 60_000 + b"t" + KIND + b"\x89" + raw(b"x") + b"tb" + STOP,
    "a number of five thousand digits": PROTO + long(2100) + STOP,
    "one list as a hundred thousand sets": PROTO + b"](" + text("a") * 300 + b"e"
    + again(glob("builtins", "set") + GET + b"\x85R0", 100_000) + STOP,
    "the same bytes as a thousand arrays": PROTO + raw(bytes(2**20))
    + again(ARRAY + b"(" + integer(1) + integer(2**17) + b"\x85" + KIND + b"\x89" + GET + b"tb", 1000) + STOP,
    "one text in every setting": snapshot(EMPTY_MODULE, text("dataset_kwargs") + text("x" * 2**20)
    + b"r\x00\x00\x00\x00" + text("loss_fn") + b"](" + GET * 1900 + b"e"),
    "a hundred thousand opcodes as a storage": PROTO + raw(b"\x80\x02" + b"N0" * 2**19 + b"N" + STOP)
    + again(glob("torch.storage", "_load_from_bytes") + GET + b"\x85R0", 6) + STOP,
    "modules that share their parts": snapshot(
        b"}(" + text("_parameters") + none_of(20_000) + b"r\x00\x00\x00\x00" + text("_buffers") + GET + text("_modules")
        + b"}(" + b"".join(text(f"m{k}") + persistent("M", b"}(" + text("_parameters") + GET + text("_buffers") + GET
        + text("_modules") + b"}u") for k in range(5000)) + b"uu"),
    "the same half-precision tensor everywhere": snapshot(
        b"}(" + text("_buffers") + b"}" + text("_modules") + b"}" + text("_parameters") + b"}("
        + text("first") + glob("torch._utils", "_rebuild_tensor_v2") + b"(" + glob("torch.storage", "_load_from_bytes")
        + raw(b"".join(b"\x80\x02" + part + STOP for part in (
            MAGIC, integer(1001), b"}" + text("little_endian") + b"\x88s",
            b"(" + text("storage") + glob("torch", "HalfStorage") + text("0") + text("cpu") + integer(2**18) + b"NtQ",
            b"]" + text("0") + b"a")) + struct.pack("<q", 2**18) + bytes(2**19)) + b"\x85R"
        + integer(0) + integer(2**18) + b"\x85" + integer(1) + b"\x85\x89}tR" + b"r\x00\x00\x00\x00"
        + b"".join(text(f"w{k}") + GET for k in range(15_000)) + b"uu"),
}  # fmt: skip

READ = """
import json, sys, time
from sims_core.errors import InputError
from sims_image.info import describe
told = {}
for path in sys.argv[1:]:
    began = time.monotonic()
    try:
        words = "\\n".join(describe(path))
    except InputError as error:
        words = str(error)
    told[path] = (words, time.monotonic() - began)
print(json.dumps([told, PEAK]))
""".replace("PEAK", PEAK)


def read(paths):
    """What `info` says of each file, the seconds it took, and the most memory (kB) that all together took."""
    words = [sys.executable, "-c", READ, *map(str, paths)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True, env=env)
    told, memory = json.loads(done.stdout)
    return {Path(path).stem: words for path, words in told.items()}, memory


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    folder, paths = tmp_path_factory.mktemp("bombs"), []
    for name, content in FILES.items():
        paths.append(folder / f"{name}.pkl")
        paths[-1].write_bytes(content)
    return read(paths)


@pytest.mark.parametrize("name", FILES)
def test_files_that_ask_for_endless_work_are_refused(told, name):
    words, seconds = told[0][name]
    assert "refused: " in words and "malformed" not in words and "is not data" not in words, words
    assert words.isprintable() and seconds < 30
    assert told[1] < 1.5 * 2**20


def record(**network):
    known = {"model_type": "SongUNet", "img_resolution": 8, "img_channels": 1, "model_channels": 8, "channel_mult": [1]}
    record = {"preset": None, "data": None, "images": 5, "mi": 10**6, "ema": {"kind": "none", "width": None}}
    record |= {"parent": None, "training": {}, "provenance": {}}
    return {
        "format": 1, "kind": "sims_image checkpoint", "preconditioning": "edm", "parameters": 5, "weights_sha256": "",
        "network": {**known, **network}, "record": record,
    }  # fmt: skip


NETWORKS = {
    "blocks": {"num_blocks": 10_000},
    "channels": {"model_channels": 2**40},
    "levels": {"channel_mult": [1] * 5000, "img_resolution": 4096},
    "widths": {"channel_mult": [2**40]},
    "classes": {"label_dim": 10**12},
    "pixels": {"img_resolution": 2**40},
    "heads": {"attn_resolutions": list(range(1, 5000))},
    "filter": {"resample_filter": [1] * 10_000},
    "within bounds": {"num_blocks": 32, "model_channels": 4096, "channel_mult": [4, 4]},
}

LOAD = f"""
import sys
from sims_core.errors import InputError
from sims_image.models import checkpoints
for path in sys.argv[1:]:
    try:
        checkpoints.load(path)
    except InputError as error:
        print(error)
print({PEAK})
"""


def test_networks_are_sized_before_they_are_built(tmp_path):
    import torch
    from safetensors.torch import save_file

    from sims_image.data.archives import sha256_file

    paths = []
    for name, network in NETWORKS.items():
        paths.append(tmp_path / name)
        paths[-1].mkdir()
        save_file({"a": torch.zeros(3)}, paths[-1] / "model.safetensors")
        content = record(**network) | {"weights_sha256": sha256_file(paths[-1] / "model.safetensors")}
        (paths[-1] / "model.json").write_text(json.dumps(content))
    words = [sys.executable, "-c", LOAD, *map(str, paths)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=True, env=env)
    *lines, memory = done.stdout.splitlines()
    assert len(lines) == len(NETWORKS) and int(memory) < 1.5 * 2**20
    for line in lines[:-1]:
        assert "its architecture cannot be built" in line, line
    assert "another architecture: the file lacks" in lines[-1]
