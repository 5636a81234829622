"""How fast ensembles of small score networks train, against the usual one-network PyTorch loop on the same machine.

    python benchmarks/ensemble.py [--json FILE] [--networks 64] [--rounds 5]

Everything is measured in one process and on one thread, in CPU-seconds (best of the rounds, which take turns), so that
the ratios hold on a machine that does other work too. The usual loop is an nn.Sequential, autograd and torch.optim.Adam
on plain denoising targets. Compiling the kernel is not counted; building the ensemble and its seeds is.
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

import numpy as np
import torch
from machine import save, sgemm_rate
from scipy import stats
from scipy.stats import qmc
from torch import Tensor

from sims_core.diffusion import EDM
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_toy.networks.ensemble import Ensemble, numba_available
from sims_toy.networks.mlp import Mlp
from sims_toy.networks.schedule import Training
from sims_toy.networks.training import train

MEAN = torch.tensor([1.0, -0.5], dtype=torch.float64)
COVARIANCE = torch.tensor([[2.0, 1.0], [1.0, 2.0]], dtype=torch.float64)
SIGMA_DATA = math.sqrt(2)


def cpu_seconds(work: Callable[[], object]) -> float:
    before = time.process_time()
    work()
    return time.process_time() - before


def gaussian(k: int, n: int = 1000) -> Tensor:
    """k data sets of n points from N([1, -.5], [[2, 1], [1, 2]]), float32 [k, n, 2]."""
    rows = torch.stack([torch.from_numpy(Seed(7).child(i).numpy().standard_normal((n, 2))) for i in range(k)])
    return (rows @ torch.linalg.cholesky(COVARIANCE).T + MEAN).float()


# ---------------------------------------------------------------- the usual loop


def usual_network(widths: tuple[int, ...]) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for fan_in, out in zip((3, *widths[:-1]), widths, strict=True):
        layers += [torch.nn.Linear(fan_in, out), torch.nn.SiLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(widths[-1], 2))


def usual_loop(data: Tensor, widths: tuple[int, ...], batch: int, steps: int, *, decay: bool) -> Any:
    """Train one network on data [n, 2]; returns its denoiser over points [1, n, 2]."""
    network, edm = usual_network(widths), EDM(SIGMA_DATA)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps) if decay else None
    denoiser = edm.denoiser(lambda x, c: network(torch.cat([x, c.expand(*x.shape[:-1], 1)], -1)))
    for _ in range(steps):
        clean = data[torch.randint(len(data), (batch,))]
        sigma = SIGMA_DATA * torch.tan(torch.rand(batch, 1) * (math.pi / 2))
        noisy = clean + sigma * torch.randn(batch, 2)
        loss = (edm.weight(sigma) * (denoiser(noisy, sigma) - clean) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()
    return lambda x, sigma: denoiser(x.float(), sigma.float())


# ---------------------------------------------------------------------- quality


def distance(x: Tensor) -> Tensor:
    """Closed-form W2 between Gaussians with the moments of x [K, n, 2] and the source."""

    def root(matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        return (vectors * values.clamp(min=0).sqrt()[..., None, :]) @ vectors.mT

    x = x.double()
    mean, centred = x.mean(1), x - x.mean(1, keepdim=True)
    covariance = centred.mT @ centred / x.shape[1]
    half = root(COVARIANCE)
    traces = [m.diagonal(dim1=-2, dim2=-1).sum(-1) for m in (covariance, COVARIANCE, root(half @ covariance @ half))]
    return (((mean - MEAN) ** 2).sum(-1) + traces[0] + traces[1] - 2 * traces[2]).clamp(min=0).sqrt()


def generated(denoiser: Any, k: int, n: int = 2**12) -> Tensor:
    """W2 of each network's samples from even, whitened normal points, by a sampler without bias."""
    z = stats.norm.ppf(qmc.Sobol(2, seed=0).random(n))
    z = z - z.mean(0)
    z = torch.from_numpy(z @ np.linalg.inv(np.linalg.cholesky(z.T @ z / n)).T)
    with torch.no_grad():
        return distance(Sampler.parse("rk4:4", sigma_data=SIGMA_DATA)(denoiser, z.expand(k, -1, -1)))


# ----------------------------------------------------------------------- figures


def flops(mlp: Mlp, batch: int) -> int:
    """Multiply-adds of matrix products in a step, times 2: forward, weight gradients, and back through the layers."""
    weights = [out * columns for _, out, columns in mlp.layers]
    return 2 * batch * (2 * sum(weights) + sum(weights[1:]))


