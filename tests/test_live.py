"""The live engine in virtual time: real pacer, the simulator's desk or a script in place of a network."""

import asyncio
import itertools
import json
from collections import Counter

import pytest
import virtual
from engine import LIMITS, Engine, ScriptSend, body, rows, through_desk, through_script, worst_dollars

from claudescale.api.answers import Answer, Verdict
from claudescale.running import health, live
from claudescale.running.health import Health
from claudescale.running.job import Purse

SEEDS = range(4)
UNBILLED = {
    429: 0.05,
    500: 0.05,
    529: 0.05,
    408: 0.03,
    409: 0.03,
    "drop": 0.05,
    "html_body": 0.03,
    "hang": 0.01,
}
BILLED = {"drop_after": 0.05, "truncated_body": 0.05, "not_json": 0.05}


def answer(status, kind="api_error", words="no", headers=None):
    """Return an error answer."""
    content = {"type": "error", "error": {"type": kind, "message": words}}
    return Answer(status, headers or {}, json.dumps(content).encode())


GOOD = Answer(
    200,
    {},
    json.dumps(
        {"content": [{"type": "text", "text": "ok"}], "usage": {"input_tokens": 20, "output_tokens": 2}}
    ).encode(),
)
UNREACHABLE = Answer(None, {}, b"", "connection_error", sent=False)
NO_MESSAGE = Answer(200, {}, b"<html></html>")


@pytest.mark.parametrize("seed", SEEDS)
def test_every_row_once(seed):
    """Without faults each row is sent once, is final once, and costs what the API billed."""
    engine = through_desk(200, seed=seed)
    assert sorted(engine.finals) == [row.key for row in rows(200)]
    assert engine.stats["calls"] == engine.stats["billed_rows"] == len(engine.attempts) == 200
    assert engine.dollars == pytest.approx(engine.stats["dollars"], abs=1e-12)
    assert engine.live.stopped_by is None


@pytest.mark.parametrize("seed", SEEDS)
def test_faults_before_the_bill(seed):
    """Failures before an answer is written cost no money and no row, however they come."""
    engine = through_desk(300, seed=seed, faults=UNBILLED)
    assert sorted(engine.finals) == [row.key for row in rows(300)]
    assert engine.stats["billed_rows"] == engine.stats["distinct_rows_billed"] == 300
    assert engine.dollars == pytest.approx(engine.stats["dollars"], abs=1e-12)
    assert engine.stats["calls"] == len(engine.attempts) > 350


@pytest.mark.parametrize("seed", SEEDS)
def test_faults_after_the_bill(seed):
    """An answer lost after it was billed is asked for again, and stands among the attempts."""
    engine = through_desk(300, seed=seed, faults=BILLED)
    assert sorted(engine.finals) == [row.key for row in rows(300)]
    lost = sum(engine.errors[error] for error in ("connection_error", "invalid_response"))
    assert engine.stats["billed_rows"] == 300 + lost
    assert engine.stats["distinct_rows_billed"] == 300
    assert engine.dollars < engine.stats["dollars"]


def test_odd_replies_are_paid_data():
    """A refusal, a cut, an empty or thoughtful reply ends its row as data and is priced like any other."""
    kinds = ("refusal", "cut", "empty_content", "thinking_only")
    engine = through_desk(200, seed=1, faults=dict.fromkeys(kinds, 0.1))
    assert len(engine.finals) == engine.stats["calls"] == 200
    assert engine.dollars == pytest.approx(engine.stats["dollars"], abs=1e-12)
    assert {"refusal", "max_tokens", "empty_reply", None} <= set(engine.errors)


def test_refusals_for_limits_are_no_failures():
    """Where the real limit is a tenth of what was thought, calls are refused and no row is lost."""
    engine = through_desk(200, bucket_seconds=1.0, requests_per_minute=100)
    assert len(engine.finals) == 200
    assert engine.stats["refused"]["requests_per_minute"] > 0
    assert engine.errors.keys() <= {None, "max_tokens", "rate_limit_error"}


@pytest.mark.parametrize("concurrency", [1, 5])
def test_rows_are_pulled_as_they_go(concurrency):
    """From rows without end only as many are taken, and made tasks of, as can be under way."""
    tasks = set()

    async def go():
        engine = Engine(None, virtual.clock(), concurrency=concurrency)

        def script(content, number):
            tasks.add(len(asyncio.all_tasks()))
            if len(send.calls) == 100:
                engine.live.stop()
            return GOOD

        send = ScriptSend(script)
        engine.job.wire.send = send
        await engine.answer(
            itertools.chain.from_iterable(rows(10, first) for first in itertools.count(0, 10))
        )
        return engine

    engine = virtual.run(go())
    assert engine.rows_given <= 100 + concurrency
    assert max(tasks) <= concurrency + 1
    assert len(engine.finals) == len(engine.attempts)


