"""From a frame to request bodies, row by row, by Polars expressions alone.

A body is a constant head, the row's message as JSON, a constant tail. No Python runs per row except to
hash the keys.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import polars as pl

from claudescale.api.catalog import MESSAGE
from claudescale.errors import NameTaken, PlanError, RequestTooLarge
from claudescale.prompts.parameters import Cache, Charges, as_json, constant
from claudescale.prompts.replies import Returns, compile_returns
from claudescale.prompts.templates import content_of, named_columns

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from claudescale.api.catalog import Model

AnyFrame = TypeVar("AnyFrame", pl.DataFrame, pl.LazyFrame)

OUTPUT_COLUMNS = ("reply", "error", "simulated")
"""What the results add to the user's frame, besides the typed columns of ``returns=``; the last one only
where a simulator answered."""

BODIES = pl.Schema({"row": pl.UInt32(), "body": pl.String()})
"""Columns of `Prompt.bodies`; a null body is a row that is not sent."""

CONTENTS = pl.Schema({"row": pl.UInt32(), "characters": pl.UInt32(), "content": pl.String()})
"""Columns of `Prompt.contents`: what varies of a body, as JSON, and the characters of its text, which is what
the model reads; null is a row that is not sent."""

MEASURES = pl.Schema({"characters": pl.UInt32(), "rows": pl.Int64()})
"""Columns of `Prompt.measure`."""

_MOST_BYTES_PER_CHARACTER = 6  # a control character as \u001f
FRAME_CHARACTERS = len('{"role":"user","content":""}')
"""What a message has around its text, as JSON."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """What is asked about every row. `compile_prompt` makes it; it holds no frame.

    Attributes
    ----------
    head, tail : str
        The constant JSON around a row's message: a body is ``head + message + tail``.
    content : pl.Expr
        The text of each row, null where a column it uses is null: that row is not sent.
    returns : claudescale.prompts.replies.Returns or None
        What makes typed columns of the replies.
    shared_characters : int
        Characters of every request besides the row's text: system prompt, schema, tools.
    notes : tuple of str
        What is worth knowing and no error.
    charges : claudescale.prompts.parameters.Charges
        What a request may cost besides its tokens.
    columns : tuple of str or None
        The columns a template names; None of an expression, which may look at many rows at once and so
        cannot be rendered a slice at a time.
    constant : dict
        The request without its messages.
    template : str or None
        The prompt; None of an expression.
    """

    head: str
    tail: str
    content: pl.Expr
    returns: Returns | None
    shared_characters: int
    notes: tuple[str, ...]
    charges: Charges
    columns: tuple[str, ...] | None
    constant: Mapping[str, Any] = field(repr=False)
    template: str | None = field(repr=False)
    _length: pl.Expr = field(repr=False)
    _key_head: str = field(repr=False)

    def bodies(self, frame: AnyFrame) -> AnyFrame:
        """Return the request bodies of a frame, one row per row of the frame, in its order.

        A LazyFrame gives a LazyFrame, unread and unchecked; a DataFrame is checked for size.

        Spends: nothing.

        Parameters
        ----------
        frame : pl.DataFrame or pl.LazyFrame
            With the columns the prompt was compiled for.

        Returns
        -------
        pl.DataFrame or pl.LazyFrame
            `BODIES`.

        Raises
        ------
        RequestTooLarge
            A body is over the API's limit.
        """
        parts = pl.lit(self.head), pl.col("content"), pl.lit(self.tail)
        found = self.contents(frame.lazy()).select("row", body=pl.concat_str(parts))
        if isinstance(frame, pl.LazyFrame):
            return found
        bodies = found.collect()
        _check_sizes(bodies.select("row", bytes=pl.col("body").str.len_bytes()))
        return bodies

    def contents(self, frame: AnyFrame) -> AnyFrame:
        """Return only what varies of the bodies: the message of each row as JSON.

        With a long system prompt this is a small part of `bodies`. The body is head + content + tail.

        Spends: nothing.

        Parameters
        ----------
        frame : pl.DataFrame or pl.LazyFrame
            With the columns the prompt was compiled for.

        Returns
        -------
        pl.DataFrame or pl.LazyFrame
            `CONTENTS`.
        """
        # The row number in the same select holds the height: an expression that drops or adds rows fails.
        text = frame.lazy().select(row=pl.int_range(pl.len(), dtype=pl.UInt32), content=self.content)
        message = pl.struct(pl.lit("user").alias("role"), "content").struct.json_encode()
        found = text.select(
            "row",
            characters=pl.col("content").str.len_chars(),
            content=pl.when(pl.col("content").is_not_null()).then(message),
        )
        return found if isinstance(frame, pl.LazyFrame) else found.collect()

    def characters(self, frame: pl.DataFrame | pl.LazyFrame) -> tuple[pl.Series, int]:
        """Return the characters of each row's text and those that every request shares.

        For estimates: no body is made, so a million rows take little memory.

        Spends: nothing.

        Parameters
        ----------
        frame : pl.DataFrame or pl.LazyFrame
            With the columns the prompt was compiled for.

        Returns
        -------
        tuple of pl.Series and int
            `characters` (UInt32) per row, null for a row that is not sent; and `shared_characters`.

        Raises
        ------
        RequestTooLarge
            A body would be over the API's limit.
        """
        lazy = frame.lazy()
        rows = pl.int_range(pl.len(), dtype=pl.UInt32).alias("row")
        # Streaming, so that a frame larger than memory can be estimated too.
        found = lazy.select(rows, self._length.cast(pl.UInt32).alias("characters")).collect(
            engine="streaming"
        )
        around = len(self.head.encode()) + len(self.tail.encode())
        possible = pl.col("characters").cast(pl.Int64) * _MOST_BYTES_PER_CHARACTER + around + FRAME_CHARACTERS
        suspects = found.filter(possible > MESSAGE.max_bytes)["row"]
        if suspects.len():
            sizes = self.bodies(lazy).filter(pl.col("row").is_in(suspects.implode()))
            _check_sizes(sizes.select("row", bytes=pl.col("body").str.len_bytes()).collect())
        return found["characters"], self.shared_characters

    def measure(self, frame: pl.DataFrame | pl.LazyFrame, only: pl.Series | None = None) -> pl.DataFrame:
        """Return the distinct requests of a frame: how long each is, and how many rows it answers.

        For estimates: identical rows are sent once. Nothing is rendered whole, and the frame is read as
        a stream.

        Spends: nothing.

        Parameters
        ----------
        frame : pl.DataFrame or pl.LazyFrame
            With the columns the prompt was compiled for.
        only : pl.Series of UInt32, optional
            Numbers of the rows to count; by default all.

        Returns
        -------
        pl.DataFrame
            `MEASURES`: one row per distinct request, and one with null characters for the rows that are
            not sent, if there are any.
        """
        rows = frame.lazy().select(
            pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
            self.content.hash().alias("text"),
            self._length.cast(pl.UInt32).alias("characters"),
        )
        if only is not None:
            rows = rows.join(only.alias("row").to_frame().lazy(), on="row", how="semi")
        distinct = rows.group_by("text", "characters").agg(rows=pl.len().cast(pl.Int64))
        # Sorted, so that sums over them are the same to the last digit every time.
        return distinct.select(*MEASURES).sort(*MEASURES).collect(engine="streaming")

    def changed(self, other: Prompt) -> set[str]:
        """Return which fields of the requests differ from another prompt's, of those that keys depend on.

        Spends: nothing.
        """
        heads = self._key_head, other._key_head
        mine, theirs = (json.loads(f"{head}]}}") for head in heads)
        return {name for name in mine | theirs if mine.get(name) != theirs.get(name)}

    def keys(self, contents: pl.Series, api: str) -> pl.Series:
        """Return the key of each request: the same request to the same API has the same key, for ever.

        Whether the prompt is cached changes the price and not the answer, so it does not change the key.

        Spends: nothing.

        Parameters
        ----------
        contents : pl.Series of String
            From `contents`.
        api : str
            Which API answers; a simulator's replies must have keys of their own.

        Returns
        -------
        pl.Series
            `key`: 32 hexadecimal characters, null where the content is null.
        """
        # Polars' own hash is faster and changes between versions; a ledger must know its rows for ever.
        start = hashlib.blake2b(f"{api}\0{self._key_head}".encode(), digest_size=16)
        copy: Callable[[], Any] = start.copy
        end = self.tail.encode()

        def key(text: bytes) -> str:
            state = copy()
            state.update(text + end)
            found: str = state.hexdigest()
            return found

        texts = contents.cast(pl.Binary).to_list()  # half the time of making strings and encoding them
        return pl.Series("key", [None if text is None else key(text) for text in texts], pl.String)


def compile_prompt(
    prompt: str | pl.Expr,
    schema: pl.Schema,
    *,
    model: Model,
    max_tokens: int = 1024,
    system: str | None = None,
    returns: object = None,
    effort: str | None = None,
    thinking: Mapping[str, Any] | None = None,
    cache: Cache = False,
    params: Mapping[str, Any] | None = None,
    sent: str | None = None,
) -> Prompt:
    """Return what is asked about every row of frames of one schema.

    Thinking is kept off, or small where a model cannot do without, unless `thinking` or `effort` is
    given: then only what was given is sent, and the API's defaults hold for the rest.

    Spends: nothing.

    Parameters
    ----------
    prompt : str or pl.Expr
        A template: ``{column}`` stands for a cell, ``{{`` and ``}}`` for braces. Text in a cell is never
        read as a template. Or an expression that gives one String per row.
    schema : pl.Schema
        Of the frames to come.
    model : claudescale.api.catalog.Model
        Which model is asked.
    max_tokens : int
        The longest reply, in tokens, thinking included.
    system : str, optional
        Instructions that are the same for every row.
    returns : pydantic model, pl.Schema, dict or Polars type, optional
        See `claudescale.prompts.replies.compile_returns`.
    effort : str, optional
        One of `Model.efforts`.
    thinking : dict, optional
        As the API takes it, such as ``{"type": "adaptive"}``.
    cache : bool, "5m" or "1h"
        Cache the system prompt, and the tools before it; True is five minutes.
    params : dict, optional
        Further fields of the API: ``stop_sequences``, ``tools``, ``service_tier``, ...
    sent : str, optional
        The model's name as it was typed and is sent; the default is its id. A dated id and its alias are one
        model, so keys have the id.

    Returns
    -------
    Prompt
        Renders any frame of that schema.

    Raises
    ------
    BadTemplate, UnknownColumn, BadReturns, NameTaken
        The prompt, or ``returns=``, cannot be used.
    PlanError
        The API would refuse every row: what and why is in the message.

    Examples
    --------
    >>> from claudescale.api.catalog import model
    >>> frame = pl.DataFrame({"text": ["late again"]})
    >>> prompt = compile_prompt("Name it: {text}", frame.schema, model=model("claude-haiku-5-5"))
    >>> prompt.bodies(frame)["body"].str.json_path_match("$.messages[0].content").item()
    'Name it: late again'
    """
    content, length = content_of(prompt, schema)
    typed = None if returns is None else _typed(returns, model)
    _check_names(schema, typed)
    given: dict[str, Any] = {"max_tokens": max_tokens, "system": system, "returns": typed, "effort": effort}
    given |= {"thinking": thinking, "params": params}
    shared = constant(model, cache=cache, **given)
    uncached = constant(model, cache=False, **given) if cache else shared
    return Prompt(
        head=_head(shared.body | {"model": sent or model.id}),
        tail="]}",
        content=content,
        returns=typed,
        shared_characters=shared.shared_characters,
        charges=shared.charges,
        notes=(*shared.notes, *_system_notes(system, schema)),
        columns=None if isinstance(prompt, pl.Expr) else named_columns(prompt, schema),
        constant=shared.body,
        template=None if isinstance(prompt, pl.Expr) else prompt,
        _length=length,
        _key_head=_head(uncached.body),
    )


def _system_notes(system: str | None, schema: pl.Schema) -> tuple[str, ...]:
    """Return a warning where the system prompt seems to name a column."""
    named = [f"{{{name}}}" for name in schema if f"{{{name}}}" in (system or "")]
    note = "is text there: the system prompt is the same for every row. Columns belong in the prompt."
    return (f"{named[0]} {note}",) if named else ()


def _head(body: Mapping[str, Any]) -> str:
    return f'{as_json(body)[:-1]},"messages":['


def _typed(returns: object, model: Model) -> Returns:
    if not model.structured_outputs:
        msg = f"{model.id} has no structured outputs, which returns= needs. Choose another model, or ask for "
        raise PlanError(msg + "the form in the prompt and read run.results['reply'] yourself.")
    return compile_returns(returns)


def _check_names(schema: pl.Schema, typed: Returns | None) -> None:
    fields = () if typed is None or typed.single else tuple(typed.columns)
    for name in (*OUTPUT_COLUMNS, *fields):
        if name in schema:
            renamed = f"frame.rename({{{name!r}: {f'my_{name}'!r}}})"
            msg = f"The frame has a column {name!r}, and the results get one of that name. Use {renamed}."
            raise NameTaken(msg)
        if name in OUTPUT_COLUMNS and name in fields:
            msg = f"returns= has a field {name!r}, a name the results need for themselves. Rename the field."
            raise NameTaken(msg)


def _check_sizes(sizes: pl.DataFrame) -> None:
    large = sizes.filter(pl.col("bytes") > MESSAGE.max_bytes)
    if large.height:
        row, size = large.row(0)
        more = f" In all, {large.height:,} rows are too large." if large.height > 1 else ""
        msg = (
            f"The request of row {row:,} (counted from 0) is {size:,} bytes, over the API's limit of "
            f"{MESSAGE.max_bytes:,}. Shorten its text, as in pl.col(...).str.head(100_000), or leave the row "
            f"out.{more}"
        )
        raise RequestTooLarge(msg)
