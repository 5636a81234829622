"""Imports run downward, and the cheap things are cheap."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FORBIDDEN = {
    "sims_core": {"sims_toy", "sims_image"},
    "sims_toy": {"sims_image", "PIL", "torchvision", "safetensors", "torch_fidelity"},
    "sims_image": {"sims_toy"},
}


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", [p for p in FORBIDDEN if (ROOT / p).is_dir()])
def test_imports_run_downward(package):
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        assert not imported(path) & FORBIDDEN[package], path


@pytest.mark.parametrize("package", [p for p in FORBIDDEN if (ROOT / p).is_dir()])
def test_no_file_outgrows_its_room(package):
    long = {p.name: n for p in (ROOT / package).rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout


def test_import_is_cheap():
    heavy = run(
        "import sys, sims_core, sims_toy, sims_toy.sweep, sims_toy.pollution, sims_toy.control, sims_toy.mad,"
        "sims_toy.sampling_cost, sims_toy.stability, sims_image, sims_image.__main__;"
        "print([m for m in ('torch', 'pandas', 'scipy', 'matplotlib', 'numpy', 'ot', 'PIL') if m in sys.modules])"
    )
    assert heavy.strip() == "[]"


@pytest.mark.parametrize("package", ["sims_core", "sims_toy", "sims_image"])
def test_every_public_name_resolves(package):
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name) is not None
    with pytest.raises(AttributeError):
        module.nothing  # noqa: B018


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout")
def test_nothing_is_tracked_that_git_ignores():
    """What was made, downloaded or is another's (`runs/`, `.wheels/`) stays out of the project."""
    listing = ["git", "ls-files", "--cached", "--ignored", "--exclude-standard"]
    assert subprocess.run(listing, cwd=ROOT, capture_output=True, text=True, check=True).stdout == ""


def test_front_pages_are_short_and_their_checkers_see_what_runs():
    """The names that type checkers read are those that run; `sims_core` has about two dozen."""
    import sims_core
    from sims_core.front import homes
    from sims_core.guidance import guided

    assert sims_core.guided is guided and homes("sims_core")["guided"] == "sims_core.guidance"
    for package in ("sims_core", "sims_toy"):
        module = importlib.import_module(package)
        assert set(module.__all__) == {*homes(package), "__version__"}
    assert len(sims_core.__all__) <= 26
