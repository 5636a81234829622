"""Numbers in the documents are those of the committed tables: each sentence is built from its table and looked up.

Not every number stands here; whoever quotes one adds its sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from sims_image.experiments.leaderboard_report import comparisons, markdown
from sims_toy.control.tables import law_errors
from sims_toy.phase import TOLERANCE
from sims_toy.sweep import plan
from sims_toy.sweep.laws import theory_tables
from sims_toy.sweep.options import PRESETS
from sims_toy.sweep.response_table import optima

ROOT = Path(__file__).resolve().parents[1]
SIZES = (125, 250, 500, 1000)
GALLERY, MATHEMATICS, FINDINGS = "figures/README.md", "docs/mathematics.md", "docs/findings.md"
#: a document and sentences of it
Claims = Iterator[tuple[str, ...]]


@cache
def table(name: str) -> pd.DataFrame:
    return pd.read_csv(ROOT / "figures" / f"{name}.csv")


def rows_of(found: pd.DataFrame) -> list[pd.Series]:
    return [row for _, row in found.iterrows()]


def words(text: str) -> str:
    """A text on one line, typographic minus signs and emphasis made plain."""
    return re.sub(r"\s+", " ", text.replace("−", "-").replace("**", ""))


def around(row: pd.Series, column: str, digits: int, *, sign: str = "") -> str:
    value, low, high = (f"{row[f'{column}{end}']:{sign}.{digits}f}" for end in ("", "_low", "_high"))
    return f"{value} ({low} .. {high})"


def line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def bare(text: str) -> str:
    """Without the zero before a decimal point."""
    return text.replace("0.", ".")


def listed(values: list[float], digits: int = 2) -> str:
    return ", ".join(f"{v:.{digits}f}" if digits else f"{v:g}" for v in values)


# ------------------------------------------------------------------ sweeps


def main_reading(name: str, method: str) -> pd.DataFrame:
    rows = table(f"{name}_regimes")
    mine = rows["learner"].eq("exact" if name.endswith("exact") else "network") & rows["method"].eq(method)
    return rows[mine & rows["auxiliary_data"].isin(["train+synthetic", "none", np.nan])].sort_values("omega")


def best(name: str) -> list[pd.Series]:
    rows = main_reading(name, "sims")
    return [(part := rows[rows["synthetic_size"] == m]).loc[part["standard"].idxmin()] for m in SIZES]


def unguided(name: str, method: str) -> str:
    rows = main_reading(name, method).set_index("synthetic_size")
    return listed([float(rows["standard"][m]) for m in SIZES])


def crossing(part: pd.DataFrame, column: str, *, falling: bool) -> float:
    """The first omega at which a ratio passes `TOLERANCE` downward (or the last upward), between grid points."""
    x, y = part["omega"].to_numpy(), part[column].to_numpy() - TOLERANCE
    here = np.flatnonzero((y[:-1] > 0) & (y[1:] <= 0) if falling else (y[:-1] <= 0) & (y[1:] > 0))
    if not len(here):
        return float("nan")
    i = here[0 if falling else -1]
    return float(x[i] - y[i] * (x[i + 1] - x[i]) / (y[i + 1] - y[i]))


def from_boundaries() -> Claims:
    """docs/mathematics.md's table of phase boundaries: linear response's and the simulation's."""
    planned = plan(PRESETS["figure4"])
    experiment, law, near = planned.parts["overlay"], [], []
    for m in SIZES:
        only = [cell for cell in experiment.cells if cell.synthetic_size == m]
        found = theory_tables(replace(experiment, cells=only), planned.settings)[1]
        at = found[(found["auxiliary_data"] == "train+synthetic") & np.isclose(found["synthetic_size"], m)]
        law.append(at.set_index("regime"))
    simulated = main_reading("figure4_exact", "sims")
    for regime, end, column in (
        ("strong", "low", "standard"), ("prevention", "low", "own"), ("strong", "high", "standard"),
    ):  # fmt: skip
        expected = [float(at[f"omega_{end}"][regime]) for at in law]
        cells = []
        for m, value in zip(SIZES, expected, strict=True):
            part = simulated[simulated["synthetic_size"] == m]
            found, *ends = (crossing(part, column + e, falling=end == "low") for e in ("", "_low", "_high"))
            cells.append(f"{found:.2f} ({min(ends):.2f} .. {max(ends):.2f})")
            near.append(abs(found - value) <= 0.25)
        yield MATHEMATICS, line(*(f"{v:.2f}" for v in expected)), line(*cells)
    kept = f"{sum(near)} of the {len(near)} boundaries"
    yield MATHEMATICS, f"{kept} are within 0.25"
    yield FINDINGS, f"within 0.25 of the simulated ones for {kept}"


