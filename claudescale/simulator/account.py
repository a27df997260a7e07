"""One account of the API: its limits, its token buckets, its bill, and the desk that decides each call.

Nothing here does I/O or reads a clock: callers pass in the time, as API seconds since 1970. `Desk.admit`
decides a call when it arrives, and `Desk.finish` answers it when its reply is complete; the caller waits.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter, defaultdict, deque
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale.api import catalog
from claudescale.api.catalog import USAGE
from claudescale.errors import PlanError, UnknownTier, nearest
from claudescale.simulator import replies, requests, wire
from claudescale.simulator.faults import AFTER, BEFORE, IN_REPLY, Faults, trouble
from claudescale.simulator.wire import TABLES, Answer, Problem, rfc3339

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from claudescale.simulator.replies import Reply

RATES = catalog.Rates._fields
KINDS = ("requests", "input-tokens", "output-tokens")
FURTHER = ("batch_queue_requests", "batch_requests_per_minute", "count_tokens_per_minute")
LISTED = ("requests_per_minute", "input_tokens_per_minute_cache_aware", "output_tokens_per_minute")
LIMITS = (*RATES, *FURTHER)
PROMISED_GROUP = "fable-5"  # whose limits also apply to groups without published ones
SLACK = 1e-6  # tokens, to absorb the rounding of times near 2e9 seconds
COUNTED = ("calls", "batches_created", "free_refusals", "web_searches", "in_flight", "peak_in_flight")
WINDOWS = {"second": 1.0, "minute": 60.0}
WEB_SEARCH_DOLLARS = 0.01  # per search, also in batches
FAST_FACTOR = 2.0


# ------------------------------------------------------------------------------------------------- limits


def terms(tier: Any, limits: Mapping[str, float]) -> catalog.Tier:
    """Return a tier, or a custom one with three numbers or an object's limits, some of them overridden."""
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
    """Return the answer to ``GET /v1/organizations/rate_limits``, with all limits on one page."""
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
    """A token bucket that refills continuously; replies drain it while they are written.

    Parameters
    ----------
    per_minute : float
        The limit. A sixtieth of it refills each second.
    capacity : float
        The highest level, and the level at the start.
    now : float
        API seconds at the start.
    """

    def __init__(self, per_minute: float, capacity: float, now: float) -> None:
        self.per_minute, self.per_second = per_minute, per_minute / 60
        self.capacity = self.level = capacity
        self.updated = now
        self._changes: list[tuple[float, float]] = []  # when the total write rate changes, and by how much
        self._written_per_second = 0.0

    def refill(self, now: float) -> float:
        """Return the level at `now`, which is below zero where the bucket is overdrawn."""
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
        """Take `tokens` evenly from `begin` to `end`, neither of which is in the past."""
        heapq.heappush(self._changes, (begin, tokens / (end - begin)))
        heapq.heappush(self._changes, (end, -tokens / (end - begin)))

    def wait(self, now: float, need: float = 1) -> float:
        """Return the seconds until it holds `need`, or is full if `need` exceeds its capacity."""
        missing = min(need, self.capacity) - self.refill(now)
        return missing / self.per_second if missing > SLACK else 0.0

    def take(self, now: float, kind: str, calls: str) -> None:
        """Take one call to an endpoint with its own rate limit, or refuse it if the bucket is empty."""
        if wait := self.wait(now):
            words = f"This request would exceed your rate limit of {self.per_minute:,.0f} {calls} per minute."
            raise Problem(429, words, kind, retry_after=wait)
        self.level -= 1


