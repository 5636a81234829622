"""SIMS at toy scale: exact Gaussian theory, trained score networks, and the sweeps over them.

The names below are imported on first use, so that ``import sims_toy`` stays cheap. Everything else is imported from its
own module.

Will SIMS help where DDIM takes 20 steps, and at which omega?

>>> import sims_core, sims_toy
>>> real = sims_toy.Gaussian.single([0, 0], [[2, 1], [1, 2]])
>>> found = sims_toy.diagnose(sims_core.Sampler.parse("ddim:20"), real, 1000, seed=sims_core.Seed(0))
>>> print(found.angle.words)
SIMS is expected to help: at omega near 1.03 (1.00 to 1.06) it can remove 61 % (58 to 63 %) of the squared error, ...
"""

from __future__ import annotations

import sims_core as sims_core  # isort: skip  # first: from then on Ctrl-C ends a command in one line

from typing import TYPE_CHECKING

from sims_core import __version__ as __version__

if TYPE_CHECKING:
    from sims_toy.bias import Bias as Bias
    from sims_toy.control import Control as Control
    from sims_toy.diagnosis import diagnose as diagnose
    from sims_toy.exact import ExactLearner as ExactLearner
    from sims_toy.gaussian import Gaussian as Gaussian
    from sims_toy.mad import Mad as Mad
    from sims_toy.networks.learner import NetworkLearner as NetworkLearner
    from sims_toy.networks.learner import measured_eta as measured_eta
    from sims_toy.networks.settings import NetworkSettings as NetworkSettings
    from sims_toy.pollution import Pollution as Pollution
    from sims_toy.sampling_cost import SamplingCost as SamplingCost
    from sims_toy.stability import Stability as Stability
    from sims_toy.studies import run as run
    from sims_toy.sweep.figures import score_fields as score_fields
    from sims_toy.sweep.options import Sweep as Sweep
else:
    from sims_core.front import lazy

    __getattr__, __dir__, __all__ = lazy(__name__)