def from_sweeps() -> Claims:
    yield from from_boundaries()
    for method in ("equal-cost", "retuned"):
        yield GALLERY, f"{method} {unguided('figure4_exact', method)}"
    for name in ("minus_equal_cost", "minus_retuned"):
        gaps, trained = ([around(r, name, 2, sign="+") for r in best(run)] for run in ("figure4_exact", "figure4"))
        yield MATHEMATICS, line(*gaps)
        yield GALLERY, ", ".join(trained)
    for row in rows_of(optima((0.5, 1, 2, 2.4, 3, 4, 6, 10, np.inf))):  # when one omega serves all |D_s|
        name = f"{row['rho']:g}" if np.isfinite(row["rho"]) else "no noise"
        yield MATHEMATICS, line(name, *(f"{v:.2f}" for v in row.iloc[1:]))
    exact, trained = best("figure4_exact"), best("figure4")
    yield MATHEMATICS, f"steps of 0.25 is {listed([r['omega'] for r in exact], 0)}"
    ratios, omegas = listed([r["standard"] for r in trained]), listed([r["omega"] for r in trained], 0)
    rows = table("figure4_regimes")
    under = rows[(rows["learner"] == "exact") & (rows["auxiliary_data"] == "train+synthetic")]
    beneath = listed([under[under["synthetic_size"] == m]["standard"].min() for m in SIZES])
    yield (
        GALLERY,
        f"d_T/d_1(0) = {ratios} at ω = {omegas}",
        f"standard training has {unguided('figure4', 'standard')}",
        f"and the equal-cost control {unguided('figure4', 'equal-cost')}",
        f"15 evaluations where SIMS takes 38, has {unguided('figure4', 'retuned')}",
        f"exact learner beneath {beneath}",
    )
    for name in ("figure4_exact", "figure4"):
        yield FINDINGS, unguided(name, "retuned"), listed([r["standard"] for r in best(name)])
    named = main_reading("figure4_exact", "sims")
    decided = (named["regime"] != "undecided").sum()
    yield GALLERY, f"It decides {decided} of the {len(named)} cells of the main reading"
    named = main_reading("figure4", "sims")
    decided, larger = named["regime"] != "undecided", named["synthetic_size"] >= 250
    yield GALLERY, f"{decided.sum()} of the {len(named)} cells of the main reading are decided"
    yield GALLERY, f"{(decided & larger).sum()} of the {larger.sum()} with |D_s| ≥ 250"
    for omega, ends in ((0, ".99 or more"), (3, "{:.2f} to {:.2f}"), (5, "{:.2f} to {:.2f}")):
        alike = named[named["omega"] == omega]["twin_correlation"]
        yield "docs/networks.md", bare(f"{ends} at ω = {omega}".format(alike.min(), alike.max()))
    yield from from_the_length_of_figure4()
    preset = PRESETS["figure4"]
    yield "docs/toy.md", f"({preset.trials} paired trials, {preset.beside_trials} of the other readings"


def from_the_length_of_figure4() -> Claims:
    """30 generations and 280 quasi-random steps against 100 and 400 random ones, and the exact learner's 30 and 100."""
    exact = pd.read_parquet(ROOT / "figures/figure4_exact_sweep.parquet")
    main = exact[exact["auxiliary_data"].isin(["train+synthetic", "none"])]
    mean = main.pivot_table("w2_mean", ["sampler", "method", "synthetic_size", "omega"], "generation")
    late, ten, thirty = (mean.loc[:, first : first + span].mean(axis=1) for first, span in ((91, 9), (6, 4), (21, 9)))
    off, early = (f"{100 * (part / late - 1).abs().max():.1f} %" for part in (thirty, ten))
    short, long = (pd.read_csv(ROOT / f"figures/figure4_{name}.csv") for name in ("regimes", "hundred"))
    both = short.merge(long, on=["learner", "method", "synthetic_size", "omega", "auxiliary_data"])
    both = both[both["learner"] == "network"]
    own = both[both["auxiliary_data"].isin(["train+synthetic", "none", np.nan])]
    decided = own[(own["regime_x"] != "undecided") & (own["regime_y"] != "undecided")]
    apart = ((own["standard_x"] - own["standard_y"]) ** 2).mean() ** 0.5
    width = [own[f"standard_high_{end}"] - own[f"standard_low_{end}"] for end in "xy"]
    slow = both[(both["regime_y"] == "divergent") & (both["regime_x"] != "divergent")]
    assert (decided["regime_x"] == decided["regime_y"]).all() and (slow["regime_x"] == "MAD").all()
    yield (
        "docs/networks.md",
        f"is within {off} of that over 91 to 100 in each of the {len(mean)} cells",
        f"generations 6 to 10: {early})",
        f"the same regime in the {len(decided)} of {len(own)} cells that both decide",
        f"apart by {apart:.3f} (root mean square)",
        f"and intervals of {(width[0] / width[1]).median():.2f} times the width",
        f"{len(slow)} cells that are divergent after 100",
    )


