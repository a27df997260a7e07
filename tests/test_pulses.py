"""What is known of a run at a fixed cost: its meter, when it ends, its log, its rates by the minute."""

import datetime as dt
import logging
import math
import threading
import types
from collections import Counter
from dataclasses import replace

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import WIDE_LIMITS, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api import prices
from claudescale.ledger.records import ATTEMPTS, Attempt
from claudescale.planning import estimates
from claudescale.planning.estimates import Line, Measured
from claudescale.running import meter as meters
from claudescale.running.meter import MOST_SLICES, Ends, Meter, Slice

MODEL = "claude-haiku-5-5"
LIMITS = cs.Limits(requests_per_minute=1_000, input_tokens_per_minute=60_000, output_tokens_per_minute=9_000)


def attempt(number=0, *, sent=0.0, seconds=1.0, status=200, error=None, tokens=100, dollars=None):
    """Return one live call; `sent` is in seconds since 1970."""
    price = prices.price(MODEL)
    paid = price.dollars(input_tokens=tokens, output_tokens=tokens) if status == 200 else 0.0
    return Attempt(
        key=f"{number:032x}", run="r", mode="live", batch_id=None, model=MODEL, sent_at=sent, seconds=seconds,
        status=status, error=error, message=None, request_id=None, stop_reason=None, reply=None,
        input_tokens=tokens if paid else 0, cache_write_5m_input_tokens=0, cache_write_1h_input_tokens=0,
        cache_read_input_tokens=0, output_tokens=tokens if paid else 0, thinking_tokens=0,
        dollars=paid if dollars is None else dollars, simulated=True,
    )  # fmt: skip


def meter(rows=10, **options):
    """Return a meter of a run over that many different rows, started at second 0."""
    made = Meter(model=MODEL, **options)
    made.begin(pl.Series("key", [f"{number:032x}" for number in range(rows)]))
    return made


# what is known of a run


@given(st.lists(st.tuples(st.floats(0, 200_000), st.floats(0, 900), st.booleans()), max_size=60))
def test_slices_stay_few_and_lose_nothing(calls):
    """However long a run lasts there are at most 280 slices, and every call, answer and token is in one."""
    made = meter(len(calls))
    for number, (sent, seconds, refused) in enumerate(calls):
        status, error = (429, "rate_limit_error") if refused else (200, None)
        made.add(attempt(number, sent=sent, seconds=seconds, status=status, error=error), final=not refused)
    width, slices = made.slices()
    good = sum(not refused for *_, refused in calls)
    assert len(slices) <= MOST_SLICES
    assert [sum(column) for column in zip(Slice(), *slices, strict=True)] == [
        len(calls), len(calls) - good, good, 100 * good, 100 * good,
    ]  # fmt: skip
    latest = max((sent + (seconds) for sent, seconds, _ in calls), default=0.0)
    assert not calls or (len(slices) - 1) * width <= latest < len(slices) * width


@given(st.lists(st.floats(0.002, 600), min_size=1, max_size=200), st.sampled_from([0.5, 0.95]))
def test_quantiles_of_latency_are_true_to_a_fortieth(latencies, quantile):
    """The quantile that is kept in classes is the one of the latencies themselves, by nearest rank."""
    made = meter(len(latencies))
    for number, seconds in enumerate(latencies):
        made.add(attempt(number, seconds=seconds), final=True)
    exact = sorted(latencies)[max(math.ceil(quantile * len(latencies)) - 1, 0)]
    assert made.latency(quantile) == pytest.approx(exact, rel=0.026)


