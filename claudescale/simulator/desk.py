"""The desk: decides each call to the Messages API, without any input, output or clock of its own.

Time is passed in, as API seconds since 1970. `Desk.admit` decides when a call arrives,
`Desk.finish` when its reply is complete; whoever calls them does the waiting in between.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from claudescale.api import catalog
from claudescale.simulator import replies, wire
from claudescale.simulator.account import Account
from claudescale.simulator.buckets import Bucket, Buckets
from claudescale.simulator.checks import Problem, found_model, invalid, problem, version_problem
from claudescale.simulator.faults import ACCOUNT, AFTER, BEFORE, IN_REPLY, STATUSES, Faults
from claudescale.simulator.terms import terms
from claudescale.simulator.tokens import Measured, PromptCache, Shares, measure
from claudescale.simulator.wire import Answer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

WRONG_KEYS = ("wrong", "sk-wrong")
ORDINARY_KEYS = ("sk-ant-api",)
LIMIT_NAMES = ("requests", "input tokens", "output tokens")
RAMP_SECONDS = 5
MOST_DIAGNOSED = 1_000  # requests that are kept to say why the cache missed what they had


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """A call that was let in: its reply, and when that begins and is complete in API seconds."""

    key: bytes
    body: dict[str, Any]
    model: catalog.Model
    shares: Shares
    reply: replies.Reply
    started_at: float
    begins_at: float
    done_at: float
    request_id: str
    message_id: str
    diagnostics: dict[str, Any] | None = None
    fault: str | None = None

    def message(self) -> dict[str, Any]:
        """Return the Message that answers the call."""
        used = wire.usage(self.shares, self.reply, "standard")
        return wire.message(self.message_id, self.model, self.reply, used, self.diagnostics)


class Desk:
    """The Messages API of one account.

    Parameters
    ----------
    tier : str, int, tuple or object
        Whose limits hold; see `terms`.
    now : float
        API seconds at the start.
    seed : int
        Decides replies, latencies and faults.
    latency : float, callable or None
        API seconds of each reply; or ``latency(body, output_tokens)`` giving them; None is plausible
        ones by model, length and seed.
    faults : mapping or Faults, optional
        See `Faults`.
    written : callable, optional
        ``written(body)`` gives the text, or the JSON value, of each reply.
    bucket_seconds : float
        How many seconds of its limit a full bucket holds.
    **limits : float
        Replace single limits of the tier; see `terms`.
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
        self._began = now
        self._latency = latency
        self._written = written
        self._bucket_seconds = bucket_seconds
        self._buckets: dict[str, Buckets] = {}
        per_minute = self.terms.count_tokens_per_minute
        self._counting = Bucket(per_minute, max(1.0, per_minute * bucket_seconds / 60), now)
        self._number = 0
        self._diagnosed: dict[str, dict[str, Any]] = {}

    def buckets(self, model: catalog.Model, now: float) -> Buckets:
        """Return the token buckets that `model` draws from."""
        found = self._buckets.get(model.rate_group)
        if found is None:
            rates = self.terms.rates(model.rate_group)
            found = Buckets(*rates, bucket_seconds=self._bucket_seconds, now=now)
            self._buckets[model.rate_group] = found
        return found

    def elapsed(self, now: float) -> float:
        """Return the API seconds since the beginning."""
        return now - self._began

    def next_id(self, prefix: str) -> str:
        """Return an id that was not given before."""
        self._number += 1
        return f"{prefix}_sim{self.seed:04d}{self._number:016d}"

    def refuse(
        self,
        found: Problem,
        *,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Return the answer to a call that is not let in, and count it."""
        name = kind or found.type
        self.account.refused[name] += 1
        request_id = self.next_id("req")
        sent = {**wire.MARKS, "request-id": request_id, **(headers or {})}
        body = wire.error_body(found.type, found.message, request_id, found.details)
        return Answer(status=found.status, headers=sent, body=wire.json_bytes(body), kind=name)

    def unauthorized(self, headers: Mapping[str, str], *, admin: bool = False) -> Answer | None:
        """Return the 401 to a call without a key, or with a wrong one; the 403 where an `admin` is asked for.

        Every key but one that looks like an ordinary one (``sk-ant-api...``) may do what an admin may.
        """
        key = headers.get("x-api-key") or (headers.get("authorization") or "").removeprefix("Bearer ")
        if not key.strip():
            return self.refuse(Problem(401, "authentication_error", "x-api-key header is required"))
        if key.startswith(WRONG_KEYS):
            return self.refuse(Problem(401, "authentication_error", "invalid x-api-key"))
        if admin and key.startswith(ORDINARY_KEYS):
            return self.refuse(Problem(403, "permission_error", "This endpoint requires an Admin API key."))
        return None

    def read(self, raw: bytes, max_bytes: int = catalog.MESSAGE.max_bytes) -> dict[str, Any] | Answer:
        """Return the JSON object that `raw` is, or the refusal."""
        if len(raw) > max_bytes:
            message = "Request exceeds the maximum allowed number of bytes. "
            message += f"The maximum request size is {max_bytes} bytes."
            return self.refuse(Problem(413, "request_too_large", message))
        try:
            body = json.loads(raw)
        except (ValueError, RecursionError) as error:
            return self.refuse(invalid(f"The request body is not valid JSON: {error}"))
        if not isinstance(body, dict):
            return self.refuse(invalid("Input should be a valid dictionary"))
        return body

    def admit(
        self, now: float, body: dict[str, Any] | bytes, headers: Mapping[str, str]
    ) -> Admission | Answer:
        """Decide a call to ``POST /v1/messages`` that arrives at `now`.

        Returns
        -------
        Admission or Answer
            An admission is finished by `finish` at its `done_at`. An answer is final: the call was
            refused, or struck by a fault, and took nothing.
        """
        self.account.calls += 1
        opened = self._opened(now, body, headers)
        if isinstance(opened, Answer):
            return opened
        read, model = opened
        measured = measure(read, model)
        if measured.input_tokens > model.context_tokens:
            message = f"prompt is too long: {measured.input_tokens} tokens > {model.context_tokens} maximum"
            return self.refuse(invalid(message), headers=self.buckets(model, now).headers(now))
        return self._let_in(now, read, model, measured)

    def _opened(
        self, now: float, body: dict[str, Any] | bytes, headers: Mapping[str, str], *, counting: bool = False
    ) -> tuple[dict[str, Any], catalog.Model] | Answer:
        """Return the body and the model of a call that is in order, or the refusal."""
        refused = self.unauthorized(headers)
        if refused is not None:
            return refused
        read = self.read(body) if isinstance(body, bytes) else body
        if isinstance(read, Answer):
            return read
        wrong = version_problem(headers)
        model = found_model(read, now)
        if wrong is not None or isinstance(model, Problem):
            return self.refuse(wrong or model)  # type: ignore[arg-type]  # one of them is a Problem
        betas = headers.get("anthropic-beta", "")
        wrong = problem(read, model, headers["anthropic-version"], betas=betas, counting=counting)
        if wrong is not None:
            return self.refuse(wrong, headers=None if counting else self.buckets(model, now).headers(now))
        return read, model

    def _let_in(
        self, now: float, body: dict[str, Any], model: catalog.Model, measured: Measured
    ) -> Admission | Answer:
        key = replies.digest(self.seed, body)
        attempt = self.faults.attempt(key)
        elapsed = self.elapsed(now)
        buckets = self.buckets(model, now)
        stopped = self.stopped(now, buckets.headers(now)) if self.faults.levels else None
        if stopped is not None:
            return stopped
        struck = self.faults.strikes(BEFORE, key, attempt, elapsed)
        if struck is not None:
            return self._struck(struck, buckets.headers(now))
        if self.account.in_flight >= self.faults.levels.get("overload_above", float("inf")):
            self.account.faults["overload_above"] += 1
            return self.refuse(Problem(529, *STATUSES[529]), headers=buckets.headers(now))
        shares = self.cache.shares(now, measured, model.cache_minimum_tokens)
        if not buckets.admit(now, input_tokens=shares.limited_input_tokens):
            return self._limited(now, buckets, shares.limited_input_tokens)
        reply = self.reply(key, body, model, elapsed)
        shares = replace(shares, input_tokens=shares.input_tokens + reply.found_tokens)
        buckets.input_tokens.level -= reply.found_tokens  # the estimate at the start is corrected
        name = self.next_id("msg")
        begins, ends = self._seconds(key, body, model, reply, shares)
        self.cache.keep(now, now + begins, measured, model.cache_minimum_tokens)
        buckets.produce(now + ends, reply.output_tokens, begin=now + begins)
        self.account.began(now, shares.limited_input_tokens)
        return Admission(
            key=key,
            body=body,
            model=model,
            shares=shares,
            reply=reply,
            started_at=now,
            begins_at=now + begins,
            done_at=now + ends,
            request_id=self.next_id("req"),
            message_id=name,
            diagnostics=self.diagnosed(body, name, shares),
            fault=self.faults.strikes(AFTER, key, attempt, elapsed),
        )

    def stopped(
        self, now: float, limits: Mapping[str, str] | None = None, *, coded: bool = True
    ) -> Answer | None:
        """Return the refusal once as much was spent as the faults allow; only the Messages API has a code."""
        spent = sum(self.account.dollars.values())
        levels = self.faults.levels
        first = (datetime.fromtimestamp(now, UTC).replace(day=28) + timedelta(days=4)).replace(day=1)
        until = f"You will regain access on {first:%Y-%m-%d} at 00:00 UTC."
        if spent >= levels.get("spend_cap", float("inf")):
            threshold = "your organization has crossed its monthly API usage threshold"
            message = f"You have reached your API usage limits: {threshold}. {until}"
            code = "enforced_spend_limit_reached"
            details = {"error_code": code} if coded else None
            return self.refuse(Problem(429, "rate_limit_error", message, details), kind=code, headers=limits)
        if spent >= levels.get("workspace_spend", float("inf")):
            found = invalid(f"You have reached your specified workspace API usage limits. {until}")
            return self.refuse(found, kind="workspace_spend", headers=limits)
        return None

    def diagnosed(self, body: dict[str, Any], name: str, shares: Shares) -> dict[str, Any] | None:
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
        if asked.get("previous_message_id") is None:
            return None
        before = self._diagnosed.get(asked["previous_message_id"])
        if before is None:
            return {"cache_miss_reason": {"type": "previous_message_not_found"}}
        same = {**parts, "messages": parts["messages"][: len(before["messages"])]}
        changed = next((part for part in parts if same[part] != before[part]), None)
        missed = {"cache_missed_input_tokens": shares.limited_input_tokens}
        if changed is None:
            return None
        reason = {"type": changed} if changed == "unavailable" else {"type": f"{changed}_changed", **missed}
        return {"cache_miss_reason": reason}

    def _struck(self, kind: str, limits: Mapping[str, str]) -> Answer:
        self.account.faults[kind] += 1
        if kind in {"drop", "hang"}:
            return Answer(status=0, headers={}, body=b"", fault=kind, kind=kind)
        if kind == "html_body":
            return Answer(
                status=502, headers={"content-type": "text/html"}, body=wire.HTML.encode(), kind=kind
            )
        if kind in ACCOUNT:
            return self.refuse(Problem(400, *ACCOUNT[kind]), kind=kind, headers=limits)
        status = int(kind)
        found = Problem(status, *STATUSES[status])
        if status == 429:  # noqa: PLR2004
            code = "ramp_limit_exceeded"
            sent = {**limits, "retry-after": str(RAMP_SECONDS)}
            return self.refuse(found._replace(details={"error_code": code}), kind=code, headers=sent)
        return self.refuse(found, headers=limits)

    def _limited(self, now: float, buckets: Buckets, input_tokens: int) -> Answer:
        waits = buckets.waits(now, input_tokens=input_tokens)
        which = waits.index(max(waits))
        limit = (buckets.requests, buckets.input_tokens, buckets.output_tokens)[which].per_minute
        message = (
            f"This request would exceed your organization's rate limit of {limit:,.0f} {LIMIT_NAMES[which]} "
            "per minute. Try again after the time in the retry-after header."
        )
        sent = {
            **buckets.headers(now),
            "retry-after": str(buckets.retry_after(now, input_tokens=input_tokens)),
        }
        kind = f"{LIMIT_NAMES[which].replace(' ', '_')}_per_minute"
        return self.refuse(Problem(429, "rate_limit_error", message), kind=kind, headers=sent)

    def reply(self, key: bytes, body: dict[str, Any], model: catalog.Model, elapsed: float) -> replies.Reply:
        """Return the reply to a valid request, spoiled where a fault strikes it."""
        reply = replies.compose(key, self.seed, body, model, self._written)
        struck = self.faults.strikes(IN_REPLY, key, 0, elapsed)  # try 0: the same at every try
        if struck is None:
            return reply
        self.account.faults[struck] += 1
        return replies.spoiled(struck, reply, key, body)

    def _seconds(
        self, key: bytes, body: dict[str, Any], model: catalog.Model, reply: replies.Reply, shares: Shares
    ) -> tuple[float, float]:
        if self._latency is None:
            return replies.seconds(model, body, reply, shares.total_input_tokens, key)
        fixed = self._latency(body, reply.output_tokens) if callable(self._latency) else self._latency
        return fixed / 2, float(fixed)

    def finish(self, now: float, admission: Admission) -> Answer:
        """Return the answer to an admitted call whose reply is complete at `now`; bills it."""
        self.settle(now, admission)
        headers = self.headers(now, admission)
        body = wire.json_bytes(admission.message())
        if admission.fault is not None:
            self.account.faults[admission.fault] += 1
        if admission.fault == "not_json":
            return Answer(status=200, headers=headers, body=b"upstream said: " + body[: len(body) // 3])
        broken = {"drop_after": "drop", "truncated_body": "truncated_body"}.get(admission.fault or "")
        return Answer(status=200, headers=headers, body=body, fault=broken)

    def settle(self, now: float, admission: Admission) -> None:
        """Bill a reply, without making an answer."""
        reply = admission.reply
        self.account.ended(now, reply.output_tokens)
        self.account.bill(now, admission.model.id, "live", admission.key, admission.shares, reply)

    def headers(self, now: float, admission: Admission) -> dict[str, str]:
        """Return the headers of an answer given at `now`."""
        limits = self.buckets(admission.model, now).headers(now)
        return {**wire.MARKS, "request-id": admission.request_id, **limits}

    def count_tokens(self, now: float, raw: bytes, headers: Mapping[str, str]) -> Answer:
        """Answer ``POST /v1/messages/count_tokens``, which has a limit of its own and is free."""
        opened = self._opened(now, raw, headers, counting=True)
        if isinstance(opened, Answer):
            return opened
        body, model = opened
        wait = self._counting.wait(now, 1)
        if wait:
            message = (
                f"This request would exceed your rate limit of {self._counting.per_minute:,.0f} requests "
            )
            found = Problem(429, "rate_limit_error", message + "per minute.")
            after = {"retry-after": str(max(1, math.ceil(wait)))}
            return self.refuse(found, kind="count_tokens_per_minute", headers=after)
        self._counting.level -= 1
        return self.answer({"input_tokens": measure(body, model).input_tokens})

    def answer(self, value: Any) -> Answer:
        """Return a 200 with `value` as JSON."""
        sent = {**wire.MARKS, "request-id": self.next_id("req")}
        return Answer(status=200, headers=sent, body=wire.json_bytes(value))
