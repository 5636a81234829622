import json
import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import ndtr

from sims_core import InputError, forecast, outlook
from sims_core.forecast import Angle, rank_correlation
from sims_core.seeds import Seed
from sims_core.slices import SlicedCdf, directions

#: (name, error, drift, scale of the base, of the auxiliary)
SHIFTS = {
    "along": ([0.3, 0.0], [0.3, 0.0], 1.0, 1.0),
    "along, half as far": ([0.3, 0.0], [0.15, 0.0], 1.0, 1.0),
    "45 degrees": ([0.3, 0.0], [0.2, 0.2], 1.0, 1.0),
    "across": ([0.3, 0.0], [0.0, 0.3], 1.0, 1.0),
    "against": ([0.3, 0.0], [-0.2, 0.1], 1.0, 1.0),
    "narrower each time": ([0.0, 0.0], [0.0, 0.0], 0.8, 0.7),
    "a shift, then wider": ([0.3, 0.0], [0.0, 0.0], 1.0, 1.3),
}


def draw(case, n, rng, *, paired=True):
    error, drift, first, second = SHIFTS[case]
    z = rng.normal(size=(n, 2))
    other = z if paired else rng.normal(size=(n, 2))
    return rng.normal(size=(n, 2)), first * z + error, second * other + np.add(error, drift)


def closed_form(case):
    """(cosine, omega, |d| / |e|) between isotropic Gaussians: integrals of products of sliced functions."""
    error, drift, first, second = SHIFTS[case]
    turns = np.pi * (np.arange(64) + 0.5) / 64
    lines = np.stack([np.cos(turns), np.sin(turns)], 1)
    laws = [(0 * turns, 1.0), (lines @ error, first), (lines @ np.add(error, drift), second)]

    def apart(a, b):  # E|X - Y|
        m, s = a[0] - b[0], math.hypot(a[1], b[1])
        return (s * math.sqrt(2 / math.pi) * np.exp(-((m / s) ** 2) / 2) + m * (1 - 2 * ndtr(-m / s))).mean()

    d = np.array([[apart(a, b) for b in laws] for a in laws])
    e, f = np.array([-1, 1, 0]), np.array([0, -1, 1])
    ee, ed, dd = (-(x @ d @ y) / 2 for x, y in ((e, e), (e, f), (f, f)))
    return ed / math.sqrt(ee * dd), ed / dd, math.sqrt(dd / ee)


def holds(interval, truth, slack=1.0):
    """Within the interval, ``slack`` times as wide."""
    return (
        interval.value - slack * (interval.value - interval.low) - 1e-3
        <= truth
        <= interval.value + slack * (interval.high - interval.value) + 1e-3
    )


@pytest.mark.parametrize("case", SHIFTS)
@pytest.mark.parametrize("paired", [True, False])
def test_gaussians_by_their_closed_form(case, paired):
    found = outlook(*draw(case, 20_000, np.random.default_rng(1), paired=paired))
    cosine, omega, ratio = closed_form(case)
    angle = found.distributions
    assert holds(angle.cosine, cosine, 2) and holds(angle.omega, omega, 2)
    assert holds(angle.share, max(cosine, 0) ** 2, 2)
    assert angle.ratio == pytest.approx(ratio, rel=0.15)
    half = max(angle.cosine.high - angle.cosine.value, angle.cosine.value - angle.cosine.low)
    # what it owes to those of cosine and ratio, twice as wide
    wide = 2 * (2 * ratio * half + 2 * abs(ratio - cosine) * abs(angle.ratio - ratio))
    assert angle.left(1.0) == pytest.approx(1 - 2 * cosine * ratio + ratio**2, abs=wide) and angle.left(0.0) == 1
    error, drift, *_ = SHIFTS[case]
    if any(error) and any(drift):  # in the means' own space, to the drift's length
        lengths = np.linalg.norm(error), np.linalg.norm(drift)
        assert holds(found.means.cosine, np.dot(error, drift) / np.prod(lengths), 2)
        assert holds(found.means.omega, np.dot(error, drift) / lengths[1] ** 2, 2)
        assert (found.means.error, found.means.drift) == pytest.approx(lengths, abs=4 * math.sqrt(4 / 20_000))
        assert not (paired and found.covariances.drift_seen)
    if case == "narrower each time":
        assert found.covariances.error == pytest.approx(math.sqrt(2) * 0.36, rel=0.1)
        assert found.covariances.drift == pytest.approx(math.sqrt(2) * 0.15, rel=0.1)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("along", "is expected to help: at omega near"),
        ("across", "not expected to help"),
        ("against", "is expected to harm"),
    ],
)
def test_the_sentence(case, words):
    found = outlook(*draw(case, 20_000, np.random.default_rng(2)))
    assert words in found.sentence and found.sentence in str(found)
    assert json.loads(json.dumps(found.record(), allow_nan=False))["sentence"] == found.sentence


