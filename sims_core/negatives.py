"""Stronger negatives for one-step and few-step generators: GMO (arXiv 2609.35512).

An auxiliary that is trained on the base's own samples moves little where one step makes them. GMO gives it samples of a
generator whose Jacobian J has its largest singular value raised and the others lowered,

    sigma_1^2 -> (1 - alpha) sigma_1^2 + alpha |J|_F^2,        sigma_k -> sqrt(1 - alpha) sigma_k,

which for a Gaussian of covariance S, whose top eigenvector is u, is S -> (1 - alpha) S + alpha tr(S) u u^T
(`sims_toy.gaussian.Gaussian.strengthened`). Here it is a change of the noise: along the right singular vector v of
sigma_1 it is stretched, and elsewhere shrunk. Our reading of the paper: J is taken at each noise by itself.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from sims_core.algorithm import Negatives
from sims_core.errors import InputError
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_core.torch_learner import TorchLearner

Generator = Callable[[Tensor], Tensor]


def gmo(learner: TorchLearner, alpha: float, *, iterations: int = 10, probes: int = 8) -> Negatives[nn.Module, Tensor]:
    """``negatives`` for `sims_core.sims`: the learner's samples, from noise that `strengthened` has changed.

    alpha: in [0, 1); 0 draws what the learner does. iterations, probes: as `strengthened`; each of them costs a few
    evaluations. Raises `InputError` for a
    learner whose sampler draws noise on its way, or gives more than a tensor.

    >>> import torch, sims_core as sc
    >>> from sims_core.negatives import gmo
    >>> net, loss = torch.nn.Linear(2, 2), lambda net, x: net(x).mean()
    >>> learner = sc.TorchLearner(net, loss=loss, sampler=lambda net, z: net(z), shape=(2,))
    >>> base = learner.fit(torch.rand(9, 2), seed=sc.Seed(0))
    >>> gmo(learner, 0.1)(base, 5, seed=sc.Seed(1)).shape
    torch.Size([5, 2])
    """
    sampler, view = learner.sampler, learner.view
    if isinstance(sampler, Sampler) and sampler.churn is not None:
        raise InputError("learner", str(sampler), "a sampler with churn draws noise on its way; give one without")

    def make(network: nn.Module, noise: Tensor) -> Tensor:
        if isinstance(sampler, Sampler):
            made: Any = deque(sampler.states(view(network), noise), maxlen=1)[0]
        else:
            made = sampler(network, noise)
        if not isinstance(made, Tensor):
            raise InputError("learner", type(made).__name__, "its sampler must return a tensor")
        return made.to(noise.dtype)

    def run(network: nn.Module, noise: Tensor) -> Tensor:
        def generator(z: Tensor) -> Tensor:
            return make(network, z)

        return generator(strengthened(generator, noise, alpha, iterations=iterations, probes=probes))

    def negatives(base: nn.Module, n: int, *, seed: Seed) -> Tensor:
        found: Tensor = replace(learner, sampler=run).sample(base, n, seed=seed)
        return found

    return negatives


def strengthened(generator: Generator, noise: Tensor, alpha: float, *, iterations: int = 10, probes: int = 8) -> Tensor:
    """The noise (B, ...) at which ``generator`` gives, to first order, what GMO's generator gives at ``noise``.

    generator: noise (B, ...) -> samples (B, ...), each row of its own noise alone, differentiable twice.
    iterations: of the power method for v, begun at the noise. probes: directions by which |J|_F^2 is estimated; exact
    where the noise has no more numbers. Raises `InputError` for alpha outside [0, 1).
    """
    if not 0 <= alpha < 1:
        raise InputError("alpha", alpha, "give a share in [0, 1)")
    if alpha == 0:
        return noise
    with torch.enable_grad():
        made, pull = torch.func.vjp(generator, noise)  # type: ignore[misc]

        def back(cotangent: Tensor) -> Tensor:
            found: Tensor = pull(cotangent)[0]
            return found

        # J^T u is linear in u, so that its transpose is J: no forward mode is needed
        _, push = torch.func.vjp(back, torch.zeros_like(made))  # type: ignore[misc]

        def forward(direction: Tensor) -> Tensor:
            found: Tensor = push(direction)[0]
            return found

        v = _unit(noise)
        for _ in range(iterations):
            v = _unit(back(forward(v)))
        top = _squared(forward(v))
        whole = sum((_squared(forward(one)) for one in _probes(noise, probes)), torch.zeros_like(top))
    whole = torch.maximum(whole, top)  # an estimate may fall below what is known
    stretch = torch.sqrt(1 - alpha + alpha * whole / top.clamp(min=torch.finfo(noise.dtype).tiny))
    shrink = math.sqrt(1 - alpha)
    changed = shrink * noise + (stretch - shrink) * (v * noise).flatten(1).sum(1).reshape(top.shape) * v
    return changed.detach()


def _probes(noise: Tensor, probes: int) -> list[Tensor]:
    """Directions whose squared images sum to |J|_F^2: all axes where they are few, else scaled random signs."""
    numbers = noise[0].numel()
    if numbers <= probes:
        axes = torch.eye(numbers, dtype=noise.dtype, device=noise.device)
        return [axis.reshape(noise[:1].shape).expand_as(noise) for axis in axes]
    draws = torch.Generator().manual_seed(0)
    signs = torch.randint(0, 2, (probes, *noise.shape[1:]), generator=draws).to(noise) * 2 - 1
    return [one.expand_as(noise) / math.sqrt(probes) for one in signs]


def _squared(x: Tensor) -> Tensor:
    """Of each row, shaped to broadcast against it."""
    return x.flatten(1).square().sum(1).reshape(-1, *[1] * (x.ndim - 1))


def _unit(x: Tensor) -> Tensor:
    return x / _squared(x).sqrt().clamp(min=torch.finfo(x.dtype).tiny)
