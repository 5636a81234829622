"""Gaussians, their statistics and their distances against numpy, POT and closed forms."""

import math

import numpy as np
import ot
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sims_core import InputError, Seed
from sims_toy import wasserstein
from sims_toy.gaussian import Gaussian, Statistics, cosine, eigh, fit, standard_moments, tangent, union, w2_squared

seeds = st.integers(0, 2**32 - 1)
dims = st.integers(1, 4)


def random_gaussian(seed: int, dim: int, rows: int = 1) -> Gaussian:
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((rows, dim, dim))
    return Gaussian(
        torch.from_numpy(rng.standard_normal((rows, dim))),
        torch.from_numpy(a @ a.transpose(0, 2, 1) + 0.1 * np.eye(dim)),
    )


@given(seeds, dims)
def test_w2_is_a_metric_and_pots(seed, dim):
    a, b, c = (random_gaussian(seed + i, dim) for i in range(3))
    ab, ba = float(w2_squared(a, b)[0].sqrt()), float(w2_squared(b, a)[0].sqrt())
    assert ab == pytest.approx(ba, rel=1e-9)
    assert float(w2_squared(a, a)[0]) == pytest.approx(0, abs=1e-12)
    assert ab <= float(w2_squared(a, c)[0].sqrt()) + float(w2_squared(c, b)[0].sqrt()) + 1e-12
    pot = ot.gaussian.bures_wasserstein_distance(
        a.mean[0].numpy(), b.mean[0].numpy(), a.cov[0].numpy(), b.cov[0].numpy()
    )
    assert ab == pytest.approx(float(pot), rel=1e-7)


@given(seeds, dims)
def test_w2_is_invariant_under_rotation_and_shift(seed, dim):
    a, b = random_gaussian(seed, dim), random_gaussian(seed + 1, dim)
    q = torch.linalg.qr(torch.from_numpy(np.random.default_rng(seed + 2).standard_normal((dim, dim))))[0]
    turn = lambda g: Gaussian(g.mean @ q.T + 3.0, q @ g.cov @ q.T)  # noqa: E731
    assert float(w2_squared(turn(a), turn(b))[0]) == pytest.approx(float(w2_squared(a, b)[0]), rel=1e-9, abs=1e-12)


@given(seeds)
def test_two_by_two_eigenvectors(seed):
    cov = random_gaussian(seed, 2, 20).cov
    values, vectors = eigh(cov)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(cov), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, cov)
    torch.testing.assert_close(vectors.mT @ vectors, torch.eye(2, dtype=torch.float64).expand(20, 2, 2))


@pytest.mark.parametrize(
    "matrix",
    [
        [[1.0, 0], [0, 1]],
        [[2.0, 0], [0, 1]],
        [[1.0, 0], [0, 2]],
        [[1.0, 1], [1, 1]],
        [[0.0, 0], [0, 0]],
        [[-1.0, 0], [0, -2]],
    ],
)
def test_two_by_two_edge_cases(matrix):
    m = torch.tensor([matrix], dtype=torch.float64)
    values, vectors = eigh(m)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(m), atol=1e-15, rtol=1e-12)
    torch.testing.assert_close(vectors @ torch.diag_embed(values) @ vectors.mT, m)


@given(seeds, dims)
def test_score_and_denoiser_agree(seed, dim):
    g = random_gaussian(seed, dim)
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, 5, dim)))
    sigma = torch.tensor(0.7, dtype=torch.float64)
    torch.testing.assert_close((g.denoise(x, sigma) - x) / sigma**2, g.score(x, sigma))
    noisy = torch.distributions.MultivariateNormal(g.mean[0], g.cov[0] + sigma**2 * torch.eye(dim, dtype=torch.float64))
    y = x[0].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(noisy.log_prob(y).sum(), y)
    torch.testing.assert_close(g.score(x, sigma)[0], gradient)


