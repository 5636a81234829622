"""What the project says of itself: versions, requirements, and the scripts that start it elsewhere."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sims_core import __version__

tomllib = pytest.importorskip("tomllib")
ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_lowest_versions_are_those_that_are_declared():
    extras = PROJECT["optional-dependencies"]
    declared = [re.fullmatch(r"([\w.-]+)>=([\d.]+)", one) for one in PROJECT["dependencies"]]
    declared += [re.fullmatch(r"([\w.-]+)>=([\d.]+)", one) for name in ("fast", "flows") for one in extras[name]]
    lines = (ROOT / "constraints/lowest.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert set(pins) == {one[1] for one in declared}
    for one in declared:
        assert re.fullmatch(rf"{re.escape(one[2])}(\.\d+)*", pins[one[1]]), one[0]


def test_changelog_and_citation_know_the_version():
    assert f"\n## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text()
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {__version__}\n" in citation
    assert all(f'name: "{author["name"]}"' in citation for author in PROJECT["authors"])


def _anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"])
def test_no_link_of_a_page_that_is_not_on_the_site_leads_nowhere(name):
    text = (ROOT / name).read_text(encoding="utf-8")
    links = re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", text)
    assert links
    for target, anchor in links:
        page = (ROOT / name).parent / target if target else ROOT / name
        assert page.exists(), target
        assert page.suffix != ".md" or not anchor or anchor in _anchors(page), f"{target}#{anchor}"


def test_readme_leads_to_the_lines_of_algorithm_1():
    path = "sims_core/algorithm.py"
    named = {node.name: node for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}
    lines = named["sims"].body[1:]  # without the docstring
    assert f"]({path}#L{lines[0].lineno}-L{lines[-1].end_lineno}), five lines" in (ROOT / "README.md").read_text()
    assert len(lines) == 5 and all(line.lineno == line.end_lineno for line in lines)


@pytest.mark.skipif(sys.platform != "linux", reason="bash")
def test_a_verb_runs_under_the_launching_script(tmp_path):
    done = subprocess.run(
        [str(ROOT / "scripts/torchrun.sh"), "generate", "--help"],
        env={**os.environ, "PYTHON": sys.executable, "GPUS": "2", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("--auxiliary STR") == 2
    for script in ("torchrun.sh", "slurm.sbatch"):
        subprocess.run(["bash", "-n", str(ROOT / "scripts" / script)], check=True)
