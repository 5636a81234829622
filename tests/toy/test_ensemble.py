"""Ensembles of small score networks: exact gradients, independence, targets, and whether they learn."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.stats import qmc
from torch import Tensor

from sims_core.diffusion import EDM, LogNormal, denoising_loss
from sims_core.errors import InputError
from sims_core.flow import coupling
from sims_core.guidance import extrapolate
from sims_core.sampling import Sampler, cosine_sigmas
from sims_core.seeds import Seed
from sims_toy.grid.parse import settle
from sims_toy.networks import ensemble as ensemble_module
from sims_toy.networks.ensemble import Ensemble, chunks, numba_available
from sims_toy.networks.mlp import Mlp, Stacked
from sims_toy.networks.schedule import Schedule, Training
from sims_toy.networks.settings import NetworkSettings
from sims_toy.networks.targets import (
    CosineSteps,
    CosineTime,
    EdmParametrisation,
    EpsilonParametrisation,
    Parametrisation,
    UniformAngle,
    UniformTime,
    VelocityParametrisation,
    along,
    posterior_mean,
    sobol,
    training_levels,
)
from sims_toy.networks.training import Trained, train

BACKENDS = ["torch", pytest.param("numba", marks=pytest.mark.skipif(not numba_available(), reason="needs numba"))]
MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
NEON = Mlp(2, (32,) * 5, "relu", linear_first=True)


def seeds(k: int, root: int = 0) -> list[Seed]:
    return [Seed(root).child(i) for i in range(k)]


def gaussian(k: int, n: int, d: int = 2) -> Tensor:
    """Off-centre, anisotropic data sets [k, n, d], float64."""
    rows = torch.stack([torch.from_numpy(Seed(7).child(i).numpy().standard_normal((n, d))) for i in range(k)])
    if d != 2:
        return rows * torch.arange(1, d + 1) / d + 0.3
    return rows @ torch.linalg.cholesky(COVARIANCE).T + MEAN


# ----------------------------------------------------- gradients and whole steps


def plain_network(mlp: Mlp, flat: Tensor, rows: Tensor) -> Tensor:
    """F of one network, written the usual way: flat [P], rows [n, d + 1] -> [n, d]."""
    h = rows
    for i, (offset, out, columns) in enumerate(mlp.layers):
        layer = flat[offset : offset + out * columns].reshape(out, columns)
        h = torch.nn.functional.linear(h, layer[:, :-1], layer[:, -1])
        if i < len(mlp.widths) and not (mlp.linear_first and i == 0):
            h = torch.nn.functional.silu(h) if mlp.activation == "silu" else torch.relu(h)
    return h


@pytest.mark.parametrize("activation", ["silu", "relu"])
@pytest.mark.parametrize("widths", [(5,), (8, 3), (16, 16, 16, 16)])
@pytest.mark.parametrize(("dim", "linear_first"), [(1, False), (2, True), (3, False)])
def test_gradients_equal_autograd(activation, widths, dim, linear_first):
    mlp = Mlp(dim, widths, activation, linear_first)
    flat = mlp.initial(seeds(3), "torch", torch.float64).requires_grad_()
    rows = torch.from_numpy(Seed(1).numpy().standard_normal((3, dim + 1, 40)))
    target = torch.from_numpy(Seed(2).numpy().standard_normal((3, dim, 40)))
    stack = Stacked(mlp, 3, 40, flat.detach())
    stack.input[:, :-1] = rows
    out = stack.forward(mlp.views(flat.detach())).clone()
    gradient = stack.backward(mlp.views(flat.detach()), 2 * (out - target))
    expected = torch.stack([plain_network(mlp, flat[k], rows[k].T).T for k in range(3)])
    torch.testing.assert_close(out, expected.detach(), rtol=1e-12, atol=1e-12)
    ((expected - target) ** 2).sum().backward()
    assert flat.grad is not None
    assert float((gradient - flat.grad).norm() / flat.grad.norm()) < 1e-12
    assert float((gradient - flat.grad).abs().max() / flat.grad.abs().max()) < 1e-6


EPSILON_NOISE = CosineSteps(50)


def reference_training(e: Ensemble, data: Tensor, settings: Training, seed: Seed) -> tuple[Tensor, list[float]]:
    """One network trained the usual way (torch.optim.Adam, autograd, core's loss) on the same draws."""
    flat = e.params[0].clone().requires_grad_()
    optimizer = torch.optim.Adam([flat], lr=1.0, betas=(settings.beta1, settings.beta2), eps=settings.eps)
    layout = settings.layout(e.mlp.dim, len(data))
    bits = seed.child("train").sequence().generate_state(1, np.uint64).view(np.int64)
    points, level, noise, subset = layout.draw(torch.from_numpy(bits), torch.arange(settings.steps), torch.float64)
    levels = training_levels(settings.noise, e.sigma_data, settings.levels)[0]
    std, losses = float(e.sigma_data[0]), []
    for t, rate in enumerate(settings.schedule.rates(settings.steps)):
        rows = slice(0, layout.rows)
        clean, n = data[points[0, t, rows]], noise[0, t, :, rows].T
        sigma = levels[level[0, t, rows]][:, None]
        x = clean + sigma * n
        if settings.target == "ot":
            clean = clean[coupling(n, clean)]
            x = clean + sigma * n
        answer = clean
        if settings.target == "posterior":
            answer = posterior_mean(x, sigma[:, 0], data[subset[0, t]] if layout.reference else data)
        if isinstance(e.parametrisation, EdmParametrisation):
            edm = EDM(std)
            raw = lambda x, c: plain_network(e.mlp, flat, torch.cat([x, c], 1))  # noqa: E731
            loss = denoising_loss(edm.denoiser(raw), answer, sigma, (x - answer) / sigma, edm.weight(sigma)).mean()
        elif isinstance(e.parametrisation, VelocityParametrisation):
            t = 1 / (1 + sigma)
            predicted = plain_network(e.mlp, flat, torch.cat([t * answer + (1 - t) * (x - answer) / sigma, t], 1))
            loss = ((predicted - (answer - (x - answer) / sigma)) ** 2).mean()
        else:
            predicted = plain_network(e.mlp, flat, torch.cat([x / (1 + sigma**2).sqrt(), CosineTime(50)(sigma)], 1))
            wanted = n + torch.where(sigma > 0, (clean - answer) / sigma.clamp(min=1e-300), 0)
            loss = ((predicted - wanted) ** 2).mean()
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return flat.detach(), losses


NOISE = {
    EdmParametrisation: UniformAngle(),
    EpsilonParametrisation: EPSILON_NOISE,
    VelocityParametrisation: UniformTime(),
}
WAYS = [EdmParametrisation(), EpsilonParametrisation(CosineTime(50)), VelocityParametrisation()]


@pytest.mark.parametrize("parametrisation", WAYS)
@pytest.mark.parametrize(
    "options",
    [
        {"target": "plain", "batch": 48},
        {"target": "posterior", "batch": 48},
        {"target": "posterior", "batch": 48, "reference": 20, "stratified": False},
        {"target": "plain", "batch": 500},
        {"target": "ot", "batch": 48},
    ],
)
def test_training_equals_the_usual_loop_in_float64(parametrisation: Parametrisation, options):
    """Same draws, autograd and torch.optim.Adam: the whole step is right, not only its gradient."""
    noise = NOISE[type(parametrisation)]
    settings = Training(steps=6, schedule=Schedule(1e-2, 2, "linear", 0.1), noise=noise, **options)
    e = Ensemble.initial(
        Mlp(2, (8, 8)), seeds(2), sigma_data=1.3, parametrisation=parametrisation, init="torch", dtype=torch.float64
    )
    data = gaussian(2, 70)
    found = train(e, data, seeds(2, 1), settings)
    for k in range(2):
        flat, losses = reference_training(e.take([k]), data[k], settings, seeds(2, 1)[k])
        assert found.loss[k].tolist() == pytest.approx(losses, rel=1e-6)
        torch.testing.assert_close(found.ensemble.params[k], flat, rtol=1e-6, atol=1e-7)
    assert not torch.equal(found.ensemble.params, e.params)


# ---------------------------------------------------------------- independence

SETTINGS = Training(steps=12, batch=40, schedule=Schedule(1e-2, 2), ema_halflife=200.0, ema_rampup=0.1)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("settings", "mlp"),
    [
        (SETTINGS, Mlp()),
        (replace(SETTINGS, target="plain", batch=300), Mlp(2, (19, 7), "relu")),
        (replace(SETTINGS, reference=33), Mlp(3, (20,))),
        (replace(SETTINGS, quasi=True), Mlp()),
    ],
)
def test_a_network_trained_alone_equals_itself_among_32(backend, settings, mlp):
    """Bit for bit, with neighbours of other sizes and sigma_data, and however the work is cut."""
    data, counts = gaussian(32, 150, mlp.dim).float(), torch.arange(32) % 3 * 40 + 70
    std = torch.linspace(0.5, 2, 32)
    e = Ensemble.initial(mlp, seeds(32), sigma_data=std, init="torch")
    among = train(e, data, seeds(32, 1), settings, counts=counts, backend=backend)
    chunked = train(e, data, seeds(32, 1), settings, counts=counts, backend=backend, chunk=5)
    assert torch.equal(among.ensemble.params, chunked.ensemble.params)
    assert torch.equal(among.loss, chunked.loss)
    for k in (0, 7, 31):
        own = Ensemble.initial(mlp, [seeds(32)[k]], sigma_data=float(std[k]), init="torch")
        assert torch.equal(own.params[0], e.params[k])
        alone = train(own, data[k : k + 1, : counts[k]], [seeds(32, 1)[k]], settings, backend=backend)
        assert torch.equal(alone.ensemble.params[0], among.ensemble.params[k])
        assert alone.ema is not None and among.ema is not None
        assert torch.equal(alone.ema.params[0], among.ema.params[k])
        assert torch.equal(alone.loss[0], among.loss[k])
    other = train(e, data, seeds(32, 2), settings, counts=counts, backend=backend)
    assert not torch.equal(other.ensemble.params[0], among.ensemble.params[0])


