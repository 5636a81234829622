"""Two-dimensional data sets: their laws by independent means, seeds, files and what is wrong with them."""

import math

import numpy as np
import pytest
from scipy import stats

from sims_core import InputError, Seed
from sims_toy.datasets import DATASETS, Distribution, Mixture, header_of, parse_real

NAMES = ["gaussians:8", "gaussians:8:0.16", "mixture:0.7,0.2,0.1", "moons", "pinwheel", "swissroll", "checkerboard"]
NAMES += ["spiral", "tree", "cube:2"]


@pytest.mark.parametrize("name", NAMES)
def test_draws_are_reproducible_and_labelled(name):
    real = parse_real(name)
    points, labels = real.draw_labelled(500, Seed(1))
    assert points.shape == (500, 2) and np.isfinite(points).all() and real.dim == 2
    assert set(labels) <= set(range(real.classes)) and len(set(labels)) == real.classes
    np.testing.assert_array_equal(points, real.draw(500, Seed(1)))
    assert not np.array_equal(points, real.draw(500, Seed(2)))
    assert real.spread == pytest.approx(math.sqrt(real.draw(20_000, Seed(3)).var(0).mean()), rel=0.03)
    assert name.split(":")[0] in DATASETS


def test_the_ring_of_gaussians():
    real = parse_real("gaussians:8")
    points, labels = real.draw_labelled(40_000, Seed(1))
    angle = 2 * math.pi * labels / 8
    rest = (points - 2 * np.stack([np.cos(angle), np.sin(angle)], 1)) / 0.2
    assert stats.kstest(rest[:, 0], "norm").pvalue > 1e-3 and stats.kstest(rest[:, 1], "norm").pvalue > 1e-3
    assert stats.chisquare(np.bincount(labels)).pvalue > 1e-3
    assert real.spread == pytest.approx(math.sqrt(2 + 0.04), rel=0.02)  # radius^2 / 2 and the components' own
    p = np.array([0.7, 0.2, 0.1])
    counts = np.bincount(parse_real("mixture:7,2,1").draw_labelled(20_000, Seed(0))[1])
    assert stats.chisquare(counts, 20_000 * p).pvalue > 1e-3


def test_responsibilities_against_densities():
    mixture = Mixture(((0.0, 0.0), (1.0, 2.0), (-3.0, 0.5)), 0.8, (0.5, 0.3, 0.2))
    points = np.random.default_rng(0).normal(size=(50, 2))
    density = np.stack(
        [
            w * stats.multivariate_normal(m, 0.64).pdf(points)
            for m, w in zip(mixture.means, mixture.weights, strict=True)
        ],
        1,
    )
    np.testing.assert_allclose(mixture.responsibilities(points), density / density.sum(1, keepdims=True), rtol=1e-12)
    none = Mixture(((0.0, 0.0), (1.0, 2.0)), 0.8, (1.0, 0.0)).responsibilities(points)
    np.testing.assert_array_equal(none, np.tile([1.0, 0.0], (50, 1)))


def test_supports():
    board = parse_real("checkerboard").draw(5000, Seed(0))
    cell = np.floor(board).astype(int)
    assert (cell.sum(1) % 2 == 0).all() and np.abs(board).max() <= 2
    points, moon = parse_real("moons").draw_labelled(5000, Seed(0))
    centre = np.where(moon[:, None] == 0, [0.0, 0.0], [1.0, 0.5])
    assert np.linalg.norm(points - centre, axis=1).mean() == pytest.approx(1.0, abs=0.02)
    sk = pytest.importorskip("sklearn.datasets")
    other, _ = sk.make_moons(5000, noise=0.1, random_state=0)
    for axis in (0, 1):
        assert stats.ks_2samp(points[:, axis], other[:, axis]).pvalue > 1e-3
    roll, _ = sk.make_swiss_roll(5000, noise=0.5, random_state=0)
    mine = parse_real("swissroll").draw(5000, Seed(1))
    for axis, column in ((0, 0), (1, 2)):
        assert stats.ks_2samp(mine[:, axis], roll[:, column] / 5).pvalue > 1e-3


