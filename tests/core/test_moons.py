"""Algorithm 1 on a user's network, and what the outlook says before it: where it helps, and where it cannot."""

import pytest

from sims_core import Seed, outlook
from tests.core.moons import improve, learner

#: what other samples of the same models change of a share of the squared error: of three seeds, .04 to .08
NOISE = 0.15


@pytest.fixture(scope="module")
def made():
    return improve()


def test_what_the_outlook_promises_is_what_sims_gains(made):
    *_, before, after = made
    before, after = before.distributions, after.distributions
    assert before.cosine.low > 0.2 and "is expected to help" in before.words
    found = (after.error / before.error) ** 2
    assert found == pytest.approx(before.left(1.0), abs=NOISE) and found < 0.85
    assert after.cosine.value < before.cosine.value - 0.2  # most of what lay along the drift is gone


def test_what_cannot_help_is_named_and_does_not(made):
    """A random direction of the same length in the weights, and an auxiliary that was not trained."""
    models, real, known, _ = made
    seed = Seed(0).child("samples")
    base = learner.sample(models.base, len(real), seed=seed)
    moved = learner.perturb(models.base, models.auxiliary, seed=Seed(1))
    guided = learner.sample(learner.extrapolate(models.base, moved, 1.0), len(real), seed=seed)
    before = outlook(real, base, learner.sample(moved, len(real), seed=seed)).distributions
    after = outlook(real, guided, base).distributions
    assert before.share.value < known.distributions.share.value / 2
    assert (after.error / before.error) ** 2 == pytest.approx(before.left(1.0), abs=NOISE * max(1, before.left(1.0)))
    untrained = learner.finetune(models.base, real, 0, seed=Seed(1))
    assert "SIMS is blind here" in outlook(real, base, learner.sample(untrained, len(real), seed=seed)).sentence
