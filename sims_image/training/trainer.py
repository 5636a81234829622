"""The training loop: one `Trainer`, its step, and what happens between steps.

The recipes of EDM (Karras et al. 2022, arXiv 2206.00364) and EDM2 (Karras et al. 2024, arXiv 2312.02696): the loss is
summed over an image and averaged over the batch, Adam steps on float32 weights whatever the network's body computes in,
and averages of the weights follow. All randomness is keyed by the number of an image or of a step, so that a step is a
pure function of the weights, the optimiser and its number.

The inner loop reads nothing back from the device. Whether a loss or gradient was finite is recorded there, with the
step and its noise levels, and looked at when the loss is logged and before anything is saved. A non-finite one ends the
run; it is never replaced.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sims_core.errors import InputError
from sims_core.seeds import Seed
from sims_image.models import adapters
from sims_image.models.compiled import compiled
from sims_image.models.ema import Averages
from sims_image.models.networks import Preconditioned
from sims_image.models.presets import Recipe
from sims_image.processes import Processes
from sims_image.training.batches import Batch, Feed
from sims_image.training.objectives import make_objective
from sims_image.training.schedules import learning_rate, profiles, spread

BODIES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
#: fp16 steps in a row whose scaled gradient overflows before the run counts as diverged
PATIENCE = 20


class DivergedError(RuntimeError):
    """Training met a loss or gradient that is not finite.

    step: its number, from 1. images: seen with it. levels: its noise levels' range. last_good: what is on disk.
    """

    def __init__(self, what: str, step: int, images: int, levels: tuple[float, float], last_good: str) -> None:
        self.step, self.images, self.levels, self.last_good = step, images, levels, last_good
        were = "were" if what == "weights" else "was"
        super().__init__(
            f"training diverged: the {what} {were} not finite in step {step} ({images:,} images seen), "
            f"with noise levels sigma {spread(levels)}; last good: {last_good}. "
            "A smaller --lr, a longer --lr-rampup or --precision float32 may help"
        )


@dataclass(frozen=True)
class Options:
    """What changes a run's speed and rounding but not its recipe.

    compile: torch.compile the network. channels_last: memory format of images and convolutions. workers, ahead: see
    `sims_image.training.batches.Feed`.
    """

    compile: bool = False
    channels_last: bool = True
    workers: int = 1
    ahead: int = 4


@dataclass(frozen=True)
class Report:
    """The mean over the steps since the last one. loss: of an element of an image; levels: range of sigma.

    skipped: fp16 steps that were not taken because the scaled gradient overflowed, since the run began.
    """

    step: int
    images: int
    loss: float
    lr: float
    gradient: float
    levels: tuple[float, float]
    skipped: int
    scale: float


class Trainer:
    """A network in training. The network stays on ``processes.device``, float32, in train mode.

    feed: the data, cut for these processes. seed: of dropout. Raises `InputError` for an objective that the network
    cannot serve.
    """

    def __init__(
        self,
        network: Preconditioned,
        recipe: Recipe,
        feed: Feed,
        seed: Seed,
        *,
        processes: Processes,
        options: Options = Options(),
    ) -> None:
        self.recipe, self.feed, self.processes, self.options, self.seed = recipe, feed, processes, options, seed
        self.device = processes.device
        self.network = network.to(self.device).train().requires_grad_(True)
        if getattr(network, "adapter", None) is not None:
            adapters.freeze(network)
        if options.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.network.compute_dtype = BODIES[recipe.precision]
        self.objective = make_objective(recipe, network)
        if network.has_logvar and recipe.objective != "edm2":
            for name, parameter in network.named_parameters():  # nothing reaches it
                parameter.requires_grad_(not name.startswith("logvar"))
        self.optimizer = torch.optim.Adam(
            self.network.parameters(), lr=recipe.lr, betas=(recipe.beta1, recipe.beta2), eps=recipe.eps, fused=True
        )
        self.scaler = torch.amp.GradScaler(
            self.device.type, init_scale=recipe.loss_scale, enabled=recipe.precision == "fp16"
        )
        self.averages = Averages(self.network, profiles(recipe)) if processes.first else None
        self.step = 0
        self._model: nn.Module = compiled(self.network) if options.compile else self.network
        if processes.world > 1:
            self._model = nn.parallel.DistributedDataParallel(
                self._model,
                device_ids=[self.device] if self.device.type == "cuda" else None,
                broadcast_buffers=False,
                gradient_as_bucket_view=True,
            )
        self._parameters = [p for p in self.network.parameters() if p.requires_grad]
        self._watch = Watch(self.device)

    @property
    def images(self) -> int:
        """Images seen so far, over all processes."""
        return self.step * self.recipe.batch

    # ------------------------------------------------------------------ a step

    def run(self, stop: int, *, after: Callable[[], None]) -> None:
        """Take steps until ``stop`` of them are done; ``after`` is called after each.

        Torch's global random state, which dropout draws from, is left as it was.
        """
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            batches = self.feed(self.step, stop, workers=self.options.workers, ahead=self.options.ahead)
            with contextlib.closing(batches):  # type: ignore[type-var]
                while self.step < stop:
                    self.take(batches)
                    after()

    def take(self, batches: Iterator[Batch]) -> None:
        """One step of the optimiser on the next passes of ``batches``, and of the averages."""
        recipe, feed = self.recipe, self.feed
        self.optimizer.zero_grad(set_to_none=True)
        for number in range(feed.passes):
            torch.manual_seed(self.seed.child("dropout", self.step, self.processes.rank, number).integer())
            self._backward(next(batches), last=number == feed.passes - 1)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(recipe, self.images)
        self.scaler.unscale_(self.optimizer)
        self._watch.gradient([p.grad for p in self._parameters if p.grad is not None], self.step, self.scaler)
        if recipe.clip:
            nn.utils.clip_grad_norm_(self._parameters, recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.averages is not None:
            self.averages.update(self.images, recipe.batch)
        self.step += 1

    def _backward(self, batch: Batch, *, last: bool) -> None:
        ready = self.feed.ready(batch, channels_last=self.options.channels_last)
        waiting = not last and isinstance(self._model, nn.parallel.DistributedDataParallel)
        with self._model.no_sync() if waiting else contextlib.nullcontext():  # type: ignore[operator]
            loss = self.objective(self._model, ready.clean, ready.level, ready.noise, ready.conditions)
            mine = len(ready.clean) * self.feed.passes  # of the batch; processes average their gradients
            self.scaler.scale(loss.value.sum() / mine).backward()  # type: ignore[no-untyped-call]
        self._watch.loss(loss.value.detach(), loss.level.detach())

    # ------------------------------------------------------------ between steps

    def report(self, last_good: Callable[[], str]) -> Report:
        """Read what was gathered since the last report, and forget it. A host sync, and a sum over processes.

        Raises `DivergedError` if a loss, a gradient or a weight was not finite, in every process alike.
        """
        found = self._watch.read(self.processes)
        norms = torch._foreach_norm([p.detach() for p in self._parameters], torch.inf)
        if found.bad is None and not bool(torch.stack(norms).isfinite().all()):
            found = replace(found, bad=("weights", self.step - 1))  # a finite gradient, and too large a step
        self._refuse(found, last_good)
        lr = learning_rate(self.recipe, max(self.images - self.recipe.batch, 0))
        return Report(
            self.step,
            self.images,
            found.loss,
            lr,
            found.gradient,
            found.levels,
            found.skipped,
            float(self.scaler.get_scale()),
        )

    def check(self, last_good: Callable[[], str]) -> None:
        """Look whether everything was finite, of one process alone. A host sync. Raises `DivergedError`."""
        if not self._watch.sound:
            self._refuse(self._watch.read(self.processes), last_good)

    def _refuse(self, found: Seen, last_good: Callable[[], str]) -> None:
        if found.bad is not None:
            what, step = found.bad
            raise DivergedError(what, step + 1, (step + 1) * self.recipe.batch, found.levels, last_good())

    def keep(self, state: dict[str, Any]) -> None:
        """Start from the Adam of another run's `state_dict`. Raises `InputError` where it does not fit."""
        own = self.optimizer.state_dict()
        try:
            self.optimizer.load_state_dict(own | {"state": state["optimizer"]["state"]})
            shapes = [(p.shape, moments["exp_avg"].shape) for p, moments in self.optimizer.state.items()]
            if not shapes or any(one != other for one, other in shapes):
                raise ValueError("its moments do not fit")
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise InputError("adam", "kept", f"that run's Adam is of another network ({error}); say new") from None

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on: tensors and plain containers, on the device."""
        return {
            "step": self.step,
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averages": self.averages.state_dict() if self.averages is not None else {},
            "scaler": self.scaler.state_dict(),
            "skipped": self._watch.skipped.item(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`. Raises `InputError` where it is another network's."""
        try:
            self.network.load_state_dict(state["network"], strict=True)
            self.optimizer.load_state_dict(state["optimizer"])
            if self.averages is not None:
                self.averages.load_state_dict(state["averages"])
            if self.scaler.is_enabled():
                self.scaler.load_state_dict(state["scaler"])
            self._watch.skipped.fill_(state["skipped"])
            self.step = int(state["step"])
        except torch.cuda.OutOfMemoryError:
            raise
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                "training state", reason, "it does not fit this run; remove state.pt to start anew"
            ) from None


