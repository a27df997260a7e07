"""Runs by batches and hybrid runs, over HTTP against the simulator: paid, kept, canceled and left rows."""

import asyncio
import json
import math
import re
from types import MappingProxyType
from typing import NamedTuple

import polars as pl
import pytest
from canned import NOT_FOUND, Breaker, error
from engine import taken_for_real
from running import ended, paid_once, quick, the_plan, until

import claudescale as cs
from claudescale.api import catalog
from claudescale.running.runs import BATCHES
from claudescale.simulator import Fault

KEY = (401, {}, error("authentication_error"))
HTML, PAGE = {"content-type": "text/html"}, b"<html><title>Gateway</title></html>"
REFUSED = (400, {}, error("invalid_request_error", "speed: Extra inputs are not permitted"))
ON_HOLD = error("invalid_request_error", "It is on hold.", error_code="organization_on_hold")
ELSEWHERE = (307, {"location": "http://127.0.0.1:9/v1/messages/batches?token=secret"}, b"")
NOTHING = MappingProxyType({})
slow = pytest.mark.slow


def left(plan, api, ledger):
    """Submit a batch of a plan, leave it, and return the run."""

    async def leave():
        run = await plan.run(api.client(), ledger=ledger, progress=False, wait=False)
        assert (run.state, run.batches["state"].to_list()) == ("running", ["in_progress"])
        run.leave()
        return await run

    return asyncio.run(leave())


# faults of calls: each is a function of a call, see `Breaker`


def on(**answers):
    """Give these answers to the first calls of endpoints; None forwards one."""

    def change(call):
        given = answers.get(call.name, ())
        return given[call.number - 1] if call.number <= len(given) else None

    return change


def looks_that_fail(call):
    """Hide a batch behind 404s and HTML pages, now and then."""
    bad = NOT_FOUND, (502, HTML, PAGE), (404, HTML, PAGE), (418, HTML, PAGE)
    hidden = call.name in {"retrieve", "results"} and (call.number <= 3 or call.number % 2)
    return bad[call.number % 4] if hidden else None


def moved(call):
    """Redirect to another path of the same host."""
    if call.path.startswith("/new/"):
        return call.ask(call.path.removeprefix("/new"))
    return 307, {"location": f"/new{call.path}"}, b""


def first(name, change):
    """Change only the answers of an endpoint about one batch, the first it is asked about."""
    paths = {}

    def changed(call):
        is_first = call.name == name and paths.setdefault(call.server, call.path) == call.path
        return change(*call.ask()) if is_first else None

    return changed


hide_the_first = first("retrieve", lambda *_: NOT_FOUND)


def lines(change):
    """Change the result lines of the batch that is read first."""
    return first("results", lambda *head: (*head[:2], b"".join(change(head[2].splitlines(keepends=True)))))


def on_hold(results):
    """Make all rows but five meet an account error."""
    told = {"result": {"type": "errored", "error": ON_HOLD}}
    return [*results[:5], *(json.dumps(json.loads(line) | told).encode() + b"\n" for line in results[5:])]


def archived(status, headers, content):
    """Show a batch without its results."""
    return status, headers, json.dumps(json.loads(content) | {"results_url": None}).encode()


# recoverable faults, and fatal ones


class Case(NamedTuple):
    """Faults of the calls, rows and plan, a simulator, and the expected outcome."""

    change: object = lambda _: None
    rows: int = 12
    plan: dict = NOTHING
    api: dict = NOTHING
    seen: dict = NOTHING


def faults(**given):
    """Return a simulator with faults; a number says at which tries."""
    return {"faults": {name: Fault(tries=tries) for name, tries in given.items()}}


HYBRID = {"mode": "hybrid", "deadline": 600}
PASSES = {
    "creates fail, or their answers are lost": Case(
        on(list=[(502, HTML, PAGE), (200, HTML, PAGE)] * 30),
        40,
        {"queue": 20},
        faults(create_lost=[1, 2], create_failed=[4]),
    ),
    "a create fails, and there is a batch": Case(api=faults(create_failed_after=[1]), seen={"made": 1}),
    "a queue smaller than the table says": Case(rows=100, plan={"queue": 1_000}, api={"queue": 40}),
    "rows expire or meet errors of the moment": Case(
        rows=40, api={"faults": dict.fromkeys(("batch_expired", "batch_errored"), Fault(0.3, tries=[1]))}
    ),
    "a batch is stuck": Case(api=faults(batch_stuck=[1]) | {"speed": 100_000}, seen={"made": 2}),
    "looks that fail": Case(looks_that_fail, seen={"made": 1}),
    "another's answer, and results that break off": Case(
        on(retrieve=[(200, {}, b'{"hello": "world"}')]), api=faults(results_cut=[1, 2]), seen={"made": 1}
    ),
    "a key that worked is refused": Case(on(retrieve=[KEY], create=[None, KEY, KEY]), 40, {"queue": 10}),
    "a redirect to the same host": Case(moved, seen={"made": 1}),
    "hybrid, in time": Case(rows=40, plan=HYBRID, seen={"live": 1}),
    "hybrid, too slow": Case(
        rows=40, plan=HYBRID | {"deadline": 8}, api={"batch_seconds": 8_000.0, "speed": 100}, seen={"made": 1}
    ),
    "hybrid, no batches there": Case(
        on(create=[NOT_FOUND] * 99), 30, HYBRID, {"speed": 200}, seen={"live": 30}
    ),
}


