"""Predictions after a pilot of 50 rows, held against what the whole run then took."""

import random
from dataclasses import replace

import polars as pl
import pytest
from predicted import (
    HAIKU,
    KINDS,
    PILOT_ROWS,
    WIDE,
    held,
    notebooks,
    ran,
    resampled,
    texts,
    workload,
)

import claudescale as cs
from claudescale.api import prices
from claudescale.planning import calls, estimates
from claudescale.planning.plans import prepare

ROWS = {
    "requests, one length": 900,
    "requests, enum, sorted": 900,
    "requests, repeated rows": 1_200,
    "requests, refusals and cuts": 900,
    "input, Opus, two lengths": 300,
    "input, typed": 300,
    "input, cached system": 500,
    "input, limits by the second": 300,
    "output": 1_000,
    "output, translated": 300,
    "8 at once": 400,
    "8 at once, translated": 400,
}
SEED = 5


@pytest.fixture(scope="module")
def found():
    """Return three predictions of each workload, as parts of what it took."""
    each = [
        held(workload(kind, rows, SEED + place), 3, SEED + place)
        for place, (kind, rows) in enumerate(ROWS.items())
    ]
    return pl.concat(each)


def off(found, name):
    """Return by how much predictions are off."""
    return (found[name] - 1).abs()


def test_minutes_are_within_5_percent(found):
    """The median error of the minutes is below 5% in each kind of workload, whichever limit binds."""
    medians = found.select("kind", error=off(found, "minutes")).group_by("kind").median()
    assert medians.filter(pl.col("error") > 0.05).rows() == []
    assert set(found["binding"]) == {"requests", "input_tokens", "output_tokens", "concurrency"}


def test_dollars_are_within_3_percent(found):
    """The median error of the dollars is below 3%, live and by batch, and none is far off."""
    assert off(found, "dollars").median() < 0.03
    assert off(found, "batch").drop_nulls().median() < 0.03
    assert off(found, "dollars").max() < 0.15


@pytest.mark.parametrize("name", ["1 guess and summary", "6 kind, Opus", "8 guess, build", "long tail"])
def test_the_p90_holds_nine_times_in_ten(name):
    """Over seeded pilots of 20 and of 50 rows of notebooks' plans and a long tail: dollars in 85% to 95%.

    Bounds are wider by what so few pilots leave open; the benchmark has 400. A run that a limit paces takes
    the same time each time: its minutes are all below a 90th percentile, which then is hardly above them.
    """
    for found in resampled(notebooks()[name], 4, 12, (20, PILOT_ROWS)):
        dollars, minutes = ((found[f"{figure}_p90"] >= 1).mean() for figure in ("dollars", "minutes"))
        assert dollars >= 0.75
        assert minutes >= 0.75
        widest = 1.5 if name == "long tail" else 1.15
        assert found["minutes_p90"].median() < widest
        assert (found["dollars_p90"] / found["dollars"]).median() < widest
        assert found["dollars"].median() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", ["overloaded, 5%, 8 at once", "answers lost, 3%"])
def test_calls_that_fail_are_in_the_estimate(kind):
    """What a pilot loses to failed calls is in the minutes; their 90th percentile covers a bad day."""
    found = held(workload(kind, 600, SEED), 3, SEED)
    assert found.filter(pl.col("minutes_p90") < 1).height <= 1


def test_a_pilot_says_what_it_measured():
    """What an estimate rests on is told with the rates behind it; a guess says that it is one."""
    spec = workload("requests, refusals and cuts", 60, SEED)
    faults = {"faults": {"refusal": 0.1, 529: 0.1}}
    known = spec.plan.calibrate(ran(spec.plan, **faults)).expected
    assert 50 < known.calls <= 60  # some refusals are free
    assert known.tokens_per_second == pytest.approx(known.output_tokens / known.seconds)
    assert known.refusal_rate == pytest.approx(0.1, abs=0.08)
    assert known.error_rate == pytest.approx(0.1, abs=0.08)
    assert known.lost_seconds > 0
    for words in (f"measured on {known.calls} calls", "output tokens/s", "refused", "of calls sent again"):
        assert words in known.basis
    assert spec.plan.expected.basis.startswith("estimated from characters, output assumed")


def test_a_cache_that_is_seldom_found_is_paid_for():
    """Where a pilot found the cache by half, the others of the run write it, and the dollars say so."""
    plan = workload("input, cached system", 300, SEED).plan
    always = plan.expected
    seldom = plan.replace(measured=replace(always, cache_hit_share=0.5)).totals
    assert seldom.cache_read_tokens == pytest.approx(plan.totals.cache_read_tokens / 2, rel=0.01)
    assert seldom.live_dollars > 1.5 * plan.totals.live_dollars


