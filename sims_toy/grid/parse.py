"""Options of a grid, from text to values; what cannot be run is refused here, before anything is written."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Sized
from dataclasses import replace
from typing import Any

import numpy as np

from sims_core.devices import present
from sims_core.errors import InputError, choose, extra
from sims_core.lab.grids import parse_budget, parse_grid
from sims_toy.correction import power_law
from sims_toy.flows.settings import FlowSettings
from sims_toy.gaussian import Gaussian
from sims_toy.networks.ensemble import numba_available
from sims_toy.networks.settings import NetworkSettings

#: beyond it every model has long diverged, and figures overflow
MOST_OMEGA = 1e6


def settle(network: NetworkSettings) -> NetworkSettings:
    """The settings with the backend that 'auto' stands for here, since it is recorded.

    Raises `InputError` for a device, or compiled networks, that are not to be had.
    """
    network.check_target()
    on_cpu = present("network.device", network.device).type == "cpu"
    if network.backend == "numba" and not on_cpu:
        raise InputError("network.backend", "numba", "compiled networks run on the CPU; use torch, or auto")
    if network.backend == "numba" and not numba_available():
        raise InputError("network.backend", "numba", f"numba is not installed, or not for here: {extra('fast')}")
    if network.target == "ot" and network.backend == "auto":
        return replace(network, backend="torch")  # the kernel solves no transport
    if network.backend != "auto":
        return network
    return replace(network, backend="numba" if on_cpu and numba_available() else "torch")


def trained(learner: str, network: NetworkSettings, flow: FlowSettings) -> NetworkSettings | FlowSettings | None:
    """The settings by which a learner trains, as they are run and recorded; None of the exact learner.

    Flow matching's networks are velocities, whatever score networks predict. Raises `InputError` for a missing extra
    and for noise-predicting networks.
    """
    if learner == "network":
        return settle(network)
    if learner == "flow-matching":
        if network.parametrisation == "epsilon":
            raise InputError("network.parametrisation", "epsilon", "flow matching learns velocities: leave it out")
        return settle(replace(network, parametrisation="velocity"))
    if learner == "flow" and importlib.util.find_spec("zuko") is None:
        raise InputError("learner", "flow", f"zuko is not installed: {extra('flows')}")
    return flow if learner == "flow" else None


def read_gaussian(real_mean: str, real_covariance: str) -> tuple[list[float], list[list[float]]]:
    """The real Gaussian's mean and covariance, as --real-mean and --real-covariance write them.

    A mean of zeros is one of as many as a power law has modes.
    """
    mean, covariance = _numbers("real_mean", real_mean), _rows(real_covariance)
    if real_covariance.startswith("power") and not any(mean):
        mean = [0.0] * len(covariance)
    try:
        Gaussian.single(mean, covariance)
    except InputError as error:
        name, text = ("real_mean", real_mean) if error.argument == "mean" else ("real_covariance", real_covariance)
        raise InputError(name, text, error.expected) from None
    except ValueError:
        raise InputError("real_covariance", real_covariance, "every row needs the same number of entries") from None
    return mean, covariance


def _rows(text: str) -> list[list[float]]:
    """A covariance's rows, separated by ';', or the `power_law` of ``power:K`` or ``power:K:A``."""
    if not text.startswith("power"):
        return [_numbers("real_covariance", row) for row in text.split(";")]
    found = re.fullmatch(r"power:([1-9][0-9]{0,2})(?::([0-9](?:\.[0-9]+)?))?", text)
    if not found:
        expected = "write power:K with 1 to 999 modes, or power:K:A with an exponent A below 10, such as power:64:1.5"
        raise InputError("real_covariance", text, expected)
    exponent = {} if found[2] is None else {"exponent": float(found[2])}
    return np.diag(power_law(int(found[1]), **exponent)).tolist()  # type: ignore[no-any-return]


def law_text(settings: dict[str, Any]) -> tuple[str, str]:
    """The real Gaussian's mean and covariance for a caption, shortened beyond four dimensions."""
    mean, cov = settings["real_mean"], settings["real_covariance"]
    if len(mean) <= 4:
        return ", ".join(f"{v:g}" for v in mean), "; ".join(", ".join(f"{v:g}" for v in row) for row in cov)
    values = np.linalg.eigvalsh(cov)
    length = float(np.linalg.norm(mean))
    return f"{len(mean)} numbers of length {length:.3g}", f"eigenvalues {values[0]:.3g} to {values[-1]:.3g}"


def at_most_cells(*axes: Sized) -> None:
    """Raise `InputError` for axes whose product is more cells than a run can have, before they are made."""
    lengths = [len(axis) for axis in axes if len(axis) > 1]
    if math.prod(lengths) > 1_000_000:
        size = " x ".join(map(str, lengths))
        raise InputError("grid", f"{size} cells", "a run has at most 1,000,000; use larger steps")


def items(argument: str, text: str) -> list[str]:
    """The distinct parts of a list with commas, at least one."""
    parts = [p.strip() for p in text.split(",") if p.strip()]
    if not parts:
        raise InputError(argument, text, "give at least one")
    return list(dict.fromkeys(parts))


def names(argument: str, text: str, known: Any) -> list[str]:
    """The parts of a list with commas, each of them known."""
    return [choose(argument, p, known) for p in items(argument, text)]


def sizes(argument: str, text: str) -> list[int]:
    """Sizes of data sets: a grid of whole numbers from 1 up."""
    return [int(v) for v in parse_grid(argument, text, low=1, high=1e12, integer=True)]


def _numbers(argument: str, text: str) -> list[float]:
    return [v for part in text.split(",") for v in parse_grid(argument, part)]


def budgets_of(text: str, learner: str) -> list[str]:
    """Budgets as text, since '0.3' and '50k' are of different kinds; the learner takes one kind only."""
    if ":" in text and learner == "exact":
        return [f"{v:g}" for v in parse_grid("budget", text, low=0, high=1)]
    words = {"exact": "the exact learner takes eta in [0, 1], how far the auxiliary moves to its data"}.get(
        learner, "trained models take samples seen, with a unit (25.6k); eta in [0, 1] is for `learner` exact"
    )
    budgets = [parse_budget("budget", part, expected=words) for part in items("budget", text)]
    for budget in budgets:
        if learner == "exact" and budget.unit != "eta":
            raise InputError("budget", budget.text, words)
        if learner != "exact" and (budget.unit != "samples" or not budget.value):
            raise InputError("budget", budget.text, words)
    return [b.text for b in budgets]
