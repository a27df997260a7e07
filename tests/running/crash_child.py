"""A process that runs plans by batches in children, which are killed at one step; see `test_crashes`.

Each line of its input is a JSON list of orders, that run at once; each line of its output has their statuses.
It imports once for all of them, and no thread is in it when it forks.
"""

import asyncio
import json
import os
import signal
import sys
import traceback

import anthropic
from batch_runs import the_plan

import claudescale as cs
from claudescale.api import client as wire
from claudescale.ledger.store import Store
from claudescale.running import batch_rules
from claudescale.running.batches import Batches
from claudescale.running.job import Job

POINTS = {
    "before the intent": (Store, "intend", "before"),
    "before the create": (Store, "intend", "after"),
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
"""Where a child is killed: the method, and whether before it does anything or when it returns."""


class Countdown:
    """Kills this process at the so-manieth call."""

    def __init__(self, times):
        self.left = times

    def __call__(self):
        self.left -= 1
        if not self.left:
            os.kill(os.getpid(), signal.SIGKILL)


def strike(owner, name, when, countdown):
    """Count the calls of a method, before they do anything or when they return."""
    real = getattr(owner, name)

    def called(*given, **named):
        if when == "before":
            countdown()
        found = real(*given, **named)
        if asyncio.iscoroutine(found):
            return awaited(found)
        if when == "after":
            countdown()
        return found

    async def awaited(found):
        found = await found
        if when == "after":
            countdown()
        return found

    setattr(owner, name, called)


def _in_the_body(countdown):
    """Count bodies of which half was sent."""
    real = batch_rules.body

    def body(*given):
        parts = list(real(*given))
        for number, part in enumerate(parts):
            if number == len(parts) // 2:
                countdown()
            yield part

    batch_rules.body = body


def _run(order):
    """Run the plan of an order to its end, or to its point."""
    wire._PART_BYTES, wire._BLOCK_BYTES, batch_rules._PART_BYTES = 1_000, 4_000, 1_000
    url, ledger, point = order.pop("url"), order.pop("ledger"), order.pop("point")
    countdown = Countdown(order.pop("times", 1))
    if point == "in the body":
        _in_the_body(countdown)
    for owner, name, when in POINTS.values() if point == "any" else filter(None, [POINTS.get(point)]):
        strike(owner, name, when, countdown)
    client = anthropic.AsyncAnthropic(base_url=url, api_key="simulated", max_retries=0)
    cs.wait(the_plan(**order).run(client, ledger=ledger, progress=False))


def _child(order):
    """Return the process that carries out an order."""
    if child := os.fork():
        return child
    status = 1
    try:
        _run(order)
        status = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        os._exit(status)


if __name__ == "__main__":
    for line in sys.stdin:
        children = [_child(order) for order in json.loads(line)]
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(statuses), flush=True)
