"""The study of bias as rows that any worker does in any order, kept in the run folder one by one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sims_core.lab.options import RunOptions
from sims_core.lab.study import Frames, Study

if TYPE_CHECKING:
    import pandas as pd

    from sims_core.lab.runs import RunFolder

Row = tuple[str, str]
"""Kind (exact, features or networks) and text."""


def parse_exact(text: str) -> str:
    """An exact row ``ESTIMATOR[@SAMPLER]`` in its one spelling. Raises `InputError` naming `exact`."""
    from sims_core.sampling import Sampler
    from sims_toy.estimators import Estimator

    name, at, sampler = text.partition("@")
    return f"{Estimator.parse(name, argument='exact')}{at}{Sampler.parse(sampler, argument='exact') if at else ''}"


def records(settings: Mapping[str, Any], row: Row) -> pd.DataFrame:
    """The values of a row."""
    import pandas as pd

    from sims_core.seeds import Seed
    from sims_toy.bias import rows
    from sims_toy.bias.cells import Capacity, Cell
    from sims_toy.networks.settings import NetworkSettings

    kind, text = row
    common: dict[str, Any] = {"omegas": settings["omega"], "seed": Seed(settings["seed"]).child(kind, text)}
    if kind == "exact":
        found = rows.exact(text, **common)
    elif kind == "features":
        found = rows.features(Capacity.parse(text), trials=settings["trials"], **common)
    else:
        here = {name: settings[name] for name in ("sampler", "trials", "points")}
        found = rows.networks(Cell.parse(text), network=NetworkSettings(**settings["network"]), **here, **common)
    return pd.DataFrame(found).assign(kind=kind, row=text)


@dataclass(frozen=True)
class BiasStudy(Study):
    """See `sims_toy.bias`."""

    @property
    def rows(self) -> list[Row]:
        """The longest kind first: workers then end together."""
        return [(kind, text) for kind in ("networks", "features", "exact") for text in self.settings[kind]]

    def compute(self, folder: RunFolder, options: RunOptions, *, progress: bool) -> Frames:
        """Run the rows that the folder does not have."""
        import joblib
        import pandas as pd
        from tqdm import tqdm

        from sims_core.lab.pool import each
        from sims_core.seeds import Seed
        from sims_toy.bias import tables
        from sims_toy.bias.separation import separation

        def row_of(frame: pd.DataFrame) -> Row:
            return str(frame["kind"].iloc[0]), str(frame["row"].iloc[0])

        done = {row_of(frame): frame for frame in folder.pieces(".parquet", pd.read_parquet, "row-")}
        left = [row for row in self.rows if row not in done]
        jobs = each(
            partial(records, self.settings), left, options.workers or int(joblib.cpu_count()), options.scheduler
        )
        for frame in tqdm(jobs, total=len(left), unit="row", desc="bias", disable=not progress):
            row = row_of(frame)
            folder.shard(f"row-{self.rows.index(row):04d}.parquet", partial(frame.to_parquet, index=False))
            done[row] = frame
        values = pd.concat([done[row] for row in self.rows], ignore_index=True)
        return {**tables.make(values, self.settings), "separation": separation(Seed(self.settings["seed"]))}

    def cost(self, *, estimate: bool) -> list[tuple[str, str]]:
        """The rows by kind and, with ``estimate``, the time of one core from one base of the smallest row of a kind."""
        counts = ", ".join(f"{len(self.settings[k])} {k}" for k in ("exact", "features", "networks"))
        lines = [("rows", f"{counts}; {self.settings['trials']} bases per row of features and networks")]
        if estimate:
            lines.append(("estimate", f"about {max(1, round(self._seconds() / 60))} min of one core, on this machine"))
        return lines

    def _seconds(self) -> float:
        """CPU-seconds: a short base of each kind, scaled by its training and sampling."""
        from sims_toy.bias.cells import Cell

        total = 0.0
        few = {**self.settings, "trials": 2, "omega": [1.0]}
        for kind in ("exact", "features"):
            if self.settings[kind]:
                started = time.process_time()
                records({**few, "trials": 1} if kind == "features" else few, (kind, self.settings[kind][0]))
                each = time.process_time() - started
                total += each * len(self.settings[kind]) * (self.settings["trials"] if kind == "features" else 2)
        cells = [Cell.parse(text) for text in self.settings["networks"]]
        if cells:
            probe = Cell("gaussians:8:0.16", 16, 200, 20_000)
            records({**few, "points": 1000}, ("networks", str(probe)))  # compiles, and makes the truth
            small = BiasStudy(self.command, {**few, "points": 20_000}, draw=self.draw, words=self.words)
            started = time.process_time()
            records(small.settings, ("networks", str(probe)))
            each = (time.process_time() - started) / 2 / small._work(probe)
            total += sum(each * self._work(cell) * self.settings["trials"] for cell in cells)
        return total

    def _work(self, cell: Any) -> float:
        """What a base of a cell takes, in units that training and sampling share (a sample of training costs three)."""
        from sims_toy.networks.mlp import Mlp

        size, wider = (Mlp(2, (w, w)).size for w in (cell.width, 2 * cell.width))
        networks = 14 + 5 * len(self.settings["omega"])  # of the measured models, with their steps
        sampled = 63 * (self.settings["points"] * networks + 6 * cell.synthetic)
        own = (sampled + 3 * 1024 * 5 * cell.steps) * (200 + size)
        return float(own + 63 * self.settings["points"] * (200 + wider))
