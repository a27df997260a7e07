"""Measured costs of a plan's calls: a pilot of all rows gives the bill, and the API's count its input."""

import random
import re

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from predicted import ran
from running import MODEL, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api.prices import PROMPT, UNCACHED

SYSTEM = "Be a judge of parcels.\n\n" * 900


def texts(rows=60, seed=1):
    """Return texts of different lengths, some repeated, full of characters that JSON escapes."""
    draws = random.Random(seed)
    marks = ["the parcel ", "was late ", "\n\n", '"', "\\", "\N{PARTY POPPER}", "\x01", "漢字"]
    lines = [f"{row} " + "".join(draws.choices(marks, k=draws.randrange(1, 60))) for row in range(rows)]
    return pl.DataFrame({"text": lines + lines[:9]})


def tokens(run, counted=PROMPT):
    """Return the input tokens of the calls of a run."""
    return run.attempts.select(counted.sum()).item()


@pytest.mark.parametrize(
    ("frame", "options", "api"),
    [
        (texts(), {}, {}),
        (texts(), {"returns": {"who": pl.String, "stars": pl.Int64}, "max_tokens": 200}, {}),
        (texts(), {"model": "claude-opus-5-5", "prompt": "Translate: {text}", "max_tokens": 60}, {}),
        (texts(), {"system": SYSTEM, "cache": True}, {}),
        (texts(), {}, {"faults": {"refusal": 0.3, 500: 0.05}}),
        (texts(), {}, {"faults": {429: 0.3}}),
        (texts(5), {}, {}),
        (reviews(9), {}, {}),
    ],
    ids=[
        "plain",
        "typed",
        "thinking, cut",
        "cached",
        "not billed",
        "over the limits",
        "few",
        "of one length",
    ],
)
def test_a_pilot_of_all_rows_gives_the_bill(frame, options, api):
    """Dollars and their 90th percentile equal what was paid, to the last digit; a 429 is no failure."""
    plan = a_plan(frame, **options)
    run = ran(plan, **api)
    known = plan.calibrate(run)
    assert known.options["dollars"][0] == pytest.approx(run.dollars, rel=1e-9)
    if not api:  # else the usage of the unbilled rows is unknown
        assert known.options["dollars_p90"][0] == pytest.approx(run.dollars, rel=1e-9)
        assert known.compiled.totals.input_tokens == pytest.approx(tokens(run), rel=1e-9)
        assert known.compiled.totals.uncached_tokens == pytest.approx(tokens(run, UNCACHED), rel=1e-9)
    assert (known.compiled.measured.error_rate > 0) is (500 in api.get("faults", ()))


def test_longer_rows_than_the_pilots_take_as_much_more():
    """A pilot of short texts tells how tokens go with length: three times as long are three times as many."""
    short = a_plan(texts())
    long = short.replace(frame=short.frame.select(pl.concat_str(["text"] * 3)))
    known = long.calibrate(ran(short))
    assert known.compiled.totals.input_tokens == pytest.approx(tokens(ran(long)), rel=0.03)


@pytest.mark.slow
def test_a_batch_of_all_rows_gives_its_bill():
    """Half the price, with the cache hits that the batch itself had."""
    plan = a_plan(texts(), mode="batch", system=SYSTEM, cache=True)
    with simulator(speed=120, batch_seconds=5) as api:
        run = finished(plan, api.client())
    known = plan.calibrate(run)
    assert "s each (assumed: no call was live)" in repr(known)
    price = known.options.filter(mode="batch")["dollars"].item()
    assert price == pytest.approx(run.bill["dollars"].sum(), rel=1e-9)


