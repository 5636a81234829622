"""Algorithm 2: the complement's readings, the laws of class shares, selection, and the study on networks."""

import dataclasses

import numpy as np
import pytest
import torch

from sims_core import InputError
from sims_core.control import (
    complement,
    density_law,
    distribution_control,
    largest_strength,
    total_variation,
    transport_law,
)
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy import studies
from sims_toy.control import Control, theory
from sims_toy.control import tables as control_report
from sims_toy.control.measure import counts, labels, selector
from sims_toy.datasets import Mixture, parse_real
from sims_toy.networks.settings import NetworkSettings

HEUN = Sampler.parse("heun:30", sigma_data=1.4)


def test_geometric_complement():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([1, 1, 1]) / 3
    a = complement(p, q, 0.5, reading="geometric")
    np.testing.assert_allclose(density_law(p, a, 2.0), q)  # the density law's target at omega = 1 / strength
    b = complement(p, q, 0.5)
    np.testing.assert_allclose(transport_law(p, b, 2.0), q)  # the transport law's
    rows = complement(np.stack([p, q]), q, reading="geometric")
    np.testing.assert_allclose(rows, [complement(p, q, reading="geometric"), q])
    assert total_variation([0.5, 0.5], [0.2, 0.8]) == pytest.approx(0.3)
    small = complement(p, p + 1e-5 * (q - p), reading="geometric") - complement(p, p + 1e-5 * (q - p))
    assert np.abs(small).max() < 1e-9  # the same to first order
    assert largest_strength(p, q) == pytest.approx(0.2 / (1 / 3 - 0.2))
    assert complement(p, q, largest_strength(p, q)).min() == pytest.approx(0, abs=1e-12)
    assert largest_strength(p, p) == np.inf
    with pytest.raises(InputError, match="geometric"):
        complement(p, [0.5, 0.5, 0], reading="geometric")
    with pytest.raises(InputError):
        complement(p, q, reading="other")


def test_exact_denoiser_is_the_posterior_mean():
    mixture = Mixture(((0.0, 1.0), (2.0, 0.0)), 0.3, (0.5, 0.5))
    weights, x, sigma = np.array([0.8, 0.2]), torch.tensor([[0.7, 0.4]], dtype=torch.float64), torch.tensor(0.9)
    draws = Mixture(mixture.means, 0.3, tuple(weights)).sample(400_000, np.random.default_rng(0))[0]
    odds = np.exp(-((x.numpy() - draws) ** 2).sum(1) / (2 * 0.81))
    expected = (odds[:, None] * draws).sum(0) / odds.sum()
    np.testing.assert_allclose(theory.mixture_denoiser(mixture, weights)(x, sigma)[0], expected, atol=0.01)


def test_two_classes_meet_at_one_half_exactly():
    """The transport law is exact where it gives 1/2, even where the density law is far off."""
    mixture = Mixture(((-2.0, 0.0), (2.0, 0.0)), 0.2)
    for p, a in ((0.7, 0.9), (0.8, 0.95)):
        omega = (0.5 - p) / (p - a)
        made = theory.transport(mixture, (p, 1 - p), (a, 1 - a), omega, HEUN)
        assert made.shares[0] == pytest.approx(0.5, abs=2e-3)
        assert abs(density_law((p, 1 - p), (a, 1 - a), omega)[0] - 0.5) > 0.1


def errors(case):
    """What the ODE's shares are off by each law, and the shares."""
    found = theory.transport(case.mixture, case.base, case.auxiliary, case.omega, HEUN).shares
    linear = np.maximum(transport_law(case.base, case.auxiliary, case.omega), 0)
    density = density_law(case.base, case.auxiliary, case.omega)
    return np.abs(found - linear / linear.sum()).mean(), np.abs(found - density).mean(), found


@pytest.mark.parametrize("case", theory.CASES, ids=[f"{c.name} {c.base[0]:g} {c.omega:g}" for c in theory.CASES])
def test_neither_law_is_the_odes(case):
    """Toward equality the transport law is nearer, away from it and with uneven classes the density law."""
    linear, density, _ = errors(case)
    assert linear < density if "toward" in case.name else density < linear


