"""`limit`: pace the calls of the SDK's own client by the account's limits, and count them."""

from __future__ import annotations

import asyncio
import math
import sys
import weakref
from collections import Counter, deque
from contextlib import aclosing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import httpx2
import polars as pl

from claudescale.api import catalog, prices
from claudescale.api.answers import (
    Answer,
    StreamedMessage,
    Verdict,
    answer_of,
    is_free,
    stop_reason_of,
    usage_of,
    verdict,
)
from claudescale.api.client import Api, Wire, check_client, plain_headers
from claudescale.api.limits import BUCKETS, Limits, read_headers
from claudescale.errors import PlanError, refuse
from claudescale.pacing.pacer import Outcome, Pacer, Permit, kind_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping

    from anthropic import AsyncAnthropic

Client = TypeVar("Client", bound="AsyncAnthropic")

MOST_CALLS = 50_000
"""How many of the latest calls `Limiter.calls` keeps; the counters include all calls."""
_LIKE = "claude-haiku-5-5"
"""A model that the catalog lacks is paced like this one, in a rate group of its own."""
_OUTPUT_TOKENS = 256.0  # expected of a call before the first answer
_BASE64_TOKENS = 1_600.0  # per image or file in a request, whatever its length
_CANCELED = Answer(None, {}, b"", "canceled")
_FAILURES = {"APITimeoutError": "timeout_error", "APIConnectionError": "connection_error"}
_TEXT, _COUNT, _NUMBER = pl.String(), pl.Int64(), pl.Float64()

CALLS = pl.Schema(
    {"sent_at": pl.Datetime("us", "UTC"), "waited_seconds": _NUMBER, "seconds": _NUMBER}
    | dict.fromkeys(("model", "answering_model"), _TEXT)
    | {"status": _COUNT, "error": _TEXT, "stop_reason": _TEXT, "request_id": _TEXT}
    | dict.fromkeys(usage_of(None), _COUNT)
    | {"dollars": _NUMBER, "simulated": pl.Boolean()}
)
"""Columns of `Limiter.calls`: one row per HTTP attempt, in the order in which attempts ended.

`sent_at` is API time. `waited_seconds` is the wait for the limits before it, `seconds` the time from it to
the end of the answer.
"""
RATES = pl.Schema(
    {"rate_group": _TEXT, "bucket": _TEXT, "used_per_minute": _NUMBER, "limit_per_minute": _NUMBER}
)
"""Columns of `Limiter.rates`: one row per limit of each group of models."""


def limit(
    client: Client, *, tier: str | int | Limits = "start", concurrency: int | None = None, share: float = 1.0
) -> Client:
    """Return the client with its calls paced: each waits until the account's limits have room for it.

    It paces every ``messages.create``, ``parse`` and ``stream``, also of ``client.beta``, from your own code
    or from a framework that takes an Anthropic client. Answer headers correct the limits, and a 429 pauses
    all calls for as long as it says. The SDK still retries. Batches, token counting and free calls pass
    through. A run has its own pacer and removes this one. ``cs.watch(claude)`` follows the calls.

    Spends: nothing.

    Parameters
    ----------
    client : AsyncAnthropic
        From `connect`, or your own; its middleware stays. The returned client shares its connections.
    tier : str, int or Limits
        The tier or the limits to start from, as in `plan`. Each group of models has its own.
    concurrency : int, optional
        Maximum calls in flight, over all models. The default is as many as the API sustains.
    share : float
        The fraction of the limits to use.

    Raises
    ------
    PlanError
        The client cannot be used, or an option is not valid.

    Notes
    -----
    A streamed answer counts as in flight until it is read to the end or closed: read it in ``async with``.
    The client may be used on several event loops in turn, but not on two at once.

    Examples
    --------
    ::

        claude = cs.limit(cs.connect(), tier="start", concurrency=10)
        message = await claude.messages.create(model="claude-haiku-5-5", max_tokens=100, messages=[...])
    """
    if any(kind.__name__ == "SyncAPIClient" for kind in type(client).__mro__):
        name = type(client).__name__
        refuse(
            f"The client is {name}, which blocks while it waits; calls are paced on an event loop. Type "
            f"claude = cs.limit(Async{name}(...)), then await claude.messages.create(...)."
        )
    check_client(client)
    Limits.of(tier, _LIKE).shared(share)
    if concurrency is not None and (isinstance(concurrency, bool) or concurrency < 1):
        refuse(f"concurrency={concurrency!r}: it is the most calls in flight, 1 or more.")
    bare = unlimited(client)
    return bare.with_middleware(Limiter(bare, tier=tier, concurrency=concurrency, share=share))