def test_what_it_would_have_cost_is_what_the_savings_say():
    """Row by row, and for many results at once, the sum is the counterfactual of `bills.savings`."""
    keys = ["a", "b", "b", "c", "c", "c"]
    row = {name: [0] * 3 for name in ATTEMPTS if name.endswith("tokens")}
    row |= {"key": ["a", "b", "c"], "input_tokens": [10, 20, 30], "cache_read_input_tokens": [500, 0, 700]}
    row |= {"output_tokens": [5, 6, 7], "model": [MODEL] * 3, "error": [None, None, "max_tokens"]}
    today = dt.datetime.now(dt.UTC)
    row |= {"sent_at": [today] * 3, "seconds": [1.0] * 3, "status": [200] * 3}
    row |= {"run": ["r"] * 3, "simulated": [True] * 3}
    row |= {"web_search_requests": [0] * 3}
    row |= dict.fromkeys(("answering_model", "inference_geo", "speed", "refusal_category"), [None] * 3)
    row |= dict.fromkeys(("batch_id", "message", "request_id", "stop_reason", "reply"), [None] * 3)
    for mode in ("live", "batch"):
        counts = [{name: row[name][n] for name in prices.COLUMNS.values()} for n in range(3)]
        paid = [prices.price(MODEL, mode=mode).dollars(**each) for each in counts]
        frame = pl.DataFrame(row | {"mode": [mode] * 3, "dollars": paid}, schema=ATTEMPTS)
        repeats = pl.DataFrame({"key": ["a", "b", "c"], "duplicates": [0, 1, 2]})
        wanted = prices.savings(frame, duplicates=repeats)["dollars_without"][0]
        made = Meter(model=MODEL)
        made.begin(pl.Series("key", keys))
        if mode == "batch":
            final = frame.with_columns(final=pl.lit(value=True))
            made.extend(final, final)
        for one in frame.iter_rows(named=True) if mode == "live" else ():
            made.add(Attempt(**one | {"sent_at": 0.0}), final=True)
        assert made.plain_dollars == pytest.approx(wanted)
        assert made.open_requests == 0


def test_failures_are_counted_by_kind():
    """A 429 is counted apart from other failures, each by the API's error type."""
    made = meter()
    for status, error in [(429, "rate_limit_error"), (429, "ramp_limit_exceeded"), (529, "overloaded_error")]:
        made.add(attempt(status=status, error=error), final=False)
    made.add(attempt(error="max_tokens"), final=True)
    assert made.refusals == Counter(rate_limit_error=1, ramp_limit_exceeded=1)
    assert made.errors == Counter(overloaded_error=1, max_tokens=1)


def test_many_threads_read_and_write_one_meter():
    """Calls counted on two threads while a third reads are all there at the end."""
    made = meter(4_000)
    done = threading.Event()

    def write(first):
        for number in range(first, first + 2_000):
            made.add(attempt(number, sent=number / 7), final=True)

    def read():
        while not done.is_set():
            width, slices = made.slices()
            assert width * len(slices) >= 0
            made.latency(0.5)

    writers = [threading.Thread(target=write, args=[first]) for first in (0, 2_000)]
    reader = threading.Thread(target=read)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    done.set()
    reader.join()
    assert sum(each.requests for each in made.slices()[1]) == made.replies == 4_000
    assert made.open_requests == 0


# when it ends


def pacer(limits=LIMITS, *, in_flight=0, window=16):
    """Return as much of a pacer as the time left is reckoned from."""
    return types.SimpleNamespace(limits=limits, in_flight=in_flight, window=window)


def rest(rows, tokens=50.0):
    """Return requests that are missing."""
    return pl.DataFrame({"estimated_tokens": [tokens] * rows})


def test_before_any_answer_the_time_left_is_that_of_the_plan():
    """The first estimate is the closed form over limits that the plan itself uses."""
    plan = a_plan(reviews(600), tier=LIMITS)
    expected = plan.compiled.expected
    tokens = expected.uncached_tokens(600 * 50.0, 600)
    output = 600 * min(expected.output_tokens, 64.0)
    wanted = estimates.live_finish(
        LIMITS, expected, requests=600, input_tokens=tokens, output_tokens=output
    ).seconds
    ends = meters.live_ends(plan, pacer(), rest(600), meter(600), 0.0)
    assert ends.usual_minutes == pytest.approx(wanted / 60)
    assert ends.latest_minutes > ends.usual_minutes


def test_what_was_measured_replaces_what_was_guessed():
    """After twenty replies the rest is taken to need as many tokens as those did, in proportion."""
    made = meter(600)
    for number in range(100):
        made.add(attempt(number, tokens=90, seconds=2.0), final=True)
    ends = meters.live_ends(a_plan(reviews(600), tier=LIMITS), pacer(), rest(600), made, 0.0)
    output = {"requests": 500, "input_tokens": 0, "output_tokens": 500 * 90}
    wanted = estimates.live_finish(LIMITS, Measured(latency=Line(2.0)), **output)
    assert ends.usual_minutes == pytest.approx(wanted.seconds / 60)


