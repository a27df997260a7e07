"""returns= to a JSON schema the API takes, and to the Polars types of the columns."""

import enum
import json
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Literal
from uuid import UUID

import polars as pl
import pytest
from pydantic import (
    AliasPath,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    ImportString,
    Json,
    NaiveDatetime,
    RootModel,
    SecretStr,
    create_model,
)
from pydantic.json_schema import SkipJsonSchema

from claudescale.errors import BadReturns
from claudescale.prompts.replies import compile_returns, nodes

TAKEN = {"pattern", "type", "description", "format", "minItems", "const", "enum", "anyOf", "items"}
TAKEN_OF_OBJECTS = {"type", "description", "properties", "required", "additionalProperties"}


class Size(enum.Enum):
    SMALL = "small"
    LARGE = "large"


class Part(BaseModel):
    """One part of the order."""

    name: str
    count: int = Field(ge=1, le=99, description="How many")


PART = pl.Struct({"name": pl.String, "count": pl.Int64})
ORDER = {
    "size": (Size, pl.Enum(["small", "large"])),
    "sure": (Literal["yes"], pl.Enum(["yes"])),
    "level": (Literal[1, 2, 3], pl.Int64()),
    "parts": (list[Part], pl.List(PART)),
    "first": (Annotated[Part, Field(description="The first one named")], PART),
    "spare": (Part | None, PART),
    "price": (Annotated[Decimal, Field(decimal_places=2, ge=0)], pl.Decimal(38, 2)),
    "weight": (Decimal, pl.Decimal(38, 10)),
    "sent": (date, pl.Date()),
    "at": (datetime, pl.Datetime("us", "UTC")),
    "here": (NaiveDatetime, pl.Datetime("us")),
    "there": (AwareDatetime, pl.Datetime("us", "UTC")),
    "took": (timedelta, pl.Duration("us")),
    "code": (Annotated[str, Field(pattern="^[A-Z]+$", min_length=2, max_length=5)], pl.String()),
    "word": (Annotated[str, Field(pattern=r"\bA")], pl.String()),
    "ident": (UUID, pl.String()),
    "tags": (Annotated[list[str], Field(min_length=1)], pl.List(pl.String)),
    "two": (Annotated[list[str], Field(min_length=2)], pl.List(pl.String)),
    "seen": (set[int], pl.List(pl.Int64)),
    "number": (int | float, pl.Float64()),
    "customer": (Annotated[str, Field(alias="customer-name", examples=["Ann"])], pl.String()),
}
Order = create_model("Order", note=(str, ""), **{name: (hint, ...) for name, (hint, _) in ORDER.items()})


def test_a_model_becomes_columns_of_polars_types():
    """Each annotation has its Polars type, under the name of the field and not its alias."""
    dtypes = {name: dtype for name, (_, dtype) in ORDER.items()}
    assert compile_returns(Order).columns == pl.Schema({"note": pl.String(), **dtypes})


def test_the_schema_has_only_what_the_api_takes():
    """Every keyword at every depth is one of the API's, references are written out, objects are closed."""
    for schema in (compile_returns(Order).json_schema, compile_returns(EVERY_TYPE).json_schema):
        for node in nodes(schema):
            if node.get("type") == "object":
                assert set(node) <= TAKEN_OF_OBJECTS
                assert node["additionalProperties"] is False
                assert set(node["required"]) <= set(node["properties"])
            else:
                assert set(node) <= TAKEN
        assert json.loads(json.dumps(schema)) == schema


