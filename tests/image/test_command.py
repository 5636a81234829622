"""The command dispatches its verbs, cheaply, and refuses the rest in one line."""

import re
import subprocess
import sys
from dataclasses import dataclass
from typing import Annotated

import pytest
import tyro

import sims_image as si
from sims_core.errors import InputError
from sims_core.lab.command import main_with_errors, parse_command
from sims_image.__main__ import main
from sims_image.commands import VERBS, Verb, overview, run
from sims_image.experiments.options import Pollution, Sims
from sims_image.training import estimate


def test_every_verb_exists_and_is_listed():
    for name, verb in VERBS.items():
        assert callable(verb.run) and verb.cls()()
        assert f"  {name} " in overview() and verb.what in overview()


def test_config_is_taken_where_what_is_made_records_its_options(capsys):
    without = {name for name, verb in VERBS.items() if not verb.config}
    assert without == {"recipes", "import-nvidia", "import-diffusers", "export-diffusers", "info"}
    for name in VERBS:
        with pytest.raises(InputError, match=f"got '{'--config' if name in without else 'nowhere'}'"):
            run([name, "--config", "nowhere"])
        with pytest.raises(SystemExit):
            run([name, "--help"])
        assert ("--config RUN" in capsys.readouterr().out) == (name not in without)


@dataclass(frozen=True)
class Echo:
    """Repeat."""

    loud: int = 0
    lr_rampup: str = ""
    from_: Annotated[str, tyro.conf.arg(name="from")] = ""


def test_a_verb_gets_its_options(monkeypatch):
    got = []
    monkeypatch.setitem(VERBS, "echo", Verb("Repeat.", got.append, "echo_for_test:Echo", first="loud"))
    monkeypatch.setitem(sys.modules, "sims_image.echo_for_test", sys.modules[__name__])
    run(["echo", "3", "--from", "here"])
    assert got == [Echo(3, from_="here")]


@pytest.mark.parametrize(
    ("argument", "option"),
    [
        *(("loud", "--loud"), ("lr_rampup", "--lr-rampup"), ("from_", "--from"), ("place", "HERE")),
        *((same, same) for same in ("training state", "samples", "--lr", "lr")),
    ],
)
def test_errors_name_the_option_of_the_argument(argument, option, monkeypatch, capsys):
    def refuse(settings):
        raise InputError(argument, 1, "give `loud`, or what `prepare` makes with `class_map`")

    verb = Verb("Refuse.", refuse, "echo_for_test:Echo", names={"place": "HERE"})
    monkeypatch.setitem(VERBS, "echo", verb)
    monkeypatch.setitem(sys.modules, "sims_image.echo_for_test", sys.modules[__name__])
    assert main_with_errors(run, ["echo"]) == 2
    told = "give --loud, or what `prepare` makes with --class-map"
    assert capsys.readouterr().err == f"error: {option}: got '1'; {told}\n"


def test_no_verb_at_all_lists_them(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sims_image"])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr()
    assert stop.value.code == 2 and said.err == overview() + "\n" and not said.out


@pytest.mark.parametrize("words", [["trian"], [""], []])
def test_unknown_verbs_are_refused(words, monkeypatch, capsys):
    monkeypatch.setitem(VERBS, "train", Verb("Train.", print, "nowhere:Train"))
    assert main_with_errors(run, words) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("error: verb: got") and "choose from" in error
    assert ("did you mean 'train'?" in error) == (words == ["trian"])


def test_help_needs_no_torch():
    code = "import sys, sims_image.__main__ as m; m.run(['--help']); m.run(['-h']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.startswith("usage: sims_image VERB"), done.stderr


@pytest.mark.parametrize(
    ("verb", "option"),
    [
        *(
            ("retrain", o)
            for o in ("omega", "auxiliary-data", "auxiliary-size", "budget", "guide-network", "pair", "lr")
        ),
        *(("retrain", o) for o in ("lr", "lr-rampup", "lr-decay", "train-batch")),
        *((v, o) for v in ("loop", "pollution", "control") for o in ("search", "controls", "interval")),
        *((verb, "guide-network") for verb in ("pollution", "control")),
        *(("control", o) for o in ("auxiliary-data", "retrain-lr")),
        ("sims", "trials"),
        ("evaluate", "sheet"),
        ("evaluate", "restart"),
    ],
)
def test_an_option_that_does_nothing_is_not_offered_and_not_taken(verb, option, capsys):
    with pytest.raises(SystemExit):
        run([verb, "--help"])
    assert f"--{option} " not in capsys.readouterr().out
    assert main_with_errors(run, [verb, f"--{option}", "1"]) == 2
    said = capsys.readouterr().err
    assert said == f"error: option: got '--{option}'; it does nothing in this command; leave it out\n"


@pytest.mark.parametrize(
    ("verb", "old", "new", "value"), [("sims", "budgets", "budget", "1k,2k"), ("retrain", "rounds", "generations", "3")]
)
def test_an_older_name_still_stands_for_its_option(verb, old, new, value, capsys, monkeypatch):
    monkeypatch.setattr(estimate, "rate", lambda *_, **__: 1e6)  # else timed anew
    words = [verb, "--preset", "cifar10", "--dry-run"]
    run([*words, f"--{new}", value])
    wanted = capsys.readouterr()
    run([*words, f"--{old}", value])
    found = capsys.readouterr()
    assert found.out == wanted.out and not wanted.err
    assert found.err == f"note: --{old} is --{new} now; --{old} goes with the next release\n"
    with pytest.warns(FutureWarning, match=f"{old} is {new} now"):
        assert getattr(si, verb).plan(preset="cifar10", **{old: int(value) if value == "3" else value})


def test_help_of_loops_speaks_of_loops(capsys):
    with pytest.raises(SystemExit):
        run(["loop", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "the same here" not in said and "omega is chosen" not in said


#: the verbs that run experiments
LABORATORY = ["sims", "loop", "retrain", "pollution", "control"]


@pytest.mark.parametrize("verb", ["train", "generate", "evaluate", "outlook", *LABORATORY])
def test_help_is_in_groups_and_tells_no_default_that_says_nothing(capsys, verb):
    with pytest.raises(SystemExit):
        run([verb, "--help"])
    said = capsys.readouterr().out
    assert "machine options" in said and not re.search(r"default: *(''|None)|\{None\}", said)


def test_groups_do_not_change_what_is_read():
    words = ["--lr", "0.1", "--device", "cpu", "--n", "30", "--guidance", "held:2", "--synthetic", "5k"]
    read = parse_command(Sims, words, prog="sims_image sims", description="")
    expected = Sims(lr=0.1, device="cpu", n="30", guidance="held:2", synthetic="5k")
    assert read == expected and type(read) is Sims


def test_a_pollution_s_auxiliary_size_was_called_synthetic_too(capsys):
    read = parse_command(Pollution, ["--synthetic", "7"], prog="sims_image pollution", description="")
    assert read.auxiliary_size == "7" and "note: --synthetic is --auxiliary-size now" in capsys.readouterr().err
