"""Commands and files that ask for too much, or that somebody damaged: one line, or the right result."""

import json
import re
import shutil

import numpy as np
import pandas as pd
import pytest

from sims_core.errors import InputError
from sims_core.lab import pool
from sims_core.lab.command import main_with_errors
from sims_toy import datasets
from sims_toy.studies import STUDIES, command
from tests.image.ranks import finish, launch

sweep, stability, mad, pollution, control, sampling_cost, bias = map(command, STUDIES)
LONG = "9" * 5000

COMMANDS = [
    (sweep, "--omega 5:0", "reversed"),
    (sweep, "--omega ", "empty"),
    (sweep, "--omega 0:5:0", "step"),
    (sweep, "--omega nan", "not finite"),
    (sweep, "--synthetic=-5", "between"),
    (sweep, "--real-size 10.5", "whole number"),
    (sweep, "--trials 1", "at least 2"),
    (sweep, "--trials ten", "--trials: got"),
    (sweep, "--generations=-1", "--generations"),
    (sweep, "--chunk=-1", "--chunk"),
    (sweep, "--seed=-1", "--seed"),
    (sweep, "--real-covariance 1,2;2,1", "positive definite"),
    (sweep, "--real-covariance 1,2;2", "same number"),
    (sweep, "--real-mean 0,0,0", "3 x 3"),
    (sweep, "--auxiliary-data sinthetic", "did you mean 'synthetic'"),
    (sweep, "--method simms", "did you mean 'sims'"),
    (sweep, "--loop augmentaton", "did you mean 'augmentation'"),
    (sweep, "--loop polluted --pollution 0", "pollution"),
    (sweep, "--sampler heunn:18", "did you mean 'heun'"),
    (sweep, "--learner exat", "did you mean 'exact'"),
    (sweep, "--preset figure5", "did you mean 'figure4'"),
    (sweep, "--learner exact --budget 50k", "exact learner takes eta"),
    (sweep, "--learner exact --budget 5x", "exact learner takes eta"),
    (sweep, "--budget 0.5", "samples seen"),
    (sweep, "--sampler exact", "numerical sampler"),
    (sweep, "--network.width 0", "network.width"),
    (sweep, "--network.target plane", "did you mean 'plain'"),
    (sweep, "--network.batch 0", "--budget"),
    (sweep, "--network.widht 3", "did you mean '--network.width'"),
    (sweep, "--auxiliary-data synthetic@-1", "score scale"),
    (sweep, "--budget 3", "eta in"),
    (sweep, "--omgea 0:5", "did you mean '--omega'"),
    (sweep, "--omega", "--omega"),
    (sweep, "--out /dev/null/x", "cannot write"),
    (sweep, f"--out {'x' * 300}", "cannot write"),
    (sweep, "--loop mixed:0", "auxiliary-size"),
    (sweep, "--scheduler tcp://127.0.0.1:9 --learner exact", "no Dask scheduler"),
    (sweep, "--network.backend numbr", "did you mean 'numba'"),
    (sweep, "--learner exact --estimator median", "mle, smooth:H, shrink:RHO, rank:K, decay:L, capacity:K, early:T"),
    (sweep, "--learner exact --estimator shrink:2", "from 0 to 1"),
    (sweep, "--learner exact --estimator capacity:3 --sampler exact", "heun:256"),
    (sweep, "--estimator smooth:0.3", "--learner exact"),
    (sweep, "--learner exact --real-covariance power:0", "power:64:1.5"),
    (sweep, "--sampler ddim:²", "2 to 10000 steps"),
    (sweep, "--sampler ddim:1000000000", "2 to 10000 steps"),
    (sweep, f"--sampler heun:{LONG}", "1 to 10000 steps"),
    (sweep, "--data gaussians:²", "2 to 9999 components"),
    (sweep, f"--data gaussians:{LONG}", "2 to 9999 components"),
    (sweep, "--data gaussians:99999999", "2 to 9999 components"),
    (sweep, "--data gaussian:", "did you mean 'gaussian'"),
    (sweep, "--data mixture:0:1:0.00001", "up to 9999"),
    (sweep, f"--data {'x' * 5000}.npy", "cannot be read as points"),
    (sweep, f"--loop {'scaled:1:' * 1500}augmentation", "--loop: got"),
    (sweep, "--loop scaled:1e400:augmentation", "factor C > 0"),
    (sweep, "--loop mixed:1e400", "ratio R >= 0"),
    (sweep, "--budget 9e400k", "at most 1e+15 samples"),
    (sweep, "--budget 9e300Mi", "at most 1e+15 samples"),
    (sweep, f"--budget {LONG}k", "at most 1e+15 samples"),
    (sweep, "--learner exact --budget 9e400", "--budget: got"),
    (sweep, "--synthetic 10000000000", "at most 1,000,000"),
    (sweep, f"--real-size {LONG}", "is not finite"),
    (sweep, "--generations 1000000000", "--generations: got"),
    (sweep, "--generations 9000000 --learner exact", "at most 200,000,000 distances"),
    (sweep, "--trials 1000000000", "--trials: got"),
    (sweep, f"--trials {LONG}", "give a whole number"),
    (sweep, "--omega=1e308", "between -1e+06 and 1e+06"),
    (sweep, "--omega 0:1:1e-300", "use a larger step"),
    (sweep, "--omega 0:1e308:1e-308", "use a larger step"),
    (sweep, "--omega=-1e308:1e308:1e300", "use a larger step"),
    (sweep, "--real-size 1:90000:1 --synthetic 1:90000:1", "at most 1,000,000"),
    (sweep, "--workers 1000000000", "--workers: got"),
    (sweep, f"--seed {2**128}", "--seed: got"),
    (sweep, "--network.width 1000000000", "--network.width: got"),
    (sweep, "--network.steps 1000000000000", "--network.steps: got"),
    (sweep, "--temperature ²", "is not a number"),
    (sweep, "--out a\nb --omega x\ny", r"'x\ny' is not a number"),
    (sweep, "--no\nsuch 1", r"option: got '--no\nsuch'"),
    (stability, "--ratio 0:1:1e-9", "use a larger step"),
    (stability, "--collapse-trials 100000000000", "--collapse-trials: got"),
    (mad, "--dimension 1000000", "at most 1000"),
    (mad, "--grid-ratio 0.1:9000:0.1 --grid-temperature 0.1:1:0.0001", "at most 1,000,000"),
    (pollution, "--auxiliary-size 10000000000", "--auxiliary-size: got"),
    (control, "--points 10000000000", "--points: got"),
    (control, "--omega 0:20:0.0003 --strength 1:20:0.001", "at most 1,000,000"),
    (sampling_cost, "--guidance held:²", "held:K with K >= 1"),
    (sampling_cost, f"--guidance held:{LONG}", "held:K with K >= 1"),
    (sampling_cost, "--omega=1e308", "between -1e+06 and 1e+06"),
    (sampling_cost, "--more-steps 1e300", "between 1 and 100"),
    (bias, "--networks spiral/16/1e9", "values must be between 1 and 1e+07"),
    (bias, "--networks spiral/16/60/5", "at least 20 steps and 100 synthetic points"),
    (bias, "--networks spirals", "did you mean 'spiral'"),
    (bias, "--networks gaussians:8:0", "write gaussians:K"),
    (bias, "--features 64:ridge", "write K, K:ridge:L or K:early:T[:warm]"),
    (bias, "--exact smooth:0.1@heun:0", "--exact: got"),
    (bias, "--exact smoth:0.1", "--exact: got"),
    (bias, "--omega 0:1", "values must be between 0.01"),
    (bias, "--exact none --features none --networks none", "there is nothing to run"),
    (bias, "--sampler exact", "networks need a numerical sampler"),
    (bias, "--trials 1", "--trials: got"),
]