@pytest.mark.skipif(not numba_available(), reason="needs numba")
@pytest.mark.parametrize(
    ("settings", "mlp", "parametrisation"),
    [
        (Training(noise=LogNormal()), Mlp(), EdmParametrisation()),
        (Training(target="plain", batch=600), Mlp(2, (64, 24, 33)), EdmParametrisation()),
        (Training(reference=50, batch=100), Mlp(1, (9,), "relu"), EdmParametrisation()),
        (Training(batch=97, stratified=False, ema_halflife=500.0), Mlp(5, (16, 16)), EdmParametrisation()),
        (Training(target="plain", noise=CosineSteps()), NEON, EpsilonParametrisation()),
        (Training(noise=CosineSteps()), NEON, EpsilonParametrisation()),
        (Training(noise=UniformTime()), Mlp(2, (24, 24)), VelocityParametrisation()),
        (Training(quasi=True, batch=300), Mlp(2, (24, 24)), EdmParametrisation()),
        (Training(quasi=True, reference=50, target="posterior"), Mlp(3, (9,)), EdmParametrisation()),
        (Training(quasi=True, batch=50), Mlp(), EdmParametrisation()),
    ],
)
def test_the_compiled_kernel_equals_torch(settings, mlp, parametrisation):
    """To float32 rounding; a large eps keeps Adam from turning rounding in tiny gradients into whole steps."""
    settings = replace(settings, steps=25, eps=1e-2)
    data, counts = gaussian(3, 700, mlp.dim).float(), [700, 333, 51]
    e = Ensemble.initial(mlp, seeds(3), sigma_data=1.2, parametrisation=parametrisation, init="torch")
    found = [train(e, data, seeds(3, 1), settings, counts=counts, backend=b) for b in ("torch", "numba")]
    torch.testing.assert_close(found[0].loss, found[1].loss, rtol=2e-4, atol=1e-5)
    torch.testing.assert_close(found[0].ensemble.params, found[1].ensemble.params, rtol=1e-3, atol=5e-5)
    assert float((found[0].ensemble.params - e.params).abs().max()) > 1e-2  # the comparison is not of standing still
    if found[0].ema is not None and found[1].ema is not None:
        torch.testing.assert_close(found[0].ema.params, found[1].ema.params, rtol=1e-3, atol=5e-5)
    x = gaussian(3, 301, mlp.dim)
    for sigma in (torch.tensor(0.3), torch.tensor(7.0, dtype=torch.float64)):
        outputs = [found[0].ensemble.denoiser(backend=b)(x, sigma) for b in ("torch", "numba")]
        torch.testing.assert_close(*outputs, rtol=1e-5, atol=1e-5)


