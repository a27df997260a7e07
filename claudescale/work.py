"""Work: the rows of a run as Polars columns; which request answers which row.

Pure functions from frames to frames. The replies themselves are the ledger's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from claudescale import estimates
from claudescale.errors import PlanError, UnknownColumn, nearest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from claudescale.plans import Plan
    from claudescale.prompts import Prompt
    from claudescale.replies import Returns

SLICE_ROWS = 4_000
"""How many rows are rendered at once."""
NOT_SENT = "not_sent"
"""What `error` says of a row that has no answer yet."""


class Work(NamedTuple):
    """What a run needs to know of its rows.

    Attributes
    ----------
    frame : pl.DataFrame
        The user's rows.
    keys : pl.Series
        Key of each row, null where it has nothing to send.
    requests : pl.DataFrame
        `REQUESTS`: each distinct request once, in the frame's order.
    texts : Texts
        What each request says.
    """

    frame: pl.DataFrame
    keys: pl.Series
    requests: pl.DataFrame
    texts: Texts


REQUESTS = pl.Schema(
    {"row": pl.UInt32(), "key": pl.String(), "bytes": pl.Int64(), "estimated_tokens": pl.Float64()}
)
"""Columns of `Work.requests`: its first row in the frame, its key, the size of its body."""


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


def read(frame: pl.DataFrame | pl.LazyFrame) -> pl.DataFrame:
    """Return the rows of a frame.

    Raises
    ------
    PlanError
        The LazyFrame fails when it is read.
    """
    try:
        return frame.lazy().collect()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(error) from error


def schema_of(frame: pl.DataFrame | pl.LazyFrame) -> pl.Schema:
    """Return the columns of a frame that need not be read for it; PlanError where it cannot be."""
    try:
        return frame.lazy().collect_schema()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise unreadable(error) from error


def results_schema(plan: Plan) -> pl.Schema:
    """Return the columns that the results of a plan have."""
    typed = {} if plan.compiled.returns is None else plan.compiled.returns.columns
    return pl.Schema({**schema_of(plan.frame), **typed, "reply": pl.String(), "error": pl.String(), **typed})


def one_column(expression: pl.Expr, schema: pl.Schema, subject: str, advice: str) -> pl.DataFrame:
    """Return the one column that an expression gives of no rows; raise what is wrong with it.

    Messages begin with `subject`, such as ``"The score"``, and end with `advice`.
    """
    try:
        found = pl.DataFrame(schema=schema).select(expression)
    except pl.exceptions.ColumnNotFoundError as error:
        missing = next((name for name in expression.meta.root_names() if name not in schema), "?")
        raise unknown_column(missing, schema, subject) from error
    except pl.exceptions.PolarsError as error:
        msg = f"{subject} cannot be computed: {error}. {advice}"
        raise PlanError(msg) from error
    if found.width != 1:
        msg = f"{subject} is one column, and the expression gives {found.width}: {', '.join(found.columns)}."
        raise PlanError(msg)
    return found


def unknown_column(name: str, schema: pl.Schema, subject: str) -> UnknownColumn:
    """Return the error that says which column is meant, and which there are."""
    there_are = f"The results have: {', '.join(schema)}."
    return UnknownColumn(f"{subject} names the column {name!r}.{nearest(name, schema)} {there_are}")


def unreadable(error: Exception) -> PlanError:
    """Return what is wrong with a LazyFrame that fails; its own message may quote data, so it is linked."""
    msg = f"The frame cannot be read: {type(error).__name__}. See what it says with frame.collect()."
    return PlanError(msg)


def prepare(plan: Plan, api: str) -> Work:
    """Return the rows of a plan, with the keys they have at one API."""
    prompt = plan.compiled
    frame = read(plan.frame)
    around = len(prompt.head.encode()) + len(prompt.tail.encode())
    parts, rendered = [], None
    for part in [frame] if prompt.columns is None else _slices(frame.select(prompt.columns)):
        found = prompt.contents(part)
        contents = found["content"]
        rendered = contents if prompt.columns is None else None
        bytes_ = contents.str.len_bytes().cast(pl.Int64).alias("bytes") + around
        parts.append(pl.DataFrame([prompt.keys(contents, api), bytes_, found["characters"]]))
    rows = pl.concat(parts, rechunk=True).with_row_index("row")
    tokens = estimates.estimated_tokens(prompt, plan.facts, pl.col("characters"))
    requests = (
        rows.drop_nulls()
        .unique("key", keep="first", maintain_order=True)
        .with_columns(estimated_tokens=tokens)
        .select(*REQUESTS)
    )
    return Work(frame, rows["key"], requests, Texts(prompt, frame, rendered))


def _slices(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield the frame in slices: at least one, as an empty frame has columns too."""
    yield from (frame.slice(start, SLICE_ROWS) for start in range(0, max(frame.height, 1), SLICE_ROWS))


def results(
    work: Work, returns: Returns | None, answers: pl.DataFrame, *, simulated: bool = False
) -> pl.DataFrame:
    """Return the user's frame, same rows in the same order, with typed columns, `reply` and `error`.

    Parameters
    ----------
    work : Work
        The rows.
    returns : Returns or None
        What makes typed columns of replies.
    answers : pl.DataFrame
        `key`, `reply`, `error`: at most one row per key.
    simulated : bool
        Mark every row as a simulator's, so that no file made of them can pass for the real thing.
    """
    mark = [pl.Series("simulated", [True]).new_from_index(0, work.frame.height)] if simulated else []
    found = answers.select("key", "reply", "error", found=pl.lit(value=True))
    joined = work.keys.to_frame().join(found, on="key", how="left", maintain_order="left")
    waiting = pl.col("key").is_not_null() & pl.col("found").is_null()
    error = pl.when(waiting).then(pl.lit(NOT_SENT)).otherwise("error").alias("error")
    joined = joined.select("reply", error)
    if returns is None:
        return work.frame.hstack([*joined.get_columns(), *mark])
    typed, broken = returns.decode(joined["reply"])
    errors = joined.select(pl.coalesce("error", broken).alias("error"))
    reply = [] if returns.single else [joined["reply"]]
    return work.frame.hstack([*typed.get_columns(), *reply, *errors.get_columns(), *mark])


def last_failures(attempts: pl.DataFrame, final: pl.DataFrame) -> pl.DataFrame:
    """Return the last attempt of each key that has no final one: rows that were given up."""
    failed = attempts.join(final.select("key"), on="key", how="anti", maintain_order="left")
    return failed.unique("key", keep="last", maintain_order=True)
