"""Every sampler against closed forms on Gaussians, where a fixed-step ODE solver is an affine map."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sims_core import InputError, Sampler, Seed, generate, guided, sample
from sims_core.sampling import Churn, SampleNoise, angle_sigmas, cosine_sigmas, edm_sigmas, trajectory

COV = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
ALL = ["ddim:12", "euler:12", "heun:8", "rk4:4"]


def gaussian(cov=COV, mean=None):
    values, vectors = torch.linalg.eigh(cov)
    centre = torch.zeros(2, dtype=torch.float64) if mean is None else mean
    return lambda x, s: centre + (x.double() - centre) @ vectors * (values / (values + s**2)) @ vectors.T


def w2_of_map(matrix, cov=COV):
    values = torch.linalg.eigvalsh(cov)  # the maps here share the data's eigenvectors
    return float(((torch.linalg.eigvalsh(matrix.T @ matrix).sqrt() - values.sqrt()) ** 2).sum().sqrt())


@pytest.mark.parametrize(
    ("name", "w2"),
    [
        ("ddim:10", 0.2366),
        ("ddim:20", 0.1273),
        ("ddim:50", 0.0533),
        ("ddim:100", 0.0271),
        ("heun:10", 0.311),
        ("heun:18", 0.0792),
        ("heun:40", 0.0138),
    ],
)
def test_sampler_bias_on_the_reference_gaussian(name, w2):
    """Worked values, to the digits given."""
    matrix = Sampler.parse(name, sigma_data=math.sqrt(2))(gaussian(), torch.eye(2, dtype=torch.float64))
    digits = 4 if name.startswith("ddim") or name == "heun:18" or name == "heun:40" else 3
    assert round(w2_of_map(matrix), digits) == w2
    grows = torch.linalg.det(matrix) ** 2 > torch.linalg.det(COV)
    assert bool(grows) == name.startswith("heun")  # DDIM shrinks, Heun on EDM's grid expands


def test_rk4_in_angle_coordinates_has_almost_no_bias():
    """4 steps, relative error in the standard deviations at most 0.11 %."""
    matrix = Sampler.parse("rk4:4", sigma_data=math.sqrt(2))(gaussian(), torch.eye(2, dtype=torch.float64))
    ratio = (torch.linalg.eigvalsh(matrix.T @ matrix) / torch.linalg.eigvalsh(COV)).sqrt()
    assert float((ratio - 1).abs().max()) < 0.0011


@pytest.mark.parametrize("name", ALL)
def test_evaluations_are_counted(name):
    calls = []

    def counted(x, sigma):
        calls.append(float(sigma))
        return gaussian()(x, sigma)

    sampler = Sampler.parse(name)
    sampler(counted, torch.eye(2, dtype=torch.float64))
    assert len(calls) == sampler.nfe
    assert sampler.doubled().steps == 2 * sampler.steps


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("rk4", 4)])
def test_solvers_converge_at_their_order(name, order):
    """On a fixed interval of the ODE, away from its ends, halving the step divides the error by 2^order."""
    x, exact = torch.eye(2, dtype=torch.float64), []
    for _ in range(1):
        values, vectors = torch.linalg.eigh(COV)
        gain = ((values + 0.5**2) / (values + 4.0**2)).sqrt()
        exact = x @ vectors * gain @ vectors.T

    def error(steps):
        from sims_core.sampling import SOLVERS

        levels = torch.linspace(4.0, 0.5, steps + 1, dtype=torch.float64)
        y = x
        for a, b in itertools.pairwise(levels):
            y = SOLVERS[name](gaussian(), y, a, b, 1.0)
        return float((y - exact).abs().max())

    observed = math.log2(error(16) / error(32))
    assert observed == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize("name", ALL)
def test_affine_map_equals_many_points(name):
    """The map read off from d + 1 points predicts the moments of 10^6 samples (z-scores)."""
    count = 1_000_000
    sampler = Sampler.parse(name, sigma_data=math.sqrt(2))
    denoiser = guided(gaussian(mean=MEAN), gaussian(COV * 0.8, MEAN * 1.2), 1.5)
    probes = torch.cat([torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)])
    ends = sampler(denoiser, probes)
    offset, matrix = ends[0], ends[1:] - ends[0]
    cov = matrix.T @ matrix
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x = sampler(denoiser, noise)
    z_mean = (x.mean(0) - offset) / (cov.diagonal() / count).sqrt()
    spread = (cov.diagonal()[:, None] * cov.diagonal()[None] + cov**2).div(count).sqrt()
    z_cov = (torch.cov(x.T) - cov) / spread
    assert float(z_mean.abs().max()) < 4 and float(z_cov.abs().max()) < 4


@pytest.mark.parametrize("name", ALL)
@given(st.integers(0, 2**31))
def test_omega_zero_is_the_base_and_one_is_not(name, seed):
    sampler = Sampler.parse(name)
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    base, auxiliary = gaussian(), gaussian(COV * 0.9)
    plain = sampler(base, noise)
    assert torch.equal(sampler(guided(base, auxiliary, 0.0), noise), plain)
    assert torch.equal(sampler(guided(base, auxiliary, torch.zeros(5)), noise), plain)
    assert not torch.allclose(sampler(guided(base, auxiliary, 1.0), noise), plain)


def test_exact_flow_extrapolates_variances_geometrically():
    """With shared eigenvectors the flow's variance is v_b^(1+w) / v_a^w."""
    fine = Sampler("rk4", 64, sigma_data=1.0, sigma_max=1e5)
    values, vectors = torch.linalg.eigh(COV)
    auxiliary = vectors @ torch.diag(values * torch.tensor([0.8, 1.3], dtype=torch.float64)) @ vectors.T
    for omega in (-0.5, 0.7, 2.0):
        matrix = fine(guided(gaussian(), gaussian(auxiliary), omega), torch.eye(2, dtype=torch.float64))
        found = torch.linalg.eigvalsh(matrix.T @ matrix)
        expected = values / torch.tensor([0.8, 1.3], dtype=torch.float64) ** omega
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 4)])
def test_image_shapes(shape):
    """Elementwise N(m, v) in any shape: Heun's map is x -> m + a (x0 - ...), the same for every element."""
    variance, mean = 0.25, 0.3

    def denoiser(x, s):
        return mean + (x - mean) * variance / (variance + s**2)

    sampler = Sampler.parse("heun:18")
    noise = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probe = sampler(denoiser, torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    torch.testing.assert_close(sampler(denoiser, noise), probe[0] + noise * (probe[1] - probe[0]))


@pytest.mark.parametrize("churn", [None, Churn(amount=10, minimum=0.05, maximum=50, noise=1.0)])
def test_churn_reaches_the_target(churn):
    """EDM's Algorithm 2 on N(0, v) elementwise, 64 Heun steps: the variance is v within 4 standard errors + 1 %."""
    variance, count = 0.25, 60_000
    noise = SampleNoise(Seed(3), [0])
    sampler = Sampler("heun", 64, churn=churn)
    start = noise((1, count))
    x = sampler(lambda x, s: x * variance / (variance + s**2), start, noise)
    assert float(x.var() / variance) == pytest.approx(1, abs=4 * math.sqrt(2 / count) + 0.01)
    if churn is not None:
        assert abs(float(torch.corrcoef(torch.cat([x, start]))[0, 1])) < 0.5  # churn forgets the start


def test_trajectory_and_grids():
    sigmas = edm_sigmas(5)
    states = list(trajectory(gaussian(), torch.ones(3, 2) * 80, sigmas, solver="heun"))
    assert len(states) == 6 and states[-1].dtype == torch.float64
    assert torch.equal(states[-1], sample(gaussian(), torch.ones(3, 2) * 80, sigmas, solver="heun"))
    assert sigmas[0] == pytest.approx(80) and sigmas[-2] == pytest.approx(0.002) and sigmas[-1] == 0
    alpha_bar = 1 / (1 + cosine_sigmas(20) ** 2)
    expected = [math.cos((t / 20 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(19, -1, -1)]
    torch.testing.assert_close(alpha_bar, torch.tensor(expected, dtype=torch.float64) / expected[-1])
    angles = torch.atan(angle_sigmas(7, 0.5) / 0.5)
    torch.testing.assert_close(angles.diff(), angles.diff()[0].expand(7))


def test_samples_depend_on_their_own_seed_only():
    def network(x, s):  # float32, elementwise: batch size cannot change its arithmetic
        return x.float() * 0.25 / (0.25 + s.float() ** 2)

    churn = Sampler("heun", 6, churn=Churn())

    def collect(indices, batch):
        return {
            i: x
            for ids, xs in generate(network, churn, indices, (2, 3), seed=Seed(5), batch=batch)
            for i, x in zip(ids, xs, strict=True)
        }

    reference = collect(list(range(10)), 4)
    for indices, batch in (([7, 2, 9], 4), (list(range(10)), 1), ([3], 7)):
        for i, x in collect(indices, batch).items():
            assert torch.equal(x, reference[i])
    assert len({tuple(x.flatten().tolist()) for x in reference.values()}) == 10


def test_labels_travel_with_padded_indices():
    seen = []

    def make(indices):
        seen.append(list(indices))
        shift = torch.tensor([float(i) for i in indices], dtype=torch.float64)[:, None]
        return lambda x, s: (x + s**2 * shift) / (1 + s**2)

    out = {
        i: x
        for ids, xs in generate(make, Sampler.parse("heun:18"), [4, 5, 6], (1,), seed=Seed(0), batch=2, per_batch=True)
        for i, x in zip(ids, xs, strict=True)
    }
    assert seen == [[4, 5], [6, 6]] and sorted(out) == [4, 5, 6]


@pytest.mark.parametrize("text", ["dim:20", "ddim", "ddim:1", "ddim:x", "heun:0", "exact:3", "heun:-2", "", "heun:2.5"])
def test_unreadable_samplers_are_refused(text):
    with pytest.raises(InputError, match="--sampler"):
        Sampler.parse(text, argument="--sampler")


def test_bad_grids_and_missing_noise():
    x = torch.ones(1, 2)
    for bad in ([1.0, 2.0, 0.0], [1.0, 0.5], [0.0]):
        with pytest.raises(InputError, match="sigmas"):
            sample(gaussian(), x, torch.tensor(bad))
    with pytest.raises(InputError, match="noise"):
        sample(gaussian(), x, edm_sigmas(3), churn=Churn())
    with pytest.raises(InputError, match="solver"):
        sample(gaussian(), x, edm_sigmas(3), solver="hein")
    with pytest.raises(InputError, match="exact"):
        Sampler.parse("exact")(gaussian(), x)
    with pytest.raises(InputError, match="batch"):
        next(generate(gaussian(), Sampler.parse("heun:2"), [1], (2,), seed=Seed(0), batch=0))
