"""The examples in docstrings run and show what they say; the most used names have one."""

import doctest
import os
from importlib import import_module
from pathlib import Path

import pytest

from sims_image.verbs import Verb

ROOT = Path(__file__).resolve().parents[1]
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
USED = {
    "sims_core": [
        "", "EDM", "GuidanceSchedule", "LogNormal", "Sampler", "Seed", "TorchLearner", "denoising_loss",
        "distribution_control", "generate", "guide", "guided", "neon", "outlook", "parse_policy", "sample",
        "self_consuming_loop", "sims",
    ],
    "sims_toy": ["", "ExactLearner", "Gaussian", "diagnose", "run"],
    "sims_image": [
        "", "evaluate", "generate", "load", "loop", "open_dataset", "outlook", "prepare", "sims", "train",
    ],
}  # fmt: skip


def found(name: str) -> list[doctest.DocTest]:
    """The examples in a module."""
    module = import_module(name)
    tests = doctest.DocTestFinder().find(module, name)
    for verb in (key for key, value in vars(module).items() if isinstance(value, Verb)):
        text = getattr(module, verb).__doc__
        tests.append(doctest.DocTestParser().get_doctest(text, vars(module).copy(), f"{name}.{verb}", None, 0))
    return [test for test in tests if test.examples]


def modules() -> list[str]:
    files = (path for package in USED for path in sorted((ROOT / package).rglob("*.py")))
    named = (path.relative_to(ROOT).with_suffix("") for path in files if "\n    >>>" in f"\n    {path.read_text()}")
    return [".".join(path.parts).removesuffix(".__init__") for path in named]


def run(tests: list[doctest.DocTest]) -> None:
    for test in tests:
        said: list[str] = []
        failed = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=said.append).failed
        assert not failed, "".join(said)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the example of `sims_image` has been run: others go on from its data and checkpoints."""
    before, made = os.getcwd(), tmp_path_factory.mktemp("examples")
    os.chdir(made)
    run([test for test in found("sims_image") if test.name == "sims_image"])
    yield made
    os.chdir(before)


@pytest.mark.parametrize("name", modules())
def test_examples_show_what_they_say(name, folder):
    run(found(name))


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in USED.items() for name in names])
def test_the_most_used_names_have_one(package, name):
    of = getattr(import_module(package), name) if name else import_module(package)
    assert ">>> " in of.__doc__
