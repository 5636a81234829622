"""Generating: what an image depends on, labels, guidance, data sets, and going on after a kill."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from sims_core.errors import InputError
from sims_core.guidance import GuidanceSchedule
from sims_core.sampling import Churn, SampleNoise, Sampler, edm_sigmas
from sims_core.seeds import Seed
from sims_image.commands import run as command
from sims_image.data import writing
from sims_image.data.dataset import open_dataset, to_pixels
from sims_image.models import checkpoints
from sims_image.models.presets import PRESETS
from sims_image.sampling import generation
from sims_image.sampling.engine import Engine
from sims_image.sampling.generate import choose_sampler, request
from sims_image.sampling.generation import Request, stream, write
from sims_image.sampling.guided import error_over_signal, load_model
from sims_image.sampling.options import Generate
from sims_image.sampling.seeds import Labels, Seeds
from sims_image.training.options import Train
from sims_image.training.plan import plan
from tests.image import ranks, tiny
from tests.image.ranks import environment, finish

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    data = checkpoints.Data("tiny", None, ("ant", "bee", "cat"), (3, 8, 8))
    return tiny.pair(tmp_path_factory.mktemp("pair"), checkpoints.Record(data=data))


def images(model, seeds, *, batch=8, labels=None, steps=3, root=0):
    parts = list(stream(model, seeds, batch=batch, sampler=Sampler("heun", steps), labels=labels, root=root))
    return np.concatenate([p[1] for p in parts]), np.concatenate([p[2] for p in parts])


def floats(model, seeds, batch):
    """As `images`, before pixels are cut off."""
    found = []
    sampler = Sampler("heun", 3)
    for first in range(0, len(seeds), batch):
        wanted = seeds[first : first + batch]
        noise = SampleNoise(Seed(0), wanted)
        start = noise((len(wanted), *model.shape))
        found.append(sampler(model.denoiser(torch.tensor(wanted) % 3), start))
    return torch.cat(found)


# --------------------------------------------------------------- what an image is


def test_an_image_is_a_function_of_its_seed(pair):
    model = load_model(pair[0], auxiliary=pair[1], omega=1.5)
    seeds = list(range(40, 61))
    whole, labels = images(model, seeds)
    order = np.random.default_rng(0).permutation(len(seeds))
    shuffled, mixed = images(model, [seeds[i] for i in order])
    assert np.array_equal(shuffled, whole[order]) and np.array_equal(mixed, labels[order])
    alone, label = images(model, [seeds[5]])
    assert np.array_equal(alone[0], whole[5]) and label[0] == labels[5]
    other, _ = images(model, seeds, root=1)
    assert not np.array_equal(other, whole)


def test_batches_round_alike(pair):
    model = load_model(pair[0], auxiliary=pair[1], omega=1.5)
    seeds = list(range(64))
    all_ = floats(model, seeds, 64)
    for batch, count in ((1, 10), (7, 63)):
        other = floats(model, seeds[:count], batch)
        assert float((other - all_[:count]).norm() / all_[:count].norm()) < 1e-5
    own, _ = images(model, seeds, batch=64, labels=Labels("balanced", 3))
    assert np.array_equal(own, to_pixels(all_).numpy())  # the stream is these samples


def factor(name, levels, variance):
    """What a solver's steps multiply x by on N(0, variance), elementwise: x - D(x, s) = x s^2 / (variance + s^2)."""
    found = torch.ones_like(variance)
    for s, t in itertools.pairwise(levels.tolist()):
        slope = s / (variance + s**2)
        end = 1 + (t - s) * slope
        if name == "heun" and t > 0:
            end = 1 + (t - s) * (slope + end * t / (variance + t**2)) / 2
        found = found * end
    return found


#: variances from pixel to pixel of images 3 x 8 x 8, over two decades
VARIANCE = torch.logspace(-2.5, -0.5, 192, dtype=torch.float64).reshape(3, 8, 8)


def exact(x, sigma):
    return x * VARIANCE / (VARIANCE + sigma**2)


