"""Every benchmark runs, prints a table and writes its figures; what they measure is not judged here."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def _module(name):
    """A module of `benchmarks/`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "benchmarks"))
        spec = importlib.util.spec_from_file_location(name, ROOT / f"benchmarks/{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


TABLE = _module("table")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("sweep.py", ["--quick"]),
        ("linear_response.py", ["--trials", "8", "--workers", "1"]),
        ("eta_collapse.py", ["--trials", "2", "--exact-trials", "100"]),
        ("ensemble.py", ["--networks", "2", "--rounds", "1"]),
        ("figure4.py", ["--networks", "2"]),
        ("prepare.py", ["--images", "400"]),
        ("networks.py", ["--preset", "digits", "--rounds", "1"]),
        ("metrics.py", ["--n", "300", "--widths", "16", "--streamed", "digits", "--images", "24"]),
        ("sampling.py", ["--presets", "digits", "--sampler", "heun:3", "--batch", "2", "--rounds", "1"]),
        ("scaling.py", ["--cells", "2", "--generations", "2", "--rounds", "1", "--steps", "20"]),
        ("pages.py", ["--rows", "400"]),
        ("training.py", ["--preset", "digits", "--images", "4", "--rounds", "1", "--auto"]),
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
    found = json.loads((tmp_path / "figures.json").read_text())
    assert len(done.stdout.splitlines()) > 3 and {"processor", "load", "sgemm_gflops", "utc"} <= set(found["machine"])
    rows = [[*bench.rows(found["figures"])] for bench in TABLE.BENCHMARKS.values() if bench.words.split()[0] == script]
    assert rows and all(rows) and "nan" not in str(rows)


def test_the_table_is_what_the_files_give():
    assert (ROOT / "benchmarks/README.md").read_text() == TABLE.table()
    names = {path.stem for path in (ROOT / "benchmarks/results").glob("*.json") if not path.stem.startswith("gpu-")}
    assert names <= set(TABLE.BENCHMARKS)  # what is measured is shown
    scripts = {path.name for path in (ROOT / "benchmarks").glob("*.py")}
    left_out = {"table.py", "machine.py", "gpu.py", "retrain_averages.py"}
    assert scripts - left_out == {bench.words.split()[0] for bench in TABLE.BENCHMARKS.values()}
    assert sum(bench.seconds for bench in TABLE.BENCHMARKS.values()) <= 25 * 60


def test_a_measured_benchmark_is_kept_and_a_failing_one_leaves_nothing(tmp_path, monkeypatch):
    bench = TABLE.Bench("linear_response.py --trials 8 --workers 1", 1, TABLE._response)
    monkeypatch.setattr(TABLE, "BENCHMARKS", {"one": bench, "other": bench._replace(words="pages.py --rows x")})
    assert TABLE.run("one", tmp_path) and not TABLE.run("other", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "one.txt"]
    assert TABLE.recent(tmp_path / "one.json", 1) and not TABLE.recent(tmp_path / "one.json", -1)
    assert not TABLE.recent(tmp_path / "other.json", 1)
    assert "## one" in TABLE.table(tmp_path) and "Took" in TABLE.table(tmp_path)


def test_the_document_sets_dask_up_as_the_benchmark_does():
    import re

    import yaml

    def flat(settings, prefix=""):
        for name, value in settings.items():
            yield from flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]

    block = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/networks.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    assert dict(flat(yaml.safe_load(block))) == _module("scaling").DASK
