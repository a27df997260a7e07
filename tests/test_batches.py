"""Runs by batches and hybrid runs, over HTTP against the simulator: what is paid, kept, canceled and left."""

import asyncio
import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import polars as pl
import pytest
from crash_child import LIMITS, most_requests, the_plan
from engine import taken_for_real
from running import interrupt_when, until

import claudescale as cs
from claudescale.ledger.store import Store
from claudescale.running import batch_rules
from claudescale.running.batches import MOST_ROUNDS, Batches
from claudescale.running.runs import BATCHES
from claudescale.simulator import Fault

PATIENCE = 60.0
CHILD = Path(__file__).with_name("crash_child.py")


def simulator(*, queue=100_000, calls=6_000, **options):
    """Return a simulator on which an API hour is some real seconds."""
    given = {"speed": 1_000, "batch_seconds": 120.0, "latency": 0.2, **options}
    return cs.Simulator(
        tuple(LIMITS.values()), batch_queue_requests=queue, batch_requests_per_minute=calls, **given
    )


@pytest.fixture
def api():
    """Return a fresh simulator, whose counts are this test's alone."""
    with simulator() as one:
        yield one


async def _ended(plan, client, ledger):
    async with asyncio.timeout(PATIENCE):
        return await plan.run(client, ledger=ledger, progress=False)


def ended(plan, api, ledger=None, **client):
    """Return the run of a plan that has ended, which it does in time."""
    return asyncio.run(_ended(plan, api.client(**client), ledger))


def paid_once(api, run, rows, *, reused=0):
    """Check that all rows have a reply, each was billed once, and the dollars are the server's."""
    stats = api.stats
    assert run.state in {"finished", "left"}
    assert run.results["text"].to_list() == run.plan.frame["text"].to_list()
    assert run.results["reply"].null_count() == 0
    assert stats["billed_rows"] == stats["distinct_rows_billed"] == rows
    if not reused:
        assert run.summary["dollars"].item() == pytest.approx(stats["dollars"], abs=1e-9)


# answers that are lost


LOST = ("create_lost", "create_failed_after", "create_failed", "create_dropped")


@pytest.mark.parametrize("tries", [[1], [1, 2], [2]])
@pytest.mark.parametrize("fault", LOST)
def test_a_create_without_a_plain_answer(fault, tries):
    """Whether a batch whose answer is lost is there or not is found out, and no row is paid for twice."""
    with simulator(faults={fault: Fault(tries=tries)}, queue=100) as api:
        run = ended(the_plan(150, queue=100), api)
        paid_once(api, run, 150)
        assert set(run.batches["state"]) <= {"collected", "absent"}


def test_a_create_that_hangs(monkeypatch):
    """A create that is never answered is given up, and its batch is found by its nonce."""
    monkeypatch.setattr("claudescale.api.client.CALL_SECONDS", 0.5)
    with simulator(faults={"create_hang": Fault(tries=[1])}) as api:
        run = ended(the_plan(20), api)
        paid_once(api, run, 20)
        assert api.stats["batches_created"] == 1


def test_several_lost_batches_of_one_size(monkeypatch):
    """Lost batches of the same size and time are told apart by the nonces in their results."""
    monkeypatch.setattr("claudescale.api.catalog.BATCH", most_requests(25))
    with simulator(faults={"create_lost": Fault(tries=[1, 2, 3])}) as api:
        run = ended(the_plan(150, queue=1_000), api)
        paid_once(api, run, 150)
        assert run.batches["state"].to_list() == ["collected"] * 6


async def _foreign(client, rows):
    """Make a batch of somebody else's, of a size that may be confused."""
    params = {"model": "claude-haiku-5-5", "max_tokens": 16, "messages": [{"role": "user", "content": "x"}]}
    given = [{"custom_id": f"{i:032x}-abcdefabcdef", "params": params} for i in range(rows)]
    return await client.messages.batches.create(requests=given)


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("seconds", [[60, 600], [600, 60], [60, 60]])
@pytest.mark.parametrize("fault", ["create_lost", "create_failed"])
def test_a_foreign_batch_of_the_same_size_and_time(monkeypatch, fault, order, seconds):
    """Another client's batch, under way or ended, is never taken for the lost one, which is found."""
    taken, real = list(seconds), Batches._created

    async def created(self, create, until):
        answer = await real(self, create, until)
        if order == "after" and answer.status != 200:
            await _foreign(client, 20)
        return answer

    monkeypatch.setattr(Batches, "_created", created)
    struck = Fault(tries=[2 if order == "before" else 1])
    with simulator(faults={fault: struck}, batch_seconds=lambda n: taken.pop(0) if taken else 60) as api:

        async def main():
            nonlocal client
            async with api.client() as client:
                if order == "before":
                    await _foreign(client, 20)
                return await _ended(the_plan(20), client, None)

        client = None
        run = asyncio.run(main())
        assert run.state == "finished"
        assert run.results["error"].null_count() == 20
        assert api.stats["billed_rows"] <= 40
        assert run.attempts.filter(pl.col("dollars") > 0).height == 20


