import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from sims_core import InputError, Seed
from sims_core.errors import choose
from sims_core.lab.grids import parse_budget, parse_grid
from sims_core.lab.runs import RunFolder, differences, kept, kept_json, parse_json, write_atomic, write_json

SETTINGS = {"omega": [0.0, 1.0], "trials": 3}


def test_settings_and_provenance_are_recorded(tmp_path):
    with RunFolder.open(tmp_path / "run", SETTINGS) as folder:
        record = json.loads((folder.path / "settings.json").read_text())
    assert record["settings"] == SETTINGS
    assert {"version", "git", "python", "platform", "libraries", "command", "started"} <= set(record["provenance"])
    assert "torch" in record["provenance"]["libraries"]


def begun(path, settings):
    """A run with a piece of work done."""
    with RunFolder.open(path, settings) as folder:
        folder.shard("1.npz", lambda there: there.write_bytes(b"work"))


def test_a_run_without_work_gives_way_and_one_at_work_does_not(tmp_path):
    other = SETTINGS | {"trials": 4}
    with RunFolder.open(tmp_path / "run", SETTINGS), pytest.raises(InputError, match="another process is at work"):
        RunFolder.open(tmp_path / "run", other)
    RunFolder.open(tmp_path / "run", other).close()
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["settings"] == other
    with RunFolder.open(tmp_path / "run", other), pytest.raises(InputError, match="another process is at work"):
        RunFolder.claim(tmp_path / "run")
    begun(tmp_path / "run", other)
    RunFolder.claim(tmp_path / "run").remove()
    assert not (tmp_path / "run").exists()


def test_other_settings_are_refused_with_the_difference(tmp_path):
    begun(tmp_path / "run", SETTINGS)
    with pytest.raises(InputError, match="trials: 3 there, 4 here") as error:
        RunFolder.open(tmp_path / "run", SETTINGS | {"trials": 4})
    assert "omega" not in str(error.value) and "\n" not in str(error.value)
    RunFolder.open(tmp_path / "run", SETTINGS).close()  # still usable


def test_only_the_leaves_that_differ_are_named(tmp_path):
    recipe = {"batch": 128, "budget": "100k", "lr": 0.002, "beta1": 0.9, "ema_halflife": 10_000, "p_mean": -1.2}
    settings = {"recipe": {**recipe, "inner": {"a": 1}}, "grid": [k / 8 for k in range(64)], "from": None}
    begun(tmp_path / "run", settings)
    other = {"recipe": {**recipe, "p_mean": -1, "inner": {"a": 2}}, "grid": [*settings["grid"][:63], 9.0], "from": None}
    with pytest.raises(InputError) as error:
        RunFolder.open(tmp_path / "run", other)
    said = str(error.value)
    assert "(recipe.p_mean: -1.2 there, -1 here; recipe.inner.a: 1 there, 2 here; grid: ..." in said
    assert "7.875] there" in said and "9.0] here" in said  # a long list is shown where it differs
    assert "batch" not in said and "{" not in said
    assert differences({"a": {"b": 1}, "c": 1}, {"c": 1}) == ['a: {"b": 1} there, nothing here']


def test_foreign_folders_are_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        RunFolder.open(tmp_path, SETTINGS)
    assert os.listdir(tmp_path) == ["thesis.txt"]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "settings.json").write_text("{")
    with pytest.raises(InputError, match="not a run's settings"):
        RunFolder.open(tmp_path / "broken", SETTINGS)


def test_paths_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(InputError, match="out"):
            RunFolder.open(path, SETTINGS)


def test_finish_and_shards(tmp_path):
    with RunFolder.open(tmp_path / "run", SETTINGS) as folder:
        assert not folder.finished
        folder.shard("b.npz", lambda p: np.savez(p, x=np.arange(3)))
        folder.shard("a.npz", lambda p: np.savez(p, x=np.arange(4)))
        assert list(folder.pieces(".npz", lambda path: path.name)) == ["a.npz", "b.npz"]
        folder.finish(seconds=1.5)
        assert folder.finished


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, {"a": 1})

    def fail(temporary):
        temporary.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, fail)
    assert json.loads(path.read_text()) == {"a": 1} and os.listdir(tmp_path) == ["x.json"]
    with pytest.raises(ValueError):
        write_json(path, {"a": float("nan")})


def test_stale_parts_of_a_killed_run_are_swept_away(tmp_path):
    RunFolder.open(tmp_path / "run", SETTINGS).close()
    stale = tmp_path / "run" / "shards" / ".piece.123.part.npz"
    stale.write_text("half")
    with RunFolder.open(tmp_path / "run", SETTINGS) as folder:
        assert not stale.exists() and not list(folder.pieces(".npz", Path))


