import pytest
import torch

from sims_image.processes import choose_device, full_float32
from tests.image import tiny


@pytest.fixture(scope="session")
def device(pytestconfig) -> torch.device:
    """What the tests here run on: a CUDA device, or for a dry run the CPU."""
    found = choose_device(pytestconfig.getoption("--gpu-device"))
    if found.type == "cuda":
        torch.cuda.set_device(found)
        full_float32()
    return found


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    return tiny.write_data(tmp_path_factory.mktemp("data") / "tiny.zip", count=48)
