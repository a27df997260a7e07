"""Typed replies: the schema that ``returns=`` asks of the model, and typed columns from reply texts.

Polars types and pydantic models take the same path: every type becomes a Python type, from which pydantic
makes a JSON schema. The API gets the schema with its references written out (so no recursion) and trimmed to
the keywords it takes. The columns are derived from the same schema. A reply that does not match is the error
of its row, never an exception.
"""

from __future__ import annotations

import enum
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, Union, get_args, get_origin

import polars as pl
from pydantic import AllowInfNan, BaseModel, Field, Strict, TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import to_json
from typing_extensions import TypedDict  # pydantic takes that of `typing` from Python 3.12 on

from claudescale.api.catalog import MESSAGE
from claudescale.errors import BadReturns

Json: TypeAlias = dict[str, Any]

INVALID_REPLY = "invalid_reply"  # the error of a row whose reply does not match ``returns=``
_SCALARS = (NoneType, bool, int, float, str, Decimal, date, datetime, time, timedelta)
"""Types that Polars takes into a column unchanged; anything else, such as a UUID or a URL, becomes text."""
_WHAT_THERE_IS = (
    "returns= takes a pydantic model or list[Model], labels such as ['yes', 'no'], bool, int, float, str, "
    "a dict of these such as {'label': ['yes', 'no'], 'score': float}, or a complete Polars type such as "
    "pl.Enum(['yes', 'no']), pl.Decimal(scale=2) or pl.List(pl.String)."
)