KERNEL = """
import hashlib
from tests.toy.test_ensemble import *
from sims_toy.networks import kernel
found = hashlib.sha256()
for mlp in (Mlp(2, (32, 32)), Mlp(3, (9,), "relu")):
    for settings in (Training(steps=20, batch=70), Training(steps=20, batch=300, target="plain", ema_halflife=500.0)):
        data, e = gaussian(3, 300, mlp.dim).float(), Ensemble.initial(mlp, seeds(3))
        made = train(e, data, seeds(3, 1), settings, backend="numba").ensemble
        for values in (made.params, made.denoiser(backend="numba")(data, torch.tensor(0.3))):
            found.update(values.numpy().tobytes())
both = (kernel._train, kernel._apply)
print(found.hexdigest(), [len(one.signatures) for one in both], [sum(one.stats.cache_hits.values()) for one in both])
"""


@pytest.mark.skipif(not numba_available(), reason="needs numba")
def test_compiled_code_from_disk_is_the_compiled_code_bit_for_bit(tmp_path):
    """Of one signature each, too: numba's index mixes up those that two processes compile at once."""
    env = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parents[2])}
    starts = [subprocess.run([sys.executable, "-c", KERNEL], env=env, capture_output=True, text=True) for _ in range(2)]
    assert all(start.returncode == 0 for start in starts), starts[0].stderr
    fresh, loaded = (start.stdout.split(maxsplit=1) for start in starts)
    assert fresh[1] == "[1, 1] [0, 0]\n" and loaded == [fresh[0], "[1, 1] [1, 1]\n"]


