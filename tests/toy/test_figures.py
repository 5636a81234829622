"""Names of the package, and pictures that are really drawn."""

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

import sims_toy
from sims_core import Sampler, Seed, guided
from sims_core.lab.style import save
from sims_toy import Gaussian, NetworkLearner, NetworkSettings, score_fields


def test_every_public_name_resolves():
    for name in sims_toy.__all__:
        assert getattr(sims_toy, name) is not None
    with pytest.raises(AttributeError):
        sims_toy.nothing  # noqa: B018


def test_train_one_network_and_see_its_score_field(tmp_path):
    real = Gaussian.single([1, -0.5], [[2, 1], [1, 2]])
    learner = NetworkLearner(Sampler.parse("ddim:20", sigma_data=2**0.5), [0], NetworkSettings(steps=60))
    base = learner.fit(learner.draw(real, 300, seed=Seed(0)), seed=Seed(0))
    synthetic = learner.sample(base, 300, seed=Seed(1))
    auxiliary = learner.finetune(base, synthetic, 3200, seed=Seed(2))
    models = {"real": real.denoise, "standard": base.denoise, "sims": guided(base.denoise, auxiliary.denoise, 1.0)}
    paths = score_fields(models, {"standard": synthetic[0].numpy()}, tmp_path / "field", caption="A caption.")
    assert [p.suffix for p in paths] == [".png", ".svg"]
    picture = np.asarray(Image.open(paths[0]).convert("L"), dtype=float)
    third = picture.shape[1] // 3
    assert all((picture[:, i * third : (i + 1) * third] < 128).mean() > 0.005 for i in range(3))  # ink in every panel
    assert b"<svg" in paths[1].read_bytes()[:600] and not list(tmp_path.glob(".*"))


def test_equal_figures_are_equal_files(tmp_path):
    """Outside the project's style too."""
    for name in ("one", "two"):
        figure = Figure()
        axes = figure.subplots()
        axes.fill_between([0, 1], [0, 1], [1, 2], label="x")
        axes.imshow([[0, 1], [2, 3]])
        axes.legend()
        save(figure, tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
