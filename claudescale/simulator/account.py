"""One account of the API: its limits, what is left of them, its bill, and how hard it is pressed.

Nothing here has input, output or a clock of its own. Time is passed in, as API seconds since 1970.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from typing import TYPE_CHECKING, Any

from claudescale.api import catalog
from claudescale.api.catalog import USAGE
from claudescale.errors import PlanError, UnknownTier, nearest
from claudescale.simulator.wire import Problem, rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping

    from claudescale.simulator.replies import Reply

RATES = catalog.Rates._fields
KINDS = ("requests", "input-tokens", "output-tokens")
FURTHER = ("batch_queue_requests", "batch_requests_per_minute", "count_tokens_per_minute")
LISTED = ("requests_per_minute", "input_tokens_per_minute_cache_aware", "output_tokens_per_minute")
LIMITS = (*RATES, *FURTHER)
PROMISED_GROUP = "fable-5"  # limits for a line whose own row is not published
SLACK = 1e-6  # of a token: what rounding of times near 2e9 seconds can cost
COUNTED = ("calls", "batches_created", "free_refusals", "web_searches", "in_flight", "peak_in_flight")
WINDOWS = {"second": 1.0, "minute": 60.0}
WEB_SEARCH_DOLLARS = 0.01  # each, in batches too
FAST_FACTOR = 2.0


# ------------------------------------------------------------------------------------------------- limits


def terms(tier: Any, limits: Mapping[str, float]) -> catalog.Tier:
    """Return a tier, or a made-up one with three numbers or an object's limits, any of them replaced."""
    for name in limits.keys() - {*LIMITS}:
        msg = f"there is no limit {name!r}.{nearest(name, LIMITS)} Limits: {', '.join(LIMITS)}"
        raise TypeError(msg)
    if not all(value > 0 for value in limits.values()):
        msg = f"limits must be above 0, not {limits}"
        raise ValueError(msg)
    start, given = catalog.tier("start"), dict[str, Any]()
    if isinstance(tier, str | int):
        base = catalog.tier(tier)
    else:
        base = replace(start, name="custom", limits={})
        if isinstance(tier, tuple | list):
            given |= zip(RATES, tier, strict=True)
        else:
            given |= {name: getattr(tier, name, None) for name in LIMITS}
    given |= limits
    rates = {name: given[name] for name in RATES if given.get(name)}
    if not base.limits and len(rates) < len(RATES):
        such = "such as Simulator((50, 30_000, 8_000)): requests, input tokens, output tokens per minute"
        msg = f"the limits of {tier!r} are not published. Give your own, {such}"
        raise UnknownTier(msg)
    promised = base.limits.get(PROMISED_GROUP) or catalog.Rates(**rates)
    groups = {model.rate_group for model in catalog.MODELS.values()}
    table = {group: base.limits.get(group, promised)._replace(**rates) for group in groups}
    further: dict[str, Any] = {
        name: int(given.get(name) or getattr(base, name) or getattr(start, name)) for name in FURTHER
    }
    return replace(base, limits=table, **further)


def rate_limits(tier: catalog.Tier, now: float) -> dict[str, Any]:
    """Return the answer to ``GET /v1/organizations/rate_limits``, all of them on one page."""
    at, groups = datetime.fromtimestamp(now, UTC), defaultdict[str, list[str]](list)
    for model in catalog.MODELS.values():
        if not model.verified_only and catalog.lifecycle(model, at) != "retired":
            groups[model.rate_group] += dict.fromkeys([model.id, model.snapshot])
    queue, calls, counts = (getattr(tier, name) or 0 for name in FURTHER)
    limits = {name: dict(zip(LISTED, tier.limits[name], strict=True)) for name in groups}
    limits["batch"] = {"enqueued_batch_requests": queue, "requests_per_minute": calls}
    limits["token_count"] = {"requests_per_minute": counts}
    data = [
        {
            "id": f"rl_sim_{name}",
            "type": "rate_limit",
            "group": {"id": name, "type": "model_group" if name in groups else name, "display_name": name},
            "models": groups.get(name),
            "limits": [{"type": kind, "value": round(value)} for kind, value in values.items()],
        }
        for name, values in limits.items()
    ]
    return {"data": data, "next_page": None}


# ------------------------------------------------------------------------------------------------ buckets


