"""Options of every study. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from sims_core.lab.bounds import at_least
from sims_core.lab.command import usual


@dataclass(frozen=True)
class RunOptions:
    """What every study takes besides its own options."""

    GROUP: ClassVar[str] = "run"
    seed: Annotated[int, at_least(0)] = 0
    """Every random draw follows from it."""
    workers: Annotated[int, at_least(0), usual("one per core", "INT")] = 0
    """Processes, one thread each. Does not change the result."""
    chunk: Annotated[int, at_least(0), usual("the learner's own", "INT")] = 0
    """Loops per piece of work. Does not change the result."""
    scheduler: Annotated[str, usual("none")] = ""
    """Address of a Dask cluster that does the work (extra 'cluster'). Does not change the result."""
    out: Annotated[str, usual("runs/<command>-<hash of the settings>")] = ""
    """Run folder. The same command resumes a run that was stopped."""
    dry_run: Annotated[bool, "flag"] = False
    """Print the plan and what it will cost, and stop."""