def test_what_the_api_has_no_keyword_for_is_told():
    """Bounds, lengths and patterns stand in the description, after the user's own words."""
    fields = compile_returns(Order).json_schema["properties"]
    assert fields["first"]["description"] == "The first one named"
    assert fields["parts"]["items"]["description"] == "One part of the order."
    told = fields["parts"]["items"]["properties"]["count"]["description"]
    assert told.startswith("How many (")
    assert "minimum: 1" in told
    assert "maximum: 99" in told
    assert fields["code"]["pattern"] == "^[A-Z]+$"
    assert r"pattern: \bA" in fields["word"]["description"]
    assert "max length: 5" in fields["code"]["description"]
    assert "min items: 2" in fields["two"]["description"]
    assert fields["tags"]["minItems"] == 1
    assert "digits after the point: 2" in fields["price"]["description"]
    assert '["Ann"]' in fields["customer-name"]["description"]
    assert set(fields) - set(compile_returns(Order).json_schema["required"]) == {"note"}  # it has a default
    assert {"type": "null"} in fields["spare"]["anyOf"]


EVERY_TYPE = {
    "string": pl.String,
    "categorical": pl.Categorical,
    "label": pl.Enum(["a", "b"]),
    **{str(kind): kind for kind in (pl.Int8, pl.Int128, pl.UInt8, pl.UInt128, pl.Float16)},
    "datetime": pl.Datetime("ms"),
    "duration": pl.Duration,
    "matrix": pl.Array(pl.Int64, (2, 3)),
    "struct": pl.Struct({"a": pl.String, "b": pl.List(pl.Struct({"c": pl.Date}))}),
    "nullable": pl.Float64 | None,
}


def test_polars_types_stay_as_given():
    """The columns have the types that were asked for, as class or as instance; every field is required."""
    returns = compile_returns(EVERY_TYPE)
    instances = {"categorical": pl.Categorical(), "duration": pl.Duration("us"), "nullable": pl.Float64}
    assert returns.columns == pl.Schema(EVERY_TYPE | instances)
    assert returns.columns == compile_returns(returns.columns).columns
    assert returns.json_schema["required"] == list(returns.columns) == list(EVERY_TYPE)


def test_labels_may_be_a_field():
    """In a dict, a list of labels or a Literal is what the same Enum of Polars would be."""
    enum = pl.Enum(["yes", "no"])
    meant = compile_returns({"a": enum, "b": enum, "score": pl.Float64})
    given = compile_returns({"a": ["yes", "no"], "b": Literal["yes", "no"], "score": float})
    assert (given.json_schema, given.columns) == (meant.json_schema, meant.columns)


@pytest.mark.parametrize(
    ("given", "dtype", "node"),
    [
        (bool, pl.Boolean, {"type": "boolean"}),
        (int, pl.Int64, {"type": "integer"}),
        (float, pl.Float64, {"type": "number"}),
        (str, pl.String, {"type": "string"}),
        (["good", "bad"], pl.Enum(["good", "bad"]), {"type": "string", "enum": ["good", "bad"]}),
        (Literal["good", "bad"], pl.Enum(["good", "bad"]), {"type": "string", "enum": ["good", "bad"]}),
        (Literal[1, 2], pl.Int64, {"type": "integer", "enum": [1, 2]}),
        (list[int], pl.List(pl.Int64), {"type": "array", "items": {"type": "integer"}}),
        (pl.Enum(["a"]), pl.Enum(["a"]), {"type": "string", "const": "a"}),
        (pl.UInt64, pl.UInt64, {"type": "integer", "description": "(minimum: 0)"}),
        (pl.Datetime("us"), pl.Datetime("us"), {"type": "string", "format": "date-time"}),
        (pl.Float64 | None, pl.Float64, {"anyOf": [{"type": "number"}, {"type": "null"}]}),
    ],
    ids=str,
)
def test_a_type_is_a_reply_of_its_own(given, dtype, node):
    """A Python or Polars type is the one field `reply` of an object, and of the results, in its type."""
    returns = compile_returns(given)
    assert returns.single
    assert returns.columns == pl.Schema({"reply": dtype})
    assert returns.json_schema == {
        "type": "object",
        "properties": {"reply": node},
        "required": ["reply"],
        "additionalProperties": False,
    }


