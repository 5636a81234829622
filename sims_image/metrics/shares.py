"""Class shares behind a classifier's verdicts, its own errors taken out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sims_core.errors import InputError
from sims_core.seeds import Seed

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Corrected:
    """Shares behind a classifier's verdicts. shares, low, high: (K,), 95% intervals, not cut to [0, 1].

    draws: (R, K), shares under resampled counts, for intervals of what is computed from them.
    """

    shares: Array
    low: Array
    high: Array
    draws: Array


def corrected_shares(predicted: ArrayLike, confusion: ArrayLike, *, seed: Seed, draws: int = 1000) -> Corrected:
    """The true class shares of images that a classifier judged, its own errors taken out.

    predicted: (K,) images judged to be of each class. confusion: (K, K) counts of held-out images, true class by row,
    judged class by column. With the row-normalised confusion C, judged shares are p C in expectation, so p is judged
    shares times C^-1 (the matrix method of Rogan & Gladen 1978); it may leave [0, 1] by chance. Intervals resample both
    counts (the judged ones as a multinomial, each row of the confusion from its posterior under Jeffreys' prior). They
    assume that the classifier errs on these images as on the held-out ones. Raises `InputError` for counts that do not
    fit, a class without held-out images, or a confusion that cannot be inverted.
    """
    seen, errors = np.asarray(predicted, np.float64), np.asarray(confusion, np.float64)
    if errors.ndim != 2 or errors.shape != (seen.size, seen.size) or seen.ndim != 1 or (errors < 0).any():
        raise InputError("confusion", list(errors.shape), f"counts ({seen.size}, {seen.size}), true class by row")
    if not seen.sum() > 0 or (errors.sum(1) == 0).any():
        raise InputError("confusion", errors.sum(1).tolist(), "at least one judged image, and held-out ones each class")
    rates = errors / errors.sum(1, keepdims=True)
    if np.linalg.cond(rates) > 1e6:
        raise InputError("confusion", "singular", "the classifier cannot tell some classes apart; merge them")
    shares = seen / seen.sum() @ np.linalg.inv(rates)
    generator = seed.numpy()
    counts = generator.multinomial(round(float(seen.sum())), seen / seen.sum(), size=draws) / seen.sum()
    rows = np.stack([generator.dirichlet(row + 0.5, size=draws) for row in errors], axis=1)  # (R, K, K)
    # a posterior's mean is drawn toward uniform by its prior; what counts is the spread around the estimate
    rows = rates + (rows - (errors + 0.5)[None] / (errors + 0.5).sum(1)[:, None])
    found = np.linalg.solve(np.swapaxes(rows, 1, 2), counts[:, :, None])[:, :, 0]
    low, high = np.quantile(found, [0.025, 0.975], axis=0)
    return Corrected(shares, low, high, found)
