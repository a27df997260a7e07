"""One account of the API: its limits and what is left of them, its bill, and the desk that decides each call.

Nothing here has input, output or a clock of its own. Time is passed in, as API seconds since 1970.
`Desk.admit` decides when a call arrives, `Desk.finish` when its reply is complete; whoever calls them waits.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict, deque
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale.api import catalog
from claudescale.api.catalog import USAGE
from claudescale.errors import PlanError, UnknownTier, nearest
from claudescale.simulator import replies, wire
from claudescale.simulator.faults import AFTER, BEFORE, IN_REPLY, Faults, trouble
from claudescale.simulator.requests import (
    VERSIONS,
    Measured,
    PromptCache,
    Shares,
    check,
    found_model,
    measure,
)
from claudescale.simulator.wire import TABLES, Answer, Problem, rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from claudescale.simulator.replies import Reply
    from claudescale.simulator.wire import Query

RATES = catalog.Rates._fields
KINDS = ("requests", "input-tokens", "output-tokens")
FURTHER = ("batch_queue_requests", "batch_requests_per_minute", "count_tokens_per_minute")
LISTED = ("requests_per_minute", "input_tokens_per_minute_cache_aware", "output_tokens_per_minute")
LIMITS = (*RATES, *FURTHER)
PROMISED_GROUP = "fable-5"  # limits for a line whose own row is not published
WRONG_KEYS = ("wrong", "sk-wrong")
ORDINARY_KEYS = ("sk-ant-api",)
AGAIN = " Try again after the time in the retry-after header."
SHOWN_LETTERS = 4  # of a key
SLACK = 1e-6  # of a token: what rounding of times near 2e9 seconds can cost
COUNTED = ("calls", "batches_created", "free_refusals", "web_searches", "in_flight", "peak_in_flight")
WINDOWS = {"second": 1.0, "minute": 60.0}
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
def _steps(model_id: str, mode: catalog.Mode, day: date) -> tuple[catalog.PriceStep, ...]:
    """Return the list price of a model on a day; nothing where there is none."""
    try:
        return catalog.list_price(model_id, mode, day)
    except PlanError:  # no price of that model, or none yet on the simulated day
        return ()


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
        self._press(now, "requests", 1)
        self._press(now, "input_tokens", input_tokens)

    def ended(self, now: float, output_tokens: int) -> None:
        """Count the reply of a call that was admitted."""
        self.counts["in_flight"] -= 1
        self._press(now, "output_tokens", output_tokens)

    def _press(self, now: float, name: str, amount: float) -> None:
        for unit in WINDOWS:
            self._peaks[name, unit].add(now, amount)

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
        steps = _steps(model_id, mode, datetime.fromtimestamp(now, UTC).date())
        reached = [step for step in steps if shares.total_input_tokens > step.above_tokens]
        prices = reached[-1][1:] if reached else ()
        dollars = sum(amount * price for amount, price in zip(amounts, prices, strict=False))
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


# --------------------------------------------------------------------------------------------------- desk


class Admission(NamedTuple):
    """A call that was let in: its message, and when that begins and is complete in API seconds."""

    key: bytes
    body: dict[str, Any]
    model: catalog.Model
    shares: Shares
    reply: replies.Reply
    message: dict[str, Any]
    begins_at: float
    done_at: float
    request_id: str
    fault: str | None
    tally: Tally


def key_of(headers: Mapping[str, str]) -> str:
    """Return the key a call came with."""
    return headers.get("x-api-key") or (headers.get("authorization") or "").removeprefix("Bearer ")


class Desk:
    """The Messages API of one account.

    Parameters
    ----------
    tier : str, int, tuple or object
        Whose limits hold; see `Simulator`, also for the others.
    now : float
        API seconds at the start.
    written : callable, optional
        ``written(body)`` gives the text, or the JSON value, of each reply.
    """

    def __init__(
        self,
        tier: Any = "start",
        *,
        now: float,
        seed: int = 0,
        latency: float | Callable[[dict[str, Any], int], float] | None = None,
        faults: Mapping[Any, Any] | Faults | None = None,
        written: Callable[[dict[str, Any]], Any] | None = None,
        varied: bool = False,
        bucket_seconds: float = 60.0,
        **limits: float,
    ) -> None:
        self.terms = terms(tier, **limits)
        self.seed = seed
        self.account = Account()
        self.cache = PromptCache()
        self.faults = faults if isinstance(faults, Faults) else Faults(faults, seed)
        self._began, self._latency, self._written = now, latency, written
        self._varied, self._asked = varied, Counter[bytes]()
        self._bucket_seconds = bucket_seconds
        self.groups: dict[str, Buckets] = {}  # of models
        per_minute = self.terms.count_tokens_per_minute or 0
        self._counts = Bucket(per_minute, max(1.0, per_minute * bucket_seconds / 60), now)
        self._number = 0

    def buckets(self, model: catalog.Model, now: float) -> Buckets:
        """Return the token buckets that `model` draws from."""
        group = model.rate_group
        if group not in self.groups:
            rates = self.terms.limits[group]
            self.groups[group] = Buckets(*rates, bucket_seconds=self._bucket_seconds, now=now)
        return self.groups[group]

    def next_id(self, prefix: str) -> str:
        """Return an id that was not given before."""
        self._number += 1
        return f"{prefix}_sim{self.seed:04d}{self._number:016d}"

    # ------------------------------------------------------------------------------------------- answers

    def answer(self, value: Any) -> Answer:
        """Return a 200 with `value` as JSON."""
        return Answer(200, {**wire.MARKS, "request-id": self.next_id("req")}, wire.json_bytes(value))

    def refuse(self, problem: Problem) -> Answer:
        """Return the answer to a call that is not let in, and count it."""
        self.account.refused[problem.kind] += 1
        request_id = self.next_id("req")
        sent = {**wire.MARKS, "request-id": request_id, **problem.headers}
        return Answer(problem.status, sent, wire.json_bytes(problem.body(request_id)))

    def authorize(self, headers: Mapping[str, str], *, admin: bool = False, versioned: bool = False) -> None:
        """Refuse a call without a key, or with a wrong one, or with no admin's where an `admin` is asked for.

        Every key but one that looks like an ordinary one (``sk-ant-api...``) may do what an admin may.
        One that is `versioned` has to say a version of the API.
        """
        key, version = key_of(headers), headers.get("anthropic-version")
        if not key.strip() or key.startswith(WRONG_KEYS):
            raise Problem(401, "" if key.strip() else "x-api-key header is required")
        if admin and key.startswith(ORDINARY_KEYS):
            raise Problem(403, "This endpoint requires an Admin API key.")
        if versioned and version not in VERSIONS:
            wrong = "header is required" if version is None else f"{version!r} is not a valid version"
            raise Problem(400, f"anthropic-version: {wrong}")

    def limit(self, bucket: Bucket, now: float, kind: str, calls: str) -> None:
        """Take a call of an endpoint with a rate of its own; refuse it if there were too many."""
        if wait := bucket.wait(now):
            limit = f"your rate limit of {bucket.per_minute:,.0f} {calls} per minute"
            raise wire.limited(limit, max(1, math.ceil(wait)), kind)
        bucket.level -= 1

    def check_spending(self, now: float, *, coded: bool = True) -> None:
        """Refuse a call once as much was spent as the faults allow; only the Messages API has a code."""
        late = datetime.fromtimestamp(now, UTC).replace(day=28)
        until = f"You will regain access on {late + timedelta(days=4):%Y-%m}-01 at 00:00 UTC."
        for level, (status, code, words) in TABLES["spending"].items():
            if sum(self.account.dollars.values()) >= self.faults.levels.get(level, math.inf):
                details = {"error_code": code} if code and coded else {}
                raise Problem(status, f"{words} {until}", code or level, **details)

    # --------------------------------------------------------------------------------------------- calls

    def admit(
        self, now: float, body: dict[str, Any] | bytes | bytearray, headers: Mapping[str, str]
    ) -> Admission | Answer:
        """Decide a call to ``POST /v1/messages`` that arrives at `now`.

        Returns
        -------
        Admission or Answer
            An admission is finished by `finish` at its `done_at`. An answer is final: the call was
            refused, or struck by a fault, and took nothing.
        """
        self.account.counts["calls"] += 1
        caller, limits = key_of(headers), dict[str, str]()
        tally = self.account.by_key[caller[:SHOWN_LETTERS], hash(caller)]
        found: Admission | Answer
        try:
            read, model = self._opened(now, body, headers)
            limits = self.buckets(model, now).headers(now)
            check(read, model, headers["anthropic-version"], headers.get("anthropic-beta", ""))
            weighed, key = self.weighed(read, model), replies.digest(self.seed, read)
            attempt = self.faults.attempt(key)
            broken = self._failed(now, key, attempt) if self.faults else None
            found = broken or self._let_in(now, key, attempt, read, model, weighed, tally)
        except Problem as refusal:
            refusal.headers |= limits
            found = self.refuse(refusal)
        (tally.passed if isinstance(found, Admission) else tally.refused).add(now, 1)
        return found

    def count_tokens(self, now: float, raw: bytes | bytearray, headers: Mapping[str, str]) -> dict[str, int]:
        """Answer ``POST /v1/messages/count_tokens``, which has a limit of its own and is free."""
        body, model = self._opened(now, raw, headers)
        check(body, model, headers["anthropic-version"], headers.get("anthropic-beta", ""), counting=True)
        self.limit(self._counts, now, "count_tokens_per_minute", "requests")
        return {"input_tokens": measure(body, model).input_tokens}

    def weighed(self, body: dict[str, Any], model: catalog.Model) -> Measured:
        """Return what a request weighs, or refuse it as too long for the model."""
        measured, most = measure(body, model), model.context_tokens
        if measured.input_tokens > most:
            raise Problem(400, f"prompt is too long: {measured.input_tokens} tokens > {most} maximum")
        return measured

    def _opened(
        self, now: float, body: dict[str, Any] | bytes | bytearray, headers: Mapping[str, str]
    ) -> tuple[dict[str, Any], catalog.Model]:
        """Return the body of a call with a key and a version, and its model."""
        self.authorize(headers, versioned=True)
        if not isinstance(body, dict):
            body = wire.read_object(body, catalog.MESSAGE.max_bytes)
        return body, found_model(body, now)

    def struck(self, kinds: tuple[str, ...], key: bytes, attempt: int, now: float) -> str | None:
        """Return the first of these faults that strikes a try, and count it."""
        kind = self.faults.strikes(kinds, key, attempt, now - self._began)
        if kind is not None:
            self.account.faults[kind] += 1
        return kind

    def _failed(self, now: float, key: bytes, attempt: int) -> Answer | None:
        """Refuse a call by a fault, before it is let in, or return what becomes of its answer."""
        self.check_spending(now)
        kind = self.struck(BEFORE, key, attempt, now)
        if kind in {"drop", "hang"}:
            return Answer(0, {}, b"", fault=kind)
        if kind == "html_body":
            return Answer(502, {"content-type": "text/html"}, wire.HTML)
        most = self.faults.levels.get("overload_above", math.inf)
        if kind is None and self.account.counts["in_flight"] >= most:
            self.account.faults["overload_above"] += 1
            kind = "529"
        if kind is not None:
            raise trouble(kind, int(kind) if kind.isdecimal() else 400)
        return None

    def _let_in(  # noqa: PLR0917 - what decides it
        self, now: float, key: bytes, attempt: int, body: dict[str, Any],
        model: catalog.Model, weighed: Measured, tally: Tally,
    ) -> Admission:  # fmt: skip
        least, buckets = model.cache_minimum_tokens, self.buckets(model, now)
        shares = self.cache.shares(now, weighed, least)
        need = shares.limited_input_tokens
        if not buckets.admit(now, input_tokens=need):
            waits = buckets.waits(now, input_tokens=need)
            name = max(waits, key=waits.__getitem__)
            limit = f"{buckets.named[name].per_minute:,.0f} {name.replace('-', ' ')} per minute"
            limit, kind = f"your organization's rate limit of {limit}", f"{name.replace('-', '_')}_per_minute"
            raise wire.limited(limit, buckets.retry_after(now, input_tokens=need), kind, AGAIN)
        reply, shares, message = self.compose(now, key, body, model, shares, "standard")
        self.account.began(now, shares.limited_input_tokens)
        buckets.input_tokens.level -= reply.found_tokens  # the estimate at the start is corrected
        begins, ends = replies.seconds(key, model.line, reply, shares.total_input_tokens)
        if self._latency is not None:
            ends = self._latency(body, reply.output_tokens) if callable(self._latency) else self._latency
            begins = ends / 2
        begins, ends = now + begins, now + ends
        self.cache.keep(now, begins, weighed, least)
        buckets.produce(ends, reply.output_tokens, begin=begins)
        fault, request_id = self.struck(AFTER, key, attempt, now), self.next_id("req")
        return Admission(key, body, model, shares, reply, message, begins, ends, request_id, fault, tally)

    def compose(  # noqa: PLR0917 - what makes a message
        self, now: float, key: bytes, body: dict[str, Any], model: catalog.Model, shares: Shares, tier: str
    ) -> tuple[replies.Reply, Shares, dict[str, Any]]:
        """Return the reply to a valid request, spoiled where a fault strikes it; its input; its message."""
        if self._varied:
            self._asked[key] += 1
            key = replies.hashed(self._asked[key], key.hex(), 16)
        at_work = replies.Model(key, self.seed, body, model)
        reply = at_work.reply(self._written)
        struck = self.struck(IN_REPLY, key, 0, now)  # try 0: the same at every try
        if struck is not None:
            at_work.spoil(struck, reply)
        shares = shares._replace(input_tokens=shares.input_tokens + reply.found_tokens)
        # Of earlier messages nothing is kept, as on the API after some time.
        asked = (body.get("diagnostics") or {}).get("previous_message_id") is not None
        missed = {"cache_miss_reason": {"type": "previous_message_not_found"}} if asked else None
        message = wire.message(self.next_id("msg"), model.snapshot, reply, shares, tier)
        return reply, shares, {**message, "diagnostics": missed}

    def finish(self, now: float, admission: Admission) -> Answer:
        """Return the answer to an admitted call whose reply is complete at `now`; bills it."""
        self.settle(now, admission)
        headers, fault = self.headers(now, admission), admission.fault
        body = wire.json_bytes(admission.message)
        if fault == "not_json":
            return Answer(200, headers, b"upstream said: " + body[: len(body) // 3])
        return Answer(200, headers, body, "drop" if fault == "drop_after" else fault)

    def settle(self, now: float, admission: Admission) -> None:
        """Bill a reply, without making an answer."""
        reply = admission.reply
        self.account.ended(now, reply.output_tokens)
        admission.tally.tokens.add(now, admission.shares.limited_input_tokens + reply.output_tokens)
        self.account.bill(now, admission.model.id, "live", admission.key, admission.shares, reply)

    def headers(self, now: float, admission: Admission) -> dict[str, str]:
        """Return the headers of an answer given at `now`."""
        limits = self.buckets(admission.model, now).headers(now)
        return {**wire.MARKS, "request-id": admission.request_id, **limits}
