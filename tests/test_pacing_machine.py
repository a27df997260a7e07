"""A pacer under any sequence of calls, answers, refusals, failures, cancellations, stalls and long sleeps."""

import asyncio
import copy
import math

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

from claudescale.api.limits import Limits, read_headers
from claudescale.pacing.pacer import Outcome, Pacer
from claudescale.simulator import Buckets

HOURS = 8 * 3_600.0
SILENT = read_headers({})
NUMBERS = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True).map(str),
    st.integers(-5, 10**25).map(str),
    st.sampled_from(["", "0", "-1", "1e400", "5e-324", "1e308", "nan", "inf", "soon", "٣", "1_000", " 7 "]),
)
NAMES = [
    f"anthropic-ratelimit-{kind}-{what}"
    for kind in ("requests", "tokens", "input-tokens", "output-tokens")
    for what in ("limit", "remaining", "reset")
]


class Paced(RuleBasedStateMachine):
    """Drives a pacer in virtual time, beside the API's own buckets, which see each call as it goes."""

    lies = False

    @initialize(
        requests=st.sampled_from([60, 300, 1_000]),
        input_tokens=st.sampled_from([6_000, 60_000, 2_000_000]),
        bucket_seconds=st.sampled_from([1.0, 60.0]),
        concurrency=st.sampled_from([None, 1, 5]),
        share=st.sampled_from([1.0, 0.5]),
    )
    def begin(self, requests, input_tokens, bucket_seconds, concurrency, share):
        """Start with full buckets on both sides; output is never short: who writes how much is unknown."""
        self.loop = virtual.VirtualLoop()
        asyncio.set_event_loop(self.loop)
        limits = Limits(
            requests_per_minute=requests,
            input_tokens_per_minute=input_tokens,
            output_tokens_per_minute=10**9,
        )
        self.api = Buckets(*limits.per_minute, bucket_seconds, now=0.0)
        self.concurrency, self.bucket_seconds = concurrency, bucket_seconds
        self.most = 0.4 * input_tokens / 60
        self.waiting, self.permits, self.granted = [], [], []
        self.held_until, self.asked, self.refused_by_api = 0.0, 0, 0
        self.numbers = 0

        async def made():
            clock = virtual.clock(now=0.0)
            return Pacer(limits, clock=clock, concurrency=concurrency, share=share, output_tokens=100.0)

        self.pacer = self.loop.run_until_complete(made())

    def teardown(self):
        """Let all that is under way end: whoever waits is let go, in the order of coming, in bounded time."""
        if not hasattr(self, "loop"):
            return
        # Who is told a limit of one token a minute waits by it, until the next answer tells the truth.
        step = 36_000.0 if self.lies else 60.0
        end = self.loop.time() + 1_000 * step
        try:
            while (self.waiting or self.permits) and self.loop.time() < end:
                while self.permits:
                    self._settle(0)
                self._pass(step)
            assert self.waiting == []
            assert self.pacer.in_flight == 0
            assert self.granted == sorted(self.granted)
        finally:
            for task, _ in self.waiting:
                task.cancel()
            self.loop.run_until_complete(
                asyncio.gather(*(task for task, _ in self.waiting), return_exceptions=True)
            )
            self.loop.close()

    # what is done

    def _pass(self, seconds):
        self.loop.run_until_complete(asyncio.sleep(seconds))
        for waiter in [each for each in self.waiting if each[0].done()]:
            self.waiting.remove(waiter)
            if waiter[0].exception() is not None:
                raise waiter[0].exception()

    async def _acquire(self, tokens, number):
        permit = await self.pacer.acquire(tokens)
        now = self.loop.time()
        assert now >= self.held_until - 1e-6
        assert self.pacer.in_flight <= (self.concurrency or math.inf)
        self.granted.append(number)
        self.permits.append((permit, tokens))
        if not self.api.admit(now, input_tokens=tokens):
            self.refused_by_api += 1

    def _settle(self, place, headers=None):
        permit, tokens = self.permits.pop(place)
        now = self.loop.time()
        self.api.produce(now, 50)
        told = read_headers(headers or self.api.headers(now))
        self.pacer.settle(permit, Outcome("answered", told, tokens, 50))

    @rule(part=st.floats(0.001, 1.0), count=st.integers(1, 12))
    def ask(self, part, count):
        """Let calls come, each of any size that even a bucket of one second holds."""
        for _ in range(count):
            task = self.loop.create_task(self._acquire(max(part * self.most, 1.0), self.numbers))
            self.waiting.append((task, self.numbers))
            self.numbers += 1
        self._pass(0.0)

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.1, 1.0, 7.0, 61.0]))
    def wait(self, seconds):
        """Time passes."""
        self._pass(seconds)

    @rule(seconds=st.sampled_from([0.5, 3.0, 90.0, HOURS]))
    def stand_still(self, seconds):
        """Stall the loop, or let the laptop sleep: the clock goes on, and nothing else does."""
        self.loop._virtual.now += seconds
        self._pass(0.0)

    @precondition(lambda self: self.permits)
    @rule(place=st.integers(0, 50), count=st.integers(1, 20))
    def answer(self, place, count):
        """Let calls come back, in any order, with what the API's buckets hold in their headers."""
        for _ in range(min(count, len(self.permits))):
            self._settle(place % len(self.permits))
        self._pass(0.0)

    def _lost(self, place):
        """Return the permit of a call that the API did not count after all."""
        permit, tokens = self.permits.pop(place % len(self.permits))
        for bucket, amount in ((self.api.requests, 1), (self.api.input_tokens, tokens)):
            bucket.level = min(bucket.refill(self.loop.time()) + amount, bucket.capacity)
        return permit

    @precondition(lambda self: self.permits)
    @rule(place=st.integers(0, 50), seconds=st.sampled_from([None, 0, 1, 20, 3_600]), ramp=st.booleans())
    def refuse(self, place, seconds, ramp):
        """Let a call come back as a 429."""
        permit = self._lost(place)
        told = {} if seconds is None else {"retry-after": str(seconds)}
        self.pacer.settle(permit, Outcome("too_fast" if ramp else "refused", read_headers(told)))
        self.held_until = max(self.held_until, self.loop.time() + (1.0 if seconds is None else seconds))
        self._pass(0.0)

    @precondition(lambda self: self.permits)
    @rule(place=st.integers(0, 50), how=st.sampled_from(["overloaded", "failed"]))
    def fail(self, place, how):
        """Lose a call, or let it come back as a 5xx."""
        permit = self._lost(place)
        self.pacer.settle(permit, Outcome(how, SILENT))
        self._pass(0.0)

    @precondition(lambda self: self.waiting)
    @rule(place=st.integers(0, 50))
    def give_up(self, place):
        """Somebody in the line is canceled."""
        task, _ = self.waiting.pop(place % len(self.waiting))
        task.cancel()
        self._pass(0.0)

    @precondition(lambda self: self.lies and self.permits)
    @rule(limit=st.sampled_from([1, 50, 1_000, 10**9]), count=st.integers(1, 20))
    def blame(self, limit, count):
        """Refuse calls for output that others must have written, and tell another limit."""
        told = {
            "anthropic-ratelimit-requests-remaining": "9",
            "anthropic-ratelimit-input-tokens-remaining": "9000",
            "anthropic-ratelimit-output-tokens-remaining": "0",
            "anthropic-ratelimit-output-tokens-limit": str(limit),
        }
        for _ in range(min(count, len(self.permits))):
            self.pacer.settle(self._lost(0), Outcome("refused", read_headers(told)))
            self.held_until = max(self.held_until, self.loop.time() + 1.0)
        self._pass(0.0)

    @precondition(lambda self: self.lies and self.permits)
    @rule(headers=st.dictionaries(st.sampled_from([*NAMES, "retry-after"]), NUMBERS, max_size=6))
    def lie(self, headers):
        """Let an answer come back with headers that something in between has spoiled."""
        self._settle(0, headers)
        self._pass(0.0)

    # what holds

    @invariant()
    def holds(self):
        """Permits are accounted for, and every figure is one."""
        if not hasattr(self, "loop"):
            return
        assert self.pacer.in_flight == len(self.permits)
        assert self.pacer.window >= 1
        for bucket in map(copy.copy, self.pacer._buckets):
            bucket.refill(self.loop.time())  # as whoever asks it does first
            assert math.isfinite(bucket.level)
            assert math.isfinite(bucket.rate)
            assert bucket.rate > 0
            assert bucket.level <= bucket.full + bucket.doubt + 1e-6 * max(1.0, bucket.capacity)
            assert 0 <= bucket.others < bucket.rate
        assert math.isfinite(self.pacer._production.level)
        if not self.lies:
            assert self.refused_by_api == 0


class LiedTo(Paced):
    """The same with headers that no server would send: no limit holds then, but nothing breaks or hangs."""

    lies = True


def test_the_api_refuses_none_of_what_the_pacer_lets_go():
    """Whatever happens, no limit is passed, no wait is cut short, and everybody gets a turn."""
    run_state_machine_as_test(Paced, settings=settings(max_examples=120, stateful_step_count=30))


def test_spoiled_headers_break_nothing():
    """Whatever the headers say, every figure stays one, and everybody gets a turn."""
    run_state_machine_as_test(LiedTo, settings=settings(max_examples=120, stateful_step_count=30))
