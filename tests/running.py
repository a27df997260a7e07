"""Helpers shared by the tests of runs: generous simulators, a small frame, and plans over it."""

import asyncio
import math
import os
import signal
import threading
import time
from dataclasses import replace

import polars as pl

import claudescale as cs

MODEL = "claude-haiku-5-5"
WIDE = (60_000, 100_000_000, 100_000_000)
WIDE_LIMITS = cs.Limits(
    requests_per_minute=WIDE[0], input_tokens_per_minute=WIDE[1], output_tokens_per_minute=WIDE[2]
)


def simulator(**options):
    """Return a simulator with room for everything, ten times as fast as real time."""
    return cs.Simulator(options.pop("tier", WIDE), **{"speed": 10, "latency": 0.2, **options})


def quick(*, queue=100_000, **options):
    """Return a simulator whose batches take a fraction of a second."""
    given = {"speed": 1_000, "batch_seconds": 60.0, "batch_requests_per_minute": 10**6, **options}
    return simulator(batch_queue_requests=queue, **given)


def reviews(rows):
    """Return a frame of different texts."""
    texts = [f"Review {i}: the parcel was late." for i in range(rows)]
    return pl.DataFrame({"text": texts}, schema={"text": pl.String})


def a_plan(frame, prompt="Name the complaint: {text}", **options):
    """Return a plan with room for everything."""
    return cs.plan(frame, prompt, **{"model": MODEL, "tier": WIDE_LIMITS, "max_tokens": 64, **options})


def the_plan(rows, *, queue=None, mode="batch", **options):
    """Return a plan by batches whose calls need not wait."""
    tier = replace(WIDE_LIMITS, batch_queue_requests=queue, batch_requests_per_minute=6_000)
    return a_plan(reviews(rows), tier=tier, mode=mode, **options)


def finished(plan, client, *, ledger=None):
    """Return the finished run of a plan, without a progress bar."""
    return cs.wait(plan.run(client, ledger=ledger, progress=False))


def ended(plan, api, ledger=None, **client):
    """Return the run of a plan that has ended or was stopped."""
    try:
        return finished(plan, api.client(**client), ledger=ledger)
    except cs.RunStopped as stopped:
        return stopped.run


def paid_once(api, run, *, resumed=False):
    """Check that all rows have a reply, each was billed once, and the dollars are the server's."""
    stats, rows = api.stats, run.plan.frame.height
    assert (run.state, run.message) == ("finished", None)
    assert run.results["text"].equals(run.plan.frame["text"])
    assert run.results["reply"].null_count() == 0
    assert stats["billed_rows"] == stats["distinct_rows_billed"] == rows
    if not resumed:
        for dollars in (run.summary["dollars"].item(), run.bill["dollars"].sum()):
            assert math.isclose(dollars, stats["dollars"], rel_tol=1e-6, abs_tol=1e-9)


async def until(condition):
    """Return when `condition()` is true."""
    while not condition():  # noqa: ASYNC110 - another thread changes it
        await asyncio.sleep(0.01)


def interrupt_when(condition):
    """Interrupt this process, as Ctrl-C or a kernel's stop button does, once `condition()` is true."""

    def watch():
        while not condition():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()
