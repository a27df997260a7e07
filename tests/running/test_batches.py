"""Runs by batches and hybrid runs, over HTTP against the simulator: paid, kept, canceled and left rows."""

import asyncio
import json
import re
from types import MappingProxyType, SimpleNamespace
from typing import NamedTuple

import polars as pl
import pytest
from batch_runs import ended, paid_once, quick, the_plan
from breaking import Breaker, error
from engine import taken_for_real
from running import until

import claudescale as cs
from claudescale.api import catalog
from claudescale.running.batches import MOST_ROUNDS
from claudescale.running.runs import BATCHES
from claudescale.simulator import Fault

NOT_FOUND = (404, {}, error("not_found_error", "Not found"))
KEY = (401, {}, error("authentication_error"))
HTML, PAGE = {"content-type": "text/html"}, b"<html><title>Gateway</title></html>"
REFUSED = (400, {}, error("invalid_request_error", "speed: Extra inputs are not permitted"))
ON_HOLD = error("invalid_request_error", "It is on hold.", error_code="organization_on_hold")
NOTHING = MappingProxyType({})
slow = pytest.mark.slow


@pytest.fixture
def api():
    """Return a fresh simulator, whose counts are this test's alone."""
    with quick() as one:
        yield one


@pytest.fixture
def real(monkeypatch):
    """Make the code that sends batches take a simulator for the API."""
    taken_for_real(monkeypatch)


def left(plan, api, ledger):
    """Submit the batches of a plan, leave them, and return the run."""

    async def leave():
        run = await plan.run(api.client(), ledger=ledger, progress=False, wait=False)
        seen = run.state, run.batches["state"].unique().to_list(), run.results["reply"].count()
        assert seen == ("running", ["in_progress"], 0)
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


def always(name, answer):
    """Give one answer to all calls of an endpoint."""
    return lambda call: answer if call.name == name else None


def looks_that_fail(call):
    """Hide a batch behind 404s and HTML pages, now and then."""
    bad = NOT_FOUND, (502, HTML, PAGE), (404, HTML, PAGE), (418, HTML, PAGE)
    hidden = call.name in {"retrieve", "results"} and (call.number <= 3 or call.number % 2)
    return bad[call.number % 4] if hidden else None


def moved(call):
    """Redirect to another path of the same host."""
    if call.path.startswith("/gw/"):
        return 307, {"location": f"/real{call.path[3:]}"}, b""
    return call.ask(call.path.removeprefix("/real"))


def first(name, change):
    """Change only the calls to an endpoint about one batch, the first it is asked about."""
    paths = {}

    def changed(call):
        if call.name != name or paths.setdefault(call.server, call.path) != call.path:
            return None
        return change(call)

    return changed


hide_the_first = first("retrieve", lambda _: NOT_FOUND)


def lines(change):
    """Change the result lines of the batch that is read first."""

    def changed(call):
        status, headers, content = call.ask()
        return status, headers, b"".join(change(content.splitlines(keepends=True)))

    return first("results", changed)


def on_hold(results):
    """Make all rows but five meet an account error."""
    told = {"result": {"type": "errored", "error": json.loads(ON_HOLD)}}
    return [*results[:5], *(json.dumps(json.loads(line) | told).encode() + b"\n" for line in results[5:])]


def redirect(status, where):
    """Return an answer that redirects elsewhere."""
    return status, {"location": f"{where}/v1/messages/batches?token=secret"}, b""


def archived(call):
    """Show batches without their results."""
    if call.name != "retrieve":
        return None
    status, headers, content = call.ask()
    gone = {"archived_at": "2026-11-20T10:00:00Z", "results_url": None}
    return status, headers, json.dumps(json.loads(content) | gone).encode()


# recoverable faults, and fatal ones


class Situation(NamedTuple):
    """A plan, a simulator, faults of the calls, and the expected outcome."""

    plan: dict
    rows: int = 12
    api: dict = NOTHING
    change: object = lambda _: None
    seen: dict = NOTHING


def faults(**given):
    """Return a simulator with faults; a number says at which tries."""
    return {"faults": {name: Fault(tries=tries) for name, tries in given.items()}}


