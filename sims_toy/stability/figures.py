"""The stability study's figures, drawn from its tables only."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sims_core.lab.style import METHOD, OUTSIDE, band, footnote, save, sequence, style, subplots
from sims_toy.flows.settings import flow_words
from sims_toy.networks.settings import unusual
from sims_toy.stability import theory
from sims_toy.theory import TOLERANCE

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_RED = OUTSIDE
#: of a picture of samples, each way
_PIXELS = 72
_CASE_STYLE = ("-", "--", ":", "-.")


def _name(ratio: float) -> str:
    return "fully synthetic" if math.isinf(ratio) else rf"$\lambda$ = {ratio:g}"


def _colours(ratios: list[float]) -> dict[float, str]:
    finite = [r for r in ratios if not math.isinf(r)]
    return dict(zip(finite, sequence(len(finite)), strict=True)) | {math.inf: _RED}


def settings_line(settings: dict[str, Any], learner: str) -> str:
    """Every setting that a learner's loops were run with, for captions."""
    return (
        f"|D_r| = {settings['real_size']}, {settings['trials']} paired trials, seed {settings['seed']}; "
        f"{_trained(settings, learner)}"
    )


def _trained(settings: dict[str, Any], learner: str) -> str:
    if learner == "exact":
        return "Gaussians by maximum likelihood, drawn exactly."
    ours = "steps and rates are our reading; the paper's ratios and rounds."
    if learner == "flow":
        flow = settings["models"][learner]
        return f"normalizing flows of {flow_words(flow)}; {_later(flow)}. Architecture, {ours}"
    net = settings["network"] if learner == "network" else settings["models"][learner]
    batch = net["batch"] or "all"
    told = ("layers", "width", "activation", "parametrisation", "target", "steps", "batch", "rate", "start",
            "warm_steps", "warm_rate", "auxiliary_rate")  # fmt: skip
    sampler = settings["sampler"] if learner == "network" else settings["samplers"][learner]
    return (
        f"networks {net['layers']} x {net['width']} {net['activation']}, {net['parametrisation']}, {net['target']} "
        f"target, first round {net['steps']} Adam steps of {batch} at {net['rate']:g}, {_later(net)}"
        f"{unusual(net, told)}; sampler {sampler}. Network, {ours}"
    )


def _later(trained: dict[str, Any]) -> str:
    return (
        f"later rounds {trained['warm_steps'] or trained['steps']} from the last round's network at "
        f"{trained['warm_rate'] or trained['rate']:g}"
    )


def learners(table: pd.DataFrame, stem: Path, *, settings: dict[str, Any]) -> list[Path]:
    """Every learner on one page, one column each: sample distance and, below it, parameter distance, per data set.

    Returns the paths written: stem.png and stem.svg.
    """
    names, reals = settings["learner"], settings["real"]
    with style():
        size = (2.4 * len(names) + 0.6, 4.6 * len(reals) + 0.9)
        figure, axes = subplots(2 * len(reals), len(names), figsize=size, squeeze=False, sharex=True, sharey="row")
        for row, real in enumerate(reals):
            for learner, upper, lower in zip(names, axes[2 * row], axes[2 * row + 1], strict=True):
                mine = table[(table["learner"] == learner) & (table["real"] == real)]
                _distance(upper, mine, real, settings)
                upper.set(title=f"{learner}, {real}", xlabel="")
                upper.get_legend().set_visible(upper is axes[0, 0])
                for ratio, colour in _colours(_few(mine["ratio"])).items():
                    part = mine[(mine["ratio"] == ratio) & np.isfinite(mine["parameters"])].sort_values("generation")
                    band(lower, part, "generation", "parameters", color=colour, alpha=0.15, lw=1.3)
                lower.locator_params(axis="x", integer=True)
                if learner != names[0]:
                    upper.set_ylabel("")
            axes[2 * row + 1, 0].set_ylabel(r"$\|\theta_t - \theta^*\|\,/\,\|\theta^*\|$")
        for axis in axes[-1]:
            axis.set_xlabel("round $t$")
        for shared in axes:
            shared[0].set_ylim(0, 1.04 * max(axis.dataLim.y1 for axis in shared))
        caption = (
            "Iterative retraining of every learner at equal steps for every ratio. Bands: 95 % bootstrap over trials; "
            r"grey: two real samples of the same size. $\theta^*$ is the same trial's last model of $\lambda$ = 0, so "
            f"that its own curve ends at 0. |D_r| = {settings['real_size']}, {settings['trials']} paired trials, seed "
            f"{settings['seed']}. " + " ".join(f"{name}: {_trained(settings, name)}" for name in names)
        )
        footnote(figure, caption, 48 * len(names), size=6)
        return save(figure, stem)


