"""What the calls of a plan take, how that is known, and what that means in dollars and minutes."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from statistics import NormalDist
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale.api import catalog, prices
from claudescale.api.limits import BUCKETS
from claudescale.pacing.concurrency import FIRST_CONCURRENCY, MOST_CONCURRENCY
from claudescale.pacing.pacer import RATE_MARGIN

if TYPE_CHECKING:
    from collections.abc import Mapping

    from claudescale.api.limits import Limits
    from claudescale.prompts.requests import Prompt

OPTIONS = pl.Schema(
    {"mode": pl.String()}
    | dict.fromkeys(("dollars", "dollars_p90", "minutes", "minutes_p90"), pl.Float64())
    | {"binding": pl.String(), "dollars_saved": pl.Float64()}
    | dict.fromkeys(("requests", "input_tokens", "output_tokens"), pl.Int64())
)
"""Columns of `Plan.options`: dollars and minutes as median and 90th percentile.

`binding` is what keeps a run from being quicker; ``"spend limit"`` where its dollars are more than the
account may spend in a month, so that the API would end it: the minutes are then those without that limit.
"""

SPEND_LIMIT, NOTHING = "spend limit", "nothing to send"
CANCEL_MINUTES = 5.0
"""What a hybrid run allows for a batch to be canceled: requests under way in it are still answered."""
BATCH_HIT_SHARE = sum(catalog.BATCH.cache_hit_shares) / 2
"""The requests of a batch that are assumed to hit the cache: the middle of what the documentation says."""
P90 = 0.9
_NORMAL = NormalDist()
_Z = _NORMAL.inv_cdf(P90)  # standard deviations from the median to the 90th percentile
# One standard deviation of a guess of many calls' mean, as a part of it: how long a token is depends on the
# text; of replies nothing is known.
_GUESSED_INPUT, _GUESSED_OUTPUT = 0.15, 0.5
_BATCH_MINUTES = 60.0
# The part of a full bucket of output tokens that a run leaves in the mean: what is under way draws on it
# unseen, so the pacer keeps up to twice as much.
_OUTPUT_LEFT = 0.2


# ---------------------------------------------------------------------------------- what one call takes


class Line(NamedTuple):
    """A figure of a call: its mean, what each estimated token of the request more adds, and the rest."""

    mean: float
    slope: float = 0.0
    deviation: float = 0.0  # around the line
    skew: float = 0.0  # a few long replies that a small sample tends to miss


_AS_ESTIMATED, _NOTHING, _SECONDS = Line(0.0, 1.0), Line(0.0), Line(3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a call takes, and how that is known: guessed, counted by the API, or measured by a pilot."""

    input: Line = _AS_ESTIMATED  # tokens
    output: Line = _NOTHING  # tokens, thinking included, refusals and cut replies too
    latency: Line = _SECONDS  # seconds
    estimated_tokens: float = 0.0  # of a mean request measured, from its characters
    billed_ratio: float = 1.0  # dollars billed for each that these figures make of the calls measured
    cached_tokens: float = 0.0  # the beginning of every call that is read from the prompt cache
    cache_hit_share: float = 1.0  # of the live calls after the first, how many found it
    batch_hit_share: float | None = None  # of the calls in batches; None is not known
    error_rate: float = 0.0  # the part of the calls that fail and are sent again
    lost_seconds: float = 0.0  # what a row loses to that on average
    thinking_tokens: float = 0.0  # of the output tokens that are guessed
    calls: int = 0  # how many this comes from; 0 is a guess
    counted: int = 0  # requests whose input tokens the API has counted
    requests: int = 0  # how many there are of which those measured are a part; 0 is not known

    @property
    def output_tokens(self) -> float:
        """Output tokens of a mean call."""
        return self.output.mean

    @property
    def seconds(self) -> float:
        """Latency of a mean call."""
        return self.latency.mean

    def at(self, line: Line, estimated_tokens: Any) -> Any:
        """Return a figure of requests of so many estimated tokens: a number or an expression."""
        return line.mean + line.slope * (estimated_tokens - self.estimated_tokens)

    def uncached_tokens(self, estimated_tokens: float, requests: float) -> float:
        """Return the input that the limits count, of so many requests and estimated tokens in all."""
        mean: float = self.at(self.input, estimated_tokens / requests) if requests else 0.0
        return max(mean - self.cached_tokens, 0.0) * requests

    def input_more(self, requests: float = math.inf) -> float:
        """Return how far the 90th percentile of many calls' input is above the median, as a part of it."""
        return self._more(self.input, self.calls or self.counted, requests, _GUESSED_INPUT)

    def output_more(self, requests: float = math.inf) -> float:
        """Return the same of their output."""
        return self._more(self.output, self.calls, requests, _GUESSED_OUTPUT)

    def seconds_more(self, requests: float = math.inf) -> float:
        """Return the same of their mean latency."""
        return self._more(self.latency, self.calls, requests, _GUESSED_OUTPUT)

    def _more(self, line: Line, known: int, requests: float, guessed: float) -> float:
        if known <= 1 or not line.mean:
            return _Z * guessed
        # Those measured are some of all: only the others are unknown. Of other requests, both samples vary.
        unknown = max(1 - known / requests, 0.0) if requests == self.requests else 1.0
        variance = unknown / requests + unknown**2 / known
        # Student's quantile, by its first term; and where values are skewed upward, a sample whose mean is
        # low has a low deviation too: twice Johnson's term, as a small sample tends to miss the long ones.
        # Source: N. J. Johnson, *Modified t tests*, JASA 73 (1978).
        z = _Z * (1 + (_Z**2 + 1) / (4 * (known - 1)))
        z += max(line.skew, 0.0) * (1 + 2 * z**2) / (3 * math.sqrt(known))
        return line.deviation * z * math.sqrt(variance) / line.mean

    def slow_deviation(self) -> float:
        """Return the 90th percentile of the latency's deviation: few calls seldom have the longest."""
        doubt = math.sqrt((1 + 3 * max(self.latency.skew, 0.0) ** 2) / (2 * max(self.calls, 1)))
        return self.latency.deviation * (1 + _Z * doubt)

    @property
    def basis(self) -> str:
        """What this rests on, in a line: a guess, a count, or a pilot and what it showed."""
        reply = f"{self.output_tokens:,.0f} output tokens and {self.seconds:.1f} s each"
        if self.calls:
            cache = f", cache hit by {self.cache_hit_share:.0%}" if self.cached_tokens else ""
            again = f", {self.error_rate:.1%} of calls retried" if self.error_rate else ""
            return f"measured on {self.calls:,} calls: {reply}{cache}{again}"
        known = f"input counted on {self.counted:,} requests" if self.counted else "estimated from characters"
        thinking = f", {self.thinking_tokens:,.0f} of them thinking" if self.thinking_tokens else ""
        reply = f"{self.output_tokens:,.0f} tokens{thinking}, in {self.seconds:.1f} s"
        return f"{known}, output assumed ({reply})"

    @property
    def doubt(self) -> float:
        """The part by which the mean of many calls may be off: one standard deviation."""
        return (self.more - 1) / _Z

    @property
    def more(self) -> float:
        """How many times the median the 90th percentile of the tokens of many calls is, at most."""
        return 1 + max(self.input_more(), self.output_more())


