"""The command as a user meets it: outputs, the worked tables, reproducibility, resuming, refusals."""

import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from sims_core import InputError
from sims_core.lab.command import main_with_errors
from sims_core.lab.study import describe
from sims_toy import studies
from sims_toy.grid import measure as measuring
from sims_toy.grid import run as experiment
from sims_toy.sweep import PRESETS, NetworkSettings, Sweep, plan, report
from tests.image.ranks import kill, launch

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = [
    "learner", "method", "loop", "sampler", "real_size", "synthetic_size", "auxiliary_size", "budget", "omega",
    "generation", "trials", "diverged", "auxiliary_data", "temperature", "pollution", "real", "w2_sq_mean", "w2_mean",
    "w2_se", "w2_low", "w2_high", "ratio_own", "ratio_own_low", "ratio_own_high", "ratio_standard",
    "ratio_standard_low", "ratio_standard_high",
]  # fmt: skip
SMALL = Sweep(learner="exact", omega="0:4:2", synthetic="125,500", generations=6, trials=9, workers=1)


def sweep_here(*words):
    """The command's exit code, in this process."""
    return main_with_errors(studies.command("sweep"), list(map(str, words)))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return studies.run(dataclasses.replace(SMALL, out=str(tmp_path_factory.mktemp("sweep") / "run")))


def test_outputs(small):
    files = {p.name for p in small.folder.iterdir()}
    expected = {"settings.json", "sweep.parquet", "sweep.csv", "regimes.csv", "figure4.png", "figure4.svg"}
    assert expected | {"phase_diagram.png", "phase_diagram.svg", "theory.csv", "boundaries.csv"} <= files
    table = pd.read_parquet(small.folder / "sweep.parquet")
    assert list(table.columns) == COLUMNS
    cells = 2 * (1 + 2 + 3)  # per |D_s|: standard, its two controls, three omegas
    assert len(table) == cells * 6 and len(small.tables["regimes"]) == cells
    pd.testing.assert_frame_equal(table, pd.read_csv(small.folder / "sweep.csv", dtype={"budget": str}))
    zero = table[(table["method"] == "sims") & (table["omega"] == 0)].reset_index(drop=True)
    base = table[table["method"] == "standard"].reset_index(drop=True)
    np.testing.assert_array_equal(zero["w2_mean"], base["w2_mean"])  # omega = 0 is standard training, bit for bit
    assert ((table["w2_low"] <= table["w2_mean"]) & (table["w2_mean"] <= table["w2_high"])).all()
    first = table[table["generation"] == 1]
    assert (first["ratio_own"] == 1).all() and (first["ratio_own_high"] == 1).all()
    assert set(table[table["method"] == "equal-cost"]["sampler"]) == {"ddim:40"}
    assert report.conclusion(small.tables).startswith("|D_s| = 500: standard training")


def test_table_columns_mean_what_they_say(small):
    """Every statistic from the raw shards, independently."""
    shards = [np.load(p) for p in sorted((small.folder / "shards").glob("*.npz"))]
    exp = plan(SMALL).experiment
    w2 = np.full((len(exp.cells), 9, 6), np.nan)
    for shard in shards:
        w2[np.ix_(shard["cells"], shard["trials"])] = shard["w2"]
    table = small.tables["sweep"]
    for i, cell in enumerate(exp.cells):
        rows = table.iloc[i * 6 : (i + 1) * 6]
        np.testing.assert_allclose(rows["w2_mean"], w2[i].mean(0))
        np.testing.assert_allclose(rows["w2_sq_mean"], (w2[i] ** 2).mean(0))
        np.testing.assert_allclose(rows["w2_se"], w2[i].std(0, ddof=1) / 3)
        standard = next(
            j for j, c in enumerate(exp.cells) if c.method == "standard" and c.synthetic_size == cell.synthetic_size
        )
        np.testing.assert_allclose(rows["ratio_standard"], w2[i].mean(0) / w2[standard].mean(0)[0])
        assert (rows["omega"] == cell.omega).all() and list(rows["generation"]) == [1, 2, 3, 4, 5, 6]


