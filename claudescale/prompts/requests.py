"""From a frame to the requests of a run, and from its replies back to the rows, by Polars expressions alone.

A body is a constant head, the row's message as JSON, a constant tail. No Python runs per row except to
hash the keys.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import polars as pl

from claudescale.api.catalog import MESSAGE
from claudescale.errors import NameTaken, PlanError, RequestTooLarge, UnknownColumn, nearest
from claudescale.prompts.parameters import (
    FACTS,
    Charges,
    as_json,
    checked,
    plain,
    refuse,
    thinking_of,
    tool_charges,
)
from claudescale.prompts.replies import Returns, compile_returns
from claudescale.prompts.templates import Text, check_unicode, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from claudescale.api.catalog import Model
    from claudescale.prompts.retries import Kept

Cache: TypeAlias = bool | Literal["5m", "1h"]
Frame: TypeAlias = pl.DataFrame | pl.LazyFrame

SLICE_ROWS = 4_000  # so many rows are rendered at once
NOT_SENT = "not_sent"  # the error of a row that has no answer yet
FRAMING_TOKENS = 10.0  # what a request has around its text: roles, turns
OUTPUT_COLUMNS = ("reply", "error", "simulated")
"""What the results add to the user's frame, besides the typed columns of ``returns=``; the last one only
where a simulator answered."""
SIZES = pl.Schema({"characters": pl.UInt32(), "requests": pl.UInt32(), "rows": pl.UInt32()})
"""Columns of `Prompt.sizes`: how many requests, answering how many rows, there are of each length; null
characters are rows that are not sent."""
REQUESTS = pl.Schema(
    {"row": pl.UInt32(), "key": pl.String(), "bytes": pl.Int64(), "estimated_tokens": pl.Float64()}
)
"""Columns of `Work.requests`: its first row in the frame, its key, the size of its body."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prompt:
    """What is asked about every row. `compile_prompt` makes it; it holds no frame."""

    head: str  # the constant JSON before a row's message: a body is head + message + tail
    tail: str = "]}"
    text: Text = field(repr=False)
    template: str | None = field(repr=False)  # the prompt; None of an expression
    returns: Returns | None  # what makes typed columns of the replies
    constant: Mapping[str, Any] = field(repr=False)  # the request without its messages, and without caching
    model: Model = field(repr=False)
    shared_characters: int  # of every request besides the row's text: system prompt, schema, tools
    notes: tuple[str, ...]  # what is worth knowing and no error
    charges: Charges

    @property
    def columns(self) -> tuple[str, ...] | None:
        """The columns a template names; None of an expression, which cannot be rendered a slice at a time."""
        return self.text.columns

    @property
    def shared_tokens(self) -> float:
        """Estimated tokens that all requests share."""
        return self.shared_characters / self.model.characters_per_token

    @property
    def is_cacheable(self) -> bool:
        """Whether what all requests share is long enough for the prompt cache."""
        minimum = self.model.cache_minimum_tokens
        return minimum is not None and self.shared_tokens >= minimum

    def estimated_tokens(self, characters: pl.Expr) -> pl.Expr:
        """Return an expression of the input tokens of each request, all of its input, from its characters.

        Characters are those that the model reads, not those of the body, which has some escaped.
        """
        return (characters + self.shared_characters) / self.model.characters_per_token + FRAMING_TOKENS

    def contents(self, frame: pl.DataFrame) -> pl.DataFrame:
        """Return the `characters` of each row's text and its message as JSON, null where it is not sent."""
        # The row number in the same select holds the height: an expression that drops or adds rows fails.
        text = frame.lazy().select(row=pl.int_range(pl.len(), dtype=pl.UInt32), content=self.text.content)
        message = pl.struct(pl.lit("user").alias("role"), "content").struct.json_encode()
        contents = text.select(
            "row",
            characters=pl.col("content").str.len_chars(),
            content=pl.when(pl.col("content").is_not_null()).then(message),
        )
        return contents.collect().drop("row")

    def bodies(self, contents: pl.Series) -> pl.Series:
        """Return the whole body of each message."""
        return (self.head + contents + self.tail).alias("body")

    def sizes(self, frame: Frame, only: pl.Series | None = None) -> pl.DataFrame:
        """Return `SIZES` of a frame, or of some of its rows: read as a stream, nothing rendered whole."""
        rows = frame.lazy().select(
            pl.int_range(pl.len(), dtype=pl.UInt32).alias("row"),
            self.text.content.hash().alias("text"),
            self.text.characters.cast(pl.UInt32).alias("characters"),
        )
        if only is not None:
            rows = rows.join(only.alias("row").to_frame().lazy(), on="row", how="semi")
        return _sizes(rows.group_by("text", "characters").agg(rows=pl.len())).collect(engine="streaming")

    def keys(self, contents: pl.Series, api: str) -> pl.Series:
        """Return the key of each message, null for null: the same request to the same API, the same key.

        Whether the prompt is cached changes the price and not the answer, so it does not change the key.
        """
        # Polars' own hash is faster and changes between versions; a ledger must know its rows for ever.
        start = hashlib.blake2b(f"{api}\0{_head(self.constant)}".encode(), digest_size=16)
        end = self.tail.encode()

        def key(text: bytes) -> str:
            state = start.copy()
            state.update(text + end)
            return state.hexdigest()

        texts = contents.cast(pl.Binary).to_list()  # half the time of making strings and encoding them
        return pl.Series("key", [None if text is None else key(text) for text in texts], pl.String)

    def results_schema(self, frame: Frame) -> pl.Schema:
        """Return the columns that the results of a frame have."""
        typed = {} if self.returns is None else self.returns.columns
        return pl.Schema({**schema_of(frame), **typed, "reply": pl.String(), "error": pl.String(), **typed})

    def changed(self, other: Prompt) -> set[str]:
        """Return which fields of the requests differ from another prompt's, of those that keys depend on."""
        mine, theirs = self.constant, other.constant
        names = {*mine, *theirs}
        return {name for name in names if as_json(mine.get(name)) != as_json(theirs.get(name))}

    def work(self, frame: Frame, api: str, kept: Kept | None = None) -> Work:
        """Return the rows of a frame with the keys they have at one API, in one pass over their texts."""
        frame = read(frame)
        around = len(self.head.encode()) + len(self.tail.encode())
        parts, rendered = [], None
        for part in [frame] if self.columns is None else _slices(frame.select(self.columns)):
            contents = self.contents(part)
            message = contents["content"]
            rendered = message if self.columns is None else None
            size = message.str.len_bytes().cast(pl.Int64).alias("bytes") + around
            parts.append(pl.DataFrame([self.keys(message, api), size, contents["characters"]]))
        rows = pl.concat(parts, rechunk=True).with_row_index("row")
        if kept is not None:
            rows = rows.with_columns(kept.applied(rows["key"]))
        _check_sizes(rows)
        sent = rows if kept is None else rows[kept.open]
        first = [pl.first("row", "bytes", "characters"), pl.len().alias("rows")]
        distinct = sent.group_by("key", maintain_order=True).agg(first)
        requests = distinct.drop_nulls().with_columns(
            estimated_tokens=self.estimated_tokens(pl.col("characters"))
        )
        texts = Texts(self, frame, rendered)
        return Work(frame, rows["key"], requests.select(*REQUESTS), texts, _sizes(distinct.lazy()).collect())


