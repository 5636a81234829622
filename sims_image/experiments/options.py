"""What an experiment can be asked for: options of ``sims_image sims``, ``loop``, ``retrain`` and their siblings.

An experiment is composed of the options that it uses; one that has no say in it is none of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sims_core.lab.bounds import at_least
from sims_core.lab.command import formerly, listed
from sims_image.sampling.options import Compiled, Guidance, Machine, Paired


@dataclass(frozen=True)
class Inputs:
    """What an experiment starts from."""

    preset: str = ""
    """Published settings of this experiment, such as cifar10, ffhq64 or imagenet64; other options override them."""
    data: str = ""
    """The base's training set: a folder that `prepare` made, or an EDM zip."""
    base: str = ""
    """A checkpoint, or a preset to train."""
    heldout: str = ""
    """Real images that no model was trained on; where given, distances are to them. `prepare --holdout` makes some."""
    auxiliary_weights: str = "ema"
    """Of a model trained from another: ema (as published) or raw; a short training's slow average hardly moves."""


@dataclass(frozen=True)
class Consuming:
    """A model's samples, which another is trained on."""

    synthetic: str = ""
    """|D_s|, a model's samples that the next one is trained on; default as many as there are real images."""


@dataclass(frozen=True)
class Measuring:
    """How a model is measured."""

    GROUP: ClassVar[str] = "measuring"

    n: str = "1k"
    """Images by which a model is measured; each trial has its own."""
    features: str = "lite0"
    """Features of the Fréchet distance: inception (then it is the FID), lite0, classifier, dinov2 or pixels."""
    weights: str = ""
    """File with the feature network's weights (inception, dinov2)."""


@dataclass(frozen=True)
class Sampling(Compiled):
    """How images are drawn, and networks evaluated."""

    GROUP: ClassVar[str] = "sampling"

    sampler: str = ""
    """heun:18, euler:40, ddim:50; default the preset's."""
    labels: str = ""
    """Classes: data (drawn as --data has them; the default), uniform or balanced."""
    batch: int = 64
    """Compute batch of sampling."""


@dataclass(frozen=True)
class Experiment(Machine, Sampling, Measuring, Inputs):
    """Options of every experiment."""

    seed: int = 0
    """Root of all randomness."""
    out: str = ""
    """Where everything goes; default runs/<verb>."""
    dry_run: bool = False
    """Print the plan and its cost in network evaluations, and stop."""

    @property
    def verb(self) -> str:
        """The command that takes them."""
        return type(self).__name__.lower()


@dataclass(frozen=True)
class Searching:
    """Who measures the models of a search: each is independent of the others."""

    GROUP: ClassVar[str] = "machine"

    workers: Annotated[int, at_least(1)] = 1
    """Processes that measure models of a search and of its confirmation side by side, one thread each. Without
    torchrun, whose processes share the images of every model."""
    scheduler: str = ""
    """Address of a Dask cluster that measures them instead (extra 'cluster'); its workers see the same folders."""


@dataclass(frozen=True)
class FineTuning(Paired):
    """How an auxiliary is fine-tuned."""

    GROUP: ClassVar[str] = "fine-tuning"

    train_batch: int | None = None
    """Images per step of fine-tuning; default the preset's."""
    lora: str = ""
    """Fine-tune an adapter on the base's weights, which are in memory once: its rank, or rank and layers
    (16:to_q,to_v). Of imported networks."""
    lr: float | None = None
    """Learning rate of fine-tuning; default the preset's."""
    lr_rampup: str = ""
    """Its ramp, in images; the published 10M never end within a short budget."""
    lr_decay: str | None = None
    """Its decay: constant, inverse-sqrt or cosine; default the preset's."""


@dataclass(frozen=True)
class AuxiliaryData:
    """The reading of what an auxiliary is fine-tuned on."""

    auxiliary_data: str = "synthetic"
    """What the auxiliary is fine-tuned on: synthetic (the model's own samples alone), train+synthetic (with what that
    model was trained on), real+synthetic (with the real data). The paper's sources disagree; see docs/images-sims.md.
    """


