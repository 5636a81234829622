"""Two-dimensional real distributions, by name or from a user's file.

A distribution is anything with a dimension and a way to draw points (`Distribution`); `DATASETS` names the makers, one
line each. Where there are classes (components, arms, moons), a draw says which one each point came from.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from sims_core.errors import InputError, choose, reason
from sims_core.lab.grids import parse_grid
from sims_core.seeds import Seed

Points = NDArray[np.float64]
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Distribution:
    """A real distribution on the plane (or in any dimension).

    name: as written on the command line. sampler: ``(n, generator) -> (points (n, d), classes (n,))``. classes: how
    many there are. limit: how many points it has (a user's file), None without limit. mixture: its components where it
    is a Gaussian mixture, else None. digest: of a user's file. center (d,) and scale: of a user's points, whose origin
    and unit are his own: learners work on `standard` ones, and what they make is put back (`restored`).
    """

    name: str
    sampler: Callable[[int, np.random.Generator], tuple[Points, Labels]]
    classes: int = 1
    limit: int | None = None
    mixture: Mixture | None = None
    digest: str = ""
    center: tuple[float, ...] = ()
    scale: float = 1.0

    @cached_property
    def standard(self) -> Distribution:
        """The distribution that learners see: a user's points centred, with spread 1; others as they are.

        Samplers start from noise around 0 that dwarfs data of about unit size, and so are neither shift- nor
        scale-equivariant by themselves.
        """
        if not self.center:
            return self

        def sample(n: int, generator: np.random.Generator) -> tuple[Points, Labels]:
            points, labels = self.sampler(n, generator)
            return (points - np.asarray(self.center)) / self.scale, labels

        return replace(self, sampler=sample, center=(), scale=1.0)

    def restored(self, points: Points) -> Points:
        """Points (..., d) that a learner made on `standard`, in the user's units."""
        return points * self.scale + np.asarray(self.center) if self.center else points

    def draw(self, n: int, seed: Seed) -> Points:
        """n points (n, d). Raises `InputError` where a file holds fewer."""
        return self.draw_labelled(n, seed)[0]

    def draw_labelled(self, n: int, seed: Seed) -> tuple[Points, Labels]:
        """n points (n, d) and the class of each, (n,)."""
        if self.limit is not None and n > self.limit:
            raise InputError("data", self.name, f"the file holds {self.limit} points, and {n} are asked for")
        return self.sampler(n, seed.numpy())

    @cached_property
    def reference(self) -> Points:
        """A large fixed draw (20,000 points, or the whole file) for moments and plots."""
        return self.draw(self.limit or 20_000, Seed(0).child("reference"))

    @property
    def dim(self) -> int:
        """The dimension d."""
        return int(self.reference.shape[1])

    @cached_property
    def spread(self) -> float:
        """Root mean square standard deviation: sigma_data."""
        return float(np.sqrt(self.reference.var(0).mean()))


@dataclass(frozen=True)
class Mixture:
    """A Gaussian mixture with one isotropic variance: means (K, d), std, weights (K,)."""

    means: tuple[tuple[float, ...], ...]
    std: float
    weights: tuple[float, ...] = field(default=())

    def __post_init__(self) -> None:
        weights = np.asarray(self.weights or [1 / len(self.means)] * len(self.means), dtype=np.float64)
        if len(weights) != len(self.means) or (weights < 0).any() or not np.isclose(weights.sum(), 1):
            raise InputError("weights", weights.tolist(), f"give {len(self.means)} shares that sum to 1")
        object.__setattr__(self, "weights", tuple(float(w) for w in weights / weights.sum()))

    def sample(self, n: int, generator: np.random.Generator) -> tuple[Points, Labels]:
        """n points (n, d) and their components (n,)."""
        means = np.asarray(self.means)
        label = generator.choice(len(means), size=n, p=self.weights)
        return means[label] + self.std * generator.standard_normal((n, means.shape[1])), label.astype(np.int64)

    def responsibilities(self, points: Points) -> Points:
        """P(component | point), (n, K): the Bayes classifier of the mixture's own law."""
        logit = self._logits(points)
        logit -= logit.max(1, keepdims=True)
        odds = np.exp(logit)
        return np.asarray(odds / odds.sum(1, keepdims=True))

    def log_density(self, points: Points) -> Points:
        """log p of points (n, d): (n,)."""
        dim = points.shape[1]
        scale = dim * math.log(self.std * math.sqrt(2 * math.pi))
        return np.asarray(logsumexp(self._logits(points), axis=1) - scale)

    def _logits(self, points: Points) -> Points:
        distance = ((points[:, None] - np.asarray(self.means)) ** 2).sum(-1)
        with np.errstate(divide="ignore"):  # a weight of 0 is a component that no point came from
            return np.asarray(np.log(self.weights) - distance / (2 * self.std**2))


# ------------------------------------------------------------------- makers


def _of_mixture(name: str, mixture: Mixture) -> Distribution:
    return Distribution(name, mixture.sample, len(mixture.means), mixture=mixture)


def _curve(name: str, centres: Points, std: float, weights: Sequence[float] = ()) -> Distribution:
    """A mixture whose components are the grid of a curve, and no classes."""
    mixture = Mixture(tuple(map(tuple, centres)), std, tuple(weights))

    def sample(n: int, generator: np.random.Generator) -> tuple[Points, Labels]:
        return mixture.sample(n, generator)[0], np.zeros(n, dtype=np.int64)

    return Distribution(name, sample, mixture=mixture)


def _ring(count: int, weights: Sequence[float] = (), std: float = 0.2) -> Distribution:
    if count < 2:
        raise InputError("data", f"gaussians:{count}", "give at least 2 components")
    angle = 2 * math.pi * np.arange(count) / count
    means = tuple((2 * math.cos(a), 2 * math.sin(a)) for a in angle)
    return _of_mixture(f"gaussians:{count}", Mixture(means, std, tuple(weights)))


def _gaussians(text: str) -> Distribution:
    """``gaussians:K`` or ``gaussians:K:STD``: K on a circle of radius 2, standard deviation .2, equal weights."""
    found = re.fullmatch(r"([0-9]{1,4})(?::(\.[0-9]+|[0-9]+\.?[0-9]*))?", text or "8")
    if found is None or (found[2] and not 0 < float(found[2]) <= 10):
        expected = "write gaussians:K with 2 to 9999 components, such as 8, or gaussians:K:STD, such as 8:0.2"
        raise InputError("data", f"gaussians:{text}", expected)
    made = _ring(int(found[1]), std=float(found[2] or 0.2))
    return replace(made, name=f"gaussians:{text}") if text else made


def _mixture(text: str) -> Distribution:
    """``mixture:p,q,...``: the same ring with the given weights (they are divided by their sum)."""
    weights = [v for part in text.split(",") if part for v in parse_grid("data", part, low=0)]
    if not 2 <= len(weights) <= 9999 or not 0 < sum(weights) < math.inf:
        raise InputError("data", f"mixture:{text}", "give two weights or more, up to 9999, such as mixture:0.7,0.3")
    shares = [w / sum(weights) for w in weights]
    made = _ring(len(shares), shares)
    return Distribution(f"mixture:{text}", made.sampler, made.classes, mixture=made.mixture)


def _takes_nothing(name: str, text: str) -> None:
    if text:
        raise InputError("data", f"{name}:{text}", f"'{name}' takes nothing after a colon")


def _moons(text: str) -> Distribution:
    """``moons``: two interleaved half circles of radius 1, noise .1 (as scikit-learn's ``make_moons``)."""
    _takes_nothing("moons", text)

    def sample(n: int, generator: np.random.Generator) -> tuple[Points, Labels]:
        label = generator.integers(2, size=n)
        angle = math.pi * generator.random(n)
        x = np.where(label == 0, np.cos(angle), 1 - np.cos(angle))
        y = np.where(label == 0, np.sin(angle), 0.5 - np.sin(angle))
        return np.stack([x, y], 1) + 0.1 * generator.standard_normal((n, 2)), label.astype(np.int64)

    return Distribution("moons", sample, 2)


def _pinwheel(text: str) -> Distribution:
    """``pinwheel``: five arms, each a stretched Gaussian bent by a rotation that grows with its radius."""
    _takes_nothing("pinwheel", text)

    def sample(n: int, generator: np.random.Generator) -> tuple[Points, Labels]:
        label = generator.integers(5, size=n)
        arm = generator.standard_normal((n, 2)) * [0.3, 0.05] + [1.0, 0.0]
        angle = 2 * math.pi * label / 5 + 0.25 * np.exp(arm[:, 0])
        turned = np.stack(
            [
                arm[:, 0] * np.cos(angle) - arm[:, 1] * np.sin(angle),
                arm[:, 0] * np.sin(angle) + arm[:, 1] * np.cos(angle),
            ],
            1,
        )
        return 2 * turned, label.astype(np.int64)

    return Distribution("pinwheel", sample, 5)


def _swissroll(text: str) -> Distribution:
    """``swissroll``: the plane of scikit-learn's roll, angle 1.5 pi to 4.5 pi, divided by 5, noise .1."""
    _takes_nothing("swissroll", text)

    def sample(n: int, generator: np.random.Generator) -> tuple[Points, Labels]:
        angle = 1.5 * math.pi * (1 + 2 * generator.random(n))
        points = np.stack([angle * np.cos(angle), angle * np.sin(angle)], 1) / 5
        return points + 0.1 * generator.standard_normal((n, 2)), np.zeros(n, dtype=np.int64)

    return Distribution("swissroll", sample)


def _spiral(text: str) -> Distribution:
    """``spiral``: one and a half turns out to radius 2, weight in proportion to the radius, noise .02.

    A mixture of 1,000 Gaussians at most a noise's width apart: smooth, and its score is known.
    """
    _takes_nothing("spiral", text)
    turn = math.pi * (0.5 + 3 * (np.arange(1000) + 0.5) / 1000)
    centres = np.stack([turn * np.cos(turn), turn * np.sin(turn)], 1) * 2 / (3.5 * math.pi)
    return _curve("spiral", centres, 0.02, (turn / turn.sum()).tolist())


def _tree(text: str) -> Distribution:
    """``tree``: a fractal of six generations of branches, each two thirds as long and bent by 30 degrees, noise .02.

    Every generation has the same weight. A mixture of Gaussians along the branches, so that its score is known.
    """
    _takes_nothing("tree", text)
    centres, weights = [], []
    branches = [(0.0, -1.6, math.pi / 2)]
    for generation in range(6):
        length = 1.2 * (2 / 3) ** generation
        steps = (np.arange(32) + 0.5) / 32 * length
        grown = []
        for x, y, angle in branches:
            centres.append(np.stack([x + steps * math.cos(angle), y + steps * math.sin(angle)], 1))
            weights.append(np.full(32, 1 / (6 * 32 * len(branches))))
            tip = (x + length * math.cos(angle), y + length * math.sin(angle))
            grown += [(*tip, angle + math.pi / 6), (*tip, angle - math.pi / 6)]
        branches = grown
    return _curve("tree", np.concatenate(centres), 0.02, np.concatenate(weights).tolist())


def _cube(text: str) -> Distribution:
    """``cube:D``: Gaussians of standard deviation .16 at the 2^D corners of a cube with half side 1, D up to 6."""
    if not re.fullmatch("[1-6]", text or "3"):
        raise InputError("data", f"cube:{text}", "write cube:D with a dimension from 1 to 6")
    return _of_mixture(f"cube:{text or 3}", Mixture(tuple(itertools.product((-1.0, 1.0), repeat=int(text or 3))), 0.16))


def _checkerboard(text: str) -> Distribution:
    """``checkerboard``: uniform on the eight dark squares of a 4 x 4 board with sides of 4."""
    _takes_nothing("checkerboard", text)

    def sample(n: int, generator: np.random.Generator) -> tuple[Points, Labels]:
        label = generator.integers(8, size=n)
        row, column = label // 2, 2 * (label % 2)
        corner = np.stack([column + row % 2, row], 1) - 2.0
        return corner + generator.random((n, 2)), label.astype(np.int64)

    return Distribution("checkerboard", sample, 8)


#: name -> maker of the text after the colon. Adding one is a function and a line.
DATASETS: dict[str, Callable[[str], Distribution]] = {
    "gaussians": _gaussians,
    "mixture": _mixture,
    "moons": _moons,
    "pinwheel": _pinwheel,
    "swissroll": _swissroll,
    "checkerboard": _checkerboard,
    "spiral": _spiral,
    "tree": _tree,
    "cube": _cube,
}


def from_file(path: str | Path, *, argument: str = "data") -> Distribution:
    """The points of a ``.npy`` or ``.csv`` file (n, 2); a draw takes n of them without repetition.

    A csv's first line is a header if none of its fields is a number, or if it numbers the columns (``0,1``), as pandas
    writes them; `header_of` says which one was taken. Raises `InputError` naming ``argument`` for anything else, and
    for points without a spread, or of sizes that arithmetic does not hold.
    """
    path = Path(path)
    try:
        content = path.read_bytes()
        if path.suffix == ".npy":
            points = _array(path)
        else:
            lines = _lines(content)[1 if _header(content) else 0 :]
            points = np.loadtxt(lines, delimiter=",", ndmin=2) if lines else np.empty((0, 2))
    except (OSError, ValueError) as error:
        raise InputError(argument, str(path), f"it cannot be read as points ({_reason(error)})") from None
    if points.ndim != 2 or points.shape[1] != 2 or len(points) < 4 or points.dtype.kind not in "fiu":
        words = "it holds no points" if not points.size else f"it holds an array of shape {points.shape}"
        raise InputError(argument, str(path), f"{words}; give numbers (n, 2), n >= 4")
    points = points.astype(np.float64)
    if not np.isfinite(points).all():
        bad = int(np.flatnonzero(~np.isfinite(points).all(1))[0])
        raise InputError(argument, str(path), f"row {bad + 1} is not finite")
    center, scale = _center_and_scale(argument, path, points)

    def sample(n: int, generator: np.random.Generator) -> tuple[Points, Labels]:
        return points[generator.permutation(len(points))[:n]], np.zeros(n, dtype=np.int64)

    digest = hashlib.sha256(content).hexdigest()
    return Distribution(str(path), sample, limit=len(points), digest=digest, center=center, scale=scale)


def _center_and_scale(argument: str, path: Path, points: Points) -> tuple[tuple[float, ...], float]:
    """Mean and root mean square standard deviation. Raises `InputError` where they are no unit to work in."""
    largest = float(np.abs(points).max())
    if not 1e-100 < largest < 1e100:
        expected = f"its numbers reach {largest:g}: scale them to between 1e-100 and 1e100"
        raise InputError(argument, str(path), expected)
    if len(np.unique(points, axis=0)) < 4:
        raise InputError(argument, str(path), "it holds fewer than 4 different points; a distribution needs a spread")
    center = points.mean(0)
    scale = float(np.sqrt((points - center).var(0).mean()))
    if scale < 1e-9 * largest:
        expected = f"its spread is {scale:g} about {largest:g}, below what its digits hold: take their mean off"
        raise InputError(argument, str(path), expected)
    return tuple(center.tolist()), scale


def _lines(content: bytes) -> list[str]:
    """The lines of a csv file that are not empty; Excel begins them with a byte order mark."""
    return [line for line in content.decode("utf-8-sig").splitlines() if line.strip()]


def _header(content: bytes) -> str:
    """The csv's header line, '' if it has none."""
    first, second, *_ = [*_lines(content), "", ""]
    fields = [field.strip().strip('"') for field in first.split(",")]
    numbered = fields == [str(k) for k in range(len(fields))]  # by which pandas heads columns without names
    counted = numbered and not any(re.fullmatch(r"\s*[-+]?[0-9]+\s*", field) for field in second.split(","))
    return first if counted or not any(map(_is_number, fields)) else ""


def header_of(text: str) -> str:
    """The header line of the csv file that ``--data`` names, '' if there is none (or no such file)."""
    path = Path(text)
    return _header(path.read_bytes()) if path.suffix == ".csv" and path.is_file() else ""


def _array(path: Path) -> NDArray[Any]:
    """The array of a .npy file, whatever its order. Raises ValueError where there is none, before memory is taken."""
    with open(path, "rb") as handle:
        if handle.read(6) != b"\x93NUMPY":
            raise ValueError("it is no .npy file")
    try:
        return np.array(np.load(path, mmap_mode="r", allow_pickle=False))
    except OSError:
        raise
    except Exception as error:  # the header is a Python literal, and numpy's reader raises whatever it meets
        raise ValueError(reason(error)) from None


def parse_real(text: str, *, argument: str = "data") -> Distribution:
    """A distribution by its name (``gaussians:8``, ``moons``, ...) or a file. Raises `InputError` for anything else."""
    if text.endswith((".npy", ".csv")):
        return from_file(text, argument=argument)
    name, _, rest = text.partition(":")
    if name not in DATASETS:
        choose(argument, text, [*DATASETS, "gaussian", "FILE.npy", "FILE.csv"])
        raise InputError(argument, text, "'gaussian' alone is the Gaussian of `real_mean` and `real_covariance`")
    return DATASETS[name](rest)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else str(error).split("\n")[0]
