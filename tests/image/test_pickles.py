"""Nothing that a pickle asks for happens: every hostile file is refused with a named reason, and leaves no trace."""

import io
import os
import pickle
import random
import struct
import sys
import warnings

import numpy as np
import pytest
import torch

from sims_core.errors import InputError
from sims_image.models.nvidia.snapshots import Stored, plain, read_file, tensors
from sims_image.pickles import machine as pickles
from sims_image.pickles.machine import RefusedError
from sims_image.pickles.numbers import array, load_plain
from tests.image.nvidia_files import Persistent, binbytes, dump, module_state, stack_global, stream, text


class Bomb:
    """Runs a command when it is unpickled the usual way."""

    def __init__(self, canary):
        self.command = f"touch {canary}"

    def __reduce__(self):
        return os.system, (self.command,)


class Nested:
    """A tensor's storage whose bytes are a torch file that runs a command."""

    def __init__(self, canary):
        handle = io.BytesIO()
        torch.save(Bomb(canary), handle, _use_new_zipfile_serialization=False)
        self.payload = handle.getvalue()

    def __reduce__(self):
        return torch.storage._load_from_bytes, (self.payload,)


class SetState:
    """Gives an object a state through its own method."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return Armed, (), {"command": f"touch {self.canary}"}


class Armed:
    def __setstate__(self, state):
        os.system(state["command"])


def objects(canary):
    held = np.empty(1, object)
    held[0] = Bomb(canary)
    return held


RUNNABLE = {  # makes of a canary's path: what to pickle, and words of the reason
    "os.system": (lambda c: Bomb(c), r"asks for '(posix|nt)\.system'"),
    "nested": (lambda c: {"ema": [{"a": (1, [Bomb(c)])}]}, r"asks for '(posix|nt)\.system'"),
    "numpy objects": (lambda c: {"fid": {"mu": objects(c)}}, r"asks for '(posix|nt)\.system'|of type 'O8'"),
    "inside a storage": (lambda c: {"ema": Nested(c)}, r"inside a tensor's storage, it asks for '(posix|nt)\.system'"),
    "__setstate__": (lambda c: {"ema": SetState(c)}, r"asks for 'tests\.image\.test_pickles\.Armed'"),
}


def refusal(path, match):
    with pytest.raises(InputError, match=match) as error:
        read_file(path)
    message = str(error.value)
    assert str(path) in message and "\n" not in message
    assert "nothing in it was run" in message
    return message


def refuse(tmp_path, data, match):
    path = tmp_path / "file.pkl"
    path.write_bytes(data)
    return refusal(path, match)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("name", RUNNABLE)
def test_what_would_run_is_refused(tmp_path, name, protocol):
    make, reason = RUNNABLE[name]
    canary = tmp_path / "canary"
    data = pickle.dumps(make(canary), protocol=protocol)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pickle.loads(data)
    assert canary.exists(), "the control: unpickled the usual way, the file acts"
    canary.unlink()
    refuse(tmp_path, data, reason)
    assert not canary.exists()


def test_source_text_is_not_run(tmp_path):
    canary = tmp_path / "canary"
    source = f"import os; os.system('touch {canary}')\nclass EDMPrecond: pass\n"
    path = dump(tmp_path / "file.pkl", {"ema": Persistent("EDMPrecond", module_state(), source)})
    found = read_file(path)["ema"]
    assert isinstance(found, Stored) and found.class_name == "EDMPrecond" and not canary.exists()
    assert source not in repr(found)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("builtins", "__import__"),
        ("operator", "attrgetter"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_device_tensor_from_numpy"),
        ("torch.storage", "UntypedStorage.from_file"),
        ("torch_utils", "persistence._reconstruct_persistent_obj"),
        ("torch", "storage._load_from_bytes"),
        ("torch.storage", "os.system"),
        ("collections", "OrderedDict.__class__"),
        ("sims_image.models.nvidia.snapshots", "_storage"),
        ("numpy", "load"),
        ("", ""),
        ("numpy\n", "ndarray"),
        ("posix", "system\nerror: everything is fine"),
    ],
)
def test_every_other_name_is_refused_by_name(tmp_path, module, name):
    message = refuse(tmp_path, stream(stack_global(module, name), b")R"), "it asks for")
    assert repr(f"{module}.{name}")[1:-1] in message
    refuse(tmp_path, stream(b"c" + module.encode() + b"\n" + name.encode() + b"\n)R"), "it asks for")


EMA = stack_global("dnnlib.util", "EasyDict")
MODULE = stack_global("torch.nn.modules.container", "ModuleDict") + b")\x81"
NUMBER = stack_global("numpy", "dtype") + text("O8") + b"\x89\x88\x87R"
DTYPE = stack_global("numpy", "dtype") + text("f8") + b"\x89\x88\x87R"
FRAME = "<Q"


@pytest.mark.parametrize(
    ("opcodes", "match"),
    [
        (b"\x82\x01", "opcode EXT1"),
        (b"\x83\x01\x00", "opcode EXT2"),
        (b"\x84\x01\x00\x00\x00", "opcode EXT4"),
        (b"Pidentifier\n", "opcode PERSID"),
        (text("identifier") + b"Q", "BINPERSID"),
        (b"(iposix\nsystem\n", "opcode INST"),
        (b"(" + EMA + b"o", "opcode OBJ"),
        (EMA + b")}\x92", "opcode NEWOBJ_EX"),
        (b"\x97", "opcode NEXT_BUFFER"),
        (b"\x98", "opcode READONLY_BUFFER"),
        (b"I1\n", "opcode INT"),
        (b"S'a'\n", "opcode STRING"),
        (b"\xff", "no pickle opcode"),
        (EMA + b"}b", "sets the state of dnnlib.util.EasyDict"),
        (EMA + b"N}" + text("__init__") + text("x") + b"s\x86b", "sets the state of dnnlib.util.EasyDict"),
        (b"}}b", "sets the state of a dict"),
        (stack_global("torch.storage", "_load_from_bytes") + b"}b", "sets the state of torch.storage._load_from_bytes"),
        (MODULE + b"]b", "is not a dictionary"),
        (MODULE + b"}" + text("_modules") + b"}sb" + b"}b", "is not a dictionary"),
        (stack_global("numpy", "ndarray") + b")R", "calls numpy.ndarray"),
        (text("posix.system") + b")R", "calls a str"),
        (MODULE + b")R", "calls a Stored"),
        (EMA + b"]R", "calls dnnlib.util.EasyDict"),
        (text("posix") + b"K\x01\x93", "not text"),
        (NUMBER, "numpy data of type 'O8'"),
        (stack_global("numpy", "dtype") + text("V8") + b"\x89\x88\x87R", "numpy data of type 'V8'"),
        (stack_global("numpy._core.multiarray", "scalar") + DTYPE + binbytes(b"1234") + b"\x86R", "in 4 bytes"),
        (stack_global("_codecs", "encode") + text("a") + text("idna") + b"\x86R", "unknown encoding"),
        (stack_global("collections", "OrderedDict") + b"]\x85R", "unusual way"),
        (b"}" + b")" * 2 + b"s", "uses a tuple as a key"),
        (b"\x8f(" + MODULE + b"\x90", "uses a Stored as a key"),
        (b")" + b"\x85" * 100_000 + b"0})" + b"\x85" * 100_000 + b"Ns", "uses a tuple as a key"),
        (b"))a", "puts items into a tuple"),
        (MODULE + text("a") + text("b") + b"s", "puts items into a Stored"),
        (b"0", "stack is empty"),
        (b"(0", "stack is empty"),
        (b"h\x07", "malformed"),
        (b"e", "mark is missing"),
        (b"}(K\x01u", "key lacks its value"),
        (b"NN", "left over"),
        (b"\x80\x09", "protocol 9"),
        (b"\x80\x00", "protocol 0"),
        (b"\x8c\x02\xff\xfe", "malformed"),
        (b"\x95" + struct.pack(FRAME, 2**60), "cut short: a frame of"),
        (b"\x8e" + struct.pack(FRAME, 2**60), "cut short: 1152921504606846976 bytes"),
        (b"\x8d" + struct.pack(FRAME, 2**63), "cut short"),
        (b"\x96" + struct.pack(FRAME, 2**40), "cut short"),
        (b"T" + struct.pack("<I", 2**31), "opcode BINSTRING"),
        (b"B" + struct.pack("<I", 2**32 - 1), "cut short"),
        (b"\x8b" + struct.pack("<i", -1), "cut short"),
        (b"c" + b"a" * 1000, "a name without an end"),
    ],
)
def test_opcodes_that_no_snapshot_needs(tmp_path, opcodes, match):
    refuse(tmp_path, stream(opcodes), match)


def test_streams_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "LIMIT", 10_000)
    refuse(tmp_path, stream(b"N0" * 5_000), "more than 10000 opcodes, which no network needs")


def test_what_is_no_pickle(tmp_path):
    for data, match in ((b"PK\3\4", "byte 0x80"), (b"(dp0\n.", "byte 0x80"), (b"\x80", "cut short")):
        refuse(tmp_path, data, match)
    refuse(tmp_path, stream(b"N") + b"more", "4 bytes follow its end")
    (tmp_path / "empty.pkl").write_bytes(b"")
    for path in (tmp_path / "empty.pkl", tmp_path / "missing.pkl", tmp_path):
        with pytest.raises(InputError, match="cannot be read"):
            read_file(path)


# ------------------------------------------------------------------- tensors


def storage(values):
    """The bytes that torch makes of a tensor's storage."""
    handle = io.BytesIO()
    torch.save(values._typed_storage(), handle, _use_new_zipfile_serialization=False)
    return handle.getvalue()