def test_rows_that_are_left_count_by_their_length():
    """Where the long texts come last, they are what is left, and the input tokens bind."""
    made = meter(200)
    for number in range(100):
        made.add(attempt(number, tokens=10, seconds=0.5), final=True)
    frame = pl.concat([rest(100, 10.0), rest(100, 10_000.0)])
    ends = meters.live_ends(a_plan(reviews(200), tier=LIMITS), pacer(), frame, made, 0.0)
    assert ends.usual_minutes == pytest.approx(100 * 10_000 / 60_000, rel=0.03)


def test_a_window_that_is_full_holds_the_run_back():
    """With as many calls in flight as may be, and slow answers, it is their latency that counts."""
    made = meter(600)
    for number in range(100):
        made.add(attempt(number, tokens=10, seconds=30.0), final=True)
    plan = a_plan(reviews(600), tier=LIMITS)
    full = meters.live_ends(plan, pacer(in_flight=4, window=4), rest(600), made, 0.0)
    free = meters.live_ends(plan, pacer(in_flight=3, window=4), rest(600), made, 0.0)
    assert full.usual_minutes == pytest.approx((500 / 4) * 30 / 60)
    assert free.usual_minutes < 2


def test_a_run_that_is_slower_than_its_limits_says_so():
    """The span ends where the pace of the last minute would; with no answer in it, nobody knows."""
    plan, made = a_plan(reviews(600), tier=LIMITS), meter(600)
    for number in range(60):
        made.add(attempt(number, sent=float(number), seconds=0.5, tokens=10), final=True)
    slow = meters.live_ends(plan, pacer(), rest(600), made, 1.0)
    assert slow.latest_minutes == pytest.approx(540 / 60)
    assert slow.usual_minutes < 1
    assert meters.live_ends(plan, pacer(), rest(600), made, 10.0).latest_minutes == math.inf
    assert meters.live_ends(plan, pacer(), rest(600), meter(0), 1.0) == Ends(0.0, 0.0)


@pytest.mark.parametrize(
    ("width", "answers", "minutes_so_far", "wanted"),
    [
        (1, [5] * 9, 9 / 60, None),
        (1, [5] * 10, 10 / 60, 300),
        (1, [9] * 40 + [1] * 60, 100 / 60, 60),
        (1, [1] * 60 + [99], 60.5 / 60, 60),
        (128, [128] * 10, 10 * 128 / 60, 60),
    ],
)
def test_the_pace_is_that_of_whole_slices_of_the_last_minute(width, answers, minutes_so_far, wanted):
    """A slice that is not over does not count, nor what is longer ago, nor ten seconds of youth."""
    assert meters.pace(width, [Slice(answers=count) for count in answers], minutes_so_far) == wanted


# the log


def test_a_run_is_logged_by_the_minute_for_whoever_asks(caplog):
    """At the level INFO there is a line a minute and one at the end, with no text and no key.

    A machine that is busy may be late with a line: it then tells of more than a minute.
    """
    limits = replace(WIDE_LIMITS, requests_per_minute=200)
    with simulator(speed=60, bucket_seconds=1, tier=(200, 10**8, 10**8)) as server:
        with caplog.at_level(logging.INFO, logger="claudescale"):
            run = finished(a_plan(reviews(300), tier=limits), server.client())
        lines = [record.getMessage() for record in caplog.records if record.name == "claudescale"]
        caplog.clear()
        finished(a_plan(reviews(5)), server.client())
    assert 1 < len(lines) <= math.floor(run.minutes) + 1
    assert all(line.startswith("minute ") for line in lines)
    assert lines[-1].endswith("300 of 300 rows done")
    assert not any("parcel" in line or "key" in line for line in lines)
    assert [record for record in caplog.records if record.name == "claudescale"] == []


def test_throughput_is_a_row_per_minute():
    """`Run.throughput` has one row per API minute, and its rates add up to the calls made."""
    with simulator(speed=60, tier=(200, 10**8, 10**8)) as server:
        run = finished(
            a_plan(reviews(300), tier=replace(WIDE_LIMITS, requests_per_minute=200)), server.client()
        )
        frame = run.throughput
    assert frame["minute"].to_list() == [float(minute) for minute in range(frame.height)]
    assert frame.height == math.floor(run.minutes) + 1
    assert (frame["requests_per_minute"] * frame["slice_minutes"]).sum() == pytest.approx(run.counts.requests)
