"""Training, sampling and measuring on a GPU that is not there (`tests.pretended`), against the CPU."""

import contextlib
import copy
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch

from sims_core.errors import InputError
from sims_core.guidance import GuidanceSchedule
from sims_core.sampling import Churn, Sampler, generate
from sims_core.seeds import Seed
from sims_image.metrics.classifier import Classifier
from sims_image.metrics.features import Extractor
from sims_image.models.denoiser import level, one_hot
from sims_image.processes import Processes, choose_device, repeatable_kernels, start, tuned_kernels
from sims_image.sampling.engine import Engine, Runner
from sims_image.training import augment
from sims_image.training.augment import Augmentation
from sims_image.training.trainer import Options, Trainer
from tests.image import tiny
from tests.pretended import CUDA, ForbiddenError, MixedDevicesError, fetched, gpu

SMALL = {**tiny.EDM, "channel_mult": [1], "attn_resolutions": [], "label_dropout": 0.1}
SMALL2 = {**tiny.EDM2, "channel_mult": [1], "attn_resolutions": []}


@pytest.fixture(autouse=True)
def _forgotten():
    """What is kept for a device does not outlive it."""
    yield
    augment._doubling.cache_clear()
    augment._halving.cache_clear()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "data.zip")


def trainer(data, device, config=SMALL, *, passes=2, processes=None, **changes) -> Trainer:
    edm2 = config is SMALL2
    recipe = tiny.recipe(batch=4, ema="power" if edm2 else "halflife", objective="edm2" if edm2 else "edm", **changes)
    feed = tiny.feed(data, config, batch=4, passes=passes, augment=None if edm2 else Augmentation(0.5))
    feed.device = device
    processes = processes or Processes(0, 1, device)
    return Trainer(tiny.network(config), recipe, feed, Seed(5), processes=processes, options=Options())


# --------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    ("config", "precision", "tolerance"), [(SMALL, "float32", 1e-5), (SMALL2, "bf16", 0.02), (SMALL2, "fp16", 0.02)]
)
def test_a_step_waits_for_nothing_and_is_the_same(data, config, precision, tolerance):
    """Data, draws, augmentation, passes, loss scaling, optimiser and averages; after a first step that fills caches."""
    here = trainer(data, torch.device("cpu"), config, precision=precision)
    here.run(2, after=lambda: None)
    with gpu() as machine:
        there = trainer(data, CUDA, config, precision=precision)
        there.run(1, after=lambda: None)
        machine.syncs.clear()
        there.run(2, after=lambda: None)
        assert not Counter(machine.syncs) and not machine.races
        found, wanted = there.report(lambda: ""), here.report(lambda: "")
        assert machine.syncs  # a report reads, and may
        assert there.network.training and all(p.is_cuda for p in there.network.parameters())
        average = next(iter(there.averages.state_dict().values()))
        assert all(t.is_cuda for t in average.values())
    assert found.levels == pytest.approx(wanted.levels)
    assert found.loss == pytest.approx(wanted.loss, rel=tolerance)
    assert found.gradient == pytest.approx(wanted.gradient, rel=10 * tolerance)


def test_a_state_of_the_cpu_goes_on_there(data):
    """The optimiser's and the averages' tensors come to the device, as `state.pt` is read to the host."""
    here = trainer(data, torch.device("cpu"))
    here.run(1, after=lambda: None)
    state = copy.deepcopy(here.state_dict())
    here.run(2, after=lambda: None)
    with gpu():
        there = trainer(data, CUDA)
        there.load_state_dict(state)
        there.run(2, after=lambda: None)
        assert there.report(lambda: "").loss > 0
        for value in there.optimizer.state.values():
            assert all(part.is_cuda for part in value.values())


@pytest.mark.parametrize("fault", ["mixed", "waits"])
def test_a_fault_in_a_step_is_found(data, monkeypatch, fault):
    """Injected: noise left on the host, a loss that is read in every step."""
    with gpu() as machine:
        subject = trainer(data, CUDA, passes=1)
        if fault == "mixed":
            ready = subject.feed.ready
            monkeypatch.setattr(subject.feed, "ready", lambda b, **k: replace(r := ready(b, **k), noise=r.noise.cpu()))
            with pytest.raises(MixedDevicesError, match="denoising_loss"):
                subject.run(1, after=lambda: None)
        else:
            monkeypatch.setattr(subject._watch, "loss", lambda value, level: value.mean().item())
            machine.syncs.clear()
            subject.run(1, after=lambda: None)
            assert ("_local_scalar_dense", "sims_image/training/trainer.py: _backward") in machine.syncs