def load_storage(payload):
    return stack_global("torch.storage", "_load_from_bytes") + binbytes(payload) + b"\x85R"


def small(number):
    return b"J" + struct.pack("<i", number)


def tensor(payload, offset, size, stride):
    sizes, strides = (b"(" + b"".join(map(small, n)) + b"t" for n in (size, stride))
    rest = b"\x89" + stack_global("collections", "OrderedDict") + b")Rt"
    opcodes = b"(" + load_storage(payload) + small(offset) + sizes + strides + rest + b"R"
    return stack_global("torch._utils", "_rebuild_tensor_v2") + opcodes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_tensors_arrive_as_they_were(tmp_path, dtype, protocol):
    base = (torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0)) * 50).to(dtype)
    views = {"whole": base, "channels last": base.contiguous(memory_format=torch.channels_last)}
    views |= {"row": base[3], "columns": base[:, 1:3], "scalar": base[0, 0, 0, 0], "none": base[:0]}
    views["parameter"] = torch.nn.Parameter(base, requires_grad=False)
    found = read_file(dump(tmp_path / "file.pkl", views, protocol=protocol))
    for name, value in views.items():
        assert found[name].dtype == dtype and torch.equal(found[name], value), name
        assert found[name].is_contiguous() and not isinstance(found[name], torch.nn.Parameter)