def distances(table: pd.DataFrame, stem: Path, learner: str, *, settings: dict[str, Any]) -> list[Path]:
    """One column per data set: the distance round by round, and at the end over that of real data alone.

    Returns the paths written: stem.png and stem.svg.
    """
    reals = settings["real"]
    with style():
        figure, axes = subplots(2, len(reals), figsize=(4.3 * len(reals), 7.1), squeeze=False)
        for name, upper, lower in zip(reals, *axes, strict=True):
            _distance(upper, table, name, settings)
            _against_real(lower, table, name)
        caption = (
            f"Iterative retraining (Bertrand et al., arXiv 2310.00429). Bands: 95 % bootstrap over trials; grey: two "
            f"real samples of the same size. {settings_line(settings, learner)} Second row: mean of the last rounds "
            "over that of real data alone, paired; grey line at 1.05."
        )
        footnote(figure, caption, 75 * len(reals))
        return save(figure, stem)


def theorem(frames: dict[str, pd.DataFrame], stem: Path, learner: str, *, settings: dict[str, Any]) -> list[Path]:
    """The rates; the theorem's condition, of this learner and in closed form; the collapse.

    Returns the paths written: stem.png and stem.svg.
    """
    reals, kind = settings["real"], {"network": "Networks", "exact": "Gaussians", "flow": "Flows"}.get(learner, learner)
    with style():
        figure, axes = subplots(2, 2, figsize=(8.6, 7.1))
        _rates(axes[0, 0], frames["rates"], reals, kind)
        _condition(axes[0, 1], frames["constants"], reals, kind)
        _closed_form(axes[1, 0], frames["closed_form"])
        _collapse(axes[1, 1], frames["collapse"])
        caption = (
            f"{settings_line(settings, learner)} Rates: the first round sees the data scaled by {settings['kick']:g}; "
            "what is left of the displacement after one more round, common random numbers. Closed form: thick, "
            "spectral radius of the integrated gradient flow's retraining map; thin, the theorem's bound, drawn where "
            "its condition holds; dotted verticals, its threshold."
        )
        footnote(figure, caption, 150)
        return save(figure, stem)


def _distance(axis: Axes, table: pd.DataFrame, real: str, settings: dict[str, Any]) -> None:
    mine = table[table["real"] == real]
    floor = mine.iloc[0]
    axis.axhspan(floor["floor_low"], floor["floor_high"], color="#dddddd", lw=0)
    axis.axhline(floor["floor"], color="#999999", lw=0.8)
    for ratio, colour in _colours(_few(mine["ratio"])).items():
        part = mine[(mine["ratio"] == ratio) & np.isfinite(mine["distance"])].sort_values("generation")
        axis.fill_between(part["generation"], part["low"], part["high"], color=colour, alpha=0.15, lw=0)
        axis.plot(part["generation"], part["distance"], color=colour, label=_name(ratio), lw=1.3)
    axis.set(title=f"{real}: distance to the data", xlabel="round $t$", ylabel=f"{settings['distance']} $W_2$")
    axis.set_ylim(0, None)
    axis.locator_params(axis="x", integer=True)
    axis.legend(ncols=2, fontsize=6.5)


def _few(ratios: pd.Series) -> list[float]:
    """None, the two largest, and the fully synthetic loop; the rest lies between."""
    known = sorted(ratios.unique())
    finite = [r for r in known if not math.isinf(r)]
    return sorted({*finite[:1], *finite[-2:], *(r for r in known if math.isinf(r))})


def _against_real(axis: Axes, table: pd.DataFrame, real: str) -> None:
    """How much farther off each ratio ends than real data alone, paired."""
    rows = table[(table["real"] == real) & np.isfinite(table["ratio"]) & (table["ratio"] > 0)]
    rows = rows.drop_duplicates("ratio").sort_values("ratio")
    place = np.arange(len(rows))
    error = np.abs(np.stack([rows["to_zero"] - rows["to_zero_low"], rows["to_zero_high"] - rows["to_zero"]]))
    axis.errorbar(place, rows["to_zero"], error, fmt="o", ms=4, color=METHOD["sims"], capsize=2, lw=1)
    axis.axhline(1, color="black", lw=0.8)
    axis.axhline(TOLERANCE, color="#888888", lw=0.7)
    axis.set_xticks(place, [f"{r:g}" for r in rows["ratio"]])
    axis.set(title=f"{real}: over real data alone", xlabel=r"$\lambda$", ylabel=r"$d_T(\lambda)\,/\,d_T(0)$")


