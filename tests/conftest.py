import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
settings.register_profile("default", deadline=None, max_examples=25, derandomize=True)
settings.load_profile("default")


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also run the tests that take minutes")
    parser.addoption("--gpu-device", default="cuda", choices=("cuda", "cpu"), help="what tests marked gpu run on")


def pytest_collection_modifyitems(config, items):
    device = config.getoption("--gpu-device")
    missing = device == "cuda" and not torch.cuda.is_available()
    for item in items:
        gpu = item.get_closest_marker("gpu")
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="takes minutes: run with --slow"))
        elif gpu and missing:
            words = "needs a CUDA device (docs/gpu.md); --gpu-device cpu runs what a CPU can"
            item.add_marker(pytest.mark.skip(reason=words))
        elif gpu and device == "cpu" and not gpu.kwargs.get("cpu", True):
            item.add_marker(pytest.mark.skip(reason="is about CUDA alone"))
