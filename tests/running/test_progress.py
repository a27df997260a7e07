"""What is known of a run while it goes on, at a fixed cost: its counts, when it ends, its log, its rates."""

import logging
import math
import types
from collections import Counter
from dataclasses import replace

import polars as pl
import pytest
from engine import MODEL
from hypothesis import given, settings
from hypothesis import strategies as st
from running import WIDE_LIMITS, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api import prices
from claudescale.ledger.records import ATTEMPTS, Attempt
from claudescale.planning import estimates
from claudescale.running.job import Ends, Job
from claudescale.running.meter import THROUGHPUT, Meter, Slice

LIMITS = cs.Limits(requests_per_minute=1_000, input_tokens_per_minute=60_000, output_tokens_per_minute=9_000)


def attempt(key, error=None, *, sent=0.0, seconds=1.0, status=200, tokens=100):
    """Return one live call; `sent` is in seconds since the start."""
    paid = tokens if status == 200 else 0
    nothing = dict.fromkeys(ATTEMPTS, None) | dict.fromkeys(
        [name for name in ATTEMPTS if "tokens" in name], 0
    )
    told = {"key": key, "run": "r", "mode": "live", "model": MODEL, "sent_at": sent, "seconds": seconds}
    told |= {"status": status, "error": error, "input_tokens": paid, "output_tokens": paid, "simulated": True}
    dollars = prices.price(MODEL).dollars(input_tokens=paid, output_tokens=paid)
    return Attempt(**nothing | told | {"dollars": dollars, "web_search_requests": 0})


def meter(keys=(), *, sent=(), **options):
    """Return a meter of rows with these keys, or that many, of which some were answered when `sent` says."""
    made = Meter(model=MODEL)
    keys = [str(number) for number in range(keys)] if isinstance(keys, int) else keys
    made.begin(pl.Series("key", keys, dtype=pl.String))
    for number, second in enumerate(sent):
        made.add(attempt(str(number), sent=float(second), **options), final=True)
    return made


# counts


@settings(max_examples=40)
@given(
    st.lists(st.sampled_from("abcdef") | st.none(), max_size=30),
    st.lists(
        st.tuples(st.sampled_from(["reply", "refusal", "gone", "other", ""]), st.integers(0, 2)), min_size=6
    ),
)
def test_each_row_is_answered_failed_or_missing_as_its_request_is(keys, ends):
    """Repeated rows, rows that another run answered, and tries in vain are counted as what they are."""
    made, fate, calls = meter(keys), dict(zip("abcdef", ends, strict=False)), 0
    for key in {key for key in keys if key is not None}:
        end, retries = fate[key]
        retries += end == "gone"
        for _ in range(retries):
            made.add(attempt(key, "rate_limit_error", status=429), final=False)
        if end == "other":
            made.found(pl.DataFrame({"key": [key], "error": [None]}, schema_overrides={"error": pl.String}))
        if end in {"reply", "refusal"}:
            made.add(attempt(key, None if end == "reply" else end), final=True)
        calls += retries + (end in {"reply", "refusal"})
        assert made.answered + made.failed + made.missing == made.sent
    of = [fate[key][0] for key in keys if key is not None]
    assert made.failed == of.count("refusal")
    made.end()
    assert (made.rows, made.sent, made.requests) == (len(keys), len(of), calls)
    assert made.answered == of.count("reply") + of.count("other")
    tried = sum(end == "" and retries > 0 for end, retries in (fate[key] for key in keys if key is not None))
    assert made.failed == of.count("refusal") + of.count("gone") + tried
    assert made.missing == of.count("") - tried


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["live", "batch"])
def test_what_it_would_have_cost_is_what_the_savings_say(mode):
    """Counted row by row, or for many results at once, it is what `Run.savings` begins with."""
    frame = pl.DataFrame({"text": ["a", "b", "b", "c", "c", "c"]})
    with simulator(speed=1_000, batch_seconds=60, faults={"cut": 0.3}) as api:
        run = finished(a_plan(frame, mode=mode, system="Be brief. " * 1_500, cache=True), api.client())
    assert run.counts.plain_dollars == pytest.approx(run.savings["dollars_without"][0])
    assert run.counts.errors == Counter(run.attempts["error"].drop_nulls())


@settings(max_examples=10)
@given(
    st.lists(st.tuples(st.floats(0, 200_000), st.floats(0, 900), st.booleans()), max_size=60),
    st.sampled_from([0, 7, 60]),
)
def test_slices_stay_few_and_lose_nothing(calls, width):
    """However long a run lasts every call, answer and token is in one slice, and a picture has 60 at most."""
    made = meter(len(calls))
    for number, (sent, seconds, refused) in enumerate(calls):
        status, error = (429, "rate_limit_error") if refused else (200, None)
        call = attempt(str(number), error, sent=sent, seconds=seconds, status=status)
        made.add(call, final=not refused)
    (seconds, slices), good = made.slices(width), sum(not refused for *_, refused in calls)
    wanted = [len(calls), len(calls) - good, good, 100 * good, 100 * good]
    assert [sum(column) for column in zip(Slice(), *slices, strict=True)][:5] == wanted
    assert len(slices) <= 60 or width
    latest = max((sent + seconds for sent, seconds, _ in calls), default=0.0)
    assert not calls or (len(slices) - 1) * seconds <= latest < len(slices) * seconds
    rates = made.rates(width)
    assert rates.schema == THROUGHPUT
    assert (rates["requests_per_minute"] * rates["slice_minutes"]).sum() == pytest.approx(len(calls))
    assert (rates["input_tokens_per_minute"] * rates["slice_minutes"]).sum() == pytest.approx(100 * good)
    assert rates["refused"].sum() == len(calls) - good


