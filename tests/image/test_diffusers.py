"""Networks of diffusers as checkpoints: their own loop's images, training, every verb that takes a base, and back."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode

from sims_core import guide
from sims_core.errors import InputError
from sims_core.guidance import GuidanceSchedule
from sims_core.sampling import SampleNoise
from sims_core.seeds import Seed
from sims_image.commands import run as command
from sims_image.data.dataset import open_dataset
from sims_image.models import adapters, checkpoints
from sims_image.models.denoiser import conditional
from sims_image.models.diffusers import import_diffusers
from sims_image.models.presets import PRESETS
from sims_image.sampling.generate import choose_sampler
from sims_image.sampling.guided import load_model
from sims_image.training import estimate
from sims_image.training.objectives import make_objective
from tests.core import foreign
from tests.image import tiny

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' schedulers

WEIGHTS = "diffusion_pytorch_model.safetensors"
NOISE = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def ddim(**settings):
    return foreign.diffusers.DDIMScheduler(clip_sample=False, **settings)


def written(folder, network=None, scheduler=None, part="unet"):
    """A folder as `save_pretrained` of a pipeline lays it out."""
    (network or foreign.unet()).save_pretrained(folder / part)
    (scheduler or ddim()).save_pretrained(folder / "scheduler")
    return folder


def loop(network, scheduler, x, steps, **inputs):
    """The loop of every pipeline of diffusers."""
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            predicted = network(x, t.expand(len(x)), **inputs).sample[:, : x.shape[1]]
            x = scheduler.step(predicted, t, x).prev_sample
    return x


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return written(tmp_path_factory.mktemp("diffusers") / "ddpm")


# ------------------------------------------------------------------------- sampling


@pytest.mark.parametrize(
    "scheduler",
    [
        ddim(),
        ddim(steps_offset=1),
        ddim(beta_schedule="scaled_linear", prediction_type="v_prediction", timestep_spacing="trailing"),
        ddim(prediction_type="sample", beta_schedule="squaredcos_cap_v2"),
        foreign.diffusers.FlowMatchEulerDiscreteScheduler(),
    ],
)
def test_a_unet_samples_as_in_diffusers(tmp_path, scheduler):
    """Import, then our sampler: the images of diffusers' own loop from the same noise."""
    network = foreign.unet()
    import_diffusers(written(tmp_path / "folder", network, scheduler), tmp_path / "checkpoint")
    model = load_model(str(tmp_path / "checkpoint"))
    sampler = choose_sampler(model, "ddim:5")
    with torch.no_grad():
        ours = sampler(model.denoiser(None), NOISE)
    assert sampler.nfe == sampler.evaluations()[0] == 5
    assert (ours - loop(network, scheduler, NOISE, 5)).abs().max() < 1e-4 * ours.abs().max()


