"""Typed replies: what ``returns=`` asks of the model, and reply texts as typed columns.

Polars types and pydantic models take one way: pydantic's own JSON schema, its references written out
(no recursion), trimmed to the keywords the API takes. A reply that is not what was asked for is its row's
error, never an exception.
"""

from __future__ import annotations

import enum
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from decimal import Decimal
from types import UnionType
from typing import Any, Literal, NoReturn, TypeAlias, get_args, get_origin

import polars as pl
from pydantic import create_model
from pydantic.errors import PydanticInvalidForJsonSchema, PydanticUserError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import SchemaValidator, core_schema, to_json

from claudescale.api.catalog import MESSAGE
from claudescale.errors import BadReturns

Json: TypeAlias = dict[str, Any]

INVALID_REPLY = "invalid_reply"  # the error of a row whose reply is not what ``returns=`` asks for
_CELLS = (type(None), bool, int, float, str, Decimal, date, time, timedelta)
"""What Polars takes into a column by itself; the rest, as a UUID or a URL, is a text."""
_WHAT_THERE_IS = (
    "returns= takes a pydantic model or list[Model], labels such as ['yes', 'no'], bool, int, float, str, "
    "a dict of these such as {'label': ['yes', 'no'], 'score': float}, or a Polars type."
)

# Source: the set in anthropic 2.14.0, lib/_parse/_transform.py (checked 2026-11-29).
_FORMATS = {"date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"}
# What a pattern may not have. Source: Anthropic, *Structured outputs*, patterns (checked 2026-09-02).
_COMPLEX = re.compile(r"\(\?|\\(?![dws])\w|[*+?}][+?]|\{\d*,?\d{3,}")
_SCALE = "x-claudescale-scale"
_SILENT = {"title", "default", "additionalProperties", "discriminator", "writeOnly", "readOnly", _SCALE}
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
"""By type in a JSON schema, or by the format of a string."""
_NO_TEXT = {"password", "regex", "binary", "base64", "base64url"}  # formats whose value a column cannot show
_UNREADABLE = {
    "ImportString": "has an ImportString: a reply must not choose what is imported. Use str.",
    "'validation_alias': ['": "has an AliasPath, which no reply can have. Leave it out.",
    "'tz_constraint': 'naive'": "has a NaiveDatetime, and the API's dates have an offset. Use datetime.",
}
"""By words in pydantic's core schema: why no reply would fit the model."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Returns:
    """What a reply must be, for the API and for Polars. `compile_returns` makes it."""

    json_schema: Json  # only keywords the API takes
    columns: pl.Schema  # the typed columns of the results; `reply` alone where one type was given
    single: bool  # one type was given: the reply itself is typed
    _validate: Callable[[str], Json] = field(repr=False)

    def decode(self, replies: pl.Series) -> tuple[pl.DataFrame, pl.Series]:
        """Return the typed columns of reply texts, and the error of each row.

        A reply that is no JSON, breaks the schema, is refused by a validator of the user's model, or
        does not fit its column gives nulls and the error "invalid_reply". Labels are compared without
        regard to capitals and to spaces around them: the API does not promise the capitals. A null
        reply gives nulls and no error.
        """
        texts = replies.cast(pl.String).alias("text").to_frame()
        distinct = texts.unique(maintain_order=True)  # labels and the like: each text is read once
        labels = self._labels()
        frame, errors = self._held([self._read(text, labels) for text in distinct["text"]])
        numbered = distinct.with_row_index("place")
        places = texts.join(numbered, on="text", how="left", nulls_equal=True, maintain_order="left")["place"]
        return frame[places], pl.Series("error", errors, pl.String).gather(places)

    def example(self, reply: Any) -> str:
        """Return a reply as the model would write it; BadReturns where it is not what was asked for."""
        texts = [reply] if isinstance(reply, str) else []
        texts.append(to_json({"reply": reply} if self.single else reply, by_alias=True).decode())
        for text in texts:
            if self.decode(pl.Series([text]))[1].item() is None:
                return text
        msg = f"examples= has the reply {reply!r:.60}, which is not what returns= asks for: {self.columns}."
        raise BadReturns(msg)

    def _labels(self) -> dict[str, str]:
        """Return each label by its plain form; of several with the same form none."""
        labels = {
            label
            for node in nodes(self.json_schema)
            for label in node.get("enum", [node.get("const")])
            if isinstance(label, str)
        }
        forms = Counter(map(_plain, labels))
        return {_plain(label): label for label in labels if forms[_plain(label)] == 1}

    def _read(self, text: str | None, labels: Mapping[str, str]) -> list[Any] | None:
        """Return the cells of a reply, none where it is not what was asked for."""
        if text is None:
            return [None] * len(self.columns)
        try:
            try:
                value = self._validate(text)
            except ValueError:
                value = self._validate(json.dumps(_recased(json.loads(text), labels)))
            return [_cell(value[name]) for name in self.columns]
        except Exception:  # noqa: BLE001  # a validator of the user's may raise anything; it is data
            return None

    def _held(self, rows: list[list[Any] | None]) -> tuple[pl.DataFrame, list[str | None]]:
        """Return rows as typed columns; one that a column cannot hold, as a number too large, is an error."""
        try:
            columns = [
                pl.Series(name, [row and row[place] for row in rows], dtype, strict=True)
                for place, (name, dtype) in enumerate(self.columns.items())
            ]
            errors = [INVALID_REPLY if row is None else None for row in rows]
            return pl.DataFrame(columns).cast(self.columns), errors
        except (pl.exceptions.PolarsError, TypeError, ValueError, OverflowError):
            if len(rows) == 1:
                return self._held([None])
            half = len(rows) // 2
            (first, before), (last, after) = self._held(rows[:half]), self._held(rows[half:])
            return pl.concat([first, last]), before + after


def compile_returns(returns: Any) -> Returns:
    """Return what a reply must be, from types or a pydantic model; BadReturns where it cannot be.

    With Polars types every field is required and never null; in a dict, ``pl.Float64 | None`` is a field
    that may be null. Decimals are rounded to their column's scale, a `pl.Datetime` without time zone is in
    UTC.

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
    if get_origin(returns) in {Literal, list}:
        return _of_model(create_model("Reply", reply=(returns, ...)), single=True)
    if issubclass(kind, pl.DataType | UnionType) or returns in (bool, int, float, str):
        return _of_types({"reply": returns}, "the type", single=True)
    if isinstance(returns, Mapping) and returns:
        return _of_types({name: _enum(given) for name, given in returns.items()}, "field {!r}")
    if isinstance(returns, type) and hasattr(returns, "model_json_schema"):
        return _of_model(returns)
    shown = returns.__name__ if isinstance(returns, type) else f"{returns!r:.60}"
    msg = f"returns={shown} cannot be used. {_WHAT_THERE_IS}"
    raise BadReturns(msg)


