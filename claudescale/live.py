"""Rows to replies over the Messages API, retried in this one place.

`verdict` decides, `Wire` sends one request, `Live` keeps as many under way as the pacer lets go. The
SDK itself never retries here.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from claudescale.clock import Clock
from claudescale.limits import read_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from anthropic import AsyncAnthropic

    from claudescale.bills import Price
    from claudescale.ledger import Attempt
    from claudescale.pacing import Pacer

MOST_TRIES = 8
"""Of one row, refusals for the limits not counted."""
MOST_REFUSALS = 100
"""Of one row by the limits: past it something is wrong that waiting does not mend."""
HOPELESS_ROWS = 10
"""Rows the API turned down before it answered any: the request is wrong, not the row."""
SILENT_SECONDS = 300.0
"""How long nothing may be answered while connections fail."""
LONGEST_BACKOFF_SECONDS = 60.0

_STOPPING = {
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
}
_RETRIED = {408, 409, 429}
_SPEND_CODES = {"enforced_spend_limit_reached", "contract_spend_limit_reached"}
_SPEND_WORDS = "You have reached your specified"
_LOOPBACK = {"127.0.0.1", "localhost", "::1"}


class Row(NamedTuple):
    """One request to make: its key, its body as JSON bytes, the estimate of its uncached input tokens."""

    key: str
    body: bytes
    input_tokens: float


class Answer(NamedTuple):
    """What came back for one request; `status` is None where no answer came."""

    status: int | None
    headers: Mapping[str, str]
    content: bytes
    failure: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What an answer means for its row.

    Attributes
    ----------
    outcome : str
        ``"answered"`` (paid for), ``"failed"`` (no retry can mend it), ``"refused"`` (the limits),
        ``"overloaded"`` (try again, fewer at once), ``"again"`` (try again), ``"stop"`` (the whole run).
    error, message : str or None
        The API's error type, and its words.
    reply : dict or None
        The Message, where there is one.
    """

    outcome: str
    error: str | None = None
    message: str | None = None
    reply: dict[str, Any] | None = None


def verdict(answer: Answer) -> Verdict:
    """Decide what an answer means; the only place that knows which errors are worth a retry.

    Notes
    -----
    Source: Anthropic, *Errors* and *Rate limits* (checked 2026-10-08), and the SDK's own list of what
    it retries. A spend limit comes as a 429 or a 400 and lasts for days: it ends the run.
    """
    if answer.status is None:
        return Verdict(outcome="overloaded", error=answer.failure, message="no answer came")
    body = _json(answer.content)
    if answer.status == 200:  # noqa: PLR2004 - HTTP's own number
        return _verdict_on_message(body)
    error, message, code = _error(body)
    error = error or _STOPPING.get(answer.status, f"http_{answer.status}")
    if answer.status in _STOPPING:
        return Verdict(outcome="stop", error=error, message=message)
    if code in _SPEND_CODES or message.startswith(_SPEND_WORDS):
        return Verdict(outcome="stop", error=code or "spend_limit_reached", message=message)
    told = answer.headers.get("x-should-retry")
    if told == "false" or (answer.status not in _RETRIED and answer.status < 500 and told != "true"):  # noqa: PLR2004
        return Verdict(outcome="failed", error=error, message=message)
    if answer.status == 429:  # noqa: PLR2004
        return Verdict(outcome="refused", error=code or error, message=message)
    outcome = "overloaded" if answer.status >= 500 else "again"  # noqa: PLR2004
    return Verdict(outcome=outcome, error=error, message=message)


def _verdict_on_message(body: dict[str, Any]) -> Verdict:
    usage = body.get("usage")
    if not isinstance(usage, dict) or not isinstance(body.get("content"), list):
        return Verdict(outcome="again", error="invalid_response", message="the answer is no Message")
    stop_reason = body.get("stop_reason")
    if stop_reason in {"refusal", "max_tokens", "model_context_window_exceeded", "pause_turn", "tool_use"}:
        return Verdict(outcome="answered", error=stop_reason, reply=body)
    return Verdict(outcome="answered", error=None if text_of(body) else "empty_reply", reply=body)


