"""What a plan's calls take, measured: a pilot of all rows gives the bill, and the API's count its input."""

import random
import re

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from polars.testing import assert_frame_equal
from predicted import ran
from running import MODEL, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api.prices import PROMPT
from claudescale.planning import calibration
from claudescale.planning.calibration import Line, Measured

SYSTEM = "Be a judge of parcels.\n\n" * 900


def texts(rows=60, seed=1):
    """Return texts of different lengths, full of what JSON escapes, some of them repeated."""
    draws = random.Random(seed)
    marks = ["the parcel ", "was late ", "\n\n", '"', "\\", "\N{PARTY POPPER}", "\x01", "漢字"]
    lines = [f"{row} " + "".join(draws.choices(marks, k=draws.randrange(1, 60))) for row in range(rows)]
    return pl.DataFrame({"text": lines + lines[:9]})


def tokens(run):
    """Return the input tokens of the calls of a run."""
    return run.attempts.select(PROMPT.sum()).item()


@pytest.mark.parametrize(
    ("options", "api"),
    [
        ({}, {}),
        ({"returns": {"who": pl.String, "stars": pl.Int64}, "max_tokens": 200}, {}),
        ({"model": "claude-opus-5-5", "prompt": "Translate: {text}", "max_tokens": 60}, {}),
        ({"system": SYSTEM, "cache": True}, {}),
        ({}, {"faults": {"refusal": 0.3, 500: 0.05}}),
    ],
    ids=["plain", "typed", "thinking, cut", "cached", "not billed"],
)
def test_a_pilot_of_all_rows_gives_the_bill(options, api):
    """Dollars and their 90th percentile are what was paid, to the last digit."""
    plan = a_plan(texts(), **options)
    run = ran(plan, **api)
    known = plan.calibrate(run)
    assert known.options["dollars"][0] == pytest.approx(run.dollars, rel=1e-9)
    if not api:  # else nobody knows what the rows take that were not billed
        assert known.options["dollars_p90"][0] == pytest.approx(run.dollars, rel=1e-9)
        assert known.compiled.totals.input_tokens == pytest.approx(tokens(run), rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"system": SYSTEM, "cache": True}], ids=["plain", "cached"])
def test_a_batch_of_all_rows_gives_its_bill(options):
    """Half the price, and hits of the cache as that batch found them."""
    plan = a_plan(texts(), mode="batch", **options)
    with simulator(speed=120, batch_seconds=5) as api:
        run = finished(plan, api.client())
    price = plan.calibrate(run).options.filter(mode="batch")["dollars"].item()
    assert price == pytest.approx(run.bill["dollars"].sum(), rel=1e-9)


@settings(max_examples=30)
@given(st.floats(0.4, 2.5), st.floats(0, 500), st.lists(st.integers(5, 5_000), min_size=12, unique=True))
def test_a_line_gives_back_what_it_comes_from(slope, overhead, sizes):
    """Real tokens on a line over the estimate give its sum; where all are alike, or few, their ratio."""
    tokens = [size * slope + overhead for size in sizes]
    calls = pl.DataFrame({"estimated_tokens": sizes, "tokens": tokens})
    line = calibration.line(calls, "tokens", 0, rises=True)
    assert sum(line.at(size) for size in sizes) == pytest.approx(sum(tokens), rel=1e-6)
    assert line.slope == pytest.approx(slope, rel=1e-6)
    for alike in (12, 1):
        calls = pl.DataFrame({"estimated_tokens": [100.0] * alike, "tokens": [120] * alike})
        line = calibration.line(calls, "tokens", 0, rises=True)
        assert (line.mean, line.slope, line.deviation) == pytest.approx((120, 1.2, 0))


@pytest.mark.parametrize(("calls", "wide"), [(20, 0.3), (20, 1.0), (50, 1.0)])
def test_the_90th_percentile_of_a_mean_holds(calls, wide):
    """Whether replies are alike or a few are very long: about nine pilots in ten are not below all rows."""
    draws, holds = random.Random(8), 0
    for _ in range(200):
        every = [draws.lognormvariate(0, wide) for _ in range(400)]
        pilot = pl.DataFrame({"estimated_tokens": [9.0] * calls, "tokens": every[:calls]})
        line = calibration.line(pilot, "tokens", 400)
        holds += line.mean * (1 + line.more(400)) >= sum(every) / 400
    assert 0.85 <= holds / 200 <= 0.96