def test_tokens_count_when_they_are_answered():
    """A call counts in the slice in which it was sent, its tokens in the one in which it ended."""
    rates = meter(1, sent=[0.5], seconds=2.0, tokens=20).rates()
    assert rates["requests_per_minute"].to_list() == [60, 0, 0]
    assert rates["output_tokens_per_minute"].to_list() == [0, 0, 1200]


# when it ends


def ends(made, rows, minutes=0.0, *, tokens=50.0, in_flight=0, window=16):
    """Return when a run over rows of so many tokens, or of these, ends."""
    job = Job.__new__(Job)
    job.plan, job.meter = a_plan(reviews(rows), tier=LIMITS), made
    job.pacer = types.SimpleNamespace(limits=LIMITS, in_flight=in_flight, window=window)
    job.missing = pl.DataFrame({"estimated_tokens": [tokens] * rows if isinstance(tokens, float) else tokens})
    job._started_at, job._ended_at = 1.0, 1.0 + minutes * 60
    return job.ends


def test_the_time_left_is_first_that_of_the_plan_and_then_what_was_measured():
    """Before an answer it is the plan's closed form; after some, the rest takes what those took."""
    plan = a_plan(reviews(600), tier=LIMITS)
    tokens = {
        "requests": 600,
        "input_tokens": plan.compiled.expected.uncached_tokens(600 * 50.0, 600),
        "output_tokens": 600 * min(plan.compiled.expected.output_tokens, 64.0),
    }
    planned = estimates.live_finish(LIMITS, plan.compiled.expected, **tokens)
    first = ends(meter(600), 600)
    assert first.usual_minutes == pytest.approx(planned.seconds / 60)
    assert first.latest_minutes > first.usual_minutes
    measured = ends(meter(600, sent=[0] * 100, seconds=2.0, tokens=60), 600)
    assert measured.usual_minutes == pytest.approx(500 * 60 / 9_000, rel=0.1)
    long_last = ends(meter(200, sent=[0] * 100, tokens=10), 200, tokens=[10.0] * 100 + [10_000.0] * 100)
    assert long_last.usual_minutes == pytest.approx(100 * 10_000 / 60_000, rel=0.03)
    assert ends(meter(0), 600) == Ends(0.0, 0.0)


def test_what_holds_a_run_back_is_in_the_time_left():
    """A full window of slow answers; a pace below the limits; and nobody knows where nothing comes."""
    slow = {"sent": [0] * 100, "tokens": 10, "seconds": 30.0}
    full = ends(meter(600, **slow), 600, in_flight=4, window=4)
    assert full.usual_minutes == pytest.approx(500 / 4 * 30 / 60)
    assert ends(meter(600, **slow), 600, in_flight=3, window=4).usual_minutes < 2
    made = meter(600, sent=range(60), tokens=10, seconds=0.5)
    assert ends(made, 600, 1.0).latest_minutes == pytest.approx(540 / 60)
    assert ends(made, 600, 1.0).usual_minutes < 1
    assert ends(made, 600, 10.0).latest_minutes == math.inf


# the log, and rates by the minute


@pytest.mark.slow
def test_a_run_is_logged_and_counted_by_the_minute(caplog):
    """At INFO there is a line a minute and one at the end, without a text; throughput has a row a minute.

    A machine that is busy may be late with a line: it then tells of more than a minute.
    """
    plan = a_plan(reviews(150), tier=replace(WIDE_LIMITS, requests_per_minute=100))
    with simulator(speed=60, bucket_seconds=1, tier=(100, 10**8, 10**8)) as api:
        with caplog.at_level(logging.INFO, logger="claudescale"):
            run = finished(plan, api.client())
        lines = [record.getMessage() for record in caplog.records if record.name == "claudescale"]
        caplog.clear()
        finished(a_plan(reviews(5)), api.client())
    assert caplog.records == []
    assert 1 < len(lines) <= math.floor(run.minutes) + 1
    assert all(line.startswith("minute ") and "parcel" not in line for line in lines)
    assert "150 of 150 rows answered" in lines[-1]
    rates = run.throughput
    assert rates["minute"].to_list() == [float(minute) for minute in range(math.floor(run.minutes) + 1)]
    assert (rates["requests_per_minute"] * rates["slice_minutes"]).sum() == pytest.approx(run.counts.requests)