@pytest.mark.parametrize(
    "limits",
    [
        {"clip_sample": True, "clip_sample_range": 1.5},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.7, "sample_max_value": 1.2},
        {"thresholding": True, "dynamic_thresholding_ratio": 0.9, "sample_max_value": 50.0},
    ],
)
@pytest.mark.parametrize("guidance", ["", "full", "held:2"])
def test_images_are_limited_as_in_diffusers(tmp_path, limits, guidance):
    """Clipped and thresholded after guidance, alone, in full and held, by the library's own loop and its own step."""
    network, auxiliary = foreign.unet(), foreign.moved(foreign.unet(), 0.3)
    scheduler = foreign.diffusers.DDIMScheduler(**{"clip_sample": False, **limits})
    written(tmp_path / "base", network, scheduler)
    written(tmp_path / "auxiliary", auxiliary, scheduler)
    asked = {"auxiliary": f"hf:{tmp_path / 'auxiliary'}", "omega": 1.5} if guidance else {}
    model = load_model(f"hf:{tmp_path / 'base'}", schedule=GuidanceSchedule.parse(guidance or "full"), **asked)
    guided = network if not guidance else guide(network, auxiliary, 1.5, guidance="full")
    x = NOISE.clone()
    with torch.no_grad():
        ours = choose_sampler(model, "ddim:5")(model.denoiser(None), NOISE)
        scheduler.set_timesteps(5)
        for number, t in enumerate(scheduler.timesteps):
            predicted = guided(x, t).sample
            if guidance == "held:2":
                own = network(x, t).sample
                level = float((1 / scheduler.alphas_cumprod[t] - 1).sqrt())
                if number % 2 == 0:  # D_base - D_aux
                    held = (auxiliary(x, t).sample - own) * level
                predicted = own - 1.5 * held / level
            x = scheduler.step(predicted, t, x, use_clipped_model_output=True).prev_sample
    assert (ours - x).abs().max() < 1e-4 * x.abs().max() and x.abs().max() < 1.6
    free = load_model(f"hf:{tmp_path / 'base'}").network
    free.limits = None
    without = choose_sampler(model, "ddim:5")(conditional(free, None), NOISE)
    assert (without - ours).abs().max() > 0.1  # there was something to limit
    free.train()  # a loss sees what the network predicts
    torch.testing.assert_close(free(NOISE, torch.tensor(1.0)), model.network(NOISE, torch.tensor(1.0)))
    ancestral = foreign.diffusers.DDPMScheduler(**{"clip_sample": False, **limits})
    with torch.no_grad():
        t = torch.tensor(500)
        stepped = ancestral.step(network(NOISE, t).sample, t, NOISE).pred_original_sample
        sigma = model.network.levels[500]
        alone = load_model(f"hf:{tmp_path / 'base'}").denoiser(None)(NOISE * (1 + sigma**2).sqrt(), sigma)
    torch.testing.assert_close(alone, stepped, rtol=1e-3, atol=1e-4)


def test_a_dit_with_classes_generates_as_in_diffusers(tmp_path):
    """The verb `generate`: noise by seed, a class, latents as they are; a predicted variance is left aside."""
    network = foreign.dit(learned_variance=True)
    base = f"hf:{written(tmp_path / 'dit', network, part='transformer')}"
    words = ["--base", base, "--sampler", "ddim:5", "--device", "cpu", "--out", str(tmp_path / "made")]
    command(["generate", *words, "--seeds", "0-3", "--labels", "7", "--batch", "4"])
    made = open_dataset(tmp_path / "made").images(slice(None))
    noise = SampleNoise(Seed(0), range(4))((4, 4, 8, 8)).float()
    expected = loop(network, ddim(), noise, 5, class_labels=torch.full((4,), 7)).numpy()
    assert made.dtype == np.float32 and np.abs(made - expected).max() < 1e-4 * np.abs(expected).max()


def test_a_row_of_zeros_is_the_null_class(tmp_path):
    network = foreign.dit()
    found = import_diffusers(written(tmp_path / "dit", network, part="transformer"), tmp_path / "checkpoint").network
    x, sigma = torch.randn(2, 4, 8, 8), torch.tensor(2.0)
    with torch.no_grad():
        level = found.round_sigma(sigma)
        noise = network((x / (1 + level**2).sqrt()), found.index(level).expand(2), torch.full((2,), 1000)).sample
        torch.testing.assert_close(found(x, level), x - level * noise)


@pytest.mark.parametrize("body", [torch.bfloat16, torch.float16])
def test_lower_precision_keeps_float32_weights(folder, body):
    network = checkpoints.load(f"hf:{folder}").network
    whole = network(NOISE, torch.tensor(1.0))
    network.compute_dtype = body
    lower = network(NOISE, torch.tensor(1.0))
    assert lower.dtype == torch.float32 and {p.dtype for p in network.parameters()} == {torch.float32}
    assert 0 < (lower - whole).abs().max() < 0.05


# ------------------------------------------------------------------------- folders


def test_a_folder_without_a_copy_is_the_same_base(folder, tmp_path):
    command(["import-diffusers", str(folder), "--out", str(tmp_path / "checkpoint")])
    for base in (f"hf:{folder}", f"hf:{folder / 'unet'}", str(tmp_path / "checkpoint")):
        name = tmp_path / base.replace("/", "-")
        command(["generate", "--base", base, "--out", str(name), "--seeds", "0-3", "--sampler", "ddim:3"])
    made = [open_dataset(path).images(slice(None)) for path in sorted(tmp_path.glob("*-*"))]
    assert len(made) == 3 and made[0].std() > 0
    np.testing.assert_array_equal(made[0], made[1])
    np.testing.assert_array_equal(made[0], made[2])


