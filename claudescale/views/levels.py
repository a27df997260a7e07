"""How full the token buckets were during a run, by its attempts. Pure frames."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING

import polars as pl

from claudescale.api.limits import BUCKETS
from claudescale.api.prices import UNCACHED

if TYPE_CHECKING:
    from claudescale.api.limits import Limits

LEVELS = pl.Schema(
    {"bucket": pl.String(), "minute": pl.Float64(), "level": pl.Float64(), "capacity": pl.Float64()}
)
"""Columns of `levels`: what a bucket holds just after a call took from it; negative is a debt."""


def levels(
    attempts: pl.DataFrame, limits: Limits, started_at: float, bucket_seconds: float = 60.0
) -> pl.DataFrame:
    """Return the level of each of the three token buckets over a run, as `LEVELS`.

    A bucket is full at the start, refills at a constant rate up to its capacity and is drawn on by every
    call that was answered: by its request and its uncached input when it is sent, by its output when it has
    been written. Nobody else's calls are in it.

    Spends: nothing.

    Parameters
    ----------
    attempts : pl.DataFrame
        Of `claudescale.ledger.records.ATTEMPTS`; those of batches have limits of their own and are left out.
    limits : Limits
        What refills in a minute.
    started_at : float
        API unix seconds at which the run started.
    bucket_seconds : float
        How many seconds' refill a full bucket holds. The API's may hold a minute's, or enforce its limits
        by the second (Source: Anthropic, *Rate limits*, checked 2026-10-08).
    """
    sent = pl.col("sent_at").dt.epoch("us") / 1e6 - started_at
    calls = attempts.filter(pl.col("batch_id").is_null(), pl.col("status") == HTTPStatus.OK, sent >= 0)
    taken = {
        "requests": (sent, pl.lit(1.0)),
        "input_tokens": (sent, UNCACHED),
        "output_tokens": (sent + pl.col("seconds"), pl.col("output_tokens")),
    }
    frames = []
    for name, per_minute in zip(BUCKETS, limits.per_minute, strict=True):
        at, tokens = taken[name]
        events = calls.select(at=at, taken=tokens.cast(pl.Float64)).sort("at", maintain_order=True)
        level = _levels(events, per_minute / 60, per_minute / 60 * bucket_seconds)
        frames.append(
            level.select(bucket=pl.lit(name), minute=pl.col("at") / 60, level="level", capacity="capacity")
        )
    return pl.concat(frames).cast(LEVELS)


def _levels(events: pl.DataFrame, rate: float, capacity: float) -> pl.DataFrame:
    """Return the level after each event.

    What is missing from a full bucket grows with every call, shrinks as time passes and is never below
    zero. So it is a sum less the lowest that sum ever was: no loop over the calls.
    """
    before = pl.col("taken").cum_sum() - pl.col("taken") - rate * pl.col("at")
    missing = before - before.cum_min() + pl.col("taken")
    return events.select("at", level=capacity - missing, capacity=pl.lit(capacity))
