"""Averages of weights against closed forms, and post-hoc reconstruction against averages that were tracked."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from sims_core.errors import InputError
from sims_image.models.ema import (
    Averages,
    HalfLife,
    Power,
    coefficients,
    gamma_from_width,
    misfit,
    overlap,
    reconstruct,
    width_from_gamma,
)

BATCH = 10


class Scalar(torch.nn.Module):
    """One parameter, one buffer."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([value], dtype=torch.float64))
        self.register_buffer("table", torch.tensor([3, 4]))


def track(profiles, path, start=0.0, steps=None):
    """Averages of a parameter that follows ``path`` (its value after each step), and what they were after each step."""
    network = Scalar(start)
    averages = Averages(network, profiles)
    history = []
    for i, value in enumerate(path):
        with torch.no_grad():
            network.weight.fill_(float(value))
        averages.update(i * BATCH, BATCH)
        history.append([float(averages.weights(p)["weight"]) for p in profiles])
    return averages, np.array(history).T


# ---------------------------------------------------------------------- profiles


@pytest.mark.parametrize(("width", "gamma"), [(0.05, 16.97), (0.10, 6.94)])
def test_gamma_of_the_published_widths(width, gamma):
    assert gamma_from_width(width) == pytest.approx(gamma, abs=0.005)  # EDM2, Sec. 3.1
    assert width_from_gamma(gamma_from_width(width)) == pytest.approx(width, rel=1e-10)


@pytest.mark.parametrize("gamma", [0.5, 3.0, 40.0])
def test_width_is_the_relative_standard_deviation(gamma):
    density = lambda s: (gamma + 1) * s**gamma  # noqa: E731
    mean, square = (integrate.quad(lambda s, k=k: s**k * density(s), 0, 1)[0] for k in (1, 2))
    assert width_from_gamma(gamma) == pytest.approx(math.sqrt(square - mean**2), rel=1e-6)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.3, math.nan])
def test_widths_out_of_range_are_refused(width):
    with pytest.raises(InputError, match="EMA width"):
        Power(width)


def test_overlap_is_the_inner_product():
    for ta, wa, tb, wb in [(1.0, 0.05, 1.0, 0.1), (0.7, 0.1, 1.0, 0.05), (1.0, 0.2, 0.4, 0.15)]:
        both = [(gamma_from_width(w), t) for w, t in ((wa, ta), (wb, tb))]
        product = lambda s, both=both: math.prod((g + 1) * s**g / t ** (g + 1) for g, t in both)  # noqa: E731
        expected = integrate.quad(product, 0, min(ta, tb))[0]
        assert float(overlap(ta, wa, tb, wb)) == pytest.approx(expected, rel=1e-8)


# ---------------------------------------------------------------------- tracking


def test_half_life_halves():
    profile = HalfLife(5 * BATCH, None)
    _, history = track([profile], [1.0] * 20)
    np.testing.assert_allclose(1 - history[0], 0.5 ** (np.arange(1, 21) / 5), rtol=1e-12)


def test_half_life_ramps_up_with_the_images_seen():
    _, history = track([HalfLife(1e9, 0.05)], [0.0, 1.0, 1.0, 1.0])
    # after the first step the average is the network; then (1 - average) shrinks by 0.5^(1 / (0.05 i))
    gap = np.cumprod([0.5 ** (1 / (0.05 * i)) for i in (1, 2, 3)])
    np.testing.assert_allclose(history[0], [0, *(1 - gap)], rtol=1e-12)
    bounded = HalfLife(30, 0.05)
    assert bounded.keep(100 * BATCH, BATCH) == 0.5 ** (BATCH / 30) and bounded.keep(20, BATCH) == 0.5 ** (BATCH / 1)


@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_power_average_follows_its_profile(width):
    """Of weights that are s^k at time s: the integral (gamma + 1) / (gamma + 1 + k) t^k, to the step's size."""
    gamma, steps = gamma_from_width(width), 4000
    times = np.arange(1, steps + 1) / steps
    for k in (1, 2):
        _, history = track([Power(width)], times**k)
        assert history[0][-1] == pytest.approx((gamma + 1) / (gamma + 1 + k), rel=2e-3)


