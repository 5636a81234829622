"""guide(): a pipeline, a scheduler's loop or an ODE solver runs the SIMS model and does not know of it."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from sims_core import GuidanceSchedule, InputError, guide
from sims_core.guidance import RULES, extrapolate, merge_weights

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),  # diffusers' schedulers
    pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning"),  # of two adapters
]
X = torch.linspace(-1, 1, 12).reshape(4, 3)


class Told(nn.Module):
    """A network on vectors that is told a time, counts its calls and remembers when they were."""

    def __init__(self, slope):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        nn.init.constant_(self.layer.weight, slope)
        self.called, self.family = [], "told"

    def forward(self, x, t, shift=0.0):
        self.called.append(torch.as_tensor(t).flatten()[0].item())
        return self.layer(x) * (1 + torch.as_tensor(t).reshape(-1, 1)) + shift


@pytest.fixture
def pair():
    return Told(0.3), Told(0.5)


def assert_equal(found, expected):
    """To 1e-5 of the largest value: what is left is the order of float32 sums."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-5 * max(1.0, float(expected.abs().max()))


def line(base, auxiliary, omega, *args, **kwargs):
    return (1 + omega) * base(*args, **kwargs) - omega * auxiliary(*args, **kwargs)


# ---------------------------------------------------------------- the module itself


def test_it_is_the_papers_line_with_every_argument_passed_on(pair):
    model = guide(*pair, 1.5)
    for args, kwargs in (((X, 0.2), {}), ((X,), {"t": torch.tensor([0.2] * 4), "shift": 1.0}), ((X, 0.2, 2.0), {})):
        torch.testing.assert_close(model(*args, **kwargs), line(*pair, 1.5, *args, **kwargs))


def test_omega_zero_is_the_base_bit_for_bit_in_one_evaluation_and_can_be_set(pair):
    base, auxiliary = pair
    model = guide(base, auxiliary, 0)
    assert torch.equal(model(X, 0.2), base(X, 0.2)) and auxiliary.called == [] and len(base.called) == 2
    model.omega = torch.tensor([0.0, 1.0, 0.0, 2.0])  # one a sample
    made = model(X, 0.2)
    model.omega = np.float32(2.0)
    torch.testing.assert_close(model(X, 0.2)[3], made[3])
    assert torch.equal(made[[0, 2]], base(X, 0.2)[[0, 2]])
    torch.testing.assert_close(made[3], line(*pair, 2.0, X, 0.2)[3])
    with pytest.raises(InputError, match="omega: got 'nan'"):
        model.omega = float("nan")
    with pytest.raises(InputError, match="omega: got 'strong'"):
        model.omega = "strong"


def test_what_it_lacks_is_the_bases_and_what_would_lose_the_auxiliary_is_refused(pair):
    model = guide(*pair, 1.0)
    assert model.family == "told" and model.layer is pair[0].layer
    with pytest.raises(AttributeError, match="'Told' object has no attribute 'colour'"):
        model.colour  # noqa: B018
    pair[0].save_pretrained = print
    with pytest.raises(AttributeError, match="would keep the base alone"):
        model.save_pretrained("here")
    assert len(list(model.parameters())) == 4 and not model.eval().auxiliary.training
    assert model.double()(X.double(), 0.1).dtype == torch.float64


def test_it_is_copied_and_pickled(pair):
    model = guide(*pair, 1.5, guidance="held:2")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(X, 0.1), model(X, 0.1))
        other.omega = 0.0
        assert model.omega == 1.5


def test_gradients_pass_through_both(pair):
    guide(*pair, 1.0)(X, 0.3).sum().backward()
    assert all(weight.grad is not None for network in pair for weight in network.parameters())


