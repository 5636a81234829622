"""Networks and samplers on a device, beside the CPU: float32 to 1e-4, half precision by error over signal."""

import os

import numpy as np
import pytest
import torch

from sims_core.sampling import Churn, Sampler
from sims_image.metrics.classifier import Classifier
from sims_image.metrics.features import Extractor
from sims_image.models.networks import build
from sims_image.models.presets import PRESETS
from sims_image.processes import start
from sims_image.sampling.guided import error_over_signal
from tests.gpu.models import FAMILIES, pair, samples
from tests.image import networks
from tests.image.networks import CASES, relative

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CASES)
def test_published_outputs_in_float32(device, name, layout):
    case = CASES[name]
    net = build(**case.config).eval()
    net.load_state_dict(case.state, strict=True)
    with torch.no_grad():
        given = {key: value.to(device) for key, value in case.inputs.items()}
        found = net.to(device, memory_format=layout)(**given, force_fp32=True)
    assert found.device == device and relative(found.cpu(), case.denoised) <= 1e-4


@pytest.mark.gpu(cpu=False)
@pytest.mark.parametrize("preset", ["cifar10-uncond", "imagenet64-edm2-s"])
def test_networks_of_published_size(device, preset):
    torch.set_num_threads(os.cpu_count() or 1)
    try:
        net = networks.network(**PRESETS[preset].config())
        x = torch.randn(1, net.img_channels, net.img_resolution, net.img_resolution)
        labels = torch.eye(net.label_dim)[:1] if net.label_dim else None
        with torch.no_grad():
            here = net(x, torch.tensor([0.7]), labels, force_fp32=True)
            there = net.to(device)(
                x.to(device),
                torch.tensor([0.7], device=device),
                None if labels is None else labels.to(device),
                force_fp32=True,
            )
    finally:
        torch.set_num_threads(1)
    assert relative(there.cpu(), here) <= 1e-4


SAMPLERS = [Sampler(name, 3) for name in ("heun", "euler", "ddim", "rk4")]
SAMPLERS.append(Sampler("heun", 3, churn=Churn(40, 0.05, 50, 1.003)))
CASES_OF_SAMPLES = [(family, SAMPLERS[0]) for family in FAMILIES] + [("DDPM++", sampler) for sampler in SAMPLERS[1:]]


@pytest.mark.parametrize(("family", "sampler"), CASES_OF_SAMPLES, ids=str)
def test_samples_in_float32(device, family, sampler):
    here, there = (samples(pair(FAMILIES[family], where), sampler) for where in (torch.device("cpu"), device))
    assert relative(there, here) <= 1e-4


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_loses_no_more_of_the_guidance_than_on_the_cpu(device, family, dtype):
    """Weights that differ by 0.1 % give a signal of their own size; bf16 rounds to .4 %, fp16 to .05 %."""
    found = []
    for where in (torch.device("cpu"), device):
        model = pair(FAMILIES[family], where, dtype=dtype)
        classes = torch.zeros(8, dtype=torch.long, device=where)
        found.append(error_over_signal(model, classes=lambda wanted, classes=classes: classes[: len(wanted)]))
    here, there = found
    assert 0 < there <= 1.5 * here


def test_features_come_from_the_device(device):
    network = Classifier((3, 8, 8), 3, width=8).eval().requires_grad_(False)
    images = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), dtype=np.uint8)
    wanted = network(torch.from_numpy(images))
    there = Extractor("classifier", "FD-classifier", "", 8, network.to(device), device=device, shape=(3, 8, 8))
    assert relative(torch.from_numpy(there(images)), wanted) <= 1e-5


@pytest.mark.gpu(cpu=False)
def test_float32_means_float32(device):
    """Products and convolutions, also where torch, or the installation, would take TF32."""
    x = torch.randn(2, 64, 32, 32, device=device)
    kernel = torch.randn(64, 64, 3, 3, device=device)
    works = (lambda t, k: t @ t, lambda t, k: torch.conv2d(t, k))
    for flags in (torch.backends.cudnn, torch.backends.cuda.matmul):
        flags.allow_tf32 = True
    with start(str(device)) as processes:
        assert processes.device == device
        for work in works:
            assert relative(work(x, kernel).double(), work(x.double(), kernel.double())) < 1e-5
