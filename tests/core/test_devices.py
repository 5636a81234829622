"""The pretended GPU of `tests.pretended` is held to torch's own rules, and the core to it."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from sims_core.devices import filled, moved
from sims_core.guidance import guided
from sims_core.sampling import Churn, Sampler, generate
from sims_core.seeds import Seed
from tests.pretended import CUDA, ForbiddenError, Graph, OnGpu, Stream, fetched, gpu

# ------------------------------------------------------------------ does it see anything?

MIXED = {
    "add": lambda c, h: c + h,
    "where": lambda c, h: torch.where(c > 0, c, h),
    "matmul": lambda c, h: c @ h,
    "cat": lambda c, h: torch.cat([c, h]),
    "gather": lambda c, h: c.gather(0, h.long()),
    "host += device": lambda c, h: h.add_(c),
    "scalar times": lambda c, h: c * h[0, 0],
    "scalar where": lambda c, h: torch.where(c > 0, c, h[0, 0]),
    "same": lambda c, h: c @ c,
    "copied": lambda c, h: c + h.to(c.device),
}


@pytest.mark.parametrize("name", MIXED)
def test_devices_may_mix_where_torch_lets_them(name):
    """Against torch's own fake tensors, which know the devices and no values."""

    def refused(c: Tensor, h: Tensor) -> bool:
        try:
            MIXED[name](c, h)
        except RuntimeError:  # of both: their kinds are subclasses
            return True
        return False

    with FakeTensorMode():
        theirs = refused(torch.empty(3, 3, device="cuda:0"), torch.empty(3, 3))
    with gpu():
        ours = refused(torch.ones(3, 3, device="cuda:0"), torch.ones(3, 3))
    assert ours == theirs == (name not in ("scalar times", "scalar where", "same", "copied"))


WAITING = {
    "item": lambda c, h: c.sum().item(),
    "bool": lambda c, h: bool((c > 0).all()),
    "float": lambda c, h: float(c[0]),
    "cpu": lambda c, h: c.cpu(),
    "tolist": lambda c, h: c.tolist(),
    "nonzero": lambda c, h: c.nonzero(),
    "mask": lambda c, h: c[c > 0],
    "unique": lambda c, h: torch.unique(c),
    "to the device": lambda c, h: h.to(c.device),
    "non-blocking, not pinned": lambda c, h: h.to(c.device, non_blocking=True),
    "copy_": lambda c, h: c.copy_(h),
    "new_tensor": lambda c, h: c.new_tensor([1.0, 2.0]),
    "tensor": lambda c, h: torch.tensor([1.0], device=c.device),
    "as_tensor": lambda c, h: torch.as_tensor(h, device=c.device),
    "an index from the host": lambda c, h: c[h.long()],
    "synchronize": lambda c, h: torch.cuda.synchronize(),
}
FREE = {
    "arithmetic": lambda c, h: (c * 2 + h[0]).sum(),
    "filled": lambda c, h: torch.full((2,), float(h[0]), device=c.device),
    "created": lambda c, h: torch.arange(3, device=c.device) + c.new_zeros(3).long(),
    "pinned": lambda c, h: h.pin_memory().to(c.device, non_blocking=True),
    "dtype": lambda c, h: c.to(torch.float64),
    "to where it is": lambda c, h: c.to(c.device),
    "indexed": lambda c, h: c[c.long()],
    "masked fill": lambda c, h: torch.where(c > 0, c, 0.0),
    "moved": lambda c, h: moved(h, c.device, torch.float64),
    "scalar moved": lambda c, h: filled(h[0], c.device, torch.float32),
}


@pytest.mark.parametrize("name", [*WAITING, *FREE])
def test_what_the_host_waits_for_is_noted(name):
    with gpu() as machine:
        c, h = torch.ones(3, device=CUDA), torch.ones(3)
        machine.syncs.clear()
        (WAITING | FREE)[name](c, h)
        assert bool(machine.syncs) == (name in WAITING)


