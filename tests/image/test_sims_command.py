"""Algorithm 1 from one command, on tiny networks: stages, reuse, the search's choice, the report."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from sims_core.errors import InputError
from sims_core.lab import pool
from sims_image.commands import run as command
from sims_image.data.dataset import open_dataset
from sims_image.experiments import bench, halving, sims_report
from sims_image.experiments.arms import Arm
from sims_image.experiments.options import Sims
from sims_image.experiments.plan import plan
from sims_image.experiments.sims import conduct, describe
from sims_image.metrics.report import collect
from sims_image.models import checkpoints
from sims_image.models.presets import PRESETS
from tests.image import tiny
from tests.image.ranks import finish, kill, launch

#: the tiny preset, for commands in other processes
LAUNCH = (
    "import sys; from tests.image import tiny; from sims_image.models.presets import PRESETS; "
    "from sims_image.__main__ import main; "
    "from sims_image.experiments import halving; halving.RHOS, halving.TOPS = (5.0,), (1.0,); "
    "PRESETS['tiny'] = tiny.preset(tiny.EDM, tiny.recipe(budget='0.08k', lr=1e-2)); main()"
)


@pytest.fixture(scope="module", autouse=True)
def few_samplers():
    """Two samplers to retune over, for speed."""
    kept, halving.RHOS, halving.TOPS = (halving.RHOS, halving.TOPS), (5.0,), (1.0,)
    yield
    halving.RHOS, halving.TOPS = kept


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One experiment, twice: the second with another grid. What each left behind."""
    folder = tmp_path_factory.mktemp("sims")
    PRESETS["tiny"] = tiny.preset(tiny.EDM, tiny.recipe(budget="0.08k", lr=1e-2))
    try:
        data = tiny.write_data(folder / "tiny.zip", count=48).path
        heldout = tiny.write_data(folder / "heldout.zip", count=48, seed=1).path
        words = ["sims", "--data", str(data), "--base", "tiny", "--heldout", str(heldout), "--out", str(folder / "out")]
        words += ["--synthetic", "24", "--budget", "16,32", "--search", "40", "--n", "40", "--repeats", "2"]
        words += ["--features", "pixels", "--sampler", "heun:2", "--auxiliary-weights", "raw", "--device", "cpu"]
        states = []
        for grid in ("0,1", "0:1:0.5"):
            command([*words, "--omega", grid])
            files = {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in sorted((folder / "out").rglob("*.*"))}
            states.append((json.loads((folder / "out/report/results.json").read_text()), files))
        yield folder, words, states
    finally:
        PRESETS.pop("tiny", None)  # of two fixtures, whichever ends first


def test_a_second_grid_reuses_everything_before_it(run):
    _, _, ((first, before), (second, after)) = run
    kept = [name for name in before if "/report/" not in name and not name.endswith(".features")]
    assert all(after[name] == before[name] for name in kept if re.search(r"/(fit|sample|finetune)-|/cells/", name))
    runs = {re.search(r"/(finetune-\w+)/", name)[1] for name in after if "/finetune-" in name}
    assert len(runs) == 2  # one for the auxiliaries of both budgets, one for the base that is trained further
    new = {name for name in after if "/cells/" in name} - set(before)
    cells = [len(found["search"]) for found in (first, second)]
    assert cells == [4, 6] and 2 <= len(new) <= 2 + 1 + 2 * 7  # two of the search, Neon's, and a changed choice's arms
    same = {(c["budget"], c["omega"]): c["value"] for c in first["search"]}
    assert all(same.get((c["budget"], c["omega"]), c["value"]) == c["value"] for c in second["search"])


def test_the_choice_is_scored_on_other_seeds(run):
    folder, _, (_, (found, _)) = run
    best = min((c for c in found["search"] if c["omega"] > 0), key=lambda c: c["value"])
    arms = {arm["arm"]: arm for arm in found["arms"]}
    assert f"omega = {best['omega']:g}, budget {best['budget']:,}" == arms["SIMS"]["what"]
    assert all(arm["seeds"] == ["64-103", "104-143"] for arm in arms.values())
    synthetic = next((folder / "out").glob("sample-*"))
    assert open_dataset(synthetic).record["source"]["seeds"] == "0-23" and open_dataset(synthetic).labels is not None
    cells = [json.loads(p.read_text())["report"]["seeds"] for p in (folder / "out/cells").glob("*.json")]
    assert set(cells) == {"24-63", "64-103", "104-143"}
    assert arms["SIMS"]["mean"] != pytest.approx(best["value"])
    assert (arms["base"]["nfe"], arms["SIMS"]["nfe"], arms["Neon"]["nfe"]) == (3, 6, 3)
    assert arms["base, twice the steps"]["nfe"] == 7
    assert set(arms) >= {"naive fine-tune", "base trained further", "random direction"}
    assert arms["base, sampler retuned"]["nfe"] in (5, 6)  # Heun with 3 steps, Euler with 6


