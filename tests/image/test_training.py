"""A training step against mathematics: loss, gradients, optimiser, averages, and what must not matter."""

from __future__ import annotations

import copy
import math
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from sims_core.errors import InputError
from sims_core.seeds import Seed
from sims_image.models.networks.edm2 import MPConv
from sims_image.training.augment import Augmentation
from sims_image.training.batches import Order
from sims_image.training.objectives import OBJECTIVES, Loss, make_objective
from sims_image.training.trainer import PATIENCE, DivergedError, Watch
from tests.image import ranks, tiny
from tests.image.networks import relative


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip")


def one_batch(data, config=tiny.EDM, augment=None):
    source = tiny.feed(data, config, augment=augment)
    return source.ready(source.read(0, 0))


# ------------------------------------------------------------ loss and gradients


def float64_loss(net, ready, recipe) -> Tensor:
    """EDM's loss of a batch by its formulas, in float64: mean over images, sum over pixels. Of the network, only the
    U-Net is used (EDM2's computes norms in float32 itself).
    """
    raw = copy.deepcopy(net).train()
    y, n = ready.clean.double(), ready.noise.double()
    sigma = torch.exp(recipe.p_mean + recipe.p_std * ready.level.double())[:, None, None, None]
    sd = 0.5
    x = y + sigma * n
    labels = ready.conditions["class_labels"].double()
    c_noise = sigma.flatten().log() / 4
    c_in, root = 1 / (sigma**2 + sd**2) ** 0.5, (sigma**2 + sd**2) ** 0.5
    if hasattr(raw, "model"):
        raw = raw.double()
        inner = raw.model(c_in * x, c_noise, labels, ready.conditions["augment_labels"].double())
    else:
        inner = raw.unet((c_in * x).float(), c_noise.float(), labels.float()).double()
    denoised = sd**2 / (sigma**2 + sd**2) * x + sigma * sd / root * inner
    error = (sigma**2 + sd**2) / (sigma * sd) ** 2 * (denoised - y) ** 2
    if recipe.objective == "edm2":
        u = raw.logvar_linear(raw.logvar_fourier(c_noise.float())).double()[:, :, None, None]
        error = error / torch.exp(u) + u
    loss = error.sum() / len(y)
    loss.backward()
    return loss.detach() / y[0].numel(), {name: p.grad for name, p in raw.named_parameters()}


@pytest.mark.parametrize("name", ["edm", "edm2"])
def test_loss_and_gradients_are_the_papers(data, name):
    config = tiny.EDM if name == "edm" else tiny.EDM2
    recipe = tiny.recipe(objective=name, p_mean=-0.8, p_std=1.6)
    augment = Augmentation(0.5) if name == "edm" else None
    expected, gradients = float64_loss(tiny.network(config), one_batch(data, config, augment), recipe)
    subject = tiny.trainer(data, config, recipe, augment=augment)
    found = tiny.steps(subject, 1)[0]
    assert found == pytest.approx(float(expected), rel=1e-5)
    whole = torch.cat([g.flatten() for g in gradients.values()])
    for key, p in subject.network.named_parameters():
        found, right = p.grad.double(), gradients[key].double()
        torch.testing.assert_close(found, right, rtol=2e-3, atol=3e-5 * float(whole.abs().max()), msg=key)
    assert whole.abs().max() > 1e-2 and all(g.abs().max() > 0 for g in gradients.values() if g.ndim > 1)


def test_level_and_noise_have_the_recipes_distribution(data):
    source = tiny.feed(data, batch=8)
    ready = [source.ready(source.read(step, 0)) for step in range(150)]
    levels = torch.cat([r.level for r in ready])
    objective = make_objective(tiny.recipe(p_mean=-0.8, p_std=1.6), tiny.network())
    sigma = objective(lambda x, s, **_: x, ready[0].clean, ready[0].level, ready[0].noise, {}).level
    torch.testing.assert_close(sigma, torch.exp(-0.8 + 1.6 * ready[0].level))
    assert abs(float(levels.mean())) < 4 / math.sqrt(1200) and abs(float(levels.std()) - 1) < 4 / math.sqrt(2400)
    noise = torch.stack([r.noise for r in ready])
    assert abs(float(noise.mean())) < 4 / math.sqrt(noise.numel())
    assert abs(float(noise.var()) - 1) < 4 * math.sqrt(2 / noise.numel())


