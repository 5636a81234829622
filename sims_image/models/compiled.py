"""torch.compile that survives a process that was killed while it compiled.

On a CPU the compiler writes each library straight into a cache that all processes share. They take turns by locks; of
one that is killed, half a library stays, which every later one takes for whole ("file too short").
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TypeVar, cast

import torch
from filelock import FileLock, Timeout
from torch import nn

Network = TypeVar("Network", bound=nn.Module)
#: how torch names the folder beside a library that lasts as long as it is being written
_BUILDING = "_CxxBuild"


def compiled(network: Network) -> Network:
    """``torch.compile(network)``, what killed processes left in its cache taken away first."""
    from torch._inductor.runtime.runtime_utils import cache_dir  # type: ignore[attr-defined]

    clean(Path(cache_dir()))
    return cast(Network, torch.compile(network))


def clean(cache: Path) -> None:
    """Take half-written libraries out of torch's compile cache; those that a living process writes are left to it."""
    for folder in cache.glob(f"*/*{_BUILDING}"):
        name = folder.name.removesuffix(_BUILDING)
        lock = cache / "locks" / f"{name.partition('.')[0]}.lock"
        if not lock.exists():
            continue
        with contextlib.suppress(Timeout, OSError), FileLock(lock, timeout=0):
            if folder.exists():  # or it was finished meanwhile
                for ending in (".so", ".o"):
                    (folder.parent / f"{name}{ending}").unlink(missing_ok=True)
                shutil.rmtree(folder)
