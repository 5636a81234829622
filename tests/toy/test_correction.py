"""Which errors a model can correct from its own samples: exact estimators, closed forms against what is found."""

import math

import numpy as np
import pytest
import torch

from sims_core import InputError, Sampler
from sims_core.diffusion import EDM, denoising_loss
from sims_toy.correction import SelfTraining, power_law
from sims_toy.estimators import Estimator, forms
from sims_toy.theory import iterated, least_cosine, most_left, shrinkage

OMEGAS = np.concatenate([np.arange(0, 3.01, 0.05), np.arange(3.2, 12, 0.2)]).tolist()
POWER = power_law(64)


def heun(steps):
    return Sampler.parse(f"heun:{steps}", sigma_data=0.5)


def case(text, sampler=None, **options):
    return SelfTraining(POWER, Estimator.parse(text), sampler or heun(256), **options)


#: estimator: W2 of the base, |d| / |e|, cosine, best omega and ratio by a converged sampler; the base, SIMS and twice
#: the evaluations by Heun-18
TABLE = {
    "rank:16": (0.642, 0.0, None, None, 1.0, 0.649, 0.649, 0.642),
    "smooth:0.05": (0.101, 0.86, 0.999, 1.35, 0.10, 0.195, 0.081, 0.118),
    "smooth:0.1": (0.335, 0.72, 0.995, 1.8, 0.18, 0.432, 0.074, 0.355),
    "decay:0.05": (0.374, 0.68, 0.995, 1.95, 0.19, 0.465, 0.129, 0.392),
    "decay:0.2": (0.955, 0.52, 0.991, 2.7, 0.28, 1.070, 0.363, 0.979),
    "shrink:0.2": (0.392, 0.64, 0.980, 1.5, 0.38, 0.446, 0.255, 0.401),
    "early:10": (0.361, 0.49, 0.992, 2.7, 0.19, 0.460, 0.106, 0.381),
    "early:10:warm": (0.361, 0.06, 0.999, 11.8, 0.39, 0.460, 0.309, 0.381),
}


@pytest.mark.parametrize("text", TABLE)
def test_worked_values(text):
    base, length, cosine, omega, ratio, base18, sims18, twice = TABLE[text]
    found = case(text)
    best, least = found.best(OMEGAS)
    at18 = float(found.w2(found.base, heun(18)))
    assert round(float(found.w2(found.base)), 3) == base
    assert round(found.length, 2) == length and (cosine is None or round(found.cosine, 3) == cosine)
    assert round(least, 2) == ratio and (omega is None or math.isclose(best, omega))
    assert abs(at18 - base18) < 6e-4 and abs(at18 * found.best(OMEGAS, heun(18))[1] - sims18) < 6e-4
    assert abs(float(found.w2(found.base, heun(36))) - twice) < 6e-4


def test_an_early_stop_goes_on_where_it_stopped():
    """Fine-tuned from the base on the data themselves for as long again: the base of twice the time, exactly."""
    longer = case("early:20")
    assert round(float(longer.w2(longer.base)), 3) == 0.175
    again = case("early:10:warm")
    for sigma in (0.01, 0.3, 5.0):
        sigma = again.truth.new_tensor(sigma)
        expected = longer.base.gain(sigma)
        np.testing.assert_allclose(again.tuned(again.base, again.truth).gain(sigma), expected, atol=1e-14)


@pytest.mark.parametrize("text", ["mle", "smooth:0.05", "shrink:0.2", "decay:0.05", "early:10", "rank:16"])
@pytest.mark.parametrize("sampler", ["heun:18", "heun:64"])
def test_the_base_is_one_round_of_self_training_from_the_ideal_generator(text, sampler):
    """S(theta) = p to 1e-10, and so G(theta) = b."""
    found = case(text, Sampler.parse(sampler, sigma_data=0.5))
    made = found.sample(found.ideal())
    np.testing.assert_allclose(made, POWER, rtol=1e-10)
    for sigma in (0.01, 0.3, 5.0):
        sigma = found.truth.new_tensor(sigma)
        np.testing.assert_allclose(found.train(made).gain(sigma), found.base.gain(sigma), rtol=0, atol=1e-10)