def test_log_variance_is_best_at_the_log_of_the_error(data):
    """exp(-u) e + u, with e the weighted error at each noise level: 1 + ln e at u = ln e, and more elsewhere."""
    ready, u = one_batch(data, tiny.EDM2), torch.linspace(-1, 1, 8)

    def zero(x, sigma, return_logvar=False, **_):
        return (0 * x, u[:, None, None, None]) if return_logvar else 0 * x

    arguments = ready.clean, ready.level, ready.noise, ready.conditions
    sigma, error = (OBJECTIVES["edm"](tiny.recipe(), 0.5)(zero, *arguments)[i] for i in (1, 0))
    weight = (sigma**2 + 0.25) / (0.5 * sigma) ** 2
    e = weight * ready.clean.square().mean((1, 2, 3))
    torch.testing.assert_close(error.mean((1, 2, 3)), e)
    objective = OBJECTIVES["edm2"](tiny.recipe(), 0.5)
    torch.testing.assert_close(objective(zero, *arguments).value.mean((1, 2, 3)), e / u.exp() + u)
    u = e.log()
    torch.testing.assert_close(objective(zero, *arguments).value.mean((1, 2, 3)), 1 + e.log())


def test_edm2_can_learn_without_its_log_variance(data):
    subject = tiny.trainer(data, tiny.EDM2, tiny.recipe(lr=1e-2))
    before = subject.network.logvar_linear.weight.detach().clone()
    losses = tiny.steps(subject, 30)
    assert torch.equal(subject.network.logvar_linear.weight, before) and np.mean(losses[-5:]) < np.mean(losses[:5])
    assert subject.averages.weights(subject.averages.profiles[0])["logvar_linear.weight"].equal(before)


def test_edm2_keeps_its_weights_normalised(data):
    subject = tiny.trainer(data, tiny.EDM2, tiny.recipe(objective="edm2"))
    tiny.steps(subject, 3)
    with torch.no_grad():  # the next call normalises what the optimiser has moved
        subject.network(torch.zeros(1, 3, 8, 8), torch.ones(1))
    for layer in subject.network.modules():
        if isinstance(layer, MPConv):
            rows = layer.weight.flatten(1)
            torch.testing.assert_close(rows.square().mean(1).sqrt(), torch.ones(len(rows)), rtol=1e-3, atol=1e-3)


def test_an_objective_can_be_added(data, monkeypatch):
    """Another objective is one function and one entry: here plain regression of the clean image at one level."""

    def fixed(recipe, sigma_data):
        def objective(network, clean, level, noise, conditions):
            sigma = torch.ones_like(level)
            return Loss((network(clean + noise, sigma, **conditions) - clean) ** 2, sigma)

        return objective

    monkeypatch.setitem(OBJECTIVES, "fixed", fixed)
    losses = tiny.steps(tiny.trainer(data, settings=tiny.recipe(objective="fixed", lr=3e-3)), 40)
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_objectives_are_checked(data):
    with pytest.raises(InputError, match="choose from edm, edm2"):
        tiny.trainer(data, settings=tiny.recipe(objective="edm3"))
    with pytest.raises(InputError, match="log-variance"):
        tiny.trainer(data, settings=tiny.recipe(objective="edm2"))


# ---------------------------------------------------------- optimiser and averages


def test_adam_steps_as_published(data):
    """Three steps against Adam written out in float64 on the trainer's own gradients."""
    recipe = tiny.recipe(lr=1e-2, lr_rampup=20, beta2=0.99)
    subject = tiny.trainer(data, settings=recipe)
    name, p = list(subject.network.named_parameters())[3]
    weight, first, second = p.detach().double().clone(), 0.0, 0.0
    for t in range(1, 4):
        tiny.steps(subject, 1)
        g = p.grad.double()
        first, second = 0.9 * first + 0.1 * g, 0.99 * second + 0.01 * g**2
        rate = 1e-2 * min((t - 1) * 8 / 20, 1)  # images seen before the step
        weight -= rate * (first / (1 - 0.9**t)) / ((second / (1 - 0.99**t)).sqrt() + 1e-8)
        torch.testing.assert_close(p.detach().double(), weight, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["halflife", "power"])
