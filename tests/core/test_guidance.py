import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sims_core import GuidanceSchedule, InputError, Sampler, guided
from sims_core.guidance import Stepped, extrapolate, merge_weights, noisier, omega_from_autoguidance, windowed

X = torch.linspace(-2, 3, 24, dtype=torch.float64).reshape(4, 3, 2)
SIGMA = torch.tensor(1.5, dtype=torch.float64)


def base(x, sigma):
    return 0.7 * x + sigma


def auxiliary(x, sigma):
    return 0.4 * x - sigma**2


@given(st.floats(-5, 5))
def test_extrapolation_is_the_papers_line(omega):
    b, a = base(X, SIGMA), auxiliary(X, SIGMA)
    torch.testing.assert_close(extrapolate(b, a, omega), (1 + omega) * b - omega * a)


@given(st.floats(-3, 3))
def test_autoguidance_is_the_same_object(w):
    b, a = base(X, SIGMA), auxiliary(X, SIGMA)
    torch.testing.assert_close(guided(base, auxiliary, omega_from_autoguidance(w))(X, SIGMA), a + w * (b - a))


def test_omega_zero_is_the_base_bit_for_bit_and_does_not_run_the_auxiliary():
    def never(x, sigma):
        raise AssertionError("the auxiliary was evaluated")

    assert torch.equal(guided(base, never, 0.0)(X, SIGMA), base(X, SIGMA))
    per_sample = guided(base, auxiliary, torch.tensor([0.0, 1.0, 0.0, -1.0], dtype=torch.float64))(X, SIGMA)
    assert torch.equal(per_sample[[0, 2]], base(X, SIGMA)[[0, 2]])
    assert not torch.allclose(per_sample[[1, 3]], base(X, SIGMA)[[1, 3]])


def test_omega_one_is_guidance():
    assert not torch.allclose(guided(base, auxiliary, 1.0)(X, SIGMA), base(X, SIGMA))


def test_omega_as_a_function_of_sigma():
    ramp = guided(base, auxiliary, lambda sigma: 2 * float(sigma))
    torch.testing.assert_close(ramp(X, SIGMA), guided(base, auxiliary, 3.0)(X, SIGMA))
    assert torch.equal(guided(base, auxiliary, lambda sigma: 0.0)(X, SIGMA), base(X, SIGMA))