#: estimator: W2 of the base, cosine, what SIMS leaves at its best omega, by a converged sampler
CAPACITY = {
    "capacity:1": (0.518, 0.987, 0.22),
    "capacity:2": (0.122, 0.969, 0.26),
    "capacity:3": (0.223, 0.986, 0.07),
    "capacity:4": (0.078, 0.996, 0.16),
    "capacity:6": (0.086, 0.997, 0.04),
    "capacity:8": (0.022, 1.000, 0.02),
}


@pytest.mark.parametrize("text", CAPACITY)
def test_too_little_capacity_is_undone_while_the_denoising_loss_rises(text):
    """The base has the least loss of its family, so that SIMS must raise it; its samples are better all the same, and
    twice the steps are worth nothing."""
    base, cosine, ratio = CAPACITY[text]
    found = case(text)
    omega, least = found.best(OMEGAS[:61])
    assert round(float(found.w2(found.base)), 3) == base and round(found.cosine, 3) == cosine
    assert abs(least - ratio) < 0.006
    assert found.loss(found.guided([omega]))[0] > 1.02 * found.loss(found.base)
    twice = SelfTraining(POWER, found.estimator, heun(512))
    assert float(twice.w2(twice.base)) > 0.98 * float(found.w2(found.base))


def test_the_loss_rises_only_where_the_base_had_the_least():
    """A sampler's bias: the base is the optimum itself, and SIMS leaves it. Regularised bases (smoothed, decayed,
    shrunk, stopped early) have not the least loss of their family: there it falls with the error."""
    found = case("mle", heun(18))
    assert found.best([0.0, 1.0])[1] < 0.3 and found.loss(found.base) == 0 < found.loss(found.guided([1.0]))[0]
    for text in ("smooth:0.1", "decay:0.05", "shrink:0.2", "early:10"):
        found = case(text)
        omega, ratio = found.best(OMEGAS)
        assert ratio < 0.4 and found.loss(found.guided([omega]))[0] < 0.8 * found.loss(found.base)


def test_the_loss_is_the_denoising_loss():
    """Against Monte-Carlo of EDM's weighted loss on two modes: the model's less the optimum's, paired."""
    found = SelfTraining(np.array([0.5, 0.02]), Estimator.parse("decay:0.1"), heun(18))
    generator, edm = torch.Generator().manual_seed(0), EDM(0.5)
    sigma = torch.exp(-1.2 + 1.2 * torch.randn(400_000, 1, generator=generator, dtype=torch.float64))
    clean = torch.randn(400_000, 2, generator=generator, dtype=torch.float64) * found.truth.sqrt()
    noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
    losses = [
        denoising_loss(lambda x, s, g=gain: g(s) * x, clean, sigma, noise, edm.weight(sigma)).mean(1)
        for gain in (found.base.gain, lambda s: found.truth / (found.truth + s**2))
    ]
    excess = losses[0] - losses[1]
    z = (float(excess.mean()) - float(found.loss(found.base))) / (float(excess.std()) / math.sqrt(400_000))
    assert abs(z) < 4


@pytest.mark.parametrize("text", ["smooth:0.05", "smooth:0.1", "decay:0.05", "decay:0.2", "early:10", *CAPACITY])
def test_kantorovichs_bound(text):
    """With d = M e mode by mode: the cosine is at least the bound, and at 2 / (m + L) no more is left than it says."""
    found = case(text)
    gains = found.drift / found.error
    assert (-gains > 0).all() if gains[0] < 0 else (gains > 0).all()
    low, high = np.abs(gains).min(), np.abs(gains).max()
    assert abs(found.cosine) >= least_cosine(low, high) - 1e-12
    left = np.linalg.norm(found.error - 2 / (low + high) * found.drift) / np.linalg.norm(found.error)
    assert left <= most_left(low, high) + 1e-12


