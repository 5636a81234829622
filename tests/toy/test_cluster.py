"""Past one machine: the same cells on a real local Dask cluster of two worker processes, one of them killed mid-run."""

import os
import signal
import threading
import time

import numpy as np
import pytest

from sims_core import InputError
from sims_core.lab import pool
from sims_toy.grid import run as experiment
from sims_toy.networks.settings import NetworkSettings
from sims_toy.sweep import plan
from sims_toy.sweep.options import Sweep

distributed = pytest.importorskip("distributed", reason="needs the extra 'cluster'")
pytestmark = pytest.mark.filterwarnings("default")  # Dask's own warnings are not ours

TINY = Sweep(
    omega="0,2",
    synthetic="50",
    real_size="80",
    trials=12,
    generations=2,
    network=NetworkSettings(steps=60, batch=16, width=8, backend="torch"),
)


def test_a_killed_worker_does_not_change_the_table():
    exp = plan(TINY).experiment
    reference = experiment.run(exp)["w2"]
    cluster = distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None)
    with cluster:
        victim = next(iter(cluster.workers.values())).pid
        killed = threading.Event()

        def kill():
            with distributed.Client(cluster.scheduler_address) as client:
                while not any(client.processing().values()):  # mid-run: tasks are being worked on
                    time.sleep(0.01)
            os.kill(victim, signal.SIGKILL)
            killed.set()

        thread = threading.Thread(target=kill)
        thread.start()
        found = experiment.run(exp, scheduler=cluster.scheduler_address, chunk=2)["w2"]
        thread.join(timeout=60)
    assert killed.is_set()
    np.testing.assert_array_equal(found, reference)


def test_no_scheduler_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(pool, "PATIENCE", 2)
    with pytest.raises(InputError, match=r"scheduler.*no Dask scheduler answers") as error:
        experiment.run(plan(TINY).experiment, scheduler="tcp://127.0.0.1:9")
    assert "\n" not in str(error.value)
