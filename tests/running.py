"""Helpers shared by the tests of runs: a generous simulator, a small frame, and a plan over it."""

import asyncio
import os
import signal
import threading
import time

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


def reviews(rows):
    """Return a frame of different texts."""
    texts = [f"Review {i}: the parcel was late." for i in range(rows)]
    return pl.DataFrame({"text": texts}, schema={"text": pl.String})


def a_plan(frame, prompt="Name the complaint: {text}", **options):
    """Return a plan with room for everything."""
    return cs.plan(frame, prompt, **{"model": MODEL, "tier": WIDE_LIMITS, "max_tokens": 64, **options})


def finished(plan, client, *, ledger=None):
    """Return the finished run of a plan, without a progress bar."""
    return cs.wait(plan.run(client, ledger=ledger, progress=False))


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