# Worked table: d_1 and d_T / d_1(0), synthetic reading, auxiliary on 10,000 points, 200 trials, 60 generations
OMEGAS = (0, 0.5, 1, 2, 3, 4, 5)
TABLE7_FIRST = {
    "1": (0.146, 0.100, 0.080, 0.151, 0.292, 0.442, 0.592),
    "0.3": (0.145, 0.132, 0.122, 0.097, 0.076, 0.084, 0.099),
}
TABLE7_LAST = {
    125: (1.09, 0.99, 0.91, 0.71, 0.57, 0.60, 0.73),
    250: (1.18, 1.05, 0.93, 0.73, 0.61, 0.63, 0.75),
    500: (1.35, 1.22, 1.07, 0.81, 0.63, 0.66, 0.86),
    1000: (1.69, 1.51, 1.32, 0.98, 0.72, 0.69, 1.06),
}
# Worked table: train+synthetic, n_aux = m; columns omega = 0 1 2 3 4 5
TABLE8 = {
    125: (
        (0.147, 0.139, 0.127, 0.126, 0.133, 0.137),
        (1.09, 1.10, 1.09, 1.07, 1.04, 1.02),
        (1.09, 1.04, 0.94, 0.92, 0.94, 0.95),
    ),
    250: (
        (0.147, 0.131, 0.117, 0.120, 0.136, 0.151),
        (1.18, 1.19, 1.16, 1.08, 0.98, 0.95),
        (1.18, 1.07, 0.93, 0.88, 0.91, 0.98),
    ),
    500: (
        (0.147, 0.120, 0.106, 0.121, 0.161, 0.193),
        (1.34, 1.37, 1.25, 1.01, 0.84, 0.83),
        (1.34, 1.13, 0.91, 0.83, 0.91, 1.10),
    ),
    1000: (
        (0.147, 0.107, 0.101, 0.140, 0.212, 0.269),
        (1.65, 1.73, 1.31, 0.82, 0.76, 0.89),
        (1.65, 1.26, 0.90, 0.79, 1.09, 1.64),
    ),
}
THEIR_TRIALS = 200


def relative_error(regimes, name):
    return ((regimes[f"{name}_high"] - regimes[f"{name}_low"]) / (2 * 1.96 * regimes[name])).to_numpy()


def z_scores(regimes, name, expected, digits, trials, standard):
    """(ours - the table's) / standard error: ours from the interval, theirs for 200 trials, and the rounding's.

    Theirs were not paired across omega, so their d_T(w) / d_1(0) carries the errors of both distances in full.
    """
    value = regimes[name].to_numpy()
    ours = theirs = value * relative_error(regimes, name)
    if name == "standard":
        theirs = value * np.hypot(relative_error(regimes, "last"), relative_error(standard, "first")[0])
    rounding = 10.0**-digits / np.sqrt(12)
    return (value - np.array(expected)) / np.sqrt(ours**2 + theirs**2 * trials / THEIR_TRIALS + rounding**2)


def sims_rows(result, size, budget="1"):
    r = result.tables["regimes"]
    return r[(r["method"] == "sims") & (r["synthetic_size"] == size) & (r["budget"] == budget)].sort_values("omega")


def standard_row(result):
    r = result.tables["regimes"]
    return r[r["method"] == "standard"].iloc[:1]


