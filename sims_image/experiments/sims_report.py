"""The report of a `sims` experiment: the SIMS paper's Figure 3 as two panels, samples, tables, one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sims_core.forecast import Outlook
from sims_core.lab import report
from sims_core.lab.report import Section
from sims_core.lab.runs import first_provenance, write_json
from sims_core.lab.study import title_of, write_tables
from sims_core.lab.style import METHOD, footnote, save, sequence, style
from sims_image.data.sheets import contact_sheet, sheet_png
from sims_image.experiments import elsewhere
from sims_image.experiments.arms import Arm
from sims_image.experiments.bench import Bench
from sims_image.experiments.captions import plain_name, settings_line
from sims_image.experiments.halving import planned
from sims_image.experiments.plan import Plan
from sims_image.experiments.search import Search
from sims_image.learner import ImageData, ImageModel
from sims_image.models import checkpoints

#: curves of the right panel; of more strengths, so many evenly chosen ones, and its axis says so
FEW = 6


def write(
    plan: Plan,
    bench: Bench,
    base: ImageModel,
    auxiliaries: dict[int, ImageModel],
    synthetic: ImageData,
    found: Search,
    confirmed: Sequence[Arm],
    samples: dict[str, NDArray[np.uint8]],
) -> Path:
    """Write figures, ``table.csv``, ``results.json`` and ``report.html`` below OUT/report; returns the page."""
    folder = Path(plan.settings.out) / "report"
    folder.mkdir(parents=True, exist_ok=True)
    metric = bench.reference.extractor.metric
    figure = panels(plan, bench, found)
    rows = [_row(arm, confirmed[0]) for arm in confirmed]
    settings = plan.settings
    title = f"{bench.data.name}, sampler {settings.sampler or 'the default'}, base {plain_name(settings.base)}"
    figures = {"figure3": figure, "arms": arms_figure(rows, metric, title)}
    if samples:
        figures["samples"] = samples_figure(rows, samples, metric, title)
    with style():
        for name, made in figures.items():
            save(made, folder / name)
    words = conclusion(plan, bench, found, confirmed)
    shares = {b: checkpoints.summary(m.base).record.training.get("ema_share_of_raw") for b, m in auxiliaries.items()}
    flat = [{k: " ".join(map(str, v)) if isinstance(v, list) else v for k, v in row.items()} for row in rows]
    write_tables(folder, {"table": pd.DataFrame(flat)})
    results: dict[str, Any] = {
        "conclusion": words,
        "metric": metric,
        "reference": _reference(bench),
        "floor": _floor(bench, confirmed[0].cells[0]),
        "arms": rows,
        "search": [
            {"budget": b, "omega": w, "nfe": cell["settings"]["nfe"], **bench.value(cell)}
            for turn in found.rounds
            for (b, w), cell in turn.cells.items()
        ],
        "naive": [{"budget": b, **bench.value(cell)} for b, cell in found.naive.items()],
        "outlook": {str(b): value.record() for b, value in found.outlooks.items()},
        "ema_share_of_raw": {str(b): share for b, share in shares.items()},
        "cost": costs(plan, found, confirmed),
        "settings": asdict(settings),
        "checkpoints": {
            "base": checkpoints.summary(base.base).sha256,
            **{f"auxiliary {b}": checkpoints.summary(m.base).sha256 for b, m in auxiliaries.items()},
            "synthetic data": synthetic.sha256,
        },
        "provenance": first_provenance(folder / "results.json", settings),
    }
    write_json(folder / "results.json", results)
    return report.write_report(
        folder / "report.html",
        title_of("sims", type(settings)),
        sections(results, found.outlooks, folder, samples),
        conclusion=words,
        record=results["provenance"],
        terms={},
    )


# ---------------------------------------------------------------------- words


def conclusion(plan: Plan, bench: Bench, found: Search, confirmed: Sequence[Arm]) -> list[str]:
    """What came out, in sentences that the numbers decide."""
    metric, base, best = bench.reference.extractor.metric, confirmed[0], confirmed[1]
    change, half = best.against(base)
    chosen = f"omega = {found.omega:g} at a budget of {found.budget:,} images"
    told = []
    if change + half < 0:
        told.append(f"SIMS improves on its base beyond the interval: {chosen} lowers {metric} by {_pm(-change, half)}")
    elif change - half > 0:
        told.append(f"SIMS is worse than its base beyond the interval: {chosen} raises {metric} by {_pm(change, half)}")
    else:
        told.append(f"No difference between SIMS and its base beyond the interval: {chosen} changes {metric} by "
                    f"{_pm(change, half)}")  # fmt: skip
    told[0] += f" ({base.mean:.4g} to {best.mean:.4g}, paired over {len(base.values)} disjoint sets of fresh seeds)."
    if len(found.rounds) > 1:
        spent = costs(plan, found, confirmed)
        share = 1 - spent["search"] / spent["search, as a full grid"]
        sizes = ", ".join(f"{len(turn.cells) - len(plan.budgets)} at n = {len(turn.seeds):,}" for turn in found.rounds)
        told.append(f"omega and budget were chosen by successive halving ({sizes}): {spent['search']:,} evaluations, "
                    f"{share:.0%} less than the full grid.")  # fmt: skip
    if not found.helps:
        told.append("On the search seeds no omega above 0 was better than 0; the best of those above 0 was confirmed.")
    for arm in confirmed[2:]:
        difference, wide = best.against(arm)
        side = "better than" if difference + wide < 0 else "worse than" if difference - wide > 0 else "level with"
        told.append(f"SIMS is {side} '{arm.name}' ({arm.mean:.4g}; difference {_pm(difference, wide)}).")
    floor = _floor(bench, base.cells[0])
    if floor is not None:
        near = " The base is at the floor: there is nothing to correct." if base.mean <= floor["value"] * 1.05 else ""
        same = "" if floor["n"] == base.cells[0]["report"]["n"] else ", another n, so not comparable"
        told.append(f"Real images in place of generated ones: {floor['value']:.4g} (n = {floor['n']:,}{same}).{near}")
    told.append(f"Before the search, from the samples at that budget: {found.outlooks[found.budget].distributions}.")
    return told


def _pm(value: float, half: float) -> str:
    """A value and half its interval, where it has one."""
    return f"{value:.3g}" + (f" ± {half:.2g}" if np.isfinite(half) else "")


def _row(arm: Arm, base: Arm) -> dict[str, Any]:
    change, half = arm.against(base)
    return {
        "arm": arm.name,
        "what": arm.note,
        "nfe": arm.nfe,
        "n": arm.cells[0]["report"]["n"],
        "mean": arm.mean,
        "half_interval": arm.half,
        "minimum": min(arm.values),
        "minus_base": change,
        "minus_base_half_interval": half,
        "values": list(arm.values),
        "seeds": [cell["report"]["seeds"] for cell in arm.cells],
        "labels": arm.cells[0]["report"]["labels"],
    }


def _reference(bench: Bench) -> dict[str, Any]:
    used = bench.reference.heldout or bench.reference
    kind = "held-out images" if bench.reference.heldout is not None else "the training set"
    return {"name": used.name, "kind": kind, "images": used.count, "sha256": used.sha256}


def _floor(bench: Bench, cell: dict[str, Any]) -> dict[str, Any] | None:
    held = cell["report"]["floor" if bench.target == "metrics" else "heldout_floor"]
    return None if held is None else {"n": held["n"], "kind": held["kind"], **_without_n(held["metrics"]["frechet"])}


def _without_n(estimate: dict[str, Any]) -> dict[str, Any]:
    """An estimate's fields; its own n, the images behind a metric, is not the floor's."""
    return {key: value for key, value in estimate.items() if key != "n"}


def costs(plan: Plan, found: Search, confirmed: Sequence[Arm]) -> dict[str, Any]:
    """What the experiment takes, in evaluations of one network (a training step is about three an image)."""
    searched = [cell for turn in found.rounds for cell in turn.cells.values()]
    cells = {id(cell): cell for cell in [*searched, *found.naive.values()]}.values()
    base_nfe, nfe = int(confirmed[0].nfe), int(confirmed[1].nfe)
    spent = {"search": sum(int(cell["settings"]["nfe"]) * cell["report"]["n"] for cell in cells)}
    if plan.halving:
        _, whole = planned(len(plan.candidates), plan.rounds, nfe, base_nfe)
        spent["search, as a full grid"] = whole + base_nfe * len(plan.search) * len(found.naive)
    named, own = plan.settings.synthetic_from, base_nfe
    if named:
        own = elsewhere.evaluations(elsewhere.opened(named), plan.settings.sampler)
    return {
        "generating D_s": own * len(plan.synthetic),
        "fine-tuning": 3 * plan.budgets[-1],
        **spent,
        "choosing the controls": sum(arm.choosing for arm in confirmed),
        "confirmation": sum(arm.nfe * cell["report"]["n"] for arm in confirmed for cell in arm.cells),
        "an image of the base": base_nfe,
        "an image of SIMS": confirmed[1].nfe,
    }


# --------------------------------------------------------------------- figures


def panels(plan: Plan, bench: Bench, found: Search) -> Figure:
    """Figure 3 of the paper: the distance against omega at each budget, and against the budget at a few omegas."""
    metric = bench.reference.extractor.metric
    whole = found.rounds[0].cells  # the only round that measured every candidate
    zero = bench.value(whole[plan.budgets[0], 0.0])
    floor = _floor(bench, whole[plan.budgets[0], 0.0])
    with style():
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        for colour, budget in zip(sequence(len(plan.budgets)), plan.budgets, strict=True):
            cells = [bench.value(whole[budget, omega]) for omega in plan.omegas]
            _curve(left, plan.omegas, cells, colour, f"{budget:,} images")
        every = [w for w in plan.omegas if w > 0]
        few = [every[int(i)] for i in np.unique(np.linspace(0, len(every) - 1, min(FEW, len(every))).round())]
        if len(few) < len(every):
            right.set_xlabel(f"{len(few)} of {len(every)} strengths")
        for colour, omega in zip(sequence(len(few)), few, strict=True):
            cells = [bench.value(whole[budget, omega]) for budget in plan.budgets]
            _curve(right, plan.budgets, cells, colour, f"ω = {omega:g}")
        for place, turn in enumerate(found.rounds[1:], 1):  # survivors; another n is another scale
            kept = [(b, w, bench.value(cell)["value"]) for (b, w), cell in turn.cells.items() if w > 0]
            marks: dict[str, Any] = {
                "color": "#4d4d4d",
                "marker": "sD^v"[(place - 1) % 4],
                "ls": "",
                "ms": 5,
                "mfc": "none",
            }
            for axes, x in ((left, 1), (right, 0)):
                axes.plot(
                    [row[x] for row in kept], [row[2] for row in kept], label=f"kept, n = {len(turn.seeds):,}", **marks
                )
        for axes, label in ((left, "guidance strength ω"), (right, "images that the auxiliary is fine-tuned on")):
            axes.axhline(zero["value"], color="#4d4d4d", lw=0.8, ls="--", label="base")
            if floor is not None and floor["n"] == zero["n"]:
                axes.axhline(floor["value"], color="black", lw=0.8, ls=":", label="real images")
            axes.set_xlabel("; ".join(filter(None, (label, axes.get_xlabel()))))
            axes.legend(fontsize=7, ncols=3, loc="lower left", bbox_to_anchor=(0, 1), borderaxespad=0.3)
        right.set_xticks(plan.budgets, [f"{budget / 1000:g}k" for budget in plan.budgets])
        figure.suptitle(f"{bench.data.name}: the search; what was confirmed, and the controls: arms.png", fontsize=9)
        left.set_ylabel(f"distance to real images\n({metric}, n = {int(zero['n']):,}; lower is better)")
        footnote(figure, settings_line(plan.settings), 150)
    return figure


def arms_figure(rows: Sequence[dict[str, Any]], metric: str, title: str) -> Figure:
    """Every arm of the confirmation on fresh seeds: its mean, its 95 % interval, its network evaluations per image.

    rows: those of table.csv, the base first, drawn as a line across.
    """
    shades = {"base": METHOD["standard"], "SIMS": METHOD["sims"], "base, twice the steps": METHOD["equal-cost"],
              "base, sampler retuned": METHOD["retuned"], "base trained further": METHOD["continued"],
              "random direction": METHOD["random"], "Neon": METHOD["neon"],
              "naive fine-tune": METHOD["auxiliary"]}  # fmt: skip
    with style():
        figure = Figure(figsize=(7.2, 0.9 + 0.34 * len(rows)), layout="constrained")
        axes = figure.subplots()
        for place, row in enumerate(rows):
            colour = shades.get(str(row["arm"]), "#000000")
            axes.errorbar([row["mean"]], [-place], xerr=[[row["half_interval"]]] * 2, fmt="o", ms=5, color=colour,
                          capsize=3)  # fmt: skip
            text = f"{_pm(row['mean'], row['half_interval'])}, {row['nfe']} evaluations"
            axes.annotate(text, (row["mean"] + row["half_interval"], -place), xytext=(6, 0),
                          textcoords="offset points", va="center", fontsize=7, color=colour)  # fmt: skip
        axes.axvline(rows[0]["mean"], color=METHOD["standard"], lw=0.8, ls="--")
        axes.set_yticks([-place for place in range(len(rows))], [str(row["arm"]) for row in rows], fontsize=8)
        largest = max(row["mean"] + row["half_interval"] for row in rows)
        label = f"{metric}, n = {int(rows[0]['n']):,}, fresh seeds"
        axes.set(xlim=(0, 1.4 * largest), xlabel=f"distance to real images, lower is better ({label})")
        axes.set_title(title, fontsize=8)
    return figure


def samples_figure(
    rows: Sequence[dict[str, Any]], samples: dict[str, NDArray[np.uint8]], metric: str, title: str
) -> Figure:
    """A strip of images (N, C, H, W) for each of some arms, from the same seeds, with its distance."""
    known = {row["arm"]: row for row in rows}
    with style():
        sheets = {name: contact_sheet(images, 12) for name, images in samples.items()}
        shape = next(iter(sheets.values()))
        figure = Figure(
            figsize=(7.2, 0.4 + len(sheets) * (0.3 + 7.0 * shape.height / shape.width)), layout="constrained"
        )
        axes = figure.subplots(len(sheets), 1, squeeze=False)[:, 0]
        for place, (name, sheet) in zip(axes, sheets.items(), strict=True):
            place.imshow(np.asarray(sheet), cmap="gray", interpolation="none")
            row = known[name]
            words = f"{name}: {metric} {_pm(row['mean'], row['half_interval'])}, {row['nfe']} evaluations"
            place.set_title(words, fontsize=8, loc="left")
            place.axis("off")
        figure.suptitle(f"{title}: the same seeds in every strip", fontsize=8)
    return figure


def _curve(axes: Any, x: Sequence[float], cells: Sequence[dict[str, float]], colour: str, label: str) -> None:
    values = [cell["value"] for cell in cells]
    axes.plot(x, values, "o-", color=colour, ms=3, lw=1.2, label=label)
    axes.fill_between(x, [c["low"] for c in cells], [c["high"] for c in cells], color=colour, alpha=0.15, lw=0)


# ------------------------------------------------------------------------ page


def grids(
    rows: Sequence[dict[str, Any]], samples: dict[str, NDArray[np.uint8]], metric: str
) -> dict[str, dict[str, Path | bytes]]:
    """Images (N, C, H, W) of some arms from the same seeds as sheets, each with its distance: base and SIMS first."""
    known = {row["arm"]: f"{metric} {_pm(row['mean'], row['half_interval'])}" for row in rows}
    order = sorted(samples, key=lambda name: ("base", "SIMS").index(name) if name in ("base", "SIMS") else 2)
    return {name: {known[name]: sheet_png(samples[name], 6)} for name in order}


def sections(
    results: dict[str, Any], outlooks: dict[int, Outlook], folder: Path, samples: dict[str, NDArray[np.uint8]]
) -> list[Section | None]:
    """The parts of the page, with the figures that lie in ``folder``. outlooks: by budget. samples: as of `grids`."""
    metric, reference, arms = results["metric"], results["reference"], results["arms"]
    confirmed = [
        [
            arm["arm"],
            arm["what"],
            arm["nfe"],
            _pm(arm["mean"], arm["half_interval"]),
            f"{arm['minimum']:.4g}",
            f"{arm['minus_base']:+.3g} ± {arm['minus_base_half_interval']:.2g}",
        ]
        for arm in arms
    ]
    searched = [
        [f"{c['budget']:,}", f"{c['omega']:g}", c["nfe"], f"{c['n']:,}", f"{c['value']:.4g}",
         f"{c['low']:.4g} to {c['high']:.4g}"]
        for c in results["search"]
    ]  # fmt: skip
    side = [
        [f"{budget:,}", *row.values(), "unknown" if share is None else f"{share:.3f}"]
        for (budget, outlook), share in zip(outlooks.items(), results["ema_share_of_raw"].values(), strict=True)
        for row in outlook.rows()
    ]
    facts = {"reference": f"{reference['name']} ({reference['kind']}), {reference['images']:,} images"}
    facts |= {name: value for name, value in results["settings"].items() if name != "out"}  # equal runs, equal pages
    facts |= {f"sha256 of {name}": value for name, value in results["checkpoints"].items()}
    facts |= {"sha256 of reference": reference["sha256"], "version": results["provenance"]["version"]}
    return [
        Section("Samples from the same seeds", frames=grids(arms, samples, metric), compared=True) if samples else None,
        Section(
            f"Confirmation: {metric} on fresh seeds, n = {arms[0]['n']:,}",
            [
                "Intervals are Student's over disjoint sets of seeds; differences are paired on them. Each stands for "
                f"itself: {len(arms) - 1} comparisons at 95 % are not corrected for their number."
            ],
            {"All arms on fresh seeds; dashed: the base": folder / "arms.png"},
            head=["model", "", "evaluations per image", "mean and 95 % interval", "minimum", "difference to base"],
            rows=confirmed,
        ),
        Section(
            "Search: the distance against omega and budget",
            pictures={
                f"{metric} on the search seeds; bands are 95 % intervals of drawing other samples": folder
                / "figure3.png"
            },
            head=["budget (images)", *next(iter(outlooks.values())).rows()[0], "EMA's share of the raw weights' way"],
            rows=side,
        ),
        Section(
            "Cost, in network evaluations",
            head=["", "evaluations"],
            rows=[[key, f"{value:,}"] for key, value in results["cost"].items()],
        ),
        Section(
            "All cells of the search",
            ["Distances at different n do not compare."] if len({c["n"] for c in results["search"]}) > 1 else [],
            head=["budget", "omega", "evaluations per image", "n", metric, "95 % interval"],
            rows=searched,
            folded=True,
        ),
        report.settings(facts),
    ]
