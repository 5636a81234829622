"""One training run in its folder: resuming, logging, snapshots, states, the progress bar.

    settings.json  finished.json           what was asked for, and that it is done
    measured.json                          what ``--precision auto`` and ``--channels-last auto`` chose, and by what
    log.jsonl                              one line per log interval
    tensorboard/                           the same as curves, with ``--track tensorboard``
    state.pt                               what the next step needs; read with weights_only=True
    snapshots/IMAGES/{ema,ema-0.050,raw}/  checkpoints at so many images seen
    snapshots/IMAGES/sheet.png             samples of the (first) average, the same noise every time

Every file appears whole. Killed at any instant, the run resumes from the last state and repeats, bit for bit (on a
GPU with ``--deterministic``), what came after it. At a snapshot the checkpoints come first, then the log's line, then
the state.
"""

from __future__ import annotations

import copy
import json
import time
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sims_core.errors import InputError, reason
from sims_core.lab.runs import RunFolder, write_atomic, write_failure, write_json
from sims_core.sampling import Sampler
from sims_core.seeds import Seed
from sims_image.data.dataset import Dataset, to_pixels
from sims_image.data.sheets import sheet_labels, write_sheet
from sims_image.models import adapters, autoencoders, checkpoints, torchfiles
from sims_image.models.autoencoders import Decoder
from sims_image.models.denoiser import draw_samples, make_sampler
from sims_image.models.ema import Profile, Weights
from sims_image.models.networks import Preconditioned, build
from sims_image.models.presets import AUTO
from sims_image.processes import Processes, repeatable_kernels, start, tuned_kernels
from sims_image.training.augment import Augmentation
from sims_image.training.batches import Feed
from sims_image.training.options import Train
from sims_image.training.plan import STATE, Plan, plan
from sims_image.training.schedules import shares
from sims_image.training.trackers import TRACKERS, Tracker
from sims_image.training.trainer import BODIES, Options, Report, Trainer
from sims_image.training.ways import Way, chosen, has_group_norm, read, ways

FORMAT = 1
MEASURED = "measured.json"
#: steps from which a run lets cuDNN time its kernels: on an H100 that took 24 s before the first one, and gained 0.2 %
TUNED_FROM = 50_000


@dataclass(frozen=True)
class Result:
    """What a run left. folder; checkpoint: its last average, raw: the raw weights beside it, None if not kept.

    snapshots: all folders of snapshots, in order. already: whether the run was finished before. first: whether this is
    the process that wrote.
    """

    folder: Path
    checkpoint: Path
    raw: Path | None
    snapshots: tuple[Path, ...]
    already: bool
    first: bool

    @property
    def words(self) -> str:
        """A few lines for the user."""
        state = f"{self.folder} holds this run, finished: nothing to do\n" if self.already else ""
        return f"{state}checkpoint: {self.checkpoint}" + (f"\nraw weights: {self.raw}" if self.raw else "")


def train(settings: Train, *, progress: bool = False) -> Result:
    """Train, or resume, or recognise a run that is finished: the command in one call.

    Raises `InputError` for bad input, and `sims_image.training.trainer.DivergedError`.
    """
    with start(settings.device) as processes:
        return run_session(settings, processes, progress=progress)


def run_session(
    settings: Train, processes: Processes, *, data: Dataset | None = None, progress: bool = False
) -> Result:
    """`train` among ``processes``. data: opened, in place of what ``settings`` name."""
    planned = processes.together(lambda: plan(settings, data)) or plan(settings, data)
    out = Path(settings.out) if settings.out else planned.folder
    part, passes = shares("batch", planned.recipe.batch, processes.world, settings.microbatch)
    if planned.recipe.coupling and part % planned.recipe.coupling:
        words = f"a pass of {part} images holds no whole groups of it; give a number that divides {part}"
        raise InputError("coupling", planned.recipe.coupling, words)
    with ExitStack() as stack:
        folder = processes.together(
            lambda: stack.enter_context(RunFolder.open(out, planned.settings, options=settings, argument="out"))
        )
        already = bool(processes.sum(torch.tensor(float(folder is not None and folder.finished))))
        if not already:
            session = _Session(planned, out, settings, processes, part, passes, progress=progress)
            tuned = tuned_kernels if planned.table.steps >= TUNED_FROM else nullcontext
            with repeatable_kernels() if settings.deterministic else tuned():
                session.run()
            if folder is not None:
                folder.finish(images=session.trainer.images, seconds=round(session.elapsed, 1), loss=session.loss)
    return _result(out, planned, already=already, first=processes.first)