def _sizes(distinct: pl.LazyFrame) -> pl.LazyFrame:
    # Sorted, so that sums over them are the same to the last digit every time.
    sizes = distinct.group_by("characters").agg(requests=pl.len(), rows=pl.col("rows").sum())
    return sizes.cast({"requests": pl.UInt32, "rows": pl.UInt32}).sort("characters")


def _slices(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield the frame in slices: at least one, as an empty frame has columns too."""
    yield from (frame.slice(start, SLICE_ROWS) for start in range(0, max(frame.height, 1), SLICE_ROWS))


def _check_sizes(rows: pl.DataFrame) -> None:
    large = rows.filter(pl.col("bytes") > MESSAGE.max_bytes)
    if large.height:
        row, size = large.select("row", "bytes").row(0)
        more = f" In all, {large.height:,} rows are too large." if large.height > 1 else ""
        msg = (
            f"The request of row {row:,} (counted from 0) is {size:,} bytes, over the API's limit of "
            f"{MESSAGE.max_bytes:,}. Shorten its text, as in pl.col(...).str.head(100_000), or leave the row "
            f"out.{more}"
        )
        raise RequestTooLarge(msg)


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
    """Return what is asked about every row of frames of one schema; a PlanError says what cannot be.

    Thinking is kept off, or small where a model cannot do without, unless `thinking` or `effort` is
    given: then only what was given is sent, and the API's defaults hold for the rest.

    Parameters
    ----------
    sent : str, optional
        The model's name as it was typed and is sent; the default is its id. A dated id and its alias are one
        model, so keys have the id.

    Examples
    --------
    >>> from claudescale.api.catalog import model
    >>> frame = pl.DataFrame({"text": ["late again"]})
    >>> prompt = compile_prompt("Name it: {text}", frame.schema, model=model("claude-haiku-5-5"))
    >>> prompt.contents(frame)["content"].item()
    '{"role":"user","content":"Name it: late again"}'
    """
    text = text_of(prompt, schema)
    if returns is not None and not model.structured_outputs:
        refuse(
            f"{model.id} has no structured outputs, which returns= needs. Choose another model, or ask for "
            "the form in the prompt and read run.results['reply'] yourself."
        )
    typed = None if returns is None else compile_returns(returns)
    _check_names(schema, typed)
    extra = checked(params or {}, model)
    max_tokens = plain(max_tokens, whole=True)
    if type(max_tokens) is not int or not 1 <= max_tokens <= model.max_output_tokens:
        most = f"{model.max_output_tokens:,}"
        refuse(f"max_tokens={max_tokens!r}: it is a whole number, and {model.id} writes 1 to {most} tokens.")
    thinking, output = thinking_of(model, max_tokens, effort, thinking)
    output |= _output(typed, extra.pop("output_config", {}))
    charges, notes = tool_charges(model, extra, thinking, typed=typed is not None)
    control = _cache_control(cache, system)
    if system is not None:
        if not isinstance(system, str) or not system.strip():
            why = f"system= must be a text that says something, not {system!r:.40}."
            refuse(f"{why} Leave it out if there is none.")
        check_unicode("system", system)
    fields = {"system": system, "thinking": dict(thinking or {}), "output_config": output}
    body = {"model": model.id, "max_tokens": max_tokens}
    body |= {name: value for name, value in fields.items() if value} | extra
    block = [{"type": "text", "text": system, **control}]
    prefix = len(system or "") + (len(as_json(extra["tools"])) if extra.get("tools") else 0)
    return Prompt(
        head=_head(body | {"model": sent or model.id} | ({"system": block} if control else {})),
        text=text,
        template=None if isinstance(prompt, pl.Expr) else prompt,
        returns=typed,
        constant=body,
        model=model,
        shared_characters=prefix + (len(as_json(typed.json_schema)) if typed else 0),
        notes=(*notes, *_notes(body, schema, model, prefix if cache else None)),
        charges=charges,
    )


def _head(body: Mapping[str, Any]) -> str:
    return f'{as_json(body)[:-1]},"messages":['


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


def _notes(body: Mapping[str, Any], schema: pl.Schema, model: Model, prefix: int | None) -> Iterator[str]:
    """Yield what is worth knowing of a request; `prefix` is the length of what is to be cached."""
    minimum, tokens = model.cache_minimum_tokens, round((prefix or 0) / model.characters_per_token)
    if prefix is not None and minimum is not None and tokens < minimum:
        yield (
            f"The shared prefix is about {tokens:,} tokens (estimated from characters); {model.id} caches "
            f"from {minimum:,} on, so it will most likely not be cached."
        )
    names = _properties([body.get("tools"), body.get("output_config", {}).get("format")])
    if named := next((name for name in names if name.lower() in FACTS["extracting"]), None):
        yield (
            f"A returned field called {named!r} can make the model decline (reasoning_extraction), and such "
            "a refusal is billed. Rename it, for example to 'why'."
        )
    if column := next((name for name in schema if f"{{{name}}}" in body.get("system", "")), None):
        note = "is text there: the system prompt is the same for every row. Columns belong in the prompt."
        yield f"{{{column}}} {note}"


def _cache_control(cache: Cache, system: str | None) -> dict[str, Any]:
    if cache is False:
        return {}
    if cache not in (True, "5m", "1h"):
        refuse(f"cache must be False, True, '5m' or '1h', not {cache!r}.")
    if system is None:
        refuse(
            "cache= needs a prefix that all rows share. "
            "Move what is the same for every row out of the prompt and into system=."
        )
    return {"cache_control": {"type": "ephemeral"} | ({"ttl": "1h"} if cache == "1h" else {})}


def _properties(value: Any) -> Iterator[str]:
    """Yield the names of all fields of the JSON schemas in a value."""
    if isinstance(value, dict):
        yield from map(str, value.get("properties", ()))
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _properties(inner)


def _output(typed: Returns | None, given: Mapping[str, Any]) -> dict[str, Any]:
    if "effort" in given:
        refuse("params has an 'effort' in its 'output_config'. Use effort= instead.")
    if typed is not None and "format" in given:
        refuse("returns= and params['output_config']['format'] both say what the reply looks like. Keep one.")
    return dict(given) | ({"format": {"type": "json_schema", "schema": typed.json_schema}} if typed else {})


# ------------------------------------------------------------- the rows of a run, and what answers them


class Texts(NamedTuple):
    """The texts of a frame's rows as JSON, rendered when they are needed: no second copy of the frame.

    Where they come from an expression they are rendered at once, as it may look at many rows.
    """

    prompt: Prompt
    frame: pl.DataFrame
    rendered: pl.Series | None

    def of(self, rows: pl.Series) -> pl.Series:
        """Return the text of each of the rows."""
        if self.rendered is not None:
            return self.rendered.gather(rows)
        return self.prompt.contents(self.frame.select(self.prompt.columns or ())[rows])["content"]

    def bodies(self, rows: pl.Series) -> Iterator[bytes]:
        """Yield the whole request of each of the rows."""
        return (f"{self.prompt.head}{text}{self.prompt.tail}".encode() for text in self.of(rows))


class Work(NamedTuple):
    """What a run needs to know of its rows."""

    frame: pl.DataFrame  # the user's rows
    keys: pl.Series  # of each row, null where it has nothing to send
    requests: pl.DataFrame  # `REQUESTS`: each distinct request once, in the frame's order
    texts: Texts  # what each request says
    sizes: pl.DataFrame  # `SIZES`, of what is sent

    def results(self, answers: pl.DataFrame, *, simulated: bool = False) -> pl.DataFrame:
        """Return the user's frame, same rows in the same order, with typed columns, `reply` and `error`.

        Parameters
        ----------
        answers : pl.DataFrame
            `key`, `reply`, `error`: at most one row per key.
        simulated : bool
            Mark every row as a simulator's, so that no file made of them can pass for the real thing.
        """
        known = answers.select("key", "reply", "error", found=pl.lit(value=True))
        joined = self.keys.to_frame().join(known, on="key", how="left", maintain_order="left")
        waiting = pl.col("key").is_not_null() & pl.col("found").is_null()
        joined = joined.with_columns(error=pl.when(waiting).then(pl.lit(NOT_SENT)).otherwise("error"))
        columns, returns = joined.select("reply", "error"), self.texts.prompt.returns
        if returns is not None:
            typed, broken = returns.decode(joined["reply"])
            columns = columns.with_columns(error=pl.coalesce("error", broken))
            columns = typed.hstack(columns.select("error") if returns.single else columns)
        if simulated:
            columns = columns.with_columns(simulated=True)
        return self.frame.hstack(columns)


# ---------------------------------------------------------------------------------------- reading frames


def read(frame: Frame) -> pl.DataFrame:
    """Return the rows of a frame; a PlanError where a LazyFrame fails."""
    try:
        return frame.lazy().collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(error) from error


def schema_of(frame: Frame) -> pl.Schema:
    """Return the columns of a frame that need not be read for it; PlanError where it cannot be."""
    try:
        return frame.lazy().collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(error) from error


def unreadable(error: Exception) -> PlanError:
    """Return what is wrong with a LazyFrame that fails; its own message may quote data, so it is linked."""
    msg = f"The frame cannot be read: {type(error).__name__}. See what it says with frame.collect()."
    return PlanError(msg)


def unknown_column(name: str, schema: pl.Schema, subject: str) -> UnknownColumn:
    """Return the error that says which column is meant, and which there are."""
    there_are = f"The results have: {', '.join(schema)}."
    return UnknownColumn(f"{subject} names the column {name!r}.{nearest(name, schema)} {there_are}")
