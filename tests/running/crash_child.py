"""A plan by batches in a process of its own that is killed at one step; see `test_crashes`."""

import inspect
import itertools
import os
import signal

import anthropic
from batch_runs import the_plan

import claudescale as cs
from claudescale.api import client as wire
from claudescale.ledger.store import Store
from claudescale.prompts.requests import Work
from claudescale.running import batch_rules
from claudescale.running.batches import Batches
from claudescale.running.job import Job

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
    cs.wait(the_plan(**plan).run(client, ledger=ledger, progress=False))


def _strike(owner, method, when, passed, times):
    """Count the calls of a method, and kill this process at one of them."""
    real = getattr(owner, method)

    def count(moment):
        if moment == when and next(passed) == times:
            os.kill(os.getpid(), signal.SIGKILL)

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
