"""Refusals without a real wait, and damaged headers: waits grow, unknown is unknown, nothing raises."""

from datetime import datetime

import pytest
import virtual
from engine import Engine, ScriptSend, rows
from hypothesis import example, given
from hypothesis import strategies as st
from test_live import GOOD, answer

from claudescale.api.limits import Limits, read_headers
from claudescale.pacing.pacer import Pacer

NO_WAITS = [
    {},
    *({"retry-after": told} for told in ("0", "-5", "0.001", "Wed, 21 Oct 2015 07:28:00 GMT", "soon")),
]
LIMITS = Limits(requests_per_minute=1_000, input_tokens_per_minute=1e6, output_tokens_per_minute=1e6)


@pytest.mark.parametrize("headers", NO_WAITS)
def test_refusals_without_a_wait_are_waited_out(headers):
    """Two minutes of them cost no row and few calls, for the waits grow: at least a second, then more."""

    async def go():
        clock = virtual.clock()
        begun = clock.seconds()
        no = answer(429, "rate_limit_error", headers=headers)
        send = ScriptSend(lambda *_: no if clock.seconds() < begun + 120 else GOOD, 0.05)
        engine = Engine(send, clock)
        await engine.answer(rows(40))
        return engine

    engine = virtual.run(go())
    assert len(engine.finals) == 40
    assert engine.live.stopped_by is None
    assert len(engine.attempts) < 40 * 10
    moments = sorted({round(attempt.sent_at) for attempt in engine.attempts if attempt.error})
    assert len(moments) < 15


def test_refusals_without_end_end_the_run():
    """An API that only refuses, and never says how long, ends the run after minutes; every row stays open."""

    async def go():
        engine = Engine(ScriptSend(lambda *_: answer(429, "rate_limit_error"), 0.05), virtual.clock())
        await engine.answer(rows(40))
        return engine

    engine = virtual.run(go())
    assert engine.live.stopped_by.error == "rate_limit_error"
    assert engine.finals == []


NAMES = ["retry-after", "retry-after-ms"] + [
    f"anthropic-ratelimit-{group}-{what}"
    for group in ("requests", "tokens", "input-tokens", "output-tokens")
    for what in ("limit", "remaining", "reset")
]
ODD = st.sampled_from(
    [
        "Wed, 21 Oct 99999999999999999999 07:28:00 GMT",
        "Wed, 21 Oct 2026 07:28:00 +999999999999",
        "Fri, 31 Feb 2026 99:99:99 GMT",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "nan",
        "inf",
        "-inf",
        "1e400",
        "9" * 5_000,
        "-1",
        "\uff11\uff12",
        "\u0663",
        "1_000",
        "",
        " ",
        ",",
    ]
)
VALUES = ODD | st.text(max_size=30) | st.integers().map(str) | st.floats().map(str) | st.datetimes().map(str)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES))
@example({"retry-after": "Wed, 21 Oct 99999999999999999999 07:28:00 GMT"})
@example({"anthropic-ratelimit-requests-reset": "0001-01-01T00:00:00+23:59"})
def test_any_header(headers):
    """Whatever a header says, reading and pacing by it never raises; what is damaged reads as unknown."""
    readings = read_headers(headers)
    wait = readings.retry_after_seconds
    assert wait is None or 0 <= wait <= 86_400
    for reading in readings.buckets:
        assert reading.limit is None or 1 <= reading.limit <= 1e12
        assert reading.remaining is None or 0 <= reading.remaining <= 1e12
        assert reading.reset is None or isinstance(reading.reset, datetime)

    async def go():
        for how in ("refuse", "overload", "fail"):
            pacer = Pacer(LIMITS, clock=virtual.clock())
            getattr(pacer, how)(await pacer.acquire(10.0), readings)

    virtual.run(go())


@pytest.mark.parametrize("told", ["\uff11\uff12", "\u0663", "1_000", "nan", "inf", "-1", "9" * 40])
def test_a_damaged_number_is_unknown(told):
    """Digits of other scripts, signs and words are no number of an account."""
    assert read_headers({"retry-after": told}).retry_after_seconds is None
    assert read_headers({"anthropic-ratelimit-requests-remaining": told}).requests.remaining is None
