"""What a plan says before anything is known, and its arithmetic: dollars, minutes, what limits it."""

import dataclasses
import datetime as dt
import random
from typing import Literal

import polars as pl
import pytest
from polars.testing import assert_frame_equal
from predicted import HAIKU, OPUS, SONNET, notebooks, ran
from pydantic import BaseModel, Field
from running import MODEL, a_plan, finished, simulator

import claudescale as cs
from claudescale.planning import estimates
from claudescale.planning.estimates import OPTIONS, Line, Measured

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


# ----------------------------------------------------------------------- a guess, before anything is known

TEXTS = pl.DataFrame({"text": ["late again", "works"]})


def guessed(prompt="Judge: {text}", **options):
    """Return the output tokens of a reply that a plan assumes."""
    return cs.plan(TEXTS, prompt, **{"model": HAIKU, **options}).expected.output_tokens


class Order(BaseModel):
    """What is read out of a mail."""

    number: int
    kind: Literal["refund", "exchange"]
    when: dt.date
    note: str = Field(max_length=10)
    tags: list[str]


@pytest.mark.parametrize(
    ("returns", "written"),
    [
        (pl.Boolean, '{"reply":true}'),
        (pl.Enum(["yes", "no", "other"]), '{"reply":"yes"}'),
        ({"stars": pl.Int64, "sure": pl.Float64}, '{"stars":4,"sure":0.93}'),
        (pl.Float64 | None, '{"reply":0.9}'),
        (pl.Array(pl.Float64, 40), '{"reply":[' + ",".join(["0.25"] * 40) + "]}"),
        (
            {"who": pl.Struct({"first": pl.String, "last": pl.String}), "at": pl.Datetime("us", "UTC")},
            '{"who":{"first":"' + "x" * 50 + '","last":"' + "x" * 50 + '"},"at":"2026-01-31T09:30:00Z"}',
        ),
        (
            Order,
            '{"number":17,"kind":"exchange","when":"2026-01-31","note":"by the end","tags":["'
            + '","'.join(["x" * 50] * 3)
            + '"]}',
        ),
    ],
    ids=["bool", "enum", "numbers", "nullable", "array", "struct", "model"],
)
def test_a_typed_reply_is_as_long_as_its_form(returns, written):
    """Keys and punctuation are exact, labels are of their mean length, dates of their format's."""
    tokens = len(written) / cs.plan(TEXTS, "{text}", model=HAIKU).facts.characters_per_token
    assert guessed(returns=returns) == pytest.approx(tokens, abs=4)


def test_longer_labels_and_more_fields_are_longer_replies():
    """The guess follows the form: by its labels, its names and its fields."""
    short, long = pl.Enum(["a", "b"]), pl.Enum(["a" * 40, "b" * 40])
    assert guessed(returns=long) > guessed(returns=short) + 10
    assert guessed(returns={"a_long_name_of_a_field": short}) > guessed(returns={"a": short})
    assert guessed(returns={"a": short, "b": pl.String}) > guessed(returns={"a": short}) + 15


def test_free_text_is_as_long_as_is_asked_for():
    """Words, sentences and paragraphs that prompt or system prompt ask for; never above max_tokens."""
    asked = ["Name it in one word: {text}", "In one sentence: {text}", "Three sentences on {text}", "{text}"]
    assert sorted(asked, key=guessed) == asked
    assert guessed(system="Answer with a single word.") == guessed(asked[0]) < 10
    assert guessed("Write 200 words on {text}") > 2 * guessed("Write 80 words on {text}")
    assert guessed(max_tokens=16) == 16
    assert guessed(pl.col("text")) == guessed("{text}")


def test_thinking_is_assumed_where_a_model_thinks():
    """By effort, where it cannot be off or is asked for; none where it is off."""
    plain = guessed()
    assert guessed(model=SONNET) == plain, "off in bulk"
    efforts = [
        guessed(effort=effort, max_tokens=8_000) for effort in ("low", "medium", "high", "xhigh", "max")
    ]
    assert plain < efforts[0]
    assert efforts == sorted(efforts)
    assert plain < guessed(model=OPUS) < guessed(model=OPUS, effort="high")
    budget = {"type": "enabled", "budget_tokens": 1_024}
    assert guessed(model="claude-haiku-4-5", thinking=budget, max_tokens=4_000) > 500
    plan = cs.plan(TEXTS, "Judge: {text}", model=OPUS)
    assert "50 of them thinking" in repr(plan)


