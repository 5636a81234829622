"""Commands in processes of their own, one or several as torchrun starts them."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Python for the most memory (kB) that its process has had; getrusage's begins with what the parent had when it forked
PEAK = 'int(open("/proc/self/status").read().partition("VmHWM:")[2].split()[0])'


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path, **more}


#: a command that kills itself when one more file of a name's ending than it may have is about to be in its place
_KILLED = """
import os, runpy, signal, sys
left = [{count}]

def watch(event, words):
    if event == "os.rename" and os.fspath(words[1]).endswith({ending!r}):
        left[0] -= 1
        if left[0] < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
runpy.run_module({module!r}, run_name="__main__", alter_sys=True)
"""


#: a clean process that has imported torch and these, of which commands are forked: to import takes most of their time
_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([
    "tests.image.tiny", "sims_image.metrics.evaluate", "sims_image.training.session", "sims_toy.sweep.planning",
    "diffusers.models.autoencoders.autoencoder_kl",
])  # fmt: skip


def _become(words: Sequence[str], env: Mapping[str, str], out: str) -> None:
    """Do in this process what ``python WORDS`` does; what it says goes to OUT/1 and OUT/2."""
    os.environ.clear()
    os.environ.update(env)
    for number in (1, 2):
        os.dup2(os.open(f"{out}/{number}", os.O_WRONLY | os.O_CREAT), number)
    how, code, *rest = words
    sys.argv = [how, *rest]
    if how == "-m":
        runpy.run_module(code, run_name="__main__", alter_sys=True)
    else:
        exec(code, {"__name__": "__main__"})


class Forked:
    """``python -c CODE ...`` or ``python -m MODULE ...`` in a fork; of `subprocess.Popen` what the tests use."""

    def __init__(self, words: Sequence[str], env: Mapping[str, str]) -> None:
        self._out = tempfile.TemporaryDirectory()
        self._process = _FORKS.Process(target=_become, args=(words, env, self._out.name), daemon=True)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    poll = returncode.fget

    def kill(self) -> None:
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("forked", timeout)
        with self._out:  # and away with it
            said = [Path(self._out.name, name) for name in "12"]
            out, error = (path.read_text() if path.exists() else "" for path in said)
        return out, error


def killed(module: str, words: Sequence[str], *, ending: str, count: int) -> None:
    """Run ``python -m MODULE WORDS``, killed before its file number ``count + 1`` of that ending is in its place."""
    process = Forked(["-c", _KILLED.format(count=count, ending=ending, module=module), *words], environment())
    _, error = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, error


def _fresh(words: Sequence[str], env: Mapping[str, str]) -> subprocess.Popen[str]:
    """A process of a Python of its own."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([sys.executable, *words], env=env, **options)


Started = Forked | subprocess.Popen[str]


def launch(words: Sequence[str], world: int = 1, *, fresh: bool = False) -> list[Started]:
    """Start ``python WORDS`` once for each rank, forked or ``fresh``, with a Python of its own that imports again."""
    begin = _fresh if fresh else Forked
    if world == 1:
        return [begin(words, environment())]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [begin(words, environment(RANK=str(r), LOCAL_RANK=str(r), **common)) for r in range(world)]


def finish(processes: Sequence[Started]) -> list[str]:
    """Wait for all; what each said."""
    said = [p.communicate(timeout=300) for p in processes]
    assert [p.returncode for p in processes] == [0] * len(processes), said
    return [out for out, _ in said]


def kill(processes: Sequence[Started]) -> None:
    """SIGKILL to all of them."""
    for p in processes:
        p.kill()
    for p in processes:
        p.communicate()