def unlimited(client: Client) -> Client:
    """Return a client without the middleware of `limit`; the same client if it has none."""
    others = [middleware for middleware in client.middleware if not isinstance(middleware, Limiter)]
    return client if len(others) == len(client.middleware) else client.copy(middleware=others)


def limiter_of(client: object) -> Limiter | None:
    """Return the limiter of a client's calls; None if it has none."""
    middlewares = getattr(client, "middleware", ())
    return next((middleware for middleware in middlewares if isinstance(middleware, Limiter)), None)


class _Model(NamedTuple):
    """The pacer and the price of one model; models of one group share a pacer."""

    name: str
    pacer: Pacer
    characters_per_token: float
    price: prices.Price | None


@dataclass(eq=False, slots=True)
class _Call:
    """One HTTP attempt, from its permit until it ends, exactly once."""

    model: _Model
    permit: Permit
    waited_seconds: float
    slots: asyncio.Semaphore


class Limiter:
    """The middleware of `limit`: it paces calls and counts them.

    Attributes
    ----------
    requests, answered : int
        HTTP attempts that have ended, and how many of them were answered.
    errors : Counter
        The other attempts by the API's error type: refusals are ``"rate_limit_error"``.
    waiting : int
        Calls that are waiting for the limits.
    under_way : set
        Calls that were sent and have not ended.
    dollars : float
        Cost of all attempts.
    api : Api or None
        The API that answers; None before the first call.
    """

    def __init__(
        self, client: AsyncAnthropic, *, tier: str | int | Limits, concurrency: int | None, share: float
    ) -> None:
        self.requests = self.answered = self.waiting = 0
        self.dollars = 0.0
        self.errors: Counter[str] = Counter()
        self.under_way: set[_Call] = set()
        self.api: Api | None = None
        self._client, self._tier, self._concurrency, self._share = client, tier, concurrency, share
        self._calls: deque[list[Any]] = deque(maxlen=MOST_CALLS)
        self._models: dict[str, _Model] = {}  # by name
        self._pacers: dict[str, Pacer] = {}  # by group of models
        self._loop: asyncio.AbstractEventLoop | None = None
        self._asking: asyncio.Lock
        self._slots: asyncio.Semaphore

    # for watchers

    @property
    def calls(self) -> pl.DataFrame:
        """The latest calls that have ended, at most `MOST_CALLS`: schema `CALLS`."""
        return pl.DataFrame(list(self._calls), CALLS, orient="row")

    @property
    def rates(self) -> pl.DataFrame:
        """Use of each limit by the calls that ended in the last API minute: schema `RATES`."""
        now = self.api.clock.now() if self.api else datetime.now(UTC)
        ended = pl.col("sent_at") + pl.duration(microseconds=pl.col("seconds") * 1e6)
        recent = self.calls.filter(ended > now - timedelta(minutes=1))
        rows: list[tuple[str, str, float, float]] = []
        for group, pacer in self._pacers.items():
            models = [model.name for model in self._models.values() if model.pacer is pacer]
            of_group = recent.filter(pl.col("model").is_in(models))
            used = of_group.select(pl.len(), prices.UNCACHED.sum(), pl.col("output_tokens").sum())
            limits = pacer.limits.shared(self._share).per_minute
            rows += zip([group] * 3, BUCKETS, used.row(0), limits, strict=True)
        return pl.DataFrame(rows, RATES, orient="row")

    # the middleware

    async def __call__(self, request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        """Send one HTTP attempt once the limits have room for it. Spends: the cost of the attempt."""
        path = request.url.partition("?")[0].rstrip("/")
        if request.method.lower() != "post" or not path.endswith("/v1/messages"):
            return await call_next(request)
        call = await self._admitted(request.json if isinstance(request.json, dict) else {})
        content = b""
        try:
            response = await call_next(request)
            http: httpx2.Response = response.http_response
            is_over = http.is_closed or not http.is_success
            if is_over:
                with suppress(httpx2.HTTPError, httpx2.StreamError):  # the body of an error may break off
                    content = await http.aread()
        except BaseException as error:
            names = [kind.__name__ for kind in type(error).__mro__]
            failure = next((_FAILURES[name] for name in names if name in _FAILURES), "canceled")
            self._end(call, _CANCELED._replace(failure=failure))
            raise
        if is_over:
            self._end(call, Answer(http.status_code, plain_headers(http), content))
        else:
            self._follow(call, http)
        return response

    async def _admitted(self, body: dict[str, Any]) -> _Call:
        """Wait for a permit and return the call that holds it until it ends."""
        self.waiting += 1
        try:
            api = await self._opened()
            model, slots = self._model(str(body.get("model")), body.get("max_tokens"), api), self._slots
            asked = api.clock.seconds()
            await slots.acquire()
            try:
                permit = await model.pacer.acquire(_characters(body) / model.characters_per_token)
            except BaseException:
                slots.release()
                raise
        finally:
            self.waiting -= 1
        call = _Call(model, permit, permit.sent - asked, slots)
        self.under_way.add(call)
        return call

    async def _opened(self) -> Api:
        """Return the API that answers, asked once, and make all waiting happen on the running event loop."""
        loop, before = asyncio.get_running_loop(), self._loop
        if loop is not before:
            if self.under_way and before is not None and not before.is_closed():
                msg = "This client has calls under way on another event loop. Give each loop its own client."
                raise RuntimeError(msg)
            for call in list(self.under_way):  # their loop is closed: nothing can read them
                self._end(call, _CANCELED)
            self._loop, self._asking = loop, asyncio.Lock()
            self._slots = asyncio.Semaphore(self._concurrency or sys.maxsize)
            for pacer in self._pacers.values():
                pacer.move()
        async with self._asking:
            if self.api is None:
                wire = Wire(self._client)
                try:
                    self.api = await wire.api()
                finally:
                    await wire.close()
        return self.api

    def _model(self, name: str, max_tokens: Any, api: Api) -> _Model:
        if name not in self._models:
            facts, group, price = catalog.model(_LIKE), name, None
            limits = Limits.of(self._tier, facts)
            with suppress(PlanError):  # a gateway's name, a retired model, an unpublished limit
                facts = catalog.model(name)
                group = facts.rate_group
                price = prices.price(facts, at=api.clock.now())
                limits = Limits.of(self._tier, facts)
            if group not in self._pacers:
                output = min(_OUTPUT_TOKENS, max_tokens if isinstance(max_tokens, int) else math.inf)
                pacer = Pacer(limits, clock=api.clock, share=self._share, output_tokens=output)
                self._pacers[group] = pacer
            self._models[name] = _Model(name, self._pacers[group], facts.characters_per_token, price)
        return self._models[name]

    def _follow(self, call: _Call, http: httpx2.Response) -> None:
        """End the call when its body was read, breaks off or is closed; pass chunks on as they arrive."""
        message, headers = StreamedMessage(), plain_headers(http)
        read, close, is_reading = http.aiter_bytes, http.aclose, False

        async def aiter_bytes(chunk_size: int | None = None) -> AsyncGenerator[bytes, None]:
            nonlocal is_reading
            async with aclosing(read(chunk_size)) as chunks:
                is_reading = True
                async for chunk in chunks:
                    message.feed(chunk)  # first: a reader that stops at this chunk has received it
                    is_reading = False
                    yield chunk
                    is_reading = True

        async def aclose() -> None:  # httpx calls it whenever a body ends, also on an error
            if call in self.under_way:
                answer = message.answer(headers)
                by_caller = isinstance(sys.exception(), asyncio.CancelledError | GeneratorExit)
                if answer.status is None and (by_caller or not is_reading):
                    answer = answer._replace(failure="canceled")
                self._end(call, answer)
            await close()

        # Here the SDK reads decoded bytes; the raw ones below may be compressed.
        http.aiter_bytes, http.aclose = aiter_bytes, aclose  # type: ignore[method-assign]
        # A stream that is neither read nor closed ends when it is garbage-collected, on any thread.
        loop = asyncio.get_running_loop()
        weakref.finalize(http, self._dropped, call, loop).atexit = False

    def _dropped(self, call: _Call, loop: asyncio.AbstractEventLoop) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._end, call, _CANCELED)

    def _end(self, call: _Call, answer: Answer) -> None:
        """Settle the permit of a call with its outcome, and count the call, once."""
        assert self.api is not None
        if call not in self.under_way:
            return
        self.under_way.remove(call)
        call.slots.release()
        is_canceled = answer.failure == "canceled"
        meaning = Verdict(outcome="failed", error="canceled") if is_canceled else verdict(answer)
        message = meaning.reply or answer.partial
        usage, facts = usage_of(message), answer_of(message)
        call.model.pacer.settle(call.permit, _outcome(call, answer, meaning, message, usage))
        error = None if meaning.outcome == "answered" else meaning.error
        dollars, price = 0.0, call.model.price
        if message is not None and not is_free(message):
            dollars = math.nan if price is None else prices.answer_dollars(price, usage, facts)
        self.requests += 1
        self.dollars += dollars
        if error is None:
            self.answered += 1
        else:
            self.errors[error] += 1
        row = {
            "sent_at": datetime.fromtimestamp(call.permit.sent, UTC),
            "waited_seconds": call.waited_seconds,
            "seconds": self.api.clock.seconds() - call.permit.sent,
            "model": call.model.name,
            "status": answer.status,
            "error": error,
            "stop_reason": stop_reason_of(message or {}),
            "request_id": answer.headers.get("request-id"),
            "dollars": dollars,
            "simulated": self.api.simulated,
        }
        row |= usage | facts
        self._calls.append([row[name] for name in CALLS])