# --------------------------------------------------------------------- a guess, before anything is known

# How long replies are is published nowhere: these are assumptions (checked 2026-11-29), told as such wherever
# a price rests on them, and replaced by the first pilot.
_TEXT_CHARACTERS, _FIELD_CHARACTERS = 480.0, 50.0
"""Of a reply in free text, and of a string among other fields, where the prompt asks for no length."""
_ASKED_CHARACTERS = MappingProxyType({"word": 7.0, "sentence": 100.0, "paragraph": 480.0})
"""Of each word, sentence or paragraph that the prompt asks for."""
_ASKED = re.compile(
    r"\b(one|a|an|a single|two|three|four|five|\d{1,4})[ -](?:short |brief )?(word|sentence|paragraph)s?\b",
    re.IGNORECASE,
)
_COUNTS = MappingProxyType({"two": 2, "three": 3, "four": 4, "five": 5})
_FORMAT_CHARACTERS = MappingProxyType({"date": 10, "time": 9, "date-time": 20, "duration": 5, "uri": 45})
_SCALAR_CHARACTERS = MappingProxyType({"boolean": 4.5, "integer": 2.0, "number": 4.0, "null": 4.0})
_ITEMS = 3
_BOUND = re.compile(r"(max length|min items|max items): (\d+)")
_REPLY_TOKENS = 3.0  # around the text of a reply: its end is a token too
_THINKING_TOKENS = MappingProxyType(
    {"low": 50.0, "medium": 200.0, "high": 600.0, "xhigh": 1_500.0, "max": 3_000.0}
)
"""Of a row by effort, where a model thinks. Only the order is documented. Source: Anthropic, *Effort*."""


