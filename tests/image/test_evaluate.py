"""Evaluating: references and their floors, reports, tables, and the command."""

import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sims_core.errors import InputError
from sims_core.lab.command import main_with_errors
from sims_core.sampling import Sampler
from sims_image.commands import run as command
from sims_image.data.dataset import cache_folder
from sims_image.data.folders import write_folder
from sims_image.metrics import targets
from sims_image.metrics.compare import METRICS, compare
from sims_image.metrics.features import Extractor, extractor
from sims_image.metrics.report import collect, evaluate, frechet, kid, table
from sims_image.metrics.samples import Sample
from sims_image.metrics.targets import DataFeatures, Reference
from sims_image.models import checkpoints
from sims_image.sampling.generation import stream
from sims_image.sampling.guided import load_model
from tests.image import tiny
from tests.image.synthetic import png

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def real(home):
    return tiny.write_data(home / "real.zip", count=300, seed=1)


@pytest.fixture(scope="module")
def heldout(home):
    return tiny.write_data(home / "heldout.zip", count=120, seed=2)


@pytest.fixture(scope="module")
def pixels(real):
    return extractor("pixels", dataset=real)


@pytest.fixture(scope="module")
def reference(real, heldout, pixels):
    return Reference.of(real, pixels, heldout=heldout)


def fresh(count, seed):
    """Images like `tiny.write_data`'s."""
    rng = np.random.default_rng(seed)
    return (rng.integers(0, 120, (count, 3, 8, 8)) + 40 * (np.arange(count) % 3)[:, None, None, None]).astype(np.uint8)


def pieces(images, size=32):
    return (images[k : k + size] for k in range(0, len(images), size))


def generated(folder, images, **source):
    return write_folder(
        folder, iter([images]), count=len(images), shape=(3, 8, 8), dtype=np.dtype(np.uint8), labels=None, classes=[],
        name="made", source={"kind": "generated", **source},
    )  # fmt: skip


# ------------------------------------------------------------------ evaluating


def test_a_report_holds_what_its_numbers_rest_on(real, heldout, pixels, reference, home):
    images = fresh(100, 3)
    found = evaluate(pieces(images), reference, n=100, seeds="0-99", labels="uniform", nfe=35)
    flat, there = images.reshape(100, -1) / 127.5 - 1, real.images(slice(None)).reshape(300, -1) / 127.5 - 1
    assert found.metrics["frechet"].value == pytest.approx(frechet(generated=flat, reference=there), rel=1e-4)
    assert found.metrics["kid"].value == pytest.approx(kid(generated=flat, reference=there), rel=1e-3, abs=1e-6)
    assert list(found.metrics) == list(METRICS) == list(found.against_heldout) and found.n == found.kept == 100
    assert found.floor.kind == "held-out" and found.floor.n == 100 and found.heldout_floor.kind == "training"
    assert found.at_floor is None and not found.memorisation.suspected
    written = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert written["features"]["sha256"] == pixels.sha256 and written["features"]["metric"] == "FD-pixels"
    assert written["reference"] == {"name": "real", "images": 300, "sha256": real.sha256}
    assert written["heldout"]["sha256"] == heldout.sha256
    assert (written["seeds"], written["labels"], written["nfe"]) == ("0-99", "uniform", 35)
    assert written["floor"]["n"] == 100 and written["metrics"]["recall"]["se"] > 0
    text = "\n".join(found.lines())
    for part in ("n = 100, seeds 0-99, labels uniform, NFE 35", real.sha256[:12], "floor, n = 100", "KID (FD-pixels)"):
        assert part in text
    found.save(home / "report.json")
    saved = json.loads((home / "report.json").read_text())
    assert "git" in saved.pop("provenance") and saved == written


def test_the_floor_is_where_equal_images_lie(reference):
    """Fresh images of the same kind lie at the floor, a shifted set above it, training images below and found out."""
    at = evaluate(pieces(fresh(120, 4)), reference)
    above = evaluate(pieces(np.clip(fresh(120, 5).astype(int) + 25, 0, 255).astype(np.uint8)), reference)
    drawn = np.random.default_rng(0).integers(0, 300, 120)
    copied = evaluate(pieces(reference.features.data.images(drawn)), reference)
    floor, error = at.floor.metrics["frechet"], at.metrics["frechet"].se + at.floor.metrics["frechet"].se
    assert abs(at.metrics["frechet"].value - floor.value) < 3 * error
    assert above.metrics["frechet"].value > floor.value + 3 * error
    assert copied.metrics["frechet"].value < floor.value and copied.memorisation.suspected
    assert "repeats training images" in "\n".join(copied.lines())
    bright = fresh(360, 6)[2::3]  # one class of three
    dropped = evaluate(pieces(bright), reference)
    assert dropped.metrics["recall"].value < 0.7 * at.metrics["recall"].value
    assert dropped.metrics["coverage"].value < 0.7 * at.metrics["coverage"].value