@dataclass(frozen=True)
class Seen:
    """What a `Watch` saw. levels: of all steps, or of the bad one. bad: what was not finite, and in which step."""

    loss: float
    gradient: float
    levels: tuple[float, float]
    skipped: int
    bad: tuple[str, int] | None


class Watch:
    """Sums and extremes of the steps since the last reading, on the device, and the first step that was not finite."""

    def __init__(self, device: torch.device) -> None:
        self.skipped = torch.zeros((), dtype=torch.float64, device=device)
        self._row = torch.zeros((), dtype=torch.float64, device=device)  # overflowing steps in a row
        self._clear()

    def _clear(self) -> None:
        like = self.skipped
        self._loss, self._count, self._norm, self._norms = (torch.zeros_like(like) for _ in range(4))
        self._low, self._high = torch.full_like(like, torch.inf), torch.full_like(like, -torch.inf)
        self._step_loss, self._step_low, self._step_high = torch.zeros_like(like), self._low, self._high
        self._bad = torch.full((4,), torch.inf, dtype=torch.float64, device=like.device)  # step, low, -high, loss sound

    @property
    def sound(self) -> bool:
        """Whether everything was finite since the last reading, in this process."""
        return not bool(self._bad[0].isfinite())

    def loss(self, value: Tensor, level: Tensor) -> None:
        """Note one pass: its elementwise loss and its noise levels."""
        mean = value.mean(dtype=torch.float64)
        self._loss, self._count = self._loss + mean, self._count + 1
        self._step_loss = self._step_loss + mean
        low, high = level.min().double(), level.max().double()
        self._low, self._high = torch.minimum(self._low, low), torch.maximum(self._high, high)
        self._step_low, self._step_high = torch.minimum(self._step_low, low), torch.maximum(self._step_high, high)

    def gradient(self, gradients: Sequence[Tensor], step: int, scaler: torch.amp.GradScaler) -> None:
        """Note the end of a step: the norm of its (unscaled) gradient, and whether it and the loss were finite.

        In fp16 a gradient that overflows under the loss scale is not divergence: the scaler passes over the step and
        halves its scale. It becomes divergence if it happens `PATIENCE` times in a row, or if the loss is not finite.
        """
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(gradients)))).double()
        sound = norm.isfinite()
        self._norm = self._norm + torch.where(sound, norm, torch.zeros_like(norm))
        self._norms = self._norms + sound
        if scaler.is_enabled():
            self.skipped += ~sound
            self._row = torch.where(sound, torch.zeros_like(self._row), self._row + 1)
            sound = self._row < PATIENCE
        known = self._step_loss.isfinite()
        now = torch.stack([torch.full_like(norm, float(step)), self._step_low, -self._step_high, known.double()])
        sound = sound & known
        self._bad = torch.where(sound | self._bad[0].isfinite(), self._bad, now)
        self._step_loss = torch.zeros_like(norm)
        self._step_low, self._step_high = torch.full_like(norm, torch.inf), torch.full_like(norm, -torch.inf)

    def read(self, processes: Processes) -> Seen:
        """Everything, over all processes; starts anew."""
        total, count = processes.sum(torch.stack([self._loss, self._count])).tolist()
        low, high, bad = processes.least(torch.stack([self._low, -self._high, self._bad[0]]))
        mine = torch.where(self._bad[0] == bad, self._bad[1:], torch.inf)
        bad_low, bad_high, known = processes.least(mine).tolist()
        gradient, skipped = (self._norm / self._norms.clamp(min=1)).item(), int(self.skipped.item())
        self._clear()
        if bad.isfinite():
            what = "gradient" if known else "loss"
            return Seen(total / count, gradient, (bad_low, -bad_high), skipped, (what, int(bad)))
        return Seen(total / max(count, 1), gradient, (low.item(), -high.item()), skipped, None)
