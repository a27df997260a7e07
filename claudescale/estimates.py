"""What the calls of a plan take together, and what that means in dollars and minutes for each mode.

From characters at first, from what a pilot measured later.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale import bills, catalog
from claudescale.limits import finish

if TYPE_CHECKING:
    from claudescale.catalog import Model
    from claudescale.limits import Finish, Limits
    from claudescale.prompts import Prompt

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
"""Columns of `Plan.options`: dollars and minutes as median and 90th percentile."""

_MINUTES_P90 = list(OPTIONS).index("minutes_p90")
CANCEL_MINUTES = 5.0
"""What a hybrid run allows for a batch to be canceled: requests under way in it are still answered."""
BATCH_HIT_SHARE = sum(catalog.BATCH.cache_hit_shares) / 2
"""The requests of a batch that are taken to find the cache: the middle of what the documentation says."""
FRAMING_TOKENS = 10.0
"""What a request has around its text: roles, turns."""
_GUESSED_DOUBT = 0.5
"""One standard deviation of a guess of many calls' mean: nothing is known of the replies' length."""
_Z90 = 1.2816
_BATCH_MINUTES = 60.0
_FEWEST_FOR_A_LINE = 10
_SAME_LENGTH = 0.05
_STEEPEST = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a call takes, and how that is known.

    Attributes
    ----------
    input_ratio, input_overhead_tokens : float
        Real input tokens for each one estimated from characters, and what every call has besides.
    input_deviation : float
        Standard deviation of a call's real input tokens, relative to what this gives.
    output_tokens, output_deviation : float
        Mean of a call and standard deviation.
    seconds : float
        Latency of a call.
    cached_tokens : float
        The beginning of every call that is read from the prompt cache, but written by the first.
    calls : int
        How many this comes from; 0 is a guess.
    counted : int
        Requests whose input tokens the API has counted.
    """

    input_ratio: float = 1.0
    input_overhead_tokens: float = 0.0
    input_deviation: float = 0.15
    output_tokens: float = 0.0
    output_deviation: float = 0.0
    seconds: float = 3.0
    cached_tokens: float = 0.0
    calls: int = 0
    counted: int = 0

    @property
    def doubt(self) -> float:
        """The part by which the mean of many calls may be off: one standard deviation."""
        if not self.calls:
            return _GUESSED_DOUBT
        spread = self.output_deviation / self.output_tokens if self.output_tokens else 0.0
        return max(spread, self.input_deviation) / math.sqrt(self.calls)

    @property
    def more(self) -> float:
        """By how much the 90th percentile is above the median."""
        return 1 + _Z90 * self.doubt


class Totals(NamedTuple):
    """What all the requests of a plan take together."""

    rows: int
    unsent: int
    requests: int
    input_tokens: float
    cache_read_tokens: float
    output_tokens: float
    live_dollars: float
    batch_dollars: float
    plain_dollars: float


def estimated_tokens(prompt: Prompt, facts: Model, characters: pl.Expr) -> pl.Expr:
    """Return an expression of the input tokens of each request, all of its input, from its characters."""
    return (characters + prompt.shared_characters) / facts.characters_per_token + FRAMING_TOKENS


def guess(prompt: Prompt, facts: Model, max_tokens: int, *, cache: bool = False) -> Measured:
    """Return what a call takes before anything is known: short for typed replies, else 200 tokens."""
    shared = prompt.shared_characters / facts.characters_per_token
    cached = shared if cache and caches(prompt, facts) else 0.0
    output = 200 if prompt.returns is None else 10 + 15 * len(prompt.returns.columns)
    if facts.thinks_by_default and facts.thinking_off is None:
        output += 300
    tokens = float(min(output, max_tokens))
    return Measured(output_tokens=tokens, seconds=1.0 + tokens / 80, cached_tokens=cached)


def caches(prompt: Prompt, facts: Model) -> bool:
    """Whether what all requests share is long enough for the prompt cache."""
    shared = prompt.shared_characters / facts.characters_per_token
    return shared >= (facts.cache_minimum_tokens or math.inf)


