"""Every experiment, from scikit-learn's digits to its report, at a size of seconds."""

from __future__ import annotations

import html
import json
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from sims_core.algorithm import METHODS
from sims_image.commands import run as command
from sims_image.models.presets import PRESETS
from tests.image import tiny

COMMON = ["--base", "tiny", "--n", "30", "--trials", "1", "--sampler", "heun:2", "--features", "pixels"]
COMMON += ["--device", "cpu", "--auxiliary-weights", "raw", "--network", "augment_dim=0"]
AUXILIARY = ["--auxiliary-size", "20", "--budget", "16", "--omega", "1"]
CASES = {
    "loop": (["--generations", "2", "--method", "standard,sims", *AUXILIARY], "generations", 4),
    "pollution": (["--pollution", "0.5", *AUXILIARY], "models", 6),
    "retrain": (["--ratio", "1", "--generations", "2", "--retrain-budget", "16"], "rounds", 4),
    "control": (["--target", "3=0.2", "--network", "augment_dim=0,label_dim=0", *AUXILIARY], "models", 6),
}

#: the methods of the core that each of them asks for
ASKED = {"loop": {"standard", "sims"}, "pollution": {"sims"}, "retrain": {"standard"}, "control": {"sims", "random"}}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits")
    command(["prepare", "digits", "--limit", "360", "--balanced", "--holdout", "240", "--out", str(folder / "digits")])
    PRESETS["tiny"] = tiny.preset(tiny.EDM, tiny.recipe(budget="0.16k", lr=1e-2))
    yield folder / "digits"
    del PRESETS["tiny"]


@pytest.mark.parametrize("verb", CASES)
def test_from_digits_to_a_report(digits, tmp_path, verb, monkeypatch):
    words, table, rows = CASES[verb]
    if verb == "control":  # a network of seconds draws no digits: what class a smudge is of is as good as a draw
        monkeypatch.setattr("sims_image.experiments.control.ROUNDS", 12)
        words = [*words, "--classifier", "tests.image.test_digits_experiments:Lots"]
    given = ["--data", str(digits), "--heldout", f"{digits}-heldout", "--out", str(tmp_path / "out"), *COMMON, *words]
    asked: list[str] = []

    def spied(name: str, run: Any) -> Any:
        return lambda *args, **more: asked.append(name) or run(*args, **more)

    for name, method in METHODS.items():
        monkeypatch.setitem(METHODS, name, replace(method, run=spied(name, method.run)))
    command([verb, *given])
    assert set(asked) == ASKED[verb]
    report = tmp_path / "out/report"
    found = pd.read_parquet(report / f"{table}.parquet")
    assert len(found) == rows and found["frechet"].gt(0).all() and found["recall"].between(0, 1).all()
    results = json.loads((report / "results.json").read_text())
    assert results["data"]["images"] == 120 and results["reference"]["images"] == 240 and results["conclusion"]
    page = (report / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + len(list(report.glob("grid-*.png")))
    assert results["conclusion"][0] in html.unescape(page) and f"<h2>Table {table}</h2>" in page
    assert (report / f"{verb}.png").stat().st_size > 10_000 and list(report.glob("grid-*.png"))


class Lots:
    """Ten classes for any image: the sum of its pixels modulo 10, and for held-out digits no better than chance."""

    classes = tuple("0123456789")

    def __call__(self, images):
        return images.astype(int).sum((1, 2, 3)) % 10
