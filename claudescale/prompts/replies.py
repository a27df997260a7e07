"""Typed replies: what ``returns=`` asks of the model, and reply texts as typed columns.

Polars types and pydantic models take one way: pydantic's own JSON schema, its references written out
(no recursion), trimmed to the keywords the API takes. A reply that is not what was asked for is its row's
error, never an exception.
"""

from __future__ import annotations

import decimal
import enum
import json
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, NoReturn, TypeAlias, get_args, get_origin
from zoneinfo import ZoneInfo

import polars as pl

from claudescale.api.catalog import MESSAGE
from claudescale.errors import BadReturns

if TYPE_CHECKING:
    from pydantic.json_schema import GenerateJsonSchema

_PYTHON_TYPES = (bool, int, float, str)
INVALID_REPLY = "invalid_reply"  # the error of a row whose reply is not what ``returns=`` asks for
_WHAT_THERE_IS = (
    "returns= takes a pydantic model or list[Model], labels such as ['yes', 'no'], bool, int, float, str, "
    "a dict of these such as {'label': ['yes', 'no'], 'score': float}, or a Polars type."
)


Json: TypeAlias = dict[str, Any]
Typed: TypeAlias = "tuple[Json, pl.Schema, Callable[[str], Any]]"
"""The API's JSON schema, the columns, and what validates the text of a reply."""