def test_layouts(tmp_path, capsys):
    """Flat repositories, half precision, files in parts, and names that attention had in older files."""
    network, base = foreign.unet(), NOISE
    wanted = import_diffusers(written(tmp_path / "plain", network), tmp_path / "wanted").network(
        base, torch.tensor(1.0)
    )
    flat = tmp_path / "flat"
    network.save_pretrained(flat, max_shard_size="20KB")
    ddim().save_config(flat)
    assert len(list(flat.glob("*.safetensors"))) > 1
    assert torch.equal(import_diffusers(flat, tmp_path / "1").network(base, torch.tensor(1.0)), wanted)
    weights = load_file(tmp_path / "plain/unet" / WEIGHTS)
    older = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for now, before in older.items():
        weights = {name.replace(f".{now}.", f".{before}."): value for name, value in weights.items()}
    save_file(weights, tmp_path / "plain/unet" / WEIGHTS)
    assert torch.equal(checkpoints.load(f"hf:{tmp_path / 'plain'}").network(base, torch.tensor(1.0)), wanted)
    network.half().save_pretrained(tmp_path / "half/unet", variant="fp16")
    half = import_diffusers(tmp_path / "half", tmp_path / "3", scheduler="DDIMScheduler").network
    assert half.model.conv_in.weight.dtype == torch.float32
    command(["info", str(tmp_path / "plain"), f"hf:{flat}", str(tmp_path / "3")])
    assert "UNet2DModel under DDIMScheduler, 3x8x8, unconditional" in capsys.readouterr().out


def test_one_set_of_weights_under_two_schedulers_is_two_checkpoints(folder, tmp_path):
    kinds = ("DDPMScheduler", "FlowMatchEulerDiscreteScheduler", "DDPMScheduler")
    made = [import_diffusers(folder, tmp_path / f"{k}", scheduler=kind).sha256 for k, kind in enumerate(kinds)]
    assert made[0] == made[2] != made[1]
    assert len({checkpoints.summary(f"hf:{folder}").sha256, *made}) == 3


def changed(folder, **settings):
    config = json.loads((folder / "unet/config.json").read_text()) | settings
    (folder / "unet/config.json").write_text(json.dumps(config))


def pickled(folder):
    (folder / "unet" / WEIGHTS).rename(folder / "unet/diffusion_pytorch_model.bin")


@pytest.mark.parametrize(
    ("break_it", "told"),
    [
        (lambda f: changed(f, _class_name="UNet3DConditionModel"), "'UNet3DConditionModel': read are UNet2DModel, DiT"),
        (lambda f: (f / "unet/config.json").unlink(), "a folder with config.json, or a pipeline's"),
        (lambda f: (f / "unet/config.json").write_text("{"), "not JSON"),
        (lambda f: (f / "scheduler/scheduler_config.json").unlink(), "name one by `scheduler` of import-diffusers"),
        (lambda f: changed(f, sample_size=None), "must give the side of its square images"),
        (lambda f: changed(f, out_channels=5), "predicts the 3 channels it sees"),
        (lambda f: changed(f, layers_per_block=10**9), "a number of at most 256"),
        (lambda f: changed(f, block_out_channels=[16, 16]), "another architecture"),
        (lambda f: changed(f, down_block_types=["Nothing", "DownBlock2D"]), "diffusers makes none of it"),
        (pickled, r"its weights are a pickle \(diffusion_pytorch_model.bin\)"),
        (lambda f: (f / "unet" / WEIGHTS).write_bytes(b"0"), "not a whole safetensors file"),
    ],
)
def test_what_is_not_read_is_one_line(tmp_path, break_it, told):
    place = written(tmp_path / "folder")
    break_it(place)
    for read in (lambda: import_diffusers(place, tmp_path / "out"), lambda: checkpoints.load(f"hf:{place}")):
        with pytest.raises(InputError, match=told) as caught:
            read()
        assert "\n" not in str(caught.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["import-diffusers", "google/ddpm-cifar10-32"], "FOLDER: got 'google/ddpm-cifar10-32'; there is no"),
        (["import-diffusers"], "FOLDER: got ''; name the folder"),
        (["import-diffusers", "{}", "--scheduler", "KarrasVeScheduler"], "--scheduler: got 'KarrasVeScheduler'"),
        (["import-diffusers", "{}", "--scheduler", "{}/unet/config.json"], "give one with betas"),
        (["generate", "--base", "{}", "--out", "x"], "write hf:"),
        (["generate", "--base", "hf:{}", "--out", "x", "--sampler", "ddim:2000"], "--sampler: got 'ddim:2000'"),
        (["train", "--preset", "diffusers", "--dry-run"], "--preset: got 'diffusers'; a recipe of imported networks"),
    ],
)  # fmt: skip
def test_commands_name_their_options(folder, tmp_path, monkeypatch, words, told):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        command([word.format(folder) for word in words])
    assert told in str(caught.value)


