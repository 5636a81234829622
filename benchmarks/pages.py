"""A sweep's tables, figures and page against its number of rows (cells x generations): seconds and memory.

``python benchmarks/pages.py [--rows 10000,100000,1000000] [--json FILE]``. Each sweep (exact learner, two trials) is
computed first; then its tables and page are taken away, and the same command makes them again: what is timed, with its
own memory, in a process of its own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import save

#: of one size of |D_s|
CELLS, GENERATIONS = 4 * 25, 100


def reported(words: list[str], out: Path) -> tuple[float, int]:
    """(seconds, bytes at the peak) of making everything but the loops of the sweep."""
    command = [sys.executable, "-m", "sims_toy.sweep", *words, "--out", str(out)]
    subprocess.run(command, check=True, capture_output=True)
    for path in out.iterdir():
        if path.is_file() and path.name not in ("settings.json", ".lock"):
            path.unlink()
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"{' '.join(command)}: exit {status}")
    return time.perf_counter() - start, usage.ru_maxrss * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="10000,100000,1000000")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    figures = []
    print(f"{'rows':>10}{'seconds':>10}{'µs per row':>10}{'memory':>10}{'page':>10}")
    for rows in map(int, args.rows.split(",")):
        wide = max(1, rows // (CELLS * GENERATIONS))  # ten times the rows: as many generations more, then cells
        long = min(5, wide)
        omegas = max(1, round(rows / (4 * GENERATIONS * long)))
        words = ["--learner", "exact", "--omega", f"0:5:{5 / omegas:.6g}", "--trials", "2", "--retuned", "none"]
        words += ["--generations", str(GENERATIONS * long), "--workers", "1"]
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            seconds, memory = reported(words, out)
            page = (out / "report.html").stat().st_size
        row = {"rows": 4 * (omegas + 1) * GENERATIONS * long, "seconds": seconds, "memory": memory, "page": page}
        figures.append(row)
        each = 1e6 * seconds / row["rows"]
        print(f"{row['rows']:>10,}{seconds:>10.1f}{each:>10.0f}{memory / 2**20:>7.0f} MB{page / 2**20:>7.1f} MB")
    save(args.json, figures)


if __name__ == "__main__":
    main()
