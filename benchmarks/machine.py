"""What a benchmark's figures were measured on, beside the figures."""

from __future__ import annotations

import json
import os
import platform
import re
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def processor() -> str:
    """Its name as the kernel has it (Python's own says less on Linux)."""
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return found.group(1) if found else platform.processor() or platform.machine()


def sgemm_rate(rounds: int = 5) -> float:
    """The machine's own float32 matrix product on torch's threads, FLOP per CPU-second, the best of three sizes."""
    import torch

    best = 0.0
    for n in (256, 512, 1024):
        a, b, c = torch.randn(n, n), torch.randn(n, n), torch.empty(n, n)
        repeats = max(1, int(2e9 / (2 * n**3)))
        for _ in range(1 + rounds):  # the first one warms up
            before = time.process_time()
            for _ in range(repeats):
                torch.mm(a, b, out=c)
            best = max(best, 2 * n**3 * repeats / max(time.process_time() - before, 1e-9))
    return best


def machine(rounds: int = 5) -> dict[str, Any]:
    """Processor, cores, torch, its threads here, its SGEMM rate in GFLOP per CPU-second, the machine's load."""
    import torch

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "torch": version("torch"),
        "threads": torch.get_num_threads(),
        "sgemm_gflops": sgemm_rate(rounds) / 1e9,
        "load": os.getloadavg()[0],
        "utc": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
    }


def in_words(known: dict[str, Any]) -> str:
    """One line of `machine`'s answer."""
    parts = ["{processor}", "{cores} cores", "{threads} thread(s) here", "torch {torch}"]
    parts += ["SGEMM {sgemm_gflops:.0f} GFLOP per CPU-second", "load {load:.1f}", "{utc} UTC"]
    held = [part for part in parts if part[part.index("{") + 1 :].split(":")[0].split("}")[0] in known]
    return ", ".join(held).format_map(known)


def save(path: Path | None, figures: Any, *, rounds: int = 5) -> None:
    """Write ``figures`` and the machine to ``path``, and say the machine; nothing is written without a path."""
    known = machine(rounds)
    print(f"\non {in_words(known)}")
    if path is not None:
        path.write_text(json.dumps({"machine": known, "figures": figures}, indent=1) + "\n")