# one row


def test_bad_rows_end_alone():
    """A row that the API turns down has its error for good, and the others have their answers."""
    bad = {body(number) for number in range(3, 8)}
    no = answer(400, "invalid_request_error")
    engine = through_script(lambda content, _: no if content in bad else GOOD, concurrency=1)
    assert Counter(attempt.error for attempt in engine.attempts) == {None: 5, "invalid_request_error": 5}
    assert len(engine.finals) == 10
    assert engine.live.stopped_by is None


def test_bad_rows_before_any_answer():
    """A row turned down first is final only once another is answered: it may be the account that is wrong."""
    no = answer(400, "invalid_request_error")
    engine = through_script(lambda content, _: no if content == body(0) else GOOD, concurrency=1)
    assert len(engine.attempts) == 10
    assert sorted(engine.finals) == [row.key for row in rows(10)]
    alone = through_script(lambda *_: no, 10, concurrency=1)
    assert len(alone.attempts) == 10
    assert alone.finals == []


def test_a_poisonous_row():
    """A row that only makes errors is given up after its tries, without being final or ending the run."""
    bad = rows(300)[10]
    engine = through_script(
        lambda content, _: answer(500) if content == bad.body else GOOD, 300, concurrency=2
    )
    tries = [attempt for attempt in engine.attempts if attempt.key == bad.key]
    assert len(tries) == live.MOST_TRIES
    assert len(engine.finals) == 299
    assert engine.live.stopped_by is None


def test_a_poisonous_row_alone():
    """A lone row is given up too, though nothing tells whether it is the row or the API."""
    engine = through_script(lambda *_: answer(500), 1)
    assert len(engine.attempts) == live.MOST_TRIES_IN_SILENCE
    assert engine.finals == []
    assert engine.live.stopped_by is None


def test_a_row_that_hangs():
    """A row whose calls never end costs half an hour and not its number of tries in hours."""
    timeout = Answer(None, {}, b"", "timeout_error")
    engine = through_script(lambda *_: timeout, 1, seconds=600.0)
    assert len(engine.attempts) == 3


def test_endless_refusals():
    """A row that is refused for the limits again and again is given up at last."""
    refusal = answer(429, "rate_limit_error", headers={"retry-after": "1"})
    engine = through_script(lambda *_: refusal, 1)
    assert len(engine.attempts) == live.MOST_REFUSALS
    assert engine.finals == []


@pytest.mark.parametrize("status", [429, 503, 408])
def test_retry_after(status):
    """No call goes before the time that the API said, whatever the status that said it."""
    told = answer(status, headers={"retry-after": "40"})
    engine = through_script(lambda _, number: told if number == 1 else GOOD, 1)
    first, second = engine.attempts
    assert second.sent_at - first.sent_at >= 40


def test_gaps_grow():
    """Between the tries of a row the gaps double, up to a minute."""
    engine = through_script(lambda _, number: answer(500) if number <= 10 else GOOD, 1, seconds=0.0)
    sent = [attempt.sent_at for attempt in engine.attempts]
    gaps = [after - before for before, after in itertools.pairwise(sent)]
    for number, gap in enumerate(gaps):
        most = min(0.5 * 2.0**number, live.LONGEST_BACKOFF_SECONDS)
        assert most / 2 <= gap <= most * 1.01


# the cache


def first_calls(script, **options):
    """Return when each call began, in seconds after the first."""
    engine = through_script(script, 6, warm=True, **options)
    sent = sorted(attempt.sent_at for attempt in engine.attempts)
    return [round(at - sent[0], 3) for at in sent], engine


def test_warming():
    """The first call goes alone; the others follow together when it is answered."""
    began, engine = first_calls(lambda *_: GOOD)
    assert began[0] == 0
    assert all(at >= 1.0 for at in began[1:])
    assert engine.seconds < 4