# ------------------------------------------------------------------ images


def sims_row(row: pd.Series) -> str:
    """Of Algorithm 1's report: mean and half interval, paired difference to the base."""
    cells = f"{row['nfe']} | {row['mean']:.2f} ± {row['half_interval']:.2f} |"
    less = "" if row["arm"] == "base" else f" {row['minus_base']:+.2f} ± {row['minus_base_half_interval']:.2f} |"
    return f"| {cells}{less}"


def half_interval(change: np.ndarray | pd.Series, comparisons: int = 1) -> float:
    """Student's, of a mean, for so many comparisons (Bonferroni)."""
    return float(stats.t.ppf(1 - 0.025 / comparisons, len(change) - 1) * stats.sem(change))


def from_sims() -> Claims:
    for name, document in (("digits_sims", "docs/images-digits.md"), ("fashion_sims", "docs/images-fashion.md")):
        yield document, *map(sims_row, rows_of(table(name)))
    rows = table("digits_sims").set_index("arm")
    values = rows["values"].map(lambda text: np.array(text.split(), dtype=float))
    for arm, name in (("SIMS", "SIMS is"), ("base trained further", "further training")):
        change = values[arm] - values["base"]
        half = half_interval(change, len(rows) - 1)
        assert half > abs(change.mean())  # not beyond it
        yield "docs/images-digits.md", f"{name} {rows['minus_base'][arm]:.2f} ± {half:.2f}"


def from_longer_training() -> Claims:
    models, whole = table("leaderboard_long_models"), table("leaderboard_long").set_index("arm")
    board = whole["frechet"]
    sims = "SIMS, omega = 1"

    def each(arm: str, column: str = "frechet") -> str:
        *most, last = (f"{v:.3f}" for v in models[models["arm"] == arm].sort_values("trial")[column])
        return f"{', '.join(most)} and {last}"

    def less(other: str) -> str:
        row = whole.loc[sims]
        return f"{row[other]:+.3f} ± {(row[f'{other}_high'] - row[f'{other}_low']) / 2:.3f}"

    yield (
        "docs/leaderboard.md",
        f"are at {each('base')}",
        f"go to {each(sims)} (standard errors over samples {each(sims, 'frechet_se')})",
        f"twice the steps give {each('2x steps')}, and training further gives {each('continued')}",
        f"less the base: {less('minus_base')}; less the best control of equal cost: {less('minus_control')}",
        f"{each(sims, 'pixels_frechet')} against {each('base', 'pixels_frechet')}",
    )
    yield GALLERY, f"base {each('base')}, SIMS at ω = 1 {each(sims)}"
    for document in ("README.md", FINDINGS):
        yield document, f"takes a base to {board['base']:.3f}, and SIMS takes that to {board[sims]:.3f} (three bases)"


