"""A process killed at any point of a batch's life, then the same plan again: each row is paid once."""

import multiprocessing
import os
import random
import sys
from contextlib import closing
from signal import SIGKILL

import crash_child
import pytest
from batch_runs import paid_once, quick, the_plan
from running import finished

from claudescale.ledger.store import Store
from claudescale.simulator import Fault

pytestmark = pytest.mark.slow


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts processes, forked from a single-threaded one with all imports done."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["crash_child"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    def start(api, point, **options):
        order = {"url": api.url, "ledger": tmp_path / "l", "point": point, **options}
        process = processes.Process(target=crash_child.run, kwargs=order)
        process.start()
        return process

    return start


def check(api, ledger, rows, **plan):
    """Run the plan again: each row is answered and paid for once, by the server's account and the file's."""
    run = finished(the_plan(rows, **plan), api.client(), ledger=ledger)
    paid_once(api, run, resumed=True)
    with closing(Store(ledger)) as kept:
        final = kept.attempts(columns=["key", "reply", "final"]).filter("final")
        assert final["key"].n_unique() == final.height == rows
        assert set(run.results["reply"]) == set(final["reply"])
        assert kept.attempts()["dollars"].sum() == pytest.approx(api.stats["dollars"], abs=1e-9)
        assert {batch.state for batch in kept.batches()} <= {"collected", "absent"}
        assert not any(kept.held(batch.nonce) for batch in kept.batches())


@pytest.mark.parametrize("point", crash_child.POINTS)
def test_one_batch(tmp_path, start, point):
    """At whatever point of its only batch the process is killed, the next run pays for no row again."""
    with quick(batch_seconds=120.0) as api:
        process = start(api, point, rows=20, times=3 if point == "in the body" else 1)
        process.join()
        assert process.exitcode == -SIGKILL
        check(api, tmp_path / "l", 20)
        assert api.stats["batches_created"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_killed_again_and_again_at_any_step(tmp_path, start, seed):
    """Runs that take over are killed as well, with lost answers in addition: each row is paid once."""
    drawn = random.Random(seed)
    faults = {"create_lost": Fault(tries=[2]), "create_failed": Fault(tries=[3])}
    with quick(queue=40, seed=seed, faults=faults) as api:
        for _ in range(4):
            process = start(api, "any", rows=60, queue=20, times=drawn.randint(1, 30))
            process.join()
            assert process.exitcode in {-SIGKILL, 0}  # few steps may be left
        check(api, tmp_path / "l", 60, queue=20)


def test_two_processes_at_once(tmp_path, start):
    """They share the rows, and each is paid for once."""
    with quick(queue=30) as api:
        both = [start(api, "nowhere", rows=60, queue=15) for _ in range(2)]
        for process in both:
            process.join()
            assert process.exitcode == 0
        check(api, tmp_path / "l", 60, queue=15)
