"""What a run owes to money: nothing is paid twice, nothing paid is lost, nothing is sent in vain."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time

import polars as pl
import pytest
from running import a_plan, finished, reviews, simulator, until

import claudescale as cs
from claudescale.ledger.store import GROUP_ROWS


def billed_twice(api):
    """Return how many replies the server billed for a request it had billed before."""
    return api.stats["billed_rows"] - api.stats["distinct_rows_billed"]


@pytest.fixture
def api():
    """Return a fresh simulator, whose counts are this test's alone."""
    with simulator() as one:
        yield one


# what stops a run


@pytest.mark.parametrize(
    ("fault", "error", "advice"),
    [
        (401, "authentication_error", "ANTHROPIC_API_KEY"),
        (402, "billing_error", "billing"),
        (403, "permission_error", "key"),
        (404, "endpoint_not_found", "base_url"),
    ],
)
def test_an_account_that_may_not_call_stops_the_run(fault, error, advice):
    """A wrong key and its like end the run after a few calls; the error advises and carries the run."""
    with simulator(faults={fault: 1.0}) as api, pytest.raises(cs.RunStopped, match=error) as stopped:
        finished(a_plan(reviews(500)), api.client())
    assert advice in str(stopped.value)
    run = stopped.value.run
    assert (run.state, run.stopped_by) == ("failed", error)
    assert run.results.height == 500
    assert run.attempts.height < 50
    assert advice in repr(run)


def test_a_wrong_key(api):
    """A key that the API does not know is told from every other trouble."""
    with pytest.raises(cs.RunStopped, match="does not accept the key") as stopped:
        finished(a_plan(reviews(3)), api.client(api_key="sk-wrong"))
    assert stopped.value.run.summary["dollars"].item() == 0


@pytest.mark.parametrize("cap", ["spend_cap", "workspace_spend"])
def test_a_spend_limit_ends_the_run_and_keeps_what_was_paid(tmp_path, cap):
    """Everything billed before the limit is in the results and in the ledger; the next run sends the rest."""
    frame = reviews(200)
    with simulator(faults={cap: 0.001}) as api:
        with pytest.raises(cs.RunStopped, match="spend limit") as stopped:
            finished(a_plan(frame, concurrency=8), api.client(), ledger=tmp_path / "l")
        kept, paid = stopped.value.run.results["reply"].count(), api.stats["billed_rows"]
    assert 0 < kept == paid < 200
    with simulator() as api:
        run = finished(a_plan(frame), api.client(), ledger=tmp_path / "l")
        assert api.stats["calls"] == 200 - kept
    assert run.results["reply"].null_count() == 0


def test_a_request_that_is_wrong_for_every_row_stops_early():
    """Where the API turns down row after row before any is answered, the rest is not sent."""
    with simulator(faults={400: 1.0}) as api:
        with pytest.raises(cs.RunStopped, match="turns every request down"):
            finished(a_plan(reviews(5_000)), api.client())
        assert api.stats["calls"] < 500


# before anything is sent


def test_an_impossible_budget_sends_nothing(api):
    """A budget far below the estimate is refused, with how many rows it buys."""
    with pytest.raises(cs.ImpossibleBudget, match=r"plan\.head\(\d+\)"):
        finished(a_plan(reviews(1_000), budget=0.0001), api.client())
    assert api.stats["calls"] == 0


def test_an_impossible_deadline_sends_nothing(api):
    """A deadline below what the limits allow is refused, with one that is possible."""
    with pytest.raises(cs.ImpossibleDeadline, match=r"deadline=2\d \(minutes\)"):
        finished(a_plan(reviews(1_000), tier=1, deadline=5), api.client())
    assert api.stats["calls"] == 0


