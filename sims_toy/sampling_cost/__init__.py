"""``python -m sims_toy.sampling_cost``: what guidance costs in network evaluations, and what a cheaper one gives up."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from sims_core.errors import InputError, choose
from sims_core.lab.bounds import at_least, check_bounds
from sims_core.lab.command import formerly, usual
from sims_core.lab.options import RunOptions
from sims_toy.grid.study import GridStudy
from sims_toy.networks.settings import NetworkSettings

__all__ = ["PRESETS", "SamplingCost", "plan"]


@dataclass(frozen=True)
class SamplingCost(RunOptions):
    """Quality against network evaluations: SIMS with full and with cheaper guidance, each at its own best omega.

    Compared with: the merge of weights (Neon), the base alone, and the base with more steps of the sampler, for which
    the guidance's evaluations could be spent as well. Quality is E[W2] of the first generation (and, with
    --loop-generations, at the end of the augmentation loop). The defaults are N(0, [[2,1],[1,2]]), 1000 real points,
    auxiliaries trained to convergence on 10,000 of the base's samples. The intervals suit this toy only.
    """

    preset: Annotated[str, usual("none")] = ""
    """Change the defaults: 'paper' is the full grid: omega in steps of 0.05, 8000 trials, and the loop."""
    sampler: str = "heun:18,ddim:20"
    """ddim:N, euler:N, heun:N, rk4:N (several with commas)."""
    guidance: str = "full,predictor,held:1,held:2,held:3,interval:0.8:3,held:1+interval:0.8:3"
    """Where the auxiliary is evaluated: full; predictor (Heun's predictor only, the corrector sees the base alone);
    held:K (at the first evaluation of every K-th step, and the correction held in between); interval:LOW:HIGH in
    sigma; joined by '+'. Those that cost and do the same with a sampler are run once."""
    omega: str = "0:3:0.1"
    """Guidance strengths among which each finds its best."""
    more_steps: str = "1.25,1.5,2"
    """The base alone with this many times the sampler's steps."""
    real_size: Annotated[int, at_least(3)] = 1000
    """Real points, |D_r|."""
    auxiliary_size: Annotated[int, at_least(3)] = 10_000
    """Synthetic points the auxiliary sees."""
    budget: Annotated[str, usual("1 for the exact learner, as long as the base's for networks")] = ""
    """Auxiliary's training: eta in [0, 1] for the exact learner, samples seen with a unit for networks."""
    trials: Annotated[int | None, at_least(4), usual("4000 for the exact learner, 8 for networks", "INT")] = None
    """Independent repetitions, paired across everything."""
    loop_generations: Annotated[int, at_least(0)] = 0
    """Generations of the augmentation loop; 0 is none. Quality is then also the mean of its last ten."""
    loop_trials: Annotated[int, at_least(4)] = 100
    """Repetitions of the loop."""
    synthetic: Annotated[int, at_least(1), formerly("synthetic_size")] = 1000
    """Synthetic points per generation of the loop, |D_s|."""
    learner: Literal["exact", "network"] = "exact"
    """exact or network."""
    network: NetworkSettings = field(default_factory=NetworkSettings)
    """Architecture and training of the networks."""
    real_mean: str = "0,0"
    """Mean of the real Gaussian."""
    real_covariance: str = "2,1;1,2"
    """Covariance of the real Gaussian, rows separated by ';'."""


PRESETS = {"paper": replace(SamplingCost(), preset="paper", omega="0:3:0.05", trials=8000, loop_generations=30)}
#: Trials by learner.
TRIALS = {"exact": 4000, "network": 8}


def plan(options: SamplingCost) -> GridStudy:
    """What the options ask for. Raises `InputError` for what cannot be run."""
    from sims_core.guidance import RULES, GuidanceSchedule
    from sims_core.lab.grids import parse_grid
    from sims_core.sampling import Sampler
    from sims_toy.exact import AFFINE
    from sims_toy.grid.cells import Cell, Experiment
    from sims_toy.grid.parse import MOST_OMEGA, at_most_cells, items, read_gaussian
    from sims_toy.sampling_cost import tables as cost_report

    check_bounds(options)
    learner = choose("learner", options.learner, TRIALS)
    trials = options.trials or TRIALS[learner]
    samplers = [Sampler.parse(s, argument="sampler") for s in items("sampler", options.sampler)]
    if any(not s.steps for s in samplers):
        raise InputError("sampler", "exact", "an exact sampler evaluates nothing; write name:steps")
    schedules = [GuidanceSchedule.parse(g, argument="guidance") for g in items("guidance", options.guidance)]
    bent = [s for s in schedules if learner == "exact" and not RULES[s.rule].affine]
    if bent:
        raise InputError("guidance", str(bent[0]), AFFINE)
    omegas = sorted({0.0, *parse_grid("omega", options.omega, low=-MOST_OMEGA, high=MOST_OMEGA)})
    if len(omegas) < 3:
        raise InputError("omega", options.omega, "give at least three strengths, to find the best among them")
    multiples = parse_grid("more_steps", options.more_steps, low=1, high=100)
    at_most_cells(samplers, schedules, omegas, multiples)
    mean, covariance = read_gaussian(options.real_mean, options.real_covariance)
    budget, network = _budget(options, learner)

    def base(sampler: Sampler) -> Cell:
        sizes = (options.real_size, options.synthetic)
        return Cell(learner, "standard", "augmentation", str(sampler), *sizes, reference=str(sampler))

    cells = []
    for sampler in samplers:
        cells.append(base(sampler))
        cells += [
            replace(base(replace(sampler, steps=steps)), method="equal-cost", reference=str(sampler))
            for steps in sorted({round(k * sampler.steps) for k in multiples} - {sampler.steps})
        ]
        guided = replace(
            base(sampler), auxiliary_size=options.auxiliary_size, budget=budget, auxiliary_data="synthetic"
        )
        for schedule in cost_report.distinct(sampler, schedules):
            cells += [replace(guided, method="sims", guidance=str(schedule), omega=w) for w in omegas]
        cells += [replace(guided, method="neon", omega=w) for w in omegas]
    first = Experiment(
        tuple(dict.fromkeys(cells)), 1, trials, options.seed, tuple(mean), tuple(map(tuple, covariance)), network
    )
    parts = {"first": first}
    if options.loop_generations > 1:
        parts["loop"] = replace(first, generations=options.loop_generations, trials=options.loop_trials)
    settings: dict[str, Any] = {
        "command": "sims_toy.sampling_cost",
        "learner": learner,
        "sampler": [str(s) for s in samplers],
        "guidance": [str(g) for g in schedules],
        "omega": omegas,
        "more_steps": multiples,
        "real_size": options.real_size,
        "auxiliary_size": options.auxiliary_size,
        "budget": budget,
        "trials": trials,
        "real_mean": mean,
        "real_covariance": covariance,
        "seed": options.seed,
    }
    if "loop" in parts:
        settings |= {
            "loop_generations": options.loop_generations,
            "loop_trials": options.loop_trials,
            "synthetic_size": options.synthetic,
        }
    if network is not None:
        settings["network"] = network.record()
    return GridStudy(
        "sampling_cost",
        settings,
        parts=parts,
        make=lambda values: cost_report.make(parts, values),
        draw=cost_report.draw,
        words=cost_report.words,
    )


def _budget(options: SamplingCost, learner: str) -> tuple[str, NetworkSettings | None]:
    """The auxiliary's budget as text, and the networks' settings with what 'auto' chose."""
    from sims_core.lab.grids import parse_budget
    from sims_toy.grid.parse import settle

    network = None
    if learner == "network":
        network = settle(options.network)
        text = options.budget or f"{network.steps * (network.batch or options.real_size) / 1000:g}k"
    else:
        text = options.budget or "1"
    expected = "the exact learner takes eta in [0, 1], networks take samples seen, with a unit (25.6k)"
    unit = parse_budget("budget", text, expected=expected).unit
    if (unit == "eta") != (learner == "exact"):
        raise InputError("budget", text, expected)
    return text, network