def _rates(axis: Axes, table: pd.DataFrame, reals: list[str], kind: str) -> None:
    """Measured rates over lambda; the fully synthetic loop stands at the right edge."""
    ratios = sorted(table["ratio"].unique())
    place = {r: i for i, r in enumerate(ratios)}
    x = np.arange(len(ratios))
    axis.plot(x, [theory.linear_rate(r) for r in ratios], color="black", lw=1, label=r"$\lambda/(1+\lambda)$")
    known = theory.Constants(1.0, 0.0, 0.0)
    axis.plot(
        x,
        [known.rate(r) for r in ratios],
        color=_RED,
        lw=1,
        ls="--",
        label=r"bound $\rho(\lambda)$ at $\varepsilon$ = 0",
    )
    for k, (real, colour) in enumerate(zip(reals, sequence(max(2, len(reals)))[::-1], strict=False)):
        part = table[table["real"] == real]
        where = np.array([place[r] for r in part["ratio"]]) + 0.12 * (k - (len(reals) - 1) / 2)
        error = np.abs(np.stack([part["rate"] - part["rate_low"], part["rate_high"] - part["rate"]]))
        axis.errorbar(where, part["rate"], error, fmt="o", ms=3.5, color=colour, label=real, lw=1)
    axis.set_xticks(x, ["synthetic" if math.isinf(r) else f"{r:g}" for r in ratios])
    axis.set(title=f"{kind}: rate, measured", xlabel=r"$\lambda$ (and fully synthetic)", ylabel="left after one round")
    axis.legend(fontsize=7)


def _condition(axis: Axes, table: pd.DataFrame, reals: list[str], kind: str) -> None:
    """The theorem's left-hand side along each ratio's displacement; a cross at the top where alpha is not positive."""
    axis.axhline(0.5, color="black", lw=0.9, label="the theorem's 1/2")
    part = table[table["reading"].isin(["displacement", "exact"]) & np.isfinite(table["ratio"])]
    for real, colour in zip(reals, sequence(max(2, len(reals)))[::-1], strict=False):
        mine = part[part["real"] == real]
        known = mine[np.isfinite(mine["condition"])]
        axis.plot(known["ratio"], known["condition"], "o", ms=3.5, color=colour, label=real)
        lost = mine[~np.isfinite(mine["condition"])]
        axis.plot(lost["ratio"], np.full(len(lost), 0.97), "x", color=colour, transform=axis.get_xaxis_transform())
    fresh = table[table["reading"] == "smallest"]
    lowest = "\n".join(_curvature(fresh[fresh["real"] == r], r) for r in reals if (fresh["real"] == r).any())
    axis.set(xscale="log", yscale="log", xlabel=r"$\lambda$")
    axis.text(
        0.98,
        0.03,
        f"curvature along the smallest\neigenvalue, fresh points:\n{lowest}",
        transform=axis.transAxes,
        fontsize=6.5,
        ha="right",
    )
    axis.set(title=f"{kind}: the condition, along each loop's own way", ylabel=r"$\lambda(1 + L\varepsilon/\alpha)$")
    axis.legend(fontsize=7, loc="upper left")


def _curvature(rows: pd.DataFrame, real: str) -> str:
    """The lowest curvature over fresh points among a data set's networks, with its standard error."""
    lowest = rows.loc[rows["alpha"].idxmin()]
    return f"{lowest['alpha']:.3f} ± {lowest['held_out_se']:.3f} ({real})"


def _closed_form(axis: Axes, table: pd.DataFrame) -> None:
    for (name, part), colour in zip(table.groupby("case", sort=False), sequence(4), strict=False):
        part = part.sort_values("ratio")
        gaussian = str(name).startswith("Gaussian")
        text = "three Gaussian cases (one curve)" if gaussian else f"{name}"
        known = axis.get_legend_handles_labels()[1]
        axis.plot(part["ratio"], part["measured"], color="black" if gaussian else colour, lw=2,
                  ls=":" if gaussian else "-", label=None if text in known else text)  # fmt: skip
        sure = part[part["certified"]]
        axis.plot(sure["ratio"], sure["bound"], color=colour, lw=0.9, marker=".", ms=3, label=f"bound, {name}")
        axis.axvline(part["threshold"].iloc[0], color=colour, lw=0.7, ls=":")
    axis.axhline(1, color="#888888", lw=0.7)
    axis.set_xscale("log")
    axis.set(title="Closed form: rate and bound", xlabel=r"$\lambda$ (dotted: the theorem's threshold)", ylabel="rate")
    axis.set_ylim(0, 1.55)
    axis.legend(fontsize=6, loc="upper left", ncols=2)


