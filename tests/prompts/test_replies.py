"""From returns= to a JSON schema that the API takes and to typed columns, and reply texts into them."""

import enum
import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

import polars as pl
import pydantic
import pytest
from pydantic import BaseModel, Field, create_model

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
FITS = [
    (pl.String, "\u00e9\U0001f600\x00\u2028", "\u00e9\U0001f600\x00\u2028"), (pl.Boolean, False, False),
    (pl.Int8, -128, -128), (pl.Int64, 3.0, 3), (pl.Int128, 2**100, 2**100), (pl.Float16, 0.5, 0.5),
    (pl.Decimal(10, 2), 1.239, Decimal("1.24")), (pl.Datetime("us"), "2026-01-31T09:30:00", WINTER),
    (pl.Datetime("ms"), "2026-01-31T14:30:00+05:00", WINTER),
    (ZONE, "2026-01-31T08:30:00Z", pl.Series([WINTER]).dt.replace_time_zone("Europe/Berlin")[0]),
    (pl.Time, "09:30:00Z", time(9, 30)), (pl.Duration("ns"), "-PT1H", timedelta(hours=-1)),
    (pl.Struct({"a": pl.Date, "b": pl.List(pl.Int64)}), {"a": "2026-01-31", "b": [1]},
     {"a": date(2026, 1, 31), "b": [1]}),
    (pl.Float64 | None, None, None), (LABELS, " NEGATIVE\n", "Negative"), (LABELS, "us", "us"),
    (list[Part], [A_PART, A_PART], [READ_PART, READ_PART]), (list[Part], [], []),
]  # fmt: skip
MISFITS = [
    (pl.String, 1), (pl.String, None), (pl.Enum(["a", "b"]), "c"), (pl.Boolean, "yes"), (pl.Int64, 1.5),
    (pl.Int64, 2**63), (pl.UInt32, -1), (pl.Decimal(4, 2), 100), (pl.Date, "31.01.2026"), (pl.Date, 20_000),
    (pl.Datetime("ns"), "1500-01-01T00:00:00Z"), (pl.Duration("ns"), "P200000D"), (pl.Int8, 128),
    (pl.List(pl.Int64), [1, None]), (pl.List(pl.Int64), 1), (list[Part], [A_PART | {"count": 0}]),
    (LABELS, "Us"),  # where two are alike it must be exact
    (pl.Array(pl.Float64, 2), [1]), (pl.Struct({"a": pl.Int64}), {}),
]  # fmt: skip


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


def test_any_text_is_a_cell_or_an_error_of_its_row():
    """No text makes reading raise, repeated or not, and each row is read as if it were alone."""
    known = {'{"reply":"a"}': ("a", None), '{"reply":"A"}': ("a", None), None: (None, None)}
    odd = ["", "{", "null", "[]", "{}", '{"other":"a"}', '{"reply":"\\ud800"}', "\x00", "[" * 5_000, "NaN"]
    texts, returns = [*odd, *known, *odd, *known], compile_returns(pl.Enum(["a", "b"]))
    frame, errors = returns.decode(pl.Series(texts, dtype=pl.String))
    assert frame.schema == returns.columns
    wanted = [known.get(text, (None, "invalid_reply")) for text in texts]
    assert [*zip(frame["reply"], errors, strict=True)] == wanted


class Mood(enum.Enum):
    GLAD = "glad"
    SAD = "sad"


class Words(pydantic.RootModel[list[str]]):
    pass


ORDER = {  # each field with its type, its column, a reply's value, and the column's value
    "mood": (Mood, pl.Enum(["glad", "sad"]), "GLAD", "glad"),
    "verdict": (Literal["keep", "drop"] | None, pl.Enum(["keep", "drop"]), None, None),
    "parts": (list[Part], pl.List(PART), [A_PART], [READ_PART]),
    "first": (Annotated[Part, Field(description="The first one named")], PART, A_PART, READ_PART),
    "price": (Annotated[Decimal, Field(decimal_places=2, ge=0)], pl.Decimal(38, 2), 1.25, Decimal("1.25")),
    "at": (datetime, pl.Datetime("us", "UTC"), "2026-01-31T09:30:00Z", WINTER.replace(tzinfo=UTC)),
    "code": (Annotated[str, Field(pattern="^[A-Z]+$", min_length=2, max_length=5)], pl.String(), "AB", "AB"),
    "word": (Annotated[str, Field(pattern=r"\bA")], pl.String(), "An A", "An A"),
    "ident": (UUID, pl.String(), IDENT, IDENT),
    "words": (Words, pl.List(pl.String), ["a", "b"], ["a", "b"]),
    "tags": (Annotated[list[str], Field(min_length=1)], pl.List(pl.String), ["a"], ["a"]),
    "score": (Annotated[int, Field(alias="the score", ge=0, le=10)], pl.Int64(), 9, 9),
    "note": (Annotated[str, Field(default="")], pl.String(), "n", "n"),
}  # fmt: skip
REPLY = {{"score": "the score"}.get(name, name): reply for name, (*_, reply, _) in ORDER.items()}


