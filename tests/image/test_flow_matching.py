"""Flow matching on images: networks as denoisers, loss, coupling, samplers, and every verb on its checkpoints."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sims_core.denoiser import form_of, from_velocity
from sims_core.errors import InputError
from sims_core.flow import sigma_of, time_of
from sims_core.guidance import GuidanceSchedule
from sims_core.seeds import Seed
from sims_image.commands import run as command
from sims_image.data.dataset import open_dataset
from sims_image.experiments import halving
from sims_image.models import checkpoints
from sims_image.models.denoiser import Adaptive, draw_samples, make_sampler, parse_sampler
from sims_image.models.networks import Flow, build
from sims_image.models.presets import FLOW, PRESETS, Recipe
from sims_image.training import session
from sims_image.training.batches import coupled
from sims_image.training.objectives import make_objective
from sims_image.training.options import Train
from sims_image.training.plan import plan
from sims_image.training.session import train
from tests.image import tiny

F64 = torch.float64
CONFIGS = {
    "velocity": {**tiny.EDM, "class_name": "FlowPrecond"},
    "denoiser": {**tiny.EDM, "class_name": "FlowPrecond", "prediction": "denoiser"},
    "edm2": {**tiny.EDM2, "class_name": "FlowPrecond2"},
    "adm": {**tiny.EDM, "class_name": "FlowPrecond", "model_type": "DhariwalUNet", "augment_dim": 0},
}
FLOWING = tiny.recipe(objective=FLOW, p_mean=0.0, p_std=1.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return str(tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip").path)


@pytest.fixture(autouse=True)
def preset(monkeypatch):
    monkeypatch.setitem(PRESETS, "tiny", tiny.preset())


def start(given, out, **settings) -> Train:
    known = {"preset": "tiny", "data": given, "out": str(out), "sheet": 0, "device": "cpu", "objective": FLOW}
    return Train(**{**known, **settings})


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A flow, with coupling and logit-normal time, and an EDM network."""
    folder = tmp_path_factory.mktemp("models")
    PRESETS["tiny"] = tiny.preset(tiny.EDM, tiny.recipe(budget="0.08k", lr=1e-2))
    try:
        data = str(tiny.write_data(folder / "tiny.zip", count=48).path)
        flow = train(start(data, folder / "flow", coupling=8, time="logit-normal"))
        edm = train(start(data, folder / "edm", objective=None))
        yield folder, data, flow.checkpoint, edm.checkpoint
    finally:
        del PRESETS["tiny"]


# ------------------------------------------------------------------- the network


@pytest.mark.parametrize("name", CONFIGS)
def test_a_flows_network_is_a_denoiser_by_the_change_of_variables(name):
    net = tiny.network(CONFIGS[name]).eval()
    assert isinstance(net, Flow) and build(**net.config).config == net.config
    sigma = torch.tensor([1e-3, 0.1, 1.0, 30.0, 1e4], dtype=F64).reshape(-1, 1, 1, 1)
    skip, out, scale, told = net.coefficients(sigma)
    path, one, nothing = form_of("cond-ot"), torch.ones_like(sigma), torch.zeros_like(sigma)
    assert torch.allclose(sigma_of(told), sigma, rtol=1e-11) and torch.equal(scale, time_of(sigma))
    if name != "denoiser":
        assert torch.allclose(skip, path.clean(one, sigma, nothing), rtol=0, atol=1e-12)
        assert torch.allclose(out, path.clean(nothing, sigma, one), rtol=0, atol=1e-12)
    x = torch.randn(2, 3, 8, 8, dtype=F64, generator=torch.Generator().manual_seed(3))
    found = net(x * 2, torch.tensor(2.0)).double()
    view = from_velocity(lambda x, t: net.raw(x, t.reshape(1).float(), torch.zeros(2, 3), None))
    if name == "denoiser":
        inner = net.raw((x * 2 / 3).float(), torch.tensor([1 / 3]), torch.zeros(2, 3), None).double()
        assert torch.allclose(found, inner, rtol=0, atol=1e-3)
    else:
        assert torch.allclose(found, view(x * 2, torch.tensor(2.0)), rtol=0, atol=1e-3)


