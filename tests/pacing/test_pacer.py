"""The pacer in virtual time; golden tests hold its exact times."""

import asyncio
import math

import polars as pl
import pytest
import virtual
from engine import through_desk
from hypothesis import given, settings
from hypothesis import strategies as st
from paced import study, table, workload

from claudescale.api.answers import Answer, verdict
from claudescale.api.limits import Limits, read_headers
from claudescale.pacing.pacer import Outcome, Pacer, Window, kind_of
from claudescale.simulator import Buckets

WIDE = table(1e6, 1e9, 1e9)
BORNE = (1e7, 1e10, 1e10)
"""Limits that only calls at once can break."""


@pytest.mark.slow
@pytest.mark.parametrize(("binding", "minutes"), [("requests", 1), ("input_tokens", 2), ("output_tokens", 4)])
def test_a_run_is_close_to_the_bound_and_never_over_the_limit(binding, minutes):
    """With one-second buckets: few refusals, at most 6% over the bound, no window over its limit."""
    limits = Limits.of("2", "claude-haiku-4-5")
    calls = workload(limits, binding, minutes, seed=1)
    outcome = virtual.run(study(limits, calls, bucket_seconds=1.0))
    assert outcome.answered == len(calls)
    assert outcome.arrivals[-1][0] < 1.06 * outcome.bound_seconds
    assert outcome.refused <= max(0.003 * len(calls), 1)
    arrivals = pl.DataFrame(outcome.arrivals, ["at", "tokens"], orient="row")
    microseconds = arrivals.with_columns((pl.col("at") * 1e6).cast(pl.Int64))
    second, minute = (
        microseconds.rolling("at", period=f"{n}000000i").agg(pl.len(), pl.sum("tokens")) for n in (1, 60)
    )
    assert second["len"].max() <= 2 * limits.requests_per_minute / 60
    assert minute["len"].max() <= limits.requests_per_minute * 61 / 60
    largest = max(call.input_tokens for call in calls)
    assert minute["tokens"].max() <= limits.input_tokens_per_minute * 61 / 60 + largest


@pytest.mark.parametrize(
    ("status", "headers", "kind"),
    [
        (200, {}, "failed"),
        (429, {}, "refused"),
        (429, {"x-should-retry": "false"}, "refused"),
        (529, {}, "overloaded"),
        (400, {}, "failed"),
        (None, {}, "overloaded"),
    ],
)
def test_what_an_answer_means_for_the_pace(status, headers, kind):
    """A 429 holds every call, even one that says not to retry."""
    answer = Answer(status, headers, b"{}", None if status else "connection_error")
    assert kind_of(verdict(answer), status) == kind


@pytest.mark.parametrize(("headers", "least", "most"), [({"retry-after": "20"}, 20, 22.1), ({}, 1, 1.2)])
def test_nobody_goes_before_retry_after_has_passed(headers, least, most):
    """A refusal holds all calls for as long as the API says, or one second if it says nothing."""

    async def waited():
        pacer = Pacer(WIDE, clock=virtual.clock(now=0.0))
        pacer.settle(await pacer.acquire(10), Outcome("refused", read_headers(headers)))
        await pacer.acquire(10)
        return asyncio.get_running_loop().time()

    assert least <= virtual.run(waited()) <= most


def test_a_window_is_cut_once_a_round_and_regrown_by_successes():
    """What went before a cut says nothing of whether it was enough; what was borne is soon tried again."""
    window = Window(1_000)
    window.size = 32.0
    sizes = []
    for sent, now in [(1.0, 2.0), (1.5, 2.5), (2.5, 3.5)]:
        window.cut(sent, now, 31)
        sizes.append(window.calls)
    assert sizes == [24, 24, 18]
    for _ in range(100):
        window.succeeded(10, 4.0, 30)
    assert 24 < window.calls < 32


def test_calls_that_grew_too_fast_are_fewer_from_then_on():
    """A 429 of the ramp limit cuts the window; one of a token bucket only waits."""

    async def windows():
        for kind in ("refused", "too_fast"):
            pacer = Pacer(WIDE, clock=virtual.clock(now=0.0))
            permits = [await pacer.acquire(10) for _ in range(16)]
            pacer.settle(permits[0], Outcome(kind))
            yield pacer.window

    async def both():
        return [window async for window in windows()]

    assert virtual.run(both()) == [16, 12]


