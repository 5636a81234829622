"""Architecture and training of normalizing flows, as options. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from sims_core.errors import choose
from sims_toy.networks.settings import check_pace, paced

if TYPE_CHECKING:
    from sims_toy.networks.schedule import Training


@dataclass(frozen=True)
class FlowSettings:
    """Architecture and training of the normalizing flows of a study (`--flow.NAME`).

    The defaults were chosen by the first round's held-out likelihood on eight Gaussians and two moons.
    """

    kind: Literal["spline", "coupling"] = "spline"
    """spline (autoregressive rational-quadratic, NSF) or coupling (affine, RealNVP)."""
    transforms: int = 3
    """Transformations, one after another."""
    bins: int = 8
    """Bins of each spline."""
    width: int = 24
    """Units a hidden layer of the networks that set the transformations."""
    layers: int = 2
    """Their hidden layers."""
    steps: int = 1500
    """Adam steps of a base."""
    batch: int = 256
    """Rows a step; 0 is the whole data set."""
    rate: float = 1e-2
    """Peak learning rate of a base."""
    decay: Literal["cosine", "linear", "constant"] = "cosine"
    """cosine, linear or constant, down to 0."""
    auxiliary_rate: float = 1e-3
    """Peak learning rate of an auxiliary's fine-tuning."""
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
        check_pace(self, "flow", transforms=1, bins=2)
        choose("flow.kind", self.kind, ("spline", "coupling"))

    def training(self, points: int, budget: float | None = None, *, warm: bool = False) -> Training:
        """As `NetworkSettings.training`."""
        return paced(self, points, budget, warm=warm)


def flow_words(f: dict[str, Any]) -> str:
    """How flows are built and trained, for captions."""
    bins = f" of {f['bins']} bins" if f["kind"] == "spline" else ""
    return (
        f"{f['transforms']} {f['kind']} transformations{bins} by {f['layers']} x {f['width']} networks, {f['steps']} "
        f"Adam steps of {f['batch'] or 'all'} rows from {f['start']}, rate {f['rate']:g}, "
        f"auxiliary {f['auxiliary_rate']:g}"
    )
