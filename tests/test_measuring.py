"""What a plan's calls take, measured: counts by the API, and what a pilot tells of the limits."""

import polars as pl
import pytest
from running import MODEL, a_plan, finished, reviews, simulator

import claudescale as cs


def test_counted_tokens_are_the_apis():
    """Input counted on a sample is what the rows then take; it costs nothing, and the card says so."""
    frame = reviews(300).with_columns(pl.col("text") + pl.lit(" It rained."))
    plan = a_plan(frame, system="Answer in one word.")
    with simulator(speed=60) as api:
        counted = cs.wait(plan.count_tokens(api.client(), n=50))
        assert api.stats["billed_rows"] == 0
        taken = finished(plan, api.client()).summary["input_tokens"].item()
    assert counted.totals.input_tokens == pytest.approx(taken, rel=0.02)
    assert counted.measured.counted == 50
    assert counted.measured.output_tokens == plan.expected.output_tokens
    assert "input counted on 50 requests, output assumed" in repr(counted)


def test_counting_keeps_to_its_limit():
    """A count limit that is lower than the tier's is waited for, and every request is counted in the end."""
    with simulator(speed=600, count_tokens_per_minute=100, bucket_seconds=6) as api:
        counted = cs.wait(a_plan(reviews(200), tier="start").count_tokens(api.client(), n=40))
    assert counted.measured.counted == 40


def test_what_cannot_be_counted():
    """A refusal of the API is told in its words, before anything is paid."""
    with simulator() as api, pytest.raises(cs.PlanError, match="does not count tokens"):
        cs.wait(a_plan(reviews(3)).count_tokens(api.client(api_key="wrong")))
    empty = pl.DataFrame({"text": [None]}, schema={"text": pl.String})
    with simulator() as api, pytest.raises(cs.PlanError, match="no row to count"):
        cs.wait(a_plan(empty).count_tokens(api.client()))


def test_a_pilot_tells_the_limits():
    """The limits that a pilot's answers told take the place of the table's, for the tier it was run on."""
    with simulator(tier=(70, 900_000, 90_000)) as api:
        plan = a_plan(reviews(30), tier="start")
        pilot = finished(plan.head(2), api.client())
    told = plan.calibrate(pilot)
    assert told.limits.requests_per_minute == 70
    assert "headers" in told.limits.source
    assert told.replace(tier="build").limits.requests_per_minute == 5_000
    assert told.replace(max_tokens=20).limits.requests_per_minute == 70
    assert told.replace(model="claude-sonnet-5-5").limits.source == "table of tier 'start'"
    assert plan.model == MODEL
