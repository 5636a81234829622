"""What small networks are trained on: reproducible draws, noise levels, and targets with one minimiser."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from sims_core.diffusion import LogNormal
from sims_core.sampling import cosine_sigmas
from sims_core.seeds import Seed
from sims_toy.networks.targets import CosineSteps, CosineTime, Layout, UniformAngle, posterior_mean, training_levels

# ------------------------------------------------------------- draws and levels


@pytest.mark.parametrize("stratified", [True, False])
def test_draws_have_the_right_distributions(stratified):
    layout = Layout(rows=100, dim=3, count=250, levels=1000, reference=0, stratified=stratified)
    points, level, noise, _ = layout.draw(torch.tensor([5, 6]), torch.arange(400), torch.float64)
    points, level, noise = points[..., :100], level[..., :100], noise[..., :100]
    for k in range(2):
        assert stats.kstest(noise[k].flatten().numpy(), "norm").pvalue > 1e-3
        assert stats.chisquare(np.bincount(points[k].flatten().numpy(), minlength=250)).pvalue > 1e-3
        counts = np.bincount(level[k].flatten().numpy() // 100, minlength=10)
        assert counts.sum() == 40_000 and (np.abs(counts - 4000) < 4 * math.sqrt(4000)).all()
    correlations = np.corrcoef(noise.transpose(2, 3).flatten(0, 2).numpy().T)
    assert np.abs(correlations - np.eye(3)).max() < 4 / math.sqrt(80_000)
    assert abs(np.corrcoef(noise[0].flatten(), noise[1].flatten())[0, 1]) < 4 / math.sqrt(120_000)
    per_stratum = np.sort(level.numpy(), axis=-1) // 10
    in_order = (np.abs(per_stratum - np.arange(100)) <= 1).all()
    assert in_order == stratified


def test_training_levels_follow_their_distributions():
    std = torch.tensor([0.5, 2.0], dtype=torch.float64)
    angles = torch.atan(training_levels(UniformAngle(), std, 400) / std[:, None])
    torch.testing.assert_close(angles[1], (torch.arange(400, dtype=torch.float64) + 0.5) / 400 * math.pi / 2)
    logs = training_levels(LogNormal(-1.2, 1.2), std, 4000)[0].log()
    assert float(logs.mean()) == pytest.approx(-1.2, abs=1e-9) and float(logs.std()) == pytest.approx(1.2, rel=1e-3)
    torch.testing.assert_close(training_levels(CosineSteps(1000), std)[1].flip(0), cosine_sigmas(1000))


@pytest.mark.parametrize("steps", [20, 1000])
def test_cosine_time_inverts_the_schedule(steps):
    time = CosineTime(steps)(cosine_sigmas(steps))
    expected = torch.arange(steps - 1, -1, -1, dtype=torch.float64) / (steps - 1)
    torch.testing.assert_close(time, expected, rtol=0, atol=1e-7)


# ---------------------------------------------------------------------- targets


def points(n: int, which: int) -> Tensor:
    """Off-centre, correlated points [n, 2], float64."""
    mixing = torch.tensor([[1.4, 0.0], [0.7, 1.2]], dtype=torch.float64)
    rows = torch.from_numpy(Seed(7).child(which).numpy().standard_normal((n, 2)))
    return rows @ mixing.T + torch.tensor([1.0, -0.5], dtype=torch.float64)


def test_posterior_mean_equals_brute_force():
    data, x = points(30, 0), points(12, 1)
    for sigma in (1e-6, 0.1, 1.0, 50.0):
        found = posterior_mean(x, torch.full((12,), sigma, dtype=torch.float64), data)
        for row, mean in zip(x, found, strict=True):
            exponents = np.array([-float(((row - y) ** 2).sum()) / (2 * sigma**2) for y in data])
            weights = np.exp(exponents - exponents.max())
            expected = (weights[:, None] * data.numpy()).sum(0) / weights.sum()
            assert mean.tolist() == pytest.approx(expected.tolist(), rel=1e-9, abs=1e-12)


def test_every_target_has_the_same_minimiser():
    """E[g(x) (target - E[y|x])] = 0 for plain and subset targets, whatever g; not so for subsets without the own y."""
    data, layout = points(40, 0), Layout(256, 2, 40, 1, 8, False)
    own, _, noise, subset = layout.draw(torch.tensor([11]), torch.arange(400), torch.float64)
    sigma = torch.full((400, 256), 0.8, dtype=torch.float64)
    clean = data[own[0]]
    x = clean + 0.8 * noise[0].mT
    exact = posterior_mean(x, sigma, data)
    of_subset = posterior_mean(x, sigma, data[subset[0]])
    without = posterior_mean(x, sigma, data[subset[0].roll(1, 0)])  # another step's subset: misses the own point

    def z_scores(target: Tensor) -> np.ndarray:
        residual = (target - exact)[..., 0]
        functions = [torch.ones_like(residual), x[..., 0], x[..., 1], x[..., 0] ** 2, torch.sin(x[..., 0])]
        means = torch.stack([(g * residual).mean(1) for g in functions])  # a step's rows share a subset
        return (means.mean(1) / (means.std(1) / math.sqrt(400))).numpy()

    assert np.abs(z_scores(clean)).max() < 4
    assert np.abs(z_scores(of_subset)).max() < 4
    assert np.abs(z_scores(without)).max() > 8
    spread = [float(((t - exact) ** 2).mean()) for t in (clean, of_subset)]
    assert spread[1] < 0.5 * spread[0]