def test_averages_follow_the_weights(data, kind):
    recipe = tiny.recipe(ema=kind, ema_halflife=20, ema_rampup=0.3, ema_widths=(0.1, 0.2))
    subject = tiny.trainer(data, settings=recipe)
    key = "model.enc.8x8_conv.weight"
    weight = dict(subject.network.named_parameters())[key]
    expected = [weight.detach().double().clone() for _ in subject.averages.profiles]
    for step in range(6):
        tiny.steps(subject, 1)
        for i, profile in enumerate(subject.averages.profiles):
            if kind == "halflife":
                halflife = min(20, 0.3 * step * 8)
                keep = 0.5 ** (8 / halflife) if halflife else 0.0
            else:
                gamma = np.roots([1, 7, 16 - profile.width**-2, 12 - profile.width**-2]).real.max()
                keep = (1 - 1 / (step + 1)) ** (gamma + 1)
            expected[i] = keep * expected[i] + (1 - keep) * weight.detach().double()
    for profile, value in zip(subject.averages.profiles, expected, strict=True):
        torch.testing.assert_close(subject.averages.weights(profile)[key].double(), value, rtol=1e-5, atol=1e-6)


def test_training_lowers_the_loss(data):
    losses = tiny.steps(tiny.trainer(data, settings=tiny.recipe(lr=5e-3)), 50)
    assert np.mean(losses[-10:]) < 0.6 * np.mean(losses[:10])


# -------------------------------------------------------------- what must not matter


#: Norm-wise, sums of some thousand float32 terms in another order: a processor's kernels choose it. (2e-5 is seen.)
ROUNDING = 1000 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("passes", [2, 8])
@pytest.mark.parametrize("augment", [None, Augmentation(0.5)])
def test_accumulation_is_one_large_batch(data, passes, augment):
    whole, parts = (tiny.trainer(data, passes=n, augment=augment) for n in (1, passes))
    assert tiny.steps(parts, 1) == pytest.approx(tiny.steps(whole, 1), rel=ROUNDING)
    gradients = [torch.cat([p.grad.flatten() for p in t.network.parameters()]) for t in (whole, parts)]
    assert relative(*gradients) < ROUNDING  # a part of eight left out is .1 and more
    assert tiny.steps(parts, 4) == pytest.approx(tiny.steps(whole, 4), rel=1e-3)


def test_reading_ahead_changes_nothing(data):
    runs = [tiny.steps(tiny.trainer(data, workers=n, ahead=k), 5) for n, k in ((0, 1), (1, 4), (3, 2))]
    assert runs[0] == runs[1] == runs[2]


def test_channels_last_and_bf16_change_rounding_only(data):
    plain = tiny.trainer(data, channels_last=False)
    expected = tiny.steps(plain, 4)
    assert tiny.steps(tiny.trainer(data, channels_last=True), 4) == pytest.approx(expected, rel=1e-3)
    half = tiny.trainer(data, settings=tiny.recipe(precision="bf16"))
    found = tiny.steps(half, 4)
    assert found[0] == pytest.approx(expected[0], rel=0.02) and found[0] != expected[0]
    assert {p.dtype for p in half.network.parameters()} == {torch.float32}
    assert {s["exp_avg"].dtype for s in half.optimizer.state.values()} == {torch.float32}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["edm", "edm2"])
def test_compiling_changes_rounding_only(data, name):
    config, recipe = (tiny.EDM if name == "edm" else tiny.EDM2), tiny.recipe(objective=name)
    plain = tiny.steps(tiny.trainer(data, config, recipe), 3)
    assert tiny.steps(tiny.trainer(data, config, recipe, compile=True), 3) == pytest.approx(plain, rel=1e-3)


