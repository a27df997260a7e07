"""What a call of a plan takes: guessed, counted by the API, or measured by a pilot."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, replace
from http import HTTPStatus
from statistics import NormalDist
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import polars as pl

from claudescale.api import catalog, prices

if TYPE_CHECKING:
    from collections.abc import Mapping

    from claudescale.prompts.requests import Prompt

Z = NormalDist().inv_cdf(0.9)  # standard deviations from the median to the 90th percentile
_MOST_DOUBT = 1.5  # in logarithms: a pilot of two rows, or of rows unlike the others, says no more
BATCH_HIT_SHARE = sum(catalog.BATCH.cache_hit_shares) / 2
"""The requests of a batch that are assumed to hit the cache: the middle of what the documentation says."""
_FEWEST_FOR_A_LINE = 10
_SURE_TREND = 3.0  # so many standard errors from zero is a trend
_SAME_LENGTH = 1e-9


class Line(NamedTuple):
    """A figure of a call: its mean, what each estimated token more of the request adds, how it varies."""

    mean: float
    slope: float = 0.0
    deviation: float = 0.0  # around the line
    calls: int = 0  # it was measured on, of so many `requests` in all; 0 is a guess
    requests: int = 0
    center: float = 0.0  # the mean of the calls' estimated tokens, and their deviation
    spread: float = 0.0
    guessed: float = 0.5  # one standard deviation of a guess, as a part of it

    def at(self, estimated_tokens: Any) -> Any:
        """Return the figure of requests of so many estimated tokens: a number or an expression."""
        return self.mean + self.slope * (estimated_tokens - self.center)

    def more(self, requests: float = math.inf, estimated_tokens: float | None = None) -> float:
        """Return how far the 90th percentile of the mean of many is above the median, as a part of it.

        As if they were lognormal: a mean that is measured low, as the few long ones were missed, has a low
        deviation too. `estimated_tokens` is their mean.
        """
        if self.calls <= 1 or not (self.mean and requests):
            return Z * self.guessed
        # Those measured are some of all: only the others are unknown. Of other requests, both samples vary.
        unknown = max(1 - self.calls / requests, 0.0) if requests == self.requests else 1.0
        part = unknown / requests + unknown**2 / self.calls
        if self.slope and self.spread and estimated_tokens is not None:
            # The slope's own error, where they are longer than those measured; long ones vary more.
            part += 3 * ((estimated_tokens - self.center) / self.spread) ** 2 / (self.calls - 1)
        wide = math.log1p((self.deviation / self.mean) ** 2)
        student = Z * (1 + (Z**2 + 1) / (4 * (self.calls - 1)))  # its quantile, by the first term
        return math.expm1(min(student * math.sqrt(part * (wide + 3 * wide**2)), _MOST_DOUBT))

    def slow(self, requests: float) -> Line:
        """Return the line at its 90th percentiles: few calls seldom have the longest."""
        varies = self.deviation / self.mean if self.mean else 0.0
        wider = 1 + Z * math.sqrt((1 + 12 * varies**2) / (2 * max(self.calls, 1)))
        return self._replace(mean=self.mean * (1 + self.more(requests)), deviation=self.deviation * wider)


_AS_ESTIMATED = Line(0.0, 1.0, guessed=0.15)  # how long a token is depends on the text
_NOTHING, _SECONDS = Line(0.0), Line(3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What a call takes, and how that is known: guessed, counted by the API, or measured by a pilot."""

    input: Line = _AS_ESTIMATED  # tokens
    output: Line = _NOTHING  # tokens, thinking included, refusals and cut replies too
    latency: Line = _SECONDS  # seconds
    billed_ratio: float = 1.0  # dollars billed for each that these figures make of the calls measured
    cached_tokens: float = 0.0  # the beginning of every call that is read from the prompt cache
    cache_hit_share: float = 1.0  # of the live calls after the first, how many found it
    batch_hit_share: float = BATCH_HIT_SHARE  # of the calls in batches
    error_rate: float = 0.0  # the part of the calls that fail and are sent again
    lost_rate: float = 0.0  # the part whose answer is lost: it was written all the same
    lost_seconds: float = 0.0  # what a row loses on average to calls that are sent again
    thinking_tokens: float = 0.0  # of the output tokens that are guessed

    @property
    def calls(self) -> int:
        """How many were measured; 0 is a guess."""
        return self.output.calls

    @property
    def output_tokens(self) -> float:
        """Output tokens of a mean call."""
        return self.output.mean

    @property
    def seconds(self) -> float:
        """Latency of a mean call."""
        return self.latency.mean

    def uncached_tokens(self, estimated_tokens: float, requests: float) -> float:
        """Return the input that the limits count, of so many requests and estimated tokens in all."""
        mean: float = self.input.at(estimated_tokens / requests) if requests else 0.0
        return max(mean - self.cached_tokens, 0.0) * requests

    @property
    def basis(self) -> str:
        """What this rests on, in a line: a guess, a count, or a pilot and what it showed."""
        reply = f"{self.output_tokens:,.0f} output tokens and {self.seconds:.1f} s each"
        if self.calls:
            cache = f", cache hit by {self.cache_hit_share:.0%}" if self.cached_tokens else ""
            again = f", {self.error_rate:.1%} of calls retried" if self.error_rate else ""
            return f"measured on {self.calls:,} calls: {reply}{cache}{again}"
        counted = self.input.calls
        known = f"input counted on {counted:,} requests" if counted else "estimated from characters"
        thinking = f", {self.thinking_tokens:,.0f} of them thinking" if self.thinking_tokens else ""
        reply = f"{self.output_tokens:,.0f} tokens{thinking}, in {self.seconds:.1f} s"
        return f"{known}, output assumed ({reply})"

    @property
    def more(self) -> float:
        """How many times the median the 90th percentile of the tokens of many calls is, at most."""
        return 1 + max(self.input.more(), self.output.more())

    @property
    def doubt(self) -> float:
        """The part by which the mean of many calls may be off: one standard deviation."""
        return (self.more - 1) / Z

    def slow(self, requests: float) -> Measured:
        """Return what calls take at the 90th percentile: the slowest are slower than measured, too."""
        output, latency = self.output.slow(requests), self.latency.slow(requests)
        latency = latency._replace(deviation=latency.deviation * 1.5)
        return replace(self, output=output, latency=latency)

    def after(self, calls: int, seconds: float) -> Measured:
        """Return what calls take by so many of the run itself, of so many seconds in the mean."""
        input_, output = (line._replace(calls=max(calls, self.calls)) for line in (self.input, self.output))
        return replace(self, input=input_, output=output, latency=Line(seconds))

    def elsewhere(self, before: Measured, after: Measured, *, same_model: bool) -> Measured:
        """Return what calls take with another cache or model: its replies are as long."""
        # Another model thinks more by default, or cannot write as much.
        more, times = after.output.mean - before.output.mean, after.output.mean / before.output.mean
        mean = self.output.mean + more if more > 0 else self.output.mean * times
        known = replace(self, cached_tokens=after.cached_tokens, output=self.output._replace(mean=mean))
        if same_model:
            return known
        input_, output = (line._replace(calls=0) for line in (known.input, known.output))
        seconds = after.latency.mean * mean / after.output.mean
        return replace(known, input=input_, output=output, latency=Line(seconds), billed_ratio=1.0)