_KEYWORDS = ("type", "format", "minItems", "pattern", "const", "enum", "anyOf", "items")
"""Keywords of a JSON schema that the API takes, in the order in which they are sent."""
# Source: the set in anthropic 2.14.0, lib/_parse/_transform.py (checked 2026-11-29).
_FORMATS = ["date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"]
# The only values that the API takes for these keywords.
_VALUES: dict[str, list[Any]] = {"format": _FORMATS, "minItems": [0, 1]}
# What a pattern may not contain. Source: Anthropic, *Structured outputs*, patterns (checked 2026-09-02).
_COMPLEX = re.compile(r"\(\?|\\(?![dws])\w|[*+?}][+?]|\{\d*,?\d{3,}")
_COLUMN = "x-claudescale-column"  # marks a column's type, where the schema alone does not give it
_DIGITS = "digitsAfterThePoint"
_SILENT = {"title", "default", "additionalProperties", "discriminator", "writeOnly", "readOnly", _COLUMN}
_DTYPES: dict[str | None, pl.DataType] = {
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "string": pl.String(),
    "date": pl.Date(),
    "time": pl.Time(),
    "duration": pl.Duration("us"),
    "date-time": pl.Datetime("us", "UTC"),
}
"""Column types by the type in a JSON schema, or by the format of a string."""
_NO_TEXT = {"password", "regex", "binary", "base64", "base64url"}  # formats whose value a column cannot show
_UNREADABLE = {
    "ImportString": "has an ImportString: a reply must not choose what is imported. Use str.",
    "'validation_alias': ['": "has an AliasPath, which no reply can have. Leave it out.",
    "'tz_constraint': 'naive'": "has a NaiveDatetime, and the API's dates have an offset. Use datetime.",
}
"""Why no reply can fit a model, by words in pydantic's core schema."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Returns:
    """The form of a reply, for the API and for Polars, as made by `compile_returns`."""

    json_schema: Json  # with only the keywords that the API takes
    columns: pl.Schema  # the typed columns of the results; `reply` alone where one type was given
    single: bool  # True if one type was given: the reply itself is typed
    _validate: Callable[[str], Json] = field(repr=False)

    def decode(self, replies: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
        """Return the typed columns of reply texts, and the error of each row.

        A reply that is not JSON, breaks the schema, is rejected by a validator of the user's model, or
        does not fit its column gives nulls and the error "invalid_reply". Labels match regardless of case
        and surrounding spaces, because the API does not guarantee their case. A null reply gives nulls and
        no error.
        """
        texts = replies.cast(pl.String).alias("text").to_frame()
        distinct = texts.unique(maintain_order=True)  # replies such as labels repeat
        labels = self._labels()
        frame, errors = self._typed([self._read(text, labels) for text in distinct["text"]])
        numbered = distinct.with_row_index("number")
        joined = texts.join(numbered, on="text", how="left", nulls_equal=True, maintain_order="left")
        return frame[joined["number"]], pl.Series("error", errors, pl.String).gather(joined["number"])

    def example(self, reply: Any) -> str:
        """Return a reply as the model would write it; BadReturns where it does not match."""
        texts = [reply] if isinstance(reply, str) else []
        texts.append(to_json({"reply": reply} if self.single else reply, by_alias=True).decode())
        for text in texts:
            if self.decode(pl.Series([text]))[1].item() is None:
                return text
        msg = f"examples= has the reply {reply!r:.60}, which is not what returns= asks for: {self.columns}."
        raise BadReturns(msg)

    def _labels(self) -> dict[str, str]:
        """Return the labels by case-folded form, without those that share one."""
        labels = {
            label
            for node in nodes(self.json_schema)
            for label in node.get("enum", [node.get("const")])
            if isinstance(label, str)
        }
        forms = Counter(map(_form, labels))
        return {_form(label): label for label in labels if forms[_form(label)] == 1}

    def _read(self, text: str | None, labels: Mapping[str, str]) -> list[Any] | None:
        """Return the cells of a reply; None where it does not match."""
        if text is None:
            return [None] * len(self.columns)
        try:
            try:
                value = self._validate(text)
            except ValueError:
                value = self._validate(json.dumps(_recased(json.loads(text), labels)))
            return [_cell(value[name]) for name in self.columns]
        except Exception:  # noqa: BLE001  # a user's validator may raise anything
            return None

    def _typed(self, rows: list[list[Any] | None]) -> tuple[pl.DataFrame, list[str | None]]:
        """Return rows as typed columns, and an error for each row that is None or does not fit."""
        errors = [INVALID_REPLY if row is None else None for row in rows]
        try:
            columns = [
                pl.Series(name, [None if row is None else row[place] for row in rows], dtype, strict=True)
                for place, (name, dtype) in enumerate(self.columns.items())
            ]
            return pl.DataFrame(columns).cast(self.columns), errors
        except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
            if len(rows) == 1:
                return self._typed([None])
            half = len(rows) // 2  # bisect to find the row that does not fit
            (first, first_errors), (last, last_errors) = self._typed(rows[:half]), self._typed(rows[half:])
            return pl.concat([first, last]), first_errors + last_errors


def compile_returns(returns: Any) -> Returns:
    """Return the form of a reply, from types or a pydantic model; BadReturns where there is none.

    With Polars types every field is required and never null, unless written as ``pl.Float64 | None``.
    Decimals are rounded to their column's scale, and a `pl.Datetime` without a time zone is in UTC.

    With a pydantic model its own rules apply and its validators run on every reply. A constraint for which
    the API has no keyword (a minimum, a length, a complex pattern) is added to the field's description and
    checked when the reply is read. Columns are named after the fields; aliases are used for the API.

    Notes
    -----
    Limits: 24 optional fields, 16 union fields, no recursion, no constraint keywords.
    Source: platform.claude.com/docs, structured outputs (checked 2026-08-22).

    Examples
    --------
    >>> compile_returns(pl.Enum(["good", "bad"])).json_schema["properties"]
    {'reply': {'type': 'string', 'enum': ['good', 'bad']}}
    """
    single = False
    if isinstance(returns, type) and issubclass(returns, BaseModel):
        hint: Any = returns
    elif isinstance(returns, Mapping) and returns:
        hint = _object({str(name): _hint(kind, f"field {name!r}") for name, kind in returns.items()})
    else:
        single = True
        hint = _object({"reply": _hint(returns, "the type")})
    path = f"the model {hint.__name__}"
    try:
        adapter = TypeAdapter(hint)
        # The API sees aliases; the columns take the field names in the same tree.
        by_alias, by_name = (
            _resolved(adapter.json_schema(by_alias=by_alias, schema_generator=_Generator))
            for by_alias in (True, False)
        )
    except (PydanticInvalidForJsonSchema, PydanticUserError) as error:
        _refuse(path, f"has no JSON schema: {error.message}")
    for words, why in _UNREADABLE.items():
        if words in repr(adapter.core_schema):
            _refuse(path, why)
    if not by_name.get("properties"):
        _refuse(path, "has no named fields, so it would make no columns. Give it a field.")
    columns = {name: _dtype(node, f"field {name!r}") for name, node in by_name["properties"].items()}

    def validate(text: str) -> Json:
        value = adapter.validator.validate_json(text)
        return adapter.serializer.to_python(value, by_alias=False, warnings=False)  # type: ignore[no-any-return]

    json_schema = _within_limits(_trimmed(by_alias))
    return Returns(json_schema=json_schema, columns=pl.Schema(columns), single=single, _validate=validate)


def _recased(value: Any, labels: Mapping[str, str]) -> Any:
    """Return a reply with each text replaced by the label that differs from it only in case or spaces."""
    if isinstance(value, str):
        return labels.get(_form(value), value)
    if isinstance(value, list):
        return [_recased(item, labels) for item in value]
    if isinstance(value, dict):
        return {name: _recased(part, labels) for name, part in value.items()}
    return value


def _form(label: str) -> str:
    """Return the form of a label that ignores case and outer spaces."""
    return label.strip().casefold()


def _cell(value: Any) -> Any:
    """Return a validated value in a form that Polars takes."""
    if type(value) in _SCALARS:  # the usual case first
        return value
    if isinstance(value, dict):
        return {name: _cell(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_cell(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    return value if isinstance(value, _SCALARS) else str(value)


def _refuse(path: str, what: str) -> NoReturn:
    """Raise the `BadReturns` for one field."""
    msg = f"returns=: {path} {what}"
    raise BadReturns(msg)


# --------------------------------------------------------------------------- every type as a Python type


@dataclass(frozen=True)
class _Column:
    """Marks a type with its column type, where the JSON schema alone does not give it."""

    dtype: pl.DataType

    def __get_pydantic_json_schema__(self, core_schema: Any, handler: Any) -> Json:
        digits = {_DIGITS: self.dtype.scale} if isinstance(self.dtype, pl.Decimal) else {}
        schema: Json = handler(core_schema)
        return schema | digits | {_COLUMN: self.dtype}


def _object(hints: Mapping[str, Any]) -> Any:
    """Return the type of a dict with these keys, which may be any strings."""
    return TypedDict("Reply", hints)  # type: ignore[operator]  # mypy takes it only as a declaration


def _hint(kind: Any, path: str) -> Any:
    """Return the type of a field as a Python type that pydantic takes."""
    if isinstance(kind, list | tuple) and kind and all(isinstance(label, str) for label in kind):
        return Literal[tuple(kind)]
    if kind is NoneType or get_origin(kind) in {Literal, list}:
        return kind
    if get_origin(kind) in {Union, UnionType}:
        return Union[tuple(_hint(option, path) for option in get_args(kind))]  # noqa: UP007
    hint = None
    if kind is not pl.Decimal:  # its scale would be zero
        with suppress(TypeError):
            hint = _polars_hint(pl.Series(dtype=kind).dtype, path)
    if hint is None:
        _refuse(path, f"is {kind!r:.60}, which cannot be used. {_WHAT_THERE_IS}")
    return hint


def _polars_hint(dtype: pl.DataType, path: str) -> Any:  # noqa: PLR0911  # one for each kind of type
    """Return the Python type of the values in a column; None where JSON has none."""
    match dtype:
        case pl.DataType() if dtype.is_temporal() or dtype in (pl.String, pl.Categorical, pl.Boolean):
            return Annotated[dtype.to_python(), Strict(), _Column(dtype)]
        case pl.Enum() if len(dtype.categories):
            return Literal[tuple(dtype.categories)]
        case pl.Decimal():
            return Annotated[Decimal, _Column(dtype)]
        case pl.Struct() if dtype.fields:
            return _object({field.name: _hint(field.dtype, f"{path}.{field.name}") for field in dtype.fields})
        case pl.List():
            return GenericAlias(list, _hint(dtype.inner, f"{path}[]"))
        case pl.Array(size=size):
            items = GenericAlias(list, _hint(dtype.inner, f"{path}[]"))
            return Annotated[items, Field(min_length=size, max_length=size), _Column(dtype)]
        case pl.DataType() if dtype.is_float():
            return Annotated[float, AllowInfNan(allow_inf_nan=False), _Column(dtype)]
        case pl.DataType() if dtype.is_integer():
            number: Any = dtype
            low, high = pl.select(low=number.min(), high=number.max()).row(0)
            # Bounds go into the description and cost tokens: keep those that a count or score may reach.
            small = high < 2**16
            bounds = Field(ge=low if low == 0 or small else None, le=high if small else None)
            return Annotated[int, bounds, _Column(dtype)]
    return None


# ----------------------------------------------------------------------- the JSON schema and its columns


class _Generator(GenerateJsonSchema):
    """Pydantic's JSON schema, with decimals as numbers that carry their scale."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def decimal_schema(self, schema: Any) -> Json:
        number: Json = super().decimal_schema(schema)["anyOf"][0]
        places = schema.get("decimal_places")
        digits = {} if places is None else {_DIGITS: places}
        return number | digits | {_COLUMN: pl.Decimal(38, places or 10)}


