"""EDM2's network: magnitudes, forced weight normalisation, attention, and what training changes."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F

from sims_core.errors import InputError
from sims_image.models.networks import build
from sims_image.models.networks.edm2 import Block, MPConv, MPFourier, mp_cat, mp_silu, mp_sum, normalize
from tests.image.networks import filled, network, relative

SMALL = {
    "img_resolution": 8, "img_channels": 3, "label_dim": 3, "model_channels": 8, "channel_mult": [1, 2],
    "num_blocks": 1, "attn_resolutions": [4], "channels_per_head": 8,
}  # fmt: skip


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def magnitude(x):
    return float(x.double().square().mean().sqrt())


# --------------------------------------------------------------------- magnitudes


def test_pieces_preserve_magnitude():
    a, b = normal(1, 60, 64, 64), normal(1, 20, 64, 64, seed=1)
    assert magnitude(mp_silu(a)) == pytest.approx(1, abs=0.01)
    for t in (0.0, 0.3, 0.5, 1.0):
        assert magnitude(mp_sum(a, a.flip(1), t)) == pytest.approx(1, abs=0.01)
        both = mp_cat(a, b, t)
        assert magnitude(both) == pytest.approx(1, abs=0.01)
        if t:  # contributions in the ratio of 1 - t to t, whatever the channel counts
            ratio = both[:, :60].square().sum() / both[:, 60:].square().sum()
            assert float(ratio) == pytest.approx(((1 - t) / t) ** 2, rel=0.03)
    assert magnitude(MPFourier(1000)(torch.linspace(-3, 3, 50))) == pytest.approx(1, abs=0.02)
    with torch.no_grad():
        assert magnitude(MPConv(60, 400, 3)(a)) == pytest.approx(1, abs=0.03)
        assert magnitude(MPConv(60, 400)(normal(500, 60))) == pytest.approx(1, abs=0.03)
        assert magnitude(MPConv(60, 400, 3)(a, gain=0.25)) == pytest.approx(0.25, abs=0.01)


def test_normalize_by_definition():
    x = normal(2, 5, 3, 3).double()
    x[0, :, 0, 0] = 0  # a pixel of zeros stays finite
    got = normalize(x, 1)
    for n, i, j in itertools.product(range(2), range(3), range(3)):
        vector = x[n, :, i, j]
        expected = vector / (math.sqrt(float(vector.square().mean())) + 1e-4)
        torch.testing.assert_close(got[n, :, i, j], expected, rtol=1e-6, atol=1e-6)


def test_an_untrained_network_keeps_activations_near_unit_magnitude():
    torch.manual_seed(0)
    net = build(**{**SMALL, "model_channels": 32, "num_blocks": 2}).eval()
    seen = []
    for layer in [*net.unet.enc.values(), *net.unet.dec.values()]:
        layer.register_forward_hook(lambda _, __, out: seen.append(magnitude(out)))
    with torch.no_grad():
        net(normal(8, 3, 8, 8) * (1 + 0.25) ** 0.5, torch.ones(8), torch.eye(3)[torch.arange(8) % 3])
    assert len(seen) == 15 and all(0.7 < m < 1.1 for m in seen)  # below 1: borders are padded with zeros


# --------------------------------------------------------------------- weights


@pytest.mark.parametrize("layer", [MPConv(6, 5, 3), MPConv(6, 5)])
def test_forced_weight_normalisation(layer):
    x = normal(4, 6, 8, 8) if layer.weight.ndim == 4 else normal(4, 6)
    with torch.no_grad():
        layer.weight.copy_(3 * normal(*layer.weight.shape))
        before = layer.weight.clone()
        rows = before.flatten(1)
        unit = rows / (rows.square().mean(1, keepdim=True).sqrt() + 1e-4)
        layer.eval()
        evaluated = layer(x)
        assert torch.equal(layer.weight, before)  # evaluation never touches the weights
        layer.train()
        trained = layer(x)
        torch.testing.assert_close(layer.weight.flatten(1), unit)
        assert float((layer.weight.flatten(1).square().mean(1) - 1).abs().max()) < 1e-3
        torch.testing.assert_close(trained, evaluated, rtol=1e-3, atol=1e-3)
        weight = (unit / math.sqrt(rows.shape[1])).reshape(before.shape)
        expected = F.conv2d(x, weight, padding=1) if weight.ndim == 4 else x @ weight.T
        torch.testing.assert_close(evaluated, expected)
    layer(x).square().sum().backward()  # the gradient is orthogonal to every row: a step can only turn it
    cosines = F.cosine_similarity(layer.weight.grad.flatten(1), layer.weight.detach().flatten(1))
    assert float(cosines.abs().max()) < 1e-3


def test_training_normalises_every_weight_and_evaluation_none():
    net = network(**SMALL)
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim > 1:
                p.mul_(5)
        before = {n: p.clone() for n, p in net.named_parameters()}
        plain = net(normal(3, 3, 8, 8), torch.ones(3), return_logvar=True)
        assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
        trained = net.train()(normal(3, 3, 8, 8), torch.ones(3), return_logvar=True)
    for name, p in net.named_parameters():
        if p.ndim > 1:
            assert float((p.detach().flatten(1).square().mean(1).sqrt() - 1).abs().max()) < 1e-3, name
        else:
            assert torch.equal(p, before[name])
    for a, b in zip(trained, plain, strict=True):  # no dropout: the same function, up to the 1e-4 in the norm
        assert 0 < relative(a, b) < 5e-3


def test_scaling_a_weight_changes_nothing():
    net, x = network(**SMALL), normal(3, 3, 8, 8)
    with torch.no_grad():
        before = net(x, torch.ones(3))
        net.unet.enc["4x4_block0"].conv_res0.weight.mul_(7)
        net.unet.emb_noise.weight.mul_(0.2)
        assert relative(net(x, torch.ones(3)), before) < 3e-3


# ----------------------------------------------------------------------- blocks


def test_cosine_attention_by_explicit_softmax():
    block = filled(Block(8, 8, 4, flavor="dec", attention=True, channels_per_head=4)).double().eval()
    x = normal(2, 8, 2, 2).double()
    with torch.no_grad():
        rows = F.conv2d(x, block.attn_qkv.scaled_weight().double()).flatten(2)
        out = torch.zeros(2, 8, 4, dtype=torch.float64)
        for n, head in itertools.product(range(2), range(2)):
            cut = rows[n, 12 * head : 12 * head + 12].reshape(4, 3, 4)  # published rows: (head, channel, role)
            q, k, v = (cut[:, r] / (cut[:, r].square().mean(0).sqrt() + 1e-4) for r in range(3))
            for pixel in range(4):
                weight = torch.stack([(q[:, pixel] @ k[:, other] / 2).exp() for other in range(4)])
                out[n, 4 * head : 4 * head + 4, pixel] = v @ (weight / weight.sum())
        expected = F.conv2d(out.reshape(2, 8, 2, 2), block.attn_proj.scaled_weight().double())
        torch.testing.assert_close(block._attention(x), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("flavor", ["enc", "dec"])
def test_a_block_by_definition(flavor):
    block = filled(Block(6, 8, 4, flavor=flavor, res_balance=0.4, clip_act=0.9)).eval()
    x, emb = normal(2, 6, 4, 4), normal(2, 4)

    def conv(layer, y):
        return F.conv2d(y, layer.scaled_weight(), padding=layer.weight.shape[-1] // 2)

    def silu(y):
        return y * torch.sigmoid(y) / 0.596

    with torch.no_grad():
        main = conv(block.conv_skip, x)
        if flavor == "enc":
            main = main / (main.square().mean(1, keepdim=True).sqrt() + 1e-4)
        inner = conv(block.conv_res0, silu(main if flavor == "enc" else x))
        told = 1 + emb @ block.emb_linear.scaled_weight(block.emb_gain).T
        inner = conv(block.conv_res1, silu(inner * told[:, :, None, None]))
        expected = ((0.6 * main + 0.4 * inner) / math.sqrt(0.6**2 + 0.4**2)).clamp(-0.9, 0.9)
        torch.testing.assert_close(block(x, emb), expected)
        block.clip_act = None
        assert float(block(x, emb).abs().max()) > 0.9


def test_dropout_acts_in_training_alone():
    net, x = network(**SMALL, dropout=0.5), normal(3, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(net(x, torch.ones(3)), network(**SMALL)(x, torch.ones(3)))
        net.train()(x, torch.ones(3))  # normalises the weights
        torch.manual_seed(0)
        first = net(x, torch.ones(3))
        assert relative(net(x, torch.ones(3)), first) > 1e-3
        torch.manual_seed(0)
        assert relative(net(x, torch.ones(3)), first) < 1e-5


# ------------------------------------------------------------------- the whole net


def test_balances_at_their_ends():
    x, sigma = normal(3, 3, 8, 8), torch.tensor([0.1, 1.0, 10.0])
    with torch.no_grad():
        net = network(**SMALL, label_balance=0.0)
        assert torch.equal(net(x, sigma, torch.eye(3)), net(x, sigma))
        net = network(**SMALL, label_balance=1.0)
        assert torch.equal(net.unet.embed(sigma, torch.eye(3)), net.unet.embed(sigma + 1, torch.eye(3)))
        net = network(**SMALL)
        assert relative(net(x, sigma, torch.eye(3)), net(x, sigma)) > 0.01


def test_log_variance_and_gains():
    net = network(**SMALL)
    x, sigma = normal(3, 3, 8, 8), torch.tensor([0.1, 1.0, 10.0])
    with torch.no_grad():
        denoised, logvar = net(x, sigma, return_logvar=True)
        assert logvar.shape == (3, 1, 1, 1) and torch.equal(denoised, net(x, sigma))
        weight = net.logvar_linear.weight[0]
        angles = sigma.log()[:, None] / 4 * net.logvar_fourier.freqs + net.logvar_fourier.phases
        features = math.sqrt(2) * angles.cos() @ weight
        expected = features / (weight.square().mean().sqrt() + 1e-4) / math.sqrt(128)
        torch.testing.assert_close(logvar.flatten(), expected)
        net.unet.out_gain.zero_()
        assert torch.equal(net(x, sigma), (0.25 / (sigma**2 + 0.25)).reshape(-1, 1, 1, 1) * x)


@torch.no_grad()
def test_initial_weights():
    torch.manual_seed(0)
    net = build(**{**SMALL, "model_channels": 32})
    for name, p in net.named_parameters():
        if p.ndim:
            assert abs(float(p.std()) - 1) < 0.2 and abs(float(p.mean())) < 0.2, name
        else:
            assert float(p) == 0, name
    assert abs(float(net.logvar_fourier.freqs.std()) / (2 * math.pi) - 1) < 0.2
    assert float(net.logvar_fourier.phases.min()) >= 0 and float(net.logvar_fourier.phases.max()) < 2 * math.pi


@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_a_body_of_low_precision(dtype, error):
    net, x, sigma = network(**SMALL), normal(3, 3, 8, 8), torch.tensor([0.1, 1.0, 10.0])
    with torch.no_grad():
        exact = net(x, sigma)
        net.compute_dtype = dtype
        rough, logvar = net(x, sigma, return_logvar=True)
    assert rough.dtype == logvar.dtype == torch.float32 and 0 < relative(rough, exact) < error


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"channels_per_head": 3}, "channels_per_head: got '3'; 16 channels do not divide into 5 heads"),
        ({"clip_act": 0}, "clip_act: got '0'; a positive number"),
        ({"res_balance": -0.1}, "res_balance: got '-0.1'"),
        ({"augment_dim": 9}, "argument: got 'augment_dim'"),
        ({"flavor": "enc"}, "argument: got 'flavor'"),
        ({"channel_mult_emb": 0}, "channel_mult_emb: got '0'"),
    ],
)
def test_arguments_that_make_no_network(change, words):
    with pytest.raises(InputError) as caught:
        build(**{**SMALL, **change})
    assert words in str(caught.value)


def test_augmentation_labels_are_refused():
    with pytest.raises(InputError, match="augment_labels: got"):
        network(**SMALL)(normal(3, 3, 8, 8), torch.ones(3), augment_labels=torch.zeros(3, 9))