# how rows are cut into batches


def test_split_by_requests(api, monkeypatch):
    """No batch has more requests than the API takes."""
    monkeypatch.setattr("claudescale.api.catalog.BATCH", most_requests(40))
    run = ended(the_plan(150, queue=1_000), api)
    paid_once(api, run, 150)
    assert run.batches["requests"].to_list() == [40, 40, 40, 30]


def test_split_by_bytes(api, monkeypatch):
    """No body is longer than the API takes."""
    monkeypatch.setattr(batch_rules, "FULL_BYTES", 20_000)
    monkeypatch.setattr("claudescale.simulator.batches.MAX_BYTES", 21_000)
    run = ended(the_plan(150), api)
    paid_once(api, run, 150)
    assert run.batches.height > 1
    assert "request_too_large" not in api.stats["refused"]


def test_a_body_the_api_finds_too_long_is_halved(api, monkeypatch):
    """Where the API counts a body longer than we do, smaller batches follow."""
    monkeypatch.setattr("claudescale.running.batches._SMALLEST_BYTES", 10_000, raising=False)
    monkeypatch.setattr("claudescale.simulator.batches.MAX_BYTES", 15_000)
    run = ended(the_plan(150), api)
    paid_once(api, run, 150)
    assert run.batches["state"][0] == "absent"


@pytest.mark.parametrize("queue", [7, 50])
def test_the_queue_is_filled_and_never_passed(api, monkeypatch, queue):
    """Batches follow one another as the queue has room; the server never has more of them than that."""
    seen = []
    real = Batches._created

    async def created(self, create, until):
        answer = await real(self, create, until)
        now = api.clock.seconds()
        seen.append(sum(each.queued(now) for each in api.batches._batches.values()))
        return answer

    monkeypatch.setattr(Batches, "_created", created)
    run = ended(the_plan(120, queue=queue), api)
    paid_once(api, run, 120)
    assert max(seen) <= queue


def test_a_queue_that_others_fill_is_waited_for():
    """A 429 for the queue sends no row twice and ends no run: there is room later."""
    with simulator(queue=60, batch_seconds=1_200.0) as api:

        async def main():
            async with api.client() as client:
                await _foreign(client, 50)
                return await _ended(the_plan(60, queue=60), client, None)

        run = asyncio.run(main())
        assert run.results["reply"].null_count() == 0
        assert api.stats["billed_rows"] == 110
        assert api.stats["refused"]["rate_limit_error"] > 0


# money


@pytest.mark.parametrize("share", [0.6, 0.9])
def test_a_budget_is_a_hard_stop(share):
    """However long the replies, the server's bill is never above the budget, and the rest is not sent."""
    with simulator(queue=80, replies=lambda body: "word " * 500) as api:
        plan = the_plan(300, queue=80)
        dollars = plan.options.filter(pl.col("mode") == "batch")["dollars"].item() * share
        run = ended(plan.replace(budget=dollars), api)
        stats = api.stats
        assert (run.state, run.stopped_by) == ("stopped", "budget")
        assert 0 < stats["billed_rows"] == stats["distinct_rows_billed"] < 300
        assert stats["dollars"] <= dollars
        assert run.summary["dollars"].item() == pytest.approx(stats["dollars"], abs=1e-9)
        assert run.results["error"].value_counts(sort=True).height == 2


def test_dollars_with_a_cache_equal_the_servers():
    """A cached prompt is primed by a batch of one row; hits are measured, dollars are the server's."""
    with simulator(seed=3) as api:
        run = ended(the_plan(120, cache=True, system="Answer in one word. " * 600), api)
        paid_once(api, run, 120)
        assert run.batches["requests"].to_list() == [1, 119]
        assert 0.3 <= run.batches["cache_hit_share"][1] <= 1
        read, written = (run.attempts[f"cache_{name}_input_tokens"].sum() for name in ("read", "write_1h"))
        stats = api.stats
        assert (read, written) == (stats["cache_read_input_tokens"], stats["cache_write_1h_input_tokens"])
        assert run.bill["dollars"].sum() == pytest.approx(stats["dollars"], abs=1e-9)