@pytest.mark.slow
def test_errors_by_chance_hardly_slow_a_run_down():
    """With one call in five failing at random, a run takes little longer than its calls need."""
    plain, struck = (
        through_desk(600, {"concurrency": 32}, latency=0.5, tier=BORNE, faults=faults)
        for faults in ({}, {529: 0.2})
    )
    assert len(struck.attempts) > 700
    assert struck.seconds < 1.5 * plain.seconds


@pytest.mark.slow
@pytest.mark.parametrize(("most", "refused"), [(4, 0.2), (20, 0.06)])
def test_a_hidden_limit_is_found_and_kept(most, refused):
    """An API that supports a hidden number of calls at once gets about that many, and few more."""
    rows = 50 * most
    engine = through_desk(rows, latency=0.5, tier=BORNE, faults={"overload_above": most})
    assert engine.seconds < 1.2 * rows / most * 0.5 + 10
    assert len(engine.attempts) - rows < refused * rows


# arbitrary events

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
LIES = st.dictionaries(st.sampled_from(NAMES), NUMBERS, max_size=6)
LOST = ["refused", "too_fast", "overloaded", "failed"]
MOVES = st.lists(
    st.tuples(
        st.sampled_from(["ask", "ask", "answer", "pass", "sleep", "give up", *LOST]), st.floats(0, 0.999)
    ),
    min_size=10,
    max_size=60,
)


class Pacing:
    """Drives a pacer beside the API's own buckets, which see each call when sent. Output is never short."""

    def __init__(self, limits, bucket_seconds, concurrency, share, lies):
        self.loop = asyncio.get_running_loop()
        self.api = Buckets(*limits.per_minute, bucket_seconds=bucket_seconds, now=0.0)
        self.pacer = Pacer(limits, clock=virtual.clock(now=0.0), concurrency=concurrency, share=share)
        self.concurrency, self.lies, self.is_lied_to = concurrency or math.inf, lies, bool(lies)
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

    def answer(self, place):
        """Return a call with the API's bucket levels, or with headers that something has damaged."""
        permit, tokens = self.permits.pop(place)
        self.api.produce(self.loop.time(), 50)
        headers = self.lies.pop() if self.lies else self.api.headers(self.loop.time())
        self.pacer.settle(permit, Outcome("answered", read_headers(headers), tokens, 50))

    def lose(self, place, kind, seconds):
        """Return a call as a 429, a 5xx or lost: the API has not counted it."""
        permit, tokens = self.permits.pop(place)
        for bucket, amount in ((self.api.requests, 1), (self.api.input_tokens, tokens)):
            bucket.level = min(bucket.refill(self.loop.time()) + amount, bucket.capacity)
        refused = kind in {"refused", "too_fast"}
        self.pacer.settle(
            permit, Outcome(kind, read_headers({"retry-after": str(seconds)} if refused else {}))
        )
        if refused:
            self.held_until = max(self.held_until, self.loop.time() + max(seconds, 1.0))

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
                self.answer(0)
        elif kind in LOST and self.permits:
            self.lose(int(part * len(self.permits)), kind, [0, 1, 3_600][int(part * 3)])
        await asyncio.sleep(part * 10 if kind == "pass" else 0.001)
        self.waiting = [task for task in self.waiting if not task.done() or task.result()]
        assert self.pacer.in_flight == len(self.permits)
        assert all(math.isfinite(bucket.level) for bucket in self.pacer._buckets)
        assert self.is_lied_to or self.refused_by_api == 0

    async def end(self):
        """Every waiting call is released in order of arrival and in bounded time."""
        # A caller told of a limit of one token a minute waits by it until the next answer corrects it.
        patience = 1_000
        while (self.waiting or self.permits) and patience:
            await self.move("answer", 0.999)
            await asyncio.sleep(36_000.0 if self.is_lied_to else 60.0)
            patience -= 1
        assert patience
        assert self.granted == sorted(self.granted)


@pytest.mark.slow
@settings(max_examples=100)
@given(
    limits=st.builds(
        table, st.sampled_from([60, 1_000]), st.sampled_from([6_000, 2_000_000]), st.just(10**9)
    ),
    bucket_seconds=st.sampled_from([1.0, 60.0]),
    concurrency=st.sampled_from([None, 5]),
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
        await pacing.end()

    virtual.run(main())