def test_the_first_step_leaves_nothing_of_the_start():
    _, history = track([Power(0.1), HalfLife(100, 0.05)], [2.0], start=50.0)
    assert history[:, 0].tolist() == [2.0, 2.0]
    _, kept = track([HalfLife(100, None)], [2.0], start=50.0)  # fine-tuning: the base counts
    assert kept[0, 0] == pytest.approx(2 + 48 * 0.5**0.1)


def test_state_and_weights_come_back():
    profiles = [Power(0.05), Power(0.1)]
    averages, _ = track(profiles, np.linspace(0, 1, 7))
    again = Averages(Scalar(9.0), profiles)
    again.load_state_dict(averages.state_dict())
    assert torch.equal(again.weights(profiles[1])["weight"], averages.weights(profiles[1])["weight"])
    assert averages.weights(profiles[0])["table"].tolist() == [3, 4]
    with pytest.raises(InputError, match="this run keeps"):
        Averages(Scalar(), [Power(0.07)]).load_state_dict(averages.state_dict())
    with pytest.raises(InputError, match="three decimals"):
        Averages(Scalar(), [Power(0.05), Power(0.0501)])


# -------------------------------------------------------------------- any width


def snapshots_of(path, widths, every):
    profiles = [Power(w) for w in widths]
    _, history = track(profiles, path)
    at = range(every - 1, len(path), every)
    stored = [({"weight": torch.tensor([history[j][i]])}, (i + 1) * BATCH, widths[j]) for i in at for j in range(2)]
    return [list(column) for column in zip(*stored, strict=True)]


@pytest.mark.parametrize("width", [0.03, 0.05, 0.07, 0.12])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_reconstruction_recovers_a_tracked_average(width, share):
    steps = 3200
    path = np.cumsum(np.random.default_rng(2).standard_normal(steps)) / 40 + 10 * np.exp(-np.arange(steps) / 900)
    states, times, widths = snapshots_of(path, (0.05, 0.10), every=50)
    until = int(steps * share)
    _, history = track([Power(width)], path[:until])
    tracked = history[0][-1]
    found = float(reconstruct(iter(states), times, widths, until * BATCH, width)["weight"])
    assert abs(found - tracked) < 3e-3
    assert abs(path[until - 1] - tracked) > 2e-2  # the average is not merely the last weights
    assert misfit(times, widths, until * BATCH, width) < 0.1


def test_a_stored_average_is_itself():
    times, widths = [100.0, 100.0, 200.0, 200.0], [0.05, 0.1, 0.05, 0.1]
    for i in range(4):
        found = coefficients(times, widths, times[i], widths[i])
        np.testing.assert_allclose(found, np.eye(4)[i], atol=1e-8)
        assert misfit(times, widths, times[i], widths[i]) < 1e-6


def test_coefficients_are_the_least_squares_fit():
    """Against a fit of sampled profiles by the general solver."""
    times, widths = [0.5, 0.5, 1.0, 1.0], [0.05, 0.1, 0.05, 0.1]
    grid = (np.arange(200_000) + 0.5) / 200_000

    def profile(t, w):
        g = gamma_from_width(w)
        return np.where(grid <= t, (g + 1) * grid**g / t ** (g + 1), 0.0)

    columns = np.stack([profile(t, w) for t, w in zip(times, widths, strict=True)], 1)
    expected = np.linalg.lstsq(columns, profile(0.8, 0.15), rcond=None)[0]
    np.testing.assert_allclose(coefficients(times, widths, 0.8, 0.15), expected / expected.sum(), rtol=1e-3, atol=1e-4)


def test_few_snapshots_say_how_far_off_they_are():
    assert misfit([100.0], [0.1], 100.0, 0.02) > 0.3


def test_the_future_is_refused():
    with pytest.raises(InputError, match="end at 200 images"):
        coefficients([100.0, 200.0], [0.1, 0.1], 201.0, 0.1)
    with pytest.raises(InputError, match="at least one"):
        coefficients([], [], 1.0, 0.1)


def test_reconstruction_keeps_types_and_buffers():
    states = [{"w": torch.ones(2, dtype=torch.float16) * k, "n": torch.tensor(k)} for k in (1, 2)]
    found = reconstruct(iter(states), [10.0, 20.0], [0.1, 0.1], 20.0, 0.1)
    assert found["w"].dtype == torch.float16 and found["w"].tolist() == [2, 2] and int(found["n"]) == 2
