"""A command that is killed at any instant and repeated gives what an undisturbed one gives (`tests.kills`)."""

import multiprocessing
import os
import signal

import pytest
from tqdm import tqdm

from tests.kills import _forked, campaign


def _clean(found):
    assert not found.faults, str(found)
    assert found.counts["lost"] == found.counts["differing"] == found.counts["left behind"] == 0


@pytest.mark.timeout(120)
def test_a_child_killed_within_its_progress_bar_does_not_stop_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tqdm, "_lock", multiprocessing.RLock(), raising=False)  # as tqdm's own, shared with children
    if not (child := os.fork()):
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (tmp_path / "work").mkdir()
    words = ("prepare", "digits", "--limit", "50", "--out", "d")
    assert os.waitpid(_forked(words, tmp_path / "work"), 0)[1] == 0


def test_prepare_comes_back_from_some_kills(tmp_path):
    found = campaign(tmp_path, kills=20, every=9, names=("prepare", "zip"))
    assert found.counts["random kills"] >= 20 and found.counts["crash points"] >= 8
    _clean(found)


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_every_command_comes_back_from_every_kill(tmp_path):
    found = campaign(tmp_path, kills=200, every=1)
    points = sum(found.commands[name].events for name in ("prepare", "zip", "generate"))
    assert found.counts["random kills"] >= 200 and found.counts["crash points"] >= 0.98 * points
    print(found)
    _clean(found)
