"""The prompt of a row: a template over its columns, or several parts that include images and PDFs.

A file is read at most three times: its head for the price, in chunks for the key of its row, and whole when
the row is sent. So there are never more files in memory than rows in flight.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, get_args

import polars as pl
import polars.selectors

from claudescale.api import media
from claudescale.api.catalog import MEDIA
from claudescale.errors import BadTemplate, FileChanged, UnknownColumn, nearest, refuse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from claudescale.api.catalog import ModelFacts
    from claudescale.api.media import File

Kind: TypeAlias = Literal["path", "url", "file_id"]

_BRACES = re.compile(r"(\{\{|\}\}|\{[^{}]*\}|[{}])")
_IDENTIFIER = re.compile(r"(\{\{[^\W\d]\w*\}\}|\{[^\W\d]\w*\})")
_SHOWN_COLUMNS = 20

MESSAGES = pl.Schema(
    {"characters": pl.UInt32(), "content": pl.String(), "more_bytes": pl.Int64()}
    | {"more_tokens": pl.Int64(), "error": pl.String(), "message": pl.String()}
)
"""Columns of `Multipart.messages`: the length of each row in characters, to which its files add their tokens'
worth; its message as JSON, with a digest in place of each file; the bytes that the files add, and the most
tokens they can have; and why a file cannot be sent."""


def as_json(value: object) -> str:
    """Return a value as compact JSON, always the same bytes for the same value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


# ------------------------------------------------------------------------------------------- templates


