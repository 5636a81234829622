"""Training an ensemble: settings, and the loop of both backends.

K independent networks learn at once, each from its own data with its own seed; a network's result does not depend on K,
on its neighbours or on how the work is cut into chunks. The two backends give the same results up to float32 rounding:
'torch' (any device; stacked matrix products and a hand-written backward) and 'numba' (`sims_toy.networks.kernel`, CPU
and float32 only; one network at a time stays in the cache).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sims_core.errors import InputError
from sims_core.flow import coupling
from sims_core.seeds import Seed
from sims_toy.networks.ensemble import Ensemble, chunks, use_numba
from sims_toy.networks.mlp import Mlp, Stacked
from sims_toy.networks.schedule import Training
from sims_toy.networks.targets import SOBOL, along, level_table, posterior_mean, training_levels


@dataclass(frozen=True)
class Trained:
    """What `train` returns.

    ensemble: the networks after the last step. ema: their averages, or None. loss: [K, steps], the mean squared error
    of the raw network against its target. diverged: [K], networks whose loss or gradient was not finite; their
    parameters are NaN, so that nothing can average them away.
    """

    ensemble: Ensemble
    ema: Ensemble | None
    loss: Tensor
    diverged: Tensor


def train(
    ensemble: Ensemble,
    data: Tensor,
    seeds: Sequence[Seed],
    settings: Training,
    *,
    counts: Tensor | Sequence[int] | None = None,
    backend: str = "auto",
    chunk: int | None = None,
    cuda_graph: bool = False,
) -> Trained:
    """Train copies of K networks, each on its own data with its own seed; ``ensemble`` is untouched.

    data: [K, N, d]; counts: [K], how many of the N rows are a network's own (all by default; the rest are ignored).
    seeds: one per network; its minibatches, noise levels and noise depend on it alone. Adam starts afresh.
    backend: 'torch', 'numba' (raises `InputError` where it cannot run), or 'auto' (numba where it can).
    chunk: networks stacked at a time in the torch backend; by default what fits the cache. Networks with different
    counts are never stacked together, so many different counts are slow in torch (not in numba).
    cuda_graph: replay each step as a CUDA graph; needs a GPU.
    Raises `InputError` for shapes that do not fit, non-finite data, counts out of range, more quasi rows than a Sobol
    sequence has, and for target 'ot' anywhere
    but in the plain torch backend.
    """
    k, d = len(ensemble), ensemble.mlp.dim
    if data.ndim != 3 or data.shape[0] != k or data.shape[2] != d:
        raise InputError("data", tuple(data.shape), f"these networks need shape ({k}, N, {d})")
    if len(seeds) != k:
        raise InputError("seeds", len(seeds), f"give one seed per network: {k}")
    sizes = torch.full((k,), data.shape[1]) if counts is None else torch.as_tensor(counts, dtype=torch.long).cpu()
    if sizes.shape != (k,) or bool((sizes < 1).any()) or bool((sizes > data.shape[1]).any()):
        raise InputError("counts", sizes.tolist(), f"give {k} numbers of points, each from 1 to N = {data.shape[1]}")
    own = torch.arange(data.shape[1]) < sizes[:, None]
    if not bool(data.isfinite().all(2).cpu()[own].all()):
        raise InputError("data", "non-finite values", "every data point must be finite")
    if settings.quasi and settings.steps * (most := min(settings.batch, int(sizes.max()))) > SOBOL:
        expected = f"a quasi-random sequence has {SOBOL:,} points, enough for {SOBOL // most:,} steps of {most} rows"
        raise InputError("steps", settings.steps, expected)
    if cuda_graph and ensemble.params.device.type != "cuda":
        raise InputError("cuda_graph", True, f"needs networks on a CUDA device; these are on {ensemble.params.device}")
    compiled = not cuda_graph and use_numba(backend, ensemble)
    if settings.target == "ot":
        if cuda_graph or backend == "numba":
            raise InputError("target", "ot", "optimal transport is solved outside of the kernel: use the torch backend")
        compiled = False

    bits = np.stack([seed.child("train").sequence().generate_state(1, np.uint64) for seed in seeds])[:, 0]
    keys = torch.from_numpy(bits.view(np.int64)).to(ensemble.params.device)
    params = ensemble.params.clone()
    ema = params.clone() if settings.ema_halflife is not None else None
    loss = params.new_empty(k, settings.steps)
    data = data.to(params)
    if settings.quasi:
        data = torch.stack([torch.cat([along(own[:n]), own[n:]]) for own, n in zip(data, sizes.tolist(), strict=True)])

    def table(part: Tensor) -> Tensor:
        std, which = torch.unique(ensemble.sigma_data[part.to(ensemble.sigma_data.device)], return_inverse=True)
        levels = training_levels(settings.noise, std, settings.levels)
        return level_table(ensemble.parametrisation, levels, std).to(params.dtype)[which]

    if compiled:
        from sims_toy.networks import kernel

        for part in torch.split(torch.arange(k), 64):
            at = slice(int(part[0]), int(part[-1]) + 1)  # a slice: the kernel fills views
            average = None if ema is None else ema[at]
            kernel.train(
                ensemble.mlp, params[at], average, data[at], sizes[at], keys[at], table(part), settings, loss[at]
            )
    else:
        for count in torch.unique(sizes).tolist():
            same = (sizes == count).nonzero()[:, 0]
            columns = settings.layout(d, count).padded
            distances = _Run.BLOCK * columns * (settings.reference or count) if settings.target == "posterior" else 0
            for part in chunks(same, ensemble.mlp, columns, params.device, chunk, scratch=distances):
                own = part.to(params.device)
                points = data[own, :count]
                run = _Run(ensemble.mlp, params[own], points, keys[own], table(part), settings, ema is not None)
                loss[own] = run.train(cuda_graph)
                params[own] = run.params
                if ema is not None and run.ema is not None:
                    ema[own] = run.ema
    result = ensemble.with_params(params)
    return Trained(result, None if ema is None else ensemble.with_params(ema), loss, result.diverged)


class _Run:
    """The torch backend's state for one chunk of networks with one number of points. Shapes are static."""

    BLOCK = 8  # steps drawn at a time: small operations cost their overhead once a block

    def __init__(
        self, mlp: Mlp, params: Tensor, data: Tensor, keys: Tensor, table: Tensor, settings: Training, average: bool
    ) -> None:
        k, count = data.shape[:2]
        self.settings, self.params, self.keys, self.table = settings, params, keys, table
        self.layout = settings.layout(mlp.dim, count)
        self.data, self.columns_of_data = data, data.mT.contiguous()
        self.weights = mlp.views(params)
        self.ema = params.clone() if average else None
        self.first, self.second = torch.zeros_like(params), torch.zeros_like(params)
        self.stack = Stacked(mlp, k, self.layout.padded, params)
        self.stack.input.zero_()[:, -1] = 1
        self.scalars = settings.scalars(self.layout.rows).to(params)
        self.loss = params.new_zeros(k, settings.steps)
        self.nan = params.new_full((), torch.nan)  # on the device: a graph may not copy from the host
        self.share = params.new_zeros(self.layout.padded)  # padding rows weigh nothing
        self.share[: self.layout.rows] = 1 / (self.layout.rows * mlp.dim)

    def batches(self, steps: Tensor) -> tuple[Tensor, Tensor]:
        """The networks' inputs [K, S, d + 1, B'] and regression targets [K, S, d, B'] of the steps ``steps`` [S]."""
        layout, d = self.layout, self.data.shape[2]
        points, level, noise, subset = layout.draw(self.keys, steps, self.params.dtype)
        k, s, b = points.shape
        rows = self.table.gather(1, level.flatten(1)[..., None].expand(-1, -1, 5)).view(k, s, b, 5)
        sigma, c_in, time, p, q = (c[:, :, None] for c in rows.unbind(-1))
        clean = self._points(points).view(k, d, s, b).transpose(1, 2)
        if self.settings.target == "ot":
            clean = self._coupled(noise, clean)
        x = clean + sigma * noise
        if self.settings.target == "posterior":
            mean = self._posterior(
                x, sigma[:, :, 0], self._points(subset).view(k, d, s, -1) if layout.reference else None
            )
            noise = noise + (clean - mean) / sigma.clamp(min=1e-12)
            clean = mean
        return torch.cat([c_in * x, time], 2), p * clean + q * noise

    def _coupled(self, noise: Tensor, clean: Tensor) -> Tensor:
        """The data [K, S, d, B'] in the order of the noise that each point goes with; rows of padding stay."""
        paired, rows = clean.clone(), self.layout.rows
        for network, step in itertools.product(range(clean.shape[0]), range(clean.shape[1])):
            order = coupling(noise[network, step, :, :rows].mT, clean[network, step, :, :rows].mT)
            paired[network, step, :, :rows] = clean[network, step, :, order]
        return paired

    def _points(self, index: Tensor) -> Tensor:
        flat = index.flatten(1)[:, None]
        return self.columns_of_data.gather(2, flat.expand(-1, self.data.shape[2], -1))

    def _posterior(self, x: Tensor, sigma: Tensor, subset: Tensor | None) -> Tensor:
        """`posterior_mean` of x [K, S, d, B']; on a CPU one network and step at a time: B N numbers fill a cache."""
        k, s = x.shape[:2]
        if subset is None:
            data = self.data[:, None].expand(-1, s, -1, -1)
        else:
            data = subset.permute(0, 2, 3, 1)
        if x.device.type != "cpu":
            return posterior_mean(x.mT, sigma, data).mT
        mean = torch.empty_like(x)
        for i in range(k):
            for j in range(s):
                mean[i, j] = posterior_mean(x[i, j].mT, sigma[i, j], data[i, j]).mT
        return mean

    def step(self, inputs: Tensor, target: Tensor, t: Tensor) -> None:
        """One Adam step of every network, in place; ``t`` [1] is the step's index."""
        self.stack.input[:, :-1] = inputs
        error = self.stack.forward(self.weights) - target
        delta = error * self.share
        loss = (error * delta).sum((1, 2))
        gradient = self.stack.backward(self.weights, delta.mul_(2))
        self.loss.index_copy_(1, t, loss[:, None])
        rate, correction, fresh = self.scalars.index_select(0, t)[0].unbind()
        sound = loss.isfinite() & gradient.sum(1).isfinite()
        self.first.lerp_(gradient, 1 - self.settings.beta1)
        self.second.mul_(self.settings.beta2).add_(gradient.square_().mul_(1 - self.settings.beta2))
        update = self.first / (self.second * correction).sqrt_().add_(self.settings.eps)
        # a rate of NaN marks a diverged network for good, and touches no other
        self.params.sub_(update.mul_(torch.where(sound, rate, self.nan)[:, None]))
        if self.ema is not None:
            self.ema.add_((self.params - self.ema).mul_(fresh))

    def train(self, cuda_graph: bool) -> Tensor:
        """All steps; returns the losses [K, steps]."""
        if cuda_graph:
            with torch.cuda.device(self.params.device):  # streams and graphs belong to the current device
                self._replay()
            return self.loss
        for start in range(0, self.settings.steps, self.BLOCK):
            steps = torch.arange(start, min(start + self.BLOCK, self.settings.steps), device=self.params.device)
            inputs, targets = self.batches(steps)
            for j in range(len(steps)):
                self.step(inputs[:, j], targets[:, j], steps[j : j + 1])
        return self.loss

    def _replay(self) -> None:
        """Capture one step and replay it: everything that changes with time is read from tensors on the device."""
        t = torch.zeros(1, dtype=torch.long, device=self.params.device)

        def once() -> None:
            inputs, targets = self.batches(t)
            self.step(inputs[:, 0], targets[:, 0], t)
            t.add_(1)

        state = [t, self.params, self.first, self.second, self.loss, *([] if self.ema is None else [self.ema])]
        before = [tensor.clone() for tensor in state]
        side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # a warm-up outside the graph, then undone
            once()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            once()
        for tensor, old in zip(state, before, strict=True):
            tensor.copy_(old)
        for _ in range(self.settings.steps):
            graph.replay()
