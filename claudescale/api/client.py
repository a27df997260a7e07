"""The way to the API: `connect`, and a wire of one request, one answer, whatever happens.

The SDK never retries here: a run decides that in one place.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import itertools
import json
import logging
import math
import os
import socket
import ssl
import sys
import time
import urllib.request
import warnings
import weakref
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Self, cast

import httpx2

from claudescale import loops
from claudescale.api.answers import NOT_FOLLOWED, Answer, StreamedMessage, dig, read_object, verdict
from claudescale.api.catalog import MESSAGE
from claudescale.api.limits import Limits, read_headers
from claudescale.clock import Clock
from claudescale.errors import PlanError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterator

    from anthropic import AsyncAnthropic

LOOPBACK = {"127.0.0.1", "localhost", "::1"}
"""Hosts that are this machine: only they are asked whether they are a simulator."""
CALL_SECONDS = 600.0
"""Real seconds in which an endpoint that does not write a reply should have answered."""
LONGEST_TRANSFER_SECONDS = 3_600.0
"""Real seconds that a batch, or its results, may take on their way."""

_IDLE_SECONDS = 120.0  # real ones between two events of a stream, pings among them, after which it is lost
_CONNECT_SECONDS = 10.0
_SHORTEST_TIMEOUT_SECONDS = 10.0
_HEADER_BYTES = 1 << 17  # gateways add long headers, and an answer that cannot be read is paid for
_PART_BYTES = 1 << 18
_BLOCK_BYTES = 1 << 23
_MOST_REDIRECTS = 3
_MOST_PAGES = 100
_MOST_TRIES, _MOST_UNHEARD = 8, 3  # of a free call, and of one that gets no answer at all
_SHORTEST_SECRET = 12
_MOST_SHOWN = 200
_BATCHES = "/v1/messages/batches"
_STREAMED = {"x-stainless-raw-response": "stream"}  # so the SDK leaves the body unread
_SAME_METHOD = {307, 308}  # after other redirects a POST becomes a GET, without its body
_HARMLESS = {"accept", "accept-encoding", "host", "user-agent"}
_SIMULATOR_HEADER = "claudescale-simulator"
_PROXY_407 = "the proxy wants a user name and password (407): HTTPS_PROXY=http://user:password@host:port"
_homes: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()  # the loop a user's transport is on
_simulators: list[Any] = []  # that `connect` has started: they live as long as this process
_numbers = itertools.count(1)
_log = logging.getLogger("claudescale.api")


# ------------------------------------------------------------------------------------------------- the wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Api:
    """Which API answers: part of every row's key, so that a simulated reply is never a real one."""

    name: str
    simulated: bool
    clock: Clock


