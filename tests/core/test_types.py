"""The front pages as a type checker sees them."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from sims_core.front import homes

ROOT = Path(__file__).resolve().parents[2]
PAGES = {"sc": "sims_core", "si": "sims_image", "toy": "sims_toy"}


@pytest.fixture(scope="module")
def checked(tmp_path_factory):
    """(the user's program, what mypy says of it and of every name of the front pages)."""
    program = (ROOT / "tests/fixtures/user.py").read_text()
    names = [f"reveal_type({short}.{name})" for short, page in PAGES.items() for name in sorted(homes(page))]
    path = tmp_path_factory.mktemp("types") / "user.py"
    path.write_text("\n".join([program, *names]))
    # the configuration of the whole check, so that what it found of the packages is found again
    mypy = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", str(path)]
    return program, subprocess.run(mypy, capture_output=True, text=True, cwd=ROOT).stdout


def test_mypy_reports_what_a_user_gets_wrong(checked):
    """Every marked line by the code that it is marked with, and nothing else."""
    program, said = checked
    marks = [(str(n), line.split("# wrong: ")) for n, line in enumerate(program.splitlines(), 1)]
    wanted = [(number, parts[1]) for number, parts in marks if len(parts) == 2]
    assert re.findall(r"user\.py:(\d+): error: .*\[([a-z-]+)\]", said) == wanted and len(wanted) > 10, said


def test_every_name_has_its_type(checked):
    """Functions are signatures, classes their constructors, tables what they hold; nothing is Any."""
    types = re.findall(r'Revealed type is "(.*)"', checked[1])
    assert len(types) == sum(len(homes(page)) for page in PAGES.values())
    assert not [one for one in types if one == "Any" or one.startswith("def (*args: Any")], types
    assert sum(one.startswith(("def (", "def [")) for one in types) > 0.6 * len(types), types
    verbs = [one for one in types if one.startswith("sims_image.verbs.Verb[")]
    assert len(verbs) == 11 and all("data: str =" in one or "source: str =" in one for one in verbs), verbs
