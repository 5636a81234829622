"""Architecture and training of small score networks, as options. No heavy imports."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sims_core.errors import InputError, choose

if TYPE_CHECKING:
    from sims_toy.networks.schedule import Training


@dataclass(frozen=True)
class Pace:
    """What the settings of every trained model share: its size, how long and how fast it trains.

    `PREFIX` is their name on the command line.
    """

    PREFIX: ClassVar[str]
    LEAST: ClassVar[dict[str, int]] = {}
    """The least values of whole numbers that only this kind of model has."""

    width: int = 32
    """Units per hidden layer."""
    layers: int = 2
    """Hidden layers."""
    steps: int = 400
    """Adam steps of a base."""
    batch: int = 64
    """Batch size; 0 is the whole data set."""
    rate: float = 2e-2
    """Peak learning rate of a base."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """cosine, linear or constant, down to 0."""
    auxiliary_rate: float = 2e-3
    """Peak learning rate of an auxiliary's fine-tuning (a tenth of the base's, as in Neon's toy: it starts warm)."""
    ema: float = 0.15
    """Half-life of the weights' average, as a share of the samples that the training sees; 0 is the last weights."""
    start: Literal["scratch", "warm"] = "scratch"
    """How a generation's base starts: scratch, or warm from the previous generation's base."""
    warm_steps: int = 0
    """Adam steps of a base that starts warm; 0 is as many as from scratch."""
    warm_rate: float = 0
    """Peak learning rate of a base that starts warm; 0 is the rate from scratch."""
    other_width: int = 0
    """Width of the second architecture (autoguidance's guide, the 'rebuilt' auxiliary); 0 is the base's."""

    def __post_init__(self) -> None:
        def check(name: str, right: bool, expected: str) -> None:
            if not right:
                raise InputError(f"{self.PREFIX}.{name}", getattr(self, name), expected)

        whole = {"width": 1, "layers": 1, "steps": 1, "batch": 0, "other_width": 0, "warm_steps": 0}
        for name, low in (whole | self.LEAST).items():
            check(name, getattr(self, name) >= low, f"give a whole number of at least {low}")
        check("ema", 0 <= self.ema < 1, "give a share of the training in [0, 1), such as 0.15")
        for name in ("rate", "auxiliary_rate"):
            check(name, 0 < getattr(self, name) < math.inf, "give a positive number")
        check("warm_rate", 0 <= self.warm_rate < math.inf, "give a positive number, or 0 for the base's rate")
        choose(f"{self.PREFIX}.decay", self.decay, ("cosine", "linear", "constant"))
        choose(f"{self.PREFIX}.start", self.start, ("scratch", "warm"))

    def record(self) -> dict[str, Any]:
        """What a run writes down of them."""
        return asdict(self)

    def training(self, points: int, budget: float | None = None, *, warm: bool = False) -> Training:
        """Settings of a base (budget None), or of an auxiliary for ``budget`` samples seen, on ``points`` points.

        warm: of a base that starts from another one.
        """
        from sims_toy.networks.schedule import Schedule, Training

        rows = min(self.batch or points, points)
        base = (self.warm_steps or self.steps, self.warm_rate or self.rate) if warm else (self.steps, self.rate)
        steps, peak = base if budget is None else (max(1, round(budget / rows)), self.auxiliary_rate)
        warmup = 0 if self.decay == "constant" else min(10, steps // 2)
        schedule = Schedule(peak, warmup, self.decay)
        return Training(steps=steps, batch=rows, schedule=schedule, ema_halflife=self.ema * steps * rows or None)


@dataclass(frozen=True)
class NetworkSettings(Pace):
    """Architecture and training of the networks of a sweep (`--network.NAME`).

    The defaults were chosen by one figure, the distance of a trained network from the maximum-likelihood fit of its
    1,000 points (root mean square .010), and by the auxiliary's from its own; never by what a loop then does.
    """

    PREFIX = "network"

    activation: Literal["silu", "relu"] = "silu"
    """silu or relu."""
    parametrisation: Literal["edm", "epsilon", "velocity"] = "edm"
    """edm, epsilon (noise prediction on the cosine schedule of 1000 steps), or velocity (flow matching)."""
    target: Literal["posterior", "plain", "ot"] = "posterior"
    """posterior (stable target field, over the whole data set), plain denoising score matching, or, of velocities, ot
    (OT-CFM: plain, with a step's noise and data paired by exact optimal transport)."""
    draws: Literal["random", "quasi"] = "random"
    """Of data points, noise levels and noise: random, or quasi (one randomly shifted Sobol sequence, with which a third
    fewer steps come as near to the fit)."""
    linear_first: bool = False
    """No activation after the first layer, as in Neon's published toy."""
    backend: Literal["auto", "numba", "torch"] = "auto"
    """numba (compiled, extra 'fast'), torch, or auto: numba where it can be used. Recorded, as it changes rounding."""
    device: str = "cpu"
    """cpu, cuda or cuda:N. Recorded, as the backend. On one GPU give --workers 1 and a large --chunk."""
    time: Literal["matched", "sampler"] = "matched"
    """Epsilon-prediction's time input when sampling: matched to training, or sampler (t / (N - 1) of the sampler's
    N-step grid, Neon's published mismatch)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("network.activation", self.activation, ("silu", "relu"))
        choose("network.parametrisation", self.parametrisation, ("edm", "epsilon", "velocity"))
        choose("network.target", self.target, ("posterior", "plain", "ot"))
        choose("network.draws", self.draws, ("random", "quasi"))
        choose("network.backend", self.backend, ("auto", "numba", "torch"))
        choose("network.time", self.time, ("matched", "sampler"))

    def record(self) -> dict[str, Any]:
        """As `Pace.record`; random draws go unsaid, as before there were others: such runs are found again."""
        found = super().record()
        return found if self.draws != "random" else {name: v for name, v in found.items() if name != "draws"}

    def check_target(self) -> None:
        """Raise `InputError` for a target that the parametrisation does not have."""
        if self.target == "ot" and self.parametrisation != "velocity":
            expected = "it couples the ends of a flow: say velocity in `network.parametrisation`"
            raise InputError("network.target", "ot", expected)

    def training(self, points: int, budget: float | None = None, *, warm: bool = False) -> Training:
        """As `Pace.training`, with the noise and the target of the parametrisation."""
        from sims_toy.networks.targets import PARAMETRISATIONS

        return replace(
            super().training(points, budget, warm=warm),
            target=self.target,
            noise=PARAMETRISATIONS[self.parametrisation][1],
            stratified=self.parametrisation != "epsilon",
            quasi=self.draws == "quasi",
        )


def unusual(network: dict[str, Any], told: Collection[str]) -> str:
    """For captions: the settings in ``network`` besides those ``told`` that are not the usual ones, each after a comma.

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
