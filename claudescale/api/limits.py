"""Rate limits: what they allow, and what the API's own answers say of them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from email.utils import parsedate_to_datetime
from numbers import Real
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale.api import catalog
from claudescale.api.accountlimits import account_limits
from claudescale.errors import PlanError, UnknownTier

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from anthropic import AsyncAnthropic

    from claudescale.api.catalog import Model

BUCKETS = ("requests", "input_tokens", "output_tokens")
"""The three limits of one model group, in the order every function here uses."""

_PREFIX = "anthropic-ratelimit-"
_GROUPS = ("requests", "tokens", "input-tokens", "output-tokens")
HEADERS = "the headers of the API's answers"
_FRESH = timedelta(minutes=1)
"""How long headers need not be noted again that say the same."""
_OLD_TABLE = timedelta(days=180)
_OLD_ANSWER = timedelta(days=1)
_NUMBER = re.compile(r"\s*[0-9]{1,30}(\.[0-9]{0,30})?\s*")
_MOST = 1e12
"""No account's limit is higher: a header that tells more is damaged, as is a limit below 1."""
_LONGEST_WAIT_SECONDS = 86_400.0
"""No refusal asks for a longer wait: a run that took a damaged header's word would hang for ever."""
_MISSING = math.nan


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What an account may do in a minute with one group of models.

    Pass one as ``tier=`` where the tables do not fit: a custom contract, a workspace with its own
    limits, a cloud platform.

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
    count_tokens_per_minute : float, optional
        Calls that count tokens.
    spend_dollars_per_month : float, optional
        What the account may spend in a month; then the API turns every call down.
    burst_seconds : float, optional
        So many seconds' worth of each limit may be taken at once; None where that is not known.
    source : str
        Where the figures come from.
    checked : date or datetime, optional
        When that was so.
    note : str
        Why nothing better is known, where that is so.

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
    count_tokens_per_minute: float | None = None
    spend_dollars_per_month: float | None = None
    burst_seconds: float | None = None
    source: str = "given by you"
    checked: date | datetime | None = None
    note: str = ""

    def __post_init__(self) -> None:
        names = [f"{name}_per_minute" for name in BUCKETS]
        missing = [name for name in names if getattr(self, name) is _MISSING]
        if missing:
            known = [f"{name}={getattr(self, name)!r:.40}" for name in names if name not in missing]
            typed = ", ".join([*known, *(f"{name}=..." for name in missing)])
            msg = (
                f"Limits() needs all three limits: tier=cs.Limits({typed}). The Console's limits page shows "
                "them; where there is none, give a large number such as 1e9."
            )
            raise PlanError(msg)
        for name in names:
            object.__setattr__(self, name, _limit(name, getattr(self, name)))
        for name in ("batch_queue_requests", "batch_requests_per_minute", "count_tokens_per_minute",
                     "spend_dollars_per_month", "burst_seconds"):  # fmt: skip
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, _limit(name, value))
        if self.batch_queue_requests is not None:
            object.__setattr__(self, "batch_queue_requests", max(int(self.batch_queue_requests), 1))

    def __repr__(self) -> str:
        """Say the three limits and where they come from, in one line."""
        return (
            f"Limits({self.requests_per_minute:,.0f} requests, {self.input_tokens_per_minute:,.0f} input and "
            f"{self.output_tokens_per_minute:,.0f} output tokens a minute, {self.provenance})"
        )

    @property
    def provenance(self) -> str:
        """Where the figures come from and how old they are; what has become old says so."""
        note = f" ({self.note})" if self.note else ""
        return f"{self.source}{age(self.checked, datetime.now(UTC))}{note}"

    @property
    def per_minute(self) -> tuple[float, float, float]:
        """The three limits in the order of `BUCKETS`."""
        return (self.requests_per_minute, self.input_tokens_per_minute, self.output_tokens_per_minute)

    def shared(self, share: float) -> Limits:
        """Return the limits that are left for this run when it may use `share` of them.

        Spends: nothing.
        """
        if not 0 < share <= 1:
            msg = f"share={share!r}: it is the part of the limits this run may use, above 0 and at most 1"
            raise PlanError(msg)
        if share == 1:
            return self
        return replace(
            self,
            requests_per_minute=self.requests_per_minute * share,
            input_tokens_per_minute=self.input_tokens_per_minute * share,
            output_tokens_per_minute=self.output_tokens_per_minute * share,
            burst_seconds=1.0,  # what is left of the whole account's minute is not all this run's
            source=f"{self.source}, times {share:g}",
        )

    @classmethod
    def of(cls, tier: str | int | Limits, model: str | Model, learned: Learned | None = None) -> Limits:
        """Return the limits of a usage tier for a model: those learned for just these, else the table's.

        Spends: nothing.
        """
        if learned is not None and learned.stands_for(tier, model):
            return learned.limits
        if isinstance(tier, Limits):
            return tier
        facts = catalog.tier(tier)
        requests, input_tokens, output_tokens = catalog.tier_rates(facts, model)
        return cls(
            requests_per_minute=requests,
            input_tokens_per_minute=input_tokens,
            output_tokens_per_minute=output_tokens,
            batch_queue_requests=facts.batch_queue_requests,
            batch_requests_per_minute=facts.batch_requests_per_minute,
            count_tokens_per_minute=facts.count_tokens_per_minute,
            spend_dollars_per_month=facts.spend_dollars_per_month,
            source=f"table of tier {facts.name!r}",
            checked=facts.checked,
        )

    @classmethod
    async def from_api(cls, client: AsyncAnthropic, model: str | None = None) -> Limits:
        """Return the limits the organisation has, as the rate-limit API tells them.

        It takes an Admin API key (or an ``org:admin`` token); an individual account has none, and a
        workspace may have less than is told here. Where the key may not, nothing is lost: the first answer
        of a run says the limits in its headers. `Plan.learn_limits` asks for a plan.

        Spends: nothing (one free request a page).

        Parameters
        ----------
        client : AsyncAnthropic
            With an Admin API key.
        model : str, optional
            Whose limits; without it the smallest of any model's, which are safe for all of them.

        Raises
        ------
        UnknownTier
            The API knows no limits for this model.
        anthropic.PermissionDeniedError, anthropic.AuthenticationError
            The key is not an Admin API key.

        Notes
        -----
        Source: Anthropic, *Rate Limits API* (checked 2026-08-13), and the types of anthropic 2.12.0.
        """
        items = [item.to_dict() async for item in client.organization.rate_limits.list()]
        return cls.read(items, model)

    @classmethod
    def read(cls, items: Iterable[Any], model: str | None = None) -> Limits:
        """Return the limits that entries of the rate-limit API tell, given as JSON objects.

        Spends: nothing.

        Raises
        ------
        UnknownTier
            They tell none of this model.
        """
        found: dict[str, Any] = account_limits(items, model)
        if not {f"{name}_per_minute" for name in BUCKETS} <= set(found):
            msg = f"the rate-limit API tells no limits for {model or 'any model'!r}. "
            msg += "Pass tier=cs.Limits(requests_per_minute=..., ...)"
            raise UnknownTier(msg)
        if "batch_queue_requests" in found:
            found["batch_queue_requests"] = int(found["batch_queue_requests"])
        return cls(**found, source="the rate-limit API", checked=datetime.now(UTC))