@pytest.mark.parametrize(("name", "steps", "order"), [("heun", 40, 2), ("euler", 160, 1)])
def test_samplers_draw_a_gaussian_in_image_shape(name, steps, order):
    """Against the solver's own product of factors, and against the exact flow, whose error falls at the order."""
    noise = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flow, errors = (VARIANCE / (VARIANCE + 80**2)).sqrt(), []
    for count in (steps, 2 * steps):
        sampler = Sampler(name, count)
        found = sampler(exact, noise)
        by_hand = factor(name, sampler.sigmas(), VARIANCE) * 80 * noise
        torch.testing.assert_close(found, by_hand, rtol=1e-9, atol=1e-12)
        errors.append(float((found / (80 * noise * flow) - 1).abs().max()))
    assert errors[0] < 0.05 and math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.35)


def churned(levels, churn):
    """The variance that Heun with churn draws: noise is added, then the step multiplies."""
    found = torch.full_like(VARIANCE, levels[0] ** 2)
    for s, t in itertools.pairwise(levels):
        if churn.minimum <= s <= churn.maximum:
            raised = s * (1 + min(churn.amount / (len(levels) - 1), math.sqrt(2) - 1))
            found, s = found + (raised**2 - s**2) * churn.noise**2, raised
        found = found * factor("heun", torch.tensor([s, t], dtype=torch.float64), VARIANCE) ** 2
    return found


def test_churn_draws_a_gaussian_in_image_shape():
    """Against the recursion of the variance, and that against the target, which it reaches with many steps."""
    churn, count = Churn(8, 0.05, 50, 1.01), 2000
    sampler, draws = Sampler("heun", 12, churn=churn), torch.Generator().manual_seed(1)

    def normal(shape):
        return torch.randn(tuple(shape), generator=draws, dtype=torch.float64)

    found = sampler(exact, normal((count, 3, 8, 8)), normal)
    expected = churned(sampler.sigmas().tolist(), churn)
    scores = (found.square().mean(0) / expected - 1) * math.sqrt(count / 2)  # standard normal, one a pixel
    assert float(scores.abs().max()) < 4.5 and abs(float(scores.mean())) < 4.5 / math.sqrt(192)
    limit = churned(edm_sigmas(2000).tolist(), Churn(8, 0.05, 50, 1.0))
    torch.testing.assert_close(limit, VARIANCE, rtol=0.01, atol=0)


# ------------------------------------------------------------------------ labels


def test_labels_are_a_function_of_seed_and_index(tmp_path):
    data = tiny.write_data(tmp_path / "d.zip", count=24)
    shares = Labels.parse("", 3, data=data)
    assert shares is not None and shares.policy == "data" and shares.shares == (1 / 3, 1 / 3, 1 / 3)
    skewed = Labels("data", 3, shares=(0.7, 0.0, 0.3))
    drawn = skewed(Seed(3), range(20_000))
    assert np.bincount(drawn, minlength=3) / 20_000 == pytest.approx([0.7, 0, 0.3], abs=0.012)
    assert np.array_equal(skewed(Seed(3), range(500, 600)), drawn[500:600])
    assert not np.array_equal(skewed(Seed(4), range(600)), drawn[:600])
    uniform = Labels("uniform", 4)(Seed(0), range(20_000))
    assert np.bincount(uniform) / 20_000 == pytest.approx([0.25] * 4, abs=0.012)
    assert Labels("balanced", 3)(Seed(0), [4, 5, 6]).tolist() == [1, 2, 0]
    named = Labels.parse("cat,0", 3, names=["ant", "bee", "cat"])
    assert named is not None and named(Seed(0), [0, 1, 2]).tolist() == [2, 0, 2]
    assert Labels.parse("", 0) is None


@pytest.mark.parametrize("text", ["dog", "3", "data", "-1"])
def test_labels_that_are_not_there(text):
    with pytest.raises(InputError, match=r"^labels"):
        Labels.parse(text, 3, names=["ant", "bee", "cat"])


def test_seeds():
    seeds = Seeds.parse("0-3,10, 20-21")
    assert list(seeds) == [0, 1, 2, 3, 10, 20, 21] and len(seeds) == 7 and str(seeds) == "0-3,10,20-21"
    assert Seeds.parse(str(seeds)) == seeds
    assert seeds.overlap(Seeds.span(4, 6)) is None and seeds.overlap(Seeds.span(4, 7)) == 10
    for bad in ("", "3-1", "0-5,5", "1:3", "a", "-2"):
        with pytest.raises(InputError, match=r"^seeds"):
            Seeds.parse(bad)


# ---------------------------------------------------------------------- guidance


