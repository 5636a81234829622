"""Run folders keep their names: what was run before is found again. New settings carry their new name here."""

from dataclasses import replace

import pytest

from sims_toy import control, mad, pollution, sampling_cost, stability, sweep
from sims_toy.networks.settings import NetworkSettings
from sims_toy.sweep.options import NETWORK

TORCH = NetworkSettings(backend="torch")
FOLDERS = [
    (sweep, sweep.Sweep(learner="exact", omega="0:3:1", trials=8, generations=4), "runs/sweep-e5b2bfa6"),
    (sweep, sweep.Sweep(network=TORCH, generations=20), "runs/sweep-f9611221"),
    (sweep, sweep.Sweep(network=replace(NETWORK, backend="torch")), "runs/sweep-683a43b2"),
    (sweep, sweep.Sweep(learner="exact", estimator="smooth:0.3", omega="0:3:1", trials=8, generations=4),
     "runs/sweep-cabd143f"),
    (mad, mad.Mad(dimension=3, trials=4, grid_trials=4, calibration_trials=8, generations=8, loop_generations=8),
     "runs/mad-b6690202"),
    (stability, stability.Stability(network=NetworkSettings(backend="torch", start="warm")), "runs/stability-f5c9fe6a"),
    (pollution, pollution.Pollution(), "runs/pollution-16b9a465"),
    (control, control.Control(network=TORCH), "runs/control-b88ff11c"),
    (sampling_cost, sampling_cost.SamplingCost(), "runs/sampling_cost-53c2e99a"),
]  # fmt: skip


@pytest.mark.parametrize(("study", "options", "folder"), FOLDERS, ids=[folder for *_, folder in FOLDERS])
def test_settings_keep_their_folder(study, options, folder):
    assert study.plan(options).folder == folder