# --------------------------------------------------------------------- the loss


@pytest.mark.parametrize("name", CONFIGS)
def test_the_loss_is_the_velocitys_error(name):
    net = tiny.network(CONFIGS[name]).eval()
    level = torch.tensor([-1.5, 0.0, 1.0])
    clean, noise = torch.randn(3, 3, 8, 8) / 2, torch.randn(3, 3, 8, 8)
    found = make_objective(FLOWING, net)(net, clean, level, noise, {"class_labels": torch.zeros(3, 3)})
    assert torch.allclose(time_of(found.level), torch.special.ndtr(level))
    t = time_of(found.level)[:, None, None, None]
    seen = t * clean + (1 - t) * noise
    inner = net.raw(seen, t.flatten(), torch.zeros(3, 3), None)
    velocity = (inner - seen) / (1 - t) if name == "denoiser" else inner
    assert torch.allclose(found.value, (velocity - (clean - noise)) ** 2, rtol=1e-3, atol=1e-4)


def test_the_times_are_drawn_as_asked():
    net = tiny.network(CONFIGS["velocity"])
    normal = torch.randn(4000, generator=torch.Generator().manual_seed(0))
    for recipe in (FLOWING, replace(FLOWING, time="logit-normal", p_mean=0.5, p_std=2.0)):
        t = time_of(make_objective(recipe, net).levels(normal)).double()
        wanted = t if recipe.time == "uniform" else torch.special.ndtr((torch.logit(t) + 0.5) / 2.0)
        assert abs(float(wanted.mean()) - 0.5) < 4 / (12 * 4000) ** 0.5  # uniform on [0, 1]
        assert abs(float((wanted < 0.25).double().mean()) - 0.25) < 4 * (0.25 * 0.75 / 4000) ** 0.5


def test_a_denoisers_weight_is_bounded():
    """Where 1 - t is least the velocity's weight is 1e8, of a network that predicts D 400."""
    clean, noise = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8)
    values = []
    for name in ("velocity", "denoiser"):
        net = tiny.network(CONFIGS[name])
        values.append(
            make_objective(FLOWING, net)(lambda x, s: torch.ones_like(x), clean, torch.tensor([9.0]), noise, {})
        )
    assert values[0].value.max() == pytest.approx(1e8, rel=1e-3) and values[1].value.max() == pytest.approx(
        400, rel=1e-5
    )


def test_gradients_are_clipped(data):
    norms = []
    for clip in (0.0, 1e-3):
        subject = tiny.trainer(open_dataset(data), CONFIGS["velocity"], replace(FLOWING, clip=clip))
        tiny.steps(subject, 1)
        norms.append(
            float(torch.stack([p.grad.norm() for p in subject.network.parameters() if p.grad is not None]).norm())
        )
    assert norms[1] == pytest.approx(1e-3, rel=1e-3) and norms[0] > 1e-2


# ------------------------------------------------------------------------ coupling


def test_coupling_is_the_best_pairing_of_each_group_and_class():
    generator = torch.Generator().manual_seed(1)
    noise, clean = (torch.randn(10, 1, 2, 2, generator=generator) for _ in range(2))
    classes = torch.tensor([0, 1, 0, 1, 0, 0, 0, 1, 1, 1])

    def best(rows):
        def cost(order):
            return float((noise[list(order)] - clean[rows]).square().sum())

        return dict(zip(rows, min(itertools.permutations(rows), key=cost), strict=True))

    for told in (None, classes):
        found = coupled(noise, clean, 5, told).tolist()
        wanted = {}
        for first in (0, 5):
            rows = range(first, first + 5)
            for part in [list(rows)] if told is None else [[r for r in rows if told[r] == k] for k in (0, 1)]:
                wanted |= best(part)
        assert found == [wanted[row] for row in range(10)]


