"""From returns= to a JSON schema that the API takes and to typed columns, and reply texts into them."""

import enum
import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AliasPath,
    AnyUrl,
    BaseModel,
    Field,
    ImportString,
    Json,
    NaiveDatetime,
    RootModel,
    SecretStr,
    create_model,
    model_validator,
)

from claudescale.errors import BadReturns
from claudescale.prompts.replies import compile_returns, nodes

IDENT = "12345678-1234-5678-1234-567812345678"
WINTER = datetime(2026, 1, 31, 9, 30, tzinfo=UTC).replace(tzinfo=None)
ZONE = pl.Datetime("us", "Europe/Berlin")


class Part(BaseModel):
    """One part of the order."""

    name: str = Field(alias="full-name")
    count: int = Field(ge=1, le=99, description="How many")
    made: date | None = None


PART = pl.Struct({"name": pl.String, "count": pl.Int64, "made": pl.Date})
A_PART, READ_PART = {"full-name": "Ann", "count": 3}, {"name": "Ann", "count": 3, "made": None}


LABELS = pl.Enum(["positive", "Negative", "us", "US"])  # compared without case and outer spaces
# fmt: off
FITS = [
    (pl.String, "\u00e9\U0001f600\x00\u2028", "\u00e9\U0001f600\x00\u2028"), (pl.Categorical, "a", "a"),
    (pl.Boolean, False, False), (pl.Int8, -128, -128), (pl.Int64, 3.0, 3), (pl.UInt64, 2**64 - 1, 2**64 - 1),
    (pl.Int128, 2**100, 2**100), (pl.Float16, 0.5, 0.5), (pl.Decimal(10, 2), 1.239, Decimal("1.24")),
    (pl.Datetime("us"), "2026-01-31T09:30:00", WINTER),
    (pl.Datetime("ms"), "2026-01-31T14:30:00+05:00", WINTER),
    (pl.Datetime("us", "UTC"), "2026-01-31T10:30:00+01:00", WINTER.replace(tzinfo=UTC)),
    (ZONE, "2026-01-31T08:30:00Z", pl.Series([WINTER]).dt.replace_time_zone("Europe/Berlin")[0]),
    (pl.Time, "09:30:00Z", time(9, 30)), (pl.Duration("ns"), "-PT1H", timedelta(hours=-1)),
    (pl.Struct({"a": pl.Date, "b": pl.List(pl.Int64)}), {"a": "2026-01-31", "b": [1]},
     {"a": date(2026, 1, 31), "b": [1]}),
    (pl.Float64 | None, None, None), (LABELS, " NEGATIVE\n", "Negative"), (LABELS, "us", "us"),
    (list[Part], [A_PART, A_PART], [READ_PART, READ_PART]), (list[Part], [], []),
]
MISFITS = [
    (pl.String, 1), (pl.String, None), (pl.Enum(["a", "b"]), "c"), (pl.Boolean, "yes"), (pl.Int64, 1.5),
    (pl.Int64, 2**63), (pl.Int8, 128), (pl.UInt32, -1), (pl.Float64, "1.5e"), (pl.Decimal(4, 2), 100),
    (pl.Date, "31.01.2026"), (pl.Date, 20_000), (pl.Datetime("us"), "tomorrow"),
    (pl.Datetime("ns"), "1500-01-01T00:00:00Z"), (pl.Time, "25:00:00"), (pl.Duration, "an hour"),
    (pl.Duration("ns"), "P200000D"), (pl.List(pl.Int64), [1, None]), (pl.List(pl.Int64), 1),
    (list[Part], [A_PART | {"count": 0}]), (LABELS, "Us"),  # where two are alike it must be exact
    (pl.Array(pl.Float64, 2), [1]), (pl.Struct({"a": pl.Int64}), {}), (pl.Struct({"a": pl.Int64}), [1]),
]
# fmt: on


@pytest.mark.parametrize(
    ("dtype", "value", "cell", "error"),
    [*((*fit, None) for fit in FITS), *((*misfit, None, "invalid_reply") for misfit in MISFITS)],
    ids=str,
)
def test_a_value_arrives_or_is_an_error_of_its_row(dtype, value, cell, error):
    """A valid value has its type in the column; an invalid one is null and an error, never a guess."""
    returns = compile_returns(dtype)
    frame, errors = returns.decode(pl.Series([json.dumps({"reply": value})]))
    assert (frame["reply"].to_list(), errors.to_list()) == ([cell], [error])
    assert frame.schema == returns.columns


# fmt: off
NOT_JSON = [
    "", "{", "null", "[]", '"a"', "{}", '{"other":"a"}', '{"reply":"\\ud800"}', "\x00", "[" * 5_000, "NaN",
]
# fmt: on
KNOWN = {'{"reply":"a"}': ("a", None), '{"reply":"A"}': ("a", None), None: (None, None)}