def test_omega_zero_is_the_base_and_one_is_not(pair):
    base, _ = images(load_model(pair[0]), range(12))
    zero, _ = images(load_model(pair[0], auxiliary=pair[1], omega=0.0), range(12))
    one, _ = images(load_model(pair[0], auxiliary=pair[1], omega=1.0), range(12))
    assert np.array_equal(zero, base) and not np.array_equal(one, base)
    outside, _ = images(
        load_model(pair[0], auxiliary=pair[1], omega=1.0, schedule=GuidanceSchedule(interval=(200, 300))), range(12)
    )
    assert np.array_equal(outside, base)


def test_sims_is_autoguidance_of_weight_one_plus_omega(pair):
    sims, _ = images(load_model(pair[0], auxiliary=pair[1], omega=1.5), range(8))
    guide, _ = images(load_model(pair[0], guide=pair[1], weight=2.5), range(8))
    assert np.array_equal(sims, guide)


def test_the_combination_is_the_published_line(pair):
    model = load_model(pair[0], auxiliary=pair[1], omega=1.5)
    x, sigma = torch.randn(4, 3, 8, 8, dtype=torch.float64), torch.tensor(1.3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    hot = torch.nn.functional.one_hot(labels, 3).float()
    first, second = (checkpoints.load(p).network(x, sigma, hot) for p in pair)
    assert torch.allclose(model.denoiser(labels)(x, sigma), 2.5 * first - 1.5 * second, rtol=1e-4, atol=1e-5)


def test_neon_is_hand_merged_weights(pair, tmp_path):
    found = [checkpoints.load(p) for p in pair]
    weights = [f.network.state_dict() for f in found]
    by_hand = checkpoints.load(pair[0]).network
    by_hand.load_state_dict({k: 2.5 * weights[0][k] - 1.5 * weights[1][k] for k in weights[0]})
    merged = load_model(pair[0], auxiliary=pair[1], omega=1.5, merge=True)
    for name, value in merged.network.state_dict().items():
        assert torch.allclose(value, by_hand.state_dict()[name], rtol=1e-5, atol=1e-6), name
    checkpoints.save(tmp_path / "hand", by_hand, checkpoints.Record())
    ours, _ = images(merged, range(8))
    theirs, _ = images(load_model(str(tmp_path / "hand")), range(8))
    assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1
    assert merged.evaluations(Sampler("heun", 18)) == (35, 0)


def test_evaluations_are_counted(pair):
    both = load_model(pair[0], auxiliary=pair[1], omega=1.5)
    assert both.evaluations(Sampler("heun", 18)) == (35, 35)
    limited = load_model(pair[0], auxiliary=pair[1], omega=1.5, schedule=GuidanceSchedule(interval=(1.0, 5.0)))
    levels = edm_sigmas(18)
    inside = int(((levels >= 1) & (levels <= 5)).sum())
    assert limited.evaluations(Sampler("heun", 18)) == (35, 2 * inside)  # at a step's start, and at its end


def test_low_precision_says_what_it_costs(pair, tmp_path):
    exact = load_model(pair[0], auxiliary=pair[1], omega=1.0)
    assert error_over_signal(exact) == 0
    rough = error_over_signal(load_model(pair[0], auxiliary=pair[1], omega=1.0, dtype="bf16"))
    assert 0 < rough < 1
    near = checkpoints.load(pair[0]).network  # as close to its base as a short fine-tune
    with torch.no_grad():
        for value in near.parameters():
            value.mul_(1 + 1e-4)
    checkpoints.save(tmp_path / "near", near, checkpoints.Record())
    assert error_over_signal(load_model(pair[0], auxiliary=str(tmp_path / "near"), omega=1.0, dtype="bf16")) > 1
    asked = ["--base", pair[0], "--auxiliary", str(tmp_path / "near"), "--omega", "1", "--dtype", "bf16"]
    with pytest.raises(InputError, match=r"--dtype.*error over signal"):
        command(["generate", *asked, "--out", str(tmp_path / "x"), "--sampler", "heun:2", "--device", "cpu"])
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"omega": 1.0}, "^omega"),
        ({"auxiliary": True}, "^omega"),
        ({"auxiliary": True, "guide": True, "omega": 1.0}, "^guide"),
        ({"auxiliary": True, "omega": float("nan")}, "^omega"),
        ({"auxiliary": True, "weight": 2.0}, "^weight"),
        ({"guide": True, "weight": 2.0, "omega": 1.0}, "^weight"),
        ({"guide": True, "omega": 2.0, "merge": True}, "^merge"),
        ({"merge": True}, "^merge"),
        ({"schedule": GuidanceSchedule(interval=(1.0, 2.0))}, "^guidance"),
        ({"schedule": GuidanceSchedule(2)}, "^guidance"),
        ({"schedule": GuidanceSchedule(1, hold=False)}, "^guidance: got 'predictor'"),
        ({"auxiliary": True, "omega": 1.0, "merge": True, "schedule": GuidanceSchedule(2)}, "^merge.*guidance. held:2"),
        ({"engine": Engine("overlapped")}, "^pair"),
        ({"auxiliary": True, "omega": 1.0, "merge": True, "engine": Engine("overlapped")}, "^pair"),
        ({"auxiliary": True, "omega": 1.0, "engine": Engine(cuda_graph=True)}, "^cuda_graph"),
        ({"engine": Engine(cuda_graph=True)}, "^cuda_graph"),
        ({"dtype": "int8"}, "^dtype"),
    ],
)
def test_contradictions_are_refused(pair, given, said):
    for name in ("auxiliary", "guide"):
        if name in given:
            given = {**given, name: pair[1]}
    with pytest.raises(InputError, match=said):
        load_model(pair[0], **given)