@slow
@pytest.mark.parametrize("name", PASSES)
def test_what_a_run_gets_over(name):
    """With any fault each row is answered, in time, and paid for once, by the server's account."""
    change, rows, plan, options, seen = PASSES[name]
    with quick(**options) as api, Breaker(api.url, change) as server:
        run = ended(the_plan(rows, **plan), api, base_url=server.url)
        paid_once(api, run)
        made, live = run.batches.filter(state="collected").height, api.stats["billed_rows_by_mode"]["live"]
        assert {"made": made, "live": live}.items() >= seen.items()
        assert run.minutes <= plan.get("deadline", math.inf)


ENDS = {
    "a mistake in all requests": Case(
        on(message=[REFUSED] * 3), seen=("invalid_request_error", "Extra inputs", 0, 0)
    ),
    "on hold at creation": Case(
        on(create=[None, None, (400, {}, ON_HOLD)]), 40, seen=("organization_on_hold", "on hold", 20, 3)
    ),
    "on hold in results": Case(
        lines(on_hold), 40, {"queue": 100}, seen=("organization_on_hold", "on hold", 35, 4)
    ),
    "one of several is never shown": Case(
        hide_the_first, 30, {"queue": 20}, seen=("batch_not_found", r"forget\('msgbatch", 20, 3)
    ),
    "no result can be read": Case(
        lines(lambda _: [PAGE]), 8, seen=("results_incomplete", r"forget\('msgbatch", 0, 1)
    ),
    "results are gone": Case(
        first("retrieve", archived), 8, seen=("results_gone", r"29 days .*forget\('msgbatch", 0, 1)
    ),
    "a redirect to a page": Case(
        on(create=[(302, {"location": "/login"}, b"")]), seen=("redirect_error", "to /login", 0, 1)
    ),
    "a redirect to another host": Case(
        on(create=[ELSEWHERE]), seen=("redirect_error", "to http://127.0.0.1:9", 0, 1)
    ),
}


@slow
@pytest.mark.parametrize("name", ENDS)
def test_what_ends_a_run(tmp_path, monkeypatch, name):
    """The other batches come in, no row is final because of it, and the same cell pays for no row again."""
    change, rows, plan, _, (error, words, answered, creates) = ENDS[name]
    taken_for_real(monkeypatch)
    monkeypatch.setattr(catalog.BATCH, "max_requests", 10)
    with quick() as api:
        with Breaker(api.url, change) as server:
            run = ended(the_plan(rows, **plan), api, tmp_path / "l", base_url=server.url)
        assert (run.state, run.stopped_by) == ("failed", error)
        assert re.search(words, run.message)
        assert not any(secret in run.message for secret in ("token", *run.plan.frame["text"]))
        assert (run.counts.answered, server.calls["create"]) == (answered, creates)
        again = ended(the_plan(rows), api, tmp_path / "l")
        assert again.results["reply"].null_count() == 0
        paid = pl.concat([run.attempts, again.attempts]).filter(pl.col("dollars") > 0)
        assert paid.filter(pl.col("error").is_null()).height == rows
        untold = 5 if name == "on hold in results" else 0  # they were answered before the lines were changed
        assert api.stats["billed_rows"] == paid.height + untold


# batches that are created, or may be


@slow
def test_a_run_by_batches_and_the_frame_of_them():
    """A batch of one row writes the cache, the queue is kept, and `batches` has times, counts and dollars."""
    with quick(seed=3, queue=30) as api:
        run = ended(the_plan(61, queue=30, cache=True, system="Answer in one word. " * 600), api)
        paid_once(api, run)
        assert run.attempts["cache_read_input_tokens"].sum() == api.stats["cache_read_input_tokens"]
    table = run.batches
    assert table.schema == BATCHES
    assert table.select("state", "requests").rows() == [("collected", rows) for rows in (1, 30, 30)]
    assert table["succeeded"].to_list() == table["requests"].to_list()
    assert table["minutes"].to_list() == pytest.approx([1.0] * 3, abs=0.01)
    assert table["dollars"].sum() == pytest.approx(run.summary["dollars"].item())
    assert (table["results_until"] - table["created_at"]).dt.total_hours().to_list() == [29 * 24] * 3
    assert table["cache_hit_share"][1:].is_between(0.3, 1).all()
    assert run.throughput["requests_per_minute"].sum() == pytest.approx(61, rel=0.1)