HYBRID = {"mode": "hybrid", "deadline": 600}
PASSES = {
    "answers to creates are lost": Situation({"queue": 20}, 40, faults(create_lost=[1, 2])),
    "a create fails, and there is a batch": Situation(
        {}, 20, faults(create_failed_after=[1]), seen={"made": 1}
    ),
    "a create fails": Situation({"queue": 20}, 40, faults(create_failed=[2])),
    "the batches cannot be listed": Situation({}, change=on(create=[b"HTTP/1"], list=[(200, HTML, PAGE)])),
    "a queue": Situation({"queue": 10}, 25, {"queue": 10}, seen={"requests": [10, 10, 5]}),
    "a queue smaller than the table says": Situation({"queue": 1_000}, 100, {"queue": 40}),
    "errors of the moment": Situation({}, 40, {"faults": {"batch_errored": Fault(0.4, tries=[1])}}),
    "rows expire": Situation({}, 40, {"faults": {"batch_expired": Fault(0.4, tries=[1])}}),
    "a batch is stuck": Situation({}, 20, faults(batch_stuck=[1]) | {"speed": 100_000}, seen={"made": 2}),
    "looks that fail": Situation({}, change=looks_that_fail, seen={"made": 1}),
    "another's answer": Situation({}, change=on(retrieve=[(200, {}, b'{"hello": "world"}')] * 2)),
    "results break off": Situation({}, api=faults(results_cut=[1, 2]), seen={"made": 1}),
    "a key that worked is refused": Situation(
        {"queue": 10}, 40, change=on(retrieve=[KEY], create=[None, KEY, KEY])
    ),
    "a redirect to the same host": Situation({}, change=moved, seen={"made": 1}),
    "hybrid, in time": Situation(HYBRID, 40, seen={"live": 1}),
    "hybrid, not shown at first": Situation(
        HYBRID, 30, {"speed": 200}, on(retrieve=[NOT_FOUND] * 3), seen={"live": 1}
    ),
    "hybrid, no batches there": Situation(
        HYBRID, 30, {"speed": 200}, always("create", NOT_FOUND), {"live": 30}
    ),
}


@slow
@pytest.mark.parametrize("name", PASSES)
def test_what_a_run_gets_over(name):
    """With any fault of the calls each row is answered and paid for once, by the server's account."""
    plan, rows, options, change, seen = PASSES[name]
    with quick(**options) as api, Breaker(api.url, change) as server:
        run = ended(the_plan(rows, **plan), api, base_url=server.url + "/gw" * (change is moved))
        paid_once(api, run)
        requests = run.batches.filter(pl.col("state") != "absent")["requests"].to_list()
        live = api.stats["billed_rows_by_mode"]["live"]
        assert {"made": len(requests), "requests": requests, "live": live}.items() >= seen.items()


class End(NamedTuple):
    """Faults of the calls, and the run's outcome: error, message, and number of rows and creates."""

    change: object
    error: str
    words: str
    answered: int = 0
    creates: int = 1
    rows: int = 12
    plan: dict = NOTHING


ENDS = {
    "a mistake in all requests": End(
        on(message=[REFUSED] * 3), "invalid_request_error", "Extra inputs", creates=0
    ),
    "on hold at creation": End(
        on(create=[None, None, (400, {}, ON_HOLD)]), "organization_on_hold", "on hold", 20, 3, 40
    ),
    "on hold in results": End(lines(on_hold), "organization_on_hold", "on hold", 35, 4, 40, {"queue": 100}),
    "one of several is never shown": End(
        hide_the_first, "batch_not_found", r"forget\('msgbatch", 20, 3, 30, {"queue": 20}
    ),
    "no result can be read": End(lines(lambda _: [PAGE]), "results_incomplete", r"forget\('msgbatch", rows=8),
    "results are gone": End(archived, "results_gone", r"29 days .*forget\('msgbatch", rows=8),
    "a redirect": End(always("create", redirect(302, "/new")), "redirect_error", "Set base_url to /new"),
    "a redirect to another host": End(
        always("create", redirect(307, "http://127.0.0.1:9")), "redirect_error", "to http://127.0.0.1:9"
    ),
    "hybrid, never shown": End(
        always("retrieve", NOT_FOUND), "batch_not_found", "forget", 1, rows=9, plan=HYBRID | {"deadline": 30}
    ),
}