class Buckets:
    """The token buckets of one group of models: requests, input tokens and output tokens per minute.

    A call is admitted when each bucket holds what the call needs, or is full where the call needs
    more than a full bucket. Output is not reserved but taken while it is produced. Its bucket may
    therefore fall below zero, and then admits nothing until it has refilled to above zero.

    Parameters
    ----------
    *per_minute : float
        The limits: requests, input tokens, output tokens.
    bucket_seconds : float
        Seconds of its limit that a full bucket holds: 60 is the whole minute, 1 enforces the limit
        by the second. The requests bucket holds at least one request.
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
        """Return the seconds until each bucket would admit the call; all are zero if it may go now."""
        needs = (1, input_tokens, 10 * SLACK)  # output only has to be above zero
        return {name: self.named[name].wait(now, need) for name, need in zip(KINDS, needs, strict=True)}

    def admit(self, now: float, *, input_tokens: float = 0) -> bool:
        """Return whether the call may go now, and if so, take one request and its input tokens."""
        if any(self.waits(now, input_tokens=input_tokens).values()):
            return False
        self.requests.level -= 1
        self.input_tokens.level -= input_tokens
        return True

    def produce(self, now: float, output_tokens: float, *, begin: float | None = None) -> None:
        """Take the output tokens of a reply, at `now` or evenly from `begin` until `now`."""
        if begin is not None and begin < now:
            self.output_tokens.write(begin, now, output_tokens)
        else:
            self.output_tokens.refill(now)
            self.output_tokens.level -= output_tokens

    def retry_after(self, now: float, *, input_tokens: float = 0) -> int:
        """Return the whole seconds, at least 1, until the same call would be admitted."""
        waits = self.waits(now, input_tokens=input_tokens).items()
        whole = (math.ceil(wait - SLACK / self.named[name].per_second) for name, wait in waits)
        return max(1, *whole)

    def headers(self, now: float) -> dict[str, str]:
        """Return the rate-limit headers of an answer given at `now`.

        Token figures are rounded to the nearest thousand, as on the API, and an overdrawn bucket shows
        0. The `tokens` headers repeat those of the token limit with the smaller share left.

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
    """Return the cost of a reply's tokens at the list price of `day`, or 0 if there is no price."""
    try:
        steps = catalog.list_price(model_id, mode, day)
    except PlanError:  # no price for this model, or none yet on the simulated day
        return 0.0
    _, *prices = [step for step in steps if sum(reply.shares) > step.above_tokens][-1]
    tokens = (*reply.shares, reply.output_tokens)
    return sum(amount * price for amount, price in zip(tokens, prices, strict=True))


class Window:
    """A sum over a sliding window of time, its maximum so far, and the overall total."""

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._events: deque[tuple[float, float]] = deque()
        self._sum = self.most = self.total = 0.0

    def add(self, now: float, amount: float) -> None:
        """Add `amount` at `now`."""
        self._events.append((now, amount))
        self._sum += amount
        self.total += amount
        self.most = max(self.most, self.recent(now))

    def recent(self, now: float) -> float:
        """Return the sum over the window that ends at `now`."""
        while self._events and self._events[0][0] <= now - self._seconds:
            self._sum -= self._events.popleft()[1]
        return self._sum


@dataclass(slots=True)
class Tally:
    """The calls of one API key: those that passed, those that were refused, and their tokens."""

    passed: Window = field(default_factory=Window)
    refused: Window = field(default_factory=Window)
    tokens: Window = field(default_factory=Window)


class Account:
    """The bill, the refusals and the peak load of one account since the simulator started."""

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
        """Add `calls` to those in flight (negative as calls end), and the amounts that they took at `now`."""
        self.counts["in_flight"] += calls
        self.counts["peak_in_flight"] = max(self.counts["peak_in_flight"], self.counts["in_flight"])
        for name, amount in amounts.items():
            for unit in WINDOWS:
                self._peaks[name, unit].add(now, amount)

    def bill(self, now: float, model_id: str, mode: catalog.Mode, key: bytes, reply: Reply) -> None:
        """Add one reply to the bill; most refusals cost nothing, but their tokens count."""
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