def _outcome(
    call: _Call,
    answer: Answer,
    meaning: Verdict,
    message: Mapping[str, Any] | None,
    usage: Mapping[str, int],
) -> Outcome:
    """Return the outcome of an ended call, for the pacer."""
    is_canceled = answer.failure == "canceled"
    kind = kind_of(meaning, answer.status)
    input_tokens = float(sum(usage[name] for name in prices.UNCACHED_COLUMNS))
    output_tokens = float(usage["output_tokens"])
    if message is not None and (is_canceled or (kind == "answered" and meaning.unseen)):
        # Its usage is unknown, but it is not zero.
        kind, input_tokens = "answered", input_tokens or call.permit.estimate
        output_tokens = max(output_tokens, call.model.pacer.expected_output_tokens)
    readings = read_headers(answer.headers)
    return Outcome(kind, readings, input_tokens, output_tokens, typical=not is_canceled)


def _characters(part: Any) -> float:
    """Return the number of characters of text in a request body, without field names."""
    match part:
        case str():
            return len(part)
        case {"type": "base64"}:
            return _BASE64_TOKENS * catalog.model(_LIKE).characters_per_token
        case dict():
            return sum(map(_characters, part.values()))
        case list() | tuple():
            return sum(map(_characters, part))
    return 0.0