@slow
@pytest.mark.parametrize("name", ENDS)
def test_what_ends_a_run(tmp_path, monkeypatch, name, real):
    """The other batches come in, no row is final because of it, and the same cell pays for no row again."""
    end = ENDS[name]
    tens = SimpleNamespace(**vars(catalog.BATCH) | {"max_requests": 10})
    monkeypatch.setattr("claudescale.api.catalog.BATCH", tens)
    with quick(speed=200 if end.plan.get("deadline") else 1_000) as api:
        with Breaker(api.url, end.change) as server:
            run = ended(the_plan(end.rows, **end.plan), api, tmp_path / "l", base_url=server.url)
        assert (run.state, run.stopped_by) == ("failed", end.error)
        assert re.search(end.words, run.message)
        assert not any(secret in run.message for secret in ("token", *run.plan.frame["text"]))
        assert (run.counts.answered, server.calls["create"]) == (end.answered, end.creates)
        again = ended(the_plan(end.rows), api, tmp_path / "l")
        assert again.results["reply"].null_count() == 0
        paid = pl.concat([run.attempts, again.attempts]).filter(pl.col("dollars") > 0)
        assert paid.filter(pl.col("error").is_null()).height == end.rows
        untold = 5 if name == "on hold in results" else 0  # they were answered before the lines were changed
        assert api.stats["billed_rows"] == paid.height + untold


# batches that are created, or may be


def test_a_run_by_batches_and_the_frame_of_them(api):
    """Each row is paid for once; `batches` has the API's times and counts, and the cost."""
    run = ended(the_plan(90, queue=60), api)
    paid_once(api, run)
    assert run.batches.schema == BATCHES
    assert run.batches["state"].to_list() == ["collected"] * 2
    assert run.batches["succeeded"].sum() == run.batches["requests"].sum() == 90
    assert run.batches["minutes"].to_list() == pytest.approx([1.0] * 2, abs=0.01)
    assert run.batches["dollars"].sum() == pytest.approx(run.summary["dollars"].item())
    kept = (run.batches["results_until"] - run.batches["created_at"]).dt.total_hours().unique()
    assert kept.to_list() == [29 * 24]
    assert run.throughput["requests_per_minute"].sum() == pytest.approx(90, rel=0.1)


async def foreign(api, rows):
    """Create another client's batch of a confusable size."""
    params = {"model": "claude-haiku-5-5", "max_tokens": 16, "messages": [{"role": "user", "content": "x"}]}
    given = [{"custom_id": f"{i:032x}-abcdefabcdef", "params": params} for i in range(rows)]
    async with api.client() as client:
        await client.messages.batches.create(requests=given)


@slow
def test_foreign_batches_of_the_same_size_and_time():
    """Another client's batches, one ended and one in progress, are never taken for the lost one."""
    seconds = [60, 120, 600]

    def lose_the_answer(call):
        if call.name != "create" or call.number > 1:
            return None
        asyncio.run(foreign(api, 20))
        call.ask()
        asyncio.run(foreign(api, 20))
        return b""

    with (
        quick(batch_seconds=lambda _: seconds.pop(0)) as api,
        Breaker(api.url, lose_the_answer) as server,
    ):
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
        assert run.results["error"].n_unique() == 2


@slow
def test_a_batch_that_was_left_counts_against_the_budget(tmp_path):
    """It counts at its worst case until it has come in; before that the rest is not sent."""
    with quick(batch_seconds=1_500.0) as api:
        run = left(the_plan(20), api, tmp_path / "l")
        worst = run.job.batches._requests["worst_dollars"].sum()
        run = ended(the_plan(21, budget=worst), api, tmp_path / "l")
        assert run.counts.answered == 21
        assert run.batches["created_at"][1] >= run.batches["ended_at"][0]


