"""One piece of the control study: Algorithm 2 on trained networks, and what came out class by class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sims_core.algorithm import METHODS, Given, Trained
from sims_core.control import distribution_control
from sims_core.errors import InputError
from sims_core.lab.grids import parse_budget
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy import wasserstein
from sims_toy.control.theory import FAR
from sims_toy.datasets import Mixture
from sims_toy.flows.settings import FlowSettings
from sims_toy.gaussian import Gaussian, Statistics, w2_squared
from sims_toy.grid.cells import Array, Cell, Experiment, Measurer, Values
from sims_toy.grid.measure import LEARNERS, spread
from sims_toy.networks.learner import NetworkLearner, NetworkModel

#: Measured in every cell, each (rows, ...): class shares of the output and of the auxiliary's own samples; sliced W2 to
#: the mixture in the target's weights and in its own, with their real-against-real floors; the share of points outside
#: all classes; for each class the W2 of its moments to the true component (closed form), its mean's displacement and
#: its covariance's relative error.
QUANTITIES = (
    "shares", "auxiliary_shares", "sliced_target", "sliced_original", "floor_target", "floor_original", "outside",
    "class_w2", "class_mean", "class_covariance",
)  # fmt: skip
#: Rounds of drawing from the base before a class counts as one that it does not make.
ROUNDS = 40
#: Points and directions of the sliced distances.
SLICED = (2000, 64)


def measurer(target: Sequence[float], points: int) -> Measurer:
    """How the study's cells are run. target: class shares (K,). points: a model's, that it is measured by."""
    run = partial(measure, target=tuple(target), count=points)
    return replace(LEARNERS["network"], chunk=36, measure=run)


def measure(
    experiment: Experiment, cells: Sequence[Cell], trials: Sequence[int], *, target: tuple[float, ...], count: int
) -> Values:
    """Train, control and measure every (cell, trial): each quantity (cells, trials, 1, ...)."""
    first = cells[0]
    real = experiment.source(first)
    mixture = getattr(real, "mixture", None)
    if mixture is None:
        raise InputError("data", first.real, "control needs classes: mixture:P,Q,... or gaussians:K")
    sampler = Sampler.parse(first.sampler, sigma_data=spread(real))
    assert not isinstance(experiment.network, FlowSettings)  # score networks alone
    learner = NetworkLearner(sampler, np.tile(trials, len(cells)), experiment.network)
    seed = Seed(experiment.seed)
    data = learner.draw(real, first.real_size, seed=seed.child("real"))
    omega = np.repeat([c.omega for c in cells], len(trials))
    made = control(learner, data, first, mixture, target, omega, seed.child("generation", 1))
    evaluation = seed.child("evaluation")
    points = learner.points(made.model, count, seed=evaluation.child("generated")).double().numpy()
    found = {"shares": shares(mixture, points)}
    own = found["shares"]
    if made.auxiliary is not None:
        drawn = learner.points(made.auxiliary, count, seed=evaluation.child("generated"))
        own = shares(mixture, drawn.double().numpy())
    found |= {"auxiliary_shares": own, **_distances(learner, mixture, target, points, evaluation)}
    found |= _within(mixture, points)
    shape = (len(cells), len(trials), 1)
    return {name: found[name].reshape(*shape, *found[name].shape[1:]) for name in QUANTITIES}


def control(
    learner: NetworkLearner,
    data: Tensor,
    cell: Cell,
    mixture: Mixture,
    target: Sequence[float],
    omega: Array,
    seed: Seed,
) -> Trained[NetworkModel, Tensor]:
    """One generation of a cell's method: 'control' (Algorithm 2, complement 'reading@strength'), or a control of it.

    'sims' is plain SIMS, whose auxiliary sees the base's own proportions; 'random' goes in a random direction as far as
    Algorithm 2's auxiliary; 'standard' and 'equal-cost' are the base.
    """
    if cell.method in ("standard", "equal-cost"):
        return METHODS[cell.method](learner, data, seed=seed)
    settings = {"n_synthetic": cell.auxiliary_size, "budget": parse_budget("budget", cell.budget).value, "omega": omega}
    if cell.method == "sims":
        return METHODS["sims"](learner, data, **settings, seed=seed)
    reading, _, strength = cell.auxiliary_data.partition("@")
    made = distribution_control(
        learner,
        data,
        draw=selector(learner, mixture, cell.auxiliary_size),
        base_shares=lambda base, s: shares(mixture, learner.sample(base, 4000, seed=s).double().numpy()),
        target_shares=target,
        strength=float(strength),
        reading=reading,
        budget=settings["budget"],
        omega=omega,
        seed=seed,
    )
    if cell.method == "control":
        return made
    return METHODS["random"](Given(learner, base=made.base, auxiliary=made.auxiliary), data, **settings, seed=seed)


def shares(mixture: Mixture, points: Array) -> Array:
    """Class shares (R, K) of points (R, n, d), by the mixture's Bayes classifier; NaN for diverged rows."""
    out = np.full((len(points), len(mixture.means)), np.nan)
    for i, row in enumerate(points):
        if np.isfinite(row).all():
            out[i] = np.bincount(labels(mixture, row), minlength=out.shape[1]) / len(row)
    return out


