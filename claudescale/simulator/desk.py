"""The desk of one account: what becomes of each call to its Messages API.

Nothing here has input, output or a clock of its own. Time is passed in, as API seconds since 1970.
`Desk.admit` decides when a call arrives, `Desk.finish` when its reply is complete; whoever calls them waits.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale.api import catalog
from claudescale.simulator import replies, requests, wire
from claudescale.simulator.account import Account, Bucket, Buckets, terms
from claudescale.simulator.faults import AFTER, BEFORE, IN_REPLY, Faults, trouble
from claudescale.simulator.wire import TABLES, Answer, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from claudescale.simulator.account import Tally

WRONG_KEYS = ("wrong", "sk-wrong")
ORDINARY_KEYS = ("sk-ant-api",)
AGAIN = " Try again after the time in the retry-after header."
SHOWN_LETTERS = 4  # of a key


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a simulator was asked to behave; `Simulator` says what each means."""

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
    """A request that the API takes: its body, its model, the key to all its luck, and its prompt, weighed."""

    body: dict[str, Any]
    model: catalog.Model
    key: bytes
    prefixes: list[requests.Prefix]


class Admission(NamedTuple):
    """A call that was let in: its message, and when that begins and is complete in API seconds."""

    request: Request
    reply: replies.Reply
    message: dict[str, Any]
    begins_at: float
    done_at: float
    fault: str | None
    tally: Tally


def key_of(headers: Mapping[str, str]) -> str:
    """Return the key a call came with."""
    return headers.get("x-api-key") or (headers.get("authorization") or "").removeprefix("Bearer ")


class Desk:
    """The Messages API of one account, since `now` in API seconds."""

    def __init__(self, options: Options, now: float) -> None:
        self.options = options
        self.terms = terms(options.tier, options.limits)
        self.account = Account()
        self.cache = requests.PromptCache()
        self.faults = Faults(options.faults, options.seed)
        self.groups: dict[str, Buckets] = {}  # of models
        per_minute = self.terms.count_tokens_per_minute or 0
        self._counts = Bucket(per_minute, max(1.0, per_minute * options.bucket_seconds / 60), now)
        self._began, self._number, self._asked = now, 0, Counter[bytes]()

    def buckets(self, model: catalog.Model, now: float) -> Buckets:
        """Return the token buckets that `model` draws from."""
        group = model.rate_group
        if group not in self.groups:
            rates = self.terms.limits[group]
            self.groups[group] = Buckets(*rates, bucket_seconds=self.options.bucket_seconds, now=now)
        return self.groups[group]

    def next_id(self, prefix: str) -> str:
        """Return an id that was not given before."""
        self._number += 1
        return f"{prefix}_sim{self.options.seed:04d}{self._number:016d}"

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
        if versioned and version not in requests.VERSIONS:
            wrong = "header is required" if version is None else f"{version!r} is not a valid version"
            raise Problem(400, f"anthropic-version: {wrong}")

    def check_spending(self, now: float, *, coded: bool = True) -> None:
        """Refuse a call once as much was spent as the faults allow; only the Messages API has a code."""
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
            An admission is finished by `finish` at its `done_at`. An answer is final: the call was
            refused, or struck by a fault, and took nothing.
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
        """Answer ``POST /v1/messages/count_tokens``, which has a limit of its own and is free."""
        body, model = self._opened(now, raw, headers)
        requests.check(body, model, headers, counting=True)
        self._counts.take(now, "count_tokens_per_minute", "requests")
        return {"input_tokens": requests.measure(body, model)[-1].tokens}

    def read(self, body: dict[str, Any], model: catalog.Model, headers: Mapping[str, str]) -> Request:
        """Return a request, or refuse what is wrong with it, such as that it is too long."""
        requests.check(body, model, headers)
        prefixes, most = requests.measure(body, model), model.context_tokens
        if (tokens := prefixes[-1].tokens) > most:
            raise Problem(400, f"prompt is too long: {tokens} tokens > {most} maximum")
        return Request(body, model, replies.digest(self.options.seed, body), prefixes)

    def _opened(
        self, now: float, raw: bytes, headers: Mapping[str, str]
    ) -> tuple[dict[str, Any], catalog.Model]:
        """Return the body of a call with a key and a version, and its model."""
        self.authorize(headers, versioned=True)
        body = wire.read_object(raw, catalog.MESSAGE.max_bytes)
        return body, requests.named_model(body, now)

    def struck(self, kinds: tuple[str, ...], key: bytes, attempt: int, now: float) -> str | None:
        """Return the first of these faults that strikes a try, and count it."""
        kind = self.faults.strikes(kinds, key, attempt, now - self._began)
        if kind is not None:
            self.account.faults[kind] += 1
        return kind

    def _failed(self, now: float, request: Request, attempt: int) -> Answer | None:
        """Refuse a call by a fault, before it is let in, or return what becomes of its answer."""
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
        """Return the admission of a call, or refuse it where a bucket has too little left."""
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
        buckets.input_tokens.level -= reply.searched_tokens  # the estimate at the start is corrected
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
        """Return the reply to a request, spoiled where a fault strikes it, and its message."""
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
        # Of earlier messages nothing is kept, as on the API after some time.
        if (body.get("diagnostics") or {}).get("previous_message_id") is not None:
            message["diagnostics"] = {"cache_miss_reason": {"type": "previous_message_not_found"}}
        return reply, message

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
        self.account.press(now, -1, output_tokens=reply.output_tokens)
        admission.tally.tokens.add(now, reply.shares.limited_input_tokens + reply.output_tokens)
        self.account.bill(now, admission.request.model.id, "live", admission.request.key, reply)

    def headers(self, now: float, admission: Admission) -> dict[str, str]:
        """Return the headers of an answer given at `now`."""
        limits = self.buckets(admission.request.model, now).headers(now)
        return {**wire.MARKS, "request-id": self.next_id("req"), **limits}