@pytest.mark.skipif(not numba_available(), reason="needs numba")
def test_compiled_code_of_other_flags_is_other_code(monkeypatch):
    from sims_toy.networks import kernel

    before = kernel._key()
    monkeypatch.setenv("NUMBA_CACHE_DIR", "elsewhere")
    assert kernel._key() == before
    monkeypatch.setenv("NUMBA_OPT", "1")
    assert kernel._key() != before


def test_without_numba_everything_falls_back_to_torch(monkeypatch):
    e, data = Ensemble.initial(Mlp(2, (8,)), seeds(2)), gaussian(2, 50).float()
    expected = train(e, data, seeds(2), replace(SETTINGS, steps=2), backend="torch")
    monkeypatch.setattr(ensemble_module, "numba_available", lambda: False)
    found = train(e, data, seeds(2), replace(SETTINGS, steps=2))
    assert torch.equal(found.ensemble.params, expected.ensemble.params)
    with pytest.raises(InputError, match="numba"):
        train(e, data, seeds(2), SETTINGS, backend="numba")


def test_full_batches_see_every_point_once_and_padding_is_never_read():
    layout = Training(batch=500).layout(2, 70)
    points = layout.draw(torch.tensor([5]), torch.arange(3), torch.float64)[0]
    assert layout.rows == 70 and torch.equal(points[0, 1, :70], torch.arange(70))
    e, data = Ensemble.initial(Mlp(2, (8,)), seeds(2)), gaussian(2, 90).float()
    data[:, 70:] = math.nan
    short = train(e, data[:, :70].clone(), seeds(2), SETTINGS)
    padded = train(e, data, seeds(2), SETTINGS, counts=[70, 70])
    assert torch.equal(short.ensemble.params, padded.ensemble.params)


# ------------------------------------------------------------ averages, schedules


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rampup", [None, 0.3])
def test_ema_equals_its_closed_form(backend, rampup):
    """Runs of 1, 2, ... steps give the path (the rate is constant), and the average is summed from it."""
    base = Training(batch=32, schedule=Schedule(1e-2, 0, "constant"), ema_halflife=96.0, ema_rampup=rampup)
    e, data = Ensemble.initial(Mlp(2, (8,)), seeds(2)), gaussian(2, 60).float()
    runs: list[Trained] = [train(e, data, seeds(2), replace(base, steps=s), backend=backend) for s in range(1, 8)]
    average = e.params.double()
    for s, run in enumerate(runs):
        halflife = 96.0 if rampup is None else min(96.0, s * 32 * rampup)
        beta = 0.5 ** (32 / halflife) if halflife else 0.0
        average = beta * average + (1 - beta) * run.ensemble.params.double()
        assert run.ema is not None
        torch.testing.assert_close(run.ema.params.double(), average, rtol=1e-5, atol=1e-6)


