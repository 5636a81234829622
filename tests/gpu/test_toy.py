"""Toy ensembles on a device beside the CPU, draw for draw and in distribution, and the sweep with networks there."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import ks_2samp, sem

from sims_core.guidance import guided
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy.gaussian import Gaussian
from sims_toy.networks.ensemble import Ensemble
from sims_toy.networks.learner import NetworkLearner
from sims_toy.networks.mlp import Mlp
from sims_toy.networks.schedule import Training
from sims_toy.networks.settings import NetworkSettings
from sims_toy.networks.targets import CosineSteps, EpsilonParametrisation
from sims_toy.networks.training import train
from tests.gpu.models import waits
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


WAYS = {
    "posterior": (Training(steps=10, batch=8, eps=1e-2, ema_halflife=40.0, ema_rampup=0.05), None),
    "subset": (Training(steps=10, batch=8, eps=1e-2, reference=4), None),
    "plain": (Training(steps=10, batch=32, eps=1e-2, target="plain", stratified=False), None),
    "quasi": (Training(steps=10, batch=8, eps=1e-2, quasi=True), None),
    "epsilon": (Training(steps=10, batch=8, eps=1e-2, noise=CosineSteps()), EpsilonParametrisation()),
}
SEEDS = [Seed(k) for k in range(3)]
DATA = torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(0))


def trained(device: torch.device, way: str, *, graph: bool = False, steps: int = 10) -> list[torch.Tensor]:
    settings, parametrisation = WAYS[way]
    ensemble = Ensemble.initial(Mlp(widths=(8, 8)), SEEDS, device=device, parametrisation=parametrisation)
    settings, data = replace(settings, steps=steps), DATA.to(device)
    found = train(ensemble, data, SEEDS, settings, backend="torch", cuda_graph=graph)
    return [found.ensemble.params, found.loss, *([] if found.ema is None else [found.ema.params])]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("graph", [False, pytest.param(True, marks=pytest.mark.gpu(cpu=False))])
def test_training_is_the_cpu_s_draw_for_draw(device, way, graph):
    for there, here in zip(trained(device, way, graph=graph), trained(torch.device("cpu"), way), strict=True):
        torch.testing.assert_close(there.cpu(), here, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu(cpu=False)
@pytest.mark.parametrize("graph", [False, True])
def test_no_step_waits(device, graph):
    trained(device, "posterior", graph=graph)
    few, many = (waits(lambda n=n: trained(device, "posterior", graph=graph, steps=n)) for n in (8, 80))
    assert many == few


@pytest.mark.gpu(cpu=False)
def test_sampling_waits_for_nothing(device):
    base, auxiliary = (Ensemble.initial(Mlp(widths=(8,)), SEEDS, device=device, init="torch") for _ in range(2))
    x = torch.ones(3, 5, 2, dtype=torch.float64, device=device)
    denoiser = guided(base.denoiser(), auxiliary.denoiser(), torch.tensor([0.0, 1.0, 2.0]))
    few, many = (waits(lambda n=n: Sampler("heun", n)(denoiser, x)) for n in (3, 15))
    assert many == few


def test_the_learner_s_networks_are_on_its_device(device):
    """Fitted, fine-tuned, guided, merged, sampled and measured as on the CPU; data stay there."""
    found = []
    for where in ("cpu", str(device)):
        settings = NetworkSettings(width=8, steps=12, batch=8, backend="torch", device=where)
        learner = NetworkLearner(Sampler.parse("heun:3"), [0, 1, 1], settings)
        data = learner.draw(REAL, 30, seed=Seed(0))
        base = learner.fit(data, seed=Seed(1))
        assert str(base.base.params.device) == where and learner.untrained(data, seed=Seed(1))
        synthetic = learner.sample(base, 30, seed=Seed(2))
        auxiliary = learner.finetune(base, synthetic, [40.0, 80.0, 80.0], seed=Seed(3))
        moved = learner.perturb(base, auxiliary, seed=Seed(4))
        models = [learner.extrapolate(base, other, [0.0, 1.0, 2.0]) for other in (auxiliary, moved)]
        models.append(learner.merge(base, auxiliary, [0.0, 1.0, 2.0]))
        found.append([synthetic, *(torch.from_numpy(learner.distance(model, REAL)) for model in models)])
        found[-1] += [learner.sample(model, 5, seed=Seed(5)) for model in models]
    for there, here in zip(*found, strict=True):
        assert there.device.type == "cpu"
        torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)


def test_the_sweep_with_networks_there(device, tmp_path):
    words = ["-m", "sims_toy.sweep", "--omega", "0,1", "--synthetic", "100", "--real-size", "100", "--trials", "2"]
    words += ["--generations", "2", "--overlay-trials", "2", "--workers", "1", "--out", str(tmp_path / "run")]
    words += ["--retuned", "", "--network.steps", "60", "--network.backend", "torch", "--network.device", str(device)]
    done = subprocess.run([sys.executable, *words], env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    found = pd.read_csv(tmp_path / "run/sweep.csv")
    networks = found[found["learner"] == "network"]
    assert len(networks) and np.isfinite(networks.select_dtypes("number")).all(axis=None)
