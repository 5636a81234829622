"""Many small multilayer perceptrons at once: one architecture, parameters as a flat tensor [K, P], exact gradients.

A network's parameters lie one layer after the other, each layer as [out, in + 1] with the bias in the last column:
the layer's input carries a row of ones, so that the bias comes out of the same matrix product.
Activations are feature-major, [K, width, B]: the thin last layer is then a short wide product, which is fast, and
not a tall thin one, which is several times slower.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from sims_core.errors import InputError, choose
from sims_core.seeds import Seed

ACTIVATIONS = ("silu", "relu")
INITS = ("torch", "zero_last")


@dataclass(frozen=True)
class Mlp:
    """Architecture: (x in R^dim, time) -> widths -> R^dim, with an activation after every layer but the last.

    dim: of the data. widths: of the hidden layers, at least one. activation: 'silu' or 'relu'.
    linear_first: no activation after the first layer, as in Neon's published toy (arXiv 2510.03597, appendix).
    Raises `InputError` for anything else.
    """

    dim: int = 2
    widths: tuple[int, ...] = (32, 32)
    activation: str = "silu"
    linear_first: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(int(w) for w in self.widths))
        choose("activation", self.activation, ACTIVATIONS)
        if self.dim < 1:
            raise InputError("dim", self.dim, "give the data's dimension, at least 1")
        if not self.widths or min(self.widths) < 1:
            raise InputError("widths", self.widths, "give one positive width a hidden layer, at least one")

    @property
    def layers(self) -> list[tuple[int, int, int]]:
        """One (offset, out, in + 1) a layer: where its weights lie in a network's flat parameters."""
        sizes, offset, found = [self.dim + 1, *self.widths, self.dim], 0, []
        for fan_in, out in pairwise(sizes):
            found.append((offset, out, fan_in + 1))
            offset += out * (fan_in + 1)
        return found

    @property
    def size(self) -> int:
        """P, the number of parameters of one network."""
        offset, out, columns = self.layers[-1]
        return offset + out * columns

    def active(self, layer: int) -> bool:
        """Whether an activation follows the layer of this index."""
        return layer < len(self.widths) and not (self.linear_first and layer == 0)

    def views(self, flat: Tensor) -> list[Tensor]:
        """The layers' weights [K, out, in + 1] as views of ``flat`` [K, P]."""
        return [flat[:, o : o + r * c].view(-1, r, c) for o, r, c in self.layers]

    def initial(self, seeds: Sequence[Seed], init: str = "zero_last", dtype: torch.dtype = torch.float32) -> Tensor:
        """Fresh parameters [K, P]; row k depends on ``seeds[k]`` alone.

        'torch': weights and biases uniform in +-1/sqrt(fan_in), PyTorch's default for Linear layers.
        'zero_last': hidden weights N(0, 2 / fan_in) (He et al. 2015), hidden biases uniform in +-1 so that the units
        turn at different places, last layer zero. Beware: with the EDM parametrisation such an untrained network is
        already the right denoiser for N(0, sigma_data^2 I).
        """
        choose("init", init, INITS)
        rows = np.empty((len(seeds), self.size))
        for row, seed in zip(rows, seeds, strict=True):
            draw = seed.child("init").numpy()
            for i, (offset, out, columns) in enumerate(self.layers):
                layer = row[offset : offset + out * columns].reshape(out, columns)
                bound = 1 / math.sqrt(columns - 1)
                if init == "torch":
                    layer[:] = draw.uniform(-bound, bound, layer.shape)
                elif i < len(self.widths):
                    layer[:, :-1] = draw.normal(0, math.sqrt(2) * bound, (out, columns - 1))
                    layer[:, -1] = draw.uniform(-1, 1, out)
                else:
                    layer[:] = 0
        return torch.from_numpy(rows).to(dtype)


class Stacked:
    """Forward and hand-written backward of K networks on B columns each, in buffers that are allocated once.

    Fixed shapes and buffers keep the caches warm on a CPU and make a step capturable as a CUDA graph.
    """

    def __init__(self, mlp: Mlp, networks: int, columns: int, like: Tensor) -> None:
        self.mlp, self.columns = mlp, columns
        self.gradient = torch.zeros(networks, mlp.size, dtype=like.dtype, device=like.device)
        self._grads = mlp.views(self.gradient)
        empty: Callable[..., Tensor] = like.new_empty
        self.input = like.new_ones(networks, mlp.dim + 2, columns)
        """The first layer's input [K, dim + 2, B]: scaled x, time, ones. Fill the first dim + 1 rows."""
        self._inputs = [self.input, *(like.new_ones(networks, w + 1, columns) for w in mlp.widths)]
        self._scratch = [empty(networks, out, columns - 1) for _, out, columns in mlp.layers]
        self._hidden = [empty(networks, w, columns) for w in mlp.widths]
        self._deltas = [empty(networks, w, columns) for w in mlp.widths]
        self.output = empty(networks, mlp.dim, columns)

    def forward(self, weights: list[Tensor]) -> Tensor:
        """F [K, dim, B] of ``self.input``; overwritten by the next call."""
        for i, weight in enumerate(weights[:-1]):
            below, above = self._inputs[i], self._inputs[i + 1][:, :-1]
            if not self.mlp.active(i):
                above.copy_(torch.bmm(weight, below))
                continue
            hidden = torch.bmm(weight, below, out=self._hidden[i])
            if self.mlp.activation == "silu":
                torch.ops.aten.silu.out(hidden, out=above)
            else:
                torch.clamp(hidden, min=0, out=above)
        return torch.bmm(weights[-1], self._inputs[-1], out=self.output)

    def backward(self, weights: list[Tensor], delta: Tensor) -> Tensor:
        """dLoss/dparameters [K, P] for ``delta`` = dLoss/dF [K, dim, B], after `forward`.

        Overwritten by the next call.
        """
        for i in range(len(weights) - 1, -1, -1):
            # weights and biases apart, and into contiguous storage: anything else falls off the batched fast path
            torch.bmm(delta, self._inputs[i][:, :-1].mT, out=self._scratch[i])
            self._grads[i][:, :, :-1] = self._scratch[i]
            self._grads[i][:, :, -1] = delta.sum(2)
            if i == 0:
                break
            back = torch.bmm(weights[i][:, :, :-1].mT, delta, out=self._deltas[i - 1])
            if self.mlp.active(i - 1):
                hidden = self._hidden[i - 1]
                if self.mlp.activation == "silu":
                    torch.ops.aten.silu_backward.grad_input(back, hidden, grad_input=back)
                else:
                    torch.ops.aten.threshold_backward.grad_input(back, hidden, 0, grad_input=back)
            delta = back
        return self.gradient
