"""``python -m sims_toy.bias``: which errors can a model correct from its own samples?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

from sims_core.errors import InputError
from sims_core.lab.bounds import at_least, check_bounds
from sims_core.lab.command import usual
from sims_core.lab.options import RunOptions

if TYPE_CHECKING:
    from sims_toy.bias.study import BiasStudy

__all__ = ["PRESETS", "Bias", "plan"]


@dataclass(frozen=True)
class Bias(RunOptions):
    """What one round of self-training reveals of a model's error, by kind of error, and what SIMS then makes of it.

    Three kinds of rows: exact estimators of a Gaussian with 64 modes, scores of one dimension linear in random features
    at their population optimum, and trained networks in the plane. Every row has Algorithm 1 at omega = 1, which theory
    fixes beforehand, and at the omega that other bases choose; alongside: twice and four times the evaluations, the
    base trained further, a network twice as wide, a random direction, Neon, autoguidance and iterated SIMS. The gain is
    predicted from drift and error before it is measured.
    """

    preset: Annotated[str, usual("none")] = ""
    """Change the defaults: 'paper' is the full study, the cells that are held out included."""
    exact: str = "rank:16,smooth:0.1,decay:0.05,early:10:cold,early:10:warm,mle@heun:18"
    """Estimators of the exact learner, each with its sampler after '@' (else heun:128), or 'none'."""
    features: str = "16,64"
    """Random features of a score: K, K:ridge:L or K:early:T[:warm], or 'none'."""
    networks: str = "gaussians:8:0.16/16,gaussians:8:0.16/8"
    """Trained networks: data/width/steps/synthetic, the last three 16, 6000 and 200000 where left out, or 'none'."""
    sampler: str = "heun:32"
    """Of the networks: their own samples are drawn with it, and they are measured by it."""
    omega: str = "0.5,1,2"
    """Strengths among which SIMS, Neon and autoguidance choose; 1 is always run."""
    trials: Annotated[int, at_least(2)] = 5
    """Bases of each cell: networks, or draws of features."""
    points: Annotated[int, at_least(1000)] = 100_000
    """Points that a network is measured by."""


PRESETS = {
    "paper": replace(
        Bias(),
        preset="paper",
        exact="rank:16,smooth:0.05,smooth:0.1,decay:0.05,decay:0.2,shrink:0.2,early:10:cold,early:10:warm,"
        "mle@heun:18,mle@ddim:20",
        features="16,32,64,128,128:ridge:0.001,128:early:1000,128:early:1000:warm",
        networks="gaussians:8:0.16/16,gaussians:8:0.16/8,gaussians:8:0.16/32,gaussians:8:0.16/16/750,"
        "gaussians:8:0.16/16/6000/2000,spiral/32/12000,moons/8,checkerboard/16,tree/32/12000,"
        "pinwheel,swissroll,gaussians:8:0.16/24,cube:3",
    )
}


def plan(options: Bias) -> BiasStudy:
    """What the options ask for. Raises `InputError` for what cannot be run."""
    from sims_core.lab.grids import parse_grid
    from sims_core.sampling import Sampler
    from sims_toy.bias import figures, tables
    from sims_toy.bias.cells import TRAINING, Capacity, Cell
    from sims_toy.bias.study import BiasStudy, parse_exact
    from sims_toy.grid.parse import MOST_OMEGA, items, settle

    check_bounds(options)
    sampler = Sampler.parse(options.sampler, argument="sampler")
    if not sampler.steps:
        raise InputError("sampler", "exact", "networks need a numerical sampler, such as heun:32")
    omegas = sorted({1.0, *parse_grid("omega", options.omega, low=0.01, high=MOST_OMEGA)})

    def listed(name: str) -> list[str]:
        text = getattr(options, name)
        return [] if text == "none" else items(name, text)

    exact = list(dict.fromkeys(parse_exact(t) for t in listed("exact")))
    features = list(dict.fromkeys(Capacity.parse(t) for t in listed("features")))
    networks = list(dict.fromkeys(Cell.parse(t) for t in listed("networks")))
    if not (exact or features or networks):
        raise InputError(
            "networks", "none", "without exact and features there is nothing to run; name a row of one kind"
        )
    trained = settle(TRAINING)
    settings = {
        "command": "sims_toy.bias",
        "exact": exact,
        "features": [str(f) for f in features],
        "networks": [str(c) for c in networks],
        "sampler": str(sampler),
        "omega": omegas,
        "trials": options.trials,
        "points": options.points,
        "network": trained.record(),
        "seed": options.seed,
    }
    return BiasStudy("bias", settings, draw=figures.draw, words=tables.words, bulky=("values",))
