"""What a plan assumes of replies before anything is known: from their form, from what is asked, and told."""

import datetime as dt
from typing import Literal

import polars as pl
import pytest
from predicted import HAIKU, OPUS, SONNET, notebooks, ran
from pydantic import BaseModel, Field

import claudescale as cs

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