def test_networks_that_do_not_go_together(pair, tmp_path):
    other = {**tiny.EDM, "model_channels": 16}
    tiny.checkpoint(tmp_path / "wide", other)
    tiny.checkpoint(tmp_path / "blind", {**tiny.EDM, "label_dim": 0})
    tiny.checkpoint(tmp_path / "grey", {**tiny.EDM, "img_channels": 1})
    for name, said in (("wide", "model_channels"), ("blind", "0 classes"), ("grey", "1x8x8")):
        with pytest.raises(InputError, match=f"^auxiliary.*{said}"):
            load_model(pair[0], auxiliary=str(tmp_path / name), omega=1.0)
    load_model(pair[0], guide=str(tmp_path / "wide"), omega=1.0)  # a guide may be of another kind


# --------------------------------------------------------------------- data sets


def generate(pair, out, *words):
    given = ["--base", pair[0], "--auxiliary", pair[1], "--omega", "1.5", "--sampler", "heun:3", "--batch", "8"]
    command(["generate", *given, "--out", str(out), "--device", "cpu", *words])
    return open_dataset(out, verify=True)


def test_a_data_set_that_train_reads(pair, tmp_path, capsys):
    made = generate(pair, tmp_path / "made", "--seeds", "5-24,100", "--seed", "2")
    model = load_model(pair[0], auxiliary=pair[1], omega=1.5)
    seeds = [*range(5, 25), 100]
    sampler = choose_sampler(model, "heun:3")
    parts = list(stream(model, seeds, batch=8, sampler=sampler, labels=Labels("uniform", 3), root=2))
    assert np.array_equal(made.images(slice(None)), np.concatenate([p[1] for p in parts]))
    assert made.labels is not None and np.array_equal(made.labels, np.concatenate([p[2] for p in parts]))
    assert made.classes == ["ant", "bee", "cat"] and made.name == "made"
    source = made.record["source"]
    hashes = [checkpoints.summary(p).sha256 for p in pair]
    assert [source["base"], source["auxiliary"]] == hashes and source["omega"] == 1.5
    assert (source["seeds"], source["seed"], source["nfe"], source["nfe_base"]) == ("5-24,100", 2, 10, 5)
    with Image.open(tmp_path / "made/sheet.png") as sheet:
        assert sheet.width > 100
    assert not list(tmp_path.glob("*.generating")) and "21 images" in capsys.readouterr().out
    assert len(plan(Train(data=str(made.path), from_=pair[0], preset="cifar10-tiny", budget="1k")).data or []) == 21


