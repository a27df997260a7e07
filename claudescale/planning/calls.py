"""What a call takes, and how that is known: guessed, counted by the API, or measured by a pilot."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale.api import prices
from claudescale.evidence.intervals import student, wilson

if TYPE_CHECKING:
    from collections.abc import Mapping

    from claudescale.api.catalog import Model
    from claudescale.prompts.requests import Prompt

P90 = 0.9
"""What the 90th percentile of an estimate is not above, nine times in ten."""
_GUESSED_INPUT_DOUBT = 0.15
"""One standard deviation of a guess of many calls' mean: how long a token is depends on the text."""
_GUESSED_OUTPUT_DOUBT = 0.5
"""The same of replies: nothing is known of their length."""
_FEWEST_FOR_A_LINE = 10
_SAME_LENGTH = 1e-9
_STEEPEST = 3.0
_SURE_TREND = 3.0
"""So many standard errors from zero is a trend."""

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
_FORMAT_CHARACTERS = MappingProxyType(
    {"date": 10, "time": 9, "date-time": 20, "duration": 5, "email": 22, "hostname": 18}
    | {"uri": 45, "ipv4": 12, "ipv6": 24, "uuid": 36}
)
_SCALAR_CHARACTERS = MappingProxyType({"boolean": 4.5, "integer": 2.0, "number": 4.0, "null": 4.0})
_ITEMS = 3
_TOLD_BOUND = re.compile(r"(max length|min items|max items): (\d+)")
_REPLY_TOKENS = 3.0
"""Around the text of a reply: its end is a token too."""
_THINKING_TOKENS = MappingProxyType(
    {"low": 50.0, "medium": 200.0, "high": 600.0, "xhigh": 1_500.0, "max": 3_000.0}
)
"""Of a row by effort, where a model thinks. Only the order is documented. Source: Anthropic, *Effort*."""
_THINKS_NOT = frozenset({"disabled", "between_tools"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a call takes, and how that is known.

    Attributes
    ----------
    input_ratio, input_overhead_tokens : float
        Real input tokens for each one estimated from characters, and what every call has besides.
    input_deviation : float
        Standard deviation of a call's real input tokens around these, for each token of the mean call.
    billed_ratio : float
        Dollars billed for each dollar that these figures make of the calls measured: what is not billed
        (refusals), what costs besides tokens, steps of the price.
    output_tokens, output_deviation : float
        Mean of a call and standard deviation, thinking included, refusals and cut replies too.
    output_slope : float
        By how much a reply is longer for each token that a request is estimated longer than the mean of
        those measured; 0 where that is not certain.
    output_skew : float
        Skewness around the mean or line: a few long replies that a small sample tends to miss.
    seconds, seconds_deviation, seconds_slope, seconds_skew : float
        The same of the latency of a call.
    estimated_tokens, estimated_harmonic : float
        Arithmetic and harmonic mean of the requests measured, from their characters.
    cached_tokens : float
        The beginning of every call that is read from the prompt cache, but written by the first.
    cache_hit_share : float
        Of the live calls after the first, how many found it.
    batch_hit_share : float or None
        Of the calls in batches, how many found it; None is not known.
    thinking_tokens : float
        Of the output tokens, those of thinking.
    error_rate : float
        The part of the calls that fail and are sent again, those not counted that the limits turn down.
    lost_seconds : float
        What a row loses to that on average: failed calls, and waiting before the next.
    stop_rate, stop_seconds : float
        How often, for each call, the limits stopped all calls at once, and for how long each time.
    refusal_rate : float
        The part of the replies in which the model refuses.
    web_search_requests : float
        Web searches of a call; one is assumed where there is such a tool and nothing is known.
    inference_geo : str or None
        Where the calls were answered.
    burst_seconds : float
        So many seconds' worth of a limit may be taken at once, as the headers of answers tell.
    calls : int
        How many this comes from; 0 is a guess.
    counted : int
        Requests whose input tokens the API has counted.
    requests : int
        How many requests there are of which those measured are a part; 0 is not known.
    """

    input_ratio: float = 1.0
    input_overhead_tokens: float = 0.0
    input_deviation: float = 0.15
    billed_ratio: float = 1.0
    output_tokens: float = 0.0
    output_deviation: float = 0.0
    output_slope: float = 0.0
    output_skew: float = 0.0
    seconds: float = 3.0
    seconds_deviation: float = 0.0
    seconds_slope: float = 0.0
    seconds_skew: float = 0.0
    estimated_tokens: float = 0.0
    estimated_harmonic: float = 0.0
    cached_tokens: float = 0.0
    cache_hit_share: float = 1.0
    batch_hit_share: float | None = None
    thinking_tokens: float = 0.0
    error_rate: float = 0.0
    lost_seconds: float = 0.0
    stop_rate: float = 0.0
    stop_seconds: float = 0.0
    refusal_rate: float = 0.0
    web_search_requests: float = 0.0
    inference_geo: str | None = None
    burst_seconds: float = 1.0
    calls: int = 0
    counted: int = 0
    requests: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Output tokens for each second that a call is under way."""
        return self.output_tokens / self.seconds if self.seconds else 0.0

    def uncached_tokens(self, estimated_tokens: float, requests: float) -> float:
        """Return the input that the limits count, of so many requests and estimated tokens in all."""
        each = self.input_overhead_tokens - self.cached_tokens
        return max(estimated_tokens * self.input_ratio + requests * each, 0.0)

    def output_of(self, estimated_tokens: pl.Expr) -> pl.Expr:
        """Return the output tokens of requests of so many estimated ones."""
        slope = self.output_slope if self.calls else 0.0
        return self.output_tokens + slope * (estimated_tokens - self.estimated_tokens)

    def seconds_of(self, estimated_tokens: float) -> float:
        """Return the latency of a mean call of such requests."""
        return max(self.seconds + self.seconds_slope * self._away(estimated_tokens), self.seconds / _STEEPEST)

    def _away(self, estimated_tokens: float) -> float:
        return estimated_tokens - self.estimated_tokens if self.calls else 0.0

    def input_more(self, requests: float = math.inf, estimated_tokens: float | None = None) -> float:
        """Return how far the 90th percentile of many calls' input is above the median, as a part of it.

        Parameters
        ----------
        requests : float
            How many calls.
        estimated_tokens : float, optional
            Their mean; where it is far from that of the calls measured, less is known.
        """
        known = self.calls or self.counted
        if not known or (known == 1 and not self.input_deviation):
            return _z(0) * _GUESSED_INPUT_DOUBT
        size = self._size(estimated_tokens)
        mean = size * self.estimated_tokens * self.input_ratio + self.input_overhead_tokens
        measured = self.estimated_tokens * self.input_ratio + self.input_overhead_tokens
        spread = self._spread(known, requests, size, through_zero=not self.input_overhead_tokens)
        return self.input_deviation * spread * (measured / mean if mean else 1.0)

    def output_more(self, requests: float = math.inf, estimated_tokens: float | None = None) -> float:
        """Return the same of their output."""
        if self.calls <= 1 or not self.output_tokens:
            return _z(0) * _GUESSED_OUTPUT_DOUBT
        size = self._size(estimated_tokens) if self.output_slope else 1.0
        mean = self.output_tokens + self.output_slope * (size - 1) * self.estimated_tokens
        spread = self._spread(self.calls, requests, size, self.output_skew)
        return self.output_deviation * spread / max(mean, 1.0)

    def seconds_more(self, requests: float = math.inf, estimated_tokens: float | None = None) -> float:
        """Return the same of their mean latency."""
        if self.calls <= 1 or not self.seconds:
            return _z(0) * _GUESSED_OUTPUT_DOUBT
        size = self._size(estimated_tokens) if self.seconds_slope else 1.0
        spread = self._spread(self.calls, requests, size, self.seconds_skew)
        return self.seconds_deviation * spread / self.seconds_of(size * self.estimated_tokens)

    def slow_deviation(self) -> float:
        """Return the 90th percentile of `seconds_deviation`: few calls seldom have the longest among them."""
        if self.calls <= 1:
            return self.seconds_deviation
        doubt = math.sqrt((1 + 3 * max(self.seconds_skew, 0.0) ** 2) / (2 * self.calls))
        return self.seconds_deviation * (1 + _z(self.calls - 1) * doubt)

    def _size(self, estimated_tokens: float | None) -> float:
        """Return how many times as long as the requests measured others are."""
        known = self.estimated_tokens if self.calls or self.counted else 0.0
        return estimated_tokens / known if known and estimated_tokens else 1.0

    def _spread(
        self, known: int, requests: float, size: float, skew: float = 0.0, *, through_zero: bool = False
    ) -> float:
        """Return the 90th percentile of the mean of calls to come, in deviations of one call.

        Those measured are some of all: only the others are unknown, none if all were measured. Of other
        requests, both samples differ from what is usual. Where values are skewed upward, a sample whose mean
        is low has a low deviation too: twice Johnson's term, as a small sample tends to miss the long ones.
        Source: N. J. Johnson, *Modified t tests*, JASA 73 (1978).

        Parameters
        ----------
        size : float
            How many times as long as those measured the requests are; 1 where length does not matter.
        """
        if requests == self.requests:
            if requests <= known:
                return 0.0
            part = 1 - known / requests
            size = max((size - known / requests) / part, 0.0)  # of those that are not measured
        else:
            part = 1.0
        uneven = self.estimated_tokens / self.estimated_harmonic - 1 if self.estimated_harmonic else 0.0
        line = size**2
        if not through_zero and size != 1 and uneven:
            line = (size**2 * (1 + uneven) - 2 * size + 1) / uneven
        variance = part * size / requests + part**2 * line / known
        z = _z(known - 1)
        return (z + max(skew, 0.0) * (1 + 2 * z**2) / (3 * math.sqrt(known))) * math.sqrt(variance)

    def errors_more(self) -> float:
        """Return the 90th percentile of `error_rate`; what was not met at all is not looked for."""
        if not self.error_rate or not self.calls:
            return self.error_rate
        tries = self.calls / (1 - self.error_rate)
        return wilson(self.error_rate * tries, round(tries), 2 * P90 - 1).high

    def stopped_seconds(self, requests: float, *, slow: bool = False) -> float:
        """Return how long so many calls are stopped, usually or nine times in ten at most."""
        seen = self.stop_rate * self.calls
        more = 1 + _z(0) * math.sqrt(1 / seen + 1 / (self.stop_rate * requests)) if slow and seen else 1.0
        return self.stop_rate * requests * self.stop_seconds * more

    @property
    def basis(self) -> str:
        """What this rests on, in a line: a guess, a count, or a pilot and what it told."""
        if not self.calls:
            known = (
                f"input counted on {self.counted:,} requests" if self.counted else "estimated from characters"
            )
            thinking = f", {self.thinking_tokens:,.0f} of them thinking" if self.thinking_tokens else ""
            reply = f"{self.output_tokens:,.0f} tokens{thinking}, in {self.seconds:.1f} s"
            return f"{known}, output assumed ({reply})"
        told = [
            f"{self.output_tokens:,.0f} output tokens and {self.seconds:.1f} s each",
            f"{self.tokens_per_second:,.0f} output tokens/s",
            *([f"cache found by {self.cache_hit_share:.0%}"] if self.cached_tokens else []),
            *([f"{self.refusal_rate:.1%} refused"] if self.refusal_rate else []),
            *([f"{self.error_rate:.1%} of calls sent again"] if self.error_rate else []),
        ]
        return f"measured on {self.calls:,} calls: {', '.join(told)}"

    @property
    def doubt(self) -> float:
        """The part by which the mean of many calls may be off: one standard deviation."""
        return max(self.input_more(), self.output_more()) / _z(0)

    @property
    def more(self) -> float:
        """How many times the median the 90th percentile of the tokens of many calls is, at most."""
        return 1 + max(self.input_more(), self.output_more())


def _z(freedom: int) -> float:
    return student(P90, freedom or math.inf)


def guess(prompt: Prompt, facts: Model, max_tokens: int, *, cache: bool = False) -> Measured:
    """Return what a call takes before anything is known: assumed, by what the reply must look like."""
    cached = prompt.shared_tokens if cache and prompt.is_cacheable else 0.0
    asked = _asked_characters(prompt)
    if prompt.returns is None:
        characters = asked or _TEXT_CHARACTERS
    else:
        characters = _json_characters(prompt.returns.json_schema, asked or _FIELD_CHARACTERS)
    thinking = min(_thinking_tokens(prompt.constant, facts), float(max_tokens))
    tokens = min(_REPLY_TOKENS + characters / facts.characters_per_token + thinking, float(max_tokens))
    return Measured(
        output_tokens=tokens,
        thinking_tokens=thinking,
        seconds=1.0 + tokens / 80,
        cached_tokens=cached,
        web_search_requests=float(prompt.charges.searches != 0),
        inference_geo=prompt.charges.inference_geo,
    )


def _asked_characters(prompt: Prompt) -> float:
    """Return the most characters of text that the prompt asks for, as in "one sentence"; 0 if it does not."""
    found = _ASKED.findall(f"{prompt.template or ''} {prompt.constant.get('system') or ''}")
    counts = [
        (_COUNTS.get(count.lower(), int(count) if count.isdigit() else 1), unit) for count, unit in found
    ]
    return max((count * _ASKED_CHARACTERS[unit.lower()] for count, unit in counts), default=0.0)


def _json_characters(schema: Mapping[str, Any], text: float) -> float:
    """Return how long JSON of a schema is, written densely, with so many characters in each free string."""
    if labels := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return sum(len(json.dumps(label, ensure_ascii=False)) for label in labels) / len(labels)
    if kinds := [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]:
        return max(_json_characters(kind, text) for kind in kinds)
    told = {name: int(value) for name, value in _TOLD_BOUND.findall(schema.get("description", ""))}
    if (fields := schema.get("properties")) is not None:
        parts = [
            len(json.dumps(name, ensure_ascii=False)) + 2 + _json_characters(each, text)
            for name, each in fields.items()
        ]
        return sum(parts) + 1
    if schema.get("type") == "array":
        items = max(min(_ITEMS, told.get("max items", _ITEMS)), told.get("min items", 0))
        return items * (1 + _json_characters(schema["items"], text)) + 1
    if schema.get("type") == "string":
        length: float = _FORMAT_CHARACTERS.get(schema.get("format", ""), text)
        return min(length, told.get("max length", length)) + 2
    return _SCALAR_CHARACTERS[schema["type"]]


def _thinking_tokens(constant: Mapping[str, Any], facts: Model) -> float:
    """Return how many tokens of thinking are assumed of a request."""
    thinking = constant.get("thinking") or {}
    kind = thinking.get("type", "adaptive" if facts.thinks_by_default else "disabled")
    if kind in _THINKS_NOT:
        return 0.0
    effort = constant.get("output_config", {}).get("effort") or facts.default_effort or "high"
    return min(_THINKING_TOKENS[effort], float(thinking.get("budget_tokens", math.inf)))


def measured(paid: pl.DataFrame, attempts: pl.DataFrame | None = None) -> Measured:
    """Return what the calls of a pilot took.

    Parameters
    ----------
    paid : pl.DataFrame
        Of `claudescale.ledger.ledger.ATTEMPTS`, one row per paid reply, with `estimated_tokens`.
    attempts : pl.DataFrame, optional
        All calls of the pilot, those that failed too.
    """
    cached = prices.PROMPT - pl.col("input_tokens")  # written or read
    sizes = paid.select("estimated_tokens", real=prices.PROMPT.cast(pl.Float64))
    ratio, overhead = line(sizes)
    output = trend(paid["estimated_tokens"], paid["output_tokens"])
    live, batch = (paid.filter(mode=mode) for mode in ("live", "batch"))
    seconds = trend(live["estimated_tokens"], live["seconds"])
    if live.is_empty():
        seconds = seconds._replace(mean=1.0 + output.mean / 80)
    error_rate, lost_seconds = _failures(attempts, live)
    stop_rate, stop_seconds = _stops(attempts, live)
    told = paid.select(
        estimated_tokens=pl.col("estimated_tokens").mean(),
        estimated_harmonic=1 / (1 / pl.col("estimated_tokens")).mean(),
        cached_tokens=cached.filter(cached > 0).mean().fill_null(0.0),
        **{
            name: each
            for name, each in {
                "web_search_requests": pl.col("web_search_requests").mean(),
                "inference_geo": pl.col("inference_geo").drop_nulls().first(),
                "thinking_tokens": pl.col("thinking_tokens").mean(),
            }.items()
            if name in paid.columns
        },
    ).row(0, named=True)
    caching = told["cached_tokens"] > 0
    return Measured(
        input_ratio=ratio,
        input_overhead_tokens=overhead,
        input_deviation=around(sizes, ratio, overhead),
        output_tokens=output.mean,
        output_deviation=output.deviation,
        output_slope=output.slope,
        output_skew=output.skew,
        seconds=seconds.mean,
        seconds_deviation=seconds.deviation,
        seconds_slope=seconds.slope,
        seconds_skew=seconds.skew,
        cache_hit_share=_hits(live, 1) if caching and live.height > 1 else 1.0,
        batch_hit_share=_hits(batch, 0) if caching and batch.height else None,
        error_rate=error_rate,
        lost_seconds=lost_seconds,
        stop_rate=stop_rate,
        stop_seconds=stop_seconds,
        **told,
        calls=paid.height,
    )


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
    if not failed:
        return 0.0, 0.0
    return failed / tries.height, float(rows["seconds"].sum()) / live.height


def _stops(attempts: pl.DataFrame | None, live: pl.DataFrame) -> tuple[float, float]:
    """Return how often, for each call, the limits stopped a pilot, and for how long on average."""
    if attempts is None or live.is_empty():
        return 0.0, 0.0
    again = pl.col("sent_at").shift(-1).over("key", order_by="sent_at")
    refused = (
        attempts.filter(mode="live")
        .select("sent_at", "status", again=again)
        .filter(pl.col("status") == HTTPStatus.TOO_MANY_REQUESTS)
        .drop_nulls()
    )
    # Calls that were under way together are turned down together: that is one stop.
    ends = pl.col("again").cum_max().shift().fill_null(pl.datetime(1970, 1, 1, time_zone="UTC"))
    stops = refused.sort("sent_at").filter(pl.col("sent_at") >= ends)
    if stops.is_empty():
        return 0.0, 0.0
    seconds = stops.select((pl.col("again") - pl.col("sent_at")).dt.total_milliseconds().mean()).item()
    return stops.height / live.height, seconds / 1_000


class Trend(NamedTuple):
    """A mean, what is added for each token of the request more, and deviation and skewness around that."""

    mean: float
    slope: float
    deviation: float
    skew: float


def trend(estimated: pl.Series, values: pl.Series) -> Trend:
    """Return how values go with the estimated tokens of their requests; flat where that is not certain."""
    both = pl.DataFrame([estimated.alias("x"), values.cast(pl.Float64).alias("y")])
    mean, around = (_number(value) for value in both.mean().row(0))
    slope = _sure_slope(both) or 0.0
    rest = both.select(pl.col("y") - slope * (pl.col("x") - mean)).to_series()
    freedom = max(values.len() - 2, 1)
    wider = math.sqrt((freedom + 1) / freedom) if slope else 1.0
    return Trend(around, slope, _number(rest.std()) * wider, _number(rest.skew(bias=freedom == 1)))


def _sure_slope(both: pl.DataFrame) -> float | None:
    """Return how y rises with x where that is certain, by a line whose rows deviate with the root of x.

    The line goes through the means, so that it gives the sum of y for the very rows it comes from; long rows,
    which deviate most, do not turn it.
    """
    x, y, n = pl.col("x"), pl.col("y"), both.height
    if n < _FEWEST_FOR_A_LINE:
        return None
    total, moment = both.select(x.sum(), moment=x.sum() - n**2 / (1 / x).sum()).row(0)
    if moment <= total * _SAME_LENGTH:
        return None
    slope = both.select(y.sum() - n * (y / x).sum() / (1 / x).sum()).item() / moment
    rest = y - y.mean() - slope * (x - x.mean())
    doubt = math.sqrt(both.select((rest**2 / x).sum()).item() / (n - 2) / moment)
    return float(slope) if slope >= _SURE_TREND * doubt else None


def _number(value: Any) -> float:
    """Return a figure, 0 where rows are too few to tell it."""
    return 0.0 if value is None or not math.isfinite(value) else float(value)


def around(sizes: pl.DataFrame, ratio: float, overhead: float) -> float:
    """Return the deviation of real tokens around a line of the estimated ones, for each token of the mean.

    Each is taken from the line that the others give: few long ones turn it towards themselves. Source: J. G.
    MacKinnon, H. White, *Some heteroskedasticity-consistent covariance matrix estimators*, J. Econometrics 29
    (1985).
    """
    n = sizes.height
    if n <= 1:
        return 0.0
    x, y = pl.col("estimated_tokens"), pl.col("real")
    turned = x / x.sum()
    if overhead:
        inverse = (1 / x).sum()
        turned = (x.sum() - 2 * n * x + inverse * x**2) / (x * (inverse * x.sum() - n**2))
    away = (y - x * ratio - overhead) / (1 - turned)
    return _number(sizes.select((away**2).mean().sqrt() / y.mean()).item())


def line(sizes: pl.DataFrame) -> tuple[float, float]:
    """Return slope and intercept of real tokens over estimated ones; through zero where that is no sense.

    Rows of one length cannot tell the two apart, and few rows may tell them wrong.
    """
    both = sizes.select(x="estimated_tokens", y=pl.col("real").cast(pl.Float64))
    x, y = both.mean().row(0)
    slope = _sure_slope(both)
    if slope is not None and 1 / _STEEPEST <= slope <= _STEEPEST:
        overhead = y - slope * x
        if overhead + slope * both.select(pl.min("x")).item() > 0:
            return slope, overhead
    return y / x, 0.0