def test_a_coupled_run_does_not_depend_on_its_cut(data, tmp_path):
    runs = [start(data, tmp_path / "whole", coupling=4, budget="0.016k")]
    runs.append(replace(runs[0], out=str(tmp_path / "cut"), microbatch=4))
    first, second = (load_file(train(one).checkpoint / checkpoints.WEIGHTS) for one in runs)
    assert all(torch.allclose(first[name], second[name], rtol=1e-4, atol=1e-5) for name in first)
    with pytest.raises(InputError, match="coupling: got '4'; a pass of 2 images"):
        train(replace(runs[0], out=str(tmp_path / "no"), microbatch=2))


# ------------------------------------------------------------------------ samplers


def test_dopri5_on_a_gaussian_is_its_closed_form():
    pytest.importorskip("torchdiffeq")
    noise, spread = torch.randn(50, 1, 2, 2, dtype=F64), 0.3
    sampler = replace(parse_sampler("dopri5:1e-7"), sigma_max=1e4, sigma_min=1e-4)
    found = sampler(lambda x, sigma: x * spread**2 / (spread**2 + sigma**2), noise)
    assert torch.allclose(found, spread * noise, rtol=1e-5, atol=1e-6)


def test_dopri5_of_a_network_against_a_thousand_steps_of_euler(models):
    pytest.importorskip("torchdiffeq")
    net = checkpoints.load(models[2]).network
    made = {}
    for name in ("dopri5:1e-6", "ddim:1000", "ddim:500", "heun:60"):
        made[name] = draw_samples(net, make_sampler(name, net, None), np.arange(4) % 3, Seed(0))
    own = float((made["ddim:1000"] - made["ddim:500"]).abs().mean())  # Euler's own error, by Richardson
    fine = 2 * made["ddim:1000"] - made["ddim:500"]
    assert float((made["dopri5:1e-6"] - fine).abs().mean()) < 0.2 * own
    assert float((made["heun:60"] - fine).abs().mean()) < 0.05 * float(fine.abs().mean())


def test_euler_takes_equal_steps_in_the_flows_own_time(models):
    net = checkpoints.load(models[2]).network
    sampler = make_sampler("ddim:8", net, None)
    x = noise = torch.randn(2, 3, 8, 8, dtype=F64)
    for step in range(8):
        t = torch.tensor([step / 8])
        x = x + net.raw(x.float(), t, torch.zeros(2, 3), None).double() / 8
    assert sampler.nfe == 8
    assert torch.allclose(sampler(lambda x, s: net(x, s), noise), x, rtol=0, atol=2e-3)


def test_adaptive_samplers_count_and_double():
    pytest.importorskip("torchdiffeq")
    sampler = parse_sampler("dopri5:1e-5")
    assert isinstance(sampler, Adaptive) and str(sampler) == "dopri5:1e-05" and 50 < sampler.nfe < 300
    assert sampler.evaluations(GuidanceSchedule.parse("full")) == (sampler.nfe, sampler.nfe)
    own, other = sampler.evaluations(GuidanceSchedule.parse("interval:0.1:1"))
    assert 0 < other < own
    assert 1.5 < sampler.doubled().nfe / sampler.nfe < 2.4
    tried = halving.retunings(sampler, 2 * sampler.nfe)
    assert tried[0] == sampler.doubled() and {one.name for one in tried[1:]} == {"heun", "euler"}
    with pytest.raises(InputError, match="guidance"):
        sampler.evaluations(GuidanceSchedule.parse("held:2"))


def test_a_tolerance_that_a_network_does_not_reach_is_named():
    pytest.importorskip("torchdiffeq")
    rough = torch.randn(4, 1, 8, 8, dtype=F64)
    with pytest.raises(InputError, match="sampler: got 'dopri5:1e-09'; its tolerance is not reached within 2000"):
        parse_sampler("dopri5:1e-9")(lambda x, sigma: torch.sin(1e5 * x), rough)


@pytest.mark.parametrize("text", ["dopri5", "dopri5:0", "dopri5:x", "exact", "midpoint:3"])
def test_bad_samplers_are_refused(text):
    with pytest.raises(InputError, match="sampler"):
        parse_sampler(text)


