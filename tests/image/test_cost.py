"""What an evaluation takes: its memory against torch's own profiler, on tensors that are there."""

import json

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from sims_image.models.cost import LiveBytes, evaluation_bytes
from sims_image.models.networks import build
from sims_image.models.presets import PRESETS
from tests.image import tiny


def allocated(work, path) -> int:
    """The most bytes that ``work`` had allocated at once, by the profiler's record of every allocation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        work()
    seen.export_chrome_trace(str(path))
    events = [one for one in json.loads(path.read_text())["traceEvents"] if one.get("name") == "[memory]"]
    now = most = 0
    for one in sorted(events, key=lambda one: one["ts"]):
        now += one["args"]["Bytes"]
        most = max(most, now)
    return most


@pytest.mark.parametrize(
    ("config", "images"),
    [(PRESETS["digits"].config() | {"model_channels": 8}, 200), (tiny.EDM | {"label_dim": 0}, 300)],
)
def test_bytes_are_what_the_profiler_sees_but_for_the_kernels_own(config, images, tmp_path):
    network = build(**config).eval()
    x = torch.zeros(images, network.img_channels, network.img_resolution, network.img_resolution)
    with torch.no_grad():
        network(x, torch.ones(images))
        seen = allocated(lambda: network(x, torch.ones(images)), tmp_path / "trace.json")
    weights = sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    made = evaluation_bytes([config], images) - weights - x.nbytes
    assert 0.6 * seen < made < 1.02 * seen


def test_a_second_network_adds_its_weights_and_a_batch():
    config = PRESETS["digits"].config()
    one, two = (evaluation_bytes([config] * count, 50) for count in (1, 2))
    network = build(**config)
    weights = sum(t.nbytes for t in (*network.parameters(), *network.buffers()))
    assert two - one == weights + 4 * 50 * 64
    assert evaluation_bytes([config], 100) > 1.5 * one - weights


def test_live_bytes_counts_what_is_alive_and_no_view():
    with LiveBytes() as counter:
        a = torch.zeros(1000)
        b = a.view(10, 100).t()
        c = a + 1
        del a, b, c
        torch.zeros(1500)
    assert counter.peak == 8000