def _enum(given: Any) -> Any:
    """Return labels, in a list or a Literal, as Polars' type for them; anything else as it is."""
    labels = get_args(given) if get_origin(given) is Literal else given
    several = isinstance(labels, list | tuple) and labels and all(isinstance(label, str) for label in labels)
    return pl.Enum([*dict.fromkeys(labels)]) if several else given


def _recased(value: Any, labels: Mapping[str, str]) -> Any:
    """Return the value of a reply with its texts as a label is written, if only capitals or spaces differ."""
    if isinstance(value, str):
        return labels.get(_plain(value), value)
    if isinstance(value, list):
        return [_recased(item, labels) for item in value]
    if isinstance(value, dict):
        return {name: _recased(part, labels) for name, part in value.items()}
    return value


def _plain(label: str) -> str:
    return label.strip().casefold()


def _cell(value: Any) -> Any:
    """Return a validated value as Polars takes it."""
    if isinstance(value, dict):
        return {name: _cell(part) for name, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_cell(item) for item in value]
    if isinstance(value, enum.Enum):
        return value.value
    return value if isinstance(value, _CELLS) else str(value)


def _refuse(path: str, what: str) -> NoReturn:
    """Raise the `BadReturns` for one field."""
    msg = f"returns=: {path} {what}"
    raise BadReturns(msg)


# ------------------------------------------------------------------------------------ Polars types


def _of_types(types: Mapping[Any, Any], what: str, *, single: bool = False) -> Returns:
    """Return what named Polars types make of a reply; `what` names one in messages."""
    columns, fields = {}, {}
    for name, given in types.items():
        path = what.format(name)
        kinds = get_args(given) if isinstance(given, UnionType) else (given,)
        kinds = tuple(kind for kind in kinds if kind is not type(None))
        if len(kinds) != 1 or not isinstance(name, str):
            _refuse(path, f"is {given}: a column has a name and one type. Choose one, or pl.String.")
        core = _core(kinds[0], path)
        fields[name] = core_schema.typed_dict_field(
            core_schema.nullable_schema(core) if isinstance(given, UnionType) else core
        )
        columns[name] = pl.Series(dtype=kinds[0]).dtype
    schema = core_schema.typed_dict_schema(fields)
    wire = _wire(_Generator(by_alias=True).generate(schema))
    validate = SchemaValidator(schema).validate_json
    return Returns(json_schema=wire, columns=pl.Schema(columns), single=single, _validate=validate)