@pytest.mark.parametrize("failure", [answer(500), answer(400, "invalid_request_error"), NO_MESSAGE])
def test_warming_that_fails(failure):
    """Where the first call fails, still one goes at a time until one is answered; then all go."""
    calls = []

    def script(content, number):
        calls.append(content)
        return failure if len(calls) <= 3 else GOOD

    began, engine = first_calls(script)
    assert all(after - before >= 1.0 for before, after in itertools.pairwise(began[:4]))
    assert began[5] - began[4] < 0.5
    assert engine.pacer.in_flight == 0


def test_warming_saves_writes():
    """With one call ahead the shared prefix is written to the cache once; without it, by many."""
    system = [{"type": "text", "text": "Name the complaint. " * 400, "cache_control": {"type": "ephemeral"}}]
    some = rows(30, system=system)
    written = [
        sum(attempt.cache_write_5m_input_tokens > 0 for attempt in engine.attempts)
        for engine in (through_desk(0, {"warm": warm}, some=some) for warm in (True, False))
    ]
    assert written[0] == 1
    assert written[1] > 5


def test_the_call_that_writes_the_cache_is_not_taken_for_a_typical_one():
    """What only the first call takes of the input limit does not slow down those that read the cache."""
    system = [
        {"type": "text", "text": "Name the complaint. " * 4_000, "cache_control": {"type": "ephemeral"}}
    ]
    own = [row._replace(input_tokens=30.0) for row in rows(600, system=system)]
    engine = through_desk(0, {"warm": True}, some=own, bucket_seconds=1)
    assert sum(attempt.cache_write_5m_input_tokens > 0 for attempt in engine.attempts) == 1
    assert engine.seconds < 1.1 * 60 * 600 / LIMITS.requests_per_minute


# money


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("answers", [2.5, 40, 100])
def test_budget_holds(seed, answers):
    """What the API billed, seen or not, is never more than the budget, and the run says why it ended."""
    budget = answers * worst_dollars(rows(1)[0])
    faults = {"drop_after": 0.1, "not_json": 0.1, "truncated_body": 0.1, 500: 0.1}
    engine = through_desk(2_000, {"budget_dollars": budget}, seed=seed, faults=faults)
    assert engine.stats["dollars"] <= budget
    assert engine.live.stopped_by.error == "budget"
    assert engine.stats["billed_rows"] >= answers - 1


def test_budget_that_buys_nothing():
    """A budget below one row's worst case sends nothing."""
    engine = through_desk(5, {"budget_dollars": worst_dollars(rows(1)[0]) * 0.99})
    assert engine.attempts == []
    assert engine.live.stopped_by.error == "budget"


def test_budget_that_is_enough():
    """A budget of all worst cases answers all rows."""
    engine = through_desk(50, {"budget_dollars": sum(worst_dollars(row) for row in rows(50))})
    assert len(engine.finals) == 50
    assert engine.live.stopped_by is None


def test_unreached_calls_cost_no_budget():
    """A call that never reached the API takes nothing from the budget."""
    engine = through_script(
        lambda _, number: UNREACHABLE if number <= 5 else GOOD,
        1,
        budget_dollars=worst_dollars(rows(1)[0]) * 1.5,
    )
    assert len(engine.finals) == 1


def test_no_usage_counts_as_the_worst():
    """A reply without usage is kept, and taken for as dear as it can be."""
    bare = Answer(200, {}, b'{"content": [{"type": "text", "text": "ok"}], "usage": null}')
    engine = through_script(
        lambda *_: bare, 10, budget_dollars=3.5 * worst_dollars(rows(1)[0]), concurrency=1
    )
    assert [attempt.reply for attempt in engine.attempts] == ["ok"] * 3
    assert engine.live.stopped_by.error == "budget"


def test_purse_forgets_rounding():
    """When no call is under way nothing is set aside, whatever floating point left over."""
    purse = Purse(0.0)
    under_way = {worst: purse.reserved(worst) for worst in (0.1, 0.2, 0.3)}
    for reserved in under_way.values():
        reserved.__enter__()
    for worst in (0.3, 0.1, 0.2):
        under_way[worst].__exit__(None, None, None)
    assert purse.affords(0.0)


# the end of a run


def stopped(script, count=2_000, *, at=None, **options):
    """Return the engine after `stop` at a virtual second."""

    async def go():
        clock = virtual.clock()
        engine = Engine(ScriptSend(script), clock, **options)
        if at is not None:
            asyncio.get_running_loop().call_later(at, engine.live.stop)
            asyncio.get_running_loop().call_later(at, engine.live.stop)
        await engine.answer(rows(count))
        engine.seconds = asyncio.get_running_loop().time()
        return engine

    return virtual.run(go())


