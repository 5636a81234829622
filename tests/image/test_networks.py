"""The EDM family: published outputs, then each piece against its definition."""

import copy
import itertools
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sims_core.errors import InputError
from sims_image.models.denoiser import make_sampler
from sims_image.models.networks import build, parameter_count
from sims_image.models.networks.edm import UNetBlock
from sims_image.models.networks.layers import (
    Conv2d,
    FourierEmbedding,
    GroupNorm,
    Init,
    PositionalEmbedding,
    downsample,
    filter_taps,
    is_box,
    upsample,
)
from tests.image.networks import CASES, filled, network, relative

SONG = {
    "model_type": "SongUNet", "img_resolution": 8, "img_channels": 3, "label_dim": 3, "model_channels": 8,
    "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4],
}  # fmt: skip
ADM = {**SONG, "model_type": "DhariwalUNet", "model_channels": 32}
UNIT = {"init": Init("xavier"), "init_zero": Init("xavier"), "init_attn": Init("xavier")}


def images(n=3, channels=3, side=8, seed=0):
    return torch.randn(n, channels, side, side, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------- published outputs


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CASES)
def test_published_outputs(name, layout):
    case = CASES[name]
    net = build(**case.config).eval()
    net.load_state_dict(case.state, strict=True)
    net = net.to(memory_format=layout)
    with torch.no_grad():
        got = net(**case.inputs, return_logvar=case.logvar is not None)
    denoised, logvar = got if case.logvar is not None else (got, None)
    assert denoised.dtype == torch.float32
    for one, published in zip(denoised, case.denoised, strict=True):  # each noise level apart: the largest would hide
        assert relative(one, published) < 2e-6
    if logvar is not None:
        assert relative(logvar, case.logvar) < 1e-6


@pytest.mark.parametrize("name", CASES)
def test_the_weights_matter(name):
    """A network that ignored any one of its weights would pass the test above only by luck."""
    case = CASES[name]
    net = build(**case.config).eval()
    net.load_state_dict(case.state)
    got = net(**case.inputs, return_logvar=net.has_logvar)
    sum(part.square().sum() for part in (got if isinstance(got, tuple) else (got,))).backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not silent


@pytest.mark.parametrize("name", CASES)
def test_config_rebuilds_the_network(name):
    net = build(**CASES[name].config)
    config = json.loads(json.dumps(net.config, allow_nan=False))
    again = build(**config)
    assert again.config == net.config and type(again) is type(net)
    again.load_state_dict(CASES[name].state, strict=True)


# ------------------------------------------------------------------------ pieces


def correlate(x, taps, stride):
    """The definition: sum over taps, pixels outside are 0."""
    k = len(taps)
    pad = (k - 1) // 2
    padded = np.pad(x, ((0, 0), (0, 0), (pad, k), (pad, k)))
    out = np.zeros((*x.shape[:2], x.shape[2] // stride, x.shape[3] // stride))
    for i, j in itertools.product(range(out.shape[2]), range(out.shape[3])):
        window = padded[:, :, stride * i : stride * i + k, stride * j : stride * j + k]
        out[:, :, i, j] = (window * np.outer(taps, taps)).sum((2, 3))
    return out


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1], [3, 1], [1, 2, 3, 4, 5, 7]])
def test_resampling_by_definition(taps):
    x, f = images(2, 3, 8), np.array(taps) / sum(taps)
    tensor, box = filter_taps(taps), is_box(taps)
    np.testing.assert_allclose(downsample(x, tensor, box=box), correlate(x.double().numpy(), f, 2), atol=1e-6)
    k, pad = len(taps), (len(taps) - 1) // 2
    spread = np.zeros((2, 3, 16 + 2 * k, 16 + 2 * k))
    for i, j in itertools.product(range(8), range(8)):  # each pixel paints 4 times the filter around its place
        at = (slice(None), slice(None), slice(k + 2 * i - pad, 2 * k + 2 * i - pad))
        spread[(*at, slice(k + 2 * j - pad, 2 * k + 2 * j - pad))] += (
            4 * np.outer(f, f) * x[:, :, i, j, None, None].numpy()
        )
    np.testing.assert_allclose(upsample(x, tensor, box=box), spread[:, :, k : k + 16, k : k + 16], atol=1e-6)
    assert box == (taps == [1, 1])
    torch.testing.assert_close(downsample(x, tensor, box=box), downsample(x, tensor))
    torch.testing.assert_close(upsample(x, tensor, box=box), upsample(x, tensor))


