"""Measured costs of a plan's calls: a pilot of all rows gives the bill, and the API's count its input."""

import re

import polars as pl
import pytest
from predicted import kept, limits, ran, resampled, texts
from running import MODEL, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api.prices import PROMPT, UNCACHED

SYSTEM = "Be a judge of parcels.\n\n" * 900
ESCAPED = texts(60).select(pl.col("text").str.replace_all("e ", 'e\n"\\\x01\N{PARTY POPPER}漢'))
TEXTS = pl.concat([ESCAPED, ESCAPED.head(9)])


def tokens(run, counted=PROMPT):
    """Return the input tokens of the calls of a run."""
    return run.attempts.select(counted.sum()).item()


PILOTS = {
    "typed": (TEXTS, {"returns": {"who": pl.String, "stars": pl.Int64}, "max_tokens": 200}, {}),
    "thinking, cut": (TEXTS, {"model": "claude-opus-5-5", "max_tokens": 60}, {}),
    "cached": (TEXTS, {"system": SYSTEM, "cache": True}, {}),
    "not billed": (TEXTS, {}, {"refusal": 0.3}),
    "failing": (TEXTS, {}, {500: 0.05}),
    "over the limits": (TEXTS, {}, {429: 0.3}),
    "few": (TEXTS.head(5), {}, {}),
    "of one length": (reviews(9), {}, {}),
}


@pytest.mark.parametrize("name", PILOTS)
def test_a_pilot_of_all_rows_gives_the_bill(name):
    """Dollars and their 90th percentile equal what was paid, to the last digit; a refusal is no failure."""
    frame, options, faults = PILOTS[name]
    plan = a_plan(frame, **options)
    run = ran(plan, faults=faults)
    known = plan.calibrate(run)
    assert known.options["dollars"][0] == pytest.approx(run.dollars, rel=1e-9)
    if not faults:  # else the usage of the unbilled rows is unknown
        assert known.options["dollars_p90"][0] == pytest.approx(run.dollars, rel=1e-9)
        assert known.compiled.totals.input_tokens == pytest.approx(tokens(run), rel=1e-9)
        assert known.compiled.totals.uncached_tokens == pytest.approx(tokens(run, UNCACHED), rel=1e-9)
    assert (known.compiled.measured.error_rate > 0) is (500 in faults)


def test_longer_rows_than_the_pilots_take_as_much_more():
    """A pilot of short texts tells how tokens go with length: three times as long are three times as many."""
    short = a_plan(texts(60))
    long = short.replace(frame=short.frame.select(pl.concat_str(["text"] * 3)))
    known = long.calibrate(ran(short))
    assert known.compiled.totals.input_tokens == pytest.approx(tokens(ran(long)), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows", "wide"),
    [
        ("requests bind, refusals and cuts", 300, 0.25),
        ("input binds", 300, 0.25),
        ("input binds, cached", 300, 0.1),
        ("long tail, output binds", None, 0.8),  # few of the long replies are in a pilot
    ],
)
def test_pilots_foretell_dollars_and_minutes(name, rows, wide):
    """The middle is near; the 90th percentiles hold and are narrow, as far as so few pilots can show."""
    for found in kept(resampled(name, worlds=2, pilots=10, rows=rows)).iter_rows(named=True):
        for figure in ("dollars", "minutes"):
            assert found[f"{figure}_covered"] >= 0.75, found
            assert abs(found[f"{figure}_median"]) < max(0.06, wide / 4), found
            assert found[f"{figure}_wide"] < wide, found


def test_lost_answers_take_minutes_of_the_output_limit():
    """A pilot that lost three answers in ten says that all rows take as much longer."""
    plan = a_plan(texts(60), tier=limits(output_tokens=2_000))
    usual, slow = (
        plan.calibrate(ran(plan, faults=faults)).replace(frame=texts(2_000)).options["minutes"][0]
        for faults in ({}, {"drop_after": 0.3})
    )
    assert slow / usual == pytest.approx(1.3, abs=0.1)


@pytest.mark.slow
def test_a_batch_of_all_rows_gives_its_bill():
    """Half the price, with the cache hits that the batch itself had."""
    plan = a_plan(TEXTS, mode="batch", system=SYSTEM, cache=True)
    with simulator(speed=120, batch_seconds=5) as api:
        run = finished(plan, api.client())
    known = plan.calibrate(run)
    assert "s each (assumed: no call was live)" in repr(known)
    price = known.options.filter(mode="batch")["dollars"].item()
    assert price == pytest.approx(run.bill["dollars"].sum(), rel=1e-9)


@pytest.mark.slow
def test_counted_tokens_are_the_apis():
    """Counting all rows gives the input they then use, a sample nearly so, and both are free."""
    plan = a_plan(TEXTS, system="Answer in one word.")
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


def test_what_a_pilot_measured_is_kept_while_it_holds():
    """Limits are those of its tier, a bucket's size of every tier, lengths those of the same question."""
    plan = a_plan(reviews(30), tier="start", system=SYSTEM, max_tokens=1_024)
    with simulator(tier=(70, 900_000, 90_000)) as api:  # not the tier's limits
        pilot = finished(plan.head(10), api.client())
    known = plan.calibrate(pilot)
    limits, build = known.compiled.limits, known.replace(tier="build")
    assert limits.burst_seconds == build.compiled.limits.burst_seconds > 1
    assert (limits.requests_per_minute, "headers" in limits.source) == (70, True)
    for other in (build, build.calibrate(pilot)):
        assert other.compiled.limits.requests_per_minute == 5_000
    assert known.replace(model="claude-sonnet-5-5").compiled.limits.source == "table of tier 'start'"
    measured = known.compiled.measured
    assert "measured on 10 calls: " in repr(known)
    assert known.replace(tier=1, model=MODEL).head(3).sample(2).compiled.measured is measured
    for change in ({"prompt": "Hm: {text}"}, {"returns": pl.Boolean()}, {"system": "Be brief."}):
        assert known.replace(**change).compiled.measured is None
    # Estimates for another model are uncertain and add thinking; caching is priced with the same replies.
    models = [MODEL, "claude-sonnet-5-5", "claude-opus-5-5"]
    table = known.compare(model=models, cache=[False, True], mode=["live"])
    own, cached, sonnet, _, opus, _ = table.iter_rows(named=True)
    assert own["dollars"] == known.options["dollars"][0]
    assert cached["output_tokens"] == own["output_tokens"] == sonnet["output_tokens"]
    assert cached["dollars"] < own["dollars"] / 2
    assert opus["output_tokens"] == pytest.approx(own["output_tokens"] + 30 * 50, abs=1)
    assert sonnet["dollars_p90"] / sonnet["dollars"] > own["dollars_p90"] / own["dollars"]
