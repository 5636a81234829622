import math

import pytest

from sims_core import Sampler, Seed, sims
from sims_toy.diagnosis import diagnose, diagnose_network
from sims_toy.exact import ExactLearner
from sims_toy.gaussian import Gaussian
from sims_toy.settings import NetworkSettings

REAL = Gaussian.single([0, 0], [[2, 1], [1, 2]])


def budget(name, size=1000):
    return diagnose(Sampler.parse(name, sigma_data=math.sqrt(2)), REAL, size, seed=Seed(0))


def test_the_budget_adds_up():
    found = budget("ddim:20")
    assert found.sampler == pytest.approx(0.1273, abs=5e-5)
    assert found.data == pytest.approx(math.sqrt(6.75 / 1000), rel=4 * math.sqrt(0.7 / 400))
    # bias and noise are independent; the sampler passes 0.87 of the noise on
    assert found.total == pytest.approx(math.hypot(found.sampler, 0.87 * found.data), rel=0.05)
    assert "drift-error cosine" in str(found)


def test_the_cosine_predicts_whether_sims_helps():
    """Ranked by cosine, settings are ranked by what the best omega gains; an unbiased sampler has nothing to remove."""
    gains, cosines = [], []
    for name in ("ddim:200", "ddim:60", "ddim:20", "ddim:8"):
        sampler = Sampler.parse(name, sigma_data=math.sqrt(2))
        learner = ExactLearner(sampler, range(300))
        data = learner.draw(REAL, 1000, seed=Seed(1))

        def w2_sq(omega, learner=learner, data=data):
            out = sims(learner, data, n_synthetic=100_000, budget=1.0, omega=omega, seed=Seed(1))
            return (learner.distance(out.model, REAL) ** 2).mean()

        cosines.append(budget(name).cosine)
        gains.append(1 - min(w2_sq(w) for w in (0.5, 0.75, 1.0, 1.25)) / w2_sq(0.0))
    assert cosines == sorted(cosines) and gains == sorted(gains)
    assert gains[0] < 0.15 and gains[-1] > 0.9
    assert abs(budget("exact").cosine) < 1e-12 and budget("exact").sampler == pytest.approx(0, abs=1e-7)


def test_the_networks_budget_shows_what_training_adds():
    sampler = Sampler.parse("ddim:20", sigma_data=math.sqrt(2))
    well = diagnose_network(sampler, REAL, 1000, NetworkSettings(), trials=48, seed=Seed(0))
    badly = diagnose_network(sampler, REAL, 1000, NetworkSettings(steps=15), trials=16, seed=Seed(0))
    exact = budget("ddim:20")
    assert well.optimisation < 0.5 * well.data < badly.optimisation
    assert well.total == pytest.approx(exact.total, rel=0.15) and well.sampler == pytest.approx(exact.sampler)
    assert well.cosine == pytest.approx(exact.cosine, abs=4 * well.cosine_se + 0.03)
    assert "optimisation" in str(well)


def test_a_drift_that_does_not_point_along_the_error_promises_nothing():
    assert "no omega > 0" in str(budget("rk4:16"))
    assert "can remove up to about 7" in str(budget("ddim:20"))