def _result(out: Path, planned: Plan, *, already: bool, first: bool) -> Result:
    snapshots = tuple(_snapshot(out, step * planned.recipe.batch) for step in planned.table.snapshots)
    names = [path.name for path in sorted(snapshots[-1].glob("ema*"))] if snapshots[-1].exists() else []
    raw = snapshots[-1] / "raw"
    return Result(
        out, snapshots[-1] / (names[0] if names else "ema"), raw if raw.exists() else None, snapshots, already, first
    )


def _snapshot(out: Path, images: int) -> Path:
    return out / "snapshots" / f"{images:010d}"


def make_network(planned: Plan, seed: Seed) -> Preconditioned:
    """The run's network at its start: the parent's weights, or drawn from ``seed``. Raises `InputError`."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed.child("weights").integer())
        network = build(**planned.config)
    if planned.parent is not None:
        parent = checkpoints.load(planned.parent.path, argument="from_")
        try:
            network.load_state_dict(parent.network.state_dict(), strict=True)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise InputError("network", planned.config, f"the checkpoint's weights do not fit ({reason})") from None
    return network if not planned.lora else _adapted(network, planned, seed)


def _adapted(network: Any, planned: Plan, seed: Seed) -> Preconditioned:
    """The network with the run's adapter, drawn from ``seed``."""
    assert planned.parent is not None
    rank, _ = adapters.parse(planned.lora)
    known = adapters.Adapter(rank, checkpoints.anywhere(planned.parent.path), planned.parent.sha256)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed.child("adapter").integer())
        return adapters.attach(network, adapters.targets_of(planned.lora, network), known)


