"""From a prompt and a frame's schema to the expression that gives each row's text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import polars as pl
import polars.selectors

from claudescale.errors import BadTemplate, PlanError, UnknownColumn, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_SHOWN_COLUMNS = 20


def content_of(prompt: str | pl.Expr, schema: pl.Schema) -> tuple[pl.Expr, pl.Expr]:
    """Return the expressions of each row's text and of its characters; null where a cell in it is null.

    Raises
    ------
    BadTemplate, UnknownColumn
        The prompt does not fit the schema.
    """
    if isinstance(prompt, pl.Expr):
        return _content_of_expression(prompt, schema)
    if not isinstance(prompt, str):
        msg = f"The prompt is a {type(prompt).__name__}. Give a template such as 'Name the topic: {{text}}', "
        msg += "or a Polars expression such as pl.col('text')."
        raise BadTemplate(msg)
    check_unicode("the prompt", prompt)
    parts = [
        _readable(part, schema[part]) if column else pl.lit(part) for part, column in _parts(prompt, schema)
    ]
    lengths = [part.str.len_chars() for part in parts]
    return pl.concat_str(parts), pl.sum_horizontal(lengths, ignore_nulls=False)


def named_columns(template: str, schema: pl.Schema) -> tuple[str, ...]:
    """Return the columns that a template names, each once."""
    return tuple(dict.fromkeys(part for part, column in _parts(template, schema) if column))


def _parts(template: str, schema: pl.Schema) -> list[tuple[str, bool]]:
    """Return the template as texts (False) and names of columns (True)."""
    parts: list[tuple[str, bool]] = []
    text, end = "", 0
    for found in _BRACES.finditer(template):
        text, end = text + template[end : found.start()], found.end()
        if found[0] in ("{{", "}}"):
            text += found[0][0]
            continue
        _check_field(found, schema)
        parts += [(text, False)] * bool(text) + [(found[1], True)]
        text = ""
    text += template[end:]
    parts += [(text, False)] * bool(text)
    if not any(column for _, column in parts):
        msg = (
            "The prompt names no column, so it would be the same for every row. "
            f"Name one in braces, as in 'Name the topic: {{{next(iter(schema), 'text')}}}'."
        )
        raise BadTemplate(msg)
    return parts


def _check_field(found: re.Match[str], schema: pl.Schema) -> None:
    name = found[1]
    if name in schema:
        return
    line = found.string.count("\n", 0, found.start()) + 1
    place = f"at character {found.start() - found.string.rfind(chr(10), 0, found.start())} of line {line}"
    doubled = "For a brace that is text, such as in JSON, write it twice: {{ and }}."
    if name is None:
        msg = f"The prompt has a single {found[0]!r} {place}. {doubled}"
        raise BadTemplate(msg)
    if not name.strip() or any(sign in name for sign in "\"'\n"):
        msg = f"The prompt has braces {place} with no name of a column in them. {doubled}"
        raise BadTemplate(msg)
    column = re.split(r"[.\[!:]", name, maxsplit=1)[0]
    if column in schema:
        msg = (
            f"The prompt has {{{name}}} {place}: only names of columns stand in braces, no attributes and no "
            f"formats. Make a column first, as in frame.with_columns(shown=pl.col({column!r})...), and write "
            "{shown}."
        )
        raise BadTemplate(msg)
    raise _unknown_column([name], schema, doubled)


def _unknown_column(names: Iterable[str], schema: pl.Schema, more: str = "") -> UnknownColumn:
    name = next(iter(names), "?")
    shown = ", ".join(list(schema)[:_SHOWN_COLUMNS]) + (", ..." if len(schema) > _SHOWN_COLUMNS else "")
    msg = f"The prompt names a column {name!r} that the frame does not have.{nearest(name, schema)} "
    msg += f"Columns: {shown or 'none'}. {more}"
    return UnknownColumn(msg.rstrip())


def _content_of_expression(prompt: pl.Expr, schema: pl.Schema) -> tuple[pl.Expr, pl.Expr]:
    nulls = pl.DataFrame(schema=schema).clear(3)
    try:
        found = nulls.lazy().select(prompt).collect_schema()
    except pl.exceptions.ColumnNotFoundError as error:
        missing = [name for name in prompt.meta.root_names() if name not in schema]
        raise _unknown_column(missing, schema) from error
    except pl.exceptions.PolarsError as error:
        msg = f"The prompt's expression does not fit the frame: {str(error).splitlines()[0]}"
        raise BadTemplate(msg) from error
    dtypes = found.dtypes()
    if len(dtypes) != 1 or not isinstance(dtypes[0], (pl.String, pl.Enum, pl.Categorical)):
        given = ", ".join(map(str, dtypes)) or "nothing"
        msg = f"The prompt's expression gives {given}, and one String per row is needed. "
        raise BadTemplate(msg + "Cast it with .cast(pl.String), or put it into pl.format('... {}', ...).")
    if prompt.meta.root_names() and _height(nulls, prompt) not in (nulls.height, None):
        msg = (
            "The prompt's expression gives one text for the whole frame, or drops rows; one per row is "
            "needed. Do that before: frame.filter(...), frame.with_columns(...)."
        )
        raise BadTemplate(msg)
    content = prompt.cast(pl.String)
    return content, content.str.len_chars()


def _height(nulls: pl.DataFrame, prompt: pl.Expr) -> int | None:
    try:
        return nulls.select(prompt).height
    except Exception:  # noqa: BLE001  # a function of the user's that takes no nulls: the real rows will tell
        return None


def _readable(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return a column as text for a reader, null where it is null."""
    _check_readable(name, dtype)
    # pl.col would read a name such as "*" or "^a.*$" as a pattern.
    column = polars.selectors.by_name(name).as_expr()
    clock = "%Y-%m-%d %H:%M:%S%.f"
    if isinstance(dtype, pl.String):
        return column
    if isinstance(dtype, pl.Datetime):
        return column.dt.to_string(clock + ("%:z" if dtype.time_zone else ""))
    if isinstance(dtype, pl.Time):
        return column.dt.to_string("%H:%M:%S%.f")
    if isinstance(dtype, pl.Duration):
        return column.dt.to_string("polars")
    if dtype.is_nested():
        return pl.when(column.is_not_null()).then(json_string(column))
    return column.cast(pl.String)