def test_stop_keeps_what_is_in_flight():
    """After `stop` nothing is sent, and every call under way is awaited and kept."""
    engine = stopped(lambda *_: GOOD, at=5.5)
    assert 0 < len(engine.attempts) == len(engine.send.calls) == len(engine.finals) < 2_000
    assert max(attempt.sent_at for attempt in engine.attempts) - 1_790_000_000 <= 5.5
    assert engine.seconds <= 6.5 + 1e-6
    assert engine.live.stopped_by is None


@pytest.mark.parametrize(
    "told",
    [
        answer(429, "rate_limit_error", headers={"retry-after": "3600"}),
        answer(503, headers={"retry-after": "3600"}),
    ],
)
def test_stop_does_not_wait_for_limits(told):
    """A run that was told to wait an hour ends at once when it is stopped."""
    engine = stopped(lambda *_: told, at=20.0)
    assert engine.seconds == pytest.approx(20.0)
    assert engine.finals == []


def test_stop_while_rows_are_awaited():
    """A run whose next row never comes ends at once when it is stopped."""

    async def go():
        engine = Engine(ScriptSend(lambda *_: GOOD), virtual.clock())

        async def endless():
            yield rows(1)[0]
            await asyncio.Event().wait()

        running = asyncio.create_task(engine.live.answer(endless()))
        await asyncio.sleep(5)
        asyncio.get_running_loop().call_soon(engine.live.stop)
        await running
        return engine

    engine = virtual.run(go())
    assert len(engine.finals) == 1
    assert engine.live.stopped_by is None


def test_stop_before_the_beginning():
    """A run that was stopped before it began sends nothing."""

    async def go():
        engine = Engine(ScriptSend(lambda *_: GOOD), virtual.clock())
        engine.live.stop()
        await engine.answer(rows(50))
        return engine

    engine = virtual.run(go())
    assert engine.send.calls == []
    assert engine.rows_given == 0


@pytest.mark.parametrize("after", [0.0, 0.5, 1.5, 7.25, 30.0])
def test_cancellation(after):
    """Cancelled at any moment, the engine leaves no task and no permit behind, and passes it on."""

    def script(content, number):
        return answer(429, headers={"retry-after": "2"}) if hash(content) % 7 == number else GOOD

    async def go():
        engine = Engine(ScriptSend(script), virtual.clock())
        running = asyncio.create_task(engine.answer(rows(3_000)))
        await asyncio.sleep(after)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert engine.pacer.in_flight == 0
        again = Engine(ScriptSend(lambda *_: GOOD), virtual.clock())
        again.live.pacer = again.pacer = engine.pacer
        await again.answer(rows(5))
        return again

    assert len(virtual.run(go()).finals) == 5


def test_a_record_that_fails():
    """Where an attempt cannot be recorded the run ends with that error, after what was in flight came in."""

    async def go():
        engine = Engine(ScriptSend(lambda *_: GOOD), virtual.clock(), concurrency=8)

        def record(attempt, *, final):
            engine.attempts.append(attempt)
            if len(engine.attempts) == 20:
                raise OSError(28, "No space left on device")

        engine.job.record = record
        with pytest.raises(OSError, match="No space"):
            await engine.answer(rows(2_000))
        return engine

    engine = virtual.run(go())
    assert len(engine.attempts) == len(engine.send.calls) <= 20 + 2 * 8


def test_rows_that_fail():
    """An error of the rows' iterator ends the run with that error; what was sent before is kept."""

    async def go():
        engine = Engine(ScriptSend(lambda *_: GOOD), virtual.clock())

        def broken():
            yield from rows(5)
            raise LookupError

        with pytest.raises(LookupError):
            await engine.answer(broken())
        return engine

    assert len(virtual.run(go()).finals) == 5


def test_a_send_that_fails():
    """An error that no answer stands for ends the run with it, and hands the permit back."""

    async def go():
        def script(content, number):
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await Engine(ScriptSend(script), virtual.clock()).answer(rows(50))

    virtual.run(go())


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, "authentication_error"),
        (402, "billing_error"),
        (403, "permission_error"),
        (404, "not_found_error"),
    ],
)
def test_the_account_ends_a_run(status, kind):
    """What concerns the account ends the run within the calls under way, and no row is final."""
    engine = through_script(lambda *_: answer(status, kind, "model: claude-none"), 500)
    assert engine.live.stopped_by.error == kind
    assert len(engine.attempts) <= 32
    assert engine.finals == []


