"""The live engine in virtual time: each row is answered and paid for once, whatever the API does."""

import asyncio
import itertools
import logging

import pytest
import virtual
from engine import GOOD, LIMITS, LOST, Engine, ScriptSend, answer, rows, through_desk, through_script

TROUBLES = {
    "none": {},
    "before anything is billed": {"faults": {
        429: 0.05, 500: 0.05, 529: 0.05, 408: 0.03, 409: 0.03, "drop": 0.05, "html_body": 0.03, "hang": 0.01,
    }},
    "after it was billed": {"faults": {"drop_after": 0.05, "truncated_body": 0.05, "not_json": 0.05}},
    "replies of no use": {"faults": dict.fromkeys(("refusal", "cut", "empty_content", "thinking_only"), 0.1)},
    "a tenth of the limits": {"bucket_seconds": 1.0, "requests_per_minute": 100},
}  # fmt: skip


@pytest.mark.parametrize("trouble", TROUBLES)
def test_every_row_is_answered_and_paid_for_once(trouble):
    """Each row has one final answer; only one that was lost after billing is paid for again."""
    engine = through_desk(120, seed=1, **TROUBLES[trouble])
    stats, lost = engine.stats, 0
    if trouble == "after it was billed":
        lost = sum(engine.errors[error] for error in ("connection_error", "invalid_response"))
        assert lost > 5
        assert engine.dollars < stats["dollars"]
    else:
        assert engine.dollars == pytest.approx(stats["dollars"], abs=1e-12)
    assert sorted(engine.finals) == [row.key for row in rows(120)]
    assert stats["billed_rows"] == stats["distinct_rows_billed"] + lost
    assert stats["calls"] == len(engine.attempts)
    assert engine.stopped_by is None


def test_rows_are_pulled_as_they_go():
    """Of an endless iterator, only as many rows become tasks as can be in flight."""
    tasks, engines = set(), []

    def script(call):
        tasks.add(len(asyncio.all_tasks()))
        if call.number == 100:
            engines[0].live.stop()
        return GOOD

    endless = (rows(1, number)[0] for number in itertools.count())
    engine = through_script(script, some=endless, before=engines.append, concurrency=5)
    assert engine.rows_given <= 100 + 5
    assert max(tasks) <= 5 + 2  # the test, and the code that pulls
    assert len(engine.finals) == len(engine.attempts)


# when calls are sent


@pytest.mark.parametrize(("status", "holds"), [(429, True), (529, True), (408, False)])
def test_nobody_goes_before_the_time_that_the_api_says(status, holds):
    """retry-after holds the row that received it; after a refusal or an overload it holds every row."""
    told = answer(status, headers={"retry-after": "40"})
    engine = through_script(lambda call: told if call.number == 30 else GOOD, 100, seconds=0.5)
    (refused,) = [attempt for attempt in engine.attempts if attempt.error]
    heard = refused.sent_at + refused.seconds
    meanwhile = [at for at in engine.attempts if heard + 0.001 < at.sent_at < heard + 40]
    assert bool(meanwhile) is not holds
    assert refused.key not in {attempt.key for attempt in meanwhile}
    assert len(engine.finals) == 100