def test_table_8_by_the_command(tmp_path, undrawn):
    trials = 200
    options = Sweep(learner="exact", omega="0:5:1", trials=trials, generations=60, retuned="none", workers=1)
    result = studies.run(dataclasses.replace(options, out=str(tmp_path / "run")))
    z = []
    for size, rows in TABLE8.items():
        cells = sims_rows(result, size)
        for name, expected, digits in zip(("first", "own", "standard"), rows, (3, 2, 2), strict=True):
            z.append(z_scores(cells, name, expected, digits, trials, standard_row(result)))
    z = np.abs(np.concatenate(z))
    assert z.max() < 4.2 and np.mean(z > 2) < 0.15, np.sort(z)[-8:]  # 72 figures, strongly correlated
    best = {size: float(sims_rows(result, size).set_index("omega")["standard"].idxmin()) for size in TABLE8}
    assert set(best.values()) <= {3.0, 4.0} and best[500] == best[1000] == 3.0
    # equal-cost control, worked: .74 / .85 / 1.02 for m = 125 / 500 / 1000
    r = result.tables["regimes"]
    control = r[(r["method"] == "equal-cost")].set_index("synthetic_size").loc[[125, 500, 1000]]
    assert np.abs(z_scores(control, "standard", (0.74, 0.85, 1.02), 2, trials, standard_row(result))).max() < 4
    regimes = {size: sims_rows(result, size).set_index("omega")["regime"] for size in TABLE8}
    assert regimes[1000][3.0] == regimes[500][4.0] == "prevention" and regimes[125][2.0] == "strong"
    assert regimes[1000][0.0] == "MAD" and regimes[1000][1.0] == "weak"


def test_table_7_by_the_command(tmp_path, undrawn):
    trials = 200

    def found(budget, **changes):
        sweep = Sweep(
            learner="exact", omega=",".join(map(str, OMEGAS)), auxiliary_data="synthetic", auxiliary_size="10000",
            budget=budget, trials=trials, retuned="none", workers=1, out=str(tmp_path / budget), **changes,
        )  # fmt: skip
        return studies.run(sweep)

    low, full = found("0.3", generations=60), found("1", generations=1, synthetic="125")
    base = standard_row(low)
    firsts = [(low, "0.3"), (full, "1")]
    z = [z_scores(sims_rows(made, 125, b), "first", TABLE7_FIRST[b], 3, trials, base) for made, b in firsts]
    z += [z_scores(sims_rows(low, size, "0.3"), "standard", v, 2, trials, base) for size, v in TABLE7_LAST.items()]
    z = np.abs(np.concatenate(z))
    assert z.max() < 4.2 and np.mean(z > 2) < 0.15, np.sort(z)[-8:]


def test_real_plus_synthetic_diverges_and_says_so(tmp_path):
    sweep = dataclasses.replace(
        SMALL, auxiliary_data="real+synthetic", omega="0,5", synthetic="1000", generations=20, out=str(tmp_path / "r")
    )
    result = studies.run(sweep)
    row = sims_rows(result, 1000).iloc[-1]
    assert row["regime"] == "divergent" and row["diverged"] > 0 and np.isinf(row["last"])
    assert row["diverged_share"] == row["diverged"] / 9 and np.isnan(row["minus_retuned"])
    assert row["diverged_share_low"] < row["diverged_share"] <= row["diverged_share_high"] <= 1
    table = result.tables["sweep"]
    worst = table[(table["omega"] == 5) & (table["generation"] == 20)].iloc[0]
    assert worst["diverged"] > 0 and np.isinf(worst["w2_mean"]) and np.isinf(worst["ratio_standard"])
    for _, cell in table.groupby(["method", "omega"]):
        assert cell.sort_values("generation")["diverged"].is_monotonic_increasing  # what has diverged stays so


def test_chunks_and_workers_do_not_change_a_bit():
    sweep = dataclasses.replace(SMALL, loop="augmentation,fresh,accumulate,mixed:0.3", method="sims,neon", trials=5)
    exp = plan(sweep).experiment
    reference = experiment.run(exp)["w2"]
    for chunk in (1, 7, 64):
        few = dataclasses.replace(exp, generations=2) if chunk == 1 else exp
        np.testing.assert_array_equal(experiment.run(few, chunk=chunk)["w2"], reference[..., : few.generations])
    np.testing.assert_array_equal(experiment.run(exp, chunk=50, workers=2)["w2"], reference)


