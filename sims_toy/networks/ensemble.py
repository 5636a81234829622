"""Thousands of small score networks as one object.

An `Ensemble` is K independent noise-conditional networks of one architecture, their parameters a plain tensor [K, P]:
Neon's merge is ``base.with_params(extrapolate(base.params, auxiliary.params, omega))``. `sims_toy.networks.training`
trains it.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sims_core.devices import filled
from sims_core.errors import InputError, choose
from sims_core.flow import Velocity
from sims_core.guidance import Denoiser
from sims_core.seeds import Seed
from sims_toy.networks.mlp import Mlp, Stacked
from sims_toy.networks.targets import (
    PARAMETRISATIONS,
    CosineTime,
    EdmParametrisation,
    EpsilonParametrisation,
    Parametrisation,
    TimeInput,
    VelocityParametrisation,
)

BACKENDS = ("auto", "numba", "torch")

# ------------------------------------------------------------------ the networks


@dataclass(frozen=True)
class Ensemble:
    """K networks of one architecture and parametrisation.

    params: [K, P], layout in `sims_toy.networks.mlp`. sigma_data: [K], float64, the data's standard deviation, which
    the EDM parametrisation and `UniformAngle` use. A network that diverged in training has parameters NaN.
    """

    mlp: Mlp
    params: Tensor
    sigma_data: Tensor
    parametrisation: Parametrisation = field(default_factory=EdmParametrisation)

    def __post_init__(self) -> None:
        if self.params.ndim != 2 or self.params.shape[1] != self.mlp.size:
            raise InputError("params", tuple(self.params.shape), f"this architecture needs shape (K, {self.mlp.size})")
        if self.sigma_data.shape != self.params.shape[:1] or not bool((self.sigma_data > 0).all()):
            raise InputError(
                "sigma_data", self.sigma_data.tolist(), f"give {len(self)} positive numbers, one per network"
            )

    @classmethod
    def initial(
        cls,
        mlp: Mlp,
        seeds: Sequence[Seed],
        *,
        sigma_data: float | Tensor = 1.0,
        parametrisation: Parametrisation | None = None,
        init: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: str | torch.device = "cpu",
    ) -> Ensemble:
        """Untrained networks, one per seed. ``sigma_data``: for all, or one per network [K].

        init: 'zero_last' or 'torch' (`Mlp.initial`); by default the second for epsilon-prediction, else the first.
        """
        chosen = parametrisation if parametrisation is not None else EdmParametrisation()
        if init is None:
            init = "torch" if isinstance(chosen, EpsilonParametrisation) else "zero_last"
        std = torch.as_tensor(sigma_data, dtype=torch.float64, device=device).expand(len(seeds)).clone()
        return cls(mlp, mlp.initial(seeds, init, dtype).to(device), std, chosen)

    def __len__(self) -> int:
        return self.params.shape[0]

    def views(self, flat: Tensor) -> list[Tensor]:
        """The layers' weights as views of parameters [K, P]."""
        return self.mlp.views(flat)

    @property
    def diverged(self) -> Tensor:
        """Which networks have non-finite parameters [K]."""
        return ~self.params.isfinite().all(1)

    def take(self, indices: Sequence[int] | Tensor) -> Ensemble:
        """The networks with these indices (repeats allowed), copied."""
        at = torch.as_tensor(indices, dtype=torch.long, device=self.params.device)
        return replace(self, params=self.params[at], sigma_data=self.sigma_data[at])

    def clone(self) -> Ensemble:
        """A copy that shares nothing."""
        return replace(self, params=self.params.clone(), sigma_data=self.sigma_data.clone())

    def with_params(self, params: Tensor) -> Ensemble:
        """The same architecture with other parameters [K, P]."""
        return replace(self, params=params)

    @staticmethod
    def concatenate(parts: Sequence[Ensemble]) -> Ensemble:
        """All networks of several ensembles of one architecture and parametrisation. Raises `InputError` otherwise."""
        for part in parts[1:]:
            if part.mlp != parts[0].mlp or part.parametrisation != parts[0].parametrisation:
                raise InputError("parts", part.mlp, f"the first is {parts[0].mlp}, {parts[0].parametrisation}")
        return replace(
            parts[0],
            params=torch.cat([part.params for part in parts]),
            sigma_data=torch.cat([part.sigma_data for part in parts]),
        )

    def denoiser(self, *, time: TimeInput | None = None, backend: str = "auto") -> Denoiser:
        """D(x, sigma) for x [K, n, d] and sigma zero-dim or broadcastable to [K, n, 1]; result in x's dtype.

        The networks compute in their own dtype; scaling and the skip connection are float64, so that a sampler in
        float64 keeps its digits at small sigma. time: another time input than the one trained with
        (epsilon-prediction only; Neon's toy samples with ``CosineTime(20)``).
        Raises `InputError`, at the call, where x does not have K rows of d-dimensional points.
        """
        parametrisation = self.parametrisation
        if time is not None:
            if not isinstance(parametrisation, EpsilonParametrisation):
                raise InputError("time", time, "only epsilon-prediction takes a time input; EDM's is ln(sigma) / 4")
            parametrisation = replace(parametrisation, time=time)
        raw = self._raw(backend)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            self._check(x)
            level = filled(torch.as_tensor(sigma, dtype=torch.float64), x.device, torch.float64)
            coefficients = parametrisation.coefficients(level, self.sigma_data[:, None, None])
            c_in, moment, skip, out = (c.expand(len(self), -1, 1) for c in coefficients)
            wide = x.to(torch.float64)
            return (skip * wide + out * raw(wide * c_in, moment)).to(x.dtype)

        return denoise

    def velocity(self, *, backend: str = "auto") -> Velocity:
        """v(x, t) for x [K, n, d] and t zero-dim, in x's dtype: the output of networks that are velocities.

        Raises `InputError` for another parametrisation, and at the call as `denoiser`.
        """
        if not isinstance(self.parametrisation, VelocityParametrisation):
            raise InputError("parametrisation", type(self.parametrisation).__name__, "give networks of velocities")
        raw = self._raw(backend)

        def velocity(x: Tensor, t: Tensor) -> Tensor:
            self._check(x)
            time = filled(torch.as_tensor(t, dtype=torch.float64), x.device, torch.float64)
            return raw(x.to(torch.float64), time.expand(len(self), 1, 1)).to(x.dtype)

        return velocity

    def _check(self, x: Tensor) -> None:
        if x.ndim != 3 or x.shape[0] != len(self) or x.shape[2] != self.mlp.dim:
            raise InputError("x", tuple(x.shape), f"these networks need shape ({len(self)}, n, {self.mlp.dim})")

    def _raw(self, backend: str) -> Callable[[Tensor, Tensor], Tensor]:
        """The networks themselves: inputs [K, n, d] and times [K, 1 or n, 1] to outputs [K, n, d], in float64."""
        forward = _forward
        if use_numba(backend, self):
            from sims_toy.networks.kernel import forward

        def raw(x: Tensor, time: Tensor) -> Tensor:
            rows = torch.cat([x, time.expand(-1, x.shape[1], 1)], 2).to(self.params.dtype).mT.contiguous()
            return forward(self.mlp, self.params, rows).mT.to(torch.float64)

        return raw

    def save(self, path: str | Path) -> None:
        """Write to an .npz file: arrays and a JSON description, nothing executable.

        Raises `InputError` where the time input is the caller's own function, which no file can hold.
        """
        settings: dict[str, Any] = {"mlp": asdict(self.mlp), "parametrisation": "edm"}
        if isinstance(self.parametrisation, VelocityParametrisation):
            settings["parametrisation"] = "velocity"
        if isinstance(self.parametrisation, EpsilonParametrisation):
            time = self.parametrisation.time
            if not isinstance(time, CosineTime):
                raise InputError("time", time, "only a CosineTime can be saved; save the parameters yourself")
            settings |= {"parametrisation": "epsilon", "time": asdict(time)}
        params, sigma_data = self.params.cpu().numpy(), self.sigma_data.cpu().numpy()
        with Path(path).open("wb") as file:  # given a name, numpy would add to it
            np.savez(file, settings=np.array(json.dumps(settings)), params=params, sigma_data=sigma_data)

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "cpu") -> Ensemble:
        """Read what `save` wrote. Raises `InputError` for a file that holds no ensemble."""
        with np.load(path, allow_pickle=False) as file:
            if not {"settings", "params", "sigma_data"} <= set(file):
                raise InputError("path", str(path), "this file was not written by Ensemble.save")
            settings = json.loads(str(file["settings"]))
            params, sigma_data = (torch.from_numpy(file[name]).to(device) for name in ("params", "sigma_data"))
        mlp = Mlp(**settings["mlp"])
        if settings["parametrisation"] != "epsilon":
            return cls(mlp, params, sigma_data, PARAMETRISATIONS[settings["parametrisation"]][0])
        return cls(mlp, params, sigma_data, EpsilonParametrisation(CosineTime(**settings["time"])))