def test_without_the_library_the_hint_installs_it(folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "diffusers", None)
    with pytest.raises(InputError, match="pip install 'diffusers"):
        checkpoints.summary(f"hf:{folder}")


# ------------------------------------------------------------------------- training


def test_the_loss_is_edm_s_on_the_denoiser(folder):
    """At levels of its timesteps; of a network of noise it is (1 + sigma^2 / sigma_data^2) |eps - n|^2."""
    network, raw = checkpoints.load(f"hf:{folder}").network, foreign.unet()
    objective = make_objective(PRESETS["diffusers"].recipe, network)
    level = torch.tensor([-1.0, 0.0, 1.5])
    found = objective(network, NOISE * 0.3, level, NOISE.flip(0), {})
    assert set(found.level.tolist()) <= set(network.levels.tolist())
    s = found.level[:, None, None, None]
    x = NOISE * 0.3 + s * NOISE.flip(0)
    noise = raw(x / (1 + s**2).sqrt(), network.index(found.level)).sample
    expected = (1 + s**2 / 0.25) * (noise - NOISE.flip(0)) ** 2
    torch.testing.assert_close(found.value, expected, rtol=1e-3, atol=1e-4)


def test_training_goes_on_from_a_folder(folder, tmp_path):
    data = tiny.write_data(tmp_path / "data.zip", classes=0)
    words = ["--data", str(data.path), "--budget", "0.4k", "--batch", "8", "--lr", "3e-3", "--device", "cpu"]
    command(["train", "--from", f"hf:{folder}", *words, "--out", str(tmp_path / "run"), "--ema-halflife", "50"])
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])
    last = sorted((tmp_path / "run/snapshots").iterdir())[-1]
    made = checkpoints.summary(last / "ema")
    assert made.record.parent == checkpoints.summary(f"hf:{folder}").sha256 and (last / "sheet.png").exists()
    assert 0 < made.record.training["ema_share_of_raw"] < 1
    assert made.config == checkpoints.summary(f"hf:{folder}").config


def test_experiments_take_it_as_base(folder, tmp_path):
    """Algorithm 1 with its controls, and a loop, from commands to reports."""
    data = tiny.write_data(tmp_path / "data.zip", count=64, classes=0)
    words = ["--data", str(data.path), "--base", f"hf:{folder}", "--features", "pixels", "--sampler", "ddim:3"]
    words += ["--device", "cpu", "--synthetic", "32", "--train-batch", "8"]
    sizes = ["--search", "20", "--n", "20", "--repeats", "2", "--budget", "32", "--omega", "0.5"]
    command(["sims", *words, *sizes, "--out", str(tmp_path / "sims")])
    results = json.loads((tmp_path / "sims/report/results.json").read_text())
    assert {arm["arm"] for arm in results["arms"]} >= {"base", "SIMS", "Neon", "random direction"}
    command(["sims", *words, *sizes, "--out", str(tmp_path / "sims"), "--dry-run"])
    more = ["--generations", "2", "--trials", "1", "--method", "standard,sims", "--n", "20", "--budget", "32"]
    command(["loop", *words, *more, "--out", str(tmp_path / "loop")])
    assert (tmp_path / "loop/report/report.html").exists()