@pytest.mark.parametrize(
    ("level", "error"),
    [("spend_cap", "enforced_spend_limit_reached"), ("workspace_spend", "spend_limit_reached")],
)
def test_spend_limits_end_a_run(level, error):
    """A spend limit ends the run; everything paid for before is kept."""
    engine = through_desk(500, faults={level: 0.003})
    assert engine.live.stopped_by.error == error
    assert 0 < len(engine.finals) == engine.stats["billed_rows"] < 500
    assert engine.errors[error] <= 32


def test_a_hopeless_request():
    """Where the API says the same of every row the run ends soon, and no row is final."""
    engine = through_script(lambda *_: answer(400, "invalid_request_error", "Extra inputs"), 500)
    assert engine.live.stopped_by.error == "invalid_request_error"
    assert len(engine.attempts) <= health.HOPELESS_ROWS + 32
    assert engine.finals == []


def test_many_bad_rows():
    """Rows that are turned down each for its own reason do not end the run."""
    engine = through_script(lambda content, _: answer(400, "invalid_request_error", f"{hash(content)}"), 200)
    assert len(engine.attempts) == 200
    assert engine.live.stopped_by is None


def test_no_api_at_all():
    """Where all that answers is no Message the run ends before much can have been billed."""
    engine = through_script(lambda *_: NO_MESSAGE, 500)
    assert engine.live.stopped_by.error == "invalid_response"
    assert len(engine.attempts) <= health.HOPELESS_ROWS + 32


def test_unreachable():
    """An API that was never reached ends the run in minutes; every row can be sent again."""
    engine = through_script(lambda *_: UNREACHABLE, 500)
    assert engine.live.stopped_by.error == "connection_error"
    assert health.UNREACHABLE_SECONDS <= engine.seconds <= 240
    assert engine.finals == []


def test_an_outage_is_waited_out():
    """Minutes of failures in the middle cost no row: all are answered when the API is back."""
    engine = through_desk(1_000, seed=2, faults={529: (1.0, 2.0, 302.0)})
    assert len(engine.finals) == 1_000
    assert engine.live.stopped_by is None
    assert engine.seconds > 302


def test_after_an_outage_each_answer_calls_others_back():
    """Rows that wait for a sign of life need not sit out their minute: all are under way within seconds."""
    engine = through_desk(1_000, seed=2, faults={529: (1.0, 2.0, 302.0)})
    sent = [row.sent_at - 1_790_000_000.0 for row in engine.attempts if row.error is None]
    first, *_ = back = [seconds for seconds in sent if seconds > 302]
    assert first < 320
    assert sum(seconds < first + 8 for seconds in back) > 50


def test_an_outage_without_end():
    """An API that does not come back ends the run, and leaves its rows to be sent again."""
    engine = through_desk(1_000, seed=2, faults={529: (1.0, 2.0, 1e9)})
    assert engine.live.stopped_by.error == "overloaded_error"
    assert engine.seconds < 1_500
    assert 0 < len(engine.finals) == engine.stats["billed_rows"] < 1_000


def test_long_refusals_are_no_silence():
    """An hour's wait that the API asked for does not count as silence."""
    watch = Health()
    failure = Verdict(outcome="overloaded", error="api_error")
    refusal = Verdict(outcome="refused", error="rate_limit_error")
    for _ in range(20):
        assert not watch.sees(failure, 0.0, status=500, waiting=False)
    assert not watch.sees(refusal, 1.0, status=429, waiting=True)
    for _ in range(20):
        assert not watch.sees(failure, 4_000.0, status=500, waiting=False)
    assert watch.sees(failure, 4_000.0 + health.SILENT_SECONDS + 1, status=500, waiting=False)


# the loop of these tests


def test_virtual_time():
    """An hour passes at once, in the order of the timers, also around work in threads."""

    async def go():
        seen = []

        async def nap(seconds):
            await asyncio.sleep(seconds)
            await asyncio.to_thread(seen.append, seconds)

        await asyncio.gather(nap(3_600), nap(1), nap(60))
        return seen, asyncio.get_running_loop().time()

    assert virtual.run(go()) == ([1, 60, 3_600], pytest.approx(3_600))


def test_deadlock_is_found():
    """A wait for something that nobody does raises instead of lasting."""

    async def go():
        await asyncio.Event().wait()

    with pytest.raises(virtual.Deadlock):
        virtual.run(go())
