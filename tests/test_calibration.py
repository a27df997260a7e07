"""A plan that is calibrated on all its rows says what they cost, to float noise, whatever their text is."""

import random

import polars as pl
import pytest
from running import a_plan, finished, simulator

import claudescale as cs

MARKS = ["\n\n", '"', "\t\t\t", "\\", "\N{PARTY POPPER}", "{}", "\x01", "é", "漢字"]


def texts(mark, rows=80, seed=1):
    """Return texts of different lengths, more or less full of a mark, some of them repeated."""
    draws = random.Random(seed)
    found = [
        f"{row} "
        + "".join(draws.choice(["the parcel ", "was late ", mark]) for _ in range(draws.randrange(1, 60)))
        for row in range(rows)
    ]
    return pl.DataFrame({"text": found + found[:9]})


def calibrated(plan, **api):
    """Return a plan calibrated on all of its rows, and the run they were paid in."""
    with simulator(speed=120, **api) as server:
        run = finished(plan, server.client())
    return plan.calibrate(run), run


def bill(run):
    return run.bill["dollars"].sum()


def price(plan, mode="live"):
    """Return dollars and their 90th percentile."""
    return plan.options.filter(mode=mode).select("dollars", "dollars_p90").row(0)


@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("mode", ["live", "batch"])
def test_all_rows_give_the_bill(mark, mode):
    """Escaped or not: text is measured as the model reads it, on both sides; nothing is left open."""
    plan, run = calibrated(a_plan(texts(mark), mode=mode), batch_seconds=5)
    assert price(plan, mode) == pytest.approx((bill(run), bill(run)), rel=1e-9)
    assert plan.totals.input_tokens == pytest.approx(run.summary["input_tokens"].item(), rel=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {"returns": {"who": pl.String, "stars": pl.Int64}, "max_tokens": 200},
        {"model": "claude-opus-5-5", "max_tokens": 2_000},
        {"prompt": "Translate: {text}", "max_tokens": 60},
        {"system": "Be a judge of parcels.\n\n" * 900, "cache": True},
    ],
    ids=["typed", "thinking", "cut", "cached"],
)
def test_whatever_the_plan(options):
    """Typed replies, thinking, replies cut at max_tokens and a cached prefix: all give the bill."""
    plan, run = calibrated(a_plan(texts("\n"), **options))
    assert price(plan)[0] == pytest.approx(bill(run), rel=1e-9)


def test_a_cache_in_batches():
    """Hits of the batch that was paid are those of the estimate."""
    system = "Be a judge of parcels.\n\n" * 900
    plan, run = calibrated(a_plan(texts('"'), system=system, cache=True, mode="batch"), batch_seconds=5)
    assert price(plan, "batch")[0] == pytest.approx(bill(run), rel=1e-9)


def test_what_is_not_billed_is_not_expected():
    """Rows that are answered and not billed take nothing from the bill that the plan then tells."""
    plan, run = calibrated(a_plan(texts("\n")), faults={"refusal": 0.3, 500: 0.05})
    assert price(plan)[0] == pytest.approx(bill(run), rel=1e-9)


def test_rows_on_both_sides_of_a_step_of_the_price():
    """Where a long prompt costs more for the whole request, the bill is met too."""
    draws = random.Random(3)
    frame = pl.DataFrame({"text": [f"{n} " + "word " * draws.randrange(40_000, 60_000) for n in range(12)]})
    plan, run = calibrated(a_plan(frame))
    assert price(plan)[0] == pytest.approx(bill(run), rel=1e-9)


def test_counted_characters_are_those_that_are_estimated():
    """Tokens counted on all rows are those of the plan: counting and estimating measure alike."""
    plan = a_plan(texts("\t\t\t"))
    with simulator(speed=120) as server:
        counted = cs.wait(plan.count_tokens(server.client(), n=1_000))
        paid = finished(plan, server.client()).summary["input_tokens"].item()
    assert counted.totals.input_tokens == pytest.approx(paid, rel=1e-9)
    assert counted.totals.input_more == 0
