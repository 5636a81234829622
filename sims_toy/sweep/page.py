"""What is interactive on a sweep's page; ``python -m sims_toy.page RUN`` writes RUN/report.html again.

The tables as JSON, a stylesheet and a small script (`page.html` beside this module), within the page of every study.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sims_core.algorithm import METHODS
from sims_core.errors import InputError
from sims_core.lab.command import about_options, parse_command
from sims_core.lab.report import Section
from sims_core.lab.runs import parse_json
from sims_core.lab.study import title_of, write_page
from sims_core.lab.style import METHOD, REGIME, sequence
from sims_toy.sweep.captions import caption
from sims_toy.sweep.ellipses import ellipses, real_ellipse
from sims_toy.sweep.options import Sweep
from sims_toy.sweep.report import MOST_FACETS, ahead, words

#: Axes on which a view of the page holds one value.
VIEW = [
    "learner", "method", "auxiliary_data", "loop", "sampler", "real_size", "budget", "aux", "temperature", "pollution",
    "estimator",
]  # fmt: skip
#: What standard training and its controls share with a view that they are drawn alongside.
_BESIDE = ["learner", "loop", "real_size", "temperature", "pollution", "estimator"]
_CURVES = {"w2": "w2_mean", "own": "ratio_own", "standard": "ratio_standard"}
_LABEL = {"strong": "strong mitigation", "weak": "weak mitigation"}
_MISSING: dict[str, Any] = {"temperature": 1.0, "pollution": 0, "real": "gaussian", "estimator": "mle"}
#: Generations a curve keeps at most: more would not be seen.
POINTS = 200
#: What a sweep's words mean, besides those of every page.
TERMS = {
    "d_t(ω), d_T": "mean distance at generation t with guidance ω; d_T is the mean of the last ten generations, or of "
    "the last half of fewer than twenty",
    "MAD": "d_T(ω) ≥ d_T(0): SIMS ends no nearer to the data than the loop without it",
    "weak, strong mitigation": "it ends nearer; and within 5 % of d_1(0), the first generation without SIMS",
    "prevention": "and within 5 % of d_1(ω), its own first generation: the loop costs nothing",
    "undecided, divergent": "the interval allows two of these; the distance passes ten times the data's spread",
}


@dataclass(frozen=True)
class Page:
    """Write report.html, the interactive page of a finished sweep, from its tables."""

    run: str = ""
    """The sweep's run folder."""


def rewrite(folder: str | Path) -> Path:
    """Write ``report.html`` of a finished sweep's run folder again and return its path.

    Raises `InputError` where the folder holds no finished sweep.
    """
    folder = Path(folder)
    try:
        settings = parse_json("run", str(folder), (folder / "settings.json").read_bytes())["settings"]
        frames = {n: pd.read_parquet(folder / f"{n}.parquet") for n in ("sweep", "regimes", "theory", "boundaries")}
        frames |= {path.stem: pd.read_parquet(path) for path in folder.glob("density.parquet")}
    except (OSError, ValueError, KeyError, TypeError):
        expected = "name the folder of a finished sweep (python -m sims_toy.sweep --out FOLDER)"
        raise InputError("run", str(folder), expected) from None
    title = title_of("sweep", Sweep)
    return write_page(folder, title, words(frames, settings), settings, view=[view(frames, settings)], terms=TERMS)


def view(frames: dict[str, pd.DataFrame], settings: dict[str, Any]) -> Section:
    """The phase diagram to point at, with what belongs to a cell."""
    return Section("", html=render(payload(frames, settings)))