@slow
def test_dollars_with_a_cache_equal_the_servers():
    """A cached prompt is primed by a batch of one row; hits are measured, dollars are the server's."""
    with quick(seed=3) as api:
        run = ended(the_plan(60, cache=True, system="Answer in one word. " * 600), api)
        paid_once(api, run)
        assert run.batches["requests"].to_list() == [1, 59]
        assert 0.3 <= run.batches["cache_hit_share"][1] <= 1
        assert run.attempts["cache_read_input_tokens"].sum() == api.stats["cache_read_input_tokens"]


@slow
def test_the_first_message_is_short_and_sent_once_within_the_budget(tmp_path, real):
    """It asks for one token, and is not sent if rows are already answered or the budget has no room."""
    with quick() as api, Breaker(api.url, lambda _: None) as server:
        plan = the_plan(1)
        dollars = plan.options.filter(mode="batch")["dollars"].item()
        assert ended(plan.replace(budget=dollars), api, base_url=server.url).stopped_by == "budget"
        assert not server.calls.keys() & {"message", "create"}
        run = ended(the_plan(12), api, tmp_path / "l", base_url=server.url)
        (body,) = server.bodies()
        assert json.loads(body)["max_tokens"] == 1
        first = run.attempts.filter(error="dry_run")
        columns = "mode", "status", "batch_id", "reply", "output_tokens"
        assert first.select(columns).rows() == [("live", 200, None, None, 1)]
        assert run.waste.filter(kind="dry_run")["billed_attempts"].to_list() == [1]
        assert run.summary["dollars"].item() == pytest.approx(api.stats["dollars"], abs=1e-12)
        ended(the_plan(20), api, tmp_path / "l", base_url=server.url)
        assert (server.calls["message"], server.calls["create"]) == (1, 2)


# rows that fail


@slow
def test_rows_that_never_succeed_are_given_up():
    """A row is given up after several batches; its error says why, and another run may try again."""
    with quick(faults={"batch_expired": 1.0}) as api:
        run = ended(the_plan(30), api)
        assert (api.stats["billed_rows"], api.stats["batches_created"]) == (0, MOST_ROUNDS)
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
def test_one_row_that_is_refused_before_a_batch_ends_no_run(real):
    """The fault may be that row's own, so the batch is created."""
    with quick() as api, Breaker(api.url, on(message=[REFUSED])) as server:
        assert ended(the_plan(30), api, base_url=server.url).counts.answered == 30
        assert (server.calls["message"], server.calls["create"]) == (2, 1)


@slow
def test_a_line_that_is_missing():
    """A row without a result gets an error of its own and goes into the next batch alone."""
    others = b'{"custom_id":"nobody-0","result":{"type":"expired"}}\n'

    def damaged(whole):
        return [*whole[1:], *whole[1:], others, b"\x00 no line \xff\n", whole[0][:40]]

    with quick() as api, Breaker(api.url, lines(damaged)) as server:
        run = ended(the_plan(12), api, base_url=server.url)
        assert (run.state, run.counts.answered) == ("finished", 12)
        assert run.batches["requests"].to_list() == [12, 1]
        assert run.attempts["error"].drop_nulls().to_list() == ["result_missing"]
        assert api.stats["billed_rows"] == 13


@slow
def test_a_line_that_is_missing_counts_against_the_budget():
    """It may have been billed, so it counts at its worst case."""
    with quick() as api, Breaker(api.url, lines(lambda whole: whole[:-1])) as server:
        dollars = ended(the_plan(2), api).job.batches._requests["worst_dollars"].sum()
        run = ended(the_plan(2, budget=dollars), api, base_url=server.url)
        assert (run.stopped_by, run.counts.answered, api.stats["batches_created"]) == ("budget", 1, 2)


# missing batches


