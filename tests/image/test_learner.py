"""The learner contract over files, and the loops and algorithms of the core on images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from sims_core.algorithm import AUXILIARY_DATA, METHODS, neon, sims, standard
from sims_core.errors import InputError
from sims_core.learner import Learner, Mergeable, Perturbable, Rebuildable, Scalable
from sims_core.loop import POLICIES, parse_policy, self_consuming_loop
from sims_core.seeds import Seed
from sims_image.learner import ImageData, ImageLearner, ImageModel, budgets_of, named
from sims_image.models import checkpoints
from sims_image.models.presets import PRESETS
from sims_image.training.options import Train
from tests import contract
from tests.image import tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return ImageData(tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip").path)


@pytest.fixture
def learner(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", tiny.preset(tiny.EDM, tiny.recipe(budget="0.04k")))
    training = Train(preset="tiny", sheet=0, device="cpu", workers=0, log_every="20", snapshots="40")
    given = {"weights": "raw", "fit_weights": "raw", "rebuilding": {"network": "model_channels=4"}}
    return ImageLearner(tmp_path / "work", training, batch=8, sampler="heun:2", **given)


def same(a, b):
    if isinstance(a, ImageData):
        return a.sha256 == b.sha256
    return a.identity == b.identity


def test_contract(learner, data):
    for contracted in (Learner, Mergeable, Rebuildable, Perturbable, Scalable):
        assert isinstance(learner, contracted)
    contract.check(contract.Case(learner, data, 16, 10, same, len))


@pytest.mark.parametrize(
    ("more", "folder"),
    [
        ({}, "fit-9fe44bf12e64"),
        ({"track": "tensorboard"}, "fit-9fe44bf12e64"),
        ({"lr": 1e-4, "precision": "bf16"}, "fit-8523d6f7c4ea"),
        ({"clip": 1.0}, "fit-84cd7333c38d"),
    ],
)
def test_trainings_keep_their_folder(learner, data, monkeypatch, more, folder):
    """Trainings of earlier versions are found again: a new option is no part of the name where it is not used."""

    def stop(options, *_, **__):
        raise InterruptedError(Path(options.out).name)

    monkeypatch.setattr("sims_image.learner.run_session", stop)
    with pytest.raises(InterruptedError, match=f"^{folder}$"):
        replace(learner, training=replace(learner.training, **more)).fit(data, seed=Seed(1))


def test_results_are_the_same_elsewhere(learner, data, tmp_path):
    """Not only found again: made anew in another folder, everything is bit for bit what it was."""
    other = replace(learner, root=tmp_path / "elsewhere")
    made = []
    for one in (learner, other):
        model = one.fit(data, seed=Seed(1))
        drawn = one.sample(model, 9, seed=Seed(2))
        made.append((model.identity, drawn.sha256, one.finetune(model, drawn, 16, seed=Seed(3)).identity))
    assert made[0] == made[1]


def test_an_auxiliary_that_is_its_base_is_refused(learner, data):
    """One step at the bottom of a ramp: not another model, and nothing to search, confirm or report."""
    model = learner.fit(data, seed=Seed(1))
    ramped = replace(learner, finetuning={"lr_rampup": "1k"})
    with pytest.raises(InputError, match=r"^budget: got '8'; .*still the base, bit for bit"):
        ramped.finetune(model, data, 8, seed=Seed(2))
    moved = ramped.finetune(model, data, 16, seed=Seed(2))
    assert checkpoints.summary(moved.base).sha256 != checkpoints.summary(model.base).sha256


def test_samples_carry_labels_in_the_data_s_shares(learner, data):
    model = learner.fit(data, seed=Seed(1))
    drawn = learner.sample(model, 30, seed=Seed(2)).open()
    assert model.classes == (1 / 3, 1 / 3, 1 / 3) and drawn.labels is not None
    assert drawn.record["source"]["labels"] == "data" and set(drawn.labels.tolist()) <= {0, 1, 2}


def test_union_is_both_in_order(learner, data, tmp_path):
    other = ImageData(tiny.write_data(tmp_path / "other.zip", count=10, seed=1).path)
    both = learner.union(data, other).open()
    parts = [data.open(), other.open()]
    assert np.array_equal(both.images(slice(None)), np.concatenate([p.images(slice(None)) for p in parts]))
    assert np.array_equal(both.labels, np.concatenate([p.labels for p in parts]))
    unlabelled = ImageData(tiny.write_data(tmp_path / "none.zip", classes=0).path)
    with pytest.raises(InputError, match="classes"):
        learner.union(data, unlabelled)


def test_merging_is_the_line_on_the_weights(learner, data):
    base = learner.fit(data, seed=Seed(1))
    auxiliary = learner.finetune(base, data, 16, seed=Seed(2))
    merged = learner.merge(base, auxiliary, 1.5)
    first, second, third = (checkpoints.load(m.base).network.state_dict() for m in (base, auxiliary, merged))
    for name, value in third.items():
        assert torch.allclose(value, 2.5 * first[name] - 1.5 * second[name], rtol=1e-5, atol=1e-6), name


def test_snapshots_of_one_run_serve_all_budgets(learner, data):
    base = learner.fit(data, seed=Seed(1))
    several = replace(learner, budgets=(16, 32))
    small, large = (several.finetune(base, data, budget, seed=Seed(2)) for budget in (16, 32))
    assert small.base.parents[2] == large.base.parents[2] and small.base != large.base
    assert checkpoints.summary(small.base).record.images == 16
    assert checkpoints.summary(large.base).record.parent == checkpoints.summary(base.base).sha256


def test_algorithms_and_loops_run_unchanged(learner, data):
    made = sims(learner, data, n_synthetic=8, budget=16, omega=1.0, seed=Seed(1),
                auxiliary_data=AUXILIARY_DATA["train+synthetic"])  # fmt: skip
    assert made.auxiliary is not None and made.synthetic is not None and len(made.synthetic) == 8
    assert made.model.kind == "sims" and made.model.auxiliary == made.auxiliary.base
    assert same(standard(learner, data, seed=Seed(1)).model, made.base)
    merged = neon(learner, data, n_synthetic=8, budget=16, omega=1.0, seed=Seed(1))
    assert merged.model.kind == "none" and same(merged.base, made.base)
    method = partial(sims, n_synthetic=8, budget=16, omega=1.0)
    options = {"method": method, "policy": POLICIES["augmentation"], "n_synthetic": 8, "seed": Seed(4)}
    turns = list(self_consuming_loop(learner, data, generations=2, **options))
    assert [len(t.train) for t in turns] == [24, 32]
    again = list(self_consuming_loop(learner, data, generations=2, after=turns[0], **options))
    assert same(again[0].model, turns[1].model)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_of_the_core_makes_a_model(learner, data, name):
    method = METHODS[name].bind(
        n_synthetic=8,
        budget=160 if name == "autoguidance" else 16,
        omega=1.0,
        auxiliary_data=AUXILIARY_DATA["synthetic"],
    )
    made = method(learner, data, seed=Seed(1))
    drawn = learner.sample(made.model, 8, seed=Seed(2)).open()
    source = drawn.record["source"]
    assert source["nfe"] == 3 * METHODS[name].networks and drawn.labels is not None
    expected = {"standard": "none", "continued": "none", "neon": "none", "autoguidance": "autoguidance",
                "rebuilt": "autoguidance", "equal-cost": "none", "retuned": "none"}  # fmt: skip
    assert source["guidance"] == expected.get(name, "sims")


def test_a_random_direction_is_as_long_tensor_by_tensor(learner, data):
    base = learner.fit(data, seed=Seed(1))
    auxiliary = learner.finetune(base, data, 16, seed=Seed(2))
    moved = learner.perturb(base, auxiliary, seed=Seed(3))
    first, second, third = (checkpoints.load(m.base).network.state_dict() for m in (base, auxiliary, moved))
    for name, value in third.items():
        assert torch.allclose((value - first[name]).norm(), (second[name] - first[name]).norm(), rtol=1e-3, atol=1e-6)
        assert torch.equal(value, first[name]) == torch.equal(second[name], first[name])


def test_every_policy_of_the_core_makes_its_data(learner, data, tmp_path):
    """Sizes of the training sets, and where their images come from."""
    other = ImageData(tiny.write_data(tmp_path / "other.zip", count=10, seed=1).path)
    sizes = {"augmentation": [24, 32], "fully-synthetic": [24, 8], "fresh": [24, 18], "accumulate": [24, 32],
             "polluted": [34, 32], "mixed:0.5": [24, 32], "scaled:0.5:augmentation": [24, 32]}  # fmt: skip
    for text, wanted in sizes.items():
        turns = list(
            self_consuming_loop(
                learner,
                data,
                method=standard,
                policy=parse_policy(text),
                n_synthetic=8,
                generations=2,
                seed=Seed(4),
                fresh=lambda seed: other,
                pollution=other,
            )
        )
        assert [len(turn.train) for turn in turns] == wanted, text
        warm = checkpoints.summary(turns[1].model.base).record.parent
        assert warm == (turns[0].model.identity["base"] if text == "mixed:0.5" else None)
    halved = learner.scale(data, 0.5).open().images(slice(None)).astype(float)
    assert np.abs(halved - 127.5 - 0.5 * (data.open().images(slice(None)) - 127.5)).max() <= 1


def test_subsets_are_the_images_asked_for(learner, data):
    places = np.array([5, 2, 9])
    part, bare = learner.subset(data, places), learner.subset(data, places, labelled=False)
    assert np.array_equal(part.open().images(slice(None)), data.open().images(places))
    assert part.open().labels.tolist() == [2, 2, 0] and bare.open().labels is None and bare.path != part.path


def test_a_checkpoint_stands_for_the_fit(learner, data, tmp_path):
    tiny.checkpoint(tmp_path / "base", preset="tiny")
    given = replace(learner, base=tmp_path / "base")
    assert given.fit(data, seed=Seed(1)).base == tmp_path / "base"
    assert isinstance(given.fit(data, seed=Seed(1)), ImageModel)
    assert not list(Path(given.root).glob("fit-*"))


def test_budget_lists():
    assert budgets_of("--budget", "1,3,6Mi", 2**20) == (2**20, 3 * 2**20, 6 * 2**20)
    assert budgets_of("--budget", "2M,10k,10k", 10**6) == (10_000, 2_000_000)
    assert budgets_of("--budget", "20", 10**6) == (20,)
    for bad in ("", "0", "1,x"):
        with pytest.raises(InputError, match="--budget"):
            budgets_of("--budget", bad, 10**6)


def test_a_training_s_folder_has_the_name_that_it_always_had():
    """A new option of training must not hide what earlier versions trained: see `learner.LATER`."""
    known = json.dumps(named(Train(preset="digits", data="x", out="y", seed=3)), sort_keys=True)
    assert hashlib.sha256(known.encode()).hexdigest()[:16] == "1f5652dfbf745d87"
    other = named(Train(preset="digits", data="x", out="y", seed=3, channels_last=False))
    assert json.loads(known) | {"channels_last": False} == other