def _resolved(schema: Json) -> Json:
    """Return a JSON schema with every reference written out; a recursive model is refused."""

    def written_out(node: Any, inside: tuple[str, ...] = ()) -> Any:
        if isinstance(node, list):
            return [written_out(item, inside) for item in node]
        if not isinstance(node, dict):
            return node
        while "$ref" in node:
            name = node["$ref"].removeprefix("#/$defs/")
            if name in inside:
                _refuse(f"the model {name}", "contains itself, and the API takes no recursive schema.")
            beside = {key: value for key, value in node.items() if key != "$ref"}
            inside, node = (*inside, name), schema["$defs"][name] | beside
        return {
            "anyOf" if key == "oneOf" else key: written_out(value, inside)
            for key, value in node.items()
            if key != "$defs"
        }

    return written_out(schema)  # type: ignore[no-any-return]


def _dtype(node: Json, path: str) -> pl.DataType:
    """Return the type of a column for the values of a schema."""
    if _COLUMN in node:
        return node[_COLUMN]  # type: ignore[no-any-return]
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    labels = [label for label in node.get("enum", [node.get("const")]) if label is not None]
    if len(options) == 1:
        return _dtype(options[0], path)
    if options or len({type(label) for label in labels}) > 1:
        _refuse(path, "may have several types, and a column has one. Choose one, or str.")
    if labels:
        return pl.Enum(labels) if isinstance(labels[0], str) else pl.Series(labels).dtype
    if node.get("items"):
        return pl.List(_dtype(node["items"], f"{path}[]"))
    if node.get("properties"):
        parts = node["properties"].items()
        return pl.Struct({name: _dtype(part, f"{path}.{name}") for name, part in parts})
    kind, text_format = node.get("type"), node.get("format")
    dtype = _DTYPES.get(text_format, _DTYPES.get(kind))
    if dtype is None or text_format in _NO_TEXT or "contentMediaType" in node:
        _refuse(path, "has no type that a column can show. Use str, list[str], or a nested model.")
    return dtype


