"""Commands in processes of their own, one or several as torchrun starts them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
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


def killed(module: str, words: Sequence[str], *, ending: str, count: int) -> None:
    """Run ``python -m MODULE WORDS``, killed before its file number ``count + 1`` of that ending is in its place."""
    code = _KILLED.format(count=count, ending=ending, module=module)
    done = subprocess.run([sys.executable, "-c", code, *words], env=environment(), capture_output=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


def launch(words: Sequence[str], world: int = 1) -> list[subprocess.Popen[str]]:
    """Start ``python WORDS`` once for each rank."""
    command = [sys.executable, *words]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    if world == 1:
        return [subprocess.Popen(command, env=environment(), **options)]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        subprocess.Popen(command, env=environment(RANK=str(r), LOCAL_RANK=str(r), **common), **options)
        for r in range(world)
    ]


def finish(processes: Sequence[subprocess.Popen[str]]) -> list[str]:
    """Wait for all; what each said."""
    said = [p.communicate(timeout=300) for p in processes]
    assert [p.returncode for p in processes] == [0] * len(processes), said
    return [out for out, _ in said]


def kill(processes: Sequence[subprocess.Popen[str]]) -> None:
    """SIGKILL to all of them."""
    for p in processes:
        p.send_signal(signal.SIGKILL)
    for p in processes:
        p.communicate()
