"""Users' modules on a device: guidance, samplers, views and the learner give what they give on the CPU."""

import copy

import pytest
import torch

from sims_core import Sampler, Seed, denoiser, guide, sims
from sims_core.guidance import guided
from sims_core.sampling import Churn, generate
from tests.core import test_torch_learner as users
from tests.gpu.models import waits

pytestmark = pytest.mark.gpu


def test_guidance_and_views(device):
    torch.manual_seed(0)
    pair = users.Network(), users.Network()
    x, sigma = torch.randn(4, 2, dtype=torch.float64), torch.tensor([0.5, 1.0, 2.0, 4.0]).reshape(4, 1)
    for omega in (1.5, torch.tensor([0.0, 1.0, 2.0, 3.0])):
        made = []
        for where in (torch.device("cpu"), device):
            view = denoiser.from_edm(guide(*copy.deepcopy(pair), omega).to(where), sigma_data=1.0)
            one = Sampler.parse("heun:4")(view, x.to(where))
            made.append((view(x.to(where), sigma.to(where)).cpu(), one.cpu()))
        for first, second in zip(*made, strict=True):
            torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


OMEGA = torch.tensor([0.0, 1.0, 2.0])  # left on the host


def drawn(sampler: Sampler, device: torch.device) -> torch.Tensor:
    view = guided(lambda x, s: x / (1 + s**2), lambda x, s: x / (1.1 + s**2), OMEGA)
    found = list(generate(view, sampler, range(5), (2, 3), seed=Seed(0), batch=3, device=device))
    assert all(part.device.type == device.type for _, part in found)
    return torch.cat([part for _, part in found]).cpu()


@pytest.mark.parametrize("name", ["ddim", "heun", "rk4"])
@pytest.mark.parametrize("churn", [None, Churn(40, 0.05, 50, 1.003)])
def test_samplers_draw_the_same_and_wait_for_nothing(device, name, churn):
    few, many = (Sampler(name, steps, churn=churn) for steps in (4, 20))
    torch.testing.assert_close(drawn(few, device), drawn(few, torch.device("cpu")), rtol=1e-10, atol=1e-10)
    if device.type == "cuda":
        assert waits(lambda: drawn(many, device)) == waits(lambda: drawn(few, device))


@pytest.mark.parametrize("lora", [None, 2])
def test_algorithm_1_repeats_itself_and_leaves_the_generators(device, lora):
    if lora:
        pytest.importorskip("peft")
    network = users.Network().to(device)
    learner = users.learner_of(network=network, loss=loss_on(device), lora=lora)
    torch.manual_seed(3)
    expected = torch.randn(5, device=device)
    torch.manual_seed(3)
    runs = []
    for _ in range(2):
        made = sims(learner, users.POINTS, n_synthetic=40, budget=320, omega=1.5, seed=Seed(0))
        runs.append(learner.sample(made.model, 20, seed=Seed(1)))
    assert runs[0].device.type == device.type and torch.equal(*runs)
    assert torch.equal(torch.randn(5, device=device), expected)


def loss_on(device):
    def loss(network, clean):
        sigma = (torch.randn(len(clean), 1, device=device)).exp()
        view, noise = users.VIEW(network), torch.randn_like(clean)
        return users.denoising_loss(view, clean, sigma, noise, users.EDM(1.0).weight(sigma)).mean()

    return loss