def labels(mixture: Mixture, points: Array) -> NDArray[np.int64]:
    """The most probable class (n,) of points (n, d)."""
    return np.asarray(mixture.responsibilities(points).argmax(1), dtype=np.int64)


def counts(wanted: Array, n: int) -> NDArray[np.int64]:
    """Whole numbers (K,) that sum to n, nearest to the shares ``wanted`` (largest remainders)."""
    exact = np.asarray(wanted) * n
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: n - int(whole.sum())]] += 1
    return whole


def selector(learner: Any, mixture: Mixture, n: int) -> Callable[[Any, Array, Seed], Tensor]:
    """``(base, shares (R, K), seed) -> (R, n, d)``: samples of the base, selected by the classifier until each class
    has its share. Raises `InputError` for a class that the base does not make."""

    def draw(base: Any, wanted: Array, seed: Seed) -> Tensor:
        need = np.stack([counts(row, n) for row in np.broadcast_to(wanted, (learner.rows, wanted.shape[-1]))])
        kept: list[list[Tensor]] = [[] for _ in range(learner.rows)]
        for index in range(ROUNDS):
            pool = learner.sample(base, n, seed=seed.child("pool", index))
            for i, row in enumerate(pool):
                if not bool(torch.isfinite(row).all()):
                    kept[i], need[i] = [row], 0  # a diverged row stays one
                    continue
                label = labels(mixture, row.double().numpy())
                for k in np.flatnonzero(need[i]):
                    chosen = np.flatnonzero(label == k)[: need[i, k]]
                    kept[i].append(row[chosen])
                    need[i, k] -= len(chosen)
            if not need.any():
                return torch.stack([torch.cat(parts) for parts in kept])
        lacking = int(need.sum(0).argmax())
        raise InputError("target", f"class {lacking + 1}", f"the base makes too few of it in {ROUNDS * n} samples")

    return draw


def _distances(
    learner: NetworkLearner, mixture: Mixture, target: Sequence[float], points: Array, seed: Seed
) -> dict[str, Array]:
    """Sliced W2 to fresh points of the two mixtures, with their floors; rows of one stream share the real points."""
    size, directions = SLICED
    found: dict[str, Array] = {}
    for name, weights in (("target", tuple(target)), ("original", mixture.weights)):
        law = Mixture(mixture.means, mixture.std, weights)
        streams = {int(k): seed.child(name, int(k)) for k in np.unique(learner.streams)}
        reals = {k: law.sample(size, s.child("reference").numpy())[0] for k, s in streams.items()}
        others = {k: law.sample(size, s.child("floor").numpy())[0] for k, s in streams.items()}
        floors = {k: wasserstein.sliced(others[k], reals[k], directions=directions) for k in streams}
        found[f"floor_{name}"] = np.array([floors[int(k)] for k in learner.streams])
        found[f"sliced_{name}"] = np.array(
            [
                wasserstein.sliced(p[:size], reals[int(k)], directions=directions) if np.isfinite(p).all() else np.inf
                for p, k in zip(points, learner.streams, strict=True)
            ]
        )
    return found


def _within(mixture: Mixture, points: Array) -> dict[str, Array]:
    """Each class against its true component: W2 of the moments, displacement and covariance error, and outliers."""
    means, dim = np.asarray(mixture.means), len(mixture.means[0])
    rows, classes = len(points), len(means)
    out = {name: np.full((rows, classes), np.nan) for name in ("class_w2", "class_mean", "class_covariance")}
    outside = np.full(rows, np.nan)
    for i, row in enumerate(points):
        if not np.isfinite(row).all():
            continue
        label = labels(mixture, row)
        nearest = np.sqrt(((row[:, None] - means) ** 2).sum(-1)).min(1)
        outside[i] = (nearest > FAR * mixture.std).mean()
        for k in range(classes):
            mine = row[label == k]
            if len(mine) < 2:
                continue
            moments = Statistics.of_points(torch.from_numpy(mine)[None])
            true = Gaussian.single(means[k], mixture.std**2 * np.eye(dim))
            out["class_w2"][i, k] = float(w2_squared(Gaussian(moments.mean, moments.cov), true).sqrt())
            out["class_mean"][i, k] = float(torch.linalg.norm(moments.mean - true.mean))
            error = torch.linalg.norm(moments.cov - true.cov) / torch.linalg.norm(true.cov)
            out["class_covariance"][i, k] = float(error)
    return {**out, "outside": outside}
