"""The toy's CUDA path and its graph, on a GPU that is not there (`tests.pretended`)."""

import pytest
import torch

from sims_core.errors import InputError
from sims_core.guidance import guided
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy.gaussian import Gaussian
from sims_toy.grid.parse import settle
from sims_toy.networks.ensemble import Ensemble, chunks
from sims_toy.networks.learner import NetworkLearner
from sims_toy.networks.mlp import Mlp
from sims_toy.networks.schedule import Training
from sims_toy.networks.settings import NetworkSettings
from sims_toy.networks.targets import CosineSteps, EpsilonParametrisation
from sims_toy.networks.training import train
from tests.pretended import CUDA, fetched, gpu

SEEDS = [Seed(k) for k in range(3)]
DATA = torch.randn(3, 20, 2, generator=torch.Generator().manual_seed(0))
WAYS = {
    "posterior": (Training(steps=10, batch=8, ema_halflife=40.0, ema_rampup=0.05), None),
    "subset": (Training(steps=10, batch=8, reference=4), None),
    "plain": (Training(steps=10, batch=32, target="plain", stratified=False), None),
    "epsilon": (Training(steps=10, batch=8, noise=CosineSteps()), EpsilonParametrisation()),
}


def trained(device, way, **options):
    settings, parametrisation = WAYS[way]
    ensemble = Ensemble.initial(Mlp(widths=(8, 8)), SEEDS, device=device, parametrisation=parametrisation)
    found = train(ensemble, DATA.to(device), SEEDS, settings, backend="torch", **options)
    parts = [found.ensemble.params, found.loss, *([] if found.ema is None else [found.ema.params])]
    return [fetched(part) if device == CUDA else part for part in parts]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("graph", [False, True])
def test_training_there_is_training_here(way, graph):
    wanted = trained(torch.device("cpu"), way)
    with gpu() as machine:
        found = trained(CUDA, way, cuda_graph=graph)
        assert not machine.races
    for there, here in zip(found, wanted, strict=True):
        torch.testing.assert_close(there, here, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("graph", [False, True])
def test_no_step_waits_for_the_device(graph):
    """Ten times the steps wait no more often."""
    from dataclasses import replace

    counts = []
    for steps in (2, 20):
        with gpu() as machine:
            ensemble = Ensemble.initial(Mlp(widths=(8,)), SEEDS, device=CUDA)
            settings = replace(WAYS["posterior"][0], steps=steps)
            train(ensemble, DATA.to(CUDA), SEEDS, settings, backend="torch", cuda_graph=graph)
            counts.append(len(machine.syncs))
    assert counts[0] == counts[1]


def test_sampling_waits_for_nothing():
    with gpu() as machine:
        base, auxiliary = (Ensemble.initial(Mlp(widths=(8,)), SEEDS, device=CUDA, init="torch") for _ in range(2))
        x = torch.ones(3, 5, 2, dtype=torch.float64, device=CUDA)
        denoiser = guided(base.denoiser(), auxiliary.denoiser(), torch.tensor([0.0, 1.0, 2.0]))
        machine.syncs.clear()
        found = Sampler.parse("heun:3")(denoiser, x)
        assert found.is_cuda and not machine.syncs


def test_chunks_on_a_gpu_fit_it():
    """The distances of the posterior target are the largest tensor: steps x rows x points a network."""
    mlp, networks = Mlp(), torch.arange(16384)
    assert [len(part) for part in chunks(networks, mlp, 64, CUDA)] == [16384]
    scratch = 8 * 64 * 1000
    sizes = [len(part) for part in chunks(networks, mlp, 64, CUDA, scratch=scratch)]
    assert sum(sizes) == 16384 and 4 * scratch * max(sizes) <= 2**30


def test_the_learner_s_networks_are_on_its_device():
    """Fitted, fine-tuned, guided, merged, sampled and measured as on the CPU; data stay there."""
    found = []
    for device in ("cpu", "cuda"):
        with gpu():
            settings = NetworkSettings(width=8, steps=12, batch=8, backend="torch", device=device)
            learner = NetworkLearner(Sampler.parse("heun:3"), [0, 1, 1], settings)
            real = Gaussian.single([0.0, 0.0], [[2.0, 1.0], [1.0, 2.0]])
            data = learner.draw(real, 30, seed=Seed(0))
            base = learner.fit(data, seed=Seed(1))
            assert base.base.params.device.type == device and learner.untrained(data, seed=Seed(1))
            synthetic = learner.sample(base, 30, seed=Seed(2))
            auxiliary = learner.finetune(base, synthetic, [40.0, 80.0, 80.0], seed=Seed(3))
            moved = learner.perturb(base, auxiliary, seed=Seed(4))
            models = [learner.extrapolate(base, other, [0.0, 1.0, 2.0]) for other in (auxiliary, moved)]
            models.append(learner.merge(base, auxiliary, [0.0, 1.0, 2.0]))
            found.append([synthetic, *(torch.from_numpy(learner.distance(model, real)) for model in models)])
            found[-1] += [learner.sample(model, 5, seed=Seed(5)) for model in models]
    for there, here in zip(*found, strict=True):
        assert there.device.type == "cpu"
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-4)


def test_a_device_that_is_not_there_is_refused():
    for device, words in (("cuda:7", "CUDA devices"), ("gpu", "write cpu, cuda or cuda:N")):
        with pytest.raises(InputError, match=f"network.device: got '{device}'.*{words}"):
            settle(NetworkSettings(device=device))
    with gpu():
        assert settle(NetworkSettings(device="cuda")).backend == "torch"
        with pytest.raises(InputError, match=r"network\.backend"):
            settle(NetworkSettings(device="cuda", backend="numba"))