def test_the_table_is_what_the_cells_say(run):
    _, _, (_, (found, _)) = run
    from scipy import stats

    base, best = found["arms"][:2]
    change = np.subtract(best["values"], base["values"])
    low, high = stats.t.interval(0.95, len(change) - 1, loc=change.mean(), scale=stats.sem(change))
    assert best["minus_base"] == pytest.approx(change.mean())
    assert best["minus_base_half_interval"] == pytest.approx((high - low) / 2)
    said = found["conclusion"][0]
    words = "improves" if high < 0 else "is worse" if low > 0 else "No difference"
    assert words in said and f"{best['mean']:.4g}" in said
    assert found["cost"]["generating D_s"] == 3 * 24 and found["cost"]["fine-tuning"] == 3 * 32


def test_the_page_is_whole_and_self_contained(run):
    folder, _, _ = run
    text = (folder / "out/report/report.html").read_text()
    opened: list[str] = []

    class Balance(HTMLParser):
        def handle_starttag(self, tag, attrs):
            if tag not in ("meta", "img", "link", "input", "br"):
                opened.append(tag)

        def handle_endtag(self, tag):
            assert opened.pop() == tag

    Balance().feed(text)
    assert not opened
    assert "<td>out</td>" not in text and "<td>data</td>" in text  # the same run elsewhere writes the same page
    grids = 4  # of base, SIMS, twice the steps, naive fine-tune
    assert text.count("data:image/png;base64,") == 2 + grids and not re.search(r'src="(?!data:)', text)
    beside = re.findall(r'href="(?!data:|#)([^"]*)"', text)
    assert {"table.csv", "arms.svg", "results.json"} <= set(beside)
    assert all((folder / "out/report" / name).is_file() for name in beside)
    for name in ("figure3", "arms", "samples"):
        with Image.open(folder / f"out/report/{name}.png") as picture:
            assert picture.width > 200
    assert (folder / "out/report/table.csv").read_text().count("\n") == 9


def test_dry_run_and_bad_input(run, capsys, tmp_path):
    folder, words, _ = run
    before = sorted(folder.rglob("*"))
    command([*words, "--dry-run"])
    said = capsys.readouterr().out
    assert re.search(r"synthetic  24 images, seeds [0-9-]+: 72 evaluations\n", said)
    assert "17 models on 40 images" in said and "3 evaluations per image, 6 with SIMS" in said
    assert sorted(folder.rglob("*")) == before
    given = {"data": str(folder / "tiny.zip"), "base": "tiny"}
    for bad in ({"data": ""}, {"base": ""}, {"base": "tyni"}, {"omega": "0"}, {"omega": "-1,0,1"},
                {"synthetic": "3"}, {"repeats": 1}, {"auxiliary_data": "fake"}, {"budget": "1,x"},
                {"labels": "3"}):  # fmt: skip
        with pytest.raises(InputError, match=f"^{next(iter(bad))}: "):
            plan(Sims(**{**given, **bad}))


@pytest.mark.parametrize(
    ("more", "match"),
    [
        (["--budget", "9,16"], "--budget: got '9 and 16'; both are 2 steps of --train-batch 8"),
        (["--budget", "3,8"], "--budget: got '3 and 8'; both are 1 step of --train-batch 8"),
        (["--budget", "8,16", "--lr-rampup", "1k"], "--budget: got '8'; .*the auxiliary would be the base"),
    ],
)
@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_budgets_that_make_no_auxiliary_of_their_own(run, more, match, dry):
    folder, words, _ = run
    words = [*words[: words.index("--budget")], *words[words.index("--budget") + 2 :]]
    before = sorted(folder.rglob("*"))
    with pytest.raises(InputError, match=match):
        command([*words, "--omega", "0,1", *more, *dry])
    assert sorted(folder.rglob("*")) == before