def test_three_on_a_line_keep_the_class_that_the_transport_law_empties():
    case = next(c for c in theory.CASES if c.name == "three on a line")
    linear, density, found = errors(case)
    np.testing.assert_allclose(found, [0.457, 0.087, 0.457], atol=0.005)
    assert transport_law(case.base, case.auxiliary, 1.0)[1] == pytest.approx(0) and density < 0.1 * linear


def test_the_separatrix_is_the_odes_share():
    """One ordinary differential equation, against thousands of points through a fine sampler; exact where it is 1/2."""
    pair, fine = theory.CASES[0].mixture, Sampler.parse("heun:100", sigma_data=1.4)
    for p, a, omega in ((0.8, 0.95, 1.0), (0.6, 0.4, 2.0), (0.8, 0.7, 1.0), (0.7, 0.7, 1.0)):
        found = theory.transport(pair, (p, 1 - p), (a, 1 - a), omega, fine, 2**13).shares[0]
        assert theory.separatrix_share(pair, (p, 1 - p), (a, 1 - a), omega) == pytest.approx(found, abs=0.008)
    assert theory.separatrix_share(pair, (0.8, 0.2), (0.9, 0.1), 3.0) == pytest.approx(0.5, abs=1e-6)
    assert theory.separatrix_share(pair, (0.7, 0.3), (0.9, 0.1), 0.0) == pytest.approx(0.7, abs=1e-4)
    with pytest.raises(InputError, match="two classes"):
        theory.separatrix_share(parse_real("mixture:0.5,0.3,0.2").mixture, (0.5, 0.3, 0.2), (0.5, 0.3, 0.2), 1.0)


def test_which_law_each_sampler_follows_toward_balance():
    """There the ODE lies near the transport law, annealed Langevin dynamics near the density law."""
    mixture = parse_real("mixture:0.7,0.3").mixture
    p, a, omega = np.array([0.7, 0.3]), np.array([0.845, 0.155]), 2.0
    linear, geometric = transport_law(p, a, omega), density_law(p, a, omega)
    far = total_variation(linear, geometric)
    ode = theory.transport(mixture, p, a, omega, HEUN).shares
    jumps = theory.langevin(mixture, p, a, omega, seed=Seed(0), points=1000).shares
    assert total_variation(ode, linear) < 0.35 * far
    assert total_variation(jumps, geometric) < 0.6 * far < total_variation(jumps, linear)


def test_small_shifts_agree():
    """To first order both laws and the sampler say the same."""
    mixture = parse_real("mixture:0.5,0.5").mixture
    p, a = np.array([0.5, 0.5]), np.array([0.51, 0.49])
    made = theory.transport(mixture, p, a, 1.0, HEUN, 2**14).shares
    np.testing.assert_allclose(made, transport_law(p, a, 1.0), atol=2e-3)
    np.testing.assert_allclose(density_law(p, a, 1.0), transport_law(p, a, 1.0), atol=1e-4)


def test_a_class_cut_off_ruins_it():
    """Where the linear complement leaves a class no share, guidance drives that class out of its place."""
    mixture = parse_real("mixture:0.8,0.2").mixture
    p, q = np.array([0.8, 0.2]), np.array([0.5, 0.5])
    cut = complement(p, q)
    assert cut[1] == 0 and largest_strength(p, q) < 1
    kept = complement(p, q, 0.6)
    ruined = theory.transport(mixture, p, cut, 1.5, HEUN)
    whole = theory.transport(mixture, p, kept, 1 / 0.6, HEUN)
    assert ruined.outside > 0.1 > 0.01 > whole.outside
    np.testing.assert_allclose(whole.shares, q, atol=0.01)