class Text(NamedTuple):
    """The text of each row as an expression, null where one of its cells is null."""

    content: pl.Expr
    columns: tuple[str, ...] | None  # None for an expression, which may look at many rows at once

    @property
    def characters(self) -> pl.Expr:
        """The length of each row's text."""
        return self.content.str.len_chars()

    def messages(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the first columns of `MESSAGES`: without files no row has an error."""
        # The row number in the same select fixes the height: an expression that drops or adds rows fails.
        rows = frame.select(row=pl.int_range(pl.len(), dtype=pl.UInt32), content=self.content)
        message = pl.struct(pl.lit("user").alias("role"), "content").struct.json_encode()
        return rows.select(
            characters=pl.col("content").str.len_chars(),
            content=pl.when(pl.col("content").is_not_null()).then(message),
            more_bytes=0,
            more_tokens=0,
        )


def text_of(prompt: str | pl.Expr, schema: pl.Schema, *, constant: bool = False) -> Text:
    """Return the text that a template or an expression gives for frames of one schema.

    With `constant`, the text may be the same for every row, and an expression is refused.
    """
    if isinstance(prompt, pl.Expr) and not constant:
        return Text(_checked_expression(prompt, schema).cast(pl.String), columns=None)
    if not isinstance(prompt, str):
        refuse(
            f"The prompt is of type {type(prompt).__name__}. Give a template such as 'Name the topic: "
            "{text}', or a Polars expression such as pl.col('text').",
            BadTemplate,
        )
    text = _filled(prompt, _BRACES, schema, "The prompt")
    if not constant and not text.columns:
        refuse(
            "The prompt names no column, so every row would get the same text. "
            f"Name one in braces, as in 'Name the topic: {{{next(iter(schema), 'text')}}}'.",
            BadTemplate,
        )
    return text


def system_of(system: str, schema: pl.Schema) -> str | Text:
    """Return a system prompt, as a `Text` where an identifier in braces names a column.

    Other braces, as in JSON, are kept; ``{{identifier}}`` becomes the identifier in single braces.
    """
    if not isinstance(system, str) or not system.strip():
        refuse(f"system= must be a non-empty text, not {system!r:.40}. Leave it out if you need none.")
    text = _filled(system, _IDENTIFIER, schema, "system=")
    return text if text.columns else str(pl.select(text.content).item())


def _filled(template: str, braces: re.Pattern[str], schema: pl.Schema, subject: str) -> Text:
    """Return the text that a template gives; `subject` names the template in an error."""
    texts, columns = [], []
    for place, token in enumerate(braces.split(template)):
        if place % 2 == 0:  # text between braces
            texts.append(pl.lit(token))
        elif token.startswith(("{{", "}}")):
            texts.append(pl.lit(token[1:-1] or token[0]))
        else:
            name = token[1:-1] or token[0]
            if name not in schema:
                doubled = f"{{{{{name if name.isidentifier() else '...'}}}}}"
                more = f"To write braces as text, as in JSON, double them: {doubled}."
                raise unknown_column(name, schema, subject, more)
            texts.append(_readable(name, schema[name]))
            columns.append(name)
    return Text(pl.concat_str(texts), tuple(dict.fromkeys(columns)))


def unknown_column(
    name: str, schema: pl.Schema, subject: str = "The prompt", more: str = ""
) -> UnknownColumn:
    """Return the error for a missing column, with the likely one and the existing ones."""
    shown = ", ".join(list(schema)[:_SHOWN_COLUMNS]) + (", ..." if len(schema) > _SHOWN_COLUMNS else "")
    msg = f"{subject} names a column {name!r} that is not there.{nearest(name, schema)} Columns: {shown}."
    return UnknownColumn(f"{msg} {more}".rstrip())


def _checked_expression(prompt: pl.Expr, schema: pl.Schema) -> pl.Expr:
    """Return the expression if it gives one text per row; raise BadTemplate otherwise."""
    nulls = pl.DataFrame(schema=schema).clear(3)
    try:
        dtypes = nulls.lazy().select(prompt).collect_schema().dtypes()
    except pl.exceptions.ColumnNotFoundError as error:
        missing = [name for name in prompt.meta.root_names() if name not in schema]
        raise unknown_column(", ".join(missing), schema) from error
    except pl.exceptions.PolarsError as error:
        refuse(f"The prompt's expression does not fit the frame: {str(error).splitlines()[0]}", BadTemplate)
    if len(dtypes) != 1 or not isinstance(dtypes[0], (pl.String, pl.Enum, pl.Categorical)):
        refuse(
            f"The prompt's expression gives {', '.join(map(str, dtypes))}, and one String per row is needed. "
            "Cast it with .cast(pl.String), or put it into pl.format('... {}', ...).",
            BadTemplate,
        )
    height = nulls.height
    with suppress(Exception):  # a user's function may not take nulls; the real rows will show
        height = nulls.select(prompt).height
    if prompt.meta.root_names() and height != nulls.height:
        refuse(
            "The prompt's expression gives one text for the whole frame, or drops rows; one per row is "
            "needed. Do that before: frame.filter(...), frame.with_columns(...).",
            BadTemplate,
        )
    return prompt


def _readable(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return a column as readable text, null where it is null."""
    if any(part in (pl.Binary, pl.Object, pl.Unknown) for part in _with_inner(dtype)):
        refuse(
            f"The column {name!r} contains {dtype!r}, which is not text. Convert it with Polars first, such "
            f"as frame.with_columns(pl.col({name!r}).cast(pl.String)).",
            BadTemplate,
        )
    # pl.col would read a name such as "*" or "^a.*$" as a pattern.
    column = polars.selectors.by_name(name).as_expr()
    if dtype.is_nested():
        # Polars encodes only structs, so the column is wrapped in one and the wrapping is stripped.
        encoded = pl.struct(column.alias("c")).struct.json_encode()
        return pl.when(column.is_not_null()).then(encoded.str.strip_prefix('{"c":').str.strip_suffix("}"))
    if isinstance(dtype, pl.Datetime):
        return column.dt.to_string("%Y-%m-%d %H:%M:%S%.f" + ("%:z" if dtype.time_zone else ""))
    if isinstance(dtype, pl.Time | pl.Duration):
        return column.dt.to_string("polars" if isinstance(dtype, pl.Duration) else "%H:%M:%S%.f")
    return column.cast(pl.String)


def _with_inner(dtype: Any) -> Iterator[Any]:
    """Yield a type, and every type inside it."""
    yield dtype
    inner = [dtype.inner] if isinstance(dtype, pl.List | pl.Array) else []
    fields = dtype.fields if isinstance(dtype, pl.Struct) else []
    for part in [*inner, *(field.dtype for field in fields)]:
        yield from _with_inner(part)


# -------------------------------------------------------------------------------------- images and PDFs


@dataclass(frozen=True, slots=True)
class Part:
    """An image or a PDF in each row of a column, as made by `image` and `pdf`."""

    column: str
    block: Literal["image", "document"]
    kind: Kind | None = None

    @property
    def columns(self) -> tuple[str]:
        """Its column, in a tuple because a `Text` may have several."""
        return (self.column,)

    @property
    def content(self) -> pl.Expr:
        """The cells of the column."""
        return polars.selectors.by_name(self.column).as_expr()

    def __repr__(self) -> str:
        kind = f", kind={self.kind!r}" if self.kind else ""
        return f"cs.{'image' if self.block == 'image' else 'pdf'}({self.column!r}{kind})"


def image(column: str, *, kind: Kind | None = None) -> Part:
    """Return the part of a prompt for a column's images: PNG, JPEG, GIF or WebP.

    Put images before the text. Tokens are estimated from width and height, at no cost. For a URL or an id
    they are assumed.

    Spends: nothing.

    Parameters
    ----------
    column : str
        A column of bytes (`pl.Binary`) or Strings. A String is the path of a file, or a URL that begins with
        ``https://``, which Anthropic fetches. A row with a null is not sent. Neither is one whose file cannot
        be read: `error` and `message` in the results say why.
    kind : str, optional
        What the Strings are, if that cannot be guessed: ``"path"``, ``"url"`` or ``"file_id"`` (Files API).

    Examples
    --------
    ``cs.plan(frame, [cs.image("photo"), "What is broken? {note}"], model="claude-haiku-5-5")``
    """
    return Part(column, "image", kind)


def pdf(column: str, *, kind: Kind | None = None) -> Part:
    """Return the part of a prompt for a column's PDFs; its parameters are those of `image`.

    Tokens are estimated from the number of pages, at about 2,300 each.

    Spends: nothing.
    """
    return Part(column, "document", kind)


class Source(NamedTuple):
    """The source of a content block; base64 data is replaced by its digest."""

    source: dict[str, str]
    tokens: float
    most_tokens: float
    more_bytes: int = 0  # how much longer the base64 data is than its digest


def source_of(part: Part, value: Any, model: ModelFacts, *, keyed: bool) -> Source:
    """Return the source in a cell, with its file hashed if `keyed`; OSError or ValueError if unusable."""
    file = _opened(part, value)
    if file is None:
        kind, name = ("file", "file_id") if part.kind == "file_id" else ("url", "url")
        most = MEDIA["most_image_tokens"] if part.block == "image" else model.context_tokens
        return Source({"type": kind, name: value}, media.unseen_tokens(part.block), most)
    with file:
        media_type, tokens = _measured(file, part.block, model.tokenizer)
        data_bytes = 4 * math.ceil(file.seek(0, io.SEEK_END) / 3)
        file.seek(0)
        digest = hashlib.file_digest(file, _blake).hexdigest() if keyed else ""
    source = {"type": "base64", "media_type": media_type, "data": digest}
    return Source(source, tokens, MEDIA["doubt"] * tokens, data_bytes - len(digest))


def _opened(part: Part, value: Any) -> File | None:
    """Return the file of a cell; None where the API has it or fetches it."""
    if isinstance(value, bytes):
        return io.BytesIO(value)
    kind = part.kind or ("url" if value.lower().startswith("https://") else "path")
    return Path(value).expanduser().open("rb") if kind == "path" else None


def _blake(data: bytes = b"") -> Any:
    return hashlib.blake2b(data, digest_size=16)


def _measured(file: File, block: str, tokenizer: str) -> tuple[str, float]:
    """Return the media type of a file, from its first bytes, and its tokens."""
    media_type = media.media_type(file.read(media.HEAD_BYTES)) or ""
    if media_type not in ((media.PDF,) if block == "document" else media.IMAGES):
        msg = f"it is not a {'PDF' if block == 'document' else 'PNG, JPEG, GIF or WebP'}"
        raise ValueError(msg)
    if block == "image":
        return media_type, float(media.image_tokens(*media.pixels(file), tokenizer))
    file.seek(0)
    return media_type, float(media.pdf_pages(file.read(MEDIA["most_bytes"]))[1])


# ------------------------------------------------------------------------------ prompts of several parts


@dataclass(frozen=True, eq=False)
class Multipart:
    """A prompt of several parts for frames of one schema; it is used in place of a `Text`."""

    parts: tuple[Part | Text, ...]
    columns: tuple[str, ...]
    model: ModelFacts

    @classmethod
    def of(cls, prompt: Sequence[str | Part], schema: pl.Schema, model: ModelFacts) -> Multipart:
        """Return the prompt for a list of parts; PlanError for a part that is not valid."""
        parts = tuple(_part(part, schema) for part in prompt)
        columns = tuple(dict.fromkeys(name for part in parts for name in part.columns or ()))
        if not columns:
            such_as = "Give texts and parts: [cs.image('photo'), 'What is broken?']."
            refuse(f"The prompt's list names no column. {such_as}", BadTemplate)
        return cls(parts, columns, model)

    @property
    def content(self) -> pl.Expr:
        """The cells that distinguish rows before files are read."""
        return pl.struct(self.columns)

    @property
    def characters(self) -> pl.Expr:
        """The length of each row; only the heads of files are read."""

        def lengths(rows: pl.Series) -> pl.Series:
            return self.messages(rows.struct.unnest(), keyed=False)["characters"]

        return self.content.map_batches(lengths, return_dtype=pl.UInt32(), is_elementwise=True)

    def messages(self, frame: pl.DataFrame, *, keyed: bool = True) -> pl.DataFrame:
        """Return `MESSAGES` of the rows; unless `keyed`, digests are empty."""
        cells = frame.select(**{str(place): part.content for place, part in enumerate(self.parts)})
        # Row by row: a column may hold gigabytes of images.
        rows = [self._message(row, keyed=keyed) for row in cells.iter_rows(buffer_size=1)]
        return pl.DataFrame(rows, schema=MESSAGES)

    def _message(self, cells: Sequence[Any], *, keyed: bool) -> dict[str, Any]:
        """Return a row of `MESSAGES` without its null fields."""
        if None in cells:
            return {}
        blocks, characters, more_bytes, more_tokens = [], 0.0, 0, 0.0
        for part, cell in zip(self.parts, cells, strict=True):
            if isinstance(part, Text):
                blocks.append({"type": "text", "text": cell})
                characters += len(cell)
                continue
            try:
                source = source_of(part, cell, self.model, keyed=keyed)
            except FileNotFoundError:
                return {"error": "file_not_found", "message": "There is no such file."}
            except (OSError, ValueError, RuntimeError, struct.error, IndexError) as error:
                why = getattr(error, "strerror", None) or error
                return {"error": "file_unreadable", "message": f"The file cannot be read: {why}."}
            blocks.append({"type": part.block, "source": source.source})
            characters += source.tokens * self.model.characters_per_token
            more_bytes += source.more_bytes
            more_tokens += source.most_tokens
        return {
            "characters": round(characters),
            "content": as_json({"role": "user", "content": blocks}),
            "more_bytes": more_bytes,
            "more_tokens": round(more_tokens),
        }

    def filled(self, message: str, row: Mapping[str, Any]) -> str:
        """Return a message with the row's files in it; `FileChanged` where one has changed."""
        for part in [part for part in self.parts if isinstance(part, Part)]:
            data = b""  # for a missing file: its digest is in no message
            with suppress(OSError):
                file = _opened(part, row[part.column])
                if file is None:
                    continue
                with file:
                    data = file.read()
            digest = f'"data":"{_blake(data).hexdigest()}"'
            if digest not in message:
                msg = "A file has changed or is gone since the run began, so its row is a different one now. "
                msg += "Everything paid for is kept. Run the same cell again."
                raise FileChanged(msg)
            message = message.replace(digest, f'"data":"{base64.b64encode(data).decode()}"', 1)
        return message


def _part(part: str | Part, schema: pl.Schema) -> Part | Text:
    """Return a part of a prompt; PlanError where it is not valid."""
    if not isinstance(part, Part):
        return text_of(part, schema, constant=True)
    if part.column not in schema:
        raise unknown_column(part.column, schema)
    dtype = schema[part.column]
    kinds = get_args(Kind) if dtype == pl.String else ()
    if dtype not in (pl.String, pl.Binary) or part.kind not in (None, *kinds):
        there = f"bytes (pl.Binary), or Strings of a kind= in {', '.join(map(repr, get_args(Kind)))}"
        refuse(f"{part!r}: the column is {dtype!r}, and {part.block}s are {there}.", BadTemplate)
    return part
