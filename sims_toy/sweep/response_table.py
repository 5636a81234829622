"""Tables of linear response: what the error at each omega is made of, alongside Monte-Carlo; where the optimum lies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sims_core.errors import InputError
from sims_core.sampling import Sampler
from sims_toy import theory
from sims_toy.exact import sampler_modes
from sims_toy.gaussian import Gaussian
from sims_toy.grid import run as experiments
from sims_toy.grid.measure import spread
from sims_toy.phase import last_generations
from sims_toy.sweep import plan
from sims_toy.sweep.options import Sweep

if TYPE_CHECKING:
    from collections.abc import Sequence


def optima(rho: Sequence[float], shares: Sequence[float] = (0.125, 0.25, 0.5, 1.0)) -> pd.DataFrame:
    """The loop's best omega at |D_s| = ``shares`` of |D_r|, one row a ``rho`` = beta^2 / V_1; inf is without noise.

    Plain first order (gain 1), auxiliary on train+synthetic data, |D_aux| = |D_s|. Columns: ``rho``, one a share, and
    ``ratio``, the largest of them over the smallest: near 1 where one omega serves all |D_s|.
    """
    rows = []
    for value in rho:
        modes = theory.plain_modes(1.0, 0.0 if math.isinf(value) else 1 / value)  # v = V_1 at |D_r| = 1
        settings = {r: theory.Setting(1.0, r, r, 1.0, "train+synthetic", modes) for r in shares}
        best: dict[Any, float] = {r: theory.optimal_omega(setting) for r, setting in settings.items()}
        rows.append({"rho": value, **best, "ratio": max(best.values()) / min(best.values())})
    return pd.DataFrame(rows)


def error_parts(sweep: Sweep) -> pd.DataFrame:
    """E[W2^2] of a sweep's first SIMS column by parts, at generation 1 and at convergence, over a fine grid of omega.

    Columns: ``generation`` (1 or limit), ``omega``; by linear response with the sampler's own gain ``drift`` (what is
    left of the repeated drift), ``data`` (the real data's own draw and the loop's, at omega = 0), ``auxiliary`` (what
    guidance adds to that) and their sum ``total``; ``monte_carlo`` of the exact learner with its standard error at the
    sweep's own omegas, nan elsewhere (at the limit: the mean over the last ten generations). One |D_s| and reading
    are looked at, the first. Raises `InputError` for another learner than the exact one.
    """
    if sweep.learner != "exact":
        raise InputError("learner", sweep.learner, "the parts are those of the exact learner: say learner='exact'")
    experiment = plan(sweep).experiment
    cells = [i for i, c in enumerate(experiment.cells) if c.method == "sims"]
    if not cells:
        raise InputError("method", sweep.method, "name sims among the methods")
    first = experiment.cells[cells[0]]
    same = (first.synthetic_size, first.auxiliary_data)
    cells = [i for i in cells if (experiment.cells[i].synthetic_size, experiment.cells[i].auxiliary_data) == same]
    squares = experiments.run(experiment, workers=1)["w2"][cells] ** 2  # (omegas, trials, generations)
    asked = [experiment.cells[i].omega for i in cells]
    real = Gaussian.single(experiment.mean, experiment.covariance)
    setting = theory.Setting(
        first.real_size,
        first.synthetic_size,
        first.auxiliary_size,
        float(first.budget),
        first.auxiliary_data,
        sampler_modes(Sampler.parse(first.sampler, sigma_data=spread(real)), real),
    )
    omegas = np.array(sorted({*np.linspace(min(asked), max(asked), 101).round(10), *asked}))
    frames = []
    late = squares[:, :, last_generations(squares.shape[2])].mean(2)
    for name, generation, found in (("1", 1.0, squares[:, :, 0]), ("limit", math.inf, late)):
        parts, at_rest = theory.response(setting, omegas, generation), theory.response(setting, 0.0, generation)
        means = dict(zip(asked, found.mean(1), strict=True))
        errors = dict(zip(asked, found.std(1, ddof=1) / math.sqrt(found.shape[1]), strict=True))
        frame = {"generation": name, "omega": omegas, "drift": parts.bias_sq, "data": float(at_rest.variance)}
        frame |= {"auxiliary": parts.variance - at_rest.variance, "total": parts.w2_sq}
        frame |= {"monte_carlo": [means.get(w, math.nan) for w in omegas]}
        frames.append(pd.DataFrame(frame | {"monte_carlo_se": [errors.get(w, math.nan) for w in omegas]}))
    return pd.concat(frames, ignore_index=True)