#: repeats, and how far a share of them may be off by chance: three standard errors
REPEATS = 240


def off(share):
    return 3 * math.sqrt(share * (1 - share) / REPEATS)


@pytest.mark.parametrize("case", ["45 degrees", "across"])
@pytest.mark.parametrize("paired", [True, False])
def test_intervals_hold_as_often_as_they_say(case, paired):
    """At so few samples that the error is just seen: 4 standard errors of a mean."""
    rng, held = np.random.default_rng(3), np.zeros(3)
    cosine, omega, _ = closed_form(case)
    for _ in range(REPEATS):
        angle = outlook(*draw(case, 400, rng, paired=paired)).distributions
        held += [
            holds(angle.cosine, cosine),
            angle.omega is None or holds(angle.omega, omega),
            holds(angle.share, max(cosine, 0) ** 2),
        ]
    assert (held / REPEATS >= 0.95 - off(0.95)).all(), held / REPEATS


def test_squares_and_products_are_unbiased(monkeypatch):
    """Of few samples, with the base's noise in the error and in the drift."""
    seen, rng = [], np.random.default_rng(4)
    of = Angle.of
    monkeypatch.setattr(Angle, "of", lambda products, without, **k: seen.append(products) or of(products, without, **k))
    for k in range(REPEATS):
        outlook(*draw("45 degrees", 60, rng, paired=bool(k % 2)))
    means, covariances = np.array(seen[1::3]), np.array(seen[2::3])
    se = means.std(0) / math.sqrt(REPEATS)
    assert (np.abs(means.mean(0) - [0.09, 0.06, 0.08]) < 4 * se).all()
    assert (np.abs(covariances.mean(0)) < 4 * covariances.std(0) / math.sqrt(REPEATS)).all()


@pytest.mark.parametrize("which", ["error", "drift"])
def test_what_is_not_there_is_not_seen(which):
    """Among 240 sets of samples, in one in 40."""
    rng, seen = np.random.default_rng(5), 0
    for _ in range(REPEATS):
        real, base, auxiliary = (rng.normal(size=(100, 2)) for _ in range(3))
        shift = np.array([0.8, 0])
        found = outlook(real, base + shift * (which == "drift"), auxiliary + shift).distributions
        seen += getattr(found, f"{which}_seen")
        if not getattr(found, f"{which}_seen"):
            assert found.omega is None and (found.cosine.low, found.cosine.high) == (-1, 1)
            assert ("blind" if found.error_seen else "no error is seen") in found.words
    assert seen / REPEATS <= 0.025 + off(0.025)


def test_a_base_that_is_its_own_auxiliary_reveals_nothing():
    real, base, _ = draw("along", 1000, np.random.default_rng(6))
    found = outlook(real, base, base)
    assert "blind" in found.sentence and found.distributions.drift == 0 and found.distributions.cosine.value == 0


def test_mass_moved_between_modes_is_parallel_to_more_of_it():
    """What quantiles call orthogonal: the error is a share of points moved, the drift as many again."""
    rng = np.random.default_rng(0)

    def moved(share, n=20_000):
        return rng.normal(size=(n, 2)) * 0.05 + np.where(rng.random((n, 1)) < share, [[3.0, 0.0]], [[-3.0, 0.0]])

    found = outlook(moved(0.5), moved(0.6), moved(0.7)).distributions
    assert found.cosine.value > 0.98 and holds(found.omega, 1) and found.ratio == pytest.approx(1, rel=0.2)


def test_shifts_scales_units_and_kinds_of_arrays():
    samples = draw("45 degrees", 2000, np.random.default_rng(7))
    found = outlook(*samples)
    again = outlook(*(torch.from_numpy(5 * x - 100).requires_grad_() for x in samples))
    for part in found.PARTS:
        one, two = getattr(found, part), getattr(again, part)
        assert two.cosine.value == pytest.approx(one.cosine.value, abs=1e-2)
        assert two.ratio == pytest.approx(one.ratio, rel=1e-2) and two.error_seen == one.error_seen
    assert again.means.error == pytest.approx(5 * found.means.error)
    assert again.covariances.error == pytest.approx(25 * found.covariances.error)
    assert outlook(*(x.astype(np.float32) for x in samples)).means.cosine.value == pytest.approx(
        found.means.cosine.value, abs=1e-5
    )