def total(
    measures: pl.DataFrame, prompt: Prompt, facts: Model, expected: Measured, max_tokens: int
) -> Totals:
    """Return what all requests take together: each priced by itself, then summed.

    Parameters
    ----------
    measures : pl.DataFrame
        From `Prompt.measure`.
    """
    sent = measures.filter(pl.col("characters").is_not_null())
    output = min(expected.output_tokens, float(max_tokens))
    estimated = estimated_tokens(prompt, facts, pl.col("characters"))
    tokens = estimated * expected.input_ratio + expected.input_overhead_tokens
    read = pl.min_horizontal(tokens, pl.lit(expected.cached_tokens))
    live, batch = bills.price(facts.id, mode="live"), bills.price(facts.id, mode="batch")
    sums = (
        sent.lazy()
        .select(
            input_tokens=tokens.sum(),
            read=read.sum(),
            live=_dollars(live, tokens - read, read, output).sum(),
            batch=_dollars(batch, tokens - read, read, output).sum(),
            plain=(_dollars(live, tokens, pl.lit(0.0), output) * pl.col("rows")).sum(),
        )
        .collect()
        .row(0, named=True)
    )
    rows, sent_rows = int(measures["rows"].sum()), int(sent["rows"].sum())
    return Totals(
        rows=rows,
        unsent=rows - sent_rows,
        requests=sent.height,
        input_tokens=sums["input_tokens"],
        cache_read_tokens=max(sums["read"] - expected.cached_tokens, 0.0),
        output_tokens=output * sent.height,
        live_dollars=sums["live"] + (_write_dollars(live, expected, "5m") if sent.height else 0.0),
        batch_dollars=sums["batch"] + _batch_write_dollars(batch, expected, sent.height),
        plain_dollars=sums["plain"],
    )


def _write_dollars(price: bills.Price, expected: Measured, kept: str) -> float:
    """Return by how much a call that writes the cache is dearer than one that reads it."""
    cached = expected.cached_tokens
    read = price.dollars(cache_read_input_tokens=cached)
    return price.dollars(**{f"cache_write_{kept}_input_tokens": cached}) - read


def _batch_write_dollars(price: bills.Price, expected: Measured, requests: int) -> float:
    """Return the same for all the calls of a batch that find no cache: hits are best effort there."""
    misses = requests * (1 - BATCH_HIT_SHARE)
    return max(misses, min(requests, 1)) * _write_dollars(price, expected, "1h")


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
    rows = [_live(totals, limits, expected, concurrency), _batch(totals, limits, expected)]
    if deadline_minutes is not None:
        live_minutes = rows[0][_MINUTES_P90]
        assert isinstance(live_minutes, float)
        rows.append(_hybrid(totals, limits, expected, deadline_minutes, live_minutes))
    return pl.DataFrame(rows, schema=OPTIONS, orient="row")


def _live(totals: Totals, limits: Limits, expected: Measured, concurrency: int | None) -> tuple[object, ...]:
    usual, slow = (
        live_finish(
            limits,
            expected,
            requests=totals.requests,
            input_tokens=totals.input_tokens - totals.cache_read_tokens,
            output_tokens=totals.output_tokens,
            concurrency=concurrency,
            more=more,
        )
        for more in (1.0, expected.more)
    )
    minutes = usual.seconds / 60, slow.seconds / 60, usual.binding
    return _option("live", totals, totals.live_dollars, expected, minutes)


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
    """Return how long requests take live, and what limits them; `more` times the tokens for a percentile."""
    return finish(
        limits,
        requests=requests,
        input_tokens=input_tokens * more,
        output_tokens=output_tokens * more,
        latency_seconds=expected.seconds,
        concurrency=concurrency,
    )