def test_schedules():
    assert Schedule(2.0, 4, "constant").rates(6).tolist() == pytest.approx([0.5, 1, 1.5, 2, 2, 2])
    assert Schedule(1.0, 0, "linear", 0.5).rates(5).tolist() == pytest.approx([1, 0.875, 0.75, 0.625, 0.5])
    assert Schedule(1.0, 0, "cosine").rates(3).tolist() == pytest.approx([1, 0.5, 0], abs=1e-12)
    assert Schedule(1.0, 2, "linear").rates(5).tolist() == pytest.approx([0.5, 1, 1, 0.5, 0])


# ---------------------------------------------------------------------- quality


def distance(mean: Tensor, covariance: Tensor) -> Tensor:
    """Bures-Wasserstein W2 of Gaussians with these moments (K, ...) from the source."""

    def root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT

    half = root(COVARIANCE)
    cross = root(half @ covariance @ half)
    trace = sum(m.diagonal(dim1=-2, dim2=-1).sum(-1) * w for m, w in ((covariance, 1), (COVARIANCE, 1), (cross, -2)))
    return (((mean - MEAN) ** 2).sum(-1) + trace).clamp(min=0).sqrt()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    centred = x - x.mean(1, keepdim=True)
    return x.mean(1), centred.mT @ centred / x.shape[1]


def samples(e: Ensemble, n: int = 2**13) -> Tensor:
    """Each network's samples: a bias-free sampler, and even, whitened normal points that have no moment noise."""
    z = stats.norm.ppf(qmc.Sobol(2, seed=0).random(n))
    z = z - z.mean(0)
    z = torch.from_numpy(z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / len(z))).T)
    sampler = Sampler.parse("rk4:4", sigma_data=float(e.sigma_data[0]))
    return sampler(e.denoiser(), z.expand(len(e), -1, -1))


def generated(e: Ensemble) -> Tensor:
    """W2 of each network's samples."""
    return distance(*moments(samples(e)))


def test_200_adam_steps_reach_the_maximum_likelihood_fit():
    """The default settings, on 64 data sets of 1,000 points; and an untrained network is nowhere near."""
    data = gaussian(64, 1000)
    floor = float(distance(*moments(data)).mean())
    e = Ensemble.initial(Mlp(), seeds(64), sigma_data=math.sqrt(2))
    assert Training().steps == 200
    trained = train(e, data.float(), seeds(64, 1), Training())
    reached = float(generated(trained.ensemble).mean())
    assert reached <= 1.10 * floor
    untrained = float(generated(e.take([0])).mean())
    assert untrained > 10 * reached
    noisy = train(e, data.float(), seeds(64, 1), Training(target="plain"))
    assert float(generated(noisy.ensemble).mean()) > 1.15 * floor  # what the posterior target is for


# ------------------------------------------------------------------- quasi-random


def test_sobol_points_are_scipys():
    mine = sobol(torch.arange(256), 6)
    theirs = (qmc.Sobol(6, scramble=False).random(256) * 2**32).astype(np.int64)
    assert {tuple(row) for row in mine.tolist()} == {tuple(row) for row in theirs.tolist()}
    assert torch.equal(sobol(torch.tensor([[3], [200]]), 6)[:, 0], mine[[3, 200]])