@pytest.mark.parametrize("learner", ["exact", "network"])
@pytest.mark.parametrize("dim", [1, 3, 5])
def test_chunks_do_not_change_a_bit_in_any_dimension(learner, dim):
    covariance = ";".join(",".join(str(2.3 if i == j else 0.3) for j in range(dim)) for i in range(dim))
    sweep = Sweep(
        learner=learner,
        omega="0,1,2",
        real_mean=",".join("0.5" for _ in range(dim)),
        real_covariance=covariance,
        sampler="ddim:5",
        real_size="60",
        synthetic="40",
        trials=5,
        generations=2,
        network=NetworkSettings(steps=10, batch=16, width=8),
    )
    exp = plan(sweep).experiment
    reference = experiment.run(exp)["w2"]
    assert np.isfinite(reference).all()
    for chunk in (1, 4):
        np.testing.assert_array_equal(experiment.run(exp, chunk=chunk)["w2"], reference)


def test_standard_training_alone(tmp_path):
    sweep = Sweep(
        learner="exact", method="standard", loop="augmentation,accumulate", generations=5, trials=9, workers=1,
        out=str(tmp_path / "run"),
    )  # fmt: skip
    result = studies.run(sweep)
    assert {p.name for p in result.figures} == {"loops.png", "loops.svg"}
    assert len(report.summary(result.tables).splitlines()) == 1 + 8 and set(result.tables["regimes"]["method"]) == {
        "standard"
    }
    assert "standard training ends at" in report.conclusion(result.tables)


def test_each_sampler_has_its_own_control(tmp_path, undrawn):
    sweep = dataclasses.replace(SMALL, sampler="ddim:20,ddim:10", synthetic="500", out=str(tmp_path / "run"))
    result = studies.run(sweep)
    regimes = result.tables["regimes"]
    for method, expected in (("equal-cost", ("ddim:40", "ddim:20")), ("retuned", ("rk4:4", "rk4:4"))):
        controls = regimes[regimes["method"] == method].set_index("reference")["sampler"].to_dict()
        assert controls == dict(zip(("ddim:20", "ddim:10"), expected, strict=True))
    lines = report.summary(result.tables).splitlines()
    assert "sampler" in lines[0] and len(lines) == 3 and lines[1].split()[3] != lines[2].split()[3]


def test_the_retuned_control_never_costs_more_than_sims():
    def controls(**options):
        cells = plan(Sweep(learner="exact", omega="0,1", synthetic="50", trials=2, **options)).experiment.cells
        return [cell.sampler for cell in cells if cell.method == "retuned"]

    assert controls() == ["rk4:4"] and controls(sampler="heun:3") == ["rk4:2"]  # 5 evaluations a network
    assert controls(sampler="ddim:2") == [] == controls(retuned="none") == controls(method="standard,neon")
    assert controls(sampler="exact") == [] == controls(sampler="rk4:4")
    assert controls(retuned="rk4:4,heun:19") == ["rk4:4", "heun:19"] == controls(retuned="rk4:4,heun:19,rk4:4")
    for text in ("heun:20", "exact", "rk4"):
        with pytest.raises(InputError, match="retuned"):
            controls(retuned=text)
    names = [cell.method for cell in plan(SMALL).experiment.cells]
    assert names[:10] == 2 * ["standard", "equal-cost", "sims", "sims", "sims"] and names[10:] == 2 * ["retuned"]