def test_more_calls_less_doubt():
    """The doubt of a mean falls with the calls it comes from; a guess has the most."""
    few, many = (Line(50.0, 0.0, 20.0, calls=n) for n in (30, 120))
    assert few.more() / 5 < many.more() <= few.more() / 2, "few calls have Student's tails too"
    assert Measured().output.more() >= few.more()
    assert few._replace(slope=1.0, spread=9.0).more(90, 20.0) > few.more(90), "longer rows than measured"
    assert few._replace(requests=30).more(30) == 0, "these are all there are"


def test_a_pilot_says_what_it_measured():
    """What an estimate rests on stands in a line, with the rates behind it; a guess says that it is one."""
    plan = a_plan(reviews(60))
    assert plan.compiled.expected.basis.startswith("estimated from characters, output assumed")
    plan = plan.calibrate(ran(plan, faults={529: 0.2}, seed=1))
    known = plan.compiled.expected
    assert known.error_rate == pytest.approx(0.2, abs=0.12)
    assert known.lost_seconds > 0
    assert f"measured on {known.calls} calls: " in repr(plan)
    assert "of calls retried" in repr(plan)


@pytest.mark.slow
def test_counted_tokens_are_the_apis():
    """Input counted on all rows is what the rows then take, on a sample nearly; it costs nothing."""
    plan = a_plan(texts(), system="Answer in one word.")
    with simulator(speed=60) as api:
        some, every = (cs.wait(plan.count_tokens(api.client(), n=n)) for n in (40, 1_000))
        assert api.stats["billed_rows"] == 0
    taken = tokens(ran(plan))
    assert some.compiled.totals.input_tokens == pytest.approx(taken, rel=0.02)
    assert every.compiled.totals.input_tokens == pytest.approx(taken, rel=1e-9)
    assert some.compiled.totals.output_tokens == plan.compiled.totals.output_tokens
    assert re.search(r"input counted on \d\d requests, output assumed", repr(some))
    assert every.options["dollars_p90"][0] < plan.options["dollars_p90"][0]


def test_what_cannot_be_counted_or_learned_from():
    """A refusal of the API in its words, a plan of nulls, a run without a paid reply: what to do instead."""
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
    """Return a plan, the same after a pilot of some rows, and what the table does not have of limits."""
    with simulator(tier=(70, 900_000, 90_000)) as api:
        plan = a_plan(reviews(30), tier="start", system=SYSTEM, max_tokens=1_024)
        return plan, plan.calibrate(finished(plan.head(10), api.client()))


def test_a_pilot_tells_the_limits(pilot):
    """The limits that a pilot's answers told take the place of the table's, for the tier it was run on."""
    _, known = pilot
    assert known.compiled.limits.requests_per_minute == 70
    assert "headers" in known.compiled.limits.source
    assert known.replace(tier="build").compiled.limits.requests_per_minute == 5_000
    assert known.replace(max_tokens=20).compiled.limits.requests_per_minute == 70
    assert known.replace(model="claude-sonnet-5-5").compiled.limits.source == "table of tier 'start'"


def test_measurements_hold_as_long_as_the_question(pilot):
    """Another tier or more rows keep a pilot's measurements, another prompt or form of reply voids them."""
    plan, known = pilot
    measured = known.compiled.measured
    assert plan.compiled.measured is None
    assert known.replace(tier=1, model=MODEL).head(3).sample(2).compiled.measured is measured
    for change in ({"prompt": "Hm: {text}"}, {"returns": pl.Boolean()}, {"system": "Be brief."}):
        assert known.replace(**change).compiled.measured is None


def test_another_models_replies_are_as_long_as_those_measured(pilot):
    """They are in doubt, and think in addition; a cache is paid for with the same replies."""
    _, known = pilot
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
