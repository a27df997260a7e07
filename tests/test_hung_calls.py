"""Calls that never end: given up far above the slowest answer, counted as maybe billed, and tried again."""

import asyncio

import pytest
import virtual
from engine import Engine, rows, worst_dollars
from test_live import GOOD

from claudescale.running.live import _FAR_ABOVE as FAR_ABOVE


class Hangs:
    """Answers after some seconds; every hundredth call never ends."""

    def __init__(self, seconds, *, every=100):
        self.seconds, self.every = seconds, every
        self.calls = self.hung = 0

    async def __call__(self, _content):
        self.calls += 1
        if self.calls % self.every == self.every // 2:
            self.hung += 1
            await asyncio.sleep(600.0)
            msg = "it was waited for"
            raise AssertionError(msg)
        await asyncio.sleep(self.seconds(self.calls) if callable(self.seconds) else self.seconds)
        return GOOD


def ended(send, count, **options):
    """Return the engine after that many rows, with its virtual seconds."""

    async def go():
        engine = Engine(send, virtual.clock(), concurrency=30, **options)
        await engine.answer(rows(count))
        engine.seconds = asyncio.get_running_loop().time()
        return engine

    return virtual.run(go())


def test_hung_calls_cost_about_a_minute():
    """400 rows that answer in 0.1 s, one call in a hundred hanging: done in little more than a minute."""
    send = Hangs(0.1)
    engine = ended(send, 400, max_tokens=1_024)
    assert len(engine.finals) == 400
    assert send.hung >= 4
    assert engine.errors["timeout_error"] == send.hung
    assert engine.seconds < 150


def test_slow_answers_are_waited_for():
    """Where answers take a quarter of a minute, one that takes two is none that hangs."""
    engine = ended(Hangs(lambda number: 120.0 if number == 60 else 15.0, every=10_000), 100, max_tokens=1_024)
    assert engine.errors == {None: 100}
    assert FAR_ABOVE * 15 > 120


def test_a_long_reply_among_short_ones_is_waited_for():
    """What a reply of `max_tokens` may take is waited for, however short the others are."""
    seconds = 4_096 * 3600 / 128_000
    engine = ended(
        Hangs(lambda number: seconds if number == 60 else 0.5, every=10_000), 100, max_tokens=4_096
    )
    assert engine.errors == {None: 100}


def test_a_hung_call_counts_as_billed():
    """The budget takes a call that was given up for as expensive as it can be."""
    worst = worst_dollars(rows(1)[0], 1_024)
    engine = ended(Hangs(0.1), 400, max_tokens=1_024, budget_dollars=1.0)
    lost = engine.errors["timeout_error"]
    assert engine.job.purse.gone == pytest.approx(engine.dollars + lost * worst, rel=0.05)
    assert lost >= 4