# ------------------------------------------------------------------------- adapters


@pytest.fixture(scope="module")
def adapter(folder, tmp_path_factory):
    """An adapter of rank 4 on the folder's network, far enough from doing nothing."""
    place = tmp_path_factory.mktemp("adapter")
    data = tiny.write_data(place / "data.zip", classes=0)
    words = ["--data", str(data.path), "--budget", "0.2k", "--batch", "8", "--lr", "1e-2", "--device", "cpu"]
    command(["train", "--from", f"hf:{folder}", *words, "--lora", "4", "--out", str(place / "run"), "--sheet", "0"])
    return sorted((place / "run/snapshots").iterdir())[-1] / "raw"


def test_an_adapter_is_kept_alone_and_toggled(folder, adapter, capsys):
    """The pair equals two whole networks; its weights are in memory once."""
    found = checkpoints.summary(adapter)
    command(["info", str(adapter)])
    assert f"an adapter of rank 4 on: hf:{folder}" in capsys.readouterr().out
    base = load_model(f"hf:{folder}")
    assert found.parameters == sum(v.numel() for v in load_file(adapter / "model.safetensors").values())
    assert found.parameters < base.base.parameters and found.adapter.rank == 4
    pair = load_model(f"hf:{folder}", auxiliary=str(adapter), omega=1.5)
    whole = replace(base, other=checkpoints.load(adapter).network, omega=1.5, kind="sims")
    x, sigma = NOISE * 3, torch.tensor(3.0)
    with torch.no_grad():
        toggled, two, alone = (model.denoiser(None)(x, sigma) for model in (pair, whole, base))
        assert (toggled - two).abs().max() < 1e-5 * two.abs().max() and (two - alone).abs().max() > 0.01
        assert torch.equal(pair.at(0).denoiser(None)(x, sigma), alone)
        assert torch.equal(pair.network(x, sigma), alone)  # also afterwards
    stored = {p.data_ptr(): p.numel() for p in (*pair.network.parameters(), *pair.other.parameters())}
    assert sum(stored.values()) == base.base.parameters + found.parameters
    neon = load_model(f"hf:{folder}", auxiliary=str(adapter), omega=0.5, merge=True)
    merged = [net.network.state_dict()["model.conv_in.weight"] for net in (base, checkpoints.load(adapter), neon)]
    torch.testing.assert_close(merged[2], 1.5 * merged[0] - 0.5 * merged[1])


def test_an_adapter_whose_base_has_gone_is_one_line(folder, tmp_path):
    import_diffusers(folder, tmp_path / "base")
    data = tiny.write_data(tmp_path / "data.zip", classes=0)
    words = ["--data", str(data.path), "--budget", "0.008k", "--batch", "8", "--device", "cpu", "--sheet", "0"]
    where = ["--lora", "2:to_q,conv_in", "--out", str(tmp_path / "run")]
    command(["train", "--from", str(tmp_path / "base"), *words, *where])
    made = tmp_path / "run/snapshots/0000000008/raw"
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in load_file(made / "model.safetensors")} == {
        "to_q",
        "conv_in",
    }
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(InputError, match=r"an adapter, whose base .*/base cannot be read: there is nothing"):
        checkpoints.load(made)
    load_model(str(tmp_path / "moved"), auxiliary=str(made), omega=1.0)  # its weights are at hand
    import_diffusers(folder, tmp_path / "base", scheduler="DDPMScheduler")
    with pytest.raises(InputError, match=r"whose base .*/base is another by now"):
        checkpoints.load(made)