def test_quasi_rows_are_spread_in_every_step_and_of_the_right_distribution():
    layout = Training(batch=64, quasi=True).layout(2, 1000)
    keys = torch.tensor([5, -7])
    points, levels, noise, _ = layout.draw(keys, torch.arange(400), torch.float64)
    for values, top in ((points, 1000), (levels, 1024)):
        strata = (values * 64 // top).sort(-1).values - torch.arange(64)
        assert int(strata.abs().max()) <= 1  # one in each of 64, but for a bound that a whole number shares
        assert not torch.equal(values[0], values[1])  # each network turns the sequence its own way
    flat = noise.transpose(1, 2).flatten(2)  # [2, dim, rows]
    for row in flat.flatten(0, 1):
        assert stats.kstest(row.numpy(), "norm").pvalue > 1e-3
    together = torch.stack([points[0].flatten() / 1000, levels[0].flatten() / 1024, *flat[0]]).numpy()
    assert float(np.abs(np.corrcoef(together) - np.eye(4)).max()) < 0.01


@pytest.mark.parametrize("rows", [8, 33, 50, 64, 100, 200])
def test_quasi_rows_visit_all_the_data_whatever_the_batch(rows):
    """Numbered with the padding's rows, those of 50 would never see 210 of 1,000 points."""
    points = Training(batch=rows, quasi=True).layout(2, 1000).draw(torch.tensor([5]), torch.arange(400), torch.float64)
    counts = torch.bincount(points[0][0, :, :rows].flatten(), minlength=1000)
    assert int(counts.min()) >= 0.6 * rows * 0.4 and int(counts.max()) <= 1.5 * rows * 0.4 + 1


def test_the_noise_of_every_point_of_a_full_quasi_batch_is_of_variance_one():
    layout = Training(batch=200, quasi=True).layout(2, 200)
    noise = layout.draw(torch.tensor([5]), torch.arange(300), torch.float64)[2][0, :, :, :200]
    assert float((noise.square().mean((0, 1)) - 1).square().mean().sqrt()) < 0.08  # random draws: .06


@pytest.mark.parametrize("backend", ["torch", "numba"])
def test_a_quasi_sequence_that_is_too_short_is_one_clear_line(backend):
    settings = Training(steps=20_000_000, quasi=True)
    with pytest.raises(InputError, match=r"^steps: got '20000000'; .* 1,073,741,824"):
        train(Ensemble.initial(Mlp(), seeds(1)), gaussian(1, 100).float(), seeds(1, 1), settings, backend=backend)


def test_along_sorts_by_the_principal_coordinate():
    data = torch.randn(50, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 9.0])
    moved = along(data)
    assert torch.equal(moved[:, 1].sort().values, data[:, 1].sort().values)
    assert abs(stats.spearmanr(np.arange(50), moved[:, 1]).statistic) > 0.99


def test_quasi_draws_come_nearer_to_the_fit_in_as_many_steps():
    """Squared distances between trained networks and the fit of their own points, paired: by more than a quarter."""
    data = gaussian(64, 1000) - MEAN
    e, fit = Ensemble.initial(Mlp(), seeds(64), sigma_data=math.sqrt(2)), moments(data)
    squares = []
    for draws in ("random", "quasi"):
        settings = NetworkSettings(steps=200, draws=draws).training(1000)  # type: ignore[arg-type]
        trained = train(e, data.float(), seeds(64, 1), settings).ema
        mean, cov = moments(samples(trained))
        gap = (mean - fit[0]).square().sum(1) + (cov - fit[1]).square().sum((1, 2))
        squares.append(gap.numpy())
    gain = 0.75 * squares[0] - squares[1]
    assert gain.mean() > 2 * gain.std() / 8


def test_random_draws_go_unsaid_in_a_record():
    assert "draws" not in NetworkSettings().record() and NetworkSettings(draws="quasi").record()["draws"] == "quasi"


# -------------------------------------------------------------------- divergence


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("which", ["gradient", "loss"])
def test_a_diverged_network_is_recorded_and_disturbs_nobody(backend, which):
    data = gaussian(4, 60).float()
    e = Ensemble.initial(Mlp(2, (8, 8), "relu"), seeds(4), init="torch")
    settings = replace(SETTINGS, target="plain")
    clean = train(e, data, seeds(4), settings, backend=backend)
    assert not clean.diverged.any()
    if which == "gradient":
        data[2] *= 1e30  # finite, but its square is not
    else:  # silent units under an output of 1e25: only the loss overflows, and every gradient is finite
        e.params[2] = 0
        e.mlp.views(e.params)[0][2, :, -1] = -1
        e.mlp.views(e.params)[-1][2, :, -1] = 1e25
    found = train(e, data, seeds(4), settings, backend=backend)
    assert found.diverged.tolist() == [False, False, True, False]
    assert found.ensemble.params[2].isnan().all() and found.loss[2].isfinite().logical_not().all()
    assert found.ema is not None and clean.ema is not None and found.ema.params[2].isnan().all()
    for k in (0, 1, 3):
        assert torch.equal(found.ensemble.params[k], clean.ensemble.params[k])
        assert torch.equal(found.ema.params[k], clean.ema.params[k])
    assert found.ensemble.denoiser(backend=backend)(data, torch.tensor(1.0))[2].isnan().all()