def guess(prompt: Prompt, max_tokens: int, *, cache: bool = False) -> Measured:
    """Return what a call takes before anything is known: assumed, by what the reply must look like."""
    facts = prompt.model
    asked = [
        (_COUNTS.get(count.lower(), int(count) if count.isdigit() else 1) * _ASKED_CHARACTERS[unit.lower()])
        for count, unit in _ASKED.findall(f"{prompt.template or ''} {prompt.constant.get('system') or ''}")
    ]
    if prompt.returns is None:
        characters = max(asked, default=_TEXT_CHARACTERS)
    else:
        characters = _json_characters(prompt.returns.json_schema, max(asked, default=_FIELD_CHARACTERS))
    thinking = min(_thinking_tokens(prompt), float(max_tokens))
    tokens = min(_REPLY_TOKENS + characters / facts.characters_per_token + thinking, float(max_tokens))
    return Measured(
        output=Line(tokens),
        latency=Line(1.0 + tokens / 80),
        thinking_tokens=thinking,
        cached_tokens=prompt.shared_tokens if cache and prompt.is_cacheable else 0.0,
    )


def _json_characters(schema: Mapping[str, Any], text: float) -> float:
    """Return how long JSON of a schema is, written densely, with so many characters in each free string."""
    if labels := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return sum(len(json.dumps(label, ensure_ascii=False)) for label in labels) / len(labels)
    if kinds := [kind for kind in schema.get("anyOf", ()) if kind.get("type") != "null"]:
        return max(_json_characters(kind, text) for kind in kinds)
    bounds = {name: int(value) for name, value in _BOUND.findall(schema.get("description", ""))}
    if (fields := schema.get("properties")) is not None:
        names = sum(len(json.dumps(name, ensure_ascii=False)) + 2 for name in fields)
        return names + sum(_json_characters(field, text) for field in fields.values()) + 1
    if schema.get("type") == "array":
        items = max(min(_ITEMS, bounds.get("max items", _ITEMS)), bounds.get("min items", 0))
        return items * (1 + _json_characters(schema["items"], text)) + 1
    if schema.get("type") == "string":
        length: float = _FORMAT_CHARACTERS.get(schema.get("format", ""), text)
        return min(length, bounds.get("max length", length)) + 2
    return _SCALAR_CHARACTERS[schema["type"]]


def _thinking_tokens(prompt: Prompt) -> float:
    """Return how many tokens of thinking are assumed of a request."""
    thinking, facts = prompt.constant.get("thinking") or {}, prompt.model
    if thinking.get("type", "adaptive" if facts.thinks_by_default else "disabled") in {
        "disabled",
        "between_tools",
    }:
        return 0.0
    effort = prompt.constant.get("output_config", {}).get("effort") or facts.default_effort or "high"
    return min(_THINKING_TOKENS[effort], float(thinking.get("budget_tokens", math.inf)))


# --------------------------------------------------------------------------------- what all calls take


class Totals(NamedTuple):
    """What all the requests of a plan take together; what ends in `p90` is a 90th percentile."""

    rows: int
    unsent: int
    requests: int
    input_tokens: float
    cache_read_tokens: float
    output_tokens: float
    input_deviation: float  # of a request's input tokens that are not read from the cache
    live_dollars: float
    live_dollars_p90: float
    batch_dollars: float
    batch_dollars_p90: float
    plain_dollars: float  # of every row sent by itself, live, nothing cached