def test_without_heldout_images_the_reference_is_split(real, pixels):
    found = evaluate(pieces(fresh(200, 7)), Reference.of(real, pixels))
    assert found.floor.kind == "split" and (found.floor.n, found.floor.against) == (150, 150)
    assert found.against_heldout is None and found.at_floor["frechet"].n == 150
    assert any("floor is of 150 real images" in note for note in found.notes)
    assert not found.memorisation.suspected
    copies = real.images(np.random.default_rng(1).integers(0, 300, 200))
    assert evaluate(pieces(copies), Reference.of(real, pixels)).memorisation.suspected


def test_features_are_kept_and_reused(real, pixels, tmp_path, monkeypatch):
    first = DataFeatures(real, pixels, cache=tmp_path, batch=64)
    again = Extractor("pixels", "FD-pixels", pixels.sha256, 192, lambda x: pytest.fail("extracted again"))
    second = DataFeatures(real, again, cache=tmp_path)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one[1], other[1])
    monkeypatch.setattr("sims_image.metrics.targets.IN_MEMORY", 100)  # too large for memory: computed at each pass
    streamed = Reference.of(real, pixels, batch=64)
    assert streamed.features._array is None
    held = Reference.of(real, pixels, cache=tmp_path)
    sample = collect(pieces(fresh(80, 8)), pixels)
    for name, value in compare(sample, streamed.side).items():
        assert value.value == pytest.approx(compare(sample, held.side)[name].value, rel=1e-9)
    assert streamed.memorisation(sample) == held.memorisation(sample)
    (path,) = tmp_path.glob("*.npy")
    whole = path.read_bytes()
    path.write_bytes(whole[:-4])
    DataFeatures(real, pixels, cache=tmp_path)  # a cache is made again
    assert path.read_bytes() == whole and path.with_name(path.name + ".damaged").exists()


def test_statistics_are_stored_and_nvidias_are_read(real, heldout, pixels, tmp_path):
    whole = Reference.of(real, pixels)
    whole.save(path := tmp_path / "real.npz")
    with np.load(path) as stored:
        np.testing.assert_array_equal(stored["mu"], whole.side.statistics.mu)
    loaded = Reference.open(path, pixels, heldout=heldout)
    sample = collect(pieces(fresh(60, 9)), pixels)
    assert compare(sample, loaded.side) == compare(sample, whole.side)
    found = evaluate(sample, loaded)
    assert found.floor.kind == "held-out" and found.memorisation is None and found.reference["images"] == 300
    other = Extractor("pixels", "FD-pixels", "f" * 64, 192, lambda x: x)
    with pytest.raises(InputError, match="statistics of FD-pixels"):
        Reference.open(path, other)
    np.savez(nvidia := tmp_path / "cifar10-32x32.npz", mu=whole.side.statistics.mu, sigma=whole.side.statistics.sigma)
    with pytest.raises(InputError, match="which FD-pixels cannot be compared with"):
        Reference.open(nvidia, pixels)
    fid = Extractor("inception", "FID", "0" * 64, 192, pixels._forward, shape=(3, 8, 8))
    found = evaluate(pieces(fresh(60, 9)), Reference.open(nvidia, fid))
    assert list(found.metrics) == ["frechet"] and found.named("frechet") == "FID" and found.floor is None
    assert any("no floor" in note for note in found.notes) and any("KID" in note for note in found.notes)
    assert any("not comparable with published" in note for note in found.notes)
    narrow = Extractor("inception", "FID", "0" * 64, 5, pixels._forward)
    with pytest.raises(InputError, match="192 features, and FID has 5"):
        Reference.open(nvidia, narrow)