def test_values_of_the_device_are_not_numpys():
    with gpu():
        with pytest.raises(TypeError):
            torch.ones(3, device=CUDA).numpy()
        assert torch.ones(3, device=CUDA).cpu().numpy().tolist() == [1, 1, 1]


@pytest.mark.parametrize("fault", ["", "reads early", "overwrites early", "gives away", "another device"])
def test_streams_that_do_not_wait_are_noted(fault):
    with gpu() as machine:
        x, side, current = torch.ones(3, device=CUDA), Stream(CUDA), torch.cuda.current_stream(CUDA)
        if fault == "another device":
            torch.cuda.current_stream()
        if fault != "reads early":
            side.wait_stream(current)
        with torch.cuda.stream(side):
            y = x * 2
        if fault == "overwrites early":
            x.zero_()
        current.wait_stream(side)
        z = y + 1
        if fault != "gives away":
            y.record_stream(current)
        del y
        assert fetched(z).tolist() == [3, 3, 3]
        assert len(machine.races) == bool(fault), machine.races


def test_a_graph_replays_what_was_captured():
    with gpu():
        x, total = torch.ones(3, device=CUDA), torch.zeros(3, device=CUDA)
        graph = Graph()
        with torch.cuda.graph(graph):
            y = x * 2
            total += y
        assert fetched(total).tolist() == [0, 0, 0] and fetched(y).isnan().all()  # capturing computes nothing
        for value in (1.0, 5.0):
            x.fill_(value)
            graph.replay()
        assert fetched(y).tolist() == [10, 10, 10] and fetched(total).tolist() == [12, 12, 12]
        x = torch.zeros(3, device=CUDA)  # the captured memory has no owner any more
        with pytest.raises(ForbiddenError, match="given away"):
            graph.replay()


@pytest.mark.parametrize("name", [name for name in WAITING if name not in ("synchronize", "an index from the host")])
def test_a_graph_may_not_wait(name):
    with gpu():
        c, h = torch.ones(3, device=CUDA), torch.ones(3)
        with pytest.raises(ForbiddenError), torch.cuda.graph(Graph()):
            WAITING[name](c, h)


# --------------------------------------------------------------------------------- the core


def test_training_by_hand_is_the_same_there():
    """Modules, backward and the fused optimiser, against the CPU."""

    def trained(device):
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 4, 3), torch.nn.SiLU(), torch.nn.Flatten(), torch.nn.Linear(64, 1)
        )
        x = torch.randn(2, 3, 6, 6)
        network, x = network.to(device), moved(x, device)
        optimizer = torch.optim.Adam(network.parameters(), fused=True)
        for _ in range(3):
            optimizer.zero_grad()
            network(x).square().sum().backward()
            optimizer.step()
        return list(network.parameters())

    wanted = trained(torch.device("cpu"))
    with gpu():
        found = trained(CUDA)
        assert all(isinstance(p, OnGpu) and p.grad.is_cuda for p in found)
        assert all(torch.equal(fetched(p), w) for p, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name", ["ddim:5", "heun:4", "rk4:3"])
@pytest.mark.parametrize("churn", [None, Churn(40, 0.05, 50, 1.003)])
def test_samplers_wait_for_nothing(name, churn):
    """The start included, with one omega a sample; images as on the CPU."""
    sampler = replace(Sampler.parse(name), churn=churn)
    omega = torch.tensor([0.0, 1.0, 2.0])  # left on the host

    def drawn(device):
        denoiser = guided(lambda x, s: x / (1 + s**2), lambda x, s: x / (1.1 + s**2), omega)
        return list(generate(denoiser, sampler, range(5), (2, 3), seed=Seed(0), batch=3, device=device))

    wanted = drawn("cpu")
    with gpu() as machine:
        found = drawn(CUDA)
        assert not machine.syncs and not machine.races
        for (indices, samples), (others, reference) in zip(found, wanted, strict=True):
            assert indices == others and samples.is_cuda
            torch.testing.assert_close(fetched(samples), reference, rtol=1e-12, atol=1e-12)
