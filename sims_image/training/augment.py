"""EDM's non-leaking augmentation: geometric transformations whose parameters the network is told.

Source: Karras et al. 2022 (arXiv 2206.00364), Appendix F.2 and its table of augmentations; the resampling follows
Karras et al. 2020 (arXiv 2006.06676), Appendix B. The nine labels of an image are

    0 x-flip, 1 y-flip         1 if flipped, else 0
    2 scale                    a ~ N(0, 1): enlarged by 2^(0.2 a)
    3, 4 rotation              cos a - 1, sin a for the angle a ~ U(-pi, pi)
    5, 6 anisotropy            (a cos b, a sin b): scaled by 2^(0.2 a) along b and by its inverse across, a ~ N(0, 1);
                               b ~ U(-pi, pi) half the time, else 0
    7, 8 translation           a, b ~ N(0, 1): moved by an eighth of the width times a, of the height times b

and all zero for an untouched image, which is what sampling asks the network for. The x-flip is always tried (it comes
out half the time), every other one with probability p (a y-flip that is tried comes out half the time). An anisotropy
(a, b) has the labels of (-a, b + pi), another transformation: so in the published pipeline, whose labels these are.

Angles turn anticlockwise as one sees it. Coordinates are in pixels from the image's centre, x to the right and y
downward.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, fields
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from sims_core.devices import moved
from sims_core.draws import Draws
from sims_core.errors import InputError


@dataclass(frozen=True)
class Parameters:
    """What is done to each image of a batch; float64 tensors of shape (B,) on the CPU, 0 where nothing is.

    x_flip, y_flip: 0 or 1. scale, anisotropy, x_shift, y_shift: in standard deviations. rotation, direction (of the
    anisotropy): angles.
    """

    x_flip: Tensor
    y_flip: Tensor
    scale: Tensor
    rotation: Tensor
    anisotropy: Tensor
    direction: Tensor
    x_shift: Tensor
    y_shift: Tensor

    @classmethod
    def none(cls, count: int) -> Parameters:
        """Parameters that leave ``count`` images as they are."""
        return cls(*torch.zeros(len(fields(cls)), count, dtype=torch.float64))

    @property
    def labels(self) -> Tensor:
        """What the network is told: (B, 9), float32."""
        a, b = self.anisotropy, self.direction
        turned = (self.rotation.cos() - 1, self.rotation.sin())
        columns = (self.x_flip, self.y_flip, self.scale, *turned, a * b.cos(), a * b.sin(), self.x_shift, self.y_shift)
        return torch.stack(columns, 1).float()

    @property
    def resampled(self) -> Tensor:
        """The images that need more than a flip: indices, (n,)."""
        moved = torch.stack([self.scale, self.rotation, self.anisotropy, self.x_shift, self.y_shift])
        return (moved != 0).any(0).nonzero()[:, 0]


@dataclass(frozen=True)
class Augmentation:
    """EDM's augmentation with its published strengths.

    p: probability of each transformation but the x-flip; 0 leaves only the x-flip.
    scale_std, anisotropy_std: standard deviations of log2 of the factors. turn: how often the anisotropy has a random
    direction. shift_std: in image widths. Raises `InputError` for a p outside [0, 1].
    """

    p: float
    scale_std: float = 0.2
    anisotropy_std: float = 0.2
    turn: float = 0.5
    shift_std: float = 0.125

    #: labels per image
    LABELS: ClassVar[int] = 9

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise InputError("augment", self.p, "give a probability between 0 and 1")

    def draw(self, draws: Draws, items: Tensor) -> Parameters:
        """Parameters for the images numbered ``items`` (int64, (B,)): each depends on (seed, number) alone."""
        u = draws.uniform(items.cpu(), 16).T
        gaussian = torch.special.ndtri((u[:4] + 2.0**-54).clamp(max=1 - 2.0**-53))
        tried = u[4:9] < self.p
        coins = u[9:11] < 0.5
        angles = (2 * u[11:13] - 1) * math.pi
        return Parameters(
            x_flip=coins[0].double(),
            y_flip=(coins[1] & tried[0]).double(),
            scale=gaussian[0] * tried[1],
            rotation=angles[0] * tried[2],
            anisotropy=gaussian[1] * tried[3],
            direction=angles[1] * (tried[3] & (u[13] < self.turn)),
            x_shift=gaussian[2] * tried[4],
            y_shift=gaussian[3] * tried[4],
        )

    def apply(self, images: Tensor, parameters: Parameters) -> Tensor:
        """The transformed images. images: (B, C, H, W), any float dtype and device; returned likewise.

        Flips are exact, and so are images that nothing is done to. The rest is resampled through filters that
        reproduce an untransformed image exactly; past its edge an image continues reflected.
        """
        flips = moved(parameters.x_flip > 0, images.device), moved(parameters.y_flip > 0, images.device)
        images = torch.where(flips[0][:, None, None, None], images.flip(3), images)
        images = torch.where(flips[1][:, None, None, None], images.flip(2), images)
        which = parameters.resampled
        if not len(which):
            return images
        inverse = moved(self.inverse(parameters, images.shape[2], images.shape[3])[which], images.device)
        which = moved(which, images.device)
        return images.index_copy(0, which, resample(images[which], inverse).to(images.dtype))

    def inverse(self, parameters: Parameters, height: int, width: int) -> Tensor:
        """The maps from transformed to original coordinates, flips left out: (B, 2, 3), float64, in pixels.

        The image is scaled first, then turned, then scaled anisotropically, then moved.
        """
        count = len(parameters.scale)
        size = torch.exp2(-self.scale_std * parameters.scale)
        stretch = torch.exp2(self.anisotropy_std * parameters.anisotropy)
        along = torch.zeros(count, 2, 2, dtype=torch.float64)
        along[:, 0, 0], along[:, 1, 1] = 1 / stretch, stretch
        frame = _rotation(-parameters.direction)
        linear = size[:, None, None] * _rotation(parameters.rotation) @ frame @ along @ frame.mT
        moved = torch.stack([parameters.x_shift * width, parameters.y_shift * height], 1) * self.shift_std
        return torch.cat([linear, -linear @ moved[:, :, None]], 2)


def _rotation(angle: Tensor) -> Tensor:
    """Rotate2D: (B,) angles to (B, 2, 2) matrices [[cos, -sin], [sin, cos]]."""
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s], 1), torch.stack([s, c], 1)], 1)


# ------------------------------------------------------------------- resampling

#: Low-pass filter of the symlet of order 6 (Daubechies, Ten Lectures on Wavelets, Table 6.3): orthonormal under shifts
#: by two, which is why up- and downsampling by 2 with it gives an image back exactly.
SYM6 = np.array(
    [
        *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633, 0.4910559419267466),
        *(0.787641141030194, 0.3379294217276218, -0.07263752278646252, -0.021060292512300564, 0.04472490177066578),
        *(0.0017677118642428036, -0.007800708325034148),
    ]
)
_MIDDLE = 5  # the tap nearest to the filter's centre of gravity, 5.1: sample m of the doubled grid is at pixel m / 2


def resample(images: Tensor, inverse: Tensor) -> Tensor:
    """Images seen through affine maps: supersampled twice, interpolated bilinearly, filtered down. (B, C, H, W).

    inverse: (B, 2, 3), float64, from output to input coordinates in pixels about the centre, the x row first. The
    image is continued by reflection, without end: its period is 2H - 2, so that the filters act on one period.
    Coordinates are float64: float32 ones would blur a whole-pixel shift by 1e-5.
    """
    count, _, height, width = images.shape
    options = str(images.device), images.dtype
    fine = _doubling(height, *options) @ images @ _doubling(width, *options).mT  # (B, C, 4H - 3, 4W - 3)
    y, x = (
        (torch.arange(2 * n + 10, device=images.device, dtype=torch.float64) - _MIDDLE - n + 1) / 2
        for n in (height, width)
    )
    xy = torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], 2).reshape(1, -1, 2)
    source = xy @ inverse[:, :, :2].mT + inverse[:, :, 2][:, None]
    half = torch.cat([source.new_full((1,), (n - 1) / 2) for n in (width, height)])  # filled in: nothing is copied
    period = 8 * half
    place = ((source + half) * 2).remainder(period)
    grid = (place * (2 / period) - 1).to(images.dtype).view(count, len(y), len(x), 2)
    seen = grid_sample(fine, grid, mode="bilinear", padding_mode="border", align_corners=True)
    return _halving(height, *options) @ seen @ _halving(width, *options).mT


@functools.lru_cache(maxsize=16)
def _doubling(size: int, device: str, dtype: torch.dtype) -> Tensor:
    """(4 size - 3, size): an axis, reflected to one period, supersampled, and its first sample once more at the end."""
    if size < 2:
        raise InputError("image size", size, "augmentation needs at least 2 pixels a side")
    period = 2 * size - 2
    matrix = np.zeros((2 * period + 1, size))
    for k in range(-len(SYM6), period + len(SYM6)):
        pixel = k % period
        pixel = pixel if pixel < size else period - pixel
        for tap, value in enumerate(SYM6):
            m = tap + 2 * k - _MIDDLE
            if 0 <= m <= 2 * period:
                matrix[m, pixel] += value
    return torch.from_numpy(matrix).to(device, dtype)


@functools.lru_cache(maxsize=16)
def _halving(size: int, device: str, dtype: torch.dtype) -> Tensor:
    """(size, 2 size + 10): the transpose of supersampling, on samples -5 to 2 size + 4 of the doubled grid."""
    matrix = np.zeros((size, 2 * size + 10))
    for n in range(size):
        matrix[n, 2 * n : 2 * n + len(SYM6)] = SYM6
    return torch.from_numpy(matrix).to(device, dtype)