def test_paired_differences_from_the_controls(small, undrawn):
    """SIMS less each control, trial by trial, from the trials that the run keeps; the better retuned sampler counts."""
    trials, regimes = small.tables["trials"], small.tables["regimes"]
    assert len(trials) == 12 * 9 and trials["trial"].nunique() == 9
    late = trials.set_index(["method", "omega", "synthetic_size", "trial"])["last"].sort_index()
    start = trials[trials["method"] == "standard"].set_index(["synthetic_size", "trial"])["first"]
    for _, row in regimes.iterrows():
        m = row["synthetic_size"]
        mine = late[row["method"], row["omega"], m]
        assert row["last"] == pytest.approx(mine.mean(), rel=5e-4)
        for name in ("equal-cost", "retuned"):
            gap, first = mine - late[name, 0.0, m], start[m]
            stem = f"minus_{name.replace('-', '_')}"
            assert row[stem] == pytest.approx(gap.mean() / first.mean(), abs=1e-3)
            half = 2.45 * (gap - row[stem] * first).std(ddof=1) / first.mean() / 3  # of a ratio, to first order
            assert row[f"{stem}_high"] - row[f"{stem}_low"] == pytest.approx(2 * half, rel=0.35, abs=1e-3)
    both = studies.run(dataclasses.replace(SMALL, retuned="rk4:2,rk4:4", out=str(small.folder.parent / "both")))
    r = both.tables["regimes"]
    least = r[r["method"] == "retuned"].groupby("synthetic_size")["standard"].min()
    sims = r[r["method"] == "sims"]
    expected = sims["standard"].to_numpy() - least[sims["synthetic_size"]].to_numpy()
    np.testing.assert_allclose(sims["minus_retuned"], expected, atol=1e-12)
    assert "; without SIMS, at no more evaluations, " in report.conclusion(both.tables)


def test_trial_values_give_the_regimes_again(small):
    """Four digits a trial are enough to bootstrap again: means, ratios and shares of diverged trials."""
    for frame in (small.tables["trials"], pd.read_parquet(small.folder / "trials.parquet")):
        found = frame.groupby(["method", "omega", "synthetic_size"])[["first", "last"]].mean()
        regimes = small.tables["regimes"].set_index(["method", "omega", "synthetic_size"])
        np.testing.assert_allclose(found["last"] / found["first"], regimes["own"].loc[found.index], rtol=5e-4)
    assert not (small.folder / "trials.csv").exists()


def test_omega_zero_stays_the_base_where_the_auxiliary_diverges(tmp_path):
    sweep = Sweep(
        omega="0,2", synthetic="40", real_size="60", trials=3, generations=2, workers=1, budget="0.32k",
        network=NetworkSettings(steps=20, batch=16, width=8, auxiliary_rate=1e30), out=str(tmp_path / "run"),
    )  # fmt: skip
    regimes = studies.run(sweep).tables["regimes"].set_index(["method", "omega"])
    assert regimes.loc[("sims", 2.0), "regime"] == "divergent"
    assert regimes.loc[("sims", 0.0), "first"] == regimes.loc[("standard", 0.0), "first"]


def bytes_of(folder):
    return {n: (Path(folder) / n).read_bytes() for n in ("sweep.csv", "regimes.csv", "sweep.parquet")}


EXACT_RUN = "--learner exact --omega 0,2 --synthetic 125 --trials 40 --generations 6 --chunk 10"
NETWORK_RUN = (
    "--omega 0,2 --synthetic 40 --real-size 60 --trials 9 --generations 3 --chunk 4 --overlay-trials 20 "
    "--network.steps 40 --network.batch 16 --network.width 8"
)