@slow
def test_foreign_batches_of_the_same_size_and_time():
    """Another client's batches, one ended and one in progress, are never taken for the lost one."""
    seconds = [60, 120, 600]

    def lose_the_answer(call):
        if call.name != "create" or call.number > 1:
            return None
        method, headers, body = call.given
        nonce = json.loads(body)["requests"][0]["custom_id"].partition("-")[2]
        foreign = body.replace(nonce.encode(), b"abcdefabcdef")
        for content in (foreign, body, foreign):
            call.server(method, call.path, headers, content)
        return b""

    with quick(batch_seconds=lambda _: seconds.pop(0)) as api, Breaker(api.url, lose_the_answer) as server:
        run = ended(the_plan(20), api, base_url=server.url)
        assert (run.counts.answered, api.stats["batches_created"]) == (20, 3)
        assert run.attempts.filter(pl.col("dollars") > 0).height == 20


# money


@slow
def test_a_budget_is_a_hard_stop():
    """For any reply length the server's bill stays within the budget, and the remaining rows are not sent."""
    with quick(queue=40, replies=lambda body: "word " * 500) as api:
        plan = the_plan(100, queue=20)
        dollars = plan.options.filter(mode="batch")["dollars"].item() * 0.8
        run = ended(plan.replace(budget=dollars), api)
        stats = api.stats
        assert (run.state, run.stopped_by) == ("stopped", "budget")
        assert 0 < stats["billed_rows"] == stats["distinct_rows_billed"] < 100
        assert run.summary["dollars"].item() == pytest.approx(stats["dollars"], abs=1e-9)
        assert stats["dollars"] <= dollars
        assert "plan.replace(budget=...)" in repr(run)
        assert run.results["error"].n_unique() == 2


@slow
def test_the_first_message_is_short_and_sent_once_within_the_budget(tmp_path, monkeypatch):
    """It asks for one token; not if rows are answered, the budget has no room, or the run was stopped.

    If it is refused the fault may be that row's own, so another is asked and the batch is created.
    """
    taken_for_real(monkeypatch)

    async def stopped():
        run = the_plan(12).start(api.client(base_url=server.url), ledger=None, progress=False)
        run.stop()
        return await run

    with quick() as api, Breaker(api.url, on(message=[REFUSED])) as server:
        plan = the_plan(1)
        dollars = plan.options.filter(mode="batch")["dollars"].item()
        assert ended(plan.replace(budget=dollars), api, base_url=server.url).stopped_by == "budget"
        assert asyncio.run(stopped()).state == "stopped"
        assert not server.calls.keys() & {"message", "create"}
        run = ended(the_plan(12), api, tmp_path / "l", base_url=server.url)
        assert [json.loads(body)["max_tokens"] for body in server.bodies()] == [1, 1]
        first = run.attempts.filter(error="dry_run")
        columns = "mode", "status", "batch_id", "reply", "output_tokens"
        assert first.select(columns).rows() == [("live", 200, None, None, 1)]
        assert run.waste.filter(kind="dry_run")["billed_attempts"].to_list() == [1]
        assert run.summary["dollars"].item() == pytest.approx(api.stats["dollars"], abs=1e-12)
        assert ended(the_plan(20), api, tmp_path / "l", base_url=server.url).counts.answered == 20
        assert (server.calls["message"], server.calls["create"]) == (2, 2)


# rows that fail


@slow
def test_rows_that_never_succeed_are_given_up():
    """A row goes into at most three batches; its error says why, and another run may try again."""
    with quick(faults={"batch_expired": 1.0}) as api:
        run = ended(the_plan(30), api)
        assert (api.stats["billed_rows"], api.stats["batches_created"]) == (0, 3)
    assert run.results["error"].to_list() == ["expired"] * 30


@slow
def test_rows_that_are_refused_are_to_blame_where_others_are_answered(tmp_path):
    """If other rows are answered they are errors for good; a batch refused alike ends the run, rows open."""
    with quick(faults={"batch_invalid": 0.4}) as api:
        run = ended(the_plan(40), api, tmp_path / "l")
        failed = run.results.filter(error="invalid_request_error").height
        assert 0 < failed == run.counts.failed == run.results["reply"].null_count()
        assert api.stats["billed_rows"] == 40 - failed
        ended(the_plan(40), api, tmp_path / "l")
        assert api.stats["batches_created"] == 1
    with quick(faults={"batch_invalid": 1.0}) as api:
        assert ended(the_plan(45), api, tmp_path / "l").counts.failed == failed + 5
        for rows in (3, 30):
            run = ended(the_plan(rows), api, tmp_path / "new")
            assert run.stopped_by == "invalid_request_error"
            assert f"{rows} of {rows} rows" in run.message
        assert api.stats["batches_created"] == 3
    with quick() as api:
        assert ended(the_plan(30), api, tmp_path / "new").counts.answered == 30