class _Unshown(bytes):
    """A body that the SDK's debug log does not spell out: it is the user's text."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self):,} bytes>"


class Wire:
    """Sends requests over a copy of a client, bound to the loop it is first used on.

    Spends: tokens.

    Parameters
    ----------
    client : AsyncAnthropic
        Whose key, address, headers, hooks, time-out and middleware are used. A transport of the SDK's is
        made anew, as one works on one loop only; an ``http_client`` of the user's is used as it is.
    max_tokens : int
        Longest reply; very long ones get more than the SDK's ten minutes, and are streamed.
    timeout_seconds : float, optional
        API seconds after which a call is given up, instead of that.

    Raises
    ------
    PlanError
        The user's ``http_client`` is closed, or belongs to another event loop.
    """

    def __init__(
        self, client: AsyncAnthropic, max_tokens: int = 1024, *, timeout_seconds: float | None = None
    ) -> None:
        self._loopback = client.base_url.host in LOOPBACK
        own = _own_transport(client)
        self._made = transport(here=self._loopback) if own is None else None
        self._client = _copied(client, own or cast("httpx2.AsyncClient", self._made))
        self._given_seconds, self._connect_seconds = _time_out(client)
        self._timeout_seconds = (
            timeout_seconds or self._given_seconds or max(600.0, max_tokens * 3600 / 128_000)
        )
        self._client.timeout = self._time_outs(self._given_seconds or CALL_SECONDS)  # of free calls
        self._signs_bodies = _signs_bodies(client)
        self._streams = streams(max_tokens)
        self._traced = _is_traced(client)
        self._secrets = _secrets(client)
        self._simulated = False
        self.clock = Clock()

    async def __aenter__(self) -> Self:
        await self.api()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections that were made here; the client stays as it is, and what it signs in with."""
        if self._made is not None:
            await self._made.aclose()

    async def api(self) -> Api:
        """Return which API answers there: one free request, and only to this machine itself.

        Spends: nothing.
        """
        about = await self._about() if self._loopback else {}
        if about.get("simulator") != "claudescale":
            url = self._client.base_url
            host = url.host or type(self._client).__name__  # Google Cloud's is known at the first call
            name = f"{host}{f':{url.port}' if url.port else ''}{url.path.rstrip('/')}"
            return Api(name=name, simulated=False, clock=self.clock)
        self._simulated = True
        self.clock = Clock(float(about["speed"]), float(about["now"]))
        self._timeout_seconds = max(self.clock.real(self._timeout_seconds), _SHORTEST_TIMEOUT_SECONDS)
        if self._given_seconds is not None:
            seconds = max(self.clock.real(self._given_seconds), _SHORTEST_TIMEOUT_SECONDS)
            self._client.timeout = self._time_outs(seconds)
        return Api(name=f"simulator seed={about.get('seed')}", simulated=True, clock=self.clock)

    async def _about(self) -> dict[str, Any]:
        """Return what a simulator says of itself; nothing where there is none."""
        import anthropic  # noqa: PLC0415 - slow to import

        options: Any = {"timeout": _CONNECT_SECONDS}
        try:
            response = await self._client.get("/simulator", cast_to=httpx2.Response, options=options)
        except (anthropic.AnthropicError, TypeError):  # TypeError: no key; the first call will say so
            return {}
        return read_object(response.content)

    async def send(self, body: bytes) -> Answer:
        """Return what came back for one body of the Messages API, whatever it is.

        Spends: tokens.
        """
        seconds = self._timeout_seconds
        if not self._streams:
            return (await self._heard("message", self._post(body), seconds))[0]
        message = StreamedMessage()
        answer = await self._drained("message", self._post(body), (seconds, seconds), message.feed)
        if answer.status is None:
            return answer._replace(partial=message.so_far)
        return answer if answer.status != HTTPStatus.OK else message.answer(answer.headers)

    async def _post(self, body: bytes) -> httpx2.Response:
        """Post a body as it is; where OpenTelemetry records, by the method whose spans it knows."""
        silent = min(_IDLE_SECONDS, self._timeout_seconds) if self._streams else self._timeout_seconds
        timeout = self._time_outs(silent)
        headers = {"content-type": "application/json"}
        if self._streams:
            body = body.rstrip()[:-1] + b',"stream":true}'
            headers |= {"accept": "text/event-stream", **_STREAMED}
        if not self._traced:
            options: Any = {"headers": headers, "timeout": timeout}
            return await self._client.post(
                "/v1/messages", content=_Unshown(body), cast_to=httpx2.Response, options=options
            )
        fields = json.loads(body)
        given = {name: fields.pop(name) for name in ("model", "max_tokens", "messages")}
        raw = await self._client.messages.with_raw_response.create(
            **given, stream=fields.pop("stream", False), extra_body=fields, timeout=timeout
        )
        return cast("httpx2.Response", raw.http_response)

    async def free(self, name: str, *given: Any, **fields: Any) -> Answer:
        """Return what came back for a call of the SDK that costs nothing: ``"messages.batches.retrieve"``.

        Spends: nothing.
        """
        resource, _, method = name.rpartition(".")
        # Raw: a strict client's types would refuse what they do not know.
        call = getattr(attrgetter(resource)(self._client).with_raw_response, method)
        return (await self._heard(name, call(*given, **fields), CALL_SECONDS))[0]

    async def patiently(self, name: str, **fields: Any) -> Answer:
        """Return what came back for a free call, made again where that may help, in API time.

        The SDK's own retries sleep in real seconds: hours for a simulator whose time is fast.

        Spends: nothing.
        """
        for tries in range(1, _MOST_TRIES + 1):
            answer = await self.free(name, **fields)
            over = answer.status == HTTPStatus.OK or verdict(answer).outcome in {"stop", "failed"}
            if over or tries == _MOST_TRIES or (answer.status is None and tries == _MOST_UNHEARD):
                break
            await self.clock.sleep(read_headers(answer.headers).retry_after_seconds or 0.25 * 2**tries)
        return answer

    async def listed(self, name: str, **fields: Any) -> tuple[list[dict[str, Any]], Answer]:
        """Return every entry of one of the API's lists, and the last answer: any but a 200 ended it early.

        Spends: nothing.
        """
        entries: list[dict[str, Any]] = []
        for _ in range(_MOST_PAGES):
            answer = await self.patiently(name, **fields)
            body = read_object(answer.content)
            entries += [entry for entry in dig(list, body, "data") or [] if isinstance(entry, dict)]
            if page := dig(str, body, "next_page"):
                fields["page"] = page
            elif body.get("has_more") is True and (last := dig(str, body, "last_id")):
                fields["after_id"] = last
            else:
                break
        return entries, answer

    async def count_tokens(self, request: bytes, *, patient: bool = False) -> Answer:
        """Return what the API says of the input tokens of one request.

        Spends: nothing.
        """
        takes = inspect.signature(self._client.messages.count_tokens).parameters
        fields = {name: value for name, value in json.loads(request).items() if name in takes}
        return await (self.patiently if patient else self.free)("messages.count_tokens", **fields)

    async def upload(self, path: str, parts: AsyncIterable[bytes], length: int) -> Answer:
        """Post JSON that comes in parts, is sent as it comes, and is never held whole."""
        content: Any = parts
        if self._signs_bodies:
            content = _Unshown(b"".join([part async for part in parts]))
        headers = {"content-type": "application/json", "content-length": str(length)}
        options: Any = {"headers": headers, "timeout": self._time_outs(CALL_SECONDS)}
        request = self._client.post(path, content=content, cast_to=httpx2.Response, options=options)
        return (await self._heard("upload", request, LONGEST_TRANSFER_SECONDS))[0]

    async def stream(self, path: str, take: Callable[[bytes], Awaitable[None]]) -> Answer:
        """Pass what an endpoint sends to `take`, in blocks of whole lines, and return how it ended.

        Where the answer has no status it broke off: what was taken so far is good.

        Spends: nothing.
        """
        options: Any = {"headers": {"accept": "application/binary", **_STREAMED}}
        options["timeout"] = httpx2.Timeout(CALL_SECONDS, connect=_CONNECT_SECONDS)
        request = self._client.get(path, cast_to=httpx2.Response, options=options)
        return await self._drained("results", request, (CALL_SECONDS, LONGEST_TRANSFER_SECONDS), take)

    async def _drained(
        self,
        what: str,
        request: Awaitable[httpx2.Response],
        seconds: tuple[float, float],  # for its head, and then for its body
        take: Callable[[bytes], Awaitable[None] | None],
    ) -> Answer:
        """Return the head of an answer whose body is taken as it comes; no status where it broke off."""
        answer, response = await self._heard(what, request, seconds[0])
        if response is None:
            return answer
        try:
            async with asyncio.timeout(_ends(seconds[1])):
                if answer.status == HTTPStatus.OK:
                    blocks = response.aiter_bytes() if what == "message" else _blocks_of_lines(response)
                    async for block in blocks:
                        if (taken := take(block)) is not None:
                            await taken
        except (TimeoutError, httpx2.RequestError) as error:
            return _failed(error, self._client.base_url.host)._replace(headers=answer.headers)
        finally:
            await response.aclose()
        return answer

    async def _heard(
        self, what: str, request: Awaitable[Any], seconds: float
    ) -> tuple[Answer, httpx2.Response | None]:
        """Return what came back, whatever happens, and log it: never a text or a key."""
        import anthropic  # noqa: PLC0415 - slow to import

        number, begun = next(_numbers), time.monotonic()
        _log.debug("%s %d sent", what, number)
        response: httpx2.Response | None = None
        # RequestError: the words of an error break off, which the SDK reads by itself.
        # TypeError: there is no key. ValueError, InvalidURL: a header or an address that cannot be sent.
        unsent = (TypeError, ValueError, httpx2.InvalidURL)
        try:
            async with asyncio.timeout(_ends(seconds + self._connect_seconds)):
                raw = await request
            response = getattr(raw, "http_response", raw)
        except anthropic.APIStatusError as error:
            response = error.response
        except (anthropic.AnthropicError, httpx2.RequestError, TimeoutError, *unsent) as error:
            answer = _failed(error, self._client.base_url.host)
        if response is not None:
            answer = self._answer(response)
        if _log.isEnabledFor(logging.DEBUG):
            means = answer.failure or (verdict(answer).outcome if what == "message" else "free")
            took = time.monotonic() - begun
            _log.debug("%s %d: %s, status %s, %.3f s", what, number, means, answer.status, took)
        return answer, response

    def _answer(self, response: httpx2.Response) -> Answer:
        if response.status_code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            return Answer(None, {}, b"", "connection_error", sent=False, reason=_PROXY_407)
        # A plain dict, read once: the response's own takes 5 µs for each name that is looked up.
        headers = {
            name.decode("ascii", "replace").lower(): value.decode("latin-1")
            for name, value in response.headers.raw
        }
        if _SIMULATOR_HEADER in headers and not self._simulated:
            return Answer(None, {}, b"", "simulator_error", sent=False)
        content = response.content if response.is_closed else b""
        if response.is_error:  # a gateway's may repeat what it was sent
            for secret in self._secrets:
                content = content.replace(secret, b"...")
        return Answer(response.status_code, headers, content)

    def _time_outs(self, seconds: float) -> httpx2.Timeout:

        return httpx2.Timeout(_ends(seconds), connect=self._connect_seconds)