def test_deadline_and_budget_count_what_is_missing(api, tmp_path):
    """What the ledger has is paid for: a resume of the last rows may have a budget for those alone."""
    frame, ledger = reviews(1_000), tmp_path / "l"
    finished(a_plan(frame.head(990)), api.client(), ledger=ledger)
    with pytest.raises(cs.ImpossibleBudget):
        finished(a_plan(frame, budget=0.002), api.client())
    run = finished(a_plan(frame, budget=0.002, concurrency=4), api.client(), ledger=ledger)
    assert run.results["reply"].null_count() == 0
    assert api.stats["calls"] == 1_000


def test_a_frame_that_fails_when_it_is_read_sends_nothing(api):
    """A LazyFrame's own error, at reading, is a PlanError that says where to look; the run says failed."""
    plan = a_plan(
        pl.LazyFrame({"text": ["a", "b"]}).with_columns(pl.col("text").cast(pl.Int64).cast(pl.String))
    )
    assert "cannot be read" in repr(plan)
    with pytest.raises(cs.PlanError, match=r"frame\.collect\(\)"):
        finished(plan, api.client())
    run = cs.wait(_started(plan, api))
    assert run.state == "failed"
    assert "failed" in repr(run)
    assert api.stats["calls"] == 0


async def _started(plan, api):
    run = plan.start(api.client(), ledger=None, progress=False)
    with pytest.raises(cs.PlanError):
        await run
    return run


def test_a_request_over_the_apis_size_sends_nothing(api):
    """A row of more than 32 MB is named before anything is paid."""
    frame = pl.DataFrame({"text": ["a", "x" * 33_000_000]})
    with pytest.raises(cs.RequestTooLarge, match="row 1"):
        finished(a_plan(frame), api.client())
    assert api.stats["calls"] == 0


# the budget


@pytest.mark.parametrize(
    "text", ["A plain English review of a parcel that was late. ", "它坏了。我很生气。", "🎈👩‍👩‍👧"]
)
def test_the_budget_is_never_passed(text):
    """By the server's own account the dollars stay within the budget, whatever the texts are."""
    frame = pl.DataFrame({"text": [f"{i} {text * 20}" for i in range(400)]})
    plan = a_plan(frame, max_tokens=200)
    budget = plan.options["dollars"][0] * 0.6
    with simulator() as api:
        run = finished(plan.replace(budget=budget), api.client())
        assert api.stats["dollars"] <= budget
        assert run.results["reply"].count() == api.stats["billed_rows"]
        assert run.stopped_by == "budget" or run.state == "finished"
        if run.state == "stopped":
            assert "plan.replace(budget=...)" in repr(run)
            assert run.summary["missing"].item() > 0
            assert api.stats["dollars"] > budget * 0.8


# the ledger


def test_the_default_ledger_is_in_the_working_directory(api, tmp_path, monkeypatch):
    """Without a word every reply is on the disk, in a file that only its owner can read."""
    monkeypatch.chdir(tmp_path)
    cs.wait(a_plan(reviews(2)).run(api.client(), progress=False))
    path = tmp_path / "claudescale.ledger"
    assert path.stat().st_mode & 0o077 == 0
    run = cs.wait(a_plan(reviews(2)).run(api.client(), progress=False))
    assert api.stats["calls"] == 2
    assert "Ledger: claudescale.ledger." in repr(run)


def test_no_ledger_says_so(api, tmp_path, monkeypatch):
    """ledger=None writes nothing, and the run's card says that replies are in memory only."""
    monkeypatch.chdir(tmp_path)
    run = finished(a_plan(reviews(2)), api.client())
    assert list(tmp_path.iterdir()) == []
    assert "replies are kept in memory only" in repr(run)


def test_a_foreign_file_as_ledger_stops_before_anything_is_sent(api, tmp_path):
    """Something else under that name is left byte for byte; the run that stops still has its frame."""
    path = tmp_path / "notes.txt"
    path.write_text("my notes")
    with pytest.raises(cs.RunStopped, match="not a ledger") as stopped:
        finished(a_plan(reviews(3)), api.client(), ledger=path)
    assert isinstance(stopped.value.__cause__, cs.ForeignLedger)
    assert path.read_text() == "my notes"
    assert api.stats["calls"] == 0
    run = stopped.value.run
    assert run.state == "failed"
    assert run.results["error"].to_list() == ["not_sent"] * 3


