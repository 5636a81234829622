"""Two effects that go by one name: a sampler's drift that cancels, and negatives that are biased on purpose.

Samplers that spread (Heun) and that shrink (DDIM), each evaluated as it is, with negatives drawn by the same sampler or
by one whose score is scaled by zeta: above 1 it seeks modes, below 1 diversity (Neon's toy, arXiv 2510.03597, which
draws its negatives so). If what mattered were whether negatives seek modes, the sign of the best omega would follow
zeta; if it is drift against error, it follows their cosine.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from sims_core.algorithm import METHODS
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy import phase
from sims_toy.exact import ExactLearner
from sims_toy.gaussian import Gaussian

SAMPLERS = {"heun:18": "Heun-18 spreads", "ddim:20": "DDIM-20 shrinks"}
ZETAS = (0.9, 1.0, 1.1)
OMEGAS = np.linspace(-1.5, 1.5, 41)
REAL, SYNTHETIC, TRIALS = 1000, 10_000, 200


def separation(seed: Seed, trials: int = TRIALS) -> pd.DataFrame:
    """E[W2] to N(0, [[2, 1], [1, 2]]) over the base's, by sampler, zeta of the negatives, method and omega.

    cosine: of drift and error of the covariances, of the trials' means.
    """
    real = Gaussian.single(np.zeros(2), np.array([[2.0, 1.0], [1.0, 2.0]]))
    weights = phase.resampling_weights(trials, seed)
    rows = []
    for name in SAMPLERS:
        learner = ExactLearner(Sampler.parse(name), np.repeat(np.arange(trials), len(OMEGAS)))
        data = learner.draw(real, REAL, seed=seed.child("real"))
        for zeta in ZETAS:
            negatives = None if zeta == 1 else learner.negatives(zeta)
            settings = {"n_synthetic": SYNTHETIC, "budget": 1, "omega": np.tile(OMEGAS, trials), "negatives": negatives}
            for method in ("sims", "neon"):
                made = METHODS[method](learner, data, seed=seed.child("fit"), **settings)
                distance = learner.distance(made.model, real).reshape(trials, -1)
                assert made.auxiliary is not None
                base, other = (m.output.cov.mean(0) for m in (made.base, made.auxiliary))
                e, d = base - real.cov[0], other - base
                cosine = float((e * d).sum() / (e.norm() * d.norm()))
                alone = distance[:, np.argmin(np.abs(OMEGAS))]
                for omega, values in zip(OMEGAS, distance.T, strict=True):
                    ratio = phase.ratio(phase.weighted(weights, values), phase.weighted(weights, alone))
                    low, high = phase.interval(ratio, trials)
                    found = {"ratio": float(phase.ratio(phase.finite_mean(values), alone.mean()))}
                    found |= {"ratio_low": float(low), "ratio_high": float(high)}
                    rows.append(
                        {"sampler": name, "zeta": zeta, "method": method, "omega": omega, "cosine": cosine} | found
                    )
    return pd.DataFrame(rows)