def render(content: dict[str, Any]) -> str:
    """The interactive part as markup; content: what `payload` returns."""
    template = resources.files("sims_toy.sweep").joinpath("page.html").read_text(encoding="utf-8")
    # '<' as an escape, so that no text of the settings can close the script element
    data = json.dumps(content, allow_nan=False, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")
    return template.replace("/*DATA*/null", data)


def payload(frames: dict[str, pd.DataFrame], settings: dict[str, Any]) -> dict[str, Any]:
    """What the page shows, as JSON: its views (one combination of the axes besides omega and |D_s|), each with cells.

    frames: ``sweep``, ``regimes``, ``theory`` and ``boundaries`` of a run folder. A cell carries its regime, the
    interval of d_T / d_1(0), and its curves over generations with their intervals; non-finite numbers become null.
    """
    regimes, sweep = _complete(frames["regimes"], settings), _complete(frames["sweep"], settings)
    guided = regimes["method"].map(lambda m: m in METHODS and "omega" in METHODS[m].takes)
    shown = regimes[guided] if guided.any() else regimes
    keys = shown[VIEW].drop_duplicates()
    own = keys["learner"] == settings["learner"]
    keys = keys[own] if own.any() else keys  # the learner beneath is drawn as a line, not as a view of its own
    moving = [axis for axis in VIEW if keys[axis].nunique() > 1]
    curves = _curves(sweep)
    seen = keys.head(MOST_FACETS)
    plain = regimes[(regimes["method"] == "standard") & regimes["learner"].isin(keys["learner"])]
    drawn = pd.concat([shown.merge(seen, on=VIEW), plain]) if guided.any() else shown
    rows, told = ellipses(drawn, settings)
    shapes = dict(zip(map(_key, drawn.to_dict("records")), rows, strict=False))
    views = []
    for _, key in keys.iterrows():
        part = shown[(shown[VIEW] == key).all(axis=1)]
        beside = regimes[~guided & (regimes[_BESIDE] == key[_BESIDE]).all(axis=1)] if guided.any() else part.iloc[:0]
        beside = beside[beside["reference"] == key["sampler"]]
        text = caption(key.to_dict(), settings) if guided.any() else ""
        sizes = sorted(int(m) for m in part["synthetic_size"].unique())
        views.append(
            {
                "name": ", ".join(f"{_AXIS.get(a, a)} {key[a]}" for a in moving) or str(key["method"]),
                "method": key["method"],
                "caption": text,
                "sizes": [{"size": m, "colour": c} for m, c in zip(sizes, sequence(len(sizes)), strict=True)],
                "cells": [_cell(row, curves, shapes) for row in part.to_dict("records")],
                "beside": [_cell(row, curves, shapes) for row in beside.to_dict("records")],
                "beneath": _beneath(regimes, key) if guided.any() else [],
                "boundaries": _boundaries(frames["boundaries"], key, settings),
            }
        )
    return {
        "views": views,
        "shapes": told,
        "real": real_ellipse(settings) if rows else None,
        "regimes": {n: {"colour": c, "label": _LABEL.get(n, n)} for n, c in REGIME.items()},
        "methods": METHOD,
    }


_AXIS = {"auxiliary_data": "auxiliary on", "real_size": "|D_r|", "aux": "|D_aux|", "temperature": "sampling bias"}


def _complete(frame: pd.DataFrame, settings: dict[str, Any]) -> pd.DataFrame:
    """The table with the columns that shorter ones lack, and |D_aux| as 0 where it is |D_s|."""
    missing = {name: value for name, value in _MISSING.items() if name not in frame}
    aux = 0 if settings["auxiliary_size"] == "same" else frame["auxiliary_size"]
    return frame.assign(**missing, aux=aux).astype({"budget": str})


Curve = dict[str, Any]
"""A cell's generations ``t`` and its ``curves``, as the page takes them."""


def _curves(sweep: pd.DataFrame) -> dict[tuple[Any, ...], Curve]:
    """The curves of every cell by its axes, thinned to `POINTS` generations.

    Read from columns: a pandas row per cell and generation would take most of the page's time.
    """
    columns = [
        f"{stem}{end}" for name in _CURVES.values() for stem in (name, _stem(name)) for end in ("", "_low", "_high")
    ]
    columns = [c for c in dict.fromkeys(columns) if c in sweep]
    ordered = sweep.sort_values("generation", kind="stable")
    values = {c: ordered[c].to_numpy(dtype=float) for c in columns}
    generation = ordered["generation"].to_numpy()
    found = {}
    for key, rows in ordered.groupby([*VIEW, "synthetic_size", "omega"], sort=False).indices.items():
        keep = rows[np.unique(np.linspace(0, len(rows) - 1, min(len(rows), POINTS)).round().astype(int))]
        found[key] = {
            "t": generation[keep].tolist(),
            "curves": {
                name: [_numbers(values[c][keep]) for c in (column, f"{_stem(column)}_low", f"{_stem(column)}_high")]
                for name, column in _CURVES.items()
            },
        }
    return found


def _key(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[axis] for axis in (*VIEW, "synthetic_size", "omega"))


def _cell(
    row: dict[str, Any], curves: dict[tuple[Any, ...], Curve], shapes: dict[tuple[Any, ...], NDArray[np.float64]]
) -> dict[str, Any]:
    cell: dict[str, Any] = {
        "method": row["method"],
        "sampler": row["sampler"],
        "omega": float(row["omega"]),
        "size": int(row["synthetic_size"]),
        "nfe": int(row["nfe"]),
        "regime": row["regime"],
        "candidates": row["candidates"],
        "diverged": int(row["diverged"]),
        "trials": int(row["trials"]),
        "beaten": ahead(row),
    }
    for name in ("first", "standard", "own"):
        cell[name] = _numbers([row[name], row[f"{name}_low"], row[f"{name}_high"]])
    if _key(row) in shapes:
        cell["shape"] = [_numbers(one) for one in shapes[_key(row)]]
    return cell | curves.get(_key(row), {})


def _stem(column: str) -> str:
    return column.removesuffix("_mean")


def _beneath(regimes: pd.DataFrame, key: pd.Series) -> list[dict[str, Any]]:
    """d_T / d_1(0) of the exact learner's cells that lie beneath a view of networks."""
    if key["learner"] == "exact":
        return []
    same = [axis for axis in VIEW if axis not in ("learner", "budget")]  # the exact learner's budget is an eta
    part = regimes[(regimes["learner"] == "exact") & (regimes[same] == key[same]).all(axis=1)]
    return [
        {"omega": float(row["omega"]), "size": int(row["synthetic_size"]), "standard": _number(row["standard"])}
        for _, row in part.sort_values("omega").iterrows()
    ]


def _boundaries(edges: pd.DataFrame, key: pd.Series, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The closed-form boundaries of a view as lines: points (omega, |D_s|), thinned to those inside the axes."""
    if edges.empty:
        return []
    axes = ["method", "loop", "sampler", "real_size", "aux", "auxiliary_data", "temperature", "pollution", "estimator"]
    axes = [a for a in axes if a in edges and a in key]
    mine = edges[(edges[axes] == key[axes]).all(axis=1)]
    top = mine["omega_high"].max()  # where the search for boundaries ended: no boundary itself
    lines = []
    for (regime, _), piece in mine.groupby(["regime", "piece"], sort=False):
        for side in ("omega_low",) if regime == "optimum" else ("omega_low", "omega_high"):
            inside = (piece[side] > 0) & (piece[side] < 0.999 * top)
            points = [[_number(w), _number(m)] for w, m in piece[inside][[side, "synthetic_size"]].to_numpy()]
            if len(points) > 1:
                lines.append({"regime": regime, "points": points})
    return lines


def _numbers(values: Sequence[float] | NDArray[np.float64]) -> list[float | None]:
    return [_number(float(value)) for value in values]


def _number(value: float) -> float | None:
    """Four significant digits, more than a screen shows; None for what JSON has no number for."""
    return float(f"{float(value):.4g}") if math.isfinite(value) else None


def run_command(argv: Sequence[str]) -> None:
    """The command itself: ``RUN`` or ``--run RUN``."""
    words = ["--run", *argv] if argv and not argv[0].startswith("-") else list(argv)
    options = parse_command(Page, words, prog="python -m sims_toy.page", description=str(Page.__doc__), config=False)
    with about_options(options):
        print(rewrite(options.run))