def _ends(seconds: float) -> float | None:
    """Return a time-out as asyncio and httpx2 take it: infinity is None."""
    return None if math.isinf(seconds) else seconds


async def _blocks_of_lines(response: httpx2.Response) -> AsyncIterator[bytes]:
    """Yield a body in blocks of whole lines. The last line of one that broke off is left out."""
    parts: list[bytes] = []
    size = 0
    async for part in response.aiter_bytes(_PART_BYTES):
        parts.append(part)
        size += len(part)
        if size < _BLOCK_BYTES:
            continue
        lines, newline, rest = b"".join(parts).rpartition(b"\n")
        if newline:
            yield lines + newline
        parts, size = [rest], len(rest) if newline else 0
    if last := b"".join(parts):
        yield last


def streams(max_tokens: int) -> bool:
    """Whether replies of up to so many tokens are streamed: a silent connection gets lost in ten minutes."""
    return max_tokens > MESSAGE.nonstreaming_max_tokens


# --------------------------------------------------------------------------------------- the batch endpoints


class BatchWire:
    """The endpoints of Message Batches, paced to a limit of their own: free, but for what a batch answers.

    Parameters
    ----------
    wire : Wire
        What sends.
    clock : Clock
        API time.
    requests_per_minute : float
        Calls to all of these endpoints together.
    """

    def __init__(self, wire: Wire, clock: Clock, requests_per_minute: float) -> None:
        self._wire, self._clock = wire, clock
        self._gap_seconds, self._next_at, self._lock = 60.0 / requests_per_minute, 0.0, asyncio.Lock()

    async def _turn(self) -> None:
        async with self._lock:
            now = self._clock.seconds()
            await self._clock.sleep(self._next_at - now)
            self._next_at = max(self._next_at, now) + self._gap_seconds

    async def _free(self, name: str, *given: Any, **fields: Any) -> Answer:
        await self._turn()
        return await self._wire.free(f"messages.batches.{name}", *given, **fields)

    async def check(self, request: bytes) -> Answer:
        """Return what the API says of one request: it counts its tokens, which costs nothing.

        The rows of a batch are looked at only when they are worked off; a mistake would show hours later.
        """
        return await self._wire.count_tokens(request)

    async def message(self, request: bytes) -> Answer:
        """Send one request live. Spends: what it costs."""
        return await self._wire.send(request)

    async def create(self, parts: AsyncIterable[bytes], length: int) -> Answer:
        """Post a batch, once: its answer may be lost and the batch made. Spends: half its rows' price."""
        await self._turn()
        return await self._wire.upload(_BATCHES, parts, length)

    async def retrieve(self, batch_id: str) -> Answer:
        """Return the answer that shows one batch."""
        return await self._free("retrieve", batch_id)

    async def page(self, limit: int, after_id: str | None = None) -> Answer:
        """Return the answer that shows the newest batches, or those after one."""
        after = {"after_id": after_id} if after_id else {}
        return await self._free("list", limit=limit, **after)

    async def cancel(self, batch_id: str) -> Answer:
        """Ask for the end of a batch; what is under way in it may still be answered and paid for."""
        return await self._free("cancel", batch_id)

    async def delete(self, batch_id: str) -> Answer:
        """Delete a batch that has ended, with its results."""
        return await self._free("delete", batch_id)

    async def results(self, batch_id: str, take: Callable[[bytes], Awaitable[None]]) -> Answer:
        """Pass the result lines to `take` in blocks; see `Wire.stream`."""
        await self._turn()
        return await self._wire.stream(f"{_BATCHES}/{batch_id}/results", take)

    async def first_lines(self, batch_id: str) -> bytes | None:
        """Return the first block of a batch's result lines; None where they cannot be read now."""
        first: list[bytes] = []

        async def take(block: bytes) -> None:
            first.append(block)
            raise _Enough

        with suppress(_Enough):
            await self.results(batch_id, take)
        return first[0] if first else None