def test_a_list_of_models_is_a_column_of_structs():
    """Several objects in one reply; its own rules hold for each."""
    returns = compile_returns(list[Part])
    assert returns.columns == pl.Schema({"reply": pl.List(pl.Struct({"name": pl.String, "count": pl.Int64}))})
    texts = [
        '{"reply":[{"name":"a","count":1},{"name":"b","count":2}]}',
        '{"reply":[{"name":"a","count":0}]}',
    ]
    found, errors = returns.decode(pl.Series([*texts, '{"reply":[]}']))
    assert errors.to_list() == [None, "invalid_reply", None]
    assert found["reply"].to_list() == [[{"name": "a", "count": 1}, {"name": "b", "count": 2}], None, []]


class Tree(BaseModel):
    branches: list["Tree"]


class Words(RootModel[list[str]]):
    pass


def of(kind):
    """Return a model with one field of a type."""
    return create_model("Model", value=(kind, ...))


BY_NAME = ConfigDict(validate_by_alias=False, validate_by_name=True)
# fmt: off
NO_COLUMN = [
    (Tree, "Tree contains itself"), (of(dict[str, int]), "'value' is a dict with free keys.*nested model"),
    (of(object), "'value' has no type"), (of(list), r"is a list of items without a type.*list\[str\]"),
    (of(int | str), "'value' may have several types"), (of(Literal["a", 1]), "labels of several types"),
    (of(bytes), "'value' is bytes"), (of(None), "can only be null"), (Words, "no named fields"),
    (create_model("Empty"), "no named fields"), (of(type), "Model has no JSON schema"),
    (Size, r"returns=pl\.Enum\(Size\)"), ({}, "returns= takes a pydantic model"), (7, "returns= takes"),
    ({"a": pl.Null}, "field 'a' is Null"), ({"a": pl.List(pl.Binary)}, r"field 'a'\[\] is Binary"),
    ({"a": pl.Struct({"b": pl.Binary})}, r"field 'a'\.b is Binary"), ({"a": pl.Struct([])}, "is Struct"),
    ({"a": pl.Enum}, r"Write pl\.Enum\(\['yes', 'no'\]\)"), ({"a": pl.Enum([])}, "field 'a' is Enum"),
    ({"a": pl.Decimal}, r"Write pl\.Decimal\(scale=2\)"), ({"a": "String"}, "not a complete Polars type"),
    ({1: pl.String}, "not named by a string"), (pl.Int64 | pl.String | None, "a column has one type"),
    (of(list[SecretStr | None]), "is secret"), (of(ImportString), "ImportString"),
    (of(Json[int]), "JSON inside a text"),
    (create_model("Skipped", a=(int, ...), b=(SkipJsonSchema[int], ...)), "reads 'b'"),
    (of(Annotated[int, Field(validation_alias=AliasPath("a", "b"))]), r"reads 'a\.b'.*AliasPath"),
    (of(list[create_model("Inner", a=(int, Field(alias="b")), __config__=BY_NAME)]), "reads 'value.0.a'"),
]
# fmt: on


@pytest.mark.parametrize(("given", "words"), NO_COLUMN, ids=str)
def test_what_no_column_can_hold_is_refused(given, words):
    """Each type without a JSON schema or a column is a BadReturns that names the field."""
    with pytest.raises(BadReturns, match=words):
        compile_returns(given)


def test_the_limits_of_the_api_hold():
    """24 optional fields and 16 unions pass; one more is refused with what to do."""
    nullable = {f"f{n}": pl.Float64 | None for n in range(17)}
    optional = {f"f{n}": (str, "") for n in range(25)}
    with pytest.raises(BadReturns, match=r"17 fields may be null.*API takes 16"):
        compile_returns(nullable)
    with pytest.raises(BadReturns, match=r"25 fields may be left out.*API takes 24"):
        compile_returns(create_model("Optional", **optional))
    del nullable["f16"], optional["f24"]
    assert compile_returns(nullable)
    assert compile_returns(create_model("Optional", **optional))
