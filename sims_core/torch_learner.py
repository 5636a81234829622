"""Algorithm 1, its rivals, controls and loops on any torch module and any data that a DataLoader serves."""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import ChainDataset, ConcatDataset, DataLoader, IterableDataset, TensorDataset

from sims_core.denoiser import from_edm
from sims_core.devices import own_dtype
from sims_core.errors import InputError, extra, reason, whole
from sims_core.guidance import Denoiser, GuidanceSchedule, merge_weights
from sims_core.modules import Guided, guide
from sims_core.sampling import Sampler, generate
from sims_core.seeds import Seed

Optimiser: TypeAlias = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
Factory: TypeAlias = Callable[[], nn.Module]

#: The optimiser where none is given.
ADAM: Optimiser = functools.partial(torch.optim.Adam, lr=1e-3)
#: What an adapter is called.
ADAPTER = "aux"


@dataclass(frozen=True)
class TorchLearner:
    """The learner contract (`sims_core.learner`) for any network. Models are modules, `extrapolate` is `guide`.

    Data are a tensor (N, ...), a tuple of tensors of N rows, or a Dataset. network: a module, whose weights every `fit`
    begins from, or a function that makes one, whose weights are then drawn from the seed. loss: ``(network, batch) ->``
    scalar tensor; it may draw from torch's generators, which are seeded for it and restored. sampler: a `Sampler` of
    ``view(network)``, or a function ``(network, noise) -> samples`` of standard normal noise (B, *shape) that returns a
    tensor of B rows, or a tuple of them; draws of its own follow torch's generators. shape: of one sample.
    optimiser: parameters -> a torch optimiser (default: Adam, 1e-3); finetuning: the same for `finetune`. budget: items
    that `fit` trains on; `finetune` is told its own. batch: of training, and the compute batch of sampling. lora: a
    rank or a peft LoraConfig; then `finetune` trains an adapter on the base's own weights (extra ``diffusers``), and
    the model is a peft.PeftModel. second: makes the network of `rebuild` (default: ``network``). guidance and
    scheduler: as `guide`. workers: processes that read a Dataset. Training that diverges raises `InputError`.

    >>> import torch
    >>> import sims_core as sc
    >>> class Network(torch.nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.net = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.SiLU(), torch.nn.Linear(32, 2))
    ...
    ...     def forward(self, x, noise):
    ...         return self.net(torch.cat([x, noise[:, None]], 1))
    >>> def loss(network, clean):
    ...     sigma = sc.LogNormal().sample((len(clean), 1))
    ...     view, weight = sc.denoiser.from_edm(network), sc.EDM().weight(sigma)
    ...     return sc.denoising_loss(view, clean, sigma, torch.randn_like(clean), weight).mean()
    >>> learner = sc.TorchLearner(Network, loss=loss, sampler=sc.Sampler.parse("heun:6"), shape=(2,), budget=2_000)
    >>> made = sc.sims(learner, torch.rand(500, 2), n_synthetic=500, budget=1_000, omega=1.0, seed=sc.Seed(0))
    >>> learner.sample(made.model, 100, seed=sc.Seed(1)).shape
    torch.Size([100, 2])
    """

    network: nn.Module | Factory
    _: KW_ONLY
    loss: Callable[[nn.Module, Any], Tensor]
    sampler: Sampler | Callable[[nn.Module, Tensor], Any]
    shape: tuple[int, ...]
    optimiser: Optimiser = ADAM
    finetuning: Optimiser | None = None
    budget: float = 0
    batch: int = 128
    view: Callable[[nn.Module], Denoiser] = from_edm
    lora: Any = None
    second: Factory | None = None
    guidance: str | GuidanceSchedule = "full"
    scheduler: Any = None
    workers: int = 0

    def __post_init__(self) -> None:
        whole("batch", self.batch, 1)

    # ------------------------------------------------------------------- training

    def fit(self, data: Any, *, seed: Seed, start: nn.Module | None = None) -> nn.Module:
        """Train on ``data`` for ``budget`` items, from ``network`` or from ``start``; 0 items leave it as it is."""
        network = self._made(self.network, seed) if start is None else plain(start)
        return self._train(network, data, self.budget, seed, self.optimiser)

    def finetune(self, model: nn.Module, data: Any, budget: Any, *, seed: Seed) -> nn.Module:
        """Train a copy of ``model`` on ``data`` for ``budget`` items, or an adapter that shares its weights."""
        optimiser = self.finetuning or self.optimiser
        if self.lora is None:
            return self._train(plain(model), data, budget, seed, optimiser)
        shared = plain(model) if _is_adapted(model) else sharing(_unguided(model))
        wanted = [(weight, weight.requires_grad) for weight in shared.parameters()]
        try:
            with _seeded(seed.child("adapter"), _device(shared)):
                adapted = _with_adapter(shared, self.lora)
            return self._train(adapted, data, budget, seed, optimiser)
        finally:
            for weight, grad in wanted:  # peft froze them, and they are the base's own
                weight.requires_grad_(grad)

    def rebuild(self, data: Any, budget: Any, *, seed: Seed) -> nn.Module:
        """Train the second network from scratch. Raises `InputError` where no function makes a fresh one."""
        fresh = self.second or self.network
        if isinstance(fresh, nn.Module):
            expected = "training from scratch needs a function that makes a network"
            raise InputError("second", type(fresh).__name__, expected)
        return self._train(self._made(fresh, seed), data, budget, seed, self.optimiser)

    def _made(self, network: nn.Module | Factory, seed: Seed) -> nn.Module:
        if isinstance(network, nn.Module):
            return copy.deepcopy(network)
        with _seeded(seed.child("network"), torch.device("cpu")):
            return network()

    def _train(self, network: nn.Module, data: Any, budget: Any, seed: Seed, optimiser: Optimiser) -> nn.Module:
        steps = math.ceil(float(budget) / self.batch)
        device = _device(network.train())
        with _seeded(seed.child("draws"), device), torch.enable_grad():
            stepper = optimiser([weight for weight in network.parameters() if weight.requires_grad])
            for batch in _batches(data, self.batch, steps, seed.child("order"), self.workers):
                stepper.zero_grad(set_to_none=True)
                loss = self.loss(network, _to(batch, device))
                if not isinstance(loss, Tensor) or loss.ndim:
                    raise InputError("loss", type(loss).__name__, "it must return a scalar tensor")
                loss.backward()  # type: ignore[no-untyped-call]
                stepper.step()
            stepper.zero_grad(set_to_none=True)
        if not all(bool(weight.isfinite().all()) for weight in network.parameters()):
            raise InputError("optimiser", "weights that are not finite", "training diverged; lower the learning rate")
        return network.eval()

    # ------------------------------------------------------------------- sampling

    def sample(self, model: nn.Module, n: Any, *, seed: Seed) -> Any:
        """``n`` samples. Row i depends on (seed, i) alone, to the rounding of another compute batch."""
        count = whole("n", int(n), 1)
        device, training = _device(model), model.training
        drawn = functools.partial(
            generate, indices=range(count), shape=self.shape, seed=seed, batch=min(self.batch, count), device=device
        )
        try:
            with torch.no_grad(), _seeded(seed.child("sampler"), device):
                if isinstance(self.sampler, Sampler):
                    parts = [made for _, made in drawn(self.view(model.eval()), self.sampler)]
                    return torch.cat(parts).to(own_dtype(model))
                parts = [made for _, made in drawn(model.eval(), _Function(self.sampler))]  # type: ignore[arg-type]
        finally:
            model.train(training)
        return torch.cat(parts) if isinstance(parts[0], Tensor) else tuple(map(torch.cat, zip(*parts, strict=True)))

    # ------------------------------------------------------- two models as one, data

    def extrapolate(self, base: nn.Module, auxiliary: nn.Module, omega: Any) -> Guided:
        """The SIMS model, as a module: `sims_core.guide`."""
        return guide(base, auxiliary, omega, guidance=self.guidance, scheduler=self.scheduler)

    def merge(self, base: nn.Module, auxiliary: nn.Module, omega: Any) -> nn.Module:
        """Neon's network. An adapter at scale -omega is the same."""
        made = plain(base)
        made.load_state_dict(merge_weights(made.state_dict(), plain(auxiliary).state_dict(), float(omega)))
        return made

    def perturb(self, base: nn.Module, auxiliary: nn.Module, *, seed: Seed) -> nn.Module:
        """A copy of the base, moved as far as the auxiliary is from it in a random direction of all weights."""
        made, other, generator = plain(base), plain(auxiliary), seed.torch()
        pairs = [(a.detach(), b.detach()) for a, b in zip(made.parameters(), other.parameters(), strict=True)]
        steps = [torch.randn(a.shape, generator=generator, dtype=torch.float64) for a, _ in pairs]
        length = math.sqrt(sum(float((b - a).double().square().sum()) for a, b in pairs))
        scale = length / math.sqrt(sum(float(step.square().sum()) for step in steps))
        for (weight, _), step in zip(pairs, steps, strict=True):
            weight.add_((scale * step).to(weight.device, weight.dtype))
        return made

    def union(self, a: Any, b: Any) -> Any:
        """Both data sets: tensors and tuples of them as such, Datasets one after the other."""
        if isinstance(a, Tensor) and isinstance(b, Tensor):
            return torch.cat([a, b.to(a)])
        if isinstance(a, tuple) and isinstance(b, tuple):
            return tuple(torch.cat([x, y.to(x)]) for x, y in zip(a, b, strict=True))
        items = [_items(a), _items(b)]
        streams = [isinstance(one, IterableDataset) for one in items]
        if any(streams) and not all(streams):
            raise InputError("data", "IterableDataset", "a stream and items by number cannot be joined; give a Dataset")
        return ChainDataset(items) if all(streams) else ConcatDataset(items)

    def scale(self, data: Any, factor: float) -> Any:
        """A tensor, or the first of a tuple, scaled about the origin."""
        if isinstance(data, tuple):
            return (data[0] * factor, *data[1:])
        if not isinstance(data, Tensor):
            raise InputError("data", type(data).__name__, "only tensors are scaled; scale the items in the Dataset")
        return data * factor