class _Enough(Exception):
    """The first lines were read."""


class Parts:
    """A body that is rendered part by part in a thread, while the loop runs. Iterating begins anew."""

    def __init__(self, render: Callable[[], Iterator[bytes]]) -> None:
        self._render = render

    async def __aiter__(self) -> AsyncIterator[bytes]:
        rendered = self._render()
        while (part := await loops.in_thread(next, rendered, None)) is not None:
            yield part


def listed(answer: Answer) -> list[dict[str, Any]]:
    """Return the batches that a page shows."""
    shown = dig(list, read_object(answer.content), "data") or []
    return [batch for batch in shown if isinstance(batch, dict)]


async def account_limits(client: AsyncAnthropic, known: Limits, model: str) -> Limits:
    """Return limits as the rate-limit API has them for an account and a model, else as they are known.

    Spends: nothing.

    Raises
    ------
    PlanError
        The API cannot be reached, or fails.
    """
    async with Wire(client) as wire:
        entries, answer = await wire.listed("organization.rate_limits.list")
    if answer.status == HTTPStatus.OK:
        return known.updated(entries, model)
    if answer.status is not None and verdict(answer).outcome in {"stop", "failed"}:
        return known.updated(None, model)  # the key may not ask
    raise unasked(answer, "limits")


def unasked(answer: Answer, subject: str) -> PlanError:
    """Return the error that says why a free call has no answer."""
    why = verdict(answer)
    msg = f"The API cannot be asked for its {subject} ({why.error}): {why.message or 'no reason given'}."
    return PlanError(f"{msg} Nothing was paid.")


# ------------------------------------------------------------------------------- why there is no answer


