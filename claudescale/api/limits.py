"""Rate limits of an account, from tables, the API's headers and its rate-limit endpoint."""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from claudescale.api import catalog
from claudescale.api.catalog import WORDS
from claudescale.errors import PlanError, UnknownTier
from claudescale.text import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from claudescale.api.catalog import ModelFacts

BUCKETS = ("requests", "input_tokens", "output_tokens")
"""The three limits of one model group, in the order that every function here uses."""
HEADERS = "the headers of the API's answers"

_PER_MINUTE = tuple(f"{name}_per_minute" for name in BUCKETS)
_HEADERS = [
    [f"anthropic-ratelimit-{name.replace('_', '-')}-{what}" for what in ("limit", "remaining")]
    for name in BUCKETS
]
_OPTIONAL = (
    "batch_queue_requests", "batch_requests_per_minute", "spend_dollars_per_month", "burst_seconds"
)  # fmt: skip
_LEAST, _MOST = 1e-30, 1e12  # between them waits are finite numbers; no account's limit is higher
_MISSING = float("nan")  # so that a missing limit raises PlanError, not TypeError
_NUMBER = re.compile(r"\s*[0-9]{1,12}(\.[0-9]{0,30})?\s*")
_LONGEST_WAIT_SECONDS = 86_400.0  # a longer one can only come from a damaged header
_OUR_NAMES = {
    "model_group": {name: name for name in _PER_MINUTE}
    | {"input_tokens_per_minute_cache_aware": "input_tokens_per_minute"},
    "batch": {
        "enqueued_batch_requests": "batch_queue_requests",
        "requests_per_minute": "batch_requests_per_minute",
    },
}
"""Our names for the rate-limit API's limits. Source: anthropic 2.14.0 ``types/organization``, which nests the
type of a group; Anthropic, *Rate Limits API* (checked 2026-08-13) shows it flat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The rate limits of an account for one group of models.

    Pass them as ``tier=`` where the published tables do not apply: a custom contract, a workspace with
    its own limits, or a cloud platform.

    Spends: nothing.

    Parameters
    ----------
    requests_per_minute, input_tokens_per_minute, output_tokens_per_minute : float
        The three token buckets of the Messages API. Input tokens are the uncached ones: reads from
        the prompt cache do not count.
    batch_queue_requests : int, optional
        Requests that may wait in the Message Batches queue, all models together.
    batch_requests_per_minute : float, optional
        Calls to all batch endpoints together.
    spend_dollars_per_month : float, optional
        What the account may spend in a month. After that the API rejects every call.
    burst_seconds : float, optional
        How many seconds' worth of each limit may be used at once. None if unknown.
    source : str
        Where the figures come from.
    checked : date, optional
        When they were checked.
    note : str
        Why no better figures are known, if that is so.

    Notes
    -----
    Source: Anthropic, *Rate limits* (checked 2026-10-08).

    Examples
    --------
    >>> Limits(requests_per_minute=50, input_tokens_per_minute=40_000, output_tokens_per_minute=8_000)
    Limits(50 requests, 40,000 input and 8,000 output tokens a minute, given by you)
    """

    requests_per_minute: float = _MISSING
    input_tokens_per_minute: float = _MISSING
    output_tokens_per_minute: float = _MISSING
    batch_queue_requests: int | None = None
    batch_requests_per_minute: float | None = None
    spend_dollars_per_month: float | None = None
    burst_seconds: float | None = None
    source: str = "given by you"
    checked: date | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for name in (*_PER_MINUTE, *_OPTIONAL):
            value = plain(getattr(self, name))
            if value is None and name in _OPTIONAL:
                continue
            if value is _MISSING:
                raise PlanError(WORDS["limits"]["missing"])
            if type(value) not in (int, float) or not _LEAST <= value <= _MOST:
                none = WORDS["limits"]["none"] if value == math.inf else ""
                words = WORDS["limits"]["number"]
                raise PlanError(words.format(name=name, value=getattr(self, name), none=none))
            whole = name == "batch_queue_requests"
            object.__setattr__(self, name, max(int(value), 1) if whole else value)

    def __repr__(self) -> str:
        """Return the three limits and their source, in one line."""
        return (
            f"Limits({self.requests_per_minute:,.0f} requests, {self.input_tokens_per_minute:,.0f} input and "
            f"{self.output_tokens_per_minute:,.0f} output tokens a minute, {self.provenance})"
        )

    @property
    def provenance(self) -> str:
        """Where the figures come from, and when they were checked."""
        note = f" ({self.note})" if self.note else ""
        return f"{self.source}{f', checked {self.checked:%Y-%m-%d}' if self.checked else ''}{note}"

    @property
    def per_minute(self) -> tuple[float, float, float]:
        """The three limits in the order of `BUCKETS`."""
        return (self.requests_per_minute, self.input_tokens_per_minute, self.output_tokens_per_minute)

    def shared(self, share: float) -> Limits:
        """Return the limits of a run that may use only `share` of them.

        Spends: nothing.
        """
        if not 0 < share <= 1:
            raise PlanError(WORDS["limits"]["share"].format(share=share))
        if share == 1:
            return self
        less: dict[str, Any] = {name: getattr(self, name) * share for name in _PER_MINUTE}
        # The account's burst is not this run's alone.
        return replace(self, **less, burst_seconds=1.0, source=f"{self.source}, times {share:g}")

    @classmethod
    def of(
        cls,
        tier: str | int | Limits,
        model: str | ModelFacts,
        learned: Mapping[LimitsKey, Limits] | None = None,
    ) -> Limits:
        """Return the limits of a tier for a model: those learned for this pair, else the published table's.

        Spends: nothing.

        Raises
        ------
        UnknownTier
            There is no such tier, or its limits for this model are not published.
        """
        if learned and (key := limits_key(tier, model)) in learned:
            return learned[key]
        if isinstance(tier, Limits):
            return tier
        table, called = catalog.tier(tier), catalog.model(model)
        rates = table.limits.get(called.rate_group)
        if rates is None:
            words = WORDS["limits"]["unpublished"]
            raise UnknownTier(words.format(model=called.id, tier=table.name, checked=table.checked))
        account: dict[str, Any] = {name: getattr(table, name, None) for name in _OPTIONAL}
        for known in (learned or {}).values():  # how much a bucket holds depends on the API, not on the tier
            account["burst_seconds"] = known.burst_seconds
        source = f"table of tier {table.name!r}"
        return cls(**rates._asdict(), **account, source=source, checked=table.checked)

    def updated(self, entries: Iterable[Any] | None, model: str) -> Limits:
        """Return the limits in entries of the rate-limit API; where they lack some, these with a note why.

        Spends: nothing.
        """
        listed = _limits_in(entries or (), model)
        if listed.keys() >= set(_PER_MINUTE):
            of_batches = {name: getattr(self, name) for name in _OUR_NAMES["batch"].values()}
            return Limits(**(of_batches | listed), source="the rate-limit API", checked=datetime.now(UTC))
        if self.source == HEADERS:
            return self  # the headers are as reliable
        words = WORDS["limits"]["may_not" if entries is None else "nothing"]
        return replace(self, note=words.format(model=model))