@pytest.mark.parametrize("words", [EXACT_RUN, NETWORK_RUN], ids=["exact", "network"])
def test_killed_and_resumed_by_the_same_command(tmp_path, words, capsys, undrawn):
    """Killed in a process of its own at any moment; the results are those of this process, byte for byte."""
    words, whole, out = [*words.split(), "--workers", "1"], tmp_path / "whole", tmp_path / "killed"

    assert sweep_here(*words, "--out", whole) == 0
    started = launch(["-m", "sims_toy.sweep", *words, "--out", str(out)])
    deadline = time.monotonic() + 90
    while not list(out.glob("shards/*.npz")) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(float(np.random.default_rng().uniform(0, 0.3)))  # any moment will do
    kill(started)
    kept = {p.name: p.stat().st_mtime_ns for p in out.glob("shards/*.npz") if not p.name.startswith(".")}
    assert kept and not (out / "finished.json").exists()
    assert sweep_here(*words, "--out", out, "--chunk", "7") == 0
    assert all((out / "shards" / name).stat().st_mtime_ns == t for name, t in kept.items())  # nothing recomputed
    assert bytes_of(out) == bytes_of(whole)
    capsys.readouterr()
    assert sweep_here(*words, "--out", out) == 0 and "finished: nothing to compute" in capsys.readouterr().out
    assert sweep_here(*words, "--out", out, "--seed", "5") == 2
    error = capsys.readouterr().err
    assert "seed: 0 there, 5 here" in error and error.count("\n") == 1


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for child processes in /proc")
def test_workers_end_with_a_killed_run(tmp_path):
    """SIGKILL to the command alone: its workers, in the middle of long pieces, do not go on without it."""
    words = "--trials 400 --generations 2000 --synthetic 50 --learner exact --omega 0:2 --workers 2 --chunk 400"
    line = [sys.executable, "-m", "sims_toy.sweep", *words.split(), "--out", tmp_path / "run"]
    process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def workers():
        listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(c) for c in listed if b"LokyProcess" in Path(f"/proc/{c}/cmdline").read_bytes()]

    def alive(pid):
        return b"LokyProcess" in (Path(f"/proc/{pid}/cmdline").read_bytes() if Path(f"/proc/{pid}").exists() else b"")

    def until(condition, seconds=60):
        end = time.monotonic() + seconds
        while not (found := condition()) and time.monotonic() < end:
            time.sleep(0.2)
        return found

    try:
        found = until(lambda: w if len(w := workers()) == 2 else None)
        assert found, "no workers appeared"
        assert until(lambda: all(_threads(w) > 1 for w in found)), "the watch did not begin"
        time.sleep(2)
        process.kill()
        process.wait()
        assert until(lambda: not any(alive(w) for w in found), 30), "the workers live on"
    finally:
        process.kill()


def _threads(pid):
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def test_networks_beside_the_exact_learner(tmp_path, undrawn):
    """The default learner: its rows first, the exact learner's beneath; chunks and workers do not change a bit."""
    tiny = Sweep(
        omega="0:2:1",
        synthetic="40",
        real_size="60",
        trials=8,
        generations=3,
        workers=1,
        overlay_trials=40,
        network=NetworkSettings(steps=40, batch=16, width=8),
        out=str(tmp_path / "run"),
    )
    result = studies.run(tiny)
    regimes = result.tables["regimes"]
    assert list(regimes["learner"].unique()) == ["network", "exact"]
    assert set(regimes[regimes["learner"] == "network"]["budget"]) == {"0", "0.64k"}
    assert (regimes[regimes["learner"] == "exact"]["trials"] == 40).all()
    assert regimes[regimes["learner"] == "network"]["twin_correlation"].between(-1, 1).all()
    table = result.tables["sweep"]
    network = table[table["learner"] == "network"]
    zero = network[(network["method"] == "sims") & (network["omega"] == 0)]["w2_mean"].to_numpy()
    np.testing.assert_array_equal(zero, network[network["method"] == "standard"]["w2_mean"].to_numpy())
    assert len(result.tables["theory"]) and report.conclusion(result.tables).startswith("|D_s| = 40")
    exp = plan(tiny).experiment
    reference = experiment.run(exp)["w2"]
    for chunk in (1, 5, 64):
        np.testing.assert_array_equal(experiment.run(exp, chunk=chunk)["w2"], reference)
    np.testing.assert_array_equal(experiment.run(exp, chunk=3, workers=2)["w2"], reference)


def test_one_thread_a_worker(monkeypatch):
    """The thread trap: whatever torch was set to, a piece of work runs on one thread, and leaves the setting alone."""
    import torch

    exp = plan(dataclasses.replace(SMALL, generations=2, trials=2)).experiment
    seen = []
    honest = measuring.LEARNERS["exact"].measure

    def spy(*args):
        seen.append(torch.get_num_threads())
        return honest(*args)

    spied = dataclasses.replace(measuring.LEARNERS["exact"], measure=spy)
    monkeypatch.setitem(measuring.LEARNERS, "exact", spied)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        experiment.run(exp)["w2"]
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_neons_toy_in_small(tmp_path):
    """The preset, with fewer steps: one generation, two score scales and two budgets, a sentence without regimes."""
    neon = PRESETS["neon"]
    sweep = dataclasses.replace(
        neon,
        omega="-1:1:1",
        trials=2,
        budget="2k,4k",
        network=dataclasses.replace(neon.network, steps=30),
        out=str(tmp_path / "run"),
        workers=1,
    )
    result = studies.run(sweep)
    regimes = result.tables["regimes"]
    merged = regimes[regimes["method"] == "neon"]
    assert len(merged) == 2 * 2 * 3 and (merged["nfe"] == 19).all()
    assert (regimes["regime"] == "undecided").all() and len(result.tables["theory"]) == 0
    assert report.conclusion(result.tables).startswith("One generation: ")
    assert [p.name for p in result.figures if p.suffix == ".png"] == ["strengths.png"]