@pytest.mark.skipif(sys.platform == "win32", reason="no advisory locks")
def test_two_processes_do_not_share_a_folder(tmp_path):
    path = tmp_path / "run"
    code = (
        f"import time; from sims_core.lab.runs import RunFolder; f = RunFolder.open({str(path)!r}, {SETTINGS!r});"
        "print('in', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(InputError, match="another process"):
            RunFolder.open(path, SETTINGS)
    finally:
        other.kill()
        other.wait()
        other.stdout.close()
    for _ in range(50):
        try:
            RunFolder.open(path, SETTINGS).close()
            break
        except InputError:
            time.sleep(0.1)
    else:
        pytest.fail("the lock outlived its process")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0:5", [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 4.5, 5]),
        ("-1:1:0.5", [-1, -0.5, 0, 0.5, 1]),
        ("0:0.3:0.1", [0, 0.1, 0.2, 0.3]),
        ("0:5:2", [0, 2, 4, 5]),
        ("3,1,2,1", [3, 1, 2]),
        ("2:2", [2]),
        ("2", [2]),
    ],
)
def test_grids(text, values):
    assert parse_grid("--omega", text) == values


@pytest.mark.parametrize("text", ["", "5:0", "0:5:0", "0:5:-1", "nan", "0:inf", "1,,2", "a:b", "1:2:3:4", "0:1:1e-9"])
def test_bad_grids_name_the_argument_and_the_value(text):
    with pytest.raises(InputError, match="omega") as error:
        parse_grid("--omega", text)
    assert "\n" not in str(error.value) and f"'{text}'" in str(error.value)


def test_grid_limits():
    with pytest.raises(InputError, match="at least 1"):
        parse_grid("--n", "0,5", low=1)
    with pytest.raises(InputError, match="whole number"):
        parse_grid("--n", "1:2", integer=True)


def test_budgets():
    assert parse_budget("--budget", "0.3").unit == "eta"
    assert parse_budget("--budget", "50k").value == 50_000
    assert parse_budget("--budget", "6Mi").value == 6_000_000  # EDM
    assert parse_budget("--budget", "6Mi", mi=2**20).value == 6 * 2**20  # EDM2
    for bad in ("2", "x", "-1", "5 Gi", "nan", ""):
        with pytest.raises(InputError, match="budget"):
            parse_budget("--budget", bad)
    for bad in ("5x", "2"):
        with pytest.raises(InputError, match=r"^--budget: got '.*'; images, please$"):
            parse_budget("--budget", bad, expected="images, please")


def test_choices_suggest_the_nearest_name():
    assert choose("--loop", "fresh", ["fresh", "mixed"]) == "fresh"
    with pytest.raises(InputError, match="did you mean 'augmentation'"):
        choose("--loop", "augmentaton", ["augmentation", "fresh"])


def test_seed_streams():
    seed = Seed(7)
    one = seed.child("trial", 3).numpy().standard_normal(4)
    np.testing.assert_array_equal(one, Seed(7).child("trial").child(3).numpy().standard_normal(4))
    assert not np.array_equal(one, seed.child("trial", 4).numpy().standard_normal(4))
    assert seed.child("a").integer() != seed.child("b").integer() and 0 <= seed.integer() < 2**63
    assert seed.child("x").torch().initial_seed() == seed.child("x").integer()


# ----------------------------------------------------------------- what is damaged


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1e999", "not a finite number"),
        ("-1e999", "not a finite number"),
        ("NaN", "not a finite number"),
        ("Infinity", "not a finite number"),
        ("1" + "0" * 400, "401 digits"),
        ("[" * 99_999, "recursion"),
        ('{"a": 1, "a": 2}', "twice"),
    ],
)
def test_json_of_others_is_finite_and_shallow(text, words):
    with pytest.raises(InputError, match=f"PATH: got 'x.json'; not JSON .*{words}"):
        parse_json("PATH", "x.json", b'{"x": ' + text.encode() + b"}")
    assert parse_json("PATH", "x", b'{"x": %d, "y": 1e300}' % 2**128) == {"x": 2**128, "y": 1e300}


def test_what_cannot_be_read_again_is_set_aside(tmp_path, capsys):
    path = tmp_path / "cell.json"
    assert kept_json(path) is None and not capsys.readouterr().err
    path.write_text('{"a": 1}')
    assert kept_json(path) == {"a": 1}
    path.write_text("{")
    assert kept_json(path) is None
    assert "cell.json is damaged (not JSON" in capsys.readouterr().err
    assert [p.name for p in tmp_path.iterdir()] == ["cell.json.damaged"]

    def unreadable(_):
        raise PermissionError(13, "Permission denied")

    path.write_text("{")
    with pytest.raises(PermissionError):
        kept(path, unreadable)
    assert path.exists()


def test_a_folder_is_this_runs_until_it_is_gone(tmp_path, monkeypatch):
    """Removed to any point, it is taken up again."""
    unlink, rmtree = Path.unlink, shutil.rmtree
    for steps in range(6):
        done = 0

        def counted(action, *arguments, **options):
            nonlocal done
            done += 1
            if done > steps:  # noqa: B023
                raise KeyboardInterrupt
            return action(*arguments, **options)

        with RunFolder.open(tmp_path / "run", SETTINGS) as folder:
            folder.shard("a.json", lambda path: path.write_text("{}"))
            folder.finish()
            with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
                patched.setattr(Path, "unlink", lambda self, **o: counted(unlink, self, **o))
                patched.setattr("sims_core.lab.runs.shutil.rmtree", lambda *a, **o: counted(rmtree, *a, **o))
                folder.remove()
        with RunFolder.open(tmp_path / "run", SETTINGS) as folder:
            assert steps == 0 or not folder.finished
            folder.remove()
        assert not (tmp_path / "run").exists()
