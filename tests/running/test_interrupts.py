"""Ctrl-C in a script, stop() and leave(): what is in flight is awaited, and all that was billed is kept."""

import asyncio
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
for _ in range(int(times)):
    # No frame is asked for: Polars would be interrupted in that thread, too.
    interrupt_when(lambda: runs and runs[0].counts.answered > 50)
match door:
    case "wait": cs.wait(plan.run(client, **given))
    case "asyncio": asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("door", "times"), [("asyncio", 1), ("asyncio", 2), ("wait", 2)])
def test_a_script_that_is_interrupted_ends_with_one_sentence(path, door, times):
    """How many rows are kept, where, and how to resume; the ledger has every row that was billed.

    Whoever interrupts twice at once is not kept waiting, and the ledger is whole.
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    with simulator() as api:
        command = [sys.executable, "-c", SCRIPT, door, api.url, str(path), str(times)]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=200
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


@pytest.mark.slow
def test_what_is_in_flight_is_awaited_and_kept():
    """stop(), from any thread, sends nothing more; all that the server bills is in the results."""

    async def main(api):
        run = a_plan(reviews(2_000), concurrency=20).start(api.client(), ledger=None, progress=False)
        await until(lambda: run.counts.answered >= 60)
        await asyncio.to_thread(run.stop)
        return await run

    with simulator(latency=1.0) as api:
        run = asyncio.run(main(api))
        assert 60 <= run.results["reply"].count() == api.stats["billed_rows"] < 2_000
    assert run.state == "stopped"
    assert run.summary["missing"].item() == (run.results["error"] == "not_sent").sum() > 0
    assert "not kept, as there is no ledger" in run.kept


@pytest.mark.parametrize("pause", [None, 0.0, 0.02])
def test_stop_during_the_start(pause):
    """A run that is told to stop before its first call, or about then, ends at once and properly."""

    async def main(api):
        run = a_plan(reviews(2_000), concurrency=5).start(api.client(), ledger=None, progress=False)
        if pause is not None:
            await asyncio.sleep(pause)
        run.stop()
        return await run

    with simulator() as api:
        run = asyncio.run(main(api))
        assert run.results["reply"].count() == api.stats["billed_rows"] < 2_000
    assert run.state == "stopped"


def test_batches_are_left_at_the_api_and_collected_by_the_same_command(path):
    """What an interrupt does with them: the sentence says so, and the next run pays for nothing again."""
    plan = a_plan(reviews(4), mode="batch")
    with simulator(speed=1_000, batch_seconds=600) as api:
        run = cs.wait(plan.run(api.client(), ledger=path, progress=False, wait=False))
        run.leave()
        cs.wait(run)
        assert "collects the batches, which continue at the API" in run.kept
        again = finished(plan, api.client(), ledger=path)
        assert (run.state, again.counts.answered, api.stats["billed_rows"]) == ("left", 4, 4)
    again.stop()  # at any time, as often as one likes
    assert again.state == "finished"