def total(sizes: pl.DataFrame, prompt: Prompt, expected: Measured, max_tokens: int) -> Totals:
    """Return what all requests take together: each priced by itself, then summed.

    Parameters
    ----------
    sizes : pl.DataFrame
        `estimated_tokens`, and how many `requests` of so many there are, for how many `rows`; null tokens are
        rows that are not sent.
    """
    sent, times = sizes.drop_nulls(), pl.col("requests")
    estimated = pl.col("estimated_tokens")
    tokens = expected.at(expected.input, estimated).clip(0.0)
    read = pl.min_horizontal(tokens, pl.lit(expected.cached_tokens))
    output = expected.at(expected.output, estimated).clip(0.0, float(max_tokens))
    geography = prompt.charges.inference_geo
    live, batch = (
        prices.price(prompt.model, mode=mode, inference_geo=geography) for mode in ("live", "batch")
    )
    # One web search a row is assumed where there is such a tool; after a pilot the bill sets it right.
    fee = (live.search or 0.0) if prompt.charges.searches != 0 else 0.0
    nothing = pl.lit(0.0)
    sums = sent.select(
        input=(tokens * times).sum(),
        read=(read * times).sum(),
        output=(output * times).sum(),
        squares=((tokens - read) ** 2 * times).sum(),
        live=((_dollars(live, tokens - read, read, output) + fee) * times).sum(),
        batch=((_dollars(batch, tokens - read, read, output) + fee) * times).sum(),
        plain=((_dollars(live, tokens, nothing, output) + fee) * pl.col("rows")).sum(),
        silent=((_dollars(live, tokens - read, read, nothing) + fee) * times).sum(),
    ).row(0, named=True)
    rows, requests = int(sizes["rows"].sum()), int(sent["requests"].sum())
    count = requests or 1
    more = math.hypot(
        expected.input_more(count) * sums["silent"],
        expected.output_more(count) * (sums["live"] - sums["silent"]),
    )
    # Who finds no cache writes it: live the first call and some others, in batches more of them.
    written = requests and 1 + (requests - 1) * (1 - expected.cache_hit_share)
    low, high = catalog.BATCH.cache_hit_shares
    share = BATCH_HIT_SHARE if expected.batch_hit_share is None else expected.batch_hit_share
    missed = max(requests * (1 - share), min(requests, 1))
    is_measured = expected.batch_hit_share is not None and expected.calls >= requests
    # Any share in the documented range is as likely as another: what one batch found the next may not find.
    most_missed = missed if is_measured else max(missed, requests * (1 - low - (1 - P90) * (high - low)))
    hour = _write_dollars(batch, expected, "1h")
    live_dollars = sums["live"] + written * _write_dollars(live, expected, "5m")
    batch_dollars = sums["batch"] + missed * hour
    batch_more = math.hypot(more * _part(sums["batch"], sums["live"]), (most_missed - missed) * hour)
    ratio, uncached = expected.billed_ratio, _part(sums["input"] - sums["read"], requests)
    return Totals(
        rows=rows,
        unsent=rows - int(sent["rows"].sum()),
        requests=requests,
        input_tokens=sums["input"],
        cache_read_tokens=max(sums["read"] - expected.cached_tokens * written, 0.0),
        output_tokens=sums["output"],
        input_deviation=math.sqrt(max(_part(sums["squares"], requests) - uncached**2, 0.0)),
        live_dollars=live_dollars * ratio,
        live_dollars_p90=(live_dollars + more) * ratio,
        batch_dollars=batch_dollars * ratio,
        batch_dollars_p90=(batch_dollars + batch_more) * ratio,
        plain_dollars=sums["plain"] * ratio,
    )


def _part(of: float, whole: float) -> float:
    return of / whole if whole else 0.0


def _dollars(price: prices.Price, uncached: pl.Expr, read: pl.Expr, output: pl.Expr) -> pl.Expr:
    usage = dict.fromkeys(prices.COLUMNS.values(), pl.lit(0.0))
    usage |= {"input_tokens": uncached, "cache_read_input_tokens": read, "output_tokens": output}
    return prices.dollars(price, **usage)


