"""The desk: decides each call to the Messages API, without any input, output or clock of its own.

Time is passed in, as API seconds since 1970. `Desk.admit` decides when a call arrives,
`Desk.finish` when its reply is complete; whoever calls them does the waiting in between.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from claudescale.api import catalog
from claudescale.simulator import replies, wire
from claudescale.simulator.account import Account, Bucket, Buckets, terms
from claudescale.simulator.checks import found_model, problem, version_problem
from claudescale.simulator.faults import ACCOUNT, AFTER, BEFORE, IN_REPLY, STATUSES, Faults
from claudescale.simulator.tokens import Measured, PromptCache, Shares, measure
from claudescale.simulator.wire import Answer, Problem, invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WRONG_KEYS = ("wrong", "sk-wrong")
ORDINARY_KEYS = ("sk-ant-api",)
RAMP_SECONDS = 5
MOST_DIAGNOSED = 1_000  # requests that are kept to say why the cache missed what they had


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
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
        bucket_seconds: float = 60.0,
        **limits: float,
    ) -> None:
        self.terms = terms(tier, **limits)
        self.seed = seed
        self.account = Account()
        self.cache = PromptCache()
        self.faults = faults if isinstance(faults, Faults) else Faults(faults, seed)
        self._began, self._latency, self._written = now, latency, written
        self._bucket_seconds = bucket_seconds
        self._buckets: dict[str, Buckets] = {}
        per_minute = self.terms.count_tokens_per_minute
        self._counts = Bucket(per_minute, max(1.0, per_minute * bucket_seconds / 60), now)
        self._number = 0
        self._diagnosed: dict[str, dict[str, Any]] = {}

    def buckets(self, model: catalog.Model, now: float) -> Buckets:
        """Return the token buckets that `model` draws from."""
        group = model.rate_group
        if group not in self._buckets:
            rates = self.terms.rates(group)
            self._buckets[group] = Buckets(*rates, bucket_seconds=self._bucket_seconds, now=now)
        return self._buckets[group]

    def next_id(self, prefix: str) -> str:
        """Return an id that was not given before."""
        self._number += 1
        return f"{prefix}_sim{self.seed:04d}{self._number:016d}"

    # ------------------------------------------------------------------------------------------- answers

    def answer(self, value: Any) -> Answer:
        """Return a 200 with `value` as JSON, or its refusal if it is a `Problem`."""
        if isinstance(value, Problem):
            return self.refuse(value)
        return Answer(200, {**wire.MARKS, "request-id": self.next_id("req")}, wire.json_bytes(value))

    def refuse(
        self, found: Problem, *, kind: str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Return the answer to a call that is not let in, and count it by `kind` or its type."""
        self.account.refused[kind or found.type] += 1
        request_id = self.next_id("req")
        sent = {**wire.MARKS, "request-id": request_id, **(headers or {})}
        return Answer(found.status, sent, wire.json_bytes(wire.error_body(found, request_id)))

    def unauthorized(self, headers: Mapping[str, str], *, admin: bool = False) -> Answer | None:
        """Return the 401 to a call without a key, or with a wrong one; the 403 where an `admin` is asked for.

        Every key but one that looks like an ordinary one (``sk-ant-api...``) may do what an admin may.
        """
        key = headers.get("x-api-key") or (headers.get("authorization") or "").removeprefix("Bearer ")
        if not key.strip():
            return self.refuse(Problem(401, "authentication_error", "x-api-key header is required"))
        if key.startswith(WRONG_KEYS):
            return self.refuse(STATUSES[401])
        if admin and key.startswith(ORDINARY_KEYS):
            return self.refuse(Problem(403, "permission_error", "This endpoint requires an Admin API key."))
        return None

    def limited(self, bucket: Bucket, now: float, kind: str, calls: str) -> Answer | None:
        """Take a call of an endpoint with a rate of its own; return the 429 if there were too many."""
        wait = bucket.wait(now)
        if not wait:
            bucket.level -= 1
            return None
        limit = f"your rate limit of {bucket.per_minute:,.0f} {calls} per minute"
        found = Problem(429, "rate_limit_error", f"This request would exceed {limit}.")
        return self.refuse(found, kind=kind, headers={"retry-after": str(max(1, math.ceil(wait)))})

    def spent(
        self, now: float, limits: Mapping[str, str] | None = None, *, coded: bool = True
    ) -> Answer | None:
        """Return the refusal once as much was spent as the faults allow; only the Messages API has a code."""
        dollars, levels = sum(self.account.dollars.values()), self.faults.levels
        first = (datetime.fromtimestamp(now, UTC).replace(day=28) + timedelta(days=4)).replace(day=1)
        until = f"You will regain access on {first:%Y-%m-%d} at 00:00 UTC."
        if dollars >= levels.get("spend_cap", math.inf):
            threshold = "your organization has crossed its monthly API usage threshold"
            message = f"You have reached your API usage limits: {threshold}. {until}"
            code = "enforced_spend_limit_reached"
            details = {"error_code": code} if coded else None
            return self.refuse(Problem(429, "rate_limit_error", message, details), kind=code, headers=limits)
        if dollars >= levels.get("workspace_spend", math.inf):
            found = invalid(f"You have reached your specified workspace API usage limits. {until}")
            return self.refuse(found, kind="workspace_spend", headers=limits)
        return None

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
        opened = self._opened(now, body, headers)
        if isinstance(opened, Answer):
            return opened
        read, model = opened
        weighed = self.weighed(read, model)
        if isinstance(weighed, Problem):
            return self.refuse(weighed, headers=self.buckets(model, now).headers(now))
        key = replies.digest(self.seed, read)
        attempt = self.faults.attempt(key)
        failed = self._failed(now, key, attempt, self.buckets(model, now)) if self.faults else None
        return failed or self._let_in(now, key, attempt, read, model, weighed)

    def count_tokens(self, now: float, raw: bytes | bytearray, headers: Mapping[str, str]) -> Answer:
        """Answer ``POST /v1/messages/count_tokens``, which has a limit of its own and is free."""
        opened = self._opened(now, raw, headers, counting=True)
        if isinstance(opened, Answer):
            return opened
        over = self.limited(self._counts, now, "count_tokens_per_minute", "requests")
        return over or self.answer({"input_tokens": measure(*opened).input_tokens})

    def weighed(self, body: dict[str, Any], model: catalog.Model) -> Measured | Problem:
        """Return what a request weighs, or that it is too long for the model."""
        measured = measure(body, model)
        if measured.input_tokens <= model.context_tokens:
            return measured
        return invalid(f"prompt is too long: {measured.input_tokens} tokens > {model.context_tokens} maximum")

    def _opened(
        self,
        now: float,
        body: dict[str, Any] | bytes | bytearray,
        headers: Mapping[str, str],
        *,
        counting: bool = False,
    ) -> tuple[dict[str, Any], catalog.Model] | Answer:
        """Return the body and the model of a call that is in order, or the refusal."""
        refused = self.unauthorized(headers)
        if refused is not None:
            return refused
        read = body if isinstance(body, dict) else _read(body)
        if isinstance(read, Problem):
            return self.refuse(read)
        model = version_problem(headers) or found_model(read, now)
        if isinstance(model, Problem):
            return self.refuse(model)
        betas = headers.get("anthropic-beta", "")
        wrong = problem(read, model, headers["anthropic-version"], betas, counting=counting)
        if wrong is not None:
            return self.refuse(wrong, headers=None if counting else self.buckets(model, now).headers(now))
        return read, model

    def struck(self, kinds: tuple[str, ...], key: bytes, attempt: int, now: float) -> str | None:
        """Return the first of these faults that strikes a try, and count it."""
        kind = self.faults.strikes(kinds, key, attempt, now - self._began)
        if kind is not None:
            self.account.faults[kind] += 1
        return kind

    def _failed(self, now: float, key: bytes, attempt: int, buckets: Buckets) -> Answer | None:
        """Return what a fault makes of a call before it is let in."""
        limits = buckets.headers(now)
        stopped = self.spent(now, limits)
        if stopped is not None:
            return stopped
        kind = self.struck(BEFORE, key, attempt, now)
        if kind is None and self.account.in_flight >= self.faults.levels.get("overload_above", math.inf):
            self.account.faults["overload_above"] += 1
            kind = "529"
        if kind is None:
            return None
        if kind in {"drop", "hang"}:
            return Answer(0, {}, b"", fault=kind)
        if kind == "html_body":
            return Answer(502, {"content-type": "text/html"}, wire.HTML)
        if kind in ACCOUNT:
            return self.refuse(ACCOUNT[kind], kind=kind, headers=limits)
        found = STATUSES[int(kind)]
        code = (found.details or {}).get("error_code")
        ramp = {"retry-after": str(RAMP_SECONDS)} if code else {}
        return self.refuse(found, kind=code, headers={**limits, **ramp})

    def _let_in(  # noqa: PLR0917 - what decides it
        self,
        now: float,
        key: bytes,
        attempt: int,
        body: dict[str, Any],
        model: catalog.Model,
        weighed: Measured,
    ) -> Admission | Answer:
        buckets, least = self.buckets(model, now), model.cache_minimum_tokens
        shares = self.cache.shares(now, weighed, least)
        if not buckets.admit(now, input_tokens=shares.limited_input_tokens):
            return self._over(now, buckets, shares.limited_input_tokens)
        reply = self.reply(key, body, model, now)
        shares = shares._replace(input_tokens=shares.input_tokens + reply.found_tokens)
        buckets.input_tokens.level -= reply.found_tokens  # the estimate at the start is corrected
        begins, ends = replies.Model(key, self.seed, body, model).seconds(reply, shares.total_input_tokens)
        if self._latency is not None:
            ends = self._latency(body, reply.output_tokens) if callable(self._latency) else self._latency
            begins = ends / 2
        self.cache.keep(now, now + begins, weighed, least)
        buckets.produce(now + ends, reply.output_tokens, begin=now + begins)
        self.account.began(now, shares.limited_input_tokens)
        return Admission(
            key=key,
            body=body,
            model=model,
            shares=shares,
            reply=reply,
            message=self.message(body, model, reply, shares, "standard"),
            begins_at=now + begins,
            done_at=now + ends,
            request_id=self.next_id("req"),
            fault=self.struck(AFTER, key, attempt, now),
        )

    def _over(self, now: float, buckets: Buckets, input_tokens: int) -> Answer:
        waits = buckets.waits(now, input_tokens=input_tokens)
        name = max(waits, key=waits.__getitem__)
        words, limit = name.replace("-", " "), buckets.named[name].per_minute
        message = (
            f"This request would exceed your organization's rate limit of {limit:,.0f} {words} "
            "per minute. Try again after the time in the retry-after header."
        )
        after = {"retry-after": str(buckets.retry_after(now, input_tokens=input_tokens))}
        kind = f"{name.replace('-', '_')}_per_minute"
        found = Problem(429, "rate_limit_error", message)
        return self.refuse(found, kind=kind, headers={**buckets.headers(now), **after})

    def reply(self, key: bytes, body: dict[str, Any], model: catalog.Model, now: float) -> replies.Reply:
        """Return the reply to a valid request, spoiled where a fault strikes it."""
        at_work = replies.Model(key, self.seed, body, model)
        reply = at_work.reply(self._written)
        struck = self.struck(IN_REPLY, key, 0, now)  # try 0: the same at every try
        return reply if struck is None else at_work.spoiled(struck, reply)

    def message(
        self, body: dict[str, Any], model: catalog.Model, reply: replies.Reply, shares: Shares, tier: str
    ) -> dict[str, Any]:
        """Return the Message that answers a request."""
        name = self.next_id("msg")
        diagnostics = self._diagnosis(body, name, shares)
        return wire.message(name, model.snapshot, reply, shares, tier, diagnostics)

    def _diagnosis(self, body: dict[str, Any], name: str, shares: Shares) -> dict[str, Any] | None:
        """Return why the prompt cache missed what an earlier message had, where a request asks for it."""
        asked = body.get("diagnostics")
        if not asked:
            return None
        parts: dict[str, Any] = {"model": [body["model"], body.get("speed")]}
        parts |= {part: body.get(part) for part in ("system", "tools", "messages")}
        parts["unavailable"] = [body.get(part) for part in ("thinking", "tool_choice", "output_config")]
        self._diagnosed[name] = parts
        while len(self._diagnosed) > MOST_DIAGNOSED:
            del self._diagnosed[next(iter(self._diagnosed))]
        previous = asked.get("previous_message_id")
        if previous is None:
            return None
        if previous not in self._diagnosed:
            return {"cache_miss_reason": {"type": "previous_message_not_found"}}
        before = self._diagnosed[previous]
        same = {**parts, "messages": parts["messages"][: len(before["messages"])]}
        changed = next((part for part in parts if same[part] != before[part]), None)
        if changed is None:
            return None
        missed = {"cache_missed_input_tokens": shares.limited_input_tokens}
        reason = {"type": changed} if changed == "unavailable" else {"type": f"{changed}_changed", **missed}
        return {"cache_miss_reason": reason}

    def finish(self, now: float, admission: Admission) -> Answer:
        """Return the answer to an admitted call whose reply is complete at `now`; bills it."""
        self.settle(now, admission)
        headers, body, fault = (
            self.headers(now, admission),
            wire.json_bytes(admission.message),
            admission.fault,
        )
        if fault == "not_json":
            return Answer(200, headers, b"upstream said: " + body[: len(body) // 3])
        return Answer(200, headers, body, "drop" if fault == "drop_after" else fault)

    def settle(self, now: float, admission: Admission) -> None:
        """Bill a reply, without making an answer."""
        reply = admission.reply
        self.account.ended(now, reply.output_tokens)
        self.account.bill(now, admission.model.id, "live", admission.key, admission.shares, reply)

    def headers(self, now: float, admission: Admission) -> dict[str, str]:
        """Return the headers of an answer given at `now`."""
        limits = self.buckets(admission.model, now).headers(now)
        return {**wire.MARKS, "request-id": admission.request_id, **limits}


def _read(raw: bytes | bytearray) -> dict[str, Any] | Problem:
    """Return the JSON object that `raw` is, or why it is refused."""
    if len(raw) > catalog.MESSAGE.max_bytes:
        return wire.too_large(catalog.MESSAGE.max_bytes)
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return invalid(f"The request body is not valid JSON: {error}")
    return body if isinstance(body, dict) else invalid("Input should be a valid dictionary")