def test_it_recognises_its_own_and_refuses_others(pair, tmp_path):
    made = generate(pair, tmp_path / "made", "--seeds", "0-4")
    before = (tmp_path / "made/dataset.json").stat().st_mtime_ns
    assert generate(pair, tmp_path / "made", "--seeds", "0-4").sha256 == made.sha256
    assert (tmp_path / "made/dataset.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match=r'--out.*seeds: "0-4" there, "0-5" here'):
        generate(pair, tmp_path / "made", "--seeds", "0-5")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/letter.txt").write_text("dear")
    with pytest.raises(InputError, match="--out"):
        generate(pair, tmp_path / "other", "--seeds", "0-4")
    assert (tmp_path / "other/letter.txt").read_text() == "dear"


def test_unconditional_images_have_no_labels_and_latents_stay_floats(tmp_path):
    tiny.checkpoint(tmp_path / "blind", {**tiny.EDM, "label_dim": 0, "img_channels": 4})
    words = ["generate", "--base", str(tmp_path / "blind"), "--sampler", "euler:2", "--seeds", "0-9"]
    command([*words, "--out", str(tmp_path / "made"), "--batch", "4", "--device", "cpu"])
    made = open_dataset(tmp_path / "made")
    assert made.labels is None and made.dtype == np.float32 and made.shape == (4, 8, 8)
    with pytest.raises(InputError, match="--labels"):
        command([*words, "--out", str(tmp_path / "more"), "--labels", "balanced", "--device", "cpu"])


def test_a_diverged_network_is_not_silent(pair, tmp_path):
    broken = checkpoints.load(pair[0])
    with torch.no_grad():
        next(iter(broken.network.parameters())).fill_(float("inf"))
    model = load_model(pair[0])
    model.network.load_state_dict(broken.network.state_dict())
    with pytest.raises(InputError, match="not finite"):
        list(stream(model, range(4), batch=4, sampler=Sampler("heun", 2)))
    asked = Request(model, Seeds.span(0, 4), Sampler("heun", 2), Labels("uniform", 3), batch=4)
    with pytest.raises(InputError, match="not finite"):
        write(asked, tmp_path / "made", processes=tiny.ALONE)
    assert not (tmp_path / "made").exists()


def test_dry_run_says_the_cost_and_writes_nothing(pair, tmp_path, capsys):
    command(["generate", "--base", pair[0], "--guide", pair[1], "--weight", "2", "--seeds", "0-49999",
             "--out", str(tmp_path / "made"), "--dry-run", "--device", "cpu"])  # fmt: skip
    said = capsys.readouterr().out
    assert "70 per image" in said and "3,500,000 in all" in said and "autoguidance, omega 1" in said
    assert not list(tmp_path.iterdir())


def test_a_dry_run_refuses_what_the_run_would(pair, tmp_path, capsys):
    words = ["generate", "--base", pair[0], "--auxiliary", pair[1], "--seeds", "0-3", "--sampler", "heun:2"]
    words += ["--device", "cpu", "--batch", "4", "--out", str(tmp_path / "made")]
    command([*words, "--omega=-1"])
    note = "note: omega -1 is below 0: it moves toward the auxiliary, and -1 is the auxiliary alone"
    assert capsys.readouterr().out.count(note) == 1
    command([*words, "--omega=-1", "--dry-run"])
    assert note in capsys.readouterr().out
    command([*words[:-1], str(tmp_path / "far"), "--omega=1e6", "--dry-run"])
    assert "note: omega 1e+06 is far beyond what is of use" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"--out: .*other settings \(omega: -1.0 there, 1.0 here\)"):
        command([*words, "--omega", "1", "--dry-run"])
    assert note not in capsys.readouterr().out


def test_a_mistyped_start_does_not_block_the_corrected_one(pair, tmp_path, capsys):
    words = ["generate", "--base", pair[0], "--seeds", "0-3", "--device", "cpu", "--out", str(tmp_path / "made")]
    typed = [*words, "--sampler", "heun:3", "--batch", "16"]
    ranks.killed("sims_image", typed, ending=".npz", count=0)
    work = tmp_path / "made.generating"
    assert work.exists()
    command([*words, "--sampler", "heun:2"])  # nothing was done there, so nothing is lost
    assert not work.exists()
    assert open_dataset(tmp_path / "made").record["source"]["batch"] == 4  # no more is computed than is asked for
    words[-1] = str(tmp_path / "other")
    ranks.killed("sims_image", [*words, "--seeds", "0-299", "--sampler", "heun:3"], ending=".npz", count=1)
    with pytest.raises(InputError, match=r"other\.generating'; it holds a run with other settings .*; --restart"):
        command([*words, "--sampler", "heun:2"])
    command([*words, "--sampler", "heun:2", "--restart"])
    assert len(open_dataset(tmp_path / "other")) == 4 and not list(tmp_path.glob("*.generating"))


