import math

import numpy as np
import pytest

from sims_core import InputError, Seed
from sims_toy import phase


@pytest.mark.parametrize(
    ("own", "standard", "gain", "expected"),
    [
        ((0.9, 0.85, 0.95), (0.9, 0.85, 0.95), (0.6, 0.5, 0.7), "prevention"),
        ((1.2, 1.15, 1.25), (0.9, 0.85, 0.95), (0.6, 0.5, 0.7), "strong"),
        ((1.2, 1.15, 1.25), (1.3, 1.2, 1.4), (0.9, 0.8, 0.95), "weak"),
        ((0.9, 0.85, 0.95), (1.3, 1.2, 1.4), (0.9, 0.8, 0.95), "weak"),
        ((1.6, 1.5, 1.7), (1.6, 1.5, 1.7), (1.0, 1.0, 1.0), "MAD"),
    ],
)
def test_decided_cells(own, standard, gain, expected):
    assert phase.classify(own, standard, gain, diverged=False) == phase.Verdict(expected, (expected,))
    assert phase.classify(own, standard, gain, diverged=True).regime == "divergent"


@pytest.mark.parametrize(
    ("own", "standard", "gain", "candidates"),
    [
        ((1.04, 1.0, 1.08), (0.9, 0.85, 0.95), (0.6, 0.5, 0.7), ("prevention", "strong")),
        ((1.06, 1.0, 1.08), (0.9, 0.85, 0.95), (0.6, 0.5, 0.7), ("prevention", "strong")),
        ((1.5, 1.4, 1.6), (1.04, 1.0, 1.08), (0.6, 0.5, 0.7), ("strong", "weak")),
        ((1.5, 1.4, 1.6), (1.3, 1.2, 1.4), (0.99, 0.95, 1.02), ("weak", "MAD")),
        ((0.9, 0.8, 1.0), (1.06, 1.0, 1.1), (0.6, 0.5, 0.7), ("prevention", "weak")),
    ],
)
def test_undecided_cells_name_their_two_candidates(own, standard, gain, candidates):
    verdict = phase.classify(own, standard, gain, diverged=False)
    assert verdict.regime == "undecided" and verdict.candidates == candidates


def test_bootstrap_covers_and_pairs():
    """Intervals of a mean cover it at their level; a ratio of paired trials is narrower than an unpaired one."""
    rng = np.random.default_rng(0)
    covered = 0
    for i in range(300):
        x = rng.gamma(4.0, 1.0, 100)
        low, high = phase.interval(phase.weighted(phase.resampling_weights(100, Seed(i), 400), x[:, None]), 100)
        covered += low[0] <= 4.0 <= high[0]
    assert abs(covered / 300 - phase.LEVEL) < 4 * math.sqrt(0.05 * 0.95 / 300)
    common = rng.gamma(9.0, 1.0, 200)
    a, b = common * 1.1 + rng.normal(size=200) * 0.01, common
    weights = phase.resampling_weights(200, Seed(1))
    paired = phase.interval(phase.weighted(weights, a[:, None]) / phase.weighted(weights, b[:, None]), 200)
    unpaired = phase.interval(phase.weighted(weights, a[:, None]) / phase.weighted(weights, b[::-1, None]), 200)
    assert (paired[1] - paired[0])[0] < 0.1 * (unpaired[1] - unpaired[0])[0]
    with pytest.raises(InputError, match="trials"):
        phase.resampling_weights(0, Seed(0))


@pytest.mark.parametrize("trials", [8, 16, 48])
@pytest.mark.parametrize("kind", ["mean", "ratio", "twin"])
def test_intervals_of_few_trials_cover(kind, trials):
    """Expanded percentiles cover at least about their level from 8 trials on, where plain ones cover .88 to .90."""
    rng, repetitions = np.random.default_rng(trials), 1000
    many = 400 if trials == 8 else 100  # twins, of which few would hide how plain ones fall short
    covered = plain = 0
    for i in range(repetitions):
        weights = phase.resampling_weights(trials, Seed(i), 400)
        if kind == "mean":
            resampled, truth = phase.weighted(weights, rng.normal(1.0, 0.3, trials)), 1.0
        elif kind == "ratio":
            below = rng.gamma(8.0, 1.0, trials)
            above = below * rng.normal(0.9, 0.15, trials)
            resampled, truth = phase.weighted(weights, above) / phase.weighted(weights, below), 0.9
        else:
            twin = rng.gamma(4.0, 1.0, trials + many)
            values = 2.0 + 0.5 * twin[:trials] + rng.normal(0, 0.3, trials)
            other = phase.resampling_weights(many, Seed(i).child("twin"), 400)
            expected = phase.weighted(other, twin[trials:, None])
            resampled = phase.steadied(weights, values[:, None], twin[:trials, None], expected)[:, 0]
            truth = 4.0
        low, high = phase.interval(resampled[:, None], trials)
        covered += low[0] <= truth <= high[0]
        low, high = np.quantile(resampled, [0.025, 0.975])
        plain += low <= truth <= high
    error = math.sqrt(0.05 * 0.95 / repetitions)
    assert phase.LEVEL - 4 * error < covered / repetitions < phase.LEVEL + 0.03 + 4 * error
    assert covered >= plain and (trials > 8 or plain / repetitions < phase.LEVEL - 4 * error)