def from_the_leaderboard() -> Claims:
    """Both tables row by row, and what SIMS was foretold to gain against what it gained."""
    document, board = "docs/leaderboard.md", table("leaderboard")
    yield document, *markdown(board, "FD-classifier", ["pixels"]).splitlines()
    seconds = table("leaderboard_seconds").set_index("arm")["seconds_a_thousand"]
    names = {"the base": "base", "twice the steps": "2x steps", "SIMS": "SIMS, omega = 1", "`held:2`": "SIMS held:2"}
    took = [f"{word} {seconds[arm]:.1f}" for word, arm in names.items()]
    yield document, f"{took[0]} s, {', '.join(took[1:])}, Neon {seconds['Neon']:.1f}"
    small = table("leaderboard_cifar10")
    yield document, f"and {comparisons(board)} and {comparisons(small)} comparisons at 95 % each"
    yield document, *markdown(small, "FD-classifier", ["pixels", "lite0:64"]).splitlines()
    yield from from_longer_training()
    told = pd.concat([table("leaderboard_foretold"), table("leaderboard_cifar10_foretold")])
    for row in rows_of(told[told["variant"] == "main"]):
        cosine, foretold = f"{row['distributions_cosine']:.2f}", around(row, "omega", 2)
        gains = f"{1 - row['left_at_fixed']:.2f} | {row['gain_fixed']:.2f} | {row['removable']:.2f}"
        found = f"{row['gain_found']:.2f} | {row['found_omega']:g} | {row['expected_over_half_interval']:.1f}"
        yield document, line(f"{row['trial'] + 1}", cosine, foretold, gains, found)
    for _, part in table("leaderboard_foretold").groupby("variant"):
        cosines, mean = part["distributions_cosine"], part.mean(numeric_only=True)
        shares = (1 - mean["left_at_fixed"], mean["gain_fixed"], mean["removable"], mean["gain_found"])
        yield document, line(f"{cosines.min():.2f} .. {cosines.max():.2f}", *(f"{share:.2f}" for share in shares))
    ranks = rows_of(table("leaderboard_agreement"))
    yield document, *(around(row, "spearman", 2) for row in ranks)
    yield document, f"all {ranks[-1]['rows']} pairs of base and auxiliary"
    models = table("leaderboard_models")
    wide = models[models["method"] != "variant"].pivot(index="trial", columns="arm", values="frechet")
    fixed, wider = "SIMS, omega = 1", "wider, equal training cost"
    pairs = [("SIMS", "autoguidance"), (fixed, "autoguidance"), (fixed, "Neon"), (fixed, wider)]
    pairs += [(f"SIMS{kind}", fixed) for kind in (" held:2", ", second step", ", cold auxiliary")]
    three = table("leaderboard_cifar10_models").pivot(index="trial", columns="arm", values="frechet")
    pairs_of = [*((wide, pair) for pair in pairs), (three, (fixed, "Neon")), (three, (fixed, "autoguidance"))]
    for models, (one, other) in pairs_of:
        change = models[one] - models[other]
        yield document, f"{one} less {other}: {change.mean():+.3f} ± {half_interval(change):.3f}"
    rows = board.set_index("arm")
    retuned = f"{rows['frechet']['retuned']:.3f}"
    for found, figures in ((board, 3), (small, 2)):
        rows = found.set_index("arm")
        base, twice, sims = (f"{rows['frechet'][arm]:.{figures}f}" for arm in ("base", "2x steps", fixed))
        half = (rows["minus_control_high"] - rows["minus_control_low"])[fixed] / 2
        for where in ("README.md", FINDINGS):
            yield where, f"from {base} (twice the steps {twice}) to {sims}"
            yield where, f"by {-rows['minus_control'][fixed]:.3f} ± {half:.3f}"
        told = f", the sampler retuned {retuned}" if found is board else ""
        yield GALLERY, f"base {base}, twice the steps {twice}{told}, SIMS at ω = 1 {sims}"


def from_images() -> Claims:
    yield from from_sims()
    yield from from_the_leaderboard()
    loop = table("image_loop").set_index(["method", "generation"])
    for method in ("standard", "sims", "equal-cost"):
        first, last = (loop.loc[(method, t)] for t in (1, 5))
        told = (f"{row['frechet']:.2f}" for row in (first, last))
        yield "docs/images-loops.md", line(*told, around(last, "ratio", 2), f"{last['recall']:.2f}")
    control = table("image_control").set_index(["arm", "omega"])
    for key in (("control", 1.0), ("control", 2.0), ("sims", 2.0), ("random", 2.0), ("equal-cost", 0.0)):
        cells = (around(control.loc[key], column, 3) for column in ("tv", "tv_minus_base"))
        yield "docs/images-control.md", line(*cells)
    pollution = table("image_pollution").set_index(["scenario", "pollution"])
    for size in (648, 1297):
        plain, guided = (pollution.loc[(kind, size)] for kind in ("ST-P", "SIMS-P"))
        cells = around(plain, "frechet", 2), around(guided, "frechet", 2), around(guided, "minus_standard", 2)
        yield "docs/images-pollution.md", line(f"{size:,}", *cells)
    pollution = table("clothes_pollution").set_index(["scenario", "omega", "pollution"])
    for size in (6000, 18000, 60000):
        rows = [pollution.loc[("ST-P", 0.0, size)], *(pollution.loc[("SIMS-P", w, size)] for w in (1.0, 2.0, 3.0))]
        cells = (*(around(row, "frechet", 3) for row in rows), around(rows[-1], "minus_clean", 3))
        yield "docs/images-pollution.md", line(f"{size:,}", *cells)