def test_training_leaves_the_callers_randomness_alone(data):
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    tiny.steps(tiny.trainer(data, config={**tiny.EDM, "dropout": 0.5}), 2)
    assert torch.equal(torch.rand(1), expected)


def test_dropout_is_the_steps_own(data):
    config = {**tiny.EDM, "dropout": 0.5}
    whole = tiny.steps(tiny.trainer(data, config), 4)
    torch.manual_seed(99)
    halves = tiny.trainer(data, config)
    assert tiny.steps(halves, 2) + tiny.steps(halves, 2) == whole
    assert tiny.steps(tiny.trainer(data), 4) != whole


def test_a_state_goes_on_bit_for_bit(data):
    config = {**tiny.EDM, "dropout": 0.3}
    whole, first, second = (tiny.trainer(data, config, augment=Augmentation(0.3)) for _ in range(3))
    expected = tiny.steps(whole, 6)
    begun = tiny.steps(first, 3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert begun + tiny.steps(second, 3) == expected
    for a, b in zip(whole.network.parameters(), second.network.parameters(), strict=True):
        assert torch.equal(a, b)
    mine, theirs = whole.averages.state_dict()["ema"], second.averages.state_dict()["ema"]
    assert all(torch.equal(mine[k], theirs[k]) for k in mine)
    with pytest.raises(InputError, match="does not fit this run"):
        tiny.trainer(data, tiny.EDM2).load_state_dict(first.state_dict())


# ------------------------------------------------------------------ order of the data


def test_every_epoch_shows_every_image_once():
    order = Order(Seed(1), 7)
    seen = order(np.arange(70)).reshape(10, 7)
    assert (np.sort(seen, axis=1) == np.arange(7)).all()
    assert len({tuple(row) for row in seen}) == 10
    assert (order(np.array([[68, 3], [3, 20]])) == seen.flatten()[[[68, 3], [3, 20]]]).all()
    assert (Order(Seed(2), 7)(np.arange(70)) != seen.flatten()).any()


@pytest.mark.parametrize(("world", "passes"), [(2, 1), (2, 2), (4, 1), (1, 4)])
def test_processes_and_passes_share_a_batch(data, world, passes):
    """Whatever the cut, a step is the same images with the same augmentation, levels, noise and labels."""
    augment = Augmentation(0.7)
    whole = tiny.feed(data, augment=augment)
    expected = whole.ready(whole.read(3, 0))
    cut = [tiny.feed(data, passes=passes, rank=rank, world=world, augment=augment) for rank in range(world)]
    found = [source.ready(source.read(3, number)) for source in cut for number in range(passes)]
    for name in ("level", "noise"):
        assert torch.equal(torch.cat([getattr(r, name) for r in found]), getattr(expected, name)), name
    assert relative(torch.cat([r.clean for r in found]), expected.clean) < ROUNDING  # a product of matrices
    for name, value in expected.conditions.items():
        assert torch.equal(torch.cat([r.conditions[name] for r in found]), value), name


def test_batches_are_the_data_sets(data):
    source = tiny.feed(data)
    batch = source.read(2, 0)
    which = source._order(np.arange(16, 24))
    assert (batch.images.numpy() == data.images(which)).all() and (batch.labels.numpy() == data.labels[which]).all()
    ready = source.ready(batch)
    torch.testing.assert_close(ready.clean, batch.images / 127.5 - 1)
    assert torch.equal(ready.conditions["class_labels"].argmax(1), batch.labels)
    assert not ready.conditions["augment_labels"].any()


def test_latents_are_taken_as_they_are(data):
    class Latents:
        labels = None

        def __len__(self):
            return 20

        def images(self, indices):
            return np.stack([np.full((8, 4, 4), i / 7 - 1, dtype=np.float32) for i in indices])

    ready = tiny.feed(Latents(), {"label_dim": 0}).read(0, 0)
    clean = tiny.feed(Latents(), {"label_dim": 0}).ready(ready).clean
    assert clean.shape == (8, 8, 4, 4) and torch.equal(clean, ready.images) and float(clean.max()) > 1


# ------------------------------------------------------------------------ divergence


def test_divergence_stops_the_run_and_says_where(data):
    subject = tiny.trainer(data, settings=tiny.recipe(lr=1e25))
    with pytest.raises(DivergedError, match=r"not finite in step \d+ \(.* last good: nothing") as caught:
        tiny.steps(subject, 30)
    error = caught.value
    source = tiny.feed(data)
    levels = torch.exp(-1.2 + 1.2 * source.ready(source.read(error.step - 1, 0)).level)
    assert error.levels == pytest.approx((float(levels.min()), float(levels.max())), rel=1e-5)
    assert error.images == error.step * 8


@pytest.mark.parametrize("where", ["weight", "gradient"])
def test_the_first_bad_step_is_found_however_late_one_looks(data, where):
    subject = tiny.trainer(data)
    parameter = next(subject.network.parameters())

    def poison():
        if subject.step == 3:
            if where == "weight":
                parameter.data[0] = math.nan
            else:
                parameter.register_hook(lambda g: g * math.inf)

    subject.run(7, after=poison)
    with pytest.raises(DivergedError, match=f"the {'loss' if where == 'weight' else 'gradient'} was") as caught:
        subject.report(lambda: "nothing")
    assert caught.value.step == 4


def test_fp16_overflow_halves_the_scale_and_goes_on(data):
    recipe = tiny.recipe(precision="fp16", loss_scale=2.0**18)
    subject = tiny.trainer(data, settings=recipe)
    before = [p.detach().clone() for p in subject.network.parameters()]
    tiny.steps(subject, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, subject.network.parameters(), strict=True))
    losses = tiny.steps(subject, 15)
    report = subject.report(lambda: "")
    assert 0 < report.skipped < 15 and report.scale == 2.0 ** (18 - report.skipped)
    assert any(not torch.equal(a, b) for a, b in zip(before, subject.network.parameters(), strict=True))
    plain = tiny.trainer(data, settings=tiny.recipe(precision="fp16", loss_scale=8.0))
    assert losses[-1] != 0 and tiny.steps(plain, 3) == pytest.approx(tiny.steps(tiny.trainer(data), 3), rel=0.02)