def test_a_ledger_whose_folder_is_missing(api, tmp_path):
    """The message says which folder to make."""
    with pytest.raises(cs.RunStopped, match="mkdir"):
        finished(a_plan(reviews(3)), api.client(), ledger=tmp_path / "no" / "such.ledger")
    assert api.stats["calls"] == 0


def test_a_full_disk_keeps_every_paid_reply(tmp_path):
    """When the file can grow no more the run stops; what the server billed is all in run.results."""
    script = """
        import resource, signal, claudescale as cs
        from running import a_plan, finished, reviews, simulator
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        with simulator() as api:
            plan = a_plan(reviews(3_000), concurrency=16)
            resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
            try:
                finished(plan, api.client(), ledger="full.ledger")
            except cs.RunStopped as stopped:
                run = stopped.run
                assert isinstance(stopped.__cause__, cs.LedgerFull), stopped.__cause__
                assert run.state == "failed" and run.stopped_by == "ledger"
                assert 0 < run.results["reply"].count() == api.stats["billed_rows"] < 3_000, api.stats
                assert "make room" in repr(run)
                print("KEPT")
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    """
    done = _python(script, tmp_path)
    assert "KEPT" in done.stdout, done.stderr


def _python(script, folder, **options):
    path = os.pathsep.join(sys.path)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script)],
        cwd=folder, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=100,
        check=False, **options,
    )  # fmt: skip


# resume


def test_a_resume_pays_only_for_what_is_missing(api, tmp_path):
    """The same cell again sends what has no answer: new rows, and nothing of what was paid for."""
    ledger = tmp_path / "l"
    finished(a_plan(reviews(30)), api.client(), ledger=ledger)
    run = finished(a_plan(reviews(50)), api.client(), ledger=ledger)
    assert api.stats["calls"] == 50
    assert run.summary.row(0, named=True).items() >= {"reused": 30, "requests": 20, "answered": 50}.items()
    again = finished(a_plan(reviews(50)), api.client(), ledger=ledger)
    assert api.stats["calls"] == 50
    assert again.results.equals(run.results)
    assert again.summary["dollars"].item() == 0


def test_a_resume_asks_again_only_what_may_be_mended(tmp_path):
    """A 400 beside good answers is the last word on a row; one before any answer is asked again."""
    ledger, plan = tmp_path / "l", a_plan(reviews(60), concurrency=2)
    with simulator(faults={400: 0.2}) as api:
        first = finished(plan, api.client(), ledger=ledger)
    with simulator() as api:
        again = finished(plan, api.client(), ledger=ledger)
        assert api.stats["calls"] <= 2
    assert first.summary["failed"].item() > 6
    assert again.results.filter(first.results["error"].is_null()).equals(first.results.drop_nulls("reply"))
    assert again.summary["failed"].item() == again.results["error"].count()


def test_another_question_is_another_reply(api, tmp_path):
    """Everything that can change an answer is in its key: prompt, model, system, reply form, length."""
    ledger = tmp_path / "l"
    plan = a_plan(reviews(2))
    for other in (
        plan, plan.replace(prompt="Say: {text}"), plan.replace(system="Be brief."),
        plan.replace(max_tokens=65), plan.replace(model="claude-sonnet-5-5"),
        plan.replace(returns=pl.Boolean()),
    ):  # fmt: skip
        assert finished(other, api.client(), ledger=ledger).summary["requests"].item() == 2


def test_two_runs_at_once_share_the_work(tmp_path):
    """Two runs of one plan on one ledger bill each row once, and both have every reply in the end."""

    async def both(api):
        plan = a_plan(reviews(900), concurrency=16)
        runs = [plan.start(api.client(), ledger=tmp_path / "l", progress=False) for _ in range(2)]
        return [await run for run in runs]

    with simulator() as api:
        runs = asyncio.run(both(api))
        assert (api.stats["billed_rows"], billed_twice(api)) == (900, 0)
    assert all(run.results["reply"].null_count() == 0 for run in runs)
    assert all(run.summary["answered"].item() == 900 for run in runs)
    assert min(run.summary["requests"].item() for run in runs) > 0