@pytest.mark.parametrize("taps", [[1, 1], [1, 3, 3, 1], [1, 2, 3, 3, 2, 1]])
def test_fused_resampling_is_one_convolution(taps):
    x, tensor = images(2, 3, 8), filter_taps(taps)
    down = filled(Conv2d(3, 5, 3, Init("xavier"), down=True, resample_filter=taps, fused=True))
    kernel = F.conv2d(down.weight.flip(2, 3).reshape(-1, 1, 3, 3), tensor, padding=len(taps) - 1).flip(2, 3)
    border = 1 + (len(taps) - 1) // 2
    expected = F.conv2d(x, kernel.reshape(5, 3, *kernel.shape[2:]), down.bias, stride=2, padding=border)
    torch.testing.assert_close(down(x), expected, atol=1e-5, rtol=1e-5)
    up = filled(Conv2d(3, 5, 3, Init("xavier"), up=True, resample_filter=taps, fused=True))
    wide = F.conv_transpose2d(x, (4 * tensor).expand(3, -1, -1, -1), groups=3, stride=2)  # with all its borders
    cut = (len(taps) - 1) // 2 - 1
    expected = F.conv2d(F.pad(wide, [-cut] * 4), up.weight, up.bias)
    torch.testing.assert_close(up(x), expected, atol=1e-5, rtol=1e-5)
    assert up(x).shape == (2, 5, 16, 16)


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_by_explicit_softmax(heads):
    block = filled(UNetBlock(8, 8, 4, heads=heads, **UNIT)).double().requires_grad_(False)
    x = images(2, 8, 4).double()
    q, k, v = (torch.zeros(2, heads, 8 // heads, 16, dtype=torch.float64) for _ in range(3))
    rows = F.conv2d(block.norm2(x), block.qkv.weight, block.qkv.bias).flatten(2)
    for head, channel in itertools.product(range(heads), range(8 // heads)):  # published row order
        row = 3 * (head * (8 // heads) + channel)
        for role, target in enumerate((q, k, v)):
            target[:, head, channel] = rows[:, row + role]
    out = torch.zeros(2, 8, 16, dtype=torch.float64)
    for n, head, pixel in itertools.product(range(2), range(heads), range(16)):
        score = torch.stack([q[n, head, :, pixel] @ k[n, head, :, other] for other in range(16)])
        weight = (score / math.sqrt(8 // heads)).exp()
        out[n, head * 8 // heads : (head + 1) * 8 // heads, pixel] = v[n, head] @ (weight / weight.sum())
    expected = F.conv2d(out.reshape(2, 8, 4, 4), block.proj.weight, block.proj.bias)
    torch.testing.assert_close(block._attention(x), expected)


@pytest.mark.parametrize("options", [{"heads": 2, "up": True}, {"down": True, "adaptive_scale": False, "heads": 1}])
def test_block_gradients_against_finite_differences(options):
    """The block works in place where it may: autograd would complain, or be wrong, where it may not."""
    block = filled(UNetBlock(4, 8, 4, skip_scale=0.7, resample_proj=True, **options, **UNIT)).double()
    x, emb = images(1, 4, 4).double().requires_grad_(), torch.randn(1, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x, emb), atol=1e-5)
    flat = {n: p.detach().clone().requires_grad_() for n, p in block.named_parameters()}
    names = ["conv0.weight", "affine.bias", "qkv.weight", "proj.bias", "skip.weight", "norm1.weight"]

    def through(*values):
        return torch.func.functional_call(block, {**flat, **dict(zip(names, values, strict=True))}, (x, emb))

    assert torch.autograd.gradcheck(through, tuple(flat[n] for n in names), atol=1e-5, fast_mode=True)


def test_group_norm_is_torchs():
    for channels, groups in ((4, 1), (20, 5), (128, 32), (256, 32)):
        ours, theirs = filled(GroupNorm(channels, 1e-5)), nn.GroupNorm(groups, channels)
        theirs.load_state_dict(ours.state_dict())
        x = images(2, channels, 4)
        torch.testing.assert_close(ours(x), theirs(x))


def test_embeddings_by_definition():
    c = torch.tensor([0.3, -2.0, 40.0])
    for endpoint, channels in ((True, 8), (False, 8)):
        got = PositionalEmbedding(channels, endpoint=endpoint)(c)
        for i in range(4):
            angle = c.double() * 10000 ** (-i / (3 if endpoint else 4))
            np.testing.assert_allclose(got[:, i], angle.cos(), atol=1e-5)
            np.testing.assert_allclose(got[:, 4 + i], angle.sin(), atol=1e-5)
    fourier = FourierEmbedding(2000)
    assert abs(float(fourier.freqs.std()) - 16) < 1.5
    angle = 2 * math.pi * c.double()[:, None] * fourier.freqs.double()
    np.testing.assert_allclose(fourier(c), torch.cat([angle.cos(), angle.sin()], 1), atol=2e-3)


# ------------------------------------------------------------- training and options


@pytest.mark.parametrize("config", [SONG, ADM])
def test_dropout_acts_in_training_alone(config):
    x, sigma = images(), torch.tensor([0.1, 1.0, 10.0])
    net = network(**config, dropout=0.5)
    plain = network(**config, dropout=0.0)
    with torch.no_grad():
        assert torch.equal(net(x, sigma), net(x, sigma)) and torch.equal(net(x, sigma), plain(x, sigma))
        assert torch.equal(plain.train()(x, sigma), plain.eval()(x, sigma))
        net.train()
        torch.manual_seed(1)
        first = net(x, sigma)
        assert not torch.equal(first, net(x, sigma))
        torch.manual_seed(1)
        assert torch.equal(first, net(x, sigma))
        block = net.model.dec["8x8_block0"]
        h = torch.ones(1, 1, 100, 100)
        kept = F.dropout(h, block.dropout, block.training)
        assert set(kept.unique().tolist()) == {0.0, 2.0} and abs(float(kept.mean()) - 1) < 0.05


@pytest.mark.parametrize("config", [SONG, ADM])
def test_label_dropout_hides_labels_in_training_alone(config):
    x, labels = images(64), torch.eye(3)[torch.arange(64) % 3]
    net = network(**config, dropout=0.0, label_dropout=0.25)
    with torch.no_grad():
        told, untold = net(x, torch.ones(64), labels), net(x, torch.ones(64))
        torch.manual_seed(0)
        mixed = net.train()(x, torch.ones(64), labels)
    hidden = torch.tensor([torch.allclose(a, b, atol=1e-5) for a, b in zip(mixed, untold, strict=True)])
    shown = torch.tensor([torch.allclose(a, b, atol=1e-5) for a, b in zip(mixed, told, strict=True)])
    assert (hidden ^ shown).all() and 6 <= int(hidden.sum()) <= 28  # binomial(64, 1/4), 3 sigma


@pytest.mark.parametrize("config", [SONG, ADM])
def test_labels(config):
    x, sigma = images(), torch.tensor([0.1, 1.0, 10.0])
    net = network(**config, augment_dim=9)
    with torch.no_grad():
        plain = net(x, sigma)
        assert torch.equal(net(x, sigma, torch.zeros(3, 3), torch.zeros(3, 9)), plain)
        assert relative(net(x, sigma, torch.eye(3)), plain) > 0.01
        assert relative(net(x, sigma, None, torch.eye(9)[:3]), plain) > 0.01
        one = net(x, sigma, torch.eye(3)[1:2])
        torch.testing.assert_close(one, net(x, sigma, torch.eye(3)[[1, 1, 1]]))
        unconditional = network(**{**config, "label_dim": 0})
        assert torch.equal(unconditional(x, sigma, torch.eye(3)), unconditional(x, sigma))


def test_noise_levels_may_be_given_in_three_shapes():
    net, x = network(**SONG), images()
    with torch.no_grad():
        rows = net(x, torch.full((3,), 0.7))
        for sigma in (torch.tensor(0.7), torch.full((3, 1, 1, 1), 0.7), torch.tensor([0.7], dtype=torch.float64)):
            torch.testing.assert_close(net(x, sigma), rows)
        torch.testing.assert_close(net(x.double(), torch.full((3,), 0.7)), rows)
        alone = torch.cat([net(x[i : i + 1], torch.tensor(0.7)) for i in range(3)])
    assert relative(alone, rows) < 1e-5


@pytest.mark.parametrize("config", [SONG, ADM, {**SONG, "encoder_type": "skip", "decoder_type": "skip"}])
@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.06), (torch.float16, 0.01)])
def test_a_body_of_low_precision(config, dtype, error):
    net, x, sigma = network(**config), images(), torch.tensor([0.1, 1.0, 10.0])
    with torch.no_grad():
        exact = net(x, sigma)
        net.compute_dtype = dtype
        rough = net(x, sigma)
        assert rough.dtype == torch.float32 and 0 < relative(rough, exact) < error
        assert torch.equal(net(x, sigma, force_fp32=True), exact)
    assert all(p.dtype == torch.float32 for p in net.parameters())
    assert copy.deepcopy(net).compute_dtype == dtype
    with pytest.raises(InputError, match="compute_dtype: got"):
        net.compute_dtype = torch.float64


def test_use_fp16_leaves_the_cpu_alone():
    net, same, x = network(**SONG), network(**SONG, use_fp16=True), images()
    with torch.no_grad():
        assert torch.equal(net(x, torch.ones(3)), same(x, torch.ones(3)))


# ----------------------------------------------------------------- preconditioning


def planted(net, value):
    """The network with its U-Net replaced by one that remembers what it is told and answers ``value``."""
    told = {}

    class Answer(nn.Module):
        def forward(self, x, c_noise, labels, augment_labels=None):
            told.update(x=x, c_noise=c_noise, labels=labels)
            return value

    net.model = Answer()
    return net, told


def test_edm_preconditioning():
    x, sigma, f = images(), torch.tensor([0.1, 1.0, 10.0]), images(seed=1)
    net, told = planted(build(**SONG, sigma_data=0.8), f)
    s = sigma.reshape(-1, 1, 1, 1)
    norm = (s**2 + 0.64).sqrt()
    torch.testing.assert_close(net(x, sigma), 0.64 / norm**2 * x + s * 0.8 / norm * f)
    torch.testing.assert_close(told["x"], x / norm)
    torch.testing.assert_close(told["c_noise"], sigma.log() / 4)
    assert net.sigma_data == 0.8 and net.sigma_min == 0 and net.sigma_max == math.inf
    assert torch.equal(net.round_sigma(sigma), sigma)


def test_vp_preconditioning():
    x, f = images(), images(seed=1)
    net, told = planted(build(class_name="VPPrecond", **SONG), f)
    t = torch.tensor([0.02, 0.4, 1.0], dtype=torch.float64)
    alpha = torch.exp(-0.5 * (19.9 / 2 * t**2 + 0.1 * t))  # the signal's scale in Song et al.
    sigma = ((1 - alpha**2) / alpha**2).sqrt()
    s = sigma.float().reshape(-1, 1, 1, 1)
    torch.testing.assert_close(net(x, sigma), x - s * f)
    torch.testing.assert_close(told["x"], x * alpha.float().reshape(-1, 1, 1, 1))
    torch.testing.assert_close(told["c_noise"], (999 * t).float(), rtol=1e-3, atol=1e-3)
    assert net.sigma_max == pytest.approx(float(sigma[-1]), rel=1e-6)
    assert net.sigma_min == pytest.approx(math.sqrt(1e-6), rel=0.03)  # published, with float32's rounding


def test_ve_preconditioning():
    x, sigma, f = images(), torch.tensor([0.02, 1.0, 100.0]), images(seed=1)
    net, told = planted(build(class_name="VEPrecond", **SONG), f)
    torch.testing.assert_close(net(x, sigma), x + sigma.reshape(-1, 1, 1, 1) * f)
    assert torch.equal(told["x"], x)
    torch.testing.assert_close(told["c_noise"], (sigma / 2).log())
    assert (net.sigma_min, net.sigma_max) == (0.02, 100)


def test_iddpm_preconditioning():
    net = build(class_name="iDDPMPrecond", **ADM)
    assert net.u.shape == (1001,) and net.u[-1] == 0 and (net.u[:-1] > net.u[1:]).all()
    assert (net.sigma_max, net.sigma_min) == (float(net.u[0]), float(net.u[999]))
    bar = torch.sin(math.pi / 2 * torch.arange(1001, dtype=torch.float64) / 1000 / 1.008) ** 2
    exact = ((bar[-1] - bar) / bar).clamp(min=0).sqrt()  # where no ratio is clipped: u_j^2 = bar_M / bar_j - 1
    torch.testing.assert_close(net.u[100:].double(), exact[100:], rtol=1e-3, atol=1e-6)
    out = torch.cat([images(seed=1), torch.full((3, 3, 8, 8), torch.nan)], 1)  # the second half is the variance
    net, told = planted(net, out)
    sigma = torch.tensor([0.01, 1.0, 1e6])
    nearest = [min(range(1001), key=lambda j: abs(float(net.u[j]) - float(s))) for s in sigma]
    torch.testing.assert_close(net(images(), sigma), images() - sigma.reshape(-1, 1, 1, 1) * images(seed=1))
    assert told["c_noise"].tolist() == [999 - j for j in nearest]
    assert torch.equal(net.round_sigma(sigma), net.u[nearest])


@pytest.mark.parametrize("name", ["heun:10", "euler:18", "heun:256", "ddim:20", "rk4:8"])
def test_a_sampler_keeps_to_the_levels_that_a_network_knows(name):
    """EDM, Appendix C.3.4: with iDDPM's networks the grid and churn's raised levels are rounded to the table."""
    net = build(class_name="iDDPMPrecond", **ADM)
    for churn in (None, (40, 0.05, 50, 1.003)):
        sampler = make_sampler(name, net, churn)
        grid = sampler.sigmas()
        assert bool((grid[:-1] == net.round_sigma(grid[:-1])).all()) and bool((grid.diff() < 0).all()) and grid[-1] == 0
        told = []

        def denoiser(x, sigma, told=told):
            told.append(float(sigma))
            return torch.zeros_like(x)

        sampler(denoiser, torch.zeros(1, 1, 2, 2), torch.zeros)
        if not name.startswith("rk4"):  # whose half steps lie between levels
            levels = torch.tensor(told, dtype=torch.float64)
            assert torch.equal(levels, net.round_sigma(levels))
        assert len(told) == sampler.nfe == sampler.evaluations()[0]
    free = make_sampler(name, build(class_name="EDMPrecond", **ADM), None)
    assert free.rounded is None and torch.equal(free.sigmas(), free._grid())


def test_rounded_steps_are_those_of_edm():
    """Algorithm 2 of EDM written out, with `round_sigma` where NVIDIA's sampler has it."""
    net = build(class_name="iDDPMPrecond", **ADM)
    grid = make_sampler("heun:10", net, None).sigmas()
    assert [round(float(s), 3) for s in grid[:4]] == [80.204, 42.770, 22.902, 11.033]
    sampler = make_sampler("heun:10", net, (40, 0.05, 50, 1.003))
    noises = [torch.randn(2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(k)) for k in range(11)]

    def denoiser(x, sigma):
        return x / (1 + sigma**2)

    drawn = iter(noises[1:])
    found = sampler(denoiser, noises[0], lambda _: next(drawn))
    top, low = min(80.0, net.sigma_max) ** (1 / 7), max(0.002, net.sigma_min) ** (1 / 7)
    ramp = (top + torch.arange(10, dtype=torch.float64) / 9 * (low - top)) ** 7
    steps = torch.cat([net.round_sigma(ramp), torch.zeros(1)])
    x, drawn = noises[0] * steps[0], iter(noises[1:])
    for now, then in itertools.pairwise(steps.double()):
        gamma = min(40 / 10, math.sqrt(2) - 1) if 0.05 <= now <= 50 else 0
        hat = net.round_sigma(now + gamma * now)
        if hat > now:
            x = x + (hat**2 - now**2).sqrt() * 1.003 * next(drawn)
        slope = (x - denoiser(x, hat)) / hat
        end = x + (then - hat) * slope
        x = end if then == 0 else x + (then - hat) * (slope + (end - denoiser(end, then)) / then) / 2
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------ initial weights


def test_untrained_networks_put_out_almost_nothing():
    x, sigma = images(), torch.tensor([0.1, 1.0, 10.0])
    torch.manual_seed(0)
    skip = (0.25 / (sigma**2 + 0.25)).reshape(-1, 1, 1, 1) * x
    assert torch.equal(build(**ADM).eval()(x, sigma), skip)
    song = build(**SONG).eval()
    assert 0 < relative(song(x, sigma).detach(), skip) < 1e-3


@torch.no_grad()
def test_initial_distributions():
    torch.manual_seed(0)
    song = build(**{**SONG, "model_channels": 64, "augment_dim": 9}).model
    block = song.enc["4x4_block0"]
    bound = {
        block.conv0.weight: math.sqrt(6 / (9 * (64 + 128))),
        block.conv1.weight: 1e-5 * math.sqrt(6 / (9 * 256)),
        block.qkv.weight: math.sqrt(0.2 * 6 / (128 + 384)),
        song.map_layer0.weight: math.sqrt(6 / (64 + 256)),
        song.map_augment.weight: math.sqrt(6 / (9 + 64)),
    }
    adm = build(**{**ADM, "model_channels": 64, "augment_dim": 9}).model
    wide = adm.enc["4x4_block0"]
    bound |= {
        wide.conv0.weight: 1 / math.sqrt(9 * 64),
        wide.conv0.bias: 1 / math.sqrt(9 * 64),
        wide.qkv.weight: 1 / math.sqrt(128),
    }
    for weight, limit in bound.items():  # uniform in [-limit, limit]
        assert weight.abs().max() <= limit and weight.abs().max() > 0.95 * limit
        assert abs(float(weight.std()) / limit - 3**-0.5) < 0.1
    assert not wide.conv1.weight.any() and not wide.proj.weight.any() and not adm.out_conv.weight.any()
    assert not adm.map_augment.weight.any() and not block.conv0.bias.any()
    assert abs(float(adm.map_label.weight.std()) - 1) < 0.1


# ------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dropuot": 0.1}, "argument: got 'dropuot'; did you mean 'dropout'?"),
        ({"model_type": "SongUnet"}, "model_type: got 'SongUnet'; did you mean 'SongUNet'?"),
        ({"class_name": "training.networks.DDPMPrecond"}, "class_name: got 'DDPMPrecond'; did you mean"),
        ({"encoder_type": "residuals"}, "encoder_type: got 'residuals'; did you mean 'residual'?"),
        ({"img_resolution": 9}, "img_resolution: got '9'; a multiple of 2, to halve 1 times"),
        ({"img_resolution": None}, "img_resolution: got 'nothing'; the network needs it"),
        ({"channel_mult": []}, "channel_mult: got"),
        ({"channel_mult": [1, 0]}, "channel_mult: got"),
        ({"channel_mult": 2}, "channel_mult: got"),
        ({"model_channels": 7}, "model_channels: got '7'; an even number"),
        ({"model_channels": 10}, "model_channels: got 'a layer of 30'; channels must be a multiple of 4"),
        ({"channel_mult_noise": None}, "channel_mult_noise: got 'nothing'"),
        ({"dropout": 1.5}, "dropout: got '1.5'; a number between 0 and 1"),
        ({"num_blocks": 1.5}, "num_blocks: got '1.5'; a whole number"),
        ({"resample_filter": [1, 2, 1]}, "resample_filter: got"),
        ({"resample_filter": [1, -1]}, "resample_filter: got"),
        ({"sigma_data": 0}, "sigma_data: got '0'; a positive number"),
        ({"use_fp16": "yes"}, "use_fp16: got 'yes'; True or False"),
    ],
)
def test_arguments_that_make_no_network(change, words):
    with pytest.raises(InputError) as caught:
        build(**{**SONG, **change})
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_options_belong_to_their_network():
    with pytest.raises(InputError, match="argument: got 'encoder_type'"):
        build(**ADM, encoder_type="skip")
    with pytest.raises(InputError, match="argument: got 'beta_d'"):
        build(**SONG, beta_d=10.0)
    with pytest.raises(InputError, match="model_channels: got '56'; 224 channels do not divide into 3 heads"):
        build(**{**ADM, "model_channels": 56, "channel_mult": [4]})


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": images(3, 1)}, r"x: got .*images \(N, 3, H, W\)"),
        ({"sigma": torch.ones(2)}, "sigma: got .*one for each of the 3 images"),
        ({"class_labels": torch.tensor([0, 1, 2])}, r"class_labels: got '\(3,\)'; one-hot rows \(3, 3\), or None"),
        ({"class_labels": torch.eye(5)[:3]}, "class_labels: got"),
        ({"augment_labels": torch.zeros(3, 9)}, "augment_labels: got .*built without augment_dim"),
        ({"return_logvar": True}, "return_logvar: got 'True'; only EDM2"),
    ],
)
def test_calls_that_do_not_fit(arguments, words):
    with pytest.raises(InputError, match=words):
        network(**SONG)(**{"x": images(), "sigma": torch.ones(3), **arguments})


def test_counting_allocates_nothing():
    assert parameter_count(**SONG) == sum(p.numel() for p in build(**SONG).parameters())
    assert parameter_count(**{**ADM, "model_channels": 8192}) > 1e10