def test_wrong_ways_round_and_wrong_shapes(real, heldout, pixels, reference, tmp_path):
    made = generated(tmp_path / "made", fresh(60, 10), nfe=7, seeds="0-59", labels=None)
    told = evaluate(made, reference)
    assert (told.nfe, told.seeds, told.labels, told.source["sha256"]) == (7, "0-59", "none", made.sha256)
    for argument, call in (
        ("reference", lambda: evaluate(real, made, features=pixels)),
        ("heldout", lambda: evaluate(made, real, heldout=made, features=pixels)),
        ("heldout", lambda: evaluate(made, real, heldout=real, features=pixels)),
        ("heldout", lambda: evaluate(made, reference, heldout=heldout)),
        ("reference", lambda: evaluate(real, pieces(fresh(60, 1)), features=pixels)),
        ("n", lambda: evaluate(made, reference, n=61)),
        ("n", lambda: evaluate(pieces(fresh(60, 1)), reference, n=61)),
        ("n", lambda: evaluate(pieces(fresh(10, 1)), reference)),
        ("n", lambda: evaluate(made, reference, n=0)),
        ("source", lambda: evaluate([np.zeros((20, 3, 9, 9), np.uint8)], reference)),
        ("source", lambda: evaluate([(np.arange(20),)], reference)),
        ("image batch", lambda: evaluate([np.zeros((20, 3, 8, 8), np.float32)], reference)),
        ("features", lambda: evaluate(made, reference, features=Extractor("x", "FD-x", "1", 2, lambda x: x))),
        ("reference", lambda: evaluate(made, "nowhere", features=pixels)),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert caught.value.argument == argument, caught.value
    assert "the reference's own" in " ".join(evaluate(real, reference).notes)
    fewer = [evaluate(real, reference, n=50) for _ in range(2)]
    assert fewer[0].metrics == fewer[1].metrics and fewer[0].n == 50


def test_numbers_that_do_not_compare_are_not_put_together(reference, real, pixels):
    one, two = (evaluate(pieces(fresh(count, 11)), reference, floor=False) for count in (60, 80))
    rows = table([one, replace(one, seeds="60-119")])
    assert [row["n"] for row in rows] == [60, 60] and "differs" not in rows[0]
    assert rows[0]["frechet_low"] < rows[0]["frechet"] < rows[0]["frechet_high"] and "heldout_kid_se" in rows[0]
    with pytest.raises(InputError, match="n: 60, 80'; such numbers do not compare"):
        table([one, two])
    assert [row["differs"] for row in table([one, two], mixed=True)] == ["n", "n"]
    other = replace(one, features={**one.features, "metric": "FID"}, labels="balanced")
    with pytest.raises(InputError, match=r"features: .*FD-pixels.*; labels: balanced, unknown"):
        table([one, other])
    with pytest.raises(InputError, match="at least one"):
        table([])


# --------------------------------------------------------------------- streams


@pytest.fixture(scope="module")
def model(home):
    checkpoints.save(home / "base", tiny.network(seed=9), checkpoints.Record())
    return str(home / "base")


def test_a_stream_in_parts_is_the_stream(model, reference, pixels):
    """What two processes see of one range of seeds merges into what one sees, in whatever order."""
    network = load_model(model)
    options = {"batch": 8, "sampler": Sampler("heun", 2)}
    alone = collect(stream(network, range(40), **options), pixels)
    halves = [collect(stream(network, part, **options), pixels) for part in (range(16, 40), range(16))]
    merged = Sample(pixels.width)
    for half in halves:
        merged.merge(half)
    np.testing.assert_array_equal(merged.kept().features, alone.kept().features)
    one, other = compare(alone, reference.side), compare(merged, reference.side)
    for name in METRICS:
        assert one[name].value == pytest.approx(other[name].value, rel=1e-9, abs=1e-12)


def verb(*words):
    return main_with_errors(command, ["evaluate", *map(str, words)])


def test_the_command_measures_a_model_in_one_process_or_two(model, real, heldout, home, capfd):
    words = ["--base", model, "--reference", real.path, "--heldout", heldout.path, "--features", "pixels"]
    words += ["--sampler", "heun:2", "--batch", "8", "--device", "cpu"]
    assert verb(*words, "--seeds", "40-79", "--out", home / "next.json") == 0
    words += ["--seeds", "0-39", "--repeats", "2"]
    assert verb(*words, "--out", home / "one.json", "--save-reference", home / "saved.npz") == 0
    out = capfd.readouterr().out
    assert "FD-pixels" in out and "seeds 0-39" in out
    one = json.loads((home / "one.json").read_text())
    assert (one["n"], one["nfe"], one["labels"], one["seeds"]) == (40, 3, "data", "0-39")
    assert one["source"]["sampler"] == "heun:2" and (home / "saved.npz").exists()
    assert len(list(cache_folder(real).glob("pixels-*.npy"))) == 2  # the reference's and the held-out images'
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "-m", "sims_image", "evaluate"]
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, words), "--out", str(home / "two.json")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    two = json.loads((home / "two.json").read_text())
    assert one.keys() == two.keys() and two["n"] == 40
    following = json.loads((home / "next.json").read_text())
    assert following["repeats"] == {} and list(one["repeats"]) == list(METRICS)
    for name in METRICS:
        values = [found["metrics"][name]["value"] for found in (one, following)]
        for found in (one, two):
            assert found["repeats"][name] == pytest.approx(values, rel=1e-9, abs=1e-12)
        told = f"{np.mean(values):.4g} ± {np.std(values, ddof=1):.2g}, least {min(values):.4g}"
        assert told in out.split("over 2 evaluations on disjoint seeds")[1]
        assert one["metrics"][name]["value"] == pytest.approx(two["metrics"][name]["value"], rel=1e-9, abs=1e-12)