def _limits_in(entries: Iterable[Any], model: str) -> dict[str, Any]:
    """Return the limits of a model and of batches in entries of the rate-limit API, by our names."""
    limits: dict[str, Any] = {}
    for entry in entries:
        group = str(entry.get("group_type") or (entry.get("group") or {}).get("type"))
        models = map(catalog.id_of, entry.get("models") or ())
        if group == "model_group" and catalog.id_of(model) not in models:
            continue
        for limit in entry.get("limits") or ():
            name, value = _OUR_NAMES.get(group, {}).get(str(limit.get("type"))), limit.get("value")
            if name and value:
                limits[name] = min(value, limits.get(name, math.inf))  # the smallest is reached first
    return limits


LimitsKey: TypeAlias = "tuple[str | Limits, str]"


def limits_key(tier: str | int | Limits, model: str | ModelFacts) -> LimitsKey:
    """Return the key of learned limits: the tier as named, and the model's rate group."""
    return tier if isinstance(tier, Limits) else catalog.tier(tier).name, catalog.model(model).rate_group


# ---------------------------------------------------------------------------- how limits differ from a tier


def differs(limits: Limits, tier: str | int | Limits, model: ModelFacts) -> str | None:
    """Return, in one line, how the API's limits differ from the named tier's; None where they agree.

    Examples
    --------
    >>> haiku = catalog.model("claude-haiku-5-5")
    >>> differs(Limits.of("build", "claude-haiku-5-5"), "build", haiku)
    >>> slow = replace(Limits.of("build", "claude-haiku-5-5"), requests_per_minute=2_000)
    >>> print(differs(slow, "build", haiku))  # doctest: +NORMALIZE_WHITESPACE
    The API allows 2,000 requests a minute, not 5,000 as tier 'build' has: a workspace or contract may
    set its own.
    """
    figures = zip(BUCKETS, limits.per_minute, Limits.of(tier, model).per_minute, strict=True)
    other = [
        (f"{allowed:,.0f} {name.replace('_', ' ')}", f"{named:,.0f}")
        for name, allowed, named in figures
        if allowed != named
    ]
    if not other:
        return None
    allows, nots = (" and ".join(words) for words in zip(*other, strict=True))
    having = "your Limits have" if isinstance(tier, Limits) else f"tier {catalog.tier(tier).name!r} has"
    tables = {name: table.limits.get(model.rate_group) for name, table in catalog.TIERS.items()}
    same = [name for name, rates in tables.items() if rates == limits.per_minute]
    whose = f"those are the limits of tier={same[0]!r}" if same else "a workspace or contract may set its own"
    return f"The API allows {allows} a minute, not {nots} as {having}: {whose}."


