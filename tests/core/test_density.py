"""Density guidance on Gaussians, where p_base^(1 + omega) / p_aux^omega is one, and where it is refused."""

import math

import numpy as np
import pytest
import torch

from sims_core import InputError
from sims_core.density import Drawn, annealed_langevin, effective, importance, tail_index

F64 = torch.float64
MEANS = torch.tensor([[0.5, -1.0], [0.7, -0.8]], dtype=F64)  # base, auxiliary
COVS = torch.tensor([[[1.5, 0.6], [0.6, 0.8]], [[1.8, 0.4], [0.4, 1.0]]], dtype=F64)


def log_density(which):
    precision = torch.linalg.inv(COVS[which])
    return lambda x: -0.5 * ((x - MEANS[which]) @ precision * (x - MEANS[which])).sum(-1)


def generators(rows):
    return [np.random.default_rng(i) for i in range(rows)]


def draws(rows, n, dim=2):
    noise = torch.from_numpy(np.stack([np.random.default_rng(100 + i).standard_normal((n, dim)) for i in range(rows)]))
    return MEANS[0] + noise @ torch.linalg.cholesky(COVS[0]).T


def closed_form(omega):
    """Precisions add: P = (1 + omega) P_b - omega P_a."""
    base, auxiliary = (torch.linalg.inv(c) for c in COVS)
    precision = (1 + omega) * base - omega * auxiliary
    mean = torch.linalg.solve(precision, (1 + omega) * base @ MEANS[0] - omega * auxiliary @ MEANS[1])
    return mean, torch.linalg.inv(precision)


def assert_moments(points, omega, effective_points):
    """Mean and covariance within four standard errors of the closed form's."""
    mean, cov = closed_form(omega)
    scale = cov.diagonal().sqrt()
    assert bool(((points.mean(0) - mean).abs() < 4 * scale / math.sqrt(effective_points)).all())
    error = torch.outer(scale, scale) * math.sqrt(2 / effective_points)
    assert bool(((torch.cov(points.T) - cov).abs() < 4 * error).all())


@pytest.mark.parametrize("omega", [0.0, 1.0, 2.5])
def test_importance_against_the_closed_form(omega):
    x, strength = draws(1, 40_000), torch.tensor([omega], dtype=F64)
    made = importance(x, log_density(0)(x) - log_density(1)(x), strength, 8000, generators(1)).checked(strength)
    assert made.points.shape == (1, 8000, 2)
    assert_moments(made.points[0], omega, min(8000, 40_000 * float(made.effective)))
    assert omega or float(made.effective) == pytest.approx(1)


@pytest.mark.parametrize("omega", [1.0, 4.0])
def test_annealed_langevin_against_the_closed_form(omega):
    x, strength = draws(2, 4000), torch.tensor([omega, omega], dtype=F64)
    made = annealed_langevin(log_density(0), log_density(1), x, strength, generators(2)).checked(strength)
    assert_moments(made.points[0], omega, 4000 * float(made.effective[0]))
    assert not torch.equal(made.points[0], made.points[1])  # rows have their own noise
    assert bool(((made.acceptance > 0.4) & (made.acceptance < 0.75)).all())
    alone = annealed_langevin(log_density(0), log_density(1), x[:1], strength[:1], generators(1))
    assert torch.allclose(alone.points[0], made.points[0], rtol=0, atol=1e-9)


def test_diffusion_and_density_agree_to_first_order():
    """v_b^(1 + omega) / v_a^omega is what SIMS gives by the probability flow; precisions give this to second order."""
    omega, gaps = 1.5, []
    for change in (0.02, 0.01):
        v_b, v_a = 1.0, 1.0 + change
        gaps.append(abs(v_b ** (1 + omega) / v_a**omega - 1 / ((1 + omega) / v_b - omega / v_a)))
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.1) and gaps[1] > 1e-6


@pytest.mark.parametrize("k", [0.2, 0.5, 1.2])
def test_the_tail_index_of_gaussians(k):
    """k = omega (v_b / v_a - 1) of weights exp(omega (log p_b - log p_a)); logarithms bias it low."""
    x = torch.from_numpy(np.random.default_rng(3).standard_normal((4, 20_000)))
    found = tail_index(k / 2 * x**2)
    assert bool(((found > 0.75 * k) & (found < 1.1 * k)).all())
    assert bool((tail_index(-k / 2 * x**2) < 0.01).all())  # bounded weights


def test_degenerate_weights_are_refused_and_say_why():
    base, strength = draws(1, 2000), torch.tensor([3.0], dtype=F64)

    def narrow(x):  # an auxiliary so much narrower that the target's precision is negative
        return log_density(0)(x) * 2

    ratio = log_density(0)(base) - narrow(base)
    with pytest.raises(InputError, match=r"omega: got '3'; the weights degenerate \(effective .* tail index"):
        importance(base, ratio, strength, 100, generators(1)).checked(strength)
    made = annealed_langevin(log_density(0), narrow, base, strength, generators(1), stages=4, steps=1)
    with pytest.raises(InputError, match="no finite mass"):
        made.checked(strength)
    shifted = importance(base, 20 * base[..., 0], strength, 100, generators(1))
    assert bool(shifted.degenerate.all()) and float(shifted.effective) < 0.01
    assert Drawn(base * math.nan, *[torch.ones(1)] * 2, torch.ones(1), torch.ones(1).bool()).degenerate.all()


def test_effective_size():
    weights = torch.log(torch.tensor([[1.0, 1, 1, 1], [1, 1, 0, 0], [0, 1, 0, 0]], dtype=F64))
    assert effective(weights).tolist() == pytest.approx([1, 0.5, 0.25])
