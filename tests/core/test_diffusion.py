import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sims_core import EDM, InputError, LogNormal, denoising_loss
from sims_core.diffusion import from_angle, to_angle

sigmas = st.floats(1e-3, 1e3).map(lambda s: torch.tensor(s, dtype=torch.float64))


@given(sigmas, st.floats(0.1, 3))
def test_preconditioning_gives_unit_variances(sigma, sigma_data):
    """EDM, Appendix B.6: input and target of the network have unit variance, and c_out is minimal."""
    edm = EDM(sigma_data)
    variance = sigma**2 + sigma_data**2
    assert edm.c_in(sigma) ** 2 * variance == pytest.approx(1)
    # the network's target is (y - c_skip (y + sigma n)) / c_out
    skip = edm.c_skip(sigma)
    target = ((1 - skip) ** 2 * sigma_data**2 + skip**2 * sigma**2) / edm.c_out(sigma) ** 2
    assert float(target) == pytest.approx(1)
    assert float(edm.weight(sigma) * edm.c_out(sigma) ** 2) == pytest.approx(1)


def test_published_constants():
    edm, sigma = EDM(), torch.tensor(2.0, dtype=torch.float64)
    assert float(edm.c_skip(sigma)) == pytest.approx(0.25 / 4.25)
    assert float(edm.c_out(sigma)) == pytest.approx(2 * 0.5 / math.sqrt(4.25))
    assert float(edm.c_noise(sigma)) == pytest.approx(math.log(2) / 4)
    assert float(edm.weight(sigma)) == pytest.approx(4.25)
    with pytest.raises(InputError, match="sigma_data"):
        EDM(0.0)


def test_loss_by_hand():
    clean, noise = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 0.25]])
    sigma = torch.tensor([[2.0]])
    edm = EDM()
    denoiser = edm.denoiser(lambda x, c: 3 * x + c)
    noisy = [1.0 + 2 * 0.5, -2.0 + 2 * 0.25]
    expected = []
    for x, y in zip(noisy, (1.0, -2.0), strict=True):
        inner = 3 * x / math.sqrt(4.25) + math.log(2) / 4
        d = 0.25 / 4.25 * x + 1 / math.sqrt(4.25) * inner
        expected.append(4.25 / 1 * (d - y) ** 2)
    loss = denoising_loss(denoiser, clean, sigma, noise, edm.weight(sigma))
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_noise_distribution_has_its_moments():
    sigma = LogNormal(-0.8, 1.6).sample((40_000,), torch.Generator().manual_seed(0))
    z_mean = (float(sigma.log().mean()) + 0.8) / (1.6 / math.sqrt(40_000))
    z_std = (float(sigma.log().std()) / 1.6 - 1) * math.sqrt(2 * 40_000)
    assert abs(z_mean) < 4 and abs(z_std) < 4
    normal = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(LogNormal(-1.2, 1.2).from_normal(normal), torch.tensor([-1.2, 0.0]).exp())


@given(sigmas, st.floats(0.1, 3))
def test_angle_coordinates_are_a_change_of_variables(sigma, sigma_data):
    y = torch.tensor([0.3, -1.2], dtype=torch.float64)
    n = torch.tensor([1.1, 0.4], dtype=torch.float64)
    u, theta = to_angle(y + sigma * n, sigma, sigma_data)
    torch.testing.assert_close(u, theta.cos() * y / sigma_data + theta.sin() * n)
    x, back = from_angle(u, theta, sigma_data)
    torch.testing.assert_close(x, y + sigma * n, rtol=1e-6, atol=1e-6)
    assert float(back) == pytest.approx(float(sigma), rel=1e-6)