# --------------------------------------------------------------------------- limits in the headers of answers


class Reading(NamedTuple):
    """One bucket in the headers of an answer; None where a header is missing or unreadable."""

    limit: float | None
    remaining: float | None


class Readings(NamedTuple):
    """The headers of one answer, in the order of `BUCKETS`; damaged values are None."""

    buckets: tuple[Reading, ...]
    retry_after_seconds: float | None

    def limits(self, before: Limits) -> Limits:
        """Return `before` updated from these headers; the same object where nothing changes."""
        limits = zip(_PER_MINUTE, (bucket.limit for bucket in self.buckets), strict=True)
        changes: dict[str, Any] = {name: limit for name, limit in limits if limit and limit >= 1}
        left = [
            bucket.remaining / bucket.limit for bucket in self.buckets if bucket.limit and bucket.remaining
        ]
        if left:  # what remains in a bucket may be used at once
            changes["burst_seconds"] = max(min(60 * max(left), 60.0), before.burst_seconds or 1.0)
        is_news = before.source != HEADERS or any(getattr(before, name) != changes[name] for name in changes)
        if not changes or not is_news:
            return before
        return replace(before, **changes, source=HEADERS, checked=datetime.now(UTC), note="")


def read_headers(headers: Mapping[str, str]) -> Readings:
    """Return the limits in an answer's headers; a plain dict must have lower-case names.

    Notes
    -----
    Source: Anthropic, *Rate limits: response headers* (checked 2026-10-08). Remaining token counts
    are rounded to the nearest thousand.
    """
    buckets = (Reading(*(_number(headers.get(name)) for name in pair)) for pair in _HEADERS)
    return Readings(tuple(buckets), _retry_after(headers.get("retry-after")))


def _retry_after(text: str | None) -> float | None:
    """Return the seconds to wait, given as a number or a date; None if damaged or over a day."""
    seconds = _number(text)
    if text and seconds is None:
        with suppress(ValueError, OverflowError, TypeError, IndexError):  # a damaged date
            until = parsedate_to_datetime(text)
            until = until.replace(tzinfo=until.tzinfo or UTC)
            seconds = max((until - datetime.now(UTC)).total_seconds(), 0.0)
    return seconds if seconds is not None and seconds <= _LONGEST_WAIT_SECONDS else None


def _number(text: str | None) -> float | None:
    """Return the number in a header; None where it is missing or implausible."""
    return float(text) if text and _NUMBER.fullmatch(text) else None
