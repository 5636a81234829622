"""GMO's negatives: the Jacobian that the paper gives, the closed form of Gaussians, and Algorithm 1 with them."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from sims_core import InputError, Sampler, Seed, TorchLearner, sims
from sims_core.negatives import gmo, strengthened
from sims_core.sampling import Churn
from sims_toy.exact import ExactLearner
from sims_toy.gaussian import Gaussian

ALPHA = 0.2
REAL = Gaussian.single([1.0, -2.0, 0.5], [[2, 1, 0], [1, 2, 0.3], [0, 0.3, 0.5]])


class Score(nn.Module):
    """The exact denoiser of `REAL`, with a weight that nothing trains."""

    def __init__(self):
        super().__init__()
        self.none = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, x, sigma):
        return REAL.denoise(x[None], sigma.reshape(-1)[0])[0]


def learner_of(sampler):
    options = {"sampler": sampler, "shape": (3,), "view": lambda network: network, "batch": 4096}
    return TorchLearner(Score, loss=lambda network, batch: network.none.sum(), **options)


def few_steps(noise):
    """A generator that is not affine."""
    return torch.stack([noise[:, 0] + 0.3 * noise[:, 1] ** 2, torch.sin(noise[:, 1]) * noise[:, 2], noise.sum(1)], 1)


def test_the_top_singular_value_is_raised():
    """By the definition: J from finite differences, its decomposition by NumPy, one noise at a time."""
    noise = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    changed = strengthened(few_steps, noise, ALPHA, iterations=400)
    for z, found in zip(noise, changed, strict=True):
        step = 1e-6 * torch.eye(3, dtype=torch.float64)
        jacobian = (few_steps(z + step) - few_steps(z - step)).T / 2e-6
        u, s, vt = np.linalg.svd(jacobian.numpy())
        raised = np.sqrt(1 - ALPHA) * s
        raised[0] = np.sqrt((1 - ALPHA) * s[0] ** 2 + ALPHA * (s**2).sum())
        np.testing.assert_allclose(jacobian @ found, u @ (raised * (vt @ z.numpy())), atol=1e-6)
    assert strengthened(few_steps, noise, 0.0) is noise
    zero = strengthened(lambda z: 0 * z, noise, ALPHA)
    assert torch.isfinite(zero).all()


def test_norms_of_many_numbers_are_estimated():
    """|J|_F^2 by random signs, one J for all rows: without bias over many draws, and never below what is known."""
    matrix = torch.randn(40, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    matrix[:, 0] *= 5  # a gap that the power method closes
    top, whole = torch.linalg.svdvals(matrix)[0] ** 2, matrix.square().sum()
    noise = torch.randn(5, 40, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    v = torch.linalg.svd(matrix)[2][0]
    changed = strengthened(lambda z: z @ matrix.T, noise, ALPHA, iterations=300, probes=39)
    stretch = (changed @ v) / (noise @ v)
    assert float(stretch.std()) < 1e-6
    found = (float(stretch[0]) ** 2 - (1 - ALPHA)) * float(top) / ALPHA
    error = float((2 * (matrix.T @ matrix).fill_diagonal_(0).square().sum() / 39).sqrt())
    assert abs(found - float(whole)) < 4 * error


@pytest.mark.parametrize("sampler", ["euler:1", "heun:4"])
def test_gaussians_have_a_closed_form(sampler):
    """Drawn: 8,000 samples of one-step and few-step generators against S -> (1 - a) S + a tr(S) u u^T, by errors."""
    parsed, count = Sampler.parse(sampler), 8000
    learner = learner_of(parsed)
    base = learner.fit(torch.zeros(1, 3), seed=Seed(0))
    found = gmo(learner, ALPHA, iterations=20)(base, count, seed=Seed(1))
    exact = ExactLearner(parsed, noise=False)
    plain = exact.fit(exact.draw(REAL, 1, seed=Seed(0)), seed=Seed(0))
    wanted = plain.output.strengthened(ALPHA)

    def departs(points):
        scatter = points.numpy() - wanted.mean[0].numpy()
        products = scatter[:, :, None] * scatter[:, None, :]
        return abs(products.mean(0) - wanted.cov[0].numpy()) > 4 * products.std(0) / np.sqrt(count)

    assert not departs(found).any()
    drawn = learner.sample(base, count, seed=Seed(1))
    assert torch.equal(gmo(learner, 0.0)(base, count, seed=Seed(1)), drawn)
    assert departs(drawn).any()


def test_the_exact_learner_draws_them_too():
    """As Algorithm 1's ``negatives``: an auxiliary of unlimited data is the strengthened Gaussian."""
    learner = ExactLearner(Sampler.parse("exact"), noise=False)
    data = learner.draw(REAL, 1.0, seed=Seed(0))
    options = {"n_synthetic": 1.0, "budget": 1.0, "omega": 1.0, "seed": Seed(1)}
    made = sims(learner, data, negatives=learner.gmo(ALPHA), **options)
    values, vectors = np.linalg.eigh(REAL.cov[0].numpy())
    top = vectors[:, -1]
    wanted = (1 - ALPHA) * REAL.cov[0].numpy() + ALPHA * values.sum() * np.outer(top, top)
    np.testing.assert_allclose(made.auxiliary.base.cov[0], wanted, atol=1e-12)
    with pytest.raises(InputError, match=r"^alpha"):
        learner.gmo(1.5)(made.base, 1.0, seed=Seed(0))


def test_a_learner_trains_on_them():
    network = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 3))
    learner = TorchLearner(
        network,
        loss=lambda network, clean: (network(torch.randn_like(clean)) - clean).square().mean(),
        sampler=lambda network, noise: network(noise),
        shape=(3,),
        batch=64,
    )
    run = partial(sims, learner, torch.randn(200, 3), n_synthetic=100, budget=640, omega=1.0, seed=Seed(0))
    plain, strong = run(), run(negatives=gmo(learner, ALPHA))
    assert strong.synthetic.shape == plain.synthetic.shape and not torch.equal(strong.synthetic, plain.synthetic)
    assert torch.equal(next(strong.base.parameters()), next(plain.base.parameters()))
    for argument, bad in (
        ("alpha", lambda: gmo(learner, 1.0)(strong.base, 4, seed=Seed(0))),
        ("learner", lambda: gmo(learner_of(Sampler("heun", 4, churn=Churn(10.0))), 0.1)),
    ):
        with pytest.raises(InputError, match=f"^{argument}"):
            bad()
