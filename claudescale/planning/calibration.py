"""What a plan's calls take, measured: by a pilot, or its input by the API's own count, which is free."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.api import catalog, prices
from claudescale.api.answers import read_object
from claudescale.api.client import Wire, unasked
from claudescale.errors import PlanError
from claudescale.planning.estimates import AS_ESTIMATED, NOTHING_KNOWN, Line, Measured, total

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

    from claudescale.prompts.requests import Prompt, Work

_FEWEST_FOR_A_LINE = 10
_SURE_TREND = 3.0  # so many standard errors from zero is a trend
_SAME_LENGTH = 1e-9
_AT_ONCE = 8


def measured(
    sizes: pl.DataFrame, attempts: pl.DataFrame, prompt: Prompt, max_tokens: int, requests: int
) -> Measured:
    """Return what the calls of a pilot took.

    Parameters
    ----------
    sizes : pl.DataFrame
        Of `claudescale.ledger.records.ATTEMPTS`, the last reply to each request, with `estimated_tokens`.
    attempts : pl.DataFrame
        All calls of the pilot, those that failed too.
    """
    paid = sizes.filter(pl.col("dollars") > 0)
    if paid.is_empty():
        msg = f"The run has no paid replies of {prompt.model.id} to learn from. "
        raise PlanError(msg + "Use pilot = await plan.sample(50).run(client) first.")
    live, batch = (paid.filter(mode=mode) for mode in ("live", "batch"))
    estimated = paid["estimated_tokens"]
    output = line(estimated, paid["output_tokens"], requests)
    latency = (
        line(live["estimated_tokens"], live["seconds"], requests)
        if live.height
        else Line(1.0 + output.mean / 80)
    )
    cached = paid.select(tokens=prices.PROMPT - pl.col("input_tokens")).to_series()  # written or read
    cached_tokens = _number(cached.filter(cached > 0).mean())
    error_rate, lost_rate, lost_seconds = _failures(attempts, live)
    known = Measured(
        input=line(estimated, paid.select(prices.PROMPT).to_series(), requests, rises=True),
        output=output,
        latency=latency,
        cached_tokens=cached_tokens,
        cache_hit_share=_hits(live, 1) if cached_tokens and live.height > 1 else 1.0,
        batch_hit_share=_hits(batch, 0) if cached_tokens and batch.height else None,
        error_rate=error_rate,
        lost_rate=lost_rate,
        lost_seconds=lost_seconds,
    )
    tried = attempts.group_by("key").agg(paid=pl.col("dollars").sum())
    # A reply that an earlier run has paid for is among no attempts of this one.
    dollars = pl.max_horizontal("dollars", pl.col("paid").fill_null(0.0))
    billed = float(sizes.join(tried, on="key", how="left").select(dollars.sum()).item())
    each = sizes.select("mode", "estimated_tokens", requests=1, rows=1)
    live_dollars = total(each.filter(mode="live"), prompt, known, max_tokens).live_dollars
    estimate = live_dollars + total(each.filter(mode="batch"), prompt, known, max_tokens).batch_dollars
    ratio = billed / estimate if math.isfinite(estimate) else 1.0
    return replace(known, billed_ratio=ratio, cache_hit_share=min(known.cache_hit_share, 1.0))


def _number(value: Any) -> float:
    """Return a figure, 0 where rows are too few to tell it."""
    return 0.0 if value is None or not math.isfinite(value) else float(value)


def line(x: pl.Series, y: pl.Series, requests: int, *, rises: bool = False) -> Line:
    """Return how a figure goes with the estimated tokens of its requests.

    It is flat where that is not certain; a figure that surely `rises` then goes through zero.
    """
    n, y = x.len(), y.cast(pl.Float64)
    mean, mean_x, wide = _number(y.mean()), _number(x.mean()), _number(x.std())
    slope, freedom = mean / mean_x if rises else 0.0, max(n - 1, 1)
    if n >= _FEWEST_FOR_A_LINE and wide > mean_x * _SAME_LENGTH:
        moment = wide**2 * (n - 1)
        steepness = float(((x - mean_x) * (y - mean)).sum()) / moment
        rest = y - mean - steepness * (x - mean_x)
        error = math.sqrt(float((rest**2).sum()) / (n - 2) / moment)
        starts = mean + steepness * (_number(x.min()) - mean_x)
        if steepness >= _SURE_TREND * error and (starts > 0 or not rises):
            slope, freedom = steepness, n - 2
    rest = y - mean - slope * (x - mean_x)
    deviation = _number(rest.std()) * math.sqrt(max(n - 1, 1) / freedom)
    guess = AS_ESTIMATED if rises else NOTHING_KNOWN
    return Line(mean, slope, deviation, n, requests, center=mean_x, spread=wide, guessed=guess.guessed)


def _hits(calls: pl.DataFrame, first: int) -> float:
    """Return how many of the calls found the cache, but for those that come first."""
    return int((calls["cache_read_input_tokens"] > 0).sum()) / (calls.height - first)


def _failures(attempts: pl.DataFrame, live: pl.DataFrame) -> tuple[float, float, float]:
    """Return the part of a pilot's live calls that failed and were sent again, and what a row loses to it."""
    refused = pl.col("status").eq_missing(HTTPStatus.TOO_MANY_REQUESTS)
    tries = attempts.filter(pl.col("mode") == "live", ~refused)
    sent = pl.col("sent_at")
    rows = tries.group_by("key").agg(
        failed=((pl.col("dollars") == 0) & pl.col("error").ne_missing("refusal")).sum(),
        seconds=(sent.last() - sent.first()).dt.total_milliseconds() / 1_000,
    )
    failed, lost = int(rows["failed"].sum()), tries["status"].null_count()
    return (
        (failed / tries.height, lost / tries.height, float(rows["seconds"].sum()) / live.height)
        if failed and live.height
        else (0.0, 0.0, 0.0)
    )


async def counted(
    client: AsyncAnthropic, work: Work, known: Measured, model: catalog.Model, requests: int
) -> Measured:
    """Return what calls take, the input of some of them counted by the API, which is free."""
    estimated, slots = work.requests["estimated_tokens"], asyncio.Semaphore(_AT_ONCE)
    if estimated.is_empty():
        msg = "The plan has no row to count: every row has a null in the prompt's columns."
        raise PlanError(msg)

    async def count(body: bytes) -> int:
        async with slots:
            answer = await wire.count_tokens(body, patient=True)
        tokens = read_object(answer.content).get("input_tokens")
        if answer.status != HTTPStatus.OK or not isinstance(tokens, int):
            raise unasked(answer, "count of tokens")
        return tokens

    async with Wire(client) as wire:
        catalog.callable_model(model, (await wire.api()).clock.now())
        tasks = [asyncio.ensure_future(count(body)) for body in work.texts.bodies(work.requests["row"])]
        try:
            tokens = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
    return replace(known, input=line(estimated, pl.Series(tokens, dtype=pl.Float64), requests, rises=True))