@dataclass(frozen=True)
class Sims(Consuming, AuxiliaryData, FineTuning, Guidance, Searching, Experiment):
    """Self-improve a diffusion model with its own samples: base, synthetic data, auxiliary, omega, confirmation.

    The same command resumes a stopped one, and another one in the same --out reuses what they share.
    Several processes: torchrun --nproc_per_node N -m sims_image sims ...
    """

    heldout: str = ""
    """Real images that the base was not trained on; where given, omega is chosen by the distance to them."""
    out: str = "runs/sims"
    """Where the stages, the measured cells and the report go."""
    synthetic: str = "6k"
    """Images of the synthetic set D_s."""
    synthetic_from: str = ""
    """Where D_s comes from, in the base's place: another model's checkpoint, or a data set of its images."""
    auxiliary_data: str = "synthetic"
    """What the auxiliary is fine-tuned on: synthetic (D_s alone), train+synthetic or real+synthetic (the same here:
    the base's training set is the real data). The paper's sources disagree; see docs/images-sims.md."""
    budget: Annotated[str, formerly("budgets")] = "1,3,6Mi"
    """Images that the auxiliary sees, or several such numbers; the unit at the end holds for all."""
    omega: str = "0:2:0.25"
    """Grid of extrapolation strengths; 0, the base, is always among them. auto (0:3:0.25) or auto:GRID: by successive
    halving over them and the budgets, on few of the search seeds first, for a part of the grid's cost."""
    search: str = "2k"
    """Images of a cell of the search over omega and budget."""
    n: str = "10k"
    """Images per confirmation."""
    repeats: int = 3
    """Confirmations, on disjoint seeds."""
    auxiliary_weights: str = "ema"
    """ema (as published) or raw: a short fine-tune's slow average hardly moves; the report says how far it came."""
    base_ema: str = ""
    """Grid of relative EMA widths of the base, made after training (presets with power-function EMA, as EDM2's); the
    best pair with --auxiliary-ema on the search seeds, at the omega found, is confirmed. Default: as trained."""
    auxiliary_ema: str = ""
    """The same of the auxiliary."""
    controls: bool = True
    """Measure the control arms too: twice the steps, the sampler retuned, continued training, a random direction,
    Neon."""


@dataclass(frozen=True)
class Laboratory(Experiment):
    """Options of every experiment over trials, with models trained from scratch."""

    trials: int = 3
    """Repetitions with other seeds of everything: training, sampling, measuring."""
    first_trial: Annotated[int, at_least(0)] = 0
    """Number of the first of them. Processes that share --out and have trials of their own make what the command for
    all trials then finds."""
    fit_budget: str = ""
    """Images that a model trained from scratch sees; default the preset's."""
    fit_lr: float | None = None
    """Learning rate of such a training; default the preset's."""
    objective: str = ""
    """Training objective: edm, edm2 or flow-matching; default the preset's, or the checkpoint's."""
    network: str = ""
    """Arguments of the network that differ from the preset's: model_channels=16,label_dim=0."""
    images: int = 0
    """Real images, for a --dry-run where --data does not exist."""

    @property
    def numbers(self) -> range:
        """The numbers of the trials."""
        return range(self.first_trial, self.first_trial + self.trials)


@dataclass(frozen=True)
class Extrapolating(FineTuning):
    """Options of experiments that extrapolate away from auxiliaries."""

    auxiliary_size: str = ""
    """Samples that an auxiliary is made from; default --synthetic."""
    budget: str = "1Mi"
    """Images that an auxiliary sees."""
    omega: str = "1"
    """Extrapolation strength, or a grid of them."""


@dataclass(frozen=True)
class Retraining:
    """Options of experiments whose models may start from the previous one."""

    retrain_budget: str = ""
    """Images that a model sees which starts from the previous one; default as from scratch."""
    retrain_lr: float | None = None
    """Learning rate of such a training, held from its first step to its last; default the preset's, with its ramp."""
    retrain_batch: int | None = None
    """Images per step of it; default the preset's."""


def loops() -> list[str]:
    """The data policies as --loop takes them, and which of them need --more."""
    from sims_core.loop import POLICIES

    return [policy.form + " (needs --more)" * bool(policy.needs) for policy in POLICIES.values()]


@dataclass(frozen=True)
class Loop(Consuming, Retraining, AuxiliaryData, Extrapolating, Laboratory):
    """Train generation after generation on data that hold the models' own samples, and measure each.

    The same command resumes a stopped one; more generations, methods, omegas or trials in the same --out make
    only what is new. Several processes: torchrun --nproc_per_node N -m sims_image loop ...
    """

    loop: Annotated[str, listed("sims_image.experiments.options:loops", "{}.")] = "augmentation"
    """A data policy of `sims_core.loop.POLICIES`."""
    method: str = "standard,sims,equal-cost"
    """standard, sims, neon, autoguidance, continued, random, rebuilt; equal-cost is standard training with twice the
    sampler's steps."""
    generations: int = 6
    """Generations of each loop; the first one trains on real data alone."""
    more: str = ""
    """Extra images of the same kind: real (for fresh), or synthetic D_p (for polluted)."""
    guide_network: str = ""
    """Arguments of the second network of autoguidance and of the rebuilt auxiliary; default --network."""


