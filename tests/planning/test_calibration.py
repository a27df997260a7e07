"""What a plan's calls take, measured: a pilot of all rows gives the bill, and the API's count its input."""

import random

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from running import MODEL, a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.planning import calibration
from claudescale.planning.estimates import Line, Measured

MARKS = ["\n\n", '"', "\\", "\N{PARTY POPPER}", "\x01", "漢字"]
SYSTEM = "Be a judge of parcels.\n\n" * 900


def texts(mark, rows=80, seed=1):
    """Return texts of different lengths, more or less full of a mark, some of them repeated."""
    draws = random.Random(seed)
    words = [draws.choices(["the parcel ", "was late ", mark], k=draws.randrange(1, 60)) for _ in range(rows)]
    lines = [f"{row} " + "".join(each) for row, each in enumerate(words)]
    return pl.DataFrame({"text": lines + lines[:9]})


def calibrated(plan, **api):
    """Return a plan calibrated on all of its rows, and the run they were paid in."""
    with simulator(speed=120, **api) as server:
        run = finished(plan, server.client())
    return plan.calibrate(run), run


def holds(plan, run, mode="live"):
    """Hold dollars and their 90th percentile against the bill."""
    bill = run.bill["dollars"].sum()
    prices = plan.options.filter(mode=mode).select("dollars", "dollars_p90").row(0)
    return prices == pytest.approx((bill, bill), rel=1e-9)


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("mode", ["live", "batch"])
def test_all_rows_give_the_bill(mark, mode):
    """Escaped or not: text is measured as the model reads it, on both sides; nothing is left open."""
    plan, run = calibrated(a_plan(texts(mark), mode=mode), batch_seconds=5)
    assert holds(plan, run, mode)
    assert plan.totals.input_tokens == pytest.approx(run.summary["input_tokens"].item(), rel=1e-9)


@pytest.mark.parametrize(
    ("options", "api"),
    [
        ({"returns": {"who": pl.String, "stars": pl.Int64}, "max_tokens": 200}, {}),
        ({"model": "claude-opus-5-5", "max_tokens": 2_000}, {}),
        ({"prompt": "Translate: {text}", "max_tokens": 60}, {}),
        ({"system": SYSTEM, "cache": True}, {}),
        ({}, {"faults": {"refusal": 0.3, 500: 0.05}}),
    ],
    ids=["typed", "thinking", "cut", "cached", "not billed"],
)
def test_whatever_the_plan(options, api):
    """Typed replies, thinking, cut ones, a cached prefix, rows that are not billed: all give the bill."""
    plan, run = calibrated(a_plan(texts("\n"), **options), **api)
    assert plan.options["dollars"][0] == pytest.approx(run.bill["dollars"].sum(), rel=1e-9)


def test_a_cache_in_batches_and_a_step_of_the_price():
    """Hits of the batch that was paid, and long prompts that cost more, are those of the estimate."""
    cached = a_plan(texts('"'), system=SYSTEM, cache=True, mode="batch")
    plan, run = calibrated(cached, batch_seconds=5)
    assert plan.options["dollars"][1] == pytest.approx(run.bill["dollars"].sum(), rel=1e-9)
    draws = random.Random(3)
    frame = pl.DataFrame({"text": [f"{n} " + "word " * draws.randrange(40_000, 60_000) for n in range(12)]})
    assert holds(*calibrated(a_plan(frame)))


def paid(estimated, real):
    """Return calls of so many tokens."""
    names = ("cache_write_5m_input_tokens", "cache_write_1h_input_tokens", "cache_read_input_tokens")
    return pl.DataFrame({"estimated_tokens": [float(x) for x in estimated]}).with_columns(
        pl.Series("input_tokens", [round(x) for x in real]),
        output_tokens=10, seconds=1.0, mode=pl.lit("live"), **dict.fromkeys(names, pl.lit(0)),
    )  # fmt: skip


@given(st.floats(0.4, 2.5), st.floats(0, 500), st.lists(st.integers(5, 5_000), min_size=12, unique=True))
def test_a_line_gives_back_what_it_comes_from(slope, overhead, sizes):
    """Real tokens on a line over the estimate give its sum; where all are alike, or few, their ratio."""
    calls = paid(sizes, [size * slope + overhead for size in sizes])
    known = calibration.measured(calls)
    total = sum(known.at(known.input, size) for size in sizes)
    assert total == pytest.approx(calls["input_tokens"].sum(), rel=1e-6)
    for alike in ([100.0] * 12, [100.0]):
        line = calibration.measured(paid(alike, [120] * len(alike))).input
        assert (line.mean, line.slope, line.deviation) == pytest.approx((120, 1.2, 0))


