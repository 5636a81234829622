"""The code of docs/your-model.md and of README's ten lines is run, on tiny networks in place of the reader's."""

import json
import re
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*adapter:UserWarning"),
]


def blocks(document, after="", kind="python"):
    text = (ROOT / document).read_text(encoding="utf-8")
    section = text[text.index(after) :] if after else text
    section = section.split("\n## ", 1)[0] if after else section
    return re.findall(rf"```{kind}\n(.*?)```", section, re.DOTALL)


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 32), nn.SiLU(), nn.Linear(32, 2))

    def forward(self, x, noise):
        return self.net(torch.cat([x, noise[:, None]], 1))


class Velocity(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Linear(3, 2)

    def forward(self, x, t):
        return self.net(torch.cat([x, t.expand(len(x))[:, None].to(x)], 1))


def project():
    made = types.ModuleType("your_project")
    made.Network, made.points = Network, torch.randn(500, 2)
    made.velocity, made.velocity_auxiliary = Velocity(), Velocity()
    made.images = torch.rand(32, 3, 8, 8)
    return made


def words(at):
    """A tokenizer of letters and a text encoder for it."""
    transformers = pytest.importorskip("transformers")
    special = ["<|startoftext|>", "<|endoftext|>"]
    letters = [chr(n) + end for n in range(97, 123) for end in ("", "</w>")] + special
    at.mkdir()
    (at / "vocab.json").write_text(json.dumps({letter: n for n, letter in enumerate(letters)}))
    (at / "merges.txt").write_text("#version: 0.2\n")
    config = transformers.CLIPTextConfig(
        vocab_size=len(letters), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=len(letters) - 2, eos_token_id=len(letters) - 1,
    )  # fmt: skip
    return transformers.CLIPTokenizer.from_pretrained(at, model_max_length=77), transformers.CLIPTextModel(config)


def folders(foreign, at):
    """The reader's: a pipeline, its auxiliary, a latent one, photos, a Stable Diffusion and an adapter for it."""
    d, base = foreign.diffusers, foreign.unet()
    d.DDIMPipeline(base, d.DDIMScheduler()).save_pretrained(at / "your-pipeline")
    foreign.moved(base).save_pretrained(at / "your-auxiliary")
    d.LDMPipeline(foreign.autoencoder(2), foreign.unet(4), d.DDIMScheduler(clip_sample=False)).save_pretrained(
        at / "your-latents"
    )
    (at / "photos").mkdir()
    for number, image in enumerate(torch.randint(0, 256, (24, 16, 16, 3), dtype=torch.uint8)):
        Image.fromarray(image.numpy()).save(at / "photos" / f"{number}.png")
    network = foreign.conditional_unet()
    pipe = foreign.stable_diffusion(network, d.DDIMScheduler(steps_offset=1, clip_sample=False))
    pipe.tokenizer, pipe.text_encoder = words(at / "words")
    pipe.register_modules(tokenizer=pipe.tokenizer, text_encoder=pipe.text_encoder)
    pipe.save_pretrained(at / "your-sd")
    peft = pytest.importorskip("peft")
    network.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "aux")
    weights = peft.get_peft_model_state_dict(network, adapter_name="aux")
    d.StableDiffusionPipeline.save_lora_weights(at / "your-lora", unet_lora_layers=weights)


@pytest.fixture
def reader(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        monkeypatch.setitem(sys.modules, "your_project", project())
        yield tmp_path


def run(code, document):
    names = {"__name__": document}
    for number, block in enumerate(code):
        exec(compile(block, f"{document}, block {number}", "exec"), names)
    return names


def test_the_document(reader):
    pytest.importorskip("flow_matching")
    folders(pytest.importorskip("tests.core.foreign"), reader)
    code = blocks("docs/your-model.md")
    names = run(code, "docs/your-model.md")
    assert names["images"][0].tobytes() != names["neon"][0].tobytes()
    assert names["pipe"].unet.active_adapters() == ["aux"]


def test_the_commands(reader):
    from sims_image.commands import run as command
    from sims_image.data.dataset import open_dataset

    folders(pytest.importorskip("tests.core.foreign"), reader)
    lines = [line for block in blocks("docs/your-model.md", kind="sh") for line in block.splitlines()]
    ours = [line.split()[1:] for line in lines if line.startswith("sims_image ")]
    assert len(ours) == 7
    for words in ours:
        command(words)
    assert len(list((reader / "made").glob("images.npy"))) == 1 and (reader / "back" / "model_index.json").is_file()
    made = open_dataset(reader / "pictures")
    assert open_dataset(reader / "data/latents").moments and made.shape == (3, 16, 16) and made.dtype == "uint8"


def test_readmes_ten_lines(reader):
    (code,) = blocks("README.md", "## On your own model")
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    assert run([code], "README.md")["samples"].shape == (1000, 2)


def test_the_weights_of_other_libraries():
    """The document's table: what diffusers' two forms, the pipelines' scale and autoguidance make of omega."""
    guiders = pytest.importorskip("diffusers.guiders")
    base, other, omega = torch.randn(4), torch.randn(4), 1.5
    line = (1 + omega) * base - omega * other
    torch.testing.assert_close(other + (omega + 1) * (base - other), line)
    for original, scale in ((False, omega + 1), (True, omega)):
        guider = guiders.ClassifierFreeGuidance(guidance_scale=scale, use_original_formulation=original)
        torch.testing.assert_close(guider.forward(base, other).pred, line)