def test_interval_limits_the_guidance_and_its_cost():
    calls = []

    def counted(x, sigma):
        calls.append(float(sigma.reshape(-1)[0]))
        return auxiliary(x, sigma)

    denoiser = guided(base, counted, 2.0, interval=(0.5, 2.0))
    for level in (0.4, 0.5, 1.0, 2.0, 2.1):
        sigma = torch.tensor(level, dtype=torch.float64)
        out = denoiser(X, sigma)
        inside = 0.5 <= level <= 2.0
        expected = guided(base, auxiliary, 2.0)(X, sigma) if inside else base(X, sigma)
        assert torch.equal(out, expected)
    assert calls == [0.5, 1.0, 2.0]
    same, one = torch.full((4, 1, 1), 1.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    assert torch.equal(denoiser(X, same), denoiser(X, one))
    with pytest.raises(InputError, match="an interval needs one sigma per call: all must be equal"):
        denoiser(X, torch.arange(4.0).reshape(4, 1, 1))


def test_half_precision_outputs_are_combined_in_float32():
    b = torch.tensor([1.0, 2.0], dtype=torch.bfloat16)
    a = torch.tensor([1.0078125, 2.015625], dtype=torch.bfloat16)
    out = extrapolate(b, a, 3.0)
    assert torch.equal(out, (b.float() * 4 - a.float() * 3).to(torch.bfloat16))  # and not b * 4 - a * 3 in bf16
    assert not torch.equal(out, b * 4 - a * 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("text", ["full", "held:2", "predictor", "interval:0.1:9"])
def test_a_guided_loop_goes_on_in_the_networks_own_precision(dtype, text):
    """A float16 pipeline's next step takes what guidance gives back."""
    weights = [torch.tensor([[0.5]], dtype=dtype), torch.tensor([[0.25]], dtype=dtype)]
    networks = [lambda x, sigma, w=w: x @ w for w in weights]
    seen = []
    denoiser = GuidanceSchedule.parse(text).denoiser(*networks, torch.tensor([0.0, 2.0]))
    step = denoiser.begin()(0) if isinstance(denoiser, Stepped) else denoiser
    x = torch.ones(2, 1, dtype=dtype)
    for _ in range(3):
        x = step(x, torch.tensor(1.0))
        seen.append(x.dtype)
    assert seen == [dtype] * 3


@pytest.mark.parametrize("omega", [float("nan"), float("inf")])
def test_omega_must_be_finite(omega):
    with pytest.raises(InputError, match="omega"):
        guided(base, auxiliary, omega)


def test_bad_shapes_and_intervals_are_named():
    with pytest.raises(InputError, match="interval"):
        guided(base, auxiliary, 1.0, interval=(2.0, 1.0))
    with pytest.raises(InputError, match=r"omega.*\(4,\)"):
        extrapolate(X, X, torch.ones(3))


def test_weights_merge_as_neon_does():
    one = {"w": torch.tensor([1.0, 2.0]), "n": torch.tensor(7)}
    two = {"w": torch.tensor([2.0, 1.0]), "n": torch.tensor(9)}
    merged = merge_weights(one, two, 0.5)
    torch.testing.assert_close(merged["w"], torch.tensor([0.5, 2.5]))
    assert merged["n"] == 7
    assert torch.equal(merge_weights(one, two, 0.0)["w"], one["w"])
    with pytest.raises(InputError, match="'extra'"):
        merge_weights(one, {**two, "extra": torch.zeros(1)}, 1.0)
    with pytest.raises(InputError, match="shape"):
        merge_weights(one, {**two, "w": torch.zeros(3)}, 1.0)


@pytest.mark.parametrize("variance", [0.04, 1.0, 9.0])
def test_self_guidance_by_more_noise_spreads_a_gaussian(variance):
    """The flow of (1 + w) D(x, s) - w D(x, k s) for N(0, v) ends at v k^(2 w): log of it is an integral by hand."""
    sampler = Sampler("heun", 1000, sigma_max=1e4, sigma_min=1e-4)

    def exact(x, sigma):
        return x * variance / (variance + sigma**2)

    for factor, omega in ((1.2, 1.0), (2.0, 0.5)):
        made = sampler(guided(exact, noisier(exact, factor), omega), torch.ones(1, 1))
        assert float(made**2) == pytest.approx(variance * factor ** (2 * omega), rel=1e-3)
    for argument, bad in (
        ("factor", lambda: noisier(exact, 1.0)),
        ("denoiser", lambda: noisier(GuidanceSchedule.parse("held:2").denoiser(exact, exact, 1.0), 1.2)),
    ):
        with pytest.raises(InputError, match=f"^{argument}"):
            bad()


def test_windows_of_an_image_are_denoised_alone_and_averaged():
    x = torch.randn(2, 3, 7, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigma = torch.tensor(0.7, dtype=torch.float64)

    def spread(x, sigma):  # every pixel sees the whole window
        return x / (1 + sigma**2) + x.mean((-2, -1), keepdim=True)

    expected, count = torch.zeros_like(x), torch.zeros(7, 10, dtype=torch.float64)
    for top in (0, 3):
        for left in (0, 3, 6):
            expected[..., top : top + 4, left : left + 4] += spread(x[..., top : top + 4, left : left + 4], sigma)
            count[top : top + 4, left : left + 4] += 1
    torch.testing.assert_close(windowed(spread, 4, 3)(x, sigma), expected / count)
    one = windowed(lambda x, sigma: x / (1 + sigma**2), 5, 2)(x, sigma)  # pixels alone: windows change nothing
    torch.testing.assert_close(one, x / (1 + sigma**2))
    held = GuidanceSchedule.parse("held:2").denoiser(spread, spread, 1.0)
    for argument, bad in (
        ("stride", lambda: windowed(spread, 4, 5)),
        ("size", lambda: windowed(spread, 8, 4)(x, sigma)),
        ("size", lambda: windowed(spread, 7, 4)(x[..., :7], sigma)),
        ("denoiser", lambda: windowed(held, 4, 2)),
    ):
        with pytest.raises(InputError, match=f"^{argument}"):
            bad()