def _check_readable(name: str, dtype: pl.DataType) -> None:
    inner: list[Any] = []
    if isinstance(dtype, pl.Struct):
        inner = [each.dtype for each in dtype.fields]
    elif isinstance(dtype, (pl.List, pl.Array)):
        inner = [dtype.inner]
    elif dtype.is_nested() or isinstance(dtype, (pl.Binary, pl.Object, pl.Unknown)):
        msg = f"The column {name!r} has {dtype!r} in it, which is no text. Make text of it with Polars first"
        hint = f": frame.with_columns(pl.col({name!r}).cast(pl.String))." if dtype == pl.Binary else "."
        raise BadTemplate(msg + hint)
    for each in inner:
        _check_readable(name, each() if isinstance(each, type) else each)


def json_string(column: str | pl.Expr) -> pl.Expr:
    """Return a column as JSON: Polars encodes structs only, so it goes in and the wrapping comes off."""
    wrapped = pl.col(column) if isinstance(column, str) else column
    encoded = pl.struct(wrapped.alias("c")).struct.json_encode()
    return encoded.str.strip_prefix('{"c":').str.strip_suffix("}")


def check_unicode(what: str, text: str) -> None:
    """Refuse text that cannot be sent.

    Raises
    ------
    PlanError
        It has a lone surrogate in it.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = f"{what} has half a character (a lone surrogate) at position {error.start}. "
        msg += "Mend it with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        raise PlanError(msg[0].upper() + msg[1:]) from error
