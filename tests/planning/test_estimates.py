"""A plan before anything is known: its figures, its arithmetic, and the mode that meets its targets."""

import re

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from predicted import HAIKU, OPUS, SONNET, case, ran, texts
from running import a_plan, finished, reviews, simulator

import claudescale as cs
from claudescale.api import prices
from claudescale.planning import estimates
from claudescale.planning.estimates import OPTIONS


def test_options_in_one_table():
    """Batch is half the price of live; savings are relative to sending every row live."""
    frame = pl.concat([texts(90), texts(90).head(10)])
    options = a_plan(frame).options
    assert options.schema == OPTIONS
    live, batch = options.iter_rows(named=True)
    assert (live["mode"], batch["mode"]) == ("live", "batch")
    assert batch["dollars"] == pytest.approx(live["dollars"] / 2)
    assert live["dollars_saved"] > 0, "the repeated rows"
    assert live["dollars"] + live["dollars_saved"] == pytest.approx(batch["dollars"] + batch["dollars_saved"])
    assert (batch["minutes"], batch["minutes_p90"]) == (60, 24 * 60)
    assert_frame_equal(options, a_plan(frame.lazy()).options)


@pytest.mark.parametrize("frame", [[], [None]])
def test_nothing_to_send(frame):
    """A plan without rows, or of nulls alone, costs nothing and takes no time."""
    option = a_plan(frame).options.row(0, named=True)
    assert (option["dollars"], option["minutes"], option["binding"]) == (0, 0, "nothing to send")


def test_a_cached_prefix_is_written_once():
    """A single row only writes it, which costs more than sending it; `test_calibration.py` has the reads."""
    one = a_plan(texts(1), system="Be a judge of parcels. " * 900)
    assert one.replace(cache=True).options["dollars"][0] > one.options["dollars"][0]


def test_a_prefix_too_short_to_cache_costs_as_without_and_is_noted():
    """The API would cache nothing: neither does the price, and the card says how much it takes."""
    plan = a_plan(texts(9), system="Be a judge of parcels.")
    cached = plan.replace(cache=True)
    assert cached.options["dollars"].to_list() == plan.options["dollars"].to_list()
    assert "Nothing is cached: all rows share about 9 tokens, and it takes" in repr(cached)


def test_a_long_prompt_has_the_price_of_its_step():
    """Above 100,000 tokens the whole request costs more; a short one beside it does not."""
    long, short = (a_plan([text]) for text in ("a " * 200_000, "a"))
    totals, price = long.compiled.totals, prices.price(long.compiled.model)
    assert totals.input_tokens > price.steps[1].above_tokens > 0
    paid = price.dollars(input_tokens=totals.input_tokens, output_tokens=totals.output_tokens)
    assert long.options["dollars"][0] == pytest.approx(paid)
    both = a_plan(["a " * 200_000, "a"]).options["dollars"][0]
    assert both == pytest.approx(paid + short.options["dollars"][0])


def test_share_and_concurrency_are_in_the_minutes():
    """Half the limits take twice the time; one call at a time takes the sum of all latencies."""
    usual, half = (auto(mode="live", share=share).options["minutes"][0] for share in (1.0, 0.5))
    assert half == pytest.approx(2 * usual, rel=0.1)
    alone = a_plan(reviews(200), concurrency=1)
    assert alone.options["minutes"][0] == pytest.approx(200 * alone.compiled.expected.seconds / 60, rel=0.05)
    assert alone.options["binding"][0] == "concurrency"


def test_a_spend_limit_binds_where_the_dollars_are_above_it():
    """A mode that costs more than the tier's monthly cap says so; one that costs less does not."""
    frame = pl.select(text=pl.format("{} {}", pl.lit("a" * 2_000), pl.int_range(120_000)))
    live, batch = cs.plan(frame, "{text}", model=OPUS, tier="start").options.iter_rows(named=True)
    assert batch["dollars"] < 500 < live["dollars"]
    assert live["binding"] == estimates.SPEND_LIMIT != batch["binding"]


# ----------------------------------------------------------------------- a guess, before anything is known

TEXTS = pl.DataFrame({"text": ["late again", "works"]})


def guessed(prompt="Judge: {text}", **options):
    """Return the output tokens that a plan assumes for a reply."""
    return cs.plan(TEXTS, prompt, **{"model": HAIKU, **options}).compiled.expected.output_tokens


FORM = {
    "who": pl.Struct({"first": pl.String, "last": pl.String}),
    "at": pl.Datetime("us", "UTC"),
    "sure": pl.Float64 | None,
    "tags": pl.List(pl.Enum(["new", "old"])),
}
WRITTEN = (
    '{"who":{"first":"%s","last":"%s"},"at":"2026-01-31T09:30:00Z","sure":0.93,"tags":["new","old","old"]}'
)


