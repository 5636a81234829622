"""Cheaper guidance of images: what a schedule evaluates and draws, how a pair is evaluated, no waiting."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sims_core.errors import InputError
from sims_core.guidance import GuidanceSchedule
from sims_core.sampling import Churn, SampleNoise, Sampler
from sims_core.seeds import Seed
from sims_image.commands import run as command
from sims_image.data.dataset import open_dataset, to_pixels
from sims_image.models import checkpoints
from sims_image.sampling import engine as engines
from sims_image.sampling.engine import Engine
from sims_image.sampling.generate import schedule_of
from sims_image.sampling.generation import stream
from sims_image.sampling.guided import load_model
from sims_image.sampling.options import Generate
from sims_image.sampling.seeds import Labels
from tests.image import tiny

SCHEDULES = ["full", "held:2", "predictor", "interval:0.05:20", "held:2+interval:0.05:20"]
SAMPLER = Sampler("heun", 4)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Paths of a base, of an auxiliary beside it, and of a wider network."""
    folder = tmp_path_factory.mktemp("pair")
    tiny.checkpoint(folder / "wide", {**tiny.EDM, "model_channels": 16})
    return [*tiny.pair(folder), str(folder / "wide")]


def guided(pair, text="full", omega=1.5, **options):
    return load_model(pair[0], auxiliary=pair[1], omega=omega, schedule=GuidanceSchedule.parse(text), **options)


def images(model, seeds, batch=4, sampler=SAMPLER):
    return np.concatenate([part[1] for part in stream(model, seeds, batch=batch, sampler=sampler)])


def floats(model, batch=4):
    noise = SampleNoise(Seed(0), range(batch))
    return SAMPLER(model.denoiser(torch.arange(batch) % 3), noise((batch, *model.shape)))


# -------------------------------------------------------------------- schedules


@pytest.mark.parametrize("text", SCHEDULES)
def test_a_schedule_draws_its_line_and_evaluates_what_it_says(pair, text):
    """Against the same schedule around the bare networks, whose calls are counted."""
    calls = [0, 0]

    def bare(which):
        network = checkpoints.load(pair[which]).network

        def denoiser(x, sigma):
            calls[which] += 1
            return network(x, sigma, torch.nn.functional.one_hot(torch.arange(4) % 3, 3).float())

        return denoiser

    noise = SampleNoise(Seed(0), range(4))
    line = GuidanceSchedule.parse(text).denoiser(bare(0), bare(1), 1.5)
    expected = SAMPLER(line, noise((4, 3, 8, 8)))
    model = guided(pair, text)
    found = [part[1] for part in stream(model, range(4), batch=4, sampler=SAMPLER, labels=Labels("balanced", 3))]
    assert np.array_equal(found[0], to_pixels(expected).numpy())
    assert model.evaluations(SAMPLER) == tuple(calls) == SAMPLER.evaluations(GuidanceSchedule.parse(text))
    assert guided(pair, text, omega=0.0).evaluations(SAMPLER) == (7, 0)


@pytest.mark.parametrize("text", SCHEDULES)
def test_order_pieces_and_omega_zero(pair, text):
    model = guided(pair, text)
    whole = images(model, range(8))
    assert np.array_equal(images(model, range(7, -1, -1))[::-1], whole)
    assert np.array_equal(images(model, range(3, 8)), whole[3:])  # as another process, or a resumed one, draws them
    base = images(load_model(pair[0]), range(8))
    assert np.array_equal(images(guided(pair, text, omega=0.0), range(8)), base) and not np.array_equal(whole, base)


def test_the_commands_record_the_schedule(pair, tmp_path, capsys):
    words = ["generate", "--base", pair[0], "--auxiliary", pair[1], "--omega", "1.5", "--sampler", "heun:4"]
    words += ["--batch", "4", "--seeds", "0-7", "--device", "cpu", "--out", str(tmp_path / "made")]
    command([*words, "--guidance", "held:2+interval:0.05:20"])
    assert "note:" not in capsys.readouterr().err
    command([*words, "--refresh-every", "2", "--interval", "0.05,20"])  # the older words: the same images
    said = "note: write --guidance held:2+interval:0.05:20; --interval, --refresh-every and --predictor-only go with"
    assert capsys.readouterr().err.startswith(said)
    source = open_dataset(tmp_path / "made").record["source"]
    own, other = SAMPLER.evaluations(GuidanceSchedule(2, interval=(0.05, 20)))
    assert (source["schedule"], source["interval"]) == ("held:2+interval:0.05:20", [0.05, 20])
    assert (source["nfe"], source["nfe_base"]) == (own + other, own) == (8, 7)
    with pytest.raises(InputError, match=r'--out.*schedule: "held:2\+interval:0.05:20" there'):
        command([*words, "--guidance", "predictor+interval:0.05:20"])
    data = tiny.write_data(tmp_path / "real.zip", count=24)
    said = ["evaluate", *words[1:-2], "--reference", str(data.path), "--features", "pixels", "--no-floor"]
    command([*said, "--seeds", "0-23", "--guidance", "predictor", "--out", str(tmp_path / "report.json")])
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["nfe"] == 11 and report["source"]["schedule"] == "predictor"
    capsys.readouterr()
    command([*said, "--seeds", "0-23", "--dtype", "bf16"])
    assert "in bf16 the guidance's error over signal is" in capsys.readouterr().out


