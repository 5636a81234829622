"""Files as NVIDIA's training scripts pickle them, made without NVIDIA's code, and streams put together by hand."""

import contextlib
import pickle
import struct
import sys
import types

import torch

HOOKS = ("_backward_pre_hooks", "_backward_hooks", "_forward_hooks", "_forward_pre_hooks", "_state_dict_hooks")


@contextlib.contextmanager
def their_modules():
    """Modules of the names that pickles of NVIDIA's refer to, while they are written."""
    persistence, util = types.ModuleType("torch_utils.persistence"), types.ModuleType("dnnlib.util")

    def _reconstruct_persistent_obj(meta):
        raise AssertionError("a stand-in, to be named and not called")

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    persistence._reconstruct_persistent_obj = _reconstruct_persistent_obj
    util.EasyDict = type("EasyDict", (dict,), {"__module__": "dnnlib.util"})
    modules = {"torch_utils": types.ModuleType("torch_utils"), "dnnlib": types.ModuleType("dnnlib")}
    modules |= {"torch_utils.persistence": persistence, "dnnlib.util": util}
    modules["torch_utils"].persistence, modules["dnnlib"].util = persistence, util
    sys.modules.update(modules)
    try:
        yield persistence._reconstruct_persistent_obj, util.EasyDict
    finally:
        for name in modules:
            del sys.modules[name]


class Persistent:
    """An object that pickles as those of a class under ``torch_utils.persistence`` do."""

    def __init__(self, class_name, state, source="# not a program"):
        self.meta = {"type": "class", "version": 6, "module_src": source, "class_name": class_name, "state": state}

    def __reduce__(self):
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (self.meta,), None


def module_state(parameters=None, buffers=None, modules=None, **attributes):
    """The attributes of a torch module, as its pickle holds them."""
    parameters, buffers, modules = ({} if group is None else group for group in (parameters, buffers, modules))
    state = {"training": False, "_parameters": parameters, "_buffers": buffers}
    state |= {"_non_persistent_buffers_set": set(), **{name: torch.nn.Module().__dict__[name] for name in HOOKS}}
    return state | {"_modules": modules} | attributes


def stored_network(class_name, arguments, net, *, half=False, source="# not a program", positional=(), kind=dict):
    """``net`` (any torch module with the published names), as an object of ``class_name`` made with ``arguments``.

    kind: of the dictionaries of parameters, buffers and modules; OrderedDict in older versions of torch.
    """

    def tree(module, name, **attributes):
        parameters = {
            k: None if p is None else torch.nn.Parameter(cast(p), requires_grad=False)
            for k, p in module._parameters.items()
        }
        buffers = {k: None if b is None else cast(b.detach().clone()) for k, b in module._buffers.items()}
        passing = set(module._non_persistent_buffers_set)
        below = {k: None if m is None else tree(m, type(m).__name__) for k, m in module._modules.items()}
        if isinstance(module, torch.nn.ModuleDict):
            plain = torch.nn.ModuleDict()
            plain._modules.update(below)
            return plain
        state = module_state(kind(parameters), kind(buffers), kind(below), **attributes)
        return Persistent(name, state | {"_non_persistent_buffers_set": passing}, source)

    def cast(value):
        value = value.detach().clone()
        return value.half() if half and value.is_floating_point() else value

    return tree(net, class_name, _init_args=tuple(positional), _init_kwargs=dict(arguments))


def dump(path, content, protocol=4, easy=False):
    """Pickle ``content`` (a dictionary; with ``easy`` as an EasyDict, as EDM2 does) to ``path``."""
    with their_modules() as (_, easy_dict), open(path, "wb") as handle:
        pickle.dump(easy_dict(content) if easy else content, handle, protocol=protocol)
    return path


def text(value):
    """Opcodes that push a string."""
    data = value.encode()
    return b"\x8c" + bytes([len(data)]) + data


def stack_global(module, name):
    return text(module) + text(name) + b"\x93"


def stream(*parts, protocol=4):
    """A whole pickle of these opcodes."""
    return b"\x80" + bytes([protocol]) + b"".join(parts) + b"."


def binbytes(data):
    return b"B" + struct.pack("<I", len(data)) + data
