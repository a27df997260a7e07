"""How many calls in flight at once a plan needs: Little's law."""

from __future__ import annotations

from typing import TYPE_CHECKING

import polars as pl

from claudescale.api.limits import BUCKETS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from claudescale.planning.plans import Plan

CONCURRENCY = pl.Schema(
    {"concurrency": pl.Float64(), "requests_per_minute": pl.Float64(), "binding": pl.String()}
)
"""Columns of `throughput`: what so many calls in flight get done in a minute, and what keeps it from more."""


def needed(plan: Plan) -> float:
    """Return how many calls in flight use up a plan's limits: calls per second times seconds per call.

    Spends: nothing.

    Notes
    -----
    Source: J. D. C. Little, "A Proof for the Queuing Formula: L = λW", *Operations Research* 9 (1961).
    """
    most, _ = allowed(plan)
    return most / 60 * plan.expected.seconds


def allowed(plan: Plan) -> tuple[float, str]:
    """Return the requests per minute that a plan's limits let through, and which limit that is.

    Limits on tokens are counted in calls of the plan's mean size.

    Spends: nothing.
    """
    totals, limits = plan.totals, plan.limits.shared(plan.share)
    each = (1.0, totals.input_tokens - totals.cache_read_tokens, totals.output_tokens)
    sizes = (1.0, *(tokens / totals.requests for tokens in each[1:])) if totals.requests else (1.0,) * 3
    rates = (
        limit / size if size else float("inf") for limit, size in zip(limits.per_minute, sizes, strict=True)
    )
    return min(zip(rates, BUCKETS, strict=True))


def throughput(plan: Plan, concurrency: Iterable[float]) -> pl.DataFrame:
    """Return what a plan gets done in a minute with so many calls in flight, as `CONCURRENCY`.

    Each call in flight makes one request per latency, until together they reach a limit: from there on more
    of them gain nothing.

    Spends: nothing.

    Parameters
    ----------
    plan : Plan
        Calibrated, or its latency is a guess.
    concurrency : list of float
        Calls in flight.
    """
    most, binding = allowed(plan)
    rows = []
    for calls in concurrency:
        rate = calls * 60 / plan.expected.seconds
        rows.append((calls, min(rate, most), "concurrency" if rate < most else binding))
    return pl.DataFrame(rows, schema=CONCURRENCY, orient="row")