# rows that fail


@pytest.mark.parametrize("fault", ["batch_errored", "batch_overloaded", "batch_expired"])
def test_rows_that_may_succeed_go_into_the_next_batch(fault):
    """Expired rows and errors of the moment are sent again, and billed once."""
    with simulator(faults={fault: Fault(probability=0.4, tries=[1])}) as api:
        run = ended(the_plan(60), api)
        paid_once(api, run, 60)
        assert run.batches.height == 2
        assert 5 < run.batches["requests"][1] < 50


@pytest.mark.parametrize("fault", ["batch_errored", "batch_expired"])
def test_rows_that_never_succeed_are_given_up(fault):
    """After some batches a row is given up; its error says why, and another run may try again."""
    with simulator(faults={fault: 1.0}) as api:
        run = ended(the_plan(30), api)
        assert api.stats["billed_rows"] == 0
        assert api.stats["batches_created"] == MOST_ROUNDS
    assert run.results["error"].unique().to_list() == [
        {"batch_errored": "api_error", "batch_expired": "expired"}[fault]
    ]
    assert run.results["reply"].null_count() == 30


def test_rows_that_are_refused_are_errors(tmp_path):
    """A request that the API will not take is its row's error, is not sent again, and costs nothing."""
    with simulator(faults={"batch_invalid": 0.4}) as api:
        run = ended(the_plan(60), api, tmp_path / "l")
        failed = run.results.filter(pl.col("error") == "invalid_request_error").height
        assert 5 < failed < 50
        assert api.stats["batches_created"] == 1
        assert run.results["reply"].count() == 60 - failed == api.stats["billed_rows"]
        ended(the_plan(60), api, tmp_path / "l")
        assert api.stats["batches_created"] == 1


def test_a_batch_without_one_success(tmp_path):
    """Where every row of a batch is refused, the run ends, and what it sent can be sent again once mended."""
    with simulator(faults={"batch_invalid": Fault(tries=[1])}) as api:
        with pytest.raises(cs.RunStopped, match="30 of 30 rows") as stopped:
            ended(the_plan(30), api, tmp_path / "l")
        run = stopped.value.run
        assert api.stats["batches_created"] == 1
        assert api.stats["billed_rows"] == 0
        assert run.results["error"].unique().to_list() == ["invalid_request_error"]
        again = ended(the_plan(30), api, tmp_path / "l")
        assert again.results["reply"].null_count() == 0
        paid_once(api, again, 30)


@pytest.mark.parametrize(
    ("fault", "error"), [("refusal", "refusal"), ("cut", "max_tokens"), ("empty_content", "empty_reply")]
)
def test_a_paid_reply_of_no_use_says_why(fault, error):
    """A refusal, a cut-off or an empty reply in a batch is paid for, kept, named, and not sent again."""
    with simulator(faults={fault: 0.5}) as api:
        run = ended(the_plan(40), api)
        assert set(run.results["error"]) == {None, error}
        assert api.stats["billed_rows"] + api.stats["free_refusals"] == 40
        assert api.stats["batches_created"] == 1
        assert run.summary["dollars"].item() == pytest.approx(api.stats["dollars"], abs=1e-9)


# trouble on the way


def test_results_that_break_off_are_read_on(monkeypatch):
    """A download that breaks off is tried again; what it brought is on record once."""
    monkeypatch.setattr("claudescale.api.client._BLOCK_BYTES", 4_000)
    monkeypatch.setattr("claudescale.api.client._PART_BYTES", 1_000)
    with simulator(faults={"results_cut": Fault(tries=[1, 2, 3])}) as api:
        run = ended(the_plan(100), api)
        assert api.stats["faults"]["results_cut"] == 3
        paid_once(api, run, 100)
    assert run.attempts.height == run.attempts["key"].n_unique() == 100


def test_looks_that_fail_are_no_failure():
    """A 500 to every second look at a batch changes nothing."""
    with simulator(faults={"poll_failed": 0.5}, queue=60) as api:
        run = ended(the_plan(120, queue=60), api)
        assert api.stats["faults"]["poll_failed"] > 3
        paid_once(api, run, 120)


