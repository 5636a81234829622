"""A user's module as a learner: the contract, every method, every policy, adapters, data of every kind."""

import copy
import math
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from sims_core import (
    EDM,
    METHODS,
    POLICIES,
    InputError,
    LogNormal,
    Sampler,
    Seed,
    TorchLearner,
    denoiser,
    denoising_loss,
    distribution_control,
    parse_policy,
    self_consuming_loop,
    sims,
)
from sims_core.guidance import merge_weights
from sims_core.modules import Guided, guide
from sims_core.torch_learner import dropping, plain
from tests.contract import Case, check

S = Seed(7)
POINTS = torch.randn(300, 2, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.5, 0.5])
VIEW = partial(denoiser.from_edm, sigma_data=1.0)


class Network(nn.Module):
    def __init__(self, width=24):
        super().__init__()
        layers = nn.Linear(3, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 2)
        self.net = nn.Sequential(*layers)

    def forward(self, x, c_noise):
        return self.net(torch.cat([x, c_noise[:, None].expand(len(x), 1)], 1))


def loss(network, clean):
    sigma = LogNormal(std=1.0).sample((len(clean), 1))
    return denoising_loss(VIEW(network), clean, sigma, torch.randn_like(clean), EDM(1.0).weight(sigma)).mean()


def euler(network, noise):
    """A user's own sampler, in his network's precision."""
    x = 10 * noise
    for sigma, target in ((10.0, 2.0), (2.0, 0.5), (0.5, 0.0)):
        x = x + (target - sigma) * (x - VIEW(network)(x, torch.tensor(sigma))) / sigma
    return x


def learner_of(**settings):
    settings = {"network": Network, "loss": loss, "sampler": Sampler.parse("heun:4"), "shape": (2,), "view": VIEW,
                "budget": 1280, "batch": 64, **settings}  # fmt: skip
    return TorchLearner(settings.pop("network"), **settings)


def same(a, b):
    if isinstance(a, nn.Module):
        first, second = plain(a).state_dict(), plain(b).state_dict()
        return all(torch.equal(first[name], second[name]) for name in first)
    return len(a) == len(b) and torch.equal(torch.as_tensor(a), torch.as_tensor(b))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"sampler": euler},
        {"guidance": "held:2+interval:0:30", "scheduler": VIEW(Network()).form},
        {"lora": 2},
        {"network": Network(), "second": Network},
    ],
    ids=["sampler", "function", "held", "lora", "module"],
)
def test_contract(settings):
    if "lora" in settings:
        pytest.importorskip("peft")
    check(Case(learner_of(**settings), POINTS, 640, 30, same, len))


def test_the_users_generators_and_networks_are_left_alone():
    network = Network()
    before, weights = torch.random.get_rng_state(), copy.deepcopy(network.state_dict())
    learner = learner_of(network=network)
    learner.sample(learner.fit(POINTS, seed=S), 5, seed=S)
    assert torch.equal(torch.random.get_rng_state(), before) and network.training
    assert all(torch.equal(network.state_dict()[name], weights[name]) for name in weights)
    as_it_is = replace(learner, budget=0).fit(POINTS, seed=S)
    assert same(as_it_is, network) and as_it_is is not network