def test_fp16_that_never_recovers_is_divergence():
    watch, scaler = Watch(torch.device("cpu")), torch.amp.GradScaler("cpu", init_scale=8.0)
    alone = tiny.ALONE
    for step in range(PATIENCE):
        assert watch.sound
        watch.loss(torch.ones(2, 1), torch.tensor([0.5, 2.0]))
        watch.gradient([torch.tensor([math.inf])], step, scaler)
    assert not watch.sound
    assert watch.read(alone).bad == ("gradient", PATIENCE - 1)


COMPILER = """#!/bin/sh
for word; do case "$word" in *.main.so) [ -e {armed} ] && rm {armed} && : > "$word" && kill -9 $PPID; esac; done
exec g++ "$@"
"""
COMPILING = """
import torch
from sims_image.models.compiled import compiled
torch.manual_seed(0)
network = compiled(torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Tanh()))
print(network(torch.ones(3, 5)).sum().item())
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_compiling_goes_on_after_a_kill_and_two_processes_compile_at_once(tmp_path):
    """The compiler kills its process when the first library is begun; the next two start on what that leaves."""
    compiler, armed, cache = tmp_path / "compiler", tmp_path / "armed", tmp_path / "cache"
    compiler.write_text(COMPILER.format(armed=armed))
    compiler.chmod(0o755)
    armed.touch()
    more = {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(cache), "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    options = {"env": ranks.environment(**more), "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}

    def begin():
        return subprocess.Popen([sys.executable, "-c", COMPILING], **options)

    first = begin()
    first.communicate()
    assert first.returncode == -signal.SIGKILL
    assert [path.stat().st_size for path in cache.glob("*/*.main.so")] == [0]
    said = [process.communicate() for process in (begin(), begin())]
    assert all(float(out) == pytest.approx(15 * math.tanh(1 / (1 + math.exp(-1)))) for out, _ in said), said
    assert all(path.stat().st_size for path in cache.glob("*/*.so")) and not [*cache.glob("*/*_CxxBuild")]
