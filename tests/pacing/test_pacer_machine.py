"""A pacer under any sequence of calls, answers, refusals, failures, cancellations, stalls and long sleeps."""

import asyncio
import copy
import math

import pytest
import virtual
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from paced import table

from claudescale.api.limits import read_headers
from claudescale.pacing.pacer import Outcome, Pacer
from claudescale.simulator import Buckets

PLACES = st.integers(0, 50)
NUMBERS = st.one_of(
    st.floats().map(str),
    st.integers(-5, 10**25).map(str),
    st.sampled_from(["", "0", "1e400", "5e-324", "nan", "inf", "soon", "٣", "1_000", " 7 "]),
)
NAMES = ["retry-after"] + [
    f"anthropic-ratelimit-{kind}-{what}"
    for kind in ("requests", "tokens", "input-tokens", "output-tokens")
    for what in ("limit", "remaining", "reset")
]


class Paced(RuleBasedStateMachine):
    """Drives a pacer in virtual time, beside the API's own buckets, which see each call as it goes."""

    lies = False

    @initialize(
        requests=st.sampled_from([60, 1_000]),
        input_tokens=st.sampled_from([6_000, 2_000_000]),
        bucket_seconds=st.sampled_from([1.0, 60.0]),
        concurrency=st.sampled_from([None, 5]),
        share=st.sampled_from([1.0, 0.5]),
    )
    def begin(self, requests, input_tokens, bucket_seconds, concurrency, share):
        """Start with full buckets on both sides; output is never short: who writes how much is unknown."""
        self.loop = virtual.VirtualLoop()
        asyncio.set_event_loop(self.loop)
        limits = table(requests, input_tokens, 10**9)
        self.api = Buckets(*limits.per_minute, bucket_seconds=bucket_seconds, now=0.0)
        self.concurrency, self.most = concurrency, 0.4 * input_tokens / 60
        self.waiting, self.permits, self.granted = {}, [], []
        self.held_until, self.asked, self.refused_by_api = 0.0, 0, 0

        async def made():
            return Pacer(limits, clock=virtual.clock(now=0.0), concurrency=concurrency, share=share)

        self.pacer = self.loop.run_until_complete(made())

    def teardown(self):
        """Let all that is under way end: whoever waits is let go, in the order of coming, in bounded time."""
        # Who is told a limit of one token a minute waits by it, until the next answer tells the truth.
        for _ in range(1_000):
            while self.permits:
                self._answer(0)
            if not self.waiting:
                break
            self._pass(36_000.0 if self.lies else 60.0)
        assert not self.waiting
        assert self.pacer.in_flight == 0
        assert self.granted == sorted(self.granted)
        self.loop.close()

    def _pass(self, seconds=0.0):
        self.loop.run_until_complete(asyncio.sleep(seconds))
        for task in [task for task in self.waiting.values() if task.done()]:
            task.result()
        self.waiting = {number: task for number, task in self.waiting.items() if not task.done()}

    async def _acquire(self, tokens, number):
        permit = await self.pacer.acquire(tokens)
        now = self.loop.time()
        assert now >= self.held_until - 1e-6
        assert self.pacer.in_flight <= (self.concurrency or math.inf)
        self.granted.append(number)
        self.permits.append((permit, tokens))
        self.refused_by_api += not self.api.admit(now, input_tokens=tokens)

    def _answer(self, place, headers=None):
        permit, tokens = self.permits.pop(place % len(self.permits))
        self.api.produce(self.loop.time(), 50)
        readings = read_headers(headers or self.api.headers(self.loop.time()))
        self.pacer.settle(permit, Outcome("answered", readings, tokens, 50))

    @rule(part=st.floats(0.001, 1.0), count=st.integers(1, 12))
    def ask(self, part, count):
        """Let calls come, each of any size that even a bucket of one second holds."""
        for number in range(self.asked, self.asked + count):
            self.waiting[number] = self.loop.create_task(self._acquire(max(part * self.most, 1.0), number))
        self.asked += count
        self._pass()

    @rule(
        seconds=st.sampled_from([0.001, 0.1, 1.0, 7.0, 61.0]),
        asleep=st.sampled_from([0.0, 0.5, 90.0, 30_000.0]),
    )
    def wait(self, seconds, asleep):
        """Time passes, maybe after the laptop slept: then the clock went on, and nothing else did."""
        self.loop._virtual.now += asleep
        self._pass(seconds)

    @precondition(lambda self: self.permits)
    @rule(place=PLACES, count=st.integers(1, 20))
    def answer(self, place, count):
        """Let calls come back, in any order, with what the API's buckets hold in their headers."""
        for _ in range(min(count, len(self.permits))):
            self._answer(place)
        self._pass()

    @precondition(lambda self: self.permits)
    @rule(
        place=PLACES,
        kind=st.sampled_from(["refused", "too_fast", "overloaded", "failed"]),
        seconds=st.sampled_from([None, 0, 1, 3_600]),
    )
    def lose(self, place, kind, seconds):
        """Let a call come back as a 429 or a 5xx, or not at all: the API has not counted it."""
        permit, tokens = self.permits.pop(place % len(self.permits))
        for bucket, amount in ((self.api.requests, 1), (self.api.input_tokens, tokens)):
            bucket.level = min(bucket.refill(self.loop.time()) + amount, bucket.capacity)
        refused = kind in {"refused", "too_fast"}
        readings = read_headers({} if seconds is None or not refused else {"retry-after": str(seconds)})
        self.pacer.settle(permit, Outcome(kind, readings))
        if refused:
            self.held_until = max(self.held_until, self.loop.time() + max(seconds or 0, 1.0))
        self._pass()

    @precondition(lambda self: self.waiting)
    @rule(place=PLACES)
    def give_up(self, place):
        """Somebody in the line is canceled."""
        self.waiting.pop([*self.waiting][place % len(self.waiting)]).cancel()
        self._pass()

    @precondition(lambda self: self.lies and self.permits)
    @rule(headers=st.dictionaries(st.sampled_from(NAMES), NUMBERS, max_size=6))
    def lie(self, headers):
        """Let an answer come back with headers that something in between has spoiled."""
        self._answer(0, headers)
        self._pass()

    @invariant()
    def holds(self):
        """Permits are accounted for, and every figure is one."""
        assert self.pacer.in_flight == len(self.permits)
        assert self.pacer.window >= 1
        for bucket in map(copy.copy, self.pacer._buckets):
            bucket.refill(self.loop.time())  # as whoever asks it does first
            assert math.isfinite(bucket.level)
            assert bucket.level <= bucket.full + bucket.doubt + 1e-6 * max(1.0, bucket.capacity)
            assert 0 <= bucket.others < bucket.rate < math.inf
        assert math.isfinite(self.pacer._production.level)
        assert self.lies or self.refused_by_api == 0


class LiedTo(Paced):
    """The same with headers that no server would send: no limit holds then, but nothing breaks or hangs."""

    lies = True


@pytest.mark.slow
@pytest.mark.parametrize("machine", [Paced, LiedTo])
def test_whatever_happens_no_limit_is_passed_and_everybody_gets_a_turn(machine):
    """The API refuses nothing of what is let go; headers that lie break no figure and hang nobody."""
    run_state_machine_as_test(machine, settings=settings(max_examples=40, stateful_step_count=25))
