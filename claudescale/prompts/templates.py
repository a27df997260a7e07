"""From a prompt and a frame's schema to the expression that gives each row's text."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import polars as pl
import polars.selectors

from claudescale.errors import BadTemplate, PlanError, UnknownColumn, nearest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_SHOWN_COLUMNS = 20
_DOUBLED = "For a brace that is text, such as in JSON, write it twice: {{ and }}."


class Text(NamedTuple):
    """The text of each row as an expression, null where a cell in it is null; and its length."""

    content: pl.Expr
    characters: pl.Expr
    columns: tuple[str, ...] | None  # None of an expression, which may look at many rows at once


def text_of(prompt: str | pl.Expr, schema: pl.Schema) -> Text:
    """Return what a template, or an expression, makes of the rows of frames of one schema."""
    if isinstance(prompt, pl.Expr):
        content = _checked_expression(prompt, schema).cast(pl.String)
        return Text(content, content.str.len_chars(), None)
    if not isinstance(prompt, str):
        msg = f"The prompt is a {type(prompt).__name__}. Give a template such as 'Name the topic: {{text}}', "
        msg += "or a Polars expression such as pl.col('text')."
        raise BadTemplate(msg)
    check_unicode("the prompt", prompt)
    parts = list(_parts(prompt, schema))
    columns = tuple(dict.fromkeys(part for part, is_column in parts if is_column))
    if not columns:
        msg = (
            "The prompt names no column, so it would be the same for every row. "
            f"Name one in braces, as in 'Name the topic: {{{next(iter(schema), 'text')}}}'."
        )
        raise BadTemplate(msg)
    texts = [_readable(part, schema[part]) if is_column else pl.lit(part) for part, is_column in parts]
    lengths = [text.str.len_chars() for text in texts]
    return Text(pl.concat_str(texts), pl.sum_horizontal(lengths, ignore_nulls=False), columns)


def _parts(template: str, schema: pl.Schema) -> Iterator[tuple[str, bool]]:
    """Yield the template as texts (False) and names of columns (True)."""
    text, end = "", 0
    for brace in _BRACES.finditer(template):
        text, end = text + template[end : brace.start()], brace.end()
        if brace[0] in ("{{", "}}"):
            text += brace[0][0]
            continue
        _check_field(brace, schema)
        if text:
            yield text, False
        yield brace[1], True
        text = ""
    if text := text + template[end:]:
        yield text, False


def _check_field(brace: re.Match[str], schema: pl.Schema) -> None:
    name = brace[1]
    if name in schema:
        return
    line = brace.string.count("\n", 0, brace.start()) + 1
    place = f"at character {brace.start() - brace.string.rfind(chr(10), 0, brace.start())} of line {line}"
    if name is None:
        msg = f"The prompt has a single {brace[0]!r} {place}. {_DOUBLED}"
        raise BadTemplate(msg)
    if not name.strip() or any(sign in name for sign in "\"'\n"):
        msg = f"The prompt has braces {place} with no name of a column in them. {_DOUBLED}"
        raise BadTemplate(msg)
    column = re.split(r"[.\[!:]", name, maxsplit=1)[0]
    if column in schema:
        msg = (
            f"The prompt has {{{name}}} {place}: only names of columns stand in braces, no attributes and no "
            f"formats. Make a column first, as in frame.with_columns(shown=pl.col({column!r})...), and write "
            "{shown}."
        )
        raise BadTemplate(msg)
    raise _unknown_column([name], schema, _DOUBLED)


def _unknown_column(names: Iterable[str], schema: pl.Schema, more: str = "") -> UnknownColumn:
    name = next(iter(names), "?")
    shown = ", ".join(list(schema)[:_SHOWN_COLUMNS]) + (", ..." if len(schema) > _SHOWN_COLUMNS else "")
    msg = f"The prompt names a column {name!r} that the frame does not have.{nearest(name, schema)} "
    msg += f"Columns: {shown or 'none'}. {more}"
    return UnknownColumn(msg.rstrip())


def _checked_expression(prompt: pl.Expr, schema: pl.Schema) -> pl.Expr:
    """Return an expression that gives one text per row; raise what is wrong with any other."""
    nulls = pl.DataFrame(schema=schema).clear(3)
    try:
        dtypes = nulls.lazy().select(prompt).collect_schema().dtypes()
    except pl.exceptions.ColumnNotFoundError as error:
        missing = [name for name in prompt.meta.root_names() if name not in schema]
        raise _unknown_column(missing, schema) from error
    except pl.exceptions.PolarsError as error:
        msg = f"The prompt's expression does not fit the frame: {str(error).splitlines()[0]}"
        raise BadTemplate(msg) from error
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
    return prompt


def _height(nulls: pl.DataFrame, prompt: pl.Expr) -> int | None:
    try:
        return nulls.select(prompt).height
    except Exception:  # noqa: BLE001  # a function of the user's that takes no nulls: the real rows will tell
        return None


def _readable(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return a column as text for a reader, null where it is null."""
    for leaf in _leaves(dtype):
        if leaf.is_nested() or isinstance(leaf, (pl.Binary, pl.Object, pl.Unknown)):
            hint = f": frame.with_columns(pl.col({name!r}).cast(pl.String))." if leaf == pl.Binary else "."
            msg = (
                f"The column {name!r} has {leaf!r} in it, which is no text. Make text of it with Polars first"
            )
            raise BadTemplate(msg + hint)
    # pl.col would read a name such as "*" or "^a.*$" as a pattern.
    column = polars.selectors.by_name(name).as_expr()
    if dtype.is_nested():
        # Polars encodes structs only, so it goes in and the wrapping comes off.
        json = (
            pl.struct(column.alias("c")).struct.json_encode().str.strip_prefix('{"c":').str.strip_suffix("}")
        )
        return pl.when(column.is_not_null()).then(json)
    if isinstance(dtype, pl.Datetime):
        return column.dt.to_string("%Y-%m-%d %H:%M:%S%.f" + ("%:z" if dtype.time_zone else ""))
    if isinstance(dtype, pl.Time | pl.Duration):
        return column.dt.to_string("polars" if isinstance(dtype, pl.Duration) else "%H:%M:%S%.f")
    return column.cast(pl.String)


def _leaves(dtype: pl.DataType) -> Iterator[pl.DataType]:
    """Yield the types inside a type that JSON can hold, itself where it has none inside."""
    inner = [dtype.inner] if isinstance(dtype, (pl.List, pl.Array)) else []
    inner = [field.dtype for field in dtype.fields] if isinstance(dtype, pl.Struct) else inner
    for each in inner:
        yield from _leaves(each() if isinstance(each, type) else each)
    if not inner and not isinstance(dtype, pl.Struct):
        yield dtype


def check_unicode(what: str, text: str) -> None:
    """Refuse text with a lone surrogate in it, which cannot be sent."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        msg = f"{what} has half a character (a lone surrogate) at position {error.start}. "
        msg += "Mend it with text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        raise PlanError(msg[0].upper() + msg[1:]) from error