def test_kantorovichs_bound_is_attained_and_holds_for_any_symmetric_m():
    rng = np.random.default_rng(0)
    for _ in range(200):
        q = np.linalg.qr(rng.standard_normal((5, 5)))[0]
        values, e = np.sort(rng.uniform(0.05, 3, 5)), rng.standard_normal(5)
        d = (q * values) @ q.T @ e
        assert e @ d >= (least_cosine(values[0], values[-1]) - 1e-12) * np.linalg.norm(e) * np.linalg.norm(d)
        left = np.linalg.norm(e - 2 / (values[0] + values[-1]) * d)
        assert left <= (most_left(values[0], values[-1]) + 1e-12) * np.linalg.norm(e)
    e = np.array([math.sqrt(4.0), 1.0])  # sqrt(L), sqrt(m)
    d = np.array([1.0, 4.0]) * e
    assert e @ d / np.linalg.norm(e) / np.linalg.norm(d) == pytest.approx(least_cosine(1, 4))
    assert shrinkage(e, d) == pytest.approx(e @ d / (d @ d)) and shrinkage(e, d, 1e9) < 1e-7
    assert shrinkage(e, 0 * d) == 0
    with pytest.raises(InputError, match="spectrum"):
        least_cosine(0.0, 1.0)


@pytest.mark.parametrize(
    ("text", "sampler", "omega"),
    [("smooth:0.02", 256, 0.5), ("decay:0.002", 256, 0.7), ("capacity:10", 128, 0.8), ("mle", 64, 1.4)],
)
def test_iterated_sims_converges_as_the_spectrum_says(text, sampler, omega):
    """Small errors: each step leaves (I - omega M) of the error before, by the spectrum of S after F."""
    found = case(text, heun(sampler))
    response = found.response()
    spectrum = np.linalg.eigvals(response).real
    assert (np.abs(1 - omega * spectrum) < 1).all() and (iterated(spectrum, omega) == 0).all()
    w2 = found.iterate(omega, 4)
    assert w2[0] == pytest.approx(float(found.w2(found.base)))
    assert w2[1] == pytest.approx(float(found.w2(found.guided([omega]))[0]), rel=1e-6)  # SIMS
    predicted = np.linalg.norm(iterated(np.diag(response), omega, 1) * found.error) / np.linalg.norm(found.error)
    assert w2[1] / w2[0] == pytest.approx(predicted, abs=0.08)
    assert (w2[1:] < w2[:-1]).all() and w2[4] < 0.2 * w2[0]


def test_iterated_sims_diverges_and_stays_where_the_spectrum_says():
    diverging = case("mle", heun(64))
    spectrum = np.linalg.eigvals(diverging.response()).real
    assert (np.abs(1 - 2.4 * spectrum) > 1).any() and np.isinf(iterated(spectrum, 2.4)).any()
    w2 = diverging.iterate(2.4, 6)
    assert w2[-1] > 5 * w2[0]
    blind = case("rank:16")
    spectrum = np.linalg.eigvals(blind.response()).real
    assert (np.abs(spectrum) < 1e-9).sum() == 48 and (iterated(spectrum, 1.0) == 1).sum() == 48
    w2 = blind.iterate(1.0, 3)
    np.testing.assert_allclose(w2, w2[0], rtol=1e-3)
    with pytest.raises(InputError, match="trained as its base"):
        case("early:10:warm").iterate(1.0, 1)


@pytest.mark.parametrize("text", ["mle", "rank:16"])
def test_self_consistent_bases_are_blind(text):
    found = case(text, Sampler.parse("exact"))
    assert np.abs(found.drift).max() < 1e-14 and found.cosine == 0 and found.predicted == (0.0, 1.0)
    np.testing.assert_allclose(found.w2(found.guided([0.5, 1, 3])), found.w2(found.base), rtol=1e-12, atol=1e-14)


def test_bad_text_is_one_line_with_the_forms():
    for text in ("median", "smooth", "mle:1", "early:3:hot", "decay:0.1:warm", ""):
        with pytest.raises(InputError, match="early:T") as caught:
            Estimator.parse(text)
        assert all(form in str(caught.value) for form in forms()) and "\n" not in str(caught.value)
    for text, says in {"shrink:1.5": "from 0 to 1", "rank:2.5": "whole", "rank:0": "from 1", "smooth:-1": "from 0 up",
                       "smooth:x": "number", "early:inf": "from 0 up"}.items():  # fmt: skip
        with pytest.raises(InputError, match=says):
            Estimator.parse(text)


@pytest.mark.parametrize("text", ["mle", "smooth:0.3", "shrink:0.2", "rank:3", "decay:0.1", "early:5", "early:5:warm"])
def test_text_and_back(text):
    assert str(Estimator.parse(text)) == text
    assert Estimator.parse("early:5:cold") == Estimator.parse("early:5")
