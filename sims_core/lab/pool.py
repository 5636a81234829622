"""Work by several processes, of this machine or of a Dask cluster: the same pieces, in whatever order they finish."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from sims_core.errors import InputError, extra

P = TypeVar("P")
T = TypeVar("T")

PROMPT, PATIENCE = 10.0, 60.0
"""Seconds that a command, before it begins, and a run wait for a scheduler, and then for its workers, to be there."""


def each(work: Callable[[P], T], pieces: Sequence[P], workers: int, scheduler: str = "") -> Iterator[T]:
    """``work`` of every piece, in whatever order they finish, on one thread each: in ``workers`` processes, or by the
    Dask cluster at the address ``scheduler``, where a worker that dies is replaced by another.
    """
    if not scheduler and (workers <= 1 or len(pieces) <= 1):
        yield from (_alone(work, piece) for piece in pieces)
        return
    import joblib

    if scheduler:
        with connect(scheduler, patience=PATIENCE), joblib.parallel_config("dask", wait_for_workers_timeout=30):
            parallel = joblib.Parallel(return_as="generator_unordered", pre_dispatch="all")
            yield from parallel(joblib.delayed(_alone)(work, piece) for piece in pieces)
        return
    parallel = joblib.Parallel(n_jobs=workers, return_as="generator_unordered", pre_dispatch="2*n_jobs")
    yield from parallel(joblib.delayed(_worker)(os.getpid(), work, piece) for piece in pieces)


def connect(address: str, *, patience: float | None = None) -> Any:
    """A Dask client with at least one worker. Raises `InputError` naming `scheduler` where there is none.

    patience: seconds until a scheduler, and then a worker, is taken not to be there; `PROMPT` by default.
    """
    patience = PROMPT if patience is None else patience
    try:
        from distributed import Client
    except ImportError:
        expected = f"Dask is not installed: {extra('cluster')}"
        raise InputError("scheduler", address, expected) from None
    try:
        client = Client(address, timeout=patience)  # type: ignore[no-untyped-call]
    except (OSError, ValueError, TimeoutError) as error:
        expected = f"no Dask scheduler answers there ({type(error).__name__})"
        raise InputError("scheduler", address, expected) from None
    try:
        client.wait_for_workers(1, timeout=patience)
    except TimeoutError:
        client.close()  # type: ignore[no-untyped-call]
        raise InputError("scheduler", address, "the scheduler has no workers") from None
    return client


def _worker(parent: int, work: Callable[[P], T], piece: P) -> T:
    """`_alone` in a process that ends with its parent: a run that was killed leaves no workers behind."""
    name = "ends with its parent"
    if os.getppid() == parent and not any(thread.name == name for thread in threading.enumerate()):
        threading.Thread(target=_end_with, args=(parent,), name=name, daemon=True).start()
    return _alone(work, piece)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _alone(work: Callable[[P], T], piece: P) -> T:
    import torch

    os.environ.setdefault("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return work(piece)
    finally:
        torch.set_num_threads(threads)