def from_retraining() -> Claims:
    document, retrain = "docs/images-retrain.md", table("image_retrain").set_index(["ratio", "round"])
    for ratio in (0.5, 1.0, np.inf):
        row = retrain.loc[(ratio, 4)]
        yield document, line(around(row, "to_real", 2), f"{row['recall']:.2f}")
    sizes = [f"{retrain.loc[(ratio, 4)]['to_real']:.2f} (λ = {ratio:g})" for ratio in (0.5, 1.0)]
    yield GALLERY, f"raise the distance to {' and '.join(sizes)} times"
    averages = table("retrain_averages")
    last = averages[averages["round"] == 4].set_index(["objective", "weights", "ratio"])
    far = {}
    for objective, weights in last.index.droplevel("ratio").unique():
        alone, gone = (last.loc[(objective, weights, ratio)] for ratio in (0.0, np.inf))
        name = f"{objective}, {'raw weights' if weights == 'raw' else 'average'}"
        yield document, line(name, *(around(row, "to_first", 2) for row in (alone, gone)), f"{gone['recall']:.2f}")
        far[objective, weights] = f"{gone['to_first']:.2f}"
    flow = f"flow matching {far['flow matching', 'raw']} and {far['flow matching', 'ema']}"
    yield FINDINGS, f"are {far['EDM', 'raw']} times as far from the data with their raw weights"
    yield FINDINGS, f"and {far['EDM', 'ema']} times with their averages ({flow})"
    share = averages["share"]
    yield document, f"contains {share.min():.2f} to {share.max():.2f} of the raw weights' movement"


# -------------------------------------------------------------- laboratory


def from_control() -> Claims:
    document, cases = "docs/laboratory-control.md", table("control_cases")
    for kind, row in law_errors(cases).iterrows():
        yield document, line(str(kind), f"{row['linear']:.3f}", f"{row['geometric']:.3f}")
    shares, scores = table("control_shares"), table("control_scores")
    for what, part in (
        ("networks", shares[shares["method"].eq("control") & (shares["omega"] > 0)]),
        ("exact scores with Heun-40", scores[scores["sampler"].eq("ode") & (scores["omega"] > 0)]),
    ):
        off = [(part["share"] - part[f"law_{law}"]).abs().mean() for law in ("linear", "geometric")]
        yield document, f"{off[0]:.3f} and {off[1]:.3f} for {what}"
    row = cases[(cases["base"] == 0.2) & (cases["kind"] == "three on a line")].iloc[0]
    yield document, bare(f"leaves it {row['share']:.3f} and the density law {row['law_geometric']:.3f}")
    row = cases[(cases["base"] == 0.6) & (cases["auxiliary"] == 0.4) & (cases["omega"] == 2)].iloc[0]
    yield document, bare(f"it is {row['separatrix']:.3f}")
    names = {"sims": "plain SIMS", "random": "random direction"}
    for row in rows_of(table("control_best")):
        name = names.get(row["method"], f"{row['complement']}, a = 1")
        reach = f"{row['omega']:g} ({row['omega_low']:g} .. {row['omega_high']:g})"
        yield document, line(name, reach, around(row, "tv", 3), f"{row['sliced_target']:.3f}")


def from_collapse() -> Claims:
    collapse = table("eta_collapse")
    z = collapse[collapse["omega_eta"] == 2].set_index("budget")["z"]
    worst = collapse[collapse["budget"] == 25600]["z"].abs().max()
    for document in ("docs/networks.md", GALLERY):
        yield document, f"within {worst:.1f} standard errors"
        yield document, f"by {z[192]:.0f} and {z[448]:.0f} standard errors at ωη = 2"


