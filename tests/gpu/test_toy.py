"""Toy ensembles on a device beside the CPU, and the sweep with networks there."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp, sem

from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy.gaussian import Gaussian
from sims_toy.networks.learner import NetworkLearner
from sims_toy.networks.settings import NetworkSettings
from sims_toy.networks.training import train
from tests.image.ranks import environment

pytestmark = pytest.mark.gpu
NETWORKS = 96
REAL = Gaussian.single([1.0, -0.5], [[2.0, 1.0], [1.0, 2.0]])


def distances(device: str, stream: int, *, graph: bool = False) -> np.ndarray:
    """W2 of trained networks to the truth, each on data of its own."""
    settings = NetworkSettings(width=16, steps=100, backend="torch", device=device)
    learner = NetworkLearner(Sampler.parse("ddim:10", sigma_data=2**0.5), range(NETWORKS), settings)
    data, seed = learner.draw(REAL, 200, seed=Seed(stream)), Seed(stream).child("fit")
    if not graph:
        return learner.distance(learner.fit(data, seed=seed), REAL)
    model = learner.untrained(data, seed=seed)
    seeds = [seed.child(k) for k in range(NETWORKS)]
    trained = train(model.base, data, seeds, settings.training(200), backend="torch", cuda_graph=True)
    assert trained.ema is not None
    return learner.distance(learner._model(trained.ema), REAL)


@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.gpu(cpu=False))])
def test_ensembles_are_the_cpu_s_in_distribution(device, graph):
    """Of other seeds too: what is the same draw for draw might hide a distribution that is not."""
    here = distances("cpu", 0)
    for stream in (0, 1):
        there = distances(str(device), stream, graph=graph)
        assert abs(there.mean() - here.mean()) < 4 * np.hypot(sem(there), sem(here))
        assert ks_2samp(there, here).pvalue > 1e-3
    untrained = NetworkSettings(width=16, steps=1, backend="torch", device=str(device))
    learner = NetworkLearner(Sampler.parse("ddim:10", sigma_data=2**0.5), range(4), untrained)
    data = learner.draw(REAL, 200, seed=Seed(0))
    assert learner.distance(learner.untrained(data, seed=Seed(0)), REAL).min() > 2 * here.mean()


def test_the_sweep_with_networks_there(device, tmp_path):
    words = ["-m", "sims_toy.sweep", "--omega", "0,1", "--synthetic", "100", "--real-size", "100", "--trials", "2"]
    words += ["--generations", "2", "--overlay-trials", "2", "--workers", "1", "--out", str(tmp_path / "run")]
    words += ["--retuned", "", "--network.steps", "60", "--network.backend", "torch", "--network.device", str(device)]
    done = subprocess.run([sys.executable, *words], env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    found = pd.read_csv(tmp_path / "run/sweep.csv")
    networks = found[found["learner"] == "network"]
    assert len(networks) and np.isfinite(networks.select_dtypes("number")).all(axis=None)
