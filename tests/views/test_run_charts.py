"""The pictures of a run: what a reader reads off them is what happened."""

from __future__ import annotations

import json
import math
import random
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest
from drawing import check_drawn_whole, rows_of, words_of
from hypothesis import given, settings
from hypothesis import strategies as st
from running import a_plan, finished, reviews, simulator

from claudescale import views
from claudescale.ledger.records import ATTEMPTS
from claudescale.views import run_charts as charts

START = datetime(2026, 10, 8, 12, tzinfo=UTC)
NAMES = ["requests_per_minute", "input_tokens_per_minute", "output_tokens_per_minute"]
LIMITS = {"input_tokens": 400_000.0, "output_tokens": 80_000.0}
PER_MINUTE = (60.0, 6_000.0, 600.0)


def slices(*requests, minutes=0.2, refused=0):
    """Return slices of time with these requests per minute."""
    rows = [(n * minutes, minutes, rate, 350 * rate, 80 * rate, refused) for n, rate in enumerate(requests)]
    schema = dict.fromkeys(["minute", "slice_minutes", *NAMES], pl.Float64) | {"refused": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def attempts(count, failed=0.02, slowest=1.0):
    """Return attempts, some of which failed; the last one may be slow."""
    chance = random.Random(2)
    rows = [
        {
            "sent_at": START + timedelta(seconds=n / 20),
            "seconds": 2 * math.exp(chance.gauss(0, 0.4)) * (slowest if n == count - 1 else 1),
            "error": "overloaded_error" if chance.random() < failed else None,
            "status": 200, "input_tokens": 100, "output_tokens": 10, "cache_read_input_tokens": 7,
            "cache_write_5m_input_tokens": 0, "cache_write_1h_input_tokens": 0, "dollars": 0.001,
        }
        for n in range(count)
    ]  # fmt: skip
    return pl.DataFrame(rows, schema=ATTEMPTS)


def spent(count, dollars):
    """Return dollars that grow evenly over half an hour."""
    steps = pl.linear_space(1 / count, 1, count)
    return pl.select(minute=30 * steps, dollars=dollars * steps)


def savings(**dollars):
    """Return the parts of a bill."""
    schema = {"part": pl.String, "dollars": pl.Float64}
    return pl.DataFrame(list(dollars.items()), schema=schema, orient="row")


def batches(*rows):
    """Return batches of (minute made, minute ended, state, counts by outcome)."""
    moment = pl.Datetime("us", "UTC")
    columns = {"batch_id": pl.String, "created_at": moment, "ended_at": moment, "state": pl.String}
    columns |= dict.fromkeys(["requests", *charts.PARTS], pl.Int64)
    made = []
    for n, (*minutes, state, counts) in enumerate(rows):
        moments = [minute if minute is None else START + timedelta(minutes=minute) for minute in minutes]
        made.append((f"b{n}", *moments, state, 100, *(counts.get(part, 0) for part in charts.PARTS)))
    return pl.DataFrame(made, schema=columns, orient="row")


def batch_chart(frame, now=60.0, began=0.0, **options):
    """Return the chart of batches, of a run that began and stands at these minutes."""
    start = START.timestamp()
    return charts.batches(frame, started_at=start + began * 60, now=start + now * 60, **options)


def levels_of(calls, bucket_seconds=60.0):
    """Return the levels of the buckets after attempts."""
    return charts.levels(calls, PER_MINUTE, START.timestamp(), bucket_seconds)


def several(count):
    """Return every chart of a run of so many calls, and how it may be odd."""
    calls = attempts(count)
    grid = slices(*[1_200.0] * min(count // 20, 60))
    many = batches(*[(n, n + 20, "collected", {"succeeded": 100}) for n in range(count // 50)])
    ended = batches((0, 30, "collected", {"succeeded": 97, "errored": 3}), (5, None, "in_progress", {}))
    return {
        "throughput": charts.throughput(grid, requests_per_minute=1_200),
        "throughput, refused": charts.throughput(slices(900, 950, refused=3), requests_per_minute=1_000),
        "tokens": charts.tokens(grid, limits=LIMITS),
        "latency": charts.latency(calls),
        "latency, slow": charts.latency(attempts(300, slowest=3_000)),
        "spending": charts.spending(spent(count, 4.2), estimate_dollars=4.4),
        "savings": charts.savings(savings(plain=12.3, batch=6.15, cache=2.1, cut=-0.25, paid=4.3)),
        "batches": batch_chart(ended, deadline_minutes=45),
        "batches, many": batch_chart(many),
        "buckets": charts.buckets(levels_of(calls)),
    }  # fmt: skip


@pytest.mark.slow
def test_a_large_run_makes_a_small_picture_that_is_drawn_whole():
    """Of 20,000 calls at most 5,000 rows go into a chart of 640 pixels at most, and always the same ones."""
    pictures = several(20_000)
    for name, chart in pictures.items():
        check_drawn_whole(chart)
        assert sum(map(len, chart.to_dict()["datasets"].values())) <= 5_000, name
        assert repr(chart), name
    shuffled = attempts(20_000).sample(fraction=1, shuffle=True, seed=1)
    assert charts.latency(shuffled).to_dict() == pictures["latency"].to_dict()


@pytest.mark.parametrize("draw", [
    lambda: charts.throughput(slices(), requests_per_minute=1_000, empty="Why."),
    lambda: charts.latency(attempts(0), empty="Why."),
    lambda: charts.spending(spent(1, 1).clear(), empty="Why."),
    lambda: charts.savings(savings(plain=0, paid=0), empty="Why."),
    lambda: batch_chart(batches(), empty="Why."),
    lambda: charts.buckets(charts.LEVELS.to_frame(), empty="Why."),
])  # fmt: skip
def test_an_empty_chart_says_why_it_is_empty(draw):
    """It shows one sentence, as a picture and in a terminal."""
    assert repr(draw()) == "Why."
    assert words_of(draw()) == ["Why."]


@pytest.fixture(scope="module")
def run():
    """Return a run in which some calls failed and were sent again."""
    with simulator(faults={"529": 0.1}, seed=3) as api:
        return finished(a_plan(reviews(200)), api.client())


@pytest.mark.slow
def test_the_figures_of_a_run_are_in_its_pictures(run):
    """Calls sent, dollars paid, answers and failures: what is drawn sums up to what the run counts."""
    counts = run.counts
    for picture, name in ((run.plot.throughput(), "requests"), (run.plot.tokens(), "output_tokens")):
        rows = rows_of(picture, f"{name}_per_minute")
        drawn = {row["minute"]: row[f"{name}_per_minute"] * row["slice_minutes"] for row in rows}
        assert sum(drawn.values()) == pytest.approx(getattr(counts, name), rel=1e-4)
    assert rows_of(run.plot.spending(), "dollars")[-1]["dollars"] == pytest.approx(counts.dollars, rel=1e-4)
    for picture in (run.plot.spending(), run.plot.savings()):
        assert repr(picture).startswith("SIMULATED: $")
    failed = run.attempts["error"].count()
    median = run.attempts.filter(pl.col("error").is_null())["seconds"].median()
    latency = repr(run.plot.latency())
    assert f"200 answers: median {charts.text.significant(median)} s" in latency
    assert f"{failed:,} calls failed or refused" in latency
    assert len(run.plot.buckets().to_dict()["vconcat"]) == len(charts.BUCKETS)


@pytest.mark.slow
def test_a_run_says_why_a_picture_is_empty_and_a_hybrid_draws_its_deadline(run, tmp_path):
    """A live run has no batches, a batch no pace, and one that only resumes has sent nothing."""
    assert repr(run.plot.batches()) == "This run sent no batch: mode='live'."
    with simulator(speed=600, batch_seconds=60) as api:
        client = api.client()
        finished(a_plan(reviews(3)), client, ledger=tmp_path / "l")
        again = finished(a_plan(reviews(3)), client, ledger=tmp_path / "l")
        hybrid = finished(a_plan(reviews(5), mode="hybrid", deadline=90), client)
        batch = finished(a_plan(reviews(2), mode="batch"), client)
    for chart in (again.plot.throughput(), again.plot.latency(), again.plot.spending()):
        assert repr(chart) == "Nothing was sent: 3 replies were in the ledger already."
    assert repr(batch.plot.buckets()) == "A batch uses none of the limits per minute: see run.plot.batches()."
    (bar,) = [row for row in rows_of(hybrid.plot.batches(), "lane") if row["lane"] == "batch 1"]
    assert bar["words"] == f"batch 1: {hybrid.batches['succeeded'].sum()} succeeded"
    assert "in time for the deadline 1 h 30 m" in repr(hybrid.plot.batches())


@pytest.mark.parametrize(("requests", "limit", "words"), [
    ([900, 950], 1_000, "925 requests a minute on average, 950 at the peak, 1,000 allowed"),
    ([1_500, 400], 1_000, "950 requests a minute on average, 1,500 in a burst, 1,000 allowed"),
    ([3_000], 1_000, "600 requests in 12 s: a burst from a full bucket, which refills at 1,000 a minute"),
    ([700] * 9, 200, "700 requests a minute on average, 700 at the peak, 200 allowed"),
    ([900], None, "900 requests a minute on average, 900 at the peak"),
])  # fmt: skip
def test_a_burst_is_called_a_burst(requests, limit, words):
    """More than the limit allows comes from a full bucket, if one holds as much, and the title says so."""
    assert repr(charts.throughput(slices(*requests), requests_per_minute=limit)) == words


def test_a_limit_is_a_labelled_line_and_far_away_only_a_label():
    """Ten calls under a limit of 50,000 are still seen: the axis ends near the calls."""
    near, far = (charts.throughput(slices(900), requests_per_minute=limit) for limit in (1_000, 50_000))
    assert "limit\\n1,000/min" in words_of(near)
    assert "\N{UPWARDS ARROW} limit\\n50,000/min" in words_of(far)
    assert '"domain": [0, 945.0]' in json.dumps(far.to_dict())


def test_latency_is_of_all_answers_and_of_no_failure():
    """Median and p90 count every answer, also those not drawn; of nine answers there is no p90."""
    calls = attempts(4_000)
    seconds = calls.filter(pl.col("error").is_null())["seconds"]
    median, p90 = (charts.text.significant(seconds.quantile(share, "linear")) for share in (0.5, 0.9))
    assert repr(charts.latency(calls)).startswith(
        f"{seconds.len():,} answers: median {median} s, p90 {p90} s; "
    )
    assert "p90" not in repr(charts.latency(attempts(9, failed=0)))
    assert '"type": "log"' in json.dumps(charts.latency(attempts(300, slowest=3_000)).to_dict())


def test_savings_step_down_from_the_whole_price_to_what_was_paid():
    """Each part begins where the one before ended, one that cost more goes up, and none is of $0."""
    chart = charts.savings(savings(plain=12.0, batch=6.0, none=0.0, cut=-0.5, paid=6.5))
    assert [(row["part"], row["start"], row["end"], row["label"]) for row in rows_of(chart, "part")] == [
        ("plain", 0, 12, "$12.00"), ("batch", 6, 12, "\N{MINUS SIGN}$6.00 (50.0%)"),
        ("cut", 6, 6.5, "+$0.50 (4.2%)"), ("paid", 0, 6.5, "$6.50"),
    ]  # fmt: skip
    assert repr(chart) == "$6.50 paid instead of $12.00: $5.50 saved (45.8%)"


def test_a_bar_is_where_and_as_long_as_its_batch_was():
    """Minutes since the run began, with what came of its rows in words; an open one reaches up to now."""
    ended, open_ = (10, 40, "collected", {"succeeded": 97, "expired": 3}), (20, None, "in_progress", {})
    canceled = 30, 50, "collected", {"succeeded": 60, "canceled": 40}
    chart = batch_chart(batches(open_, ended, canceled))
    bars = {row["lane"]: row for row in rows_of(chart, "lane")}
    assert [(bar["start"], bar["end"], bar["color"]) for bar in bars.values()] == [
        (10, 40, views.ORANGE),
        (20, 60, views.GREY),
        (30, 50, views.GREY),
    ]
    assert bars["batch 1"]["words"] == "batch 1: 97 succeeded, 3 expired"
    assert bars["batch 2"]["words"] == "batch 2: 100 in progress"
    assert repr(chart) == "3 batches: 157 succeeded, 3 expired, 40 canceled, 1 open; 1 h 00 m so far"
    assert repr(batch_chart(batches(*[ended] * 20))).startswith("20 batches, 10 drawn: 1,940 succeeded")


def test_a_deadline_is_said_and_drawn_where_it_is_near():
    """The sentence says if it was met; far away it is only named; an older batch began before."""
    made = batches((0, 30, "collected", {"succeeded": 100}))
    met = repr(batch_chart(made, deadline_minutes=45))
    assert met.endswith("done after 30 m 00 s, in time for the deadline 45 m 00 s")
    assert repr(batch_chart(made, deadline_minutes=20)).endswith("too late for the deadline 20 m 00 s")
    far = batch_chart(made, deadline_minutes=1_440)
    assert "deadline 24 h 00 m \N{RIGHTWARDS ARROW}" in words_of(far)
    (bar,) = rows_of(batch_chart(made, began=20.0), "lane")
    assert (bar["start"], bar["end"]) == (0, 10)


def test_a_bucket_refills_between_calls_and_that_of_requests_is_never_overdrawn():
    """Two calls at once leave a bucket of one empty, which was full; before the third it is full again."""
    calls = attempts(3, failed=0).with_columns(
        sent_at=pl.Series([START, START, START + timedelta(seconds=10)], dtype=ATTEMPTS["sent_at"])
    )
    requests = charts.buckets(levels_of(calls, 1.0), bucket_seconds=1.0).vconcat[0]
    shares = [row["share"] for row in requests.data.values]
    assert shares == [1, 1, 0, 1, 0]


_CALLS = st.lists(
    st.tuples(
        st.integers(0, 20_000).map(lambda ms: ms / 1_000), st.integers(1, 900), st.sampled_from([200, 429])
    ),
    max_size=40,
)


@settings(max_examples=25)
@given(_CALLS, st.sampled_from([1.0, 60.0]))
def test_the_levels_are_those_of_a_bucket_call_by_call(calls, bucket_seconds):
    """Sums and a running minimum give what a loop gives; refused calls take nothing, nor do batches."""
    frame = attempts(len(calls)).with_columns(
        sent_at=pl.Series([START + timedelta(seconds=at) for at, *_ in calls], dtype=ATTEMPTS["sent_at"]),
        input_tokens=pl.Series([taken for _, taken, _ in calls], dtype=pl.Int64),
        status=pl.Series([status for *_, status in calls], dtype=ATTEMPTS["status"]),
    )  # fmt: skip
    found = levels_of(frame, bucket_seconds)
    assert found.schema == charts.LEVELS
    level, last, expected = 100 * bucket_seconds, 0.0, []
    for at, taken, _ in sorted((call for call in calls if call[2] == 200), key=lambda call: call[0]):
        level = min(level + (at - last) * 100, 100 * bucket_seconds) - taken
        last = at
        expected.append(level)
    assert found.filter(bucket="input_tokens")["level"].to_list() == pytest.approx(expected, abs=1e-2)
    assert levels_of(frame.with_columns(batch_id=pl.lit("b"))).is_empty()


@pytest.mark.parametrize("numbers", [
    [math.nan, math.inf, 1.0, -math.inf], [None, None], [1e-9, 1e12],
])  # fmt: skip
def test_no_number_breaks_a_chart(numbers):
    """Nulls, NaN and infinities in a frame give a picture with fewer marks, never an error."""
    odd = pl.Series("requests_per_minute", numbers, dtype=pl.Float64)
    frame = slices(*[1.0] * len(numbers)).with_columns(odd)
    parts = pl.DataFrame({"part": [str(n) for n in range(len(numbers))], "dollars": odd})
    for chart in (charts.throughput(frame, requests_per_minute=1_000), charts.savings(parts)):
        json.dumps(chart.to_dict(), allow_nan=False)
