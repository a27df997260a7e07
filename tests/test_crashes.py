"""A process that ends at any point of a batch's life, then the same plan again: each row paid for once."""

import contextlib
import json
import random
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from crash_child import CRASHED, LIMITS, most_requests, the_plan
from running import finished

import claudescale as cs
from claudescale.ledger.store import Store
from claudescale.simulator import Fault

CHILD = Path(__file__).with_name("crash_child.py")


def simulator(*, queue=100_000, **options):
    """Return a simulator on which a batch and the patience for a lost one are fractions of a second."""
    given = {"speed": 1_000, "batch_seconds": 120.0, "latency": 0.2, **options}
    return cs.Simulator(
        tuple(LIMITS.values()), batch_queue_requests=queue, batch_requests_per_minute=6_000, **given
    )


def start(api, ledger, point, **options):
    """Start a process that runs the plan up to a point."""
    given = [sys.executable, CHILD, api.url, ledger, point, json.dumps(options)]
    return subprocess.Popen(given, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def crash(api, ledger, point, **options):
    """Run the plan in a process that ends at a point."""
    child = start(api, ledger, point, **options)
    said = child.communicate(timeout=120)
    assert child.returncode == CRASHED, said


def check(api, run, rows, ledger):
    """Check that every row is answered and was paid for once, by the server's account and the ledger's."""
    stats = api.stats
    assert run.state == "finished"
    assert run.results["text"].to_list() == run.plan.frame["text"].to_list()
    assert run.results["error"].null_count() == rows
    replies = run.job.replies().select("key", "reply").unique("key")
    assert replies.height == rows
    expected = pl.DataFrame({"key": run.job.work.keys}).join(replies, on="key", maintain_order="left")
    assert run.results["reply"].to_list() == expected["reply"].to_list()
    assert stats["billed_rows"] == stats["distinct_rows_billed"] == rows
    with contextlib.closing(Store(ledger)) as kept:
        final = kept.attempts(columns=["key", "final"]).filter("final")
        assert final["key"].n_unique() == final.height == rows
        assert kept.attempts()["dollars"].sum() == pytest.approx(stats["dollars"], abs=1e-9)
        assert {batch.state for batch in kept.batches()} <= {"collected", "absent"}
        for batch in kept.batches():
            assert kept.held(batch.nonce) == []


EARLY = ("before the intent", "before the create", "in the body")
LATE = (
    "before posted",
    "before the id",
    "after the id",
    "polling",
    "before results",
    "in the results",
    "results not on the disk",
    "before end_batch",
    "after end_batch",
)


@pytest.mark.parametrize("point", [*EARLY, *LATE])
def test_one_batch(tmp_path, point):
    """Wherever the process ends in the life of its only batch, the next run pays for no row again."""
    with simulator() as api:
        crash(api, tmp_path / "l", point, rows=40)
        run = finished(the_plan(40), api.client(), ledger=tmp_path / "l")
        check(api, run, 40, tmp_path / "l")
        assert api.stats["batches_created"] == 1


@pytest.mark.parametrize("fault", ["create_hang", "create_lost", "create_failed_after", "create_failed"])
def test_no_answer_and_then_the_end(tmp_path, fault):
    """A create that was not answered as it should be, and the process ends before it notes anything."""
    with simulator(faults={fault: Fault(tries=[1])}) as api:
        crash(api, tmp_path / "l", "accepted" if fault == "create_hang" else "before posted", rows=40)
        run = finished(the_plan(40), api.client(), ledger=tmp_path / "l")
        check(api, run, 40, tmp_path / "l")


@pytest.mark.parametrize("queue", [None, 100])
@pytest.mark.parametrize(
    "point",
    [
        "before the create",
        "in the body",
        "before posted",
        "before the id",
        "in the results",
        "after end_batch",
    ],
)
def test_in_the_middle_of_several_batches(tmp_path, point, queue, monkeypatch):
    """The end comes at the second batch of several, which were cut by count or by the queue."""
    options = {"rows": 240, "queue": queue, "times": 2}
    if queue is None:
        options["most"] = 60
        monkeypatch.setattr("claudescale.api.catalog.BATCH", most_requests(60))
    with simulator(queue=queue or 100_000) as api:
        crash(api, tmp_path / "l", point, **options)
        run = finished(the_plan(240, queue=queue), api.client(), ledger=tmp_path / "l")
        check(api, run, 240, tmp_path / "l")
        assert api.stats["refused"] == {}


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("in the body", "in the results"),
        ("before posted", "before posted"),
        ("before posted", "before end_batch"),
        ("before the id", "polling"),
        ("polling", "in the results"),
        ("in the results", "in the results"),
        ("in the results", "before end_batch"),
        ("before end_batch", "after end_batch"),
    ],
)
def test_two_ends_one_after_the_other(tmp_path, first, second):
    """The run that takes over ends suddenly as well, and the third pays for no row again."""
    with simulator() as api:
        crash(api, tmp_path / "l", first, rows=80, queue=50)
        crash(api, tmp_path / "l", second, rows=80, queue=50)
        run = finished(the_plan(80, queue=50), api.client(), ledger=tmp_path / "l")
        check(api, run, 80, tmp_path / "l")


@pytest.mark.parametrize("seed", range(4))
def test_kills_at_any_moment(tmp_path, seed):
    """Whenever the process is killed, three times over, with lost answers besides: each row is paid once."""
    drawn = random.Random(seed)
    faults = {"create_lost": 0.3, "create_failed_after": 0.2, "create_failed": 0.2, "results_cut": 0.2}
    with simulator(queue=80, seed=seed, faults=faults) as api:
        for _ in range(3):
            child = start(api, tmp_path / "l", "nowhere", rows=200, queue=80)
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.communicate(timeout=drawn.uniform(0.5, 3.5))
            child.kill()
            child.communicate()
        run = finished(the_plan(200, queue=80), api.client(), ledger=tmp_path / "l")
        check(api, run, 200, tmp_path / "l")