def test_a_dry_run_prices_what_is_run(folder, tmp_path, capsys):
    """An adapter's step: no gradients of frozen weights, and Adam for the adapter alone; as many evaluations as run."""
    found, recipe = checkpoints.summary(f"hf:{folder}"), PRESETS["diffusers"].recipe
    whole, tuned = estimate.measure(found.config, recipe), estimate.measure(found.config, recipe, "1")
    assert whole.parameters == whole.trained == found.parameters
    network = checkpoints.load(f"hf:{folder}").network.train().requires_grad_(True)

    def counted():
        """Of an image's step here, where attention's own products are not counted."""
        with FlopCounterMode(display=False) as counter:
            network(torch.randn(2, 3, 8, 8), torch.ones(2)).sum().backward()
        return counter.get_total_flops() / 2

    before = counted()
    adapters.attach(network, adapters.targets_of("1", network), adapters.Adapter(1, "", ""))
    assert tuned.trained == sum(p.numel() for p in network.parameters() if p.requires_grad) < 0.5 * whole.trained
    assert tuned.parameters == whole.parameters + tuned.trained
    assert whole.flops - tuned.flops == pytest.approx(before - counted()) and tuned.flops < 0.9 * whole.flops
    data = tiny.write_data(tmp_path / "data.zip", count=64, classes=0)
    given = ["--data", str(data.path), "--device", "cpu", "--dry-run"]
    command(["train", "--from", f"hf:{folder}", *given, "--budget", "1k", "--lora", "1"])
    assert f"{tuned.parameters:,}, {tuned.trained:,} of them trained" in capsys.readouterr().out
    sampling = ["--base", f"hf:{folder}", "--features", "pixels", "--sampler", "ddim:5", *given]
    sizes = {"sims": [], "loop": ["--generations", "2"]}
    for verb, more in sizes.items():
        command([verb, *sampling, *more])
        assert "5 evaluations per image, 10 with" in capsys.readouterr().out
    assert estimate.rate(found.config, recipe, 1e13, torch.device("cpu"), seconds=0.01) > 0  # too large to be tried


def test_an_imported_architecture_from_scratch(folder, tmp_path, capsys):
    """Weights of the seed and not the folder's; so the rivals that need another network run too."""
    data = tiny.write_data(tmp_path / "data.zip", count=64, classes=0)
    words = ["--data", str(data.path), "--device", "cpu"]
    train = ["train", "--from", f"hf:{folder}", "--fresh", *words, "--budget", "0.008k", "--batch", "8", "--lr", "1e-9"]
    for name, seed in (("1", "1"), ("again", "1"), ("2", "2")):
        command([*train, "--seed", seed, "--out", str(tmp_path / name)])
    made = [checkpoints.load(tmp_path / name / "snapshots/0000000008/raw") for name in ("1", "again", "2")]
    base = checkpoints.load(f"hf:{folder}")
    assert made[0].sha256 == made[1].sha256 != made[2].sha256 and made[0].record.parent is None
    for one, other in ((made[0], base), (made[0], made[2])):
        assert one.config == other.config
        first, second = (m.network.state_dict()["model.conv_in.weight"] for m in (one, other))
        assert (first - second).std() > 0.05
    loop = ["loop", *words, "--base", f"hf:{folder}", "--features", "pixels", "--sampler", "ddim:3", "--n", "20"]
    loop += ["--synthetic", "32", "--generations", "1", "--trials", "1", "--fit-budget", "128", "--train-batch", "8"]
    command([*loop, "--method", "rebuilt,autoguidance", "--out", str(tmp_path / "loop")])
    assert len(list((tmp_path / "loop").glob("rebuild-*"))) == 2 and (tmp_path / "loop/report/report.html").exists()
    with pytest.raises(InputError, match=r"--fresh: got .True.; name the checkpoint whose architecture it is with"):
        command(["train", "--preset", "digits", "--fresh", "--dry-run"])


