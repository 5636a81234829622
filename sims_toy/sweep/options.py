"""What a sweep can be asked for, and its presets. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from sims_core.lab.bounds import at_least
from sims_core.lab.command import formerly, listed, usual
from sims_core.lab.options import RunOptions
from sims_toy.flows.settings import FlowSettings
from sims_toy.networks.settings import NetworkSettings

#: As near to the data as 400 random steps, for less (docs/networks.md); `replace` it for other networks in Python
NETWORK = NetworkSettings(steps=280, draws="quasi")


@dataclass(frozen=True)
class Sweep(RunOptions):
    """Sweep the guidance omega through the self-consuming loop, and say what it prevents.

    The defaults are the paper's Figure 4 in our reading: N(0, [[2,1],[1,2]]), 1000 real points, DDIM-20, auxiliaries
    trained to convergence on the base's training set plus |D_s| of its samples, synthetic augmentation. Axes take a
    grid: a:b (eleven values, both ends included), a:b:step, or a,b,c. Standard training and its controls of no more
    evaluations (twice the sampler's steps; other samplers) are always run alongside, the exact learner's curve beneath
    the networks'.
    """

    preset: Annotated[str, usual("none")] = ""
    """Change the defaults: 'figure4' is the reproduction (30 generations, as converged as the paper's 100; four
    |D_s|; all three readings of what the auxiliary is trained on); 'neon' is the published toy of Neon's appendix."""
    omega: str = "0:5"
    """Guidance strengths; 0 is the base. Negative values are allowed (write --omega=-1:1)."""
    synthetic: Annotated[
        str, formerly("synthetic_size"), usual("250,1000 for networks, 125,250,500,1000 for the exact learner")
    ] = ""
    """Synthetic points per generation, |D_s|."""
    real_size: str = "1000"
    """Real points, |D_r|."""
    auxiliary_size: str = "same"
    """Synthetic points the auxiliary sees; 'same' is |D_s|."""
    auxiliary_data: str = "train+synthetic"
    """What the auxiliary is trained on: synthetic, train+synthetic, real+synthetic (several with commas); NAME@Z draws
    its synthetic points with the score scaled by Z."""
    budget: Annotated[str, usual("as long as the base's; 1 for the exact learner")] = ""
    """Auxiliary's training. Networks: samples seen (steps x batch) with a unit, such as 25.6k. Exact
    learner: eta in [0, 1], how far it moves from the base to its data."""
    method: str = "standard,sims"
    """standard, sims, neon, autoguidance, and the controls continued (the base trained further for the auxiliary's
    budget), random (a random direction of the same length), rebuilt (the auxiliary trained from scratch)."""
    loop: Annotated[str, listed("sims_core.loop:forms", "{} (several with commas).")] = "augmentation"
    """Data policies of `sims_core.loop.POLICIES`."""
    temperature: str = "1"
    """Sampling bias lambda_s in (0, 1] of the loop's synthetic data: 1 is none."""
    pollution: str = "1000"
    """Foreign synthetic points |D_p| of the polluted loop, from a model of the real data alone."""
    sampler: Annotated[str, usual("ddim:20; rk4:8 for flow matching, importance:16 for flows")] = ""
    """ddim:N, euler:N, heun:N, rk4:N, and exact for the exact learner (several with commas). Flow matching, in the
    velocity's own time: euler:N, midpoint:N, rk4:N, dopri5:TOLERANCE. Flows' guided densities: importance:M (particles
    a point) or langevin:K (stages)."""
    retuned: Annotated[str, usual("rk4:4, with fewer steps where SIMS takes fewer evaluations")] = ""
    """Samplers of standard training's second control, of no more evaluations than SIMS takes (several with commas), or
    none."""
    learner: Literal["network", "exact", "flow-matching", "flow"] = "network"
    """network: trained score networks. exact: models are Gaussians, training is maximum likelihood (or --estimator),
    sampling runs the real sampler. flow-matching: networks of velocities (--network.target ot: OT-CFM). flow:
    normalizing flows (extra 'flows'), guided as densities."""
    estimator: Annotated[str, listed("sims_toy.estimators:forms", "{} (several with commas).")] = "mle"
    """How the exact learner trains: maximum likelihood, or with a bias of its own."""
    network: NetworkSettings = NETWORK
    """Architecture and training of the networks."""
    flow: FlowSettings = field(default_factory=FlowSettings)
    """Architecture and training of normalizing flows."""
    generations: Annotated[int | None, at_least(1), usual("10 for networks, 100 for the exact learner", "INT")] = None
    """Generations of the loop."""
    trials: Annotated[int | None, at_least(2), usual("8 for networks, 1000 for the exact learner", "INT")] = None
    """Independent repetitions, paired across cells."""
    beside_trials: int = 0
    """Trials for every reading of --auxiliary-data after the first (0: as many as --trials)."""
    overlay_trials: Annotated[int, at_least(2)] = 400
    """Trials of the exact learner drawn under the networks, which serves as a control variate."""
    data: Annotated[str, formerly("real")] = "gaussian"
    """Real data: gaussian, gaussians:K, mixture:P,Q,..., moons, pinwheel, swissroll, checkerboard, spiral, tree,
    cube:D, or a .npy or .csv file of at least 1,000 points in the plane, in any unit. All but 'gaussian' need the
    network learner."""
    real_mean: str = "0,0"
    """Mean of the real Gaussian, any dimension."""
    real_covariance: str = "2,1;1,2"
    """Covariance of the real Gaussian, rows separated by ';', or power:K[:A]: K modes whose variances fall as i^-A."""
    distance: Annotated[str, usual("moments for 'gaussian', sliced for the rest")] = ""
    """moments (closed form, for 'gaussian'), emd or sliced (between 1,000 generated and real points)."""


#: Defaults that depend on the learner: what an empty option or a 0 stands for.
BY_LEARNER = {
    "exact": {"synthetic": "125,250,500,1000", "budget": "1", "generations": 100, "trials": 1000},
    "network": {"synthetic": "250,1000", "generations": 10, "trials": 8},
}
BY_LEARNER |= {"flow-matching": BY_LEARNER["network"], "flow": BY_LEARNER["network"]}
#: And the sampler, where none is named.
SAMPLERS = {"exact": "ddim:20", "network": "ddim:20", "flow-matching": "rk4:8", "flow": "importance:16"}

_NEON = NetworkSettings(
    width=32, layers=5, activation="relu", linear_first=True, parametrisation="epsilon", target="plain", steps=10_000,
    batch=0, rate=1e-4, auxiliary_rate=1e-5, decay="constant", ema=0, time="sampler",
)  # fmt: skip

PRESETS = {
    # Figure 4: four |D_s|, and the other readings of the auxiliary's data alongside ours. The paper has 100
    # generations, which have converged by the tenth (docs/networks.md)
    "figure4": replace(
        Sweep(),
        preset="figure4",
        omega="0:5:0.5",
        synthetic="125,250,500,1000",
        auxiliary_data="train+synthetic,synthetic,real+synthetic",
        generations=30,
        trials=48,
        beside_trials=8,
        overlay_trials=2000,
    ),
    # Neon's published toy (arXiv 2510.03597, appendix), with the quirks of its notebook: the time input of a 20-step
    # grid when sampling (--network.time matched mends it), and a deterministic sampler under the name eta = 1
    "neon": replace(
        Sweep(),
        preset="neon",
        omega="-2:2:0.04",
        method="standard,neon",
        synthetic="1000",
        auxiliary_data="synthetic@0.9,synthetic@1.1",
        budget="50k,250k",
        generations=1,
        trials=8,
        seed=42,
        chunk=256,  # all strengths of a trial share its training
        network=_NEON,
    ),
}
