"""The pacer in virtual time; golden tests hold its exact times."""

import asyncio
import math

import pytest
import virtual
from engine import through_desk
from hypothesis import given, settings
from hypothesis import strategies as st
from paced import table

from claudescale.api.answers import Answer, verdict
from claudescale.api.limits import read_headers
from claudescale.pacing.pacer import Outcome, Pacer, kind_of
from claudescale.simulator import Buckets

WIDE = table(1e6, 1e9, 1e9)
BORNE = (1e7, 1e10, 1e10)
"""Limits that only calls at once can break."""


@pytest.mark.parametrize(
    ("headers", "least", "most"), [({"retry-after": "20"}, 20, 22.1), ({"x-should-retry": "false"}, 1, 1.2)]
)
def test_nobody_goes_before_retry_after_has_passed(headers, least, most):
    """A 429, even one not to be retried, holds all calls as long as it says, or one second."""
    refused = kind_of(verdict(Answer(429, headers, b"{}")), 429)

    async def waited():
        pacer = Pacer(WIDE, clock=virtual.clock(now=0.0))
        pacer.settle(await pacer.acquire(10), Outcome(refused, read_headers(headers)))
        await pacer.acquire(10)
        return asyncio.get_running_loop().time()

    assert least <= virtual.run(waited()) <= most


def test_calls_that_grew_too_fast_are_fewer_and_slowly_more_again():
    """A 429 of the ramp limit cuts the window, once for all calls sent before; one of a bucket only waits."""

    async def windows(kind):
        pacer = Pacer(WIDE, clock=virtual.clock(now=0.0))
        permits = [await pacer.acquire(10) for _ in range(16)]
        for permit in permits[:3]:
            pacer.settle(permit, Outcome(kind))
        refused = pacer.window
        for permit in permits[3:7]:
            pacer.settle(permit, Outcome("answered"))
        return refused, pacer.window

    assert [virtual.run(windows(kind)) for kind in ("refused", "too_fast")] == [(16, 20), (12, 13)]


@pytest.mark.slow
def test_errors_by_chance_hardly_slow_a_run_down():
    """With one call in five failing at random, a run takes little longer than its calls need."""
    engine = through_desk(600, {"concurrency": 32}, latency=0.5, tier=BORNE, faults={529: 0.2})
    assert len(engine.attempts) > 700
    assert engine.seconds < 1.5 * 600 / 32 * 0.5


@pytest.mark.slow
def test_a_hidden_limit_is_found_and_kept():
    """An API that supports twenty calls at once, and does not say so, gets about that many and few more."""
    engine = through_desk(1_000, latency=0.5, tier=BORNE, faults={"overload_above": 20})
    assert engine.seconds < 1.2 * 1_000 / 20 * 0.5 + 10
    assert len(engine.attempts) < 1.06 * 1_000


# arbitrary events

NUMBERS = st.floats().map(str) | st.integers(-5, 10**25).map(str)
BUCKETS, FIGURES = ("requests", "input-tokens", "output-tokens"), ("limit", "remaining")
NAMES = ["retry-after", *(f"anthropic-ratelimit-{name}-{figure}" for name in BUCKETS for figure in FIGURES)]
LIES = st.dictionaries(st.sampled_from(NAMES), NUMBERS)
LOST = ["refused", "too_fast", "overloaded", "failed"]
EVENTS = st.sampled_from(["ask", "ask", "answer", "pass", "sleep", "give up", *LOST])
MOVES = st.lists(st.tuples(EVENTS, st.floats(0, 0.999)), min_size=10, max_size=60)


