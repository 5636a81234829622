"""The script ``sims``: every command of both scales under one name."""

import shutil
import subprocess
import sys

import pytest

from sims_core.lab import script
from sims_core.lab.command import main_with_errors


def test_help_lists_every_command_in_its_group(capsys):
    script.run(["--help"])
    said = capsys.readouterr().out
    groups = script.groups()
    assert list(groups) == list(script.GROUPS) and len({n for one in groups.values() for n in one}) == sum(
        map(len, groups.values())
    )
    for about, commands in groups.items():
        block = said.split(f"{about}:\n")[1].split("\n\n")[0].splitlines()
        assert [line.split()[0] for line in block] == list(commands)
        assert all(one.what in line for one, line in zip(commands.values(), block, strict=False))


@pytest.mark.parametrize(
    ("wrong", "near"), [("sweeep", "sweep"), ("toy-polution", "toy-pollution"), ("evalute", "evaluate")]
)
def test_an_unknown_command_is_one_line_with_the_nearest(wrong, near, capsys):
    assert main_with_errors(script.run, [wrong]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: command: got '{wrong}'; did you mean '{near}'?") and said.count("\n") == 1


def test_a_command_runs_under_its_name(capsys, tmp_path):
    small = "--learner exact --omega 0,1 --synthetic 40 --real-size 60 --trials 2 --generations 2 --workers 1"
    script.run(["sweep", *small.split(), "--dry-run", "--out", str(tmp_path / "run")])
    assert f"out  {tmp_path / 'run'}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script.run(["sampling-cost", "--help"])
    assert "usage: sims sampling-cost " in capsys.readouterr().out
    with pytest.raises(SystemExit):
        script.run(["self-improve", "--help"])
    assert "usage: sims self-improve " in capsys.readouterr().out
    assert main_with_errors(script.run, ["generate", "--out", str(tmp_path / "made")]) == 2
    assert capsys.readouterr().err.startswith("error: --base: got ''")


def test_help_is_cheap():
    code = (
        "import sys; from sims_core.lab.script import run; run(['--help']);"
        "assert not {'torch', 'numpy', 'tyro'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def completed(words, tmp_path):
    """What bash offers for the last of ``words``."""
    path = tmp_path / "completion"
    path.write_text(script.completion("bash"))
    typed = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}"
    ask = f'source {path}; {typed}; $(complete -p sims | cut -d" " -f3); echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", ask], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes_commands_and_options(tmp_path):
    assert completed(["sims", "sta"], tmp_path) == ["stability"]
    assert completed(["sims", "sweep", "--omeg"], tmp_path) == ["--omega"]
    assert completed(["sims", "generate", "--auxiliary-e"], tmp_path) == ["--auxiliary-ema"]
    assert "#compdef sims" in script.completion("zsh")
    assert main_with_errors(script.run, ["--print-completion", "fish"]) == 2