def test_levels_and_shares():
    tails = [phase.levels(n)[0] for n in (3, 8, 16, 48, 2000)]
    assert tails == sorted(tails) and tails[1] == pytest.approx(0.0024, abs=2e-4)
    assert tails[-1] == pytest.approx(0.025, rel=0.01)
    assert phase.share(0, 8) == pytest.approx((0.0, 0.0, 1 - 0.025 ** (1 / 8)))  # the rule of three, two-sided
    assert phase.share(8, 8)[1] == pytest.approx(0.025 ** (1 / 8)) and phase.share(8, 8)[2] == 1.0


def test_twins_take_chance_out_of_means():
    """A control variate: the least-squares prediction at the twin's expectation, covered at the intervals' level."""
    rng = np.random.default_rng(0)
    trials, many, covered, steady, plain = 24, 400, 0, [], []
    for i in range(300):
        twin = rng.gamma(4.0, 1.0, trials + many)
        values = 2.0 + 0.5 * twin[:trials] + rng.normal(0, 0.3, trials)  # expectation 4
        weights = phase.resampling_weights(trials, Seed(i), 400)
        other = phase.resampling_weights(many, Seed(i).child("twin"), 400)
        expected = phase.weighted(other, twin[trials:, None])
        resampled = phase.steadied(weights, values[:, None], twin[:trials, None], expected)
        low, high = phase.interval(resampled, trials)
        covered += low[0] <= 4.0 <= high[0]
        even, mu = np.full((1, trials), 1 / trials), twin[trials:].mean()
        mean = phase.steadied(even, values[:, None], twin[:trials, None], np.array([[mu]]))[0, 0]
        slope, intercept = np.polyfit(twin[:trials], values, 1)
        assert mean == pytest.approx(intercept + slope * mu, rel=1e-12)
        steady.append(mean)
        plain.append(values.mean())
    assert abs(covered / 300 - phase.LEVEL) < 0.035  # four standard errors would be .05
    share = 0.09 / (0.09 + 0.25 * 4) + 0.25 * 4 / (0.09 + 0.25 * 4) * trials / many  # of the variance that is left
    assert np.var(steady) / np.var(plain) == pytest.approx(share, rel=0.4)
    assert abs(np.mean(steady) - 4) < 4 * np.std(steady) / math.sqrt(300)


def test_a_useless_twin_and_a_diverged_one():
    weights = phase.resampling_weights(10, Seed(0), 50)
    values, expected = np.random.default_rng(0).normal(size=(10, 3)), np.ones((50, 3))
    flat = phase.steadied(weights, values, np.ones((10, 3)), expected)
    np.testing.assert_allclose(flat, phase.weighted(weights, values), rtol=1e-12)
    twin = values.copy()
    twin[0, 0], expected[:, 1] = np.inf, np.inf
    found = phase.steadied(weights, values, twin, expected)
    np.testing.assert_array_equal(found[:, :2], phase.weighted(weights, values)[:, :2])
    np.testing.assert_allclose(found[:, 2], 1.0)  # its own twin: all chance is explained
    values[3] = np.inf
    assert np.isinf(phase.steadied(weights, values, twin, expected)).all()


def test_divergence_is_not_averaged_away():
    values = np.ones((10, 3))
    values[4, 2] = np.inf
    means = phase.weighted(phase.resampling_weights(10, Seed(0)), values)
    assert np.isinf(means[:, 2]).all() and np.isfinite(means[:, :2]).all()
    low, high = phase.interval(means, 10)
    assert np.isinf(low[2]) and np.isinf(high[2]) and low[0] == pytest.approx(1)
    assert np.isinf(phase.ratio(np.array([np.inf]), np.array([np.inf])))[0]


@pytest.mark.parametrize(
    ("generations", "first", "count"), [(100, 90, 10), (20, 10, 10), (12, 6, 6), (3, 2, 1), (2, 1, 1), (1, 0, 1)]
)
def test_last_generations(generations, first, count):
    window = phase.last_generations(generations)
    assert (window.start, window.stop - window.start) == (first, count)
