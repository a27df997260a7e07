"""What a plan's calls take, measured: by a pilot, or its input by the API's own count, which is free."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import polars as pl

from claudescale.api import catalog, prices
from claudescale.api.answers import read_object, verdict
from claudescale.api.client import Wire
from claudescale.errors import PlanError
from claudescale.planning.estimates import Line, Measured

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

    from claudescale.planning.plans import Plan
    from claudescale.prompts.requests import Prompt, Work
    from claudescale.running.runs import Run

_FEWEST_FOR_A_LINE = 10
_SURE_TREND = 3.0  # so many standard errors from zero is a trend
_SAME_LENGTH = 1e-9
_AT_ONCE = 8


def learned(run: Run, plan: Plan) -> Measured:
    """Return what a plan's calls take, by a run of some of its rows."""
    if not hasattr(run, "job"):
        kind = type(run).__name__
        msg = f"plan.calibrate() takes a run, not a {kind}: pilot = await plan.sample(50).run(client)."
        raise PlanError(msg)
    model = plan.facts.id
    sizes = run.job.work.requests.select("key", "estimated_tokens")
    done = sizes.join(run.job.replies().filter(pl.col("model") == model), on="key", how="inner")
    paid, attempts = done.filter(pl.col("dollars") > 0), run.attempts
    if paid.is_empty():
        msg = f"The run has no paid replies of {model} to learn from. "
        raise PlanError(msg + "Use pilot = await plan.sample(50).run(client) first.")
    known = replace(measured(paid, attempts), requests=plan.totals.requests)
    ratio = _billed_ratio(known, done, attempts, plan.compiled, plan.max_tokens)
    return replace(known, billed_ratio=ratio)


def measured(paid: pl.DataFrame, attempts: pl.DataFrame | None = None) -> Measured:
    """Return what the calls of a pilot took.

    Parameters
    ----------
    paid : pl.DataFrame
        Of `claudescale.ledger.records.ATTEMPTS`, one row per paid reply, with `estimated_tokens`.
    attempts : pl.DataFrame, optional
        All calls of the pilot, those that failed too.
    """
    live, batch = (paid.filter(mode=mode) for mode in ("live", "batch"))
    estimated = paid["estimated_tokens"]
    output = _line(estimated, paid["output_tokens"])
    latency = Line(1.0 + output.mean / 80)
    if not live.is_empty():
        latency = _line(live["estimated_tokens"], live["seconds"])
    cached = paid.select(tokens=prices.PROMPT - pl.col("input_tokens")).to_series()  # written or read
    cached_tokens = _number(cached.filter(cached > 0).mean())
    error_rate, lost_seconds = _failures(attempts, live)
    return Measured(
        input=_line(estimated, paid.select(prices.PROMPT).to_series(), rises=True),
        output=output,
        latency=latency,
        estimated_tokens=_number(estimated.mean()),
        estimated_deviation=_number(estimated.std()),
        cached_tokens=cached_tokens,
        cache_hit_share=_hits(live, 1) if cached_tokens and live.height > 1 else 1.0,
        batch_hit_share=_hits(batch, 0) if cached_tokens and batch.height else None,
        error_rate=error_rate,
        lost_seconds=lost_seconds,
        calls=paid.height,
    )


def _number(value: Any) -> float:
    """Return a figure, 0 where rows are too few to tell it."""
    return 0.0 if value is None or not math.isfinite(value) else float(value)


def _line(x: pl.Series, y: pl.Series, *, rises: bool = False) -> Line:
    """Return how a figure goes with the estimated tokens of its requests.

    It is flat where that is not certain; a figure that surely `rises` then goes through zero.
    """
    n, y = x.len(), y.cast(pl.Float64)
    mean, mean_x = _number(y.mean()), _number(x.mean())
    slope, freedom = mean / mean_x if rises else 0.0, max(n - 1, 1)
    inverse = float((1 / x).sum())
    moment = float(x.sum()) - n**2 / inverse
    if n >= _FEWEST_FOR_A_LINE and moment > float(x.sum()) * _SAME_LENGTH:
        # Rows deviate with the root of x: long ones, which deviate most, do not turn the line.
        steepness = (float(y.sum()) - n * float((y / x).sum()) / inverse) / moment
        rest = y - mean - steepness * (x - mean_x)
        error = math.sqrt(float((rest**2 / x).sum()) / (n - 2) / moment)
        starts = mean + steepness * (_number(x.min()) - mean_x)
        if steepness >= _SURE_TREND * error and (starts > 0 or not rises):
            slope, freedom = steepness, n - 2
    rest = y - mean - slope * (x - mean_x)
    deviation = _number(rest.std()) * math.sqrt(max(n - 1, 1) / freedom)
    return Line(mean, slope, deviation, _number(rest.skew(bias=n < 3)))  # noqa: PLR2004


