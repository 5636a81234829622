"""Where the auxiliary is evaluated: every claimed cost by counting, every output by a loop written out by hand."""

import re

import pytest
import torch

from sims_core import GuidanceSchedule, InputError, Sampler, guidance, guided
from sims_core.guidance import Stepped, scaled

SHAPES = [(5, 2), (3, 4, 2), (2, 3, 8, 8)]


def base(x, sigma):
    return x / (1 + sigma**2) + 0.1 * torch.tanh(x)


def auxiliary(x, sigma):
    return 0.9 * x / (1 + sigma**2)


class Counted:
    """A denoiser that keeps the noise levels it was called with."""

    def __init__(self, denoiser):
        self.denoiser, self.levels = denoiser, []

    def __call__(self, x, sigma):
        self.levels.append(float(sigma))
        return self.denoiser(x, sigma)


def counts(sampler, schedule, omega=1.5):
    one, two = Counted(base), Counted(auxiliary)
    Sampler.parse(sampler)(GuidanceSchedule.parse(schedule).denoiser(one, two, omega), torch.randn(4, 2).double())
    return len(one.levels), len(two.levels)


@pytest.mark.parametrize(
    ("sampler", "schedule", "expected"),
    [
        ("heun:18", "full", (35, 35)),  # 2.00 x
        ("heun:18", "predictor", (35, 18)),  # 1.51 x: one a step
        ("heun:18", "held:1", (35, 18)),
        ("heun:18", "held:2", (35, 9)),  # 1.26 x: one every other step
        ("heun:18", "held:5", (35, 4)),
        ("heun:18", "interval:0.8:3", (35, 4)),  # 1.11 x: two levels, each a corrector's and then a predictor's
        ("heun:18", "held:1+interval:0.8:3", (35, 2)),
        ("ddim:20", "full", (19, 19)),
        ("ddim:20", "held:2", (19, 10)),
        ("ddim:20", "predictor", (19, 19)),  # one evaluation a step: it is the predictor
        ("ddim:20", "interval:0.8:3", (19, 7)),
        ("rk4:4", "held:1", (15, 4)),
    ],
)
def test_claimed_costs_by_counting(sampler, schedule, expected):
    assert counts(sampler, schedule) == expected
    assert Sampler.parse(sampler).evaluations(GuidanceSchedule.parse(schedule)) == expected
    assert counts(sampler, schedule, omega=0.0) == (expected[0], 0)  # the base alone


def by_hand(x, omega, k, hold, interval, steps=7):
    """Heun on EDM's grid, written out, with the correction held over k steps."""
    sigmas, held, age = Sampler.parse(f"heun:{steps}").sigmas(), None, None
    x = x.double() * sigmas[0]

    def inside(s):
        return interval is None or interval[0] <= s <= interval[1]

    for i in range(steps):
        s, t = sigmas[i], sigmas[i + 1]
        d = base(x, s)
        if inside(s):
            if held is None or i - age >= k:
                held, age = d - auxiliary(x, s), i
                d = d + omega * held
            elif hold:
                d = d + omega * held
        slope = (x - d) / s
        end = x + (t - s) * slope
        if t > 0:
            e = base(end, t)
            if inside(t) and hold and held is not None:
                e = e + omega * held
            end = x + (t - s) * (slope + (end - e) / t) / 2
        x = end
    return x


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("schedule", "k", "hold", "interval"),
    [
        ("held:1", 1, True, None),
        ("held:2", 2, True, None),
        ("held:3", 3, True, None),
        ("predictor", 1, False, None),
        ("held:2+interval:0.01:20", 2, True, (0.01, 20)),
        ("predictor+interval:0.01:20", 1, False, (0.01, 20)),
    ],
)
def test_outputs_by_hand(shape, schedule, k, hold, interval):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    omega = torch.linspace(0, 2, shape[0], dtype=torch.float64)  # per sample
    found = Sampler.parse("heun:7")(GuidanceSchedule.parse(schedule).denoiser(base, auxiliary, omega), x)
    wide = omega.reshape(-1, *[1] * (len(shape) - 1))
    torch.testing.assert_close(found, by_hand(x, wide, k, hold, interval))
    assert torch.equal(found[0], Sampler.parse("heun:7")(base, x)[0])  # its omega is 0
    again = GuidanceSchedule.parse(schedule).denoiser(base, auxiliary, omega)
    assert torch.equal(Sampler.parse("heun:7")(again, x), found)
    assert torch.equal(Sampler.parse("heun:7")(again, x), found)  # nothing is left from the trajectory before


def test_a_row_at_omega_zero_stays_the_base_beside_a_diverged_auxiliary():
    x = torch.randn(2, 3, dtype=torch.float64)
    broken = GuidanceSchedule.parse("held:2").denoiser(base, lambda x, s: x * float("nan"), torch.tensor([0.0, 1.0]))
    found = Sampler.parse("heun:7")(broken, x)
    assert torch.equal(found[0], Sampler.parse("heun:7")(base, x)[0]) and bool(found[1].isnan().all())


