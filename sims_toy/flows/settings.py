"""Architecture and training of normalizing flows, as options. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sims_core.errors import choose
from sims_toy.networks.settings import Pace


@dataclass(frozen=True)
class FlowSettings(Pace):
    """Architecture and training of the normalizing flows of a study (`--flow.NAME`).

    The defaults were chosen by the first round's held-out likelihood on eight Gaussians and two moons.
    """

    PREFIX = "flow"
    LEAST: ClassVar[dict[str, int]] = {"transforms": 1, "bins": 2}

    kind: Literal["spline", "coupling"] = "spline"
    """spline (autoregressive rational-quadratic, NSF) or coupling (affine, RealNVP)."""
    transforms: int = 3
    """Transformations, one after another."""
    bins: int = 8
    """Bins of each spline."""
    width: int = 24
    """Units per hidden layer of the networks that set the transformations."""
    steps: int = 1500
    """Adam steps of a base."""
    batch: int = 256
    """Batch size; 0 is the whole data set."""
    rate: float = 1e-2
    """Peak learning rate of a base."""
    auxiliary_rate: float = 1e-3
    """Peak learning rate of an auxiliary's fine-tuning."""

    def __post_init__(self) -> None:
        super().__post_init__()
        choose("flow.kind", self.kind, ("spline", "coupling"))


def flow_words(f: dict[str, Any]) -> str:
    """How flows are built and trained, for captions."""
    bins = f" of {f['bins']} bins" if f["kind"] == "spline" else ""
    return (
        f"{f['transforms']} {f['kind']} transformations{bins} by {f['layers']} x {f['width']} networks, {f['steps']} "
        f"Adam steps of {f['batch'] or 'all'} rows from {f['start']}, rate {f['rate']:g}, "
        f"auxiliary {f['auxiliary_rate']:g}"
    )