def test_readings_with_scaled_negatives(tmp_path):
    sweep = Sweep(
        learner="exact", method="neon", omega="-1:1:1", auxiliary_data="synthetic@0.9,synthetic", generations=1,
        trials=8, out=str(tmp_path / "run"), workers=1,
    )  # fmt: skip
    regimes = studies.run(sweep).tables["regimes"]
    assert set(regimes["auxiliary_data"]) == {"none", "synthetic@0.9", "synthetic"}
    by = regimes[regimes["omega"] == 1].groupby("auxiliary_data")["first"].mean()
    assert by["synthetic@0.9"] != by["synthetic"]


def test_estimators_are_an_axis_with_diagrams_of_their_own(small, tmp_path):
    """Each one's cells are those of a sweep of it alone; settings and tables name it, but not where all is mle."""
    sweep = dataclasses.replace(SMALL, sampler="rk4:4", omega="0,2", estimator="mle,smooth:0.4,decay:0.3")
    made = studies.run(dataclasses.replace(sweep, out=str(tmp_path / "run")))
    assert "estimator" not in small.tables["sweep"] and "estimator" not in plan(SMALL).settings
    assert plan(sweep).settings["estimator"] == ["mle", "smooth:0.4", "decay:0.3"]
    alone = plan(dataclasses.replace(sweep, estimator="smooth:0.4")).experiment
    values = experiment.run(alone)["w2"]
    regimes = made.tables["regimes"]
    for cell, row in zip(alone.cells, values, strict=True):
        same = (regimes["estimator"] == "smooth:0.4") & (regimes["method"] == cell.method)
        same &= (regimes["omega"] == cell.omega) & (regimes["synthetic_size"] == cell.synthetic_size)
        assert regimes[same & (regimes["sampler"] == cell.sampler)]["first"].item() == pytest.approx(row[:, 0].mean())
    edges = made.tables["bias_boundaries"]
    assert set(edges["kind"]) == {"smooth", "decay"} and set(edges["synthetic_size"]) == {125, 500}
    best = edges[(edges["regime"] == "optimum") & (edges["kind"] == "smooth")].sort_values("bias")["omega_low"]
    assert best.iloc[0] < 0.1 and best.iloc[-1] > 1  # no bias, nothing to remove
    names = {path.name for path in (tmp_path / "run").glob("phase_diagram*.png")}
    assert {"phase_diagram.png", "phase_diagram-smooth-125.png", "phase_diagram-decay-500.png"} <= names