def test_a_batch_that_is_stuck_expires_and_is_sent_again():
    """A batch that does not end within its 24 hours costs nothing, and its rows go into another."""
    calls = []
    with simulator(faults={"batch_stuck": Fault(tries=[1])}, speed=20_000, calls=10**6) as api:
        real = api.batches.limited
        api.batches.limited = lambda now: calls.append(now) or real(now)
        run = ended(the_plan(40), api)
        paid_once(api, run, 40)
        assert run.batches["expired"].to_list() == [40, 0]
        assert 86_000 < calls[-1] - calls[0] < 150_000  # a busy machine looks late
        assert len(calls) < 500


def _ended_without_us(api, ledger, what):
    """Submit a batch, leave it, and do `what` at the API once it has ended."""

    async def prepare():
        run = await the_plan(20).run(api.client(), ledger=ledger, progress=False, wait=False)
        run.leave()
        await run
        assert run.state == "left"
        batch_id = run.batches["batch_id"].item()
        async with api.client() as client:
            while api.batches._batches[batch_id].settled_at is None:
                await client.messages.batches.retrieve(batch_id)
            if what == "deleted":
                await client.messages.batches.delete(batch_id)
            else:
                api.batches._batches[batch_id].created_at -= 30 * 86_400
        return batch_id

    return asyncio.run(prepare())


def test_results_older_than_29_days_end_the_run(tmp_path):
    """What was answered is gone, and that is said; nothing is sent again by itself, but by the same cell."""
    with simulator(batch_seconds=900.0) as api:
        _ended_without_us(api, tmp_path / "l", "archived")
        with pytest.raises(cs.RunStopped, match="29 days") as stopped:
            ended(the_plan(20), api, tmp_path / "l")
        assert stopped.value.run.stopped_by == "results_gone"
        assert stopped.value.run.batches["state"].to_list() == ["gone"]
        assert api.stats["batches_created"] == 1
        again = ended(the_plan(20), api, tmp_path / "l")
        assert again.results["reply"].null_count() == 0
        assert api.stats["batches_created"] == 2


def test_a_batch_that_the_api_does_not_show_stays_held(tmp_path, monkeypatch):
    """It may be another key's: nothing is sent again until the user says that it is to be forgotten."""
    with simulator(batch_seconds=900.0) as api:
        batch_id = _ended_without_us(api, tmp_path / "l", "deleted")
        with monkeypatch.context() as real:
            taken_for_real(real)
            for _ in range(2):
                with pytest.raises(cs.RunStopped, match=r"forget\('msgbatch_") as stopped:
                    ended(the_plan(20), api, tmp_path / "l")
                assert stopped.value.run.stopped_by == "batch_not_found"
        assert api.stats["batches_created"] == 1
        with cs.Ledger(tmp_path / "l") as ledger:
            assert ledger.forget(batch_id) == 20
            with pytest.raises(cs.ClaudescaleError, match="no open batch"):
                ledger.forget(batch_id)
        assert ended(the_plan(20), api, tmp_path / "l").results["reply"].null_count() == 0


def test_a_simulated_batch_ends_with_its_simulator(tmp_path):
    """The next kernel has another simulator, which knows nothing of the batch: its rows are sent anew."""
    with simulator(batch_seconds=900.0) as api:
        _ended_without_us(api, tmp_path / "l", "deleted")
    with simulator(batch_seconds=900.0) as api:
        run = ended(the_plan(20), api, tmp_path / "l")
        assert run.results["reply"].null_count() == 0
        assert run.batches["state"].to_list() == ["gone", "collected"]


def test_a_wrong_key(api):
    """A key that is not accepted ends the run before a batch is made."""
    with pytest.raises(cs.RunStopped, match="key") as stopped:
        ended(the_plan(5), api, api_key="sk-wrong")
    assert api.stats["batches_created"] == 0
    assert stopped.value.run.batches.is_empty()


@pytest.mark.parametrize("cap", ["spend_cap", "workspace_spend"])
def test_a_spend_limit(tmp_path, cap):
    """A limit that is reached ends the run; what was answered is kept, and later the rest is sent."""
    with simulator(queue=40, faults={cap: 0.0003}) as api:
        with pytest.raises(cs.RunStopped, match="spend limit") as stopped:
            ended(the_plan(150, queue=40), api, tmp_path / "l")
        kept = stopped.value.run.results["reply"].count()
        assert 0 < kept == api.stats["billed_rows"] < 150
    with simulator(queue=40) as api:
        run = ended(the_plan(150, queue=40), api, tmp_path / "l")
        assert api.stats["billed_rows"] == 150 - kept
        assert run.results["reply"].null_count() == 0