# --------------------------------------------------------------------------------- sampling

NETWORKS = [tiny.network(SMALL, seed=k).eval().requires_grad_(False) for k in (0, 1)]
ENGINES = [Engine(pair, cuda_graph=graph) for pair in ("sequential", "overlapped") for graph in (False, True)]
SAMPLER = Sampler("euler", 3, churn=Churn(40, 0.05, 50, 1.003))


def drawn(device, engine, networks=NETWORKS, *, prepared=None):
    """Two batches of guided samples; ``prepared`` is called after the first, which prepares the engine."""
    first, second = (copy.deepcopy(network).to(device) for network in networks)
    run, classes = Runner(engine, first, second), torch.tensor([0, 1, 2])

    def denoiser(indices):
        labels = one_hot(first, classes.pin_memory().to(device, non_blocking=True) if device == CUDA else classes)

        def own(x, sigma):
            return run.own(x, level(sigma, x), labels)

        def both(x, sigma):
            return run.both(x, level(sigma, x), labels)

        return GuidanceSchedule.parse("held:2").denoiser(own, own, 1.5, both=both)

    found = []
    for indices in (range(3), range(3, 6)):
        found += generate(denoiser, SAMPLER, indices, (3, 8, 8), seed=Seed(0), batch=3, device=device, per_batch=True)
        if prepared is not None and len(found) == 1:
            prepared()
    return [samples for _, samples in found]


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_engines_wait_for_nothing_and_draw_the_same(engine):
    wanted = drawn(torch.device("cpu"), Engine())
    with gpu() as machine:
        found = drawn(CUDA, engine, prepared=machine.syncs.clear)
        assert not machine.syncs and not machine.races
        for samples, reference in zip(found, wanted, strict=True):
            torch.testing.assert_close(fetched(samples), reference, rtol=1e-4, atol=1e-4 * float(reference.abs().max()))


def test_faults_of_engines_are_found(monkeypatch):
    """Injected: a side stream that nobody waits for, and a network that reads a value while it is captured."""
    from tests.pretended import Stream

    with gpu() as machine:
        monkeypatch.setattr(Stream, "wait_stream", lambda self, other: None)
        drawn(CUDA, Engine("overlapped"))
        assert machine.races
    monkeypatch.undo()
    reading = copy.deepcopy(NETWORKS)
    reading[1].register_forward_pre_hook(lambda module, given: given if float(given[1]) >= 0 else None)
    with gpu(), pytest.raises(ForbiddenError, match="_local_scalar_dense"):
        drawn(CUDA, Engine(cuda_graph=True), reading)


# -------------------------------------------------------------------- measuring, processes


def test_features_come_from_the_device():
    network = Classifier((3, 8, 8), 3, width=8).eval().requires_grad_(False)
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    wanted = network(torch.from_numpy(images)).numpy()
    with gpu():
        there = copy.deepcopy(network).to(CUDA)
        found = Extractor("classifier", "FD-classifier", "", 8, there, device=CUDA, shape=(3, 8, 8))(images)
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_float32_means_float32_on_a_gpu():
    """Also where torch, or the installation, would take TF32; and only training lets cuDNN choose by the clock."""
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = True
        with gpu(), start("cuda:0") as processes:
            assert processes.device == CUDA and not any(flag.allow_tf32 for flag in flags)
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value
    assert not torch.backends.cudnn.benchmark
    with tuned_kernels():
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.benchmark


def test_repeatable_kernels_are_asked_for_in_training_alone(data):
    with repeatable_kernels():
        assert torch.are_deterministic_algorithms_enabled() and torch.backends.cudnn.deterministic
        trainer(data, torch.device("cpu"), passes=1).run(1, after=lambda: None)
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


@pytest.mark.parametrize("fails", [False, True])
def test_a_failing_process_does_not_wait_for_the_others(monkeypatch, fails):
    """To take nccl's group apart is to wait for all of it."""
    called = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, value in {"is_initialized": False, "get_rank": 0, "get_world_size": 2}.items():
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **given: called.append(backend))
    monkeypatch.setattr(torch.distributed, "destroy_process_group", lambda: called.append("destroyed"))
    with gpu(), contextlib.suppress(ZeroDivisionError), start("cuda") as processes:
        assert processes == Processes(0, 2, CUDA)
        if fails:
            raise ZeroDivisionError
    assert called == (["nccl"] if fails else ["nccl", "destroyed"])


def test_processes_of_one_machine_do_not_share_a_gpu(monkeypatch):
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with gpu():
        assert choose_device("cuda") == CUDA
        with pytest.raises(InputError, match="a GPU each"):
            choose_device("cuda:0")
