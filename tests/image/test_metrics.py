"""The metrics against brute force, other libraries, closed forms and planted cases."""

import numpy as np
import pytest
from scipy import linalg
from sklearn.neighbors import NearestNeighbors

from sims_core.errors import InputError
from sims_core.seeds import Seed
from sims_image.metrics.compare import METRICS, Side, compare
from sims_image.metrics.kid import kid_subsets, sums
from sims_image.metrics.moments import Moments, statistics_of
from sims_image.metrics.neighbours import Nearest, compare_distances, manifolds
from sims_image.metrics.references import Statistics
from sims_image.metrics.report import density_coverage, frechet, kid, memorisation, precision_recall
from sims_image.metrics.samples import Sample, jackknife


def features(n, width=12, *, seed=0, scale=1.0, shift=0.0):
    rng = np.random.default_rng(99)
    mix = rng.normal(size=(width, width)) / width**0.5
    return np.random.default_rng(seed).normal(size=(n, width)) @ mix * scale + shift


# --------------------------------------------------------------------- Fréchet


def test_moments_in_pieces_are_those_of_all():
    x = features(500, seed=1, shift=1000.0)  # a mean far from 0, where the naive formula loses its digits
    parts = [Moments(12) for _ in range(3)]
    for k, piece in enumerate(np.array_split(x, 17)):
        parts[k % 3].add(piece)
    found = Moments.sum(parts).statistics
    np.testing.assert_allclose(found.mu, x.mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.sigma, np.cov(x.T), rtol=1e-9, atol=1e-11)
    assert found.images == 500


@pytest.mark.parametrize("width", [3, 40])
def test_frechet_agrees_with_sqrtm(width):
    x, y = features(300, width, seed=1), features(400, width, seed=2, scale=1.3, shift=0.2)
    root = linalg.sqrtm(np.cov(x.T) @ np.cov(y.T))
    shift = x.mean(0) - y.mean(0)
    wanted = shift @ shift + np.trace(np.cov(x.T) + np.cov(y.T) - 2 * root.real)
    assert frechet(generated=x, reference=y) == pytest.approx(wanted, rel=1e-6)
    assert frechet(generated=y, reference=x) == pytest.approx(wanted, rel=1e-6)


def test_frechet_of_fewer_images_than_features():
    """tr (C1 C2)^½ is then the sum of singular values of the centred data's product, whose roots need no rounding."""
    x, y = features(20, 60, seed=1), features(30, 60, seed=2, scale=1.3)
    a, b = (x - x.mean(0)) / 19**0.5, (y - y.mean(0)) / 29**0.5
    cross = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    wanted = ((x.mean(0) - y.mean(0)) ** 2).sum() + (a**2).sum() + (b**2).sum() - 2 * cross
    assert frechet(generated=x, reference=y) == pytest.approx(wanted, rel=1e-6)


def test_frechet_closed_form_and_identical_sets():
    one = Statistics(np.zeros(3), np.diag([1.0, 4.0, 0.0]))
    other = Statistics(np.array([1.0, 0.0, 2.0]), np.diag([9.0, 1.0, 1.0]))
    assert frechet(generated=one, reference=other) == pytest.approx(5 + 4 + 1 + 1)
    x = features(100)
    assert frechet(generated=x, reference=x) == pytest.approx(0, abs=1e-9)


# ------------------------------------------------------------------------- KID


def brute_kid(x, y):
    def k(a, b):
        return (a @ b / len(a) + 1) ** 3

    m, n = len(x), len(y)
    own = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    other = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return own + other - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


def test_kid_is_the_double_sum(monkeypatch):
    x, y = features(25, seed=1), features(31, seed=2, scale=1.2)
    wanted = brute_kid(x, y)
    assert kid(generated=x, reference=y) == pytest.approx(wanted, rel=1e-10)
    monkeypatch.setattr("sims_image.metrics.kid._BLOCK", 100)  # many blocks
    assert kid(generated=x, reference=y) == pytest.approx(wanted, rel=1e-10)
    groups = np.arange(25) % 4
    found = sums(x, y, groups)
    for g in range(4):
        assert found.estimate(g) == pytest.approx(brute_kid(x[groups != g], y), rel=1e-9)


def test_kid_of_subsets():
    x, y = features(60, seed=1), features(50, seed=2, scale=1.2)
    mean, spread = kid_subsets(generated=x, reference=y, size=50, subsets=1)
    assert spread == 0 and mean != kid(generated=x, reference=y)
    assert kid_subsets(generated=y, reference=x[:50], size=50, subsets=1)[0] == pytest.approx(
        kid(generated=y, reference=x[:50])
    )
    assert kid_subsets(generated=x, reference=y, size=20, subsets=5, seed=Seed(3)) == kid_subsets(
        generated=x, reference=y, size=20, subsets=5, seed=Seed(3)
    )
    with pytest.raises(InputError, match="size: got '51'"):
        kid_subsets(generated=x, reference=y, size=51)


# ------------------------------------------------------------------ neighbours