@pytest.mark.parametrize(
    ("returns", "written"),
    [(pl.Enum(["yes", "no", "other"]), '{"reply":"yes"}'), (FORM, WRITTEN % ("x" * 50, "x" * 50))],
)
def test_a_typed_reply_is_as_long_as_its_form(returns, written):
    """Keys and punctuation are exact, and labels have their mean length."""
    tokens = len(written) / cs.plan(TEXTS, "{text}", model=HAIKU).compiled.model.characters_per_token
    assert guessed(returns=returns) == pytest.approx(tokens, abs=6)


def test_free_text_is_as_long_as_is_asked_for():
    """The length follows the words, sentences or paragraphs that the prompts ask for, up to max_tokens."""
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
    card = repr(cs.plan(TEXTS, "Judge: {text}", model=OPUS, returns=pl.Boolean))
    assert "estimated from characters, output assumed (59 tokens, 50 of them thinking, in 1.7 s): cal" in card


@pytest.mark.slow
@pytest.mark.parametrize("name", ["level", "explained"])
def test_the_first_price_is_near_what_is_paid(name):
    """The plans of the notebooks are within a quarter before anything is known."""
    plan, api = case(name, 100)
    assert plan.options["dollars"][0] == pytest.approx(ran(plan, **api).dollars, rel=0.25)


# --------------------------------------------------------------- meeting a deadline and a budget


def auto(**given):
    """Return a plan that takes ten minutes live."""
    limits = cs.Limits(requests_per_minute=20, input_tokens_per_minute=1e6, output_tokens_per_minute=1e6)
    return a_plan(reviews(200), **{"mode": "auto", "tier": limits, **given})


@pytest.mark.parametrize(
    ("wishes", "mode"),
    [
        ({}, "batch"),
        ({"deadline": 25 * 60}, "batch"),
        ({"deadline": 120}, "hybrid"),
        ({"deadline": 30}, "live"),
        ({"deadline": 12, "budget": 0.1}, "live"),
        ({"deadline": 2_000, "budget": 0.008}, "batch"),
    ],
)
def test_auto_is_the_cheapest_that_is_in_time(wishes, mode):
    """A day gives half the price, hours give a hybrid, and minutes give live calls."""
    assert auto(**wishes).compiled.resolved() == mode


def test_what_cannot_be_met_names_what_can():
    """An impossible deadline names one that works, and it does; a budget names the lowest price."""
    with pytest.raises(cs.errors.ImpossibleDeadline, match="mode='live', the quickest") as refused:
        auto(deadline=2).compiled.resolved()
    minutes = float(re.search(r"deadline=(\d+)", str(refused.value))[1])
    assert auto(deadline=minutes).compiled.resolved() == "live"
    usual, slow = auto().options.filter(mode="live").select("minutes", "minutes_p90").row(0)
    with pytest.raises(cs.errors.ImpossibleDeadline):
        auto(deadline=(usual + slow) / 2).compiled.resolved()
    with pytest.raises(cs.errors.ImpossibleBudget, match=r"up to \$0\.\d+ in mode='live'"):
        auto(deadline=16, budget=2e-3).compiled.resolved()
    with pytest.raises(cs.errors.ImpossibleBudget, match=r"up to \$0\.\d+ in mode='batch'"):
        auto(budget=1e-6).compiled.resolved()
    with pytest.raises(cs.errors.ImpossibleDeadline, match=r"live, and mode='hybrid' keeps 5 m 00 s"):
        auto(mode="hybrid", deadline=12).compiled.check()
    with pytest.raises(cs.errors.ImpossibleBudget, match=r"about \$.* enough for about \d+ rows"):
        auto(mode="live", budget=0.001).compiled.check()
    assert auto(mode="live", budget=0.001).compiled.check(part=0.01)["dollars"] < 0.001
    assert auto(deadline=0.001).compiled.likely_mode == "batch", "a picture of it can be drawn"
    assert "cannot run" in repr(auto(deadline=0.001))


@pytest.mark.parametrize(("deadline", "like"), [(120, "batch"), (30, "live")])
def test_a_hybrid_costs_a_batch_where_one_is_in_time_and_live_calls_at_most(deadline, like):
    """Its 90th percentile in minutes is the deadline, and in dollars that of live calls."""
    options = auto(mode="hybrid", deadline=deadline).options
    rows = {row["mode"]: row for row in options.iter_rows(named=True)}
    hybrid = rows["hybrid"]
    assert hybrid["dollars"] == rows[like]["dollars"]
    assert hybrid["dollars_p90"] == rows["live"]["dollars_p90"]
    assert (hybrid["minutes"], hybrid["minutes_p90"]) == (min(60, deadline), deadline)


def test_a_plan_shows_and_runs_what_it_chose():
    """The card marks the mode, and the run uses that mode."""
    plan = a_plan(reviews(3), mode="auto", deadline=30)
    assert "live <-" in repr(plan)
    with simulator(speed=60) as api:
        run = finished(plan, api.client())
    assert (run.plan.mode, run.attempts["mode"].unique().to_list()) == ("live", ["live"])