def test_the_command_measures_pictures(real, tmp_path, capsys):
    for k, image in enumerate(fresh(40, 12)):
        Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / f"{k:03d}.png")
    words = ["--images", tmp_path, "--reference", real.path, "--features", "pixels"]
    assert verb(*words) == 0 and "n = 40" in capsys.readouterr().out
    assert verb(*words, "--n", "30") == 0 and "n = 30" in capsys.readouterr().out


def test_the_command_measures_images_in_any_container(real, tmp_path, capsys):
    """Class folders beside a contact sheet of their size, a zip of pictures, an unzipped EDM set, ADM's .npz: alike."""
    images, base = fresh(40, 12), ["--reference", real.path, "--features", "pixels"]
    pngs = {f"{k:03d}.png": png(image) for k, image in enumerate(images)}
    folders = {f"{'ab'[k % 2]}/{name}": data for k, (name, data) in enumerate(pngs.items())}
    listing = json.dumps({"labels": [[name, 0] for name in pngs]}).encode()
    for where, files in (("folders", {**folders, "README.md": b"x"}), ("edm", {**pngs, "dataset.json": listing})):
        for name, data in files.items():
            (tmp_path / where / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / where / name).write_bytes(data)
    for name, files in (("edm.zip", {**pngs, "dataset.json": listing}), ("pets.zip", {**folders, "README": b"x"})):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            for member, data in files.items():
                archive.writestr(member, data)
    np.savez(tmp_path / "adm.npz", images.transpose(0, 2, 3, 1), np.arange(40) % 2)
    found = {}
    for name in ("folders", "edm", "edm.zip", "pets.zip", "adm.npz"):
        assert verb("--images", tmp_path / name, *base, "--out", tmp_path / "r.json") == 0
        found[name] = json.loads((tmp_path / "r.json").read_text())["metrics"]["frechet"]["value"]
        assert "n = 40" in capsys.readouterr().out
    assert np.ptp(list(found.values())) < 1e-9 * found["edm"]
    assert verb("--images", tmp_path / "edm", "--reference", tmp_path / "adm.npz", "--features", "pixels") == 2
    assert "it holds images, no statistics; name what `prepare` makes of it" in capsys.readouterr().err


def test_mixing_jpeg_and_png_is_warned_about(tmp_path, capsys):
    """In a source, between the real sets, and where generated images were stored as JPEG; not the other way round."""
    for name, ends in {"png": ["png"], "jpeg": ["jpg"], "both": ["png", "jpg"], "held": ["png"]}.items():
        for k, image in enumerate(fresh(40, len(name))):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(tmp_path / name / f"{k:03d}.{ends[k % len(ends)]}")
        command(["prepare", str(tmp_path / name), "--out", str(tmp_path / f"data-{name}")])
        assert ("JPEG and PNG are mixed" in capsys.readouterr().err) == (name == "both"), name
    command(["prepare", str(tmp_path / "data-both"), "--limit", "30", "--out", str(tmp_path / "few")])
    kinds = {"data-png": "PNG", "data-jpeg": "JPEG", "data-both": "JPEG+PNG", "few": "JPEG+PNG"}
    assert {name: json.loads((tmp_path / name / "dataset.json").read_text())["pictures"] for name in kinds} == kinds
    for images, reference, held, warned in (
        ("png", "data-png", "data-held", False),
        ("png", "data-jpeg", "", False),
        ("png", "data-jpeg", "data-held", True),
        ("png", "few", "", True),
        ("jpeg", "data-png", "", True),
        ("data-jpeg", "data-png", "", True),
        ("jpeg", "data-jpeg", "", False),
    ):
        words = ["--images", tmp_path / images, "--reference", tmp_path / reference, "--features", "pixels"]
        words += ["--heldout", tmp_path / held] if held else []
        assert verb(*words) == 0
        said = "".join(capsys.readouterr())
        assert ("are mixed: compression alone moves a distance" in said) == warned, (images, reference, held)