def test_the_order_of_rows_says_nothing():
    """Rows that repeat every so often, as balanced labels do, are no groups of their own kinds."""
    rng = np.random.default_rng(8)
    modes = 3.0 * np.eye(20)[np.arange(2000) % 20]
    found = outlook(*(modes + 0.1 * rng.normal(size=(2000, 20)) for _ in range(3)))
    assert found.means.error < 0.1 and found.distributions.error < 0.1


def test_more_samples_of_one_and_a_constant_feature():
    rng = np.random.default_rng(9)
    real, base, auxiliary = draw("along", 3000, rng)
    found = outlook(real, base[:2001], auxiliary)
    assert found.samples == (3000, 2001, 3000) and holds(found.distributions.omega, 1, 2)
    flat = [np.column_stack([x, np.ones(len(x))]) for x in (real, base, auxiliary)]
    assert holds(outlook(*flat).distributions.omega, 1, 2)
    line = [x[:, :1] for x in (real, base, auxiliary)]
    assert holds(outlook(*line).distributions.omega, 1, 2)


def test_many_dimensions():
    """Features of 300 dimensions by 200 samples: covariances by their points; directions are orthonormal frames."""
    rng = np.random.default_rng(10)
    shift = np.eye(300)[0]
    real, z = rng.normal(size=(200, 300)), rng.normal(size=(200, 300))
    found = outlook(real, z + 3 * shift, z + 4.5 * shift)
    assert holds(found.distributions.omega, 2, 2) and holds(found.means.omega, 2, 2)
    parts = [rng.normal(size=(n, 7)) for n in (5, 6, 6)]
    marks = [np.zeros(len(x), int) for x in parts]
    wanted = [np.cov(x, rowvar=False) for x in parts]
    np.testing.assert_allclose(
        forecast._covariances(parts, marks), [[(a * b).sum() for b in wanted] for a in wanted], rtol=1e-12
    )
    for d in (1, 2, 3, 100):
        lines = directions(d)
        np.testing.assert_allclose(lines.T @ lines, len(lines) / d * np.eye(d), atol=1e-12)


def test_distribution_functions_by_counting():
    points = np.random.default_rng(11).normal(size=(50, 3))
    cdf = SlicedCdf.around(points)
    below = (points @ cdf.directions.T)[:, :, None] <= cdf.places
    np.testing.assert_allclose(
        cdf.of_points(points)[0], (below.mean(0) * cdf.weight[:, None]).ravel(), atol=cdf.weight.max() / 49
    )


R = np.random.default_rng(12).normal(size=(30, 2))


@pytest.mark.parametrize(
    ("samples", "words"),
    [
        ((R, R[:, :1], R), r"base_samples: got '\(30, 1\)'; as many dimensions as `real` has, 2"),
        ((R, R, R[:5]), "auxiliary_samples: got '5'; give at least 20 samples"),
        ((R[:, 0], R, R), r"real: got '\(30,\)'; give points or features, \(n, d\)"),
        ((R, R * np.nan, R), "base_samples: got 'values that are not finite, or too large'"),
        ((R * 1e80, R, R), "real: got 'values that are not finite, or too large'"),
        ((R, "samples", R), "base_samples: got 'str'; give points or features"),
        ((R[:, :0], R, R), "real: got"),
    ],
)
def test_bad_input(samples, words):
    with pytest.raises(InputError, match=words):
        outlook(*samples)


def test_a_rank_correlation_has_an_interval_and_repeats_tell_nothing_new():
    seed = Seed(0).child("ranks")
    x = np.arange(12.0)
    y = x + 3 * np.sin(5 * x)
    value, low, high = rank_correlation(x, y, seed)
    assert 0.5 < low < value < high <= 1 and value == pytest.approx(stats.spearmanr(x, y).statistic)
    repeated = [np.tile(side[:, None], 5) for side in (x, y)]
    assert rank_correlation(*repeated, seed) == pytest.approx((value, low, high))
    repeated[0][0, 1:] = np.nan  # what is not there is left out
    assert rank_correlation(*repeated, seed)[0] == pytest.approx(value, abs=0.03)
    nothing = np.empty((0, 0))
    for few in ((x[:3], x[:3]), (x, 0 * x), (x[:0], x[:0]), (nothing, nothing)):
        assert np.isnan(rank_correlation(*few, seed)).all()
