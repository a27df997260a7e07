"""A plan before anything is known: its figures, its arithmetic, and the mode that meets its targets."""

import json
import re

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from predicted import HAIKU, OPUS, SONNET, texts
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api import catalog, prices
from claudescale.errors import ImpossibleBudget, ImpossibleDeadline
from claudescale.planning import estimates


def test_options_in_one_table():
    """Batch is half the price of live; savings are relative to every row sent live; no rows cost nothing."""
    frame = pl.concat([texts(90), texts(90).head(10)])
    options = a_plan(frame).options
    assert options.schema == estimates.OPTIONS
    live, batch = options.iter_rows(named=True)
    assert (live["mode"], batch["mode"]) == ("live", "batch")
    assert batch["dollars"] == pytest.approx(live["dollars"] / 2)
    assert live["dollars_saved"] > 0, "the repeated rows"
    assert live["dollars"] + live["dollars_saved"] == pytest.approx(batch["dollars"] + batch["dollars_saved"])
    assert (batch["minutes"], batch["minutes_p90"]) == (60, 24 * 60)
    assert_frame_equal(options, a_plan(frame.lazy()).options)
    for nothing in ([], [None]):
        free = a_plan(nothing).options.select("dollars", "minutes", "binding").rows()
        assert free == [(0, 0, "nothing to send")] * 2


def test_a_cached_prefix_is_written_once_if_it_is_long_enough():
    """A single row only writes it, which costs more than sending it; one too short changes only the card."""
    long, short = (a_plan(texts(1), system="Be a judge of parcels. " * times) for times in (900, 1))
    cached, uncached = long.replace(cache=True), short.replace(cache=True)
    assert cached.options["dollars"][0] > long.options["dollars"][0]
    assert uncached.options["dollars"].to_list() == short.options["dollars"].to_list()
    assert "Nothing is cached: all rows share about 9 tokens, and it takes" in repr(uncached)


def test_a_long_prompt_has_the_price_of_its_step():
    """Above 100,000 tokens the whole request costs more; a short one beside it does not."""
    long, short, both = (a_plan(rows) for rows in (["a " * 200_000], ["a"], ["a " * 200_000, "a"]))
    totals, price = long.compiled.totals, prices.price(long.compiled.model)
    assert totals.input_tokens > price.steps[1].above_tokens > 0
    paid = price.dollars(input_tokens=totals.input_tokens, output_tokens=totals.output_tokens)
    assert long.options["dollars"][0] == pytest.approx(paid)
    assert both.options["dollars"][0] == pytest.approx(paid + short.options["dollars"][0])


def test_what_limits_a_run_is_in_its_options():
    """Half the limits take twice the time, one call at a time all latencies; a month's cap may bind."""
    usual, half = (auto(mode="live", share=share).options["minutes"][0] for share in (1.0, 0.5))
    assert half == pytest.approx(2 * usual, rel=0.1)
    alone = a_plan(reviews(200), concurrency=1)
    assert alone.options["minutes"][0] == pytest.approx(200 * alone.compiled.expected.seconds / 60, rel=0.05)
    assert alone.options["binding"][0] == "concurrency"
    frame = pl.select(text=pl.format("{} {}", pl.lit("a" * 2_000), pl.int_range(120_000)))
    live, batch = cs.plan(frame, "{text}", model=OPUS, tier="start").options.iter_rows(named=True)
    assert batch["dollars"] < 500 < live["dollars"]
    assert live["binding"] == "spend limit" != batch["binding"]


def guessed(prompt="Judge: {text}", **options):
    """Return the output tokens that a plan assumes for a reply."""
    return a_plan(reviews(2), prompt, **{"max_tokens": 1024, **options}).compiled.expected.output_tokens


def test_a_reply_is_assumed_to_be_as_long_as_is_asked_for():
    """Keys and punctuation of a form are exact; text is as long as the words or sentences asked for."""
    name, text = pl.Struct({"first": pl.String, "last": pl.String}), "x" * 50
    tags = pl.List(pl.Enum(["new", "old"]))
    form = {"who": name, "at": pl.Datetime("us", "UTC"), "sure": pl.Float64 | None, "tags": tags}
    who, at = {"first": text, "last": text}, "2026-01-31T09:30:00Z"
    written = json.dumps({"who": who, "at": at, "sure": 0.93, "tags": ["new", "old", "old"]})
    tokens = len(written.replace(" ", "")) / catalog.model(HAIKU).characters_per_token
    assert guessed(returns=form) == pytest.approx(tokens, abs=6)
    asked = ["Name it in one word: {text}", "In one sentence: {text}", "Three sentences on {text}", "{text}"]
    assert sorted(asked, key=guessed) == asked
    assert guessed(system="Answer with a single word.") == guessed(asked[0]) < 10
    assert guessed("Write 200 words on {text}") > 2 * guessed("Write 80 words on {text}")
    assert guessed(max_tokens=16) == 16