def plain(model: nn.Module) -> nn.Module:
    """A copy of a network; an adapter is merged into it. Raises `InputError` for a guided pair."""
    made = copy.deepcopy(_unguided(model))
    return made.merge_and_unload() if _is_adapted(made) else made  # type: ignore[operator]


def _unguided(model: nn.Module) -> nn.Module:
    if isinstance(model, Guided):
        raise InputError("model", "a guided pair", "train its base or its auxiliary")
    return model


def _is_adapted(model: nn.Module) -> bool:
    return hasattr(model, "merge_and_unload")


def sharing(network: nn.Module) -> nn.Module:
    """Modules of their own on the same weights; buffers are copied, since training moves them."""
    return copy.deepcopy(network, {id(weight): weight for weight in network.parameters()})


def dropping(network: nn.Module) -> nn.Module:
    """The network on the same weights with its dropout on, in ``eval`` too: an auxiliary that needs no training.

    In-situ autoguidance (arXiv 2510.17136): ``guide(network, dropping(network), omega)``. Its draws follow torch's
    generators. Raises `InputError` for a network without layers of `torch.nn`'s dropout that drop anything.
    """
    made = sharing(network).eval()
    layers = [one for one in made.modules() if isinstance(one, nn.modules.dropout._DropoutNd) and one.p > 0]
    if not layers:
        raise InputError("network", type(network).__name__, "it has no dropout layers to switch on")

    def switch_on(*_: object) -> None:
        for layer in layers:
            layer.train()

    made.register_forward_pre_hook(switch_on)
    return made