class Rules(BaseModel):
    @pydantic.model_validator(mode="after")
    def not_seven(self):
        if self.score == 7:
            raise RuntimeError(self.score)  # a validator with a bug
        return self


HINTS = {name: hint if name == "note" else (hint, ...) for name, (hint, *_) in ORDER.items()}
Order = create_model("Order", __base__=Rules, **HINTS)


def test_a_model_becomes_columns_of_polars_types_and_its_own_rules_hold():
    """Columns have the fields' names, not their aliases; a broken constraint or validator costs one row."""
    returns = compile_returns(Order)
    assert returns.columns == pl.Schema({name: dtype for name, (_, dtype, *_) in ORDER.items()})
    broken = {"the score": 11}, {"the score": 7}, {"verdict": "sell"}
    frame, errors = returns.decode(pl.Series([json.dumps(REPLY | change) for change in ({}, *broken)]))
    assert errors.to_list() == [None, *["invalid_reply"] * 3]
    assert frame.row(0, named=True) == {name: cell for name, (*_, cell) in ORDER.items()}
    assert frame["score"].to_list() == [9, None, None, None]


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
    assert fields["first"]["description"] == "The first one named"
    count = fields["parts"]["items"]["properties"]["count"]
    assert count["description"] == "How many (maximum: 99, minimum: 1)"
    assert fields["word"]["description"] == r"(pattern: \bA)"  # not a simple one
    code = {"type": "string", "pattern": "^[A-Z]+$", "description": "(max length: 5, min length: 2)"}
    assert fields["code"] == code
    assert fields["price"]["description"] == "(digits after the point: 2, minimum: 0.0)"
    assert set(fields) - set(schema["required"]) == {"note"}  # it has a default
    assert {"type": "null"} in fields["verdict"]["anyOf"]


LABELLED = pl.Enum(["good", "bad"])
TYPES = [
    (bool, pl.Boolean), (int, pl.Int64), (float | None, pl.Float64 | None), (str, pl.String),
    (["good", "bad"], LABELLED), (list[int], pl.List(pl.Int64)), (Literal["good", "bad"], LABELLED),
]  # fmt: skip


@pytest.mark.parametrize(("given", "dtype"), TYPES, ids=str)
def test_a_python_type_is_its_polars_type_as_a_reply_or_a_field(given, dtype):
    """A type alone is the field `reply` of an object and of the results; in a dict it is any field."""
    polars = compile_returns(dtype)  # as recorded in tests/golden
    for returns, single in ((given, True), ({"reply": given}, False)):
        found = compile_returns(returns)
        assert (found.columns, found.json_schema) == (polars.columns, polars.json_schema)
        assert found.single == single


def of(kind):
    """Return a model with one field of a type."""
    return create_model("Model", value=(kind, ...))


NO_COLUMN = [
    ({f"f{n}": pl.Float64 | None for n in range(17)}, r"17 may be null.* 24 and 16"),
    (create_model("Optional", **{f"f{n}": (str, "") for n in range(25)}), "25 fields may be left out"),
    (of(dict[str, int]), "'value' has no type that a column can show"), (of(bytes), "no type"),
    (of(list[pydantic.SecretStr | None]), r"'value'\[\] has no type"),
    (of(int | str), "'value' may have several types"), (of(Literal["a", 1]), "several types"),
    (Words, "no named fields"), (of(type), "Model has no JSON schema"), (of(pydantic.ImportString), "Import"),
    (of(pydantic.NaiveDatetime), "Use datetime"), ({"a": pl.List(pl.Binary)}, r"field 'a'\[\] is Binary"),
    ({"a": pl.Struct({"b": pl.Binary})}, r"field 'a'\.b is Binary"), ({"a": pl.Struct([])}, "is Struct"),
    ({"a": pl.Decimal}, r"pl\.Decimal\(scale=2\)"), ({"a": "String"}, "returns= takes"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "words"), NO_COLUMN, ids=str)
def test_what_no_column_can_hold_is_refused(given, words):
    """Each type without a JSON schema or a column is a BadReturns that names the field or the model."""
    with pytest.raises(BadReturns, match=words):
        compile_returns(given)
