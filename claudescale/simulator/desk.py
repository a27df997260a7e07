"""The desk: decides each call to the Messages API, without any input, output or clock of its own.

Time is passed in, as API seconds since 1970. `Desk.admit` decides when a call arrives,
`Desk.finish` when its reply is complete; whoever calls them does the waiting in between.
"""

from __future__ import annotations

import math
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

from claudescale.api import catalog
from claudescale.simulator import replies, wire
from claudescale.simulator.account import Account, Bucket, Buckets, Tally, terms
from claudescale.simulator.checks import VERSIONS, check, found_model
from claudescale.simulator.faults import AFTER, BEFORE, IN_REPLY, Faults, trouble
from claudescale.simulator.tokens import Measured, PromptCache, Shares, measure
from claudescale.simulator.wire import TABLES, Answer, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WRONG_KEYS = ("wrong", "sk-wrong")
ORDINARY_KEYS = ("sk-ant-api",)
AGAIN = " Try again after the time in the retry-after header."
SHOWN_LETTERS = 4  # of a key


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
