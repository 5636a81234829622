"""Views of other libraries' networks against those libraries' own samplers, on the same weights and noise."""

import itertools
import math

import pytest
import torch
from torch import nn

from sims_core import EDM, InputError, Sampler, Seed, denoiser, generate, guide
from sims_core.sampling import sample

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers
NOISE = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(2))


def assert_near(found, expected, tolerance=1e-4):
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < tolerance * max(1.0, float(expected.abs().max()))


class Small(nn.Module):
    """A network on (B, 3, 8, 8) that any library could call: takes a time of any shape, bounded output."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 3, padding=1)
        self.scale, self.told = scale, []
        with torch.no_grad():
            for weight in self.parameters():
                weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(4)))

    def respond(self, x, time, shift):
        assert x.dtype == self.layer.weight.dtype
        self.told.append(time)
        phase = torch.as_tensor(time / self.scale).reshape(-1, 1, 1, 1).to(x.dtype)
        return self.layer(x).tanh() * (1 + phase) + shift


class Diffusers(Small):
    def forward(self, sample, timestep, shift=0.0):
        assert timestep.shape in {(), (len(sample),)}
        return (self.respond(sample, timestep, shift),)


# ------------------------------------------------------------------------- diffusers

BETAS = [
    ("DDIMScheduler", "euler", {"clip_sample": False, "prediction_type": kind, "beta_schedule": betas})
    for kind, betas in (("epsilon", "linear"), ("sample", "scaled_linear"), ("v_prediction", "squaredcos_cap_v2"))
] + [
    (
        "DDIMScheduler",
        "euler",
        {"clip_sample": False, "rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ),
    ("DPMSolverMultistepScheduler", "euler", {"solver_order": 1, "timestep_spacing": "leading"}),
    ("EulerDiscreteScheduler", "euler", {"timestep_spacing": "leading", "prediction_type": "v_prediction"}),
    ("HeunDiscreteScheduler", "heun", {"timestep_spacing": "leading"}),
    ("EDMEulerScheduler", "euler", {"prediction_type": "epsilon"}),
    ("EDMEulerScheduler", "euler", {"prediction_type": "v_prediction", "sigma_data": 1.0}),
    ("FlowMatchEulerDiscreteScheduler", "euler", {"shift": 3.0}),
]


def scheduled(name, settings, steps=5):
    diffusers = pytest.importorskip("diffusers")
    made = getattr(diffusers, name)(**settings)
    made.set_timesteps(steps)
    return made


def their_loop(network, scheduler, x):
    """The loop of every pipeline of diffusers."""
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        x = scheduler.step(network(seen, t, shift=0.1)[0], t, x).prev_sample
    return x


@pytest.mark.parametrize(("name", "solver", "settings"), BETAS, ids=lambda v: str(v))
@torch.no_grad()
def test_our_sampler_is_their_loop(name, solver, settings):
    scheduler = scheduled(name, settings)
    network = Diffusers(1000.0)
    form = denoiser.form_of(scheduler)
    levels = denoiser.sigmas(scheduler)
    if name.startswith("FlowMatch"):  # begin below s = 1, where sigma is infinite
        scheduler.timesteps, scheduler.sigmas = scheduler.timesteps[1:], scheduler.sigmas[1:]
        levels = torch.cat([form.level(scheduler.timesteps.double()), torch.zeros(1).double()])
    if solver == "heun":
        levels = levels.unique_consecutive()
    start = NOISE.double() * (levels[0] ** 2 + 1).sqrt()  # VE; their state is scaled
    theirs = start if name[:3] in ("Eul", "Heu", "EDM") else form.scale(levels[0]) * start
    expected = their_loop(network, scheduler, theirs.float())
    found = sample(denoiser.from_diffusers(network, scheduler, shift=0.1), start, levels, solver=solver)
    assert found.dtype == torch.float64
    assert_near(found, expected)
    assert float((found - start).abs().max()) > 1  # it went somewhere


@torch.no_grad()
def test_a_unet_of_diffusers_generates_with_our_sampler_and_a_held_guidance():
    foreign = pytest.importorskip("tests.core.foreign")
    scheduler = scheduled("DDIMScheduler", {"clip_sample": False}, steps=6)
    base = foreign.unet()
    levels = denoiser.sigmas(scheduler)
    x = NOISE
    for t in scheduler.timesteps:
        x = scheduler.step(base(x, t).sample, t, x).prev_sample
    view = denoiser.from_diffusers(base, scheduler)
    assert_near(sample(view, NOISE * (levels[0] ** 2 + 1).sqrt(), levels, solver="euler"), x)

    auxiliary = foreign.moved(base)
    heun = view.fitted(Sampler.parse("heun:3"))
    assert view.span[0] <= heun.sigma_min and heun.sigma_max == pytest.approx(80)
    both = denoiser.from_diffusers(guide(base, auxiliary, 1.5), scheduler)
    for made in (both, denoiser.from_diffusers(guide(base, auxiliary, 1.5, guidance="held:1"), scheduler)):
        drawn = [x for _, x in generate(made, heun, range(3), (3, 8, 8), seed=Seed(0), batch=2)]
        assert [len(x) for x in drawn] == [2, 1] and all(bool(x.isfinite().all()) for x in drawn)


@torch.no_grad()
def test_conditions_and_a_learned_variance_of_a_dit():
    foreign = pytest.importorskip("tests.core.foreign")
    network = foreign.dit(learned_variance=True)
    scheduler = scheduled("DDIMScheduler", {"clip_sample": False})
    labels, x, t = torch.tensor([1, 7]), torch.randn(2, 4, 8, 8), torch.tensor(400)
    view = denoiser.from_diffusers(network, scheduler, class_labels=labels)
    sigma = denoiser.form_of(scheduler).level(t.double())
    noise = network((x / (1 + sigma**2).sqrt()).float(), t.expand(2), class_labels=labels).sample[:, :4]
    assert_near(view(x.double(), sigma), x - sigma * noise, 1e-6)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_view_computes_in_the_networks_precision_and_answers_in_the_callers(dtype):
    scheduler = scheduled("DDPMScheduler", {})
    network = Diffusers(1000.0).to(dtype)
    assert denoiser.from_diffusers(network, scheduler)(NOISE.double(), torch.tensor(2.0)).dtype == torch.float64
    rows = torch.tensor([0.5, 3.0]).reshape(2, 1, 1, 1)  # a sigma a sample
    made = denoiser.from_diffusers(network, scheduler)(NOISE.double(), rows)
    for row, sigma in enumerate((0.5, 3.0)):
        alone = denoiser.from_diffusers(network, scheduler)(NOISE[row : row + 1].double(), torch.tensor(sigma))
        assert_near(made[row : row + 1], alone, 0.05 if dtype == torch.bfloat16 else 1e-6)


def test_levels_of_the_table_are_told_as_whole_numbers():
    scheduler = scheduled("DDPMScheduler", {})
    network = Diffusers(1000.0)
    view = denoiser.from_diffusers(network, scheduler)
    bars = scheduler.alphas_cumprod.double()
    view(NOISE, ((1 - bars[417]) / bars[417]).sqrt())
    assert network.told[-1].tolist() == [417, 417] and network.told[-1].dtype == torch.int64
    view(NOISE, torch.tensor(1.0))
    assert network.told[-1].dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda s: denoiser.from_diffusers(Diffusers(), s)(NOISE, torch.tensor(900.0)),
            "sigma: got .*from 0.01 to 157",
        ),
        (lambda s: denoiser.from_diffusers(Diffusers(), s)(NOISE, torch.tensor(1e-3)), r"view.fitted\(sampler\)"),
        (lambda s: denoiser.from_diffusers(Diffusers(), object()), "scheduler: got 'object'; give one with betas"),
        (lambda s: denoiser.from_velocity(Diffusers(), "straight"), "path: got 'straight'; choose from cond-ot"),
        (lambda s: denoiser.from_velocity(Diffusers(), 3), "path: got 'int'"),
        (lambda s: denoiser.from_edm(Diffusers(), sigma_data=0.0), "sigma_data"),
        (lambda s: denoiser.from_edm(lambda x, c: x[:, :2])(NOISE, torch.tensor(1.0)), "network: got"),
    ],
)
def test_bad_input(make, words):
    with pytest.raises(InputError, match=words):
        make(scheduled("DDPMScheduler", {}))


def test_unsupported_prediction_types_and_schedulers_are_named():
    scheduler = scheduled("DDPMScheduler", {})
    scheduler.register_to_config(prediction_type="score")
    with pytest.raises(InputError, match="prediction_type: got 'score'; choose from epsilon, sample, v_prediction"):
        denoiser.form_of(scheduler)
    diffusers = pytest.importorskip("diffusers")
    with pytest.raises(InputError, match="scheduler: got 'KarrasVeScheduler'; give one with betas"):
        denoiser.form_of(diffusers.KarrasVeScheduler())


# ------------------------------------------------------------ k-diffusion, EDM, flows


class Karras(Small):
    """k-diffusion's convention: x unscaled, sigma (B,), the denoised image back."""

    def forward(self, input, sigma, **extra):
        assert sigma.shape == (len(input),) and sigma.dtype == torch.float32
        return input / (1 + sigma.reshape(-1, 1, 1, 1) ** 2) + self.respond(input, sigma, extra["shift"])