# --------------------------------------------------------------------- a guess, before anything is known

# How long replies are is published nowhere: these are assumptions (checked 2026-11-29), told as such wherever
# a price rests on them, and replaced by the first pilot.
_TEXT_CHARACTERS, _FIELD_CHARACTERS, _FORMAT_CHARACTERS, _SCALAR_CHARACTERS = 480.0, 50.0, 15.0, 4.0
"""Of a reply in free text, a string among other fields, one with a format such as a date, another value."""
_ASKED_CHARACTERS = MappingProxyType({"word": 7.0, "sentence": 100.0, "paragraph": 480.0})
"""Of each word, sentence or paragraph that the prompt asks for."""
_ASKED = re.compile(
    r"\b(an?|one|single|two|three|\d{1,4})[ -](?:short |brief )?(word|sentence|paragraph)", re.IGNORECASE
)
_COUNTS = MappingProxyType({"two": 2, "three": 3})
_ITEMS = 3
_REPLY_TOKENS = 3.0  # around the text of a reply: its end is a token too
_THINKING_TOKENS = MappingProxyType(
    {"low": 50.0, "medium": 200.0, "high": 600.0, "xhigh": 1_500.0, "max": 3_000.0}
)
"""Of a row by effort, where a model thinks. Only the order is documented. Source: Anthropic, *Effort*."""


def guess(prompt: Prompt, max_tokens: int, *, cache: bool = False) -> Measured:
    """Return what a call takes before anything is known: assumed, by what the reply must look like."""
    asked = [
        (int(count) if count.isdigit() else _COUNTS.get(count.lower(), 1)) * _ASKED_CHARACTERS[unit.lower()]
        for count, unit in _ASKED.findall(f"{prompt.template} {prompt.constant.get('system') or ''}")
    ]
    if prompt.returns is None:
        characters = max(asked, default=_TEXT_CHARACTERS)
    else:
        characters = _json_characters(prompt.returns.json_schema, max(asked, default=_FIELD_CHARACTERS))
    thinking = min(_thinking_tokens(prompt), float(max_tokens))
    tokens = _REPLY_TOKENS + characters / prompt.model.characters_per_token + thinking
    return Measured(
        output=Line(min(tokens, float(max_tokens))),
        latency=_usual_seconds(min(tokens, float(max_tokens))),
        thinking_tokens=thinking,
        cached_tokens=prompt.shared_tokens if cache and prompt.is_cacheable else 0.0,
    )


