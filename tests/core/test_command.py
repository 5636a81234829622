"""What every command owes its user: one line for bad input, from a worker too, and output on any terminal."""

import contextlib
import dataclasses
import pickle
import shlex
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from sims_core.errors import InputError, extra
from sims_core.lab.command import main_with_errors, parse_command
from sims_core.sampling import Sampler

ROOT = Path(__file__).resolve().parents[2]


@dataclasses.dataclass(frozen=True)
class Inner:
    width: int = 1
    """Units."""


@dataclasses.dataclass(frozen=True)
class Broken:
    often: int = 2
    """How often,
    which is said in two lines."""
    inner: Inner = dataclasses.field(default_factory=Inner)
    """Whole
    options."""


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
    [("utf-8", "ω = .5: 2 ± 1 é日\n"), ("cp1252", "omega = .5: 2 ± 1 é?\n"), ("ascii", "omega = .5: 2 +- 1 e?\n")],
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


@pytest.mark.parametrize(
    ("option", "meant"),
    [("--omga", "--omega"), ("--learning-rate", "--lr"), ("--synthetics", "--synthetic"), ("--qqq", None)],
)
def test_an_option_that_is_not_there_names_the_one_that_was_meant_and_not_all(option, meant, capsys):
    from sims_image.training.options import Train
    from sims_toy.sweep.options import Sweep

    cls = Train if meant == "--lr" else Sweep

    def run(argv):
        parse_command(cls, argv, prog="x", description="")

    assert main_with_errors(run, [option, "1"]) == 2
    hint = f"did you mean '{meant}'? " if meant else ""
    assert capsys.readouterr().err == f"error: option: got '{option}'; {hint}--help lists what there is\n"


def _examples():
    """Every command of both scales, with each of its examples."""
    from sims_image.commands import VERBS
    from sims_toy.studies import STUDIES

    known = {f"sims_image {name}": verb.examples for name, verb in VERBS.items()}
    known |= {f"sims_toy {room}": study.examples for room, study in STUDIES.items()}
    return [
        pytest.param(*name.split(), words, id=f"{name} {words}") for name, found in known.items() for words in found
    ]


@pytest.mark.parametrize(("scale", "name", "words"), _examples())
def test_an_example_can_be_run(scale, name, words, monkeypatch):
    """Its options are read, and a study's are planned; those of images name files that are not here."""
    from sims_image import commands
    from sims_toy import studies

    given = shlex.split(words, comments=True)
    assert given and "#" in words
    if scale == "sims_toy":
        read = parse_command(studies.options_of(name), given, prog=name, description="", presets=presets(name))
        assert plan(name, read).settings
        return
    run = []
    monkeypatch.setitem(commands.VERBS, name, dataclasses.replace(commands.VERBS[name], run=run.append))
    commands.run([name, *given])
    assert run and run[0] != commands.VERBS[name].cls()()


def presets(room):
    return import_module(f"sims_toy.{room}").PRESETS


def plan(room, options):
    return import_module(f"sims_toy.{room}").plan(options)


@pytest.mark.parametrize("command", ["sims_image train", "sims_toy control", "sims_toy sweep"])
def test_help_flows_and_ends_with_two_examples(command, capsys):
    from sims_image.commands import run as verbs
    from sims_toy import studies

    scale, name = command.split()
    with pytest.raises(SystemExit):
        verbs([name, "--help"]) if scale == "sims_image" else studies.command(name)(["--help"])
    said = capsys.readouterr().out
    prog = command if scale == "sims_image" else f"python -m sims_toy.{name}"
    *_, head, first, second = said.splitlines()
    assert head == "examples:" and all(line.startswith(f"  {prog} --") for line in (first, second))
    if scale == "sims_toy":  # its own options first, the run's last and by themselves
        order = ["--omega", " network options ", "--network.width", " run options ", "--seed INT", "--dry-run", head]
        assert sorted(order, key=said.index) == order


def test_the_docstring_of_an_option_is_one_flow(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "1000")

    def run(argv):
        parse_command(Broken, argv, prog="x", description="", examples=["--often 3  # thrice"])

    with pytest.raises(SystemExit):
        run(["--help"])
    said = capsys.readouterr().out
    assert "How often, which is said in two lines. (default: 2)" in said and "Whole options" in said
    assert said.endswith("examples:\n  x --often 3  # thrice\n")