# -------------------------------------------------------- denoisers and ensembles


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_denoiser_is_the_cores(backend):
    std = torch.tensor([0.5, 1.4, 3.0])
    e, x = Ensemble.initial(Mlp(2, (8, 8)), seeds(3), sigma_data=std, init="torch"), gaussian(3, 600)
    sigmas = torch.tensor([0.1, 1.0, 10.0], dtype=torch.float64)[:, None, None]
    found = e.denoiser(backend=backend)(x, sigmas)
    assert found.dtype == x.dtype
    for k in range(3):
        raw = lambda x, c, k=k: plain_network(  # noqa: E731
            e.mlp, e.params[k].double(), torch.cat([x, c.expand(len(x), 1)], 1)
        )
        expected = EDM(float(std[k])).denoiser(raw)(x[k], sigmas[k])
        torch.testing.assert_close(found[k], expected, rtol=1e-5, atol=1e-5)
        level = e.denoiser(backend=backend)(x, sigmas[k, 0, 0])[k]  # a zero-dim sigma
        torch.testing.assert_close(found[k], level, rtol=1e-6, atol=1e-6)
    rows = sigmas.expand(3, 600, 1)
    torch.testing.assert_close(e.denoiser(backend=backend)(x, rows), found, rtol=1e-6, atol=1e-6)


def test_neons_network_and_its_time_mismatch():
    """The published toy: 3 -> 32 linear, four ReLU blocks, epsilon-prediction, PyTorch's default initialisation."""
    e = Ensemble.initial(NEON, seeds(1), parametrisation=EpsilonParametrisation(CosineTime(1000)), dtype=torch.float64)
    assert NEON.size == 3 * 32 + 32 + 4 * (32 * 32 + 32) + 2 * 32 + 2
    blocks: list[torch.nn.Module] = [torch.nn.Linear(3, 32)]
    for width in (32, 32, 32, 32):
        blocks += [torch.nn.Linear(32, width), torch.nn.ReLU()]
    network = torch.nn.Sequential(*blocks, torch.nn.Linear(32, 2)).double()
    linears = [m for m in network if isinstance(m, torch.nn.Linear)]
    for linear, layer in zip(linears, NEON.views(e.params), strict=True):
        bound = 1 / math.sqrt(linear.in_features)
        assert 0.8 * bound < float(layer.abs().max()) <= bound
        linear.weight.data, linear.bias.data = layer[0, :, :-1], layer[0, :, -1]
    x, sigma = gaussian(1, 40), cosine_sigmas(20)[5]
    for denoiser, time in ((e.denoiser(), CosineTime(1000)(sigma)), (e.denoiser(time=CosineTime(20)), 14 / 19)):
        rows = torch.cat([x[0] / (1 + sigma**2).sqrt(), torch.full((40, 1), float(time), dtype=torch.float64)], 1)
        torch.testing.assert_close(denoiser(x, sigma)[0], x[0] - sigma * network(rows).detach(), rtol=1e-6, atol=1e-6)


def test_select_join_copy_merge_and_files(tmp_path: Path):
    e = Ensemble.initial(Mlp(2, (8,)), seeds(4), sigma_data=torch.arange(1.0, 5.0))
    part = e.take([2, 0])
    assert torch.equal(part.params, e.params[[2, 0]]) and part.sigma_data.tolist() == [3.0, 1.0]
    joined = Ensemble.concatenate([part, e])
    assert len(joined) == 6 and torch.equal(joined.params[2:], e.params)
    with pytest.raises(InputError, match="first"):
        Ensemble.concatenate([e, Ensemble.initial(Mlp(2, (9,)), seeds(1))])
    copy = e.clone()
    copy.params.zero_()
    assert not torch.equal(copy.params, e.params)
    merged = e.with_params(extrapolate(e.params, copy.params, 0.5))
    torch.testing.assert_close(merged.params, 1.5 * e.params)
    epsilon = Ensemble.initial(NEON, seeds(2), parametrisation=EpsilonParametrisation(CosineTime(1000)))
    velocity = Ensemble.initial(Mlp(2, (8,)), seeds(2), parametrisation=VelocityParametrisation())
    for which in (e, epsilon, velocity):
        which.save(tmp_path / "networks.npz")
        back = Ensemble.load(tmp_path / "networks.npz")
        assert torch.equal(back.params, which.params) and torch.equal(back.sigma_data, which.sigma_data)
        assert (back.mlp, back.parametrisation) == (which.mlp, which.parametrisation)
    np.savez(tmp_path / "other.npz", params=e.params.numpy())
    with pytest.raises(InputError, match="not written by"):
        Ensemble.load(tmp_path / "other.npz")
    with pytest.raises(InputError, match="CosineTime"):
        replace(epsilon, parametrisation=EpsilonParametrisation(torch.log)).save(tmp_path / "x.npz")


