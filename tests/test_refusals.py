"""Refusals without a real wait: waits grow, and what never ends ends the run."""

import pytest
import virtual
from engine import Engine, ScriptSend, rows
from test_live import GOOD, answer

NO_WAITS = [
    {},
    *({"retry-after": told} for told in ("0", "-5", "0.001", "Wed, 21 Oct 2015 07:28:00 GMT", "soon")),
]


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