def adaptable(network: nn.Module) -> list[str]:
    """The names of the layers that an adapter goes on where none are told: linear ones and convolutions."""
    kinds = (nn.Linear, nn.Conv1d, nn.Conv2d)  # exactly these: attention reads the weights of its own kind of linear
    layers = [name for name, layer in network.named_modules() if type(layer) in kinds]
    return [name for name in layers if getattr(network.get_submodule(name), "groups", 1) == 1]


def peft_library(lora: object) -> Any:
    """The package peft. Raises `InputError` with the line that installs it."""
    try:
        import peft
    except ImportError:
        raise InputError("lora", lora, f"adapters need peft: {extra('diffusers')}") from None
    return peft


def _with_adapter(network: nn.Module, lora: Any) -> nn.Module:
    """The network with a new adapter on every linear layer and convolution, or where the LoraConfig says."""
    peft = peft_library(lora)
    if isinstance(lora, int):
        targets = adaptable(network)
        if not targets:
            raise InputError("lora", lora, "the network has no linear layers or convolutions; give a LoraConfig")
        lora = peft.LoraConfig(r=whole("lora", lora, 1), lora_alpha=lora, target_modules=targets)
    try:
        made: nn.Module = peft.get_peft_model(network, lora, adapter_name=ADAPTER)
        return made
    except ValueError as error:
        raise InputError("lora", getattr(lora, "target_modules", lora), reason(error)) from None