class Pacing:
    """Drives a pacer beside the API's own buckets, which see each call when sent. Output is never short."""

    def __init__(self, limits, bucket_seconds, concurrency, share, lies):
        self.loop = asyncio.get_running_loop()
        self.api = Buckets(*limits.per_minute, bucket_seconds=bucket_seconds, now=0.0)
        self.pacer = Pacer(limits, clock=virtual.clock(now=0.0), concurrency=concurrency, share=share)
        self.concurrency, self.lies, self.is_lied_to = concurrency, lies, bool(lies)
        self.most = 0.4 * limits.input_tokens_per_minute / 60  # even a bucket of one second holds that
        self.waiting, self.permits, self.granted = [], [], []
        self.asked = self.refused_by_api = 0
        self.held_until = 0.0

    async def call(self, number, tokens):
        permit = await self.pacer.acquire(tokens)
        assert self.loop.time() >= self.held_until - 1e-6
        assert self.pacer.in_flight <= self.concurrency
        self.granted.append(number)
        self.permits.append((permit, tokens))
        self.refused_by_api += not self.api.admit(self.loop.time(), input_tokens=tokens)

    def answer(self):
        """Return the oldest call with the API's bucket levels, or with headers that something has damaged."""
        permit, tokens = self.permits.pop(0)
        self.api.produce(self.loop.time(), 50)
        headers = self.lies.pop() if self.lies else self.api.headers(self.loop.time())
        self.pacer.settle(permit, Outcome("answered", read_headers(headers), tokens, 50))

    def lose(self, place, kind, seconds):
        """Return a call as a 429, a 5xx or lost: the API has not counted it."""
        permit, tokens = self.permits.pop(place)
        for bucket, amount in ((self.api.requests, 1), (self.api.input_tokens, tokens)):
            bucket.level = min(bucket.refill(self.loop.time()) + amount, bucket.capacity)
        headers = {}
        if kind in {"refused", "too_fast"}:
            headers = {"retry-after": str(seconds)}
            self.held_until = max(self.held_until, self.loop.time() + max(seconds, 1.0))
        self.pacer.settle(permit, Outcome(kind, read_headers(headers)))

    async def move(self, kind, part):
        """Apply one event, then check that all permits are accounted for and every figure is finite."""
        if kind == "ask":
            for _ in range(1 + int(part * 12)):
                self.waiting.append(self.loop.create_task(self.call(self.asked, max(part * self.most, 1.0))))
                self.asked += 1
        elif kind == "sleep":  # the laptop sleeps: only the clock advances
            self.loop._virtual.now += part * 30_000
        elif kind == "give up" and self.waiting:
            self.waiting.pop(int(part * len(self.waiting))).cancel()
        elif kind == "answer":
            for _ in range(math.ceil(part * len(self.permits))):
                self.answer()
        elif kind in LOST and self.permits:
            self.lose(int(part * len(self.permits)), kind, [0, 1, 3_600][int(part * 3)])
        await asyncio.sleep(part * 10 if kind == "pass" else 0.001)
        self.waiting = [task for task in self.waiting if not task.done() or task.result()]
        assert self.pacer.in_flight == len(self.permits)
        assert all(math.isfinite(bucket.level) for bucket in self.pacer._buckets)
        assert self.is_lied_to or self.refused_by_api == 0


@pytest.mark.slow
@settings(max_examples=100)
@given(
    limits=st.builds(table, st.sampled_from([60, 1_000]), st.sampled_from([6_000, 2_000_000]), st.just(1e9)),
    bucket_seconds=st.sampled_from([1.0, 60.0]),
    concurrency=st.sampled_from([5, 1_000]),
    share=st.sampled_from([1.0, 0.5]),
    lies=st.lists(LIES, max_size=8),
    moves=MOVES,
)
def test_whatever_happens_no_limit_is_passed_and_everybody_gets_a_turn(moves, **options):
    """The API refuses none of the released calls; false headers corrupt no figure and hang no call."""

    async def main():
        pacing = Pacing(**options)
        for move in moves:
            await pacing.move(*move)
        for _ in range(1_000):  # a lie of one token a minute holds calls until the next answer corrects it
            await pacing.move("answer", 0.999)
            await asyncio.sleep(36_000.0 if pacing.is_lied_to else 60.0)
            if not (pacing.waiting or pacing.permits):
                break
        assert not pacing.waiting
        assert pacing.granted == sorted(pacing.granted)

    virtual.run(main())
