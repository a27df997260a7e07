"""What is said about a row: a template over its columns, or several parts with its images and PDFs in them.

A file is read three times at most: its head for the price, piece by piece for the key of its row, and whole
when the row is sent. So no more files are in memory than rows are in flight.
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
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from claudescale.api.catalog import Model
    from claudescale.api.media import File

Kind: TypeAlias = Literal["path", "url", "file_id"]
Purpose: TypeAlias = Literal["price", "key", "send"]
_BRACES = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_IDENTIFIER = re.compile(r"\{\{([^\W\d]\w*)\}\}|\{([^\W\d]\w*)\}")
_SHOWN_COLUMNS = 20
_DOUBLED = "To write a brace as text, as in JSON, double it: {{ and }}."


MESSAGES = pl.Schema(
    {"characters": pl.UInt32(), "content": pl.String(), "file_bytes": pl.Int64()}
    | {"file_tokens": pl.Int64()}
    | {"error": pl.String(), "message": pl.String(), "stamp": pl.UInt64()}
)
"""Columns of `Parts.messages`: how long each row is, in characters, which the tokens of its files make too;
its message as JSON; the bytes it has besides once its files stand in it, and the most tokens of those; why a
file of it cannot be sent; a mark by which it is known whether a file has changed since."""


def as_json(value: object) -> str:
    """Return a value as compact JSON, always the same bytes for the same value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def check_unicode(what: str, text: str) -> None:
    """Refuse text with a lone surrogate in it, which cannot be sent."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        refuse(
            f"{what} has half a character (a lone surrogate) at position {error.start}. Fix it with "
            "text.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace')."
        )


class Text(NamedTuple):
    """The text of each row as an expression, null where a cell in it is null; and its length."""

    content: pl.Expr
    characters: pl.Expr
    columns: tuple[str, ...] | None  # None of an expression, which may look at many rows at once


def text_of(prompt: str | pl.Expr, schema: pl.Schema, *, constant: bool = False) -> Text:
    """Return what a template, or an expression, makes of the rows of frames of one schema.

    `constant` takes one that is the same for every row.
    """
    if isinstance(prompt, pl.Expr):
        content = _checked_expression(prompt, schema).cast(pl.String)
        return Text(content, content.str.len_chars(), None)
    if not isinstance(prompt, str):
        refuse(
            f"The prompt is of type {type(prompt).__name__}. Give a template such as 'Name the topic: "
            "{text}', or a Polars expression such as pl.col('text').",
            BadTemplate,
        )
    check_unicode("The prompt", prompt)
    parts = _parts(prompt, _BRACES, lambda brace: _field(brace, schema))
    if not constant and not any(is_column for _, is_column in parts):
        refuse(
            "The prompt names no column, so every row would get the same text. "
            f"Name one in braces, as in 'Name the topic: {{{next(iter(schema), 'text')}}}'.",
            BadTemplate,
        )
    return _joined(parts, schema)


def _joined(parts: Sequence[tuple[str, bool]], schema: pl.Schema) -> Text:
    """Return the text of texts (False) and names of columns (True)."""
    texts = [_readable(part, schema[part]) if is_column else pl.lit(part) for part, is_column in parts]
    lengths = pl.sum_horizontal([text.str.len_chars() for text in texts], ignore_nulls=False)
    columns = tuple(dict.fromkeys(part for part, is_column in parts if is_column))
    return Text(pl.concat_str(texts), lengths, columns)


def system_of(system: str, schema: pl.Schema) -> tuple[str | None, Text | None]:
    """Return a system prompt as it is for all rows, or as the text of each, as an identifier names a column.

    Other braces stay as they are, as in JSON; ``{{identifier}}`` is that identifier in braces.
    """
    if not isinstance(system, str) or not system.strip():
        why = f"system= must be a non-empty text, not {system!r:.40}."
        refuse(f"{why} Leave it out if you need none.")
    check_unicode("system=", system)

    def piece(found: re.Match[str]) -> tuple[str, bool]:
        literal, name = found.groups()
        if name and name not in schema:
            refuse(
                f"system= has {{{name}}}, and the frame has no column {name!r}.{nearest(name, schema)} "
                f"To write braces as text, double them: {{{{{name}}}}}.",
                UnknownColumn,
            )
        return (name, True) if name else (f"{{{literal}}}", False)

    parts = _parts(system, _IDENTIFIER, piece)
    if any(is_column for _, is_column in parts):
        return None, _joined(parts, schema)
    return "".join(text for text, _ in parts), None


def _parts(
    template: str, braces: re.Pattern[str], piece: Callable[[re.Match[str]], tuple[str, bool]]
) -> list[tuple[str, bool]]:
    """Return a template as texts (False) and names of columns (True), given what braces in it are."""
    parts, end = [], 0
    for found in braces.finditer(template):
        parts += [(template[end : found.start()], False), piece(found)]
        end = found.end()
    parts.append((template[end:], False))
    return [part for part in parts if part != ("", False)]


def _field(brace: re.Match[str], schema: pl.Schema) -> tuple[str, bool]:
    """Return what a brace of a prompt is: text where it is doubled, else the name of a column."""
    name = brace[1]
    if brace[0] in ("{{", "}}"):
        return brace[0][0], False
    if name in schema:
        return name, True
    line = brace.string.count("\n", 0, brace.start()) + 1
    place = f"at character {brace.start() - brace.string.rfind(chr(10), 0, brace.start())} of line {line}"
    if name is None:
        refuse(f"The prompt has a single {brace[0]!r} {place}. {_DOUBLED}", BadTemplate)
    if not name.strip() or any(sign in name for sign in "\"'\n"):
        refuse(f"The prompt has braces {place} with no column name in them. {_DOUBLED}", BadTemplate)
    column = re.split(r"[.\[!:]", name, maxsplit=1)[0]
    if column in schema:
        refuse(
            f"The prompt has {{{name}}} {place}: braces hold names of columns, no attributes and no "
            f"formats. Make a column first: frame.with_columns(shown=pl.col({column!r})...). Then write "
            "{shown}.",
            BadTemplate,
        )
    raise no_such_column([name], schema, _DOUBLED)


def no_such_column(names: Iterable[str], schema: pl.Schema, more: str = "") -> UnknownColumn:
    """Return the error that says which column is meant, and which there are."""
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
        raise no_such_column(missing, schema) from error
    except pl.exceptions.PolarsError as error:
        refuse(f"The prompt's expression does not fit the frame: {str(error).splitlines()[0]}", BadTemplate)
    if len(dtypes) != 1 or not isinstance(dtypes[0], (pl.String, pl.Enum, pl.Categorical)):
        given = ", ".join(map(str, dtypes)) or "nothing"
        refuse(
            f"The prompt's expression gives {given}, and one String per row is needed. Cast it with "
            ".cast(pl.String), or put it into pl.format('... {}', ...).",
            BadTemplate,
        )
    height = nulls.height
    with suppress(Exception):  # a function of the user's that takes no nulls: the real rows will show
        height = nulls.select(prompt).height
    if prompt.meta.root_names() and height != nulls.height:
        refuse(
            "The prompt's expression gives one text for the whole frame, or drops rows; one per row is "
            "needed. Do that before: frame.filter(...), frame.with_columns(...).",
            BadTemplate,
        )
    return prompt


def _readable(name: str, dtype: pl.DataType) -> pl.Expr:
    """Return a column as text for a reader, null where it is null."""
    for leaf in _leaves(dtype):
        if leaf.is_nested() or isinstance(leaf, (pl.Binary, pl.Object, pl.Unknown)):
            hint = f": frame.with_columns(pl.col({name!r}).cast(pl.String))." if leaf == pl.Binary else "."
            msg = f"The column {name!r} contains {leaf!r}, which is not text. Convert it with Polars first"
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


# ---------------------------------------------------------------------------------- images and PDFs


class Unusable(Exception):
    """A cell that cannot be sent; it becomes data of its row."""

    def __init__(self, *, error: str, message: str) -> None:
        super().__init__(error)
        self.error, self.message = error, message


@dataclass(frozen=True, slots=True)
class Part:
    """An image or a PDF in each row of a column. `image` and `pdf` make one."""

    column: str
    block: Literal["image", "document"]
    kind: Kind | None = None

    def __repr__(self) -> str:
        kind = f", kind={self.kind!r}" if self.kind else ""
        return f"cs.{'image' if self.block == 'image' else 'pdf'}({self.column!r}{kind})"


def image(column: str, *, kind: Kind | None = None) -> Part:
    """Return the part of a prompt that is the image in a column: PNG, JPEG, GIF or WebP.

    Put images before the text. Tokens are estimated from width and height, for free.

    Spends: nothing.

    Parameters
    ----------
    column : str
        Of bytes (`pl.Binary`), or of Strings: each the path of a file, or a URL that begins with ``https://``,
        which Anthropic fetches. A row with a null is not sent, nor is one whose file cannot be read: its
        results say why in `error` and `message`.
    kind : str, optional
        What the Strings are, if it cannot be guessed: ``"path"``, ``"url"`` or ``"file_id"`` (Files API).

    Examples
    --------
    ``cs.plan(frame, [cs.image("photo"), "What is broken? {note}"], model="claude-haiku-5-5")``
    """
    return _part(column, "image", kind)


def pdf(column: str, *, kind: Kind | None = None) -> Part:
    """Return the part of a prompt that is the PDF in a column; its parameters are those of `image`.

    Tokens are estimated from its pages, about 2,300 each.

    Spends: nothing.
    """
    return _part(column, "document", kind)


def _part(column: str, block: Literal["image", "document"], kind: Kind | None) -> Part:
    if not isinstance(column, str):
        refuse(f"{column!r:.60} is not the name of a column: cs.image('photo').")
    if kind is not None and kind not in get_args(Kind):
        refuse(f"kind={kind!r} is not one of {', '.join(map(repr, get_args(Kind)))}.")
    return Part(column, block, kind)


# ------------------------------------------------------------------------------------- one cell of a frame


class Source(NamedTuple):
    """The source of a block in a request, where it is base64 with a digest for the data."""

    source: dict[str, str]
    tokens: float
    most_tokens: float
    data_bytes: int = 0  # how long its data is, in base64
    data: str = ""  # that data, if it is to be sent


def source_of(part: Part, value: Any, model: Model, purpose: Purpose) -> Source:
    """Return what a cell holds; `Unusable` where it cannot be sent."""
    if isinstance(value, bytes):
        return _read(io.BytesIO(value), part, model, purpose)
    kind = part.kind or ("url" if value.lower().startswith(("https://", "http://")) else "path")
    most = MEDIA["most_image_tokens"] if part.block == "image" else model.context_tokens
    unseen = media.unseen_tokens(part.block), most
    if kind == "file_id":
        return Source({"type": "file", "file_id": value}, *unseen)
    if kind == "url":
        if not value.lower().startswith("https://"):
            raise Unusable(error="url_not_https", message="The API takes only URLs that begin with https://.")
        return Source({"type": "url", "url": value}, *unseen)
    try:
        path = Path(value).expanduser()
        if path.exists() and not path.is_file():  # a folder, or a pipe, which may never end
            raise Unusable(error="file_unreadable", message="It is not a file.")
        with path.open("rb") as file:
            return _read(file, part, model, purpose)
    except FileNotFoundError as error:
        raise Unusable(error="file_not_found", message="There is no such file.") from error
    except (OSError, ValueError, RuntimeError) as error:  # a name that no file can have, a home that is none
        why = getattr(error, "strerror", None) or type(error).__name__
        raise Unusable(error="file_unreadable", message=f"The file cannot be read: {why}.") from error


def _read(file: File, part: Part, model: Model, purpose: Purpose) -> Source:
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    media_type, tokens = _measured(file, part.block, model.tokenizer)
    data_bytes, raw = 4 * math.ceil(size / 3), b""
    if part.block == "image" and data_bytes > MEDIA["most_base64_bytes"]:
        most = MEDIA["most_base64_bytes"] * 3 // 4
        raise Unusable(error="image_too_large", message=f"It has {size:,} bytes, and the API takes {most:,}.")
    file.seek(0)
    if purpose == "send":
        raw = file.read()
        digest = hashlib.blake2b(raw, digest_size=16).hexdigest()
    else:
        digest = hashlib.file_digest(file, _blake).hexdigest() if purpose == "key" else ""
    source = {"type": "base64", "media_type": media_type, "data": digest}
    return Source(source, tokens, MEDIA["doubt"] * tokens, data_bytes, base64.b64encode(raw).decode())


def _blake() -> Any:
    return hashlib.blake2b(digest_size=16)


def _measured(file: File, block: str, tokenizer: str) -> tuple[str, float]:
    """Return the media type by the first bytes, and the tokens."""
    found = media.media_type(file.read(media.HEAD_BYTES))
    if block == "document":
        if found != media.PDF:
            raise Unusable(error="file_type_unknown", message="It is not a PDF.")
        file.seek(0)
        return found, float(media.pdf_pages(file.read(MEDIA["most_bytes"]))[1])
    if found not in media.IMAGES:
        hint = " It is a PDF, so use cs.pdf(...)." if found == media.PDF else ""
        words = f"It is not a PNG, JPEG, GIF or WebP.{hint}"
        raise Unusable(error="file_type_unknown", message=words)
    try:
        width, height = media.pixels(file)
    except (struct.error, IndexError) as error:
        raise Unusable(error="file_damaged", message="The image ends before its size is given.") from error
    if max(width, height) > MEDIA["most_pixels"]:
        words = f"It has {width:,} x {height:,} pixels, and the API takes {MEDIA['most_pixels']:,} on a side."
        raise Unusable(error="image_too_large", message=words)
    return found, float(media.image_tokens(width, height, tokenizer))


# ------------------------------------------------------------------------------ prompts of several parts


@dataclass(frozen=True, eq=False)
class Parts:
    """A prompt of several parts over frames of one schema; it stands where a `Text` does."""

    pieces: tuple[Part | Text, ...]
    columns: tuple[str, ...]
    model: Model

    @classmethod
    def of(cls, prompt: Sequence[str | Part], schema: pl.Schema, model: Model) -> Parts:
        """Return a prompt that was given as a list; PlanError for what cannot be read."""
        pieces: list[Part | Text] = []
        columns: list[str] = []
        for piece in prompt:
            if isinstance(piece, str):
                text = text_of(piece, schema, constant=True)
                pieces.append(text)
                columns += text.columns or ()
            elif isinstance(piece, Part):
                _check_column(piece, schema)
                pieces.append(piece)
                columns.append(piece.column)
            else:
                refuse(
                    f"The prompt is a list that contains a {type(piece).__name__}. Give a template such as "
                    "'Name the topic: {text}', or a list of parts: [cs.image('photo'), 'What is broken?'].",
                    BadTemplate,
                )
        if not columns:
            refuse(
                "The prompt's list names no column. Try [cs.image('photo'), 'What is broken?'].",
                BadTemplate,
            )
        return cls(tuple(pieces), tuple(dict.fromkeys(columns)), model)

    def notes(self, head: pl.DataFrame | None) -> Iterator[str]:
        """Yield what is worth knowing of the estimate, given a few rows."""
        for piece in self.pieces:
            if isinstance(piece, Part):
                cells = pl.Series([]) if head is None else head[piece.column]
                linked = cells.dtype == pl.String and cells.str.starts_with("https://").any()
                if linked or piece.kind in {"url", "file_id"}:
                    yield f"The files of {piece.column!r} were not read, so their tokens are assumed."

    @property
    def content(self) -> pl.Expr:
        """What tells rows apart before files are read."""
        return pl.struct(self.columns)

    @property
    def characters(self) -> pl.Expr:
        """The length of each row; only the heads of files are read."""

        def lengths(rows: pl.Series) -> pl.Series:
            return self.messages(rows.struct.unnest(), "price")["characters"]

        return self.content.map_batches(lengths, return_dtype=pl.UInt32(), is_elementwise=True)

    def messages(
        self, frame: pl.DataFrame, purpose: Purpose = "key", stamps: pl.Series | None = None
    ) -> pl.DataFrame:
        """Return `MESSAGES` of the rows; to send them, each must still be what its stamp says."""
        texts = [
            frame[piece.column] if isinstance(piece, Part) else frame.select(piece.content).to_series()
            for piece in self.pieces
        ]
        # Cell by cell: to iterate over a Series is to copy all of it, and it may be gigabytes of images.
        rows = [
            self._row([text[0 if text.len() == 1 else row] for text in texts], purpose)
            for row in range(frame.height)
        ]
        schema = {name: dtype for name, dtype in MESSAGES.items() if name != "stamp"}
        found = pl.DataFrame([row for row, _ in rows], schema=schema, orient="row")
        found = found.with_columns(stamp=pl.col("content").hash())
        if purpose != "send" or stamps is None:
            return found
        if not found["stamp"].equals(stamps):
            msg = "A file has changed or is gone since the run began, so its row is a different one now. "
            msg += "Everything paid for is kept. Run the same cell again."
            raise FileChanged(msg)
        whole = [_filled(row[1], sources) for row, sources in rows]
        return found.with_columns(pl.Series("content", whole, pl.String))

    def _row(self, cells: Sequence[Any], purpose: Purpose) -> tuple[tuple[Any, ...], list[Source]]:
        if None in cells:
            return (None,) * 6, []
        blocks, sources, characters = [], [], 0.0
        for piece, cell in zip(self.pieces, cells, strict=True):
            if isinstance(piece, Text):
                blocks.append({"type": "text", "text": cell})
                characters += len(cell)
                continue
            try:
                source = source_of(piece, cell, self.model, purpose)
            except Unusable as error:
                return (*(None,) * 4, error.error, error.message), []
            blocks.append({"type": piece.block, "source": source.source})
            sources.append(source)
            characters += source.tokens * self.model.characters_per_token
        size = sum(source.data_bytes - len(source.source.get("data", "")) for source in sources)
        most = sum(source.most_tokens for source in sources)
        message = as_json({"role": "user", "content": blocks})
        return (round(characters), message, size, round(most), None, None), sources


def _check_column(part: Part, schema: pl.Schema) -> None:
    if part.column not in schema:
        raise no_such_column([part.column], schema)
    dtype = schema[part.column]
    if not isinstance(dtype, pl.String | pl.Binary) or (dtype == pl.Binary and part.kind is not None):
        kinds = "bytes (pl.Binary), or paths, URLs or ids of files (pl.String, with kind=)"
        refuse(f"The column {part.column!r} is {dtype!r}, and {part.block}s are {kinds}.", BadTemplate)


def _filled(message: str | None, sources: Sequence[Source]) -> str | None:
    """Return a message with its files instead of their digests."""
    for source in sources:
        if source.data and message is not None:
            message = message.replace(f'"data":"{source.source["data"]}"', f'"data":"{source.data}"', 1)
    return message
