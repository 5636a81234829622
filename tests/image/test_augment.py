"""EDM's augmentation against its definition: what is drawn, what the labels say, what happens to the pixels."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage, stats
from torch import Tensor

from sims_core.draws import Draws
from sims_core.errors import InputError
from sims_core.seeds import Seed
from sims_image.training.augment import SYM6, Augmentation, Parameters, resample

AUGMENT = Augmentation(0.12)
SIZE = 33


def one(**values: float) -> Parameters:
    return replace(Parameters.none(1), **{k: torch.tensor([v], dtype=torch.float64) for k, v in values.items()})


def smooth(size: int = SIZE, seed: int = 0) -> Tensor:
    """A random image without fine detail, so that any good resampling gives the same."""
    noise = np.random.default_rng(seed).standard_normal((1, 2, size, size))
    return torch.from_numpy(ndimage.gaussian_filter(noise, (0, 0, 3, 3), mode="mirror") * 8)


# ------------------------------------------------------------------ what is drawn


def test_draws_follow_the_published_table():
    n, p = 40_000, 0.3
    drawn = Augmentation(p).draw(Draws(Seed(1)), torch.arange(n))

    def rate(flags: Tensor) -> float:
        return float(flags.double().mean())

    def near(found: float, expected: float) -> bool:
        return abs(found - expected) < 4.5 * math.sqrt(expected * (1 - expected) / n)

    assert near(rate(drawn.x_flip), 0.5) and near(rate(drawn.y_flip), p / 2)
    for values in (drawn.scale, drawn.rotation, drawn.anisotropy, drawn.x_shift):
        assert near(rate(values != 0), p)
    assert near(rate(drawn.direction != 0), p / 2)
    assert torch.equal(drawn.x_shift != 0, drawn.y_shift != 0)
    for values in (drawn.scale, drawn.anisotropy, drawn.x_shift, drawn.y_shift):
        assert stats.kstest(values[values != 0].numpy(), "norm").pvalue > 1e-3
    for angles in (drawn.rotation, drawn.direction):
        uniform = angles[angles != 0].numpy() / (2 * math.pi) + 0.5
        assert stats.kstest(uniform, "uniform").pvalue > 1e-3
    tried = [v != 0 for v in (drawn.y_flip, drawn.scale, drawn.rotation, drawn.anisotropy, drawn.x_shift)]
    correlations = np.corrcoef(torch.stack([drawn.x_flip, *(t.double() for t in tried)]).numpy())
    assert np.abs(correlations - np.eye(6)).max() < 4.5 / math.sqrt(n)


def test_an_image_is_drawn_by_its_number_alone():
    draws = Draws(Seed(2))
    images = torch.randn(16, 3, 8, 8, generator=Seed(0).torch())
    whole = Augmentation(0.8).draw(draws, torch.arange(16))
    both = Augmentation(0.8).apply(images, whole)
    for part in (slice(0, 8), slice(8, 16)):
        half = Augmentation(0.8).draw(draws, torch.arange(16)[part])
        assert torch.equal(half.labels, whole.labels[part])
        assert torch.equal(Augmentation(0.8).apply(images[part], half), both[part])


def test_nothing_but_the_x_flip_at_p_zero():
    drawn = Augmentation(0.0).draw(Draws(Seed(0)), torch.arange(200))
    assert drawn.labels[:, 1:].count_nonzero() == 0 and 50 < drawn.labels[:, 0].sum() < 150


@pytest.mark.parametrize("p", [-0.1, 1.5, math.nan])
def test_a_probability_is_asked_for(p):
    with pytest.raises(InputError, match=r"augment: .* between 0 and 1"):
        Augmentation(p)


# ----------------------------------------------------------------- what labels say


def test_labels():
    assert one().labels.shape == (1, Augmentation.LABELS) and not one().labels.any()
    everything = one(
        x_flip=1, y_flip=1, scale=-0.5, rotation=0.3, anisotropy=2.0, direction=-1.0, x_shift=0.7, y_shift=-0.2
    )
    expected = [1, 1, -0.5, math.cos(0.3) - 1, math.sin(0.3), 2 * math.cos(1), -2 * math.sin(1), 0.7, -0.2]
    torch.testing.assert_close(everything.labels[0], torch.tensor(expected))


def test_zero_labels_are_the_untouched_image_and_nothing_else_is():
    draws, images = Draws(Seed(4)), torch.randn(300, 1, 8, 8, generator=Seed(1).torch())
    drawn = AUGMENT.draw(draws, torch.arange(300))
    same = (AUGMENT.apply(images, drawn) == images).flatten(1).all(1)
    assert torch.equal(same, ~drawn.labels.any(1))
    assert 50 < same.sum() < 150


# -------------------------------------------------------------- what is done to pixels


def test_flips_are_exact():
    image = torch.randn(1, 3, 7, 5)
    assert torch.equal(AUGMENT.apply(image, one(x_flip=1)), image.flip(3))
    assert torch.equal(AUGMENT.apply(image, one(y_flip=1)), image.flip(2))
    assert torch.equal(AUGMENT.apply(image, one(x_flip=1, y_flip=1)), image.flip(2, 3))


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 3, 7, 12), (1, 1, 2, 2)])
def test_the_filters_give_an_untransformed_image_back(shape):
    image = torch.randn(shape, dtype=torch.float64)
    identity = torch.eye(2, 3, dtype=torch.float64)[None]
    torch.testing.assert_close(resample(image, identity), image, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("x", "y"), [(2, 0), (0, -3), (-11, 5)])
def test_whole_pixel_shifts_are_exact_and_reflect(x, y):
    image = torch.randn(1, 2, 8, 8, dtype=torch.float64)
    moved = AUGMENT.apply(image, one(x_shift=x, y_shift=y))  # an eighth of the width is one pixel
    expected = ndimage.shift(image.numpy(), (0, 0, y, x), order=0, mode="mirror")
    torch.testing.assert_close(moved, torch.from_numpy(expected), rtol=0, atol=1e-9)


CASES = {
    "larger": {"scale": 1.7},
    "smaller": {"scale": -2.0},
    "turned": {"rotation": 0.7},
    "upside down": {"rotation": math.pi - 1e-9},
    "wide": {"anisotropy": 1.5},
    "aslant": {"anisotropy": 1.2, "direction": 0.9},
    "moved": {"x_shift": 0.37, "y_shift": -0.81},
    "all": {"scale": 0.6, "rotation": -2.0, "anisotropy": 0.8, "direction": 2.2, "x_shift": 0.5, "y_shift": 0.2},
}


def forward_from_labels(labels: Tensor) -> np.ndarray:
    """The transformation that nine labels describe: 3x3, on (x right, y up) about the centre, by the table alone."""
    a = labels.double().numpy()

    def homogeneous(matrix: object, shift: tuple[float, float] = (0, 0)) -> np.ndarray:
        full = np.eye(3)
        full[:2, :2], full[:2, 2] = matrix, shift
        return full

    def turn(angle: float) -> np.ndarray:
        return homogeneous([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])

    scaled = homogeneous(np.eye(2) * 2 ** (0.2 * a[2]))
    rotated = turn(math.atan2(a[4], a[3] + 1))
    strength, direction = math.hypot(a[5], a[6]), math.atan2(a[6], a[5])
    stretched = (
        turn(direction) @ homogeneous(np.diag([2 ** (0.2 * strength), 2 ** (-0.2 * strength)])) @ turn(-direction)
    )
    moved = homogeneous(np.eye(2), (a[7] * SIZE / 8, -a[8] * SIZE / 8))
    return moved @ stretched @ rotated @ scaled


@pytest.mark.parametrize("case", CASES)
def test_pixels_move_as_the_labels_say(case):
    image, parameters = smooth(), one(**CASES[case])
    ours = AUGMENT.apply(image, parameters)[0, 0].numpy()
    rows_columns = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1]])  # (x, y up) to (row down, column)
    forward = rows_columns @ forward_from_labels(parameters.labels[0]) @ rows_columns.T
    backward = np.linalg.inv(forward)
    centre = np.array([SIZE - 1, SIZE - 1]) / 2
    offset = centre - backward[:2, :2] @ centre + backward[:2, 2]
    plain = image[0, 0].numpy()
    expected = ndimage.affine_transform(plain, backward[:2, :2], offset, order=5, mode="mirror")
    error = np.sqrt(((ours - expected) ** 2).mean()) / plain.std()
    untouched = np.sqrt(((ours - plain) ** 2).mean()) / plain.std()
    assert error < 0.03 and untouched > 0.15


def test_one_image_of_a_batch_is_moved_and_the_others_are_not():
    images = torch.randn(3, 1, 8, 8)
    turned = replace(Parameters.none(3), rotation=torch.tensor([0, 1.0, 0], dtype=torch.float64))
    result = AUGMENT.apply(images, turned)
    assert torch.equal(result[[0, 2]], images[[0, 2]])
    torch.testing.assert_close(result[1:2], AUGMENT.apply(images[1:2], one(rotation=1.0)))


def test_the_filter_is_the_symlet():
    assert SYM6.sum() == pytest.approx(math.sqrt(2), abs=1e-9)
    for k in range(6):
        assert SYM6[2 * k :] @ SYM6[: 12 - 2 * k] == pytest.approx(float(k == 0), abs=1e-9)
    high = SYM6[::-1] * (-1) ** np.arange(12)
    for power in range(6):  # six vanishing moments
        assert high @ np.linspace(-1, 1, 12) ** power == pytest.approx(0, abs=1e-8)


def test_one_pixel_is_too_small():
    with pytest.raises(InputError, match="at least 2 pixels"):
        AUGMENT.apply(torch.zeros(1, 1, 1, 1), one(rotation=1.0))