WRONG_KEYS = ("wrong", "sk-wrong")
ORDINARY_KEYS = ("sk-ant-api",)
AGAIN = " Try again after the time in the retry-after header."
SHOWN_LETTERS = 4  # at the start of a key


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of a simulator, explained in `Simulator`."""

    tier: Any = "start"
    limits: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    latency: float | Callable[[dict[str, Any], int], float] | None = None
    faults: Mapping[Any, Any] | None = None
    replies: Callable[[dict[str, Any]], Any] | None = None
    varied: bool = False
    bucket_seconds: float = 60.0
    batch_seconds: float | Callable[[int], float] | None = None


class Request(NamedTuple):
    """A valid request: its body, its model, the key that seeds its draws, and its measured prompt."""

    body: dict[str, Any]
    model: catalog.ModelFacts
    key: bytes
    prefixes: list[requests.Prefix]


class Admission(NamedTuple):
    """An admitted call: its message, and the API seconds when that begins and is complete."""

    request: Request
    reply: replies.Reply
    message: dict[str, Any]
    begins_at: float
    done_at: float
    fault: str | None
    tally: Tally


def key_of(headers: Mapping[str, str]) -> str:
    """Return the API key of a call."""
    return headers.get("x-api-key") or (headers.get("authorization") or "").removeprefix("Bearer ")


class Desk:
    """The Messages API of one account, which starts at `now` in API seconds."""

    def __init__(self, options: Options, now: float) -> None:
        self.options = options
        self.terms = terms(options.tier, options.limits)
        self.account = Account()
        self.cache = requests.PromptCache()
        self.faults = Faults(options.faults, options.seed)
        self.groups: dict[str, Buckets] = {}  # by group of models
        per_minute = self.terms.count_tokens_per_minute or 0
        self._counts = Bucket(per_minute, max(1.0, per_minute * options.bucket_seconds / 60), now)
        self._began, self._number, self._asked = now, 0, Counter[bytes]()

    def buckets(self, model: catalog.ModelFacts, now: float) -> Buckets:
        """Return the token buckets that `model` draws from."""
        group = model.rate_group
        if group not in self.groups:
            rates = self.terms.limits[group]
            self.groups[group] = Buckets(*rates, bucket_seconds=self.options.bucket_seconds, now=now)
        return self.groups[group]

    def next_id(self, prefix: str) -> str:
        """Return a new id."""
        self._number += 1
        return f"{prefix}_sim{self.options.seed:04d}{self._number:016d}"

    # ------------------------------------------------------------------------------------------- answers

    def answer(self, value: Any) -> Answer:
        """Return a 200 with `value` as JSON."""
        return Answer(200, {**wire.MARKS, "request-id": self.next_id("req")}, wire.json_bytes(value))

    def refuse(self, problem: Problem) -> Answer:
        """Return the answer to a refused call, and count it."""
        self.account.refused[problem.kind] += 1
        request_id = self.next_id("req")
        sent = {**wire.MARKS, "request-id": request_id, **problem.headers}
        return Answer(problem.status, sent, wire.json_bytes(problem.body(request_id)))

    def authorize(self, headers: Mapping[str, str], *, admin: bool = False, versioned: bool = False) -> None:
        """Check a call's key, its admin rights if `admin` is set, and its version if `versioned` is set."""
        key, version = key_of(headers), headers.get("anthropic-version")
        if not key.strip() or key.startswith(WRONG_KEYS):
            raise Problem(401, "" if key.strip() else "x-api-key header is required")
        # Any key counts as an admin's, unless it looks like an ordinary one.
        if admin and key.startswith(ORDINARY_KEYS):
            raise Problem(403, "This endpoint requires an Admin API key.")
        if versioned and version not in requests.VERSIONS:
            wrong = "header is required" if version is None else f"{version!r} is not a valid version"
            raise Problem(400, f"anthropic-version: {wrong}")

    def check_spending(self, now: float, *, coded: bool = True) -> None:
        """Refuse a call once spending reaches a cap in the faults; only the Messages API sends a code."""
        late = datetime.fromtimestamp(now, UTC).replace(day=28)
        until = f"You will regain access on {late + timedelta(days=4):%Y-%m}-01 at 00:00 UTC."
        for level, (status, code, words) in TABLES["spending"].items():
            if sum(self.account.dollars.values()) >= self.faults.levels.get(level, math.inf):
                raise Problem(status, f"{words} {until}", code or level, code if coded else "")

    # --------------------------------------------------------------------------------------------- calls

    def admit(self, now: float, raw: bytes, headers: Mapping[str, str]) -> Admission | Answer:
        """Decide a call to ``POST /v1/messages`` that arrives at `now`.

        Returns
        -------
        Admission or Answer
            Pass an admission to `finish` at its `done_at`. An answer is final: the call was refused, or
            struck by a fault, and took nothing from the buckets.
        """
        self.account.counts["calls"] += 1
        caller, limits = key_of(headers), dict[str, str]()
        tally = self.account.by_key[caller[:SHOWN_LETTERS], hash(caller)]
        decision: Admission | Answer
        try:
            body, model = self._opened(now, raw, headers)
            limits = self.buckets(model, now).headers(now)
            request = self.read(body, model, headers)
            attempt = self.faults.attempt(request.key)
            decision = self._failed(now, request, attempt) or self._let_in(now, request, attempt, tally)
        except Problem as refusal:
            refusal.headers |= limits
            decision = self.refuse(refusal)
        (tally.passed if isinstance(decision, Admission) else tally.refused).add(now, 1)
        return decision

    def count_tokens(self, now: float, raw: bytes, headers: Mapping[str, str]) -> dict[str, int]:
        """Return the answer to ``POST /v1/messages/count_tokens``, free and with its own rate limit."""
        body, model = self._opened(now, raw, headers)
        requests.check(body, model, headers, counting=True)
        self._counts.take(now, "count_tokens_per_minute", "requests")
        return {"input_tokens": requests.measure(body, model)[-1].tokens}

    def read(self, body: dict[str, Any], model: catalog.ModelFacts, headers: Mapping[str, str]) -> Request:
        """Return a request, or refuse it if it is invalid or exceeds the context window."""
        requests.check(body, model, headers)
        prefixes, most = requests.measure(body, model), model.context_tokens
        if (tokens := prefixes[-1].tokens) > most:
            raise Problem(400, f"prompt is too long: {tokens} tokens > {most} maximum")
        return Request(body, model, replies.digest(self.options.seed, body), prefixes)

    def _opened(
        self, now: float, raw: bytes, headers: Mapping[str, str]
    ) -> tuple[dict[str, Any], catalog.ModelFacts]:
        """Return the body and model of a call, or refuse it."""
        self.authorize(headers, versioned=True)
        body = wire.read_object(raw, catalog.MESSAGE.max_bytes)
        return body, requests.named_model(body, now)

    def struck(self, kinds: tuple[str, ...], key: bytes, attempt: int, now: float) -> str | None:
        """Return the first of these faults that strikes a try, if any, and count it."""
        kind = self.faults.strikes(kinds, key, attempt, now - self._began)
        if kind is not None:
            self.account.faults[kind] += 1
        return kind

    def _failed(self, now: float, request: Request, attempt: int) -> Answer | None:
        """Refuse a call that a fault strikes before admission, or return its broken answer, or None."""
        self.check_spending(now)
        kind = self.struck(BEFORE, request.key, attempt, now)
        if kind in {"drop", "hang"}:
            return Answer(0, {}, b"", fault=kind)
        if kind == "html_body":
            return Answer(502, {"content-type": "text/html"}, wire.HTML)
        most = self.faults.levels.get("overload_above", math.inf)
        if kind is None and self.account.counts["in_flight"] >= most:
            self.account.faults["overload_above"] += 1
            kind = "529"
        if kind is not None:
            raise trouble(kind)
        return None

    def _let_in(self, now: float, request: Request, attempt: int, tally: Tally) -> Admission:
        """Return the admission of a call, or refuse it if a bucket holds too little."""
        buckets, shares = self.buckets(request.model, now), self.cache.shares(now, request.prefixes)
        need = shares.limited_input_tokens
        if not buckets.admit(now, input_tokens=need):
            waits = buckets.waits(now, input_tokens=need)
            name = max(waits, key=waits.__getitem__)
            limit = f"{buckets.named[name].per_minute:,.0f} {name.replace('-', ' ')} per minute"
            words = f"This request would exceed your organization's rate limit of {limit}.{AGAIN}"
            after = buckets.retry_after(now, input_tokens=need)
            raise Problem(429, words, f"{name.replace('-', '_')}_per_minute", retry_after=after)
        reply, message = self.compose(now, request, shares, "standard")
        self.account.press(now, 1, requests=1, input_tokens=reply.shares.limited_input_tokens)
        buckets.input_tokens.level -= reply.searched_tokens  # corrects the estimate at admission
        begins, ends = replies.seconds(request.key, request.model.line, reply)
        if (latency := self.options.latency) is not None:
            ends = latency(request.body, reply.output_tokens) if callable(latency) else latency
            begins = ends / 2
        begins, ends = now + begins, now + ends
        self.cache.keep(now, begins, request.prefixes)
        buckets.produce(ends, reply.output_tokens, begin=begins)
        fault = self.struck(AFTER, request.key, attempt, now)
        return Admission(request, reply, message, begins, ends, fault, tally)

    def compose(
        self, now: float, request: Request, shares: requests.Shares, tier: str
    ) -> tuple[replies.Reply, dict[str, Any]]:
        """Return the reply to a request, spoiled if a fault strikes it, and its message."""
        body, model, key, _ = request
        if self.options.varied:
            self._asked[key] += 1
            key = replies.hashed(self._asked[key], key.hex(), 16)
        stand_in = replies.StandIn(key, self.options, body, model)
        reply = stand_in.reply(shares)
        fault = self.struck(IN_REPLY, key, 0, now)  # try 0: the same at every try
        if fault is not None:
            stand_in.spoil(fault, reply)
        reply.shares = shares._replace(input_tokens=shares.input_tokens + reply.searched_tokens)
        message = wire.message(self.next_id("msg"), model.snapshot, reply, tier)
        # Earlier messages are not kept; the API forgets them after some time.
        if (body.get("diagnostics") or {}).get("previous_message_id") is not None:
            message["diagnostics"] = {"cache_miss_reason": {"type": "previous_message_not_found"}}
        return reply, message

    def finish(self, now: float, admission: Admission) -> Answer:
        """Bill an admitted call whose reply is complete at `now`, and return its answer."""
        self.settle(now, admission)
        headers, fault = self.headers(now, admission), admission.fault
        body = wire.json_bytes(admission.message)
        if fault == "not_json":
            return Answer(200, headers, b"upstream said: " + body[: len(body) // 3])
        return Answer(200, headers, body, "drop" if fault == "drop_after" else fault)

    def settle(self, now: float, admission: Admission) -> None:
        """Bill an admitted call without building its answer."""
        reply = admission.reply
        self.account.press(now, -1, output_tokens=reply.output_tokens)
        admission.tally.tokens.add(now, reply.shares.limited_input_tokens + reply.output_tokens)
        self.account.bill(now, admission.request.model.id, "live", admission.request.key, reply)

    def headers(self, now: float, admission: Admission) -> dict[str, str]:
        """Return the headers of an answer given at `now`."""
        limits = self.buckets(admission.request.model, now).headers(now)
        return {**wire.MARKS, "request-id": self.next_id("req"), **limits}