def _failed(error: Exception, host: str) -> Answer:
    """Return the answer that stands for none, with the innermost reason in words; no key is in them."""
    import aiohttp  # noqa: PLC0415 - comes with anthropic's transport
    import anthropic  # noqa: PLC0415 - slow to import
    import httpcore2  # noqa: PLC0415 - comes with httpx2

    chain = list(_chain(error))
    if flaw := next(filter(None, map(_unsendable, chain)), ""):
        return Answer(None, {}, b"", "unsendable_error", sent=False, reason=flaw)
    if any(isinstance(cause, httpx2.TooManyRedirects) for cause in chain):
        return Answer(None, {}, b"", "redirect_error", sent=False, reason="it goes round in a circle")
    for cause in chain:  # it may be a proxy that was called
        if isinstance(cause, aiohttp.ClientConnectorError):
            proxy = "the proxy " if isinstance(cause, aiohttp.ClientProxyConnectionError) else ""
            host = f"{proxy}{cause.host}:{cause.port}"
    reasons = (_words(cause, host) for cause in reversed(chain))
    reason = next(filter(None, reasons), type(chain[-1]).__name__)  # not its own words: they may be anything
    # No connection was made. aiohttp's transport calls a lost one httpx2.ConnectError as well.
    unsent = (httpx2.ConnectTimeout, httpx2.PoolTimeout, httpx2.ProxyError, httpcore2.ConnectError,
              aiohttp.ClientConnectorError)  # fmt: skip
    sent = not any(isinstance(cause, unsent) for cause in chain)
    if isinstance(error, anthropic.APITimeoutError | TimeoutError | httpx2.TimeoutException):
        return Answer(None, {}, b"", "timeout_error", sent=sent, reason=reason)
    if isinstance(error, anthropic.APIConnectionError | anthropic.RetryableError | httpx2.RequestError):
        return Answer(None, {}, b"", "connection_error", sent=sent, reason=reason)
    # The SDK finds no key, or none it can use: an AnthropicError, or a TypeError.
    return Answer(None, {}, b"", "authentication_error", sent=False)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from, the innermost last; not what was handled meanwhile."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        if isinstance(cause, BaseExceptionGroup):
            cause = cause.exceptions[0]
        elif type(cause).__module__.startswith("httpcore2"):  # it leaves its cause as its context
            cause = cause.__cause__ or cause.__context__
        else:
            cause = cause.__cause__


