"""Counter-based draws: known words, the right distributions, and each item's draws its own."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from sims_core.draws import Draws, normals, random_words
from sims_core.seeds import Seed


def test_random_words_are_splitmix64():
    def splitmix(state: int) -> int:
        z = state
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        return z ^ (z >> 31)

    key = 0xDEADBEEF12345678
    found = random_words(torch.tensor(key - 2**64), torch.arange(5))
    expected = [splitmix((key + (i + 1) * 0x9E3779B97F4A7C15) % 2**64) for i in range(5)]
    assert [int(v) % 2**64 for v in found] == expected


def test_normals_are_box_muller():
    first, second = normals(torch.tensor([1 << 62]), torch.float64)
    radius = math.sqrt(-2 * math.log((2.0**30 + 0.5) / 2**32))
    assert (float(first), float(second)) == pytest.approx((radius, 0.0))


def test_an_items_draws_are_its_own():
    draws, items = Draws(Seed(3)), torch.arange(20)
    everything = draws.normal(items, (3, 5))
    some = torch.tensor([7, 19, 0])
    assert torch.equal(draws.normal(some, (3, 5)), everything[some])
    assert not torch.equal(Draws(Seed(4)).normal(items, (3, 5)), everything)
    assert len(torch.unique(draws.words(torch.arange(1000), 50))) == 50_000


def test_draws_have_the_right_distributions():
    draws, items = Draws(Seed(5)), torch.arange(2000) + 10**9
    noise = draws.normal(items, (1, 3, 3), torch.float64)
    assert stats.kstest(noise.flatten().numpy(), "norm").pvalue > 1e-3
    assert np.abs(np.corrcoef(noise.flatten(1).T.numpy()) - np.eye(9)).max() < 4.5 / math.sqrt(2000)
    assert abs(np.corrcoef(noise[1:].flatten(), noise[:-1].flatten())[0, 1]) < 4 / math.sqrt(18_000)
    uniform = draws.uniform(items, 4)
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(uniform.T.numpy()) - np.eye(4)).max() < 4.5 / math.sqrt(2000)


def test_float32_normals_are_finite_to_the_last_word():
    words = torch.tensor([-1, 0, 2**32 - 1, -(2**32)])  # upper and lower halves all ones or all zeros
    for dtype in (torch.float32, torch.float64):
        assert torch.stack(normals(words, dtype)).isfinite().all()