def test_a_run_that_waits_for_another_can_be_stopped(tmp_path):
    """While the last rows are another run's, stop() does not wait for them."""

    async def main():
        with simulator(latency=600.0) as slow, simulator() as quick:
            plan = a_plan(reviews(3))
            first = plan.start(slow.client(), ledger=tmp_path / "l", progress=False)
            await until(lambda: slow.stats["calls"])
            second = plan.start(quick.client(), ledger=tmp_path / "l", progress=False)
            await until(lambda: second.state == "running")
            second.stop()
            await second
            assert (second.state, quick.stats["calls"]) == ("stopped", 0)
            assert not first._started.future.done()
            slow.close()
            first.stop()

    asyncio.run(main())


def test_kills_lose_nothing(tmp_path):
    """A process killed at any moment has lost no row on resume; billed twice is what was not on the disk yet.

    That is what was in flight, and at most one group of replies that came in a moment before.
    """
    script = """
        import sys, claudescale as cs
        from running import a_plan, reviews
        import anthropic
        client = anthropic.AsyncAnthropic(api_key="simulated", base_url=sys.argv[1], max_retries=0)
        print("READY", flush=True)
        cs.wait(a_plan(reviews(600), concurrency=10).run(client, ledger="l", progress=False))
    """
    draws, kills = random.Random(7), 3
    with simulator(speed=4) as api:
        for _ in range(kills):
            child = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(script), api.url],
                cwd=tmp_path, stdout=subprocess.PIPE,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            )  # fmt: skip
            child.stdout.readline()
            before = api.stats["calls"]
            while api.stats["calls"] < before + draws.randint(40, 130) and child.poll() is None:
                time.sleep(0.01)
            assert child.poll() is None, "it ended before it could be killed"
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()
        run = finished(a_plan(reviews(600), concurrency=10), api.client(), ledger=tmp_path / "l")
        assert billed_twice(api) <= kills * (10 + GROUP_ROWS)
        assert api.stats["distinct_rows_billed"] == 600
    assert run.results["reply"].null_count() == 0
    assert run.summary["reused"].item() > 0


# stop


@pytest.mark.parametrize("thread", [False, True])
def test_stop_keeps_what_is_in_flight(thread):
    """stop() sends nothing more, from this thread or another; all that the server bills is in the results."""

    async def main(api):
        run = a_plan(reviews(2_000), concurrency=20).start(api.client(), ledger=None, progress=False)
        await until(lambda: run.counts.answered >= 100)
        if thread:
            stopping = threading.Thread(target=run.stop)
            stopping.start()
            stopping.join()
        else:
            run.stop()
        return await run

    with simulator(latency=1.0) as api:
        run = asyncio.run(main(api))
        assert 100 <= run.results["reply"].count() == api.stats["billed_rows"] < 2_000
    assert run.state == "stopped"
    assert run.summary["missing"].item() == (run.results["error"] == "not_sent").sum() > 0


@pytest.mark.parametrize("pause", [None, 0.0, 0.01, 0.05])
def test_stop_during_the_start(api, pause):
    """A run that is told to stop before its first call, or about then, ends at once and properly."""

    async def main():
        run = a_plan(reviews(2_000), concurrency=5).start(api.client(), ledger=None, progress=False)
        if pause is not None:
            await asyncio.sleep(pause)
        run.stop()
        return await run

    run = asyncio.run(main())
    assert run.state == "stopped"
    assert run.results["reply"].count() == api.stats["billed_rows"] < 2_000


def test_stop_twice_and_after_the_end(api):
    """stop() may be said at any time and as often as one likes."""
    run = finished(a_plan(reviews(2)), api.client())
    run.stop()
    run.stop()
    assert run.state == "finished"
