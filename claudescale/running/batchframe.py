"""The batches of a run as a frame: how each ended, what it cost, how often it met the cache."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from claudescale.api import catalog
from claudescale.ledger.records import Batch, columns_of

if TYPE_CHECKING:
    from collections.abc import Sequence

_MOMENT = pl.Datetime("us", "UTC")
BATCHES = pl.Schema(
    {
        "batch_id": pl.String(),
        "state": pl.String(),
        "requests": pl.Int64(),
        "succeeded": pl.Int64(),
        "errored": pl.Int64(),
        "canceled": pl.Int64(),
        "expired": pl.Int64(),
        "created_at": _MOMENT,
        "ended_at": _MOMENT,
        "minutes": pl.Float64(),
        "results_until": _MOMENT,
        "dollars": pl.Float64(),
        "cache_hit_share": pl.Float64(),
    }
)
"""Columns of `Run.batches`. The counts are 0 until the batch has ended, as the API tells them; `minutes` is
from its creation to its end; `cache_hit_share` is of the tokens that could be read from the cache."""


def batch_frame(batches: Sequence[Batch], attempts: pl.DataFrame) -> pl.DataFrame:
    """Return one row per batch, in the order they were sent.

    Spends: nothing.

    Parameters
    ----------
    batches : sequence of Batch
        From the ledger.
    attempts : pl.DataFrame
        Of `claudescale.ledger.records.ATTEMPTS`, with those of these batches.
    """
    read = pl.col("cache_read_input_tokens").sum()
    written = pl.sum_horizontal(pl.col("^cache_write.*$").sum())
    paid = (
        attempts.drop_nulls("batch_id")
        .group_by("batch_id")
        .agg(
            dollars=pl.col("dollars").sum(),
            cache_hit_share=pl.when(read + written > 0).then(read / (read + written)),
        )
    )
    kept = catalog.BATCH.results_days * 86_400
    at = {
        "created_at": pl.col("created_at"),
        "ended_at": pl.col("ended_at"),
        "results_until": pl.col("created_at") + kept,
    }
    return (
        pl.DataFrame(batches, schema=columns_of(Batch), orient="row")
        .join(paid, on="batch_id", how="left", maintain_order="left")
        .with_columns(
            minutes=(pl.col("ended_at") - pl.col("created_at")) / 60,
            **{name: (seconds * 1e6).cast(pl.Int64).cast(_MOMENT) for name, seconds in at.items()},
        )
        .select(*BATCHES)
        .cast(BATCHES)
    )