# ------------------------------------------------------------------------- parts


def _device(network: nn.Module) -> torch.device:
    return next((weight.device for weight in network.parameters()), torch.device("cpu"))


@contextmanager
def _seeded(seed: Seed, device: torch.device) -> Iterator[None]:
    """Torch's own generators at the start of this stream; afterwards they are where they were."""
    there = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(there):
        torch.default_generator.manual_seed(seed.integer())
        for one in there:
            with torch.cuda.device(one):
                torch.cuda.manual_seed(seed.integer())
        yield


def _items(data: Any) -> Any:
    return TensorDataset(*data) if isinstance(data, tuple) else data


def _batches(data: Any, size: int, steps: int, seed: Seed, workers: int) -> Iterator[Any]:
    """``steps`` batches: epochs in random orders, one after the other, cut into batches of ``size``."""
    if isinstance(data, IterableDataset):
        yield from itertools.islice(_streamed(data, size, seed, workers), steps)
        return
    count = len(data[0]) if isinstance(data, tuple) else len(data)
    if not count:
        raise InputError("data", 0, "there is nothing to train on")
    epochs = (seed.child("epoch", epoch).numpy().permutation(count).tolist() for epoch in itertools.count())
    order = itertools.chain.from_iterable(epochs)
    chosen = (list(itertools.islice(order, size)) for _ in range(steps))
    if isinstance(data, Tensor):
        yield from (data[rows] for rows in chosen)
    elif isinstance(data, tuple):
        yield from (tuple(part[rows] for part in data) for rows in chosen)
    else:
        yield from DataLoader(data, batch_sampler=chosen, num_workers=workers, generator=seed.torch())


def _streamed(data: Any, size: int, seed: Seed, workers: int) -> Iterator[Any]:
    """A stream's batches, again and again."""
    while True:
        empty = True
        for batch in DataLoader(data, batch_size=size, num_workers=workers, generator=seed.torch()):
            empty = False
            yield batch
        if empty:
            raise InputError("data", 0, "there is nothing to train on")


def _to(batch: Any, device: torch.device) -> Any:
    """A batch on the device, as a DataLoader collates it."""
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, dict):
        return {name: _to(part, device) for name, part in batch.items()}
    return type(batch)(_to(part, device) for part in batch) if isinstance(batch, list | tuple) else batch


class _Function:
    """A user's sampler as `generate` calls one."""

    def __init__(self, run: Callable[[nn.Module, Tensor], Any]) -> None:
        self._run = run

    def __call__(self, network: nn.Module, start: Tensor, noise: Any) -> Any:
        made = self._run(network, start.to(own_dtype(network)))
        return made if isinstance(made, Tensor) else _Rows(made)


class _Rows(tuple[Tensor, ...]):
    """Tensors that are cut together."""

    def __getitem__(self, rows: Any) -> Any:
        return tuple(part[rows] for part in self)
