"""Every way to evaluate a guided pair draws the same samples, and none makes the host wait between steps."""

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import Tensor

from sims_core.guidance import GuidanceSchedule
from sims_core.sampling import Sampler
from sims_image.sampling.engine import Engine
from tests.gpu.models import FAMILIES, SMALL, SMALL2, pair, samples, trainer, waits
from tests.image.networks import relative

pytestmark = pytest.mark.gpu
CUDA_ALONE = pytest.mark.gpu(cpu=False)
#: (engine, how far it may be from two networks in turn): the same kernels, or others
ENGINES = [
    pytest.param(Engine("overlapped"), 1e-5, id="overlapped"),
    *(pytest.param(Engine(pair, cuda_graph=True), 1e-5, id=f"{pair}, graph", marks=CUDA_ALONE)
      for pair in ("sequential", "overlapped")),
    pytest.param(Engine(compiled=True), 1e-4, id="compiled", marks=CUDA_ALONE),
]  # fmt: skip


@cache
def in_turn(family: str, device: torch.device, schedule: str) -> Tensor:
    model = replace(pair(FAMILIES[family], device), schedule=GuidanceSchedule.parse(schedule))
    return samples(model, Sampler("heun", 3))


@pytest.mark.parametrize("schedule", ["full", "held:2"])
@pytest.mark.parametrize(("engine", "tolerance"), ENGINES)
def test_samples_are_those_of_two_networks_in_turn(device, engine, tolerance, schedule):
    if engine.compiled and schedule != "full":
        pytest.skip("compiling takes half a minute, and the schedule does not see it")
    model = replace(pair(FAMILIES["DDPM++"], device, engine=engine), schedule=GuidanceSchedule.parse(schedule))
    for _ in range(2):  # the second call finds everything prepared
        assert relative(samples(model, Sampler("heun", 3)), in_turn("DDPM++", device, schedule)) <= tolerance


# ------------------------------------------------------------------------- no waiting


@CUDA_ALONE
@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("pairing", ["sequential", "overlapped"])
def test_no_step_of_a_sampler_waits(device, pairing, graph):
    """Five times the steps wait no more often; each draw ends in one copy to the host."""
    model = pair(FAMILIES["EDM2"], device, engine=Engine(pairing, cuda_graph=graph))
    samples(model, Sampler("heun", 2))
    few, many = (waits(lambda steps=steps: samples(model, Sampler("heun", steps))) for steps in (3, 15))
    assert many == few


@CUDA_ALONE
def test_a_step_that_waits_is_seen(device):
    """Injected: a network that reads a value."""
    model = pair(FAMILIES["DDPM++"], device)
    model.network.register_forward_pre_hook(lambda module, given: None if float(given[1].sum()) > 0 else given)
    samples(model, Sampler("heun", 2))
    few, many = (waits(lambda steps=steps: samples(model, Sampler("heun", steps))) for steps in (3, 15))
    assert sum(many.values()) >= sum(few.values()) + 12


@CUDA_ALONE
@pytest.mark.parametrize(
    ("config", "precision"), [(SMALL, "float32"), (SMALL, "bf16"), (SMALL2, "fp16")], ids=["float32", "bf16", "fp16"]
)
def test_no_training_step_waits(device, data, config, precision):
    subject = trainer(data, device, config, precision=precision)
    subject.run(2, after=lambda: None)
    few, many = (waits(lambda n=n: subject.run(subject.step + n, after=lambda: None)) for n in (2, 12))
    assert many == few