def test_storages_agree_with_torch_weights_only(tmp_path):
    values = torch.randn(100, generator=torch.Generator().manual_seed(1))
    (tmp_path / "file.pkl").write_bytes(stream(load_storage(storage(values))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = torch.tensor(torch.load(io.BytesIO(storage(values)), weights_only=True).tolist())
    assert torch.equal(read_file(tmp_path / "file.pkl"), theirs)


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (13,), (1,)),
        (1, (12,), (1,)),
        (12, (1,), (1,)),
        (0, (3, 4), (5, 1)),
        (0, (2, 2), (1,)),
        (0, (10**9,), (0,)),
        (0, (2**31 - 1, 2**31 - 1), (0, 0)),
        (-1, (2,), (1,)),
        (0, (-1,), (1,)),
        (0, (2,), (-1,)),
    ],
)
def test_tensors_stay_in_their_storage(tmp_path, offset, size, stride):
    refuse(tmp_path, stream(tensor(storage(torch.zeros(12)), offset, size, stride)), "holds a tensor")


def test_tensors_with_hooks_or_without_storage(tmp_path):
    hooks = stack_global("collections", "OrderedDict") + b")R" + text("a") + b"Ns"
    holds = b"(" + load_storage(storage(torch.zeros(1))) + small(0) + b"))\x89" + hooks + b"t"
    refuse(tmp_path, stream(stack_global("torch._utils", "_rebuild_tensor_v2") + holds + b"R"), "tensor with hooks")
    parameter = stack_global("torch._utils", "_rebuild_parameter") + b"}\x89N\x87R"
    refuse(tmp_path, stream(parameter), "parameter that is no tensor")
    refuse(tmp_path, stream(stack_global("torch.storage", "_load_from_bytes") + text("a") + b"\x85R"), "without bytes")


def test_damaged_storages(tmp_path):
    whole = storage(torch.arange(50.0))
    for length in range(0, len(whole), 3):
        refuse(tmp_path, stream(load_storage(whole[:length])), "storage")
    refuse(tmp_path, stream(load_storage(whole + b"0")), "announces 50 numbers and holds 201 bytes")
    many = whole.replace(b"K2N", b"J" + struct.pack("<i", 2**31 - 1) + b"N")
    assert many != whole
    refuse(tmp_path, stream(load_storage(many)), "announces 2147483647 numbers")
    other = whole.replace(b"FloatStorage", b"QUInt8Storage")
    refuse(tmp_path, stream(load_storage(other)), "asks for 'torch.QUInt8Storage'")
    handle = io.BytesIO()
    torch.save(torch.zeros(3), handle)  # the newer format, a zip
    refuse(tmp_path, stream(load_storage(handle.getvalue())), "inside a tensor's storage")
    handle = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, handle, _use_new_zipfile_serialization=False)
    refuse(tmp_path, stream(load_storage(handle.getvalue())), "asks for '(collections|torch._utils)")


