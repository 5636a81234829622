"""Kills commands and starts them again: what they leave must be what an undisturbed run leaves, and nothing else.

`python -m tests.kills [--kills 200] [--every 1]` prints what it counted. A command runs in a forked child, so that a
thousand of them take minutes. `Campaign.crash` kills at the N-th operation on files (each is announced by an audit
event before it is carried out, so that the state after it is met before the next one); `Campaign.strike` kills at
a random time. Then the same command runs to its end, and its result is compared byte for byte.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

#: audit events of operations that change files; those that read are passed over
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
#: what belongs to a run folder that stays
OWN = ("shards", ".lock")


def _changes(event: str, arguments: tuple, below: str) -> bool:
    if event not in CHANGES or not str(arguments[0]).startswith(below):
        return False
    return event != "open" or bool(arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _run(words: Sequence[str]) -> None:
    from sims_core.lab.command import main_with_errors

    if words[0] == "sweep":
        from sims_toy.studies import command

        code = main_with_errors(command("sweep"), words[1:])
    else:
        from sims_image.commands import run

        code = main_with_errors(run, words)
    os._exit(code)


def _forked(words: Sequence[str], folder: Path, hook: Callable[[str, tuple], None] | None = None) -> int:
    """Start the command in a child, in silence; returns its process number."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    try:
        # tqdm's own lock is shared with every child: one killed while it holds it would stop all later ones
        tqdm.set_lock(threading.RLock())
        os.chdir(folder)
        out = os.open(folder.parent / "output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        if hook is not None:
            sys.addaudithook(hook)
        _run(words)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(99)


@dataclass
class Command:
    """One command. words: without its folder, in which it is run. result: the digest of what it made."""

    name: str
    words: tuple[str, ...]
    result: Callable[[Path], str]
    allowed: Callable[[str], bool]
    reference: str = ""
    events: int = 0
    seconds: float = 0.0


@dataclass
class Campaign:
    """Commands, where they are run, and what was counted."""

    place: Path
    commands: dict[str, Command]
    counts: Counter = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def fresh(self, command: Command) -> Path:
        folder = self.place / command.name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def learn(self, command: Command) -> None:
        """An undisturbed run: its result, its operations on files, its length."""
        folder = self.fresh(command)
        told = self.place / "events.txt"
        below, count = str(folder), 0

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            if _changes(event, _absolute(arguments, folder), below):
                count += 1
                number = os.open(told, os.O_WRONLY | os.O_CREAT)
                os.write(number, str(count).encode())
                os.close(number)

        began = time.monotonic()
        told.unlink(missing_ok=True)
        status = os.waitpid(_forked(command.words, folder, hook), 0)[1]
        assert status == 0, (self.place / "output.txt").read_text()[-2000:]
        command.seconds, command.events = time.monotonic() - began, int(told.read_text())
        command.reference = command.result(folder)
        assert not self.left(command, folder)

    def left(self, command: Command, folder: Path) -> list[str]:
        """What should not be there."""
        found = (str(path.relative_to(folder)) for path in folder.rglob("*"))
        return [name for name in found if not command.allowed(name)]

    def finish(self, command: Command, folder: Path, what: str) -> None:
        """Run to the end, and compare."""
        status = os.waitpid(_forked(command.words, folder), 0)[1]
        again = os.waitpid(_forked(command.words, folder), 0)[1]  # whose only work may be to clear away
        self.counts["cycles"] += 1
        if status or again:
            self.counts["lost"] += 1
            self.faults.append(f"{command.name}, {what}: {(self.place / 'output.txt').read_text()[-400:]}")
        elif command.result(folder) != command.reference:
            self.counts["differing"] += 1
            self.faults.append(f"{command.name}, {what}: another result")
        elif left := self.left(command, folder):
            self.counts["left behind"] += 1
            self.faults.append(f"{command.name}, {what}: {left[:5]}")

    def crash(self, name: str, at: int) -> None:
        """Kill at the ``at``-th operation, and finish."""
        command = self.commands[name]
        folder, count = self.fresh(command), 0
        below = str(folder)

        def hook(event: str, arguments: tuple) -> None:
            nonlocal count
            if _changes(event, _absolute(arguments, folder), below):
                count += 1
                if count == at:
                    os.kill(os.getpid(), signal.SIGKILL)

        status = os.waitpid(_forked(command.words, folder, hook), 0)[1]
        self.counts["crash points"] += int(status == signal.SIGKILL)
        self.finish(command, folder, f"killed at operation {at}")

    def strike(self, name: str, rng: random.Random, most: int = 4) -> None:
        """Kill at random times, ``most`` times at the most, and finish."""
        command = self.commands[name]
        folder, moments = self.fresh(command), []
        for _ in range(rng.randint(1, most)):
            moments.append(rng.uniform(0, command.seconds))
            child = _forked(command.words, folder)
            time.sleep(moments[-1])
            os.kill(child, signal.SIGKILL)
            if os.waitpid(child, 0)[1] != signal.SIGKILL:
                break
            self.counts["random kills"] += 1
        self.finish(command, folder, f"killed after {', '.join(f'{m:.3f}' for m in moments)} s")

    def __str__(self) -> str:
        points = ", ".join(f"{c.name} {c.events} operations" for c in self.commands.values())
        names = ("crash points", "random kills", "cycles", "lost", "differing", "left behind")
        counts = ", ".join(f"{self.counts[n]} {n}" for n in names)
        return "\n".join([points, counts, *self.faults[:20]])


def _absolute(arguments: tuple, folder: Path) -> tuple:
    if not arguments or not isinstance(arguments[0], str | bytes | os.PathLike):
        return ("",)
    path = os.fsdecode(arguments[0])
    return (path if os.path.isabs(path) else str(folder / path), *arguments[1:])


# ------------------------------------------------------------------- commands


def _digest(paths: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        content = path.read_bytes()
        if path.name in ("dataset.json", "options.json"):  # hold when they were made
            record = json.loads(content)
            for made in (record, record.get("source")):
                if isinstance(made, dict) and isinstance(made.get("provenance"), dict):
                    made["provenance"].pop("started")
            content = json.dumps(record, sort_keys=True).encode()
        digest.update(path.name.encode() + content)
    return digest.hexdigest()


def _all(pattern: str) -> Callable[[Path], str]:
    return lambda folder: _digest([path for path in folder.glob(pattern) if path.is_file()])


def commands(place: Path, *, names: Sequence[str] = ("prepare", "zip", "generate", "train", "sweep")) -> Campaign:
    """The campaign's commands, with the data and the model that they need."""
    import torch

    import sims_toy.sweep.planning  # noqa: F401  (what a child would have to import again and again)
    from sims_image.data.options import Prepare
    from sims_image.data.prepare import prepare
    from sims_image.models import checkpoints
    from sims_image.models.networks import build

    torch.set_num_threads(1)
    place.mkdir(parents=True, exist_ok=True)
    data = place / "digits"
    if not data.exists():
        prepare(Prepare(source="digits", out=str(data), limit=200))
    model = place / "model"
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = build(
            model_type="SongUNet", img_resolution=8, img_channels=1, label_dim=0, model_channels=4, channel_mult=[1],
            num_blocks=1, attn_resolutions=[],
        )  # fmt: skip
        for value in network.parameters():
            torch.nn.init.normal_(value, std=0.1)
    checkpoints.save(model, network, checkpoints.Record(preset="digits"), replace=True)
    small = ("--network", "model_channels=4,num_blocks=1,channel_mult=[1],attn_resolutions=[]", "--sheet", "0")
    known = {
        "prepare": (
            ("prepare", "digits", "--holdout", "0.2", "--out", "d"),
            _all("d*/*"),
            lambda n: n.split("/")[0] in ("d", "d-heldout"),
        ),
        "zip": (
            ("prepare", "digits", "--limit", "300", "--holdout", "0.2", "--format", "edm-zip", "--out", "z.zip"),
            _all("*.zip"),
            lambda n: n in ("z.zip", "z-heldout.zip"),
        ),
        "generate": (
            ("generate", "--base", str(model), "--seeds", "0-599", "--sampler", "heun:2", "--out", "g", "--sheet", "2"),
            _all("g/*"),
            lambda n: n.split("/")[0] == "g",
        ),
        "train": (
            (
                *("train", "--preset", "digits", "--data", str(data), *small, "--budget", "1k", "--batch", "50"),
                *("--augment", "0", "--state-every", "100", "--log-every", "50", "--out", "t"),
            ),
            _all("t/snapshots/*/*/model.safetensors"),
            lambda n: n.split("/")[0] == "t" and ".part" not in n and ".new" not in n and ".old" not in n,
        ),
        "sweep": (
            (
                *("sweep", "--learner", "exact", "--omega", "0,1", "--synthetic", "50", "--trials", "60"),
                *("--generations", "3", "--chunk", "25", "--workers", "1", "--sampler", "ddim:5", "--out", "s"),
            ),
            lambda folder: _digest([p for p in folder.glob("s/*") if p.suffix in (".csv", ".parquet", ".svg")]),
            lambda n: n.split("/")[0] == "s" and ".part" not in n,
        ),
    }
    return Campaign(place / "work", {name: Command(name, *known[name]) for name in names})


def campaign(place: Path, *, kills: int, every: int, seed: int = 0, names: Sequence[str] = ()) -> Campaign:
    """Every ``every``-th crash point of what moves into place, and ``kills`` random kills over all commands."""
    made = commands(place, **({"names": names} if names else {}))
    made.place.mkdir(exist_ok=True)
    for command in made.commands.values():
        made.learn(command)
    for name in ("prepare", "zip", "generate"):
        if name in made.commands:
            for at in range(1, made.commands[name].events + 1, every):
                made.crash(name, at)
    rng, order = random.Random(seed), list(made.commands)
    while made.counts["random kills"] < kills:
        made.strike(order[made.counts["cycles"] % len(order)], rng)
    return made


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--place", default="")
    given = parser.parse_args()
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        found = campaign(Path(given.place or folder), kills=given.kills, every=given.every, seed=given.seed)
        print(f"{found}\n{time.monotonic() - began:.0f} s")
        sys.exit(bool(found.faults))