class _Session:
    """The run's moving parts; `run` takes it to its end."""

    def __init__(
        self, planned: Plan, out: Path, settings: Train, processes: Processes, part: int, passes: int, *, progress: bool
    ) -> None:
        assert planned.data is not None
        self.plan, self.out, self.processes = planned, out, processes
        self.seed = Seed(planned.seed).child("train")
        self.seconds = 0.0
        self.loss: float | None = None
        recipe = planned.recipe
        network = make_network(planned, self.seed)
        feed = Feed(
            planned.data,
            self.seed,
            label_dim=network.label_dim,
            augment=Augmentation(recipe.augment) if recipe.augment else None,
            augment_dim=int(network.config.get("augment_dim", 0)),
            part=part,
            passes=passes,
            rank=processes.rank,
            world=processes.world,
            device=processes.device,
            latents=planned.autoencoder,
            coupling=recipe.coupling,
        )
        way = self._way(network, feed, settings)
        if settings.precision == AUTO:
            recipe = replace(recipe, precision=way.precision)
            self.plan = replace(planned, recipe=recipe)
        options = Options(settings.compile, way.channels_last, settings.workers)
        self.trainer = Trainer(network, recipe, feed, self.seed, processes=processes, options=options)
        if planned.adam is not None:
            self.trainer.keep(torchfiles.load("adam", planned.adam))
        self.sampler = make_sampler(planned.sampler, network, planned.churn)
        self._autoencoder = planned.autoencoder
        self._progress = progress and processes.first
        self._eager = processes.world == 1 and processes.device.type == "cpu"
        self._tracker = settings.track
        self._track: Tracker | None = None
        self._began = self._mark = time.monotonic()
        self._marked = 0

    def _way(self, network: Preconditioned, feed: Feed, settings: Train) -> Way:
        """How the network computes: as asked, or as the run's record says, or else as is measured now. `InputError`."""
        path, recipe = self.out / MEASURED, self.plan.recipe
        precision, normalised = settings.precision or recipe.precision, has_group_norm(network)
        among = ways(feed.device, precision, settings.channels_last, normalised=normalised)
        self.measured = AUTO in (settings.precision, settings.channels_last)
        if not self.measured:
            return among[0]

        def found() -> Way:
            if not path.exists():
                way, by = chosen(network, recipe, feed, among, compile=settings.compile)
                write_json(path, asdict(way) | by)
            kept = read(path)
            print(f"note: {kept}, as measured at the start ({path})")
            return kept

        first = self.processes.together(found)  # which tells the others
        every = [Way(body, last) for body in BODIES for last in (False, True)]
        return every[int(self.processes.sum(torch.tensor(0.0 if first is None else float(every.index(first)))))]

    # ------------------------------------------------------------------- the run

    def run(self) -> None:
        """From the last state to the end. Raises `DivergedError` and `InputError`."""
        self._resume()
        table, trainer = self.plan.table, self.trainer
        self._began = self._mark = time.monotonic()
        self._marked = trainer.images
        if self.processes.first:
            self._track = TRACKERS[self._tracker](self.out, trainer.images) if self._tracker else None
            for note in self.plan.notes:
                print(f"note: {note}")
        with tqdm(
            total=table.steps * table.batch,
            initial=trainer.images,
            unit="img",
            unit_scale=True,
            disable=not self._progress,
            smoothing=0.1,
            mininterval=0.5,
        ) as self._bar:
            trainer.run(table.steps, after=self._after)

    def _after(self) -> None:
        """What follows a step."""
        step, table = self.trainer.step, self.plan.table
        self._bar.update(table.batch)
        if not table.logs(step):
            if self._eager:
                self.trainer.check(self._last_good)
            return
        report = self.trainer.report(self._last_good)
        if not self.processes.first:
            return
        line = self._line(report)
        try:
            if step in table.snapshots:
                line |= self._save_snapshot()
            with open(self.out / "log.jsonl", "a") as log:
                log.write(json.dumps(line) + "\n")
            if self._track is not None:
                self._track(line)
            if table.saves(step):
                self._save_state()
        except OSError as error:
            raise write_failure("out", self.out, error, f"last good: {self._last_good()}") from None
        self._mark, self._marked = time.monotonic(), self.trainer.images

    def _line(self, report: Report) -> dict[str, Any]:
        now = time.monotonic()
        speed = (report.images - self._marked) / max(now - self._mark, 1e-9)
        self.loss = report.loss
        self._bar.set_postfix_str(f"loss {report.loss:.4f}, {speed:.3g} img/s")
        line: dict[str, Any] = {
            "images": report.images,
            "step": report.step,
            "loss": report.loss,
            "lr": report.lr,
            "gradient": report.gradient,
            "sigma": list(report.levels),
            "images_per_second": round(speed, 2),
            "seconds": round(self.elapsed, 2),
        }
        if self.measured:
            line |= {"precision": self.plan.recipe.precision, "channels_last": self.trainer.options.channels_last}
        if self.plan.recipe.precision == "fp16":
            line |= {"skipped": report.skipped, "loss_scale": report.scale}
        return line

    @property
    def elapsed(self) -> float:
        """Seconds that this run has taken so far, over all its starts."""
        return self.seconds + time.monotonic() - self._began

    # --------------------------------------------------------- states and snapshots

    def _save_state(self) -> None:
        trainer = self.trainer
        state = {
            "format": FORMAT,
            "settings": json.dumps(self.plan.settings),
            "images": trainer.images,  # the data's order and every draw follow from this and the seed
            "seed": [self.seed.entropy, *self.seed.path],
            "seconds": self.elapsed,
            **trainer.state_dict(),
        }
        write_atomic(self.out / STATE, lambda temporary: torchfiles.save(state, temporary))

    def _resume(self) -> None:
        """Load the last state, if there is one; drop the log's lines after it."""
        path, seen = self.out / STATE, 0
        there = bool(self.processes.sum(torch.tensor(float(self.processes.first and path.exists()))))
        if there:
            anew = "; remove it to start this run anew"
            on_gpu = self.processes.device.type == "cuda"  # where the file need not be in memory whole
            state = torchfiles.load("training state", path, mmap=on_gpu, otherwise=anew)
            try:
                same = state["format"] == FORMAT and json.loads(state["settings"]) == self.plan.settings
                if same:
                    self.trainer.load_state_dict(state)
                    self.seconds, seen = float(state["seconds"]), self.trainer.images
            except Exception as error:  # whatever a part of the wrong kind leads to
                words = f"it is damaged ({type(error).__name__}: {reason(error)}){anew}"
                raise InputError("training state", str(path), words) from None
            if not same:
                raise InputError("training state", str(path), f"it belongs to another run or version{anew}")
        steps = torch.tensor(float(self.trainer.step), dtype=torch.float64)
        if float(self.processes.least(steps)) != -float(self.processes.least(-steps)):
            words = "the processes find different states; the run folder must be one that all machines share"
            raise InputError("out", str(self.out), words)
        if self.processes.first:
            self.loss = _cut_log(self.out / "log.jsonl", seen)

    def _last_good(self) -> str:
        """The last thing on disk that training can resume from, in words."""
        found = sorted(
            p for p in (self.out / "snapshots").glob("*") if p.name.isdigit() and any(p.glob("*/model.json"))
        )
        return str(found[-1]) if found else "none yet" if self.plan.parent is None else str(self.plan.parent.path)

    def _save_snapshot(self) -> dict[str, Any]:
        """Write the averages, the raw weights if they are kept, and the sheet; returns what the log says of it."""
        trainer, averages = self.trainer, self.trainer.averages
        assert averages is not None
        folder = _snapshot(self.out, trainer.images)
        shown = copy.deepcopy(trainer.network).eval().requires_grad_(False)
        said: dict[str, Any] = {"snapshot": str(folder.relative_to(self.out))}
        start = self._start()
        kept: list[tuple[str, Profile | None, Weights]] = [
            (profile.name, profile, averages.weights(profile)) for profile in averages.profiles
        ]
        drawn = None
        raw = trainer.network.state_dict()
        for name, profile, weights in kept:
            shown.load_state_dict(weights)
            moved = None if start is None else share_of_way(start, weights, raw)
            if moved is not None:
                said[f"{name}_share"] = moved
            self._save(folder / name, shown, profile, moved)
            if drawn is None:
                drawn = self._draw(shown, folder)
        if self.plan.raw or trainer.step == self.plan.table.steps:
            shown.load_state_dict(raw)
            self._save(folder / "raw", shown, None, None)
        return said

    def _save(self, folder: Path, network: Preconditioned, profile: Profile | None, share: float | None) -> None:
        plan, data = self.plan, self.plan.data
        assert data is not None
        width = None if profile is None else profile.record.get("halflife", profile.record.get("width"))
        training = {"recipe": plan.recipe.record, "seed": plan.seed, "step": self.trainer.step, "run": self.out.name}
        if share is not None:
            training["ema_share_of_raw"] = share
        record = checkpoints.Record(
            preset=plan.preset or None,
            data=checkpoints.Data(
                data.name, data.sha256, tuple(data.classes), data.seen, str(data.dtype), tuple(data.empty)
            ),
            images=self.trainer.images,
            mi=plan.recipe.mi,
            ema=checkpoints.Ema("none" if profile is None else profile.record["kind"], width),
            parent=None if plan.parent is None else plan.parent.sha256,
            training=training,
        )
        made = checkpoints.save(folder, network, record, replace=True, autoencoder=self._autoencoder)
        self._autoencoder = made.autoencoder  # the next ones link to it, also where the run is on a disk of its own

    def _draw(self, network: Preconditioned, folder: Path) -> bool:
        latents = self.plan.data is not None and str(self.plan.data.dtype) != "uint8"
        if self.trainer.step not in self.plan.sheets or (latents and self._autoencoder is None):
            return False
        decoder = (
            None if self._autoencoder is None else autoencoders.load(self._autoencoder, device=self.trainer.device)
        )
        network.compute_dtype = BODIES[self.plan.recipe.precision]
        with torch.random.fork_rng([self.processes.device] if self.processes.device.type == "cuda" else []):
            seed, path = self.seed.child("sheet"), folder / "sheet.png"
            return sheet_of(network, self.sampler, self.plan.sheet, seed, path, decoder=decoder)

    def _start(self) -> Weights | None:
        """The weights that fine-tuning began with, or None."""
        if self.plan.parent is None:
            return None
        if self.plan.lora:  # which does nothing yet
            return make_network(self.plan, self.seed).state_dict()
        return checkpoints.load(self.plan.parent.path, argument="from_").network.state_dict()


