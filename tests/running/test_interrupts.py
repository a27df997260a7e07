"""Ctrl-C in a script, stop() and leave(): calls in flight are awaited, and everything billed is kept."""

import asyncio
import itertools
import os
import signal
import subprocess
import sys

import pytest
from running import a_plan, finished, reviews, simulator, until

import claudescale as cs

SCRIPT = """
import asyncio, sys, anthropic, claudescale as cs
from running import interrupt_when, a_plan, reviews
door, url, path, times = sys.argv[1:]
client = anthropic.AsyncAnthropic(api_key="simulated", base_url=url)
plan = a_plan(reviews(5_000), concurrency=20)
runs, start = [], cs.Plan.start
def remembered(self, *args, **named):
    runs.append(start(self, *args, **named))
    return runs[-1]
cs.Plan.start = remembered
given = {"ledger": path, "progress": False}
async def main():
    await plan.run(client, **given)
# No frame is asked for: Polars would be interrupted in that thread, too.
interrupt_when(lambda: runs and runs[0].counts.answered > 50)
if times == "2":
    interrupt_when(lambda: runs and runs[0].job.asked)
match door:
    case "wait": cs.wait(plan.run(client, **given))
    case "asyncio": asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("door", "times"), [("asyncio", 1), ("asyncio", 2), ("wait", 2)])
def test_a_script_that_is_interrupted_ends_with_one_sentence(path, door, times):
    """It says how many rows are kept, where, and how to resume; the ledger has every billed row.

    A second interrupt ends the wait at once, even if calls take minutes, and the ledger is intact.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    calls = itertools.count()
    with simulator(latency=lambda *_: 0.2 if times == 1 or next(calls) < 100 else 3_000.0) as api:
        command = [sys.executable, "-c", SCRIPT, door, api.url, str(path), str(times)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=200 / times**2
        )
        with cs.Ledger(path) as ledger:
            billed, kept = api.stats["billed_rows"], ledger.attempts()["reply"].count()
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Interrupted") == 1
    if times == 1:
        assert (done.returncode, kept) == (130, billed)
        kept = f"{billed:,} of 5,000 rows answered and kept in {path}"
        told = f"Interrupted: {kept}; the same command sends only what is missing."
        assert done.stderr.split("\n")[1:-1] == [told]
    else:
        assert done.returncode in {130, -signal.SIGINT}
        assert 50 < kept <= billed


@pytest.mark.parametrize("answered", [None, 0, 60])
def test_what_is_in_flight_is_awaited_and_kept(answered):
    """stop() at any moment sends nothing more, and the results include everything that the server bills."""

    async def main(api):
        run = a_plan(reviews(2_000), concurrency=20).start(api.client(), ledger=None, progress=False)
        if answered is not None:
            await until(lambda: run.state == "running" and run.counts.answered >= answered)
        await asyncio.to_thread(run.stop)
        return await run

    with simulator() as api:
        run = asyncio.run(main(api))
        assert (answered or 0) <= run.results["reply"].count() == api.stats["billed_rows"] < 2_000
    assert run.state == "stopped"
    assert run.summary["missing"].item() == (run.results["error"] == "not_sent").sum() > 0
    assert "not kept, as there is no ledger" in run.kept


def test_a_run_that_waits_for_anothers_rows_can_be_stopped(path):
    """It ends at once, while the other goes on with the rows that it holds."""

    async def main(api):
        plan, given = a_plan(reviews(5)), {"ledger": path, "progress": False}
        one = plan.start(api.client(), **given)
        await until(lambda: api.stats["calls"] == 5)
        other = plan.start(api.client(), **given)
        await until(lambda: other.state == "running")
        await asyncio.sleep(0.5)
        other.stop()
        async with asyncio.timeout(5):
            await other
        assert (other.state, one.state) == ("stopped", "running")
        await one

    with simulator(latency=100.0) as api:
        asyncio.run(main(api))


def test_a_wait_that_is_given_up_leaves_the_batches_at_the_api(path):
    """A time-out around ``await run`` cancels no batch: the same plan collects it."""

    async def main(api):
        run = plan.start(api.client(), ledger=path, progress=False)
        await until(lambda: api.stats["batches_created"])
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await run
        return run.state

    with simulator(speed=1_000, batch_seconds=3_000) as api:
        plan = a_plan(reviews(4), mode="batch")
        assert asyncio.run(main(api)) == "left"
        assert finished(plan, api.client(), ledger=path).counts.answered == 4
        assert api.stats["batches_created"] == 1


def test_the_sentence_says_that_batches_continue_at_the_api(path):
    """An interrupt leaves the batch; the same command collects it."""
    with simulator(speed=1_000, batch_seconds=600) as api:
        plan = a_plan(reviews(4), mode="batch")
        run = cs.wait(plan.run(api.client(), ledger=path, progress=False, wait=False))
        run.leave()
        assert "collects the batches, which continue at the API" in cs.wait(run).kept
        assert finished(plan, api.client(), ledger=path).counts.answered == 4
        assert (run.state, api.stats["billed_rows"]) == ("left", 4)