def test_exit_code_from_the_shell(tmp_path):
    words = [sys.executable, "-m", "sims_toy.sweep", "--omega", "5:0", "--out", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


def test_help_and_dry_run(tmp_path, capsys):
    with pytest.raises(SystemExit, match="0"):
        sweep_here("--help")
    text = capsys.readouterr().out
    assert all(f"--{f.name.replace('_', '-')}" in text for f in dataclasses.fields(Sweep))
    grid = ("--learner", "exact", "--omega", "0:5", "--generations", "5", "--trials", "20")
    assert sweep_here("--dry-run", *grid, "--out", tmp_path / "run") == 0
    printed = capsys.readouterr().out
    assert "estimate" in printed and "56 cells" in printed and not (tmp_path / "run").exists()


def test_presets_are_defaults_that_options_override(capsys):
    changed = ("--learner", "exact", "--trials", "20", "--generations", "3", "--omega", "0:2:1")
    assert sweep_here("--preset", "figure4", "--dry-run", *changed) == 0
    printed = capsys.readouterr().out
    assert "train+synthetic, synthetic, real+synthetic" in printed and "0.0, 1.0, 2.0" in printed
    for preset in PRESETS.values():
        assert describe(plan(preset), estimate=False)


AXES = {
    "method": "standard,sims,neon", "loop": "augmentation,fully-synthetic", "sampler": "ddim:5,exact",
    "auxiliary_data": "synthetic,train+synthetic", "real_size": "100,200", "synthetic": "50:100:50",
    "auxiliary_size": "30,60", "budget": "0:1:1",
}  # fmt: skip


@pytest.mark.parametrize(("half", "facets", "pictures"), [(slice(None, 4), 1, 3), (slice(4, None), 2, 4)])
def test_every_axis_takes_a_grid(tmp_path, monkeypatch, half, facets, pictures):
    """The cells are those of all axes at once; a run and its report take a half of them each."""
    monkeypatch.setattr(report, "MOST_FACETS", facets)
    sweep = Sweep(
        learner="exact", omega="0,1", synthetic="50", generations=2, trials=3, workers=1, out=str(tmp_path / "run")
    )
    columns = [{"synthetic": "synthetic_size"}.get(name, name) for name in AXES]
    guided = [c for c in plan(dataclasses.replace(sweep, **AXES)).experiment.cells if c.method in ("sims", "neon")]
    values = [tuple(str(getattr(cell, axis)) for axis in (*columns, "omega")) for cell in guided]
    assert len(set(values)) == len(values) == 2 ** (len(AXES) + 1)
    assert all(len(set(axis)) == 2 for axis in zip(*values, strict=True))
    result = studies.run(dataclasses.replace(sweep, **dict([*AXES.items()][half])))
    axes = columns[half]
    regimes = result.tables["regimes"]
    guided = regimes[regimes["method"].isin(["sims", "neon"])]
    assert [guided[a].nunique() for a in axes] == [2] * len(axes)
    assert len(guided) == 2 ** (len(axes) + 1) and not guided.duplicated([*axes, "omega"]).any()
    assert (regimes["regime"][regimes["diverged"] == 0] == "undecided").all()  # three trials decide nothing
    assert len([p for p in result.figures if p.suffix == ".png"]) == pictures  # two a facet, and methods compared


def test_settings_record(small):
    record = json.loads((small.folder / "settings.json").read_text())
    assert record["settings"]["omega"] == [0.0, 2.0, 4.0] and record["settings"]["trials"] == 9
    assert record["provenance"]["version"] and "torch" in record["provenance"]["libraries"]


@pytest.mark.parametrize(
    ("regime", "candidates", "words"),
    [
        ("strong", "strong", "strong mitigation"),
        ("undecided", "prevention or strong", "undecided (prevention or strong mitigation)"),
        ("undecided", "prevention or too few trials", "undecided (prevention; too few trials)"),
    ],
)
def test_regimes_in_words(regime, candidates, words):
    assert report._regime(pd.Series({"regime": regime, "candidates": candidates})) == words


def test_a_sweep_of_one_generation_has_a_figure_of_its_own(tmp_path):
    """A line a reading and a panel a budget, with standard training across; nothing is said of convergence."""
    sweep = Sweep(
        learner="exact", method="standard,neon", omega="-1:1:0.5", synthetic="200", budget="0.3,1",
        auxiliary_data="synthetic,train+synthetic", generations=1, trials=9, workers=1, out=str(tmp_path / "run"),
    )  # fmt: skip
    result = studies.run(sweep)
    assert [p.name for p in result.figures] == ["strengths.png", "strengths.svg"]
    drawn = (tmp_path / "run" / "strengths.svg").read_text()
    for word in ("budget 0.3", "budget 1", "train+synthetic:", "base:"):
        assert word in drawn or word.replace(" ", "&#160;") in drawn, word
    assert "mean of the last ten" not in drawn