def test_a_loop_that_tells_no_steps_gets_full_guidance_or_a_refusal():
    x, sigma = torch.randn(3, 2).double(), torch.tensor(1.5, dtype=torch.float64)
    full = GuidanceSchedule.parse("full").denoiser(base, auxiliary, 2.0)
    assert torch.equal(full(x, sigma), guided(base, auxiliary, 2.0)(x, sigma)) and not isinstance(full, Stepped)
    for text in ("held:3", "predictor", "held:2+interval:0.5:4"):
        denoiser = GuidanceSchedule.parse(text).denoiser(base, auxiliary, 2.0)
        assert isinstance(denoiser, Stepped)
        with pytest.raises(InputError, match=f"guidance: got '{re.escape(text)}'; only a sampler"):
            denoiser(x, sigma)
    assert not isinstance(torch.nn.Linear(2, 2), Stepped)


def test_half_precision_corrections_are_held_in_float32():
    def half(x, sigma):
        return (0.5 * x).to(torch.bfloat16)

    def other(x, sigma):
        return (0.4 * x).to(torch.bfloat16)

    at = GuidanceSchedule.parse("held:2").denoiser(half, other, 3.0).begin()
    x, sigma = torch.randn(2, 3), torch.tensor(1.0)
    step = at(0)
    first, second = step(x, sigma), step(2 * x, sigma)
    correction = half(x, 1).float() - other(x, 1).float()
    assert torch.equal(first, (half(x, 1).float() + 3 * correction).to(torch.bfloat16))
    assert torch.equal(second, (half(2 * x, 1).float() + 3 * correction).to(torch.bfloat16))


@pytest.mark.parametrize("text", ["full", "predictor", "held:4", "interval:0.8:3", "held:2+interval:0.5:4"])
def test_a_schedule_reads_what_it_writes(text):
    assert str(GuidanceSchedule.parse(text)) == text
    assert GuidanceSchedule.parse(str(GuidanceSchedule.parse(text))) == GuidanceSchedule.parse(text)


@pytest.mark.parametrize(
    "text",
    ["hold:2", "held", "held:0", "held:x", "held:2:3", "interval:3:1", "interval:1", "interval:a:b", "full:1",
     "held:2+predictor", "interval:1:2+interval:3:4", ""],
)  # fmt: skip
def test_bad_schedules_are_one_line(text):
    with pytest.raises(InputError, match=r"--guidance: got"):
        GuidanceSchedule.parse(text, argument="--guidance")


def test_bad_strengths_and_combinations():
    with pytest.raises(InputError, match="omega"):
        GuidanceSchedule.parse("held:2").denoiser(base, auxiliary, float("nan"))
    with pytest.raises(InputError, match="scale the base"):
        scaled(GuidanceSchedule.parse("held:2").denoiser(base, auxiliary, 1.0), 0.9)
    with pytest.raises(InputError, match="every"):
        GuidanceSchedule(every=-1)


def limited(base, correction, omega):
    """A rule from outside: a correction of at most a hundredth."""
    return base + omega * correction.clamp(-0.01, 0.01)


def test_a_rule_from_outside(monkeypatch):
    """One function and one line: it has a text, every schedule takes it, and omega = 0 stays the base."""
    monkeypatch.setitem(guidance.RULES, "limited", guidance.Rule(limited))
    x, sigma = torch.linspace(-2, 2, 8, dtype=torch.float64)[:, None], torch.tensor(1.0)

    def base(x, sigma):
        return 0.5 * x

    def auxiliary(x, sigma):
        return 0.4 * x

    for text in ("limited", "limited+held:2+interval:0.1:3"):
        schedule = GuidanceSchedule.parse(text)
        assert str(schedule) == text and schedule.rule == "limited"
    made = GuidanceSchedule.parse("limited").denoiser(base, auxiliary, torch.tensor([0.0, 2.0] * 4))(x, sigma)
    wanted = 0.5 * x + torch.tensor([[0.0], [2.0]] * 4) * (0.1 * x).clamp(-0.01, 0.01)
    torch.testing.assert_close(made, wanted)
    assert torch.equal(guided(base, auxiliary, 2.0, rule="limited")(x, sigma)[1::2], wanted[1::2])
    held = GuidanceSchedule.parse("limited+held:2").denoiser(base, auxiliary, 2.0).begin()
    held(0)(x, sigma)
    assert torch.equal(held(1)(x, sigma), base(x, sigma) + 2 * (0.1 * x).clamp(-0.01, 0.01))
    assert Sampler.parse("heun:4").evaluations(GuidanceSchedule.parse("limited+predictor")) == (7, 4)
    for wrong in ("limited+limited", "limitid", "limited:2"):
        with pytest.raises(InputError, match="guidance"):
            GuidanceSchedule.parse(wrong)
    with pytest.raises(InputError, match="rule"):
        guided(base, auxiliary, 1.0, rule="limitid")
