"""Attempts to rates: requests and tokens per minute, in slices of API time."""

from __future__ import annotations

from http import HTTPStatus

import polars as pl

from claudescale.api import prices

THROUGHPUT = pl.Schema(
    {
        "minute": pl.Float64(),
        "slice_minutes": pl.Float64(),
        "requests_per_minute": pl.Float64(),
        "input_tokens_per_minute": pl.Float64(),
        "output_tokens_per_minute": pl.Float64(),
        "refused": pl.Int64(),
    }
)
"""Columns of `Run.throughput`, and of `rates`: slices of API time, rates per minute."""

_SLICE_SECONDS = (1, 2, 5, 10, 15, 30, 60)
_MOST_SLICES = 60


def by_minute(attempts: pl.DataFrame, started_at: float, minutes: float) -> pl.DataFrame:
    """Return the same as `rates`, one row per minute. The last is as long as the run has lasted in it.

    Spends: nothing.
    """
    frame = rates(attempts, started_at, minutes, slice_seconds=60)
    lasted = (minutes - pl.col("minute")).clip(upper_bound=1.0)
    length = pl.when(lasted > 0).then(lasted).otherwise(1.0)  # results of batches may be told of later
    per_minute = pl.col("^.*_per_minute$") / length
    return frame.with_columns(per_minute, slice_minutes=length)


def rates(
    attempts: pl.DataFrame, started_at: float, minutes: float, *, slice_seconds: int | None = None
) -> pl.DataFrame:
    """Return requests and tokens per minute over a run, as `THROUGHPUT`.

    A request counts when it was sent, its tokens when it was answered.

    Spends: nothing.

    Parameters
    ----------
    attempts : pl.DataFrame
        Of `claudescale.ledger.records.ATTEMPTS`.
    started_at : float
        API unix seconds at which the run started.
    minutes : float
        API minutes it has lasted.
    slice_seconds : int, optional
        How long a slice is. The default is at least a second and at most a sixtieth of the run; above an
        hour a number of whole minutes.
    """
    width = slice_seconds or _slice_seconds(minutes)
    sent = pl.col("sent_at").dt.epoch("us") / 1e6 - started_at
    calls = attempts.filter(sent > -width).select(  # batches of an earlier run were sent then
        _slice(sent, width),
        requests=1,
        refused=(pl.col("status") == HTTPStatus.TOO_MANY_REQUESTS).cast(pl.Int64),
    )
    answers = attempts.select(
        _slice(sent + pl.col("seconds"), width),
        input=prices.UNCACHED,
        output="output_tokens",
    )
    slices = [frame.group_by("slice").sum() for frame in (calls, answers)]
    last = pl.concat([frame.select(pl.col("slice").max()) for frame in slices]).max().item()
    grid = pl.select(slice=pl.int_range(0, 0 if last is None else last + 1))
    for frame in slices:
        grid = grid.join(frame, on="slice", how="left", maintain_order="left")
    counts = grid.fill_null(0)
    per_minute = 60 / width
    return counts.select(
        minute=pl.col("slice") * width / 60,
        slice_minutes=pl.lit(width / 60),
        requests_per_minute=pl.col("requests") * per_minute,
        input_tokens_per_minute=pl.col("input") * per_minute,
        output_tokens_per_minute=pl.col("output") * per_minute,
        refused=pl.col("refused").cast(pl.Int64),
    )


def _slice_seconds(minutes: float) -> int:
    fitting = (seconds for seconds in _SLICE_SECONDS if minutes * 60 / seconds <= _MOST_SLICES)
    return next(fitting, 60 * max(round(minutes / _MOST_SLICES), 1))


def _slice(at: pl.Expr, width: int) -> pl.Expr:
    return (at / width).floor().clip(0).cast(pl.Int64).alias("slice")