@given(seeds, st.integers(1, 6), st.integers(1, 6))
def test_union_of_statistics_is_the_statistics_of_the_union(seed, n, m):
    points = torch.from_numpy(np.random.default_rng(seed).standard_normal((3, n + m, 2)))
    both = union(Statistics.of_points(points[:, :n]), Statistics.of_points(points[:, n:]))
    whole = Statistics.of_points(points)
    for name in ("n", "mean", "cov"):
        torch.testing.assert_close(getattr(both, name), getattr(whole, name))
    empty = Statistics(
        torch.zeros(3, dtype=torch.float64),
        torch.zeros(3, 2, dtype=torch.float64),
        torch.zeros(3, 2, 2, dtype=torch.float64),
    )
    assert torch.equal(union(whole, empty).cov, whole.cov)


def test_estimators():
    points = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 9, 3)))
    s = Statistics.of_points(points)
    for ddof in (0, 1):
        expected = np.stack([np.cov(p.T, ddof=ddof) for p in points.numpy()])
        np.testing.assert_allclose(fit(s, ddof).cov.numpy(), expected)


@pytest.mark.parametrize(("n", "dim"), [(1000, 2), (5, 2), (2, 2), (3, 3), (3, 5), (100, 4)])
def test_drawn_moments_have_the_distribution_of_sample_moments(n, dim):
    """First and second moments of (mean, scatter) against the normal and Wishart laws, and rank where n - 1 < d."""
    rows = 20_000 if n <= 100 else 5_000
    mean, scatter = standard_moments([n] * rows, dim, [Seed(1).child(i) for i in range(rows)])
    f = n - 1
    z_mean = mean.mean(0) * math.sqrt(rows * n)
    z_var = ((mean**2).mean(0) * n - 1) / math.sqrt(2 / rows)
    wishart = scatter * n
    expected = f * np.eye(dim)
    variance = f * (np.ones((dim, dim)) + np.eye(dim))
    z_wishart = (wishart.mean(0) - expected) / np.sqrt(variance / rows)
    assert max(abs(z_mean).max(), abs(z_var).max(), abs(z_wishart).max()) < 4.5
    spread = wishart.var(0)
    kurtosis = 2 / rows + (12 / f + 6 / f) / rows  # of the diagonal's chi-square: excess 12 / f
    z_spread = (spread.diagonal() / (2 * f) - 1) / math.sqrt(kurtosis)
    assert abs(z_spread).max() < 4.5
    assert np.linalg.matrix_rank(scatter[0]) == min(f, dim)
    # mean and scatter are independent
    correlation = np.corrcoef(mean[:, 0] ** 2, wishart[:, 0, 0])[0, 1]
    assert abs(correlation) * math.sqrt(rows) < 4


def test_empty_data_sets():
    mean, scatter = standard_moments([0, 1], 2, [Seed(0), Seed(1)])
    assert (mean[0] == 0).all() and (scatter == 0).all() and (mean[1] != 0).all()


@pytest.mark.parametrize(
    ("mean", "cov", "says"),
    [
        ([0, 0], [[1, 2], [2, 1]], "positive definite"),
        ([0, 0], [[1, 0], [1, 1]], "symmetric"),
        ([0, 0, 0], [[1, 0], [0, 1]], "3 x 3"),
        ([0, float("nan")], [[1, 0], [0, 1]], "finite"),
        ([0, 0], [[1, float("inf")], [0, 1]], "finite"),
    ],
)
def test_bad_gaussians(mean, cov, says):
    with pytest.raises(InputError, match=says):
        Gaussian.single(mean, cov)


def test_diverged_rows_stay_and_disturb_nobody():
    g = random_gaussian(0, 2, 3)
    cov = g.cov.clone()
    cov[1] = float("nan")
    broken = Gaussian(g.mean, cov)
    real = random_gaussian(5, 2)
    d = w2_squared(broken, real)
    whole = w2_squared(g, real)
    assert torch.isinf(d[1]) and torch.equal(d[[0, 2]], whole[[0, 2]])
    x = torch.ones(3, 2, 2, dtype=torch.float64)
    out = broken.denoise(x, torch.tensor(1.0, dtype=torch.float64))
    assert torch.isnan(out[1]).all() and torch.isfinite(out[[0, 2]]).all()