def radii(x, k):
    distances, _ = NearestNeighbors(n_neighbors=k + 1).fit(x).kneighbors(x)
    return distances[:, k]


def brute_neighbours(x, y, k, k_density):
    apart = np.linalg.norm(x[:, None] - y[None], axis=-1)
    precision = (apart <= radii(y, k)).any(1).mean()
    recall = (apart <= radii(x, k)[:, None]).any(0).mean()
    inside = apart <= radii(y, k_density)
    return np.array([precision, recall, inside.sum() / k_density / len(x), inside.any(0).mean()])


@pytest.mark.parametrize("block", [10**6, 300])
def test_neighbour_metrics_agree_with_brute_force(block, monkeypatch):
    monkeypatch.setattr("sims_image.metrics.neighbours._BLOCK", block)
    x, y = features(90, 4, seed=1, scale=0.9, shift=0.3), features(80, 4, seed=2)
    wanted = brute_neighbours(x, y, 3, 5)
    assert 0 < wanted[0] < 1 and 0 < wanted[1] < 1
    groups = np.random.default_rng(0).integers(0, 5, 90)
    found = manifolds(x, y, groups)
    np.testing.assert_allclose(found.values, wanted, rtol=1e-12)
    for g in range(5):
        np.testing.assert_allclose(found.without[g], brute_neighbours(x[groups != g], y, 3, 5), rtol=1e-12)
    assert precision_recall(generated=x, reference=y) == pytest.approx(tuple(wanted[:2]))
    assert density_coverage(generated=x, reference=y) == pytest.approx(tuple(wanted[2:]))


def test_planted_cases():
    x = features(200, 6, seed=1).astype(np.float32)
    assert precision_recall(generated=x, reference=x) == (1, 1)
    assert density_coverage(generated=x, reference=x)[1] == 1
    assert density_coverage(generated=features(200, 6, seed=2), reference=x)[0] == pytest.approx(1, abs=0.25)
    far = x + 1000
    assert precision_recall(generated=far, reference=x) == (0, 0)
    assert density_coverage(generated=far, reference=x) == (0, 0)
    classes = np.concatenate([x, x + 1000])  # two classes of which a model makes one
    assert precision_recall(generated=features(400, 6, seed=3), reference=classes)[0] > 0.7
    assert precision_recall(generated=features(400, 6, seed=3), reference=classes)[1] < 0.5
    assert density_coverage(generated=features(400, 6, seed=3), reference=classes)[1] < 0.51
    copies = np.repeat(x[:5], 40, axis=0)  # a collapsed model: precise, and it covers nothing
    precision, recall = precision_recall(generated=copies, reference=x)
    assert precision == 1 and recall <= 5 / 200 + 1e-9
    assert precision_recall(generated=x, reference=copies)[1] == 1  # what swapped arguments would say of it
    assert precision_recall(generated=copies, reference=copies) == (1, 1)  # balls of radius 0 hold their centres


# --------------------------------------------------------------- memorisation


def test_nearest_in_pieces():
    x, y = features(30, seed=1), features(70, seed=2)
    nearest = Nearest(x)
    for piece in np.array_split(y, 6):
        nearest.add(piece)
    wanted, _ = NearestNeighbors(n_neighbors=1).fit(y).kneighbors(x)
    np.testing.assert_allclose(nearest.distances, wanted[:, 0], rtol=1e-9)


def test_a_model_that_memorises_is_found_and_an_honest_one_is_not():
    training, heldout = features(600, seed=1), features(300, seed=2)
    honest = memorisation(generated=features(300, seed=3), heldout=heldout, training=training)
    assert not honest.suspected and abs(honest.nearer - 0.5) < 4 * honest.se and honest.copies == 0
    copies = training[np.random.default_rng(0).integers(0, 600, 300)]
    exact = memorisation(generated=copies, heldout=heldout, training=training)
    assert exact.suspected and exact.nearer == 1 and exact.copies == 1 and "repeats" in exact.words
    noisy = copies + 0.05 * features(300, seed=4)
    assert memorisation(generated=noisy, heldout=heldout, training=training).suspected
    some = np.concatenate([copies[:60], features(240, seed=5)])  # a fifth of the images
    found = memorisation(generated=some, heldout=heldout, training=training)
    assert found.suspected and found.copies == pytest.approx(0.2)
    # a memorising model beats every honest one in distance, which is why the check exists
    floor = frechet(generated=heldout, reference=training)
    assert frechet(generated=copies, reference=training) < floor


def test_probability_of_being_nearer_counts_ties_half():
    a, b = np.array([1.0, 2.0, 2.0, 5.0]), np.array([2.0, 3.0, 0.5])
    pairs = [(x < y) + 0.5 * (x == y) for x in a for y in b]
    assert compare_distances(generated=a, heldout=b).nearer == pytest.approx(np.mean(pairs))


# --------------------------------------------------------------------- errors


