"""The trained networks of the study: which circumstances are run, and those held out of everything that was chosen."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """Circumstances of trained networks.

    data: by name (`sims_toy.datasets`). width: units of each of two hidden layers. steps: Adam steps of the base, a
    half of which the auxiliary takes. synthetic: n_s, the base's own samples that the auxiliary is trained on.
    """

    data: str
    width: int = 16
    steps: int = 6000
    synthetic: int = 200_000

    def __str__(self) -> str:
        """``data/width/steps/synthetic``."""
        return f"{self.data}/{self.width}/{self.steps}/{self.synthetic}"


#: Cells that nothing was chosen on: other data sets, another width, another dimension. They were written down, with
#: the rule below, before any cell of the study was run; then they were predicted, and run.
HELD_OUT = (
    Cell("pinwheel"),
    Cell("swissroll"),
    Cell("gaussians:8:0.16", width=24),
    Cell("cube:3"),
)

#: The rule, at omega = 1. The prediction: from the base's samples, the auxiliary's and real ones, with e the base's
#: error, d the auxiliary's drift from it and their cosine c in the space of sliced distribution functions, the share
#: of |e|^2 that is left is 1 - 2 c |d|/|e| + (|d|/|e|)^2. A hit of size: the share that is found (mean over bases) lies
#: within `TOLERANCE` of the predicted one. A hit of sign: SIMS is predicted to help where the predicted share is below
#: `HELPS`, and is found to help where the interval of its sliced W2 less the base's, paired over bases, is below zero.
TOLERANCE = 0.2
HELPS = 0.9