def from_stability() -> Claims:
    document, rounds = "docs/laboratory-stability.md", table("stability_rounds")
    last = rounds[rounds["generation"] == rounds["generation"].max()]
    names = {"network": "score networks", "flow-matching": "flow matching", "flow": "normalizing flows"}
    for (learner, real), part in last.groupby(["learner", "real"]):
        rows = part.set_index("ratio")
        told = (around(rows.loc[ratio], "to_zero", 2) for ratio in (0.1, 1.0, 2.0, np.inf))
        yield document, line(f"{names.get(learner, 'Gaussians')}, {real}", *told)
    away = last[last["ratio"].isin([1, 2]) & (last["learner"] != "exact")]["parameters"]
    yield document, bare(f"end {away.min():.3f} to {away.max():.3f} of")
    rates = table("stability_rates")
    off = (rates["rate"] - rates["well_specified"]).abs()
    within, above = (
        off[where].groupby(rates["learner"]).max().map("{:.3f}".format).str.lstrip("0")
        for where in (rates["ratio"].between(0.1, 2), rates["ratio"] < 0.1)
    )
    yield (
        document,
        f"within {within['network']} from λ = 0.1 on for score networks, {within['flow-matching']} for "
        f"flow matching, {within['flow']} for flows, {within['exact']} for Gaussians",
        f"memory: {above['network']}, {above['flow-matching']} and {above['flow']}",
    )
    endless = rates[np.isinf(rates["ratio"])]["rate"]
    yield document, bare(f"the rate is {endless.min():.3f} to {endless.max():.3f}")


# ------------------------------------------------------------------ which errors


def bias_row(r: pd.Series) -> str:
    """Of docs/which-errors.md's table of its kind."""
    base, once, twice, more = (f"{r[c]:.4f}" for c in ("base", "sims", "iterated_2", "steps_2"))
    middle = {
        "exact": (more, once, twice if np.isfinite(r["iterated_2"]) else "-"),
        "features": (once, around(r, "gain", 4, sign="+"), twice),
        "networks": (more, f"{r['continued']:.4f}", once, around(r, "gain", 4, sign="+"), f"{r['floor']:.4f}"),
    }[r["kind"]]
    foreseen = (f"{r[c]:.2f}" for c in ("length", "cosine", "predicted_left", "left"))
    return line(f"`{r['row']}`{' *' * r['held_out']}", base, *middle, *foreseen)


def from_bias() -> Claims:
    document, kinds = "docs/which-errors.md", ("exact", "features", "networks")
    yield document, *(bias_row(r) for kind in kinds for r in rows_of(table("bias_rows").query("kind == @kind")))
    controls = table("bias_controls").query("kind == 'networks'")
    verdicts = controls.groupby(["control", "omega"])["verdict"].value_counts().unstack(fill_value=0)
    for control, part in controls.groupby("control", sort=False):
        costs = sorted({round(c, 1) for c in part["cost"]})
        counts = (listed(list(verdicts.loc[(control, w)][["ahead", "level", "behind"]]), 0) for w in ("1", "chosen"))
        yield document, line(str(control), " to ".join(f"{c:g}" for c in dict.fromkeys((costs[0], costs[-1]))), *counts)
    for r in rows_of(table("bias_held_out")):
        hits = ("hit" if r[c] else "miss" for c in ("size_hit", "sign_hit"))
        left = f"{r['predicted_left']:.2f}", around(r, "left", 2), around(r, "gain", 4, sign="+")
        yield document, line(f"`{r['row']}`", *left, *hits)
    rows = table("bias_rows").query("kind == 'networks'")
    rises = f"in {rows['loss_rises'].sum()} of {rows['bases'].sum()} trained bases"
    for where in (document, FINDINGS, GALLERY):
        yield where, rises
    off = 1 - rows["steps_2"] / rows["base"]
    few, most = (off <= 0.01).sum(), off.max()
    assert ((off > 0.01) & (off < 0.05)).sum() == 4 and len(rows) == 13
    left = 1 - (rows["sims"] / rows["base"])[off.nlargest(2).index[::-1]]
    steps = verdicts.loc[("twice the steps", "1")]
    yield FINDINGS, f"reduce it by 1 % or less in {few} and by {100 * most:.0f} % at most"
    yield (
        document,
        f"Twice the steps reduce the distance by 1 % or less in {few} of 13 rows, by up to 5 % in 4",
        f"(`tree`, `spiral`: SIMS {' and '.join(f'{100 * v:.0f}' for v in left)} %)",
        f"against more steps ({', '.join(f'{steps[v]} {v}' for v in ('ahead', 'level', 'behind'))})",
    )


