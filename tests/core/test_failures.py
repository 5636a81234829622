"""What a command says when something is wrong: one line, the right exit code, nothing that moves the cursor."""

import errno
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from sims_core import STOPPED
from sims_core.errors import InputError, shown, whole
from sims_core.lab.command import main_with_errors, parse_command

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Options:
    """Options."""

    trials: int = 1
    rate: float | None = None
    seed: int = 0
    name: str = ""
    batch: int = 1


def read(*words):
    return parse_command(Options, words, prog="x", description="x")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--trials", "abc", "--name", "a secret"), "--trials: got 'abc'; give a whole number"),
        (("--trials", "9" * 5000), "--trials: got '" + "9" * 297 + "...'; give a whole number"),
        (("--trials", "²"), "--trials: got '²'; give a whole number"),
        (("--rate", "x"), "--rate: got 'x'; give a number"),
        (("--name",), "--name: got ''; give a value"),
        (("--trials", "1000000000000"), "--trials: got '1000000000000'; give a whole number of at most 10000000"),
        (("--batch", "100000"), "--batch: got '100000'; give a whole number of at most 16384"),
        (("--seed", str(2**128)), f"--seed: got '{2**128}'; give a whole number of at most {2**128 - 1}"),
    ],
)
def test_what_cannot_be_read_names_its_option_alone(words, line):
    with pytest.raises(InputError) as refused:
        read(*words)
    assert str(refused.value) == line
    assert read("--seed", str(2**128 - 1)).seed == 2**128 - 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("--a", "x\ny\x1b[31m", "no\nlines"), r"error: --a: got 'x\ny\x1b[31m'; no\nlines"),
        (InputError("--a", "\ud800" * 400, "x"), "error: --a: got '" + ("\\ud800" * 50)[:297] + "...'; x"),
        (InputError("--a", 10**5000, "x"), "error: --a: got 'a int of thousands of digits'; x"),
        (OSError(errno.ENOSPC, "No space left on device", "a\nb"),
         r"error: a\nb: the disk is full (No space left on device); make room and repeat the command"),
        (OSError(errno.EACCES, "Permission denied", "f"),
         "error: f: it cannot be read or written (Permission denied); fix that and repeat the command"),
        (MemoryError(), "error: memory: there is not enough (MemoryError); ask for less at a time"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
         "error: memory: there is not enough (DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 "
         "bytes.); ask for less at a time"),
    ],
)  # fmt: skip
def test_failures_are_one_line(capsys, error, line):
    def fail(_):
        raise error

    assert main_with_errors(fail, []) == 2
    assert capsys.readouterr().err == line + "\n"


def test_a_fault_of_the_program_is_not_hidden():
    def fail(_):
        raise KeyError("x")

    with pytest.raises(KeyError):
        main_with_errors(fail, [])


def test_what_is_printed_cannot_move_the_cursor(capsys):
    assert main_with_errors(lambda _: print("a\x1b]0;title\x07b\u202ec\ud800 kätzchen\nnext"), []) == 0
    assert capsys.readouterr().out == "a\\x1b]0;title\\x07b\\u202ec\\ud800 kätzchen\nnext\n"
    assert shown("x" * 200) == "x" * 117 + "..."


def test_whole_numbers_have_bounds():
    assert whole("n", 3, 1, 3) == 3
    for value, words in ((0, "at least 1"), (4, "at most 3")):
        with pytest.raises(InputError, match=words):
            whole("n", value, 1, 3)


# ------------------------------------------------------------------- Ctrl-C

#: strikes when a module is about to be imported, or at the n-th piece of code that is executed from text
STRIKE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
want, left = os.environ["STRIKE"].split("*")[0], [int((os.environ["STRIKE"] + "*1").split("*")[1])]
def hook(event, arguments):
    if left[0] and (event == "import" and arguments[0] == want or event == want):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
"""
SWEEP = ("-m", "sims_toy.sweep", "--learner", "exact", "--omega", "0,1", "--trials", "2", "--generations", "1")
PREPARE = ("-m", "sims_image", "prepare", "digits")


@pytest.mark.parametrize(
    ("words", "strike"),
    [
        *(
            (SWEEP, s)
            for s in ("sims_toy.networks.settings", "torch", "compile*60", "os.rename*1", "matplotlib.figure")
        ),
        *((PREPARE, s) for s in ("tyro", "numpy", "sims_image.data.plan", "os.rename*2")),
    ],
)
def test_ctrl_c_at_any_time_is_one_line_and_130(tmp_path, words, strike):
    (tmp_path / "sitecustomize.py").write_text(STRIKE)
    env = {**os.environ, "STRIKE": strike, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words, "--out", str(tmp_path / "out")], env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 130, done.stderr
    assert done.stderr.replace("\r", "\n").strip().split("\n")[-1].strip() == STOPPED
    assert "Traceback" not in done.stderr
