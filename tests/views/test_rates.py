"""Attempts to rates: nothing is lost between the slices."""

import datetime as dt

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claudescale.ledger.records import ATTEMPTS
from claudescale.running.meter import THROUGHPUT, rates

START = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)


def attempts(calls):
    """Return attempts of (sent after seconds, seconds, status, tokens)."""
    rows = [
        {
            "key": f"{i:032x}", "run": "r", "mode": "live", "model": "m", "status": status,
            "seconds": seconds, "sent_at": START + dt.timedelta(seconds=sent), "input_tokens": tokens,
            "output_tokens": 2 * tokens, "cache_write_5m_input_tokens": 1, "cache_write_1h_input_tokens": 1,
            "cache_read_input_tokens": 7,
            "thinking_tokens": 0, "dollars": 0.0, "simulated": True,
        }
        for i, (sent, seconds, status, tokens) in enumerate(calls)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=ATTEMPTS)


_CALLS = st.lists(
    st.tuples(
        st.floats(0, 20_000), st.floats(0, 600), st.sampled_from([200, 429, None]), st.integers(0, 10_000)
    ),
    max_size=30,
)


@settings(max_examples=25)
@given(_CALLS, st.floats(0, 400))
def test_slices_add_up(calls, minutes):
    """Over all slices there are as many requests, refusals and tokens as there were, cache reads apart."""
    frame = rates(attempts(calls), START.timestamp(), minutes)
    assert frame.schema == THROUGHPUT
    width = frame["slice_minutes"]
    assert (frame["requests_per_minute"] * width).sum() == pytest.approx(len(calls))
    tokens = sum(call[3] for call in calls)
    assert (frame["output_tokens_per_minute"] * width).sum() == pytest.approx(2 * tokens)
    assert (frame["input_tokens_per_minute"] * width).sum() == pytest.approx(tokens + 2 * len(calls))
    assert frame["refused"].sum() == sum(call[2] == 429 for call in calls)
    assert frame["minute"].is_sorted()
    assert width.n_unique() <= 1


def test_tokens_count_when_they_are_answered():
    """A call counts in the slice in which it was sent, its tokens in the one in which it ended."""
    frame = rates(attempts([(0.5, 2.0, 200, 10)]), START.timestamp(), 0.05)
    assert frame["requests_per_minute"].to_list() == [60, 0, 0]
    assert frame["output_tokens_per_minute"].to_list() == [0, 0, 1200]