def test_algorithm_1_by_an_adapter(folder, tmp_path):
    data = tiny.write_data(tmp_path / "data.zip", count=64, classes=0)
    words = ["--data", str(data.path), "--base", f"hf:{folder}", "--features", "pixels", "--sampler", "ddim:3"]
    words += ["--device", "cpu", "--synthetic", "32", "--train-batch", "8", "--search", "20", "--n", "20"]
    words += ["--repeats", "2", "--budget", "32", "--omega", "1", "--lr", "1e-2", "--auxiliary-weights", "raw"]
    command(["sims", *words, "--lora", "4", "--out", str(tmp_path / "sims")])
    results = json.loads((tmp_path / "sims/report/results.json").read_text())
    arms = {arm["arm"]: arm["mean"] for arm in results["arms"]}
    assert arms["SIMS"] != arms["base"] != arms["naive fine-tune"] and "Neon" in arms
    made = checkpoints.summary(next((tmp_path / "sims").glob("finetune-*/snapshots/*/raw")))
    assert made.adapter is not None and made.record.parent == checkpoints.summary(f"hf:{folder}").sha256


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["--lora", "4:nothing"],
            "--lora: got '4:nothing'; no layer is called 'nothing'; there are conv, conv1, conv2, conv_in,",
        ),
        (["--lora", "many"], "--lora: got 'many'; give a rank"),
        (["--lora", "0"], "--lora: got '0'; give a whole number of at least 1"),
    ],
)
def test_adapters_that_cannot_be(folder, tmp_path, words, told):
    tiny.checkpoint(tmp_path / "edm")
    data = tiny.write_data(tmp_path / "data.zip", classes=0)
    common = ["--data", str(data.path), "--budget", "64", "--dry-run", "--device", "cpu"]
    for verb in (["train", "--from"], ["sims", "--features", "pixels", "--base"]):
        budget = [part if part != "64" or verb[0] == "sims" else "0.064k" for part in common]
        with pytest.raises(InputError) as caught:
            command([*verb, f"hf:{folder}", *budget, *words])
        assert told in str(caught.value)
    with pytest.raises(InputError, match="--lora: got '4'; adapters go on imported networks"):
        command(["train", "--from", str(tmp_path / "edm"), "--preset", "digits", "--budget", "1k", "--lora", "4"])
    with pytest.raises(InputError, match="--lora: got '4'; an adapter needs a checkpoint: name one with --from"):
        command(["train", "--preset", "digits", "--lora", "4", "--dry-run"])
    with pytest.raises(InputError, match="--lora: got '4'; the adapter is toggled on one network"):
        command(["sims", "--features", "pixels", "--base", f"hf:{folder}", *common, "--lora", "4", "--compile"])


# ------------------------------------------------------------------------- the way back


def lines_of(capsys, *words):
    """Export by the command, and run the lines that it prints: what they name."""
    import diffusers
    import peft

    import sims_core

    command(["export-diffusers", *map(str, words)])
    found = {"diffusers": diffusers, "peft": peft, "sims_core": sims_core}
    _, *lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 3
    for line in lines:
        exec(line.strip(), found)
    return found


def test_what_was_imported_comes_back_equal(folder, tmp_path, capsys):
    network = foreign.unet()
    pipe = lines_of(capsys, f"hf:{folder}", "--out", tmp_path / "back")["pipe"]
    assert type(pipe).__name__ == "DDIMPipeline" and not pipe.scheduler.config.clip_sample
    for name, value in network.state_dict().items():
        assert torch.equal(pipe.unet.state_dict()[name], value)
    assert foreign.images(pipe).std() > 0
    again = [import_diffusers(path, tmp_path / str(k)).sha256 for k, path in enumerate((folder, tmp_path / "back"))]
    assert again[0] == again[1]
    dit = foreign.dit(learned_variance=True)
    found = lines_of(capsys, f"hf:{written(tmp_path / 'dit', dit, part='transformer')}", "--out", tmp_path / "2")
    for name, value in dit.state_dict().items():
        assert torch.equal(found["transformer"].state_dict()[name], value)