#: commands whose last option is refused by its name
NAMED = {
    sweep: "--learner exact --data moons, --data moonz, --data moons --distance moments, --distance far, "
    "--temperature 0, --temperature 1.5, --learner exact --distance emd, --method sim, "
    "--learner flow --budget 0.5, --learner flow-matching --sampler ddim:20, "
    "--learner flow-matching --auxiliary-data synthetic@0.9, "
    "--learner flow-matching --network.parametrisation epsilon",
    mad: "--learner networks, --temperature 0, --temperature 1.2, --initial-size 1, --grid-ratio 0, --loop-size 3, "
    "--trials 2, --dimension -1, --learner network --sampler exact",
    sampling_cost: "--sampler exact, --guidance hold:2, --omega 1, --more-steps 0.5, --budget 50k, "
    "--learner network --budget 0.5, --trials 1, --real-covariance 1,2;2,1",
    pollution: "--learner magic, --pollution 0, --pollution 0,0.0001,1, --omega 0, --sampler exact, --ideal perfect, "
    "--auxiliary-data pollution, --trials 1, --budget 0.5,1, --real-covariance 1,2;2,1",
    stability: "--ratio 0.0001, --ratio=-1, --data gaussian, --sampler exact, --distance sliced2, "
    "--network.start cold, --kick 1, --learner network,gan, --learner flow --flow.start cold, "
    "--velocity-sampler ddim:20, --trials 2 --probes 3, --generations 1",
    control: "--data moons, --data gaussian, --target 0.5,0.6, --target half,half, "
    "--complement geometric --target 1,0, --complement other, --strength 0, "
    "--omega 0, --sampler exact, --budget 0.5, --points 10, --trials 1",
}
for study, cases in NAMED.items():
    COMMANDS += [(study, case, f"{re.findall(r'--[a-z.-]+', case)[-1]}: got") for case in cases.split(", ")]