def test_the_command_advises_what_there_is(real, tmp_path, capsys):
    """A contact sheet among the pictures: named, with options that exist (`prepare` has --size, `evaluate` has not)."""
    for k, image in enumerate(fresh(40, 12)):
        into = tmp_path / "in" / "ab"[k % 2]
        into.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(into / f"{k:03d}.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "in" / "grid.png")
    assert verb("--images", tmp_path / "in", "--reference", real.path, "--features", "pixels") == 2
    said = capsys.readouterr().err
    assert "--images: got 'grid.png'; 64x64 among 8x8 pictures; remove it, or `prepare` with --size N" in said
    assert "--unlabelled" not in said
    (tmp_path / "in" / "grid.png").unlink()
    assert verb("--images", tmp_path / "in", "--reference", real.path, "--features", "pixels") == 0


def test_the_command_refuses_in_one_line(real, model, tmp_path, capsys):
    base = ["--features", "pixels", "--reference", real.path]
    saved = tmp_path / "saved.npz"
    np.savez(saved, mu=np.zeros(3), sigma=np.eye(3))
    for words, error in (
        ([], "--base: got ''; name a model with --base, or images with --images"),
        (["--images", "a", "--base", "b"], "--base: got 'b'; name a model"),
        (["--images", "nowhere", *base], "--images: got 'nowhere'; no such data set"),
        (["--images", real.path], "--reference: got ''; name the real images"),
        (["--images", real.path, "--reference", "no.npz"], "--reference: got 'no.npz'"),
        (
            ["--images", real.path, "--reference", "no.npz", "--features", "pixels"],
            "--reference: got 'no.npz'; no such",
        ),
        (["--images", real.path, "--reference", saved, "--features", "classifier"], "--features: got 'classifier'"),
        (["--images", real.path, *base, "--heldout", "no"], "--heldout: got 'no'"),
        (["--images", real.path, *base, "--n", "5000"], "--n: got '5000'"),
        (["--base", model, *base, "--n", "5"], "--n: got '5'"),
        (["--images", model, *base], "--images: got"),
        (["--images", real.path, *base[:1], "lite", *base[2:]], "--features: got 'lite'; did you mean 'lite0'"),
        (["--images", real.path, *base, "--weights", "no.pth"], "--weights: got 'no.pth'"),
    ):
        assert verb(*words) == 2
        said = capsys.readouterr().err.strip()
        said = said.rsplit("\r", 1)[-1]  # a progress bar may stand before it
        assert said.startswith(f"error: {error}") and "\n" not in said, said


def test_nothing_is_computed_before_the_cheap_checks(real, heldout, model, tmp_path, capsys, monkeypatch):
    """What the images are is looked at before the reference's features are; a dry run refuses the same."""

    def dear(*_, **__):
        raise AssertionError("the reference was featurised")

    monkeypatch.setattr(targets, "DataFeatures", dear)
    (tmp_path / "empty").mkdir()
    generated(tmp_path / "made", fresh(30, 3), nfe=1)
    few = generated(tmp_path / "few", fresh(10, 3), nfe=1).path
    large = tiny.write_data(tmp_path / "large.zip", count=24, size=16).path
    base = ["--features", "pixels", "--reference", real.path]
    for words, error in (
        (["--images", few, *base], "--images: .*that is 10 images; at least 20 are needed"),
        (["--images", real.path, *base, "--n", "10"], "--n: got '10'; .*at least 20"),
        (["--images", tmp_path / "empty", *base], "--images: got"),
        (["--images", large, *base], "--images: .*3x16x16, the reference's 3x8x8"),
        (["--base", model, *base, "--seeds", "0-9"], "--seeds: got '0-9'; .*at least 20"),
        (
            ["--images", real.path, *base, "--heldout", real.path],
            f"--heldout: got '{real.path}'; .*nothing is held out",
        ),
        (["--images", real.path, *base, "--heldout", tmp_path / "made"], "--heldout: .*generated images"),
        (
            ["--images", real.path, *base[2:], "--features", "inception"],
            "--features: got 'inception'; .*torch-fidelity",
        ),
        (["--images", real.path, *base, "--save-reference", "x.txt"], "--save-reference: got 'x.txt'"),
    ):
        for dry in ([], ["--dry-run"]):
            with monkeypatch.context() as patch:
                patch.setitem(sys.modules, "torch_fidelity", None)  # as if it were not installed
                assert verb(*words, *dry) == 2, words
            assert re.search(f"^error: {error}", capsys.readouterr().err.strip()), words
