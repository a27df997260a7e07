"""What the calls of a plan take together, and what that means in dollars and minutes for each mode."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale.api import catalog, prices
from claudescale.planning.calls import P90, Measured
from claudescale.planning.finishing import FIRST_CONCURRENCY, MOST_CONCURRENCY, RATE_MARGIN, finish

if TYPE_CHECKING:
    from claudescale.api.catalog import Model
    from claudescale.api.limits import Limits
    from claudescale.planning.finishing import Finish

OPTIONS = pl.Schema(
    {
        "mode": pl.String(),
        "dollars": pl.Float64(),
        "dollars_p90": pl.Float64(),
        "minutes": pl.Float64(),
        "minutes_p90": pl.Float64(),
        "binding": pl.String(),
        "dollars_saved": pl.Float64(),
        "requests": pl.Int64(),
        "input_tokens": pl.Int64(),
        "output_tokens": pl.Int64(),
    }
)
"""Columns of `Plan.options`: dollars and minutes as median and 90th percentile.

`binding` is what keeps a run from being quicker; ``"spend limit"`` where its dollars are more than the
account may spend in a month, so that the API would end it: the minutes are then those without that limit.
"""

_MINUTES_P90 = list(OPTIONS).index("minutes_p90")
SPEND_LIMIT = "spend limit"
CANCEL_MINUTES = 5.0
"""What a hybrid run allows for a batch to be canceled: requests under way in it are still answered."""
BATCH_HIT_SHARE = sum(catalog.BATCH.cache_hit_shares) / 2
"""The requests of a batch that are taken to find the cache: the middle of what the documentation says."""
_BATCH_MINUTES = 60.0
_OVERLOADED_CONCURRENCY = 4.5
"""So many calls, divided by the root of the error rate, are in flight in the long run: each overload takes a
quarter of them away, each round of successes adds one. Measured at the simulator."""


class Totals(NamedTuple):
    """What all the requests of a plan take together.

    What ends in `more` is the part by which the 90th percentile is above the median; that of input tokens
    is a part of those that are not read from the cache. `input_deviation` is of a request's input tokens,
    `seconds` the latency of a mean call.
    """

    rows: int
    unsent: int
    requests: int
    input_tokens: float
    cache_read_tokens: float
    output_tokens: float
    input_deviation: float
    live_dollars: float
    batch_dollars: float
    plain_dollars: float
    seconds: float
    input_more: float
    output_more: float
    seconds_more: float
    live_more: float
    batch_more: float


def total(sizes: pl.DataFrame, facts: Model, expected: Measured, max_tokens: int) -> Totals:
    """Return what all requests take together: each priced by itself, then summed.

    Parameters
    ----------
    sizes : pl.DataFrame
        `estimated_tokens` of requests, null of what is not sent; how many `requests` there are of that size,
        and how many `rows` they answer.
    """
    sent = sizes.filter(pl.col("estimated_tokens").is_not_null())
    estimated = pl.col("estimated_tokens")
    tokens = estimated * expected.input_ratio + expected.input_overhead_tokens
    read = pl.min_horizontal(tokens, pl.lit(expected.cached_tokens))
    output = expected.output_of(estimated).clip(0.0, float(max_tokens))
    live = prices.price(facts, mode="live", inference_geo=expected.inference_geo)
    batch = prices.price(facts, mode="batch", inference_geo=expected.inference_geo)
    nothing, times = pl.lit(0.0), pl.col("requests")
    sums = (
        sent.lazy()
        .select(
            estimated=(estimated * times).sum(),
            input_tokens=(tokens * times).sum(),
            squares=((tokens - read) ** 2 * times).sum(),
            read=(read * times).sum(),
            output=(output * times).sum(),
            live=(_dollars(live, tokens - read, read, output) * times).sum(),
            batch=(_dollars(batch, tokens - read, read, output) * times).sum(),
            plain=(_dollars(live, tokens, nothing, output) * pl.col("rows")).sum(),
            uncached=(_dollars(live, tokens, nothing, nothing) * times).sum(),
            silent=(_dollars(live, tokens - read, read, nothing) * times).sum(),
        )
        .collect()
        .row(0, named=True)
    )
    rows, requests = int(sizes["rows"].sum()), int(sent["requests"].sum())
    fee = expected.web_search_requests * (live.search or 0.0)
    sums |= {name: sums[name] + fee * requests for name in ("live", "batch", "silent")}
    sums["plain"] += fee * int(sent["rows"].sum())
    mean = sums["estimated"] / requests if requests else 0.0
    given = max(requests, 1), mean
    input_more, output_more = expected.input_more(*given), expected.output_more(*given)
    written = requests and 1 + (requests - 1) * (1 - expected.cache_hit_share)
    read_tokens = max(sums["read"] - expected.cached_tokens * written, 0.0)
    more = math.hypot(input_more * sums["uncached"], output_more * (sums["live"] - sums["silent"]))
    live_dollars = sums["live"] + written * _write_dollars(live, expected, "5m")
    missed, most_missed = _misses(requests, expected)
    hour = _write_dollars(batch, expected, "1h")
    batch_dollars = sums["batch"] + missed * hour
    in_batch = more * (sums["batch"] / sums["live"] if sums["live"] else 0.0)
    limited = sums["input_tokens"] - read_tokens
    return Totals(
        rows=rows,
        unsent=rows - int(sent["rows"].sum()),
        requests=requests,
        input_tokens=sums["input_tokens"],
        cache_read_tokens=read_tokens,
        output_tokens=sums["output"],
        input_deviation=_deviation(requests, limited, sums["squares"]),
        live_dollars=live_dollars * expected.billed_ratio,
        batch_dollars=batch_dollars * expected.billed_ratio,
        plain_dollars=sums["plain"] * expected.billed_ratio,
        seconds=expected.seconds_of(mean),
        input_more=_part(input_more * sums["input_tokens"], limited),
        output_more=output_more,
        seconds_more=expected.seconds_more(*given),
        live_more=_part(more, live_dollars),
        batch_more=_part(math.hypot(in_batch, (most_missed - missed) * hour), batch_dollars),
    )


def _deviation(count: int, total: float, squares: float) -> float:
    return math.sqrt(max(squares / count - (total / count) ** 2, 0.0)) if count else 0.0


def _part(of: float, whole: float) -> float:
    return of / whole if whole else 0.0


def _write_dollars(price: prices.Price, expected: Measured, kept: str) -> float:
    """Return by how much a call that writes the cache is dearer than one that reads it."""
    cached = expected.cached_tokens
    read = price.dollars(cache_read_input_tokens=cached)
    return price.dollars(**{f"cache_write_{kept}_input_tokens": cached}) - read


def _misses(requests: int, expected: Measured) -> tuple[float, float]:
    """Return how many calls of a batch find no cache, usually and at most nine times in ten.

    Hits are best effort there: any share in the documented range is taken to be as likely as any other, and
    what one batch found may not be what the next finds.
    """
    low, high = catalog.BATCH.cache_hit_shares
    found = BATCH_HIT_SHARE if expected.batch_hit_share is None else expected.batch_hit_share
    usual = max(requests * (1 - found), min(requests, 1))
    if expected.batch_hit_share is not None and expected.calls >= requests:
        return usual, usual
    return usual, max(usual, requests * (1 - low - (1 - P90) * (high - low)))


def option(options: pl.DataFrame, mode: str) -> dict[str, Any]:
    """Return the row of one mode of `OPTIONS`."""
    return options.row(by_predicate=pl.col("mode") == mode, named=True)


def options(
    totals: Totals,
    limits: Limits,
    expected: Measured,
    concurrency: int | None,
    deadline_minutes: float | None = None,
) -> pl.DataFrame:
    """Return one row per mode as `OPTIONS`: dollars, minutes, what limits it.

    There is a row for ``"hybrid"`` where there is a deadline: without one it is a batch.

    Spends: nothing.

    Parameters
    ----------
    totals : Totals
        From `total`.
    limits : Limits
        As far as the run may use them.
    expected : Measured
        What a call takes.
    concurrency : int, optional
        Most calls in flight.
    deadline_minutes : float, optional
        Minutes the run may take.
    """
    rows = [_live(totals, limits, expected, concurrency), _batch(totals, limits)]
    if deadline_minutes is not None:
        live_minutes = rows[0][_MINUTES_P90]
        assert isinstance(live_minutes, float)
        rows.append(_hybrid(totals, limits, deadline_minutes, live_minutes))
    return pl.DataFrame(rows, schema=OPTIONS, orient="row")


def _live(totals: Totals, limits: Limits, expected: Measured, concurrency: int | None) -> tuple[object, ...]:
    usual, slow = (_live_finish(totals, limits, expected, concurrency, slow=slow) for slow in (False, True))
    minutes = usual.seconds / 60, slow.seconds / 60, usual.binding
    return _option("live", totals, (totals.live_dollars, totals.live_more), limits, minutes)


def _live_finish(
    totals: Totals, limits: Limits, expected: Measured, concurrency: int | None, *, slow: bool
) -> Finish:
    """Return how long a whole run takes live from its start on, usually or where it is slow."""
    input_more, output_more, more = (
        (totals.input_more, totals.output_more, totals.seconds_more) if slow else (0.0, 0.0, 0.0)
    )
    error_rate = expected.errors_more() if slow else expected.error_rate
    errors = error_rate / expected.error_rate if error_rate else 1.0
    latency = totals.seconds * (1 + more)
    most = float(concurrency or MOST_CONCURRENCY)
    if error_rate:
        most = max(min(most, _OVERLOADED_CONCURRENCY / math.sqrt(error_rate)), 1.0)
    found = finish(
        limits.shared(RATE_MARGIN),
        requests=totals.requests,
        input_tokens=(totals.input_tokens - totals.cache_read_tokens) * (1 + input_more),
        output_tokens=totals.output_tokens * (1 + output_more),
        input_deviation=totals.input_deviation,
        latency_seconds=latency + expected.lost_seconds * errors,
        latency_deviation=expected.slow_deviation() if slow else expected.seconds_deviation,
        concurrency=most,
        first_concurrency=FIRST_CONCURRENCY,
        burst_seconds=(limits.burst_seconds or expected.burst_seconds) / RATE_MARGIN,
        stopped_seconds=expected.stopped_seconds(totals.requests, slow=slow),
        error_rate=error_rate,
        lost_seconds=expected.lost_seconds / expected.error_rate if expected.error_rate else 0.0,
        quantile=P90 if slow else 0.5,
    )
    warming = latency if expected.cached_tokens and totals.requests > 1 else 0.0
    at_once = "concurrency" if most == concurrency else "latency"
    binding = at_once if found.binding == "concurrency" else found.binding
    # Its start and its end take a part of a round more: calls are sent when others are answered.
    uneven = latency / 4
    return found._replace(seconds=found.seconds + warming + uneven, binding=binding)


def live_finish(
    limits: Limits,
    expected: Measured,
    *,
    requests: float,
    input_tokens: float,
    output_tokens: float,
    concurrency: int | None = None,
    more: float = 1.0,
) -> Finish:
    """Return how long requests take live in a run that is under way, and what limits them.

    `more` times the tokens for a percentile. No bucket is taken to be full.
    """
    return finish(
        limits.shared(RATE_MARGIN),
        requests=requests,
        input_tokens=input_tokens * more,
        output_tokens=output_tokens * more,
        latency_seconds=expected.seconds,
        concurrency=concurrency,
    )


def _hybrid(
    totals: Totals, limits: Limits, deadline_minutes: float, live_minutes: float
) -> tuple[object, ...]:
    """As a batch if that usually ends before the rest must go live, else as dear as live calls."""
    usual = _BATCH_MINUTES * _waves(totals, limits)
    in_time = usual <= deadline_minutes - live_minutes - CANCEL_MINUTES
    minutes = usual if in_time else deadline_minutes, deadline_minutes, "deadline"
    dollars = totals.batch_dollars if in_time else totals.live_dollars
    row = _option("hybrid", totals, (dollars, 0.0), limits, minutes)
    return (*row[:2], totals.live_dollars * (1 + totals.live_more), *row[3:])


def _waves(totals: Totals, limits: Limits) -> int:
    queue = limits.batch_queue_requests or catalog.BATCH.max_requests
    return math.ceil(totals.requests / queue)


def _batch(totals: Totals, limits: Limits) -> tuple[object, ...]:
    """Most batches end within an hour, and one that has not ended after a day expires.

    Source: Anthropic, *Batch processing* (checked 2026-08-14).
    """
    waves = _waves(totals, limits)
    binding = "queue" if waves > 1 else "batch processing"
    minutes = _BATCH_MINUTES * waves, catalog.BATCH.expires_hours * 60.0 * waves, binding
    return _option("batch", totals, (totals.batch_dollars, totals.batch_more), limits, minutes)


def _option(
    mode: str,
    totals: Totals,
    price: tuple[float, float],
    limits: Limits,
    minutes: tuple[float, float, str],
) -> tuple[object, ...]:
    dollars, more = price
    usual, slow, binding = minutes if totals.requests else (0.0, 0.0, "nothing to send")
    if limits.spend_dollars_per_month is not None and dollars > limits.spend_dollars_per_month:
        binding = SPEND_LIMIT
    return (
        mode,
        dollars,
        dollars * (1 + more),
        usual,
        slow,
        binding,
        totals.plain_dollars - dollars,
        totals.requests,
        round(totals.input_tokens),
        round(totals.output_tokens),
    )


def _dollars(price: prices.Price, uncached: pl.Expr, read: pl.Expr, output: pl.Expr) -> pl.Expr:
    nothing = pl.lit(0.0)
    return prices.dollars(
        price,
        input_tokens=uncached,
        cache_write_5m_input_tokens=nothing,
        cache_write_1h_input_tokens=nothing,
        cache_read_input_tokens=read,
        output_tokens=output,
    )
