"""Options of every study. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sims_core.lab.bounds import at_least


@dataclass(frozen=True)
class RunOptions:
    """What every study takes besides its own options."""

    seed: Annotated[int, at_least(0)] = 0
    """Every random draw follows from it."""
    workers: Annotated[int, at_least(0)] = 0
    """Processes, one thread each; 0 is one a core. Does not change the result."""
    chunk: Annotated[int, at_least(0)] = 0
    """Loops a piece of work; 0 is the learner's own. Does not change the result."""
    scheduler: str = ""
    """Address of a Dask cluster that does the work (extra 'cluster'). Does not change the result."""
    out: str = ""
    """Run folder; default runs/<command>-<hash of the settings>. The same command resumes a run that was stopped."""
    dry_run: Annotated[bool, "flag"] = False
    """Print the plan and what it will cost, and stop."""