def test_the_card_says_what_is_assumed():
    """Every price before a pilot rests on it: tokens and seconds of a reply stand there, called assumed."""
    plan = cs.plan(TEXTS, "Judge: {text}", model=HAIKU, returns=pl.Boolean)
    assert "estimated from characters, output assumed (9 tokens, in 1.1 s): calibrate" in repr(plan)


@pytest.mark.parametrize("name", ["1 guess and summary", "4 level", "5 explain", "6 kind, Haiku"])
def test_the_first_price_is_near_what_is_paid(name):
    """Of the notebooks' plans: within a quarter, before anything is known."""
    plan, api = notebooks()[name].plan, notebooks()[name].api
    some = plan.sample(200, seed=1)
    past = ran(some, **api)
    assert some.options["dollars"][0] == pytest.approx(past.dollars, rel=0.25)


# --------------------------------------------------------------------------------------- what is left open


def test_a_cache_that_is_seldom_found_is_paid_for():
    """Where a pilot found the cache by half, the others of the run write it, and the dollars say so."""
    plan = a_plan(texts(300), system="Be a judge of parcels. " * 900, cache=True)
    seldom = plan.replace(measured=estimates.guess(plan.compiled, 64, cache=True))
    seldom = plan.replace(measured=dataclasses.replace(seldom.measured, cache_hit_share=0.5)).totals
    assert seldom.cache_read_tokens == pytest.approx(plan.totals.cache_read_tokens / 2, rel=0.01)
    assert seldom.live_dollars > 1.5 * plan.totals.live_dollars


def test_a_biased_pilot_says_that_it_knows_little():
    """The first rows of a sorted frame are shorter than all: the same pilot leaves more doubt there."""
    frame = texts(800).sort(pl.col("text").str.len_chars())
    plan = a_plan(frame, "Translate: {text}", max_tokens=4_000)
    known = {"estimated_tokens": 30.0, "estimated_deviation": 5.0, "calls": 50}
    measured = Measured(output=Line(40.0, 0.9, 8.0), latency=Line(1.0), **known)
    near = plan.replace(measured=measured, frame=frame.head(100)).totals
    far = plan.replace(measured=measured).totals
    assert far.output_more > 2 * near.output_more
    assert far.output_tokens / far.requests > 1.5 * near.output_tokens / near.requests


def test_the_doubt_of_input_and_output_is_told_by_price():
    """Where the API has counted the input, what is open of the dollars is the part of the output."""
    plan = a_plan(texts(300))
    guessed = plan.totals
    line = Line(guessed.input_tokens / 300, 1.0, 1.0)
    output = Line(guessed.output_tokens / 300)
    mean = guessed.input_tokens / 300
    counted = Measured(input=line, output=output, estimated_tokens=mean, counted=100)
    totals = plan.replace(measured=counted).totals
    part = cs.plan(plan.frame, plan.prompt, model=MODEL).totals
    share = 1 - plan.replace(measured=dataclasses.replace(counted, output=Line(0.0))).totals.live_dollars / (
        totals.live_dollars
    )
    assert part.requests == totals.requests
    assert totals.live_more == pytest.approx(share * totals.output_more, rel=0.02)
    assert totals.live_more < guessed.live_more < guessed.output_more


def test_a_spend_limit_binds_where_the_dollars_are_above_it():
    """A mode that costs more than the tier may spend in a month says so; one that costs less does not."""
    frame = pl.select(text=pl.format("{} {}", pl.lit("a" * 20_000), pl.int_range(15_000)))
    options = cs.plan(frame, "{text}", model=OPUS, tier="start").options
    above = options.filter(pl.col("dollars") > 500)
    assert 0 < above.height < options.height
    assert set(above["binding"]) == {estimates.SPEND_LIMIT}
    assert estimates.SPEND_LIMIT not in set(options.filter(pl.col("dollars") <= 500)["binding"])
