"""The presets and published settings: sizes and recipes, rows that make networks, and what each costs."""

import json
import re

import pytest
import torch

from sims_core.errors import InputError
from sims_core.sampling import Sampler
from sims_image.commands import run as command
from sims_image.experiments.published import RECIPES, recipes
from sims_image.models.denoiser import parse_sampler
from sims_image.models.networks import build, parameter_count
from sims_image.models.presets import PRESETS, Recipe
from sims_image.training import estimate
from sims_image.training.schedules import profiles

PUBLISHED = {
    "cifar10-cond": 55_735_299,
    "cifar10-uncond": 55_733_891,
    "ffhq64": 61_805_571,
    "imagenet64-adm": 295_899_267,
    "imagenet64-edm2-xs": 124_710_949,
    "imagenet64-edm2-s": 280_209_381,
    "imagenet64-edm2-m": 497_803_173,
    "imagenet64-edm2-l": 777_492_325,
    "imagenet64-edm2-xl": 1_119_276_837,
    "imagenet512-edm2-s": 280_212_837,
}
NFE = {
    "cifar10-cond": 35,
    "cifar10-uncond": 35,
    "ffhq64": 79,
    "imagenet64-adm": 511,
    "imagenet64-edm2-s": 63,
    "imagenet512-edm2-s": 63,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes(name):
    assert parameter_count(**PRESETS[name].config()) == PUBLISHED[name]


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.network])
def test_a_row_makes_a_network_and_a_sampler(name):
    preset = PRESETS[name]
    with torch.device("meta"):
        net = build(**preset.config())
    assert json.loads(json.dumps(net.config)) == net.config
    assert (net.img_channels, net.img_resolution, net.img_resolution) == preset.shape
    assert net.label_dim == preset.classes and preset.recipe.images > 0
    assert (net.config.get("augment_dim", 0) == 9) == bool(preset.recipe.augment)
    assert net.has_logvar == ("edm2" in name)
    nfe = parse_sampler(preset.sampler).nfe
    assert nfe == NFE.get(name, nfe) > 0


def test_published_recipes():
    cifar, adm, edm2 = (PRESETS[n].recipe for n in ("cifar10-cond", "imagenet64-adm", "imagenet64-edm2-m"))
    assert (cifar.batch, cifar.images, cifar.lr, cifar.ema_halflife) == (512, 200_000_000, 1e-3, 500_000)
    assert (adm.batch, adm.images, adm.ema_halflife, adm.loss_scale) == (4096, 2_500_000_000, 50_000_000, 100)
    assert (edm2.batch, edm2.images, edm2.beta2, edm2.lr_decay_steps) == (2048, 2048 * 2**20, 0.99, 35_000)
    assert (edm2.p_mean, edm2.p_std, edm2.lr_rampup) == (-0.8, 1.6, 10_000_000)
    latents = PRESETS["imagenet512-edm2-l"].recipe
    assert (latents.p_mean, latents.p_std, latents.lr_decay_steps, latents.images) == (-0.4, 1, 70_000, 1792 * 2**20)
    assert PRESETS["imagenet64-adm"].churn == (40, 0.05, 50, 1.003)
    flow = PRESETS["cifar10-ot-cfm"].recipe
    assert (flow.batch, flow.lr, flow.lr_rampup / flow.batch, flow.clip, flow.augment) == (128, 2e-4, 5_000, 1, 0)
    assert profiles(flow)[0].keep(10**6, 128) == pytest.approx(0.9999, abs=1e-9) and flow.images / 128 == 400_000
    assert (flow.objective, flow.time, flow.coupling) == ("flow-matching", "uniform", 128)


def test_small_presets_are_small():
    for name in ("digits", "fashion16", "cifar10-tiny"):
        assert parameter_count(**PRESETS[name].config()) < 3_000_000