class Bucket:
    """One limit a minute that refills continuously; replies take from it while they are written.

    Parameters
    ----------
    per_minute : float
        The limit. It refills at a sixtieth of it each second.
    capacity : float
        The most it holds, and what it holds at the start.
    now : float
        API seconds at the start.
    """

    def __init__(self, per_minute: float, capacity: float, now: float) -> None:
        self.per_minute, self.per_second = per_minute, per_minute / 60
        self.capacity = self.level = capacity
        self.updated = now
        self._changes: list[tuple[float, float]] = []  # when the speed of all writing changes, and by what
        self._written_per_second = 0.0

    def refill(self, now: float) -> float:
        """Return the level at `now`: below zero where more was taken than it held."""
        while self._changes and self._changes[0][0] <= now:
            at, change = heapq.heappop(self._changes)
            self._pass(at)
            self._written_per_second += change
        self._pass(now)
        return self.level

    def _pass(self, now: float) -> None:
        if now > self.updated:
            gained = (self.per_second - self._written_per_second) * (now - self.updated)
            self.level = min(self.capacity, self.level + gained)
            self.updated = now

    def write(self, begin: float, end: float, tokens: float) -> None:
        """Take `tokens` evenly from `begin` to `end`, neither of them past."""
        heapq.heappush(self._changes, (begin, tokens / (end - begin)))
        heapq.heappush(self._changes, (end, -tokens / (end - begin)))

    def wait(self, now: float, need: float = 1) -> float:
        """Return the seconds until it holds `need`, or is full if `need` is more than it can hold."""
        missing = min(need, self.capacity) - self.refill(now)
        return missing / self.per_second if missing > SLACK else 0.0

    def take(self, now: float, kind: str, calls: str) -> None:
        """Take a call of an endpoint with a rate of its own; refuse it if there were too many."""
        if wait := self.wait(now):
            words = f"This request would exceed your rate limit of {self.per_minute:,.0f} {calls} per minute."
            raise Problem(429, words, kind, retry_after=wait)
        self.level -= 1


class Buckets:
    """Admission of one group of models: requests, input tokens and output tokens per minute.

    A call is admitted when each bucket holds what the call needs, or is full where the call needs
    more than a full bucket. Output is not reserved: it is taken while it is produced, so the bucket
    may fall below zero, and admits nothing until it has paid that debt.

    Parameters
    ----------
    *per_minute : float
        The limits: requests, input tokens, output tokens.
    bucket_seconds : float
        How many seconds' worth a full bucket holds: 60 is the whole minute, 1 enforces the limit
        by the second. The requests' bucket holds at least one.
    now : float
        API seconds at the start; the buckets start full.
    """

    def __init__(self, *per_minute: float, bucket_seconds: float = 60, now: float = 0) -> None:
        most = [limit * bucket_seconds / 60 for limit in per_minute]
        most[0] = max(most[0], 1.0)
        buckets = [Bucket(limit, capacity, now) for limit, capacity in zip(per_minute, most, strict=True)]
        self.requests, self.input_tokens, self.output_tokens = buckets
        self.named = dict(zip(KINDS, buckets, strict=True))

    def waits(self, now: float, *, input_tokens: float = 0) -> dict[str, float]:
        """Return the seconds until each bucket would admit the call; all zero if now."""
        needs = (1, input_tokens, 10 * SLACK)  # of output more than none: out of debt
        return {name: self.named[name].wait(now, need) for name, need in zip(KINDS, needs, strict=True)}

    def admit(self, now: float, *, input_tokens: float = 0) -> bool:
        """Return whether the call may go now; if so a request and its input tokens are taken."""
        if any(self.waits(now, input_tokens=input_tokens).values()):
            return False
        self.requests.level -= 1
        self.input_tokens.level -= input_tokens
        return True

    def produce(self, now: float, output_tokens: float, *, begin: float | None = None) -> None:
        """Take the output tokens of a reply: at `now`, or evenly from `begin` until then."""
        if begin is not None and begin < now:
            self.output_tokens.write(begin, now, output_tokens)
        else:
            self.output_tokens.refill(now)
            self.output_tokens.level -= output_tokens

    def retry_after(self, now: float, *, input_tokens: float = 0) -> int:
        """Return the whole seconds after which the same call would be admitted; at least 1."""
        waits = self.waits(now, input_tokens=input_tokens).items()
        whole = (math.ceil(wait - SLACK / self.named[name].per_second) for name, wait in waits)
        return max(1, *whole)

    def headers(self, now: float) -> dict[str, str]:
        """Return the rate-limit headers of an answer given at `now`.

        Token figures are rounded to the nearest thousand, as the API does; a debt shows as 0. The
        `tokens` headers repeat whichever token limit has the smaller part left.

        Notes
        -----
        Source: platform.claude.com, Rate limits, "Response headers" (checked 2026-10-08).
        """
        figures, shares = {}, {}
        for name, bucket in self.named.items():
            level = bucket.refill(now)
            left = math.floor(level + SLACK) if name == "requests" else round(level / 1000) * 1000
            full_at = math.ceil(now + (bucket.capacity - level) / bucket.per_second - SLACK)
            figures[name] = f"{bucket.per_minute:.0f}", f"{max(0, left)}", rfc3339(full_at)
            shares[name] = level / max(bucket.capacity, 1.0)
        figures["tokens"] = figures[min(KINDS[1:], key=shares.__getitem__)]
        return {
            f"anthropic-ratelimit-{name}-{part}": figure
            for name, three in figures.items()
            for part, figure in zip(("limit", "remaining", "reset"), three, strict=True)
        }