@torch.no_grad()
def test_k_diffusion():
    """Its sample_heun (without churn), written out: ``denoised = model(x, sigma * s_in, **extra_args)``."""
    model, levels = Karras(50.0), torch.tensor([20.0, 6.0, 2.0, 0.5, 0.0])
    x, s_in, extra = NOISE * 20, NOISE.new_ones(2), {"shift": 0.1}
    for sigma, target in itertools.pairwise(levels):
        d = (x - model(x, sigma * s_in, **extra)) / sigma
        if target == 0:
            x = x + d * (target - sigma)
        else:
            end = x + d * (target - sigma)
            other = (end - model(end, target * s_in, **extra)) / target
            x = x + (d + other) / 2 * (target - sigma)
    assert_near(sample(denoiser.from_kdiffusion(model, shift=0.1), NOISE * 20, levels, solver="heun"), x)


class Raw(Small):
    def forward(self, x, noise_labels):
        assert noise_labels.shape == (len(x),)
        return self.respond(x, noise_labels, 0.0)


@torch.no_grad()
def test_edm_on_a_float32_network():
    network, edm, sigma = Raw(), EDM(0.7), torch.tensor(1.3)
    inner = network(edm.c_in(sigma) * NOISE, edm.c_noise(sigma).expand(2))
    expected = edm.c_skip(sigma) * NOISE + edm.c_out(sigma) * inner
    found = denoiser.from_edm(network, sigma_data=0.7)(NOISE.double(), sigma.double())
    assert found.dtype == torch.float64
    assert_near(found, expected, 1e-6)
    plain = nn.Linear(3, 3)
    own = edm.denoiser(_Two(plain))(torch.ones(2, 3, dtype=torch.float64), sigma.double())
    assert own.dtype == torch.float64


