"""The pacer in virtual time; golden tests hold its exact times."""

import asyncio

import pytest
import virtual
from hypothesis import given
from hypothesis import strategies as st
from paced import busiest, study, table, workload

from claudescale.api.answers import Answer, verdict
from claudescale.api.limits import Limits, read_headers
from claudescale.clock import Clock
from claudescale.pacing.pacer import Bucket, Outcome, Pacer, kind_of

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
