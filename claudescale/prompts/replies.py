"""Typed replies: what ``returns=`` asks of the model, and reply texts as typed columns.

A reply that is not what was asked for is its row's error, never an exception.
"""

from __future__ import annotations

import decimal
import enum
import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import UnionType
from typing import Any, Literal, TypeAlias, get_args, get_origin
from zoneinfo import ZoneInfo

import polars as pl

from claudescale.errors import BadReturns
from claudescale.prompts import schemas

_PYTHON_TYPES = (bool, int, float, str)
INVALID_REPLY = "invalid_reply"  # the error of a row whose reply is not what ``returns=`` asks for
_WHAT_THERE_IS = (
    "returns= takes a pydantic model or list[Model], labels such as ['yes', 'no'], bool, int, float, str, "
    "a dict of these such as {'label': ['yes', 'no'], 'score': float}, or a Polars type."
)

Fit: TypeAlias = Callable[[Any], Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Returns:
    """What a reply must be, for the API and for Polars. `compile_returns` makes it."""

    json_schema: schemas.Json  # only keywords the API takes
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
        labelled = any("enum" in node or "const" in node for node in schemas.nodes(self.json_schema))
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
        typed = schemas.of_annotation(returns)
    elif single:
        typed = schemas.of_types({"reply": returns}, "the type")
    elif isinstance(returns, Mapping) and returns:
        typed = schemas.of_types({name: _enum(given) for name, given in returns.items()}, "field {!r}")
    elif isinstance(returns, type) and hasattr(returns, "model_json_schema"):
        typed = schemas.of_model(returns)
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


def _recased(value: Any, schema: schemas.Json) -> Any:
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
            parts = [(part.name, _fit(schemas.instance(part.dtype))) for part in dtype.fields]
            return lambda value: {name: fit(_part(value, name)) for name, fit in parts}
        case pl.List() | pl.Array():
            item = _fit(schemas.instance(dtype.inner))
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