@dataclass(frozen=True)
class Retrain(Consuming, Retraining, Laboratory):
    """Retrain a model, round after round, on all real images and λ times as many of its own, at every λ of a grid.

    λ = 0 trains on with real images alone, which the others are compared with; λ = inf leaves the real ones out.
    """

    synthetic: str = ""
    """Generated images of λ = inf; default as many as there are real ones."""
    ratio: str = "0,0.5,1,2"
    """Grid of λ, generated images per real one; inf for no real images (as many generated ones)."""
    generations: Annotated[int, formerly("rounds")] = 6
    """Of each λ; the first one trains on real images alone, from scratch or from --base. All take as many steps."""
    start: str = ""
    """Weights that a round starts from, of the last round's run: ema or raw; default those that --auxiliary-weights
    samples from. A --base that is a checkpoint starts the second round as it is."""
    adam: str = "new"
    """Adam of a round: new, or kept from the last round's run (as the published flow-matching code does). A --base that
    is a checkpoint starts the second round with a new one."""
    sample_seeds: str = "fresh"
    """Seeds of a round's generated images: fresh, or same (those of every other round, as in the published code)."""


@dataclass(frozen=True)
class Pollution(Retraining, AuxiliaryData, Extrapolating, Laboratory):
    """Train on real data polluted by a previous model's samples, with and without SIMS, over the size of the pollution.

    ST standard training, SIMS Algorithm 1; I ideal (no pollution), P polluted. SIMS is measured at every omega of a
    grid: the paper's comparison holds one fixed, and the best omega of each |D_p| is drawn alongside.
    """

    auxiliary_size: Annotated[str, formerly("synthetic")] = ""
    """|D_s|, samples that an auxiliary is made from; default as many as there are real images."""
    pollution: str = "0,0.25,0.5,1"
    """Grid of |D_p| / |D_r|."""
    omega: str = "1"
    """Extrapolation strengths of SIMS."""
    ideal: str = ""
    """What I means: '' is D_r alone; a data set of further real images is polluted by those instead of D_p, as many."""
    warm: bool = False
    """Train every base from the model of D_r alone, for --retrain-budget, instead of from scratch."""


@dataclass(frozen=True)
class Leaderboard(AuxiliaryData, Extrapolating, Searching, Laboratory):
    """SIMS against its rivals and controls, from several independently trained bases, with what each costs.

    Each trial trains a base and an auxiliary. What SIMS will do is foretold from samples of the two (`outlook`), omega
    and the controls' settings are chosen on search seeds of the trial, and everything is measured on fresh ones.
    """

    auxiliary_size: str = ""
    """|D_s|, samples that an auxiliary is made from; default as many as there are real images."""
    omega: str = "0.25,0.5,1,1.5,2,3,4,6"
    """Grid that SIMS, Neon and autoguidance choose from, each by the search seeds."""
    beside: str = ""
    """Report folders of runs of other trials with the same settings, A/report,B/report: the tables hold theirs too."""
    fixed: float = 1.0
    """Strength that is confirmed whatever the search finds; 1 is what theory says beforehand."""
    search: str = "2k"
    """Images of a model on the search seeds."""
    cheaper: str = "held:2"
    """Guidance that evaluates the auxiliary less often, each with an omega of its own: held:2, interval:0.3:3, ..."""
    also: str = ""
    """Further features to measure in, NAME or NAME:N for the first N images: pixels, lite0:1k, lite0:96:1k, ..."""
    variants: str = ""
    """Other auxiliaries, each with its outlook and SIMS at both strengths: size=5k; budget=20k; weights=ema;
    data=train+synthetic; cold. One thing changed in each."""
    guide_network: str = ""
    """Arguments of autoguidance's network and of the cold auxiliary's; default --network."""
    wide_network: str = ""
    """Arguments of the wider base's network, trained for as many operations as base and auxiliary
    together, D_s included; '' for none."""
    arms: str = ""
    """Which of the models below to measure in addition to base, SIMS and the auxiliary, by name; default all."""


@dataclass(frozen=True)
class Control(Extrapolating, Laboratory):
    """Move a model's class shares toward a target (Algorithm 2), and measure shares, classes and overall quality.

    Compared with: the base, the base with twice the steps, plain SIMS (an auxiliary with the base's own shares), and a
    random direction. The base must be unconditional: of a conditional one, ask for labels instead.
    """

    auxiliary_size: Annotated[str, formerly("synthetic")] = ""
    """|D_s|, samples that an auxiliary is made from; default as many as there are real images."""
    target: str = "uniform"
    """Class shares to reach: uniform, one number per class (0.3,0.7), or NAME=SHARE,... with the rest shared out as the
    base has it. They are scaled to sum to 1."""
    omega: str = "0.5,1,2"
    """Grid of extrapolation strengths; 0 is always measured."""
    classifier: str = ""
    """Who says what class an image is of: '' (trained on the labels of --data, as `classify` does), a folder that
    classify stored, or module:function."""
    complement: str = "linear"
    """What the auxiliary's shares are, linear or geometric: two readings of the paper's word."""
    strength: float = 1.0
    """How far the complement goes; linear: above `largest_strength` it cuts classes out."""
