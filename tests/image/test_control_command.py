"""Algorithm 2 from one command, on tiny networks; classifiers, their errors, and the images selected with them."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from sims_core.control import complement
from sims_core.errors import InputError
from sims_image.commands import run as command
from sims_image.data.dataset import open_dataset
from sims_image.experiments.control import parse_target, plan
from sims_image.experiments.options import Control
from sims_image.metrics.classify import Judge, confusion, judge
from sims_image.models.presets import PRESETS
from tests.image import tiny


class Parity:
    """Two classes that any image is of: whether the sum of its pixels is even."""

    classes = ("even", "odd")

    def __call__(self, images):
        return images.astype(int).sum((1, 2, 3)) % 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("control")
    PRESETS["tiny"] = tiny.preset(tiny.EDM, tiny.recipe(budget="0.08k", lr=1e-2))
    try:
        data = tiny.write_data(folder / "tiny.zip", count=60).path
        words = ["control", "--data", str(data), "--out", str(folder / "out"), "--base", "tiny", "--n", "120"]
        words += ["--network", "label_dim=0", "--features", "pixels", "--sampler", "heun:2", "--device", "cpu"]
        words += ["--classifier", "tests.image.test_control_command:Parity", "--target", "0.6,0.4", "--omega", "0.5,1"]
        words += ["--auxiliary-size", "30", "--budget", "16", "--trials", "2", "--auxiliary-weights", "raw"]
        command(words)
        yield folder, words
    finally:
        del PRESETS["tiny"]


def test_every_arm_is_measured(run):
    folder, _ = run
    models = pd.read_parquet(folder / "out/report/models.parquet")
    counts = models.groupby("arm").size().to_dict()
    assert counts == {"base": 2, "equal-cost": 2, "auxiliary": 2, "control": 4, "sims": 4, "random": 4}
    assert set(models.loc[models["arm"] == "control", "nfe"]) == {6}
    assert models["frechet_target"].notna().all()
    found = json.loads((folder / "out/report/results.json").read_text())
    assert len(found["conclusion"]) == 6 and (folder / "out/report/control.png").stat().st_size > 10_000


def test_the_auxiliary_s_data_have_the_complement_s_shares(run):
    """Counted anew: what was selected is, by the judge, the complement of the target, and comes from the base."""
    folder, _ = run
    classes = pd.read_parquet(folder / "out/report/classes.parquet")
    sets = [open_dataset(path) for path in sorted((folder / "out").glob("subset-*"))]
    mine = [data for data in sets if len(data) == 30]
    assert len(mine) == 2  # one a trial
    found = sorted(Parity()(data.images(slice(None))).mean() for data in mine)
    wanted = []
    for trial in range(2):
        one = classes[(classes["arm"] == "base") & (classes["trial"] == trial)].set_index("class")
        own = one["base"].to_numpy()
        wanted.append(complement(own, [0.6, 0.4])[1])
        np.testing.assert_allclose(one["auxiliary"], complement(own, [0.6, 0.4]))
    np.testing.assert_allclose(found, sorted(wanted), atol=0.5 / 30 + 1e-9)


def test_rows_agree_with_one_another(run):
    folder, _ = run
    report = folder / "out/report"
    models, classes = (pd.read_parquet(report / f"{name}.parquet") for name in ("models", "classes"))
    control = classes[classes["arm"] == "control"]
    np.testing.assert_allclose(
        control["law"], control["base"] + control["omega"] * (control["base"] - control["auxiliary"])
    )
    for (arm, omega, trial), part in classes.groupby(["arm", "omega", "trial"]):
        row = models[(models["arm"] == arm) & (models["omega"] == omega) & (models["trial"] == trial)].iloc[0]
        assert row["tv"] == pytest.approx(np.abs(part["share"].clip(0, 1) - part["target"]).sum() / 2)
        assert part["judged"].sum() == pytest.approx(1)


def test_again_computes_nothing(run, capsys):
    folder, words = run
    before = {p: p.stat().st_mtime_ns for p in (folder / "out").rglob("*") if p.is_file() and "report" not in str(p)}
    command(words)
    after = {p: p.stat().st_mtime_ns for p in before}
    kept = [p for p in before if "/runs/" not in str(p) and not p.name.startswith(".")]
    assert all(before[p] == after[p] for p in kept)
    command([*words, "--dry-run"])
    assert "one A100 in all" in capsys.readouterr().out


def test_bad_input(run):
    folder, _ = run
    good = Control(data=str(folder / "tiny.zip"), base="tiny", network="label_dim=0")
    for argument, bad in {
        "^base: got 'tiny'; .*`network` label_dim=0, or name an unconditional one: cifar10-uncond": {"network": ""},
        "^network: got 'label_dim=3'; .*label_dim=0$": {"network": "label_dim=3"},
        "^target": {"target": "0.3,0.7"},  # of three classes
        "^classifier": {"classifier": "nowhere:Judge"},
        "^complement": {"complement": "opposite"},
        "^strength": {"strength": 0.0},
        "^omega: got '0'; give at least one value above 0": {"omega": "0"},
        "^omega.*between 0 and": {"omega": "-1,1"},
    }.items():
        with pytest.raises(InputError, match=argument):
            plan(replace(good, **bad))
    conditional = str(tiny.checkpoint(folder / "conditional", preset="tiny").path)
    with pytest.raises(InputError, match=f"^base: got '{conditional}'; it is conditional .3 classes") as error:
        plan(replace(good, base=conditional))
    assert "train --network label_dim=0" in str(error.value) and "name a preset" in str(error.value)
    with pytest.raises(InputError, match=r"^base"):  # with the advice that the network was given before
        plan(replace(good, base=conditional, network=""))


def test_targets():
    base = np.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(parse_target("uniform", "abc", base), 1 / 3)
    np.testing.assert_allclose(parse_target("2,1,1", "abc", base), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(parse_target("c=0.6", "abc", base), [0.25, 0.15, 0.6])
    for bad in ("0.5,0.5", "d=1", "a=2", "x", "-1,1,1"):
        with pytest.raises(InputError, match=r"^target"):
            parse_target(bad, "abc", base)


def test_classify_shows_errors_and_corrects_shares(tmp_path, capsys):
    """Brightness tells the tiny classes apart; images in known shares are judged, and the shares come back."""
    data = tiny.write_data(tmp_path / "data.zip", count=240)
    heldout = tiny.write_data(tmp_path / "heldout.zip", count=90, seed=1)
    images = tiny.write_data(tmp_path / "images.zip", count=90, seed=2)
    words = ["--data", str(data.path), "--heldout", str(heldout.path), "--images", str(images.path), "--device", "cpu"]
    command(["classify", *words])
    said = capsys.readouterr().out
    made = judge("", data)
    errors = confusion(made, heldout)
    assert np.trace(errors) > 0.6 * errors.sum() and errors.sum(1).tolist() == [30, 30, 30]
    assert f"accuracy {np.trace(errors) / 90:.4f}" in said and "corrected, 95 % interval" in said
    shares = [float(line.split()[3]) for line in said.splitlines()[-3:]]
    assert np.allclose(shares, 1 / 3, atol=0.15)
    folder = next((tmp_path / "data.zip.features").glob("classifier-*"))
    again = judge(str(folder), data)
    assert again.sha256 == made.sha256 and np.array_equal(confusion(again, heldout), errors)
    with pytest.raises(InputError, match="--heldout"):
        command(["classify", "--data", str(data.path), "--heldout", str(data.path), "--device", "cpu"])


def test_judges_of_one_s_own(tmp_path):
    data = tiny.write_data(tmp_path / "data.zip")
    made = judge("tests.image.test_control_command:Parity", data)
    assert made.classes == ("even", "odd") and set(made(data.images(slice(None))).tolist()) <= {0, 1}
    scores = Judge(lambda images: np.eye(3)[np.arange(len(images)) % 3], ("a", "b", "c"), "scores", "x")
    assert scores(data.images(slice(0, 4))).tolist() == [0, 1, 2, 0]
    for bad in ("tests.image.nowhere:Parity", "tests.image.tiny:recipe", str(tmp_path)):
        with pytest.raises(InputError, match=r"^classifier"):
            judge(bad, data)
    with pytest.raises(InputError, match=r"^classifier"):
        Judge(lambda images: np.full(len(images), 7), ("a", "b"), "wrong", "x")(data.images(slice(0, 2)))