def _collapse(axis: Axes, table: pd.DataFrame) -> None:
    for (divisor, part), colour in zip(table.groupby("divisor", sort=False), (METHOD["sims"], _RED), strict=False):
        axis.plot(part["generation"], part["closed_form"], color="black", lw=0.9)
        low, high = part["mean"] - 1.96 * part["se"], part["mean"] + 1.96 * part["se"]
        axis.fill_between(part["generation"], low, high, color=colour, alpha=0.5, lw=0)
        axis.plot(part["generation"], part["mean"], color=colour, lw=1, label=f"variance divided by {divisor}")
    n, trials = table["n"].iloc[0], table["trials"].iloc[0]
    axis.set(
        title=f"Fully synthetic Gaussian, n = {n}",
        xlabel=f"generation $t$ ({trials} trials; black: closed form)",
        ylabel=r"$E\,\sqrt{\Sigma_t}$",
    )
    axis.set_ylim(0, 1.05)
    axis.legend(fontsize=7)


def small_multiples(
    samples: pd.DataFrame, real: str, stem: Path, learner: str, *, settings: dict[str, Any]
) -> list[Path]:
    """The samples of one trial, a row for each ratio and a column for each round shown.

    Returns the paths written: stem.png and stem.svg.
    """
    mine, ratios, rounds, edges = _seen(samples, real)
    colours = _colours(ratios)
    with style():
        figure, axes = subplots(
            len(ratios), len(rounds), figsize=(1.12 * len(rounds) + 0.5, 1.12 * len(ratios) + 0.7), squeeze=False
        )
        for i, ratio in enumerate(ratios):
            for j, t in enumerate(rounds):
                axis = axes[i, j]
                part = mine[(mine["ratio"] == ratio) & (mine["generation"] == t)]
                axis.scatter(part["x"], part["y"], s=1.2, color=colours[ratio], lw=0, rasterized=True)
                axis.set(xlim=edges[0], ylim=edges[1], xticks=[], yticks=[], aspect="equal")
                if i == 0:
                    axis.set_title(f"round {t}", fontsize=8, loc="center")
                if j == 0:
                    axis.set_ylabel(_name(ratio).replace(" synthetic", "\nsynthetic"), fontsize=7.5)
        caption = (
            f"{real}: {len(mine) // len(ratios) // len(rounds)} samples of trial 0. {settings_line(settings, learner)}"
        )
        footnote(figure, caption, 16 * len(rounds) + 12, size=6)
        return save(figure, stem)


def clouds(samples: pd.DataFrame, real: str) -> tuple[list[float], dict[int, bytes]]:
    """The same samples without axes: the ratios from left to right, and a PNG by round."""
    from matplotlib.colors import to_rgb

    from sims_core.lab.picture import png

    mine, ratios, rounds, edges = _seen(samples, real)
    colours, made = _colours(ratios), {}
    for t in rounds:
        picture = np.full((_PIXELS, _PIXELS * len(ratios), 3), 255, dtype=np.uint8)
        for i, ratio in enumerate(ratios):
            part = mine[(mine["ratio"] == ratio) & (mine["generation"] == t)]
            there = np.histogram2d(part["x"], part["y"], _PIXELS, edges)[0].T[::-1] > 0
            picture[:, i * _PIXELS : (i + 1) * _PIXELS][there] = [round(255 * c) for c in to_rgb(colours[ratio])]
        made[int(t)] = png(picture)
    return ratios, made


def _seen(samples: pd.DataFrame, real: str) -> tuple[pd.DataFrame, list[float], list[int], list[tuple[float, float]]]:
    """A data set's samples, their ratios and rounds, and the edges of what is shown of them in x and y."""
    mine = samples[samples["real"] == real]
    mine = mine[mine["ratio"].isin(_few(mine["ratio"]))]  # those between cannot be told from their neighbours
    ratios, rounds = (sorted(mine[c].unique()) for c in ("ratio", "generation"))
    first = mine[mine["generation"] == rounds[0]][["x", "y"]]
    low, high = (first.quantile(q).to_numpy() for q in (0.005, 0.995))
    middle, half = (low + high) / 2, 0.62 * float((high - low).max())
    return mine, ratios, rounds, [(m - half, m + half) for m in middle]
