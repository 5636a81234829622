"""Which of a source's images are taken, and which of them are held out: fixed by the labels, the counts and a seed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sims_core.errors import InputError, shown
from sims_core.seeds import Seed
from sims_image.data.stores import Labels

Indices = NDArray[np.int64]


def limited(
    count: int, labels: Labels | None, classes: list[str], limit: int, *, balanced: bool, seed: Seed
) -> Indices:
    """Increasing indices: the first ``limit`` images (0: all), or with ``balanced`` as many of each class.

    Balanced: limit//K of every class (all of the rarest class's number, if limit is 0), and one more of as many classes
    as it takes, drawn like the images by ``seed``. Raises `InputError` for what the source has not got.
    """
    if limit < 0 or limit > count:
        raise InputError("limit", limit, f"the source has {count} images")
    if not balanced:
        return np.arange(limit or count, dtype=np.int64)
    if labels is None:
        raise InputError("balanced", "True", "the source has no labels to balance by")
    there = np.bincount(labels, minlength=len(classes))
    wanted = limit or int(there.min()) * len(there)
    if not wanted:
        raise InputError("balanced", "True", f"class '{shown(classes[int(there.argmin())])}' has no images at all")
    shares = np.full(len(there), wanted // len(there))
    shares[seed.child("extra").numpy().permutation(len(there))[: wanted % len(there)]] += 1
    short = np.flatnonzero(shares > there)
    if len(short):
        k = int(short[0])
        expected = f"balanced, that is {shares[k]} images of class '{shown(classes[k])}', which has {there[k]}"
        raise InputError("limit", wanted, expected)
    return _draw(labels, shares, seed)


def held_out(chosen: Indices, labels: Labels | None, holdout: float, seed: Seed) -> NDArray[np.bool_]:
    """Which of the ``chosen`` images are held out: a fraction below 1, or a whole number of them.

    With labels each class gives its share, rounded to the largest remainders. Raises `InputError` for a fraction or
    number that leaves nothing on one side.
    """
    expected = f"a fraction below 1, or a whole number of the {len(chosen)} images, leaving some on both sides"
    if not 0 <= holdout < len(chosen) or (holdout >= 1 and holdout != round(holdout)):
        raise InputError("holdout", holdout, expected)
    count = round(holdout * len(chosen)) if holdout < 1 else round(holdout)
    if holdout and not 0 < count < len(chosen):
        raise InputError("holdout", holdout, expected)
    groups = np.zeros(len(chosen), np.int64) if labels is None else labels[chosen]
    there = np.bincount(groups)
    exact = there * (count / len(chosen))
    shares = np.floor(exact).astype(np.int64)
    shares[np.argsort(shares - exact, kind="stable")[: count - shares.sum()]] += 1
    mask = np.zeros(len(chosen), bool)
    mask[_draw(groups, shares, seed)] = True
    return mask


def _draw(groups: NDArray[np.int64], shares: NDArray[np.int64], seed: Seed) -> Indices:
    """``shares[k]`` members of each group k, increasing."""
    found = [
        seed.child("class", k).numpy().permutation(np.flatnonzero(groups == k))[:share]
        for k, share in enumerate(shares.tolist())
        if share
    ]
    return np.sort(np.concatenate(found)) if found else np.zeros(0, np.int64)
