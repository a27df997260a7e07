"""The live engine in virtual time: each row is answered and paid for once, whatever the API does."""

import asyncio
import itertools
import logging

import pytest
from engine import GOOD, LIMITS, LOST, answer, rows, through_desk, through_script

TROUBLES = {
    "before anything is billed": {"faults": {
        429: 0.05, 500: 0.05, 529: 0.05, 408: 0.03, 409: 0.03, "drop": 0.05, "html_body": 0.03, "hang": 0.01,
    }},
    "after it was billed": {"faults": {"drop_after": 0.05, "truncated_body": 0.05, "not_json": 0.05}},
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


@pytest.mark.parametrize(("reply", "most_at_once", "most_rows"), [(GOOD, 5, 100 + 5), (answer(500), 11, 11)])
def test_rows_are_pulled_as_they_go(reply, most_at_once, most_rows):
    """Of many rows, only as many become tasks as can be in flight, or rest in an outage."""
    tasks = set()

    def script(call):
        tasks.add(len(asyncio.all_tasks()))
        if call.number == 100:
            call.live.stop()
        return reply

    engine = through_script(script, 500, concurrency=5)
    assert engine.rows_given <= most_rows
    assert max(tasks) <= most_at_once + 2  # the test, and the code that pulls


@pytest.mark.parametrize(("status", "holds"), [(429, True), (529, True), (408, False)])
def test_nobody_goes_before_the_time_that_the_api_says(status, holds, caplog):
    """retry-after holds the row that received it, after a 429 or 529 every row; the log says why."""
    told = answer(status, headers={"retry-after": "40"})
    with caplog.at_level(logging.DEBUG, logger="claudescale"):
        engine = through_script(lambda call: told if call.number == 30 else GOOD, 100, seconds=0.5)
    (refused,) = [attempt for attempt in engine.attempts if attempt.error]
    heard = refused.sent_at + refused.seconds
    meanwhile = [at for at in engine.attempts if heard + 0.001 < at.sent_at < heard + 40]
    assert bool(meanwhile) is not holds
    assert refused.key not in {attempt.key for attempt in meanwhile}
    assert len(engine.finals) == 100
    assert ("a call waits for a pause to end" in caplog.messages) is holds
    assert any(line.endswith(f": api_error, status {status}, 0.5 s") for line in caplog.messages)


@pytest.mark.parametrize("told", [None, "0", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_refusals_that_name_no_wait_are_waited_out(told):
    """Two minutes of them lose no row and cost few calls, as the gaps between calls grow."""
    no = answer(429, "rate_limit_error", headers={} if told is None else {"retry-after": told})
    engine = through_script(lambda call: no if call.seconds < 120 else GOOD, 40, seconds=0.05)
    assert len(engine.finals) == 40
    assert len({round(second) for second in engine.sent if second < 120}) < 15


@pytest.mark.parametrize(
    ("slow", "usual", "max_tokens", "cut"),
    [(100.0, 0.5, 1_024, 1), (120.0, 15.0, 1_024, 0), (115.2, 0.5, 4_096, 0)],
)
def test_a_call_that_hangs_is_sent_again_and_a_slow_answer_is_waited_for(slow, usual, max_tokens, cut):
    """It is cut far above the slowest answer and the longest reply; the next call has twice the time."""
    engine = through_script(
        lambda _: GOOD,
        100,
        seconds=lambda call: slow if b"Row 70." in call.body else usual,
        concurrency=30,
        max_tokens=max_tokens,
    )
    assert (engine.errors[None], engine.errors["timeout_error"]) == (100, cut)
    assert engine.seconds < 200


def test_a_row_that_fails_waits_twice_as_long_each_time():
    """From half a second on, less by chance; the others go on meanwhile."""
    no = answer(500)
    engine = through_script(lambda call: no if b"Row 5." in call.body and call.tries < 7 else GOOD, 300)
    sent = sorted(at.sent_at for at in engine.attempts if at.key == rows(6)[5].key)
    waits = [after - before - 1.0 for before, after in itertools.pairwise(sent)]
    assert [0.24 * 2**n <= wait <= 0.51 * 2**n + 0.1 for n, wait in enumerate(waits)] == [True] * 6, waits


@pytest.mark.parametrize("bucket_seconds", [1, 60])
def test_the_prefix_is_written_once_and_slows_nobody_down(bucket_seconds):
    """One call goes ahead; the input that it takes of the limit is not expected of the others."""
    text = {"type": "text", "text": "Name the complaint. " * 2_000, "cache_control": {"type": "ephemeral"}}
    some = [row._replace(input_tokens=30.0) for row in rows(200, system=[text])]
    engine = through_desk(0, {"warm": True}, some=some, bucket_seconds=bucket_seconds)
    assert sum(attempt.cache_write_5m_input_tokens > 0 for attempt in engine.attempts) == 1
    assert engine.seconds < 1.2 * 60 * 200 / LIMITS.requests_per_minute


@pytest.mark.parametrize("status", [200, 429, 503])
def test_stop_waits_for_what_is_in_flight_and_for_nothing_else(status):
    """After `stop` nothing is sent; calls in flight are kept, and no retry delay is sat out."""
    told = GOOD if status == 200 else answer(status, headers={"retry-after": "3600"})

    def script(call):
        if call.number < 3:  # twice, as nothing prevents it
            asyncio.get_running_loop().call_later(20.5, call.live.stop)
        return told

    engine = through_script(script, 2_000)
    assert 0 < len(engine.attempts) == engine.send.tries.total() < 2_000
    assert len(engine.finals) == engine.errors[None]
    assert engine.sent[-1] <= 20.5
    assert engine.seconds <= 21.5 + 1e-6
    assert engine.stopped_by is None


def test_an_error_of_this_program_is_raised_once_the_calls_in_flight_have_ended():
    """It stops the run, and each permit is handed back: `Engine.answer` looks."""
    with pytest.raises(KeyError):
        through_script(lambda call: {1: GOOD, 2: GOOD}[call.number], 100)


def test_a_computer_that_sleeps_loses_no_row():
    """A call that ends hours later, as this process slept, counts as ten minutes: its row is sent again."""
    engine = through_script(
        lambda call: LOST if call.number == 3 else GOOD,
        seconds=lambda call: 28_800.0 if call.number == 3 else 1.0,
    )
    assert len(engine.finals) == 10