def test_the_data_fill_in_their_own_shape():
    config = PRESETS["digits"].config((2, 16, 16), 0)
    assert (config["img_channels"], config["img_resolution"], config["label_dim"]) == (2, 16, 0)
    with pytest.raises(InputError, match="shape: got '16x8'; the networks take square images"):
        PRESETS["digits"].config((1, 16, 8))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"budget": "0.3"}, "budget: got '0.3'; a training length in images"),
        ({"budget": "6 miles"}, "budget: got '6 miles'"),
        ({"mi": 1024}, "mi: got '1024'; one Mi counts 1000000 (EDM) or 1048576 (EDM2)"),
        ({"lr": 0}, "lr: got '0'; it must be positive"),
        ({"augment": 2.0}, "augment: got '2.0'; it must lie in [0, 1]"),
        ({"ema": "halflive"}, "ema: got 'halflive'; did you mean 'halflife'?"),
        ({"precision": "fp32"}, "precision: got 'fp32'; choose from float32, bf16, fp16"),
        ({"lr_decay": "inverse-sqrt"}, "lr_decay_steps: got '0'"),
    ],
)
def test_recipes_that_make_no_training(change, words):
    with pytest.raises(InputError) as caught:
        Recipe(**change)
    assert words in str(caught.value)


# ---------------------------------------------------------------- published settings


@pytest.mark.parametrize(("verb", "name"), [(one.verb, one.name) for one in RECIPES])
def test_every_published_recipe_has_a_price(verb, name, capsys, monkeypatch):
    """No data and no checkpoint is at hand; networks are counted on the meta device."""
    monkeypatch.setattr(estimate, "rate", lambda *_, **__: 1e11)  # timed in its own test
    one = next(one for one in RECIPES if (one.verb, one.name) == (verb, name))
    command([verb, "--preset", name, "--dry-run", "--device", "cpu"])
    said = capsys.readouterr().out
    assert "A100" in said and "evaluations" in said
    command(
        [
            verb,
            "--preset",
            name,
            "--dry-run",
            "--device",
            "cpu",
            "--seed",
            "3",
            "--n" if verb != "evaluate" else "--seeds",
            "40",
        ]
    )
    assert capsys.readouterr().out != said, "what is given besides wins"
    assert one.trust in "PSU" and re.search(r"arXiv|DDO|the same", one.source)
    assert one.hours == pytest.approx(one.priced(), abs=0.051)
    if verb == "evaluate":
        nfe = Sampler.parse(PRESETS[one.options["base"]].sampler).nfe
        assert f" {nfe * (2 if 'guide' in one.options else 1)} evaluations per image" in said


def test_recipes_are_listed_with_cost_source_and_trust(capsys):
    command(["recipes"])
    lines = capsys.readouterr().out.splitlines()
    for one, line in zip(RECIPES, lines[1:], strict=False):
        assert line.startswith(f"{one.verb} --preset {one.name} ") and line.endswith(f"{one.trust}  {one.source}")
        assert f"{one.hours:,.1f}" in line and one.fid in line
    command(["recipes", "retrain"])
    assert capsys.readouterr().out.count("--preset") == 6
    with pytest.raises(InputError, match="verb: got 'train'; did you mean 'retrain'"):
        command(["recipes", "train"])


def test_readings_of_the_evaluations_of_imagenet_512():
    """63 of each network, 63 of both together, and the auxiliary at some noise levels only."""
    hours = {one.name: one for one in RECIPES if one.name.startswith("imagenet512")}
    found = {name: sum(Sampler.parse(one.settings.sampler or "heun:32").evaluations()) for name, one in hours.items()}
    assert found == {"imagenet512": 126, "imagenet512-nfe63": 62, "imagenet512-interval": 126}
    assert hours["imagenet512-nfe63"].hours < hours["imagenet512-interval"].hours < hours["imagenet512"].hours
    assert recipes("pollution")["cifar10"].pollution.split(",").count("0.6") == 1
    assert recipes("pollution")["ffhq64"].pollution.split(",").count("0.2") == 1
