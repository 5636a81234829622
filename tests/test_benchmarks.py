"""Every benchmark runs, prints a table and writes its figures; what they measure is not judged here."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sweep.py", ["--quick"]),
        ("linear_response.py", ["--trials", "8", "--workers", "1"]),
        ("eta_collapse.py", ["--trials", "2", "--exact-trials", "100"]),
        ("ensemble.py", ["--networks", "2", "--rounds", "1"]),
        ("prepare.py", ["--images", "400"]),
        ("networks.py", ["--preset", "digits", "--rounds", "1"]),
        ("metrics.py", ["--n", "300", "--widths", "16", "--streamed", "digits", "--images", "24"]),
        ("sampling.py", ["--presets", "digits", "--sampler", "heun:3", "--batch", "2", "--rounds", "1"]),
        ("scaling.py", ["--cells", "2", "--generations", "2", "--rounds", "1", "--steps", "20"]),
        ("pages.py", ["--rows", "400"]),
        ("training.py", ["--preset", "digits", "--images", "4", "--rounds", "1"]),
    ],
)
def test_benchmark(script, words, tmp_path):
    if script == "eta_collapse.py":
        words = [*words, "--out", str(tmp_path / "figures")]
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / script), *words, "--json", str(tmp_path / "figures.json")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) > 3 and json.loads((tmp_path / "figures.json").read_text())