def test_selection():
    """Selected items are the base's, in the wanted whole numbers; a class that the base lacks is an error."""
    mixture = parse_real("mixture:0.5,0.3,0.2").mixture

    class Drawer:
        rows = 2

        def sample(self, base, n, *, seed):
            law = Mixture(mixture.means, mixture.std, base)
            return torch.from_numpy(np.stack([law.sample(n, seed.child(i).numpy())[0] for i in range(2)])).float()

    draw = selector(Drawer(), mixture, 100)
    wanted = np.array([[0.1, 0.2, 0.7], [0.333, 0.333, 0.334]])
    got = draw((0.5, 0.3, 0.2), wanted, Seed(1)).double().numpy()
    assert got.shape == (2, 100, 2)
    for points, share in zip(got, wanted, strict=True):
        assert np.bincount(labels(mixture, points), minlength=3).tolist() == counts(share, 100).tolist()
    assert counts(np.array([1, 1, 1]) / 3, 100).tolist() == [34, 33, 33]
    with pytest.raises(InputError, match="class 3"):
        draw((0.5, 0.5, 0.0), wanted, Seed(1))


def test_shares_may_be_measured_on_the_base():
    class Scalars:
        def fit(self, data, *, seed, start=None):
            return data

        def finetune(self, model, data, budget, *, seed):
            return data

        def extrapolate(self, base, auxiliary, omega):
            return (1 + omega) * base - omega * auxiliary

    p, q = np.array([0.6, 0.4]), np.array([0.5, 0.5])
    made = distribution_control(
        Scalars(), p, draw=lambda base, shares, seed: shares, base_shares=lambda base, seed: base, target_shares=q,
        budget=1, omega=1.0, seed=Seed(0),
    )  # fmt: skip
    np.testing.assert_allclose(made.model, q)


SMALL = Control(
    data="mixture:0.7,0.3", target="0.5,0.5", omega="0,0.5,1", complement="linear", real_size=400, auxiliary_size=400,
    trials=2, points=2000,
    network=NetworkSettings(width=48, layers=2, steps=400), workers=1,
)  # fmt: skip


def test_study_on_networks(tmp_path, monkeypatch):
    monkeypatch.setattr(control_report, "SHIFTS", (1.0,))  # the exact-score part has tests of its own
    monkeypatch.setattr(control_report, "LANGEVIN", (1.0,))
    monkeypatch.setattr(control_report, "REACH", (0.0, 0.5, 1.0, 1.5))
    result = studies.run(dataclasses.replace(SMALL, out=str(tmp_path / "run")))
    shares, quality, best = (result.tables[k] for k in ("shares", "quality", "best"))
    mine = shares[(shares["method"] == "control") & (shares["complement"] == "linear") & (shares["class"] == 1)]
    assert (np.diff(mine["share"]) < -0.03).all()  # toward the target
    np.testing.assert_allclose(mine["share"], mine["law_linear"], atol=0.05)
    plain = shares[(shares["method"] == "sims") & (shares["class"] == 1)]
    assert np.ptp(plain["share"]) < 0.05  # an auxiliary with the base's own proportions shifts nothing
    top = best[best["method"] == "control"]
    assert (top["tv"] < 0.5 * top["tv_base"]).all()
    zero = quality[quality["omega"] == 0].drop_duplicates("method")
    assert zero[zero["method"].isin(["standard", "control", "sims", "random"])]["tv"].nunique() == 1
    reached = best[best["method"] == "control"].iloc[0]  # cross-fitted: never better than what two trials chose
    row = quality[(quality["method"] == "control") & (quality["omega"] == reached["omega"])].iloc[0]
    assert reached["tv"] >= row["tv"]
    off = control_report.law_errors(result.tables["cases"])
    assert (off["linear"] < off["geometric"]).tolist() == [True, False, False, False]
    assert {"control.png", "control.svg", "control_laws.png", "control_laws.svg"} == {p.name for p in result.figures}
    assert "Nearest to the target" in result.words
    sums = shares.groupby(["method", "complement", "omega", "sampler"])["share"].sum()
    np.testing.assert_allclose(sums, 1)
