"""Reply texts to typed columns: exact where they fit, an error of the row where they do not."""

import enum
import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Literal
from uuid import UUID

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AnyUrl, BaseModel, Field, RootModel, field_validator, model_validator

from claudescale.prompts.replies import compile_returns

TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def decoded(given, values):
    """Return the single typed column of replies with these JSON values, and the errors."""
    texts = pl.Series([json.dumps({"reply": value}) for value in values], dtype=pl.String)
    frame, errors = compile_returns(given).decode(texts)
    assert frame.columns == ["reply"]
    assert frame.height == errors.len() == len(values)
    return frame["reply"], errors.to_list()


WINTER = datetime(2026, 1, 31, 9, 30, tzinfo=UTC).replace(tzinfo=None)
ZONE = pl.Datetime("us", "Europe/Berlin")


@pytest.mark.parametrize(
    ("dtype", "value", "cell"),
    [
        (pl.String, "\u00e9\U0001f600\x00\u2028", "\u00e9\U0001f600\x00\u2028"),
        (pl.Categorical, "a", "a"),
        (pl.Boolean, False, False),
        (pl.Int8, -128, -128),
        (pl.Int64, 3.0, 3),
        (pl.UInt64, 2**64 - 1, 2**64 - 1),
        (pl.Int128, 2**100, 2**100),
        (pl.Float16, 0.5, 0.5),
        (pl.Decimal(10, 2), 1.239, Decimal("1.24")),
        (pl.Datetime("us"), "2026-01-31T09:30:00", WINTER),
        (pl.Datetime("ms"), "2026-01-31T09:30:00+05:00", WINTER),
        (pl.Datetime("us", "UTC"), "2026-01-31T10:30:00+01:00", WINTER.replace(tzinfo=UTC)),
        (pl.Datetime("us", "UTC"), "2026-01-31T09:30:00", WINTER.replace(tzinfo=UTC)),
        (ZONE, "2026-01-31T08:30:00Z", pl.Series([WINTER]).dt.replace_time_zone("Europe/Berlin")[0]),
        (pl.Time, "09:30:00Z", time(9, 30)),
        (pl.Duration("ns"), "-PT1H", timedelta(hours=-1)),
        (pl.Struct({"a": pl.Date, "b": pl.List(pl.Int64)}), {"a": "2026-01-31", "b": [1]}, None),
        (pl.Float64 | None, None, None),
    ],
    ids=str,
)
def test_a_value_of_each_type_arrives(dtype, value, cell):
    """What the JSON says stands in the column, in the column's type, with no error."""
    column, errors = decoded(dtype, [value])
    assert errors == [None]
    assert column.dtype == compile_returns(dtype).columns["reply"]
    if isinstance(dtype, pl.Struct):
        cell = {"a": date(2026, 1, 31), "b": [1]}
    found = column[0]
    assert (found.to_list() if isinstance(found, pl.Series) else found) == cell


# fmt: off
MISFITS = [
    (pl.String, 1), (pl.String, None), (pl.Enum(["a", "b"]), "c"), (pl.Boolean, "yes"), (pl.Int64, 1.5),
    (pl.Int64, 2**63), (pl.Int8, 128), (pl.UInt32, -1), (pl.Float32, 1e39), (pl.Float64, "1.5e"),
    (pl.Decimal(4, 2), 100), (pl.Date, "31.01.2026"), (pl.Date, 20_000), (pl.Datetime("us"), "tomorrow"),
    (pl.Datetime("ns"), "1500-01-01T00:00:00Z"), (pl.Datetime("us", "UTC"), "0001-01-01T00:00:00+10:00"),
    (pl.Time, "25:00:00"), (pl.Duration, "an hour"), (pl.Duration("ns"), "P200000D"),
    (pl.List(pl.Int64), [1, None]), (pl.List(pl.Int64), 1), (pl.Array(pl.Float64, 2), [1]),
    (pl.Struct({"a": pl.Int64}), {}), (pl.Struct({"a": pl.Int64}), [1]),
]
# fmt: on