class _Two(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, noise):
        return self.layer(x) + noise


class Velocity(Small):
    """Meta's convention: x, t."""

    def forward(self, x, t, **extras):
        assert t.ndim == 0 and t.dtype == torch.float32
        return self.respond(x, t, extras["shift"])


class TimeFirst(Small):
    """torchcfm's convention: t, x."""

    def forward(self, t, x, shift=0.0):
        return self.respond(x, t, shift)


def start_of(form, t):
    """(sigma, x = y + sigma n at it) of a state at time t: noise alone has no finite sigma."""
    at = torch.tensor(t, dtype=torch.float64)
    sigma = form.level(at)
    return sigma, NOISE.double() / form.scale(sigma)


@pytest.mark.parametrize("path", ["cond-ot", "CondOTScheduler", "CosineScheduler", "VPScheduler", "AffineProbPath"])
@torch.no_grad()
def test_flow_matching(path):
    """ODESolver at fine steps, and our sampler at fine steps, of one ODE: they meet."""
    solver = pytest.importorskip("flow_matching.solver").ODESolver
    paths = pytest.importorskip("flow_matching.path")
    schedulers = pytest.importorskip("flow_matching.path.scheduler")
    if path == "cond-ot":
        given = path
    elif path == "AffineProbPath":
        given = paths.AffineProbPath(scheduler=schedulers.CondOTScheduler())
    else:
        given = getattr(schedulers, path)()
    model, begin = Velocity(3.0), 0.2
    view = denoiser.from_velocity(model, given, shift=0.1)
    grid = torch.linspace(begin, 1 - 1e-4, 81)
    expected = solver(velocity_model=model).sample(
        x_init=NOISE, step_size=None, method="midpoint", time_grid=grid, shift=0.1
    )
    form = denoiser.form_of(given)
    _, x = start_of(form, begin)
    levels = torch.cat([form.level(grid.double()), torch.zeros(1).double()])
    assert_near(sample(view, x, levels, solver="heun"), expected, 2e-3)


@torch.no_grad()
def test_flow_matching_by_euler_step_for_step():
    """On the straight path Euler's steps are ours, whichever way they are written."""
    solver = pytest.importorskip("flow_matching.solver").ODESolver
    model, grid = Velocity(3.0), torch.tensor([0.2, 0.5, 0.8, 1.0])
    expected = solver(velocity_model=model).sample(x_init=NOISE, step_size=None, time_grid=grid, shift=0.1)
    _, x = start_of(denoiser.form_of("cond-ot"), 0.2)
    levels = denoiser.form_of("cond-ot").level(grid.double())
    assert_near(sample(denoiser.from_velocity(model, shift=0.1), x, levels, solver="euler"), expected)