# --------------------------------------------------------------------------------------------------- bill


def list_dollars(model_id: str, mode: catalog.Mode, day: date, reply: Reply) -> float:
    """Return what the tokens of a reply cost by the list price of a day; nothing where there is none."""
    try:
        steps = catalog.list_price(model_id, mode, day)
    except PlanError:  # no price of that model, or none yet on the simulated day
        return 0.0
    _, *prices = [step for step in steps if sum(reply.shares) > step.above_tokens][-1]
    tokens = (*reply.shares, reply.output_tokens)
    return sum(amount * price for amount, price in zip(tokens, prices, strict=True))


class Window:
    """What fell into a sliding window of time, the most that ever did, and all there was."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._events: deque[tuple[float, float]] = deque()
        self._sum = self.most = self.total = 0.0

    def add(self, now: float, amount: float) -> None:
        """Count `amount` at `now`."""
        self._events.append((now, amount))
        self._sum += amount
        self.total += amount
        self.most = max(self.most, self.recent(now))

    def recent(self, now: float) -> float:
        """Return what fell into the window that ends `now`."""
        while self._events and self._events[0][0] <= now - self._seconds:
            self._sum -= self._events.popleft()[1]
        return self._sum


@dataclass(slots=True)
class Tally:
    """The calls of one key: how many passed and how many were refused, and their tokens."""

    passed: Window = field(default_factory=Window)
    refused: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)


class Account:
    """What the server billed and refused, and how hard it was pressed, since the simulator began."""

    def __init__(self) -> None:
        self.counts = Counter(dict.fromkeys((*COUNTED, *USAGE), 0))
        self.refused: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.billed_rows: dict[catalog.Mode, int] = {"live": 0, "batch": 0}
        self.dollars: dict[catalog.Mode, float] = {"live": 0.0, "batch": 0.0}
        self.by_key: defaultdict[tuple[str, int], Tally] = defaultdict(Tally)
        self._keys: set[bytes] = set()
        names = ("requests", "input_tokens", "output_tokens")
        self._peaks = {(name, unit): Window(WINDOWS[unit]) for name in names for unit in WINDOWS}

    def press(self, now: float, calls: int, **amounts: float) -> None:
        """Count calls that began, or ended where there are fewer than none, and what they took at `now`."""
        self.counts["in_flight"] += calls
        self.counts["peak_in_flight"] = max(self.counts["peak_in_flight"], self.counts["in_flight"])
        for name, amount in amounts.items():
            for unit in WINDOWS:
                self._peaks[name, unit].add(now, amount)

    def bill(self, now: float, model_id: str, mode: catalog.Mode, key: bytes, reply: Reply) -> None:
        """Add one reply to the bill: no dollars for most refusals, whose tokens count."""
        tokens = (*reply.shares, reply.output_tokens, reply.thinking_tokens)
        self.counts.update(dict(zip(USAGE, tokens, strict=True)))
        if not reply.billed:
            self.counts["free_refusals"] += 1
            return
        dollars = list_dollars(model_id, mode, datetime.fromtimestamp(now, UTC).date(), reply)
        dollars *= catalog.CHARGES.us_factor if reply.geo == "us" else 1.0
        dollars *= FAST_FACTOR if reply.speed == "fast" else 1.0
        searches = reply.searches or 0
        self.counts["web_searches"] += searches
        self.dollars[mode] += dollars + WEB_SEARCH_DOLLARS * searches
        self.billed_rows[mode] += 1
        self._keys.add(key)

    def figures(self) -> dict[str, Any]:
        """Return everything counted so far."""
        return {
            **self.counts,
            "refused": dict(self.refused),
            "faults": dict(self.faults),
            "billed_rows": sum(self.billed_rows.values()),
            "billed_rows_by_mode": dict(self.billed_rows),
            "distinct_rows_billed": len(self._keys),
            "dollars": sum(self.dollars.values()),
            "dollars_by_mode": dict(self.dollars),
            **{f"peak_{name}_per_{unit}": int(peak.most) for (name, unit), peak in self._peaks.items()},
        }
