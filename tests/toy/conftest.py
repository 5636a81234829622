import pytest


@pytest.fixture
def undrawn(monkeypatch):
    """A sweep's figures take seconds, and are not what is looked at."""
    monkeypatch.setattr("sims_toy.sweep.report.draw", lambda *_: [])
