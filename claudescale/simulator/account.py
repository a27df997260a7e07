"""One account: its limits, how much of them is left, and its bill."""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict, deque
from dataclasses import replace
from datetime import UTC, date, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from claudescale.api import catalog
from claudescale.api.catalog import USAGE
from claudescale.errors import PlanError, UnknownTier, nearest
from claudescale.simulator.wire import Problem, rfc3339

if TYPE_CHECKING:
    from collections.abc import Mapping

    from claudescale.simulator.replies import Reply
    from claudescale.simulator.tokens import Shares
    from claudescale.simulator.wire import Query

RATES = catalog.Rates._fields
KINDS = ("requests", "input-tokens", "output-tokens")
FURTHER = ("batch_queue_requests", "batch_requests_per_minute", "count_tokens_per_minute")
LISTED = ("requests_per_minute", "input_tokens_per_minute_cache_aware", "output_tokens_per_minute")
LIMITS = (*RATES, *FURTHER)
PROMISED_GROUP = "fable-5"  # limits for a line whose own row is not published
SLACK = 1e-6  # of a token: what rounding of times near 2e9 seconds can cost
COUNTED = ("calls", "batches_created", "free_refusals", "web_searches", "in_flight", "peak_in_flight")
WINDOWS = {"second": 1.0, "minute": 60.0}
PER_MILLION = 1_000_000
WEB_SEARCH_DOLLARS = 0.01  # each, in batches too
FAST_FACTOR = 2.0

# ------------------------------------------------------------------------------------------------- limits


def terms(tier: Any, **limits: float) -> catalog.Tier:
    """Return a tier, or a made-up one with three numbers or an object's limits, any of them replaced."""
    for name, value in limits.items():
        if name not in LIMITS:
            msg = f"there is no limit {name!r}.{nearest(name, LIMITS)} Limits: {', '.join(LIMITS)}"
            raise TypeError(msg)
        if not value > 0:
            msg = f"{name} must be above 0, not {value!r}"
            raise ValueError(msg)
    known = catalog.tier(tier) if isinstance(tier, (str, int)) else None
    if isinstance(tier, (tuple, list)):
        limits = dict(zip(RATES, tier, strict=True)) | limits
    elif known is None:
        limits = {name: getattr(tier, name) for name in LIMITS if getattr(tier, name, None)} | limits
    rates: dict[str, Any] = {name: limits[name] for name in RATES if name in limits}
    usual = known.limits if known else {}
    if not usual and len(rates) < len(RATES):
        what = (
            f"the limits of the tier {known.name!r} are not published" if known else f"no limits in {tier!r}"
        )
        own = "such as Simulator((50, 30_000, 8_000)): requests, input tokens, output tokens per minute"
        msg = f"{what}. Give your own, {own}"
        raise UnknownTier(msg)
    promised = usual.get(PROMISED_GROUP) or catalog.Rates(**rates)
    groups = {model.rate_group for model in catalog.MODELS.values()}
    table = {group: (usual.get(group) or promised)._replace(**rates) for group in groups}
    other = known if known and known.batch_queue_requests else catalog.tier("start")
    further: dict[str, Any] = {name: int(limits.get(name) or getattr(other, name)) for name in FURTHER}
    return replace(other, name=known.name if known else "custom", limits=table, **further)


def listed(tier: catalog.Tier, now: float, query: Query) -> dict[str, Any]:
    """Return the answer to ``GET /v1/organizations/rate_limits``."""
    at, groups = datetime.fromtimestamp(now, UTC), dict[str, list[str]]()
    for model in catalog.MODELS.values():
        if not model.verified_only and catalog.lifecycle(model, at) != "retired":
            groups.setdefault(model.rate_group, []).extend(dict.fromkeys([model.id, model.snapshot]))
    items = []
    for name, models in groups.items():
        group = {"id": f"claude_{name.replace('-', '_')}", "type": "model_group"}
        group["display_name"] = f"Claude {name.replace('-', ' ').title()}"
        items.append(_entry(group, models, dict(zip(LISTED, tier.limits[name], strict=True))))
    queue, calls, counts = (getattr(tier, name) or 0 for name in FURTHER)
    batch = {"enqueued_batch_requests": queue, "requests_per_minute": calls}
    items.append(_entry({"id": "batch", "type": "batch"}, None, batch))
    items.append(_entry({"id": "token_count", "type": "token_count"}, None, {"requests_per_minute": counts}))
    names = ("group_type", "model", "page", "limit")
    kind, model_id, page, limit = (query.get(name, [""])[0] for name in names)
    items = [item for item in items if not kind or item["group"]["type"] == kind]
    items = [item for item in items if not model_id or model_id in (item["models"] or ())]
    if not items and model_id:
        raise Problem(404, f"model: {model_id}")
    start = int(page.removeprefix("page_") or 0)
    end = start + int(limit or len(items))
    return {"data": items[start:end], "next_page": f"page_{end}" if end < len(items) else None}


def _entry(group: dict[str, str], models: list[str] | None, limits: dict[str, float]) -> dict[str, Any]:
    amounts = [{"type": name, "value": round(value)} for name, value in limits.items()]
    named = {"id": f"rl_sim_{group['id']}", "type": "rate_limit", "group": group}
    return {**named, "models": models, "limits": amounts}


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