def test_a_mistake_in_every_request_is_told_at_once(api):
    """What the API would refuse in each row is found before a batch is made, not hours later."""
    with pytest.raises(cs.RunStopped):
        ended(the_plan(5, params={"output_config": {"format": {"type": "nonsense"}}}), api)
    assert api.stats["batches_created"] == 0


# stop, leave, interrupts


def test_stop_cancels_and_keeps_what_was_answered(tmp_path):
    """After stop() the batch is canceled, its answered rows are kept, and the rest is sent the next time."""
    with simulator(batch_seconds=3_000.0) as api:

        async def main():
            run = the_plan(200).start(api.client(), ledger=tmp_path / "l", progress=False)
            async with asyncio.timeout(PATIENCE):
                await until(lambda: api.stats["billed_rows"] >= 20)
                run.stop()
                return await run

        run = asyncio.run(main())
        kept = run.results["reply"].count()
        assert run.state == "stopped"
        assert 20 <= kept == api.stats["billed_rows"] < 200
        assert run.batches["canceled"].item() == 200 - kept
        assert run.summary["dollars"].item() == pytest.approx(api.stats["dollars"], abs=1e-9)
        assert set(run.results.filter(pl.col("reply").is_null())["error"]) <= {"canceled", "not_sent"}
        again = ended(the_plan(200), api, tmp_path / "l")
        paid_once(api, again, 200, reused=kept)


def test_leave_lets_batches_go_on(tmp_path):
    """After leave() the batch goes on at the API, and the same plan collects it and sends nothing."""
    with simulator(batch_seconds=600.0) as api:

        async def main():
            run = the_plan(50).start(api.client(), ledger=tmp_path / "l", progress=False)
            await run.submitted()
            run.leave()
            async with asyncio.timeout(PATIENCE):
                return await run

        assert asyncio.run(main()).state == "left"
        run = ended(the_plan(50), api, tmp_path / "l")
        assert api.stats["batches_created"] == 1
        paid_once(api, run, 50)


def test_run_without_waiting(tmp_path):
    """wait=False returns when the batches are submitted; the run can be awaited later."""
    with simulator(batch_seconds=600.0) as api:

        async def main():
            run = await the_plan(50).run(api.client(), ledger=tmp_path / "l", progress=False, wait=False)
            seen = run.state, run.batches["state"].to_list(), run.results["reply"].count()
            async with asyncio.timeout(PATIENCE):
                return seen, await run

        seen, run = asyncio.run(main())
        assert seen == ("running", ["in_progress"], 0)
        paid_once(api, run, 50)


def test_a_canceled_task_leaves(tmp_path):
    """Who cancels the task that waits for the run lets its batches go on."""
    with simulator(batch_seconds=600.0) as api:

        async def main():
            task = asyncio.ensure_future(_ended(the_plan(50), api.client(), tmp_path / "l"))
            async with asyncio.timeout(PATIENCE):
                await until(lambda: api.stats["batches_created"])
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(main())
        with closing(Store(tmp_path / "l")) as ledger:
            assert [batch.state for batch in ledger.batches()] == ["in_progress"]
        run = ended(the_plan(50), api, tmp_path / "l")
        assert api.stats["batches_created"] == 1
        paid_once(api, run, 50)


def test_an_interrupt_leaves(tmp_path):
    """Ctrl-C while a script waits lets the batches go on."""
    with simulator(batch_seconds=900.0) as api:
        interrupt_when(lambda: api.stats["batches_created"])
        with pytest.raises(KeyboardInterrupt):
            cs.wait(the_plan(50).run(api.client(), ledger=tmp_path / "l", progress=False))
        run = ended(the_plan(50), api, tmp_path / "l")
        assert api.stats["batches_created"] == 1
        paid_once(api, run, 50)


# two runs, one ledger