def test_a_pilot_learns_the_overhead_of_typed_replies():
    """What every call has besides its text is told from what grows with it."""
    plan, _ = calibrated(a_plan(texts("\n"), returns=pl.Boolean(), max_tokens=200))
    assert plan.measured.input.slope == pytest.approx(1, abs=0.15)
    assert plan.measured.at(plan.measured.input, 0) == pytest.approx(80, abs=35)


@given(st.integers(3, 1_000))
def test_more_calls_less_doubt(calls):
    """The doubt of a mean falls with the calls it comes from, and a guess has the most."""
    line = Line(50.0, 0.0, 20.0)
    few, many = (Measured(input=line, output=line, calls=n) for n in (calls, calls * 4))
    assert few.doubt / 4 < many.doubt <= few.doubt / 2, "few calls have Student's tails too"
    assert Measured().doubt >= few.doubt
    assert many.more > 1


def test_a_pilot_says_what_it_measured():
    """What an estimate rests on stands in a line, with the rates behind it; a guess says that it is one."""
    plan = a_plan(reviews(60))
    known = calibrated(plan, faults={529: 0.2})[0].measured
    assert known.error_rate == pytest.approx(0.2, abs=0.12)
    assert known.lost_seconds > 0
    assert known.basis.startswith(f"measured on {known.calls} calls: ")
    assert "of calls sent again" in known.basis
    assert plan.expected.basis.startswith("estimated from characters, output assumed")


def test_counted_tokens_are_the_apis():
    """Input counted on a sample is what the rows then take; on all rows exactly; it costs nothing."""
    frame = texts("\t\t\t")
    plan = a_plan(frame, system="Answer in one word.")
    with simulator(speed=60) as api:
        some, every = (cs.wait(plan.count_tokens(api.client(), n=n)) for n in (50, 1_000))
        assert api.stats["billed_rows"] == 0
        taken = finished(plan, api.client()).summary["input_tokens"].item()
    assert some.totals.input_tokens == pytest.approx(taken, rel=0.02)
    assert some.measured.output_tokens == plan.expected.output_tokens
    assert f"input counted on {some.measured.counted} requests, output assumed" in repr(some)
    assert every.totals.input_tokens == pytest.approx(taken, rel=1e-9)
    assert every.totals.input_more == 0


def test_counting_keeps_to_its_limit():
    """A count limit that is lower than the tier's is waited for, and every request is counted in the end."""
    with simulator(speed=600, count_tokens_per_minute=100, bucket_seconds=6) as api:
        counted = cs.wait(a_plan(reviews(200), tier="start").count_tokens(api.client(), n=40))
    assert counted.measured.counted == 40


def test_what_cannot_be_counted_or_learned_from():
    """A refusal of the API in its words, a plan of nulls, a run without a paid reply: what to do instead."""
    empty = pl.DataFrame({"text": [None]}, schema={"text": pl.String})
    with simulator(faults={400: 1.0}) as api:
        with pytest.raises(cs.PlanError, match="does not count tokens"):
            cs.wait(a_plan(reviews(3)).count_tokens(api.client(api_key="wrong")))
        with pytest.raises(cs.PlanError, match="no row to count"):
            cs.wait(a_plan(empty).count_tokens(api.client()))
        with pytest.raises(cs.PlanError, match=r"plan\.sample\(50\)"):
            a_plan(reviews(3)).calibrate(finished(a_plan(reviews(3)), api.client()))


def test_a_pilot_tells_the_limits():
    """The limits that a pilot's answers told take the place of the table's, for the tier it was run on."""
    with simulator(tier=(70, 900_000, 90_000)) as api:
        plan = a_plan(reviews(30), tier="start")
        pilot = finished(plan.head(2), api.client())
    known = plan.calibrate(pilot)
    assert known.limits.requests_per_minute == 70
    assert "headers" in known.limits.source
    assert known.replace(tier="build").limits.requests_per_minute == 5_000
    assert known.replace(max_tokens=20).limits.requests_per_minute == 70
    assert known.replace(model="claude-sonnet-5-5").limits.source == "table of tier 'start'"
    assert plan.model == MODEL


def test_measurements_hold_as_long_as_the_question():
    """Another tier or more rows keep a pilot's measurements, another model or prompt voids them."""
    with simulator() as api:
        plan = a_plan(reviews(20))
        measured = plan.calibrate(finished(plan.head(5), api.client()))
    assert plan.measured is None
    assert measured.replace(tier=1).head(3).sample(2).measured == measured.measured
    for change in ({"model": "claude-sonnet-5-5"}, {"prompt": "Hm: {text}"}, {"returns": pl.Boolean()}):
        assert measured.replace(**change).measured is None
