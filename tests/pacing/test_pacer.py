"""The pacer in virtual time; golden tests hold its exact times."""

import asyncio

import pytest
import virtual
from engine import through_desk
from hypothesis import given
from hypothesis import strategies as st
from paced import busiest, study, table, workload

from claudescale.api.answers import Answer, verdict
from claudescale.api.limits import Limits, read_headers
from claudescale.clock import Clock
from claudescale.pacing.pacer import Bucket, Outcome, Pacer, Window, kind_of

LIMITS = table(1_000, 80_000, 16_000)
WIDE = table(1e6, 1e9, 1e9)
ANSWERED = Outcome("answered", input_tokens=1, output_tokens=1)


def pacer(limits=WIDE, **options):
    """Of the running virtual loop."""
    return Pacer(limits, clock=Clock(1.0, 0.0, asyncio.get_running_loop().time), **options)


def now():
    """Virtual seconds."""
    return asyncio.get_running_loop().time()


@pytest.mark.parametrize(
    ("tier", "binding", "minutes"),
    [("2", "requests", 1), ("2", "input_tokens", 2), ("2", "output_tokens", 4)],
)
@pytest.mark.slow
def test_a_run_alone_is_close_to_the_bound_and_hardly_ever_refused(tier, binding, minutes):
    """For every limit, with buckets of a second: the last call goes within 6% of the bound."""
    limits = Limits.of(tier, "claude-haiku-4-5")
    calls = workload(limits, binding, minutes, seed=1)
    outcome = virtual.run(study(limits, calls, bucket_seconds=1.0))
    assert outcome.answered == len(calls)
    assert outcome.arrivals[-1][0] < 1.06 * outcome.bound_seconds
    assert outcome.refused <= max(0.003 * len(calls), 1)


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
    """A 429 holds everybody, also one that says that nobody should retry."""
    answer = Answer(status, headers, b"{}", None if status else "connection_error")
    assert kind_of(verdict(answer), status) == kind


def test_no_minute_and_no_second_is_over_the_limit():
    """What the API let in never exceeds the bucket and its refill, in any window of a second or a minute."""
    calls = workload(LIMITS, "input_tokens", 2, seed=0)
    outcome = virtual.run(study(LIMITS, calls, bucket_seconds=1.0))
    requests, tokens = busiest(outcome.arrivals, 60.0)
    assert requests <= 1_000 * 61 / 60
    assert tokens <= 80_000 * 61 / 60 + max(call.input_tokens for call in calls)
    assert busiest(outcome.arrivals, 1.0)[0] <= 2 * 1_000 / 60


@pytest.mark.parametrize(("headers", "least", "most"), [({"retry-after": "20"}, 20, 22.1), ({}, 1, 1.2)])
def test_nobody_goes_before_retry_after_has_passed(headers, least, most):
    """A refusal holds all for as long as the API says, and for a second where it says nothing."""

    async def waited():
        paced = pacer()
        paced.settle(await paced.acquire(10), Outcome("refused", read_headers(headers)))
        await paced.acquire(10)
        return now()

    assert least <= virtual.run(waited()) <= most


@given(
    st.lists(st.tuples(*(st.floats(low, high) for low, high in [(0, 5), (0.1, 30), (0, 10)])), max_size=40)
)
def test_waiting_as_long_as_a_bucket_says_is_enough(moves):
    """After `seconds_until` the same need waits no more, and no bucket holds more than it can."""
    held = Bucket(rate=10.0, capacity=10.0, slop_seconds=0.0, at=0.0)
    for seconds, amount, deviation in moves:
        held.refill(held.at + seconds)
        held.refill(held.at + held.seconds_until(amount) + 1e-9)
        assert held.seconds_until(amount) <= 1e-6
        assert held.level <= held.full + held.doubt + 1e-9
        held.settle(held.take(amount, deviation), amount / 2)


# how many at once

AT = 100.0
"""When calls are sent, in seconds; nothing was judged before."""


def told(window, outcomes, sent=AT, now=AT + 1):
    """Tell a window that calls went at once and how each ended: "+" is an answer, "f" one sent too fast."""
    for nth, outcome in enumerate(outcomes, 1):
        left = len(outcomes) - nth
        match outcome:
            case "+":
                window.succeeded(nth, sent, left)
            case "-":
                window.failed(nth, sent, now, left)
            case _:
                window.cut(sent, now, left)
    return window


@pytest.mark.parametrize(
    ("outcomes", "calls"),
    [
        ("+" * 16, 22),  # one more for each answer, until the window is half empty
        ("--" + "+" * 14, 21),  # two failures cut nothing
        ("-" * 16, 12),  # and any number of one round cuts once
        ("f" * 16, 12),
    ],
)
def test_a_round_of_calls_widens_or_cuts_once(outcomes, calls):
    """The window grows by answers while it is used, and a round of failures cuts it once."""
    assert told(Window(1_000), outcomes).calls == calls


def test_a_cut_is_judged_by_answers():
    """As long as nothing was answered since a cut, nobody knows whether fewer still would be borne."""
    window = told(Window(1_000), "-" * 16)
    assert told(window, "-" * 12, sent=AT + 2, now=AT + 3).calls == 12
    assert told(window, "++++" + "-" * 8, sent=AT + 4, now=AT + 5).calls < 12


@pytest.mark.slow
def test_errors_by_chance_hardly_slow_a_run_down():
    """With one call in five failing, whatever one does, a run takes little longer than for its calls."""
    plain, struck = (
        through_desk(600, {"concurrency": 32}, latency=0.5, tier=(1e7, 1e10, 1e10), faults=faults)
        for faults in ({}, {529: 0.2})
    )
    assert len(struck.attempts) > 700
    assert struck.seconds < 1.5 * plain.seconds


@pytest.mark.slow
@pytest.mark.parametrize(("most", "refused"), [(4, 0.2), (20, 0.06)])
def test_a_hidden_limit_is_found_and_kept(most, refused):
    """An API that bears so many calls at once gets about as many, and few more."""
    rows = 50 * most
    engine = through_desk(rows, latency=0.5, tier=(1e7, 1e10, 1e10), faults={"overload_above": most})
    assert engine.seconds < 1.2 * rows / most * 0.5 + 10
    assert len(engine.attempts) - rows < refused * rows
