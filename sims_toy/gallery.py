"""Committed figures of this scale, drawn again from the tables beside them: no run, no trial, the same pictures."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from sims_core.errors import InputError
from sims_core.lab.command import parse_command
from sims_core.lab.gallery import Figure, entry
from sims_core.lab.runs import write_atomic
from sims_core.lab.style import only
from sims_toy.studies import options_of

if TYPE_CHECKING:
    import pandas as pd

    from sims_core.lab.study import Result
    from sims_toy.grid.study import GridStudy


@dataclass(frozen=True)
class Committed:
    """A study's committed tables by their name in a run folder, with the study and settings that made them."""

    entry: Figure
    study: GridStudy
    tables: dict[str, pd.DataFrame]

    @property
    def settings(self) -> dict[str, Any]:
        """The study's settings."""
        return self.study.settings

    @property
    def words(self) -> str:
        """What the command printed of these tables."""
        return self.study.words(self.tables, self.settings)

    def draw(self, folder: Path | str) -> list[Path]:
        """Draw the committed pictures into ``folder`` under their committed names; returns the paths."""
        folder = Path(folder)
        with TemporaryDirectory() as scratch, only(self.entry.pictures.values()):
            drawn = {path.name: path for path in self.study.draw(self.tables, self.settings, Path(scratch))}
            paths = []
            for name, made in self.entry.pictures.items():
                content = drawn[made].read_bytes()
                write_atomic(folder / name, lambda path, c=content: path.write_bytes(c))  # type: ignore[misc]
                paths.append(folder / name)
        return paths


def keep(result: Result, names: Mapping[str, str], folder: Path | str) -> list[Path]:
    """Copy a run's pictures into ``folder`` under other names: ``{"phase_diagram": "lambda_phase"}``; the paths.

    Raises `InputError` for a picture that the run does not have.
    """
    paths = []
    for stem, name in names.items():
        found = [path for path in result.figures if path.stem == stem]
        if not found:
            raise InputError("picture", stem, f"the run has {', '.join(sorted({p.stem for p in result.figures}))}")
        for path in found:
            content = path.read_bytes()
            paths.append(Path(folder) / f"{name}{path.suffix}")
            write_atomic(paths[-1], lambda there, c=content: there.write_bytes(c))  # type: ignore[misc]
    return paths


def load(name: str, folder: Path | str = "figures") -> Committed:
    """The committed tables of a figure of `figures.json`, and what they were made with, read off its command.

    Tables that follow from the settings alone (a sweep's theory and boundaries) are computed again. Raises
    `InputError` for an unknown name, a figure of another scale, or tables that the command does not give.
    """
    import pandas as pd

    folder = Path(folder)
    found = entry(folder, name)
    study = _study(found)
    tables = {}
    for file, made in found.tables.items():
        read = pd.read_parquet if file.endswith(".parquet") else pd.read_csv
        tables[Path(made).stem] = read(folder / file)
    if study.command == "sweep":
        tables = _sweep(tables, study, name)
    return Committed(found, study, tables)


def _study(found: Figure) -> GridStudy:
    words = shlex.split(found.command)
    if words[:2] != ["python", "-m"] or not words[2].startswith("sims_toy."):
        raise InputError("figure", found.name, "it is not made by a command of sims_toy")
    module = import_module(words[2])
    cls = options_of(words[2].partition(".")[2])
    options = parse_command(cls, words[3:], prog=words[2], description="", presets=module.PRESETS)
    study: GridStudy = module.plan(options)
    return replace(study, settings={**study.settings, **found.settings})


def _sweep(tables: dict[str, pd.DataFrame], study: GridStudy, name: str) -> dict[str, pd.DataFrame]:
    """A sweep's tables in full; those of before an axis existed get its one value."""
    import pandas as pd

    from sims_toy.sweep.laws import theory_tables

    settings = study.settings
    missing = {"temperature": 1.0, "pollution": 0, "real": settings["real"], "estimator": "mle"}
    for key, table in tables.items():
        filled = table.assign(**{k: v for k, v in missing.items() if k not in table})
        tables[key] = filled.assign(auxiliary_data=filled["auxiliary_data"].fillna("none"), budget=_budgets(filled))
    regimes = tables["regimes"]
    mine = regimes[(regimes["learner"] == settings["learner"]) & (regimes["method"] == "standard")]
    if int(mine["trials"].max()) != settings["trials"]:
        expected = f"its tables hold {mine['trials'].max()} trials and its command in figures.json {settings['trials']}"
        raise InputError("figure", name, expected)
    exact = [part for part in study.parts.values() if part.cells[0].learner == "exact"]
    theory, boundaries = theory_tables(exact[0] if exact else None, settings)
    empty = pd.DataFrame(columns=["method", "generation"])
    return {"sweep": tables.get("sweep", empty), "regimes": regimes, "theory": theory, "boundaries": boundaries}


def _budgets(table: pd.DataFrame) -> pd.Series:
    """Budgets as the text that they are in a run ('0', '1', '25.6k'), whatever a CSV reader made of them."""
    return table["budget"].map(lambda b: f"{b:g}" if isinstance(b, int | float) else str(b))
