"""A run's log elsewhere too, as it is written: one function per tracker and one line in `TRACKERS`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sims_core.errors import InputError, extra

#: takes a line of log.jsonl
Tracker = Callable[[dict[str, Any]], None]


def tensorboard(out: Path, images: int) -> Tracker:
    """Curves over images seen in ``out/tensorboard``; those after ``images``, which are made again, give way."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("track", "tensorboard", f"tensorboard is not installed: {extra('track')}") from None
    writer = SummaryWriter(str(out / "tensorboard"), purge_step=images or None)

    def log(line: dict[str, Any]) -> None:
        for name, value in line.items():
            if isinstance(value, int | float):
                writer.add_scalar(name, value, line["images"])
        writer.flush()

    return log


#: By name: takes the run folder and the images seen so far.
TRACKERS: dict[str, Callable[[Path, int], Tracker]] = {"tensorboard": tensorboard}