def test_auto_halves_and_confirms_on_other_seeds(run, capsys):
    """Ten candidates on 50 images, the better four on 150; with the auxiliary held over both steps."""
    folder, words, _ = run
    words = [*words, "--search", "150", "--omega", "auto:0.2:1:0.2", "--guidance", "held:2", "--no-controls"]
    command([*words, "--dry-run"])
    said = capsys.readouterr().out
    assert re.search("11 models on 50 images\n.*5 models on 150 images", said) and "(auxiliary: held:2)" in said
    assert "5,000 evaluations, 22% less than the full grid" in said  # 10 x 50 x 4 + 4 x 150 x 4 + 200 x 3 of 6,450
    command(words)
    found = json.loads((folder / "out/report/results.json").read_text())
    rounds = [[c for c in found["search"] if c["n"] == n and c["omega"] > 0] for n in (50, 150)]
    assert len(found["search"]) == 10 + 4 + 2 * 2 and [len(r) for r in rounds] == [10, 4]
    first = {(c["budget"], c["omega"]): c["value"] for c in rounds[0]}
    kept = sorted(first, key=lambda key: first[key])[:4]
    assert {(c["budget"], c["omega"]) for c in rounds[1]} == set(kept)
    best = min(rounds[1], key=lambda c: c["value"])
    arms = {arm["arm"]: arm for arm in found["arms"]}
    assert f"omega = {best['omega']:g}, budget {best['budget']:,}, auxiliary held:2" == arms["SIMS"]["what"]
    assert (arms["base"]["nfe"], arms["SIMS"]["nfe"], best["nfe"]) == (3, 4, 4)
    used = {json.loads(p.read_text())["report"]["seeds"] for p in (folder / "out/cells").glob("*.json")}
    assert {"24-73", "24-173"} <= used and {s for a in found["arms"] for s in a["seeds"]} == {"174-213", "214-253"}
    spent = found["cost"]
    assert spent["search"] == 10 * 50 * 4 + 4 * 150 * 4 + 200 * 3 + 2 * 150 * 3
    assert spent["search, as a full grid"] == 10 * 150 * 4 + 150 * 3 + 2 * 150 * 3
    assert f"{spent['search']:,} evaluations" in " ".join(found["conclusion"])


def test_a_full_disk_and_a_kill_lose_nothing(run, tmp_path, monkeypatch):
    folder, words, (_, (found, _)) = run
    shutil.copytree(folder / "out", tmp_path / "out", ignore=shutil.ignore_patterns("cells", "report", "merge-*"))
    words = [*words, "--omega", "0:1:0.5", "--out", str(tmp_path / "out")]
    kept, calls = bench.write_json, []

    def full(path, content):
        calls.append(path)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        kept(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(bench, "write_json", full)
        with pytest.raises(InputError, match=r"--out.*the disk is full.*kept in cells.*repeat the command"):
            command(words)
    cells = tmp_path / "out/cells"
    first = {path: path.stat().st_mtime_ns for path in cells.glob("*.json")}
    assert len(first) == 2
    [process] = launch(["-c", LAUNCH, *words])
    until = time.monotonic() + 300
    while time.monotonic() < until and process.poll() is None and len(list(cells.glob("*.json"))) < 5:
        time.sleep(0.01)
    kill([process])
    assert not (tmp_path / "out/report").exists() and len(list(cells.glob("*.json"))) >= 5
    with monkeypatch.context() as patch:  # now the report finds no room
        patch.setattr(
            sims_report, "write_json", lambda path, content: full(path, calls.clear() or calls.extend([0, 0]))
        )
        with pytest.raises(InputError, match=r"--out.*the disk is full.*all that was measured is kept"):
            command(words)
    command(words)
    again = json.loads((tmp_path / "out/report/results.json").read_text())
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in first.items())
    assert again["search"] == found["search"]
    assert [arm["values"] for arm in again["arms"]] == [arm["values"] for arm in found["arms"]]