@pytest.mark.parametrize("told", [None, "0", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_refusals_that_name_no_wait_are_waited_out(told):
    """Two minutes of them lose no row and cost few calls, as the gaps between calls grow."""
    no = answer(429, "rate_limit_error", headers={} if told is None else {"retry-after": told})
    engine = through_script(lambda call: no if call.seconds < 120 else GOOD, 40, seconds=0.05)
    assert len(engine.finals) == 40
    assert engine.stopped_by is None
    assert len({round(second) for second in engine.sent if second < 120}) < 15


def test_the_log_says_why_calls_wait(caplog):
    """At DEBUG it has the cause of each hold and of each failure, and no text and no key."""
    told = answer(429, "rate_limit_error", "Row 3 was too much", headers={"retry-after": "40"})
    with caplog.at_level(logging.DEBUG, logger="claudescale"):
        through_script(lambda call: told if call.number == 1 else GOOD, concurrency=1)
    assert {
        "refused: sending pauses for 40.0 s",
        "a call waits for a pause to end",
        "refused: rate_limit_error, status 429, 1.0 s",
    } <= {*caplog.messages}
    assert not any("Row" in line or "00000000" in line for line in caplog.messages)


# calls that hang


def hung(script, count=60, **options):
    """Return the engine after that many rows, with replies of up to 1,024 tokens."""
    return through_script(script, count, concurrency=30, **{"max_tokens": 1_024, **options})


def test_hung_calls_cost_about_a_minute():
    """One call in a hundred hangs: it is cut far above the slowest answer and sent again."""
    engine = hung(lambda call: None if call.number % 100 == 50 else GOOD, 400, seconds=0.1)
    assert engine.errors == {None: 400, "timeout_error": 4}
    assert engine.seconds < 150


@pytest.mark.parametrize(
    ("usual", "slow", "max_tokens"), [(15.0, 120.0, 1_024), (0.5, 4_096 * 3600 / 128_000, 4_096)]
)
def test_slow_answers_are_waited_for(usual, slow, max_tokens):
    """A call that takes a few times the usual, or as long as its longest reply would, has not hung."""
    seconds = {60: slow}
    engine = hung(lambda _: GOOD, 100, seconds=lambda c: seconds.get(c.number, usual), max_tokens=max_tokens)
    assert engine.errors == {None: 100}


def test_a_call_that_hung_has_twice_the_time_when_it_is_sent_again():
    """One reply takes longer than is ever waited for at first: the second call of that row brings it."""
    engine = hung(lambda _: GOOD, 100, seconds=lambda call: 100.0 if b"Row 70." in call.body else 0.5)
    assert engine.errors == {None: 100, "timeout_error": 1}


# between two tries


def test_a_row_that_fails_waits_twice_as_long_each_time():
    """From half a second on, less by chance; the others go on meanwhile."""
    no = answer(500)
    engine = through_script(lambda call: no if b"Row 5." in call.body and call.tries < 7 else GOOD, 300)
    sent = sorted(at.sent_at for at in engine.attempts if at.key == rows(6)[5].key)
    waits = [after - before - 1.0 for before, after in itertools.pairwise(sent)]
    assert [0.24 * 2**n <= wait <= 0.51 * 2**n + 0.1 for n, wait in enumerate(waits)] == [True] * 6, waits


def test_in_an_outage_no_more_rows_are_pulled_than_may_be_in_flight():
    """Rows that wait for their next try count like calls under way."""
    engines = []

    def script(call):
        if call.number == 40:
            engines[0].live.stop()
        return answer(500)

    assert through_script(script, 1_000, before=engines.append, concurrency=5).rows_given <= 2 * 5 + 1


# a prefix for the cache


def test_one_call_goes_ahead_until_the_prefix_is_cached():
    """The first call goes alone, even if it fails; once one is answered the others follow together."""
    engine = through_script(lambda call: answer(500) if call.number <= 3 else GOOD, 6, warm=True)
    *alone, first, second = engine.sent[:6]
    assert all(after - before >= 1.0 for before, after in itertools.pairwise([*alone, first]))
    assert second - first < 0.5


def test_the_prefix_is_written_once_and_slows_nobody_down():
    """The input that the first call takes of the limit is not expected of calls that read the cache."""
    text = {"type": "text", "text": "Name the complaint. " * 2_000, "cache_control": {"type": "ephemeral"}}
    some = [row._replace(input_tokens=30.0) for row in rows(200, system=[text])]
    engine = through_desk(0, {"warm": True}, some=some, bucket_seconds=1)
    assert sum(attempt.cache_write_5m_input_tokens > 0 for attempt in engine.attempts) == 1
    assert engine.seconds < 1.2 * 60 * 200 / LIMITS.requests_per_minute


# the end


@pytest.mark.parametrize("status", [200, 429, 503])
def test_stop_waits_for_what_is_in_flight_and_for_nothing_else(status):
    """After `stop` nothing is sent; calls in flight are kept, and no retry delay is sat out."""
    told = GOOD if status == 200 else answer(status, headers={"retry-after": "3600"})

    def before(engine):
        for _ in range(2):
            asyncio.get_running_loop().call_later(20.5, engine.live.stop)

    engine = through_script(lambda _: told, 2_000, before=before)
    assert 0 < len(engine.attempts) == engine.send.tries.total() < 2_000
    assert len(engine.finals) == engine.errors.get(None, 0)
    assert engine.sent[-1] <= 20.5
    assert engine.seconds <= 21.5 + 1e-6
    assert engine.stopped_by is None


def test_a_canceled_run_hands_every_permit_back():
    """Whoever cancels it in the middle of its calls leaves nothing under way; `Engine.answer` looks."""

    async def canceled():
        engine = Engine(ScriptSend(lambda _: None), virtual.clock(), concurrency=5)
        answering = asyncio.create_task(engine.answer(rows(20)))
        await asyncio.sleep(5)
        assert engine.pacer.in_flight == 5
        answering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await answering

    virtual.run(canceled())


# sleep


def test_a_computer_that_sleeps_in_the_middle_loses_no_row():
    """Calls in flight are lost, and more until the network is back; no row is given up."""
    slept = []

    def script(call):
        if call.number <= 3:
            return LOST
        if call.number >= 60 and not slept:
            slept.append(call.number)
            asyncio.get_running_loop()._virtual.now += 8 * 3_600
        return LOST if slept and call.number <= slept[0] + 30 and call.tries <= 2 else GOOD

    engine = through_script(script, 300)
    assert engine.stopped_by is None
    assert len(engine.finals) == len(set(engine.finals)) == 300
