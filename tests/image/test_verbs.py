"""The verbs as functions: what each makes, that it is the command's, and errors about arguments."""

import numpy as np
import pytest

import sims_image as si
from sims_core import InputError
from sims_core.lab.command import parse_command
from sims_image.commands import VERBS, run
from sims_image.models import presets
from tests.image import tiny

NETWORK = {"sampler": "heun:2", "device": "cpu"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A data set, and a base and an auxiliary trained on it."""
    folder = tmp_path_factory.mktemp("verbs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(presets.PRESETS, "tiny", tiny.preset())
        data = str(tiny.write_data(folder / "tiny.zip").path)
        base = si.train(preset="tiny", data=data, out=str(folder / "base"), sheet=0, device="cpu")
        auxiliary = si.train(
            from_=str(base.path), data=data, budget="0.016k", out=str(folder / "auxiliary"), sheet=0, device="cpu"
        )
        yield folder, data, base, auxiliary


def test_prepare_reads_what_the_command_reads(tmp_path):
    found = si.prepare("digits", out=str(tmp_path / "digits"), limit=40, balanced=True)
    assert isinstance(found, si.Dataset) and np.bincount(found.labels).tolist() == [4] * 10
    assert "40" in si.prepare.plan("digits", out=str(tmp_path / "other"), limit=40)
    assert not (tmp_path / "other").exists()


def test_train_makes_a_checkpoint(made):
    folder, _, base, auxiliary = made
    assert isinstance(base, si.Checkpoint) and base.path.is_relative_to(folder / "base")
    assert auxiliary.sha256 != base.sha256 and auxiliary.config == base.config


def test_generate_is_the_command(made, capsys):
    folder, _, base, auxiliary = made
    guided = {"base": str(base.path), "auxiliary": str(auxiliary.path), "omega": 1.5, "seeds": "0-19"}
    mine = si.generate(**guided, out=str(folder / "mine"), **NETWORK)
    words = [f"--{name}={value}" for name, value in {**guided, **NETWORK, "out": folder / "theirs"}.items()]
    run(["generate", *words])
    theirs = si.open_dataset(folder / "theirs")
    assert len(mine) == 20 and mine.sha256 == theirs.sha256 and str(theirs.sha256) in capsys.readouterr().out
    report = si.evaluate(
        images=str(mine.path), reference=made[1], features="pixels", keep=100, floor=False, device="cpu"
    )
    assert report.metrics["frechet"].value > 0


def test_an_experiment_leaves_its_report(made):
    folder, data, base, _ = made
    settings = {"data": data, "base": str(base.path), "trials": 1, "n": "24", "synthetic": "24", "features": "pixels"}
    settings |= {"method": "standard", "generations": 2, "fit_budget": "0.016k", **NETWORK}
    planned = si.loop.plan(**settings, out=str(folder / "loop"))
    assert "2 generations" in planned and not (folder / "loop").exists()
    found = si.loop(**settings, out=str(folder / "loop"))
    assert found.table("generations")["generation"].tolist() == [1, 2] and found.words
    assert found.results["settings"]["generations"] == 2
    with pytest.raises(InputError, match=r"name: got 'generation'; did you mean 'generations'"):
        found.table("generation")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("prepare", {"source": "digits", "limit": 40, "balanced": True}),
        ("generate", {"base": "{base}", "auxiliary": "{auxiliary}", "omega": 1.5, "seeds": "0-3", "sampler": "heun:2"}),
        ("evaluate", {"images": "{data}", "reference": "{data}", "features": "pixels", "floor": False}),
        ("outlook", {"data": "{data}", "base": "{data}", "auxiliary": "{data}", "features": "pixels"}),
        ("classify", {"data": "{data}", "device": "cpu"}),
    ],
)
def test_what_a_verb_made_gives_its_options_back(name, given, made, tmp_path):
    paths = {"data": made[1], "base": made[2].path, "auxiliary": made[3].path}
    given = {key: value.format(**paths) if isinstance(value, str) else value for key, value in given.items()}
    cls, out = VERBS[name].cls(), str(tmp_path / "made")
    VERBS[name].run(cls(**given, out=out))
    assert parse_command(cls, ["--config", out], prog="x", description="") == cls(**given)


def test_published_settings_are_defaults():
    told = si.loop.plan(preset="cifar10", device="cpu", generations=7)
    assert "7 generations" in told and "50,000 images (data/cifar10" in told
    with pytest.raises(InputError, match=r"preset: got 'cifar11'; did you mean 'cifar10'"):
        si.loop.plan(preset="cifar11")


@pytest.mark.parametrize(
    ("call", "about"),
    [
        (lambda: si.generate(out="made"), "base"),
        (lambda: si.train(preset="tyni", data="nowhere"), "preset"),
        (lambda: si.train(preset="digits", lr_rampup="soon"), "lr_rampup"),
        (lambda: si.loop(base="digits"), "data"),
        (lambda: si.train(preset="digits", dry_run=True), "dry_run"),
    ],
)
def test_errors_name_the_argument(call, about, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as error:
        call()
    assert error.value.argument == about


def test_several_processes_take_the_command(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="torchrun"):
        si.generate(base="somewhere", out="made")
