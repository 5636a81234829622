"""Class shares behind a classifier that errs, against a simulation that knows the truth."""

import numpy as np
import pytest

from sims_core.errors import InputError
from sims_core.seeds import Seed
from sims_image.metrics.shares import corrected_shares

RATES = np.array([[0.9, 0.08, 0.02], [0.2, 0.7, 0.1], [0.0, 0.15, 0.85]])
TRUE = np.array([0.6, 0.3, 0.1])


def test_exact_counts_are_undone_exactly():
    errors = RATES * 1000
    judged = TRUE @ RATES * 1e6
    found = corrected_shares(judged, errors, seed=Seed(0))
    np.testing.assert_allclose(found.shares, TRUE, atol=1e-9)
    assert found.shares.sum() == pytest.approx(1) and (found.low < TRUE).all() and (found.high > TRUE).all()


def test_intervals_cover_the_truth():
    """Over repeated studies, 95% of the intervals hold the true share; those without correction hardly any."""
    rng = np.random.default_rng(0)
    held, plain, studies = np.zeros(3), np.zeros(3), 300
    for study in range(studies):
        errors = np.stack([rng.multinomial(80, row) for row in RATES])
        judged = rng.multinomial(1000, TRUE @ RATES)
        found = corrected_shares(judged, errors, seed=Seed(study), draws=400)
        held += (found.low <= TRUE) & (found.high >= TRUE)
        raw = corrected_shares(judged, np.eye(3) * 1e9, seed=Seed(study), draws=400)
        plain += (raw.low <= TRUE) & (raw.high >= TRUE)
    share = held / studies
    assert (abs(share - 0.95) < 4 * np.sqrt(0.95 * 0.05 / studies) + 0.01).all(), share
    assert plain[2] < 0.5 * studies


def test_bad_counts():
    for judged, errors in (
        ([1, 2], np.eye(3)),
        ([0, 0], np.eye(2)),
        ([1, 2], np.diag([1, 0])),
        ([1, 2], np.ones((2, 2))),
    ):
        with pytest.raises(InputError, match="confusion"):
            corrected_shares(judged, errors, seed=Seed(0))
