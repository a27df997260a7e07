"""The tokens and seconds of a plan's calls: guessed, counted by the API, or measured by a pilot."""

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
_MOST_DOUBT = 1.5  # in logarithms: a cap for pilots of two rows, or of rows unlike the others
BATCH_HIT_SHARE = sum(catalog.BATCH.cache_hit_shares) / 2
"""The assumed share of a batch's requests that hit the cache: the midpoint of the documented range."""
_FEWEST_FOR_A_LINE = 10  # of fewer calls a slope is mostly noise
_SURE_TREND = 3.0  # standard errors from zero at which a slope counts as a trend
_SAME_LENGTH = 1e-9  # relative: a smaller spread of lengths is a rounding error


class Line(NamedTuple):
    """A figure of a call as a line over the request's estimated tokens, and the deviation around it."""

    mean: float
    slope: float = 0.0
    deviation: float = 0.0
    calls: int = 0  # measured, out of `requests` in all; 0 is a guess
    requests: int = 0
    center: float = 0.0  # mean of the calls' estimated tokens; `spread` is their deviation
    spread: float = 0.0
    guessed: float = 0.5  # relative standard deviation of a guess

    def at(self, estimated_tokens: Any) -> Any:
        """Return the figure at a number of estimated tokens, or at an expression of them."""
        return self.mean + self.slope * (estimated_tokens - self.center)

    def more(self, requests: float = math.inf, estimated_tokens: float | None = None) -> float:
        """Return the share by which the 90th percentile of the mean of many requests exceeds its median."""
        if self.calls <= 1 or not (self.mean and requests):
            return Z * self.guessed
        # The measured calls are part of the run, so only the rest is unknown. In another run both vary.
        # `part` is the variance of the mean of all N requests in variances of a call: the unknown share u has
        # the error of the pilot's n calls, u²/n, and varies itself, u/N.
        unknown = max(1 - self.calls / requests, 0.0) if requests == self.requests else 1.0
        part = unknown / requests + unknown**2 / self.calls
        if self.slope and self.spread and estimated_tokens is not None:
            # The slope's own variance (least squares), if the mean request is longer than those measured.
            # Long ones vary more: 3 is fitted to `prediction_benchmark.py`.
            part += 3 * ((estimated_tokens - self.center) / self.spread) ** 2 / (self.calls - 1)
        # Lognormal: a sample that misses the few long calls has a low mean and also a low deviation. So the
        # relative variance, wide + wide²/2 + ..., counts wide² three times, fitted to the same benchmark.
        wide = math.log1p((self.deviation / self.mean) ** 2)
        student = Z * (1 + (Z**2 + 1) / (4 * (self.calls - 1)))  # Student's quantile, to first order
        return math.expm1(min(student * math.sqrt(part * (wide + 3 * wide**2)), _MOST_DOUBT))

    def slow(self, requests: float) -> Line:
        """Return the line at its 90th percentiles: a small sample seldom contains the longest calls."""
        varies = self.deviation / self.mean if self.mean else 0.0
        # The relative variance of a deviation is (2 + excess kurtosis) / 4n. A lognormal has 16 varies²
        # and higher terms of excess, here 24 varies².
        wider = 1 + Z * math.sqrt((1 + 12 * varies**2) / (2 * max(self.calls, 1)))
        return self._replace(mean=self.mean * (1 + self.more(requests)), deviation=self.deviation * wider)