def sheet_of(
    network: Preconditioned,
    sampler: Sampler,
    rows: int,
    seed: Seed,
    path: Path,
    *,
    batch: int = 64,
    decoder: Decoder | None = None,
) -> bool:
    """Draw a sheet of ``rows`` rows and write it. False, and nothing is written, where images are not grey or RGB.

    decoder: of latents.
    """
    channels = network.img_channels if decoder is None else decoder.shape((0, 0, 0))[0]
    if channels not in (1, 3):
        return False
    columns, classes = sheet_labels(rows, network.label_dim, seed)
    samples = draw_samples(network, sampler, classes, seed, batch=batch)
    write_sheet(path, to_pixels(samples if decoder is None else decoder(samples)).cpu().numpy(), columns)
    return True


def share_of_way(start: Weights, average: Weights, raw: Weights) -> float:
    """How far an average has come on the raw weights' way from ``start``: 0 not at all, 1 all the way.

    The projection of (average - start) on (raw - start). A short fine-tune's slow average stays near 0.
    """
    dot, square = 0.0, 0.0
    for name, begin in start.items():
        if begin.is_floating_point():
            way = raw[name].detach().cpu().double() - begin.double()
            dot += float((way * (average[name].detach().cpu().double() - begin.double())).sum())
            square += float((way * way).sum())
    return dot / square if square else 0.0


def _cut_log(path: Path, seen: int) -> float | None:
    """Keep the lines of up to ``seen`` images, and of these the whole ones; returns the last one's loss.

    A run that was killed may have left half a line at the end; any other line that is none is said to go.
    """
    kept, loss = [], None
    lines = path.read_bytes().split(b"\n") if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            images, value = int(entry["images"]), float(entry["loss"])
        except (ValueError, TypeError, LookupError, RecursionError, OverflowError):
            if number < len(lines):
                print(f"note: {path}: line {number} is damaged and left out")
            continue
        if images <= seen:
            kept.append(line + b"\n")
            loss = value
    write_atomic(path, lambda temporary: temporary.write_bytes(b"".join(kept)))
    return loss