def test_a_guided_pair_is_loaded_in_three_lines(folder, adapter, tmp_path, capsys):
    """As an adapter, as two networks, and merged: what diffusers calls is what our sampler calls."""
    save_whole = checkpoints.load(adapter)
    checkpoints.save(tmp_path / "whole", save_whole.network, save_whole.record)
    x, t = NOISE, torch.tensor(500)
    for number, auxiliary in enumerate((adapter, tmp_path / "whole")):
        words = ("--auxiliary", auxiliary, "--omega", 1.5, "--out", tmp_path / f"pair{number}")
        pipe = lines_of(capsys, f"hf:{folder}", *words)["pipe"]
        model = load_model(f"hf:{folder}", auxiliary=str(auxiliary), omega=1.5)
        sigma = model.network.levels[500]
        with torch.no_grad():
            noise = pipe.unet(x / (1 + sigma**2).sqrt(), t).sample
            torch.testing.assert_close(x - sigma * noise, model.denoiser(None)(x, sigma), rtol=1e-4, atol=1e-4)
        assert json.loads((tmp_path / f"pair{number}/sims.json").read_text())["omega"] == 1.5
    assert [(tmp_path / f"pair{k}/auxiliary/config.json").exists() for k in range(2)] == [False, True]
    words = ("--auxiliary", adapter, "--omega", 0.5, "--merge", "--out", tmp_path / "neon")
    merged = lines_of(capsys, f"hf:{folder}", *words)["pipe"].unet.state_dict()["conv_in.weight"]
    neon = load_model(f"hf:{folder}", auxiliary=str(adapter), omega=0.5, merge=True).network
    assert torch.equal(merged, neon.model.conv_in.weight)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["{edm}", "--out", "{out}"], r"no class of diffusers holds EDM's networks; in its loops take sims_core.deno"),
        (["hf:{folder}", "--out", "{folder}"], "--out: got '.*'; something is there"),
        (["hf:{folder}", "--out", "{out}", "--omega", "1"], "a guided pair takes both an --auxiliary and an --omega"),
        (["hf:{folder}"], "--out: got ''; name a new folder"),
        ([], "CHECKPOINT: got ''; name the checkpoint"),
    ],
)
def test_what_is_not_exported_is_one_line(folder, tmp_path, words, told):
    names = {"edm": tmp_path / "edm", "out": tmp_path / "out", "folder": folder}
    tiny.checkpoint(names["edm"])
    with pytest.raises(InputError, match=told):
        command(["export-diffusers", *(word.format(**names) for word in words)])
    assert not names["out"].exists()


# ------------------------------------------------------------------------- latents


def test_latents_are_decoded_for_sheets_and_metrics(tmp_path):
    """A pipeline with its autoencoder: pixels as the library's own decoder makes them, measured as pixels."""
    vae, place = foreign.autoencoder(), written(tmp_path / "dit", foreign.dit(), part="transformer")
    vae.save_pretrained(place / "vae")
    common = ["--base", f"hf:{place}", "--sampler", "ddim:2", "--device", "cpu", "--batch", "4", "--seeds"]
    command(["generate", *common, "0-3", "--labels", "7", "--out", str(tmp_path / "latents")])
    command(["generate", *common, "0-3", "--labels", "7", "--decode", str(place), "--out", str(tmp_path / "pixels")])
    latents, pixels = (open_dataset(tmp_path / name).images(slice(None)) for name in ("latents", "pixels"))
    expected = vae.decode(torch.tensor(latents) / vae.config.scaling_factor).sample
    expected = (expected * 127.5 + 128).clip(0, 255).to(torch.uint8).numpy()
    assert pixels.dtype == np.uint8 and np.abs(pixels.astype(int) - expected.astype(int)).max() <= 1
    assert pixels.std() > 0 and (tmp_path / "pixels/sheet.png").exists()
    data = tiny.write_data(tmp_path / "data.zip", classes=0, count=24).path
    measured = ["--reference", str(data), "--features", "pixels", "--out", str(tmp_path / "report.json")]
    command(["evaluate", *common, "0-23", "--labels", "7", "--decode", str(place / "vae"), *measured])
    assert json.loads((tmp_path / "report.json").read_text())["features"]["metric"] != "FD-latents"
    for words, told in (
        (
            ["--base", f"hf:{place}", "--decode", str(place / "transformer")],
            "it holds a DiTTransformer2DModel; decoders",
        ),
        (
            ["--base", f"hf:{written(tmp_path / 'ddpm')}", "--decode", str(place)],
            "latents of 4 channels, the base's have 3",
        ),
        (["--base", f"hf:{place}", "--decode", str(data)], "a folder with config.json of an AutoencoderKL"),
    ):
        with pytest.raises(InputError, match=told):
            command(["generate", *words, "--out", str(tmp_path / "x")])
