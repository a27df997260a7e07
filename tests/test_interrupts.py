"""Ctrl-C in a script: one sentence, the status of an interrupted program, and all answers kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest
from running import simulator

import claudescale as cs

SCRIPT = """
import asyncio, sys, anthropic, claudescale as cs, polars as pl
from running import interrupt_when, a_plan, reviews
door, url, path, mode, times = sys.argv[1:]
client = anthropic.AsyncAnthropic(api_key="simulated", base_url=url)
plan = a_plan(reviews(20_000), concurrency=20, mode=mode)
runs, start = [], cs.Plan.start
def remembered(self, *args, **named):
    runs.append(start(self, *args, **named))
    return runs[-1]
cs.Plan.start = remembered
given = {"ledger": path or None, "progress": False}
async def main():
    await plan.run(client, **given)
def out(run):
    return getattr(run.job.batches, "open", {})
for _ in range(int(times)):
    # No frame is asked for: Polars would be interrupted in that thread, too.
    interrupt_when(lambda: runs and (runs[0].counts.answered > 50 or out(runs[0])))
match door:
    case "wait": cs.wait(plan.run(client, **given))
    case "result": plan.start(client, **given).result()
    case "asyncio": asyncio.run(main())
"""


CAUGHT = """
from claudescale import loops
try:
    raise KeyboardInterrupt("x")
except KeyboardInterrupt as error:
    loops.show_as(error, "one line")
raise ValueError("as ever")
"""


def interrupted(door, path="", mode="live", times=1):
    """Return the ended process of a script that was interrupted, and what the simulator billed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with simulator(batch_seconds=100_000) as api:
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, door, api.url, str(path), mode, str(times)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done, api.stats["billed_rows"]


@pytest.mark.parametrize("door", ["wait", "result", "asyncio"])
def test_a_script_that_is_interrupted_ends_with_one_sentence(door, path):
    """How many rows are kept, where, and how to resume, in one line; the ledger has them all."""
    done, billed = interrupted(door, path)
    assert done.returncode == 130, done.stderr
    (line,) = done.stderr.split("\n")[1:-1]
    assert line == (
        f"Interrupted: {billed:,} of 20,000 rows are answered and kept in {path}; the same command sends "
        "only what is missing."
    )
    with cs.Ledger(path) as ledger:
        assert ledger.attempts()["reply"].count() == billed


def test_an_interrupt_without_a_ledger_says_that_nothing_is_kept():
    """Without a ledger the sentence names what would keep replies."""
    done, _ = interrupted("wait")
    assert done.returncode == 130
    assert "not kept, as there is no ledger" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_while_batches_are_waited_for(path):
    """The batches go on at the API, and the sentence says that the same command collects them."""
    done, _ = interrupted("wait", path, mode="batch")
    assert done.returncode == 130
    assert "collects the batches, which go on at the API" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_interrupt_does_not_wait(path):
    """Whoever interrupts twice is not kept waiting, has no traceback, and the ledger is whole."""
    done, billed = interrupted("wait", path, times=2)
    assert done.returncode in {130, -signal.SIGINT}
    assert "Traceback" not in done.stderr
    with cs.Ledger(path) as ledger:
        assert 50 < ledger.attempts()["reply"].count() <= billed


def test_an_interrupt_that_is_caught_is_an_ordinary_one():
    """It is a KeyboardInterrupt; what ends a script otherwise is shown as ever."""
    done = subprocess.run([sys.executable, "-c", CAUGHT], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.rstrip().endswith("ValueError: as ever")
    assert "one line" not in done.stderr
