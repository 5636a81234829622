"""The rows of the study, by their texts: which are run, and which are held out of everything that was chosen."""

from __future__ import annotations

from dataclasses import dataclass

from sims_core.errors import InputError
from sims_core.lab.grids import parse_grid
from sims_toy.networks.settings import NetworkSettings


@dataclass(frozen=True)
class Cell:
    """Circumstances of trained networks.

    data: by name (`sims_toy.datasets`). width: units of each of two hidden layers. steps: Adam steps of the base, a
    half of which the auxiliary takes. synthetic: n_s, the base's own samples that the auxiliary is trained on.
    """

    data: str
    width: int = 16
    steps: int = 6000
    synthetic: int = 200_000

    @classmethod
    def parse(cls, text: str) -> Cell:
        """Read ``data[/width[/steps[/synthetic]]]``. Raises `InputError` naming `networks` for anything else."""
        from sims_toy.datasets import parse_real

        data, *rest = text.strip().split("/")
        try:
            numbers = [int(parse_grid("networks", r, low=1, high=1e7, integer=True)[0]) for r in rest]
        except InputError as error:
            raise InputError("networks", text, f"write data/width/steps/synthetic, {error.expected}") from None
        if len(numbers) > 3:
            raise InputError("networks", text, "write data/width/steps/synthetic, such as spiral/16/6000/200000")
        cell = cls(data, *numbers)
        if cell.steps < 20 or cell.synthetic < 100 or cell.width > 1024:
            raise InputError("networks", text, "width up to 1024, at least 20 steps and 100 synthetic points")
        parse_real(data, argument="networks")
        return cell

    def __str__(self) -> str:
        """``data/width/steps/synthetic``."""
        return f"{self.data}/{self.width}/{self.steps}/{self.synthetic}"


#: How every network is trained. The rate was chosen by the bases' denoising loss (of .003, .01 and .03, three networks
#: of width 16 on eight Gaussians and of 32 on the spiral); the auxiliary's is a tenth of it, as in `NetworkSettings`.
TRAINING = NetworkSettings(batch=1024, rate=1e-2, auxiliary_rate=1e-3, target="plain", ema=0.1)

#: Cells that nothing was chosen on: other data sets, another width, another dimension. They were written down, with
#: the rule below, before any cell of the study was run; then they were predicted, and run.
HELD_OUT = (Cell("pinwheel"), Cell("swissroll"), Cell("gaussians:8:0.16", width=24), Cell("cube:3"))

#: The rule, at omega = 1. The prediction: from the base's samples, the auxiliary's and real ones, with e the base's
#: error, d the auxiliary's drift from it and their cosine c in the space of sliced distribution functions, the share
#: of |e|^2 that is left is 1 - 2 c |d|/|e| + (|d|/|e|)^2. A hit of size: the share that is found (mean over bases) lies
#: within `TOLERANCE` of the predicted one. A hit of sign: SIMS is predicted to help where the predicted share is below
#: `HELPS`, and is found to help where the interval of its sliced W2 less the base's, paired over bases, is below zero.
TOLERANCE = 0.2
HELPS = 0.9


@dataclass(frozen=True)
class Capacity:
    """A score linear in ``count`` random features: at its optimum, with a ridge, or stopped early."""

    count: int
    ridge: float = 1e-9
    time: float = 0.0
    warm: bool = False

    @classmethod
    def parse(cls, text: str) -> Capacity:
        """Read ``K``, ``K:ridge:L`` or ``K:early:T[:warm]``. Raises `InputError` naming `features` otherwise."""
        expected = "write K, K:ridge:L or K:early:T[:warm], such as 64 or 128:early:1000"
        count, *rest = text.strip().split(":")
        warm = rest[2:] == ["warm"]
        known = not rest or (rest[0] in ("ridge", "early") and (len(rest) == 2 or (warm and rest[0] == "early")))
        if not known:
            raise InputError("features", text, expected)
        try:
            number = int(parse_grid("features", count, low=2, high=1024, integer=True)[0])
            value = parse_grid("features", rest[1], low=1e-12, high=1e9)[0] if rest else 0.0
        except InputError as error:
            raise InputError("features", text, f"{expected}; {error.expected}") from None
        if not rest:
            return cls(number)
        return cls(number, ridge=value) if rest[0] == "ridge" else cls(number, time=value, warm=warm)

    def __str__(self) -> str:
        if self.time:
            return f"{self.count}:early:{self.time:g}{':warm' * self.warm}"
        return str(self.count) if self.ridge == 1e-9 else f"{self.count}:ridge:{self.ridge:g}"
