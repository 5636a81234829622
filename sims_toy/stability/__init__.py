"""``python -m sims_toy.stability``: iterative retraining and the theorem about it (Bertrand et al., 2310.00429)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from sims_core.errors import InputError, choose
from sims_core.lab.bounds import at_least, check_bounds
from sims_core.lab.command import formerly, usual
from sims_core.lab.options import RunOptions
from sims_toy.flows.settings import FlowSettings
from sims_toy.grid.study import GridStudy
from sims_toy.networks.settings import NetworkSettings

__all__ = ["PRESETS", "Stability", "plan"]

#: Samples of every model that are kept, for the pictures, the rates and eps.
KEPT = 400


@dataclass(frozen=True)
class Stability(RunOptions):
    """Retrain models on real data and lambda times as many of their own samples, and hold it against the theorem.

    Every round starts from the last round's model. Ratios lambda and the fully synthetic loop, on each data set: the
    samples and their distance to the data round by round; alpha, L and eps of the theorem's condition
    lambda (1 + L eps / alpha) < 1/2 estimated for the models at hand; the contraction rate measured, alongside the
    theorem's; the same where all of it is known in closed form; and the collapse c_4(n)^t of a Gaussian.
    """

    preset: Annotated[str, usual("none")] = ""
    """'paper' is the full grid: every learner, more trials, and the constants of several models."""
    learner: str = "network"
    """Learners, with commas: network (score networks), flow-matching (OT-CFM), flow (normalizing flows, extra 'flows'),
    exact (Gaussians by maximum likelihood: no optimiser, no sampler error)."""
    data: Annotated[str, formerly("real")] = "gaussians:8,moons"
    """Data sets, with commas: gaussians:K, moons, pinwheel, swissroll, checkerboard, spiral, tree,
    mixture:P,Q,..., or a file."""
    ratio: str = "0,0.001,0.01,0.1,0.5,1,2"
    """Synthetic-to-real ratios lambda, a grid; 0 (training continues with real data alone) is always run."""
    real_size: Annotated[int, at_least(10)] = 1000
    """Real points, |D_r|; the fully synthetic loop trains on as many samples."""
    generations: Annotated[int, at_least(2)] = 20
    """Rounds; the first trains on real data."""
    trials: Annotated[int, at_least(2)] = 8
    """Independent repetitions, paired across ratios."""
    sampler: str = "rk4:8"
    """Of the networks, as of the sweep; rk4:8 has next to no bias of its own."""
    velocity_sampler: str = "rk4:16"
    """Of flow matching: euler:N, midpoint:N, rk4:N or dopri5:TOLERANCE (extra 'flows')."""
    coupling: Literal["ot", "independent"] = "ot"
    """How flow matching pairs noise and data: by exact optimal transport within a batch (OT-CFM), or independently."""
    distance: Literal["sliced", "emd"] = "sliced"
    """sliced or emd: W2 between 1,000 samples and as many real points, with its floor."""
    network: NetworkSettings = field(
        default_factory=lambda: NetworkSettings(width=40, steps=3000, start="warm", warm_steps=400, warm_rate=2e-3)
    )
    """Architecture and training, chosen by the first round's samples alone: large and long enough to part the eight
    modes. Every other round is fine-tuning, at a tenth of the first round's rate."""
    flow: FlowSettings = field(
        default_factory=lambda: FlowSettings(width=16, rate=5e-3, start="warm", warm_steps=200, warm_rate=5e-4)
    )
    """Architecture and training of normalizing flows; small enough that the whole Hessian can be computed."""
    kick: float = 0.8
    """The rate is measured by a loop whose first round sees the data scaled by this factor."""
    probes: Annotated[int, at_least(1)] = 1
    """Models of each data set whose Hessian is computed."""
    probe_points: Annotated[int, at_least(2)] = 64
    """Real points that the Hessian is averaged over."""
    collapse_size: Annotated[int, at_least(2)] = 100
    """Points per generation, n, of the Gaussian that collapses."""
    collapse_generations: Annotated[int, at_least(1)] = 100
    """Generations of the collapse experiment."""
    collapse_trials: Annotated[int, at_least(2)] = 1000
    """Trials of the collapse experiment."""


PRESETS = {
    "paper": replace(
        Stability(),
        preset="paper",
        learner="network,flow-matching,flow,exact",
        trials=32,
        probes=4,
        probe_points=128,
        collapse_trials=10_000,
    )
}