def _write_dollars(price: prices.Price, expected: Measured, kept: str) -> float:
    """Return how much more a call that writes the cache costs than one that reads it."""
    cached = expected.cached_tokens
    read = price.dollars(cache_read_input_tokens=cached)
    return price.dollars(**{f"cache_write_{kept}_input_tokens": cached}) - read


# ------------------------------------------------------------------------------------ dollars and minutes


def option(options: pl.DataFrame, mode: str) -> dict[str, Any]:
    """Return the row of one mode of `OPTIONS`."""
    return options.row(by_predicate=pl.col("mode") == mode, named=True)


def options(
    totals: Totals, limits: Limits, expected: Measured, concurrency: int | None, deadline: float | None
) -> pl.DataFrame:
    """Return one row per mode as `OPTIONS`; with a deadline, in minutes, a ``"hybrid"`` is among them.

    `limits` are those that the run may use, `concurrency` the most calls in flight.
    """
    waves = math.ceil(totals.requests / (limits.batch_queue_requests or catalog.BATCH.max_requests))
    # Most batches end within an hour, and one that has not ended after a day expires.
    # Source: Anthropic, *Batch processing* (checked 2026-08-14).
    batch_minutes = _BATCH_MINUTES * waves, catalog.BATCH.expires_hours * 60.0 * waves
    count, uncached = totals.requests or 1, totals.input_tokens - totals.cache_read_tokens
    usual, slow = (
        live_finish(
            limits,
            expected,
            requests=totals.requests,
            input_tokens=uncached * (1 + is_slow * expected.input_more(count)),
            output_tokens=totals.output_tokens * (1 + is_slow * expected.output_more(count)),
            input_deviation=totals.input_deviation,
            concurrency=concurrency,
            from_start=True,
            is_slow=is_slow,
        )
        for is_slow in (False, True)
    )
    live = "live", totals.live_dollars, totals.live_dollars_p90, usual.seconds / 60, slow.seconds / 60
    batch = "batch", totals.batch_dollars, totals.batch_dollars_p90, *batch_minutes
    rows = [(*live, usual.binding), (*batch, "queue" if waves > 1 else "batch processing")]
    if deadline is not None:
        # As a batch if that usually ends before the rest must go live, else at the price of live calls.
        in_time = batch_minutes[0] <= deadline - slow.seconds / 60 - CANCEL_MINUTES
        dollars = totals.batch_dollars if in_time else totals.live_dollars
        minutes = batch_minutes[0] if in_time else deadline
        rows.append(("hybrid", dollars, totals.live_dollars_p90, minutes, deadline, "deadline"))
    if not totals.requests:
        rows = [(*row[:3], 0.0, 0.0, NOTHING) for row in rows]
    spends = math.inf if limits.spend_dollars_per_month is None else limits.spend_dollars_per_month
    is_above, binding = pl.col("dollars") > spends, pl.lit(SPEND_LIMIT)
    return (
        pl.DataFrame(rows, schema=OPTIONS.names()[:6], orient="row")
        .with_columns(
            binding=pl.when(is_above).then(binding).otherwise("binding"),
            dollars_saved=totals.plain_dollars - pl.col("dollars"),
            requests=totals.requests,
            input_tokens=round(totals.input_tokens),
            output_tokens=round(totals.output_tokens),
        )
        .cast(OPTIONS)
    )


class Finish(NamedTuple):
    """When the last of a run's rows is answered, and what keeps it from being sooner."""

    seconds: float
    binding: str