@pytest.mark.parametrize("word", ["--version", "-V"])
@pytest.mark.parametrize("name", ["", "sweep", "mad"])
def test_every_command_says_its_version(name, word, capsys):
    import sims_core
    import sims_image
    import sims_toy
    from sims_image.commands import run as verbs
    from sims_toy.studies import command

    run = command(name) if name else verbs
    with contextlib.suppress(SystemExit):
        run([word])
    assert capsys.readouterr().out == f"{sims_core.__version__}\n"
    assert sims_core.__version__ == sims_toy.__version__ == sims_image.__version__


@pytest.mark.parametrize(("text", "right"), [("heun18", "heun:18"), ("rk44", "rk4:4"), ("ddim20", "ddim:20")])
def test_a_sampler_without_its_colon(text, right):
    with pytest.raises(InputError, match=f"write {right}"):
        Sampler.parse(text)


@pytest.mark.parametrize("words", [["--synthetic-size", "40"], ["--synthetic_size=40"]])
def test_the_older_name_of_an_option_is_read_with_a_note(words, capsys):
    from sims_toy.mad import Mad

    assert parse_command(Mad, words, prog="x", description="") == Mad(synthetic=40)
    older = words[0].partition("=")[0]
    assert capsys.readouterr().err == f"note: {older} is --synthetic now; {older} goes with the next release\n"
    with pytest.raises(TypeError):
        Mad(synthetic_size=40)


def _everywhere():
    """Options of every command, away from their defaults: its first preset, or some by hand."""
    from sims_image.commands import VERBS
    from sims_image.experiments.published import recipes
    from sims_image.training.options import Train
    from sims_toy import studies

    for room in studies.STUDIES:
        for name, options in presets(room).items():
            yield pytest.param(options, presets(room), id=f"{room} {name}")
    for verb in (name for name, one in VERBS.items() if one.published):
        for name, options in recipes(verb).items():
            yield pytest.param(options, recipes(verb), id=f"{verb} {name}")
    given = Train(
        preset="digits", from_="m", budget="1k", compile=True, channels_last=False, ema_widths=(0.05, 0.1), lr=1e-4
    )
    yield pytest.param(given, None, id="train")
    yield pytest.param(dataclasses.replace(given, preset=""), None, id="train without a preset")
    yield pytest.param(dataclasses.replace(given, precision="auto", channels_last="auto"), None, id="train, measured")


@pytest.mark.parametrize(("options", "presets"), list(_everywhere()))
def test_a_record_gives_the_same_options_back(options, presets, tmp_path):
    from sims_core.lab.runs import provenance, write_json

    cls = type(options)
    write_json(tmp_path / "settings.json", {"provenance": provenance(dataclasses.replace(options, out="there"))})
    for source in (tmp_path, tmp_path / "settings.json"):
        read = parse_command(cls, ["--config", str(source)], prog="x", description="", presets=presets)
        assert read == options
    read = parse_command(cls, [f"--config={tmp_path}", "--seed", "77"], prog="x", description="", presets=presets)
    assert read == dataclasses.replace(options, seed=77)


def test_a_record_holds_defaults_too_which_a_later_version_may_have_otherwise():
    from sims_core.lab.config import recorded
    from sims_toy.sweep.options import Sweep

    options = recorded(Sweep())["options"]
    assert options["--omega"] == "0:5" and options["--network.draws"] == "quasi" and options["--overlay-trials"] == 400
    assert not {"--generations", "--budget", "--out"} & set(options)  # left to the learner, or of one run


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "give the folder of a run or data set, or its settings.json"),
        ("[]", "must hold a JSON object"),
        ("{}", "it records no options; give the folder of a run or data set, or its settings.json"),
        ('{"provenance": {"of": "Mad", "options": {}}}', "it holds the options of Mad, and this command takes Sweep's"),
    ],
)
def test_a_config_that_is_none(content, expected, tmp_path, capsys):
    from sims_toy.sweep.options import Sweep

    path = tmp_path / "settings.json"
    if content is not None:
        path.write_text(content)
    run = partial(parse_command, Sweep, prog="x", description="")
    assert main_with_errors(run, ["--config", str(path)]) == 2
    assert capsys.readouterr().err == f"error: --config: got '{path}'; {expected}\n"