def plan(options: Stability) -> GridStudy:
    """What a `Stability` would run, without running it. Raises `InputError` for bad input."""
    from sims_core.lab.grids import parse_grid
    from sims_toy.datasets import parse_real
    from sims_toy.grid.cells import Cell, Experiment
    from sims_toy.grid.measure import POINTS
    from sims_toy.grid.parse import names, settle, trained
    from sims_toy.stability import tables as report

    check_bounds(options)
    _check(options)
    learners = names("learner", options.learner, ("network", "flow-matching", "flow", "exact"))
    velocities = replace(options.network, target="ot") if options.coupling == "ot" else options.network
    models = {name: trained(name, velocities if name == "flow-matching" else options.network, options.flow)
              for name in learners}  # fmt: skip
    samplers = _samplers(options)
    distance = choose("distance", options.distance, ("sliced", "emd"))
    ratios = sorted({0.0, *parse_grid("ratio", options.ratio, low=0)})
    for ratio in ratios:
        if ratio and round(ratio * options.real_size) == 0:
            expected = f"with {options.real_size} real points it leaves no synthetic one: raise it, or `real_size`"
            raise InputError("ratio", f"{ratio:g}", expected)
    reals = list(dict.fromkeys(part.strip() for part in re.split(r",(?=\s*[A-Za-z./])", options.data)))
    digests = {}
    for name in reals:
        if name == "gaussian":
            raise InputError("data", name, "give one of the plane's data sets, such as gaussians:8 or moons")
        real = parse_real(name)
        if real.limit is not None and real.limit < max(POINTS, options.real_size):
            least = max(POINTS, options.real_size)
            raise InputError("data", name, f"the file holds {real.limit} points; give at least {least}")
        if real.digest:
            digests[name] = real.digest

    n = options.real_size
    loops = [(f"mixed:{ratio!r}", round(ratio * n)) for ratio in ratios] + [("fully-synthetic", n)]
    plane = ((0.0, 0.0), ((1.0, 0.0), (0.0, 1.0)))
    parts: dict[str, Experiment] = {}
    for learner, model in models.items():
        cells = [
            Cell(learner, "standard", loop, samplers[learner], n, size, reference=samplers[learner], real=real)
            for real in reals
            for loop, size in loops
        ]
        measured = (distance, f"points:{KEPT}", "weights")
        part = Experiment(tuple(cells), options.generations, options.trials, options.seed, *plane, model, measured)
        kicked = [replace(cell, loop=f"scaled:{options.kick!r}:{cell.loop}") for cell in cells]
        parts[report.part_of("loops", learner)] = part
        parts[report.part_of("kicked", learner)] = replace(
            part, cells=tuple(kicked), generations=min(3, options.generations), quantities=measured[1:2]
        )
    collapse = Experiment(
        (Cell("exact", "standard", "fully-synthetic", "exact", options.collapse_size, options.collapse_size),),
        options.collapse_generations,
        options.collapse_trials,
        options.seed,
        (0.0,),
        ((1.0,),),
        None,
        ("variance",),
        ddof=1,
    )
    parts |= {"collapse1": collapse, "collapse0": replace(collapse, ddof=0)}
    settings = {
        "command": "sims_toy.stability",
        "real": reals,
        "ratio": ratios,
        "real_size": n,
        "generations": options.generations,
        "trials": options.trials,
        "sampler": samplers["network"],
        "distance": distance,
        "kick": options.kick,
        "probes": options.probes,
        "probe_points": options.probe_points,
        "collapse_size": options.collapse_size,
        "collapse_generations": options.collapse_generations,
        "collapse_trials": options.collapse_trials,
        "seed": options.seed,
        "network": (models.get("network") or settle(options.network)).record(),
    }
    if learners != ["network"]:
        settings |= {"learner": learners, "models": {k: m and m.record() for k, m in models.items() if k != "network"}}
        settings["samplers"] = {name: samplers[name] for name in learners}
    if digests:
        settings["real_sha256"] = digests
    return GridStudy(
        "stability",
        settings,
        parts=parts,
        make=lambda values: report.make(parts, values, settings),
        draw=report.draw,
        also=report.clouds,
        words=report.words,
        local=("collapse1", "collapse0"),
        alike=lambda cell: cell.learner,  # as many steps per round whatever the ratio and the data
    )


def _samplers(options: Stability) -> dict[str, str]:
    """Every learner's, as text."""
    from sims_core.flow import VelocitySampler
    from sims_core.sampling import Sampler

    sampler = Sampler.parse(options.sampler, argument="sampler")
    if not sampler.steps:
        raise InputError("sampler", options.sampler, "networks need a numerical sampler, such as rk4:8")
    flowing = VelocitySampler.parse(options.velocity_sampler, argument="velocity_sampler")
    return {"network": str(sampler), "flow-matching": str(flowing), "flow": "importance:1", "exact": "exact"}


def _check(options: Stability) -> None:
    if options.probes > options.trials:
        raise InputError("probes", options.probes, f"there are {options.trials} trials")
    if not 0 < options.kick < 1:
        raise InputError("kick", options.kick, "give a factor in (0, 1), such as 0.8")
    for group in ("network", "flow"):
        start = getattr(options, group).start
        if start != "warm":
            raise InputError(f"{group}.start", start, "retraining starts from the last round: say warm")
    choose("coupling", options.coupling, ("ot", "independent"))
