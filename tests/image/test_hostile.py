"""Records that somebody altered: every value of every JSON that is read, replaced by what should not be there."""

import copy
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sims_core.errors import InputError
from sims_image.data.archives import sha256_file
from sims_image.data.dataset import open_dataset
from sims_image.data.folders import write_folder
from sims_image.info import describe
from sims_image.metrics import classifier
from sims_image.models import checkpoints
from sims_image.models.networks import build

#: values as they stand in the file
ODD = {
    "null": "null",
    "true": "true",
    "negative": "-1",
    "fraction": "0.5",
    "infinite": "1e999",
    "nan": "NaN",
    "long": "1" + "0" * 400,
    "very long": "1" + "0" * 5000,
    "large": "1" + "0" * 80,
    "huge float": "1e300",
    "text": '"x"',
    "escapes": '"\\u001b[31m\\u202e\\n\\ud800"',
    "list": "[1]",
    "nested": "[[[]]]",
    "object": '{"a": 1}',
    "deep": "[" * 50_000 + "]" * 50_000,
}
HOLE = "?hole?"


def places(content, path=()):
    """Every place of a JSON value, objects and lists themselves among them."""
    yield path
    items = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    for key, value in items:
        yield from places(value, (*path, key))


def altered(content, path, odd):
    """The JSON text with the value at ``path`` replaced."""
    whole = [copy.deepcopy(content)]
    here, key = whole, 0
    for step in path:
        here, key = here[key], step
    here[key] = HOLE
    return json.dumps(whole[0]).replace(json.dumps(HOLE), ODD[odd])


def one_line_or_right(read):
    """``read`` gives printable lines or nothing, or refuses in one printable line."""
    try:
        found = read()
    except InputError as error:
        found = [str(error)]
    for line in found if isinstance(found, list) else ():
        assert line.isprintable(), line


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    network = build(
        model_type="SongUNet", img_resolution=8, img_channels=1, label_dim=2, model_channels=8, channel_mult=[1],
        num_blocks=1, attn_resolutions=[],
    )  # fmt: skip
    data = checkpoints.Data("digits", "ab" * 32, ("cat", "dog"), (1, 8, 8), "uint8")
    record = checkpoints.Record("digits", data, 5, 10**6, checkpoints.Ema("halflife", 5.0), "cd" * 32, {"lr": 1.0})
    return checkpoints.save(tmp_path_factory.mktemp("model") / "made", network, record).path


@pytest.mark.parametrize("odd", ODD)
def test_a_checkpoints_record(checkpoint, odd):
    record = checkpoint / "model.json"
    before = record.read_text()
    content = json.loads(before)
    del content["record"]["provenance"]["libraries"]
    try:
        for path in places(content):
            record.write_text(altered(content, path, odd))
            one_line_or_right(lambda: describe(checkpoint))
            one_line_or_right(lambda: checkpoints.load(checkpoint).config.keys())
    finally:
        record.write_text(before)


@pytest.mark.parametrize("odd", ODD)
def test_a_data_sets_record(tmp_path, odd):
    data = write_folder(
        tmp_path / "data", [np.zeros((4, 1, 8, 8), np.uint8)], count=4, shape=(1, 8, 8), dtype=np.dtype("u1"),
        labels=np.array([0, 1, 0, 1]), classes=["cat", "dog"], name="pets", source={"kind": "made"},
    )  # fmt: skip
    record = data.path / "dataset.json"
    content = json.loads(record.read_text())
    for path in places(content):
        record.write_text(altered(content, path, odd))
        one_line_or_right(lambda: describe(data.path))
        one_line_or_right(lambda: len(open_dataset(data.path)) and None)


@pytest.mark.parametrize("odd", ODD)
def test_a_run_folders_records(tmp_path, odd):
    settings = {"settings": {"seed": 1, "recipe": {"lr": 0.5}}, "provenance": {"started": "now", "command": ["x"]}}
    finished = {"finished": "then", "images": 5}
    for name, content in (("settings.json", settings), ("finished.json", finished)):
        for other, whole in (("settings.json", settings), ("finished.json", finished)):
            (tmp_path / other).write_text(json.dumps(whole))
        for path in places(content):
            (tmp_path / name).write_text(altered(content, path, odd))
            one_line_or_right(lambda: describe(tmp_path))


@pytest.mark.parametrize(
    "change",
    [{"width": 10**9}, {"width": 0}, {"width": "x"}, {"width": None}, {"shape": [10**9, 8, 8]}, {"shape": 5},
     {"shape": [1, 0, 8]}, {"data": {"sha256": "", "classes": ["a"] * 10**5}}, {"data": 5}, {"format": 99}],
)  # fmt: skip
def test_a_classifiers_record(tmp_path, change):
    torch.manual_seed(0)
    made = classifier.Classifier((1, 8, 8), 2, width=4)
    save_file(made.state_dict(), tmp_path / classifier.WEIGHTS)
    record = {
        "format": classifier.FORMAT, "data": {"sha256": "", "classes": ["a", "b"]}, "shape": [1, 8, 8], "width": 4,
        "weights_sha256": sha256_file(tmp_path / classifier.WEIGHTS),
    }  # fmt: skip
    (tmp_path / classifier.RECORD).write_text(json.dumps(record))
    x = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    assert torch.equal(classifier.load(tmp_path).logits(x), made.eval().logits(x))
    (tmp_path / classifier.RECORD).write_text(json.dumps(record | change))
    with pytest.raises(InputError, match="remove the folder to train another"):
        classifier.load(tmp_path)