def _hits(calls: pl.DataFrame, first: int) -> float:
    """Return how many of the calls found the cache, but for those that come first."""
    hits = int((calls["cache_read_input_tokens"] > 0).sum())
    return min(hits / (calls.height - first), 1.0)


def _failures(attempts: pl.DataFrame | None, live: pl.DataFrame) -> tuple[float, float]:
    """Return the part of a pilot's live calls that failed and were sent again, and what a row loses to it."""
    if attempts is None or live.is_empty():
        return 0.0, 0.0
    tries = attempts.filter(
        pl.col("mode") == "live", pl.col("status").ne_missing(HTTPStatus.TOO_MANY_REQUESTS)
    )
    rows = tries.group_by("key").agg(
        failed=((pl.col("dollars") == 0) & pl.col("error").ne_missing("refusal")).sum(),
        seconds=(pl.col("sent_at").last() - pl.col("sent_at").first()).dt.total_milliseconds() / 1_000,
    )
    failed = int(rows["failed"].sum())
    return (failed / tries.height, float(rows["seconds"].sum()) / live.height) if failed else (0.0, 0.0)


def _billed_ratio(
    known: Measured, done: pl.DataFrame, attempts: pl.DataFrame, prompt: Prompt, max_tokens: int
) -> float:
    """Return what a pilot's requests were billed, for each dollar that they are estimated at."""
    tried = attempts.group_by("key").agg(paid=pl.col("dollars").sum())
    # A reply that an earlier run has paid for is among no attempts of this one.
    paid = pl.max_horizontal("dollars", pl.col("paid").fill_null(0.0))
    billed = float(done.join(tried, on="key", how="left").select(paid.sum()).item())
    estimated = pl.col("estimated_tokens")
    unread = pl.when(pl.col("dollars") > 0).then("cache_read_input_tokens").otherwise(known.cached_tokens)
    usage = {name: pl.col(name).cast(pl.Float64) for name in prices.COLUMNS.values()}
    usage["cache_read_input_tokens"] = unread
    usage["output_tokens"] = known.at(known.output, estimated).clip(0.0, float(max_tokens))
    written = usage["cache_write_5m_input_tokens"] + usage["cache_write_1h_input_tokens"]
    usage["input_tokens"] = known.at(known.input, estimated) - unread - written
    dollars = 0.0
    for mode in ("live", "batch"):
        price = prices.price(prompt.model, mode=mode, inference_geo=prompt.charges.inference_geo)
        if not price.is_known:
            return 1.0
        rows = done.filter(mode=mode)
        fee = (price.search or 0.0) if prompt.charges.searches != 0 else 0.0
        dollars += rows.select(prices.dollars(price, **usage).sum()).item() + fee * rows.height
    return billed / dollars


async def counted(client: AsyncAnthropic, plan: Plan, work: Work) -> Measured:
    """Return what a plan's calls take, its input counted by the API on some of its requests."""
    requests = list(work.texts.bodies(work.requests["row"]))
    if not requests:
        msg = "The plan has no row to count: every row has a null in the prompt's columns."
        raise PlanError(msg)
    wire, slots = Wire(client), asyncio.Semaphore(_AT_ONCE)
    tasks: list[asyncio.Future[int]] = []
    try:
        catalog.callable_model(plan.facts, (await wire.api()).clock.now())
        tasks = [asyncio.ensure_future(_counted(wire, request, slots)) for request in requests]
        tokens = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await wire.close()
    estimated = work.requests["estimated_tokens"]
    return replace(
        plan.expected,
        input=_line(estimated, pl.Series(tokens, dtype=pl.Float64), rises=True),
        estimated_tokens=_number(estimated.mean()),
        estimated_deviation=_number(estimated.std()),
        counted=len(tasks),
        requests=plan.totals.requests,
    )


async def _counted(wire: Wire, request: bytes, slots: asyncio.Semaphore) -> int:
    async with slots:
        answer = await wire.count_tokens(request, patient=True)
    tokens = read_object(answer.content).get("input_tokens")
    if answer.status == HTTPStatus.OK and isinstance(tokens, int):
        return tokens
    why = verdict(answer)
    reason = why.message or "no reason given"
    msg = f"The API does not count tokens ({why.error}): {reason}. Nothing was paid."
    raise PlanError(msg)