class Buckets:
    """Admission of one group of models: requests, input tokens and output tokens per minute.

    A call is admitted when each bucket holds what the call needs, or is full where the call needs
    more than a full bucket. Output is not reserved: it is taken while it is produced, so the bucket
    may fall below zero, and admits nothing until it has paid that debt.

    Parameters
    ----------
    requests, input_tokens, output_tokens : float
        The limits per minute.
    bucket_seconds : float
        How many seconds' worth a full bucket holds: 60 is the whole minute, 1 enforces the limit
        by the second. The requests' bucket holds at least one.
    now : float
        API seconds at the start; the buckets start full.
    """

    def __init__(
        self,
        requests: float,
        input_tokens: float,
        output_tokens: float,
        bucket_seconds: float = 60,
        now: float = 0,
    ) -> None:
        share = bucket_seconds / 60
        self.requests = Bucket(requests, max(requests * share, 1.0), now)
        self.input_tokens = Bucket(input_tokens, input_tokens * share, now)
        self.output_tokens = Bucket(output_tokens, output_tokens * share, now)
        self.named = dict(zip(KINDS, (self.requests, self.input_tokens, self.output_tokens), strict=True))

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
        found, parts = {}, {}
        for name, bucket in self.named.items():
            level = bucket.refill(now)
            left = math.floor(level + SLACK) if name == "requests" else round(level / 1000) * 1000
            full_at = now + (bucket.capacity - level) / bucket.per_second
            found[f"{name}-limit"], found[f"{name}-remaining"] = f"{bucket.per_minute:.0f}", str(max(0, left))
            found[f"{name}-reset"] = rfc3339(math.ceil(full_at - SLACK))
            parts[name] = level / max(bucket.capacity, 1.0)
        tightest = min(KINDS[1:], key=parts.__getitem__)
        found |= {f"tokens-{of}": found[f"{tightest}-{of}"] for of in ("limit", "remaining", "reset")}
        return {f"anthropic-ratelimit-{name}": value for name, value in found.items()}


# --------------------------------------------------------------------------------------------------- bill


@lru_cache(maxsize=256)
def _prices(model_id: str, mode: catalog.Mode, day: date) -> Mapping[str, catalog.Steps]:
    """Return the list price of a model on a day; nothing where there is none."""
    try:
        return catalog.list_price(model_id, mode=mode, at=datetime(day.year, day.month, day.day, tzinfo=UTC))
    except PlanError:  # no price of that model, or none yet on the simulated day
        return {}


class Window:
    """What fell into a sliding window of time, the most that ever did, and all there was."""

    def __init__(self, seconds: float) -> None:
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


class Tally:
    """The calls of one key: how many passed and how many were refused, and their tokens."""

    def __init__(self) -> None:
        self.passed, self.refused, self.tokens = (Window(60.0) for _ in range(3))


class Account:
    """What the server billed and refused, and how hard it was pressed, since the simulator began."""

    def __init__(self) -> None:
        self.counts = Counter(dict.fromkeys((*COUNTED, *USAGE), 0))
        self.refused: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.billed_rows: dict[catalog.Mode, int] = {"live": 0, "batch": 0}
        self.dollars: dict[catalog.Mode, float] = {"live": 0.0, "batch": 0.0}
        self._keys: set[bytes] = set()
        kinds = ("requests", "input_tokens", "output_tokens")
        self.by_key: defaultdict[tuple[str, int], Tally] = defaultdict(Tally)
        self._peaks = {(name, unit): Window(seconds) for name in kinds for unit, seconds in WINDOWS.items()}

    def began(self, now: float, input_tokens: int) -> None:
        """Count a call that was admitted."""
        self.counts["in_flight"] += 1
        self.counts["peak_in_flight"] = max(self.counts["peak_in_flight"], self.counts["in_flight"])
        self._press(now, requests=1, input_tokens=input_tokens)

    def ended(self, now: float, output_tokens: int) -> None:
        """Count the reply of a call that was admitted."""
        self.counts["in_flight"] -= 1
        self._press(now, output_tokens=output_tokens)

    def _press(self, now: float, **amounts: float) -> None:
        for (name, _), peak in self._peaks.items():
            if name in amounts:
                peak.add(now, amounts[name])

    def bill(  # noqa: PLR0917 - what a bill is made of
        self, now: float, model_id: str, mode: catalog.Mode, key: bytes, shares: Shares, reply: Reply
    ) -> float:
        """Add one reply to the bill, and return its dollars: none for most refusals, whose tokens count."""
        amounts = (*shares, reply.output_tokens, reply.thinking_tokens)
        for name, amount in zip(USAGE, amounts, strict=True):
            self.counts[name] += amount
        if not reply.billed:
            self.counts["free_refusals"] += 1
            return 0.0
        prices, dollars = _prices(model_id, mode, datetime.fromtimestamp(now, UTC).date()), 0.0
        for part, amount in zip(catalog.PARTS, amounts, strict=False):  # thinking is output
            if amount:
                above = [price for least, price in prices.get(part, ()) if shares.total_input_tokens > least]
                dollars += amount * float(above[-1]) / PER_MILLION if above else 0.0
        dollars *= catalog.CHARGES.us_factor if reply.geo == "us" else 1.0
        dollars *= FAST_FACTOR if reply.speed == "fast" else 1.0
        dollars += WEB_SEARCH_DOLLARS * (reply.searches or 0)
        self.counts["web_searches"] += reply.searches or 0
        self.dollars[mode] += dollars
        self.billed_rows[mode] += 1
        self._keys.add(key)
        return dollars

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
