"""A command that is killed at any instant and repeated gives what an undisturbed one gives (`tests.kills`)."""

import pytest

from tests.kills import campaign


def _clean(found):
    assert not found.faults, str(found)
    assert found.counts["lost"] == found.counts["differing"] == found.counts["left behind"] == 0


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