@pytest.mark.slow
def test_counted_tokens_are_the_apis():
    """Counting all rows gives the input they then use, a sample nearly so, and both are free."""
    plan = a_plan(texts(), system="Answer in one word.")
    with simulator(speed=60) as api:
        some, every = (cs.wait(plan.count_tokens(api.client(), n=n)) for n in (40, 1_000))
        assert api.stats["billed_rows"] == 0
    taken = tokens(ran(plan))
    assert some.compiled.totals.input_tokens == pytest.approx(taken, rel=0.02)
    assert every.compiled.totals.input_tokens == pytest.approx(taken, rel=1e-9)
    assert re.search(r"input counted on \d\d requests, output assumed", repr(some))
    assert every.options["dollars_p90"][0] < plan.options["dollars_p90"][0]


def test_what_cannot_be_counted_or_learned_from():
    """An API refusal, a plan of nulls, and a run without a paid reply each say what to do instead."""
    empty = pl.DataFrame({"text": [None]}, schema={"text": pl.String})
    with simulator(faults={400: 1.0}, speed=100) as api:
        with pytest.raises(cs.PlanError, match="Could not get the count of tokens from the API"):
            cs.wait(a_plan(reviews(3)).count_tokens(api.client(api_key="wrong")))
        with pytest.raises(cs.PlanError, match="no row to count"):
            cs.wait(a_plan(empty).count_tokens(api.client()))
        with pytest.raises(cs.PlanError, match=r"plan\.sample\(50\)"):
            a_plan(reviews(3)).calibrate(finished(a_plan(reviews(3)), api.client()))


@pytest.fixture(scope="module")
def pilot():
    """Return a run of some rows, which also met limits that differ from the table's."""
    with simulator(tier=(70, 900_000, 90_000)) as api:
        plan = a_plan(reviews(30), tier="start", system=SYSTEM, max_tokens=1_024)
        return finished(plan.head(10), api.client())


@pytest.fixture(scope="module")
def known(pilot):
    """Return a plan of more rows after the pilot."""
    return pilot.plan.replace(frame=reviews(30)).calibrate(pilot)


def test_a_pilot_tells_the_limits(known, pilot):
    """A pilot's limits replace the table's for its tier; its bucket size is assumed for every tier."""
    limits, other = known.compiled.limits, known.replace(tier="build").compiled.limits
    assert limits.burst_seconds == other.burst_seconds > 1
    assert (limits.requests_per_minute, "headers" in limits.source) == (70, True)
    assert other.requests_per_minute == 5_000
    assert known.replace(tier="build").calibrate(pilot).compiled.limits.requests_per_minute == 5_000
    assert known.replace(model="claude-sonnet-5-5").compiled.limits.source == "table of tier 'start'"


def test_measurements_hold_as_long_as_the_question(known):
    """Another tier or more rows keep a pilot's measurements; another prompt or reply form discards them."""
    measured = known.compiled.measured
    assert "measured on 10 calls: " in repr(known)
    assert known.replace(tier=1, model=MODEL).head(3).sample(2).compiled.measured is measured
    for change in ({"prompt": "Hm: {text}"}, {"returns": pl.Boolean()}, {"system": "Be brief."}):
        assert known.replace(**change).compiled.measured is None


def test_another_models_replies_are_as_long_as_those_measured(known):
    """Estimates for another model are uncertain and add thinking; caching is priced with the same replies."""
    models = ["claude-sonnet-5-5", "claude-opus-5-5"]
    table = known.compare(model=[MODEL, *models], cache=[False, True], mode=["live"])
    own, cached, sonnet, _, opus, _ = table.iter_rows(named=True)
    assert own["dollars"] == known.options["dollars"][0]
    assert cached["output_tokens"] == own["output_tokens"] == sonnet["output_tokens"]
    assert cached["dollars"] < own["dollars"] / 2
    assert opus["output_tokens"] == pytest.approx(own["output_tokens"] + 30 * 50, abs=1)
    assert sonnet["dollars_p90"] / sonnet["dollars"] > own["dollars_p90"] / own["dollars"]
    named = known.compare(model=models).drop("model")
    assert_frame_equal(named, pl.concat([known.replace(model=model).options for model in models]))
