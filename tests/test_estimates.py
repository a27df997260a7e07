"""Estimates: what a plan says before, held against what the API's local stand-in then bills."""

import random

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from running import MODEL, a_plan, finished, simulator

import claudescale as cs
from claudescale.planning import calls
from claudescale.planning.calls import Measured
from claudescale.planning.estimates import OPTIONS

WORDS = ["the", "parcel", "was", "late", "box", "broken", "again", "never", "order", "refund", "please"]


def texts(rows, seed=1, median=20.0):
    """Return a frame of texts of very different lengths."""
    draws = random.Random(seed)
    counts = [max(1, int(draws.lognormvariate(0, 0.8) * median)) for _ in range(rows)]
    return pl.DataFrame({"text": [" ".join(draws.choices(WORDS, k=count)) for count in counts]})


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model": "claude-sonnet-5-5"},
        {"returns": {"who": pl.String, "stars": pl.Int64}},
        {"returns": pl.Enum(["yes", "no"])},
        {"system": "Be a judge of parcels. " * 900, "cache": True},
    ],
    ids=["plain", "sonnet", "typed", "enum", "cached"],
)
def test_a_pilot_of_50_rows_brings_dollars_within_a_tenth(options):
    """After 50 rows the estimate of 600 is within 10% of what they cost, and no worse than a lucky guess."""
    plan = a_plan(texts(600), **{"max_tokens": 400, **options})
    with simulator(speed=60) as api:
        client = api.client()
        calibrated = plan.calibrate(finished(plan.sample(50), client))
        paid = finished(plan, client).summary["dollars"].item()
    before, after = (each.options["dollars"][0] / paid for each in (plan, calibrated))
    assert after == pytest.approx(1, abs=0.1)
    assert abs(after - 1) <= max(abs(before - 1), 0.05)
    assert calibrated.measured.calls == 50
    assert "measured on 50 calls" in repr(calibrated)


def test_a_pilot_learns_the_overhead_of_typed_replies():
    """What every call has besides its text is told from what grows with it."""
    plan = a_plan(texts(100), returns=pl.Boolean(), max_tokens=200)
    with simulator(speed=60) as api:
        measured = plan.calibrate(finished(plan, api.client())).measured
    assert measured.input_overhead_tokens == pytest.approx(80, abs=25)
    assert measured.input_ratio == pytest.approx(1, abs=0.15)


@given(
    st.floats(0.4, 2.5),
    st.floats(0, 500),
    st.lists(st.integers(5, 5_000), min_size=12, max_size=60, unique=True),
)
def test_measured_finds_the_line(slope, overhead, sizes):
    """Real tokens on a line over the estimate give that line; where all are alike, their ratio."""
    paid = _paid(sizes, [size * slope + overhead for size in sizes])
    found = calls.measured(paid)
    given_back = [size * found.input_ratio + found.input_overhead_tokens for size in sizes]
    assert sum(given_back) == pytest.approx(paid["input_tokens"].sum(), rel=1e-3)
    alike = calls.measured(_paid([100.0] * 12, [100 * slope + overhead] * 12))
    assert alike.input_ratio == pytest.approx(round(100 * slope + overhead) / 100)
    assert alike.input_overhead_tokens == 0


def _paid(estimated, real):
    nothing = dict.fromkeys(
        ("cache_write_5m_input_tokens", "cache_write_1h_input_tokens", "cache_read_input_tokens"), 0
    )
    return pl.DataFrame({"estimated_tokens": [float(x) for x in estimated]}).with_columns(
        input_tokens=pl.Series([round(x) for x in real]), output_tokens=10, seconds=1.0, mode=pl.lit("live"),
        **{name: pl.lit(value) for name, value in nothing.items()},
    )  # fmt: skip


def test_one_call_is_a_pilot_too():
    """A single reply teaches its ratio; nothing is divided by nothing."""
    assert calls.measured(_paid([100], [120])).input_ratio == pytest.approx(1.2)


@given(st.integers(3, 1_000))
def test_more_calls_less_doubt(calls):
    """The doubt of a mean falls with the calls it comes from, and a guess has the most."""
    few, many = (Measured(output_tokens=50, output_deviation=20, calls=n) for n in (calls, calls * 4))
    assert few.doubt / 4 < many.doubt <= few.doubt / 2, "few calls have Student's tails too"
    assert Measured().doubt >= few.doubt
    assert many.more > 1


def test_options_in_one_table():
    """Batch is half the price of live; savings are told against every row live."""
    frame = pl.DataFrame({"text": [*texts(90)["text"], *texts(90)["text"].head(10)]})
    options = a_plan(frame).options
    assert options.schema == OPTIONS
    live, batch = options.iter_rows(named=True)
    assert (live["mode"], batch["mode"]) == ("live", "batch")
    assert batch["dollars"] == pytest.approx(live["dollars"] / 2)
    assert live["dollars_saved"] > 0, "the repeated rows"
    assert live["dollars"] + live["dollars_saved"] == pytest.approx(batch["dollars"] + batch["dollars_saved"])
    assert (batch["minutes"], batch["minutes_p90"]) == (60, 24 * 60)
    assert live["minutes_p90"] >= live["minutes"] > 0


def test_nothing_to_send():
    """A plan of no rows, or of nulls alone, costs nothing and takes no time."""
    for frame in (texts(0), pl.DataFrame({"text": [None]}, schema={"text": pl.String})):
        frame = frame.cast(pl.String)  # noqa: PLW2901 - an empty frame has no type of its own
        option = a_plan(frame).options.row(0, named=True)
        assert (option["dollars"], option["minutes"], option["binding"]) == (0, 0, "nothing to send")


def test_a_cached_prefix_is_priced_as_one_write_and_reads():
    """Before any pilot, a long system prompt with cache=True is estimated far below the price without."""
    plan = a_plan(texts(500), system="Be a judge of parcels. " * 900)
    cached = plan.replace(cache=True)
    assert cached.options["dollars"][0] < plan.options["dollars"][0] / 3
    assert cached.totals.cache_read_tokens < cached.totals.input_tokens
    one = a_plan(texts(1), system="Be a judge of parcels. " * 900)
    assert one.replace(cache=True).options["dollars"][0] > one.options["dollars"][0], "one row only writes it"


def test_a_million_rows_are_arithmetic():
    """A plan of a million rows, most of them repeated, knows its rows and requests exactly."""
    frame = pl.select(n=pl.int_range(1_000_000)).select(text=pl.format("Review {}", pl.col("n") % 1_000))
    totals = a_plan(frame.lazy()).totals
    assert (totals.rows, totals.requests, totals.unsent) == (1_000_000, 1_000, 0)


def test_lazy_and_eager_plans_agree():
    """The same rows give the same estimate, read as a stream or from memory."""
    frame = texts(300)
    assert_frame_equal(a_plan(frame).options, a_plan(frame.lazy()).options)


def test_minutes_follow_the_tier():
    """A higher tier takes less time at the same price; the binding limit has a name."""
    table = cs.plan(texts(5_000), "{text}", model=MODEL).compare(tier=[1, 2, "start", "build"], mode=["live"])
    assert table["minutes"].is_sorted(descending=True)
    assert table["dollars"].n_unique() == 1
    assert set(table["binding"]) <= {"requests", "input_tokens", "output_tokens", "latency"}
