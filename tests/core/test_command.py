"""What every command owes its user: one line for bad input, from a worker too, and output on any terminal."""

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from sims_core.command import main_with_errors
from sims_core.errors import InputError, extra

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("value", ["a", 3, None, 1.5, [1, 2], Path("x"), lambda: 0])
def test_bad_input_survives_the_way_from_a_worker(value):
    error = InputError("--trials", value, "give at least 2")
    twin = pickle.loads(pickle.dumps(error))
    assert type(twin) is InputError and str(twin) == str(error)
    assert (twin.argument, twin.expected) == (error.argument, error.expected)


def _fail(trials):
    raise InputError("--trials", trials, "give at least 2")


def test_bad_input_in_a_worker_is_bad_input():
    import joblib

    with pytest.raises(InputError, match="--trials: got '1'; give at least 2"):
        joblib.Parallel(n_jobs=2)(joblib.delayed(_fail)(1) for _ in range(2))


class Terminal:
    """A stream of another code page."""

    def __init__(self, encoding):
        self.encoding, self.text = encoding, ""

    def write(self, text):
        self.text += text.encode(self.encoding).decode(self.encoding)  # raises, as a real one does

    def flush(self):
        pass


@pytest.mark.parametrize(
    ("page", "found"),
    [
        ("utf-8", "ω = .5: 2 ± 1 é日\n"),
        ("cp1252", "omega = .5: 2 ± 1 é?\n"),
        ("ascii", "omega = .5: 2 +- 1 e?\n"),
    ],
)
def test_a_conclusion_is_printed_on_every_code_page(page, found, monkeypatch):
    monkeypatch.setattr(sys, "stdout", Terminal(page))
    assert main_with_errors(lambda argv: print("ω = .5: 2 ± 1 é日"), []) == 0
    assert sys.stdout.text == found


@pytest.mark.parametrize("name", ["fast", "features", "fid", "cluster", "notebooks"])
def test_a_hint_installs_what_the_extra_holds(name):
    """By the names of the packages, which every index has."""
    tomllib = pytest.importorskip("tomllib")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    words = extra(name).replace("'", "").split()
    assert words[:2] == ["pip", "install"] and sorted(words[2:]) == sorted(extras[name])


def test_a_hint_in_a_bare_checkout(monkeypatch):
    from importlib import metadata

    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    assert extra("fast") == "pip install -e '.[fast]'"


def card(words):
    raise torch.cuda.OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.11 GiB of which 3 are free."
    )


def library(words):
    raise RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED")


@pytest.mark.parametrize("work", [card, library, lambda words: torch.empty(2**50), lambda words: np.ones(2**50)])
def test_too_little_memory_is_one_line(work, capsys):
    assert main_with_errors(work, []) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: memory: there is not enough (") and said.count("\n") == 1


def test_other_failures_are_not_taken_for_it():
    with pytest.raises(RuntimeError, match="shapes"):
        main_with_errors(lambda words: torch.ones(2, 3) @ torch.ones(2, 3), [])
