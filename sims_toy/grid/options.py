"""Options of every command of this scale. No heavy imports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from sims_core.errors import InputError


@dataclass(frozen=True)
class RunOptions:
    """What every command takes besides its own options."""

    seed: int = 0
    """Every random draw follows from it."""
    workers: int = 0
    """Processes, one thread each; 0 is one a core. Does not change the result."""
    chunk: int = 0
    """Loops a piece of work; 0 is the learner's own. Does not change the result."""
    scheduler: str = ""
    """Address of a Dask cluster that does the work (extra 'cluster'). Does not change the result."""
    out: str = ""
    """Run folder; default runs/<command>-<hash of the settings>. The same command resumes a run that was stopped."""
    dry_run: Annotated[bool, "flag"] = False
    """Print the plan and what it will cost, and stop."""

    def check(self) -> None:
        """Raise `InputError` for numbers that cannot be."""
        for name in ("seed", "workers", "chunk"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name}", getattr(self, name), "give a whole number of at least 0")
