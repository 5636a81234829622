"""Flow matching: the change of variables, solvers in the velocity's own time, and the exact coupling."""

import itertools
import math
import sys

import pytest
import torch

from sims_core import GuidanceSchedule, InputError, denoiser, guided
from sims_core.flow import VelocitySampler, by_sigma, by_time, coupling, dopri5, sigma_of, time_of, trajectory

F64 = torch.float64
MEAN, ROOT = torch.tensor([1.0, -0.5], dtype=F64), torch.tensor([[1.4, 0.3], [0.3, 0.6]], dtype=F64)
COV = ROOT @ ROOT


def velocity(x, t, cov=COV, mean=MEAN):
    """Of N(mean, cov) data on the linear path: E[y - n | x_t]."""
    t = torch.as_tensor(t, dtype=F64)
    eye = torch.eye(len(cov), dtype=F64)
    gain = (t * cov - (1 - t) * eye) @ torch.linalg.inv(t**2 * cov + (1 - t) ** 2 * eye)
    return mean + (x - t * mean) @ gain.T


def denoise(x, sigma):
    """E[y | y + sigma n] of the same data."""
    gain = COV @ torch.linalg.inv(COV + sigma**2 * torch.eye(2, dtype=F64))
    return MEAN + (x - MEAN) @ gain.T


class Module(torch.nn.Module):
    """A velocity that says that it computes in float64."""

    dtype = F64

    def forward(self, x, t):
        return velocity(x, t)


def noise(n=300, d=2, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize("sigma", [1e-3, 0.3, 1.0, 7.0, 80.0])
def test_a_velocity_is_its_denoiser_and_back(sigma):
    """To 1e-12, both ways; and t and sigma are each other's."""
    level, x = torch.tensor(sigma, dtype=F64), MEAN + math.hypot(sigma, 1) * noise()
    t = time_of(level)
    scale = float(x.abs().max())
    view = denoiser.from_velocity(Module())
    assert abs(float(sigma_of(t) - level)) < 1e-12 * sigma
    assert float((view(x, level) - denoise(x, level)).abs().max()) < 1e-12 * scale
    assert float((t * x + (1 - t) * velocity(t * x, t) - denoise(x, level)).abs().max()) < 1e-12 * scale
    back = denoiser.to_network(denoise, "cond-ot")(t * x, t)  # divides by 1 - t
    assert float((back - velocity(t * x, t)).abs().max()) < 1e-12 * scale * max(1.0, 1 / sigma)


def test_guiding_velocities_is_guiding_denoisers():
    def other(x, t):
        return velocity(x, t, 1.3 * COV, MEAN + 0.2)

    class Other(Module):
        def forward(self, x, t):
            return other(x, t)

    level, x = torch.tensor(0.6, dtype=F64), noise()
    t = time_of(level)
    field = by_time(guided(by_sigma(velocity), by_sigma(other), 1.7))
    views = guided(denoiser.from_velocity(Module()), denoiser.from_velocity(Other()), 1.7)
    assert torch.allclose(t * x + (1 - t) * field(t * x, t), views(x, level), rtol=0, atol=1e-12)
    # an interval is in sigma; the start, infinite noise, lies outside of it
    inside = by_time(GuidanceSchedule.parse("interval:0.5:1").denoiser(by_sigma(velocity), by_sigma(other), 1.7))
    assert torch.equal(inside(x, torch.tensor(0.0, dtype=F64)), velocity(x, 0.0))
    assert not torch.equal(inside(x, t), velocity(x, t))


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("midpoint", 2), ("rk4", 4)])
def test_the_solvers_have_their_order_and_reach_closed_forms(solver, order):
    """A Gaussian's x_1 = mean + cov^(1/2) x_0; the orders where nothing cancels, dx/dt = (1 + t) (1 + x^2) / 4."""
    x = noise()
    whole = VelocitySampler.parse(f"{solver}:256")(velocity, x)
    assert float((whole - (MEAN + x @ ROOT)).abs().max()) < {1: 0.03, 2: 1e-6, 4: 1e-8}[order]
    start, errors = x.clamp(-0.5, 0.5), []
    for steps in (16, 32, 64):
        made = VelocitySampler(solver, steps)(lambda x, t: (1 + t) * (1 + x**2) / 4, start)
        errors.append(float((made - torch.tan(torch.atan(start) + 0.375)).abs().max()))
    rates = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert all(abs(rate - order) < 0.35 for rate in rates), (errors, rates)