@slow
def test_a_batch_that_is_never_shown_stays_held(tmp_path, real):
    """Its rows are not sent again until the user forgets it; a live run sends all other rows."""
    with quick(batch_seconds=1_500) as api:
        left(the_plan(8), api, tmp_path / "l")
        with Breaker(api.url, always("retrieve", NOT_FOUND)) as server:
            run = ended(the_plan(20, mode="live"), api, tmp_path / "l", base_url=server.url)
        assert (run.counts.answered, run.stopped_by) == (12, "batch_not_found")
        assert api.stats["billed_rows_by_mode"]["live"] == 12 + 1
        with cs.Ledger(tmp_path / "l") as ledger:
            assert ledger.forget(run.batches["batch_id"].item()) == 8
        assert ended(the_plan(8, mode="live"), api, tmp_path / "l").counts.answered == 8


@slow
def test_a_batch_that_a_simulator_does_not_show_is_gone_with_it(api):
    """Its rows cost nothing, so they are sent again."""
    with Breaker(api.url, hide_the_first) as server:
        run = ended(the_plan(8), api, base_url=server.url)
    assert run.batches["state"].to_list() == ["gone", "collected"]
    assert run.counts.answered == 8


# stop, leave, interrupts


@slow
def test_stop_cancels_and_keeps_what_was_answered(tmp_path):
    """After stop() the batch is canceled, its answered rows are kept, and the rest is sent the next time."""

    async def main():
        run = the_plan(100).start(api.client(base_url=server.url), ledger=tmp_path / "l", progress=False)
        await until(lambda: api.stats["billed_rows"] >= 10)
        run.stop()
        return await run

    with quick(batch_seconds=2_000.0) as api, Breaker(api.url, on(cancel=[b""])) as server:
        run = asyncio.run(main())
        kept = run.results["reply"].count()
        assert run.state == "stopped"
        assert 10 <= kept == api.stats["billed_rows"] < 100
        assert run.batches["canceled"].item() == 100 - kept
        assert run.summary["dollars"].item() == pytest.approx(api.stats["dollars"], abs=1e-9)
        assert set(run.results["error"]) <= {None, "canceled", "not_sent"}
        paid_once(api, ended(the_plan(100), api, tmp_path / "l"), resumed=True)


def test_a_run_that_is_stopped_before_it_begins_sends_nothing(real):
    """Neither a batch nor the message that looks at a request before it."""

    async def main():
        run = the_plan(12).start(api.client(base_url=server.url), ledger=None, progress=False)
        run.stop()
        return await run

    with quick() as api, Breaker(api.url, lambda _: None) as server:
        assert asyncio.run(main()).state == "stopped"
        assert not server.calls.keys() & {"message", "create"}


@slow
def test_rows_that_somebody_else_canceled_are_not_sent_again(tmp_path):
    """The results name them; the same cell sends them."""

    async def main():
        async with api.client() as client:
            run = the_plan(40).start(client, ledger=tmp_path / "l", progress=False)
            await until(lambda: api.stats["billed_rows"] >= 5)
            await client.messages.batches.cancel(run.batches["batch_id"].item())
            return await run

    with quick(batch_seconds=1_000.0) as api:
        run = asyncio.run(main())
        assert (run.state, api.stats["batches_created"]) == ("finished", 1)
        assert set(run.results["error"]) == {None, "canceled"}
        assert ended(the_plan(40), api, tmp_path / "l").counts.answered == 40


@slow
def test_what_is_left_goes_on_and_is_collected_by_the_same_plan(tmp_path):
    """After leave() the batch continues; the next run resends none of it, live or by batch."""
    with quick(batch_seconds=1_500.0) as api:
        left(the_plan(50), api, tmp_path / "l")
        run = ended(the_plan(60, mode="live"), api, tmp_path / "l")
        assert (api.stats["batches_created"], api.stats["calls"]) == (1, 10)
        paid_once(api, run)


@slow
def test_hybrid_with_a_batch_that_is_too_slow():
    """A late batch is canceled and the rest is sent live, in time and without paying twice."""
    with quick(batch_seconds=8_000.0, speed=100) as api:
        run = ended(the_plan(40, mode="hybrid", deadline=8), api)
        paid_once(api, run)
        assert run.batches["canceled"].sum() == api.stats["billed_rows_by_mode"]["live"] - 1 > 0
        assert run.minutes <= 8