def _hybrid(
    totals: Totals, limits: Limits, expected: Measured, deadline_minutes: float, live_minutes: float
) -> tuple[object, ...]:
    """As a batch if that usually ends before the rest must go live, else as dear as live calls."""
    usual = _BATCH_MINUTES * _waves(totals, limits)
    in_time = usual <= deadline_minutes - live_minutes - CANCEL_MINUTES
    minutes = usual if in_time else deadline_minutes, deadline_minutes, "deadline"
    dollars = totals.batch_dollars if in_time else totals.live_dollars
    row = _option("hybrid", totals, dollars, expected, minutes)
    return (*row[:2], totals.live_dollars * expected.more, *row[3:])


def _waves(totals: Totals, limits: Limits) -> int:
    queue = limits.batch_queue_requests or catalog.BATCH.max_requests
    return math.ceil(totals.requests / queue)


def _batch(totals: Totals, limits: Limits, expected: Measured) -> tuple[object, ...]:
    """Most batches end within an hour, and one that has not ended after a day expires.

    Source: Anthropic, *Batch processing* (checked 2026-08-14).
    """
    waves = _waves(totals, limits)
    binding = "queue" if waves > 1 else "batch processing"
    minutes = _BATCH_MINUTES * waves, catalog.BATCH.expires_hours * 60.0 * waves, binding
    return _option("batch", totals, totals.batch_dollars, expected, minutes)


def _option(
    mode: str,
    totals: Totals,
    dollars: float,
    expected: Measured,
    minutes: tuple[float, float, str],
) -> tuple[object, ...]:
    usual, slow, binding = minutes if totals.requests else (0.0, 0.0, "nothing to send")
    return (
        mode,
        dollars,
        dollars * expected.more,
        usual,
        slow,
        binding,
        totals.plain_dollars - dollars,
        totals.requests,
        round(totals.input_tokens),
        round(totals.output_tokens),
    )


def _dollars(price: bills.Price, uncached: pl.Expr, read: pl.Expr, output: float) -> pl.Expr:
    nothing = pl.lit(0.0)
    return bills.dollars(
        price,
        input_tokens=uncached,
        cache_write_5m_input_tokens=nothing,
        cache_write_1h_input_tokens=nothing,
        cache_read_input_tokens=read,
        output_tokens=pl.lit(output),
    )


def measured(paid: pl.DataFrame) -> Measured:
    """Return what the calls of a pilot took.

    Parameters
    ----------
    paid : pl.DataFrame
        Of `claudescale.ledger.ATTEMPTS`, one row per paid reply, with `estimated_tokens`.
    """
    cached = pl.col("cache_read_input_tokens")
    ratio, overhead = line(paid.select("estimated_tokens", real=bills.PROMPT))
    expected = pl.col("estimated_tokens") * ratio + overhead
    told = paid.select(
        input_deviation=(bills.PROMPT / expected).std().fill_null(0.0),
        output_tokens=pl.col("output_tokens").mean(),
        output_deviation=pl.col("output_tokens").std().fill_null(0.0),
        seconds=pl.col("seconds")
        .filter(mode="live")
        .mean()
        .fill_null(1.0 + pl.col("output_tokens").mean() / 80),
        cached_tokens=cached.filter(cached > 0).mean().fill_null(0.0),
    ).row(0, named=True)
    return Measured(input_ratio=ratio, input_overhead_tokens=overhead, **told, calls=paid.height)


def line(sizes: pl.DataFrame) -> tuple[float, float]:
    """Return slope and intercept of real tokens over estimated ones; through zero where that is no sense.

    Rows of one length cannot tell the two apart, and few rows may tell them wrong.
    """
    estimated, real = pl.col("estimated_tokens"), pl.col("real")
    means = sizes.select(
        x=estimated.mean(),
        y=real.mean(),
        variance=estimated.var(),
        covariance=pl.cov("estimated_tokens", "real"),
    ).row(0, named=True)
    if sizes.height >= _FEWEST_FOR_A_LINE and means["variance"] > (means["x"] * _SAME_LENGTH) ** 2:
        slope = means["covariance"] / means["variance"]
        overhead = means["y"] - slope * means["x"]
        if 1 / _STEEPEST <= slope <= _STEEPEST and overhead >= 0:
            return slope, overhead
    return means["y"] / means["x"], 0.0
