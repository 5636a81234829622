"""The command dispatches its verbs, cheaply, and refuses the rest in one line."""

import subprocess
import sys
from importlib import import_module

import pytest

from sims_core.command import main_with_errors
from sims_image.__main__ import VERBS, main, overview, run


def test_every_verb_exists_and_is_listed():
    for verb, (where, what) in VERBS.items():
        module, function = where.split(":")
        assert callable(getattr(import_module(module), function))
        assert f"  {verb} " in overview() and what in overview()


def test_a_verb_gets_its_words(monkeypatch):
    got = []
    monkeypatch.setitem(VERBS, "echo", ("sims_image.echo_for_test:run", "Repeat."))
    monkeypatch.setitem(sys.modules, "sims_image.echo_for_test", type("M", (), {"run": staticmethod(got.append)}))
    run(["echo", "--loud", "3"])
    assert got == [["--loud", "3"]]


def test_no_verb_at_all_lists_them(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sims_image"])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.err == overview() + "\n" and not said.out


@pytest.mark.parametrize("words", [["trian"], [""], []])
def test_unknown_verbs_are_refused(words, monkeypatch, capsys):
    monkeypatch.setitem(VERBS, "train", ("sims_image.nowhere:run", "Train."))
    assert main_with_errors(run, words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: verb: got") and "choose from" in error
    assert ("did you mean 'train'?" in error) == (words == ["trian"])


def test_help_needs_no_torch():
    code = "import sys, sims_image.__main__ as m; m.run(['--help']); m.run(['-h']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: sims_image VERB"), done.stderr