def test_what_does_not_fit_is_refused_before_anything_is_made(run, tmp_path, monkeypatch):
    folder, _, _ = run
    base = str(next((folder / "out").glob("fit-*")) / "snapshots/0000000080/ema")
    good = {"data": str(folder / "tiny.zip"), "base": base, "out": str(tmp_path / "out"), "features": "pixels"}
    other = {name: str(tiny.write_data(tmp_path / f"{name}.zip", **options).path) for name, options in (
        ("five", {"classes": 5}), ("large", {"size": 16}), ("none", {"classes": 0}))}  # fmt: skip
    for given, said in (
        ({"data": other["five"]}, "^data.*5 classes, the network has 3"),
        ({"data": other["large"]}, "^data.*3x16x16, the base's 3x8x8"),
        ({"data": other["none"], "labels": "data"}, "^labels.*name a labelled one"),
        ({"heldout": other["large"]}, "^heldout.*3x16x16"),
        ({"features": "dinov2"}, "^weights.*https://"),
        ({"features": "dinov2", "weights": "nowhere.pth"}, "^weights.*no such file.*https://"),
        ({"features": "inception"}, "^features.*torch-fidelity"),
        ({"heldout": good["data"]}, "^heldout.*tiny.zip.*nothing is held out"),
        ({"sampler": "magic:3"}, "^sampler"),
        ({"lr_rampup": "soon"}, "^lr_rampup"),
        ({"train_batch": 0}, "^train_batch"),
        ({"device": "cuda:99"}, "^device"),
        ({"pair": "parallel"}, "^pair"),
        ({"guidance": "held:2+predictor"}, "^guidance"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, "torch_fidelity", None)  # as if it were not installed
            with pytest.raises(InputError, match=said):
                conduct(Sims(**{**good, **given}), tiny.ALONE)
            with pytest.raises(InputError, match=said):
                describe(Sims(**{**good, **given}, dry_run=True))
    assert not list(tmp_path.glob("out/[fsm]*"))


@pytest.mark.slow
def test_two_processes_measure_the_same(run, tmp_path):
    folder, words, (_, (found, _)) = run
    shutil.copytree(folder / "out", tmp_path / "out")
    shutil.rmtree(tmp_path / "out/cells")
    finish(launch(["-c", LAUNCH, *words, "--omega", "0:1:0.5", "--out", str(tmp_path / "out")], 2))
    again = json.loads((tmp_path / "out/report/results.json").read_text())
    for one, other in zip(found["search"], again["search"], strict=True):
        assert other == pytest.approx(one, rel=1e-6)
    assert [a["values"] for a in again["arms"]] == [pytest.approx(a["values"], rel=1e-6) for a in found["arms"]]


def _again(run, place, *words):
    """The experiment once more with the stages of the first, its models measured anew."""
    folder, usual, (_, (found, _)) = run
    shutil.copytree(folder / "out", place)
    shutil.rmtree(place / "cells")
    command([*usual, "--omega", "0:1:0.5", "--out", str(place), *words])
    again = json.loads((place / "report/results.json").read_text())
    for one in (found, again):
        one["settings"] = {k: v for k, v in one.get("settings", {}).items() if k not in ("out", "workers", "scheduler")}
    assert again["search"] == found["search"] and again["arms"] == found["arms"]
    cells = {p.name: p.read_bytes() for p in (folder / "out/cells").glob("*.json")}
    assert {p.name: p.read_bytes() for p in (place / "cells").glob("*.json")}.items() <= cells.items()


def test_two_workers_measure_the_same_models(run, tmp_path, monkeypatch):
    here = []
    monkeypatch.setattr(bench, "collect", lambda *a, **k: here.append(1) or collect(*a, **k))
    _again(run, tmp_path / "out", "--workers", "2")
    assert len(here) <= 4  # the base and the auxiliaries of the outlook; the search and the confirmation are elsewhere


@pytest.mark.slow
def test_a_cluster_that_loses_a_worker_measures_the_same_models(run, tmp_path):
    distributed = pytest.importorskip("distributed", reason="needs the extra 'cluster'")
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    with cluster:
        pid = next(iter(cluster.workers.values())).pid

        def kill():
            while not list((tmp_path / "out/cells").glob("*.json"))[4:]:  # mid-run
                time.sleep(0.01)
            os.kill(pid, signal.SIGKILL)

        thread = threading.Thread(target=kill, daemon=True)
        thread.start()
        _again(run, tmp_path / "out", "--scheduler", cluster.scheduler_address)
        thread.join(timeout=1)
        assert not thread.is_alive()


def test_no_scheduler_is_one_clear_line(run, tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "PROMPT", 2)
    with pytest.raises(InputError, match=r"^scheduler.*no Dask scheduler answers"):
        conduct(Sims(data=run[1][2], base="tiny", out=str(tmp_path), scheduler="tcp://127.0.0.1:9"), tiny.ALONE)
    assert not any(tmp_path.iterdir())


def test_arms_against_the_base():
    base, other = (Arm(n, "", 1, v, ()) for n, v in (("base", (2.0, 4.0)), ("other", (1.0, 3.5))))
    assert other.against(base)[0] == -0.75 and other.mean == 2.25


# ---------------------------------------------------------------- samples of another model


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """Real images, a base, and another model's checkpoint and images."""
    folder = tmp_path_factory.mktemp("others")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(PRESETS, "tiny", tiny.preset(tiny.EDM, tiny.recipe(budget="0.08k", lr=1e-2)))
        data = tiny.write_data(folder / "tiny.zip", count=48)
        known = {"preset": "tiny", "data": checkpoints.Data("tiny", classes=data.classes, dtype="uint8")}
        base = tiny.checkpoint(folder / "base", **known)
        other = checkpoints.save(folder / "other", tiny.network(seed=4), checkpoints.Record(**known))
        words = ["--seeds", "0-29", "--sampler", "heun:2", "--device", "cpu"]
        command(["generate", "--base", str(other.path), "--out", str(folder / "images"), *words])
        yield folder, data, base, other


def elsewhere_words(folder, data, base):
    words = ["sims", "--data", str(data.path), "--base", str(base.path), "--synthetic", "24", "--budget", "16"]
    words += [
        "--search", "24", "--n", "24", "--repeats", "2", "--omega", "1", "--features", "pixels", "--device", "cpu",
    ]  # fmt: skip
    return [*words, "--sampler", "heun:2", "--auxiliary-weights", "raw", "--no-controls"]


@pytest.mark.parametrize("named", ["other", "images"])
def test_an_auxiliary_from_another_models_images(others, tmp_path, named, capsys):
    folder, _, base, other = others
    words = [*elsewhere_words(*others[:3]), "--synthetic-from", str(folder / named)]
    command([*words, "--dry-run"])
    assert f"of {folder / named}" in capsys.readouterr().out
    command([*words, "--out", str(tmp_path / "out")])
    made = next((tmp_path / "out").glob("sample-*" if named == "other" else "subset-*"))
    found = open_dataset(made)
    if named == "other":
        assert found.record["source"]["base"] == other.sha256 and len(found) == 24
    else:
        every = np.arange(24)
        assert np.array_equal(found.images(every), open_dataset(folder / "images").images(every))
    tuned = json.loads(next((tmp_path / "out").glob("finetune-*/settings.json")).read_text())["settings"]
    assert tuned["data"]["sha256"] == found.sha256 and tuned["from"] == base.sha256
    results = json.loads((tmp_path / "out/report/results.json").read_text())
    assert results["cost"]["generating D_s"] == (24 * 3 if named == "other" else 0)


def test_another_models_images_that_do_not_fit_are_refused(others, tmp_path):
    folder, data, base, _ = others
    tiny.write_data(folder / "large.zip", count=24, size=16)
    tiny.write_data(folder / "few.zip", count=23)
    tiny.write_data(folder / "classes.zip", count=24, classes=2)
    tiny.write_data(folder / "unlabelled.zip", count=24, classes=0)
    tiny.checkpoint(folder / "two", tiny.EDM | {"label_dim": 2})
    tiny.checkpoint(folder / "grey", tiny.EDM | {"img_channels": 1})
    for name, words in {
        "large.zip": "its images are 3x16x16, the base's 3x8x8",
        "few.zip": "it holds 23 images, and .*synthetic.* asks for 24",
        "classes.zip": "it has 2 classes, the base 3",
        "unlabelled.zip": "it has 0 classes, the base 3",
        "two": "it has 2 classes, the base 3",
        "grey": "its images are 1x8x8, the base's 3x8x8",
        "nothing": "there is nothing|no such|not there",
    }.items():
        words_ = [*elsewhere_words(folder, data, base), "--synthetic-from", str(folder / name)]
        with pytest.raises(InputError, match=f"synthetic.from: got .*{name}.*(?:{words})"):
            command([*words_, "--out", str(tmp_path / "out")])
    assert not list(tmp_path.glob("out/*-*"))