def backends() -> list[str]:
    return ["torch", "numba"] if numba_available() else ["torch"]


def speed(widths: tuple[int, ...], batch: int, networks: int, rounds: int, sgemm: float) -> list[dict[str, Any]]:
    data, mlp, steps = gaussian(networks), Mlp(2, widths), 200
    e = Ensemble.initial(mlp, [Seed(0).child(i) for i in range(networks)], sigma_data=SIGMA_DATA)
    seeds = [Seed(1).child(i) for i in range(networks)]
    settings = Training(steps=steps, batch=batch, target="plain")
    work: dict[str, tuple[Callable[[], object], int]] = {
        "usual loop": (lambda: usual_loop(data[0], widths, batch, steps, decay=False), steps)
    }
    for name in backends():
        work[name] = (lambda name=name: train(e, data, seeds, settings, backend=name), networks * steps)
    for run, _ in work.values():
        run()
    best = dict.fromkeys(work, math.inf)
    for _ in range(rounds):
        for name, (run, count) in work.items():
            best[name] = min(best[name], cpu_seconds(run) / count)
    return [
        {
            "widths": list(widths),
            "batch": batch,
            "loop": name,
            "net_steps_per_cpu_second": 1 / seconds,
            "ratio": best["usual loop"] / seconds,
            "gflops": flops(mlp, batch) / seconds / 1e9,
            "share_of_sgemm": flops(mlp, batch) / seconds / sgemm,
        }
        for name, seconds in best.items()
    ]


def products(mlp: Mlp, batch: int, rounds: int) -> float:
    """CPU-seconds that a step's matrix products take by themselves, in the cache, by the library that torch calls."""
    work = []
    for i, (_, out, columns) in enumerate(mlp.layers):
        shapes = [(out, columns, batch), (out, batch, columns), (columns - 1, out, batch)][: 3 if i else 2]
        work += [(torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)) for m, k, n in shapes]

    def run() -> None:
        for _ in range(100):
            for a, b, c in work:
                torch.mm(a, b, out=c)

    run()
    return min(cpu_seconds(run) for _ in range(rounds)) / 100


