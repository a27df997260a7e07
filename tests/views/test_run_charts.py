"""The pictures of a run: a reader reads off them exactly what happened."""

import json
import math
import random
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from drawing import check_drawn_whole, rows_of, words_of
from running import a_plan, finished, reviews, simulator

from claudescale import views
from claudescale.ledger.records import ATTEMPTS
from claudescale.views import run_charts as charts

START = datetime(2026, 10, 8, 12, tzinfo=UTC)
PER_MINUTE = {"requests": 60.0, "input_tokens": 6_000.0, "output_tokens": 600.0}


def slices(*requests, minutes=0.2, refused=0):
    """Return slices of time with these requests per minute."""
    rows = [(n * minutes, minutes, rate, 350 * rate, 80 * rate, refused) for n, rate in enumerate(requests)]
    rates = [f"{name}_per_minute" for name in PER_MINUTE]
    schema = dict.fromkeys(["minute", "slice_minutes", *rates], pl.Float64) | {"refused": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def attempts(count, failed=0.02, slowest=1.0):
    """Return attempts, some of which failed; the last one may be slow."""
    chance = random.Random(2)
    rows = []
    for n in range(count):
        seconds = 2 * math.exp(chance.gauss(0, 0.4)) * (slowest if n == count - 1 else 1)
        error = "overloaded_error" if chance.random() < failed else None
        rows.append({"sent_at": START + timedelta(seconds=n / 20), "seconds": seconds, "error": error})
    tokens = [pl.lit(100).alias("input_tokens"), pl.lit(10).alias("output_tokens")]
    return pl.DataFrame(rows, schema=ATTEMPTS).with_columns(pl.col("^cache_.*tokens$").fill_null(0), *tokens)


def batch_chart(*rows, began=0.0, **options):
    """Return the chart of batches of (minute made, minute ended, state, counts) in a run's first hour."""
    moment, start = pl.Datetime("us", "UTC"), START.timestamp() + began * 60
    columns = {"batch_id": pl.String, "created_at": moment, "ended_at": moment, "state": pl.String}
    columns |= dict.fromkeys(["requests", *charts.PARTS], pl.Int64)
    made = []
    for n, (first, last, state, counts) in enumerate(rows):
        ended = None if last is None else START + timedelta(minutes=last)
        numbers = [100, *(counts.get(part, 0) for part in charts.PARTS)]
        made.append((f"b{n}", START + timedelta(minutes=first), ended, state, *numbers))
    frame = pl.DataFrame(made, schema=columns, orient="row")
    return charts.batches(frame, attempts(0), started_at=start, now=START.timestamp() + 3_600, **options)


GOOD = (0, 30, "collected", {"succeeded": 100})
OPEN = (20, None, "in_progress", {})


@pytest.mark.slow
def test_a_large_run_makes_a_small_picture_that_is_drawn_whole():
    """Of 20,000 calls at most 5,000 rows go into a chart of at most 640 pixels, and always the same ones."""
    calls, grid = attempts(20_000), slices(*[1_200.0] * 60, refused=3)
    spent = pl.select(minute=pl.linear_space(0, 30, 20_000), dollars=pl.linear_space(0, 4.2, 20_000))
    parts = pl.DataFrame({"part": ["plain", "batch", "cut", "paid"], "dollars": [12.3, 6.15, -0.25, 6.4]})
    for chart in (
        charts.throughput(grid, requests_per_minute=1_200),
        charts.tokens(grid, limits={"input_tokens": 400_000.0, "output_tokens": 80_000.0}),
        charts.latency(calls),
        charts.latency(attempts(300, slowest=3_000)),
        charts.spending(spent, estimate_dollars=4.4),
        charts.savings(parts),
        batch_chart(GOOD, OPEN, deadline_minutes=45),
        batch_chart(*[GOOD] * 400),
        charts.buckets(calls, limits=PER_MINUTE, started_at=START.timestamp()),
    ):
        check_drawn_whole(chart.to_dict())
        assert sum(map(len, chart.to_dict()["datasets"].values())) <= 5_000, repr(chart)
    shuffled = calls.sample(fraction=1, shuffle=True, seed=1)
    assert charts.latency(shuffled).to_dict() == charts.latency(calls).to_dict()


@pytest.mark.slow
def test_the_figures_of_a_run_are_in_its_pictures():
    """Calls sent, dollars paid, answers and failures in the pictures add up to the run's counts."""
    with simulator(faults={"529": 0.1}, seed=3) as api:
        run = finished(a_plan(reviews(200)), api.client())
    counts, plot = run.counts, run.plot
    for picture, name in ((plot.throughput(), "requests"), (plot.tokens(), "output_tokens")):
        rows = rows_of(picture, f"{name}_per_minute")
        drawn = {row["minute"]: row[f"{name}_per_minute"] * row["slice_minutes"] for row in rows}
        assert sum(drawn.values()) == pytest.approx(getattr(counts, name), rel=1e-4)
    assert "60,000 allowed" in repr(plot.throughput())
    assert rows_of(plot.spending(), "dollars")[-1]["dollars"] == pytest.approx(counts.dollars, rel=1e-4)
    assert [repr(chart)[:12] for chart in (plot.spending(), plot.savings())] == ["SIMULATED: $"] * 2
    assert "200 answers: median " in repr(plot.latency())
    assert f"{run.attempts['error'].count():,} calls failed or refused" in repr(plot.latency())
    assert len(plot.buckets().to_dict()["vconcat"]) == len(PER_MINUTE)
    assert repr(plot.batches()) == "This run sent no batch: mode='live'."


@pytest.mark.slow
def test_a_run_says_why_a_picture_is_empty_and_a_hybrid_draws_its_deadline(path):
    """A batch has no pace, and a run that only resumes has sent nothing; it shows one sentence."""
    with simulator(speed=600, batch_seconds=60) as api:
        client = api.client()
        finished(a_plan(reviews(3)), client, ledger=path)
        plot = finished(a_plan(reviews(3)), client, ledger=path).plot
        hybrid = finished(a_plan(reviews(5), mode="hybrid", deadline=90), client)
        batch = finished(a_plan(reviews(2), mode="batch"), client).plot
    empty = [plot.throughput, plot.tokens, plot.buckets, plot.latency, plot.spending, plot.savings]
    why = "Nothing was sent: 3 replies were in the ledger already."
    assert {repr(draw()) for draw in empty} == {why}
    of_live_calls = [batch.throughput, batch.tokens, batch.buckets, batch.latency]
    why = "A batch uses none of the limits per minute: see run.plot.batches()."
    assert {repr(draw()) for draw in of_live_calls} == {why}
    (bar,) = [row for row in rows_of(hybrid.plot.batches(), "lane") if row["lane"] == "batch 1"]
    assert bar["words"] == f"batch 1: {hybrid.batches['succeeded'].sum()} succeeded"
    assert "in time for the deadline 1 h 30 m" in repr(hybrid.plot.batches())


@pytest.mark.parametrize(("requests", "limit", "words"), [
    ([900, 950], 1_000, "925 requests a minute on average, 950 at the peak, 1,000 allowed"),
    ([1_500, 400], 1_000, "950 requests a minute on average, 1,500 in a burst, 1,000 allowed"),
    ([3_000], 1_000, "600 requests in 12 s: a burst from a full bucket, which refills at 1,000 a minute"),
    ([700] * 9, 200, "700 requests a minute on average, 700 at the peak, 200 allowed"),
])  # fmt: skip
def test_a_burst_is_called_a_burst(requests, limit, words):
    """A pace above the limit comes from a full bucket if one holds as much, and the title says so."""
    assert repr(charts.throughput(slices(*requests), requests_per_minute=limit)) == words


def test_a_limit_is_a_labelled_line_and_refused_calls_are_signs():
    """A far limit is only a label; the title counts the signs; NaN and infinities only leave marks out."""
    near, far = (charts.throughput(slices(900), requests_per_minute=limit) for limit in (1_000, 50_000))
    assert "limit\\n1,000/min" in words_of(near)
    assert "\N{UPWARDS ARROW} limit\\n50,000/min" in words_of(far)
    assert '"domain": [0, 945.0]' in json.dumps(far.to_dict())
    chart = charts.throughput(slices(900, math.nan, math.inf, refused=3), requests_per_minute=None)
    assert "900 at the peak; 9 calls refused" in repr(chart)
    assert [layer["mark"]["type"] for layer in chart.to_dict()["layer"]] == ["rect", "point"]
    json.dumps(chart.to_dict(), allow_nan=False)


def test_latency_is_of_all_answers_and_of_no_failure():
    """Median and p90 count every answer, including undrawn ones; nine answers have no p90."""
    calls = attempts(4_000)
    seconds = calls.filter(pl.col("error").is_null())["seconds"]
    median, p90 = (charts.text.significant(seconds.quantile(share, "linear")) for share in (0.5, 0.9))
    assert f"{seconds.len():,} answers: median {median} s, p90 {p90} s; " in repr(charts.latency(calls))
    assert "p90" not in repr(charts.latency(attempts(9, failed=0)))
    assert '"type": "log"' in json.dumps(charts.latency(attempts(300, slowest=3_000)).to_dict())


def test_savings_step_down_from_the_whole_price_to_what_was_paid():
    """Each part begins where the previous one ended, one that cost more goes up, and none is of $0."""
    parts = {"plain": 12.0, "batch": 6.0, "none": 0.0, "cut": -0.5, "paid": 6.5}
    chart = charts.savings(pl.DataFrame([*parts.items()], schema=["part", "dollars"], orient="row"))
    assert [(row["part"], row["start"], row["end"], row["label"]) for row in rows_of(chart, "part")] == [
        ("plain", 0, 12, "$12.00"), ("batch", 6, 12, "\N{MINUS SIGN}$6.00 (50.0%)"),
        ("cut", 6, 6.5, "+$0.50 (4.2%)"), ("paid", 0, 6.5, "$6.50"),
    ]  # fmt: skip
    assert repr(chart) == "$6.50 paid instead of $12.00: $5.50 saved (45.8%)"


def test_a_bar_is_where_and_as_long_as_its_batch_was():
    """It shows minutes since the run began and the outcome of its rows; an open one reaches up to now."""
    ended = 10, 40, "collected", {"succeeded": 97, "expired": 3}
    canceled = 30, 50, "collected", {"succeeded": 60, "canceled": 40}
    chart = batch_chart(OPEN, ended, canceled)
    assert [(row["words"], row["start"], row["end"], row["color"]) for row in rows_of(chart, "lane")] == [
        ("batch 1: 97 succeeded, 3 expired", 10, 40, views.ORANGE),
        ("batch 2: 100 in progress", 20, 60, views.GREY),
        ("batch 3: 60 succeeded, 40 canceled", 30, 50, views.GREY),
    ]
    assert repr(chart) == "3 batches: 157 succeeded, 3 expired, 40 canceled, 1 open; 1 h 00 m so far"
    assert repr(batch_chart(*[ended] * 20)).startswith("20 batches, 10 drawn: 1,940 succeeded")
    (earlier,) = rows_of(batch_chart(GOOD, began=20.0), "lane")
    assert (earlier["start"], earlier["end"]) == (0, 10)


@pytest.mark.parametrize(("deadline", "words", "label"), [
    (45, "done after 30 m 00 s, in time for the deadline 45 m 00 s", "deadline 45 m 00 s"),
    (20, "done after 30 m 00 s, too late for the deadline 20 m 00 s", "deadline 20 m 00 s"),
    (1_440, "in time for the deadline 24 h 00 m", "deadline 24 h 00 m \N{RIGHTWARDS ARROW}"),
])  # fmt: skip
def test_a_deadline_is_said_and_drawn_where_it_is_near(deadline, words, label):
    """The sentence says if it was met; far away it is only named."""
    chart = batch_chart(GOOD, deadline_minutes=deadline)
    assert repr(chart).endswith(words)
    assert label in words_of(chart)


def test_a_bucket_refills_between_calls_and_may_be_overdrawn():
    """Its level just before and after each call, by hand: a bucket of 100 that gets 6,000 a minute."""
    calls = pl.DataFrame({"minute": [1.0, 0.01, 0.0, 0.0], "taken": [50, 30, 80, 40]})
    levels = charts.bucket_levels(calls, per_minute=6_000.0, capacity=100.0)
    expected = [1.0, 0.2, 0.2, -0.2, 0.4, 0.1, 1.0, 0.5]
    assert [share for row in levels.rows() for share in row[1:]] == pytest.approx(expected)
    # That of requests is never overdrawn: two at once empty one of one, before the third it is full again.
    sent = pl.Series([START, START, START + timedelta(seconds=10)], dtype=ATTEMPTS["sent_at"])
    calls = attempts(3).with_columns(sent_at=sent)
    chart = charts.buckets(calls, limits=PER_MINUTE, started_at=START.timestamp(), bucket_seconds=1.0)
    assert [row["share"] for row in chart.vconcat[0].data.values] == [1, 1, 0, 1, 0]
