"""One function for every study."""

from importlib import import_module

import pytest

import sims_toy
from sims_core import InputError
from sims_toy.studies import STUDIES


def test_run_finds_the_study_of_its_options(tmp_path):
    options = sims_toy.Sweep(
        learner="exact", omega="0,2", synthetic="40", real_size="60", trials=4, generations=2, workers=1,
        sampler="ddim:5", out=str(tmp_path / "run"),
    )  # fmt: skip
    made = sims_toy.run(options)
    assert set(made.tables["regimes"]["omega"]) == {0.0, 2.0} and made.folder == tmp_path / "run"
    assert sims_toy.run(options).resumed_finished


def test_every_study_is_complete():
    for room, study in STUDIES.items():
        module, name = import_module(f"sims_toy.{room}"), study.options
        assert getattr(sims_toy, name) is getattr(module, name) and callable(module.plan)
    with pytest.raises(InputError, match=r"options: got 'NetworkSettings'; give the options of a study: Sweep, Stab"):
        sims_toy.run(sims_toy.NetworkSettings())