def _core(given: Any, path: str) -> Any:  # noqa: PLR0911  # one for each kind of type
    """Return pydantic's core schema of a Polars type."""
    dtype = None
    if given is not pl.Decimal:  # its scale would be zero
        with suppress(TypeError):
            dtype = pl.Series(dtype=given).dtype
    match dtype:
        case pl.DataType() if dtype.is_temporal() or dtype in (pl.String, pl.Categorical, pl.Boolean):
            return getattr(core_schema, f"{dtype.to_python().__name__}_schema")(strict=True)
        case pl.Enum() if len(dtype.categories):
            return core_schema.literal_schema(dtype.categories.to_list())
        case pl.Decimal():
            return core_schema.decimal_schema(allow_inf_nan=False, metadata={"scale": dtype.scale})
        case pl.Struct() if dtype.fields:
            cores = {field.name: _core(field.dtype, f"{path}.{field.name}") for field in dtype.fields}
            fields = {name: core_schema.typed_dict_field(core) for name, core in cores.items()}
            return core_schema.typed_dict_schema(fields)
        case pl.List() | pl.Array():
            size = dtype.size if isinstance(dtype, pl.Array) else None
            return core_schema.list_schema(_core(dtype.inner, f"{path}[]"), min_length=size, max_length=size)
        case pl.DataType() if dtype.is_float():
            return core_schema.float_schema(allow_inf_nan=False)
        case pl.DataType() if dtype.is_integer():
            number: Any = dtype
            low, high = pl.select(low=number.min(), high=number.max()).row(0)
            # Bounds stand in the description and cost tokens, so only those a count or a score may meet.
            small = high < 2**16
            return core_schema.int_schema(ge=low if low == 0 or small else None, le=high if small else None)
    such_as = "pl.String, pl.Enum(['yes', 'no']), pl.Decimal(scale=2) or pl.List(pl.String)"
    _refuse(path, f"is {given!r:.60}, which is not a complete type that JSON can hold. Write {such_as}.")


# ---------------------------------------------------------------------------------- pydantic models


def _of_model(model: Any, *, single: bool = False) -> Returns:
    """Return what a pydantic model makes of a reply."""
    path = f"the model {model.__name__}"
    try:
        # By alias is what the API sees; by name, the same tree, is what the columns are called.
        wire, named = (
            model.model_json_schema(by_alias=by_alias, schema_generator=_Generator)
            for by_alias in (True, False)
        )
    except (PydanticInvalidForJsonSchema, PydanticUserError) as error:
        _refuse(path, f"has no JSON schema: {error.message}")
    for words, why in _UNREADABLE.items():
        if words in repr(model.__pydantic_core_schema__):
            _refuse(path, why)
    fields = _resolved(named, named.get("$defs", {})).get("properties")
    if not fields:
        _refuse(path, "has no named fields, so it would make no columns. Give it a field.")
    columns = pl.Schema({name: _dtype(node, f"field {name!r}") for name, node in fields.items()})

    def validate(text: str) -> Json:
        return model.model_validate_json(text).model_dump(by_alias=False, warnings=False)  # type: ignore[no-any-return]

    return Returns(json_schema=_wire(wire), columns=columns, single=single, _validate=validate)


class _Generator(GenerateJsonSchema):
    """Pydantic's JSON schema, with numbers for decimals and a mark of their scale."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def decimal_schema(self, schema: Any) -> Json:
        number: Json = super().decimal_schema(schema)["anyOf"][0]
        places = schema.get("decimal_places", schema.get("metadata", {}).get("scale"))
        told = {} if places is None else {"digitsAfterThePoint": places}
        return number | told | {_SCALE: places or 10}


def _resolved(node: Any, definitions: Json, inside: tuple[str, ...] = ()) -> Any:
    """Return the schema with every reference written out; a model inside itself is refused."""
    if isinstance(node, list):
        return [_resolved(item, definitions, inside) for item in node]
    if not isinstance(node, dict):
        return node
    while "$ref" in node:
        name = node["$ref"].removeprefix("#/$defs/")
        if name in inside:
            _refuse(f"the model {name}", "contains itself, and the API takes no recursive schema.")
        own = {key: value for key, value in node.items() if key != "$ref"}
        inside, node = (*inside, name), definitions[name] | own
    return {
        "anyOf" if key == "oneOf" else key: _resolved(value, definitions, inside)
        for key, value in node.items()
        if key != "$defs"
    }


def _dtype(node: Json, path: str) -> pl.DataType:
    """Return the type of a column that holds the values of a schema."""
    options = [option for option in node.get("anyOf", ()) if option.get("type") != "null"]
    labels = [label for label in node.get("enum", [node.get("const")]) if label is not None]
    if len(options) == 1:
        return _dtype(options[0], path)
    if options or len({type(label) for label in labels}) > 1:
        _refuse(path, "may have several types, and a column has one. Choose one, or str.")
    if labels:
        return pl.Enum(labels) if isinstance(labels[0], str) else pl.Series(labels).dtype
    if _SCALE in node:
        return pl.Decimal(38, node[_SCALE])
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


def _wire(schema: Json) -> Json:
    tree = _trimmed(_resolved(schema, schema.get("$defs", {})))
    every = list(nodes(tree))
    optional = sum(len(node["properties"]) - len(node["required"]) for node in every if "properties" in node)
    unions = sum("anyOf" in node for node in every)
    most = MESSAGE.schema_optional_parameters, MESSAGE.schema_union_parameters
    if optional > most[0] or unions > most[1]:
        _refuse(
            f"{optional} fields may be left out and {unions} may be null or of several types:",
            f"the API takes {most[0]} and {most[1]}. Give some no default, or a label 'unknown' for null.",
        )
    return tree


def _trimmed(node: Json) -> Json:
    """Return a schema in the keywords the API takes; what it does not take is told in the description."""
    rest = {key: value for key, value in node.items() if key not in _SILENT}
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
