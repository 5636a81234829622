"""What a pass through the CIFAR-10 network costs on this machine, against a plain implementation of the same network.

    python benchmarks/networks.py [--preset cifar10-cond] [--batch 4] [--rounds 3] [--json FILE]

The plain one is eager float32 in the default (contiguous) layout, with attention as two products around a softmax and
resampling as grouped convolutions, on the same weights; the outputs are compared first. All variants take turns in one
process and on one thread, in CPU-seconds (best of the rounds), so that the ratios hold on a machine that does other
work too. A pass is forward and backward in training mode, without optimiser; ``sgemm`` is the machine's own rate.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from machine import save
from torch import Tensor

from sims_image.models.networks import Preconditioned, build
from sims_image.models.presets import PRESETS


class Plain:
    """SongUNet (DDPM++) under EDM's preconditioning, written plainly over a dict of weights."""

    def __init__(self, net: Preconditioned) -> None:
        self.config = net.config
        self.w = {n: v.detach().clone().contiguous() for n, v in net.state_dict().items()}
        for name, _ in net.named_parameters():
            self.w[name].requires_grad_()

    def zero_grad(self) -> None:
        for weight in self.w.values():
            weight.grad = None

    def conv(self, name: str, x: Tensor, *, up: bool = False, down: bool = False) -> Tensor:
        if up or down:
            f = self.w[f"{name}.resample_filter"].repeat(x.shape[1], 1, 1, 1)
            x = F.conv_transpose2d(x, 4 * f, groups=len(f), stride=2) if up else F.conv2d(x, f, groups=len(f), stride=2)
        weight = self.w[f"{name}.weight"]
        return F.conv2d(x, weight, self.w[f"{name}.bias"], padding=weight.shape[-1] // 2)

    def norm(self, name: str, x: Tensor) -> Tensor:
        groups = min(32, x.shape[1] // 4)
        return F.group_norm(x, groups, self.w[f"{name}.weight"], self.w[f"{name}.bias"], 1e-6)

    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.w.get(f"{name}.bias")
        y = x @ self.w[f"{name}.weight"].T
        return y if bias is None else y + bias

    def block(self, name: str, x: Tensor, emb: Tensor) -> Tensor:
        how = {"up": name.endswith("up"), "down": name.endswith("down")}
        h = self.conv(f"{name}.conv0", F.silu(self.norm(f"{name}.norm0", x)), **how)
        h = h + self.linear(f"{name}.affine", emb)[:, :, None, None]
        h = F.dropout(F.silu(self.norm(f"{name}.norm1", h)), self.config["dropout"])
        h = self.conv(f"{name}.conv1", h)
        h = (h + (self.conv(f"{name}.skip", x, **how) if f"{name}.skip.weight" in self.w else x)) * math.sqrt(0.5)
        if f"{name}.qkv.weight" not in self.w:
            return h
        q, k, v = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", h)).reshape(len(h), h.shape[1], 3, -1).unbind(2)
        weight = torch.einsum("ncq,nck->nqk", q, k / math.sqrt(k.shape[1])).softmax(2)
        a = torch.einsum("nqk,nck->ncq", weight, v).reshape(h.shape)
        return (h + self.conv(f"{name}.proj", a)) * math.sqrt(0.5)

    def raw(self, x: Tensor, c_noise: Tensor, labels: Tensor, augment: Tensor) -> Tensor:
        width = self.w["model.map_layer0.weight"].shape[1]
        steps = torch.arange(width // 2) / (width // 2 - 1)
        angles = torch.outer(c_noise, 1e-4**steps)
        emb = torch.cat([angles.sin(), angles.cos()], 1)
        if self.config["label_dim"]:
            emb = emb + self.linear("model.map_label", labels * math.sqrt(self.config["label_dim"]))
        if self.config["augment_dim"]:
            emb = emb + self.linear("model.map_augment", augment)
        emb = F.silu(self.linear("model.map_layer1", F.silu(self.linear("model.map_layer0", emb))))
        names = list(dict.fromkeys(".".join(n.split(".")[:3]) for n in self.w if ".enc." in n or ".dec." in n))
        skips, image = [], x
        for name in names:
            if name.endswith("_conv") and ".enc." in name:
                x = self.conv(name, x)
            elif name.endswith("aux_norm"):
                image = F.silu(self.norm(name, x))
            elif name.endswith("aux_conv"):
                image = self.conv(name, image)
            else:
                joined = torch.cat([x, skips.pop()], 1) if ".dec." in name and "_block" in name else x
                x = self.block(name, joined, emb)
            if ".enc." in name:
                skips.append(x)
        return image

    def __call__(self, x: Tensor, sigma: Tensor, labels: Tensor, augment: Tensor) -> Tensor:
        s = sigma.reshape(-1, 1, 1, 1)
        total = (s**2 + 0.25).sqrt()
        return 0.25 / total**2 * x + 0.5 * s / total * self.raw(x / total, sigma.log() / 4, labels, augment)


def cpu_seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def variants(config: dict[str, Any]) -> dict[str, tuple[Any, torch.memory_format]]:
    """Name -> (callable network, layout of its images); the same weights in each."""
    torch.manual_seed(0)
    net = build(**config)
    with torch.no_grad():
        for weight in net.parameters():  # the zero-initialised layers would make gradients vanish
            weight.add_(0.02 * torch.randn_like(weight))

    def ours(layout: torch.memory_format, dtype: torch.dtype) -> Preconditioned:
        other = build(**config)
        other.load_state_dict(net.state_dict())
        other.to(memory_format=layout)  # type: ignore[call-overload]
        other.compute_dtype = dtype
        return other.train()

    last, plain = torch.channels_last, torch.contiguous_format
    return {
        "plain": (Plain(net), plain),
        "contiguous, float32": (ours(plain, torch.float32), plain),
        "channels-last, float32": (ours(last, torch.float32), last),
        "channels-last, bf16": (ours(last, torch.bfloat16), last),
    }


def measure(config: dict[str, Any], batch: int, rounds: int) -> list[dict[str, Any]]:
    side, channels, classes = config["img_resolution"], config["img_channels"], config["label_dim"]
    x, noise = torch.randn(batch, channels, side, side), torch.linspace(0.1, 3, batch)
    labels = torch.eye(max(classes, 1))[torch.arange(batch) % max(classes, 1)] if classes else None
    augment = torch.zeros(batch, config["augment_dim"]) if config["augment_dim"] else None
    found = variants(config)
    best = {name: [math.inf, math.inf] for name in found}
    outputs: dict[str, Tensor] = {}
    for turn in range(rounds + 1):  # the first turn warms up
        for name, (net, layout) in found.items():
            torch.manual_seed(0)
            given = (x.contiguous(memory_format=layout), noise, labels, augment)
            held: list[Tensor] = []
            forward = cpu_seconds(lambda net=net, given=given, held=held: held.append(net(*given)))
            loss = held[0].square().sum()
            backward = cpu_seconds(loss.backward)
            net.zero_grad()
            outputs[name] = held[0].detach()
            if turn:
                best[name] = [min(best[name][0], forward), min(best[name][1], backward)]
    compare(outputs, dropout=config["dropout"])
    total = sum(best["plain"])
    return [
        {
            "network": name,
            "forward_ms_per_image": 1e3 * f / batch,
            "backward_ms_per_image": 1e3 * b / batch,
            "images_per_cpu_second": batch / (f + b),
            "ratio": total / (f + b),
        }
        for name, (f, b) in best.items()
    ]


def compare(outputs: dict[str, Tensor], *, dropout: float) -> None:
    """The same weights and draws must give the same images, or the ratios would compare different things.

    Dropout draws in memory order, so that only networks of the same layout can be compared while it acts.
    """
    plain = outputs["plain"]
    names = ["contiguous, float32"] if dropout else list(outputs)
    for name in names:
        error = float((outputs[name] - plain).norm() / plain.norm())
        if not error < (0.05 if "bf16" in name else 1e-5):
            raise RuntimeError(f"{name} differs from the plain network by {error:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cifar10-cond", choices=[n for n, p in PRESETS.items() if _song(p.network)])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure(PRESETS[options.preset].config(), options.batch, options.rounds)
    result = {"preset": options.preset, "batch": options.batch, "rows": rows}
    print(f"{options.preset}, batch {options.batch}, one thread")
    print(f"{'network':24}{'forward':>10}{'backward':>10}  ms per image  images/s   ratio")
    for row in rows:
        times = f"{row['forward_ms_per_image']:10.1f}{row['backward_ms_per_image']:10.1f}"
        print(f"{row['network']:24}{times}{row['images_per_cpu_second']:23.2f}{row['ratio']:8.2f}")
    save(options.json, result)


def _song(network: Any) -> bool:
    return network.get("model_type") == "SongUNet"


if __name__ == "__main__":
    main()
