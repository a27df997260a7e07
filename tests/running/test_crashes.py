"""A process killed at any point of a batch's life, then the same plan again: each row is paid once."""

import inspect
import itertools
import multiprocessing
import os
import random
import sys
from contextlib import closing
from signal import SIGKILL

import anthropic
import pytest
from running import finished, paid_once, quick, the_plan

from claudescale.api import client as wire
from claudescale.ledger.store import Store
from claudescale.prompts.requests import Work
from claudescale.running import batch_rules
from claudescale.running.batches import Batches
from claudescale.running.job import Job
from claudescale.simulator import Fault

pytestmark = pytest.mark.slow
POINTS = {
    "before the intent": (Store, "intend", "before"),
    "before the create": (Store, "intend", "after"),
    "in the body": (Work, "messages", "before"),
    "before posted": (Batches, "_created", "after"),
    "before the id": (Store, "note", "before"),
    "after the id": (Store, "note", "after"),
    "polling": (Batches, "_look_at", "before"),
    "before results": (Batches, "_collect", "before"),
    "results not on the disk": (Store, "extend", "before"),
    "in the results": (Job, "record_many", "after"),
    "before the close": (Batches, "_close", "before"),
    "after the close": (Batches, "_close", "after"),
}
"""Where a process is killed: the method, and whether before it does anything or when it returns."""


def run(url, ledger, point, times=1, **plan):
    """Run a plan to its end, or until it reaches a point, or any of them, for the n-th time."""
    wire._PART_BYTES, wire._BLOCK_BYTES, batch_rules._PART_BYTES = 1_000, 4_000, 1_000
    passed = itertools.count(1)
    for name, (owner, method, when) in POINTS.items():
        if point in {name, "any"}:
            _strike(owner, method, when, passed, times)
    client = anthropic.AsyncAnthropic(base_url=url, api_key="simulated", max_retries=0)
    finished(the_plan(**plan), client, ledger=ledger)


def _strike(owner, method, when, passed, times):
    """Count the calls of a method, and kill this process at one of them."""
    real = getattr(owner, method)

    def count(moment):
        if moment == when and next(passed) == times:
            os.kill(os.getpid(), SIGKILL)

    async def awaited(*given):
        count("before")
        result = await real(*given)
        count("after")
        return result

    def called(*given):
        count("before")
        result = real(*given)
        count("after")
        return result

    setattr(owner, method, awaited if inspect.iscoroutinefunction(real) else called)


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that starts processes, forked from a single-threaded one with all imports done."""
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["test_crashes"])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))

    def start(api, point, **options):
        order = {"url": api.url, "ledger": tmp_path / "l", "point": point, **options}
        process = processes.Process(target=run, kwargs=order)
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


@pytest.mark.parametrize("point", POINTS)
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