def text_of(message: Mapping[str, Any]) -> str | None:
    """Return the text blocks of a Message, joined; None where it has none."""
    texts = [
        block["text"] for block in message["content"] if block.get("type") == "text" and block.get("text")
    ]
    return "".join(texts) or None


def _json(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _error(body: dict[str, Any]) -> tuple[str | None, str, str | None]:
    """Return the type, the words and the code of an error body, whatever it is."""
    error = body.get("error")
    if not isinstance(error, dict):
        return None, "", None
    details = error.get("details")
    code = details.get("error_code") if isinstance(details, dict) else None
    return error.get("type"), str(error.get("message") or ""), code


def usage_of(message: Mapping[str, Any]) -> dict[str, int]:
    """Return the token counts of a Message under the ledger's names; nothing is counted twice."""
    usage = message["usage"]
    written = usage.get("cache_creation") or {}
    hour = written.get("ephemeral_1h_input_tokens") or 0
    return {
        "input_tokens": usage.get("input_tokens") or 0,
        "cache_write_5m_input_tokens": (usage.get("cache_creation_input_tokens") or 0) - hour,
        "cache_write_1h_input_tokens": hour,
        "cache_read_input_tokens": usage.get("cache_read_input_tokens") or 0,
        "output_tokens": usage.get("output_tokens") or 0,
        "thinking_tokens": (usage.get("output_tokens_details") or {}).get("thinking_tokens") or 0,
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """Which API answers: part of every row's key, so that a simulated reply is never a real one."""

    name: str
    simulated: bool
    clock: Clock


class Wire:
    """Sends one request at a time over a copy of a client, bound to the loop it is first used on.

    Spends: tokens.

    Parameters
    ----------
    client : AsyncAnthropic
        Whose key, address and headers are used. Its own transport is not: a client works on one loop only.
    max_tokens : int
        Longest reply; very long ones get more than the SDK's ten minutes.
    """

    def __init__(self, client: AsyncAnthropic, max_tokens: int = 1024) -> None:
        import anthropic  # noqa: PLC0415 - slow to import

        loopback = client.base_url.host in _LOOPBACK
        self._client = client.copy(
            http_client=anthropic.DefaultAioHttpClient(trust_env=not loopback), max_retries=0
        )
        self._loopback = loopback
        self._timeout_seconds = max(600.0, max_tokens * 3600 / 128_000)
        self._errors = (anthropic.APIStatusError, anthropic.APITimeoutError, anthropic.APIConnectionError)
        self._options: dict[str, Any] = {
            "headers": {"content-type": "application/json"},
            "span_name": "anthropic.messages.create",
            "span_route": "/v1/messages",
        }

    async def api(self) -> Api:
        """Return which API answers there: one free request, and only to this machine itself.

        Spends: nothing.
        """
        import httpx2  # noqa: PLC0415 - comes with anthropic

        host = urlsplit(str(self._client.base_url)).netloc
        if self._loopback:
            try:
                response = await self._client.get(
                    "/simulator", cast_to=httpx2.Response, options={"timeout": 10.0}
                )
            except self._errors:
                return Api(name=host, simulated=False, clock=Clock())
            about = _json(response.content)
            if about.get("simulator") == "claudescale":
                clock = Clock(float(about["speed"]), float(about["now"]))
                self._timeout_seconds = max(clock.real(self._timeout_seconds), 10.0)
                return Api(name=f"simulator seed={about.get('seed')}", simulated=True, clock=clock)
        return Api(name=host, simulated=False, clock=Clock())

    async def send(self, body: bytes) -> Answer:
        """Return what came back for one body, whatever it is.

        Spends: tokens.
        """
        import httpx2  # noqa: PLC0415 - comes with anthropic

        status_error, timeout_error, connection_error = self._errors
        try:
            response = await self._client.post(
                "/v1/messages",
                content=body,
                cast_to=httpx2.Response,
                options={**self._options, "timeout": self._timeout_seconds},  # type: ignore[typeddict-unknown-key, typeddict-item]
            )
        except status_error as error:
            return Answer(error.status_code, error.response.headers, error.response.content)
        except timeout_error:
            return Answer(None, {}, b"", "timeout_error")
        except (connection_error, httpx2.HTTPError):
            return Answer(None, {}, b"", "connection_error")
        return Answer(response.status_code, response.headers, response.content)

    async def close(self) -> None:
        """Close the copy's connections; the client it was made from is untouched."""
        await self._client.close()


class Live:
    """Answers rows over the Messages API: bounded workers that pull from one iterator.

    Spends: tokens.

    Parameters
    ----------
    send : callable
        Takes a body, gives an `Answer`: `Wire.send`.
    pacer : Pacer
        Who may go now.
    clock : Clock
        API time.
    record : callable
        Takes every attempt and whether it ends its row.
    price : Price
        Of the model.
    describe : dict
        The columns of an attempt that are the same for all: run, model, simulated.
    budget_dollars : float, optional
        Nothing is sent once what was spent and the worst case of what is in flight reach it.
    worst_dollars : callable
        Takes a row, gives the most it can cost.
    warm : bool
        Send one row alone first, so that the others find its prefix in the cache.
    seed : int
        Of the jitter between tries.
    """

    def __init__(
        self,
        *,
        send: Callable[[bytes], Any],
        pacer: Pacer,
        clock: Clock,
        record: Callable[[Attempt, bool], None],
        price: Price,
        describe: Mapping[str, Any],
        worst_dollars: Callable[[Row], float],
        budget_dollars: float | None = None,
        warm: bool = False,
        seed: int = 0,
    ) -> None:
        self.pacer = pacer
        self.dollars = 0.0
        self.stopped_by: Verdict | None = None
        self._send = send
        self._clock = clock
        self._record = record
        self._price = price
        self._describe = dict(describe)
        self._budget = budget_dollars
        self._worst_dollars = worst_dollars
        self._reserved_dollars = 0.0
        self._warm = warm
        self._random = random.Random(seed)  # noqa: S311 - jitter, not a secret
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._pull = asyncio.Lock()
        self._settled = asyncio.Event()
        self._workers: set[asyncio.Task[None]] = set()
        self._answered = 0
        self._turned_down = 0
        self._last_answer_at = clock.seconds()

    def stop(self) -> None:
        """Send nothing more; what is in flight is awaited, for it is paid for.

        Spends: nothing.
        """
        self._stopping.set()
        self._settled.set()

    def stop_soon(self) -> None:
        """Do the same from another thread."""
        self._loop.call_soon_threadsafe(self.stop)

    async def answer(self, rows: AsyncIterator[Row]) -> None:
        """Return when every row has its answer, or the run was stopped (`stopped_by` says why)."""
        self._rows = rows
        self._spawn()
        try:
            while self._workers:
                done, _ = await asyncio.wait(self._workers, return_when=asyncio.FIRST_COMPLETED)
                self._workers -= done
                for task in done:
                    task.result()
        finally:
            self.stop()
            for task in self._workers:
                task.cancel()
            await asyncio.gather(*self._workers, return_exceptions=True)

    def _spawn(self) -> None:
        """One more worker, while one more call could be under way."""
        warming = self._warm and not self._answered and self._workers
        if len(self._workers) < self.pacer.window and not warming and not self._stopping.is_set():
            self._workers.add(asyncio.create_task(self._work()))

    async def _work(self) -> None:
        while (row := await self._next()) is not None:
            worst = self._worst_dollars(row)
            if not await self._afford(worst):
                return
            try:
                await self._answer_row(row)
            finally:
                self._reserved_dollars -= worst
                self._settled.set()

    async def _next(self) -> Row | None:
        async with self._pull:
            if self._stopping.is_set():
                return None
            return await anext(self._rows, None)

    async def _afford(self, worst: float) -> bool:
        """Set the worst case aside; wait for what is in flight where there is not enough left."""
        while self._budget is not None and self.dollars + self._reserved_dollars + worst > self._budget:
            if self._reserved_dollars <= 0 or self._stopping.is_set():
                self.stopped_by = self.stopped_by or Verdict(outcome="stop", error="budget")
                self.stop()
                return False
            self._settled.clear()
            await self._settled.wait()
        self._reserved_dollars += worst
        return True

    async def _answer_row(self, row: Row) -> None:
        """Try a row until it is answered, fails for good, or the run stops."""
        tries = refusals = 0
        while not self._stopping.is_set():
            permit = await self.pacer.acquire(row.input_tokens)
            if self._stopping.is_set():
                self.pacer.fail(permit, read_headers({}))
                return
            self._spawn()
            found = await self._attempt(
                row, permit, last=tries + 1 >= MOST_TRIES or refusals >= MOST_REFUSALS
            )
            if found.outcome == "refused":
                refusals += 1
            else:
                tries += 1
            if (
                found.outcome in {"answered", "failed", "stop"}
                or tries >= MOST_TRIES
                or refusals > MOST_REFUSALS
            ):
                return
            if found.outcome != "refused":
                await self._back_off(tries)

    async def _attempt(self, row: Row, permit: Any, *, last: bool) -> Verdict:
        """Send once, settle with the pacer, record."""
        sent = self._clock.seconds()
        try:
            answer = await self._send(row.body)
        except BaseException:
            self.pacer.fail(permit, read_headers({}))
            raise
        found = verdict(answer)
        usage = usage_of(found.reply) if found.reply else dict.fromkeys(_NO_USAGE, 0)
        self._tell_pacer(permit, found, usage, answer.headers)
        billed = self._price.dollars(**{name: usage[name] for name in _PRICED}) if found.reply else 0.0
        self.dollars += billed
        self._watch(found, last=last)
        self._record(
            self._attempt_of(row, answer, found, usage, sent, billed),
            found.outcome in {"answered", "failed"},
        )
        return found

    def _tell_pacer(
        self, permit: Any, found: Verdict, usage: dict[str, int], headers: Mapping[str, str]
    ) -> None:
        readings = read_headers(headers)
        if found.outcome == "answered":
            written = usage["cache_write_5m_input_tokens"] + usage["cache_write_1h_input_tokens"]
            uncached = usage["input_tokens"] + written
            self.pacer.settle(
                permit, input_tokens=uncached, output_tokens=usage["output_tokens"], readings=readings
            )
        elif found.outcome == "refused":
            self.pacer.refuse(permit, readings)
        elif found.outcome == "overloaded":
            self.pacer.overload(permit, readings)
        else:
            self.pacer.fail(permit, readings)

    def _watch(self, found: Verdict, *, last: bool) -> None:
        """Notice what concerns the run and not the row alone."""
        now = self._clock.seconds()
        if found.outcome == "answered":
            self._answered += 1
            self._last_answer_at = now
            return
        self._turned_down += found.outcome == "failed"
        hopeless = not self._answered and self._turned_down >= HOPELESS_ROWS
        silent = last and found.outcome == "overloaded" and now - self._last_answer_at > SILENT_SECONDS
        if found.outcome == "stop" or hopeless or silent:
            self.stopped_by = self.stopped_by or found
            self.stop()

    def _attempt_of(
        self, row: Row, answer: Answer, found: Verdict, usage: dict[str, int], sent: float, dollars: float
    ) -> Attempt:
        from claudescale.ledger import Attempt  # noqa: PLC0415 - here for the type alone at the top

        reply = found.reply or {}
        return Attempt(
            key=row.key,
            mode="live",
            batch_id=None,
            sent_at=sent,
            seconds=self._clock.seconds() - sent,
            status=answer.status,
            error=found.error,
            message=found.message,
            request_id=answer.headers.get("request-id"),
            stop_reason=reply.get("stop_reason"),
            reply=text_of(reply) if reply else None,
            dollars=dollars,
            **usage,
            **self._describe,
        )

    async def _back_off(self, tries: int) -> None:
        """Wait twice as long after each failure, with full jitter, or until the run stops."""
        seconds = min(2.0 ** (tries - 1), LONGEST_BACKOFF_SECONDS) * self._random.uniform(0.5, 1.0)
        try:
            async with asyncio.timeout(self._clock.real(seconds)):
                await self._stopping.wait()
        except TimeoutError:
            return


_PRICED = (
    "input_tokens",
    "cache_write_5m_input_tokens",
    "cache_write_1h_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
)
_NO_USAGE = (*_PRICED, "thinking_tokens")
