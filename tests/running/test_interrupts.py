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
from claudescale.running.job import Job

SCRIPT = """
import asyncio, sys, anthropic, claudescale as cs
from running import interrupt_when, a_plan, reviews
door, url, path, times = sys.argv[1:]
async def main():
    client = anthropic.AsyncAnthropic(api_key="simulated", base_url=url)
    run = a_plan(reviews(5_000), concurrency=20).start(client, ledger=path, progress=False)
    # No frame is asked for: Polars would be interrupted in that thread, too.
    interrupt_when(lambda: run.counts.answered > 50)
    if times == "2":
        interrupt_when(lambda: run.job.asked)
    await run
{"wait": cs.wait, "asyncio": asyncio.run}[door](main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("door", "times"), [("asyncio", 1), ("asyncio", 2), ("wait", 2)])
def test_a_script_that_is_interrupted_ends_with_one_sentence(path, door, times, monkeypatch):
    """It says how many rows are kept, where, and how to resume; the ledger has every billed row.

    A second interrupt ends the wait at once, even if calls take minutes, and the ledger is intact.
    """
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    calls = itertools.count()
    with simulator(latency=lambda *_: 0.2 if times == 1 or next(calls) < 100 else 3_000.0) as api:
        command = [sys.executable, "-c", SCRIPT, door, api.url, str(path), str(times)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200 / times**2)
        with cs.Ledger(path) as ledger:
            billed, kept = api.stats["billed_rows"], ledger.attempts()["reply"].count()
    assert "Traceback" not in done.stderr
    assert done.stderr.count("Interrupted") == 1
    if times == 1:
        assert (done.returncode, kept) == (130, billed)
        words = f"Interrupted: {billed:,} of 5,000 rows answered and kept in {path}; the same command"
        assert done.stderr.split("\n")[1:-1] == [f"{words} sends only what is missing."]
    else:
        assert done.returncode in {130, -signal.SIGINT}
        assert 50 < kept <= billed


@pytest.mark.parametrize(("answered", "is_held"), [(0, False), (60, False), (0, True)])
def test_what_is_in_flight_is_awaited_and_kept(answered, is_held, monkeypatch):
    """stop() at any moment sends nothing more, and the results include everything that the server bills."""
    if is_held:  # the rows, by another run
        monkeypatch.setattr(Job, "claimed", lambda _, rows: rows.clear())

    async def main(api):
        run = a_plan(reviews(2_000), concurrency=20).start(api.client(), ledger=None, progress=False)
        await until(lambda: run.counts.answered >= answered and (run.job.following or not is_held))
        await asyncio.to_thread(run.stop)
        return await run

    with simulator() as api:
        run = asyncio.run(main(api))
        assert answered <= run.results["reply"].count() == api.stats["billed_rows"] < 2_000
    assert run.state == "stopped"
    assert run.summary["missing"].item() == (run.results["error"] == "not_sent").sum() > 0
    assert "not kept, as there is no ledger" in run.kept


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