def test_the_older_options_stand_for_a_text():
    held = schedule_of(Generate(interval="0.5,2", refresh_every=3))
    assert held == schedule_of(Generate(guidance="held:3+interval:0.5:2")) == GuidanceSchedule(3, interval=(0.5, 2))
    assert schedule_of(Generate(predictor_only=True)) == GuidanceSchedule.parse("predictor")
    assert schedule_of(Generate()) == GuidanceSchedule()
    for wrong in (
        {"refresh_every": 0}, {"refresh_every": 2, "predictor_only": True}, {"interval": "2,1"}, {"interval": "1"},
        {"guidance": "held:2", "predictor_only": True}, {"guidance": "hold:2"},
    ):  # fmt: skip
        with pytest.raises(InputError, match=r"^guidance"):
            schedule_of(Generate(**wrong))


# ---------------------------------------------------------------------- engines


@pytest.mark.parametrize("config", [tiny.EDM, tiny.EDM2], ids=["edm", "edm2"])
@pytest.mark.parametrize("text", ["full", "held:2+interval:0.05:20"])
def test_ways_to_evaluate_a_pair(config, text, tmp_path):
    networks = [tiny.network(config, seed=seed) for seed in (9, 9)]
    with torch.no_grad():
        for one, other in zip(*(network.parameters() for network in networks), strict=True):
            one.mul_(0.4)
            other.mul_(0.4 + 0.02 * torch.rand(other.shape))
    paths = [str(tmp_path / name) for name in ("base", "auxiliary")]
    for path, network in zip(paths, networks, strict=True):
        checkpoints.save(path, network, checkpoints.Record())
    plain, overlapped = (floats(guided(paths, text, engine=Engine(name))) for name in ("sequential", "overlapped"))
    assert torch.equal(overlapped, plain)
    zero = floats(guided(paths, text, omega=0.0, engine=Engine("overlapped")))
    assert torch.equal(zero, floats(load_model(paths[0])))


def test_the_engine_is_on_record_and_takes_two_architectures(pair):
    assert guided(pair, engine=Engine("overlapped")).identity["engine"] == "overlapped"
    assert "engine" not in guided(pair).identity and "schedule" not in guided(pair).identity
    apart = load_model(pair[0], guide=pair[2], omega=1.0, engine=Engine("overlapped"))
    assert torch.equal(floats(apart), floats(load_model(pair[0], guide=pair[2], omega=1.0)))
    with pytest.raises(InputError, match=r"^pair"):
        Engine("parallel")


def test_compiled_networks_are_called(pair, monkeypatch):
    asked, called = [], []

    def compiler(network):
        asked.append(network)
        return lambda *given: called.append(network) or network(*given)

    plain = floats(guided(pair, "held:2"))
    monkeypatch.setattr(engines.torch, "compile", compiler)
    model = guided(pair, "held:2", engine=Engine(compiled=True))
    assert torch.equal(floats(model), plain) and model.identity["engine"] == "sequential+compiled"
    assert asked == [model.network, model.other]
    assert [called.count(network) for network in asked] == list(model.evaluations(SAMPLER)) == [7, 2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_code_draws_alike(pair):
    found, plain = floats(guided(pair, engine=Engine(compiled=True))), floats(guided(pair))
    assert float((found - plain).norm() / plain.norm()) < 1e-5
    torch._dynamo.reset()


# ---------------------------------------------------------- nothing waits between steps


class NoWaiting(TorchDispatchMode):
    """Fails at a copy from the host that the host would wait for; 'meta' stands for a device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and str(kwargs.get("device")) == "meta":
            assert args[0].device.type == "meta" or kwargs.get("non_blocking"), "the host waits for the device"
        return func(*args, **kwargs)


@pytest.mark.parametrize(
    ("text", "churn", "pairing"),
    [
        ("full", None, "sequential"),
        ("held:2+interval:0.05:20", Churn(40, 0.05, 50, 1.003), "sequential"),
        ("predictor", None, "sequential"),
    ],
)
def test_no_step_waits_for_the_device(pair, text, churn, pairing):
    """On 'meta', whose tensors have no values: reading one (item, bool, cpu) is an error, wherever it happens."""
    from dataclasses import replace

    model = guided(pair, text, engine=Engine(pairing))
    networks = [copy.deepcopy(network).to("meta") for network in (model.network, model.other)]
    model = replace(model, network=networks[0], other=networks[1])
    classes = torch.zeros(4, dtype=torch.int64, device="meta")
    start = torch.zeros(4, 3, 8, 8, device="meta", dtype=torch.float64)
    denoiser = model.denoiser(classes)
    model.runner.both(start, torch.ones(1, device="meta"), torch.zeros(4, 3, device="meta"))  # prepared before the loop
    with NoWaiting():
        found = replace(SAMPLER, churn=churn)(denoiser, start, lambda shape: torch.zeros(tuple(shape)))
    assert found.device.type == "meta" and found.shape == start.shape


def test_the_check_for_waiting_can_fail():
    def copies(x, sigma):
        return x * sigma.to("meta")

    def reads(x, sigma):
        return x * float(x.mean())

    for denoiser, error in ((copies, AssertionError), (reads, RuntimeError)):
        with NoWaiting(), pytest.raises(error):
            SAMPLER(denoiser, torch.zeros(2, 3, device="meta", dtype=torch.float64))
