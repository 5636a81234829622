"""The stability theorem where alpha, L and epsilon are known, against the integrated gradient flow."""

import math

import numpy as np
import pytest
from scipy import stats

from sims_core import InputError
from sims_toy.stability import theory as st

MISSPECIFIED = [st.GaussianCase(st.law(n, s)) for n in ("two-point", "uniform") for s in (0.7, 1.0, 1.6)]
MISSPECIFIED += [st.LogisticCase(st.law(n, s)) for n, s in (("two-point", 3.0), ("two-point", 1.0), ("uniform", 4.0))]
IDS = [f"{c.name}-{c.law.name}-{c.law.std}" for c in MISSPECIFIED]


def test_c4_is_the_mean_of_a_chi():
    for n in (2, 3, 10, 100, 5000):
        assert st.c4(n) == pytest.approx(stats.chi(n - 1).mean() / math.sqrt(n - 1), rel=1e-10)
    assert st.collapse_rate(100, 1) ** 100 == pytest.approx(0.777, abs=5e-4)  # worked by hand
    assert st.collapse_rate(100, 0) ** 100 == pytest.approx(0.470, abs=5e-4)
    with pytest.raises(InputError, match="at least 2"):
        st.c4(1)
    with pytest.raises(InputError, match="ddof"):
        st.collapse_rate(10, 2)


def test_the_theorem_in_numbers():
    known = st.Constants(alpha=2.0, lipschitz=3.0, epsilon=0.5)  # 1 + L eps / alpha = 1.75
    assert known.threshold == pytest.approx(2 / 7)
    assert known.certified(0.28) and not known.certified(0.29)
    lam = 0.2
    assert known.rate(lam) == pytest.approx(lam * (2 + 1.5) / (2 - lam * (2 + 1.5)))
    assert known.rate(known.threshold * (1 - 1e-9)) == pytest.approx(1)  # the condition is where the bound reaches 1
    assert math.isnan(known.rate(0.3)) and known.rate(0) == 0
    flat = st.Constants(alpha=-1e-3, lipschitz=1.0, epsilon=0.1)
    assert flat.threshold == 0 and not flat.certified(1e-9) and not flat.certified(0)


def test_w1_against_samples_and_closed_forms():
    normal = st.law("normal")
    half = stats.norm.pdf(1), stats.norm.cdf(1)
    by_hand = 2 * (2 * half[0] + half[1] * 2 - 1 - stats.norm.pdf(0) - 0.5)  # E||Z| - 1|
    assert st.w1(normal, st.law("two-point")) == pytest.approx(by_hand, rel=1e-6)
    draws = np.random.default_rng(0)
    logistic, uniform = draws.logistic(size=400_000), draws.uniform(-6, 6, size=400_000)
    assert st.w1(st.law("logistic", math.pi / math.sqrt(3)), st.law("uniform", 12 / math.sqrt(12))) == pytest.approx(
        stats.wasserstein_distance(logistic, uniform), abs=0.01
    )
    assert st.w1(normal, st.law("normal")) == 0


def log_density(case, theta, x):
    if case.name == "logistic":
        return stats.logistic.logpdf(x, loc=theta[0])
    return stats.norm.logpdf(x, loc=theta[0], scale=theta[1] ** -0.5)


@pytest.mark.parametrize("case", MISSPECIFIED, ids=IDS)
def test_constants_against_differences_of_the_log_density(case):
    """Hessians by finite differences of scipy's log densities: alpha, A, B, L and the gradient."""
    best, d, h = case.best, len(case.best), 1e-3
    x = np.linspace(-8, 8, 641)

    def hessian(x):
        out = np.empty((len(x), d, d))
        for i in range(d):
            for j in range(d):
                e, f = h * np.eye(d)[i], h * np.eye(d)[j]
                terms = [log_density(case, best + a * e + b * f, x) * a * b for a in (1, -1) for b in (1, -1)]
                out[:, i, j] = -sum(terms) / (4 * h * h)
        return out

    values = hessian(x)
    slopes = np.linalg.norm(np.diff(values, axis=0), ord=2, axis=(1, 2)) / np.diff(x)
    assert slopes.max() == pytest.approx(case.constants.lipschitz, rel=2e-3)
    q = (np.arange(4000) + 0.5) / 4000
    data = np.array([case.law.quantile(v) for v in q])
    own = stats.logistic.ppf(q) if case.name == "logistic" else stats.norm.ppf(q) * case.law.std
    a, b = case.matrices
    np.testing.assert_allclose(hessian(data).mean(0), a, atol=2e-3)
    np.testing.assert_allclose(hessian(own).mean(0), b, atol=4e-3)
    assert case.constants.alpha == pytest.approx(np.linalg.eigvalsh(a)[0])
    assert np.linalg.norm(b - a, 2) <= case.constants.lipschitz * case.constants.epsilon + 1e-12
    new, old, lam = best + 0.1, best + 0.05, 0.7
    nudged = [
        np.mean(log_density(case, new + s * h * e, data))
        + lam
        * np.mean(log_density(case, new + s * h * e, old[0] + own * (1 if d == 1 else (old[1] / best[1]) ** -0.5)))
        for e in np.eye(d)
        for s in (1, -1)
    ]
    np.testing.assert_allclose(
        case.gradient(new, old, lam), (np.array(nudged[::2]) - nudged[1::2]) / (2 * h), atol=2e-3
    )


@pytest.mark.parametrize("case", MISSPECIFIED, ids=IDS)
def test_the_bound_holds_wherever_its_condition_does(case):
    threshold = case.constants.threshold
    for lam in (0.1 * threshold, 0.5 * threshold, 0.999 * threshold):
        assert case.constants.certified(lam)
        flow = st.jacobian(case, lam)
        np.testing.assert_allclose(flow, st.predicted_jacobian(case, lam), atol=1e-6)
        assert np.linalg.norm(flow, 2) <= case.constants.rate(lam)
    for lam in (2 * threshold, 5.0):  # sufficient, not necessary: stable where nothing is certified
        assert not case.constants.certified(lam)
        assert st.spectral_radius(st.jacobian(case, lam)) < 1


def test_a_well_specified_gaussian_contracts_for_every_ratio():
    """lam / (1 + lam), far beyond the theorem's 1/2: the condition is sufficient and not necessary."""
    case = st.GaussianCase(st.law("normal"))
    assert case.constants.epsilon == 0 and case.constants.threshold == 0.5
    for lam in (0.1, 0.49, 1.0, 10.0):
        start = case.best + np.array([0.05, 0.08])
        errors = [np.linalg.norm(start - case.best)]
        for _ in range(6):
            start = st.retrain(case, start, lam)
            errors.append(np.linalg.norm(start - case.best))
        rate = errors[-1] / errors[-2]
        assert rate == pytest.approx(st.linear_rate(lam), rel=0.03)  # at the end of a short path: still curved
        assert st.spectral_radius(st.jacobian(case, lam)) == pytest.approx(lam / (1 + lam), rel=1e-5)
    assert st.linear_rate(math.inf) == 1


def test_a_flow_that_stops_early_remembers():
    case = st.LogisticCase(st.law("two-point", 3.0))
    for lam, time in ((0.0, 5.0), (0.5, 3.0)):
        np.testing.assert_allclose(st.jacobian(case, lam, time), st.predicted_jacobian(case, lam, time), rtol=1e-5)
    assert st.jacobian(case, 0.0)[0, 0] == pytest.approx(0, abs=1e-6)
    with pytest.raises(InputError, match="lam"):
        st.retrain(case, case.best, -1.0)