def test_dopri5_against_the_closed_form_and_a_thousand_euler_steps():
    pytest.importorskip("torchdiffeq")
    x = noise()
    fine = dopri5(velocity, x, tolerance=1e-7)
    assert float((fine - (MEAN + x @ ROOT)).abs().max()) < 1e-5

    def bent(x, t):  # a field with no closed form: two clusters
        t = torch.as_tensor(t, dtype=F64)
        spread = (0.3 * t) ** 2 + (1 - t) ** 2
        pull = torch.tanh(x * 2 * t / spread) * 2
        return pull + (0.09 * t - (1 - t)) / spread * (x - t * pull)

    adaptive = VelocitySampler.parse("dopri5:1e-6")(bent, x)
    euler, half = (VelocitySampler("euler", steps)(bent, x) for steps in (1000, 500))
    own = float((euler - half).abs().mean())  # Euler's own error at 1,000 steps, by Richardson
    assert 0.5 * own < float((adaptive - euler).abs().mean()) < 2 * own
    extrapolated = 2 * euler - half
    assert float((adaptive - extrapolated).abs().mean()) < 0.05 * own


def test_a_tolerance_that_is_not_reached_is_named_and_does_not_hang():
    pytest.importorskip("torchdiffeq")

    def rough(x, t):
        return torch.sin(1e6 * x) * 1e3

    with pytest.raises(InputError, match=r"tolerance: got '1e-09'; it is not reached within 50 evaluations"):
        dopri5(rough, noise(), tolerance=1e-9, most=50)
    with pytest.raises(InputError, match="tolerance"):
        VelocitySampler.parse("dopri5:1e-5")(lambda x, t: x * math.nan, noise())


def test_dopri5_says_how_to_get_torchdiffeq(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(InputError, match="torchdiffeq is not installed: pip install"):
        dopri5(velocity, noise())


@pytest.mark.parametrize("text", ["euler", "euler:0", "heun:5", "rk4:x", "dopri5", "dopri5:0", "dopri5:2"])
def test_bad_samplers_are_refused(text):
    with pytest.raises(InputError, match="sampler"):
        VelocitySampler.parse(text)


def test_evaluations_are_counted_and_steps_told():
    sampler = VelocitySampler.parse("rk4:6")
    assert sampler.nfe == 24 and sampler.evaluations() == (24, 24)
    assert sampler.evaluations(GuidanceSchedule.parse("held:2")) == (24, 3)
    assert str(sampler.doubled()) == "rk4:12" and str(VelocitySampler.parse("dopri5:0.00001")) == "dopri5:1e-05"
    held = by_time(GuidanceSchedule.parse("held:2").denoiser(by_sigma(velocity), by_sigma(velocity), 1.0))
    assert torch.allclose(sampler(held, noise()), sampler(velocity, noise()), rtol=0, atol=1e-12)
    with pytest.raises(InputError, match="guidance"):
        VelocitySampler.parse("dopri5:1e-5")(held, noise())
    with pytest.raises(InputError, match="times"):
        next(trajectory(velocity, noise(), torch.tensor([1.0, 0.0])))


@pytest.mark.parametrize("seed", range(5))
def test_the_coupling_is_the_best_of_all_permutations(seed):
    a, b = noise(6, 2, seed), MEAN + noise(6, 2, 100 + seed)
    cost = torch.cdist(a, b) ** 2
    best = min(itertools.permutations(range(6)), key=lambda p: float(cost[range(6), list(p)].sum()))
    assert coupling(a, b).tolist() == list(best)
    with pytest.raises(InputError, match="noise"):
        coupling(a, b[:5])