def test_a_file_of_points(tmp_path):
    points = np.random.default_rng(0).normal(size=(30, 2))
    np.save(tmp_path / "a.npy", points)
    np.savetxt(tmp_path / "b.csv", points, delimiter=",", header="x,y", comments="")
    a, b = (parse_real(str(tmp_path / n)) for n in ("a.npy", "b.csv"))
    np.testing.assert_allclose(a.draw(30, Seed(0)), b.draw(30, Seed(0)))
    np.testing.assert_allclose(np.sort(a.draw(30, Seed(5)), 0), np.sort(points, 0))  # without repetition
    assert len(a.digest) == 64 and a.digest != b.digest
    with pytest.raises(InputError, match="holds 30 points"):
        a.draw(31, Seed(0))


POINTS = [[1.5, 2.25], [-1.0, 0.5], [3.0, 1.0], [0.0, 0.125]]
LINES = "".join(f"{x},{y}\n" for x, y in POINTS)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("header", "taken"), [("", ""), ("x,y\n", "x,y"), ("0,1\n", "0,1"), ('"0","1"\n', '"0","1"')])
def test_csv_files_as_spreadsheets_and_pandas_write_them(tmp_path, mark, end, header, taken):
    path = tmp_path / "a.csv"
    path.write_bytes((mark + header + LINES).replace("\n", end).encode())
    real = parse_real(str(path))
    assert real.limit == 4 and sorted(real.draw(4, Seed(0)).tolist()) == sorted(POINTS)
    assert header_of(str(path)) == taken


def test_a_first_point_is_no_header(tmp_path):
    for first in ("0,1", "nan,1", "x,1"):
        (tmp_path / "a.csv").write_text(f"{first}\n1,2\n3,4\n5,6\n")
        if first == "0,1":  # whole numbers throughout
            assert parse_real(str(tmp_path / "a.csv")).limit == 4
        else:
            with pytest.raises(InputError, match=r"row 1 is not finite|cannot be read"):
                parse_real(str(tmp_path / "a.csv"))


def test_a_files_center_and_scale():
    """`standard` is centred with spread 1; `restored` is its inverse; named data sets stay as they are."""
    moons = parse_real("moons")
    assert moons.standard is moons and moons.restored(np.ones(2)) is not None
    points = moons.draw(500, Seed(0)) * 7 + [100, -3]
    real = Distribution(
        "p", lambda n, g: (points[:n], np.zeros(n, np.int64)), limit=500, center=(100.0, -3.0), scale=7.0
    )
    inner = real.standard
    np.testing.assert_allclose(inner.draw(500, Seed(0)) * 7 + [100, -3], points)
    np.testing.assert_allclose(real.restored(inner.draw(500, Seed(0))), points)
    assert inner.standard is inner


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (np.full((9, 2), 3.0), "fewer than 4 different points"),
        (np.array([[0, 1], [1, 0], [2, 2]] * 3), "fewer than 4 different points"),
        (np.arange(10.0).reshape(5, 2) * 1e200, "reach 9e.200"),
        (np.arange(10.0).reshape(5, 2) * 1e-200, "reach 9e-200"),
        (np.zeros((5, 2)), "reach 0"),
        (np.arange(10.0).reshape(5, 2) + 1e15, "take their mean off"),
        (b"x,y\n", "holds no points"),
        (b"\xff\xfe1\x002\x00", "cannot be read"),
        (b"1;2\n3;4\n5;6\n7;8\n", "cannot be read"),
        (np.zeros((5, 3)), "shape"),
        (np.zeros((2, 2)), "n >= 4"),
        (np.full((5, 2), np.nan), "row 1 is not finite"),
        (np.array([["a", "b"]] * 5), "shape"),
        (np.array([{}, {}], dtype=object), "cannot be read"),
        (b"1,2\n3\n4,5\n6,7\n", "cannot be read"),
        (b"", "it holds no points"),
        (b"\n \n", "it holds no points"),
        (None, "No such file"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_bad_files(tmp_path, content, reason):
    path = tmp_path / ("a.csv" if isinstance(content, bytes) else "a.npy")
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(InputError, match=reason) as error:
        parse_real(str(path))
    assert error.value.argument == "data" and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name", ["moon", "gaussians:1", "gaussians:x", "mixture:1", "mixture:0,0", "mixture:-1,2", "moons:3"]
)
def test_bad_names(name):
    with pytest.raises(InputError) as error:
        parse_real(name)
    assert error.value.argument == "data"