@pytest.mark.parametrize("sampler", [Sampler.parse("heun:4"), euler])
def test_a_sample_depends_on_seed_and_index_alone(sampler):
    learner = learner_of(sampler=sampler, batch=16)
    model = learner.fit(POINTS, seed=S)
    many = learner.sample(model, 40, seed=S)
    assert torch.equal(many[:20], learner.sample(model, 20, seed=S))  # the compute batch is the same
    torch.testing.assert_close(many, replace(learner, batch=7).sample(model, 40, seed=S), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("lora", [None, 2])
def test_every_method(name, lora):
    if lora:
        pytest.importorskip("peft")
    method, learner = METHODS[name], learner_of(lora=lora)
    if method.resampled:
        learner = replace(learner, sampler=learner.sampler.doubled())
    settings = method.bind(n_synthetic=40, budget=320, omega=1.5)
    made = settings(learner, POINTS, real=None, seed=S, start=None)
    assert learner.sample(made.model, 10, seed=S).isfinite().all()
    if made.auxiliary is not None and name != "neon":
        assert isinstance(made.model, Guided) and made.model.omega == 1.5 and not same(made.base, made.auxiliary)


@pytest.mark.parametrize("policy", ["augmentation", "fully-synthetic", "fresh", "accumulate", "polluted", "mixed:0.5",
                                    "scaled:0.8:fully-synthetic"])  # fmt: skip
def test_every_policy(policy):
    assert {p.partition(":")[0] for p in (policy,)} <= set(POLICIES)
    learner = learner_of()
    settings = {"fresh": lambda seed: torch.randn(300, 2, generator=seed.torch()), "pollution": torch.zeros(50, 2)}
    method = METHODS["sims"].bind(n_synthetic=40, budget=320, omega=1.0)
    loop = self_consuming_loop(
        learner, POINTS, method=method, policy=parse_policy(policy), n_synthetic=100, generations=2, seed=S, **settings
    )
    for turn in loop:
        assert isinstance(turn.train, torch.Tensor) and learner.sample(turn.model, 5, seed=S).isfinite().all()


def test_the_random_direction_is_as_far_as_the_auxiliary():
    learner = learner_of()
    base = learner.fit(POINTS, seed=S)
    auxiliary = learner.finetune(base, POINTS, 640, seed=S)
    other = learner.perturb(base, auxiliary, seed=S)

    def distance(a, b):
        return math.sqrt(sum(float((x - y).detach().square().sum()) for x, y in
                             zip(a.parameters(), b.parameters(), strict=True)))  # fmt: skip

    assert distance(base, other) == pytest.approx(distance(base, auxiliary), rel=1e-4)


def test_a_module_has_no_training_from_scratch_and_pairs_are_not_trained():
    learner = learner_of(network=Network())
    with pytest.raises(InputError, match="second: got 'Network'; training from scratch needs a function"):
        learner.rebuild(POINTS, 64, seed=S)
    base = learner.fit(POINTS, seed=S)
    pair = learner.extrapolate(base, learner.finetune(base, POINTS, 64, seed=S), 1.0)
    with pytest.raises(InputError, match="model: got 'a guided pair'"):
        learner.finetune(pair, POINTS, 64, seed=S)


@pytest.mark.parametrize(
    ("settings", "data", "words"),
    [
        ({"loss": lambda network, x: x}, POINTS, "loss: got 'Tensor'; it must return a scalar"),
        ({"optimiser": partial(torch.optim.SGD, lr=1e9)}, POINTS, "training diverged"),
        ({}, POINTS[:0], "data: got '0'; there is nothing to train on"),
        ({"batch": 0}, POINTS, "batch: got '0'"),
    ],
)
def test_bad_input(settings, data, words):
    with pytest.raises(InputError, match=words):
        learner_of(**settings).fit(data, seed=S)


# -------------------------------------------------------------------------- adapters


def test_an_adapter_shares_the_bases_weights_and_at_minus_omega_is_neon(tmp_path):
    peft = pytest.importorskip("peft")
    learner = learner_of(lora=1, finetuning=partial(torch.optim.Adam, lr=1e-2), network=partial(Network, 256))
    base = learner.fit(POINTS, seed=S)
    base.net[0].bias.requires_grad_(False)
    before = copy.deepcopy(base.state_dict())
    auxiliary = learner.finetune(base, POINTS * 0.5, 1280, seed=S)
    assert all(torch.equal(base.state_dict()[name], before[name]) for name in before)
    assert [w.requires_grad for w in base.parameters()] == [True, False, True, True, True, True]

    pair = learner.extrapolate(base, auxiliary, 1.5)
    count = sum(weight.numel() for weight in base.parameters())
    held = {id(weight): weight.numel() for weight in pair.parameters()}
    assert sum(held.values()) < 1.05 * count
    x, noise = torch.randn(50, 2), torch.zeros(50)
    with torch.no_grad():
        two = learner.extrapolate(base, plain(auxiliary), 1.5)(x, noise)
        torch.testing.assert_close(pair(x, noise), two, atol=1e-5, rtol=1e-5)
        assert float((two - base(x, noise)).abs().max()) > 0.1
        merged = learner.merge(base, auxiliary, 1.5)(x, noise)
        by_hand = copy.deepcopy(base)
        by_hand.load_state_dict(merge_weights(base.state_dict(), plain(auxiliary).state_dict(), 1.5))
        torch.testing.assert_close(merged, by_hand(x, noise), atol=0, rtol=0)
        for layer in auxiliary.modules():
            if isinstance(layer, peft.tuners.lora.LoraLayer):
                layer.set_scale("aux", -1.5)
        torch.testing.assert_close(auxiliary(x, noise), merged, atol=1e-5, rtol=1e-5)

    auxiliary = learner.finetune(base, POINTS * 0.5, 1280, seed=S)
    auxiliary.save_pretrained(str(tmp_path))
    loaded = peft.PeftModel.from_pretrained(copy.deepcopy(base), str(tmp_path / "aux"), adapter_name="aux").eval()
    assert torch.equal(loaded(x, noise), auxiliary(x, noise))


def test_adapters_on_a_unet_of_diffusers():
    pytest.importorskip("peft")
    foreign = pytest.importorskip("tests.core.foreign")
    scheduler = foreign.diffusers.DDPMScheduler()

    def epsilon(network, images):
        noise, t = torch.randn_like(images), torch.randint(0, 1000, (len(images),))
        return (network(scheduler.add_noise(images, noise, t), t).sample - noise).square().mean()

    base = foreign.unet()
    learner = TorchLearner(
        base, loss=epsilon, shape=(3, 8, 8), batch=4, lora=1, sampler=Sampler("heun", 3, sigma_min=0.02),
        view=lambda network: denoiser.from_diffusers(network, scheduler),
    )  # fmt: skip
    made = sims(learner, torch.zeros(4, 3, 8, 8), n_synthetic=4, budget=8, omega=1.0, seed=S)
    assert same(made.base, base) and learner.sample(made.model, 2, seed=S).shape == (2, 3, 8, 8)
    assert not torch.equal(learner.sample(made.model, 2, seed=S), learner.sample(made.base, 2, seed=S))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_adapters_that_cannot_be(monkeypatch):
    peft = pytest.importorskip("peft")
    base = Network()
    with pytest.raises(InputError, match=r"lora: got .*nowhere.*not found in the base model"):
        learner_of(lora=peft.LoraConfig(target_modules=["nowhere"])).finetune(base, POINTS, 64, seed=S)
    assert all(weight.requires_grad for weight in base.parameters())
    with pytest.raises(InputError, match="lora: got '2'; the network has no linear layers"):
        learner_of(lora=2).finetune(nn.Embedding(3, 2), POINTS, 64, seed=S)
    with pytest.raises(InputError, match="lora: got '0'"):
        learner_of(lora=0).finetune(base, POINTS, 64, seed=S)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    with pytest.raises(InputError, match="lora: got '2'; adapters need peft: pip install"):
        learner_of(lora=2).finetune(base, POINTS, 64, seed=S)


# ------------------------------------------------------------------- data of every kind


class Items(Dataset):
    def __len__(self):
        return len(POINTS)

    def __getitem__(self, i):
        return POINTS[i] + 0.01 * torch.randn(2)  # augmented


class Stream(IterableDataset):
    def __init__(self, rows=50):
        self.rows = rows

    def __iter__(self):
        return iter(POINTS[: self.rows])


def check_dataset(data, workers):
    learner = learner_of(workers=workers, budget=256)
    first = learner.fit(data, seed=S)
    assert same(first, learner.fit(data, seed=S)) and not same(first, learner.fit(data, seed=S.child("other")))


@pytest.mark.parametrize("data", [Items(), Stream()], ids=["items", "stream"])
def test_datasets(data):
    check_dataset(data, 0)


def test_datasets_read_by_a_process_of_their_own():
    """In a fresh interpreter: coverage, which follows forks, makes torch's workers end with an error."""
    code = "from tests.core.test_torch_learner import *\nfor data in (Items(), Stream()): check_dataset(data, 1)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_unions_and_scales():
    learner = learner_of(budget=256)
    drawn = learner.sample(learner.fit(POINTS, seed=S), 20, seed=S)
    assert len(learner.union(Items(), drawn)) == 320
    learner.fit(learner.union(Items(), drawn), seed=S)
    assert sum(1 for _ in learner.union(Stream(), Stream())) == 100
    learner.fit(learner.union(Stream(), Stream()), seed=S)
    with pytest.raises(InputError, match="a stream and items by number"):
        learner.union(Stream(), drawn)
    with pytest.raises(InputError, match="nothing to train on"):
        learner.fit(Stream(0), seed=S)
    with pytest.raises(InputError, match="only tensors are scaled"):
        learner.scale(Items(), 2.0)
    points, labels = learner.scale((POINTS, torch.arange(300)), 2.0)
    assert torch.equal(points, 2 * POINTS) and labels[-1] == 299


class Labelled(nn.Module):
    """A network with two classes."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 24), nn.SiLU(), nn.Linear(24, 2))

    def forward(self, x, noise, label):
        return self.net(torch.cat([x, noise[:, None].expand(len(x), 1), label[:, None].float()], 1))


def test_pairs_of_tensors_and_algorithm_2():
    """Data with labels, and distribution control: the auxiliary is trained on the complement of the target."""
    labels = (torch.arange(300) < 240).long()
    data = (POINTS + 4 * labels[:, None], labels)

    def labelled_loss(network, batch):
        clean, label = batch
        return loss(lambda x, noise: network(x, noise, label), clean)

    def draw(network, noise, share=0.8):
        label = (torch.rand(len(noise)) < share).long()
        return euler(lambda x, c: network(x, c, label), noise), label

    learner = learner_of(network=Labelled, loss=labelled_loss, sampler=draw)
    points, drawn = learner.sample(learner.fit(data, seed=S), 200, seed=S)
    assert points.shape == (200, 2) and 0.7 < float(drawn.float().mean()) < 0.9
    assert [len(part) for part in learner.union(data, (points, drawn))] == [500, 500]
    shares = []

    def draw_shares(base, wanted, seed):
        shares.append(wanted)
        return replace(learner, sampler=partial(draw, share=float(wanted[1]))).sample(base, 100, seed=seed)

    made = distribution_control(
        learner, data, draw=draw_shares, base_shares=[0.2, 0.8], target_shares=[0.3, 0.7], budget=320, omega=1.0, seed=S
    )
    np.testing.assert_allclose(shares[0], [0.1, 0.9])
    assert learner.sample(made.model, 10, seed=S)[0].isfinite().all()
    check(Case(learner, data, 640, 30, lambda a, b: same(a, b) if isinstance(a, nn.Module) else same(a[0], b[0]),
               lambda d: len(d[0])))  # fmt: skip


def test_dropout_makes_an_auxiliary_of_the_network_itself():
    """On the same weights, on in eval too; guided samples are D + w (D - D_dropped), by seed."""
    network = nn.Sequential(nn.Linear(3, 64), nn.Dropout(0.5), nn.Linear(64, 2)).eval()
    other, x = dropping(network), torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert all(a is b for a, b in zip(network.parameters(), other.parameters(), strict=True))
    model = guide(network, other, omega=1.5).eval()
    with torch.random.fork_rng():
        torch.manual_seed(1)
        found = model(x)
        torch.manual_seed(1)
        dropped = network[2](torch.nn.functional.dropout(network[0](x), 0.5, training=True))
        torch.testing.assert_close(found, 2.5 * network(x) - 1.5 * dropped)
        assert not torch.equal(other.eval()(x), other(x)) and torch.equal(network(x), network(x))
    for plain_one in (nn.Linear(3, 2), nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.0))):
        with pytest.raises(InputError, match=r"^network"):
            dropping(plain_one)