def _json_characters(schema: Mapping[str, Any], text: float) -> float:
    """Return how long JSON of a schema is, written densely, with so many characters in each free string."""
    if labels := schema.get("enum", [schema["const"]] if "const" in schema else []):
        return sum(len(json.dumps(label, ensure_ascii=False)) for label in labels) / len(labels)
    if "anyOf" in schema:
        return max(_json_characters(kind, text) for kind in schema["anyOf"])
    if (fields := schema.get("properties")) is not None:
        return sum(len(name) + 4 + _json_characters(field, text) for name, field in fields.items()) + 1
    if schema["type"] == "array":
        return _ITEMS * (1 + _json_characters(schema["items"], text)) + 1
    if schema["type"] == "string":
        return (_FORMAT_CHARACTERS if "format" in schema else text) + 2
    return _SCALAR_CHARACTERS


def _thinking_tokens(prompt: Prompt) -> float:
    """Return how many tokens of thinking are assumed of a request."""
    facts, thinking = prompt.model, prompt.constant.get("thinking") or {}
    kind = thinking.get("type", "adaptive" if facts.thinks_by_default else "disabled")
    effort = prompt.constant.get("output_config", {}).get("effort") or facts.default_effort or "high"
    return 0.0 if kind in {"disabled", "between_tools"} else _THINKING_TOKENS[effort]


def _usual_seconds(output_tokens: float) -> Line:
    return Line(1.0 + output_tokens / 80)


# ------------------------------------------------------------------------------------ measured, or counted


def measured(sizes: pl.DataFrame, attempts: pl.DataFrame, requests: int) -> Measured | None:
    """Return what the calls of a pilot took, some of so many requests; None if nothing was paid for.

    Parameters
    ----------
    sizes : pl.DataFrame
        Of `claudescale.ledger.records.ATTEMPTS`, the last reply to each request, with `estimated_tokens`.
    attempts : pl.DataFrame
        All calls of the pilot, those that failed too.
    """
    paid = sizes.filter(pl.col("dollars") > 0).with_columns(prompt=prices.PROMPT)
    if paid.is_empty():
        return None
    live, batch = (paid.filter(mode=mode) for mode in ("live", "batch"))
    output = line(paid, "output_tokens", requests)
    cached = paid.select(pl.col("prompt") - pl.col("input_tokens")).to_series()  # written or read
    # One call writes what the others find.
    hits = {
        name: int((calls["cache_read_input_tokens"] > 0).sum()) / (calls.height - 1)
        for name, calls in (("cache_hit_share", live), ("batch_hit_share", batch))
        if calls.height > 1 and (cached > 0).any()
    }
    refused = pl.col("status").eq_missing(HTTPStatus.TOO_MANY_REQUESTS)
    tries = attempts.filter(pl.col("mode") == "live", ~refused)
    waits = tries.group_by("key").agg(
        (pl.col("sent_at").max() - pl.col("sent_at").min()).dt.total_milliseconds()
    )
    failed = tries.filter(pl.col("dollars") == 0, pl.col("error").ne_missing("refusal")).height
    return Measured(
        input=line(paid, "prompt", requests, rises=True),
        output=output,
        latency=line(live, "seconds", requests) if live.height else _usual_seconds(output.mean),
        cached_tokens=_number(cached.filter(cached > 0).mean()),
        error_rate=failed / (tries.height or 1),
        lost_rate=tries["status"].null_count() / (tries.height or 1),
        lost_seconds=float(waits["sent_at"].sum()) / 1_000 / live.height if failed and live.height else 0.0,
        **hits,
    )


def _number(value: Any) -> float:
    """Return a figure, 0 where rows are too few to tell it."""
    return 0.0 if value is None or not math.isfinite(value) else float(value)


def line(calls: pl.DataFrame, figure: str, requests: int, *, rises: bool = False) -> Line:
    """Return how a figure goes with the `estimated_tokens` of calls, some of so many requests.

    It is flat where that is not certain; a figure that surely `rises` then goes through zero.
    """
    x, y, n = calls["estimated_tokens"], calls[figure].cast(pl.Float64), calls.height
    mean, center, spread = _number(y.mean()), _number(x.mean()), _number(x.std())
    slope, freedom = mean / center if rises else 0.0, max(n - 1, 1)
    if n >= _FEWEST_FOR_A_LINE and spread > center * _SAME_LENGTH:
        moment = spread**2 * (n - 1)
        steepness = float(((x - center) * (y - mean)).sum()) / moment
        rest = y - mean - steepness * (x - center)
        error = math.sqrt(float((rest**2).sum()) / (n - 2) / moment)
        starts = mean + steepness * (_number(x.min()) - center)
        if steepness >= _SURE_TREND * error and (starts > 0 or not rises):
            slope, freedom = steepness, n - 2
    rest = y - mean - slope * (x - center)
    deviation = _number(rest.std()) * math.sqrt(max(n - 1, 1) / freedom)
    guessed = (_AS_ESTIMATED if rises else _NOTHING).guessed
    return Line(mean, slope, deviation, n, requests, center, spread, guessed)