@pytest.mark.parametrize(("dtype", "value"), MISFITS, ids=str)
def test_a_value_that_does_not_fit_is_an_error_of_its_row(dtype, value):
    """A wrong type, a number out of range, a date that is none: null and "invalid_reply", never a guess."""
    column, errors = decoded(dtype, [value])
    assert column.to_list() == [None]
    assert errors == ["invalid_reply"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", '"a"', "{}", '{"other":"a"}', '{"reply":"\\ud800"}', "\x00", "[" * 5_000, "NaN"],
    ids=lambda text: repr(text[:20]),
)
def test_a_text_that_is_no_reply_is_an_error_of_its_row(text):
    """Whatever text comes, reading it never raises; the rows beside it are read."""
    good = '{"reply":"a"}'
    for dtype in (pl.String, pl.Enum(["a", "b"])):
        frame, errors = compile_returns(dtype).decode(pl.Series([good, text, None]))
        assert frame["reply"].to_list() == ["a", None, None]
        assert errors.to_list() == [None, "invalid_reply", None]


@settings(deadline=None, max_examples=25)
@given(texts=st.lists(st.none() | TEXT | st.sampled_from(['{"reply":"a"}', '{"reply":"A"}']), max_size=20))
def test_rows_in_are_rows_out(texts):
    """Any texts, repeated or not, give as many rows in the same order as reading each alone."""
    returns = compile_returns(pl.Enum(["a", "b"]))
    frame, errors = returns.decode(pl.Series(texts, dtype=pl.String))
    assert frame.schema == returns.columns
    alone = [returns.decode(pl.Series([text], dtype=pl.String)) for text in texts]
    assert frame["reply"].to_list() == [each["reply"][0] for each, _ in alone]
    assert errors.to_list() == [each[0] for _, each in alone]


def test_labels_are_compared_without_capitals():
    """A label differing in capitals or outer spaces is that label; where two are alike it must be exact."""
    column, errors = decoded(
        pl.Enum(["positive", "Negative", "us", "US"]), ["Positive", " NEGATIVE\n", "Us", "us"]
    )
    assert column.to_list() == ["positive", "Negative", None, "us"]
    assert errors == [None, None, "invalid_reply", None]


class Mood(enum.Enum):
    GLAD = "glad"
    SAD = "sad"


class Rank(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Words(RootModel[list[str]]):
    pass


class Person(BaseModel):
    name: str = Field(alias="full-name")
    born: date | None = None


class Review(BaseModel):
    mood: Mood
    rank: Rank
    verdict: Literal["keep", "drop"] | None
    people: list[Person]
    link: AnyUrl
    ident: UUID
    words: Words
    price: Decimal
    score: int = Field(alias="the score", ge=0, le=10)

    @model_validator(mode="after")
    def glad_scores_are_high(self):
        if self.mood is Mood.GLAD and self.score < 5:
            raise ValueError(self.score)
        if self.score == 7:
            raise RuntimeError(self.score)  # a validator with a bug
        return self


ALIKE = {
    "link": "https://example.org/a",
    "ident": "12345678-1234-5678-1234-567812345678",
    "words": ["a", "b"],
}
REVIEW = ALIKE | {
    "mood": "GLAD",
    "rank": 2,
    "verdict": "Keep",
    "people": [{"full-name": "Ann", "born": "1990-01-31"}, {"full-name": "Bo"}],
    "price": 12.5,
    "the score": 9,
}


def test_a_model_s_reply_becomes_a_row():
    """Nested models, enumerations, labels, aliases and root models stand in columns by field name."""
    frame, errors = compile_returns(Review).decode(pl.Series([json.dumps(REVIEW)]))
    assert errors.to_list() == [None]
    people = [{"name": "Ann", "born": date(1990, 1, 31)}, {"name": "Bo", "born": None}]
    labels = {"mood": "glad", "rank": 2, "verdict": "keep"}
    assert frame.row(0, named=True) == ALIKE | labels | {
        "people": people,
        "price": Decimal("12.5"),
        "score": 9,
    }


@pytest.mark.parametrize(
    "change", [{"the score": 11}, {"the score": 3}, {"the score": 7}, {"link": "no link"}, {"price": "x"}]
)
def test_a_model_s_own_rules_hold(change):
    """A constraint, a validator that refuses, and one that breaks are each the row's error."""
    texts = pl.Series([json.dumps(REVIEW), json.dumps(REVIEW | change)])
    frame, errors = compile_returns(Review).decode(texts)
    assert errors.to_list() == [None, "invalid_reply"]
    assert frame["score"].to_list() == [9, None]


class Loose(BaseModel):
    count: int
    kind: Literal["a", "b"]

    @field_validator("kind")
    @classmethod
    def renamed(cls, value):
        return "z" if value == "a" else value


def test_what_a_model_lets_through_and_a_column_cannot_hold_is_an_error():
    """A number over 64 bits, or a label a validator made up, is an error and not a crash."""
    texts = pl.Series([f'{{"count":{2**70},"kind":"b"}}', '{"count":1,"kind":"a"}'])
    _, errors = compile_returns(Loose).decode(texts)
    assert errors.to_list() == ["invalid_reply"] * 2