def test_two_processes_at_once(tmp_path):
    """Two processes that run the same plan on one ledger share the rows: each is paid for once."""
    with simulator(queue=60, batch_seconds=300.0) as api:
        given = [
            sys.executable,
            CHILD,
            api.url,
            tmp_path / "l",
            "nowhere",
            json.dumps({"rows": 150, "queue": 30}),
        ]
        children = [subprocess.Popen(given, stderr=subprocess.PIPE, text=True) for _ in range(2)]
        said = [child.communicate(timeout=PATIENCE) for child in children]
        assert [child.returncode for child in children] == [0, 0], said
        stats = api.stats
        assert stats["billed_rows"] == stats["distinct_rows_billed"] == 150
        run = ended(the_plan(150, queue=30), api, tmp_path / "l")
        assert run.results["reply"].null_count() == 0
        assert api.stats["billed_rows"] == 150


def test_two_runs_in_one_process(tmp_path):
    """So do two runs of one process, with a lost answer besides."""
    with simulator(faults={"create_lost": Fault(tries=[1])}) as api:

        async def main():
            async with asyncio.timeout(PATIENCE):
                plan, client = the_plan(60, queue=40), api.client()
                return await asyncio.gather(
                    *(plan.run(client, ledger=tmp_path / "l", progress=False) for _ in range(2))
                )

        for run in asyncio.run(main()):
            assert run.state == "finished"
            assert run.results["reply"].null_count() == 0
        assert api.stats["billed_rows"] == api.stats["distinct_rows_billed"] == 60


def test_live_over_an_open_batch(tmp_path):
    """A live run does not pay for rows that a batch still answers: it collects them and sends the rest."""
    with simulator(batch_seconds=600.0) as api:

        async def main():
            client = api.client()
            run = await the_plan(30).run(client, ledger=tmp_path / "l", progress=False, wait=False)
            run.leave()
            await run
            return await _ended(the_plan(50, mode="live"), client, tmp_path / "l")

        run = asyncio.run(main())
        assert run.results["reply"].null_count() == 0
        assert api.stats["calls"] == 20
        assert api.stats["billed_rows"] == api.stats["distinct_rows_billed"] == 50


# what is shown, and cleaning up


def test_the_frame_of_batches(api):
    """It has a row for each batch, its times and counts as the API tells them, and what it cost."""
    plan = the_plan(90, queue=120)
    empty = plan.start(api.client(), ledger=None, progress=False)
    empty.stop()
    assert empty.batches.schema == BATCHES
    run = ended(plan, api)
    assert run.batches.schema == BATCHES
    assert run.batches["state"].unique().to_list() == ["collected"]
    assert run.batches["succeeded"].sum() == run.batches["requests"].sum() == 90
    assert run.batches["minutes"].to_list() == pytest.approx([2.0] * run.batches.height, abs=0.01)
    assert run.batches["dollars"].sum() == pytest.approx(run.summary["dollars"].item())
    kept = (run.batches["results_until"] - run.batches["created_at"]).dt.total_hours().unique()
    assert kept.to_list() == [29 * 24]


# hybrid


def test_hybrid_with_a_batch_in_time(api):
    """Where the batch is in time nothing but the first row is sent live."""
    run = ended(the_plan(80, mode="hybrid", deadline=60), api)
    paid_once(api, run, 80)
    assert api.stats["billed_rows_by_mode"] == {"live": 1, "batch": 79}
    assert run.minutes < 60


def test_hybrid_with_a_batch_that_is_too_slow():
    """A batch that would be late is canceled and the rest sent live, in time and nothing twice."""
    with simulator(batch_seconds=2_000.0, speed=100) as api:
        run = ended(the_plan(80, mode="hybrid", deadline=15), api)
        paid_once(api, run, 80)
        assert run.minutes <= 15
        assert api.stats["billed_rows_by_mode"]["live"] > 20


def test_an_impossible_deadline_names_one_that_works():
    """A hybrid run that cannot be in time is refused before anything is sent; the deadline it names works."""
    with simulator(speed=60) as api:
        plan = the_plan(80, mode="hybrid", deadline=0.5)
        with pytest.raises(cs.ImpossibleDeadline, match=r"deadline=\d+ \(minutes\)") as refused:
            ended(plan, api)
        assert api.stats["calls"] == api.stats["batches_created"] == 0
        minutes = int(str(refused.value).split("deadline=")[1].split()[0])
        run = ended(plan.replace(deadline=minutes), api)
        paid_once(api, run, 80)
        assert run.minutes <= minutes


def test_hybrid_without_a_deadline():
    """A hybrid plan has a deadline; without one it says what to type."""
    with pytest.raises(cs.PlanError, match="deadline=90"):
        the_plan(5, mode="hybrid")
