import math

import numpy as np
import pytest
import torch

from sims_core import Sampler, Seed, sims
from sims_toy.datasets import parse_real
from sims_toy.diagnosis import RealCdf, diagnose, diagnose_network
from sims_toy.estimators import Estimator
from sims_toy.exact import ExactLearner
from sims_toy.gaussian import Gaussian, w2_squared
from sims_toy.networks.settings import NetworkSettings

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

        cosines.append(budget(name).angle.cosine.value)
        gains.append(1 - min(w2_sq(w) for w in (0.5, 0.75, 1.0, 1.25)) / w2_sq(0.0))
    assert cosines == sorted(cosines) and gains == sorted(gains)
    assert gains[0] < 0.15 and gains[-1] > 0.9
    assert budget("exact").angle.cosine.value == 0 and budget("exact").sampler == pytest.approx(0, abs=1e-7)


def test_the_networks_budget_shows_what_training_adds():
    sampler = Sampler.parse("ddim:20", sigma_data=math.sqrt(2))
    well = diagnose_network(sampler, REAL, 1000, NetworkSettings(), trials=32, seed=Seed(0))
    badly = diagnose_network(sampler, REAL, 1000, NetworkSettings(steps=15), trials=16, seed=Seed(0))
    exact = budget("ddim:20")
    assert well.optimisation < 0.5 * well.data < badly.optimisation
    assert well.total == pytest.approx(exact.total, rel=0.15) and well.sampler == pytest.approx(exact.sampler)
    assert well.angle.cosine.low - 0.03 <= exact.angle.cosine.value <= well.angle.cosine.high + 0.03
    assert "optimisation" in str(well)


def test_a_drift_that_does_not_point_along_the_error_promises_nothing():
    assert "expected to harm" in str(budget("rk4:16")) and "blind" in str(budget("exact"))
    assert "it can remove 6" in str(budget("ddim:20"))


#: what smoothing by 0.2 makes of it
WIDER = Gaussian.single([0, 0], [[2.2, 1], [1, 2.2]])


def test_an_estimators_repeated_bias_is_seen_without_any_of_the_sampler():
    """With an exact sampler: the drift is the fit's own, and SIMS does remove what the cosine says."""
    sampler = Sampler.parse("exact", sigma_data=math.sqrt(2))
    smooth = Estimator("smooth", math.sqrt(0.2))
    found = diagnose(sampler, REAL, 20_000, seed=Seed(0), estimator=smooth)
    assert found.optimisation == pytest.approx(math.sqrt(float(w2_squared(WIDER, REAL))), rel=0.02)
    assert (
        found.sampler == pytest.approx(0, abs=1e-7) and found.angle.cosine.low > 0.9 and 0.8 < found.angle.ratio < 1.2
    )
    learner = ExactLearner(sampler, range(50), estimator=smooth)
    data = learner.draw(REAL, 20_000, seed=Seed(1))

    def w2_sq(omega):
        out = sims(learner, data, n_synthetic=10**6, budget=1.0, omega=omega, seed=Seed(1))
        return (learner.distance(out.model, REAL) ** 2).mean()

    assert w2_sq(1.0) < 0.3 * w2_sq(0.0)


def test_points_of_trained_models_and_their_laws_agree(tmp_path):
    """Over several models, one of which diverged; of a data set's points as of its law."""
    rng, laws = np.random.default_rng(0), [[0.2, 0.0], [0.3, 0.1]]
    noise = rng.multivariate_normal([0, 0], [[2, 1], [1, 2]], (12, 4000))
    noise[0, 0] = np.nan
    cov = torch.tensor([[[2.0, 1.0], [1.0, 2.0]]], dtype=torch.float64)
    base, auxiliary = (Gaussian(torch.tensor([mean], dtype=torch.float64), cov) for mean in laws)
    exact = RealCdf(REAL).of_laws(base, auxiliary)
    np.save(tmp_path / "real.npy", rng.multivariate_normal([0, 0], [[2, 1], [1, 2]], 40_000))
    for real in (REAL, parse_real(str(tmp_path / "real.npy"))):
        angle = RealCdf(real).of_samples(noise + laws[0], noise + laws[1])
        assert angle.cosine.value == pytest.approx(exact.cosine.value, abs=0.1)
        assert angle.ratio == pytest.approx(exact.ratio, rel=0.1)
        alone = RealCdf(real).of_samples(noise[1:2] + laws[0], noise[1:2] + laws[1])
        assert alone.cosine.low <= exact.cosine.value <= alone.cosine.high and "expected to help" in str(alone)
        assert "no error is seen" in str(RealCdf(real).of_samples(noise[:1], noise[:1]))  # none that did not diverge


def test_points_and_gaussians_have_the_same_distribution_functions():
    cdf, law = RealCdf(REAL), Gaussian.single([0.3, -0.2], [[1.5, 0.2], [0.2, 1.0]])
    points = np.random.default_rng(0).multivariate_normal([0.3, -0.2], [[1.5, 0.2], [0.2, 1.0]], 50_000)
    off = np.abs(cdf.of_points(points) - cdf.of_gaussian(law)).reshape(len(cdf.places), -1) / cdf.weight[:, None]
    assert off.max() < 4 * 0.5 / math.sqrt(50_000) + 0.002