def test_preset_churn_is_used_unless_a_sampler_is_named(pair, tmp_path, monkeypatch):
    from dataclasses import replace

    monkeypatch.setitem(PRESETS, "tiny", replace(tiny.preset(), churn=(40, 0.05, 50, 1.003)))
    tiny.checkpoint(tmp_path / "base", preset="tiny")
    model = load_model(str(tmp_path / "base"))
    assert str(choose_sampler(model)) == "heun:3" and choose_sampler(model).churn is not None
    assert choose_sampler(model, "heun:3").churn is None and choose_sampler(model, churn="none").churn is None
    found = choose_sampler(model, "euler:5", churn="10,0,1,1", rho=5.0, sigma_max=20.0)
    assert found.churn is not None and (found.rho, found.sigma_max) == (5, 20)
    asked = request(Generate(base=str(tmp_path / "base"), out="x", batch=4), CPU)
    churned = [np.concatenate([p[1] for p in stream(asked.model, s, batch=4, sampler=asked.sampler)])
               for s in (range(8), range(7, -1, -1))]  # fmt: skip
    assert np.array_equal(churned[0], churned[1][::-1])
    for bad in ("1,2", "a,b,c,d", "-1,0,1,1"):
        with pytest.raises(InputError, match=r"^churn"):
            choose_sampler(model, churn=bad)
    with pytest.raises(InputError, match=r"^sampler"):
        choose_sampler(model, "exact")


# ------------------------------------------------------- killed, and in two processes


@pytest.mark.parametrize("where", ["a shard", "the images"])
def test_a_full_disk_loses_nothing(pair, tmp_path, monkeypatch, where):
    whole = generate(pair, tmp_path / "whole", "--seeds", "0-23")
    monkeypatch.setattr(generation, "SHARD", 8)
    calls, place, name = [], *{"a shard": (generation.np, "savez"), "the images": (writing.Growing, "append")}[where]
    kept = getattr(place, name)

    def full(*given, **options):
        calls.append(given)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return kept(*given, **options)

    with monkeypatch.context() as patch:
        patch.setattr(place, name, full)
        with pytest.raises(InputError, match=r"--out.*the disk is full.*make room and repeat the command"):
            generate(pair, tmp_path / "made", "--seeds", "0-23")
    shards = list((tmp_path / "made.generating/shards").glob("[0-9]*.npz"))
    assert not (tmp_path / "made").exists() and len(shards) == (1 if where == "a shard" else 3)
    before = {path: path.stat().st_mtime_ns for path in shards}
    drawn = []
    monkeypatch.setattr(generation, "stream", lambda *a, **k: drawn.append(a[1]) or stream(*a, **k))
    made = generate(pair, tmp_path / "made", "--seeds", "0-23")
    assert made.sha256 == whole.sha256 and len(drawn) == 3 - len(before)  # what was there was not drawn again


def words(pair, out):
    given = ["--base", pair[0], "--auxiliary", pair[1], "--omega", "1.5", "--sampler", "heun:3", "--batch", "32"]
    given += ["--guidance", "held:2+interval:0.01:60"]  # what is held must not outlive its batch
    return ["generate", *given, "--seeds", "0-599", "--out", str(out), "--device", "cpu"]


def launch(pair, out, world=1):
    return ranks.launch(["-m", "sims_image", *words(pair, out)], world)


def test_killed_and_gone_on_by_two_is_the_same(pair, tmp_path):
    command(words(pair, tmp_path / "whole"))
    ranks.killed("sims_image", words(pair, tmp_path / "broken"), ending=".npz", count=1)
    assert not (tmp_path / "broken").exists()
    finish(launch(pair, tmp_path / "broken", 2))
    one, other = (open_dataset(tmp_path / name, verify=True) for name in ("whole", "broken"))
    assert one.sha256 == other.sha256
    assert (tmp_path / "whole/sheet.png").read_bytes() == (tmp_path / "broken/sheet.png").read_bytes()
    assert not list(tmp_path.glob("*.generating"))


@pytest.mark.slow
def test_torchrun(pair, tmp_path):
    command(words(pair, tmp_path / "whole"))
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "sims_image"]
    subprocess.run([*start, *words(pair, tmp_path / "two")], env=environment(), check=True, timeout=300)
    assert open_dataset(tmp_path / "two").sha256 == open_dataset(tmp_path / "whole").sha256
    assert json.loads((tmp_path / "two/dataset.json").read_text())["source"]["seeds"] == "0-599"
