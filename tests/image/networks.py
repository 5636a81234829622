"""Networks for tests, with weights that do not hide their structure.

``tests/fixtures/networks.npz`` holds 14 networks of the EDM and EDM2 families: descriptions (the published arguments),
parameter names and shapes, buffers, inputs, and outputs of the published implementation. Weights are normal draws of a
seeded `torch.Generator`, parameter by parameter in the order of the state dict: 'small', .05 z (and .3 z for scalars);
'unit', z / sqrt(fan_in) for weights, 1 + .2 z for norms, .2 z for biases, .7 + .3 z for scalars.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sims_image.models.networks import Preconditioned, build

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures" / "networks.npz"


def draw(shapes: dict[str, list[int]], seed: int, kind: str = "unit") -> dict[str, Tensor]:
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, shape in shapes.items():
        z = torch.randn(shape, generator=generator)
        if kind == "small":
            found[name] = z * (0.05 if shape else 0.3)
        elif not shape:
            found[name] = 0.7 + 0.3 * z
        elif name.endswith("weight"):
            found[name] = z / math.sqrt(math.prod(shape[1:])) if len(shape) > 1 else 1 + 0.2 * z
        else:
            found[name] = 0.2 * z
    return found


def filled(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module with 'unit' weights: freshly initialised networks put out zero and would pass anything."""
    drawn = draw({name: list(p.shape) for name, p in module.named_parameters()}, seed)
    module.load_state_dict({**module.state_dict(), **drawn}, strict=True)
    return module


def network(seed: int = 0, **config: object) -> Preconditioned:
    """A network with 'unit' weights and buffers of the seed, in eval mode."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return filled(build(**config), seed).eval()


@dataclass
class Case:
    name: str
    config: dict
    state: dict[str, Tensor]
    inputs: dict[str, Tensor]
    denoised: Tensor
    logvar: Tensor | None


def cases() -> dict[str, Case]:
    found = {}
    with np.load(FIXTURES) as file:
        for i, entry in enumerate(json.loads(str(file["cases"]))):
            arrays = {k.partition("/")[2]: torch.from_numpy(file[k]) for k in file.files if k.startswith(f"{i}/")}
            weights = draw(entry["parameters"], entry["seed"], entry["weights"])
            total = float(sum(w.double().abs().sum() for w in weights.values()))
            assert math.isclose(total, entry["total"], rel_tol=1e-6), "this torch draws other numbers from a seed"
            buffers = {k.partition("/")[2]: v for k, v in arrays.items() if k.startswith("buffers/")}
            inputs = {k: arrays[k] for k in ("x", "sigma", "class_labels", "augment_labels") if k in arrays}
            state = {**weights, **buffers}
            found[entry["name"]] = Case(
                entry["name"], entry["config"], state, inputs, arrays["denoised"], arrays.get("logvar")
            )
    return found


CASES = cases()


def denoise(net) -> Tensor:
    """Of two noisy images, of the first two classes."""
    x = torch.randn(2, net.img_channels, 8, 8, generator=torch.Generator().manual_seed(7))
    labels = torch.eye(net.label_dim)[:2] if net.label_dim else None
    with torch.no_grad():
        return net(x, torch.tensor([0.3, 4.0]), labels, force_fp32=True)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())