class Saying(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.make = make

    def forward(self, x, *rest):
        return self.make(x)


def test_the_output_keeps_its_type_and_what_else_it_holds():
    from collections import namedtuple

    made = namedtuple("made", "x log_variance")
    for wrap in (lambda x: (x, "kept"), lambda x: [x, "kept"], lambda x: made(x, "kept")):
        out = guide(Saying(lambda x, w=wrap: w(2 * x)), Saying(lambda x, w=wrap: w(3 * x)), 1.0)(X)
        assert type(out) is type(wrap(X)) and out[1] == "kept"
        torch.testing.assert_close(out[0], X)
    for bad in ({"x": X}, (), ("words",), torch.arange(3)):
        with pytest.raises(InputError, match="output: got"):
            guide(Saying(lambda x, b=bad: b), Saying(lambda x: x), 1.0)(X)


def test_a_learned_variance_is_the_bases():
    """Twice the channels: the second half is no score, and no line holds for it (learned_range; DiT)."""
    x = torch.randn(2, 3, 4, 4)
    base, auxiliary = (Saying(lambda x, k=k: torch.cat([k * x, k * x], 1)) for k in (2.0, 3.0))
    out = guide(base, auxiliary, 1.0)(x)
    torch.testing.assert_close(out, torch.cat([x, 2 * x], 1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_dtype_is_the_bases_and_the_line_is_combined_in_float32(dtype):
    base, auxiliary = (nn.Linear(3, 3).to(dtype) for _ in range(2))
    out = guide(base, auxiliary, 3.0)(X.to(dtype))
    assert out.dtype == dtype and torch.equal(out, extrapolate(base(X.to(dtype)), auxiliary(X.to(dtype)), 3.0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda b, a: guide(lambda x: x, a, 1.0), "base: got 'function'"),
        (lambda b, a: guide(b, 3, 1.0), "auxiliary: got 'int'"),
        (lambda b, a: guide(b, b, 1.0), "it is the base itself"),
        (lambda b, a: guide(b, a, float("inf")), "omega: got 'inf'"),
        (lambda b, a: guide(b, a, 1.0, guidance="hold:2"), "guidance: got 'hold'; did you mean 'held'"),
        (lambda b, a: guide(b, a, 1.0, guidance="interval:1:3"), "told 't': give the scheduler that maps it"),
        (lambda b, a: guide(b, a, 1.0, guidance="predictor"), "times alone do not tell a predictor"),
        (lambda b, a: guide(b, a, 1.0, guidance=GuidanceSchedule(rule="halved")), "this rule is one of denoisers"),
        (lambda b, a: guide(b, a, lambda sigma: 1.0), "told 't': give the scheduler"),
        (lambda b, a: guide(b, a, 1.0, scheduler=object()), "scheduler: got 'object'; give one with betas"),
        (lambda b, a: guide(b, Saying(lambda x: x[:, :2]), 1.0)(X, 0.1), r"\(4, 2\).*the base's shape \(4, 3\)"),
        (lambda b, a: guide(b, a, 1.0, guidance="held:2")(X, torch.arange(4.0)), "t: got .* must be equal"),
        (lambda b, a: guide(nn.Linear(3, 3), nn.Linear(3, 3), 1.0, guidance="held:2")(X), "call it one of timestep"),
        (
            lambda b, a: guide(Saying(lambda x: x), nn.Linear(3, 3), 1.0, guidance="interval:1:2")(X),
            "no argument tells",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused(pair, make, words, monkeypatch):
    monkeypatch.setitem(RULES, "halved", RULES["linear"])
    with pytest.raises(InputError, match=words):
        make(*pair)


# ------------------------------------------------------- schedules, by what a loop does


def calls(model, times):
    """What the module returns at each of the times of a loop."""
    return [model(X, t) for t in times]


def test_held_costs_half_as_much_more_and_keeps_the_correction(pair):
    base, auxiliary = pair
    made = calls(guide(base, auxiliary, 2.0, guidance="held:2"), (0.9, 0.7, 0.5, 0.3))
    assert auxiliary.called == pytest.approx([0.9, 0.5]) and len(base.called) == 4
    for out, now, then in zip(made, (0.9, 0.7, 0.5, 0.3), (0.9, 0.9, 0.5, 0.5), strict=True):
        torch.testing.assert_close(out, base(X, now) + 2 * (base(X, then) - auxiliary(X, then)))


def test_a_loop_that_begins_again_or_has_another_shape_is_another_trajectory(pair):
    base, auxiliary = pair
    model = guide(base, auxiliary, 1.0, guidance="held:4")
    for _ in range(2):
        calls(model, (0.9, 0.6, 0.3))
    assert auxiliary.called == pytest.approx([0.9, 0.9])
    model(X[:2], 0.2)
    assert auxiliary.called[2:] == pytest.approx([0.2])
    model.reset()
    model(X[:2], 0.1)
    assert auxiliary.called[3:] == pytest.approx([0.1])
    up = guide(base, auxiliary, 1.0, guidance="held:2")  # a flow's time goes up
    calls(up, (0.0, 0.25, 0.5, 0.75, 0.0, 0.25))
    assert auxiliary.called[4:] == pytest.approx([0.0, 0.5, 0.0])


def test_two_conditions_one_after_the_other_keep_a_correction_each(pair):
    """Pipelines that call once a condition: the unconditional call is not corrected by the conditional one's."""
    base, auxiliary = pair
    model = guide(base, auxiliary, 1.0, guidance="held:2")
    for t in (0.9, 0.6, 0.3):
        for rows in (X, -X):
            out = model(rows, t)
            then = 0.3 if t == 0.3 else 0.9
            torch.testing.assert_close(out, base(rows, t) + base(rows, then) - auxiliary(rows, then))


def test_intervals_in_sigma_need_no_scheduler_where_the_network_is_told_sigma():
    class Karras(nn.Module):
        def __init__(self):
            super().__init__()
            self.called = []

        def forward(self, x, sigma):
            self.called.append(sigma[0].item())
            return x / (1 + sigma[:, None] ** 2)

    base, auxiliary = Karras(), Karras()
    model = guide(base, auxiliary, lambda sigma: 2 * float(sigma), guidance="interval:0.5:2+held:2")
    for sigma in (3.0, 2.0, 1.5, 1.0, 0.5, 0.4):
        model(X, torch.full((4,), sigma))
    assert auxiliary.called == [2.0, 1.0] and len(base.called) == 6


# ----------------------------------------------------------------- adapters of peft


@pytest.fixture
def adapted(pair):
    peft = pytest.importorskip("peft")
    network = pair[0]
    for name, scale in (("aux", 0.2), ("style", 0.1)):
        config = peft.LoraConfig(r=2, target_modules=["layer"], init_lora_weights=False)
        peft.inject_adapter_in_model(config, network, name)
        for tensors in (network.layer.lora_A, network.layer.lora_B):
            nn.init.constant_(tensors[name].weight, scale)
    return network


def state(network):
    layer = network.layer
    return layer.active_adapters, layer.disable_adapters, [w.requires_grad for w in network.parameters()]


@pytest.mark.parametrize(("active", "disabled"), [(["aux"], False), (["style"], False), (["style", "aux"], True)])
def test_an_adapter_on_the_base_is_toggled_and_its_state_stays(adapted, active, disabled):
    layer, plain = adapted.layer, adapted.layer.base_layer(X) * 1.1
    style, aux = (float(layer.scaling[name]) * 1.1 * X.sum(1, keepdim=True) * v * v * 2 for name, v in
                  (("style", 0.1), ("aux", 0.2)))  # fmt: skip
    layer.set_adapter(active)
    layer._disable_adapters = disabled
    before, base = state(adapted), plain + (style if "style" in active and not disabled else 0)
    model = guide(adapted, "aux", 0.0)
    torch.testing.assert_close(model(X, 0.1), base)
    model.omega = 1.5
    torch.testing.assert_close(model(X, 0.1), base - 1.5 * aux)
    assert state(adapted) == before
    with pytest.raises(TypeError):
        model(X, 0.1, nonsense=1)
    assert state(adapted) == before


def test_adapters_that_are_not_there_or_merged_are_refused(adapted, monkeypatch):
    with pytest.raises(InputError, match="auxiliary: got 'auxx'; the base's adapters are aux, style"):
        guide(adapted, "auxx", 1.0)
    with pytest.raises(InputError, match="the base has no peft adapters"):
        guide(nn.Linear(3, 3), "aux", 1.0)
    model = guide(adapted, "aux", 1.0)
    adapted.layer.merge(adapter_names=["style"])
    with pytest.raises(InputError, match="adapters are merged into the base"):
        model(X, 0.1)
    monkeypatch.setitem(__import__("sys").modules, "peft.tuners.tuners_utils", None)
    with pytest.raises(InputError, match="adapters need peft: pip install"):
        guide(adapted, "aux", 1.0)


def test_a_peft_model_and_a_layer_that_was_trained_whole():
    """peft's own wrapper as the base, with a module that the adapter replaces (modules_to_save)."""
    peft = pytest.importorskip("peft")

    class Headed(Told):
        def __init__(self):
            super().__init__(0.3)
            self.head = nn.Linear(3, 3)

        def forward(self, x, t, shift=0.0):
            return self.head(super().forward(x, t, shift))

    plain = Headed()
    config = peft.LoraConfig(r=2, target_modules=["layer"], modules_to_save=["head"], init_lora_weights=False)
    model = peft.get_peft_model(copy.deepcopy(plain), config, adapter_name="aux")
    with torch.no_grad():
        model.base_model.model.head.modules_to_save["aux"].weight.add_(0.3)
    auxiliary = copy.deepcopy(model).merge_and_unload()
    for schedule in ("full", "held:1"):
        toggled = guide(model, "aux", 1.5, guidance=schedule)(X, 0.2)
        torch.testing.assert_close(toggled, line(plain, auxiliary, 1.5, X, 0.2), atol=1e-5, rtol=1e-5)
    assert torch.equal(guide(model, "aux", 0.0)(X, 0.2), plain(X, 0.2))
    assert model.active_adapters == ["aux"]


def test_an_adapter_that_is_toggled_is_two_networks_at_the_memory_of_one():
    peft = pytest.importorskip("peft")
    from tests.core.foreign import conditional_unet

    network = conditional_unet()
    plain = copy.deepcopy(network)
    config = peft.LoraConfig(r=1, lora_alpha=4, target_modules=["to_q", "to_v"], init_lora_weights=False)
    network.add_adapter(config, "aux")
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if "lora" in name:
                weight.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    merged = copy.deepcopy(network)
    merged.fuse_lora()
    merged.unload_lora()
    model = guide(network, "aux", 1.5)
    given = (torch.randn(2, 4, 8, 8), torch.tensor(300), torch.randn(2, 5, 8))
    with torch.no_grad():
        toggled, two = model(*given).sample, guide(plain, merged, 1.5)(*given).sample
        assert_equal(toggled, two)
        assert float((toggled - plain(*given).sample).abs().max()) > 1e-2  # the adapter matters
        network.set_adapters("aux", -1.5)
        neon = copy.deepcopy(plain)
        neon.load_state_dict(merge_weights(plain.state_dict(), merged.state_dict(), 1.5))
        assert_equal(network(*given).sample, neon(*given).sample)
    count = sum(w.numel() for w in plain.parameters())
    assert sum(w.numel() for w in model.parameters()) < 1.05 * count


# ------------------------------------------------------------- pipelines of diffusers


@pytest.fixture(scope="module")
def foreign():
    return __import__("tests.core.foreign", fromlist=["x"])


def counting(*networks):
    counts = [0] * len(networks)
    for i, network in enumerate(networks):
        network.register_forward_hook(lambda *_, i=i: counts.__setitem__(i, counts[i] + 1))
    return counts


class Explicit(nn.Module):
    """The two-network loop as a user would write it: what the pipelines' results are compared with."""

    def __init__(self, base, auxiliary, omega):
        super().__init__()
        self.base, self.auxiliary, self.omega = base, auxiliary, omega
        self.config, self.dtype, self.device = base.config, base.dtype, base.device

    def forward(self, *args, **kwargs):
        from diffusers.models.unets.unet_2d import UNet2DOutput

        first, second = (n(*args, **{**kwargs, "return_dict": False})[0] for n in (self.base, self.auxiliary))
        made = (1 + self.omega) * first - self.omega * second
        return UNet2DOutput(made) if kwargs.get("return_dict", True) else (made,)


PIPELINES = [
    ("DDPMPipeline", "DDPMScheduler"),
    ("DDIMPipeline", "DDIMScheduler"),
    ("DDPMPipeline", "DPMSolverMultistepScheduler"),
]


@pytest.mark.parametrize(("pipeline", "scheduler"), PIPELINES)
def test_unconditional_pipelines(foreign, pipeline, scheduler):
    d, base = foreign.diffusers, foreign.unet()
    auxiliary = foreign.moved(base)
    counts = counting(base, auxiliary)

    def drawn(network):
        return torch.from_numpy(foreign.images(getattr(d, pipeline)(network, getattr(d, scheduler)())))

    model = guide(base, auxiliary, 1.5)
    guided = drawn(model)
    assert counts == [4, 4]
    assert_equal(guided, drawn(Explicit(base, auxiliary, 1.5)))
    assert float((guided - drawn(base)).abs().max()) > 1e-2
    model.omega, counts[:] = 0.0, [0, 0]
    assert torch.equal(drawn(model), drawn(base)) and counts == [8, 0]
    counts[:] = [0, 0]
    drawn(guide(base, auxiliary, 1.5, guidance="held:2"))
    assert counts == [4, 2]  # 1.5 networks a step


@pytest.mark.parametrize("scheduler", ["DPMSolverMultistepScheduler", "EulerDiscreteScheduler"])
def test_stable_diffusion_with_classifier_free_guidance(foreign, scheduler):
    base = foreign.conditional_unet()
    auxiliary = foreign.moved(base)
    make = getattr(foreign.diffusers, scheduler)

    def drawn(network, **settings):
        return foreign.latents(foreign.stable_diffusion(network, make(steps_offset=1)), **settings)

    explicit, model = Explicit(base, auxiliary, 1.5), guide(base, auxiliary, 1.5)
    assert_equal(drawn(model), drawn(explicit))
    assert float((drawn(model) - drawn(base)).abs().max()) > 1e-2
    model.omega = 0.0
    assert torch.equal(drawn(model), drawn(base))
    counts = counting(base, auxiliary)
    pipe = foreign.stable_diffusion(guide(base, auxiliary, 1.5, guidance="held:2"), make(steps_offset=1))
    for seen in ([4, 2], [8, 4]):  # a pipeline that runs again begins again
        foreign.latents(pipe)
        assert counts == seen
    half = guide(base.to(torch.bfloat16), auxiliary.to(torch.bfloat16), 1.5)
    made = foreign.latents(
        foreign.stable_diffusion(half, make(steps_offset=1)).to(torch.bfloat16), dtype=torch.bfloat16
    )
    assert made.dtype == torch.bfloat16 and bool(made.isfinite().all())


def test_a_pipelines_unet_is_replaced_and_an_interval_reads_its_scheduler(foreign):
    base = foreign.conditional_unet()
    auxiliary = foreign.moved(base)
    pipe = foreign.stable_diffusion(base, foreign.diffusers.DDIMScheduler(steps_offset=1, clip_sample=False))
    told = []
    auxiliary.register_forward_pre_hook(lambda m, args: told.append(int(args[1])))
    pipe.unet = guide(base, auxiliary, 1.5, guidance="interval:0.5:5", scheduler=pipe.scheduler)
    foreign.latents(pipe, steps=10)
    bars = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps]
    levels = ((1 - bars) / bars).sqrt()
    assert told == pipe.scheduler.timesteps[(levels >= 0.5) & (levels <= 5)].tolist() and 2 < len(told) < 10


@pytest.mark.parametrize(("scheduler", "order"), [("HeunDiscreteScheduler", 2), ("DDIMScheduler", 1)])
def test_predictor_asks_the_loops_scheduler(foreign, scheduler, order):
    base = foreign.conditional_unet()
    auxiliary = foreign.moved(base)
    counts = counting(base, auxiliary)
    settings = {"steps_offset": 1, **({} if order == 2 else {"clip_sample": False})}
    pipe = foreign.stable_diffusion(base, getattr(foreign.diffusers, scheduler)(**settings))
    pipe.unet = guide(base, auxiliary, 1.5, guidance="predictor", scheduler=pipe.scheduler)
    foreign.latents(pipe)
    assert counts == ([7, 4] if order == 2 else [4, 4])
    if order == 2:
        other = type(pipe.scheduler).from_config(pipe.scheduler.config)
        pipe.unet = guide(base, auxiliary, 1.5, guidance="predictor", scheduler=other)
        with pytest.raises(InputError, match="the scheduler that the loop steps"):
            foreign.latents(pipe)


@pytest.mark.parametrize("learned", [False, True])
def test_a_dit_with_class_labels_in_its_pipeline(foreign, learned):
    base = foreign.dit(learned)
    auxiliary = foreign.moved(base, scale=0.5)

    def drawn(network):
        d = foreign.diffusers
        pipe = d.DiTPipeline(network, foreign.autoencoder(), d.DDIMScheduler(clip_sample=False))
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        return torch.from_numpy(
            pipe([1, 7], guidance_scale=3.0, generator=generator, num_inference_steps=3, output_type="np").images
        )

    model = guide(base, auxiliary, 1.5)
    explicit = Explicit(base, auxiliary, 1.5)
    assert_equal(drawn(model), drawn(explicit))
    assert float((drawn(model) - drawn(base)).abs().max()) > 1e-3
    model.omega = 0.0
    assert torch.equal(drawn(model), drawn(base))


def test_a_flows_scheduler_maps_its_times_in_either_unit(foreign):
    """sigma = s / (1 - s): SD3's networks are told 1000 s, Flux's s."""
    scheduler = foreign.diffusers.FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(8)
    for unit in (1, 1000):
        base, auxiliary = Told(0.3), Told(0.5)
        model = guide(base, auxiliary, 1.0, guidance="interval:0:2", scheduler=scheduler)
        calls(model, scheduler.timesteps / unit)
        inside = scheduler.sigmas[:-1] / (1 - scheduler.sigmas[:-1]) <= 2
        assert auxiliary.called == pytest.approx((scheduler.timesteps[inside] / unit).tolist()) and inside.any()


def test_an_ode_solver_of_flow_matching():
    solvers = pytest.importorskip("flow_matching.solver")
    base, auxiliary = Told(0.3), Told(0.5)

    def drawn(network, **settings):
        settings = {"step_size": 0.25, **settings}
        return solvers.ODESolver(velocity_model=network).sample(x_init=X, shift=0.1, **settings)

    with torch.no_grad():
        explicit = drawn(lambda x, t, shift: line(base, auxiliary, 1.5, x, t, shift))
        model = guide(base, auxiliary, 1.5)
        assert_equal(drawn(model), explicit)
        model.omega = 0.0
        assert torch.equal(drawn(model), drawn(base))
        base.called, auxiliary.called = [], []
        drawn(guide(base, auxiliary, 1.5, guidance="held:2"))
        assert len(base.called) == 4 and len(auxiliary.called) == 2
        drawn(guide(base, auxiliary, 1.5, guidance="interval:0:1", scheduler="cond-ot"))
        assert auxiliary.called[2:] == pytest.approx([0.5, 0.75])  # sigma = (1 - t) / t


def test_schedules_are_objects_too(pair):
    model = guide(*pair, 1.0, guidance=GuidanceSchedule(every=3))
    calls(model, (3, 2, 1, 0))
    assert pair[1].called == [3, 0]
