"""From a plan to what sends it: a `Live` or a `Batches`, with its prices, limits and worst cases."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Protocol

import polars as pl

from claudescale.api import catalog, prices
from claudescale.api.batchwire import BatchWire
from claudescale.api.client import Wire, streams
from claudescale.pacing.pacer import Pacer
from claudescale.planning import estimates
from claudescale.running.batches import Batches
from claudescale.running.live import Live, Row

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from anthropic import AsyncAnthropic

    from claudescale.api.answers import Answer
    from claudescale.api.client import Api
    from claudescale.api.facts import Model
    from claudescale.ledger.batchfile import Batch
    from claudescale.ledger.ledger import Attempt, Ledger
    from claudescale.planning.plans import Plan
    from claudescale.prompts.requests import Charges, Texts, Work

_OVERHEAD_TOKENS = 1_000
"""What the API may add to a request: the instructions that make structured outputs work."""
_BATCH_REQUESTS_PER_MINUTE = 50
"""Calls to the batch endpoints where their limit is not known: that of the lowest tier."""


class Calls(Protocol):
    """What is the same for all calls of a run: a `Plan`, or what a worker was told of one."""

    @property
    def facts(self) -> Model: ...  # noqa: D102
    @property
    def max_tokens(self) -> int: ...  # noqa: D102
    @property
    def cache(self) -> bool: ...  # noqa: D102
    @property
    def budget(self) -> float | None: ...  # noqa: D102


def live_engine(
    plan: Plan,
    *,
    api: Api,
    wire: Wire,
    ledger: Ledger,
    record: Callable[[Attempt, bool], None],
    dollars_elsewhere: Callable[[], float],
    requests: int,
    known_good: bool = False,
    pacer: Pacer | None = None,
) -> Live:
    """Return what sends the rows of a plan live."""
    return sender(
        plan,
        api=api,
        wire=wire,
        ledger=ledger,
        record=record,
        dollars_elsewhere=dollars_elsewhere,
        charges=plan.compiled.charges,
        warm=plan.cache and requests > 1,
        known_good=known_good,
        pacer=pacer or _pacer(plan, api),
    )


def sender(
    calls: Calls,
    *,
    api: Api,
    wire: Wire,
    ledger: Ledger,
    record: Callable[[Attempt, bool], None],
    dollars_elsewhere: Callable[[], float],
    charges: Charges,
    warm: bool,
    pacer: Pacer,
    known_good: bool = False,
    make: type[Live] = Live,
) -> Live:
    """Return what sends rows live at the pace of a pacer."""
    return make(
        send=wire.send,
        pacer=pacer,
        clock=api.clock,
        record=record,
        price=prices.price(calls.facts, mode="live"),
        describe=_describe(calls, api, ledger),
        worst_dollars=worst_dollars(calls, charges),
        budget_dollars=calls.budget,
        elsewhere_dollars=dollars_elsewhere,
        max_tokens=None if streams(calls.max_tokens) else calls.max_tokens,
        known_good=known_good,
        warm=warm,
    )


def worst_dollars(calls: Calls, charges: Charges) -> Callable[[Row], float]:
    """Return what tells the most one answer to a row can cost."""
    of = _message_dollars(calls, charges)
    return lambda row: of(len(row.body), calls.max_tokens)


def _message_dollars(calls: Calls, charges: Charges) -> Callable[[int, int], float]:
    """Return what tells the most a live message of so many bytes, and with so long a reply, can cost."""
    geography = prices.worst_geography(charges.inference_geo)
    price = prices.price(calls.facts, mode="live", inference_geo=geography)
    written = _written(calls, charges, "5m")
    most = prices.most_with_tools(price, calls.facts, calls.max_tokens, charges)

    def worst(size_bytes: int, max_tokens: int) -> float:
        if most is not None:
            return most
        # No token is shorter than a byte.
        tokens = size_bytes + _OVERHEAD_TOKENS
        return price.dollars(output_tokens=max_tokens, **{written: tokens})

    return worst


def _pacer(plan: Plan, api: Api) -> Pacer:
    return Pacer(
        plan.limits,
        clock=api.clock,
        share=plan.share,
        concurrency=plan.concurrency,
        output_tokens=min(plan.expected.output_tokens, float(plan.max_tokens)),
    )


def batch_engine(
    plan: Plan,
    *,
    api: Api,
    wire: Wire,
    ledger: Ledger,
    work: Work,
    record: Callable[[pl.DataFrame], Awaitable[None]],
    unanswered: Callable[[pl.DataFrame], Awaitable[pl.DataFrame]],
    dollars_left: Callable[[], float],
    known_good: Callable[[], bool],
) -> Batches:
    """Return what sends the rows of a plan by batches."""
    price = prices.price(plan.facts, mode="batch")
    charges = plan.compiled.charges
    dearest = prices.answered(price, inference_geo=prices.worst_geography(charges.inference_geo))
    most = prices.most_with_tools(dearest, plan.facts, plan.max_tokens, charges)
    calls = plan.limits.batch_requests_per_minute or _BATCH_REQUESTS_PER_MINUTE
    describe = _describe(plan, api, ledger)
    paid = dict.fromkeys(prices.COLUMNS.values(), pl.lit(0.0)) | {
        _written(plan, charges, "1h"): pl.col("bytes") + _OVERHEAD_TOKENS,
        "output_tokens": pl.lit(float(plan.max_tokens)),
    }
    return Batches(
        wire=BatchWire(wire, api.clock, calls),
        ledger=ledger,
        clock=api.clock,
        texts=work.texts,
        # Of an unknown price there is no worst case, nor a budget to keep.
        requests=work.requests.with_columns(
            worst_dollars=prices.dollars(dearest, **paid).fill_nan(0.0) if most is None else pl.lit(most)
        ),
        record=record,
        unanswered=unanswered,
        price=price,
        describe=describe,
        api=api.name,
        queue_requests=plan.limits.batch_queue_requests or catalog.BATCH.max_requests,
        dollars_left=dollars_left,
        hands_over=plan.mode == "hybrid",
        refusal=lambda: catalog.refusal(plan.facts, api.clock.now()),
        known_good=known_good,
        live_price=None if describe["simulated"] else prices.price(plan.facts, mode="live"),
        message_dollars=_message_dollars(plan, charges),
        prime=plan.cache and plan.compiled.is_cacheable,
    )


def rendered(plan: Plan, texts: Texts, block: pl.DataFrame) -> Iterator[Row]:
    """Yield requests of `work.REQUESTS` as rows for a `Live`."""
    cached = plan.compiled.shared_tokens if plan.cache else 0.0
    bodies = texts.bodies(block["row"])
    for key, body, tokens in zip(block["key"], bodies, block["estimated_tokens"], strict=True):
        yield Row(key, body, max(tokens - cached, 1.0))


def rest_seconds(plan: Plan, live: Live | None, rest: pl.DataFrame, output_tokens: float) -> float:
    """Return the seconds in which the rest of a plan is surely done live, by the limits as known now.

    Parameters
    ----------
    live : Live or None
        What has sent some of its rows live, and so knows the limits.
    rest : pl.DataFrame
        Of `work.REQUESTS`.
    output_tokens : float
        Mean of a reply.
    """
    if rest.is_empty():
        return 0.0
    limits = live.pacer.limits if live else plan.limits
    expected = plan.expected
    return estimates.live_finish(
        limits.shared(plan.share),
        expected,
        requests=rest.height,
        input_tokens=expected.uncached_tokens(float(rest["estimated_tokens"].sum()), rest.height),
        output_tokens=output_tokens * rest.height,
        concurrency=plan.concurrency,
        more=expected.more,
    ).seconds


async def delete_batches(client: AsyncAnthropic, batches: Iterable[Batch]) -> list[Answer]:
    """Return the answers to deleting those of the batches that are collected."""
    wire = Wire(client)
    try:
        calls = BatchWire(wire, (await wire.api()).clock, _BATCH_REQUESTS_PER_MINUTE)
        done = [str(batch.batch_id) for batch in batches if batch.state == "collected"]
        return [await calls.delete(batch_id) for batch_id in done]
    finally:
        await wire.close()


def _written(plan: Calls, charges: Charges, kept: str) -> str:
    """Return what the prompt is paid as at worst."""
    if charges.caches:
        return "cache_write_1h_input_tokens"
    return f"cache_write_{kept}_input_tokens" if plan.cache else "input_tokens"


def _describe(plan: Calls, api: Api, ledger: Ledger) -> dict[str, Any]:
    return {"run": ledger.run, "model": plan.facts.id, "simulated": api.simulated}


def left_of(budget: float | None, spent: float) -> float:
    """Return what is left of a budget; infinite without one."""
    return math.inf if budget is None else budget - spent