@pytest.mark.parametrize("path", ["cond-ot", "cosine"])
@torch.no_grad()
def test_networks_that_take_time_first(path):
    """torchcfm's networks, sampled as its notebooks do: ``odeint(lambda t, x: model(t, x), ...)``."""
    odeint = pytest.importorskip("torchdiffeq").odeint
    model, begin = TimeFirst(3.0), 0.2
    grid = torch.linspace(begin, 1 - 1e-4, 81)
    expected = odeint(model, NOISE, grid, method="midpoint")[-1]
    form = denoiser.form_of(path)
    _, x = start_of(form, begin)
    levels = torch.cat([form.level(grid.double()), torch.zeros(1).double()])
    assert_near(sample(denoiser.from_velocity(model, path), x, levels, solver="heun"), expected, 2e-3)


@torch.no_grad()
def test_torchcfms_own_networks():
    unet = pytest.importorskip("torchcfm.models.unet")
    odeint = pytest.importorskip("torchdiffeq").odeint
    model = unet.UNetModel(dim=(3, 8, 8), num_channels=32, num_res_blocks=1, channel_mult=[1]).eval()
    grid = torch.tensor([0.2, 0.5, 0.8, 1.0])
    expected = odeint(model, NOISE, grid, method="euler")[-1]
    _, x = start_of(denoiser.form_of("cond-ot"), 0.2)
    levels = denoiser.form_of("cond-ot").level(grid.double())
    assert_near(sample(denoiser.from_velocity(model), x, levels, solver="euler"), expected)


def test_paths_by_name_are_their_formulas():
    t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64, requires_grad=True)
    for at, inverse in denoiser.PATHS.values():
        alpha, sigma, d_alpha, d_sigma = at(t)
        for value, slope in ((alpha, d_alpha), (sigma, d_sigma)):
            torch.testing.assert_close(torch.autograd.grad(value.sum(), t, retain_graph=True)[0], slope)
        torch.testing.assert_close(inverse(alpha / sigma), t)
    alpha, sigma, *_ = denoiser.PATHS["cosine"][0](t)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(t))
    assert math.isclose(float(denoiser.form_of("cond-ot").level(torch.tensor(0.25))), 3.0)


# ------------------------------------------------------------------------ the way back

FORMS = [
    ("DDPMScheduler", {"prediction_type": "epsilon"}, 400.0),
    ("DDPMScheduler", {"prediction_type": "sample"}, 400.0),
    ("DDPMScheduler", {"prediction_type": "v_prediction"}, 400.0),
    ("FlowMatchEulerDiscreteScheduler", {}, 400.0),
    ("EDMEulerScheduler", {"prediction_type": "v_prediction"}, -0.3),
]


@torch.no_grad()
@pytest.mark.parametrize(("name", "settings", "time"), FORMS)
def test_a_view_and_back_is_the_network(name, settings, time):
    scheduler = scheduled(name, settings)
    network = Diffusers(1000.0)
    back = denoiser.to_network(denoiser.from_diffusers(network, scheduler), scheduler)
    for told in (torch.tensor(time), torch.tensor([time, time / 2])):
        assert_near(back(NOISE, told), network(NOISE, told)[0], 1e-5)


@torch.no_grad()
def test_an_exact_denoiser_is_carried_by_other_libraries_samplers():
    """The denoiser of N(2, 0.5^2) takes noise to its mean and deviation, in diffusers' loop and by an ODE solver."""

    def exact(x, sigma):
        return (0.25 * x + 2 * sigma**2) / (0.25 + sigma**2)

    noise = torch.randn(4000, 3, generator=torch.Generator().manual_seed(0))
    scheduler, x = scheduled("DDIMScheduler", {"clip_sample": False}, steps=100), noise
    network = denoiser.to_network(exact, scheduler)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    solver = pytest.importorskip("flow_matching.solver").ODESolver(velocity_model=denoiser.to_network(exact, "cond-ot"))
    flown = solver.sample(x_init=noise, step_size=0.02, method="midpoint")
    for made in (x, flown):  # a linear map of the noise, so that the draws' own error drops out
        slope, offset = made.std() / noise.std(), made.mean() - noise.mean() * made.std() / noise.std()
        assert abs(float(slope) - 0.5) < 0.02 and abs(float(offset) - 2) < 0.02
    karras, told = denoiser.to_network(exact), torch.full((4000,), 2.0)
    assert torch.equal(karras(noise, told), exact(noise.double(), torch.tensor(2.0)).float())
    with pytest.raises(TypeError, match="class_cond"):
        karras(noise, told, class_cond=1)