def _unsendable(cause: BaseException) -> str:
    """Return why no try can send a request, in words that show no key; nothing where one might."""
    if isinstance(cause, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
        return "base_url is no address that begins with https:// or http://"
    invalid = isinstance(cause, ValueError | httpx2.LocalProtocolError) and "header" in str(cause).lower()
    if isinstance(cause, UnicodeError) or invalid:
        return (
            "a header has a character that cannot be sent, such as a newline: look at the key, the "
            "credentials and default_headers"
        )
    return ""


def _words(cause: BaseException, host: str) -> str:  # noqa: PLR0911 - a table
    """Return what one cause means; nothing where it means nothing by itself."""
    match cause:
        case httpx2.ProxyError():
            return _PROXY_407 if "407" in str(cause) else "the proxy does not connect"
        case ssl.SSLCertVerificationError():
            why = f"the certificate of {host} is not trusted ({cause.verify_message})"
            return f"{why}: set SSL_CERT_FILE to a file of the certificates to trust"
        case ssl.SSLError():
            kind = (cause.reason or "TLS").lower().replace("_", " ")
            return f"{host} does not speak TLS ({kind}): is it http:// instead of https://?"
        case socket.gaierror():
            return f"the name of {host} cannot be looked up"
        case httpx2.ConnectTimeout():
            return f"{host} does not take the connection in time"
        case OSError() if cause.errno is not None:
            return f"{host}: {os.strerror(cause.errno).lower()}"
    return ""


# --------------------------------------------------------------------------------- transports and copies


def transport(*, here: bool = False) -> httpx2.AsyncClient:
    """Return the SDK's aiohttp transport; `here` uses no proxy, so that nothing leaves this machine."""
    import anthropic  # noqa: PLC0415 - slow to import

    # Without the environment's proxies, but with its certificates.
    options: dict[str, Any] = {"trust_env": False, "verify": httpx2.create_ssl_context()} if here else {}
    hooks = {"response": [_see_redirect]}
    made: Any = anthropic.DefaultAioHttpClient(max_redirects=_MOST_REDIRECTS, event_hooks=hooks, **options)
    for part in filter(None, (made._transport, *made._mounts.values())):  # noqa: SLF001 - not public
        part.client = functools.partial(_session, part)  # made when it is needed, on the loop that needs it
    made.claudescale = True  # not the user's own: a run may make itself another
    return cast("httpx2.AsyncClient", made)


def _session(part: Any) -> Any:
    """Return the session of an aiohttp transport: as its own, but with long headers and TCP keep-alive."""
    import aiohttp  # noqa: PLC0415 - comes with anthropic's transport

    connector = aiohttp.TCPConnector(
        keepalive_timeout=part.limits.keepalive_expiry,
        ssl=part.ssl_context,
        limit=part.limits.max_connections or 0,
        socket_factory=_kept_alive,
    )
    longest = _HEADER_BYTES
    return aiohttp.ClientSession(connector=connector, max_line_size=longest, max_field_size=longest)


def _kept_alive(address: Any) -> socket.socket:
    """Return a socket as the SDK's default transport makes it. Source: anthropic 2.14.0 _base_client.py."""
    made = socket.socket(*address[:3])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPINTVL", 60), ("TCP_KEEPCNT", 5), ("TCP_KEEPIDLE", 60)):
        if (option := getattr(socket, name, None)) is not None:
            made.setsockopt(socket.IPPROTO_TCP, option, value)
    return made


async def _see_redirect(response: httpx2.Response) -> None:
    """Let a redirect be followed that sends the same request again to the same place, with the key; no other.

    Results of a batch may lie elsewhere: they are fetched there without the key.
    """
    if not response.has_redirect_location:
        return
    request = response.request
    try:
        target = request.url.join(response.headers["location"])
    except httpx2.InvalidURL:
        return
    here = request.url
    secured = target.host == here.host and (here.scheme, target.scheme) == ("http", "https")
    reading = request.method == "GET"
    if (target.origin == here.origin or secured) and (reading or response.status_code in _SAME_METHOD):
        return
    if reading and here.path.endswith("/results"):
        for name in set(request.headers) - _HARMLESS:
            del request.headers[name]
        return
    response.headers[NOT_FOLLOWED] = response.headers.pop("location")


def has_own_transport(client: AsyncAnthropic) -> bool:
    """Whether the user gave a client its ``http_client``: it is neither the SDK's nor ours."""
    from anthropic._base_client import AsyncHttpxClientWrapper  # noqa: PLC0415 - the SDK's own kind

    http = client._client  # noqa: SLF001 - there is no public name
    return not isinstance(http, AsyncHttpxClientWrapper) and not hasattr(http, "claudescale")


def _own_transport(client: AsyncAnthropic) -> httpx2.AsyncClient | None:
    """Return the ``http_client`` that the user gave a client, ready for this loop; None where it has none."""
    if not has_own_transport(client):
        return None
    http: httpx2.AsyncClient = client._client  # noqa: SLF001 - there is no public name
    here, home = asyncio.get_running_loop(), _homes.get(http)
    used = http._state.name != "UNOPENED"  # noqa: SLF001 - there is no public name
    elsewhere = loops.is_background(here) if home is None else home() is not here
    flaw = "is closed" if http.is_closed else ""
    if used and elsewhere and not flaw:
        flaw = "has been used on another event loop, and works on one only"
    if flaw:
        msg = (
            f"The client's http_client {flaw}. Give the client one of its own for runs: "
            "AsyncAnthropic(http_client=...)."
        )
        raise PlanError(msg)
    _homes[http] = weakref.ref(here)
    return http


def _copied(client: AsyncAnthropic, http: httpx2.AsyncClient) -> AsyncAnthropic:
    """Return the client with another transport and no retries; all else of it is kept."""
    kind = type(client)
    if kind.__module__.partition(".")[0] == "anthropic":
        copied = client.copy(http_client=http, max_retries=0)
        copied._strict_response_validation = client._strict_response_validation  # noqa: SLF001
        return copied
    # A class of the user's may have an `__init__` of its own, which the SDK's `copy` would call.
    copied = copy.copy(client)
    for name in list(vars(copied)):
        theirs = getattr(kind, name, None)
        if isinstance(theirs, functools.cached_property) or inspect.isfunction(theirs):
            del vars(copied)[name]  # it knows the original, and would send over its transport
    copied._client, copied.max_retries = http, 0  # noqa: SLF001
    copied._middleware_chain = copied._build_middleware_chain()  # noqa: SLF001 - the one there knows it too
    return copied


def _signs_bodies(client: AsyncAnthropic) -> bool:
    """Whether a client's class looks at requests before they go, as AWS's does: it needs the body whole."""
    import anthropic  # noqa: PLC0415 - slow to import

    hook = type(client)._prepare_request  # noqa: SLF001 - the SDK's hook for a class of one's own
    known = (anthropic.AsyncAnthropic, anthropic.AsyncAnthropicGoogleCloud)  # this one only adds a header
    return all(hook is not kind._prepare_request for kind in known)  # noqa: SLF001


def _time_out(client: AsyncAnthropic) -> tuple[float | None, float]:
    """Return the seconds after which the user wants a call given up, None if unsaid, and a connection."""
    import anthropic  # noqa: PLC0415 - slow to import

    given = client.timeout
    if given == anthropic.DEFAULT_TIMEOUT:
        return None, _CONNECT_SECONDS
    if isinstance(given, httpx2.Timeout):
        connect = _CONNECT_SECONDS if given.connect is None else given.connect
        return math.inf if given.read is None else given.read, connect
    return (math.inf, _CONNECT_SECONDS) if given is None else (float(given), min(given, _CONNECT_SECONDS))


def _secrets(client: AsyncAnthropic) -> list[bytes]:
    """Return what a client signs in with, whatever its form. What is too short to be a key is none."""
    sent = {name.lower(): value for name, value in client.default_headers.items() if isinstance(value, str)}
    given = (client.api_key, client.auth_token, sent.get("x-api-key"), sent.get("authorization"))
    bare = {key.removeprefix("Bearer ").strip() for key in given if key}
    return [key.encode() for key in bare if len(key) >= _SHORTEST_SECRET]


def _is_traced(client: AsyncAnthropic) -> bool:
    """Whether the client's calls have spans: its option, and somebody to make them."""
    from opentelemetry import trace  # noqa: PLC0415 - comes with anthropic

    option = client.open_telemetry
    given = option.get("tracer_provider") or trace.get_tracer_provider()
    idle = isinstance(given, trace.NoOpTracerProvider | trace.ProxyTracerProvider)
    return option["traces"]["enabled"] and not idle


# --------------------------------------------------------------------------------------------- the client


def connect(
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    simulate: bool | None = None,
    **simulator: Any,
) -> AsyncAnthropic:
    """Return a client of the Claude API, or of a simulator where the SDK finds no key. One line says which.

    It uses the SDK's aiohttp transport (a third of the processor time of the default one). A run works on a
    copy that never retries, as it decides that in one place.

    Spends: nothing.

    Parameters
    ----------
    api_key : str, optional
        The default is what the SDK finds: ``ANTHROPIC_API_KEY``, ``ANTHROPIC_AUTH_TOKEN``, a profile, or
        workload identity.
    base_url : str, optional
        The default is ``ANTHROPIC_BASE_URL``, or the API itself.
    simulate : bool, optional
        True starts a simulator even if there is a key; False never does.
    **simulator
        For `claudescale.Simulator`: ``tier``, ``speed``, ``seed``, ``faults``, ... They say what it is like
        if one is started; with a key they change nothing, so that the same cell works with and without.

    Raises
    ------
    PlanError
        The key or the address cannot work, or a profile is broken.
    """
    if simulate:
        return _simulated(simulator)
    client = _found(api_key, base_url)
    addressed = base_url is not None or "ANTHROPIC_BASE_URL" in os.environ
    if simulate is None and not addressed and not _signs_in(client):
        _check_nothing_is_broken()
        return _simulated(simulator)
    check_client(client)
    host, credentials = client.base_url.host, client.credentials
    here = host in LOOPBACK
    profile = getattr(credentials, "profile", None)
    by = f" Signed in by {f'profile {profile!r}' if profile else 'workload identity'}." if credentials else ""
    _say((f"Calls go to {host}, on this machine." if here else f"LIVE: calls to {host} are paid for.") + by)
    return client


def _found(api_key: str | None, base_url: str | None) -> AsyncAnthropic:
    """Return the SDK's client, with whatever credentials it finds."""
    import anthropic  # noqa: PLC0415 - slow to import

    if api_key is not None:
        _check_key("api_key", api_key)
    if base_url is not None and not isinstance(base_url, str | httpx2.URL):
        msg = f"base_url is a {type(base_url).__name__}; it is a str, such as base_url='https://...'."
        raise PlanError(msg)
    try:
        return anthropic.AsyncAnthropic(api_key=api_key, base_url=base_url, http_client=transport())
    except httpx2.InvalidURL:
        msg = f"base_url={_shown(base_url)} is no address. Type base_url='https://...'."
        raise PlanError(msg) from None
    except anthropic.AnthropicError as error:
        raise _unusable(error) from error


def _unusable(error: Exception) -> PlanError:
    msg = (
        f"The SDK finds credentials that it cannot use: {error} Mend that, use cs.connect(api_key=...), or "
        "cs.connect(simulate=True), which costs nothing."
    )
    return PlanError(msg)


def _check_nothing_is_broken() -> None:
    """Raise where there are credentials that the SDK passes over without a word."""
    import anthropic  # noqa: PLC0415 - slow to import
    from anthropic.lib.credentials import CredentialsFile  # noqa: PLC0415 - slow to import

    if os.environ.get("ANTHROPIC_FEDERATION_RULE_ID"):
        msg = (
            "ANTHROPIC_FEDERATION_RULE_ID is set, but it takes ANTHROPIC_ORGANIZATION_ID and "
            "ANTHROPIC_IDENTITY_TOKEN (or ANTHROPIC_IDENTITY_TOKEN_FILE) as well. Set them, or use "
            "cs.connect(simulate=True), which costs nothing."
        )
        raise PlanError(msg)
    try:
        profile = CredentialsFile()
        if profile.config_path.is_file():
            profile.extra_headers()  # reads it
    except (anthropic.AnthropicError, OSError) as error:
        raise _unusable(error) from error


def _signs_in(client: AsyncAnthropic) -> bool:
    """Whether a client has any credentials."""
    sent = {name.lower() for name in client.default_headers}
    return bool(
        client.api_key or client.auth_token or client.credentials or sent & {"x-api-key", "authorization"}
    )


def check_client(client: object, mode: str = "live") -> None:
    """Raise where a client cannot be used; nothing is sent.

    Raises
    ------
    PlanError
        It is no `AsyncAnthropic`, has no key, or one that cannot be sent, or an address that cannot be
        reached, or has no batches and `mode` takes them.
    """
    import anthropic  # noqa: PLC0415 - slow to import

    kind = type(client).__name__
    if not isinstance(client, anthropic.AsyncAnthropic):
        other = any(name in kind for name in ("Bedrock", "Vertex"))  # the SDK's own
        why = " Its wire is another one, without Message Batches." if other else ""
        msg = f"The client is a {kind}; a run needs an AsyncAnthropic.{why} Use client = cs.connect()."
        raise PlanError(msg)
    if mode != "live" and isinstance(client, anthropic.AsyncAnthropicFoundry):
        msg = f"{kind} has no Message Batches, so mode={mode!r} cannot work there. Use mode='live'."
        raise PlanError(msg)
    # A class with ways of its own to sign in says for itself what it lacks.
    if type(client) is anthropic.AsyncAnthropic and not _signs_in(client):
        msg = (
            "The client has no key. Set ANTHROPIC_API_KEY, use cs.connect(api_key=...), or "
            "cs.connect(simulate=True), which costs nothing."
        )
        raise PlanError(msg)
    for name in ("api_key", "auth_token"):
        if (key := getattr(client, name)) is not None:
            _check_key(name, key)
    for name, value in client.default_headers.items():
        if isinstance(value, str) and not (value.isascii() and (value.isprintable() or not value)):
            msg = f"The header {name!r} has a character that cannot be sent, such as a newline. Leave it out."
            raise PlanError(msg)
    _check_address(client)
    if client.base_url.host not in LOOPBACK and not has_own_transport(client):
        _check_proxy(client.base_url)
    patched = [name for name in vars(client) if inspect.isfunction(getattr(type(client), name, None))]
    if patched:
        msg = (
            f"A run's copy of the client leaves out what stands in the place of {patched[0]}(). "
            "Use AsyncAnthropic(middleware=[...]), or a class of your own."
        )
        warnings.warn(msg, stacklevel=3)


def _check_key(name: str, key: object) -> None:
    """Raise what is wrong with a key, never showing it."""
    if not isinstance(key, str):
        msg = f"{name} is a {type(key).__name__}; it is a str."
        raise PlanError(msg)
    if not key.strip():
        flaw = "is empty"
    elif key != key.strip():
        flaw = f"begins or ends with a blank or a newline: {name}=key.strip()"
    elif {key[0], key[-1]} & set("\"'`"):
        flaw = f"stands in quotes: {name}=key.strip('\"')"
    elif not key.isascii() or not key.isprintable() or " " in key:
        flaw = "has a blank, a newline or a character beyond ASCII in it, which no key has. Copy it again"
    else:
        return
    msg = f"The {name} {flaw}. (It is the argument, or ANTHROPIC_{name.upper()}.)"
    raise PlanError(msg)


def _check_address(client: AsyncAnthropic) -> None:
    """Raise where nothing can be sent to a client's address, never showing a password."""
    url = client.base_url
    if not str(url).strip("/") and type(client).__module__.startswith("anthropic.lib."):
        return  # it finds its address at the first call
    text, hint = _shown(str(url)), "base_url='https://...'"
    if url.scheme not in {"http", "https"}:
        flaw = f"does not begin with https:// (or http://). Type {hint}"
        text = text.replace("'/", "'", 1) if not url.scheme else text
    elif url.userinfo:
        flaw = f"has a user name or password in it. Leave it out, and give the key: {hint}, api_key=..."
    elif not url.host or "%" in url.host or any(letter.isspace() for letter in str(url)):
        flaw = f"has no host, or a blank in it. Type {hint}"
    elif url.query or url.fragment:
        flaw = f"has a ? or a # in it. Use AsyncAnthropic({hint}, default_query=...)"
    else:
        return
    msg = f"base_url={text} {flaw}. (It is the argument, or ANTHROPIC_BASE_URL.)"
    raise PlanError(msg)


def _check_proxy(url: httpx2.URL) -> None:
    """Raise where the environment's proxy is of a kind that aiohttp does not speak."""
    proxies = urllib.request.getproxies()
    proxy = proxies.get(url.scheme) or proxies.get("all") or ""
    if proxy.startswith("socks") and not urllib.request.proxy_bypass(url.host):
        msg = (
            f"The environment has a SOCKS proxy for {url.host}, which cannot be used. Set HTTPS_PROXY to one "
            "of http://, or give AsyncAnthropic(http_client=httpx2.AsyncClient(proxy='socks5://...')), which "
            "needs the package socksio."
        )
        raise PlanError(msg)


def _shown(url: str | None) -> str:
    """Return an address as it can be shown: no password."""
    before, at, after = (url or os.environ.get("ANTHROPIC_BASE_URL", "")).rpartition("@")
    scheme = before.partition("://")[0] + "://" if "://" in before else ""
    return repr((f"{scheme}...@{after}" if at else after)[:_MOST_SHOWN])


def _simulated(options: dict[str, Any]) -> AsyncAnthropic:
    from claudescale.simulator import Simulator  # noqa: PLC0415 - an edge, started only here

    simulator = Simulator(**options)
    _simulators.append(simulator)
    speed = f", {simulator.clock.speed:g} times real time" if simulator.clock.speed != 1 else ""
    _say(f"SIMULATED: replies are synthetic and cost nothing (tier {simulator.desk.terms.name!r}{speed}).")
    return simulator.client()


def _say(line: str) -> None:
    stream = sys.stdout if loops.in_notebook() else sys.stderr
    stream.write(line + "\n")