# Source: the set in anthropic 2.14.0, lib/_parse/_transform.py (checked 2026-11-29).
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
# What a pattern may not have. Source: Anthropic, *Structured outputs*, patterns (checked 2026-09-02).
_COMPLEX = re.compile(r"\(\?|\\(?![dws])\w|[*+?}][+?]|\{\d*,?\d{3,}")
_SILENT = {"title", "default", "additionalProperties", "discriminator", "writeOnly", "readOnly"}
_SCALARS: dict[str, pl.DataType] = {
    "integer": pl.Int64(),
    "number": pl.Float64(),
    "boolean": pl.Boolean(),
    "string": pl.String(),
}
_TEMPORAL: dict[str, pl.DataType] = {"date": pl.Date(), "time": pl.Time(), "duration": pl.Duration("us")}
_NO_COLUMN = {
    "object": "is a dict with free keys. Give it named fields, as in a nested model.",
    "array": "is a list of items without a type. Write list[str], or a list of a nested model.",
    "null": "can only be null.",
}
_CORES: dict[type[pl.DataType], str] = {
    pl.String: "str",
    pl.Categorical: "str",
    pl.Boolean: "bool",
    pl.Date: "date",
    pl.Datetime: "datetime",
    pl.Time: "time",
    pl.Duration: "timedelta",
}
_COMPLETE = {
    "Enum": "pl.Enum(['yes', 'no'])",
    "List": "pl.List(pl.String)",
    "Array": "pl.Array(pl.Float64, 3)",
    "Struct": "pl.Struct({'name': pl.String})",
    "Decimal": "pl.Decimal(scale=2)",
}
_UNREADABLE = {
    "password": "is secret, so it hides its value: the column would hold stars. Use str.",
    "application/json": "is JSON inside a text. Give the type itself, without Json.",
    "regex": "is a compiled pattern, which no column holds. Use str.",
    **dict.fromkeys(("binary", "base64", "base64url"), "is bytes, for which there is no JSON. Use str."),
}
"""By format or media type of a text: why no column can show the value."""
_DTYPE = "x-claudescale-dtype"
_DECIMAL_SCALE = 10
_TOLD_BITS = 16
Fit: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Returns:
    """What a reply must be, for the API and for Polars. `compile_returns` makes it."""

    json_schema: Json  # only keywords the API takes
    columns: pl.Schema  # the typed columns of the results; `reply` alone where one type was given
    single: bool  # one type was given: the reply itself is typed
    _validate: Fit = field(repr=False)

    def decode(self, replies: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
        """Return the typed columns of reply texts, and the error of each row.

        A reply that is no JSON, breaks the schema, is refused by a validator of the user's model, or
        does not fit its column gives nulls and the error "invalid_reply". Labels are compared without
        regard to capitals and to spaces around them: the API does not promise the capitals. A null
        reply gives nulls and no error.
        """
        texts = replies.cast(pl.String).alias("text").to_frame()
        distinct = texts.unique(maintain_order=True)  # labels and the like: each text is read once
        frame, error = self._decode(distinct["text"])
        numbered = distinct.with_row_index("place")
        places = texts.join(numbered, on="text", how="left", nulls_equal=True, maintain_order="left")["place"]
        return frame[places], error.gather(places)

    def example(self, reply: Any) -> str:
        """Return a reply as the model would write it; BadReturns where it is not what was asked for."""
        from pydantic_core import to_json  # noqa: PLC0415 - needed for typed examples only

        texts = [reply] if isinstance(reply, str) else []
        texts.append(to_json({"reply": reply} if self.single else reply, by_alias=True).decode())
        for text in texts:
            if self.decode(pl.Series([text]))[1].item() is None:
                return text
        msg = f"examples= has the reply {reply!r:.60}, which is not what returns= asks for: {self.columns}."
        raise BadReturns(msg)

    def _decode(self, texts: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
        fits = [(name, _fit(dtype)) for name, dtype in self.columns.items()]
        labelled = any("enum" in node or "const" in node for node in nodes(self.json_schema))
        rows: list[tuple[Any, ...] | None] = []
        for text in texts:
            row: tuple[Any, ...] | None = (None,) * len(fits)
            if text is not None:
                try:
                    value = self._read(text, labelled=labelled)
                    row = tuple([fit(_part(value, name)) for name, fit in fits])
                except Exception:  # noqa: BLE001  # a validator of the user's may raise anything; it is data
                    row = None
            rows.append(row)
        frame, errors = self._held(rows)
        return frame, pl.Series("error", errors, pl.String)

    def _held(self, rows: list[tuple[Any, ...] | None]) -> tuple[pl.DataFrame, list[str | None]]:
        """Return rows as typed columns; one that a column cannot hold, as a number too large, is an error."""
        try:
            columns = [
                pl.Series(name, [row and row[place] for row in rows], dtype, strict=True)
                for place, (name, dtype) in enumerate(self.columns.items())
            ]
            errors = [INVALID_REPLY if row is None else None for row in rows]
            return pl.DataFrame(columns).cast(self.columns), errors
        except (pl.exceptions.PolarsError, TypeError, OverflowError):
            if len(rows) == 1:
                return self._held([None])
            half = len(rows) // 2
            (first, before), (last, after) = self._held(rows[:half]), self._held(rows[half:])
            return pl.concat([first, last]), before + after

    def _read(self, text: str, *, labelled: bool) -> Any:
        try:
            return self._validate(text)
        except ValueError:
            if not labelled:
                raise
            return self._validate(json.dumps(_recased(json.loads(text), self.json_schema)))


def compile_returns(returns: object) -> Returns:
    """Return what a reply must be, from types or a pydantic model; BadReturns where it cannot be.

    With Polars types every field is required and never null; in a dict, ``pl.Float64 | None`` is a field
    that may be null. Decimals are rounded to their column's scale, a `pl.Datetime` without time zone keeps
    the clock time and drops the offset.

    With a pydantic model its own rules hold and its validators run on every reply. A constraint the API
    has no keyword for (a minimum, a length, a pattern that is not simple) stands in the field's description
    and is checked when the reply is read. Columns are named after the fields; aliases are for the API.

    Notes
    -----
    Limits: 24 optional fields, 16 union fields, no recursion, no constraint keywords.
    Source: platform.claude.com/docs, structured outputs (checked 2026-08-22).

    Examples
    --------
    >>> compile_returns(pl.Enum(["good", "bad"])).json_schema["properties"]
    {'reply': {'type': 'string', 'enum': ['good', 'bad']}}
    """
    returns = _enum(returns) if isinstance(returns, list | tuple) else returns
    kind = returns if isinstance(returns, type) else type(returns)
    annotated = get_origin(returns) in {Literal, list}
    single = annotated or issubclass(kind, pl.DataType | UnionType) or returns in _PYTHON_TYPES
    if annotated:
        typed = of_annotation(returns)
    elif single:
        typed = of_types({"reply": returns}, "the type")
    elif isinstance(returns, Mapping) and returns:
        typed = of_types({name: _enum(given) for name, given in returns.items()}, "field {!r}")
    elif isinstance(returns, type) and hasattr(returns, "model_json_schema"):
        typed = of_model(returns)
    else:
        shown = returns.__name__ if isinstance(returns, type) else f"{returns!r:.60}"
        is_enum = isinstance(returns, type) and issubclass(returns, enum.Enum)
        hint = f"For this class: returns=pl.Enum({shown}). " if is_enum else ""
        msg = f"returns={shown} cannot be used. {hint}{_WHAT_THERE_IS}"
        raise BadReturns(msg)
    json_schema, columns, validate = typed
    return Returns(json_schema=json_schema, columns=columns, single=single, _validate=validate)


def _enum(given: Any) -> Any:
    """Return labels, in a list or a Literal, as Polars' type for them; anything else as it is."""
    labels = get_args(given) if get_origin(given) is Literal else given
    several = isinstance(labels, list | tuple) and labels and all(isinstance(label, str) for label in labels)
    return pl.Enum([*dict.fromkeys(labels)]) if several else given


def _recased(value: Any, schema: Json) -> Any:
    """Return the value with each label as the schema writes it, if only capitals or spaces differ."""
    for option in schema.get("anyOf", ()):
        value = _recased(value, option)
    if isinstance(value, str):
        labels = [schema["const"]] if "const" in schema else schema.get("enum", ())
        alike = [label for label in labels if isinstance(label, str) and _plain(label) == _plain(value)]
        return alike[0] if len(alike) == 1 else value
    if isinstance(value, list) and "items" in schema:
        return [_recased(item, schema["items"]) for item in value]
    if isinstance(value, dict):
        known = schema.get("properties", {})
        return {name: _recased(part, known.get(name, {})) for name, part in value.items()}
    return value


def _plain(label: str) -> str:
    return label.strip().casefold()


def _part(value: Any, name: str) -> Any:
    return value.get(name) if isinstance(value, dict) else getattr(value, name)


# ----------------------------------------------- from a validated value to what fits a column, or an error


def _fit(dtype: pl.DataType) -> Fit:
    """Return what makes a value fit a column of this type; it raises where that cannot be."""
    fit = _made(dtype)

    def fitted(value: Any) -> Any:
        if isinstance(value, enum.Enum):
            value = value.value
        elif getattr(value, "__pydantic_root_model__", False):
            value = value.root
        return None if value is None else fit(value)

    return fitted


def _made(dtype: Any) -> Fit:  # noqa: PLR0911 - one for each kind of type
    """Return what makes a value fit, where Polars is not strict by itself: it checks the rest."""
    match dtype:
        case pl.Struct():
            parts = [(part.name, _fit(instance(part.dtype))) for part in dtype.fields]
            return lambda value: {name: fit(_part(value, name)) for name, fit in parts}
        case pl.List() | pl.Array():
            item = _fit(instance(dtype.inner))
            return lambda value: [item(part) for part in value]
        case pl.Enum():
            return {label: label for label in dtype.categories}.__getitem__
        case pl.Decimal():
            context = decimal.Context(prec=dtype.precision, traps=[decimal.InvalidOperation])
            unit = decimal.Decimal(1).scaleb(-dtype.scale)
            return lambda value: decimal.Decimal(value).quantize(unit, context=context)
        case pl.Float16() | pl.Float32():  # where a number too large would be infinite
            code = "<e" if isinstance(dtype, pl.Float16) else "<f"
            return lambda value: struct.unpack(code, struct.pack(code, value))[0]
        case pl.Datetime():
            zone = ZoneInfo(dtype.time_zone) if dtype.time_zone else None
            return lambda value: _moment(value, zone)
        case pl.String() | pl.Categorical():
            return str
    return lambda value: value


def _moment(value: datetime, zone: ZoneInfo | None) -> datetime:
    if zone is None:
        return value.replace(tzinfo=None)
    return (value if value.tzinfo else value.replace(tzinfo=zone)).astimezone(UTC)


# ------------------------------------------------------------ JSON schemas and Polars types of `returns`


def refuse(path: str, what: str) -> NoReturn:
    """Raise the `BadReturns` for one field."""
    msg = f"returns=: {path} {what}"
    raise BadReturns(msg)


def instance(dtype: Any) -> pl.DataType:
    """Return the Polars type itself where its class was given."""
    return dtype() if isinstance(dtype, type) else dtype  # type: ignore[no-any-return]


def integer_bounds(dtype: pl.DataType) -> tuple[int, int]:
    """Return the least and the greatest number an integer type holds."""
    bits = int(str(dtype).removeprefix("U").removeprefix("Int"))
    return (0, 2**bits - 1) if dtype.is_unsigned_integer() else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def nodes(schema: Json) -> Iterator[Json]:
    """Yield a schema and every schema inside it."""
    yield schema
    for inner in (*schema.get("anyOf", ()), *schema.get("properties", {}).values()):
        yield from nodes(inner)
    if "items" in schema:
        yield from nodes(schema["items"])


# ------------------------------------------------------------------------------------ Polars types


def of_types(types: Mapping[Any, Any], what: str) -> Typed:
    """Return schema, columns and validator of named Polars types; `what` names one in messages."""
    from pydantic_core import SchemaValidator, core_schema  # noqa: PLC0415  # needed for typed replies only

    columns, fields = {}, {}
    for name, given in types.items():
        path = what.format(name)
        if not isinstance(name, str):
            refuse(path, "is not named by a string.")
        dtype, nullable = _dtype_given(given, path)
        core = _core(dtype, path)
        fields[name] = core_schema.typed_dict_field(core_schema.nullable_schema(core) if nullable else core)
        columns[name] = dtype
    schema = core_schema.typed_dict_schema(fields)
    wire = _wire(_generator()(by_alias=True).generate(schema))
    return wire, pl.Schema(columns), SchemaValidator(schema).validate_json


def _dtype_given(given: Any, path: str) -> tuple[pl.DataType, bool]:
    """Return a type that was given, and whether it may be null."""
    nullable = isinstance(given, UnionType) and type(None) in get_args(given)
    if isinstance(given, UnionType):
        kinds = [kind for kind in get_args(given) if kind is not type(None)]
        if len(kinds) != 1:
            refuse(path, f"is {given}: a column has one type. Choose one, or pl.String.")
        given = kinds[0]
    if any(given is kind for kind in (pl.Categorical, pl.Datetime, pl.Duration)):
        given = given()  # these have defaults that nobody is surprised by
    try:
        return pl.Schema({"field": given})["field"], nullable
    except TypeError:
        write = _COMPLETE.get(getattr(given, "__name__", ""), "one, such as pl.String")
        refuse(path, f"is {given!r:.60}, which is not a complete Polars type. Write {write}.")


def _core(dtype: pl.DataType, path: str) -> Any:  # noqa: PLR0911  # one for each kind of type
    """Return pydantic's core schema of a Polars type."""
    from pydantic_core import core_schema  # noqa: PLC0415

    if type(dtype) in _CORES:
        return getattr(core_schema, f"{_CORES[type(dtype)]}_schema")(strict=True)
    if isinstance(dtype, pl.Enum) and len(dtype.categories):
        return core_schema.literal_schema(dtype.categories.to_list())
    if isinstance(dtype, pl.Decimal):
        return core_schema.decimal_schema(allow_inf_nan=False, metadata={"scale": dtype.scale})
    if dtype.is_float():
        return core_schema.float_schema(allow_inf_nan=False)
    if dtype.is_integer():
        low, high = integer_bounds(dtype)
        # The bounds go into the description and cost tokens, so only those that a count or a score may meet.
        small = high < 2**_TOLD_BITS
        return core_schema.int_schema(ge=low if low == 0 or small else None, le=high if small else None)
    if isinstance(dtype, pl.Struct) and dtype.fields:
        inner = {field.name: _core(instance(field.dtype), f"{path}.{field.name}") for field in dtype.fields}
        fields = {name: core_schema.typed_dict_field(core) for name, core in inner.items()}
        return core_schema.typed_dict_schema(fields)
    if isinstance(dtype, (pl.List, pl.Array)):
        item = _core(instance(dtype.inner), f"{path}[]")
        size = dtype.size if isinstance(dtype, pl.Array) else None
        return core_schema.list_schema(item, min_length=size, max_length=size)
    refuse(path, f"is {dtype!r}, which JSON cannot hold. For free text use pl.String.")


# ---------------------------------------------------------------------------------- pydantic models


def of_annotation(hint: Any) -> Typed:
    """Return schema, columns and validator of one field `reply`, of such as ``list[Model]``."""
    from pydantic import create_model  # noqa: PLC0415

    return of_model(create_model("Reply", reply=(hint, ...)))


def of_model(model: Any) -> Typed:
    """Return schema, columns and validator of a pydantic model."""
    from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError  # noqa: PLC0415

    path = f"the model {model.__name__}"
    try:
        # By alias is what the API sees; by name, the same tree, is what the columns are called.
        wire, named = (
            model.model_json_schema(by_alias=by_alias, schema_generator=_generator())
            for by_alias in (True, False)
        )
    except (PydanticInvalidForJsonSchema, PydanticUserError) as error:
        msg = f"returns=: {path} has no JSON schema: {error.message}"
        raise BadReturns(msg) from error
    if "ImportString" in repr(model.__pydantic_core_schema__):
        refuse(path, "has an ImportString: a reply must not choose what is imported. Use str.")
    tree = _resolved(named, named.get("$defs", {}), ())
    if tree.get("type") != "object" or not tree.get("properties"):
        refuse(path, "has no named fields, so it would make no columns. Give it a field.")
    columns = {name: _dtype(node, f"field {name!r}") for name, node in tree["properties"].items()}
    schema = _wire(wire)
    _check_names(model, schema, path)
    return schema, pl.Schema(columns), model.model_validate_json


def _check_names(model: Any, schema: Json, path: str) -> None:
    """Refuse a field that the model reads under another name than the schema has: it would never be there."""
    from pydantic import ValidationError  # noqa: PLC0415

    errors: list[Any] = []
    try:
        model.model_validate(_sketch(schema))
    except ValidationError as error:
        errors = error.errors(include_url=False, include_context=False, include_input=False)
    except Exception:  # noqa: BLE001  # a validator of the user's, which has never seen a reply like this
        return
    if missing := next((error["loc"] for error in errors if error["type"] == "missing"), None):
        name = ".".join(map(str, missing))
        refuse(path, f"reads {name!r}, which no reply can have. Leave out its AliasPath, or the like.")


def _sketch(node: Json) -> Any:
    """Return a reply that has every field, with nothing in it."""
    if "anyOf" in node:
        return _sketch(node["anyOf"][0])
    if node.get("type") == "object":
        return {name: _sketch(part) for name, part in node["properties"].items()}
    return [_sketch(node["items"])] if "items" in node else None


@lru_cache(maxsize=1)
def _generator() -> type[GenerateJsonSchema]:
    from pydantic.json_schema import GenerateJsonSchema  # noqa: PLC0415

    class Generator(GenerateJsonSchema):
        """Pydantic's JSON schema, with a mark where it does not tell the Polars type."""

        ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

        def decimal_schema(self, schema: Any) -> Json:
            words = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}
            bounds: Json = {word: float(schema[key]) for key, word in words.items() if key in schema}
            places = schema.get("decimal_places", schema.get("metadata", {}).get("scale"))
            if places is not None:
                bounds["digitsAfterThePoint"] = places
            return {"type": "number", **bounds, _DTYPE: pl.Decimal(38, places or _DECIMAL_SCALE)}

        def datetime_schema(self, schema: Any) -> Json:
            if schema.get("tz_constraint") != "naive":
                return {"type": "string", "format": "date-time", _DTYPE: pl.Datetime("us", "UTC")}
            # The format "date-time" would force an offset, which such a field refuses.
            text = "Date and time as in 2026-01-31T09:30:00, without a time zone"
            return {"type": "string", "description": text, _DTYPE: pl.Datetime("us")}

        def timedelta_schema(self, schema: Any) -> Json:  # noqa: ARG002  # pydantic's signature
            return {"type": "string", "format": "duration"}

        def bytes_schema(self, schema: Any) -> Json:  # noqa: ARG002
            return {"type": "string", "format": "binary"}

    return Generator


def _resolved(node: Json, definitions: Json, inside: tuple[str, ...]) -> Json:
    """Return the schema with every reference written out; a model inside itself is refused."""
    if len(node.get("allOf", ())) == 1:
        node = node["allOf"][0] | {key: value for key, value in node.items() if key != "allOf"}
    found = {key: value for key, value in node.items() if key not in ("$ref", "$defs")}
    if "$ref" in node:
        name = node["$ref"].removeprefix("#/$defs/")
        if name in inside:
            refuse(f"the model {name}", "contains itself, and the API takes no recursive schema.")
        return _resolved(definitions[name], definitions, (*inside, name)) | found
    if "oneOf" in found:
        found["anyOf"] = found.pop("oneOf")
    if "anyOf" in found:
        found["anyOf"] = [_resolved(option, definitions, inside) for option in found["anyOf"]]
    if isinstance(found.get("items"), dict):
        found["items"] = _resolved(found["items"], definitions, inside)
    if "properties" in found:
        parts = found["properties"].items()
        found["properties"] = {name: _resolved(part, definitions, inside) for name, part in parts}
    return found


def _dtype(node: Json, path: str) -> pl.DataType:  # noqa: PLR0911  # one for each kind of schema
    """Return the type of a column that holds the values of a schema."""
    if _DTYPE in node:
        return instance(node[_DTYPE])
    kind, format_ = str(node.get("type")), str(node.get("format"))
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    if len(options) == 1:
        return _dtype(options[0], path)
    if options and {option.get("type") for option in options} == {"integer", "number"}:
        return pl.Float64()
    if options:
        refuse(path, "may have several types, and a column has one. Choose one, or str.")
    if "const" in node or "enum" in node:
        return _dtype_of_labels([node["const"]] if "const" in node else node["enum"], path)
    if why := _UNREADABLE.get(format_) or _UNREADABLE.get(str(node.get("contentMediaType"))):
        refuse(path, why)
    if kind in _SCALARS:
        return _TEMPORAL.get(format_, _SCALARS[kind])
    if kind == "array" and node.get("items"):
        return pl.List(_dtype(node["items"], f"{path}[]"))
    if kind == "object" and node.get("properties"):
        return pl.Struct({name: _dtype(part, f"{path}.{name}") for name, part in node["properties"].items()})
    refuse(path, _NO_COLUMN.get(kind, "has no type. Give it one, such as str."))


def _dtype_of_labels(labels: Sequence[object], path: str) -> pl.DataType:
    try:
        known = pl.Series([label for label in labels if label is not None])
    except TypeError:
        refuse(path, "has labels of several types, and a column has one. Make them all strings.")
    return pl.Enum(known) if known.dtype == pl.String else known.dtype


# ------------------------------------------------------------------------------- the API's JSON schema


def _wire(schema: Json) -> Json:
    tree = _trimmed(_resolved(schema, schema.get("$defs", {}), ()))
    every = list(nodes(tree))
    optional = sum(len(node["properties"]) - len(node["required"]) for node in every if "properties" in node)
    unions = sum("anyOf" in node for node in every)
    most, most_unions = MESSAGE.schema_optional_parameters, MESSAGE.schema_union_parameters
    such = "such fields in a schema"
    if optional > most:
        may = f"may be left out, and the API takes {most} {such}. Remove the default of some."
        refuse(f"{optional} fields", may)
    if unions > most_unions:
        may = f"may be null or of several types, and the API takes {most_unions} {such}. For some, let an "
        refuse(f"{unions} fields", f"{may}empty string, an empty list or a label 'unknown' stand for null.")
    return tree


def _trimmed(node: Json) -> Json:
    """Return a schema in the keywords the API takes; what it does not take is told in the description."""
    rest = {key: value for key, value in node.items() if key not in _SILENT and key != _DTYPE}
    kept: Json = {"type": rest.pop("type")} if "type" in rest else {}
    text = rest.pop("description", "")
    for key, taken in (("format", _FORMATS), ("minItems", (0, 1))):
        if rest.get(key) in taken:
            kept[key] = rest.pop(key)
    if "pattern" in rest and not _COMPLEX.search(rest["pattern"]):
        kept["pattern"] = rest.pop("pattern")
    kept |= {key: rest.pop(key) for key in ("const", "enum") if key in rest}
    if "anyOf" in rest:
        kept["anyOf"] = [_trimmed(option) for option in rest.pop("anyOf")]
    if "items" in rest:
        kept["items"] = _trimmed(rest.pop("items"))
    if kept.get("type") == "object":
        kept["properties"] = {name: _trimmed(part) for name, part in rest.pop("properties", {}).items()}
        kept["required"] = rest.pop("required", [])
        kept["additionalProperties"] = False
    if rest:
        words = ", ".join(f"{_words(key)}: {_shown(value)}" for key, value in rest.items())
        text = f"{text} ({words})".strip()
    return kept | ({"description": text} if text else {})


def _words(key: str) -> str:
    return re.sub("([A-Z])", lambda letter: f" {letter[0].lower()}", key)


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