# ------------------------------------------------------------------ speed


def measured(name: str) -> dict[str, Any]:
    """The figures of benchmarks/results/NAME.json."""
    return json.loads((ROOT / f"benchmarks/results/{name}.json").read_text(encoding="utf-8"))["figures"]


def from_benchmarks() -> Claims:
    found = measured("ensemble")
    times = {(len(r["widths"]), r["loop"]): f"{r['ratio']:.1f}" for r in found["speed"]}
    until = {r["loop"]: r["cpu_ms_per_network"] for r in found["quality"]}
    ways = ("numba, posterior, batch 64 (default)", "torch, posterior, batch 64 (default)", "usual loop, batch 256")
    cells = [f"{times[depth, 'numba']}, {times[depth, 'torch']}" for depth in (2, 3)]
    cost = "{:.1f}, {:.0f}, {:.0f} ms per network".format(*(until[way] for way in ways))
    parts = ("step", "products", "silu", "fixed")
    small, large = ([row[f"{part}_us"] for part in parts] for row in found["roofline"])
    limits = [ratio * step / products for ratio, (step, products, *_) in zip(
        (r["ratio"] for r in found["speed"] if r["loop"] == "numba"), (small, large), strict=True)]  # fmt: skip
    assert sum(small[1:]) > small[0]  # the document says so
    yield (
        "docs/networks.md",
        "takes {:.1f} µs. Its matrix products alone take {:.1f} µs".format(*small),
        "SiLU takes {:.1f} and the work that does not grow with rows (Adam, the average) {:.1f}".format(*small[2:]),
        "the step takes {:.1f} µs, and the parts {:.1f}, {:.1f} and {:.1f}".format(*large),
        "would be {:.1f} and {:.1f}".format(*limits),
    )
    found = measured("scaling")
    plain, set_up = (f"{100 * found[f'dask_overhead{end}']:.0f} %" for end in ("", "_set"))
    yield (
        "docs/networks.md",
        f"| {' | '.join([*cells, cost])} |",
        f"costs {plain} of the time",
        f"and {set_up} with these",
    )
    rows = [row for preset in measured("sampling")["presets"].values() for row in preset]
    off = [row["ratio"] - row["evaluations"] for row in rows]
    full = " and ".join(f"{row['ratio']:.1f}" for row in rows if row["way"] == "full")
    yield (
        "docs/images-sims.md",
        f"less at most {-min(off):.2f} and plus at most {max(off):.2f}",
        f"In full that is {full}",
    )
    found = measured("metrics")
    small, large = ([100 * part["evaluating_share"], part["generating_ms"]] for part in found["streamed"].values())
    told = "adds {:.1f} % to `digits` (64 features, {:.0f} ms per image to make) and {:.1f} % to `cifar10-tiny`"
    yield (
        "docs/images-metrics.md",
        told.format(*small, large[0]),
        f"up with {round(found['widths']['1280']['gathered_per_s'], -2):,.0f}",
    )
    rows = {row["network"]: f"{row['ratio']:.2f}" for row in measured("networks")["rows"]}
    last, half = rows["channels-last, float32"], rows["channels-last, bf16"]
    yield "docs/images-networks.md", f"1.06 and {last} times the plain one, bf16 2.96 and {half}"
    presets = ("digits", "fashion16", "cifar10-tiny")
    for end, names in (("", presets), ("-auto", presets), ("-compiled", presets[:2])):
        ratios = [measured(f"training-{name}{end}")["ratio"] for name in names]
        yield "docs/images-training.md", f"{min(ratios):.2f} to {max(ratios):.2f}"
    found = measured("sweep")
    each = 1e6 * found["cores"] * found["grid_wall_s"] / (found["grid_cells"] * 100 * 100)
    yield "docs/toy.md", f"| {each:.0f} µs each in a large grid"
    found = measured("prepare")
    folder, zipped = (1e6 / found[f"{kind}, 64x64"]["per_cpu_s"] for kind in ("folder", "EDM zip"))
    yield "docs/images-data.md", f"cost {folder:.1f} µs of CPU per image from a folder and {zipped:.0f} µs"


