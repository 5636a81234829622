"""Which errors a model can correct from its own samples: exact estimators, closed forms against what is found."""

import math

import numpy as np
import pytest

from sims_core import InputError, Sampler
from sims_toy.correction import SelfTraining, power_law
from sims_toy.estimators import Estimator, forms

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