def test_training_leaves_its_input_alone_and_repeats():
    e, data = Ensemble.initial(Mlp(2, (8,)), seeds(2)), gaussian(2, 60).float()
    before = e.params.clone()
    runs = [train(e, data, seeds(2), SETTINGS) for _ in range(2)]
    assert torch.equal(e.params, before) and torch.equal(runs[0].ensemble.params, runs[1].ensemble.params)
    assert runs[0].loss.shape == (2, SETTINGS.steps)


@pytest.mark.parametrize(
    ("argument", "change"),
    [
        ("data", {"data": torch.zeros(2, 50, 3)}),
        ("data", {"data": torch.full((2, 50, 2), math.nan)}),
        ("seeds", {"seeds": seeds(3)}),
        ("counts", {"counts": [50, 51]}),
        ("counts", {"counts": [0, 50]}),
        ("backend", {"backend": "nunba"}),
        ("chunk", {"chunk": 0, "backend": "torch"}),
        ("cuda_graph", {"cuda_graph": True}),
        ("noise", {"settings": Training(steps=1, noise=CosineSteps())}),
    ],
)
def test_bad_input_is_named(argument, change):
    e = Ensemble.initial(Mlp(2, (8,)), seeds(2))
    given = {"data": torch.zeros(2, 50, 2), "seeds": seeds(2), "settings": Training(steps=1)} | change
    with pytest.raises(InputError, match=f"^{argument}: got"):
        train(e, **given)


@pytest.mark.parametrize(
    ("argument", "build"),
    [
        ("widths", lambda: Mlp(2, ())),
        ("dim", lambda: Mlp(0)),
        ("activation", lambda: Mlp(2, (8,), "gelu")),
        ("init", lambda: Mlp().initial(seeds(1), "zeros")),
        ("sigma_data", lambda: Ensemble.initial(Mlp(), seeds(2), sigma_data=0.0)),
        ("params", lambda: Ensemble(Mlp(), torch.zeros(2, 3), torch.ones(2))),
        ("target", lambda: Training(target="posterio")),
        ("reference", lambda: Training(target="plain", reference=10)),
        ("steps", lambda: Training(steps=0)),
        ("decay", lambda: Schedule(decay="step")),
        ("schedule", lambda: Schedule(peak=-1.0)),
        ("time", lambda: Ensemble.initial(Mlp(), seeds(1)).denoiser(time=CosineTime())),
        ("x", lambda: Ensemble.initial(Mlp(), seeds(2)).denoiser()(torch.zeros(3, 5, 2), torch.tensor(1.0))),
        ("ema_halflife", lambda: Training(ema_halflife=0.0)),
        ("noise", lambda: Training(noise="cosine")),
    ],
)
def test_bad_settings_are_named(argument, build):
    with pytest.raises(InputError, match=f"^{argument}: got"):
        build()


def test_chunks_on_a_gpu_fit_it():
    """The distances of the posterior target are the largest tensor: steps x rows x points a network."""
    networks, gpu, scratch = torch.arange(16384), torch.device("cuda", 0), 8 * 64 * 1000
    assert [len(part) for part in chunks(networks, Mlp(), 64, gpu)] == [16384]
    sizes = [len(part) for part in chunks(networks, Mlp(), 64, gpu, scratch=scratch)]
    assert sum(sizes) == 16384 and 4 * scratch * max(sizes) <= 2**30


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    for device, words in (("cuda:7", "CUDA devices"), ("gpu", "write cpu, cuda or cuda:N")):
        with pytest.raises(InputError, match=f"network.device: got '{device}'.*{words}"):
            settle(NetworkSettings(device=device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert settle(NetworkSettings(device="cuda")).backend == "torch"
    with pytest.raises(InputError, match=r"network\.backend"):
        settle(NetworkSettings(device="cuda", backend="numba"))