def from_gpu() -> Claims:
    old, new = (
        json.loads((ROOT / "benchmarks/results" / name).read_text(encoding="utf-8"))["found"]
        for name in ("gpu-h100-80gb-hbm3.json", "gpu-h200.json")
    )
    small, large = "cifar10-uncond", "imagenet64-edm2-s"

    def rate(name: str, found: dict[str, Any] = new) -> float:
        return float(found[name]["images/s"])

    bf16, fp16, single = (rate(f"{small}: {way}") for way in ("bf16", "fp16", "float32"))
    theirs, theirs_large, theirs_single = (
        rate(f"NVIDIA {name}") for name in ("edm: fp16", "edm2: fp16", "edm: float32")
    )
    last, large16 = rate(f"{large}: bf16, channels-last"), rate(f"{large}: fp16")
    ratio, ratio_large = fp16 / theirs, large16 / theirs_large
    parts = [100 * new[f"{name}: fp16"]["share of bf16"] for name in (small, large)]
    slow = rate(f"{small}: bf16, channels-last", old)
    pair, newer = (found["sampling, cifar10-tiny"] for found in (old, new))
    held = [one["held over 2 steps"] for one in (pair, newer)]
    yield (
        "docs/gpu.md",
        f"| `{small}`, 127 GFLOP per image | {bf16:,.0f} | {fp16:,.0f} | {theirs:,.0f} | **{ratio:.2f}** | "
        f"{single:.0f}, {theirs_single:.0f} |",
        f"| `{large}` | {last:.0f} | {large16:.0f} | {theirs_large:.0f} | **{ratio_large:.2f}** | |",
        f"{ratio:.2f} times edm's and {ratio_large:.2f} times edm2's in fp16, at {parts[0]:.0f} % and {parts[1]:.0f} %",
        f"bf16 products ({new['ceilings']['bf16 TFLOP/s']:.0f} TFLOP/s)",
        f"reaches {rate(f'{small}: bf16, channels-last'):,.0f} images/s in bf16, so",
        f"where it is {last / rate(f'{large}: bf16'):.2f} times as fast",
        f"at {slow / rate('NVIDIA edm: fp16', old):.2f} of NVIDIA's ({slow:,.0f} images/s in bf16)",
        f"{pair['full']:.2f} times the base's time on the H100, {newer['full']:.2f} on the H200; "
        f"held over two steps {held[0]:.2f} and {held[1]:.2f}",
        f"CUDA graphs take {pair['base, CUDA graph']:.2f} of the time",
        f"{newer['base, CUDA graph']:.2f} with a faster one",
        f"gain nothing and {100 * (1 - newer['full, overlapped'] / newer['full']):.0f} %",
    )
    card, numba, torch = (
        old["toy ensembles"][f"{name} net-steps/s"] for name in ("card", "a core, numba", "a core, torch")
    )
    there = new["toy ensembles"]
    yield (
        "docs/gpu.md",
        f"{card / 1e6:.2f} million net-steps per second on the H100, {card / numba:.0f} times",
        f"{card / torch:.0f} times",
        f"{there['card net-steps/s'] / 1e6:.2f} million, "
        f"{there['card net-steps/s'] / there['a core, numba net-steps/s']:.0f} times a faster core",
    )
    yield "docs/networks.md", f"{card / numba:.0f} times the speed of one core of that machine with numba"
    yield (
        "docs/images-sims.md",
        f"In full that is {pair['full']:.2f} there, overlapped {pair['full, overlapped']:.2f}",
        f"{newer['full']:.2f} and {newer['full, overlapped']:.2f}",
    )
    yield "README.md", f"at {ratio:.2f} times the speed of NVIDIA's code"
    yield "docs/findings.md", f"at {ratio:.2f} and {ratio_large:.2f} times the speed of NVIDIA's code"
    hours = f"{bf16:,.0f} images/s in bf16: the published 200 million images are {2e8 / bf16 / 3600:.0f} hours"
    yield "notebooks/08_scaling_to_gpus.ipynb", hours


SECTIONS = (
    from_sweeps,
    from_gpu,
    from_images,
    from_retraining,
    from_collapse,
    from_control,
    from_stability,
    from_bias,
    from_benchmarks,
)
CLAIMS = [(document, sentence) for section in SECTIONS for document, *many in section() for sentence in many]


@pytest.mark.parametrize(("document", "sentence"), CLAIMS, ids=[f"{d}: {s[:50]}" for d, s in CLAIMS])
def test_the_document_says_what_the_table_says(document, sentence):
    assert words(sentence) in words((ROOT / document).read_text(encoding="utf-8"))