# ------------------------------------------------------------- numpy, objects


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_numpy_numbers_arrive_as_they_were(tmp_path, protocol):
    values = np.arange(24.0).reshape(2, 3, 4)
    content = {
        "a": values,
        "f": np.asfortranarray(values),
        "big": values.astype(">f4"),
        "i": np.arange(3, dtype=np.int8),
    }
    content |= {"s": np.sqrt(0.5), "n": np.int64(3), "t": np.bool_(True), "e": np.zeros((0, 3))}
    found = read_file(dump(tmp_path / "file.pkl", content, protocol=protocol))
    for name in ("a", "f", "big", "i", "e"):
        assert np.array_equal(array(found[name]), content[name]) and array(found[name]).dtype.isnative
    assert (found["s"], found["n"], found["t"]) == (0.5**0.5, 3, True)
    assert type(found["s"]) is float and type(found["n"]) is int


def test_numpy_shapes_that_do_not_fit(tmp_path):
    data = pickle.dumps(np.arange(6.0), protocol=4)
    assert data.count(b"K\x06\x85") == 1
    refuse(tmp_path, data.replace(b"K\x06\x85", b"K\x07\x85"), "shape .7,. in 48 bytes")
    huge = data.replace(b"K\x06\x85", b"\x8a\x08" + struct.pack("<q", 2**61) + b"\x85")
    refuse(tmp_path, huge[:2] + huge[11:], "in 48 bytes")  # without the frame, whose length no longer holds


def test_objects_within_themselves_or_without_end(tmp_path):
    twice = Persistent("Conv2d", module_state({"weight": torch.zeros(1)}))
    shared = Persistent("EDMPrecond", module_state(modules={"a": twice, "b": twice}))
    found = read_file(dump(tmp_path / "a.pkl", {"ema": shared}))["ema"]
    with pytest.raises(RefusedError, match="twice"):
        tensors(found, 10**6)
    chain = Stored("Block", {"_parameters": {}, "_buffers": {}, "_modules": {}})
    chain.state["_modules"]["again"] = chain
    with pytest.raises(RefusedError, match="inside itself"):
        tensors(chain, 10**6)
    laughs = [1]
    for _ in range(40):
        laughs = [laughs, laughs]
    wide = [0] * 100
    for _ in range(4):
        wide = [wide] * 100
    deep = stack_deep = []
    for _ in range(100_000):
        deep.append(deep := [])
    for value in (laughs, wide, stack_deep, {"a": laughs}):
        with pytest.raises(RefusedError, match="more than a few settings"):
            plain(value)
    many = Persistent("Linear", module_state({f"p{k}": torch.zeros(1) for k in range(200)}))
    found = read_file(dump(tmp_path / "b.pkl", {"ema": many}))["ema"]
    found.state["_modules"] = {str(k): Stored("Linear", dict(found.state)) for k in range(200)}
    with pytest.raises(RefusedError, match="more than 20000 tensors"):
        tensors(found, 10**6)


def test_the_same_bytes_again_and_again(tmp_path):
    loads = stack_global("torch.storage", "_load_from_bytes") + b"\x940"
    payload = binbytes(storage(torch.zeros(10_000))) + b"\x85\x940"
    refuse(tmp_path, stream(loads, payload, b"h\0h\1R0" * 1000, b"N"), "the same bytes over and over")
    twice = stream(loads, payload, b"h\0h\1R0" * 2, b"N")
    (tmp_path / "file.pkl").write_bytes(twice)
    assert read_file(tmp_path / "file.pkl") is None


def test_modules_that_hold_something_else(tmp_path):
    for state, match in (
        (module_state({"weight": 3.0}), "weight is a float"),
        (module_state({"weight": Persistent("Linear", {})}), "weight is a Stored"),
        (module_state(modules={"a": 3}), "module a is a int"),
        ({}, "has no _parameters"),
        ({"_parameters": [], "_buffers": {}}, "has no _parameters"),
    ):
        found = read_file(dump(tmp_path / "file.pkl", {"ema": Persistent("Linear", state)}))["ema"]
        with pytest.raises(RefusedError, match=match):
            tensors(found, 10**6)