def replies(estimated, draws, kind):
    """Return output tokens for each request: alike, of two sorts, or as long as the request."""
    if kind == "alike":
        return [max(1, round(60 * draws.lognormvariate(0, 0.5))) for _ in estimated]
    if kind == "long tail":
        return [max(1, round(100 * draws.lognormvariate(0, 1.0))) for _ in estimated]
    if kind == "two sorts":
        return [draws.choice((20, 20, 300)) + draws.randrange(20) for _ in estimated]
    return [max(1, round(size * draws.lognormvariate(0, 0.2))) for size in estimated]


@pytest.mark.parametrize("pilot", [20, PILOT_ROWS])
@pytest.mark.parametrize("kind", ["alike", "two sorts", "as long as the request", "long tail"])
def test_nine_of_ten_bills_are_below_the_p90(kind, pilot):
    """Over many pilots of the same rows, the bill is below the 90th percentile about nine times in ten."""
    draws = random.Random(kind)
    plan = cs.plan(texts("lognormal", 800, SEED), "Name it: {text}", model=HAIKU, max_tokens=4_000, tier=WIDE)
    sizes = prepare(plan, "simulator").requests["estimated_tokens"].to_list()
    real = [round(20 + size * draws.uniform(0.95, 1.15)) for size in sizes]
    output = replies(sizes, draws, kind)
    price = prices.price(HAIKU)
    bill = sum(price.dollars(input_tokens=i, output_tokens=o) for i, o in zip(real, output, strict=True))
    cache = dict.fromkeys(prices.COLUMNS.values(), 0)
    done = pl.DataFrame({"estimated_tokens": sizes}).with_columns(
        **(cache | {"input_tokens": pl.Series(real), "output_tokens": pl.Series(output)}),
        seconds=1.0,
        mode=pl.lit("live"),
    )
    covered, each = 0, 200
    for seed in range(each):
        known = replace(calls.measured(done.sample(pilot, seed=seed)), requests=len(sizes))
        totals = plan.replace(measured=known).totals
        covered += totals.live_dollars * (1 + totals.live_more) >= bill
    assert 0.83 <= covered / each <= 0.97
    whole = replace(calls.measured(done), requests=len(sizes))
    assert plan.replace(measured=whole).totals.live_more == 0


def test_a_biased_pilot_says_that_it_knows_little():
    """The first rows of a sorted frame are shorter than all: the same pilot leaves more doubt there."""
    frame = texts("sorted", 800, SEED)
    plan = cs.plan(frame, "Translate: {text}", model=HAIKU, max_tokens=4_000, tier=WIDE)
    measured = calls.Measured(
        output_tokens=40, output_deviation=8, output_slope=0.9, estimated_tokens=30, estimated_harmonic=29,
        calls=PILOT_ROWS,
    )  # fmt: skip
    near = plan.replace(measured=measured, frame=frame.head(100)).totals
    far = plan.replace(measured=measured).totals
    assert far.output_more > 2 * near.output_more
    assert far.output_tokens / far.requests > 1.5 * near.output_tokens / near.requests


def test_the_doubt_of_input_and_output_is_told_by_price():
    """Where the API has counted the input, what is open of the dollars is the part of the output."""
    plan = cs.plan(texts("constant", 300, SEED), "Name it: {text}", model=HAIKU, tier=WIDE)
    guessed = plan.totals
    counted = plan.replace(
        measured=calls.Measured(output_tokens=guessed.output_tokens / 300, input_deviation=0.02, counted=100)
    ).totals
    price = prices.price(HAIKU)
    output = price.dollars(output_tokens=counted.output_tokens) / counted.live_dollars
    assert counted.live_more == pytest.approx(output * counted.output_more, rel=0.02)
    assert counted.live_more < guessed.live_more < guessed.output_more


def test_a_spend_limit_binds_where_the_dollars_are_above_it():
    """A mode that costs more than the tier may spend in a month says so; one that costs less does not."""
    frame = pl.select(text=pl.format("{} {}", pl.lit("a" * 20_000), pl.int_range(15_000)))
    plan = cs.plan(frame, "{text}", model="claude-opus-5-5", tier="start")
    options = plan.options
    limit = plan.limits.spend_dollars_per_month
    assert limit == 500
    above = options.filter(pl.col("dollars") > limit)
    assert 0 < above.height < options.height
    assert set(above["binding"]) == {estimates.SPEND_LIMIT}
    assert estimates.SPEND_LIMIT not in set(options.filter(pl.col("dollars") <= limit)["binding"])


def test_every_kind_has_a_name_of_its_own():
    """The workloads of the benchmark can be told apart, and those here are among them."""
    assert set(ROWS) <= set(KINDS)