@settings(deadline=None, max_examples=25)
@given(
    texts=st.lists(st.sampled_from([*KNOWN]) | st.text(st.characters(exclude_categories=["Cs"])), max_size=20)
)
def test_any_text_is_a_cell_or_an_error_of_its_row(texts):
    """No text makes reading raise, repeated or not, and each row is read as if it were alone."""
    texts, returns = [*NOT_JSON, *texts], compile_returns(pl.Enum(["a", "b"]))
    frame, errors = returns.decode(pl.Series(texts, dtype=pl.String))
    assert frame.schema == returns.columns
    wanted = [KNOWN.get(text, (None, "invalid_reply")) for text in texts]
    assert [*zip(frame["reply"], errors, strict=True)] == wanted


class Mood(enum.Enum):
    GLAD = "glad"
    SAD = "sad"


class Rank(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Words(RootModel[list[str]]):
    pass


# fmt: off
ORDER = {  # each field with its type, its column, a reply's value, and the column's value
    "mood": (Mood, pl.Enum(["glad", "sad"]), "GLAD", "glad"),
    "rank": (Rank, pl.Int64(), 2, 2),
    "verdict": (Literal["keep", "drop"] | None, pl.Enum(["keep", "drop"]), None, None),
    "parts": (list[Part], pl.List(PART), [A_PART], [READ_PART]),
    "first": (Annotated[Part, Field(description="The first one named")], PART, A_PART, READ_PART),
    "price": (Annotated[Decimal, Field(decimal_places=2, ge=0)], pl.Decimal(38, 2), 1.25, Decimal("1.25")),
    "at": (datetime, pl.Datetime("us", "UTC"), "2026-01-31T09:30:00Z", WINTER.replace(tzinfo=UTC)),
    "code": (Annotated[str, Field(pattern="^[A-Z]+$", min_length=2, max_length=5)], pl.String(), "AB", "AB"),
    "word": (Annotated[str, Field(pattern=r"\bA")], pl.String(), "An A", "An A"),
    "ident": (UUID, pl.String(), IDENT, IDENT),
    "link": (AnyUrl, pl.String(), "https://example.org/a", "https://example.org/a"),
    "words": (Words, pl.List(pl.String), ["a", "b"], ["a", "b"]),
    "tags": (Annotated[list[str], Field(min_length=1)], pl.List(pl.String), ["a"], ["a"]),
    "score": (Annotated[int, Field(alias="the score", ge=0, le=10, examples=[3])], pl.Int64(), 9, 9),
    "note": (Annotated[str, Field(default="")], pl.String(), "n", "n"),
}
# fmt: on
REPLY = {{"score": "the score"}.get(name, name): reply for name, (*_, reply, _) in ORDER.items()}


class Rules(BaseModel):
    @model_validator(mode="after")
    def not_seven(self):
        if self.score == 7:
            raise RuntimeError(self.score)  # a validator with a bug
        return self


HINTS = {name: hint if name == "note" else (hint, ...) for name, (hint, *_) in ORDER.items()}
Order = create_model("Order", __base__=Rules, **HINTS)


def test_a_model_becomes_columns_of_polars_types():
    """Each annotation has its Polars type and its value, under the name of the field and not its alias."""
    returns = compile_returns(Order)
    assert returns.columns == pl.Schema({name: dtype for name, (_, dtype, *_) in ORDER.items()})
    frame, errors = returns.decode(pl.Series([json.dumps(REPLY)]))
    assert errors.to_list() == [None]
    assert frame.row(0, named=True) == {name: cell for name, (*_, cell) in ORDER.items()}


@pytest.mark.parametrize(
    "change",
    [{"the score": 11}, {"the score": 7}, {"the score": 2**70}, {"link": "no link"}, {"price": "x"},
     {"first": {"full-name": "Ann", "count": 0}}, {"verdict": "sell"}],
    ids=str,
)  # fmt: skip
def test_a_model_s_own_rules_hold(change):
    """A constraint, a validator that refuses, and one that raises affect only their own row."""
    frame, errors = compile_returns(Order).decode(pl.Series([json.dumps(REPLY | change), json.dumps(REPLY)]))
    assert errors.to_list() == ["invalid_reply", None]
    assert frame["score"].to_list() == [None, 9]


TAKEN = {"pattern", "type", "description", "format", "minItems", "const", "enum", "anyOf", "items"}
TAKEN_OF_OBJECTS = {"type", "description", "properties", "required", "additionalProperties"}


def test_the_schema_has_what_the_api_takes_and_tells_the_rest():
    """At every depth it has only the API's keywords; bounds and the like follow the user's description."""
    schema = compile_returns(Order).json_schema
    for node in nodes(schema):
        is_object = node.get("type") == "object"
        assert set(node) <= (TAKEN_OF_OBJECTS if is_object else TAKEN)
        assert not is_object or node["additionalProperties"] is False
    fields = schema["properties"]
    part = fields["parts"]["items"]
    assert fields["first"]["description"] == "The first one named"
    assert part["description"] == "One part of the order."
    assert part["properties"]["count"]["description"] == "How many (maximum: 99, minimum: 1)"
    assert fields["word"]["description"] == r"(pattern: \bA)"  # not a simple one
    assert fields["code"] == {
        "type": "string", "pattern": "^[A-Z]+$", "description": "(max length: 5, min length: 2)",
    }  # fmt: skip
    assert fields["price"]["description"] == "(digits after the point: 2, minimum: 0.0)"
    assert fields["tags"]["minItems"] == 1
    assert "examples: [3]" in fields["the score"]["description"]
    assert set(fields) - set(schema["required"]) == {"note"}  # it has a default
    assert {"type": "null"} in fields["verdict"]["anyOf"]


TWO = {"type": "string", "enum": ["good", "bad"]}
# fmt: off
TYPES = [
    (bool, pl.Boolean, {"type": "boolean"}), (int, pl.Int64, {"type": "integer"}),
    (float, pl.Float64, {"type": "number"}), (str, pl.String, {"type": "string"}),
    (["good", "bad"], pl.Enum(["good", "bad"]), TWO),
    (Literal["good", "bad"], pl.Enum(["good", "bad"]), TWO),
    (Literal[1, 2], pl.Int64, {"type": "integer", "enum": [1, 2]}),
    (list[int], pl.List(pl.Int64), {"type": "array", "items": {"type": "integer"}}),
    (pl.Enum(["a"]), pl.Enum(["a"]), {"type": "string", "const": "a"}),
    (pl.UInt64, pl.UInt64, {"type": "integer", "description": "(minimum: 0)"}),
    (pl.Datetime("us"), pl.Datetime("us"), {"type": "string", "format": "date-time"}),
    (Literal["good", "bad"] | None, pl.Enum(["good", "bad"]), {"anyOf": [TWO, {"type": "null"}]}),
]
# fmt: on


@pytest.mark.parametrize(("given", "dtype", "node"), TYPES, ids=str)
def test_a_type_is_a_reply_of_its_own_or_a_field(given, dtype, node):
    """A Python or Polars type is the field `reply` of an object and of the results; in a dict, any field."""
    returns, in_a_dict = compile_returns(given), compile_returns({"reply": given})
    assert (returns.single, in_a_dict.single) == (True, False)
    assert returns.columns == in_a_dict.columns == pl.Schema({"reply": dtype})
    closed = {"required": ["reply"], "additionalProperties": False}
    wanted = {"type": "object", "properties": {"reply": node}, **closed}
    assert returns.json_schema == in_a_dict.json_schema == wanted


class Tree(BaseModel):
    branches: list["Tree"]


def of(kind):
    """Return a model with one field of a type."""
    return create_model("Model", value=(kind, ...))


# fmt: off
NO_COLUMN = [
    ({f"f{n}": pl.Float64 | None for n in range(17)}, r"17 may be null.* 24 and 16"),
    (create_model("Optional", **{f"f{n}": (str, "") for n in range(25)}), "25 fields may be left out"),
    (Tree, "Tree contains itself"), (of(dict[str, int]), "'value' has no type that a column can show"),
    (of(list), r"list\[str\], or a nested model"), (of(bytes), "no type"), (of(None), "no type"),
    (of(list[SecretStr | None]), r"'value'\[\] has no type"), (of(Json[int]), "no type"),
    (of(int | str), "'value' may have several types"), (of(Literal["a", 1]), "several types"),
    (Words, "no named fields"), (create_model("Empty"), "no named fields"),
    (of(type), "Model has no JSON schema"), (of(ImportString), "ImportString"),
    (of(NaiveDatetime), "Use datetime"),
    (of(Annotated[int, Field(validation_alias=AliasPath("a", "b"))]), "AliasPath"),
    ({}, "returns= takes a pydantic model"), (7, "returns= takes"),
    ({"a": pl.Null}, "field 'a' is Null"), ({"a": pl.List(pl.Binary)}, r"field 'a'\[\] is Binary"),
    ({"a": pl.Struct({"b": pl.Binary})}, r"field 'a'\.b is Binary"), ({"a": pl.Struct([])}, "is Struct"),
    ({"a": pl.Enum}, r"such as pl\.Enum\(\['yes', 'no'\]\)"), ({"a": pl.Enum([])}, "field 'a' is Enum"),
    ({"a": pl.Decimal}, r"pl\.Decimal\(scale=2\)"), ({"a": "String"}, "returns= takes"),
    (pl.Int64 | pl.String | None, "several types, and a column has one"),
]
# fmt: on


@pytest.mark.parametrize(("given", "words"), NO_COLUMN, ids=str)
def test_what_no_column_can_hold_is_refused(given, words):
    """Each type without a JSON schema or a column is a BadReturns that names the field or the model."""
    with pytest.raises(BadReturns, match=words):
        compile_returns(given)