def roofline(widths: tuple[int, ...], batch: int, networks: int, rounds: int) -> dict[str, Any]:
    """What a compiled step is made of, microseconds: its products by the library, its SiLU (less ReLU), and what does
    not grow with the rows (Adam, the average, the start of a step), from as many steps of an eighth of them.
    """
    data, steps, seeds = gaussian(networks), 200, [Seed(1).child(i) for i in range(networks)]

    def step(activation: str, rows: int) -> float:
        mlp = Mlp(2, widths, activation=activation)
        e = Ensemble.initial(mlp, [Seed(0).child(i) for i in range(networks)], sigma_data=SIGMA_DATA)
        run = lambda: train(e, data, seeds, Training(steps, rows, target="plain"), backend="numba")  # noqa: E731
        run()
        return min(cpu_seconds(run) for _ in range(rounds)) / networks / steps

    whole, few = step("silu", batch), step("silu", batch // 8)
    parts = {
        "step": whole,
        "products": products(Mlp(2, widths), batch, rounds),
        "silu": whole - step("relu", batch),
        "fixed": few - (whole - few) / 7,
    }
    return {"widths": list(widths), "batch": batch} | {f"{name}_us": 1e6 * value for name, value in parts.items()}


def targets(networks: int, rounds: int) -> list[dict[str, Any]]:
    data, rows = gaussian(networks), []
    e = Ensemble.initial(Mlp(), [Seed(0).child(i) for i in range(networks)], sigma_data=SIGMA_DATA)
    seeds = [Seed(1).child(i) for i in range(networks)]
    for batch in (64, 256):
        for target, reference in (("plain", None), ("posterior", 128), ("posterior", None)):
            row: dict[str, Any] = {"batch": batch, "target": target, "reference": reference or "all 1000"}
            settings = Training(steps=40, batch=batch, target=target, reference=reference)
            for name in backends():
                run = lambda name=name, settings=settings: train(e, data, seeds, settings, backend=name)  # noqa: E731
                run()
                row[f"{name}_us_per_net_step"] = min(cpu_seconds(run) for _ in range(rounds)) / networks / 40 * 1e6
            rows.append(row | ({"reference": "-"} if target == "plain" else {}))
    return rows


def time_to_quality(networks: int) -> list[dict[str, Any]]:
    """CPU-seconds per network until the mean W2 over ``networks`` data sets is at most 1.1 times the MLE's."""
    data, rows = gaussian(networks), []
    floor = float(distance(data).mean())
    e = Ensemble.initial(Mlp(), [Seed(0).child(i) for i in range(networks)], sigma_data=SIGMA_DATA)
    seeds = [Seed(1).child(i) for i in range(networks)]
    untrained = float(generated(e.denoiser(), networks).mean())
    rows.append({"loop": "untrained", "steps": 0, "cpu_ms_per_network": 0.0, "w2_over_mle": untrained / floor})

    def search(label: str, run: Callable[[int], tuple[float, Tensor]]) -> None:
        for steps in (50, 75, 100, 150, 200, 300, 400, 600, 800, 1200, 1600, 2400):
            seconds, w2 = run(steps)
            ratio = float(w2.mean()) / floor
            if ratio <= 1.1:
                break
        found = {"loop": label, "steps": steps, "cpu_ms_per_network": 1e3 * seconds, "w2_over_mle": ratio}
        rows.append(found | {"reached": ratio <= 1.1})

    def ensemble(settings: Callable[[int], Training], backend: str) -> Callable[[int], tuple[float, Tensor]]:
        def run(steps: int) -> tuple[float, Tensor]:
            before = time.process_time()
            trained = train(e, data, seeds, settings(steps), backend=backend)
            seconds = (time.process_time() - before) / networks
            return seconds, generated(trained.ensemble.denoiser(), networks)

        return run

    def usual(steps: int) -> tuple[float, Tensor]:
        before = time.process_time()
        trained = [usual_loop(own, (32, 32), 256, steps, decay=True) for own in data]
        seconds = (time.process_time() - before) / networks
        return seconds, torch.cat([generated(denoiser, 1) for denoiser in trained])

    torch.manual_seed(0)
    search("usual loop, batch 256", usual)
    for name in backends():
        search(f"{name}, plain, batch 256", ensemble(lambda s: Training(s, 256, target="plain"), name))
        search(f"{name}, posterior, batch 64 (default)", ensemble(lambda s: Training(s), name))
    settings = Training()
    seconds, w2 = ensemble(lambda s: settings, "auto")(settings.steps)
    label = f"default settings, all {settings.steps} steps"
    ratio = float(w2.mean()) / floor
    rows.append({"loop": label, "steps": settings.steps, "cpu_ms_per_network": 1e3 * seconds, "w2_over_mle": ratio})
    return rows


def memory() -> list[dict[str, Any]]:
    """Bytes per network in training: parameters, gradient, Adam's two moments (and an average), float32."""
    found = []
    for widths in ((32, 32), (64, 64, 64)):
        size = Mlp(2, widths).size
        found.append({"widths": list(widths), "parameters": size, "bytes": 16 * size, "bytes_with_ema": 20 * size})
    return found


def table(title: str, rows: list[dict[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in (row.get(n, "") for n in names)] for row in rows]
    widths = [max(len(n), *(len(line[i]) for line in cells)) for i, n in enumerate(names)]
    print(f"\n{title}")
    for line in [names, *cells]:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--networks", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    sgemm = sgemm_rate(options.rounds)
    result: dict[str, Any] = {"networks": options.networks}
    print(f"SGEMM on this machine: {sgemm / 1e9:.0f} GFLOP per CPU-second; {options.networks} networks, one thread")
    result["speed"] = [
        row
        for widths, batch in (((32, 32), 256), ((64, 64, 64), 256))
        for row in speed(widths, batch, options.networks, options.rounds, sgemm)
    ]
    table("Net-steps (plain target)", result["speed"])
    result["targets"] = targets(min(options.networks, 16), options.rounds)
    table("Cost of each target, widths 32, 32, N = 1000", result["targets"])
    if numba_available():
        result["roofline"] = [
            roofline(widths, 256, min(options.networks, 16), options.rounds) for widths in ((32, 32), (64, 64, 64))
        ]
        table("What a compiled step is made of", result["roofline"])
    sets = min(options.networks, 32)
    result["quality"] = time_to_quality(sets)
    table(f"CPU time to W2 <= 1.1 x the maximum-likelihood fit's, {sets} data sets of 1,000 points", result["quality"])
    result["memory"] = memory()
    table("Memory of a network in training", result["memory"])
    save(options.json, result)


if __name__ == "__main__":
    main()
