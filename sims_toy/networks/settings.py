"""What a sweep can be asked for: the networks' settings, the command's options and its presets. No heavy imports."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from sims_core.errors import InputError, choose
from sims_toy.grid.study import RunOptions

if TYPE_CHECKING:
    from sims_toy.networks.training import Training


@dataclass(frozen=True)
class NetworkSettings:
    """Architecture and training of the networks of a sweep (`--network.NAME`).

    The defaults were chosen by one figure, the distance of a trained network from the maximum-likelihood fit of its
    1,000 points (root mean square .010), and by the auxiliary's from its own; never by what a loop then does.
    """

    width: int = 32
    """Units a hidden layer."""
    layers: int = 2
    """Hidden layers."""
    activation: str = "silu"
    """silu or relu."""
    parametrisation: str = "edm"
    """edm, or epsilon (noise prediction on the cosine schedule of 1000 steps)."""
    target: str = "posterior"
    """posterior (stable target field, over the whole data set) or plain denoising score matching."""
    steps: int = 400
    """Adam steps of a base."""
    batch: int = 64
    """Rows a step; 0 is the whole data set."""
    rate: float = 2e-2
    """Peak learning rate of a base."""
    decay: str = "cosine"
    """cosine, linear or constant, down to 0."""
    auxiliary_rate: float = 2e-3
    """Peak learning rate of an auxiliary's fine-tuning (a tenth of the base's, as in Neon's toy: it starts warm)."""
    ema: float = 0.15
    """Half-life of the weights' average, as a share of the samples that the training sees; 0 is the last weights."""
    start: str = "scratch"
    """How a generation's base starts: scratch, or warm from the previous generation's base."""
    warm_steps: int = 0
    """Adam steps of a base that starts warm; 0 is as many as from scratch."""
    warm_rate: float = 0
    """Peak learning rate of a base that starts warm; 0 is the rate from scratch."""
    other_width: int = 0
    """Width of the second architecture (autoguidance's guide, the 'rebuilt' auxiliary); 0 is the base's."""
    linear_first: bool = False
    """No activation after the first layer, as in Neon's published toy."""
    backend: str = "auto"
    """numba (compiled, extra 'fast'), torch, or auto: numba where it can be used. Recorded, as it changes rounding."""
    device: str = "cpu"
    """cpu, cuda or cuda:N. Recorded, as the backend. On one GPU give --workers 1 and a large --chunk."""
    time: str = "matched"
    """Epsilon-prediction's time input when sampling: matched to training, or sampler (t / (N - 1) of the sampler's
    N-step grid, Neon's published mismatch)."""

    def __post_init__(self) -> None:
        for name, low in (
            ("width", 1),
            ("layers", 1),
            ("steps", 1),
            ("batch", 0),
            ("other_width", 0),
            ("warm_steps", 0),
        ):
            if getattr(self, name) < low:
                raise InputError(
                    f"--network.{name.replace('_', '-')}", getattr(self, name), f"give a whole number of at least {low}"
                )
        if not 0 <= self.ema < 1:
            raise InputError("--network.ema", self.ema, "give a share of the training in [0, 1), such as 0.15")
        for name in ("rate", "auxiliary_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"--network.{name.replace('_', '-')}", getattr(self, name), "give a positive number")
        if not 0 <= self.warm_rate < math.inf:
            raise InputError("--network.warm-rate", self.warm_rate, "give a positive number, or 0 for the base's rate")
        choose("--network.activation", self.activation, ("silu", "relu"))
        choose("--network.parametrisation", self.parametrisation, ("edm", "epsilon"))
        choose("--network.target", self.target, ("posterior", "plain"))
        choose("--network.decay", self.decay, ("cosine", "linear", "constant"))
        choose("--network.start", self.start, ("scratch", "warm"))
        choose("--network.backend", self.backend, ("auto", "numba", "torch"))
        choose("--network.time", self.time, ("matched", "sampler"))

    def training(self, points: int, budget: float | None = None, *, warm: bool = False) -> Training:
        """Settings of a base (budget None), or of an auxiliary for ``budget`` samples seen, on ``points`` points.

        warm: of a base that starts from another one.
        """
        from sims_toy.networks.targets import CosineSteps
        from sims_toy.networks.training import Schedule, Training

        rows = min(self.batch or points, points)
        base = (self.warm_steps or self.steps, self.warm_rate or self.rate) if warm else (self.steps, self.rate)
        steps, peak = base if budget is None else (max(1, round(budget / rows)), self.auxiliary_rate)
        warmup = 0 if self.decay == "constant" else min(10, steps // 2)
        settings = Training(
            steps=steps,
            batch=rows,
            schedule=Schedule(peak, warmup, self.decay),
            target=self.target,
            ema_halflife=self.ema * steps * rows or None,
        )
        return (
            replace(settings, noise=CosineSteps(), stratified=False) if self.parametrisation == "epsilon" else settings
        )


def unusual(network: dict[str, Any], told: Collection[str]) -> str:
    """For captions: the settings in ``network`` beside those ``told`` that are not the usual ones, each after a comma.

    Without the backend, which a run settles by itself and records.
    """
    text = ""
    for setting in fields(NetworkSettings):
        value = network.get(setting.name, setting.default)
        if setting.name not in (*told, "backend") and value != setting.default:
            if isinstance(value, bool):
                value = "yes" if value else "no"
            text += f", {setting.name.replace('_', ' ')} {value if isinstance(value, str) else f'{value:g}'}"
    return text


@dataclass(frozen=True)
class Sweep(RunOptions):
    """Sweep the guidance omega through the self-consuming loop on a Gaussian, and say what it prevents.

    The defaults are the paper's Figure 4 in our reading: N(0, [[2,1],[1,2]]), 1000 real points, DDIM-20, auxiliaries
    trained to convergence on the base's training set plus |D_s| of its samples, synthetic augmentation. Axes take a
    grid: a:b (eleven values, both ends included), a:b:step, or a,b,c. Standard training and its controls of no more
    evaluations (twice the sampler's steps; other samplers) are always run beside, and the exact learner's curve beneath
    the networks'.
    """

    preset: str = ""
    """Change the defaults: 'figure4' is the full reproduction (100 generations, four |D_s|, all three readings of what
    the auxiliary is trained on); 'neon' is the published toy of Neon's appendix."""
    omega: str = "0:5"
    """Guidance strengths; 0 is the base. Negative values are allowed (write --omega=-1:1)."""
    synthetic_size: str = ""
    """Synthetic points a generation, |D_s|; default 250,1000 for networks, 125,250,500,1000 for the exact learner."""
    real_size: str = "1000"
    """Real points, |D_r|."""
    auxiliary_size: str = "same"
    """Synthetic points the auxiliary sees; 'same' is |D_s|."""
    auxiliary_data: str = "train+synthetic"
    """What the auxiliary is trained on: synthetic, train+synthetic, real+synthetic (several with commas); NAME@Z draws
    its synthetic points with the score scaled by Z."""
    budget: str = ""
    """Auxiliary's training. Networks: samples seen (steps x batch) with a unit, such as 25.6k; default the base's
    steps x batch. Exact learner: eta in [0, 1], how far it moves from the base to its data; default 1."""
    method: str = "standard,sims"
    """standard, sims, neon, autoguidance, and the controls continued (the base trained further for the auxiliary's
    budget), random (a random direction of the same length), rebuilt (the auxiliary trained from scratch)."""
    loop: str = "augmentation"
    """augmentation, fully-synthetic, fresh, accumulate, mixed:R, polluted (several with commas)."""
    temperature: str = "1"
    """Sampling bias lambda_s in (0, 1] of the loop's synthetic data: 1 is none."""
    pollution: str = "1000"
    """Foreign synthetic points |D_p| of the polluted loop, from a model of the real data alone."""
    sampler: str = "ddim:20"
    """ddim:N, euler:N, heun:N, rk4:N, and exact for the exact learner (several with commas)."""
    retuned: str = ""
    """Samplers of standard training's second control, of no more evaluations than SIMS takes (several with commas), or
    none; default rk4:4, with fewer steps where SIMS takes fewer evaluations."""
    learner: str = "network"
    """network: trained score networks. exact: models are Gaussians, training is maximum likelihood, sampling runs the
    real sampler."""
    network: NetworkSettings = field(default_factory=NetworkSettings)
    """Architecture and training of the networks."""
    generations: int = 0
    """Generations of the loop; default 20 for networks and 100 for the exact learner."""
    trials: int = 0
    """Independent repetitions, paired across cells; default 8 for networks and 1000 for the exact learner."""
    beside_trials: int = 0
    """Repetitions of the readings of --auxiliary-data after the first; 0 is as many."""
    overlay_trials: int = 400
    """Repetitions of the exact learner beneath the networks, from whose mean chance is taken out of theirs."""
    real: str = "gaussian"
    """Real data: gaussian, gaussians:K, mixture:P,Q,..., moons, pinwheel, swissroll, checkerboard, or a .npy or .csv
    file of at least 1,000 points in the plane, in any unit. All but 'gaussian' need the network learner."""
    real_mean: str = "0,0"
    """Mean of the real Gaussian, any dimension."""
    real_covariance: str = "2,1;1,2"
    """Covariance of the real Gaussian, rows separated by ';'."""
    distance: str = ""
    """moments (closed form, for 'gaussian'), emd or sliced (between 1,000 generated and real points, with their floor);
    default moments for 'gaussian', sliced for the rest."""


#: Defaults that depend on the learner: what an empty option or a 0 stands for.
BY_LEARNER = {
    "exact": {"synthetic_size": "125,250,500,1000", "budget": "1", "generations": 100, "trials": 1000},
    "network": {"synthetic_size": "250,1000", "budget": "", "generations": 20, "trials": 8},
}

_NEON = NetworkSettings(
    width=32,
    layers=5,
    activation="relu",
    linear_first=True,
    parametrisation="epsilon",
    target="plain",
    steps=10_000,
    batch=0,
    rate=1e-4,
    auxiliary_rate=1e-5,
    decay="constant",
    ema=0,
    time="sampler",
)

PRESETS = {
    # Figure 4 in full: 100 generations, four |D_s|, and the other readings of the auxiliary's data beside ours
    "figure4": replace(
        Sweep(),
        preset="figure4",
        omega="0:5:0.5",
        synthetic_size="125,250,500,1000",
        auxiliary_data="train+synthetic,synthetic,real+synthetic",
        generations=100,
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
        synthetic_size="1000",
        auxiliary_data="synthetic@0.9,synthetic@1.1",
        budget="50k,250k",
        generations=1,
        trials=8,
        seed=42,
        chunk=256,  # all strengths of a trial share its training
        network=_NEON,
    ),
}
