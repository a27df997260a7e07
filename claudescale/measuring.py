"""What a plan's calls take, measured: by a pilot, or its input by the API's own count, which is free."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import polars as pl

from claudescale import catalog, estimates
from claudescale.errors import PlanError, UnknownTier
from claudescale.limits import read_headers
from claudescale.verdicts import read_object, verdict
from claudescale.wire import Wire
from claudescale.work import prepare

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

    from claudescale.clock import Clock
    from claudescale.estimates import Measured
    from claudescale.plans import Plan
    from claudescale.runs import Run

_AT_ONCE = 8
_MOST_TRIES = 8
_COUNTS_PER_MINUTE = 2_000
"""Where the tier's is not known: the lowest's. Source: Anthropic, *Rate limits* (checked 2026-08-22)."""


def learned(plan: Plan, run: Run) -> Measured:
    """Return what a plan's calls take, by a run of some of its rows, and the limits that run met.

    Spends: nothing.

    Raises
    ------
    PlanError
        The run has no paid replies of the plan's model.
    """
    mine = (pl.col("dollars") > 0) & (pl.col("model") == plan.facts.id)
    paid = run.sizes.join(run.replies.filter(mine), on="key", how="inner")
    if paid.is_empty():
        msg = (
            f"The run has no paid replies of {plan.facts.id} to learn from. "
            "Use pilot = await plan.head(20).run(client) first."
        )
        raise PlanError(msg)
    known = estimates.measured(paid)
    same = run.plan.tier == plan.tier and run.plan.facts.rate_group == plan.facts.rate_group
    return replace(known, limits=run.limits, tier=plan.tier) if same else known


async def counted(plan: Plan, client: AsyncAnthropic, n: int, seed: int) -> Measured:
    """Return what a plan's calls take, its input counted by the API on a sample of its requests.

    Spends: nothing.

    Raises
    ------
    PlanError
        The API would not count: what it says.
    """
    work = prepare(plan.sample(n, seed), "count")
    prompt, texts = plan.compiled, work.texts.of(work.requests["row"])
    requests = [f"{prompt.head}{text}{prompt.tail}".encode() for text in texts]
    if not requests:
        msg = "The plan has no row to count: every row has a null in the prompt's columns."
        raise PlanError(msg)
    wire = Wire(client)
    try:
        clock = (await wire.api()).clock
        tokens = await _all_counted(wire, clock, requests, 60 / _per_minute(plan))
    finally:
        await wire.close()
    sizes = work.requests.select("estimated_tokens", real=pl.Series(tokens, dtype=pl.Float64))
    ratio, overhead = estimates.line(sizes)
    expected = pl.col("estimated_tokens") * ratio + overhead
    deviation = sizes.select((pl.col("real") / expected).std().fill_null(0.0)).item()
    return replace(
        plan.expected,
        input_ratio=ratio,
        input_overhead_tokens=overhead,
        input_deviation=deviation,
        counted=len(tokens),
    )


async def _all_counted(wire: Wire, clock: Clock, requests: list[bytes], gap_seconds: float) -> list[int]:
    """Count all, a few at once, no sooner than the limit allows."""
    found = [0] * len(requests)
    left = iter(enumerate(requests))
    next_at = clock.seconds()

    async def work() -> None:
        nonlocal next_at
        for place, request in left:
            next_at = max(next_at, clock.seconds()) + gap_seconds
            await clock.sleep(next_at - gap_seconds - clock.seconds())
            found[place] = await _counted(wire, clock, request)

    workers = [asyncio.ensure_future(work()) for _ in range(min(_AT_ONCE, len(requests)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
    return found


async def _counted(wire: Wire, clock: Clock, request: bytes) -> int:
    for tries in range(_MOST_TRIES):
        answer = await wire.count_tokens(request)
        tokens = read_object(answer.content).get("input_tokens")
        if answer.status == 200 and isinstance(tokens, int):  # noqa: PLR2004 - HTTP's own number
            return tokens
        found = verdict(answer)
        if found.outcome in {"stop", "failed"}:
            break
        await clock.sleep(read_headers(answer.headers).retry_after_seconds or 2.0**tries)
    reason = found.message or "no reason given"
    msg = f"The API does not count tokens ({found.error}): {reason}. Nothing was paid."
    raise PlanError(msg)


def _per_minute(plan: Plan) -> float:
    try:
        known = catalog.tier(plan.tier).count_tokens_per_minute if isinstance(plan.tier, str | int) else None
    except UnknownTier:
        known = None
    return known or _COUNTS_PER_MINUTE