_AS_ESTIMATED = Line(0.0, 1.0, guessed=0.15)  # characters per token depend on the text
_NOTHING, _SECONDS = Line(0.0), Line(3.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The tokens and seconds of a call, whether guessed, counted by the API or measured by a pilot."""

    input: Line = _AS_ESTIMATED  # tokens
    output: Line = _NOTHING  # tokens, including thinking, refusals and cut replies
    latency: Line = _SECONDS  # seconds
    billed_ratio: float = 1.0  # dollars billed per dollar that these figures give for the measured calls
    cached_tokens: float = 0.0  # prefix of every call that is read from the prompt cache
    cache_hit_share: float = 1.0  # of the live calls after the first
    batch_hit_share: float = BATCH_HIT_SHARE  # of the calls in batches
    error_rate: float = 0.0  # share of the calls that fail and are retried
    lost_rate: float = 0.0  # share of the calls whose answer is written but lost
    lost_seconds: float = 0.0  # mean per row, lost to calls that are retried
    thinking_tokens: float = 0.0  # part of the output tokens, if these are guessed

    @property
    def calls(self) -> int:
        """Number of measured calls; 0 is a guess."""
        return self.output.calls

    @property
    def output_tokens(self) -> float:
        """Mean output tokens of a call."""
        return self.output.mean

    @property
    def seconds(self) -> float:
        """Mean latency of a call."""
        return self.latency.mean

    def uncached_tokens(self, estimated_tokens: float, requests: float) -> float:
        """Return the input tokens that count toward the limits, given the totals of all requests."""
        mean: float = self.input.at(estimated_tokens / requests) if requests else 0.0
        return max(mean - self.cached_tokens, 0.0) * requests

    @property
    def basis(self) -> str:
        """The basis of these figures in one line: a guess, a count, or a pilot and its measurements."""
        if self.calls:
            assumed = "" if self.latency.calls else " (assumed: no call was live)"
            reply = f"{self.output_tokens:,.0f} output tokens and {self.seconds:.1f} s each{assumed}"
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
        """The 90th percentile of the tokens of many calls as a multiple of the median; an upper bound."""
        return 1 + max(self.input.more(), self.output.more())

    @property
    def doubt(self) -> float:
        """Relative standard deviation of the mean of many calls."""
        return (self.more - 1) / Z

    def slow(self, requests: float) -> Measured:
        """Return the figures at the 90th percentile: the slowest calls are slower than those measured."""
        output, latency = self.output.slow(requests), self.latency.slow(requests)
        # The slowest of the last calls is two deviations above the mean, and three in one run of ten.
        latency = latency._replace(deviation=latency.deviation * 1.5)
        return replace(self, output=output, latency=latency)

    def after(self, calls: int, seconds: float) -> Measured:
        """Return the figures updated from the run's own calls: their number and their mean seconds."""
        input_, output = (line._replace(calls=max(calls, self.calls)) for line in (self.input, self.output))
        return replace(self, input=input_, output=output, latency=Line(seconds))

    def elsewhere(self, before: Measured, after: Measured, *, same_model: bool) -> Measured:
        """Return the figures for another cache setting or model, whose replies are assumed to be as long."""
        # Another model may think more by default, or be unable to write as much.
        more, times = after.output.mean - before.output.mean, after.output.mean / before.output.mean
        mean = self.output.mean + more if more > 0 else self.output.mean * times
        known = replace(self, cached_tokens=after.cached_tokens, output=self.output._replace(mean=mean))
        if same_model:
            return known
        input_, output = (line._replace(calls=0) for line in (known.input, known.output))
        seconds = after.latency.mean * mean / after.output.mean
        return replace(known, input=input_, output=output, latency=Line(seconds), billed_ratio=1.0)


# ----------------------------------------------------------------- guessed, before anything is measured

# Reply lengths are not published. These are assumptions (checked 2026-11-29): every price that rests on them
# says so, and the first pilot replaces them.
_TEXT_CHARACTERS, _FIELD_CHARACTERS, _FORMAT_CHARACTERS, _SCALAR_CHARACTERS = 480.0, 50.0, 15.0, 4.0
"""Lengths of a free-text reply, a string field, a string with a format such as a date, and other values."""
_ASKED_CHARACTERS = MappingProxyType({"word": 7.0, "sentence": 100.0, "paragraph": 480.0})
"""Length of each word, sentence or paragraph that the prompt asks for."""
_ASKED = re.compile(
    r"\b(an?|one|single|two|three|\d{1,4})[ -](?:short |brief )?(word|sentence|paragraph)", re.IGNORECASE
)
_COUNTS = MappingProxyType({"two": 2, "three": 3})
_ITEMS = 3
_REPLY_TOKENS = 3.0  # added to the text of a reply, whose end is also a token
_THINKING_TOKENS = MappingProxyType(
    {"low": 50.0, "medium": 200.0, "high": 600.0, "xhigh": 1_500.0, "max": 3_000.0}
)
"""Per row by effort, if a model thinks. Only the order is documented. Source: Anthropic, *Effort*."""


def guess(prompt: Prompt, max_tokens: int, *, cache: bool = False) -> Measured:
    """Return assumed figures of a call, derived from the form of its reply, before anything is measured."""
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
    """Return the length of compact JSON of a schema, with `text` characters in each free string."""
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
    """Return the assumed thinking tokens of a request."""
    facts, thinking = prompt.model, prompt.constant.get("thinking") or {}
    kind = thinking.get("type", "adaptive" if facts.thinks_by_default else "disabled")
    effort = prompt.constant.get("output_config", {}).get("effort") or facts.default_effort or "high"
    return 0.0 if kind in {"disabled", "between_tools"} else _THINKING_TOKENS[effort]


def _usual_seconds(output_tokens: float) -> Line:
    return Line(1.0 + output_tokens / 80)


# ------------------------------------------------------------------------------------ measured, or counted


def measured(sizes: pl.DataFrame, attempts: pl.DataFrame, requests: int) -> Measured | None:
    """Return the figures of a pilot's calls, which are part of `requests`; None if no reply was paid for.

    Parameters
    ----------
    sizes : pl.DataFrame
        The last reply to each request, as `claudescale.ledger.records.ATTEMPTS` plus `estimated_tokens`.
    attempts : pl.DataFrame
        All calls of the pilot, including those that failed.
    """
    paid = sizes.filter(pl.col("dollars") > 0).with_columns(prompt=prices.PROMPT)
    if paid.is_empty():
        return None
    live, batch = (paid.filter(mode=mode) for mode in ("live", "batch"))
    output = line(paid, "output_tokens", requests)
    cached = paid.select(pl.col("prompt") - pl.col("input_tokens")).to_series()  # written or read
    # One call writes the cache that the others read.
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
    """Return a statistic as a float, 0 where there are too few rows to compute it."""
    return 0.0 if value is None or not math.isfinite(value) else float(value)


def line(calls: pl.DataFrame, figure: str, requests: int, *, rises: bool = False) -> Line:
    """Return a fit over `estimated_tokens`: flat without a clear trend, or proportional if it `rises`."""
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