@slow
def test_a_line_that_is_missing():
    """A row without a result goes into the next batch alone, if the budget has room: it may be paid for."""
    others = b'{"custom_id":"nobody-0","result":{"type":"expired"}}\n'

    def damaged(whole):
        return [*whole[1:], *whole[1:], others, b"\x00 no line \xff\n", whole[0][:40]]

    with quick() as api, Breaker(api.url, lines(damaged)) as server:
        run = ended(the_plan(2), api, base_url=server.url)
        assert (run.state, run.counts.answered, api.stats["billed_rows"]) == ("finished", 2, 3)
        assert run.batches["requests"].to_list() == [2, 1]
        assert run.attempts["error"].drop_nulls().to_list() == ["result_missing"]
    worst = run.job.batches._requests["worst_dollars"].sum()
    with quick() as api, Breaker(api.url, lines(damaged)) as server:
        run = ended(the_plan(2, budget=worst), api, base_url=server.url)
        assert (run.stopped_by, run.counts.answered, api.stats["billed_rows"]) == ("budget", 1, 2)


# missing batches


@slow
def test_a_batch_that_is_never_shown_stays_held(tmp_path, monkeypatch):
    """Its rows are not sent again until the user forgets it; a live run sends all other rows."""
    taken_for_real(monkeypatch)
    with quick(batch_seconds=1_500) as api:
        left(the_plan(8), api, tmp_path / "l")
        with Breaker(api.url, on(retrieve=[NOT_FOUND] * 99)) as server:
            run = ended(the_plan(20, mode="live"), api, tmp_path / "l", base_url=server.url)
        assert (run.counts.answered, run.stopped_by) == (12, "batch_not_found")
        assert api.stats["billed_rows_by_mode"]["live"] == 12 + 1
        with cs.Ledger(tmp_path / "l") as ledger:
            assert ledger.forget(run.batches["batch_id"].item()) == 8
        assert ended(the_plan(8, mode="live"), api, tmp_path / "l").counts.answered == 8


@slow
def test_a_batch_that_a_simulator_does_not_show_is_gone_with_it():
    """Its rows cost nothing, so they are sent again."""
    with quick() as api, Breaker(api.url, hide_the_first) as server:
        run = ended(the_plan(8), api, base_url=server.url)
    assert run.batches["state"].to_list() == ["gone", "collected"]
    assert run.counts.answered == 8


# stop, leave, interrupts


@slow
@pytest.mark.parametrize("state", ["stopped", "finished"])
def test_a_canceled_batch_keeps_what_was_answered(tmp_path, state):
    """After stop(), or if somebody else cancels it; the same cell sends the rest."""

    async def main():
        async with api.client(base_url=server.url) as client:
            run = the_plan(100).start(client, ledger=tmp_path / "l", progress=False)
            await until(lambda: api.stats["billed_rows"] >= 10)
            if state == "stopped":
                run.stop()
            else:
                await client.messages.batches.cancel(run.batches["batch_id"].item())
            return await run

    with quick(batch_seconds=2_000.0) as api, Breaker(api.url, on(cancel=[b""])) as server:
        run = asyncio.run(main())
        kept = run.results["reply"].count()
        assert (run.state, api.stats["batches_created"]) == (state, 1)
        assert 10 <= kept == api.stats["billed_rows"] < 100
        assert run.batches["canceled"].item() == 100 - kept
        assert run.summary["dollars"].item() == pytest.approx(api.stats["dollars"], abs=1e-9)
        assert set(run.results["error"]) == {None, "canceled"}
        paid_once(api, ended(the_plan(100), api, tmp_path / "l"), resumed=True)


@slow
def test_what_is_left_goes_on_and_is_collected_by_the_same_plan(tmp_path):
    """After leave() the batch continues; the next run sends none of it again, live or by batch.

    Until it has come in it counts against the budget at its worst case.
    """
    with quick(batch_seconds=1_500.0) as api:
        run = left(the_plan(20), api, tmp_path / "l")
        assert (run.state, "collects the batches, which continue at the API" in run.kept) == ("left", True)
        worst = run.job.batches._requests["worst_dollars"].sum()
        run = ended(the_plan(21, budget=worst), api, tmp_path / "l")
        paid_once(api, run, resumed=True)
        assert run.batches["created_at"][1] >= run.batches["ended_at"][0]
        left(the_plan(50), api, tmp_path / "l")
        paid_once(api, ended(the_plan(60, mode="live"), api, tmp_path / "l"), resumed=True)
        assert (api.stats["batches_created"], api.stats["calls"]) == (3, 10)
