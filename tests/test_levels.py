"""The levels of the token buckets over a run, and how many calls in flight it needs."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import MODEL, a_plan, reviews

import claudescale as cs
from claudescale.ledger.ledger import ATTEMPTS
from claudescale.planning.estimates import finish
from claudescale.views import inflight
from claudescale.views.levels import LEVELS, levels

LIMITS = cs.Limits(requests_per_minute=60, input_tokens_per_minute=6_000, output_tokens_per_minute=600)
START = datetime(2026, 11, 1, tzinfo=UTC)
CALLS = st.lists(
    st.tuples(
        st.integers(0, 20_000).map(lambda ms: ms / 1_000),
        st.integers(1, 900),
        st.integers(1, 90),
        st.sampled_from([200, 429]),
    ),
    max_size=40,
)


def attempts(calls):
    """Return attempts of (second, input tokens, output tokens, status), each a second long."""
    rows = [
        {"sent_at": START + timedelta(seconds=at), "input_tokens": given, "output_tokens": written}
        | {"status": status, "seconds": 1.0, "cache_read_input_tokens": 7}
        | {"cache_write_5m_input_tokens": 0, "cache_write_1h_input_tokens": 0}
        for at, given, written, status in calls
    ]
    frame = pl.DataFrame(rows, schema_overrides=dict(ATTEMPTS))
    missing = [pl.lit(None, kind).alias(name) for name, kind in ATTEMPTS.items() if name not in frame.columns]
    return frame.with_columns(missing).select(*ATTEMPTS)


def one_by_one(events, rate, capacity):
    """Return the levels of a bucket after each event, by the loop that everybody would write."""
    level, last, found = capacity, 0.0, []
    for at, taken in sorted(events, key=lambda event: event[0]):
        level = min(level + (at - last) * rate, capacity) - taken
        last = at
        found.append(level)
    return found


@given(CALLS, st.sampled_from([1.0, 10.0, 60.0]))
def test_the_closed_form_is_the_loop(calls, bucket_seconds):
    """Sums and a running minimum give what a bucket does call by call; refused calls take nothing."""
    found = levels(attempts(calls), LIMITS, START.timestamp(), bucket_seconds)
    assert found.schema == LEVELS
    paid = [call for call in calls if call[3] == 200]
    for name, rate, events in (
        ("requests", 1.0, [(at, 1.0) for at, *_ in paid]),
        ("input_tokens", 100.0, [(at, taken) for at, taken, *_ in paid]),
        ("output_tokens", 10.0, [(at + 1.0, written) for at, _, written, _ in paid]),
    ):
        expected = one_by_one(events, rate, rate * bucket_seconds)
        assert found.filter(bucket=name)["level"].to_list() == pytest.approx(expected, abs=1e-2)


def test_levels_of_batches_are_left_out():
    """What went by batch drew on none of the three buckets."""
    several = attempts([(0.0, 10, 10, 200)]).with_columns(batch_id=pl.lit("msgbatch_1"))
    assert levels(several, LIMITS, START.timestamp()).is_empty()


def test_the_calls_needed_are_where_the_plan_stops_to_gain():
    """With one call in flight fewer than needed concurrency binds, with one more a limit of the account."""
    plan = a_plan(reviews(3_000), model=MODEL, tier="start")
    enough = inflight.needed(plan)
    found = inflight.throughput(plan, [enough / 2, enough * 0.99, enough * 1.01, enough * 8])
    assert found["binding"].to_list() == ["concurrency", "concurrency", "requests", "requests"]
    rates = found["requests_per_minute"].to_list()
    assert rates[2] == rates[3] == 1_000
    assert rates[0] == pytest.approx(500)


@pytest.mark.parametrize("share", [1.0, 0.25])
@pytest.mark.parametrize("concurrency", [1, 3, 10, 40])
def test_throughput_and_minutes_are_the_same_arithmetic(concurrency, share):
    """What gets done in a minute, times the minutes of a long plan, is the plan's requests."""
    plan = a_plan(reviews(40_000), model=MODEL, tier="start", share=share)
    rate = inflight.throughput(plan, [concurrency])["requests_per_minute"].item()
    totals = plan.totals
    minutes = (
        finish(
            plan.limits.shared(share),
            requests=totals.requests,
            input_tokens=totals.input_tokens,
            output_tokens=totals.output_tokens,
            latency_seconds=plan.expected.seconds,
            concurrency=concurrency,
        ).seconds
        / 60
    )
    assert rate * minutes == pytest.approx(totals.requests, rel=0.01)


def test_a_plan_with_nothing_to_send_needs_no_calls():
    """A frame of nulls divides nothing by zero."""
    plan = a_plan(pl.DataFrame({"text": pl.Series([None], dtype=pl.String)}), model=MODEL, tier="start")
    assert inflight.allowed(plan) == (1_000, "requests")