_LEAST = 1e-30
"""No limit is lower, nor higher than `_MOST`: minutes would be no figure."""


def _limit(name: str, value: Any) -> float:
    """Return a limit as a number; raise what is wrong with it."""
    real = isinstance(value, Real | Decimal) and not isinstance(value, bool)
    if not real or not math.isfinite(value) or not _LEAST <= value <= _MOST:
        none = " Where there is no limit, give a large number such as 1e9." if value == math.inf else ""
        msg = f"Limits({name}={value!r:.40}): a limit is a number above 0, such as {name}=1_000.{none}"
        raise PlanError(msg)
    return value if isinstance(value, int | float) else float(value)


class Learned(NamedTuple):
    """Limits that stand in the place of a tier's table, and for whom: the tier named, the models' group."""

    limits: Limits
    tier: str | int | Limits
    rate_group: str

    def stands_for(self, tier: str | int | Limits, model: str | Model) -> bool:
        """Whether these are the limits of a plan for that tier and model."""
        return (_one_name(tier), catalog.model(model).rate_group) == (_one_name(self.tier), self.rate_group)


def _one_name(tier: str | int | Limits) -> str | Limits:
    return tier if isinstance(tier, Limits) else catalog.tier(tier).name


def age(checked: date | datetime | None, now: datetime) -> str:
    """Return how old something is as words to follow its source: ``", 3 minutes ago"``."""
    if checked is None:
        return ""
    if not isinstance(checked, datetime):
        days = (now.date() - checked).days
        return f", checked {checked}" + (f" (old: {days:,} days)" if days > _OLD_TABLE.days else "")
    past = now - (checked if checked.tzinfo else checked.replace(tzinfo=UTC))
    if past > _OLD_ANSWER:
        days = past.days
        return f", {checked:%Y-%m-%d} (old: {days:,} day{'s' * (days > 1)})"
    minutes = int(past.total_seconds() // 60)
    count, unit = (minutes, "minute") if minutes < 60 else (minutes // 60, "hour")  # noqa: PLR2004 - of an hour
    return f", {count} {unit}{'s' * (count > 1)} ago" if minutes >= 1 else ", just now"


class Reading(NamedTuple):
    """One bucket as one answer's headers tell it; None where the header is missing or unreadable."""

    limit: float | None
    remaining: float | None
    reset: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """Every ``anthropic-ratelimit-*`` header of one answer, and ``retry-after``."""

    requests: Reading
    input_tokens: Reading
    output_tokens: Reading
    tokens: Reading
    retry_after_seconds: float | None
    others: Mapping[str, str] = field(default_factory=dict)

    @property
    def buckets(self) -> tuple[Reading, Reading, Reading]:
        """The three limits in the order of `BUCKETS`."""
        return (self.requests, self.input_tokens, self.output_tokens)

    def limits(self, before: Limits) -> Limits:
        """Return `before` with every limit these headers tell; the same object if it says so just now."""
        told: dict[str, Any] = {
            f"{name}_per_minute": reading.limit
            for name, reading in zip(BUCKETS, self.buckets, strict=True)
            if reading.limit
        }
        left = [each.remaining / each.limit for each in self.buckets if each.limit and each.remaining]
        if left:  # what a bucket is told to hold is there to be taken at once
            told["burst_seconds"] = max(min(60 * max(left), 60.0), before.burst_seconds or 1.0)
        now = datetime.now(UTC)
        agree = all(getattr(before, name) == limit for name, limit in told.items())
        if not told or (agree and before.source == HEADERS and _is_fresh(before.checked, now)):
            return before
        return replace(before, **told, source=HEADERS, checked=now, note="")


def _is_fresh(checked: date | datetime | None, now: datetime) -> bool:
    return isinstance(checked, datetime) and now - checked < _FRESH


def read_headers(headers: Mapping[str, str]) -> Readings:
    """Return what an answer's headers say of the limits. Damaged values read as unknown.

    `headers` finds names without regard to case, as the SDK's responses do; of a plain dict the
    names are lower case.

    Notes
    -----
    Source: Anthropic, *Rate limits: response headers* (checked 2026-10-08). Token counts that remain
    are rounded to the nearest thousand; ``reset`` is the moment the bucket is full again.
    """
    return Readings(
        requests=_reading(headers, "requests"),
        input_tokens=_reading(headers, "input-tokens"),
        output_tokens=_reading(headers, "output-tokens"),
        tokens=_reading(headers, "tokens"),
        retry_after_seconds=_retry_after(headers),
        others=_others(headers),
    )


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait; what is longer than a day is damaged."""
    seconds = _told_seconds(headers)
    return None if seconds is None or seconds > _LONGEST_WAIT_SECONDS else seconds


def _told_seconds(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait as told: in milliseconds, in seconds or as a date."""
    exact = _number(headers.get("retry-after-ms"))
    if exact is not None:
        return exact / 1_000
    told = headers.get("retry-after")
    seconds = _number(told)
    if seconds is not None or told is None:
        return seconds
    try:
        until = parsedate_to_datetime(told)
    except (ValueError, OverflowError, TypeError, IndexError):  # the parser's own, of a damaged date
        return None
    until = until if until.tzinfo else until.replace(tzinfo=UTC)
    return max((until - datetime.now(UTC)).total_seconds(), 0.0)


def _others(headers: Mapping[str, str]) -> dict[str, str]:
    known = {f"{_PREFIX}{group}-{what}" for group in _GROUPS for what in ("limit", "remaining", "reset")}
    return {name: headers[name] for name in headers if name.startswith(_PREFIX) and name not in known}


def _reading(headers: Mapping[str, str], group: str) -> Reading:
    prefix = f"{_PREFIX}{group}-"
    limit = _number(headers.get(prefix + "limit"))
    return Reading(
        limit=limit if limit is not None and limit >= 1 else None,
        remaining=_number(headers.get(prefix + "remaining")),
        reset=_moment(headers.get(prefix + "reset")),
    )


def _number(text: str | None) -> float | None:
    """Return a number that can be one of an account, or None."""
    if text is None or not _NUMBER.fullmatch(text):
        return None
    value = float(text)
    return value if value <= _MOST else None


def _moment(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        moment = datetime.fromisoformat(text)
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        return None
