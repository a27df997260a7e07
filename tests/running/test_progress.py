"""A run's progress at constant cost: its counts, its estimated end, its log, its rates."""

import logging
import math
import types
from dataclasses import replace

import polars as pl
import pytest
from engine import MODEL
from running import WIDE_LIMITS, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api import prices
from claudescale.ledger.records import ATTEMPTS, Attempt
from claudescale.planning import estimates
from claudescale.running.job import Ends, Job
from claudescale.running.meter import THROUGHPUT, Meter

LIMITS = cs.Limits(requests_per_minute=1_000, input_tokens_per_minute=60_000, output_tokens_per_minute=9_000)


def attempt(key, error=None, *, sent=0.0, seconds=1.0, status=200, tokens=100):
    """Return one live call; `sent` is in seconds since the start."""
    paid = tokens if status == 200 else 0
    nothing = {name: 0 if "tokens" in name or "searches" in name else None for name in ATTEMPTS}
    told = {"key": key, "mode": "live", "model": MODEL, "sent_at": sent, "seconds": seconds, "status": status}
    told |= {"error": error, "input_tokens": paid, "output_tokens": paid, "web_search_requests": 0}
    dollars = prices.price(MODEL).dollars(input_tokens=paid, output_tokens=paid)
    return Attempt(**nothing | told | {"dollars": dollars})


def meter(keys, *, sent=(), **options):
    """Return a meter of rows with these keys, or that many, some of which were answered at `sent`."""
    made = Meter(model=MODEL)
    made.begin(pl.Series(range(keys) if isinstance(keys, int) else keys, dtype=pl.String))
    for number, second in enumerate(sent):
        made.add(attempt(str(number), sent=float(second), **options), final=True)
    return made


def test_each_row_is_answered_failed_or_missing_as_its_request_is():
    """Repeated rows, rows that another run answered, and failed tries are each counted as what they are."""
    made = meter(["a", "a", None, "refused", "tried", "theirs", "theirs", "waiting"])
    made.reuse(pl.DataFrame({"key": ["theirs"], "error": [None]}))
    made.add(attempt("a", "rate_limit_error", status=429), final=False)
    made.add(attempt("a"), final=True)
    made.add(attempt("refused", "refusal"), final=True)
    made.add(attempt("tried", "api_error", status=500), final=False)
    assert (made.rows, made.sent, made.requests, made.refused, made.reused) == (8, 7, 4, 1, 1)
    assert (made.answered, made.failed, made.missing) == (4, 1, 2)
    made.end()
    assert (made.answered, made.failed, made.missing) == (4, 2, 1)


def test_slices_stay_few_and_tokens_count_when_they_are_answered():
    """A call counts in the slice of its sending and its tokens in that of its end; nothing is lost."""
    rates = meter(1, sent=[0.5], seconds=2.0, tokens=20).rates()
    assert rates.schema == THROUGHPUT
    assert rates["requests_per_minute"].to_list() == [60, 0, 0]
    assert rates["output_tokens_per_minute"].to_list() == [0, 0, 1200]
    rates = meter(500, sent=[number * 400.0 for number in range(500)]).rates()
    assert rates.height <= 60
    assert (rates["requests_per_minute"] * rates["slice_minutes"]).sum() == pytest.approx(500)
    assert (rates["input_tokens_per_minute"] * rates["slice_minutes"]).sum() == pytest.approx(50_000)


def a_job(made, rows, minutes=0.0, *, tokens=None, in_flight=0, **options):
    """Return a job over rows of these tokens, with at most 4 calls in flight."""
    job = Job(a_plan(reviews(rows), tier=LIMITS, **options), types.SimpleNamespace(middleware=()), None)
    job.meter = made
    job.pacer = types.SimpleNamespace(limits=LIMITS, in_flight=in_flight, window=4)
    job.missing = pl.DataFrame({"estimated_tokens": tokens or [50.0] * rows})
    job.started_at, job._ended_at = 1.0, 1.0 + minutes * 60
    return job


def ends(*given, **options):
    """Return when such a run ends."""
    return a_job(*given, **options).ends


def test_the_time_left_is_first_that_of_the_plan_and_then_what_was_measured():
    """Before an answer it is the plan's; after some, the rest is expected to be like those."""
    first = ends(meter(600), 600)
    assert first.usual_minutes == pytest.approx(
        a_plan(reviews(600), tier=LIMITS).options["minutes"][0], rel=0.01
    )
    assert first.latest_minutes > first.usual_minutes
    measured = ends(meter(600, sent=[0] * 100, seconds=2.0, tokens=60), 600)
    assert measured.usual_minutes == pytest.approx(500 * 60 / 9_000, rel=0.1)
    long_last = ends(meter(200, sent=[0] * 100, tokens=10), 200, tokens=[10.0] * 100 + [10_000.0] * 100)
    assert long_last.usual_minutes == pytest.approx(100 * 10_000 / 60_000, rel=0.03)
    assert ends(meter(0), 600) == Ends(0.0, 0.0)


def test_what_holds_a_run_back_is_in_the_time_left():
    """It includes a full window of slow answers and a pace below the limits, or is unknown without any."""
    slow = meter(600, sent=[0] * 100, tokens=10, seconds=30.0)
    assert ends(slow, 600, in_flight=4).usual_minutes == pytest.approx(500 / 4 * 30 / 60)
    assert ends(slow, 600, in_flight=3).usual_minutes < 2
    made = meter(600, sent=range(60), tokens=10, seconds=0.5)
    assert ends(made, 600, 1.0).latest_minutes == pytest.approx(540 / 60)
    assert ends(made, 600, 1.0).usual_minutes < 1
    assert ends(made, 600, 10.0).latest_minutes == math.inf


def test_a_hybrid_goes_live_as_late_as_the_rest_is_still_in_time_nine_times_in_ten():
    """Live calls, as slow as they may be, and the cancel before them end at the deadline."""
    job = a_job(meter(6_000), 6_000, mode="hybrid", deadline=600)
    slow, wait = job.ends.latest_minutes, (job.switch_at() - job.started_at) / 60
    assert wait + estimates.CANCEL_MINUTES + slow == pytest.approx(600)
    assert slow > job.ends.usual_minutes > 30


@pytest.mark.slow
def test_a_run_is_logged_and_counted_by_the_minute(caplog):
    """At INFO there is a line a minute and one at the end, without a text; throughput has a row a minute."""
    plan = a_plan(reviews(150), tier=replace(WIDE_LIMITS, requests_per_minute=100))
    caplog.set_level(logging.INFO, logger="claudescale")
    with simulator(speed=60, bucket_seconds=1, tier=(100, 10**8, 10**8)) as api:
        run = finished(plan, api.client())
    lines = [record.getMessage() for record in caplog.records if record.name == "claudescale"]
    assert 1 < len(lines) <= math.floor(run.minutes) + 1  # on a busy machine a line may cover more
    assert all(line.startswith("minute ") and "parcel" not in line for line in lines)
    assert "150 of 150 rows answered" in lines[-1]
    rates = run.throughput
    assert rates["minute"].to_list() == [float(minute) for minute in range(math.floor(run.minutes) + 1)]
    assert (rates["requests_per_minute"] * rates["slice_minutes"]).sum() == pytest.approx(run.counts.requests)
