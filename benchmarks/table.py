"""All benchmarks that need no GPU: `README.md` beside this file, from the files in `results`.

    python benchmarks/table.py          # write the table
    python benchmarks/table.py --run    # measure first, about 25 minutes of two idle cores; resumes

``--run`` passes over what was measured in this checkout on this machine within the last ``--hours`` (12); ``--only
ensemble,training-digits`` names some. Each result says its processor, threads, SGEMM rate, load and time. Not here:
`gpu.py` (docs/gpu.md), and `retrain_averages.py`, which draws a figure.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from machine import in_words, processor

from sims_core.lab.runs import duration, write_atomic, write_json

HERE = Path(__file__).resolve().parent
RESULTS, TABLE = HERE / "results", HERE / "README.md"
Rows = Iterable[tuple[str, str]]


class Bench(NamedTuple):
    """words: script and options. seconds: it takes about, alone. rows: (what, found) of its figures."""

    words: str
    seconds: int
    rows: Callable[[Any], Rows]


#: of a step, as `ensemble.roofline` has them
_PARTS = {"products": "its products by the library alone", "silu": "SiLU", "fixed": "Adam and what no row needs"}


def _ensemble(found: Any) -> Rows:
    for row in found["speed"]:
        widths, share = " x ".join(map(str, row["widths"])), row["share_of_sgemm"]
        yield f"{row['loop']}, widths {widths}", f"{row['ratio']:.1f}x the usual loop, {share:.0%} of SGEMM"
    for row in found.get("roofline", ()):
        of = [f"{name} {row[f'{part}_us']:.1f}" for part, name in _PARTS.items()]
        yield (
            f"of a compiled step of {row['step_us']:.1f} µs, widths {' x '.join(map(str, row['widths']))}",
            ", ".join(of),
        )
    for row in found["quality"]:
        if row["steps"]:
            yield f"to 1.1 x the fit's W2: {row['loop']}", f"{row['cpu_ms_per_network']:.3g} ms per network"


def _training(found: Any) -> Rows:
    way = f"{found['precision']}{', channels-last' * found['channels_last']}{', compiled' * found['compile']}"
    what = f"{found['preset']}, {found['images']} images, {way}{' (auto)' * found.get('auto', False)}"
    yield what, f"{found['ratio']:.2f}x the plain eager step, {found['gflops']:.0f} GFLOP/s"


def _networks(found: Any) -> Rows:
    for row in found["rows"]:
        yield f"{found['preset']}, {row['network']}", f"{row['ratio']:.2f}x the plain pass"


def _sampling(found: Any) -> Rows:
    for preset, rows in found["presets"].items():
        for row in rows:
            if row["way"] != "base":
                yield f"{preset}, {row['way']}", f"{row['ratio']:.2f} of the base's time"


def _metrics(found: Any) -> Rows:
    for name, row in found["streamed"].items():
        seconds = {
            "generating": 1e-3 * row["generating_ms"] * row["n"],
            "features": 1e-3 * row.get("features_ms", math.nan) * row["n"],
        }
        seconds |= {"gathering": 1e-3 * row["gathering_ms"] * row["n"], "metrics": row["metrics_s"]}
        total = sum(value for value in seconds.values() if not math.isnan(value))
        parts = ", ".join(f"{part} {value / total:.1%}" for part, value in seconds.items() if not math.isnan(value))
        yield f"confirmation of {row['n']:,} images, {name}", f"{duration(total)}: {parts}"
        if "generating_share_of_sgemm" in row:
            share = row["generating_share_of_sgemm"]
            yield f"bound of it, {name}", f"the network's products, at {share:.0%} of SGEMM"


def _scaling(found: Any) -> Rows:
    yield f"2 workers, {found['pieces']} cells of {found['piece_s']:.2f} s", f"{found['scaling']:.2f}x one worker"
    yield "2 Dask workers against those", f"{found['dask_overhead']:+.1%} time"
    busy = f", {found['scheduler_cores']:.1%} of a core for client and scheduler" if "scheduler_cores" in found else ""
    yield "the same, set up as docs/networks.md says", f"{found['dask_overhead_set']:+.1%} time{busy}"


def _pages(found: Any) -> Rows:
    for row in found:
        each = f"{1e6 * row['seconds'] / row['rows']:.0f} µs per row, {row['memory'] / 2**20:.0f} MB at the peak"
        yield f"tables, figures and page of {row['rows']:,} rows", f"{row['seconds']:.1f} s, {each}"


def _prepare(found: Any) -> Rows:
    for what, row in found.items():
        yield what, f"{row['per_cpu_s']:,.0f} images per CPU-second"


def _sweep(found: Any) -> Rows:
    yield (
        f"exact grid of {found['grid_cells']} cells",
        f"{found['loops_per_s']:.0f} loops/s, {found['grid_wall_s']:.1f} s",
    )
    for name in ("|D_r| = 1,000,000", "200 trials", "400 trials", "beside_busy_cores"):
        yield name.replace("beside_busy_cores", "all cores busy elsewhere"), f"{found[name]:.2f}x the CPU time"
    yield "--help", f"{found['help_s']:.2f} s"


def _response(found: Any) -> Rows:
    for size in sorted({row["size"] for row in found}):
        rows = [row for row in found if row["size"] == size]
        ratios = [row[f"gain_{w:g}"] for row in rows for w in (0, 0.5, 1)]
        yield f"E[W2²] over linear response, ω ≤ 1, |D_s| = {size}", f"{min(ratios):.2f} to {max(ratios):.2f}"


def _collapse(found: Any) -> Rows:
    for budget in sorted({row["budget"] for row in found}):
        worst = max(abs(row["z"]) for row in found if row["budget"] == budget)
        yield f"networks against theory at their η, budget {budget:,}", f"at most {worst:.1f} standard errors apart"


def _figure4(found: Any) -> Rows:
    for row in found["fits"]:
        yield (
            f"{row['steps']} steps of {row['rows']} {row['draws']} rows, posterior over {row['reference']}",
            f"{row['ms']:.1f} ms per network, {row['distance']:.4f} ± {row['se']:.4f} from the fit",
        )
    for row in found["looks"]:
        yield (
            f"stopping decided cells at {row['looks']} trials",
            f"{row['loops']:.0%} of the loops, {row['undecided']} of {row['cells']} cells undecided, "
            f"{row['contradicted']} against all 48 trials",
        )


#: by the name of its file in `results`. Seconds on two cores at 100 to 160 GFLOP/s each
BENCHMARKS = {
    "ensemble": Bench("ensemble.py", 100, _ensemble),
    **{
        f"training-{preset}{name}": Bench(
            f"training.py --preset {preset} --images {images} {words}", seconds, _training
        )
        for preset, images in (("digits", 64), ("fashion16", 16), ("cifar10-tiny", 4))
        for name, words, seconds in (("", "", 20), ("-auto", "--auto", 30))
    },
    "training-digits-compiled": Bench(
        "training.py --preset digits --images 64 --precision bf16 --compile", 120, _training
    ),
    "training-fashion16-compiled": Bench(
        "training.py --preset fashion16 --images 16 --precision bf16 --compile", 140, _training
    ),
    "networks": Bench("networks.py --rounds 2", 60, _networks),
    "sampling": Bench("sampling.py", 60, _sampling),
    "metrics": Bench("metrics.py", 130, _metrics),
    "scaling": Bench("scaling.py --rounds 2", 160, _scaling),
    "sweep": Bench("sweep.py", 150, _sweep),
    "pages": Bench("pages.py", 150, _pages),
    "prepare": Bench("prepare.py", 90, _prepare),
    "linear_response": Bench("linear_response.py --trials 500", 60, _response),
    "figure4": Bench("figure4.py", 45, _figure4),
    "eta_collapse": Bench("eta_collapse.py", 60, _collapse),
}


def table(results: Path = RESULTS) -> str:
    """The whole of README.md."""
    total = sum(bench.seconds for bench in BENCHMARKS.values())
    lines = [
        "# What is claimed about speed, measured",
        "",
        "Written by `python benchmarks/table.py` from the files in `results`, by hand nowhere. `make benchmarks`",
        f"(`python benchmarks/table.py --run`) measures all of it first, in about {total / 60:.0f} minutes of two idle "
        "cores, and",
        "resumes where it was stopped. Each ratio is of one run, on the machine that the line above it names; a load "
        "far above the benchmark's own",
        "(1, or 2 with two workers) means that others were at work. What GPUs do: [`docs/gpu.md`](../docs/gpu.md).",
        "",
        "| benchmark | takes about |\n|---|---|",
        *(f"| `{name}`: `{bench.words.strip()}` | {duration(bench.seconds)} |" for name, bench in BENCHMARKS.items()),
    ]
    for name, bench in BENCHMARKS.items():
        path = results / f"{name}.json"
        if path.exists():
            known = json.loads(path.read_text())
            took = f" Took {duration(known['took'])}." if "took" in known else ""
            lines += ["", f"## {name}", "", f"On {in_words(known['machine'])}.{took}", "", "| | |", "|---|---|"]
            lines += [
                f"| {what.replace('|', chr(92) + '|')} | {value} |" for what, value in bench.rows(known["figures"])
            ]
    return "\n".join(lines) + "\n"


def recent(path: Path, hours: float) -> bool:
    """Whether a result is of this machine and of the last hours."""
    if not path.exists():
        return False
    known = json.loads(path.read_text())["machine"]
    then = time.strptime(known.get("utc", "2000-01-01 00:00"), "%Y-%m-%d %H:%M")
    here = time.mktime(time.gmtime()) - time.mktime(then) < 3600 * hours
    return here and known["processor"] == processor()


def run(name: str, results: Path = RESULTS) -> bool:
    """Measure one: its JSON and what it printed, in `results`. Whether it ended well; if not, nothing is kept."""
    script, *words = BENCHMARKS[name].words.split()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parent)}
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        words += ["--json", str(out), *(["--out", folder] if name == "eta_collapse" else [])]
        start = time.perf_counter()
        command = [sys.executable, str(HERE / script), *words]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True)
        took = time.perf_counter() - start
        if done.returncode:
            print(done.stderr[-2000:], file=sys.stderr)
            return False
        results.mkdir(exist_ok=True)
        write_json(results / f"{name}.json", json.loads(out.read_text()) | {"took": round(took, 1)})
    write_atomic(results / f"{name}.txt", lambda path: path.write_text(done.stdout))
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", action="store_true", help="measure before")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help="which, by name")
    parser.add_argument("--hours", type=float, default=12, help="results as old as that are measured again")
    args = parser.parse_args()
    failed = []
    for name in args.only.split(",") if args.run else []:
        if not recent(RESULTS / f"{name}.json", args.hours):
            print(f"{name}: about {duration(BENCHMARKS[name].seconds)}", flush=True)
            failed += [] if run(name) else [name]
    write_atomic(TABLE, lambda path: path.write_text(table()))
    if failed:
        raise SystemExit(f"failed: {', '.join(failed)}; the same command tries them again")


if __name__ == "__main__":
    main()
