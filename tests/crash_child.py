"""A process that runs a plan by batches and ends without a word at one point; see `test_crashes`.

``python crash_child.py <url> <ledger> <point> <options as JSON>``
"""

import asyncio
import json
import os
import sys
import threading
import time
import urllib.request
from dataclasses import replace

import anthropic
from running import a_plan, reviews

import claudescale as cs
from claudescale.api import catalog
from claudescale.api import client as wire
from claudescale.api.client import BatchWire
from claudescale.ledger.store import Store
from claudescale.running import batch_rules
from claudescale.running.batches import Batches
from claudescale.running.job import Job

CRASHED = 77
LIMITS = {"requests_per_minute": 60_000, "input_tokens_per_minute": 10**8, "output_tokens_per_minute": 10**8}


def the_plan(rows, *, queue=None, mode="batch", **options):
    """Return the plan that child and parent run."""
    tier = cs.Limits(**LIMITS, batch_queue_requests=queue, batch_requests_per_minute=6_000)
    return a_plan(reviews(rows), tier=tier, mode=mode, **options)


def most_requests(most):
    """Return facts of batches by which fewer requests go into one."""
    return replace(catalog.BATCH, max_requests=most)


def _end(*_, **__):
    os._exit(CRASHED)


def _before(owner, name, times=1):
    """End at the call number `times` of a method, before it does anything."""
    real, left = getattr(owner, name), [times]

    def called(*given, **named):
        left[0] -= 1
        return real(*given, **named) if left[0] else _end()

    setattr(owner, name, called)


def _after(owner, name, times=1):
    """End when the call number `times` of a method returns."""
    real, left = getattr(owner, name), [times]

    def called(*given, **named):
        found = real(*given, **named)
        left[0] -= 1
        return found if left[0] else _end()

    async def awaited(*given, **named):
        found = await real(*given, **named)
        left[0] -= 1
        return found if left[0] else _end()

    setattr(owner, name, awaited if asyncio.iscoroutinefunction(real) else called)


def _in_the_body(times):
    """End when half of a body is sent."""
    real, left = BatchWire.create, [times]
    batch_rules._PART_BYTES = 1_000

    async def half(parts):
        kept = [part async for part in parts]
        for part in kept[: len(kept) // 2]:
            yield part
        _end()

    async def create(self, parts, length):
        left[0] -= 1
        return await real(self, parts if left[0] else half(parts), length)

    BatchWire.create = create


def _once_accepted(url, times):
    """End as soon as the server counts that many batches."""

    def watch():
        created = 0
        while created < times:
            with urllib.request.urlopen(f"{url}/simulator/stats") as answer:
                created = json.load(answer)["batches_created"]
            time.sleep(0.01)
        _end()

    threading.Thread(target=watch, daemon=True).start()


def _while_it_waits(times):
    """End at a look at batches that are not over."""
    real, left = Batches._poll, [times]

    async def poll(self, batches):
        await real(self, batches)
        left[0] -= any(batch.state == "in_progress" for batch in self.known)
        if not left[0]:
            _end()

    Batches._poll = poll


def _small_blocks():
    wire._PART_BYTES, wire._BLOCK_BYTES = 1_000, 4_000


def prepare(point, url, times):
    """Make the process end at a point, the time it comes there for the `times`-th time."""
    _small_blocks()
    ways = {
        "before the intent": lambda: _before(Store, "intend", times),
        "before the create": lambda: _after(Store, "intend", times),
        "in the body": lambda: _in_the_body(times),
        "accepted": lambda: _once_accepted(url, times),
        "before posted": lambda: _after(Batches, "_created", times),
        "before the id": lambda: _before(Store, "note", times),
        "after the id": lambda: _after(Store, "note", times),
        "polling": lambda: _while_it_waits(times),
        "before results": lambda: _before(Batches, "_collect", times),
        "in the results": lambda: _after(Job, "record_many", times),
        "results not on the disk": lambda: _before(Store, "extend", times),
        "before end_batch": lambda: _before(Batches, "_close", times),
        "after end_batch": lambda: _after(Batches, "_close", times),
        "nowhere": lambda: None,
    }
    ways[point]()


def main(url, ledger, point, options):
    """Run the plan to its end, or to the point."""
    options = json.loads(options)
    if "most" in options:
        catalog.BATCH = most_requests(options.pop("most"))
    prepare(point, url, options.pop("times", 1))
    client = anthropic.AsyncAnthropic(base_url=url, api_key="simulated", max_retries=0)
    asyncio.run(_run(the_plan(**options), client, ledger))


async def _run(plan, client, ledger):
    await plan.run(client, ledger=ledger, progress=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