def live_finish(
    limits: Limits,
    expected: Measured,
    *,
    requests: float,
    input_tokens: float,
    output_tokens: float,
    input_deviation: float = 0.0,
    concurrency: int | None = None,
    more: float = 1.0,
    from_start: bool = False,
    is_slow: bool = False,
) -> Finish:
    """Return the closed form of how long requests take live: the slowest bucket, or the latency.

    A token bucket that holds `burst` seconds' worth at the start and refills at a constant rate lets
    a total pass in ``total / rate - burst``; with the limit on calls in flight it is Little's
    law. Each is a lower bound, and a first-come pacer reaches the largest of them. Then the last calls
    are still under way: the slowest of them is waited for.

    Parameters
    ----------
    input_tokens, output_tokens : float
        In all, input without reads from the prompt cache; `more` times as many for a percentile.
    input_deviation : float
        Standard deviation of a request's input tokens.
    concurrency : int, optional
        Most calls in flight.
    from_start : bool
        A run that starts has full buckets and few calls in flight, and waits for its slowest call.
    is_slow : bool
        Of a latency at its 90th percentile.
    """
    if not requests:
        return Finish(0.0, NOTHING)
    latency = expected.seconds * (1 + (expected.seconds_more(requests) if is_slow else 0.0))
    round_trip = latency + (expected.lost_seconds if from_start else 0.0)
    burst = (limits.burst_seconds or 1.0) / RATE_MARGIN if from_start else 1.0
    allowed = limits.shared(RATE_MARGIN).per_minute
    used = (requests, input_tokens * more, output_tokens * more)
    alone = [total / limit * 60 for total, limit in zip(used, allowed, strict=True)]
    sending = {name: max(seconds - burst, 0.0) for name, seconds in zip(BUCKETS, alone, strict=True)}
    slower = "requests" if alone[0] >= alone[1] else "input_tokens"
    sending[slower] = max(_together(requests, alone, input_deviation / allowed[1] * 60, burst) - burst, 0.0)
    sending["output_tokens"] = max(alone[2] - burst * (1 - _OUTPUT_LEFT), 0.0)
    most = concurrency or (MOST_CONCURRENCY if from_start else math.inf)
    first = min(FIRST_CONCURRENCY, most) if from_start else most
    if most < math.inf:  # calls in flight double with each latency
        doubling = min(requests, most - first)
        rounds = math.ceil(math.log2(doubling / first + 1)) + (requests - doubling) / most
        sending["concurrency" if concurrency else "latency"] = max(rounds - 1, 0.0) * round_trip
    binding = max(sending, key=lambda name: sending[name])
    seconds = sending[binding]
    binding = "latency" if seconds < round_trip else binding
    under_way = min(requests * round_trip / (seconds + round_trip), requests)
    if not from_start:
        return Finish(seconds + round_trip, binding)
    if binding in BUCKETS[:2] and under_way > first:
        seconds += (math.log2(under_way / first) - 1) * round_trip  # lost while calls in flight double
    deviation = expected.slow_deviation() if is_slow else expected.latency.deviation
    seconds += _slowest(under_way, round_trip, deviation, P90 if is_slow else 0.5)
    warming = latency if expected.cached_tokens and requests > 1 else 0.0
    # Its start and its end take a part of a round more: calls are sent when others are answered.
    return Finish(seconds + warming + latency / 4, binding)


def _together(requests: float, alone: list[float], deviation_seconds: float, burst_seconds: float) -> float:
    """Return the seconds in which requests and their input pass both limits.

    Of calls that fit a full bucket at once, the slower limit holds them up; where they are few, long requests
    wait for tokens and short ones for requests. The mean of the larger of the two is Clark's, of a normal
    distribution. Source: C. E. Clark, *The Greatest of a Finite Set of Random Variables*, OR 9 (1961).
    """
    count = max(burst_seconds * requests / max(alone), 1.0)
    each, tokens = (seconds * count / requests for seconds in alone[:2])
    deviation = math.sqrt(count) * deviation_seconds
    if not deviation or count >= requests:
        return max(alone[:2])
    away = (tokens - each) / deviation
    both = each + deviation * (_NORMAL.pdf(away) + away * _NORMAL.cdf(away))
    return both * requests / count


def _slowest(calls: float, mean: float, deviation: float, quantile: float) -> float:
    """Return the latency of the slowest of so many calls: a quantile, for lognormal latencies."""
    if not mean or not deviation:
        return mean
    wide = math.sqrt(math.log1p((deviation / mean) ** 2))
    return mean * math.exp(wide * _NORMAL.inv_cdf(quantile ** (1 / max(calls, 1.0))) - wide**2 / 2)
