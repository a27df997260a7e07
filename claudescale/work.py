"""Work: the rows of a run as Polars columns; which request answers which row.

Pure functions from frames to frames. The replies themselves are the ledger's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from claudescale import estimates
from claudescale.errors import PlanError

if TYPE_CHECKING:
    from claudescale.plans import Plan
    from claudescale.replies import Returns

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
        `key`, `content` (JSON) and `estimated_tokens` of each distinct request, in the frame's order.
    """

    frame: pl.DataFrame
    keys: pl.Series
    requests: pl.DataFrame

    def without_content(self) -> Work:
        """Return the same, without the texts to send: they are no longer needed once the run is under way."""
        return self._replace(requests=self.requests.drop("content"))


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


def unreadable(error: Exception) -> PlanError:
    """Return what is wrong with a LazyFrame that fails; its own message may quote data, so it is linked."""
    msg = f"The frame cannot be read: {type(error).__name__}. See what it says with frame.collect()."
    return PlanError(msg)


def prepare(plan: Plan, api: str) -> Work:
    """Return the rows of a plan, with the keys they have at one API."""
    prompt = plan.compiled
    frame = read(plan.frame)
    contents = prompt.contents(frame)["content"]
    keys = prompt.content_keys(contents, api)
    characters = pl.col("content").str.len_chars()
    requests = (
        pl.DataFrame([keys, contents])
        .drop_nulls()
        .unique("key", keep="first", maintain_order=True)
        .with_columns(estimated_tokens=estimates.estimated_tokens(prompt, plan.facts, characters))
    )
    return Work(frame, keys, requests)


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