# ------------------------------------------------------------------------------- the API's JSON schema


def nodes(schema: Json) -> Iterator[Json]:
    """Yield a schema and every schema inside it."""
    yield schema
    items = [schema["items"]] if "items" in schema else []
    for inner in (*schema.get("anyOf", ()), *schema.get("properties", {}).values(), *items):
        yield from nodes(inner)


def _within_limits(schema: Json) -> Json:
    """Return the schema; BadReturns where it has more optional or union fields than the API takes."""
    every = list(nodes(schema))
    optional = sum(len(node["properties"]) - len(node["required"]) for node in every if "properties" in node)
    unions = sum("anyOf" in node for node in every)
    most_optional, most_unions = MESSAGE.schema_optional_parameters, MESSAGE.schema_union_parameters
    if optional > most_optional or unions > most_unions:
        _refuse(
            f"{optional} fields may be left out and {unions} may be null or of several types:",
            f"the API takes {most_optional} and {most_unions}. "
            "Give some no default, or a label 'unknown' for null.",
        )
    return schema


def _trimmed(node: Json) -> Json:
    """Return a schema with only the API's keywords; the others become words in the description."""
    rest = {key: value for key, value in node.items() if key not in _SILENT}
    description = rest.pop("description", "")
    sent = {key: rest.pop(key) for key in _KEYWORDS if key in rest and _is_taken(key, rest[key])}
    if "anyOf" in sent:
        sent["anyOf"] = [_trimmed(option) for option in sent["anyOf"]]
    if "items" in sent:
        sent["items"] = _trimmed(sent["items"])
    if sent.get("type") == "object":
        sent["properties"] = {name: _trimmed(part) for name, part in rest.pop("properties").items()}
        sent["required"] = rest.pop("required", [])
        sent["additionalProperties"] = False
    if rest:
        words = ", ".join(_in_words(key, value) for key, value in rest.items())
        description = f"{description} ({words})".strip()
    return sent | ({"description": description} if description else {})


def _is_taken(key: str, value: Any) -> bool:
    """Whether the API takes this value for a keyword."""
    if key == "pattern":
        return not _COMPLEX.search(value)
    return value in _VALUES.get(key, [value])


def _in_words(key: str, value: object) -> str:
    """Return a keyword and its value as words: ``max length: 5``."""
    name = re.sub("([A-Z])", lambda letter: f" {letter[0].lower()}", key)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return f"{name}: {text}"
