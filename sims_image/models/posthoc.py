"""EMA widths chosen after training: a run's stored power-function averages, made into one of any width (EDM2, Alg. 3).

A checkpoint of such a run lies in ``RUN/snapshots/IMAGES/ema-WIDTH``; the averages of all snapshots up to its own are
what the new one is made of. It is written beside them, ``RUN/snapshots/IMAGES/posthoc-WIDTH``, and found again there.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sims_core.errors import InputError
from sims_image.models import checkpoints
from sims_image.models.ema import gamma_from_width, misfit, reconstruct

#: a profile that misses the wanted one by more (relative L2) is refused: the stored averages cannot make it
MISFIT = 0.3


def stored(checkpoint: str | Path, *, argument: str = "base") -> list[checkpoints.Summary]:
    """The power-function averages of the run that a checkpoint belongs to, up to its own images, in order.

    Raises `InputError` where there are none: the run kept EDM's half-life average, or its snapshots are gone.
    """
    path = checkpoints.locate(checkpoint, argument=argument)
    own = checkpoints.summary(path, argument=argument)
    found = []
    for folder in sorted(path.parent.parent.glob("*/ema-*")):
        one = checkpoints.summary(folder, argument=argument)
        known = one.record.ema
        if known.kind == "power" and known.width and (one.record.images or 0) <= (own.record.images or 0):
            found.append(one)
    if not found or own.record.images is None:
        words = "no power-function averages lie beside it (RUN/snapshots/*/ema-WIDTH); train with `ema` power"
        raise InputError(argument, str(checkpoint), words)
    return found


def at_width(
    checkpoint: str | Path, width: float, *, argument: str = "base_ema", base: str = "base", write: bool = True
) -> Path:
    """The checkpoint of relative EMA width ``width`` at the images that ``checkpoint`` has seen, made if it is missing.

    write: whether this process makes it. Raises `InputError`: no stored averages, an impossible width, or one that they
    are too few or too far from to make.
    """
    try:
        gamma_from_width(width)
    except InputError as error:
        raise InputError(argument, width, error.expected) from None
    own = checkpoints.summary(checkpoint, argument=base)
    parts = stored(checkpoint, argument=base)
    times = [float(part.record.images or 0) for part in parts]
    widths = [float(part.record.ema.width or 0) for part in parts]
    time = float(own.record.images or 0)
    missed = misfit(times, widths, time, width)
    if missed > MISFIT:
        words = f"the {len(parts)} averages that are stored miss it by {missed:.2f} of itself; keep more snapshots"
        raise InputError(argument, width, words)
    out = checkpoints.locate(checkpoint, argument=base).parent / f"posthoc-{width:.4f}"
    identity = {"parts": [part.sha256 for part in parts], "width": width}
    if write and not _there(out, identity):
        weights = reconstruct(
            (checkpoints.load(part.path).network.state_dict() for part in parts), times, widths, time, width
        )
        made = checkpoints.load(own.path)
        made.network.load_state_dict(weights)
        record = replace(
            own.record,
            ema=checkpoints.Ema("power", width),
            training={**own.record.training, "posthoc": {**identity, "misfit": missed}},
            provenance={},
        )
        checkpoints.save(out, made.network, record, replace=True, autoencoder=own.autoencoder)
    return out


def _there(out: Path, identity: dict[str, Any]) -> bool:
    if not (out / checkpoints.RECORD).exists():
        return False
    known = checkpoints.summary(out).record.training.get("posthoc", {})
    return {key: known.get(key) for key in identity} == identity