@pytest.mark.parametrize("metric", [frechet, kid, precision_recall, density_coverage])
def test_metrics_take_their_arguments_by_name_and_check_them(metric):
    x = features(40)
    with pytest.raises(TypeError):
        metric(x, x)
    for bad, words in (
        ({"generated": x[:, :5], "reference": x}, "generated: got '5 features'; the reference has 12"),
        ({"generated": x[0], "reference": x}, "generated: got"),
        ({"generated": x, "reference": x[:1]}, "reference: got"),
        ({"generated": x, "reference": np.where(x > 2, np.nan, x)}, "reference: got 'not finite'"),
    ):
        with pytest.raises(InputError) as caught:
            metric(**bad)
        assert str(caught.value).startswith(words)
    if metric in (precision_recall, density_coverage):
        with pytest.raises(InputError, match="k: got '40'"):
            metric(generated=x, reference=x, k=40)


# -------------------------------------------------------------------- samples


def test_a_sample_is_the_same_however_it_is_cut_and_merged():
    x = features(700, 5).astype(np.float32)
    whole = Sample(5, keep=100)
    whole.add(np.arange(700), x)
    parts = [Sample(5, keep=100) for _ in range(3)]
    for k, items in enumerate(np.array_split(np.random.default_rng(1).permutation(700), 40)):
        parts[k % 3].add(items, x[items])
    merged = Sample(5, keep=100)
    for part in parts:
        merged.merge(part)
    kept, again = whole.kept(), merged.kept()
    np.testing.assert_array_equal(kept.items, again.items)
    np.testing.assert_array_equal(kept.features, again.features)
    assert len(kept.items) == 100 and whole.count == merged.count == 700
    np.testing.assert_allclose(whole.moments.scatter, merged.moments.scatter, rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(kept.features, x[kept.items])
    np.testing.assert_array_equal(whole.kept(40).items, kept.items[:40])
    with pytest.raises(InputError, match="as this sample"):
        merged.merge(Sample(5, keep=99))
    merged.merge(parts[0])
    with pytest.raises(InputError, match="came twice"):
        merged.kept()
    x[3, 2] = np.nan
    with pytest.raises(InputError, match="image 3: a diverged"):
        whole.add(np.arange(700), x)


def test_a_sample_holds_no_more_than_it_keeps():
    sample = Sample(3, keep=50)
    for k in range(100):
        sample.add(np.arange(20 * k, 20 * k + 20), features(20, 3, seed=k).astype(np.float32))
        assert sum(map(len, sample._features)) <= 100 + 20


def test_jackknife_of_a_mean_is_its_standard_error():
    x, groups = np.random.default_rng(0).normal(size=400), np.arange(400) % 400
    without = np.array([np.delete(x, g).mean() for g in range(400)])
    found = jackknife(np.array(x.mean()), without, np.ones(400, int))
    assert float(found) == pytest.approx(x.std(ddof=1) / 20, rel=1e-9)
    groups = np.random.default_rng(1).integers(0, 10, 400)  # of unequal size
    without = np.array([x[groups != g].mean() for g in range(10)])
    assert float(jackknife(np.array(x.mean()), without, np.bincount(groups))) == pytest.approx(0.05, rel=0.5)


def test_errors_are_those_of_other_draws():
    """The spread of each metric over fresh generated samples, the reference fixed, against the errors it was given."""
    side = Sample(12)
    side.add(np.arange(800), features(800, seed=1, shift=0.05).astype(np.float32))
    real = Side.of(side)
    found = []
    for seed in range(30):
        sample = Sample(12)
        sample.add(np.arange(400) + 400 * seed, features(400, seed=10 + seed).astype(np.float32))
        found.append(compare(sample, real))
    for name in METRICS:
        spread = np.std([f[name].value for f in found], ddof=1)
        errors = np.sqrt(np.mean([f[name].se ** 2 for f in found]))
        assert 0.6 < errors / spread < 2.2, (name, errors, spread)  # spread of 30: ± 13%; recall errs on the safe side
    assert found[0]["precision"].low < found[0]["precision"].value < found[0]["precision"].high
    few, narrow = Sample(12), Sample(3)
    few.add(np.arange(19), features(19))
    with pytest.raises(InputError, match="at least 20 images"):
        compare(few, real)
    narrow.add(np.arange(30), features(30, 3))
    with pytest.raises(InputError, match="3 features"):
        compare(narrow, real)


def test_statistics_pass_through():
    x = features(50)
    assert statistics_of("reference", found := statistics_of("reference", x)) is found


@pytest.mark.parametrize("scale", [1e-140, 1e-60, 1e50, 1e77, 1e140])
def test_the_frechet_distance_scales_with_the_features(scale):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((50, 4)), rng.standard_normal((60, 4)) + 1
    wanted = frechet(generated=x, reference=y)
    assert frechet(generated=x * scale, reference=y * scale) / scale / scale == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize(("metric", "scale"), [(frechet, 1e155), (frechet, 1e300), (kid, 1e60), (kid, 1e200)])
def test_features_whose_products_overflow_are_named(metric, scale):
    x = np.random.default_rng(0).standard_normal((50, 4)) * scale
    with pytest.raises(InputError, match="their products overflow"):
        metric(generated=x, reference=x)