@given(seeds, dims)
def test_tangent_length_is_w2_to_first_order(seed, dim):
    real = random_gaussian(seed, dim)
    other = random_gaussian(seed + 1, dim)
    near = Gaussian(real.mean + 1e-4 * other.mean, real.cov + 1e-4 * (other.cov - real.cov))
    assert float(tangent(near, real).norm()) == pytest.approx(float(w2_squared(near, real)[0].sqrt()), rel=2e-3)
    v = tangent(near, real)
    assert float(cosine(v, -2 * v)[0]) == pytest.approx(-1)


def test_points_and_floors():
    """POT's exact W2 between n-point samples is badly biased; the closed form of moments is not."""
    real = Gaussian.single([0, 0], [[2, 1], [1, 2]])
    other = Gaussian.single([0.1, 0], [[1.8, 0.9], [0.9, 1.8]])
    true = float(w2_squared(other, real)[0].sqrt())

    def draw(n, seed, g=real):
        return seed.numpy().multivariate_normal(g.mean[0].numpy(), g.cov[0].numpy(), n)

    found = wasserstein.measure(draw(500, Seed(1), other), draw, seed=Seed(2), repeats=8)
    assert found.value > 1.5 * true  # the bias
    assert found.floor_low < found.floor < found.floor_high and found.floor > true
    points = torch.from_numpy(np.stack([draw(500, Seed(3).child(i), other) for i in range(60)]))
    distances = wasserstein.of_moments(points, real)
    noise = 6.75 * 0.9 / 500
    assert abs((distances**2).mean() - true**2 - noise) / ((distances**2).std() / math.sqrt(60)) < 4
    assert "floor" in str(found)


def test_empirical_distances():
    x = np.random.default_rng(0).standard_normal((60, 2))
    assert wasserstein.exact(x, x) == pytest.approx(0, abs=1e-6)
    assert wasserstein.exact(x + np.array([3, 4]), x) == pytest.approx(5)
    # the sliced distance of a shift t in d dimensions is |t| / sqrt(d) on average over directions
    assert wasserstein.sliced(x + np.array([3, 4]), x, directions=4000) == pytest.approx(5 / math.sqrt(2), rel=0.05)
    assert wasserstein.sliced(x + 1, x, seed=Seed(1)) == wasserstein.sliced(x + 1, x, seed=Seed(1))
    brute = min(
        math.sqrt(np.mean(np.sum((x[:5][list(p)] - x[5:10]) ** 2, 1)))
        for p in __import__("itertools").permutations(range(5))
    )
    assert wasserstein.exact(x[:5], x[5:10]) == pytest.approx(brute)
    with pytest.raises(InputError, match="dimension"):
        wasserstein.exact(x, x[:, :1])
    with pytest.raises(InputError, match="diverged"):
        wasserstein.sliced(x * np.nan, x)
    with pytest.raises(InputError, match="repeats"):
        wasserstein.measure(x, lambda n, s: x, seed=Seed(0), repeats=1)


SCALES = (1e-300, 1e-160, 1e-60, 1e60, 1e100, 1e155, 1e250)


@pytest.mark.parametrize("scale", SCALES)
def test_distances_scale_with_the_data(scale):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, 2)), rng.standard_normal((30, 2)) + 1
    for distance in (wasserstein.exact, wasserstein.sliced):
        assert distance(x * scale, y * scale) == pytest.approx(scale * distance(x, y), rel=1e-9)
    a, b = ([[2.0, 1.0], [1.0, 2.0]], [[3.0, -1.0], [-1.0, 1.0]])

    def squared(factor):
        factors = torch.tensor([factor, 1.0], dtype=torch.float64)[:, None, None]
        mean = torch.zeros(2, 2, dtype=torch.float64)
        pair = (Gaussian(mean, torch.tensor(c, dtype=torch.float64) * factors) for c in ([a, b], [b, a]))
        return w2_squared(*pair)

    found, wanted = squared(scale), squared(1.0)
    assert float(found[0]) == pytest.approx(scale * float(wanted[0]), rel=1e-9)
    assert found[1] == wanted[1]  # a neighbour's bits are its own