# ----------------------------------------------------------- damage of all kinds


def sample(tmp_path, protocol=4):
    weights = {"weight": torch.nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)))}
    state = module_state(weights, _init_args=(), _init_kwargs={"scale": np.sqrt(0.5), "kernel": [3, 3]})
    content = {"ema": Persistent("Linear", state), "loss_fn": None, "stats": np.arange(5.0)}
    return dump(tmp_path / "whole.pkl", content, protocol=protocol, easy=True).read_bytes()


@pytest.mark.parametrize("protocol", [2, 4])
def test_truncated_anywhere(tmp_path, protocol):
    whole = sample(tmp_path, protocol)
    path = tmp_path / "cut.pkl"
    for length in [*range(100), *range(100, len(whole), 3), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"refused|empty"):
            read_file(path)


@pytest.mark.parametrize("seed", range(2))
def test_damaged_anywhere(tmp_path, seed):
    whole, draw, path = sample(tmp_path), random.Random(seed), tmp_path / "damaged.pkl"
    outcomes = set()
    for _ in range(700):
        data = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            data[draw.randrange(len(data))] = draw.randrange(256)
        path.write_bytes(data)
        try:
            content = read_file(path)
            outcomes.add("read")
            if isinstance(content, dict) and isinstance(content.get("ema"), Stored):
                outcomes.add("network")
        except InputError as error:
            outcomes.add("refused in two lines" if "\n" in str(error) else "refused")
    assert outcomes == {"read", "network", "refused"}


# ------------------------------------------------------------------ Python 2

PLAIN = {
    "text": "one line\nanother\\u00e9 \u00e9\u20ac",
    b"bytes": b"\x00\xff'quoted'\n",
    "numbers": [0, 1, -1, 255, 2**31, -(2**70), 0.1, -1e300, True, False, None],
    "tuples": ((), (1,), (1, (2, 3)), ([], {})),
    7: {"nested": {"again": []}},
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_pickles_agree_with_python(protocol):
    assert load_plain("file", "item", pickle.dumps(PLAIN, protocol=protocol)) == PLAIN
    values = np.arange(6, dtype="i2").reshape(2, 3)
    found = load_plain("file", "item", pickle.dumps({"a": values, "f": np.asfortranarray(values)}, protocol=protocol))
    assert np.array_equal(found["a"], values) and np.array_equal(found["f"], values)


@pytest.mark.parametrize(
    "data",
    [
        b"(lp0\nS'a\\x00\\n\\'b'\np1\naI12\naI01\naL5L\naF0.5\naVcaf\\u00e9\nag1\na.",  # protocol 0
        b"(dp0\nS\"data\"\np1\n(lp2\nI3\nasS'b'\nI00\ns.",
        b"](U\x03abcT\x04\x00\x00\x00defgK\x05e.",  # protocol 1
        b"(U\x01aK\x01U\x01bNd.",
        b"\x80\x02}q\x00U\x01aq\x01(K\x01K\x02tq\x02s.",
    ],
)
def test_python_2s_opcodes_agree_with_python(data):
    assert load_plain("file", "item", data) == pickle.loads(data, encoding="bytes")


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b"cposix\nsystem\n(S'true'\ntR.", "asks for 'posix.system'"),
        (b"(S'true'\niposix\nsystem\n.", "opcode INST"),
        (b"S'a\n.", "lacks its quotes"),
        (b"S'" + b"a" * 5000, "line without an end"),
        (b"I1e5\n.", "malformed"),
        (b"T\xff\xff\xff\xffa.", "cut short"),
        (b"g7\n.", "malformed"),
        (b"(I1\nd.", "lacks its value"),
    ],
)
def test_python_2s_opcodes_in_hostile_streams(data, match):
    with pytest.raises(InputError, match=match) as error:
        load_plain("file", "item", data)
    assert "nothing in it was run" in str(error.value) and "\n" not in str(error.value)


def test_reading_imports_nothing(tmp_path):
    canary = tmp_path / "imported.py"
    canary.write_text(f"open({str(tmp_path / 'canary')!r}, 'w').close()")
    sys.path.insert(0, str(tmp_path))
    try:
        refuse(tmp_path, stream(stack_global("imported", "x")), "asks for 'imported.x'")
    finally:
        sys.path.remove(str(tmp_path))
    assert not (tmp_path / "canary").exists() and "imported" not in sys.modules