@pytest.mark.parametrize(("command", "words", "match"), COMMANDS)
def test_what_no_run_can_have_is_one_line(tmp_path, monkeypatch, capsys, command, words, match):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pool, "PROMPT", 2)
    assert main_with_errors(command, words.split(" ")) == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ") and match in line
    assert line.count("\n") == 1 and line[:-1].isprintable() and len(line) < 1500
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------ --data FILE


def header(text, version=b"\x01\x00"):
    return b"\x93NUMPY" + version + len(text).to_bytes(2, "little") + text.encode("latin1") + bytes(64)


def described(shape, descr="'<f8'", order="False"):
    return header(f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n")


FILES = {
    "empty": b"",
    "a zip": None,
    "text": b"1,2\n3,4\n",
    "no version": b"\x93NUMPY",
    "another version": header("{}", b"\x09\x09"),
    "absurd": described("(10000000000000, 2)"),
    "absurd in bytes": described(f"({2**62}, {2**62})"),
    "large": described("(100000000, 2)"),
    "negative": described("(-4, 2)"),
    "not a tuple": described("4"),
    "of truth": described("(True, True)"),
    "objects": described("(4, 2)", "'|O'"),
    "unknown": described("(4, 2)", "'<q9'"),
    "nested": described("(4, 2)", "[('a', " * 90 + "'<f8'" + ")]" * 90),
    "not a literal": header("{'descr': open('x'), 'shape': (4, 2)}"),
    "not closed": header("{'descr': ("),
    "bytes": header("\xff\xfe\x00\x01"),
    "deep": header("(" * 9000),
    "long numbers": described(f"({'9' * 5000}, 2)"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_hold_no_points_are_refused(tmp_path, name):
    path = tmp_path / "points.npy"
    if FILES[name] is None:
        np.savez(tmp_path / "x.npz", points=np.zeros((9, 2)))
        shutil.move(tmp_path / "x.npz", path)
    else:
        path.write_bytes(FILES[name])
    with pytest.raises(
        InputError, match=r"data: got .*points.npy'; it (cannot be read as points|holds an array)"
    ) as no:
        datasets.from_file(path)
    assert str(no.value).isprintable()


@pytest.mark.parametrize("change", [np.asfortranarray, lambda p: p.astype(">f8"), lambda p: p.astype("<f4")])
def test_points_are_read_in_any_order(tmp_path, change):
    points = np.random.default_rng(0).standard_normal((9, 2)).astype(np.float32).astype(np.float64)
    np.save(tmp_path / "points.npy", change(points))
    plain = tmp_path / "plain.npy"
    np.save(plain, points)
    found, wanted = (datasets.from_file(p).reference for p in (tmp_path / "points.npy", plain))
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("seed", range(20))
def test_altered_files_end_in_one_line_or_in_points(tmp_path, seed):
    path, rng = tmp_path / "points.npy", np.random.default_rng(seed)
    np.save(path, rng.standard_normal((50, 2)))
    whole = path.read_bytes()
    for _ in range(25):
        content = bytearray(whole)
        for place in rng.integers(0, 128, size=rng.integers(1, 4)):
            content[place] = rng.integers(256)
        path.write_bytes(bytes(content[: len(content) if rng.random() < 0.7 else rng.integers(len(content))]))
        try:
            found, said = datasets.from_file(path).reference, ""
        except InputError as error:
            found, said = np.zeros(0), str(error)
        assert said.isprintable() and np.isfinite(found).all()


# ------------------------------------------------------------- damaged run folders

SMALL = ["--learner", "exact", "--omega", "0,1", "--synthetic", "50", "--trials", "60", "--generations", "2"]
SMALL += ["--chunk", "50", "--workers", "1", "--sampler", "ddim:5", "--out", "run"]
DAMAGE = {"empty": b"", "half": None, "a list": b"[]", "text": b"PK\x03\x04 no zip"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    finish(launch(["-m", "sims_toy.sweep", *SMALL[:-1], str(folder / "run")]))
    return folder / "run"


def test_damaged_pieces_are_made_again(finished, tmp_path, monkeypatch, capsys, undrawn):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "run")
    (tmp_path / "run" / "finished.json").unlink()
    shards = sorted((tmp_path / "run" / "shards").glob("*.npz"))
    assert len(shards) >= len(DAMAGE) + 2
    for path, content in zip(shards, DAMAGE.values(), strict=False):
        path.write_bytes(path.read_bytes()[:-200] if content is None else content)
    for path, names in ((shards[-1], {"cells": np.array([99])}), (shards[-2], {"trials": np.array([True])})):
        with np.load(path) as held:
            np.savez(path, **{**held, **names})
    assert main_with_errors(sweep, SMALL) == 0
    told = capsys.readouterr().err
    assert told.count("is damaged") == told.count("set aside and made again") == len(DAMAGE) + 2
    pd.testing.assert_frame_equal(pd.read_parquet("run/sweep.parquet"), pd.read_parquet(finished / "sweep.parquet"))


@pytest.mark.parametrize("name", ["finished.json", "sweep.parquet", "regimes.parquet"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_end_is_made_again(finished, tmp_path, monkeypatch, capsys, undrawn, name, damage):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(finished, "run")
    path = tmp_path / "run" / name
    path.write_bytes(path.read_bytes()[:-20] if DAMAGE[damage] is None else DAMAGE[damage])
    assert main_with_errors(sweep, SMALL) == 0
    assert f"run/{name} is damaged" in capsys.readouterr().err
    pd.testing.assert_frame_equal(pd.read_parquet("run/sweep.parquet"), pd.read_parquet(finished / "sweep.parquet"))
    assert json.loads((tmp_path / "run" / "finished.json").read_text())["tables"]


@pytest.mark.parametrize(
    "content", ["", "{", "5", "[1]", '{"settings": 5}', '{"a": 1}', "[" * 99_999, '{"settings": 1e999}']
)
def test_damaged_settings_are_named(finished, tmp_path, monkeypatch, capsys, content):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / "shards").mkdir(parents=True)
    (tmp_path / "run" / "shards" / "cells-0.npz").write_bytes(b"")
    (tmp_path / "run" / "settings.json").write_text(content)
    assert main_with_errors(sweep, SMALL) == 2
    line = capsys.readouterr().err
    assert "got 'run" in line and "name another folder" in line and line.count("\n") == 1
    assert (tmp_path / "run" / "settings.json").read_text() == content


def test_a_link_is_followed(tmp_path, monkeypatch, finished, undrawn):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "far")
    assert main_with_errors(sweep, SMALL) == main_with_errors(sweep, SMALL) == 0
    assert (tmp_path / "run").is_symlink() and (tmp_path / "far" / "finished.json").exists()