def test_thinking_is_assumed_where_a_model_thinks():
    """It depends on effort where a model thinks, and is zero where thinking is off; the card says so."""
    names = ("low", "medium", "high", "xhigh", "max")
    efforts = [guessed(effort=effort, max_tokens=8_000) for effort in names]
    assert guessed() == guessed(model=SONNET) < efforts[0], "off in bulk"
    assert efforts == sorted(efforts)
    assert guessed() < guessed(model=OPUS) < guessed(model=OPUS, effort="high")
    card = repr(a_plan(reviews(2), model=OPUS, returns=pl.Boolean))
    assert "estimated from characters, output assumed (59 tokens, 50 of them thinking, in 1.7 s): cal" in card


def auto(**given):
    """Return a plan that takes ten minutes live."""
    limits = cs.Limits(requests_per_minute=20, input_tokens_per_minute=1e6, output_tokens_per_minute=1e6)
    return a_plan(reviews(200), **{"mode": "auto", "tier": limits, **given})


@pytest.mark.parametrize(
    ("wishes", "mode"),
    [
        ({}, "batch"),
        ({"deadline": 120}, "hybrid"),
        ({"deadline": 30}, "live"),
        ({"deadline": 2_000, "budget": 0.008}, "batch"),
    ],
)
def test_auto_is_the_cheapest_that_is_in_time(wishes, mode):
    """A day gives half the price, hours give a hybrid, and minutes give live calls."""
    assert auto(**wishes).compiled.resolved() == mode


@pytest.mark.parametrize(
    ("wishes", "error", "words"),
    [
        ({"deadline": 2}, ImpossibleDeadline, "mode='live', the quickest"),
        ({"deadline": 16, "budget": 2e-3}, ImpossibleBudget, r"up to \$0\.\d+ in mode='live'"),
        ({"budget": 1e-6}, ImpossibleBudget, r"up to \$0\.\d+ in mode='batch'"),
        ({"mode": "hybrid", "deadline": 12}, ImpossibleDeadline, "live, and mode='hybrid' keeps 5 m 00 s"),
        ({"mode": "live", "budget": 1e-3}, ImpossibleBudget, r"about \$.* enough for about \d+ rows"),
    ],
)
def test_what_cannot_be_met_names_what_can(wishes, error, words):
    """An impossible deadline or budget names the quickest or cheapest mode, or how many rows fit."""
    plan = auto(**wishes)
    with pytest.raises(error, match=words):
        plan.replace(mode=plan.compiled.resolved()).compiled.check()
    if plan.mode == "auto":
        assert "cannot run" in repr(plan)


def test_a_deadline_and_a_budget_are_met_nine_times_in_ten():
    """The deadline that an error names is enough, the usual minutes and dollars are not."""
    with pytest.raises(ImpossibleDeadline) as refused:
        auto(deadline=2).compiled.resolved()
    minutes = float(re.search(r"deadline=(\d+)", str(refused.value))[1])
    assert auto(deadline=minutes).compiled.resolved() == "live"
    _, price, high_price, usual, slow = auto().options.row(0)[:5]
    with pytest.raises(ImpossibleDeadline):
        auto(deadline=(usual + slow) / 2).compiled.resolved()
    with pytest.raises(ImpossibleBudget):
        auto(deadline=30, budget=(price + high_price) / 2).compiled.resolved()
    assert auto(mode="live", budget=0.001).compiled.check(part=0.01)["dollars"] < 0.001
    assert auto(deadline=0.001).compiled.likely_mode == "batch", "a picture of it can be drawn"


@pytest.mark.slow
def test_a_plan_shows_and_runs_what_it_chose():
    """The card marks the mode, and the run uses that mode."""
    plan = a_plan(reviews(3), mode="auto")
    assert "batch <-" in repr(plan)
    with simulator(speed=2_000) as api:
        assert finished(plan, api.client()).attempts["mode"].unique().to_list() == ["batch"]


def test_a_hybrid_costs_a_batch_where_one_is_in_time_and_live_calls_at_most():
    """Its 90th percentile in minutes is the deadline, and in dollars that of live calls."""
    for deadline, like in ((120, "batch"), (30, "live")):
        options = auto(mode="hybrid", deadline=deadline).options.rows_by_key("mode", named=True, unique=True)
        hybrid = options["hybrid"]
        assert hybrid["dollars"] == options[like]["dollars"]
        assert hybrid["dollars_p90"] == options["live"]["dollars_p90"]
        assert (hybrid["minutes"], hybrid["minutes_p90"]) == (min(60, deadline), deadline)