def test_dopri5_says_how_to_get_torchdiffeq(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(InputError, match="torchdiffeq is not installed: pip install"):
        _ = parse_sampler("dopri5:1.5e-5").nfe


# --------------------------------------------------------------------- what is asked


def test_presets_make_flows_and_what_other_runs_record_has_not_changed(data, tmp_path):
    for name in ("digits", "cifar10-uncond", "imagenet64-edm2-xs", "imagenet64-adm"):
        asked = plan(Train(preset=name, objective=FLOW, dry_run=True, augment=0.0))
        assert asked.config["class_name"].startswith("FlowPrecond") and (asked.recipe.p_mean, asked.recipe.p_std) == (
            0,
            1,
        )
        assert "time" not in asked.settings["recipe"]
        other = plan(Train(preset=name, dry_run=True))
        assert not {"time", "coupling", "clip"} & set(other.settings["recipe"]) and "class_name" not in other.config
    assert plan(Train(preset="cifar10-ot-cfm", objective="edm", dry_run=True)).recipe.coupling == 0
    assert plan(Train(preset="cifar10-ot-cfm", batch=64, dry_run=True)).recipe.coupling == 64
    asked = plan(
        start(data, tmp_path / "run", time="logit-normal", p_std=2.0, coupling=4, network="prediction=denoiser")
    )
    assert asked.config["prediction"] == "denoiser" and asked.recipe.record["coupling"] == 4
    assert (asked.recipe.time, asked.recipe.p_mean, asked.recipe.p_std) == ("logit-normal", 0.0, 2.0)


@pytest.mark.parametrize(
    ("given", "argument"),
    [
        ({"objective": "flow"}, "objective: got 'flow'; choose from edm, edm2, flow-matching"),
        ({"objective": "edm", "time": "logit-normal"}, "time"),
        ({"objective": None, "coupling": 4}, "coupling"),
        ({"coupling": 3}, "coupling: got '3'; a number that divides the batch, 8"),
        ({"coupling": -8}, "coupling"),
        ({"coupling": 8, "augment": 0.1}, "coupling"),
        ({"time": "cosine"}, "time"),
        ({"p_mean": 0.5}, "p_mean: got '0.5'; it shapes logit-normal `time`"),
        ({"clip": -1.0}, "clip"),
        ({"network": "prediction=noise"}, "prediction"),
    ],
)
def test_bad_settings_are_refused(data, tmp_path, given, argument):
    with pytest.raises(InputError, match=argument):
        train(start(data, tmp_path / "run", **given))


# ------------------------------------------------------------------------ the verbs


def test_a_checkpoint_says_its_objective_and_goes_on_with_it(models, tmp_path):
    _, data, flow, edm = models
    found = checkpoints.summary(flow)
    assert found.preconditioning == "flow" and found.config["class_name"] == "FlowPrecond"
    assert found.record.training["recipe"]["objective"] == FLOW
    again = {"objective": None, "from_": str(flow), "budget": "0.016k"}
    recipe = plan(start(data, tmp_path / "on", **again)).recipe
    assert (recipe.objective, recipe.coupling, recipe.time, recipe.p_mean) == (FLOW, 8, "logit-normal", 0.0)
    assert plan(start(data, tmp_path / "on", **again, batch=4)).recipe.coupling == 4
    train(start(data, tmp_path / "on", **again))
    with pytest.raises(
        InputError, match=f"from_: got '{flow}'; it was trained with `objective` {FLOW}, which edm cannot"
    ):
        train(start(data, tmp_path / "no", **{**again, "objective": "edm"}))
    with pytest.raises(
        InputError, match=f"from_: got '{edm}'; it was trained with `objective` edm, which {FLOW} cannot"
    ):
        train(start(data, tmp_path / "no", from_=str(edm), budget="0.016k"))
    assert not (tmp_path / "no").exists()


def test_a_stopped_run_goes_on_bit_for_bit(models, tmp_path, monkeypatch):
    _, data, _, _ = models
    asked = {"coupling": 8, "time": "logit-normal", "state_every": "16"}
    whole = train(start(data, tmp_path / "whole", **asked))
    kept, count = session._Session._save_state, iter(range(9))

    def stop(self):
        kept(self)
        if next(count) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(session._Session, "_save_state", stop)
    with pytest.raises(KeyboardInterrupt):
        train(start(data, tmp_path / "broken", **asked))
    monkeypatch.setattr(session._Session, "_save_state", kept)
    broken = train(start(data, tmp_path / "broken", **asked))
    assert checkpoints.summary(whole.checkpoint).sha256 == checkpoints.summary(broken.checkpoint).sha256


COMMON = ["--features", "pixels", "--device", "cpu", "--auxiliary-weights", "raw", "--n", "24"]


@pytest.mark.parametrize("sampler", ["ddim:4", "heun:3", "euler:4", "dopri5:1e-2"])
def test_images_are_generated_and_measured(models, tmp_path, sampler, capsys):
    _, data, flow, _ = models
    if sampler.startswith("dopri5"):
        pytest.importorskip("torchdiffeq")
    words = ["generate", "--base", str(flow), "--seeds", "0-23", "--sampler", sampler, "--device", "cpu"]
    command([*words, "--out", str(tmp_path / "made")])
    made = json.loads((tmp_path / "made/dataset.json").read_text())["source"]
    assert made["sampler"] == str(parse_sampler(sampler)) and made["nfe"] > 0
    words = ["evaluate", "--images", str(tmp_path / "made"), "--reference", data]
    command([*words, "--features", "pixels", "--device", "cpu"])
    assert "pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("verb", "words"),
    [
        ("sims", ["--synthetic", "24", "--budget", "16", "--search", "24", "--repeats", "2", "--omega", "1"]),
        ("loop", ["--trials", "1", "--generations", "2", "--budget", "16", "--method", "standard,sims"]),
        ("retrain", ["--trials", "1", "--generations", "2", "--ratio", "1", "--retrain-budget", "16"]),
        (
            "leaderboard",
            ["--trials", "2", "--auxiliary-size", "24", "--budget", "16", "--search", "40", "--omega", "1"],
        ),
    ],
)
def test_experiments_take_a_flow(models, tmp_path, verb, words, monkeypatch):
    _, data, flow, _ = models
    monkeypatch.setitem(PRESETS, "tiny", tiny.preset(tiny.EDM, tiny.recipe(budget="0.08k", lr=1e-2)))
    monkeypatch.setattr(halving, "RHOS", (5.0,))
    monkeypatch.setattr(halving, "TOPS", (1.0,))
    common = [verb, "--data", data, "--base", str(flow), *COMMON, "--sampler", "heun:2", *words]
    command([*common, "--dry-run"])
    command([*common, "--out", str(tmp_path / verb)])
    made = [checkpoints.summary(path.parent) for path in (tmp_path / verb).glob("f*/snapshots/*/raw/model.json")]
    assert made and all(one.preconditioning == "flow" for one in made)
    assert all(one.record.training["recipe"]["coupling"] == 8 for one in made)
    if verb != "sims":
        with pytest.raises(InputError, match=r"base: got .* it was trained with .*objective.* flow-matching"):
            command([*common, "--objective", "edm", "--out", str(tmp_path / "no")])


def test_an_outlook_of_two_flows(models, tmp_path, capsys):
    _, data, flow, _ = models
    other = train(start(data, tmp_path / "other", objective=None, from_=str(flow), budget="0.016k")).raw
    words = ["outlook", "--data", data, "--base", str(flow), "--auxiliary", str(other), "--n", "60"]
    command([*words, "--features", "pixels", "--sampler", "heun:2", "--device", "cpu"])
    assert capsys.readouterr().out


def test_recipes_refuse_what_is_not_theirs():
    with pytest.raises(InputError, match="coupling"):
        Recipe(coupling=8)
