"""What a plan's calls take, measured: by a pilot, or its input by the API's own count, which is free."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING

import polars as pl

from claudescale.api import catalog, prices
from claudescale.api.answers import read_object, verdict
from claudescale.api.client import Wire
from claudescale.api.limits import read_headers
from claudescale.errors import PlanError
from claudescale.pacing.pacer import Turns
from claudescale.planning import calls

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

    from claudescale.planning.calls import Measured
    from claudescale.planning.plans import Plan
    from claudescale.running.runs import Run

_AT_ONCE = 8
_MOST_TRIES = 8
_COUNTS_PER_MINUTE = 2_000
"""Where the tier's is not known: the lowest's. Source: Anthropic, *Rate limits* (checked 2026-08-22)."""


def learned(plan: Plan, run: Run) -> Measured:
    """Return what a plan's calls take, by a run of some of its rows.

    Spends: nothing.

    Raises
    ------
    PlanError
        The run has no paid replies of the plan's model.
    """
    if not hasattr(run, "sizes"):
        kind = type(run).__name__
        msg = f"plan.calibrate() takes a run, not a {kind}: pilot = await plan.sample(50).run(client)."
        raise PlanError(msg)
    mine = (pl.col("dollars") > 0) & (pl.col("model") == plan.facts.id)
    done = run.sizes.join(run.replies.filter(pl.col("model") == plan.facts.id), on="key", how="inner")
    paid = done.filter(mine)
    if paid.is_empty():
        msg = (
            f"The run has no paid replies of {plan.facts.id} to learn from. "
            "Use pilot = await plan.sample(50).run(client) first."
        )
        raise PlanError(msg)
    attempts = run.attempts
    known = replace(
        calls.measured(paid, attempts),
        refusal_rate=done.select((pl.col("error") == "refusal").fill_null(value=False).mean()).item(),
        requests=plan.totals.requests,
    )
    return replace(
        known,
        billed_ratio=_billed_ratio(plan, known, done, attempts),
        burst_seconds=run.limits.burst_seconds or known.burst_seconds,
    )


def _billed_ratio(plan: Plan, known: Measured, done: pl.DataFrame, attempts: pl.DataFrame) -> float:
    """Return what a pilot's requests were billed, for each dollar that they are estimated at."""
    tried = attempts.group_by("key").agg(paid=pl.col("dollars").sum())
    # A reply that an earlier run has paid for is among no attempts of this one.
    paid = pl.max_horizontal("dollars", pl.col("paid").fill_null(0.0))
    billed = float(done.join(tried, on="key", how="left").select(paid.sum()).item())
    unread = pl.when(pl.col("dollars") > 0).then("cache_read_input_tokens").otherwise(known.cached_tokens)
    tokens = pl.col("estimated_tokens") * known.input_ratio + known.input_overhead_tokens
    usage = {name: pl.col(name).cast(pl.Float64) for name in prices.COLUMNS.values()}
    output = known.output_of(pl.col("estimated_tokens")).clip(0.0, float(plan.max_tokens))
    usage |= {"cache_read_input_tokens": unread, "output_tokens": output}
    written = usage["cache_write_5m_input_tokens"] + usage["cache_write_1h_input_tokens"]
    usage["input_tokens"] = tokens - unread - written
    estimated = 0.0
    for mode in ("live", "batch"):
        price = prices.price(plan.facts, mode=mode, inference_geo=known.inference_geo)
        if not price.is_known:
            return 1.0
        rows = done.filter(mode=mode)
        fees = known.web_search_requests * (price.search or 0.0) * rows.height
        estimated += rows.select(prices.dollars(price, **usage).sum()).item() + fees
    return billed / estimated


async def counted(plan: Plan, client: AsyncAnthropic, n: int, seed: int) -> Measured:
    """Return what a plan's calls take, its input counted by the API on a sample of its requests.

    Spends: nothing.

    Raises
    ------
    PlanError
        The model is retired, or the API would not count: what it says.
    """
    sample = plan.sample(n, seed)
    work = sample.compiled.work(sample.frame, "count", sample.kept)
    requests = list(work.texts.bodies(work.requests["row"]))
    if not requests:
        msg = "The plan has no row to count: every row has a null in the prompt's columns."
        raise PlanError(msg)
    wire = Wire(client)
    try:
        clock = (await wire.api()).clock
        catalog.callable_model(plan.facts, clock.now())
        per_minute = plan.limits.count_tokens_per_minute or _COUNTS_PER_MINUTE
        tokens = await _all_counted(wire, Turns(clock, per_minute), requests)
    finally:
        await wire.close()
    sizes = work.requests.select("estimated_tokens", real=pl.Series(tokens, dtype=pl.Float64))
    ratio, overhead = calls.line(sizes)
    return replace(
        plan.expected,
        input_ratio=ratio,
        input_overhead_tokens=overhead,
        input_deviation=calls.around(sizes, ratio, overhead),
        counted=len(tokens),
        requests=plan.totals.requests,
    )


async def _all_counted(wire: Wire, turns: Turns, requests: list[bytes]) -> list[int]:
    """Count all, a few at once, no sooner than the limit allows."""
    found = [0] * len(requests)
    left = iter(enumerate(requests))

    async def work() -> None:
        for place, request in left:
            found[place] = await _counted(wire, turns, request)

    workers = [asyncio.ensure_future(work()) for _ in range(min(_AT_ONCE, len(requests)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    return found


async def _counted(wire: Wire, turns: Turns, request: bytes) -> int:
    for tries in range(_MOST_TRIES):
        await turns.next()
        answer = await wire.count_tokens(request)
        tokens = read_object(answer.content).get("input_tokens")
        if answer.status == HTTPStatus.OK and isinstance(tokens, int):
            return tokens
        found = verdict(answer)
        if found.outcome in {"stop", "failed"}:
            break
        await turns.clock.sleep(read_headers(answer.headers).retry_after_seconds or 2.0**tries)
    reason = found.message or "no reason given"
    msg = f"The API does not count tokens ({found.error}): {reason}. Nothing was paid."
    raise PlanError(msg)
