"""Imports run downward, and the cheap things are cheap."""

import ast
import importlib
import re
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


def modules() -> dict[str, Path]:
    """Every module of the three packages, by its dotted name."""
    found = {}
    for package in FORBIDDEN:
        for path in (ROOT / package).rglob("*.py"):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def arrows() -> dict[str, set[str]]:
    """Which modules each one imports, also inside functions and for types alone."""
    files, found = modules(), {}
    for name, path in files.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, path
                full = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= {one if one in files else str(node.module) for one in full}
        found[name] = (named & set(files)) - {name}
    return found


def test_there_is_no_circle():
    left = arrows()
    while loose := {name for name, wanted in left.items() if not wanted & set(left)}:
        left = {name: wanted for name, wanted in left.items() if name not in loose}
    assert not {name: wanted & set(left) for name, wanted in left.items()}


#: the rooms of sims_image from the ground up; what lies outside of them is a room of its own
ROOMS = ["processes", "options", "pickles", "data", "models", "training", "sampling", "metrics"]
ROOMS += ["learner", "experiments", "info", "verbs", "commands", "__main__"]


def test_rooms_of_images_import_downward():
    def room(name: str) -> int | None:
        package, _, rest = name.partition(".")
        return ROOMS.index(rest.split(".")[0]) if package == "sims_image" and rest else None

    climbing = [
        f"{name} imports {other}"
        for name, wanted in arrows().items()
        for other in wanted
        if (here := room(name)) is not None and (there := room(other)) is not None and there > here
    ]
    assert not climbing


def test_no_library_error_of_images_names_an_option():
    """Below the commands an error is about an argument, by its own name; its words too."""
    for name, path in modules().items():
        if not name.startswith("sims_image.") or name in ("sims_image.commands", "sims_image.__main__"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func.id if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else ""
            if called in ("InputError", "choose", "write_failure", "images_of"):
                assert not re.search(r"(?<![\w-])--[a-z]", ast.unparse(node)), (path, node.lineno)


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout


#: imports, every command's help and the list of published settings; what is heavy and loaded by then, on two lines
TELLING = """
import contextlib, io, sys
import sims_core, sims_toy.sweep, sims_image.__main__
from sims_core.lab.script import groups

commands = {name: one for group in groups().values() for name, one in group.items()}
loops = ("sweep", "loop")  # their help names the data policies, whose module needs numpy
words = [(name, ["--help"]) for name in sorted(commands, key=loops.__contains__)]
for name, asked in [("recipes", []), *words]:
    if name == loops[0]:
        print("numpy" in sys.modules)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        commands[name].run(asked)
print([m for m in ("torch", "pandas", "scipy", "matplotlib", "ot", "PIL") if m in sys.modules])
"""


def test_what_only_tells_loads_nothing_heavy():
    assert run(TELLING).split("\n") == ["False", "[]", ""]


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
    for package in ("sims_core", "sims_toy", "sims_image"):
        module = importlib.import_module(package)
        assert set(module.__all__) == {*homes(package), "__version__"}
    assert len(sims_core.__all__) <= 28