def _forward(mlp: Mlp, params: Tensor, rows: Tensor) -> Tensor:
    """F [K, d, n] for the networks' inputs ``rows`` [K, d + 1, n], in blocks that fit the cache."""
    out = rows.new_empty(rows.shape[0], mlp.dim, rows.shape[2])
    if not rows.shape[2]:  # a loop without synthetic data draws none
        return out
    columns = min(512, -(-rows.shape[2] // 32) * 32) if rows.device.type == "cpu" else rows.shape[2]
    for networks in chunks(torch.arange(len(params)), mlp, columns, params.device):
        part = slice(int(networks[0]), int(networks[-1]) + 1)
        stack, weights = Stacked(mlp, len(networks), columns, params), mlp.views(params[part])
        for first in range(0, rows.shape[2], columns):
            block = rows[part, :, first : first + columns]
            stack.input[:, :-1, : block.shape[2]] = block
            out[part, :, first : first + columns] = stack.forward(weights)[:, :, : block.shape[2]]
    return out


def chunks(
    indices: Tensor, mlp: Mlp, columns: int, device: torch.device, chunk: int | None = None, *, scratch: int = 0
) -> Iterator[Tensor]:
    """Cut ``indices`` so that a chunk's activations fit the second-level cache or so.

    On a GPU as many at once as leave every tensor below 2^28 numbers (1 GB; a few of them are alive), at most 16384.
    scratch: numbers that a network needs at once besides its activations, which count on a GPU.
    """
    numbers = columns * max(mlp.widths)
    if chunk is None:
        most, room = (32, 150_000 // numbers) if device.type == "cpu" else (16384, 2**28 // max(numbers, scratch))
        chunk = max(1, min(most, room))
    if chunk < 1:
        raise InputError("chunk", chunk, "give a positive number of networks")
    yield from torch.split(indices, chunk)


def use_numba(backend: str, ensemble: Ensemble) -> bool:
    """Whether to use the compiled kernel; raises `InputError` where it is asked for and cannot run."""
    choose("backend", backend, BACKENDS)
    able = ensemble.params.device.type == "cpu" and ensemble.params.dtype == torch.float32 and numba_available()
    if backend == "numba" and not able:
        raise InputError("backend", backend, "it needs float32 networks on the CPU and the numba package")
    return backend != "torch" and able


@cache
def numba_available() -> bool:
    """Whether the compiled kernel can be used: the optional package numba is installed and works on this machine."""
    if importlib.util.find_spec("numba") is None:
        return False
    try:
        import sims_toy.networks.kernel  # noqa: F401
    except Exception:  # an installation that does not fit this machine falls back, whatever it says
        return False
    return True
